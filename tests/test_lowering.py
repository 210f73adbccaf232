"""What a GPU or a TPU would get, seen on a CPU: every runner and the select program, lowered."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType

from wdjax.decay import decoupled_decay
from wdjax.losses import cross_entropy, regularized_loss
from wdjax.models import make_cnn
from wdjax.recipe import Recipe, recipe_fit_and_score, recipe_step
from wdjax.runners import jit_step, pmap_step, shard_step
from wdjax.selection.cross_validation import trial_program
from wdjax.selection.folds import kfold
from wdjax.step import init_state, make_train_step, skip_non_finite
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


def a_mesh():
    return jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))


def recipe_program():
    """The step of `wdjax train --stream` with augmentation, example weights and micro-batches."""
    recipe = Recipe(
        make_model=make_cnn, augment=("crop", "flip"), example_feature="augment", batch_size=8
    )
    numbers = {"strength": 0.1, "learning_rate": 1e-3, "example_slope": 4.0}
    inputs = jnp.zeros((1, *SHAPE))
    step, tx = recipe_step(recipe, numbers, 10, inputs, jax.random.key(1), num_micro_batches=2)
    return jax.jit(jit_step(skip_non_finite(step))).trace(state_of(tx), shapes(8))


def select_program():
    array, key = jax.ShapeDtypeStruct, jax.eval_shape(lambda: jax.random.key(0))
    numbers = {name: array((4,), jnp.float32) for name in ("strength", "learning_rate")}
    recipe = Recipe(make_model=make_cnn, num_epochs=1, batch_size=8, score_rows=8)
    return trial_program(None).trace(
        array((4,), jnp.int32),
        array((4,), jnp.int32),
        array((), jnp.int32),
        hparams=numbers,
        data=shapes(32),
        folds=jax.eval_shape(lambda key: kfold(key, 32, 2), key),
        key=key,
        fit_and_score=recipe_fit_and_score(recipe),
        mesh=None,
        trials_at_once=2,
    )


PROGRAMS = {
    "jit_step": lambda: jax.jit(jit_step(STEP)).trace(state_of(TX), shapes(8)),
    "shard_step": lambda: jax.jit(shard_step(STEP, a_mesh())).trace(state_of(TX), shapes(8)),
    "pmap_step": lambda: jax.jit(pmap_step(STEP)).trace(state_of(TX), shapes(2, 4)),
    "wdjax train": recipe_program,
    "wdjax select": select_program,
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_gpu_and_a_tpu_get_convolutions_a_cpu_products_and_none_calls_the_host(name):
    traced = PROGRAMS[name]()
    for platform, expected in (("cpu", False), ("cuda", True), ("tpu", True)):
        program = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.convolution" in program) == expected, platform
        assert "stablehlo.dot_general" in program
        assert "callback" not in program and "infeed" not in program, platform
