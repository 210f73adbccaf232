"""The log of a run: one JSON object a line, that any tool reads and a resumed run goes on with."""

import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from wdjax.extras import need


class RunLog:
    """Appends `{"step": ..., "loss": ..., ...}` to a file, one line each, whole at once.

    A number in a tree is named by its path, `telemetry/dense/kernel/norm`; one that is not finite
    is null, since JSON has no other word. `pandas.read_json(path,
    lines=True)` reads it.

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

    def write(self, step: int, numbers: Mapping[str, Any]) -> None:
        """Adds a line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        values = {name: _number(value) for name, value in _flat(numbers)}
        line = json.dumps({"step": step, **values}, allow_nan=False)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
        if self._board is not None:
            self._board.write(step, values)

    def read(self) -> list[dict[str, Any]]:
        """Every line, without a last one that a kill cut short."""
        if not self.path.exists():
            return []
        *whole, _ = self.path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in whole]

    def cut_after(self, step: int) -> None:
        """Takes out what was logged after `step`: a resumed run will log it again."""
        kept = [line for line in self.read() if line["step"] <= step]
        if self.path.exists():
            beside = self.path.with_name(self.path.name + ".tmp")
            beside.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
            beside.replace(self.path)
        if self._board is not None:
            self._board.begin_with(kept)

    def close(self) -> None:
        """Writes out what TensorBoard was not shown yet; a line after that begins a new file."""
        if self._board is not None:
            self._board.close()


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

    Raises:
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
            yield name, value


def _number(value: Any) -> float | int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    number = float(np.asarray(value))
    return number if math.isfinite(number) else None
