"""Going on with a run that was stopped: what it was told, and what must be the same again."""

import contextlib
import dataclasses
import json
import pathlib
import types
import typing
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from wdjax.checkpoint import CheckpointError, Checkpoints, Restored, check_same_config
from wdjax.checkpoint.manifest import read_facts, steps_in
from wdjax.jobs.folder import clear_earlier
from wdjax.jobs.options import TrainOptions
from wdjax.jobs.setup import Prepared
from wdjax.recipe.own import check_given_again, is_own
from wdjax.writing import SEAL, DamagedFileError, read_mapping, sealed, unsealed, write_whole

CONFIG = "config.json"

_STREAMED = tuple(f.name for f in dataclasses.fields(TrainOptions) if f.metadata["streamed"])
_CHOICES = {f.name: f.metadata["choices"] for f in dataclasses.fields(TrainOptions)}
_NOT_SAVED = ("out", "name", "overwrite", "resume", "devices", "distributed", "download")
MAY_DIFFER = (
    *(*_NOT_SAVED, "stream", "data_dir", "save_every", "tensorboard", "hang_after", "on_hang"),
    "measure",
)
"""Options that change where and how a run runs, not what it computes."""


def check_not_streamed(options: TrainOptions) -> None:
    """Refuses options that only a streamed run has.

    Raises:
      ValueError: for the first of them that is given.
    """
    given = [name for name in _STREAMED if getattr(options, name) is not None]
    if given:
        flag = given[0].replace("_", "-")
        raise ValueError(
            f"`{given[0]}` needs a run that goes batch by batch: add --stream, or leave --{flag} "
            "out."
        )


def resumed_options(folder: str, given: Mapping[str, Any]) -> TrainOptions:
    """The options a run was begun with; those `given` again must be the same, or it is refused.

    A model of the user's own must be given again: a folder is not trusted to name code to run.

    Raises:
      ValueError: if the folder holds no saved run, or names a model that was not given.
      DamagedFileError: if what the run was told cannot be known any more.
      OSError: if it cannot be read.
    """
    saved = read_config(pathlib.Path(folder))
    names = {field.name for field in dataclasses.fields(TrainOptions)}
    as_tuple = lambda value: tuple(value) if isinstance(value, list) else value
    kept = {name: as_tuple(value) for name, value in saved.items() if name in names}
    how = {"stream": saved.get("stream", True), "resume": folder}
    options = TrainOptions(**{**kept, **given, **how})
    check_given_again(f"`resume` {folder!r}", dataclasses.asdict(options), given)
    return options


def run_config(options: TrainOptions, prepared: Prepared) -> dict[str, Any]:
    """What a run was told, as its folder keeps it."""
    recipe = prepared.recipe
    told = dataclasses.asdict(options) | {"epochs": recipe.num_epochs, "loss": recipe.loss}
    # Runs of earlier versions, which had no such options, resume.
    unsaid = [name for name in ("tune", "tune_carried") if told[name] is None]
    return {name: value for name, value in told.items() if name not in (*_NOT_SAVED, *unsaid)}


def read_config(folder: pathlib.Path) -> dict[str, Any]:
    """What the run in a folder was told: of its config.json, or else of its newest checkpoint.

    Raises:
      ValueError: if it holds no saved run.
      DamagedFileError: if it is not what was written, and no checkpoint says what that was.
      OSError: if it cannot be read.

    Warns:
      RuntimeWarning: if it is of an earlier version, which did not seal it; or if it is damaged
        or gone and a checkpoint stands in for it.
    """
    try:
        return _sealed_or_old(folder / CONFIG)
    except (FileNotFoundError, NotADirectoryError, DamagedFileError) as error:
        step, config = _config_of_newest(folder / "checkpoints")
        if config:
            why = str(error) if isinstance(error, DamagedFileError) else f"{CONFIG} is gone."
            warnings.warn(
                f"{str(folder)!r}: {why} What the run was told is taken from its checkpoint of "
                f"step {step}.",
                RuntimeWarning,
                stacklevel=3,
            )
            return config
        if isinstance(error, DamagedFileError):
            raise DamagedFileError(
                f"`resume`: {error} No checkpoint says what it was; start the run anew."
            ) from error
        raise ValueError(
            f"`resume` {str(folder)!r} holds no {CONFIG}; give the folder of a run that was begun "
            "with wdjax train and saved on the way."
        ) from None


def _sealed_or_old(path: pathlib.Path) -> dict[str, Any]:
    found = read_mapping(path)
    if SEAL in found:
        return unsealed(found, path)
    kinds = typing.get_type_hints(TrainOptions)
    for name, value in found.items():
        if name not in kinds:
            raise DamagedFileError(f"{str(path)!r} says {name!r}, which is no option of a run.")
        if not is_of_kind(value, kinds[name]):
            raise DamagedFileError(f"{str(path)!r} says {name} = {value!r}, which cannot be.")
        known = _CHOICES.get(name, ())
        if known and value is not None and value not in known and not is_own(value):
            raise DamagedFileError(
                f"{str(path)!r} says {name} = {value!r}, and there is only {', '.join(known)}."
            )
    warnings.warn(
        f"{str(path)!r} carries no SHA-256: an earlier version wrote it, or it was edited. What "
        "it says is taken as it stands.",
        RuntimeWarning,
        stacklevel=4,
    )
    return found


def is_of_kind(value: Any, kind: Any) -> bool:
    """Whether a JSON value is one that an options field of this type can have."""
    if isinstance(kind, types.UnionType):
        return any(is_of_kind(value, one) for one in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        (one, _) = typing.get_args(kind)
        return isinstance(value, list) and all(is_of_kind(each, one) for each in value)
    if kind is float:
        return type(value) in (int, float)
    return value is None if kind is types.NoneType else type(value) is kind


def _config_of_newest(checkpoints: pathlib.Path) -> tuple[int, dict[str, Any]]:
    for step in reversed(steps_in(checkpoints)):
        with contextlib.suppress(CheckpointError, ValueError):
            return step, read_facts(checkpoints, step)["config"]
    return 0, {}


def restored(
    open_checkpoints: Callable[[], Checkpoints],
    like: Any,
    *,
    out: pathlib.Path,
    config: Mapping[str, Any],
    data: str,
    data_hash: str,
) -> Restored | None:
    """The newest checkpoint of a run in memory; None if nothing was saved yet.

    Args:
      open_checkpoints: opens the folder's, once it is known that the run may go on.
      like: what was saved, or its shapes as arrays.
      out: the run's folder.
      config: what the run is told now.
      data, data_hash: the name of the data, and what they hold now.

    Raises:
      ValueError: if the folder holds no saved run, or one that was told something else or was
        begun on other data.
      DamagedCheckpointError: if no checkpoint is whole.
    """
    check_same_config(read_config(out), config, may_differ=MAY_DIFFER, where=str(out))
    checkpoints = open_checkpoints()
    try:
        found = checkpoints.restore(like)
    except FileNotFoundError:
        return None
    check_same_config(found.facts["config"], config, may_differ=MAY_DIFFER)
    if found.facts["data"].get("sha256", data_hash) != data_hash:
        raise ValueError(
            f"`resume` {str(out)!r} was begun on other data than {data!r} holds now; give the data "
            "back as they were, or start a new run."
        )
    return found


def saved_step(out: pathlib.Path) -> int | None:
    """The step of the newest checkpoint that a run can go on from; None if it has saved none."""
    return max(steps_in(out / "checkpoints"), default=None)


def start_anew(out: pathlib.Path, config: dict[str, Any]) -> None:
    """Takes out what an earlier run left, and writes down what this one was told."""
    clear_earlier(out)
    write_whole(out / CONFIG, json.dumps(sealed(config), indent=2) + "\n")
