"""The optimisers: optax' own steps with any decay, right for every weight and dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

from wdjax.decay import (
    adamw,
    cautious_decay,
    corrected_decay,
    decay_to_initial,
    decoupled_decay,
    float32_master,
    independent_decay,
    lion,
    muon,
    proximal_l1,
    sgdw,
    stochastic_rounding,
)
from wdjax.parts import matrices_only

ETA, LAM, T = 0.05, 0.4, 25
COSINE = optax.cosine_decay_schedule(ETA, T)
DECAYS = {
    "decoupled": lambda: decoupled_decay(LAM, COSINE),
    "independent": lambda: independent_decay(LAM, optax.cosine_decay_schedule(1.0, T)),
    "corrected": lambda: corrected_decay(LAM, COSINE, ETA),
    "fixed": lambda: independent_decay(LAM),
}
A, W = np.array([1.0, -2.0, 3.0]), np.array([5.0, -5.0, 0.5])


def grad(w, t):
    """A quadratic's, with made-up noise."""
    return (w - A) * (1 + 0.5 * (-1.0) ** t)


def train(tx, w, grad=grad, num_steps=T):
    def step(carry, t):
        w, state = carry
        updates, state = tx.update(grad(w, t), state, w)
        return (optax.apply_updates(w, updates), state), None

    def run(w):
        return jax.lax.scan(step, (w, tx.init(w)), jnp.arange(num_steps))[0][0]

    return jax.jit(run)(w)


@pytest.mark.parametrize("coupling", DECAYS)
@pytest.mark.parametrize("optimizer", ["sgdw", "adamw", "lion"])
def test_each_optimiser_in_each_coupling_is_its_reference(optimizer, coupling, x64):
    schedule = reference.cosine_schedule(ETA, T)
    rates = reference.rates(coupling, LAM, schedule, ETA)
    slow, fast = {
        "sgdw": (lambda *a, **k: reference.sgd(*a, momentum=0.9, **k), sgdw),
        "adamw": (reference.adam, adamw),
        "lion": (reference.lion, lion),
    }[optimizer]
    expected = slow(W, grad, schedule, decay_rates=rates)
    found = train(fast(COSINE, DECAYS[coupling]()), jnp.asarray(W))
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_lion_does_not_decay_twice(x64):
    """`optax.lion` has a decay of its own, 1e-3, unless told not to."""
    nothing = lambda w, t: jnp.zeros_like(w)
    found = train(lion(ETA, optax.identity()), jnp.ones(3), nothing)
    np.testing.assert_array_equal(found, 1.0)


def test_muon_steps_as_optax_and_its_decay_reaches_both_branches(key, x64):
    """What is left of the update without decay is optax' own; with it, every leaf loses
    eta * strength * m, matrices and vectors alike."""
    w = {"kernel": jax.random.normal(key, (4, 3), jnp.float64), "bias": jnp.ones(3)}
    grads = jax.tree.map(jnp.cos, w)
    plain = optax.contrib.muon(ETA, consistent_rms=0.2)
    expected, _ = plain.update(grads, plain.init(w), w)
    for parts, kernel, bias in ((None, 1.0, 1.0), ({"kernel": 0.5, "bias": 0.0}, 0.5, 0.0)):
        tx = muon(ETA, decoupled_decay(LAM, ETA, parts=parts))
        found, _ = tx.update(grads, tx.init(w), w)
        left = jax.tree.map(lambda u, v: u - v, found, expected)
        np.testing.assert_allclose(left["kernel"], -ETA * LAM * kernel * w["kernel"], atol=1e-12)
        np.testing.assert_allclose(left["bias"], -ETA * LAM * bias * w["bias"], atol=1e-12)


def test_muons_matrices_move_by_the_root_mean_square_of_adam(key):
    """0.2 per learning rate, so strengths found for AdamW can be used again; Newton-Schulz
    leaves the singular values within 0.7 and 1.2, hence the tolerance."""
    w = {"kernel": jax.random.normal(key, (32, 64))}
    tx = muon(1.0, optax.identity())
    updates, _ = tx.update(jax.tree.map(jnp.sin, w), tx.init(w), w)
    size = float(jnp.sqrt(jnp.mean(updates["kernel"] ** 2)))
    # An orthogonal 32 x 64 matrix has entries of root mean square 1 / 8 = 1 / sqrt(max side).
    assert 0.2 * 0.7 < size < 0.2 * 1.2


@pytest.mark.parametrize("make", [sgdw, adamw, lion, muon])
def test_a_learning_rate_that_is_known_to_be_wrong_is_refused(make):
    for bad in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="`learning_rate` must be finite and >= 0"):
            make(bad, optax.identity())


def test_bfloat16_weights_decay_only_under_a_master():
    """1 - 1e-4 rounds to 1: a thousand steps leave 1.0 where 0.905 is right."""
    w, nothing = jnp.ones(3, jnp.bfloat16), lambda w, t: jnp.zeros_like(w)
    with pytest.warns(UserWarning, match="apart: a decay of 0.0001 a step rounds back"):
        lost = train(independent_decay(1e-4), w, nothing, 1000)
    np.testing.assert_array_equal(lost, 1.0)
    kept = train(float32_master(independent_decay(1e-4)), w, nothing, 1000)
    assert kept.dtype == jnp.bfloat16
    np.testing.assert_allclose(kept.astype(np.float32), (1 - 1e-4) ** 1000, rtol=2**-8)


def test_half_precision_weights_that_the_decay_cannot_move_are_told_with_numbers():
    """The bound is half of the wider spacing; a master, a zero or a larger rate says nothing."""
    params = {"head": {"kernel": jnp.ones((2, 2), jnp.bfloat16), "bias": jnp.ones(2)}}
    words = (
        r"leaf 'head/kernel' is bfloat16, whose numbers lie 0.0039 to 0.0078 of themselves apart: "
        r"a decay of 0.002 a step rounds back .*float32_master"
    )
    with pytest.warns(UserWarning, match=words):
        decoupled_decay(0.2, 0.01).init(params)
    for quiet in (
        decoupled_decay(0.5, 0.01),
        decoupled_decay(0.0, 0.01),
        decoupled_decay(0.2, 0.01, parts={"*/bias": 1.0, "*": 0.0}),
        float32_master(decoupled_decay(0.2, 0.01)),
    ):
        quiet.init(params)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("decay", [decoupled_decay, cautious_decay, decay_to_initial, proximal_l1])
def test_under_a_master_half_precision_follows_the_float32_run_to_one_rounding(decay, dtype):
    start = jnp.asarray(W, dtype)
    make = lambda: optax.chain(optax.sgd(1e-3), decay(0.3, 1e-3))
    exact = lambda w, t: (w.astype(jnp.float32) - A.astype(np.float32)).astype(w.dtype)
    found = train(float32_master(make()), start, exact, 200)
    tx = make()
    w, state = start.astype(jnp.float32), tx.init(start.astype(jnp.float32))
    for t in range(200):
        grads = exact(w.astype(dtype), t).astype(jnp.float32)
        updates, state = tx.update(grads, state, w)
        w = optax.apply_updates(w, updates)
    np.testing.assert_array_equal(found, w.astype(dtype))


def test_a_master_is_kept_for_half_precision_only_and_the_rest_passes_through():
    w = {"half": jnp.ones(2, jnp.bfloat16), "full": jnp.ones(2), "steps": jnp.arange(2)}
    state = float32_master(independent_decay(0.1)).init(w)
    assert [leaf.dtype for leaf in jax.tree.leaves(state.master)] == [jnp.float32]


def test_the_master_recovers_from_an_update_that_its_dtype_could_not_hold():
    """A weight that falls by a factor of 1000 in one step may be off by a rounding of the step;
    the next update mends it."""
    tx = float32_master(optax.identity())
    w = jnp.full(1, 1.0, jnp.bfloat16)
    state = tx.init(w)
    for move in (-0.9990234375, 0.0):
        updates, state = tx.update(jnp.full(1, move, jnp.float32).astype(w.dtype), state, w)
        w = optax.apply_updates(w, updates)
    np.testing.assert_array_equal(w, state.master.astype(w.dtype))


def test_matrices_only_is_one_rule_for_every_optimiser(x64):
    w = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    nothing = jax.tree.map(jnp.zeros_like, w)
    for make in (sgdw, adamw, lion, muon):
        tx = make(ETA, decoupled_decay(LAM, ETA, parts=matrices_only))
        updates, _ = tx.update(nothing, tx.init(w), w)
        np.testing.assert_allclose(updates["kernel"], -ETA * LAM, rtol=1e-12)
        np.testing.assert_array_equal(updates["bias"], 0.0)


def rounded_run(tx, w, num_steps):
    def step(carry, _):
        w, state = carry
        updates, state = tx.update(jnp.zeros_like(w), state, w)
        return (optax.apply_updates(w, updates), state), None

    return jax.lax.scan(step, (w, tx.init(w)), length=num_steps)[0][0]


@pytest.mark.parametrize("dtype, rate", [(jnp.bfloat16, 1e-4), (jnp.float16, 1e-5)])
def test_stochastic_rounding_decays_by_the_closed_form_on_average(dtype, rate, key):
    """(1 - c)^200, where rounding to the nearest stays at 1. Each step adds a variance of at most
    c * h with h the spacing below 1: four standard errors of 20,000 weights."""
    spacing = float(jnp.finfo(dtype).eps) / 2
    w = jnp.ones(20_000, dtype)
    found = rounded_run(stochastic_rounding(independent_decay(rate), key), w, 200)
    assert found.dtype == dtype
    mean = float(jnp.mean(found.astype(jnp.float32)))
    error = np.sqrt(200 * rate * spacing / 20_000)
    assert abs(mean - (1 - rate) ** 200) < 4 * error
    assert 1 - (1 - rate) ** 200 > 8 * error, "the decay itself is well above the noise"
    with pytest.warns(UserWarning, match="rounds back to the same weight"):
        nearest = rounded_run(independent_decay(rate), w, 200)
    np.testing.assert_array_equal(nearest, 1.0)


def test_stochastic_rounding_takes_only_the_two_neighbours_each_by_its_distance(key):
    """1 - 0.3 h and -1 + 0.3 h, between 1 and 1 - h: the far one in three of ten."""
    h = 2.0**-8
    for sign in (1.0, -1.0):
        w = jnp.full(20_000, sign, jnp.bfloat16)
        found = np.asarray(
            rounded_run(stochastic_rounding(independent_decay(0.3 * h), key), w, 1), np.float32
        )
        assert set(np.unique(found)) == {np.float32(sign), np.float32(sign * (1 - h))}
        share = np.mean(found != sign)
        assert abs(share - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 20_000)


def test_what_the_dtype_holds_is_not_rounded_at_random(key):
    w = jnp.array([1.0, -2.0, 0.0, 384.0], jnp.bfloat16)
    found = rounded_run(stochastic_rounding(independent_decay(0.5), key), w, 3)
    np.testing.assert_array_equal(found, w / 8)


def test_each_leaf_and_step_has_its_own_chances_and_a_restored_state_goes_on(key):
    w = {"a": jnp.ones(500, jnp.bfloat16), "b": jnp.ones(500, jnp.bfloat16)}
    tx = stochastic_rounding(independent_decay(1e-3), key)
    nothing, state = jax.tree.map(jnp.zeros_like, w), tx.init(w)
    first, after = tx.update(nothing, state, w)
    second, _ = tx.update(nothing, after, w)
    assert (first["a"] != first["b"]).any() and (first["a"] != second["a"]).any()
    again, _ = tx.update(nothing, jax.tree.map(jnp.asarray, after), w)
    jax.tree.map(np.testing.assert_array_equal, again, second)
    other, _ = stochastic_rounding(independent_decay(1e-3), jax.random.key(7)).update(
        nothing, state, w
    )
    assert (other["a"] != first["a"]).any()


def test_adam_inside_stochastic_rounding_sees_float32(key):
    """Gradients whose squares bfloat16 cannot hold apart: the moments are those of float32."""
    w = {"w": jnp.ones(64, jnp.bfloat16)}
    tx = stochastic_rounding(adamw(1e-3, decoupled_decay(0.1, 1e-3)), key)
    _, state = tx.update({"w": jnp.full(64, 0.01, jnp.bfloat16)}, tx.init(w), w)
    assert {x.dtype for x in jax.tree.leaves(state.inner) if x.ndim} == {np.dtype("float32")}


@pytest.mark.parametrize("bad", [jax.random.PRNGKey(0), jnp.zeros(())])
def test_a_key_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match="`key` must be one jax.random.key"):
        stochastic_rounding(independent_decay(0.1), bad)
    with pytest.raises(ValueError, match="vmap over the factory"):
        stochastic_rounding(independent_decay(0.1), jax.random.split(jax.random.key(0), 2))


def finite(dtype):
    """Every finite number of a 16-bit dtype, as NumPy has them."""
    values = np.arange(2**16, dtype=np.uint16).view(dtype)
    return values[np.isfinite(values.astype(np.float32))]


WRAPPERS = {
    "float32_master": lambda tx, key: float32_master(tx),
    "stochastic_rounding": stochastic_rounding,
}


@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS)
def test_a_step_of_nothing_keeps_every_number_that_float16_holds(wrapper, key):
    """All 63,488 finite ones, the 2,046 below 6.1e-5 among them, to the last bit."""
    w = finite(np.float16)
    tx = wrapper(optax.identity(), key)
    update = jax.jit(lambda w: tx.update(jnp.zeros_like(w), tx.init(w), w)[0])
    moved = optax.apply_updates(jnp.asarray(w), update(jnp.asarray(w)))
    np.testing.assert_array_equal(moved, w)


def test_a_master_rounds_to_the_nearest_float16_also_below_the_normal_numbers():
    """NumPy's cast: ties to even, from a quarter to three quarters of every gap."""
    w = finite(np.float16)
    w = w[w < np.finfo(np.float16).max]
    gap = np.nextafter(w, np.float16(np.inf)).astype(np.float64) - w.astype(np.float64)

    @jax.jit
    def moved(w, goal):
        tx = float32_master(optax.stateless(lambda _, p: goal - p))
        updates, _ = tx.update(jnp.zeros_like(w), tx.init(w), w)
        return optax.apply_updates(w, updates)

    for share in (0.25, 0.5, 0.75):
        goal = (w + share * gap).astype(np.float32)
        np.testing.assert_array_equal(moved(jnp.asarray(w), goal), goal.astype(np.float16))


def test_stochastic_rounding_is_unbiased_also_below_the_normal_numbers_of_float16(key):
    """A weight of 10 spacings (of 2^-24) loses 0.3 of one: 10 in seven of ten runs, 9 in three; and
    one of 0.4 spacings beside zero, which is no float16 at all, is 0 or one spacing."""
    spacing = 2.0**-24
    for count, loss in ((10.0, 0.3), (0.0, -0.4), (-3.0, -0.7), (1024.0, 0.3)):
        w = jnp.full(20_000, count * spacing, jnp.float16)
        tx = stochastic_rounding(optax.stateless(lambda _, p, d=-loss * spacing: 0 * p + d), key)
        updates, _ = tx.update(jnp.zeros_like(w), tx.init(w), w)
        found = np.asarray(optax.apply_updates(w, updates), np.float64) / spacing
        goal = count - loss
        assert set(np.unique(found)) == {np.floor(goal), np.ceil(goal)}
        share = goal - np.floor(goal)
        assert abs(found.mean() - goal) < 4 * np.sqrt(share * (1 - share) / 20_000)


def test_weights_below_the_normal_numbers_of_float16_decay_by_the_closed_form():
    """6e-5 * 0.99^100 is 2.2e-5: 368 spacings, one of which the rounding may take."""
    w = jnp.full(4, 6e-5, jnp.float16)
    found = rounded_run(float32_master(independent_decay(0.01)), w, 100)
    np.testing.assert_allclose(found, np.float32(w[0]) * 0.99**100, atol=2.0**-24)
