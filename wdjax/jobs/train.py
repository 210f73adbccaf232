"""The job `train`: one strength, judged on a test part."""

import contextlib
import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

from wdjax.checkpoint import CheckpointError, Checkpoints
from wdjax.checks import check_positive_int
from wdjax.data.dataset import hash_of, to_batch
from wdjax.jobs.audit import audit_results, audit_run
from wdjax.jobs.folder import claimed, clear_earlier
from wdjax.jobs.options import TrainOptions
from wdjax.jobs.predictions import predictions_on_test
from wdjax.jobs.refit import (
    OnProgress,
    Say,
    judged,
    learning_curves,
    repeated_keys,
    run_results,
)
from wdjax.jobs.results import Clock, finish, header, stopped, write_params
from wdjax.jobs.resume import check_not_streamed, restored, run_config, saved_step, start_anew
from wdjax.jobs.setup import Prepared, as_resumed, check_batch_fits, hparams_of, prepare
from wdjax.jobs.stream import run_stream
from wdjax.jobs.telemetry import telemetry_results
from wdjax.jobs.tuned import run_tuned
from wdjax.loop import Preempted
from wdjax.loop.signals import Signals
from wdjax.moved import moved_keywords
from wdjax.recipe import build as recipes
from wdjax.report.runs import over_seeds
from wdjax.run import Run
from wdjax.selection.cross_validation import Progress
from wdjax.selection.trials import compiled_trials, filled_up, on_host
from wdjax.tables import Estimate
from wdjax.training import make_piece, steps_per_epoch
from wdjax.types import Batch, Fit

PIECES = 10
"""In how many pieces a run goes, at least: between two it may be saved, stopped, shown."""
SAVE_SECONDS = 60.0


@moved_keywords(watch="on_progress")
def run_train(
    options: TrainOptions,
    *,
    say: Say = print,
    on_progress: OnProgress | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Trains at one strength and judges on a test part.

    Writes `results.json`, `report.html` and `params.npz` (of the first seed). Data in memory are
    trained on as `run_select` trains, by scans over epochs, seeds side by side; between two pieces
    the run is saved, once a minute or every `save_every` steps, and when it is stopped. With
    `resume` it goes on from there, bit for bit. With `stream` it is `run_stream`, with `tune`
    `run_tuned`.

    Raises:
      ValueError: for any bad option or bad data, or no strength, before anything is compiled; a
        folder that another run is in; or if every run diverged. Nothing is left then.
      WriteError: if a file cannot be written; what was whole before stays.
      CheckpointError: if a checkpoint could not be written or read.
      Preempted: on SIGTERM, saved.
      KeyboardInterrupt: on Ctrl-C, saved.
    """
    if options.tune is not None and not options.stream:
        return run_tuned(options, say=say, on_progress=on_progress, command=command)
    if options.tune is None and options.tune_carried is not None:
        raise ValueError(
            "`tune_carried` is the share of a window over which slopes are taken; add --tune, or "
            "leave it out."
        )
    if options.stream:
        return run_stream(options, say=say, on_progress=on_progress, command=command)
    check_not_streamed(options)
    options = as_resumed(options)
    with claimed(options) as out:
        return _train(options, out, say, on_progress, command)


def _train(
    options: TrainOptions,
    out: pathlib.Path,
    say: Say,
    on_progress: OnProgress | None,
    command: str,
) -> dict[str, Any]:
    clock = Clock()
    prepared = prepare(options, out)
    check_positive_int("seeds", options.seeds)
    if options.save_every is not None:
        check_positive_int("save_every", options.save_every)
    hparams = hparams_of(options)
    check_batch_fits(prepared.recipe.batch_size, len(prepared.choose_data.inputs))
    data = to_batch(prepared.choose_data)
    results = header("train", options, prepared, command)
    clock.lap("data")
    num_epochs = prepared.recipe.num_epochs
    training = Training(options, prepared, hparams, data)
    if options.resume is not None:
        say(training.resume())
    say(f"{prepared.describe('train')} Training {num_epochs} epochs, {options.seeds} seeds.")
    try:
        run, fit = training.run(on_progress)
    except (Preempted, KeyboardInterrupt):
        if training.has_folder:
            training.settle()
            step = saved_step(prepared.out)
            num_steps = steps_per_epoch(data, prepared.recipe.batch_size)
            how_far = None if step is None else f"epoch {step // num_steps} of {num_epochs}"
            say(stopped(results, how_far, prepared.out, writes=True))
        raise
    clock.lap("training")
    results["headline"] = _headline(options, run)
    results |= audit_results(audit_run(prepared, hparams, fit.params), prepared.decay)
    results |= {"refit": {"chosen": run}, "status": "complete"}
    num_steps = steps_per_epoch(data, prepared.recipe.batch_size)
    steps = [num_steps * epoch + 1 for epoch in range(num_epochs)]
    results["telemetry"] = telemetry_results(run.pop("telemetry"), steps, prepared)
    if not training.has_folder:  # Else it was cleared at the first save, or is gone on in.
        clear_earlier(prepared.out)
    scaling = recipes.recipe_scaling(prepared.recipe, data)
    results["predictions"] = predictions_on_test(prepared, fit, scaling)
    results["files"] = write_params(prepared.out, fit, scaling)
    finish(prepared.out, results, clock)
    return results


class Training:
    """A run in memory in pieces of whole epochs, all seeds side by side; saved between two.

    The pieces are one compiled program. What an earlier run left goes at the first save.
    """

    def __init__(
        self, options: TrainOptions, prepared: Prepared, hparams: dict[str, float], data: Batch
    ):
        self._options, self._prepared = options, prepared
        self._recipe, self._hparams = prepared.recipe, hparams
        scale = jax.jit(functools.partial(recipes.recipe_scale, self._recipe))
        self._shared: tuple[Batch, Batch] = scale(data, to_batch(prepared.test_data))
        self._steps_per_epoch = steps_per_epoch(data, self._recipe.batch_size)
        self._piece = self._epochs_a_piece()
        self._run, self._with_telemetry = self._build(), self._build(telemetry=True)
        self._keys = repeated_keys(jax.random.key(options.seed), options.seeds, 1)
        self._states, self._history = None, None
        self._checkpoints: Checkpoints | None = None
        self._data_hash = hash_of(prepared.choose_data)
        self.done = 0
        """Epochs."""

    @property
    def has_folder(self) -> bool:
        """Whether the run's folder holds it already: a run that goes on, or was saved."""
        return self._checkpoints is not None

    def resume(self) -> str:
        """Goes to the newest checkpoint of the folder, and says so.

        Raises:
          ValueError: if the folder holds no saved run, or one that was told something else or
            was begun on other data.
          DamagedCheckpointError: if no checkpoint is whole.
        """
        found = restored(
            self._open_folder,
            self._blank(),
            out=self._prepared.out,
            config=run_config(self._options, self._prepared),
            data=self._options.data,
            data_hash=self._data_hash,
        )
        if found is None:
            return "Nothing was saved yet: begins again."
        self._states = found.state["states"]
        self._history = jax.tree.map(np.array, found.state["history"])
        self.done = found.step // self._steps_per_epoch
        return f"Resumed after epoch {self.done} of {self._recipe.num_epochs}."

    def settle(self) -> None:
        """Waits for the save under way, if there is one, whether or not it comes to be."""
        if self._checkpoints is not None:
            with contextlib.suppress(CheckpointError):
                self._checkpoints.wait()

    def run(self, on_progress: OnProgress | None) -> tuple[dict[str, Any], Fit]:
        """Trains to the end: what `results.json` says of it, and the fit of the first seed.

        Raises:
          ValueError: if every run diverged.
          CheckpointError: if a checkpoint could not be written.
          Preempted: after SIGTERM, saved.
          KeyboardInterrupt: after Ctrl-C, saved.
        """
        told = on_progress or (lambda stage, event: None)
        total, start, first = self._recipe.num_epochs, time.monotonic(), self.done
        told("training", Progress("compile", self.done, total, 0.0, None, None))
        advance_all = compiled_trials(self._piece_of(), self._prepared.mesh)
        saved_at = time.monotonic()
        with Signals() as signals:
            while self.done < total:
                self._go_on(advance_all)
                ending = signals.asked(self.done * self._steps_per_epoch)
                if self.done < total and (ending or self._is_due(saved_at)):
                    self._save()
                    saved_at = time.monotonic()
                if ending and self.done < total:
                    assert self._checkpoints is not None
                    self._checkpoints.wait()
                    signals.leave(ending, self.done)
                elapsed = time.monotonic() - start
                left = elapsed / (self.done - first) * (total - self.done)
                told("training", Progress("run", self.done, total, elapsed, left, None))
        if self._checkpoints is not None:
            self._checkpoints.wait()
        return self._judged()

    def _go_on(self, advance_all: Any) -> None:
        states = self._begun() if self._states is None else self._filled(self._states)
        trials = (self._hparams_of_all(), self._filled(self._keys), states)
        states, history = advance_all(trials, self._shared)
        history = self._on_host(_kept(history))
        self._states = jax.tree.map(self._first, states)
        if self._history is None:
            self._history = jax.tree.map(self._blank_history, history)
        done, self.done = self.done, self.done + self._piece

        def note(whole: np.ndarray, piece: np.ndarray) -> None:
            whole[:, done : self.done] = piece

        jax.tree.map(note, self._history, history)

    def _judged(self) -> tuple[dict[str, Any], Fit]:
        def judge(state, train, test):
            return judged(self._recipe, Fit(state.params, state.model_state, {}), train, test)

        found = compiled_trials(judge, self._prepared.mesh)(
            (self._filled(self._states),), self._shared
        )
        scores, each, fits = self._on_host(found)
        losses = np.asarray(scores["test_loss"], np.float64)
        if not np.isfinite(losses).any():
            raise ValueError(
                f"every run diverged: lower `learning_rate` = {self._options.learning_rate:g} or "
                f"`strength` = {self._options.strength:g}."
            )
        assert self._history is not None
        curves = learning_curves(self._history)
        about_test = self._shared[1].weights, self._prepared.test_data.groups
        run = run_results(self._hparams, scores, each, curves, *about_test)
        telemetry = self._history["telemetry"]
        run["telemetry"] = {path: part._asdict() for path, part in telemetry.items()}
        return run, jax.tree.map(lambda leaf: leaf[0], fits)

    def _build(self, **more: Any) -> Run:
        num_steps = self._recipe.num_epochs * self._steps_per_epoch
        inputs = self._shared[0].inputs
        return recipes.build_run(self._recipe, inputs, num_steps=num_steps, **more)

    def _piece_of(self) -> Callable:
        score = recipes.recipe_score(self._recipe)
        return make_piece(
            self._run,
            self._with_telemetry,
            self._piece,
            batch_size=self._recipe.batch_size,
            observe=lambda fit, test: score(fit, test)["loss"],
        )

    def _start(self, key: Array, train: Batch, test: Batch) -> PyTree:
        del test
        return self._run.init(self._hparams, train.inputs[: self._recipe.batch_size], key)

    def _begun(self) -> PyTree:
        start = compiled_trials(self._start, self._prepared.mesh)
        return start((self._filled(self._keys),), self._shared)

    def _blank(self) -> dict[str, Any]:
        """The shapes of what is saved; nothing is run."""

        piece = self._piece_of()

        def one(key: Array, train: Batch, test: Batch) -> tuple:
            state, history = piece(self._hparams, key, self._start(key, train, test), train, test)
            return state, _kept(history)

        many = jax.vmap(one, in_axes=(0, None, None))
        states, history = jax.eval_shape(many, self._keys, *self._shared)
        zeros = jax.tree.map(lambda s: jax.numpy.zeros(s.shape, s.dtype), states._replace(key=None))
        states = zeros._replace(key=self._keys)
        return {"states": states, "history": jax.tree.map(self._blank_history, history)}

    def _blank_history(self, piece: Any) -> np.ndarray:
        """`[seed, epoch, ...]`, not yet known."""
        shape = (piece.shape[0], self._recipe.num_epochs, *piece.shape[2:])
        return np.full(shape, np.nan, piece.dtype)

    def _filled(self, trials: PyTree) -> PyTree:
        return filled_up(trials, self._prepared.mesh.size)

    def _on_host(self, tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: self._first(on_host(leaf)), tree)

    def _hparams_of_all(self) -> dict[str, np.ndarray]:
        many = len(self._filled(self._keys))
        return {name: np.full(many, value) for name, value in self._hparams.items()}

    def _first(self, leaf: Any) -> Any:
        """Of the seeds, without those that only fill the devices up."""
        return leaf[: self._options.seeds]

    def _epochs_a_piece(self) -> int:
        """The most that divides the run, saves as often as asked and gives enough pieces."""
        num_epochs, most = self._recipe.num_epochs, self._recipe.num_epochs // PIECES
        if self._options.save_every is not None:
            most = min(most, -(-self._options.save_every // self._steps_per_epoch))
        return next(n for n in range(max(most, 1), 0, -1) if num_epochs % n == 0)

    def _is_due(self, saved_at: float) -> bool:
        if self._options.save_every is None:
            return time.monotonic() - saved_at > SAVE_SECONDS
        before = (self.done - self._piece) * self._steps_per_epoch // self._options.save_every
        return self.done * self._steps_per_epoch // self._options.save_every > before

    def _open_folder(self) -> Checkpoints:
        if self._checkpoints is None:
            out: pathlib.Path = self._prepared.out
            if self._options.resume is None:
                start_anew(out, run_config(self._options, self._prepared))
            self._checkpoints = Checkpoints(out / "checkpoints")
        return self._checkpoints

    def _save(self) -> None:
        self._open_folder().save(
            self.done * self._steps_per_epoch,
            {"states": self._states, "history": self._history},
            data={"sha256": self._data_hash},
            config=run_config(self._options, self._prepared),
        )


def _kept(history: dict[str, Any]) -> dict[str, Any]:
    return {name: history[name] for name in ("data_loss", "observed", "telemetry")}


def _headline(options: TrainOptions, run: dict[str, Any]) -> str:
    losses = np.asarray(run["test_loss"], np.float64)
    return (
        f"Strength {options.strength:g} ({options.decay}): test loss "
        f"{Estimate(float(losses.mean()), run['errors']['test_loss'])}, "
        f"training loss {over_seeds(run['train_loss'])}."
    )
