"""One file for each cell, draw and way: a run that was stopped goes on from there."""

import json
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from experiments.choosing.cells import Cell
from experiments.choosing.transfer import TransferCell, measure_transfer
from experiments.choosing.ways import CHOOSERS, Chooser, Found, refit
from wdjax.tables import to_plain

KEPT = pathlib.Path("runs/experiments/choosing")
ROWS = "rows"
"""The job beside the ways: test losses of all rows of the grid."""
TRANSFER = "transfer"
"""The job of a cell of the transfer, its only one."""

Job = tuple[str, int, str]
"""Cell, draw, way."""


def jobs(cells: Mapping[str, Cell], ways: Mapping[str, Chooser]) -> list[Job]:
    """Every measurement that can be made here: all cells at draw 0 first, then at draw 1.

    Cells and ways whose packages are not installed are left out; `missing` names them.
    """
    most = max((cell.num_draws for cell in cells.values()), default=0)
    names = [ROWS, *(name for name, way in ways.items() if not way.missing)]
    return [
        (cell.name, draw, way)
        for draw in range(most)
        for cell in cells.values()
        if draw < cell.num_draws and not cell.missing
        for way in ([TRANSFER] if isinstance(cell, TransferCell) else names)
    ]


def missing(cells: Mapping[str, Cell], ways: Mapping[str, Chooser]) -> list[str]:
    """What is skipped, a sentence each."""
    told = [
        f"{len(without)} cells ({', '.join(without)}) need `{package}`"
        for package in sorted({cell.missing for cell in cells.values()} - {""})
        for without in [[name for name, cell in cells.items() if cell.missing == package]]
    ]
    return told + [f"{name} needs `{way.missing}`" for name, way in ways.items() if way.missing]


def path_of(kept: pathlib.Path, job: Job) -> pathlib.Path:
    """Where a measurement is kept."""
    cell, draw, way = job
    plain = lambda words: re.sub(r"[^a-zA-Z0-9.]+", "-", words).strip("-")
    return kept / plain(cell) / f"{draw}-{plain(way)}.json"


def read(path: pathlib.Path, cell: Cell) -> dict[str, Any] | None:
    """A record, if it is there and was made with the cell's settings as they are now."""
    if not path.exists():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    return record if record["settings"] == cell.settings() else None


def write(path: pathlib.Path, record: dict[str, Any]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".{os.getpid()}.part")
    beside.write_text(json.dumps(to_plain(record), allow_nan=False), encoding="utf-8")
    beside.replace(path)


def measure(cell: Cell, draw: int, way: str, ways: Mapping[str, Chooser]) -> dict[str, Any]:
    """One measurement: the choice, what it cost, and its test losses; or those of all rows."""
    start, start_cpu = time.perf_counter(), time.process_time()
    if isinstance(cell, TransferCell):
        told = measure_transfer(cell, draw)
    elif way == ROWS:
        told = _of_rows(cell, draw)
    else:
        told = _of_way(ways[way].choose(cell, draw), cell, draw)
    told |= {"cell": cell.name, "draw": draw, "way": way, "settings": cell.settings()}
    told |= {"seconds_in_all": time.perf_counter() - start}
    return _rounded(told | {"cpu_seconds_in_all": time.process_time() - start_cpu})


def _of_rows(cell: Cell, draw: int) -> dict[str, Any]:
    strengths = cell.grid["strength"].tolist()
    losses, each = refit(cell, draw, strengths)
    return {"strengths": strengths, "test": losses, "examples": each}


def _of_way(found: Found, cell: Cell, draw: int) -> dict[str, Any]:
    told, path = found._asdict(), found.more.get("path", [])
    if not np.isfinite(found.strength):  # It chose nothing: every row diverged.
        nothing = {"test": [None] * cell.num_refits, "examples": [], "path": []}
        return told | {"strength": None} | nothing
    losses, each = refit(cell, draw, [found.strength, *(strength for _, strength in path)])
    told["path"] = [
        {"trainings": trainings, "strength": strength, "test": float(loss)}
        for (trainings, strength), loss in zip(path, losses[1:].mean(axis=1), strict=True)
    ]
    return told | {"test": losses[0], "examples": each[0]}


def _rounded(value: Any) -> Any:
    """Losses to seven digits, as they are float32: the files stay small."""
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    if isinstance(value, np.ndarray):
        return _rounded(value.tolist())
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


def go_on(
    todo: Iterable[Job],
    cells: Mapping[str, Cell],
    kept: pathlib.Path,
    *,
    until: float = float("inf"),
    ways: Mapping[str, Chooser] = CHOOSERS,
    say: Callable[[str], None] = print,
) -> int:
    """Measures what is not there, up to a time of `time.perf_counter`; how many it measured.

    A record is `warm` where its way has been through another draw of the cell before it, and found
    what that compiled.
    """
    done, begun = 0, set()
    for cell, draw, way in todo:
        path = path_of(kept, (cell, draw, way))
        if read(path, cells[cell]) is not None:
            continue
        if time.perf_counter() >= until:
            break
        record = measure(cells[cell], draw, way, ways)
        write(path, record | {"warm": (cell, way) in begun})
        begun.add((cell, way))
        done += 1
        taken = f"{record['seconds_in_all']:.1f} s, {record['cpu_seconds_in_all']:.1f} s of CPU"
        say(f"{cell}, draw {draw}, {way}: {taken}")
    return done


def records(
    todo: Iterable[Job], cells: Mapping[str, Cell], kept: pathlib.Path
) -> Iterator[dict[str, Any]]:
    """Those that are there."""
    for job in todo:
        record = read(path_of(kept, job), cells[job[0]])
        if record is not None:
            yield record
