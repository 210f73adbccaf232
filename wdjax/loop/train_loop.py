"""A run of days: batches streamed, evaluated, logged, saved, and resumed bit for bit."""

import contextlib
import itertools
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from wdjax.checkpoint import Checkpoints, Restored, check_same_config
from wdjax.checks import check_one_of, check_positive_int
from wdjax.data.stream import as_stream, prefetch_to_device
from wdjax.loop.log import RunLog
from wdjax.loop.signals import Preempted as Preempted
from wdjax.loop.signals import Signals
from wdjax.loop.watchdog import HangWatch
from wdjax.runners import RunFn
from wdjax.step import Metrics, TrainState
from wdjax.training import ScoreFn
from wdjax.types import Batch, Fit, wide

Evaluate = Callable[[TrainState], Mapping[str, float]]
"""`state -> {name: number}`, on whatever data it was built with."""

Numbers = Mapping[str, Any]
"""`{name: number}`: a step's metrics, still on the device, and an evaluation's."""


class NonFiniteError(ArithmeticError):
    """A step's loss or gradient was not finite."""


class TrainLoop(Iterable[tuple[int, Numbers]]):
    """Trains batch by batch; iterate over it for `(step, metrics)`.

        loop = TrainLoop(jit_step(step), state, stream, num_steps=10_000)
        for step, metrics in loop:
            ...
        loop.state

    `metrics` are the step's, still on the device, and after an evaluation its numbers with
    `valid_` before their names. Leave the iteration whenever you like; what else happens, happens
    between two steps: evaluating, saving, logging, stopping early.

    On SIGTERM (a preempted machine) and on the first Ctrl-C the step is finished, the state is
    saved, and the process ends with status 143, or KeyboardInterrupt goes on; the second one is
    immediate. `jax.distributed` takes SIGTERM for itself: then all processes stop after the same
    step, whichever got it.

    Args:
      run_step: a compiled step, `jit_step(step)` or `shard_step(step, mesh)`. Under
        `non_finite="skip"` the step must be a `skip_non_finite(...)`, and under "stop" it had
        better be: `state` is then without the batch that went wrong.
      state: where to begin, as `init_state` gives it.
      stream: a `Stream`, or anything iterable of `(inputs, targets[, weights])`.
      num_steps: the step after which the run is done.
      evaluate: called with the state every `evaluate_every` steps and after the last.
      evaluate_every: by default only after the last step.
      measure: the name in `evaluate`'s result that says which state is best: lower is better.
      patience: stop after so many evaluations without a better `measure`.
      checkpoints: where to save; at the end, when preempted, when the best so far was found,
        and every `save_every` steps.
      save_every: steps between saves.
      config: what the run was told, saved with it and compared when it is resumed.
      log: a file, or a `RunLog`, to which `(step, metrics)` goes as JSON lines every `log_every`
        steps, and every evaluation. What it holds of later steps than the one to begin after is
        cut off.
      log_every: steps between lines.
      telemetry: `(state, batch) -> tree of scalars`, called before the first step, and the first
        after each `evaluate_every`, with what that step will see; it goes to the log, under
        `telemetry`.
      non_finite: "stop" raises at the first loss or gradient that is not finite; "skip" leaves
        the whole update out, counts it in `metrics["skipped_total"]`, and raises when there were
        more than `max_skipped`.
      max_skipped: how many batches in all may be skipped.
      watch: says where every thread stands when no step finishes for too long, be it for want of
        data, of a device, or of a disk. The time of whoever iterates does not count.

    Warns:
      RuntimeWarning: at the first batch whose weights are all zero, by its number: its data loss
        is 0, and only penalty and decay act. `empty` counts such batches.
    """

    def __init__(
        self,
        run_step: RunFn,
        state: TrainState,
        stream: Iterable,
        *,
        num_steps: int,
        evaluate: Evaluate | None = None,
        evaluate_every: int | None = None,
        measure: str = "loss",
        patience: int | None = None,
        checkpoints: Checkpoints | None = None,
        save_every: int | None = None,
        config: Mapping[str, Any] | None = None,
        log: str | os.PathLike[str] | RunLog | None = None,
        log_every: int = 10,
        telemetry: Callable[[TrainState, Batch], Any] | None = None,
        non_finite: str = "stop",
        max_skipped: int = 100,
        watch: HangWatch | None = None,
    ):
        check_positive_int("num_steps", num_steps)
        check_positive_int("log_every", log_every)
        check_positive_int("max_skipped", max_skipped)
        check_one_of("non_finite", non_finite, ("stop", "skip"))
        for name, value in (
            ("evaluate_every", evaluate_every),
            ("patience", patience),
            ("save_every", save_every),
        ):
            if value is not None:
                check_positive_int(name, value)
        if evaluate is None and (patience is not None or evaluate_every is not None):
            raise ValueError("`patience` and `evaluate_every` need `evaluate`: give what to run.")
        if telemetry is not None and log is None:
            raise ValueError("`telemetry` needs `log`: give the file it is to go to.")
        if save_every is not None and checkpoints is None:
            raise ValueError("`save_every` needs `checkpoints`: give Checkpoints(folder).")
        self._run_step, self._stream = run_step, as_stream(stream)
        self.num_steps, self._evaluate, self._every = num_steps, evaluate, evaluate_every
        self._measure, self._patience = measure, patience
        self._checkpoints, self._save_every = checkpoints, save_every
        self._config = dict(config or {})
        log = log if log is None or isinstance(log, RunLog) else RunLog(log)
        self._log = log if jax.process_index() == 0 else None
        self._log_every, self._telemetry = log_every, telemetry
        self._non_finite, self._max_skipped = non_finite, max_skipped
        self._watch = watch
        # Strong types, as those of a restored state: a weak one may promote differently.
        self.state: TrainState = jax.tree.map(_strong, state)
        self.step = 0
        self.best_step: int | None = None
        self.best_score = math.inf
        self.skipped = self.empty = 0
        self.stopped_early = False
        self.saved_on: int | None = None
        self._worse = 0
        self._best: TrainState | None = None
        self._resumed = False
        self._unsettled: tuple[int, Metrics, bool] | None = None

    def resume(self, *, may_differ: tuple[str, ...] = ()) -> int:
        """Goes to the newest whole checkpoint, as if the run had never stopped; gives its step.

        On the devices and with the versions it was saved with, what follows is the same bit for
        bit; on another number of devices than `saved_on` to rounding.

        Args:
          may_differ: names in `config` that need not be what they were.

        Raises:
          FileNotFoundError: if there is no checkpoint.
          DamagedCheckpointError: if none is whole.
          ValueError: if config or data differ, by name, or it is of another model, by leaf.
        """
        if self._checkpoints is None:
            raise ValueError("to resume, give the run its `checkpoints`.")
        found = self._checkpoints.restore(self.state)
        check_same_config(found.facts["config"], self._config, may_differ=may_differ)
        if found.facts["data"]:
            self._stream.set_state(found.facts["data"])
        self._take_over(found)
        return self.step

    def best_state(self) -> TrainState:
        """The state of the lowest `measure`: of the checkpoint, if there are checkpoints.

        Raises:
          ValueError: if no evaluation gave a finite number.
        """
        if self.best_step is None:
            raise ValueError(f"no evaluation gave a finite {self._measure!r}; there is no best.")
        if self._checkpoints is None:
            assert self._best is not None
            return self._best
        return self._checkpoints.restore(self.state, step=self.best_step).state

    def __iter__(self) -> Iterator[tuple[int, Numbers]]:
        """Trains to the end.

        Raises:
          ValueError: if the folder holds checkpoints and `resume` was not called, or the data
            end before the last step.
          NonFiniteError: as `non_finite` says, with the step.
          CheckpointError: if a save failed, at the next step.
          Preempted: after SIGTERM, saved.
          KeyboardInterrupt: after Ctrl-C, saved.
        """
        fresh = self.step == 0 and not self._resumed
        if fresh and self._checkpoints is not None and (earlier := self._checkpoints.steps()):
            raise ValueError(
                f"{str(self._checkpoints.folder)!r} holds checkpoints up to step {earlier[-1]}: "
                "call resume() to go on from there, or choose another folder."
            )
        if self._log is not None:
            # A run killed before its first checkpoint begins anew, and so does its log.
            self._log.cut_after(self.step)
        with Signals() as signals, self._watch or contextlib.nullcontext():
            try:
                yield from self._steps(signals)
            finally:
                self._stream.close()
                if self._log is not None:
                    self._log.close()
                if self._checkpoints is not None:
                    self._checkpoints.wait()

    def _steps(self, signals: Signals) -> Iterator[tuple[int, Numbers]]:
        block = jax.process_count() > 1 and jax.default_backend() == "cpu"
        while self.step < self.num_steps and not self.stopped_early:
            self._begin("waiting for data")
            batch = next(self._stream, None)
            if batch is None:
                raise ValueError(
                    f"the data end after {self.step} of {self.num_steps} steps; give more "
                    "epochs (num_epochs=None never ends), or ask for fewer steps."
                )
            self._begin("training")
            self._look_at_parts(batch)
            self.state, metrics = self._run_step(self.state, batch)
            if block:
                # Two CPU processes of several devices dead-lock on JAX 0.10 when steps queue up.
                jax.block_until_ready(metrics)
            self.step += 1
            # Only now is the step before looked at: the devices are never without work.
            self._settle()
            last = self.step == self.num_steps
            self._unsettled = self.step, metrics, last or self.step % self._log_every == 0
            numbers = self._evaluated(last)
            ending = signals.asked(self.step)
            if self._checkpoints is not None:
                self._checkpoints.check()
                due = self._save_every is not None and self.step % self._save_every == 0
                is_best = bool(numbers) and self.best_step == self.step
                if due or is_best or last or self.stopped_early or ending:
                    self._save(self.best_score if is_best else None)
            if last or self.stopped_early or ending:
                self._settle()
            if ending and not last:
                if self._checkpoints is not None:
                    self._checkpoints.wait()
                signals.leave(ending, self.step)
            skipped = {"skipped_total": self.skipped} if "skipped" in metrics else {}
            if self._watch is not None:
                self._watch.rest()
            yield self.step, {**metrics, **skipped, **numbers}

    def _begin(self, doing: str) -> None:
        if self._watch is not None:
            self._watch.begin(self.step, doing)

    def _look_at_parts(self, batch: Batch) -> None:
        """The telemetry of the step to come, if it is due; before it, since it takes the state."""
        due = self.step % self._every == 0 if self._every is not None else self.step == 0
        if self._telemetry is None or not due:
            return
        self._settle()
        telemetry = jax.device_get(self._telemetry(self.state, batch))
        if self._log is not None:
            self._log.write(self.step + 1, {"telemetry": telemetry})

    def _settle(self) -> None:
        """Looks at the step before: was it finite, is it to be logged?"""
        if self._unsettled is None:
            return
        (step, metrics, is_logged), self._unsettled = self._unsettled, None
        if "skipped" not in metrics and self._non_finite == "skip":
            raise ValueError(
                '`non_finite`="skip" needs a step that can: skip_non_finite(make_train_step(...)).'
            )
        # At a step that is not logged two scalars leave the device, on their way together.
        looked_at = ("skipped" if "skipped" in metrics else "loss", "denominator")
        wanted = metrics if is_logged and self._log is not None else looked_at
        seen = jax.device_get({name: metrics[name] for name in wanted if name in metrics})
        bad = seen["skipped"] > 0 if "skipped" in seen else not math.isfinite(seen["loss"])
        self.skipped += bool(bad)
        if seen.get("denominator") == 0:
            self._note_empty(step)
        if is_logged and self._log is not None:
            skipped = {"skipped_total": self.skipped} if "skipped" in metrics else {}
            self._log.write(step, {**seen, **skipped})
        if not bad:
            return
        what = f"the loss or the gradient of step {step} (batch {step - 1}, from 0) is not finite"
        if self._non_finite == "stop":
            raise NonFiniteError(
                f"{what}: loss {float(metrics['loss']):g}. Look at that batch, lower the learning "
                'rate, or pass non_finite="skip".'
            )
        if self.skipped > self._max_skipped:
            raise NonFiniteError(
                f"{what}, and {self.skipped} batches were skipped, more than `max_skipped` = "
                f"{self._max_skipped}."
            )

    def _note_empty(self, step: int) -> None:
        self.empty += 1
        if self.empty == 1:
            warnings.warn(
                f"no example of step {step} (batch {step - 1}, from 0) counts: its weights are all "
                "zero, its data loss is 0, and only penalty and decay act. Later ones are counted.",
                RuntimeWarning,
                stacklevel=2,
            )

    def _evaluated(self, last: bool) -> dict[str, float]:
        """The evaluation's numbers, if one is due; keeps the best and counts the worse."""
        due = self._every is not None and self.step % self._every == 0
        if self._evaluate is None or not (due or last):
            return {}
        self._settle()
        self._begin("evaluating")
        found = {name: float(value) for name, value in self._evaluate(self.state).items()}
        if self._measure not in found:
            raise ValueError(
                f"`measure` {self._measure!r} is not what `evaluate` gives: {', '.join(found)}."
            )
        score = found[self._measure]
        if math.isfinite(score) and score < self.best_score:
            self.best_score, self.best_step, self._worse = score, self.step, 0
            if self._checkpoints is None:
                self._best = jax.tree.map(jnp.copy, self.state)
        else:
            self._worse += 1
            self.stopped_early = self._patience is not None and self._worse >= self._patience
        numbers = {f"valid_{name}": value for name, value in found.items()}
        if self._log is not None:
            self._log.write(self.step, numbers)
        return numbers

    def _save(self, score: float | None) -> None:
        assert self._checkpoints is not None
        self._settle()
        self._begin("saving")
        progress = {
            "best_step": self.best_step,
            "best_score": None if self.best_step is None else self.best_score,
            "worse": self._worse,
            "skipped": self.skipped,
            "empty": self.empty,
            "devices": _num_devices(self.state),
            "stopped_early": self.stopped_early,
        }
        self._checkpoints.save(
            self.step,
            self.state,
            data=self._stream.get_state(),
            config=self._config,
            progress=progress,
            score=score,
        )

    def _take_over(self, found: Restored) -> None:
        progress = found.facts["progress"]
        self.saved_on = progress.get("devices")
        self.state = jax.tree.map(_strong, found.state)
        self.step, self._resumed = found.step, True
        self.best_step = progress["best_step"]
        self.best_score = math.inf if self.best_step is None else progress["best_score"]
        self._worse, self.skipped = progress["worse"], progress["skipped"]
        self.empty = progress.get("empty", 0)
        self.stopped_early = progress["stopped_early"]


def make_evaluate(
    score: ScoreFn,
    make_batches: Callable[[], Iterable],
    *,
    sharding: Any = None,
    on_batch: Callable[[], None] | None = None,
) -> Evaluate:
    """Builds `evaluate(state) -> {name: weighted mean}` over data that comes in batches.

        value = sum_b W_b score_b / sum_b W_b,  W_b the sum of the batch's weights

    Args:
      score: such as `make_score(model, loss=cross_entropy)`.
      make_batches: called for every evaluation: a fresh pass over the data, such as
        `lambda: make_stream(source, batch_size=128)`.
      sharding: how a batch lies on the devices, see `prefetch_to_device`.
      on_batch: called before every batch, such as to tell a `HangWatch` that it goes on.

    Raises:
      ValueError: in `evaluate`, if nothing in the data counts.
    """

    @jax.jit
    def weighted(params, model_state, batch: Batch):
        total = jnp.sum(wide(batch.weights))
        values = score(Fit(params, model_state, {}), batch)
        values = values if isinstance(values, dict) else {"score": values}
        return {name: total * value for name, value in values.items()}, total

    def evaluate(state: TrainState) -> dict[str, float]:
        sums: dict[str, float] = {}
        total, pending = 0.0, None
        told = on_batch or (lambda: None)
        told()
        batches = prefetch_to_device(make_batches(), sharding=sharding)
        for batch in itertools.chain(batches, [None]):
            told()
            ahead = None if batch is None else weighted(state.params, state.model_state, batch)
            # Only now is the batch before looked at: the device is never without work.
            if pending is not None:
                values, weight = jax.device_get(pending)
                total += float(weight)
                for name, value in values.items():
                    sums[name] = sums.get(name, 0.0) + float(value)
            pending = ahead
        batches.close()
        if total == 0:
            raise ValueError("nothing to evaluate on: no example has a weight above 0.")
        return {name: value / total for name, value in sums.items()}

    return evaluate


def _num_devices(state: TrainState) -> int:
    placed = [leaf for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array)]
    return max((len(leaf.sharding.device_set) for leaf in placed), default=1)


def _strong(leaf: Any) -> Any:
    if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    return jnp.asarray(leaf, jnp.result_type(leaf))
