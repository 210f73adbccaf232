"""Decay whose strength the run finds: constrained parameter regularisation (CPR)."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, PyTree

from wdjax.checks import check_number, check_positive_int, check_strength
from wdjax.decay.core import (
    check_not_injected,
    huber,
    is_abstract,
    is_known_zero,
    is_none,
    modulus,
    next_step,
    require_params,
    wide_dtype,
    with_dtype,
)
from wdjax.moved import moved_keywords
from wdjax.parts import leaf_path, resolve_parts
from wdjax.types import Params, Parts, Strength, is_inexact


class Magnitude(NamedTuple):
    """How large a leaf is, in one number R: what is bounded."""

    value: Callable[[Array], Array]
    """`leaf -> R(leaf)`, a real scalar."""
    gradient: Callable[[Array], Array]
    """`leaf -> dR/dleaf`; of complex leaves the direction of steepest ascent, the conjugate of what
    `jax.grad` returns: dR/d(real part) + i dR/d(imaginary part)."""
    per_weight: bool
    """Whether R grows with the number of weights, so that the multiplier's steps divide by it."""


class Bound(NamedTuple):
    """How a leaf's bound is found: infinite, so without effect, until it is known.

    init: `R(params_0) -> record`, any tree of scalars.
    follow: `(record, R, step) -> (record, bound)`, after every step; `step` counts from 1.
    """

    init: Callable[[Array], PyTree]
    follow: Callable[[PyTree, Array, Array], tuple[PyTree, Array]]


class ConstrainedState(NamedTuple):
    """The same tree for every leaf that counts; zeros for those that do not."""

    step: Int[Array, ""]
    """Updates made so far."""
    multipliers: PyTree
    """The multiplier lambda of each leaf, >= 0, per step: what the run finds for a strength."""
    records: PyTree
    """What each leaf's bound needs to be found."""


@moved_keywords(measure="magnitude")
def constrained_decay(
    multiplier_rate: Strength,
    bound: Bound,
    *,
    magnitude: Magnitude | None = None,
    parts: Parts = None,
) -> optax.GradientTransformation:
    """Decays each leaf just as much as keeps its magnitude R below a bound: CPR.

        z = params + update
        lambda <- max(0, lambda + multiplier_rate * m_leaf / n * (R(z) - bound))
        update <- update - lambda * grad R(z)

    n is the number of weights of the leaf (1 for `standard_deviation`). Below its bound a leaf is
    free; above, its multiplier grows until it comes back. No learning rate enters. Complex weights
    count by their modulus, so magnitudes, bounds and multipliers are real. A leaf whose update is
    None keeps its multiplier. Goes after the learning rate in the chain.

    At rest R(z) is the bound and the weights lie inside it, `params = z - lambda * grad R(z)`;
    under plain descent the multiplier that balances the loss is lambda / learning rate.

    Args:
      multiplier_rate: >= 0, how fast multipliers follow; a number, may be traced. The paper's: 1.
      bound: `fixed_bound(k)`, `initial_bound(factor)`, `warm_start_bound(num_steps)` or
        `inflection_bound()`.
      magnitude: what is bounded; by default `sum_of_squares`.
      parts: how much each leaf counts (`wdjax.parts.resolve_parts`); by default every leaf 1.0.
        The paper leaves embeddings, biases and norms out.

    Raises:
      ValueError: at build, for a rate that is not a scalar, or is known and negative or not
        finite; in `init`, for parts that do not fit the params or a leaf without weights; in
        `update`, when `params` is missing.

    Source: Franke et al. 2024, arXiv:2311.09058. How this differs from the authors' program is in
    `docs/deviations.md`.
    """
    check_strength("multiplier_rate", multiplier_rate)
    check_not_injected(parts)
    rate: Any = multiplier_rate
    size = sum_of_squares if magnitude is None else magnitude

    def init(params: Params) -> ConstrainedState:
        record = functools.partial(_first_record, bound, size)
        multipliers = resolve_parts(parts, params)
        records = jax.tree_util.tree_map_with_path(record, params, multipliers)
        zeros = jax.tree.map(_zero, params)
        return ConstrainedState(jnp.zeros((), jnp.int32), zeros, records)

    def update(
        updates: PyTree, state: Any, params: Params | None = None
    ) -> tuple[PyTree, ConstrainedState]:
        params = require_params(params)
        step = next_step(state.step)
        constrain = functools.partial(_constrained, step, rate, bound, size)
        found = jax.tree.map(
            constrain,
            updates,
            params,
            resolve_parts(parts, params),
            state.multipliers,
            state.records,
            is_leaf=is_none,
        )
        pick = lambda i: jax.tree.map(lambda _, each: each[i], updates, found, is_leaf=is_none)
        return pick(0), ConstrainedState(step, pick(1), pick(2))

    return optax.GradientTransformation(init, update)


def _is_active(leaf: Any, multiplier: Any) -> bool:
    return is_inexact(leaf) and not is_known_zero(multiplier)


def _zero(leaf: Any) -> Array:
    """The multiplier that a leaf begins with."""
    real = jnp.finfo(wide_dtype(leaf)).dtype if is_inexact(leaf) else jnp.float32
    return jnp.zeros((), real)


def _first_record(bound: Bound, size: Magnitude, path: Any, leaf: Any, multiplier: Any) -> PyTree:
    """What a leaf's bound starts from; nothing of a leaf that is left alone."""
    if not _is_active(leaf, multiplier):
        return ()
    least = 1 if size.per_weight else 2
    if np.size(leaf) < least:
        raise ValueError(
            f"{leaf_path(path)!r} of shape {np.shape(leaf)} has too few weights to bound; "
            f"the magnitude needs {least}. Leave it out by `parts`."
        )
    first = lambda leaf: bound.init(size.value(leaf))
    wide = with_dtype(leaf, wide_dtype(leaf))
    return jax.eval_shape(first, wide) if is_abstract(wide) else first(wide)


def _constrained(
    step: Array,
    rate: Any,
    bound: Bound,
    size: Magnitude,
    update: Any,
    leaf: Any,
    part: Any,
    multiplier: Any,
    record: PyTree,
) -> tuple[Any, Any, PyTree]:
    """One leaf's update drawn into its bound, its new multiplier and record."""
    if update is None or not _is_active(leaf, part):
        return update, multiplier, record
    z = jnp.asarray(leaf, wide_dtype(leaf)) + update
    value = size.value(z)
    record, limit = bound.follow(record, value, step)
    pace = rate * part / (z.size if size.per_weight else 1)
    # An unknown bound is infinite; written with `where` so that a rate of 0 gives 0.
    excess = jnp.where(jnp.isfinite(limit), value - limit, 0)
    grown = jnp.maximum(0, multiplier + jnp.asarray(pace, value.dtype) * excess)
    multiplier = jnp.where(jnp.isfinite(limit), grown, 0)
    pulled = update - multiplier * size.gradient(z)
    return pulled.astype(update.dtype), multiplier, record


# Magnitudes.


def _square_of_modulus(leaf: Array) -> Array:
    return jnp.square(modulus(leaf)) if jnp.iscomplexobj(leaf) else jnp.square(leaf)


def _standard_deviation(leaf: Array) -> Array:
    variance = jnp.sum(_square_of_modulus(leaf - jnp.mean(leaf))) / (leaf.size - 1)
    spread = variance > 0  # the root has no derivative at zero
    return jnp.where(spread, jnp.sqrt(jnp.where(spread, variance, 1)), 0)


def _gradient_of_standard_deviation(leaf: Array) -> Array:
    deviation = _standard_deviation(leaf)
    scale = jnp.where(deviation > 0, (leaf.size - 1) * deviation, 1)
    return (leaf - jnp.mean(leaf)) / scale


def _huber(leaf: Array) -> Array:
    size = modulus(leaf)
    return jnp.sum(jnp.where(size < 1, 0.5 * jnp.square(size), size - 0.5))


sum_of_squares = Magnitude(lambda w: jnp.sum(_square_of_modulus(w)), lambda w: 2 * w, True)
"""R = sum |w|^2, gradient 2 w."""

sum_of_magnitudes = Magnitude(lambda w: jnp.sum(modulus(w)), jnp.sign, True)
"""R = sum |w|, gradient sign(w), which is w / |w| of a complex weight."""

standard_deviation = Magnitude(_standard_deviation, _gradient_of_standard_deviation, False)
"""R = the standard deviation of the weights with n - 1, gradient (w - mean) / ((n - 1) R), and 0
where all weights are equal, as in a head of zeros."""

sum_of_hubers = Magnitude(_huber, huber(1.0), True)
"""R = sum of |w|^2 / 2 below 1 and |w| - 1/2 above, gradient w below 1 and sign(w) above."""


# Bounds.


def fixed_bound(bound: Strength) -> Bound:
    """The same bound for every leaf, known from the start ("uniform").

    Raises:
      ValueError: if it is not a scalar, or is known and negative or not finite.
    """
    check_strength("bound", bound)
    return Bound(lambda value: (), lambda record, value, step: (record, _like(bound, value)))


def initial_bound(factor: Strength) -> Bound:
    """Each leaf's bound is `factor` times its magnitude at `init` ("dependent").

    Raises:
      ValueError: if the factor is not a scalar, or is known and negative or not finite.
    """
    check_strength("factor", factor)

    def init(value: Array) -> Array:
        return _like(factor, value) * value

    return Bound(init, lambda bound, value, step: (bound, bound))


def warm_start_bound(num_steps: int) -> Bound:
    """Each leaf's bound is its magnitude after `num_steps` steps; free until then ("warm start").

    Raises:
      ValueError: if `num_steps` is no integer >= 1.
    """
    check_positive_int("num_steps", num_steps)

    def follow(bound: Array, value: Array, step: Array) -> tuple[Array, Array]:
        bound = jnp.where(step == num_steps, value, bound)
        return bound, bound

    return Bound(lambda value: jnp.full_like(value, jnp.inf), follow)


class InflectionRecord(NamedTuple):
    """What finding an inflection point needs."""

    bound: Array
    """Infinite until found."""
    average: Array
    """Exponential moving average of the magnitude."""
    sample: Array
    """The average when last sampled."""
    growth: Array
    """By how much the sample before had grown; -infinity before there are two."""


def inflection_bound(every: int = 200, smoothing: Strength = 0.9) -> Bound:
    """Each leaf's bound is its magnitude where its growth first slows down ("inflection point").

    The magnitude is averaged over steps, `average <- smoothing * average + (1 - smoothing) * R`
    from R(params_0) on, and sampled every `every` steps; the bound is R at the first sample that
    has grown by less than the one before.

    Args:
      every: steps between samples, >= 1.
      smoothing: in [0, 1].

    Raises:
      ValueError: if a value is known and out of range.
    """
    check_positive_int("every", every)
    check_number("smoothing", smoothing, low=0.0, high=1.0)

    def init(value: Array) -> InflectionRecord:
        return InflectionRecord(
            jnp.full_like(value, jnp.inf), value, value, jnp.full_like(value, -jnp.inf)
        )

    def follow(
        record: InflectionRecord, value: Array, step: Array
    ) -> tuple[InflectionRecord, Array]:
        keep = _like(smoothing, value)
        average = keep * record.average + (1 - keep) * value
        sampled = step % every == 0
        growth = average - record.sample
        found = sampled & (growth < record.growth) & ~jnp.isfinite(record.bound)
        bound = jnp.where(found, value, record.bound)
        record = InflectionRecord(
            bound,
            average,
            jnp.where(sampled, average, record.sample),
            jnp.where(sampled, growth, record.growth),
        )
        return record, bound

    return Bound(init, follow)


def _like(number: Any, value: Array) -> Array:
    return jnp.asarray(number, value.dtype)
