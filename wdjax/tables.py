"""What prints: numbers with sensible digits, tables as text and HTML, strict JSON."""

import dataclasses
import html
import json
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

WIDTH = 100
"""Columns of text a table may take."""


def format_number(x: Any) -> str:
    """Four significant digits: `0.09712`, `3.162e-5`, `12346`; whole numbers in full.

    None prints as "-", infinity as "inf", and NaN as "diverged": in this package a score is
    NaN where its run diverged, and nowhere else.
    """
    x = x.item() if hasattr(x, "item") else x
    if x is None:
        return "-"
    if isinstance(x, bool):
        return "yes" if x else "no"
    if isinstance(x, int):
        return str(x)
    if math.isnan(x):
        return "diverged"
    if math.isinf(x):
        return "inf" if x > 0 else "-inf"
    if x == 0:
        return "0"
    mantissa, exponent = f"{x:.3e}".split("e")
    if -4 <= int(exponent) < 6:
        return _strip(f"{x:.{max(0, 3 - int(exponent))}f}")
    return f"{_strip(mantissa)}e{int(exponent)}"


def _strip(digits: str) -> str:
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


class Estimate(NamedTuple):
    """A mean and its standard error; prints as `0.0971 +- 0.0023`, two digits of the error."""

    mean: float
    standard_error: float

    def __str__(self) -> str:
        mean, error = (math.nan if x is None else float(x) for x in self)
        if not (math.isfinite(mean) and math.isfinite(error) and error > 0):
            known = math.isfinite(mean) and error == 0
            return format_number(mean) + (" +- 0" if known else "")
        size = max(_exponent(mean), _exponent(error))
        decimals = 1 - _exponent(error)
        if decimals > max(7, 6 - size):  # digits of the mean that nobody reads
            return f"{format_number(mean)} +- {format_number(float(f'{error:.1e}'))}"
        if not -5 <= size < 7:
            digits = max(0, size + decimals)
            scaled = f"{mean / 10.0**size:.{digits}f} +- {error / 10.0**size:.{digits}f}"
            return f"({scaled})e{size}"
        # No more decimals than four, or than three digits of the mean take: nobody reads them.
        decimals = min(decimals, max(4, 2 - _exponent(mean) if mean else 4))
        places = max(0, decimals)
        mean, error = round(mean, decimals) + 0.0, round(error, decimals)  # + 0.0: no "-0.00"
        return f"{mean:.{places}f} +- {error:.{places}f}"


def _exponent(x: float) -> int:
    """The decimal exponent of `x` once rounded to two digits: 0.0999 counts as 0.10."""
    return int(f"{x:.1e}".split("e")[1])


class Table(NamedTuple):
    """Rows under headers, for a terminal (`str`), a notebook (`_repr_html_`) or JSON (`to_dict`).

    A cell is a str, a number, an `Estimate`, or None (printed "-"). `marked` is the row that
    was chosen.
    """

    headers: tuple[str, ...]
    rows: tuple[tuple, ...]
    marked: int | None = None
    title: str = ""
    note: str = ""

    def __str__(self) -> str:
        """Aligned text, at most 100 columns wide: long words are cut, wide tables are folded."""
        columns = [
            [header, *(row[i] for row in self.rows)] for i, header in enumerate(self.headers)
        ]
        if self.marked is not None:
            columns = [
                ["", *(">" if i == self.marked else "" for i in range(len(self.rows)))],
                *columns,
            ]
        blocks = ["\n".join(_lines(block)) for block in _fold(_align(columns))]
        return "\n\n".join(filter(None, [self.title, *blocks, self.note]))

    def _repr_html_(self) -> str:
        """The same as an HTML table, every word escaped; the chosen row has class `chosen`."""
        numeric = [_is_numeric(row[i] for row in self.rows) for i in range(len(self.headers))]
        sides = ["right" if right else "left" for right in numeric]

        def line(cells: Iterable[Any], tag: str, mark: str) -> str:
            lead = "" if self.marked is None else f"<{tag}>{mark}</{tag}>"
            return lead + "".join(
                f'<{tag} style="text-align:{side}">{_cell_html(cell)}</{tag}>'
                for cell, side in zip(cells, sides, strict=True)
            )

        head = line(self.headers, "th", "").replace("<th", '<th scope="col"')
        rows = (
            f'<tr class="chosen" style="font-weight:bold">{line(row, "td", "&#9656;")}</tr>'
            if i == self.marked
            else f"<tr>{line(row, 'td', '')}</tr>"
            for i, row in enumerate(self.rows)
        )
        caption = f"<caption>{html.escape(self.title)}</caption>" if self.title else ""
        note = f"<p>{html.escape(self.note)}</p>" if self.note else ""
        return (
            f"<table>{caption}<thead><tr>{head}</tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table>{note}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts and finite numbers; what is NaN or infinite becomes None.

        Raises:
          TypeError: for a cell that `to_plain` cannot say.
        """
        return to_plain(self._asdict())


def _cell_text(cell: Any) -> str:
    if isinstance(cell, str):
        return " ".join("".join(c if c.isprintable() else " " for c in cell).split())
    return str(cell) if isinstance(cell, Estimate) else format_number(cell)


def _cell_html(cell: Any) -> str:
    text = html.escape(_cell_text(cell))
    return text.replace("+-", "&plusmn;") if isinstance(cell, Estimate) else text


def _is_numeric(cells: Iterable[Any]) -> bool:
    return not any(isinstance(cell, str) for cell in cells)


def _align(columns: list[list[Any]]) -> list[list[str]]:
    """One width a column: numbers to the right and whole, words to the left and cut to fit."""
    words = [[_cell_text(cell) for cell in column] for column in columns]
    widths = [max(map(len, column)) for column in words]
    numeric = [_is_numeric(column[1:]) for column in columns]
    room = WIDTH - sum(width + 2 for width in widths) + 2
    for i in sorted(range(len(columns)), key=lambda i: -widths[i]):
        if not numeric[i] and room < 0:
            fitted = min(widths[i], max(24, widths[i] + room))
            room += widths[i] - fitted
            widths[i] = fitted
    return [
        [word.rjust(width) if right else _cut(word, width).ljust(width) for word in column]
        for column, width, right in zip(words, widths, numeric, strict=True)
    ]


def _cut(word: str, width: int) -> str:
    """Cut in the middle: the start of a path says where, its end says what."""
    if len(word) <= width:
        return word
    kept = width - 3
    return f"{word[: kept - kept // 2]}...{word[len(word) - kept // 2 :]}"


def _fold(columns: list[list[str]]) -> list[list[list[str]]]:
    """Blocks of columns that fit the width, side by side in one block when they can."""
    blocks: list[list[list[str]]] = [[]]
    for column in columns:
        used = sum(len(c[0]) + 2 for c in blocks[-1])
        if blocks[-1] and used + len(column[0]) > WIDTH:
            blocks.append([])
        blocks[-1].append(column)
    return blocks


def _lines(columns: list[list[str]]) -> list[str]:
    header, *rows = ("  ".join(cells).rstrip() for cells in zip(*columns, strict=True))
    return [header, "  ".join("-" * len(column[0]) for column in columns), *rows]


def to_plain(obj: Any) -> Any:
    """Turns `obj` into what strict JSON can say: None, bool, int, float, str, list, dict.

    NaN and infinities become None; NumPy and JAX arrays become nested lists; NamedTuples and
    dataclasses become dicts, and anything with a `to_dict` becomes what that gives; keys of
    mappings become strings.

    Raises:
      TypeError: for anything else (a function, a random key), naming its type.
      ValueError: for a mapping in which two keys are the same once they are strings.
    """
    if obj is None or type(obj) in (bool, int, str):
        return obj
    if isinstance(obj, float):
        return float(obj) if math.isfinite(obj) else None
    if isinstance(obj, np.ndarray | np.generic | jax.Array) and _is_plain_dtype(obj.dtype):
        inexact = jnp.issubdtype(obj.dtype, jnp.floating)
        values = np.asarray(obj).astype(np.float64) if inexact else np.asarray(obj)
        return to_plain(values.tolist())
    as_dict = getattr(obj, "to_dict", None) or getattr(obj, "_asdict", None)
    if as_dict is not None:
        return to_plain(as_dict())
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {f.name: to_plain(getattr(obj, f.name)) for f in dataclasses.fields(obj)}
    if isinstance(obj, Mapping):
        plain = {str(key): to_plain(value) for key, value in obj.items()}
        if len(plain) != len(obj):
            raise ValueError(f"Two keys become one string in JSON: {list(obj)}.")
        return plain
    if isinstance(obj, list | tuple):
        return [to_plain(value) for value in obj]
    if isinstance(obj, str | os.PathLike):
        return str(obj)
    raise TypeError(
        f"to_json cannot write {obj!r} of type {type(obj).__name__}; "
        "pass numbers, strings, arrays, lists, dicts, NamedTuples, or a `to_dict` method."
    )


def _is_plain_dtype(dtype: Any) -> bool:
    return any(jnp.issubdtype(dtype, kind) for kind in (np.bool_, np.integer, np.floating)) or (
        isinstance(dtype, np.dtype) and dtype.kind == "U"
    )


def to_json(obj: Any) -> str:
    """Strict JSON of anything `to_plain` understands: never the words NaN or Infinity.

    Raises:
      TypeError: for anything else, naming its type.
      ValueError: for a mapping in which two keys are the same once they are strings.
    """
    return json.dumps(to_plain(obj), indent=2, ensure_ascii=False, allow_nan=False)
