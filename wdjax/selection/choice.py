"""The rules that choose a candidate, and what its scores allow to say of it."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from wdjax.checks import check_one_of
from wdjax.selection.grids import end_of_grid as end_of_grid
from wdjax.selection.grids import row_of_zero as row_of_zero
from wdjax.selection.judged import Judged as Judged
from wdjax.selection.judged import confident_rows as confident_rows
from wdjax.selection.over_zero import Gain as Gain
from wdjax.selection.over_zero import OverBestZero, gains_over_best_zero
from wdjax.selection.over_zero import gains_over_zero as gains_over_zero
from wdjax.selection.scores import Scores, standard_error_over_folds
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
    best_zero: int | None = None
    """The best of the rows of strength 0, whatever their other numbers."""
    gain_over_best_zero: Gain | None = None
    """Over that row: what decay is worth to who would tune the other numbers without it. The same
    as `gain` where the grid has one row of strength 0."""

    @property
    def verdict_on_decay(self) -> Gain | None:
        """The gain that says whether decay helps: over the best row without it, if known."""
        return self.gain if self.gain_over_best_zero is None else self.gain_over_best_zero

    def table(self) -> Table:
        """One row: the numbers chosen and what they score."""
        row = (*self.hparams.values(), Estimate(self.mean, self.standard_error), self.rule)
        return Table((*self.hparams, "score", "rule"), (row,), note=self.reason)

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def to_dict(self) -> dict[str, Any]:
        """The fields by name; the gains with their verdicts."""
        gains = {
            name: None if gain is None else {**gain._asdict(), "verdict": gain.verdict}
            for name, gain in (
                ("gain", self.gain),
                ("gain_over_best_zero", self.gain_over_best_zero),
            )
        }
        return {**self._asdict(), **gains, "confident_set": list(self.confident_set)}


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
    over the row that differs only in strength 0, and `gain_over_best_zero` that over the best row
    of strength 0 at any other numbers, each with a 95 % interval that holds for all rows tried at
    once (`wdjax.selection.evidence` and `gains_over_best_zero` have the recipes). A learning rate
    may be the best one only because of decay; so decay helps if the second interval lies above 0,
    hurts if below, and otherwise cannot be told from none; `reason` says which. Intervals hold
    which examples were held out and which runs (fold x seed) were made, where `scores` have single
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
        that contradicts the score's own, or if every row has diverged or a fold scores none.

    Sources: Breiman et al. 1984, section 3.4.3, for the one-standard-error rule; Lei 2020,
    arXiv:1703.07904, for the set.

    Example:
      >>> losses = jnp.array([[0.9, 1.1], [0.5, 0.5], [0.6, 0.7]])[:, :, None]  # row, fold, seed
      >>> grid = wdjax.grid_product(strength=[0.0, 0.1, 1.0])
      >>> choice = wdjax.choose(wdjax.Scores(grid, {"loss": losses}))
      >>> choice.hparams["strength"], round(choice.mean, 3)
      (0.1, 0.5)
    """
    told: dict[str, Any] = dict(value=value, simpler=simpler, higher_is_better=higher_is_better)
    return choose_by_each(scores, [rule], **told)[rule]


def choose_by_each(
    scores: Scores,
    rules: Iterable[str],
    *,
    value: str = "loss",
    simpler: str = "strength",
    higher_is_better: Any = None,
) -> dict[str, Choice]:
    """`choose` by each of some rules: what the evidence says of the rows is found once for all.

    Raises:
      ValueError: as `choose`.
    """
    rules = list(rules)
    for rule in rules:
        check_one_of("rule", rule, RULES)
    judged = Judged.of(scores, value, higher_is_better)
    if any(RULES[rule].needs_simpler for rule in rules):
        check_one_of("simpler", simpler, scores.grid)
    gains, over_best = gains_over_zero([judged])[0], gains_over_best_zero(judged)
    confident = confident_rows([judged])[0]
    return {rule: choose_row(judged, rule, simpler, gains, over_best, confident) for rule in rules}


def choose_row(
    judged: Judged,
    rule: str,
    simpler: str,
    gains: dict[int, Gain],
    over_best: OverBestZero,
    confident: tuple[int, ...],
) -> Choice:
    """The rule's choice, with what is known of its gains.

    Raises:
      ValueError: if every row has diverged, or a held-out part gives no row a score.
    """
    means, errors = judged.means, standard_error_over_folds(judged.losses)
    if not np.isfinite(means).any():
        scored = np.isfinite(judged.losses)
        never = np.flatnonzero(~scored.any(axis=(0, 2)))
        if scored.any() and len(never):
            raise ValueError(
                f"no run of the grid has a finite score on fold {never[0]}, and others have one: "
                "its held-out part lacks what the score needs, as an area under the curve does "
                "where all are of one class. Make other folds (stratify=), or choose by the loss."
            )
        raise ValueError(
            "every run of the grid diverged (no finite score): lower the learning rate or the "
            "largest strengths, or check the data."
        )
    axis = np.asarray(judged.grid[simpler]) if simpler in [*judged.grid] else None
    index = int(RULES[rule].pick(means, errors, axis))
    sign = -1.0 if judged.higher_is_better else 1.0
    choice = Choice(
        index=index,
        hparams={name: float(np.asarray(v)[index]) for name, v in judged.grid.items()},
        mean=float(sign * means[index]),
        standard_error=float(errors[index]),
        rule=rule,
        reason="",
        value=judged.value,
        higher_is_better=judged.higher_is_better,
        gain=gains.get(index),
        confident_set=confident,
        best_zero=over_best.row,
        gain_over_best_zero=over_best.gains.get(index),
    )
    reasons = _reasons(judged, choice, simpler, gains, over_best)
    return choice._replace(reason=" ".join(reasons))


def _reasons(
    judged: Judged,
    choice: Choice,
    simpler: str,
    gains: dict[int, Gain],
    over_best: OverBestZero,
) -> Iterator[str]:
    errors, best = standard_error_over_folds(judged.losses), int(np.argmin(judged.means))
    kind = "Highest" if judged.higher_is_better else "Lowest"
    top = format_number(-judged.means[best] if judged.higher_is_better else judged.means[best])
    if choice.index == best:
        yield f"{kind} mean score, {top}."
    else:
        yield RULES[choice.rule].because.format(
            simpler=simpler, error=format_number(errors[best]), best=kind.lower(), top=top
        )
    for name, end in beyond(judged, best, gains).items():
        yield (
            f"The best lies at an end of the grid: {end} {name} tried; there may be a better "
            "one beyond, so widen the grid."
        )
    by_example = judged.each is not None
    yield from _words_on_zero(judged.grid, choice, over_best, by_example=by_example)
    if judged.left:
        ends = ", ".join(str(rung.num_epochs) for rung in judged.rungs)
        yield f"{len(judged.left)} of {len(judged.means)} rows left at rungs of {ends} epochs."
    diverged = int((~np.isfinite(judged.means)).sum()) - len(judged.left)
    if diverged:
        yield f"{diverged} of {len(judged.means)} rows diverged and lose."


def beyond(judged: Judged, best: int, gains: Mapping[int, Gain]) -> dict[str, str]:
    """`{axis: end}` of the axes at whose end the best row lies, so that a better may lie beyond.

    Beyond the smallest strength there is zero: where the best row is known not to be better than
    that, nothing better lies between. Where slopes are known, they say whether it still falls.
    """
    found = {}
    for name in judged.grid:
        end = end_of_grid(judged.grid, best, name)
        towards_zero = name == "strength" and end == "smallest" and best in gains
        if end is None or (towards_zero and gains[best].verdict != "helps"):
            continue
        if judged.falls(best, name, end) is not False:
            found[name] = end
    return found


def _words_on_zero(
    grid: Any, choice: Choice, over_best: OverBestZero, *, by_example: bool
) -> Iterator[str]:
    """Whether decay helped, in sentences. Known single examples, one a fold, are the folds."""
    beside = row_of_zero(grid, choice.index)
    if beside is None:
        return
    if beside == choice.index:
        unclear = sum(gain.verdict != "hurts" for gain in over_best.gains.values())
        if over_best.gains and not unclear:
            yield "It is zero: decay hurts at every strength tried."
        elif unclear:
            yield (
                "It is zero, which cannot be told from "
                f"{'any' if unclear == len(over_best.gains) else unclear} of the "
                f"{len(over_best.gains)} rows with decay."
            )
        return
    gain = choice.gain_over_best_zero
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
    size = f"{format_number(gain.mean)}, {gain.interval}{at_once}."
    if over_best.row == beside:
        yield f"{words[gain.verdict]}: the paired gain over zero is {size}"
    else:
        numbers = other_numbers(grid, over_best.row)
        yield f"{words[gain.verdict]}: the paired gain over the best zero ({numbers}) is {size}"
        if choice.gain is not None:
            yield (
                "Over zero at the same other numbers it is "
                f"{format_number(choice.gain.mean)}, {choice.gain.interval}."
            )
    if gain.method == "none":
        yield "One fold has no error: take two or more."
    elif gain.method == "folds" and not by_example:
        yield "The interval is of fold means alone, which tell less than single examples would."


def other_numbers(grid: Any, index: int | None) -> str:
    """A row's numbers but its strength, those that vary: `learning rate 0.003`."""
    axes = {name: np.asarray(axis) for name, axis in grid.items() if name != "strength"}
    return ", ".join(
        f"{name.replace('_', ' ')} {format_number(float(axis[index]))}"
        for name, axis in axes.items()
        if index is not None and len(np.unique(axis)) > 1
    )
