"""`wdjax train --stream`: a run of days, saved on the way, resumed bit for bit."""

import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from wdjax.checkpoint import Checkpoints, check_same_config
from wdjax.checks import check_number, check_one_of, check_positive_int
from wdjax.data.dataset import Dataset
from wdjax.data.stream import from_here, make_stream, prefetch_to_device
from wdjax.extras import check_installed
from wdjax.jobs import tuned_stream
from wdjax.jobs.audit import audit_results, audit_run
from wdjax.jobs.folder import claimed
from wdjax.jobs.options import TrainOptions
from wdjax.jobs.results import Clock, finish, header, stopped, write_params
from wdjax.jobs.resume import MAY_DIFFER, read_config, run_config, saved_step, start_anew
from wdjax.jobs.setup import Prepared, as_resumed, check_batch_fits, check_streamable, hparams_of
from wdjax.jobs.sources import Sources, fingerprint, holds_out, open_sources
from wdjax.jobs.telemetry import read_telemetry, telemetry_results
from wdjax.jobs.tuned import check_tune, tuned_results, tuned_words
from wdjax.loop import Evaluate, Evaluation, Logging, Preempted, Saving, TrainLoop, make_evaluate
from wdjax.loop.log import Board, RunLog
from wdjax.loop.tune_loop import TuneLoop
from wdjax.loop.watchdog import HangWatch
from wdjax.moved import moved_keywords
from wdjax.recipe import build as recipes
from wdjax.run import skip_non_finite
from wdjax.runners import jit_step, shard_step
from wdjax.selection.cross_validation import Progress
from wdjax.selection.tuning import Tuned
from wdjax.step import StepFn, TrainState
from wdjax.types import Fit

LOG = "log.jsonl"
SAVE_EVERY = 500
HANG_AFTER = 600.0


@moved_keywords(watch="on_progress")
def run_stream(
    options: TrainOptions,
    *,
    say: Callable[[str], None] = print,
    on_progress: Callable[[str, Progress], None] | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Trains batch by batch at one strength, over all devices, and judges on the test part.

    Writes checkpoints and `log.jsonl` on the way; at the end `results.json`, `report.html` and
    `params.npz` (with `patience`, of the best evaluation). Stopped at any moment, by whatever, it
    goes on with `resume` as if it had not been.

    Raises:
      ValueError: for any bad option or data, a folder that another run is in, or a resume under
        another config, naming each field. Nothing is left then, and nothing lost.
      WriteError: if a file cannot be written; what was whole before stays.
      NonFiniteError: if the loss became infinite or NaN, see `non_finite`.
      CheckpointError: if a checkpoint could not be written.
      Preempted: on SIGTERM, saved.
      KeyboardInterrupt: on Ctrl-C, saved.
    """
    options = as_resumed(options)
    _check(options)
    with claimed(options) as out:
        return _stream(options, out, say, on_progress, command)


def _stream(
    options: TrainOptions,
    out: pathlib.Path,
    say: Callable[[str], None],
    on_progress: Callable[[str, Progress], None] | None,
    command: str,
) -> dict[str, Any]:
    clock = Clock()
    is_first = jax.process_index() == 0
    say, on_progress = (say, on_progress) if is_first else (lambda text: None, None)
    prepared, sources = open_sources(options, out)
    num_train = len(_inputs(sources.train))
    config = run_config(options, prepared)
    if options.tune is not None:
        options, prepared = tuned_stream.started(options, prepared, num_train)
    hparams = hparams_of(options)  # A decay of the user's own is known by now.
    check_streamable(prepared.recipe)
    check_batch_fits(prepared.recipe.batch_size, num_train)
    if options.resume is not None:
        check_same_config(read_config(out), config, may_differ=MAY_DIFFER, where=str(out))
    # Every process must have read the data, and what is to be resumed, before one writes.
    _wait_for_all("wdjax-prepared")
    results = header("train", options, prepared, command)
    results["data"]["sha256"] = fingerprint(sources.train)
    clock.lap("data")
    log = _log(options, prepared.out)
    hang = _hang_watch(options, prepared.out, log)
    loop, evaluate, plan = _build(options, prepared, sources, hparams, config, log, hang)
    done = _resume(loop, prepared.mesh.size, say) if options.resume is not None else 0
    how = f"Training on {num_train} batch by batch, {loop.num_steps} steps, in {prepared.out}."
    say(" ".join(filter(None, [prepared.describe("train"), how, plan])))
    try:
        _run(loop, done, on_progress)
    except (Preempted, KeyboardInterrupt):
        step = saved_step(prepared.out)
        how_far = None if step is None else f"step {step} of {loop.num_steps}"
        say(stopped(results, how_far, prepared.out, writes=is_first))
        raise
    clock.lap("training")
    is_plain = isinstance(loop, TrainLoop)
    state = loop.best_state() if is_plain and options.patience is not None else loop.state
    with hang or contextlib.nullcontext():
        scores = {
            f"{part}_{name}": [value]
            for part, source in (("test", sources.test), ("train", sources.train))
            for name, value in evaluate(source)(state).items()
        }
    tuned = loop.tuned() if isinstance(loop, TuneLoop) else None
    if tuned is not None:
        hparams, prepared = tuned.hparams, tuned_stream.as_last(prepared)
    run = {"hparams": hparams, **scores, "curves": _curves(prepared.out, options)}
    results["telemetry"] = telemetry_results(*read_telemetry(prepared.out / LOG), prepared)
    clock.lap("judge")
    fit = jax.device_get(Fit(state.params, state.model_state, {}))
    results |= {"refit": {"chosen": run}, "status": "complete"}
    if tuned is not None:
        results |= tuned_results(tuned)
    results["headline"] = _headline(options, loop, run, tuned)
    if is_first:
        results |= audit_results(audit_run(prepared, hparams, fit.params), prepared.decay)
        results["files"] = write_params(prepared.out, fit, sources.scaling)
        finish(prepared.out, results, clock)
    return results


def _check(options: TrainOptions) -> None:
    """What only a streamed run has, before anything is loaded, compiled or written.

    Raises:
      ValueError: for an option out of range.
      ImportError: for an extra that is not installed.
    """
    if options.tune is not None:
        check_tune(options)
    if options.seeds != 1:
        raise ValueError(
            f"`seeds` = {options.seeds}: a streamed run is one run; start one a seed, with --seed."
        )
    for name in ("save_every", "evaluate_every", "patience", "micro_batches"):
        if getattr(options, name) is not None:
            check_positive_int(name, getattr(options, name))
    parts = options.micro_batches
    if parts is not None and options.batch_size % parts:
        raise ValueError(
            f"`micro_batches` = {parts} does not divide `batch_size` = {options.batch_size}; take "
            "one that does."
        )
    check_one_of("non_finite", options.non_finite or "stop", ("stop", "skip"))
    check_one_of("on_hang", options.on_hang or "report", ("report", "end"))
    check_number("hang_after", _hang_after(options), low=0.0)
    check_installed("grain", what="a streamed run", extra="data")
    check_installed("orbax", what="a checkpoint")
    if options.tensorboard:
        Board(options.out or ".")


def _build(
    options: TrainOptions,
    prepared: Prepared,
    sources: Sources,
    hparams: dict[str, float],
    config: dict[str, Any],
    log: RunLog,
    hang: HangWatch | None,
) -> tuple[TrainLoop | TuneLoop, Callable[[Any], Evaluate], str]:
    """The loop, what evaluates on a source, and what a run that is tuned will cost."""
    recipe, mesh = prepared.recipe, _data_mesh(prepared.mesh)
    sharding = NamedSharding(mesh, P("data")) if mesh.size > 1 else None
    make = lambda source, **more: make_stream(source, batch_size=recipe.batch_size, **more)
    stream = make(sources.train, seed=options.seed, num_epochs=recipe.num_epochs)
    num_steps = stream.num_batches
    assert num_steps is not None
    score = recipes.recipe_score(recipe)
    on_batch = None if hang is None else lambda: hang.begin(loop.step, "evaluating")
    evaluate = lambda source: make_evaluate(
        score, from_here(make(source)), sharding=sharding, on_batch=on_batch
    )
    every = options.evaluate_every
    every = -(-num_steps // recipe.num_epochs) if every is None else every
    how: dict[str, Any] = {
        "evaluation": Evaluation(
            evaluate=evaluate(sources.valid), every=every, patience=options.patience
        ),
        "logging": Logging(log=log, every=max(1, every // 20), telemetry_every=every),
        "non_finite": options.non_finite or "stop",
        "watchdog": hang,
    }
    batches = prefetch_to_device(stream, sharding=sharding)
    if options.tune is not None:
        held_out = from_here(make(sources.valid))
        loop, plan = tuned_stream.build(options, prepared, batches, held_out, num_steps, mesh, how)
        loop.saving = _saving(options, prepared, config)
        return loop, evaluate, plan
    step, state, telemetry = _train_parts(options, prepared, hparams, num_steps)
    how["logging"] = dataclasses.replace(how["logging"], telemetry=telemetry)
    run_step = jit_step(step) if sharding is None else shard_step(step, mesh)
    saving = _saving(options, prepared, config)
    loop = TrainLoop(run_step, state, batches, num_steps=num_steps, saving=saving, **how)
    return loop, evaluate, ""


def _saving(options: TrainOptions, prepared: Prepared, config: dict[str, Any]) -> Saving:
    """Only now, when all that can be refused was: what an earlier run left is gone then."""
    if options.resume is None and jax.process_index() == 0:
        start_anew(prepared.out, config)
    _wait_for_all("wdjax-folder")
    return Saving(
        checkpoints=Checkpoints(prepared.out / "checkpoints"),
        every=SAVE_EVERY if options.save_every is None else options.save_every,
        config=config,
    )


def _train_parts(
    options: TrainOptions, prepared: Prepared, hparams: dict[str, float], num_steps: int
) -> tuple[StepFn, TrainState, Callable]:
    """The step, the first state, the telemetry."""
    inputs = prepared.choose_data.inputs[:1]
    make_run = functools.partial(recipes.build_run, prepared.recipe, inputs, num_steps=num_steps)
    run = make_run(num_micro_batches=1 if options.micro_batches is None else options.micro_batches)
    with_telemetry = make_run(telemetry=True)
    state = jax.jit(run.init)(hparams, inputs, jax.random.key(options.seed))
    telemetry = jax.jit(
        lambda state, batch: with_telemetry.step(hparams, state, batch)[1]["telemetry"]
    )
    return skip_non_finite(functools.partial(run.step, hparams)), state, telemetry


def _log(options: TrainOptions, out: pathlib.Path) -> RunLog:
    wanted = options.tensorboard and jax.process_index() == 0
    return RunLog(out / LOG, board=out / "tensorboard" if wanted else None)


def _hang_watch(options: TrainOptions, out: pathlib.Path, log: RunLog) -> HangWatch | None:
    """Each process has its own stacks; the log is process 0's."""
    if _hang_after(options) == 0:
        return None
    index = jax.process_index()
    return HangWatch(
        _hang_after(options),
        out / (f"stacks-{index}.txt" if index else "stacks.txt"),
        ends=options.on_hang == "end",
        tell=None if index else lambda step, waited: log.write(step, {"hung_seconds": waited}),
    )


def _hang_after(options: TrainOptions) -> float:
    return HANG_AFTER if options.hang_after is None else options.hang_after


def _data_mesh(mesh: Mesh) -> Mesh:
    devices = list(mesh.devices.flat)
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def _resume(loop: TrainLoop | TuneLoop, num_devices: int, say: Callable[[str], None]) -> int:
    """A run that was killed before its first checkpoint begins again, which is the same."""
    try:
        step = loop.resume(may_differ=MAY_DIFFER)
    except FileNotFoundError:
        step = 0
    say(f"Resumed after step {step}." if step else "Nothing was saved yet: begins again.")
    if loop.saved_on not in (None, num_devices):
        say(
            f"It was saved on {loop.saved_on} devices and resumes on {num_devices}: equal to "
            "rounding, not bit for bit."
        )
    return step


def _run(
    loop: TrainLoop | TuneLoop, done: int, on_progress: Callable[[str, Progress], None] | None
) -> None:
    start = time.monotonic()
    if on_progress is not None:
        on_progress("training", Progress("compile", done, loop.num_steps, 0.0, None, None))
    first: tuple[int, float] | None = None
    for step, _ in loop:
        now = time.monotonic()
        if first is None:
            first = step, now
        if on_progress is None:
            continue
        since = step - first[0]
        left = (now - first[1]) / since * (loop.num_steps - step) if since else None
        on_progress("training", Progress("run", step, loop.num_steps, now - start, left, None))


def _curves(out: pathlib.Path, options: TrainOptions) -> dict[str, list[list[float | None]]]:
    """Per evaluation: the mean training loss since the one before, and the loss that was found."""
    name = "valid_loss" if holds_out(options) else "test_loss"
    train, watched, since = [], [], []
    for line in RunLog(out / LOG).read():
        if line.get("data_loss") is not None:
            since.append(line["data_loss"])
        if "valid_loss" in line:
            train.append(float(np.mean(since)) if since else None)
            watched.append(line["valid_loss"])
            since = []
    return {"train_loss": [train], name: [watched]}


def _headline(
    options: TrainOptions, loop: TrainLoop | TuneLoop, run: dict[str, Any], tuned: Tuned | None
) -> str:
    early = ""
    if isinstance(loop, TrainLoop) and loop.stopped_early:
        early = f" Stopped early: best at step {loop.best_step}."
    skipped = f" {loop.skipped} batches were skipped." if loop.skipped else ""
    empty = f" Of {loop.empty} batches no example counted." if loop.empty else ""
    what = f"Strength {options.strength:g} ({options.decay})"
    return (
        f"{what if tuned is None else tuned_words(tuned, options)}: test loss "
        f"{run['test_loss'][0]:.4g}, training loss {run['train_loss'][0]:.4g}."
        f"{early}{skipped}{empty}"
    )


def _inputs(source: Any) -> Any:
    return source.inputs if isinstance(source, Dataset) else source


def _wait_for_all(name: str) -> None:
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)
