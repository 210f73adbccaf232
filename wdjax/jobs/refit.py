"""Training at chosen numbers on the whole choosing part, judged on the test part."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from wdjax.data.dataset import to_batch
from wdjax.jobs.setup import (
    Prepared,
)
from wdjax.jobs.verdict import (
    errors_on_test,
    gains_on_test,
)
from wdjax.measures import weighted_mean
from wdjax.recipe import Recipe
from wdjax.recipe import build as recipes
from wdjax.selection.cross_validation import Progress
from wdjax.selection.trials import map_trials
from wdjax.training import nan_if_diverged
from wdjax.types import Batch, Fit, plain_function

Say = Callable[[str], None]
OnProgress = Callable[[str, Progress], None]


def refit_runs(
    prepared: Prepared,
    data: Batch,
    rows: dict,
    num_seeds: int,
    key: Array,
    on_progress: OnProgress | None,
) -> tuple[dict, Any]:
    """Trains on the whole choosing part, judges on the test part: `(runs, fit of seed 0)`."""
    recipe, score = prepared.recipe, recipes.recipe_score(prepared.recipe)
    test = to_batch(prepared.test_data)
    total, start = len(rows) * num_seeds, time.perf_counter()
    if on_progress is not None:
        on_progress("refitting", Progress("compile", 0, total, 0.0, None, None))

    def one_run(hparams, key, train, test):
        train, test = recipes.recipe_scale(recipe, train, test)
        curves = lambda fit: score(fit, test)["loss"]
        fit = plain_function(recipes.recipe_fit(recipe, curves))(hparams, train, key)
        return judged(recipe, fit, train, test), learning_curves(fit.history)

    trials = [(hparams, s) for hparams in rows.values() for s in range(num_seeds)]
    hparams = {name: np.array([h[name] for h, _ in trials], float) for name in trials[0][0]}
    keys = repeated_keys(key, num_seeds, len(rows))
    (scores, each, fits), curves = map_trials(
        one_run, (hparams, keys), (data, test), mesh=prepared.mesh
    )
    runs = {}
    for i, (name, numbers) in enumerate(rows.items()):
        own = slice(i * num_seeds, (i + 1) * num_seeds)
        pick = lambda tree, own=own: jax.tree.map(lambda x, own=own: np.asarray(x)[own], tree)
        about_test = test.weights, prepared.test_data.groups
        runs[name] = run_results(numbers, pick(scores), pick(each), pick(curves), *about_test)
        if name != "zero" and "zero" in rows:
            zero = list(rows).index("zero") * num_seeds
            at_zero = {n: part[zero : zero + num_seeds] for n, part in each.items()}
            runs[name]["gains"] = gains_on_test(
                pick(each),
                at_zero,
                test.weights,
                score.higher_is_better,
                prepared.test_data.groups,
            )
    if on_progress is not None:
        seconds = time.perf_counter() - start
        on_progress("refitting", Progress("run", total, total, seconds, 0.0, None))
    return runs, jax.tree.map(lambda leaf: leaf[0], fits)


def final_fit(
    prepared: Prepared, hparams: dict[str, float], key: Array
) -> tuple[dict[str, Any], Fit | None, dict[str, Any]]:
    """Trains on all rows, the test part's too: `(what the results say of it, fit, scaling)`.

    No row is left to judge it. The fit is None where the run diverged.
    """
    parts = (to_batch(part) for part in (prepared.choose_data, prepared.test_data))
    data: Batch = jax.tree.map(lambda *of_parts: np.concatenate(of_parts), *parts)
    recipe = prepared.recipe

    def one_run(hparams, key, data):
        scaled, _ = recipes.recipe_scale(recipe, data, data)
        fit = plain_function(recipes.recipe_fit(recipe))(hparams, scaled, key)
        return fit.history["data_loss"], fit._replace(history={})

    numbers = {name: np.array([value], float) for name, value in hparams.items()}
    losses, fits = map_trials(one_run, (numbers, key[None]), (data,), mesh=prepared.mesh)
    fit = jax.tree.map(lambda leaf: leaf[0], fits)
    finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fit))
    about = {"num_rows": len(data.weights), "train_loss": losses[0], "diverged": not finite}
    return about, fit if finite else None, recipes.recipe_scaling(recipe, data)


def judged(recipe: Recipe, fit: Fit, train: Batch, test: Batch) -> tuple[dict, dict, Fit]:
    """A fit's scores on both parts, those of the test part example by example, and the fit, pure.

    A run that diverged has NaN for all of them.
    """
    score = recipes.recipe_score(recipe)
    each = {f"test_{name}": value for name, value in score.by_example(fit, test).items()}
    scores = {name: weighted_mean(v, test.weights) if v.shape else v for name, v in each.items()}
    scores |= {f"train_{name}": value for name, value in score(fit, train).items()}
    scores, each = nan_if_diverged((scores, each), fit.params)
    return scores, each, fit._replace(history={})


def learning_curves(history: dict) -> dict[str, Any]:
    """Per epoch the loss on the training batches, and the test loss that was observed."""
    return {"train_loss": history["data_loss"], "test_loss": history["observed"]}


def run_results(
    hparams: dict, scores: dict, each: dict, curves: dict, weights: Any, groups: Any = None
) -> dict:
    """What `results.json` says of the runs at one set of numbers, arrays by seed."""
    errors = errors_on_test(each, scores, weights, groups)
    return {"hparams": hparams, **scores, "curves": curves, "errors": errors}


@functools.partial(jax.jit, static_argnums=(1, 2))
def repeated_keys(key: Array, num_seeds: int, times: int) -> Array:
    """A key a seed, all of them once for each of `times` rows."""
    return jnp.tile(jax.random.split(key, num_seeds), times)
