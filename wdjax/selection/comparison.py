"""Comparing choices: each at the best of its own numbers, paired over the same folds."""

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from wdjax.checks import check_one_of
from wdjax.moved import moved_keywords
from wdjax.selection.choice import RULES, Choice, choose_row
from wdjax.selection.cross_validation import FitAndScore, Progress, cross_validate
from wdjax.selection.folds import Folds
from wdjax.selection.grids import GridLike
from wdjax.selection.judged import Judged, confident_rows
from wdjax.selection.over_zero import (
    LEVEL,
    Gain,
    gains_between,
    gains_over_best_zero,
    gains_over_zero,
)
from wdjax.selection.scores import Scores, standard_error_over_folds
from wdjax.tables import Estimate, Table, format_number
from wdjax.types import Batch


class Comparison(NamedTuple):
    """Choices side by side, each at its best numbers; prints as a table, the best one marked."""

    value: str
    """The score compared."""
    baseline: str
    """The choice that the differences are taken from."""
    chosen: dict[str, Choice]
    """The best numbers of each choice, in the order given."""
    scores: dict[str, Scores]
    """All that was run, choice by choice."""
    over_best: Mapping[str, Gain] = {}
    """What the best row of each other choice gains over the best choice's: below 0 where it is
    worse, with intervals that hold for all rows tried at once. Which are worse is told by
    `told_apart`, whose one-sided test knows that the best was picked; these show by how much."""

    @property
    def higher_is_better(self) -> bool:
        """The direction of the score."""
        return self.chosen[self.baseline].higher_is_better

    @property
    def best(self) -> str:
        """The choice of the best mean score (the first, if several tie)."""
        sign = -1 if self.higher_is_better else 1
        return min(self.chosen, key=lambda name: sign * self.chosen[name].mean)

    @property
    def told_apart(self) -> list[str]:
        """The choices known to be worse than the best: with 95 % confidence the best of all rows
        tried, of all choices, is none of theirs."""
        return [name for name, choice in self.chosen.items() if not choice.confident_set]

    def difference(self, name: str, other: str | None = None) -> Estimate:
        """`name` minus `other` (the baseline), paired over folds: mean and standard error.

            d_fold = mean over seeds of (score of name - score of other)
            mean of d_fold +- deviation (ddof 1) / sqrt(folds)

        Raises:
          ValueError: for an unknown choice.
        """
        other = self.baseline if other is None else other
        for choice in (name, other):
            check_one_of("choice", choice, self.chosen)
        rows = [_values(self.scores[c], self.value)[self.chosen[c].index] for c in (name, other)]
        difference = (rows[0] - rows[1])[None]
        error = standard_error_over_folds(difference)[0]
        return Estimate(float(difference.mean()), float(error))

    def in_words(self, what: str = "choice") -> str:
        """The verdict in one sentence: the best `what`, from which it cannot be told, which are
        worse."""
        best, choice = self.best, self.chosen[self.best]
        tied = [name for name in self.chosen if name != best and name not in self.told_apart]
        worse = [name for name in self.chosen if name in self.told_apart]
        numbers = ", ".join(f"{name} {value:g}" for name, value in choice.hparams.items())
        score = f"validation {self.value} {Estimate(choice.mean, choice.standard_error)}"
        words = f"Best {what}: {best} ({numbers}), {score}"
        words += f"; it cannot be told from {', '.join(tied)}" if tied else ""
        words += f"; worse: {', '.join(worse)}" if worse else ""
        num_rows = sum(len(_values(scores, self.value)) for scores in self.scores.values())
        return f"{words} (with 95 % confidence, over all {num_rows} rows tried)."

    def table(self) -> Table:
        """One row a choice: its best numbers, its scores there, the difference to the baseline."""
        numbers = list(dict.fromkeys(n for c in self.chosen.values() for n in c.hparams))
        value = self.value if self.value in _names(self.scores[self.baseline]) else "score"
        every = (name for scores in self.scores.values() for name in _names(scores))
        others = [name for name in dict.fromkeys(every) if name != value]
        rows = []
        for name, choice in self.chosen.items():
            scores = self.scores[name]
            cell = lambda measure, scores=scores, choice=choice: (
                _at(scores, measure, choice.index) if measure in _names(scores) else None
            )
            score = Estimate(choice.mean, choice.standard_error)
            difference = None if name == self.baseline else self.difference(name)
            hparams = (choice.hparams.get(number) for number in numbers)
            rows.append((name, *hparams, score, difference, *map(cell, others)))
        return Table(
            ("choice", *numbers, value, "difference", *others),
            tuple(rows),
            marked=list(self.chosen).index(self.best),
            note=self._note(),
        )

    def _note(self) -> str:
        first = next(iter(self.scores.values()))
        _, num_folds, num_seeds = _values(first, self.value).shape
        candidates = ", ".join(
            f"{name} {_values(scores, self.value).shape[0]}" for name, scores in self.scores.items()
        )
        notes = [
            f"mean +- standard error over {num_folds} folds, {num_seeds} seeds each",
            f"difference: to {self.baseline}, paired over folds",
            f"candidates tried: {candidates}; the best of more of them looks better by luck alone",
        ]
        for name in self.chosen:
            if name == self.best:
                continue
            gap = self.difference(name, self.best)
            words = "is worse than" if name in self.told_apart else "cannot be told from"
            notes.append(f"{name} {words} {self.best} ({gap}), by the 95 % set of all rows tried.")
        for name, choice in self.chosen.items():
            if "at an end of the grid" in choice.reason:
                numbers = ", ".join(f"{k} {format_number(v)}" for k, v in choice.hparams.items())
                notes.append(f"{name} lies at an end of its grid ({numbers}): widen it.")
        return "\n".join(notes)

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def to_dict(self) -> dict[str, Any]:
        """`{"value", "baseline", "best", "choices": {name: numbers, score, difference, ...}}`."""
        choices = {}
        for name, choice in self.chosen.items():
            choices[name] = {
                **choice.to_dict(),
                "difference": self.difference(name)._asdict(),
                "scores": self.scores[name].to_dict(),
            }
        return {
            "value": self.value,
            "baseline": self.baseline,
            "best": self.best,
            "higher_is_better": self.higher_is_better,
            "told_apart": self.told_apart,
            "over_best": {name: gain._asdict() for name, gain in self.over_best.items()},
            "notes": self._note().splitlines(),
            "choices": choices,
        }


@moved_keywords(kept="cache")
def compare(
    choices: Mapping[str, FitAndScore],
    grid: GridLike | Mapping[str, GridLike],
    data: Batch,
    folds: Folds,
    *,
    key: Array,
    value: str = "loss",
    baseline: str | None = None,
    rule: str = "min",
    num_seeds: int = 1,
    trials_at_once: int | None = None,
    mesh: Mesh | None = None,
    progress: Callable[[str, Progress], None] | None = None,
    cache: str | os.PathLike[str] | None = None,
    groups: Any = None,
    higher_is_better: bool | None = None,
    simpler: str = "strength",
) -> Comparison:
    """Compares choices (optimisers, augmentations, structures), each at the best of its numbers.

        best_c = choose(cross_validate(c, grid_c), rule)
        difference_c = mean over folds of (score_c(best_c) - score_b(best_b)), b the baseline

    Which choices are worse than the best is told by all rows of all choices together: the set of
    rows that cannot be told from the best of them (see `choose`) holds none of theirs. The
    interval of a choice's gain over its zero holds for all these rows at once too.

    A choice makes a program, a number an axis: every choice is one cross-validation over its own
    grid. All see the same folds and the keys of (fold, seed), so two choices of one model start
    from the same weights and their differences are paired. The scores are those of the best
    numbers on the folds that chose them: they flatter, and a wider grid flatters more. For a
    score that does not, choose within each fold (`nested_cross_validate`).

    Args:
      choices: `{name: fit_and_score}`, such as `make_fit_and_score` builds; at least two.
      grid: one grid for all, or `{name: grid}`, one a choice (learning rates fit optimisers).
      data: all examples.
      folds: from `kfold` or `folds_from_splits`.
      key: of the runs, see `cross_validate`.
      value: which score decides, where they are a dict.
      baseline: the choice that differences are taken from; by default the first.
      rule: how each choice's numbers are chosen, see `choose`.
      progress: called with the choice's name and a `Progress`.
      num_seeds, trials_at_once, mesh, cache, groups: see `cross_validate`.
      higher_is_better, simpler: see `choose`.

    Raises:
      ValueError: for fewer than two choices, grids that are not those of the choices, an unknown
        baseline, rule or value, a score of unknown direction, or a choice of which every run
        diverged.
    """
    if len(choices) < 2:
        raise ValueError(
            f"`choices` must hold at least two, got {list(choices)}; for one, cross_validate."
        )
    grids = _grids(choices, grid)
    baseline = next(iter(choices)) if baseline is None else baseline
    check_one_of("baseline", baseline, choices)
    check_one_of("rule", rule, RULES)
    how: dict[str, Any] = dict(key=key, num_seeds=num_seeds, trials_at_once=trials_at_once)
    how |= dict(mesh=mesh, cache=cache, groups=groups)
    scores = {
        name: cross_validate(one, grids[name], data, folds, progress=_named(progress, name), **how)
        for name, one in choices.items()
    }
    told: dict[str, Any] = dict(
        value=value, baseline=baseline, simpler=simpler, higher_is_better=higher_is_better
    )
    return compare_scores(scores, rule, **told)


def compare_scores(
    scores: Mapping[str, Scores],
    rule: str = "min",
    *,
    value: str = "loss",
    baseline: str | None = None,
    simpler: str = "strength",
    higher_is_better: bool | None = None,
) -> Comparison:
    """The comparison of choices whose cross-validations have been run, on the same folds.

    Raises:
      ValueError: as `compare`; if the folds and seeds of two choices are not as many, or their
        held-out examples are not the same.
    """
    baseline = next(iter(scores)) if baseline is None else baseline
    judged = {name: Judged.of(s, value, higher_is_better) for name, s in scores.items()}
    searches = list(judged.values())
    _check_paired(judged)
    gains, confident = gains_over_zero(searches), confident_rows(searches)
    best = [gains_over_best_zero(search, len(searches)) for search in searches]
    chosen = {}
    for name, own, over, inside in zip(judged, gains, best, confident, strict=True):
        try:
            chosen[name] = choose_row(judged[name], rule, simpler, own, over, inside)
        except ValueError as error:
            raise ValueError(f"choice {name!r}: {error}") from None
    found = Comparison(value, baseline, chosen, dict(scores))
    return found._replace(over_best=_gains_over_best(judged, found))


def _gains_over_best(judged: Mapping[str, Judged], found: Comparison) -> dict[str, Gain]:
    """Of each other choice's row over the best one; simultaneous over the rows of all choices."""
    searches = list(judged.values())
    each = [search.each for search in searches]
    joined = searches[0]._replace(
        losses=np.concatenate([search.losses for search in searches]),
        each=None if any(one is None for one in each) else np.concatenate(each),  # pyright: ignore[reportArgumentType, reportCallIssue]
    )
    begins = np.cumsum([0, *(len(search.losses) for search in searches)])[:-1]
    row_of = {
        name: int(begin) + found.chosen[name].index
        for name, begin in zip(judged, begins, strict=True)
    }
    best = row_of[found.best]
    finite = np.isfinite(joined.means)
    others = [row for row in np.flatnonzero(finite).tolist() if row != best]
    if not others or not finite[best]:
        return {}
    gains = gains_between([(joined, best, row) for row in others], LEVEL)
    ends = {
        row: (float(m), float(a), float(b)) for row, m, a, b in zip(others, *gains[:3], strict=True)
    }
    return {
        name: Gain(*ends[row], LEVEL, len(others), gains.method)
        for name, row in row_of.items()
        if row in ends
    }


def _check_paired(judged: Mapping[str, Judged]) -> None:
    """Checks that differences between choices can be paired over folds, seeds and examples."""
    names = list(judged)
    first = judged[names[0]]
    for name in names[1:]:
        other = judged[name]
        sizes = {n: judged[n].losses.shape[1:] for n in (names[0], name)}
        if len(set(sizes.values())) > 1:
            raise ValueError(
                "the scores compared must be of the same folds and seeds; got [fold, seed] of "
                f"{names[0]} {sizes[names[0]]} and of {name} {sizes[name]}."
            )
        if first.each is None or other.each is None:
            continue
        one, two = first.held_out, other.held_out
        assert one is not None and two is not None
        if not np.array_equal(
            np.where(one.weights > 0, one.examples, -1), np.where(two.weights > 0, two.examples, -1)
        ):
            raise ValueError(
                f"the scores compared must be of the same held-out examples; those of {names[0]} "
                f"and {name} are not. Give both the same folds."
            )


def _grids(choices: Mapping[str, Any], grid: Any) -> dict[str, GridLike]:
    if not any(isinstance(part, Mapping) for part in grid.values()):
        return {name: grid for name in choices}
    if set(grid) != set(choices):
        raise ValueError(
            f"`grid` must be one grid for all, or one for each of {', '.join(choices)}; got grids "
            f"for {', '.join(map(str, grid))}."
        )
    return dict(grid)


def _named(
    progress: Callable[[str, Progress], None] | None, name: str
) -> Callable[[Progress], None] | None:
    return None if progress is None else lambda event: progress(name, event)


def _names(scores: Scores) -> list[str]:
    return list(scores.values) if isinstance(scores.values, dict) else ["score"]


def _values(scores: Scores, name: str) -> np.ndarray:
    """`[row, fold, seed]` of one score."""
    values = scores.values[name] if isinstance(scores.values, dict) else scores.values
    return np.asarray(jax.tree.leaves(values)[0], np.float64)


def _at(scores: Scores, name: str, row: int) -> Estimate:
    values = _values(scores, name)[[row]]
    return Estimate(float(values.mean()), float(standard_error_over_folds(values)[0]))
