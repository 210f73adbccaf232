"""The log of a run: one JSON object a line, that any tool reads and a resumed run goes on with."""

import json
import math
import os
import pathlib
import warnings
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from wdjax.extras import need
from wdjax.writing import WriteError, json_bytes, write_whole

STEP, CHECK = "step", "check"
"""The keys of a line's step, and of the CRC-32 of all else that the line says."""


class RunLog:
    """Appends `{"step": ..., "loss": ..., ..., "check": ...}` to a file, one line each.

    A number in a tree is named by its path, `telemetry/dense/kernel/norm`; one that is not finite
    is null, since JSON has no other word. `check` is the CRC-32 of the line without it, as JSON
    with sorted keys, in hexadecimal: a line that was damaged is passed over, and said, and the
    others count. `pandas.read_json(path, lines=True)` reads the file.

    Args:
      path: the file.
      board: a folder that shows the same numbers to TensorBoard, one curve a name.

    Raises:
      ImportError: at build, with a `board`, if tensorboardX is not installed.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, board: str | os.PathLike[str] | None = None
    ):
        self.path = pathlib.Path(path)
        self._board = None if board is None else Board(board)
        self.num_lines = 0
        """Lines written or kept, as far as this object knows."""

    def write(self, step: int, numbers: Mapping[str, Any]) -> None:
        """Adds a line.

        Raises:
          ValueError: for a number named `step` or `check`, which a line has itself.
          WriteError: if it could not be written.
        """
        values = {name: _number(value) for name, value in _flat(numbers)}
        for name in (STEP, CHECK):
            if name in values:
                raise ValueError(f"a number of a log cannot be named {name!r}; rename it.")
        line = _line({STEP: int(step), **values})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise WriteError(error.errno, error.strerror or str(error), str(self.path)) from error
        self.num_lines += 1
        if self._board is not None:
            self._board.write(step, values)

    def flush(self) -> None:
        """What was written survives a power cut from here on.

        Raises:
          WriteError: if the system refuses.
        """
        if not self.path.is_file():
            return
        try:
            with open(self.path, "ab") as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise WriteError(error.errno, error.strerror or str(error), str(self.path)) from error

    def read(self) -> list[dict[str, Any]]:
        """Every whole line, without its check.

        Raises:
          OSError: if the file cannot be read.

        Warns:
          RuntimeWarning: once, of lines that are damaged or cut short, by their numbers, which
            are passed over; or that the log is of an earlier version, whose lines have no check.
        """
        found = _read(self.path)
        found.warn(self.path)
        return found.lines

    def cut_after(self, step: int) -> None:
        """Takes out what was logged after `step`: a resumed run will log it again.

        A log with damaged lines is kept beside, as `log-damaged.jsonl`, before they are left out.

        Raises:
          OSError: if the file cannot be read or written.

        Warns:
          RuntimeWarning: as `read`.
        """
        found = _read(self.path)
        found.warn(self.path)
        kept = [line for line in found.lines if line[STEP] <= step]
        if found.damaged:
            write_whole(_free(self.path), self.path.read_bytes())
        if os.path.lexists(self.path):
            write_whole(self.path, "".join(map(_line, kept)))
        self.num_lines = len(kept)
        if self._board is not None:
            self._board.begin_with(kept)

    def close(self) -> None:
        """Writes out what TensorBoard was not shown yet; a line after that begins a new file."""
        if self._board is not None:
            self._board.close()


class _Found(NamedTuple):
    """What a log's file holds."""

    lines: list[dict[str, Any]]
    damaged: list[int]
    """The numbers of the lines that are not what was written, from 1."""
    is_cut: bool
    """Whether it ends in the middle of a line, as a kill leaves it."""
    is_old: bool
    """Whether it has lines and none has a check."""

    def warn(self, path: pathlib.Path) -> None:
        """Says what was passed over."""
        said = []
        if self.damaged:
            shown = ", ".join(map(str, self.damaged[:10]))
            more = f" and {len(self.damaged) - 10} more" if len(self.damaged) > 10 else ""
            said.append(
                f"{len(self.damaged)} of its lines are damaged and passed over: {shown}{more}"
            )
        if self.is_cut:
            said.append("its last line is cut short and passed over")
        if self.is_old:
            said.append(
                "an earlier version wrote it, without checks: damage of its numbers is not seen"
            )
        if said:
            warnings.warn(f"{str(path)!r}: {'; '.join(said)}.", RuntimeWarning, stacklevel=4)


def _read(path: pathlib.Path) -> _Found:
    try:
        *ended, last = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return _Found([], [], False, False)
    lines: list[tuple[int, dict[str, Any]]] = []
    damaged = []
    for number, content in enumerate(ended, start=1):
        line = _parsed(content)
        if line is not None:
            lines.append((number, line))
        elif content.strip():
            damaged.append(number)
    # A last line whose end alone is lost or damaged is known to be whole by its check.
    end = next((line for c in (last, last[:-1]) if CHECK in (line := _parsed(c) or {})), None)
    if end is not None:
        lines.append((len(ended) + 1, end))
    has_checks = any(CHECK in line for _, line in lines)
    if has_checks:
        damaged += [number for number, line in lines if CHECK not in line]
        lines = [(number, line) for number, line in lines if CHECK in line]
    bare = [{name: v for name, v in line.items() if name != CHECK} for _, line in lines]
    return _Found(bare, sorted(damaged), bool(last) and end is None, bool(bare) and not has_checks)


def _parsed(content: bytes) -> dict[str, Any] | None:
    """A line, with its check if it has one; None if that, or anything else, is wrong."""
    try:
        line = json.loads(content)
        if not isinstance(line, dict):
            return None
        bare = {name: value for name, value in line.items() if name != CHECK}
        is_right = CHECK not in line or line[CHECK] == _check_of(bare)
    except (ValueError, RecursionError):
        return None
    numbers = all(v is None or type(v) in (int, float) for v in bare.values())
    return line if is_right and numbers and type(bare.get(STEP)) is int else None


def _line(values: Mapping[str, Any]) -> str:
    return json.dumps({**values, CHECK: _check_of(values)}, allow_nan=False) + "\n"


def _check_of(values: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json_bytes(values)):08x}"


def _free(path: pathlib.Path) -> pathlib.Path:
    """`log-damaged.jsonl`, or the first of `log-damaged-2.jsonl`, ... that is free."""
    number, free = 1, path.with_name(f"{path.stem}-damaged{path.suffix}")
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.stem}-damaged-{number}{path.suffix}")
    return free


class Board:
    """A folder of TensorBoard events with a log's numbers, one curve a name.

    Raises:
      ImportError: at build, if tensorboardX is not installed: `pip install "wdjax[tensorboard]"`.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        hint = "log.jsonl holds the same numbers"
        what, extra = "writing for TensorBoard", "tensorboard"
        self._make = need("tensorboardX", what=what, extra=extra, hint=hint).SummaryWriter
        self._folder, self._writer = pathlib.Path(folder), None

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds a point to the curve of each name that has a number."""
        if self._writer is None:
            self._writer = self._make(str(self._folder), flush_secs=10)
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)

    def begin_with(self, lines: list[dict[str, Any]]) -> None:
        """Shows exactly `lines`, whatever a killed run had shown beyond them."""
        self.close()
        for old in self._folder.glob("events.out.tfevents.*"):
            old.unlink()
        for line in lines:
            self.write(line["step"], {k: v for k, v in line.items() if k != "step"})

    def close(self) -> None:
        """Writes out what was not yet."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def write_tensorboard(log: str | os.PathLike[str], folder: str | os.PathLike[str]) -> None:
    """Writes a finished log's numbers as TensorBoard events, one curve a name.

    Damaged lines are passed over with a warning, see `RunLog.read`.

    Raises:
      OSError: if the log cannot be read.
      ImportError: if tensorboardX is not installed: `pip install "wdjax[tensorboard]"`.
    """
    board = Board(folder)
    board.begin_with(RunLog(log).read())
    board.close()


def _flat(numbers: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in numbers.items():
        inner = value._asdict() if hasattr(value, "_asdict") else value
        if isinstance(inner, Mapping):
            yield from ((f"{name}/{below}", number) for below, number in _flat(inner))
        else:
            yield str(name), value


def _number(value: Any) -> float | int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    number = float(np.asarray(value))
    return number if math.isfinite(number) else None
