"""`wdjax predict`: columns by their names, whatever their order; nothing lost in the writing."""

import csv
import io
import json
import pathlib
import shutil

import numpy as np
import pytest
from sealing import vouch_for_params

from wdjax.cli import main
from wdjax.data.texts import text_cell
from wdjax.jobs import TrainOptions, load_predictor, run_predict, run_train
from wdjax.jobs.predict import Predictor, _as_csv
from wdjax.jobs.results import write_json

COLUMNS = ("height, cm", "bréadth", 'the "depth"', "weight")
CLASSES = ("a, b", 'the "third"', "é")


def rows_of(seed=0, number=60):
    """Rows that a straight line tells apart, the first column most of all."""
    rng = np.random.default_rng(seed)
    label = np.arange(number) % 3
    x = rng.normal(size=(number, 4))
    x[:, 0] += 6 * label
    return x, label


def write(path, header, columns):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if header is not None:
            writer.writerow(header)
        writer.writerows(zip(*columns, strict=True))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on named columns, the target in the middle: `(folder, inputs, probabilities)`."""
    folder = tmp_path_factory.mktemp("trained")
    x, label = rows_of()
    words = [CLASSES[c] for c in label]
    header = (*COLUMNS[:2], "kind", *COLUMNS[2:])
    write(folder / "train.csv", header, [x[:, 0], x[:, 1], words, x[:, 2], x[:, 3]])
    options = TrainOptions(
        data=str(folder / "train.csv"),
        strength=0.0,
        target="kind",
        epochs=30,
        batch_size=16,
        learning_rate=0.02,
        out=str(folder / "run"),
        devices=1,
    )
    run_train(options, say=lambda text: None)
    x, _ = rows_of(seed=1, number=20)
    return folder / "run", x, load_predictor(folder / "run")(x)


def predict(trained, tmp_path, header, columns, name="new.csv"):
    """`(table of what was written, what was said)`."""
    write(tmp_path / name, header, columns)
    said = []
    out = str(tmp_path / "out.csv")
    path = run_predict(str(trained[0]), str(tmp_path / name), out=out, say=said.append)
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file)), " ".join(said)


def probabilities(table):
    return np.array([row[1:] for row in table[1:]]).astype(np.float32)


def test_the_results_hold_the_names_of_columns_target_and_classes(trained):
    data = json.loads((trained[0] / "results.json").read_text())["data"]
    assert data["column_names"] == list(COLUMNS) and data["target_name"] == "kind"
    assert data["class_names"] == sorted(CLASSES)
    assert load_predictor(trained[0]).column_names == COLUMNS


def test_predictions_are_written_to_the_last_bit_under_the_classes_names(trained, tmp_path):
    table, said = predict(trained, tmp_path, COLUMNS, trained[1].T)
    assert table[0] == ["prediction", *(f"probability of {name}" for name in sorted(CLASSES))]
    written = np.array([row[1:] for row in table[1:]]).astype(np.float32)
    np.testing.assert_array_equal(written, trained[2])
    assert {row[0] for row in table[1:]} == set(CLASSES) and said == ""


@pytest.mark.parametrize("order", [(3, 1, 0, 2), (2, 3, 1, 0)])
def test_columns_are_found_by_name_in_any_order(trained, tmp_path, order):
    header, columns = [COLUMNS[i] for i in order], [trained[1][:, i] for i in order]
    table, said = predict(trained, tmp_path, header, columns)
    np.testing.assert_array_equal(probabilities(table), trained[2])
    assert said == ""


@pytest.mark.parametrize("place", [0, 2, 4])
def test_other_columns_are_passed_over_and_named_the_targets_silently(trained, tmp_path, place):
    """Their cells are never read: they may hold words."""
    header, columns = [*COLUMNS], [*trained[1].T]
    header.insert(place, "comment")
    columns.insert(place, ["n/a"] * 20)
    table, said = predict(trained, tmp_path, [*header, "kind"], [*columns, ["?"] * 20])
    np.testing.assert_array_equal(probabilities(table), trained[2])
    assert "passed over: 'comment'" in said and "kind" not in said


@pytest.mark.parametrize(
    "header, words",
    [
        (("height, cm", "bréadth", 'the "depth"', "wieght"), r"no column 'weight'.*'wieght'\?"),
        (("height, cm", "bréadth", 'the "depth"'), "no column 'weight'"),
        (("1height", "1bréadth", "1depth", "1weight"), "no column 'height, cm', 'bréadth'"),
        ((*COLUMNS, "weight"), "two columns named 'weight'"),
        (("height, cm", "bréadth", "", "weight"), "no column 'the \"depth\"'"),
    ],
)
def test_a_column_that_is_missing_or_there_twice_is_refused_by_name(
    trained, tmp_path, header, words
):
    columns = [trained[1][:, i % 4] for i in range(len(header))]
    with pytest.raises(ValueError, match=words):
        predict(trained, tmp_path, header, columns)


def test_a_name_written_in_other_code_points_is_the_same_name(trained, tmp_path):
    header = [name.replace("é", "e\u0301") for name in COLUMNS]
    table, _ = predict(trained, tmp_path, header, trained[1].T)
    np.testing.assert_array_equal(probabilities(table), trained[2])


def test_without_a_header_columns_are_taken_in_order_and_that_is_said(trained, tmp_path):
    table, said = predict(trained, tmp_path, None, trained[1].T)
    np.testing.assert_array_equal(probabilities(table), trained[2])
    assert "no header" in said and "in the order of the training data: 'height, cm', " in said
    with pytest.raises(ValueError, match="5 columns.* 4"):
        predict(trained, tmp_path, None, [*trained[1].T, np.zeros(20)])


def test_an_npz_has_no_names_so_its_columns_are_taken_in_order(trained, tmp_path):
    np.savez(tmp_path / "new.npz", inputs=trained[1])
    said = []
    out = str(tmp_path / "out.csv")
    path = run_predict(str(trained[0]), str(tmp_path / "new.npz"), out=out, say=said.append)
    with open(path, newline="", encoding="utf-8") as file:
        np.testing.assert_array_equal(probabilities(list(csv.reader(file))), trained[2])
    assert "in the order of the training data" in said[0]


def test_a_scalar_or_ragged_rows_are_no_inputs(trained):
    predictor = load_predictor(trained[0])
    with pytest.raises(ValueError, match="`inputs` must have a leading axis of examples"):
        predictor(3.0)
    with pytest.raises(ValueError, match="`inputs` must be one array, every row of one shape"):
        predictor([[1.0, 2.0], [3.0]])


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda arrays: arrays.pop("scaling/inputs/scale"), "scaling/inputs/mean"),
        (lambda arrays: arrays.update({"scaling/inputs/mean": np.zeros(1)}), r"shape \(1,\)"),
        (lambda arrays: arrays.pop("head/bias"), "head/bias"),
        (lambda arrays: arrays.update({"head/bias": np.zeros(7)}), "head/bias"),
    ],
)
def test_params_that_are_not_the_models_are_refused_by_name(trained, tmp_path, change, words):
    shutil.copytree(trained[0], tmp_path / "run")
    path = tmp_path / "run" / "params.npz"
    with np.load(path) as archive:
        arrays = dict(archive)
    change(arrays)
    np.savez(path, **arrays)
    vouch_for_params(tmp_path / "run")
    with pytest.raises(ValueError, match=f"params.npz.*{words}"):
        load_predictor(tmp_path / "run")


@pytest.mark.parametrize(
    "save, words",
    [
        (lambda path: np.savez(path, inputs=np.array([{}] * 3)), "not Python objects"),
        (lambda path: np.savez(path, x=np.ones((3, 4))), "no array 'inputs', only x"),
        (lambda path: path.write_text("a,b"), "is no .npz file"),
        (lambda path: np.savez(path, inputs=np.ones((3, 5))), r"\(5,\)"),
        (lambda path: np.savez(path, inputs=np.full((3, 4), np.nan)), "must be finite"),
    ],
)
def test_an_npz_that_cannot_be_read_is_refused_in_words(trained, tmp_path, save, words):
    save(tmp_path / "new.npz")
    with pytest.raises(ValueError, match=words):
        run_predict(str(trained[0]), str(tmp_path / "new.npz"), out=str(tmp_path / "o.csv"))


@pytest.mark.parametrize("cell", ["x", "", "nan"])
def test_a_cell_that_is_no_number_is_refused_by_column_and_line(trained, tmp_path, cell):
    columns = [list(column) for column in trained[1].T]
    columns[3][4] = cell
    with pytest.raises(ValueError, match="column 'weight'.*line 6"):
        predict(trained, tmp_path, COLUMNS, columns)


TWO_OF_ONE_PATH = {
    "params": ({"a/b": 0.0, "a": {"b": 0.0}}, {}, r"path 'a/b', by which the arrays of params.npz"),
    "state": ({"w": 0.0}, {"n/a": 1, "n": {"a": 2}}, "path 'n/a', .*Rename one"),
    "both": ({"model_state/m": 0.0}, {"m": 0.0}, "two arrays 'model_state/m', one of the params"),
}


@pytest.mark.parametrize("of", TWO_OF_ONE_PATH)
def test_two_leaves_of_one_path_are_refused_before_anything_is_trained(tmp_path, of, monkeypatch):
    """`params.npz` names its arrays by path: one would silently take the other's place."""
    params, state, words = TWO_OF_ONE_PATH[of]
    (tmp_path / "my.py").write_text(
        "from wdjax import Model\n"
        "import jax\n"
        f"params, state = jax.tree.map(jax.numpy.asarray, ({params!r}, {state!r}))\n"
        "apply = lambda params, state, x, *, key, train: (x.reshape(len(x), -1)[:, :10], state)\n"
        "make_model = lambda num_outputs: Model(lambda key, x: (params, state), apply)\n"
    )
    monkeypatch.setattr("wdjax.jobs.train.Training", None)
    model, out = f"{tmp_path / 'my.py'}:make_model", str(tmp_path / "out")
    with pytest.raises(ValueError, match=words):
        run_train(TrainOptions(model=model, out=out))
    assert not (tmp_path / "out").exists()


def test_a_ragged_row_is_refused_by_its_line(trained, tmp_path):
    (tmp_path / "new.csv").write_text('"height, cm",bréadth,"the ""depth""",weight\n1,2,3,4\n1,2\n')
    with pytest.raises(ValueError, match="line 3 has 2 cells"):
        run_predict(str(trained[0]), str(tmp_path / "new.csv"), out=str(tmp_path / "o.csv"))


def test_a_run_that_kept_no_names_takes_columns_by_count_and_no_column_more(trained, tmp_path):
    """A run on arrays, or one of before names were kept."""
    folder = tmp_path / "run"
    shutil.copytree(trained[0], folder)
    results = json.loads((folder / "results.json").read_text())
    del results["data"]["column_names"], results["data"]["target_name"]
    write_json(folder, results)
    old = (folder, *trained[1:])
    table, said = predict(old, tmp_path, COLUMNS, trained[1].T)
    np.testing.assert_array_equal(probabilities(table), trained[2])
    assert "keeps no column names" in said
    target, columns = [*COLUMNS, "kind"], [*trained[1].T, np.zeros(20)]
    table, _ = predict(old, tmp_path, target, columns)
    np.testing.assert_array_equal(probabilities(table), trained[2])
    with pytest.raises(ValueError, match="5 columns.*trained on 4"):
        predict(old, tmp_path, [*COLUMNS, "more"], columns)


def test_a_table_with_named_columns_is_taken_by_name_from_python_too(trained):
    """Anything that has `columns` and gives one by its name: a data frame."""

    class Frame(dict):
        @property
        def columns(self):
            return list(self)

    frame = Frame({name: trained[1][:, i] for i, name in reversed([*enumerate(COLUMNS)])})
    predictor = load_predictor(trained[0])
    np.testing.assert_array_equal(predictor(frame), trained[2])
    del frame["weight"]
    with pytest.raises(ValueError, match="no column 'weight'"):
        predictor(frame)


def test_a_path_that_a_line_cannot_show_is_quoted(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "new.csv", COLUMNS, trained[1].T)
    assert main(["predict", str(trained[0]), "new.csv", "--out", "\t"]) == 0
    assert capsys.readouterr().out == "Wrote '\\t'\n"


def test_the_command_says_on_standard_error_what_it_passed_over(trained, tmp_path, capfd):
    write(tmp_path / "new.csv", ["id", *COLUMNS], [np.arange(20), *trained[1].T])
    arguments = ["predict", str(trained[0]), str(tmp_path / "new.csv"), "--out"]
    assert main([*arguments, str(tmp_path / "o.csv")]) == 0
    printed, told = capfd.readouterr()
    assert printed == f"Wrote {pathlib.Path(tmp_path / 'o.csv')}\n" and "'id'" in told


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b"])
def test_a_class_that_a_spreadsheet_would_run_is_written_behind_an_apostrophe(sign):
    """`=HYPERLINK(...)` in a prediction's cell would be run by whoever opens the file."""
    name = f"{sign}cmd|' /C calc'!A0"
    predictor = Predictor(np.asarray, (1,), "table", "cross_entropy", (name, "dog"), {})
    rows = list(csv.reader(io.StringIO(_as_csv(np.eye(2), predictor), newline="")))
    assert rows[1:] == [[f"'{name}", "1.0", "0.0"], ["dog", "0.0", "1.0"]]
    assert rows[0] == ["prediction", f"probability of {name}", "probability of dog"]


@pytest.mark.parametrize("number", ["-1", "+2.5", "-1e-3", "7", "-inf"])
def test_numbers_and_classes_called_by_numbers_stay_as_they_are(number):
    assert text_cell(number) == number
    predictor = Predictor(np.asarray, (1,), "table", "squared_error", (), {})
    text = _as_csv(np.array([-1.5, 2.0], np.float32), predictor)
    assert text == "prediction\n-1.5\n2.0\n"


def test_every_name_of_a_class_is_read_back_by_the_rule_that_is_written_down():
    names = ["=a", "'=a", "''=a", "a", "'a", "-1", "'-1", "-1-1", "", "'", "\t", "@", "a=b", "+x"]
    cells = [text_cell(name) for name in names]
    assert len(set(cells)) == len(names)
    signs = tuple("=+-@\t\r\n")
    back = [c[1:] if c[:1] == "'" and c.lstrip("'").startswith(signs) else c for c in cells]
    assert back == names
