"""What the evidence is given: arrays of named axes, weights, groups and a level."""

import numpy as np
from jaxtyping import ArrayLike


def check_level(level: float) -> None:
    """Checks that a level is a probability.

    Raises:
      ValueError: outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"`level` must lie between 0 and 1, got level={level}; 0.95 is usual.")


def checked_axes(name: str, values: ArrayLike, axes: tuple[str, ...]) -> np.ndarray:
    """The values in float64.

    Raises:
      ValueError: for another number of axes than these, or an empty one.
    """
    array = np.asarray(values, np.float64)
    if array.ndim != len(axes) or 0 in array.shape:
        raise ValueError(
            f"`{name}` must be [{', '.join(axes)}] with at least one of each, got shape "
            f"{array.shape}."
        )
    return array


def checked_fit(name: str, values: ArrayLike, shape: tuple[int, ...], beside: str) -> np.ndarray:
    """The values in float64.

    Raises:
      ValueError: if they have not the shape that fits what stands `beside`.
    """
    array = np.asarray(values, np.float64)
    if array.shape != shape:
        raise ValueError(f"`{name}` must have shape {shape} to fit {beside}, got {array.shape}.")
    return array


def checked_groups(groups: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    """The groups as an array.

    Raises:
      ValueError: if they are no integers of that shape.
    """
    array = np.asarray(groups)
    if array.shape != shape or array.dtype.kind not in "iu":
        raise ValueError(
            f"`groups` must be integers of shape {shape}, like `weights`, got {array.dtype} of "
            f"shape {array.shape}."
        )
    return array


def check_slot_weights(weights: np.ndarray) -> None:
    """Checks that weights are finite and >= 0, one of them above 0.

    Raises:
      ValueError: if they are not.
    """
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        wrong = weights[~(np.isfinite(weights) & (weights >= 0))][0]
        raise ValueError(f"`weights` must be finite and >= 0, got {wrong}; 0 leaves a slot out.")
    if not (weights > 0).any():
        raise ValueError("`weights` are all 0: no held-out example counts, so no gain can be told.")
