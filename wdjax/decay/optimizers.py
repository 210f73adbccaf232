"""Optimisers with their decay right: optax' own steps, and any decay after the learning rate."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from wdjax.checks import check_strength_or_schedule
from wdjax.decay.composition import Decay, decay_at
from wdjax.decay.core import (
    is_none,
    map_updates,
    next_step,
    require_params,
    wide_dtype,
    with_dtype,
)
from wdjax.types import Key, Params, Schedule, Strength, is_inexact


def sgdw(
    learning_rate: Strength | Schedule,
    decay: Decay,
    *,
    momentum: Strength | None = 0.9,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    """Momentum descent with decay beside the step, outside the momentum.

        v <- momentum * v + g ;  update = -eta_t * v ;  then `decay` acts on the update

    Args:
      learning_rate: eta_t, a number (traced or not) or a schedule.
      decay: any transformation that goes after the learning rate, such as
        `independent_decay(strength)`, or a function that makes it from the learning rate, such as
        `partial(decoupled_decay, strength)`: see `make_optimizer`.
      momentum: None for plain descent.
      nesterov: look one step ahead.

    Raises:
      ValueError: for a learning rate that is known and negative or not finite, or a decay that
        requires more than the learning rate.

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101, Algorithm 1.
    """
    check_strength_or_schedule("learning_rate", learning_rate)
    rate: Any = learning_rate
    beta: Any = momentum
    after = decay_at(decay, learning_rate)
    return optax.chain(optax.sgd(rate, momentum=beta, nesterov=nesterov), after)


def adamw(
    learning_rate: Strength | Schedule,
    decay: Decay,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
) -> optax.GradientTransformation:
    """Adam with decay beside the step: AdamW in any coupling, whichever `decay` is.

    With `decoupled_decay` it is `optax.adamw`, with `independent_decay` the paper's AdamW, with
    `corrected_decay` AdamC, with `cautious_decay` cautious AdamW.

    Args:
      learning_rate: eta_t, a number (traced or not) or a schedule.
      decay: as for `sgdw`.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added outside the root.
      eps_root: added inside the root; 1e-12 makes the run differentiable where a gradient is
        exactly zero.

    Raises:
      ValueError: for a learning rate that is known and negative or not finite, or a decay that
        requires more than the learning rate.

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101, Algorithm 2.
    """
    check_strength_or_schedule("learning_rate", learning_rate)
    rate: Any = learning_rate
    after = decay_at(decay, learning_rate)
    return optax.chain(optax.adam(rate, b1=b1, b2=b2, eps=eps, eps_root=eps_root), after)


def lion(
    learning_rate: Strength | Schedule,
    decay: Decay,
    *,
    b1: float = 0.9,
    b2: float = 0.99,
) -> optax.GradientTransformation:
    """Lion with decay beside the step (`optax.lion` decays by 1e-3 unless told not to).

        update = -eta_t * sign(b1 * m + (1 - b1) * g) ;  m <- b2 * m + (1 - b2) * g

    Args:
      learning_rate: eta_t, a number (traced or not) or a schedule; 3-10 times below Adam's.
      decay: as for `sgdw`; its strength 3-10 times
        above Adam's, so that their product stays.
      b1: share of the momentum in the sign.
      b2: decay of the momentum.

    Raises:
      ValueError: for a learning rate that is known and negative or not finite, or a decay that
        requires more than the learning rate; in `update`, when
        `params` is missing.

    Source: Chen et al. 2023, arXiv:2302.06675.
    """
    check_strength_or_schedule("learning_rate", learning_rate)
    rate: Any = learning_rate
    after = decay_at(decay, learning_rate)
    return _needing_params(optax.chain(optax.lion(rate, b1=b1, b2=b2, weight_decay=0.0), after))


def muon(
    learning_rate: Strength | Schedule,
    decay: Decay,
    *,
    beta: float = 0.95,
    consistent_rms: float = 0.2,
) -> optax.GradientTransformation:
    """Muon for matrices, Nesterov Adam for the rest, and one decay that reaches both branches.

    The decay acts on the joint update, so its `parts` mean the same everywhere (the masks of
    `optax.contrib.muon` do not reach its Adam branch), and by the unadjusted learning rate.

    Args:
      learning_rate: eta_t, a number (traced or not) or a schedule, of both branches.
      decay: as for `sgdw`.
      beta: decay of the momentum.
      consistent_rms: the root mean square of a matrix' update per learning rate; at 0.2, that
        of AdamW, its learning rates and strengths can be used again.

    Raises:
      ValueError: for a learning rate that is known and negative or not finite, or a decay that
        requires more than the learning rate; in `update`, when
        `params` is missing.

    Source: Jordan et al. 2024; Liu et al. 2025, arXiv:2502.16982 for decay and the adjustment.
    """
    check_strength_or_schedule("learning_rate", learning_rate)
    rate: Any = learning_rate
    step = optax.contrib.muon(rate, beta=beta, consistent_rms=consistent_rms)
    return _needing_params(optax.chain(step, decay_at(decay, learning_rate)))


def _needing_params(
    tx: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """Says what to pass in the words of every decay, before optax says it in its own."""

    def update(updates: PyTree, state: Any, params: Params | None = None, **extra: Any) -> Any:
        return tx.update(updates, state, require_params(params), **extra)

    return optax.GradientTransformationExtraArgs(tx.init, update)


class MasterState(NamedTuple):
    """The weights in float32, and the state of the transformation that moves them."""

    master: PyTree
    """A float32 copy of every leaf in half precision; an empty tuple for the others."""
    inner: PyTree


def float32_master(
    tx: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Lets half-precision weights take steps smaller than their dtype can hold.

        master <- master + tx(update) ;  params <- master, rounded to their dtype

    In bfloat16 `1 - 1e-4` is 1: without a master, decay at that rate never moves a weight of 1.
    The whole chain goes inside: `float32_master(optax.chain(optax.adam(lr), decay))`, and gets what
    else `update` is called with (`value=`). Leaves of float32 and more are passed through; one
    whose gradient is None stays. Weights changed from outside (other than by the
    updates) are not noticed: call `init` again.

    Args:
      tx: what is to see, and to move, the float32 weights.

    Raises:
      ValueError: in `update`, when `params` is missing.

    Source: Micikevicius et al. 2018, arXiv:1710.03740 (master weights).
    """

    move = optax.with_extra_args_support(tx).update

    def wide(leaf: Any, master: Any) -> Any:
        return master if _is_narrow(leaf) else leaf

    def init(params: Params) -> MasterState:
        master = jax.tree.map(lambda p: _widened(p) if _is_narrow(p) else (), params)
        return MasterState(master, tx.init(jax.tree.map(wide, params, master)))

    def update(
        updates: PyTree, state: Any, params: Params | None = None, **extra: Any
    ) -> tuple[PyTree, MasterState]:
        params = require_params(params)
        weights = jax.tree.map(wide, params, state.master)
        widened = map_updates(_as_wide, updates, params)
        steps, inner = move(widened, state.inner, weights, **extra)

        def moved(step, leaf, master):
            if step is None:
                return master
            return master + step if _is_narrow(leaf) else ()

        def difference(step, update, leaf, goal):
            return _to_reach(_nearest(goal, leaf), leaf, update) if _is_narrow(leaf) else step

        master = jax.tree.map(moved, steps, params, state.master, is_leaf=is_none)
        updates = map_updates(difference, steps, updates, params, master)
        return updates, MasterState(master, inner)

    return optax.GradientTransformationExtraArgs(init, update)


class RoundingState(NamedTuple):
    """How many updates were rounded, and the state of the transformation that moves the weights."""

    step: Int[Array, ""]
    inner: PyTree


def stochastic_rounding(
    tx: optax.GradientTransformation, key: Key
) -> optax.GradientTransformationExtraArgs:
    """Lets half-precision weights take steps smaller than their dtype can hold, on average.

        goal = params + tx(update), in float32
        params <- of the two neighbours of goal, at distances a and b, the first by b / (a + b)

    So `E[params] = goal`: in bfloat16 a weight of 1 that decays by 1e-4 stays in most steps and
    loses 2^-8 in one of 39. It keeps no second copy of the weights, where `float32_master` keeps
    one of twice their size; the price is the noise, up to half the spacing of the dtype a step.
    The whole chain goes inside, sees its gradients and weights in float32, and gets what else
    `update` is called with (`value=`). Leaves of float32 and more are passed through; one whose
    gradient is None stays. The mean is exact while a step changes a weight by less than a
    factor of two; beyond, the update itself is rounded once more.

    Args:
      tx: what moves the weights, decay included.
      key: a `jax.random.key`; folded with the number of the update and that of the leaf, so a
        restored state goes on as if it had not stopped. Runs side by side need keys of their own.

    Raises:
      ValueError: if `key` is not a single typed key; in `update`, when `params` is missing.

    Source: Gupta et al. 2015, arXiv:1502.02551 (stochastic rounding).
    """
    if not jnp.issubdtype(jnp.asarray(key).dtype, jax.dtypes.prng_key) or jnp.ndim(key):
        raise ValueError(
            f"`key` must be one jax.random.key(seed), got {key!r}. To try several, vmap over the "
            "factory call."
        )

    def init(params: Params) -> RoundingState:
        return RoundingState(jnp.zeros((), jnp.int32), tx.init(jax.tree.map(_widened, params)))

    move = optax.with_extra_args_support(tx).update

    def update(
        updates: PyTree, state: Any, params: Params | None = None, **extra: Any
    ) -> tuple[PyTree, RoundingState]:
        params = require_params(params)
        weights = jax.tree.map(_widened, params)
        widened = map_updates(_as_wide, updates, params)
        steps, inner = move(widened, state.inner, weights, **extra)
        now = jax.random.fold_in(key, state.step)
        structure = jax.tree.structure(params)
        numbers = structure.unflatten(range(structure.num_leaves))

        def rounded(step, update, leaf, weight, number):
            if not _is_narrow(leaf):
                return step
            goal = _at_random(weight + step, leaf, jax.random.fold_in(now, number))
            return _to_reach(goal, leaf, update)

        updates = map_updates(rounded, steps, updates, params, weights, numbers)
        return updates, RoundingState(next_step(state.step), inner)

    return optax.GradientTransformationExtraArgs(init, update)


def _is_narrow(leaf: Any) -> bool:
    return is_inexact(leaf) and wide_dtype(leaf) != jnp.result_type(leaf)


def _widened(leaf: Any) -> Any:
    return with_dtype(leaf, wide_dtype(leaf)) if _is_narrow(leaf) else leaf


def _as_wide(update: Any, leaf: Any) -> Any:
    return update.astype(wide_dtype(leaf)) if _is_narrow(leaf) else update


def _nearest(goal: Array, leaf: Array) -> Array:
    """`goal` rounded to the leaf's dtype, ties to even, still wide.

    Not by a cast there and back, which XLA may drop; and `reduce_precision` takes what lies below
    the smallest normal number for zero, which float16 keeps as multiples of 2^-24.
    """
    dtype, wide = jnp.finfo(leaf.dtype), jnp.finfo(goal.dtype)
    rounded = jax.lax.reduce_precision(goal, dtype.nexp, dtype.nmant)
    if dtype.nexp == wide.nexp:  # bfloat16 ends where float32 does.
        return rounded
    spacing = float(dtype.smallest_subnormal)
    below = jnp.abs(goal) < float(dtype.smallest_normal)
    return jnp.where(below, jnp.round(goal / spacing) * spacing, rounded)


def _at_random(goal: Array, leaf: Array, key: Key) -> Array:
    """One of the leaf's dtype's two neighbours of `goal`, whose mean is `goal`; still wide."""
    near = _nearest(goal, leaf)
    towards = jnp.where(goal > near, jnp.inf, -jnp.inf).astype(leaf.dtype)
    far = jnp.nextafter(near.astype(leaf.dtype), towards).astype(goal.dtype)
    exact = goal == near
    chance = jnp.abs(goal - near) / jnp.where(exact, 1, jnp.abs(far - near))
    return jnp.where(jax.random.uniform(key, goal.shape, goal.dtype) < chance, far, near)


def _to_reach(goal: Array, leaf: Array, update: Array) -> Array:
    """The update by which `leaf` becomes `goal`: exact within a factor of 2."""
    return (goal - leaf).astype(update.dtype)
