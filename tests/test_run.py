"""A run is one thing: whole, in pieces, resumed, batch by batch and over devices it is the same."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from wdjax import (
    Batch,
    Model,
    from_linen,
    l2_penalty,
    make_fit,
    make_mlp,
    squared_error,
)
from wdjax.checkpoint import Checkpoints
from wdjax.data.stream import prefetch_to_device
from wdjax.decay import decoupled_decay, make_optimizer
from wdjax.diagnostics import measure_parts
from wdjax.loop import TrainLoop
from wdjax.run import Run, make_run, run_keys, skip_non_finite
from wdjax.runners import jit_step, shard_step
from wdjax.step import init_state
from wdjax.training import advance, fit_run, random_order
from wdjax.weights import sigmoid_example_weight

pytestmark = pytest.mark.usefixtures("nans_allowed")  # The data hold some.

ROWS, BATCH, EPOCHS = 44, 8, 4  # 5 batches an epoch, 20 steps; 4 rows wait.
HPARAMS = {"strength": 0.05, "learning_rate": 0.02, "slope": -1.5}


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(6, use_bias=False)(x))
        x = nn.Dropout(0.25, deterministic=not train)(nn.relu(x))
        return nn.Dense(2)(x)


def data():
    """Uneven weights, some of them 0; those rows hold NaN."""
    rng = np.random.default_rng(3)
    inputs = rng.normal(size=(ROWS, 5)).astype(np.float32)
    targets = rng.normal(size=(ROWS, 2)).astype(np.float32)
    weights = rng.uniform(0.5, 2.0, ROWS).astype(np.float32)
    weights[::7] = 0
    inputs[::7], targets[::7] = np.nan, np.nan
    return Batch(inputs, targets, weights)


def jitter(key, example):
    noise = 0.2 * jax.random.normal(key, example.shape)
    return example + noise, jnp.linalg.norm(noise)


def make_tx(h):
    decay = functools.partial(decoupled_decay, h["strength"], parts={"*/kernel": 1.0, "*": 0.0})
    return make_optimizer(optax.scale_by_adam(), h["learning_rate"], decay)


CHOICES = {
    "make_tx": make_tx,
    "make_penalty": lambda h: l2_penalty(h["strength"], {"Dense_1/*": 1.0, "*": 0.0}),
    "make_example_weight": lambda h: sigmoid_example_weight(
        lambda outputs, batch, strength: strength, h["slope"]
    ),
    "part_weights": {"Dense_0/*": 0.5, "*": 1.0},
    "augment": jitter,
}
RUN = make_run(from_linen(Net()), squared_error, **CHOICES)


def go(state, train, key, num_epochs, run=RUN, **more):
    return advance(run, HPARAMS, state, train, num_epochs, batch_size=BATCH, key=key, **more)


def begin(key):
    return RUN.init(HPARAMS, data().inputs[:BATCH], key)


def assert_equal(a, b):
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(_plain(a), _plain(b)), tuple(a), tuple(b)
    )


def assert_near(a, b, tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def _plain(leaf):
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def batches(key):
    """The batches of the whole run, as a user would draw them, on the host."""
    train, (_, order_key, _) = data(), run_keys(key)
    for epoch in range(EPOCHS):
        order = np.asarray(random_order(jax.random.fold_in(order_key, epoch), ROWS))
        for rows in order[: ROWS // BATCH * BATCH].reshape(-1, BATCH):
            yield tuple(leaf[rows] for leaf in train)


@pytest.fixture
def whole(key):
    run = jax.jit(go, static_argnums=3)
    return run(begin(key), data(), key, EPOCHS)


def test_make_fit_is_the_run_of_the_same_choices(key, whole):
    fit = make_fit(from_linen(Net()), squared_error, num_epochs=EPOCHS, batch_size=BATCH, **CHOICES)
    done = jax.jit(fit)(HPARAMS, data(), key)
    assert_near(done.params, whole[0].params, 1e-6)
    assert_near(done.history, whole[1], 1e-6)
    assert np.isfinite(np.asarray(done.history["loss"])).all()


@pytest.mark.parametrize("pieces", [(1, 3), (2, 2), (1, 1, 1, 1)])
def test_in_pieces_it_is_bit_for_bit_the_whole(key, whole, pieces):
    state, histories = begin(key), []
    run = jax.jit(go, static_argnums=3)
    for num_epochs in pieces:
        state, history = run(state, data(), key, num_epochs)
        histories.append(history)
    assert_equal(state, whole[0])
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), *histories)
    jax.tree.map(np.testing.assert_array_equal, joined, whole[1])


def test_saved_and_restored_between_two_pieces_it_is_bit_for_bit_the_whole(key, whole, tmp_path):
    run = jax.jit(go, static_argnums=3)
    half, _ = run(begin(key), data(), key, 2)
    checkpoints = Checkpoints(tmp_path / "saved")
    checkpoints.save(10, half)
    found = checkpoints.restore(begin(jax.random.fold_in(key, 1)))
    assert_equal(run(found.state, data(), key, 2)[0], whole[0])


@pytest.mark.parametrize("num_devices", [1, 2])
def test_batch_by_batch_and_over_devices_it_is_the_whole_up_to_rounding(key, whole, num_devices):
    step = skip_non_finite(functools.partial(RUN.step, HPARAMS))
    mesh = jax.make_mesh((num_devices,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, P("data")) if num_devices > 1 else None
    loop = TrainLoop(
        jit_step(step) if sharding is None else shard_step(step, mesh),
        begin(key),
        prefetch_to_device(batches(key), sharding=sharding),
        num_steps=20,
    )
    losses = [float(metrics["loss"]) for _, metrics in loop]
    assert loop.skipped == 0 and len(losses) == 20
    assert_near(jax.device_get(loop.state.params), whole[0].params, 1e-5)
    assert_near(jax.device_get(loop.state.model_state), whole[0].model_state, 1e-5)


def test_a_row_of_weight_zero_is_never_read(key, whole):
    """Whatever it holds: the run is the same, bit for bit."""
    train = data()
    other = jax.tree.map(lambda leaf: np.where(np.isnan(leaf), np.float32(1e30), leaf), train)
    state, _ = jax.jit(go, static_argnums=3)(begin(key), other, key, EPOCHS)
    assert_equal(state, whole[0])


def test_the_augmentations_differ_between_examples_steps_and_keys(key):
    seen = []

    def watched(key, example):
        seen.append(None)
        noise = jax.random.normal(key, example.shape)
        return noise, jnp.zeros(())

    def loss(outputs, targets):
        return jnp.sum(outputs, axis=1) * 0 + 0.5 * jnp.sum(outputs**2, axis=1)

    identity = lambda params, inputs: inputs * params["one"]
    model = Model(
        lambda key, inputs: ({"one": jnp.ones(())}, None),
        lambda params, state, inputs, *, key, train: (identity(params, inputs), state),
    )
    run = make_run(model, loss, make_tx=lambda h: optax.sgd(0.0), augment=watched)
    batch = Batch(np.zeros((4, 3), np.float32), np.zeros(4, np.float32), np.ones(4, np.float32))
    losses = []
    for start in (key, jax.random.fold_in(key, 1)):
        state = run.init({}, batch.inputs, start)
        for _ in range(2):
            state, metrics = run.step({}, state, batch)
            losses.append(float(metrics["loss"]))
    again = run.step({}, run.init({}, batch.inputs, key), batch)[1]["loss"]
    assert len(set(losses)) == 4 and losses[0] == float(again)
    assert len(seen) > 0


def test_an_augmentation_without_a_key_is_refused_with_the_way_out():
    state = begin(jax.random.key(0))._replace(key=None)
    with pytest.raises(ValueError, match="`augment` draws random numbers.*give init_state one"):
        RUN.step(HPARAMS, state, jax.tree.map(lambda x: x[:BATCH], data()))


def test_part_weights_given_twice_are_refused():
    with pytest.raises(ValueError, match="`part_weights` or `make_part_weights`, not both"):
        make_run(
            from_linen(Net()),
            squared_error,
            make_tx=make_tx,
            part_weights={"*": 1.0},
            make_part_weights=lambda h: {"*": 1.0},
        )


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "3"])
def test_advance_refuses_what_is_no_number_of_epochs(key, wrong):
    with pytest.raises(ValueError, match="`num_epochs` must be"):
        go(begin(key), data(), key, wrong)


def test_micro_batches_of_a_run_are_the_run(key):
    """Without what sees single batches: statistics and dropout."""
    make = functools.partial(
        make_run, make_mlp(num_outputs=2, widths=(4,)), squared_error, make_tx=make_tx
    )
    weigh = {name: CHOICES[name] for name in ("make_example_weight", "augment")}
    train = data()
    found = []
    for number in (1, 4):
        run = make(**weigh, num_micro_batches=number)
        found.append(
            jax.jit(functools.partial(fit_run, run, num_epochs=1, batch_size=BATCH))(
                HPARAMS, train, key
            )
        )
    assert_near(found[0].params, found[1].params, 1e-5)


def test_telemetry_changes_no_bit_and_sees_the_first_step_of_each_epoch(key, whole, full_compile):
    with_telemetry = make_run(
        from_linen(Net()),
        squared_error,
        **CHOICES,
        make_telemetry=lambda h: functools.partial(
            measure_parts, rate=h["strength"] * h["learning_rate"], parts=None
        ),
    )
    run = lambda **more: jax.jit(
        functools.partial(go, num_epochs=2, **more), compiler_options=full_compile
    )(begin(key), data(), key)
    plain, seen = run(), run(with_telemetry=with_telemetry)
    telemetry = seen[1].pop("telemetry")
    assert_equal(seen[0], plain[0])
    norms = np.asarray(telemetry["Dense_0/kernel"].norm)
    first = np.linalg.norm(begin(key).params["Dense_0"]["kernel"])
    assert norms.shape == (2,) and norms[0] == pytest.approx(first, rel=1e-6)


def test_any_two_functions_are_a_run(key):
    """Of the user's own: plain descent on a line, by `advance` and by hand."""

    def init(hparams, inputs, key):
        return init_state({"w": jnp.zeros(())}, optax.identity(), key=key)

    def step(hparams, state, batch, *, axis_name=None):
        gradient = jnp.mean(state.params["w"] * batch.inputs - batch.targets)
        params = {"w": state.params["w"] - hparams["rate"] * gradient}
        nothing = jnp.zeros(())
        metrics = {"loss": gradient, "data_loss": gradient, "penalty": nothing}
        metrics["denominator"] = jnp.sum(batch.weights)
        return state._replace(step=state.step + 1, params=params), metrics

    x = np.arange(6, dtype=np.float32)
    train = Batch(x, 2 * x, np.ones(6, np.float32))
    run = Run(init, step)
    fit = jax.jit(functools.partial(fit_run, run, num_epochs=3, batch_size=6))
    w = 0.0
    for _ in range(3):
        w -= 0.1 * np.mean(w * x - 2 * x)
    assert float(fit({"rate": 0.1}, train, key).params["w"]) == pytest.approx(w, rel=1e-5)
