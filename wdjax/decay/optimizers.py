"""Optimisers with their decay right: optax' own steps, and any decay after the learning rate."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from wdjax.checks import check_strength_or_schedule
from wdjax.decay.kernel import require_params, wide_dtype
from wdjax.types import Params, Schedule, Strength, is_inexact


def sgdw(
    learning_rate: Strength | Schedule,
    decay: optax.GradientTransformation,
    *,
    momentum: Strength | None = 0.9,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    """Momentum descent with decay beside the step, outside the momentum.

        v <- momentum * v + g ;  update = -eta_t * v ;  then `decay` acts on the update

    Args:
      learning_rate: eta_t, a number (traced or not) or a schedule.
      decay: any transformation that goes after the learning rate, such as
        `decoupled_decay(strength, learning_rate)`.
      momentum: None for plain descent.
      nesterov: look one step ahead.

    Raises:
      ValueError: for a learning rate that is known and negative or not finite.

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101, Algorithm 1.
    """
    check_strength_or_schedule("learning_rate", learning_rate)
    rate: Any = learning_rate
    beta: Any = momentum
    return optax.chain(optax.sgd(rate, momentum=beta, nesterov=nesterov), decay)


def adamw(
    learning_rate: Strength | Schedule,
    decay: optax.GradientTransformation,
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
      decay: any transformation that goes after the learning rate.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added outside the root.
      eps_root: added inside the root; 1e-12 makes the run differentiable where a gradient is
        exactly zero.

    Raises:
      ValueError: for a learning rate that is known and negative or not finite.

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101, Algorithm 2.
    """
    check_strength_or_schedule("learning_rate", learning_rate)
    rate: Any = learning_rate
    return optax.chain(optax.adam(rate, b1=b1, b2=b2, eps=eps, eps_root=eps_root), decay)


def lion(
    learning_rate: Strength | Schedule,
    decay: optax.GradientTransformation,
    *,
    b1: float = 0.9,
    b2: float = 0.99,
) -> optax.GradientTransformation:
    """Lion with decay beside the step (`optax.lion` decays by 1e-3 unless told not to).

        update = -eta_t * sign(b1 * m + (1 - b1) * g) ;  m <- b2 * m + (1 - b2) * g

    Args:
      learning_rate: eta_t, a number (traced or not) or a schedule; 3-10 times below Adam's.
      decay: any transformation that goes after the learning rate; its strength 3-10 times
        above Adam's, so that their product stays.
      b1: share of the momentum in the sign.
      b2: decay of the momentum.

    Raises:
      ValueError: for a learning rate that is known and negative or not finite.

    Source: Chen et al. 2023, arXiv:2302.06675.
    """
    check_strength_or_schedule("learning_rate", learning_rate)
    rate: Any = learning_rate
    return optax.chain(optax.lion(rate, b1=b1, b2=b2, weight_decay=0.0), decay)


def muon(
    learning_rate: Strength | Schedule,
    decay: optax.GradientTransformation,
    *,
    beta: float = 0.95,
    consistent_rms: float = 0.2,
) -> optax.GradientTransformation:
    """Muon for matrices, Nesterov Adam for the rest, and one decay that reaches both branches.

    The decay acts on the joint update, so its `parts` mean the same everywhere (the masks of
    `optax.contrib.muon` do not reach its Adam branch), and by the unadjusted learning rate.

    Args:
      learning_rate: eta_t, a number (traced or not) or a schedule, of both branches.
      decay: any transformation that goes after the learning rate.
      beta: decay of the momentum.
      consistent_rms: the root mean square of a matrix' update per learning rate; at 0.2, that
        of AdamW, its learning rates and strengths can be used again.

    Raises:
      ValueError: for a learning rate that is known and negative or not finite.

    Source: Jordan et al. 2024; Liu et al. 2025, arXiv:2502.16982 for decay and the adjustment.
    """
    check_strength_or_schedule("learning_rate", learning_rate)
    rate: Any = learning_rate
    return optax.chain(optax.contrib.muon(rate, beta=beta, consistent_rms=consistent_rms), decay)


class MasterState(NamedTuple):
    """The weights in float32, and the state of the transformation that moves them."""

    master: PyTree
    """A float32 copy of every leaf in half precision; an empty tuple for the others."""
    inner: PyTree


def float32_master(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Lets half-precision weights take steps smaller than their dtype can hold.

        master <- master + tx(update) ;  params <- master, rounded to their dtype

    In bfloat16 `1 - 1e-4` is 1: without a master, decay at that rate never moves a weight of 1.
    The whole chain goes inside: `float32_master(optax.chain(optax.adam(lr), decay))`. Leaves of
    float32 and more are passed through. Weights changed from outside (other than by the
    updates) are not noticed: call `init` again.

    Args:
      tx: what is to see, and to move, the float32 weights.

    Raises:
      ValueError: in `update`, when `params` is missing.

    Source: Micikevicius et al. 2018, arXiv:1710.03740 (master weights).
    """

    def narrow(leaf: Any) -> bool:
        return is_inexact(leaf) and wide_dtype(leaf) != jnp.result_type(leaf)

    def wide(leaf: Any, master: Any) -> Any:
        return master if narrow(leaf) else leaf

    def init(params: Params) -> MasterState:
        master = jax.tree.map(lambda p: jnp.asarray(p, wide_dtype(p)) if narrow(p) else (), params)
        return MasterState(master, tx.init(jax.tree.map(wide, params, master)))

    def update(
        updates: PyTree, state: Any, params: Params | None = None
    ) -> tuple[PyTree, MasterState]:
        params = require_params(params)
        weights = jax.tree.map(wide, params, state.master)
        widened = jax.tree.map(
            lambda u, p: u.astype(wide_dtype(p)) if narrow(p) else u, updates, params
        )
        steps, inner = tx.update(widened, state.inner, weights)
        master = jax.tree.map(
            lambda p, m, s: m + s if narrow(p) else (), params, state.master, steps
        )

        def difference(update, leaf, goal, step):
            """What `leaf + update` needs to round to the master: exact within a factor of 2."""
            if not narrow(leaf):
                return step
            dtype = jnp.finfo(leaf.dtype)
            rounded = jax.lax.reduce_precision(goal, dtype.nexp, dtype.nmant)
            return (rounded - leaf).astype(update.dtype)

        updates = jax.tree.map(difference, updates, params, master, steps)
        return updates, MasterState(master, inner)

    return optax.GradientTransformation(init, update)
