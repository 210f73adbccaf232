"""Slopes in the report: short strokes on the curves of their scores."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from synthetic_results import SMALL, synthetic_results
from test_report import read

from wdjax.report import figures
from wdjax.report.scales import STROKE, stroke_ends


@pytest.mark.parametrize("steep", [0.3, 1e6])
@pytest.mark.parametrize("lowest", [0.01, 0.9])
@pytest.mark.parametrize("logarithmic", [True, False])
def test_a_stroke_has_the_slope_it_is_of_and_one_length_on_every_scale(lowest, logarithmic, steep):
    # y = 2 + steep (x - 1): dy / d log x = steep x, which is steep at x = 1.
    ax = Figure(figsize=(5, 3)).add_subplot()
    ax.set_yscale("log" if logarithmic else "linear")
    ax.set(xlim=(-2, 1), ylim=(1, 4))
    scale = figures.make_scale([lowest, 1.0, 1.2])
    (x0, x1), (y0, y1) = stroke_ends(ax, scale, 1.0, 2.0, steep)
    (a, b), (c, d) = ax.transData.transform([(x0, y0), (x1, y1)])
    np.testing.assert_allclose(np.hypot(c - a, d - b) * 72 / ax.figure.dpi, STROKE)
    dx = (x1 - x0) * (np.log(10) if lowest == 0.01 else 1.0)
    dy = 2 * np.log(y1 / y0) if logarithmic else y1 - y0
    if steep < 1:
        np.testing.assert_allclose(dy / dx, steep, rtol=2e-3)  # A thousandth ahead on a bent scale.
    else:
        assert y1 > y0 and abs(x1 - x0) < 1e-3


def test_slopes_are_strokes_on_the_curve_of_their_score_and_are_told_in_words():
    results = synthetic_results(**SMALL)
    before = read(results)
    told = [{"mean": None, "standard_error": None}, *[{"mean": 0.1, "standard_error": 0.1}] * 3]
    after = read(results | {"slopes": {"strength": {"loss": told}}})
    words = "Short strokes: the slope in log strength, carried through the runs; their mean."
    # On the validation loss and beside the train loss; accuracy goes in steps.
    assert words not in before.text and after.text.count(words) == 2
    assert after.tags.count("path") - before.tags.count("path") == 2 * 3
    for broken in ({"strength": None}, {"strength": {"loss": told[:2]}}, [1], "strength"):
        assert read(results | {"slopes": broken}).text == before.text
