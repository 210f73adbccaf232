"""Ways of choosing, by name: what `--by` can name."""

import dataclasses
from collections.abc import Callable

from wdjax.selection.by_slopes import plan_of_slopes, search_problem_by_slopes
from wdjax.selection.choice import choose
from wdjax.selection.cross_validation import Progress, cross_validate
from wdjax.selection.halving import plan_of_halving, search_by_halving
from wdjax.selection.search import Problem, Search, Stopwatch


@dataclasses.dataclass(frozen=True)
class Way:
    """A way of choosing.

    Args:
      search: `Problem -> Search`. What it refuses, it refuses before anything runs.
      plan: `Problem -> words` for what it will train: "210 trainings: 14 rows x 5 folds x 3 seeds".
      words: what it does, for the help.
    """

    search: Callable[[Problem], Search]
    plan: Callable[[Problem], str]
    words: str


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
    return Search(scores, choice, cost, (), "The whole grid was trained.")


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


WAYS: dict[str, Way] = {
    "grid": Way(search_by_grid, _plan_of_grid, "train every row"),
    "slopes": Way(
        search_problem_by_slopes,
        plan_of_slopes,
        "train a few rows with the slopes of their scores, each where those so far point",
    ),
    "halving": Way(
        search_by_halving, plan_of_halving, "train every row a little, the best to the end"
    ),
}
"""The first is the default."""
