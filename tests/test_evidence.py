"""Intervals for gains: the recipe against plain loops, closed cases, refusals, small simulations."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

from wdjax.selection import evidence

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
        if g < 300:
            low = min(low, gain - width)
        if g < 500:
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
