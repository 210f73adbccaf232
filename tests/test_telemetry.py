"""Telemetry: what is measured against its definition, what is predicted against a long run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wdjax.decay import (
    cautious,
    cautious_decay,
    decay_weights,
    decoupled_rate,
    independent_decay,
)
from wdjax.diagnostics.telemetry import measure_parts
from wdjax.losses import regularized_loss, squared_error
from wdjax.models import make_mlp
from wdjax.recipe import DECAYS, MOMENTUM, Recipe, recipe_fit, recipe_telemetry, recipe_tx
from wdjax.step import TrainState, init_state, make_train_step
from wdjax.types import Batch


def state_of(params, step=0):
    return TrainState(jnp.asarray(step, jnp.int32), params, ())


def test_norm_angle_and_ratio_are_their_definitions(x64):
    w = {"dense": {"kernel": jnp.array([[3.0, 0.0], [0.0, 4.0]])}}
    grads = {"dense": {"kernel": jnp.array([[0.0, 1.0], [1.0, 1.0]])}}
    updates = {"dense": {"kernel": jnp.array([[0.0, 5.0], [0.0, 0.0]])}}
    found = measure_parts(state_of(w), grads, updates)
    assert list(found) == ["dense/kernel"]
    part = found["dense/kernel"]
    np.testing.assert_allclose(part.norm, 5.0, rtol=1e-12)
    np.testing.assert_allclose(part.angle, np.pi / 4, rtol=1e-12)
    np.testing.assert_allclose(part.gradient_ratio, np.sqrt(3) / 5, rtol=1e-12)
    assert part.timescale == np.inf and part.equilibrium_norm == np.inf
    assert part.equilibrium_angle == 0 and part.stuck_share == 0


def test_a_small_angle_is_seen_in_float32():
    """arccos of the cosine would give 0 below 3e-4."""
    w, update = jnp.array([1.0, 0.0]), jnp.array([0.0, 1e-5])
    found = measure_parts(state_of(w), w, update)[""]
    np.testing.assert_allclose(found.angle, 1e-5, rtol=1e-4)


def test_the_timescale_follows_the_schedule_and_the_part():
    w = {"a": jnp.ones(2), "b": jnp.ones(2)}
    rate = decoupled_rate(0.5, lambda t: 0.1 * t)
    parts = {"a": 1.0, "b": 0.25}
    found = measure_parts(state_of(w, 4), w, w, rate=rate, parts=parts)
    np.testing.assert_allclose([found["a"].timescale, found["b"].timescale], [5, 20], rtol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_the_predicted_equilibrium_is_where_a_random_walk_ends_up(momentum, key, x64):
    """Steps of independent directions (averaged by momentum) with decay: over the last half of
    4000 steps the mean norm and angle are the predicted; the tolerance is what 400 weights
    leave of chance."""
    c, eta, size = 0.01, 0.1, 400
    tx = optax.chain(optax.ema(momentum, debias=False), optax.scale(-eta), independent_decay(c))

    def step(carry, key):
        w, state = carry
        grads = jax.random.normal(key, (size,), jnp.float64)
        updates, state = tx.update(grads, state, w)
        part = measure_parts(state_of(w), grads, updates, rate=c, momentum=momentum)[""]
        kept = (part.norm**2, part.angle, part.equilibrium_norm**2, part.equilibrium_angle)
        return (w + updates, state), jnp.stack(kept)

    w = jnp.full(size, 5.0)
    _, found = jax.lax.scan(step, (w, tx.init(w)), jax.random.split(key, 4000))
    norm, angle, predicted_norm, predicted_angle = np.asarray(found[2000:]).mean(axis=0)
    np.testing.assert_allclose(norm, predicted_norm, rtol=0.06)
    np.testing.assert_allclose(angle, predicted_angle, rtol=0.06)
    if momentum == 0:
        np.testing.assert_allclose(predicted_angle, np.arccos(1 - c), rtol=1e-9)


def test_behind_a_gate_the_predicted_equilibrium_is_still_that_of_the_walk(key, x64):
    """The gate spares the weights that a step enlarges, half of them; 6 % is what 400 weights
    leave of chance and the gate of second order in the step."""
    c, size = 5e-3, 400
    tx = optax.chain(optax.scale(-0.1), decay_weights(c, gate=cautious))

    def step(w, key):
        grads = jax.random.normal(key, (size,), jnp.float64)
        updates, _ = tx.update(grads, tx.init(w), w)
        part = measure_parts(state_of(w), grads, updates, rate=c, gate=cautious)[""]
        kept = (part.norm**2, part.angle, part.equilibrium_norm**2, part.equilibrium_angle)
        return w + updates, jnp.stack([*kept, part.gated_share])

    _, found = jax.lax.scan(step, jnp.full(size, 5.0), jax.random.split(key, 6000))
    norm, angle, predicted_norm, predicted_angle, gated = np.asarray(found[3000:]).mean(axis=0)
    np.testing.assert_allclose(norm, predicted_norm, rtol=0.06)
    np.testing.assert_allclose(angle, predicted_angle, rtol=0.06)
    np.testing.assert_allclose(gated, 0.5, atol=0.03)


@pytest.mark.parametrize("update", [0.1, 0.0])
def test_where_the_gate_spares_every_weight_nothing_draws(update):
    """A part of one weight, which a step enlarges or, its gradient zero, leaves."""
    w, updates = jnp.ones(1), jnp.full(1, update)
    closed = lambda update, pull: jnp.zeros_like(pull)
    found = measure_parts(state_of(w), w, updates, rate=0.01, gate=closed)[""]
    assert (found.equilibrium_norm, found.equilibrium_angle) == (np.inf, 0.0)
    assert found.gated_share == 1.0


def test_the_gated_share_counts_the_weights_that_were_spared():
    w, updates = jnp.ones(4), jnp.array([0.1, -0.1, 0.1, 0.1])
    tx = cautious_decay(0.1, 0.1)
    updates, _ = tx.update(updates, tx.init(w), w)
    found = measure_parts(state_of(w), w, updates, rate=0.01, gate=cautious)[""]
    np.testing.assert_allclose(found.gated_share, 0.75)


def test_the_stuck_share_counts_the_weights_their_dtype_could_not_move():
    """In bfloat16 1 - 1e-4 is 1; 1e-3 - 1e-4 is not 1e-3; no update is not stuck."""
    w = jnp.array([1.0, 1.0, 1e-3, 1e-3], jnp.bfloat16)
    updates = jnp.array([-1e-4, 0.0, -1e-4, 0.0], jnp.bfloat16)
    found = measure_parts(state_of(w), w, updates)[""]
    np.testing.assert_allclose(found.stuck_share, 0.25)
    assert found.norm.dtype == jnp.float32


def test_two_leaves_of_one_joined_path_are_refused_rather_than_one_of_them_lost():
    twins = {"a/b": jnp.ones(2), "a": {"b": jnp.ones(2)}}
    state = init_state(twins, optax.identity())
    with pytest.raises(ValueError, match=r"\['a'\]\['b'\] and \['a/b'\]. Rename one\."):
        measure_parts(state, twins, twins, rate=0.1)


def test_it_is_pure_so_it_compiles_and_maps_and_leaves_integers_out():
    w = {"w": jnp.ones((3, 2)), "steps": jnp.arange(2), "zero": jnp.zeros(2)}

    def measure(rate):
        found = measure_parts(state_of(w), w, w, rate=rate)
        return found

    rates = jnp.array([0.1, 0.5])
    mapped = jax.jit(jax.vmap(measure))(rates)
    assert set(mapped) == {"w", "zero"}
    for i, rate in enumerate((0.1, 0.5)):
        one = jax.tree.map(lambda x, i=i: x[i], mapped)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one, measure(rate))
    assert mapped["zero"].angle[0] == 0 and mapped["zero"].gradient_ratio[0] == 0


def test_the_step_hands_what_it_sees_to_the_measure():
    """grads of (w x)^2 / 2 at w = 2, x = 3 are 18; plain descent at 0.1 takes 1.8."""
    tx = optax.sgd(0.1)
    loss_fn = regularized_loss(lambda w, x: w * x, squared_error)
    see = lambda state, grads, updates: {"all": (state.params, grads, updates)}
    step = make_train_step(loss_fn, tx, telemetry=see)
    batch = Batch(jnp.array([3.0]), jnp.zeros(1), jnp.ones(1))
    _, metrics = step(init_state(jnp.array(2.0), tx), batch)
    np.testing.assert_allclose(metrics["telemetry"]["all"], (2.0, 18.0, -1.8), rtol=1e-6)


def small_recipe(**choices):
    make = lambda num_outputs: make_mlp(num_outputs, widths=(8,))
    options = {"num_outputs": 3, "num_epochs": 3, "batch_size": 8, "schedule": "cosine"}
    return Recipe(make_model=make, **(options | choices))


def small_batch(num_examples=24):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(num_examples, 5)).astype(np.float32)
    return Batch(x, rng.integers(0, 3, num_examples), np.ones(num_examples, np.float32))


HPARAMS = {"strength": 0.1, "learning_rate": 3e-3}


@pytest.mark.parametrize("decay", ["decoupled", "coupled"])
def test_a_measured_run_is_bit_for_bit_the_run(decay, key, full_compile):
    """Measured inside the step, Adam under a penalty ends elsewhere in the last bits."""
    recipe = small_recipe(decay=decay)
    run = lambda fit: jax.jit(fit, compiler_options=full_compile)(HPARAMS, small_batch(), key)
    plain, measured = run(recipe_fit(recipe)), run(recipe_fit(recipe, telemetry=True))
    telemetry = measured.history.pop("telemetry")
    jax.tree.map(np.testing.assert_array_equal, measured, plain)
    assert set(telemetry) == {"hidden1/kernel", "hidden1/bias", "head/kernel", "head/bias"}
    assert all(x.shape == (3,) for x in jax.tree.leaves(telemetry))


def test_a_run_measures_the_first_step_of_each_epoch(key):
    """Three steps an epoch: the norm at the start is that of the initial params; the timescale
    is one over the rate of steps 0, 3 and 6 of the cosine."""
    recipe = small_recipe()
    fit = jax.jit(recipe_fit(recipe, telemetry=True))(HPARAMS, small_batch(), key)
    part = fit.history["telemetry"]["head/kernel"]
    etas = 3e-3 * 0.5 * (1 + np.cos(np.pi * np.array([0, 3, 6]) / 9))
    np.testing.assert_allclose(part.timescale, 1 / (0.1 * etas), rtol=1e-5)
    untrained = jax.jit(recipe_fit(recipe, telemetry=True))(
        HPARAMS | {"learning_rate": 1e-12}, small_batch(), key
    )
    norm = np.linalg.norm(untrained.params["head"]["kernel"])
    np.testing.assert_allclose(part.norm[0], norm, rtol=1e-6)


@pytest.mark.parametrize("decay", DECAYS)
def test_a_recipe_is_measured_at_the_rate_it_removes(decay):
    """The timescale is one over what a step without a gradient takes; a penalty has no rate."""
    recipe = small_recipe(decay=decay, optimizer="sgd", parts={"w": 0.5})
    hparams = {"strength": 0.2, "learning_rate": 0.1}
    w = {"w": jnp.full((2, 2), 2.0)}
    tx = recipe_tx(recipe, hparams, 10)
    nothing = jax.tree.map(jnp.zeros_like, w)
    updates, _ = tx.update(nothing, tx.init(w), w)
    found = recipe_telemetry(recipe, hparams, 10, None)(state_of(w), nothing, updates)["w"]
    removed = -float(updates["w"][0, 0]) / 2
    assert (removed > 0) == (decay not in ("coupled", "l1"))
    np.testing.assert_allclose(found.timescale, 1 / removed if removed else np.inf, rtol=1e-5)


def test_the_momentum_of_lion_is_that_of_its_signs(key, x64):
    """Signs of an average over a hundred steps: the random walk ends where 0.957 says."""
    c, eta, size = 5e-4, 0.01, 1000
    tx = optax.chain(optax.scale_by_lion(), optax.scale(-eta), independent_decay(c))

    def step(carry, key):
        w, state = carry
        updates, state = tx.update(jax.random.normal(key, (size,), jnp.float64), state, w)
        return (w + updates, state), jnp.sum(w**2)

    w = jnp.zeros(size)
    _, squares = jax.lax.scan(step, (w, tx.init(w)), jax.random.split(key, 12_000))
    update = jnp.full(size, eta)
    predicted = measure_parts(state_of(w), w, update, rate=c, momentum=MOMENTUM["lion"])[""]
    found = np.sqrt(np.asarray(squares[6000:]).mean())
    np.testing.assert_allclose(found, predicted.equilibrium_norm, rtol=0.05)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"rate": -0.1}, "rate=-0.1"),
        ({"momentum": 1.0}, "momentum=1"),
        ({"parts": {"x": 1.0}}, "x"),
    ],
)
def test_what_is_known_to_be_wrong_is_refused(wrong, message):
    w = {"w": jnp.ones(2)}
    with pytest.raises(ValueError, match=message):
        measure_parts(state_of(w), w, w, **wrong)
