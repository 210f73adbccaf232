"""Kills runs at random moments and compares what they end with to runs that were left alone.

    python -m tests.kills --count 200 --seed 0

Four kinds of jobs: `train` in memory and streamed, `select` and `compare` with cached trials. A job
is killed by SIGKILL, half of the times wherever it is and half of them while it writes a file,
and started again: `train` with --resume once it says what it was told, the others as they were.
After up to five kills it may end, and its `results.json` (without times and names of folders),
its `params.npz` and its log must be, bit for bit, those of the same job that no one killed.

The jobs are forked from one process that has imported everything and started nothing, so each
costs its own work alone. Writes are slowed down in them, so that they can be hit.
"""

import argparse
import contextlib
import json
import mmap
import os
import pathlib
import random
import shlex
import signal
import sys
import tempfile
import threading
import time

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
DATA = "--data iris --devices 1 --batch-size 30"
JOBS = {
    "train": f"train {DATA} --strength 0.1 --epochs 20 --seeds 2 --save-every 8",
    "stream": f"train --stream {DATA} --strength 0.1 --epochs 6 --save-every 3 --patience 6 "
    "--evaluate-every 4",
    "select": f"select {DATA} --strengths 0 0.1 1 --folds 3 --seeds 1 --epochs 3",
    "compare": f"compare {DATA} --vary optimizer --among sgd adam --strengths 0 0.1 --folds 2 "
    "--seeds 1 --epochs 2",
}
MOST_KILLS = 5
"""Of one run; then it may end."""
SLOWER = 0.02
"""Seconds that each part of a write takes longer."""
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
VOLATILE = ("timing", "command", "out", "sha256", "digests", "headline")


class Writing:
    """How many writes are under way in a child: a byte that both processes see."""

    def __init__(self):
        self._shared = mmap.mmap(-1, 2)
        self._lock = threading.Lock()

    def clear(self):
        self._shared[:] = b"\0\0"

    @property
    def under_way(self):
        return self._shared[0] > 0

    @property
    def begun(self):
        """Counted modulo 256."""
        return self._shared[1]

    @contextlib.contextmanager
    def one(self):
        with self._lock:
            self._shared[1] = (self._shared[1] + 1) % 256
            self._shared[0] += 1
        try:
            yield
        finally:
            with self._lock:
                self._shared[0] -= 1


def slow_down(writing):
    """In a child: every write is counted while it lasts, and lasts longer."""
    from wdjax.checkpoint.store import Checkpoints
    from wdjax.selection.cache import TrialCache

    def slowed(function):
        def slow(*arguments, **named):
            with writing.one():
                time.sleep(SLOWER)
                found = function(*arguments, **named)
                time.sleep(SLOWER)
                return found

        return slow

    for owner, name in (
        (os, "fsync"),
        (os, "replace"),
        (pathlib.Path, "rename"),
        (Checkpoints, "_write"),
        (TrialCache, "write"),
    ):
        setattr(owner, name, slowed(getattr(owner, name)))


def start(words, folder, writing):
    """The command in a fork of this process; what it says goes to `said` in the folder."""
    writing.clear()
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        with open(folder / "said", "ab", buffering=0) as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        os.chdir(folder)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        slow_down(writing)
        from wdjax.cli import main

        sys.argv = ["wdjax", *shlex.split(words)]
        status = main()
        sys.stdout.flush()
    except SystemExit as end:
        status = end.code
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status if isinstance(status, int) else 71)


def said_in(folder):
    return (folder / "said").read_text(errors="replace")


def again(job, folder):
    """The words that go on with a job that was killed."""
    if job in ("train", "stream") and (folder / "run" / "config.json").exists():
        return "train --resume run --devices 1"
    return f"{JOBS[job]} --out run --overwrite"


def wait(child, seconds=300):
    """The exit status of a child that ends by itself."""
    for _ in range(seconds * 50):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError(f"a run did not end within {seconds} s")


def kill(child, chance, lasts, num_writes, writing):
    """Kills a child at a random moment: `"saving"` or `"running"`; None if it ended before.

    It is stopped, looked at, and killed as it stands.
    """
    begin = time.monotonic()
    if chance.random() < 0.5:
        moment, writes = chance.random() * lasts, 0
    else:
        moment, writes = 0.0, chance.randint(1, num_writes)
    seen = 0
    while time.monotonic() - begin < moment or seen < writes:
        seen = max(seen, writing.begun)
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return None, os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    time.sleep(chance.random() * 2 * SLOWER)
    os.kill(child, signal.SIGSTOP)
    _, status = os.waitpid(child, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        return None, os.waitstatus_to_exitcode(status)
    how = "saving" if writing.under_way else "running"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return how, None


def plain(value):
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items() if name not in VOLATILE}
    return [plain(inner) for inner in value] if isinstance(value, list) else value


def end_of(folder):
    """What a run ends with, as it is compared: results, arrays bit for bit, log."""
    from wdjax.loop.log import RunLog

    run = folder / "run"
    results = plain(json.loads((run / "results.json").read_text()))
    for name in ("resume", "overwrite"):
        results["config"].pop(name, None)
    found = {f"results: {name}": value for name, value in results.items()}
    if (run / "params.npz").exists():
        with np.load(run / "params.npz", allow_pickle=False) as arrays:
            for name, array in arrays.items():
                found[f"params: {name}"] = (array.dtype.str, array.shape, array.tobytes())
    log = run / "log.jsonl"
    found["log"] = RunLog(log).read() if log.exists() else None
    found["left"] = sorted(
        path.name for path in run.iterdir() if path.name.startswith((".wdjax-", "."))
    )
    return found


def same_end(whole, folder, job):
    """Fails, with what was said, unless a run ended as the one that was left alone."""
    end = end_of(folder)
    differing = [name for name in sorted(whole.keys() | end) if whole.get(name) != end.get(name)]
    assert not differing, f"{job} in {folder} differs in {differing}:\n{said_in(folder)[-3000:]}"
    assert "Traceback" not in said_in(folder), said_in(folder)[-3000:]


class Kills:
    """Kills of one kind of job."""

    def __init__(self, job, folder, seed):
        self.job, self.folder = job, folder
        self.chance = random.Random(f"{job} {seed}")
        self.writing = Writing()
        self.counts = {"saving": 0, "running": 0}
        self.runs = self.resumed = 0
        # Twice: what is compiled the first time is read the second, and lasts as long as others.
        for name in ("compiled", "whole"):
            self.where = self._folder(name)
            begin = time.monotonic()
            self._end(start(f"{JOBS[job]} --out run", self.where, self.writing))
            self.lasts = time.monotonic() - begin
            self.num_writes = max(1, self.writing.begun // 2)
        self.whole = end_of(self.where)
        self._begin()

    def _folder(self, name):
        path = self.folder / f"{self.job}-{name}"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def _begin(self):
        self.where, self.of_run = self._folder(f"run{self.runs}"), 0
        self.runs += 1

    def _words(self):
        if self.of_run == 0:
            return f"{JOBS[self.job]} --out run"
        words = again(self.job, self.where)
        self.resumed += "--resume" in words
        return words

    def _end(self, child):
        status = wait(child)
        assert status == 0, f"{self.job} ended with {status}:\n{said_in(self.where)[-3000:]}"

    def one(self):
        """One kill more; a run that ends before it could be killed is compared, and replaced."""
        while True:
            if self.of_run == MOST_KILLS:
                self.finish()
                self._begin()
            child = start(self._words(), self.where, self.writing)
            how, status = kill(child, self.chance, self.lasts, self.num_writes, self.writing)
            if how is not None:
                self.of_run += 1
                self.counts[how] += 1
                return how
            assert status == 0, f"{self.job} ended with {status}:\n{said_in(self.where)[-3000:]}"
            same_end(self.whole, self.where, self.job)
            self._begin()

    def finish(self):
        """Lets the run that was killed end, and compares."""
        if self.of_run:
            self._end(start(self._words(), self.where, self.writing))
            same_end(self.whole, self.where, self.job)


def main():
    """Kills, tells of each, and gives 0 if all ended the same."""
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="kills in all (default 200)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", nargs="+", default=list(JOBS), choices=list(JOBS))
    told = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        import_everything(pathlib.Path(folder) / "programs")
        jobs = [Kills(job, pathlib.Path(folder), told.seed) for job in told.jobs]
        for number in range(told.count):
            job = jobs[number % len(jobs)]
            how = job.one()
            print(
                f"kill {number + 1} of {told.count}: {job.job}, run {job.runs}, its kill "
                f"{job.of_run}, while {how}; {time.monotonic() - begin:.0f} s",
                flush=True,
            )
        for job in jobs:
            job.finish()
            print(
                f"{job.job}: {job.counts['running'] + job.counts['saving']} kills in {job.runs} "
                f"runs, {job.counts['saving']} while saving, {job.resumed} resumes; every run "
                "ended bit for bit as the one that was left alone",
                flush=True,
            )
    return 0


def import_everything(programs):
    """All that a job imports, once; nothing of JAX is started, so that it can be forked."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    # As in the tests: most of the time would go into compiling what runs once.
    os.environ["XLA_FLAGS"] = QUICK
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(programs)
    sys.path.insert(0, str(ROOT))
    import flax.linen  # noqa: F401
    import grain  # noqa: F401
    import jax  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import optax  # noqa: F401
    import orbax.checkpoint  # noqa: F401
    import rich.progress  # noqa: F401

    import wdjax.cli  # noqa: F401
    import wdjax.jobs  # noqa: F401
    import wdjax.report  # noqa: F401


if __name__ == "__main__":
    sys.exit(main())
