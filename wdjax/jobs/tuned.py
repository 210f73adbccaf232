"""`wdjax train --tune`: one run that moves its own numbers, window by window."""

import contextlib
import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from wdjax.checkpoint import CheckpointError, Checkpoints
from wdjax.checks import check_one_of
from wdjax.data.dataset import Dataset, hash_of, to_batch
from wdjax.data.split import split_off_test
from wdjax.jobs.audit import audit_results, audit_run
from wdjax.jobs.candidates import timescale_start
from wdjax.jobs.folder import claimed, clear_earlier
from wdjax.jobs.options import TrainOptions
from wdjax.jobs.predictions import predictions_on_test
from wdjax.jobs.refit import OnProgress, Say, judged, repeated_keys, run_results
from wdjax.jobs.results import Clock, finish, header, stopped, write_params
from wdjax.jobs.resume import check_not_streamed, restored, run_config, saved_step, start_anew
from wdjax.jobs.setup import (
    Prepared,
    as_resumed,
    check_batch_fits,
    hparams_of,
    prepare,
)
from wdjax.loop import Preempted
from wdjax.loop.signals import Signals
from wdjax.loop.tune_loop import TuneLoop
from wdjax.memory import in_words, memory_on
from wdjax.recipe import build as recipes
from wdjax.recipe.kinds import SCHEDULE_KINDS
from wdjax.selection.cross_validation import Progress
from wdjax.selection.grids import grid_product
from wdjax.selection.tuning import Tuned, Tuning
from wdjax.selection.windows import Box, Window, plan_windows
from wdjax.tables import Estimate, Table, format_number
from wdjax.types import Fit

NUMBERS = ("strength", "learning_rate")
"""Those that can be moved: both are above 0, and the whole run is smooth in them."""
HELD_OUT = 0.1
"""The share of the training part that says how to move."""
WIDEST = 10.0
"""By what factor the learning rate may move at most."""


def run_tuned(
    options: TrainOptions,
    *,
    say: Say = print,
    on_progress: OnProgress | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Trains once and moves strength and learning rate on the way; judges on a test part.

    A tenth of the training part is held out; after each window its loss's slopes move the numbers
    (see `tune`), and the run is saved. The params of the last window are the result, written as
    `run_train` writes them. With `resume` it goes on from the last window that was saved, bit for
    bit.

    Raises:
      ValueError: for any bad option or bad data; tangents that do not fit the memory, before
        anything runs; a folder that another run is in; or if the first window diverged.
      WriteError: if a file cannot be written; what was whole before stays.
      CheckpointError: if a checkpoint could not be written or read.
      Preempted: on SIGTERM, saved.
      KeyboardInterrupt: on Ctrl-C, saved.
    """
    numbers = check_tune(options)
    options = as_resumed(options)
    with claimed(options) as out:
        return _tuned(options, numbers, out, say, on_progress, command)


def check_tune(options: TrainOptions) -> tuple[str, ...]:
    """The numbers that `--tune` moves.

    Raises:
      ValueError: for a name twice or unknown, a share outside (0, 1], a strength of 0, several
        seeds, or early stopping.
    """
    assert options.tune is not None
    numbers = tuple(options.tune) or NUMBERS
    for i, name in enumerate(numbers):
        check_one_of("tune", name, NUMBERS)
        if name in numbers[:i]:
            raise ValueError(f"`tune` names {name} twice; each number moves once a window.")
    if not options.stream:
        check_not_streamed(options)
    if options.patience is not None:
        raise ValueError(
            f"`patience` = {options.patience}: a run that is tuned goes through all of its "
            "windows; leave --patience out."
        )
    if options.seeds != 1:
        raise ValueError(
            f"`seeds` = {options.seeds}: a run that is tuned is one run, whose numbers are its "
            "own; start one a seed, with --seed."
        )
    if not 0 < share_of(options) <= 1:
        raise ValueError(
            f"`tune_carried` must be in (0, 1], the share of each window over which tangents go "
            f"beside the run; got {options.tune_carried:g}."
        )
    if options.strength == 0 and "strength" in numbers:
        raise ValueError(
            "`strength` = 0 cannot be moved: it moves in its logarithm. Leave it out, which starts "
            "from the timescale of the run, or tune the learning rate alone."
        )
    return numbers


def _tuned(
    options: TrainOptions,
    numbers: tuple[str, ...],
    out: pathlib.Path,
    say: Say,
    on_progress: OnProgress | None,
    command: str,
) -> dict[str, Any]:
    clock = Clock()
    prepared = prepare(options, out)
    run = TunedRun(options, prepared, numbers)
    results = header("train", run.started, run.prepared, command)
    results["data"] |= {"num_choose": prepared.num_choose, "num_held_out": run.num_held_out}
    clock.lap("data")
    if options.resume is not None:
        say(run.resume())
    say(f"{prepared.describe('train')} {run.plan()}")
    clock.lap("compile")
    try:
        run.run(say, on_progress)
    except (Preempted, KeyboardInterrupt):
        if run.has_folder:
            run.settle()
            done = saved_step(out)
            how_far = None if done is None else f"window {done} of {run.num_windows}"
            say(stopped(results, how_far, out, writes=True))
        raise
    clock.lap("training")
    chosen, fit, tuned = run.judged()
    results |= audit_results(run.audit(fit), prepared.decay)
    results |= {"refit": {"chosen": chosen}, "status": "complete"}
    results |= tuned_results(tuned)
    error = chosen["errors"]["test_loss"]
    loss = Estimate(float(np.mean(np.asarray(chosen["test_loss"], np.float64))), error)
    results["headline"] = f"{tuned_words(tuned, options)}: test loss {loss}."
    if not run.has_folder:  # Else it was cleared at the first save, or is gone on in.
        clear_earlier(out)
    results["predictions"] = predictions_on_test(prepared, fit, run.scaling)
    results["files"] = write_params(out, fit, run.scaling)
    finish(out, results, clock)
    return results


class TunedRun:
    """A run that is tuned, saved after each window.

    Raises:
      ValueError: for data too few to hold out a part or fill a batch, fewer epochs than windows, no
        strength where the decay has no timescale, numbers out of range, or a run that cannot be
        differentiated forward.
    """

    def __init__(self, options: TrainOptions, prepared: Prepared, numbers: tuple[str, ...]):
        self._options, self._numbers = options, numbers
        train, held_out = _hold_out(prepared.choose_data, options)
        recipe, self.num_held_out = prepared.recipe, len(held_out.inputs)
        windows = plan_windows(recipe.num_epochs)
        check_batch_fits(recipe.batch_size, len(train.inputs))
        self.num_windows, self._config = len(windows), run_config(options, prepared)
        self.started = with_start(options, prepared, len(train.inputs), numbers)
        hparams = hparams_of(self.started)
        # The audit is that of the last window: its schedule, its examples.
        last = dataclasses.replace(recipe, num_epochs=windows[-1])
        sizes = {"choose_data": train, "num_choose": len(train.inputs)}
        self._as_last = dataclasses.replace(prepared, recipe=last, **sizes)
        self.prepared = dataclasses.replace(prepared, **sizes)
        data = to_batch(train)
        self.scaling = recipes.recipe_scaling(recipe, data)
        scale = jax.jit(functools.partial(recipes.recipe_scale, recipe))
        self._train, self._test = scale(data, to_batch(prepared.test_data))
        _, valid = scale(data, to_batch(held_out))
        score = recipes.recipe_score(recipe)
        self._tuning = Tuning(
            lambda inputs, num_steps: recipes.build_run(recipe, inputs, num_steps=num_steps),
            lambda fit, batch: score.by_example(fit, batch)["loss"],
            hparams,
            self._train,
            valid,
            key=repeated_keys(jax.random.key(options.seed), 1, 1)[0],
            windows=windows,
            batch_size=recipe.batch_size,
            numbers=numbers,
            carried=share_of(options),
            within=moves_within(hparams, numbers, prepared),
            annealed=SCHEDULE_KINDS[recipe.schedule].multiplier is not None,
        )
        self._checkpoints: Checkpoints | None = None
        self._data_hash = hash_of(prepared.choose_data)

    @property
    def has_folder(self) -> bool:
        """Whether the run's folder holds it already: a run that goes on, or was saved."""
        return self._checkpoints is not None

    def plan(self) -> str:
        """Compiles all windows, and says what they cost.

        Raises:
          ValueError: if they do not fit the memory.
        """
        tuning, device = self._tuning, self.prepared.mesh.devices.flat[0]
        held_out = f"{self.num_held_out} of the examples"
        idle = self.prepared.mesh.size - 1
        words = plan_words(tuning, tuning.windows, self.started, device, held_out)
        if idle:
            words += f" It uses one device of {idle + 1}; a stream (--stream) uses all."
        return words

    def resume(self) -> str:
        """Goes to the newest window that was saved, and says so.

        Raises:
          ValueError: if the folder holds no saved run, or one that was told something else or
            was begun on other data.
          DamagedCheckpointError: if no checkpoint is whole.
        """
        out = self.prepared.out
        like = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), self._tuning.shapes)
        found = restored(
            self._open_folder,
            like,
            out=out,
            config=self._config,
            data=self._options.data,
            data_hash=self._data_hash,
        )
        if found is None:
            return "Nothing was saved yet: begins again."
        done = [Window.of_dict(told) for told in json.loads(found.facts["progress"]["windows"])]
        self._tuning.resume(jax.tree.map(jax.numpy.asarray, found.state), done)
        return f"Resumed after window {len(done)} of {self.num_windows}."

    def settle(self) -> None:
        """Waits for the save under way, if there is one, whether or not it comes to be."""
        if self._checkpoints is not None:
            with contextlib.suppress(CheckpointError):
                self._checkpoints.wait()

    def run(self, say: Say, on_progress: OnProgress | None) -> None:
        """Goes through the windows that are left; saves after each but the last.

        Raises:
          CheckpointError: if a checkpoint could not be written.
          Preempted: after SIGTERM, saved.
          KeyboardInterrupt: after Ctrl-C, saved.
        """
        told = on_progress or (lambda stage, event: None)
        tuning, start = self._tuning, time.monotonic()
        total, first = sum(tuning.windows), sum(tuning.windows[: len(tuning.done)])
        told("training", Progress("run", first, total, 0.0, None, None))
        with Signals() as signals:
            while not tuning.ended:
                window = tuning.advance()
                if window is None:
                    break
                done = sum(tuning.windows[: len(tuning.done)])
                ending = signals.asked(done)
                if not tuning.ended:
                    self._save()
                    if ending:
                        self.settle()
                        signals.leave(ending, done)
                elapsed = time.monotonic() - start
                left = elapsed / (done - first) * (total - done)
                told("training", Progress("run", done, total, elapsed, left, None))
        if self._checkpoints is not None:
            self._checkpoints.wait()

    def judged(self) -> tuple[dict[str, Any], Fit, Tuned]:
        """What `results.json` says of the run, its fit, and how it was tuned.

        Raises:
          ValueError: if the first window diverged.
        """
        tuned, recipe = self._tuning.tuned(), self.prepared.recipe
        fits = jax.tree.map(lambda leaf: leaf[None], tuned.fit)
        judge = jax.vmap(functools.partial(judged, recipe), in_axes=(0, None, None))
        scores, each, fits = jax.device_get(jax.jit(judge)(fits, self._train, self._test))
        losses = [loss for window in tuned.windows for loss in window.train_losses]
        curves = {"train_loss": [losses]}
        groups = self.prepared.test_data.groups
        run = run_results(tuned.hparams, scores, each, curves, self._test.weights, groups)
        return run, jax.tree.map(lambda leaf: leaf[0], fits), tuned

    def audit(self, fit: Fit) -> Any:
        """Of the last window."""
        return audit_run(self._as_last, self._tuning.done[-1].hparams, fit.params)

    def _open_folder(self) -> Checkpoints:
        if self._checkpoints is None:
            out = self.prepared.out
            if self._options.resume is None:
                start_anew(out, self._config)
            self._checkpoints = Checkpoints(out / "checkpoints")
        return self._checkpoints

    def _save(self) -> None:
        done = self._tuning.done
        # A slope may be infinite, which JSON has no word for: as text it may.
        windows = json.dumps([window.to_dict() for window in done])
        self._open_folder().save(
            len(done),
            self._tuning.between,
            data={"sha256": self._data_hash},
            config=self._config,
            progress={"windows": windows},
        )


def plan_words(
    tuning: Tuning | TuneLoop, epochs: Sequence[int], started: TrainOptions, device: Any, held: str
) -> str:
    """Compiles, and says what it will cost.

    Args:
      tuning: what is to be run.
      epochs: of each window.
      started: the options, with the strength that it begins at.
      device: one of those it runs on.
      held: how many examples are held out, as words.

    Raises:
      ValueError: if the run with tangents does not fit the memory.
    """
    without = tuning.compile()
    used, there = tuning.memory, memory_on(device)
    names = " and ".join(tuning.numbers)
    if used is not None and there is not None and used > there:
        raise ValueError(
            f"`tune`: a run with tangents of {names} takes {in_words(used)} by the compiler's "
            f"analysis ({in_words(without)} without them), and there are {in_words(there)} on "
            f"{device.platform}:{device.id}: tune fewer numbers (--tune strength), or find "
            "them at a small size, by `wdjax select` or `wdjax transfer`."
        )
    hparams = hparams_of(started)
    at = ", ".join(f"{name} {format_number(hparams[name])}" for name in tuning.numbers)
    memory = "" if used is None else f", {in_words(used)} of memory ({in_words(without)} without)"
    return (
        f"Tuning from {at}, in windows of {', '.join(map(str, epochs))} epochs; {held} are held "
        f"out to say how to move. With the tangents it costs {format_number(tuning.trainings)} "
        f"trainings of equal length{memory}."
    )


def tuned_results(tuned: Tuned) -> dict[str, Any]:
    """What `results.json` says of how the numbers moved."""
    return {
        "tuned": tuned.to_dict(),
        "tables": [_in_words(tuned.table())],
        "advice": [*tuned.doubts, *tuned.sentences()],
        "cost": tuned.cost._asdict(),
    }


def _hold_out(data: Dataset, options: TrainOptions) -> tuple[Dataset, Dataset]:
    try:
        return split_off_test(data, fraction=HELD_OUT, seed=options.seed)
    except ValueError as error:
        raise ValueError(f"`tune` holds out a tenth of the training part: {error}") from error


def with_start(
    options: TrainOptions, prepared: Prepared, num_train: int, numbers: tuple[str, ...]
) -> TrainOptions:
    """The options with the strength that the run begins at.

    Raises:
      ValueError: if none was given and the decay has no timescale.
    """
    if options.strength is not None:
        return dataclasses.replace(options, tune=numbers)
    rates = grid_product(learning_rate=[options.learning_rate])
    start = timescale_start(prepared, rates, num_train) if options.learning_rate > 0 else {}
    if "strength" not in start and options.learning_rate > 0:
        raise ValueError(
            f"`decay` {options.decay} has no timescale to start from; say where, with --strength."
        )
    return dataclasses.replace(options, tune=numbers, strength=start.get("strength"))


def moves_within(hparams: dict[str, float], numbers: tuple[str, ...], prepared: Prepared) -> Box:
    """A step never removes a whole weight, and the learning rate moves by a factor of ten."""
    rate, strength = hparams["learning_rate"], hparams["strength"]
    highest = rate * WIDEST if "learning_rate" in numbers else rate
    most = max(strength, prepared.decay.whole_weight_strength(highest))
    return {"strength": (0.0, most), "learning_rate": (rate / WIDEST, highest)}


def share_of(options: TrainOptions) -> float:
    """Of each window, over which tangents are carried."""
    return 1.0 if options.tune_carried is None else options.tune_carried


def tuned_words(tuned: Tuned, options: TrainOptions) -> str:
    """The numbers of the last window, as a headline begins with them."""
    hparams = tuned.hparams
    return (
        f"Strength {format_number(hparams['strength'])} ({options.decay}), learning rate "
        f"{format_number(hparams['learning_rate'])}, tuned in {len(tuned.windows)} windows"
    )


def _in_words(table: Table) -> Table:
    """As files and pages show it: each estimate with its error, in one cell."""
    shown = lambda cell: str(cell) if isinstance(cell, Estimate) else cell
    rows = tuple(tuple(map(shown, row)) for row in table.rows)
    return table._replace(rows=rows, title="How the numbers moved")
