"""The cells of a table as numbers, words or labels; what does not fit is named by its line."""

import re
from typing import Any

import numpy as np

from wdjax.data.encoding import HOLE, Words
from wdjax.data.table_files import RawTable, arrow, shown
from wdjax.data.texts import quoted

MOST_DIFFERENT = 10_000
"""Words of one column: of more, it is text, or tells rows apart."""

HOLES = (
    *("", "?", "NA", "N/A", "n/a", "#N/A", "#NA", "#N/A N/A", "<NA>", "NULL", "null"),
    *("NaN", "nan", "-NaN", "-nan", "None"),
)
"""What stands for a number that is missing, in any file."""

FEW_DIFFERENT = 20
"""Words of one column that may stand in a row each: so few cost little."""

_SHAPES = {
    "dates": re.compile(
        r"(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/]\d{1,2}[-/]\d{2,4}|\d{1,2}\.\d{1,2}\.\d{4})"
        r"([T ]\d.*)?"
    ),
    "lists": re.compile(r"\[.*\]|\{.*\}", re.DOTALL),
}
_INSTEAD = {
    "dates": "make numbers of them (the days since one of them, or the month)",
    "lists": "give what they hold a column each",
}

_NUMBER = r"^[+-]?((\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|(?i:inf|infinity))$"


def input_column(table: RawTable, place: int) -> np.ndarray | Words:
    """A column of inputs: float64 with NaN where a number is missing, or words, "" for a hole.

    Numbers, if all that is there are numbers; words, if more are none than are.

    Raises:
      ValueError: for a column without a single value, some words among numbers, a number that is
        not finite, dates, lists and other types, and words of which there are too many.
    """
    name, cells = table.names[place], _as_text_or_numbers(table, place)
    if isinstance(cells, np.ndarray):
        return _checked_numbers(table, name, cells)
    numbers = _numbers_of(table, cells)
    if isinstance(numbers, np.ndarray):
        return _checked_numbers(table, name, numbers)
    is_word, num_numbers = numbers
    num_words = int(is_word.sum())
    if num_numbers >= num_words:
        row = int(np.argmax(is_word))
        raise ValueError(
            f"{str(table.path)!r}, {shown(name)} must hold numbers, got "
            f"{quoted(cells[row].as_py())} in {table.where(row)}, and {num_numbers} of its cells "
            "are numbers; turn it into a number, leave the cell empty, leave the column out "
            "(--drop), or name it as the `target`."
        )
    words = _words_of(cells)
    _check_words(table, name, words)
    return words


def number_column(table: RawTable, place: int, *, holes: bool = False) -> np.ndarray:
    """A column that must hold numbers, float64; with `holes`, NaN where one is missing.

    Raises:
      ValueError: for the first cell that is none, or not finite, by line.
    """
    name, cells = table.names[place], _as_text_or_numbers(table, place)
    found = cells if isinstance(cells, np.ndarray) else _numbers_of(table, cells)
    if not isinstance(found, np.ndarray):
        row = int(np.argmax(found[0]))
        raise ValueError(
            f"{str(table.path)!r}, {shown(name)} must hold numbers, got "
            f"{quoted(cells[row].as_py())} in {table.where(row)}; turn it into numbers, leave it "
            "out (--drop), or name it as the `target`."
        )
    missing = np.isnan(found)
    if missing.any() and not holes:
        row = int(np.argmax(missing))
        raise ValueError(
            f"{str(table.path)!r}, {shown(name)} must hold numbers, got nothing in "
            f"{table.where(row)}; fill it, or remove the row."
        )
    return _checked_numbers(table, name, found, may_be_empty=holes)


def word_column(table: RawTable, place: int) -> Words:
    """A column as words, whatever it holds; "" where there is none.

    Raises:
      ValueError: for dates and other types.
    """
    cells = _as_text_or_numbers(table, place)
    if isinstance(cells, np.ndarray):
        # As a `.csv` has them: 3, not 3.0.
        return Words.of(["" if np.isnan(x) else f"{x:.17g}" for x in cells.tolist()])
    return _words_of(cells)


def label_column(table: RawTable, place: int, loss: str) -> np.ndarray:
    """Integers as they are, words as strings.

    Raises:
      ValueError: for a cell without a label, and a column of fractions, by line.
    """
    name, cells = table.names[place], _as_text_or_numbers(table, place)
    if not isinstance(cells, np.ndarray):
        words = np.array(cells.to_pylist(), str)
        _check_labelled(table, name, words == "")
        found = _numbers_of(table, cells)
        if not isinstance(found, np.ndarray):
            return words
        if np.isnan(found).all():  # Words for a hole, and no numbers beside them: they are words.
            return words
        cells = found
    _check_labelled(table, name, np.isnan(cells))
    odd = (cells != np.round(cells)) | (np.abs(cells) > 2**31)
    if odd.any():
        row = int(np.argmax(odd))
        raise ValueError(
            f"{str(table.path)!r}, {shown(name)} must hold labels under loss {loss}, got "
            f"{cells[row]:g} in {table.where(row)}; use loss squared_error to predict numbers."
        )
    return cells.astype(np.int64)


def _check_labelled(table: RawTable, name: str, missing: np.ndarray) -> None:
    if missing.any():
        where = table.where(int(np.argmax(missing)))
        raise ValueError(
            f"{str(table.path)!r}, {shown(name)} has no label in {where}; remove the row."
        )


def _checked_numbers(
    table: RawTable, name: str, numbers: np.ndarray, *, may_be_empty: bool = False
) -> np.ndarray:
    if np.isnan(numbers).all() and not may_be_empty:
        raise ValueError(
            f"{str(table.path)!r}, {shown(name)} holds nothing at all; leave it out (--drop)."
        )
    with np.errstate(over="ignore"):
        # As float32, in which runs compute.
        narrow = numbers.astype(np.float32)
    too_large = np.isinf(narrow) | (narrow == HOLE)
    if too_large.any():
        row = int(np.argmax(too_large))
        raise ValueError(
            f"{str(table.path)!r}, {shown(name)} must be finite, got {numbers[row]:g} in "
            f"{table.where(row)}; remove or fill such rows first."
        )
    return numbers


def _words_of(cells: Any) -> Words:
    """Of pyarrow's words: of a million rows only the different ones become Python's."""
    held = cells.dictionary_encode()
    held = held.combine_chunks() if hasattr(held, "combine_chunks") else held
    words = np.array(held.dictionary.to_pylist(), str)
    order = np.argsort(words)
    place = np.empty(len(words), np.int32)
    place[order] = np.arange(len(words))
    return Words(place[held.indices.to_numpy()], words[order])


def _check_words(table: RawTable, name: str, words: Words) -> None:
    there = [word for word in words.words.tolist() if word not in HOLES]
    for what, shape in _SHAPES.items():
        if all(map(shape.fullmatch, there)):
            row = int(np.argmax(words.codes == np.flatnonzero(words.words == there[0])[0]))
            raise ValueError(
                f"{str(table.path)!r}, {shown(name)} holds {what}, such as {quoted(there[0])} in "
                f"{table.where(row)}; {_INSTEAD[what]}, or leave it out (--drop)."
            )
    num_words, num_rows = len(words.words), len(words.codes)
    if num_words > MOST_DIFFERENT or num_words > max(FEW_DIFFERENT, num_rows / 2):
        raise ValueError(
            f"{str(table.path)!r}, {shown(name)} holds {num_words} different words in {num_rows} "
            "rows: it tells rows apart, or is text. Leave it out (--drop), or make fewer words of "
            "it."
        )


def _as_text_or_numbers(table: RawTable, place: int) -> Any:
    """A NumPy array of float64, or pyarrow's of words without spaces around them."""
    pa, pc = arrow()

    column, kinds = table.columns[place], pa.types
    kind = column.type
    if kinds.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if kinds.is_null(kind):
        return np.full(len(column), np.nan)
    if kinds.is_boolean(kind):  # As a `.csv` has them, so that either reads the other's model.
        return pc.fill_null(pc.if_else(column, "True", "False"), "")
    if kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_decimal(kind):
        numbers = pc.fill_null(column.cast(pa.float64(), safe=False), np.nan)
        return numbers.to_numpy()
    if str(kind) == "string_view":  # Few of pyarrow's functions take these.
        column, kind = column.cast(pa.string()), pa.string()
    if kinds.is_string(kind) or kinds.is_large_string(kind):
        return pc.fill_null(pc.utf8_trim_whitespace(column), "")
    raise ValueError(
        f"{str(table.path)!r}, {shown(table.names[place])} holds {kind}, which is neither numbers "
        "nor words; turn it into one of them, or leave it out (--drop)."
    )


def _numbers_of(table: RawTable, cells: Any) -> Any:
    """float64, NaN for a hole; or, if some are no numbers, `(which, how many others are)`."""
    pa, pc = arrow()

    missing = pc.is_in(cells, value_set=pa.array(HOLES))
    known = pc.if_else(missing, pa.scalar(None, pa.string()), cells)
    with_nan = lambda column: pc.fill_null(column, np.nan).to_numpy()
    try:
        return with_nan(known.cast(pa.float64()))
    except pa.ArrowInvalid:
        pass
    known = pc.replace_substring_regex(known, r"^\+([0-9.iI])", r"\1")
    if table.delimiter == ";":  # Where a semicolon divides cells, a comma divides a number.
        known = pc.replace_substring_regex(known, r"^([+-]?\d*),(\d+)", r"\1.\2")
    fits = pc.fill_null(pc.match_substring_regex(known, _NUMBER), True)
    if pc.all(fits).as_py():
        return with_nan(known.cast(pa.float64()))
    is_word = pc.invert(fits).to_numpy()
    return is_word, int((~is_word & ~missing.to_numpy()).sum())
