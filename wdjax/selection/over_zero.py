"""What decay gains over no decay: at the same other numbers, and over the best row without it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from wdjax.selection.evidence import Gains, gains_by_example, gains_over_folds
from wdjax.selection.grids import row_of_zero
from wdjax.selection.judged import Judged, confident_rows, shared_parts
from wdjax.tables import format_number

LEVEL = 0.95
"""Of the intervals."""

ZEROS_LEFT_OUT = 0.01
"""The probability at which the best of several rows without decay may be missed; it is part of
the 5 % that the interval of a gain over that row may be wrong."""


class Gain(NamedTuple):
    """How much better than zero, paired: positive is better, with a simultaneous interval."""

    mean: float
    low: float
    high: float
    level: float
    num_rows: int
    """How many rows the interval holds for at once."""
    method: str
    """"examples": the error holds which examples were held out and which runs were made;
    "folds": of fold means alone; "none": there is no interval."""

    @property
    def verdict(self) -> str:
        """ "helps" if the interval lies above 0, "hurts" below, "equal" at 0, else "unclear"."""
        if self.low == self.high == 0:
            return "equal"
        return "helps" if self.low > 0 else "hurts" if self.high < 0 else "unclear"

    @property
    def interval(self) -> str:
        """`95 % interval 0.0012 to 0.0034`, or that there is none."""
        if not np.isfinite([self.low, self.high]).all():
            return f"no {self.level:.0%} interval".replace("%", " %")
        low, high = (format_number(float(f"{end:.2g}")) for end in (self.low, self.high))
        return f"{self.level * 100:g} % interval {low} to {high}"


def gains_over_zero(searches: Sequence[Judged]) -> list[dict[int, Gain]]:
    """Of each search, `{row: its gain}` over its row of strength 0; simultaneous over all.

    Rows without such a row, and the zero rows themselves, are left out; so are rows of which one
    of the two diverged. Rows that left before the end have no gain, but the intervals hold for
    them too: for m rows of n, those of level 1 - 0.05 m / n, since it was the scores that said
    which m.
    """
    pairs = [
        (which, row, zero)
        for which, search in enumerate(searches)
        for row in range(len(search.losses))
        if (zero := row_of_zero(search.grid, row)) not in (None, row)
        and np.isfinite(search.losses[[row, zero]]).all()
    ]
    found: list[dict[int, Gain]] = [{} for _ in searches]
    if not pairs:
        return found
    tried = len(pairs) + sum(
        row_of_zero(search.grid, row) not in (None, row)
        for search in searches
        for row in search.left
    )
    level = LEVEL if tried == len(pairs) else 1 - (1 - LEVEL) * len(pairs) / tried
    gains = gains_between([(searches[w], zero, row) for w, row, zero in pairs], level)
    for (which, row, _), mean, low, high in zip(pairs, *gains[:3], strict=True):
        found[which][row] = Gain(float(mean), float(low), float(high), LEVEL, tried, gains.method)
    return found


class OverBestZero(NamedTuple):
    """What the rows gain over the best of the rows without decay."""

    row: int | None
    """The row of strength 0 that scored best; None if there is none that did not diverge."""
    gains: dict[int, Gain]
    """Of each row with decay."""


def gains_over_best_zero(judged: Judged, num_searches: int = 1) -> OverBestZero:
    """What each row with decay gains over the best of all rows of strength 0.

        g_r = min over z of loss(z) - loss(r),  z the rows of strength 0

    This is what decay is worth to who would tune the other numbers without it: a learning rate
    that is the best one because of decay is not held against zero at that same rate. Which z is
    the best is not known, so the interval holds whichever of those it is that cannot be told from
    the best,

        [min over z in Z of low_rz, max over z in Z of high_rz]

    Z their confident set at level 0.99, and [low_rz, high_rz] the intervals over z, for all rows r
    at once, at level 0.96: as the best z is the same for every row and lies in Z but for 1 %, all
    rows' intervals hold together with 95 %. Over one row of strength 0 it is the interval of
    `gains_over_zero`.

    Args:
      judged: the search.
      num_searches: in how many searches intervals are to hold together (Bonferroni).
    """
    strengths = np.asarray(judged.grid["strength"]) if "strength" in judged.grid else np.empty(0)
    means = judged.means[: len(strengths)]
    zeros = np.flatnonzero((strengths == 0) & np.isfinite(means))
    rows = np.flatnonzero((strengths > 0) & np.isfinite(means))
    if not len(zeros):
        return OverBestZero(None, {})
    best = int(zeros[np.argmin(means[zeros])])
    if not len(rows):
        return OverBestZero(best, {})
    tried = len(rows) + sum(strengths[row] > 0 for row in judged.left)
    # Rows that left before the end are counted as in `gains_over_zero`.
    level, missed, inside = 1 - (1 - LEVEL) / num_searches, 0.0, zeros
    if len(zeros) > 1:
        missed = ZEROS_LEFT_OUT / num_searches
        (kept,) = confident_rows([judged.at(zeros.tolist())], 1 - missed)
        inside = np.union1d(zeros[list(kept)], [best])  # Folds of other sizes may leave it out.
    level = level + missed
    level = level if tried == len(rows) else 1 - (1 - level) * len(rows) / tried
    found = [gains_between([(judged, z, row) for row in rows], level) for z in inside]
    over_best = found[int(np.flatnonzero(inside == best)[0])].mean
    low = np.min([gains.low for gains in found], axis=0)
    high = np.max([gains.high for gains in found], axis=0)
    ends = zip(rows, over_best, low, high, strict=True)
    made = {
        int(row): Gain(float(m), float(a), float(b), LEVEL, int(tried), found[0].method)
        for row, m, a, b in ends
    }
    return OverBestZero(best, made)


def gains_between(pairs: Sequence[tuple[Judged, Any, Any]], level: float) -> Gains:
    """Of each `(search, reference row, row)`: by single examples if all searches have them."""
    searches = [search for search, _, _ in pairs]
    if all(search.each is not None for search in searches):
        held_out = shared_parts(searches)
        differences = np.stack([s.each[zero] - s.each[row] for s, zero, row in pairs])  # pyright: ignore[reportOptionalSubscript]
        return gains_by_example(differences, held_out.weights, held_out.groups, level=level)
    differences = np.stack([s.losses[zero] - s.losses[row] for s, zero, row in pairs])
    return gains_over_folds(differences, level=level, overlap=searches[0].overlap)
