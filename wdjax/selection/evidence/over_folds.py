"""Intervals from fold means alone."""

import functools

import numpy as np
from jaxtyping import ArrayLike, Bool

from wdjax.selection.evidence.gains import Gains, filled_gains, finite_rows, unbeaten_rows
from wdjax.selection.evidence.inputs import check_level, checked_axes
from wdjax.selection.evidence.quantiles import student_of_tail
from wdjax.selection.evidence.slots import ROUNDING


def gains_over_folds(
    differences: ArrayLike, *, level: float = 0.95, overlap: float | None = None
) -> Gains:
    """Intervals from fold means alone, where no example-wise losses are to be had.

        mean_r +- t_{K-1}(1 - (1 - level) / (2 rows)) sqrt(s_r^2 (1/K + 1/(K-1)))

    with s_r^2 the variance (ddof 1) of the K fold means, each averaged over its seeds. The second
    term in the bracket is Nadeau & Bengio's correction for training sets that overlap; dividing
    by the rows (Bonferroni) makes the intervals hold together. They claim falsely less often
    than they may, and see less than those of `gains_by_example`. With one fold there is a mean
    and no interval: `method` is "none".

    Args:
      differences: `[row, fold, seed]`, the reference's score minus the row's where lower is
        better; the reference itself is none of the rows.
      level: of the intervals together, 0 < level < 1.
      overlap: held-out examples per training example, in place of 1 / (K - 1): of folds that hold
        an example out more than once (repeated or drawn at random), which are not independent.

    Raises:
      ValueError: for another number of axes, no row, no fold, no seed, a level outside (0, 1).

    Source: Nadeau & Bengio 2003, Inference for the generalization error.
    """
    check_level(level)
    values = checked_axes("differences", differences, ("row", "fold", "seed"))
    return intervals_over_folds(values, level, overlap)


def confident_set_over_folds(
    losses: ArrayLike, *, level: float = 0.95, overlap: float | None = None
) -> Bool[np.ndarray, " row"]:
    """The rows that cannot be told from the best, from fold means alone.

    As `confident_set`, by the bounds of `gains_over_folds`, one-sided. With one fold no row can
    be told from another, so all that did not diverge stay.

    Args:
      losses: `[row, fold, seed]`, lower is better.
      level: 0.5 < level < 1.
      overlap: as in `gains_over_folds`.

    Raises:
      ValueError: as `gains_over_folds`; if every row diverged; for a level of 0.5 or less.

    Sources: Lei 2020, arXiv:1703.07904; Nadeau & Bengio 2003.
    """
    check_level(level)
    low = functools.partial(low_over_folds, overlap=overlap)
    return unbeaten_rows(checked_axes("losses", losses, ("row", "fold", "seed")), level, low)


def intervals_over_folds(
    differences: np.ndarray, level: float, overlap: float | None = None
) -> Gains:
    """`gains_over_folds` of `[row, fold, seed]`."""
    finite = finite_rows(differences)
    kept = differences[finite]
    low, high = _ends_over_folds(kept, level, sides=2, overlap=overlap)
    method = "folds" if differences.shape[1] > 1 else "none"
    return filled_gains(finite, kept.mean(axis=(1, 2)), low, high, method, level)


def low_over_folds(
    differences: np.ndarray, level: float, overlap: float | None = None
) -> np.ndarray:
    """The lower ends alone, one-sided."""
    return _ends_over_folds(differences, level, sides=1, overlap=overlap)[0]


def _ends_over_folds(
    differences: np.ndarray, level: float, sides: int, overlap: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    rows, num_folds, _ = differences.shape
    mean, fold_means = differences.mean(axis=(1, 2)), differences.mean(axis=2)
    variance = fold_means.var(axis=1, ddof=1) if num_folds > 1 else np.full(rows, np.inf)
    half = fold_half_width(variance, num_folds, max(rows, 1), level, sides, overlap)
    told = np.isfinite(half) & (half > ROUNDING * np.abs(mean))
    identical = (differences == 0).all(axis=(1, 2)) & (num_folds > 1)
    half = np.where(identical, 0.0, np.where(told, half, np.inf))
    return mean - half, mean + half


def fold_half_width(
    variance: np.ndarray,
    num_folds: int,
    rows: int,
    level: float,
    sides: int,
    overlap: float | None = None,
) -> np.ndarray:
    """Nadeau & Bengio's half width for the variance of fold means, Bonferroni over the rows."""
    if num_folds < 2:
        return np.full_like(variance, np.inf)
    quantile = student_of_tail(num_folds - 1, (1 - level) / sides / rows)
    overlap = 1 / (num_folds - 1) if overlap is None else overlap
    return quantile * np.sqrt(variance * (1 / num_folds + overlap))
