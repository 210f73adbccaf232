"""Data in memory: what is loaded, what is refused, and in which words."""

import csv
import hashlib
import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import datasets
from sklearn.model_selection import train_test_split

from wdjax.data import (
    Dataset,
    add_label_noise,
    as_images_32,
    check_folds,
    hash_of,
    load_data,
    make_dataset,
    shipped,
    split_off_test,
    take,
    to_batch,
)
from wdjax.data.shipped import CLASS_SETS, NUMBER_SETS
from wdjax.data.split import draw_test_rows
from wdjax.data.text import encode_text, next_byte_windows, standard_library_source

TABLE = np.arange(12.0).reshape(6, 2)
LABELS = np.array([0, 1, 2, 0, 1, 2])


# ------------------------------------------------------------------------- what is loaded


def test_digits_are_scikit_learns_images_between_zero_and_one():
    digits = load_data("digits")
    assert digits.inputs.shape == (1797, 8, 8, 1) and digits.inputs.dtype == np.float32
    assert digits.inputs.min() == 0.0 and digits.inputs.max() == 1.0
    np.testing.assert_array_equal(digits.inputs.reshape(1797, 64) * 16, datasets.load_digits().data)
    np.testing.assert_array_equal(digits.targets, datasets.load_digits().target)
    assert (digits.kind, digits.num_outputs, digits.targets.dtype) == ("image", 10, np.int32)


@pytest.mark.parametrize("name", [name for name in CLASS_SETS if name != "digits"])
def test_shipped_tables_keep_every_row_column_and_class_name(name):
    loaded, source = load_data(name), getattr(datasets, f"load_{name}")()
    np.testing.assert_array_equal(loaded.inputs, source.data.astype(np.float32))
    assert loaded.kind == "table" and loaded.num_outputs == len(source.target_names)
    assert loaded.class_names == tuple(source.target_names)


@pytest.mark.parametrize("name", [*CLASS_SETS, *NUMBER_SETS])
def test_shipped_files_hold_what_scikit_learns_loaders_give(name, monkeypatch):
    """And where the files are not, the loaders are asked."""
    read = shipped.read_shipped(name)
    monkeypatch.setitem(shipped._FILES, name, "moved.csv")
    asked = shipped.read_shipped(name)
    for ours, theirs in zip(read[:2], asked[:2], strict=True):
        np.testing.assert_array_equal(ours, theirs, strict=True)
    assert read[2] == asked[2]


def test_diabetes_is_for_regression_in_raw_units():
    diabetes = load_data("diabetes", loss="squared_error")
    assert diabetes.inputs.shape == (442, 10) and diabetes.inputs[0, 0] == 59.0
    assert diabetes.targets.shape == (442,) and diabetes.targets.dtype == np.float32
    assert diabetes.num_outputs == 1


def test_an_npz_file_gives_back_its_arrays(tmp_path):
    np.savez(tmp_path / "my.npz", inputs=TABLE, targets=LABELS)
    data = load_data(tmp_path / "my.npz")
    np.testing.assert_array_equal(data.inputs, TABLE)
    np.testing.assert_array_equal(data.targets, LABELS)
    assert (data.name, data.kind, data.num_outputs) == ("my", "table", 3)


def test_bytes_of_an_image_are_divided_by_255_and_get_a_channel_axis():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 4), dtype=np.uint8)
    data = make_dataset(pixels, LABELS)
    assert data.kind == "image" and data.inputs.shape == (6, 5, 4, 1)
    np.testing.assert_allclose(data.inputs[..., 0], pixels / 255, rtol=1e-7)


def test_bytes_of_a_table_are_numbers_and_stay_as_they_are():
    data = make_dataset(TABLE.astype(np.uint8), LABELS)
    np.testing.assert_array_equal(data.inputs, TABLE)


def test_one_axis_of_inputs_is_one_column():
    assert make_dataset(np.arange(6.0), LABELS).inputs.shape == (6, 1)


def test_a_csv_file_takes_its_last_column_or_the_named_one_as_target(tmp_path):
    path = tmp_path / "my.csv"
    path.write_text("\ufeffa, b,y\n1,0.5,0\n2,1.5,1\n\n3,-2e1,1\n")
    data = load_data(path)
    np.testing.assert_array_equal(data.inputs, np.array([[1, 0.5], [2, 1.5], [3, -20]]))
    np.testing.assert_array_equal(data.targets, [0, 1, 1])
    data = load_data(path, target="b", loss="squared_error")
    np.testing.assert_array_equal(data.inputs, [[1, 0], [2, 1], [3, 1]])
    np.testing.assert_array_equal(data.targets, np.array([0.5, 1.5, -20], np.float32))


def test_words_become_labels_in_sorted_order_and_are_remembered(tmp_path):
    path = tmp_path / "pets.csv"
    path.write_text('age,pet\n1,dog\n2,"cat"\n3,newt\n4,cat\n')
    data = load_data(path)
    np.testing.assert_array_equal(data.targets, [1, 0, 2, 0])
    assert data.class_names == ("cat", "dog", "newt") and data.num_outputs == 3
    np.savez(tmp_path / "pets.npz", inputs=data.inputs, targets=["dog", "cat", "newt", "cat"])
    np.testing.assert_array_equal(load_data(tmp_path / "pets.npz").targets, [1, 0, 2, 0])


def test_one_column_of_regression_targets_is_the_same_as_none():
    data = make_dataset(TABLE, TABLE[:, :1], loss="squared_error")
    np.testing.assert_array_equal(data.targets, TABLE[:, 0])
    assert make_dataset(TABLE, TABLE, loss="squared_error").num_outputs == 2


def test_texts_are_cut_or_padded_with_zeros_to_one_length():
    tokens = encode_text(["aé", b"abcdef", ""], 4)
    np.testing.assert_array_equal(tokens, [[97, 0xC3, 0xA9, 0], [97, 98, 99, 100], [0, 0, 0, 0]])
    assert tokens.dtype == np.int32
    with pytest.raises(ValueError, match="`length` must be >= 1"):
        encode_text(["a"], 0)


@pytest.mark.parametrize("num_bytes", [0, 1, 2, 4, 5, 6, 9])
def test_every_byte_but_the_first_is_to_be_predicted_exactly_once(num_bytes):
    text = bytes(range(1, num_bytes + 1))
    inputs, targets, weights = next_byte_windows([text], length=4)
    assert inputs.shape == targets.shape == weights.shape == (-(-max(num_bytes - 1, 0) // 4), 4)
    assert bytes(targets[weights > 0].astype(np.uint8)) == text[1:]
    assert bytes(inputs[weights > 0].astype(np.uint8)) == text[:-1]
    assert not targets[weights == 0].any()


def test_the_standard_librarys_source_is_a_language_to_learn():
    data = load_data("stdlib", length=512)
    assert data.inputs.shape == data.targets.shape == data.weights.shape
    assert (data.inputs.shape[1], data.num_outputs, data.kind) == (512, 256, "text")
    texts = standard_library_source()
    assert data.weights.sum() == sum(len(text) - 1 for text in texts if text)
    assert Path(inspect.getsourcefile(csv)).read_bytes() in texts
    batch = to_batch(take(data, np.arange(2)))
    assert batch.weights.shape == (2, 512)
    assert hash_of(load_data("stdlib", length=512)) == hash_of(data)


# ------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("inputs", "targets", "words"),
    [
        (TABLE[:0], LABELS[:0], "no examples"),
        (TABLE[:5], LABELS, "`inputs` has 5 examples and `targets` 6"),
        (TABLE, LABELS - 1, "labels 0..1, got -1 at row 0; renumber"),
        (TABLE, LABELS + 1, r"goes up to 3, but no example has label 0.*renumber.*\[1\].$"),
        (
            np.ones((30, 2)),
            7 * np.arange(30),
            "renumber.*30 different values.*--loss squared_error",
        ),
        (np.ones((30, 2)), np.arange(30) - 5, "labels 0..24, got -5.*--loss squared_error"),
        (TABLE, LABELS * 10**6, "goes up to 2000000, but no example has label 1"),
        (TABLE, LABELS + 0.5, r"integer labels.*float64 \(0.5 first\).*squared_error"),
        (TABLE, LABELS * 0, "a single class"),
        (TABLE, np.eye(6, dtype=int), r"argmax\(axis=1\)"),
        (np.where(TABLE == 7, np.nan, TABLE), LABELS, "got nan at row 3, column 1"),
        (np.where(TABLE == 2, -np.inf, TABLE), LABELS, "got -inf at row 1, column 0"),
        (TABLE * 1e39, LABELS, "must be finite, got inf at row 0, column 1"),
        (TABLE.astype(object), LABELS, "`inputs` holds Python objects"),
        (TABLE, LABELS.astype(object), "`targets` holds Python objects"),
        (TABLE.astype(str), LABELS, "`inputs` must be real numbers"),
        (TABLE * 1j, LABELS, "`inputs` must be real numbers"),
        (TABLE.reshape(6, 2, 1, 1, 1), LABELS, r"has shape \(6, 2, 1, 1, 1\)"),
        (TABLE[:, :0], LABELS, "at least one column"),
        ([[1.0, 2.0], [3.0]], [0, 1], "every row of one shape"),
    ],
)
def test_arrays_that_no_run_can_use_are_refused_in_words(inputs, targets, words):
    with pytest.raises(ValueError, match=words):
        make_dataset(inputs, targets)


def test_regression_targets_must_be_finite_numbers():
    with pytest.raises(ValueError, match="`targets` must be finite, got nan at row 1"):
        make_dataset(TABLE[:2], [1.0, np.nan], loss="squared_error")
    with pytest.raises(ValueError, match="use loss cross_entropy for classes"):
        make_dataset(TABLE[:2], ["a", "b"], loss="squared_error")


def test_a_known_number_of_classes_bounds_the_labels_and_forgives_absent_ones():
    assert make_dataset(TABLE, LABELS, num_outputs=5).num_outputs == 5
    with pytest.raises(ValueError, match=r"labels 0\.\.1, got 2 at row 2"):
        make_dataset(TABLE, LABELS, num_outputs=2)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("digit", {}, "'digit' is neither a data set.*Did you mean 'digits'"),
        ("digits", {"loss": "squared"}, "Did you mean 'squared_error'"),
        ("digits", {"loss": "squared_error"}, "targets are classes; use cross_entropy"),
        ("diabetes", {}, "targets are numbers; use squared_error"),
        ("digits", {"target": "y"}, r"only to a table \(.csv, .parquet\), whose column"),
        ("iris", {"download": True}, "`download` = True does not apply.*only to a TFDS set"),
        ("iris", {"data_dir": "here"}, "`data_dir` = 'here' does not apply"),
        ("iris", {"length": 5}, "`length` = 5 does not apply.*only to texts"),
        ("iris", {"length": 0}, "`length` must be >= 1, got length=0"),
        ("stdlib", {"length": 0}, "`length` must be >= 1, got length=0"),
        ("stdlib", {"loss": "squared_error"}, "targets are bytes; use cross_entropy"),
        ("nowhere/my.npz", {}, "'nowhere/my.npz' does not exist"),
        ("nowhere/my.csv", {}, "'nowhere/my.csv' does not exist"),
        ("my.xlsx", {}, "neither a data set.*ends in .npz, .csv, .csv.gz or .parquet"),
    ],
)
def test_unknown_data_are_refused_with_what_is_known(name, options, words):
    with pytest.raises(ValueError, match=words):
        load_data(name, **options)


def test_a_missing_file_names_its_nearest_neighbour(tmp_path):
    np.savez(tmp_path / "train.npz", inputs=TABLE, targets=LABELS)
    with pytest.raises(ValueError, match=r"does not exist. Did you mean 'train.npz'"):
        load_data(tmp_path / "trian.npz")


def test_an_npz_without_its_keys_with_objects_or_damaged_is_refused(tmp_path):
    path = tmp_path / "my.npz"
    np.savez(path, inputs=TABLE, labels=LABELS)
    with pytest.raises(ValueError, match="has no array 'targets', only inputs, labels"):
        load_data(path)
    np.savez(path, inputs=TABLE, targets=np.array([{}] * 6))
    with pytest.raises(ValueError, match="'targets' cannot be read.*not Python objects"):
        load_data(path)
    np.savez(path, inputs=TABLE, targets=LABELS)
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + b"\xff" * 8 + whole[108:])
    with pytest.raises(ValueError, match="cannot be read"):
        load_data(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is no .npz file; save it with np.savez"):
        load_data(path)


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("", {}, "is empty; give a header"),
        ("a,y\n", {}, "is empty; give a header"),
        ("1,2\n3,4\n", {}, "first line must name the columns"),
        ("y\n1\n", {}, "has one column"),
        ("a,a,y\n1,2,0\n", {}, "two columns named 'a'"),
        ("a,y\n1,0\n2\n", {}, "line 3 has 1 cells and the header 2"),
        ("a,y\n1,0\n", {"target": "z"}, "'z' is no column of"),
        ("age,pet\n1,0\n", {"target": "aeg"}, "Did you mean 'age'"),
        ("n,y\n5,1\nsix,0\n", {}, "column 'n' must hold numbers, got 'six' in line 3, .*--drop"),
        ("a,b,y\n1,,0\n", {}, "column 'b' holds nothing at all; leave it out"),
        ("a,y\nnan,0\n", {}, "column 'a' holds nothing at all; leave it out"),
        ("a,y\n1,0\ninf,0\n", {}, "column 'a' must be finite, got inf in line 3"),
        ("a,y\n1,0\n2,\n", {"loss": "squared_error"}, "'y' must hold .*got nothing in line 3"),
        ("a,y\n1,0\n2,-inf\n", {"loss": "squared_error"}, "column 'y' must be finite"),
        ("a,y\n1,0\n2,0.5\n", {}, "'y' must hold labels.*got 0.5 in line 3.*squared_error"),
        ("a,y\n1,0\n2,\n", {}, "'y' has no label in line 3"),
        ("a,y\n1,dog\n", {"loss": "squared_error"}, "'y' must hold numbers, got 'dog'"),
        ("a,y\n1,-1\n2,0\n", {}, "got -1 at row 0"),
    ],
)
def test_a_csv_file_is_refused_by_file_column_and_line(tmp_path, text, options, words):
    path = tmp_path / "my.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        load_data(path, **options)


def test_a_csv_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "my.csv").write_bytes(b"a,y\n\xff\xfe,0\n")
    with pytest.raises(ValueError, match="cannot be read as UTF-8"):
        load_data(tmp_path / "my.csv")


# ------------------------------------------------------------------ what is done with it


def test_the_test_part_is_scikit_learns_stratified_split():
    digits = load_data("digits")
    choose, test = split_off_test(digits, fraction=0.2, seed=3)
    rows = np.arange(1797)
    expected = train_test_split(rows, test_size=0.2, random_state=3, stratify=digits.targets)
    np.testing.assert_array_equal(test.inputs, digits.inputs[np.sort(expected[1])])
    np.testing.assert_array_equal(choose.targets, digits.targets[np.sort(expected[0])])
    shares = np.bincount(digits.targets) * len(test.targets) / 1797
    assert np.abs(np.bincount(test.targets) - shares).max() <= 1


def test_any_split_is_scikit_learns():
    """Classes of any sizes and numbers, with ties between the remainders, and none."""
    random = np.random.default_rng(0)
    for _ in range(100):
        classes = np.repeat(np.arange(k := random.integers(2, 6)), random.integers(2, 12, k))
        n, seed = len(classes), int(random.integers(2**32))
        num_test = int(random.integers(k, n - k + 1))
        for stratify in (random.permutation(classes), None):
            expected = train_test_split(
                np.arange(n), test_size=num_test, random_state=seed, stratify=stratify
            )[1]
            found = draw_test_rows(n, num_test, seed, stratify)
            np.testing.assert_array_equal(found, np.sort(expected))


def test_another_seed_is_another_test_part_and_the_same_seed_the_same():
    wine = load_data("wine")
    hashes = [hash_of(split_off_test(wine, seed=seed)[1]) for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_regression_data_are_split_at_random():
    choose, test = split_off_test(load_data("diabetes", loss="squared_error"), fraction=0.25)
    assert (len(choose.inputs), len(test.inputs)) == (331, 111)


@pytest.mark.parametrize(
    ("fraction", "options", "words"),
    [
        (0.0, {}, "`fraction` must be finite and > 0"),
        (1.5, {}, "<= 1"),
        (0.95, {"stratify": False}, "leaves 0 of 6 examples"),
        (0.3, {}, "leaves 2 test and 4 choosing examples for 3 classes"),
        (0.3, {"seed": -1}, "`seed` must be between 0"),
    ],
)
def test_a_split_that_cannot_be_is_refused(fraction, options, words):
    with pytest.raises(ValueError, match=words):
        split_off_test(make_dataset(TABLE, LABELS), fraction=fraction, **options)


def test_a_class_of_one_cannot_be_in_both_parts():
    data = make_dataset(TABLE, ["cat", "cat", "cat", "dog", "cat", "cat"])
    with pytest.raises(ValueError, match=r"class 1 \(dog\) .* has 1 examples and needs 2"):
        split_off_test(data)


def test_folds_are_bounded_by_the_smallest_class_where_stratified():
    data = make_dataset(TABLE, LABELS)
    check_folds(data, 2)
    check_folds(data, 6, stratify=False)
    with pytest.raises(ValueError, match="class 0 .* has 2 examples and needs 3"):
        check_folds(data, 3)
    with pytest.raises(ValueError, match="`folds` must be between 2 and 6, got folds=7"):
        check_folds(data, 7, stratify=False)
    with pytest.raises(ValueError, match="got folds=1"):
        check_folds(data, 1)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 1.0])
def test_label_noise_changes_exactly_that_share_of_labels_and_nothing_else(fraction):
    digits = load_data("digits")
    noisy = add_label_noise(digits, fraction, seed=5)
    assert np.sum(noisy.targets != digits.targets) == round(fraction * 1797)
    assert noisy.targets.min() >= 0 and noisy.targets.max() <= 9
    assert noisy.inputs is digits.inputs


def test_wrong_labels_are_uniform_over_the_other_classes():
    """Chi-squared over 3 equal cells (2 degrees of freedom): 99.9 % of draws are below 13.8."""
    data = make_dataset(np.zeros(9999 * 4), np.arange(9999 * 4) % 4)
    noisy = add_label_noise(data, 1.0, seed=0)
    shift = np.bincount((noisy.targets - data.targets) % 4, minlength=4)
    assert shift[0] == 0
    expected = 9999 * 4 / 3
    assert np.sum((shift[1:] - expected) ** 2 / expected) < 13.8


def test_label_noise_needs_labels_and_a_share():
    diabetes = load_data("diabetes", loss="squared_error")
    with pytest.raises(ValueError, match="needs one label of two or more classes"):
        add_label_noise(diabetes, 0.1, seed=0)
    with pytest.raises(ValueError, match="`label_noise` must be finite and >= 0 and <= 1"):
        add_label_noise(load_data("iris"), 1.1, seed=0)


def test_digits_become_the_articles_images_of_32_by_32_by_3():
    """Linear interpolation between pixel centres, flat beyond the outermost: NumPy's interp."""
    digits = take(load_data("digits"), np.arange(3))
    images = as_images_32(digits)
    assert images.inputs.shape == (3, 32, 32, 3) and images.inputs.dtype == np.float32
    centres = (np.arange(32) + 0.5) / 4 - 0.5
    weights = np.stack([np.interp(centres, np.arange(8), row) for row in np.eye(8)], axis=1)
    expected = np.einsum("ir,jc,nrc->nij", weights, weights, digits.inputs[..., 0])
    for channel in range(3):
        np.testing.assert_allclose(images.inputs[..., channel], expected, atol=1e-6)


def test_images_of_the_right_size_are_untouched_and_tables_refused():
    images = make_dataset(np.zeros((2, 32, 32, 3)), [0, 1])
    assert as_images_32(images) is images
    with pytest.raises(ValueError, match=r"'iris' holds table data.*such as the MLP"):
        as_images_32(load_data("iris"))
    with pytest.raises(ValueError, match=r"shape \(2, 2, 4\)"):
        as_images_32(make_dataset(np.zeros((2, 2, 2, 4)), [0, 1]))


def test_a_batch_counts_every_example_fully_unless_the_data_say_otherwise():
    data = make_dataset(TABLE, LABELS)
    batch = to_batch(data)
    assert isinstance(batch.inputs, jax.Array) and batch.inputs.dtype == jnp.float32
    np.testing.assert_array_equal(batch.weights, np.ones(6))
    weighted = data._replace(weights=np.arange(6, dtype=np.float32))
    np.testing.assert_array_equal(to_batch(take(weighted, np.array([4, 2]))).weights, [4, 2])


def test_the_hash_is_that_of_the_bytes_and_sees_every_one():
    data = make_dataset(TABLE, LABELS)
    parts = (b"<f4(6, 2)", data.inputs.tobytes(), b"<i4(6,)", data.targets.tobytes())
    assert hash_of(data) == hashlib.sha256(b"".join(parts)).hexdigest()
    inputs = data.inputs.copy()
    inputs[5, 1] = np.nextafter(inputs[5, 1], np.float32(np.inf))
    assert hash_of(data._replace(inputs=inputs)) != hash_of(data)
    assert hash_of(data._replace(name="other")) == hash_of(data)


def test_a_data_set_can_be_built_by_hand():
    data = Dataset("mine", TABLE.astype(np.float32), LABELS.astype(np.int32), "table", 3)
    assert data.class_names == () and data.weights is None


# How much each example counts


def weighted_file(tmp_path, weights, **arrays):
    x, y = np.arange(12.0).reshape(6, 2), np.array([0, 1, 0, 1, 0, 1])
    np.savez(tmp_path / "w.npz", **{"inputs": x, "targets": y, "weights": weights, **arrays})
    return tmp_path / "w.npz"


@pytest.mark.parametrize("weights", [[1, 2, 3, 1, 2, 3], np.array([1, 2, 3, 1, 2, 3], np.uint8)])
def test_the_weights_of_an_npz_file_are_those_of_its_examples(tmp_path, weights):
    dataset = load_data(weighted_file(tmp_path, weights))
    assert dataset.weights.dtype == np.float32
    np.testing.assert_array_equal(dataset.weights, [1, 2, 3, 1, 2, 3])
    np.testing.assert_array_equal(to_batch(dataset).weights, dataset.weights)
    choose, test = split_off_test(dataset, fraction=1 / 3)
    for part in (choose, test):
        rows = (part.inputs[:, 0] / 2).astype(int)
        np.testing.assert_array_equal(part.weights, dataset.weights[rows])


def test_rows_of_weight_zero_are_left_out_unread(tmp_path):
    """They may hold NaN and any label: no example is made of them."""
    x, y = np.arange(12.0).reshape(6, 2), np.array([-1, 1, 0, 1, 0, 99])
    x[0] = np.nan
    path = weighted_file(tmp_path, [0, 1, 1, 1, 1, 0], inputs=x, targets=y)
    dataset = load_data(path)
    np.testing.assert_array_equal(dataset.inputs, x[1:5])
    np.testing.assert_array_equal(dataset.targets, y[1:5])
    assert dataset.num_left_out == 2 and dataset.num_outputs == 2
    assert load_data(weighted_file(tmp_path, np.ones(6))).num_left_out == 0


@pytest.mark.parametrize(
    "weights, words",
    [
        (np.ones(5), r"`weights` has shape \(5,\); give one weight per example, shape \(6,\)"),
        (np.ones((6, 1)), r"`weights` has shape \(6, 1\)"),
        ([1, 1, -0.5, 1, 1, 1], "`weights` must be finite and >= 0, got -0.5 in row 2"),
        ([1, np.nan, 1, 1, 1, 1], "`weights` must be finite and >= 0, got nan in row 1"),
        ([1, 1, 1, 1, 1, 1e300], "`weights` must be finite and >= 0, got inf in row 5"),
        (np.zeros(6), "`weights` are all zero"),
        (["1"] * 6, "`weights` must be real numbers, got dtype <U1"),
        (np.array([{}] * 6), "array 'weights' cannot be read.*not Python objects"),
    ],
)
def test_weights_that_cannot_count_are_refused(tmp_path, weights, words):
    with pytest.raises(ValueError, match=words):
        load_data(weighted_file(tmp_path, weights))
