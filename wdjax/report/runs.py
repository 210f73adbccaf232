"""The final runs as the report shows them: what decay bought on the test part, how they learnt."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from wdjax.report import figures
from wdjax.report.figures import Figure
from wdjax.tables import Estimate, Table, format_number

WORDS = {"chosen": "chosen", "zero": "no decay", "largest": "largest strength"}
"""The runs of a refit in the words of the page."""

_COLOURS = {"chosen": figures.FIRST, "zero": figures.MUTED, "largest": figures.SECOND}

Runs = dict[str, Mapping[str, Any]]


def read_runs(results: Mapping[str, Any]) -> Runs:
    """The runs under `refit`, the chosen one first; empty if there are none."""
    refit = results.get("refit") or {}
    order = [*WORDS, *(name for name in refit if name not in WORDS)]
    return {name: refit[name] for name in order if isinstance(refit.get(name), Mapping)}


def runs_table(runs: Runs) -> Table:
    """A row per run: its numbers, then its scores as mean and standard error over seeds."""
    numbers = _names(runs, "hparams")
    scores = list(dict.fromkeys(n for run in runs.values() for n in run if _is_score(run[n])))
    scores.sort(key=_order)
    named = len(runs) > 1
    rows = tuple(
        (
            *([WORDS.get(name, name)] if named else ()),
            *((run.get("hparams") or {}).get(number) for number in numbers),
            *(_estimate(run, score) if _is_score(run.get(score)) else None for score in scores),
        )
        for name, run in runs.items()
    )
    headers = (*(["run"] if named else ()), *numbers, *scores)
    marked = list(runs).index("chosen") if named and "chosen" in runs else None
    return Table(tuple(name.replace("_", " ") for name in headers), rows, marked=marked)


def _estimate(run: Mapping[str, Any], score: str) -> Estimate:
    """Over the seeds; of the test part with the error that holds its examples too, if known."""
    error = (run.get("errors") or {}).get(score)
    plain = over_seeds(run[score])
    return plain._replace(standard_error=error) if isinstance(error, int | float) else plain


def what_decay_bought(runs: Runs) -> str:
    """The test loss of the chosen run less that without decay, in a sentence.

    With the interval of the paired gain if the results have it (older ones do not): it holds the
    test part's examples and the seeds.
    """
    chosen, zero = (_floats((runs.get(name) or {}).get("test_loss")) for name in ("chosen", "zero"))
    strength = ((runs.get("chosen") or {}).get("hparams") or {}).get("strength")
    if chosen.shape != zero.shape or not np.isfinite(chosen - zero).all() or not len(chosen):
        return ""
    if strength == 0:
        return "The rule chose a strength of 0: the chosen run is the one without decay."
    at = "" if strength is None else f" at strength {format_number(strength)}"
    gain = ((runs["chosen"].get("gains") or {}).get("test_loss")) or {}
    if all(isinstance(gain.get(name), int | float) for name in ("mean", "low", "high")):
        mean, low, high = (gain[name] for name in ("mean", "low", "high"))
        side = "lower" if mean > 0 else "higher"
        low, high = (low, high) if mean > 0 else (-high, -low)
        sure = low > 0 or high < 0
        holds = "examples and seeds" if gain.get("method") == "examples" else "examples alone"
        return (
            f"The test loss{at} is {format_number(float(f'{abs(mean):.3g}'))} {side} than without "
            f"decay (95 % interval {format_number(float(f'{low:.2g}'))} to "
            f"{format_number(float(f'{high:.2g}'))}, of {holds})"
            + ("." if sure else ": it cannot be told from no decay.")
        )
    difference = over_seeds(list(chosen - zero))
    size = abs(difference.mean)
    amount = Estimate(size, difference.standard_error)
    direction = "lower" if difference.mean < 0 else "higher"
    seeds = f"{len(chosen)} seeds" if len(chosen) > 1 else "one seed, so its error is not known"
    doubt = ""
    if len(chosen) > 1 and size < 2 * difference.standard_error:
        doubt = " That is less than two standard errors: seeds alone could do this."
    return f"The test loss{at} is {amount} {direction} than without decay ({seeds}).{doubt}"


def over_seeds(values: Any) -> Estimate:
    """Mean and standard error `[seed] -> Estimate`; one seed has no error, a null is NaN."""
    x = _floats(values)
    error = x.std(ddof=1) / math.sqrt(len(x)) if len(x) > 1 else math.nan
    return Estimate(float(x.mean()) if len(x) else math.nan, float(error))


def run_figures(runs: Runs) -> list[Figure]:
    """Learning curves: a figure per curve with a line per run; for one run, all in one."""
    curves = {
        (name, curve): np.atleast_2d(_floats(values))
        for name, run in runs.items()
        for curve, values in (run.get("curves") or {}).items()
    }
    curves = {k: v for k, v in curves.items() if v.ndim == 2 and np.isfinite(v).any()}
    if len(runs) == 1:
        kinds = dict.fromkeys(curve.rpartition("_")[2] for _, curve in curves)
        groups = {
            kind: [
                (curve.rpartition("_")[0] or curve, values, _part_colour(curve))
                for (_, curve), values in curves.items()
                if curve.rpartition("_")[2] == kind
            ]
            for kind in kinds
        }
    else:
        groups = {
            curve.replace("_", " "): [
                (
                    WORDS.get(name, name).removesuffix(" strength"),
                    v,
                    _COLOURS.get(name, figures.INK),
                )
                for (name, c), v in curves.items()
                if c == curve
            ]
            for curve in sorted({curve for _, curve in curves}, key=_order)
        }
    return [
        Figure(
            figures.draw_epochs(f"epochs-{i}", title.capitalize(), _ends_in_words(lines), lines),
            "After each epoch."
            + (" Thin lines are seeds." if any(len(v) > 1 for _, v, _ in lines) else ""),
        )
        for i, (title, lines) in enumerate(groups.items())
    ]


def _order(score: str) -> tuple[bool, bool, str]:
    """The test part before the training part; in each the loss first."""
    return not score.startswith("test"), not score.endswith("loss"), score


def _ends_in_words(lines: list[tuple[str, np.ndarray, str]]) -> str:
    ends = (f"{label} ends at {format_number(float(v[:, -1].mean()))}" for label, v, _ in lines)
    return "; ".join(ends) + "."


def _part_colour(curve: str) -> str:
    return figures.SECOND if curve.startswith("train") else figures.FIRST


def _names(runs: Runs, field: str) -> list[str]:
    return list(dict.fromkeys(name for run in runs.values() for name in run.get(field) or {}))


def _is_score(values: Any) -> bool:
    return isinstance(values, list) and all(v is None or isinstance(v, int | float) for v in values)


def _floats(values: Any) -> np.ndarray:
    """Lists of numbers and nulls as float64, nulls as NaN; rows of unequal length as none."""
    try:
        return np.array([] if values is None else values, np.float64)
    except (TypeError, ValueError):
        return np.array([])
