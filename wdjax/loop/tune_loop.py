"""A run of days whose numbers are chosen on the way: `tune`, batch by batch."""

import contextlib
import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PyTree

from wdjax.checkpoint import check_same_config
from wdjax.data.stream import Stream, as_stream, prefetch_to_device
from wdjax.interfaces import check_batch
from wdjax.loop.pieces import WINDOWS, PieceLoop, pieces_of
from wdjax.loop.settings import Evaluation, Logging, Saving
from wdjax.loop.signals import Signals
from wdjax.loop.train_loop import NonFiniteError, Numbers
from wdjax.loop.watchdog import HangWatch
from wdjax.memory import memory_of
from wdjax.run import Run, skip_non_finite
from wdjax.runners import jit_step, shard_step
from wdjax.selection import tangents
from wdjax.selection.search import Stopwatch
from wdjax.selection.slopes import check_smooth
from wdjax.selection.tangents import Between, Moving
from wdjax.selection.tuning import Tuned
from wdjax.selection.windows import (
    Box,
    Window,
    check_moves,
    doubts_about,
    following,
    numbers_after,
    window_of,
)
from wdjax.step import Metrics, StepFn, TrainState
from wdjax.tables import format_number
from wdjax.types import Batch, Fit


class TunedState(NamedTuple):
    """A `TrainState`, the tangents beside it, and the numbers of its window."""

    step: Array
    """Within its window, as that of any run: a schedule may count by it."""
    params: PyTree
    opt_state: PyTree
    model_state: PyTree
    key: Any
    tangents: PyTree
    """Of all the fields above, as a `TrainState`."""
    hparams: dict[str, Array]

    @property
    def plain(self) -> TrainState:
        """Without tangents and numbers."""
        return TrainState(*(getattr(self, name) for name in TrainState._fields))


class TuneLoop(Iterable[tuple[int, Numbers]]):
    """`tune` over a stream: trains batch by batch and moves numbers between windows.

        loop = TuneLoop(make_run, losses_of, start, stream, held_out, key=key, windows=(5_000,) * 4)
        for step, metrics in loop:
            ...
        loop.tuned()

    What happens in a window, how numbers move between two, and what is doubted is said at `tune`;
    what happens between two steps, at `TrainLoop`. A window's order of examples is that of the
    stream, which goes on from window to window. Saved at any step, with its tangents, it is resumed
    bit for bit on as many devices.

    Args:
      make_run: `(inputs, num_steps) -> Run`, as in `Stepwise`; called once a length of window.
      losses_of: `(fit, batch) -> losses[example]`, such as `lambda fit, batch:
        score.by_example(fit, batch)["loss"]`.
      start: all numbers of the run, those that move above 0.
      stream: of the training part, as for `TrainLoop`; with a `mesh`, of batches that lie on it,
        as `prefetch_to_device` puts them there.
      held_out: called after every window: a fresh pass over the held-out part, such as
        `from_here(make_stream(source, batch_size=128))`.
      key: of the params and the step's randomness.
      windows: steps of each window, at least two windows.
      numbers, carried, within: see `tune`; `carried` is a share of a window's steps.
      annealed: whether the learning rate falls towards the end of a window; if not, it is doubted.
      epochs: those of each window, where it is to be told in epochs.
      mesh: the devices, along an axis `data`; None is one device.
      make_telemetry: `num_steps -> telemetry`, that of `Logging` for a window of so many steps;
        its state is a `TunedState`.
      evaluation, saving, logging, non_finite, max_skipped, watchdog: see `TrainLoop`. The states
        they see are `TunedState`s.

    Raises:
      ValueError: as `tune`, for an evaluation with `patience` (windows are not cut short), and as
        `TrainLoop`.
    """

    def __init__(
        self,
        make_run: Callable[[Any, int], Run],
        losses_of: Callable[[Fit, Batch], Array],
        start: Mapping[str, float],
        stream: Iterable,
        held_out: Callable[[], Iterable],
        *,
        key: Array,
        windows: Sequence[int],
        numbers: Sequence[str] = ("strength",),
        carried: float = 1.0,
        within: Box | None = None,
        annealed: bool = True,
        epochs: Sequence[int] | None = None,
        mesh: Mesh | None = None,
        make_telemetry: Callable[[int], Callable] | None = None,
        evaluation: Evaluation | None = None,
        saving: Saving | None = None,
        logging: Logging | None = None,
        non_finite: str = "stop",
        max_skipped: int = 100,
        watchdog: HangWatch | None = None,
    ):
        check_moves(start, numbers, windows, carried, within or {})
        if evaluation is not None and evaluation.patience is not None:
            raise ValueError(
                f"`patience` = {evaluation.patience}: a run that is tuned goes through all of its "
                "windows; leave it out."
            )
        self._watch = Stopwatch()
        self._make_run, self._losses_of, self._held_out = make_run, losses_of, held_out
        self._start, self._within, self._key = dict(start), dict(within or {}), key
        self.windows, self.numbers = tuple(windows), tuple(numbers)
        self._epochs = [None] * len(windows) if epochs is None else list(epochs)
        self._annealed, self._carried, self._mesh = annealed, carried, mesh
        self._stream: Stream = as_stream(stream)
        self._evaluation, self._logging = evaluation, logging
        self.saving = saving
        """May be set until the run begins."""
        self._watchdog = watchdog
        self._how = {"non_finite": non_finite, "max_skipped": max_skipped, "watchdog": watchdog}
        self.num_steps = sum(windows)
        self.done: list[Window] = []
        self.memory: int | None = None
        """Bytes of the step with tangents on each device, once `compile` was called."""
        self._num_held_out = 0
        self._pieces = [*pieces_of(self.windows, carried)]
        self._shapes = _shapes_of_first(self._stream)
        one = lambda leaf: np.zeros((1, *leaf.shape[1:]), leaf.dtype)
        self._inputs = jax.tree.map(one, self._shapes.inputs)
        self._run_of = functools.cache(functools.partial(make_run, self._inputs))
        self._begin_of = functools.cache(self._compiled_begin)
        self._step_of = functools.cache(self._compiled_step)
        self._telemetry_of = functools.cache(make_telemetry or (lambda num_steps: None))
        self._judge_of_batch = self._compiled_judge()
        self._check_smooth()
        self._now: PieceLoop | None = None

    @property
    def _loop(self) -> "PieceLoop":
        if self._now is None:
            self._now = self._piece(0, self._begun(0, None))
        return self._now

    # What a `TrainLoop` tells as well.

    @property
    def step(self) -> int:
        """How far it is."""
        return self._loop.step

    @property
    def state(self) -> TunedState:
        """Where it is."""
        return self._loop.state

    @property
    def saved_on(self) -> int | None:
        """The devices it was saved on, if it was resumed."""
        return self._loop.saved_on

    @property
    def skipped(self) -> int:
        """Batches that were left out, see `non_finite`."""
        return self._loop.skipped

    @property
    def empty(self) -> int:
        """Batches of which no example counted."""
        return self._loop.empty

    @property
    def trainings(self) -> float:
        """What it costs, in trainings of equal length."""
        carried = sum(p.end - p.begin for p in self._pieces if p.has_tangents)
        return 1 + len(self.numbers) * carried / self.num_steps

    def compile(self) -> int | None:
        """Compiles the step; the bytes that one without tangents takes on each device.

        Nothing is run; `memory` is that of the step with tangents.
        """
        state = jax.eval_shape(functools.partial(self._begun, 0, None))
        how: dict[str, Any] = {}
        if self._mesh is not None:
            whole, split = (NamedSharding(self._mesh, spec) for spec in (P(), P("data")))
            how = {"in_shardings": (whole, split), "out_shardings": whole}

        def used(step: Callable, state: Any) -> int | None:
            return memory_of(
                jax.jit(step, donate_argnums=0, **how).lower(state, self._shapes).compile()
            )

        self.memory = used(self._stepped(self.windows[0], True), state)
        run = self._run_of(self.windows[0])
        return used(skip_non_finite(functools.partial(run.step, self._start)), state.plain)

    def resume(self, *, may_differ: tuple[str, ...] = ()) -> int:
        """Goes to the newest whole checkpoint, as if the run had never stopped; gives its step.

        Raises:
          FileNotFoundError: if there is no checkpoint.
          DamagedCheckpointError: if none is whole.
          ValueError: as `TrainLoop.resume`, or if it was saved by a loop of other windows.
        """
        if self.saving is None:
            raise ValueError("to resume, give the run its `saving`: Saving(Checkpoints(folder)).")
        found = self.saving.checkpoints.restore(self._loop.state)
        check_same_config(found.facts["config"], self.saving.config, may_differ=may_differ)
        told = json.loads(found.facts["progress"].get(WINDOWS, "[]"))
        self.done = [Window.of_dict(one) for one in told]
        # A state at a window's end belongs to it: it is judged again.
        number = next(i for i, piece in enumerate(self._pieces) if found.step <= piece.end)
        if self._pieces[number].window != len(self.done) or found.step > self.num_steps:
            raise ValueError(
                f"`windows` = {self.windows}: the checkpoint of step {found.step} was saved in "
                f"window {len(self.done) + 1} of others; give the windows it was begun with."
            )
        self._now = self._piece(number, found.state)
        return self._now.go_on_from(found, may_differ)

    def __iter__(self) -> Iterator[tuple[int, Numbers]]:
        """Trains to the end of the last window.

        Raises:
          ValueError, CheckpointError, Preempted, KeyboardInterrupt, WriteError: as `TrainLoop`.
          NonFiniteError: as `non_finite` says, or if the held-out loss after a window is not
            finite.
        """
        with Signals() as signals:
            while True:
                self._loop.signals = signals
                yield from self._loop
                piece, state = self._pieces[self._loop.number], self._loop.state
                if piece.is_last_of_window:
                    self.done.append(self._judged(state))
                    if len(self.done) == len(self.windows):
                        return
                    state = self._begun(len(self.done), Between(state.params, state.model_state))
                before, self._now = self._loop, self._piece(self._loop.number + 1, state)
                self._loop.take_counts(before)
                if before.ending:
                    signals.leave(before.ending, before.step)

    def tuned(self) -> Tuned:
        """The result, once it has ended.

        Raises:
          ValueError: before that.
        """
        if len(self.done) < len(self.windows):
            raise ValueError(
                f"the run has ended {len(self.done)} of {len(self.windows)} windows: iterate over "
                "it to its end before asking for the result."
            )
        doubts = doubts_about(self.done, self.numbers, self._num_held_out, annealed=self._annealed)
        return Tuned(
            Fit(self.state.params, self.state.model_state, {}),
            self.done[-1].hparams,
            following(self.done, self.numbers),
            tuple(self.done),
            self._watch.cost(self.trainings, self.memory),
            tuple(doubts),
        )

    def _piece(self, number: int, state: TunedState) -> "PieceLoop":
        piece = self._pieces[number]
        steps = self.windows[piece.window]
        logging = self._logging
        if logging is not None and (telemetry := self._telemetry_of(steps)) is not None:
            logging = dataclasses.replace(logging, telemetry=telemetry)
        step = self._step_of(steps, piece.has_tangents)
        loop = PieceLoop(
            step,
            state,
            self._stream,
            num_steps=piece.end,
            evaluation=self._evaluation,
            saving=self.saving,
            logging=logging,
            **self._how,
        )
        loop.number, loop.step = number, piece.begin
        loop.windows = json.dumps([window.to_dict() for window in self.done])
        return loop

    def _compiled_step(self, num_steps: int, has_tangents: bool) -> Any:
        step = self._stepped(num_steps, has_tangents)
        return jit_step(step) if self._mesh is None else shard_step(step, self._mesh)

    def _stepped(self, num_steps: int, has_tangents: bool) -> StepFn:
        run = self._run_of(num_steps)

        def go(hparams: Any, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
            return skip_non_finite(functools.partial(run.step, hparams))(state, batch)

        def stepped(state: TunedState, batch: Batch) -> tuple[TunedState, Metrics]:
            if not has_tangents:
                plain, metrics = go(state.hparams, state.plain, batch)
                return TunedState(*plain, state.tangents, state.hparams), metrics
            moving = Moving(state.plain, state.tangents)
            moving, metrics = tangents.carry(go, self.numbers)(state.hparams, moving, batch)
            return TunedState(*moving.state, moving.tangents, state.hparams), metrics

        return stepped

    def _begun(self, index: int, between: Between | None) -> TunedState:
        """The state at the start of a window."""
        begin = self._begin_of(self.windows[index])
        hparams = numbers_after(self._start, self.numbers, self._within, self.done)
        # The params of before may lie on many devices, also of other processes.
        return begin(hparams, jax.device_get(between), np.uint32(index))

    def _compiled_begin(self, num_steps: int) -> Callable[..., TunedState]:
        run = self._run_of(num_steps)

        def begin(hparams: Any, between: Between | None, index: Any) -> TunedState:
            if between is None:
                first = run.init(hparams, self._inputs, self._key)
                between = Between(first.params, first.model_state)
            own_key = jax.random.fold_in(self._key, index)
            state = tangents.begin(run, hparams, self._inputs, self._key, own_key, between)
            pushed = tangents.still(state, len(self.numbers)).tangents
            return TunedState(*state, pushed, jax.tree.map(jnp.asarray, dict(hparams)))

        return jax.jit(begin)

    def _judged(self, state: TunedState) -> Window:
        """What the held-out part says at a window's end."""
        index = len(self.done)
        sharding = None if self._mesh is None else NamedSharding(self._mesh, P("data"))
        told = []
        with self._watchdog or contextlib.nullcontext():
            for batch in prefetch_to_device(self._held_out(), sharding=sharding):
                if self._watchdog is not None:
                    self._watchdog.begin(self.step, "judging a window")
                told.append(jax.device_get(self._judge_of_batch(state, batch)))
        if not told:
            raise ValueError(
                f"`held_out` gave no batch after window {index + 1}: each call must begin a pass "
                "anew, as those of `from_here(stream)` do."
            )
        losses, weights = (np.concatenate([one[i] for one in told]) for i in (0, 2))
        slopes = np.concatenate([one[1] for one in told], axis=1)
        counts = weights.reshape(len(weights), -1).sum(axis=1) > 0
        self._num_held_out = int(counts.sum())
        if not self._num_held_out:
            raise ValueError(
                "`held_out` has no example of weight above 0: nothing says how to move."
            )
        hparams = numbers_after(self._start, self.numbers, self._within, self.done)
        window = window_of(self._epochs[index], hparams, losses, slopes, weights, self.numbers)
        window = window._replace(num_steps=self.windows[index])
        if not math.isfinite(window.value.mean):
            at = ", ".join(f"{name} {format_number(hparams[name])}" for name in self.numbers)
            raise NonFiniteError(
                f"the held-out loss after window {index + 1} of {len(self.windows)}, at {at}, is "
                "not finite: begin at a smaller learning rate."
            )
        return window

    def _compiled_judge(self) -> Callable:
        def judge(state: TunedState, batch: Batch) -> tuple[Any, ...]:
            moving = Moving(state.plain, state.tangents)
            return *tangents.judge(self._losses_of, moving, batch), batch.weights

        if self._mesh is None:
            return jax.jit(judge)
        return jax.jit(judge, out_shardings=NamedSharding(self._mesh, P()))

    def _check_smooth(self) -> None:
        """One step is traced; nothing is run."""
        run = self._run_of(self.windows[0])
        numbers = {name: jnp.asarray(value) for name, value in self._start.items()}
        state = jax.eval_shape(functools.partial(self._begun, 0, None))
        moving = Moving(state.plain, state.tangents)
        plain = lambda numbers, moving, batch: run.step(numbers, moving.state, batch)[0]
        step = tangents.carry(run.step, self.numbers)
        check_smooth(plain, step, numbers, moving, self._shapes, name="tune")


def _shapes_of_first(stream: Stream) -> Batch:
    """Of the batch that comes next, which the stream will give again."""
    stands = stream.get_state()
    batch = next(stream, None)
    if batch is None:
        raise ValueError("`stream` holds no batch; give at least one.")
    check_batch("batch", batch)
    stream.set_state(stands)
    stream.close()
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), batch)
