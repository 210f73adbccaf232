"""What a search is told of its rows: gains with their intervals, and the rows left in the set."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Gains(NamedTuple):
    """Paired gains over a reference, positive where the row is better, with their intervals.

    A diverged row is NaN in all three. An interval of a row that cannot be told from anything
    is `(-inf, inf)`; of one whose losses are the reference's, `[0, 0]`.
    """

    mean: Float[np.ndarray, " row"]
    low: Float[np.ndarray, " row"]
    high: Float[np.ndarray, " row"]
    method: str
    """"examples" (both sources), "examples only" (a test part at one seed), "folds" (over folds
    alone), "none" (no interval)."""
    level: float


def filled_gains(
    finite: np.ndarray,
    mean: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    method: str,
    level: float,
) -> Gains:
    """Rows that diverged put back, as NaN."""
    full = np.full((3, len(finite)), np.nan)
    full[:, finite] = mean, low, high
    return Gains(full[0], full[1], full[2], method if finite.any() else "none", level)


def unbeaten_rows(
    losses: np.ndarray,
    level: float,
    low: Callable[[np.ndarray, float], np.ndarray],
    beaten: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Rows over which no other row's gain has a lower bound above 0; `losses[row, ...]`.

    Rows that are `beaten` for certain are not looked at again.

    Raises:
      ValueError: for a level of 0.5 or less, or if every row diverged.
    """
    if level <= 0.5:
        raise ValueError(
            f"`level` of a confident set must be above 0.5, got level={level}: at or below it a "
            "one-sided bound lies above its own estimate."
        )
    finite = finite_rows(losses)
    if not finite.any():
        raise ValueError(
            "every row of `losses` diverged (no finite row), so none is best: lower the learning "
            "rate or the largest strengths."
        )
    kept, rows = finite.copy(), losses[finite]
    if len(rows) > 1:
        lost = np.zeros(len(rows), bool) if beaten is None else beaten(rows)
        kept[finite] = ~lost
        for index, row in zip(np.nonzero(kept)[0], np.nonzero(~lost)[0], strict=True):
            gains = rows[row] - np.delete(rows, row, axis=0)
            kept[index] = not (low(gains, level) > 0).any()
    return kept


def finite_rows(values: np.ndarray) -> np.ndarray:
    """Rows without a number that is not finite."""
    return np.asarray(np.isfinite(values.reshape(len(values), -1)).all(axis=1))
