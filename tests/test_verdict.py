"""The first line of a selection, what it advises, and the strengths it tries by default."""

import shlex

import numpy as np

from wdjax import jobs
from wdjax.cli import _parser
from wdjax.jobs import prepare, verdict
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
    inside = headline_of([[3.0, 3.1], [1, 1.1], [2, 2]], [0, 1, 2])
    assert "at the smallest end of the grid" in inside[0]
    inside = headline_of([[3.0, 3.1], [2, 2], [1, 1.1], [2, 2]], [0, 1, 2, 3])
    assert inside[0].startswith("Chosen strength 2 (decoupled): validation loss 1.050 +- 0.050")
    assert "lower than at zero by 2 +- 0 (paired" in inside[0] and len(inside) == 1
    tie = headline_of([[1.0, 3.0], [2, 2], [1.5, 2.2], [2, 2]], [0, 1, 2, 3])
    assert "but it cannot be told from zero" in tie[0]
    simple = [[1.0, 3.0], [0.5, 2.5], [1.25, 3.25], [9, 9]]
    above = headline_of(simple, [0, 1, 2, 3], rule="one_standard_error")
    assert above[0].startswith("Chosen strength 2 (decoupled): validation loss 2.2 +- 1.0, higher")
    assert "higher than at zero by 0.25 +- 0 (paired" in above[0]
    zero = headline_of([[1.0, 1.0], [2, 2]], [0, 1])
    assert zero[0].startswith("No strength helped: zero has the lowest")
    lost = headline_of([[np.nan, 1], [2, 2], [1, 1.1], [2, 2]], [0, 1, 2, 3])
    assert lost[0].startswith("Chosen strength 2 (decoupled): validation loss")
    assert "zero" not in lost[0] and lost[1] == "1 of 4 candidates diverged and were left out."


def test_at_an_end_of_the_grid_a_command_is_given_that_runs(tmp_path, monkeypatch):
    """With the strengths moved, the taken folder dropped, everything else kept."""
    monkeypatch.chdir(tmp_path)
    asked = "wdjax select --data wine --strengths 0 10 100 --out 'my run' --overwrite --seeds 2"
    lines = headline_of([[3.0, 3.1], [2, 2], [1, 1]], [0, 10, 100], asked)
    assert "at the largest end of the grid" in lines[0]
    words = shlex.split(lines[1].removeprefix("The best may lie beyond. Try: "))
    parsed = vars(_parser(jobs).parse_args(words[1:]))
    del parsed["job"], parsed["fresh"]
    options = SelectOptions(**parsed)
    assert (options.data, options.seeds, options.out) == ("wine", 2, None)
    assert options.strengths[0] == 0 and options.strengths[1] == 10
    # 1e4 would remove 30 times the weight at a learning rate of 3e-3: it stops at the whole.
    np.testing.assert_allclose(options.strengths[-1], 1 / 0.003, rtol=2e-3)
    grid = prepare.strength_grid(options, prepare.prepare(options))
    assert grid.num_rows == 11


def test_where_nothing_lies_beyond_no_command_is_given():
    lines = headline_of([[3.0, 3.1], [2, 2], [1, 1]], [0, 0.1, 1], decay="independent")
    assert "at the largest end" in lines[0]
    assert lines[1].startswith("Nothing lies beyond at this learning rate")
    lines = headline_of([[3.0, 3.1], [1, 1], [2, 2]], [0, 0.1, 1], decay="independent")
    assert "--strengths 0 0.001" in lines[1]


def test_default_strengths_stop_where_a_step_removes_the_whole_weight(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for rates, largest in (((3e-3,), 100.0), ((3e-3, 0.1), 10.0)):
        options = SelectOptions(learning_rates=rates, data="wine")
        grid = prepare.strength_grid(options, prepare.prepare(options))
        assert grid.shape["strength"] == 14
        np.testing.assert_allclose(grid["strength"].max(), largest)
