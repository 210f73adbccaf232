"""SIGTERM and Ctrl-C, asked about between two steps instead of striking in the middle of one."""

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any

import jax


class Preempted(SystemExit):
    """The machine asked the run to end (SIGTERM); it was saved, and the process exits with 143."""

    def __init__(self, step: int):
        super().__init__(128 + signal.SIGTERM)
        self.step = step


class Signals:
    """SIGTERM and the first Ctrl-C as a question to be asked between two steps.

    The second one finds the handler that was there before, so it is immediate: by default it
    ends the process. Where several processes run (`jax.distributed`), its runtime has SIGTERM for
    itself and agrees on a step for all to stop after; a second one changes nothing there.
    """

    def __enter__(self) -> "Signals":
        self._got: int | None = None
        self._old: dict[int, Any] = {}
        self._shared = jax.process_count() > 1
        if not self._shared and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                # None where a library's C code had installed it: that cannot be put back.
                old = signal.signal(number, self._note)
                self._old[number] = signal.SIG_DFL if old is None else old
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old = {}

    def asked(self, step: int) -> int | None:
        """The signal to end by, after `step`."""
        if self._shared:
            from jax.experimental import multihost_utils

            if multihost_utils.reached_preemption_sync_point(step):
                return signal.SIGTERM
        return self._got

    def leave(self, number: int, step: int) -> None:
        """Ends the run as the signal means it, after the handler that was there before.

        Raises:
          KeyboardInterrupt: on Ctrl-C.
          Preempted: on SIGTERM.
        """
        old = self._old.get(number)
        self.__exit__()
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        if callable(old):
            old(number, None)
        raise Preempted(step)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        words = f"{signal.Signals(number).name}: finishing the step; once more ends at once.\n"
        # Not print: the signal may have come in the middle of one.
        with contextlib.suppress(OSError):  # Standard error may be closed: the run goes on.
            os.write(2, words.encode())
        self._got = number
        signal.signal(number, self._old[number])
