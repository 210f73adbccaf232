"""Every way of choosing, asked the same: a cell and a draw, for a strength and what it cost."""

import dataclasses
import functools
import importlib.util
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.choosing.cells import (
    Cell,
    drawn,
    functions_of,
    keys_of,
    mesh,
    problem_of,
    refit_folds,
    start_of,
)
from wdjax.recipe.build import recipe_fit
from wdjax.selection import WAYS, Progress, Search, cross_validate, grid_product, tune
from wdjax.selection.search import Stopwatch
from wdjax.selection.trials import gather
from wdjax.selection.windows import plan_windows

EVERYBODYS = 0.1
LANES = 3
"""Rows that the searches of others ask for at a time: as often as the grid has so many."""


class Found(NamedTuple):
    """What a way chose, and what it took."""

    strength: float
    trainings: float
    """Of equal length."""
    seconds: float
    """By the clock, compilation included."""
    memory: int | None = None
    """Bytes of the largest compiled program."""
    doubts: tuple[str, ...] = ()
    more: dict[str, Any] = {}


@dataclasses.dataclass(frozen=True)
class Chooser:
    """A way, by what is asked of it.

    Args:
      choose: `(cell, draw) -> Found`.
      words: what it does.
      package: what has to be installed.
      family: whose it is, for the figure: "ours" or "others".
    """

    choose: Callable[[Cell, int], Found]
    words: str
    package: str = ""
    family: str = "ours"

    @property
    def missing(self) -> str:
        there = not self.package or importlib.util.find_spec(self.package)
        return "" if there else self.package


def _found(search: Search, **more: Any) -> Found:
    choice, cost = search.choice, search.cost
    strength = float("nan") if choice is None else choice.hparams["strength"]
    told = more | {"reason": search.reason}
    return Found(strength, *cost, tuple(search.doubts), told)


def by_grid(cell: Cell, draw: int, *, again: bool = False) -> Found:
    """Every row of the grid; what it says of its rows is what the others are held against."""
    search = WAYS["grid"].search(problem_of(cell, draw, again=again))
    means = search.scores.mean()["loss"]
    inside = [] if search.choice is None else [*search.choice.confident_set]
    return _found(search, means=means.tolist(), confident_set=inside)


def by_way(name: str, cell: Cell, draw: int) -> Found:
    """A way of `wdjax select --by`."""
    return _found(WAYS[name].search(problem_of(cell, draw)))


def by_tuning(carried: float, cell: Cell, draw: int) -> Found:
    """One run, whose strength moves; the choice is what it says that the next run should use."""
    problem, recipe = problem_of(cell, draw), cell.recipe
    _, stepwise = functions_of(recipe)
    train, valid, _ = gather(problem.data, problem.folds, 0)
    train, valid = stepwise.scale(train, valid)
    low, high = cell.strengths
    start = {"strength": (low * high) ** 0.5} | start_of(cell, train.weights.shape[0])
    start["strength"] = float(np.clip(start["strength"], low, high))
    windows = plan_windows(recipe.num_epochs)
    ends: list[float] = []
    losses_of = lambda fit, batch: stepwise.score.by_example(fit, batch)["loss"]
    tuned = tune(
        stepwise.make_run,
        losses_of,
        start,
        train,
        valid,
        key=problem.key,
        windows=windows,
        batch_size=recipe.batch_size,
        carried=carried,
        within={"strength": cell.strengths},
        on_window=lambda window: ends.append(time.perf_counter()),
    )
    # A window that ran after another of its length had no program to compile.
    each = windows[0]
    alike = [b - a for a, b, n in zip(ends, ends[1:], windows[1:], strict=False) if n == each]
    as_trainings = float("nan")
    if alike:
        seconds = float(np.median(alike)) * recipe.num_epochs / each
        as_trainings = seconds / _seconds_of_a_training(cell, draw, tuned.hparams, train)
    more = {"following": tuned.following, "time_in_trainings": as_trainings}
    more["windows"] = [[w.hparams["strength"], *w.slopes["strength"]] for w in tuned.windows]
    return Found(tuned.following["strength"], *tuned.cost, tuple(tuned.doubts), more)


def _seconds_of_a_training(cell: Cell, draw: int, numbers: dict[str, float], train: Any) -> float:
    """Of the same run without a tangent: the median of three, compiled before."""
    fit = jax.jit(recipe_fit(cell.recipe))
    run = lambda: jax.block_until_ready(fit(numbers, train, keys_of(draw)[1]).params)
    run()
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


class _Asked:
    """Rows that a search of others asks for: lanes of one program, on the same folds and runs."""

    def __init__(self, cell: Cell, draw: int):
        self.problem, self.cell = problem_of(cell, draw), cell
        self.watch, self.memory = Stopwatch(), 0
        self.strengths: list[float] = []
        self.losses: list[float] = []
        self.path: list[tuple[float, float]] = []
        self.num_batches = self.cell.num_rows // LANES

    def __call__(self, strengths: list[float]) -> list[float]:
        grid = grid_product(strength=strengths, learning_rate=[self.cell.learning_rate])
        p = self.problem
        how = {**p.how, "key": p.key, "num_seeds": p.num_seeds, "progress": self._hear}
        scores = cross_validate(p.fit_and_score, grid, p.data, p.folds, **how)
        losses = [float(loss) for loss in scores.mean()["loss"]]
        self.strengths += strengths
        self.losses += losses
        self.path.append((len(self.losses) * self._each, self._best()))
        return losses

    @property
    def _each(self) -> int:
        return len(self.problem.folds.train) * self.problem.num_seeds

    def _best(self) -> float:
        means = np.where(np.isfinite(self.losses), self.losses, np.inf)
        return self.strengths[int(np.argmin(means))]

    def _hear(self, event: Progress) -> None:
        self.memory = max(self.memory, event.memory or 0)

    def found(self) -> Found:
        cost = self.watch.cost(len(self.losses) * self._each, self.memory or None)
        return Found(self._best(), *cost, more={"path": self.path})


def by_optuna(sampler: str, cell: Cell, draw: int, **options: Any) -> Found:
    """Batches of `ask` and `tell` over the logarithm of the strength."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=getattr(optuna.samplers, sampler)(seed=draw, **options))
    space = {"strength": optuna.distributions.FloatDistribution(*cell.strengths, log=True)}
    asked = _Asked(cell, draw)
    for _ in range(asked.num_batches):
        trials = [study.ask(space) for _ in range(LANES)]
        losses = asked([trial.params["strength"] for trial in trials])
        for trial, loss in zip(trials, losses, strict=True):
            failed = None if np.isfinite(loss) else optuna.trial.TrialState.FAIL
            study.tell(trial, loss if failed is None else None, state=failed)
    return asked.found()


@functools.cache
def _hyperoptax(ends: tuple[float, float], num_batches: int) -> tuple[Any, Callable, Callable]:
    """Its first state, and how it asks and is told: compiled once, as one by one its operations
    take a minute."""
    import hyperoptax

    space = {"log": hyperoptax.LinearSpace(*(float(x) for x in np.log(ends)))}
    options = {"n_parallel": LANES, "n_warmup": LANES}
    state, optimizer = hyperoptax.BayesianSearch.init(space, n_max=LANES * num_batches, **options)
    ask = lambda state, key: optimizer.get_next_params(state, key)
    tell = lambda state, key, told, params: optimizer.update_state(state, key, told, params)
    return state, jax.jit(ask), jax.jit(tell)


def by_hyperoptax(cell: Cell, draw: int) -> Found:
    """Its Bayesian search, asked and told a batch at a time."""
    asked = _Asked(cell, draw)
    state, ask, tell = _hyperoptax(cell.strengths, asked.num_batches)
    key = jax.random.key(draw)
    for _ in range(asked.num_batches):
        key, ask_key, tell_key = jax.random.split(key, 3)
        params = ask(state, ask_key)
        points = np.exp(np.asarray(params["log"], np.float64).reshape(-1))
        losses = np.array(asked([float(x) for x in np.clip(points, *cell.strengths)]))
        # It knows no failed trial: one that diverged is as bad as the worst.
        finite = [loss for loss in asked.losses if np.isfinite(loss)]
        told = np.where(np.isfinite(losses), losses, max(finite, default=1e3)).astype(np.float32)
        state = tell(state, tell_key, told, params)
    return asked.found()


def by_everybody(cell: Cell, draw: int) -> Found:
    """0.1, and no training at all."""
    return Found(EVERYBODYS, 0.0, 0.0)


CHOOSERS: dict[str, Chooser] = {
    "grid": Chooser(by_grid, "every row on every fold and seed"),
    "rerun": Chooser(
        functools.partial(by_grid, again=True), "the grid again: other folds, seeds and order"
    ),
    **{
        name: Chooser(functools.partial(by_way, name), f"`--by {name}`: {way.words}")
        for name, way in WAYS.items()
        if name != "grid"
    },
    "tune": Chooser(
        functools.partial(by_tuning, 1.0), "one run, its tangent carried over all of its steps"
    ),
    "tune half": Chooser(functools.partial(by_tuning, 0.5), "the same over half of its steps"),
    "TPE": Chooser(
        # Its first batch is random, as it must be; by default its first ten trials are.
        functools.partial(by_optuna, "TPESampler", n_startup_trials=LANES),
        "Optuna's, at about the grid's trainings",
        "optuna",
        "others",
    ),
    "random": Chooser(
        functools.partial(by_optuna, "RandomSampler"),
        "random strengths, at about the grid's trainings",
        "optuna",
        "others",
    ),
    "hyperoptax": Chooser(
        by_hyperoptax, "its Bayesian search, the same trainings", "hyperoptax", "others"
    ),
    "0.1": Chooser(by_everybody, "as everybody", family="others"),
}


def refit(cell: Cell, draw: int, strengths: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Test losses of runs on all that choose: `[row, seed]`, and `[row, example]` over seeds.

    The seeds are the same at every strength and for every way.
    """
    data, folds = refit_folds(drawn(cell, draw))
    different, place = np.unique(strengths, return_inverse=True)
    grid = grid_product(strength=different, learning_rate=[cell.learning_rate])
    fit_and_score, _ = functions_of(cell.recipe)
    key = jax.random.fold_in(jax.random.key(29), draw)
    scores = cross_validate(
        fit_and_score, grid, data, folds, key=key, num_seeds=cell.num_refits, mesh=mesh()
    )
    assert scores.held_out is not None
    each = np.asarray(scores.held_out.values["loss"], np.float64)[:, 0].mean(axis=1)
    return np.asarray(scores.of("loss"), np.float64)[place, 0], each[place]
