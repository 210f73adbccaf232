"""Columns of mean 0 and deviation 1: measured on the training part, applied to both."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from wdjax.types import Batch


class Scaling(NamedTuple):
    """`standardised = (values - mean) * scale`, column by column."""

    mean: Array
    scale: Array


def standardize(train: Batch, valid: Batch, *, inputs: bool, targets: bool) -> tuple[Batch, Batch]:
    """Gives each column weighted mean 0 and standard deviation 1 on `train`; both are mapped.

        (x - mean) / sqrt(sum_i w_i (x_i - mean)^2 / sum_i w_i),  mean = sum_i w_i x_i / sum_i w_i

    A penalty means nothing on unscaled columns. A column that is constant on `train` becomes 0
    in both, and so do rows of weight 0, whatever they held. Pure, so a fold can be standardised
    inside the compiled program.
    """
    for field, wanted in (("inputs", inputs), ("targets", targets)):
        if wanted:
            scaling = measure_scaling(getattr(train, field), train.weights)
            train, valid = (
                part._replace(**{field: apply_scaling(getattr(part, field), part.weights, scaling)})
                for part in (train, valid)
            )
    return train, valid


def measure_scaling(values: ArrayLike, weights: ArrayLike) -> Scaling:
    """The weighted mean and inverse standard deviation of each column.

    Args:
      values: `[batch, ...]`; each position of the trailing axes is a column.
      weights: `[batch]`, >= 0; rows of weight 0 count nothing, even if they hold NaN.
    """
    values, weights = jnp.asarray(values), jnp.asarray(weights)
    active = _per_row(weights > 0, values)
    shares = _per_row(weights / jnp.where(jnp.any(weights > 0), jnp.sum(weights), 1.0), values)
    values = jnp.where(active, values, 0)
    mean = jnp.sum(shares * values, axis=0)
    variance = jnp.sum(shares * jnp.where(active, values - mean[None], 0) ** 2, axis=0)
    # Rounding gives a constant column a tiny variance, so constancy is asked of the values.
    low = jnp.min(jnp.where(active, values, jnp.inf), axis=0)
    high = jnp.max(jnp.where(active, values, -jnp.inf), axis=0)
    varies = (high > low) & (variance > 0)
    scale = jnp.where(varies, 1 / jnp.sqrt(jnp.where(varies, variance, 1.0)), 0.0)
    return Scaling(mean, scale)


def apply_scaling(values: ArrayLike, weights: ArrayLike, scaling: Scaling) -> Array:
    """`(values - mean) * scale`, and 0 in rows of weight 0."""
    values = jnp.asarray(values)
    active = _per_row(jnp.asarray(weights) > 0, values)
    centred = jnp.where(active, values, 0) - scaling.mean[None]
    return jnp.where(active, centred * scaling.scale[None], 0)


def undo_scaling(values: ArrayLike, scaling: Scaling) -> Array:
    """`values / scale + mean`: numbers in the unit that `scaling` was measured in.

    A column that never varied has scale 0 and is its mean.
    """
    mean, scale = (jnp.asarray(part) for part in scaling)
    unit = jnp.where(scale > 0, 1 / jnp.where(scale > 0, scale, 1), 0)
    return jnp.asarray(values) * unit[None] + mean[None]


def _per_row(rows: Array, values: Array) -> Array:
    return rows.reshape(rows.shape + (1,) * (values.ndim - 1))
