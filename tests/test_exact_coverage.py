"""What leave-one-out claims of a gain, over searches in which it is known."""

import jax
import numpy as np
import pytest

from wdjax.exact import ridge_left_out
from wdjax.selection.evidence import gains_over_folds

SEARCHES, EXAMPLES, FEATURES = 1000, 60, 20
STRENGTHS = np.array([0.0, 0.02, 0.2, 2.0])


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["gaussian", "skewed"])
def test_the_intervals_of_what_was_left_out_hold_for_all_strengths_at_once(x64, noise):
    """Truth: the mean gain over all searches, each on data of its own. 95 % must cover it."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(SEARCHES, EXAMPLES, FEATURES))
    errors = rng.normal if noise == "gaussian" else lambda size: rng.exponential(size=size) - 1
    y = x @ np.full((FEATURES, 1), 0.2) + errors(size=(SEARCHES, EXAMPLES, 1))
    one = lambda x, y: ridge_left_out(x, y, STRENGTHS, np.ones(EXAMPLES)).residuals
    losses = 0.5 * np.square(jax.jit(jax.vmap(one))(x, y)[..., 0])  # search, strength, example
    gains = losses[:, :1] - losses[:, 1:]
    truth = gains.mean(axis=(0, 2))
    covered = wrong = 0
    for search in gains:
        found = gains_over_folds(search[:, :, None])
        covered += ((found.low <= truth) & (truth <= found.high)).all()
        wrong += (found.low > truth).any()  # A gain claimed that is larger than it is.
    assert covered / SEARCHES >= 0.95 and wrong / SEARCHES <= 0.05
