"""One step, run three ways: equal results on lopsided batches, one collective, no recompilation."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from wdjax.losses import cross_entropy, regularized_loss, squared_error
from wdjax.models import from_linen
from wdjax.models.layers import Dropout
from wdjax.penalties import l2_penalty
from wdjax.runners import _norm_before_writing, jit_step, pmap_step, shard_step
from wdjax.step import init_state, make_train_step
from wdjax.types import Batch, Model


class Normed(nn.Module):
    """Dense (no bias before a norm), batch normalisation, dropout, head."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8, use_bias=False)(x))
        return nn.Dense(3)(Dropout(0.3)(nn.relu(x), train))


def data_mesh(num_devices=2):
    devices = jax.devices()[:num_devices]
    return jax.make_mesh((num_devices,), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def lopsided_batches(key, num_batches=20):
    """Five of eight rows of the first device count nothing: a mean of means would be wrong."""
    for k in jax.random.split(key, num_batches):
        kx, ky, kw = jax.random.split(k, 3)
        weights = jax.random.uniform(kw, (16,)).at[:5].set(0.0)
        yield Batch(jax.random.normal(kx, (16, 4)), jax.random.randint(ky, (16,), 0, 3), weights)


def by_device(batch):
    return jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), batch)


@pytest.mark.parametrize(
    "tx", [optax.sgd(0.1, momentum=0.9), optax.adam(0.01)], ids=["sgd", "adam"]
)
def test_jit_sharded_and_pmapped_steps_agree_with_batch_statistics_and_dropout(tx, key):
    model = from_linen(Normed())
    params, model_state = model.init(key, jnp.ones((16, 4)))
    step = make_train_step(regularized_loss(model, cross_entropy, l2_penalty(0.1)), tx)
    runs = {
        "jit": (jit_step(step), lambda batch: batch),
        "shard": (shard_step(step, data_mesh()), lambda batch: batch),
        "pmap": (pmap_step(step), by_device),
    }
    ends = {}
    for name, (run, layout) in runs.items():
        state = init_state(params, tx, model_state=model_state, key=key)
        for batch in lopsided_batches(key):
            state, metrics = run(state, layout(batch))
        ends[name] = jax.device_get((state.params, state.model_state, metrics["loss"]))
    for name in ("shard", "pmap"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            ends[name],
            ends["jit"],
        )


@pytest.mark.parametrize("empty", [0, 1])
def test_a_shard_without_an_active_row_sees_those_of_the_other(empty, key):
    """A model singular at zero with batch statistics, a distance as loss, NaN in the rows of weight
    0: jit, sharded and pmapped, the mean is that of the rule, written as loops."""

    def apply(w, model_state, inputs, *, key, train):
        h = inputs @ w
        return h / jnp.linalg.norm(h, axis=-1, keepdims=True), {"mean": jnp.mean(inputs, axis=0)}

    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(8, n)).astype(np.float32) for n in (3, 2))
    s = np.array([0, 2, 0, 1, 0, 0, 0, 0] if empty else [0, 0, 0, 0, 1, 0, 0, 3], np.float32)
    rows = np.flatnonzero(s)
    mean = x[[j if s[j] else rows[j % 2] for j in range(8)]].mean(0)
    x[s == 0], y[s == 0] = np.nan, np.inf
    w = jax.random.normal(key, (3, 2))

    def by_hand(w):
        h = x[rows] @ w
        h = h / jnp.sqrt(jnp.sum(h**2, axis=1))[:, None]
        return jnp.sum(s[rows] * jnp.sqrt(jnp.sum((h - y[rows]) ** 2, axis=1))) / s.sum()

    expected = w - 0.1 * (jax.grad(by_hand)(w) + 0.3 * w)
    tx = optax.sgd(0.1)
    distance = lambda outputs, targets: jnp.linalg.norm(outputs - targets, axis=-1)
    loss_fn = regularized_loss(Model(lambda: None, apply), distance, l2_penalty(0.3))
    step, batch = make_train_step(loss_fn, tx), Batch(x, y, s)
    state = init_state(w, tx, model_state={"mean": jnp.full(3, 9.0)})
    for run, layout in (
        (jit_step(step), lambda batch: batch),
        (shard_step(step, data_mesh()), lambda batch: batch),
        (pmap_step(step), by_device),
    ):
        found, _ = run(state, layout(batch))
        np.testing.assert_allclose(found.params, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.model_state["mean"], mean, rtol=1e-6)


def test_a_sharded_step_moves_no_rows_between_devices_where_all_are_active(key):
    """What fills inactive rows stands in a branch; outside it only scalars and gradients travel."""
    tx = optax.sgd(0.1)
    step = make_train_step(regularized_loss(lambda p, x: x @ p, cross_entropy), tx)
    mesh = data_mesh()
    whole = jax.sharding.NamedSharding(mesh, jax.P())
    split = jax.sharding.NamedSharding(mesh, jax.P("data"))
    batch = Batch(jnp.ones((16, 4)), jnp.zeros(16, int), jnp.ones(16))
    compiled = jax.jit(step, in_shardings=(whole, split), out_shardings=whole)
    text = compiled.lower(init_state(jnp.zeros((4, 3)), tx), batch).compile().as_text()
    main = text[text.index("ENTRY") :]
    moved = re.findall(r"= (\S+) (?:all-reduce|all-gather|all-to-all|collective-permute)\(", main)
    assert moved and not any("[16" in shape or "[8" in shape for shape in moved), moved


def test_the_users_arrays_survive_and_a_second_call_does_not_compile(key, nans_allowed):
    # JAX does not donate while it looks for NaNs: it may have to run the step again.
    traces = []

    def loss_fn(params, batch, **_):
        traces.append(1)
        loss, aux = regularized_loss(lambda p, x: x @ p, cross_entropy)(params, batch)
        return loss, aux

    tx = optax.sgd(0.1, momentum=0.9)
    params = jnp.zeros((4, 3))
    for run in (
        jit_step(make_train_step(loss_fn, tx)),
        shard_step(make_train_step(loss_fn, tx), data_mesh()),
    ):
        traces.clear()
        state = init_state(params, tx)
        for batch in lopsided_batches(key, 4):
            previous = state
            state, _ = run(state, batch)
        assert len(traces) == 1
        assert previous.params.is_deleted(), "the runner's own state is donated"
        np.testing.assert_array_equal(params, 0.0)
        # Params that a user puts into a running state survive too.
        state, _ = run(state._replace(params=params), batch)
        np.testing.assert_array_equal(params, 0.0)


def test_a_donated_step_copies_no_weights_to_take_their_norm(key, nans_allowed):
    """Two arrays of the weights' size less are moved (one is read for the norm), no bit changes."""
    width = 300
    loss_fn = regularized_loss(lambda params, x: x @ params["w"], squared_error)
    plain = make_train_step(loss_fn, tx := optax.adam(1e-3))
    state = init_state({"w": jax.random.normal(key, (width, width))}, tx)
    batch = Batch(jnp.ones((4, width)), jnp.zeros((4, width)), jnp.ones(4))
    copied, moved, ends = {}, {}, {}
    for name, step in (("plain", plain), ("ordered", _norm_before_writing(plain))):
        compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
        copied[name] = len(re.findall(rf"= f32\[{width},{width}\]\S* copy\(", compiled.as_text()))
        moved[name] = compiled.cost_analysis()["bytes accessed"]
        end = jax.tree.map(jnp.copy, state)
        for _ in range(3):
            end, metrics = compiled(end, batch)
        ends[name] = end.params["w"], metrics["weight_norm"]
    assert copied == {"plain": 1, "ordered": 0}
    assert moved["plain"] - moved["ordered"] > 0.99 * 2 * 4 * width**2
    for one, other in zip(*ends.values(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_sharded_step_combines_its_gradients_in_one_all_reduce(key):
    tx = optax.adam(0.01)
    step = make_train_step(
        regularized_loss(lambda p, x: x @ p["w"] + p["b"][None], cross_entropy), tx
    )
    params = {"w": jnp.zeros((4, 3)), "b": jnp.zeros(3)}
    mesh = data_mesh()
    whole = jax.sharding.NamedSharding(mesh, jax.P())
    split = jax.sharding.NamedSharding(mesh, jax.P("data"))
    batch = next(lopsided_batches(key))
    compiled = (
        jax.jit(step, in_shardings=(whole, split), out_shardings=whole)
        .lower(init_state(params, tx), batch)
        .compile()
    )
    reduces = re.findall(r"= (.*?) all-reduce\(", compiled.as_text())
    arrays = [shape for shape in reduces if re.search(r"f32\[\d", shape)]
    assert len(arrays) == 1, "kernel and bias travel together; what else is reduced is a scalar"
    assert "f32[3,4]" in arrays[0] and "f32[3]" in arrays[0]


def test_nothing_moves_between_host_and_device_inside_a_step(key):
    tx = optax.adam(0.01)
    run = jit_step(make_train_step(regularized_loss(lambda p, x: x @ p, cross_entropy), tx))
    batch = next(lopsided_batches(key))
    state, _ = run(init_state(jnp.zeros((4, 3)), tx), batch)
    with jax.transfer_guard("disallow"):
        state, metrics = run(state, batch)
    assert np.isfinite(metrics["loss"])


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (
            lambda step: shard_step(step, jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))),
            "named 'data'",
        ),
        (
            lambda step: shard_step(
                step, jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
            ),
            "AxisType.Auto",
        ),
    ],
)
def test_a_mesh_that_cannot_work_is_refused(build, words):
    with pytest.raises(ValueError, match=words):
        build(make_train_step(regularized_loss(lambda p, x: x @ p, cross_entropy), optax.sgd(0.1)))


def test_a_batch_that_does_not_divide_is_refused_with_the_size_that_does(key):
    tx = optax.sgd(0.1)
    step = make_train_step(regularized_loss(lambda p, x: x @ p, cross_entropy), tx)
    batch = jax.tree.map(lambda x: x[:13], next(lopsided_batches(key)))
    state = init_state(jnp.zeros((4, 3)), tx)
    with pytest.raises(
        ValueError, match="batch of 13 does not divide over 2 devices; pad it to 14"
    ):
        shard_step(step, data_mesh())(state, batch)
    with pytest.raises(ValueError, match="leading axis must be the 2 devices, got 13"):
        pmap_step(step)(state, batch)


def test_a_state_that_is_sharded_already_is_refused_by_its_leaf():
    """It would be gathered on every device in silence, and its new weights with it."""
    tx = optax.adam(0.1)
    loss_fn = regularized_loss(lambda p, x: x @ p["w"], squared_error)
    batch = Batch(jnp.ones((4, 2)), jnp.ones(4), jnp.ones(4))
    state = init_state({"w": jnp.ones(2)}, tx)
    over = lambda mesh, *spec: NamedSharding(mesh, PartitionSpec(*spec))
    split = over(data_mesh(), "data")
    run = shard_step(make_train_step(loss_fn, tx), data_mesh())
    adam = state.opt_state[0]
    moments = adam._replace(mu=jax.device_put(adam.mu, split))
    for name, sharded in {
        "params/w": state._replace(params=jax.device_put(state.params, split)),
        "opt_state/0/mu/w": state._replace(opt_state=(moments, *state.opt_state[1:])),
    }.items():
        with pytest.raises(ValueError, match=f"{name}.*'data'.*`rules` that say so"):
            run(sharded, batch)
    on_one = jax.device_put(state.params, over(data_mesh(1), "data"))
    for sound in (
        state,
        jax.device_get(state),
        jax.device_put(state, over(data_mesh())),
        state._replace(params=on_one),
    ):
        new, _ = run(sound, batch)
        again, _ = run(new, batch)
        assert int(again.step) == 2
