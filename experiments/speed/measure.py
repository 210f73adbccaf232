"""Ratios measured fairly: contestants in processes of their own, run in alternation."""

import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

RESULTS = pathlib.Path(__file__).parent / "results"
PACKAGES = ("jax", "flax", "optax", "numpy", "scikit-learn", "torch", "skorch", "keras")


class Contestant:
    """A process that prepares one task, then runs it once per request and says how long it took.

    Each has its own process, so that no contestant's threads, devices or caches are another's.
    Between requests it waits for input and takes no core.
    """

    def __init__(self, task: str, environment: dict[str, str] | None = None, **arguments: Any):
        start = time.perf_counter()
        words = [sys.executable, "-m", "experiments.speed.contestants", task]
        self.process = subprocess.Popen(
            [*words, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self.first = self._answer(f"{task} {arguments}")
        self.cold_seconds = time.perf_counter() - start

    def run(self) -> dict[str, float]:
        """One more run: `seconds`, and what else the task says of its result."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._answer("a later run")

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()

    def _answer(self, what: str) -> dict[str, float]:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{what} ended with status {self.process.wait()}")
        return json.loads(line)


def alternate(
    contestants: dict[str, Contestant], rounds: int = 5, pause: float = 0.0
) -> dict[str, list[dict[str, float]]]:
    """`rounds` runs of each in turn, every second round backwards: drift hits all alike."""
    runs = {name: [] for name in contestants}
    for number in range(rounds):
        names = list(contestants)
        for name in names if number % 2 == 0 else reversed(names):
            time.sleep(pause)
            runs[name].append(contestants[name].run())
    return runs


def compare(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """How many times as long they take: the ratio of each pair, its median and its range."""
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    return {
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "ours_seconds": statistics.median(ours),
        "theirs_seconds": statistics.median(theirs),
        "pairs": len(ratios),
    }


def seconds(runs: list[dict[str, float]]) -> list[float]:
    return [run["seconds"] for run in runs]


def timed(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def machine() -> dict[str, Any]:
    """The processor's name, how many cores this process may use, and the versions."""
    names = pathlib.Path("/proc/cpuinfo")
    lines = names.read_text().splitlines() if names.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    modules = {"scikit-learn": "sklearn"}
    installed = [p for p in PACKAGES if importlib.util.find_spec(modules.get(p, p)) is not None]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": cores,
        "python": platform.python_version(),
        "versions": {package: importlib.metadata.version(package) for package in installed},
    }


def write_result(name: str, result: dict[str, Any]) -> pathlib.Path:
    """Writes `results/NAME.json`, with the machine."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **result}, indent=2) + "\n")
    return path
