"""What cross-validation found: scores by row, fold and seed, and of each held-out example."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from wdjax.selection.folds import Folds
from wdjax.selection.grids import GridLike
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


class Scores(NamedTuple):
    """What cross-validation found: every leaf of `values` is `[row, fold, seed]`.

    NaN where that run diverged (or, in a partial result, has not finished). Rows are paired:
    the key of a run depends on its fold and seed, never on its row.
    """

    grid: GridLike
    values: PyTree
    held_out: HeldOut | None = None
    """Scores of single examples, from which a difference's error is taken; None if unknown."""
    higher_is_better: Mapping[str, bool] = {}
    """The direction of each score by name, where known."""

    @property
    def names(self) -> list[str]:
        """The scores' names, `a/b` inside a tree; `score` where there is but one without."""
        return leaf_names(self.values)

    def of(self, name: str) -> np.ndarray:
        """`[row, fold, seed]` of one score in float64, NaN for a run that is not finite.

        Raises:
          KeyError: for a score that there is not.
        """
        leaves = dict(zip(self.names, jax.tree.leaves(self.values), strict=True))
        values = np.asarray(leaves[name], np.float64)
        return np.where(np.isfinite(values), values, np.nan)

    def mean(self) -> PyTree:
        """The mean over seeds and folds, `[row]`; NaN for a row with a diverged run."""
        return jax.tree.map(lambda v: np.mean(np.asarray(v), axis=(1, 2)), self.values)

    def standard_error(self) -> PyTree:
        """The deviation of the fold means (ddof 1) / sqrt(folds), `[row]`."""
        return jax.tree.map(lambda v: standard_error_over_folds(np.asarray(v)), self.values)

    def table(self, marked: int | None = None) -> Table:
        """One row a candidate: its numbers, then mean +- standard error of every score."""
        means, errors = jax.tree.leaves(self.mean()), jax.tree.leaves(self.standard_error())
        rows = []
        for row in range(len(means[0])):
            numbers = [float(np.asarray(values)[row]) for values in self.grid.values()]
            pairs = zip(means, errors, strict=True)
            rows.append((*numbers, *(Estimate(float(m[row]), float(e[row])) for m, e in pairs)))
        _, num_folds, num_seeds = np.shape(jax.tree.leaves(self.values)[0])
        note = f"mean +- standard error over {num_folds} folds, {num_seeds} seeds each"
        return Table((*self.grid, *self.names), tuple(rows), marked=marked, note=note)

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def to_dict(self) -> dict[str, Any]:
        """Plain lists: `{"grid": {name: [row]}, "values": tree of [row][fold][seed],
        "higher_is_better": {name: bool}}`; without the scores of single examples."""
        lists = lambda x: np.asarray(x).tolist()
        return {
            "grid": {name: lists(values) for name, values in self.grid.items()},
            "values": jax.tree.map(lists, self.values),
            "higher_is_better": dict(self.higher_is_better),
        }


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
