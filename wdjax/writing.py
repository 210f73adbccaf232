"""The one writer of files: each is whole or not there, and known by its SHA-256."""

import errno
import hashlib
import json
import os
import pathlib
import re
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

PARTIAL = ".wdjax-"
"""How the name of a file begins that is still being written, beside the one it will be."""

SEAL = "sha256"
"""The key of a sealed mapping's own SHA-256."""


class DamagedFileError(RuntimeError):
    """What a file holds is not what was written into it."""


class WriteError(OSError):
    """A file could not be written; what stood there before still does."""

    def __str__(self) -> str:
        return (
            f"{self.filename!r} could not be written: {self.strerror}. What stood there before "
            "stays; free some space or choose another folder."
        )


def cache_folder() -> pathlib.Path:
    """Where the command keeps what it need not do twice: compiled programs, scores of trials."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(root).expanduser() / "wdjax"


def write_whole(
    path: str | os.PathLike[str], content: bytes | str | Callable[[BinaryIO], None]
) -> None:
    """Writes a file that is there whole or not at all, whatever ends the process or the power.

    It is written beside under a name that no other writer has, flushed to the disk, and renamed.
    If anything fails, that name is gone and what stood at `path` stays. What a kill leaves there,
    `remove_partial` takes away. A device or a pipe is written to as it stands; a pipe that nobody
    reads is not waited for longer than `PIPE_SECONDS`.

    Args:
      path: where; its folder is made if it is missing.
      content: bytes, or text (UTF-8), or what writes into the open file.

    Raises:
      WriteError: if the system refuses, with the file and the reason.
    """
    path = pathlib.Path(path)
    content = content.encode() if isinstance(content, str) else content
    beside = path.with_name(f"{PARTIAL}{secrets.token_hex(8)}")
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            with open(path, "wb", opener=_open_pipe if path.is_fifo() else None) as file:
                _fill(file, content)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(beside, "xb") as file:
                _fill(file, content)
                os.fsync(file.fileno())
            os.replace(beside, path)
            sync_folder(path.parent)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise WriteError(error.errno, error.strerror or str(error), str(path)) from error


PIPE_SECONDS = 5.0


def _open_pipe(path: str, flags: int) -> int:
    """Opens a pipe to write to, once somebody reads it: without a reader it would wait for ever."""
    end = time.monotonic() + PIPE_SECONDS
    while True:
        try:
            pipe = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            if time.monotonic() > end:
                raise OSError(errno.ENXIO, "it is a pipe that nobody reads") from None
            time.sleep(0.05)
        else:
            os.set_blocking(pipe, True)
            return pipe


def _fill(file: BinaryIO, content: bytes | Callable[[BinaryIO], None]) -> None:
    file.write(content) if isinstance(content, bytes) else content(file)
    file.flush()


def remove_partial(folder: str | os.PathLike[str]) -> None:
    """Takes away what killed writers left half written in `folder`, of which the lock is held."""
    for path in pathlib.Path(folder).glob(f"{PARTIAL}*"):
        path.unlink(missing_ok=True)


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Makes a rename survive a power cut; Windows has no such call and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def json_bytes(facts: Mapping[str, Any]) -> bytes:
    """Strict JSON with sorted keys: the same facts have the same bytes.

    Raises:
      TypeError: for what is not JSON.
      ValueError: for a number that is not finite.
    """
    return json.dumps(facts, sort_keys=True, allow_nan=False).encode()


def sealed(facts: Mapping[str, Any]) -> dict[str, Any]:
    """`facts`, plain JSON, with the SHA-256 of all of them as their last entry.

    Raises:
      TypeError: for what is not JSON.
      ValueError: for a number that is not finite.
    """
    bare = {name: value for name, value in facts.items() if name != SEAL}
    return bare | {SEAL: hashlib.sha256(json_bytes(bare)).hexdigest()}


def unsealed(facts: Mapping[str, Any], path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `sealed` was given, once its SHA-256 is found to be the one it carries.

    Raises:
      DamagedFileError: if it is another, or there is none, by `path`.
    """
    bare = dict(facts)
    seal = bare.pop(SEAL, None)
    if seal is None:
        raise DamagedFileError(f"{str(path)!r} carries no SHA-256 of what was written into it.")
    try:
        right = seal == hashlib.sha256(json_bytes(bare)).hexdigest()
    except ValueError:  # NaN, which Python reads and strict JSON has no word for.
        right = False
    if not right:
        raise DamagedFileError(f"{str(path)!r} is not what was written (SHA-256).")
    return bare


def read_mapping(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON object that a file holds, whatever else may have got into it.

    Raises:
      OSError: if it cannot be read.
      DamagedFileError: if it holds anything but a JSON object, by `path` and place.
    """
    content = pathlib.Path(path).read_bytes()
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:  # Not UTF-8, not JSON, or nested too deep.
        why = " ".join(str(error).split())[:200]
        raise DamagedFileError(f"{str(path)!r} is not valid JSON ({why}).") from error
    if not isinstance(found, dict):
        raise DamagedFileError(f"{str(path)!r} holds no JSON object: {type(found).__name__}.")
    return found


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal.

    Raises:
      OSError: if it cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


DIGEST = ".sha256"
"""How the name of a file ends that holds the SHA-256 of the one beside it."""


def write_digest(path: str | os.PathLike[str]) -> None:
    """Writes the SHA-256 of a file beside it, as `sha256sum -c` reads it.

    Raises:
      OSError: if the file cannot be read, or its digest not be written.
    """
    path = pathlib.Path(path)
    name = path.name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    line = f"{sha256_of(path)}  {name}\n"
    write_whole(_beside(path), os.fsencode(line if name == path.name else f"\\{line}"))


def check_digest(path: str | os.PathLike[str], digest: str | None = None) -> None:
    """Checks that a file is what was written.

    Args:
      path: the file.
      digest: its SHA-256, by default that of the file beside it.

    Raises:
      DamagedFileError: if it is another, by `path`.
      OSError: if one of them cannot be read.
    """
    if digest is None:
        found = re.match(rb"\\?([0-9a-f]{64})  ", _beside(path).read_bytes())
        if found is None:
            raise DamagedFileError(f"{str(_beside(path))!r} holds no SHA-256 of {str(path)!r}.")
        digest = found.group(1).decode()
    if sha256_of(path) != digest:
        raise DamagedFileError(
            f"{str(path)!r} is not what was written (SHA-256); write it again, or put it back."
        )


def _beside(path: str | os.PathLike[str]) -> pathlib.Path:
    path = pathlib.Path(path)
    return path.with_name(path.name + DIGEST)
