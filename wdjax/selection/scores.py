"""What cross-validation found: scores by row, fold and seed, and of each held-out example."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, overload

import jax
import numpy as np
from jaxtyping import PyTree

from wdjax.selection.folds import Folds
from wdjax.selection.grids import Grid, GridLike
from wdjax.selection.plain_scores import LONE, directions_of, flat_grid, flat_values, slopes_like
from wdjax.selection.rungs import Rung, rows_left
from wdjax.tables import Estimate, Table
from wdjax.types import Batch


class HeldOut(NamedTuple):
    """The held-out examples of each fold, and what each row, fold and seed scored on them."""

    values: dict[str, np.ndarray]
    """`[row, fold, seed, example]` of each score that is a mean over examples, else left out."""
    examples: np.ndarray
    """`[fold, example]`: which of the data's examples it is."""
    weights: np.ndarray
    """`[fold, example]`: how much it counts (summed over time), 0 where there is none."""
    groups: np.ndarray | None
    """`[fold, example]`: what examples that belong together share (rows of a patient)."""
    num_train: np.ndarray
    """`[fold]`: how many examples it was trained on."""
    slopes: Mapping[str, dict[str, np.ndarray]] = {}
    """`{number: {score: [row, fold, seed, example]}}`, as `values`, of the scores' slopes."""

    @classmethod
    def of(cls, data: Batch, folds: Folds, groups: Any = None) -> "HeldOut":
        """The held-out examples of some folds, without scores."""
        index, mask = np.asarray(folds.valid), np.asarray(folds.valid_mask)
        weights = np.asarray(data.weights)
        each = weights.reshape(len(weights), -1).sum(axis=1, dtype=np.float64)
        active = np.asarray(folds.train_mask) & (each[np.asarray(folds.train)] > 0)
        groups = None if groups is None else np.unique(groups, return_inverse=True)[1][index]
        return cls({}, index, np.where(mask, each[index], 0.0), groups, active.sum(axis=1))

    @property
    def repeated(self) -> bool:
        """Whether an example is held out more than once: such folds are not independent."""
        seen = self.examples[self.weights > 0]
        return len(np.unique(seen)) < len(seen)


class _ReadOrMake:
    """`scores.of(name)` reads one score; `Scores.of(values, grid)` makes scores of plain numbers.

    One name, as both answer "scores of what?"; which of the two is told by who is asked.
    """

    def __init__(self, read: Callable[..., np.ndarray], make: Callable[..., "Scores"]):
        self.read, self.make = read, make

    @overload
    def __get__(self, instance: None, owner: type) -> "Callable[..., Scores]": ...
    @overload
    def __get__(self, instance: "Scores", owner: type) -> Callable[[str], np.ndarray]: ...

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self.make
        return functools.wraps(self.read)(functools.partial(self.read, instance))


def _one_score(scores: "Scores", name: str) -> np.ndarray:
    """`[row, fold, seed]` of one score in float64, NaN for a run that is not finite.

    Raises:
      KeyError: for a score that there is not.
    """
    return _finite(scores.values, name)


def _scores_of_numbers(
    values: Any,
    grid: Any,
    *,
    higher_is_better: Any = None,
    held_out: Any = None,
    slopes: Any = None,
) -> "Scores":
    """Makes the scores of plain numbers: what a search found that was run elsewhere.

    `choose`, `compare_scores` and every table then take it as they take what `cross_validate`
    found, on whose terms they rest: rows are judged on the same held-out parts, and the values of
    one fold and seed are paired over the rows. `Scores.of(**scores.to_dict())` is `scores`
    again, without its single examples.

    Args:
      values: by name, in dicts or alone: `[row, fold]`, `[row, fold, seed]`, or one number for
        each held-out example, `[row, fold, seed, example]`, from which `choose` can be surer;
        their mean over the examples, weighted by `held_out`, is then the score. NaN or None where
        a run diverged.
      grid: the numbers of each row, `{"strength": [row], ...}`: of any rows, not only a product.
      higher_is_better: the direction, of all scores or by name; what is called a loss, or has no
        name, is better when lower.
      held_out: which examples each fold holds out, and their weights and groups, as
        `HeldOut.of(data, folds)` gives. By default, and where `values` has single examples, each
        slot is an example of its own of weight 1.
      slopes: by number of the grid, derivatives of the scores in its logarithm, shaped as they are.

    Raises:
      ValueError: for lists of unequal lengths, what is no number, other axes than these, a grid
        that is not finite or of another number of rows, a strength below 0, a score of unknown
        direction, or held-out examples or slopes that do not fit.

    Example:
      >>> losses = [[0.9, 1.1], [0.5, 0.5], [0.6, 0.7]]  # row, fold
      >>> scores = wdjax.Scores.of({"loss": losses}, {"strength": [0.0, 0.1, 1.0]})
      >>> wdjax.choose(scores).hparams["strength"]
      0.1
    """
    flat = flat_values(values)
    num_rows = next(iter(flat.values())).shape[0]
    axes = flat_grid(grid, num_rows)
    own: Any = Grid(axes, grid.shape) if isinstance(grid, Grid) else axes
    directions = directions_of(list(flat), higher_is_better)
    each = {name: array for name, array in flat.items() if array.ndim == 4}
    if held_out is not None and not isinstance(held_out, HeldOut):
        raise ValueError(
            f"`held_out` must be a HeldOut, such as HeldOut.of(data, folds), got "
            f"{type(held_out).__name__}; scores of single examples go into `values`, as "
            "[row, fold, seed, example]."
        )
    if each and held_out is None:
        held_out = _every_slot(next(iter(each.values())).shape)
    if held_out is not None:
        held_out = held_out._replace(values={**held_out.values, **each})
        _check_held_out(held_out, next(iter(flat.values())).shape[:3])
    means = {
        name: _mean_over_examples(array, held_out) if name in each else array
        for name, array in flat.items()
    }
    alone_or_all = lambda tree: tree[LONE] if list(tree) == [LONE] else tree
    derivatives = {
        number: alone_or_all(slopes_like(means, number, axes, tree))
        for number, tree in ({} if slopes is None else slopes).items()
    }
    return Scores(own, alone_or_all(means), held_out, directions, derivatives)


class Scores(NamedTuple):
    """What cross-validation found: every leaf of `values` is `[row, fold, seed]`.

    NaN where that run diverged (or, in a partial result, has not finished, or left at one of
    the `rungs`). Rows are paired: the key of a run depends on its fold and seed, never on its row.
    """

    grid: GridLike
    values: PyTree
    held_out: HeldOut | None = None
    """Scores of single examples, from which a difference's error is taken; None if unknown."""
    higher_is_better: Mapping[str, bool] = {}
    """The direction of each score by name, where known."""
    slopes: Mapping[str, PyTree] = {}
    """`{number: tree of [row, fold, seed]}`: the derivative of each score in the logarithm of a
    number of the grid, where it was asked for. Of a score that goes in steps, such as accuracy, it
    is 0."""
    rungs: tuple[Rung, ...] = ()
    """Where rows left before the end: they are NaN, and have not diverged. In order."""

    @property
    def left(self) -> dict[int, Rung]:
        """`{row: its last rung}` of the rows that left before the end."""
        return rows_left(self.rungs)

    @property
    def names(self) -> list[str]:
        """The scores' names, `a/b` inside a tree; `score` where there is but one without."""
        return leaf_names(self.values)

    of = _ReadOrMake(_one_score, _scores_of_numbers)
    """Of some scores, `of(name)`: one of them, `[row, fold, seed]` in float64, NaN for a run that
    is not finite. Of the class, `Scores.of(values, grid)`: scores of plain numbers."""

    def slope_of(self, name: str, number: str = "strength") -> np.ndarray:
        """`[row, fold, seed]`: d score / d log number, NaN where it or the run is not finite.

        Raises:
          KeyError: for a number of which no slopes were asked for, or a score that there is not.
        """
        return np.where(np.isnan(self.of(name)), np.nan, _finite(self.slopes[number], name))

    def mean(self) -> PyTree:
        """The mean over seeds and folds, `[row]`; NaN for a row with a diverged run."""
        return jax.tree.map(lambda v: np.mean(np.asarray(v), axis=(1, 2)), self.values)

    def standard_error(self) -> PyTree:
        """The deviation of the fold means (ddof 1) / sqrt(folds), `[row]`."""
        return jax.tree.map(lambda v: standard_error_over_folds(np.asarray(v)), self.values)

    def table(self, marked: int | None = None) -> Table:
        """One row a candidate: its numbers, then mean +- standard error of every score."""
        means, errors = jax.tree.leaves(self.mean()), jax.tree.leaves(self.standard_error())
        left = self.left
        rows = []
        for row in range(len(means[0])):
            numbers = [float(np.asarray(values)[row]) for values in self.grid.values()]
            pairs = zip(means, errors, strict=True)
            cells = [Estimate(float(m[row]), float(e[row])) for m, e in pairs]
            if row in left:
                cells = [f"left at {left[row].num_epochs} epochs", *[None] * (len(means) - 1)]
            rows.append((*numbers, *cells))
        _, num_folds, num_seeds = np.shape(jax.tree.leaves(self.values)[0])
        note = f"mean +- standard error over {num_folds} folds, {num_seeds} seeds each"
        return Table((*self.grid, *self.names), tuple(rows), marked=marked, note=note)

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def to_dict(self) -> dict[str, Any]:
        """Plain lists: `{"grid": {name: [row]}, "values": tree of [row][fold][seed],
        "higher_is_better": {name: bool}}`, with `"slopes"` if there are any; without the scores of
        single examples."""
        lists = lambda x: np.asarray(x).tolist()
        slopes = {"slopes": jax.tree.map(lists, dict(self.slopes))} if self.slopes else {}
        return slopes | {
            "grid": {name: lists(values) for name, values in self.grid.items()},
            "values": jax.tree.map(lists, self.values),
            "higher_is_better": dict(self.higher_is_better),
        }


def _finite(tree: PyTree, name: str) -> np.ndarray:
    leaves = dict(zip(leaf_names(tree), jax.tree.leaves(tree), strict=True))
    values = np.asarray(leaves[name], np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def _every_slot(shape: tuple[int, ...]) -> HeldOut:
    """The held-out parts of `[row, fold, seed, example]` whose slots are examples of their own."""
    _, num_folds, _, num_examples = shape
    every = np.arange(num_folds * num_examples).reshape(num_folds, num_examples)
    others = np.full(num_folds, max((num_folds - 1) * num_examples, 1))
    return HeldOut({}, every, np.ones(every.shape), None, others)


def _check_held_out(held_out: HeldOut, shape: tuple[int, ...]) -> None:
    weights = np.asarray(held_out.weights, np.float64)
    expected = (shape[1], *weights.shape[1:])
    if weights.ndim != 2 or weights.shape != expected:
        raise ValueError(
            f"`held_out.weights` must be [fold, example] of the {shape[1]} folds of `values`, got "
            f"shape {weights.shape}."
        )
    for name, values in held_out.values.items():
        if np.shape(values) != (*shape, weights.shape[1]):
            raise ValueError(
                f"the single examples of {name!r} must be [row, fold, seed, example], shape "
                f"{(*shape, weights.shape[1])} by `values` and `held_out.weights`; got "
                f"{np.shape(values)}."
            )
    bad = ~(np.isfinite(weights) & (weights >= 0)).all(axis=1) | ~(weights > 0).any(axis=1)
    if bad.any():
        raise ValueError(
            "`held_out.weights` must be finite and >= 0, and one above 0 in each fold; those of "
            f"fold {int(np.argmax(bad))} are not."
        )


def _mean_over_examples(values: np.ndarray, held_out: HeldOut | None) -> np.ndarray:
    assert held_out is not None
    weights = np.asarray(held_out.weights, np.float64)[:, None]
    counted = np.where(weights > 0, values, 0.0)
    return (weights * counted).sum(axis=-1) / weights.sum(axis=-1)


def leaf_names(values: PyTree) -> list[str]:
    """The paths of a tree's leaves, `a/b`; `score` for a tree that is one leaf."""
    return [
        jax.tree_util.keystr(path, simple=True, separator="/") or "score"
        for path, _ in jax.tree_util.tree_leaves_with_path(values)
    ]


def standard_error_over_folds(values: np.ndarray) -> np.ndarray:
    """`[row, fold, seed] -> [row]`: mean over seeds, deviation of the fold means / sqrt(folds)."""
    fold_means = np.where(np.isfinite(values), values, np.nan).mean(axis=2)
    num_folds = fold_means.shape[1]
    if num_folds < 2:
        return np.full(fold_means.shape[0], np.nan)
    return fold_means.std(axis=1, ddof=1) / math.sqrt(num_folds)
