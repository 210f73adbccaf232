"""Bytes, read off compiled programs: nothing here is timed.

Claims: temporary memory grows with `trials_at_once`, not with the trials, on a CPU, an H100 and a
TPU v5e (these two where their compilers are installed: `experiments/speed/targets.py`); Adam's
update of 10 M weights moves 720 MB where donated buffers come back in another order, 400 MB where
they do not (280 MB would be the least: gradient, moments and weights read once, all but the
gradient written).
Run: python -m experiments.speed memory
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.speed.contestants import BATCH, CNN_BATCH, FOLDS
from experiments.speed.measure import write_result
from experiments.speed.targets import four_devices, one_of, placed
from wdjax.recipe import MODELS, Recipe, recipe_fit_and_score
from wdjax.selection.folds import kfold
from wdjax.selection.trials import Chunk, trial_program
from wdjax.types import Batch

AT_ONCE = {"cpu": (1, 2, 4, 8), "cuda": (1, 4, 16), "tpu": (1, 4, 16)}
NUM_TRIALS = 16
NUM_EXAMPLES = 1797


def main() -> None:
    """Both tables."""
    temporary = {}
    for platform in AT_ONCE:
        try:
            mesh = None if platform == "cpu" else one_of(four_devices(platform))
        except ModuleNotFoundError as error:
            print(error)
            continue
        temporary[platform] = {
            "MLP 64-100-10 on 8x8, batch 128": _by_at_once("mlp", (8, 8, 1), BATCH, platform, mesh),
            "CNN on 32x32x3, batch 128": _by_at_once("cnn", (32, 32, 3), CNN_BATCH, platform, mesh),
        }
        for name, row in temporary[platform].items():
            print(platform, name, row, flush=True)
    adam = _adam()
    for name, row in adam.items():
        print(name, row)
    what = "MB: temporary memory of the trial program of 16 trials; Adam's update of 10 M weights"
    print(f"Wrote {write_result('memory', {'what': what, 'temporary': temporary, 'adam': adam})}")


def _by_at_once(model, shape, batch_size, platform, mesh) -> dict[int, float]:
    array = jax.ShapeDtypeStruct
    floats = lambda *size: array(size, jnp.float32)
    numbers = {name: np.zeros(NUM_TRIALS, np.float32) for name in ("strength", "learning_rate")}
    key = jax.eval_shape(lambda: jax.random.key(0))
    shared = {
        "data": Batch(
            floats(NUM_EXAMPLES, *shape), array((NUM_EXAMPLES,), jnp.int32), floats(NUM_EXAMPLES)
        ),
        "folds": jax.eval_shape(lambda key: kfold(key, NUM_EXAMPLES, FOLDS), key),
        "key": key,
    }
    if mesh is not None:
        shared = placed(shared, mesh)
    recipe = Recipe(
        make_model=MODELS[model], num_epochs=2, batch_size=batch_size, score_rows=batch_size
    )
    fit_and_score, found = recipe_fit_and_score(recipe), {}
    for at_once in AT_ONCE[platform]:
        num_devices = 1 if mesh is None else mesh.size
        chunk = Chunk.of(
            *(numbers, 1, 0, np.arange(NUM_TRIALS)), num_devices=num_devices, trials_at_once=at_once
        ).arguments
        chunk = chunk if mesh is None else placed(chunk, mesh)
        lowered = trial_program(mesh).lower(
            *chunk, **shared, fit_and_score=fit_and_score, mesh=mesh, trials_at_once=at_once
        )
        found[at_once] = round(lowered.compile().memory_analysis().temp_size_in_bytes / 1e6, 1)
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
