"""What a GPU or a TPU would get, seen on a CPU: every runner and the select program, lowered."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

from experiments.speed.targets import one_of, placed
from wdjax.decay import decoupled_decay
from wdjax.losses import cross_entropy, regularized_loss
from wdjax.models import make_cnn
from wdjax.recipe import Recipe, build_run, recipe_fit_and_score
from wdjax.run import skip_non_finite
from wdjax.runners import jit_step, pmap_step, shard_step
from wdjax.selection.folds import kfold
from wdjax.selection.trials import Chunk, trial_program
from wdjax.step import init_state, make_train_step
from wdjax.types import Batch

MODEL = make_cnn(10)
TX = optax.chain(optax.adam(1e-3), decoupled_decay(0.1, 1e-3))
STEP = make_train_step(regularized_loss(MODEL, cross_entropy), TX)
SHAPE = (32, 32, 3)


def shapes(*leading):
    array = jax.ShapeDtypeStruct
    floats = array(leading, jnp.float32)
    return Batch(array((*leading, *SHAPE), jnp.float32), array(leading, jnp.int32), floats)


def state_of(tx):
    def start(key):
        params, model_state = MODEL.init(key, jnp.zeros((1, *SHAPE)))
        return init_state(params, tx, model_state=model_state, key=key)

    return jax.eval_shape(start, jax.random.key(0))


def recipe_program(mesh):
    """The step of `wdjax train --stream` with augmentation, example weights and micro-batches."""
    recipe = Recipe(
        make_model=make_cnn, augment=("crop", "flip"), example_feature="augment", batch_size=8
    )
    numbers = {"strength": 0.1, "learning_rate": 1e-3, "example_slope": 4.0}
    inputs = jnp.zeros((1, *SHAPE))
    run = build_run(recipe, inputs, num_steps=10, num_micro_batches=2)
    step = skip_non_finite(functools.partial(run.step, numbers))
    state = jax.eval_shape(lambda: run.init(numbers, inputs, jax.random.key(0)))
    return jitted(jit_step(step), one_of(mesh), state, shapes(8))


def select_program(mesh):
    key = jax.eval_shape(lambda: jax.random.key(0))
    numbers = {name: np.zeros(8, np.float32) for name in ("strength", "learning_rate")}
    recipe = Recipe(make_model=make_cnn, num_epochs=1, batch_size=8, score_rows=8)
    chunk = Chunk.of(numbers, 1, 0, np.arange(8), num_devices=mesh.size, trials_at_once=2)
    shared = {
        "data": shapes(32),
        "folds": jax.eval_shape(lambda key: kfold(key, 32, 2), key),
        "key": key,
    }
    return trial_program(mesh).trace(
        *placed(chunk.arguments, mesh),
        **placed(shared, mesh),
        fit_and_score=recipe_fit_and_score(recipe),
        mesh=mesh,
        trials_at_once=2,
    )


def jitted(run, mesh, state, batch, *axes):
    return jax.jit(run).trace(placed(state, mesh), placed(batch, mesh, *axes))


def sharded_program(mesh):
    return jitted(shard_step(STEP, mesh), mesh, state_of(TX), shapes(8), "data")


def pmapped_program(mesh):
    run = pmap_step(STEP, list(mesh.devices.flat))
    return jitted(run, mesh, state_of(TX), shapes(mesh.size, 2), "data")


PROGRAMS = {
    "jit_step": lambda mesh: jitted(jit_step(STEP), one_of(mesh), state_of(TX), shapes(8)),
    "shard_step": sharded_program,
    "pmap_step": pmapped_program,
    "wdjax train": recipe_program,
    "wdjax select": select_program,
}
"""What `mesh` makes of each, traced for its devices and not yet compiled."""


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_gpu_and_a_tpu_get_convolutions_a_cpu_products_and_none_calls_the_host(name):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    traced = PROGRAMS[name](mesh)
    for platform, expected in (("cpu", False), ("cuda", True), ("tpu", True)):
        program = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.convolution" in program) == expected, platform
        assert "stablehlo.dot_general" in program
        assert "callback" not in program and "infeed" not in program, platform
