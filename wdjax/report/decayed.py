"""The table of who was decayed, made to fit a page: repeated blocks folded, idle columns told."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from wdjax.tables import Table, format_number

UNITS = {
    "rate": "rate a step",
    "half_life": "half-life in steps",
    "half_life_epochs": "half-life in epochs",
    "equilibrium_norm": "predicted norm",
    "equilibrium_angle": "predicted angle a step",
}
_ALWAYS = "path", "rate"
_OF_A_LEAF = "norm", "equilibrium_norm", "equilibrium_angle"
"""Measured, so that they differ between leaves that are decayed alike."""
_OF_A_SCHEDULE = "first_rate", "peak_rate", "last_rate"


def decay_table(rows: Sequence[Mapping[str, Any]]) -> tuple[Table, str]:
    """The leaves' decay, and what the table does not show because it says the same everywhere.

    Leaves whose paths differ in numbers alone, and which are decayed alike, are one row: their
    number stands in place of the numbers, and what was measured of them is the mean. The size is
    left to the shape, and the rates along a schedule to the rate where they are the same.
    """
    names = list(dict.fromkeys(str(name) for row in rows for name in row))
    if all(isinstance(row.get("shape"), list) for row in rows):
        names = [name for name in names if name != "size"]
    steady = [n for n in _OF_A_SCHEDULE if n in names and _is_the_rate(rows, n)]
    is_steady = len(steady) == len(_OF_A_SCHEDULE)
    names = [name for name in names if not (is_steady and name in steady)]
    folded = _folded(rows, names)
    shown, same, nothing = [], [], []
    for name in names:
        cells = [_cell(name, row) for row in folded]
        words = {format_number(c) if isinstance(c, int | float) else str(c) for c in cells}
        if name in _ALWAYS or len(words) > 1:
            shown.append(name)
        elif words <= {"0", "-0", "None"}:
            nothing.append(_called(name))
        elif len(folded) == 1:
            shown.append(name)
        else:
            same.append(f"{_called(name)} {words.pop()}")
    table = Table(
        tuple(map(_called, shown)), tuple(tuple(_cell(n, row) for n in shown) for row in folded)
    )
    left_out = [f"In every row: {', '.join(same)}." if same else ""]
    left_out += [f"0 or unknown in every row: {', '.join(nothing)}." if nothing else ""]
    left_out += ["The rate is the same at every step." if is_steady else ""]
    return table, " ".join(filter(None, left_out))


def _is_the_rate(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    return all(_shown(row.get(name)) == _shown(row.get("rate")) for row in rows)


def _folded(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    alike = [n for n in names if n != "path" and n not in _OF_A_LEAF]
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        pattern = re.sub(r"\d+", "*", str(row.get("path")))
        key = pattern, *(_shown(_cell(name, row)) for name in alike)
        groups.setdefault(key, []).append(row)
    found = []
    for (pattern, *_), members in groups.items():
        row = dict(members[0])
        if len(members) > 1:
            row["path"] = f"{pattern} \u00d7 {len(members)}"
            row |= {
                name: _mean([m.get(name) for m in members]) for name in _OF_A_LEAF if name in row
            }
        found.append(row)
    return found


def _mean(values: Sequence[Any]) -> Any:
    known = [v for v in values if isinstance(v, int | float)]
    return sum(known) / len(known) if len(known) == len(values) else None


def _shown(cell: Any) -> str:
    return format_number(cell) if isinstance(cell, int | float) else str(cell)


def _called(name: str) -> str:
    return UNITS.get(name, name.replace("_", " "))


def _cell(name: str, row: Mapping[str, Any]) -> Any:
    value = row.get(name)
    if name == "shape" and isinstance(value, list):
        return " \u00d7 ".join(map(str, value)) or "scalar"
    if name in ("half_life", "equilibrium_norm") and value is None and row.get("rate") == 0:
        return float("inf")
    return value if value is None or isinstance(value, str | int | float) else json.dumps(value)
