"""What gradients of one direction do to each leaf: whether they move it, and by their size."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wdjax.diagnostics.equilibrium import fed
from wdjax.types import Params, is_inexact

UPDATES_TRIED = 16
"""Updates measured where the length of the run is not given."""

UPDATES_WAITED = 1024
"""Updates waited for at most until the first that does something: some optimisers collect."""


class Response(NamedTuple):
    """What gradients of one direction do."""

    moves: list[bool]
    """Per leaf: one moves it."""
    scale_free: list[bool]
    """Per leaf: ten times as much moves it no farther."""
    num_steps: int
    """Until a weight moved."""


def measure_response(tx: Any, params: Params, num_steps: int | None) -> Response:
    """What gradients of one direction do, of more and more updates until one moves a weight.

    They are small (norm 0.01 and 0.1), so that clipping does not make them alike.
    """
    leaves, structure = jax.tree.flatten(params)
    random = np.random.default_rng(0)
    raw = [random.normal(size=np.shape(w)) if is_inexact(w) else np.zeros(()) for w in leaves]
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in raw))
    sizes = (0.0, 0.01, 0.1)

    @jax.jit
    def total(grads, num_steps):
        def one_step(_, carry):
            states, sums = carry
            updates, states = jax.vmap(lambda g, s: tx.update(g, s, params))(grads, states)
            steps = zip(sums, jax.tree.leaves(updates), strict=True)
            return states, [s + u if is_inexact(u) else s for s, u in steps]

        states = jax.vmap(lambda _: tx.init(params))(jnp.arange(len(sizes)))
        sums = [jnp.zeros(np.shape(g), g.dtype) for g in lanes]
        return jax.lax.fori_loop(0, num_steps, one_step, (states, sums))[1]

    lanes = [
        np.stack([np.asarray(size / norm * g, w.dtype) for size in sizes])
        if is_inexact(w)
        else np.zeros(len(sizes), np.float32)
        for g, w in zip(raw, leaves, strict=True)
    ]
    # On the host: each operation on a device would be a small program of its own.
    no_gradients = [
        jnp.stack([w] * len(sizes))
        if jnp.issubdtype(w.dtype, jax.dtypes.prng_key)
        else np.zeros((len(sizes), *np.shape(w)), w.dtype)
        for w in leaves
    ]
    found = zip(lanes, no_gradients, leaves, strict=True)
    grads = fed(structure.unflatten([g if is_inexact(w) else zero for g, zero, w in found]))
    most = UPDATES_WAITED if num_steps is None else num_steps
    num_tried, num_needed = min(most, UPDATES_TRIED), 0
    while True:
        moves, scale_free = [], []
        for w, lane in zip(leaves, jax.device_get(total(grads, num_tried)), strict=True):
            first, second = (float(np.linalg.norm(np.ravel(d))) for d in np.diff(lane, axis=0))
            # A NaN comes of a gradient, so it moves.
            moves.append(is_inexact(w) and not first == 0)
            scale_free.append(moves[-1] and second < 0.5 * first)
        still = [w for w, m in zip(leaves, moves, strict=True) if is_inexact(w) and not m]
        if any(moves):
            num_needed = num_needed or num_tried
        waits = still and (not num_needed or num_tried < UPDATES_WAITED)
        if num_tried >= most or not waits:
            return Response(moves, scale_free, num_needed or num_tried)
        num_tried = min(8 * num_tried, most)
