"""Measures of the field: what a model of classes or of numbers is judged by, each with a formula.

Of classes, outputs are logits: `[batch, label]`, or `[batch, 1]` of the second of two classes, as
`binary_cross_entropy` takes them. Those of all examples at once (`per_example=False`) are no means
of anything that one example has; their sums are weighted, and rows of weight 0 count nothing.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from wdjax.checks import check_labels
from wdjax.losses import cross_entropy
from wdjax.measures import Measure
from wdjax.types import wide

NUM_BINS = 15
"""Of the calibration error, as in Guo et al. 2017."""


def _of_all_classes(logits: Array, targets: Any) -> Array:
    """Logits `[batch, label]`, of two classes where there is one, in float32 at least."""
    logits = wide(logits)
    if logits.shape == (*targets.shape, 1):
        logits = jnp.concatenate([jnp.zeros_like(logits), logits], axis=-1)
    check_labels("targets", targets, logits.shape[-1])
    return logits


def _probabilities(logits: Array, targets: Any) -> Array:
    return jax.nn.softmax(_of_all_classes(logits, targets))


def _auc(logits: Array, targets: Any, weights: Array) -> Array:
    logits = _of_all_classes(logits, targets)
    num_labels = logits.shape[-1]
    if num_labels == 2:  # The difference of the logits orders as the probability, unrounded.
        return _area(logits[..., 1] - logits[..., 0], jnp.asarray(targets) == 1, weights)[0]
    probabilities = jax.nn.softmax(logits)
    labels = jnp.arange(num_labels)
    of_label = lambda c: _area(probabilities[..., c], jnp.asarray(targets) == c, weights)
    areas, known = jax.vmap(of_label)(labels)
    count = jnp.sum(known)
    return jnp.sum(jnp.where(known, areas, 0)) / jnp.where(count > 0, count, jnp.nan)


def _area(scores: Array, positive: Array, weights: Array) -> tuple[Array, Array]:
    """The share of pairs (positive, negative) in order, ties half; and whether there are any."""
    above, below = jnp.where(positive, weights, 0), jnp.where(positive, 0, weights)
    order = jnp.argsort(scores)
    ordered = scores[order]
    sums = jnp.concatenate([jnp.zeros(1, below.dtype), jnp.cumsum(below[order])])
    first = jnp.searchsorted(ordered, scores, side="left")
    last = jnp.searchsorted(ordered, scores, side="right")
    pairs = jnp.sum(above) * jnp.sum(below)
    in_order = jnp.sum(above * (sums[first] + sums[last]) / 2)
    known = pairs > 0
    return jnp.where(known, in_order / jnp.where(known, pairs, 1), jnp.nan), known


auc = Measure(_auc, higher_is_better=True, per_example=False)
"""Area under the ROC curve: the chance that a positive example is scored above a negative one.

    sum_{i positive, j negative} w_i w_j ([s_i > s_j] + [s_i = s_j] / 2) / sum_{i, j} w_i w_j

Of more than two classes the plain mean of each class against the others, over those that have
both. NaN where no class has: stratify the folds. Source: Hanley & McNeil 1982.
"""


def _brier(logits: Array, targets: Any) -> Array:
    probabilities = _probabilities(logits, targets)
    wrong = probabilities - jax.nn.one_hot(targets, probabilities.shape[-1])
    return jnp.sum(jnp.square(wrong), axis=-1) / (2 if probabilities.shape[-1] == 2 else 1)


brier = Measure(_brier, higher_is_better=False)
"""Brier score: `sum_c (p_c - [y = c])^2`, of two classes half of it, `(p_1 - y)^2`.

Source: Brier 1950; the half of two classes as in scikit-learn's `brier_score_loss`.
"""


def _calibration_error(logits: Array, targets: Any, weights: Array) -> Array:
    probabilities = _probabilities(logits, targets)
    confidence = jnp.max(probabilities, axis=-1)
    correct = (jnp.argmax(probabilities, axis=-1) == targets).astype(confidence.dtype)
    place = jnp.clip(jnp.ceil(confidence * NUM_BINS).astype(np.int32) - 1, 0, NUM_BINS - 1)
    # |w accuracy - w confidence| of a bin: its weight cancels out of both means.
    gaps = jnp.zeros(NUM_BINS, weights.dtype).at[place].add(weights * (correct - confidence))
    return jnp.sum(jnp.abs(gaps)) / jnp.sum(weights)


calibration_error = Measure(_calibration_error, higher_is_better=False, per_example=False)
"""Expected calibration error: over 15 equal bins of the largest probability,

    sum_bin (W_bin / W) |accuracy_bin - confidence_bin|

Source: Guo et al. 2017, arXiv:1706.04599.
"""


def _perplexity(logits: Array, targets: Any, weights: Array) -> Array:
    losses = cross_entropy(_of_all_classes(logits, targets), targets)
    losses = jnp.where(weights > 0, losses, 0)
    return jnp.exp(jnp.sum(weights * losses) / jnp.sum(weights))


perplexity = Measure(_perplexity, higher_is_better=False, per_example=False)
"""`exp` of the mean cross-entropy in nats; of texts, per token that counts."""


def _columns(predictions: Array, targets: Any) -> tuple[Array, Array]:
    """Both `[batch, output]`, in float32 at least."""
    if predictions.shape not in (targets.shape, (*targets.shape, 1)):
        raise ValueError(
            f"`targets` must have the shape of the predictions, {predictions.shape}; got "
            f"{targets.shape}."
        )
    rows = targets.shape[0]
    return wide(predictions).reshape(rows, -1), wide(targets).reshape(rows, -1)


def _absolute_error(predictions: Array, targets: Any) -> Array:
    predictions, targets = _columns(predictions, targets)
    return jnp.mean(jnp.abs(predictions - targets), axis=-1)


mae = Measure(_absolute_error, higher_is_better=False)
"""Absolute error `|p - t|`, of several outputs their mean; the score is the mean of it."""


def _r2(predictions: Array, targets: Any, weights: Array) -> Array:
    predictions, targets = _columns(predictions, targets)
    weights = weights[:, None]
    mean = jnp.sum(weights * targets, axis=0) / jnp.sum(weights)
    missed = jnp.sum(weights * jnp.square(targets - predictions), axis=0)
    spread = jnp.sum(weights * jnp.square(targets - mean[None]), axis=0)
    ratio = 1 - missed / jnp.where(spread > 0, spread, 1)
    return jnp.mean(jnp.where(spread > 0, ratio, jnp.where(missed > 0, 0.0, 1.0)))


r2 = Measure(_r2, higher_is_better=True, per_example=False)
"""Share of the targets' variance that is explained, of several outputs their mean:

    1 - sum_i w_i (t_i - p_i)^2 / sum_i w_i (t_i - mean(t))^2

Of targets that do not vary it is 1 where all are met, else 0, as in scikit-learn's `r2_score`.
"""
