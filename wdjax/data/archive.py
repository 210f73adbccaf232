"""`.npz` files, read without trust: nothing executed, nothing believed that was not measured."""

import math
import os
import stat
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wdjax.checks import nearest

MOST_EXPANSION = 1032
"""How many bytes one compressed byte can stand for: deflate has no code that says more."""

_HEADERS: Any = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class _Header(NamedTuple):
    """What the first bytes of an array say of it, and how many they are."""

    shape: tuple[int, ...]
    dtype: np.dtype
    size: int


def check_file(path: Path, what: str = "data file") -> None:
    """Checks that there is a file to read: a folder, a pipe or a device is none.

    Raises:
      ValueError: if there is not, by its name; of a missing one with the nearest.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{what} {str(path)!r} does not exist.{_nearest_to(path)}") from None
    except (OSError, ValueError) as error:  # A name too long, a folder closed to us, a NUL byte.
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"{what} {str(path)!r} cannot be read: {reason}; give a file that can."
        ) from None
    if stat.S_ISDIR(mode):
        raise ValueError(f"{what} {str(path)!r} is a folder; give a file in it.")
    if not stat.S_ISREG(mode):
        raise ValueError(
            f"{what} {str(path)!r} is a pipe or a device, which has no end that is known before; "
            "save what it gives as a file."
        )


def read_arrays(
    path: Path,
    wanted: Sequence[str] | None = None,
    optional: Sequence[str] = (),
    *,
    what: str = "data file",
    way: str = "save it with np.savez",
) -> dict[str, np.ndarray]:
    """The arrays of those names in a file that `np.savez` wrote; an `optional` one may be missing.

    A file is data, never a program: what pickles Python objects is refused unread. And it is not
    believed: before an array gets its memory, what its header claims is compared with the bytes
    that are there, and those are checked against their CRC-32.

    Args:
      path: of the file.
      wanted: the names; None takes every array there is.
      optional: further names.
      what: what the file is, as messages begin.
      way: what to do about a damaged one, as messages end.

    Raises:
      ValueError: if the file is missing, damaged, encrypted or compressed in another way than
        NumPy does it, lacks a wanted array, claims more than it holds, pickles objects, or is
        larger than the memory.
    """
    check_file(path, what)
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError(f"{str(path)!r} is no .npz file; {way}.")
        with zipfile.ZipFile(path) as archive:
            members = _members(path, archive, way)
            keys = list(members) if wanted is None else list(wanted)
            for key in keys:
                if key not in members:
                    example = ", ".join(f"{key}=..." for key in keys)
                    raise ValueError(
                        f"{str(path)!r} has no array {key!r}, only {_listed(members)};"
                        f" save it with np.savez(path, {example})."
                    )
            keys += [key for key in optional if key in members and key not in keys]
            return {key: _read_member(path, archive, key, members[key], way) for key in keys}
    except (OSError, zipfile.BadZipFile) as error:
        raise _cannot(path, error, way) from None


def _members(path: Path, archive: zipfile.ZipFile, way: str) -> dict[str, zipfile.ZipInfo]:
    found: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if name in found:
            raise ValueError(f"{str(path)!r} has two arrays {name!r}; {way}.")
        found[name] = info
    return found


def _read_member(
    path: Path, archive: zipfile.ZipFile, key: str, info: zipfile.ZipInfo, way: str
) -> np.ndarray:
    """One array, of which the header is read before the rest is given memory."""
    try:
        with archive.open(info) as member:
            header = _read_header(member)
        _check_claim(path, key, header, info, way)
        with archive.open(info) as member:
            array = np.lib.format.read_array(member, allow_pickle=False)
            if member.read(1):  # Nor is the CRC compared before the end is reached.
                raise ValueError("bytes follow its end")
            return array
    except _Unfit:
        raise
    except MemoryError:
        size = f"{info.file_size / 2**30:.1f} GiB"
        raise ValueError(
            f"{str(path)!r}: array {key!r} takes {size}, which this machine has no memory for; "
            "give fewer rows, or stream them."
        ) from None
    except Exception as error:  # Each decompressor, and NumPy's reader, has its own kind.
        raise _cannot(path, error, way, key) from None


class _Unfit(ValueError):
    """An array that says of itself that it cannot be taken."""


def _read_header(member: Any) -> _Header:
    version = np.lib.format.read_magic(member)
    if version not in _HEADERS:
        raise ValueError(f"it is of version {version[0]}.{version[1]} of the format")
    shape, _, dtype = _HEADERS[version](member)
    return _Header(shape, dtype, member.tell())


def _check_claim(path: Path, key: str, header: _Header, info: zipfile.ZipInfo, way: str) -> None:
    if header.dtype.hasobject:
        raise _Unfit(
            f"{str(path)!r}: array {key!r} cannot be read; it must be plain numbers"
            f"{' or strings' if key == 'targets' else ''}, not Python objects, which could run "
            "code when loaded."
        )
    claimed = math.prod(header.shape) * header.dtype.itemsize
    held = info.file_size - header.size
    low = min(header.shape, default=0)
    if low < 0 or claimed != held or info.file_size > MOST_EXPANSION * (info.compress_size + 1):
        raise _Unfit(
            f"{str(path)!r}: array {key!r} claims shape {header.shape} of {header.dtype}, "
            f"{claimed} bytes, and the file holds {min(held, MOST_EXPANSION * info.compress_size)} "
            f"for it: it is cut off or damaged; {way}."
        )


def _cannot(path: Path, error: Exception, way: str, key: str | None = None) -> ValueError:
    of_array = "" if key is None else f": array {key!r}"
    reason = " ".join(str(getattr(error, "strerror", None) or error).split())
    return ValueError(
        f"{str(path)!r}{of_array} cannot be read as .npz ({reason or type(error).__name__}); {way}."
    )


def _listed(names: Any, most: int = 8) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more


def _nearest_to(path: Path) -> str:
    try:
        siblings = [entry.name for entry in os.scandir(path.parent)]
    except OSError:
        return ""
    return nearest(path.name, siblings)
