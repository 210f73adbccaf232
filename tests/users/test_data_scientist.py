"""A data scientist with a table as it is: words, holes, several rows a patient, serial numbers."""

import json
import pathlib
import shlex

import numpy as np
import pandas
import pytest

from wdjax.cli import main

pytestmark = pytest.mark.slow


@pytest.fixture
def shell(tmp_path, monkeypatch, capfd):
    """`shell("wdjax select ...")`: what was printed, in a folder that holds the data alone."""
    monkeypatch.chdir(tmp_path)

    def run(line):
        status = main(shlex.split(line)[1:])
        printed, told = capfd.readouterr()
        assert status == 0, told
        return told + printed

    return run


def visits(num_patients, seed):
    """Four visits a patient; the outcome hangs on age, on smoking, and on the patient."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(num_patients), 4)
    age = rng.normal(55, 12, num_patients)[patient]
    smoker = rng.choice(["never", "former", "daily"], num_patients)[patient]
    num = len(patient)
    score = (age - 55) / 12 + 2.0 * (smoker == "daily") + 0.7 * rng.normal(size=num)
    pressure = 120 + 8 * score + 10 * rng.normal(size=num)
    pressure[rng.random(num) < 0.3] = np.nan
    columns = {
        "visit": [f"v{seed}-{i}" for i in range(num)],
        "patient": [f"s{seed}-{i}" for i in patient],
        "age": np.where(rng.random(num) < 0.1, np.nan, age.round(1)),
        "smoker": smoker,
        "pressure": pressure.round(1),
        "outcome": np.where(score > 0.7, "ill", "well"),
    }
    return pandas.DataFrame(columns)


def test_a_table_with_words_and_holes_is_chosen_on_judged_and_predicted(shell):
    visits(80, 0).to_csv("visits.csv", sep=";", index=False)
    visits(30, 1).to_parquet("later.parquet", index=False)

    told = shell(
        "wdjax select --data visits.csv --drop visit --groups patient --test later.parquet "
        "--strengths 0 0.1 1 10 --learning-rates 0.003 --seeds 2 --epochs 20 --batch-size 32 "
        "--final all --out chosen"
    )
    assert "visits: 320 examples to choose on, 120 to test on." in told
    assert "Of 3 columns 1 of words and 2 with holes" in told
    assert "Parts and folds keep 80 groups whole." in told
    assert "zero" in told and "final.npz; no row is left to judge it" in told
    results = json.loads(pathlib.Path("chosen/results.json").read_text())
    accuracy = results["refit"]["chosen"]["test_accuracy"]
    assert min(accuracy) > 0.7 and results["data"]["num_test"] == 120

    new = visits(10, 2).drop(columns="outcome")
    new.loc[:2, "smoker"] = "pipe"
    new.to_csv("new.csv", index=False)
    told = shell("wdjax predict chosen new.csv --final")
    assert "column 'smoker': 3 cells hold words that training did not see ('pipe')" in told
    predicted = pandas.read_csv("chosen/predictions-new.csv")
    assert list(predicted) == ["prediction", "probability of ill", "probability of well"]
    truth = visits(10, 2)["outcome"]
    assert (predicted["prediction"][3:] == truth[3:]).mean() > 0.6

    told = shell(
        "wdjax compare --data visits.csv --drop visit --groups patient --vary optimizer "
        "--among adam sgd --strengths 0 1 --learning-rates 0.01 --seeds 1 --epochs 10 --folds 3 "
        "--batch-size 32 --out compared"
    )
    assert "adam" in told and "sgd" in told


def test_rows_that_count_more_are_trained_on_and_judged_as_more(shell):
    table = visits(60, 3)
    table["count"] = np.arange(len(table)) % 4  # Of weight 0: not there.
    table.to_csv("visits.csv.gz", index=False)

    told = shell(
        "wdjax train --data visits.csv.gz --target outcome --drop visit --groups patient "
        "--weights count --strength 0.1 --epochs 20 --batch-size 32 --out trained"
    )
    assert "They count by their weights, 1 to 3; " in told and "over their 12 groups" in told
    results = json.loads(pathlib.Path("trained/results.json").read_text())
    assert results["data"]["num_choose"] + results["data"]["num_test"] == 180
    assert results["data"]["column_names"] == ["age", "smoker", "pressure"]

    visits(5, 4).drop(columns="outcome").to_csv("new.csv.gz", index=False)
    told = shell("wdjax predict trained new.csv.gz")
    assert "passed over" not in told
    assert len(pandas.read_csv("trained/predictions-new.csv")) == 20
