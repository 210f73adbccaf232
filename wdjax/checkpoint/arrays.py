"""The arrays of a checkpoint, in orbax' format."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from wdjax.checkpoint.manifest import DamagedCheckpointError, first_line
from wdjax.extras import need


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
        with checkpointer:
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
