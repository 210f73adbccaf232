"""Data sets by name: shipped ones, `.npz` and `.csv` files, and sets of TFDS."""

import os
from pathlib import Path

import numpy as np

from wdjax.checks import check_one_of, nearest
from wdjax.data.dataset import LOSSES, Dataset, make_dataset
from wdjax.data.files import read_csv, read_npz
from wdjax.data.shipped import CLASS_SETS, NUMBER_SETS, read_shipped
from wdjax.data.split import split_off_test
from wdjax.data.text import (
    DEFAULT_LENGTH,
    NUM_TOKENS,
    next_byte_windows,
    standard_library_source,
)
from wdjax.data.tfds import TfdsSource, open_tfds, read_tfds, split_sizes

_WHERE_OPTIONS_APPLY = {
    "target": "a .csv file, whose column it names",
    "data_dir": "a TFDS set (tfds:NAME)",
    "download": "a TFDS set (tfds:NAME)",
    "length": "texts: stdlib, or a TFDS set of them",
}


def load_data(
    name_or_path: str | os.PathLike,
    *,
    target: str | None = None,
    loss: str = "cross_entropy",
    data_dir: str | os.PathLike | None = None,
    download: bool = False,
    length: int | None = None,
) -> Dataset:
    """Loads a data set into host memory, checked.

    - `digits` (1,797 images, `[8, 8, 1]`, grey / 16), `breast_cancer`, `wine`, `iris` (tables)
      and `diabetes` (regression, raw units) ship with scikit-learn;
    - `stdlib`, the source of Python's standard library in windows of `length` bytes, each byte
      to be predicted from those before it, ships with Python;
    - `FILE.npz` holds arrays `inputs` and `targets` and nothing pickled, and may hold `weights`,
      how much each example counts (rows of weight 0 are left out, unread);
    - `FILE.csv` has a header; the target is its last column, or the one named `target`;
    - `tfds:NAME`, such as `tfds:cifar10` or `tfds:mnist@train[:10%]`: see `open_tfds`, which
      also says what `data_dir`, `download` and `length` mean.

    Under `"cross_entropy"` targets are labels 0..C-1, or words, which become the labels of their
    sorted order; under `"squared_error"` they are numbers.

    Raises:
      ValueError: for an unknown name or column (with the nearest), an option that does not apply
        to the data, a file that is missing or cannot be read, or arrays that `make_dataset`
        refuses.
    """
    check_one_of("loss", loss, LOSSES)
    name, suffix = os.fspath(name_or_path), Path(name_or_path).suffix.lower()
    is_tfds = name.startswith("tfds:")
    given = {"target": target, "data_dir": data_dir, "download": download, "length": length}
    applies = {
        "target": suffix == ".csv",
        "data_dir": is_tfds,
        "download": is_tfds,
        "length": is_tfds or name == "stdlib",
    }
    for option, value in given.items():
        if value not in (None, False) and not applies[option]:
            raise ValueError(
                f"`{option}` = {value!r} does not apply to data {name!r}, only to "
                f"{_WHERE_OPTIONS_APPLY[option]}; leave it out."
            )
    if is_tfds:
        source = open_tfds(
            name.removeprefix("tfds:"), data_dir=data_dir, download=download, length=length
        )
        return load_source(source, loss=loss)
    if suffix == ".npz":
        inputs, targets, weights = read_npz(Path(name))
        return make_dataset(inputs, targets, loss=loss, name=Path(name).stem, weights=weights)
    if suffix == ".csv":
        read = read_csv(Path(name), target, loss)
        dataset = make_dataset(
            read.inputs, read.targets, loss=loss, name=Path(name).stem, kind="table"
        )
        return dataset._replace(column_names=read.names, target_name=read.target)
    if name == "stdlib":
        return _load_stdlib(loss, length)
    if name in CLASS_SETS + NUMBER_SETS:
        return _load_shipped(name, loss)
    known = (*CLASS_SETS, *NUMBER_SETS, "stdlib")
    raise ValueError(
        f"data {name!r} is neither a data set known here ({', '.join(known)}), nor a path that "
        f"ends in .npz or .csv, nor a name such as tfds:mnist.{nearest(name, known)}"
    )


def load_choose_and_test(
    name_or_path: str | os.PathLike,
    *,
    target: str | None = None,
    loss: str = "cross_entropy",
    data_dir: str | os.PathLike | None = None,
    download: bool = False,
    length: int | None = None,
    fraction: float = 0.2,
    seed: int = 0,
    stratify: bool = True,
) -> tuple[Dataset, Dataset]:
    """Loads the data to choose on, and the test data that nothing sees until the end.

    A TFDS set that is named without a split and has `train` and `test` comes apart as its
    authors meant; everything else by `split_off_test`, which `fraction`, `seed` and `stratify`
    are for. The other options are those of `load_data`.

    Raises:
      ValueError: as `load_data` and `split_off_test` do.
    """
    name = os.fspath(name_or_path)

    def load(name: str) -> Dataset:
        return load_data(
            name, target=target, loss=loss, data_dir=data_dir, download=download, length=length
        )

    dataset = load(name)
    if name.startswith("tfds:") and "@" not in name:
        if "test" in split_sizes(name.removeprefix("tfds:"), data_dir=data_dir):
            return dataset, load(f"{name}@test")
    return split_off_test(dataset, fraction=fraction, seed=seed, stratify=stratify)


def load_source(source: TfdsSource, *, loss: str = "cross_entropy") -> Dataset:
    """All of an opened TFDS split in memory, with the classes its description counts.

    Raises:
      ValueError: as `make_dataset`; for numbers to predict under `"cross_entropy"`.
    """
    check_predictable(source, loss)
    inputs, targets = read_tfds(source)
    return dataset_of(source, inputs, targets, loss)


def check_predictable(source: TfdsSource, loss: str) -> None:
    """Checks that the loss fits the target.

    Raises:
      ValueError: for numbers to predict under `"cross_entropy"`.
    """
    if loss == "cross_entropy" and source.num_classes is None:
        raise ValueError(
            f"`loss` = {loss} needs classes, and {source.keys[1]!r} of 'tfds:{source.name}' is a "
            "number; use squared_error."
        )


def dataset_of(source: TfdsSource, inputs: np.ndarray, targets: np.ndarray, loss: str) -> Dataset:
    """Arrays read from a split, with the meaning that its description gives them."""
    return make_dataset(
        inputs,
        targets,
        loss=loss,
        name=f"tfds:{source.name}",
        kind=source.kind,
        num_outputs=source.num_classes,
        class_names=source.class_names,
    )


def _load_shipped(name: str, loss: str) -> Dataset:
    wanted = "squared_error" if name in NUMBER_SETS else "cross_entropy"
    if loss != wanted:
        what = "numbers" if name in NUMBER_SETS else "classes"
        raise ValueError(
            f"`loss` = {loss} does not fit the data set {name!r}, whose targets are {what}; "
            f"use {wanted}."
        )
    inputs, targets, names = read_shipped(name)
    if name == "digits":
        inputs = inputs[..., None] / 16
    return make_dataset(inputs, targets, loss=loss, name=name, class_names=names)


def _load_stdlib(loss: str, length: int | None) -> Dataset:
    if loss != "cross_entropy":
        raise ValueError(
            f"`loss` = {loss} does not fit the data set 'stdlib', whose targets are bytes; use "
            "cross_entropy."
        )
    texts = standard_library_source()
    length = DEFAULT_LENGTH if length is None else length
    inputs, targets, weights = next_byte_windows(texts, length)
    return Dataset("stdlib", inputs, targets, "text", NUM_TOKENS, (), weights)
