"""The small pieces the models here share."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from wdjax.checks import check_number, is_known
from wdjax.models.products import dot_general
from wdjax.types import Strength, is_inexact

glorot = nn.initializers.glorot_uniform()


def dropout(key: Any, inputs: Float[Array | np.ndarray, "..."], rate: Strength) -> Array:
    """Zeroes each unit with probability `rate` and scales the others, so the mean stays.

        output = keep * input / (1 - rate),  keep ~ Bernoulli(1 - rate)

    The rate may be traced, which flax's Dropout refuses; a rate known to be 0 adds no
    operation and needs no key. The masks are drawn afresh from `key` and step where the rate
    crosses a random number, so a derivative in the rate sees the scale only.

    Raises:
      ValueError: if a known rate is outside [0, 1).

    Source: Srivastava et al. 2014 (the inverted form).
    """
    check_rate("rate", rate)
    if is_known(rate) and float(rate) == 0.0:
        return jnp.asarray(inputs)
    keep_rate = 1.0 - jnp.asarray(rate)
    keep = jax.random.bernoulli(key, keep_rate, inputs.shape)
    return jnp.where(keep, inputs / keep_rate.astype(inputs.dtype), 0.0)


def check_rate(name: str, rate: Strength) -> None:
    """Checks that a dropout rate is a scalar and, when it is known, in [0, 1).

    Raises:
      ValueError: if it is not.
    """
    check_number(name, rate, low=0.0, high=1.0)
    if is_known(rate) and float(rate) == 1.0:
        raise ValueError(f"`{name}` must be below 1: a rate of 1 drops every unit.")


def param_dtype(inputs: ArrayLike) -> np.dtype:
    """The dtype for params: that of the inputs, float32 at least; JAX's default for integers."""
    dtype = jnp.result_type(inputs)
    return jnp.promote_types(dtype if is_inexact(inputs) else jnp.result_type(float), np.float32)


def dense_like(inputs: Array | np.ndarray) -> Callable[..., nn.Dense]:
    """`nn.Dense` as the models here use it: Glorot uniform, params in the dtype for `inputs`."""
    return partial(
        nn.Dense, kernel_init=glorot, param_dtype=param_dtype(inputs), dot_general=dot_general
    )


class Dropout(nn.Module):
    """`dropout` in a linen module, with the module's own key."""

    rate: Any

    def __call__(self, inputs: Array, train: bool) -> Array:
        """Drops in training; in evaluation, or at a known rate of 0, returns the inputs."""
        if not train or (is_known(self.rate) and float(self.rate) == 0.0):
            return inputs
        return dropout(self.make_rng("dropout"), inputs, self.rate)
