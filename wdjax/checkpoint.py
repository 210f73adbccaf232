"""Save and resume: whole checkpoints or none, every leaf known by its SHA-256 (arrays by orbax)."""

import hashlib
import importlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from wdjax.checks import check_one_of, check_positive_int

FORMAT = 1
_FACTS, _ARRAYS = "checkpoint.json", "arrays"
_PARTIAL, _DAMAGED = ".partial-", "damaged-"
_LONGEST_LIST = 3


class CheckpointError(RuntimeError):
    """A checkpoint could not be written."""


class DamagedCheckpointError(CheckpointError):
    """What a checkpoint's files hold is not what was written."""


class Restored(NamedTuple):
    """A checkpoint read back, every leaf checked against its SHA-256."""

    step: int
    state: PyTree
    """In the structure of what it was read into, as NumPy arrays and typed keys."""
    facts: dict[str, Any]
    """What was saved with it: `data`, `config`, `progress`, `score`, `versions`."""


class Checkpoints:
    """A folder of checkpoints: the newest `keep_last` and the best one.

    A save copies the state to the host and returns; a thread writes. A checkpoint is written
    beside, flushed to the disk and renamed, so that at any moment every checkpoint in the folder
    is whole. Its manifest holds the SHA-256 of every leaf and of itself, because the arrays'
    own format reads a flipped bit without a word. Nothing in a checkpoint is run: it is JSON
    and plain arrays, and the state's structure comes from the program that reads it.

    With several processes (`jax.distributed`) process 0 alone touches the folder, and the
    others get from it what it read; the state must be the same on all, as the runners keep it.

    Args:
      folder: made if missing; what a killed run left half written there is removed.
      keep_last: how many of the newest stay, whatever their score.
      keep_best: whether the one of the lowest score stays too. NaN is never the lowest.
      on_error: "stop" raises when a save failed (a full disk); "continue" warns, and the next
        save tries again.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        keep_last: int = 2,
        keep_best: bool = True,
        on_error: str = "stop",
    ):
        check_positive_int("keep_last", keep_last)
        check_one_of("on_error", on_error, ("stop", "continue"))
        self.folder = pathlib.Path(folder).absolute()
        self._keep_last, self._keep_best, self._on_error = keep_last, keep_best, on_error
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="wdjax-checkpoint")
        self._pending: Future | None = None
        self._scores: dict[int, float] = {}
        if _is_first_process():
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(f"{_PARTIAL}*"):
                shutil.rmtree(left, ignore_errors=True)
            self._scores = {step: self._read_score(step) for step in self.steps()}

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending."""
        return _steps_in(self.folder)

    def best_step(self) -> int | None:
        """The step of the lowest finite score; None if there is none."""
        finite = {step: s for step, s in self._scores.items() if math.isfinite(s)}
        return min(finite, key=lambda step: (finite[step], step)) if finite else None

    def save(
        self,
        step: int,
        state: PyTree,
        *,
        data: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        progress: Mapping[str, Any] | None = None,
        score: float | None = None,
    ) -> None:
        """Takes a copy of the state and writes it in the background.

        Waits for the save before it, of which it raises the error.

        Args:
          step: the steps done; a checkpoint of the same step is replaced.
          state: a tree of arrays and typed keys, the same on every process.
          data: the data's position, as a `Stream`'s `get_state` gives it.
          config: what the run was told; compared when it is resumed.
          progress: what else the run has to remember.
          score: lower is better; None and NaN are never the best.

        Raises:
          CheckpointError: if the save before this one failed, under `on_error="stop"`.
          TypeError: if data, config or progress are not JSON.
        """
        check_positive_int("step", step, low=0)
        self.wait()
        if not _is_first_process():
            return
        facts = {
            "format": FORMAT,
            "step": int(step),
            "score": None if score is None or not math.isfinite(score) else float(score),
            "data": dict(data or {}),
            "config": dict(config or {}),
            "progress": dict(progress or {}),
            "versions": versions(),
        }
        _json_bytes(facts)
        leaves = host_leaves(state)
        self._pending = self._writer.submit(self._write, int(step), leaves, facts)

    def check(self) -> None:
        """Raises what a finished save failed with; does not wait for one under way.

        Raises:
          CheckpointError: if the last save failed, under `on_error="stop"`.
        """
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Waits until the save under way is on the disk.

        Raises:
          CheckpointError: if it failed, under `on_error="stop"`.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        error = pending.exception()
        if error is None:
            return
        if self._on_error == "continue" and isinstance(error, CheckpointError):
            warnings.warn(f"{error} The run goes on.", RuntimeWarning, stacklevel=3)
            return
        raise error

    def close(self) -> None:
        """Waits for the save under way and ends the writing thread."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()

    def restore(self, like: PyTree, *, step: int | None = None) -> Restored:
        """Reads a checkpoint into the structure of `like`.

        Without `step`, the newest whole one: a damaged one is set aside under another name, with
        a warning, and the one before it is read. Shapes and dtypes are those of `like`, or it is
        refused: nothing is cast.

        Raises:
          FileNotFoundError: if there is none, or not the one asked for.
          DamagedCheckpointError: if the one asked for is damaged, or all are.
          ValueError: if it is of another model or optimiser, by the leaf that differs.
        """
        self.wait()
        if jax.process_count() == 1:
            return self._restore(like, step)
        return _share_from_first_process(lambda: self._restore(like, step), like)

    def _restore(self, like: PyTree, step: int | None) -> Restored:
        steps = self.steps()
        if step is not None and step not in steps:
            raise FileNotFoundError(
                f"{str(self.folder)!r} holds no checkpoint of step {step}; it has {steps}."
            )
        if not steps:
            raise FileNotFoundError(f"{str(self.folder)!r} holds no checkpoint.")
        damage = []
        for candidate in reversed(steps) if step is None else [step]:
            try:
                return self._writer.submit(self._read, candidate, like).result()
            except DamagedCheckpointError as error:
                if step is not None:
                    raise
                damage.append(f"step {candidate} ({error})")
                aside = _free_name(self.folder / f"{_DAMAGED}{candidate}")
                (self.folder / _name(candidate)).rename(aside)
                self._scores.pop(candidate, None)
                warnings.warn(
                    f"THE CHECKPOINT OF STEP {candidate} IS DAMAGED: {error} It was set aside as "
                    f"{aside.name!r}; the one before it is taken.",
                    RuntimeWarning,
                    stacklevel=3,
                )
        raise DamagedCheckpointError(
            f"no checkpoint in {str(self.folder)!r} is whole: {'; '.join(damage)}. Start anew in "
            "another folder."
        )

    def _write(self, step: int, leaves: dict[str, "_Leaf"], facts: dict[str, Any]) -> None:
        """In the writing thread. What fails leaves the folder as it was."""
        partial = self.folder / f"{_PARTIAL}{_name(step)}"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            arrays = {path: leaf.array for path, leaf in leaves.items() if leaf.array.size}
            if arrays:
                _write_arrays(partial / _ARRAYS, arrays)
            facts = facts | {"leaves": {path: leaf.describe() for path, leaf in leaves.items()}}
            facts["sha256"] = hashlib.sha256(_json_bytes(facts)).hexdigest()
            _write_durably(partial / _FACTS, _json_bytes(facts))
            final = self.folder / _name(step)
            if final.exists():
                self._remove(step)
            partial.rename(final)
            _sync_folder(self.folder)
        except Exception as error:  # tensorstore's errors have no class of their own.
            shutil.rmtree(partial, ignore_errors=True)
            newest = max(self.steps(), default=None)
            kept = "there is none before it" if newest is None else f"that of step {newest} stays"
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written to {str(self.folder)!r} "
                f"({_first_line(error)}); {kept}."
            ) from error
        self._scores[step] = math.nan if facts["score"] is None else facts["score"]
        keep = {*self.steps()[-self._keep_last :], self.best_step() if self._keep_best else None}
        for old in set(self.steps()) - keep:
            self._remove(old)

    def _remove(self, step: int) -> None:
        """Renamed first: a kill in between must not leave half a checkpoint under its name."""
        doomed = self.folder / f"{_PARTIAL}old-{_name(step)}"
        shutil.rmtree(doomed, ignore_errors=True)
        (self.folder / _name(step)).rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
        self._scores.pop(step, None)

    def _read_score(self, step: int) -> float:
        try:
            score = _read_facts(self.folder / _name(step))["score"]
        except DamagedCheckpointError:  # Never the best; `restore` is who says what is wrong.
            return math.nan
        return math.nan if score is None else score

    def _read(self, step: int, like: PyTree) -> Restored:
        """In the writing thread, which has no event loop that orbax's own could meet."""
        folder = self.folder / _name(step)
        facts = _read_facts(folder)
        wanted = {path: _described(leaf) for path, leaf in _named_leaves(like)}
        check_same_leaves(facts["leaves"], wanted, f"the checkpoint of step {step}")
        found = _read_arrays(folder / _ARRAYS, facts["leaves"])
        leaves = []
        for path, leaf in _named_leaves(like):
            saved, array = facts["leaves"][path], found[path]
            if _hash(array) != saved["sha256"]:
                raise DamagedCheckpointError(
                    f"the bytes of leaf {path!r} in {str(folder / _ARRAYS)!r} are not those that "
                    "were written (SHA-256)."
                )
            leaves.append(_as_leaf(array, leaf))
        state = jax.tree.unflatten(jax.tree.structure(like), leaves)
        return Restored(step, state, {k: v for k, v in facts.items() if k != "leaves"})


class _Leaf(NamedTuple):
    """A leaf on the host: of a typed key its data, with the name of its generator."""

    array: np.ndarray
    generator: str | None

    def describe(self) -> dict[str, Any]:
        about = {"dtype": str(self.array.dtype), "shape": list(self.array.shape)}
        about |= {"sha256": _hash(self.array)}
        return about if self.generator is None else about | {"generator": self.generator}


def versions() -> dict[str, str]:
    """The versions that a run's numbers may depend on."""
    packages = ("wdjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {name: _version(name) for name in packages} | {"python": platform.python_version()}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"  # Run from its source tree.


def check_same_config(
    saved: Mapping[str, Any], here: Mapping[str, Any], *, may_differ: tuple[str, ...] = ()
) -> None:
    """Checks that a run goes on as it was begun.

    Raises:
      ValueError: naming each field that differs, with both values.
    """
    here = json.loads(_json_bytes(dict(here)))
    absent = "absent"
    differing = [
        f"{name} was {saved.get(name, absent)!r} and is {here.get(name, absent)!r}"
        for name in sorted(saved.keys() | here.keys())
        if name not in may_differ and saved.get(name, absent) != here.get(name, absent)
    ]
    if differing:
        raise ValueError(
            f"cannot resume under another config: {'; '.join(differing)}. Give what was given "
            "before, or start a new run."
        )


def check_same_leaves(
    saved: Mapping[str, Mapping[str, Any]], wanted: Mapping[str, Mapping[str, Any]], what: str
) -> None:
    """Checks names, shapes and dtypes of leaves against those wanted.

    Raises:
      ValueError: naming the leaves that differ.
    """
    differing = [f"it has {path!r}, which this model has not" for path in saved.keys() - wanted]
    differing += [f"it lacks {path!r}" for path in wanted.keys() - saved.keys()]
    for path in wanted.keys() & saved.keys():
        there, here = _in_words(saved[path]), _in_words(wanted[path])
        if there != here:
            differing.append(f"{path!r} is {there} there and {here} here")
    if differing:
        differing.sort()
        more = len(differing) - _LONGEST_LIST
        others = f"; and {more} more" if more > 0 else ""
        raise ValueError(
            f"{what} is of another model or optimiser: "
            f"{'; '.join(differing[:_LONGEST_LIST])}{others}."
        )


def host_leaves(state: PyTree) -> dict[str, _Leaf]:
    """Every leaf copied to the host, by its path.

    Copied, not viewed: the next step uses the state's buffers again.

    Raises:
      ValueError: if a leaf is split over processes, or two have the same path.
    """
    named = _named_leaves(state)
    for path, leaf in named:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_replicated and _is_elsewhere(leaf):
            raise ValueError(
                f"leaf {path!r} is split over processes ({leaf.sharding}); a checkpoint holds a "
                "state that every process has whole."
            )
    data = [(path, _data_of(leaf), _generator(leaf)) for path, leaf in named]
    for _, leaf, _ in data:
        if isinstance(leaf, jax.Array):
            leaf.copy_to_host_async()
    leaves = {path: _Leaf(np.array(leaf, copy=True), generator) for path, leaf, generator in data}
    if len(leaves) < len(named):
        paths = [path for path, _ in named]
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ValueError(f"two leaves of the state have the path {twice!r}; rename one.")
    return leaves


def _write_arrays(folder: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    orbax, checkpointer = _orbax()
    with checkpointer:
        checkpointer.save(folder, args=orbax.args.PyTreeSave(arrays))


def _read_arrays(folder: pathlib.Path, leaves: Mapping[str, Any]) -> dict[str, np.ndarray]:
    empty = {
        path: np.zeros(about["shape"], np.dtype(about["dtype"]))
        for path, about in leaves.items()
        if 0 in about["shape"]
    }
    stored = {
        path: jax.ShapeDtypeStruct(tuple(about["shape"]), np.dtype(about["dtype"]))
        for path, about in leaves.items()
        if path not in empty
    }
    if not stored:
        return empty
    orbax, checkpointer = _orbax()
    # Without a dtype to restore as, nothing is cast; what was read is compared below.
    as_numpy = {path: orbax.RestoreArgs(restore_type=np.ndarray) for path in stored}
    try:
        with checkpointer:
            found = checkpointer.restore(
                folder, args=orbax.args.PyTreeRestore(item=stored, restore_args=as_numpy)
            )
    except Exception as error:  # tensorstore's errors have no class of their own.
        raise DamagedCheckpointError(
            f"{str(folder)!r} cannot be read ({_first_line(error)})."
        ) from error
    for path, expected in stored.items():
        array = found[path]
        if array.shape != expected.shape or array.dtype != expected.dtype:
            raise DamagedCheckpointError(
                f"leaf {path!r} in {str(folder)!r} reads as {array.dtype}{list(array.shape)}, "
                f"but {expected.dtype}{list(expected.shape)} was written."
            )
    return {**empty, **found}


def _orbax() -> tuple[Any, Any]:
    """Orbax, whose import takes over a second, and a checkpointer for this process alone."""
    orbax = importlib.import_module("orbax.checkpoint")
    alone = {}
    if jax.process_count() > 1:
        index = jax.process_index()
        alone["multiprocessing_options"] = orbax.options.MultiprocessingOptions(
            primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"wdjax{index}"
        )
    return orbax, orbax.Checkpointer(orbax.PyTreeCheckpointHandler(**alone), **alone)


def _read_facts(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / _FACTS
    try:
        facts = json.loads(path.read_bytes())
        seal = facts.pop("sha256")
        whole = seal == hashlib.sha256(_json_bytes(facts)).hexdigest()
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedCheckpointError(
            f"{str(path)!r} cannot be read ({_first_line(error)})."
        ) from error
    if not whole:
        raise DamagedCheckpointError(f"{str(path)!r} is not what was written (SHA-256).")
    if facts["format"] != FORMAT:
        raise ValueError(
            f"{str(path)!r} has format {facts['format']}, and this version of wdjax reads format "
            f"{FORMAT}; read it with wdjax {facts['versions'].get('wdjax')}."
        )
    return facts


def _share_from_first_process(read: Callable[[], Restored], like: PyTree) -> Restored:
    """What process 0 read, on every process; its refusal, too. Bytes: a sum would lose -0.0."""
    from jax.experimental import multihost_utils

    found, error, head = None, None, {}
    if _is_first_process():
        try:
            found = read()
            head = {"step": found.step, "facts": found.facts}
        except (CheckpointError, ValueError, FileNotFoundError) as refusal:
            error = refusal
            head = {"error": str(refusal), "kind": type(refusal).__name__}
    words = np.frombuffer(_json_bytes(head), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(words))))
    words = words if _is_first_process() else np.zeros(length, np.uint8)
    head = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(words)).tobytes())
    if "error" in head:
        kinds = {kind.__name__: kind for kind in (FileNotFoundError, ValueError)}
        raise error or kinds.get(head["kind"], DamagedCheckpointError)(head["error"])
    leaves = []
    for number, (_, leaf) in enumerate(_named_leaves(like)):
        about = _described(leaf)
        shape, dtype = tuple(about["shape"]), np.dtype(about["dtype"])
        array = np.zeros(shape, dtype)
        if found is not None:
            array = np.asarray(_data_of(jax.tree.leaves(found.state)[number]))
        sent = np.frombuffer(array.tobytes(), np.uint8)
        if sent.size:
            sent = np.asarray(multihost_utils.broadcast_one_to_all(sent))
        leaves.append(_as_leaf(np.frombuffer(sent.tobytes(), dtype).reshape(shape), leaf))
    state = jax.tree.unflatten(jax.tree.structure(like), leaves)
    return Restored(head["step"], state, head["facts"])


def _named_leaves(tree: PyTree) -> list[tuple[str, Any]]:
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/") or "state", leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _is_elsewhere(leaf: jax.Array) -> bool:
    return not leaf.is_fully_addressable


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _data_of(leaf: Any) -> Any:
    leaf = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    if isinstance(leaf, jax.Array):
        return leaf if leaf.is_fully_addressable else leaf.addressable_data(0)
    # A Python number has the dtype that JAX gives it.
    return np.asarray(leaf, jnp.result_type(leaf))


def _generator(leaf: Any) -> str | None:
    return str(jax.random.key_impl(leaf)) if _is_key(leaf) else None


def _described(leaf: Any) -> dict[str, Any]:
    if _is_key(leaf):
        data = jax.eval_shape(jax.random.key_data, leaf)
        about = {"dtype": str(data.dtype), "shape": list(data.shape)}
        return about | {"generator": _generator(leaf)}
    return {"dtype": str(jnp.result_type(leaf)), "shape": list(np.shape(leaf))}


def _in_words(about: Mapping[str, Any]) -> str:
    kind = f" ({about['generator']} key)" if about.get("generator") else ""
    return f"{about['dtype']}{list(about['shape'])}{kind}"


def _as_leaf(array: np.ndarray, like: Any) -> Any:
    if not _is_key(like):
        return array
    return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(like))


def _hash(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).view(np.uint8).data).hexdigest()


def _json_bytes(facts: Mapping[str, Any]) -> bytes:
    return json.dumps(facts, sort_keys=True, allow_nan=False).encode()


def _name(step: int) -> str:
    return f"step_{step:010d}"


def _steps_in(folder: pathlib.Path) -> list[int]:
    if not folder.is_dir():
        return []
    names = (re.fullmatch(r"step_(\d{10,})", entry.name) for entry in folder.iterdir())
    return sorted(int(name.group(1)) for name in names if name)


def _free_name(path: pathlib.Path) -> pathlib.Path:
    number, free = 1, path
    while free.exists():
        number, free = number + 1, path.with_name(f"{path.name}-{number}")
    return free


def _write_durably(path: pathlib.Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(path.parent)


def _sync_folder(folder: pathlib.Path) -> None:
    """Makes a rename survive a power cut; Windows has no such call and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _is_first_process() -> bool:
    return jax.process_index() == 0
