"""Tangents that go beside a run: the derivatives of its state in the logarithm of its numbers.

A tangent has the structure of what it is of, an array `[number, ...]` for each leaf of floats and
None for any other.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from wdjax.run import Run, run_keys
from wdjax.step import TrainState
from wdjax.types import Batch, Fit, HParams, is_inexact


class Between(NamedTuple):
    """What goes from window to window: neither the optimiser's state nor tangents do."""

    params: PyTree
    model_state: PyTree


class Moving(NamedTuple):
    """A run on its way, and its tangents."""

    state: TrainState
    tangents: PyTree
    """Of the whole state, that of the optimiser included."""


def begin(
    run: Run, hparams: HParams, inputs: Any, key: Array, own_key: Array, between: Between
) -> TrainState:
    """The first state of a window: the params so far, a new state of the optimiser.

    Args:
      run, hparams, inputs: as for `run.init`.
      key: the one of the first params, in every window: the optimiser may remember them.
      own_key: the window's own, of its order and its steps' randomness.
      between: the params and the model's state so far.
    """
    _, _, step_key = run_keys(own_key)
    return run.init(hparams, inputs, key)._replace(
        params=between.params, model_state=between.model_state, key=step_key
    )


def still(state: TrainState, count: int) -> Moving:
    """A state that none of `count` numbers has moved yet."""
    zeros = lambda leaf: jnp.zeros((count, *leaf.shape), leaf.dtype)
    return Moving(state, jax.tree.map(zeros, _floats(state)))


def carry(
    go: Callable[..., tuple[TrainState, Any]], numbers: Sequence[str]
) -> Callable[..., tuple[Moving, Any]]:
    """Builds `(hparams, moving, *given) -> (moving, told)` of `(hparams, state, *given) -> (state,
    told)`, such as `run.step` or `advance` over epochs.

        Z <- (d go / d state) Z + d go / d log number
    """
    each = np.eye(len(numbers))

    def carried(hparams: HParams, moving: Moving, *given: Any) -> tuple[Moving, Any]:
        def after(logs: dict[str, Array], floats: PyTree) -> tuple[PyTree, Any]:
            # At 0 it is the number itself, to the last bit.
            moved = {name: hparams[name] * jnp.exp(log) for name, log in logs.items()}
            state, told = go({**hparams, **moved}, _joined(floats, moving.state), *given)
            return _floats(state), (state, told)

        zeros = {name: jnp.zeros_like(jnp.asarray(hparams[name])) for name in numbers}
        floats = _floats(moving.state)

        def push(which: Array, tangents: PyTree) -> tuple[TrainState, Any, PyTree]:
            along = {name: which[i].astype(zeros[name].dtype) for i, name in enumerate(numbers)}
            _, pushed, (state, told) = jax.jvp(
                after, (zeros, floats), (along, tangents), has_aux=True
            )
            return state, told, pushed

        state, told, tangents = jax.vmap(push, out_axes=(None, None, 0))(
            jnp.asarray(each), moving.tangents
        )
        return Moving(state, tangents), told

    return carried


def judge(
    losses_of: Callable[[Fit, Batch], Array], moving: Moving, valid: Batch
) -> tuple[Array, Array]:
    """The held-out losses `[example]`, and their slopes `[number, example]`."""
    both = moving.state.params, moving.state.model_state
    pushed = moving.tangents.params, moving.tangents.model_state

    def losses(floats: PyTree) -> Array:
        params, model_state = _joined(floats, both)
        return losses_of(Fit(params, model_state, {}), valid)

    push = lambda tangents: jax.jvp(losses, (_floats(both),), (tangents,))
    return jax.vmap(push, out_axes=(None, 0))(pushed)


def _floats(tree: PyTree) -> PyTree:
    """The leaves that have tangents; None for the others, integers and keys."""
    return jax.tree.map(lambda leaf: leaf if is_inexact(leaf) else None, tree)


def _joined(floats: PyTree, tree: PyTree) -> PyTree:
    """`tree` with its leaves of floats taken from `floats`."""
    is_none = lambda leaf: leaf is None
    return jax.tree.map(lambda new, old: old if new is None else new, floats, tree, is_leaf=is_none)
