"""How sure a search may be of a gain: intervals for which examples and which run it was.

A gain is paired: the reference's loss minus a row's, positive where the row is better, averaged
over the held-out examples of all folds and over the seeds. It comes out differently with other
held-out examples and with other runs (fold x seed); the error here holds both sources. NumPy
alone, float64: no program is compiled.
"""

import functools
import math
import statistics
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Bool, Float

DRAWS = 20_000
"""Draws of the largest of correlated normals, from a fixed seed: the same data, the same answer."""

_NORMAL = statistics.NormalDist()

ROUNDING = 1e-12
"""What float64 sums may be off, relative to what is summed: nothing smaller is a variance."""


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


class Slots(NamedTuple):
    """Where the held-out examples that count stand, sorted by fold, then by group."""

    order: np.ndarray
    """Places in the flattened `[fold, example]`."""
    weights: np.ndarray
    """Of each example that counts, `[slot]`, > 0."""
    fold_starts: np.ndarray
    """First slot of each fold that holds a weight, `[fold]`."""
    group_starts: np.ndarray | None
    """First slot of each group; None where every example is its own."""

    @property
    def num_folds(self) -> int:
        """K: folds that hold a weight."""
        return len(self.fold_starts)

    @property
    def num_groups(self) -> int:
        """G: groups, or examples, that hold a weight."""
        return len(self.weights if self.group_starts is None else self.group_starts)

    @property
    def num_effective(self) -> float:
        """(sum_g W_g)^2 / sum_g W_g^2, W_g a group's weight: G where all weigh the same (Kish)."""
        w = self.weights
        if self.group_starts is not None:
            w = np.add.reduceat(w, self.group_starts)
        return float(w.sum() ** 2 / (w**2).sum())

    @property
    def fold_weights(self) -> np.ndarray:
        """W_k: the sum of each fold's weights."""
        return np.add.reduceat(self.weights, self.fold_starts)


class Sums(NamedTuple):
    """What an interval is made of. Axes before `row` are searches, each on its own."""

    gain: np.ndarray
    """Weighted mean of the differences, `[..., row]`."""
    fold_means: np.ndarray
    """The same within each fold, `[..., row, fold]`."""
    covariance: np.ndarray
    """Of the gains, from the examples alone, `[..., row, row]`: steps 2 and 5."""
    third: np.ndarray
    """kappa, the third moment of the gain's error, `[..., row]`: step 2."""
    spread: np.ndarray
    """Variance over the seeds of a fold's mean gain (ddof 1), `[..., row, fold]`; 0 at one."""
    identical: np.ndarray
    """Whether every difference is 0, `[..., row]`."""


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
    values, slots = _checked(differences, weights, groups, level, "differences")
    finite = _finite(values)
    kept = values[finite]
    if finite.any() and slots.num_groups <= slots.num_folds:
        return _over_folds(_fold_means(values, slots).swapaxes(1, 2), level)
    low = high = np.empty(0)
    if finite.any():
        low, high = interval(_sums(kept, slots), slots, num_seeds=values.shape[1], level=level)
    # The mean does not need the other moments, so it stands where no interval does.
    return _filled(finite, _gain(kept, slots), low, high, "examples", level)


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
    _check_level(level)
    values = _axes("differences", differences, ("row", "fold", "seed"))
    return _over_folds(values, level, overlap)


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
    values, slots = _checked(losses, weights, groups, level, "losses")
    if slots.num_groups <= slots.num_folds:
        return _kept(_fold_means(values, slots).swapaxes(1, 2), level, _low_over_folds)

    def low(differences: np.ndarray, level: float) -> np.ndarray:
        sums = _sums(differences, slots)
        return interval(sums, slots, num_seeds=values.shape[1], level=level, sides=1)[0]

    return _kept(values, level, low)


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
    _check_level(level)
    low = functools.partial(_low_over_folds, overlap=overlap)
    return _kept(_axes("losses", losses, ("row", "fold", "seed")), level, low)


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
    _check_level(level)
    values, slots = _one_part(differences, weights, groups, "differences")
    if not np.isfinite(values).all():
        nothing = np.full(1, np.nan)
        return Gains(nothing, nothing, nothing, "none", level)
    num_seeds, num_groups = values.shape[1], slots.num_groups
    sums = _sums(values, slots)
    v, u = sums.covariance[..., 0], sums.spread[..., 0] / num_seeds
    c = _one_quantile(level, sides=2)
    h = np.sqrt(student(num_groups - 1, c) ** 2 * v + student(num_seeds - 1, c) ** 2 * u)
    low, high = _bent(sums.gain, h, c, sums.third)
    low, high = _told(sums, h, low, high)
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
    scores, slots = _one_part(values, weights, groups, "values")
    if not np.isfinite(scores).all():
        return math.nan
    if (scores == scores.flat[0]).all():
        return 0.0
    sums = _sums(scores, slots)
    return math.sqrt(sums.covariance.item() + sums.spread.item() / scores.shape[1])


# The parts of the recipe. Axes before `row` are searches, so that a simulation does many at once.


def make_slots(weights: np.ndarray, groups: np.ndarray | None = None) -> Slots:
    """Sorts the examples that count, of `weights[fold, example]`, by fold, then by group.

    Raises:
      ValueError: for a weight that is negative or not finite, no weight above 0, a group that
        lies in two folds.
    """
    _check_weights(weights)
    (order,) = np.nonzero(weights.ravel() > 0)
    fold = order // weights.shape[1]
    group_starts = None
    if groups is not None:
        group = groups.ravel()[order]
        order = order[np.lexsort((group, fold))]
        fold, group = order // weights.shape[1], groups.ravel()[order]
        new = np.r_[True, (np.diff(group) != 0) | (np.diff(fold) != 0)]
        (group_starts,) = np.nonzero(new)
        names, counts = np.unique(group[new], return_counts=True)
        if (counts > 1).any():
            name = names[counts > 1][0]
            raise ValueError(
                f"each group must lie within one fold, but group {name} of `groups` is in folds "
                f"{sorted(set(fold[group == name].tolist()))}: its examples would be trained on "
                "and judged by at once. Make the folds by group (`folds_from_splits` takes those "
                "of scikit-learn's GroupKFold)."
            )
    (fold_starts,) = np.nonzero(np.r_[True, np.diff(fold) != 0])
    return Slots(order, weights.ravel()[order], fold_starts, group_starts)


def spread_over_seeds(values: np.ndarray, slots: Slots) -> np.ndarray:
    """Variance (ddof 1) over the seeds of each fold's mean, `[row, fold]`, of `[row, seed, slot]`.

    Step 3. It is 0 at one seed, and where the seeds differ by no more than float64 rounds.
    """
    if values.shape[1] == 1:
        return np.zeros((len(values), slots.num_folds))
    means = _fold_means(values, slots)
    scale = np.abs(means).max(axis=(1, 2), initial=0.0)[:, None]
    spread = means.var(axis=1, ddof=1)
    return np.where(spread > (ROUNDING * scale) ** 2, spread, 0.0)


def sums_over_examples(d: np.ndarray, slots: Slots, spread: np.ndarray) -> Sums:
    """Steps 1 and 2, of differences `d[..., row, slot]` averaged over the seeds; phi comes later.

    `spread` is that of `spread_over_seeds`, and is passed on.
    """
    w, num_groups, num_folds = slots.weights, slots.num_groups, slots.num_folds
    total = w.sum()
    fold_means = _fold_means(d, slots)
    gain = fold_means @ (slots.fold_weights / total)
    sizes = np.diff(np.r_[slots.fold_starts, len(w)])
    x = w * (d - np.repeat(fold_means, sizes, axis=-1))
    if slots.group_starts is not None:
        x = np.add.reduceat(x, slots.group_starts, axis=-1)
    factor = num_groups / (num_groups - num_folds) if num_groups > num_folds else np.nan
    covariance = factor * (x @ x.swapaxes(-1, -2)) / total**2
    third = np.einsum("...g,...g,...g->...", x, x, x) / total**3
    identical = (d == 0).all(axis=-1) & (spread == 0).all(axis=-1)
    return Sums(gain, fold_means, covariance, third, spread, identical)


def interval(
    sums: Sums,
    slots: Slots,
    *,
    num_seeds: int,
    level: float,
    sides: int = 2,
    normals: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Steps 3 to 8: the lower and upper ends, `[..., row]`, simultaneous over the rows.

    `sides=1` makes the lower ends a one-sided bound; the upper ones are then infinite. `normals`,
    `[row, draw]`, stand in for the fixed ones.
    """
    rows, num_folds, num_groups = sums.gain.shape[-1], slots.num_folds, slots.num_groups
    share = slots.fold_weights / slots.weights.sum()
    # Training sets differ between folds, but two or three folds do not show how much.
    examples = np.diagonal(sums.covariance, axis1=-2, axis2=-1)
    examples = examples * {1: 2.0, 2: 2.0, 3: 1.25}.get(num_folds, 1.0)
    folds = (
        sums.fold_means.var(axis=-1, ddof=1) if num_folds > 1 else np.full_like(examples, np.inf)
    )
    runs = sums.spread @ share**2 / num_seeds
    one_run = runs == 0
    runs = np.where(one_run, folds / num_folds, runs)
    joined = lambda a, b: np.where(one_run, np.maximum(a, b), a + b)
    variance = joined(examples, runs)
    live = (variance > 0) & np.isfinite(variance)
    scale = np.where(live, 1 / np.sqrt(np.where(live, variance, 1.0)), 0.0)
    correlation = sums.covariance * scale[..., :, None] * scale[..., None, :]
    each = np.arange(rows)
    correlation[..., each, each] = live
    c = largest_quantile(correlation, level, sides, normals)[..., None]
    of_runs = np.where(
        one_run, student(max(num_folds - 1, 1), c), student(num_folds * (num_seeds - 1), c)
    )
    h = np.sqrt(joined(student(num_groups - num_folds, c) ** 2 * examples, of_runs**2 * runs))
    low, high = _bent(sums.gain, h, c, sums.third)
    half = _fold_half_width(folds, num_folds, rows, level, sides)
    # Few heavy examples are few examples; the factor keeps 300 equal ones from rounding to less.
    effective = slots.num_effective * (1 + ROUNDING)
    if effective < 300:
        low = np.minimum(low, sums.gain - half)
    if effective < 500:
        high = np.maximum(high, sums.gain + half)
    low, high = _told(sums, h, low, high)
    return low, high if sides == 2 else np.full_like(high, np.inf)


def largest_quantile(
    correlation: np.ndarray, level: float, sides: int, normals: np.ndarray | None = None
) -> np.ndarray:
    """Step 5: the `level` quantile of the largest of correlated normals, `[...]`.

    Of `max_r |N(0, C)|`, or of `max_r N(0, C)` if `sides` is 1, for `correlation[..., row, row]`;
    a row whose diagonal is 0 takes no part. For one row it is the normal quantile itself, and it
    is never below that.
    """
    one = _one_quantile(level, sides)
    rows = correlation.shape[-1]
    matrices = correlation.reshape(-1, rows, rows)
    found = np.full(len(matrices), one)
    if rows > 1:
        normals = _normals(rows) if normals is None else normals
        draws = normals.shape[1]
        place = min(int(level * draws), draws - 1)
        # Rows that are copies make the matrix singular: a jitter far below the draws' own error.
        factors = np.linalg.cholesky(matrices + 1e-9 * np.eye(rows))
        for i, factor in enumerate(factors.astype(normals.dtype)):
            drawn = factor @ normals
            largest = (np.abs(drawn) if sides == 2 else drawn).max(axis=0)
            found[i] = max(one, np.partition(largest, place)[place])
    return found.reshape(correlation.shape[:-2])


def student(freedom: int, c: np.ndarray | float) -> np.ndarray:
    """Step 6: Student's quantile with `freedom` degrees at Phi(c), c >= 0; 0 where there is none.

    Written here, to 9 digits, since importing scipy for it takes longer than all the rest.
    """
    c = np.asarray(c, np.float64)
    if freedom < 1:
        # Without a degree of freedom the variance beside it is 0 (one seed), or not a number.
        return np.zeros(c.shape)
    different, place = np.unique(c, return_inverse=True)
    tails = np.array([math.erfc(one / math.sqrt(2)) / 2 for one in different.tolist()])
    return student_of_tail(freedom, tails)[place.ravel()].reshape(c.shape)


def student_of_tail(freedom: int, tail: np.ndarray | float) -> np.ndarray:
    """Student's quantile that leaves `tail` <= 1/2 above it.

    Up to 1,000 degrees by bisection of the finite sums, beyond by the expansion in 1 / freedom.

    Source: Abramowitz & Stegun 1964, 26.7.3, 26.7.4 and 26.7.5.
    """
    tail = np.atleast_1d(np.asarray(tail, np.float64))
    if freedom > 1000:
        x = np.array([-_NORMAL.inv_cdf(one) for one in tail.tolist()])
        return (
            x
            + (x**3 + x) / (4 * freedom)
            + (5 * x**5 + 16 * x**3 + 3 * x) / (96 * freedom**2)
            + (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / (384 * freedom**3)
        )
    odd = freedom % 2
    j = np.arange(1, (freedom - odd) // 2)
    terms = np.cumprod(np.r_[1.0, (2 * j - 1 + odd) / (2 * j + odd)])
    powers = 2 * np.arange(len(terms)) + odd

    def above(angle: np.ndarray) -> np.ndarray:
        """The share above t = sqrt(freedom) tan(angle)."""
        inside = np.sin(angle) * (np.cos(angle)[:, None] ** powers @ terms)
        if odd:
            inside = 2 / math.pi * (angle + (inside if freedom > 1 else 0))
        return (1 - inside) / 2

    low, high = np.zeros(tail.shape), np.full(tail.shape, math.pi / 2)
    for _ in range(56):
        middle = (low + high) / 2
        low, high = np.where(above(middle) > tail, (middle, high), (low, middle))
    return math.sqrt(freedom) * np.tan(low)


def _sums(values: np.ndarray, slots: Slots) -> Sums:
    """The sums of `[row, seed, slot]`."""
    sums = sums_over_examples(values.mean(axis=1), slots, spread_over_seeds(values, slots))
    # Differences that cancel over the seeds are not those of identical losses.
    return sums._replace(identical=(values == 0).all(axis=(1, 2)))


def _bent(
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


def _told(
    sums: Sums, h: np.ndarray, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rows without a width cannot be told; rows whose differences are all 0 are equal."""
    told = np.isfinite(h) & (h > ROUNDING * np.abs(sums.gain))
    low, high = np.where(told, low, -np.inf), np.where(told, high, np.inf)
    return np.where(sums.identical, 0.0, low), np.where(sums.identical, 0.0, high)


def _fold_half_width(
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


def _over_folds(differences: np.ndarray, level: float, overlap: float | None = None) -> Gains:
    """`gains_over_folds` of `[row, fold, seed]`."""
    finite = _finite(differences)
    kept = differences[finite]
    low, high = _ends_over_folds(kept, level, sides=2, overlap=overlap)
    method = "folds" if differences.shape[1] > 1 else "none"
    return _filled(finite, kept.mean(axis=(1, 2)), low, high, method, level)


def _ends_over_folds(
    differences: np.ndarray, level: float, sides: int, overlap: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    rows, num_folds, _ = differences.shape
    mean, fold_means = differences.mean(axis=(1, 2)), differences.mean(axis=2)
    variance = fold_means.var(axis=1, ddof=1) if num_folds > 1 else np.full(rows, np.inf)
    half = _fold_half_width(variance, num_folds, max(rows, 1), level, sides, overlap)
    told = np.isfinite(half) & (half > ROUNDING * np.abs(mean))
    identical = (differences == 0).all(axis=(1, 2)) & (num_folds > 1)
    half = np.where(identical, 0.0, np.where(told, half, np.inf))
    return mean - half, mean + half


def _low_over_folds(
    differences: np.ndarray, level: float, overlap: float | None = None
) -> np.ndarray:
    return _ends_over_folds(differences, level, sides=1, overlap=overlap)[0]


def _kept(
    losses: np.ndarray, level: float, low: Callable[[np.ndarray, float], np.ndarray]
) -> np.ndarray:
    """Rows over which no other row's gain has a lower bound above 0; `losses[row, ...]`."""
    if level <= 0.5:
        raise ValueError(
            f"`level` of a confident set must be above 0.5, got level={level}: at or below it a "
            "one-sided bound lies above its own estimate."
        )
    finite = _finite(losses)
    if not finite.any():
        raise ValueError(
            "every row of `losses` diverged (no finite row), so none is best: lower the learning "
            "rate or the largest strengths."
        )
    kept, rows = finite.copy(), losses[finite]
    if len(rows) > 1:
        for index, row in zip(np.nonzero(finite)[0], range(len(rows)), strict=True):
            gains = rows[row] - np.delete(rows, row, axis=0)
            kept[index] = not (low(gains, level) > 0).any()
    return kept


def _finite(values: np.ndarray) -> np.ndarray:
    """Rows without a number that is not finite."""
    return np.asarray(np.isfinite(values.reshape(len(values), -1)).all(axis=1))


def _gain(values: np.ndarray, slots: Slots) -> np.ndarray:
    """Weighted mean over slots, mean over seeds, of `[row, seed, slot]`."""
    return values.mean(axis=1) @ (slots.weights / slots.weights.sum())


def _fold_means(d: np.ndarray, slots: Slots) -> np.ndarray:
    """Weighted means within the folds, `[..., fold]` of `[..., slot]`."""
    return np.add.reduceat(slots.weights * d, slots.fold_starts, axis=-1) / slots.fold_weights


def _filled(
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


@functools.lru_cache(maxsize=4)
def _normals(rows: int) -> np.ndarray:
    # float32: its rounding is far below the draws' own error, and it takes half the time.
    drawn = np.random.default_rng(0).standard_normal((rows, DRAWS), np.float32)
    drawn.flags.writeable = False
    return drawn


def _one_quantile(level: float, sides: int) -> float:
    return _NORMAL.inv_cdf(1 - (1 - level) / sides)


def _checked(
    values: ArrayLike, weights: ArrayLike, groups: ArrayLike | None, level: float, name: str
) -> tuple[np.ndarray, Slots]:
    """`values` as `[row, seed, slot]`, and the slots."""
    _check_level(level)
    array = _axes(name, values, ("row", "fold", "seed", "example"))
    rows, folds, seeds, examples = array.shape
    w = _fits("weights", weights, (folds, examples), f"`{name}` {array.shape}")
    of = None if groups is None else _integers(groups, (folds, examples))
    slots = make_slots(w, of)
    flat = array.swapaxes(1, 2).reshape(rows, seeds, folds * examples)
    return flat[:, :, slots.order], slots


def _one_part(
    values: ArrayLike, weights: ArrayLike, groups: ArrayLike | None, name: str
) -> tuple[np.ndarray, Slots]:
    """One test part as one row and one fold."""
    array = _axes(name, values, ("seed", "example"))
    w = _fits("weights", weights, array.shape[1:], f"`{name}` {array.shape}")
    of = None if groups is None else _integers(groups, array.shape[1:])[None]
    slots = make_slots(w[None], of)
    return array[None][:, :, slots.order], slots


def _axes(name: str, values: ArrayLike, axes: tuple[str, ...]) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim != len(axes) or 0 in array.shape:
        raise ValueError(
            f"`{name}` must be [{', '.join(axes)}] with at least one of each, got shape "
            f"{array.shape}."
        )
    return array


def _fits(name: str, values: ArrayLike, shape: tuple[int, ...], beside: str) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.shape != shape:
        raise ValueError(f"`{name}` must have shape {shape} to fit {beside}, got {array.shape}.")
    return array


def _integers(groups: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(groups)
    if array.shape != shape or array.dtype.kind not in "iu":
        raise ValueError(
            f"`groups` must be integers of shape {shape}, like `weights`, got {array.dtype} of "
            f"shape {array.shape}."
        )
    return array


def _check_weights(weights: np.ndarray) -> None:
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        wrong = weights[~(np.isfinite(weights) & (weights >= 0))][0]
        raise ValueError(f"`weights` must be finite and >= 0, got {wrong}; 0 leaves a slot out.")
    if not (weights > 0).any():
        raise ValueError("`weights` are all 0: no held-out example counts, so no gain can be told.")


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"`level` must lie between 0 and 1, got level={level}; 0.95 is usual.")
