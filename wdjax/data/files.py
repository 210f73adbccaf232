"""Reading `.npz` and `.csv` files: plain arrays out, nothing executed, every refusal in words."""

import csv
import math
import zipfile
import zlib
from pathlib import Path

import numpy as np

from wdjax.checks import nearest


def read_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The arrays `inputs` and `targets` of a file that `np.savez` wrote.

    Raises:
      ValueError: if the file is missing or damaged, lacks one of them, or pickles objects.
    """
    _check_file(path)
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{str(path)!r} is no .npz file; save it with np.savez.")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for key in ("inputs", "targets"):
                if key not in arrays:
                    raise ValueError(
                        f"{str(path)!r} has no array {key!r}, only {', '.join(arrays) or 'none'};"
                        " save it with np.savez(path, inputs=..., targets=...)."
                    )
            return _read_array(path, arrays, "inputs"), _read_array(path, arrays, "targets")
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


def read_csv(path: Path, target: str | None, loss: str) -> tuple[np.ndarray, np.ndarray]:
    """The input columns `[row, column]` and the target column of a file with a header.

    The target is the last column, or the one named `target`: numbers under `"squared_error"`,
    integers or words under `"cross_entropy"`. Empty lines are passed over.

    Raises:
      ValueError: if the file is missing or empty, has no header or ragged rows, or a cell does
        not fit its column; the message names file, column and line.
    """
    _check_file(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, row) for row in reader if any(row)]
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as UTF-8 .csv ({error}).") from None
    if len(rows) < 2:
        raise ValueError(f"{str(path)!r} is empty; give a header and at least one row.")
    header = [cell.strip() for cell in rows.pop(0)[1]]
    _check_header(path, header, target)
    for line, row in rows:
        if len(row) != len(header):
            raise ValueError(
                f"{str(path)!r}, line {line} has {len(row)} cells and the header {len(header)}; "
                "give every row the same columns."
            )
    place = header.index(target) if target is not None else len(header) - 1
    lines = [line for line, _ in rows]
    columns = [[row[i].strip() for _, row in rows] for i in range(len(header))]
    inputs = [
        _number_column(path, header[i], column, lines)
        for i, column in enumerate(columns)
        if i != place
    ]
    words = columns[place]
    if loss == "squared_error":
        return np.stack(inputs, axis=1), _number_column(path, header[place], words, lines)
    return np.stack(inputs, axis=1), _label_column(path, header[place], words, lines)


def _check_header(path: Path, header: list[str], target: str | None) -> None:
    if all(_as_number(cell) is not None for cell in header):
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
