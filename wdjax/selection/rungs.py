"""The rungs of a search by halving: who left, and what was known of them."""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Rung(NamedTuple):
    """Where rows left a search by halving."""

    num_epochs: int
    """They were judged as a run of so many epochs ends."""
    branch: int
    """For the last so many of which they were on a side branch."""
    rows: list[int]
    """Which were judged."""
    means: list[float]
    """What they scored on the branch, over folds and seeds; NaN for one that diverged."""
    kept: list[int]
    """Which went on."""
    unclear: list[int]
    """Which left and yet could not be told from the best here."""

    @property
    def left(self) -> dict[int, float]:
        """`{row: mean}` of those that went no further."""
        scored = zip(self.rows, self.means, strict=True)
        return {row: mean for row, mean in scored if row not in self.kept}


def rows_left(rungs: Sequence[Rung]) -> dict[int, Rung]:
    """`{row: its last rung}` of the rows that left there without having diverged."""
    left = {row: (rung, mean) for rung in rungs for row, mean in rung.left.items()}
    return {row: rung for row, (rung, mean) in left.items() if math.isfinite(mean)}
