"""Data by name: a record for each set that is known here, each form of name, each kind of file."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from wdjax.checks import check_one_of, nearest
from wdjax.data.dataset import Dataset, make_dataset
from wdjax.data.files import Columns, read_columns, read_npz, read_test
from wdjax.data.image_folders import PARTS, has_parts, read_image_folder
from wdjax.data.published import FORMS, read_published
from wdjax.data.shipped import CLASS_SETS, NUMBER_SETS, read_shipped
from wdjax.data.spoken import WORDS, read_spoken
from wdjax.data.table_files import TABLE_ENDINGS, ending_of
from wdjax.data.text import (
    DEFAULT_LENGTH,
    NUM_TOKENS,
    next_byte_windows,
    standard_library_source,
)
from wdjax.data.tfds import TfdsSource, open_tfds, read_tfds, split_sizes
from wdjax.loss_kinds import LOSS_KINDS, has_classes


@dataclasses.dataclass(frozen=True)
class DataSource:
    """Data that can be named.

    Args:
      load: `(name, *, loss, **options) -> Dataset`, all of it in memory, checked.
      loss: the name of the loss that its targets are for, unless another is asked for.
      options: which of the options of `load_data` it takes: target, data_dir, download, length.
      test_name: `(name, data_dir) -> name` of a test part of its own; None where there is none.
      on_disk: whether a streamed run leaves it there, as it can a TFDS set.
      has_columns: whether it is a file whose columns can be read by name, without the target.
      has_arrays: whether it is a file whose array `inputs` can be read alone.

    Raises:
      ValueError: if the loss is not known.
    """

    load: Callable[..., Dataset]
    loss: str = "cross_entropy"
    options: tuple[str, ...] = ()
    test_name: Callable[[str, Any], str | None] = lambda name, data_dir: None
    on_disk: bool = False
    has_columns: bool = False
    has_arrays: bool = False

    def __post_init__(self):
        check_one_of("loss", self.loss, LOSS_KINDS)


def find_source(name: str) -> DataSource:
    """The record of data so named: by its whole name, the word before `:`, or a file's ending.

    Raises:
      ValueError: if there is none, with the nearest name.
    """
    word, colon, _ = name.partition(":")
    forms = (word + colon, ending_of(Path(name)), name)
    for key in forms:
        if key in DATA_SOURCES:
            return DATA_SOURCES[key]
    known = [key for key in DATA_SOURCES if key.isidentifier()]
    raise ValueError(
        f"data {name!r} is neither a data set known here ({', '.join(known)}), nor a path that "
        "ends in .npz, .csv, .csv.gz or .parquet, nor a name such as tfds:mnist or images:FOLDER."
        f"{nearest(name, known)}"
    )


def load_source(source: TfdsSource, *, loss: str = "cross_entropy") -> Dataset:
    """All of an opened TFDS split in memory, with the classes its description counts.

    Raises:
      ValueError: as `make_dataset`; for numbers to predict under a loss of classes.
    """
    check_predictable(source, loss)
    inputs, targets = read_tfds(source)
    return dataset_of(source, inputs, targets, loss)


def check_predictable(source: TfdsSource, loss: str) -> None:
    """Checks that the loss fits the target.

    Raises:
      ValueError: for numbers to predict under a loss of classes.
    """
    if has_classes(loss) and source.num_classes is None:
        raise ValueError(
            f"`loss` = {loss} needs classes, and {source.keys[1]!r} of 'tfds:{source.name}' is a "
            "number; use squared_error."
        )


def dataset_of(source: TfdsSource, inputs: np.ndarray, targets: np.ndarray, loss: str) -> Dataset:
    """Arrays read from a split, with the meaning that its description gives them; bytes stay."""
    return make_dataset(
        inputs,
        targets,
        loss=loss,
        name=f"tfds:{source.name}",
        kind=source.kind,
        num_outputs=source.num_classes,
        class_names=source.class_names,
        keep_bytes=True,
    )


def _load_tfds(name: str, *, loss: str, **options: Any) -> Dataset:
    return load_source(open_tfds(name.removeprefix("tfds:"), **options), loss=loss)


def _test_of_tfds(name: str, data_dir: Any) -> str | None:
    """A set with `train` and `test` comes apart as its authors meant, unless a split is named."""
    has_test = "@" not in name and "test" in split_sizes(
        name.removeprefix("tfds:"), data_dir=data_dir
    )
    return f"{name}@test" if has_test else None


def _load_npz(name: str, *, loss: str) -> Dataset:
    inputs, targets, weights = read_npz(Path(name))
    return make_dataset(
        inputs, targets, loss=loss, name=Path(name).stem, weights=weights, keep_bytes=True
    )


def _load_table(
    name: str, *, loss: str, target: str | None = None, drop: Any = None, **rows: Any
) -> Dataset:
    read = read_columns(Path(name), target, loss, drop=drop or (), **rows)
    return _of_columns(read, name, loss)


def load_test_table(name: str, like: Dataset, *, loss: str, **rows: Any) -> Dataset:
    """The table that judges: of the columns, words and classes of another.

    Raises:
      ValueError: as `read_test` and `make_dataset`; for a label that the other table lacks, or a
        group that it has.
    """
    assert like.target_name is not None
    read = read_test(Path(name), like.columns, like.target_name, loss, **rows)
    if like.class_names:
        labels = {word: label for label, word in enumerate(like.class_names)}
        unknown = sorted(set(read.targets.astype(str).tolist()) - labels.keys())
        if unknown:
            raise ValueError(
                f"`test` {name!r} holds the label {unknown[0]!r}, which {like.name!r} does not."
            )
        codes = np.array([labels[str(word)] for word in read.targets.tolist()], np.int32)
        read = read._replace(targets=codes)
    if like.groups is not None and read.groups is not None:
        both = np.intersect1d(like.groups, read.groups)
        if len(both):
            raise ValueError(
                f"`groups`: {str(both[0])!r} is a group of {like.name!r} and of the test table; "
                "what is judged on must be of others."
            )
    classes = like.num_outputs if has_classes(loss) else None
    return _of_columns(read, name, loss, classes)._replace(class_names=like.class_names)


def _of_columns(read: Columns, name: str, loss: str, num_outputs: int | None = None) -> Dataset:
    dataset = make_dataset(
        read.inputs,
        read.targets,
        loss=loss,
        name=Path(name).name.partition(".")[0],
        kind="table",
        num_outputs=num_outputs,
        weights=read.weights,
    )
    groups = read.groups
    if groups is not None and read.weights is not None:
        groups = groups[read.weights > 0]  # As `make_dataset` leaves the others out.
    return dataset._replace(columns=read.columns, target_name=read.target, groups=groups)


def _load_shipped(name: str, *, loss: str) -> Dataset:
    _check_fits(name, loss, "numbers" if name in NUMBER_SETS else "classes")
    inputs, targets, names = read_shipped(name)
    return make_dataset(inputs, targets, loss=loss, name=name, class_names=names)


def _load_digits(name: str, *, loss: str) -> Dataset:
    _check_fits(name, loss, "classes")
    inputs, targets, names = read_shipped(name)
    return make_dataset(inputs[..., None] / 16, targets, loss=loss, name=name, class_names=names)


def _load_spoken(name: str, *, loss: str) -> Dataset:
    _check_fits(name, loss, "classes")
    base, _, part = name.partition("@")
    frames, labels = read_spoken(part or PARTS[0])
    dataset = make_dataset(frames, labels, loss=loss, name=base, kind="image", class_names=WORDS)
    return dataset._replace(about="Said by espeak-ng, so synthetic; the test voices are others.")


def _load_stdlib(name: str, *, loss: str, length: int | None = None) -> Dataset:
    _check_fits(name, loss, "bytes")
    length = DEFAULT_LENGTH if length is None else length
    inputs, targets, weights = next_byte_windows(standard_library_source(), length)
    return Dataset(name, inputs, targets, "text", NUM_TOKENS, (), weights)


def _load_published(name: str, *, loss: str, data_dir: Any = None) -> Dataset:
    """The part behind the `@`, the training part where there is none."""
    _check_fits(name, loss, "classes")
    base, _, part = name.partition("@")
    read = read_published(base, part or PARTS[0], data_dir)
    dataset = make_dataset(
        read.images,
        read.labels,
        loss=loss,
        name=base,
        num_outputs=len(read.class_names),
        class_names=read.class_names,
        keep_bytes=True,
    )
    return dataset._replace(about=f"Read from {str(read.folder)!r}.")


def _test_part(name: str, data_dir: Any) -> str | None:
    return None if "@" in name else f"{name}@{PARTS[1]}"


def _load_images(name: str, *, loss: str) -> Dataset:
    """`images:FOLDER`; of one with parts its training part, or that behind the `@`."""
    _check_fits("images:", loss, "classes")
    folder, part = _image_folder(name)
    read = read_image_folder(folder, part)
    dataset = make_dataset(
        read.images,
        read.labels,
        loss=loss,
        name=folder.resolve().name,
        num_outputs=len(read.class_names),
        class_names=read.class_names,
        keep_bytes=True,
    )
    return dataset._replace(about=read.about)


def _image_folder(name: str) -> tuple[Path, str | None]:
    folder = Path(name.removeprefix("images:"))
    base, _, part = str(folder).rpartition("@")
    if part in PARTS and not folder.exists() and has_parts(Path(base)):
        return Path(base), part
    return folder, PARTS[0] if has_parts(folder) else None


def _test_of_images(name: str, data_dir: Any) -> str | None:
    folder, part = _image_folder(name)
    has_test = part is not None and has_parts(folder) and folder == Path(name[len("images:") :])
    return f"{name}@{PARTS[1]}" if has_test else None


def _check_fits(name: str, loss: str, targets: str) -> None:
    wanted = DATA_SOURCES[name].loss
    if has_classes(loss) != has_classes(wanted):
        raise ValueError(
            f"`loss` = {loss} does not fit the data set {name!r}, whose targets are {targets}; "
            f"use {wanted}."
        )


TABLE_OPTIONS = "target", "drop", "weights", "groups"
"""What the columns of a table are for."""

DATA_SOURCES: dict[str, DataSource] = {
    "digits": DataSource(_load_digits),
    **{name: DataSource(_load_shipped) for name in CLASS_SETS if name != "digits"},
    **{name: DataSource(_load_shipped, "squared_error") for name in NUMBER_SETS},
    "stdlib": DataSource(_load_stdlib, options=("length",)),
    **{
        name + part: DataSource(_load_published, options=("data_dir",), test_name=_test_part)
        for name in FORMS
        for part in ("", *(f"@{part}" for part in PARTS))
    },
    **{
        f"spoken{part}": DataSource(_load_spoken, test_name=_test_part)
        for part in ("", *(f"@{part}" for part in PARTS))
    },
    "images:": DataSource(_load_images, test_name=_test_of_images),
    "tfds:": DataSource(
        _load_tfds,
        options=("data_dir", "download", "length"),
        test_name=_test_of_tfds,
        on_disk=True,
    ),
    ".npz": DataSource(_load_npz, has_arrays=True),
    **{
        ending: DataSource(_load_table, options=TABLE_OPTIONS, has_columns=True)
        for ending in TABLE_ENDINGS
    },
}
"""By a set's name, by the word before a `:`, or by a file's ending."""
