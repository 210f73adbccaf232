"""What decay costs, read off the compiled program: bytes moved by an update of 60,000 weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wdjax.decay import (
    adamw,
    cautious_decay,
    corrected_decay,
    decay_to_average,
    decay_to_initial,
    decay_to_one,
    decay_weights,
    decoupled_decay,
    huber_decay,
    independent_decay,
    proximal_l1,
    proximal_l2,
)

ETA, LAM = 1e-3, 0.1
SHAPES = {"dense": {"kernel": (200, 250), "bias": (250,)}, "head": {"kernel": (250, 39)}}
SIZE = 200 * 250 + 250 + 250 * 39


def params():
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), SHAPES, is_leaf=is_shape)


def is_shape(node):
    return isinstance(node, tuple)


def bytes_moved(tx, returned=lambda state: state):
    """Of update and apply_updates, compiled together."""

    def step(grads, state, w):
        updates, state = tx.update(grads, state, w)
        return optax.apply_updates(w, updates), returned(state)

    w = params()
    lowered = jax.jit(step).lower(w, jax.eval_shape(tx.init, w), w)
    return lowered.compile().cost_analysis()["bytes accessed"]


@pytest.fixture(scope="module")
def optax_adamw():
    return bytes_moved(optax.adamw(ETA, weight_decay=LAM))


BY_WEIGHT = {
    "decay_weights": lambda: decay_weights(ETA * LAM),
    "decoupled_decay": lambda: decoupled_decay(LAM, ETA, parts={"*/kernel": 1.0, "*": 0.5}),
    "independent_decay": lambda: independent_decay(1e-4),
    "corrected_decay": lambda: corrected_decay(LAM, ETA, ETA),
    "scheduled": lambda: decoupled_decay(LAM, optax.cosine_decay_schedule(ETA, 100)),
    "cautious_decay": lambda: cautious_decay(LAM, ETA),
    "huber_decay": lambda: huber_decay(LAM, ETA, 0.1),
    "decay_to_one": lambda: decay_to_one(LAM, ETA, parts={"*": 1.0}),
    "proximal_l1": lambda: proximal_l1(LAM, ETA),
    "proximal_l2": lambda: proximal_l2(LAM, ETA),
}
"""Decays that act weight by weight and keep no reference."""


@pytest.mark.parametrize("decay", BY_WEIGHT.values(), ids=BY_WEIGHT)
def test_a_method_without_a_kept_reference_moves_the_bytes_of_optax_adamw(decay, optax_adamw):
    np.testing.assert_allclose(bytes_moved(adamw(ETA, decay())), optax_adamw, rtol=1e-3)


def test_a_kept_reference_costs_one_read_more(optax_adamw):
    """Four bytes a weight. (The initial params leave the step as they came: XLA on CPU copies such
    an output of a single step, a scan does not, so it is left out of this count.)"""
    changed = lambda state: (state[0], state[1].step)
    kept = bytes_moved(adamw(ETA, decay_to_initial(LAM, ETA)), changed)
    np.testing.assert_allclose(kept - optax_adamw, 4 * SIZE, rtol=0.01)


def test_an_average_costs_that_read_and_its_own_update(optax_adamw):
    """In one loop with the weights that would be a write more. XLA on CPU writes each array in a
    loop of its own, and the average's reads it and the weights: three arrays beside the
    reference's one (docs/speed.md). Nothing else is paid."""
    average = bytes_moved(adamw(ETA, decay_to_average(LAM, ETA, 0.99)))
    np.testing.assert_allclose(average - optax_adamw, (1 + 3) * 4 * SIZE, rtol=0.01)


def test_an_average_alone_already_moves_three_of_these_arrays():
    """No program on this backend can do with less: what follows the weights, without any decay."""
    follow = lambda average, w: 0.99 * average + 0.01 * w
    w = params()
    step = lambda average, w: jax.tree.map(follow, average, w)
    moved = jax.jit(step).lower(w, w).compile().cost_analysis()["bytes accessed"]
    np.testing.assert_allclose(moved, 3 * 4 * SIZE, rtol=0.01)
