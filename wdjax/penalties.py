"""Penalties: functions of the params alone, added once to the data loss."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Scalar

from wdjax.checks import check_strength
from wdjax.parts import resolve_parts
from wdjax.types import Params, Parts, PenaltyFn, Strength, is_inexact


def l2_penalty(strength: Strength, parts: Parts = None) -> PenaltyFn:
    """Builds the L2 penalty, whose gradient is `strength * m_leaf * w`: coupled decay.

        penalty(params) = strength / 2 * sum_leaf m_leaf * sum w^2

    Computed in float32 at least, so that small weights of a half-precision leaf count.

    Args:
      strength: scalar >= 0, per unit of the data loss (a mean over examples). May be traced.
      parts: how much each leaf counts (`wdjax.parts.resolve_parts`); by default every leaf 1.0.

    Raises:
      ValueError: at build, for a strength that is known and negative or not finite; in
        `penalty`, for parts that do not fit the params.

    Source: Hanson & Pratt 1988; the half is that of `tf.nn.l2_loss` (Keras' `L2` has none).

    Example:
      >>> penalty = wdjax.l2_penalty(0.1, parts={"kernel": 1.0, "bias": 0.0})
      >>> print(penalty({"kernel": jnp.array([3.0, 4.0]), "bias": jnp.array([5.0])}))
      1.25
    """
    check_strength("strength", strength)
    return lambda params: (
        0.5 * jnp.asarray(strength) * _sum_over_leaves(_sum_of_squares, params, parts)
    )


def l1_penalty(strength: Strength, parts: Parts = None) -> PenaltyFn:
    """Builds the L1 penalty, whose subgradient is `strength * m_leaf * sign(w)`.

        penalty(params) = strength * sum_leaf m_leaf * sum abs(w)

    A subgradient step makes weights small, not exactly zero; a proximal step does.

    Args:
      strength: scalar >= 0, per unit of the data loss. May be traced.
      parts: how much each leaf counts (`wdjax.parts.resolve_parts`); by default every leaf 1.0.

    Raises:
      ValueError: at build, for a strength that is known and negative or not finite; in
        `penalty`, for parts that do not fit the params.

    Source: Tibshirani 1996.

    Example:
      >>> print(wdjax.l1_penalty(0.5)({"kernel": jnp.array([3.0, -4.0])}))
      3.5
    """
    check_strength("strength", strength)
    return lambda params: (
        jnp.asarray(strength) * _sum_over_leaves(_sum_of_magnitudes, params, parts)
    )


def elastic_net_penalty(l1: Strength, l2: Strength, parts: Parts = None) -> PenaltyFn:
    """Builds the elastic net, `l1_penalty(l1, parts) + l2_penalty(l2, parts)`.

        penalty(params) = sum_leaf m_leaf * (l1 * sum abs(w) + l2 / 2 * sum w^2)

    Args:
      l1: scalar >= 0, strength of the absolute values. May be traced.
      l2: scalar >= 0, strength of the squares. May be traced.
      parts: how much each leaf counts (`wdjax.parts.resolve_parts`); by default every leaf 1.0.

    Raises:
      ValueError: as `l1_penalty` and `l2_penalty`.

    Source: Zou & Hastie 2005 (with a half before the squares, as in `l2_penalty`).
    """
    check_strength("l1", l1)
    check_strength("l2", l2)
    absolute, square = l1_penalty(l1, parts), l2_penalty(l2, parts)
    return lambda params: absolute(params) + square(params)


def _sum_over_leaves(term: Callable[[Array], Array], params: Params, parts: Parts) -> Scalar:
    """`sum_leaf m_leaf * term(leaf)` over the leaves of inexact dtype."""
    multipliers = jax.tree.leaves(resolve_parts(parts, params))
    total = jnp.zeros((), jnp.float32)
    for leaf, multiplier in zip(jax.tree.leaves(params), multipliers, strict=True):
        known_zero = isinstance(multiplier, float) and multiplier == 0.0
        if is_inexact(leaf) and not known_zero:
            leaf = jnp.asarray(leaf)
            wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
            total = total + multiplier * term(wide)
    return total


def _sum_of_squares(leaf: Array) -> Scalar:
    return jnp.sum(jnp.square(jnp.abs(leaf)) if jnp.iscomplexobj(leaf) else jnp.square(leaf))


def _sum_of_magnitudes(leaf: Array) -> Scalar:
    return jnp.sum(jnp.abs(leaf))
