"""Proximal steps and projections: penalties solved exactly after the optimiser's step."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from wdjax.checks import check_number, check_strength_or_schedule, is_known
from wdjax.decay.core import (
    DecayState,
    check_not_injected,
    is_known_zero,
    map_updates,
    next_step,
    rate_at,
    require_params,
    wide_dtype,
)
from wdjax.decay.forms import decoupled_rate
from wdjax.parts import Stacked, leaf_path, resolve_parts, stacked_axes
from wdjax.types import Params, Parts, Schedule, Strength, is_inexact

Axis = int | tuple[int, ...] | None
"""The axes whose entries form one group; None for all but the last: the weights into one unit."""


def proximal_step(
    rates: Sequence[Strength | Schedule],
    prox: Callable[..., Array],
    *,
    parts: Parts = None,
) -> optax.GradientTransformation:
    """Ends each step at the proximal point of a penalty instead of following its gradient.

        z = params + update
        update <- prox(z, c_1 * m_leaf, c_2 * m_leaf, ...) - params
        prox(z, c) = argmin_y 1/2 |y - z|^2 + c * R(y)

    The metric is Euclidean, also after Adam: the threshold of every weight is the same, it is
    not divided by the root of Adam's second moment. After plain descent the fixed points on a
    convex loss are the minima of loss + penalty; after Adam they are not, the zeros are exact in
    both. Goes after the learning rate in the chain. Weights that reach zero are zero exactly; at
    c = 0 the update is unchanged bit by bit.

    Args:
      rates: c_1, c_2, ...: numbers (traced or not) or schedules, such as `decoupled_rate`.
      prox: `(z, *thresholds) -> y` for one leaf, such as `soft_threshold`.
      parts: how much each leaf counts (`wdjax.parts.resolve_parts`); by default every leaf 1.0.

    Raises:
      ValueError: at build, for a rate that is not a scalar, or is known and negative or not
        finite; in `init`, for parts that do not fit the params; in `update`, when `params` is
        missing.

    Source: Parikh & Boyd 2014, Proximal Algorithms.
    """
    for rate in rates:
        check_strength_or_schedule("rate", rate)

    def move(z: Array, multiplier: Any, step: Array, layer_axes: int) -> Array:
        real = jnp.finfo(z.dtype).dtype
        thresholds = [jnp.asarray(rate_at(rate, step) * multiplier, real) for rate in rates]
        return prox(z, *thresholds)

    def check(path: tuple, leaf: Any, multiplier: Any, layer_axes: int) -> None:
        for rate in rates:
            rate_at(rate, jnp.zeros((), jnp.int32))

    return _after_the_step(move, check, parts)


def proximal_l1(
    strength: Strength | Schedule,
    learning_rate: Strength | Schedule,
    *,
    parts: Parts = None,
) -> optax.GradientTransformation:
    """L1 by soft thresholding: makes part of the weights exactly zero.

        params <- sign(z) * max(|z| - eta_t * strength * m_leaf, 0),  z = params + update

    After plain descent this is ISTA on loss + strength * sum |w|; for Adam see `proximal_step`.

    Args:
      strength: >= 0, per unit of the data loss; a number (traced or not) or a schedule.
      learning_rate: eta_t, a number or a schedule.
      parts: how much each leaf counts; by default every leaf 1.0.

    Raises:
      ValueError: as `decoupled_rate` and `proximal_step`.

    Source: Tibshirani 1996; Daubechies, Defrise & De Mol 2004 (ISTA).
    """
    return proximal_step([decoupled_rate(strength, learning_rate)], soft_threshold, parts=parts)


def proximal_l2(
    strength: Strength | Schedule,
    learning_rate: Strength | Schedule,
    *,
    parts: Parts = None,
) -> optax.GradientTransformation:
    """Ridge by its proximal step: implicit decay, stable at every strength.

        params <- z / (1 + eta_t * strength * m_leaf),  z = params + update

    The penalty is `strength / 2 * sum w^2`, as in `l2_penalty`.

    Args:
      strength: >= 0, per unit of the data loss; a number (traced or not) or a schedule.
      learning_rate: eta_t, a number or a schedule.
      parts: how much each leaf counts; by default every leaf 1.0.

    Raises:
      ValueError: as `decoupled_rate` and `proximal_step`.
    """
    return proximal_step([decoupled_rate(strength, learning_rate)], shrink, parts=parts)


def proximal_elastic_net(
    l1: Strength | Schedule,
    l2: Strength | Schedule,
    learning_rate: Strength | Schedule,
    *,
    parts: Parts = None,
) -> optax.GradientTransformation:
    """The elastic net by its proximal step: soft threshold, then shrink.

        params <- soft(z, eta_t * l1 * m_leaf) / (1 + eta_t * l2 * m_leaf),  z = params + update

    The penalty is `l1 * sum |w| + l2 / 2 * sum w^2`, as in `elastic_net_penalty`.

    Args:
      l1: >= 0, strength of the absolute values; a number (traced or not) or a schedule.
      l2: >= 0, strength of the squares; a number (traced or not) or a schedule.
      learning_rate: eta_t, a number or a schedule.
      parts: how much each leaf counts; by default every leaf 1.0.

    Raises:
      ValueError: as `decoupled_rate` and `proximal_step`.

    Source: Zou & Hastie 2005 (with a half before the squares).
    """
    rates = [decoupled_rate(l1, learning_rate), decoupled_rate(l2, learning_rate)]
    return proximal_step(rates, lambda z, a, b: shrink(soft_threshold(z, a), b), parts=parts)


def proximal_group_lasso(
    strength: Strength | Schedule,
    learning_rate: Strength | Schedule,
    *,
    axis: Axis = None,
    parts: Parts = None,
    stacked: Stacked = None,
) -> optax.GradientTransformation:
    """Group lasso by its proximal step: whole groups become exactly zero.

        z_G <- z_G * max(1 - eta_t * strength * m_leaf * sqrt(|G|) / |z_G|, 0)

    The penalty is `strength * sum_G sqrt(|G|) * |w_G|`; the root of the size makes groups of
    different sizes alike.

    Args:
      strength: >= 0, per unit of the data loss; a number (traced or not) or a schedule.
      learning_rate: eta_t, a number or a schedule.
      axis: the axes whose entries form a group; by default all but the last, so a group is the
        weights into one unit, and a bias is a group of one.
      parts: how much each leaf counts; by default every leaf 1.0.
      stacked: the leaves that hold several layers (`wdjax.parts.stacked_axes`); a group lies in
        one layer, and `axis` counts a layer's own axes.

    Raises:
      ValueError: as `decoupled_rate` and `proximal_step`; in `init`, if a decayed leaf has an
        empty group or lacks the axis, or as `stacked_axes`.

    Source: Yuan & Lin 2006.
    """
    rate = decoupled_rate(strength, learning_rate)
    check_strength_or_schedule("rate", rate)

    def move(z: Array, multiplier: Any, step: Array, layer_axes: int) -> Array:
        norms, size = _group_norms(z, axis, layer_axes)
        threshold = jnp.asarray(rate_at(rate, step) * multiplier * size**0.5, norms.dtype)
        alive = norms > threshold
        return z * jnp.where(alive, 1 - threshold / jnp.where(alive, norms, 1), 0)

    return _after_the_step(move, _group_check(axis), parts, stacked)


def project_max_norm(
    radius: Strength, *, axis: Axis = None, parts: Parts = None, stacked: Stacked = None
) -> optax.GradientTransformation:
    """Keeps the norm of every group at most `radius`, by projecting after the step.

        z_G <- z_G * min(1, radius / |z_G|),  z = params + update

    Goes after the learning rate in the chain.

    Args:
      radius: > 0, may be traced.
      axis: the axes whose entries form a group; by default all but the last, so it is the norm
        of the weights into one unit.
      parts: 1.0 projects a leaf, 0.0 leaves it alone, a share between goes that far.
      stacked: the leaves that hold several layers (`wdjax.parts.stacked_axes`); a group lies in
        one layer, and `axis` counts a layer's own axes.

    Raises:
      ValueError: at build, for a radius that is known and not above zero; in `init`, if a
        projected leaf has an empty group or lacks the axis, or as `stacked_axes`.

    Source: Srivastava et al. 2014 (dropout); the same groups as Keras' `MaxNorm(axis=0)`.
    """
    return _project(lambda norms, r: jnp.minimum(1, r / norms), radius, axis, parts, stacked)


def project_sphere(
    radius: Strength, *, axis: Axis = None, parts: Parts = None, stacked: Stacked = None
) -> optax.GradientTransformation:
    """Keeps the norm of every group at exactly `radius`, by projecting after the step.

        z_G <- z_G * radius / |z_G|,  z = params + update

    Decay is pointless beside it. A group of zeros has no direction and stays. Goes after the
    learning rate in the chain.

    Args:
      radius: > 0, may be traced.
      axis: the axes whose entries form a group; by default all but the last, so it is the norm
        of the weights into one unit.
      parts: 1.0 projects a leaf, 0.0 leaves it alone, a share between goes that far.
      stacked: the leaves that hold several layers (`wdjax.parts.stacked_axes`); a group lies in
        one layer, and `axis` counts a layer's own axes.

    Raises:
      ValueError: at build, for a radius that is known and not above zero; in `init`, if a
        projected leaf has an empty group or lacks the axis, or as `stacked_axes`.

    Source: Loshchilov et al. 2024, arXiv:2410.01131 (nGPT: unit rows after every step).
    """
    return _project(lambda norms, r: r / norms, radius, axis, parts, stacked)


def soft_threshold(z: Array, threshold: Any) -> Array:
    """The proximal point of `threshold * |y|`, elementwise: towards zero, and no further.

    Of complex weights it is the modulus that shrinks, `z / |z| * max(|z| - threshold, 0)`.
    """
    return jnp.sign(z) * jnp.maximum(jnp.abs(z) - threshold, 0)


def shrink(z: Array, strength: Any) -> Array:
    """The proximal point of `strength / 2 * y^2`: `z / (1 + strength)`.

    (For `strength * y^2`, without the half, it would be `z / (1 + 2 * strength)`.)
    """
    return z / (1 + strength)


def _project(
    factor: Callable[[Array, Array], Array],
    radius: Strength,
    axis: Axis,
    parts: Parts,
    stacked: Stacked,
) -> optax.GradientTransformation:
    check_number("radius", radius, low=0.0, exclusive_low=True)

    def move(z: Array, multiplier: Any, step: Array, layer_axes: int) -> Array:
        norms, _ = _group_norms(z, axis, layer_axes)
        alive = norms > 0
        scale = factor(jnp.where(alive, norms, 1), jnp.asarray(radius, norms.dtype))
        share = jnp.asarray(multiplier, norms.dtype)
        return z * jnp.where(alive, 1 + share * (scale - 1), 1)

    return _after_the_step(move, _group_check(axis, share=True), parts, stacked)


def _after_the_step(
    move: Callable[[Array, Any, Array, int], Array],
    check: Callable[[tuple, Any, Any, int], None],
    parts: Parts,
    stacked: Stacked = None,
) -> optax.GradientTransformation:
    """The transformation that ends at `move(params + update, multiplier, step, layer_axes)`."""
    check_not_injected(parts)

    def is_active(leaf: Any, multiplier: Any) -> bool:
        return is_inexact(leaf) and not is_known_zero(multiplier)

    def init(params: Params) -> DecayState:
        def checked(path, leaf, multiplier, layer_axes):
            if is_active(leaf, multiplier):
                check(path, leaf, multiplier, layer_axes)

        axes = stacked_axes(stacked, params)
        jax.tree_util.tree_map_with_path(checked, params, resolve_parts(parts, params), axes)
        return DecayState(jnp.zeros((), jnp.int32), ())

    def update(
        updates: PyTree, state: Any, params: Params | None = None
    ) -> tuple[PyTree, DecayState]:
        params = require_params(params)

        def moved(update, leaf, multiplier, layer_axes):
            if not is_active(leaf, multiplier):
                return update
            wide = wide_dtype(leaf)
            leaf = jnp.asarray(leaf, wide)
            z = leaf + update
            new = move(z, multiplier, state.step, layer_axes)
            # `new - leaf` alone would round where nothing moved; `update + (new - z)` alone
            # would miss an exact zero by a rounding.
            return jnp.where(new == 0, -leaf, update + (new - z)).astype(update.dtype)

        axes = stacked_axes(stacked, params)
        updates = map_updates(moved, updates, params, resolve_parts(parts, params), axes)
        return updates, DecayState(next_step(state.step), ())

    return optax.GradientTransformation(init, update)


def _axes(ndim: int, axis: Axis, layer_axes: int) -> tuple[int, ...]:
    """The axes of a group in the leaf, whose first `layer_axes` count layers."""
    if axis is None:
        return tuple(range(layer_axes, ndim - 1))
    given = (axis,) if isinstance(axis, int) else axis
    return tuple(a + layer_axes if a >= 0 else a for a in given)


def _group_norms(z: Array, axis: Axis, layer_axes: int) -> tuple[Array, int]:
    """The norm of every group, kept as axes of 1, and the number of entries in a group."""
    axes = _axes(z.ndim, axis, layer_axes)
    squares = jnp.sum(jnp.square(jnp.abs(z)), axis=axes, keepdims=True)
    alive = squares > 0  # the root has no derivative at zero
    norms = jnp.where(alive, jnp.sqrt(jnp.where(alive, squares, 1)), 0)
    return norms, int(np.prod([z.shape[a] for a in axes], dtype=int))


def _group_check(axis: Axis, *, share: bool = False) -> Callable[[tuple, Any, Any, int], None]:
    def check(path: tuple, leaf: Any, multiplier: Any, layer_axes: int) -> None:
        shape, axes = np.shape(leaf), _axes(np.ndim(leaf), axis, layer_axes)
        if any(not layer_axes - len(shape) <= a < len(shape) for a in axes):
            of_layers = f", the first {layer_axes} of layers" if layer_axes else ""
            raise ValueError(
                f"`axis` {axis} is not an axis of {leaf_path(path)!r}, which has shape "
                f"{shape}{of_layers}. "
                "Leave it out by `parts`, or pass axis=None for all but the last."
            )
        if 0 in shape:
            raise ValueError(f"{leaf_path(path)!r} of shape {shape} has an empty group.")
        if share and is_known(multiplier) and multiplier > 1:
            raise ValueError(
                f"`parts` gives {leaf_path(path)!r} the multiplier {float(multiplier):g}; a "
                "projection goes at most all the way, 1.0."
            )

    return check
