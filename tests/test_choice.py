"""Scores, and the rules that choose by them."""

import numpy as np
import pytest
from scipy import stats

from wdjax.selection.choice import choose, end_of_grid, row_of_zero
from wdjax.selection.grids import grid_product
from wdjax.selection.scores import HeldOut, Scores, standard_error_over_folds

# Scores


def scores_of(values, **axes):
    return Scores(grid_product(**axes), {"loss": np.asarray(values, np.float64)})


VALUES = np.array([[[1.0, 3.0], [4.0, 4.0]], [[2.0, 2.0], [6.0, 2.0]], [[np.nan, 1.0], [1, 1]]])


def test_the_standard_error_is_that_of_the_fold_means():
    """Row 0: fold means 2 and 4, deviation sqrt(2), over sqrt(2) folds: 1."""
    scores = scores_of(VALUES, strength=[0, 1, 2])
    np.testing.assert_array_equal(scores.mean()["loss"], [3.0, 3.0, np.nan])
    np.testing.assert_allclose(scores.standard_error()["loss"], [1.0, 1.0, np.nan])
    assert np.isnan(standard_error_over_folds(VALUES[:2, :1])).all()


def test_scores_print_a_row_a_candidate_and_become_plain_lists():
    scores = scores_of(VALUES, strength=[0, 1, 2])
    text = str(scores)
    assert "3.0 +- 1.0" in text and "diverged" in text
    assert "mean +- standard error over 2 folds, 2 seeds each" in text
    assert scores._repr_html_().count("<tr") == 1 + 3
    plain = scores.to_dict()
    assert plain["grid"] == {"strength": [0.0, 1.0, 2.0]}
    assert plain["values"]["loss"][0] == [[1.0, 3.0], [4.0, 4.0]]


# The rules


def by_fold(*rows):
    """`[row, fold, 1]`."""
    return np.array(rows, np.float64)[:, :, None]


# Means 5, 3, 3.5, 6; the best row's fold means deviate by 1, so its standard error is
# 1 / sqrt(4) * sqrt(4 / 3) = 0.577 (2, 2, 4, 4: ddof 1).
FOUR = by_fold([5, 5, 5, 5], [2, 2, 4, 4], [2.5, 2.5, 4.5, 4.5], [6, 6, 6, 6])


def test_min_takes_the_lowest_mean():
    choice = choose(scores_of(FOUR, strength=[0, 1, 2, 3]))
    assert (choice.index, choice.hparams, choice.mean) == (1, {"strength": 1.0}, 3.0)
    np.testing.assert_allclose(choice.standard_error, np.sqrt(4 / 3) / 2)
    assert choice.reason.startswith("Lowest mean score, 3.")


def test_one_standard_error_takes_the_largest_strength_close_to_the_best():
    scores = scores_of(FOUR, strength=[0, 1, 2, 3])
    choice = choose(scores, "one_standard_error")
    assert (choice.index, choice.mean, choice.rule) == (2, 3.5, "one_standard_error")
    assert "Largest strength within one standard error (0.5774) of the lowest" in choice.reason
    outside = FOUR + by_fold([0] * 4, [0] * 4, [0.08] * 4, [0] * 4)
    assert choose(scores_of(outside, strength=[0, 1, 2, 3]), "one_standard_error").index == 1


def test_one_standard_error_looks_at_strengths_not_at_rows():
    order = [2, 3, 0, 1]
    scores = scores_of(FOUR[order], strength=np.array([0, 1, 2, 3])[order])
    assert choose(scores, "one_standard_error").hparams == {"strength": 2.0}


def test_of_several_axes_the_simpler_one_counts_and_ties_go_to_the_lower_mean():
    """Rows (strength, rate): (0, 1) (0, 2) (1, 1) (1, 2). In the first grid 3.2 and 3.4 both have
    strength 1; in the second, strength 1 and rate 2 are not within reach together."""
    one = "one_standard_error"
    ties = by_fold([2, 2, 4, 4], [5] * 4, [3.4] * 4, [3.2] * 4)
    scores = scores_of(ties, strength=[0, 1], rate=[1, 2])
    assert choose(scores, one).hparams == {"strength": 1.0, "rate": 2.0}
    assert choose(scores, one, simpler="rate").hparams == {"strength": 1.0, "rate": 2.0}
    assert choose(scores).hparams == {"strength": 0.0, "rate": 1.0}
    apart = by_fold([2, 2, 4, 4], [3.3] * 4, [3.2] * 4, [5] * 4)
    scores = scores_of(apart, strength=[0, 1], rate=[1, 2])
    assert choose(scores, one).hparams == {"strength": 1.0, "rate": 1.0}
    assert choose(scores, one, simpler="rate").hparams == {"strength": 0.0, "rate": 2.0}


def test_of_equal_means_the_first_row_wins():
    equal = by_fold([3, 3], [1, 3], [1, 3])
    assert choose(scores_of(equal, strength=[0.1, 1, 2])).index == 1


def test_seeds_are_averaged_before_folds():
    values = np.array([[[0.0, 4.0], [2.0, 2.0]], [[3.0, 3.0], [3.0, 3.0]]])
    choice = choose(scores_of(values, strength=[1, 2]))
    assert (choice.mean, choice.standard_error) == (2.0, 0.0)


def test_a_row_with_one_diverged_run_loses_and_is_told():
    values = FOUR.copy()
    values[1, 2, 0] = np.nan
    for rule in ("min", "one_standard_error"):
        choice = choose(scores_of(values, strength=[0, 1, 2, 3]), rule)
        assert choice.index == 2
        assert "1 of 4 rows diverged and lose" in choice.reason
    infinite = np.where(np.isnan(values), -np.inf, values)
    assert choose(scores_of(infinite, strength=[0, 1, 2, 3])).index == 2


def test_if_every_row_diverged_there_is_no_choice():
    with pytest.raises(ValueError, match="every run of the grid diverged.*lower the learning rate"):
        choose(scores_of(FOUR * np.nan, strength=[0, 1, 2, 3]))


def test_a_fold_that_gives_no_row_a_score_is_named_and_is_not_called_diverged():
    """As an area under the curve where a held-out part is all of one class."""
    values = FOUR.copy()
    values[:, 1] = np.nan
    with pytest.raises(
        ValueError, match="on fold 1, and others have one: .*of one class.*stratify"
    ):
        choose(scores_of(values, strength=[0, 1, 2, 3]))


@pytest.mark.parametrize(
    "strengths, words",
    [
        ([1, 0.5, 2, 3], "at an end of the grid: smallest strength tried; there may be a better"),
        ([0, 3, 2, 1], "largest strength"),
        # Not known to be better than zero, so nothing better is known to lie between the two.
        ([0, 1, 2, 3], None),
        ([0, 2, 1, 3], None),
        ([2, 0, 1, 3], None),
    ],
)
def test_a_choice_at_an_end_of_the_grid_says_so_and_zero_is_no_end(strengths, words):
    """The second row is the best. The smallest above zero is an end as well, if it helps."""
    reason = choose(scores_of(FOUR, strength=strengths)).reason
    assert ("end of the grid" in reason) == (words is not None)
    assert words is None or words in reason


def test_the_smallest_strength_is_an_end_if_it_is_known_to_help():
    clear = by_fold([9, 9.1, 9, 9.1], [2, 2, 2, 2.1], [2.5, 2.5, 2.5, 2.5])
    reason = choose(scores_of(clear, strength=[0, 1, 2])).reason
    assert "end of the grid: smallest strength" in reason and "Decay helps" in reason


def test_the_end_of_the_grid_is_that_of_the_best_row_not_of_the_rules_choice():
    """One standard error takes the largest strength of many that tie: nothing lies beyond it."""
    tie = by_fold([9] * 4, [2, 2, 4, 4.0], [2.5, 2.5, 4.4, 4.5])
    choice = choose(scores_of(tie, strength=[0, 1, 2]), "one_standard_error")
    assert choice.hparams == {"strength": 2.0} and "largest strength tried" not in choice.reason


def test_ends_are_told_for_every_axis_of_two_values_or_more():
    grid = grid_product(strength=[0, 1, 2, 4], rate=[0.1, 0.2], fixed=[7])
    assert end_of_grid(grid, 0, "strength") is None
    assert end_of_grid(grid, 2, "strength") == "smallest"
    assert end_of_grid(grid, 4, "strength") is None
    assert end_of_grid(grid, 7, "strength") == "largest"
    assert end_of_grid(grid, 7, "rate") == "largest"
    assert end_of_grid(grid, 7, "fixed") is None
    assert end_of_grid(grid_product(strength=[0, 1]), 1, "strength") is None


def test_of_fold_means_alone_the_gain_has_the_interval_of_the_corrected_t():
    """Differences over folds 1, -0.5, 1, -0.5: mean 0.25, deviation 0.866, two rows beside zero:
    half width t_3(1 - 0.025 / 2) * 0.866 * sqrt(1/4 + 1/3)."""
    values = by_fold([3, 1.5, 5, 3.5], [2, 2, 4, 4], [9] * 4)
    choice = choose(scores_of(values, strength=[0, 1, 2]))
    half = stats.t.ppf(1 - 0.0125, 3) * np.sqrt(0.75) * np.sqrt(1 / 4 + 1 / 3)
    np.testing.assert_allclose(choice.gain[:3], (0.25, 0.25 - half, 0.25 + half))
    assert (choice.gain.verdict, choice.gain.method, choice.gain.num_rows) == (
        "unclear",
        "folds",
        2,
    )
    assert "cannot be told from zero: the paired gain over zero is 0.25, 95 % interval" in (
        choice.reason
    )
    assert choice.confident_set == (0, 1)
    clear = by_fold([3, 3, 5, 5.1], [2, 2, 4, 4], [9] * 4)
    choice = choose(scores_of(clear, strength=[0, 1, 2]))
    assert choice.gain.verdict == "helps" and "Decay helps: the paired" in choice.reason


def test_one_fold_has_no_error_and_says_so():
    choice = choose(scores_of(np.array([[[3.0]], [[2.0]]]), strength=[0, 1]))
    assert choice.gain.verdict == "unclear" and choice.confident_set == (0, 1)
    assert "no 95 % interval" in choice.reason and "One fold has no error" in choice.reason


def test_zero_chosen_is_said_and_a_tie_is_not_called_harm():
    tie = by_fold([2, 2, 4, 4], [2, 2.5, 4, 4], [6] * 4)
    reason = choose(scores_of(tie, strength=[0, 1, 2])).reason
    assert "It is zero, which cannot be told from any of the 2 rows with decay" in reason
    harm = by_fold([2, 2, 4, 4], [5, 5, 7, 7.1], [6, 6, 8, 8.1])
    reason = choose(scores_of(harm, strength=[0, 1, 2])).reason
    assert "It is zero: decay hurts at every strength tried" in reason


def test_decay_can_be_chosen_and_hurt():
    """One standard error takes strength 1, which is a little worse in every fold."""
    values = by_fold([2, 2, 4, 4], [2.1, 2.1, 4.1, 4.101], [9] * 4)
    choice = choose(scores_of(values, strength=[0, 1, 2]), "one_standard_error")
    assert choice.hparams == {"strength": 1.0} and choice.gain.verdict == "hurts"
    assert "Decay hurts: the paired gain over zero is -0.1" in choice.reason


# Single examples


def by_example(gains, noise=0.3, num_folds=5, num_seeds=3, num_examples=200, seed=0, **axes):
    """Scores with single examples: row r is lower by `gains[r]`, noise apart."""
    rng = np.random.default_rng(seed)
    shape = (len(gains), num_folds, num_seeds, num_examples)
    hard = rng.gamma(1.0, size=(1, num_folds, 1, num_examples))
    each = hard - np.reshape(gains, (-1, 1, 1, 1)) + noise * rng.normal(size=shape)
    index = np.arange(num_folds * num_examples).reshape(num_folds, num_examples)
    held_out = HeldOut(
        {"loss": each},
        index,
        np.ones(index.shape),
        None,
        np.full(num_folds, (num_folds - 1) * num_examples),
    )
    return Scores(grid_product(**axes), {"loss": each.mean(-1)}, held_out)


def test_single_examples_tell_a_gain_that_fold_means_do_not():
    """Folds differ in how hard they are and not in the gain: paired examples see it, and their
    interval holds the truth for both rows."""
    scores = by_example([0.0, 0.05, 0.06], strength=[0, 1, 2])
    choice = choose(scores)
    assert choice.gain.method == "examples" and choice.gain.verdict == "helps"
    assert choice.gain.low < 0.06 < choice.gain.high
    assert "95 % interval" in choice.reason and "fold means alone" not in choice.reason
    assert 0 not in choice.confident_set and choice.index in choice.confident_set


def test_a_gain_is_to_the_zero_that_shares_all_other_numbers():
    """Rows (0, a), (0, b), (1, a), (1, b): at b everything is better by 1, which is no gain."""
    scores = by_example([0.0, 1.0, 0.0, 1.0], strength=[0, 1], rate=[0.1, 0.2])
    gain = choose(scores).gain or choose(scores, "one_standard_error").gain
    assert gain.num_rows == 2 and gain.low < 0 < gain.high and gain.verdict == "unclear"


def test_repeated_folds_are_not_counted_as_independent():
    """The same five folds ten times over know no more than once: the interval does not shrink by
    the root of ten, and single examples, each now held out ten times, are not used."""
    scores = by_example([0.0, 0.02], num_examples=40, strength=[0, 1])
    once = choose(scores._replace(held_out=None)).gain
    held_out = scores.held_out
    again = lambda x: np.concatenate([x] * 10, axis=0)
    repeated = scores._replace(
        values={"loss": np.concatenate([scores.values["loss"]] * 10, axis=1)},
        held_out=held_out._replace(
            values={"loss": np.concatenate([held_out.values["loss"]] * 10, axis=1)},
            examples=again(held_out.examples),
            weights=again(held_out.weights),
            num_train=again(held_out.num_train),
        ),
    )
    gain = choose(repeated).gain
    assert gain.method == "folds"
    deviation = scores.values["loss"].mean(2)
    deviation = np.tile(deviation[0] - deviation[1], 10).std(ddof=1)
    half = stats.t.ppf(0.975, 49) * deviation * np.sqrt(1 / 50 + 1 / 4)
    np.testing.assert_allclose((gain.high - gain.low) / 2, half)
    assert gain.high - gain.low > (once.high - once.low) / 2


# Directions


def test_of_an_accuracy_more_is_better():
    values = {"accuracy": by_fold([0.5] * 4, [0.9, 0.9, 0.8, 0.8], [0.7] * 4)}
    scores = Scores(grid_product(strength=[0, 1, 2]), values, None, {"accuracy": True})
    choice = choose(scores, value="accuracy")
    assert choice.index == 1 and choice.mean == pytest.approx(0.85) and choice.gain.mean > 0
    assert choice.reason.startswith("Highest mean score, 0.85.")
    simple = {"accuracy": by_fold([0.5] * 4, [0.9, 0.9, 0.8, 0.8], [0.83] * 4)}
    simple = Scores(scores.grid, simple, None, {"accuracy": True})
    assert choose(simple, "one_standard_error", value="accuracy").index == 2
    told = choose(scores._replace(higher_is_better={}), value="accuracy", higher_is_better=True)
    assert told.index == 1


@pytest.mark.parametrize(
    "known, told, words",
    [
        ({}, None, "more of 'accuracy' is better is not known: pass higher_is_better=True or"),
        ({"accuracy": True}, False, "`higher_is_better`=False, but the score 'accuracy' is better"),
        ({}, "max", "`higher_is_better` must be True or False, got 'max'"),
    ],
)
def test_a_score_of_unknown_or_contradicted_direction_is_refused(known, told, words):
    scores = Scores(grid_product(strength=[0, 1]), {"accuracy": np.ones((2, 3, 1))}, None, known)
    with pytest.raises(ValueError, match=words):
        choose(scores, value="accuracy", higher_is_better=told)


def test_a_zero_that_diverged_is_no_tie():
    values = by_fold([np.nan] * 4, [2, 2, 4, 4], [9] * 4)
    assert "told from zero" not in choose(scores_of(values, strength=[0, 1, 2])).reason


def test_the_row_of_zero_shares_all_other_numbers():
    grid = grid_product(strength=[0, 1], rate=[0.1, 0.2])
    assert [row_of_zero(grid, i) for i in range(4)] == [0, 1, 0, 1]
    assert row_of_zero(grid_product(strength=[1, 2]), 0) is None
    assert row_of_zero(grid_product(slope=[0, 2]), 1) is None


def test_a_score_that_is_one_array_needs_no_name():
    scores = Scores(grid_product(strength=[0, 1]), by_fold([2, 2], [1, 1]))
    assert choose(scores).index == 1


def test_a_choice_prints_and_becomes_a_dict():
    choice = choose(scores_of(FOUR, strength=[0, 1, 2, 3]))
    assert "3.00 +- 0.58" in str(choice) and choice.reason in str(choice)
    assert "<table" in choice._repr_html_()
    assert choice.to_dict()["hparams"] == {"strength": 1.0}


@pytest.mark.parametrize(
    "options, words",
    [
        ({"rule": "minimum"}, "`rule` must be one of min, one_standard_error; .*'min'"),
        ({"value": "accuracy"}, "`value` must be one of loss; got 'accuracy'"),
        ({"rule": "one_standard_error", "simpler": "slope"}, "`simpler` must be one of strength"),
    ],
)
def test_an_unknown_rule_score_or_axis_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        choose(scores_of(FOUR, strength=[0, 1, 2, 3]), **options)
