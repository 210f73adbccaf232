"""How an error ends the command: in one sentence and a status, or as the bug it is."""

import contextlib
import dis
import errno
import pathlib
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple

from wdjax.printing import ClosedOutputError, one_line, write_error

DONE, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130
TERMINATED = 143

STATUSES = """exit status:
  0    it did what was asked
  1    the system or a file failed it, or `audit --strict` found a warning
  2    what was asked cannot be done
  130  stopped by Ctrl-C
  143  asked to end by SIGTERM, and saved"""

_PACKAGE = str(pathlib.Path(__file__).parent)
OWN_MODULE = "wdjax_own_"
"""How the module of a user's own file is named: so a traceback tells its lines from ours."""

_WAY_OUT = {
    errno.ENOENT: "check the path",
    errno.EACCES: "check who may read and write it",
    errno.EPERM: "check who may read and write it",
    errno.EISDIR: "give a file in place of a folder",
    errno.ENOTDIR: "give a folder in place of a file",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "free some space or choose another folder",
    errno.EROFS: "choose another folder",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ELOOP: "remove the link that leads to itself",
    errno.EIO: "the disk or its network may be broken",
}


class Ending(NamedTuple):
    """What is said of an error, and the exit status."""

    sentence: str
    """Empty: there is nobody to tell."""
    status: int


@contextlib.contextmanager
def naming(what: str, word: str) -> Iterator[None]:
    """A refusal within begins with `what` unless it holds `word`; it stays the error that it is.

    To raise another in its place would make a refusal of a bug, see `ending_of`.

    Raises:
      ValueError: what was raised within.
    """
    try:
        yield
    except ValueError as error:
        if word not in str(error) and error.args:
            error.args = (f"{what}: {error.args[0]}", *error.args[1:])
        raise


def ending_of(error: BaseException) -> Ending | None:
    """The ending of an error that is foreseen; `None` of a bug.

    - 2: a `ValueError` that the package raised in a statement of its own (one that Python, NumPy
      or JAX raised below it is a bug: it says nothing of what was asked), or anything that a
      user's own file raised.
    - 1: the system (`OSError`, `MemoryError`, a package or a device that is missing, a device's
      memory) or what a file holds (every other exception class that the package defines).
    - 130: Ctrl-C.
    """
    if isinstance(error, KeyboardInterrupt):
        return Ending("stopped by Ctrl-C.", INTERRUPTED)
    if isinstance(error, ClosedOutputError):
        return Ending("", FAILED)
    if isinstance(error, ValueError) and _is_raised_here(error.__traceback__):
        return Ending(one_line(str(error)), REFUSED)
    if type(error).__module__.partition(".")[0] == "wdjax" and not isinstance(error, ValueError):
        return Ending(one_line(str(error)), FAILED)
    if isinstance(error, RuntimeError) and "Unable to initialize backend" in str(error):
        return Ending(one_line(f"{_first_line(error)}; see JAX_PLATFORMS."), FAILED)
    if isinstance(error, MemoryError) or _is_out_of_memory(error):
        return Ending(one_line(_about_memory(error)), FAILED)
    place = _place_in_own_file(error.__traceback__)
    if place is not None:
        return Ending(one_line(f"{place}: {type(error).__name__}: {_first_line(error)}"), REFUSED)
    if isinstance(error, OSError):
        return Ending(one_line(_about_system(error)), FAILED)
    if isinstance(error, ImportError) and not (error.name or "").startswith("wdjax."):
        return Ending(one_line(str(error)), FAILED)
    return None


def end(error: BaseException, *, with_traceback: bool) -> int:
    """Tells of an error on the standard error, and gives the exit status.

    Args:
      error: what ended the command.
      with_traceback: whether to show where it came from too, of what is foreseen; of a bug it is
        always shown.
    """
    ending = ending_of(error)
    if ending is None or with_traceback:
        write_error("".join(traceback.format_exception(error)).rstrip("\n"))
    if ending is None:
        write_error(
            "wdjax: this is a bug of wdjax and none of yours: please report it to its authors, "
            "with the lines above and the command."
        )
        return FAILED
    if ending.sentence:
        write_error(f"wdjax: {ending.sentence}")
    return ending.status


def _is_raised_here(trace: TracebackType | None) -> bool:
    """Whether the innermost frame is the package's, and stands at a `raise`.

    What a built-in raises, `int("x")` or `open("\\0")`, has no frame of its own.
    """
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    inside = pathlib.Path(code.co_filename).is_relative_to(_PACKAGE)
    return inside and dis.opname[code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"


def _place_in_own_file(trace: TracebackType | None) -> str | None:
    """The innermost line of a user's own file that the error came through."""
    found = None
    while trace is not None:
        if str(trace.tb_frame.f_globals.get("__name__", "")).startswith(OWN_MODULE):
            code = trace.tb_frame.f_code
            found = f"{code.co_filename!r}, line {trace.tb_lineno} in {code.co_name}"
        trace = trace.tb_next
    return found


def _is_out_of_memory(error: BaseException) -> bool:
    name, text = type(error).__name__, str(error)
    return name in ("JaxRuntimeError", "XlaRuntimeError") and "RESOURCE_EXHAUSTED" in text


def _about_memory(error: BaseException) -> str:
    said = _first_line(error).rstrip(".")
    about = f" ({said})" if str(error) else ""
    return f"memory ran out{about}; take fewer devices or seeds, a smaller batch or model."


def _about_system(error: OSError) -> str:
    """Of one that says nothing itself: the file, the reason, the way out."""
    if type(error).__str__ is not OSError.__str__ or error.errno is None or not error.strerror:
        return str(error) or type(error).__name__
    names = [repr(name) for name in (error.filename, error.filename2) if name is not None]
    way_out = _WAY_OUT.get(error.errno)
    reason = f"{error.strerror}; {way_out}." if way_out else f"{error.strerror}."
    return ": ".join([" to ".join(names), reason]) if names else reason


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "") or repr(error)
