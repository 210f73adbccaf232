"""Whether the best strength moves with the learning rate, and the evidence."""

from typing import NamedTuple

import numpy as np

from wdjax.selection.judged import Judged, confident_rows
from wdjax.tables import format_number


class Movement(NamedTuple):
    """The best value of one axis of a grid at each value of another; prints as two sentences."""

    axis: str
    given: str
    at: tuple[float, ...]
    """The values of the other axis at which a run did not diverge."""
    best: tuple[float, ...]
    """The best value at each of them."""
    sets: tuple[tuple[float, ...], ...]
    """At each of them, the values that cannot be told from the best: all sets hold their best
    together with 95 %."""

    @property
    def common(self) -> tuple[float, ...]:
        """The values in every set: the best may be the same one of them throughout."""
        return tuple(sorted(set.intersection(*map(set, self.sets))))

    @property
    def moves(self) -> bool:
        """Whether the best value is known to move: no value is in every set."""
        return not self.common

    def __str__(self) -> str:
        axis, given = self.axis.replace("_", " "), self.given.replace("_", " ")
        pairs = zip(self.best, self.at, strict=True)
        named = ", ".join(f"{format_number(b)} at {format_number(a)}" for b, a in pairs)
        found = f"The best {axis} at each {given}: {named}."
        if self.moves:
            return f"{found} It moves with the {given}: none is in the 95 % set of every {given}."
        some = _listed(self.common)
        return (
            f"{found} Whether it moves with the {given} cannot be told: {some} in the 95 % set of "
            f"every {given}."
        )


def _listed(values: tuple[float, ...]) -> str:
    words = [format_number(value) for value in values]
    if len(words) > 3:
        return f"{len(words)} from {words[0]} to {words[-1]} are"
    return f"{' and '.join(words)} {'are' if len(words) > 1 else 'is'}"


def best_by(
    judged: Judged, axis: str = "strength", given: str = "learning_rate", level: float = 0.95
) -> Movement | None:
    """The best value of an axis at each value of another; None unless both have several values.

    It is None too for a search that did not train every pair to the end (`search_by_slopes`,
    `halve`): the best of the pairs that it went on with is not the best at that value.

    At each value of `given` the rows that cannot be told from the best of them are found as in
    `choose`, at level `1 - (1 - level) / m` for m values, so that the m sets hold their best rows
    together. If the best value of `axis` were the same everywhere, it would be in all of them: if
    none is, it moves. That it does not move is never known, only not told.
    """
    if not {axis, given} <= {*judged.grid}:
        return None
    values, column = (np.asarray(judged.grid[name]) for name in (axis, given))
    tried = len(np.unique(np.stack([values, column]), axis=1).T)
    if judged.left or 2 * tried < len(np.unique(values)) * len(np.unique(column)):
        return None
    at = [a for a in np.unique(column) if np.isfinite(judged.means[column == a]).any()]
    if len(at) < 2 or len(np.unique(values)) < 2:
        return None
    best, sets = [], []
    for one in at:
        rows = np.flatnonzero(column == one)
        part = judged.at(rows.tolist())
        (inside,) = confident_rows([part], 1 - (1 - level) / len(at))
        best.append(float(values[rows[np.argmin(part.means)]]))
        sets.append(tuple(np.unique(values[rows[list(inside)]]).tolist()))
    return Movement(axis, given, tuple(map(float, at)), tuple(best), tuple(sets))
