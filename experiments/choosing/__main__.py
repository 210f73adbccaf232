"""The judged page: every way of choosing, held against cross-validation.

python -m experiments.choosing --hours 6            goes on where it was, then writes the page
python -m experiments.choosing --hours 0            only writes the page, from what is there
python -m experiments.choosing --tiny --hours 1     two small cells and a transfer

Each (cell, draw, way) is a file of its own in runs/experiments/choosing, written when it is done: a
run that was stopped goes on from there. What was measured with other settings of its cell is
measured again; after a change to a way, delete its files.
"""

import argparse
import datetime
import math
import pathlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from experiments import common
from experiments.choosing import page, store
from experiments.choosing.cells import CELLS, Cell, tiny_cells
from experiments.choosing.summary import pairs_of
from experiments.choosing.transfer import TRANSFER_CELLS, tiny_transfer
from experiments.choosing.ways import CHOOSERS, Chooser


def facts_of(
    cells: Mapping[str, Cell], kept: pathlib.Path, ways: Mapping[str, Chooser] = CHOOSERS
) -> dict[str, Any]:
    """All that the page is written from: what is measured, and of how much."""
    todo = store.jobs(cells, ways)
    records = [*store.records(todo, cells, kept)]
    transfers = [record for record in records if record["way"] == store.TRANSFER]
    device = common.this_device()
    return {
        "lines": pairs_of(record for record in records if record["way"] != store.TRANSFER),
        "transfers": [
            {k: v for k, v in one.items() if k != "settings"}
            | {"beyond": getattr(cells[one["cell"]], "beyond", ())}
            for one in transfers
        ],
        "cells": {
            name: {"draws": cell.num_draws, "deep": cell.deep}
            for name, cell in cells.items()
            if not isinstance(cell, store.TransferCell)
        },
        "num_pairs": len({job[:2] for job in todo if job[2] != store.TRANSFER}),
        "num_transfers": sum(job[2] == store.TRANSFER for job in todo),
        "skipped": store.missing(cells, ways),
        "device": f"{device['count']} {device['platform'].upper()}",
        "date": datetime.date.today().isoformat(),
        "cpu_hours": math.fsum(record["cpu_seconds_in_all"] for record in records) / 3600,
    }


def main(words: list[str] | None = None, say: Callable[[str], None] = print) -> int:
    """Measures for so long, and writes the page."""
    start = time.perf_counter()
    parser = argparse.ArgumentParser(prog="python -m experiments.choosing", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--hours", type=float, default=6.0, help="stop after so many (default 6)")
    parser.add_argument("--tiny", action="store_true", help="small cells; numbers mean nothing")
    parser.add_argument("--cells", nargs="*", default=[""], help="only those with this in the name")
    parser.add_argument("--kept", help=f"folder of what is done (default {store.KEPT})")
    parser.add_argument("--out", help="folder of the page (default beside the program)")
    given = parser.parse_args(words)
    cells: dict[str, Cell] = (
        tiny_cells() | tiny_transfer() if given.tiny else CELLS | TRANSFER_CELLS
    )
    kept = pathlib.Path(given.kept or store.KEPT / ("tiny" if given.tiny else "full"))
    out = pathlib.Path(given.out or (kept if given.tiny else page.HERE))
    for words_skipped in store.missing(cells, CHOOSERS):
        say(f"Skipped: {words_skipped}.")
    todo = [
        job for job in store.jobs(cells, CHOOSERS) if any(part in job[0] for part in given.cells)
    ]
    try:
        done = store.go_on(todo, cells, kept, until=start + 3600 * given.hours, say=say)
        say(f"Measured {done}.")
    except KeyboardInterrupt:
        say("Stopped.")
    page.write(out, facts_of(cells, kept))
    say(f"Wrote {out}.")
    return 0


if __name__ == "__main__":
    # A run that goes on need not compile again; in the folder of what is done, as it belongs to it.
    jax.config.update("jax_compilation_cache_dir", str(store.KEPT.absolute() / "programs"))
    sys.exit(main())
