"""The interval of a gain from its sums: steps 3 to 8 of `gains_by_example`."""

import numpy as np

from wdjax.selection.evidence.over_folds import fold_half_width
from wdjax.selection.evidence.quantiles import largest_quantile, student
from wdjax.selection.evidence.slots import ROUNDING, Slots, Sums


def interval(
    sums: Sums,
    slots: Slots,
    *,
    num_seeds: int,
    level: float,
    sides: int = 2,
    normals: np.ndarray | None = None,
    largest: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Steps 3 to 8: the lower and upper ends, `[..., row]`, simultaneous over the rows.

    `sides=1` makes the lower ends a one-sided bound; the upper ones are then infinite. `normals`,
    `[row, draw]`, stand in for the fixed ones; `largest` stands in for step 5's.
    """
    rows, num_folds, num_groups = sums.gain.shape[-1], slots.num_folds, slots.num_groups
    examples, runs, folds, one_run = variances(sums, slots, num_seeds)
    joined = lambda a, b: np.where(one_run, np.maximum(a, b), a + b)
    variance = joined(examples, runs)
    live = (variance > 0) & np.isfinite(variance)
    scale = np.where(live, 1 / np.sqrt(np.where(live, variance, 1.0)), 0.0)
    correlation = sums.covariance * scale[..., :, None] * scale[..., None, :]
    each = np.arange(rows)
    correlation[..., each, each] = live
    known = None if largest is None else np.asarray(largest)
    found = largest_quantile(correlation, level, sides, normals) if known is None else known
    c = found[..., None]
    of_runs = np.where(
        one_run, student(max(num_folds - 1, 1), c), student(num_folds * (num_seeds - 1), c)
    )
    h = np.sqrt(joined(student(num_groups - num_folds, c) ** 2 * examples, of_runs**2 * runs))
    low, high = bent(sums.gain, h, c, sums.third)
    half = fold_half_width(folds, num_folds, rows, level, sides)
    # Few heavy examples are few examples; the factor keeps 300 equal ones from rounding to less.
    effective = slots.num_effective * (1 + ROUNDING)
    if effective < 300:
        low = np.minimum(low, sums.gain - half)
    if effective < 500:
        high = np.maximum(high, sums.gain + half)
    low, high = told_apart(sums, h, low, high)
    return low, high if sides == 2 else np.full_like(high, np.inf)


def variances(
    sums: Sums, slots: Slots, num_seeds: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Step 3, `[..., row]`: v of the examples, u of the runs, the fold means' own variance, and
    whether there is nothing but these to tell u by."""
    num_folds, share = slots.num_folds, slots.fold_weights / slots.weights.sum()
    # Training sets differ between folds, but two or three folds do not show how much.
    examples = np.diagonal(sums.covariance, axis1=-2, axis2=-1)
    examples = examples * {1: 2.0, 2: 2.0, 3: 1.25}.get(num_folds, 1.0)
    folds = (
        sums.fold_means.var(axis=-1, ddof=1) if num_folds > 1 else np.full_like(examples, np.inf)
    )
    runs = sums.spread @ share**2 / num_seeds
    one_run = runs == 0
    runs = np.where(one_run, folds / num_folds, runs)
    return examples, runs, folds, one_run


def bent(
    gain: np.ndarray, h: np.ndarray, c: np.ndarray | float, third: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Step 7: Hall's transform, outwards only."""
    told = (h > 0) & np.isfinite(h)
    s = np.where(told, h, 1.0) / c
    gamma = np.where(told, third / s**3, 0.0)
    straight = np.abs(gamma) < 1e-6
    safe = np.where(straight, 1.0, gamma)

    def bend(y: np.ndarray | float) -> np.ndarray:
        return np.where(straight, y, 3 / safe * (np.cbrt(1 + safe * (y - safe / 6)) - 1))

    return gain - s * np.maximum(c, bend(c)), gain + s * np.maximum(c, -bend(-c))


def told_apart(
    sums: Sums, h: np.ndarray, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rows without a width cannot be told; rows whose differences are all 0 are equal."""
    told = np.isfinite(h) & (h > ROUNDING * np.abs(sums.gain))
    low, high = np.where(told, low, -np.inf), np.where(told, high, np.inf)
    return np.where(sums.identical, 0.0, low), np.where(sums.identical, 0.0, high)
