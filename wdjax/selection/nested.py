"""Nested cross-validation: what choosing a strength is worth, on rows that took no part in it.

The inner folds of an outer fold are folds of the same data, so both levels are one list of folds,
and `cross_validate` runs them all: one search, one cache, one progress, and the outer folds keep
the keys and the scores that they would have alone.

Example:
  >>> def ridge(h, train, valid, key):
  ...     gram = train.inputs.T @ train.inputs + h["strength"] * jnp.eye(12)
  ...     w = jnp.linalg.solve(gram, train.inputs.T @ train.targets)
  ...     return {"loss": wdjax.squared_error(valid.inputs @ w, valid.targets)}
  >>> x, noise = np.random.default_rng(0).normal(size=(2, 30, 12)).astype("float32")
  >>> data = wdjax.Batch(x, x[:, 0] + 2 * noise[:, 0], np.ones(30, "float32"))
  >>> grid = wdjax.grid_product(strength=[0.0, 10.0, 100.0])
  >>> folds = wdjax.kfold(jax.random.key(0), 30, num_folds=3)
  >>> nested = wdjax.nested_cross_validate(
  ...     ridge, grid, data, folds, key=jax.random.key(0), inner=4
  ... )
  >>> [choice.hparams["strength"] for choice in nested.choices], nested.values.shape
  ([100.0, 10.0, 100.0], (3, 1))
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

from wdjax.checks import check_one_of, check_positive_int, is_known
from wdjax.selection.choice import RULES, Choice, choose
from wdjax.selection.cross_validation import cross_validate, cross_validate_pure
from wdjax.selection.folds import Folds, closed_up, folds_from_splits, kfold, sizes
from wdjax.selection.grids import GridLike
from wdjax.selection.judged import Judged
from wdjax.selection.over_zero import LEVEL, Gain, gains_between
from wdjax.selection.scores import Scores, standard_error_over_folds
from wdjax.selection.trials import FitAndScore
from wdjax.tables import Estimate, Table, format_number
from wdjax.types import Batch

DEALING = 2**32 - 1
"""What is folded into the key that deals inner folds: no fold of a search has this number."""


class Nested(NamedTuple):
    """The score of a way of choosing, on rows that it never saw, and what choosing is worth."""

    scores: Scores
    """Of every row on the outer folds: what `cross_validate` finds on them alone."""
    choice: Choice
    """From `scores`: the numbers to train all rows at. Its own mean was chosen by, and flatters."""
    choices: tuple[Choice, ...]
    """Of each outer fold, chosen on its inner folds: all that the outer part judges."""
    values: np.ndarray
    """`[fold, seed]`: the score of each outer fold's choice on its held-out part."""
    mean: float
    """Of `values`: what to expect of choosing so, and then training."""
    standard_error: float
    """Over the outer folds."""
    gain: Gain | None
    """Of the choices over no decay whose other numbers were chosen on the same inner folds: one
    comparison, made where nothing was chosen. None without a row of strength 0, or where one of
    the two diverged."""

    @property
    def optimism(self) -> float:
        """How much better the score that was chosen by looks than the nested one."""
        difference = self.mean - self.choice.mean
        return -difference if self.choice.higher_is_better else difference

    def table(self) -> Table:
        """A row an outer fold: what was chosen on its inner folds, and what it scored outside."""
        numbers = list(self.choice.hparams)
        rows = [
            (fold, *(choice.hparams[name] for name in numbers), choice.mean, own.mean())
            for fold, (choice, own) in enumerate(zip(self.choices, self.values, strict=True))
        ]
        value = self.choice.value
        return Table(
            ("fold", *numbers, f"{value} inside", f"{value} outside"),
            tuple(rows),
            note=" ".join(self._words()),
        )

    def _words(self) -> Any:
        nested = Estimate(self.mean, self.standard_error)
        flattered = Estimate(self.choice.mean, self.choice.standard_error)
        yield f"Nested {self.choice.value} {nested}; of the numbers chosen at last, {flattered}."
        if self.gain is not None:
            words = {
                "helps": "Choosing a decay helps",
                "hurts": "Choosing a decay hurts",
                "equal": "Choosing a decay scores what no decay scores, example by example",
                "unclear": "Choosing a decay cannot be told from none",
            }
            size = f"{format_number(self.gain.mean)}, {self.gain.interval}"
            yield f"{words[self.gain.verdict]}: the paired gain is {size}."

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def nested_cross_validate(
    fit_and_score: FitAndScore,
    grid: GridLike,
    data: Batch,
    folds: Folds,
    *,
    key: Array,
    inner: Any = 5,
    stratify: ArrayLike | None = None,
    rule: str = "min",
    value: str = "loss",
    simpler: str = "strength",
    higher_is_better: Any = None,
    num_seeds: int = 1,
    groups: Any = None,
    **how: Any,
) -> Nested:
    """Chooses within each fold, on folds of its training part, and judges on its held-out part.

        row_k    = the rule's choice by the scores on the inner folds of outer fold k
        values_k = the score of row_k, trained on all of fold k's training part, held-out part k
        mean     = mean over k of values_k

    The score that a row was chosen by flatters it; this one took no part in choosing. `folds`
    and their inner folds are one list of folds, so this costs rows x folds x (inner + 1) x seeds
    trainings, in one call of `cross_validate`: a program for each size of a training part,
    compiled once for all calls. Also under `jit`: `nested_cross_validate_pure`.

    Args:
      fit_and_score, grid, data, key, num_seeds, groups: see `cross_validate`.
      folds: the outer ones, from `kfold` or `folds_from_splits`.
      inner: how many inner folds, >= 2, dealt by `kfold`; or a scikit-learn splitter, whose
        `split(rows, classes, groups)` is asked once for each outer training part.
      stratify: `[example]` integer classes, whose shares the inner folds keep.
      rule, value, simpler, higher_is_better: see `choose`.
      how: `trials_at_once`, `mesh`, `progress`, `cache`: see `cross_validate`. What `progress` is
        shown has the outer folds first, then the inner ones of the first, of the second, ...

    Raises:
      ValueError: as `cross_validate` and `choose` (which names the outer fold whose inner ones
        let nothing be chosen); for fewer than 2 inner folds, or more than a training part or the
        smallest class in it has rows; for groups with a number of inner folds instead of a
        splitter that keeps them whole.

    Sources: Stone 1974; Cawley & Talbot 2010, JMLR 11. That the folds' means are not independent,
    and `standard_error` therefore too small: Bates, Hastie & Tibshirani 2021, arXiv:2104.00673.
    """
    check_one_of("rule", rule, RULES)
    both, num_inner = _both_levels(key, folds, inner, stratify, groups)
    scores = cross_validate(
        fit_and_score, grid, data, both, key=key, num_seeds=num_seeds, groups=groups, **how
    )
    chosen_by = functools.partial(
        choose, rule=rule, value=value, simpler=simpler, higher_is_better=higher_is_better
    )
    places = np.cumsum([len(num_inner), *num_inner])
    choices = [
        _choose_inside(chosen_by, _of_folds(scores, np.arange(low, high)), fold)
        for fold, (low, high) in enumerate(zip(places[:-1], places[1:], strict=True))
    ]
    outer = _of_folds(scores, np.arange(len(num_inner)))
    judged = Judged.of(outer, value, higher_is_better)
    return _judged_outside(outer, judged, chosen_by(outer), tuple(choices))


def nested_cross_validate_pure(
    fit_and_score: FitAndScore,
    grid: GridLike,
    data: Batch,
    folds: Folds,
    *,
    key: Array,
    inner: int = 5,
    stratify: ArrayLike | None = None,
    value: str = "loss",
    higher_is_better: bool = False,
    num_seeds: int = 1,
) -> tuple[Array, PyTree]:
    """The traceable form of `nested_cross_validate`: `(row[fold], scores[row, fold, seed])`.

    For `jit` and `vmap`, both levels and the choices between them one program. `row[fold]` is the
    row of the best mean over the inner folds of each outer fold (rule "min"; one with a score that
    is not finite loses), `scores` those of every row on the outer folds: the nested score is
    `scores["loss"][row, arange(folds)]`.

    Raises:
      ValueError: as `cross_validate_pure` and `nested_cross_validate`; for a `value` that there is
        not, and folds whose sizes are traced.
    """
    both, num_inner = _both_levels(key, folds, inner, stratify, None)
    scores = cross_validate_pure(fit_and_score, grid, data, both, key=key, num_seeds=num_seeds)
    if isinstance(scores, dict):
        check_one_of("value", value, scores)
    by = scores[value] if isinstance(scores, dict) else scores
    by = -by if higher_is_better else by
    places = np.cumsum([len(num_inner), *num_inner])
    means = jnp.stack(
        [
            jnp.mean(by[:, low:high], axis=(1, 2))
            for low, high in zip(places[:-1], places[1:], strict=True)
        ]
    )
    rows = jnp.argmin(jnp.where(jnp.isfinite(means), means, jnp.inf), axis=1)
    return rows, jax.tree.map(lambda leaf: leaf[:, : len(num_inner)], scores)


def _both_levels(
    key: Array, folds: Folds, inner: Any, stratify: ArrayLike | None, groups: Any
) -> tuple[Folds, list[int]]:
    """The outer folds, then the inner ones of each; and how many of these each has.

    Raises:
      ValueError: see `nested_cross_validate`.
    """
    outer = closed_up(folds)
    known = sizes(outer)
    if known is None:
        raise ValueError(
            "`folds`: how many rows each has must be known, and is traced here; make them inside "
            "with kfold, or close over them."
        )
    splitter: Any = None if isinstance(inner, str | bytes) else getattr(inner, "split", None)
    if splitter is None:
        check_positive_int("inner", inner, low=2)
        if groups is not None:
            raise ValueError(
                f"`inner` = {inner} folds would be dealt row by row, and `groups` are to stay "
                f"whole: give a splitter that keeps them, inner=GroupKFold({inner})."
            )
    elif not is_known(outer.train):
        raise ValueError(
            "`inner`: a splitter works on known rows, and `folds` are traced here; give a number."
        )
    deal = jax.random.fold_in(key, DEALING)
    levels = [outer]
    for fold, count in enumerate(known[0].tolist()):
        # The rows of the training part, padding left out: it lies behind them.
        rows = outer.train[fold, :count]
        classes = None if stratify is None else jnp.asarray(stratify)[rows]
        if splitter is not None:
            own = None if groups is None else np.asarray(groups)[np.asarray(rows)]
            y = None if classes is None else np.asarray(classes)
            part = folds_from_splits(splitter(np.zeros((count, 1)), y, own))
        else:
            part = _dealt(jax.random.fold_in(deal, fold), count, inner, classes, fold)
        levels.append(part._replace(train=_at(rows, part.train), valid=_at(rows, part.valid)))
    widths = [max(level[place].shape[1] for level in levels) for place in range(4)]
    arrays = [
        _joined([level[place] for level in levels], width) for place, width in enumerate(widths)
    ]
    return Folds(*arrays), [level.train.shape[0] for level in levels[1:]]


def _dealt(key: Array, count: int, inner: Any, classes: Array | None, fold: int) -> Folds:
    try:
        return kfold(key, count, inner, stratify=classes)
    except ValueError as error:
        raise ValueError(f"the inner folds of outer fold {fold}: {error}") from error


def _at(rows: Any, index: Any) -> Any:
    """On the host what is known, so that a splitter's folds stay checked under `jit` too."""
    return rows[np.asarray(index)] if is_known(index) else jnp.asarray(rows)[index]


def _joined(arrays: list[Any], width: int) -> Any:
    """One under the other, each as wide; what is added is row 0, or not there."""
    on_host = all(map(is_known, arrays))  # Sizes stay known under `jit`.
    np_ = np if on_host else jnp
    wide = [np_.pad(np_.asarray(a), ((0, 0), (0, width - a.shape[1]))) for a in arrays]
    return np_.concatenate(wide)


def _of_folds(scores: Scores, folds: np.ndarray) -> Scores:
    """The scores on some of the folds, as if there were no others."""
    held_out = scores.held_out
    if held_out is not None:
        groups = None if held_out.groups is None else held_out.groups[folds]
        held_out = held_out._replace(
            values={name: own[:, folds] for name, own in held_out.values.items()},
            examples=held_out.examples[folds],
            weights=held_out.weights[folds],
            groups=groups,
            num_train=held_out.num_train[folds],
        )
    values = jax.tree.map(lambda leaf: np.asarray(leaf)[:, folds], scores.values)
    return scores._replace(values=values, held_out=held_out)


def _choose_inside(chosen_by: Callable[[Scores], Choice], scores: Scores, fold: int) -> Choice:
    try:
        return chosen_by(scores)
    except ValueError as error:
        raise ValueError(f"the inner folds of outer fold {fold}: {error}") from error


def _judged_outside(
    outer: Scores, judged: Judged, choice: Choice, choices: tuple[Choice, ...]
) -> Nested:
    """What each outer fold's choice scores on the part that it did not see."""
    losses = _rows_of_each(judged, [choice.index for choice in choices]).losses
    sign = -1.0 if judged.higher_is_better else 1.0
    return Nested(
        outer,
        choice,
        choices,
        sign * losses[0],
        float(sign * losses.mean()),
        float(standard_error_over_folds(losses)[0]),
        _gain_of_choosing(judged, choices),
    )


def _rows_of_each(judged: Judged, rows: list[int]) -> Judged:
    """One row made of another row of the search in each fold."""
    folds = np.arange(len(rows))
    each = None if judged.each is None else judged.each[rows, folds][None]
    return judged._replace(losses=judged.losses[rows, folds][None], each=each, slopes={}, rungs=())


def _gain_of_choosing(judged: Judged, choices: tuple[Choice, ...]) -> Gain | None:
    """Of what each outer fold chose over the best of no decay by the same inner folds."""
    best_zero = [choice.best_zero for choice in choices]
    if None in best_zero:
        return None
    chosen = _rows_of_each(judged, [choice.index for choice in choices])
    zero = _rows_of_each(judged, [row for row in best_zero if row is not None])
    if not (np.isfinite(chosen.losses).all() and np.isfinite(zero.losses).all()):
        return None
    join = lambda a, b: None if a is None or b is None else np.concatenate([a, b])
    pair = judged._replace(
        losses=np.concatenate([zero.losses, chosen.losses]),
        each=join(zero.each, chosen.each),
        slopes={},
        rungs=(),
    )
    gains = gains_between([(pair, 0, 1)], LEVEL)
    ends = (float(gains.mean[0]), float(gains.low[0]), float(gains.high[0]))
    return Gain(*ends, LEVEL, 1, gains.method)
