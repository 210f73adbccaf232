"""Every statement of `docs/derivations.md` in float64: algebra in NumPy, and the library beside it.

The baselines are loops over formulas, in NumPy and SciPy, that share no code with the library.
Tolerances are those of rounding, unless a docstring says what else they allow for.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
import scipy.optimize
import scipy.stats

from wdjax.decay import (
    cautious_decay,
    constrained_decay,
    convert_strength,
    corrected_decay,
    decay_weights,
    decoupled_decay,
    fixed_bound,
    huber_decay,
    proximal_elastic_net,
    proximal_group_lasso,
    proximal_l1,
    proximal_l2,
    timescale_strength,
)
from wdjax.losses import regularized_loss, squared_error
from wdjax.penalties import l2_penalty
from wdjax.types import Batch


@pytest.fixture(autouse=True)
def float64(x64):
    """All of it."""


def run(tx, w, grad, num_steps):
    """The weights after `num_steps` updates of an optax transformation, as one scan."""

    def step(carry, t):
        w, state = carry
        updates, state = tx.update(grad(w, t), state, w)
        return (optax.apply_updates(w, updates), state), None

    scan = lambda w: jax.lax.scan(step, (w, tx.init(w)), jnp.arange(num_steps))[0]
    w, state = jax.jit(scan)(jnp.asarray(w))
    return np.asarray(w), state


def spd(size, seed=0):
    """A quadratic `(w - a)' H (w - a) / 2`: H of eigenvalues 0.1 to 2, and a."""
    rng = np.random.default_rng(seed)
    vectors = np.linalg.qr(rng.normal(size=(size, size)))[0]
    values = np.linspace(0.1, 2.0, size)
    return vectors @ np.diag(values) @ vectors.T, values, vectors, rng.normal(size=size)


def slope(f, x, h=1e-6):
    """The central difference, which is exact on quadratics."""
    return (f(x + h) - f(x - h)) / (2 * h)


# 1. A penalty is a pull.


def test_a_penalty_with_the_half_pulls_by_lam_w_and_without_it_by_twice_that():
    w, g, eta, lam = np.array([1.5, -2.0]), np.array([0.3, 0.4]), 0.1, 0.7
    directions = np.eye(2)
    half = [slope(lambda e: lam / 2 * np.sum((w + e * d) ** 2), 0.0) for d in directions]  # noqa: B023
    whole = [slope(lambda e: lam * np.sum((w + e * d) ** 2), 0.0) for d in directions]  # noqa: B023
    np.testing.assert_allclose(half, lam * w, rtol=1e-9)
    np.testing.assert_allclose(whole, 2 * lam * w, rtol=1e-9)
    np.testing.assert_allclose(w - eta * (g + half), (1 - eta * lam) * w - eta * g, rtol=1e-9)
    np.testing.assert_allclose(jax.grad(l2_penalty(lam))(jnp.asarray(w)), half, rtol=1e-9)


@pytest.mark.parametrize(
    ("rate", "turns", "size"),
    [(0.3, False, "shrinks"), (1.0, False, "gone"), (1.7, True, "shrinks"), (2.0, True, "keeps")]
    + [(2.1, True, "grows")],
)
def test_below_two_a_weight_shrinks_at_two_it_keeps_its_size_and_above_it_grows(rate, turns, size):
    """Alone, without a data gradient; and what is refused is what does not shrink."""
    w = [1.0]
    for _ in range(5):
        w.append(w[-1] - rate * w[-1])
    sizes, signs = np.abs(w), np.sign(w)
    assert (signs[1] == -1) == turns
    expected = {"shrinks": sizes[1:] < sizes[:-1], "keeps": sizes[1:] == sizes[:-1]}
    expected |= {"grows": sizes[1:] > sizes[:-1], "gone": sizes[1:] == 0}
    assert expected[size].all()
    if size in ("keeps", "grows"):
        with pytest.raises(ValueError, match="at 2 it only changes sign, above 2 each step grows"):
            decay_weights(rate)


@pytest.mark.filterwarnings("ignore:a step removes")
def test_with_data_a_step_contracts_only_while_eta_h_plus_c_is_below_two():
    """On `h (w - a)^2 / 2`: c = 1.5 alone shrinks, eta h = 1.5 alone converges, both diverge."""
    eta, a = 0.5, 1.0
    for h, c, converges in ((3.0, 0.4, True), (3.0, 0.6, False), (0.5, 1.5, True), (3, 1.5, False)):
        w = 5.0
        for _ in range(200):
            w = w - eta * h * (w - a) - c * w
        assert (eta * h + c < 2) == converges == bool(abs(w) < 5)
        tx = optax.chain(optax.sgd(eta), decay_weights(c))
        found, _ = run(tx, np.array([5.0]), lambda w, t, h=h: h * (w - a), 200)
        np.testing.assert_allclose(found, w, rtol=1e-9)


def test_the_penalised_minimum_keeps_of_each_eigen_direction_its_share():
    """`(H + lam I)^-1 H a`, where the gradient is zero; along an eigenvector `h / (h + lam)`."""
    h, values, vectors, a = spd(5)
    for lam in (0.01, 0.5, 10.0):
        w = np.linalg.solve(h + lam * np.eye(5), h @ a)
        np.testing.assert_allclose(h @ (w - a) + lam * w, 0, atol=1e-14)
        shares = (vectors.T @ w) / (vectors.T @ a)
        np.testing.assert_allclose(shares, values / (values + lam), rtol=1e-11)
        objective = lambda x, lam=lam: (x - a) @ h @ (x - a) / 2 + lam / 2 * x @ x
        tries = w + 1e-3 * np.random.default_rng(1).normal(size=(200, 5))
        assert min(objective(x) for x in tries) > objective(w)


def test_l2_shrinks_the_norm_and_every_eigen_component_but_not_every_weight():
    """H = [[1, .9], [.9, 1]] and a = (1, 0): at lam = 0.5 the weight that was zero is 0.3125."""
    h, a = np.array([[1.0, 0.9], [0.9, 1.0]]), np.array([1.0, 0.0])
    ridge = lambda lam: np.linalg.solve(h + lam * np.eye(2), h @ a)
    np.testing.assert_allclose(ridge(0.5), [0.4792, 0.3125], atol=5e-5)
    tx = optax.chain(optax.sgd(0.2), decoupled_decay(0.5, 0.2))
    found, _ = run(tx, np.zeros(2), lambda w, t: jnp.asarray(h) @ (w - a), 600)
    np.testing.assert_allclose(found, ridge(0.5), rtol=1e-12)
    path = np.array([ridge(lam) for lam in np.geomspace(1e-3, 1e3, 60)])
    assert (np.diff(np.linalg.norm(path, axis=1)) < 0).all()
    components = np.abs(path @ np.linalg.eigh(h)[1])
    assert (np.diff(components, axis=0) < 0).all()
    assert path[:, 1].max() > 0.3 and np.all(path != 0)  # none is zero, one has grown from zero


def test_the_free_weights_of_ridge_are_the_trace_of_its_hat_matrix():
    """sum h / (h + lam) is `sum_i d yhat_i / d y_i`, by refitting with one target moved at a time;
    it falls smoothly from the number of weights to 0, and no weight is removed."""
    rng = np.random.default_rng(2)
    n, d = 30, 4
    x, y = rng.normal(size=(n, d)), rng.normal(size=n)
    values = np.linalg.eigvalsh(x.T @ x / n)

    def fit(y, lam):
        """Least squares with `sqrt(n lam) w = 0` as d rows more."""
        rows = np.vstack([x, np.sqrt(n * lam) * np.eye(d)])
        return np.linalg.lstsq(rows, np.concatenate([y, np.zeros(d)]), rcond=None)[0]

    free = lambda lam: (values / (values + lam)).sum()
    for lam in (0.0, 0.1, 2.0):
        moved = [x[i] @ (fit(y + np.eye(n)[i], lam) - fit(y, lam)) for i in range(n)]
        np.testing.assert_allclose(sum(moved), free(lam), rtol=1e-10)
        assert (fit(y, lam) != 0).all()
    curve = [free(lam) for lam in [0.0, *np.geomspace(1e-4, 1e6, 50)]]
    assert curve[0] == d and (np.diff(curve) < 0).all() and curve[-1] < 1e-4


@pytest.mark.parametrize("lam", [0.0, 0.4])
def test_descent_on_any_quadratic_follows_its_closed_form_along_every_eigenvector(lam):
    """w_t = fix + (1 - eta h - c)^t (w_0 - fix), fix = eta h a / (eta h + c), at constant eta."""
    h, values, vectors, a = spd(4)
    eta, num_steps = 0.3, 25
    c, w0 = eta * lam, np.random.default_rng(3).normal(size=4)
    along = lambda w: vectors.T @ w
    fix = eta * values * along(a) / (eta * values + c)
    expected = vectors @ (fix + (1 - eta * values - c) ** num_steps * (along(w0) - fix))
    tx = optax.chain(optax.sgd(eta), decoupled_decay(lam, eta))
    found, _ = run(tx, w0, lambda w, t: jnp.asarray(h) @ (w - a), num_steps)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def ridge_error(x, truth, s2, lam):
    """The expected squared error of ridge at a fixed design, as bias and variance, by matrices."""
    n, d = x.shape
    inverse = np.linalg.inv(x.T @ x / n + lam * np.eye(d))
    bias = inverse @ (x.T @ x / n) @ truth - truth
    return bias @ bias + s2 / n * np.trace(inverse @ (x.T @ x / n) @ inverse)


def test_some_decay_always_helps_a_noisy_estimate_and_the_best_is_d_s2_over_n_w2():
    """Exact where X'X = n I: the error, its slope of -2 s2 / n at 0, the best and the limit."""
    n, d, s2 = 40, 6, 2.0
    rng = np.random.default_rng(4)
    x = np.linalg.qr(rng.normal(size=(n, d)))[0] * np.sqrt(n)
    truth = rng.normal(size=d)
    noise = np.sqrt(s2) * rng.normal(size=n)
    estimate = np.linalg.solve(x.T @ x / n + 0.2 * np.eye(d), x.T @ (x @ truth + noise) / n)
    seen = x.T @ noise / np.sqrt(n)  # of variance s2 along each direction
    np.testing.assert_allclose(estimate, (truth + seen / np.sqrt(n)) / 1.2, rtol=1e-11)
    error = functools.partial(ridge_error, x, truth, s2)
    for lam in (0.0, 0.2, 3.0):
        formula = ((lam * truth) ** 2 + s2 / n).sum() / (1 + lam) ** 2
        np.testing.assert_allclose(error(lam), formula, rtol=1e-12)
    np.testing.assert_allclose(slope(error, 0.0), -2 * s2 / n * d, rtol=1e-7)
    best = scipy.optimize.minimize_scalar(error, bounds=(0, 10), options={"xatol": 1e-10}).x
    np.testing.assert_allclose(best, d * s2 / (n * truth @ truth), rtol=1e-5)
    np.testing.assert_allclose(error(1e9), truth @ truth, rtol=1e-8)


def test_the_best_strength_holds_for_random_features_only_while_n_is_far_above_d():
    """Mean over 40 Gaussian designs: at n = 50 d the best and the error without decay, d s2 / n,
    are within 5 %; at n = d, where X'X / n is far from the identity, that error is over five times
    as large as the formula says."""
    d, s2 = 8, 1.0
    rng = np.random.default_rng(5)
    truth = np.ones(d) / np.sqrt(d)
    ratios, found = [], {}
    for n in (50 * d, d):
        designs = rng.normal(size=(40, n, d))
        mean = lambda lam, designs=designs: np.mean(
            [ridge_error(x, truth, s2, lam) for x in designs]
        )
        found[n] = scipy.optimize.minimize_scalar(mean, bounds=(0, 20)).x / (d * s2 / n)
        ratios.append(mean(1e-9) / (d * s2 / n))
    np.testing.assert_allclose([found[50 * d], ratios[0]], 1, rtol=0.05)
    assert ratios[1] > 5


# 2. Coupled and decoupled.


def test_in_the_coupled_form_a_pull_lasts_and_follows_the_learning_rates_of_later_steps():
    """A pull that the gradient has at step 0 alone moves the weight by eta_k beta^k of it at step
    k: 1 / (1 - beta) times as much in all at a constant rate, most of it within that many steps."""
    beta, lam, w0 = 0.9, 0.1, 2.0
    for etas in (np.full(400, 0.05), reference.cosine_schedule(0.05, 400)):
        v, moved = 0.0, []
        for t, eta in enumerate(etas):
            v = beta * v + (lam * w0 if t == 0 else 0.0)
            moved.append(-eta * v)
        np.testing.assert_allclose(moved, -etas * beta ** np.arange(400) * lam * w0, rtol=1e-12)
        if etas[-1] == etas[0]:
            np.testing.assert_allclose(sum(moved), -etas[0] * lam * w0 / (1 - beta), rtol=1e-12)
            assert 0.6 < sum(moved[:10]) / sum(moved) < 0.7  # 1 - 0.9^10
    tx, pulls = optax.sgd(0.05, momentum=beta), jnp.zeros(50).at[0].set(lam * w0)
    found, _ = run(tx, np.array([w0]), lambda w, t: pulls[t] * jnp.ones(1), 50)
    np.testing.assert_allclose(w0 - found, 0.05 * lam * w0 * (1 - beta**50) / 0.1, rtol=1e-12)


def test_under_momentum_the_coupled_rests_at_the_ridge_point_and_the_decoupled_nearer_the_data():
    """The data's step is 1 / (1 - beta) times as large in both; the pull only where it is coupled.
    So on `h (w - a)^2 / 2` they rest at h a / (h + lam) and h a / (h + (1 - beta) lam)."""
    beta, eta, lam, h, a = 0.9, 0.05, 0.5, 2.0, np.array([1.0, -3.0])
    grad = lambda w, t: h * (w - a)
    sgd, start = optax.sgd(eta, momentum=beta), np.array([4.0, 4.0])
    inside, _ = run(sgd, start, lambda w, t: grad(w, t) + lam * w, 900)
    beside, _ = run(optax.chain(sgd, decoupled_decay(lam, eta)), start, grad, 900)
    np.testing.assert_allclose(inside, h * a / (h + lam), rtol=1e-12)
    np.testing.assert_allclose(beside, h * a / (h + (1 - beta) * lam), rtol=1e-12)
    etas = np.full(900, eta)
    expected = reference.sgd(start, grad, etas, momentum=beta, decay_rates=etas * lam)
    np.testing.assert_allclose(beside, expected, rtol=1e-12)


# 3. Inside Adam.


def test_without_a_data_gradient_adams_first_step_is_the_same_at_every_strength_above_epsilon():
    """lam |w| / (lam |w| + eps) of the learning rate: the sign while lam |w| is far above
    epsilon, proportional to lam where it is far below."""
    w, eps = np.array([2.0, -3.0]), 1e-8
    nothing = lambda w, t: np.zeros_like(w)
    for lam in (10.0, 1e-3, 1e-8, 1e-12):
        moved = reference.adam(w, nothing, np.array([0.01]), eps=eps, l2=lam) - w
        np.testing.assert_allclose(
            moved, -0.01 * np.sign(w) * lam * np.abs(w) / (lam * np.abs(w) + eps), rtol=1e-9
        )
        found, _ = run(optax.adam(0.01, eps=eps), w, lambda w, t, lam=lam: lam * w, 1)
        np.testing.assert_allclose(found - w, moved, rtol=1e-8)


def lost_inside_adam(lam, sizes, num_steps=400):
    """What a weight of 1 loses under gradients `+-size` that average out, penalty in the loss."""
    grad = lambda w, t: np.asarray(sizes) * (1.0 if t % 2 == 0 else -1.0)
    w = np.ones(len(sizes))
    return 1 - reference.adam(w, grad, np.full(num_steps, 1e-3), b1=0.0, l2=lam)


def test_where_the_data_gradient_dominates_a_penalty_inside_adam_is_linear_in_its_strength():
    """The pull is eta lam w / sqrt(v): a tenth of the strength loses a tenth, to 1 %."""
    lost = [lost_inside_adam(lam, [10.0])[0] for lam in (0.1, 0.01, 0.001)]
    np.testing.assert_allclose(lost, [3.95e-3, 3.96e-4, 3.96e-5], rtol=5e-3)
    np.testing.assert_allclose(lost, np.array([0.1, 0.01, 0.001]) * 400 * 1e-3 / 10, rtol=0.02)
    w = jnp.ones(1)
    for lam, expected in zip((0.1, 0.001), (lost[0], lost[2]), strict=True):
        grad = lambda w, t, lam=lam: 10.0 * jnp.where(t % 2 == 0, 1.0, -1.0) + lam * w
        found, _ = run(optax.adam(1e-3, b1=0.0), w, grad, 400)
        np.testing.assert_allclose(1 - found[0], expected, rtol=1e-7)


def test_inside_adam_weights_of_large_gradients_decay_less_and_beside_it_all_alike():
    """Gradients of 10, 1 and 0.1 lose as 1 to 10 to 100 by a penalty, within 3 % (the penalty is
    itself a part of sqrt(v)); beside the step all lose 1 - (1 - eta lam)^T."""
    sizes, lam = np.array([10.0, 1.0, 0.1]), 1e-3
    lost = lost_inside_adam(lam, sizes)
    np.testing.assert_allclose(lost / lost[0], [1, 10, 100], rtol=0.03)
    grad = lambda w, t: sizes * (1.0 if t % 2 == 0 else -1.0)
    etas = np.full(400, 1e-3)
    beside = reference.adam(np.ones(3), grad, etas, b1=0.0, decay_rates=etas * 0.1)
    alone = reference.adam(np.ones(3), grad, etas, b1=0.0)
    np.testing.assert_allclose(alone - beside, 1 - (1 - 1e-4) ** 400, rtol=0.02)


@pytest.mark.parametrize("m", [0.25, 4.0])
def test_under_adam_a_constant_part_weight_is_a_penalty_divided_by_it(m):
    """`m g + lam w = m (g + lam / m w)`, and Adam divides the common m out: part weight m with
    strength lam runs as no part weight with lam / m. With no penalty m does nothing."""
    rng = np.random.default_rng(6)
    x, y, w0 = rng.normal(size=(8, 3)), rng.normal(size=8), rng.normal(size=3)
    batch = Batch(jnp.asarray(x), jnp.asarray(y), jnp.ones(8))
    linear = lambda w, x: x @ w["w"]
    data = lambda w, t: x.T @ (x @ w - y) / 8
    etas, eps = np.full(30, 0.05), 1e-300
    for lam in (0.0, 0.3):
        loss = regularized_loss(linear, squared_error, l2_penalty(lam), part_weights={"w": m})
        grad = jax.grad(lambda w, loss=loss: loss({"w": w}, batch)[0])
        found, _ = run(optax.adam(0.05, eps=eps), w0, lambda w, t, grad=grad: grad(w), 30)
        expected = reference.adam(w0, data, etas, eps=eps, l2=lam / m)
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    ignoring_m = reference.adam(w0, data, etas, eps=eps, l2=0.3)
    assert np.abs(found - ignoring_m).max() > 0.01


# 4. An average of updates.


def test_the_half_life_of_what_is_not_renewed_is_log_2_timescales_less_a_third_of_a_step():
    """The exact half-life, log(2) / -log(1 - 1 / tau), is log(2) (tau - 1/2) to 1 / (12 tau)."""
    for tau in (5.0, 50.0, 1000.0):
        half_life = np.log(2) / -np.log1p(-1 / tau)
        np.testing.assert_allclose((1 - 1 / tau) ** half_life, 0.5, rtol=1e-12)
        assert abs(half_life - np.log(2) * (tau - 0.5)) < np.log(2) / (12 * tau) * 1.2
    w, eta, lam = np.array([1.0]), 0.1, 0.2  # tau = 50
    tx = optax.chain(optax.sgd(eta), decoupled_decay(lam, eta))
    after = [run(tx, w, lambda w, t: 0 * w, steps)[0][0] for steps in (34, 35)]
    assert after[0] > 0.5 > after[1]


def test_one_timescale_in_epochs_forgets_alike_at_every_batch_and_data_size():
    """What three epochs leave of a weight is exp(-3 / timescale), to first order in 1 / tau, by
    the rule and at any sizes; at a strength that is not moved with them it is not."""
    eta, epochs, timescale = 0.01, 3, 20.0
    for n, b in ((50_000, 128), (50_000, 256), (10_000, 128)):
        lam = 1 / (eta * timescale * n / b)
        left = (1 - eta * lam) ** (epochs * n / b)
        np.testing.assert_allclose(left, np.exp(-epochs / timescale), rtol=2 * b / n)
        same = timescale_strength(timescale, learning_rate=eta, batch_size=b, num_examples=n)
        known = {"learning_rate": eta, "batch_size": b, "num_examples": n}
        converted = convert_strength(timescale, "timescale_epochs", "torch_adamw", **known)
        np.testing.assert_allclose([same, converted], lam, rtol=1e-12)
    kept = (1 - 1 / (timescale * 50_000 / 128)) ** (epochs * 50_000 / 256)
    assert kept > 1.05 * left


# 5. Before a norm.


def normalised_loss(w, x, y):
    """Half the mean squared error of a layer whose output is `x . w / |w|`."""
    return np.mean((x @ w / np.linalg.norm(w) - y) ** 2) / 2


def normalised_gradient(w, x, y):
    size = np.linalg.norm(w)
    of_direction = x.T @ (x @ w / size - y) / len(y)
    return (of_direction - w * (w @ of_direction) / size**2) / size


def test_before_a_norm_the_gradient_is_orthogonal_to_the_weights_and_falls_with_their_norm():
    rng = np.random.default_rng(7)
    x, y, w = rng.normal(size=(10, 4)), rng.normal(size=10), rng.normal(size=4)
    by_difference = lambda w: np.array(
        [slope(lambda e: normalised_loss(w + e * d, x, y), 0.0, 1e-5) for d in np.eye(4)]  # noqa: B023
    )
    np.testing.assert_allclose(normalised_gradient(w, x, y), by_difference(w), rtol=1e-7)
    np.testing.assert_allclose(normalised_loss(3 * w, x, y), normalised_loss(w, x, y), rtol=1e-14)
    assert abs(normalised_gradient(w, x, y) @ w) < 1e-15
    np.testing.assert_allclose(
        normalised_gradient(3 * w, x, y), normalised_gradient(w, x, y) / 3, rtol=1e-13
    )


@pytest.mark.parametrize("falls_with_the_norm", [False, True])
@pytest.mark.parametrize("c", [0.3, 0.01])
def test_orthogonal_steps_and_decay_rest_where_decay_alone_sets_the_angle(c, falls_with_the_norm):
    """Exact: |w|^2 = |d|^2 / (1 - (1 - c)^2) and cos(angle) = 1 - c, whether each step is as long
    as the last (Adam, Lion) or of length s / |w| (descent); about |d|^2 / 2c and sqrt(2 c)."""
    s, squared = 0.7, 25.0
    length = lambda squared: s / np.sqrt(squared) if falls_with_the_norm else s
    for _ in range(8000):
        squared = (1 - c) ** 2 * squared + length(squared) ** 2
    d2 = length(squared) ** 2
    np.testing.assert_allclose(squared, d2 / (1 - (1 - c) ** 2), rtol=1e-10)
    angle = np.arctan(np.sqrt(d2) / ((1 - c) * np.sqrt(squared)))
    np.testing.assert_allclose(np.cos(angle), 1 - c, rtol=1e-10)
    np.testing.assert_allclose(squared, d2 / (2 * c), rtol=c)
    np.testing.assert_allclose(angle, np.sqrt(2 * c), rtol=c)


def rest_square(a, alike, reach=6000):
    """|sum_j a^j d_(t-j)|^2 for steps of length 1 where d_t . d_(t+k) = alike(k), term by term."""
    ages = a ** np.arange(reach)
    total = (ages * ages).sum()
    for k in range(1, reach):
        total += 2 * alike(k) * (ages[:-k] * ages[k:]).sum()
    return total


def test_steps_that_resemble_each_other_lengthen_the_rest_norm_by_their_sum():
    """|d|^2 (1 + 2 sum_k r_k a^k) / (1 - a^2), by the double sum; under momentum, r_k = beta^k
    (from the weights of the average itself), the factor is (1 + beta a) / (1 - beta a)."""
    c, beta = 0.02, 0.8
    a = 1 - c
    average = (1 - beta) * beta ** np.arange(800)
    alike = lambda k: (average[:-k] @ average[k:]) / (average @ average) if k < 800 else 0.0
    np.testing.assert_allclose([alike(k) for k in (1, 5, 20)], beta ** np.array([1, 5, 20]))
    found = rest_square(a, alike, reach=2000)
    k = np.arange(1, 800)
    np.testing.assert_allclose(found, (1 + 2 * ((beta * a) ** k).sum()) / (1 - a**2), rtol=1e-9)
    np.testing.assert_allclose(found, (1 + beta * a) / (1 - beta * a) / (1 - a**2), rtol=1e-9)


def lion_alike(reach):
    """How alike Lion's directions `0.9 m + 0.1 g` are, k apart, by what they hold of gradients."""
    past = 0.9 * 0.01 * 0.99 ** np.arange(reach)
    weights = np.concatenate([[0.1], past])
    return np.array([weights[:-k] @ weights[k:] for k in range(1, 400)]) / (weights @ weights)


def test_lions_signs_resemble_each_other_as_a_momentum_of_0_957_far_below_c_of_0_01():
    """Directions 0.350 0.99^(k-1); signs by 2 / pi arcsin (the orthant probability, by SciPy);
    1 + 2 sum_k r_k a^k is 45.9 as c goes to 0, which a momentum of 0.957 has too, 31.0 at 5e-3."""
    alike = lion_alike(4000)
    k = np.arange(1, 400)
    np.testing.assert_allclose(alike, alike[0] * 0.99 ** (k - 1), rtol=1e-9)
    np.testing.assert_allclose(alike[0], 0.350, atol=5e-4)
    for r in (0.35, 0.1):
        both = scipy.stats.multivariate_normal([0, 0], [[1, r], [r, 1]]).cdf([0, 0])
        np.testing.assert_allclose(4 * both - 1, 2 / np.pi * np.arcsin(r), atol=1e-6)
    k = np.arange(1, 20_000)
    signs = 2 / np.pi * np.arcsin(alike[0] * 0.99 ** (k - 1))
    factor = lambda c: 1 + 2 * (signs * (1 - c) ** k).sum()
    np.testing.assert_allclose([factor(0), factor(5e-3)], [45.9, 31.0], atol=0.05)
    np.testing.assert_allclose((1 + 0.957) / (1 - 0.957), factor(0), rtol=0.01)
    np.testing.assert_allclose((1 + 0.957 * 0.995) / (1 - 0.957 * 0.995), 40.9, atol=0.05)


def rest_ratio(rate, eta, size=1.0):
    """|gradient| / |w| at rest under descent before a norm, where |gradient| = size / |w|."""
    w2 = 4.0
    for _ in range(40_000):
        w2 = (1 - rate) ** 2 * w2 + (eta * size) ** 2 / w2
    return size / w2


def test_at_fixed_lam_the_ratio_of_gradient_to_weight_drifts_and_corrected_decay_holds_it():
    """sqrt(2 lam / eta), to first order in c (1 %), grows as eta falls; with eta^2 / eta_max for
    eta it is sqrt(2 lam / eta_max) at every eta."""
    lam, peak = 0.05, 0.4
    for eta in (0.4, 0.1, 0.025):
        np.testing.assert_allclose(rest_ratio(eta * lam, eta), np.sqrt(2 * lam / eta), rtol=0.02)
        held = rest_ratio(eta**2 / peak * lam, eta)
        np.testing.assert_allclose(held, np.sqrt(2 * lam / peak), rtol=0.02)
        w = jnp.ones(1)
        tx = corrected_decay(lam, eta, peak)
        removed = -tx.update(jnp.zeros(1), tx.init(w), w)[0]
        np.testing.assert_allclose(removed, eta**2 / peak * lam, rtol=1e-12)


# 6. References, shapes and gates.


def cautious_run(eta_h, c, a, w, num_steps, noise=None):
    """`w <- w + u - c w [u w <= 0]`, u = eta_h (a - w) + noise, in NumPy."""
    path = []
    for t in range(num_steps):
        u = eta_h * (a - w) + (0.0 if noise is None else noise[t])
        w = w + u - c * w * (u * w <= 0)
        path.append(w)
    return np.array(path)


def test_the_minimum_of_the_loss_is_no_rest_of_cautious_decay():
    """With eta h = 1, c = 0.1, a = 2: at the minimum the update is 0, the gate is open and w goes
    to (1 - c) a; from there the step is whole again. So 2.0, 1.8, 2.0, ... Where rounding ends the
    approach on a itself, as at eta h = 0.9, it begins anew from 1.8."""
    expected = cautious_run(1.0, 0.1, 2.0, 2.0, 6)
    np.testing.assert_allclose(expected, [1.8, 2.0, 1.8, 2.0, 1.8, 2.0], rtol=1e-12)
    path = cautious_run(0.9, 0.1, 2.0, 1.5, 200)
    (landed,) = np.nonzero(path[:-1] == 2.0)
    assert len(landed) > 3
    np.testing.assert_allclose(path[landed + 1], 1.8, rtol=1e-12)
    tx = optax.chain(optax.sgd(0.5), cautious_decay(0.2, 0.5))
    for steps in (1, 2, 3):
        found, _ = run(tx, np.array([2.0]), lambda w, t: 2.0 * (w - 2.0), steps)
        np.testing.assert_allclose(found, expected[steps - 1], rtol=1e-12)


def test_below_eta_h_of_one_cautious_decay_approaches_the_minimum_from_the_side_of_zero():
    """There the update pushes away from zero, so the gate is shut: once below a, w - a shrinks by
    1 - eta h a step, whatever c is while eta h + c < 2; decay only changed the way there."""
    for eta_h, c in ((0.2, 0.05), (0.2, 1.5), (0.9, 0.9)):
        for start in (0.5, 1.9, 5.0, 100.0, -7.0):
            path = cautious_run(eta_h, c, 2.0, start, 150)
            (inside,) = np.nonzero((path > 0) & (path < 2.0))
            below = path[inside[0] :][:10]
            np.testing.assert_allclose((below[1:] - 2) / (below[:-1] - 2), 1 - eta_h, rtol=1e-6)
            assert np.abs(path - 2).min() < 1e-9
    tx = optax.chain(optax.sgd(0.1), cautious_decay(0.5, 0.1))
    found, _ = run(tx, np.array([5.0]), lambda w, t: 2.0 * (w - 2.0), 30)
    np.testing.assert_allclose(found, cautious_run(0.2, 0.05, 2.0, 5.0, 30)[-1], rtol=1e-12)


def test_under_noise_cautious_decay_rests_at_the_ridge_point_of_half_its_strength():
    """The gate is open at every other step: with noise of 10, a = 2, h = 1, lam = 0.5 the mean is
    1.600 = h a / (h + lam / 2), within the 0.01 that 40,000 weights leave to chance; without
    noise it is 2, with the gate always open 1.333."""
    eta, lam, a = 0.02, 0.5, 2.0
    rng = np.random.default_rng(8)
    noise = lambda scale: eta * scale * rng.standard_normal((400, 40_000))
    means = {}
    for scale in (0.0, 10.0):
        path = cautious_run(eta, eta * lam, a, np.full(40_000, 1.6), 400, noise(scale))
        means[scale] = path[200:].mean()
    np.testing.assert_allclose(means[10.0], a / (1 + lam / 2), atol=0.01)
    assert means[0.0] > 1.95


def test_huber_decay_is_the_gradient_of_its_penalty_and_takes_at_most_c_delta():
    delta, c, w = 0.4, 0.1, np.array([0.1, -0.3, 5.0, -7.0])
    huber = lambda x: np.where(np.abs(x) < delta, x**2 / 2, delta * np.abs(x) - delta**2 / 2)
    np.testing.assert_allclose(slope(huber, w), np.clip(w, -delta, delta), rtol=1e-8)
    np.testing.assert_allclose(huber(delta - 1e-12), huber(delta), rtol=1e-10)  # no jump
    tx = huber_decay(0.5, 0.2, delta)
    lost = -np.asarray(tx.update(jnp.zeros(4), tx.init(jnp.asarray(w)), jnp.asarray(w))[0])
    np.testing.assert_allclose(lost, c * slope(huber, w), rtol=1e-8)
    assert np.abs(lost).max() <= c * delta * (1 + 1e-12)


# 7. Proximal steps.


def test_the_thresholds_meet_the_conditions_of_their_minimum_exactly():
    """Where y is not zero the derivative `y - z + c1 sign(y) + c2 y` is; where it is, the slopes on
    its two sides, `-z - c1` and `-z + c1`, differ in sign. All is convex, so y is the minimum."""
    z = np.concatenate([np.random.default_rng(12).normal(size=40), [0.0, 0.3, -0.3]])
    w = jnp.asarray(z)
    for l1, l2 in ((0.6, 0.0), (0.0, 0.8), (0.6, 0.8)):
        tx = proximal_elastic_net(l1, l2, 0.5)
        y = z + np.asarray(tx.update(0 * w, tx.init(w), w)[0])
        c1, c2, moved = l1 / 2, l2 / 2, y != 0
        slopes = y - z + c1 * np.sign(y) + c2 * y
        np.testing.assert_allclose(slopes[moved], 0, atol=1e-15)
        assert (-z - c1 <= 0)[~moved].all() and (-z + c1 >= 0)[~moved].all()
        assert (~moved).any() and moved.any()


def test_the_group_step_ends_at_the_minimum_that_no_try_beats():
    """argmin 1/2 |y - z|^2 + c sqrt(|G|) |y|: shorter along z, or zero where z is short."""
    rng = np.random.default_rng(9)
    for scale in (3.0, 0.3, 0.8):
        z = scale * rng.normal(size=3)
        objective = lambda y, z=z: np.sum((y - z) ** 2) / 2 + 0.4 * np.sqrt(3) * np.linalg.norm(y)
        w = jnp.asarray(z[:, None])
        tx = proximal_group_lasso(0.8, 0.5)
        found = z + np.asarray(tx.update(0 * w, tx.init(w), w)[0])[:, 0]
        np.testing.assert_allclose(np.cross(found, z), 0, atol=1e-14)
        tries = found + rng.normal(size=(4000, 3)) * 10.0 ** -rng.uniform(0, 5, size=(4000, 1))
        assert min(objective(y) for y in tries) >= objective(found)
        assert (found == 0).all() == (np.linalg.norm(z) <= 0.4 * np.sqrt(3))


def test_an_infinite_strength_leaves_nothing_by_penalty_or_prox_and_beside_it_is_refused():
    """1 / (1 + c) is in (0, 1]; as c grows the weight goes to zero, as it does at the minimum with
    a penalty. Beside the step there is no such limit: c >= 2 is refused."""
    w = jnp.ones(1)
    for c in (0.0, 0.5, 3.0, 1e6):
        tx = proximal_l2(c, 1.0)
        left = 1 + tx.update(0 * w, tx.init(w), w)[0]
        np.testing.assert_allclose(left, 1 / (1 + c), rtol=1e-9)
        assert 0 < left <= 1
    h, _, _, a = spd(3)
    assert np.abs(np.linalg.solve(h + 1e9 * np.eye(3), h @ a)).max() < 1e-8
    with pytest.raises(ValueError, match="a step would remove"):
        decoupled_decay(1e6, 1.0)


def test_a_fixed_point_of_the_proximal_step_balances_the_slope_of_the_penalty():
    """`w = prox(w - eta g)` means g = -lam sign(w) where w is not zero, |g| <= lam where it is: on
    a convex loss that is the minimum of L + lam |w|_1, whatever the eta."""
    h, _, _, a = spd(6, seed=10)
    lam = 0.3
    points = []
    for eta in (0.1, 0.4):
        tx = optax.chain(optax.sgd(eta), proximal_l1(lam, eta))
        w, _ = run(tx, np.zeros(6), lambda w, t: jnp.asarray(h) @ (w - a), 4000)
        g = h @ (w - a)
        assert (w == 0).any() and (w != 0).any()
        np.testing.assert_allclose(g[w != 0], -lam * np.sign(w[w != 0]), rtol=1e-9)
        assert (np.abs(g[w == 0]) <= lam).all()
        points.append(w)
    np.testing.assert_allclose(points[0], points[1], rtol=1e-9, atol=1e-12)
    objective = lambda w: (w - a) @ h @ (w - a) / 2 + lam * np.abs(w).sum()
    tries = points[0] + 1e-2 * np.random.default_rng(11).normal(size=(500, 6))
    assert min(objective(x) for x in tries) > objective(points[0])


def test_without_convexity_a_proximal_step_may_rest_at_a_worse_of_two_points():
    """L = (w^2 - 1)^2 / 4 + 0.1 w has two valleys: which is found depends on the start."""
    slope_of_loss = lambda w: w**3 - w + 0.1
    ends = []
    for w in (1.5, -1.5):
        for _ in range(4000):
            w = float(reference.soft_threshold(w - 0.1 * slope_of_loss(w), 0.1 * 0.05))
        np.testing.assert_allclose(slope_of_loss(w), -0.05 * np.sign(w), rtol=1e-9)
        ends.append((w**2 - 1) ** 2 / 4 + 0.1 * w + 0.05 * abs(w))
    assert ends[0] > ends[1] + 0.1


# 8. A bound.


SQUARES = (lambda z: z @ z, lambda z: 2 * z)
MAGNITUDES = (lambda z: np.abs(z).sum(), np.sign)


def cpr_loop(a, k, eta, pace, num_steps, measure=SQUARES):
    """`z = w - eta (w - a); lam <- max(0, lam + pace (R(z) - k)); w = z - lam grad R(z)`."""
    w, lam, z = np.ones_like(a), 0.0, None
    value, gradient = measure
    for _ in range(num_steps):
        z = w - eta * (w - a)
        lam = max(0.0, lam + pace * (value(z) - k))
        w = z - lam * gradient(z)
    return w, z, lam


def test_cpr_rests_with_z_at_the_bound_w_inside_it_and_a_multiplier_of_lam_over_eta():
    """On |w - a|^2 / 2, a = (3, 4), |w|^2 <= 4, eta = 0.05: |z| = 2, |w| = 1.842; the gradient of L
    at w is -(lam / eta) times that of R at z. As eta falls, w goes to the bound itself."""
    a, k, eta = np.array([3.0, 4.0]), 4.0, 0.05
    w, z, lam = cpr_loop(a, k, eta, 0.01, 6000)
    np.testing.assert_allclose(z, a * np.sqrt(k) / 5, rtol=1e-9)
    np.testing.assert_allclose(w, (1 - 2 * lam) * z, rtol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(w), 1.842, atol=5e-4)
    np.testing.assert_allclose(w - a, -(lam / eta) * 2 * z, rtol=1e-9)
    tx = optax.chain(optax.sgd(eta), constrained_decay(0.02, fixed_bound(k)))
    found, state = run(tx, np.ones(2), lambda w, t: w - a, 6000)
    np.testing.assert_allclose(found, w, rtol=1e-9)
    np.testing.assert_allclose(state[1].multipliers, lam, rtol=1e-9)
    w, z, lam = cpr_loop(a, k, eta, 0.01, 6000, MAGNITUDES)
    np.testing.assert_allclose(np.abs(z).sum(), k, rtol=1e-9)
    np.testing.assert_allclose(w - a, -(lam / eta) * np.sign(z), rtol=1e-9)
    w, z, lam = cpr_loop(a, k, 1e-3, 2e-4, 60_000)
    np.testing.assert_allclose(np.linalg.norm(w), 2.0, rtol=2e-3)
    np.testing.assert_allclose(lam / 1e-3, (5 / 2 - 1) / 2, rtol=5e-3)  # w - a = -2 mu w at |w| = 2


def test_below_its_bound_a_leaf_rests_at_the_minimum_of_the_loss():
    """R < k and a multiplier of 0: the constraint is not felt."""
    a = np.array([1.0, 1.0])
    w, _, lam = cpr_loop(a, 4.0, 0.1, 0.01, 800)
    np.testing.assert_allclose(w, a, rtol=1e-12)
    assert lam == 0
    tx = optax.chain(optax.sgd(0.1), constrained_decay(0.02, fixed_bound(4.0)))
    found, state = run(tx, np.ones(2) * 0.5, lambda w, t: w - a, 800)
    np.testing.assert_allclose(found, a, rtol=1e-12)
    assert state[1].multipliers == 0
