"""How much each example counts: sigmoid of a feature, class-balanced, focal, learned."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

from wdjax.checks import check_labels, check_number, is_known
from wdjax.losses import as_model_apply, cross_entropy, regularized_loss
from wdjax.types import Batch, ExampleLoss, Model, Params, Strength, wide
from wdjax.weights.zero import fill_inactive_rows

ExampleFeature = Callable[[Any, Batch, Array], Array]
"""`(outputs, batch, augment_strength) -> x`, one number per example."""

ExampleWeight = Callable[[Any, Batch, Array], Array]
"""`(outputs, batch, augment_strength) -> weights`: what `make_example_weight` gives."""


# The weight of the articles, and what it may look at.


def sigmoid_weight(x: ArrayLike, slope: Strength) -> Array:
    """The weight of an example (or a part) with the feature `x`, elementwise, without overflow.

        w = 1 / (1 + exp(-slope * x));   dw/dslope = x * w * (1 - w)

    At slope 0 every weight is 1/2; a large slope tends to the step 1[x > 0]; a negative slope
    turns the order round. Dividing a data loss by the sum of the weights, as `regularized_loss`
    does, takes the common factor out again.

    Args:
      x: the feature, finite, any shape.
      slope: a finite number of either sign. May be traced: an axis of a grid, or differentiated.

    Raises:
      ValueError: if the slope is not a scalar, or is known and not finite.

    Example:
      >>> [f"{wdjax.sigmoid_weight(x, slope=2.0):.3f}" for x in (-1.0, 0.0, 1.0)]
      ['0.119', '0.500', '0.881']
    """
    check_number("slope", slope)
    slope = float(slope) if isinstance(slope, int) else slope  # One beyond int32 as well.
    return jax.nn.sigmoid(jnp.asarray(slope) * jnp.asarray(x))


def sigmoid_example_weight(feature: ExampleFeature, slope: Strength) -> ExampleWeight:
    """Builds `(outputs, batch, augment_strength) -> sigmoid_weight(feature(...), slope)`.

    For `make_fit`: `make_example_weight=lambda h: sigmoid_example_weight(margin, h["slope"])`.
    `feature` is `augment_strength`, `margin`, `confidence`, `example_loss_of(loss)`, or any
    function of the same arguments. An array of the user's travels in the batch, whose inputs
    may be a tree: `lambda outputs, batch, strength: batch.inputs["quality"]`.

    `make_fit` computes weights outside the loss that it differentiates, so a step's gradient
    takes them as constants, and the features stop no gradient. In a loss of one's own that
    makes its weights inside, put `jax.lax.stop_gradient` around them.

    Raises:
      ValueError: as `sigmoid_weight`.
    """
    check_number("slope", slope)
    return lambda outputs, batch, strength: sigmoid_weight(feature(outputs, batch, strength), slope)


def augment_strength(outputs: Any, batch: Batch, strength: Array) -> Array:
    """The feature of S4: how strongly the example was augmented, in [0, 1]."""
    return strength


def example_loss_of(example_loss: ExampleLoss) -> ExampleFeature:
    """Builds the feature `l(outputs, targets)`: how badly the model does on the example."""
    return lambda outputs, batch, strength: example_loss(outputs, batch.targets)


def margin(outputs: Any, batch: Batch, strength: Array) -> Array:
    """The feature `z_y - max_{c != y} z_c`: positive where the model is right.

    Logits `[..., label]` and integer labels `[...]`.

    Raises:
      ValueError: for soft targets, or fewer than two labels.
    """
    labels = _hard_labels("margin", outputs, batch.targets)
    return _of_label(outputs, labels) - jnp.max(outputs, -1, where=~labels, initial=-jnp.inf)


def confidence(outputs: Any, batch: Batch, strength: Array) -> Array:
    """The feature `max_c softmax(z)_c`, in [1 / labels, 1]: how sure the model is, right or not."""
    return jnp.max(jax.nn.softmax(outputs), axis=-1)


# From the literature.


def class_balanced_weights(counts: ArrayLike | Sequence, beta: Strength) -> Array:
    """The weight of each class by its effective number of examples, mean 1 over classes.

        w_c = (1 - beta) / (1 - beta^{n_c}), rescaled to sum_c w_c = number of classes

    At beta 0 all are 1; towards 1 they tend to 1 / n_c. Use them by label:
    `by_label(class_balanced_weights(np.bincount(targets), 0.999))`.

    Args:
      counts: n_c `[class]`, the examples of each class, >= 1.
      beta: in [0, 1). May be traced.

    Raises:
      ValueError: for a class that is known to have no example, counts of another shape, or a
        beta that is known and out of range.

    Source: Cui et al. 2019, arXiv:1901.05555.
    """
    check_number("beta", beta, low=0.0)
    if is_known(beta) and not float(beta) < 1:
        raise ValueError(f"`beta` must be below 1, got {float(beta):g}; try 0.99 to 0.9999.")
    if is_known(counts):
        _check_counts(np.asarray(counts))
    n = jnp.asarray(counts, jnp.result_type(float))
    # 1 - beta^n as -expm1(-n rate): near beta = 1 the difference would cancel.
    tiny = jnp.finfo(n.dtype).tiny
    if is_known(beta):
        # In float64 on the host: float32 has no number between 1 - 6e-8 and 1.
        rate = jnp.asarray(-np.log(max(float(beta), float(tiny))), n.dtype)
    else:
        rate = -jnp.log(jnp.maximum(jnp.asarray(beta, n.dtype), tiny))
    # A traced beta may round to 1: then the limit, where the weights are 1 / n.
    positive = rate > 0
    safe = jnp.where(positive, rate, 1)
    raw = jnp.where(positive, safe / -jnp.expm1(-n * safe), 1 / n)
    return raw / jnp.mean(raw)


def by_label(class_weights: ArrayLike) -> ExampleWeight:
    """Builds `(outputs, batch, augment_strength) -> class_weights[batch.targets]`.

    Raises:
      ValueError: when called with soft targets, or with another number of labels than weights.
    """

    def weigh(outputs: Any, batch: Batch, strength: Array) -> Array:
        of_class = jnp.asarray(class_weights)
        if of_class.shape != jnp.shape(outputs)[-1:]:
            raise ValueError(
                f"`class_weights` must hold one weight per label, shape {jnp.shape(outputs)[-1:]}; "
                f"got {of_class.shape}."
            )
        _hard_labels("by_label", outputs, batch.targets)
        return of_class[batch.targets]

    return weigh


def focal_weight(gamma: Strength) -> ExampleWeight:
    """Builds the weight `(1 - p_y)^gamma`: examples that the model already knows count less.

    p_y is the softmax probability of the label. As a weight it is constant in a step; in
    `focal_loss` it is differentiated as well.

    Args:
      gamma: >= 0, may be traced; 0 weighs all alike, 2 is the paper's.

    Raises:
      ValueError: for a gamma known and negative; when called, for soft targets.

    Source: Lin et al. 2017, arXiv:1708.02002.
    """
    check_number("gamma", gamma, low=0.0)
    return lambda outputs, batch, strength: _focal_factor(outputs, batch.targets, gamma)


def focal_loss(gamma: Strength, class_weights: ArrayLike | None = None) -> ExampleLoss:
    """Builds the focal loss, `(logits[..., label], labels[...]) -> losses[...]`, in nats.

        l = -alpha_y (1 - p_y)^gamma log p_y,   p = softmax(z)

    With the two logits (0, z) and `class_weights` (1 - alpha, alpha) it is
    `optax.losses.sigmoid_focal_loss(z, y, alpha, gamma)`.

    Args:
      gamma: >= 0, may be traced; 0 is cross-entropy.
      class_weights: alpha `[label]`; by default 1 for every label.

    Raises:
      ValueError: for a gamma known and negative; when called, for soft targets.

    Source: Lin et al. 2017, arXiv:1708.02002.
    """
    check_number("gamma", gamma, low=0.0)

    def loss(logits: Array, targets: Any) -> Array:
        losses = _focal_factor(logits, targets, gamma) * cross_entropy(logits, targets)
        return losses if class_weights is None else jnp.asarray(class_weights)[targets] * losses

    return loss


def importance_weights(log_ratio: ArrayLike) -> Array:
    """Weights for a training part drawn from another density than the test's, of mean 1.

        w_i = n r_i / sum_j r_j,   r = p_test / p_train,   from log r `[example]`

    Self-normalised: a constant in the ratio cancels, and no r overflows.

    Raises:
      ValueError: if `log_ratio` is not one number per example, or is known and holds NaN or
        +inf (-inf is a ratio of zero), or nothing else than zeros.

    Source: Shimodaira 2000.
    """
    ratio = wide(log_ratio)
    if ratio.ndim != 1:
        raise ValueError(f"`log_ratio` must be one number per example, got shape {ratio.shape}.")
    if is_known(log_ratio):
        values = np.asarray(log_ratio)
        if np.isnan(values).any() or not np.isfinite(values.max(initial=-np.inf)):
            raise ValueError(
                "`log_ratio` must hold log p_test - log p_train: no NaN, no +inf, and at least "
                "one example of finite ratio."
            )
    return ratio.shape[0] * jax.nn.softmax(ratio)


def learned_weights(
    apply_fn: Callable[[Params, Any], Any] | Model,
    example_loss: ExampleLoss,
    params: Params,
    batch: Batch,
    clean: Batch,
    *,
    model_state: PyTree = None,
    key: Array | None = None,
) -> Array:
    """Weights under which one step of gradient descent lowers the loss on a clean batch.

        theta(e) = theta - eta sum_i e_i dl_i(theta)/dtheta
        u_i = max(0, -dL_clean(theta(e))/de_i at e = 0);   w_i = u_i / sum_j u_j

    At e = 0 the derivative through the step is `eta <dL_clean/dtheta, dl_i/dtheta>`, so it is
    taken as one forward-mode derivative of the losses along `dL_clean/dtheta`: no second
    backward pass, no gradient per example, and eta cancels. An example whose gradient points
    away from the clean one gets exactly 0; if all do, all weights are 0 and the step has no
    data loss. Put them in a step: `batch._replace(weights=learned_weights(...))`.

    Args:
      apply_fn: as in `regularized_loss`.
      example_loss: `(outputs, targets) -> losses[batch]`.
      params: theta.
      batch: the examples to weigh; those of weight 0 stay at 0.
      clean: examples that are trusted; their weights count.
      model_state: what a `Model` needs beside the params; it is not changed.
      key: feeds dropout, the same for both batches.

    Returns:
      Weights in the shape of `batch.weights`, of sum 1 or all zero.

    Source: Ren et al. 2018, arXiv:1803.09050, Algorithm 1.
    """
    loss_fn = regularized_loss(apply_fn, example_loss)
    direction = jax.grad(lambda theta: loss_fn(theta, clean, model_state=model_state, key=key)[0])(
        params
    )
    active = jnp.asarray(batch.weights) > 0
    inputs, targets = fill_inactive_rows(batch.inputs, batch.targets, batch.weights)
    apply = as_model_apply(apply_fn)

    def losses(theta: Params) -> Array:
        outputs, _ = apply(theta, model_state, inputs, key=key, train=True)
        return example_loss(outputs, targets)

    _, slopes = jax.jvp(losses, (params,), (direction,))
    helpful = jnp.where(active, jnp.maximum(wide(slopes), 0.0), 0.0)
    total = jnp.sum(helpful)
    return helpful / jnp.where(total > 0, total, 1.0)


def _hard_labels(what: str, outputs: Any, targets: Any) -> Array:
    """Whether each logit is that of its example's label, `[..., label]`."""
    given, targets, shape = targets, jnp.asarray(targets), jnp.shape(outputs)
    if not jnp.issubdtype(targets.dtype, np.integer) or targets.shape != shape[:-1]:
        raise ValueError(
            f"`{what}` needs hard labels: integers of shape {shape[:-1]}, got {targets.dtype} of "
            f"shape {targets.shape}. For soft targets weigh by `confidence` or by "
            "`example_loss_of(cross_entropy)`, or take their argmax."
        )
    if shape[-1] < 2:
        raise ValueError(f"`{what}` needs logits of two or more labels, got shape {shape}.")
    check_labels("targets", given, shape[-1])
    return jax.nn.one_hot(targets, shape[-1], dtype=bool)


def _of_label(logits: Array, labels: Array) -> Array:
    return jnp.sum(jnp.where(labels, logits, 0), axis=-1)


def _focal_factor(logits: Array, targets: Any, gamma: Strength) -> Array:
    """`(1 - p_y)^gamma`, from `log(1 - p_y)` = log-sum of the other labels less that of all."""
    labels, logits = _hard_labels("focal", logits, targets), wide(logits)
    others = ~labels & (logits > -jnp.inf)
    # Where no other label is possible p_y is 1, and log(1 - p_y) has no number to stand for it.
    certain = ~others.any(-1)
    safe = jnp.where(certain[..., None], 0, logits)
    rest = jax.nn.logsumexp(safe, axis=-1, where=~labels)
    factor = jnp.exp(jnp.asarray(gamma) * (rest - jax.nn.logsumexp(safe, axis=-1)))
    return jnp.where(certain, jnp.where(jnp.asarray(gamma) == 0, 1.0, 0.0), factor)


def _check_counts(counts: np.ndarray) -> None:
    if counts.ndim != 1 or counts.size == 0:
        raise ValueError(f"`counts` must hold one number per class, got shape {counts.shape}.")
    if not (np.isfinite(counts).all() and (counts >= 1).all()):
        bad = int(np.argmin(np.where(np.isfinite(counts), counts, -np.inf)))
        raise ValueError(
            f"`counts` must be >= 1: class {bad} has {counts[bad]:g} examples, so no weight can "
            "balance it. Drop the class, or count over the whole data set."
        )
