"""What the evidence allows, in words and tables."""

import math
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from wdjax.jobs.descriptions import judged_over
from wdjax.jobs.results import has_classes_in
from wdjax.jobs.told_parts import each_part_table
from wdjax.loss_kinds import LOSS_KINDS
from wdjax.measures import direction_of
from wdjax.recipe.kinds import DECAY_KINDS
from wdjax.report.runs import over_seeds
from wdjax.selection.choice import (
    Choice,
    Gain,
    Judged,
    beyond,
    choose,
    gains_over_zero,
    other_numbers,
    row_of_zero,
)
from wdjax.selection.evidence import error_on_test, gain_on_test
from wdjax.selection.grids import GridLike
from wdjax.selection.moves import best_by
from wdjax.selection.over_zero import gains_over_best_zero
from wdjax.selection.rungs import Rung, rows_left
from wdjax.selection.scores import Scores, standard_error_over_folds
from wdjax.selection.search import Cost
from wdjax.tables import Estimate, Table, format_number


def summary(results: dict[str, Any]) -> str:
    """What the command prints at the end: the headline first, then the tables, then the files."""
    parts = [results["headline"], *results.get("advice", [])]
    if results["kind"] == "compare":
        parts += ["", str(results["comparison"]), "", f"Report: {results['out']}/report.html"]
        return "\n".join(parts)
    if results["kind"] == "transfer":
        for table in results["tables"]:
            parts += ["", str(table)]
        return "\n".join([*parts, "", f"Report: {results['out']}/report.html"])
    if results["kind"] == "select":
        parts += ["", str(map_table(results) or select_table(results)), ""]
    parts += ["", str(refit_table(results)), ""]
    if of_parts := results.get("each_part"):
        table = each_part_table(of_parts)
        told = (table, of_parts["headline"], of_parts.get("verdict"))
        parts += [*(str(line) for line in told if line is not None), ""]
    if results["kind"] == "train":
        parts += [f"{table}\n" for table in results.get("tables", [])]
        parts += [f"Warning: {text}" for text in results.get("warnings", [])]
    if "cost" in results and results["kind"] == "select":
        parts.append(f"Cost: {Cost(**results['cost'])}.")
    parts.append(f"Report: {results['out']}/report.html")
    return "\n".join(parts)


def headline(scores: Scores, chosen: Choice, decay: str, command: str) -> list[str]:
    """What the evidence allows, in one line, then what to do next, a line each.

    Decay helps, or hurts, if the interval of the choice's paired gain over the best row without
    decay, which holds for all rows tried at once, excludes zero; otherwise it cannot be told from
    no decay (`choose`). Where the best row without decay has another learning rate than the
    choice, the gain over zero at the choice's own is said too.
    """
    judged = Judged.of(scores, chosen.value)
    lines = [f"{_first_words(judged, chosen, decay)}{_one_learning_rate(scores.grid)}."]
    movement = best_by(judged)
    lines += [] if movement is None else [str(movement)]
    lines += [*_other_scores(scores, chosen)]
    if not scores.slopes:  # A search that goes by them says itself whether a better lies beyond.
        lines += [*_ends(judged, decay, command)]
    _, num_folds, num_seeds = judged.losses.shape
    if num_seeds == 1 and num_folds > 1:
        lines.append(
            "One seed: what another run would give is judged by the folds alone. Three seeds "
            "(--seeds 3) tell smaller gains."
        )
    if chosen.gain is not None and chosen.gain.method == "folds":
        lines.append("The interval is of fold means alone: single examples were not scored.")
    if judged.left:
        lines.append(f"{len(judged.left)} of {len(judged.means)} candidates left before the end.")
    diverged = int((~np.isfinite(judged.means)).sum()) - len(judged.left)
    if diverged:
        lines.append(f"{diverged} of {len(judged.means)} candidates diverged and were left out.")
    return lines


def _ends(judged: Judged, decay: str, command: str) -> Iterator[str]:
    """At which ends of the grid the best mean lies, and how to look beyond."""
    grid, best = judged.grid, int(np.argmin(judged.means))
    ends = beyond(judged, best, gains_over_zero([judged])[0])
    if "strength" in ends:
        rates = np.asarray(grid["learning_rate"])
        most = DECAY_KINDS[decay].whole_weight_strength(float(rates[best]))
        wider = wider_command(command, grid, ends["strength"], most)
        where = f"The best mean lies at the {ends['strength']} strength tried"
        yield (
            f"{where}; the best may lie beyond. Try: {wider}"
            if wider
            else f"{where}. Nothing lies beyond at this learning rate: a step would remove the "
            "whole weight."
        )
    if "learning_rate" in ends:
        yield (
            f"The best mean lies at the {ends['learning_rate']} learning rate tried; the best may "
            "lie beyond: give others with --learning-rates."
        )


def _first_words(judged: Judged, chosen: Choice, decay: str) -> str:
    named = f"validation {chosen.value}"
    estimate = Estimate(chosen.mean, chosen.standard_error)
    score = f"{named} {estimate}"
    numbers = other_numbers(judged.grid, chosen.index)
    at = f"strength {format_number(chosen.hparams['strength'])} ({decay})"
    at = f"{numbers} and {at}" if numbers else at
    if chosen.hparams["strength"] == 0:
        best = "highest" if chosen.higher_is_better else "lowest"
        at = f", at {numbers}" if numbers else ""
        return _of_zero(judged, best, score + at)
    gain = chosen.verdict_on_decay
    if gain is None:
        zero = row_of_zero(judged.grid, chosen.index)
        return f"Chosen {at}: {score}" + ("; zero diverged" if zero is not None else "")
    words = {
        "helps": f"Decay helps: at {at} the {named} is {estimate}",
        "hurts": f"Decay hurts: at {at} the {named} is {estimate}",
        "equal": f"Chosen {at}, which scores what zero scores: {score}",
        "unclear": f"Chosen {at}, which cannot be told from zero: {score}",
    }[gain.verdict]
    return f"{words}, {_over_zero(judged, chosen, gain)}"


def _of_zero(judged: Judged, best: str, score: str) -> str:
    """Of zero as the choice, against every row with decay."""
    rivals = gains_over_best_zero(judged).gains
    unclear = sum(gain.verdict != "hurts" for gain in rivals.values())
    if rivals and not unclear:
        every = "every candidate with decay" if _others(judged.grid) else "every strength"
        return f"Decay hurts: zero has the {best} {score}, and {every} tried is worse"
    tried = "candidate with decay" if _others(judged.grid) else "strength"
    some = f"{'any' if unclear == len(rivals) else unclear} of the {len(rivals)} {tried}s"
    told = f", but cannot be told from {some if len(rivals) > 1 else f'the one {tried}'} tried"
    return f"Zero has the {best} {score}{told if unclear else ''}"


def _over_zero(judged: Judged, chosen: Choice, gain: Gain) -> str:
    """The gain that decides; where it is over zero at other numbers, the other one beside it."""
    grid, others = judged.grid, _others(judged.grid)
    rivals = "candidates" if others else "strengths"
    at_once = f", for all {gain.num_rows} {rivals} at once" if gain.num_rows > 1 else ""
    than = f"{_side(gain, chosen)} than at zero"
    size = f"by {_size(gain)}{at_once})"
    if not others or chosen.best_zero is None:
        return f"{than} {size}"
    if row_of_zero(grid, chosen.index) == chosen.best_zero:
        return f"{than} at the same {others}, zero's best too, {size}"
    first = f"{than} at its best ({other_numbers(grid, chosen.best_zero)}) {size}"
    own = chosen.gain
    if own is None:
        return f"{first}; zero at the same {others} diverged"
    return f"{first}, and {_side(own, chosen)} than at zero at the same {others} by {_size(own)})"


def _others(grid: GridLike) -> str:
    """What varies beside the strength, in words; empty if nothing does."""
    names = [n for n, axis in grid.items() if n != "strength" and len(np.unique(axis)) > 1]
    return " and ".join(name.replace("_", " ") for name in names)


def _side(gain: Gain, chosen: Choice) -> str:
    return "higher" if (gain.mean > 0) == chosen.higher_is_better else "lower"


def _size(gain: Gain) -> str:
    """`0.0112 (95 % interval 0.0031 to 0.0193`: of the size, so the interval is turned with it."""
    turned = gain
    if gain.mean < 0:
        turned = gain._replace(mean=-gain.mean, low=-gain.high, high=-gain.low)
    return f"{format_number(float(f'{turned.mean:.3g}'))} ({turned.interval}"


def _one_learning_rate(grid: GridLike) -> str:
    learning_rates = np.unique(np.asarray(grid["learning_rate"]))
    if len(learning_rates) > 1:
        return ""
    return f". It holds at the one learning rate tried, {learning_rates[0]:g}"


def _other_scores(scores: Scores, chosen: Choice) -> Iterator[str]:
    """Where another score prefers a strength that differs by more than the errors of both."""
    for name in scores.names:
        known = scores.higher_is_better.get(name, direction_of(name, None)) is not None
        if name == chosen.value or name.startswith("train_") or not known:
            continue
        other = choose(scores, chosen.rule, value=name)
        if other.index in chosen.confident_set or chosen.index in other.confident_set:
            continue
        yield (
            f"The {name} prefers strength {format_number(other.hparams['strength'])} (validation "
            f"{name} {Estimate(other.mean, other.standard_error)}), by more than the errors of "
            f"either; --choose-by {name} chooses by it."
        )


def errors_on_test(
    each: Mapping[str, np.ndarray],
    scores: Mapping[str, np.ndarray],
    weights: Any,
    groups: np.ndarray | None = None,
) -> dict[str, float]:
    """Standard errors of a refit's means on the test part: its examples and its seeds.

    `each` holds `[seed, example]`, `scores` `[seed]`. The gap's holds the test part's examples
    and the seeds; the training part is the one there is.
    """
    weights, groups = _by_row(weights), _numbered(groups)
    errors = {n: error_on_test(v, weights, groups) for n, v in each.items() if np.ndim(v) == 2}
    train = np.asarray(scores["train_loss"], np.float64)[:, None]
    errors["gap"] = error_on_test(
        np.asarray(each["test_loss"], np.float64) - train, weights, groups
    )
    return errors


def gains_on_test(
    each: Mapping[str, np.ndarray],
    at_zero: Mapping[str, np.ndarray],
    weights: Any,
    higher_is_better: Mapping[str, bool],
    groups: np.ndarray | None = None,
) -> dict[str, dict[str, Any]]:
    """The paired gain over zero on the test part, by measure: `Gain` as a dict, and its verdict.

    The test part had no say in the choice, so nothing is corrected for.
    """
    gains = {}
    for name, values in each.items():
        measure = name.removeprefix("test_")
        if np.ndim(values) != 2 or measure not in higher_is_better:
            continue
        sign = -1.0 if higher_is_better[measure] else 1.0
        differences = sign * (np.asarray(at_zero[name], np.float64) - values)
        found = gain_on_test(differences, _by_row(weights), _numbered(groups))
        mean, low, high = (float(part[0]) for part in found[:3])
        gain = Gain(mean, low, high, found.level, 1, found.method)
        gains[name] = {**gain._asdict(), "verdict": gain.verdict}
    return gains


def _numbered(groups: np.ndarray | None) -> np.ndarray | None:
    return None if groups is None else np.unique(groups, return_inverse=True)[1]


def _by_row(weights: Any) -> np.ndarray:
    weights = np.asarray(weights, np.float64)
    return weights.reshape(len(weights), -1).sum(axis=1)


def sentence_on_test(refit: Mapping[str, Any], chosen: Choice) -> str:
    """What the test part says of the choice, in a sentence; nothing was chosen on it."""
    name = f"test_{chosen.value}"
    runs = {run: refit[run] for run in ("chosen", "zero") if name in refit.get(run, {})}
    means = {run: float(np.mean(np.asarray(one[name], np.float64))) for run, one in runs.items()}
    if not runs or not math.isfinite(means["chosen"]):
        return "On the test part the refit diverged." if runs else ""
    error = runs["chosen"].get("errors", {}).get(name, math.nan)
    words = f"Not chosen on: {name.replace('_', ' ')} {Estimate(means['chosen'], error)}"
    told = runs["chosen"].get("gains", {}).get(name)
    if told is None or chosen.hparams["strength"] == 0 or not math.isfinite(told["mean"]):
        return f"{words}."
    gain = Gain(**{field: told[field] for field in Gain._fields})
    few = "" if gain.method == "examples" else "; one seed, so of the examples alone"
    at_zero = format_number(float(f"{means['zero']:.4g}"))
    return f"{words} instead of {at_zero} at zero, {_side(gain, chosen)} by {_size(gain)}{few})."


def wider_command(command: str, grid: GridLike, end: str, most: float = math.inf) -> str | None:
    """The command again, its strengths moved two decades beyond the end that won.

    They stop at `most`; None if that is not beyond. The folder is left to the default: the old
    one is taken.
    """
    axis = np.unique(np.asarray(grid["strength"]))
    above = axis[axis > 0]
    edge = above[-1] if end == "largest" else above[0]
    low, high = (edge / 10, edge * 100) if end == "largest" else (edge / 100, edge * 10)
    high = min(high, most)
    if end == "largest" and high <= edge:
        return None
    wider = [0.0, *np.geomspace(low, high, 10)] if 0.0 in axis else [*np.geomspace(low, high, 10)]
    words, dropping = [], False
    for word in shlex.split(command or "wdjax select"):
        if word.startswith("--"):
            dropping = word.partition("=")[0] in ("--strengths", "--out", "--overwrite")
        if not dropping:
            words.append(word)
    return shlex.join([*words, "--strengths", *(f"{s:.3g}" for s in wider)])


def score_rows(scores: Scores) -> list[dict[str, Any]]:
    """A dict a grid row: its numbers, and mean and standard error of every score and the gap."""
    values = {name: np.asarray(v, np.float64) for name, v in scores.values.items()}
    values["gap"] = values["loss"] - values["train_loss"]
    rows = []
    for row in range(len(values["loss"])):
        numbers: dict[str, Any] = {name: float(axis[row]) for name, axis in scores.grid.items()}
        for name, v in values.items():
            error = float(standard_error_over_folds(v)[row])
            numbers[name] = {"mean": float(v[row].mean()), "standard_error": error}
        rows.append(numbers)
    return rows


def slope_rows(scores: Scores) -> dict[str, dict[str, list[dict[str, float]]]]:
    """`{number: {score: an estimate a row}}` of the derivatives in the number's logarithm.

    Without scores that go in steps, such as accuracy, whose slopes are 0 and say nothing.
    """

    def estimates(slopes: np.ndarray) -> list[dict[str, float]]:
        pairs = zip(slopes.mean(axis=(1, 2)), standard_error_over_folds(slopes), strict=True)
        return [{"mean": float(mean), "standard_error": float(error)} for mean, error in pairs]

    each = {n: {s: scores.slope_of(s, n) for s in scores.names} for n in scores.slopes}
    return {
        number: {name: estimates(v) for name, v in of.items() if np.nan_to_num(v).any()}
        for number, of in each.items()
    }


def select_table(results: dict[str, Any]) -> Table:
    """The table of candidates, the chosen row marked."""
    rows, shape = results["table"], results["grid_shape"]
    scored = [n for n, cell in rows[0].items() if isinstance(cell, Mapping)]
    more = [n for n in scored if not n.startswith("train_") and n not in ("loss", "gap")]
    names = [n for n in ("loss", *more, "train_loss", "gap") if n in scored]
    titles = {"loss": "validation loss", "train_loss": "train loss"}
    numbers = tuple(n for n, count in shape.items() if n == "strength" or count > 1)
    left = rows_left([Rung(**rung) for rung in results.get("rungs", ())])

    def cells_of(index: int, row: Mapping[str, Any]) -> list[Any]:
        if index in left:
            return [f"left at {left[index].num_epochs} epochs", *[None] * (len(names) - 1)]
        return [Estimate(**row[name]) for name in names]

    return Table(
        headers=(*(n.replace("_", " ") for n in numbers), *(titles.get(n, n) for n in names)),
        rows=tuple(
            (*(row[n] for n in numbers), *cells_of(index, row)) for index, row in enumerate(rows)
        ),
        marked=_choice_of(results)["index"],
    )


FEW_ROWS = 16
"""So many candidates a terminal lists one by one, also where they make a map."""


def map_table(results: dict[str, Any]) -> Table | None:
    """Learning rates across strengths, the score that is chosen by; None where it is no such map.

    That is where other numbers vary, pairs are few, or most pairs are missing.
    """
    rows, shape, choice = results["table"], results["grid_shape"], _choice_of(results)
    varying = {name for name, count in shape.items() if count > 1}
    whole = shape["strength"] * shape.get("learning_rate", 1)
    if varying != {"strength", "learning_rate"} or not FEW_ROWS < len(rows) > whole / 2:
        return None
    left = rows_left([Rung(**rung) for rung in results.get("rungs", ())])
    cells = {}
    for index, row in enumerate(rows):
        mark = (
            " <" if index == choice["index"] else " *" if index in choice["confident_set"] else ""
        )
        mean = format_number(float(f"{row[choice['value']]['mean']:.3g}"))
        cells[row["strength"], row["learning_rate"]] = ("left" if index in left else mean) + mark
    rates = sorted({rate for _, rate in cells})
    return Table(
        ("strength", *map(format_number, rates)),
        tuple(
            (strength, *(cells.get((strength, rate), "") for rate in rates))
            for strength in sorted({strength for strength, _ in cells})
        ),
        title=f"Validation {choice['value'].replace('_', ' ')} at each strength and, across, "
        "at each learning rate:",
        note="< is the choice; * cannot be told from the best with 95 % confidence. The report has "
        "every\nscore with its error.",
    )


def _choice_of(results: Mapping[str, Any]) -> dict[str, Any]:
    return results["choices"][results["rule"]]


def refit_table(results: dict[str, Any]) -> Table:
    """What decay bought: the test part at the chosen strength, at zero and at the largest."""
    runs = results["refit"]
    more = [name for name in runs["chosen"] if name.startswith("test_") and name != "test_loss"]
    measured = [n for n in ("test_loss", *more, "train_loss") if n in runs["chosen"]]
    rows = []
    for name, run in runs.items():
        gap = np.asarray(run["test_loss"], float) - np.asarray(run["train_loss"], float)
        errors = run.get("errors", {})
        estimates = [
            _with_error(over_seeds(run[m] if m != "gap" else gap), errors.get(m))
            for m in (*measured, "gap")
        ]
        rows.append((name, run["hparams"]["strength"], *estimates))
    num_seeds = len(runs["chosen"]["test_loss"])
    noisy = results["config"]["label_noise"]
    clean = f" with clean labels (training labels: {noisy:.0%} wrong)" if noisy else ""
    spread = f"mean +- standard error over {judged_over(results['data'])}"
    spread += f" and {num_seeds} seeds" if num_seeds > 1 else "; one seed"
    loss = LOSS_KINDS.get(results["config"]["loss"])
    scaled = not has_classes_in(results) and (loss is None or loss.standardizes)
    unit = "; losses are of targets scaled to standard deviation 1" if scaled else ""
    headers = ("refit", "strength", *(m.replace("_", " ") for m in measured), "gap")
    start = 1 if results.get("kind") == "train" else 0  # A single run needs no name.
    examples = f"{results['data']['num_test']} test examples{clean}"
    return Table(
        headers[start:],
        tuple(row[start:] for row in rows),
        marked=0 if len(rows) > 1 else None,
        note=f"{_where_others_are(runs)}{examples}; {spread}{unit}",
    )


def _where_others_are(runs: Mapping[str, Any]) -> str:
    """The runs whose other numbers than the strength are not those of the choice."""
    told = ""
    for name, run in runs.items():
        differ = [
            f"{number.replace('_', ' ')} {format_number(value)}"
            for number, value in run["hparams"].items()
            if number != "strength" and value != runs["chosen"]["hparams"][number]
        ]
        told += f"{name} is at its best {', '.join(differ)}; " if differ else ""
    return told


def _with_error(over_seeds: Estimate, error: float | None) -> Estimate:
    """The mean, with the error that holds the test part's examples too where it is known."""
    return over_seeds if error is None else over_seeds._replace(standard_error=error)
