"""The job `select`: choose a strength by cross-validation."""

import functools
import os
import pathlib
import threading
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from wdjax.checks import check_one_of, check_positive_int
from wdjax.data.dataset import to_batch
from wdjax.jobs.audit import audit_results, audit_run
from wdjax.jobs.by_part import EachPart, each_part_of, tell_each_part
from wdjax.jobs.candidates import strength_grid, timescale_start
from wdjax.jobs.folder import claimed, clear_earlier
from wdjax.jobs.options import FINALS, SelectOptions
from wdjax.jobs.predictions import predictions_on_test
from wdjax.jobs.refit import OnProgress, Say, final_fit, refit_runs
from wdjax.jobs.results import FINAL, Clock, finish, header, write_json, write_params
from wdjax.jobs.setup import (
    Prepared,
    check_choose_by,
    check_folds_fit,
    draw_folds,
    prepare,
)
from wdjax.jobs.verdict import (
    headline,
    score_rows,
    sentence_on_test,
    slope_rows,
)
from wdjax.moved import moved_keywords
from wdjax.recipe import build as recipes
from wdjax.recipe.kinds import SCHEDULE_KINDS
from wdjax.report.figures import import_drawing
from wdjax.selection.choice import RULES, Choice, choose_by_each
from wdjax.selection.cross_validation import Progress
from wdjax.selection.grids import GridLike
from wdjax.selection.search import Problem, Search
from wdjax.selection.ways import WAYS


@moved_keywords(kept="cache", watch="on_progress")
def run_select(
    options: SelectOptions,
    *,
    say: Say = print,
    on_progress: OnProgress | None = None,
    command: str = "",
    cache: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Chooses a strength: data -> folds x grid x seeds -> choice -> refit -> files.

    Writes `results.json`, `report.html` and `params.npz` (with `final="all"` also `final.npz`, of
    a model of all rows, the test part's too) to the output folder; after every chunk of trials,
    `results.json` with what is finished. On Ctrl-C the finished part is kept as a valid partial
    result and reported. With `cache`, a folder, trials that an earlier run finished are not
    trained again, whether that run ended or was stopped (see `cross_validate`).

    Returns:
      The results, as in `results.json`.

    Raises:
      ValueError: for any bad option or bad data, before anything is compiled; a folder that
        another run is in. Nothing is left then.
      WriteError: if a file cannot be written; what was whole before stays.
      KeyboardInterrupt: on Ctrl-C, after the partial result was written.
    """
    with claimed(options) as out:
        return _select(options, out, say, on_progress, command, cache)


def _select(
    options: SelectOptions,
    out: pathlib.Path,
    say: Say,
    on_progress: OnProgress | None,
    command: str,
    cache: str | os.PathLike[str] | None,
) -> dict[str, Any]:
    clock = Clock()
    prepared = prepare(options, out)
    grid = strength_grid(options, prepared)
    num_seeds = prepared.defaults.num_seeds if options.seeds is None else options.seeds
    check_positive_int("seeds", num_seeds)
    check_one_of("rule", options.rule, RULES)
    check_one_of("by", options.by, WAYS)
    check_one_of("final", options.final, FINALS)
    check_choose_by(options.choose_by, prepared.recipe)
    choose_data, recipe = prepared.choose_data, prepared.recipe
    check_folds_fit(prepared, options)
    data = to_batch(choose_data)
    folds_key, grid_key, refit_key = _three_keys(jax.random.key(options.seed))
    folds = draw_folds(prepared, options, folds_key)
    results = {**header("select", options, prepared, command), "rule": options.rule}
    results |= {"grid": dict(grid), "grid_shape": grid.shape, "by": options.by}
    results["config"] |= {"strengths": np.unique(grid["strength"]), "seeds": num_seeds}
    clock.lap("data")
    listener = functools.partial(_write_finished, results, prepared, clock, say, on_progress)
    problem = Problem(
        recipes.recipe_fit_and_score(recipe),
        grid,
        data,
        folds,
        grid_key,
        num_seeds=num_seeds,
        rule=options.rule,
        value=options.choose_by,
        stepwise=recipes.recipe_stepwise(recipe),
        how=dict(mesh=prepared.mesh, progress=listener, cache=cache, groups=choose_data.groups),
        start=timescale_start(prepared, grid, folds.train.shape[1]),
        annealed=SCHEDULE_KINDS[recipe.schedule].multiplier is not None,
    )
    each_part = each_part_of(options, prepared, problem)
    say(plan_text(options, prepared, problem, each_part))

    try:
        search = WAYS[options.by].search(problem)
        clock.lap("grid")
        chosen = _judge(results, search, options, command)
        rows = _refit_rows(search.scores.grid, chosen)
        results["refit"], fit = refit_runs(prepared, data, rows, num_seeds, refit_key, on_progress)
        _add_test(results, chosen)
        results |= audit_results(audit_run(prepared, chosen.hparams, fit.params), prepared.decay)
        clock.lap("refit")
        if each_part is not None:
            of_run = prepared, problem, search, chosen
            results["each_part"] = tell_each_part(each_part, *of_run, on_progress)
            clock.lap("each part")
    except KeyboardInterrupt:
        if "scores" in results:
            finish(prepared.out, results, clock)
            say(f"Stopped. What had finished is in {prepared.out}.")
        raise
    scaling = recipes.recipe_scaling(recipe, data)
    results |= {"status": "complete", "predictions": predictions_on_test(prepared, fit, scaling)}
    results["files"] = write_params(prepared.out, fit, scaling)
    if options.final == "all":
        _add_final(results, prepared, chosen, jax.random.split(refit_key, num_seeds)[0])
        clock.lap("final")
    finish(prepared.out, results, clock)
    return results


def _write_finished(
    results: dict[str, Any],
    prepared: Prepared,
    clock: Clock,
    say: Say,
    on_progress: OnProgress | None,
    event: Progress,
) -> None:
    """After every chunk: what is finished, in the results and in their file."""
    if "cached" not in results:
        results["cached"] = event.cached
        say_cached(say, event)
    if event.stage == "run" and "compile" not in clock.timing:
        clock.lap("compile")
        # This thread has nothing to do until the first chunk is back.
        threading.Thread(target=import_drawing).start()
    if event.scores is not None:
        if "scores" not in results:
            clear_earlier(prepared.out)
        results["scores"], results["grid"] = event.scores.values, dict(event.scores.grid)
        results["headline"] = _partial_headline(event)
        write_json(prepared.out, results)
    if on_progress is not None:
        on_progress("choosing", event)


def say_cached(say: Say, event: Progress) -> None:
    """Says of how many trials the scores are those of an earlier run, if there are any."""
    if event.cached:
        say(
            f"{event.cached} of {event.total} trainings had finished in an earlier run and are not "
            "trained again (--fresh does)."
        )


def _judge(results: dict[str, Any], search: Search, options: SelectOptions, command: str) -> Choice:
    """The choice, what it cost and what there is to say of it, into the results."""
    scores = search.scores
    # A way that puts its own rows has another grid than it was asked for.
    different = {name: len(np.unique(axis)) for name, axis in scores.grid.items()}
    shape = getattr(scores.grid, "shape", different)
    results |= {"grid": dict(scores.grid), "grid_shape": shape}
    results["scores"] = scores.values
    results |= {"cost": search.cost._asdict(), "doubts": list(search.doubts)}
    results["reason"] = search.reason
    results["table"] = score_rows(scores)
    results |= {"slopes": slope_rows(scores)} if scores.slopes else {}
    if scores.rungs:
        results["rungs"] = [rung._asdict() for rung in scores.rungs]
    choices = choose_by_each(scores, RULES, value=options.choose_by)
    results["choices"] = {rule: choice.to_dict() for rule, choice in choices.items()}
    results["higher_is_better"] = dict(scores.higher_is_better)
    lines = headline(scores, choices[options.rule], options.decay, command)
    results["headline"] = " ".join([*search.doubts, lines[0]])
    results["advice"] = [*filter(None, (*lines[1:], *_about_noise(options), search.reason))]
    return choices[options.rule]


def _add_final(results: dict[str, Any], prepared: Prepared, chosen: Choice, key: Array) -> None:
    """A model of all rows at the chosen numbers, in a file of its own, and what to say of it."""
    about, fit, scaling = final_fit(prepared, chosen.hparams, key)
    results["final"] = about
    if fit is None:
        words = "diverged, and is not kept."
    else:
        results["files"] |= write_params(prepared.out, fit, scaling, FINAL)
        words = f"is in {FINAL}; no row is left to judge it. wdjax predict --final takes it."
    results["advice"].append(f"The model of all {about['num_rows']} rows {words}")


def _add_test(results: dict[str, Any], chosen: Choice) -> None:
    """What the test part says, beside what the choice was made on."""
    test = sentence_on_test(results["refit"], chosen)
    results["headline"] = f"{results['headline']} {test}".rstrip()


def _refit_rows(grid: GridLike, chosen: Choice) -> dict[str, dict[str, float]]:
    """The chosen numbers, no decay at its own best numbers, and the chosen at most decay tried."""
    axes = {name: np.asarray(axis, np.float64) for name, axis in grid.items()}
    beside = np.ones(len(axes["strength"]), bool)
    for name, axis in axes.items():
        beside &= (name == "strength") | (axis == axis[chosen.index])
    no_decay = chosen.hparams
    if chosen.best_zero is not None:
        no_decay = {name: float(axis[chosen.best_zero]) for name, axis in axes.items()}
    return {
        "chosen": chosen.hparams,
        "zero": no_decay | {"strength": 0.0},
        "largest": chosen.hparams | {"strength": float(axes["strength"][beside].max())},
    }


@jax.jit
def _three_keys(key: Array) -> tuple[Array, Array, Array]:
    folds_key, grid_key, refit_key = jax.random.split(key, 3)
    return folds_key, grid_key, refit_key


def plan_text(
    options: SelectOptions, prepared: Prepared, problem: Problem, each_part: EachPart | None = None
) -> str:
    """What will be done, before it starts."""
    recipe = prepared.recipe
    of_parts = "" if each_part is None else f"\n{each_part.plan(problem)}"
    return (
        f"{prepared.describe()}\n"
        f"{WAYS[options.by].plan(problem)}, "
        f"{recipe.num_epochs} epochs at batch {recipe.batch_size}, {recipe.schedule} schedule, "
        f"{options.model} with {options.optimizer}, {options.decay} decay; one compiled program.\n"
        f"Then {3 * problem.num_seeds} refits, judged on the test part. Writes to {prepared.out}."
        f"{of_parts}"
        f"{_about_left_out(problem.grid)}{_about_whole_weights(prepared, problem.grid)}"
    )


def _about_left_out(grid: GridLike) -> str:
    """The pairs that are not tried, by strength."""
    if not getattr(grid, "num_left_out", 0):
        return ""
    strengths, rates = (np.asarray(grid[name]) for name in ("strength", "learning_rate"))
    without = {
        strength: sorted(set(rates.tolist()) - set(rates[strengths == strength].tolist()))
        for strength in np.unique(strengths).tolist()
    }
    pairs = "; ".join(
        f"strength {strength:g} at learning rate {', '.join(f'{rate:g}' for rate in missing)}"
        for strength, missing in without.items()
        if missing
    )
    return f"\nLeft out, as a step would remove a whole weight or more: {pairs}."


def _about_whole_weights(prepared: Prepared, grid: GridLike) -> str:
    """Traced strengths cannot be warned of when the decay is built."""
    rates = np.unique(grid["learning_rate"])
    if len(rates) > 1:  # Such pairs are left out.
        return ""
    shares = np.unique(grid["strength"]) / prepared.decay.whole_weight_strength(float(rates[0]))
    whole = np.unique(grid["strength"])[shares >= 1 + 1e-6]
    if not len(whole):
        return ""
    named = ", ".join(f"{strength:g}" for strength in whole)
    return (
        f"\nAt learning rate {rates[0]:g} a step at strength {named} removes more than a whole "
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
