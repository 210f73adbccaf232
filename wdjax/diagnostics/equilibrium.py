"""Where decay leads a part: how far directionless gradients carry it, against the rate."""

import math
from collections.abc import Callable
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


def measure_walk(tx: Any, num_steps: int) -> Callable[[Params], list[Walk | None]]:
    """Builds `params -> walks`: per leaf, that under `num_steps` random gradients; None for keys.

        d_t = (update_t(g, w) + update_t(g, -w)) / 2,  g ~ N(0, 1)
        travel = |sum_t d_t| / sqrt(T),  stride = sqrt(mean_t |d_t|^2)
        pull_t = -<p_t, w> / <w, w>,  p_t = (update_t(g, w) - update_t(g, -w)) / 2

    The sum takes the decay out, which changes sign with the weights, and the difference leaves
    it alone. The weights stay where they are. One program for params of any size.
    """

    @jax.jit
    def run(params: Params):
        leaves, structure = jax.tree.flatten(params)
        moving = [is_inexact(w) for w in leaves]
        ends = np.cumsum([0, *(w.size if m else 0 for w, m in zip(leaves, moving, strict=True))])
        is_key = lambda w: jnp.issubdtype(w.dtype, jax.dtypes.prng_key)
        still = [w if is_key(w) else jnp.zeros(w.shape, w.dtype) for w in leaves]
        # Threefry would take longer than the updates on a CPU.
        key = jax.random.key(0, impl="unsafe_rbg")

        def gradients(step):
            # One draw for all leaves: XLA takes a second less to compile one than one a leaf.
            drawn = jax.random.normal(jax.random.fold_in(key, step), (int(ends[-1]),))
            of = lambda i, w: drawn[ends[i] : ends[i + 1]].reshape(w.shape).astype(w.dtype)
            grads = [
                of(i, w) if m else w
                for i, w, m in zip(range(len(still)), still, moving, strict=True)
            ]
            return fed(structure.unflatten(grads))

        sides = structure.unflatten(
            [jnp.stack([w, -w if m else w]) for w, m in zip(leaves, moving, strict=True)]
        )

        def one_step(carry, step):
            states, sums = carry
            grads = gradients(step)
            updates, states = jax.vmap(lambda s, w: tx.update(grads, s, w))(states, sides)
            found = zip(sums, jax.tree.leaves(updates), leaves, moving, strict=True)
            sums, numbers = zip(*(_follow(*of_leaf) for of_leaf in found), strict=True)
            return (states, list(sums)), numbers

        sums = [x if m else jnp.zeros(()) for x, m in zip(still, moving, strict=True)]
        (_, sums), numbers = jax.lax.scan(
            one_step, (jax.vmap(tx.init)(sides), sums), jnp.arange(num_steps)
        )
        return [_square(s) for s in sums], numbers

    def walks(params: Params) -> list[Walk | None]:
        found = zip(jax.tree.leaves(params), *jax.device_get(run(params)), strict=True)
        return [
            Walk(
                math.sqrt(far / num_steps),
                math.sqrt(numbers[:, 0].sum() / num_steps),
                numbers[:, 1],
            )
            if is_inexact(w)
            else None
            for w, far, numbers in found
        ]

    return walks


def _follow(total: Any, u: Any, w: Any, moves: bool) -> tuple[Any, Any]:
    """The distance so far with one more step, and `[|d_t|^2, pull_t]`."""
    if not moves:
        return total, jnp.zeros(2)
    step = (u[0] + u[1]) / 2
    rows = jnp.stack([step, (u[1] - u[0]) / 2, w]).reshape(3, -1)
    products = gram(rows)
    pull = jnp.where(products[2, 2] > 0, products[1, 2], 0) / jnp.where(
        products[2, 2] > 0, products[2, 2], 1
    )
    return total + step, jnp.stack([products[0, 0], pull])


def equilibrium(walk: Walk, rate: float) -> tuple[float, float]:
    """The norm at which decay at `rate` balances the walk, and the angle of a step there.

        norm = travel / sqrt(1 - (1 - rate)^2),  tan(angle) = stride / ((1 - rate) * norm)

    That is meant for layers before a norm: their gradient is orthogonal to them, so nothing but
    these two moves their size. Elsewhere, where the loss itself asks for a size, it is only a
    scale. Infinite and 0 without decay.
    """
    if not 0 < rate < 2:
        return math.inf, 0.0
    norm = walk.travel / math.sqrt(1 - (1 - rate) ** 2)
    return norm, float(np.arctan2(walk.stride, (1 - rate) * norm))


def fed(tree: Params) -> Params:
    """What of a tree like the params the optimiser takes gradients of: of lookahead's, the fast."""
    return tree.fast if isinstance(tree, optax.LookaheadParams) else tree


def gram(rows: Any) -> Any:
    """`<row_i, row_j>`, by one product of matrices: XLA compiles a sum a number for far longer.

    In blocks, since a long sum in a row in float32 is off by more than a rate may be.
    """
    size = rows.shape[1]
    length = math.isqrt(size) or 1
    padded = jnp.pad(rows, ((0, 0), (0, -size % length)))
    blocks = padded.reshape(rows.shape[0], -1, length)
    together = jnp.einsum("ibk,jbk->bij", blocks, jnp.conj(blocks), precision="highest")
    return jnp.real(jnp.sum(together, axis=0))


def _square(x: Any) -> Any:
    return jnp.sum(jnp.square(jnp.abs(x)))
