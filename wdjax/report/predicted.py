"""What was predicted of the test part: a confusion matrix, or predicted against true."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from wdjax.report.figures import BOTTOM, FIRST, INK, MUTED, WIDTH, Figure, draw_axes
from wdjax.tables import format_number

MOST_NUMBERED = 12
"""Classes of a matrix whose cells have room for their counts."""
MOST_OUTPUTS = 4
"""Numbers an example that are drawn, a figure each."""
_LONGEST = 12


def prediction_figures(results: Mapping[str, Any]) -> list[Figure]:
    """The figures of the predictions in a results dict; none where it holds none."""
    told = results.get("predictions")
    if not isinstance(told, Mapping):
        return []
    counts = _array(told.get("counts"))
    names = [str(name) for name in told.get("classes") or ()]
    if counts.ndim == 2 and counts.size and counts.shape == (len(names), len(names)):
        return [_confusion(counts.astype(int), names)]
    true, predicted = _array(told.get("true")), _array(told.get("predicted"))
    if true.ndim != 2 or not true.size or true.shape != predicted.shape:
        return []
    pairs = zip(true[:MOST_OUTPUTS], predicted[:MOST_OUTPUTS], strict=True)
    return [_against(i, len(true), *pair, told.get("num_examples")) for i, pair in enumerate(pairs)]


def prediction_words(results: Mapping[str, Any]) -> str:
    """How many were wrong, and which mistakes were made most often."""
    told = results.get("predictions")
    if not isinstance(told, Mapping) or not isinstance(told.get("num_wrong"), int):
        return ""
    num, wrong = told.get("num_examples"), told["num_wrong"]
    words = f"{wrong} of {num} test examples were taken for another class by the model kept"
    mistakes = [m for m in told.get("mistakes") or () if isinstance(m, Mapping)][:3]
    often = ", ".join(
        f"{m.get('true')} for {m.get('predicted')} ({m.get('count')})" for m in mistakes
    )
    return f"{words}; most often {often}." if often else f"{words}."


def _confusion(counts: np.ndarray, names: list[str]) -> Figure:
    num = len(names)
    short = [n if len(n) <= _LONGEST else f"{n[: _LONGEST - 3]}..." for n in names]
    size = min(9.5, 245.0 / num)
    longest = 0.62 * size * max(map(len, short))
    left = 30.0 + longest
    cell = min((WIDTH - left - 10.0) / num, 34.0)
    turned = longest + 4 > cell
    below = 26.0 + (longest if turned else 12.0)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    def paint(ax: Any) -> None:
        from matplotlib.patches import Rectangle

        for true, taken in zip(*np.nonzero(counts), strict=True):
            colour, faint, strong = (INK, 0.03, 0.12) if true == taken else (FIRST, 0.12, 1.2)
            alpha = min(faint + strong * shares[true, taken], 0.7)
            corner = (taken - 0.5, true - 0.5)
            ax.add_patch(Rectangle(corner, 1, 1, fc=colour, alpha=alpha, lw=0))
            if num <= MOST_NUMBERED:
                text = format_number(int(counts[true, taken]))
                ax.text(taken, true, text, ha="center", va="center", fontsize=8, color=INK)
        ax.set_xlim(-0.5, num - 0.5)
        ax.set_ylim(num - 0.5, -0.5)
        ax.set_xticks(range(num), short, rotation=90 if turned else 0, fontsize=size)
        ax.set_yticks(range(num), short, fontsize=size)
        ax.tick_params(length=0)
        ax.set_xlabel("predicted", loc="right", color=MUTED)
        ax.text(-0.01, 1.01, "true", transform=ax.transAxes, ha="right", va="bottom", color=MUTED)
        for spine in ax.spines.values():
            spine.set_visible(False)

    right = int(np.trace(counts))
    svg = draw_axes(
        "confusion",
        "Confusion matrix",
        f"{right} of {counts.sum()} examples on the diagonal, of {num} classes.",
        paint,
        right=WIDTH - left - cell * num,
        top=44.0,
        left=left,
        bottom=below,
        height=44.0 + below + cell * num,
    )
    caption = (
        "A row is a true class, a column what it was taken for; in colour the mistakes, stronger "
        "the larger their share of the row. Test part, the model kept."
    )
    return Figure(svg, caption)


def _against(i: int, many: int, true: np.ndarray, predicted: np.ndarray, num: Any) -> Figure:
    def paint(ax: Any) -> None:
        from matplotlib.patches import PathPatch
        from matplotlib.path import Path

        ends = _limit_both(ax, np.concatenate([true, predicted]))
        ax.plot(ends, ends, color=MUTED, lw=0.8, ls=(0, (1, 2)), zorder=1)
        places = np.repeat(np.stack([true, predicted], axis=1), 2, axis=0)
        points = Path(places, np.tile([Path.MOVETO, Path.LINETO], len(true)))
        points.should_simplify = False
        # Strokes without a length and with round ends: dots, in a sixth of a marker's bytes.
        dots = PathPatch(points, ec=FIRST, fc="none", lw=3.2, alpha=0.45)
        dots.set_capstyle("round")
        dots.set_snap(False)
        ax.add_patch(dots)
        ax.set_xlabel("true", loc="right", color=MUTED)
        where = dict(transform=ax.transAxes, ha="right", va="bottom", color=MUTED)
        ax.text(-0.01, 1.02, "predicted", **where)

    median = format_number(float(f"{np.median(np.abs(predicted - true)):.3g}"))
    which = f", output {i + 1} of {many}" if many > 1 else ""
    svg = draw_axes(
        f"predicted-{i}",
        f"Predicted against true{which}",
        f"{len(true)} points; the median distance is {median}.",
        paint,
        right=60.0,
        top=46.0,
        left=56.0,
        height=46.0 + 244.0 + BOTTOM,
    )
    shown = f"{len(true)} of {num} test examples, evenly taken" if num != len(true) else ""
    shown = shown or f"The {len(true)} test examples"
    return Figure(svg, f"{shown}, in the unit of the targets, by the model kept. Dotted: equal.")


def _limit_both(ax: Any, values: np.ndarray) -> list[float]:
    """The same limits and ticks for both axes; gives the ends between which all values lie."""
    from matplotlib.ticker import FixedLocator, MaxNLocator

    low, high = float(values.min()), float(values.max())
    pad = 0.04 * (high - low) or 0.05 * abs(high) or 1.0
    inside = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    ticks = [float(t) for t in inside if low - pad <= t <= high + pad] or [low]
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_major_formatter(lambda x, _: format_number(float(f"{x:.6g}")))
    ax.set_xlim(low - pad, high + pad)
    ax.set_ylim(low - pad, high + pad)
    return [low, high]


def _array(values: Any) -> np.ndarray:
    try:
        found = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        return np.empty(0)
    return found if np.isfinite(found).all() else np.empty(0)
