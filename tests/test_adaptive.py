"""Constrained parameter regularisation: multipliers, measures and the four bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wdjax.decay import (
    constrained_decay,
    fixed_bound,
    inflection_bound,
    initial_bound,
    standard_deviation,
    sum_of_hubers,
    sum_of_magnitudes,
    sum_of_squares,
    warm_start_bound,
)

MEASURES = {
    "sum_of_squares": sum_of_squares,
    "sum_of_magnitudes": sum_of_magnitudes,
    "standard_deviation": standard_deviation,
    "sum_of_hubers": sum_of_hubers,
}


def trace(tx, w, moves):
    """The weights after every step, with `moves` as the updates."""
    state, weights = tx.init(w), []
    update = jax.jit(tx.update)
    for move in moves:
        updates, state = update(jnp.asarray(move), state, w)
        w = optax.apply_updates(w, updates)
        weights.append(np.asarray(w))
    return np.array(weights), state


@pytest.mark.parametrize("name", MEASURES)
def test_the_gradient_of_a_measure_is_its_derivative(name, key, x64):
    measure, w = MEASURES[name], 1.5 * jax.random.normal(key, (4, 3), jnp.float64)
    np.testing.assert_allclose(measure.gradient(w), jax.grad(measure.value)(w), rtol=1e-10)


def test_the_standard_deviation_is_numpys_with_one_degree_taken(key, x64):
    w = jax.random.normal(key, (5,), jnp.float64)
    np.testing.assert_allclose(standard_deviation.value(w), np.std(w, ddof=1), rtol=1e-12)


@pytest.mark.parametrize("name", MEASURES)
def test_multipliers_follow_their_recurrence(name, x64):
    """lambda <- max(0, lambda + mu / n (R(z) - k)); w <- z - lambda grad R(z)."""
    measure, rng = MEASURES[name], np.random.default_rng(0)
    w, moves, bound, mu = rng.normal(size=6), 0.1 * rng.normal(size=(15, 6)), 0.4, 0.05
    pace = mu / 6 if measure.per_weight else mu
    tx = constrained_decay(mu, fixed_bound(bound), magnitude=measure)
    found, state = trace(tx, jnp.asarray(w), moves)
    multiplier, expected = 0.0, []
    for move in moves:
        z = w + move
        value, gradient = (np.asarray(f(jnp.asarray(z))) for f in measure[:2])
        multiplier = max(0.0, multiplier + pace * (value - bound))
        w = z - multiplier * gradient
        expected.append(w)
    np.testing.assert_allclose(found, expected, rtol=1e-11)
    np.testing.assert_allclose(state.multipliers, multiplier, rtol=1e-11)
    assert multiplier > 0


def test_it_settles_where_the_constraint_is_tight_and_the_gradients_balance(x64):
    """On |w - a|^2 / 2 with |z|^2 <= k < |a|^2: z = a sqrt(k) / |a|, and w = (1 - 2 lambda) z."""
    a, bound = np.array([3.0, 4.0]), 4.0
    tx = optax.chain(optax.sgd(0.05), constrained_decay(0.02, fixed_bound(bound)))

    def step(carry, _):
        w, state = carry
        updates, state = tx.update(w - a, state, w)
        return (optax.apply_updates(w, updates), state), None

    start = jnp.ones(2)
    (w, state), _ = jax.lax.scan(step, (start, tx.init(start)), length=4000)
    # The measure is taken before the pull of its own step, so z meets the bound and w lies
    # inside by 1 - 2 lambda.
    z = w / (1 - 2 * state[1].multipliers)
    np.testing.assert_allclose(z, a * np.sqrt(bound) / 5, rtol=1e-6)


def test_below_its_bound_a_leaf_is_free():
    moves = 0.1 * np.random.default_rng(1).normal(size=(10, 3)).astype(np.float32)
    tx = constrained_decay(1.0, fixed_bound(100.0))
    found, state = trace(tx, jnp.zeros(3), moves)
    np.testing.assert_allclose(found, np.cumsum(moves, axis=0), rtol=1e-5)
    assert state.multipliers == 0


def test_the_initial_bound_is_a_share_of_each_leafs_own_measure(x64):
    w = {"a": jnp.full(4, 2.0), "b": jnp.full(2, 0.1)}
    tx = constrained_decay(0.01, initial_bound(0.5))
    state = tx.init(w)
    np.testing.assert_allclose(state.records["a"], 0.5 * 16.0, rtol=1e-12)
    np.testing.assert_allclose(state.records["b"], 0.5 * 0.02, rtol=1e-12)


def test_the_warm_start_bound_is_the_measure_after_its_steps(x64):
    moves = np.ones((6, 2))
    tx = constrained_decay(0.1, warm_start_bound(3))
    found, state = trace(tx, jnp.zeros(2), moves)
    np.testing.assert_allclose(found[:3], [[1, 1], [2, 2], [3, 3]], rtol=1e-12)
    np.testing.assert_allclose(state.records, 18.0, rtol=1e-12)
    # Step 4 reaches z = 4: R = 32, lambda = 0.1 / 2 * (32 - 18), w = 4 - lambda * 8.
    np.testing.assert_allclose(found[3], 4 - 0.7 * 8, rtol=1e-12)


def test_the_inflection_bound_is_set_where_growth_first_slows(x64):
    """R grows faster and faster, then slower: with no smoothing and a sample every 2 steps the
    bound is R at the first sample that grew by less than the one before."""
    roots = np.sqrt([1, 2, 4, 7, 11, 16, 20, 22, 23, 23.5])  # R after each step
    moves = np.diff(np.concatenate([[1.0], roots]))[:, None]
    tx = constrained_decay(0.0, inflection_bound(every=2, smoothing=0.0))
    _, state = trace(tx, jnp.ones(1), moves)
    # Samples at steps 2, 4, 6, 8: R = 2, 7, 16, 22, growth 1, 5, 9, 6: slower at step 8.
    np.testing.assert_allclose(state.records.bound, 22.0, rtol=1e-12)


def test_the_inflection_points_average_is_kept_between_steps(x64):
    """In the authors' program it is rebound and lost, so nothing is smoothed."""
    tx = constrained_decay(0.0, inflection_bound(every=5, smoothing=0.8))
    _, state = trace(tx, jnp.zeros(1), np.ones((3, 1)))
    average = 0.0
    for value in (1.0, 4.0, 9.0):
        average = 0.8 * average + 0.2 * value
    np.testing.assert_allclose(state.records.average, average, rtol=1e-12)


def test_a_bound_of_a_thousand_is_a_bound_like_another(x64):
    """The authors' program uses 1000 to say `not known yet`."""
    tx = constrained_decay(0.1, fixed_bound(1000.0))
    _, state = trace(tx, jnp.full(2, 30.0), np.zeros((1, 2)))
    np.testing.assert_allclose(state.multipliers, 0.05 * (1800 - 1000), rtol=1e-12)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: constrained_decay(-1.0, fixed_bound(1.0)), "multiplier_rate=-1"),
        (lambda: fixed_bound(-1.0), "bound=-1"),
        (lambda: initial_bound(float("nan")), "factor"),
        (lambda: warm_start_bound(0), "`num_steps` must be >= 1"),
        (lambda: inflection_bound(every=0), "`every` must be >= 1"),
        (lambda: inflection_bound(smoothing=1.5), "smoothing"),
        (
            lambda: constrained_decay(1.0, fixed_bound(1.0)).init({"w": jnp.ones((0, 2))}),
            "too few weights",
        ),
        (
            lambda: constrained_decay(
                1.0, fixed_bound(1.0), magnitude=standard_deviation, parts={"*": 1.0}
            ).init({"gain": jnp.ones(1)}),
            "the magnitude needs 2. Leave it out by `parts`",
        ),
    ],
)
def test_what_is_known_to_be_wrong_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# In NumPy, on (modulus, direction): what each measure means for complex weights.
ON_COMPLEX = {
    "sum_of_squares": (lambda z: np.sum(z.real**2 + z.imag**2), lambda z: 2 * z),
    "sum_of_magnitudes": (lambda z: np.sum(np.hypot(z.real, z.imag)), lambda z: z / abs(z)),
    "standard_deviation": (
        lambda z: np.std(z, ddof=1),
        lambda z: (z - z.mean()) / ((z.size - 1) * np.std(z, ddof=1)),
    ),
    "sum_of_hubers": (
        lambda z: sum(a**2 / 2 if a < 1 else a - 0.5 for a in abs(z)),
        lambda z: np.array([v if abs(v) < 1 else v / abs(v) for v in z]),
    ),
}


@pytest.mark.parametrize("name", MEASURES)
def test_a_measure_of_complex_weights_is_real_and_its_gradient_the_way_up(name, x64):
    """The gradient is the direction of steepest ascent; `jax.grad` returns its conjugate."""
    rng = np.random.default_rng(0)
    z = 1.2 * (rng.normal(size=6) + 1j * rng.normal(size=6))
    measure, (value, gradient) = MEASURES[name], ON_COMPLEX[name]
    found = measure.value(jnp.asarray(z))
    assert jnp.isrealobj(found)
    np.testing.assert_allclose(found, value(z), rtol=1e-12)
    np.testing.assert_allclose(measure.gradient(jnp.asarray(z)), gradient(z), rtol=1e-12)
    ascent = jnp.conj(jax.grad(measure.value)(jnp.asarray(z)))
    np.testing.assert_allclose(measure.gradient(jnp.asarray(z)), ascent, rtol=1e-12)


@pytest.mark.parametrize("name", MEASURES)
def test_a_real_leaf_and_the_same_leaf_times_a_phase_are_constrained_alike(name, x64):
    """Multipliers are real, and turning all weights by one angle turns all that follows."""
    rng = np.random.default_rng(1)
    w, moves = rng.normal(size=6), 0.1 * rng.normal(size=(15, 6))
    phase = np.exp(0.7j)
    tx = constrained_decay(0.05, fixed_bound(0.4), magnitude=MEASURES[name])
    found, state = trace(tx, jnp.asarray(w * phase), moves * phase)
    expected, plain = trace(tx, jnp.asarray(w), moves)
    np.testing.assert_allclose(found, expected * phase, rtol=1e-11)
    assert state.multipliers.dtype == np.float64 and plain.multipliers > 0
    np.testing.assert_allclose(state.multipliers, plain.multipliers, rtol=1e-11)


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_a_leaf_without_spread_has_no_pull_and_no_nan(dtype, x64):
    """A head of zeros in warm-up: its standard deviation is 0, whose gradient is taken as 0; in
    the value, the multiplier and every derivative."""
    tx = constrained_decay(1.0, fixed_bound(0.0), magnitude=standard_deviation)
    w = jnp.zeros((3, 2), dtype)
    found, state = trace(tx, w, np.zeros((2, 3, 2), dtype))
    np.testing.assert_array_equal(found, 0.0)
    assert state.multipliers == 0.0
    np.testing.assert_array_equal(jax.grad(standard_deviation.value)(w), 0.0)
    spread = lambda s: jnp.sum(jnp.abs(standard_deviation.gradient(s * w)))
    np.testing.assert_array_equal(jax.jvp(spread, (1.0,), (1.0,)), 0.0)


@pytest.mark.parametrize("name", MEASURES)
def test_complex_zeros_have_gradient_zero(name, x64):
    measure, zeros = MEASURES[name], jnp.zeros(3, np.complex128)
    np.testing.assert_array_equal(measure.gradient(zeros), 0.0)
    np.testing.assert_array_equal(jax.grad(measure.value)(zeros), 0.0)
