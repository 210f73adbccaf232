"""Texts of a file: shown in messages, compared as names, kept from running in a spreadsheet."""

import unicodedata
from collections import Counter
from collections.abc import Sequence

_FORMULA_SIGNS = "=+-@\t\r\n\N{FULLWIDTH EQUALS SIGN}\N{FULLWIDTH PLUS SIGN}"
_FORMULA_SIGNS += "\N{FULLWIDTH HYPHEN-MINUS}\N{FULLWIDTH COMMERCIAL AT}"


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
    is_formula = bare[:1] in _FORMULA_SIGNS and (bare != text or not is_number(text))
    return f"'{text}" if bare and is_formula else text


def column_name(name: object) -> str:
    """A column's name as it is compared: without spaces around it, in one form of Unicode."""
    return unicodedata.normalize("NFC", str(name).strip())


def twice(header: Sequence[str]) -> list[str]:
    """The names that stand there more than once."""
    return [name for name, times in Counter(header).items() if times > 1]


def is_number(cell: str) -> bool:
    """Whether Python reads it as a number."""
    try:
        float(cell)
    except ValueError:
        return False
    return True
