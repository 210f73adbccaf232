"""Numbers that are chosen within the one run that is trained: windows, each with its own slopes."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from wdjax.checks import check_number, check_one_of, check_positive_int
from wdjax.interfaces import check_batch
from wdjax.memory import memory_of
from wdjax.run import Run, run_keys
from wdjax.selection.search import Cost, Stopwatch
from wdjax.step import TrainState
from wdjax.tables import Estimate, Table, format_number
from wdjax.training import advance
from wdjax.types import Batch, Fit, is_inexact

FIRST_STEP = math.log(4.0)
"""By how much a number moves after the first window, in logarithm."""
TOLD = 2.0
"""How many of its errors a slope must be from zero to be told from it."""
TOO_STEEP = 2.0
"""How many times the largest held-out loss a slope in a logarithm may be."""
WHICH_ERROR = "the error is that of which examples were held out; another run would differ by more"


class Window(NamedTuple):
    """One window: the numbers it was run at, and what the held-out part said at its end."""

    num_epochs: int
    hparams: dict[str, float]
    value: Estimate
    """The mean held-out loss, with the error of its examples."""
    slopes: dict[str, Estimate]
    """Of the mean held-out loss in the logarithm of each number, with the error of its examples."""


class Tuned(NamedTuple):
    """A trained run whose numbers were moved on the way."""

    fit: Fit
    """The params and the model's state at the end of the last window."""
    hparams: dict[str, float]
    """The numbers of the last window."""
    following: dict[str, float]
    """The numbers that the next run should use: where the last two windows' slopes, of opposite
    signs, cross zero on a line, else those of the last."""
    windows: tuple[Window, ...]
    cost: Cost
    doubts: tuple[str, ...]
    """Why not to believe it, as in `Search`."""

    @property
    def believed(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.doubts

    def table(self) -> Table:
        """A row a window: its epochs and numbers, the held-out loss, a slope for each number."""
        names = list(self.windows[0].slopes)
        rows = tuple(
            (w.num_epochs, *w.hparams.values(), w.value, *(w.slopes[name] for name in names))
            for w in self.windows
        )
        headers = ("epochs", *self.windows[0].hparams, "held-out loss")
        return Table(
            (*headers, *(f"slope in log {name}" for name in names)), rows, note=WHICH_ERROR
        )

    def __str__(self) -> str:
        following = ", ".join(f"{n} {format_number(v)}" for n, v in self.following.items())
        told = f"The next run should use {following}."
        return "\n".join([str(self.table()), *self.doubts, told, f"Cost: {self.cost}."])

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and words; without the params."""
        return {
            "hparams": self.hparams,
            "following": self.following,
            "windows": [
                {
                    "num_epochs": w.num_epochs,
                    "hparams": w.hparams,
                    "value": w.value._asdict(),
                    "slopes": {name: slope._asdict() for name, slope in w.slopes.items()},
                }
                for w in self.windows
            ],
            "cost": self.cost._asdict(),
            "doubts": list(self.doubts),
        }


def tune(
    make_run: Callable[[Any, int], Run],
    losses_of: Callable[[Fit, Batch], Array],
    start: Mapping[str, float],
    train: Batch,
    valid: Batch,
    *,
    key: Array,
    windows: Sequence[int],
    batch_size: int,
    numbers: Sequence[str] = ("strength",),
    carried: float = 1.0,
    within: Mapping[str, tuple[float, float]] | None = None,
    on_window: Callable[[Window], None] | None = None,
) -> Tuned:
    """Trains one run and moves some of its numbers on the way, by the slopes of a held-out loss.

    The run is a row of windows, each a whole schedule of the learning rate, annealed where the
    run's is, from the params of the window before; the optimiser's state begins anew (a warm
    restart). Beside it goes one tangent a number,

        Z <- (d step / d state) Z + d step / d log number,      slope = mean_i grad l_i . Z

    over params, model state and optimiser state, l_i the held-out losses at the end of the window.
    Then each number moves against the sign of its slope, `log number -= step * sign(slope)`; the
    step is halved whenever the sign has turned. The last window moves nothing: its params are the
    result, its slope says what the next run should do.

    A slope is that of the run so far in a shift of all windows' numbers alike; a window shorter
    than the run sees less of what a strength does in the long run than the whole run does.

    Args:
      make_run: `(inputs, num_steps) -> Run`, as in `Stepwise`; called once a length of window.
      losses_of: `(fit, batch) -> losses[example]`, such as `lambda fit, batch:
        score.by_example(fit, batch)["loss"]`.
      start: all numbers of the run, those that move above 0.
      train, valid: the training part and the held-out part; the second is never trained on.
      key: of the params, the order and the step's randomness.
      windows: epochs of each window, at least two.
      batch_size: examples a step.
      numbers: which numbers move.
      carried: the share of each window's epochs, its last, over which tangents are carried, in
        (0, 1]; below 1 they begin at zero in each window.
      within: `{number: (low, high)}`, the least and the most.
      on_window: called with each window when it ends.

    Returns:
      A `Tuned`; its cost counts `1 + len(numbers) * carried` trainings.

    Raises:
      ValueError: for fewer than two windows or one without an epoch, a number that is not in
        `start`, not above 0 or outside `within`, named twice or not at all, a share outside
        (0, 1], a held-out part without weight, and as `advance`.

    Sources: Franceschi et al. 2017 (forward mode, updates on the way); Micaelli & Storkey 2021
    (signs, steps halved when they turn, one number shared over a window).
    """
    box = _checked(start, numbers, windows, carried, within or {}, valid)
    check_batch("train", train)
    watch, numbers = Stopwatch(), tuple(numbers)
    programs = _Programs(make_run, losses_of, train, valid, batch_size, numbers, carried)
    moves = {name: _Move(math.log(start[name]), *box[name]) for name in numbers}
    state, done, doubts = _go_through(programs, dict(start), moves, windows, key, on_window)
    if not done:
        raise ValueError(f"`start`: {doubts[0].removeprefix('Do not believe this: ')}")
    doubts += _doubts(done, numbers, int((np.asarray(valid.weights) > 0).sum()))
    cost = watch.cost(1 + len(numbers) * carried, programs.memory)
    fit = Fit(state.params, state.model_state, {})
    return Tuned(fit, done[-1].hparams, _following(done, numbers), tuple(done), cost, tuple(doubts))


def _go_through(
    programs: "_Programs",
    start: dict[str, float],
    moves: "dict[str, _Move]",
    windows: Sequence[int],
    key: Array,
    on_window: Callable[[Window], None] | None,
) -> tuple["_State", list[Window], list[str]]:
    """The state and the windows up to the end, or to the last before the run diverged."""
    state = programs.begin(start, key)
    done: list[Window] = []
    for index, num_epochs in enumerate(windows):
        hparams = start | {name: math.exp(move.at) for name, move in moves.items()}
        after, window = programs.run(hparams, state, num_epochs, key, index)
        if not math.isfinite(window.value.mean):
            return (
                state,
                done,
                [
                    f"Do not believe this: the run diverged in window {index + 1} of "
                    f"{len(windows)}, at {_in_words(hparams, list(moves))}. The params are those "
                    "before it; begin at a smaller learning rate."
                ],
            )
        state = after
        done.append(window)
        if on_window is not None:
            on_window(window)
        moves = {name: move.after(window.slopes[name].mean) for name, move in moves.items()}
    return state, done, []


class _Move(NamedTuple):
    """Where a number's logarithm is, its bounds, and how it moves."""

    at: float
    low: float
    high: float
    step: float = FIRST_STEP
    sign: float = 0.0

    def after(self, slope: float) -> "_Move":
        """The next: against the slope, half as far where its sign has turned."""
        sign = float(np.sign(slope)) if math.isfinite(slope) else self.sign
        step = self.step / 2 if sign * self.sign < 0 else self.step
        at = min(max(self.at - step * sign, self.low), self.high)
        return self._replace(at=at, step=step, sign=sign or self.sign)


class _State(NamedTuple):
    """What goes from window to window."""

    params: PyTree
    model_state: PyTree
    tangents: tuple[Array, ...]
    """Of the inexact leaves of both, `[number, ...]` each."""


class _Programs:
    """One compiled program a length of window."""

    def __init__(self, make_run, losses_of, train, valid, batch_size, numbers, carried):
        self._make_run, self._losses_of = make_run, losses_of
        self._train, self._valid = train, valid
        self._batch_size, self._numbers, self._carried = batch_size, numbers, carried
        self._compiled: dict[int, Any] = {}
        self.memory: int | None = None

    def begin(self, hparams: dict[str, float], key: Array) -> _State:
        """The params before the first step; no number has moved them."""
        run = self._make_run(self._train.inputs, 1)
        state = jax.jit(run.init)(hparams, self._inputs(), key)
        leaves, _ = _inexact((state.params, state.model_state))
        zeros = tuple(jnp.zeros((len(self._numbers), *x.shape), x.dtype) for x in leaves)
        return _State(state.params, state.model_state, zeros)

    def run(self, hparams, state: _State, num_epochs: int, key: Array, index: int):
        """The state at the end of a window, and what the held-out part says there."""
        given = (hparams, state, key, jnp.uint32(index))
        if num_epochs not in self._compiled:
            program = jax.jit(functools.partial(self._window, num_epochs)).lower(*given).compile()
            self._compiled[num_epochs] = program
            self.memory = max(filter(None, (self.memory, memory_of(program))), default=None)
        after, losses, slopes = self._compiled[num_epochs](*given)
        told = _window(num_epochs, hparams, losses, slopes, self._valid, self._numbers)
        return after, told

    def _inputs(self) -> Any:
        return jax.tree.map(lambda x: x[: self._batch_size], self._train.inputs)

    def _window(self, num_epochs: int, hparams, state: _State, key: Array, index: Array):
        steps = num_epochs * (self._train.weights.shape[0] // self._batch_size)
        run = self._make_run(self._train.inputs, steps)
        own_key = jax.random.fold_in(key, index)
        with_tangent = max(1, round(num_epochs * self._carried))
        go = functools.partial(
            advance, run, train=self._train, batch_size=self._batch_size, key=own_key
        )

        def begun(params, model_state) -> TrainState:
            # The same first params in every window, in case the optimiser's state remembers them.
            fresh = run.init(hparams, self._inputs(), key)
            _, _, step_key = run_keys(own_key)
            return fresh._replace(params=params, model_state=model_state, key=step_key)

        first = begun(state.params, state.model_state)
        tangents = state.tangents
        if with_tangent < num_epochs:
            first, _ = go(hparams, first, num_epochs=num_epochs - with_tangent)
            tangents = tuple(map(jnp.zeros_like, tangents))
        leaves, rebuilt = _inexact((first.params, first.model_state))

        def end(logs, leaves):
            # At 0 it is the number itself, to the last bit.
            moved = {name: hparams[name] * jnp.exp(log) for name, log in logs.items()}
            params, model_state = rebuilt(leaves)
            there, _ = go(
                {**hparams, **moved},
                first._replace(params=params, model_state=model_state),
                num_epochs=with_tangent,
            )
            losses = self._losses_of(Fit(there.params, there.model_state, {}), self._valid)
            at_end = (there.params, there.model_state)
            # Leaves that are no floats have no tangent and go beside.
            return (_inexact(at_end)[0], losses), at_end

        zeros = {name: jnp.zeros_like(jnp.asarray(hparams[name])) for name in self._numbers}
        each = jnp.eye(len(self._numbers))

        def push(which, tangent):
            along = {n: which[i].astype(zeros[n].dtype) for i, n in enumerate(self._numbers)}
            (_, losses), pushed, at_end = jax.jvp(
                end, (zeros, leaves), (along, tangent), has_aux=True
            )
            return losses, at_end, *pushed

        losses, (params, model_state), tangents, slopes = jax.vmap(
            push, out_axes=(None, None, 0, 0)
        )(each, tangents)
        return _State(params, model_state, tangents), losses, slopes


def _inexact(tree: PyTree) -> tuple[tuple[Array, ...], Callable[[Sequence[Array]], PyTree]]:
    """The floating-point leaves, and what puts others into their places."""
    leaves, structure = jax.tree.flatten(tree)
    places = [i for i, leaf in enumerate(leaves) if is_inexact(leaf)]

    def rebuilt(new: Sequence[Array]) -> PyTree:
        filled = list(leaves)
        for place, leaf in zip(places, new, strict=True):
            filled[place] = leaf
        return jax.tree.unflatten(structure, filled)

    return tuple(leaves[i] for i in places), rebuilt


def _window(
    num_epochs: int,
    hparams: dict[str, float],
    losses: Array,
    slopes: Array,
    valid: Batch,
    numbers: tuple[str, ...],
) -> Window:
    weights = np.asarray(valid.weights, np.float64)
    weights = weights.reshape(len(weights), -1).sum(axis=1)
    told = {name: _mean(slopes[i], weights) for i, name in enumerate(numbers)}
    return Window(num_epochs, hparams, _mean(losses, weights), told)


def _mean(values: Any, weights: np.ndarray) -> Estimate:
    """The weighted mean over examples, and its standard error."""
    values, share = np.asarray(values, np.float64), weights / weights.sum()
    mean = float(np.sum(np.where(share > 0, share * values, 0.0)))
    apart = np.where(share > 0, share * (values - mean), 0.0)
    count = max(int((share > 0).sum()), 2)
    return Estimate(mean, float(np.sqrt(np.sum(apart**2) * count / (count - 1))))


def _following(windows: list[Window], numbers: tuple[str, ...]) -> dict[str, float]:
    following = dict(windows[-1].hparams)
    if len(windows) > 1:
        for name in numbers:
            (x, a), (y, b) = (
                (math.log(w.hparams[name]), w.slopes[name].mean) for w in windows[-2:]
            )
            if a * b < 0:
                following[name] = math.exp(x + (y - x) * a / (a - b))
    return following


def _doubts(windows: list[Window], numbers: tuple[str, ...], num_held_out: int) -> list[str]:
    """Why the numbers are not to be believed."""
    doubts, largest = [], max(abs(w.value.mean) for w in windows)
    for name in numbers:
        slopes = [w.slopes[name] for w in windows]
        steepest = max(abs(s.mean) for s in slopes) / largest
        signs = {np.sign(s.mean) for s in slopes}
        if not math.isfinite(steepest) or steepest > TOO_STEEP:
            doubts.append(
                f"Do not believe this: a slope in log {name} is {steepest:.3g} times the "
                "largest loss, as where a run is chaotic; anneal the learning rate, or take a "
                "smaller one."
            )
        elif not any(abs(s.mean) > TOLD * s.standard_error for s in slopes):
            doubts.append(
                f"Do not believe this: no slope in log {name} could be told from zero on "
                f"{num_held_out} held-out examples; hold out more, or it does not matter here."
            )
        elif len(signs) == 1 and abs(slopes[-1].mean) > TOLD * slopes[-1].standard_error:
            wanted = "larger" if slopes[-1].mean < 0 else "smaller"
            doubts.append(
                f"Do not believe this: the slope in log {name} kept its sign to the end, so the "
                f"best is {wanted} than {format_number(windows[-1].hparams[name])}; begin the next "
                "run there."
            )
    return doubts


def _in_words(hparams: Mapping[str, float], numbers: Sequence[str]) -> str:
    return ", ".join(f"{name} {format_number(hparams[name])}" for name in numbers)


def _checked(
    start: Mapping[str, float],
    numbers: Any,
    windows: Any,
    carried: Any,
    within: Mapping[str, tuple[float, float]],
    valid: Batch,
) -> dict[str, tuple[float, float]]:
    """The logarithms of the least and the most of each number."""
    if isinstance(numbers, str) or not numbers or len(set(numbers)) < len(tuple(numbers)):
        raise ValueError(f"`numbers` must be one or more names in a tuple, each once: {numbers!r}.")
    if len(windows) < 2:
        raise ValueError(
            f"`windows` must be at least two, got {len(windows)}: a number moves between windows."
        )
    for num_epochs in windows:
        check_positive_int("windows", num_epochs)
    check_number("carried", carried, low=0.0, exclusive_low=True, high=1.0)
    box = {}
    for name in numbers:
        check_one_of("numbers", name, start)
        check_number(f"start[{name!r}]", start[name], low=0.0)
        low, high = within.get(name, (0.0, math.inf))
        if not (0 < start[name] and low <= start[name] <= high):
            raise ValueError(
                f"`start[{name!r}]` must be above 0 and within [{low:g}, {high:g}], got "
                f"{start[name]:g}: a number moves in its logarithm."
            )
        box[name] = (math.log(low) if low > 0 else -math.inf, math.log(high))
    check_batch("valid", valid)
    if not (np.asarray(valid.weights) > 0).any():
        raise ValueError("`valid` has no example of weight above 0: nothing says how to move.")
    return box
