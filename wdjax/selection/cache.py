"""The cache of finished trials: what was trained once is not trained again.

A trial is found under a hash of the program as lowered, its numbers, the examples, fold, key and
seed, versions, compiler options and the devices' kind and number: what is found is what the same
program gave for the same numbers. Several processes take what the first of them finds.
"""

import base64
import functools
import hashlib
import json
import os
import pathlib
import platform
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jaxlib.version
import numpy as np
from jaxtyping import Array, PyTree

from wdjax.checkpoint.leaves import hash_of_array, host_leaves
from wdjax.runners import num_cores
from wdjax.selection.trials import ProgramFolds
from wdjax.types import Batch
from wdjax.writing import json_bytes

ENVIRONMENT = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
CONFIG = (
    "jax_optimization_level",
    "jax_exec_time_optimization_effort",
    "jax_memory_fitting_level",
    "jax_memory_fitting_effort",
)
"""What tells a compiler how to go about a program, and is not in its text."""

KNOWN_CALLS = re.compile(
    r"(lapack|cusolver|cusparse|hipsolver|hipsparse)_\w+_ffi|(cu|hip)_lu_pivots_to_permutation"
    r"|(cu|hip)_threefry2x32_ffi|Eigh|Qr|LuDecomposition|ProductOfElementaryHouseholderReflectors"
    r"|TopK|ApproxTopK|mhlo\.topk|AllocateBuffer|Sharding|SPMD(FullToShard|ShardToFull)Shape"
    r"|annotate_device_placement|stablehlo\.dynamic_\w+|shape_assertion|tpu_custom_call"
    r"|mosaic_gpu(_v2)?|__gpu\$xla\.gpu\.triton"
)
"""Calls out of a program whose code is JAX's own, or (the last line's) in the program's text."""

OF_A_MODEL = (
    *("vendor_id", "cpu family", "model", "model name", "stepping", "flags", "features"),
    *("cpu implementer", "cpu architecture", "cpu variant", "cpu part", "cpu revision"),
)
"""Of /proc/cpuinfo, what all processors of a model have in common."""


class TrialCache:
    """The scores of one program on one set of data, a line of JSON for each finished trial.

        {"trial": name, "scores": [a number a leaf, as float.hex], "check": hash of the two}

    A leaf of single examples is `[dtype, base64 of its little-endian bytes]` in place of a number.

    Lines are appended, those of a chunk in one write: several runs may share a folder, and a line
    that a kill or a full disk cut short is passed over. A folder that cannot be read or written
    caches nothing, and is warned of once.

    Args:
      folder: made with the first line.
      program: what names the program and the data, see `program_name`.
    """

    def __init__(self, folder: str | os.PathLike[str], program: str):
        self.path = pathlib.Path(folder).expanduser() / f"{program}.jsonl"
        self._writes = True

    def read(self, num_scores: int) -> dict[str, list[Any]]:
        """`{trial: scores}` of each undamaged line with `num_scores` of them, the last of each."""
        try:
            lines = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            return {}
        except OSError as error:
            self._give_up(error)
            return {}
        whole = filter(None, map(_parsed, lines))
        return {trial: scores for trial, scores in whole if len(scores) == num_scores}

    def write(self, scores: Iterable[tuple[str, list[Any]]]) -> None:
        """Adds a line for each `(trial, scores)`."""
        if not self._writes:
            return
        lines = []
        for trial, numbers in scores:
            hexed = [_text_of(score) for score in numbers]
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
            f"`cache`: {str(self.path.parent)!r} cannot be used ({error.strerror}), so finished "
            "trials are not cached; the run goes on without.",
            stacklevel=2,
        )


class CachedTrials(NamedTuple):
    """What a cross-validation knows of its trials before it runs one."""

    files: dict[int, TrialCache]
    """`{fold: file}` of its program; without those that this process cannot write."""
    names: dict[int, list[str]]
    """`{fold: [row * seed]}`, of the file's lines."""
    found: np.ndarray
    """`[fold, row * seed]`: whether it need not run."""
    values: PyTree
    """The scores, every leaf `[fold, row * seed]` or, of single examples, `[fold, row * seed,
    example]`; NaN where not known yet."""

    @classmethod
    def nothing(cls, scores: PyTree, shape: tuple[int, int]) -> "CachedTrials":
        """No trial known, and no file; `scores` has the dtypes, and the shapes after the
        first axis."""
        unknown = lambda leaf: np.full((*shape, *leaf.shape[1:]), np.nan, leaf.dtype)
        values = jax.tree.map(unknown, scores)
        return cls({}, {}, np.zeros(shape, bool), values)

    def add(self, fold: int, trials: np.ndarray, scores: PyTree) -> None:
        """Takes in, and writes, the finished `trials` of a fold, `scores` in their order."""
        for values, new in zip(jax.tree.leaves(self.values), jax.tree.leaves(scores), strict=True):
            _set(values, (fold, trials), new)
        if fold in self.files:
            each = zip(*map(list, jax.tree.leaves(scores)), strict=True)
            names = [self.names[fold][trial] for trial in trials]
            self.files[fold].write((n, list(s)) for n, s in zip(names, each, strict=True))


def find_cached(
    known: CachedTrials,
    folder: str | os.PathLike[str],
    lowered: Any,
    numbers: Mapping[str, np.ndarray],
    inputs: tuple[Batch, ProgramFolds, Array],
    num_seeds: int,
    *,
    options: Any,
    device: Any,
) -> None:
    """Looks up every trial of the folds that one program of a cross-validation runs.

    A trial is found if the same program ran on the same numbers. The program is the trial program
    as lowered, all constants in its text, with the versions, compiler options and processor that
    run it; the numbers are the row's, the examples, those of the fold in their order, the key, and
    which fold and seed it is: the cache is invalidated automatically. A program with host callbacks
    or unknown custom calls is never cached (which is warned of), nor are scores that are not real
    numbers.

    Args:
      known: what is found is put in here.
      folder: of the cache.
      lowered: the program that runs the trials.
      numbers: `{name: values[row]}`, in the dtype the program takes.
      inputs: the examples, the folds and the key.
      num_seeds: runs per row and fold.
      options: what its compiler is asked for.
      device: one of those that run it.
    """
    data, group, key = inputs
    leaves = jax.tree.leaves(known.values)
    if not leaves or any(leaf.dtype.kind != "f" for leaf in leaves):
        return
    calls = calls_out(lowered.as_text())
    if calls:
        warnings.warn(
            f"`cache`: the program calls {', '.join(sorted(calls))}, whose code is not in its "
            "text, so its trials are not cached; the run goes on without.",
            stacklevel=3,
        )
        return
    file = TrialCache(folder, program_name(lowered, (data, key), options, device))
    lines = file.read(len(leaves))
    find_nans = getattr(jax.config, "jax_debug_nans", False)
    shapes = [leaf.shape[1:] for leaf in jax.tree.leaves(lowered.out_info)]
    for fold, names in trial_names(numbers, group, num_seeds).items():
        known.files[fold], known.names[fold] = file, names
        for trial, name in enumerate(names):
            scores = lines.get(name)
            if scores is None or [np.shape(score) for score in scores] != shapes:
                continue
            # Who looks for NaNs wants the trial that makes one to run.
            if find_nans and any(np.isnan(score).any() for score in scores):
                continue
            known.found[fold, trial] = True
            for leaf, score in zip(leaves, scores, strict=True):
                _set(leaf, (fold, trial), score)


def calls_out(text: str) -> set[str]:
    """What a lowered program calls whose code is not in its text: callbacks, foreign functions."""
    targets = set(re.findall(r'custom_call @"?([^\s"(]+)|call_target_name = "([^"]+)"', text))
    targets = {first or second for first, second in targets}
    unknown = {target for target in targets if not KNOWN_CALLS.fullmatch(target)}
    return unknown | ({"the host"} if "is_host_transfer = true" in text else set())


def program_name(lowered: Any, inputs: PyTree, options: Any, device: Any) -> str:
    """The hash of a lowered program, of `inputs` and of all that the results depend on besides."""
    return _hash(
        *(lowered.as_text(), jax.__version__, jaxlib.version.__version__, repr(options)),
        *(device.platform, device.device_kind, device.client.platform_version),
        *map(_setting, ENVIRONMENT),
        *(str(getattr(jax.config, name, "")) for name in CONFIG),
        *((_processor(), num_cores()) if device.platform == "cpu" else ()),
        {path: leaf.describe() for path, leaf in host_leaves(inputs).items()},
    )


def trial_names(
    numbers: Mapping[str, np.ndarray], group: ProgramFolds, num_seeds: int
) -> dict[int, list[str]]:
    """`{fold: [row * seed]}`: a name for each trial of a program on its data."""
    num_rows = len(next(iter(numbers.values())))
    rows = [
        {name: values[row].tobytes().hex() for name, values in sorted(numbers.items())}
        for row in range(num_rows)
    ]
    indices = [leaf.array for leaf in host_leaves(group.folds).values()]
    names = {}
    for fold in group.members.tolist():
        own = [hash_of_array(index[fold]) for index in indices]
        names[fold] = [_hash(own, fold, row, s) for row in rows for s in range(num_seeds)]
    return names


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json_bytes({"parts": parts})).hexdigest()[:32]


def _text_of(score: Any) -> Any:
    if np.ndim(score) == 0:
        return float(score).hex()
    little = np.asarray(score, np.dtype(score.dtype).newbyteorder("<"))
    return [little.dtype.str, base64.b64encode(little.tobytes()).decode()]


def _score_of(text: Any) -> Any:
    if isinstance(text, str):
        return float.fromhex(text)
    dtype, encoded = text
    if dtype not in _DTYPES:
        raise ValueError(f"no dtype of a score: {dtype!r}")
    return np.frombuffer(base64.b64decode(encoded, validate=True), dtype)


_DTYPES = ("<f2", "<f4", "<f8")


def _set(values: np.ndarray, place: tuple[Any, Any], new: Any) -> None:
    """`values[place] = new`; what lies beyond the examples of the fold is 0, as padding is."""
    if values.ndim == 2:
        values[place] = new
        return
    values[place] = 0
    values[(*place, slice(np.shape(new)[-1]))] = new


def _check(trial: str, hexed: list[Any]) -> str:
    return _hash(trial, *hexed)[:8]


def _parsed(line: bytes) -> tuple[str, list[Any]] | None:
    try:
        told = json.loads(line)
        trial, hexed = told["trial"], told["scores"]
        if told["check"] != _check(trial, hexed):
            return None
        return trial, [_score_of(text) for text in hexed]
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _setting(name: str) -> str:
    value = os.environ.get(name, "")
    # XLA takes flags from a file as well.
    is_file = value and not value.lstrip().startswith("-") and os.path.isfile(value)
    return pathlib.Path(value).read_text(encoding="utf-8") if is_file else value


@functools.cache
def _processor() -> str:
    """The processor's model and what it can do: another's library may sum in another order."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    first = text.split("\n\n")[0].splitlines()
    return "\n".join(line for line in first if line.partition(":")[0].strip().lower() in OF_A_MODEL)
