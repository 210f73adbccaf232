"""The progress of a run, on the standard error."""

import contextlib
import time
from typing import Any

from wdjax.extras import need
from wdjax.printing import printable

SECONDS_BETWEEN_LINES = 5.0


class Screen:
    """Progress on standard error: a live bar on a terminal, else a line now and then."""

    def __init__(self):
        need("rich", what="the command's progress")
        from rich.console import Console  # start-up: most commands show none.
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        class Unread(Console):
            """Where nobody reads it, it is quiet; rich would end the process."""

            def on_broken_pipe(self) -> None:
                self.quiet = True

        self.console = Unread(stderr=True, highlight=False)
        self.bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:.0f} of {task.total:.0f}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.tasks: dict[str, Any] = {}
        self.last_line = 0.0

    def __enter__(self) -> "Screen":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.bar.stop()

    def say(self, text: str) -> None:
        """Prints above the bar. A terminal that is gone is nothing to end a run for."""
        with contextlib.suppress(OSError):
            self.console.print(printable(text), markup=False, soft_wrap=True)

    def show(self, what: str, event: Any) -> None:
        """Shows how far a stage is, and how long it will take once that is known."""
        left = "" if event.remaining is None else f"about {event.remaining:.0f} s left"
        doing = printable(f"{what}: compiling" if event.stage == "compile" else what)
        if self.bar.disable:
            self._line(doing, event, left)
            return
        if what not in self.tasks:
            self.tasks[what] = self.bar.add_task(doing, total=event.total, left="")
        left = left if event.done < event.total else ""
        with contextlib.suppress(OSError):
            self.bar.update(self.tasks[what], description=doing, completed=event.done, left=left)

    def _line(self, doing: str, event: Any, left: str) -> None:
        now = time.monotonic()
        first_or_last = event.remaining is None or event.done == event.total
        if first_or_last or now - self.last_line > SECONDS_BETWEEN_LINES:
            self.last_line = now
            counted = f"{doing}: {event.done} of {event.total}, {event.elapsed:.0f} s"
            self.say(", ".join(filter(None, [counted, left])))
