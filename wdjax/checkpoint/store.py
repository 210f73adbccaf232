"""A folder of checkpoints: whole ones or none, the newest and the best kept."""

import math
import os
import pathlib
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from wdjax.checkpoint.arrays import read_arrays, write_arrays
from wdjax.checkpoint.leaves import (
    Leaf,
    as_leaf,
    check_same_leaves,
    described,
    hash_of_array,
    host_leaves,
    named_leaves,
)
from wdjax.checkpoint.manifest import (
    FACTS,
    FORMAT,
    CheckpointError,
    DamagedCheckpointError,
    Restored,
    first_line,
    folder_name,
    free_name,
    read_facts,
    steps_in,
    versions,
)
from wdjax.checkpoint.sharing import is_first_process, share_from_first_process
from wdjax.checks import check_one_of, check_path, check_positive_int
from wdjax.extras import check_installed
from wdjax.writing import json_bytes, sealed, sync_folder, write_whole

_ARRAYS = "arrays"
_PARTIAL, _REPLACED, _DAMAGED = ".partial-", ".replaced-", "damaged-"


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

    Raises:
      ImportError: if orbax is not installed: `pip install "wdjax[cli]"`.
      ValueError: for a `keep_last` below 1, or an `on_error` that is neither of the two.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        keep_last: int = 2,
        keep_best: bool = True,
        on_error: str = "stop",
    ):
        check_installed("orbax", what="a checkpoint")
        check_positive_int("keep_last", keep_last)
        check_one_of("on_error", on_error, ("stop", "continue"))
        self.folder = pathlib.Path(check_path("folder", folder)).absolute()
        self._keep_last, self._keep_best, self._on_error = keep_last, keep_best, on_error
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="wdjax-checkpoint")
        self._pending: Future | None = None
        self._scores: dict[int, float] = {}
        if is_first_process():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._clear_left()
            self._scores = {step: self._read_score(step) for step in self.steps()}

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending."""
        return steps_in(self.folder)

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
        if not is_first_process():
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
        json_bytes(facts)
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
        """Waits for the save under way and ends the writing thread.

        Raises:
          CheckpointError: if that save failed, under `on_error="stop"`; the thread ends first.
        """
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
        return share_from_first_process(lambda: self._restore(like, step), like)

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
                self._set_aside(candidate, f"{error}", "the one before it is taken")
        raise DamagedCheckpointError(
            f"no checkpoint in {str(self.folder)!r} is whole: {'; '.join(damage)}. Start anew in "
            "another folder."
        )

    def is_whole(self, step: int, like: PyTree) -> bool:
        """Whether a step's checkpoint is there and whole; a damaged one is set aside, loudly.

        Raises:
          ValueError: if it is of another model or optimiser, by the leaf that differs.
        """
        try:
            self.restore(like, step=step)
        except FileNotFoundError:
            return False
        except DamagedCheckpointError as error:
            if is_first_process():
                self._set_aside(step, f"{error}", "it cannot be gone back to")
            return False
        return True

    def _set_aside(self, step: int, why: str, then: str) -> None:
        aside = free_name(self.folder / f"{_DAMAGED}{step}")
        (self.folder / folder_name(step)).rename(aside)
        self._scores.pop(step, None)
        warnings.warn(
            f"THE CHECKPOINT OF STEP {step} IS DAMAGED: {why} It was set aside as "
            f"{aside.name!r}; {then}.",
            RuntimeWarning,
            stacklevel=4,
        )

    def _write(self, step: int, leaves: dict[str, "Leaf"], facts: dict[str, Any]) -> None:
        """In the writing thread. What fails leaves the folder as it was."""
        partial = self.folder / f"{_PARTIAL}{folder_name(step)}"
        try:
            _discard(partial)
            partial.mkdir(parents=True)
            arrays = {path: leaf.array for path, leaf in leaves.items() if leaf.array.size}
            if arrays:
                write_arrays(partial / _ARRAYS, arrays)
            facts = facts | {"leaves": {path: leaf.describe() for path, leaf in leaves.items()}}
            write_whole(partial / FACTS, json_bytes(sealed(facts)))
            final = self.folder / folder_name(step)
            replaced = self.folder / f"{_REPLACED}{folder_name(step)}"
            if os.path.lexists(final):
                _discard(replaced)
                final.rename(replaced)
            partial.rename(final)
            sync_folder(self.folder)
            _discard(replaced)
        except Exception as error:  # tensorstore's errors have no class of their own.
            _discard(partial)
            self._put_back()
            newest = max(self.steps(), default=None)
            kept = "there is none before it" if newest is None else f"that of step {newest} stays"
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written to {str(self.folder)!r} "
                f"({first_line(error)}); {kept}."
            ) from error
        self._scores[step] = math.nan if facts["score"] is None else facts["score"]
        keep = {*self.steps()[-self._keep_last :], self.best_step() if self._keep_best else None}
        for old in set(self.steps()) - keep:
            self._remove(old)

    def _remove(self, step: int) -> None:
        """Renamed first: a kill in between must not leave half a checkpoint under its name."""
        doomed = self.folder / f"{_PARTIAL}old-{folder_name(step)}"
        _discard(doomed)
        (self.folder / folder_name(step)).rename(doomed)
        _discard(doomed)
        self._scores.pop(step, None)

    def _clear_left(self) -> None:
        """Takes away what a killed run left half written, or half replaced."""
        self._put_back()
        for left in [*self.folder.glob(f"{_PARTIAL}*"), *self.folder.glob(f"{_REPLACED}*")]:
            _discard(left)

    def _put_back(self) -> None:
        """A checkpoint that was to be replaced, where what should replace it never came."""
        for replaced in self.folder.glob(f"{_REPLACED}*"):
            final = self.folder / replaced.name.removeprefix(_REPLACED)
            if not os.path.lexists(final):
                replaced.rename(final)

    def _read_score(self, step: int) -> float:
        try:
            score = read_facts(self.folder, step)["score"]
        except DamagedCheckpointError:  # Never the best; `restore` is who says what is wrong.
            return math.nan
        return math.nan if score is None else score

    def _read(self, step: int, like: PyTree) -> Restored:
        """In the writing thread, which has no event loop that orbax's own could meet."""
        facts = read_facts(self.folder, step)
        wanted = {path: described(leaf) for path, leaf in named_leaves(like)}
        check_same_leaves(facts["leaves"], wanted, f"the checkpoint of step {step}")
        found = _checked_arrays(self.folder, step, facts["leaves"])
        leaves = [as_leaf(found[path], leaf) for path, leaf in named_leaves(like)]
        state = jax.tree.unflatten(jax.tree.structure(like), leaves)
        return Restored(step, state, {k: v for k, v in facts.items() if k != "leaves"})


def read_leaves(folder: str | os.PathLike[str], *, step: int | None = None) -> dict[str, Any]:
    """`{path: array}` of a saved state, without its program; of a typed key its data.

    Nothing in the folder is touched, and no other checkpoint is taken where one is damaged.

    Args:
      folder: as `Checkpoints` wrote it.
      step: the newest by default.

    Raises:
      ImportError: if orbax is not installed.
      FileNotFoundError: if there is none, or not the one asked for.
      DamagedCheckpointError: if it is not what was written.
      ValueError: if it was written in a later format.
    """
    root = pathlib.Path(check_path("folder", folder)).absolute()
    steps = steps_in(root)
    if not steps or (step is not None and step not in steps):
        of = "" if step is None else f" of step {step}"
        raise FileNotFoundError(f"{str(root)!r} holds no checkpoint{of}; it has {steps}.")
    chosen = steps[-1] if step is None else step
    # In a thread, which has no event loop that orbax's own could meet.
    leaves = read_facts(root, chosen)["leaves"]
    with ThreadPoolExecutor(1) as reader:
        return reader.submit(_checked_arrays, root, chosen, leaves).result()


def _checked_arrays(
    root: pathlib.Path, step: int, leaves: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint, each of the SHA-256 that was written."""
    arrays = root / folder_name(step) / _ARRAYS
    found = read_arrays(arrays, leaves)
    for path, saved in leaves.items():
        if hash_of_array(found[path]) != saved["sha256"]:
            raise DamagedCheckpointError(
                f"the bytes of leaf {path!r} in {str(arrays)!r} are not those that were written "
                "(SHA-256)."
            )
    return found


def _discard(path: pathlib.Path) -> None:
    """Of a link the link, never what it leads to."""
    if path.is_symlink():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)
