"""Tables as pyarrow reads them: `.csv` with commas, semicolons or tabs, also in gzip, and Parquet.

What it forgives, a strict pass over the text refuses: a quote that nothing closes would take the
rest of a file into one cell.
"""

import contextlib
import csv
import dataclasses
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wdjax.data.archive import check_file
from wdjax.data.texts import column_name, is_number, quoted
from wdjax.extras import need

_DELIMITERS = ",;\t"
_BLOCK = 1 << 24
_OUTSIDE_QUOTES = re.compile('"[^"]*"')


@dataclasses.dataclass(frozen=True)
class RawTable:
    """Columns as they lie in a file, not yet numbers or words."""

    path: Path
    names: tuple[str, ...]
    """What the header says, or "1", "2", ... where there is none."""
    columns: list[Any]
    """pyarrow's, of words or of numbers."""
    has_header: bool
    delimiter: str | None
    """Of the cells of a line; None where there are no lines."""

    def where(self, row: int) -> str:
        """`line 7`, or `row 5 (counted from 0)` where there are no lines, of a row of the table.

        Raises:
          ValueError: if the file has become no table meanwhile.
        """
        if self.delimiter is None:
            return f"row {row} (counted from 0)"
        rows = _strict_rows(self.path, self.delimiter)
        return f"line {[line for line, _ in _taken(rows, row + 1 + self.has_header)][-1]}"


def arrow() -> tuple[Any, Any]:
    """pyarrow and its functions on columns: imported with the first table.

    Raises:
      ImportError: if it is not installed.
    """
    return need("pyarrow", what="a table"), need("pyarrow.compute", what="a table")


def read_table(path: Path, *, needs_header: bool = False) -> RawTable:
    """All columns of a table, as text or as Parquet types them.

    Lines whose cells are all empty are passed over. A first line of numbers alone is no header.

    Raises:
      ValueError: for a file that is missing, empty, broken, of ragged rows, or no UTF-8 text; with
        `needs_header`, also one without a header; the message names file and line.
      ImportError: if pyarrow is not installed.
    """
    check_file(path)
    with _sentences(path):
        return _READERS[ending_of(path)](path, needs_header)


def ending_of(path: Path) -> str:
    """The ending of a file's name: `.csv.gz` is one."""
    both = "".join(path.suffixes[-2:]).lower()
    return both if both in TABLE_ENDINGS else path.suffix.lower()


def _read_csv(path: Path, needs_header: bool) -> RawTable:
    arrow_csv = need("pyarrow.csv", what="a .csv table")
    pa, _ = arrow()
    first, has_quotes = _scan(path)
    delimiter = max(_DELIMITERS, key=_OUTSIDE_QUOTES.sub("", first).count)
    if has_quotes:
        for _ in _strict_rows(path, delimiter):
            pass
    (top,) = _taken(_strict_rows(path, delimiter), 1) or [(0, [])]
    header = [column_name(cell) for cell in top[1]]
    if not header:
        raise ValueError(f"{str(path)!r} is empty; give a header and at least one row.")
    has_header = not all(map(is_number, header))
    if needs_header and not has_header:
        raise ValueError(
            f"{str(path)!r} starts with numbers; its first line must name the columns."
        )
    names = [f"f{i}" for i in range(len(header))]
    try:
        with _opened(path, "rb") as file:
            table = arrow_csv.read_csv(
                file,
                arrow_csv.ReadOptions(column_names=names, block_size=_BLOCK),
                arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=has_quotes),
                arrow_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
            )
    except pa.ArrowInvalid as error:
        _check_lengths(path, delimiter, len(header))
        raise ValueError(f"{str(path)!r} cannot be read: {_short(error)}.") from None
    columns = _without_empty_rows(table.columns)
    if has_header:
        columns = [column.slice(1) for column in columns]
    if not len(columns[0]):
        _check_lengths(path, delimiter, len(header))
        raise ValueError(
            f"{str(path)!r} has a header and no rows; give at least one."
            if not needs_header
            else f"{str(path)!r} is empty; give a header and at least one row."
        )
    label = header if has_header else [str(i + 1) for i in range(len(header))]
    return RawTable(path, tuple(label), columns, has_header, delimiter)


def _without_empty_rows(columns: list[Any]) -> list[Any]:
    _, pc = arrow()
    empty = pc.equal(columns[0], "")
    for column in columns[1:]:
        if not pc.any(empty).as_py():
            return columns
        empty = pc.and_(empty, pc.equal(column, ""))
    if not pc.any(empty).as_py():
        return columns
    return [column.filter(pc.invert(empty)) for column in columns]


def _read_parquet(path: Path, needs_header: bool) -> RawTable:
    del needs_header  # It always has one.
    parquet = need("pyarrow.parquet", what="a .parquet table")
    pa, _ = arrow()
    try:
        table = parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{str(path)!r} cannot be read as Parquet: {_short(error)}; write it again."
        ) from None
    if table.num_rows == 0 or table.num_columns == 0:
        raise ValueError(f"{str(path)!r} is empty; give at least one row and column.")
    order = _without_index(table.schema)
    names = tuple(column_name(table.column_names[i]) for i in order)
    if not names:
        raise ValueError(f"{str(path)!r} is empty; give at least one row and column.")
    return RawTable(path, names, [table.columns[i] for i in order], True, None)


def _without_index(schema: Any) -> list[int]:
    """The columns as pandas has them in a `.csv`: its index first, or left out if it has no name.

    Parquet has the index of a data frame at the end, where the target is looked for.
    """
    try:
        index = (schema.pandas_metadata or {}).get("index_columns", [])
    except (ValueError, AttributeError):  # Metadata that nobody wrote for pandas.
        index = []
    names = schema.names
    own = {i for i, name in enumerate(names) if name in [x for x in index if isinstance(x, str)]}
    unnamed = {i for i in own if re.fullmatch(r"__index_level_\d+__", names[i])}
    return [*sorted(own - unnamed), *(i for i in range(len(names)) if i not in own)]


def _scan(path: Path) -> tuple[str, bool]:
    """The first line that holds anything, and whether there is a quote; refuses what is no text."""
    lines, has_quotes, first = 0, False, ""
    with _opened(path, "rb") as file:
        for line in file:
            lines += 1
            if not line.isascii():
                _check_utf_8(path, line, lines)
            if b"\0" in line:
                raise ValueError(
                    f"{str(path)!r}, line {lines} holds a NUL byte, as no text does; save it as "
                    "CSV UTF-8."
                )
            has_quotes = has_quotes or b'"' in line
            if not first.strip():
                first = line.decode("utf-8-sig")
    if not first.strip():
        raise ValueError(f"{str(path)!r} is empty; give a header and at least one row.")
    return first, has_quotes


def _check_utf_8(path: Path, line: bytes, number: int) -> None:
    try:
        line.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{str(path)!r} cannot be read as UTF-8 .csv: byte {line[error.start]:#04x} after line "
            f"{number - 1} is none of UTF-8; save it as CSV UTF-8."
        ) from None


def _strict_rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of each line of which not all cells are empty, one by one."""
    line = 0
    with _opened(path, "rb") as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        try:
            reader = csv.reader(text, strict=True, delimiter=delimiter)
            for row in reader:
                line = reader.line_num
                if any(row):
                    yield line, row
        except csv.Error as error:
            raise ValueError(
                f"{str(path)!r} cannot be read as UTF-8 .csv: {_words_of(error)}, in the row that "
                f"begins in line {line + 1}; mend its quotes and commas."
            ) from None


def _taken(rows: Iterator[Any], most: int) -> list[Any]:
    return [row for _, row in zip(range(most), rows, strict=False)]


def _check_lengths(path: Path, delimiter: str, number: int) -> None:
    for line, row in _strict_rows(path, delimiter):
        if len(row) != number:
            raise ValueError(
                f"{str(path)!r}, line {line} has {len(row)} cells and the header {number}; "
                "give every row the same columns."
            )


def _opened(path: Path, mode: str) -> Any:
    return gzip.open(path, mode) if path.suffix.lower() == ".gz" else path.open(mode)


@contextlib.contextmanager
def _sentences(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f"{str(path)!r} is no whole gzip file ({_short(error)}); compress it again."
        ) from None
    except OSError as error:
        raise ValueError(
            f"{str(path)!r} cannot be read: {error.strerror or error}; give a file that can."
        ) from None


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")


def _words_of(error: csv.Error) -> str:
    if "field limit" in str(error):
        return f"a cell has more than {csv.field_size_limit():,} characters"
    return {
        "unexpected end of data": "a quote is never closed",
        "',' expected after '\"'": "a closing quote is followed by more than a comma",
        "';' expected after '\"'": "a closing quote is followed by more than a semicolon",
        "'\t' expected after '\"'": "a closing quote is followed by more than a tab",
    }.get(str(error), str(error))


_READERS = {".csv": _read_csv, ".csv.gz": _read_csv, ".parquet": _read_parquet}
TABLE_ENDINGS = tuple(_READERS)
"""What the names of tables end in."""


def shown(name: str) -> str:
    """A column's name in a message."""
    return f"column {quoted(name)}"
