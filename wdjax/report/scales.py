"""The axes of the figures: where a value stands, and which values are labelled."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

LOG_RATIO = 8.0
"""Positive values that spread further than this are shown on a log scale."""

STROKE = 22.0
"""Points: the length of a stroke along a slope."""


class Scale(NamedTuple):
    """The horizontal axis: where a value stands, which values are labelled, where it breaks."""

    place: Callable[[Any], np.ndarray]
    ticks: tuple[float, ...]
    zero: float | None
    """Position of the value 0 on a log scale, left of the break; None without one."""
    ends: tuple[float, float]
    """First and last position of the unbroken part."""


def make_scale(values: Iterable[float]) -> Scale:
    """A log scale with zero at the left after a break, or a linear one for a narrow range."""
    values = np.unique(np.asarray(list(values), float))
    positive = values[values > 0]
    if len(positive) < 2 or values[0] < 0 or positive[-1] / positive[0] < LOG_RATIO:
        return Scale(np.asarray, _thin(values), None, (float(values[0]), float(values[-1])))
    low, high = np.log10(positive[0]), np.log10(positive[-1])
    zero = low - max(0.13 * (high - low), (high - low) / (len(positive) - 1))
    decades = 10.0 ** np.arange(np.ceil(low - 1e-6), np.floor(high + 1e-6) + 1)
    ticks = _thin(decades) if len(decades) > 1 else _thin(positive)
    has_zero = bool(values[0] == 0)

    def place(x: Any) -> np.ndarray:
        x = np.asarray(x, float)
        return np.where(x > 0, np.log10(np.where(x > 0, x, 1.0)), zero)

    return Scale(
        place, (0.0, *ticks) if has_zero else ticks, float(zero) if has_zero else None, (low, high)
    )


def _thin(values: np.ndarray, most: int = 6) -> tuple[float, ...]:
    stride = -(-len(values) // most)
    return tuple(float(v) for v in values[::stride])


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two positive ones, evenly on a log scale."""
    first, last = int(np.floor(np.log10(low))), int(np.ceil(np.log10(high)))
    steps = (1, 2, 5) if last - first <= 2 else (1, 3) if last - first <= 3 else (1,)
    every = 10.0 ** np.arange(first, last + 1, max(1, (last - first) // 6))
    ticks = np.ravel(every[:, None] * np.asarray(steps)[None, :])
    return [float(t) for t in ticks if low <= t <= high]


def stroke_ends(
    ax: Any, scale: Scale, x: float, y: float, slope: float
) -> tuple[np.ndarray, np.ndarray]:
    """Where a stroke begins and ends that has `slope` = dy / d log x at `(x, y)`, in the places
    `(xs, ys)` of axes whose limits are set; of one length on the page whatever the scales."""
    ahead = 1e-3  # Of log x: what bends on a scale is a line there.
    points = [(scale.place(x), y), (scale.place(x * np.exp(ahead)), y + ahead * slope)]
    here, there = ax.transData.transform(np.array(points, float))
    along = (there - here) / np.hypot(*(there - here)) * (STROKE / 2) * ax.figure.dpi / 72
    xs, ys = ax.transData.inverted().transform([here - along, here + along]).T
    return xs, ys
