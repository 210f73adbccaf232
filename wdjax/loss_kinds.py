"""Losses by name: what each does with its targets, and what it is measured by besides."""

import dataclasses
from typing import Any

from wdjax.checks import check_one_of
from wdjax.losses import cross_entropy, squared_error
from wdjax.measures import is_correct

MEASURE_KINDS: dict[str, Any] = {"accuracy": is_correct}
"""Scores by name: each a `Measure`, or a function `(outputs, targets) -> values[batch]`."""

CLASSES, NUMBERS = "classes", "numbers"


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

    Raises:
      ValueError: if `function` is not callable or `targets` is another word.
    """

    function: Any
    targets: str = NUMBERS
    measures: tuple[str, ...] = ()

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


LOSS_KINDS: dict[str, LossKind] = {
    "cross_entropy": LossKind(cross_entropy, CLASSES, measures=("accuracy",)),
    "squared_error": LossKind(squared_error, NUMBERS),
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
