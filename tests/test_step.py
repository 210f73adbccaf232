"""A step: by hand, the keys it passes on, on several devices, and compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wdjax.decay import decoupled_decay
from wdjax.losses import regularized_loss, squared_error
from wdjax.penalties import l2_penalty
from wdjax.runners import jit_step
from wdjax.step import TrainState, init_state, make_train_step
from wdjax.types import Batch, LossAux, Model

RNG = np.random.default_rng(0)


def linear(params, inputs):
    return inputs @ params["w"]


def batch_of(weights):
    n = len(weights)
    return Batch(RNG.normal(size=(n, 3)), RNG.normal(size=n), np.asarray(weights, float))


def params():
    return {"w": jnp.array([1.0, -2.0, 0.5])}


def test_a_step_of_descent_is_the_formula(x64):
    """w <- w - eta (X'S(Xw - y) / sum s + strength w); metrics are taken at the old w."""
    x, y, s = batch = batch_of([1.0, 2.0, 0.5])
    w = np.array([1.0, -2.0, 0.5])
    tx = optax.sgd(0.1)
    step = make_train_step(regularized_loss(linear, squared_error, l2_penalty(0.3)), tx)
    state, metrics = jax.jit(step)(init_state(params(), tx), batch)
    residuals = x @ w - y
    grad = x.T @ (s * residuals) / s.sum() + 0.3 * w
    np.testing.assert_allclose(state.params["w"], w - 0.1 * grad)
    assert (state.step, state.step.dtype, state.model_state, state.key) == (
        1,
        jnp.int32,
        None,
        None,
    )
    data_loss, penalty = 0.5 * np.sum(s * residuals**2) / s.sum(), 0.15 * w @ w
    expected = {
        "loss": data_loss + penalty,
        "data_loss": data_loss,
        "penalty": penalty,
        "denominator": s.sum(),
        "grad_norm": np.linalg.norm(grad),
        "update_norm": 0.1 * np.linalg.norm(grad),
        "weight_norm": np.linalg.norm(w),
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, err_msg=name)


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_a_penalty_and_decoupled_decay_are_one_sequence_until_there_is_momentum(momentum, x64):
    """Step by step, with a schedule: w - eta_t (g + lam w) = (1 - eta_t lam) w - eta_t g."""
    batch, schedule = batch_of([1.0, 2.0, 0.5]), optax.cosine_decay_schedule(0.1, 8)
    sgd = optax.sgd(schedule, momentum=momentum)
    inside = regularized_loss(linear, squared_error, l2_penalty(0.7))
    beside = regularized_loss(linear, squared_error)
    both = optax.chain(sgd, decoupled_decay(0.7, schedule))
    coupled, decoupled = (
        jit_step(make_train_step(inside, sgd)),
        jit_step(make_train_step(beside, both)),
    )
    one, two = init_state(params(), sgd), init_state(params(), both)
    for t in range(8):
        (one, _), (two, _) = coupled(one, batch), decoupled(two, batch)
        # The first step has no past to average.
        equal = np.allclose(one.params["w"], two.params["w"], rtol=1e-13, atol=0)
        assert equal == (momentum is None or t == 0)


def test_the_loss_gets_a_key_of_its_own_at_every_step(key):
    def loss_fn(params, batch, *, model_state=None, key=None, train=True):
        return params * 0.0, LossAux(params * 0.0, 0.0, 1.0, jax.random.uniform(key))

    tx = optax.sgd(1.0)
    step = jax.jit(make_train_step(loss_fn, tx))
    state = init_state(jnp.array(1.0), tx, model_state=jnp.array(0.0), key=key)
    for t in range(3):
        state, _ = step(state, batch_of([1.0]))
        assert state.model_state == jax.random.uniform(jax.random.fold_in(key, t))
        assert (state.key == key).all()


# Several devices


def pmapped(step):
    return jax.pmap(
        lambda state, batch: step(state, batch, axis_name="device"),
        axis_name="device",
        in_axes=(None, 0),
        out_axes=None,
    )


@pytest.mark.parametrize(
    "weights", [[3.0, 0.5, 0, 1, 0, 0], [1.0, 1, 1, 0, 0, 0], [0.0] * 6, [1.0] * 6], ids=str
)
def test_on_two_devices_a_step_is_that_of_the_whole_batch(weights, x64):
    """Shares of the global denominator: a mean of per-device means is wrong on uneven weights,
    and a penalty summed over devices would count twice."""
    batch, tx = batch_of(weights), optax.adam(0.1)
    step = make_train_step(regularized_loss(linear, squared_error, l2_penalty(0.3)), tx)
    state = init_state(params(), tx)
    expected = jax.jit(step)(state, batch)
    halves = jax.tree.map(lambda x: x.reshape(2, 3, *x.shape[1:]), batch)
    found = pmapped(step)(state, halves)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found, expected)


def test_batch_statistics_are_averaged_by_share_and_counters_kept(x64):
    def apply(params, model_state, inputs, *, key, train):
        return inputs @ params["w"], {"mean": jnp.mean(inputs), "calls": model_state["calls"] + 1}

    tx, batch = optax.sgd(0.1), batch_of([1.0, 2.0, 1.0, 0.0])
    step = make_train_step(regularized_loss(Model(lambda: None, apply), squared_error), tx)
    state = init_state(params(), tx, model_state={"mean": 0.0, "calls": jnp.array(0)})
    halves = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), batch)
    found, _ = pmapped(step)(state, halves)
    # The row of weight 0 is seen as zeros.
    means = [batch.inputs[:2].mean(), batch.inputs[2].sum() / 6]
    expected = 0.75 * means[0] + 0.25 * means[1]
    np.testing.assert_allclose(found.model_state["mean"], expected)
    assert found.model_state["calls"] == 1


# Compiled


def test_the_compiled_step_donates_and_spares_what_the_user_made(key, nans_allowed):
    """With debug_nans JAX donates nothing: it may have to run the step again."""
    tx = optax.adam(0.1)
    step = jit_step(make_train_step(regularized_loss(linear, squared_error), tx))
    mine = init_state(params(), tx, key=key)
    batch = jax.tree.map(jnp.asarray, batch_of([1.0, 2.0, 1.0]))
    first, _ = step(mine, batch)
    second, _ = step(first, batch)
    assert first.params["w"].is_deleted()
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((mine, batch, second)))
    np.testing.assert_array_equal(mine.params["w"], [1.0, -2.0, 0.5])
    put_in = {"w": jnp.zeros(3)}
    third, _ = step(second._replace(params=put_in), batch)
    assert not put_in["w"].is_deleted()
    assert isinstance(third, TrainState) and third.step == 3


def test_a_second_call_compiles_nothing(key):
    traces, events = [], []
    tx = optax.adam(0.1)

    def counted(params, inputs):
        traces.append(1)
        return linear(params, inputs)

    def on_event(name, seconds, **_):
        if name.endswith("backend_compile_duration"):
            events.append(name)

    step = jit_step(make_train_step(regularized_loss(counted, squared_error), tx))
    state, batch = init_state(params(), tx, key=key), batch_of([1.0, 2.0, 1.0])
    jax.monitoring.register_event_duration_secs_listener(on_event)
    state, _ = step(state, batch)
    assert events
    events.clear()
    for _ in range(3):
        state, _ = step(state, batch)
    assert (len(traces), events) == (1, [])
    jax.monitoring.unregister_event_duration_listener(on_event)
