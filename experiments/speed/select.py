"""`wdjax select` a second time against the first, and where its seconds go, shell to prompt.

Claim: the second time nothing is compiled and no trial is trained that has been. The first starts
with an empty cache; `--fresh` trains again, and finds only what was compiled.
Run: python -m experiments.speed select
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from experiments.speed.measure import compare, write_result

PAIRS = 5
AGAINST = "first, nothing kept"
RUNS = {"first": (), "second": (), "fresh": ("--fresh",)}
TITLES = {"first": "first run", "second": "second run", "fresh": "second run, `--fresh`"}
KINDS = {
    "jaxpr_trace_duration": "tracing",
    "jaxpr_to_mlir_module_duration": "lowering",
    "backend_compile_duration": "compiling, or loading what was compiled",
}
"""JAX's own events, and what they are called here."""
STAGES = {
    "imports": "imports",
    "data": "data and folds",
    "compile": "before the grid",
    "grid": "the grid",
    "refit": "the refits and the audit",
    "report": "report and files",
}

# The command as it is, with a clock at each stage's end and an ear for JAX's events.
CHILD = """
import sys, time
marks, events = [["start", time.time()]], []
import json, jax, wdjax.cli, wdjax.jobs
from wdjax.jobs import results as files
marks.append(["imports", time.time()])
heard = lambda name, seconds, **_: events.append([name.split("/")[-1], time.time(), seconds])
jax.monitoring.register_event_duration_secs_listener(heard)
lap = files.Clock.lap
def marked(self, stage):
    lap(self, stage)
    marks.append([stage, time.time()])
files.Clock.lap = marked
sys.argv[1:], out = sys.argv[2:], sys.argv[1]
assert wdjax.cli.command() == 0
marks.append(["report", time.time()])
with open(out, "w") as file:
    json.dump({"marks": marks, "events": events}, file)
"""


def main() -> None:
    """The command with its defaults, from the shell to the prompt."""
    runs = {name: [] for name in RUNS}
    for _ in range(PAIRS):
        with tempfile.TemporaryDirectory() as folder:
            for name, options in RUNS.items():
                runs[name].append(timed_run(folder, name, *options))
    wall = lambda name: [sum(run.values()) for run in runs[name]]
    row, fresh = (compare(wall(name), wall("first")) for name in ("second", "fresh"))
    for name, found in (("second", row), ("second with --fresh", fresh)):
        print(f"the first takes {found['ratio']:.2f} times the {name} {found['ratio_range']}")
    stages = {name: medians(found) for name, found in runs.items()}
    for name, found in stages.items():
        print(name, {stage: round(value, 2) for stage, value in found.items()})
    result = {
        "what": "wdjax select, defaults, seconds from the shell to the prompt; ours is the second",
        "against": {AGAINST: row},
        "stages": stages,
        **runs,
    }
    print(f"Wrote {write_result('select', result)}")
    what = "the same, ours is the second with --fresh"
    print(f"Wrote {write_result('select_fresh', {'what': what, 'against': {AGAINST: fresh}})}")


def timed_run(folder: str, name: str, *options: str) -> dict[str, float]:
    """Seconds by stage of one command in a process of its own; together, all there were."""
    marks = pathlib.Path(folder) / f"{name}.json"
    start = time.time()
    subprocess.run(
        [sys.executable, "-c", CHILD, str(marks), "select", "--out", name, *options],
        check=True,
        cwd=folder,
        env={**os.environ, "XDG_CACHE_HOME": folder},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return by_stage(start, time.time(), **json.loads(marks.read_text()))


def by_stage(start: float, end: float, marks: list, events: list) -> dict[str, float]:
    """The seconds between marks, less those of JAX's events in them, which get their own rows."""
    seconds = {"start of Python": marks[0][1] - start}
    inside = dict.fromkeys(KINDS.values(), 0.0)
    for (_, begin), (stage, until) in zip(marks[:-1], marks[1:], strict=True):
        seconds[STAGES[stage]] = until - begin
        for event, kind in KINDS.items():
            spans = [(at - took, at) for name, at, took in events if name == event]
            spent = covered([(a, b) for a, b in spans if begin <= b < until])
            seconds[STAGES[stage]] -= spent
            inside[kind] += spent
    return {**seconds, **inside, "exit": end - marks[-1][1]}


def covered(spans: list[tuple[float, float]]) -> float:
    """The length of the union: a program traced inside another is not counted twice."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {stage: statistics.median(run[stage] for run in runs) for stage in runs[0]}


def lines(result: dict[str, Any]) -> list[str]:
    """The table of docs/speed.md."""
    row = lambda *cells: f"| {' | '.join(cells)} |"
    whole = lambda name: statistics.median(sum(run.values()) for run in result[name])
    stages = result["stages"]
    return [
        row("seconds", *TITLES.values()),
        row("---", *("---" for _ in TITLES)),
        *(row(s, *(f"{stages[name][s]:.2f}" for name in TITLES)) for s in stages["first"]),
        row("**shell to prompt**", *(f"**{whole(name):.2f}**" for name in TITLES)),
    ]
