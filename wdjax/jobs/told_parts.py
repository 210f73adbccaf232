"""What a run's results tell of the slopes of its parts."""

import math
from collections.abc import Mapping
from typing import Any

from wdjax.selection.part_slopes import PartSlope, PartSlopes
from wdjax.tables import Table

TOLD_HOW = "wdjax select --each-part says which parts want more decay"


def each_part_table(told: Mapping[str, Any]) -> Table | None:
    """The table of the parts in a run's results; None if it has no slopes of them."""
    if not told.get("parts"):
        return None
    parts = []
    for part in told["parts"]:
        told_of = lambda name, part=part: math.nan if part.get(name) is None else part[name]
        cells: dict[str, Any] = {name: told_of(name) for name in PartSlope._fields}
        parts.append(PartSlope(**cells))
    return PartSlopes(tuple(parts), told["method"], told["value"]).table()


def z_of_leaves(results: Mapping[str, Any]) -> dict[str, float]:
    """`{path: z of its part}` of a run's results; empty without slopes of parts."""
    parts = (results.get("each_part") or {}).get("parts") or ()
    return {path: part["z"] for part in parts for path in part["leaves"] if part["z"] is not None}
