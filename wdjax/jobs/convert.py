"""The job `wdjax convert`: a strength in another codebase's convention."""

import dataclasses

from wdjax.checks import check_one_of, check_positive_int
from wdjax.decay import Conversion, explain_conversion
from wdjax.jobs.options import check_held, option
from wdjax.recipe.kinds import SCHEDULE_KINDS, default_of


@dataclasses.dataclass(frozen=True)
class ConvertOptions:
    """Say a strength in another codebase's convention.

    Raises:
      ValueError: for a number that no array can hold.
    """

    learning_rate: float | None = option(None, "at its peak; needed for timescales")
    schedule: str = option(default_of(SCHEDULE_KINDS), "", tuple(SCHEDULE_KINDS))
    num_steps: int | None = option(None, "of the run; needed under a schedule", high=10**8)
    batch_size: int | None = option(None, "examples a step; needed for timescale_epochs")
    num_examples: int | None = option(None, "examples an epoch; for sklearn, timescale_epochs")

    def __post_init__(self) -> None:
        check_held(self)


def run_convert(value: float, source: str, target: str, options: ConvertOptions) -> Conversion:
    """Converts `value`, and says over which horizon the two conventions agree.

    Raises:
      ValueError: as `explain_conversion`; for a schedule without learning rate or steps.
    """
    check_one_of("schedule", options.schedule, SCHEDULE_KINDS)
    learning_rate = options.learning_rate
    make_multiplier = SCHEDULE_KINDS[options.schedule].multiplier
    if make_multiplier is not None:
        if learning_rate is None or options.num_steps is None:
            raise ValueError(
                f"`schedule` {options.schedule} needs --learning-rate and --num-steps."
            )
        check_positive_int("num_steps", options.num_steps)
        multiplier = make_multiplier(options.num_steps)
        learning_rate = lambda step, peak=learning_rate: peak * multiplier(step)
    return explain_conversion(
        value,
        source,
        target,
        learning_rate=learning_rate,
        peak_learning_rate=options.learning_rate,
        num_steps=options.num_steps,
        batch_size=options.batch_size,
        num_examples=options.num_examples,
    )
