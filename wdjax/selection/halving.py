"""Halving: all rows begin, the worse ones leave at rungs, and few are trained to the end.

Example:
  >>> linear = wdjax.Model(
  ...     init=lambda key, x: (jnp.zeros(x.shape[-1]), {}),
  ...     apply=lambda w, state, x, *, key, train: (x @ w, state),
  ... )
  >>> def make_run(inputs, num_steps):
  ...     rate = lambda step: 0.2 * (1 - step / num_steps)
  ...     make_tx = lambda h: optax.chain(
  ...         optax.sgd(rate), wdjax.decoupled_decay(h["strength"], rate)
  ...     )
  ...     return wdjax.make_run(linear, wdjax.squared_error, make_tx=make_tx)
  >>> score = wdjax.make_score(linear, loss=wdjax.squared_error)
  >>> stepwise = wdjax.selection.Stepwise(make_run, score, num_epochs=9, batch_size=8)
  >>> x, noise = np.random.default_rng(0).normal(size=(2, 40, 12)).astype("float32")
  >>> data = wdjax.Batch(x, x[:, 0] + noise[:, 0], np.ones(40, "float32"))
  >>> grid = wdjax.grid_product(strength=[0.0, 0.01, 0.1, 0.3, 1.0, 10.0])
  >>> folds = wdjax.kfold(jax.random.key(0), 40, num_folds=4)
  >>> search = wdjax.selection.halve(stepwise, grid, data, folds, key=jax.random.key(0))
  >>> print(search.reason.split(".")[0])
  6 rows -> 2 after 1 -> 2 after 4 of 9 epochs
"""

import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from wdjax.checks import LARGEST_COUNT, check_number, check_one_of, check_positive_int
from wdjax.host_checks import check_given
from wdjax.selection.checked import check_folds, check_groups, checked_num_rows
from wdjax.selection.choice import RULES, Judged, choose, confident_rows
from wdjax.selection.cross_validation import Progress
from wdjax.selection.folds import Folds, closed_up
from wdjax.selection.grids import GridLike
from wdjax.selection.lanes import Lanes
from wdjax.selection.rungs import Rung, control_is_better, control_of
from wdjax.selection.scores import HeldOut, Scores
from wdjax.selection.search import Problem, Search, Stepwise, Stopwatch
from wdjax.selection.trials import TrialScores, platform_of
from wdjax.tables import format_number
from wdjax.types import Batch

KEEP = 1 / 5
LAST = 1 / 2
"""The last rung ends after so much of a run: see docs/deviations.md for what is lost earlier."""
BRANCH = 1 / 3
"""The share of a rung's epochs that its side branch takes."""


class Plan(NamedTuple):
    """How far a rung's rows have come when they are judged, in epochs."""

    end: int
    """The side branch ends as a run of so many epochs does."""
    branch: int
    """Its length: what survives goes on from so many epochs before."""


def halve(
    stepwise: Stepwise,
    grid: GridLike,
    data: Batch,
    folds: Folds,
    *,
    key: Array,
    num_seeds: int = 1,
    keep: Any = KEEP,
    rungs: Any = 2,
    value: str = "loss",
    rule: str = "min",
    trials_at_once: int | None = None,
    mesh: Mesh | None = None,
    progress: Callable[[Progress], None] | None = None,
    groups: Any = None,
) -> Search:
    """Trains every row a little and few to the end: successive halving, judged on side branches.

        rung j of m ends at T_j = T / 2 keep^(m - j) of T epochs:
          advance every row to T_j - B_j, B_j = ceil(T_j / 3), on the schedule of T epochs
          copy it, go B_j epochs on the schedule of T_j, score the copy, throw it away
          keep the best share `keep` by the mean over folds and seeds, all rows of strength 0, and
          from the first rung on one control

    Strong decay looks bad while the learning rate is high, so a row is judged as the run that ends
    at the rung, and goes on from before. One that reaches the end has been the run that
    `cross_validate` trains. A row leaves with all its folds and seeds; diverged ones leave first.
    Rows without decay never leave: the best of them is what decay is held against, and which that
    is a rung does not know, as a high learning rate fits early and overfits late. The control is
    of those that would leave the first rung, with the leader's numbers but more decay, the middle
    one: what decay does shows late, and where the control is better at the end than all that the
    rungs kept, by more than its error over folds, the search is not to be believed.

    Rows that left are NaN in `scores`; `scores.rungs` says where. They lose, but count: intervals
    hold for them too (see `choose`), and `confident_set` holds those that could not be told from
    the best of their rung. Where the leader of a rung is known to be worse at the end, `doubts`
    says so. There is no cache.

    Args:
      stepwise: the training, by pieces. Its `make_run(inputs, num_steps)` gives one run whose
        learning rate's schedule is so long: state and optimiser state go from one to another.
      grid, data, folds, key, num_seeds, groups: as for `cross_validate`.
      keep: the share of the rows that survives a rung, rounded up; 0 < keep < 1.
      rungs: how many, >= 1.
      value, rule: the score that decides, and how at the end, see `choose`.
      trials_at_once: as for `cross_validate`. When fewer lanes are left the program narrows.
      mesh: splits the lanes over its devices, all of this process.
      progress: called with a `Progress` after every rung; it counts whole trainings.

    Raises:
      ValueError: as `cross_validate`; for one fold, `keep` outside (0, 1), fewer rows than
        1 / keep, `rungs` below 1 or not below the epochs, an unknown score or rule, a mesh that
        spans processes; and when every row has diverged.

    Sources: Jamieson & Talwalkar 2016, arXiv:1502.07943; Li et al. 2018, arXiv:1603.06560.
    """
    watch, num_epochs = Stopwatch(), stepwise.num_epochs
    _check_data(stepwise, grid, data, folds, groups)
    check_positive_int("num_seeds", num_seeds, high=LARGEST_COUNT)
    _check_judges(stepwise, value, rule)
    plans = plan_rungs(checked_num_rows(grid), num_epochs, keep=keep, rungs=rungs)
    at_once = _at_once(trials_at_once, mesh)
    folds = closed_up(folds)
    lanes = Lanes(stepwise, grid, data, folds, key, num_seeds, at_once, mesh)
    scores = _halved(lanes, plans, HeldOut.of(data, folds, groups), value, keep, progress)
    choice = choose(scores, rule, value=value)
    cost = watch.cost(lanes.epochs_run / num_epochs, lanes.memory or None)
    return Search(scores, choice, cost, tuple(doubts(scores, value)), _reason(scores, num_epochs))


def _check_judges(stepwise: Stepwise, value: str, rule: str) -> None:
    check_one_of("rule", rule, RULES)
    if hasattr(stepwise.score, "measures"):
        check_one_of("value", value, getattr(stepwise.score, "measures"))  # noqa: B009


def _halved(
    lanes: Lanes,
    plans: list[Plan],
    held_out: HeldOut,
    value: str,
    keep: float,
    progress: Callable[[Progress], None] | None,
) -> Scores:
    """The scores of the rows that reach the end, and where the others left."""
    num_epochs, per_row = lanes.stepwise.num_epochs, lanes.num_seeds * len(lanes.folds.train)
    total = _planned(lanes.grid, plans, keep, num_epochs) * per_row
    report = functools.partial(_report, progress, time.perf_counter(), total, lanes)
    scores_of = functools.partial(_scores, lanes, held_out)
    report("compile", None)
    lanes.start()
    report("run", None)
    done, passed = 0, []
    for plan in plans:
        lanes.advance(plan.end - plan.branch - done, num_epochs)
        done = plan.end - plan.branch
        scores = scores_of(lanes.branch(plan.branch, plan.end))
        control = passed[-1].control if passed else None
        passed.append(judged_rung(plan, scores, lanes.rows, value, keep, control, not passed))
        went_on = {*passed[-1].kept, passed[-1].control} - {None}
        lanes.keep(np.array(sorted(went_on)))
        report("run", None)
    lanes.advance(num_epochs - done, num_epochs)
    scores = scores_of(lanes.finish())._replace(rungs=tuple(passed))
    report("run", scores)
    return scores


def plan_rungs(num_rows: int, num_epochs: int, *, keep: Any = KEEP, rungs: Any = 2) -> list[Plan]:
    """The rungs of a search, in order, see `halve`.

    Raises:
      ValueError: for `keep` outside (0, 1), fewer rows than 1 / keep, or a number of rungs below 1
        or not below the epochs.
    """
    check_number("keep", keep, low=0.0, exclusive_low=True)
    if keep >= 1:
        raise ValueError(
            f"`keep` must be below 1, the share of the rows that survives a rung; got keep={keep:g}"
            ". To train all of them, cross_validate."
        )
    if num_rows * keep < 1:
        raise ValueError(
            f"`grid` has {num_rows} rows, fewer than 1 / keep = {format_number(1 / keep)}: nothing "
            "would be gained by halving. Give more rows, or cross_validate."
        )
    most = num_epochs - 1
    check_positive_int("rungs", rungs)
    if rungs > most:
        raise ValueError(
            f"`rungs` must be below the number of epochs, {num_epochs}, so that each ends after "
            f"another epoch; got rungs={rungs}. Take fewer rungs or longer runs."
        )
    plans, last = [], num_epochs
    for left in range(rungs):
        # Each ends an epoch or more before the next.
        last = max(min(round(num_epochs * LAST * keep**left), last - 1), rungs - left)
        plans.append(Plan(last, math.ceil(last * BRANCH)))
    return plans[::-1]


def search_by_halving(problem: Problem) -> Search:
    """`halve` of a problem.

    Raises:
      ValueError: as `halve`, and for a problem whose runs cannot go part of the way.
    """
    how = {name: given for name, given in problem.how.items() if name != "cache"}
    return halve(
        _stepwise_of(problem),
        problem.grid,
        problem.data,
        problem.folds,
        key=problem.key,
        num_seeds=problem.num_seeds,
        value=problem.value,
        rule=problem.rule,
        **how,
    )


def plan_of_halving(problem: Problem) -> str:
    """What `search_by_halving` will train, in words.

    Raises:
      ValueError: as `search_by_halving`.
    """
    plans = plan_rungs(problem.num_rows, _stepwise_of(problem).num_epochs)
    counts = _counts(problem.grid, plans, KEEP)
    steps, zeros = " -> ".join(map(str, counts)), int(_without_decay(problem.grid).sum())
    of_zero = f", all {zeros} of strength 0 to the end" if zeros else ""
    ends = ", ".join(str(plan.end) for plan in plans)
    control = ", and a control" * _has_control(problem.grid)
    return (
        f"About {trainings_of_halving(problem):.3g} trainings' worth: {steps} rows at rungs of "
        f"{ends} epochs{of_zero}{control}, x {len(problem.folds.train)} folds x "
        f"{problem.num_seeds} seeds"
    )


def trainings_of_halving(problem: Problem) -> float:
    """About how many whole trainings it takes: a part of a run counts as that part.

    Raises:
      ValueError: as `search_by_halving`.
    """
    num_epochs = _stepwise_of(problem).num_epochs
    plans = plan_rungs(problem.num_rows, num_epochs)
    lanes = len(problem.folds.train) * problem.num_seeds
    return _planned(problem.grid, plans, KEEP, num_epochs) * lanes


def _stepwise_of(problem: Problem) -> Stepwise:
    if problem.stepwise is None:
        raise ValueError(
            "halving needs `stepwise`, a training that can be advanced and dropped; this problem "
            "has none. Choose by the grid."
        )
    return problem.stepwise


def _check_data(stepwise: Stepwise, grid: Any, data: Batch, folds: Folds, groups: Any) -> None:
    def as_one_run(hparams, train, valid, key):
        """Of which only the form is looked at."""

    check_given(as_one_run, grid, data)
    check_folds(data, folds)
    check_groups(groups, data, folds)
    if len(folds.train) < 2:
        raise ValueError(
            "`folds` must be two or more: a row leaves on its mean over them, and one fold says "
            "nothing of its error. Make them with kfold(key, num_examples, num_folds=5)."
        )
    check_positive_int("num_epochs", stepwise.num_epochs, high=LARGEST_COUNT)
    check_positive_int("batch_size", stepwise.batch_size)


def _at_once(trials_at_once: int | None, mesh: Mesh | None) -> int:
    if mesh is not None and any(d.process_index != jax.process_index() for d in mesh.devices.flat):
        raise ValueError(
            "`mesh` must hold devices of this process alone: the states of the lanes wait on its "
            "host. Give each process a search of its own, or cross_validate."
        )
    if trials_at_once is None:
        trials_at_once = 1 if platform_of(mesh) == "cpu" else 16  # As `cross_validate`.
    check_positive_int("trials_at_once", trials_at_once)
    return trials_at_once


def _num_kept(num_rows: Any, keep: float) -> int:
    return min(int(num_rows), math.ceil(num_rows * keep - 1e-9))


def _without_decay(grid: GridLike) -> np.ndarray:
    """`[row]`: the rows of strength 0."""
    rows = checked_num_rows(grid)
    return np.asarray(grid["strength"]) == 0 if "strength" in [*grid] else np.zeros(rows, bool)


def _counts(grid: GridLike, plans: list[Plan], keep: float) -> list[int]:
    """How many rows there are before each rung and after the last, if none diverges."""
    zeros = int(_without_decay(grid).sum())
    rivals = [checked_num_rows(grid) - zeros]
    for _ in plans:
        rivals.append(_num_kept(rivals[-1], keep))
    return [zeros + number for number in rivals]


def _has_control(grid: GridLike) -> bool:
    """Whether one may be trained beside those that the rungs keep."""
    return "strength" in [*grid] and len(np.unique(np.asarray(grid["strength"]))) > 2


def _planned(grid: GridLike, plans: list[Plan], keep: float, num_epochs: int) -> float:
    """Whole trainings, of one fold and seed."""
    first, *later = _counts(grid, plans, keep)
    counts = [first, *(rows + _has_control(grid) for rows in later)]
    epochs, done = 0, 0
    for rows, plan in zip(counts, plans, strict=False):
        epochs += rows * (plan.end - done)
        done = plan.end - plan.branch
    return (epochs + counts[-1] * (num_epochs - done)) / num_epochs


def judged_rung(
    plan: Plan,
    scores: Scores,
    rows: np.ndarray,
    value: str,
    keep: float,
    control: int | None = None,
    chooses_control: bool = True,
) -> Rung:
    """Who survives a rung; `scores` has the rows that left before as NaN.

    `control` is that of the rung before, None once it has diverged; the first `chooses_control`.

    Raises:
      ValueError: if every row has diverged.
    """
    judged = Judged.of(scores, value)
    means = judged.means
    zero = _without_decay(scores.grid)
    finite = rows[np.isfinite(means[rows])]
    rivals = finite[~zero[finite] & (finite != (-1 if control is None else control))]
    num_rivals = (~zero[rows]).sum() - (control is not None)
    best = rivals[np.argsort(means[rivals], kind="stable")][: _num_kept(num_rivals, keep)]
    kept = sorted({*best.tolist(), *finite[zero[finite]].tolist()})
    if not kept:
        raise ValueError(
            f"every row diverged before the rung at epoch {plan.end} (no finite score): lower the "
            "learning rate or the largest strengths, or check the data."
        )
    if chooses_control:
        control = control_of(scores.grid, means, finite, kept)
    if control is not None and not np.isfinite(means[control]):
        control = None
    unclear = [row for row in confident_rows([judged])[0] if row not in [*kept, control]]
    told = scores.mean()
    means = (told[value] if isinstance(told, dict) else jax.tree.leaves(told)[0])[rows]
    return Rung(plan.end, plan.branch, rows.tolist(), means.tolist(), kept, unclear, control)


def _scores(lanes: Lanes, held_out: HeldOut, found: TrialScores) -> Scores:
    """`Scores` of all rows, NaN where a row has left."""
    num_rows, rows = checked_num_rows(lanes.grid), lanes.rows

    def by_row(leaf):
        """`[fold, lane, ...] -> [row, fold, seed, ...]`"""
        leaf = leaf.reshape(leaf.shape[0], len(rows), lanes.num_seeds, *leaf.shape[2:])
        whole = np.full((num_rows, *leaf.swapaxes(0, 1).shape[1:]), np.nan, leaf.dtype)
        whole[rows] = leaf.swapaxes(0, 1)
        return whole

    means, examples = jax.tree.map(by_row, found)
    up = getattr(lanes.stepwise.score, "higher_is_better", {})
    directions = {f"{part}{name}": d for part in ("", "train_") for name, d in up.items()}
    return Scores(lanes.grid, means, held_out._replace(values=examples), directions)


def _report(
    progress: Callable[[Progress], None] | None,
    start: float,
    total: float,
    lanes: Lanes,
    stage: str,
    scores: Scores | None,
) -> None:
    if progress is None:
        return
    done = int(lanes.epochs_run / lanes.stepwise.num_epochs)
    elapsed = time.perf_counter() - start
    whole = done if scores is not None else max(int(total), done)
    progress(Progress(stage, done, whole, elapsed, None, scores))


def _reason(scores: Scores, num_epochs: int) -> str:
    """`27 rows -> 9 after 3 -> 3 after 15 of 30 epochs.`, and what could not be told."""
    steps = [f"{len(rung.kept)} after {rung.num_epochs}" for rung in scores.rungs]
    words = f"{len(scores.rungs[0].rows)} rows -> {' -> '.join(steps)} of {num_epochs} epochs."
    unclear = sum(len(rung.unclear) for rung in scores.rungs)
    if unclear:
        words += f" {unclear} of those that left could not be told from the best of their rung."
    return words


def doubts(scores: Scores, value: str) -> Iterator[str]:
    """Whether a rung led astray: who led there is known to be worse at the end."""
    judged = Judged.of(scores, value)
    told = confident_rows([judged._replace(rungs=())])[0]
    sign = -1 if judged.higher_is_better else 1
    for rung in scores.rungs:
        leader = rung.rows[int(np.nanargmin(sign * np.array(rung.means)))]
        if leader in told or not np.isfinite(judged.means[leader]):
            continue
        numbers = ", ".join(
            f"{name.replace('_', ' ')} {format_number(float(np.asarray(axis)[leader]))}"
            for name, axis in scores.grid.items()
        )
        yield (
            f"Do not believe this: {numbers} led at the rung of {rung.num_epochs} epochs and is "
            "worse at the end, by more than the noise, so what left there may be better than what "
            "was kept. Take later rungs, a larger `keep`, or the whole grid."
        )
    if control_is_better(judged.losses, judged.means, scores.rungs):
        control, rung = scores.rungs[-1].control, scores.rungs[0]
        strength = format_number(float(np.asarray(scores.grid["strength"])[control]))
        yield (
            f"Do not believe this: strength {strength} would have left at the rung of "
            f"{rung.num_epochs} epochs; as the control it was trained to the end, and is better "
            "there than all that the rungs kept. Decay shows later than they judge: choose by "
            "slopes or by the whole grid, or take later rungs."
        )
