"""The standard error of a gain, without its interval."""

import numpy as np
from jaxtyping import ArrayLike, Float

from wdjax.selection.evidence.intervals import variances
from wdjax.selection.evidence.over_examples import checked
from wdjax.selection.evidence.slots import sums_of


def errors_by_example(
    differences: ArrayLike, weights: ArrayLike, groups: ArrayLike | None = None
) -> Float[np.ndarray, " row"]:
    """The standard error of each row's mean: sqrt(V) of `gains_by_example`, steps 1 to 4.

    It holds which examples were held out and which runs (fold x seed) were made. NaN for a row
    with a difference that is not finite, and where no fold holds two groups.

    Args:
      differences: `[row, fold, seed, example]`.
      weights: `[fold, example]`, >= 0; 0 where a slot holds no example.
      groups: `[fold, example]` integers, as for `gains_by_example`.

    Raises:
      ValueError: as `gains_by_example`.
    """
    values, slots = checked(differences, weights, groups, 0.95, "differences")
    sums = sums_of(values, slots)
    examples, runs, _, one_run = variances(sums, slots, values.shape[1])
    return np.sqrt(np.where(one_run, np.maximum(examples, runs), examples + runs))
