"""Bytes, read off compiled programs: nothing here is timed.

Claims: temporary memory grows with `trials_at_once`, not with the trials; Adam's update of 10 M
weights moves 720 MB where donated buffers come back in another order, 400 MB where they do not
(280 MB would be the least: gradient, moments and weights read once, all but the gradient written).
Run: python -m experiments.speed memory
"""

import re

import jax
import jax.numpy as jnp
import optax

from experiments.speed.contestants import BATCH, CNN_BATCH, FOLDS
from experiments.speed.measure import write_result
from wdjax.recipe import MODELS, Recipe, recipe_fit_and_score
from wdjax.selection.cross_validation import trial_program
from wdjax.selection.folds import kfold
from wdjax.types import Batch

AT_ONCE = (1, 2, 4, 8)
NUM_EXAMPLES = 1797


def main() -> None:
    """Both tables."""
    temporary = {
        "MLP 64-100-10 on 8x8, batch 128": _by_at_once("mlp", (8, 8, 1), BATCH),
        "CNN on 32x32x3, batch 128": _by_at_once("cnn", (32, 32, 3), CNN_BATCH),
    }
    for name, row in temporary.items():
        print(name, row)
    adam = _adam()
    for name, row in adam.items():
        print(name, row)
    what = "MB: temporary memory of the trial program of 8 trials; Adam's update of 10 M weights"
    print(f"Wrote {write_result('memory', {'what': what, 'temporary': temporary, 'adam': adam})}")


def _by_at_once(model: str, shape: tuple[int, ...], batch_size: int) -> dict[int, float]:
    array = jax.ShapeDtypeStruct
    floats = lambda *size: array(size, jnp.float32)
    index = array((8,), jnp.int32)
    data = Batch(floats(NUM_EXAMPLES, *shape), array((NUM_EXAMPLES,), jnp.int32), None)
    data = data._replace(weights=floats(NUM_EXAMPLES))
    key = jax.eval_shape(lambda: jax.random.key(0))
    recipe = Recipe(
        make_model=MODELS[model], num_epochs=2, batch_size=batch_size, score_rows=batch_size
    )
    found = {}
    for at_once in AT_ONCE:
        compiled = (
            trial_program(None)
            .lower(
                index,
                index,
                array((), jnp.int32),
                hparams={"strength": floats(8), "learning_rate": floats(8)},
                data=data,
                folds=jax.eval_shape(lambda key: kfold(key, NUM_EXAMPLES, FOLDS), key),
                key=key,
                fit_and_score=recipe_fit_and_score(recipe),
                mesh=None,
                trials_at_once=at_once,
            )
            .compile()
        )
        found[at_once] = round(compiled.memory_analysis().temp_size_in_bytes / 1e6, 1)
    return found


def _adam() -> dict[str, dict[str, float]]:
    weights = jax.ShapeDtypeStruct((1000, 10000), jnp.float32)
    tx = optax.adam(1e-3)
    state = jax.eval_shape(tx.init, weights)

    def in_order(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def rotated(grads, state, params):
        return in_order(params, state, grads)

    def moved(function, arguments, donated):
        compiled = jax.jit(function, donate_argnums=donated).lower(*arguments).compile()
        copies = re.findall(r"= f32\[1000,10000\]\S* copy\(", compiled.as_text())
        megabytes = compiled.cost_analysis()["bytes accessed"] / 1e6
        return {"megabytes": round(megabytes), "copies of 10 M weights": len(copies)}

    return {
        "not donated": moved(in_order, (weights, state, weights), ()),
        "donated, (params, state) -> (params, state)": moved(
            in_order, (weights, state, weights), (0, 1)
        ),
        "donated, (grads, state, params) -> (params, state)": moved(
            rotated, (weights, state, weights), (1, 2)
        ),
    }
