"""The evidence of a softmax layer on fixed features, by Laplace's method at its minimum."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from wdjax.checks import check_labels, check_number, check_positive_int
from wdjax.exact.found import (
    LADDER,
    SETTLED,
    Evidence,
    choice_of_evidence,
    doubts_of,
    doubts_of_ladder,
)
from wdjax.exact.given import Examples, check_counts, checked_examples, in_float64
from wdjax.selection.search import Search, Stopwatch

MOST_WEIGHTS = 4096
"""Of the layer: its exact Hessian has their square of entries (134 MB), and is inverted."""

MOST_STEPS = 200
"""Of the fixed point in the strength, and of Newton's method at each."""

NEAR_ENOUGH = 0.01
"""Nats of the summed loss that params may lie above the minimum: evidences differ by whole nats."""


class Laplace(NamedTuple):
    """The evidence around one minimum, by `laplace_evidence`."""

    log_evidence: float
    """In nats, of all examples."""
    num_effective: float
    """gamma: how many of the penalised weights the data determine."""
    next_strength: float
    """Where MacKay's fixed point goes from here, `gamma / sum kernel^2 / sum w`."""
    above_minimum: float
    """Nats by which the summed loss would still fall, as Newton's method estimates it."""


def softmax_evidence(
    features: Any,
    labels: Any,
    *,
    strength: Any = 0.01,
    weights: Any = None,
    num_labels: int | None = None,
    intercept: bool = True,
) -> Evidence:
    """The strength of a softmax layer of highest evidence, by MacKay's fixed point.

    Trains the layer to its minimum by Newton's method, takes the exact Hessian H of the summed
    cross-entropy there, moves the strength, and goes on from where it is until nothing moves (by
    the secant where that is shorter):

        gamma = P - delta * tr_kernel (H + delta)^-1,   delta <- gamma / sum kernel^2
        strength = delta / sum w

    with P the weights of the kernel, which alone are penalised. There the evidence (that of
    `laplace_evidence`) is stationary for this minimum and H; that both change with the strength is
    left out, as it is by MacKay, whose error of log(strength) is sqrt(2 / gamma). With what a
    trained network gives to its last layer as features, the answer is about that layer alone.

    The scores are the log evidence of nine strengths from a tenth to ten times the best, each at
    its own minimum. The cost is all Newton steps, in those that the first minimum took.

    Args:
      features: `[example, feature]`.
      labels: integers `[example]` in `[0, num_labels)`.
      strength: where the fixed point starts, above 0.
      weights: `[example]`, >= 0: how many examples each stands for, as in `ridge_evidence`.
      num_labels: by default one more than the largest label.
      intercept: whether there is a bias, which is not penalised.

    Raises:
      ValueError: for features, labels or weights as `ridge_evidence`; labels that are no integers,
        out of range, of one kind, or (a bias has no minimum then) of a kind that never occurs; a
        start that is not above 0, or a layer of more than 4096 weights.

    Source: MacKay 1992, The evidence framework applied to classification networks.

    Example:
      >>> x = np.random.default_rng(0).normal(size=(300, 4))
      >>> labels = (x[:, 0] + np.random.default_rng(1).logistic(size=300) > 0).astype(int)
      >>> print(f"{wdjax.softmax_evidence(x, labels).num_effective:.1f} of 8 weights")
      3.6 of 8 weights
    """
    watch = Stopwatch()
    check_number("strength", strength, low=0.0, exclusive_low=True)
    examples, num_labels = _checked(features, labels, weights, num_labels, intercept)
    total = float(examples.weights.sum())
    start = np.float64(strength) * total
    arrays = (examples.features, _one_hot(examples.targets, num_labels), examples.weights, start)
    found, memory = in_float64(_maximise, *arrays, intercept=bool(intercept))
    return _evidence_of(found, total, watch, memory)


def _evidence_of(found: "_Maximum", total: float, watch: Stopwatch, memory: int | None) -> Evidence:
    strength, gamma = float(found.precision / total), float(found.num_effective)
    error = math.sqrt(2 / gamma) if gamma > 0 else math.inf
    scores, choice = choice_of_evidence(strength, np.asarray(found.ladder), error)
    trainings = float(found.newton_steps) / max(float(found.first_steps), 1.0)
    doubts = doubts_of(float(found.moved), int(found.end), MOST_STEPS, error)
    doubts = doubts or doubts_of_ladder(scores)
    reason = f"The fixed point took {int(found.num_steps)} steps, {trainings:.3g} trainings."
    return Evidence(
        search=Search(scores, choice, watch.cost(trainings, memory), doubts, reason),
        strength=strength,
        log_evidence=choice.mean,
        error=error,
        precision=float(found.precision),
        noise=None,
        num_effective=gamma,
        params={"kernel": np.asarray(found.kernel), "bias": np.asarray(found.bias)},
    )


def laplace_evidence(
    params: Any, features: Any, labels: Any, strength: Any, *, weights: Any = None
) -> Laplace:
    """The evidence of a softmax layer that was trained to its minimum at one strength.

        log q = -sum_i w_i l_i - delta/2 sum kernel^2 + P/2 log delta - 1/2 log |H + delta|
                + B/2 log 2 pi,   delta = strength * sum w

    with H the exact Hessian of the summed cross-entropy in the kernel, whose P weights alone are
    penalised and under `delta`, and in the bias, of a flat prior. Adding a number to all biases
    changes nothing, so they have B = labels - 1 directions, orthogonal to that one.

    Args:
      params: `{"kernel": [feature, label], "bias": [label]}`; without a bias there is none.
      features, labels, weights: see `softmax_evidence`.
      strength: of the mean loss that `params` minimise, above 0.

    Raises:
      ValueError: as `softmax_evidence`; for a kernel or bias of another shape; and for params that
        lie more than 0.01 nats of the summed loss above the minimum, by their gradient: away from
        it the formula means nothing.

    Source: MacKay 1992.
    """
    check_number("strength", strength, low=0.0, exclusive_low=True)
    kernel = np.asarray(params["kernel"], np.float64)
    bias = None if params.get("bias") is None else np.asarray(params["bias"], np.float64)
    num_labels = kernel.shape[-1] if kernel.ndim == 2 else None
    examples, num_labels = _checked(features, labels, weights, num_labels, bias is not None)
    shape = (examples.features.shape[1], num_labels)
    if kernel.shape != shape or (bias is not None and bias.shape != shape[1:]):
        raise ValueError(
            f"`params` must be a kernel {shape} and a bias {shape[1:]} for these features, got "
            f"{kernel.shape} and {None if bias is None else bias.shape}."
        )
    total = float(examples.weights.sum())
    arrays = (examples.features, _one_hot(examples.targets, num_labels), examples.weights)
    basis = _basis(num_labels, bias is not None)
    theta = np.concatenate(
        [kernel.ravel(), basis.T @ (np.zeros(num_labels) if bias is None else bias)]
    )
    arrays = (*arrays, np.float64(strength) * total)
    found, _ = in_float64(_evidence, theta, *arrays, intercept=bias is not None)
    above = float(found.above)
    if not above <= NEAR_ENOUGH:
        raise ValueError(
            f"`params` lie {above:.3g} nats of the summed loss above the minimum at strength "
            f"{float(strength):g}, by their gradient, and the evidence needs at most "
            f"{NEAR_ENOUGH}: train the layer to its minimum, as `softmax_evidence` does."
        )
    next_strength = float(found.gamma / np.square(kernel).sum() / total)
    return Laplace(float(found.log_evidence), float(found.gamma), next_strength, above)


class _AtMinimum(NamedTuple):
    log_evidence: Array
    gamma: Array
    above: Array


class _Maximum(NamedTuple):
    precision: Array
    num_effective: Array
    ladder: Array
    kernel: Array
    bias: Array
    num_steps: Array
    newton_steps: Array
    first_steps: Array
    moved: Array
    end: Array
    """-1 or 1 where the strength ran to its lower or upper bound, else 0."""


class _Move(NamedTuple):
    """A point of the fixed-point iteration in log(delta), and how far it went from there."""

    at: Array
    move: Array


def _basis(num_labels: int, intercept: bool) -> np.ndarray:
    """`[label, direction]`: orthonormal, each of sum 0; of no directions without an intercept."""
    if not intercept:
        return np.zeros((num_labels, 0))
    return np.linalg.svd(np.ones((1, num_labels)))[2][1:].T


def _split(theta: Array, num_features: int, num_labels: int, intercept: bool) -> tuple:
    """The kernel and the bias of a flat vector."""
    size = num_features * num_labels
    basis = jnp.asarray(_basis(num_labels, intercept), theta.dtype)
    return theta[:size].reshape(num_features, num_labels), basis @ theta[size:]


def _summed_loss(theta: Array, x: Any, y: Any, w: Any, intercept: bool) -> Array:
    kernel, bias = _split(theta, x.shape[1], y.shape[1], intercept)
    logits = x @ kernel + bias[None]
    return jnp.sum(w * (jax.nn.logsumexp(logits, axis=1) - jnp.sum(y * logits, axis=1)))


def _hessian(theta: Array, x: Any, y: Any, w: Any, intercept: bool) -> Array:
    """sum_i w_i x_i x_i' (x) (diag p_i - p_i p_i'), the bias in its own directions."""
    num_labels = y.shape[1]
    kernel, bias = _split(theta, x.shape[1], num_labels, intercept)
    p = jax.nn.softmax(x @ kernel + bias[None], axis=1)
    with_one = jnp.concatenate([x, jnp.ones((len(x), 1), x.dtype)], axis=1) if intercept else x
    each = (with_one[:, :, None] * p[:, None, :]).reshape(len(x), -1)
    same = jnp.einsum("na,nc,nb->abc", with_one, w[:, None] * p, with_one)
    blocks = jnp.einsum("abc,cd->acbd", same, jnp.eye(num_labels, dtype=x.dtype))
    whole = blocks.reshape(each.shape[1], -1) - each.T @ (w[:, None] * each)
    if not intercept:
        return whole
    size, basis = x.shape[1] * num_labels, jnp.asarray(_basis(num_labels, True), x.dtype)
    right = jnp.concatenate([whole[:, :size], whole[:, size:] @ basis], axis=1)
    return jnp.concatenate([right[:size], basis.T @ right[size:]], axis=0)


@partial(jax.jit, static_argnames="intercept")
def _evidence(
    theta: Array, x: Any, y: Any, w: Any, precision: Any, *, intercept: bool
) -> _AtMinimum:
    size = x.shape[1] * y.shape[1]
    penalised = jnp.arange(len(theta)) < size
    loss, gradient = jax.value_and_grad(_summed_loss)(theta, x, y, w, intercept)
    hessian = _hessian(theta, x, y, w, intercept)
    log_evidence, gamma = _laplace(loss, hessian, theta, penalised, precision)
    gradient = gradient + precision * penalised * theta
    step = jnp.linalg.solve(hessian + jnp.diag(precision * penalised), gradient)
    return _AtMinimum(log_evidence, gamma, 0.5 * gradient @ step)


def _laplace(
    loss: Array, hessian: Array, theta: Array, penalised: Array, precision: Any
) -> tuple[Array, Array]:
    """log q and gamma, of a minimum and the Hessian there."""
    factor = jnp.linalg.cholesky(hessian + jnp.diag(precision * penalised))
    half = jax.scipy.linalg.solve_triangular(factor, jnp.eye(len(theta)), lower=True)
    trace = jnp.sum(jnp.square(half) * penalised[None])
    size = jnp.sum(penalised)
    log_evidence = (
        -loss
        - 0.5 * precision * jnp.sum(jnp.square(theta) * penalised)
        + 0.5 * size * jnp.log(precision)
        - jnp.sum(jnp.log(jnp.diagonal(factor)))
        + 0.5 * (len(theta) - size) * math.log(2 * math.pi)
    )
    return log_evidence, size - precision * trace


def _minimise(
    theta: Array, x: Any, y: Any, w: Any, precision: Array, intercept: bool
) -> tuple[Array, Array]:
    """Newton's method with halved steps: the minimum, and how many steps it took."""
    penalised = jnp.arange(len(theta)) < x.shape[1] * y.shape[1]

    def objective(theta):
        penalty = 0.5 * precision * jnp.sum(jnp.square(theta) * penalised)
        return _summed_loss(theta, x, y, w, intercept) + penalty

    def one(carry):
        theta, _, count = carry
        value, gradient = jax.value_and_grad(objective)(theta)
        hessian = _hessian(theta, x, y, w, intercept) + jnp.diag(precision * penalised)
        step = jnp.linalg.solve(hessian, gradient)
        fall = gradient @ step
        too_far = lambda size: (
            (objective(theta - size * step) > value - 0.25 * size * fall) & (size > 1e-6)
        )
        size = jax.lax.while_loop(too_far, lambda size: size / 2, jnp.ones_like(fall))
        # At the minimum what is left is rounding, and a step of Newton's does no harm.
        size = jnp.where(fall < 1e-9, 1.0, size)
        return theta - size * step, fall, count + 1

    going = lambda carry: (carry[1] > 1e-13) & (carry[2] < MOST_STEPS)
    start = (theta, jnp.ones((), theta.dtype), jnp.zeros((), jnp.int32))
    theta, _, count = jax.lax.while_loop(going, one, start)
    return theta, count


@partial(jax.jit, static_argnames="intercept")
def _maximise(x: Any, y: Any, w: Any, precision: Any, *, intercept: bool) -> _Maximum:
    num_features, num_labels = x.shape[1], y.shape[1]
    bias_size = num_labels - 1 if intercept else 0
    penalised = jnp.arange(num_features * num_labels + bias_size) < num_features * num_labels
    minimise = lambda theta, precision: _minimise(theta, x, y, w, precision, intercept)

    def told(theta, precision):
        loss = _summed_loss(theta, x, y, w, intercept)
        hessian = _hessian(theta, x, y, w, intercept)
        return _laplace(loss, hessian, theta, penalised, precision)

    # The curvature along one feature is at most a quarter of its weighted sum of squares.
    most = jnp.max(w @ jnp.square(x)) / 4
    low, high = 1e-10 * most, 1e6 * most

    def step(carry):
        theta, precision, before, _, count, steps = carry
        theta, more = minimise(theta, precision)
        _, gamma = told(theta, precision)
        size = jnp.sum(jnp.square(theta) * penalised)
        # Where the features tell nothing, the weights go to 0 and the strength beyond all bounds.
        new = jnp.where(size * high > gamma, gamma / jnp.where(size > 0, size, 1.0), high)
        here = jnp.log(precision)
        move = jnp.log(jnp.clip(new, low, high)) - here
        # Where the moves shrink from point to point, on to where they would be 0 (the secant).
        slope = (move - before.move) / jnp.where(here != before.at, here - before.at, 1.0)
        shrinks = (count > 0) & (slope < -0.05) & (slope > -2)
        ahead = jnp.where(shrinks, move / -jnp.where(shrinks, slope, -1.0), move)
        new = jnp.clip(precision * jnp.exp(jnp.clip(ahead, -5, 5)), low, high)
        return theta, new, _Move(here, move), jnp.abs(move), count + 1, steps + more

    first, first_steps = minimise(jnp.zeros(len(penalised), x.dtype), precision)
    going = lambda carry: (carry[3] > SETTLED) & (carry[4] < MOST_STEPS)
    zero, one = jnp.zeros((), jnp.int32), jnp.ones((), x.dtype)
    start = (first, jnp.asarray(precision), _Move(one, one), one, zero, first_steps)
    theta, precision, _, moved, count, steps = jax.lax.while_loop(going, step, start)
    theta, more = minimise(theta, precision)

    def rung(carry, factor):
        theta, steps = carry
        theta, more = minimise(theta, factor * precision)
        return (theta, steps + more), told(theta, factor * precision)[0]

    (_, steps), ladder = jax.lax.scan(rung, (theta, steps + more), jnp.asarray(LADDER, x.dtype))
    kernel, bias = _split(theta, num_features, num_labels, intercept)
    gamma = told(theta, precision)[1]
    near = 1 + 1e-6  # In logarithms and back, a bound is not the same to the last bit.
    end = jnp.where(precision * near >= high, 1, jnp.where(precision <= low * near, -1, 0))
    return _Maximum(precision, gamma, ladder, kernel, bias, count, steps, first_steps, moved, end)


def _one_hot(labels: np.ndarray, num_labels: int) -> np.ndarray:
    return np.eye(num_labels)[labels]


def _checked(
    features: Any, labels: Any, weights: Any, num_labels: Any, intercept: bool
) -> tuple[Examples, int]:
    given = np.asarray(labels)
    if given.ndim != 1 or given.dtype.kind not in "iu":
        raise ValueError(
            f"`labels` must be integers [example], got {given.dtype} of shape {given.shape}; for "
            "targets that are numbers use `ridge_evidence`."
        )
    examples = checked_examples(features, given, weights)
    check_counts(examples.weights)
    found = int(examples.targets.max()) + 1 if num_labels is None else num_labels
    check_positive_int("num_labels", found, low=2)
    check_labels("labels", examples.targets, found)
    counts = np.bincount(examples.targets, minlength=found)
    if intercept and (counts == 0).any():
        raise ValueError(
            f"`labels` hold no example of label {int(np.argmin(counts))} that counts, so its "
            "unpenalised bias has no minimum; number the labels that occur from 0 (np.unique(labels"
            ", return_inverse=True)[1]), or pass intercept=False."
        )
    size = (examples.features.shape[1] + int(intercept)) * found
    if size > MOST_WEIGHTS:
        raise ValueError(
            f"the layer has {size} weights, more than the {MOST_WEIGHTS} whose exact Hessian this "
            "inverts; give fewer features (their first principal components), or use "
            "`leave_one_out` on one-hot targets."
        )
    return examples, found
