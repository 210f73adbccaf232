"""Loss builders: per-example losses, and the pure function that composes them with a penalty.

Example:
  >>> linear = lambda w, x: x @ w
  >>> loss_fn = wdjax.regularized_loss(linear, wdjax.squared_error, wdjax.l2_penalty(0.1))
  >>> batch = wdjax.Batch(jnp.eye(2), jnp.array([1.0, 0.0]), jnp.ones(2))
  >>> loss, aux = loss_fn(jnp.array([2.0, 0.0]), batch)
  >>> print(f"{loss:.2f} = {aux.data_loss:.2f} + {aux.penalty:.2f}")
  0.45 = 0.25 + 0.20
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, Inexact, Num, PyTree

from wdjax.checks import check_labels, check_number, check_one_of, is_known
from wdjax.interfaces import check_apply, check_batch
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
    wide,
)
from wdjax.weights.zero import fill_inactive_rows, validated_weights, weighted_sum


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
    weight > 0: then small weights also lower the data loss against the penalty. Sums are taken
    in float32 at least, whatever the losses' dtype.

    A row of weight 0 is inactive: it adds exactly zero to value and gradient, also when it holds
    NaN. The model sees an active row in its place (`weights.fill_inactive_rows`), so one that is
    singular at zero stays finite and batch statistics see real rows.

    In a batch without any active row the data loss and its gradient are 0, the model's state stays
    as it was, and the penalty acts.

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
      shape of `batch.weights`, multiplies them; which rows are replaced `batch.weights` alone
      says, so finite data are not replaced where only an example weight is 0.

    Raises:
      ValueError: at build, for an unknown `normalize` or an `apply_fn` that is neither a function
        nor a `Model`; when `loss_fn` is called or traced, if `example_loss` returned anything but
        one number per example (a forgotten reduction, or `[batch, 1] - [batch]`), if
        `batch.weights` do not fit the inputs, or are known and negative or not finite. (Inside a
        compiled program, where nothing can be refused, such weights make the loss NaN.)
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
        example_weights: ArrayLike | None = None,
    ) -> tuple[Array, LossAux]:
        check_batch("batch", batch)
        model = lambda seen, inputs: apply(seen, model_state, inputs, key=key, train=train)
        seen = params if part_weights is None else _scale_gradient(params, part_weights)
        data_loss, denominator, some_active, new_state = _data_loss(
            model, example_loss, normalize, seen, batch, example_weights
        )
        model_state = _kept_unless(some_active, new_state, model_state)
        penalty_value = jnp.zeros_like(data_loss) if penalty is None else penalty(params)
        aux = LossAux(data_loss, penalty_value, denominator, model_state)
        return data_loss + penalty_value, aux

    return loss_fn


def loss_of_filled(loss_fn: LossFn) -> LossFn:
    """The loss of rows that were filled already, so none of them is chosen again.

    With one choice less, the compiler shares the forward pass of the loss with that of the example
    weights, which reads the same rows.
    """

    def loss(
        params: Params, batch: Batch, *, model_state: PyTree = None, key: Any = None
    ) -> tuple[Array, LossAux]:
        filled = batch._replace(weights=np.ones(jnp.shape(batch.weights), np.float32))
        weights = batch.weights
        return loss_fn(params, filled, model_state=model_state, key=key, example_weights=weights)

    return loss


def _data_loss(
    model: Callable[[Params, PyTree], tuple[Any, PyTree]],
    example_loss: ExampleLoss,
    normalize: str,
    params: Params,
    batch: Batch,
    example_weights: ArrayLike | None,
) -> tuple[Array, Array, Any, PyTree]:
    """The mean over the active rows, its denominator, whether there is any, the model's state."""
    weights = validated_weights(batch.weights)
    inputs, targets = fill_inactive_rows(batch.inputs, batch.targets, batch.weights)
    if example_weights is not None:
        weights = weights * validated_weights(example_weights)
    active = weights != 0
    some_active = _some_active(batch.weights, active, example_weights)
    # Around the scaled params, so that no multiplier meets a derivative that is not finite.
    outputs, state = model(_constant_unless(some_active, params), inputs)
    losses = example_loss(outputs, targets)
    _check_losses(losses, weights)
    total = weighted_sum(weights, losses)
    denominator = jnp.sum(weights if normalize == "weights" else active, dtype=total.dtype)
    return total / jnp.where(denominator > 0, denominator, 1), denominator, some_active, state


def cross_entropy(
    logits: Inexact[Array, "*batch label"], targets: Num[ArrayLike, "..."]
) -> Float[Array, "*batch"]:
    """Cross-entropy from logits, one number per example, in nats.

        l = log(sum_c exp(z_c)) - z_y          for integer labels y[batch]
        l = -sum_c t_c log softmax(z)_c        for soft targets t[batch, label]

    Computed in float32 at least: of many labels, half precision loses the small ones.

    Args:
      logits: `[batch, label]` or `[batch, time, label]`.
      targets: integers in `[0, label)`, one axis less; or floats in the shape of the logits. A
        label out of range cannot be refused inside a compiled program: `make_fit` and
        `cross_validate` look at those they are given, on the host.

    Raises:
      ValueError: if the targets' shape or dtype fits neither form, or a known label is out of
        range.

    Example:
      >>> logits = jnp.array([[2.0, 0.0], [0.0, 0.0]])
      >>> [f"{loss:.4f}" for loss in wdjax.cross_entropy(logits, jnp.array([0, 1]))]
      ['0.1269', '0.6931']
    """
    given, targets, logits = targets, jnp.asarray(targets), wide(logits)
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

    Computed in float32 at least: in float16 the square of 256 is infinite.

    Args:
      predictions: `[batch, ...]`; a single trailing axis of 1 may be missing in `targets`.
      targets: the same shape.

    Raises:
      ValueError: if the shapes differ: `[batch, 1] - [batch]` would broadcast to a square.

    Example:
      >>> print(wdjax.squared_error(jnp.array([1.0, 3.0]), jnp.array([1.0, 1.0])))
      [0. 2.]
    """
    half_square = lambda p, t: 0.5 * jnp.square(p - t)
    return _summed(half_square, "predictions", predictions, targets)


def binary_cross_entropy(
    logits: Inexact[Array, "batch ..."], targets: Num[ArrayLike, "..."]
) -> Float[Array, " batch"]:
    """Cross-entropy of one logit, that of the second of two classes, in nats.

        l = log(1 + exp(z)) - y z

    Computed in float32 at least. Of several logits an example (labels that do not exclude each
    other) it is their sum.

    Args:
      logits: `[batch, ...]`; a single trailing axis of 1 may be missing in `targets`.
      targets: the same shape: 0 or 1, or the probability of 1.

    Raises:
      ValueError: if the shapes differ, or a known target is outside [0, 1].
    """
    return _summed(lambda z, y: jax.nn.softplus(z) - y * z, "logits", logits, targets, (0.0, 1.0))


def poisson_loss(
    log_rates: Inexact[Array, "batch ..."], targets: Num[ArrayLike, "..."]
) -> Float[Array, " batch"]:
    """Minus the log-likelihood of counts under Poisson rates `exp(z)`, in nats.

        l = exp(z) - y z + log(y!)

    Computed in float32 at least, summed over trailing axes.

    Args:
      log_rates: `[batch, ...]`; a single trailing axis of 1 may be missing in `targets`.
      targets: the same shape, counts >= 0.

    Raises:
      ValueError: if the shapes differ, or a known target is below 0.
    """
    of = lambda z, y: jnp.exp(z) - y * z + jax.scipy.special.gammaln(y + 1)
    return _summed(of, "log_rates", log_rates, targets, (0.0, math.inf))


def huber_loss(delta: float = 1.0) -> ExampleLoss:
    """Builds the Huber loss: quadratic for errors up to `delta`, linear beyond.

        l = sum_j r_j^2 / 2 where |r_j| <= delta, else delta (|r_j| - delta / 2);  r = p - t

    Args:
      delta: > 0, in the unit of the targets (of the commands: their standard deviation).

    Raises:
      ValueError: for a `delta` that is not above 0 and finite; in the loss, if the shapes differ.

    Source: Huber 1964.
    """
    check_number("delta", delta, low=0.0, exclusive_low=True)

    def of(p: Array, t: Array) -> Array:
        size = jnp.abs(p - t)
        near = jnp.minimum(size, delta)
        return near * (size - near / 2)

    return lambda predictions, targets: _summed(of, "predictions", predictions, targets)


def quantile_loss(level: float = 0.5) -> ExampleLoss:
    """Builds the pinball loss, whose smallest mean is at the quantile `level`; 0.5: the median.

        l = sum_j max(level r_j, (level - 1) r_j);  r = t - p

    Args:
      level: in (0, 1).

    Raises:
      ValueError: for a `level` outside (0, 1); in the loss, if the shapes differ.

    Source: Koenker & Bassett 1978.
    """
    check_number("level", level, low=0.0, high=1.0, exclusive_low=True)
    if float(level) == 1.0:
        raise ValueError("`level` must be below 1, got level=1: no number has all others below it.")
    of = lambda p, t: jnp.maximum(level * (t - p), (level - 1) * (t - p))
    return lambda predictions, targets: _summed(of, "predictions", predictions, targets)


def _summed(
    of: Callable[[Array, Array], Array],
    name: str,
    predictions: Array,
    targets: Any,
    bounds: tuple[float, float] | None = None,
) -> Array:
    """`of` summed over trailing axes: one number per example, in float32 at least."""
    if bounds is not None and is_known(targets):
        known = np.asarray(targets)
        if known.size and not (known.min() >= bounds[0] and known.max() <= bounds[1]):
            raise ValueError(
                f"`targets` must lie between {bounds[0]:g} and {bounds[1]:g}, got values from "
                f"{known.min():g} to {known.max():g}."
            )
    targets = jnp.asarray(targets)
    if predictions.shape == (*targets.shape, 1):
        targets = targets[..., None]
    if predictions.shape != targets.shape:
        raise ValueError(
            f"`targets` must have the shape of the {name}, {predictions.shape}; "
            f"got {targets.shape}."
        )
    predictions = wide(predictions)
    is_float = jnp.issubdtype(targets.dtype, np.floating)
    values = of(predictions, wide(targets) if is_float else targets.astype(predictions.dtype))
    return jnp.sum(values, axis=tuple(range(1, values.ndim)))


def as_model_apply(apply_fn: Callable | Model) -> Callable:
    """`apply` of a `Model`; a plain `(params, inputs) -> outputs` in the same form.

    Raises:
      ValueError: for what is neither, with the way to make one of it.
    """
    check_apply("apply_fn", apply_fn)
    if isinstance(apply_fn, Model):
        return apply_fn.apply
    return lambda params, model_state, inputs, *, key, train: (
        apply_fn(params, inputs),
        model_state,
    )


def _some_active(batch_weights: Any, active: Array, example_weights: Any) -> Any:
    """Whether any row counts: True or False where that is known before anything runs."""
    if example_weights is None and is_known(batch_weights):
        return bool(np.any(np.asarray(batch_weights) != 0))
    return jnp.any(active)


def _constant_unless(some_active: Any, params: Params) -> Params:
    """The same values; where nothing is active, with a derivative of exactly zero.

    A product with 0 would leave NaN where the derivative inside is not finite. This chooses: it
    stops the cotangent in reverse mode and the tangent in forward mode, in any nesting.
    """
    if some_active is True:
        return params

    def one(leaf):
        if is_hidden(leaf) or not is_inexact(leaf):
            return leaf
        leaf = jnp.asarray(leaf)
        return jnp.where(some_active, leaf, jax.lax.stop_gradient(leaf))

    return jax.tree.map(one, params, is_leaf=is_hidden)


def _kept_unless(some_active: Any, new: PyTree, old: PyTree) -> PyTree:
    """The model's new state; the old one where nothing is active."""
    if some_active is True or new is old or jax.tree.structure(new) != jax.tree.structure(old):
        return new
    return jax.tree.map(
        lambda n, o: n if n is o else jnp.where(some_active, n, jnp.asarray(o, jnp.result_type(n))),
        new,
        old,
    )


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
