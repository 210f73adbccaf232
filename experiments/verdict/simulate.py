"""Simulated searches, many at once: gains of known mean, and what the intervals say of them.

    gain[row, fold, seed, example] = truth[row] + A[row, example] + F[row, fold]
                                     + U[row, fold, seed] + E[row, fold, seed, example]

A, which example it is: variance 1, of some shape. E, a run's noise on an example: deviation
`noise`. U, which run it is: at 5 folds and 3 seeds its part of the standard error is `runs` times
the examples'. F, which training set it was: Hajek's form, the mean over the blocks that a fold
trains on; its part of the standard error is `training` times the examples'.

All but 0/1 losses are drawn as what the recipe needs of them: E averaged over the seeds per
example, and its contrasts between seeds per fold, which are independent of it.
"""

from typing import NamedTuple

import numpy as np
from scipy import special

from wdjax.selection import evidence

DRAWS = 2_000
"""Of the largest normal, fresh for every batch of searches, so that their error averages out."""

SHIFTS = (0.0, 2.0, 3.0, 4.0, 5.0)
"""Gains of one row that power and coverage are told at, in its standard errors."""

LOAD = 16.0
"""Deviation of zero's loss over that of a gain: what the one-standard-error rule sees."""

SHAPE = 1 / 20
"""Of the gamma distribution of skewed gains: skewness 2 / sqrt(k) = 8.9, excess kurtosis 120."""


class Setting(NamedTuple):
    """One kind of search; `rows` counts zero."""

    rows: int = 2
    examples: int = 300
    folds: int = 5
    seeds: int = 3
    shape: str = "normal"  # or "t3", "right", "left"; "errors 5%" and the like: 0/1 losses
    shared: float = 0.0
    """Correlation of the rows' A."""
    shared_runs: float = 0.0
    runs: float = 0.35
    noise: float = 0.5
    training: float = 0.0
    weights: str = "equal"
    groups: int = 0
    """How many groups; then `examples` is not used."""
    branch: str = ""
    better: bool = False
    """0/1 losses: whether one row has fewer errors in truth."""

    @property
    def name(self) -> str:
        """What is not the default, in words."""
        told = (f"{field} {value}" for field, value in self._asdict().items())
        standard = {f"{field} {value}" for field, value in Setting()._asdict().items()}
        return ", ".join(word for word in told if word not in standard or word.startswith("rows"))


class Drawn(NamedTuple):
    """Searches with truth 0 in every row but those of 0/1 losses."""

    sums: evidence.Sums
    slots: evidence.Slots
    fitted: np.ndarray  # [search, row]: the mean gain of these very models
    truth: np.ndarray  # [row]
    alone: evidence.Sums | None = None
    """The sums of the same searches where the groups are not told."""


def normals(rng, shape, shared):
    """`[search, row, ...]`, correlated over the rows."""
    drawn = rng.standard_normal(shape, np.float32) * np.float32((1 - shared) ** 0.5)
    if shared:
        drawn += rng.standard_normal((shape[0], 1, *shape[2:]), np.float32) * np.float32(
            shared**0.5
        )
    return drawn


def by_example(rng, shape, s):
    """A, `[search, row, example]`, mean 0 and variance 1."""
    if s.shape == "normal":
        return normals(rng, shape, s.shared)
    if s.shape == "t3":
        scale = rng.chisquare(3, (shape[0], 1, shape[2])).astype(np.float32)
        return normals(rng, shape, s.shared) / np.sqrt(scale)
    drawn = rng.standard_gamma((1 - s.shared) * SHAPE, shape, np.float32)
    if s.shared:
        drawn += rng.standard_gamma(s.shared * SHAPE, (shape[0], 1, shape[2]), np.float32)
    drawn = (drawn - np.float32(SHAPE)) / np.float32(SHAPE**0.5)
    return drawn if s.shape == "right" else -drawn


def example_weights(rng, num, kind):
    """`[example]`; how unequal: (sum w)^2 / sum w^2 is num, 0.86, 0.37, about 0.1, 0.19 of it."""
    if kind == "equal":
        return np.ones(num)
    if kind == "1 to 3":
        return rng.integers(1, 4, num).astype(float)
    if kind in ("lognormal", "lognormal, noisy where heavy"):
        return np.exp(rng.standard_normal(num))
    if kind == "pareto":
        return 1 + rng.pareto(1.5, num)
    if kind == "rare class":
        return np.where(np.arange(num) % 20 == 0, 19.0, 1.0)
    raise ValueError(f"unknown weights {kind!r}.")


def layout(rng, s):
    """Weights `[fold, place]` and groups: examples (or groups) dealt to the folds in turn."""
    if s.groups:
        sizes = 1 + rng.geometric(0.2, s.groups)
        group = np.repeat(np.arange(s.groups), sizes)
        fold = group % s.folds
    else:
        group, fold = np.arange(s.examples), np.arange(s.examples) % s.folds
    drawn = example_weights(rng, len(group), s.weights)
    longest = np.bincount(fold).max()
    weights, groups = np.zeros((s.folds, longest)), np.zeros((s.folds, longest), int)
    for k in range(s.folds):
        here = fold == k
        weights[k, : here.sum()], groups[k, : here.sum()] = drawn[here], group[here]
    return weights, groups if s.groups else None


def draw(rng, num, s, *, against_best=False):
    """`num` searches of a setting; gains over zero, or all rows' over the first (`against_best`).

    Against the best, each of the `rows` has parts of its own, the first too: what row q gains
    over it is the difference, and all rows are equally good.
    """
    weights, groups = layout(rng, s)
    slots = evidence.make_slots(weights, groups)
    rows = s.rows if against_best else s.rows - 1
    if s.shape.startswith("errors"):
        return _zero_one(rng, num, rows, s, slots)
    w, fold_weights = slots.weights, slots.fold_weights
    sizes = np.diff(np.r_[slots.fold_starts, len(w)])
    n = len(w)
    d = by_example(rng, (num, rows, n), s).astype(np.float64)
    if s.groups:
        of = np.repeat(
            np.arange(slots.num_groups), np.diff(np.r_[slots.group_starts, n])
        )  # A group's members share half of the variance of one.
        d += 0.5 * rng.standard_t(4, (num, rows, slots.num_groups))[:, :, of]
    if s.weights.endswith("noisy where heavy"):
        d *= np.sqrt(w / w.mean())
    d += s.noise / s.seeds**0.5 * rng.standard_normal(d.shape, np.float32)
    runs = normals(rng, (num, rows, s.folds, s.seeds), s.shared_runs).astype(np.float64)
    runs *= s.runs * (15 / n) ** 0.5
    blocks = normals(rng, (num, rows, s.folds), s.shared).astype(np.float64)
    blocks *= s.training * (s.folds / n) ** 0.5
    training = blocks  # One fold is judged by models of examples that are none of its own.
    if s.folds > 1:
        training = (blocks.sum(2, keepdims=True) - blocks) / (s.folds - 1)
    contrast = runs + (
        s.noise
        * (np.sqrt(np.add.reduceat(w**2, slots.fold_starts)) / fold_weights)[:, None]
        * rng.standard_normal(runs.shape)
    )
    d, runs, contrast = _branch(s, d, runs, contrast)
    by_fold = training + runs.mean(3)
    d += np.repeat(by_fold, sizes, axis=2)
    if against_best:
        d, by_fold, contrast = (x[:, :1] - x[:, 1:] for x in (d, by_fold, contrast))
    if s.branch == "half the rows equal":
        d[:, ::2], by_fold[:, ::2], contrast[:, ::2] = 0, 0, 0
    spread = contrast.var(3, ddof=1) if s.seeds > 1 else np.zeros(by_fold.shape)
    sums, alone = evidence.sums_over_examples(d, slots, spread), None
    if s.groups:
        alone = evidence.sums_over_examples(d, slots._replace(group_starts=None), spread)
    return Drawn(sums, slots, by_fold @ (fold_weights / w.sum()), np.zeros(d.shape[1]), alone)


def _branch(s, d, runs, contrast):
    """The branches of the recipe for variances that are exactly 0."""
    if s.branch == "no runs":
        return d, 0 * runs, 0 * contrast
    if s.branch == "half the rows without runs":
        still = np.arange(d.shape[1])[:, None, None] % 2 == 0
        return d, np.where(still, 0, runs), np.where(still, 0, contrast)
    if s.branch == "examples agree":
        return 0 * d, runs, runs
    if s.branch == "copies of one row":
        return tuple(np.repeat(x[:, :1], x.shape[1], axis=1) for x in (d, runs, contrast))
    return d, runs, contrast


def _zero_one(rng, num, rows, s, slots):
    """0/1 losses: a model errs where example + row + run + noise of the run exceed a threshold.

    The rows have one share of errors in truth, but the middle one a quarter less if `better`.
    """
    share = float(s.shape.split()[1].rstrip("%")) / 100
    shares = np.full(rows + 1, share)
    if s.better:
        shares[1 + rows // 2] *= 0.75
    threshold = -special.ndtri(shares)[:, None, None]
    n = len(slots.weights)
    sizes = np.diff(np.r_[slots.fold_starts, n])
    latent = 0.7**0.5 * rng.standard_normal((num, 1, 1, n), np.float32)
    latent = latent + 0.15**0.5 * rng.standard_normal((num, rows + 1, 1, n), np.float32)
    run = 0.05**0.5 * rng.standard_normal((num, rows + 1, s.seeds, s.folds), np.float32)
    shape = (num, rows + 1, s.seeds, n)
    latent = latent + 0.1**0.5 * rng.standard_normal(shape, np.float32)
    latent += np.repeat(run, sizes, axis=3)
    losses = (latent > threshold).astype(np.float64)
    gains = losses[:, :1] - losses[:, 1:]
    fold_means = np.add.reduceat(gains, slots.fold_starts, axis=3) / sizes
    spread = fold_means.var(2, ddof=1) if s.seeds > 1 else np.zeros(fold_means[:, :, 0].shape)
    sums = evidence.sums_over_examples(gains.mean(2), slots, spread)
    sums = sums._replace(identical=(gains == 0).all((2, 3)))
    truth = shares[0] - shares[1:]
    # A model's own mean is not kept here; that over models stands in.
    return Drawn(sums, slots, np.broadcast_to(truth, (num, rows)), truth)


def standard_error(s):
    """Of one row's gain, where weights are equal and there are no groups."""
    n = s.examples
    parts = 1 + s.noise**2 / s.seeds + s.runs**2 * 15 / s.folds / s.seeds + s.training**2
    return (parts / n) ** 0.5


def batch_size(s):
    return int(np.clip(1_500_000 // (s.rows * max(s.examples, 7 * s.groups)), 4, 500))


def judge(rng, num, s):
    """Rates over `num` searches: a dict of name -> sum over the batch."""
    drawn = draw(rng, num, s)
    sums, slots, truth = drawn.sums, drawn.slots, drawn.truth
    rows = sums.gain.shape[1]
    fresh = rng.standard_normal((rows, DRAWS), np.float32)
    low, high = evidence.interval(sums, slots, num_seeds=s.seeds, level=0.95, normals=fresh)
    helps, hurts = low > 0, high < 0
    wrong = (helps & (truth <= 0)) | (hurts & (truth >= 0))
    missed = (low > truth) | (high < truth)
    told = {
        "false": wrong.any(1),
        "false, helps": (helps & (truth <= 0)).any(1),
        "false, hurts": (hurts & (truth >= 0)).any(1),
        "covered, all": ~missed.any(1),
        "covered, one": 1 - missed.mean(1),
        "covered, fitted": 1 - ((low > drawn.fitted) | (high < drawn.fitted)).mean(1),
        "no interval": (~np.isfinite(low)).mean(1),
    }
    told |= _others(sums, slots, s)
    place = np.arange(num)
    if drawn.alone is not None:
        ends = evidence.interval(
            drawn.alone,
            slots._replace(group_starts=None),
            num_seeds=s.seeds,
            level=0.95,
            normals=fresh,
        )
        told["false, groups ignored"] = ((ends[0] > 0) | (ends[1] < 0)).any(1)
    if not s.groups and s.weights == "equal" and not s.shape.startswith("errors"):
        sizes = np.diff(np.r_[slots.fold_starts, len(slots.weights)])
        zero = LOAD * rng.standard_normal((num, 1, s.folds)) / sizes**0.5
        for shift in SHIFTS:
            mean = np.zeros(rows)
            mean[rows // 2] = shift * standard_error(s)
            gain = sums.gain + mean
            row = np.where(gain.max(1) > 0, gain.argmax(1), -1)  # -1: zero itself.
            at = lambda x, row=row: np.where(row >= 0, x[place, row], False)
            told[f"helps at {shift:g}"] = at(low + mean > 0)
            told[f"covered, lowest, at {shift:g}"] = ~at(missed)
            if s.folds > 1:
                row = _one_standard_error(zero, sums.fold_means + mean[:, None])
                told[f"covered, one standard error, at {shift:g}"] = ~at(missed, row)
    return {name: float(np.sum(values)) for name, values in told.items()}


def _others(sums, slots, s):
    """False claims of other rules on the same searches."""
    if s.folds < 2 or s.better:
        return {}
    rows, folds = sums.gain.shape[1], sums.fold_means
    error = np.sqrt(folds.var(2, ddof=1) / s.folds)
    mean = folds.mean(2)
    half = evidence.fold_half_width(folds.var(2, ddof=1), s.folds, rows, 0.95, 2)
    examples = np.sqrt(np.diagonal(sums.covariance, axis1=1, axis2=2))
    quantile = special.stdtrit(slots.num_groups - s.folds, 1 - 0.025 / rows)
    return {
        "false, one standard error over folds": (np.abs(mean) > error).any(1),
        "false, folds alone": (np.abs(mean) > half).any(1),
        "false, examples alone": (np.abs(sums.gain) > quantile * examples).any(1),
    }


def _one_standard_error(zero, gains):
    """The last row within one standard error of the lowest loss, -1 for zero: rows rise in
    strength. `zero[search, 1, fold]`, `gains[search, row, fold]`."""
    losses = np.concatenate([zero, zero - gains], axis=1)
    mean = losses.mean(2)
    place, best = np.arange(len(mean)), mean.argmin(1)
    error = losses[place, best].std(1, ddof=1) / losses.shape[2] ** 0.5
    within = mean <= (mean[place, best] + error)[:, None]
    return mean.shape[1] - 2 - np.argmax(within[:, ::-1], axis=1)


def judge_set(rng, num, s):
    """How often the truly best row, the first of equals, is in the confident set."""
    drawn = draw(rng, num, s, against_best=True)
    fresh = rng.standard_normal((s.rows - 1, DRAWS), np.float32)
    low, _ = evidence.interval(
        drawn.sums, drawn.slots, num_seeds=s.seeds, level=0.95, sides=1, normals=fresh
    )
    return {"kept": float((~(low > 0).any(1)).sum())}


def judge_test(rng, num, s):
    """A test part: how often its interval holds the mean over runs (one seed: this run's mean)."""
    held = claims = 0.0
    one = s._replace(rows=2, folds=1)
    for _ in range(num):
        drawn = _test_part(rng, one)
        found = evidence.gain_on_test(*drawn[:2])
        held += found.low[0] <= drawn[2] <= found.high[0]
        claims += found.low[0] > drawn[2] or found.high[0] < drawn[2]
    return {"covered, one": held, "false": claims}


def _test_part(rng, s):
    """`differences[seed, example]`, weights, truth."""
    n = s.examples
    if s.shape.startswith("errors"):
        share = float(s.shape.split()[1].rstrip("%")) / 100
        latent = 0.7**0.5 * rng.standard_normal((1, 1, n))
        latent = latent + 0.15**0.5 * rng.standard_normal((2, 1, n))
        latent = latent + 0.15**0.5 * rng.standard_normal((2, s.seeds, n))
        losses = (latent > -special.ndtri(share)).astype(float)
        return losses[0] - losses[1], np.ones(n), 0.0
    a = by_example(rng, (1, 1, n), s)[0]
    runs = s.runs * (15 / n) ** 0.5 * rng.standard_normal((s.seeds, 1))
    d = a + runs + s.noise * rng.standard_normal((s.seeds, n))
    return d, np.ones(n), float(runs[0, 0]) if s.seeds == 1 else 0.0
