"""Kills runs at random moments and compares what they end with to runs that were left alone.

    python -m tests.kills --count 200 --seed 0

Six kinds of jobs: `train` in memory, streamed and tuned on the way (saved after each window), and
`select`, `compare` and `transfer` with cached trials, all of a linear model on 120 examples. A job
is killed by SIGKILL, half of the times at a moment drawn from how long it lasts and half of them at
one of its writes, and started again: `train` with --resume once its folder says what it was told,
the others as they were, with the trials that they had cached. After one to four kills it may end.
Its `results.json` (without times, costs, and how many trials were cached), the arrays of its
`params.npz`, its log and the names of its files must then be, bit for bit, those of the same job
that no one killed.

What is not as in the shell: the jobs are forked from one process that has imported everything and
started nothing of JAX, so that each costs its own work alone; they share a cache of compiled
programs, and the compiler is told to be quick; and writes are slowed down, and made in two halves,
so that they can be hit. Kinds go side by side, each in a process of its own.
"""

import argparse
import contextlib
import ctypes
import io
import json
import mmap
import os
import pathlib
import random
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback

sys.path.append(str(pathlib.Path(__file__).parent))  # For `python -m tests.kills`.

from kill_ends import differing, end_of, said_in  # noqa: E402

ROOT = pathlib.Path(__file__).parent.parent
MODEL = '''"""Linear: what is killed are the jobs, and this is compiled and traced in no time."""

import jax
import jax.numpy as jnp

from wdjax import Model


def make_model(num_outputs, dropout=0.0):
    def init(key, inputs):
        kernel = 0.1 * jax.random.normal(key, (inputs.shape[1], num_outputs))
        return {"kernel": kernel, "bias": jnp.zeros(num_outputs)}, {}

    def apply(params, model_state, inputs, *, key=None, train=True):
        return inputs @ params["kernel"] + params["bias"], model_state

    return Model(init, apply)
'''
OWN = "--model ../model.py:make_model"
DATA = f"--data iris --devices 1 {OWN}"
BY_30 = f"{DATA} --batch-size 30"
JOBS = {
    "train": f"train {BY_30} --strength 0.1 --epochs 10 --seeds 2 --save-every 8",
    "stream": f"train --stream {BY_30} --strength 0.1 --epochs 4 --save-every 2 --patience 6 "
    "--evaluate-every 4",
    "tune": f"train --tune {BY_30} --optimizer sgd --epochs 4 --schedule cosine",
    "select": f"select {BY_30} --optimizer sgd --strengths 0 0.1 1 --learning-rates 0.003 "
    "--folds 3 --seeds 1 --epochs 3",
    "compare": f"compare {BY_30} --optimizer sgd --vary decay --among decoupled l1 "
    "--strengths 0 0.1 --folds 2 --seeds 1 --epochs 2",
    "transfer": f"transfer {DATA} --batch-size 8 --optimizer sgd --rows 8 16 32 55 --to-rows 96 "
    "--strengths 0.1 1 10 --learning-rates 0.003 --folds 2 --seeds 1 --epochs 2",
}
MOST_KILLS = 4
"""Of one run; then it may end."""
SLOWER, BETWEEN = 0.02, 0.004
"""Seconds that each part of a write takes longer, and that lie between its halves."""
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
COUNTS = ("saving", "running", "resumed", "cached", "runs", "equal", "differing")


class Writing:
    """How many writes are under way in a child, and how many began, as both processes see."""

    def __init__(self):
        self._shared = memoryview(mmap.mmap(-1, 8)).cast("I")
        self._lock = threading.Lock()

    def clear(self):
        self._shared[0] = self._shared[1] = 0

    @property
    def under_way(self):
        return self._shared[0] > 0

    @property
    def begun(self):
        return self._shared[1]

    @contextlib.contextmanager
    def one(self):
        with self._lock:
            self._shared[1] += 1
            self._shared[0] += 1
        try:
            yield
        finally:
            with self._lock:
                self._shared[0] -= 1


def slow_down(writing):
    """In a child: every write is counted while it lasts, lasts longer, and is made in halves."""
    from wdjax import writing as files
    from wdjax.checkpoint.store import Checkpoints
    from wdjax.loop import log
    from wdjax.selection import cache

    def slowed(function):
        def slow(*arguments, **named):
            with writing.one():
                time.sleep(SLOWER)
                found = function(*arguments, **named)
                time.sleep(SLOWER)
                return found

        return slow

    class Halves(io.FileIO):
        """A file in which a kill can leave half of what was written at once."""

        def write(self, content):
            content = memoryview(content).cast("B")
            half = len(content) // 2
            with writing.one():
                for part in (content[:half], content[half:]):
                    super().write(part)
                    time.sleep(BETWEEN)
            return len(content)

    def open_slow(path, mode="r", buffering=-1, encoding=None):
        if not set(mode) & set("wax"):
            return open(path, mode, buffering, encoding)
        raw = Halves(path, mode.replace("b", ""))
        if buffering == 0:
            return raw
        binary = io.BufferedWriter(raw)
        return binary if "b" in mode else io.TextIOWrapper(binary, encoding)

    for module in (files, log, cache):
        module.open = open_slow
    for owner, name in (
        (os, "fsync"),
        (os, "replace"),
        (pathlib.Path, "rename"),
        (Checkpoints, "_write"),
        (cache.TrialCache, "write"),
    ):
        setattr(owner, name, slowed(getattr(owner, name)))


def end_with_parent():
    """A fork does not outlive what forked it, where the system can be told so."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def start(words, folder, writing):
    """The command in a fork of this process; what it says goes to `said` in the folder."""
    writing.clear()
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        end_with_parent()
        with open(folder / "said", "ab", buffering=0) as said:
            said.write(f"$ wdjax {words}\n".encode())
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        os.chdir(folder)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        slow_down(writing)
        from wdjax.cli import main

        status = main(shlex.split(words))
        sys.stdout.flush()
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status if isinstance(status, int) else 71)


def again(job, folder):
    """The words that go on with a job that was killed."""
    if JOBS[job].startswith("train") and (folder / "run" / "config.json").exists():
        return f"train --resume run --devices 1 {OWN}"
    return f"{JOBS[job]} --out run --overwrite"


def wait(child, seconds=900):
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
    """Kills a child at a random moment: `("saving" or "running", None)`.

    It is stopped, looked at, and killed as it stands. One that ends before: `(None, its status)`.
    """
    begin = time.monotonic()
    if chance.random() < 0.5:
        moment, writes = chance.random() * lasts, 0
    else:
        moment, writes = 0.0, chance.randint(1, num_writes)
    while time.monotonic() - begin < moment or writing.begun < writes:
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


class Kills:
    """Kills of one kind of job."""

    def __init__(self, job, folder, seed):
        self.job, self.folder = job, folder
        self.chance = random.Random(f"{job} {seed}")
        self.writing = Writing()
        self.begun, self.counts = 0, dict.fromkeys(COUNTS, 0)
        # Twice: what is compiled the first time is read the second, and lasts as long as others.
        self.whole = None
        for name in ("compiled", "whole"):
            self.where = self._folder(name)
            begin = time.monotonic()
            self._ended(wait(start(f"{JOBS[job]} --out run", self.where, self.writing)))
            self.lasts, self.num_writes = time.monotonic() - begin, self.writing.begun
            self.whole = self.whole or end_of(self.where)
        told = "; ".join(differing(self.whole, self.where))
        assert not told, f"{job}: two runs that were left alone differ in {told}"
        self._begin()

    def _folder(self, name):
        path = self.folder / f"{self.job}-{name}"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def _begin(self):
        self.begun += 1
        self.where = self._folder(f"run{self.begun}")
        self.of_run, self.most = 0, self.chance.randint(1, MOST_KILLS)

    def _start(self):
        words = f"{JOBS[self.job]} --out run"
        if self.of_run:
            words = again(self.job, self.where)
            self.counts["resumed"] += "--resume" in words
        return start(words, self.where, self.writing)

    def _ended(self, status):
        assert status == 0, f"{self.job} ended with {status}:\n{said_in(self.where)[-3000:]}"

    def _compare(self, status):
        """A run that was over before it could be killed even once is looked at, and not counted."""
        self._ended(status)
        was_killed = self.of_run > 0
        self.counts["runs"] += was_killed
        results = json.loads((self.where / "run" / "results.json").read_text())
        self.counts["cached"] += results.get("cached", 0)
        told = differing(self.whole, self.where)
        if told:
            self.counts["differing"] += 1
            say(f"{self.job}: {self.where} DIFFERS in " + "\n".join(told))
        else:
            self.counts["equal"] += was_killed
            shutil.rmtree(self.where)
        self._begin()

    def one(self):
        """One kill more; a run that ends before it could be killed is compared, and replaced."""
        while True:
            if self.of_run == self.most:
                self.finish()
            child, begin = self._start(), time.monotonic()
            # What goes on with a run has less to write.
            num_writes = max(1, self.num_writes // (2 if self.of_run else 1))
            how, status = kill(child, self.chance, self.lasts, num_writes, self.writing)
            if how is not None:
                self.of_run += 1
                self.counts[how] += 1
                return how
            # As busy as the machine is now.
            self.lasts = time.monotonic() - begin
            self._compare(status)

    def finish(self):
        """Lets the run that was killed end, and compares."""
        if self.of_run:
            self._compare(wait(self._start()))


def say(text):
    """In one write: several processes say something."""
    os.write(1, f"{text}\n".encode())


def kill_all_of(job, count, folder, seed):
    """In a process of its own: kills one kind, and writes down what it counted."""
    begin = time.monotonic()
    kills = Kills(job, folder, seed)
    say(
        f"{job}: lasts {kills.lasts:.1f} s with {kills.num_writes} writes; two runs left alone "
        f"are equal; {time.monotonic() - begin:.0f} s"
    )
    for number in range(1, count + 1):
        how = kills.one()
        say(
            f"{job}: kill {number} of {count}, the {kills.of_run}. of run "
            f"{kills.begun}, while {how}; {time.monotonic() - begin:.0f} s"
        )
    kills.finish()
    (folder / f"{job}.json").write_text(json.dumps(kills.counts))


def start_kind(*arguments):
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        end_with_parent()
        kill_all_of(*arguments)
        status = 0
    except BaseException:
        say(traceback.format_exc())
    finally:
        os._exit(status)


def summed(folder, jobs):
    """Says what was counted, of each kind and of all; whether every run ended as it should."""
    total = {}
    for job in [*jobs, "all"]:
        path = folder / f"{job}.json"
        counts = total if job == "all" else json.loads(path.read_text()) if path.exists() else {}
        if not counts:
            say(f"{job}: not ended")
            continue
        say(
            f"{job}: {counts['running'] + counts['saving']} kills, {counts['saving']} while saving;"
            f" {counts['resumed']} resumes, {counts['cached']} trials found in the cache; "
            f"{counts['runs']} killed runs compared, {counts['equal']} equal bit for bit"
        )
        if job != "all":
            total = {name: total.get(name, 0) + number for name, number in counts.items()}
    return bool(total) and total["runs"] == total["equal"] and not total["differing"]


def main():
    """Kills, tells of each, and gives 0 if all ended the same."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.kills",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--count", type=int, default=200, help="kills in all (default 200)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", nargs="+", default=list(JOBS), choices=list(JOBS))
    told = parser.parse_args()
    folder, begin = pathlib.Path(tempfile.mkdtemp(prefix="kills-")), time.monotonic()
    (folder / "model.py").write_text(MODEL)
    import_everything(folder / "programs")
    counts = {job: len(range(i, told.count, len(told.jobs))) for i, job in enumerate(told.jobs)}
    children = [start_kind(job, counts[job], folder, told.seed) for job in told.jobs]
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    equal = summed(folder, told.jobs) and not any(statuses)
    say(f"seed {told.seed}; {time.monotonic() - begin:.0f} s")
    if equal:
        shutil.rmtree(folder)
    else:
        say(f"what differs, or did not end, is in {folder}")
    return 0 if equal else 1


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
