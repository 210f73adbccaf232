"""Where between the rows of a search the best strength lies, and how well the search knows it."""

import math
from typing import Any, NamedTuple

import numpy as np

from wdjax.selection.choice import Judged
from wdjax.selection.scores import HeldOut, Scores

DRAWS = 400
"""Searches redrawn for an error, from a fixed seed: the same scores, the same error."""
AT_AN_END = 0.05
"""Share of the redrawn searches at an end of the grid beyond which an optimum is not known."""
REACH = math.log(5.0)
"""Rows within this factor of the best are fitted, however close together they lie."""
REACH_IN_STEPS = 2.5


class Best(NamedTuple):
    """The best value of one number of a search, in natural logarithms."""

    log: float
    standard_error: float
    """Of `log`; infinite where the optimum is not known: see `known`."""
    end: str | None
    """The end of the grid that the best row lies at, "smallest" or "largest"."""
    at_an_end: float
    """The share of redrawn searches whose best row lies at an end of the grid."""

    @property
    def value(self) -> float:
        """The best value itself."""
        return math.exp(self.log)

    @property
    def known(self) -> bool:
        """Whether the grid encloses it: where it does not, there is no finite error."""
        return math.isfinite(self.standard_error)


def find_optimum(
    scores: Scores, *, value: str = "loss", higher_is_better: Any = None
) -> dict[str, Best]:
    """Finds the best strength, and learning rate if the grid has several, between the rows.

    A quadratic in the logarithms is fitted to the mean scores of the rows near the best one, by
    weighted least squares, and its minimum taken, no further than the neighbouring rows:

        m(x) ~ c0 + g'd + d'Hd / 2,  d = x - x_best,  weight = prod_i (1 - |d_i / h_i|^3)^3
        x* = x_best - H^-1 g

    with h the larger of log 5 and 2.5 steps of the grid. Its error is the half-width of the middle
    68 % of x* over 400 redrawn searches: the row means are redrawn with the covariance that they
    have from the held-out examples, and with that from the runs (fold x seed), scaled as Student's
    t with the degrees of freedom there are. It is never below a tenth of a step of the grid. A
    flat optimum so has a large error. One whose redrawn searches reach an end of the grid in more
    than one case of twenty, or that lies within two errors of an end, is not known at all: its
    error is infinite.

    Args:
      scores: of a grid with an axis `strength` of three positive values or more, and perhaps
        `learning_rate` of three or more. Rows of strength 0 and rows that diverged are left out.
      value: which score, where there are several.
      higher_is_better: its direction, where `scores` does not say it.

    Returns:
      `{"strength": Best}`, with `"learning_rate"` where there are several.

    Raises:
      ValueError: for an unknown score or direction, an axis of too few values, another axis of
        several values, a search of a single run, or one in which fewer than three rows ended.

    Source of the weights: Cleveland 1979 (tricube).
    """
    judged = Judged.of(scores, value, higher_is_better)
    points, names, ended = _points(judged)
    losses = judged.losses[ended]
    means = losses.mean(axis=(1, 2))
    places = _Places(points)
    found = places.minimum(means[None])
    redrawn = places.minimum(means + _redrawn(judged, losses, ended))
    at_end = np.mean(redrawn.ends != 0, axis=0)
    # The half-width of the middle 68 %, which the tails of Student's t do not move.
    sides = np.abs(np.quantile(redrawn.logs, [0.16, 0.84], axis=0) - found.logs)
    spread = sides.max(axis=0)
    lowest, highest = points.min(axis=0), points.max(axis=0)
    best = {}
    for i, name in enumerate(names):
        end = {-1: "smallest", 0: None, 1: "largest"}[int(found.ends[0, i])]
        log, error = float(found.logs[0, i]), float(max(spread[i], places.steps[i] / 10))
        inside = lowest[i] < log - 2 * error and log + 2 * error < highest[i]
        enclosed = end is None and inside and at_end[i] <= AT_AN_END
        best[name] = Best(log, error if enclosed else math.inf, end, float(at_end[i]))
    return best


class _Minimum(NamedTuple):
    logs: np.ndarray
    """`[draw, number]`."""
    ends: np.ndarray
    """`[draw, number]`: -1 and 1 where the best row has no neighbour below and above."""


class _Places:
    """Points of a grid in logarithms, `[row, axis]`, and the quadratic that is fitted at each."""

    def __init__(self, points: np.ndarray):
        self.points = points
        self.apart = points - points[:, None]  # [row, other row, axis]
        self.below, self.above = self._neighbours()
        self.i, self.j = np.triu_indices(points.shape[1])
        unique: list[Any] = [np.unique(axis) for axis in points.T]
        self.steps = np.array([np.median(np.diff(axis)) for axis in unique])
        self.reach = np.maximum(REACH, REACH_IN_STEPS * self.steps)
        self.fits = self._fits()

    def minimum(self, means: np.ndarray) -> _Minimum:
        """Of each `means[draw, row]`, the minimum near its best row."""
        rows = means.argmin(axis=1)
        # Less the best row's own mean: a common level is no curvature, whatever the rank.
        levels = means - means.min(axis=1, keepdims=True)
        fitted = np.einsum("dcr,dr->dc", self.fits[rows], levels)
        axes = self.points.shape[1]
        gradient, curvature = fitted[:, 1 : axes + 1], np.empty((len(rows), axes, axes))
        curvature[:, self.i, self.j] = curvature[:, self.j, self.i] = fitted[:, axes + 1 :]
        below, above = self.below[rows], self.above[rows]
        steps = _clipped_minimum(gradient, curvature, -below, above)
        ends = np.where(below == 0, -1, np.where(above == 0, 1, 0))
        return _Minimum(self.points[rows] + steps, ends)

    def _neighbours(self) -> tuple[np.ndarray, np.ndarray]:
        """`[row, axis]`: how far the next row below and above is; 0 where there is none."""
        sides = []
        for apart in (-self.apart, self.apart):
            axes = range(apart.shape[2])
            alone = [np.all(np.delete(apart, axis, axis=2) == 0, axis=2) for axis in axes]
            beyond = (apart > 0) & np.stack(alone, axis=2)
            nearest = np.where(beyond, apart, np.inf).min(axis=1)
            sides.append(np.where(np.isfinite(nearest), nearest, 0.0))
        return sides[0], sides[1]

    def _fits(self) -> np.ndarray:
        """`[row, coefficient, other row]`: level, gradient and curvature from the means."""
        scaled = self.apart / self.reach
        root = np.sqrt(np.prod(np.clip(1 - np.abs(scaled) ** 3, 0, None) ** 3, axis=2))
        products = scaled[..., self.i] * scaled[..., self.j] * np.where(self.i == self.j, 0.5, 1.0)
        design = np.concatenate([np.ones((*root.shape, 1)), scaled, products], axis=2)
        solved = np.linalg.pinv(root[..., None] * design) * root[:, None]
        units = np.concatenate([[1.0], self.reach, self.reach[self.i] * self.reach[self.j]])
        return solved / units[:, None]


def _clipped_minimum(
    gradient: np.ndarray, curvature: np.ndarray, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """`[draw, axis]`: where each quadratic is least within its box, by turns along the axes.

    Along an axis in which it does not curve upwards there is no step.
    """
    steps = np.zeros(gradient.shape)
    axes = range(gradient.shape[1])
    for _ in range(1 if len(axes) == 1 else 30):
        for axis in axes:
            own = curvature[:, axis, axis]
            pull = np.einsum("dj,dj->d", curvature[:, axis], steps) - own * steps[:, axis]
            least = np.where(own > 0, -(gradient[:, axis] + pull) / np.where(own > 0, own, 1.0), 0)
            steps[:, axis] = np.clip(least, low[:, axis], high[:, axis])
    return steps


def _points(judged: Judged) -> tuple[np.ndarray, list[str], np.ndarray]:
    """The logarithms of the numbers, `[row, axis]`, their names, and which rows they are of."""
    grid = {name: np.asarray(axis, np.float64) for name, axis in judged.grid.items()}
    names = [name for name in ("strength", "learning_rate") if name in grid]
    if "strength" not in names:
        raise ValueError(
            f"`scores.grid` must have an axis 'strength' to find the best of; got {[*grid]}."
        )
    for name, axis in grid.items():
        if name not in names and len(np.unique(axis)) > 1:
            raise ValueError(
                f"`scores.grid` has several values of {name!r}; an optimum is found of strength "
                "and learning rate alone: take one value of the others."
            )
    positive = np.all([grid[name] > 0 for name in names], axis=0) & np.isfinite(judged.means)
    for name in [*names]:
        count = len(np.unique(grid[name][positive]))
        if name != "strength" and count == 1:
            names.remove(name)
        elif count < 3:
            raise ValueError(
                f"`scores.grid`: the best {name} lies among {count} positive values of it whose "
                "runs ended; three or more tell where between them it is."
            )
    points = np.log(np.column_stack([grid[name][positive] for name in names]))
    return points, names, positive


def _redrawn(judged: Judged, losses: np.ndarray, ended: np.ndarray) -> np.ndarray:
    """`[draw, row]`: by how much the row means may be off, by the examples and by the runs."""
    num_rows, num_folds, num_seeds = losses.shape
    if num_folds * num_seeds == 1:
        raise ValueError(
            "`scores` are of one fold and one seed, and a single run tells no error: take two "
            "folds or more, or two seeds."
        )
    normals = np.random.default_rng(0)
    total = np.zeros((DRAWS, num_rows))
    each, held_out = judged.each, judged.held_out
    by_example = each is not None and held_out is not None
    if each is not None and held_out is not None:
        covariance = _of_examples(each[ended], held_out)
        sizes, turns = np.linalg.eigh(covariance)
        root = turns * np.sqrt(np.clip(sizes, 0, None))
        total += normals.standard_normal((DRAWS, num_rows)) @ root.T
    if num_seeds > 1 and (by_example or num_folds == 1):
        freedom = num_folds * (num_seeds - 1)
        apart = losses - losses.mean(axis=2, keepdims=True)
        apart /= num_folds * math.sqrt(num_seeds * (num_seeds - 1))
    else:
        freedom = num_folds - 1
        apart = losses.mean(axis=2)
        apart = (apart - apart.mean(axis=1, keepdims=True)) / math.sqrt(num_folds * freedom)
    directions = apart.reshape(num_rows, -1).T
    drawn = normals.standard_normal((DRAWS, len(directions))) @ directions
    # Few runs know their own spread badly: Student's t, not a normal.
    return total + drawn * np.sqrt(freedom / normals.chisquare(freedom, (DRAWS, 1)))


def _of_examples(each: np.ndarray, held_out: HeldOut) -> np.ndarray:
    """The covariance `[row, row]` of the row means by which examples were held out.

    Steps 1 and 2 of `gains_by_example`, for several rows at once.
    """
    weights = held_out.weights
    counts = weights > 0
    values = np.where(counts, each.mean(axis=2), 0.0)  # [row, fold, example]
    in_fold = np.maximum(weights.sum(axis=1, keepdims=True), np.finfo(float).tiny)
    apart = values - (values * weights).sum(axis=2, keepdims=True) / in_fold
    parts = (apart * weights / weights.sum())[:, counts]
    if held_out.groups is not None:
        groups = np.unique(held_out.groups[counts], return_inverse=True)[1].ravel()
        summed = np.zeros((groups.max() + 1, len(parts)))
        np.add.at(summed, groups, parts.T)
        parts = summed.T
    num_folds, num_groups = int(counts.any(axis=1).sum()), parts.shape[1]
    few = {1: 2.0, 2: 2.0, 3: 1.25}.get(num_folds, 1.0)
    return few * num_groups / max(1, num_groups - num_folds) * parts @ parts.T
