"""Ways of choosing, by name: what `--by` can name."""

import dataclasses
import math
from collections.abc import Callable, Iterable

from wdjax.selection.by_slopes import (
    foreseen,
    plan_of_slopes,
    search_problem_by_slopes,
    trainings_of_slopes,
)
from wdjax.selection.choice import choose
from wdjax.selection.cross_validation import Progress, cross_validate
from wdjax.selection.halving import plan_of_halving, search_by_halving, trainings_of_halving
from wdjax.selection.search import Cost, Problem, Search, Stopwatch
from wdjax.tables import format_number


@dataclasses.dataclass(frozen=True)
class Way:
    """A way of choosing.

    Args:
      search: `Problem -> Search`. What it refuses, it refuses before anything runs.
      plan: `Problem -> words` for what it will train: "210 trainings: 14 rows x 5 folds x 3 seeds".
      words: what it does, for the help.
      trainings: `Problem -> number`, the most that it may cost, in whole trainings; `auto` passes
        over a way that does not say it.
      foreseen: `Problem -> doubts` that are known before anything runs.
    """

    search: Callable[[Problem], Search]
    plan: Callable[[Problem], str]
    words: str
    trainings: Callable[[Problem], float] = lambda problem: math.inf
    foreseen: Callable[[Problem], Iterable[str]] = lambda problem: ()


def search_by_grid(problem: Problem) -> Search:
    """Trains every row of the grid on every fold and seed, and chooses by `choose`.

    Raises:
      ValueError: as `cross_validate`, and as `choose`.
    """
    watch, most = Stopwatch(), [0]
    told = problem.how.get("progress")

    def listen(event: Progress) -> None:
        most[0] = max(most[0], event.memory or 0)
        if told is not None:
            told(event)

    scores = cross_validate(
        problem.fit_and_score,
        problem.grid,
        problem.data,
        problem.folds,
        key=problem.key,
        num_seeds=problem.num_seeds,
        **{**problem.how, "progress": listen},
    )
    choice = choose(scores, problem.rule, value=problem.value)
    cost = watch.cost(problem.num_trials, most[0] or None)
    return Search(scores, choice, cost)


def _plan_of_grid(problem: Problem) -> str:
    shape = getattr(problem.grid, "shape", {})
    axes = " x ".join(f"{n} {name.replace('_', ' ')}s" for name, n in shape.items() if n > 1)
    if left_out := getattr(problem.grid, "num_left_out", 0):
        axes = f"({axes} less {left_out})"
    folds = len(problem.folds.train)
    return (
        f"{problem.num_trials} trainings: {axes or '1 candidate'} x {folds} folds x "
        f"{problem.num_seeds} seeds"
    )


def search_by_auto(problem: Problem) -> Search:
    """By the cheapest way that may be believed, else by the whole grid.

    The ways that may cost less than the grid are gone through, the cheapest first, to the first
    whose result nothing speaks against (`Search.believed`). A way that refuses the problem, or
    could not be believed whatever it found, is passed over. What was tried counts in `cost`;
    `reason` says why it was left.

    Raises:
      ValueError: as `cross_validate` and `choose`, if it comes to the grid.
    """
    spent, told = [], []
    for name, way in _cheaper_than_the_grid(problem):
        try:
            search = way.search(problem)
        except ValueError as error:
            told.append(f"Not by {name}: {error}")
            continue
        spent.append(search.cost)
        if search.believed and search.choice is not None:
            return search._replace(cost=_sum(spent), reason=" ".join([*told, search.reason]))
        doubts = [doubt.removeprefix("Do not believe this: ") for doubt in search.doubts]
        told.append(f"Not by {name}: {' '.join(doubts) or 'every row diverged.'}")
    search = search_by_grid(problem)
    return search._replace(cost=_sum([*spent, search.cost]), reason=" ".join(told))


def _cheaper_than_the_grid(problem: Problem) -> list[tuple[str, Way]]:
    """The ways that may be believed and do not refuse the problem at once, the cheapest first."""
    costs = {}
    for name, way in WAYS.items():
        if way.search is search_by_auto or any(way.foreseen(problem)):
            continue
        try:
            costs[name] = way.trainings(problem)
        except ValueError:
            continue
    cheap = sorted((cost, name) for name, cost in costs.items() if cost < problem.num_trials)
    return [(name, WAYS[name]) for _, name in cheap]


def _sum(costs: list[Cost]) -> Cost:
    return Cost(
        sum(cost.trainings for cost in costs),
        sum(cost.seconds for cost in costs),
        max((cost.memory for cost in costs if cost.memory is not None), default=None),
    )


def _trainings_of_auto(problem: Problem) -> float:
    cheap = _cheaper_than_the_grid(problem)
    return problem.num_trials + sum(way.trainings(problem) for _, way in cheap)


def _plan_of_auto(problem: Problem) -> str:
    cheap = [
        f"{name} (at most {format_number(float(f'{way.trainings(problem):.3g}'))})"
        for name, way in _cheaper_than_the_grid(problem)
    ]
    ways = f"by {', then '.join(cheap)}, up to the first that may be believed; else " * bool(cheap)
    return f"{ways}{_plan_of_grid(problem)}"


WAYS: dict[str, Way] = {
    "grid": Way(
        search_by_grid, _plan_of_grid, "train every row", lambda problem: problem.num_trials
    ),
    "slopes": Way(
        search_problem_by_slopes,
        plan_of_slopes,
        "train a few rows with the slopes of their scores, each where those so far point",
        trainings_of_slopes,
        lambda problem: foreseen(len(problem.folds.train), problem.annealed),
    ),
    "halving": Way(
        search_by_halving,
        plan_of_halving,
        "train every row a little, the best to the end",
        trainings_of_halving,
    ),
    "auto": Way(
        search_by_auto,
        _plan_of_auto,
        "the cheapest of the others that may be believed, else the grid",
        _trainings_of_auto,
    ),
}
"""The first is the default."""
