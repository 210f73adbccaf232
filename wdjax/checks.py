"""Argument checks; traced values get shape checks only."""

import difflib
import math
import os
import re
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from wdjax.types import Schedule, Strength

MOST_OF_NAMES = 255
"""Bytes of a file's name that common file systems take."""


LARGEST_COUNT = 2**31 - 1
"""What a compiled program can count to: its integers have 32 bits."""


def is_known(value: Any) -> bool:
    """Whether `value` is a number already: not a tracer that `jit`, `vmap` or `grad` carries."""
    return not isinstance(value, Tracer)


def check_number(
    name: str,
    value: Any,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    exclusive_low: bool = False,
) -> None:
    """Checks that `value` is a finite scalar in `[low, high]`, or above `low` if `exclusive_low`.

    A traced value has a shape but no number yet, so only its shape and dtype are checked; its
    range is the caller's promise.

    Raises:
      ValueError: if `value` is not a real scalar, or is known and out of range or not finite.
    """
    dtype = getattr(value, "dtype", None)
    real = (
        isinstance(value, int | float) and not isinstance(value, bool)
        if dtype is None
        else jnp.issubdtype(dtype, np.integer) or jnp.issubdtype(dtype, np.floating)
    )
    if not real:
        raise ValueError(f"`{name}` must be a number, got {value!r} of {type(value).__name__}.")
    if np.shape(value) != ():
        raise ValueError(
            f"`{name}` must be a scalar, got shape {np.shape(value)}. "
            "To try several values at once, vmap over the function that builds with one."
        )
    if not is_known(value):
        return
    number = float(value)
    inside = (number > low if exclusive_low else number >= low) and number <= high
    if not (math.isfinite(number) and inside):
        bounds = f"> {low:g}" if exclusive_low else f">= {low:g}" if math.isfinite(low) else ""
        bounds += f"{' and ' if bounds else ''}<= {high:g}" if math.isfinite(high) else ""
        raise ValueError(
            f"`{name}` must be finite{' and ' + bounds if bounds else ''}, got {name}={number:g}."
        )


def check_strength(name: str, value: Strength) -> None:
    """Checks that `value` is a scalar and, when it is already known, finite and >= 0.

    Raises:
      ValueError: if it is not; to disable a penalty or a decay pass 0.
    """
    check_number(name, value, low=0.0)


def check_strength_or_schedule(name: str, value: Strength | Schedule) -> None:
    """Checks a strength as `check_strength` does; a schedule (a callable) is let through.

    Raises:
      ValueError: if `value` is neither a callable nor a known or traced scalar >= 0.
    """
    if not callable(value):
        check_strength(name, value)


def check_weights(name: str, weights: Any, *, require_positive: bool = False) -> None:
    """Checks that known weights are finite and >= 0; with `require_positive`, that one is above 0.

    Traced weights pass.

    Raises:
      ValueError: if they are not; the message names the first bad row.
    """
    if not is_known(weights):
        return
    values = np.asarray(weights)
    bad = ~(np.isfinite(values) & (values >= 0))
    if bad.any():
        row = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"`{name}` must be finite and >= 0, got {values[row]:g} in row "
            f"{row[0] if len(row) == 1 else row}; 0 leaves an example out."
        )
    if require_positive and not (values > 0).any():
        raise ValueError(
            f"`{name}` are all zero: no example would count in a whole epoch. Give at least one "
            "a weight above 0."
        )


class LabelError(ValueError):
    """A label that is none of the classes."""


def check_labels(name: str, labels: Any, num_labels: int) -> None:
    """Checks that known labels are in `[0, num_labels)`; traced ones pass.

    In a compiled program -1 is silently the last class, and one beyond the classes makes the loss
    NaN and leaves the gradient finite.

    Raises:
      LabelError: if one is not, by its row.
    """
    if not is_known(labels):
        return
    values = np.asarray(labels)
    if values.size and (values.min() < 0 or values.max() >= num_labels):
        row = np.argwhere((values < 0) | (values >= num_labels))[0]
        raise LabelError(
            f"`{name}` must be labels 0..{num_labels - 1}, as many as the model has outputs; got "
            f"{values[tuple(row)]} in row {row[0] if len(row) else 0} (counted from 0). Renumber "
            "them with np.unique(targets, return_inverse=True)[1], give the model more outputs, or "
            "the row weight 0."
        )


def check_positive_int(name: str, value: Any, *, low: int = 1, high: int | None = None) -> None:
    """Checks that `value` is a Python or NumPy integer in `[low, high]`.

    Raises:
      ValueError: if it is not an integer, or out of range.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise ValueError(f"`{name}` must be an integer, got {value!r}.")
    if value < low or (high is not None and value > high):
        too_low = high is None or (high == LARGEST_COUNT and value < low)
        bound = f">= {low}" if too_low else f"between {low} and {high}"
        raise ValueError(f"`{name}` must be {bound}, got {name}={value}.")


def check_path(name: str, value: Any) -> str:
    """`value`, a path, as text: one that `check_text` takes.

    Raises:
      ValueError: if it is no text and no path, or as `check_text`.
    """
    if not isinstance(value, str | os.PathLike):
        raise ValueError(f"`{name}` must be a path, got {value!r} of {type(value).__name__}.")
    text = os.fsdecode(value)
    check_text(name, text)
    return text


def check_text(name: str, value: str, *, may_be_empty: bool = False) -> None:
    """Checks that `value` can be a name: it is UTF-8, and no part of a path in it is too long.

    Raises:
      ValueError: if it is empty, has a NUL character or bytes that are not UTF-8, or a part of
        more than the 255 bytes that file systems take.
    """
    if not value and not may_be_empty:
        raise ValueError(f"`{name}` must not be empty; leave it out for its default.")
    if "\0" in value:
        raise ValueError(f"`{name}` must not hold a NUL character, got {value!r}.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"`{name}` must be UTF-8, got {value!r}; rename what is called so."
        ) from None
    longest = max((len(part.encode()) for part in re.split("[/\\\\:,=]", value)), default=0)
    if longest > MOST_OF_NAMES:
        raise ValueError(
            f"`{name}` has a name of {longest} bytes, and a file system takes {MOST_OF_NAMES}; "
            f"give a shorter one than {value[:20]!r}..."
        )


def nearest(name: str, options: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the option closest to `name`, or an empty string."""
    close = difflib.get_close_matches(str(name), list(options), n=1, cutoff=0.4)
    return f" Did you mean {close[0]!r}?" if close else ""


def check_one_of(name: str, value: Any, options: Iterable[str]) -> None:
    """Checks that `value` is one of `options`.

    Raises:
      ValueError: if it is not; the message lists the options and names the nearest.
    """
    options = list(options)
    if value not in options:
        raise ValueError(
            f"`{name}` must be one of {', '.join(options)}; got {value!r}.{nearest(value, options)}"
        )
