"""The rules that choose a candidate, and what its scores allow to say of it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from wdjax.checks import check_one_of
from wdjax.measures import direction_of
from wdjax.selection.evidence import (
    Gains,
    confident_set,
    confident_set_over_folds,
    gains_by_example,
    gains_over_folds,
)
from wdjax.selection.grids import end_of_grid as end_of_grid
from wdjax.selection.grids import row_of_zero as row_of_zero
from wdjax.selection.plain_scores import LONE
from wdjax.selection.rungs import Rung, rows_left
from wdjax.selection.scores import HeldOut, Scores, standard_error_over_folds
from wdjax.tables import Estimate, Table, format_number


@dataclasses.dataclass(frozen=True)
class Rule:
    """A way of choosing a row of the grid.

    Args:
      words: what a report calls it.
      pick: `(means[row], errors[row], simpler[row]) -> row`. Lower means are better, infinite where
        a run diverged; errors are standard errors over folds; `simpler` is the axis whose larger
        values make simpler models, None where the grid has no such axis.
      because: why the row is not that of the best mean, with the fields `{simpler}`, `{error}` (of
        the best), `{best}` (lowest or highest) and `{top}` (the best mean).
      needs_simpler: whether `simpler` must be there.
      within_error: whether a report should draw the best mean plus its error.
    """

    words: str
    pick: Callable[[np.ndarray, np.ndarray, np.ndarray | None], Any]
    because: str = "Chosen by another rule than the {best} mean score, {top}."
    needs_simpler: bool = False
    within_error: bool = False


def _simplest_within_error(
    means: np.ndarray, errors: np.ndarray, simpler: np.ndarray | None
) -> int:
    best = int(np.argmin(means))
    assert simpler is not None
    size = np.where(means <= means[best] + errors[best], simpler.astype(np.float64), -np.inf)
    return int(np.lexsort((means, -size))[0])


RULES: dict[str, Rule] = {
    "min": Rule("lowest mean", lambda means, errors, simpler: int(np.argmin(means))),
    "one_standard_error": Rule(
        "one standard error",
        _simplest_within_error,
        "Largest {simpler} within one standard error ({error}) of the {best} mean score, {top}.",
        needs_simpler=True,
        within_error=True,
    ),
}
"""Ways of choosing, by name."""


class Gain(NamedTuple):
    """How much better than zero, paired: positive is better, with a simultaneous interval."""

    mean: float
    low: float
    high: float
    level: float
    num_rows: int
    """How many rows the interval holds for at once."""
    method: str
    """"examples": the error holds which examples were held out and which runs were made;
    "folds": of fold means alone; "none": there is no interval."""

    @property
    def verdict(self) -> str:
        """ "helps" if the interval lies above 0, "hurts" below, "equal" at 0, else "unclear"."""
        if self.low == self.high == 0:
            return "equal"
        return "helps" if self.low > 0 else "hurts" if self.high < 0 else "unclear"

    @property
    def interval(self) -> str:
        """`95 % interval 0.0012 to 0.0034`, or that there is none."""
        if not np.isfinite([self.low, self.high]).all():
            return f"no {self.level:.0%} interval".replace("%", " %")
        low, high = (format_number(float(f"{end:.2g}")) for end in (self.low, self.high))
        return f"{self.level * 100:g} % interval {low} to {high}"


LEVEL = 0.95
"""Of the intervals of the gains, together."""


class Choice(NamedTuple):
    """One candidate, and why."""

    index: int  # pyright: ignore[reportIncompatibleMethodOverride]
    hparams: dict[str, float]
    mean: float
    standard_error: float
    rule: str
    reason: str
    value: str = "loss"
    """The score it was chosen by."""
    higher_is_better: bool = False
    gain: Gain | None = None
    """Over the row that differs only in being at strength 0; None if there is none, it is that
    row, or one of the two diverged."""
    confident_set: tuple[int, ...] = ()
    """The rows that cannot be told from the best: it is one of them with 95 % confidence."""

    def table(self) -> Table:
        """One row: the numbers chosen and what they score."""
        row = (*self.hparams.values(), Estimate(self.mean, self.standard_error), self.rule)
        return Table((*self.hparams, "score", "rule"), (row,), note=self.reason)

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def to_dict(self) -> dict[str, Any]:
        """The fields by name; the gain with its verdict."""
        gain = None if self.gain is None else {**self.gain._asdict(), "verdict": self.gain.verdict}
        return {**self._asdict(), "gain": gain, "confident_set": list(self.confident_set)}


def choose(
    scores: Scores,
    rule: str = "min",
    *,
    value: str = "loss",
    simpler: str = "strength",
    higher_is_better: Any = None,
) -> Choice:
    """Chooses the row of the grid with the best score, or the simplest one close to it.

        m_row = mean over folds of the mean over seeds
        se_row = deviation of the fold means (ddof 1) / sqrt(folds)

    `"min"` takes the row of best m (the first, if several tie). `"one_standard_error"` takes, of
    the rows with m within se_best of m_best, the one with the largest `simpler` (the best m, if
    several tie). A row with a run that is not finite loses.

    Whether decay helped is another question than which row is best, and no rule answers it: the
    best of many rows looks better than zero by luck alone. `gain` is the chosen row's paired gain
    over the row of strength 0, with a 95 % interval that holds for all rows tried at once
    (`wdjax.selection.evidence` has the recipe). Decay helps if it lies above 0, hurts if below,
    and otherwise cannot be told from zero; `reason` says which, in words. The interval holds which
    examples were held out and which runs (fold x seed) were made, where `scores` have single
    examples; else the fold means alone, which tell less. Folds that hold an example out more than
    once are not taken for independent. `confident_set` are the rows that cannot be told from the
    best, by the same errors.

    Args:
      scores: from `cross_validate`.
      rule: "min" (the best mean, also of a score of which more is better) or
        "one_standard_error".
      value: which score, where `scores.values` is a dict.
      simpler: the axis of the grid whose larger values make simpler models.
      higher_is_better: the direction of the score, where `scores.higher_is_better` does not say
        it; a `loss` is better when lower.

    Raises:
      ValueError: for an unknown rule, value or axis, a score of unknown direction or a direction
        that contradicts the score's own, or if every row has diverged.

    Sources: Breiman et al. 1984, section 3.4.3, for the one-standard-error rule; Lei 2020,
    arXiv:1703.07904, for the set.

    Example:
      >>> losses = jnp.array([[0.9, 1.1], [0.5, 0.5], [0.6, 0.7]])[:, :, None]  # row, fold, seed
      >>> grid = wdjax.grid_product(strength=[0.0, 0.1, 1.0])
      >>> choice = wdjax.choose(wdjax.Scores(grid, {"loss": losses}))
      >>> choice.hparams["strength"], round(choice.mean, 3)
      (0.1, 0.5)
    """
    check_one_of("rule", rule, RULES)
    judged = Judged.of(scores, value, higher_is_better)
    if RULES[rule].needs_simpler:
        check_one_of("simpler", simpler, scores.grid)
    return judged.choose(rule, simpler, gains_over_zero([judged])[0], judged.confident())


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
        return cls(scores.grid, losses, held_out, each, value, up, scores.rungs)

    @property
    def means(self) -> np.ndarray:
        """`[row]`; infinite where a run diverged."""
        means = self.losses.mean(axis=(1, 2))
        return np.where(np.isfinite(means), means, np.inf)

    @property
    def left(self) -> list[int]:
        """The rows that left before the end and had not diverged."""
        return [*rows_left(self.rungs)]

    @property
    def overlap(self) -> float | None:
        """Held-out examples per training example, of folds that are not independent."""
        if self.held_out is None or not self.held_out.repeated:
            return None
        return float(((self.held_out.weights > 0).sum(axis=1) / self.held_out.num_train).mean())

    def confident(self) -> tuple[int, ...]:
        """The rows that cannot be told from the best."""
        return confident_rows([self])[0]

    def choose(
        self, rule: str, simpler: str, gains: dict[int, Gain], confident: tuple[int, ...]
    ) -> Choice:
        """The rule's choice, with what is known of its gain.

        Raises:
          ValueError: if every row has diverged.
        """
        means, errors = self.means, standard_error_over_folds(self.losses)
        if not np.isfinite(means).any():
            raise ValueError(
                "every run of the grid diverged (no finite score): lower the learning rate or the "
                "largest strengths, or check the data."
            )
        best = int(np.argmin(means))
        axis = np.asarray(self.grid[simpler]) if simpler in [*self.grid] else None
        index = int(RULES[rule].pick(means, errors, axis))
        sign = -1.0 if self.higher_is_better else 1.0
        choice = Choice(
            index=index,
            hparams={name: float(np.asarray(axis)[index]) for name, axis in self.grid.items()},
            mean=float(sign * means[index]),
            standard_error=float(errors[index]),
            rule=rule,
            reason="",
            value=self.value,
            higher_is_better=self.higher_is_better,
            gain=gains.get(index),
            confident_set=confident,
        )
        return choice._replace(reason=" ".join(self._reasons(choice, best, simpler, gains)))

    def _reasons(self, choice: Choice, best: int, simpler: str, gains: dict[int, Gain]):
        errors = standard_error_over_folds(self.losses)
        kind = "Highest" if self.higher_is_better else "Lowest"
        top = format_number(-self.means[best] if self.higher_is_better else self.means[best])
        if choice.index == best:
            yield f"{kind} mean score, {top}."
        else:
            yield RULES[choice.rule].because.format(
                simpler=simpler, error=format_number(errors[best]), best=kind.lower(), top=top
            )
        for name, end in beyond(self.grid, best, gains).items():
            yield (
                f"The best lies at an end of the grid: {end} {name} tried; there may be a better "
                "one beyond, so widen the grid."
            )
        by_example = self.each is not None
        yield from _words_on_zero(self.grid, choice, gains, by_example=by_example)
        if self.left:
            ends = ", ".join(str(rung.num_epochs) for rung in self.rungs)
            yield f"{len(self.left)} of {len(self.means)} rows left at rungs of {ends} epochs."
        diverged = int((~np.isfinite(self.means)).sum()) - len(self.left)
        if diverged:
            yield f"{diverged} of {len(self.means)} rows diverged and lose."


def gains_over_zero(searches: Sequence[Judged]) -> list[dict[int, Gain]]:
    """Of each search, `{row: its gain}` over its row of strength 0; simultaneous over all.

    Rows without such a row, and the zero rows themselves, are left out; so are rows of which one
    of the two diverged. Rows that left before the end have no gain, but the intervals hold for
    them too: for m rows of n, those of level 1 - 0.05 m / n, since it was the scores that said
    which m.
    """
    pairs = [
        (which, row, zero)
        for which, search in enumerate(searches)
        for row in range(len(search.losses))
        if (zero := row_of_zero(search.grid, row)) not in (None, row)
        and np.isfinite(search.losses[[row, zero]]).all()
    ]
    found: list[dict[int, Gain]] = [{} for _ in searches]
    if not pairs:
        return found
    tried = len(pairs) + sum(
        row_of_zero(search.grid, row) not in (None, row)
        for search in searches
        for row in search.left
    )
    level = LEVEL if tried == len(pairs) else 1 - (1 - LEVEL) * len(pairs) / tried
    gains = _gains(searches, [(searches[w], zero, row) for w, row, zero in pairs], level)
    for (which, row, _), mean, low, high in zip(pairs, *gains[:3], strict=True):
        found[which][row] = Gain(float(mean), float(low), float(high), LEVEL, tried, gains.method)
    return found


def _gains(searches: Sequence[Judged], pairs: list[tuple[Judged, Any, int]], level: float) -> Gains:
    """Of each `(search, reference row, row)`: by single examples if all searches have them."""
    if all(search.each is not None for search in searches):
        held_out = _shared(searches)
        differences = np.stack([s.each[zero] - s.each[row] for s, zero, row in pairs])  # pyright: ignore[reportOptionalSubscript]
        return gains_by_example(differences, held_out.weights, held_out.groups, level=level)
    differences = np.stack([s.losses[zero] - s.losses[row] for s, zero, row in pairs])
    return gains_over_folds(differences, level=level, overlap=searches[0].overlap)


def confident_rows(searches: Sequence[Judged]) -> list[tuple[int, ...]]:
    """Of each search, the rows that cannot be told from the best of all searches' rows.

    With those that left at a rung and could not be told from the best there.
    """
    if not any(np.isfinite(search.means).any() for search in searches):
        return [() for _ in searches]
    if all(search.each is not None for search in searches):
        held_out = _shared(searches)
        each = np.concatenate([search.each for search in searches])  # pyright: ignore[reportArgumentType, reportCallIssue]
        inside = confident_set(each, held_out.weights, held_out.groups)
    else:
        losses = np.concatenate([search.losses for search in searches])
        inside = confident_set_over_folds(losses, overlap=searches[0].overlap)
    ends = np.cumsum([len(search.losses) for search in searches])[:-1]
    told = [np.flatnonzero(part).tolist() for part in np.split(inside, ends)]
    unclear = [[row for rung in search.rungs for row in rung.unclear] for search in searches]
    return [tuple(sorted({*rows, *more})) for rows, more in zip(told, unclear, strict=True)]


def _shared(searches: Sequence[Judged]) -> HeldOut:
    held_out = searches[0].held_out
    assert held_out is not None
    return held_out


def beyond(grid: Any, best: int, gains: Mapping[int, Gain]) -> dict[str, str]:
    """`{axis: end}` of the axes at whose end the best row lies, so that a better may lie beyond.

    Beyond the smallest strength there is zero: where the best row is known not to be better than
    that, nothing better lies between.
    """
    found = {}
    for name in grid:
        end = end_of_grid(grid, best, name)
        towards_zero = name == "strength" and end == "smallest" and best in gains
        if end is not None and not (towards_zero and gains[best].verdict != "helps"):
            found[name] = end
    return found


def _words_on_zero(grid: Any, choice: Choice, gains: Mapping[int, Gain], *, by_example: bool):
    """Whether decay helped, in sentences. Known single examples, one a fold, are the folds."""
    zero = row_of_zero(grid, choice.index)
    if zero is None:
        return
    if zero == choice.index:
        rivals = [row for row in gains if row_of_zero(grid, row) == zero]
        unclear = [row for row in rivals if gains[row].verdict != "hurts"]
        if rivals and not unclear:
            yield "It is zero: decay hurts at every strength tried."
        elif unclear:
            yield (
                "It is zero, which cannot be told from "
                f"{'any' if len(unclear) == len(rivals) else len(unclear)} of the {len(rivals)} "
                "strengths tried beside it."
            )
        return
    gain = choice.gain
    if gain is None:
        yield "There is no gain over zero to tell: zero diverged."
        return
    words = {
        "helps": "Decay helps",
        "hurts": "Decay hurts",
        "equal": "It scores what zero scores, example by example",
        "unclear": "It cannot be told from zero",
    }
    at_once = f", for {gain.num_rows} rows at once" if gain.num_rows > 1 else ""
    yield (
        f"{words[gain.verdict]}: the paired gain over zero is {format_number(gain.mean)}, "
        f"{gain.interval}{at_once}."
    )
    if gain.method == "none":
        yield "One fold has no error: take two or more."
    elif gain.method == "folds" and not by_example:
        yield "The interval is of fold means alone, which tell less than single examples would."


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
