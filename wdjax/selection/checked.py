"""What `cross_validate` is given beside the run: a grid, folds of the data, groups."""

from typing import Any

import jax
import numpy as np

from wdjax.checks import check_weights, is_known
from wdjax.selection.folds import Folds
from wdjax.selection.grids import GridLike
from wdjax.types import Batch


def checked_num_rows(grid: GridLike) -> int:
    """How many rows the grid has.

    Raises:
      ValueError: if it is empty or ragged.
    """
    if not grid:
        raise ValueError("`grid` is empty; build one with grid_product(strength=[0, 1e-3]).")
    lengths = {name: np.shape(values) for name, values in grid.items()}
    shapes = set(lengths.values())
    if len(shapes) != 1 or len(next(iter(shapes))) != 1 or next(iter(shapes)) == (0,):
        raise ValueError(
            f"`grid` must hold arrays of one length along one leading axis; got shapes {lengths}. "
            "`grid_product` makes every combination."
        )
    return next(iter(shapes))[0]


def check_folds(data: Batch, folds: Folds) -> None:
    """Checks that the folds are of this data, and that something counts in each of their parts.

    Raises:
      ValueError: for empty or ragged data, a fold that points beyond them, weights that are
        negative or not finite, or all zero in a part of a fold.
    """
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(data)}
    if len(sizes) != 1 or sizes == {()} or sizes == {(0,)}:
        raise ValueError(
            "`data` must have the same number of examples, at least one, in inputs, targets and "
            f"weights; got leading sizes {sorted(size[:1] for size in sizes)}."
        )
    num_examples = next(iter(sizes))[0]
    for index in filter(is_known, (folds.train, folds.valid)):
        index = np.asarray(index)  # Under jit, np.min of a known jax.Array would be traced.
        low, high = int(np.min(index)), int(np.max(index))
        if low < 0 or high >= num_examples:
            raise ValueError(
                f"`folds` points at row {low if low < 0 else high}, but `data` has {num_examples} "
                "examples; make the folds from the same data."
            )
    check_weights("data.weights", data.weights)
    if is_known(data.weights) and all(map(is_known, folds)):
        active = np.asarray(data.weights).reshape(num_examples, -1).max(axis=1) > 0
        for name, index, mask in (
            ("training", folds.train, folds.train_mask),
            ("held-out", folds.valid, folds.valid_mask),
        ):
            empty = ~(active[np.asarray(index)] & (np.asarray(mask) > 0)).any(axis=1)
            if empty.any():
                raise ValueError(
                    f"`data.weights` are all zero in the {name} part of fold "
                    f"{int(np.argmax(empty))}: nothing would count there. Give some of its "
                    "examples a weight above 0, or make other folds."
                )


def check_groups(groups: Any, data: Batch, folds: Folds) -> None:
    """Checks that there is a group an example, each on one side of every fold.

    Raises:
      ValueError: if there is not, or one is trained on and held out.
    """
    if groups is None:
        return
    groups, num_examples = np.asarray(groups), np.shape(data.weights)[0]
    if groups.shape != (num_examples,):
        raise ValueError(
            f"`groups` must have shape ({num_examples},), one group per example; got "
            f"{groups.shape}."
        )
    if not all(map(is_known, folds)):
        return
    train, train_mask, valid, valid_mask = map(np.asarray, folds)
    for fold in range(len(train)):
        both = np.intersect1d(
            groups[train[fold][train_mask[fold]]], groups[valid[fold][valid_mask[fold]]]
        )
        if both.size:
            raise ValueError(
                f"`groups`: group {both[0]} is trained on and held out in fold {fold}; split by "
                "groups, such as folds_from_splits(GroupKFold(5).split(x, y, groups))."
            )
