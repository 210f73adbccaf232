"""Words and holes of a table: as scikit-learn encodes them on each training part, and no wider."""

import csv
import gzip
import subprocess
import sys

import jax
import numpy as np
import pandas
import pytest
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder

from wdjax.cli import main
from wdjax.data.encoding import (
    HOLE,
    UNSEEN,
    Encoding,
    InputColumn,
    apply_encoding,
    encode_columns,
    learn_encoding,
)
from wdjax.data.load import load_choose_and_test, load_data
from wdjax.jobs import TrainOptions, load_predictor, run_predict, run_train
from wdjax.jobs.setup import prepare


def draw(num=400, num_words=150, seed=0):
    """Two columns of numbers, one with holes, one column of few words and one of many."""
    rng = np.random.default_rng(seed)
    numbers = rng.normal(size=(num, 2))
    numbers[rng.random(num) < 0.2, 1] = np.nan
    few = np.array(["", "red", "green"])[rng.integers(0, 3, num)]
    # Zipf's law, so that frequencies differ; every word is there at least once.
    p = 1 / np.arange(1, num_words + 1)
    drawn = rng.choice(num_words, num - num_words, p=p / p.sum())
    which = rng.permutation(np.concatenate([np.arange(num_words), drawn]))
    return numbers, few, np.array([f"w{i:03}" for i in which])


def columns_of(few, many, holes=True):
    return (
        InputColumn("a"),
        InputColumn("b", None, holes),
        InputColumn("few", tuple(np.unique(few).tolist())),
        InputColumn("many", tuple(np.unique(many).tolist())),
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_is_what_scikit_learn_learns_of_the_training_part(seed):
    numbers, few, many = draw(seed=seed)
    columns = columns_of(few, many)
    raw, unseen = encode_columns(columns, [numbers[:, 0], numbers[:, 1], few, many])
    assert not unseen
    rng = np.random.default_rng(seed)
    train = rng.permutation(len(raw))[:330]
    valid = np.setdiff1d(np.arange(len(raw)), train)
    encoding = Encoding.of(columns)
    learnt = learn_encoding(encoding, raw[train], np.ones(len(train), np.float32))
    imputer = SimpleImputer(strategy="mean", add_indicator=True).fit(numbers[train])
    one_hot = OneHotEncoder(sparse_output=False, handle_unknown="ignore").fit(few[train, None])
    # With the others, 101 columns: the 100 most frequent words have one each.
    most = OneHotEncoder(
        sparse_output=False, max_categories=101, handle_unknown="infrequent_if_exist"
    ).fit(many[train, None])
    assert len(np.unique(many[train])) > 101
    for rows in (train, valid):
        expected = np.concatenate(
            [
                imputer.transform(numbers[rows]),
                one_hot.transform(few[rows, None]),
                most.transform(many[rows, None]),
            ],
            axis=1,
        )
        found = apply_encoding(encoding, learnt, raw[rows])
        assert found.shape == (len(rows), encoding.width) == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_rows_of_weight_zero_teach_nothing():
    numbers, few, many = draw()
    columns = columns_of(few, many)
    raw, _ = encode_columns(columns, [numbers[:, 0], numbers[:, 1], few, many])
    encoding, weights = Encoding.of(columns), np.ones(len(raw), np.float32)
    weights[300:] = 0
    other = raw.copy()
    other[300:] = np.random.default_rng(1).permuted(raw[300:], axis=0)
    other[300:, 0] = 1e6
    learn = jax.jit(learn_encoding, static_argnums=0)
    for a, b in zip(learn(encoding, raw, weights), learn(encoding, other, weights), strict=True):
        np.testing.assert_array_equal(a, b)
    alone = learn(encoding, raw[:300], weights[:300])
    np.testing.assert_allclose(learn(encoding, raw, weights).fill, alone.fill, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(learn(encoding, raw, weights).places, alone.places)


def test_a_mean_is_weighted_and_a_part_without_a_number_has_mean_zero():
    encoding = Encoding.of([InputColumn("a", None, True), InputColumn("b", None, True)])
    inputs = np.array([[1.0, HOLE], [3.0, HOLE], [HOLE, HOLE]], np.float32)
    learnt = learn_encoding(encoding, inputs, np.array([1.0, 3.0, 5.0], np.float32))
    np.testing.assert_allclose(learnt.fill, [(1 + 9) / 4, 0.0])
    np.testing.assert_array_equal(
        apply_encoding(encoding, learnt, inputs), [[1, 0, 0, 1], [3, 0, 0, 1], [2.5, 0, 1, 1]]
    )


def test_an_unseen_word_is_one_of_the_others_or_none():
    few = InputColumn("few", ("a", "b"))
    many = InputColumn("many", tuple(f"w{i:03}" for i in range(150)))
    raw, unseen = encode_columns([few, many], [np.array(["a", "z"]), np.array(["w000", "new"])])
    np.testing.assert_array_equal(raw, [[0, 0], [UNSEEN, UNSEEN]])
    assert {name: words.tolist() for name, words in unseen.items()} == {
        "few": ["z"],
        "many": ["new"],
    }
    encoding = Encoding.of([few, many])
    learnt = learn_encoding(encoding, raw[:1], np.ones(1, np.float32))
    found = np.asarray(apply_encoding(encoding, learnt, raw))
    assert found.shape == (2, 2 + 101)
    assert found[1, :2].sum() == 0 and found[1, 2:].argmax() == 100
    np.testing.assert_array_equal(found[0, :2], [1, 0])


def test_of_a_hundred_and_one_words_each_has_a_column():
    words = tuple(f"w{i:03}" for i in range(101))
    encoding = Encoding.of([InputColumn("many", words)])
    raw = np.arange(101, dtype=np.float32)[:, None]
    learnt = learn_encoding(encoding, raw, np.ones(101, np.float32))
    np.testing.assert_array_equal(apply_encoding(encoding, learnt, raw), np.eye(101))
    assert Encoding.of([InputColumn("many", (*words, "x"))]).width == 101


# ---------------------------------------------------------------------------------- files


def write_csv(path, delimiter=",", quote=csv.QUOTE_MINIMAL, decimal="."):
    """A table of 120 rows: a number, a number with holes, words; the class depends on all."""
    rng = np.random.default_rng(0)
    size, age = rng.normal(size=120), rng.normal(size=120)
    city = np.array(["Oslo", "Paris; old", "Rome, new"])[rng.integers(0, 3, 120)]
    label = np.where(size + age + 2 * (city == "Oslo") > 0.5, "yes", "no")
    ages = [f"{x:.4f}".replace(".", decimal) for x in age]
    for row in range(0, 120, 9):
        ages[row] = ("", "NA", " nan")[row % 3]
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter, quoting=quote)
        writer.writerow(["size", "age", "city", "y"])
        sizes = (f"{x:.4f}".replace(".", decimal) for x in size)
        writer.writerows(zip(sizes, ages, city, label, strict=True))
    return path


def test_commas_semicolons_tabs_gzip_and_parquet_are_one_table(tmp_path):
    plain = load_data(write_csv(tmp_path / "a.csv"))
    assert [c.words for c in plain.columns] == [None, None, ("Oslo", "Paris; old", "Rome, new")]
    assert [c.holes for c in plain.columns] == [False, True, False]
    assert (plain.inputs == HOLE).sum() == 14 and plain.class_names == ("no", "yes")
    frame = pandas.read_csv(tmp_path / "a.csv", skipinitialspace=True)
    frame.to_parquet(tmp_path / "a.parquet", index=False)
    others = [
        write_csv(tmp_path / "b.csv", ";"),
        write_csv(tmp_path / "c.csv", "\t", csv.QUOTE_ALL),
        write_csv(tmp_path / "d.csv.gz"),
        write_csv(tmp_path / "e.csv", ";", decimal=","),
        tmp_path / "a.parquet",
    ]
    for path in others:
        other = load_data(path)
        np.testing.assert_array_equal(other.inputs, plain.inputs, err_msg=str(path))
        np.testing.assert_array_equal(other.targets, plain.targets)
        assert other.columns == plain.columns and other.class_names == plain.class_names
    assert load_data(tmp_path / "d.csv.gz").name == "d"


def test_a_table_of_numbers_alone_has_nothing_encoded(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 3)) * 10.0 ** rng.integers(-30, 30, (30, 3))
    with open(tmp_path / "n.csv", "w") as file:
        file.write("a,b,c,y\n")
        file.writelines(f"{a!r},{b!r},{c!r},{i % 2}\n" for i, (a, b, c) in enumerate(x.tolist()))
    data = load_data(tmp_path / "n.csv")
    # To the last bit as Python reads them.
    np.testing.assert_array_equal(data.inputs, x.astype(np.float32))
    assert data.encoding is None and prepare_of(tmp_path / "n.csv").recipe.encoding is None


def prepare_of(path, **options):
    return prepare(TrainOptions(data=str(path), strength=0.1, batch_size=8, **options))


@pytest.mark.parametrize(
    "text, words",
    [
        ("a,y\n1,0\ntwo,1\n3,0\n", "'a' must hold numbers, got 'two' in line 3, and 2 of its"),
        ("a,y\n,0\nNA,1\n", "'a' holds nothing at all; leave it out .--drop"),
        ("a;y\n1;0\n2\n", "line 3 has 1 cells and the header 2"),
        ('a;y\n"x"z;0\n', "closing quote is followed by more than a semicolon"),
        ("a,y\n" + "".join(f"u{i},{i % 2}\n" for i in range(200)), "200 different words in 200"),
        ("a,y\nx,0\nz,\n", "'y' has no label in line 3"),
        ("a,y\n1,0\n2,NA\n3,1\n", "'y' has no label in line 3"),
        ("a,y\n1,0\n-3.4028235e38,1\n", "'a' must be finite, got -3.40282e.38 in line 3"),
        ("a,y\n" + "".join(f"u{i % 31},{i % 2}\n" for i in range(60)), "31 different words in 60"),
        ("d,y\nNA,0\n2026-01-31,0\n2026-02-28 10:00,1\n", "'d' holds dates, .*line 3.*--drop"),
        ("d,y\n31/1/26,0\n28/02/26,1\n", "'d' holds dates, such as '28/02/26' in line 3; make num"),
        ("d;y\n31.1.2026;0\n1.2.2026;1\n", "'d' holds dates, such as '1.2.2026' in line 3"),
        ('d,y\n"[1, 2]",0\n"[]",1\n', r"'d' holds lists, such as '\[1, 2\]' in line 2; give"),
        (",a,y\n0,5,0\n1,5,0\n2,6,1\n", "column 1 has no name and counts the rows.*--drop ''"),
    ],
)
def test_what_is_neither_numbers_nor_words_is_refused_by_line(tmp_path, text, words):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        load_data(tmp_path / "t.csv")


def test_broken_gzip_broken_parquet_and_dates_are_refused(tmp_path):
    whole = write_csv(tmp_path / "a.csv.gz").read_bytes()
    (tmp_path / "cut.csv.gz").write_bytes(whole[:-20])
    with pytest.raises(ValueError, match="no whole gzip file .*compress it again"):
        load_data(tmp_path / "cut.csv.gz")
    (tmp_path / "plain.csv.gz").write_text("a,y\n1,0\n")
    with pytest.raises(ValueError, match="no whole gzip file"):
        load_data(tmp_path / "plain.csv.gz")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1" + b"\0" * 40 + b"PAR1")
    with pytest.raises(ValueError, match="cannot be read as Parquet: .*; write it again"):
        load_data(tmp_path / "bad.parquet")
    frame = pandas.DataFrame({"when": pandas.date_range("2026-01-01", periods=4), "y": [0, 1] * 2})
    frame.to_parquet(tmp_path / "dates.parquet")
    with pytest.raises(ValueError, match=r"'when' holds timestamp.* neither numbers.*--drop"):
        load_data(tmp_path / "dates.parquet")
    frame = pandas.DataFrame({"a": [1.0, float("inf")], "y": [0, 1]})
    frame.to_parquet(tmp_path / "inf.parquet")
    with pytest.raises(ValueError, match=r"'a' must be finite, got inf in row 1 \(counted from 0"):
        load_data(tmp_path / "inf.parquet")


def test_words_that_only_look_like_dates_or_ids_are_words(tmp_path):
    (tmp_path / "t.csv").write_text(
        "a,b,c,y\n" + "".join(f"1.2.{i},{i}-7,w{i},{i % 2}\n" for i in range(20))
    )
    assert [len(c.words) for c in load_data(tmp_path / "t.csv").columns] == [20, 20, 20]


def test_an_unnamed_column_that_counts_no_rows_is_a_column(tmp_path):
    (tmp_path / "t.csv").write_text(",a,y\n0,5,0\n2,5,0\n1,6,1\n")
    assert load_data(tmp_path / "t.csv").column_names == ("", "a")
    (tmp_path / "t.csv").write_text(",a,y\n0,5,0\n1,5,0\n2,6,1\n")
    assert load_data(tmp_path / "t.csv", drop=[""]).column_names == ("a",)


def test_a_number_to_predict_that_never_varies_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("a,y\n1,3.5\n2,3.5\n")
    with pytest.raises(ValueError, match="'y' is 3.5 in every row, so there is nothing to predict"):
        load_data(tmp_path / "t.csv", loss="squared_error")
    (tmp_path / "t.csv").write_text("a,y\n1,3.5\n2,4.5\n")
    assert load_data(tmp_path / "t.csv", loss="squared_error").targets.tolist() == [3.5, 4.5]


@pytest.mark.parametrize("named", [False, True])
def test_the_index_of_a_data_frame_is_no_target(tmp_path, named):
    """Parquet has it as the last column, which is the target where none is named."""
    frame = pandas.DataFrame({"a": np.arange(30.0), "y": [0, 1] * 15})
    frame = frame.drop(index=[0, 1, 3, 4, 20])  # No range of numbers: kept as a column.
    if named:
        frame.index.name = "patient"
    frame.to_parquet(tmp_path / "t.parquet")
    data = load_data(tmp_path / "t.parquet", groups="patient" if named else None)
    assert data.target_name == "y" and data.column_names == ("a",)
    assert data.targets.tolist() == frame["y"].tolist() and data.inputs[:2, 0].tolist() == [2, 5]
    if named:
        assert data.groups.tolist() == frame.index.astype(str).tolist()
        whole = load_data(tmp_path / "t.parquet")
        frame.to_csv(tmp_path / "t.csv")
        assert whole.column_names == load_data(tmp_path / "t.csv").column_names == ("patient", "a")


def test_a_word_of_the_test_part_alone_is_unseen_and_holes_keep_their_column(tmp_path):
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame({"c": rng.choice(["x", "y"], 50), "a": rng.normal(size=50)})
    frame["y"] = np.arange(50) % 2
    frame.to_csv(tmp_path / "t.csv", index=False)
    _, test = load_choose_and_test(tmp_path / "t.csv")
    row = np.flatnonzero(np.isclose(frame["a"], test.inputs[3, 1]))[0]
    frame.loc[row, ["c", "a"]] = ["rare", np.nan]
    frame.to_csv(tmp_path / "t.csv", index=False)
    choose, test = load_choose_and_test(tmp_path / "t.csv")
    assert choose.columns == test.columns
    assert choose.columns == (InputColumn("c", ("x", "y")), InputColumn("a", None, True))
    assert test.inputs[3].tolist() == [UNSEEN, HOLE] and (test.inputs == HOLE).sum() == 1
    # The others say what they said.
    for part in (choose, test):
        known = part.inputs[part.inputs[:, 0] >= 0]
        places = [np.abs(frame["a"] - a).argmin() for a in known[:, 1]]
        words = [choose.columns[0].words[int(code)] for code in known[:, 0]]
        assert words == frame["c"].iloc[places].tolist()


# ------------------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("columns")
    path = write_csv(folder / "train.csv")
    told = dict(epochs=40, batch_size=16, learning_rate=0.02, devices=1, target="y")
    options = TrainOptions(data=str(path), strength=0.0, out=str(folder / "run"), **told)
    results = run_train(options, say=lambda text: None)
    return folder, results


def test_a_model_learns_of_words_and_holes(run):
    assert run[1]["refit"]["chosen"]["test_accuracy"][0] > 0.8
    with np.load(run[0] / "run/params.npz") as arrays:
        # Two numbers, one indicator, three words.
        assert arrays["scaling/inputs/mean"].shape == (6,)
        assert arrays["scaling/encoding/fill"].shape == (3,)


def test_words_that_training_did_not_see_are_counted(run, tmp_path):
    (tmp_path / "new.csv").write_text("city,age,size\nOslo,,1\nBonn,0.5,1\nBonn,NA,2\nKiel,1,1\n")
    said = []
    path = run_predict(
        str(run[0] / "run"), str(tmp_path / "new.csv"), out=str(tmp_path / "o.csv"), say=said.append
    )
    assert "'city': 3 cells hold words that training did not see ('Bonn', 'Kiel')" in "".join(said)
    assert "and count as other words" in "".join(said)
    table = pandas.read_csv(path)
    frame = pandas.DataFrame(
        {
            "size": [1, 1, 2, 1],
            "city": ["Oslo", "Bonn", "Bonn", "Kiel"],
            "age": [None, 0.5, None, 1],
        }
    )
    outputs = load_predictor(run[0] / "run")(frame)
    np.testing.assert_allclose(table.iloc[:, 1:], outputs, rtol=1e-6)
    # By hand: the network on the encoded rows, of which the last three have no city.
    with np.load(run[0] / "run/params.npz") as arrays:
        mean, scale = arrays["scaling/inputs/mean"], arrays["scaling/inputs/scale"]
        fill = arrays["scaling/encoding/fill"]
        rows = np.array(
            [
                [1, fill[1], 1, 1, 0, 0],
                [1, 0.5, 0, 0, 0, 0],
                [2, fill[1], 1, 0, 0, 0],
                [1, 1, 0, 0, 0, 0],
            ]
        )
        hidden = (rows - mean) * scale
        names = {n.rsplit("/", 1)[0] for n in arrays if n.endswith("/kernel")}
        layers = sorted(names, key=lambda name: (name == "head", name))
        assert arrays[f"{layers[0]}/kernel"].shape[0] == 6
        for i, layer in enumerate(layers):
            hidden = hidden @ arrays[f"{layer}/kernel"] + arrays[f"{layer}/bias"]
            hidden = np.maximum(hidden, 0) if i < len(layers) - 1 else hidden
    odds = np.exp(hidden - hidden.max(axis=1, keepdims=True))
    np.testing.assert_allclose(outputs, odds / odds.sum(axis=1, keepdims=True), rtol=1e-4)


def test_a_word_where_training_had_numbers_is_refused_by_line(run, tmp_path):
    (tmp_path / "new.csv").write_text("city,age,size\nOslo,1,1\nOslo,1,big\n")
    with pytest.raises(ValueError, match="'size' must hold numbers, got 'big' in line 3"):
        run_predict(str(run[0] / "run"), str(tmp_path / "new.csv"), out=str(tmp_path / "o.csv"))
    (tmp_path / "new.csv").write_text("town,age,size\nOslo,1,1\n")
    with pytest.raises(ValueError, match="no column 'city', which the model was trained on"):
        run_predict(str(run[0] / "run"), str(tmp_path / "new.csv"), out=str(tmp_path / "o.csv"))


def test_columns_without_names_cannot_be_words_or_holes(run, tmp_path):
    """The places of an array's numbers would be taken for those of words."""
    rows = np.array([[1.0, 0.5, 2.0]], np.float32)
    np.savez(tmp_path / "new.npz", inputs=rows)
    with pytest.raises(ValueError, match="must name their columns, .*'size', 'age', 'city'"):
        run_predict(str(run[0] / "run"), str(tmp_path / "new.npz"), out=str(tmp_path / "o.csv"))
    with pytest.raises(ValueError, match="in Python a data frame"):
        load_predictor(run[0] / "run")(rows)


def test_predictions_of_a_compressed_table_are_called_as_it_is(run):
    write_csv(run[0] / "new.csv.gz")
    path = run_predict(str(run[0] / "run"), str(run[0] / "new.csv.gz"), say=lambda text: None)
    assert path.name == "predictions-new.csv"


def test_a_streamed_run_says_that_it_does_not_encode(run, tmp_path, capsys):
    words = f"train --data {run[0] / 'train.csv'} --strength 0 --stream --batch-size 16"
    assert main([*words.split(), "--out", str(tmp_path / "run")]) == 2
    assert "holds words or holes" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("num_words", [1, 25])
def test_a_million_rows_of_fifty_columns_take_less_than_two_gigabytes(tmp_path, num_words):
    code = f"""
import resource
import numpy as np, pyarrow, pyarrow.csv
rng, path = np.random.default_rng(0), {str(tmp_path / "million.csv")!r}
def write():
    columns = {{f"x{{i}}": rng.normal(size=1_000_000).round(6) for i in range({49 - num_words})}}
    words = np.array(["a", "b, c", *(f"some rather long word {{i}}" for i in range(500))])
    columns |= {{f"w{{i}}": words[rng.integers(0, 502, 1_000_000)] for i in range({num_words})}}
    columns["y"] = rng.integers(0, 2, 1_000_000)
    pyarrow.csv.write_csv(pyarrow.table(columns), path)
import multiprocessing
if __name__ == "__main__":
    writer = multiprocessing.get_context("fork").Process(target=write)
    writer.start(), writer.join()
    from wdjax.jobs import TrainOptions
    from wdjax.jobs.setup import prepare
    prepared = prepare(TrainOptions(data=path, strength=0.1))
    assert prepared.choose_data.inputs.shape == (800_000, 49)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 2 * 2**30
