"""The data sets that ship with scikit-learn, read from its files: importing it takes a second."""

import gzip
import importlib.util
import io
from pathlib import Path

import numpy as np

from wdjax.extras import need

CLASS_SETS = ("digits", "breast_cancer", "wine", "iris")
NUMBER_SETS = ("diabetes",)

_FILES = {
    "digits": "digits.csv.gz",
    "breast_cancer": "breast_cancer.csv",
    "wine": "wine_data.csv",
    "iris": "iris.csv",
    "diabetes": "diabetes_data_raw.csv.gz",
}
_DIABETES_TARGETS = "diabetes_target.csv.gz"


def read_shipped(name: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """`(inputs, targets, class names)` of one of `CLASS_SETS` or `NUMBER_SETS`, as shipped.

    Equal to what scikit-learn's own loaders give, which are asked where its files have moved.

    Raises:
      ImportError: if scikit-learn is not installed: `pip install "wdjax[cli]"`.
    """
    found = _read_files(name)
    return _ask_scikit_learn(name) if found is None else found


def _read_files(name: str) -> tuple[np.ndarray, np.ndarray, list[str]] | None:
    """From the installed files; None if one is not where it was."""
    found = importlib.util.find_spec("sklearn")  # Does not import it.
    folders = (found and found.submodule_search_locations) or ()
    for folder in (Path(folder) / "datasets" / "data" for folder in folders):
        path, beside = folder / _FILES[name], folder / _DIABETES_TARGETS
        if not path.is_file() or (name == "diabetes" and not beside.is_file()):
            continue
        if name == "diabetes":
            return _numbers(path, " "), _numbers(beside, " "), []
        if name == "digits":
            rows = _numbers(path, ",")
            return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(int), [*map(str, range(10))]
        # The first line: the numbers of rows and columns, then the names of the classes.
        first, _, rest = path.read_text(encoding="utf-8").partition("\n")
        rows = np.loadtxt(io.StringIO(rest), delimiter=",")
        return rows[:, :-1], rows[:, -1].astype(int), first.strip().split(",")[2:]
    return None


def _numbers(path: Path, delimiter: str) -> np.ndarray:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return np.loadtxt(lines, delimiter=delimiter)


def _ask_scikit_learn(name: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    datasets = need("sklearn.datasets", what=f"the data set {name!r}")
    bunch = getattr(datasets, f"load_{name}")(**({"scaled": False} if name == "diabetes" else {}))
    names = [] if name in NUMBER_SETS else [str(n) for n in bunch.target_names]
    return bunch.images if name == "digits" else bunch.data, bunch.target, names
