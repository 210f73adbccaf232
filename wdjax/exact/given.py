"""What the closed forms are given: checked arrays, and where they are computed."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from wdjax.checks import check_weights
from wdjax.memory import memory_of


class Examples(NamedTuple):
    """The examples that count, in float64."""

    features: np.ndarray
    """`[example, feature]`."""
    targets: np.ndarray
    """`[example, output]`, or labels `[example]`."""
    weights: np.ndarray
    """`[example]`, all above 0."""
    rows: np.ndarray
    """Which of the examples given each is."""


def checked_examples(features: Any, targets: Any, weights: Any) -> Examples:
    """The examples of weight above 0, in float64; the targets as they are.

    Raises:
      ValueError: for features that are not `[example, feature]` numbers, targets or weights of
        another number of examples, what is not finite where it counts, weights that are negative,
        not finite or all zero, or fewer than 2 examples that count.
    """
    x, y = np.asarray(features), np.asarray(targets)
    if x.ndim != 2 or 0 in x.shape or x.dtype.kind not in "biufV":
        raise ValueError(
            f"`features` must be numbers [example, feature], got {x.dtype} of shape {x.shape}; "
            "flatten other axes first: features.reshape(len(features), -1)."
        )
    if y.ndim not in (1, 2) or len(y) != len(x) or 0 in y.shape or y.dtype.kind not in "biufV":
        raise ValueError(
            f"`targets` must be numbers [example] or [example, output] of the {len(x)} examples of "
            f"`features`, got {y.dtype} of shape {y.shape}."
        )
    w = np.ones(len(x)) if weights is None else np.asarray(weights)
    if w.shape != (len(x),):
        raise ValueError(f"`weights` must have shape ({len(x)},), one per example; got {w.shape}.")
    check_weights("weights", w, require_positive=True)
    (rows,) = np.nonzero(w > 0)
    if len(rows) < 2:
        raise ValueError(
            f"at least 2 examples must count, got {len(rows)} of weight above 0: with one there is "
            "nothing to tell a strength by."
        )
    x, w = x[rows].astype(np.float64), w[rows].astype(np.float64)
    y = y[rows] if y.dtype.kind in "biu" else y[rows].astype(np.float64)
    for name, values in (("features", x), ("targets", y)):
        bad = ~np.isfinite(values)
        if bad.any():
            place = tuple(np.argwhere(bad)[0])
            raise ValueError(
                f"`{name}` must be finite, got {values[place]} in row {rows[place[0]]} (counted "
                "from 0); fill it, leave the row out, or give it weight 0."
            )
    return Examples(x, y, w, rows)


def check_counts(weights: np.ndarray) -> None:
    """Checks that weights can count examples: of probabilities the more, the surer.

    Raises:
      ValueError: if they sum to less than 2.
    """
    if weights.sum() < 2:
        raise ValueError(
            f"`weights` count examples here, and sum to {weights.sum():.3g}, less than 2; scale "
            "them to the number of examples: weights * len(weights) / weights.sum()."
        )


def in_float64(function: Any, *arguments: Any, **static: Any) -> tuple[Any, int | None]:
    """A jitted function's results on the host, and the bytes that its program takes.

    On the CPU: the sizes are small, and not every accelerator has float64 or decompositions.
    """
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        shapes = tuple(np.shape(argument) for argument in arguments)
        compiled = _compiled(function, shapes, tuple(static.items()))
        wide = (np.asarray(argument, np.float64) for argument in arguments)
        found = jax.tree.map(np.asarray, compiled(*wide))
    return found, memory_of(compiled)


@functools.lru_cache(maxsize=64)
def _compiled(
    function: Any, shapes: tuple[tuple[int, ...], ...], static: tuple[tuple[str, Any], ...]
) -> Any:
    """Kept, as a program that was compiled ahead is not found again by itself."""
    arguments = [jax.ShapeDtypeStruct(shape, np.float64) for shape in shapes]
    return function.lower(*arguments, **dict(static)).compile()
