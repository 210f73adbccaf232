"""One strength, many conventions: what a number from one library is in another."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wdjax.checks import check_number, check_one_of, check_positive_int, is_known
from wdjax.decay.forms import check_peak
from wdjax.types import Schedule, Strength

CONVENTIONS = {
    "torch_adamw": "w loses learning_rate * value * w (PyTorch's AdamW)",
    "torch_sgd": "the gradient gains value * w (PyTorch's SGD, without momentum)",
    "optax_adamw": "w loses learning_rate * value * w (optax.adamw)",
    "keras_adamw": "w loses learning_rate * value * w (keras.optimizers.AdamW)",
    "keras_l2": "the loss gains value * sum w^2, no half (keras.regularizers.L2)",
    "adamw_paper": "w loses learning_rate / peak_learning_rate * value * w (arXiv:1711.05101)",
    "sklearn_C": "value * sum of losses + 1/2 sum w^2 (scikit-learn's LogisticRegression)",
    "sklearn_alpha": "sum of squared errors + value * sum w^2 (scikit-learn's Ridge)",
    "timescale_steps": "w loses w / value: the updates are averaged over value steps",
    "timescale_epochs": "w loses w / (value * steps per epoch)",
}
"""What the number of each convention does; `docs/conventions.md` has the derivations."""


class Conversion(NamedTuple):
    """A converted strength, and how far the two conventions go together."""

    value: Any
    """The strength in the target convention."""
    exact: bool
    """Whether both remove the same fraction at every single step."""
    horizon: int | None
    """Where not: the step at which equal weights, left alone, are equal again."""
    departure: float
    """Where not: the largest difference before that, as a share of the initial weight."""
    departure_step: int | None
    """The step of that largest difference."""

    def __str__(self) -> str:
        if self.exact:
            return f"{float(self.value):.6g}: the same fraction of each weight at every step"
        return (
            f"{float(self.value):.6g}: the same after {self.horizon} steps, before that they part "
            f"by up to {self.departure:.2g} of the initial weight (step {self.departure_step})"
        )


def convert_strength(
    value: Strength,
    source: str,
    target: str,
    *,
    learning_rate: Strength | Schedule | None = None,
    peak_learning_rate: Strength | None = None,
    num_steps: int | None = None,
    batch_size: int | None = None,
    num_examples: int | None = None,
) -> Any:
    """A strength in another convention: the same decay of the same run.

        decoupled strength lam = value                        torch_adamw, optax_adamw, keras_adamw
                               = value                        torch_sgd
                               = 2 value                      keras_l2
                               = value / peak_learning_rate   adamw_paper
                               = 1 / (value num_examples)     sklearn_C
                               = value / num_examples         sklearn_alpha
                               = 1 / (learning_rate value)    timescale_steps
                               = batch_size / (learning_rate value num_examples) timescale_epochs

    Penalties (torch_sgd, keras_l2, sklearn) equal decay beside the step only under plain
    gradient descent on a mean of losses: with momentum or Adam no number makes them equal. To move
    a strength to another batch or data size, convert to `timescale_epochs` with the old sizes
    and back with the new. Under a schedule of the learning rate a timescale is a constant
    fraction a step and the others are not: `explain_conversion` says where they agree.

    Args:
      value: the strength (or C, or timescale) in the source convention; may be traced.
      source: one of `CONVENTIONS`.
      target: one of `CONVENTIONS`.
      learning_rate: a number (traced or not), or a schedule; needed for timescales.
      peak_learning_rate: the largest learning rate; needed for `adamw_paper`, except where
        `learning_rate` is a number, which is then the peak.
      num_steps: the horizon to agree on, needed for timescales under a schedule.
      batch_size: examples a step, needed for `timescale_epochs`.
      num_examples: examples an epoch, needed for scikit-learn and `timescale_epochs`.

    Raises:
      ValueError: for an unknown convention (with the nearest), a needed argument that is
        missing, or a value that is known and out of range.

    Source: the formulas are derived in `docs/conventions.md`.

    Example:
      >>> wdjax.convert_strength(0.01, "keras_l2", "torch_adamw")
      0.02
      >>> wdjax.convert_strength(0.1, "torch_adamw", "timescale_steps", learning_rate=0.001)
      10000.0
    """
    return explain_conversion(
        value,
        source,
        target,
        learning_rate=learning_rate,
        peak_learning_rate=peak_learning_rate,
        num_steps=num_steps,
        batch_size=batch_size,
        num_examples=num_examples,
    ).value


def explain_conversion(
    value: Strength,
    source: str,
    target: str,
    *,
    learning_rate: Strength | Schedule | None = None,
    peak_learning_rate: Strength | None = None,
    num_steps: int | None = None,
    batch_size: int | None = None,
    num_examples: int | None = None,
) -> Conversion:
    """`convert_strength`, with over which horizon the two conventions agree and how far they part.

    Under a schedule, with a timescale on one side, the weights that nothing else moves agree
    after `num_steps`:

        prod_{t < T} (1 - eta_t lam) = (1 - 1 / timescale)^T

    Args and Raises: as `convert_strength`.
    """
    check_one_of("source", source, CONVENTIONS)
    check_one_of("target", target, CONVENTIONS)
    check_number("value", value, low=0.0, exclusive_low=source in _RECIPROCAL)
    _check_run(learning_rate, peak_learning_rate, num_steps, batch_size, num_examples)
    timescales = (source in _TIMESCALES, target in _TIMESCALES)
    if all(timescales):
        learning_rate = 1.0  # it cancels
    scheduled = callable(learning_rate) and any(timescales)
    known: dict[str, Any] = {
        "learning_rate": 1.0 if scheduled else learning_rate,
        "peak_learning_rate": (
            learning_rate
            if peak_learning_rate is None and not callable(learning_rate)
            else peak_learning_rate
        ),
        "batch_size": batch_size,
        "num_examples": num_examples,
    }

    def factor(convention: str) -> Any:
        for name in _NEEDS[convention]:
            if known[name] is None:
                raise ValueError(
                    f"`{name}` is needed to convert {source} to {target}: {CONVENTIONS[convention]}"
                )
        return _FACTORS[convention](**known)

    strength = _apply(source, factor(source), value)
    if not scheduled:
        return Conversion(_undo(target, factor(target), strength), True, None, 0.0, None)
    rates = _learning_rates(learning_rate, peak_learning_rate, num_steps, value, source, target)
    if timescales[0]:  # a factor at learning rate 1 gave the fraction a step
        fraction = float(strength)
        strength = _solve_strength(fraction, rates)
        result = _undo(target, factor(target), strength)
    else:
        strength = float(strength)
        fraction = -math.expm1(_log_left(strength, rates)[-1] / len(rates))
        result = _undo(target, factor(target), fraction)
    apart = np.abs(
        np.exp(_log_left(strength, rates)) - (1 - fraction) ** np.arange(1, len(rates) + 1)
    )
    worst = int(np.argmax(apart))
    return Conversion(result, False, len(rates), float(apart[worst]), worst + 1)


# Every convention is `lam = factor * value`, or `lam = factor / value` for the reciprocal ones.

_RECIPROCAL = {"sklearn_C", "timescale_steps", "timescale_epochs"}
_TIMESCALES = {"timescale_steps", "timescale_epochs"}
_FACTORS: dict[str, Callable[..., Any]] = {
    "torch_adamw": lambda **_: 1.0,
    "torch_sgd": lambda **_: 1.0,
    "optax_adamw": lambda **_: 1.0,
    "keras_adamw": lambda **_: 1.0,
    "keras_l2": lambda **_: 2.0,
    "adamw_paper": lambda peak_learning_rate, **_: 1 / peak_learning_rate,
    "sklearn_C": lambda num_examples, **_: 1 / num_examples,
    "sklearn_alpha": lambda num_examples, **_: 1 / num_examples,
    "timescale_steps": lambda learning_rate, **_: 1 / learning_rate,
    "timescale_epochs": lambda learning_rate, batch_size, num_examples, **_: (
        batch_size / num_examples / learning_rate
    ),
}
_NEEDS = {
    **dict.fromkeys(_FACTORS, ()),
    "adamw_paper": ("peak_learning_rate",),
    "sklearn_C": ("num_examples",),
    "sklearn_alpha": ("num_examples",),
    "timescale_steps": ("learning_rate",),
    "timescale_epochs": ("learning_rate", "batch_size", "num_examples"),
}


def _apply(convention: str, factor: Any, value: Any) -> Any:
    return factor / value if convention in _RECIPROCAL else factor * value


def _undo(convention: str, factor: Any, strength: Any) -> Any:
    if convention not in _RECIPROCAL:
        return strength / factor
    if is_known(strength) and strength == 0:
        raise ValueError(f"a strength of 0 has no finite {convention}: it never decays.")
    return factor / strength


def _check_run(
    learning_rate: Any, peak_learning_rate: Any, num_steps: Any, batch_size: Any, num_examples: Any
) -> None:
    rate_given = learning_rate is not None and not callable(learning_rate)
    if rate_given:
        check_number("learning_rate", learning_rate, low=0.0, exclusive_low=True)
    if peak_learning_rate is not None:
        check_number("peak_learning_rate", peak_learning_rate, low=0.0, exclusive_low=True)
    if rate_given and peak_learning_rate is not None:
        check_peak(learning_rate, peak_learning_rate)
    sizes = {"num_steps": num_steps, "batch_size": batch_size, "num_examples": num_examples}
    for name, value in sizes.items():
        if value is not None:
            check_positive_int(name, value)


def _learning_rates(
    schedule: Any, peak: Any, num_steps: int | None, value: Any, source: str, target: str
) -> np.ndarray:
    """The schedule as numbers, in float64."""
    if num_steps is None:
        raise ValueError(
            f"`num_steps` is needed to convert {source} to {target} under a schedule: a timescale "
            "is a constant fraction a step, so the two agree only over a horizon."
        )
    if not is_known(value):
        raise ValueError(
            f"`value` must be known to convert {source} to {target} under a schedule: the "
            "horizon's equation is solved on the host. Convert outside of jit and vmap."
        )
    rates = np.asarray(jax.vmap(schedule)(jnp.arange(num_steps, dtype=jnp.int32)), np.float64)
    if not (np.isfinite(rates).all() and (rates >= 0).all() and rates.max() > 0):
        raise ValueError("`learning_rate` must be a schedule of finite values >= 0, not all zero.")
    if peak is not None:
        check_peak(rates.max(), peak)
    return rates


def _log_left(strength: float, rates: np.ndarray) -> np.ndarray:
    """log prod_{k <= t} (1 - eta_k lam), for every t."""
    if strength * rates.max() >= 1:
        raise ValueError(
            f"a decoupled strength of {strength:g} would remove {strength * rates.max():g} times "
            "the weight in one step: no timescale equals it. It must be below 1."
        )
    return np.cumsum(np.log1p(-strength * rates))


def _solve_strength(fraction: float, rates: np.ndarray) -> float:
    """The lam with `prod_t (1 - eta_t lam) = (1 - fraction)^T`, by bisection."""
    if fraction >= 1:
        raise ValueError(f"a timescale must be above 1 step, got {1 / fraction:g}.")
    wanted = len(rates) * math.log1p(-fraction)
    low, high = 0.0, (1 - 1e-12) / rates.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _log_left(middle, rates)[-1] > wanted else (low, middle)
    return (low + high) / 2
