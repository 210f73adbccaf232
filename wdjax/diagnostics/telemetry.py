"""What a person looks at to see decay work: norms, rotation, timescales, lost updates."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from wdjax.checks import check_number, check_strength_or_schedule
from wdjax.decay.core import Gate, rate_at, wide_dtype
from wdjax.parts import leaf_path, resolve_parts
from wdjax.parts.rules import check_distinct_paths
from wdjax.step import TrainState
from wdjax.types import Parts, Schedule, Strength, is_inexact


class PartTelemetry(NamedTuple):
    """One part at one step; all scalars."""

    norm: Array
    """|w|, before the update."""
    angle: Array
    """Radians between w before and after the update; 0 where either is zero."""
    timescale: Array
    """1 / (c_t * m): the steps over which updates are averaged; infinite without decay."""
    equilibrium_norm: Array
    """The norm at which decay and a step of this size balance; infinite where none acts."""
    equilibrium_angle: Array
    """The angle turned per step there; 0 without decay."""
    gradient_ratio: Array
    """|g| / |w|; 0 where w is zero."""
    gated_share: Array
    """The share of weights that the gate spares this step; 0 without a gate or decay."""
    stuck_share: Array
    """The share of weights with an update that their dtype could not take."""


def measure_parts(
    state: TrainState,
    grads: PyTree,
    updates: PyTree,
    *,
    rate: Strength | Schedule = 0.0,
    parts: Parts = None,
    gate: Gate | None = None,
    momentum: Strength = 0.0,
) -> dict[str, PartTelemetry]:
    """Measures every part (leaf) at one step, and predicts where decay will lead it.

    With d = update + c_t * m_leaf * gate * w, the step without its decay, and the rate that the
    gate leaves, c = c_t * m_leaf * <gate * w, w> / <w, w>, a weight that takes steps of this size
    in directions that no longer depend on it ends up with

        equilibrium_norm^2 = |d|^2 * (1 + left * momentum) / (1 - left * momentum) / (1 - left^2)
        tan(equilibrium_angle) = |d| / (left * equilibrium_norm),  left = 1 - c

    so at momentum 0 cos(equilibrium_angle) = 1 - c: about sqrt(2 c) per step. That holds for
    layers before a norm, whose gradient is orthogonal to them, and with a gate to first order in
    the step; where a loss pulls towards a minimum it is only a scale. Pure: give it to
    `make_train_step` or `make_fit`, or call it inside a step of your own.

    Args:
      state: the step and the weights before the update.
      grads: the gradients of the weights.
      updates: what will be added to them, decay included.
      rate: c_t of the decay in use, a number (traced or not) or a schedule, such as
        `decoupled_rate(strength, learning_rate)`.
      parts: the multipliers of the decay in use.
      gate: the gate of the decay in use; it is read at the finished update, which for
        `cautious` is the same as before the decay.
      momentum: in [0, 0.9999]: the decay of the optimiser's first moment, by which its steps
        resemble each other; Adam's b1.

    Returns:
      A dictionary from the parts' paths to scalars; leaves of integers and keys are left out.

    Raises:
      ValueError: if the rate or the momentum is known and out of range, the parts do not fit, or
        two leaves have one joined path.

    Source: Kosson, Messmer & Jaggi 2024, arXiv:2305.17212.
    """
    check_strength_or_schedule("rate", rate)
    check_number("momentum", momentum, low=0.0, high=0.9999)
    c = rate_at(rate, state.step)
    check_distinct_paths(state.params, "the tables of telemetry")
    table: dict[str, PartTelemetry] = {}

    def measure(path: tuple, leaf: Any, grad: Any, update: Any, multiplier: Any) -> None:
        if is_inexact(leaf):
            table[leaf_path(path)] = _measure(leaf, grad, update, c * multiplier, gate, momentum)

    multipliers = resolve_parts(parts, state.params)
    jax.tree_util.tree_map_with_path(measure, state.params, grads, updates, multipliers)
    return table


def _measure(
    leaf: Any, grad: Any, update: Any, c: Any, gate: Gate | None, momentum: Any
) -> PartTelemetry:
    wide = wide_dtype(leaf)
    w, u = jnp.asarray(leaf, wide), jnp.asarray(update, wide)
    c = jnp.asarray(c, jnp.finfo(wide).dtype)
    share = jnp.ones_like(w) if gate is None else jnp.asarray(gate(u, w), wide)
    d = _norm(u + c * share * w)
    kept = c if gate is None else c * _share_kept(share, w)
    left = 1 - kept
    alike = (1 + left * momentum) / (1 - left * momentum)
    norm = _norm(w)
    decays, draws = (c > 0) & (c < 2), (kept > 0) & (kept < 2)
    balance = jnp.where(draws, 1 - left**2, 1)
    equilibrium = d * jnp.sqrt(alike / balance)
    after = (jnp.asarray(leaf) + update).astype(jnp.result_type(leaf))
    stuck = (u != 0) & (after == leaf)
    return PartTelemetry(
        norm=norm,
        angle=_angle(w, jnp.asarray(after, wide)),
        timescale=jnp.where(decays, 1 / jnp.where(decays, c, 1), jnp.inf),
        equilibrium_norm=jnp.where(draws, equilibrium, jnp.inf),
        equilibrium_angle=jnp.where(draws, jnp.arctan2(d, left * equilibrium), 0),
        gradient_ratio=_ratio(_norm(jnp.asarray(grad, wide)), norm),
        gated_share=jnp.where(decays, 1 - jnp.mean(jnp.abs(share)), 0),
        stuck_share=jnp.mean(stuck, dtype=norm.dtype),
    )


def _share_kept(share: Array, w: Array) -> Array:
    """<share * w, w> / <w, w>, what the gate leaves of the rate; 1 where w is zero."""
    squares = jnp.square(jnp.abs(w))
    whole = jnp.sum(squares)
    return jnp.where(whole > 0, _ratio(jnp.sum(jnp.real(share) * squares), whole), 1)


def _norm(x: Array) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(jnp.abs(x))))


def _ratio(a: Array, b: Array) -> Array:
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)


def _angle(a: Array, b: Array) -> Array:
    """The angle between two arrays: by half-angles, since arccos is blind below 1e-4."""
    norm_a, norm_b = _norm(a), _norm(b)
    a = a / jnp.where(norm_a > 0, norm_a, 1)
    b = b / jnp.where(norm_b > 0, norm_b, 1)
    angle = 2 * jnp.arctan2(_norm(a - b), _norm(a + b))
    return jnp.where((norm_a > 0) & (norm_b > 0), angle, 0)
