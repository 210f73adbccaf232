"""The page of a comparison, the folded table of decay, and circumstances that differ."""

import html.parser
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wdjax
from wdjax.jobs.compare import CompareOptions, run_compare
from wdjax.report import render_report, results_of_comparison
from wdjax.report.compared import comparison_figures, comparison_table, read_comparison
from wdjax.report.decayed import decay_table
from wdjax.selection.evidence import gains_by_example
from wdjax.tables import to_plain

DATA = wdjax.Batch(
    jnp.zeros((60, 1)), jnp.asarray(np.random.default_rng(0).normal(size=60)), jnp.ones(60)
)


def off_by(amount, noise=0.1):
    """A choice whose losses are `amount` above the best possible, and noisy."""

    def fit_and_score(h, train, valid, key):
        wobble = noise * jax.random.normal(key, valid.targets.shape)
        own = amount * (1 + 0.3 * jnp.sin(9 * valid.targets))
        return {"loss": valid.targets**2 + own + wobble * amount + h["strength"]}

    return fit_and_score


def comparison(num=4):
    choices = {f"choice {i}": off_by(0.2 * i) for i in range(num)}
    folds = wdjax.kfold(jax.random.key(0), 60, 5)
    grid = {"strength": [0.0, 1.0]}
    return wdjax.compare(choices, grid, DATA, folds, key=jax.random.key(1), num_seeds=2)


def test_the_gains_over_the_best_are_those_of_the_evidence_over_all_rows():
    found = comparison(3)
    assert found.best == "choice 0" and set(found.over_best) == {"choice 1", "choice 2"}
    each = np.concatenate([s.held_out.values["loss"] for s in found.scores.values()])
    best = 0
    others = [row for row in range(len(each)) if row != best]
    weights = found.scores["choice 0"].held_out.weights
    expected = gains_by_example(each[best] - each[others], weights)
    at = [others.index(2 * i + found.chosen[f"choice {i}"].index) for i in (1, 2)]
    for name, place in zip(("choice 1", "choice 2"), at, strict=True):
        gain = found.over_best[name]
        np.testing.assert_allclose(
            gain[:3], (expected.mean[place], expected.low[place], expected.high[place])
        )
        assert gain.num_rows == 5 and gain.mean < 0
        difference = found.difference(name, "choice 0").mean
        np.testing.assert_allclose(-gain.mean, difference, rtol=1e-5)


class Texts(html.parser.HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.texts, self.tags = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data.strip())


@pytest.mark.parametrize("num", [2, 4, 12])
def test_the_page_shows_each_choice_with_its_interval_and_its_verdict(num):
    results = to_plain({"kind": "compare", "status": "complete", "comparison": comparison(num)})
    results["headline"] = "Best: choice 0."
    page = render_report(json.loads(json.dumps(results)))
    texts = Texts(page).texts
    for i in range(num):
        assert texts.count(f"choice {i}") >= 2  # In the table and at the figure.
    assert "How far behind choice 0" in texts and "best" in texts
    found = read_comparison(results)
    (figure,) = comparison_figures(found)
    # A whisker for each but the best; every height is another.
    heights = [float(y) for y in re.findall(r'viewBox="0 0 360 ([\d.]+)"', figure.svg)]
    assert heights == [70 + 22 * num]
    assert "hold for all rows tried" in figure.caption
    table = comparison_table(found)
    assert [row[1] for row in table.rows].count("best") == 1
    worse = {row[0] for row in table.rows if row[1] == "worse"}
    assert worse == set(found.worse) and (num < 4 or worse)


@pytest.mark.parametrize("num", [2, 12])
def test_dots_and_whiskers_stand_where_the_numbers_of_the_results_are(num):
    """Places are affine in the numbers, so two of them tell where all others must be."""
    results = to_plain({"comparison": comparison(num)})
    (figure,) = comparison_figures(read_comparison(results))
    gains = results["comparison"]["over_best"].values()
    behind = sorted((-g["mean"], -g["high"], -g["low"]) for g in gains)
    lines = re.findall(r'd="M (\S+) (\S+)\s+L (\S+) \2\s+"[^>]*width: 1.1', figure.svg)
    whiskers = [(float(y), float(left), float(right)) for left, y, right in lines]
    assert len(whiskers) == num - 1
    places = np.array([ends for _, *ends in sorted(whiskers)])
    expected = np.array([ends for _, *ends in behind])
    slope, start = np.polyfit(expected.ravel(), places.ravel(), 1)
    assert slope > 0
    np.testing.assert_allclose(places, slope * expected + start, atol=0.01)
    dots = re.findall(r'<use [^>]* x="(\S+)" y="(\S+)"[^>]*width: 1.1', figure.svg)
    found = [x for _, x in sorted((float(y), float(x)) for x, y in dots)]
    means = [0.0, *(mean for mean, *_ in behind)]
    np.testing.assert_allclose(found, slope * np.array(means) + start, atol=0.01)


def test_the_page_of_a_comparison_in_python_says_what_the_terminal_does_and_no_circumstances():
    found = comparison(3)
    results = results_of_comparison(found, name="noise", what="model", notes=["Of my loop."])
    texts = Texts(render_report(results)).texts
    words = found.in_words("model")
    assert words in [text.replace("\u00b1", "+-") for text in texts]
    assert words.startswith("Best model: choice 0 (strength 0), validation loss ")
    assert "over all 6 rows tried" in words and "Of my loop." in texts
    assert "Circumstances" not in texts and "wdjax compare noise" in texts


def test_the_verdict_names_the_worse_and_those_that_cannot_be_told():
    found = comparison(4)
    words = found.in_words()
    behind, _, worse = words.partition("; worse: ")
    for name in found.chosen:
        if name != found.best:
            assert (name in worse) == (name in found.told_apart)
            assert (name in behind) == (name not in found.told_apart)


def test_sentences_about_many_choices_are_folded():
    def page(num):
        return render_report(results_of_comparison(comparison(num)))

    few, many = page(3), page(12)
    assert "<details>" not in few and "Choice 2 is worse" not in few.partition("<figure")[2]
    folded = many.partition("<details>")[2].partition("</details>")[0]
    assert "Each choice in words" in folded and folded.count(" choice 0 (") == 11
    assert "over 5 folds, 2 seeds each. Difference: to choice 0" in many


def test_a_choice_that_diverged_or_was_not_finished_leaves_a_page():
    nothing = {"kind": "compare", "status": "partial"}
    assert "No comparison in these results" in render_report(nothing)
    odd = {"kind": "compare", "comparison": {"best": "a", "choices": {"a": {}, "b": None}}}
    assert "choice" in render_report(odd)


def test_the_job_writes_the_page_and_says_what_was_told(tmp_path):
    options = CompareOptions(
        data="iris",
        among=("sgd", "adam"),
        strengths=(0.0,),
        learning_rates=(0.01,),
        epochs=1,
        folds=2,
        seeds=1,
        batch_size=32,
        out=str(tmp_path / "run"),
        devices=1,
    )
    run_compare(options, say=lambda text: None)
    page = (tmp_path / "run/report.html").read_text("utf-8")
    told = "Other than the defaults: data iris; loss cross_entropy; epochs 1; batch size 32"
    assert told in page and "How far behind" in page
    details = [tag for tag, _ in Texts(page).tags if tag == "details"]
    assert len(details) == 1 and "All options, data, versions and times" in page


SCHEDULE = "first_rate", "peak_rate", "last_rate"


def leaves(num=12):
    same = {"shape": [64, 64], "rate": 1e-4, "half_life": 6931.1, "role": "kernel", "size": 4096}
    row = lambda path, **own: {
        "path": path,
        **same,
        "penalty_share": 0.0,
        "unmeasured": None,
        **own,
    }
    rows = [row(f"block{i}/kernel", norm=float(i), warned="no") for i in range(num)]
    none = {"rate": 0.0, "half_life": None, "role": "bias", "size": 64, "shape": [64]}
    return rows + [row(f"block{i}/bias", norm=0.5, warned="no", **none) for i in range(num)]


def test_repeated_blocks_are_one_row_and_idle_columns_are_told():
    table, left_out = decay_table(leaves())
    paths = [row[0] for row in table.rows]
    assert paths == ["block*/kernel \u00d7 12", "block*/bias \u00d7 12"]
    assert set(table.headers) == {
        "path",
        "shape",
        "rate a step",
        "half-life in steps",
        "role",
        "norm",
    }
    assert table.rows[0][table.headers.index("norm")] == pytest.approx(np.arange(12).mean())
    assert (
        left_out == "In every row: warned no. 0 or unknown in every row: penalty share, unmeasured."
    )


def test_a_size_without_a_shape_is_shown_and_a_schedule_where_it_moves():
    rows = [{n: v for n, v in row.items() if n != "shape"} for row in leaves(2)]
    assert "size" in decay_table(rows)[0].headers
    steady = [row | dict.fromkeys(SCHEDULE, row["rate"]) for row in rows]
    table, left_out = decay_table(steady)
    assert "peak rate" not in table.headers
    assert left_out.endswith("The rate is the same at every step.")
    steady[0]["peak_rate"] = 2e-4
    table, left_out = decay_table(steady)
    assert {"first rate", "peak rate", "last rate"} < {*table.headers}
    assert "same at every step" not in left_out


def test_a_block_that_is_decayed_otherwise_stands_alone():
    rows = leaves()
    rows[3]["rate"] = 2e-4
    table, _ = decay_table(rows)
    assert [row[0] for row in table.rows] == [
        "block*/kernel \u00d7 11",
        "block3/kernel",
        "block*/bias \u00d7 12",
    ]
