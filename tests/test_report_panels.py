"""The panels of telemetry, and that no label of any figure stands on another."""

import html
import itertools
import re

import numpy as np
import pytest
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from synthetic_results import SMALL, STRENGTHS, synthetic_results
from test_report import read
from test_report_comparison import comparison
from test_report_predictions import confused

from wdjax.report import render_report
from wdjax.report.telemetry import COLUMNS, MOST_PARTS, read_telemetry, telemetry_table
from wdjax.tables import to_plain

TEXT = re.compile(r'<text style="([^"]*)"([^>]*)>([^<]*)</text>')


def telemetry_of(paths=("a/kernel", "a/bias"), num_seeds=2):
    """Three points of every measure; the bias is not decayed, so two of them are null."""
    steps = [1, 11, 21]
    rising = [[0.5 + seed, 1.5 + seed, 2.25 + seed] for seed in range(num_seeds)]
    nothing, zero = [[None] * 3] * num_seeds, [[0.0] * 3] * num_seeds
    kernel = dict.fromkeys(COLUMNS, rising) | {"gated_share": zero, "timescale": [[40.0] * 3] * 2}
    bias = kernel | {"timescale": nothing, "equilibrium_norm": nothing, "equilibrium_angle": zero}
    return {"steps": steps, "parts": {p: bias if "bias" in p else kernel for p in paths}}


def trained(**more):
    results = synthetic_results(**SMALL) | {"kind": "train", "telemetry": telemetry_of()}
    return {**results, "refit": {"run": results["refit"]["chosen"]}, **more}


def test_telemetry_has_a_table_of_the_last_point_and_a_panel_a_kernel_of_what_changed():
    page = read(trained())
    assert "What the parts did on the way" in page.text
    assert "Measured in 3 of the steps" in page.text
    panel = page.text.split("In colour what was measured")[0].rpartition("a/kernelnorm")[2]
    for strip in ("norm", "angle a step", "gradient / weight", "unmoved"):
        assert strip in panel
    assert "gated" not in panel, "it stayed 0, so it has no strip and no column"
    assert "Gated: the share of the weights that a gate spares, 0 in every part" in page.text
    assert "norm ends at 2.75; norm predicted ends at 2.75" in page.text, "the mean of two seeds"
    assert "Drawn are the kernels; the table holds every part." in page.text
    row = telemetry_table(read_telemetry(trained())).rows[1]
    assert row == ("a/bias", 2.75, np.inf, 2.75, 0.0, np.inf, 2.75, 2.75)


def test_a_part_without_decay_has_no_line_of_a_prediction():
    page = read(trained(telemetry=telemetry_of(["a/bias"])))
    assert "Where no grey line stands, the optimiser does not decay." in page.text
    assert "predicted ends at" not in page.text


def test_telemetry_draws_the_largest_kernels_and_tells_of_all():
    paths = [f"layer{i}/kernel" for i in range(MOST_PARTS + 3)]
    decay = [{"path": path, "size": 10 * i, "role": "kernel"} for i, path in enumerate(paths)]
    decay[-1]["role"] = "head"
    decay += [{"path": "big/bias", "size": 10**6, "role": "bias"}]
    page = read(trained(telemetry=telemetry_of([*paths, "big/bias"]), decay=decay))
    titles = re.findall(r"layer(\d+)/kernelnorm ends", page.text)
    assert titles == [str(i) for i in range(3, MOST_PARTS + 3)]
    assert "Drawn are the 12 largest kernels; the table holds every part." in page.text
    assert all(path in page.text for path in paths) and "big/biasnorm ends" not in page.text


@pytest.mark.parametrize(
    "broken",
    [
        None,
        [],
        {"steps": [1], "parts": 3},
        {"steps": [1, 2], "parts": {"a": {"norm": [[1.0]]}}},
        {"steps": [], "parts": {}},
        {"steps": [1], "parts": {"a": {"norm": ["x"]}}},
    ],
)
def test_telemetry_that_cannot_be_read_is_a_word_and_of_a_selection_nothing(broken):
    assert "No telemetry in these results." in read(trained(telemetry=broken)).text
    assert "telemetry" not in read(synthetic_results(**SMALL)).text


def boxes_of(svg):
    """`[(words, (left, top, right, bottom))]` of an SVG's texts, as wide as in matplotlib's font.

    That is DejaVu Sans, which is wider than what a browser takes for `system-ui`.
    """
    found = []
    for style, where, words in TEXT.findall(svg):
        size = float(re.search(r"font-size: ([\d.]+)px", style)[1])
        side = (re.search(r"text-anchor: (\w+)", style) or ["", "start"])[1]
        font = FontProperties(family="DejaVu Sans", size=size)
        words = html.unescape(words)
        width, height, descent = text_to_path.get_text_width_height_descent(words, font, False)
        left = {"start": 0.0, "middle": -width / 2, "end": -width}[side]
        x, y = map(float, re.search(r"(?:translate|rotate)\((?:-0 )?(\S+) (\S+)\)", where).groups())
        angle = float((re.search(r"rotate\(([-\d.]+)\)", where) or ["", "0"])[1])
        turn = np.deg2rad(angle)
        corners = [(left + dx, dy) for dx in (0, width) for dy in (descent - height, descent)]
        turned = np.array(corners) @ [[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]
        found.append((words, (*(turned.min(0) + (x, y)), *(turned.max(0) + (x, y)))))
    return found


def overlapping(boxes, slack=0.5):
    """The pairs of words whose boxes share more than half a point in both directions."""
    return [
        (a, b)
        for (a, p), (b, q) in itertools.combinations(boxes, 2)
        if min(p[2], q[2]) - max(p[0], q[0]) > slack and min(p[3], q[3]) - max(p[1], q[1]) > slack
    ]


def many_rates():
    return synthetic_results(learning_rates=tuple(10.0 ** (-i / 3) for i in range(12)))


def near_choices():
    """Two rules that chose neighbours."""
    results = synthetic_results()
    results["choices"]["one_standard_error"]["index"] = results["choices"]["min"]["index"] + 1
    return results


def at_the_edge(where):
    results = synthetic_results()
    results["choices"]["min"]["index"] = where
    results["choices"]["one_standard_error"]["index"] = where + 1
    return results


def compared(num):
    return to_plain({"kind": "compare", "comparison": comparison(num)})


def with_panels(num=5):
    long = [f"transformer/encoder/block_{i}/attention/query/kernel" for i in range(num)]
    return trained(telemetry=telemetry_of(long))


def with_points():
    true = np.random.default_rng(0).gamma(2, 8000, 50)
    told = {"num_examples": 50, "true": [true.tolist()], "predicted": [(true + 1).tolist()]}
    return synthetic_results(**SMALL) | {"predictions": told}


REPORTS = {
    "one rate": synthetic_results,
    "two rates": lambda: synthetic_results(learning_rates=(0.001, 0.01)),
    "twelve rates": many_rates,
    "neighbours chosen": near_choices,
    "chosen at the low end": lambda: at_the_edge(0),
    "chosen at the high end": lambda: at_the_edge(len(STRENGTHS) - 2),
    "two compared": lambda: compared(2),
    "twelve compared": lambda: compared(12),
    "panels": with_panels,
    "ten classes": lambda: confused(10),
    "thirty classes of long names": lambda: confused(30),
    "points": with_points,
}


@pytest.mark.parametrize("name", REPORTS)
def test_no_label_of_a_figure_stands_on_another_and_none_leaves_it(name):
    page = render_report(REPORTS[name]())
    figures = re.findall(r'<svg viewBox="0 0 ([\d.]+) ([\d.]+)"(.*?)</svg>', page, re.DOTALL)
    assert figures
    for width, height, svg in figures:
        boxes = boxes_of(svg)
        assert len(boxes) > 3 and svg.count("<text") == len(boxes)
        assert not overlapping(boxes), boxes[-1][0]
        for words, (left, top, right, bottom) in boxes:
            inside = left > -1 and right < float(width) + 1 and top > -1
            assert inside and bottom < float(height) + 1, (words, boxes[-1][0])


def test_boxes_that_overlap_are_found():
    square = np.array([0.0, 0.0, 10.0, 10.0])
    boxes = [("a", square), ("b", square + 9), ("c", square + 20)]
    assert overlapping(boxes) == [("a", "b")]
