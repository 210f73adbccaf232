"""Numbers that are chosen within the one run that is trained: windows, each with its own slopes."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from wdjax.interfaces import check_batch
from wdjax.memory import memory_of
from wdjax.run import Run
from wdjax.selection import tangents
from wdjax.selection.search import Cost, Stopwatch
from wdjax.selection.slopes import check_smooth
from wdjax.selection.tangents import Between
from wdjax.selection.windows import (
    Box,
    Window,
    check_windows,
    doubts_about,
    following,
    numbers_after,
    window_of,
)
from wdjax.tables import Table, format_number
from wdjax.training import advance
from wdjax.types import Batch, Fit

WHICH_ERROR = "the error is that of which examples were held out; another run would differ by more"

NEAR = ", which is near the best, to about a factor of three, and not at it"
"""Of what may be believed; see `Tuned.sentences`."""


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
        """A row a window: its epochs (or steps) and numbers, the held-out loss, its slopes."""
        names = list(self.windows[0].slopes)
        in_steps = self.windows[0].num_epochs is None
        rows = tuple(
            (
                w.num_steps if in_steps else w.num_epochs,
                *w.hparams.values(),
                w.value,
                *(w.slopes[name] for name in names),
            )
            for w in self.windows
        )
        headers = ("steps" if in_steps else "epochs", *self.windows[0].hparams, "held-out loss")
        return Table(
            (*headers, *(f"slope in log {name}" for name in names)), rows, note=WHICH_ERROR
        )

    def __str__(self) -> str:
        return "\n".join([str(self.table()), *self.doubts, *self.sentences()])

    def sentences(self) -> list[str]:
        """The slopes at the end and their errors, what the next run should use, the cost.

        Of 13 believed ends of `experiments/choosing`, 10 lay within a factor of 3 of the whole
        grid's strength, so near is what they are said to be.
        """
        slopes = ", ".join(f"{slope} in log {n}" for n, slope in self.windows[-1].slopes.items())
        following = ", ".join(f"{n} {format_number(v)}" for n, v in self.following.items())
        return [
            f"Slope of the held-out loss at the end: {slopes} ({WHICH_ERROR}).",
            f"The next run should use {following}{NEAR if self.believed else ''}.",
            f"Cost: {self.cost}.",
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and words; without the params."""
        return {
            "hparams": self.hparams,
            "following": self.following,
            "windows": [window.to_dict() for window in self.windows],
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

    over params, model state and optimiser state, from zero in each window, l_i the held-out losses
    at its end.
    Then each number whose slope is larger than its error moves against its sign, `log number -=
    step * sign(slope)`; the step is halved whenever the sign has turned. The last window moves
    nothing: its params are the result, its slope says what the next run should do.

    A slope is that of a shift in its window alone, from where the run stands: through several warm
    restarts slopes run away. A window sees less of what a strength does than a whole run.

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
        (0, 1].
      within: `{number: (low, high)}`, the least and the most.
      on_window: called with each window when it ends.

    Returns:
      A `Tuned`; its cost counts `1 + len(numbers) * carried` trainings.

    Raises:
      ValueError: for fewer than two windows or one without an epoch, a number that is not in
        `start`, not above 0 or outside `within`, named twice or not at all, a share outside
        (0, 1], a held-out part without weight, a run that takes the sign of something or cannot be
        differentiated forward (see `check_slopes`), a first window that diverges, and as
        `advance`.

    Sources: Franceschi et al. 2017 (forward mode, updates on the way); Micaelli & Storkey 2021
    (signs, steps halved when they turn, one number shared over a window).
    """
    moved = {"windows": windows, "numbers": numbers, "carried": carried, "within": within}
    data = {"train": train, "valid": valid, "batch_size": batch_size}
    tuning = Tuning(make_run, losses_of, start, key=key, **data, **moved)
    while not tuning.ended:
        window = tuning.advance()
        if window is not None and on_window is not None:
            on_window(window)
    return tuning.tuned()


class Tuning:
    """`tune`, window by window: what it needs, how far it is, and how it goes on.

        tuning = Tuning(...)
        while not tuning.ended:
            tuning.advance()
        tuning.tuned()

    Between two windows `between` and `done` are all that the rest depends on: a run that was
    stopped goes on by `resume` of both, bit for bit.

    Args:
      make_run, losses_of, start, train, valid, key, windows, batch_size, numbers, carried, within:
        see `tune`.
      annealed: whether the learning rate falls towards the end of a window; if not, it is doubted.

    Raises:
      ValueError: as `tune`.
    """

    def __init__(
        self,
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
        within: Box | None = None,
        annealed: bool = True,
    ):
        check_windows(start, numbers, windows, carried, within or {}, valid)
        check_batch("train", train)
        self._watch = Stopwatch()
        self._make_run, self._losses_of = make_run, losses_of
        self._start, self._within = dict(start), dict(within or {})
        self._train, self._valid, self._key = train, valid, key
        self._batch_size, self._carried, self._annealed = batch_size, carried, annealed
        self.windows, self.numbers = tuple(windows), tuple(numbers)
        self._compiled: dict[int, Any] = {}
        self.done: list[Window] = []
        self._first = make_run(train.inputs, 1)
        self._between: Between | None = None
        self._diverged = ""
        self._check_smooth()

    @property
    def between(self) -> Between:
        """What goes on into the next window."""
        if self._between is None:
            begun: Between = jax.jit(self._at_start)()
            self._between = begun
        return self._between

    @property
    def shapes(self) -> Between:
        """Of `between`; nothing is run."""
        return jax.eval_shape(self._at_start)

    @property
    def trainings(self) -> float:
        """What it costs, in trainings of equal length."""
        carried = sum(map(self._with_tangent, self.windows))
        return 1 + len(self.numbers) * carried / sum(self.windows)

    @property
    def memory(self) -> int | None:
        """Bytes of the largest program compiled so far, by the compiler's own analysis."""
        return max(filter(None, map(memory_of, self._compiled.values())), default=None)

    @property
    def ended(self) -> bool:
        """Whether the last window is done, or one diverged."""
        return len(self.done) == len(self.windows) or bool(self._diverged)

    def compile(self) -> int | None:
        """Compiles the windows, one program a length; the bytes that one without tangents takes.

        Nothing is run; `memory` is that of the largest.
        """
        for num_epochs in self.windows:
            self._program(num_epochs)
        shortest = min(self.windows)
        plain = functools.partial(self._window, shortest, ())
        return memory_of(jax.jit(plain).lower(*self._given(self.shapes)).compile())

    def resume(self, between: Between, done: Sequence[Window]) -> None:
        """Goes to where these two were taken from a run that was told the same."""
        self._between, self.done = between, list(done)

    def advance(self) -> Window | None:
        """Runs the next window; None if the run diverged in it, which ends it before."""
        num_epochs = self.windows[len(self.done)]
        hparams = self._hparams()
        program = self._program(num_epochs)
        between, losses, slopes, train_losses = program(*self._given(self.between))
        weights = self._valid.weights
        window = window_of(num_epochs, hparams, losses, slopes, weights, self.numbers, train_losses)
        if not math.isfinite(window.value.mean):
            at = ", ".join(f"{name} {format_number(hparams[name])}" for name in self.numbers)
            self._diverged = (
                f"the run diverged in window {len(self.done) + 1} of {len(self.windows)}, at {at}. "
                "The params are those before it; begin at a smaller learning rate."
            )
            return None
        self._between = between
        self.done.append(window)
        return window

    def tuned(self) -> Tuned:
        """The result, once it has ended.

        Raises:
          ValueError: if the first window diverged.
        """
        if not self.done:
            raise ValueError(f"`start`: {self._diverged}")
        num_held_out = int((np.asarray(self._valid.weights) > 0).sum())
        doubts = [f"Do not believe this: {self._diverged}"] if self._diverged else []
        doubts += doubts_about(self.done, self.numbers, num_held_out, annealed=self._annealed)
        return Tuned(
            Fit(self.between.params, self.between.model_state, {}),
            self.done[-1].hparams,
            following(self.done, self.numbers),
            tuple(self.done),
            self._watch.cost(self.trainings, self.memory),
            tuple(doubts),
        )

    def _check_smooth(self) -> None:
        """One step is traced; nothing is run."""
        run, batch = self._first, jax.tree.map(lambda x: x[: self._batch_size], self._train)
        numbers = {name: jnp.asarray(value) for name, value in self._start.items()}

        def begun(key: Array) -> tangents.Moving:
            inputs = self._inputs(self._train)
            return tangents.still(run.init(self._start, inputs, key), len(self.numbers))

        def plain(numbers: Any, moving: tangents.Moving, batch: Batch) -> Any:
            return run.step(numbers, moving.state, batch)[0]

        moving = jax.eval_shape(begun, self._key)
        step = tangents.carry(run.step, self.numbers)
        check_smooth(plain, step, numbers, moving, batch, name="tune")

    def _hparams(self) -> dict[str, float]:
        return numbers_after(self._start, self.numbers, self._within, self.done)

    def _given(self, between: Between) -> tuple[Any, ...]:
        index = jnp.uint32(len(self.done))
        return self._hparams(), between, self._key, index, self._train, self._valid

    def _program(self, num_epochs: int) -> Any:
        if num_epochs not in self._compiled:
            window = functools.partial(self._window, num_epochs, self.numbers)
            lowered = jax.jit(window).lower(*self._given(self.shapes))
            self._compiled[num_epochs] = lowered.compile()
        return self._compiled[num_epochs]

    def _at_start(self) -> Between:
        state = self._first.init(self._start, self._inputs(self._train), self._key)
        return Between(state.params, state.model_state)

    def _with_tangent(self, num_epochs: int) -> int:
        """Of a window's epochs, those over which tangents are carried."""
        return max(1, round(num_epochs * self._carried))

    def _inputs(self, train: Batch) -> Any:
        return jax.tree.map(lambda x: x[: self._batch_size], train.inputs)

    def _window(
        self,
        num_epochs: int,
        numbers: tuple[str, ...],
        hparams: Mapping[str, Any],
        between: Between,
        key: Array,
        index: Array,
        train: Batch,
        valid: Batch,
    ) -> tuple[Between, Array, Array, Array]:
        """What is at a window's end, the held-out losses and slopes there, the training losses."""
        steps = num_epochs * (train.weights.shape[0] // self._batch_size)
        run = self._make_run(train.inputs, steps)
        own_key = jax.random.fold_in(key, index)

        def go(hparams: Any, state: Any, num_epochs: int) -> tuple[Any, Array]:
            state, told = advance(
                run,
                hparams,
                state,
                train,
                num_epochs,
                batch_size=self._batch_size,
                key=own_key,
            )
            return state, told["loss"]

        state = tangents.begin(run, hparams, self._inputs(train), key, own_key, between)
        with_tangent = self._with_tangent(num_epochs) if numbers else 0
        before, losses = num_epochs - with_tangent, []
        if before:
            state, told = go(hparams, state, before)
            losses.append(told)
        if not numbers:
            fit = Fit(state.params, state.model_state, {})
            held_out, slopes = self._losses_of(fit, valid), jnp.zeros(0)
        else:
            moving = tangents.still(state, len(numbers))
            (state, pushed), told = tangents.carry(go, numbers)(hparams, moving, with_tangent)
            held_out, slopes = tangents.judge(
                self._losses_of, tangents.Moving(state, pushed), valid
            )
            losses.append(told)
        between = Between(state.params, state.model_state)
        return between, held_out, slopes, jnp.concatenate(losses)
