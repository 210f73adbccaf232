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
    # The second device sees its only row of weight above 0 twice.
    means = [batch.inputs[:2].mean(), batch.inputs[2].mean()]
    expected = 0.75 * means[0] + 0.25 * means[1]
    np.testing.assert_allclose(found.model_state["mean"], expected)
    assert found.model_state["calls"] == 1


def singular(params, model_state, inputs, *, key, train):
    """`h / |h|`, whose derivative at h = 0 is NaN, with the inputs' mean as batch statistics."""
    h = inputs @ params["w"]
    model_state = {"mean": jnp.mean(inputs), "calls": model_state["calls"] + 1}
    return h / jnp.linalg.norm(h, axis=-1, keepdims=True), model_state


def distance(outputs, targets):
    return jnp.linalg.norm(outputs - targets, axis=-1)


def by_hand(w, x, y, s):
    """The weighted mean distance of the rows that count, and nothing else."""
    kept = s > 0
    h = x[kept] @ w
    h = h / jnp.sqrt(jnp.sum(h**2, axis=1))[:, None]
    return jnp.sum(s[kept] * jnp.sqrt(jnp.sum((h - y[kept]) ** 2, axis=1))) / s.sum()


@pytest.mark.parametrize("weights", [[0.0, 0, 0, 2, 0, 1], [1.0, 0, 3, 0, 0, 0]], ids=str)
def test_a_device_without_an_active_row_adds_nothing_and_keeps_its_statistics(weights, x64):
    """NaN and infinity in the rows of weight 0, a model singular at zero, a distance as loss."""
    s, w = np.array(weights), RNG.normal(size=(3, 2))
    x, y = RNG.normal(size=(6, 3)), RNG.normal(size=(6, 2))
    expected = w - 0.1 * (jax.grad(by_hand)(jnp.asarray(w), x, y, s) + 0.3 * w)
    # Of the other device's rows a, -, b the middle one, number 1 of 2 active, is seen as b.
    first = np.argmax(s > 0)
    seen = x[[first, first + 2, first + 2]].mean()
    x[s == 0], y[s == 0] = np.nan, np.inf
    tx = optax.sgd(0.1)
    loss_fn = regularized_loss(Model(lambda: None, singular), distance, l2_penalty(0.3))
    state = init_state(
        {"w": jnp.asarray(w)}, tx, model_state={"mean": jnp.array(9.0), "calls": jnp.array(7)}
    )
    halves = Batch(x.reshape(2, 3, 3), y.reshape(2, 3, 2), s.reshape(2, 3))
    found, _ = pmapped(make_train_step(loss_fn, tx))(state, halves)
    np.testing.assert_allclose(found.params["w"], expected, rtol=1e-10)
    np.testing.assert_allclose(found.model_state["mean"], seen, rtol=1e-12)


def test_where_nothing_counts_on_any_device_only_the_penalty_acts(nans_allowed, x64):
    """The derivative inside is NaN: sqrt at 0."""
    apply = lambda params, state, inputs, **_: (
        jnp.sqrt(0 * (inputs @ params["w"])),
        {"mean": jnp.mean(inputs)},
    )
    tx, nothing = optax.sgd(0.1), np.full((2, 3, 3), np.nan)
    loss_fn = regularized_loss(Model(lambda: None, apply), squared_error, l2_penalty(0.3))
    state = init_state(params(), tx, model_state={"mean": jnp.array(9.0)})
    batch = Batch(nothing, nothing[..., 0], np.zeros((2, 3)))
    found, metrics = pmapped(make_train_step(loss_fn, tx))(state, batch)
    np.testing.assert_allclose(found.params["w"], 0.97 * params()["w"], rtol=1e-14)
    assert (metrics["data_loss"], found.model_state["mean"]) == (0.0, 9.0)


# Sums


def test_norms_of_half_precision_are_taken_in_float32():
    """A gradient of 300 in each of 16 entries: its squares are beyond float16."""
    tx = optax.sgd(1e-4)
    batch = Batch(np.full((2, 16), 300, np.float16), np.zeros(2), np.ones(2, np.float32))
    loss_fn = regularized_loss(lambda w, x: x @ w, lambda outputs, _: outputs)
    _, metrics = make_train_step(loss_fn, tx)(init_state(jnp.zeros(16, jnp.float16), tx), batch)
    np.testing.assert_allclose(metrics["grad_norm"], 1200.0, rtol=1e-3)
    np.testing.assert_allclose(metrics["update_norm"], 0.12, rtol=1e-2)


# Leaves that training does not move


def test_integers_and_keys_among_the_params_stay_and_the_rest_steps_as_without_them(key, x64):
    """Adam with decay, in a scan: every part of the state keeps its dtype."""
    tx = optax.chain(optax.adam(0.1), decoupled_decay(0.3, 0.1))
    batch = jax.tree.map(jnp.asarray, batch_of([1.0, 2.0, 0.5]))
    more = {"table": jnp.array([2**24 + 1, -3]), "key": key}

    def run(start):
        step = make_train_step(regularized_loss(linear, squared_error, l2_penalty(0.3)), tx)
        one = lambda state, _: step(state, batch)
        return jax.jit(lambda: jax.lax.scan(one, init_state(start, tx), length=3))()

    (found, metrics), (expected, without) = run(params() | more), run(params())
    np.testing.assert_allclose(found.params["w"], expected.params["w"], rtol=1e-14)
    np.testing.assert_array_equal(found.params["table"], more["table"])
    assert found.params["key"] == key and found.params["table"].dtype == more["table"].dtype
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-14), metrics, without)


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
