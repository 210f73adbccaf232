"""The named forms of decay, and the rates that say what multiplies what."""

from collections.abc import Callable
from typing import Any

import optax
from jaxtyping import Array

from wdjax.checks import check_number, check_strength, check_strength_or_schedule, is_known
from wdjax.decay.core import (
    average_of_params,
    cautious,
    decay_weights,
    huber,
    initial_params,
)
from wdjax.types import Parts, Schedule, Strength

# Rates: how much a step removes, and what multiplies what.


def decoupled_rate(
    strength: Strength | Schedule, learning_rate: Strength | Schedule
) -> Strength | Schedule:
    """The rate `c_t = eta_t * strength`: decay follows the learning rate (PyTorch, optax, Keras).

    Args:
      strength: >= 0, per step and learning rate; a number (traced or not) or a schedule.
      learning_rate: eta_t, the one the optimiser uses; a number or a schedule.

    Returns:
      A number where both are numbers, else a schedule.

    Raises:
      ValueError: if either is known and negative, not finite or not a scalar.
    """
    return _rate(lambda strength, learning_rate: learning_rate * strength, strength, learning_rate)


def independent_rate(
    strength: Strength | Schedule, schedule: Strength | Schedule = 1.0
) -> Strength | Schedule:
    """The rate `c_t = s_t * strength`: no learning rate, at most its schedule's shape.

    Args:
      strength: >= 0, per step; a number (traced or not) or a schedule.
      schedule: s_t in [0, 1], the learning rate's schedule divided by its peak.

    Raises:
      ValueError: if the strength is known and negative or not finite; if s_t is known to leave
        [0, 1], which a schedule of learning rates would not, but a peak above 1 does.
    """

    def formula(strength, multiplier):
        check_multiplier(multiplier, " For c_t = eta_t * strength use `decoupled_decay`.")
        return multiplier * strength

    return _rate(formula, strength, schedule, names=("strength", "schedule"))


def corrected_rate(
    strength: Strength | Schedule,
    learning_rate: Strength | Schedule,
    peak_learning_rate: Strength,
) -> Strength | Schedule:
    """The rate `c_t = eta_t^2 / eta_max * strength`, that of AdamC.

    Args:
      strength: >= 0, per step and learning rate: at the peak it is the decoupled one.
      learning_rate: eta_t, a number or a schedule.
      peak_learning_rate: eta_max > 0, the largest value of the schedule.

    Raises:
      ValueError: as `decoupled_rate`; if the peak is known and <= 0, or below a learning rate
        that is known.
    """
    check_number("peak_learning_rate", peak_learning_rate, low=0.0, exclusive_low=True)
    peak: Any = peak_learning_rate

    def formula(strength, learning_rate):
        check_peak(learning_rate, peak)
        return learning_rate * (learning_rate / peak) * strength

    return _rate(formula, strength, learning_rate)


# Named forms: one line each.


def decoupled_decay(
    strength: Strength | Schedule,
    learning_rate: Strength | Schedule,
    *,
    parts: Parts = None,
) -> optax.GradientTransformation:
    """Decay that follows the learning rate, as in PyTorch's, optax' and Keras' AdamW.

        update <- update - eta_t * strength * m_leaf * params

    Goes after the learning rate in the chain. Half-life of an unused weight:
    `log(2) / (eta * strength)` steps.

    Args:
      strength: >= 0, per step and learning rate; a number (traced or not) or a schedule.
      learning_rate: eta_t, the one the optimiser uses; a number or a schedule.
      parts: how much each leaf counts; by default every leaf 1.0.

    Raises:
      ValueError: as `decoupled_rate` and `decay_weights`.

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101, as the libraries implement it; the paper's
    own form is `independent_decay`.

    Example:
      >>> tx = optax.chain(optax.adam(0.5), wdjax.decoupled_decay(0.25, 0.5))
      >>> w = jnp.array([8.0])
      >>> updates, _ = tx.update(jnp.zeros(1), tx.init(w), w)
      >>> print(updates)  # 0.5 * 0.25 of it
      [-1.]
    """
    return decay_weights(decoupled_rate(strength, learning_rate), parts=parts)


def independent_decay(
    strength: Strength | Schedule,
    schedule: Strength | Schedule = 1.0,
    *,
    parts: Parts = None,
) -> optax.GradientTransformation:
    """Decay without the learning rate: a fraction of each weight per step.

        update <- update - s_t * strength * m_leaf * params

    Goes after the learning rate in the chain.

    Args:
      strength: >= 0, per step; a number (traced or not) or a schedule.
      schedule: s_t in [0, 1], the learning rate's schedule divided by its peak; by default 1, a
        fixed fraction a step.
      parts: how much each leaf counts; by default every leaf 1.0.

    Raises:
      ValueError: as `independent_rate` and `decay_weights`.

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101, Algorithm 2 (their eta_t is s_t here).

    Example:
      >>> tx, w = wdjax.independent_decay(0.25), jnp.array([8.0])
      >>> print(tx.update(jnp.zeros(1), tx.init(w), w)[0])
      [-2.]
    """
    return decay_weights(independent_rate(strength, schedule), parts=parts)


def corrected_decay(
    strength: Strength | Schedule,
    learning_rate: Strength | Schedule,
    peak_learning_rate: Strength,
    *,
    parts: Parts = None,
) -> optax.GradientTransformation:
    """Decay that follows the square of the learning rate: AdamC, for layers before a norm.

        update <- update - eta_t^2 / eta_max * strength * m_leaf * params

    It keeps the ratio of gradient to weight norm steady while the learning rate falls. Goes
    after the learning rate in the chain.

    Args:
      strength: >= 0, per step and learning rate: at the peak it is the decoupled one.
      learning_rate: eta_t, a number or a schedule.
      peak_learning_rate: eta_max > 0, the largest value of the schedule.
      parts: how much each leaf counts; by default every leaf 1.0. The paper corrects the
        normalised layers only; chain a `decoupled_decay` with the other parts.

    Raises:
      ValueError: as `corrected_rate` and `decay_weights`.

    Source: Defazio 2025, arXiv:2506.02285.

    Example:
      >>> tx = wdjax.corrected_decay(0.5, learning_rate=0.25, peak_learning_rate=0.5)
      >>> w = jnp.array([16.0])
      >>> print(tx.update(jnp.zeros(1), tx.init(w), w)[0])  # 0.25 * 0.25 / 0.5 * 0.5 of it
      [-1.]
    """
    return decay_weights(corrected_rate(strength, learning_rate, peak_learning_rate), parts=parts)


def cautious_decay(
    strength: Strength | Schedule,
    learning_rate: Strength | Schedule,
    *,
    parts: Parts = None,
) -> optax.GradientTransformation:
    """Decoupled decay of those weights only that the update does not push away from zero.

        update <- update - eta_t * strength * m_leaf * 1[update * params <= 0] * params

    A weight without an update decays, so a minimum of the loss is not at rest: it goes to
    (1 - c) w. Steps that do not overshoot (eta h < 1 on a curvature h) and have no noise come to it
    from the side of zero, where the gate is shut; under gradient noise that outweighs the pull the
    gate is open half the time, which is decay of half the strength.

    Args:
      strength: >= 0, per step and learning rate; a number (traced or not) or a schedule.
      learning_rate: eta_t, a number or a schedule.
      parts: how much each leaf counts; by default every leaf 1.0.

    Raises:
      ValueError: as `decoupled_rate` and `decay_weights`.

    Source: Chen et al. 2025, arXiv:2510.12402.
    """
    return decay_weights(decoupled_rate(strength, learning_rate), parts=parts, gate=cautious)


def decay_to_initial(
    strength: Strength | Schedule,
    learning_rate: Strength | Schedule,
    *,
    parts: Parts = None,
) -> optax.GradientTransformation:
    """Decoupled decay towards the params that `init` was given: L2-SP for fine-tuning.

        update <- update - eta_t * strength * m_leaf * (params - params_0)

    The state keeps a copy of the initial params.

    Args:
      strength: >= 0, per step and learning rate; a number (traced or not) or a schedule.
      learning_rate: eta_t, a number or a schedule.
      parts: how much each leaf counts; by default every leaf 1.0.

    Raises:
      ValueError: as `decoupled_rate` and `decay_weights`.

    Source: Li, Grandvalet & Davoine 2018, arXiv:1802.01483 (there as a penalty; here decoupled).
    """
    rate = decoupled_rate(strength, learning_rate)
    return decay_weights(rate, parts=parts, reference=initial_params)


def decay_to_one(
    strength: Strength | Schedule,
    learning_rate: Strength | Schedule,
    *,
    parts: Parts,
) -> optax.GradientTransformation:
    """Decoupled decay of norm gains towards one, where a gain does nothing, not towards zero.

        update <- update - eta_t * strength * m_leaf * (params - 1)

    The same as decaying zero-centred gains `gain - 1` to zero.

    Args:
      strength: >= 0, per step and learning rate; a number (traced or not) or a schedule.
      learning_rate: eta_t, a number or a schedule.
      parts: which leaves are gains: `{"*/scale": 1.0, "*": 0.0}`. It has no default, because
        kernels must not go to one.

    Raises:
      ValueError: as `decoupled_rate` and `decay_weights`.
    """
    return decay_weights(decoupled_rate(strength, learning_rate), parts=parts, reference=1.0)


def decay_to_average(
    strength: Strength | Schedule,
    learning_rate: Strength | Schedule,
    smoothing: Strength,
    *,
    parts: Parts = None,
) -> optax.GradientTransformation:
    """Decoupled decay towards an exponential moving average of the params.

        average_t = smoothing * average_{t-1} + (1 - smoothing) * params_t
        update <- update - eta_t * strength * m_leaf * (params_t - average_t)

    Args:
      strength: >= 0, per step and learning rate; a number (traced or not) or a schedule.
      learning_rate: eta_t, a number or a schedule.
      smoothing: in [0, 1], may be traced; the average starts at the initial params.
      parts: how much each leaf counts; by default every leaf 1.0.

    Raises:
      ValueError: as `decoupled_rate`, `average_of_params` and `decay_weights`.
    """
    rate = decoupled_rate(strength, learning_rate)
    return decay_weights(rate, parts=parts, reference=average_of_params(smoothing))


def huber_decay(
    strength: Strength | Schedule,
    learning_rate: Strength | Schedule,
    threshold: Strength,
    *,
    parts: Parts = None,
) -> optax.GradientTransformation:
    """Decoupled decay by the Huber penalty: no weight loses more than the threshold's share.

        update <- update - eta_t * strength * m_leaf * clip(params, -threshold, threshold)

    Args:
      strength: >= 0, per step and learning rate; a number (traced or not) or a schedule.
      learning_rate: eta_t, a number or a schedule.
      threshold: > 0, may be traced: quadratic below, linear above.
      parts: how much each leaf counts; by default every leaf 1.0.

    Raises:
      ValueError: as `decoupled_rate`, `huber` and `decay_weights`.

    Source: Guo & Fan 2025, arXiv:2511.14721 (their exact form was not at hand; this one is the
    gradient of the Huber penalty).
    """
    return decay_weights(
        decoupled_rate(strength, learning_rate), parts=parts, pull=huber(threshold)
    )


def check_multiplier(multiplier: Any, remedy: str = "") -> None:
    """Refuses an s_t that is known and no scalar in [0, 1].

    Raises:
      ValueError: if it is; a traced one passes.
    """
    check_strength("schedule", multiplier)
    if is_known(multiplier) and multiplier > 1 + _ROUNDING:
        raise ValueError(
            f"`schedule` must stay in [0, 1], got {float(multiplier):g}: it is the learning "
            f"rate's schedule divided by its peak.{remedy}"
        )


def check_peak(learning_rate: Any, peak: Any) -> None:
    """Refuses a peak that is known to be below a known learning rate.

    Raises:
      ValueError: if it is; traced ones pass.
    """
    both_known = is_known(learning_rate) and is_known(peak)
    if both_known and learning_rate > peak * (1 + _ROUNDING):
        raise ValueError(
            "`peak_learning_rate` must be the largest learning rate, got "
            f"peak_learning_rate={float(peak):g} below learning_rate={float(learning_rate):g}."
        )


_ROUNDING = 1e-6
"""What float32 schedules may exceed their own peak by."""


def _rate(
    formula: Callable[[Any, Any], Any],
    first: Strength | Schedule,
    second: Strength | Schedule,
    names: tuple[str, str] = ("strength", "learning_rate"),
) -> Strength | Schedule:
    """`formula(first, second)` as a number, or as a schedule where either is one."""
    check_strength_or_schedule(names[0], first)
    check_strength_or_schedule(names[1], second)
    if not (callable(first) or callable(second)):
        return formula(first, second)

    def rate(step: Array) -> Any:
        values = [value(step) if callable(value) else value for value in (first, second)]
        for name, value in zip(names, values, strict=True):
            check_strength(name, value)
        return formula(*values)

    return rate
