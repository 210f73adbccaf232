"""Ridge in closed form: leave-one-out, generalised cross-validation, and the evidence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

import wdjax
from wdjax.exact import ridge_left_out, ridge_log_evidence
from wdjax.types import Batch

RNG = np.random.default_rng(0)
STRENGTHS = [0.0, 0.05, 2.0]


def problem(num_examples=14, num_features=3, num_outputs=2):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(num_examples, num_features))
    y = x @ rng.normal(size=(num_features, num_outputs)) + 1.0
    return x, y + rng.normal(size=y.shape)


X, Y = problem()
COUNTS = np.array([1, 2, 0, 3, 1, 1, 2, 1, 0, 1, 1, 4, 1, 1])


def minimum(x, y, strength, intercept):
    """`(kernel, bias)` of mean |y - x W - b|^2 / 2 + strength / 2 |W|^2, by normal equations."""
    z = np.c_[x, np.ones(len(x))] if intercept else x
    penalty = strength * np.diag([1.0] * x.shape[1] + [0.0] * int(intercept))
    w = np.linalg.solve(z.T @ z / len(x) + penalty, z.T @ y / len(x))
    return (w[:-1], w[-1]) if intercept else (w, np.zeros(y.shape[1]))


# Leave-one-out


@pytest.mark.parametrize("intercept", [True, False])
def test_leave_one_out_is_what_refitting_without_each_example_gives(intercept):
    found = wdjax.leave_one_out(X, Y, STRENGTHS, intercept=intercept)
    expected = np.zeros((3, 14))
    for row, strength in enumerate(STRENGTHS):
        for i in range(14):
            others = np.arange(14) != i
            kernel, bias = minimum(X[others], Y[others], strength, intercept)
            expected[row, i] = 0.5 * np.square(Y[i] - X[i] @ kernel - bias).sum()
    np.testing.assert_allclose(found.scores.of("loss")[:, :, 0], expected, rtol=1e-10)
    assert found.choice.index == expected.mean(axis=1).argmin()
    assert found.cost.trainings == 1 and found.cost.memory > 0


def test_an_example_of_weight_three_is_three_left_out_at_once_and_one_of_weight_zero_is_none():
    x, y = X.copy(), Y.copy()
    x[2], y[8] = np.nan, np.inf  # Of weight 0: not even looked at.
    found = wdjax.leave_one_out(x, y, STRENGTHS, weights=COUNTS)
    of_row = np.repeat(np.arange(14), COUNTS)
    for row, strength in enumerate(STRENGTHS):
        losses = []
        for i in of_row:
            kernel, bias = minimum(X[of_row[of_row != i]], Y[of_row[of_row != i]], strength, True)
            losses.append(0.5 * np.square(Y[i] - X[i] @ kernel - bias).sum())
        np.testing.assert_allclose(found.scores.mean()["loss"][row], np.mean(losses), rtol=1e-10)
    assert found.scores.held_out.examples[:, 0].tolist() == np.flatnonzero(COUNTS).tolist()
    doubled = wdjax.leave_one_out(x, y, STRENGTHS, weights=2.0 * COUNTS)
    np.testing.assert_allclose(doubled.scores.of("loss"), found.scores.of("loss"), rtol=1e-10)


def test_scikit_learns_ridge_leaves_out_the_same_at_alpha_over_n_minus_one():
    from sklearn.linear_model import RidgeCV

    alphas = np.array([0.3, 2.0, 20.0])
    ours = wdjax.leave_one_out(X, Y[:, 0], alphas / 13)
    theirs = RidgeCV(alphas, store_cv_results=True).fit(X, Y[:, 0])
    np.testing.assert_allclose(2 * ours.scores.of("loss")[:, :, 0], theirs.cv_results_.T)
    assert ours.choice.hparams["strength"] == theirs.alpha_ / 13


@pytest.mark.parametrize("intercept", [True, False])
def test_generalised_cross_validation_is_the_formula_of_the_hat_matrix(intercept):
    found = wdjax.leave_one_out(X, Y, STRENGTHS, weights=COUNTS, intercept=intercept, value="gcv")
    x, y, w = X[COUNTS > 0], Y[COUNTS > 0], COUNTS[COUNTS > 0] / COUNTS.sum()
    z = np.c_[x, np.ones(len(x))] if intercept else x
    expected = []
    for strength in STRENGTHS:
        penalty = strength * np.diag([1.0] * 3 + [0.0] * int(intercept))
        hat = z @ np.linalg.solve(z.T @ (w[:, None] * z) + penalty, z.T * w)
        residuals = y - hat @ y
        left = 1 - np.trace(hat) / len(x)
        expected.append(0.5 * (w @ np.square(residuals).sum(axis=1)) / left**2)
    np.testing.assert_allclose(found.scores.mean()["gcv"], expected, rtol=1e-10)
    assert found.choice.value == "gcv" and found.choice.index == np.argmin(expected)


def test_the_verdict_judges_what_was_left_out_as_it_judges_n_folds(x64, key):
    """Against `cross_validate` with one fold an example: the same scores, choice and intervals."""

    def fit_and_score(h, train, valid, key):
        gram = train.inputs.T @ train.inputs / 13 + h["strength"] * jnp.eye(3)
        w = jnp.linalg.solve(gram, train.inputs.T @ train.targets / 13)
        return {"loss": wdjax.squared_error(valid.inputs @ w, valid.targets)}

    folds = wdjax.kfold(key, 14, 14)
    grid = wdjax.grid_product(strength=STRENGTHS)
    scores = wdjax.cross_validate(fit_and_score, grid, Batch(X, Y, np.ones(14)), folds, key=key)
    found = wdjax.leave_one_out(X, Y, STRENGTHS, intercept=False)
    order = np.asarray(folds.valid)[:, 0]
    np.testing.assert_allclose(scores.of("loss"), found.scores.of("loss")[:, order], rtol=1e-10)
    one, other = wdjax.choose(scores), found.choice
    assert (one.index, one.confident_set) == (other.index, other.confident_set)
    np.testing.assert_allclose(one.gain[:3], other.gain[:3], rtol=1e-9)
    assert other.gain.method == "folds" and "alone" not in other.reason


def test_a_gain_of_many_useless_features_is_seen_and_the_largest_strength_is_doubted():
    x = RNG.normal(size=(150, 100))
    y = 0.15 * x @ RNG.normal(size=100) + RNG.normal(size=150)
    found = wdjax.leave_one_out(x, y, [0.0, 0.3, 1000.0])
    assert found.choice.index == 1 and found.believed
    assert found.choice.gain.verdict == "helps" and found.choice.confident_set == (1,)
    end = wdjax.leave_one_out(x, y, [0.0, 0.01, 0.1])
    assert not end.believed and "0.1, is the largest tried" in end.doubts[0]


def test_the_closed_form_has_derivatives_in_the_strength(x64):
    mean = lambda s: jnp.mean(jnp.square(ridge_left_out(X, Y, s[None], np.ones(14)).residuals))
    with_slope = jax.jit(jax.value_and_grad(mean))
    slope = with_slope(0.05)[1]
    around = [with_slope(0.05 + h)[0] for h in (-1e-5, 1e-5)]
    np.testing.assert_allclose(slope, (around[1] - around[0]) / 2e-5, rtol=1e-7)


ALONE = np.c_[X, np.eye(14)[5]]
"""With a feature that one example alone has."""


@pytest.mark.parametrize(
    ("features", "targets", "strengths", "more", "words"),
    [
        (X[:, 0], Y, [1.0], {}, r"`features` must be numbers \[example, feature\].*shape \(14,\)"),
        (X, Y[:5], [1.0], {}, r"of the 14 examples.*shape \(5, 2\)"),
        (X, Y, [-1.0], {}, "`strength` must be >= 0, got -1"),
        (X, Y, [], {}, "`strength` must hold at least one number"),
        (X, Y, [1.0], {"weights": np.zeros(14)}, "`weights` are all zero"),
        (X, Y, [1.0], {"weights": -COUNTS}, "`weights` must be finite and >= 0, got -1 in row 0"),
        (X, Y, [1.0], {"weights": COUNTS[:3]}, r"must have shape \(14,\), one per example"),
        (X, Y, [1.0], {"weights": np.eye(14)[0]}, "at least 2 examples must count, got 1"),
        (np.where(X == X[4, 1], np.nan, X), Y, [1.0], {}, "must be finite, got nan in row 4"),
        (ALONE, Y, [0.0, 1.0], {}, "example 5 .*cannot be left out at strength 0: its leverage is"),
        (X[:3], Y[:3], [0.0], {}, r"its leverage is 1.*\(3 of 3 are so\); raise the smallest"),
        (X, Y, [1.0], {"value": "accuracy"}, "`value` must be one of gcv, loss"),
    ],
)
def test_what_cannot_be_left_out_is_refused_in_words(features, targets, strengths, more, words):
    with pytest.raises(ValueError, match=words):
        wdjax.leave_one_out(features, targets, strengths, **more)


def test_an_example_alone_with_its_feature_is_left_out_at_a_strength_above_zero():
    found = wdjax.leave_one_out(ALONE, Y, [1.0])
    others = np.arange(14) != 5
    kernel, bias = minimum(ALONE[others], Y[others], 1.0, True)
    expected = 0.5 * np.square(Y[5] - ALONE[5] @ kernel - bias).sum()
    np.testing.assert_allclose(found.scores.of("loss")[0, 5, 0], expected, rtol=1e-8)


# The evidence


def contrasts(n):
    """`[n - 1, n]`, orthonormal rows that sum to 0."""
    return np.linalg.svd(np.ones((1, n)))[2][1:]


@pytest.mark.parametrize("intercept", [True, False])
def test_the_log_evidence_is_the_density_of_the_targets(x64, intercept):
    """With an intercept of flat prior: of their contrasts. Weights repeat rows."""
    x, y = np.repeat(X, COUNTS, axis=0), np.repeat(Y, COUNTS, axis=0)
    if intercept:
        x, y = contrasts(len(x)) @ x, contrasts(len(y)) @ y
    covariance = 0.7 * np.eye(len(x)) + x @ x.T / 2.5
    expected = stats.multivariate_normal(np.zeros(len(x)), covariance).logpdf(y.T).sum()
    some = COUNTS > 0
    weights = COUNTS[some].astype(float)
    density = jax.jit(ridge_log_evidence, static_argnames="intercept")
    found = density(X[some], Y[some], weights, 2.5, 0.7, intercept=intercept)
    np.testing.assert_allclose(found, expected, rtol=1e-11)


@pytest.mark.parametrize("intercept", [True, False])
def test_the_evidence_is_stationary_at_the_fixed_point(x64, intercept):
    found = wdjax.ridge_evidence(X, Y, weights=COUNTS, intercept=intercept)
    some = COUNTS > 0
    arrays = (X[some], Y[some], COUNTS[some].astype(float))
    log_evidence = lambda logs: ridge_log_evidence(*arrays, *jnp.exp(logs), intercept=intercept)
    logs = jnp.log(jnp.array([found.precision, found.noise]))
    derivatives = lambda f: (f, jax.grad(f), jax.hessian(f))
    value, slope, curvature = jax.jit(lambda x: [f(x) for f in derivatives(log_evidence)])(logs)
    np.testing.assert_allclose(value, found.log_evidence, rtol=1e-11)
    np.testing.assert_allclose(slope, 0, atol=1e-8)
    assert np.linalg.eigvalsh(curvature).max() < 0  # A maximum.
    # The error is that of log(strength) = log(delta s2) + a constant.
    covariance = np.linalg.inv(-curvature)
    np.testing.assert_allclose(found.error, np.sqrt(covariance.sum()), rtol=1e-8)


def test_the_strength_is_that_of_the_projects_own_loss(x64):
    found = wdjax.ridge_evidence(X, Y, weights=COUNTS)
    total, size = COUNTS.sum(), np.square(found.params["kernel"]).sum()
    np.testing.assert_allclose(found.strength, found.precision * found.noise / total)
    np.testing.assert_allclose(found.precision, found.num_effective / size)
    linear = lambda params, x: x @ params["kernel"] + params["bias"][None]
    penalty = wdjax.l2_penalty(found.strength, parts={"kernel": 1.0, "bias": 0.0})
    loss = wdjax.regularized_loss(linear, wdjax.squared_error, penalty)
    batch = Batch(X, Y, COUNTS.astype(float))
    grads = jax.jit(jax.grad(lambda p: loss(p, batch)[0]))(found.params)
    jax.tree.map(lambda g: np.testing.assert_allclose(g, 0, atol=1e-12), grads)


def test_scikit_learns_bayesian_ridge_agrees_with_flat_hyperpriors():
    from sklearn.linear_model import BayesianRidge

    flat = dict(alpha_1=0.0, alpha_2=0.0, lambda_1=0.0, lambda_2=0.0)
    theirs = BayesianRidge(fit_intercept=False, tol=1e-14, max_iter=10_000, **flat)
    theirs.fit(X, Y[:, 0])
    ours = wdjax.ridge_evidence(X, Y[:, 0], intercept=False)
    np.testing.assert_allclose(ours.noise, 1 / theirs.alpha_, rtol=1e-6)
    np.testing.assert_allclose(ours.precision, theirs.lambda_, rtol=1e-6)
    np.testing.assert_allclose(ours.params["kernel"][:, 0], theirs.coef_, rtol=1e-6)


def test_the_scores_are_the_log_evidence_of_strengths_around_the_best(x64):
    found = wdjax.ridge_evidence(X, Y)
    density = jax.jit(lambda delta, noise: ridge_log_evidence(X, Y, np.ones(14), delta, noise))
    for strength, told in zip(
        found.search.scores.grid["strength"], found.search.scores.of("log_evidence"), strict=True
    ):
        at = lambda log_noise, ridge=14 * strength: (
            -float(density(ridge / np.exp(log_noise), np.exp(log_noise)))
        )
        best = optimize.minimize_scalar(at, bracket=(-1, 1))
        np.testing.assert_allclose(told[0, 0], -best.fun, rtol=1e-8)
    choice = found.search.choice
    assert choice.hparams == {"strength": found.strength} and choice.higher_is_better
    low, high = found.interval
    inside = found.search.scores.grid["strength"][list(choice.confident_set)]
    assert choice.index in choice.confident_set and low < inside.min() and inside.max() < 2 * high
    assert found.search.cost.trainings == 1
    assert found.search.to_dict()["choice"]["rule"] == "evidence"


def test_the_evidence_says_when_it_must_not_be_believed():
    kernel, bias = minimum(X, Y, 0.0, True)
    unrelated = wdjax.ridge_evidence(X, Y - X @ kernel - bias)
    assert "grows with the strength without end" in unrelated.search.doubts[0]
    exact = wdjax.ridge_evidence(X, X @ np.ones((3, 2)))
    assert "grows towards strength 0" in exact.search.doubts[0]
    few = wdjax.ridge_evidence(X[:4, :1], Y[:4, 0])
    assert not few.search.believed
    assert wdjax.ridge_evidence(X, Y).search.believed


@pytest.mark.parametrize(
    ("features", "targets", "weights", "words"),
    [
        (X, np.ones(14), None, "`targets` are the same in every example that counts"),
        (np.ones((14, 2)), Y, None, "`features` are the same in every example that counts"),
        (X, np.where(Y == Y[3, 0], np.inf, Y), None, "`targets` must be finite, got inf in row 3"),
        (X[:1], Y[:1], None, "at least 2 examples must count, got 1"),
        (X, Y, np.ones(14) / 14, "`weights` count examples here, and sum to 1, less than 2"),
    ],
)
def test_an_evidence_of_nothing_is_refused_in_words(features, targets, weights, words):
    with pytest.raises(ValueError, match=words):
        wdjax.ridge_evidence(features, targets, weights=weights)
