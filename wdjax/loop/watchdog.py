"""A watchdog for a run: when no step finishes for too long, it dumps the stacks of all threads."""

import contextlib
import faulthandler
import os
import pathlib
import threading
import time
from collections.abc import Callable
from typing import Any

from wdjax.checks import check_number

FAILED = 1
"""The exit status of a process that was ended because it hung."""


class HangWatch:
    """Watches over what is to be done between `begin` and `rest`, from a thread of its own.

        with HangWatch(600, "run/stacks.txt") as watch:
            watch.begin(step, "training")
            ...
            watch.rest()

    When nothing was begun anew for `seconds`, it appends the stack of every thread to a file (by
    `faulthandler`, so a thread that waits in C is shown where Python called it), says so on
    standard error, and hands `(step, seconds)` to `tell`; again after twice, four times, ... as
    long. What hangs is most often a collective that waits for a dead process, or a disk. The run
    itself is not touched, unless `ends`: then the process exits with 1, at once, as if it had
    been killed, which a checkpoint survives.

    Raises:
      ValueError: at build, if `seconds` is not a number above 0.
    """

    def __init__(
        self,
        seconds: float | int,
        path: str | os.PathLike[str],
        *,
        ends: bool = False,
        tell: Callable[[int, float], None] | None = None,
    ):
        check_number("hang_after", seconds, low=0.0, exclusive_low=True)
        self.path = pathlib.Path(path)
        self._seconds, self._ends, self._tell = float(seconds), ends, tell
        self._changed = threading.Condition()
        self._since: float | None = None
        self._step, self._doing, self._said = 0, "", False
        self._is_over = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "HangWatch":
        self._is_over, self._since = False, None
        self._thread = threading.Thread(target=self._watch, name="wdjax-hang-watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify()
        assert self._thread is not None
        self._thread.join()

    def begin(self, step: int, doing: str) -> None:
        """Something new is begun after `step` finished; what was before it is done."""
        self._go_on(time.monotonic(), step, doing)

    def rest(self) -> None:
        """Nothing is to be done: the turn is someone else's."""
        self._go_on(None, self._step, self._doing)

    def _go_on(self, since: float | None, step: int, doing: str) -> None:
        with self._changed:
            late = self._said and self._since is not None
            waited = time.monotonic() - self._since if self._since is not None else 0.0
            self._since, self._step, self._doing, self._said = since, step, doing, False
        if late:
            _say(f"wdjax: it goes on after {waited:.3g} s, after step {step}.")

    def _watch(self) -> None:
        bound, begun = self._seconds, None
        while True:
            with self._changed:
                if self._is_over:
                    return
                if self._since != begun:
                    bound, begun = self._seconds, self._since
                left = self._seconds if begun is None else begun + bound - time.monotonic()
                if left > 0:
                    # Nobody notifies at `begin`, which every step calls: a look at times will do.
                    self._changed.wait(min(left, threading.TIMEOUT_MAX))
                    continue
                self._said = True
                waited, step, doing = bound - left, self._step, self._doing
            # Without the lock: a disk that hangs here must not hang the run as well.
            self._report(waited, step, doing)
            bound *= 2

    def _report(self, waited: float, step: int, doing: str) -> None:
        words = f"no step finished for {waited:.3g} s, after step {step} (now: {doing})"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}: {words}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
                file.write("\n")
            where = f"the stacks of all threads are in {self.path}"
        except OSError as error:  # A disk that hangs or is full must not silence the watch.
            where = f"the stacks could not be written ({error.strerror})"
        _say(f"wdjax: {words}; {where}. {'It ends.' if self._ends else 'It is left to run.'}")
        if self._tell is not None:
            try:
                self._tell(step, waited)
            except OSError as error:  # Of the run itself the same disk will be told.
                _say(f"wdjax: that could not be logged: {error}")
        if self._ends:
            os._exit(FAILED)


def _say(words: str) -> None:
    # Not print: the thread that hangs may be in the middle of one.
    with contextlib.suppress(OSError):  # Standard error may be closed.
        os.write(2, (words + "\n").encode(errors="backslashreplace"))
