"""Rules that give a strength, or a schedule of strengths, from what the user knows of the run."""

import math
from typing import Any

import jax.numpy as jnp

from wdjax.checks import check_number, check_positive_int, check_strength
from wdjax.types import Schedule, Strength


def cosine_strength(start: Strength, end: Strength, num_steps: int) -> Schedule:
    """A strength that moves from `start` to `end` along half a cosine, then stays.

        strength_t = end + (start - end) / 2 * (1 + cos(pi * min(t, T) / T))

    Args:
      start: >= 0, at step 0; may be traced. The paper's vision transformers: 0.04.
      end: >= 0, from step T on; may be traced. The paper's: 0.4.
      num_steps: T >= 1.

    Raises:
      ValueError: if a value is known and negative or not finite, or T is no integer >= 1.

    Source: Caron et al. 2021, arXiv:2104.14294 (DINO), whose decay increases.
    """
    check_strength("start", start)
    check_strength("end", end)
    check_positive_int("num_steps", num_steps)
    first: Any = start

    def strength(step: Any) -> Any:
        share = 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(step, num_steps) / num_steps))
        return end + (first - end) * share

    return strength


def normalized_strength(
    normalized: Strength, *, batch_size: int, num_examples: int, num_epochs: int
) -> Any:
    """The strength that keeps its meaning over batch size, data size and number of epochs.

        strength = normalized * sqrt(batch_size / (num_examples * num_epochs))

    It is one over the root of the number of steps, for `independent_decay`.

    Args:
      normalized: >= 0, the same for runs of any length; may be traced. The authors' code
        suggests 0.025 to 0.05.
      batch_size: examples a step.
      num_examples: examples an epoch.
      num_epochs: epochs in the run.

    Raises:
      ValueError: if a value is known and out of range.

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101, section on normalized weight decay.
    """
    check_strength("normalized", normalized)
    check_positive_int("batch_size", batch_size)
    check_positive_int("num_examples", num_examples)
    check_positive_int("num_epochs", num_epochs)
    value: Any = normalized
    return value * math.sqrt(batch_size / (num_examples * num_epochs))


def timescale_strength(
    timescale: Strength, *, learning_rate: Strength, batch_size: int, num_examples: int
) -> Any:
    """The strength under which the weights average their updates over `timescale` epochs.

        strength = 1 / (learning_rate * timescale * num_examples / batch_size)

    For `decoupled_decay`: the weights are a moving average of past updates over
    1 / (learning_rate * strength) steps. The best timescale in epochs moves little with model
    and data size; try between 1 and the number of epochs.

    Args:
      timescale: > 0, in epochs; may be traced.
      learning_rate: > 0, the peak of the schedule; may be traced.
      batch_size: examples a step.
      num_examples: examples an epoch.

    Raises:
      ValueError: if a value is known and out of range.

    Source: Wang & Aitchison 2025, arXiv:2405.13698.
    """
    check_number("timescale", timescale, low=0.0, exclusive_low=True)
    check_number("learning_rate", learning_rate, low=0.0, exclusive_low=True)
    check_positive_int("batch_size", batch_size)
    check_positive_int("num_examples", num_examples)
    rate: Any = learning_rate
    return 1 / (rate * timescale * (num_examples / batch_size))


def power_lines_strength(
    constant: Strength,
    *,
    learning_rate: Strength,
    batch_size: int,
    num_tokens: int,
    num_params: int,
    exponent: float = -0.527,
) -> Any:
    """The strength for a language model by the power law of the best timescale.

        timescale = constant * (num_tokens / num_params)^exponent, as a share of the run
        strength = batch_size / (learning_rate * num_tokens * timescale)

    For `decoupled_decay`. It grows in proportion to the batch size.

    Args:
      constant: > 0, fitted by the user on small runs; may be traced.
      learning_rate: > 0, the peak of the schedule; may be traced.
      batch_size: tokens a step.
      num_tokens: tokens in the whole run.
      num_params: weights of the model.
      exponent: of tokens per weight; the default is the paper's fit.

    Raises:
      ValueError: if a value is known and out of range.

    Source: Bergsma et al. 2025, arXiv:2505.13738.
    """
    check_number("constant", constant, low=0.0, exclusive_low=True)
    check_number("learning_rate", learning_rate, low=0.0, exclusive_low=True)
    check_number("exponent", exponent)
    for name, value in (
        ("batch_size", batch_size),
        ("num_tokens", num_tokens),
        ("num_params", num_params),
    ):
        check_positive_int(name, value)
    scale: Any = constant
    rate: Any = learning_rate
    timescale = scale * (num_tokens / num_params) ** exponent
    return batch_size / (rate * num_tokens * timescale)


def mup_strength(strength: Strength, width_multiplier: Strength) -> Any:
    """The strength of a wider model's matrices when muP divides their learning rate by the width.

        strength(width) = strength * width_multiplier

    so that learning rate x strength, the fraction a step removes under `decoupled_decay`, stays.
    Under `independent_decay` the strength itself stays.

    Args:
      strength: >= 0, found at the base width; may be traced.
      width_multiplier: > 0, width / base width.

    Raises:
      ValueError: if a value is known and out of range.

    Source: Yang et al. 2022, arXiv:2203.03466, as in the authors' optimisers.
    """
    value: Any = strength
    return value * _checked_width(strength, width_multiplier)


def sqrt_width_strength(strength: Strength, width_multiplier: Strength) -> Any:
    """The strength of a wider model's matrices by the square root of the width.

        strength(width) = strength * sqrt(width_multiplier)

    For `decoupled_decay` beside a learning rate divided by the width; vectors keep strength 0.

    Args:
      strength: >= 0, found at the base width; may be traced.
      width_multiplier: > 0, width / base width.

    Raises:
      ValueError: if a value is known and out of range.

    Source: Fan et al. 2025, arXiv:2510.15262.
    """
    value: Any = strength
    return value * _checked_width(strength, width_multiplier) ** 0.5


def _checked_width(strength: Strength, width_multiplier: Strength) -> Any:
    check_strength("strength", strength)
    check_number("width_multiplier", width_multiplier, low=0.0, exclusive_low=True)
    return width_multiplier
