"""Windows of a run whose numbers move on the way: what each told, and where the next one is."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from wdjax.checks import check_number, check_one_of, check_positive_int
from wdjax.interfaces import check_batch
from wdjax.tables import Estimate, format_number
from wdjax.types import Batch

FIRST_STEP = math.log(4.0)
"""By how much a number moves after the first window, in logarithm."""
MOVED = 1.0
"""How many of its errors a slope must be from zero to move its number: below, its sign is nearly a
coin's, and a move is long."""
TOLD = 2.0
"""How many of its errors a slope must be from zero to be told from it."""
TOO_STEEP = 2.0
"""How many times the largest held-out loss a slope in a logarithm may be."""
LEAST_HELD_OUT = 30
"""Held-out examples below which the error of a slope is itself not known."""

NUM_WINDOWS = 4
"""Of `plan_windows`: three moves, of a factor of 4 each at first, reach a best ten times off."""

Box = Mapping[str, tuple[float, float]]
"""The least and the most of each number."""


class Window(NamedTuple):
    """One window: the numbers it was run at, and what the held-out part said at its end."""

    num_epochs: int | None
    """None of a stream that was not told them."""
    hparams: dict[str, float]
    value: Estimate
    """The mean held-out loss, with the error of its examples."""
    slopes: dict[str, Estimate]
    """Of the mean held-out loss in the logarithm of each number, with the error of its examples."""
    train_losses: tuple[float, ...] = ()
    """Per epoch, the mean loss of the training batches; of a stream none."""
    num_steps: int | None = None
    """Of a stream."""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, of which `of_dict` makes it again, to the last bit."""
        return {
            "num_epochs": self.num_epochs,
            "hparams": self.hparams,
            "value": self.value._asdict(),
            "slopes": {name: slope._asdict() for name, slope in self.slopes.items()},
            "train_losses": list(self.train_losses),
            "num_steps": self.num_steps,
        }

    @classmethod
    def of_dict(cls, told: Mapping[str, Any]) -> "Window":
        """What `to_dict` gave."""
        slopes = {name: Estimate(**slope) for name, slope in told["slopes"].items()}
        return cls(
            told["num_epochs"],
            dict(told["hparams"]),
            Estimate(**told["value"]),
            slopes,
            tuple(told["train_losses"]),
            told.get("num_steps"),
        )


def plan_windows(num_epochs: int) -> tuple[int, ...]:
    """The epochs of four windows, alike but for the last, which has the rest as well.

    Shorter ones see too little of the run: at their ends less decay looks better than it is.

    Raises:
      ValueError: for fewer epochs than windows.
    """
    check_positive_int("epochs", num_epochs)
    if num_epochs < NUM_WINDOWS:
        raise ValueError(
            f"`epochs` = {num_epochs}: a run that is tuned goes through {NUM_WINDOWS} windows of "
            f"an epoch or more; take at least {NUM_WINDOWS}."
        )
    each = num_epochs // NUM_WINDOWS
    return (*[each] * (NUM_WINDOWS - 1), num_epochs - (NUM_WINDOWS - 1) * each)


def window_of(
    num_epochs: int | None,
    hparams: Mapping[str, float],
    losses: Any,
    slopes: Any,
    weights: Any,
    numbers: Sequence[str],
    train_losses: Any = (),
) -> Window:
    """A window, of the held-out losses `[example]` and their slopes `[number, example]`."""
    weights = np.asarray(weights, np.float64)
    weights = weights.reshape(len(weights), -1).sum(axis=1)
    told = {name: _mean(slopes[i], weights) for i, name in enumerate(numbers)}
    of_training = tuple(np.asarray(train_losses, np.float64).tolist())
    return Window(num_epochs, dict(hparams), _mean(losses, weights), told, of_training)


def numbers_after(
    start: Mapping[str, float], numbers: Sequence[str], within: Box, done: Sequence[Window]
) -> dict[str, float]:
    """The numbers of the window that follows on those `done`: each has moved against the sign of
    its slope where that was larger than its error, by a step that was halved whenever the sign
    turned."""
    hparams = dict(start)
    for name in numbers:
        low, high = within.get(name, (0.0, math.inf))
        move = _Move(math.log(start[name]), _log(low), _log(high))
        for window in done:
            move = move.after(window.slopes[name])
        hparams[name] = math.exp(move.at)
    return hparams


def following(done: Sequence[Window], numbers: Sequence[str]) -> dict[str, float]:
    """The numbers for the next run: where slopes of opposite signs cross zero on a line in the
    logarithm, else those of the last window.

    The slopes are those of the last two windows; if they have one sign, the two nearest that were
    told from zero, more being better at the smaller number and less at the larger.
    """
    following = dict(done[-1].hparams)
    for name in numbers:
        pair = tuple(done[-2:])
        if len(pair) < 2 or not pair[0].slopes[name].mean * pair[1].slopes[name].mean < 0:
            pair = _bracket(done, name)
        if pair is not None:
            (x, a), (y, b) = ((math.log(w.hparams[name]), w.slopes[name].mean) for w in pair)
            following[name] = math.exp(x + (y - x) * a / (a - b))
    return following


def _told(window: Window, name: str) -> bool:
    slope = window.slopes[name]
    return abs(slope.mean) > TOLD * slope.standard_error


def _bracket(done: Sequence[Window], name: str) -> tuple[Window, Window] | None:
    """The window of the largest number at which more, and that of the smallest at which less is
    known to be better; None where the first is not below the second."""
    at = lambda window: window.hparams[name]
    more = [w for w in done if _told(w, name) and w.slopes[name].mean < 0]
    less = [w for w in done if _told(w, name) and w.slopes[name].mean > 0]
    if not more or not less or at(max(more, key=at)) >= at(min(less, key=at)):
        return None
    return max(more, key=at), min(less, key=at)


def doubts_about(
    done: Sequence[Window], numbers: Sequence[str], num_held_out: int, *, annealed: bool = True
) -> list[str]:
    """Why the numbers are not to be believed, a sentence each."""
    doubts, largest = [], max(abs(w.value.mean) for w in done)
    if num_held_out < LEAST_HELD_OUT:
        doubts.append(
            f"Do not believe this: {num_held_out} held-out examples are too few to know the error "
            f"of a slope; hold out {LEAST_HELD_OUT} or more."
        )
    if not annealed:
        doubts.append(
            "Do not believe this: at a constant learning rate the slopes of single runs run away "
            "beyond the best strength; anneal it, or choose by the grid."
        )
    for name in numbers:
        doubt = _doubt_about(name, done, largest, num_held_out)
        doubts += [doubt] if doubt else []
    return doubts


def _doubt_about(name: str, done: Sequence[Window], largest: float, num_held_out: int) -> str:
    steepest = max(abs(w.slopes[name].mean) for w in done) / largest
    if not math.isfinite(steepest) or steepest > TOO_STEEP:
        return (
            f"Do not believe this: a slope in log {name} is {steepest:.3g} times the largest loss, "
            "as where a run is chaotic; anneal the learning rate, or take a smaller one."
        )
    told = [window for window in done if _told(window, name)]
    if not told:
        return (
            f"Do not believe this: no slope in log {name} could be told from zero on "
            f"{num_held_out} held-out examples; hold out more, or it does not matter here."
        )
    last = told[-1]
    at = format_number(last.hparams[name])
    wanted = "larger" if last.slopes[name].mean < 0 else "smaller"
    if len({np.sign(w.slopes[name].mean) for w in told}) == 1:
        if last is done[-1]:
            return (
                f"Do not believe this: the slope in log {name} kept its sign to the end, so the "
                f"best is {wanted} than {at}; begin the next run there."
            )
        return (
            f"Do not believe this: no slope in log {name} was told from zero but where {wanted} is "
            f"better, the last at {at}. What a window shows of the rest of a run is too little to "
            "say how far that goes; choose by `wdjax select`, or begin the next run there."
        )
    if _bracket(done, name) is None:
        return (
            f"Do not believe this: the slopes in log {name} contradict each other from window to "
            f"window; the last that was told from zero, at {at}, says that {wanted} is better. "
            "Begin the next run there."
        )
    return ""


def check_windows(
    start: Mapping[str, float],
    numbers: Any,
    windows: Any,
    carried: Any,
    within: Box,
    valid: Batch,
) -> None:
    """Checks what `tune` is told, before anything runs.

    Raises:
      ValueError: as `check_moves`, or for a held-out part without weight.
    """
    check_moves(start, numbers, windows, carried, within)
    check_batch("valid", valid)
    if not (np.asarray(valid.weights) > 0).any():
        raise ValueError("`valid` has no example of weight above 0: nothing says how to move.")


def check_moves(
    start: Mapping[str, float], numbers: Any, windows: Any, carried: Any, within: Box
) -> None:
    """Checks the windows, and what moves between them.

    Raises:
      ValueError: for fewer than two windows or one without an epoch, a number that is not in
        `start`, not above 0 or outside `within`, named twice or not at all, or a share outside
        (0, 1].
    """
    if isinstance(numbers, str) or not numbers or len(set(numbers)) < len(tuple(numbers)):
        raise ValueError(f"`numbers` must be one or more names in a tuple, each once: {numbers!r}.")
    if len(windows) < 2:
        raise ValueError(
            f"`windows` must be at least two, got {len(windows)}: a number moves between windows."
        )
    for num_epochs in windows:
        check_positive_int("windows", num_epochs)
    check_number("carried", carried, low=0.0, exclusive_low=True, high=1.0)
    for name in numbers:
        check_one_of("numbers", name, start)
        check_number(f"start[{name!r}]", start[name], low=0.0)
        low, high = within.get(name, (0.0, math.inf))
        if not (0 < start[name] and low <= start[name] <= high):
            raise ValueError(
                f"`start[{name!r}]` must be above 0 and within [{low:g}, {high:g}], got "
                f"{start[name]:g}: a number moves in its logarithm."
            )


class _Move(NamedTuple):
    """Where a number's logarithm is, its bounds, and how it moves."""

    at: float
    low: float
    high: float
    step: float = FIRST_STEP
    sign: float = 0.0

    def after(self, slope: Estimate) -> "_Move":
        """The next: against the slope, half as far where its sign has turned."""
        # An infinite slope has no error, and moves nothing.
        if not abs(slope.mean) > MOVED * slope.standard_error or math.isinf(slope.mean):
            return self
        sign = math.copysign(1.0, slope.mean)
        step = self.step / 2 if sign * self.sign < 0 else self.step
        at = min(max(self.at - step * sign, self.low), self.high)
        return self._replace(at=at, step=step, sign=sign)


def _mean(values: Any, weights: np.ndarray) -> Estimate:
    """The weighted mean over examples, and its standard error."""
    values, share = np.asarray(values, np.float64), weights / weights.sum()
    mean = float(np.sum(np.where(share > 0, share * values, 0.0)))
    apart = np.where(share > 0, share * (values - mean), 0.0)
    count = max(int((share > 0).sum()), 2)
    return Estimate(mean, float(np.sqrt(np.sum(apart**2) * count / (count - 1))))


def _log(number: float) -> float:
    return math.log(number) if number > 0 else -math.inf
