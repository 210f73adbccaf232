"""The arrays of a file or folder of this project, by path, for `load_pretrained`."""

import os
import pathlib

import numpy as np

from wdjax.checkpoint import read_leaves
from wdjax.checkpoint.manifest import steps_in
from wdjax.checks import check_path
from wdjax.data.archive import read_arrays
from wdjax.data.named import DATA_SOURCES
from wdjax.jobs.results import RESULTS, opened_results, read_params


def read_pretrained(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """`{path: array}` of a trained model or a saved state: what `wdjax.load_pretrained` takes.

    Checked against the SHA-256 that was written with it; nothing in it is run. Of any other
    format the library that reads it gives a tree: `safetensors.numpy.load_file`, orbax, flax.

    Args:
      path: a run's folder (its `params.npz`: the params by their paths, the model's state under
        `model_state/`), a folder of `Checkpoints` (the newest: the params of a `TrainState` are
        under `params/`), or an `.npz` file.

    Raises:
      ValueError: if it is none of the three, or as `read_arrays` of the file.
      DamagedFileError: if it is not what was written.
      ImportError: for a folder of checkpoints, if orbax is not installed.
    """
    where = pathlib.Path(check_path("path", path))
    if steps_in(where):
        return read_leaves(where)
    if (where / RESULTS).is_file():
        with opened_results(where) as results:
            return read_params(where, results)
    kind = DATA_SOURCES.get(where.suffix)
    if where.is_dir() or kind is None or not kind.has_arrays:
        raise ValueError(
            f"`path` must be a run's folder, a folder of checkpoints or an .npz file, got "
            f"{str(where)!r}. Read another format by its own library, such as "
            "`safetensors.numpy.load_file(path)`, and give its tree to `load_pretrained`."
        )
    return read_arrays(where, what="`path`: the file of params")
