"""The jobs: choose a strength, train at one."""

import functools
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from wdjax import recipe as recipes
from wdjax.checks import check_one_of, check_positive_int
from wdjax.data import arrays
from wdjax.jobs.audit import audit_results, audit_run
from wdjax.jobs.files import Clock, clear_earlier, finish, header, write_json, write_params
from wdjax.jobs.options import SelectOptions, TrainOptions
from wdjax.jobs.prepare import (
    Prepared,
    check_batch_fits,
    hparams_of,
    prepare,
    strength_grid,
    whole_weight_strength,
)
from wdjax.jobs.stream import check_not_streamed, run_stream
from wdjax.jobs.telemetry import telemetry_results
from wdjax.jobs.verdict import (
    errors_on_test,
    gains_on_test,
    headline,
    score_rows,
    sentence_on_test,
)
from wdjax.measures import weighted_mean
from wdjax.report.figures import import_drawing
from wdjax.report.runs import over_seeds
from wdjax.selection.choice import RULES, Choice, choose
from wdjax.selection.cross_validation import Progress, Scores, cross_validate
from wdjax.selection.folds import kfold
from wdjax.selection.grids import Grid
from wdjax.selection.trials import map_trials
from wdjax.tables import Estimate
from wdjax.training import nan_if_diverged
from wdjax.types import Batch

Say = Callable[[str], None]


Watch = Callable[[str, Progress], None]


def run_select(
    options: SelectOptions,
    *,
    say: Say = print,
    watch: Watch | None = None,
    command: str = "",
    kept: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Chooses a strength: data -> folds x grid x seeds -> choice -> refit -> files.

    Writes `results.json`, `report.html` and `params.npz` to the output folder; after every
    chunk of trials, `results.json` with what is finished. On Ctrl-C the finished part is kept
    as a valid partial result and reported. With `kept`, a folder, trials that an earlier run
    finished are not trained again, whether that run ended or was stopped (see `cross_validate`).

    Returns:
      The results, as in `results.json`.

    Raises:
      ValueError: for any bad option or bad data, before anything is compiled or written.
      KeyboardInterrupt: on Ctrl-C, after the partial result was written.
    """
    clock = Clock()
    prepared = prepare(options)
    grid = strength_grid(options, prepared)
    num_seeds = prepared.defaults.num_seeds if options.seeds is None else options.seeds
    check_positive_int("seeds", num_seeds)
    check_one_of("rule", options.rule, RULES)
    check_one_of("choose_by", options.choose_by, recipes.recipe_score(prepared.recipe).measures)
    choose_data, recipe = prepared.choose_data, prepared.recipe
    stratified = recipe.loss == "cross_entropy"
    arrays.check_folds(choose_data, options.folds, stratify=stratified)
    num_examples = len(choose_data.inputs)
    check_batch_fits(recipe.batch_size, num_examples - -(-num_examples // options.folds))
    data = arrays.to_batch(choose_data)
    folds_key, grid_key, refit_key = _three_keys(jax.random.key(options.seed))
    folds = kfold(
        folds_key,
        num_examples,
        options.folds,
        stratify=choose_data.targets if stratified else None,
    )
    results = {**header("select", options, prepared, command), "rule": options.rule}
    results |= {"grid": dict(grid), "grid_shape": grid.shape}
    results["config"] |= {"strengths": np.unique(grid["strength"]), "seeds": num_seeds}
    clock.lap("data")
    say(plan_text(options, prepared, grid, num_seeds))

    try:
        scores = cross_validate(
            recipes.recipe_fit_and_score(recipe),
            grid,
            data,
            folds,
            key=grid_key,
            num_seeds=num_seeds,
            mesh=prepared.mesh,
            progress=functools.partial(_write_finished, results, prepared, clock, say, watch),
            kept=kept,
        )
        clock.lap("grid")
        chosen = _judge(results, scores, options, command)
        rows = _refit_rows(grid, chosen)
        results["refit"], fit = refit_runs(prepared, data, rows, num_seeds, refit_key, watch)
        _add_test(results, chosen)
        results |= audit_results(audit_run(prepared, chosen.hparams, fit.params), options.decay)
        clock.lap("refit")
    except KeyboardInterrupt:
        if "scores" in results:
            finish(prepared.out, results, clock)
            say(f"Stopped. What had finished is in {prepared.out}.")
        raise
    results["status"] = "complete"
    write_params(prepared.out, fit, recipes.recipe_scaling(recipe, data))
    finish(prepared.out, results, clock)
    return results


def _write_finished(
    results: dict[str, Any],
    prepared: Prepared,
    clock: Clock,
    say: Say,
    watch: Watch | None,
    event: Progress,
) -> None:
    """After every chunk: what is finished, in the results and in their file."""
    if "kept" not in results:
        results["kept"] = event.kept
        say_kept(say, event)
    if event.stage == "run" and "compile" not in clock.timing:
        clock.lap("compile")
        # This thread has nothing to do until the first chunk is back.
        threading.Thread(target=import_drawing).start()
    if event.scores is not None:
        if "scores" not in results:
            clear_earlier(prepared.out)
        results["scores"] = event.scores.values
        results["headline"] = _partial_headline(event)
        write_json(prepared.out, results)
    if watch is not None:
        watch("choosing", event)


def say_kept(say: Say, event: Progress) -> None:
    """Says of how many trials the scores are those of an earlier run, if there are any."""
    if event.kept:
        say(
            f"{event.kept} of {event.total} trainings had finished in an earlier run and are not "
            "trained again (--fresh does)."
        )


def _judge(results: dict[str, Any], scores: Scores, options: SelectOptions, command: str) -> Choice:
    """The choice, and what there is to say of it, into the results."""
    results["scores"] = scores.values
    results["table"] = score_rows(scores)
    choices = {rule: choose(scores, rule, value=options.choose_by) for rule in RULES}
    results["choices"] = {rule: choice.to_dict() for rule, choice in choices.items()}
    results["higher_is_better"] = dict(scores.higher_is_better)
    lines = headline(scores, choices[options.rule], options.decay, command)
    results["headline"] = lines[0]
    results["advice"] = [*lines[1:], *_about_noise(options)]
    return choices[options.rule]


def _add_test(results: dict[str, Any], chosen: Choice) -> None:
    """What the test part says, beside what the choice was made on."""
    test = sentence_on_test(results["refit"], chosen)
    results["headline"] = f"{results['headline']} {test}".rstrip()


def run_train(
    options: TrainOptions, *, say: Say = print, watch: Watch | None = None, command: str = ""
) -> dict[str, Any]:
    """Trains at one strength and judges on a test part.

    Writes `results.json`, `report.html` and `params.npz` (of the first seed). Data in memory are
    trained on by the program that `run_select` compares by: the whole run is one scan, and seeds
    run side by side. With `stream`, or to `resume`, it is `run_stream`.

    Raises:
      ValueError: for any bad option or bad data, or no strength, before anything is compiled or
        written.
    """
    if options.stream or options.resume is not None:
        return run_stream(options, say=say, watch=watch, command=command)
    check_not_streamed(options)
    clock = Clock()
    prepared = prepare(options)
    check_positive_int("seeds", options.seeds)
    hparams = hparams_of(options)
    check_batch_fits(prepared.recipe.batch_size, len(prepared.choose_data.inputs))
    data = arrays.to_batch(prepared.choose_data)
    results = header("train", options, prepared, command)
    clock.lap("data")
    num_epochs = prepared.recipe.num_epochs
    say(f"{prepared.describe('train')} Training {num_epochs} epochs, {options.seeds} seeds.")
    key, rows = jax.random.key(options.seed), {"chosen": hparams}
    refit, fit = refit_runs(
        prepared, data, rows, options.seeds, key, watch, measured=True, doing="training"
    )
    clock.lap("training")
    losses = np.asarray(refit["chosen"]["test_loss"], np.float64)
    if not np.isfinite(losses).any():
        raise ValueError(
            f"every run diverged: lower `learning_rate` = {options.learning_rate:g} or `strength` "
            f"= {options.strength:g}."
        )
    results["headline"] = (
        f"Strength {options.strength:g} ({options.decay}): test loss "
        f"{Estimate(float(losses.mean()), refit['chosen']['errors']['test_loss'])}, "
        f"training loss {over_seeds(refit['chosen']['train_loss'])}."
    )
    results |= audit_results(audit_run(prepared, hparams, fit.params), options.decay)
    results |= {"refit": refit, "status": "complete"}
    num_steps = len(data.weights) // prepared.recipe.batch_size
    steps = [num_steps * epoch + 1 for epoch in range(num_epochs)]
    results["telemetry"] = telemetry_results(refit["chosen"].pop("measured"), steps, prepared)
    clear_earlier(prepared.out)
    write_params(prepared.out, fit, recipes.recipe_scaling(prepared.recipe, data))
    finish(prepared.out, results, clock)
    return results


def _refit_rows(grid: Grid, chosen: Choice) -> dict[str, dict[str, float]]:
    """The chosen numbers, and the same at strength zero and at the largest tried."""
    largest = float(np.max(grid["strength"]))
    return {
        "chosen": chosen.hparams,
        "zero": chosen.hparams | {"strength": 0.0},
        "largest": chosen.hparams | {"strength": largest},
    }


def refit_runs(
    prepared: Prepared,
    data: Batch,
    rows: dict,
    num_seeds: int,
    key: Array,
    watch: Watch | None,
    *,
    measured: bool = False,
    doing: str = "refitting",
) -> tuple[dict, Any]:
    """Trains on the whole choosing part, judges on the test part: `(runs, fit of seed 0)`.

    `measured` adds each run's telemetry, `{path: {name: array[seed, epoch]}}`.
    """
    recipe, score = prepared.recipe, recipes.recipe_score(prepared.recipe)
    test = arrays.to_batch(prepared.test_data)
    total, start = len(rows) * num_seeds, time.perf_counter()
    if watch is not None:
        watch(doing, Progress("compile", 0, total, 0.0, None, None))

    def one_run(hparams, key, train, test):
        train, test = recipes.recipe_scale(recipe, train, test)
        curves = lambda fit: score(fit, test)["loss"]
        fit = recipes.recipe_fit(recipe, curves, measured=measured)(hparams, train, key)
        each = {f"test_{name}": value for name, value in score.by_example(fit, test).items()}
        scores = {
            name: weighted_mean(v, test.weights) if v.shape else v for name, v in each.items()
        }
        scores |= {f"train_{name}": value for name, value in score(fit, train).items()}
        learning = {"train_loss": fit.history["data_loss"], "test_loss": fit.history["observed"]}
        scores, each = nan_if_diverged((scores, each), fit.params)
        return scores, each, learning, fit.history.get("measured"), fit._replace(history={})

    trials = [(hparams, s) for hparams in rows.values() for s in range(num_seeds)]
    hparams = {name: np.array([h[name] for h, _ in trials], float) for name in trials[0][0]}
    keys = _repeated_keys(key, num_seeds, len(rows))
    scores, each, curves, telemetry, fits = map_trials(
        one_run, (hparams, keys), (data, test), mesh=prepared.mesh
    )
    runs = {}
    for i, (name, numbers) in enumerate(rows.items()):
        own = slice(i * num_seeds, (i + 1) * num_seeds)
        pick = lambda tree, own=own: jax.tree.map(lambda x, own=own: np.asarray(x)[own], tree)
        runs[name] = {"hparams": numbers, **pick(scores), "curves": pick(curves)}
        runs[name] |= {"errors": errors_on_test(pick(each), pick(scores), test.weights)}
        if name != "zero" and "zero" in rows:
            zero = list(rows).index("zero") * num_seeds
            at_zero = {n: part[zero : zero + num_seeds] for n, part in each.items()}
            runs[name]["gains"] = gains_on_test(
                pick(each), at_zero, test.weights, score.higher_is_better
            )
        if measured:
            runs[name]["measured"] = {p: pick(part)._asdict() for p, part in telemetry.items()}
    if watch is not None:
        seconds = time.perf_counter() - start
        watch(doing, Progress("run", total, total, seconds, 0.0, None))
    return runs, jax.tree.map(lambda leaf: leaf[0], fits)


@jax.jit
def _three_keys(key: Array) -> tuple[Array, Array, Array]:
    folds_key, grid_key, refit_key = jax.random.split(key, 3)
    return folds_key, grid_key, refit_key


@functools.partial(jax.jit, static_argnums=(1, 2))
def _repeated_keys(key: Array, num_seeds: int, times: int) -> Array:
    return jnp.tile(jax.random.split(key, num_seeds), times)


def plan_text(options: SelectOptions, prepared: Prepared, grid: Grid, num_seeds: int) -> str:
    """What will be done, before it starts."""
    total = grid.num_rows * options.folds * num_seeds
    axes = " x ".join(f"{n} {name.replace('_', ' ')}s" for name, n in grid.shape.items() if n > 1)
    recipe = prepared.recipe
    return (
        f"{prepared.describe()}\n"
        f"{total} trainings: {axes or '1 candidate'} x {options.folds} folds x {num_seeds} seeds, "
        f"{recipe.num_epochs} epochs at batch {recipe.batch_size}, "
        f"{options.model} with {options.optimizer}, {options.decay} decay; one compiled program.\n"
        f"Then {3 * num_seeds} refits, judged on the test part. Writes to {prepared.out}."
        f"{_about_whole_weights(options, grid)}"
    )


def _about_whole_weights(options: SelectOptions, grid: Grid) -> str:
    """Traced strengths cannot be warned of when the decay is built."""
    highest = float(np.max(grid["learning_rate"]))
    rates = np.unique(grid["strength"]) / whole_weight_strength(options.decay, highest)
    whole = np.unique(grid["strength"])[rates >= 1 + 1e-6]
    if not len(whole):
        return ""
    named = ", ".join(f"{strength:g}" for strength in whole)
    return (
        f"\nAt learning rate {highest:g} a step at strength {named} removes more than a whole "
        "weight: the weights change sign at every step."
    )


def _about_noise(options: SelectOptions) -> list[str]:
    if not options.label_noise:
        return []
    return [
        f"{options.label_noise:.0%} of the labels chosen on were made wrong; the test labels are "
        "clean, so the test loss may prefer another strength than the validation loss does."
    ]


def _partial_headline(event: Progress) -> str:
    return (
        f"Partial result: {event.done} of {event.total} trainings had finished; nothing is chosen."
    )
