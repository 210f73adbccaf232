"""Scores as plain numbers, such as another search's lists: checked, and brought into shape."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from wdjax.checks import check_one_of
from wdjax.measures import direction_of

LONE = "score"
"""What a score is called that came alone, without a name."""


def flat_values(values: Any) -> dict[str, np.ndarray]:
    """`{name: [row, fold, seed] or [row, fold, seed, example]}` in float64, `a/b` inside a dict.

    Raises:
      ValueError: for no score, names that are no text, what is no number, lists of unequal
        lengths, other axes, or scores whose rows, folds and seeds are not the same.
    """
    found = dict(_leaves("values", "", values))
    if not found:
        raise ValueError(
            '`values` holds no score; give {"loss": losses}, losses[row, fold] or [row, fold, '
            "seed]."
        )
    shapes = {name: array.shape[:3] for name, array in found.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(
            "`values` must hold scores of the same rows, folds and seeds; got [row, fold, seed] of "
            + ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            + ". Give NaN where a run has none."
        )
    return found


def flat_grid(grid: Any, num_rows: int) -> dict[str, np.ndarray]:
    """`{name: [row]}` in float64.

    Raises:
      ValueError: for no axis, what is no number or not finite, another number of rows than the
        scores have, or a strength below 0.
    """
    if not isinstance(grid, Mapping) or not grid:
        raise ValueError(
            f"`grid` must be the numbers of each row by name, such as {{'strength': [0.0, 0.1]}}; "
            f"got {grid!r}."
        )
    found = {}
    for name, numbers in grid.items():
        axis = _numbers(f"grid[{name!r}]", numbers, "one number a row")
        if axis.shape != (num_rows,):
            raise ValueError(
                f"`grid[{name!r}]` must hold one number for each of the {num_rows} rows of "
                f"`values`, got shape {axis.shape}."
            )
        word = str(name).removesuffix("s").split("_")[-1]
        bad = ~np.isfinite(axis) | ((axis < 0) & (word == "strength"))
        if bad.any():
            must = "finite and >= 0" if word == "strength" else "finite"
            raise ValueError(
                f"`grid[{name!r}]` must be {must}, got {axis[bad][0]:g} in row "
                f"{int(np.argmax(bad))}; a run that failed keeps its numbers, and its score is NaN."
            )
        found[str(name)] = axis
    return found


def directions_of(names: list[str], told: Any) -> dict[str, bool]:
    """Whether more is better, of every score: as told, else as its name says.

    Raises:
      ValueError: for a direction that is no bool or of no score, or one that nothing tells.
    """
    if told is None:
        told = {}
    if not isinstance(told, Mapping):
        told = dict.fromkeys(names, told)
    for name, up in told.items():
        check_one_of("higher_is_better", name, names)
        if not isinstance(up, bool | np.bool_):
            raise ValueError(f"`higher_is_better` of {name!r} must be True or False, got {up!r}.")
    found = {}
    for name in names:
        up = told.get(name, direction_of("loss" if name == LONE else name, None))
        if up is None:
            raise ValueError(
                f"whether more of {name!r} is better is not known; pass "
                f"higher_is_better={{{name!r}: True}}, or False."
            )
        found[name] = bool(up)
    return found


def slopes_like(
    means: Mapping[str, np.ndarray], number: Any, grid: Mapping[str, Any], slopes: Any
) -> dict[str, np.ndarray]:
    """The slopes of each score in one number of the grid, `[row, fold, seed]`.

    Raises:
      ValueError: for a number that the grid has not, or slopes that are not of the same scores and
        shape.
    """
    check_one_of("slopes", number, grid)
    found = flat_values(slopes)
    shapes = lambda tree: {name: array.shape for name, array in tree.items()}
    if shapes(found) != shapes(means):
        raise ValueError(
            f"`slopes[{number!r}]` must be of the same scores as `values`, [row, fold, seed] "
            f"{shapes(means)}; got {shapes(found)}."
        )
    return found


def _leaves(path: str, name: str, values: Any):
    """`(name, array)` of each score in nested dicts."""
    if not isinstance(values, Mapping):
        yield name or LONE, _axes(path, _numbers(path, values, "numbers [row, fold, seed]"))
        return
    for key, value in values.items():
        if not isinstance(key, str) or not key:
            raise ValueError(f"`{path}` must be named by text, got the name {key!r}.")
        yield from _leaves(f"{path}[{key!r}]", f"{name}/{key}".removeprefix("/"), value)


def _axes(path: str, array: np.ndarray) -> np.ndarray:
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise ValueError(
            f"`{path}` must be [row, fold], [row, fold, seed], or [row, fold, seed, example] with "
            f"at least one of each, got shape {array.shape}; one score a row is [[score], ...]."
        )
    return array


def _numbers(path: str, values: Any, what: str) -> np.ndarray:
    """In float64; None (JSON's null) is NaN."""
    try:
        array = np.asarray(values)
    except ValueError:
        raise ValueError(
            f"`{path}` must hold lists of equal lengths, {what}; got {_lengths(values)}. Give NaN "
            "where a run has no score, and examples that a fold does not have weight 0."
        ) from None
    numeric = array.dtype.kind in "biufV" or (
        array.dtype.kind == "O"
        and all(x is None or isinstance(x, int | float | np.number) for x in array.flat)
    )
    if not numeric:
        raise ValueError(f"`{path}` must hold {what}, got {array.dtype} such as {_first(array)}.")
    return array.astype(np.float64)


def _lengths(values: Any) -> str:
    lengths = [len(v) if hasattr(v, "__len__") else "no list" for v in values]
    if len(set(lengths)) > 1:
        return f"lengths {', '.join(map(str, lengths[:8]))}{', ...' if len(lengths) > 8 else ''}"
    return "lists that differ further inside"


def _first(array: np.ndarray) -> str:
    return repr(
        next(
            (x for x in array.ravel().tolist() if not isinstance(x, int | float | np.number)), None
        )
    )
