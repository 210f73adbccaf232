"""The evidence of ridge regression: the strength that makes the targets most probable."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wdjax.exact.found import LADDER, SETTLED, Evidence, choice_of_evidence, doubts_of
from wdjax.exact.given import check_counts, checked_examples, in_float64
from wdjax.selection.search import Search, Stopwatch

MOST_STEPS = 10_000
"""Of the fixed point, each as cheap as the number of features."""


def ridge_evidence(
    features: Any, targets: Any, *, weights: Any = None, intercept: bool = True
) -> Evidence:
    """The ridge strength of highest evidence, by MacKay's fixed point; no data are held out.

    The model is `y = x W + b + noise`, the noise of variance s2, each weight of W drawn from
    N(0, 1 / delta), b of a flat prior. With N the sum of the weights (one less under an intercept),
    r the residuals at the minimum and h the eigenvalues of `x' x / s2`,

        gamma = outputs * sum_j h_j / (h_j + delta)
        delta <- gamma / sum W^2,   s2 <- sum w r^2 / (outputs * N - gamma)
        strength = delta * s2 / sum w

    at which the evidence `p(y | delta, s2)`, the density of the targets with W and b integrated
    out, is stationary (`ridge_log_evidence` is its logarithm). Its curvature gives the strength an
    error bar. It answers for `l2_penalty` on a model fitted to its minimum, if the prior and the
    noise are about Gaussian; a run that ends earlier is already regularised by ending.

    The scores are the log evidence of nine strengths from a tenth to ten times the best, each at
    its own best s2; the 95 % set is that of likelihood ratios. It costs one training.

    Args:
      features: `[example, feature]`, or what a network gives to its last layer.
      targets: `[example]` or `[example, output]`, one delta and s2 for all outputs.
      weights: `[example]`, >= 0: how many examples each stands for. They are counts: all weights
        doubled are twice the data, and claim a smaller strength.
      intercept: whether there is a bias, which is not penalised.

    Raises:
      ValueError: for features, targets or weights that are not finite, not of these shapes, or of
        fewer than 2 examples that count, or a sum of weights below 2; for targets that are all
        the same, which leave nothing to explain, or features that are.

    Source: MacKay 1992, Bayesian interpolation.

    Example:
      >>> x, noise = np.random.default_rng(0).normal(size=(2, 200, 10))
      >>> found = wdjax.ridge_evidence(x, x @ np.full(10, 0.5) + noise[:, 0])
      >>> print(f"noise {found.noise:.2f}, weights {found.precision**-0.5:.2f}")
      noise 1.01, weights 0.46
    """
    watch = Stopwatch()
    examples = checked_examples(features, targets, weights)
    x, w = examples.features, examples.weights
    y = examples.targets.astype(np.float64).reshape(len(x), -1)
    check_counts(w)
    _check_spread(x, y, w, intercept)
    found, memory = in_float64(_maximise, x, y, w, intercept=bool(intercept))
    strength, error = float(found.ridge / w.sum()), float(found.error)
    scores, choice = choice_of_evidence(strength, found.ladder, error)
    doubts = doubts_of(float(found.moved), int(found.end), MOST_STEPS, error)
    reason = f"The fixed point took {int(found.num_steps)} steps."
    return Evidence(
        search=Search(scores, choice, watch.cost(1, memory), doubts, reason),
        strength=strength,
        log_evidence=float(found.log_evidence),
        error=error,
        precision=float(found.precision),
        noise=float(found.noise),
        num_effective=float(found.num_effective),
        params={"kernel": found.kernel, "bias": found.bias},
    )


def ridge_log_evidence(
    features: Float[Array | np.ndarray, "example feature"],
    targets: Float[Array | np.ndarray, "example output"],
    weights: Float[Array | np.ndarray, " example"],
    precision: Any,
    noise: Any,
    *,
    intercept: bool = True,
) -> Array:
    """`log p(y | delta, s2)` of the ridge model, in nats: pure, for `jit`, `vmap` and `grad`.

        sum_outputs log N(y; 0, s2 I + x x' / delta)

    over repeated rows where weights are not 1. With an intercept of flat prior: of the N - 1
    contrasts of each output, `A y` and `A x` for any orthonormal A whose rows sum to 0.
    """
    spectrum = _spectrum(features, targets, weights, intercept)
    variances = noise + spectrum.squares / precision
    spread = jnp.where(spectrum.kept, spectrum.energies / variances, 0.0)
    logs = jnp.where(spectrum.kept, jnp.log(variances / noise), 0.0)
    quadratic = jnp.sum(spread) + spectrum.rest / noise
    size = spectrum.num_data * jnp.log(2 * jnp.pi * noise) + spectrum.num_outputs * jnp.sum(logs)
    return -0.5 * (size + quadratic)


class _Spectrum(NamedTuple):
    squares: Array
    """s_j^2 of the centred, weighted features, 1 where that is no direction."""
    kept: Array
    energies: Array
    """Of the targets along each direction, summed over outputs."""
    rest: Array
    """Of the targets outside all directions."""
    num_data: Array
    """outputs * (N - 1), or outputs * N without an intercept."""
    num_outputs: int
    basis: Array
    """`[feature, direction]`: v / s, which takes `along` to weights."""
    along: Array


class _Maximum(NamedTuple):
    ridge: Array
    precision: Array
    noise: Array
    num_effective: Array
    log_evidence: Array
    error: Array
    ladder: Array
    num_steps: Array
    moved: Array
    end: Array
    """-1 or 1 where the ridge ran to its lower or upper bound, else 0."""
    kernel: Array
    bias: Array


def _spectrum(x: Any, y: Any, w: Any, intercept: bool) -> _Spectrum:
    total = jnp.sum(w)
    if intercept:
        x, y = x - (w @ x / total)[None], y - (w @ y / total)[None]
    root = jnp.sqrt(w)[:, None]
    u, s, vt = jnp.linalg.svd(root * x, full_matrices=False)
    kept = s > s[0] * max(x.shape) * jnp.finfo(s.dtype).eps
    along = u.T @ (root * y)
    inside = jnp.where(kept[:, None], along, 0.0)
    rest = jnp.sum(jnp.square(root * y - u @ inside))
    return _Spectrum(
        squares=jnp.where(kept, jnp.square(s), 1.0),
        kept=kept,
        energies=jnp.sum(jnp.square(inside), axis=1),
        rest=rest,
        num_data=y.shape[1] * (total - float(intercept)),
        num_outputs=y.shape[1],
        basis=jnp.where(kept[None], vt.T / jnp.where(kept, s, 1.0)[None], 0.0),
        along=inside,
    )


@partial(jax.jit, static_argnames="intercept")
def _maximise(x: Any, y: Any, w: Any, *, intercept: bool) -> _Maximum:
    spectrum = _spectrum(x, y, w, intercept)
    squares, kept = spectrum.squares, spectrum.kept
    largest = jnp.max(jnp.where(kept, squares, 0.0))
    low, high = jnp.log(largest * 1e-14), jnp.log(largest * 1e8)

    def numbers(log_ridge: Array) -> tuple[Array, Array, Array]:
        """gamma, delta and s2 by MacKay's equations, at the minimum for this ridge, delta * s2."""
        a = jnp.exp(log_ridge)
        share = jnp.where(kept, squares / (squares + a), 0.0)
        pull = jnp.where(kept, a / (squares + a), 0.0)
        gamma = spectrum.num_outputs * jnp.sum(share)
        size = jnp.sum(jnp.square(share) / squares * spectrum.energies)
        residual = jnp.sum(jnp.square(pull) * spectrum.energies) + spectrum.rest
        # num_data - gamma, without the difference of two numbers that may be all but equal.
        free = spectrum.num_data - spectrum.num_outputs * (jnp.sum(kept) - jnp.sum(pull))
        return gamma, gamma / size, residual / free

    def step(carry: tuple) -> tuple:
        log_ridge, _, count = carry
        _, delta, noise = numbers(log_ridge)
        new = jnp.clip(jnp.log(delta) + jnp.log(noise), low, high)
        return new, jnp.abs(new - log_ridge), count + 1

    going = lambda carry: (carry[1] > SETTLED / 100) & (carry[2] < MOST_STEPS)
    start = jnp.log(jnp.sum(jnp.where(kept, squares, 0.0)) / jnp.sum(kept))
    log_ridge, moved, count = jax.lax.while_loop(
        going, step, (start, jnp.ones_like(start), jnp.zeros((), jnp.int32))
    )
    profile = partial(_profile, spectrum)
    curvature = -jax.grad(jax.grad(profile))(log_ridge)
    gamma, delta, noise = numbers(log_ridge)
    shrunk = jnp.where(kept, squares / (squares + jnp.exp(log_ridge)), 0.0)[:, None]
    kernel = spectrum.basis @ (shrunk * spectrum.along)
    total = jnp.sum(w)
    bias = (w @ y - w @ x @ kernel) / total if intercept else jnp.zeros(y.shape[1], y.dtype)
    return _Maximum(
        ridge=jnp.exp(log_ridge),
        precision=delta,
        noise=noise,
        num_effective=gamma,
        log_evidence=profile(log_ridge),
        error=jnp.where(
            curvature > 0, jax.lax.rsqrt(jnp.where(curvature > 0, curvature, 1.0)), jnp.inf
        ),
        ladder=jax.vmap(profile)(log_ridge + jnp.log(LADDER)),
        num_steps=count,
        moved=moved,
        end=jnp.where(log_ridge >= high, 1, jnp.where(log_ridge <= low, -1, 0)),
        kernel=kernel,
        bias=bias,
    )


def _profile(spectrum: _Spectrum, log_ridge: Array) -> Array:
    """The log evidence at a ridge a = delta * s2 and the best noise for it."""
    a = jnp.exp(log_ridge)
    pull = jnp.where(spectrum.kept, a / (spectrum.squares + a), 0.0)
    noise = (jnp.sum(pull * spectrum.energies) + spectrum.rest) / spectrum.num_data
    logs = jnp.where(spectrum.kept, jnp.log1p(spectrum.squares / a), 0.0)
    data = spectrum.num_data * (jnp.log(2 * jnp.pi * noise) + 1)
    return -0.5 * (data + spectrum.num_outputs * jnp.sum(logs))


def _check_spread(x: np.ndarray, y: np.ndarray, w: np.ndarray, intercept: bool) -> None:
    """Checks that there is something to explain, and something to explain it by."""
    share = w / w.sum()
    for name, values in (("targets", y), ("features", x)):
        centre = share @ values if intercept else 0.0
        if not np.abs(values - centre).max() > 1e-12 * np.abs(values).max():
            raise ValueError(
                f"`{name}` are the same in every example that counts: no strength is more probable "
                "than another; the evidence needs targets and features that vary."
            )
