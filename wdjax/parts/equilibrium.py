"""Where decay leads a part: how far directionless gradients carry it, against the rate."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wdjax.types import Params, is_inexact


class Walk(NamedTuple):
    """How a leaf moves under gradients of independent directions, without its decay."""

    travel: float
    """The distance gone in T steps divided by sqrt(T): with momentum, more than a step."""
    stride: float
    """The root mean square length of a step."""
    pulls: np.ndarray
    """`[step]`: what the decay removes of the leaf on the way: behind a gate, less than at rest."""


def measure_walk(
    tx: optax.GradientTransformation, params: Params, num_steps: int
) -> list[Walk | None]:
    """Per leaf, the walk under `num_steps` random gradients; None for integers and keys.

        d_t = (update_t(g) - update_t(-g)) / 2,  g ~ N(0, 1)
        travel = |sum_t d_t| / sqrt(T),  stride = sqrt(mean_t |d_t|^2)
        pull_t = -<p_t, w> / <w, w>,  p_t = (update_t(g) + update_t(-g)) / 2

    The difference takes the decay out, whose part is in both, and the sum leaves it. The weights
    stay where they are.
    """
    leaves, structure = jax.tree.flatten(params)
    moving = [is_inexact(w) for w in leaves]
    # Host arrays: each operation on the device would be a small program of its own.
    is_key = lambda w: jnp.issubdtype(w.dtype, jax.dtypes.prng_key)
    still = [w if is_key(w) else np.zeros(w.shape, w.dtype) for w in leaves]
    # Threefry would take longer than the updates on a CPU.
    key = jax.random.key(0, impl="unsafe_rbg")
    ends = np.cumsum([0, *(w.size if m else 0 for w, m in zip(leaves, moving, strict=True))])

    def gradients(step):
        # One draw for all leaves: XLA takes a second less to compile one than one a leaf.
        drawn = jax.random.normal(jax.random.fold_in(key, step), (int(ends[-1]),))
        of = lambda i, w: drawn[ends[i] : ends[i + 1]].reshape(w.shape).astype(w.dtype)
        return structure.unflatten(
            [of(i, w) if m else w for i, (w, m) in enumerate(zip(still, moving, strict=True))]
        )

    def one_step(carry, step):
        states, sums, squares = carry
        g = gradients(step)
        minus = jax.tree.map(lambda x: -x if is_inexact(x) else x, g)
        (up, first), (down, second) = (
            tx.update(x, state, params) for x, state in zip((g, minus), states, strict=True)
        )
        pairs = list(zip(jax.tree.leaves(up), jax.tree.leaves(down), moving, strict=True))
        steps = [(u - d) / 2 if m else jnp.zeros(()) for u, d, m in pairs]
        decays = [-(u + d) / 2 if m else jnp.zeros(()) for u, d, m in pairs]
        sums = [s + d for s, d in zip(sums, steps, strict=True)]
        squares = [s + _square(d) for s, d in zip(squares, steps, strict=True)]
        pulls = [along(d, w) for d, w in zip(decays, leaves, strict=True)]
        return ((first, second), sums, squares), pulls

    def run():
        state = tx.init(params)
        sums = [jnp.asarray(w) if m else jnp.zeros(()) for w, m in zip(still, moving, strict=True)]
        carry = (state, state), sums, [_square(s) for s in sums]
        (_, sums, squares), pulls = jax.lax.scan(one_step, carry, jnp.arange(num_steps))
        return [_square(s) for s in sums], squares, pulls

    found = jax.device_get(jax.jit(run)())
    return [
        Walk(math.sqrt(far / num_steps), math.sqrt(each / num_steps), pulls) if m else None
        for far, each, pulls, m in zip(*found, moving, strict=True)
    ]


def equilibrium(walk: Walk, rate: float) -> tuple[float, float]:
    """The norm at which decay at `rate` balances the walk, and the angle of a step there.

        norm = travel / sqrt(1 - (1 - rate)^2),  tan(angle) = stride / ((1 - rate) * norm)

    Infinite and 0 without decay.
    """
    if not 0 < rate < 2:
        return math.inf, 0.0
    norm = walk.travel / math.sqrt(1 - (1 - rate) ** 2)
    return norm, float(np.arctan2(walk.stride, (1 - rate) * norm))


def along(x: Any, w: Any) -> Any:
    """<x, w> / <w, w>; 0 for integers, keys, and where w is zero."""
    if not is_inexact(w) or not w.size:
        return jnp.zeros(())
    square = _square(w)
    return jnp.where(square > 0, jnp.real(jnp.vdot(w, x)) / jnp.where(square > 0, square, 1), 0)


def _square(x: Any) -> Any:
    return jnp.sum(jnp.square(jnp.abs(x)))
