"""`wdjax train --stream`: a run of days, saved on the way, resumed bit for bit."""

import contextlib
import dataclasses
import json
import pathlib
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from wdjax import recipe as recipes
from wdjax.checkpoint import Checkpoints, check_same_config
from wdjax.data import arrays
from wdjax.data.dataset import make_dataset
from wdjax.data.stream import make_stream, prefetch_to_device
from wdjax.data.tfds import TfdsSource, open_tfds, split_sizes
from wdjax.folder import locked
from wdjax.jobs.audit import audit_results, audit_run
from wdjax.jobs.files import Clock, finish, header, write_json, write_params
from wdjax.jobs.options import RunOptions, TrainOptions
from wdjax.jobs.prepare import Prepared, check_batch_fits, hparams_of, load_parts, prepare
from wdjax.loop import Evaluate, Preempted, TrainLoop, make_evaluate
from wdjax.runlog import RunLog
from wdjax.runners import jit_step, shard_step
from wdjax.selection.cross_validation import Progress
from wdjax.step import init_state, skip_non_finite
from wdjax.types import Fit

CONFIG = "config.json"
SAVE_EVERY = 500
SAMPLE = 256
"""Examples of a set that is streamed, which stand for all where only shapes are asked."""

_STREAMED = tuple(f.name for f in dataclasses.fields(TrainOptions) if f.metadata["streamed"])
_MAY_DIFFER = (
    *("out", "name", "overwrite", "resume", "stream", "devices", "distributed"),
    *("data_dir", "download", "save_every"),
)
"""Options that change where and when a run runs, not what it computes."""


class Sources(NamedTuple):
    """What a run reads: to train on, to stop early by (or to watch), to judge on at the end."""

    train: Any
    watch: Any
    test: Any


def check_not_streamed(options: TrainOptions) -> None:
    """Refuses options that only a streamed run has."""
    given = [name for name in _STREAMED if getattr(options, name) is not None]
    if given:
        flag = given[0].replace("_", "-")
        raise ValueError(
            f"`{given[0]}` needs a run that is saved on the way: add --stream, or "
            f"leave --{flag} out."
        )


def resumed_options(folder: str, given: Mapping[str, Any]) -> TrainOptions:
    """The options a run was begun with; those `given` again must be the same, or it is refused.

    A model of the user's own must be given again: a folder is not trusted to name code to run.

    Raises:
      ValueError: if the folder holds no streamed run, or names a model that was not given.
    """
    saved = _read_config(pathlib.Path(folder))
    names = {field.name for field in dataclasses.fields(TrainOptions)}
    kept = {name: value for name, value in saved.items() if name in names}
    options = TrainOptions(**{**kept, "stream": True, **given, "resume": folder})
    if ":" in options.model and "model" not in given:
        raise ValueError(
            f"`resume` {folder!r} was trained with the model {options.model!r}; give it again with "
            "--model: a folder is not trusted to name code to run."
        )
    return options


def run_stream(
    options: TrainOptions,
    *,
    say: Callable[[str], None] = print,
    watch: Callable[[str, Progress], None] | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Trains batch by batch at one strength, over all devices, and judges on the test part.

    Writes checkpoints and `log.jsonl` on the way; at the end `results.json`, `report.html` and
    `params.npz` (with `patience`, of the best evaluation). Stopped at any moment, by whatever, it
    goes on with `resume` as if it had not been.

    Raises:
      ValueError: for any bad option or data, a folder that another run is in, or a resume under
        another config, naming each field.
      NonFiniteError: if the loss became infinite or NaN, see `non_finite`.
      CheckpointError: if a checkpoint could not be written.
      Preempted: on SIGTERM, saved.
      KeyboardInterrupt: on Ctrl-C, saved.
    """
    clock = Clock()
    is_first = jax.process_index() == 0
    say = say if is_first else lambda text: None
    watch = watch if is_first else None
    if options.resume is not None:
        own = {"out": options.resume, "name": None, "overwrite": True, "stream": True}
        options = dataclasses.replace(options, **own)
    if options.seeds != 1:
        raise ValueError(
            f"`seeds` = {options.seeds}: a streamed run is one run; start one a seed, with --seed."
        )
    hparams = hparams_of(options)
    prepared, sources = _prepare(options)
    num_train = len(_inputs(sources.train))
    check_batch_fits(prepared.recipe.batch_size, num_train)
    # Every process must have found the folder free, or to be resumed, before one writes to it.
    _wait_for_all("wdjax-prepared")
    with locked(prepared.out) if is_first else contextlib.nullcontext():
        config = _config(options, prepared)
        if options.resume is not None:
            check_same_config(_read_config(prepared.out), config, may_differ=_MAY_DIFFER)
        elif is_first:
            _start_anew(prepared.out, config)
        _wait_for_all("wdjax-folder")
        results = header("train", options, prepared, command)
        results["data"]["sha256"] = _fingerprint(sources.train)
        clock.lap("data")
        loop, evaluate = _build(options, prepared, sources, hparams, config)
        done = _resume(loop, say) if options.resume is not None else 0
        say(
            f"{prepared.describe()} Training on {num_train} batch by batch, "
            f"{loop.num_steps} steps, in {prepared.out}."
        )
        try:
            _run(loop, done, watch)
        except (Preempted, KeyboardInterrupt):
            results["headline"] = (
                f"Stopped after step {loop.step} of {loop.num_steps}. Go on with: wdjax train "
                f"--resume {prepared.out}"
            )
            if is_first:
                write_json(prepared.out, results)
            say(results["headline"])
            raise
        clock.lap("refit")
        state = loop.best_state() if options.patience is not None else loop.state
        scores = {f"test_{name}": [v] for name, v in evaluate(sources.test)(state).items()}
        scores |= {f"train_{name}": [v] for name, v in evaluate(sources.train)(state).items()}
        run = {"hparams": hparams, **scores, "curves": _curves(prepared.out, options)}
        clock.lap("judge")
        fit = jax.device_get(Fit(state.params, state.model_state, {}))
        results |= {"refit": {"chosen": run}, "status": "complete"}
        results["headline"] = _headline(options, loop, run)
        if is_first:
            results |= audit_results(audit_run(prepared, hparams, fit.params), options.decay)
            write_params(prepared.out, fit, _scaling(prepared))
            finish(prepared.out, results, clock)
    return results


def _prepare(options: TrainOptions) -> tuple[Prepared, Sources]:
    if options.data.startswith("tfds:"):
        return _prepare_tfds(options)
    prepared = prepare(options)
    scaled = _scaled(prepared)
    train, test = scaled(prepared.choose_data), scaled(prepared.test_data)
    if options.patience is None:
        return prepared, Sources(train, test, test)
    train, held_out = arrays.split_off_test(train, fraction=0.1, seed=options.seed)
    return prepared, Sources(train, held_out, test)


def _prepare_tfds(options: TrainOptions) -> tuple[Prepared, Sources]:
    """The set stays on the disk; a sample of it stands for it where only shapes are asked."""
    name = options.data.removeprefix("tfds:")
    if "@" in name:
        raise ValueError(
            f"`data` {options.data!r}: a streamed run needs test data beside the part it is told "
            "to take; name the set without @, or leave --stream out."
        )
    if options.label_noise:
        raise ValueError("`label_noise` needs the data in memory: leave --stream or it out.")

    def opened(split: str) -> TfdsSource:
        where = {"data_dir": options.data_dir, "download": options.download}
        return open_tfds(f"{name}@{split}", length=options.length, **where)

    whole = opened("train")
    has_test = "test" in split_sizes(name, data_dir=options.data_dir)
    end = 100 if has_test else 80
    stop = end if options.patience is None else end - 10
    train = opened(f"train[:{stop}%]")
    test = opened("test" if has_test else f"train[{end}%:]")
    held_out = test if options.patience is None else opened(f"train[{stop}%:{end}%]")

    def load(options: RunOptions, loss: str) -> tuple[arrays.Dataset, arrays.Dataset]:
        if loss == "squared_error":
            raise ValueError(
                f"`loss` {loss} standardises the targets, which needs the data in memory: leave "
                "--stream out."
            )
        if whole.num_classes is None:
            load_parts(options, loss)  # Refuses, in its own words.
        items = whole.__getitems__(range(min(SAMPLE, len(whole))))
        sample = make_dataset(
            np.array([inputs for inputs, _ in items]),
            np.array([target for _, target in items]),
            name=f"tfds:{whole.name}",
            kind=whole.kind,
            num_outputs=whole.num_classes,
            class_names=whole.class_names,
        )
        if options.model == "cnn" and sample.inputs.shape[1:] != (32, 32, 3):
            raise ValueError(
                f"`model` cnn reads images of 32x32x3, and those of {options.data!r} are "
                f"{sample.inputs.shape[1:]}; leave --stream out, then they are resized."
            )
        return sample, sample

    prepared = prepare(options, load=load)
    counts = {"num_choose": len(train) + len(held_out) * (held_out is not test)}
    return dataclasses.replace(prepared, **counts, num_test=len(test)), Sources(
        train, held_out, test
    )


def _scaling(prepared: Prepared) -> dict[str, arrays.Scaling]:
    return recipes.recipe_scaling(prepared.recipe, arrays.to_batch(prepared.choose_data))


def _scaled(prepared: Prepared) -> Callable[[arrays.Dataset], arrays.Dataset]:
    """Standardises as the compiled run does, by the choosing part, once and on the host."""
    scaling = _scaling(prepared)

    def scaled(dataset: arrays.Dataset) -> arrays.Dataset:
        ones = np.ones(len(dataset.inputs), np.float32)
        new = {
            field: np.asarray(arrays.apply_scaling(getattr(dataset, field), ones, of))
            for field, of in scaling.items()
        }
        return dataset._replace(**new)

    return scaled


def _build(
    options: TrainOptions,
    prepared: Prepared,
    sources: Sources,
    hparams: dict[str, float],
    config: dict[str, Any],
) -> tuple[TrainLoop, Callable[[Any], Evaluate]]:
    recipe, mesh = prepared.recipe, _data_mesh(prepared.mesh)
    sharding = NamedSharding(mesh, P("data")) if mesh.size > 1 else None
    make = lambda source, **more: make_stream(source, batch_size=recipe.batch_size, **more)
    stream = make(sources.train, seed=options.seed, num_epochs=recipe.num_epochs)
    num_steps = stream.num_batches
    assert num_steps is not None
    init_key, step_key, augment_key = jax.random.split(jax.random.key(options.seed), 3)
    inputs = prepared.choose_data.inputs[:1]
    step, tx = recipes.recipe_step(
        recipe,
        hparams,
        num_steps,
        inputs,
        augment_key,
        num_micro_batches=1 if options.micro_batches is None else options.micro_batches,
    )
    params, model_state = jax.jit(recipes.recipe_model(recipe, hparams).init)(init_key, inputs)
    guarded = skip_non_finite(step)
    score = recipes.recipe_score(recipe)
    evaluate = lambda source: make_evaluate(score, lambda: make(source), sharding=sharding)
    every = options.evaluate_every
    every = -(-num_steps // recipe.num_epochs) if every is None else every
    loop = TrainLoop(
        jit_step(guarded) if sharding is None else shard_step(guarded, mesh),
        init_state(params, tx, model_state=model_state, key=step_key),
        prefetch_to_device(stream, sharding=sharding),
        num_steps=num_steps,
        evaluate=evaluate(sources.watch),
        evaluate_every=every,
        patience=options.patience,
        checkpoints=Checkpoints(prepared.out / "checkpoints"),
        save_every=SAVE_EVERY if options.save_every is None else options.save_every,
        config=config,
        log=prepared.out / "log.jsonl",
        log_every=max(1, every // 20),
        non_finite=options.non_finite or "stop",
    )
    return loop, evaluate


def _data_mesh(mesh: Mesh) -> Mesh:
    devices = list(mesh.devices.flat)
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def _resume(loop: TrainLoop, say: Callable[[str], None]) -> int:
    """A run that was killed before its first checkpoint begins again, which is the same."""
    try:
        step = loop.resume(may_differ=_MAY_DIFFER)
    except FileNotFoundError:
        step = 0
    say(f"Resumed after step {step}." if step else "Nothing was saved yet: begins again.")
    return step


def _run(loop: TrainLoop, done: int, watch: Callable[[str, Progress], None] | None) -> None:
    start = time.monotonic()
    if watch is not None:
        watch("training", Progress("compile", done, loop.num_steps, 0.0, None, None))
    first: tuple[int, float] | None = None
    for step, _ in loop:
        now = time.monotonic()
        if first is None:
            first = step, now
        if watch is None:
            continue
        since = step - first[0]
        left = (now - first[1]) / since * (loop.num_steps - step) if since else None
        watch("training", Progress("run", step, loop.num_steps, now - start, left, None))


def _config(options: TrainOptions, prepared: Prepared) -> dict[str, Any]:
    recipe = prepared.recipe
    told = dataclasses.asdict(options) | {"epochs": recipe.num_epochs, "loss": recipe.loss}
    return {name: value for name, value in told.items() if name not in _MAY_DIFFER}


def _read_config(folder: pathlib.Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"`resume` {str(folder)!r} holds no {CONFIG}; give the folder of a run that was begun "
            "with wdjax train --stream."
        ) from None
    except ValueError as error:
        raise ValueError(f"`resume`: {str(folder / CONFIG)!r} is not JSON ({error}).") from None
    if not isinstance(config, dict):
        raise ValueError(f"`resume`: {str(folder / CONFIG)!r} was not written by wdjax train.")
    return config


def _start_anew(out: pathlib.Path, config: dict[str, Any]) -> None:
    """Under --overwrite, what an earlier run left would be resumed from: it goes."""
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    for name in ("log.jsonl", "results.json", "report.html", "params.npz"):
        (out / name).unlink(missing_ok=True)
    beside = out / f"{CONFIG}.tmp"
    beside.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    beside.replace(out / CONFIG)


def _curves(out: pathlib.Path, options: TrainOptions) -> dict[str, list[list[float | None]]]:
    """Per evaluation: the mean training loss since the one before, and the loss that was found."""
    name = "test_loss" if options.patience is None else "valid_loss"
    train, watched, since = [], [], []
    for line in RunLog(out / "log.jsonl").read():
        if line.get("data_loss") is not None:
            since.append(line["data_loss"])
        if "valid_loss" in line:
            train.append(float(np.mean(since)) if since else None)
            watched.append(line["valid_loss"])
            since = []
    return {"train_loss": [train], name: [watched]}


def _headline(options: TrainOptions, loop: TrainLoop, run: dict[str, Any]) -> str:
    early = f" Stopped early: best at step {loop.best_step}." if loop.stopped_early else ""
    skipped = f" {loop.skipped} batches were skipped." if loop.skipped else ""
    return (
        f"Strength {options.strength:g} ({options.decay}): test loss {run['test_loss'][0]:.4g}, "
        f"training loss {run['train_loss'][0]:.4g}.{early}{skipped}"
    )


def _inputs(source: Any) -> Any:
    return source.inputs if isinstance(source, arrays.Dataset) else source


def _fingerprint(source: Any) -> str | None:
    """The hash of data in memory; of data on disk their name and version say what they are."""
    return arrays.hash_of(source) if isinstance(source, arrays.Dataset) else None


def _wait_for_all(name: str) -> None:
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)
