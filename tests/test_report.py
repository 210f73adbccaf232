"""The report, from synthetic results: made-up numbers of plausible shapes, no run behind them."""

import math
import re
import subprocess
import sys
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from synthetic_results import SMALL, synthetic_results

from wdjax.report import figures, heat, render_report
from wdjax.report.runs import what_decay_bought
from wdjax.tables import Estimate, format_number, to_json

VOID = {"meta", "link", "img", "br", "hr", "input", "use", "path", "rect", "ellipse", "circle"}


class Page(HTMLParser):
    """What a browser would see: tags that balance, their attributes, the words."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.rows = []
        self.feed(page)
        self.close()
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append((dict(attributes).get("class"), []))

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
            self.open.pop()

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.words.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][1].append(data)


def read(results):
    page = Page(render_report(results))
    assert page.open == []
    return page


def printed(cell):
    """An estimate of the table as the page prints it."""
    return str(Estimate(cell["mean"], cell["standard_error"])).replace("+-", "\N{PLUS-MINUS SIGN}")


def test_the_page_holds_every_number_of_the_table_in_its_row_and_marks_the_chosen_one():
    results = synthetic_results(learning_rates=(0.001, 0.01), **SMALL)
    page = read(results)
    for index, row in enumerate(results["table"]):
        cells = [format_number(row["strength"]), format_number(row["learning_rate"])]
        cells += [printed(row[m]) for m in ("loss", "accuracy", "train_loss", "gap")]
        (found,) = (line for line in page.rows if all(cell in line[1] for cell in cells))
        assert (found[0] == "chosen") == (index == results["choices"]["min"]["index"])


def test_the_page_tells_the_headline_the_reasons_the_settings_and_the_times():
    page = read(synthetic_results(**SMALL) | {"advice": ["Try more folds."]})
    for words in (
        "Decay at strength 0.001 lowers the test loss of digits by 0.012.",
        "By the rule of lowest mean: strength 0.001. Lowest mean score.",
        "Try more folds.",
        "Largest strength within one standard error.",
        "over 5 folds, each the mean of 2 seeds. 40 runs.",
        "In every row: learning rate 0.001.",
        "wdjax select digits --strength 0 1e-6:3:14",
        "0.10.2",
        "TFRT_CPU_0, TFRT_CPU_1",
        "561710",
        "1.234e-6",
        "64 \N{MULTIPLICATION SIGN} 100",
        "3.9 s",
    ):
        assert words in page.text, words


def test_a_long_grid_shows_a_dozen_rows_first_with_the_choice_and_no_decay_beside_it():
    results = synthetic_results(learning_rates=(0.001, 0.003, 0.01))
    page = read(results)
    assert "All 45 rows" in page.text
    shown = page.rows[1 : next(i for i, r in enumerate(page.rows) if i and "loss" in r[1])]
    losses = sorted(row["loss"]["mean"] for row in results["table"])
    texts = [cell for _, cells in shown for cell in cells]
    assert shown[0][0] == "chosen" and 12 <= len(shown) <= 16
    for row in results["table"]:
        if row["loss"]["mean"] <= losses[11]:
            assert printed(row["loss"]) in texts
    zero = next(
        row
        for row in results["table"]
        if row["strength"] == 0
        and row["learning_rate"] == results["choices"]["min"]["hparams"]["learning_rate"]
    )
    assert printed(zero["loss"]) in texts


@pytest.mark.parametrize("rates", [(0.001,), (0.001, 0.01)])
def test_the_page_loads_nothing_runs_nothing_and_its_ids_are_unique(rates):
    text = render_report(synthetic_results(learning_rates=rates, **SMALL))
    page = Page(text)
    assert not {"script", "link", "img", "image", "iframe", "object", "base"} & set(page.tags)
    assert "://" not in text and "@import" not in text and "data:" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    for name, value in page.attributes:
        assert name not in ("src", "action") and not name.startswith("on")
        assert not name.endswith("href") or value.startswith("#")
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for name, value in page.attributes:
        if name == "aria-labelledby":
            assert set(value.split()) <= set(ids)
        if name.endswith("href"):
            assert value[1:] in ids
    for target in re.findall(r"url\(#([^)]*)\)", text):
        assert target in ids
    assert text.count('role="img"') == text.count("<svg") == text.count("<figure>")
    assert len(text.encode()) < 300_000


def test_colours_follow_the_page_and_none_is_left_as_a_stand_in():
    text = render_report(synthetic_results(**SMALL))
    assert "#0101" not in text and "#0303" not in text
    assert text.count("var(--first)") > 10 and "DejaVu" not in text


def test_hostile_strings_stay_words():
    hostile = "<script>alert(1)</script>'\"&$\\frac{$"

    def poison(tree):
        if isinstance(tree, dict):
            return {key: poison(value) for key, value in tree.items()}
        if isinstance(tree, list):
            return [poison(value) for value in tree]
        return hostile if isinstance(tree, str) else tree

    results = synthetic_results(learning_rates=(0.001, 0.01), **SMALL)
    known = {k: results[k] for k in ("kind", "status", "rule")}
    results = poison(results) | known
    for row in results["table"]:
        row[hostile] = row.pop("learning_rate")
    results["refit"][hostile] = results["refit"].pop("zero")
    results["config"][hostile] = 1
    text = render_report(results)
    page = Page(text)
    assert page.open == [] and "script" not in page.tags
    assert page.text.count("alert(1)") > 20 and "<script" not in text


def test_a_row_that_diverged_says_so_and_is_a_cross_in_the_figures():
    results = synthetic_results(**SMALL)
    results["scores"]["loss"][3][0][0] = None
    for name in ("loss", "accuracy", "train_loss", "gap"):
        results["table"][3][name] = {"mean": None, "standard_error": None}
    page = read(results)
    (row,) = (cells for _, cells in page.rows if "diverged" in cells)
    assert row[0] == "1" and row.count("diverged") == 4
    assert "40 runs, 1 of them without a score." in page.text
    assert "Crosses: no score (diverged)." in page.text


def test_a_loss_far_off_the_scale_is_an_arrow_not_an_axis():
    results = synthetic_results(**SMALL)
    results["table"][3]["loss"] = {"mean": 1e12, "standard_error": 1e11}
    assert "Arrows: off the scale." in read(results).text
    values = np.array([0.1, 0.2, 2.3, 1e12, np.nan])
    np.testing.assert_array_equal(figures.off_scale(values), [0, 0, 0, 1, 0])


def test_a_stopped_run_shows_what_there_is_and_says_what_is_not():
    results = synthetic_results(**SMALL) | {"status": "partial"}
    for name in ("refit", "choices", "rule", "decay"):
        del results[name]
    for name in results["scores"]:
        results["scores"][name][2:] = [None, [None] * 5]
    for row in results["table"][2:]:
        row.update({n: {"mean": None, "standard_error": None} for n in ("loss", "accuracy")})
    page = read(results)
    assert "stopped before it ended" in page.text
    assert "Nothing was refit: the run was stopped before." in page.text
    assert "diverged" not in page.text and "no score, or not yet" in page.text
    assert all(mark != "chosen" for mark, _ in page.rows)


def test_a_stopped_run_without_a_table_compares_its_rows_on_the_folds_that_were_done():
    """Folds 0 and 1 done, fold 2 begun: means and errors are those of NumPy over folds 0, 1."""
    results = synthetic_results(**SMALL) | {"status": "partial", "headline": "Stopped."}
    losses = np.array(results["scores"]["loss"])
    losses[1:, 2], losses[:, 3:], losses[3] = np.nan, np.nan, np.nan
    results["scores"] = {name: losses for name in ("loss", "train_loss")}
    for name in ("refit", "choices", "rule", "decay", "table"):
        del results[name]
    page = read(results)
    for row in losses[:3]:
        folds = row[:2].mean(axis=1)
        expected = {"mean": folds.mean(), "standard_error": folds.std(ddof=1) / np.sqrt(2)}
        assert any(printed(expected) in cells for _, cells in page.rows)
    assert "over 2 of 5 folds finished, each the mean of 2 seeds" in page.text
    assert "40 runs, 26 of them without a score." in page.text
    assert "diverged" not in page.text


def test_a_training_run_shows_its_curves_and_nothing_of_a_grid():
    results = synthetic_results(**SMALL) | {"kind": "train"}
    results["refit"] = {"run": results["refit"]["chosen"]}
    for name in ("scores", "grid", "grid_shape", "rule", "choices", "table"):
        del results[name]
    page = read(results)
    assert "Strengths tried" not in page.text and "The run" in page.text
    assert "test ends at" in page.text and "train ends at" in page.text
    assert page.tags.count("figure") == 1


def test_a_regression_shows_r2_where_a_classification_shows_accuracy():
    page = read(synthetic_results(second="r2", **SMALL))
    assert "Validation r2" in page.text and "accuracy" not in page.text


def test_scores_stand_in_one_order_however_they_came_and_training_ones_are_not_validation():
    results = synthetic_results(**SMALL)
    for row in results["table"]:
        row["train_accuracy"] = row["accuracy"]
    shuffled = [dict(sorted(row.items(), reverse=True)) for row in results["table"]]
    page = read(results | {"table": shuffled})
    ours = ["strength", "loss", "accuracy", "train loss", "train accuracy", "gap", "chosen by"]
    assert page.rows[0][1] == ours
    assert "Validation accuracy" in page.text and "Validation train" not in page.text
    assert page.tags.count("figure") == 6


def test_three_axes_hold_the_third_at_the_choice():
    page = read(synthetic_results(learning_rates=(0.001, 0.01), slopes=(0.5, 1.0), **SMALL))
    assert "At slope 0.5." in page.text
    assert "At learning rate 0.001, slope 0.5." in page.text
    assert "4 by 2 means" in page.text


def test_a_grid_of_one_row_has_a_table_and_no_figure_of_the_grid():
    page = read(synthetic_results(strengths=[1e-3]))
    assert "No figure: nothing varies in this grid" in page.text


def every_name(tree):
    if isinstance(tree, dict):
        yield from tree
        for value in tree.values():
            yield from every_name(value)
    elif isinstance(tree, list) and tree and isinstance(tree[0], dict):
        yield from every_name(tree[0])


def without(tree, name, put):
    if isinstance(tree, dict):
        kept = {k: without(v, name, put) for k, v in tree.items() if k != name}
        return kept | ({name: None} if put and name in tree else {})
    return [without(v, name, put) for v in tree] if isinstance(tree, list) else tree


@pytest.mark.parametrize("put", [False, True], ids=["absent", "null"])
def test_whatever_is_missing_leaves_its_section_out(put, monkeypatch):
    """Each name of the results, at every depth at once, taken away or made null.

    The figures are painted, on one canvas, and not written: that takes half of the time.
    """
    canvas = Figure()

    def paint_only(name, title, description, paint, **sizes):
        canvas.clear()
        paint(canvas.add_subplot())
        return ""

    for module in (figures, heat):
        monkeypatch.setattr(module, "draw_axes", paint_only)
    whole = synthetic_results(strengths=[0.0, 1e-3], num_seeds=1)
    whole |= {name: {"one": 1} for name in ("config", "versions", "data", "timing")}
    for name in dict.fromkeys(every_name(whole)):
        read(without(whole, name, put))


def test_nothing_at_all_is_still_a_page():
    page = read({})
    for words in ("No table of scores", "Nothing was refit.", "No table of decay", "Not recorded."):
        assert words in page.text


def test_arrays_and_nans_that_never_went_through_json_render_the_same():
    results = synthetic_results(**SMALL)
    results["table"][3]["loss"] = {"mean": None, "standard_error": None}
    raw = {**results, "scores": {n: np.array(v) for n, v in results["scores"].items()}}
    raw["table"] = [dict(row) for row in results["table"]]
    raw["table"][3]["loss"] = Estimate(math.nan, math.nan)
    assert render_report(raw) == render_report(results)


def test_the_same_results_give_the_same_page_whatever_matplotlib_is_set_to():
    results = synthetic_results(**SMALL)
    page = render_report(results)
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "svg.fonttype": "path"}):
        before = dict(matplotlib.rcParams)
        assert render_report(results) == page
        assert dict(matplotlib.rcParams) == before


def test_importing_the_report_does_not_import_matplotlib_and_drawing_not_pyplot(tmp_path):
    code = (
        "import json, sys; import wdjax.report as r\n"
        "assert 'matplotlib' not in sys.modules\n"
        "r.write_report(json.load(open(sys.argv[1])), sys.argv[2])\n"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    results = synthetic_results(**SMALL)
    (tmp_path / "results.json").write_text(to_json(results))
    paths = [str(tmp_path / name) for name in ("results.json", "report.html")]
    subprocess.run([sys.executable, "-c", code, *paths], check=True)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render_report(results)


def test_zero_stands_left_of_a_log_axis_as_far_as_the_strengths_stand_apart():
    scale = figures.make_scale([0.0, 1e-4, 1e-3, 1e-2, 1e-1])
    np.testing.assert_allclose(scale.place([0.0, 1e-4, 1e-3, 1e-1]), [-5, -4, -3, -1])
    assert scale.zero == -5 and scale.ends == (-4, -1)
    np.testing.assert_allclose(scale.ticks, [0, 1e-4, 1e-3, 1e-2, 1e-1])


def test_a_narrow_range_is_linear_and_does_not_break():
    scale = figures.make_scale([0.0, 0.1, 0.2, 0.3])
    np.testing.assert_allclose(scale.place([0.0, 0.3]), [0, 0.3])
    assert scale.zero is None


def test_names_at_the_ends_of_lines_keep_their_order_and_their_distance():
    spread = figures.spread(np.array([5.0, 0.0, 0.1, 5.0]), 1.0)
    assert spread[1] < spread[2] < spread[0] < spread[3]
    assert np.diff(np.sort(spread)).min() >= 1.0 - 1e-12
    for heights in ([0.0, 0.1, 0.2], [9.8, 9.9, 10.0], [0.0, 5.0, 10.0]):
        inside = figures.spread(np.array(heights), 1.0, (0.0, 10.0))
        assert inside.min() >= 0 and inside.max() <= 10 and np.diff(inside).min() >= 1 - 1e-12


def test_what_decay_bought_is_paired_over_seeds():
    chosen, zero = np.array([0.10, 0.12, 0.11]), np.array([0.15, 0.16, 0.17])
    runs = {
        "chosen": {"hparams": {"strength": 0.01}, "test_loss": chosen.tolist()},
        "zero": {"hparams": {"strength": 0.0}, "test_loss": zero.tolist()},
    }
    difference = zero - chosen
    expected = Estimate(difference.mean(), difference.std(ddof=1) / np.sqrt(3))
    sentence = what_decay_bought(runs)
    assert sentence.startswith(f"The test loss at strength 0.01 is {expected} lower than without")
    assert "(3 seeds)" in sentence and "seeds alone" not in sentence


@pytest.mark.parametrize(
    "chosen, zero, strength, words",
    [
        ([0.2], [0.1], 0.01, "is 0.1 higher than without decay (one seed"),
        ([0.1, 0.2], [0.2, 0.1], 0.01, "seeds alone could do this"),
        ([0.1, 0.2], [0.1, 0.2], 0.0, "the one without decay"),
    ],
)
def test_what_decay_bought_says_when_it_bought_little(chosen, zero, strength, words):
    runs = {"chosen": {"hparams": {"strength": strength}, "test_loss": chosen}}
    runs["zero"] = {"test_loss": zero}
    assert words in what_decay_bought(runs)


@pytest.mark.parametrize("chosen", [[None], [], [0.1, 0.2]])
def test_what_decay_bought_is_silent_where_it_cannot_be_known(chosen):
    assert what_decay_bought({"chosen": {"test_loss": chosen}, "zero": {"test_loss": [0.1]}}) == ""
