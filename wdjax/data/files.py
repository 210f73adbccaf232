"""Reading `.npz` and `.csv` files: plain arrays out, nothing executed, every refusal in words."""

import csv
import math
import unicodedata
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from wdjax.checks import nearest
from wdjax.loss_kinds import has_classes


class Columns(NamedTuple):
    """What a `.csv` file holds."""

    inputs: np.ndarray
    """`[row, column]`, float64."""
    targets: np.ndarray
    """`[row]`: numbers, integers or words."""
    names: tuple[str, ...]
    """Of the input columns."""
    target: str
    """The name of the target's column."""


class Found(NamedTuple):
    """The input columns that a model wants, as a `.csv` file gave them."""

    inputs: np.ndarray
    """`[row, column]`, float64, in the model's order."""
    others: tuple[str, ...]
    """The columns that were passed over, the target's left out."""
    has_header: bool


def read_npz(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The arrays `inputs`, `targets` and, if there, `weights` of a file that `np.savez` wrote.

    Raises:
      ValueError: if the file is missing or damaged, lacks inputs or targets, or pickles objects.
    """
    arrays = read_npz_arrays(path, ("inputs", "targets"), ("weights",))
    return arrays["inputs"], arrays["targets"], arrays.get("weights")


def read_npz_arrays(
    path: Path, wanted: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """The arrays of those names in a file that `np.savez` wrote; an `optional` one may be missing.

    Raises:
      ValueError: if the file is missing or damaged, lacks a wanted array, or pickles objects.
    """
    _check_file(path)
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{str(path)!r} is no .npz file; save it with np.savez.")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for key in wanted:
                if key not in arrays:
                    example = ", ".join(f"{key}=..." for key in wanted)
                    raise ValueError(
                        f"{str(path)!r} has no array {key!r}, only {', '.join(arrays) or 'none'};"
                        f" save it with np.savez(path, {example})."
                    )
            keys = (*wanted, *(key for key in optional if key in arrays))
            return {key: _read_array(path, arrays, key) for key in keys}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise ValueError(
            f"{str(path)!r} cannot be read as .npz ({error}); save it again with np.savez."
        ) from None


def _read_array(path: Path, arrays, key: str) -> np.ndarray:
    try:
        return arrays[key]
    except ValueError as error:
        raise ValueError(
            f"{str(path)!r}: array {key!r} cannot be read ({error}); it must be plain numbers"
            f"{' or strings' if key == 'targets' else ''}, not Python objects, which could run "
            "code when loaded."
        ) from None


def _check_file(path: Path) -> None:
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        raise ValueError(f"data file {str(path)!r} does not exist.{nearest(path.name, siblings)}")


def read_csv(path: Path, target: str | None, loss: str) -> Columns:
    """The input columns and the target column of a file with a header, with their names.

    The target is the last column, or the one named `target`: numbers under `"squared_error"`,
    integers or words under `"cross_entropy"`. Empty lines are passed over.

    Raises:
      ValueError: if the file is missing or empty, has no header or ragged rows, or a cell does
        not fit its column; the message names file, column and line.
    """
    rows = _read_rows(path)
    header = [column_name(cell) for cell in rows.pop(0)[1]]
    target = None if target is None else column_name(target)
    _check_header(path, header, target)
    _check_lengths(path, rows, len(header))
    place = header.index(target) if target is not None else len(header) - 1
    lines = [line for line, _ in rows]
    columns = [[row[i].strip() for _, row in rows] for i in range(len(header))]
    inputs = [
        _number_column(path, header[i], column, lines)
        for i, column in enumerate(columns)
        if i != place
    ]
    as_target = _label_column if has_classes(loss) else _number_column
    return Columns(
        np.stack(inputs, axis=1),
        as_target(path, header[place], columns[place], lines),
        tuple(header[:place] + header[place + 1 :]),
        header[place],
    )


def read_csv_inputs(
    path: Path, names: Sequence[str], number: int, target: str | None = None
) -> Found:
    """The columns `names` of a file, whatever their order; of others no cell is read.

    Where the file has no header (its first line is numbers), or no names are known, all of its
    columns are taken in their order, and must be `number`; a column named `target` is passed over.

    Raises:
      ValueError: if the file is missing or empty, or has ragged rows; a column is missing, there
        twice, or one too many to be taken in order; a cell is no finite number. The message names
        file, column and line.
    """
    rows = _read_rows(path, least=1)
    header = [column_name(cell) for cell in rows[0][1]]
    has_header = not _is_numbers(header)
    if has_header:
        rows.pop(0)
        if not rows:
            raise ValueError(f"{str(path)!r} has a header and no rows; give at least one.")
    _check_lengths(path, rows, len(header))
    target = None if target is None else column_name(target)
    if has_header and names:
        places = find_columns(repr(str(path)), header, names)
    else:
        passed = header.index(target) if has_header and target in header else None
        places = [i for i in range(len(header)) if i != passed]
        if len(places) != number:
            without = "" if has_header else " and no header"
            raise ValueError(
                f"{str(path)!r} has {len(header)} columns{without}, and the model was trained on "
                f"{number}; give those, in their order"
                f"{f', under a header of their names: {named(names)}' if names else ''}."
            )
    lines = [line for line, _ in rows]
    label = lambda i: header[i] if has_header else str(i + 1)
    inputs = [
        _number_column(path, label(i), [row[i].strip() for _, row in rows], lines) for i in places
    ]
    others = (n for i, n in enumerate(header) if has_header and i not in places and n != target)
    return Found(np.stack(inputs, axis=1), tuple(others), has_header)


def find_columns(what: str, header: Sequence[str], names: Sequence[str]) -> list[int]:
    """Where in `header` each of `names` stands.

    Raises:
      ValueError: if one is missing or stands there twice, by name.
    """
    header = [column_name(name) for name in header]
    missing = [name for name in names if name not in header]
    if missing:
        free = [name for name in header if name not in names]
        raise ValueError(
            f"{what} has no column {named(missing)}, which the model was trained on; its columns "
            f"are {named(header)}.{nearest(missing[0], free)}"
        )
    twice = [name for name in names if header.count(name) > 1]
    if twice:
        raise ValueError(f"{what} has two columns named {twice[0]!r}; rename one.")
    return [header.index(name) for name in names]


def named(names: Sequence[str], most: int = 8) -> str:
    """The names in quotes, one after another; of more than `most` the first, and how many more."""
    shown = ", ".join(repr(str(name)) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def column_name(name: object) -> str:
    """A column's name as it is compared: without spaces around it, in one form of Unicode."""
    return unicodedata.normalize("NFC", str(name).strip())


def _read_rows(path: Path, least: int = 2) -> list[tuple[int, list[str]]]:
    """Number and cells of each line that is not empty."""
    _check_file(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, row) for row in reader if any(row)]
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as UTF-8 .csv ({error}).") from None
    if len(rows) < least:
        raise ValueError(f"{str(path)!r} is empty; give a header and at least one row.")
    return rows


def _check_lengths(path: Path, rows: list[tuple[int, list[str]]], number: int) -> None:
    for line, row in rows:
        if len(row) != number:
            raise ValueError(
                f"{str(path)!r}, line {line} has {len(row)} cells and the header {number}; "
                "give every row the same columns."
            )


def _is_numbers(header: list[str]) -> bool:
    return all(_as_number(cell) is not None for cell in header)


def _check_header(path: Path, header: list[str], target: str | None) -> None:
    if _is_numbers(header):
        raise ValueError(
            f"{str(path)!r} starts with numbers; its first line must name the columns."
        )
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise ValueError(f"{str(path)!r} has two columns named {twice[0]!r}; rename one.")
    if len(header) < 2:
        raise ValueError(f"{str(path)!r} has one column; give inputs and a target.")
    if target is not None and target not in header:
        raise ValueError(
            f"`target` {target!r} is no column of {str(path)!r}, which has "
            f"{', '.join(header)}.{nearest(target, header)}"
        )


def _number_column(path: Path, name: str, cells: list[str], lines: list[int]) -> np.ndarray:
    numbers = [_as_number(cell) for cell in cells]
    for number, cell, line in zip(numbers, cells, lines, strict=True):
        if number is None:
            found = f"{cell!r}" if cell else "nothing"
            raise ValueError(
                f"{str(path)!r}, column {name!r} must hold numbers, got {found} in line {line}; "
                "turn it into numbers, leave it out, or name it as the `target`."
            )
        if not math.isfinite(number):
            raise ValueError(
                f"{str(path)!r}, column {name!r} must be finite, got {cell} in line {line}; "
                "remove or fill such rows first."
            )
    return np.array(numbers, np.float64)


def _label_column(path: Path, name: str, cells: list[str], lines: list[int]) -> np.ndarray:
    """Integers as they are, words as strings; a column of fractions is refused."""
    if "" in cells:
        line = lines[cells.index("")]
        raise ValueError(
            f"{str(path)!r}, column {name!r} has no label in line {line}; remove the row."
        )
    numbers = []
    for cell in cells:
        number = _as_number(cell)
        if number is None:
            return np.array(cells)
        numbers.append(number)
    for number, line in zip(numbers, lines, strict=True):
        if not number.is_integer() or abs(number) > 2**31:
            raise ValueError(
                f"{str(path)!r}, column {name!r} must hold labels under loss cross_entropy, got "
                f"{number:g} in line {line}; use loss squared_error to predict numbers."
            )
    return np.array(numbers, np.int64)


def _as_number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None
