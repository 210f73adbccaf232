"""One training step: pure, and not yet compiled.

Example:
  >>> loss_fn = wdjax.regularized_loss(lambda w, x: x @ w, wdjax.squared_error)
  >>> tx = optax.chain(optax.sgd(0.5), wdjax.decoupled_decay(0.5, 0.5))
  >>> state = wdjax.init_state(jnp.array([2.0]), tx)
  >>> batch = wdjax.Batch(jnp.ones((1, 1)), jnp.ones(1), jnp.ones(1))
  >>> state, metrics = wdjax.make_train_step(loss_fn, tx)(state, batch)
  >>> print(state.params, metrics["loss"])
  [1.] 0.5
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from wdjax.checks import check_positive_int
from wdjax.interfaces import check_batch, check_params
from wdjax.moved import moved_keywords, moved_names
from wdjax.types import Batch, LossAux, LossFn, Params, is_inexact, wide


class TrainState(NamedTuple):
    """Everything a step reads and replaces, and nothing else."""

    step: Int[Array, ""]
    params: Params
    opt_state: PyTree
    model_state: PyTree = None
    key: Any = None


AnyState = Any
"""A `TrainState`, or a tuple of its fields and more: what steps, runners and loops pass on."""

Metrics = dict[str, Any]
"""Scalars by name; `telemetry` is a tree of them."""

StepFn = Callable[..., tuple[AnyState, Metrics]]
"""`step(state, batch, *, axis_name=None) -> (state, metrics)`."""

TelemetryFn = Callable[[TrainState, PyTree, PyTree], PyTree]
"""`(state, grads, updates) -> tree of scalars`, the state before the updates; pure."""


def init_state(
    params: Params,
    tx: optax.GradientTransformation,
    *,
    model_state: PyTree = None,
    key: Any = None,
) -> TrainState:
    """The state before the first step; `key` feeds dropout, step by step.

    Leaves of `params` that training does not move, integers and keys, are hidden from `tx` as by
    `optax.masked`.

    Raises:
      ValueError: if `params` are a model instead of its weights.
    """
    check_params("params", params)
    opt_state = tx.init(_trained(params))
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state, model_state, key)


@moved_keywords(measure="telemetry")
def make_train_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    *,
    num_micro_batches: int = 1,
    telemetry: TelemetryFn | None = None,
) -> StepFn:
    """Builds `step(state, batch, *, axis_name=None) -> (state, metrics)`, pure.

        grads = d loss_fn / d params;  updates = tx(grads);  params <- params + updates

    The caller chooses how it runs: `jit_step`, `shard_step`, `pmap_step`, or a scan. With
    `axis_name`, the name of a mapped device axis, loss and gradients are combined by each
    device's share of the global denominator, so uneven weights and padding do not bias the
    mean, and a penalty counts once. `loss_fn` gets `fold_in(state.key, state.step)`. Integer
    leaves of the params stay what they are, and `tx` does not see them (see `init_state`). What is
    summed, norms included, is summed in float32 at least.

    With `num_micro_batches` = k > 1 the batch goes through the loss in k parts, one after the
    other, which takes the memory of one part: the gradient is that of the whole batch (each part
    by its share of the denominator), the penalty counts once, and `tx`, its decay included, is
    applied once. What differs from the whole batch: each part draws its own dropout, and batch
    statistics are taken part by part.

    `telemetry`, such as `measure_parts`, sees what the step sees, and the metrics hold what it
    gives under `telemetry`. It changes nothing but the last bits, since what is looked at is
    compiled otherwise; where those count, take the step once more, as `advance` does.

    Returns:
      A step whose `metrics` are scalars measured at the params the gradient was taken at:
      `loss`, `data_loss`, `penalty`, `denominator`, `grad_norm`, `update_norm`, `weight_norm`.

    Raises:
      ValueError: at build, if `num_micro_batches` is not an integer >= 1; in the step, if the
        batch does not divide into as many parts.
    """
    check_positive_int("num_micro_batches", num_micro_batches)

    def step(
        state: TrainState, batch: Batch, *, axis_name: str | None = None
    ) -> tuple[TrainState, Metrics]:
        key = None if state.key is None else jax.random.fold_in(state.key, state.step)

        if num_micro_batches == 1:
            loss, aux, grads = _loss_and_grads(loss_fn, state, batch, key)
        else:
            loss, aux, grads = _accumulated(loss_fn, state, batch, key, num_micro_batches)
        if axis_name is not None:
            loss, aux, grads = _combine_over(axis_name, loss, aux, grads)
        trained = _trained(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, trained)
        metrics = {
            "loss": loss,
            "data_loss": aux.data_loss,
            "penalty": aux.penalty,
            "denominator": aux.denominator,
            "grad_norm": _norm(grads),
            "update_norm": _norm(updates),
            "weight_norm": _norm(trained),
        }
        if telemetry is not None:
            metrics["telemetry"] = telemetry(state, grads, updates)
        params = _with_trained(state.params, optax.apply_updates(trained, updates))
        return TrainState(state.step + 1, params, opt_state, aux.model_state, state.key), metrics

    return step


def _trained(params: Params) -> Params:
    """The params, leaves that training does not move hidden as `optax.masked` does."""
    return jax.tree.map(lambda p: p if is_inexact(p) else optax.MaskedNode(), params)


def _with_trained(params: Params, trained: Params) -> Params:
    """`params` with the leaves of `trained` that are not hidden."""
    return jax.tree.map(lambda p, t: t if is_inexact(p) else p, params, trained)


def _norm(tree: PyTree) -> Array:
    """The Euclidean norm of all leaves together, in float32 at least."""
    return optax.tree.norm(jax.tree.map(wide, tree))


def _loss_and_grads(loss_fn: LossFn, state: TrainState, batch: Batch, key: Any) -> tuple:
    def of_trained(trained):
        params = _with_trained(state.params, trained)
        return loss_fn(params, batch, model_state=state.model_state, key=key)

    (loss, aux), grads = jax.value_and_grad(of_trained, has_aux=True)(_trained(state.params))
    return loss, aux._replace(denominator=wide(aux.denominator)), grads


def _accumulated(
    loss_fn: LossFn, state: TrainState, batch: Batch, key: Any, num_parts: int
) -> tuple:
    """Loss, aux and gradients of the whole batch from `num_parts` parts, in one part's memory.

    A running mean, `mean += share * (part - mean)`, the share being the part's of the
    denominator so far: a penalty, the same in every part, stays what it is. Taken in float32 at
    least: in bfloat16 a small part's share would be rounded away.
    """
    check_batch("batch", batch)
    size = jnp.shape(batch.weights)[0]
    if size % num_parts:
        raise ValueError(
            f"a batch of {size} does not divide into {num_parts} micro-batches; take a multiple."
        )

    def split(x):
        # Every num_parts-th row: where devices hold the batch, no row leaves its device.
        x = jnp.asarray(x)
        return jnp.swapaxes(x.reshape(size // num_parts, num_parts, *x.shape[1:]), 0, 1)

    def of_part(part, model_state, key):
        loss, aux, grads = _loss_and_grads(
            loss_fn, state._replace(model_state=model_state), part, key
        )
        return (loss, aux.data_loss, aux.penalty, grads), aux.denominator, aux.model_state

    def one(carry, numbered_part):
        mean, total, model_state = carry
        number, part = numbered_part
        part_key = None if key is None else jax.random.fold_in(key, number)
        here, denominator, model_state = of_part(part, model_state, part_key)
        total = total + denominator
        share = jnp.where(total > 0, denominator / jnp.where(total > 0, total, 1), 1 / (number + 1))
        mean = jax.tree.map(lambda m, x: (m + share * (x - m)).astype(m.dtype), mean, here)
        return (mean, total, model_state), None

    parts = jax.tree.map(split, batch)
    first = jax.tree.map(lambda x: x[0], parts)
    shapes = jax.eval_shape(of_part, first, state.model_state, key)[:2]
    start = jax.tree.map(lambda s: wide(jnp.zeros(s.shape, s.dtype)), shapes)
    (mean, total, model_state), _ = jax.lax.scan(
        one, (*start, state.model_state), (jnp.arange(num_parts), parts)
    )
    mean = jax.tree.map(lambda m, s: m.astype(s.dtype), mean, shapes[0])
    loss, data_loss, penalty, grads = mean
    return loss, LossAux(data_loss, penalty, total, model_state), grads


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


__getattr__ = moved_names(
    __name__,
    {
        "MeasureFn": ("wdjax.step", "TelemetryFn"),
        "skip_non_finite": ("wdjax.run", "skip_non_finite"),
    },
)
