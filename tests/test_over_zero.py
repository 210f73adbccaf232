"""What decay gains over the best run without it, where other numbers are searched too."""

import numpy as np
import pytest

from wdjax.selection.choice import beyond
from wdjax.selection.evidence import gains_by_example
from wdjax.selection.grids import grid_product
from wdjax.selection.judged import Judged
from wdjax.selection.moves import best_by
from wdjax.selection.over_zero import gains_over_best_zero, gains_over_zero
from wdjax.selection.rungs import Rung
from wdjax.selection.scores import HeldOut, Scores

FOLDS, SEEDS, EXAMPLES = 5, 3, 60


def judged_of(risks, rng, strengths, rates, *, noise=1.0, runs=0.1):
    """A search whose rows have these true risks, `risks[strength, rate]`: skewed losses that rows
    share in part, and runs (fold x seed) of their own."""
    rows = np.size(risks)
    each = rng.gamma(1.0, size=(1, FOLDS, 1, EXAMPLES)) - 1
    each = each + noise * (rng.gamma(1.0, size=(rows, FOLDS, 1, EXAMPLES)) - 1)
    each = each + runs * rng.standard_normal((rows, FOLDS, SEEDS, 1)) + np.zeros(EXAMPLES)
    each = each + np.reshape(risks, (-1, 1, 1, 1))
    index = np.arange(FOLDS * EXAMPLES).reshape(FOLDS, EXAMPLES)
    held_out = HeldOut({"loss": each}, index, np.ones(index.shape), None, np.full(FOLDS, 240))
    grid = grid_product(strength=strengths, learning_rate=rates)
    return Judged.of(Scores(grid, {"loss": each.mean(-1)}, held_out), "loss")


def test_over_one_zero_it_is_the_gain_over_zero():
    judged = judged_of([0.0, -0.3, 0.2], np.random.default_rng(0), [0, 1, 2], [0.1])
    over = gains_over_best_zero(judged)
    assert over.row == 0 and over.gains == gains_over_zero([judged])[0]


def test_over_several_it_is_the_least_gain_and_its_interval_covers_each_zero_that_may_be_best():
    """Zeros of risk 0, 0.01 and 5: the first two cannot be told apart, so the interval reaches
    over those of both, at level 0.96, and not over the third's."""
    risks = [[0.0, 0.01, 5.0], [-0.5, 1.0, 2.0]]
    judged = judged_of(risks, np.random.default_rng(1), [0, 1], [0.1, 0.2, 0.3], noise=0.3)
    over = gains_over_best_zero(judged)
    assert over.row in (0, 1) and over.gains.keys() == {3, 4, 5}
    ends = []
    for zero in (0, 1):
        differences = judged.each[zero] - judged.each[3:]
        ends.append(gains_by_example(differences, judged.held_out.weights, level=0.96))
    for place, row in enumerate((3, 4, 5)):
        gain = over.gains[row]
        assert gain.low == min(one.low[place] for one in ends)
        assert gain.high == max(one.high[place] for one in ends)
        assert gain.mean == min(one.mean[place] for one in ends)
        assert gain.num_rows == 3 and gain.level == 0.95
    assert over.gains[3].verdict == "helps" and over.gains[5].verdict == "hurts"


def test_without_a_zero_that_ran_there_is_nothing_to_gain_over():
    judged = judged_of([1.0, 2.0], np.random.default_rng(0), [1, 2], [0.1])
    assert gains_over_best_zero(judged) == (None, {})
    losses = np.full((4, FOLDS, SEEDS), 1.0)
    losses[0] = losses[3] = np.nan
    grid = grid_product(strength=[0, 1], learning_rate=[0.1, 0.2])
    over = gains_over_best_zero(Judged.of(Scores(grid, {"loss": losses}), "loss"))
    assert over.row == 1 and over.gains.keys() == {2}


def simulated(risks, searches, strengths, rates, **how):
    """Of each search: whether all intervals hold the true gain over the best zero, and whether the
    row of lowest mean is said to help."""
    rng, risks = np.random.default_rng(0), np.array(risks, np.float64)
    covered, helps = [], []
    for _ in range(searches):
        judged = judged_of(risks, rng, strengths, rates, **how)
        over = gains_over_best_zero(judged)
        truth = risks[0].min() - risks.ravel()
        covered.append(all(g.low <= truth[r] <= g.high for r, g in over.gains.items()))
        best = int(np.argmin(judged.means))
        helps.append(best in over.gains and over.gains[best].verdict == "helps")
    return np.mean(covered), np.mean(helps)


@pytest.mark.parametrize("searches", [12, pytest.param(100, marks=pytest.mark.slow)])
def test_false_claims_stay_below_five_percent_when_the_learning_rate_is_searched_too(searches):
    """Decay does nothing. Once three learning rates are as good as each other; once larger ones
    are bad without decay and decay mends that, which is no gain over the best without."""
    strengths, rates = [0, 1, 2], [0.1, 0.2, 0.3]
    slack = 2 * np.sqrt(0.05 * 0.95 / searches)
    for risks in (np.zeros((3, 3)), [[0, 0.5, 2], [0, 0, 0.5], [0, 0, 0]]):
        covered, helps = simulated(risks, searches, strengths, rates)
        assert helps <= 0.05 + slack and covered >= 0.95 - slack
        if np.any(risks):
            beside = []
            rng = np.random.default_rng(0)
            for _ in range(10):
                judged = judged_of(risks, rng, strengths, rates)
                (own,) = gains_over_zero([judged])
                beside.append(own[8].verdict == "helps")
            assert np.mean(beside) > 0.9  # Held against zero beside it, it would be claimed.


def test_a_gain_over_the_best_zero_is_found():
    """Five standard errors: 0.1 sqrt(2) / sqrt(15) of the runs and sqrt(2 / 300) of the examples
    make 0.09."""
    risks = [[0.1, 0.0], [0.0, -0.45], [0.1, 0.0]]
    _, helps = simulated(risks, 16, [0, 1, 2], [0.1, 0.2])
    assert helps >= 0.85


@pytest.mark.parametrize("searches", [10, pytest.param(60, marks=pytest.mark.slow)])
def test_a_best_strength_that_does_not_move_is_rarely_said_to(searches):
    rng, claimed = np.random.default_rng(0), []
    for _ in range(searches):
        judged = judged_of(np.zeros((3, 3)), rng, [0, 1, 2], [0.1, 0.2, 0.3])
        claimed.append(best_by(judged).moves)
    assert np.mean(claimed) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / searches)


def test_without_two_learning_rates_and_two_strengths_nothing_moves():
    rng = np.random.default_rng(0)
    assert best_by(judged_of([0.0, 0.1], rng, [0, 1], [0.1])) is None
    assert best_by(judged_of([[0.0, 0.1]], rng, [1], [0.1, 0.2])) is None
    assert best_by(judged_of([0.0, 0.1], rng, [0, 1], [0.1]), given="dropout") is None


def test_of_pairs_that_were_not_all_trained_to_the_end_nothing_is_said_to_move():
    """Alone of 60 that halving kept, or the few that slopes put: others may be better there."""
    rng = np.random.default_rng(0)
    judged = judged_of([[1.0, 3.0], [3.0, 1.0]], rng, [1, 2], [0.1, 0.2])
    assert best_by(judged).moves
    rung = Rung(3, 1, [0, 1, 2, 3], [1.0, 3.0, 3.0, 1.0], [0, 3], [])
    assert best_by(judged._replace(rungs=(rung,))) is None
    diagonal = np.array([1.0, 2.0, 3.0, 4.0])
    few = judged._replace(grid={"strength": diagonal, "learning_rate": diagonal})
    assert best_by(few) is None


ONES = np.ones((1, FOLDS, SEEDS)) + 0.01 * np.arange(FOLDS)[:, None]


def test_at_an_end_of_which_the_slope_is_known_it_says_whether_a_better_lies_beyond():
    rng = np.random.default_rng(0)
    judged = judged_of([3.0, 2.0, 1.0], rng, [0, 1, 2], [0.1])
    slope = lambda at_best: {"strength": np.array([np.nan, -1.0, at_best])[:, None, None] * ONES}
    at_end = {"strength": "largest"}
    assert beyond(judged, 2, {}) == at_end
    assert beyond(judged._replace(slopes=slope(-0.5)), 2, {}) == at_end
    assert beyond(judged._replace(slopes=slope(0.5)), 2, {}) == {}
    assert beyond(judged._replace(slopes=slope(np.nan)), 2, {}) == at_end
