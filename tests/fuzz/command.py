"""One call of the command in this process: its own folder, streams and environment, and its end."""

import contextlib
import gc
import io
import os
import pathlib
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

LIMIT = 60.0
"""Seconds that a case may take."""


class Done(NamedTuple):
    """How a command ended."""

    status: int | str
    """The exit status; of an exception that came out, its traceback."""
    printed: str
    told: str
    """What stood on standard error."""
    accepted: bool
    """Whether it began to train."""
    seconds: float


class TooLongError(BaseException):
    """The limit was reached; no handler of an `Exception` can swallow it."""


def run_main(
    words: list[str],
    folder: pathlib.Path,
    *,
    stop_at: int | None = None,
    stops_audits: bool = False,
    environment: dict[str, str | None] | None = None,
) -> Done:
    """`wdjax.cli.main(words)` in `folder`.

    Args:
      words: the command line.
      folder: the working folder.
      stop_at: at which progress event Ctrl-C is pressed, counted from 1; None: never.
      stops_audits: whether Ctrl-C is pressed where an audit, which tells no progress, would begin
        to measure: that takes seconds.
      environment: variables that are other than here; None leaves one out.
    """
    import jax

    from wdjax.cli import main

    printed, told = _Stream("strict"), _Stream("backslashreplace")
    begin = time.process_time()
    with contextlib.ExitStack() as stack:
        events = stack.enter_context(interrupting(stop_at, stops_audits))
        stack.enter_context(_surroundings(folder, environment or {}))
        stack.enter_context(contextlib.redirect_stdout(printed))
        stack.enter_context(contextlib.redirect_stderr(told))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("default")
        stack.enter_context(jax.debug_nans(False))
        stack.enter_context(jax.numpy_rank_promotion("allow"))
        status: int | str
        try:
            with _limited():
                status = main(list(words))
            for stream in (printed, told):
                stream.flush()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except BaseException as error:
            status = "".join(traceback.format_exception(error))
    texts = (stream.text() for stream in (printed, told))
    return Done(status, *texts, bool(events), time.process_time() - begin)


class _Stream(io.TextIOWrapper):
    """Like a standard stream on a UTF-8 terminal: what it cannot encode is an error, or escaped."""

    def __init__(self, errors: str):
        self.kept = io.BytesIO()
        super().__init__(self.kept, encoding="utf-8", errors=errors, write_through=True)

    def close(self) -> None:
        """Stays open: what was printed is still to be read."""

    def text(self) -> str:
        return self.kept.getvalue().decode("utf-8", "replace")


@contextlib.contextmanager
def interrupting(stop_at: int | None, stops_audits: bool) -> Iterator[list[Any]]:
    """The events of progress; at number `stop_at` the process gets the signal of Ctrl-C."""
    from wdjax import jobs
    from wdjax.jobs import audit

    events: list[Any] = []

    def wrapped(run):
        def job(options, *, on_progress=None, **others):
            def told(what, event):
                events.append(event)
                if len(events) == stop_at:
                    os.kill(os.getpid(), signal.SIGINT)
                if on_progress is not None:
                    on_progress(what, event)

            return run(options, on_progress=told, **others)

        return job

    def audit_run(*given):
        events.append(given)
        os.kill(os.getpid(), signal.SIGINT)

    names = ("run_select", "run_compare", "run_transfer", "run_train")
    before = {name: getattr(jobs, name) for name in names}
    measure = audit.audit_run
    for name, run in before.items():
        setattr(jobs, name, wrapped(run))
    audit.audit_run = audit_run if stops_audits else measure
    try:
        yield events
    finally:
        audit.audit_run = measure
        for name, run in before.items():
            setattr(jobs, name, run)


@contextlib.contextmanager
def _surroundings(folder: pathlib.Path, environment: dict[str, str | None]) -> Iterator[None]:
    """Folder, environment, signals, and what a user's own file has entered in the tables."""
    import jax

    from wdjax.recipe.kinds import TABLES

    variables, place = dict(os.environ), os.getcwd()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # What the environment has set, the command leaves alone: devices and caches are those here.
    names = ("COMPILATION_CACHE_DIR", "PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    names += ("PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "NUM_CPU_DEVICES")
    try:
        os.environ.update({f"JAX_{name}": os.environ.get(f"JAX_{name}", "2") for name in names})
        for name, value in environment.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        os.chdir(folder)
        sys.dont_write_bytecode, bytecode = True, sys.dont_write_bytecode
        yield
    finally:
        sys.dont_write_bytecode = bytecode
        os.chdir(place)
        os.environ.clear()
        os.environ.update(variables)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        jax.config.update("jax_enable_x64", False)
        for sort, (_, table) in TABLES.items():
            if sort != "data":
                for name in [name for name in table if ":" in name]:
                    del table[name]
        for name in [name for name in sys.modules if name.startswith("wdjax_own_")]:
            del sys.modules[name]
        gc.collect(0)


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Ends what computes for longer than `LIMIT`, or waits for as long.

    On a busy machine a case gets a share of the time alone: what it computed meanwhile counts.
    """
    computed = [time.process_time()]

    def ring(number, frame):
        computed.append(time.process_time())
        if computed[-1] - computed[-2] < 0.1 or computed[-1] - computed[0] > LIMIT:
            raise TooLongError(f"took over {LIMIT:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, LIMIT, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
