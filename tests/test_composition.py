"""One optimiser of direction, learning rate and decays, in which the learning rate is said once."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

import wdjax
from wdjax.decay import (
    adamw,
    cautious_decay,
    constrained_decay,
    corrected_decay,
    decay_to_average,
    decay_to_initial,
    decay_weights,
    decoupled_decay,
    decoupled_rate,
    fixed_bound,
    huber,
    huber_decay,
    independent_decay,
    initial_params,
    lion,
    make_optimizer,
    muon,
    project_sphere,
    proximal_elastic_net,
    proximal_l1,
    sgdw,
)
from wdjax.parts import matrices_only, scale_by_parts

ETA, LAM, T = 0.05, 0.4, 12
COSINE, SHAPE = (optax.cosine_decay_schedule(peak, T) for peak in (ETA, 1.0))
PARAMS = {
    "kernel": jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)), jnp.float32),
    "bias": jnp.array([0.5, -0.1]),
}
PATTERNS = {"kernel": 0.5, "*": 0.0}


def train(tx, w=PARAMS, num_steps=3, grad=jnp.cos):
    state = tx.init(w)
    for _ in range(num_steps):
        updates, state = tx.update(jax.tree.map(grad, w), state, w)
        w = optax.apply_updates(w, updates)
    return w


WAYS = {
    "decoupled": (
        partial(decoupled_decay, LAM, parts=matrices_only),
        lambda eta: decoupled_decay(LAM, eta, parts=matrices_only),
    ),
    "cautious": (partial(cautious_decay, LAM), lambda eta: cautious_decay(LAM, eta)),
    "to initial": (
        partial(decay_to_initial, LAM, parts=PATTERNS),
        lambda eta: decay_to_initial(LAM, eta, parts=PATTERNS),
    ),
    "to average": (
        partial(decay_to_average, LAM, smoothing=0.9),
        lambda eta: decay_to_average(LAM, eta, 0.9),
    ),
    "huber": (
        partial(huber_decay, LAM, threshold=0.2),
        lambda eta: huber_decay(LAM, eta, 0.2),
    ),
    "l1": (partial(proximal_l1, LAM), lambda eta: proximal_l1(LAM, eta)),
    "elastic net": (
        partial(proximal_elastic_net, LAM, 0.1),
        lambda eta: proximal_elastic_net(LAM, 0.1, eta),
    ),
    "a strength that is a schedule": (
        partial(decoupled_decay, lambda t: LAM / (1 + t)),
        lambda eta: decoupled_decay(lambda t: LAM / (1 + t), eta),
    ),
    "gate, reference and shape": (
        lambda learning_rate: decay_weights(
            decoupled_rate(LAM, learning_rate), reference=initial_params, pull=huber(0.1)
        ),
        lambda eta: decay_weights(
            decoupled_rate(LAM, eta), reference=initial_params, pull=huber(0.1)
        ),
    ),
    "independent": (partial(independent_decay, LAM), lambda eta: independent_decay(LAM)),
    "constrained": (
        constrained_decay(1.0, fixed_bound(0.1)),
        lambda eta: constrained_decay(1.0, fixed_bound(0.1)),
    ),
    "projected": (project_sphere(1.0), lambda eta: project_sphere(1.0)),
}


@pytest.mark.parametrize("way", WAYS)
def test_it_is_the_chain_in_which_the_learning_rate_is_said_twice_bit_for_bit(way):
    """With a number, with a schedule of learning rates, and with a peak and its shape."""
    decay, written_out = WAYS[way]
    for eta in (ETA, COSINE):
        ours = make_optimizer(optax.scale_by_adam(eps_root=1e-12), eta, decay)
        theirs = optax.chain(optax.adam(eta, eps_root=1e-12), written_out(eta))
        jax.tree.map(np.testing.assert_array_equal, train(ours), train(theirs))
    apart = make_optimizer(optax.trace(0.9), ETA, decay, schedule=SHAPE)
    eta = lambda step: ETA * SHAPE(step)
    theirs = optax.chain(optax.trace(0.9), optax.scale_by_learning_rate(eta), written_out(eta))
    jax.tree.map(np.testing.assert_array_equal, train(apart), train(theirs))


@pytest.mark.parametrize(
    "coupling, decay",
    [
        ("decoupled", partial(decoupled_decay, LAM)),
        ("independent", lambda schedule: independent_decay(LAM, schedule)),
        ("corrected", partial(corrected_decay, LAM)),
        ("fixed", partial(independent_decay, LAM)),
        ("fixed", independent_decay(LAM)),
    ],
)
def test_each_coupling_gets_what_it_requires_of_the_one_learning_rate(coupling, decay, x64):
    """prod_t (1 - c_t) without a gradient, by the reference: eta_t, s_t and the peak arrive."""
    tx = make_optimizer(optax.identity(), ETA, decay, schedule=SHAPE)
    found = train(tx, jnp.ones(2, jnp.float64), T, jnp.zeros_like)
    rates = reference.rates(coupling, LAM, reference.cosine_schedule(ETA, T), ETA)
    np.testing.assert_allclose(found, np.prod(1 - rates), rtol=1e-12)


def test_with_a_number_the_peak_is_the_number_and_the_shape_is_one():
    for decay in (partial(corrected_decay, LAM), partial(decoupled_decay, LAM)):
        tx = make_optimizer(optax.identity(), ETA, decay)
        np.testing.assert_allclose(train(tx, jnp.ones(2), 1, jnp.zeros_like), 1 - ETA * LAM)
    tx = make_optimizer(optax.identity(), ETA, lambda schedule: independent_decay(LAM, schedule))
    np.testing.assert_allclose(train(tx, jnp.ones(2), 1, jnp.zeros_like), 1 - LAM)


def test_several_decays_act_in_order_each_on_its_parts(x64):
    w = {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full(2, 2.0)}
    tx = make_optimizer(
        optax.chain(optax.identity(), scale_by_parts({"kernel": 0.5, "bias": 1.0})),
        0.1,
        partial(decoupled_decay, 0.5, parts=matrices_only),
        partial(proximal_l1, 1.0, parts={"bias": 1.0, "*": 0.0}),
    )
    found = train(tx, w, 1, jnp.ones_like)
    np.testing.assert_allclose(found["kernel"], 2 - 0.1 * 0.5 - 0.1 * 0.5 * 2, rtol=1e-12)
    np.testing.assert_allclose(found["bias"], 2 - 0.1 - 0.1, rtol=1e-12)
    plain = make_optimizer(optax.scale_by_adam(), 0.1)
    jax.tree.map(np.testing.assert_array_equal, train(plain, w), train(optax.adam(0.1), w))


def test_inside_a_compiled_run_strengths_and_learning_rates_may_be_traced():
    def run(strength, learning_rate):
        decays = partial(decoupled_decay, strength), partial(corrected_decay, strength)
        return train(make_optimizer(optax.scale_by_adam(), learning_rate, *decays, schedule=SHAPE))

    strengths, rates = jnp.array([0.0, 0.3, 1.0]), jnp.array([0.1, 0.2, 0.05])
    found = jax.jit(jax.vmap(run))(strengths, rates)
    for i in range(3):
        expected = run(float(strengths[i]), float(rates[i]))
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=2e-6), found, expected
        )


def test_injected_the_one_learning_rate_moves_step_and_decay_together():
    """Halved in the state, it halves both; said twice, it would have halved the step alone."""
    make = lambda strength, learning_rate: make_optimizer(
        optax.identity(), learning_rate, partial(decoupled_decay, strength)
    )
    tx = optax.inject_hyperparams(make)(strength=LAM, learning_rate=ETA)
    w = jnp.full(2, 3.0)
    state = tx.init(w)
    for eta in (ETA, ETA / 2):
        state.hyperparams["learning_rate"] = jnp.asarray(eta)
        updates, _ = tx.update(jnp.ones(2), state, w)
        np.testing.assert_allclose(updates, -eta - eta * LAM * 3.0, rtol=1e-6)


@pytest.mark.parametrize("make", [sgdw, adamw, lion])
def test_the_named_optimisers_take_a_decay_without_its_learning_rate(make):
    for rate in (ETA, COSINE):
        once = make(rate, partial(decoupled_decay, LAM, parts=matrices_only))
        twice = make(rate, decoupled_decay(LAM, rate, parts=matrices_only))
        jax.tree.map(np.testing.assert_array_equal, train(once), train(twice))
    with pytest.raises(ValueError, match="requires 'peak_learning_rate'"):
        make(COSINE, partial(corrected_decay, LAM))


def test_muon_takes_a_decay_without_its_learning_rate():
    nothing = jax.tree.map(jnp.zeros_like, PARAMS)
    tx = muon(ETA, partial(decoupled_decay, LAM))
    updates, _ = tx.update(nothing, tx.init(PARAMS), PARAMS)
    jax.tree.map(
        lambda u, w: np.testing.assert_allclose(u, -ETA * LAM * w, rtol=1e-5), updates, PARAMS
    )


@pytest.mark.parametrize(
    "direction",
    [
        lambda: optax.adam(3e-3),
        lambda: optax.sgd(0.1, momentum=0.9),
        lambda: optax.lion(1e-4),
        lambda: optax.contrib.muon(0.02),
        lambda: optax.adamw(optax.constant_schedule(1e-3)),
        lambda: make_optimizer(optax.scale_by_adam(), 3e-3),
    ],
)
def test_a_direction_that_has_a_learning_rate_already_is_refused(direction):
    with pytest.raises(ValueError, match=r"descends already.*such as `optax.scale_by_adam\(\)`"):
        make_optimizer(direction(), 3e-3)


@pytest.mark.parametrize(
    "direction",
    [
        optax.identity,
        lambda: optax.trace(0.9, nesterov=True),
        optax.scale_by_adam,
        optax.scale_by_lion,
        optax.scale_by_rms,
        optax.scale_by_sign,
        lambda: optax.contrib.scale_by_muon(
            weight_dimension_numbers=dict.fromkeys(
                ("kernel", "other"), optax.contrib.MuonDimensionNumbers()
            )
        ),
        lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam()),
        lambda: optax.chain(optax.add_decayed_weights(0.1), optax.scale_by_adam()),
        lambda: scale_by_parts({"kernel": 1.0, "*": 0.5}),
    ],
)
def test_a_direction_without_one_is_taken(direction):
    params = {"kernel": np.ones((2, 3), np.float32), "other": np.ones((3, 2), np.float32)}
    tx = make_optimizer(direction(), 3e-3)
    updates, _ = tx.update(params, tx.init(params), params)
    assert all(np.isfinite(u).all() and np.any(u != 0) for u in jax.tree.leaves(updates))


def test_the_look_at_a_direction_leaves_a_traced_one_alone():
    """Nothing is known of it, and nothing leaks."""

    @jax.jit
    def run(b1, eta):
        direction = optax.scale_by_adam(b1=b1)
        with jax.checking_leaks():
            return train(make_optimizer(direction, eta, partial(decoupled_decay, LAM)))

    assert np.isfinite(run(0.9, ETA)["kernel"]).all()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: make_optimizer(optax.identity(), -1.0), "`learning_rate` must be finite and >= 0"),
        (
            lambda: make_optimizer(optax.identity(), COSINE, schedule=SHAPE),
            "a schedule already; beside `schedule` it must be the peak, a number",
        ),
        (
            lambda: make_optimizer(optax.identity(), ETA, schedule=lambda t: 3.0),
            r"`schedule` must stay in \[0, 1\], got 3",
        ),
        (
            lambda: make_optimizer(optax.identity(), COSINE, partial(corrected_decay, LAM)),
            "'corrected_decay' requires 'peak_learning_rate'.*as the peak, a number, and its shape",
        ),
        (
            lambda: make_optimizer(optax.identity(), ETA, decoupled_decay),
            r"'decoupled_decay' requires 'strength'.*partial\(decoupled_decay, ...\)",
        ),
        (
            lambda: make_optimizer(optax.identity(), ETA, lambda lr: decoupled_decay(LAM, lr)),
            "requires 'lr'; it is given learning_rate, schedule, peak_learning_rate, by name",
        ),
        (
            lambda: make_optimizer(optax.identity(), ETA, lambda learning_rate: 0.1),
            "must make an optax transformation, made 0.1",
        ),
        (
            lambda: make_optimizer(optax.identity(), 0.1, partial(decoupled_decay, 30.0)),
            "a step would remove 3 times the weight",
        ),
    ],
)
def test_what_is_known_to_be_wrong_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_it_is_a_name_of_the_package():
    assert wdjax.make_optimizer is make_optimizer
