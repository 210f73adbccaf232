"""What an optimiser removes of each leaf without gradients: its decay."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wdjax.diagnostics.equilibrium import gram
from wdjax.diagnostics.probes import zero_gradients
from wdjax.types import Params, is_inexact


class Decays(NamedTuple):
    """What was seen of a leaf without gradients, `[step]`; `start` is where it stood."""

    rates: np.ndarray
    """Of the leaf held where it is."""
    tripled: np.ndarray
    """The same of three times the leaf."""
    apart: np.ndarray
    """How far that is from proportional in all directions, as a share of the leaf."""
    slopes: np.ndarray
    """What is removed of as much again, put on top of the leaf."""
    moving: np.ndarray
    """The rates of the leaf that takes its updates."""
    outward: np.ndarray
    """The share of what is removed that points away from zero, weight by weight."""
    reference: float
    """How far, as a share of the leaf, what does not change sign with it has carried it."""


def measure_decay(tx: Any, params: Params, num_steps: int) -> list[Decays]:
    """Per leaf, what updates without gradients do, `num_steps` of them.

    Side by side, each with a state of its own: the leaf, its negative and its triple, held where
    they are; the leaf and its negative, taking their updates. And the leaf's double under the
    leaf's state. From a leaf and its negative comes what changes sign with it, the decay,

        rate = -<(update(w) - update(-w)) / 2, w> / <w, w>

    which leaves out what does not: a noise, and the pull to another reference.
    """
    lanes = (1.0, -1.0, 3.0, 1.0, -1.0)

    def spread(w):
        if not is_inexact(w):
            return jnp.stack([w] * len(lanes))
        return jnp.stack([jnp.asarray(w) * jnp.asarray(m, w.dtype) for m in lanes])

    def one_step(carry, _):
        states, weights = carry
        double = lambda w: jnp.concatenate([w, 2 * w[:1] if is_inexact(w) else w[:1]])
        first_again = lambda x: jnp.concatenate([x, x[:1]])
        updates, states = jax.vmap(lambda s, w: tx.update(zero_gradients(w), s, w))(
            jax.tree.map(first_again, states), jax.tree.map(double, weights)
        )
        states = jax.tree.map(lambda x: x[:-1], states)
        pairs = zip(jax.tree.leaves(updates), jax.tree.leaves(weights), strict=True)
        seen, moved = zip(*(_see(*of_leaf) for of_leaf in pairs), strict=True)
        return (states, jax.tree.structure(weights).unflatten(moved)), seen

    @jax.jit
    def measure(params):
        weights = jax.tree.map(spread, params)
        states = jax.vmap(tx.init)(weights)
        return jax.lax.scan(one_step, (states, weights), length=num_steps)[1]

    return [
        Decays._make([*columns[:-1], float(columns[-1][-1])])
        for columns in (np.asarray(seen, np.float64).T for seen in measure(params))
    ]


def _see(u: Any, w: Any) -> tuple[Any, Any]:
    """The seven numbers of `Decays`, and the weights of the lanes after the step."""
    if not is_inexact(w) or not w.size:
        return jnp.zeros(7), w
    rows = jnp.concatenate([u.reshape(6, -1), w.reshape(5, -1)])
    seen = jnp.matmul(np.asarray(_SEEN, w.dtype), rows, precision="highest")
    products = gram(seen)
    squares = jnp.diagonal(products)
    ratio = lambda top, square: jnp.where(square == 0, 0, top / jnp.where(square == 0, 1, square))
    away = jnp.sqrt(ratio(squares[4], 9 * squares[7]))
    tops = jnp.stack([products[0, 7], products[1, 8], products[2, 7], products[3, 9]])
    removed = -ratio(tops, squares[np.array([7, 8, 7, 9])])
    carried = ratio(products[10, 7], squares[7])
    pushed = seen[0] * seen[7]
    outward = ratio(jnp.sum(jnp.maximum(pushed, 0)), jnp.sum(jnp.abs(pushed)))
    numbers = jnp.concatenate([removed[:2], away[None], removed[2:], outward[None], carried[None]])
    size = ratio(squares[5:7], squares[7]).reshape(2, *[1] * (w.ndim - 1))
    # Held once it is all but gone or has grown out of all bounds: what follows is seen on it.
    after = jnp.where((size > 1e-12) & (size < 1e12), w[3:] + u[3:5], w[3:])
    return numbers, jnp.concatenate([w[:3], after])


def _seen_of_lanes() -> np.ndarray:
    """`[what, lane]`: what is looked at, from the six updates and the five weights."""
    u, w = np.split(np.eye(11), [6])
    odd, even = (u[0] - u[1]) / 2, (u[0] + u[1]) / 2
    return np.stack(
        [
            odd,
            u[2] - even,
            u[5] - u[0],
            (u[3] - u[4]) / 2,
            u[2] - even - 3 * odd,
            w[3] + u[3],
            w[4] + u[4],
            w[0],
            w[2],
            (w[3] - w[4]) / 2,
            (w[3] + u[3] + w[4] + u[4]) / 2,
        ]
    )


_SEEN = _seen_of_lanes()
