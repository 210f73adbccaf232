"""One score of a search as it is judged: lower is better, and which rows may be the best."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from wdjax.checks import check_one_of
from wdjax.measures import direction_of
from wdjax.selection.evidence import confident_set, confident_set_over_folds
from wdjax.selection.plain_scores import LONE
from wdjax.selection.rungs import Rung, rows_left
from wdjax.selection.scores import HeldOut, Scores


class Judged(NamedTuple):
    """One score of a search, turned so that lower is better."""

    grid: Mapping[str, Any]
    losses: np.ndarray
    """`[row, fold, seed]`, NaN where a run diverged."""
    held_out: HeldOut | None
    each: np.ndarray | None
    """`[row, fold, seed, example]`, or None if single examples are not known, or not independent
    over the folds."""
    value: str
    higher_is_better: bool
    rungs: tuple[Rung, ...] = ()
    """Where rows left before the end, see `halve`."""
    slopes: Mapping[str, np.ndarray] = {}
    """`{number: [row, fold, seed]}` of the losses in its logarithm; NaN where not known."""

    @classmethod
    def of(cls, scores: Scores, value: str, higher_is_better: Any = None) -> "Judged":
        """The score named `value`, with its direction.

        Raises:
          ValueError: for an unknown score or direction.
        """
        if isinstance(scores.values, dict):
            check_one_of("value", value, scores.names)
            name = value
        elif len(scores.names) == 1:
            name = scores.names[0]
        else:
            raise ValueError("`scores.values` must be one array or a dict of arrays by name.")
        up = _direction(scores, name, higher_is_better)
        sign = -1.0 if up else 1.0
        held_out, each = scores.held_out, None
        if held_out is not None and not held_out.repeated and name in held_out.values:
            each = sign * np.asarray(held_out.values[name], np.float64)
        losses = sign * scores.of(name)
        slopes = {number: sign * scores.slope_of(name, number) for number in scores.slopes}
        return cls(scores.grid, losses, held_out, each, value, up, scores.rungs, slopes)

    @property
    def means(self) -> np.ndarray:
        """`[row]`; infinite where a run diverged."""
        means = self.losses.mean(axis=(1, 2))
        return np.where(np.isfinite(means), means, np.inf)

    @property
    def overlap(self) -> float | None:
        """Held-out examples per training example, of folds that are not independent."""
        if self.held_out is None or not self.held_out.repeated:
            return None
        return float(((self.held_out.weights > 0).sum(axis=1) / self.held_out.num_train).mean())

    @property
    def left(self) -> list[int]:
        """The rows that left before the end and had not diverged."""
        return [*rows_left(self.rungs)]

    def at(self, rows: Sequence[int]) -> "Judged":
        """These rows alone, as if no row had left before the end."""
        index = np.asarray(rows, int)
        grid = {name: np.asarray(axis)[index] for name, axis in self.grid.items()}
        each = None if self.each is None else self.each[index]
        slopes = {number: each_slope[index] for number, each_slope in self.slopes.items()}
        return self._replace(
            grid=grid, losses=self.losses[index], each=each, rungs=(), slopes=slopes
        )

    def falls(self, row: int, number: str, side: str) -> bool | None:
        """Whether the loss of a row surely falls towards a side ("smallest" or "largest") of a
        number, by its slopes over the folds (two standard errors); None where they are unknown."""
        if number not in self.slopes:
            return None
        runs = np.median(self.slopes[number][row], axis=-1)
        if not np.isfinite(runs).all():
            return None
        error = runs.std(ddof=1) / np.sqrt(len(runs)) if len(runs) > 1 else np.inf
        turned = runs.mean() if side == "smallest" else -runs.mean()
        return bool(turned > 2 * error)


def confident_rows(searches: Sequence[Judged], level: float = 0.95) -> list[tuple[int, ...]]:
    """Of each search, the rows that cannot be told from the best of all searches' rows.

    With those that left at a rung and could not be told from the best there.
    """
    if not any(np.isfinite(search.means).any() for search in searches):
        return [() for _ in searches]
    if all(search.each is not None for search in searches):
        held_out = shared_parts(searches)
        each = np.concatenate([search.each for search in searches])  # pyright: ignore[reportArgumentType, reportCallIssue]
        inside = confident_set(each, held_out.weights, held_out.groups, level=level)
    else:
        losses = np.concatenate([search.losses for search in searches])
        inside = confident_set_over_folds(losses, level=level, overlap=searches[0].overlap)
    ends = np.cumsum([len(search.losses) for search in searches])[:-1]
    told = [np.flatnonzero(part).tolist() for part in np.split(inside, ends)]
    unclear = [[row for rung in search.rungs for row in rung.unclear] for search in searches]
    return [tuple(sorted({*rows, *more})) for rows, more in zip(told, unclear, strict=True)]


def shared_parts(searches: Sequence[Judged]) -> HeldOut:
    """The held-out examples, which all searches share."""
    held_out = searches[0].held_out
    assert held_out is not None
    return held_out


def _direction(scores: Scores, name: str, told: Any) -> bool:
    if name == LONE and LONE not in scores.higher_is_better:
        name = "loss"  # Alone and without a name: a loss, if nothing else is told.
    known = scores.higher_is_better.get(name, direction_of(name, None))
    if told is not None and not isinstance(told, bool):
        raise ValueError(f"`higher_is_better` must be True or False, got {told!r}.")
    if told is None and known is None:
        raise ValueError(
            f"whether more of {name!r} is better is not known: pass higher_is_better=True or "
            "False, or make the score of a Measure(function, higher_is_better)."
        )
    if None not in (told, known) and told != known:
        raise ValueError(
            f"`higher_is_better`={told}, but the score {name!r} is better when "
            f"{'higher' if known else 'lower'}; leave the argument out."
        )
    return bool(known if told is None else told)
