"""The first line of a selection, what it advises, and the strengths it tries by default."""

import re
import shlex

import jax
import numpy as np
import pytest

from wdjax import jobs
from wdjax.cli import _parser
from wdjax.jobs import candidates, select, setup, verdict
from wdjax.jobs.options import SelectOptions
from wdjax.recipe import DECAY_KINDS
from wdjax.recipe.kinds import OPTIMIZER_KINDS
from wdjax.selection.choice import choose
from wdjax.selection.folds import kfold
from wdjax.selection.grids import grid_product
from wdjax.selection.scores import HeldOut, Scores
from wdjax.selection.search import Problem


def headline_of(
    losses, strengths, command="wdjax select", rates=(0.003,), decay="decoupled", rule="min"
):
    """The lines for fold means `losses[row][fold]`."""
    scores = Scores(
        grid_product(strength=strengths, learning_rate=rates),
        {"loss": np.array(losses, np.float64)[:, :, None]},
    )
    return verdict.headline(scores, choose(scores, rule), decay, command)


def test_the_first_line_says_what_the_evidence_allows():
    """Of four folds whose differences are nearly alike, or are not."""
    helps = headline_of(
        [[3, 3.1, 3, 3.1], [2, 2, 2, 2], [1, 1.1, 1, 1], [2, 2, 2, 2]], [0, 1, 2, 3]
    )
    assert helps[0].startswith(
        "Decay helps: at strength 2 (decoupled) the validation loss is 1.025 +-"
    )
    assert "lower than at zero by 2.02 (95 % interval 1.8 to 2.2, for all 3 strengths" in helps[0]
    assert helps[1:] == [
        "One seed: what another run would give is judged by the folds alone. Three seeds "
        "(--seeds 3) tell smaller gains.",
        "The interval is of fold means alone: single examples were not scored.",
    ]
    tie = headline_of([[1.0, 3.0], [2, 2], [1.5, 2.2], [2, 2]], [0, 1, 2, 3])
    assert tie[0].startswith("Chosen strength 2 (decoupled), which cannot be told from zero: ")
    simple = [[1, 3, 1, 3], [0.8, 2.8, 0.8, 2.8], [1.1, 3.1, 1.1, 3.101], [9, 9, 9, 9]]
    above = headline_of(simple, [0, 1, 2, 3], rule="one_standard_error")
    assert above[0].startswith(
        "Decay hurts: at strength 2 (decoupled) the validation loss is 2.10 +-"
    )
    assert "higher than at zero by 0.1 (95 % interval 0.09" in above[0]
    zero = headline_of([[1.0, 1.0], [2, 2]], [0, 1])
    assert zero[0].startswith(
        "Zero has the lowest validation loss 1 +- 0, but cannot be told from the one strength tried"
    )
    harm = headline_of([[1, 1, 1, 1], [2, 2, 2, 2.1]], [0, 1])
    assert harm[0].startswith("Decay hurts: zero has the lowest validation loss 1 +- 0, and every")
    lost = headline_of([[np.nan, 1], [2, 2], [1, 1.1], [2, 2]], [0, 1, 2, 3])
    assert lost[0].startswith("Chosen strength 2 (decoupled): validation loss")
    assert "; zero diverged" in lost[0]
    assert lost[-1] == "1 of 4 candidates diverged and were left out."


def test_where_loss_and_accuracy_prefer_other_strengths_both_are_said():
    """By more than the errors of either; else nothing is said."""
    loss = [[3, 3.1, 3, 3], [1, 1.1, 1, 1], [2, 2.1, 2, 2.1]]
    accuracy = [[0.5, 0.51, 0.5, 0.5], [0.7, 0.71, 0.7, 0.7], [0.9, 0.9, 0.89, 0.91]]
    grid = grid_product(strength=[0, 1, 2], learning_rate=[0.003])
    values = lambda rows: np.array(rows, np.float64)[:, :, None]
    scores = Scores(
        grid,
        {"loss": values(loss), "accuracy": values(accuracy)},
        None,
        {"accuracy": True, "loss": False},
    )
    lines = verdict.headline(scores, choose(scores), "decoupled", "wdjax select")
    assert lines[1].startswith("The accuracy prefers strength 2 (validation accuracy 0.90")
    assert "--choose-by accuracy" in lines[1]
    other = verdict.headline(scores, choose(scores, value="accuracy"), "decoupled", "")
    assert "higher than at zero by 0.398 (95" in other[0]
    assert other[1].startswith("The loss prefers strength 1")
    alike = scores._replace(values={**scores.values, "accuracy": -scores.values["loss"]})
    assert "prefers" not in "".join(verdict.headline(alike, choose(alike), "decoupled", ""))


def test_the_test_part_speaks_beside_the_folds_with_examples_and_seeds_in_its_error():
    rng = np.random.default_rng(0)
    each = {"test_loss": rng.gamma(1.0, size=(1, 90)) + np.zeros((3, 90))}
    scores = {"train_loss": np.zeros(3), "test_loss": each["test_loss"].mean(1)}
    errors = verdict.errors_on_test(each, scores, np.ones(90))
    alone = each["test_loss"][0].std(ddof=1) / np.sqrt(90)
    np.testing.assert_allclose(errors["test_loss"], alone, rtol=1e-6)
    at_zero = {"test_loss": each["test_loss"] + 0.1 + 0.01 * rng.normal(size=(3, 90))}
    gains = verdict.gains_on_test(each, at_zero, np.ones(90), {"loss": False})
    assert gains["test_loss"]["verdict"] == "helps"
    refit = {
        "chosen": {**scores, "errors": errors, "gains": gains},
        "zero": {"test_loss": at_zero["test_loss"].mean(1)},
    }
    chosen = choose(Scores(grid_product(strength=[0, 1]), {"loss": np.array([[[2.0]], [[1.0]]])}))
    sentence = verdict.sentence_on_test(refit, chosen)
    assert sentence.startswith("Not chosen on: test loss 1.09 +- 0.11 instead of 1.188 at")
    assert "at zero, lower by 0.0992 (95 % interval 0.09" in sentence


def test_at_an_end_of_the_grid_a_command_is_given_that_runs(tmp_path, monkeypatch):
    """With the strengths moved, the taken folder dropped, everything else kept."""
    monkeypatch.chdir(tmp_path)
    asked = "wdjax select --data wine --strengths 0 10 100 --out 'my run' --overwrite --seeds 2"
    asked += " --learning-rates 0.003"
    lines = headline_of([[3.0, 3.1], [2, 2], [1, 1]], [0, 10, 100], asked)
    assert lines[1].startswith("The best mean lies at the largest strength tried; the best may lie")
    words = shlex.split(lines[1].partition("Try: ")[2])
    parsed = vars(_parser(jobs).parse_args(words[1:]))
    del parsed["job"], parsed["fresh"]
    options = SelectOptions(**parsed)
    assert (options.data, options.seeds, options.out) == ("wine", 2, None)
    assert options.strengths[0] == 0 and options.strengths[1] == 10
    # 1e4 would remove 30 times the weight at a learning rate of 3e-3: it stops at the whole.
    np.testing.assert_allclose(options.strengths[-1], 1 / 0.003, rtol=2e-3)
    grid = candidates.strength_grid(options, setup.prepare(options))
    assert grid.num_rows == 11


def test_where_nothing_lies_beyond_no_command_is_given():
    lines = headline_of([[3.0, 3.1], [2, 2], [1, 1]], [0, 0.1, 1], decay="independent")
    assert "Nothing lies beyond at this learning rate" in lines[1]
    rows = [[3.0, 3.1, 3, 3], [1, 1, 1, 1], [2, 2, 2, 2]]
    lines = headline_of(rows, [0, 0.1, 1], decay="independent")
    assert "--strengths 0 0.001" in lines[1]


def test_default_strengths_stop_where_a_step_removes_the_whole_weight(tmp_path, monkeypatch):
    """At one learning rate; at several, the pairs that reach it are left out."""
    monkeypatch.chdir(tmp_path)
    prepared = setup.prepare(SelectOptions(data="wine"))
    for rate, largest in ((3e-3, 100.0), (0.1, 10.0)):
        grid = candidates.strength_grid(
            SelectOptions(learning_rates=(rate,), data="wine"), prepared
        )
        assert grid.shape["strength"] == 14 and not grid.num_left_out
        np.testing.assert_allclose(grid["strength"].max(), largest)
    grid = candidates.strength_grid(
        SelectOptions(learning_rates=(3e-3, 0.1), data="wine"), prepared
    )
    assert (grid.shape["strength"], grid.num_left_out) == (10, 2)
    assert (grid["strength"] * grid["learning_rate"]).max() < 1


def test_by_default_learning_rate_and_strength_are_searched_together(tmp_path, monkeypatch):
    """Half decades of both, zero beside them; what is left out is said."""
    monkeypatch.chdir(tmp_path)
    options = SelectOptions(data="wine")
    prepared = setup.prepare(options)
    assert (prepared.recipe.schedule, prepared.recipe.num_epochs) == ("warmup_cosine", 30)
    grid = candidates.strength_grid(options, prepared)
    rates, strengths = np.unique(grid["learning_rate"]), np.unique(grid["strength"])
    np.testing.assert_array_equal(rates, [3e-4, 9.5e-4, 3e-3, 9.5e-3, 0.03, 0.095, 0.3])
    np.testing.assert_array_equal(strengths[:4], [0, 3.2e-3, 0.01, 0.032])
    assert (len(strengths), strengths[-1]) == (10, 32)
    assert (grid.num_rows, grid.num_left_out) == (67, 3)
    problem = Problem(None, grid, None, kfold(jax.random.key(0), 20, 5), None, num_seeds=3)
    told = select.plan_text(options, prepared, problem)
    assert "1005 trainings: (10 strengths x 7 learning rates less 3) x 5 folds x 3 seeds" in told
    assert "30 epochs at batch 64, warmup_cosine schedule, mlp with adam" in told
    assert "whole weight or more: strength 10 at learning rate 0.3; strength 32 at" in told
    assert told.endswith("strength 32 at learning rate 0.095, 0.3.")


@pytest.mark.parametrize("decay", DECAY_KINDS)
@pytest.mark.parametrize("optimizer", OPTIMIZER_KINDS)
def test_every_default_grid_holds_zero_and_nothing_that_removes_a_whole_weight(decay, optimizer):
    options = SelectOptions(data="wine", decay=decay, optimizer=optimizer)
    prepared = setup.prepare(options)
    grid = candidates.strength_grid(options, prepared)
    assert grid.shape["learning_rate"] == 7
    for rate in np.unique(grid["learning_rate"]).tolist():
        here = grid["strength"][grid["learning_rate"] == rate]
        assert here[0] == 0 and 4 <= len(here) <= 10
        assert here.max() < prepared.decay.whole_weight_strength(rate)


# Learning rate and strength together


def over_both(losses, strengths=(0, 1, 2), rates=(0.1, 0.3), noise=0.01):
    """Scores with single examples, `losses[strength][rate]` apart from noise."""
    rng = np.random.default_rng(0)
    means = np.array(losses, np.float64).reshape(-1, 1, 1, 1)
    each = means + rng.gamma(1.0, size=(1, 5, 1, 100)) - 1
    each = each + noise * rng.normal(size=(len(means), 5, 3, 100))
    index = np.arange(500).reshape(5, 100)
    held_out = HeldOut({"loss": each}, index, np.ones((5, 100)), None, np.full(5, 400))
    grid = grid_product(strength=strengths, learning_rate=rates)
    return Scores(grid, {"loss": each.mean(-1)}, held_out)


def gains_in(line):
    """The sizes that a headline tells: `by 0.1 (95 % ...`."""
    return [float(size) for size in re.findall(r" by ([0-9.]+) \(95", line)]


def lines_of(scores, rule="min"):
    return verdict.headline(scores, choose(scores, rule), "decoupled", "wdjax select")


def test_both_numbers_are_in_the_headline_and_decay_is_held_against_the_best_without_it():
    """Decay gains 0.5 at the learning rate chosen, and 0.1 over what one would do without it."""
    lines = lines_of(over_both([[1.1, 1.5], [1.2, 1.0], [1.5, 1.1]]))
    assert lines[0].startswith(
        "Decay helps: at learning rate 0.3 and strength 1 (decoupled) the validation loss is "
    )
    assert "lower than at zero at its best (learning rate 0.1) by " in lines[0]
    np.testing.assert_allclose(gains_in(lines[0]), [0.1, 0.5], atol=0.01)
    assert "for all 4 candidates at once), and lower than at zero at the same" in lines[0]
    assert "at the same learning rate by " in lines[0] and "one learning rate" not in lines[0]


def test_a_learning_rate_that_only_decay_makes_good_is_no_gain():
    """0.5 over zero beside it, and nothing over the best zero: it cannot be told from zero."""
    lines = lines_of(over_both([[1.0, 1.5], [1.2, 0.999], [1.5, 1.1]]))
    assert lines[0].startswith("Chosen learning rate 0.3 and strength 1 (decoupled), which cannot")
    np.testing.assert_allclose(gains_in(lines[0])[1], 0.5, atol=0.01)


def test_where_zero_is_best_at_the_same_learning_rate_one_gain_is_said():
    lines = lines_of(over_both([[1.5, 1.1], [1.4, 1.0], [1.5, 1.1]]))
    assert "lower than at zero at the same learning rate, zero's best too, by " in lines[0]
    np.testing.assert_allclose(gains_in(lines[0]), [0.1], atol=0.01)
    zero = lines_of(over_both([[1.0, 1.5], [1.2, 1.6], [1.5, 1.7]]))
    assert zero[0].startswith("Decay hurts: zero has the lowest validation loss ")
    assert ", at learning rate 0.1, and every candidate with decay tried is worse" in zero[0]


def test_whether_the_best_strength_moves_with_the_learning_rate_is_told_with_the_evidence():
    moves = lines_of(over_both([[1.5, 1.5], [1.1, 1.4], [1.4, 1.0]]))
    assert moves[1] == (
        "The best strength at each learning rate: 1 at 0.1, 2 at 0.3. It moves with the learning "
        "rate: none is in the 95 % set of every learning rate."
    )
    same = lines_of(over_both([[1.5, 1.5], [1.1, 1.0], [1.4, 1.3]]))
    assert same[1].endswith("cannot be told: 1 is in the 95 % set of every learning rate.")
    flat = lines_of(over_both([[1.1, 1.0], [1.1, 1.0], [1.1, 1.0]], noise=1.0))
    assert "cannot be told: 0 and 1 and 2 are in" in flat[1].replace(", ", " and ")


def test_the_refits_are_of_the_choice_of_zero_at_its_best_and_of_the_largest_there():
    scores = over_both([[1.1, 1.5], [1.2, 1.0], [1.5, 1.1]])
    grid = scores.grid.without(
        (scores.grid["strength"] == 2) & (scores.grid["learning_rate"] > 0.2)
    )
    rows = [0, 1, 2, 3, 4]
    fewer = scores._replace(
        grid=grid,
        values={"loss": scores.values["loss"][rows]},
        held_out=scores.held_out._replace(values={"loss": scores.held_out.values["loss"][rows]}),
    )
    assert select._refit_rows(grid, choose(fewer)) == {
        "chosen": {"strength": 1.0, "learning_rate": 0.3},
        "zero": {"strength": 0.0, "learning_rate": 0.1},
        "largest": {"strength": 1.0, "learning_rate": 0.3},
    }


def test_results_keep_the_mean_slope_of_each_row_and_its_error_but_none_of_a_score_in_steps():
    grid = grid_product(strength=[0.0, 1.0], learning_rate=[0.003])
    losses, slopes = np.ones((2, 3, 2)), np.full((2, 3, 2), np.nan)
    slopes[1] = [[1.0, 3.0], [2.0, 2.0], [4.0, 6.0]]
    values = {"loss": losses, "accuracy": losses}
    each = {"loss": slopes, "accuracy": 0 * slopes}
    found = verdict.slope_rows(Scores(grid, values, slopes={"strength": each}))
    assert list(found["strength"]) == ["loss"]
    zero, one = found["strength"]["loss"]
    assert np.isnan(zero["mean"]) and np.isnan(zero["standard_error"])
    np.testing.assert_allclose(one["mean"], 3.0)
    np.testing.assert_allclose(one["standard_error"], np.std([2, 2, 5], ddof=1) / 3**0.5)


def results_of(scores):
    """As far as the tables of the terminal read them."""
    chosen = choose(scores)
    return {
        "table": verdict.score_rows(scores),
        "grid_shape": scores.grid.shape,
        "rule": "min",
        "choices": {"min": chosen.to_dict()},
    }


def test_many_pairs_print_as_a_map_that_marks_the_choice_and_its_rivals():
    rates, strengths = [0.1, 0.2, 0.3], range(6)
    losses = np.full((6, 3), 2.0)
    losses[4, 1], losses[3, 1], losses[3, 2] = 1.0, 1.0, 1.5
    losses[4, 1] -= 1e-4
    scores = over_both(losses, strengths, rates, noise=0.01)
    scores = scores._replace(values={n: scores.values["loss"] for n in ("loss", "train_loss")})
    lines = str(verdict.map_table(results_of(scores))).splitlines()
    assert lines[0] == "Validation loss at each strength and, across, at each learning rate:"
    rows = {line[0]: line for line in map(str.strip, lines[4:10])}
    assert sorted(rows["3"].count(mark) + rows["4"].count(mark) for mark in "<*") == [1, 1]
    assert not any(mark in rows[other] for mark in "<*" for other in "0125")
    assert "< is the choice" in lines[-2]


def test_few_pairs_or_other_numbers_print_a_row_each():
    few = over_both([[1.0, 1.5], [1.2, 1.0], [1.5, 1.1]])
    few = few._replace(values={n: few.values["loss"] for n in ("loss", "train_loss")})
    results = results_of(few)
    assert verdict.map_table(results) is None
    assert len(verdict.select_table(results).rows) == 6
    more = {**results, "grid_shape": {**results["grid_shape"], "example_slope": 3}}
    assert verdict.map_table({**more, "table": results["table"] * 5}) is None


def test_the_table_of_refits_says_where_zero_is_when_it_is_elsewhere():
    run = {"test_loss": [1.0], "train_loss": [0.5]}
    at = lambda strength, rate: {**run, "hparams": {"strength": strength, "learning_rate": rate}}
    results = {
        "refit": {"chosen": at(0.1, 0.3), "zero": at(0.0, 0.1), "largest": at(9.0, 0.3)},
        "config": {"label_noise": 0, "loss": "cross_entropy"},
        "data": {"num_test": 7, "classes": ["a", "b"]},
    }
    note = verdict.refit_table(results).note
    assert note.startswith("zero is at its best learning rate 0.1; 7 test examples")
    results["refit"]["zero"] = at(0.0, 0.3)
    assert verdict.refit_table(results).note.startswith("7 test examples")
