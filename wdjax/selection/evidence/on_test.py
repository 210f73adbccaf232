"""One gain, and one mean, on a test part that played no role in choosing."""

import math

import numpy as np
from jaxtyping import ArrayLike

from wdjax.selection.evidence.gains import Gains
from wdjax.selection.evidence.inputs import check_level, checked_axes, checked_fit, checked_groups
from wdjax.selection.evidence.intervals import bent, told_apart
from wdjax.selection.evidence.quantiles import one_quantile, student
from wdjax.selection.evidence.slots import Slots, make_slots, sums_of


def gain_on_test(
    differences: ArrayLike,
    weights: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    level: float = 0.95,
) -> Gains:
    """The interval of one gain on a test part that played no role in choosing.

        v = G / (G - 1) sum_g X_g^2 / W^2,   u = var_s(mean gain of seed s) / S
        h = sqrt(T_{G-1}^2 v + T_{S-1}^2 u),   T_m = Student's quantile at (1 + level) / 2

    bent by Hall's transform as in `gains_by_example`; nothing was chosen here, so nothing is
    corrected for. It holds which examples the test part has and which runs were made, for
    models of this training set. At one seed it holds the examples alone, and `method` says
    "examples only".

    Args:
      differences: `[seed, example]`, the reference's loss minus the chosen row's.
      weights: `[example]`, >= 0; 0 where a slot holds no example.
      groups: `[example]` integers, equal for examples that belong together.
      level: 0 < level < 1.

    Returns:
      `Gains` with a row axis of length 1.

    Raises:
      ValueError: for shapes that do not fit, a weight that is negative or not finite, no weight
        above 0, groups that are no integers, a level outside (0, 1).

    Sources: Banerjee 1960; Hall 1992.
    """
    check_level(level)
    values, slots = one_test_set(differences, weights, groups, "differences")
    if not np.isfinite(values).all():
        nothing = np.full(1, np.nan)
        return Gains(nothing, nothing, nothing, "none", level)
    num_seeds, num_groups = values.shape[1], slots.num_groups
    sums = sums_of(values, slots)
    v, u = sums.covariance[..., 0], sums.spread[..., 0] / num_seeds
    c = one_quantile(level, sides=2)
    h = np.sqrt(student(num_groups - 1, c) ** 2 * v + student(num_seeds - 1, c) ** 2 * u)
    low, high = bent(sums.gain, h, c, sums.third)
    low, high = told_apart(sums, h, low, high)
    return Gains(sums.gain, low, high, "examples" if num_seeds > 1 else "examples only", level)


def error_on_test(values: ArrayLike, weights: ArrayLike, groups: ArrayLike | None = None) -> float:
    """The standard error of one model's mean on a test part: its examples, and its runs.

        sqrt(G / (G - 1) sum_g X_g^2 / W^2 + var_s(mean of seed s) / S)

    For any score per example, 0/1 ones (accuracy) included. At one seed it holds the examples
    alone. It is 0 only where all values are the same, and NaN where a value is not finite or the
    values, not all the same, are of one group.

    Args:
      values: `[seed, example]`, a loss or a 0/1 score each.
      weights: `[example]`, >= 0; 0 where a slot holds no example.
      groups: `[example]` integers, equal for examples that belong together.

    Raises:
      ValueError: for shapes that do not fit, a weight that is negative or not finite, no weight
        above 0, groups that are no integers.
    """
    scores, slots = one_test_set(values, weights, groups, "values")
    if not np.isfinite(scores).all():
        return math.nan
    if (scores == scores.flat[0]).all():
        return 0.0
    sums = sums_of(scores, slots)
    return math.sqrt(sums.covariance.item() + sums.spread.item() / scores.shape[1])


def one_test_set(
    values: ArrayLike, weights: ArrayLike, groups: ArrayLike | None, name: str
) -> tuple[np.ndarray, Slots]:
    """One test part as one row and one fold."""
    array = checked_axes(name, values, ("seed", "example"))
    w = checked_fit("weights", weights, array.shape[1:], f"`{name}` {array.shape}")
    of = None if groups is None else checked_groups(groups, array.shape[1:])[None]
    slots = make_slots(w[None], of)
    return array[None][:, :, slots.order], slots
