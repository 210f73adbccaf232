"""Data sets by name: shipped ones, `.npz` and `.csv` files, and sets of TFDS."""

import os
from collections.abc import Sequence
from typing import Any

from wdjax.checks import check_positive_int
from wdjax.data.dataset import Dataset, as_floats
from wdjax.data.encoding import known_of
from wdjax.data.named import find_source, load_test_table
from wdjax.data.split import split_off_test
from wdjax.loss_kinds import has_classes

_WHERE_OPTIONS_APPLY = {
    "target": "a table (.csv, .parquet), whose column it names",
    "drop": "a table (.csv, .parquet), whose columns it names",
    "weights": "a table (.csv, .parquet), whose column it names",
    "groups": "a table (.csv, .parquet), whose column it names",
    "test": "a table (.csv, .parquet), whose columns another one has",
    "data_dir": "a TFDS set (tfds:NAME), cifar10 or mnist",
    "download": "a TFDS set (tfds:NAME)",
    "length": "texts: stdlib, or a TFDS set of them",
}


def load_data(
    name_or_path: str | os.PathLike,
    *,
    target: str | None = None,
    drop: Sequence[str] | None = None,
    weights: str | None = None,
    groups: str | None = None,
    loss: str = "cross_entropy",
    data_dir: str | os.PathLike | None = None,
    download: bool = False,
    length: int | None = None,
    keep_bytes: bool = False,
) -> Dataset:
    """Loads a data set into host memory, checked.

    - `digits` (1,797 images, `[8, 8, 1]`, grey / 16), `breast_cancer`, `wine`, `iris` (tables)
      and `diabetes` (regression, raw units) ship with scikit-learn;
    - `stdlib`, the source of Python's standard library in windows of `length` bytes, each byte
      to be predicted from those before it, ships with Python;
    - `cifar10` and `mnist` are read from their own files in `data_dir`: see `read_published`;
    - `images:FOLDER` holds a folder a class of `.png` or `.jpg`: see `read_image_folder`;
    - `FILE.npz` holds arrays `inputs` and `targets` and nothing pickled, and may hold `weights`,
      how much each example counts (rows of weight 0 are left out, unread);
    - `FILE.csv` (with commas, semicolons or tabs; also `.csv.gz`) has a header, and `FILE.parquet`
      names its columns; the target is the last one, or the one named `target`. Columns may be of
      words, and numbers may be missing: `Dataset.columns` says which, and `encode` fills and widens
      them by each training part. `drop` names columns to leave out, `weights` one that says how
      much each row counts, `groups` one of what rows share that belong together;
    - `tfds:NAME`, such as `tfds:cifar10` or `tfds:mnist@train[:10%]`: see `open_tfds`, which
      also says what `data_dir`, `download` and `length` mean.

    Under `"cross_entropy"` targets are labels 0..C-1, or words, which become the labels of their
    sorted order; under `"squared_error"` they are numbers. Images of bytes are divided by 255,
    unless they are to `keep_bytes`: see `make_dataset`.

    Raises:
      ValueError: for an unknown name or column (with the nearest), an option that does not apply
        to the data, a `length` below 1, a file that is missing or cannot be read, or arrays that
        `make_dataset` refuses.
    """
    has_classes(loss)
    if length is not None:
        check_positive_int("length", length)
    if not isinstance(name_or_path, str | os.PathLike):
        raise ValueError(f"`name_or_path` must be a name or a path, got {name_or_path!r}.")
    name = os.fspath(name_or_path)
    source = find_source(name)
    given = {"target": target, "drop": drop, "weights": weights, "groups": groups}
    given |= {"data_dir": data_dir, "download": download, "length": length}
    for option, value in given.items():
        if value is not None and value is not False and option not in source.options:
            raise does_not_apply(option, value, name)
    dataset = source.load(name, loss=loss, **{option: given[option] for option in source.options})
    return dataset if keep_bytes else dataset._replace(inputs=as_floats(dataset.inputs))


def does_not_apply(option: str, value: Any, name: str) -> ValueError:
    """The refusal of an option of other data, with what it is for."""
    return ValueError(
        f"`{option}` = {value!r} does not apply to data {name!r}, only to "
        f"{_WHERE_OPTIONS_APPLY[option]}; leave it out."
    )


def load_choose_and_test(
    name_or_path: str | os.PathLike,
    *,
    target: str | None = None,
    drop: Sequence[str] | None = None,
    weights: str | None = None,
    groups: str | None = None,
    loss: str = "cross_entropy",
    data_dir: str | os.PathLike | None = None,
    download: bool = False,
    length: int | None = None,
    keep_bytes: bool = False,
    fraction: float = 0.2,
    seed: int = 0,
    stratify: bool = True,
    test: str | None = None,
) -> tuple[Dataset, Dataset]:
    """Loads the data to choose on, and the test data that nothing sees until the end.

    A set of TFDS, `cifar10`, `mnist` or `images:FOLDER`, named without a part and with a `train`
    and a `test` of its own, comes apart as its authors meant; everything else by
    `split_off_test`, which `fraction`, `seed` and `stratify` are for, unless `test` names a table
    of the same columns. The other options are those of `load_data`.

    Raises:
      ValueError: as `load_data` and `split_off_test` do.
    """
    name = os.fspath(name_or_path)

    def load(name: str) -> Dataset:
        return load_data(
            name,
            target=target,
            drop=drop,
            weights=weights,
            groups=groups,
            loss=loss,
            data_dir=data_dir,
            download=download,
            length=length,
            keep_bytes=keep_bytes,
        )

    dataset, test_name = load(name), find_source(name).test_name(name, data_dir)
    if test is not None:
        for table in (name, test):
            if not find_source(table).has_columns:
                raise does_not_apply("test", test, table)
        return dataset, load_test_table(test, dataset, loss=loss, weights=weights, groups=groups)
    if test_name is not None:
        return dataset, load(test_name)
    parts = split_off_test(dataset, fraction=fraction, seed=seed, stratify=stratify)
    return _knowing_nothing_of_test(*parts)


def _knowing_nothing_of_test(choose: Dataset, test: Dataset) -> tuple[Dataset, Dataset]:
    """A word that stands in the test part alone is unseen, as it will be where one predicts."""
    if choose.encoding is None:
        return choose, test
    columns, *inputs = known_of(choose.columns, choose.inputs, test.inputs)
    choose, test = (
        part._replace(inputs=own, columns=columns)
        for part, own in zip((choose, test), inputs, strict=True)
    )
    return choose, test
