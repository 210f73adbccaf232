"""The first line of a selection, what it advises, and the strengths it tries by default."""

import shlex

import numpy as np

from wdjax import jobs
from wdjax.cli import _parser
from wdjax.jobs import setup, verdict
from wdjax.jobs.options import SelectOptions
from wdjax.selection.choice import choose
from wdjax.selection.cross_validation import Scores
from wdjax.selection.grids import grid_product


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
        "Zero has the lowest validation loss 1 +- 0, but cannot be told from any of the 1"
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
    grid = setup.strength_grid(options, setup.prepare(options))
    assert grid.num_rows == 11


def test_where_nothing_lies_beyond_no_command_is_given():
    lines = headline_of([[3.0, 3.1], [2, 2], [1, 1]], [0, 0.1, 1], decay="independent")
    assert "Nothing lies beyond at this learning rate" in lines[1]
    rows = [[3.0, 3.1, 3, 3], [1, 1, 1, 1], [2, 2, 2, 2]]
    lines = headline_of(rows, [0, 0.1, 1], decay="independent")
    assert "--strengths 0 0.001" in lines[1]


def test_default_strengths_stop_where_a_step_removes_the_whole_weight(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for rates, largest in (((3e-3,), 100.0), ((3e-3, 0.1), 10.0)):
        options = SelectOptions(learning_rates=rates, data="wine")
        grid = setup.strength_grid(options, setup.prepare(options))
        assert grid.shape["strength"] == 14
        np.testing.assert_allclose(grid["strength"].max(), largest)


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
