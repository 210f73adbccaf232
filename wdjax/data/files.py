"""Reading `.npz`, `.csv` and `.parquet` files: arrays out, nothing executed, refusals in words."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wdjax.checks import nearest
from wdjax.data.archive import read_arrays
from wdjax.data.cells import input_column, label_column, number_column, word_column
from wdjax.data.encoding import Encoding, InputColumn, Words, encode_columns
from wdjax.data.table_files import RawTable, read_table, shown
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
    weights: np.ndarray | None = None
    """`[row]`: how much each counts, where a column says it."""
    groups: np.ndarray | None = None
    """`[row]`, words: what rows that belong together share, where a column says it."""


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


def read_columns(
    path: Path,
    target: str | None,
    loss: str,
    *,
    drop: Sequence[str] = (),
    weights: str | None = None,
    groups: str | None = None,
) -> Columns:
    """The input columns and the target column of a table with a header, with their names.

    The target is the last column, or the one named `target`: numbers under `"squared_error"`,
    integers or words under `"cross_entropy"`. An input column is of numbers, some of which may be
    missing, or of words. The columns `drop` are not read; `weights` and `groups` name one each.

    Raises:
      ValueError: as `read_table`; if one of the columns named is missing, or named twice, a name
        stands there twice, no inputs are left, or a cell does not fit its column; the message
        names file, column and line.
    """
    table = read_table(path, needs_header=True)
    place, own = _roles(table, target, drop, weights, groups)
    others = [i for i in range(len(table.names)) if i != place and i not in own.values()]
    found, values = [], []
    for i in others:
        values.append(input_column(table, i))
        found.append(_described(table.names[i], values[-1]))
        _check_no_index(table, i, values[-1])
        values[-1], table.columns[i] = _narrow(values[-1]), None
    targets = label_column(table, place, loss) if has_classes(loss) else number_column(table, place)
    if not has_classes(loss) and len(targets) > 1 and (targets == targets[0]).all():
        raise ValueError(
            f"{str(path)!r}, {shown(table.names[place])} is {targets[0]:g} in every row, so there "
            "is nothing to predict; name another column as the `target`."
        )
    inputs, _ = encode_columns(found, values)
    return Columns(inputs, targets, tuple(found), table.names[place], *_of_rows(table, own))


def read_test(
    path: Path,
    columns: Sequence[InputColumn],
    target: str,
    loss: str,
    *,
    weights: str | None = None,
    groups: str | None = None,
) -> Columns:
    """A table of the columns of another, in any order: what a model is judged on.

    Raises:
      ValueError: as `read_inputs`; if the target, the weights or the groups are missing.
    """
    table = read_table(path, needs_header=True)
    roles = {"target": target} | {
        name: column_name(column)
        for name, column in _rows_named(weights, groups)
        if column is not None
    }
    places = find_columns(repr(str(path)), table.names, [*roles.values()])
    own = dict(zip(roles, places, strict=True))
    place = own.pop("target")
    found = _find_inputs(table, columns, len(columns), target)
    targets = label_column(table, place, loss) if has_classes(loss) else number_column(table, place)
    return Columns(found.inputs, targets, tuple(columns), target, *_of_rows(table, own))


def _rows_named(weights: Any, groups: Any) -> tuple[tuple[str, Any], ...]:
    return ("weights", weights), ("groups", groups)


def _of_rows(
    table: RawTable, own: Mapping[str, int]
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The weights and the groups of the rows, of the columns that say them."""
    weights = number_column(table, own["weights"]) if "weights" in own else None
    if "groups" not in own:
        return weights, None
    held = word_column(table, own["groups"])
    groups = held.words[held.codes]
    if (groups == "").any():
        row = int(np.argmax(groups == ""))
        raise ValueError(
            f"{str(table.path)!r}, {shown(table.names[own['groups']])} has no group in "
            f"{table.where(row)}; name it, or remove the row."
        )
    return weights, groups


def _roles(
    table: RawTable, target: str | None, drop: Sequence[str], weights: Any, groups: Any
) -> tuple[int, dict[str, int]]:
    """Where the target stands, and where what is no input: by its role, or its own name."""
    path, header = str(table.path), table.names
    doubled = twice(header)
    if doubled:
        raise ValueError(f"{path!r} has two columns named {quoted(doubled[0])}; rename one.")
    if len(header) < 2:
        raise ValueError(f"{path!r} has one column; give inputs and a target.")
    asked = [("target", target), *_rows_named(weights, groups), *(("drop", n) for n in drop)]
    roles: dict[str, str] = {}
    for role, name in asked:
        if name is None:
            continue
        found = column_name(name)
        if found not in header:
            raise ValueError(
                f"`{role}` {found!r} is no column of {path!r}, which has "
                f"{named(header)}.{nearest(found, header)}"
            )
        if found in roles:
            raise ValueError(
                f"`{role}` {found!r} is named as `{roles[found]}` as well; a column is one thing."
            )
        roles[found] = role
    free = [name for name in header if name not in roles]
    place = header.index(next((n for n, role in roles.items() if role == "target"), header[-1]))
    if target is None and header[-1] in roles:
        raise ValueError(
            f"`target` was not given, and the last column, {header[-1]!r}, is named as "
            f"`{roles[header[-1]]}`; say which column to predict."
        )
    if not [name for name in free if name != header[place]]:
        raise ValueError(f"{path!r}: no input columns are left; drop fewer.")
    own = {role if role != "drop" else f"drop {n}": header.index(n) for n, role in roles.items()}
    own.pop("target", None)
    return place, own


def _check_no_index(table: RawTable, place: int, values: np.ndarray | Words) -> None:
    """A column without a name that counts the rows is what pandas writes of its own accord."""
    if table.names[place] or isinstance(values, Words):
        return
    if np.array_equal(values, np.arange(len(values))) and len(values) > 1:
        raise ValueError(
            f"{str(table.path)!r}: column {place + 1} has no name and counts the rows, as pandas "
            "writes its index; write the table with index=False, or leave it out (--drop '')."
        )


def _described(name: str, values: np.ndarray | Words) -> InputColumn:
    if isinstance(values, Words):
        return InputColumn(name, tuple(values.words.tolist()))
    return InputColumn(name, None, bool(np.isnan(values).any()))


def _narrow(values: np.ndarray | Words) -> np.ndarray | Words:
    """Numbers as a run has them: of a million rows the columns lie there side by side."""
    return values if isinstance(values, Words) else values.astype(np.float32)


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
    return _find_inputs(read_table(path), columns, number, target)


def _find_inputs(
    table: RawTable, columns: Sequence[InputColumn], number: int, target: str | None
) -> Found:
    path = table.path
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
