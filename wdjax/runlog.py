"""The log of a run: one JSON object a line, that any tool reads and a resumed run goes on with."""

import importlib
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np


class RunLog:
    """Appends `{"step": ..., "loss": ..., ...}` to a file, one line each, whole at once.

    A number that is not finite is null, since JSON has no other word. `pandas.read_json(path,
    lines=True)` reads it.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = pathlib.Path(path)

    def write(self, step: int, numbers: Mapping[str, Any]) -> None:
        """Adds a line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        values = {name: _number(value) for name, value in numbers.items()}
        line = json.dumps({"step": step, **values}, allow_nan=False)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def read(self) -> list[dict[str, Any]]:
        """Every line, without a last one that a kill cut short."""
        if not self.path.exists():
            return []
        *whole, _ = self.path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in whole]

    def cut_after(self, step: int) -> None:
        """Takes out what was logged after `step`: a resumed run will log it again."""
        kept = [line for line in self.read() if line["step"] <= step]
        if not self.path.exists():
            return
        beside = self.path.with_name(self.path.name + ".tmp")
        beside.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        beside.replace(self.path)


def write_tensorboard(log: str | os.PathLike[str], folder: str | os.PathLike[str]) -> None:
    """Writes a log's numbers as TensorBoard events, one curve a name.

    Raises:
      ImportError: if tensorboardX is not installed: `pip install wdjax[tensorboard]`.
    """
    writer = importlib.import_module("tensorboardX").SummaryWriter(os.fspath(folder))
    with writer:
        for line in RunLog(log).read():
            step = line.pop("step")
            for name, value in line.items():
                if value is not None:
                    writer.add_scalar(name, value, step)


def _number(value: Any) -> float | int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    number = float(np.asarray(value))
    return number if math.isfinite(number) else None
