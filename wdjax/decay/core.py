"""The core of decay: rate x part x gate x pull at the distance from a reference."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, PyTree

from wdjax.checks import check_number, check_strength, check_strength_or_schedule, is_known
from wdjax.moved import moved_keywords
from wdjax.parts import leaf_path, resolve_parts
from wdjax.parts.rules import check_not_injected as check_not_injected
from wdjax.types import Params, Parts, Schedule, Strength, is_inexact

Gate = Callable[[Array, Array], Array]
"""`(update, pull) -> share in [0, 1]`, elementwise: how much of the pull each weight feels."""

Pull = Callable[[Array], Array]
"""`params - reference -> pull`, elementwise: the derivative of the penalty per unit strength."""


class Reference(NamedTuple):
    """What the weights are drawn to, where it has to be kept between steps.

    init: `params -> kept`, a tree in the structure of the params, copied.
    follow: `(kept, params) -> kept`, before each update.
    """

    init: Callable[[Params], PyTree]
    follow: Callable[[PyTree, Params], PyTree]


class DecayState(NamedTuple):
    """The same tree whether rates are numbers or schedules."""

    step: Int[Array, ""]
    """Updates made so far: the schedules' argument."""
    reference: PyTree
    """What the weights are drawn to; an empty tuple where nothing has to be kept."""


@moved_keywords(shape="pull")
def decay_weights(
    rate: Strength | Schedule,
    *,
    parts: Parts = None,
    gate: Gate | None = None,
    reference: Any = None,
    pull: Pull | None = None,
) -> optax.GradientTransformation:
    """Draws each weight towards its reference by a fraction of the distance, every step.

        update <- update - c_t * m_leaf * gate(update, p) * p
        p = pull(params - reference)

    With no other update, no gate, no pull and no reference, the weights after T steps are
    `params_0 * prod_t (1 - c_t * m_leaf)`. It acts on the finished update, so it goes **after**
    the learning rate in the chain; before it, the sign is wrong and the weights grow. It keeps
    tree, shapes and dtypes, computes in float32 at least, and leaves integers, keys, nodes hidden
    by `optax.masked` and leaves without an update alone. Complex weights are drawn along the line
    to their reference. From params known by shape, `init` gives a state of shapes.

    Args:
      rate: c_t, the fraction removed per step, a number (traced or not) or `step -> c_t`. What
        multiplies what is in its making: `decoupled_rate`, `independent_rate`,
        `corrected_rate`; `lambda t: strength * learning_rate(t) ** p` is any other exponent.
      parts: how much each leaf counts (`wdjax.parts.resolve_parts`); by default every leaf 1.0.
      gate: `(update, p) -> share` of each weight's p that is applied, such as `cautious`; by
        default all of it. `update` is what will be added to the params.
      reference: what the weights are drawn to: None for zero; a number (1.0 for norm gains); a
        tree like the params; or a `Reference`, `initial_params` or `average_of_params(0.999)`.
      pull: `distance -> p`, elementwise, such as `huber(0.1)`; by default the distance itself
        (L2). `jax.numpy.sign` is the subgradient of L1.

    Raises:
      ValueError: at build, for a rate that is not a scalar, or is known and negative, not finite
        or >= 2 (at 2 a weight only changes sign, above 2 each step grows it; beside steps of eta on
        a loss of curvature h the bound is eta h + c < 2, which nothing here knows); in `init`, for
        parts or a reference tree that do not fit the params; in `update`, when `params` is missing;
        in both, for a schedule that is known to give such a rate.

    Warns:
      UserWarning: if a known rate is in [1, 2): the weights change sign at every step; in `init`,
        if a known rate is too small for weights in half precision, which it would never move.

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101, for the decay beside the update.
    """
    check_strength_or_schedule("rate", rate)
    _check_function("gate", gate)
    _check_function("pull", pull)
    check_not_injected(parts)
    keeper = _as_keeper(reference)
    constant = 0.0 if reference is None else reference
    if parts is None and not callable(rate):
        _check_overshoot(rate, [1.0])

    def init(params: Params) -> DecayState:
        _check_first_rate(rate, parts, params)
        return DecayState(jnp.zeros((), jnp.int32), () if keeper is None else keeper.init(params))

    def update(
        updates: PyTree, state: Any, params: Params | None = None
    ) -> tuple[PyTree, DecayState]:
        params = require_params(params)
        c = rate_at(rate, state.step)
        kept = () if keeper is None else keeper.follow(state.reference, params)
        goals = jax.tree.map(lambda _: constant, params) if keeper is None else kept
        decay = functools.partial(_decayed, c, pull, gate)
        updates = map_updates(decay, updates, params, resolve_parts(parts, params), goals)
        return updates, DecayState(next_step(state.step), kept)

    return optax.GradientTransformation(init, update)


def _decayed(
    c: Any, pull: Pull | None, gate: Gate | None, update: Any, leaf: Any, multiplier: Any, goal: Any
) -> Any:
    """One leaf's update, less what decay removes of the leaf."""
    if not is_inexact(leaf) or is_known_zero(multiplier):
        return update
    wide = wide_dtype(leaf)
    p = jnp.asarray(leaf, wide)
    if not is_known_zero(goal):
        p = p - jnp.asarray(goal, wide)
    if pull is not None:
        p = pull(p)
    if gate is not None:
        p = gate(update, p) * p
    real = jnp.finfo(wide).dtype
    return (update - jnp.asarray(c * multiplier, real) * p).astype(update.dtype)


def _check_first_rate(rate: Any, parts: Parts, params: Params) -> None:
    """What the first step removes, where it is known: not too much, nor too little for a dtype."""
    multipliers = resolve_parts(parts, params)
    if parts is not None or callable(rate):
        first = rate_at(rate, jnp.zeros((), jnp.int32))
        _check_overshoot(first, jax.tree.leaves(multipliers))
    if not callable(rate):  # A schedule may begin at 0 and grow.
        _warn_if_lost(rate, multipliers, params)


def _warn_if_lost(rate: Strength, multipliers: PyTree, params: Params) -> None:
    """A step of relative size below half the spacing (eps / 2 to eps) is rounded away."""
    lost = []
    for (path, leaf), multiplier in zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(multipliers), strict=True
    ):
        known = is_inexact(leaf) and is_known(rate) and is_known(multiplier)
        if not known or jnp.result_type(leaf).itemsize > 2:
            continue
        removed, eps = float(rate) * float(multiplier), float(jnp.finfo(leaf.dtype).eps)
        if 0 < removed < eps / 2:
            lost.append((leaf_path(path), jnp.result_type(leaf), removed, eps))
    if lost:
        path, dtype, removed, eps = lost[0]
        others = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        warnings.warn(
            f"leaf {path!r}{others} is {dtype}, whose numbers lie {eps / 2:.2g} to {eps:.2g} of "
            f"themselves apart: a decay of {removed:.2g} a step rounds back to the same weight. "
            "Keep the weights in float32 and compute in half precision (`with_compute_dtype`), or "
            "wrap the optimiser in `float32_master` or `stochastic_rounding`.",
            UserWarning,
            stacklevel=4,
        )


# Gates, pulls and references.


def cautious(update: Array, pull: Array) -> Array:
    """The gate that is 1 where the update does not work against the pull, else 0.

        gate = 1[update * pull <= 0]

    By signs, since a product of small numbers would underflow to zero and open it.
    """
    return (jnp.real(jnp.sign(update) * jnp.conj(jnp.sign(pull))) <= 0).astype(pull.dtype)


def huber(threshold: Strength) -> Pull:
    """The pull `clip(distance, -threshold, threshold)`: L2 near the reference, L1 far from it.

    Of complex weights it bounds the modulus: `distance * min(1, threshold / |distance|)`.

    Raises:
      ValueError: if the threshold is not a scalar, or is known and not above zero.
    """
    check_number("threshold", threshold, low=0.0, exclusive_low=True)

    def clipped(distance: Array) -> Array:
        bound = jnp.asarray(threshold, jnp.finfo(distance.dtype).dtype)
        if jnp.iscomplexobj(distance):
            return distance * (bound / jnp.maximum(modulus(distance), bound))
        return jnp.clip(distance, -bound, bound)

    return clipped


def average_of_params(smoothing: Strength) -> Reference:
    """The reference that follows the params as an exponential moving average.

        average_t = smoothing * average_{t-1} + (1 - smoothing) * params_t

    It starts at the initial params, so it needs no debiasing, and is kept in float32 at least.

    Raises:
      ValueError: if `smoothing` is not a scalar, or is known and outside [0, 1].
    """
    check_number("smoothing", smoothing, low=0.0, high=1.0)

    def follow(average: PyTree, params: Params) -> PyTree:
        def towards(mean, leaf):
            if not is_inexact(leaf):
                return mean
            keep = jnp.asarray(smoothing, jnp.finfo(mean.dtype).dtype)
            return keep * mean + (1 - keep) * leaf

        return jax.tree.map(towards, average, params)

    return Reference(lambda params: _copy(params, params, widen=True), follow)


initial_params = Reference(
    lambda params: _copy(params, params, widen=False), lambda kept, params: kept
)
"""The reference that keeps a copy of the params given to `init`."""


# What the other transformations of this package share.


def rate_at(rate: Strength | Schedule, step: Array) -> Any:
    """The number that a rate is at `step`, checked where it is known.

    Raises:
      ValueError: if a schedule gives no scalar, or a known number that is negative or not finite.
    """
    if not callable(rate):
        return rate
    value = rate(step)
    check_strength("rate", value)
    return value


def require_params(params: Params | None) -> Params:
    """The params, or one clear refusal where `update` was called without them.

    Raises:
      ValueError: if there are none.
    """
    if params is None:
        raise ValueError(
            "Decay needs the weights: call `tx.update(updates, state, params)` with the params."
        )
    return params


def map_updates(function: Callable[..., Any], updates: PyTree, *trees: PyTree) -> PyTree:
    """`function` on every leaf of the updates; where one is None, as optax has it, it stays."""
    return jax.tree.map(
        lambda update, *rest: None if update is None else function(update, *rest),
        updates,
        *trees,
        is_leaf=is_none,
    )


def is_none(node: Any) -> bool:
    """Whether a leaf has no gradient, so no update: it does not move, nor decay."""
    return node is None


def modulus(leaf: Array) -> Array:
    """`|w|`, whose derivative at a complex zero is taken as 0; `jnp.abs` has NaN there."""
    if not jnp.iscomplexobj(leaf):
        return jnp.abs(leaf)
    alive = leaf != 0
    return jnp.where(alive, jnp.abs(jnp.where(alive, leaf, 1)), 0)


def next_step(step: Array) -> Array:
    """One more update made, without running over."""
    return jnp.asarray(optax.safe_increment(step))


def wide_dtype(leaf: Any) -> Any:
    """The dtype to compute a leaf's decay in: its own, float32 at least."""
    return jnp.promote_types(jnp.result_type(leaf), jnp.float32)


def is_abstract(leaf: Any) -> bool:
    """Whether a leaf is known by shape alone, as `jax.eval_shape` gives it."""
    return isinstance(leaf, jax.ShapeDtypeStruct)


def with_dtype(leaf: Any, dtype: Any) -> Any:
    """The leaf in another dtype, where only its shape is known too."""
    if is_abstract(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)
    return jnp.asarray(leaf, dtype)


def is_known_zero(value: Any) -> bool:
    """Whether `value` is a Python or NumPy number equal to zero: what it multiplies can go."""
    return isinstance(value, int | float | np.generic) and value == 0


def _as_keeper(reference: Any) -> Reference | None:
    """How to keep the reference; None where it is zero or a number and nothing is kept."""
    if reference is None:
        return None
    if isinstance(reference, Reference):
        return reference
    if isinstance(reference, int | float) or getattr(reference, "shape", None) == ():
        check_number("reference", reference)
        return None
    return Reference(lambda params: _copy(reference, params, widen=False), lambda kept, _: kept)


def _copy(tree: PyTree, params: Params, *, widen: bool) -> PyTree:
    """A copy of `tree` in the structure of `params`; what never decays is not kept."""
    if not jax.tree.leaves(params):  # optax asks with a placeholder which trees are like params.
        return params

    def copied(path, leaf, goal):
        if isinstance(leaf, optax.MaskedNode):
            return leaf
        if not is_inexact(leaf):
            return jnp.zeros(())
        if np.shape(leaf) != np.shape(goal):
            raise ValueError(
                f"`reference` has shape {np.shape(goal)} at {leaf_path(path)!r} where the params "
                f"have {np.shape(leaf)}."
            )
        dtype = wide_dtype(leaf) if widen else None
        if is_abstract(goal):
            return with_dtype(goal, dtype or goal.dtype)
        return jnp.array(goal, dtype, copy=True)

    try:
        return jax.tree_util.tree_map_with_path(
            copied, params, tree, is_leaf=lambda node: isinstance(node, optax.MaskedNode)
        )
    except (ValueError, TypeError) as error:
        raise ValueError(
            "`reference` must be None, a number, a tree with the structure and shapes of the "
            f"params, or a `Reference`: {error}"
        ) from None


def _check_function(name: str, value: Any) -> None:
    if value is not None and not callable(value):
        raise ValueError(
            f"`{name}` must be a function or None, got {value!r}. (Under "
            f'`optax.inject_hyperparams` list it: `static_args=("parts", "{name}")`.)'
        )


def _check_overshoot(rate: Any, multipliers: list) -> None:
    """Refuses c_t * m >= 2 and warns of c_t * m >= 1, where both are known."""
    if not (is_known(rate) and all(is_known(m) for m in multipliers)):
        return
    removed = float(rate) * max((float(m) for m in multipliers), default=0.0)
    if removed >= 2:
        raise ValueError(
            f"a step would remove {removed:g} times the weight; at 2 it only changes sign, above "
            "2 each step grows it. Lower the strength, the learning rate or the multiplier."
        )
    if removed >= 1:
        warnings.warn(
            f"a step removes {removed:g} times the weight: at 1 it is gone, above 1 it changes "
            "sign. Did you mean another convention? See `convert_strength`.",
            stacklevel=4,
        )
