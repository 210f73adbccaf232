"""Going on with a run that was stopped: what it was told, and what must be the same again."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from wdjax.jobs.options import TrainOptions
from wdjax.jobs.results import clear_earlier
from wdjax.jobs.setup import Prepared
from wdjax.recipe.own import check_given_again

CONFIG = "config.json"

_STREAMED = tuple(f.name for f in dataclasses.fields(TrainOptions) if f.metadata["streamed"])
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
    """
    saved = read_config(pathlib.Path(folder))
    names = {field.name for field in dataclasses.fields(TrainOptions)}
    kept = {name: value for name, value in saved.items() if name in names}
    how = {"stream": saved.get("stream", True), "resume": folder}
    options = TrainOptions(**{**kept, **given, **how})
    check_given_again(f"`resume` {folder!r}", dataclasses.asdict(options), given)
    return options


def run_config(options: TrainOptions, prepared: Prepared) -> dict[str, Any]:
    """What a run was told, as its folder keeps it."""
    recipe = prepared.recipe
    told = dataclasses.asdict(options) | {"epochs": recipe.num_epochs, "loss": recipe.loss}
    return {name: value for name, value in told.items() if name not in _NOT_SAVED}


def read_config(folder: pathlib.Path) -> dict[str, Any]:
    """What the run in a folder was told.

    Raises:
      ValueError: if there is none, or it cannot be read.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"`resume` {str(folder)!r} holds no {CONFIG}; give the folder of a run that was begun "
            "with wdjax train and saved on the way."
        ) from None
    except ValueError as error:
        raise ValueError(f"`resume`: {str(folder / CONFIG)!r} is not JSON ({error}).") from None
    if not isinstance(config, dict):
        raise ValueError(f"`resume`: {str(folder / CONFIG)!r} was not written by wdjax train.")
    return config


def start_anew(out: pathlib.Path, config: dict[str, Any]) -> None:
    """Takes out what an earlier run left, and writes down what this one was told."""
    clear_earlier(out)
    beside = out / f"{CONFIG}.tmp"
    beside.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    beside.replace(out / CONFIG)
