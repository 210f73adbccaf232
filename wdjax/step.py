"""One training step: pure, and not yet compiled."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from wdjax.types import Batch, LossFn, Params, is_inexact


class TrainState(NamedTuple):
    """Everything a step reads and replaces, and nothing else."""

    step: Int[Array, ""]
    params: Params
    opt_state: PyTree
    model_state: PyTree = None
    key: Any = None


Metrics = dict[str, Array]
StepFn = Callable[..., tuple[TrainState, Metrics]]
"""`step(state, batch, *, axis_name=None) -> (state, metrics)`."""


def init_state(
    params: Params,
    tx: optax.GradientTransformation,
    *,
    model_state: PyTree = None,
    key: Any = None,
) -> TrainState:
    """The state before the first step; `key` feeds dropout, step by step."""
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), model_state, key)


def make_train_step(loss_fn: LossFn, tx: optax.GradientTransformation) -> StepFn:
    """Builds `step(state, batch, *, axis_name=None) -> (state, metrics)`, pure.

        grads = d loss_fn / d params;  updates = tx(grads);  params <- params + updates

    The caller chooses how it runs: `jit_step`, `shard_step`, `pmap_step`, or a scan. With
    `axis_name`, the name of a mapped device axis, loss and gradients are combined by each
    device's share of the global denominator, so uneven weights and padding do not bias the
    mean, and a penalty counts once. `loss_fn` gets `fold_in(state.key, state.step)`.

    Returns:
      A step whose `metrics` are scalars measured at the params the gradient was taken at:
      `loss`, `data_loss`, `penalty`, `denominator`, `grad_norm`, `update_norm`, `weight_norm`.
    """

    def step(
        state: TrainState, batch: Batch, *, axis_name: str | None = None
    ) -> tuple[TrainState, Metrics]:
        key = None if state.key is None else jax.random.fold_in(state.key, state.step)

        def of_params(params):
            return loss_fn(params, batch, model_state=state.model_state, key=key)

        (loss, aux), grads = jax.value_and_grad(of_params, has_aux=True)(state.params)
        if axis_name is not None:
            loss, aux, grads = _combine_over(axis_name, loss, aux, grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        metrics = {
            "loss": loss,
            "data_loss": aux.data_loss,
            "penalty": aux.penalty,
            "denominator": aux.denominator,
            "grad_norm": optax.tree.norm(grads),
            "update_norm": optax.tree.norm(updates),
            "weight_norm": optax.tree.norm(state.params),
        }
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state, aux.model_state, state.key), metrics

    return step


def _combine_over(axis_name: str, loss: Array, aux: Any, grads: PyTree) -> tuple:
    """Sums over devices, each weighted by its share of what counts (all alike if nothing does)."""
    total = jax.lax.psum(aux.denominator, axis_name)
    alike = 1 / jax.lax.psum(jnp.ones_like(total), axis_name)
    share = jnp.where(total > 0, aux.denominator / jnp.where(total > 0, total, 1), alike)

    def combined(x):
        return jax.lax.psum(share * x, axis_name).astype(x.dtype) if is_inexact(x) else x

    loss, data_loss, penalty, grads, model_state = jax.tree.map(
        combined, (loss, aux.data_loss, aux.penalty, grads, aux.model_state)
    )
    return (
        loss,
        aux._replace(
            data_loss=data_loss, penalty=penalty, denominator=total, model_state=model_state
        ),
        grads,
    )
