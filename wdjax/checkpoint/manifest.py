"""What a checkpoint says beside its arrays: JSON, sealed by its own SHA-256."""

import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxtyping import PyTree

FORMAT = 1
FACTS = "checkpoint.json"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written."""


class DamagedCheckpointError(CheckpointError):
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
    saved: Mapping[str, Any], here: Mapping[str, Any], *, may_differ: tuple[str, ...] = ()
) -> None:
    """Checks that a run goes on as it was begun.

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
        raise ValueError(
            f"cannot resume under another config: {'; '.join(differing)}. Give what was given "
            "before, or start a new run."
        )


def read_facts(folder: pathlib.Path) -> dict[str, Any]:
    """What a checkpoint's folder says, with its seal checked and taken off.

    Raises:
      DamagedCheckpointError: if it is not what was written.
      ValueError: if it was written in a later format, with the version that reads it.
    """
    path = folder / FACTS
    try:
        facts = json.loads(path.read_bytes())
        seal = facts.pop("sha256")
        whole = seal == hashlib.sha256(json_bytes(facts)).hexdigest()
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedCheckpointError(
            f"{str(path)!r} cannot be read ({first_line(error)})."
        ) from error
    if not whole:
        raise DamagedCheckpointError(f"{str(path)!r} is not what was written (SHA-256).")
    if facts["format"] != FORMAT:
        raise ValueError(
            f"{str(path)!r} has format {facts['format']}, and this version of wdjax reads format "
            f"{FORMAT}; read it with wdjax {facts['versions'].get('wdjax')}."
        )
    return facts


def json_bytes(facts: Mapping[str, Any]) -> bytes:
    """Strict JSON with sorted keys: the same facts have the same bytes."""
    return json.dumps(facts, sort_keys=True, allow_nan=False).encode()


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
    while free.exists():
        number, free = number + 1, path.with_name(f"{path.name}-{number}")
    return free


def write_durably(path: pathlib.Path, content: bytes) -> None:
    """Writes a file that survives a power cut."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def sync_folder(folder: pathlib.Path) -> None:
    """Makes a rename survive a power cut; Windows has no such call and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, not too long for a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
