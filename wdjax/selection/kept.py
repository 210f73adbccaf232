"""Scores of finished trials, kept in a folder: what was trained once is not trained again."""

import functools
import hashlib
import json
import os
import pathlib
import platform
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
from jaxtyping import Array, PyTree

from wdjax.runners import num_cores
from wdjax.selection.folds import Folds
from wdjax.selection.trials import on_host
from wdjax.types import Batch

ENVIRONMENT = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
CONFIG = (
    "jax_optimization_level",
    "jax_exec_time_optimization_effort",
    "jax_memory_fitting_level",
    "jax_memory_fitting_effort",
)
"""What tells a compiler how to go about a program, and is not in its text."""


class KeptTrials:
    """The scores of one program on one set of data, a line of JSON for each finished trial.

        {"trial": name, "scores": [a number a leaf, as float.hex], "check": hash of the two}

    Lines are appended, those of a chunk in one write: several runs may keep into one folder at a
    time, and a line that a kill or a full disk cut short is passed over. A folder that cannot be
    read or written keeps nothing, and is warned of once.

    Args:
      folder: where to keep; made with the first line.
      program: what names the program and the data, see `program_name`.
    """

    def __init__(self, folder: str | os.PathLike[str], program: str):
        self.path = pathlib.Path(folder) / f"{program}.jsonl"
        self._writes = True

    def read(self, num_scores: int) -> dict[str, list[float]]:
        """`{trial: scores}` of every whole line with `num_scores` of them, the last one of each."""
        try:
            lines = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            return {}
        except OSError as error:
            self._give_up(error)
            return {}
        found = (_parsed(line) for line in lines)
        return {
            line[0]: line[1] for line in found if line is not None and len(line[1]) == num_scores
        }

    def write(self, scores: Iterable[tuple[str, list[float]]]) -> None:
        """Adds a line for each `(trial, scores)`."""
        if not self._writes:
            return
        lines = []
        for trial, numbers in scores:
            hexed = [float(number).hex() for number in numbers]
            check = _check(trial, hexed)
            lines.append(json.dumps({"trial": trial, "scores": hexed, "check": check}))
        # A new line first: what a killed run left of its last one must not swallow it.
        whole = "\n" + "\n".join(lines) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab", buffering=0) as file:
                file.write(whole.encode())
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._writes = False
        warnings.warn(
            f"`kept`: {str(self.path.parent)!r} cannot be used ({error.strerror}), so finished "
            "trials are not kept; the run goes on without.",
            stacklevel=2,
        )


class Kept(NamedTuple):
    """What a cross-validation knows of its trials before it runs one."""

    store: KeptTrials | None
    """None where this process does not write, or the program cannot be told from another."""
    names: np.ndarray | None
    """`[fold, row * seed]`, of the store's lines."""
    found: np.ndarray
    """`[fold, row * seed]`: whether it need not run."""
    values: PyTree
    """Of the scores, every leaf `[fold, row * seed]`; NaN where not found."""

    def add(self, fold: int, trials: np.ndarray, scores: PyTree) -> None:
        """Keeps the finished `trials` of a fold, every leaf of `scores` in their order."""
        if self.store is not None and self.names is not None:
            each = zip(*(leaf.tolist() for leaf in jax.tree.leaves(scores)), strict=True)
            names = self.names[fold, trials].tolist()
            self.store.write((n, list(s)) for n, s in zip(names, each, strict=True))


def find_kept(
    folder: str | os.PathLike[str],
    trial: Callable,
    numbers: Mapping[str, np.ndarray],
    data: Batch,
    folds: Folds,
    key: Array,
    num_seeds: int,
    *,
    settings: tuple,
    device: Any,
) -> Kept:
    """Looks up every trial of a cross-validation.

    A trial is found if the same program ran on the same numbers. The program is one trial's, as
    lowered, with its constants, and the versions, the compiler's flags and the processor that run
    it; the numbers are the row's, the examples, those of the fold in their order, the key, and
    which fold and seed it is. So nobody need say that code, data or an option changed: what can
    change a score changes the name it is kept under. Nothing is found, nor kept, of a program that
    calls back into Python, or whose scores are not real numbers.

    Args:
      folder: where they are kept.
      trial: `(numbers, data, folds of one fold, key, fold, seed) -> tree of scalars`.
      numbers: `{name: values[row]}`, in the dtype the program takes.
      data: all examples.
      folds: index arrays `[fold, n]`.
      key: of the cross-validation.
      num_seeds: runs per row and fold.
      settings: what else changes bits, such as how many run vmapped together.
      device: one of those that run it.
    """
    one_fold = lambda folds: jax.tree.map(lambda index: index[0], folds)
    shapes = jax.eval_shape(lambda data, folds, key: (data, one_fold(folds), key), data, folds, key)
    row = {name: jax.ShapeDtypeStruct((), values.dtype) for name, values in numbers.items()}
    count = jax.ShapeDtypeStruct((), np.int32)
    traced = jax.jit(trial).trace(row, *shapes, count, count)
    num_rows = len(next(iter(numbers.values())))
    shape = (folds.train.shape[0], num_rows * num_seeds)
    leaves, structure = jax.tree.flatten(traced.out_info)
    values = [np.full(shape, np.nan, leaf.dtype) for leaf in leaves]
    found = np.zeros(shape, bool)
    program = program_name(traced, (data, key), settings, device)
    if program is None or any(leaf.dtype.kind != "f" for leaf in leaves):
        return Kept(None, None, found, jax.tree.unflatten(structure, values))
    names = trial_names(numbers, folds, num_seeds)
    store = KeptTrials(folder, program)
    known = store.read(len(leaves))
    for place in np.ndindex(shape):
        scores = known.get(str(names[place]))
        if scores is not None:
            found[place] = True
            for leaf, score in zip(values, scores, strict=True):
                leaf[place] = score
    return Kept(store, names, found, jax.tree.unflatten(structure, values))


def program_name(traced: Any, inputs: PyTree, settings: tuple, device: Any) -> str | None:
    """The hash of a traced program, of `inputs` and of all that the results depend on besides.

    None for a program that calls back into Python: what it does there is not in its text.
    """
    text = traced.lower().as_text()
    if "callback" in text or "is_host_transfer = true" in text:
        return None
    told = [
        *(text, jax.__version__, jaxlib.version.__version__, settings),
        *(device.platform, device.device_kind, device.client.platform_version),
        *(os.environ.get(name, "") for name in ENVIRONMENT),
        *(str(getattr(jax.config, name, "")) for name in CONFIG),
        *((_processor(), num_cores()) if device.platform == "cpu" else ()),
    ]
    return _hash(*map(repr, told), *jax.tree.leaves((traced.jaxpr.consts, inputs)))


def trial_names(numbers: Mapping[str, np.ndarray], folds: Folds, num_seeds: int) -> np.ndarray:
    """`[fold, row * seed]`: a name for each trial of a program on its data."""
    columns = sorted(numbers.items())
    rows = [
        _hash(*(part for name, values in columns for part in (name, values[row])))
        for row in range(len(columns[0][1]))
    ]
    folds = jax.tree.map(np.asarray, folds)
    names = []
    for fold in range(len(folds.train)):
        part = _hash(*(leaf[fold] for leaf in folds))
        names.append([_hash(part, str(fold), r, str(s)) for r in rows for s in range(num_seeds)])
    return np.array(names)


def _hash(*parts: Any) -> str:
    """Of texts and arrays, each with its length or dtype and shape: no two lists hash alike."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            data = part.encode()
            total.update(b"text %d " % len(data))
            total.update(data)
            continue
        if jnp.issubdtype(part.dtype, jax.dtypes.prng_key):
            total.update(repr(jax.random.key_impl(part)).encode())
            part = jax.random.key_data(part)
        host = np.ascontiguousarray(on_host(part) if isinstance(part, jax.Array) else part)
        total.update(f"array {host.dtype} {host.shape} ".encode())
        total.update(host.reshape(-1).view(np.uint8).data)
    return total.hexdigest()[:32]


def _check(trial: str, hexed: list[str]) -> str:
    return _hash(trial, *hexed)[:8]


def _parsed(line: bytes) -> tuple[str, list[float]] | None:
    try:
        told = json.loads(line)
        trial, hexed = told["trial"], told["scores"]
        if told["check"] != _check(trial, hexed):
            return None
        return trial, [float.fromhex(number) for number in hexed]
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


@functools.cache
def _processor() -> str:
    """The processor's model: another one's library may sum in another order."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, "") or platform.processor() or platform.machine()
