"""The control of a search by halving: who it is, and when it says not to believe the search."""

import numpy as np
from test_halving import judged, scores_of

from wdjax.selection import grid_product
from wdjax.selection.halving import doubts, judged_rung, plan_rungs


def test_a_control_with_more_decay_is_trained_to_the_end_and_says_if_rungs_judged_too_early():
    """Rows 0 to 8 of strength 0, 1/8, ...: 1 leads; of 3 to 8, which leave, 5 is in the middle."""
    at_rung = [3.0, 1.0, 1.1, *[2.0 + i for i in range(6)]]
    rung = judged(scores_of(at_rung), keep=0.2)
    assert (rung.kept, rung.control) == ([0, 1, 2], 5) and 5 not in rung.left
    rows = np.array([0, 1, 2, 5])
    gone = np.setdiff1d(np.arange(9), rows)

    def seen(means, noise=0.0):
        scores = scores_of(means, noise=noise)
        for leaf in (scores.values["loss"], scores.held_out.values["loss"]):
            leaf[gone] = np.nan
        return scores

    plan = plan_rungs(9, 30)[1]
    later = judged_rung(plan, seen(at_rung), rows, "loss", 0.2, rung.control, False)
    assert (later.kept, later.control, later.left.keys()) == ([0, 1], 5, {2})
    told = lambda means, noise=0.1: [
        *doubts(seen(means, noise)._replace(rungs=(rung, later)), "loss")
    ]
    at_end = lambda control: [3.0, 1.0, 1.1, *[9.0] * 2, control, *[9.0] * 3]
    doubt = told(at_end(0.9))[-1]
    assert doubt.startswith("Do not believe this: strength 0.625 would have left at the rung of 3")
    assert "choose by slopes or by the whole grid" in doubt
    assert not told(at_end(1.1)) and not told(at_end(np.nan)) and not told(at_end(0.999), noise=1.0)
    # At another learning rate than the leader's, of less decay, or diverged, none is a control.
    grid = grid_product(strength=[0.0, 1.0, 2.0], learning_rate=[0.1, 0.2])
    assert judged(scores_of([6.0, 5.0, 4.0, 3.0, 2.0, 1.0], grid)).control is None
    assert judged(scores_of([6.0, 6.0, 1.0, 7.0, 8.0, 9.0], grid), keep=0.2).control == 4
    assert judged(scores_of([1.0, 2.0, np.nan]), keep=0.5).control is None
    assert judged(scores_of([4.0, 2.0, 3.0], grid_product(learning_rate=[1, 2, 3]))).control is None
