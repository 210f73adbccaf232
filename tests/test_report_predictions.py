"""What is predicted of the test part: in the results, and as the report draws it."""

import json
import re

import numpy as np
import pytest
from synthetic_results import SMALL, synthetic_results
from test_report import read

from wdjax.jobs.options import SelectOptions, TrainOptions
from wdjax.jobs.predictions import MOST_CLASSES, MOST_POINTS, _of_labels, _of_numbers
from wdjax.jobs.select import run_select
from wdjax.jobs.train import run_train
from wdjax.report import render_report
from wdjax.report.predicted import prediction_figures

QUICK = dict(epochs=2, batch_size=16, learning_rate=0.01, strength=1e-4, seeds=2, devices=1)


def trained(tmp_path, **options):
    run_train(TrainOptions(out=str(tmp_path / "run"), **QUICK, **options), say=lambda text: None)
    return json.loads((tmp_path / "run/results.json").read_text("utf-8"))


def test_the_matrix_counts_every_test_example_and_its_diagonal_is_the_accuracy(tmp_path):
    results = trained(tmp_path, data="iris")
    told, run = results["predictions"], results["refit"]["chosen"]
    counts = np.array(told["counts"])
    assert counts.sum() == told["num_examples"] == results["data"]["num_test"]
    np.testing.assert_allclose(np.trace(counts) / counts.sum(), run["test_accuracy"][0])
    assert told["num_wrong"] == counts.sum() - np.trace(counts)
    assert told["classes"] == results["data"]["class_names"]
    for mistake in told["mistakes"]:
        true, taken = (told["classes"].index(mistake[name]) for name in ("true", "predicted"))
        assert counts[true, taken] == mistake["count"] > 0 and true != taken
    page = (tmp_path / "run/report.html").read_text("utf-8")
    assert "Confusion matrix" in page and "were taken for another class" in page


def test_a_selection_tells_of_the_model_that_it_keeps(tmp_path):
    options = SelectOptions(
        data="iris",
        epochs=2,
        seeds=2,
        folds=2,
        batch_size=16,
        devices=1,
        strengths=(0.0, 0.01),
        learning_rates=(0.01,),
        out=str(tmp_path / "run"),
    )
    results = run_select(options, say=lambda text: None)
    counts = np.array(results["predictions"]["counts"])
    accuracy = np.trace(counts) / counts.sum()
    np.testing.assert_allclose(accuracy, results["refit"]["chosen"]["test_accuracy"][0])


def test_numbers_are_in_their_own_unit_and_have_the_test_loss_of_the_run(tmp_path):
    """loss = mean (scaled prediction - scaled target)^2 / 2, scaled by 1 / deviation."""
    results = trained(tmp_path, data="diabetes")
    told, run = results["predictions"], results["refit"]["chosen"]
    (true,), (predicted,) = np.array(told["true"]), np.array(told["predicted"])
    assert len(true) == told["num_examples"] == results["data"]["num_test"]
    with np.load(tmp_path / "run/params.npz") as arrays:
        scale = float(arrays["scaling/targets/scale"])
    squares = ((predicted - true) * scale) ** 2
    loss = run["test_loss"][0]
    assert min(abs(squares.mean() / loss - 1), abs(squares.mean() / 2 / loss - 1)) < 1e-4
    assert true.min() > 20 and true.max() > 200  # Of diabetes, 25 to 346.
    page = (tmp_path / "run/report.html").read_text("utf-8")
    assert "Predicted against true" in page and f"The {len(true)} test examples" in page


def test_many_classes_are_told_by_their_mistakes_and_many_points_by_some_of_them():
    rng = np.random.default_rng(0)
    num = MOST_CLASSES + 1
    targets, outputs = rng.integers(0, num, 500), rng.normal(size=(500, num))
    told = _of_labels(targets, outputs, ())
    assert "counts" not in told and 0 < len(told["mistakes"]) <= 20
    pairs = list(zip(targets, outputs.argmax(1), strict=True))
    for mistake in told["mistakes"]:
        pair = int(mistake["true"]), int(mistake["predicted"])
        assert pairs.count(pair) == mistake["count"]
    values = rng.normal(size=(2 * MOST_POINTS + 7, 2))
    told = _of_numbers(values, 2 * values)
    assert np.shape(told["true"]) == np.shape(told["predicted"]) == (2, MOST_POINTS)
    np.testing.assert_allclose(2 * np.array(told["true"]), told["predicted"], rtol=1e-5)
    assert told["num_examples"] == len(values)


def confused(num=4, **more):
    counts = np.arange(num * num).reshape(num, num)
    names = [f"<class {i}>" for i in range(num)]
    mistakes = [{"true": names[3], "predicted": names[2], "count": 14}]
    wrong = int(counts.sum() - np.trace(counts))
    told = {"num_examples": int(counts.sum()), "num_wrong": wrong, "mistakes": mistakes}
    return synthetic_results(**SMALL) | {
        "predictions": {**told, "classes": names, "counts": counts.tolist(), **more}
    }


def test_each_count_of_the_matrix_stands_in_its_cell():
    results = confused()
    page = read(results)
    assert "108 of 120 test examples" not in page.text
    counts = np.array(results["predictions"]["counts"])
    wrong = counts.sum() - np.trace(counts)
    assert f"{wrong} of {counts.sum()} test examples were taken for another class" in page.text
    assert "most often <class 3> for <class 2> (14)" in page.text
    (figure,) = prediction_figures(results)
    shown = [int(n) for n in re.findall(r">\s*(\d+)\s*</text>", figure.svg)]
    assert sorted(shown) == [n for n in range(1, 16)]  # An empty cell has no number.
    assert "<class" not in figure.svg.replace("&lt;class", "")


def test_points_are_dots_of_the_numbers_and_no_more_than_are_told():
    true = np.linspace(0.0, 9.0, 10)
    told = {"num_examples": 4000, "true": [true.tolist()], "predicted": [(true + 1).tolist()]}
    (figure,) = prediction_figures({"predictions": told})
    assert "10 of 4000 test examples, evenly taken" in figure.caption
    dots = re.findall(r"M ([\d.]+) ([\d.]+)\s+L \1 \2", figure.svg)
    assert len(dots) == 10
    x, y = np.array(dots, float).T
    # One above the diagonal, at equal steps.
    np.testing.assert_allclose(np.diff(x), np.diff(x)[0], rtol=1e-3)
    ends = np.polyfit(true, x, 1)[0], np.polyfit(true, -y, 1)[0]
    np.testing.assert_allclose(*ends, rtol=1e-2)
    several = {**told, "true": [true.tolist()] * 9, "predicted": [true.tolist()] * 9}
    assert len(prediction_figures({"predictions": several})) == 4


@pytest.mark.parametrize(
    "told",
    [
        None,
        3,
        {},
        {"classes": ["a"], "counts": [[1, 2]]},
        {"counts": "x", "classes": None},
        {"true": [[1.0]], "predicted": [[None]]},
        {"true": [1.0], "predicted": [1.0]},
        {"num_wrong": "two"},
    ],
)
def test_what_cannot_be_read_leaves_its_section_out(told):
    page = read(synthetic_results(**SMALL) | {"predictions": told})
    assert "Predicted and true" not in page.text


def test_of_too_many_classes_the_mistakes_are_said():
    results = confused()
    for name in ("classes", "counts"):
        del results["predictions"][name]
    text = render_report(results)
    assert "Too many classes for a matrix." in text and "most often" in text
