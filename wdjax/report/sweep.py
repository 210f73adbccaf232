"""The grid as the report shows it: its table, and its figures over one or two of its numbers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from wdjax.loss_kinds import MEASURE_KINDS
from wdjax.measures import direction_of
from wdjax.report import figures
from wdjax.report.figures import Figure, Mark, Series
from wdjax.report.heat import draw_heat
from wdjax.report.strokes import mean_slopes, words_on_strokes
from wdjax.selection.choice import RULES
from wdjax.tables import Estimate, Table, format_number


class Sweep(NamedTuple):
    """The rows of the grid with their scores, and which of them the rules chose."""

    rows: list[Mapping[str, Any]]
    axes: tuple[str, ...]
    metrics: tuple[str, ...]
    choices: dict[str, int]
    chosen: int | None
    partial: bool
    value: str = "loss"
    """The score that the choice was made by."""
    confident: tuple[int, ...] = ()
    """The rows that cannot be told from the best."""
    higher_is_better: Mapping[str, bool] = {}
    """The directions that the results tell."""
    slopes: Any = None
    """What the results tell of the scores' slopes."""

    @property
    def varying(self) -> tuple[str, ...]:
        """The numbers that differ between rows, the strength first."""
        varies = [a for a in self.axes if len(np.unique(self.column(a))) > 1]
        return tuple(sorted(varies, key=lambda axis: axis != "strength"))

    def column(self, axis: str) -> np.ndarray:
        """One number of the grid, `[row]`."""
        return np.array([_number(row.get(axis)) for row in self.rows])

    def estimates(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """Means and standard errors `[row]`, NaN where there are none."""
        pairs = [read_estimate(row.get(metric)) or (math.nan, math.nan) for row in self.rows]
        means, errors = np.array(pairs, float).T
        return means, errors


def read_sweep(results: Mapping[str, Any]) -> Sweep | None:
    """The grid of a results dict, or None if it has neither a table nor scores to make one of."""
    rows = [row for row in results.get("table") or () if isinstance(row, Mapping)]
    rows = rows or _rows_of_scores(results)
    if not rows:
        return None
    cells = {name: cell for row in rows for name, cell in row.items()}
    metrics = tuple(n for n, c in cells.items() if any(read_estimate(r.get(n)) for r in rows))
    metrics = tuple(sorted(metrics, key=_order))
    axes = tuple(n for n in cells if n not in metrics and not isinstance(cells[n], Mapping))
    axes = tuple(a for a in axes if any(math.isfinite(_number(row.get(a))) for row in rows))
    choices = {
        rule: choice["index"]
        for rule, choice in (results.get("choices") or {}).items()
        if isinstance(choice, Mapping)
        and isinstance(choice.get("index"), int)
        and 0 <= choice["index"] < len(rows)
    }
    chosen = choices.get(str(results.get("rule")))
    told = (results.get("choices") or {}).get(str(results.get("rule"))) or {}
    confident = told.get("confident_set") if isinstance(told, Mapping) else None
    confident = confident if isinstance(confident, list) else []
    inside = tuple(i for i in confident if isinstance(i, int) and 0 <= i < len(rows))
    value = str(told.get("value", "loss")) if isinstance(told, Mapping) else "loss"
    directions = results.get("higher_is_better")
    directions = directions if isinstance(directions, Mapping) else {}
    partial = results.get("status") == "partial"
    told = value, inside, directions, results.get("slopes")
    return Sweep(rows, axes, metrics, choices, chosen, partial, *told)


def _order(metric: str) -> tuple[bool, bool, bool]:
    """Validation scores, then training scores, then the gap; in each the loss first."""
    return metric == "gap", metric.startswith("train"), not metric.endswith("loss")


def score_array(results: Mapping[str, Any], metric: str) -> np.ndarray | None:
    """One metric's scores `[row, fold, seed]`, NaN for null; None if they have no such shape."""
    try:
        scores = np.asarray((results.get("scores") or {}).get(metric), np.float64)
    except (TypeError, ValueError):
        return None
    return scores if scores.ndim == 3 and scores.size else None


def finished_folds(scores: np.ndarray) -> np.ndarray:
    """The folds in which as many runs have a score as in any: what a stopped run can compare.

    Rows seen on different folds are not comparable, so a fold begun and not ended is left out.
    """
    counts = np.isfinite(scores).sum(axis=(0, 2))
    return np.flatnonzero((counts == counts.max()) & (counts > 0))


def _rows_of_scores(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A table from the scores over the finished folds, for a run stopped before it made one."""
    losses = score_array(results, "loss")
    grid = {
        name: axis
        for name, axis in (results.get("grid") or {}).items()
        if losses is not None and isinstance(axis, list) and len(axis) == len(losses)
    }
    if losses is None or not grid:
        return []
    arrays = {name: score_array(results, name) for name in results["scores"]}
    values = {n: v for n, v in arrays.items() if v is not None and v.shape == losses.shape}
    if "train_loss" in values:
        values["gap"] = losses - values["train_loss"]
    done = finished_folds(losses)
    rows: list[Mapping[str, Any]] = []
    for index in range(len(losses)):
        row = {name: axis[index] for name, axis in grid.items()}
        for name, v in values.items():
            folds = v[index, done].mean(axis=1)
            error = folds.std(ddof=1) / math.sqrt(len(folds)) if len(folds) > 1 else math.nan
            mean = folds.mean() if len(folds) else math.nan
            row[name] = {"mean": float(mean), "standard_error": float(error)}
        rows.append(row)
    return rows


def read_estimate(cell: Any) -> Estimate | None:
    """`{"mean", "standard_error"}` as an `Estimate`, null as NaN; None for anything else."""
    if not isinstance(cell, Mapping) or "mean" not in cell:
        return None
    return Estimate(_number(cell["mean"]), _number(cell.get("standard_error")))


def _number(x: Any) -> float:
    return float(x) if isinstance(x, int | float) else math.nan


def lowest_rows(sweep: Sweep, most: int = 24) -> list[int]:
    """All rows of a grid that a reader can take in; of a longer one the dozen of lowest loss.

    To the dozen, in the order of their loss, come the rows that the rules chose and the row of
    strength 0 beside each of them.
    """
    if len(sweep.rows) <= most or "loss" not in sweep.metrics:
        return list(range(len(sweep.rows)))
    means, _ = sweep.estimates("loss")
    ranked = np.argsort(means, kind="stable").tolist()
    kept = {*ranked[:12], *sweep.choices.values()}
    for chosen in sweep.choices.values():
        same = [
            sweep.column(a) == sweep.column(a)[chosen] for a in sweep.varying if a != "strength"
        ]
        if "strength" in sweep.axes:
            kept |= set(np.flatnonzero(np.all([sweep.column("strength") == 0, *same], axis=0)))
    return [index for index in ranked if index in kept]


def sweep_table(sweep: Sweep, order: Sequence[int] | None = None) -> Table:
    """The rows of the grid, all or those in `order`; `shared_numbers` says what all share."""
    order = range(len(sweep.rows)) if order is None else order
    axes = sweep.varying or sweep.axes
    names = [axis.replace("_", " ") for axis in (*axes, *sweep.metrics)]
    chosen_by = {
        index: ", ".join(rule_words(rule) for rule, i in sweep.choices.items() if i == index)
        for index in sweep.choices.values()
    }
    rows = []
    for index in order:
        row, scores = sweep.rows[index], []
        for metric in sweep.metrics:
            estimate = read_estimate(row.get(metric))
            unknown = estimate is None or (sweep.partial and math.isnan(estimate.mean))
            scores.append(None if unknown else estimate)
        numbers = (row.get(axis) for axis in axes)
        rows.append((*numbers, *scores, *([chosen_by.get(index, "")] if chosen_by else ())))
    headers = (*names, *(["chosen by"] if chosen_by else ()))
    places = {index: place for place, index in enumerate(order)}
    marked = None if sweep.chosen is None else places.get(sweep.chosen)
    return Table(headers, tuple(rows), marked=marked)


def numbers_in_words(sweep: Sweep, index: int) -> str:
    """A row's numbers, those that vary: `strength 0.001, learning rate 0.01`."""
    row = sweep.rows[index]
    axes = sweep.varying or sweep.axes
    return ", ".join(f"{a.replace('_', ' ')} {format_number(row.get(a))}" for a in axes)


def shared_numbers(sweep: Sweep) -> dict[str, Any]:
    """The numbers of the grid that are the same in every row."""
    return {axis: sweep.rows[0].get(axis) for axis in sweep.axes if axis not in sweep.varying}


def sweep_figures(sweep: Sweep) -> list[Figure]:
    """The scores over the first number that varies; heat maps over the first two."""
    if not sweep.varying:
        return []
    scores = [m for m in sweep.metrics if m != "gap" and not m.startswith("train")]
    drawn = [_score_figure(sweep, metric) for metric in scores]
    if "train_loss" in sweep.metrics and "loss" in sweep.metrics:
        drawn.append(_train_figure(sweep))
    if "gap" in sweep.metrics:
        drawn.append(_gap_figure(sweep))
    if len(sweep.varying) > 1:
        drawn += [heat_figure(sweep, metric) for metric in scores]
    return [figure for figure in drawn if figure is not None]


def rule_words(rule: str) -> str:
    """The rule in the words of the page."""
    return RULES[rule].words if rule in RULES else rule.replace("_", " ")


def _anchor(sweep: Sweep) -> int:
    """The row whose numbers stand for the axes a figure does not show."""
    return sweep.chosen if sweep.chosen is not None else next(iter(sweep.choices.values()), 0)


def _slice(sweep: Sweep, free: tuple[str, ...]) -> np.ndarray:
    """Rows that share the anchor's numbers in every axis but the free ones."""
    same = np.ones(len(sweep.rows), bool)
    for axis in set(sweep.varying) - set(free):
        column = sweep.column(axis)
        same &= column == column[_anchor(sweep)]
    return np.flatnonzero(same)


def _held(sweep: Sweep, free: tuple[str, ...]) -> str:
    """What the axes that a figure does not show are held at, in words."""
    anchor = sweep.rows[_anchor(sweep)]
    held = [
        f"{a.replace('_', ' ')} {format_number(anchor[a])}" for a in sweep.varying if a not in free
    ]
    return f" At {', '.join(held)}." if held else ""


def _series(sweep: Sweep, metric: str, rows: np.ndarray, label: str, colour: str) -> Series:
    means, errors = sweep.estimates(metric)
    axis = sweep.varying[0]
    slopes = mean_slopes(sweep.slopes, metric, axis, len(sweep.rows))
    slopes = None if slopes is None else slopes[rows]
    return Series(label, sweep.column(axis)[rows], means[rows], errors[rows], colour, slopes)


def _summary(series: Series, axis: str) -> str:
    finite = np.flatnonzero(np.isfinite(series.mean))
    if not len(finite):
        return "No finite score."
    low, high = (finite[f(series.mean[finite])] for f in (np.argmin, np.argmax))
    ends = (
        f"{word} {format_number(series.mean[i])} at {axis} {format_number(series.x[i])}"
        for word, i in (("lowest", low), ("highest", high))
    )
    return f"{len(series.x)} points; {'; '.join(ends)}."


def _score_figure(sweep: Sweep, metric: str) -> Figure | None:
    """Validation scores against the first axis, a line per value of the second."""
    axis, *others = sweep.varying
    free = (axis, *others[:1])
    rows = _slice(sweep, free)
    means, errors = sweep.estimates(metric)
    if not np.isfinite(means[rows]).any():
        return None
    name, words = axis.replace("_", " "), f"validation {metric.replace('_', ' ')}"
    if not others:
        series = [_series(sweep, metric, rows, "", figures.FIRST)]
    else:
        column = sweep.column(others[0])
        anchor = column[_anchor(sweep)]
        series = [
            _series(sweep, metric, rows[column[rows] == value], format_number(value), colour)
            for value in np.unique(column[rows])
            for colour in [figures.FIRST if value == anchor else figures.MUTED]
        ]
        if not sweep.choices:
            series = [s._replace(colour=figures.INK) for s in series]
        # A band a line would be a tangle: only the chosen line has one.
        series = [
            s if s.colour == figures.FIRST else s._replace(error=np.zeros_like(s.error))
            for s in series
        ]
    marks = _marks(sweep, metric, rows)
    level = None
    if metric == sweep.value == "loss" and any(
        RULES[rule].within_error for rule in sweep.choices if rule in RULES
    ):
        best = int(np.nanargmin(means))
        level = means[best] + errors[best]
    caption = f"Mean over folds against {name}"
    if others:
        second = others[0].replace("_", " ")
        caption += f", a line for each {second}"
        caption += "; the chosen one in colour, with a band of" if sweep.choices else ""
    else:
        caption += "; the band is"
    caption += " one standard error." if sweep.choices or not others else "."
    caption += " Rings mark what the rules chose." if marks else ""
    caption += words_on_strokes(series, name)
    shaded = []
    if metric == sweep.value and sweep.confident:
        inside = np.array([r for r in rows if r in sweep.confident], int)
        if others:
            column = sweep.column(others[0])
            inside = inside[column[inside] == column[_anchor(sweep)]]
        shaded = sweep.column(axis)[inside].tolist()
        caption += f" Shaded: what cannot be told from the best {words} with 95 % confidence."
    if level is not None and math.isfinite(level):
        caption += " Dotted: the lowest mean plus its standard error."
    return Figure(
        figures.draw_series(
            f"validation-{sweep.metrics.index(metric)}",
            words.capitalize(),
            f"{words} against {name}: {_summary(series[0], name)}",
            series,
            axis=name,
            marks=marks,
            level=level if level is not None and math.isfinite(level) else None,
            shaded=shaded,
        ),
        caption + _edges(sweep, *(s.mean for s in series)) + _held(sweep, free),
    )


def _marks(sweep: Sweep, metric: str, rows: np.ndarray) -> list[Mark]:
    means, _ = sweep.estimates(metric)
    x = sweep.column(sweep.varying[0])
    chosen_by: dict[int, list[str]] = {}
    for rule, index in sweep.choices.items():
        if index in rows and math.isfinite(means[index]):
            chosen_by.setdefault(index, []).append(rule_words(rule))
    words = {
        i: rules[0] if len(rules) == 1 else "both rules" if len(rules) == 2 else "several rules"
        for i, rules in chosen_by.items()
    }
    return [Mark(words[i], float(x[i]), float(means[i])) for i in sorted(words, key=lambda i: x[i])]


def _edges(sweep: Sweep, *lines: np.ndarray) -> str:
    """What stands at the top edge for want of a place on the axis, in words."""
    words = ""
    if any(figures.off_scale(means).any() for means in lines):
        words += " Arrows: off the scale."
    if not all(np.isfinite(means).all() for means in lines):
        words += f" Crosses: no score{', or not yet' if sweep.partial else ' (diverged)'}."
    return words


def _train_figure(sweep: Sweep) -> Figure | None:
    axis = sweep.varying[0]
    rows, name = _slice(sweep, (axis,)), axis.replace("_", " ")
    series = [
        _series(sweep, "loss", rows, "validation", figures.FIRST),
        _series(sweep, "train_loss", rows, "train", figures.SECOND),
    ]
    if not any(np.isfinite(s.mean).any() for s in series):
        return None
    description = " ".join(f"{s.label}: {_summary(s, name)}" for s in series)
    return Figure(
        figures.draw_series("train", "Train and validation loss", description, series, axis=name),
        "Strength costs fit on the training part and should gain it on the validation part."
        + words_on_strokes(series, name)
        + _edges(sweep, *(s.mean for s in series))
        + _held(sweep, (axis,)),
    )


def _gap_figure(sweep: Sweep) -> Figure | None:
    axis = sweep.varying[0]
    rows, name = _slice(sweep, (axis,)), axis.replace("_", " ")
    series = _series(sweep, "gap", rows, "", figures.FIRST)
    if not np.isfinite(series.mean).any():
        return None
    return Figure(
        figures.draw_series(
            "gap",
            "Gap: validation less train loss",
            _summary(series, name),
            [series],
            axis=name,
            level=0.0,
        ),
        "How much worse the loss is on examples not trained on. Dotted: no gap."
        + _edges(sweep, series.mean)
        + _held(sweep, (axis,)),
    )


def heat_figure(
    sweep: Sweep, metric: str, name: str | None = None, span: tuple[float, float] | None = None
) -> Figure | None:
    """One score over the first two numbers that vary, None if there is no score.

    The longer of the two axes runs up the page, so that cells have room for their numbers. `name`
    is that of the element, by default the metric's; `span` as for `draw_heat`.
    """
    free = sweep.varying[:2]
    rows = _slice(sweep, free)
    means, _ = sweep.estimates(metric)
    if not np.isfinite(means[rows]).any():
        return None
    columns = {axis: sweep.column(axis)[rows] for axis in free}
    down, across = sorted(free, key=lambda axis: -len(np.unique(columns[axis])))
    ups, i = np.unique(columns[down], return_inverse=True)
    rights, j = np.unique(columns[across], return_inverse=True)
    values = np.full((len(ups), len(rights)), np.nan)
    values[i, j] = means[rows]
    place = np.flatnonzero(rows == sweep.chosen) if sweep.chosen is not None else []
    lower = not sweep.higher_is_better.get(metric, direction_of(metric, MEASURE_KINDS.get(metric)))
    cells = {int(r): (int(a), int(b)) for r, a, b in zip(rows, i, j, strict=True)}
    outlined = [cells[r] for r in sweep.confident if r in cells] if metric == sweep.value else []
    every = {(a, b) for a in range(len(ups)) for b in range(len(rights))}
    left_out = sorted(every - set(cells.values()))
    words = metric.replace("_", " ")
    return Figure(
        draw_heat(
            name or f"heat-{sweep.metrics.index(metric)}",
            f"Validation {words}",
            f"{len(ups)} by {len(rights)} means, from {format_number(np.nanmin(values))} "
            f"to {format_number(np.nanmax(values))}.",
            down=(down.replace("_", " "), ups.tolist()),
            across=(across.replace("_", " "), rights.tolist()),
            values=values,
            lower_is_better=lower,
            marked=(int(i[place[0]]), int(j[place[0]])) if len(place) else None,
            outlined=outlined,
            left_out=left_out,
            span=span,
        ),
        f"Mean {words}; stronger colour is {'lower' if lower else 'higher'}, and better."
        + (" The frame is the choice." if len(place) else "")
        + (" Dashed: what cannot be told from the best with 95 % confidence." if outlined else "")
        + (" Blank: left out." if left_out else "")
        + _edges(sweep, means[rows])
        + _held(sweep, free),
    )
