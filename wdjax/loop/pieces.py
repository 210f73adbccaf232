"""The pieces of a run that is tuned: each a `TrainLoop` over one program, in one folder."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from wdjax.checkpoint import Restored
from wdjax.loop.signals import Signals
from wdjax.loop.train_loop import TrainLoop

WINDOWS = "windows"
"""The key in a checkpoint's `progress` of the windows done."""


class Piece(NamedTuple):
    """A row of steps of one window that run one program."""

    window: int
    has_tangents: bool
    begin: int
    end: int
    is_last_of_window: bool


def pieces_of(windows: Sequence[int], carried: float) -> Iterator[Piece]:
    """Of each window its first steps, without tangents, and its last, with them."""
    for index, (begin, end) in enumerate(itertools.pairwise(np.cumsum([0, *windows]).tolist())):
        middle = end - max(1, round((end - begin) * carried))
        if middle > begin:
            yield Piece(index, False, begin, middle, False)
        yield Piece(index, True, middle, end, True)


class PieceLoop(TrainLoop):
    """The steps of a piece, of which the folder knows nothing but the windows before."""

    number: int = 0
    windows: str = "[]"
    signals: Signals | None = None
    """Those of the whole run: who is asked to end between two pieces ends."""

    def go_on_from(self, found: Restored, may_differ: tuple[str, ...]) -> int:
        """As `resume`, of what was restored."""
        return self._go_on_from(found, may_differ)

    def take_counts(self, before: "PieceLoop") -> None:
        """What the run so far has counted."""
        for name in ("skipped", "empty", "best_step", "best_score", "saved_on", "_worse"):
            setattr(self, name, getattr(before, name))

    def _listening(self) -> contextlib.AbstractContextManager[Signals]:
        assert self.signals is not None
        return contextlib.nullcontext(self.signals)

    def _more_progress(self) -> dict[str, Any]:
        return {WINDOWS: self.windows}
