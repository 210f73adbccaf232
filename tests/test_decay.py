"""The core of decay and its named forms, against formulas written down before the code."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

from wdjax.decay import (
    average_of_params,
    cautious_decay,
    corrected_decay,
    decay_to_average,
    decay_to_initial,
    decay_to_one,
    decay_weights,
    decoupled_decay,
    huber,
    huber_decay,
    independent_decay,
    initial_params,
)
from wdjax.penalties import l2_penalty

T, ETA, LAM = 20, 0.1, 0.5
COSINE = optax.cosine_decay_schedule(ETA, T)
FORMS = {
    "decoupled": (lambda: decoupled_decay(LAM, COSINE), 0.5855),
    "independent": (
        lambda: independent_decay(LAM, optax.cosine_decay_schedule(1.0, T)),
        0.00126,
    ),
    "corrected": (lambda: corrected_decay(LAM, COSINE, ETA), 0.6652),
    "fixed": (lambda: independent_decay(LAM), 9.5e-7),
}


def train(tx, w, grad, num_steps):
    """`num_steps` updates as one scan; `grad(w, step)`."""

    def step(carry, t):
        w, state = carry
        updates, state = tx.update(grad(w, t), state, w)
        return (optax.apply_updates(w, updates), state), None

    def run(w):
        return jax.lax.scan(step, (w, tx.init(w)), jnp.arange(num_steps))[0][0]

    return jax.jit(run)(w)


def no_gradient(w, t):
    return jnp.zeros_like(w)


def towards(a):
    """The gradient of `|w - a|^2 / 2`."""
    return lambda w, t: w - a


@pytest.mark.parametrize("coupling", FORMS)
def test_without_a_gradient_the_weight_is_the_product_of_what_each_step_leaves(coupling, x64):
    """w_T = prod_t (1 - c_t): one strength of 0.5, four meanings, from 0.59 down to 1e-6."""
    make, rounded = FORMS[coupling]
    rates = reference.rates(coupling, LAM, reference.cosine_schedule(ETA, T), ETA)
    found = train(make(), jnp.ones(3), no_gradient, T)
    np.testing.assert_allclose(found, np.prod(1 - rates), rtol=1e-12)
    np.testing.assert_allclose(found, rounded, rtol=5e-3)


def test_the_decoupled_form_is_adamw_of_optax(x64):
    a, w = jnp.array([1.0, -2.0, 3.0]), jnp.array([5.0, -5.0, 0.5])
    ours = optax.chain(optax.adam(COSINE), decoupled_decay(LAM, COSINE))
    theirs = optax.adamw(COSINE, weight_decay=LAM)
    found, expected = (train(tx, w, towards(a), T) for tx in (ours, theirs))
    np.testing.assert_allclose(found, expected, rtol=1e-13)


@pytest.mark.parametrize("coupling", FORMS)
def test_adam_with_each_coupling_is_the_reference(coupling, x64):
    a, w = np.array([1.0, -2.0, 3.0]), np.array([5.0, -5.0, 0.5])
    schedule = reference.cosine_schedule(ETA, T)
    rates = reference.rates(coupling, LAM, schedule, ETA)
    expected = reference.adam(w, towards(a), schedule, decay_rates=rates)
    tx = optax.chain(optax.adam(COSINE), FORMS[coupling][0]())
    np.testing.assert_allclose(train(tx, jnp.asarray(w), towards(a), T), expected, rtol=1e-11)


@pytest.mark.parametrize("exponent", [0, 1, 2, 0.5])
def test_any_exponent_of_the_learning_rate_is_a_rate(exponent, x64):
    found = train(decay_weights(lambda t: LAM * COSINE(t) ** exponent), jnp.ones(2), no_gradient, T)
    rates = LAM * reference.cosine_schedule(ETA, T) ** exponent
    np.testing.assert_allclose(found, np.prod(1 - rates), rtol=1e-12)


@pytest.mark.parametrize("learning_rate, rate", [(0.01, 0.0), (0.01, 1e-3), (0.5, 0.1)])
def test_descent_on_a_quadratic_follows_its_closed_form(learning_rate, rate, x64):
    """On |w - a|^2 / 2 a step is affine, w' = (1 - eta - c) w + eta a, so
    w_t = fix + (1 - eta - c)^t (w_0 - fix), with fix = eta a / (eta + c)."""
    a, w, num_steps = np.array([1.0, -2.0, 3.0]), np.array([5.0, 5.0, 5.0]), 40
    tx = optax.chain(optax.sgd(learning_rate), independent_decay(rate))
    fix = learning_rate * a / (learning_rate + rate)
    expected = fix + (1 - learning_rate - rate) ** num_steps * (w - fix)
    np.testing.assert_allclose(
        train(tx, jnp.asarray(w), towards(a), num_steps), expected, rtol=1e-12
    )


def coupled(grad, strength):
    """The gradient of loss + penalty: decay inside the loss."""
    penalty = jax.grad(l2_penalty(strength))
    return lambda w, t: grad(w, t) + penalty(w)


def test_under_plain_descent_coupled_and_decoupled_are_one_and_momentum_parts_them(x64):
    """S2 and S3: the same sequence without momentum; with it the penalty is averaged too."""
    a, w = jnp.array([1.0, -2.0, 3.0]), jnp.array([5.0, -5.0, 0.5])
    grad = towards(a)
    for momentum, equal in ((0.0, True), (0.9, False)):
        sgd = optax.sgd(COSINE, momentum=momentum or None)
        inside = train(sgd, w, coupled(grad, LAM), T)
        beside = train(optax.chain(sgd, decoupled_decay(LAM, COSINE)), w, grad, T)
        schedule = reference.cosine_schedule(ETA, T)
        np.testing.assert_allclose(
            inside, reference.sgd(w, grad, schedule, momentum=momentum, l2=LAM), rtol=1e-11
        )
        np.testing.assert_allclose(
            beside,
            reference.sgd(w, grad, schedule, momentum=momentum, decay_rates=LAM * schedule),
            rtol=1e-11,
        )
        assert np.allclose(inside, beside, rtol=1e-12) == equal


def test_a_schedule_leaves_the_two_one_and_airbenchs_coupled_strength_is_not_the_independent(x64):
    """airbench passes wd / peak to SGD as `weight_decay`: without momentum a step at the peak
    removes wd, as `independent_decay(wd, schedule / peak)`; with its momentum they part."""
    wd, w = 0.02, np.array([5.0, -5.0, 0.5])
    grad = towards(np.array([1.0, -2.0, 3.0]))
    schedule = reference.cosine_schedule(ETA, T)
    shape = optax.cosine_decay_schedule(1.0, T)
    for momentum, equal in ((None, True), (0.85, False)):
        sgd = optax.sgd(COSINE, momentum=momentum)
        independent = train(optax.chain(sgd, independent_decay(wd, shape)), w, grad, T)
        airbench = reference.sgd(w, grad, schedule, momentum=momentum or 0.0, l2=wd / ETA)
        assert np.allclose(independent, airbench, rtol=1e-12) == equal


def test_inside_adam_a_penalty_alone_moves_as_its_sign_and_decay_beside_it_by_its_strength(x64):
    """Loshchilov & Hutter: without a data gradient, and far above epsilon, coupled Adam's first
    step is eta * sign(w) at every strength; the decoupled form removes eta * strength * w."""
    w = jnp.array([2.0, -3.0])
    adam = optax.adam(0.01, eps=1e-15)
    for strength in (0.1, 0.001):
        inside = train(adam, w, coupled(no_gradient, strength), 1)
        np.testing.assert_allclose(inside, w - 0.01 * np.sign(w), rtol=1e-10)
        beside = train(optax.chain(adam, decoupled_decay(strength, 0.01)), w, no_gradient, 1)
        np.testing.assert_allclose(beside, w * (1 - 0.01 * strength), rtol=1e-12)


def test_decoupled_decay_shrinks_weights_alike_and_coupled_adam_those_of_small_gradients(x64):
    """Two weights of equal size, gradients +-10 and +-0.1 that average out: decoupled decay
    takes the same from both; inside Adam the penalty is divided by the gradient's size."""
    sizes = jnp.array([10.0, 0.1])
    grad = lambda w, t: sizes * jnp.where(t % 2 == 0, 1.0, -1.0)
    w, num_steps = jnp.ones(2), 400
    adam = optax.adam(1e-3, b1=0.0)
    inside = train(adam, w, coupled(grad, 0.01), num_steps)
    beside = train(optax.chain(adam, decoupled_decay(0.1, 1e-3)), w, grad, num_steps)
    lost_inside, lost_beside = 1 - inside, 1 - beside
    assert lost_inside[1] > 20 * lost_inside[0]
    np.testing.assert_allclose(lost_beside[0], lost_beside[1], rtol=0.02)


def test_the_weights_are_an_average_of_past_updates_over_the_timescale(x64):
    """theta_T = (1 - 1/tau)^T theta_0 + sum_k (1 - 1/tau)^(T-1-k) (1/tau) (-u_k / lambda),
    with tau = 1 / (eta lambda)."""
    eta, lam, num_steps = 0.1, 0.5, 30
    directions = np.random.default_rng(0).normal(size=(num_steps, 4))
    tau, w = 1 / (eta * lam), np.arange(1.0, 5.0)
    ages = (1 - 1 / tau) ** np.arange(num_steps - 1, -1, -1)
    expected = (1 - 1 / tau) ** num_steps * w - ages @ directions / tau / lam
    tx = optax.chain(optax.sgd(eta), decoupled_decay(lam, eta))
    found = train(tx, jnp.asarray(w), lambda w, t: jnp.asarray(directions)[t], num_steps)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_fixed_point_of_decay_to_the_initial_params_is_that_of_its_penalty(x64):
    """On (w - b)' H (w - b) / 2: (H + alpha I)^-1 (H b + alpha theta_0)."""
    rng = np.random.default_rng(1)
    root = rng.normal(size=(3, 3))
    h, b, w0, alpha = root @ root.T / 3 + np.eye(3), rng.normal(size=3), rng.normal(size=3), 0.7
    tx = optax.chain(optax.sgd(0.1), decay_to_initial(alpha, 0.1))
    found = train(tx, jnp.asarray(w0), lambda w, t: jnp.asarray(h) @ (w - b), 400)
    np.testing.assert_allclose(
        found, np.linalg.solve(h + alpha * np.eye(3), h @ b + alpha * w0), rtol=1e-12
    )


def test_without_noise_cautious_decay_ends_at_the_loss_minimum_decoupled_at_the_ridge_point(x64):
    """On |w - a|^2 / 2 the ridge point is a / (1 + lambda). With eta = 0.1 the minimum is reached
    from the side of zero, where the gate is shut; it is no fixed point (test_derivations)."""
    a, w = jnp.array([1.0, -2.0, 3.0]), jnp.array([5.0, -5.0, 0.5])
    sgd = optax.sgd(0.1)
    ridge = train(optax.chain(sgd, decoupled_decay(LAM, 0.1)), w, towards(a), 500)
    np.testing.assert_allclose(ridge, a / (1 + LAM), rtol=1e-12)
    tx = optax.chain(sgd, cautious_decay(LAM, 0.1))
    np.testing.assert_allclose(train(tx, w, towards(a), 500), a, rtol=1e-12)


def test_cautious_decay_gates_by_sign_and_decays_where_there_is_no_update():
    params = jnp.array([2.0, 2.0, -2.0, -2.0, 2.0, 1e-30])
    updates = jnp.array([0.5, -0.5, 0.5, -0.5, 0.0, 1e-30])
    tx = cautious_decay(0.5, 0.2)
    found = tx.update(updates, tx.init(params), params)[0] - updates
    np.testing.assert_allclose(found, [0.0, -0.2, 0.2, 0.0, -0.2, 0.0], rtol=1e-6)


def test_gains_decay_to_one_and_kernels_stay(x64):
    params = {"kernel": jnp.full((2, 2), 3.0), "scale": jnp.array([3.0, 0.5])}
    tx = decay_to_one(0.5, 0.2, parts={"scale": 1.0, "*": 0.0})
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_array_equal(updates["kernel"], 0.0)
    np.testing.assert_allclose(updates["scale"], [-0.2, 0.05], rtol=1e-12)


def test_decay_to_the_average_follows_its_recurrence(x64):
    w, rate, beta = np.array([1.0, -2.0]), 0.3, 0.8
    grads = np.random.default_rng(2).normal(size=(12, 2))
    expected, average = w.copy(), w.copy()
    for g in grads:
        average = beta * average + (1 - beta) * expected
        expected = expected - 0.1 * g - rate * (expected - average)
    tx = optax.chain(optax.sgd(0.1), decay_to_average(rate, 1.0, beta))
    found = train(tx, jnp.asarray(w), lambda w, t: jnp.asarray(grads)[t], 12)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_average_of_bfloat16_params_is_kept_in_float32():
    """At 0.999 an average in bfloat16 would never move."""
    tx = decay_weights(0.1, reference=average_of_params(0.999))
    state = tx.init(jnp.ones(2, jnp.bfloat16))
    w = jnp.full(2, 2.0, jnp.bfloat16)
    _, state = tx.update(jnp.zeros(2, jnp.bfloat16), state, w)
    np.testing.assert_allclose(state.reference, 1.001, rtol=1e-6)


def test_huber_decay_takes_no_more_than_the_threshold(x64):
    params = jnp.array([0.1, -0.3, 5.0, -7.0])
    tx = huber_decay(0.5, 0.2, 0.4)
    updates, _ = tx.update(jnp.zeros(4), tx.init(params), params)
    np.testing.assert_allclose(updates, -0.1 * np.clip(params, -0.4, 0.4), rtol=1e-12)


def test_huber_decay_of_complex_weights_bounds_the_modulus_and_keeps_the_direction(x64):
    z = np.array([0.1 + 0.2j, 3 - 4j, -0.4j, 0.0])
    tx = huber_decay(0.5, 0.2, 0.4)
    updates, _ = tx.update(jnp.zeros(4, z.dtype), tx.init(jnp.asarray(z)), jnp.asarray(z))
    pull = np.array([0.1 + 0.2j, 0.4 * (3 - 4j) / 5, -0.4j, 0.0])
    np.testing.assert_allclose(updates, -0.1 * pull, rtol=1e-12)
    slope = jax.grad(lambda w: jnp.sum(jnp.abs(jnp.real(huber(0.4)(w)))))(jnp.asarray(z))
    assert np.isfinite(slope).all()


def test_shape_gate_and_reference_compose_in_one_update(x64):
    params, goal = jnp.array([3.0, -1.0, 0.5]), jnp.array([1.0, 1.0, 1.0])
    updates = jnp.array([-0.1, -0.1, 0.1])
    tx = decay_weights(
        0.2,
        parts=lambda p: 0.5,
        gate=lambda u, pull: u * pull < 0,
        reference=goal,
        pull=huber(1.5),
    )
    found, _ = tx.update(updates, tx.init(params), params)
    np.testing.assert_allclose(found, [-0.1 - 0.1 * 1.5, -0.1, 0.1 + 0.1 * 0.5], rtol=1e-12)


def test_placed_before_the_learning_rate_the_weights_would_grow():
    """The docstring says `after the learning rate`; this is what happens otherwise."""
    w = jnp.ones(2)
    tx = optax.chain(independent_decay(0.1), optax.scale_by_learning_rate(1.0))
    assert (tx.update(jnp.zeros(2), tx.init(w), w)[0] > 0).all()


def test_a_schedule_is_read_at_the_number_of_updates_made():
    w, tx = jnp.ones(2), decay_weights(lambda step: 0.1 * step)
    state = tx.init(w)
    for expected in (0.0, -0.1, -0.2):
        updates, state = tx.update(jnp.zeros(2), state, w)
        np.testing.assert_allclose(updates, expected, rtol=1e-6)


def test_strength_and_learning_rate_may_both_be_schedules(x64):
    strength = lambda t: 0.1 + 0.04 * t
    rates = strength(np.arange(T)) * reference.cosine_schedule(ETA, T)
    found = train(decoupled_decay(strength, COSINE), jnp.ones(2), no_gradient, T)
    np.testing.assert_allclose(found, np.prod(1 - rates), rtol=1e-12)


def test_arithmetic_is_in_float32_when_the_params_are_bfloat16():
    """bfloat16 would round 1 - 2^-9 of the pull away before the update sees it."""
    w = jnp.full(3, 1.0078125, jnp.bfloat16)
    updates = jnp.full(3, 0.001, jnp.float32)
    tx = independent_decay(0.1)
    found, _ = tx.update(updates, tx.init(w), w)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, 0.001 - 0.1 * 1.0078125, rtol=1e-6)


def test_a_leaf_of_multiplier_zero_is_not_touched_even_when_it_is_infinite(nans_allowed):
    params = {"a": jnp.array([jnp.inf]), "b": jnp.ones(1)}
    tx = independent_decay(0.1, parts={"a": 0.0, "b": 1.0})
    updates, _ = tx.update({"a": jnp.zeros(1), "b": jnp.zeros(1)}, tx.init(params), params)
    assert updates["a"] == 0.0


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: decoupled_decay(-1.0, 0.1), "`strength` must be finite and >= 0.*strength=-1"),
        (lambda: decoupled_decay(float("nan"), 0.1), "finite"),
        (lambda: decoupled_decay(np.ones(2), 0.1), "vmap over the function"),
        (lambda: decoupled_decay(0.1, -0.1), "`learning_rate` must be finite and >= 0"),
        (lambda: decoupled_decay(0.1, float("inf")), "learning_rate"),
        (lambda: independent_decay(0.1, 3.0), r"`schedule` must stay in \[0, 1\], got 3"),
        (lambda: independent_decay(0.1, -0.5), "schedule=-0.5"),
        (lambda: corrected_decay(0.1, 0.1, 0.0), "`peak_learning_rate` must be finite and > 0"),
        (lambda: corrected_decay(0.1, 0.3, 0.1), "must be the largest learning rate"),
        (lambda: decay_weights(-0.1), "rate=-0.1"),
        (lambda: decay_weights(2.0), "a step would remove 2 times the weight"),
        (lambda: decoupled_decay(30.0, 0.1), "a step would remove 3 times the weight"),
        (lambda: decay_weights(0.1, reference=float("nan")), "reference"),
        (lambda: decay_to_average(0.1, 0.1, 1.5), "`smoothing` must be finite and >= 0 and <= 1"),
        (lambda: huber_decay(0.1, 0.1, 0.0), "`threshold` must be finite and > 0"),
    ],
)
def test_what_is_known_to_be_wrong_is_refused_when_it_is_built(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: decay_weights(lambda t: -0.1), "`rate` must be finite and >= 0"),
        (lambda: decoupled_decay(lambda t: -1.0, 0.1), "strength=-1"),
        (lambda: decoupled_decay(0.1, optax.constant_schedule(-1.0)), "learning_rate=-1"),
        (lambda: independent_decay(0.1, optax.cosine_decay_schedule(5.0, 9)), r"\[0, 1\], got 5"),
        (lambda: corrected_decay(0.1, COSINE, 0.01), "must be the largest learning rate"),
        (lambda: decay_weights(0.5, parts={"*": 5.0}), "a step would remove 2.5 times"),
        (lambda: decoupled_decay(30.0, COSINE), "a step would remove 3 times"),
        (lambda: decay_weights(0.1, parts={"w": 1.0}), "no pattern for 'b'"),
        (lambda: decay_weights(0.1, parts={"*": 1.0, "z": 0.0}), "first for no leaf: 'z'"),
        (lambda: decay_weights(0.1, reference={"w": jnp.ones((2, 2))}), "`reference` must be"),
        (
            lambda: decay_weights(0.1, reference={"w": jnp.ones(3), "b": jnp.ones(2)}),
            r"`reference` has shape \(3,\) at 'w'",
        ),
    ],
)
def test_what_the_params_or_the_first_step_show_to_be_wrong_is_refused_by_init(make, message):
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    with pytest.raises(ValueError, match=message):
        make().init(params)


def test_a_schedule_that_goes_wrong_later_is_refused_at_that_step():
    tx, w = independent_decay(0.1, lambda t: 1.0 + t), jnp.ones(2)
    state = tx.init(w)
    _, state = tx.update(jnp.zeros(2), state, w)
    with pytest.raises(ValueError, match=r"must stay in \[0, 1\], got 2"):
        tx.update(jnp.zeros(2), state, w)


def test_a_strength_that_takes_a_whole_weight_a_step_warns():
    with pytest.warns(UserWarning, match="removes 1.5 times the weight.*convert_strength"):
        decoupled_decay(15.0, 0.1)
    with pytest.warns(UserWarning, match="removes 1 times"):
        decay_weights(0.5, parts={"*": 2.0}).init(jnp.ones(2))


def test_float32_schedules_may_touch_their_peak():
    """0.1 in float32 is above 0.1 in float64; that is rounding, not a wrong peak."""
    for tx in (
        corrected_decay(0.1, jnp.float32(0.1), 0.1),
        independent_decay(0.1, jnp.float32(1.0000001)),
    ):
        w = jnp.ones(2)
        updates, _ = tx.update(jnp.zeros(2), tx.init(w), w)
        assert np.all(updates < 0)


def test_traced_values_pass_every_check():
    def build(strength, learning_rate, peak):
        for tx in (
            decoupled_decay(strength, learning_rate),
            independent_decay(strength, learning_rate),
            corrected_decay(strength, learning_rate, peak),
            decay_weights(strength, reference=peak, pull=huber(peak)),
            decay_to_average(strength, learning_rate, peak),
        ):
            tx.init(jnp.ones(2))
        return strength

    jax.jit(build)(-1.0, -1.0, -1.0)


@pytest.mark.parametrize("make", [lambda: independent_decay(0.1), lambda: decay_to_initial(1, 0.1)])
def test_update_without_params_says_one_thing_whether_none_or_left_out(make):
    tx, w = make(), jnp.ones(2)
    state = tx.init(w)
    texts = []
    for arguments in ((w, state), (w, state, None)):
        with pytest.raises(ValueError, match=r"tx.update\(updates, state, params\)") as refusal:
            tx.update(*arguments)
        texts.append(str(refusal.value))
    assert texts[0] == texts[1]


def test_the_kept_reference_is_where_training_began(x64):
    tx = decay_weights(0.5, reference=initial_params)
    w = jnp.array([1.0, 2.0])
    state = tx.init(w)
    updates, state = tx.update(jnp.zeros(2), state, w + 4.0)
    np.testing.assert_allclose(updates, -2.0, rtol=1e-12)
    np.testing.assert_array_equal(state.reference, w)


def test_a_reference_tree_leaves_integers_and_keys_alone():
    w = {"w": jnp.ones(2), "steps": jnp.arange(3), "key": jax.random.key(0)}
    tx = decay_weights(0.5, reference=w | {"w": jnp.zeros(2)})
    updates, _ = jax.jit(tx.update)(w, tx.init(w), w)
    np.testing.assert_array_equal(updates["w"], 0.5)
    np.testing.assert_array_equal(updates["steps"], w["steps"])
    assert updates["key"] == w["key"]
