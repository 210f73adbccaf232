"""What reaches the terminal: text that cannot steer it, and what to do when nobody reads it."""

import contextlib
import os
import re
import sys
from typing import Any

_STEERS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""C0 without newline and tab, DEL, C1, what ends a line or turns the direction of writing, and
lone surrogates, which cannot be encoded."""


class OutputError(OSError):
    """The standard output could not be written."""


class ClosedOutputError(OutputError):
    """Nobody reads the standard output any more: `wdjax ... | head -1`."""


def printable(text: str) -> str:
    r"""`text` with what could steer a terminal escaped: `\x1b` for ESC, `\u202e` for an override.

    Newlines and tabs stay, for tables.
    """
    return _STEERS.sub(_escaped, text)


def one_line(text: str) -> str:
    """`text` as one printable line."""
    return printable(" ".join(text.split()))


def named_path(path: object) -> str:
    """A path as a line shows it: one with tabs or ends of lines in quotes, which escape them."""
    text = str(path)
    return repr(text) if set(text) & set("\t\n\r\v\f") else text


def _escaped(found: re.Match[str]) -> str:
    number = ord(found.group())
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


def write_out(text: str) -> None:
    """Prints the result of a command, and sees it off: a full disk is found here, not at the exit.

    Raises:
      ClosedOutputError: if it is a pipe that nobody reads.
      OutputError: if the system refuses, with its reason.
    """
    try:
        _write(sys.stdout, f"{text}\n")
    except BrokenPipeError as error:
        raise ClosedOutputError("the standard output was closed.") from error
    except OSError as error:
        raise OutputError(
            f"the standard output could not be written: {error.strerror or error}; give it another "
            "place."
        ) from error


def write_error(text: str) -> None:
    """Prints to the standard error; that it cannot be written is nothing to end a run for."""
    with contextlib.suppress(OSError):
        _write(sys.stderr, f"{text}\n")


def _write(stream: Any, text: str) -> None:
    if stream is None:  # Closed before the process began.
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    text = printable(text).encode(encoding, "backslashreplace").decode(encoding)
    stream.write(text)
    stream.flush()


def let_go_of_outputs() -> None:
    """Before the exit of a process: an output that cannot be written is not tried once more.

    Python would flush it after its last line, and tell of the failure in its own words.
    """
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)
