"""The job `compare`: optimisers, augmentations, models or decays, each at its best numbers."""

import dataclasses
import functools
import os
import pathlib
from typing import Any

import jax

from wdjax.checks import check_one_of, check_positive_int
from wdjax.data.dataset import to_batch
from wdjax.jobs.candidates import strength_grid
from wdjax.jobs.folder import claimed, clear_earlier
from wdjax.jobs.options import SelectOptions, option
from wdjax.jobs.refit import OnProgress, Say
from wdjax.jobs.results import Clock, finish, header
from wdjax.jobs.select import say_cached
from wdjax.jobs.setup import (
    check_choose_by,
    check_folds_fit,
    draw_folds,
    prepare,
)
from wdjax.moved import moved_keywords
from wdjax.recipe import build as recipes
from wdjax.recipe.kinds import COMPARED, NOTHING, OPTIMIZER_KINDS
from wdjax.selection.choice import RULES
from wdjax.selection.comparison import compare
from wdjax.selection.cross_validation import Progress


@dataclasses.dataclass(frozen=True)
class CompareOptions(SelectOptions):
    """Compare optimisers, augmentations, models or decays, each at the best of its numbers."""

    learning_rates: tuple[float, ...] | None = option(
        None, "tried with every strength (default three that fit the optimizer)"
    )
    vary: str = option("optimizer", "what differs", tuple(COMPARED))
    among: tuple[str, ...] | None = option(
        None, f"its values (default of optimizer: {' '.join(COMPARED['optimizer'])})"
    )


@moved_keywords(kept="cache", watch="on_progress")
def run_compare(
    options: CompareOptions,
    *,
    say: Say = print,
    on_progress: OnProgress | None = None,
    command: str = "",
    cache: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Compares choices on the same folds: data -> a grid a choice -> table -> `results.json`.

    The test part is left alone: `wdjax select` with the best choice judges on it. With `cache`, a
    folder, trials that an earlier run finished are not trained again.

    Returns:
      The results, as in `results.json`; `results["comparison"]` prints as a table.

    Raises:
      ValueError: for any bad option or bad data, before anything is compiled; a folder that
        another run is in. Nothing is left then.
      WriteError: if a file cannot be written; what was whole before stays.
    """
    if options.each_part:
        raise ValueError(
            "`each_part` is of one choice: leave it out here, and give it to `wdjax select` with "
            "the best."
        )
    if options.by != SelectOptions.by:
        raise ValueError(
            f"`by` = {options.by}: a comparison trains the whole grid of each, which pairs them; "
            "leave it out here, and choose by it with `wdjax select`."
        )
    with claimed(options) as out:
        return _compare(options, out, say, on_progress, command, cache)


def _compare(
    options: CompareOptions,
    out: pathlib.Path,
    say: Say,
    on_progress: OnProgress | None,
    command: str,
    cache: str | os.PathLike[str] | None,
) -> dict[str, Any]:
    clock = Clock()
    check_one_of("vary", options.vary, COMPARED)
    names = COMPARED[options.vary] if options.among is None else options.among
    if len(set(names)) != len(names) or len(names) < 2:
        raise ValueError(f"`among` must name at least two, each once; got {' '.join(names)}.")
    singles = {name: _single(options, name) for name in names}
    prepared = {name: prepare(single, out) for name, single in singles.items()}
    grids = {name: strength_grid(singles[name], prepared[name]) for name in names}
    num_seeds = options.seeds
    if num_seeds is None:  # Seeds are paired, so all have the same number.
        num_seeds = min(p.defaults.num_seeds for p in prepared.values())
    check_positive_int("seeds", num_seeds)
    check_one_of("rule", options.rule, RULES)
    for one in prepared.values():
        check_choose_by(options.choose_by, one.recipe)
    # The CNN's images are enlarged; in a comparison all see the same.
    largest = max(prepared.values(), key=lambda p: p.choose_data.inputs[0].size)
    choose_data = largest.choose_data
    check_folds_fit(largest, options)
    folds_key, grid_key, _ = jax.random.split(jax.random.key(options.seed), 3)
    folds = draw_folds(largest, options, folds_key)
    results = header("compare", options, largest, command)
    results["config"] |= {"among": names, "seeds": num_seeds}
    clock.lap("data")
    rows = sum(grid.num_rows for grid in grids.values())
    say(
        f"{largest.describe()}\n{rows * options.folds * num_seeds} trainings: {rows} candidates of "
        f"{len(names)} choices x {options.folds} folds x {num_seeds} seeds. "
        f"Writes to {largest.out}."
    )
    comparison = compare(
        {name: recipes.recipe_fit_and_score(prepared[name].recipe) for name in names},
        grids,
        to_batch(choose_data),
        folds,
        key=grid_key,
        rule=options.rule,
        value=options.choose_by,
        num_seeds=num_seeds,
        mesh=largest.mesh,
        progress=functools.partial(_listen, results, set(), say, on_progress),
        cache=cache,
        groups=choose_data.groups,
    )
    clock.lap("grid")
    results["headline"] = comparison.in_words(options.vary)
    results["comparison"] = comparison
    results["status"] = "complete"
    clear_earlier(largest.out)
    finish(largest.out, results, clock)
    return results


def _listen(
    results: dict[str, Any],
    started: set[str],
    say: Say,
    on_progress: OnProgress | None,
    choice: str,
    event: Progress,
) -> None:
    """Passes on how far a choice is; the first event of each says what it need not train."""
    if choice not in started:
        started.add(choice)
        results["cached"] = results.get("cached", 0) + event.cached
        say_cached(lambda text: say(f"{choice}: {text}"), event)
    if on_progress is not None:
        on_progress(choice, event)


def _single(options: CompareOptions, name: str) -> CompareOptions:
    """The options of one choice, its learning rates filled in."""
    value = "" if name == NOTHING else name
    single = dataclasses.replace(options, **{options.vary: value})
    if single.learning_rates is not None:
        return single
    check_one_of("optimizer", single.optimizer, OPTIMIZER_KINDS)
    rates = OPTIMIZER_KINDS[single.optimizer].learning_rates
    return dataclasses.replace(single, learning_rates=rates)
