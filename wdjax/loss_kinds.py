"""Losses by name: what each does with its targets, and what it is measured by besides."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wdjax.checks import check_one_of
from wdjax.losses import (
    binary_cross_entropy,
    cross_entropy,
    huber_loss,
    poisson_loss,
    quantile_loss,
    squared_error,
)
from wdjax.measures import is_correct
from wdjax.standard_measures import auc, brier, calibration_error, mae, perplexity, r2

MEASURE_KINDS: dict[str, Any] = {
    "accuracy": is_correct,
    "auc": auc,
    "brier": brier,
    "calibration_error": calibration_error,
    "perplexity": perplexity,
    "mae": mae,
    "r2": r2,
}
"""Scores by name: each a `Measure`, or a function `(outputs, targets) -> values[batch]`."""

CLASSES, NUMBERS = "classes", "numbers"

STANDARD_MEASURES = tuple(MEASURE_KINDS)
OF_NUMBERS = ("mae", "r2")
"""Of these, which are of numbers; the others are of classes."""


@dataclasses.dataclass(frozen=True)
class LossKind:
    """A loss that can be named, and how its targets are treated.

    Args:
      function: `(outputs[batch, ...], targets[batch, ...]) -> losses[batch]`, one number per
        example (`[batch, time]` of texts). Under `"classes"` outputs are logits.
      targets: `"classes"`, integer labels: folds and the test part keep the shares of the classes,
        and a prediction is the softmax of the outputs; or `"numbers"`: targets are standardised on
        each training part, and a prediction is in their own unit.
      measures: names in `MEASURE_KINDS` of what is scored beside the loss.
      predict: `outputs -> prediction`, `[batch, label]` probabilities of classes; by default the
        softmax, or the outputs themselves.
      scales_targets: whether numbers are standardised; not where their unit means something, as
        that of counts.
      num_outputs: what the model gives for an example; by default a number a class or target. One
        is of two classes.
      least_target: the smallest target there can be, such as 0 of counts.

    Raises:
      ValueError: if `function` is not callable or `targets` is another word.
    """

    function: Any
    targets: str = NUMBERS
    measures: tuple[str, ...] = ()
    predict: Any = None
    scales_targets: bool = True
    num_outputs: int | None = None
    least_target: float | None = None

    def __post_init__(self):
        if not callable(self.function):
            raise ValueError(
                "`function` must be a function (outputs, targets) -> losses[batch], got "
                f"{self.function!r}."
            )
        check_one_of("targets", self.targets, (CLASSES, NUMBERS))

    @property
    def has_classes(self) -> bool:
        """Whether targets are labels; numbers otherwise."""
        return self.targets == CLASSES

    @property
    def standardizes(self) -> bool:
        """Whether targets are standardised on each training part."""
        return self.scales_targets and not self.has_classes

    def outputs_for(self, name: str, num_outputs: int) -> int:
        """How many outputs the model has for data of so many classes, or numbers an example.

        Raises:
          ValueError: if the loss, so named, is of two classes and the data have another number.
        """
        if self.num_outputs is None:
            return num_outputs
        if num_outputs != 2:
            raise ValueError(
                f"`loss` {name} is of two classes, and the data have {num_outputs}; use "
                f"{loss_for(CLASSES)}."
            )
        return self.num_outputs

    def check_targets(self, name: str, targets: Any) -> None:
        """Checks on the host what no compiled program can refuse.

        Raises:
          ValueError: for a target that the loss, so named, cannot have.
        """
        if self.least_target is not None and np.min(targets) < self.least_target:
            raise ValueError(
                f"`loss` {name} takes targets of {self.least_target:g} and more, and the data have "
                f"{np.min(targets):g}; use {loss_for(NUMBERS)}."
            )

    def prediction(self, outputs: Any) -> Any:
        """What is predicted from outputs: probabilities, or numbers in the targets' unit."""
        if self.predict is not None:
            return self.predict(outputs)
        return jax.nn.softmax(outputs) if self.has_classes else outputs


def _of_two_classes(logits: jax.Array) -> jax.Array:
    one = jax.nn.sigmoid(logits)
    return jnp.concatenate([1 - one, one], axis=-1)


LOSS_KINDS: dict[str, LossKind] = {
    "cross_entropy": LossKind(cross_entropy, CLASSES, measures=("accuracy",)),
    "squared_error": LossKind(squared_error, NUMBERS),
    "binary_cross_entropy": LossKind(
        binary_cross_entropy, CLASSES, ("accuracy",), predict=_of_two_classes, num_outputs=1
    ),
    "poisson": LossKind(
        poisson_loss, NUMBERS, predict=jnp.exp, scales_targets=False, least_target=0.0
    ),
    "huber": LossKind(huber_loss(), NUMBERS),
    "quantile": LossKind(quantile_loss(), NUMBERS),
}
"""Losses by name; the first is the default of data that do not say."""


def loss_for(targets: str) -> str:
    """The first loss in the table for such targets, `"classes"` or `"numbers"`."""
    return next(name for name, kind in LOSS_KINDS.items() if kind.targets == targets)


def has_classes(loss: str) -> bool:
    """Whether the targets of the loss so named are labels; numbers otherwise.

    Raises:
      ValueError: for an unknown name, with the nearest.
    """
    check_one_of("loss", loss, LOSS_KINDS)
    return LOSS_KINDS[loss].has_classes


def check_measure_fits(name: str, loss: str) -> None:
    """Checks that a measure of the table is of the targets that the loss so named has.

    Raises:
      ValueError: if it is of classes and they are numbers, or the other way, with those that fit.
    """
    fitting = [m for m in STANDARD_MEASURES if fits_measure(m, loss)]
    if not fits_measure(name, loss):
        raise ValueError(
            f"`measure` {name} is of {NUMBERS if name in OF_NUMBERS else CLASSES}, and the targets "
            f"of the loss {loss} are {LOSS_KINDS[loss].targets}; use one of {', '.join(fitting)}."
        )


def fits_measure(name: str, loss: str) -> bool:
    """Whether the measure is of the targets that the loss has; of others than ours, True."""
    if name not in STANDARD_MEASURES:
        return True
    return LOSS_KINDS[loss].has_classes != (name in OF_NUMBERS)
