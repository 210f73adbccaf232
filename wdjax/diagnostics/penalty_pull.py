"""What a penalty in the loss does to each leaf, from the loss's own gradient."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from wdjax.types import Batch, LossFn, Params, is_inexact


def measure_penalty(
    params: Params, loss_fn: LossFn | None, batch: Batch | None, model_state: PyTree
) -> tuple[list[float], list[float | None]]:
    """Per leaf: the penalty's gradient along the weight per square of it, and its share."""
    leaves, structure = jax.tree.flatten(params)
    if loss_fn is None or batch is None:
        return [0.0] * len(leaves), [None] * len(leaves)
    of = lambda p, b: loss_fn(p, b, model_state=model_state, train=False)[0]
    where = [i for i, leaf in enumerate(leaves) if is_inexact(leaf)]

    def penalty(moving, batch):
        filled = list(leaves)
        for i, leaf in zip(where, moving, strict=True):
            filled[i] = leaf
        nothing = batch._replace(weights=jnp.zeros_like(jnp.asarray(batch.weights)))
        return of(structure.unflatten(filled), nothing)

    @jax.jit
    def measure(moving, batch):
        value, grads = jax.value_and_grad(penalty)(moving, batch)
        along = [_dot(g, w) for g, w in zip(grads, moving, strict=True)]
        return value, [_dot(w, w) for w in moving], along

    moving = [leaves[i] for i in where]
    loss = float(jax.jit(of)(params, batch))
    value, squares, along = jax.tree.map(float, measure(moving, batch))
    pulls: list[float] = [0.0] * len(leaves)
    shares: list[float | None] = [0.0] * len(leaves)
    for place, i in enumerate(where):
        w, square, pull = moving[place], squares[place], along[place]
        replaced = lambda by, place=place: [*moving[:place], by, *moving[place + 1 :]]
        if not square and w.size:
            # At zero L2 has no gradient: ask at one.
            at_one = measure(replaced(np.ones(w.shape, w.dtype)), batch)
            square, pull = w.size, float(at_one[2][place])
        pulls[i] = pull / square if square else math.nan
        if pulls[i] != 0 and squares[place] and loss != 0:
            without = float(measure(replaced(np.zeros(w.shape, w.dtype)), batch)[0])
            shares[i] = (value - without) / loss
    return pulls, shares


def _dot(x: Any, y: Any) -> Array:
    return jnp.real(jnp.vdot(x, y))
