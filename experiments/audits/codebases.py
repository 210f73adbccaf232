"""What is read of each codebase: where, which optimiser, which schedule.

The optimisers are written here from optax's parts, after reading the codebase's code and its
published configuration at the commit that is named. Only names of options and numbers are theirs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from optax.contrib import MuonDimensionNumbers as Matrix

from experiments.audits.trees import Tree, masked

Schedule = Callable[[Any], Any]


class Codebase(NamedTuple):
    """A published configuration and the optimiser that it builds."""

    name: str
    repository: str
    """On GitHub."""
    commit: str
    date: str
    """Of the commit."""
    code: str
    """`path:lines` of the optimiser."""
    config: str
    """`path:lines` of the configuration; `path` alone where it is another's file."""
    setting: str
    """The option as it is set there, with its value."""
    make: Callable[[Schedule], optax.GradientTransformation]
    """The optimiser under a schedule of the learning rate."""
    learning_rate: Schedule
    """The configuration's own."""
    num_steps: int
    tree: Tree
    rate: Callable[[Any], Any] | None
    """What a step removes at a learning rate, by the formula; None where there is no such rate."""
    formula: str
    found: str
    """What a user of the option should know, in a sentence or two."""
    compared: bool = False
    """Its own function was called too, and removed the same of every leaf."""


FLAX = ("google/flax", "18f8f311c275d57f46d95e41b15aa97b454754c0", "2026-07-02")


def times(weight_decay: float) -> Callable[[Any], Any]:
    """Decay that the learning rate multiplies."""
    return lambda learning_rate: weight_decay * learning_rate


def always(rate: float) -> Callable[[Any], Any]:
    return lambda learning_rate: rate + 0 * learning_rate


# Schedules, each in the terms of its configuration.


def cosine(peak, warmup, steps, end=0.0, start=0.0) -> Schedule:
    return optax.warmup_cosine_decay_schedule(start, peak, warmup, steps, end)


def inverse_root(peak, warmup) -> Schedule:
    """Up in `warmup` steps, then `peak * sqrt(warmup / step)`."""
    return lambda t: peak * jnp.minimum(t / warmup, jnp.sqrt(warmup / jnp.maximum(t, warmup)))


def octo_schedule(peak, warmup, timescale) -> Schedule:
    late = lambda t: peak / jnp.sqrt((jnp.maximum(t - warmup, 0) + timescale) / timescale)
    return lambda t: jnp.where(t < warmup, peak * t / warmup, late(t))


def gptj_schedule(peak, end, warmup, anneal) -> Schedule:
    """Cosine from `peak` to `end` over the `anneal` steps that follow the warmup."""
    done = lambda t: jnp.clip((t - warmup) / anneal, 0, 1)
    fallen = lambda t: (peak - end) * (1 - jnp.cos(jnp.pi * done(t))) / 2
    return lambda t: peak * jnp.minimum(t / warmup, 1) - fallen(t)


# Optimisers of several of them.


def adamw(weight_decay, *, b2=0.999, eps=1e-8, mask=None, clip=None, mu_dtype=None):
    """AdamW as optax has it, after clipping by the global norm where there is a bound."""

    def make(learning_rate):
        own = {"weight_decay": weight_decay, "mask": mask, "mu_dtype": mu_dtype}
        tx = optax.adamw(learning_rate, 0.9, b2, eps, **own)
        return tx if clip is None else optax.chain(optax.clip_by_global_norm(clip), tx)

    return make


def only(keep: Callable[[tuple[str, ...], Any], Any]) -> Callable[[Any], Any]:
    """A mask of the leaves that `keep(names, leaf)` takes."""
    return lambda params: masked(params, keep)


KERNELS = only(lambda names, _: names[-1] == "kernel")
MATRICES = only(lambda _, leaf: leaf.ndim > 1)


# One function each where the optimiser is not AdamW.


def big_vision(learning_rate, base=1e-3, wd=1e-4):
    """Decay is added after the base rate, so that only the relative schedule multiplies it."""
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(mu_dtype=jnp.bfloat16),
        optax.scale(base),
        optax.add_decayed_weights(wd, KERNELS),
        optax.scale_by_schedule(lambda t: learning_rate(t) / base),
        optax.scale(-1.0),
    )


def flax_imagenet(learning_rate):
    """Its L2 is in the loss: to the optimiser that is a gradient of `1e-4 w`."""
    return optax.chain(
        optax.add_decayed_weights(1e-4, MATRICES),
        optax.sgd(learning_rate, momentum=0.9, nesterov=True),
    )


def flax_sst2(learning_rate):
    """Decay comes after the descent, whose step is already negative."""
    return optax.chain(
        optax.sgd(learning_rate, momentum=0.9), optax.add_decayed_weights(weight_decay=3e-6)
    )


def without_decay_sgd(learning_rate):
    return optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(learning_rate, momentum=0.9))


def independent(learning_rate, wd=1e-4, base=1e-3):
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(b2=0.95),
        optax.add_decayed_weights(wd / base),
        optax.scale_by_schedule(learning_rate),
        optax.scale(-1),
    )


def palm(learning_rate):
    """Adafactor; then the square of the learning rate, times the weight."""
    factors = optax.adafactor(
        learning_rate,
        multiply_by_parameter_scale=True,
        momentum=0.9,
        decay_rate=0.99,
        factored=False,
        clipping_threshold=None,
    )
    decay = lambda weight, t: -jnp.square(learning_rate(t)) * weight
    init = lambda params: jnp.zeros([], jnp.int32)
    added = lambda updates, params, t: jax.tree.map(lambda u, w: u + decay(w, t), updates, params)
    update = lambda updates, t, params: (added(updates, params, t), t + 1)
    return optax.chain(
        optax.clip_by_global_norm(1.0), factors, optax.GradientTransformation(init, update)
    )


def nanodo_adafactor(learning_rate):
    """Adafactor of optax, whose `weight_decay_rate` comes after the learning rate."""
    return optax.adafactor(learning_rate, decay_rate=0.8, eps=1e-30, weight_decay_rate=0.1)


def byol_lars(learning_rate):
    """Decay in the gradient, before the trust ratio; neither for biases and norms."""
    keep = only(lambda names, _: names[-1] != "b" and "norm" not in names[-2])
    return optax.lars(
        learning_rate,
        weight_decay=1.5e-6,
        weight_decay_mask=keep,
        trust_coefficient=1e-3,
        trust_ratio_mask=keep,
        momentum=0.9,
    )


def octo(learning_rate):
    """AdamW where a key of the path holds `kernel`; the text encoder is frozen."""
    is_kernel = only(lambda names, _: any("kernel" in name for name in names))
    train = adamw(0.1, clip=1.0, mask=is_kernel, mu_dtype=jnp.bfloat16)(learning_rate)
    in_encoder = only(lambda names, _: "hf_model" in names)
    words = {True: "frozen", False: "trainable"}
    labels = lambda params: jax.tree.map(words.get, in_encoder(params))
    return optax.partition({"trainable": train, "frozen": optax.set_to_zero()}, labels)


def nesterov_adamw(learning_rate):
    """NAdamW: moments of the update looked ahead, then decay, then the learning rate."""
    return optax.chain(
        optax.scale_by_adam(1 - 0.02686663061, 0.9981232922116359, nesterov=True),
        optax.add_decayed_weights(0.16375311233774334),
        optax.scale_by_learning_rate(learning_rate),
    )


def injected_adamw(learning_rate):
    return optax.inject_hyperparams(optax.adamw)(
        learning_rate=learning_rate, b1=0.9, b2=0.99, weight_decay=0.1
    )


def maxtext_muon(learning_rate):
    """Muon on the matrices of the layers, AdamW on the rest, each with a decay of its own."""

    def matrix(names, leaf):
        if names[-1] in ("scale", "embedding") or "logits_dense" in names:
            return None
        if "self_attention" in names:
            return Matrix((0, -2), (-1,)) if "out" in names else Matrix((0,), (-2, -1))
        return Matrix((0,), (-1,))

    matrices = lambda params: jax.tree_util.tree_map_with_path(
        lambda path, leaf: matrix([entry.key for entry in path], leaf), params
    )
    return optax.contrib.muon(
        learning_rate,
        weight_decay=0.0,
        adam_b2=0.95,
        adam_weight_decay=0.1,
        muon_weight_dimension_numbers=matrices,
    )


LEVANTER = only(
    lambda names, _: (
        names[-1] != "bias"
        and "embeddings" not in names
        and not any(name.startswith("ln_") for name in names)
    )
)
