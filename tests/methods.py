"""Every transformation of this package, one row a method: what the tests of contracts run on.

A new method is a new row of METHODS; every test of `test_contract.py` and `test_optax_contract.py`
then runs on it.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wdjax.decay import (
    adamw,
    cautious_decay,
    constrained_decay,
    corrected_decay,
    decay_to_average,
    decay_to_initial,
    decay_to_one,
    decay_weights,
    decoupled_decay,
    fixed_bound,
    float32_master,
    huber_decay,
    independent_decay,
    inflection_bound,
    initial_bound,
    lion,
    lora_decay,
    make_optimizer,
    muon,
    project_max_norm,
    project_sphere,
    proximal_elastic_net,
    proximal_group_lasso,
    proximal_l1,
    proximal_l2,
    proximal_step,
    sgdw,
    soft_threshold,
    stochastic_rounding,
    warm_start_bound,
)
from wdjax.parts import scale_by_parts

ALL = {"*": 1.0}
FROZEN = np.random.default_rng(2).normal(size=(4, 3)).astype(np.float32)
PAIRS = {"pretrained": ("adapter/lora_a", "adapter/lora_b")}
"""Of the factors in `params()`, which are leaves like any other to the other rows."""


class Row(NamedTuple):
    """A method under contract."""

    make: Callable[..., optax.GradientTransformation]
    """`make(strength, parts)`; strengths are numbers, traced or not."""
    scheduled: bool = True
    """Whether the strength may be a schedule."""
    strength: float = 0.3
    """One that does something to `params()` within three steps."""
    any_tree: bool = True
    """Whether it fits any params, not those of `params()` alone."""
    base: Callable[[], optax.GradientTransformation] = optax.identity
    """What is left of it at strength zero."""


METHODS = {
    "decay_weights": Row(lambda s, parts=None: decay_weights(s, parts=parts)),
    "decoupled_decay": Row(lambda s, parts=None: decoupled_decay(s, 0.5, parts=parts)),
    "independent_decay": Row(lambda s, parts=None: independent_decay(s, 0.5, parts=parts)),
    "corrected_decay": Row(lambda s, parts=None: corrected_decay(s, 0.5, 0.8, parts=parts)),
    "cautious_decay": Row(lambda s, parts=None: cautious_decay(s, 0.5, parts=parts)),
    "decay_to_initial": Row(lambda s, parts=None: decay_to_initial(s, 0.5, parts=parts)),
    "decay_to_one": Row(lambda s, parts=ALL: decay_to_one(s, 0.5, parts=parts)),
    "decay_to_average": Row(lambda s, parts=None: decay_to_average(s, 0.5, 0.9, parts=parts)),
    "huber_decay": Row(lambda s, parts=None: huber_decay(s, 0.5, 0.4, parts=parts)),
    "decay_to_tree": Row(
        lambda s, parts=None: decay_weights(s, parts=parts, reference=params(seed=1)),
        any_tree=False,
    ),
    "lora_decay": Row(
        lambda s, parts=None: lora_decay(
            s, 0.5, frozen={"pretrained": FROZEN}, pairs=PAIRS, parts=parts
        ),
        any_tree=False,
    ),
    "proximal_step": Row(lambda s, parts=None: proximal_step([s], soft_threshold, parts=parts)),
    "proximal_l1": Row(lambda s, parts=None: proximal_l1(s, 0.5, parts=parts)),
    "proximal_l2": Row(lambda s, parts=None: proximal_l2(s, 0.5, parts=parts)),
    "proximal_elastic_net": Row(lambda s, parts=None: proximal_elastic_net(s, s, 0.5, parts=parts)),
    "proximal_group_lasso": Row(lambda s, parts=None: proximal_group_lasso(s, 0.5, parts=parts)),
    "constrained_decay": Row(
        lambda s, parts=None: constrained_decay(s, fixed_bound(0.01), parts=parts), scheduled=False
    ),
    "constrained_initial": Row(
        lambda s, parts=None: constrained_decay(s, initial_bound(0.5), parts=parts), scheduled=False
    ),
    "float32_master": Row(lambda s, parts=None: float32_master(independent_decay(s, parts=parts))),
    "stochastic_rounding": Row(
        lambda s, parts=None: stochastic_rounding(
            independent_decay(s, parts=parts), jax.random.key(0)
        )
    ),
    "make_optimizer": Row(
        lambda s, parts=None: make_optimizer(
            optax.scale_by_adam(), 0.1, functools.partial(decoupled_decay, s, parts=parts)
        ),
        base=lambda: optax.adam(0.1),
    ),
    # Optimisers, with one coupling each: the couplings are rows of their own.
    "sgdw": Row(
        lambda s, parts=None: sgdw(0.1, decoupled_decay(s, 0.5, parts=parts)),
        base=lambda: optax.sgd(0.1, momentum=0.9),
    ),
    "adamw": Row(
        lambda s, parts=None: adamw(0.1, decoupled_decay(s, 0.5, parts=parts)),
        base=lambda: optax.adam(0.1),
    ),
    "lion": Row(
        lambda s, parts=None: lion(0.1, decoupled_decay(s, 0.5, parts=parts)),
        base=lambda: optax.lion(0.1, weight_decay=0.0),
    ),
    "muon": Row(
        lambda s, parts=None: muon(0.1, decoupled_decay(s, 0.5, parts=parts)),
        base=lambda: optax.contrib.muon(0.1, consistent_rms=0.2),
    ),
}
PLAIN = {
    "project_max_norm": Row(lambda s, parts=None: project_max_norm(0.2, parts=parts)),
    "project_sphere": Row(lambda s, parts=None: project_sphere(0.2, parts=parts)),
    "scale_by_parts": Row(lambda s, parts=None: scale_by_parts(parts)),
    "constrained_warm_start": Row(
        lambda s, parts=None: constrained_decay(s, warm_start_bound(1), parts=parts)
    ),
    "constrained_inflection": Row(
        lambda s, parts=None: constrained_decay(s, inflection_bound(1), parts=parts)
    ),
}
"""Without a strength, or one whose effect comes after three steps: the tests of strengths, which
say `with_strength`, leave them out."""

SLOW = {"muon"}
"""Rows whose own arithmetic takes long: their tests run with `-m slow`."""


def rows(methods):
    mark = lambda name: [pytest.mark.slow] if name in SLOW else []
    return [pytest.param(row, id=name, marks=mark(name)) for name, row in methods.items()]


with_strength = pytest.mark.parametrize("row", rows(METHODS))
every_method = pytest.mark.parametrize("row", rows(METHODS | PLAIN))


def params(dtype=jnp.float32, seed=0):
    """Matrices, a vector, a scalar and an adapter's two factors, in nested containers."""
    rng = np.random.default_rng(seed)
    array = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    return {
        "dense": {"kernel": array(4, 3), "bias": array(3)},
        "rest": (array(2, 2), [array()]),
        "adapter": {"lora_a": array(4, 2) / 2, "lora_b": array(2, 3) / 2},
    }


def few(row, dtype=jnp.float32):
    """One matrix, for tests that compile much."""
    return params(dtype) if not row.any_tree else {"one/kernel": 3 * params(dtype)["rest"][0]}


def run(tx, w, num_steps=3, update=None):
    """Three steps of made-up updates; the weights and the state after them."""
    state, update = tx.init(w), update or tx.update
    for t in range(num_steps):
        updates, state = update(jax.tree.map(lambda x, t=t: 0.1 * jnp.cos(x + t), w), state, w)
        w = optax.apply_updates(w, updates)
    return w, state


def take(tree, i):
    return jax.tree.map(lambda x: x[i], tree)


def assert_trees_close(found, expected, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), found, expected)
