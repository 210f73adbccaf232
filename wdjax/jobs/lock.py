"""One run in a folder at a time: the system's lock, or where it has none a file made once."""

import contextlib
import errno
import importlib
import json
import os
import pathlib
import platform
import secrets
from collections.abc import Iterator
from typing import Any

from wdjax.writing import WriteError

LOCK = ".lock"
"""The file that is locked; gone when the run ends, and no lock when it was killed."""

EXCLUSIVE = ".lock.json"
"""Where the system has no locks: the file that only one run can make."""

_WORD = "process"
_LONGEST = 300
_TRIES = 1000
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keeps a second run out of `folder` while this one is in it.

    The system itself frees the lock when the process ends, however it ends: nothing can be left
    locked. Where it has no locks (Windows, some network folders) a file that only one run can make
    takes its place; what a process that is dead left of it is taken over, if it ran on this
    machine.

    Raises:
      ValueError: if another run, on this machine or one that shares the folder, is in it.
      WriteError: if nothing can be written there.
    """
    path, token = pathlib.Path(folder) / LOCK, ""
    try:
        file = _opened(path)
        if file is None:
            path, token = _made_once(path.with_name(EXCLUSIVE))
    except OSError as error:
        raise WriteError(error.errno, error.strerror or str(error), str(path)) from error
    try:
        yield
    finally:
        if file is not None:
            path.unlink(missing_ok=True)  # Held until it is closed, so it is ours to remove.
            file.close()
        elif token in _read(path):
            path.unlink(missing_ok=True)


def _opened(path: pathlib.Path) -> Any:
    """The file, locked; None where the system cannot lock it."""
    for _ in range(_TRIES):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # No link is followed: what it leads to is no lock, and would be emptied.
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
            file = open(os.open(path, flags, 0o666), "r+", encoding="utf-8", errors="replace")
        except FileNotFoundError:
            continue  # A run that was refused has just taken its new folder away again.
        got = False
        try:
            got = _try_lock(file)
            holder = file.read(_LONGEST).strip()
            if got is False:
                raise _refusal(path.parent, holder or "it just began")
            if not (holder.startswith(_WORD) or _WORD.startswith(holder)):  # A kill may cut it.
                got = False  # So it stays.
                raise ValueError(
                    f"{str(path)!r} was not written by wdjax; choose another folder, or remove it."
                )
            if got and _is_there(file, path):
                file.seek(0)
                file.truncate()
                file.write(f"{_WORD} {os.getpid()} on {platform.node()}\n")
                file.flush()
                return file
            file.close()
            if got is None:
                path.unlink(missing_ok=True)
                return None
        except BaseException:
            if got:
                path.unlink(missing_ok=True)
            file.close()
            raise
    raise OSError(errno.EAGAIN, "it comes and goes", str(path))


def _is_there(file: Any, path: pathlib.Path) -> bool:
    """Whether what was locked is still the file of that name: its last holder removed it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _try_lock(file: Any) -> bool | None:
    """Whether it is ours now; None where there are no locks."""
    if os.name == "nt":
        return None
    fcntl = importlib.import_module("fcntl")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def _refusal(folder: pathlib.Path, holder: str, way_out: str = "") -> ValueError:
    return ValueError(
        f"another run is in {str(folder)!r} ({holder}); wait for it, or choose another folder."
        f"{way_out}"
    )


def _made_once(path: pathlib.Path) -> tuple[pathlib.Path, str]:
    """Makes the file that says who is in the folder, and gives a word that only it holds."""
    token = secrets.token_hex(8)
    me = {"process": os.getpid(), **_here(), "began": _began(os.getpid()), "token": token}
    while True:
        try:
            file = open(path, "x", encoding="utf-8")
        except FileExistsError:
            _take_over(path)
            continue
        try:
            with file:
                file.write(json.dumps(me) + "\n")
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path, token


def _take_over(path: pathlib.Path) -> None:
    """Takes away the file of a process that is dead.

    Raises:
      ValueError: if it lives, or nobody here can tell.
    """
    text = _read(path)
    try:
        holder = json.loads(text)
        process, began = holder["process"], holder["began"]
        is_here = {name: holder[name] for name in _here()} == _here()
        is_dead = is_here and os.name != "nt" and not _lives(process, began)
    except (ValueError, KeyError, TypeError):
        holder, process, is_dead = {"machine": "an unknown machine"}, "unknown", False
    if not is_dead:
        if text or path.exists():
            raise _refusal(
                path.parent,
                f"process {process} on {holder['machine']}",
                f" If that process has ended, remove {str(path)!r}.",
            )
        return
    # Renamed first: what another has made meanwhile must not be taken for what was read.
    aside = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if _read(aside) != text:
        with contextlib.suppress(OSError):
            os.link(aside, path)
    aside.unlink(missing_ok=True)


def _read(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _here() -> dict[str, str]:
    """This machine, and the numbering of processes that holds in this container."""
    try:
        numbering = os.readlink("/proc/self/ns/pid")
    except OSError:
        numbering = ""
    return {"machine": platform.node(), "numbering": numbering}


def _lives(process: int, began: str | None) -> bool:
    """Whether the process runs; another that was given its number began at another time."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # Another user's: it is there.
    return _began(process) == began


def _began(process: int) -> str | None:
    """When a process began, in ticks since the machine did; None where nobody says."""
    try:
        stat = pathlib.Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return stat.rpartition(")")[2].split()[19]
