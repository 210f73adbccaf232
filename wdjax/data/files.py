"""Reading `.npz` and `.csv` files: plain arrays out, nothing executed, every refusal in words."""

import csv
import math
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from wdjax.checks import nearest
from wdjax.data.archive import check_file, read_arrays
from wdjax.loss_kinds import has_classes

_FORMULA_SIGNS = "=+-@\t\r\n\N{FULLWIDTH EQUALS SIGN}\N{FULLWIDTH PLUS SIGN}"
_FORMULA_SIGNS += "\N{FULLWIDTH HYPHEN-MINUS}\N{FULLWIDTH COMMERCIAL AT}"


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
      ValueError: as `read_arrays`.
    """
    arrays = read_arrays(path, ("inputs", "targets"), ("weights",))
    return arrays["inputs"], arrays["targets"], arrays.get("weights")


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
    taken = {*places} if has_header else {*range(len(header))}
    others = (n for i, n in enumerate(header) if i not in taken and n != target)
    return Found(np.stack(inputs, axis=1), tuple(others), has_header)


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
    twice = [name for name in _twice(header) if name in known]
    if twice:
        raise ValueError(f"{what} has two columns named {quoted(twice[0])}; rename one.")
    return [places[name] for name in names]


def named(names: Sequence[str], most: int = 8) -> str:
    """The names in quotes, one after another; of more than `most` the first, and how many more."""
    shown = ", ".join(quoted(str(name)) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def quoted(text: str, most: int = 60) -> str:
    """A text of a file as a message shows it: in quotes, escaped, of a long one the beginning."""
    return repr(text) if len(text) <= most else f"{text[:most]!r}... ({len(text):,} characters)"


def text_cell(text: str) -> str:
    """A text as a cell of a `.csv`: behind an apostrophe if a spreadsheet would run it.

    Those that begin with `=`, `+`, `-`, `@`, a tab or the end of a line may be formulas, which
    can fetch, send and start things; a number is none and stays as it is. To read a cell back,
    take one apostrophe off those where a sign of these follows the first ones: so that no two
    texts become one, a text that begins like that itself gets one more.
    """
    bare = text.lstrip("'")
    is_formula = bare[:1] in _FORMULA_SIGNS and (bare != text or _as_number(text) is None)
    return f"'{text}" if bare and is_formula else text


def column_name(name: object) -> str:
    """A column's name as it is compared: without spaces around it, in one form of Unicode."""
    return unicodedata.normalize("NFC", str(name).strip())


def _read_rows(path: Path, least: int = 2) -> list[tuple[int, list[str]]]:
    """Number and cells of each line that is not empty."""
    check_file(path)
    line = 0
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            # Strict: a quote that nothing closes would take the rest of the file into one cell.
            reader = csv.reader(_without_nul(path, file), strict=True)
            rows = []
            for row in reader:
                line = reader.line_num
                if any(row):
                    rows.append((line, row))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{str(path)!r} cannot be read as UTF-8 .csv: byte {error.object[error.start]:#04x} "
            f"after line {line} is none of UTF-8; save it as CSV UTF-8."
        ) from None
    except csv.Error as error:
        raise ValueError(
            f"{str(path)!r} cannot be read as UTF-8 .csv: {_words_of(error)}, in the row that "
            f"begins in line {line + 1}; mend its quotes and commas."
        ) from None
    except OSError as error:
        raise ValueError(
            f"{str(path)!r} cannot be read: {error.strerror or error}; give a file that can."
        ) from None
    if len(rows) < least:
        raise ValueError(f"{str(path)!r} is empty; give a header and at least one row.")
    return rows


def _without_nul(path: Path, lines: Iterator[str]) -> Iterator[str]:
    """NumPy ends a word at a NUL byte, so two labels would become one."""
    for number, line in enumerate(lines, 1):
        if "\0" in line:
            raise ValueError(
                f"{str(path)!r}, line {number} holds a NUL byte, as no text does; save it as "
                "CSV UTF-8."
            )
        yield line


def _words_of(error: csv.Error) -> str:
    if "field limit" in str(error):
        return f"a cell has more than {csv.field_size_limit():,} characters"
    return {
        "unexpected end of data": "a quote is never closed",
        "',' expected after '\"'": "a closing quote is followed by more than a comma",
    }.get(str(error), str(error))


def _check_lengths(path: Path, rows: list[tuple[int, list[str]]], number: int) -> None:
    for line, row in rows:
        if len(row) != number:
            raise ValueError(
                f"{str(path)!r}, line {line} has {len(row)} cells and the header {number}; "
                "give every row the same columns."
            )


def _twice(header: Sequence[str]) -> list[str]:
    return [name for name, times in Counter(header).items() if times > 1]


def _is_numbers(header: list[str]) -> bool:
    return all(_as_number(cell) is not None for cell in header)


def _check_header(path: Path, header: list[str], target: str | None) -> None:
    if _is_numbers(header):
        raise ValueError(
            f"{str(path)!r} starts with numbers; its first line must name the columns."
        )
    twice = _twice(header)
    if twice:
        raise ValueError(f"{str(path)!r} has two columns named {quoted(twice[0])}; rename one.")
    if len(header) < 2:
        raise ValueError(f"{str(path)!r} has one column; give inputs and a target.")
    if target is not None and target not in header:
        raise ValueError(
            f"`target` {target!r} is no column of {str(path)!r}, which has "
            f"{named(header)}.{nearest(target, header)}"
        )


def _number_column(path: Path, name: str, cells: list[str], lines: list[int]) -> np.ndarray:
    numbers = [_as_number(cell) for cell in cells]
    for number, cell, line in zip(numbers, cells, lines, strict=True):
        if number is None:
            found = quoted(cell) if cell else "nothing"
            raise ValueError(
                f"{str(path)!r}, column {quoted(name)} must hold numbers, got {found} in line "
                f"{line}; turn it into numbers, leave it out, or name it as the `target`."
            )
        if not math.isfinite(number):
            raise ValueError(
                f"{str(path)!r}, column {quoted(name)} must be finite, got {cell[:60]} in line "
                f"{line}; remove or fill such rows first."
            )
    return np.array(numbers, np.float64)


def _label_column(path: Path, name: str, cells: list[str], lines: list[int]) -> np.ndarray:
    """Integers as they are, words as strings; a column of fractions is refused."""
    if "" in cells:
        line = lines[cells.index("")]
        raise ValueError(
            f"{str(path)!r}, column {quoted(name)} has no label in line {line}; remove the row."
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
                f"{str(path)!r}, column {quoted(name)} must hold labels under loss cross_entropy, "
                f"got {number:g} in line {line}; use loss squared_error to predict numbers."
            )
    return np.array(numbers, np.int64)


def _as_number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None
