"""Intervals for gains: the recipe against plain loops, closed cases, branches, refusals."""

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import optimize, stats

from wdjax.selection import evidence
from wdjax.selection.evidence import over_examples

RNG = np.random.default_rng(0)


# The recipe, written once more from its formulas: loops over rows, folds, seeds and examples.


def plain_moments(differences, weights, groups):
    """Steps 1 to 3: v, kappa, u, its degrees, the gain, G, K, the fold means, and X[row][group]."""
    rows, folds, seeds, examples = differences.shape
    total = sum(weights[k, i] for k in range(folds) for i in range(examples))
    names = sorted(
        {(k, groups[k, i]) for k in range(folds) for i in range(examples) if weights[k, i] > 0}
    )
    g, k_used = len(names), len({k for k, _ in names})
    phi = 2.0 if k_used <= 2 else 1.25 if k_used == 3 else 1.0
    found = []
    for r in range(rows):
        x = dict.fromkeys(names, 0.0)
        fold_means, runs, gain = [], 0.0, 0.0
        for k in range(folds):
            live = [i for i in range(examples) if weights[k, i] > 0]
            if not live:
                continue
            fold_weight = sum(weights[k, i] for i in live)
            by_seed = [
                sum(weights[k, i] * differences[r, k, s, i] for i in live) / fold_weight
                for s in range(seeds)
            ]
            mean = sum(by_seed) / seeds
            fold_means.append(mean)
            gain += fold_weight / total * mean
            if seeds > 1:
                spread = sum((m - mean) ** 2 for m in by_seed) / (seeds - 1)
                runs += (fold_weight / total) ** 2 * spread / seeds
            for i in live:
                d = sum(differences[r, k, s, i] for s in range(seeds)) / seeds
                x[k, groups[k, i]] += weights[k, i] * (d - mean)
        v = phi * g / (g - k_used) * sum(a**2 for a in x.values()) / total**2
        kappa = sum(a**3 for a in x.values()) / total**3
        one_run = seeds == 1 or runs == 0
        u = np.var(fold_means, ddof=1) / k_used if one_run else runs
        nu = k_used - 1 if one_run else k_used * (seeds - 1)
        found.append((gain, v, kappa, u, nu, one_run, fold_means, [x[n] for n in names]))
    return found, g, k_used, total


def plain_quantile(correlation, level, sides):
    """The quantile of the largest by integrating the normal density over a box."""
    rows = len(correlation)
    if rows == 1:
        return stats.norm.ppf(level if sides == 1 else (1 + level) / 2)
    normal = stats.multivariate_normal(np.zeros(rows), correlation, allow_singular=True, seed=0)

    def missing(c):
        low = np.full(rows, -c if sides == 2 else -np.inf)
        return normal.cdf(np.full(rows, c), lower_limit=low) - level

    return optimize.brentq(missing, 1.0, 6.0, xtol=1e-4)


def plain_interval(differences, weights, groups=None, level=0.95, sides=2):
    """Steps 4 to 8."""
    folds, examples = weights.shape
    if groups is None:
        groups = np.arange(folds * examples).reshape(folds, examples)
    found, g, k, total = plain_moments(differences, weights, groups)
    rows = len(found)
    variance = [max(v, u) if one else v + u for _, v, _, u, _, one, *_ in found]
    correlation = np.eye(rows)
    for r in range(rows):
        for q in range(rows):
            if r != q:
                shared = sum(a * b for a, b in zip(found[r][-1], found[q][-1], strict=True))
                scale = total**2 * math.sqrt(variance[r] * variance[q])
                correlation[r, q] = g / (g - k) * shared / scale
    c = plain_quantile(correlation, level, sides)
    heavy = {}
    for fold in range(folds):
        for i in range(examples):
            name = (fold, groups[fold, i])
            heavy[name] = heavy.get(name, 0) + weights[fold, i]
    counted = total**2 / sum(w**2 for w in heavy.values())
    ends = []
    for gain, v, kappa, u, nu, one, fold_means, _ in found:
        a = stats.t.ppf(stats.norm.cdf(c), g - k) ** 2 * v
        b = stats.t.ppf(stats.norm.cdf(c), nu) ** 2 * u
        s = math.sqrt(max(a, b) if one else a + b) / c
        gamma = kappa / s**3

        def j(y, gamma=gamma):
            if abs(gamma) < 1e-6:
                return y
            inside = 1 + gamma * (y - gamma / 6)
            return 3 / gamma * (math.copysign(abs(inside) ** (1 / 3), inside) - 1)

        low, high = gain - s * max(c, j(c)), gain + s * max(c, -j(-c))
        width = stats.t.ppf(1 - (1 - level) / sides / rows, k - 1)
        width *= math.sqrt(np.var(fold_means, ddof=1) * (1 / k + 1 / (k - 1)))
        if counted < 300 - 1e-6:
            low = min(low, gain - width)
        if counted < 500 - 1e-6:
            high = max(high, gain + width)
        ends.append((gain, low, high))
    return np.array(ends).T


def drawn(rows, folds, seeds, examples, skewed=False, shared=0.5):
    """Differences with an example's part, a run's part and the noise of a run on an example."""
    draw = RNG.standard_gamma if skewed else None
    part = lambda *shape: draw(0.2, shape) if draw else RNG.standard_normal(shape)
    by_example = shared * part(1, folds, 1, examples) + part(rows, folds, 1, examples)
    runs = 0.2 * RNG.standard_normal((rows, folds, seeds, 1))
    return by_example + runs + 0.5 * RNG.standard_normal((rows, folds, seeds, examples))


def holes(folds, examples, unequal):
    """Weights with empty slots, as a shorter fold has them."""
    weights = RNG.uniform(0.2, 3, (folds, examples)) if unequal else np.ones((folds, examples))
    weights[1:, -1] = 0
    weights[-1, 0] = 0
    return weights


CASES = {
    "plain": dict(),
    "two folds": dict(folds=2, examples=170),
    "three folds": dict(folds=3, examples=110),
    "one seed": dict(seeds=1),
    "one seed, two folds": dict(seeds=1, folds=2, examples=200),
    "weights": dict(unequal=True),
    "skewed": dict(skewed=True),
    "skewed, weights, one seed": dict(skewed=True, unequal=True, seeds=1),
    "few examples": dict(examples=20),
    "some examples": dict(examples=80, skewed=True),
    "groups": dict(grouped=True, examples=90),
    "groups, weights, skewed": dict(grouped=True, examples=90, unequal=True, skewed=True),
    "another level": dict(level=0.8),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rows", [1, 3])
def test_an_interval_is_that_of_the_formulas_in_plain_loops(case, rows):
    """To rounding with one row. With more, the largest of correlated normals is drawn 20,000
    times here and integrated there, which moves an end by less than 2 % of its distance."""
    told = dict(folds=5, seeds=3, examples=102, unequal=False, grouped=False, level=0.95)
    told |= dict(skewed=False) | CASES[case]
    differences = drawn(rows, told["folds"], told["seeds"], told["examples"], told["skewed"])
    weights = holes(told["folds"], told["examples"], told["unequal"])
    groups = None
    if told["grouped"]:
        groups = RNG.integers(0, 30, weights.shape) + 100 * np.arange(told["folds"])[:, None]
    found = evidence.gains_by_example(differences, weights, groups, level=told["level"])
    mean, low, high = plain_interval(differences, weights, groups, told["level"])
    assert found.method == "examples" and found.level == told["level"]
    np.testing.assert_allclose(found.mean, mean, rtol=1e-9)
    exact = rows == 1
    np.testing.assert_allclose(found.mean - found.low, mean - low, rtol=1e-9 if exact else 0.02)
    np.testing.assert_allclose(found.high - found.mean, high - mean, rtol=1e-9 if exact else 0.02)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 8, 10, 39, 40, 295, 1000, 1001, 2995, 10**6])
def test_students_quantile_is_scipys(freedom):
    """And, at Phi(c), that of the same tail as the normal's c."""
    tails = np.array([0.5, 0.3, 0.05, 0.025, 0.025 / 39, 1e-6])
    found = evidence.student_of_tail(freedom, tails)
    np.testing.assert_allclose(found, stats.t.isf(tails, freedom), rtol=1e-9, atol=1e-9)
    c = np.array([[0.5], [1.96], [3.4]])
    expected = stats.t.isf(stats.norm.sf(c), freedom)
    np.testing.assert_allclose(evidence.student(freedom, c), expected, rtol=1e-9)


def test_the_evidence_needs_no_scipy():
    """Importing it takes longer than a verdict."""
    code = "import sys, wdjax.selection.evidence as e, numpy as np; "
    code += "e.gains_by_example(np.ones((2, 3, 2, 9)), np.ones((3, 9))); "
    code += "sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_quantile_of_the_largest_is_that_of_independent_and_of_equal_rows():
    """Independent: the probability is that of one row to the power of their number."""
    independent = evidence.largest_quantile(np.eye(13), 0.95, 2)
    assert independent == pytest.approx(stats.norm.ppf((1 + 0.95 ** (1 / 13)) / 2), abs=0.03)
    one_sided = evidence.largest_quantile(np.eye(13), 0.95, 1)
    assert one_sided == pytest.approx(stats.norm.ppf(0.95 ** (1 / 13)), abs=0.03)
    equal = evidence.largest_quantile(np.ones((13, 13)), 0.95, 2)
    assert equal == pytest.approx(stats.norm.ppf(0.975), abs=0.03)


def test_many_examples_of_one_pair_at_many_runs_give_the_normal_interval():
    """Gaussian differences: gamma goes to 0 and both Student quantiles to the normal one, so the
    interval is gain +- 1.96 sqrt(v + u), written here by the plain sample variances."""
    d = RNG.standard_normal((1, 10, 40, 2000)) + 0.1 * RNG.standard_normal((1, 10, 40, 1))
    found = evidence.gains_by_example(d, np.ones((10, 2000)))
    v = np.mean(d.mean(axis=2)[0].var(axis=1, ddof=1)) / 20_000
    u = np.mean(d.mean(axis=3)[0].var(axis=1, ddof=1)) / 400
    half = 1.959964 * math.sqrt(v + u)
    np.testing.assert_allclose(found.high - found.mean, half, rtol=0.01)
    np.testing.assert_allclose(found.mean - found.low, half, rtol=0.01)


def test_the_bend_vanishes_with_the_skewness_and_only_widens():
    """As gamma goes to 0, J(y) = y - gamma (y^2 - 1/2) / 3 + ...: the ends tend to the straight."""
    straight = evidence.bent(np.zeros(1), np.full(1, 2.0), 2.0, np.zeros(1))
    np.testing.assert_array_equal(straight, [[-2.0], [2.0]])
    near = evidence.bent(np.zeros(1), np.full(1, 2.0), 2.0, np.full(1, 2e-6))
    np.testing.assert_allclose(near, [[-2.0], [2.0]], atol=1e-5)
    right = evidence.bent(np.zeros(1), np.full(1, 2.0), 2.0, np.full(1, 0.5))
    left = evidence.bent(np.zeros(1), np.full(1, 2.0), 2.0, np.full(1, -0.5))
    assert right[0] == -2.0 and right[1] > 2.0
    np.testing.assert_allclose(left[0], -right[1])
    np.testing.assert_allclose(left[1], -right[0])


@pytest.mark.parametrize("seeds", [1, 3])
def test_turned_around_a_gain_is_its_negative(seeds):
    d, weights = drawn(4, 5, seeds, 120, skewed=True), np.ones((5, 120))
    here, there = (evidence.gains_by_example(sign * d, weights) for sign in (1, -1))
    np.testing.assert_allclose(here.mean, -there.mean)
    np.testing.assert_allclose(here.low, -there.high)
    np.testing.assert_allclose(here.high, -there.low)


def test_turned_around_below_500_groups_only_the_upper_end_differs():
    """Step 8 widens the upper end up to 500 groups, the lower up to 300: not symmetric."""
    d, weights = drawn(2, 5, 3, 80, skewed=True), np.ones((5, 80))
    here, there = (evidence.gains_by_example(sign * d, weights) for sign in (1, -1))
    np.testing.assert_allclose(here.mean, -there.mean)
    assert (here.high >= -there.low).all() and (here.high > -there.low).any()


@pytest.mark.parametrize("factor", [1e-9, 1e6])
def test_an_interval_scales_with_the_losses_and_not_with_the_weights(factor):
    d, weights = drawn(3, 5, 3, 60, skewed=True), holes(5, 60, unequal=True)
    one = evidence.gains_by_example(d, weights)
    np.testing.assert_allclose(
        evidence.gains_by_example(factor * d, weights)[:3], factor * np.array(one[:3]), rtol=1e-8
    )
    np.testing.assert_allclose(
        evidence.gains_by_example(d, factor * weights)[:3], one[:3], rtol=1e-8
    )


def test_a_weight_of_two_is_the_example_twice_in_one_group():
    d, weights = drawn(2, 5, 3, 70), np.ones((5, 70))
    weights[:, ::3] = 2
    twice = np.concatenate([d, d[..., ::3]], axis=-1)
    place = np.r_[np.arange(70), np.arange(0, 70, 3)]
    groups = place + 70 * np.arange(5)[:, None]
    one = evidence.gains_by_example(d, weights)
    two = evidence.gains_by_example(twice, np.ones((5, len(place))), groups)
    np.testing.assert_allclose(one[:3], two[:3], rtol=1e-9)


def test_names_and_order_of_groups_and_examples_do_not_matter():
    d, weights = drawn(2, 5, 3, 60, skewed=True), holes(5, 60, unequal=True)
    groups = RNG.integers(0, 20, (5, 60)) + 100 * np.arange(5)[:, None]
    one = evidence.gains_by_example(d, weights, groups)
    named = evidence.gains_by_example(d, weights, -7 * groups)
    place = RNG.permutation(60)
    moved = evidence.gains_by_example(d[..., place], weights[:, place], groups[:, place])
    np.testing.assert_allclose(one[:3], named[:3], rtol=1e-9)
    np.testing.assert_allclose(one[:3], moved[:3], rtol=1e-9)
    alone = evidence.gains_by_example(d, weights, np.arange(300).reshape(5, 60))
    np.testing.assert_allclose(alone[:3], evidence.gains_by_example(d, weights)[:3], rtol=1e-9)


def test_what_stands_in_a_slot_of_weight_0_is_not_read():
    d, weights = drawn(2, 5, 2, 40), holes(5, 40, unequal=False)
    spoiled = np.where(weights[None, :, None] > 0, d, np.nan)
    np.testing.assert_array_equal(
        evidence.gains_by_example(d, weights)[:3], evidence.gains_by_example(spoiled, weights)[:3]
    )
    empty = np.concatenate([spoiled, np.full((2, 1, 2, 40), np.nan)], axis=1)
    more = evidence.gains_by_example(empty, np.concatenate([weights, np.zeros((1, 40))]))
    np.testing.assert_array_equal(evidence.gains_by_example(d, weights)[:3], more[:3])


def test_few_heavy_examples_are_few_examples():
    """1,500 examples of which 20 hold half of the weight: (sum w)^2 / sum w^2 is 79, so both ends
    reach as far as over folds, as they do with 79 examples, and not as with 1,500."""
    d, weights = drawn(1, 5, 3, 300), np.ones((5, 300))
    light = evidence.gains_by_example(d, weights)
    weights[:, :4] = 1480 / 20
    heavy = evidence.gains_by_example(d, weights)
    slots = evidence.make_slots(weights)
    assert slots.num_effective == pytest.approx(2960**2 / (1480 + 20 * 74**2))
    means = (weights * d.mean(axis=2)[0]).sum(axis=1) / weights.sum(axis=1)
    width = stats.t.ppf(0.975, 4) * math.sqrt(means.var(ddof=1) * (1 / 5 + 1 / 4))
    assert heavy.high[0] - heavy.mean[0] >= width * (1 - 1e-9)
    assert heavy.mean[0] - heavy.low[0] >= width * (1 - 1e-9)
    means = d.mean(axis=(2, 3))[0]
    width = stats.t.ppf(0.975, 4) * math.sqrt(means.var(ddof=1) * (1 / 5 + 1 / 4))
    assert light.high[0] - light.mean[0] < width


@pytest.mark.parametrize("weight", [0.1, 1.0, 3.3])
def test_three_hundred_equal_weights_are_three_hundred(weight):
    """Whatever they sum to in floats, the lower end is not widened at 300 groups."""
    slots = evidence.make_slots(np.full((5, 60), weight))
    d = RNG.standard_normal((1, 5, 3, 60)) + RNG.standard_normal((1, 5, 1, 1))
    low = evidence.gains_by_example(d, np.full((5, 60), weight)).low
    np.testing.assert_allclose(low, evidence.gains_by_example(d, np.ones((5, 60))).low)
    assert slots.num_effective == pytest.approx(300)


def test_many_searches_at_once_are_each_on_its_own():
    """The parts take leading axes: what a simulation judges is what a search is told."""
    d = np.stack([drawn(3, 5, 3, 80, skewed=True) for _ in range(4)])
    slots = evidence.make_slots(np.ones((5, 80)))
    flat = d.swapaxes(2, 3).reshape(4, 3, 3, 400)
    spread = np.stack([evidence.spread_over_seeds(one, slots) for one in flat])
    sums = evidence.sums_over_examples(flat.mean(axis=2), slots, spread)
    low, high = evidence.interval(sums, slots, num_seeds=3, level=0.95)
    for search in range(4):
        one = evidence.gains_by_example(d[search], np.ones((5, 80)))
        np.testing.assert_allclose(low[search], one.low)
        np.testing.assert_allclose(high[search], one.high)


# Branches: one run, no variance, one fold, a diverged row.


def test_copies_of_a_run_say_no_more_than_the_run():
    """Seeds that change nothing leave u exactly 0: then, as at one seed, the fold means speak."""
    d, weights = drawn(3, 5, 1, 150, skewed=True), np.ones((5, 150))
    once, thrice = (evidence.gains_by_example(np.repeat(d, n, axis=2), weights) for n in (1, 3))
    np.testing.assert_allclose(once[:3], thrice[:3], rtol=1e-9)


def test_a_row_without_runs_beside_rows_with_them_keeps_its_own_branch():
    d, weights = drawn(2, 5, 3, 150), np.ones((5, 150))
    d[1] = d[1, :, :1]
    mean, low, high = plain_interval(d, weights)
    found = evidence.gains_by_example(d, weights)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-9)
    np.testing.assert_allclose(found.mean - found.low, mean - low, rtol=0.02)
    np.testing.assert_allclose(found.high - found.mean, high - mean, rtol=0.02)


def test_where_examples_agree_within_each_fold_the_runs_alone_make_the_width():
    """v = 0, kappa = 0: h = T_nu sqrt(u), with 500 examples, so that no guard acts."""
    d = np.broadcast_to(RNG.standard_normal((1, 5, 3, 1)), (1, 5, 3, 100))
    found = evidence.gains_by_example(d, np.ones((5, 100)))
    u = d[0, :, :, 0].var(axis=1, ddof=1).mean() / 15
    np.testing.assert_allclose(found.high - found.mean, stats.t.ppf(0.975, 10) * u**0.5, rtol=1e-6)


def test_identical_losses_are_equal_and_a_constant_difference_cannot_be_told():
    d = drawn(4, 5, 3, 120)
    d[1], d[2] = 0.0, 0.1
    found = evidence.gains_by_example(d, np.ones((5, 120)))
    assert (found.mean[1], found.low[1], found.high[1]) == (0, 0, 0)
    assert found.mean[2] == pytest.approx(0.1)
    assert (found.low[2], found.high[2]) == (-np.inf, np.inf)
    assert np.isfinite(found.low[[0, 3]]).all()
    # Differences that cancel between the seeds are not those of identical losses.
    d = np.zeros((1, 2, 2, 4))
    d[0, :, 0, :2] = d[0, :, 1, 2:] = 1
    d[0, :, 0, 2:] = d[0, :, 1, :2] = -1
    found = evidence.gains_by_example(d, np.ones((2, 4)))
    assert (found.low[0], found.high[0]) == (-np.inf, np.inf)


def test_copies_of_a_row_share_their_interval():
    d = np.repeat(drawn(1, 5, 1, 120), 3, axis=0)
    found = evidence.gains_by_example(d, np.ones((5, 120)))
    np.testing.assert_allclose(found.low, found.low[0])
    np.testing.assert_allclose(found.high, found.high[0])


def test_a_diverged_row_is_nan_and_no_part_of_the_family():
    d, weights = drawn(3, 5, 3, 120), np.ones((5, 120))
    d[1, 2, 1, 7] = np.inf
    found = evidence.gains_by_example(d, weights)
    assert np.isnan([found.mean[1], found.low[1], found.high[1]]).all()
    without = evidence.gains_by_example(d[[0, 2]], weights)
    np.testing.assert_array_equal(np.array(found[:3])[:, [0, 2]], without[:3])
    lost = evidence.gains_by_example(np.full((2, 5, 3, 4), np.nan), np.ones((5, 4)))
    assert lost.method == "none" and np.isnan(lost[:3]).all()


def test_one_fold_needs_several_seeds_and_500_examples_to_tell_anything():
    small = evidence.gains_by_example(drawn(2, 1, 3, 400) + 5, np.ones((1, 400)))
    assert (small.high == np.inf).all()
    one = evidence.gains_by_example(drawn(2, 1, 1, 600) + 5, np.ones((1, 600)))
    assert (one.low == -np.inf).all() and (one.high == np.inf).all()
    told = evidence.gains_by_example(drawn(2, 1, 5, 600) + 5, np.ones((1, 600)))
    assert (told.low > 0).all() and np.isfinite(told.high).all()


def test_folds_of_one_example_each_are_judged_as_folds():
    d = drawn(2, 30, 2, 1)
    found = evidence.gains_by_example(d, np.ones((30, 1)))
    assert found.method == "folds"
    np.testing.assert_allclose(found[:3], evidence.gains_over_folds(d[..., 0])[:3])


# Over folds alone.


def test_over_folds_the_interval_is_nadeau_and_bengios_with_bonferroni():
    d = RNG.standard_normal((3, 5, 2))
    d[1, 0, 0] = np.nan
    found = evidence.gains_over_folds(d)
    assert found.method == "folds" and np.isnan(found.low[1])
    for row in (0, 2):
        means = [sum(d[row, k]) / 2 for k in range(5)]
        center = sum(means) / 5
        variance = sum((m - center) ** 2 for m in means) / 4
        half = stats.t.ppf(1 - 0.025 / 2, 4) * math.sqrt(variance * (1 / 5 + 1 / 4))
        assert found.mean[row] == pytest.approx(center)
        assert found.high[row] - center == pytest.approx(half)
        assert center - found.low[row] == pytest.approx(half)


def test_over_one_fold_there_is_a_mean_and_no_interval():
    found = evidence.gains_over_folds(np.array([[[1.0, 2.0]], [[0.0, 0.0]]]))
    assert found.method == "none"
    np.testing.assert_array_equal(found.mean, [1.5, 0])
    np.testing.assert_array_equal(found.low, [-np.inf] * 2)
    np.testing.assert_array_equal(found.high, [np.inf] * 2)


def test_over_folds_equal_scores_are_equal_and_equal_differences_cannot_be_told():
    found = evidence.gains_over_folds(np.stack([np.zeros((5, 2)), np.full((5, 2), 0.1)]))
    np.testing.assert_array_equal(found.low, [0, -np.inf])
    np.testing.assert_array_equal(found.high, [0, np.inf])


# The set that cannot be told from the best.


def plain_set(losses, weights, level=0.95):
    """Row by row: out if some other row's one-sided lower bound over it is above 0."""
    rows = range(len(losses))
    kept = []
    for r in rows:
        gains = np.stack([losses[r] - losses[q] for q in rows if q != r])
        _, low, _ = plain_interval(gains, weights, level=level, sides=1)
        kept.append(not (low > 0).any())
    return kept


@pytest.mark.parametrize("seeds, examples", [(1, 120), (3, 120), (3, 30)])
def test_the_set_is_that_of_the_one_sided_bounds_in_plain_loops(seeds, examples):
    losses = drawn(4, 5, seeds, examples) + np.array([0.0, 0.3, 0.6, 3.0])[:, None, None, None]
    weights = np.ones((5, examples))
    assert evidence.confident_set(losses, weights).tolist() == plain_set(losses, weights)


def test_the_set_keeps_the_lowest_mean_and_rows_that_are_the_same():
    losses = drawn(5, 5, 3, 100) + np.array([0.0, 0.0, 1.0, 5.0, 9.0])[:, None, None, None]
    losses[1] = losses[0]
    losses[3, 0, 0, 0] = np.nan
    kept = evidence.confident_set(losses, np.ones((5, 100)))
    assert kept[0] == kept[1]
    assert kept[np.nanargmin(losses.mean(axis=(1, 2, 3)))]
    assert not kept[3] and not kept[4]
    constant = np.ones((2, 5, 3, 100)) * np.array([0.0, 1.0])[:, None, None, None]
    assert evidence.confident_set(constant, np.ones((5, 100))).all()  # Nothing can be told.
    assert evidence.confident_set(losses[:1], np.ones((5, 100))).tolist() == [True]


@pytest.mark.parametrize("seeds", [1, 3])
def test_rows_that_leave_for_their_gap_alone_would_leave_by_the_draws_too(seeds, monkeypatch):
    """The set of thirty rows, most of them far from the best, with the short cut and without."""
    rng = np.random.default_rng(seeds)
    losses = rng.gamma(1.0, size=(30, 5, seeds, 80)) * 0.3 + rng.gamma(1.0, size=(1, 5, 1, 80))
    losses += np.linspace(0, 0.6, 30)[:, None, None, None] ** 2
    weights = np.ones((5, 80))
    short = evidence.confident_set(losses, weights)
    asked = []
    cut = over_examples._clearly_beaten
    monkeypatch.setattr(
        over_examples, "_clearly_beaten", lambda *a: asked.append(cut(*a)) or np.zeros(30, bool)
    )
    np.testing.assert_array_equal(evidence.confident_set(losses, weights), short)
    assert asked[0].sum() >= 5 and not (asked[0] & short).any()


def test_the_set_over_folds_drops_what_is_worse_in_every_fold_by_far():
    scores = RNG.standard_normal((3, 10, 2)) * 0.1 + np.array([0.0, 0.02, 3.0])[:, None, None]
    assert evidence.confident_set_over_folds(scores).tolist() == [True, True, False]
    assert evidence.confident_set_over_folds(scores[:, :1]).tolist() == [True] * 3


# The test part.


def test_a_test_parts_interval_holds_examples_and_seeds():
    d, weights = drawn(1, 1, 4, 200, skewed=True)[0, 0], holes(2, 200, unequal=True)[1]
    groups = RNG.integers(0, 60, 200)
    found = evidence.gain_on_test(d, weights, groups)
    total = weights.sum()
    gain = sum(weights[i] * d[s, i] for s in range(4) for i in range(200)) / total / 4
    x = dict.fromkeys(groups[weights > 0].tolist(), 0.0)
    for i in range(200):
        if weights[i] > 0:
            x[groups[i]] += weights[i] * (d[:, i].mean() - gain)
    v = len(x) / (len(x) - 1) * sum(a * a for a in x.values()) / total**2
    u = np.var([(weights * d[s]).sum() / total for s in range(4)], ddof=1) / 4
    c = stats.norm.ppf(0.975)
    h = math.sqrt(stats.t.ppf(0.975, len(x) - 1) ** 2 * v + stats.t.ppf(0.975, 3) ** 2 * u)
    gamma = sum(a**3 for a in x.values()) / total**3 / (h / c) ** 3
    j = lambda y: 3 / gamma * (np.cbrt(1 + gamma * (y - gamma / 6)) - 1)
    assert found.method == "examples" and found.mean == pytest.approx(gain)
    assert found.low[0] == pytest.approx(gain - h / c * max(c, j(c)))
    assert found.high[0] == pytest.approx(gain + h / c * max(c, -j(-c)))
    error = evidence.error_on_test(d, weights, groups)
    assert error == pytest.approx(math.sqrt(v + u))


def test_a_test_part_at_one_seed_says_that_it_holds_the_examples_only():
    d = RNG.standard_normal((1, 90)) + 1
    found = evidence.gain_on_test(d, np.ones(90))
    assert found.method == "examples only" and found.low[0] > 0
    assert evidence.error_on_test(d, np.ones(90)) == pytest.approx(d.std(ddof=1) / 90**0.5)


def test_ninety_rows_never_give_an_error_of_0_unless_all_losses_are_the_same():
    """Five seeds that agree on every row are no reason for "0.9111 +- 0": 82 of 90 are right."""
    right = np.repeat((np.arange(90) < 82)[None], 5, axis=0)
    share = 82 / 90
    expected = math.sqrt(share * (1 - share) / 89)
    assert evidence.error_on_test(right, np.ones(90)) == pytest.approx(expected)
    assert evidence.error_on_test(np.ones((5, 90)), np.ones(90)) == 0
    two = np.ones(2)
    assert math.isnan(evidence.error_on_test(np.array([[1.0, 0.0]]), two, np.array([3, 3])))
    assert math.isnan(evidence.error_on_test(np.array([[1.0, np.nan]]), two))


def test_a_test_part_without_a_difference_is_equal_and_a_constant_one_cannot_be_told():
    same, constant, one, lost = (
        evidence.gain_on_test(d, np.ones(5))
        for d in (np.zeros((2, 5)), np.ones((2, 5)), np.ones((1, 5)), np.full((1, 5), np.nan))
    )
    assert (same.low[0], same.high[0]) == (0, 0)
    assert (constant.low[0], constant.high[0]) == (-np.inf, np.inf)
    assert (one.low[0], one.high[0]) == (-np.inf, np.inf)
    assert lost.method == "none" and np.isnan(lost.mean[0])


# Refusals.

D, W = np.zeros((2, 3, 2, 4)), np.ones((3, 4))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: evidence.gains_by_example(D[0], W), r"`differences` must be \[row, fold, seed"),
        (lambda: evidence.gains_by_example(D[:0], W), "with at least one of each"),
        (lambda: evidence.gains_by_example(D, W[:2]), r"`weights` must have shape \(3, 4\)"),
        (lambda: evidence.gains_by_example(D, -W), r"finite and >= 0, got -1.0; 0 leaves a slot"),
        (lambda: evidence.gains_by_example(D, W * np.nan), "finite and >= 0, got nan"),
        (lambda: evidence.gains_by_example(D, 0 * W), "no held-out example counts"),
        (lambda: evidence.gains_by_example(D, W, W), "`groups` must be integers"),
        (lambda: evidence.gains_by_example(D, W, np.ones((3, 1), int)), "like `weights`"),
        (lambda: evidence.gains_by_example(D, W, np.ones((3, 4), int)), "within one fold.*GroupKF"),
        (lambda: evidence.gains_by_example(D, W, level=1.0), "between 0 and 1, got level=1.0"),
        (lambda: evidence.gains_over_folds(D), r"\[row, fold, seed\]"),
        (lambda: evidence.gains_over_folds(D[..., 0], level=0.0), "between 0 and 1"),
        (lambda: evidence.confident_set(D, W, level=0.5), "above 0.5, got level=0.5"),
        (lambda: evidence.confident_set(D * np.nan, W), "every row of `losses` diverged"),
        (lambda: evidence.confident_set_over_folds(D), r"`losses` must be \[row, fold, seed\]"),
        (lambda: evidence.gain_on_test(D, W), r"`differences` must be \[seed, example\]"),
        (lambda: evidence.gain_on_test(D[0, 0], W[0, :3]), r"`weights` must have shape \(4,\)"),
        (lambda: evidence.error_on_test(D[0, 0], -W[0]), "finite and >= 0"),
        (lambda: evidence.gain_on_test(D[0, 0], W[0], level=95.0), "got level=95.0"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_way_out(call, words):
    with pytest.raises(ValueError, match=words):
        call()
