"""The report's heat map: learning rate by strength, with what is left out and what is outlined."""

import numpy as np
from synthetic_results import SMALL, synthetic_results

from wdjax.report import heat, sweep


def test_a_pair_left_out_of_a_heat_map_is_blank_and_one_without_a_score_a_cross():
    """Of 4 strengths by 2 learning rates the last pair is left out and another diverged."""
    results = synthetic_results(learning_rates=(0.001, 0.01), **SMALL)
    drawn = lambda results: sweep.heat_figure(sweep.read_sweep(results), "loss")
    cells = lambda figure: figure.svg.count("fill: var(--first)")
    whole = drawn(results)
    assert cells(whole) == 8 and "Blank" not in whole.caption
    results["table"][2]["loss"] = {"mean": None, "standard_error": None}
    diverged = drawn(results)
    assert cells(diverged) == 7 and "Crosses: no score" in diverged.caption
    results["table"].pop()
    fewer = drawn(results)
    assert cells(fewer) == 6 and "Blank: left out." in fewer.caption
    assert fewer.svg.count("<use") == diverged.svg.count("<use")  # No cross where it is blank.


def test_in_a_heat_map_zero_stands_apart_from_the_log_scale_and_the_set_is_outlined_around_it():
    """A quarter of a cell; a set that holds zero and the strength above it has two outlines."""
    np.testing.assert_array_equal(heat._places_of_cells([0.0, 0.1, 1.0]), [-0.25, 1, 2])
    np.testing.assert_array_equal(heat._places_of_cells([0.1, 1.0, 2.0]), [0, 1, 2])
    ys, xs = heat._places_of_cells([0.0, 0.1, 1.0]), heat._places_of_cells([1.0, 2.0])
    assert len(list(heat._sides([(0, 0), (1, 0)], ys, xs))) == 8
    assert len(list(heat._sides([(1, 0), (2, 0)], ys, xs))) == 6


def test_colours_run_over_the_span_that_is_given():
    values = np.array([[0.5, 1.0, 4.0, np.nan]])
    np.testing.assert_allclose(heat._better(values, True, (0.5, 1.5)), [[1, 0.5, 0, np.nan]])
    np.testing.assert_allclose(heat._better(values[:, :3], False)[0, [0, 2]], [0, 1])
