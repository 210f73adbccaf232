"""The rule of weight 0: such a row adds nothing to a value or a gradient, whatever it holds."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from wdjax.checks import check_weights, is_known
from wdjax.types import is_inexact, wide


def fill_inactive_rows(inputs: PyTree, targets: PyTree, weights: Any) -> tuple[PyTree, PyTree]:
    """Replaces rows of weight 0 by rows that have one, so what a model sees is real and finite.

    Inactive row j, inputs and targets, by the (j mod n)-th of the n active rows. With weights
    `[batch, time]`, a row is inactive where all its weights are 0, and the target of inactive
    position t of another is replaced by that of the (t mod n)-th of its n active positions: a
    real label, though not of that position. If nothing is active, floats become numbers in
    [1/2, 3/2) that differ, since models are singular at zero or where all values are equal, and
    integers become 0.

    Raises:
      ValueError: for weights that are not one per row, or per row and time.
    """
    _check_fit(inputs, targets, jnp.shape(weights))
    inputs, targets = jax.tree.map(jnp.asarray, (inputs, targets))
    known = is_known(weights)
    if known and np.all(np.asarray(weights) != 0):
        return inputs, targets
    active = jnp.asarray(weights) != 0

    def filled(inputs: PyTree, targets: PyTree) -> tuple[PyTree, PyTree]:
        row_active = active.any(axis=tuple(range(1, active.ndim)))
        rows, some_active = _stand_ins(row_active), row_active.any()
        take = lambda leaf: _or_ramp(some_active, leaf[rows])
        inputs, targets = jax.tree.map(take, (inputs, targets))
        if active.ndim > 1:
            of_row = active[rows].reshape(active.shape[0], -1)
            positions = jax.vmap(_stand_ins)(of_row)
            targets = jax.tree.map(lambda y: _take_positions(y, positions, active.ndim), targets)
        return inputs, targets

    if known:
        return filled(inputs, targets)
    # Nearly every batch is all active. Then nothing is moved, least of all between devices.
    return jax.lax.cond(jnp.all(active), lambda *same: same, filled, inputs, targets)


def validated_weights(weights: Any) -> Array:
    """The weights in float32 at least; a negative one that is traced becomes NaN.

    Raises:
      ValueError: for a known weight that is negative or not finite.
    """
    if is_known(weights):
        check_weights("weights", weights)
    weights = wide(weights)
    return jnp.where(weights >= 0, weights, jnp.nan)


def weighted_sum(weights: Any, losses: Array) -> Array:
    """`sum_i w_i l_i` in float32 at least; where w is 0, l may be anything, and so its slope."""
    weights, losses = wide(weights), wide(losses)
    return jnp.sum(weights * jnp.where(weights != 0, losses, 0))


def _stand_ins(active: Array) -> Array:
    """`[n] -> [n]`: an active index for itself, the (j mod number)-th active one for another."""
    here = jnp.arange(active.shape[0])
    active_first = jnp.argsort(~active, stable=True)
    return jnp.where(active, here, active_first[here % jnp.maximum(jnp.sum(active), 1)])


def _or_ramp(some_active: Array, leaf: Array) -> Array:
    """The leaf, or numbers that any model can read: see `fill_inactive_rows`."""
    if is_inexact(leaf):
        ramp = 0.5 + (37 * jnp.arange(leaf.size) % 61).reshape(leaf.shape) / 61
        return jnp.where(some_active, leaf, ramp.astype(leaf.dtype))
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    return jnp.where(some_active, leaf, jnp.zeros((), leaf.dtype))


def _take_positions(target: Array, positions: Array, num_axes: int) -> Array:
    """The targets at `positions[batch, position]`, the axes behind the first ones as one."""
    if target.ndim < num_axes:
        return target
    flat = target.reshape(*positions.shape, *target.shape[num_axes:])
    return jax.vmap(lambda row, index: row[index])(flat, positions).reshape(target.shape)


def _check_fit(inputs: PyTree, targets: PyTree, shape: tuple[int, ...]) -> None:
    leaves = [(x, 1) for x in jax.tree.leaves(inputs)]
    leaves += [
        (y, len(shape) if jnp.ndim(y) >= len(shape) else 1) for y in jax.tree.leaves(targets)
    ]
    for leaf, num_axes in leaves:
        if jnp.shape(leaf)[:num_axes] != shape[:num_axes]:
            raise ValueError(
                f"`weights` of shape {shape} do not fit an input or target of shape "
                f"{jnp.shape(leaf)}: give one weight per example, or per example and time."
            )
