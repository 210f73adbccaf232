"""A comparison as the report shows it: its table, and how far each choice is behind the best."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from wdjax.report.figures import FIRST, INK, MUTED, Figure, draw_axes
from wdjax.report.sweep import read_estimate
from wdjax.tables import Estimate, Table, format_number

_ROW = 22.0
"""Points from one dot to the next."""


class Compared(NamedTuple):
    """What a results dict tells of choices side by side."""

    value: str
    best: str
    baseline: str
    numbers: dict[str, dict[str, Any]]
    """Of each choice, those it is best at."""
    score: dict[str, Estimate]
    difference: dict[str, Estimate]
    """To the baseline."""
    worse: tuple[str, ...]
    over_best: dict[str, tuple[float, float, float]]
    """Mean, low and high end of the gain over the best; below 0 is worse."""
    notes: tuple[str, ...]


def read_comparison(results: Mapping[str, Any]) -> Compared | None:
    """The comparison of a results dict, or None where it holds none."""
    told = results.get("comparison")
    choices = told.get("choices") if isinstance(told, Mapping) else None
    if not isinstance(told, Mapping) or not isinstance(choices, Mapping) or not choices:
        return None
    known = {name: c for name, c in choices.items() if isinstance(c, Mapping)}
    estimate = lambda cell: read_estimate(cell) or Estimate(math.nan, math.nan)
    gains = told.get("over_best")
    ends = {
        name: (float(gain["mean"]), float(gain["low"]), float(gain["high"]))
        for name, gain in (gains if isinstance(gains, Mapping) else {}).items()
        if name in known and None not in (gain["mean"], gain["low"], gain["high"])
    }
    return Compared(
        value=str(told.get("value", "loss")),
        best=str(told.get("best")),
        baseline=str(told.get("baseline")),
        numbers={name: dict(c.get("hparams") or {}) for name, c in known.items()},
        score={name: estimate(c) for name, c in known.items()},
        difference={name: estimate(c.get("difference")) for name, c in known.items()},
        worse=tuple(map(str, told.get("told_apart") or ())),
        over_best=ends,
        notes=tuple(map(str, told.get("notes") or ())),
    )


def comparison_table(found: Compared) -> Table:
    """One row a choice: the verdict, its best numbers, its score, the difference to the baseline.

    The verdict stands beside the name, where a phone shows it without scrolling.
    """
    names = list(dict.fromkeys(n for numbers in found.numbers.values() for n in numbers))
    rows = [
        (
            name,
            "best" if name == found.best else "worse" if name in found.worse else "not told apart",
            *(numbers.get(n) for n in names),
            found.score[name],
            None if name == found.baseline else found.difference[name],
        )
        for name, numbers in found.numbers.items()
    ]
    headers = ("choice", "verdict", *(n.replace("_", " ") for n in names), found.value)
    headers += (f"difference to {found.baseline}",)
    marked = list(found.numbers).index(found.best) if found.best in found.numbers else None
    return Table(headers, tuple(rows), marked=marked)


def comparison_words(found: Compared) -> tuple[str, list[str]]:
    """What the table rests on, and what is said of single choices, a sentence each."""
    of_one = [n for n in found.notes if n.startswith(tuple(f"{name} " for name in found.numbers))]
    shared = [note for note in found.notes if note not in of_one]
    words = ". ".join(f"{note[:1].upper()}{note[1:]}" for note in shared)
    return f"{words.rstrip('.')}." if words else "", of_one


def comparison_figures(found: Compared) -> list[Figure]:
    """How far each choice is behind the best: a dot and its interval a choice, the best at 0."""
    shown = [name for name in found.numbers if name == found.best or name in found.over_best]
    if len(shown) < 2:
        return []
    order = sorted(shown, key=lambda name: -found.over_best.get(name, (0.0, 0.0, 0.0))[0])
    behind = {name: [-x for x in ends] for name, ends in found.over_best.items()}
    longest = max(map(len, order))
    left = min(130.0, 14.0 + 5.6 * min(longest, 20))

    def paint(ax: Any) -> None:
        places = np.arange(len(order))[::-1]
        ax.axvline(0, color=MUTED, lw=0.7, ls=(0, (1, 2)), zorder=1)
        for place, name in zip(places, order, strict=True):
            mean, high, low = behind.get(name, [0.0, 0.0, 0.0])
            colour = FIRST if name in found.worse else INK
            if np.isfinite([low, high]).all() and name != found.best:
                ax.plot([low, high], [place, place], color=colour, lw=1.1, zorder=2)
            filled = colour if name in found.worse else "none"
            ax.plot([mean], [place], "o", ms=6, mfc=filled, mec=colour, mew=1.1, zorder=3)
        ax.set_ylim(-0.7, len(order) - 0.3)
        ax.set_yticks(places, [n if len(n) <= 20 else f"{n[:17]}..." for n in order])
        ax.tick_params(axis="y", length=0, labelcolor=INK)
        ax.spines["left"].set_visible(False)
        ax.locator_params(axis="x", nbins=5)
        ax.xaxis.set_major_formatter(lambda x, _: format_number(float(f"{x:.6g}")))
        ax.set_xlabel(f"{found.value} lost to the best", loc="right", color=MUTED)

    title = f"How far behind {found.best}"
    words = "; ".join(
        f"{name}: {format_number(behind[name][0])}" for name in order if name in behind
    )
    svg = draw_axes(
        "behind",
        title,
        f"{found.value} lost to the best choice, {found.best}. {words}.",
        paint,
        right=14.0,
        top=30.0,
        left=left,
        height=70.0 + _ROW * len(order),
    )
    caption = (
        "Paired differences to the best choice, each at its best numbers, with intervals of 95 % "
        "that hold for all rows tried at once. Filled: known to be worse, by the set of rows that "
        "cannot be told from the best."
    )
    return [Figure(svg, caption)]
