"""What a checkpoint says beside its arrays: JSON, sealed by its own SHA-256."""

import importlib.metadata
import json
import os
import pathlib
import platform
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxtyping import PyTree

from wdjax.writing import DamagedFileError, json_bytes, read_mapping, unsealed

FORMAT = 1
FACTS = "checkpoint.json"
BEGAN = "began_at_batch"
"""The key in `progress` of the batch, from 0, that a loop's first step took."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written."""


class DamagedCheckpointError(CheckpointError, DamagedFileError):
    """What a checkpoint's files hold is not what was written."""


class Restored(NamedTuple):
    """A checkpoint read back, every leaf checked against its SHA-256."""

    step: int
    state: PyTree
    """In the structure of what it was read into, as NumPy arrays and typed keys."""
    facts: dict[str, Any]
    """What was saved with it: `data`, `config`, `progress`, `score`, `versions`."""


def versions() -> dict[str, str]:
    """The versions that a run's numbers may depend on."""
    packages = ("wdjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {name: _version(name) for name in packages} | {"python": platform.python_version()}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"  # Run from its source tree.


def check_same_config(
    saved: Mapping[str, Any],
    here: Mapping[str, Any],
    *,
    may_differ: tuple[str, ...] = (),
    where: str = "",
) -> None:
    """Checks that a run goes on as it was begun; `where` is the folder that says how that was.

    Raises:
      ValueError: naming each field that differs, with both values.
    """
    here = json.loads(json_bytes(dict(here)))
    absent = "absent"
    differing = [
        f"{name} was {saved.get(name, absent)!r} and is {here.get(name, absent)!r}"
        for name in sorted(saved.keys() | here.keys())
        if name not in may_differ and saved.get(name, absent) != here.get(name, absent)
    ]
    if differing:
        told = f" ({where} has it)" if where else ""
        raise ValueError(
            f"cannot resume under another config: {'; '.join(differing)}. Give what was given "
            f"before{told}, or start a new run."
        )


def read_facts(root: pathlib.Path, step: int) -> dict[str, Any]:
    """What the checkpoint of `step` in `root` says, with its seal checked and taken off.

    Raises:
      DamagedCheckpointError: if it is not what was written, was written for another step than its
        name says, or is a link that leads elsewhere.
      ValueError: if it was written in a later format, with the version that reads it.
    """
    folder = root / folder_name(step)
    path = folder / FACTS
    _check_no_link_out(folder, root)
    try:
        facts = unsealed(read_mapping(path), path)
    except DamagedFileError as error:
        raise DamagedCheckpointError(str(error)) from error
    except OSError as error:
        raise DamagedCheckpointError(
            f"{str(path)!r} cannot be read ({error.strerror or first_line(error)})."
        ) from error
    if facts["format"] != FORMAT:
        raise ValueError(
            f"{str(path)!r} has format {facts['format']}, and this version of wdjax reads format "
            f"{FORMAT}; read it with wdjax {facts['versions'].get('wdjax')}."
        )
    if facts["step"] != step:
        raise DamagedCheckpointError(
            f"{str(path)!r} is of step {facts['step']}, and its folder is named for step {step}."
        )
    taken = batches_taken(facts)
    if taken is not None and taken != step:
        raise DamagedCheckpointError(
            f"{str(path)!r} is of step {step}, and its data stand after {taken} batches."
        )
    return facts


def batches_taken(facts: Mapping[str, Any]) -> int | None:
    """How many batches a loop had taken of its data when it saved; None where it is not said."""
    stands, began = facts["data"].get("batches"), facts["progress"].get(BEGAN)
    return stands - began if isinstance(stands, int) and isinstance(began, int) else None


def _check_no_link_out(folder: pathlib.Path, root: pathlib.Path) -> None:
    """Whoever gives a run away must not have us read, or call ours, what lies elsewhere."""
    inside = os.path.realpath(root)
    for path in (folder, *sorted(folder.rglob("*"))):
        if not path.is_symlink():
            continue
        end = pathlib.Path(os.path.realpath(path))  # `resolve` raises where links go in a circle.
        if end.is_symlink():
            raise DamagedCheckpointError(f"{str(path)!r} is a link that leads back to itself.")
        if not end.is_relative_to(inside):
            raise DamagedCheckpointError(
                f"{str(path)!r} is a link that leads out of {str(root)!r}."
            )


def folder_name(step: int) -> str:
    """The folder of a step's checkpoint."""
    return f"step_{step:010d}"


def steps_in(folder: pathlib.Path) -> list[int]:
    """The steps that have one, ascending."""
    if not folder.is_dir():
        return []
    names = (re.fullmatch(r"step_(\d{10,})", entry.name) for entry in folder.iterdir())
    return sorted(int(name.group(1)) for name in names if name)


def free_name(path: pathlib.Path) -> pathlib.Path:
    """`path`, or the first of `path-2`, `path-3`, ... that is free."""
    number, free = 1, path
    while os.path.lexists(free):
        number, free = number + 1, path.with_name(f"{path.name}-{number}")
    return free


def first_line(error: BaseException) -> str:
    """The first line of an error's text, not too long for a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
