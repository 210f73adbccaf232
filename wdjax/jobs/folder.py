"""The folder of a run: a name that stays inside, and one run in it at a time."""

import contextlib
import importlib
import os
import pathlib
import platform
import re
from collections.abc import Iterator
from typing import Any

LOCK = ".lock"
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,79}")


def cache_folder() -> pathlib.Path:
    """Where the command keeps what it need not do twice: compiled programs, scores of trials."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(root).expanduser() / "wdjax"


def run_folder(root: str | os.PathLike[str], name: str) -> pathlib.Path:
    """`root/name`, which lies inside `root` whatever `name` says.

    Raises:
      ValueError: for a name that is not 1 to 80 of the characters `A-Z a-z 0-9 . _ -` with no dot
        first (so no path, relative, absolute or Windows'), or one that is a link out of `root`.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"a run's name must be 1 to 80 of A-Z a-z 0-9 . _ - and not begin with a dot, got "
            f"{name!r}."
        )
    folder = pathlib.Path(root) / name
    if not folder.resolve().is_relative_to(pathlib.Path(root).resolve()):
        raise ValueError(f"run {name!r} is a link that leads out of {str(root)!r}; remove it.")
    return folder


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keeps a second run out of `folder` while this one is in it.

    The system itself frees the lock when the process ends, however it ends: nothing can be left
    locked. (On Windows, which has no such lock, none is taken.)

    Raises:
      ValueError: if another run, on this machine or one that shares the folder, is in it.
    """
    path = pathlib.Path(folder) / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        if not _try_lock(file):
            file.seek(0)
            raise ValueError(
                f"another run is in {str(folder)!r} ({file.read().strip() or 'it just began'}); "
                "wait for it, or choose another folder."
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield


def _try_lock(file: Any) -> bool:
    if os.name == "nt":
        return True
    fcntl = importlib.import_module("fcntl")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
