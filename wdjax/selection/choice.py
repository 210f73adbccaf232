"""The rules that choose a candidate, and say how sure they are."""

from typing import Any, NamedTuple

import jax
import numpy as np

from wdjax.checks import check_one_of
from wdjax.selection.cross_validation import Scores, standard_error_over_folds
from wdjax.tables import Estimate, Table, format_number

RULES = ("min", "one_standard_error")


class Choice(NamedTuple):
    """One candidate, and why."""

    index: int  # pyright: ignore[reportIncompatibleMethodOverride]
    hparams: dict[str, float]
    mean: float
    standard_error: float
    rule: str
    reason: str

    def table(self) -> Table:
        """One row: the numbers chosen and what they score."""
        row = (*self.hparams.values(), Estimate(self.mean, self.standard_error), self.rule)
        return Table((*self.hparams, "score", "rule"), (row,), note=self.reason)

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def to_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return self._asdict()


def choose(
    scores: Scores, rule: str = "min", *, value: str = "loss", simpler: str = "strength"
) -> Choice:
    """Chooses the row of the grid with the lowest score, or the simplest one close to it.

        m_row = mean over folds of the mean over seeds
        se_row = deviation of the fold means (ddof 1) / sqrt(folds)

    `"min"` takes the row of lowest m (the first, if several tie). `"one_standard_error"` takes,
    of the rows with m <= m_best + se_best, the one with the largest `simpler` (the lowest m, if
    several tie). A row with a run that is not finite loses. `reason` says so in words where the
    choice lies at an end of the grid, or where zero cannot be told from it: the paired
    difference over folds, zero's minus the choice's, is within one standard error of 0.

    Args:
      scores: from `cross_validate`; lower is better.
      rule: "min" or "one_standard_error".
      value: which score, where `scores.values` is a dict.
      simpler: the axis of the grid whose larger values make simpler models.

    Raises:
      ValueError: for an unknown rule, value or axis, or if every row has diverged.

    Source: Breiman et al. 1984, section 3.4.3, for the one-standard-error rule.
    """
    check_one_of("rule", rule, RULES)
    values = _score_named(scores.values, value)
    means, errors = values.mean(axis=(1, 2)), standard_error_over_folds(values)
    finite = np.isfinite(means)
    if not finite.any():
        raise ValueError(
            "every run of the grid diverged (no finite score): lower the learning rate or the "
            "largest strengths, or check the data."
        )
    ranked = np.where(finite, means, np.inf)
    best = int(np.argmin(ranked))
    index = best
    if rule == "one_standard_error":
        index = _simplest_within(scores.grid, simpler, ranked, ranked[best] + errors[best])
    hparams = {name: float(np.asarray(axis)[index]) for name, axis in scores.grid.items()}
    return Choice(
        index=index,
        hparams=hparams,
        mean=float(means[index]),
        standard_error=float(errors[index]),
        rule=rule,
        reason=" ".join(_reasons(scores.grid, values, rule, best, index, simpler)),
    )


def paired_difference(values: np.ndarray, row: int, other: int) -> Estimate:
    """`values[row] - values[other]` over the same folds: mean and standard error."""
    difference = values[[row]] - values[[other]]
    return Estimate(float(difference.mean()), float(standard_error_over_folds(difference)[0]))


def row_of_zero(grid: Any, index: int, name: str = "strength") -> int | None:
    """The row that differs from row `index` only in `name` being 0, or None."""
    if name not in grid:
        return None
    axes = {key: np.asarray(axis) for key, axis in grid.items()}
    same = np.ones(len(axes[name]), bool)
    for key, axis in axes.items():
        same &= (axis == 0) if key == name else (axis == axis[index])
    return int(np.argmax(same)) if same.any() else None


def end_of_grid(grid: Any, index: int, name: str) -> str | None:
    """`"smallest"` or `"largest"` if row `index` has that value of the axis; zero is no end.

    Zero is where an axis of strengths stops by nature, so neither it nor an axis of one value
    counts as an end. The smallest value above zero does.
    """
    axis = np.asarray(grid[name])
    above = np.unique(axis[axis != 0])
    if above.size < 2:
        return None
    return {above[0]: "smallest", above[-1]: "largest"}.get(axis[index])


def _score_named(values: Any, name: str) -> np.ndarray:
    if isinstance(values, dict):
        check_one_of("value", name, values)
        values = values[name]
    leaves = jax.tree.leaves(values)
    if len(leaves) != 1:
        raise ValueError("`scores.values` must be one array or a dict of arrays by name.")
    scores = np.asarray(leaves[0], np.float64)
    return np.where(np.isfinite(scores), scores, np.nan)


def _simplest_within(grid: Any, simpler: str, ranked: np.ndarray, bound: float) -> int:
    check_one_of("simpler", simpler, grid)
    size = np.where(ranked <= bound, np.asarray(grid[simpler], np.float64), -np.inf)
    return int(np.lexsort((ranked, -size))[0])


def _reasons(grid, values, rule, best, index, simpler):
    means, errors = values.mean(axis=(1, 2)), standard_error_over_folds(values)
    if rule == "min" or index == best:
        yield f"Lowest mean score, {format_number(means[best])}."
    else:
        yield (
            f"Largest {simpler} within one standard error ({format_number(errors[best])}) of the "
            f"lowest mean score, {format_number(means[best])}."
        )
    for name in grid:
        end = end_of_grid(grid, index, name)
        if end is not None:
            yield (
                f"It lies at an end of the grid: {end} {name} tried; the best may lie beyond, "
                "so widen the grid."
            )
    zero = row_of_zero(grid, index)
    if zero == index:
        yield "It is zero: no strength tried scored lower."
    elif zero is not None and np.isfinite(means[zero]):
        gain = paired_difference(values, zero, index)
        if not abs(gain.mean) > gain.standard_error:
            yield (
                f"It cannot be told from zero: the paired difference is {gain}, "
                "within one standard error."
            )
    diverged = int((~np.isfinite(means)).sum())
    if diverged:
        yield f"{diverged} of {len(means)} rows diverged and lose."
