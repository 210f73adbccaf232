"""What every way of choosing is asked and answers: its cost, and whether to believe it."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxtyping import Array

from wdjax.memory import in_words
from wdjax.run import Run
from wdjax.selection.choice import Choice
from wdjax.selection.folds import Folds
from wdjax.selection.grids import GridLike
from wdjax.selection.scores import Scores
from wdjax.selection.trials import FitAndScore
from wdjax.tables import format_number
from wdjax.types import Batch


class Cost(NamedTuple):
    """What a search took."""

    trainings: float
    """Whole trainings of equal length: half a run counts 0.5, one with k tangents 1 + k. Those
    that were found in a cache count: the way needs them."""
    seconds: float
    """By the clock, compilation included."""
    memory: int | None = None
    """Bytes of the largest compiled program, by the compiler's own analysis; None if unknown."""

    def __str__(self) -> str:
        used = "" if self.memory is None else f", {in_words(self.memory)}"
        return f"{format_number(self.trainings)} trainings, {self.seconds:.3g} s{used}"


class Search(NamedTuple):
    """What a way of choosing found, what it cost, and whether to believe it."""

    scores: Scores
    choice: Choice | None
    """None where nothing can be chosen: every row diverged."""
    cost: Cost
    doubts: tuple[str, ...] = ()
    """Why not to believe it, sentences that begin "Do not believe this"; empty if it may be."""
    reason: str = ""
    """Why it stopped where it did."""

    @property
    def believed(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.doubts

    def __str__(self) -> str:
        chosen = "" if self.choice is None else str(self.choice)
        told = (chosen, *self.doubts, self.reason, f"Cost: {self.cost}.")
        return "\n".join(part for part in told if part)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and words; the scores without those of single examples."""
        return {
            "scores": self.scores.to_dict(),
            "choice": None if self.choice is None else self.choice.to_dict(),
            "cost": self.cost._asdict(),
            "doubts": list(self.doubts),
            "reason": self.reason,
        }


class Stepwise(NamedTuple):
    """A training that can be advanced and dropped, and how its state is scored."""

    make_run: Callable[[Any, int], Run]
    """`(inputs, num_steps) -> Run`: of the inputs only shapes are used; the number of steps is the
    length of the learning rate's schedule."""
    score: Callable[..., Mapping[str, Any]]
    """`(fit, batch) -> {name: mean}`, with a `by_example`, as `make_score` builds it."""
    num_epochs: int
    batch_size: int
    scale: Callable[[Batch, Batch], tuple[Batch, Batch]] | None = None
    """`(train, valid) -> (train, valid)`, before both, as for `make_fit_and_score`."""


class Problem(NamedTuple):
    """What is to be chosen: among which numbers, on what data, scored how."""

    fit_and_score: FitAndScore
    grid: GridLike
    data: Batch
    folds: Folds
    key: Array
    num_seeds: int = 1
    rule: str = "min"
    value: str = "loss"
    stepwise: Stepwise | None = None
    """For ways that go part of the way: the same runs as `fit_and_score`, by pieces."""
    how: Mapping[str, Any] = {}
    """What else `cross_validate` takes: mesh, trials_at_once, progress, cache."""
    start: Mapping[str, float] = {}
    """Where a way that puts its own rows begins."""
    annealed: bool = True
    """Whether the learning rate falls towards the end of a run."""

    @property
    def num_rows(self) -> int:
        """Of the grid."""
        return len(next(iter(self.grid.values())))

    @property
    def num_trials(self) -> int:
        """Of the whole grid: rows x folds x seeds."""
        return self.num_rows * len(self.folds.train) * self.num_seeds


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def cost(self, trainings: int | float, memory: int | None = None) -> Cost:
        """So many trainings, in the time since."""
        return Cost(float(trainings), time.perf_counter() - self._start, memory)
