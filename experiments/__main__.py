"""Runs experiments and keeps their table: `python -m experiments --all [--quick]`.

python -m experiments NAME ...   those experiments (a name's start is enough)
python -m experiments --all      all whose code or configuration changed since their results
python -m experiments --table    only brings pages and README.md's table in step
"""

import argparse
import pathlib
import subprocess
import sys
import time

from experiments.common import ROOT, is_current
from experiments.table import write_table


def folders() -> list[pathlib.Path]:
    """Every experiment: a folder with a `run.py`. Q7 reads the others' results, so it is last."""
    found = [path.parent for path in ROOT.glob("*/run.py")]
    return sorted(found, key=lambda folder: (folder.name.startswith("q07"), folder.name))


def mark_of_the_device() -> str:
    """`device_mark`, asked in a process of its own: this one must not take hold of a GPU."""
    program = "from experiments.common import *; print(device_mark(this_device()))"
    words = [sys.executable, "-c", program]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", help="experiments, by the start of their names")
    parser.add_argument("--all", action="store_true", help="every experiment")
    parser.add_argument("--quick", action="store_true", help="few seeds, to runs/experiments")
    parser.add_argument("--again", action="store_true", help="also those whose results stand")
    parser.add_argument("--table", action="store_true", help="only write pages and README.md")
    arguments = parser.parse_args()
    chosen = [
        folder
        for folder in folders()
        if arguments.all or any(folder.name.startswith(name) for name in arguments.names)
    ]
    if not chosen and not arguments.table:
        parser.error(f"name an experiment or --all; known: {' '.join(f.name for f in folders())}")
    mark = mark_of_the_device() if arguments.all and not arguments.quick else ""
    failed = []
    for folder in chosen:
        # Named alone, an experiment runs; under --all, those whose results stand are left.
        if (
            arguments.all
            and not arguments.again
            and not arguments.quick
            and is_current(folder, mark)
        ):
            print(f"{folder.name}: results stand.")
            continue
        start = time.perf_counter()
        words = [sys.executable, "-m", f"experiments.{folder.name}.run"]
        # A process each: an experiment may need its own devices or float64.
        if subprocess.run(words + ["--quick"] * arguments.quick).returncode:
            failed.append(folder.name)
        print(f"  {time.perf_counter() - start:.0f} s in all", flush=True)
    if not arguments.quick:
        write_table()
    if failed:
        print(f"failed: {', '.join(failed)}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
