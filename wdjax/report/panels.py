"""Small multiples: a panel a part of the model, strips of what was measured of it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from wdjax.report.figures import INK, MUTED, draw_figure, limit_height, quiet_axes
from wdjax.tables import format_number

WIDTH = 160.0
"""Points: two of them stand side by side on a phone."""
_TOP, _STRIP, _BETWEEN, _BOTTOM = 26.0, 44.0, 19.0, 22.0
_LEFT, _RIGHT = 38.0, 6.0
_LONGEST = 27


class Strip(NamedTuple):
    """One quantity over the run, in a panel."""

    label: str
    lines: Sequence[tuple[np.ndarray, str]]
    """`(values[seed, point], colour)`: seeds thin, their mean thick; NaN where there is none."""


def draw_panel(
    name: str, title: str, description: str, strips: Sequence[Strip], at: np.ndarray
) -> str:
    """The strips of one part, one above the other over the same steps `at[point]`."""
    height = _TOP + len(strips) * (_STRIP + _BETWEEN) + _BOTTOM - _BETWEEN + 10.0

    def paint(figure: Any) -> None:
        for row, strip in enumerate(strips):
            top = _TOP + 10.0 + row * (_STRIP + _BETWEEN)
            place = _LEFT / WIDTH, 1 - (top + _STRIP) / height
            size = (WIDTH - _LEFT - _RIGHT) / WIDTH, _STRIP / height
            ax = figure.add_axes((*place, *size))
            quiet_axes(ax)
            _paint_strip(ax, strip, at, is_last=row == len(strips) - 1)

    # The end of a path tells more than its beginning.
    short = title if len(title) <= _LONGEST else f"...{title[3 - _LONGEST :]}"
    return draw_figure(name, title, description, paint, width=WIDTH, height=height, shown=short)


def _paint_strip(ax: Any, strip: Strip, at: np.ndarray, *, is_last: bool) -> None:
    from matplotlib.ticker import FixedLocator

    values = [line for line, _ in strip.lines]
    limit_height(ax, values)
    low, high = ax.get_ylim()
    ticks = [t for t in ax.yaxis.get_majorticklocs() if low <= t <= high]
    ax.yaxis.set_major_locator(FixedLocator(_ends_and_middle(ax, ticks)))
    for line, colour in reversed(strip.lines):
        if len(line) > 1:
            ax.plot(at, line.T, color=colour, lw=0.4, alpha=0.35)
        dot = {"marker": "o", "ms": 2.5} if len(at) == 1 else {}
        ax.plot(at, line.mean(axis=0), color=colour, lw=1.2, **dot)
    first, last = float(at[0]), float(at[-1])
    pad = 0.03 * (last - first) or 0.5
    ax.set_xlim(first - pad, last + pad)
    ax.spines["bottom"].set_bounds(first, last)
    ax.tick_params(labelsize=8.5)
    ends = sorted({first, last})
    ax.set_xticks(ends, [format_number(int(t)) for t in ends] if is_last else [""] * len(ends))
    for text, side in zip(ax.get_xticklabels(), ("left", "right"), strict=False):
        text.set_ha("center" if len(ends) == 1 else side)
    if is_last:
        ax.set_xlabel("step", loc="center", color=MUTED, fontsize=8.5, labelpad=-7)
    where = dict(transform=ax.transAxes, ha="left", va="bottom", fontsize=8.5)
    ax.text(0.0, 1.06, strip.label, color=INK, **where)


def _ends_and_middle(ax: Any, ticks: list[float]) -> list[float]:
    """At most three, as far apart as the words on them are high."""
    if len(ticks) <= 2:
        return ticks
    places = ax.transAxes.inverted().transform(
        ax.transData.transform([(ax.get_xlim()[0], t) for t in ticks])
    )[:, 1]
    middle = int(np.argmin(np.abs(places - (places[0] + places[-1]) / 2)))
    room = 12.0 / _STRIP
    fits = places[middle] - places[0] > room and places[-1] - places[middle] > room
    return [ticks[0], *([ticks[middle]] if fits else []), ticks[-1]]
