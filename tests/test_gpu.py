"""On a GPU: equal to the CPU, memory bounded, and the speed that the table asks about.

`pytest -m gpu`; where there is none they skip. What they check runs on a CPU too, in a test of its
own, so that they cannot rot.
"""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

from wdjax.decay import decoupled_decay
from wdjax.losses import cross_entropy, regularized_loss
from wdjax.models import make_cnn
from wdjax.recipe import Recipe, recipe_fit_and_score
from wdjax.runners import jit_step
from wdjax.selection.cross_validation import cross_validate
from wdjax.selection.folds import kfold
from wdjax.selection.trials import Chunk, trial_program
from wdjax.step import init_state, make_train_step
from wdjax.types import Batch

MODEL = make_cnn(10)
NUMBERS = {"strength": np.array([0.0, 0.1, 1.0], np.float32)}


@pytest.fixture
def gpu():
    """The first GPU."""
    if jax.default_backend() != "gpu":
        pytest.skip("no GPU here: these tests compare one with the CPU of its machine")
    return jax.devices("gpu")[0]


def images(num, seed=0):
    rng = np.random.default_rng(seed)
    inputs = rng.random((num, 32, 32, 3), np.float32)
    return Batch(inputs, rng.integers(0, 10, num).astype(np.int32), rng.random(num, np.float32))


def losses_on(device, num_steps=5):
    """Of the CNN under descent with momentum and decay, in float32 products."""
    tx = optax.chain(optax.sgd(0.05, momentum=0.9), decoupled_decay(0.1, 0.05))
    with jax.default_device(device), jax.default_matmul_precision("highest"):
        params, model_state = MODEL.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        run = jit_step(make_train_step(regularized_loss(MODEL, cross_entropy), tx))
        state = init_state(params, tx, model_state=model_state, key=jax.random.key(1))
        found = []
        for number in range(num_steps):
            state, metrics = run(state, jax.device_put(images(32, number), device))
            found.append(float(metrics["loss"]))
    return np.array(found), jax.device_get(state.params)


def check_equal(device):
    losses, params = losses_on(device)
    expected, others = losses_on(jax.devices("cpu")[0])
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-3, 1e-4), params, others)


def select_scores(device):
    recipe = Recipe(num_epochs=3, batch_size=16)
    rng = np.random.default_rng(0)
    data = Batch(
        rng.normal(size=(60, 8)).astype(np.float32), np.arange(60) % 10, np.ones(60, np.float32)
    )
    mesh = jax.make_mesh((1,), ("trial",), axis_types=(AxisType.Auto,), devices=[device])
    with jax.default_matmul_precision("highest"):
        return cross_validate(
            recipe_fit_and_score(recipe),
            NUMBERS | {"learning_rate": np.full(3, 3e-3, np.float32)},
            data,
            kfold(jax.random.key(0), 60, 3),
            key=jax.random.key(1),
            mesh=mesh,
            trials_at_once=3,
        ).values


def check_select_equal(device):
    found, expected = select_scores(device), select_scores(jax.devices("cpu")[0])
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-3)


def temporary_bytes(at_once):
    key = jax.eval_shape(lambda: jax.random.key(0))
    recipe = Recipe(make_model=make_cnn, num_epochs=1, batch_size=32, score_rows=32)
    numbers = {name: np.zeros(16, np.float32) for name in ("strength", "learning_rate")}
    program = trial_program(None).lower(
        *Chunk.of(numbers, 1, 0, np.arange(16), num_devices=1, trials_at_once=at_once).arguments,
        data=jax.eval_shape(lambda: jax.tree.map(jnp.asarray, images(96))),
        folds=jax.eval_shape(lambda key: kfold(key, 96, 2), key),
        key=key,
        fit_and_score=recipe_fit_and_score(recipe),
        mesh=None,
        trials_at_once=at_once,
    )
    return program.compile().memory_analysis().temp_size_in_bytes


def check_memory():
    """By the trials at once; how many there are in all is not in the program."""
    one, four = temporary_bytes(1), temporary_bytes(4)
    assert one < four < 6 * one


def seconds_a_step(device, num_steps):
    """Of the article's CNN at batch 128, warm, steps queued one behind the other."""
    tx = optax.chain(optax.adam(1e-3), decoupled_decay(0.01, 1e-3))
    with jax.default_device(device):
        params, model_state = MODEL.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        run = jit_step(make_train_step(regularized_loss(MODEL, cross_entropy), tx))
        state = init_state(params, tx, model_state=model_state, key=jax.random.key(1))
        batch = jax.device_put(images(128), device)
        for steps in (3, num_steps):
            start = time.perf_counter()
            for _ in range(steps):
                state, metrics = run(state, batch)
            jax.block_until_ready(state.params)
        assert np.isfinite(float(metrics["loss"]))
    return (time.perf_counter() - start) / num_steps


def speed_row(device, num_steps=100):
    row = {"device": device.device_kind, "CNN, seconds a step": seconds_a_step(device, num_steps)}
    print(json.dumps(row))
    return row


@pytest.mark.gpu
def test_a_gpu_gives_the_losses_params_and_scores_of_the_cpu(gpu):
    check_equal(gpu)
    check_select_equal(gpu)


@pytest.mark.gpu
def test_memory_on_a_gpu_is_bounded_by_the_trials_at_once(gpu):
    check_memory()


@pytest.mark.gpu
def test_a_step_on_a_gpu_is_timed_against_its_cpu_and_not_slower(gpu):
    """`pytest -m gpu -s` prints the two rows."""
    ours, cpu = speed_row(gpu), speed_row(jax.devices("cpu")[0], num_steps=5)
    assert ours["CNN, seconds a step"] < cpu["CNN, seconds a step"]


@pytest.mark.slow
def test_what_the_gpu_tests_check_holds_between_two_cpu_devices():
    other = jax.devices("cpu")[1]
    check_equal(other)
    check_select_equal(other)
    check_memory()
    assert speed_row(other, num_steps=1)["CNN, seconds a step"] > 0
