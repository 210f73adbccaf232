"""A search that goes by slopes: few rows, each where the surface of the others has its minimum."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from wdjax.checks import check_number, check_one_of, check_positive_int
from wdjax.selection.choice import RULES, Judged, choose
from wdjax.selection.cross_validation import Progress, cross_validate
from wdjax.selection.folds import Folds
from wdjax.selection.grids import grid_product
from wdjax.selection.next_row import NEAREST, Seen, next_row, promise, still_falling
from wdjax.selection.scores import Scores
from wdjax.selection.search import Problem, Search, Stopwatch
from wdjax.selection.slopes import score_names
from wdjax.selection.trials import FitAndScore
from wdjax.types import Batch

MOST_ROWS = {1: 6, 2: 9}
"""By how many numbers are searched: enough from three decades away."""


def search_by_slopes(
    fit_and_score: FitAndScore,
    start: Mapping[str, Any],
    data: Batch,
    folds: Folds,
    *,
    key: Array,
    num_seeds: int = 1,
    slopes: Any = ("strength",),
    within: Mapping[str, tuple[float, float]] | None = None,
    value: str = "loss",
    rule: str = "min",
    max_rows: int | None = None,
    simpler: str = "strength",
    zero: bool = True,
    annealed: bool = True,
    **how: Any,
) -> Search:
    """Chooses one or two numbers from a few rows: their scores, and the slopes of these.

    From `start` it steps against the slope, doubling the step while the score falls no slower than
    before, then to where the surface through all values and slopes (`selection.surface`) has its
    minimum, until that promises less than its error. Slopes are medians over the runs; where
    differences of values do not allow them, values are believed. A search in the logarithm never
    comes to 0: `zero` trains that row too. If two numbers are searched, the other one is searched
    at 0 as well, by its slopes: what decay is worth is over the best without it.

    Args:
      fit_and_score, data, folds, key, num_seeds: as for `cross_validate`.
      start: every number of a row, above 0 where it is searched (see `timescale_strength`).
      slopes: the one or two numbers to search.
      within: `{number: (least, most)}`; by default anything.
      value: which score.
      rule, simpler: as for `choose`.
      max_rows: the most rows above zero, >= 2; by default 6 for one number, 9 for two.
      zero: whether to train rows at `simpler` 0, if that is searched.
      annealed: whether the learning rate falls towards the end of a run; if not, it is doubted.
      how: what else `cross_validate` takes.

    Returns:
      The scores of all rows, the smallest numbers first (`slopes` in `simpler` are NaN at zero),
      the choice among them, and whether to believe it.

    Raises:
      ValueError: for none or more than two numbers, a start that is 0, negative or outside
        `within`, fewer than two rows, an unknown rule or score, and as `cross_validate`.

    Sources: Franceschi et al. 2017, arXiv:1703.01785; Rasmussen & Williams 2006, section 9.4.
    """
    watch = Stopwatch()
    box, names = _checked_box(start, slopes, within or {})
    check_one_of("rule", rule, RULES)
    most = MOST_ROWS[len(names)] if max_rows is None else max_rows
    check_positive_int("max_rows", most, low=2)
    known = score_names(fit_and_score, start, data, folds, key)
    if known != ["score"]:
        check_one_of("value", value, known)
    rows = _Rows(fit_and_score, data, folds, key, num_seeds, names, value, simpler, dict(how))
    without = names.index(simpler) if zero and simpler in names else None
    seen, reason = _train_rows(rows, dict(start), box, without, most)
    doubts = [*foreseen(len(folds.train), annealed), *_doubts(seen, rows)]
    if not reason:
        reason = f"It stopped at the {most} rows allowed."
        doubts += _doubts_of_an_end(seen, box, names, without)
    if len(names) == 2 and without is not None and len(seen.points):
        doubts += _search_at_zero(rows, dict(start), seen, box)
    scores = rows.joined()
    finite = np.isfinite(scores.of(rows.score)).all(axis=(1, 2)).any()
    choice = choose(scores, rule, value=value, simpler=simpler) if finite else None
    return Search(scores, choice, watch.cost(rows.trainings, rows.memory), tuple(doubts), reason)


def _train_rows(
    rows: "_Rows", start: dict[str, Any], box: np.ndarray, without: int | None, most: int
) -> tuple[Seen, str]:
    """Trains row after row; what they tell, and why no other is needed ("" if none is allowed)."""
    names, simpler = rows.names, rows.simpler
    point = np.log([float(start[name]) for name in names])
    if without is not None:
        begin = dict(zip(names, np.exp(point).tolist(), strict=True))
        rows.train(start | begin | {simpler: 0.0})
    while True:
        rows.train(start | dict(zip(names, np.exp(point).tolist(), strict=True)))
        seen = rows.seen()
        following = next_row(seen, box, without)
        if isinstance(following, str) or len(rows.trained) == most:
            break
        point = following
    return seen, following if isinstance(following, str) else ""


def _search_at_zero(rows: "_Rows", start: dict[str, Any], seen: Seen, box: np.ndarray) -> list[str]:
    """Searches the other number at `simpler` 0, from where it began and where the choice has it;
    why the best there is not to be believed."""
    (other,) = (name for name in rows.names if name != rows.simpler)
    place = rows.names.index(other)
    own_box = box[:, [place]]
    # To the last bit the number of the best row, which is held against this one.
    numbers = _numbers(rows.trained, (other,))[:, 0]
    at = float(numbers[np.argmin(np.abs(np.log(numbers) - seen.points[seen.best, place]))])
    for _ in range(MOST_ROWS[1]):
        if at not in _numbers(rows.at_zero, (other,)):
            rows.train(start | {rows.simpler: 0.0, other: at})
        following = next_row(rows.seen_at_zero(), own_box)
        if isinstance(following, str):
            return []
        at = float(np.exp(following[0]))
    doubts = _doubts_of_an_end(rows.seen_at_zero(), own_box, (other,), None)
    opening = "Do not believe this: "
    return [doubt.replace(opening, f"{opening}at {rows.simpler} 0, ") for doubt in doubts]


def search_problem_by_slopes(problem: Problem) -> Search:
    """`search_by_slopes` from `problem.start`, within the ends of the grid's axes.

    Searched is what varies over the grid, zeros left out; where the start does not say a number,
    it begins in the middle of its logarithms.

    Raises:
      ValueError: if nothing or more than two numbers vary, and as `search_by_slopes`.
    """
    within, start = _ends_and_start(problem)
    return search_by_slopes(
        problem.fit_and_score,
        start,
        problem.data,
        problem.folds,
        key=problem.key,
        num_seeds=problem.num_seeds,
        slopes=tuple(within),
        within=within,
        value=problem.value,
        rule=problem.rule,
        annealed=problem.annealed,
        **problem.how,
    )


def plan_of_slopes(problem: Problem) -> str:
    """What it will train, in words.

    Raises:
      ValueError: as `search_problem_by_slopes`.
    """
    within, start = _ends_and_start(problem)
    folds, names = len(problem.folds.train), " and ".join(n.replace("_", " ") for n in within)
    at = ", ".join(f"{name.replace('_', ' ')} {start[name]:.3g}" for name in within)
    rows = MOST_ROWS[len(within)]
    zeros = "zero" if len(within) == 1 else f"up to {MOST_ROWS[1] + 1} at zero"
    return (
        f"at most {rows} rows x {folds} folds x {problem.num_seeds} seeds with their slopes in "
        f"{names}, from {at}, and {zeros}"
    )


def trainings_of_slopes(problem: Problem) -> float:
    """The most whole trainings that it takes: a row with k slopes counts as 1 + k.

    Raises:
      ValueError: as `search_problem_by_slopes`.
    """
    num = len(_ends_and_start(problem)[0])
    trials = len(problem.folds.train) * problem.num_seeds
    zeros = 1 if num == 1 else 2 * (MOST_ROWS[1] + 1)
    return float(trials * (MOST_ROWS[num] * (1 + num) + zeros))


def _ends_and_start(
    problem: Problem,
) -> tuple[dict[str, tuple[float, float]], dict[str, float]]:
    within, start = {}, {}
    for name, axis in problem.grid.items():
        axis = np.asarray(axis, np.float64)
        above = np.unique(axis[axis > 0])
        if len(above) < 2:
            start[name] = float(axis.max())
            continue
        within[name] = float(above[0]), float(above[-1])
        middle = np.sqrt(above[0]) * np.sqrt(above[-1])
        start[name] = float(np.clip(problem.start.get(name, middle), *within[name]))
    if not 1 <= len(within) <= 2:
        varies = ", ".join(within) or "nothing"
        raise ValueError(
            "a search by slopes is of one or two numbers above 0, between the ends of their axes; "
            f"in this grid {varies} varies. Give the others one value each, or choose by the grid."
        )
    return within, start


class _Rows:
    """The rows trained so far."""

    def __init__(
        self,
        fit_and_score: FitAndScore,
        data: Batch,
        folds: Folds,
        key: Array,
        num_seeds: int,
        names: tuple[str, ...],
        value: str,
        simpler: str,
        how: dict[str, Any],
    ):
        self.names, self.value, self.simpler = names, value, simpler
        self.trained: list[Scores] = []
        self.at_zero: list[Scores] = []
        self.memory: int | None = None
        self.trainings = 0
        self._fixed = fit_and_score, data, folds
        self._how = {**how, "key": key, "num_seeds": num_seeds, "progress": self._hear}
        self._listener: Callable[[Progress], None] | None = how.get("progress")
        self._trials, self._done = len(folds.train) * num_seeds, 0

    def train(self, numbers: Mapping[str, Any]) -> None:
        """One more row, with the slopes of its numbers above 0."""
        fit_and_score, data, folds = self._fixed
        slopes = tuple(name for name in self.names if numbers[name] > 0)
        grid = grid_product(**numbers)
        row = cross_validate(fit_and_score, grid, data, folds, slopes=slopes, **self._how)
        (self.trained if slopes == self.names else self.at_zero).append(row)
        self.trainings += self._trials * (1 + len(slopes))
        self._done += self._trials

    def _hear(self, event: Progress) -> None:
        if event.memory is not None:
            self.memory = max(event.memory, self.memory or 0)
        if self._listener is not None:
            self._listener(
                event._replace(done=self._done + event.done, total=self._done + event.total)
            )

    @property
    def score(self) -> str:
        """What the score is called among the scores."""
        return self.value if self.value in self.trained[0].names else "score"

    def seen(self) -> Seen:
        """What they tell, of the score turned so that lower is better."""
        judged = [Judged.of(row, self.value) for row in self.trained]
        sign = -1.0 if judged[0].higher_is_better else 1.0
        losses = np.stack([each.losses[0] for each in judged])
        zero = np.full(losses.shape, np.nan)
        for index, row in enumerate(self.trained):
            for other in self.at_zero:
                if all(
                    np.array_equal(row.grid[name], other.grid[name])
                    for name in row.grid
                    if name != self.simpler
                ):
                    zero[index] = sign * other.of(self.score)[0]
        slopes = _slopes_of(judged, self.names)
        return Seen.of(np.log(_numbers(self.trained, self.names)), losses, slopes, zero)

    def seen_at_zero(self) -> Seen:
        """The same of the rows at 0, as a search of the other number."""
        names = tuple(name for name in self.names if name != self.simpler)
        judged = [Judged.of(row, self.value) for row in self.at_zero]
        losses = np.stack([each.losses[0] for each in judged])
        points = np.log(_numbers(self.at_zero, names))
        return Seen.of(points, losses, _slopes_of(judged, names), np.full(losses.shape, np.nan))

    def joined(self) -> Scores:
        """All of them as the scores of one search, the smallest numbers first."""
        at_zero = [_with_all_slopes(row, self.trained[0]) for row in self.at_zero]
        rows = [*at_zero, *self.trained]
        numbers = _numbers(rows, self.names)
        rows = [rows[i] for i in np.lexsort(numbers.T)]
        join: Callable = lambda *leaves: np.concatenate([np.asarray(leaf) for leaf in leaves])
        first = rows[0]
        held_out = first.held_out
        if held_out is not None:
            parts = [row.held_out for row in rows if row.held_out is not None]
            held_out = held_out._replace(
                values=jax.tree.map(join, *(dict(part.values) for part in parts)),
                slopes=jax.tree.map(join, *(dict(part.slopes) for part in parts)),
            )
        return Scores(
            {name: join(*(row.grid[name] for row in rows)) for name in first.grid},
            jax.tree.map(join, *(row.values for row in rows)),
            held_out,
            first.higher_is_better,
            jax.tree.map(join, *(dict(row.slopes) for row in rows)),
        )


def _numbers(rows: list[Scores], names: tuple[str, ...]) -> np.ndarray:
    return np.array([[float(np.asarray(row.grid[name])[0]) for name in names] for row in rows])


def _slopes_of(judged: list[Judged], names: tuple[str, ...]) -> np.ndarray:
    """`[row, number, fold, seed]`"""
    return np.stack([[each.slopes[name][0] for name in names] for each in judged])


def _with_all_slopes(row: Scores, like: Scores) -> Scores:
    """A row at zero beside others: its slopes in the logarithm of what is 0 are not known."""

    def filled(own: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
        unknown = lambda leaf: np.full_like(leaf, np.nan)
        return {n: own[n] if n in own else jax.tree.map(unknown, others[n]) for n in others}

    held_out = row.held_out
    if held_out is not None and like.held_out is not None:
        slopes = filled(held_out.slopes, like.held_out.slopes)
        held_out = held_out._replace(slopes=slopes)
    return row._replace(held_out=held_out, slopes=filled(row.slopes, like.slopes))


def foreseen(num_folds: int, annealed: bool) -> Iterator[str]:
    """Why no result of a search by slopes could be believed, known before it runs."""
    if num_folds < 2:
        yield (
            "Do not believe this: with one fold nothing tells how much it depends on which "
            "examples are held out; take two folds or more."
        )
    if not annealed:
        yield (
            "Do not believe this: at a constant learning rate the slopes of single runs run away "
            "beyond the best strength; anneal it, or choose by the grid."
        )


def _doubts(seen: Seen, rows: _Rows) -> list[str]:
    """Why the result is not to be believed, however it ended."""
    doubts = []
    if len(seen.points) < 2:
        doubts.append(
            "Do not believe this: fewer than two rows ended with a finite score; start at a "
            "smaller learning rate or strength."
        )
        return doubts
    num, away = seen.slopes.size, int(seen.run_away.sum())
    unseen = int(np.isnan(seen.slopes).sum()) - away
    if unseen == num:
        doubts.append(
            f"Do not believe this: {rows.value} has no slopes, as a score that goes in steps "
            "(accuracy) has none; search by a loss, or choose by the grid."
        )
    elif 2 * away >= num:
        doubts.append(
            f"Do not believe this: {away} of {num} slopes disagree with the differences of values "
            "beside them, as they do at a constant learning rate; anneal it, or choose by the grid."
        )
    return doubts


def _doubts_of_an_end(
    seen: Seen, box: np.ndarray, names: tuple[str, ...], without: int | None
) -> list[str]:
    """Why rows that ran out are too few."""
    if len(seen.points) < 2:
        return []
    falling = still_falling(seen, box, without)
    for name, way in zip(names, falling, strict=True):
        if way:
            side = "largest" if way > 0 else "smallest"
            return [
                f"Do not believe this: the best row has the {side} {name} tried, and the score "
                "still falls there; allow more rows, or start nearer."
            ]
    found = promise(seen, box)
    near = np.abs(seen.points - found.there).max(axis=1).min() < NEAREST
    if near or found.gain <= 2 * found.error:
        return []
    there = ", ".join(f"{n} {x:.2g}" for n, x in zip(names, np.exp(found.there), strict=True))
    return [
        f"Do not believe this: {len(seen.points)} rows are too few; another one, at {there}, "
        f"promises {found.gain:.2g} more (error {found.error:.1g}). Allow more rows."
    ]


class _Box(NamedTuple):
    ends: np.ndarray
    """`[2, number]`: the logarithms of the least and the most."""
    names: tuple[str, ...]


def _checked_box(
    start: Mapping[str, Any], slopes: Any, within: Mapping[str, tuple[float, float]]
) -> _Box:
    if isinstance(slopes, str) or not 1 <= len(slopes) <= 2:
        raise ValueError(
            f"`slopes` must be the one or two numbers to search, in a tuple, got {slopes!r}."
        )
    names, ends = tuple(slopes), []
    for name in [*names, *within]:
        check_one_of("slopes" if name in names else "within", name, start)
    if len(set(names)) < len(names):
        raise ValueError(f"`slopes` names {names[0]!r} twice; each number is searched once.")
    for name in names:
        low, high = within.get(name, (0.0, np.inf))
        check_number(f"start[{name!r}]", start[name], low=0.0)
        if not (0 < start[name] and low <= start[name] <= high):
            raise ValueError(
                f"`start[{name!r}]` must be above 0 and within {low:g} to {high:g}, got "
                f"{start[name]:g}: a search by slopes goes by logarithms."
            )
        with np.errstate(divide="ignore"):
            ends.append((np.log(low), np.log(high)))
    return _Box(np.array(ends).T, names)
