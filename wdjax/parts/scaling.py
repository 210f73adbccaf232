"""Weights of parts on the finished update, and parts that spare what should not decay."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from wdjax.parts.rules import (
    Stacked,
    check_not_injected,
    is_hidden,
    leaf_path,
    leaf_role,
    resolve_parts,
    stacked_axes,
)
from wdjax.types import Params, Parts, is_inexact


def scale_by_parts(parts: Parts) -> optax.GradientTransformation:
    """Multiplies each leaf's update: how fast each part learns, under any optimiser.

        update <- m_leaf * update

    Goes after the preconditioner: `optax.chain(optax.scale_by_adam(), scale_by_parts(parts),
    optax.scale_by_learning_rate(eta), decay)`. Before it, or on the data loss, Adam divides a
    constant multiplier out again. Before the decay it leaves that alone; after it, it scales
    both. Multipliers may be traced. Leaves whose update is None stay.

    (On the data loss beside a penalty, what is divided out of the one divides the other: a constant
    m is then a penalty of strength / m.)

    Args:
      parts: how much each leaf counts (`wdjax.parts.resolve_parts`); 0.0 stops a part.

    Raises:
      ValueError: at build, for parts that `optax.inject_hyperparams` has run as a schedule; in
        `init` and `update`, for parts that do not fit the params; in `update`, when
        `params` is missing.

    Example:
      >>> tx = optax.chain(optax.sgd(0.1), wdjax.scale_by_parts({"head": 0.5, "*": 1.0}))
      >>> params = grads = {"body": jnp.ones(1), "head": jnp.ones(1)}
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> print(updates["body"], updates["head"])
      [-0.1] [-0.05]
    """

    check_not_injected(parts)
    left_alone = lambda update: update is None or is_hidden(update)

    def init(params: Params) -> optax.EmptyState:
        resolve_parts(parts, params)
        return optax.EmptyState()

    def update(updates: PyTree, state: Any, params: Params | None = None) -> tuple[PyTree, Any]:
        if params is None:
            raise ValueError(
                "`scale_by_parts` needs the weights: call `tx.update(updates, state, params)`."
            )

        def scaled(update, leaf, multiplier):
            if left_alone(update) or not is_inexact(leaf):
                return update
            return (update * jnp.asarray(multiplier, update.dtype)).astype(update.dtype)

        multipliers = resolve_parts(parts, params)
        return jax.tree.map(scaled, updates, params, multipliers, is_leaf=left_alone), state

    return optax.GradientTransformation(init, update)


def no_norms_or_biases(params: Params, *, stacked: Stacked = None) -> PyTree:
    """A `parts` function: 0.0 for norm gains and biases, by their `leaf_role`, else 1.0.

    Raises:
      ValueError: for `stacked` as `wdjax.parts.stacked_axes`.
    """

    def of(path: tuple, leaf: Any, layer_axes: Any) -> float:
        return 0.0 if leaf_role(leaf_path(path), leaf, layer_axes) in ("gain", "bias") else 1.0

    return jax.tree_util.tree_map_with_path(of, params, stacked_axes(stacked, params))
