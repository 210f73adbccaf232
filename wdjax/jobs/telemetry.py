"""What a run's parts did on the way: telemetry as results files hold it."""

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from wdjax.diagnostics.telemetry import PartTelemetry
from wdjax.jobs.setup import Prepared
from wdjax.loop.log import RunLog

NO_RATE = (
    "The decay is a penalty in the loss: it has no rate of its own, so no timescale and no "
    "equilibrium are known, and the gradients include its pull."
)

_PREFIX, _OLD_PREFIX = "telemetry/", "measured/"


def telemetry_results(
    parts: Mapping[str, Mapping[str, Any]], steps: Sequence[int], prepared: Prepared
) -> dict[str, Any]:
    """`{"steps": [point], "parts": {path: {name: [seed, point]}}}`, and a note where one is due.

    Args:
      parts: from a part's path and a name in `PartTelemetry` to numbers `[seed, point]`.
      steps: the steps that were measured, from 1.
      prepared: says what kind of decay it was.
    """
    note = {"note": NO_RATE} if not prepared.decay.has_rate else {}
    return {"steps": list(steps), "parts": parts, **note}


def read_telemetry(log: pathlib.Path) -> tuple[dict[str, dict[str, Any]], list[int]]:
    """The telemetry in a log, `{path: {name: [seed, point]}}` of its one seed, and its steps."""
    lines = [_renamed(line) for line in RunLog(log).read()]
    lines = [line for line in lines if any(n.startswith(_PREFIX) for n in line)]
    names = lines[0] if lines else {}
    paths = dict.fromkeys(
        name.removeprefix(_PREFIX).rpartition("/")[0] for name in names if name.startswith(_PREFIX)
    )
    parts = {
        path: {
            name: [[line.get(f"{_PREFIX}{path}/{name}") for line in lines]]
            for name in PartTelemetry._fields
        }
        for path in paths
    }
    return parts, [line["step"] for line in lines]


def _renamed(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of version 0.1 in today's words."""
    return {re.sub(f"^{_OLD_PREFIX}", _PREFIX, name): value for name, value in line.items()}
