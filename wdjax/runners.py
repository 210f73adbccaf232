"""How a step runs: compiled on one device. Every runner donates, and spares the user's arrays."""

import functools
import weakref
from collections.abc import Callable

import jax
import jax.numpy as jnp

from wdjax.step import Metrics, StepFn, TrainState
from wdjax.types import Batch


def jit_step(step: StepFn) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Compiles `step` for one device, `run(state, batch) -> (state, metrics)`.

    The state is donated: after `state = run(state, batch)` the old state's buffers are used
    again for the new one. Arrays that the runner did not make itself (the first state, or
    params that a user put in) are copied before, so they survive.
    """
    return _sparing_foreign_arrays(jax.jit(step, donate_argnums=0))


def _sparing_foreign_arrays(donating: Callable) -> Callable:
    """Calls `donating(state, batch)` with every state leaf that it did not return copied."""
    own: list[weakref.ref] = []

    @functools.wraps(donating)
    def run(state, batch):
        mine = {id(leaf) for ref in own if (leaf := ref()) is not None}
        fresh = jax.tree.map(lambda x: x if id(x) in mine else jnp.copy(x), state)
        state, metrics = donating(fresh, batch)
        own[:] = [weakref.ref(leaf) for leaf in jax.tree.leaves(state)]
        return state, metrics

    return run
