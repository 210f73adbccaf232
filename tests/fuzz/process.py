"""One call of the command in a process of its own, forked from this one before JAX has started.

This process has imported everything and started no backend of JAX, so it has no threads that a fork
would lose; what the child does from then on is what the console script does: its own streams,
signals, exit and exit status. To start an interpreter a case would cost ten times as much.
"""

import io
import os
import pathlib
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable

from .command import LIMIT, Done, interrupting

MARK = b"began\n"
"""Stands in the child's file once it has begun to train."""


def run_process(
    words: list[str],
    folder: pathlib.Path,
    *,
    stop_at: int | None = None,
    environment: dict[str, str | None] | None = None,
) -> Done:
    """`wdjax WORDS` in `folder`: see `command.run_main`."""
    with tempfile.TemporaryDirectory(prefix="wdjax-fuzz-process-") as place:
        paths = [pathlib.Path(place) / name for name in ("printed", "told", "began")]
        run = lambda: _as_command(words, folder, paths, stop_at, environment or {})
        status, seconds = forked(run)
        printed, told, began = (path.read_bytes() if path.exists() else b"" for path in paths)
    texts = (text.decode("utf-8", "replace") for text in (printed, told))
    return Done(status, *texts, began == MARK, seconds)


def forked(run: Callable[[], int]) -> tuple[int | str, float]:
    """The exit status of a child that does `run`, and the seconds that it computed.

    Of a child that a signal ended the status is that signal's number below 0, as of `subprocess`.
    """
    begin = time.monotonic()
    child = os.fork()
    if child == 0:
        status = 70  # No documented one: of an error in what stands around the command.
        try:
            status = run()
        except BaseException:
            os.write(2, traceback.format_exc().encode("utf-8", "backslashreplace"))
        finally:
            os._exit(status)
    while True:
        done, how, used = os.wait4(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(how), used.ru_utime + used.ru_stime
        if time.monotonic() - begin > 10 * LIMIT:
            os.kill(child, signal.SIGKILL)
            os.wait4(child, 0)
            return f"no end in {10 * LIMIT:.0f} s", 10 * LIMIT
        time.sleep(0.02)


def _as_command(words, folder, paths, stop_at, environment) -> int:
    """What the console script does, in the child."""
    from wdjax import cli

    for number, path in zip((1, 2), paths, strict=False):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w"), "utf-8", errors="strict")
    sys.stderr = io.TextIOWrapper(
        io.FileIO(2, "w"), "utf-8", errors="backslashreplace", line_buffering=True
    )
    for name, value in environment.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    os.chdir(folder)
    sys.argv, sys.dont_write_bytecode = ["wdjax", *words], True
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with interrupting(stop_at, False) as events:
        try:
            status = cli.command()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    if events:
        paths[2].write_bytes(MARK)
    for stream in (sys.stdout, sys.stderr):
        if not stream.closed:
            stream.flush()
    return status
