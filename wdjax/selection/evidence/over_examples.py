"""Intervals and the confident set from the losses of single examples."""

import numpy as np
from jaxtyping import ArrayLike, Bool

from wdjax.selection.evidence.gains import Gains, filled_gains, finite_rows, unbeaten_rows
from wdjax.selection.evidence.inputs import check_level, checked_axes, checked_fit, checked_groups
from wdjax.selection.evidence.intervals import interval
from wdjax.selection.evidence.over_folds import intervals_over_folds, low_over_folds
from wdjax.selection.evidence.quantiles import one_quantile
from wdjax.selection.evidence.slots import Slots, make_slots, means_in_folds, sums_of, weighted_gain


def gains_by_example(
    differences: ArrayLike,
    weights: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    level: float = 0.95,
) -> Gains:
    """Intervals for the gains of all rows at once: they hold together with probability `level`.

    With `d[row, i]` the differences averaged over the S seeds, W the sum of the weights, `gbar`
    the weighted mean of d, and G groups (or examples) in K folds:

        1. X_gr = sum over i in group g of w_i (d_ir - the weighted mean of d_r in its fold)
        2. v_r = phi G / (G - K) sum_g X_gr^2 / W^2,    kappa_r = sum_g X_gr^3 / W^3
        3. u_r = sum_k (W_k / W)^2 var_s(mean gain of fold k and seed s) / S,  nu = K (S - 1)
           for one run (S = 1, or u_r exactly 0): u_r = variance of fold means / K,  nu = K - 1
        4. V = v + u, for one run max(v, u)
        5. c: the `level` quantile of max_r |N(0, C)|, C_rr = 1,
           C_rq = G / (G - K) sum_g X_gr X_gq / (W^2 sqrt(V_r V_q))
        6. h = sqrt(T_{G-K}^2 v + T_nu^2 u), for one run the larger of the two terms;
           T_m = Student's quantile with m degrees of freedom at Phi(c);  s = h / c
        7. with gamma = kappa / s^3 and J(y) = 3 / gamma (cbrt(1 + gamma (y - gamma / 6)) - 1),
           [gbar - s max(c, J(c)), gbar + s max(c, -J(-c))]
        8. below 300 groups both ends, below 500 the upper one, reach at least as far as
           gbar +- t_{K-1}(1 - (1 - level) / (2 rows)) sqrt(var(fold means) (1/K + 1/(K-1)));
           groups count by their weights, as (sum_g W_g)^2 / sum_g W_g^2

    The examples' part (1, 2) is the variance of cross-validation's error around the fitted
    models' mean risk (Bayle et al. 2020); the runs' part (3) is what another initialisation and
    order of batches would change. Each variance enters with its own Student quantile (6: Banerjee
    1960), since the runs' has few degrees of freedom. Rows share the examples but not the runs,
    so covariances (5) come from the examples alone; their largest is bounded as by Lei 2020.
    Losses are skewed, so the interval is bent by Hall's (1992) transform, outwards only (7).
    Which training set it was shows in no variance within the folds (Bates et al. 2021): phi is 2
    at two folds or one, 1.25 at three, else 1, and 8 is Nadeau & Bengio's (2003) corrected t over
    folds. One run whose u is 0 has nothing but its fold means, as if there were one seed: copies
    of a run say no more than the run.

    A row with a difference that is not finite where the weight is > 0 is NaN and no part of the
    family. A row whose h is 0 (differences all the same, but not 0) or not finite cannot be told:
    `(-inf, inf)`. A row whose differences are all 0 is equal: `[0, 0]`. Folds without weight are
    left out. Where no fold holds two groups, the answer is that of `gains_over_folds`.

    Args:
      differences: `[row, fold, seed, example]`, the reference's loss minus the row's; the
        reference itself is none of the rows.
      weights: `[fold, example]`, >= 0; 0 where a slot holds no example.
      groups: `[fold, example]` integers, equal for examples that belong together (tokens of a
        sequence, rows of a patient); by default each example is its own group.
      level: of the intervals together, 0 < level < 1.

    Raises:
      ValueError: for shapes that do not fit, no row, a weight that is negative or not finite, no
        weight above 0, groups that are no integers or lie in two folds, a level outside (0, 1).

    Sources: Lei 2020, arXiv:1703.07904; Bayle et al. 2020, arXiv:2007.12671; Nadeau & Bengio
    2003; Banerjee 1960; Hall 1992; Bates et al. 2021, arXiv:2104.00673.
    """
    values, slots = checked(differences, weights, groups, level, "differences")
    finite = finite_rows(values)
    kept = values[finite]
    if finite.any() and slots.num_groups <= slots.num_folds:
        return intervals_over_folds(means_in_folds(values, slots).swapaxes(1, 2), level)
    low = high = np.empty(0)
    if finite.any():
        low, high = interval(sums_of(kept, slots), slots, num_seeds=values.shape[1], level=level)
    # The mean does not need the other moments, so it stands where no interval does.
    return filled_gains(finite, weighted_gain(kept, slots), low, high, "examples", level)


def confident_set(
    losses: ArrayLike,
    weights: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    level: float = 0.95,
) -> Bool[np.ndarray, " row"]:
    """The rows that cannot be told from the best: it is among them with probability `level`.

    Row r leaves if some row's gain over r has a one-sided lower bound above 0. The bounds are
    those of `gains_by_example` with r as the reference, simultaneous over the other rows: c is
    the `level` quantile of max_q N(0, C), without the absolute value, and the tail in step 8 is
    not halved. If r is the best, no gain over it is above 0, so r leaves with probability
    1 - level at most. The row of lowest mean never leaves; identical rows stay together; a
    diverged row is out.

    Args:
      losses: `[row, fold, seed, example]`, lower is better.
      weights: `[fold, example]`, >= 0; 0 where a slot holds no example.
      groups: `[fold, example]` integers, as for `gains_by_example`.
      level: 0.5 < level < 1.

    Raises:
      ValueError: as `gains_by_example`; if every row diverged; for a level of 0.5 or less, at
        which a one-sided bound lies above its estimate.

    Source: Lei 2020, Cross-validation with confidence, arXiv:1703.07904.
    """
    values, slots = checked(losses, weights, groups, level, "losses")
    if slots.num_groups <= slots.num_folds:
        return unbeaten_rows(means_in_folds(values, slots).swapaxes(1, 2), level, low_over_folds)

    def low(differences: np.ndarray, level: float) -> np.ndarray:
        sums = sums_of(differences, slots)
        return interval(sums, slots, num_seeds=values.shape[1], level=level, sides=1)[0]

    return unbeaten_rows(values, level, low, lambda rows: _clearly_beaten(rows, slots, level))


def _clearly_beaten(values: np.ndarray, slots: Slots, level: float) -> np.ndarray:
    """Rows that leave for their gap to the best mean alone, `[row]` of `[row, seed, slot]`.

    The quantile of the largest of R - 1 normals is at most that of Bonferroni, whatever their
    correlations; what lies apart by more, and by more than the draws' own error, leaves. It saves
    the draws of most rows.
    """
    best = int(np.argmin(weighted_gain(values, slots)))
    others = np.arange(len(values)) != best
    sums = sums_of(values[others] - values[best], slots)
    bound = one_quantile(1 - (1 - level) / (len(values) - 1), sides=1) + 0.1
    low, _ = interval(sums, slots, num_seeds=values.shape[1], level=level, sides=1, largest=bound)
    beaten = np.zeros(len(values), bool)
    beaten[others] = low > 0
    return beaten


def checked(
    values: ArrayLike, weights: ArrayLike, groups: ArrayLike | None, level: float, name: str
) -> tuple[np.ndarray, Slots]:
    """`values` as `[row, seed, slot]`, and the slots.

    Raises:
      ValueError: as `gains_by_example`.
    """
    check_level(level)
    array = checked_axes(name, values, ("row", "fold", "seed", "example"))
    rows, folds, seeds, examples = array.shape
    w = checked_fit("weights", weights, (folds, examples), f"`{name}` {array.shape}")
    of = None if groups is None else checked_groups(groups, (folds, examples))
    slots = make_slots(w, of)
    flat = array.swapaxes(1, 2).reshape(rows, seeds, folds * examples)
    return flat[:, :, slots.order], slots
