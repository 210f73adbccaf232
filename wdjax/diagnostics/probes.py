"""What an audit feeds an optimiser: stand-ins for leaves that have no value, and zero gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wdjax.diagnostics.equilibrium import fed
from wdjax.types import Params, is_inexact


def is_shape(leaf: Any) -> bool:
    """Whether it stands for an array that was not given."""
    return isinstance(leaf, jax.ShapeDtypeStruct)


def length(w: Any) -> float:
    """The Euclidean norm of all its entries."""
    return float(np.linalg.norm(np.ravel(w)))


def probe_of(leaf: Any) -> Any:
    """The leaf in float32 at least; ones in place of a shape or of zeros alone."""
    if not is_inexact(leaf):
        return jnp.zeros(np.shape(leaf), leaf.dtype) if is_shape(leaf) else leaf
    wide = jnp.promote_types(leaf.dtype, jnp.float32)
    if is_shape(leaf) or not np.any(np.asarray(leaf)):
        return np.ones(np.shape(leaf), wide)
    return np.asarray(leaf, wide)


def zero_gradients(params: Params) -> Params:
    """A gradient of zeros."""
    return fed(jax.tree.map(_zero_gradient, params))


def _zero_gradient(leaf: Any) -> Any:
    """Zeros, of an integer leaf too; a key has none."""
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return leaf if is_key else jnp.zeros(leaf.shape, leaf.dtype)
