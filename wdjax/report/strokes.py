"""Slopes of scores in a report: what results tell of them, and what is said of their strokes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wdjax.report.figures import Series


def mean_slopes(slopes: Any, metric: str, axis: str, num_rows: int) -> np.ndarray | None:
    """`[row]` of `{number: {score: [{"mean", "standard_error"}]}}`: d score / d log number.

    NaN where unknown; None if nothing is told of this score and number.
    """
    of_axis = slopes.get(axis) if isinstance(slopes, Mapping) else None
    cells = of_axis.get(metric) if isinstance(of_axis, Mapping) else None
    if not isinstance(cells, list) or len(cells) != num_rows:
        return None
    means = [cell.get("mean") if isinstance(cell, Mapping) else None for cell in cells]
    return np.array([float(m) if isinstance(m, int | float) else math.nan for m in means])


def words_on_strokes(series: Sequence[Series], axis: str) -> str:
    """What the strokes are, where there are any."""
    if not any(s.slope is not None and np.isfinite(s.slope).any() for s in series):
        return ""
    return f" Short strokes: the slope in log {axis}, carried through the runs; their mean."
