"""`wdjax select` a second time against the first, and where its seconds go.

Claim: the second time nothing is compiled. The first starts with an empty compilation cache.
Run: python -m experiments.speed select
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from experiments.speed.measure import compare, write_result

PAIRS = 5


def main() -> None:
    """The command with its defaults, from the shell to the prompt."""
    first, second = [], []
    for _ in range(PAIRS):
        with tempfile.TemporaryDirectory() as folder:
            first.append(_run(folder, "first"))
            second.append(_run(folder, "second"))
    wall = lambda runs: [run["wall"] for run in runs]
    row = compare(wall(second), wall(first))
    print(f"the first takes {row['ratio']:.2f} times the second {row['ratio_range']}")
    for name, runs in (("first", first), ("second", second)):
        middle = sorted(runs, key=lambda run: run["wall"])[len(runs) // 2]
        print(name, {stage: round(value, 2) for stage, value in middle.items()})
    result = {
        "what": "wdjax select, defaults, seconds from the shell to the prompt; ours is the second",
        "against": {"first, empty compilation cache": row},
        "first": first,
        "second": second,
    }
    print(f"Wrote {write_result('select', result)}")


def _run(folder: str, name: str) -> dict[str, float]:
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "wdjax.cli", "select", "--out", name],
        check=True,
        cwd=folder,
        env={**os.environ, "XDG_CACHE_HOME": folder},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wall = time.perf_counter() - start
    timing = json.loads((pathlib.Path(folder) / name / "results.json").read_text())["timing"]
    return {"wall": wall, **timing, "start, files and end": wall - timing["total"]}
