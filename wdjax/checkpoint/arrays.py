"""The arrays of a checkpoint, in orbax' format."""

import contextlib
import gc
import logging
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from wdjax.checkpoint.manifest import DamagedCheckpointError, first_line
from wdjax.extras import need

LATEST_READ = 0.5
"""Seconds within which the reads beside a failed one have ended, too."""


def write_arrays(folder: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes `{path: array}` into a folder, which it makes."""
    orbax, checkpointer = _orbax()
    with checkpointer:
        checkpointer.save(folder, args=orbax.args.PyTreeSave(arrays))


def read_arrays(folder: pathlib.Path, leaves: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Reads what `write_arrays` wrote; of `leaves`, shapes and dtypes must be as said.

    Raises:
      DamagedCheckpointError: if the files cannot be read, or hold something else.
      MemoryError: if they do not fit.
    """
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
        with _one_error_is_enough(), checkpointer:
            found = checkpointer.restore(
                folder, args=orbax.args.PyTreeRestore(item=stored, restore_args=as_numpy)
            )
    except MemoryError:
        raise  # Which says nothing about the files.
    except Exception as error:  # tensorstore's errors have no class of their own.
        raise DamagedCheckpointError(
            f"{str(folder)!r} cannot be read ({first_line(error)})."
        ) from error
    for path, expected in stored.items():
        array = found[path]
        if array.shape != expected.shape or array.dtype != expected.dtype:
            raise DamagedCheckpointError(
                f"leaf {path!r} in {str(folder)!r} reads as {array.dtype}{list(array.shape)}, "
                f"but {expected.dtype}{list(expected.shape)} was written."
            )
    return {**empty, **found}


@contextlib.contextmanager
def _one_error_is_enough() -> Iterator[None]:
    """Keeps silent the reads that orbax does not wait for once one of them has failed.

    Each finds the event loop of the restore closed, and Python prints a traceback of it from a
    thread of tensorstore's, through one of these hooks. The failed read itself is raised.
    """
    hooks = sys.excepthook, sys.unraisablehook

    def of_exception(kind: Any, error: Any, trace: Any) -> None:
        if not _found_the_loop_closed(error):
            hooks[0](kind, error, trace)

    def of_unraisable(unraisable: Any) -> None:
        if not _found_the_loop_closed(unraisable.exc_value):
            hooks[1](unraisable)

    sys.excepthook, sys.unraisablehook = of_exception, of_unraisable
    # Of reads that failed in time, asyncio logs that nobody asked for their error.
    log = logging.getLogger("asyncio")
    was_disabled, log.disabled = log.disabled, True
    try:
        yield
    except Exception:
        time.sleep(LATEST_READ)
        gc.collect()
        raise
    finally:
        sys.excepthook, sys.unraisablehook = hooks
        log.disabled = was_disabled


def _found_the_loop_closed(error: Any) -> bool:
    return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"


def _orbax() -> tuple[Any, Any]:
    """Orbax, whose import takes over a second, and a checkpointer for this process alone."""
    orbax: Any = need("orbax.checkpoint", what="a checkpoint")
    alone = {}
    if jax.process_count() > 1:
        index = jax.process_index()
        alone["multiprocessing_options"] = orbax.options.MultiprocessingOptions(
            primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"wdjax{index}"
        )
    return orbax, orbax.Checkpointer(orbax.PyTreeCheckpointHandler(**alone), **alone)
