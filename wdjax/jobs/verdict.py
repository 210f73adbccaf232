"""What the evidence allows, in words and tables."""

import math
import shlex
from typing import Any

import numpy as np

from wdjax.jobs.prepare import whole_weight_strength
from wdjax.report.runs import over_seeds
from wdjax.selection.choice import Choice, end_of_grid, paired_difference, row_of_zero
from wdjax.selection.cross_validation import Grid, Scores, standard_error_over_folds
from wdjax.tables import Estimate, Table, format_number


def summary(results: dict[str, Any]) -> str:
    """What the command prints at the end: the headline first, then the tables, then the files."""
    parts = [results["headline"], *results.get("advice", [])]
    if results["kind"] == "compare":
        parts += ["", str(results["comparison"]), "", f"Results: {results['out']}/results.json"]
        return "\n".join(parts)
    if results["kind"] == "select":
        parts += ["", str(select_table(results)), ""]
    parts += ["", str(refit_table(results)), "", f"Report: {results['out']}/report.html"]
    return "\n".join(parts)


def headline(scores: Scores, chosen: Choice, decay: str, command: str) -> list[str]:
    """What the evidence allows, in one line, then what to do next, a line each."""
    strength, lines = chosen.hparams["strength"], []
    values = np.asarray(scores.values["loss"], np.float64)
    score = Estimate(chosen.mean, chosen.standard_error)
    zero = row_of_zero(scores.grid, chosen.index)
    end = end_of_grid(scores.grid, chosen.index, "strength")
    gain = None if zero in (None, chosen.index) else paired_difference(values, zero, chosen.index)
    if gain is not None and not math.isfinite(gain.mean):
        gain = None  # Zero diverged: it can be told apart, but not by a number.
    told_apart = gain is not None and abs(gain.mean) > gain.standard_error
    at = f"strength {format_number(strength)} ({decay})"
    if zero == chosen.index:
        first = f"No strength helped: zero has the lowest validation loss, {score}"
    elif gain is not None and not told_apart:
        first = (
            f"Chosen {at}, but it cannot be told from zero: validation loss {score}, "
            f"{_below(gain)} (paired over folds)"
        )
    elif end is not None:
        first = f"Chosen {at}, at the {end} end of the grid: validation loss {score}"
        most = whole_weight_strength(decay, float(np.max(scores.grid["learning_rate"])))
        wider = wider_command(command, scores.grid, end, most)
        lines.append(
            f"The best may lie beyond. Try: {wider}"
            if wider
            else "Nothing lies beyond at this learning rate: a step would remove the whole weight."
        )
    else:
        first = f"Chosen {at}: validation loss {score}"
        first += f", {_below(gain)} (paired over folds)" if gain else ""
    learning_rates = np.unique(np.asarray(scores.grid["learning_rate"]))
    for name in ("example_slope", "part_slope"):
        if name in chosen.hparams:
            first += f", {name.replace('_', ' ')} {format_number(chosen.hparams[name])}"
    if len(learning_rates) == 1:
        first += f". It holds at the one learning rate tried, {learning_rates[0]:g}"
    else:
        first += f". Learning rate {format_number(chosen.hparams['learning_rate'])}"
    diverged = int(np.sum(~np.isfinite(values.mean(axis=(1, 2)))))
    if diverged:
        lines.append(f"{diverged} of {len(values)} candidates diverged and were left out.")
    return [first + ".", *lines]


def _below(gain: Estimate) -> str:
    """How far below zero's loss; a rule that likes simple models may choose one above."""
    side = "higher" if gain.mean < 0 else "lower"
    return f"{side} than at zero by {Estimate(abs(gain.mean), gain.standard_error)}"


def wider_command(command: str, grid: Grid, end: str, most: float = math.inf) -> str | None:
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


def select_table(results: dict[str, Any]) -> Table:
    """The table of candidates, the chosen row marked."""
    rows, shape = results["table"], results["grid_shape"]
    names = [n for n in ("loss", "accuracy", "train_loss", "gap") if n in rows[0]]
    titles = {"loss": "validation loss", "train_loss": "train loss"}
    numbers = tuple(n for n, count in shape.items() if n == "strength" or count > 1)
    return Table(
        headers=(*(n.replace("_", " ") for n in numbers), *(titles.get(n, n) for n in names)),
        rows=tuple(
            (*(row[n] for n in numbers), *(Estimate(**row[name]) for name in names)) for row in rows
        ),
        marked=results["choices"][results["rule"]]["index"],
    )


def refit_table(results: dict[str, Any]) -> Table:
    """What decay bought: the test part at the chosen strength, at zero and at the largest."""
    runs = results["refit"]
    names = ("test_loss", "test_accuracy", "train_loss")
    measured = [name for name in names if name in runs["chosen"]]
    rows = []
    for name, run in runs.items():
        gap = np.asarray(run["test_loss"], float) - np.asarray(run["train_loss"], float)
        estimates = [over_seeds(cell) for cell in (*(run[m] for m in measured), gap)]
        rows.append((name, run["hparams"]["strength"], *estimates))
    num_seeds = len(runs["chosen"]["test_loss"])
    noisy = results["config"]["label_noise"]
    clean = f" with clean labels (training labels: {noisy:.0%} wrong)" if noisy else ""
    spread = f"mean +- standard error over {num_seeds} seeds" if num_seeds > 1 else "one seed"
    scaled = results["config"]["loss"] == "squared_error"
    unit = "; losses are of targets scaled to standard deviation 1" if scaled else ""
    return Table(
        ("refit", "strength", *(m.replace("_", " ") for m in measured), "gap"),
        tuple(rows),
        marked=0 if len(rows) > 1 else None,
        note=f"{results['data']['num_test']} test examples{clean}; {spread}{unit}",
    )
