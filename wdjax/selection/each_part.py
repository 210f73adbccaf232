"""A strength for every part: descent on their logarithms, judged on examples that had no say."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from wdjax.checks import check_positive_int
from wdjax.selection.choice import Gain, Judged
from wdjax.selection.cross_validation import Progress, cross_validate
from wdjax.selection.evidence import gains_by_example, gains_over_folds
from wdjax.selection.folds import Folds, folds_from_splits
from wdjax.selection.grids import GridLike, grid_product
from wdjax.selection.part_slopes import LEVEL, PartSlopes, checked_parts
from wdjax.selection.scores import Scores
from wdjax.selection.search import Cost, Stopwatch
from wdjax.selection.trials import FitAndScore
from wdjax.tables import Table
from wdjax.types import Batch

FIRST_STEP, LONGEST_STEP, REACH = np.log(4.0), np.log(32.0), np.log(1e3)
"""Of a part's log strength: the first step, the longest one, and how far from the start."""
SURE = 2.0
"""Standard errors of the slope at which a part takes its whole step; below, a share of it."""
NEAREST = np.log(1.1)
"""Where no part would move further, the descent ends."""

Row = Callable[[dict[str, float]], Scores]
"""Trains one row on the folds that choose: its scores with the slopes of the parts."""


class Step(NamedTuple):
    """One row of a descent."""

    strengths: dict[str, float]
    score: float
    slopes: PartSlopes
    kept: bool
    """Whether it was better than those before, so that the next step began there."""


class TunedParts(NamedTuple):
    """A strength for each part, and whether it is better than the one they shared."""

    start: dict[str, float]
    hparams: dict[str, float]
    """The row that the descent ended at; `start` if no part moved."""
    steps: tuple[Step, ...]
    gain: Gain | None
    """Over the start, on examples that did not choose; None if no part moved or a run diverged."""
    scores: Scores | None
    """Of the start and of the end on the folds that judge."""
    num_judged: int
    """Held-out examples that judge."""
    cost: Cost
    doubts: tuple[str, ...] = ()
    reason: str = ""

    @property
    def believed(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.doubts

    @property
    def better(self) -> bool:
        """Whether a strength for each part is known to be better than the one they shared."""
        return self.gain is not None and self.gain.verdict == "helps" and self.believed

    @property
    def verdict(self) -> str:
        """What may be said of it, in a sentence."""
        if self.gain is None:
            return "The parts keep the one strength they share: the descent found nothing better."
        words = {
            "helps": "A strength for each part is better than the one they share",
            "hurts": "A strength for each part is worse than the one they share",
            "equal": "A strength for each part scores what the one they share does",
            "unclear": "A strength for each part cannot be told from the one they share",
        }[self.gain.verdict]
        return (
            f"{words}: the paired gain is {self.gain.mean:.3g} ({self.gain.interval}), on "
            f"{self.num_judged} held-out examples that did not choose."
        )

    def table(self) -> Table:
        """One row a part: the strength it had, and the one found."""
        names = [name for name in self.start if name in self.steps[0].strengths]
        rows = tuple((name, self.start[name], self.hparams[name]) for name in names)
        return Table(("part", "shared", "its own"), rows, note=self.verdict)

    def __str__(self) -> str:
        told = (str(self.table()), *self.doubts, self.reason, f"Cost: {self.cost}.")
        return "\n".join(part for part in told if part)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and words."""
        gain = self.gain
        return {
            "start": self.start,
            "hparams": self.hparams,
            "steps": [{**step._asdict(), "slopes": step.slopes.to_dict()} for step in self.steps],
            "gain": None if gain is None else {**gain._asdict(), "verdict": gain.verdict},
            "num_judged": self.num_judged,
            "verdict": self.verdict,
            "cost": self.cost._asdict(),
            "doubts": list(self.doubts),
            "reason": self.reason,
        }


def tune_parts(
    fit_and_score: FitAndScore,
    start: Mapping[str, Any],
    data: Batch,
    folds: Folds,
    *,
    key: Array,
    parts: Any,
    num_seeds: int = 1,
    value: str = "loss",
    max_steps: int = 6,
    most: Mapping[str, float] | None = None,
    annealed: bool = True,
    **how: Any,
) -> TunedParts:
    """Gives each part its own strength, and judges that on examples which had no say in it.

    The folds are split: the last half (rounded down) judge, the others choose. No example that is
    held out by a fold that judges takes part in choosing, neither trained on nor held out. On
    those that choose, the descent goes from `start`, all parts at once,

        log strength_p <- log strength_p + step_p clip(z_p / 2, -1, 1)

    with z_p of `slopes_of_parts`: a part of which nothing is known stays. A step begins at a factor
    of 4; it doubles while the score falls and the slope keeps its sign, halves where that turns,
    and where the score rose, which is believed over every slope, the step is taken back and all
    halve. Then start and end are trained once more, as the folds that judge would have it (on all
    other examples, with runs of other keys), and compared as `choose` compares a row with zero:
    the only comparison, so that it claims falsely in 5 % of searches at most, however the parts
    were chosen. They are chosen from fewer examples than the start may have been, which costs them
    a little and helps no claim.

    Args:
      fit_and_score, start, data, folds, key, num_seeds, parts, value, how: as for
        `slopes_of_parts`; `start` is the one strength that they share. Three folds at least.
      max_steps: the most rows after the start, >= 1.
      most: `{part: the largest strength}`, such as one that leaves a weight its sign; by default
        1,000 times the start.
      annealed: whether the learning rate falls towards the end of a run; if not, it is doubted.

    Raises:
      ValueError: as `slopes_of_parts`; for fewer than three folds, or folds whose other examples
        do not fill them, a count below 1.

    Sources: Micaelli & Storkey 2021, arXiv:2007.09014, for signed steps that halve.
    """
    watch, names = Stopwatch(), checked_parts(start, parts, folds)
    check_positive_int("max_steps", max_steps)
    runs = _Runs(fit_and_score, dict(start), data, split_folds(folds), key, num_seeds, names, how)
    steps, reason = descend(runs.choose, start, names, value=value, max_steps=max_steps, most=most)
    kept = [step for step in steps if step.kept][-1]
    both = None if kept is steps[0] else runs.judge(kept.strengths)
    return TunedParts(
        {name: float(number) for name, number in start.items()},
        {name: float(number) for name, number in {**start, **kept.strengths}.items()},
        tuple(steps),
        None if both is None else gain_over_start(both, value),
        both,
        int((np.asarray(runs.judging.valid_mask) > 0).sum()),
        watch.cost(runs.trainings, runs.memory),
        _doubts(steps[0], value, annealed),
        reason,
    )


class _Runs:
    """What is trained: rows on the folds that choose, and two on those that judge."""

    def __init__(
        self,
        fit_and_score: FitAndScore,
        start: dict[str, Any],
        data: Batch,
        folds: tuple[Folds, Folds],
        key: Array,
        num_seeds: int,
        parts: tuple[str, ...],
        how: dict[str, Any],
    ):
        self.choosing, self.judging = folds
        self.trainings = 0
        self.memory: int | None = None
        self._fixed, self._start, self._parts = (fit_and_score, data), start, parts
        self._keys = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
        self._listener: Callable[[Progress], None] | None = how.get("progress")
        self._how = {**how, "num_seeds": num_seeds, "progress": self._hear}

    def choose(self, strengths: dict[str, float]) -> Scores:
        """One row, with its slopes."""
        grid = grid_product(**{**self._start, **strengths})
        self._count(self.choosing, 1 + len(self._parts))
        return self._train(grid, self.choosing, self._keys[0], slopes=self._parts)

    def judge(self, strengths: dict[str, float]) -> Scores:
        """The start, and the row beside it."""
        ends = self._start, {**self._start, **strengths}
        grid = {name: np.array([float(row[name]) for row in ends]) for name in self._start}
        self._count(self.judging, 2)
        return self._train(grid, self.judging, self._keys[1])

    def _train(self, grid: GridLike, folds: Folds, key: Array, **more: Any) -> Scores:
        fit_and_score, data = self._fixed
        return cross_validate(fit_and_score, grid, data, folds, key=key, **self._how, **more)

    def _count(self, folds: Folds, each: int) -> None:
        self.trainings += len(folds.train) * self._how["num_seeds"] * each

    def _hear(self, event: Progress) -> None:
        if event.memory is not None:
            self.memory = max(event.memory, self.memory or 0)
        if self._listener is not None:
            self._listener(event)


def _doubts(start: Step, value: str, annealed: bool) -> tuple[str, ...]:
    """Why not to believe it, whatever it found."""
    doubts = () if annealed else (CONSTANT_RATE,)
    if not np.any([part.slope for part in start.slopes.parts]):
        doubts += (
            f"Do not believe this: {value} has no slopes, as a score that goes in steps (accuracy) "
            "has none; tune by a loss.",
        )
    return doubts


CONSTANT_RATE = (
    "Do not believe this: at a constant learning rate the slopes of single runs run away beyond "
    "the best strength; anneal it."
)


def split_folds(folds: Folds) -> tuple[Folds, Folds]:
    """The folds that choose, without any example held out by those that judge, and these.

    Raises:
      ValueError: for fewer than three folds, or if nothing is left to train on.
    """
    num_folds = len(folds.train)
    if num_folds < 3:
        raise ValueError(
            f"tuning parts needs three folds or more, two to choose on and one to judge on; got "
            f"{num_folds}."
        )
    split = num_folds - num_folds // 2
    train, train_mask, valid, valid_mask = map(np.asarray, folds)
    judged = np.unique(valid[split:][valid_mask[split:] > 0])
    pairs = []
    for fold in range(split):
        of = train[fold][train_mask[fold] > 0], valid[fold][valid_mask[fold] > 0]
        pairs.append([rows[~np.isin(rows, judged)] for rows in of])
    if any(not rows.size for pair in pairs for rows in pair):
        raise ValueError(
            "tuning parts sets aside the examples that the last half of the folds holds out, and "
            "nothing is left to choose on; give folds that hold out each example once (kfold)."
        )
    return folds_from_splits(map(tuple, pairs)), Folds(*(leaf[split:] for leaf in folds))


def descend(
    train: Row,
    start: Mapping[str, Any],
    parts: Sequence[str],
    *,
    value: str = "loss",
    max_steps: int = 6,
    most: Mapping[str, float] | None = None,
) -> tuple[list[Step], str]:
    """The rows of the descent of `tune_parts`, the start first, and why it ended.

    Raises:
      ValueError: for a score of unknown name or direction.
    """
    at = np.log([float(start[part]) for part in parts])
    low, high = at - REACH, at + REACH
    for index, part in enumerate(parts):
        if most is not None and part in most:
            high[index] = max(min(high[index], np.log(most[part])), at[index])
    length = np.full(len(parts), FIRST_STEP)
    steps: list[Step] = []
    best, best_losses, best_z = at, np.empty(0), np.empty(0)
    for count in range(max_steps + 1):
        strengths = (
            dict(zip(parts, np.exp(at).tolist(), strict=True))
            if count
            else {part: float(start[part]) for part in parts}
        )
        scores = train(strengths)
        judged, slopes = Judged.of(scores, value), PartSlopes.of(scores, parts, value=value)
        losses, z = judged.losses[0], np.nan_to_num(slopes.z)
        is_better = count == 0 or float(np.mean(best_losses - losses)) > 0  # NaN is no gain.
        score = float(losses.mean())
        score = -score if judged.higher_is_better else score
        steps.append(Step(strengths, score, slopes, is_better))
        if count == 0 and not np.isfinite(losses).all():
            return steps, "A run at the start diverged; nothing was tuned."
        if is_better:
            turned = z * best_z < 0 if count else np.zeros(len(parts), bool)
            if count:
                length = np.where(turned, length / 2, np.minimum(2 * length, LONGEST_STEP))
            best, best_losses, best_z = at, losses, z
        else:
            length = length / 2
        following = np.clip(best + length * np.clip(best_z / SURE, -1, 1), low, high)
        if np.abs(following - best).max() < NEAREST:
            return steps, "It stopped where no part would move further."
        at = following
    return steps, f"It stopped at the {max_steps} steps allowed."


def gain_over_start(both: Scores, value: str) -> Gain | None:
    """The paired gain of row 1 over row 0, with its 95 % interval; None if a run diverged."""
    judged = Judged.of(both, value)
    if not np.isfinite(judged.losses).all():
        return None
    if judged.each is not None and judged.held_out is not None:
        differences = judged.each[:1] - judged.each[1:]
        held_out = judged.held_out
        found = gains_by_example(differences, held_out.weights, held_out.groups, level=LEVEL)
    else:
        differences = judged.losses[:1] - judged.losses[1:]
        found = gains_over_folds(differences, level=LEVEL, overlap=judged.overlap)
    mean, low, high = (float(part[0]) for part in found[:3])
    return Gain(mean, low, high, LEVEL, 1, found.method)
