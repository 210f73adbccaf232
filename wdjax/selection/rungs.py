"""The rungs of a search by halving: who left, and what was known of them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


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
    control: int | None = None
    """One with more decay than the best here, that would have left and is trained to the end all
    the same: it shows whether the rung judged too early."""

    @property
    def left(self) -> dict[int, float]:
        """`{row: mean}` of those that went no further."""
        scored = zip(self.rows, self.means, strict=True)
        return {row: mean for row, mean in scored if row not in [*self.kept, self.control]}


def rows_left(rungs: Sequence[Rung]) -> dict[int, Rung]:
    """`{row: its last rung}` of the rows that left there without having diverged."""
    left = {row: (rung, mean) for rung in rungs for row, mean in rung.left.items()}
    return {row: rung for row, (rung, mean) in left.items() if math.isfinite(mean)}


def control_of(
    grid: Mapping[str, Any], means: np.ndarray, finite: np.ndarray, kept: list[int]
) -> int | None:
    """Of the rows that leave with the leader's numbers and more decay, the middle one."""
    if "strength" not in [*grid]:
        return None
    axes = {name: np.asarray(axis) for name, axis in grid.items()}
    leader = kept[int(np.argmin(means[kept]))]
    strength = axes.pop("strength")
    like = lambda row: all(axis[row] == axis[leader] for axis in axes.values())
    more = [row for row in finite.tolist() if strength[row] > strength[leader] and like(row)]
    gone = sorted(set(more) - set(kept), key=lambda row: strength[row])
    return gone[(len(gone) - 1) // 2] if gone else None


def control_is_better(losses: np.ndarray, means: np.ndarray, rungs: Sequence[Rung]) -> bool:
    """Whether the control ends below all that the rungs kept, by more than its paired error.

    `losses` are `[row, fold, seed]`, `means` `[row]`, not finite where a row has left.
    """
    control, ended = rungs[-1].control if rungs else None, np.isfinite(means)
    if control is None or not ended[control] or ended.sum() < 2:
        return False
    others = np.where(np.arange(len(means)) == control, np.inf, means)
    gains = (losses[int(np.argmin(others))] - losses[control]).mean(axis=1)
    return bool(gains.mean() > gains.std(ddof=1) / len(gains) ** 0.5)
