"""What columns of a table are for: dropped, weights, groups, a table that judges."""

import csv
import decimal

import jax
import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest

from wdjax.cli import main
from wdjax.data.encoding import HOLE
from wdjax.data.load import load_choose_and_test, load_data
from wdjax.jobs import SelectOptions, TrainOptions, run_predict, run_select, run_train
from wdjax.jobs.setup import draw_folds, prepare
from wdjax.jobs.verdict import errors_on_test, refit_table
from wdjax.selection import cross_validate as real

HEADER = ["id", "patient", "age", "smoker", "count", "state"]


def rows_of(patients, seed=0, each=5):
    rng = np.random.default_rng(seed)
    rows = []
    for patient in patients:
        own = rng.normal()
        for _ in range(each):
            smoker = rng.random() < 0.4
            state = own + 2 * smoker + 0.3 * rng.normal() > 0.5
            rows.append(
                [
                    f"r{len(rows)}",
                    f"p{patient}",
                    "" if rng.random() < 0.1 else f"{own + 0.3 * rng.normal():.3f}",
                    "yes" if smoker else "no",
                    str(len(rows) % 4),
                    "ill" if state else "well",
                ]
            )
    return rows


def write(path, rows, header=HEADER):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


@pytest.fixture
def table(tmp_path):
    return write(tmp_path / "patients.csv", rows_of(range(40)))


ROLES = dict(drop=("id",), groups="patient", weights="count")
SMALL = dict(epochs=2, batch_size=16, devices=1)


def test_columns_have_the_role_that_is_said_and_rows_of_weight_zero_are_left_out(table):
    data = load_data(table, **ROLES)
    assert data.column_names == ("age", "smoker")
    assert len(data.inputs) == 150 and data.num_left_out == 50
    assert sorted(np.unique(data.weights)) == [1, 2, 3]
    assert len(np.unique(data.groups)) == 40 and len(data.groups) == 150


def test_parts_and_folds_keep_groups_whole_and_the_verdict_counts_groups(
    table, tmp_path, monkeypatch
):
    prepared = prepare(TrainOptions(data=table, strength=0.1, **ROLES, **SMALL))
    choose, test = prepared.choose_data.groups, prepared.test_data.groups
    assert not np.intersect1d(choose, test).size
    assert 0.1 < len(test) / (len(test) + len(choose)) < 0.3
    folds = draw_folds(prepared, SelectOptions(folds=4), jax.random.key(0))
    held_out = []
    for train, train_mask, valid, valid_mask in zip(*map(np.asarray, folds), strict=True):
        inside, outside = choose[train[train_mask]], choose[valid[valid_mask]]
        assert not np.intersect1d(inside, outside).size
        held_out += np.unique(outside).tolist()
    assert sorted(held_out) == sorted(np.unique(choose))
    seen = {}

    def spy(*arguments, groups=None, **how):
        seen["groups"] = groups
        return real(*arguments, groups=groups, **how)

    monkeypatch.setattr("wdjax.selection.ways.cross_validate", spy)
    told = dict(strengths=(0.0, 1.0), learning_rates=(0.003,), folds=4, seeds=1)
    out = tmp_path / "run"
    options = SelectOptions(data=table, out=str(out), **told, **ROLES, **SMALL)
    results = run_select(options, say=lambda text: None)
    np.testing.assert_array_equal(seen["groups"], choose)
    assert f"over their {len(np.unique(test))} groups" in refit_table(results).note
    assert results["refit"]["chosen"]["errors"]["test_loss"] > 0


def test_the_error_on_the_test_part_is_that_of_groups():
    rng = np.random.default_rng(0)
    groups = np.repeat([f"g{i}" for i in range(12)], 5)
    own = np.repeat(rng.normal(size=12), 5)
    losses = (own + 0.1 * rng.normal(size=60))[None]
    scores = {"train_loss": np.zeros(1)}
    by_group = errors_on_test({"test_loss": losses}, scores, np.ones(60), groups)["test_loss"]
    sums = (losses[0] - losses.mean()).reshape(12, 5).sum(axis=1)
    assert by_group == pytest.approx(np.sqrt(12 / 11 * (sums**2).sum()) / 60)
    assert by_group > 1.8 * errors_on_test({"test_loss": losses}, scores, np.ones(60))["test_loss"]


def test_a_table_that_judges_has_the_same_columns_in_any_order(table, tmp_path):
    rows = rows_of(range(100, 120), seed=1)
    order = [5, 3, 0, 2, 4, 1]
    rows[0][3] = "once"  # A word that the other table does not have.
    other = write(
        tmp_path / "new.csv", [[row[i] for i in order] for row in rows], [HEADER[i] for i in order]
    )
    choose, test = load_choose_and_test(table, test=other, **ROLES)
    assert len(choose.inputs) == 150 and len(test.inputs) == 75
    assert test.columns == choose.columns and test.class_names == choose.class_names
    straight = load_data(write(tmp_path / "same.csv", rows[1:]), **ROLES)
    np.testing.assert_array_equal(test.inputs, straight.inputs)
    np.testing.assert_array_equal(test.targets, straight.targets)
    options = TrainOptions(
        data=table, test=other, strength=0.1, out=str(tmp_path / "run"), **ROLES, **SMALL
    )
    results = run_train(options, say=lambda text: None)
    assert results["data"]["num_test"] == 75 and results["data"]["num_choose"] == 150


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(groups="patients"), "`groups` 'patients' is no column of .* Did you mean 'patient'"),
        (dict(drop=("patient",)), "`drop` 'patient' is named as `groups` as well"),
        (dict(weights="age"), "column 'age' must hold numbers, got nothing in line"),
        (dict(weights="smoker"), "column 'smoker' must hold numbers, got '(yes|no)' in line 2"),
        (dict(groups="state"), "`target` was not given, and the last column, 'state', is named"),
        (dict(drop=("id", "age", "smoker")), "no input columns are left; drop fewer"),
        (dict(target="age", drop=("age",)), "`drop` 'age' is named as `target` as well"),
    ],
)
def test_roles_that_do_not_fit_are_refused(table, change, words):
    with pytest.raises(ValueError, match=words):
        load_data(table, **{**ROLES, **change})


def test_a_negative_weight_and_a_row_without_a_group_are_refused(tmp_path):
    rows = rows_of(range(10))
    rows[3][4] = "-1"
    with pytest.raises(ValueError, match="`weights` .*-1"):
        load_data(write(tmp_path / "a.csv", rows), **ROLES)
    rows[3][4:5], rows[7][1] = ["1"], ""
    with pytest.raises(ValueError, match="column 'patient' has no group in line 9; name it"):
        load_data(write(tmp_path / "a.csv", rows), **ROLES)


def test_a_table_that_cannot_judge_is_refused(table, tmp_path):
    rows = rows_of(range(100, 110), seed=1)
    load = lambda rows, header=HEADER: load_choose_and_test(
        table, test=write(tmp_path / "new.csv", rows, header), **ROLES
    )
    with pytest.raises(ValueError, match="'p10' is a group of 'patients' and of the test table"):
        load(rows_of(range(3, 13)))
    rows[2][5] = "dead"
    with pytest.raises(ValueError, match="holds the label 'dead', which 'patients' does not"):
        load(rows)
    header = ["years" if name == "age" else name for name in HEADER]
    with pytest.raises(ValueError, match="has no column 'age', which the model was trained on"):
        load(rows, header)
    with pytest.raises(ValueError, match="`test` = 'iris' does not apply to data 'iris', only to"):
        load_choose_and_test(table, test="iris", **ROLES)


def test_too_few_groups_for_a_test_part_are_told(tmp_path):
    path = write(tmp_path / "few.csv", rows_of(range(3), each=12))
    with pytest.raises(ValueError, match="3 different groups, and 5 parts .* of its own .--test"):
        prepare(TrainOptions(data=path, strength=0.1, **ROLES, **SMALL))


def test_fewer_groups_than_folds_are_told(tmp_path):
    path = write(tmp_path / "few.csv", rows_of(range(6), each=12))
    prepared = prepare(TrainOptions(data=path, strength=0.1, **ROLES, **SMALL))
    with pytest.raises(ValueError, match="has 4 different groups, and 8 parts .* take fewer folds"):
        draw_folds(prepared, SelectOptions(folds=8), jax.random.key(0))


@pytest.mark.parametrize("option", ["--drop a", "--weights a", "--groups a", "--test new.csv"])
def test_data_without_columns_refuse_what_columns_are_for(option, tmp_path, capsys):
    words = f"train --data iris --strength 0.1 --out {tmp_path / 'run'} {option}"
    assert main(words.split()) == 2
    assert "does not apply to data 'iris', only to a table" in capsys.readouterr().err


def test_help_shows_them_beside_a_table(capsys):
    for words, there in ((["select", "--help"], 0), (["select", "--data", "a.csv", "--help"], 1)):
        with pytest.raises(SystemExit):
            main(words)
        shown = capsys.readouterr().out
        assert all((f"--{name} NAME" in shown) == there for name in ("drop", "weights", "groups"))
        assert len(shown.splitlines()) <= 54, "help fits a screen"


def plan_of(path):
    return prepare(TrainOptions(data=str(path), strength=0.1, batch_size=8))


def test_the_plan_names_columns_that_never_vary(tmp_path):
    (tmp_path / "t.csv").write_text(
        "a,k,l,y\n" + "".join(f"{i},7,same,{i // 2 % 2}\n" for i in range(60))
    )
    assert (
        "The same in every row, so of no use (--drop): 'k', 'l'."
        in plan_of(tmp_path / "t.csv").describe()
    )


def test_what_words_take_in_memory_is_counted_before(tmp_path, monkeypatch):
    (tmp_path / "t.csv").write_text(
        "a,y\n" + "".join(f"w{i % 90},{i // 3 % 2}\n" for i in range(2000))
    )
    monkeypatch.setattr("wdjax.jobs.bound.memory_within_reach", lambda: 700_000)
    with pytest.raises(ValueError, match="and there are .* of memory|needs at least .* of memory"):
        plan_of(tmp_path / "t.csv")
    # 2,000 rows of 90 columns, 0.72 MB; of numbers alone the same rows fit.
    (tmp_path / "n.csv").write_text(
        "a,y\n" + "".join(f"{i % 90},{i // 3 % 2}\n" for i in range(2000))
    )
    plan_of(tmp_path / "n.csv")


def test_columns_that_training_took_for_no_inputs_are_passed_over_silently(table, tmp_path):
    run = str(tmp_path / "run")
    run_train(
        TrainOptions(data=table, strength=0.1, out=run, **ROLES, **SMALL), say=lambda text: None
    )
    said = []
    new = write(tmp_path / "new.csv", [[*row, "x"] for row in rows_of(range(5))], [*HEADER, "more"])
    run_predict(run, new, say=said.append)
    assert said == [f"{new!r}: columns that the model does not know are passed over: 'more'."]


def test_yes_and_no_of_parquet_are_the_words_that_a_csv_has(tmp_path):
    frame = pandas.DataFrame({"old": [True, False, None, True] * 10, "sick": [True, False] * 20})
    for name in ("t.parquet", "t.csv"):
        (frame.to_parquet if name == "t.parquet" else frame.to_csv)(tmp_path / name, index=False)
        data = load_data(tmp_path / name)
        assert data.columns[0].words == ("", "False", "True")
        assert data.inputs[:4, 0].tolist() == [2, 1, 0, 2]
        assert data.class_names == ("False", "True") and data.targets[:2].tolist() == [1, 0]


def test_words_and_numbers_of_parquet_are_read_in_every_form_that_they_are_written_in(tmp_path):
    words, y = ["b", None, "a", "b"] * 5, pyarrow.array([0, 1] * 10)
    forms = [
        pyarrow.array(words, pyarrow.string()),
        pyarrow.array(words, pyarrow.large_string()),
        pyarrow.array(words, pyarrow.string_view()),
        pyarrow.array(words, pyarrow.string()).dictionary_encode(),
    ]
    numbers = [1.5, None, -2.0, 0.25] * 5
    decimals = [None if x is None else decimal.Decimal(str(x)) for x in numbers]
    forms += [pyarrow.array(numbers), pyarrow.array(decimals), pyarrow.array(numbers, "float32")]
    for form in forms:
        pyarrow.parquet.write_table(pyarrow.table({"a": form, "y": y}), tmp_path / "t.parquet")
        data = load_data(tmp_path / "t.parquet")
        is_words = data.columns[0].words == ("", "a", "b")
        assert data.inputs[:4, 0].tolist() == ([2, 0, 1, 2] if is_words else [1.5, HOLE, -2, 0.25])
    for odd in ([[1, 2]] * 20, [{"q": 1}] * 20, [b"a"] * 20):
        table = pyarrow.table({"a": pyarrow.array(odd), "y": y})
        pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
        with pytest.raises(ValueError, match="'a' holds .* neither numbers nor words.*--drop"):
            load_data(tmp_path / "t.parquet")
