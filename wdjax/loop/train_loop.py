"""A run of days: batches streamed, evaluated, logged, saved, and resumed bit for bit."""

import contextlib
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from wdjax.checkpoint import Restored, check_same_config
from wdjax.checkpoint.manifest import BEGAN
from wdjax.checks import check_one_of, check_positive_int
from wdjax.data.stream import as_stream
from wdjax.loop.log import RunLog
from wdjax.loop.settings import Evaluation, Logging, Saving, from_old, is_due
from wdjax.loop.signals import Preempted as Preempted
from wdjax.loop.signals import Signals
from wdjax.loop.watchdog import HangWatch
from wdjax.runners import RunFn
from wdjax.step import AnyState, Metrics
from wdjax.types import Batch

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
      run_step: a compiled step, `jit_step(step)` or `shard_step(step, mesh)`, of
        `functools.partial(run.step, hparams)` for a `Run`. Under `non_finite="skip"` the step must
        be a `skip_non_finite(...)`, and under "stop" it had better be: `state` is then without the
        batch that went wrong.
      state: where to begin, as `run.init` or `init_state` gives it.
      stream: a `Stream`, or anything iterable of `(inputs, targets[, weights])`.
      num_steps: the step after which the run is done.
      evaluation, saving, logging: what happens between two steps; by default nothing.
      non_finite: "stop" raises at the first loss or gradient that is not finite; "skip" leaves
        the whole update out, counts it in `metrics["skipped_total"]`, and raises when there were
        more than `max_skipped`.
      max_skipped: how many batches in all may be skipped.
      watchdog: dumps the stacks of all threads when no step finishes for too long, be it for want
        of data, of a device, or of a disk. The time of whoever iterates does not count.
      old: the keywords of version 0.1, which warn.

    Raises:
      ValueError: if a number is not an integer >= 1, or `non_finite` is neither of the two.

    Warns:
      RuntimeWarning: at the first batch whose weights are all zero, by its number: its data loss
        is 0, and only penalty and decay act. `empty` counts such batches.
    """

    def __init__(
        self,
        run_step: RunFn,
        state: AnyState,
        stream: Iterable,
        *,
        num_steps: int,
        evaluation: Evaluation | None = None,
        saving: Saving | None = None,
        logging: Logging | None = None,
        non_finite: str = "stop",
        max_skipped: int = 100,
        watchdog: HangWatch | None = None,
        **old: Any,
    ):
        if old:
            given = {"evaluation": evaluation, "saving": saving, "logging": logging}
            found = from_old({**given, "watchdog": watchdog}, old)
            evaluation, saving, logging, watchdog = found
        check_positive_int("num_steps", num_steps)
        check_positive_int("max_skipped", max_skipped)
        check_one_of("non_finite", non_finite, ("stop", "skip"))
        self._run_step, self._stream = run_step, as_stream(stream)
        self.num_steps, self._evaluation, self._saving = num_steps, evaluation, saving
        self._config = dict(saving.config) if saving is not None else {}
        self._log = logging.opened() if logging is not None else None
        self._logging = logging
        self._non_finite, self._max_skipped = non_finite, max_skipped
        self._watchdog = watchdog
        # Strong types, as those of a restored state: a weak one may promote differently.
        self.state = jax.tree.map(_strong, state)
        self.step = 0
        self.best_step: int | None = None
        self.best_score = math.inf
        self.skipped = self.empty = 0
        self.stopped_early = False
        self.saved_on: int | None = None
        self.ending: int | None = None
        self._worse = 0
        self._began: int | None = None
        self._logged: int | None = None
        self._best: AnyState = None
        self._resumed = False
        self._unsettled: tuple[int, Metrics, bool] | None = None

    def resume(self, *, may_differ: tuple[str, ...] = ()) -> int:
        """Goes to the newest whole checkpoint, as if the run had never stopped; gives its step.

        On the devices and with the versions it was saved with, what follows is the same bit for
        bit; on another number of devices than `saved_on` to rounding. If the best state so far is
        no longer there whole, the best is looked for anew, with a warning.

        Args:
          may_differ: names in `config` that need not be what they were.

        Raises:
          FileNotFoundError: if there is no checkpoint.
          DamagedCheckpointError: if none is whole.
          ValueError: if config or data differ, by name, or it is of another model, by leaf.
        """
        if self._saving is None:
            raise ValueError("to resume, give the run its `saving`: Saving(Checkpoints(folder)).")
        return self._go_on_from(self._saving.checkpoints.restore(self.state), may_differ)

    def _go_on_from(self, found: Restored, may_differ: tuple[str, ...]) -> int:
        assert self._saving is not None
        check_same_config(found.facts["config"], self._config, may_differ=may_differ)
        if found.facts["data"]:
            self._stream.set_state(found.facts["data"])
        self._take_over(found)
        self._look_for_best()
        return self.step

    def _look_for_lines(self, log: RunLog) -> None:
        """A log that was cut or exchanged since the save must not shorten curves unsaid."""
        logged, self._logged = self._logged, None
        if logged is not None and log.num_lines < logged:
            warnings.warn(
                f"{str(log.path)!r} holds {log.num_lines} lines up to step {self.step}, of which "
                f"{logged} were written: the run is not touched, but its curves have gaps.",
                RuntimeWarning,
                stacklevel=3,
            )

    def _look_for_best(self) -> None:
        assert self._saving is not None
        step = self.best_step
        if step in (None, self.step) or self._saving.checkpoints.is_whole(step, self.state):
            return
        self.best_step, self.best_score = None, math.inf
        warnings.warn(
            f"THE BEST STATE SO FAR, that of step {step}, is not there whole any more: the best is "
            f"looked for anew after step {self.step}.",
            RuntimeWarning,
            stacklevel=3,
        )

    def best_state(self) -> AnyState:
        """The state of the lowest `measure`: of the checkpoint, if there are checkpoints.

        Raises:
          ValueError: if no evaluation gave a finite number.
        """
        if self.best_step is None:
            name = "loss" if self._evaluation is None else self._evaluation.monitor
            raise ValueError(f"no evaluation gave a finite {name!r}; there is no best.")
        if self._saving is None:
            assert self._best is not None
            return self._best
        return self._saving.checkpoints.restore(self.state, step=self.best_step).state

    def __iter__(self) -> Iterator[tuple[int, Numbers]]:
        """Trains to the end.

        Raises:
          ValueError: if the folder holds checkpoints and `resume` was not called, or the data
            end before the last step.
          NonFiniteError: as `non_finite` says, with the step.
          CheckpointError: if a save failed, at the next step.
          Preempted: after SIGTERM, saved.
          KeyboardInterrupt: after Ctrl-C, saved.
          WriteError: if a line could not be logged.

        Warns:
          RuntimeWarning: if lines of the log are damaged or missing.
        """
        fresh = self.step == 0 and not self._resumed
        saved = None if self._saving is None else self._saving.checkpoints
        if fresh and saved is not None and (earlier := saved.steps()):
            raise ValueError(
                f"{str(saved.folder)!r} holds checkpoints up to step {earlier[-1]}: "
                "call resume() to go on from there, or choose another folder."
            )
        if self._log is not None:
            # A run killed before its first checkpoint begins anew, and so does its log.
            self._log.cut_after(self.step)
            self._look_for_lines(self._log)
        stands = self._stream.get_state().get("batches")
        self._began = stands - self.step if isinstance(stands, int) else None
        with self._listening() as signals, self._watchdog or contextlib.nullcontext():
            try:
                yield from self._steps(signals)
            finally:
                self._stream.close()
                if self._log is not None:
                    self._log.close()
                if saved is not None:
                    saved.wait()

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
            self._unsettled = self.step, metrics, self._is_logged(last)
            numbers = self._evaluated(last)
            ending = self.ending = signals.asked(self.step)
            if self._saving is not None:
                self._saving.checkpoints.check()
                due = is_due(self.step, self._saving.every)
                is_best = bool(numbers) and self.best_step == self.step
                if due or is_best or last or self.stopped_early or ending:
                    self._save(self.best_score if is_best else None)
            if last or self.stopped_early or ending:
                self._settle()
            if ending and not last:
                if self._saving is not None:
                    self._saving.checkpoints.wait()
                signals.leave(ending, self.step)
            skipped = {"skipped_total": self.skipped} if "skipped" in metrics else {}
            if self._watchdog is not None:
                self._watchdog.rest()
            yield self.step, {**metrics, **skipped, **numbers}

    def _listening(self) -> contextlib.AbstractContextManager[Signals]:
        return Signals()

    def _more_progress(self) -> dict[str, Any]:
        """What is saved beside the loop's own, by who builds on it."""
        return {}

    def _begin(self, doing: str) -> None:
        if self._watchdog is not None:
            self._watchdog.begin(self.step, doing)

    def _look_at_parts(self, batch: Batch) -> None:
        """The telemetry of the step to come, if it is due; before it, since it takes the state."""
        if self._logging is None or self._logging.telemetry is None:
            return
        if self.step != 0 and not is_due(self.step, self._logging.telemetry_every):
            return
        self._settle()
        telemetry = jax.device_get(self._logging.telemetry(self.state, batch))
        if self._log is not None:
            self._log.write(self.step + 1, {"telemetry": telemetry})

    def _is_logged(self, last: bool) -> bool:
        return self._logging is not None and (last or self.step % self._logging.every == 0)

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
        evaluation = self._evaluation
        if evaluation is None or not (is_due(self.step, evaluation.every) or last):
            return {}
        self._settle()
        self._begin("evaluating")
        found = {name: float(value) for name, value in evaluation.evaluate(self.state).items()}
        if evaluation.monitor not in found:
            raise ValueError(
                f"`monitor` {evaluation.monitor!r} is not what `evaluate` gives: "
                f"{', '.join(found)}."
            )
        score = found[evaluation.monitor]
        if math.isfinite(score) and score < self.best_score:
            self.best_score, self.best_step, self._worse = score, self.step, 0
            if self._saving is None:
                self._best = jax.tree.map(jnp.copy, self.state)
        else:
            self._worse += 1
            patience = evaluation.patience
            self.stopped_early = patience is not None and self._worse >= patience
        numbers = {f"valid_{name}": value for name, value in found.items()}
        if self._log is not None:
            self._log.write(self.step, numbers)
        return numbers

    def _save(self, score: float | None) -> None:
        assert self._saving is not None
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
            BEGAN: self._began,
            "logged": None if self._log is None else self._log.num_lines,
            **self._more_progress(),
        }
        if self._log is not None:
            self._log.flush()
        self._saving.checkpoints.save(
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
        self._logged = progress.get("logged")
        self.stopped_early = progress["stopped_early"]


def _num_devices(state: AnyState) -> int:
    placed = [leaf for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array)]
    return max((len(leaf.sharding.device_set) for leaf in placed), default=1)


def _strong(leaf: Any) -> Any:
    if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    return jnp.asarray(leaf, jnp.result_type(leaf))
