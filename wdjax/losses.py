"""Loss builders: per-example losses, and the pure function that composes them with a penalty."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, Inexact, Num, PyTree

from wdjax.checks import check_labels, check_one_of, check_weights, is_known
from wdjax.kinds import check_apply, check_batch
from wdjax.parts import is_hidden, resolve_parts
from wdjax.types import (
    Batch,
    ExampleLoss,
    LossAux,
    LossFn,
    Model,
    Params,
    Parts,
    PenaltyFn,
    is_inexact,
)


def regularized_loss(
    apply_fn: Callable[[Params, Any], Any] | Model,
    example_loss: ExampleLoss,
    penalty: PenaltyFn | None = None,
    *,
    part_weights: Parts = None,
    normalize: str = "weights",
) -> LossFn:
    """Builds the weighted, penalised empirical risk.

        loss(params, batch) = sum_i w_i l(f(params, x_i), y_i) / denominator + penalty(params)

    The denominator is `sum_i w_i`, so an integer weight equals a repeated row and a strength
    means the same at every batch size. Under `normalize="count"` it is the number of rows of
    weight > 0: then small weights also lower the data loss against the penalty. If nothing
    counts, the data loss is 0. A row of weight 0 adds exactly zero to value and gradient, also
    when it holds NaN: its inputs and targets are replaced by zeros, since 0 * NaN is NaN. (With
    weights `[batch, time]` a target is replaced where its weight is 0, an input only where the
    whole row's are: a position that is not scored is still read.) Batch statistics are the one
    way in for such a row: the zeros enter them, so drop a remainder rather than pad it there.

    Args:
      apply_fn: `(params, inputs[batch, ...]) -> outputs[batch, ...]`, or a `Model`.
      example_loss: `(outputs, targets) -> losses`, in the shape of `batch.weights`.
      penalty: `params -> scalar`, such as `l2_penalty(1e-4)`; added once.
      part_weights: multipliers m in any form of `parts`: each leaf then sees its own data loss,
        gradient `m * dL/dw`, value unchanged. The penalty is not touched. (Adam divides a
        constant m out: without a penalty it does nothing, with one it is a penalty / m.)
      normalize: "weights" or "count".

    Returns:
      `loss_fn(params, batch, *, model_state=None, key=None, train=True) -> (loss, LossAux)`,
      ready for `jax.value_and_grad(loss_fn, has_aux=True)`. Its keyword `example_weights`, in the
      shape of `batch.weights`, multiplies them; which rows are replaced by zeros `batch.weights`
      alone says.

    Raises:
      ValueError: at build, for an unknown `normalize` or an `apply_fn` that is neither a function
        nor a `Model`; when `loss_fn` is called or traced, if
        `example_loss` returned anything but one number per example (a forgotten reduction, or
        `[batch, 1] - [batch]`), if `batch.weights` do not fit the inputs, or are known and
        negative or not finite. (Such weights inside a compiled program, where nothing can be
        refused, make the loss NaN.)
    """
    check_one_of("normalize", normalize, ("weights", "count"))
    apply = as_model_apply(apply_fn)

    def loss_fn(
        params: Params,
        batch: Batch,
        *,
        model_state: PyTree = None,
        key: Array | None = None,
        train: bool = True,
        example_weights: Array | None = None,
    ) -> tuple[Array, LossAux]:
        check_batch("batch", batch)
        weights = sound_weights(batch.weights)
        counts = weights != 0
        inputs, targets = without_dead_rows(batch.inputs, batch.targets, counts)
        seen = params if part_weights is None else _scale_gradient(params, part_weights)
        outputs, model_state = apply(seen, model_state, inputs, key=key, train=train)
        losses = example_loss(outputs, targets)
        _check_losses(losses, weights)
        if example_weights is not None:
            weights = weights * sound_weights(example_weights)
            counts = weights != 0
        denominator = jnp.sum(weights if normalize == "weights" else counts, dtype=losses.dtype)
        total = jnp.sum(jnp.where(counts, weights * losses, 0))
        data_loss = total / jnp.where(denominator > 0, denominator, 1)
        penalty_value = jnp.zeros_like(data_loss) if penalty is None else penalty(params)
        aux = LossAux(data_loss, penalty_value, denominator, model_state)
        return data_loss + penalty_value, aux

    return loss_fn


def cross_entropy(
    logits: Inexact[Array, "*batch label"], targets: Num[ArrayLike, "..."]
) -> Float[Array, "*batch"]:
    """Cross-entropy from logits, one number per example, in nats.

        l = log(sum_c exp(z_c)) - z_y          for integer labels y[batch]
        l = -sum_c t_c log softmax(z)_c        for soft targets t[batch, label]

    Args:
      logits: `[batch, label]` or `[batch, time, label]`.
      targets: integers in `[0, label)`, one axis less; or floats in the shape of the logits. A
        label out of range cannot be refused inside a compiled program: `make_fit` and
        `cross_validate` look at those they are given, on the host.

    Raises:
      ValueError: if the targets' shape or dtype fits neither form, or a known label is out of
        range.
    """
    given, targets = targets, jnp.asarray(targets)
    if jnp.issubdtype(targets.dtype, np.integer) and targets.shape == logits.shape[:-1]:
        check_labels("targets", given, logits.shape[-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    if jnp.issubdtype(targets.dtype, np.floating) and targets.shape == logits.shape:
        return optax.softmax_cross_entropy(logits, targets)
    raise ValueError(
        f"`targets` must be integer labels of shape {logits.shape[:-1]} or soft targets (floats) "
        f"of shape {logits.shape}; got {targets.dtype} of shape {targets.shape}."
    )


def squared_error(
    predictions: Inexact[Array, "batch ..."], targets: Num[ArrayLike, "..."]
) -> Float[Array, " batch"]:
    """Half the squared error, summed over trailing axes: one number per example.

        l = 1/2 sum_j (p_j - t_j)^2

    Args:
      predictions: `[batch, ...]`; a single trailing axis of 1 may be missing in `targets`.
      targets: the same shape.

    Raises:
      ValueError: if the shapes differ: `[batch, 1] - [batch]` would broadcast to a square.
    """
    targets = jnp.asarray(targets)
    if predictions.shape == (*targets.shape, 1):
        targets = targets[..., None]
    if predictions.shape != targets.shape:
        raise ValueError(
            f"`targets` must have the shape of the predictions, {predictions.shape}; "
            f"got {targets.shape}."
        )
    half_squares = 0.5 * jnp.square(predictions - targets)
    return jnp.sum(half_squares, axis=tuple(range(1, half_squares.ndim)))


def as_model_apply(apply_fn: Callable | Model) -> Callable:
    """`apply` of a `Model`; a plain `(params, inputs) -> outputs` in the same form."""
    check_apply("apply_fn", apply_fn)
    if isinstance(apply_fn, Model):
        return apply_fn.apply
    return lambda params, model_state, inputs, *, key, train: (
        apply_fn(params, inputs),
        model_state,
    )


def without_dead_rows(inputs: PyTree, targets: PyTree, counts: Array) -> tuple[PyTree, PyTree]:
    """Zeros where no weight is: whole rows of the inputs, single positions of the targets."""
    alive = counts.any(axis=tuple(range(1, counts.ndim)))

    def mask(leaf, keep):
        leaf = jnp.asarray(leaf)
        if leaf.shape[: keep.ndim] != keep.shape:
            raise ValueError(
                f"`weights` of shape {counts.shape} do not fit an input or target of shape "
                f"{leaf.shape}: give one weight per example, or per example and time."
            )
        keep = keep.reshape(keep.shape + (1,) * (leaf.ndim - keep.ndim))
        return jnp.where(keep, leaf, jnp.zeros((), leaf.dtype))

    return (
        jax.tree.map(lambda x: mask(x, alive), inputs),
        jax.tree.map(lambda y: mask(y, counts if jnp.ndim(y) >= counts.ndim else alive), targets),
    )


def sound_weights(weights: Any) -> Array:
    """The weights as an array; a negative one is refused or, if traced, becomes NaN."""
    if is_known(weights):
        check_weights("weights", weights)
    weights = jnp.asarray(weights)
    if not jnp.issubdtype(weights.dtype, np.floating):
        return weights
    return jnp.where(weights >= 0, weights, jnp.nan)


def _scale_gradient(params: Params, part_weights: Parts) -> Params:
    """The same values, with gradient `m * dL/dw`.

    By a derivative of its own rather than by `m * w + stop((1 - m) * w)`: the value is w to the
    last bit, no weight is read or written for it, and a derivative with respect to m sees the
    gradient alone, not the value.
    """

    def scaled(leaf, m):
        if is_hidden(leaf) or not is_inexact(leaf):
            return leaf
        leaf = jnp.asarray(leaf)
        return _with_scaled_gradient(leaf, jnp.asarray(m, leaf.dtype))

    return jax.tree.map(scaled, params, resolve_parts(part_weights, params), is_leaf=is_hidden)


@jax.custom_jvp
def _with_scaled_gradient(leaf: Array, multiplier: Array) -> Array:
    return leaf


@_with_scaled_gradient.defjvp
def _scaled_tangent(primals: tuple, tangents: tuple) -> tuple:
    (leaf, multiplier), (tangent, _) = primals, tangents
    return leaf, multiplier * tangent


def _check_losses(losses: Any, weights: Array) -> None:
    if jnp.shape(losses) != weights.shape:
        raise ValueError(
            f"`example_loss` returned shape {jnp.shape(losses)}; expected one loss per example, "
            f"shape {weights.shape}, that of the weights."
        )
