"""Reading `.npz`, `.csv` and `.parquet` files: arrays out, nothing executed, refusals in words."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from wdjax.checks import nearest
from wdjax.data.archive import read_arrays
from wdjax.data.cells import input_column, label_column, number_column, word_column
from wdjax.data.encoding import Encoding, InputColumn, encode_columns
from wdjax.data.table_files import RawTable, read_table
from wdjax.data.texts import column_name, named, quoted, twice
from wdjax.loss_kinds import has_classes


class Columns(NamedTuple):
    """What a table holds."""

    inputs: np.ndarray
    """`[row, column]`, float32: numbers, and what stands for holes and words."""
    targets: np.ndarray
    """`[row]`: numbers, integers or words."""
    columns: tuple[InputColumn, ...]
    """Of the inputs."""
    target: str
    """The name of the target's column."""


class Found(NamedTuple):
    """The input columns that a model wants, as a table gave them."""

    inputs: np.ndarray
    """`[row, column]`, float32, in the model's order."""
    others: tuple[str, ...]
    """The columns that were passed over, the target's left out."""
    has_header: bool
    unseen: dict[str, np.ndarray]
    """By column, the words that training did not see, one a cell."""


def read_npz(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The arrays `inputs`, `targets` and, if there, `weights` of a file that `np.savez` wrote.

    Raises:
      ValueError: as `read_arrays`.
    """
    arrays = read_arrays(path, ("inputs", "targets"), ("weights",))
    return arrays["inputs"], arrays["targets"], arrays.get("weights")


def read_columns(path: Path, target: str | None, loss: str) -> Columns:
    """The input columns and the target column of a table with a header, with their names.

    The target is the last column, or the one named `target`: numbers under `"squared_error"`,
    integers or words under `"cross_entropy"`. An input column is of numbers, some of which may be
    missing, or of words.

    Raises:
      ValueError: as `read_table`; if the target is missing, a name stands there twice, there is
        one column alone, or a cell does not fit its column; the message names file, column, line.
    """
    table = read_table(path, needs_header=True)
    target = None if target is None else column_name(target)
    _check_header(table, target)
    place = table.names.index(target) if target is not None else len(table.names) - 1
    others = [i for i in range(len(table.names)) if i != place]
    found, values = [], []
    for i in others:
        values.append(input_column(table, i))
        found.append(_described(table.names[i], values[-1]))
        values[-1], table.columns[i] = _narrow(values[-1]), None
    targets = label_column(table, place, loss) if has_classes(loss) else number_column(table, place)
    inputs, _ = encode_columns(found, values)
    return Columns(inputs, targets, tuple(found), table.names[place])


def _described(name: str, values: np.ndarray) -> InputColumn:
    if values.dtype.kind == "U":
        return InputColumn(name, tuple(np.unique(values).tolist()))
    return InputColumn(name, None, bool(np.isnan(values).any()))


def _narrow(values: np.ndarray) -> np.ndarray:
    """Numbers as a run has them: of a million rows the columns lie there side by side."""
    return values if values.dtype.kind == "U" else values.astype(np.float32)


def read_inputs(
    path: Path, columns: Sequence[InputColumn], number: int, target: str | None = None
) -> Found:
    """The columns of a table, whatever their order; of others no cell is read.

    Where the file has no header (its first line is numbers), or no names are known, all of its
    columns are taken in their order, and must be `number`; a column named `target` is passed over.
    Holes are taken if the training data had words or holes: they are filled by the means.

    Raises:
      ValueError: if the file is missing or empty, or has ragged rows; a column is missing, there
        twice, or one too many to be taken in order; a cell is no finite number where a number must
        be. The message names file, column and line.
    """
    table = read_table(path)
    header, names = list(table.names), [column.name for column in columns]
    target = None if target is None else column_name(target)
    if table.has_header and names:
        places = find_columns(repr(str(path)), header, names)
    else:
        passed = header.index(target) if table.has_header and target in header else None
        places = [i for i in range(len(header)) if i != passed]
        if len(places) != number:
            without = "" if table.has_header else " and no header"
            raise ValueError(
                f"{str(path)!r} has {len(header)} columns{without}, and the model was trained on "
                f"{number}; give those, in their order"
                f"{f', under a header of their names: {named(names)}' if names else ''}."
            )
    wanted = columns or [InputColumn(header[place]) for place in places]
    may_miss = Encoding.of(wanted) is not None  # A mean was learnt then, of every column.
    values = [
        number_column(table, place, holes=may_miss)
        if column.words is None
        else word_column(table, place)
        for place, column in zip(places, wanted, strict=True)
    ]
    inputs, unseen = encode_columns(wanted, values)
    taken = {*places} if table.has_header else {*range(len(header))}
    others = (n for i, n in enumerate(header) if i not in taken and n != target)
    return Found(inputs, tuple(others), table.has_header, unseen)


def find_columns(what: str, header: Sequence[str], names: Sequence[str]) -> list[int]:
    """Where in `header` each of `names` stands.

    Raises:
      ValueError: if one is missing or stands there twice, by name.
    """
    header = [column_name(name) for name in header]
    places, known = {name: i for i, name in enumerate(header)}, set(names)
    missing = [name for name in names if name not in places]
    if missing:
        free = [name for name in header if name not in known]
        raise ValueError(
            f"{what} has no column {named(missing)}, which the model was trained on; its columns "
            f"are {named(header)}.{nearest(missing[0], free)}"
        )
    doubled = [name for name in twice(header) if name in known]
    if doubled:
        raise ValueError(f"{what} has two columns named {quoted(doubled[0])}; rename one.")
    return [places[name] for name in names]


def _check_header(table: RawTable, target: str | None) -> None:
    path, header = str(table.path), table.names
    doubled = twice(header)
    if doubled:
        raise ValueError(f"{path!r} has two columns named {quoted(doubled[0])}; rename one.")
    if len(header) < 2:
        raise ValueError(f"{path!r} has one column; give inputs and a target.")
    if target is not None and target not in header:
        raise ValueError(
            f"`target` {target!r} is no column of {path!r}, which has "
            f"{named(header)}.{nearest(target, header)}"
        )
