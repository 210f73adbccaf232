"""`python -m tests.fuzz`: many cases, or one again; prints what failed, and a summary."""

import argparse
import collections
import functools
import importlib.metadata
import json
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What is compiled here runs once: see tests/conftest.py.
quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    quick += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", quick)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
for name in ("XDG_CACHE_HOME", "TFDS_DATA_DIR"):
    os.environ.pop(name, None)

from wdjax.writing import write_whole  # noqa: E402

from . import process, world  # noqa: E402
from .cases import Case, case_of  # noqa: E402
from .command import Done, run_main  # noqa: E402
from .judge import Result, run_case  # noqa: E402
from .known import KNOWN  # noqa: E402


def main() -> int:
    """Runs what the arguments say; 1 if a case failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, action="append", help="this case alone, in full")
    parser.add_argument("--count", type=int, default=1000, help="cases (default 1000)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument(
        "--cheap",
        action="store_true",
        help="leave out the run folders of selections, and stop audits where they would measure",
    )
    parser.add_argument("--slow", type=float, help="name the cases that take longer, in seconds")
    parser.add_argument("--json", help="the file to write all results to")
    parser.add_argument("--processes", action="store_true", help="each in a process of its own")
    parser.add_argument("--functions", action="store_true", help="the public functions instead")
    given = parser.parse_args()
    if given.functions:
        return _functions()
    with tempfile.TemporaryDirectory(prefix="wdjax-fuzz-") as root:
        results = Run(pathlib.Path(root), given).results()
    print(summary(results))
    if given.json is not None:
        write_whole(given.json, json.dumps([result.facts() for result in results]))
    failed = [result.case.seed for result in results if result.faults]
    if failed:
        print(f"Again: python -m tests.fuzz {' '.join(f'--seed {seed}' for seed in failed)}")
    return 1 if failed else 0


def _functions() -> int:
    """Calls the public functions with odd arguments, in a folder of its own; 1 if one failed."""
    from .functions import all_faults

    place = os.getcwd()
    with tempfile.TemporaryDirectory(prefix="wdjax-fuzz-") as folder:
        os.chdir(folder)
        number, faults = all_faults()
        os.chdir(place)
    print("\n".join([*faults, f"{number} calls, {len(faults)} failed"]))
    return 1 if faults else 0


class Run:
    """The cases that were asked for, one after another in this process."""

    def __init__(self, root: pathlib.Path, given: argparse.Namespace):
        self.root, self.made, self.given = root, root / "made", given

    def results(self) -> list[Result]:
        _keep_programs(self.root / "programs")
        os.environ["XDG_CACHE_HOME"] = str(self.root / "cache")
        known = {known_as.case: (name, known_as.edit) for name, known_as in KNOWN.items()}
        if self.given.seed:
            cases = [_case(seed) for seed in self.given.seed]
        else:
            cases = [*(() if self.given.processes else known), *self._drawn()]
        needed = frozenset().union(*(case.needs for case in cases))
        runs = [name for name in world.RUNS if name in needed]
        if self.given.processes:
            run: Callable[..., Done] = process.run_process
            status, _ = process.forked(lambda: world.build(self.made, runs) or 0)
            if status:
                raise RuntimeError(f"what the cases begin with was not made: {status}")
        else:
            run = functools.partial(run_main, stops_audits=self.given.cheap)
            world.build(self.made, runs)
        found, begin = [], time.monotonic()
        for i, case in enumerate(cases):
            # Whatever kills the process, the last line says which case it was.
            print(f"\r{i + 1}/{len(cases)} seed {case.seed}  ", end="", file=sys.stderr, flush=True)
            name, edit = known.get(case, ("", lambda folder: None))
            result = run_case(case, self.made, self.root, run, edit)
            found.append(result)
            if self.given.seed:
                _show(result)
            elif self.given.slow and result.done.seconds > self.given.slow:
                print(f"\n{result.done.seconds:.1f} s: {case}"[:300])
            elif result.faults:
                print(f"\nFAILED {name}: {'; '.join(result.faults)[:600]}")
                print(f"  {str(case)[:600]}\n  damage: {result.how}")
            if i % 300 == 299 and not self.given.processes:
                _forget()
        print(f"\n{len(cases)} cases in {time.monotonic() - begin:.0f} s", file=sys.stderr)
        return found

    def _drawn(self) -> Iterator[Case]:
        seed, left = self.given.first, self.given.count
        while left:
            case = case_of(seed)
            seed += 1
            if not self.given.cheap or case.needs <= set(world.CHEAP):
                left -= 1
                yield case


def _keep_programs(folder: pathlib.Path) -> None:
    """What one case has compiled, the next reads from the disk: see tests/conftest.py."""
    import jax

    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _case(seed: int) -> Case:
    """That of a seed, or of a known case: those are numbered from -1 downwards."""
    return case_of(seed) if seed >= 0 else list(KNOWN.values())[-1 - seed].case


def _forget() -> None:
    """The compiled programs of the cases before: each is met once."""
    import jax

    jax.clear_caches()


def _show(result: Result) -> None:
    print(f"{result.case}\n  culprits: {result.case.culprits[:12]}\n  damage: {result.how}")
    print(f"  {result.done.seconds:.1f} s, ended with {result.done.status}")
    print(f"--- output\n{result.done.printed}--- error\n{result.done.told}---")
    print("\n".join(result.faults) or "as it should be")


def summary(results: Iterable[Result]) -> str:
    """A table: cases, refused, ran and failed, by command and by kind of what was bad."""
    rows: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for result in results:
        for row in (result.case.command, result.case.kind, "all"):
            rows[row].update(["cases", result.outcome])
    kinds = {result.case.kind for result in results}
    order = sorted(rows, key=lambda row: (row == "all", row in kinds, row))
    lines = ["| | cases | refused | ran | failed |", "| --- | ---: | ---: | ---: | ---: |"]
    for row in order:
        counts = [rows[row][name] for name in ("cases", "refused", "ran", "failed")]
        lines.append(f"| {row} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
