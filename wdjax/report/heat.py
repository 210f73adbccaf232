"""The heat map: a score over two numbers of the grid."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from wdjax.report.figures import FIRST, HEIGHT, INK, MUTED, draw_axes
from wdjax.report.scales import LOG_RATIO
from wdjax.tables import format_number


def draw_heat(
    name: str,
    title: str,
    description: str,
    *,
    down: tuple[str, Sequence[float]],
    across: tuple[str, Sequence[float]],
    values: np.ndarray,
    lower_is_better: bool,
    marked: tuple[int, int] | None,
    outlined: Sequence[tuple[int, int]] = (),
    left_out: Sequence[tuple[int, int]] = (),
    span: tuple[float, float] | None = None,
) -> str:
    """A cell for each pair of values `[down, across]`, stronger in colour the better it is.

    Cells hold their number where there is room for it; a cross stands for no score, and the place
    of a pair that was `left_out` is blank. The marked cell has a frame, those `outlined` a dashed
    one together. Zero stands a little apart from the numbers above it, which are on a log scale.
    `span` are the best and the worst value of the colours, by default those that there are.
    """
    num_down, num_across = values.shape
    ys, xs = _places_of_cells(down[1]), _places_of_cells(across[1])
    height = max(HEIGHT, 74.0 + 16.0 * num_down)

    def paint(ax: Any) -> None:
        from matplotlib.patches import Rectangle

        strength = _better(values, lower_is_better, span)
        for i in range(num_down):
            for j in range(num_across):
                if (i, j) in left_out:
                    continue
                x, y = xs[j], ys[i]
                if not np.isfinite(values[i, j]):
                    ax.plot(x, y, "x", color=MUTED, ms=4, mew=0.8)
                    continue
                alpha = 0.04 + 0.56 * strength[i, j]
                ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fc=FIRST, alpha=alpha, lw=0))
                if num_across <= 8:
                    text = format_number(float(f"{values[i, j]:.3g}"))
                    ax.text(x, y, text, ha="center", va="center", fontsize=8, color=INK)
        for line_xs, line_ys in _sides(outlined, ys, xs):
            ax.plot(line_xs, line_ys, color=INK, lw=0.9, ls=(0, (3, 2)), zorder=2)
        if marked is not None:
            corner = (xs[marked[1]] - 0.5, ys[marked[0]] - 0.5)
            ax.add_patch(Rectangle(corner, 1, 1, fill=False, ec=INK, lw=1.5, zorder=3))
        ax.set_xlim(xs[0] - 0.5, xs[-1] + 0.5)
        ax.set_ylim(ys[0] - 0.5, ys[-1] + 0.5)
        every = -(-num_across // 8)
        ax.set_xticks(xs[::every], [format_number(v) for v in across[1][::every]])
        ax.set_yticks(ys, [format_number(v) for v in down[1]])
        ax.tick_params(length=0)
        ax.set_xlabel(across[0], loc="right", color=MUTED)
        ax.text(-0.01, 1.01, down[0], transform=ax.transAxes, ha="right", va="bottom", color=MUTED)
        for spine in ax.spines.values():
            spine.set_visible(False)

    return draw_axes(
        name, title, description, paint, height=height, left=62.0, right=10.0, top=40.0
    )


def _places_of_cells(values: Sequence[float]) -> np.ndarray:
    """One after another; zero a little apart, as there is no way to it on a log scale."""
    places = np.arange(len(values), dtype=float)
    if len(values) > 2 and values[0] == 0:
        places[0] -= 0.25
    return places


def _sides(
    cells: Sequence[tuple[int, int]], ys: np.ndarray, xs: np.ndarray
) -> Iterable[tuple[tuple[float, float], tuple[float, float]]]:
    """The sides of some cells together: where the cell beyond is none of them, or stands apart."""
    for i, j in cells:
        left, right, low, high = xs[j] - 0.5, xs[j] + 0.5, ys[i] - 0.5, ys[i] + 0.5
        for step, places, side in (
            ((-1, 0), ys, ((left, right), (low, low))),
            ((1, 0), ys, ((left, right), (high, high))),
            ((0, -1), xs, ((left, left), (low, high))),
            ((0, 1), xs, ((right, right), (low, high))),
        ):
            beyond = (i + step[0], j + step[1])
            place, here = (beyond[0], i) if step[0] else (beyond[1], j)
            if beyond not in cells or abs(places[place] - places[here]) > 1:
                yield side


def _better(
    values: np.ndarray, lower_is_better: bool, span: tuple[float, float] | None = None
) -> np.ndarray:
    """0 for the worst cell, 1 for the best; by ratio where the values spread far."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return values
    low, high = (finite.min(), finite.max()) if span is None else sorted(span)
    values = np.clip(values, low, high)
    if low > 0 and high / low > LOG_RATIO:
        values, low, high = np.log(values), np.log(low), np.log(high)
    rising = (values - low) / ((high - low) or 1.0)
    return 1 - rising if lower_is_better else rising
