"""From small sizes to a large one: the optimum of a search, the law through them, its doubts."""

import json
import math

import jax
import numpy as np
import pytest

from wdjax.selection import transfer
from wdjax.selection.folds import kfold, trained_on
from wdjax.selection.grids import grid_product
from wdjax.selection.laws import chi_square_above, fit_law
from wdjax.selection.optimum import Best, find_optimum
from wdjax.selection.scores import HeldOut, Scores
from wdjax.selection.size_rules import rule_strengths
from wdjax.selection.transfer import predict_strength
from wdjax.tables import to_json

RNG = np.random.default_rng(0)
STRENGTHS = np.geomspace(0.01, 100.0, 13)
SIZES = [{"rows": r, "width": 64} for r in (250, 500, 1000, 2000)]
SIZES += [{"rows": 1000, "width": w} for w in (8, 16, 32, 128)]
TARGET = {"rows": 8000, "width": 512}
BOTH = [{"rows": r, "width": w} for r in (250, 500, 1000, 2000) for w in (8, 128)]
"""Each size at several of the other: they tell whether its power is the same at all of them."""


def searched(log_best, *, bend=0.05, noise=0.005, at_once=0.3, strengths=STRENGTHS):
    """Scores `[row, fold, seed]` whose mean is a parabola in log strength; folds share a level."""
    off = np.log(strengths)[:, None, None] - log_best
    drawn = noise * RNG.standard_normal((len(strengths), 3, 2))
    level = at_once * RNG.standard_normal((1, 3, 1))
    return Scores(grid_product(strength=strengths), {"loss": bend * off**2 + drawn + level})


def planted(sizes, shift=0.0):
    return 2.0 - 0.5 * math.log(sizes["rows"]) + 0.6 * math.log(sizes["width"]) + shift


# The optimum of one search


def test_the_optimum_of_a_parabola_is_its_lowest_point():
    """A quadratic fitted to a quadratic is exact, wherever between the rows its minimum lies."""
    for log_best in (-2.0, 0.123, 1.7):
        found = find_optimum(searched(log_best, noise=0.0, at_once=0.0))["strength"]
        np.testing.assert_allclose(found.log, log_best, atol=1e-10)
        assert found.known and found.end is None
        np.testing.assert_allclose(found.value, math.exp(log_best), rtol=1e-9)


def test_the_optimum_of_a_bowl_over_strength_and_learning_rate_is_its_lowest_point():
    """Turned against the axes: a valley along log strength + log learning rate."""
    grid = grid_product(strength=STRENGTHS, learning_rate=[1e-3, 3e-3, 1e-2, 3e-2, 0.1])
    s, r = np.log(grid["strength"]) - 0.5, np.log(grid["learning_rate"]) + 4.2
    loss = 0.1 * s**2 + 0.2 * r**2 + 0.15 * s * r
    scores = Scores(grid, {"loss": np.broadcast_to(loss[:, None, None], (65, 2, 1))})
    found = find_optimum(scores)
    np.testing.assert_allclose(found["strength"].log, 0.5, atol=1e-6)
    np.testing.assert_allclose(found["learning_rate"].log, -4.2, atol=1e-6)


def test_an_error_is_as_large_as_the_spread_over_searches_drawn_anew():
    """Of 200 searches the errors stand for the deviation they had: between 0.8 and 2 times it."""
    found = [find_optimum(searched(0.3, noise=0.02))["strength"] for _ in range(200)]
    off = np.array([one.log - 0.3 for one in found])
    claimed = np.array([one.standard_error for one in found])
    assert 0.8 < np.median(claimed) / off.std() < 2
    assert np.mean(np.abs(off) < 2 * claimed) > 0.9


def test_the_error_of_examples_alone_is_that_of_the_linear_theory():
    """Seeds that are copies: all error is of which examples were held out. For a parabola whose
    slope varies over examples as c_i (log strength - x*), x moves by -mean(c_i) / (2 bend)."""
    x = np.log(STRENGTHS)
    tilt, bend, n = 0.2, 0.05, 400
    c = tilt * RNG.standard_normal((2, n // 2))
    c -= c.mean(axis=1, keepdims=True)
    each = bend * x[:, None, None] ** 2 + c * x[:, None, None]
    each = np.repeat(each[:, :, None], 2, axis=2)
    where = np.arange(n).reshape(2, n // 2)
    held = HeldOut({"loss": each}, where, np.ones((2, n // 2)), None, np.full(2, n // 2))
    found = find_optimum(Scores(grid_product(strength=STRENGTHS), {"loss": each.mean(3)}, held))
    expected = math.sqrt(2 * n / (n - 2) * np.sum(c**2)) / n / (2 * bend)
    np.testing.assert_allclose(found["strength"].standard_error, expected, rtol=0.15)


def test_examples_of_one_group_count_as_one():
    """Copies of each example in its group change nothing; as examples of their own they would."""
    x = np.log(STRENGTHS)[:, None, None, None]
    c = 0.5 * RNG.standard_normal((1, 2, 1, 40))
    each = np.repeat(0.05 * x**2 + c * x, 2, axis=2)

    def error(each, groups):
        where = np.arange(each.shape[1] * each.shape[3]).reshape(each.shape[1], -1)
        weights, num = np.ones(where.shape), np.full(2, 40)
        held = HeldOut({"loss": each}, where, weights, groups, num)
        scores = Scores(grid_product(strength=STRENGTHS), {"loss": each.mean(3)}, held)
        return find_optimum(scores)["strength"].standard_error

    alone = error(each, None)
    copies = np.repeat(each, 4, axis=3)
    groups = np.repeat(np.arange(80).reshape(2, 40), 4, axis=1)
    np.testing.assert_allclose(error(copies, groups), alone, rtol=0.02)
    assert error(copies, None) < 0.6 * alone


def test_a_flat_optimum_is_not_known_and_one_beyond_the_grid_neither():
    flat = find_optimum(searched(0.3, bend=1e-5, noise=0.02))["strength"]
    assert not flat.known and flat.standard_error == math.inf
    beyond = find_optimum(searched(math.log(1e3)))["strength"]
    assert beyond.end == "largest" and not beyond.known and beyond.at_an_end == 1
    below = find_optimum(searched(math.log(1e-3)))["strength"]
    assert below.end == "smallest" and below.standard_error == math.inf


def test_zero_and_diverged_rows_are_left_out_and_rows_may_be_missing(nans_allowed):
    strengths = np.r_[0.0, STRENGTHS]
    with np.errstate(divide="ignore"):
        off = np.log(strengths) - 0.4
    loss = np.where(strengths > 50, np.nan, 0.05 * off**2)
    loss[0] = 9.0
    values = np.broadcast_to(loss[:, None, None], (14, 2, 2))
    found = find_optimum(Scores(grid_product(strength=strengths), {"loss": values}))
    np.testing.assert_allclose(found["strength"].log, 0.4, atol=1e-10)


def test_of_a_score_of_which_more_is_better_the_highest_is_best():
    scores = searched(0.4, noise=0.0)
    turned = Scores(scores.grid, {"hits": -scores.values["loss"]}, None, {"hits": True})
    found = find_optimum(turned, value="hits")["strength"]
    np.testing.assert_allclose(found.log, 0.4, atol=1e-10)


@pytest.mark.parametrize(
    ("axes", "shape", "words"),
    [
        ({"slope": [1.0, 2.0]}, (2, 1), "axis 'strength'.*got .'slope'"),
        ({"strength": [0.0, 1.0, 2.0]}, (2, 1), "2 positive values of it.*three or more"),
        ({"strength": [1, 2, 3], "learning_rate": [1, 2]}, (2, 1), "best learning_rate lies among"),
        ({"strength": [1, 2, 3], "slope": [0, 1]}, (2, 1), "several values of 'slope'.*one value"),
        ({"strength": [1.0, 2.0, 3.0]}, (1, 1), "one fold and one seed.*two folds"),
    ],
)
def test_what_holds_no_optimum_is_refused(axes, shape, words):
    grid = grid_product(**axes)
    values = np.ones((grid.num_rows, *shape))
    with pytest.raises(ValueError, match=words):
        find_optimum(Scores(grid, {"loss": values}))


# The law


def design_of(sizes, names=("rows", "width")):
    return np.column_stack([np.ones(len(sizes)), *(np.log([s[n] for s in sizes]) for n in names)])


def columns_of(sizes):
    return {name: [one[name] for one in sizes] for name in sizes[0]}


def test_with_equal_errors_the_law_is_ordinary_least_squares():
    logs = RNG.standard_normal(8)
    law = fit_law(columns_of(SIZES), logs, [0.3] * 8)
    expected = np.linalg.lstsq(design_of(SIZES), logs, rcond=None)[0]
    np.testing.assert_allclose([law.intercept, *law.exponents], expected, rtol=1e-12)


def test_the_fit_and_its_interval_are_generalised_least_squares_written_out():
    """b = (X' V^-1 X)^-1 X' V^-1 y with V = diag(s^2 + tau^2), tau^2 by DerSimonian & Laird."""
    logs = np.array([planted(one) for one in SIZES]) + 0.5 * RNG.standard_normal(8)
    errors = np.array([0.1, 0.1, 0.05, 0.2, 0.4, 0.1, 0.1, 0.3])
    x, w = design_of(SIZES), np.diag(errors**-2.0)
    p = w - w @ x @ np.linalg.inv(x.T @ w @ x) @ x.T @ w  # Q = y' P y, E Q = k - p + tau^2 tr P
    tau2 = max(0.0, (logs @ p @ logs - 5) / np.trace(p))
    v = np.linalg.inv(np.diag(errors**2 + tau2))
    covariance = np.linalg.inv(x.T @ v @ x)
    b = covariance @ x.T @ v @ logs
    q = max(1.0, (logs - x @ b) @ v @ (logs - x @ b) / 5)
    at = np.array([1.0, math.log(8000), math.log(512)])
    half = 2.5705818366147 * math.sqrt(q * at @ covariance @ at + tau2)  # t_5(0.975)

    law = fit_law(columns_of(SIZES), logs, errors)
    assert tau2 > 0
    np.testing.assert_allclose([law.intercept, *law.exponents], b, rtol=1e-9)
    np.testing.assert_allclose([law.between**2, law.misfit], [tau2, logs @ p @ logs], rtol=1e-9)
    found = law.predict(TARGET)
    expected = np.exp([at @ b, at @ b - half, at @ b + half])
    np.testing.assert_allclose([found.value, found.low, found.high], expected, rtol=1e-7)


def test_a_point_of_infinite_error_does_not_count():
    logs = np.array([planted(one) for one in SIZES]) + 0.1 * RNG.standard_normal(8)
    errors = np.full(8, 0.1)
    errors[[0, 5]] = np.inf
    logs[[0, 5]] = 99.0
    kept = [one for i, one in enumerate(SIZES) if i not in (0, 5)]
    law = fit_law(columns_of(SIZES), logs, errors)
    alone = fit_law(columns_of(kept), np.delete(logs, [0, 5]), [0.1] * 6)
    assert law.exponents == alone.exponents and law.freedom == alone.freedom == 3


def test_the_tail_of_chi_square_is_its_integral():
    """Against the density x^(f/2-1) e^(-x/2) / (2^(f/2) Gamma(f/2)), summed by trapezoids."""
    for freedom in (3, 4, 7):
        x = np.linspace(2.5, 80, 200_001)
        density = x ** (freedom / 2 - 1) * np.exp(-x / 2)
        density /= 2 ** (freedom / 2) * math.gamma(freedom / 2)
        np.testing.assert_allclose(
            chi_square_above(2.5, freedom), np.trapezoid(density, x), rtol=1e-7
        )
    np.testing.assert_allclose(chi_square_above(3.841458820694124, 1), 0.05, rtol=1e-9)
    assert chi_square_above(0.0, 4) == 1


@pytest.mark.parametrize(
    ("sizes", "errors", "words"),
    [
        ({"rows": [1, 2, 3]}, [1, 1], "`standard_errors` must have shape"),
        ({"rows": [1, 2, 0]}, [1, 1, 1], "`rows` must be positive, got 0"),
        ({"rows": [1, 2, 3]}, [1, 0, 1], "`standard_errors` must be positive"),
        ({"rows": [1, 2, 3]}, [1, np.inf, 1], "needs 3 points or more of known error; got 2"),
        ({"a": [1, 2, 4, 8], "b": [2, 4, 8, 16]}, [1] * 4, "a, b do not vary apart.*vary each"),
    ],
)
def test_what_makes_no_law_is_refused(sizes, errors, words):
    logs = np.zeros(len(next(iter(sizes.values()))))
    with pytest.raises(ValueError, match=words):
        fit_law(sizes, logs, errors)


# Beside the law: fewer rows to train on, and what published rules say


def test_fewer_rows_train_and_the_same_are_held_out():
    """Of 60 rows in classes of 40 and 20: 15 have 10 and 5, and lie among 30 of the same key."""
    labels = np.arange(60) % 3 // 2
    folds = kfold(jax.random.key(1), 60, 3, stratify=labels)
    few = trained_on(folds, 15, key=jax.random.key(2), stratify=labels)
    more = trained_on(folds, 30, key=jax.random.key(2), stratify=labels)
    assert few.train.shape == (3, 15) and few.train_mask.all()
    np.testing.assert_array_equal(few.valid, folds.valid)
    for fold in range(3):
        assert np.bincount(labels[np.asarray(few.train)[fold]]).tolist() == [10, 5]
        inner, outer, every = (set(np.asarray(f.train)[fold].tolist()) for f in (few, more, folds))
        assert inner < outer < every and not inner & set(np.asarray(folds.valid)[fold].tolist())
    other = trained_on(folds, 15, key=jax.random.key(3))
    assert set(other.train[0].tolist()) != set(few.train[0].tolist())
    with pytest.raises(ValueError, match="`num_rows` must be between 1 and 40.*41"):
        trained_on(folds, 41, key=jax.random.key(2))


def test_the_rules_keep_what_they_say_they_keep():
    at = {"rows": 1000, "epochs": 10, "batch_size": 50, "params": 5000, "width": 64}
    to = {"rows": 4000, "epochs": 20, "batch_size": 100, "params": 20000, "width": 256}
    found = {one.rule: one for one in rule_strengths(0.5, 0.01, at, to)}
    # 1 / (eta lam) steps are 10 epochs of 20; of 40 steps an epoch, 10 epochs are 400 steps.
    np.testing.assert_allclose(found["timescale"].strength, 1 / (0.01 * 400))
    assert found["muP"].strength == 2.0 and found["muP"].learning_rate == 0.0025
    assert found["root width"].strength == 1.0
    # As a share of the run: 1 at TPP 2 becomes 2^-0.527 at TPP 4, of 800 steps.
    fitted = found["Power Lines, fitted at the reference"].strength
    np.testing.assert_allclose(fitted, 1 / (0.01 * 800 * 2**-0.527))
    quoted = found["Power Lines, constant as quoted"].strength
    np.testing.assert_allclose(quoted, 1 / (0.01 * 800 * 1.084 * 4**-0.527))
    same = rule_strengths(0.5, 0.01, at, {**at, "rows": 2000})
    assert [one.rule for one in same][:2] == ["timescale", "Power Lines, fitted at the reference"]
    with pytest.raises(ValueError, match="`params` must be finite and > 0"):
        rule_strengths(0.5, 0.01, {**at, "params": 0}, to)


# From searches to the prediction


def test_a_planted_law_is_found_and_its_interval_covers():
    """Over 150 draws, with scatter about the law and two of the eight sizes flat: the interval
    holds the best strength of the large run in at least 93 %, and the exponents are on average
    the planted ones."""
    held, exponents = [], []
    for _ in range(150):
        flat = RNG.choice(8, 2, replace=False)
        searches = []
        for i, one in enumerate(SIZES):
            best = planted(one, 0.1 * RNG.standard_normal())
            bend = 1e-5 if i in flat else 0.05
            searches.append((one, searched(best, bend=bend, noise=0.01)))
        found = predict_strength(searches, TARGET)
        truth = math.exp(planted(TARGET, 0.1 * RNG.standard_normal()))
        one = found.predictions["strength"]
        held.append(one.low <= truth <= one.high)
        exponents.append(found.laws["strength"].exponents)
    assert np.mean(held) >= 0.93
    np.testing.assert_allclose(np.mean(exponents, axis=0), [-0.5, 0.6], atol=0.04)


def test_a_flat_size_shows_in_the_table_and_has_no_say():
    good = [(one, searched(planted(one), noise=0.001)) for one in BOTH]
    flat = {"rows": 100, "width": 64}
    with_flat = predict_strength([*good, (flat, searched(0.0, bend=1e-6, noise=0.05))], TARGET)
    without = predict_strength(good, TARGET)
    np.testing.assert_allclose(with_flat.predictions["strength"], without.predictions["strength"])
    assert with_flat.believed and with_flat.doubts == ()
    text = str(with_flat)
    assert "1 of 9 sizes do not know their best strength, and do not count" in text
    assert "At rows 8000, width 512: strength" in text and "rows^(-0.5" in text
    plain = json.loads(to_json(with_flat.to_dict()))
    assert plain["believed"] and plain["best"][8]["strength"]["standard_error"] is None
    assert "<table>" in with_flat._repr_html_()


def test_learning_rate_and_strength_have_a_law_each():
    grid = grid_product(strength=STRENGTHS, learning_rate=[1e-3, 3e-3, 1e-2, 3e-2, 0.1])
    searches = []
    for one in BOTH:
        s = np.log(grid["strength"]) - planted(one)
        r = np.log(grid["learning_rate"] / 0.02) + 0.3 * math.log(one["width"] / 64)
        loss = 0.1 * s**2 + 0.2 * r**2 + 0.05 * s * r
        drawn = 0.002 * RNG.standard_normal((65, 3, 2))
        searches.append((one, Scores(grid, {"loss": loss[:, None, None] + drawn})))
    found = predict_strength(searches, {"rows": 4000, "width": 256})
    np.testing.assert_allclose(found.laws["strength"].exponents, [-0.5, 0.6], atol=0.1)
    np.testing.assert_allclose(found.laws["learning_rate"].exponents, [0, -0.3], atol=0.1)
    assert found.believed


# What is not to be believed


def doubted(sizes, target=TARGET, best=planted, **how):
    found = predict_strength([(one, searched(best(one), **how)) for one in sizes], target)
    assert not found.believed
    assert all(doubt.startswith("Do not believe this: ") for doubt in found.doubts)
    return " ".join(found.doubts)


ROWS = [{"rows": r} for r in (250, 500, 1000, 2000)]


def by_rows(sizes, shift=0.0):
    return 3.0 - 0.5 * math.log(sizes["rows"]) + shift


def test_too_few_sizes_that_know_their_best_are_doubted():
    words = doubted(SIZES[:4] + SIZES[4:5], {"rows": 4000, "width": 64}, bend=1e-6, noise=0.05)
    assert "0 of 5 sizes know their best strength" in words
    assert "law over rows and width needs 5" in words
    assert "4 of 4 sizes" in doubted(
        [{"rows": r, "width": w} for r in (250, 500) for w in (32, 64)], {"rows": 900, "width": 99}
    )


def test_a_target_too_far_away_is_doubted():
    words = doubted(ROWS, {"rows": 2000 * 70}, by_rows, noise=1e-4)
    assert "rows 140000 is 70 times the largest size" in words
    assert "those span a factor of 8 only; search up to 2188 or more" in words
    near = predict_strength(
        [(one, searched(by_rows(one), noise=1e-4)) for one in ROWS], {"rows": 16000}
    )
    assert near.believed


def test_an_optimum_at_the_end_of_the_grid_is_doubted():
    words = doubted(ROWS, {"rows": 4000}, lambda one: by_rows(one, 4.1), noise=1e-4)
    assert "at rows 250 the best strength is the largest tried; the grid must go" in words


def test_a_wide_interval_is_doubted():
    words = doubted(ROWS, {"rows": 16000}, noise=0.03, best=by_rows)
    assert "interval of the strength spans a factor of" in words and "more than 4" in words


def test_sizes_off_any_power_law_are_doubted():
    steps = {250: 0.0, 500: 1.5, 1000: 0.0, 2000: 1.5}
    words = doubted(ROWS, {"rows": 4000}, lambda one: by_rows(one, steps[one["rows"]]), noise=1e-3)
    assert (
        "lie farther off a power law of the strength than their errors allow (chi-square" in words
    )


MNIST = {
    (100, 8): (1.23, 0.139), (100, 16): (2.0, 0.321), (100, 32): (3.03, 0.084),
    (200, 8): (1.08, 0.084), (200, 16): (1.45, 0.084), (200, 32): (2.56, 0.084),
    (400, 8): (0.915, 0.084), (400, 16): (1.22, 0.084), (400, 32): (1.84, 0.084),
}  # fmt: skip
"""The best strengths of a small MLP on MNIST by rows and width, a fifth of the labels wrong, with
the standard errors of their logarithms; at 3,200 rows and width 256 the best was 1.75."""


def test_powers_that_may_change_with_each_other_are_doubted_only_beyond_both():
    """Of MNIST the plain law gives 3.3 (1.9 to 5.8), narrow enough and wrong: with more rows the
    power of the width falls, and nine sizes do not tell by how much."""
    sizes = [{"rows": rows, "width": width} for rows, width in MNIST]
    best = lambda one: math.log(MNIST[one["rows"], one["width"]][0])
    errors = {size: error for size, (_, error) in MNIST.items()}
    found = predict(sizes, best, errors, {"rows": 3200, "width": 256})
    one = found.predictions["strength"]
    assert one.factor < 4 and one.low > 1.75
    (doubt,) = found.doubts
    assert "beyond the sizes searched in rows and width at once" in doubt
    for target in ({"rows": 3200, "width": 32}, {"rows": 400, "width": 256}):
        assert predict(sizes, best, errors, target).believed
    # Where the optima are known to a thousandth, so is that the powers do not change.
    exact = dict.fromkeys(MNIST, 1e-3)
    assert predict(sizes, planted, exact, {"rows": 3200, "width": 256}).believed
    assert not predict(sizes[:5], best, errors, {"rows": 3200, "width": 256}).believed
    huge = predict(sizes, planted, exact, {"rows": 1e150, "width": 1e150})  # No float holds it.
    assert any("rows and width at once" in doubt for doubt in huge.doubts)


def predict(sizes, best, errors, target):
    """From searches that would know their best to within those errors."""
    logs = {tuple(one.values()): best(one) for one in sizes}

    def known(scores, **how):
        size = scores.grid["size"]
        return {"strength": Best(logs[size], errors[size], None, 0.0)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "find_optimum", known)
        return predict_strength(
            [(one, Scores({"size": tuple(one.values())}, {})) for one in sizes], target
        )


@pytest.mark.parametrize(
    ("sizes", "target", "words"),
    [
        (ROWS[:3], {"rows": 4000}, "needs 4 sizes or more, got 3"),
        ([*ROWS[:3], {"width": 3}], {"rows": 4000}, "every size must name rows; got width"),
        ([*ROWS[:3], ROWS[0]], {"rows": 4000}, "two of the sizes are the same"),
        ([*ROWS[:3], {"rows": 0}], {"rows": 4000}, "`rows` must be finite and > 0"),
        (ROWS, {}, "`rows` varies among the sizes, so the target must say it; the largest.*2000"),
        (ROWS, {"rows": 1000}, "target's `rows` is 1000, below the 2000 of a size.*smaller sizes"),
        (ROWS, {"rows": 4000, "depth": 2}, "target names 'depth', which no size does"),
        (SIZES[:4], {"rows": 4000, "width": 99}, "`width` is 64 at every size, so nothing tells"),
    ],
)
def test_sizes_that_tell_nothing_of_the_target_are_refused(sizes, target, words):
    scores = searched(0.3)
    with pytest.raises(ValueError, match=words):
        predict_strength([(one, scores) for one in sizes], target)
