"""Grids: the candidates, a dict of arrays with one leading axis that remembers its shape."""

import itertools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

GridLike = Mapping[str, Any]
"""`{name: values[row]}`, such as `grid_product` builds: what is asked for; a `Grid` is one."""


class Grid(dict):
    """A flat grid, `{name: values[row]}`; `shape` says how the rows were made.

    `grid.shape` is `{name: number of values}` in the order of the axes, the last one fastest;
    its product less `grid.num_left_out`, the pairs that `without` took out, is the number of rows.
    """

    def __init__(self, values: Mapping[str, Any], shape: Mapping[str, int], num_left_out: int = 0):
        super().__init__(values)
        self.shape = dict(shape)
        self.num_left_out = num_left_out

    @property
    def num_rows(self) -> int:
        """How many candidates there are."""
        return int(np.prod(list(self.shape.values()))) - self.num_left_out

    def row(self, index: int) -> dict[str, float]:
        """The numbers of one candidate, as Python floats."""
        return {name: float(np.asarray(values)[index]) for name, values in self.items()}

    def without(self, rows: Any) -> "Grid":
        """The grid with some rows left out, the others in their order.

        `shape` counts the values that each axis still has: a value of which no row is left is
        gone, and the rows missing from the product of the others are `num_left_out`.

        Args:
          rows: `[row]`, true for the rows to leave out.

        Raises:
          ValueError: if `rows` is not one truth value a row, or no row would be left.

        Example:
          >>> grid = wdjax.grid_product(strength=[0.0, 9.0], learning_rate=[0.1, 0.2])
          >>> fewer = grid.without(grid["strength"] * grid["learning_rate"] >= 1)
          >>> fewer.num_rows, fewer.num_left_out, fewer.shape
          (3, 1, {'strength': 2, 'learning_rate': 2})
        """
        left_out = np.asarray(rows)
        if left_out.dtype != bool or left_out.shape != (self.num_rows,):
            raise ValueError(
                f"`rows` must be one truth value for each of the {self.num_rows} rows, got "
                f"{left_out.dtype} of shape {left_out.shape}."
            )
        if left_out.all():
            raise ValueError("`rows` leaves out every row of the grid; keep at least one.")
        values = {name: np.asarray(axis)[~left_out] for name, axis in self.items()}
        shape = {name: len(np.unique(axis)) for name, axis in values.items()}
        num_left_out = int(np.prod(list(shape.values()))) - int((~left_out).sum())
        return Grid(values, shape, num_left_out)


jax.tree_util.register_pytree_with_keys(
    Grid,
    lambda grid: (
        [(jax.tree_util.DictKey(name), value) for name, value in grid.items()],
        (tuple(grid), tuple(grid.shape.items()), grid.num_left_out),
    ),
    lambda aux, values: Grid(dict(zip(aux[0], values, strict=True)), dict(aux[1]), aux[2]),
)


def grid_product(**axes: Any) -> Grid:
    """Builds the grid of every combination, flat: `grid_product(strength=[0, 1], slope=[1, 2])`.

    Args:
      axes: each a sequence of finite numbers without repetition, or one number. They become
        float64 arrays with one leading axis, the last axis fastest.

    Raises:
      ValueError: if there is no axis, or one is empty, not numeric, not finite, holds a value
        twice, or is a strength below zero (an axis named `strength` or ending in `_strength`).

    Example:
      >>> grid = wdjax.grid_product(strength=[0.0, 0.1], learning_rate=[1.0, 2.0, 3.0])
      >>> print(grid["strength"], grid["learning_rate"])
      [0.  0.  0.  0.1 0.1 0.1] [1. 2. 3. 1. 2. 3.]
    """
    if not axes:
        raise ValueError("`grid_product` needs at least one axis, such as strength=[0, 1e-3].")
    checked = {name: check_axis(name, values) for name, values in axes.items()}
    rows = list(itertools.product(*checked.values()))
    columns = zip(*rows, strict=True)
    # Kept in float64, as typed; a program takes them in its own default dtype.
    flat = {name: np.array(c, np.float64) for name, c in zip(checked, columns, strict=True)}
    return Grid(flat, {name: len(values) for name, values in checked.items()})


def check_axis(name: str, values: Any) -> list[float]:
    """The values of one axis as floats; `name` is that of the argument or option they came by.

    Raises:
      ValueError: as `grid_product`, naming the first value that cannot stand.
    """
    axis = np.atleast_1d(np.asarray(values))
    if axis.size and axis.dtype.kind not in "iuf":
        raise ValueError(f"`{name}` must hold numbers, got {values!r}.")
    axis = axis.astype(np.float64)
    if axis.ndim != 1 or axis.size == 0:
        raise ValueError(
            f"`{name}` must hold at least one number along one axis, got shape {axis.shape}."
        )
    if not np.all(np.isfinite(axis)):
        bad = axis[~np.isfinite(axis)][0]
        raise ValueError(f"`{name}` must hold finite numbers, got {bad:g}.")
    if name.removesuffix("s").split("_")[-1] == "strength" and np.any(axis < 0):
        raise ValueError(f"`{name}` must be >= 0, got {axis[axis < 0][0]:g}; 0 switches it off.")
    seen, counts = np.unique(axis, return_counts=True)
    if np.any(counts > 1):
        raise ValueError(
            f"`{name}` holds {seen[counts > 1][0]:g} twice; each candidate may stand once."
        )
    return axis.tolist()


def row_of_zero(grid: Any, index: int, name: str = "strength") -> int | None:
    """The row that differs from row `index` only in `name` being 0, or None."""
    if name not in grid:
        return None
    axes = {key: np.asarray(axis) for key, axis in grid.items()}
    same = np.ones(len(axes[name]), bool)
    for key, axis in axes.items():
        same &= (axis == 0) if key == name else (axis == axis[index])
    return int(np.argmax(same)) if same.any() else None


def end_of_grid(grid: Any, index: int, name: str) -> str | None:
    """`"smallest"` or `"largest"` if row `index` has that value of the axis; zero is no end.

    Zero is where an axis of strengths stops by nature, so neither it nor an axis of one value
    counts as an end. The smallest value above zero does.
    """
    axis = np.asarray(grid[name])
    above = np.unique(axis[axis != 0])
    if above.size < 2:
        return None
    return {above[0]: "smallest", above[-1]: "largest"}.get(axis[index])
