"""The job `transfer`: the strength of a run that is afforded once, from searches at small sizes."""

import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from wdjax.checks import check_number, check_one_of, check_positive_int
from wdjax.data.dataset import Dataset, to_batch
from wdjax.jobs.folder import claimed, clear_earlier
from wdjax.jobs.options import RunOptions, SelectOptions, option
from wdjax.jobs.refit import OnProgress, Say
from wdjax.jobs.results import Clock, finish, header, write_json
from wdjax.jobs.select import say_cached
from wdjax.jobs.setup import (
    Prepared,
    check_batch_fits,
    check_choose_by,
    check_folds_fit,
    draw_folds,
    load_parts,
    prepare,
)
from wdjax.models import count_params
from wdjax.recipe import build as recipes
from wdjax.recipe.kinds import OPTIMIZER_KINDS
from wdjax.selection.cross_validation import Progress, cross_validate
from wdjax.selection.folds import Folds, trained_on
from wdjax.selection.grids import check_axis
from wdjax.selection.optimum import find_optimum
from wdjax.selection.scores import Scores
from wdjax.selection.search import Cost
from wdjax.selection.size_rules import rule_strengths
from wdjax.selection.transfer import (
    Transfer,
    check_sizes,
    predict_strength,
    prediction_words,
    varied_names,
)
from wdjax.tables import Table, format_number
from wdjax.types import Batch

NUM_STRENGTHS = 10
DEFAULT_ROWS = 4


def _product(axes: Mapping[str, tuple]) -> list[dict[str, Any]]:
    sizes: list[dict[str, Any]] = [{}]
    for name, values in axes.items():
        sizes = [one | {name: value} for one in sizes for value in values]
    return sizes


def _star(axes: Mapping[str, tuple]) -> list[dict[str, Any]]:
    middle = {name: values[len(values) // 2] for name, values in axes.items()}
    sizes = [middle | {name: value} for name, values in axes.items() for value in values]
    return [one for i, one in enumerate(sizes) if one not in sizes[:i]]


DESIGNS = {"product": _product, "star": _star}
"""Which sizes are searched: every combination, or one number at a time about the middle ones."""


@dataclasses.dataclass(frozen=True)
class TransferOptions(RunOptions):
    """Predict the strength of a large run from searches at four or more small sizes."""

    rows: tuple[int, ...] | None = option(None, "examples trained on, several (default by halves)")
    width: tuple[int, ...] | None = option(None, "hidden units, several (default the model's)")
    epochs: tuple[int, ...] | None = option(  # pyright: ignore[reportIncompatibleVariableOverride]
        None, "passes, one number or several (default the model's)"
    )
    batch_size: tuple[int, ...] = option(  # pyright: ignore[reportIncompatibleVariableOverride]
        (64,), "examples a step, one number or several"
    )
    to_rows: int | None = option(None, "of the large run (default all there are to choose on)")
    to_width: int | None = option(None, "of the large run")
    to_epochs: int | None = option(None, "of the large run")
    to_batch_size: int | None = option(None, "of the large run")
    design: str = option("product", "which sizes: all combinations, or a star", tuple(DESIGNS))
    schedule: str = option("cosine", "of the learning rate, in all runs")
    strengths: tuple[float, ...] | None = option(None, "the candidates (default 10 log-spaced)")
    learning_rates: tuple[float, ...] | None = option(
        None, "one, or three and more to choose among (default the optimizer's, and thrice)"
    )
    folds: int = option(3, "held-out parts, stratified by class")
    seeds: int = option(2, "runs per candidate and fold")
    choose_by: str = option("loss", "the score that decides: accuracy, NAME of --measure")
    check: bool = option(False, "search at a size between, and see if the interval holds its best")


class _Plan(NamedTuple):
    """All that is known before anything is trained."""

    sizes: list[dict[str, Any]]
    target: dict[str, Any]
    prepared: dict[tuple, Prepared]
    """By width, epochs and batch size."""
    grid: dict[str, np.ndarray]
    between: dict[str, Any] | None
    """The size of --check."""

    def of(self, sizes: Mapping[str, Any]) -> Prepared:
        return self.prepared[_choices(sizes)]

    def work(self, sizes: Mapping[str, Any]) -> float:
        """Of one training, in examples seen times params."""
        params = count_params(self.of(sizes).param_shapes)
        return float(sizes["rows"]) * sizes["epochs"] * params


def run_transfer(
    options: TransferOptions,
    *,
    say: Say = print,
    on_progress: OnProgress | None = None,
    command: str = "",
    cache: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Searches at small sizes, and predicts a large run: sizes -> searches -> law -> files.

    A size is the number of rows trained on, a width, epochs and a batch size. All sizes are judged
    on the same held-out examples. Each is one compiled program. With `cache`, a folder, trials that
    an earlier run finished are not trained again, so a stopped run goes on where it was. The test
    part is left alone.

    Returns:
      The results, as in `results.json`; `results["transfer"]` prints as a table.

    Raises:
      ValueError: for any bad option or bad data, before anything is compiled: fewer than four
        sizes, sizes that do not vary, a target below them, more rows than can be trained on, a
        model that cannot be built at a width; a folder that another run is in. Nothing is left
        then.
      WriteError: if a file cannot be written; what was whole before stays.
    """
    with claimed(options) as out:
        return _transfer(options, out, say, on_progress, command, cache)


def _transfer(
    options: TransferOptions,
    out: pathlib.Path,
    say: Say,
    on_progress: OnProgress | None,
    command: str,
    cache: str | os.PathLike[str] | None,
) -> dict[str, Any]:
    clock = Clock()
    plan = _planned(options, out)
    first = plan.of(plan.sizes[0])
    keys = jax.random.split(jax.random.key(options.seed), 3)
    folds = draw_folds(first, _single(options, plan.sizes[0]), keys[0])
    results = header("transfer", options, first, command)
    epochs = sorted({one["epochs"] for one in plan.sizes})
    results["config"] |= {"epochs": epochs, "sizes": plan.sizes, "target": plan.target}
    clock.lap("data")
    say(_plan_text(options, plan))
    data = to_batch(first.choose_data)
    search = functools.partial(
        _search, options, plan, data, folds, keys, cache, results, say, on_progress
    )
    searches = []
    for number, sizes in enumerate(plan.sizes):
        searches.append((sizes, search(sizes)))
        if not number:
            clear_earlier(out)
        results["headline"] = f"Partial result: {number + 1} of {len(plan.sizes)} sizes searched."
        write_json(out, results)
    clock.lap("searches")
    found = predict_strength(searches, plan.target, value=options.choose_by)
    results |= {"transfer": found, "headline": _headline(found), "advice": list(found.doubts)}
    results["tables"] = [found.table(), *_rules(found, plan, options)]
    if plan.between is not None:
        results["check"] = _check(found, plan.between, search(plan.between), options)
        results["advice"].append(results["check"]["words"])
        clock.lap("check")
    trainings = len(plan.grid["strength"]) * options.folds * options.seeds * len(results["sizes"])
    cost = Cost(float(trainings), clock.total(), results.pop("memory", None))
    results |= {"cost": cost, "status": "complete"}
    results["advice"].append(f"Cost: {cost}.")
    finish(out, results, clock)
    return results


def _planned(options: TransferOptions, out: pathlib.Path) -> _Plan:
    """Everything that can be refused is refused here."""
    check_one_of("design", options.design, DESIGNS)
    check_positive_int("seeds", options.seeds)
    # All sizes share the data; it is read once.
    read = functools.lru_cache(maxsize=None)(load_parts)
    load = lambda given, loss: read(_of_data(given), loss)
    first_epochs = None if options.epochs is None else options.epochs[0]
    widths = (None,) if options.width is None else options.width
    start = {"width": widths[0], "epochs": first_epochs, "batch_size": options.batch_size[0]}
    first = _prepared(options, start, out, load)
    single = _single(options, start)
    check_choose_by(options.choose_by, first.recipe)
    check_folds_fit(first, single)
    num = len(first.choose_data.inputs)
    most = num - -(-num // options.folds)
    axes = _axes(options, first, most)
    for name, values in axes.items():
        for value in values:
            check_positive_int(name, value)
        if len(set(values)) < len(values):
            raise ValueError(f"`{name}` holds a size twice; each may stand once.")
    if max(axes["rows"]) > most:
        raise ValueError(
            f"`rows` must be at most {most}: of {num} examples to choose on, one fold in "
            f"{options.folds} is held out; got rows={max(axes['rows'])}."
        )
    for batch in axes["batch_size"]:
        check_batch_fits(batch, min(axes["rows"]))
    sizes = DESIGNS[options.design](axes)
    told = {name: getattr(options, f"to_{name}") for name in axes}
    if "rows" in varied_names(sizes) and told["rows"] is None:
        told["rows"] = num
    if "width" not in axes and options.to_width is not None:
        raise ValueError(
            f"`to_width` = {options.to_width} needs sizes of several widths: give --width as well."
        )
    target = check_sizes(sizes, {n: v for n, v in told.items() if v is not None})
    between = _between(sizes, target, most) if options.check else None
    all_sizes = [*sizes, target, *([between] if between else [])]
    made: dict[tuple, Prepared] = {}
    for one in all_sizes:
        if _choices(one) not in made:
            made[_choices(one)] = _prepared(options, one, out, load)
    return _Plan(sizes, target, made, _grid(options, first), between)


def _of_data(options: RunOptions) -> RunOptions:
    """The options with which data are read alike."""
    names = ("data", "target", "data_dir", "download", "length", "seed")
    return RunOptions(**{name: getattr(options, name) for name in names})


def _axes(options: TransferOptions, first: Prepared, most: int) -> dict[str, tuple]:
    epochs = (first.recipe.num_epochs,) if options.epochs is None else options.epochs
    others = [options.width or (), epochs, options.batch_size]
    rows = options.rows
    if rows is None:
        alone = max(map(len, others)) < 2
        largest = 2 * most // 3 if options.check else most  # A check needs more than the largest.
        rows = tuple(largest >> k for k in reversed(range(DEFAULT_ROWS))) if alone else (most,)
    axes: dict[str, tuple] = {"rows": rows, "epochs": epochs, "batch_size": options.batch_size}
    return axes | ({} if options.width is None else {"width": options.width})


def _choices(sizes: Mapping[str, Any]) -> tuple:
    return sizes.get("width"), sizes["epochs"], sizes["batch_size"]


def _single(options: TransferOptions, sizes: Mapping[str, Any]) -> SelectOptions:
    """The options of the search at one size."""
    shared = (f.name for f in dataclasses.fields(SelectOptions) if hasattr(options, f.name))
    told = {name: getattr(options, name) for name in shared}
    return SelectOptions(**told | {n: sizes[n] for n in ("epochs", "batch_size")})


def _prepared(
    options: TransferOptions,
    sizes: Mapping[str, Any],
    out: pathlib.Path,
    load: Callable[[RunOptions, str], tuple[Dataset, Dataset]],
) -> Prepared:
    return prepare(_single(options, sizes), out, load=load, width=sizes.get("width"))


def _grid(options: TransferOptions, prepared: Prepared) -> dict[str, np.ndarray]:
    """The candidates; pairs that would remove a whole weight a step are left out."""
    usual = OPTIMIZER_KINDS[prepared.recipe.optimizer].learning_rates
    rates = options.learning_rates or (*usual, 3 * usual[-1])
    rates = check_axis("learning_rates", rates)
    check_number("learning_rates", min(rates), low=0.0, exclusive_low=True)
    if len(rates) == 2:
        raise ValueError(
            "`learning_rates` must be one, or three or more: the best of two lies at an end; got "
            f"{rates[0]:g} and {rates[1]:g}."
        )
    low, high = prepared.decay.strengths
    usual_strengths = np.geomspace(10 * low, high / 3, NUM_STRENGTHS)
    strengths = check_axis("strengths", options.strengths or tuple(usual_strengths))
    whole = prepared.decay.whole_weight_strength
    pairs = [(s, r) for s in strengths for r in rates if s < whole(r)]
    for rate in rates:
        left = sum(r == rate and s > 0 for s, r in pairs)
        if left < 3:
            raise ValueError(
                f"`strengths`: {left} of them are positive and remove less than a whole weight a "
                f"step at learning rate {rate:g}; three or more tell where the best lies."
            )
    strength, rate = np.array(pairs).T
    return {"strength": strength, "learning_rate": rate} | (
        {"dropout": np.full(len(pairs), options.dropout)} if options.dropout else {}
    )


def _between(sizes: list[dict[str, Any]], target: dict[str, Any], most: int) -> dict[str, Any]:
    """Halfway, in logarithms, from the largest sizes to the target; no more rows than there are."""
    found = dict(target)
    for name in varied_names(sizes):
        largest = max(one[name] for one in sizes)
        found[name] = round(math.sqrt(largest * target[name]))
    found["rows"] = min(found["rows"], most)
    if found in sizes:
        raise ValueError(
            "`check` needs a size between the small ones and the target: take smaller sizes."
        )
    return found


def _search(
    options: TransferOptions,
    plan: _Plan,
    data: Batch,
    folds: Folds,
    keys: Array,
    cache: str | os.PathLike[str] | None,
    results: dict[str, Any],
    say: Say,
    on_progress: OnProgress | None,
    sizes: dict[str, Any],
) -> Scores:
    """The search at one size, and what it found into the results."""
    prepared = plan.of(sizes)
    labels = prepared.choose_data.targets if prepared.loss.has_classes else None
    name = _named(sizes, plan.sizes)

    def listen(event: Progress) -> None:
        if event.stage == "compile" or event.cached == event.total:  # The first.
            results["cached"] = results.get("cached", 0) + event.cached
            say_cached(lambda text: say(f"{name}: {text}"), event)
        if event.memory is not None:
            results["memory"] = max(results.get("memory", 0), event.memory)
        if on_progress is not None:
            on_progress(name, event)

    scores = cross_validate(
        recipes.recipe_fit_and_score(prepared.recipe),
        plan.grid,
        data,
        trained_on(folds, sizes["rows"], key=keys[1], stratify=labels),
        key=keys[2],
        num_seeds=options.seeds,
        mesh=prepared.mesh,
        progress=listen,
        cache=cache,
        groups=prepared.choose_data.groups,
    )
    results.setdefault("sizes", []).append({**sizes, "scores": scores.to_dict()})
    return scores


def _named(sizes: Mapping[str, Any], among: list[dict[str, Any]]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {sizes[name]}" for name in varied_names(among))


def _plan_text(options: TransferOptions, plan: _Plan) -> str:
    """What will be done, before it starts."""
    first, runs = plan.of(plan.sizes[0]), options.folds * options.seeds
    candidates = len(plan.grid["strength"])
    searched = [*plan.sizes, *filter(None, [plan.between])]
    work = sum(map(plan.work, searched)) * candidates * runs / plan.work(plan.target)
    check = f" To check: {_named(plan.between, plan.sizes)}." if plan.between else ""
    return (
        f"{first.describe()}\n{candidates * runs * len(searched)} trainings at {len(searched)} "
        f"sizes: {candidates} candidates x {options.folds} folds x {options.seeds} seeds each, one "
        f"compiled program a size; as much work as {work:.2g} trainings of the run at "
        f"{_named(plan.target, plan.sizes)} (examples seen x params).\nSizes: "
        f"{'; '.join(_named(one, plan.sizes) for one in plan.sizes)}.{check} Writes to {first.out}."
    )


def _headline(found: Transfer) -> str:
    varied = varied_names(found.sizes)
    at = ", ".join(f"{name.replace('_', ' ')} {found.target[name]}" for name in varied)
    if "strength" not in found.predictions:
        return f"No strength can be predicted at {at}: too few sizes know their best."
    words = f"At {at}: strength {prediction_words(found.predictions['strength'])}"
    if "learning_rate" in found.predictions:
        words += f", learning rate {prediction_words(found.predictions['learning_rate'])}"
    return f"{words}." if found.believed else f"{words}; not to be believed."


def _rules(found: Transfer, plan: _Plan, options: TransferOptions) -> list[Table]:
    """The law beside what published rules make of the size nearest to the target."""
    known = [
        (one, best)
        for one, best in zip(found.sizes, found.best, strict=True)
        if best["strength"].known
    ]
    rates = np.unique(plan.grid["learning_rate"])
    rate_of = lambda best: best["learning_rate"].value if "learning_rate" in best else rates[0]
    whole = plan.of(plan.target).decay.whole_weight_strength
    # The rules are of decoupled decay: a share strength x learning rate a step.
    if not known or not math.isclose(whole(0.1) * 0.1, 1):
        return []
    apart = lambda one: sum(math.log(plan.target[n] / size) ** 2 for n, size in one.items())
    nearest, best = min(known, key=lambda pair: apart(pair[0]))
    with_params = lambda one: one | {"params": count_params(plan.of(one).param_shapes)}
    rules = rule_strengths(
        best["strength"].value, float(rate_of(best)), with_params(nearest), with_params(plan.target)
    )
    rows: list[tuple] = []
    law = found.predictions.get("strength")
    if law is not None:
        rate = found.predictions.get("learning_rate")
        interval = f"{law.low:.2g} to {law.high:.2g}"
        rows = [("law", law.value, interval, rates[0] if rate is None else rate.value, "this run")]
    rows += [(one.rule, one.strength, "", one.learning_rate, one.source) for one in rules]
    return [
        Table(
            ("rule", "strength", "95 % interval", "learning rate", "source"),
            tuple(rows),
            title=f"What else is said of {_named(plan.target, plan.sizes)}",
            note=f"the rules carry strength {format_number(best['strength'].value)} from "
            f"{_named(nearest, plan.sizes)}, the nearest size that knows its best",
        )
    ]


def _check(
    found: Transfer, between: dict[str, Any], scores: Scores, options: TransferOptions
) -> dict[str, Any]:
    """Whether the law's interval holds the best found at a size between."""
    best = find_optimum(scores, value=options.choose_by)
    at = _named(between, list(found.sizes))
    checks, words = {}, []
    for number, law in found.laws.items():
        told, one = law.predict(between), best[number]
        held = bool(told.low <= one.value <= told.high) if one.known else None
        checks[number] = {"predicted": told, "found": one.value, "held": held}
        verdict = {True: "holds", False: "does not hold", None: "cannot be told to hold"}[held]
        words.append(
            f"the interval {told.low:.2g} to {told.high:.2g} of the {number.replace('_', ' ')} "
            f"{verdict} the best that was searched, {format_number(one.value)}"
            + ("" if one.known else ", which is not known")
        )
    said = "; ".join(words) or "there is no law to check"
    return {"sizes": between, "numbers": checks, "words": f"Checked at {at}: {said}."}
