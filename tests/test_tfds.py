"""TFDS sets: real folders, written here, read without TensorFlow; what is damaged is found."""

import importlib.util
import json
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tfds_folders as folders

from wdjax.data import load_choose_and_test, load_data
from wdjax.data.tfds import open_tfds, split_sizes
from wdjax.data.tfrecord import crc32c

PIXELS, LABELS = folders.images(30, (32, 32, 3))
REVIEWS = ["good film", "gut, aber länger als die Länge", "", "bad"]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """CIFAR-10, MNIST and IMDB as TFDS lays them out."""
    root = tmp_path_factory.mktemp("tensorflow_datasets")
    rows = folders.image_rows(PIXELS, LABELS)
    splits = {"train": rows[:20], "test": rows[20:]}
    folders.write_folder(root, "cifar10", "3.0.2", folders.CIFAR10, splits)
    digits = folders.image_rows(*folders.images(10, (28, 28, 1)))
    folders.write_folder(
        root, "mnist", "3.0.1", folders.MNIST, {"train": digits}, supervised=("image", "label")
    )
    reviews = [{"text": text, "label": i % 2} for i, text in enumerate(REVIEWS)]
    folders.write_folder(root, "imdb_reviews/plain_text", "1.0.0", folders.IMDB, {"train": reviews})
    return root


@pytest.fixture
def own_copy(data_dir, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(data_dir, tmp_path / "data")


# ------------------------------------------------------------------------------- reading


def test_images_and_labels_are_those_that_were_written(data_dir):
    data = load_data("tfds:cifar10", data_dir=data_dir)
    np.testing.assert_array_equal(np.round(data.inputs * 255).astype(np.uint8), PIXELS[:20])
    np.testing.assert_array_equal(data.targets, LABELS[:20])
    assert (data.kind, data.num_outputs) == ("image", 10)
    assert data.name == "tfds:cifar10:3.0.2@train"


def test_tensorflow_is_never_imported(data_dir):
    code = (
        "import sys; from wdjax.data import load_data; "
        f"load_data('tfds:mnist', data_dir={str(data_dir)!r}); "
        "assert 'tensorflow' not in sys.modules, 'TensorFlow came along'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "OpenCV" not in done.stderr


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
@pytest.mark.parametrize(
    ("split", "rows"),
    [
        ("train", range(20)),
        ("test", range(20, 30)),
        ("train[:10%]", range(2)),
        ("train[5:18]", range(5, 18)),
        ("train[-3:]+test", range(17, 30)),
    ],
)
def test_splits_and_slices_are_written_as_tfds_writes_them(own_copy, file_format, split, rows):
    if file_format == "tfrecord":
        folders.as_tfrecord(own_copy / "cifar10" / "3.0.2")
    source = open_tfds(f"cifar10:3.0.2@{split}", data_dir=own_copy)
    assert len(source) == len(rows)
    for (image, label), row in zip(source, rows, strict=True):
        np.testing.assert_array_equal(image, PIXELS[row])
        assert label == LABELS[row]


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is not None, reason="it is there")
def test_tfds_reads_no_tfrecord_without_tensorflow(own_copy):
    """Why the records of this format are read here."""
    folders.as_tfrecord(own_copy / "cifar10" / "3.0.2")
    builder = tfds.builder_from_directory(own_copy / "cifar10" / "3.0.2")
    with pytest.raises(NotImplementedError, match="Random access data source"):
        builder.as_data_source(split="train")
    with pytest.raises(ModuleNotFoundError, match="No module named 'tensorflow'"):
        builder.as_dataset(split="train")


class TinyReviews(tfds.core.GeneratorBasedBuilder):
    """A set with code, as TFDS has hundreds: found by its name, prepared by TFDS itself."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = None

    def _info(self):
        features = tfds.features.FeaturesDict(folders.IMDB)
        keys = ("text", "label")
        return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=keys)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield from ((i, {"text": text, "label": i % 2}) for i, text in enumerate("abcd"))


class TinyImages(TinyReviews):
    """The same with images as arrays, which TFDS encodes by TensorFlow."""

    def _info(self):
        features = tfds.features.FeaturesDict(folders.MNIST)
        keys = ("image", "label")
        return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=keys)

    def _generate_examples(self):
        yield 0, {"image": np.zeros((28, 28, 1), np.uint8), "label": 0}


def test_whole_splits_are_read_from_parquet_and_slices_refused(tmp_path):
    TinyReviews(data_dir=tmp_path, file_format="parquet").download_and_prepare()
    data = load_data("tfds:tiny_reviews", data_dir=tmp_path, length=1)
    assert sorted(data.inputs[:, 0]) == [97, 98, 99, 100]
    with pytest.raises(ValueError, match="stored as parquet.*take whole splits"):
        load_data("tfds:tiny_reviews@train[:2]", data_dir=tmp_path)


def test_reviews_become_bytes_of_one_length_and_the_default_config_is_found(data_dir):
    data = load_data("tfds:imdb_reviews", data_dir=data_dir, length=12)
    assert data.inputs.shape == (4, 12) and data.inputs.dtype == np.int32
    for tokens, text in zip(data.inputs, REVIEWS, strict=True):
        expected = text.encode()[:12]
        assert bytes(tokens[: len(expected)].astype(np.uint8)) == expected
        assert not tokens[len(expected) :].any()
    assert data.class_names == ("neg", "pos") and data.kind == "text"
    named = load_data("tfds:imdb_reviews/plain_text:1.0.0", data_dir=data_dir)
    assert named.inputs.shape == (4, 256)


def test_a_folder_can_be_named_itself(data_dir):
    assert len(open_tfds(f"{data_dir}/mnist/3.0.1@train")) == 10


def test_the_environment_says_where_the_sets_are(data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    assert split_sizes("cifar10") == {"train": 20, "test": 10}


def test_the_authors_test_split_is_the_test_part(data_dir):
    choose, test = load_choose_and_test("tfds:cifar10", data_dir=data_dir)
    np.testing.assert_array_equal(choose.targets, LABELS[:20])
    np.testing.assert_array_equal(test.targets, LABELS[20:])


def test_without_a_test_split_or_with_a_named_split_a_part_is_split_off(data_dir):
    parts = load_choose_and_test("tfds:mnist", data_dir=data_dir, fraction=0.3, stratify=False)
    assert [len(part.inputs) for part in parts] == [7, 3]
    parts = load_choose_and_test("tfds:cifar10@train", data_dir=data_dir, fraction=0.5)
    assert [len(part.inputs) for part in parts] == [10, 10]
    assert [len(part.inputs) for part in load_choose_and_test("iris")] == [120, 30]


def test_a_source_pickles_for_workers(own_copy):
    for kind in ("array_record", "tfrecord"):
        if kind == "tfrecord":
            folders.as_tfrecord(own_copy / "cifar10" / "3.0.2")
        source = pickle.loads(pickle.dumps(open_tfds("cifar10", data_dir=own_copy)))
        np.testing.assert_array_equal(source[7][0], PIXELS[7])
        np.testing.assert_array_equal(source[-1][0], PIXELS[19])
        with pytest.raises(IndexError):
            source[20]


# ------------------------------------------------------------------------------ refusing


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("tfds:cifar10@valid", {}, "has no split 'valid', only train, test"),
        ("tfds:cifar10@tset", {}, "Did you mean 'test'"),
        ("tfds:cifar10@train[:10", {}, "slices of them such as train"),
        ("tfds:cifar10", {"length": 9}, "`length` = 9 is for texts.*image data"),
        ("tfds:imdb_reviews", {"length": 0}, "`length` must be >= 1"),
        ("tfds:cifar10", {"loss": "squared_error", "target": "y"}, "`target` = 'y' does not"),
    ],
)
def test_what_a_set_does_not_have_is_refused(data_dir, name, options, words):
    with pytest.raises(ValueError, match=words):
        load_data(name, data_dir=data_dir, **options)


def test_a_set_that_is_nowhere_is_told_in_one_sentence(tmp_path):
    with pytest.raises(ValueError) as refusal:
        load_data("tfds:cifar10", data_dir=tmp_path)
    sentence = str(refusal.value)
    for words in (str(tmp_path), "--download", "--data-dir", "cifar-10-binary.tar.gz", "digits"):
        assert words in sentence
    assert "\n" not in sentence and not list(tmp_path.iterdir())


def test_a_misspelt_set_names_its_nearest(tmp_path):
    with pytest.raises(ValueError, match="Did you mean 'cifar10"):
        load_data("tfds:cifer10", data_dir=tmp_path)


def test_labels_that_are_missing_are_refused(tmp_path):
    rows = [{"text": "?", "label": -1}]
    folders.write_folder(
        tmp_path, "imdb_reviews/plain_text", "1.0.0", folders.IMDB, {"unsupervised": rows}
    )
    with pytest.raises(ValueError, match=r"labels 0\.\.1, got -1"):
        load_data("tfds:imdb_reviews@unsupervised", data_dir=tmp_path)


def test_numbers_are_predicted_under_squared_error_only(tmp_path):
    features = {
        "x": tfds.features.Tensor(shape=(2,), dtype=np.float32),
        "y": tfds.features.Scalar(np.float32),
    }
    rows = [{"x": np.array([i, 0.5], np.float32), "y": np.float32(i / 2)} for i in range(3)]
    folders.write_folder(
        tmp_path, "plane", "1.0.0", features, {"train": rows}, supervised=("x", "y")
    )
    data = load_data("tfds:plane", data_dir=tmp_path, loss="squared_error")
    np.testing.assert_array_equal(data.inputs, [[0, 0.5], [1, 0.5], [2, 0.5]])
    np.testing.assert_array_equal(data.targets, [0, 0.5, 1])
    assert data.num_outputs == 1 and data.kind == "table"
    with pytest.raises(ValueError, match="'y' of 'tfds:plane.*use squared_error"):
        load_data("tfds:plane", data_dir=tmp_path)


def test_a_set_without_one_input_and_one_label_is_refused(tmp_path):
    features = {"a": tfds.features.Text(), "b": tfds.features.Text()}
    folders.write_folder(tmp_path, "pairs", "1.0.0", features, {"train": [{"a": "", "b": ""}]})
    with pytest.raises(ValueError, match=r"no single input and target.*\(a, b\).*npz"):
        open_tfds("pairs", data_dir=tmp_path)
    features = {**folders.MNIST, "image": tfds.features.Image(shape=(None, None, 1))}
    rows = folders.image_rows(*folders.images(1, (28, 28, 1)))
    folders.write_folder(tmp_path, "sizes", "1.0.0", features, {"train": rows})
    with pytest.raises(ValueError, match="inputs of one fixed size"):
        open_tfds("sizes", data_dir=tmp_path)


def test_a_torn_description_is_refused(own_copy):
    (own_copy / "mnist" / "3.0.1" / "dataset_info.json").write_text("{")
    with pytest.raises(ValueError, match="description that cannot be read"):
        load_data("tfds:mnist", data_dir=own_copy)


def evil_features(folder, name):
    path = folder / "mnist" / "3.0.1" / "features.json"
    description = json.loads(path.read_text())
    description["featuresDict"]["features"]["image"]["pythonClassName"] = name
    path.write_text(json.dumps(description))


def test_tfds_imports_any_module_that_a_folder_names(own_copy, tmp_path, monkeypatch):
    """Why `check_features` looks first; if TFDS stops doing it, that can go."""
    (tmp_path / "named_by_a_folder.py").write_text("raise SystemExit('it was run')")
    monkeypatch.syspath_prepend(tmp_path)
    evil_features(own_copy, "named_by_a_folder.Image")
    with pytest.raises(SystemExit, match="it was run"):
        tfds.builder_from_directory(own_copy / "mnist" / "3.0.1")


@pytest.mark.parametrize("name", ["tfds:mnist", "folder"])
def test_a_folder_is_not_trusted_to_name_code(own_copy, tmp_path, monkeypatch, name):
    (tmp_path / "named_by_a_folder.py").write_text("raise SystemExit('it was run')")
    monkeypatch.syspath_prepend(tmp_path)
    evil_features(own_copy, "named_by_a_folder.Image")
    name = f"tfds:{own_copy / 'mnist' / '3.0.1'}" if name == "folder" else name
    with pytest.raises(ValueError, match="features.json' names the class 'named_by_a_folder.Imag"):
        load_data(name, data_dir=own_copy)


@pytest.mark.parametrize("file", ["features.json", "dataset_info.json"])
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"[1]", b"{}", b"[" * 20_000, b'{"a":' * 5_000, b"\xff\xfe", None],
    ids=["empty", "cut", "null", "list", "bare", "deep list", "deep object", "bytes", "folder"],
)
def test_a_description_of_any_nonsense_is_refused(own_copy, file, content):
    path = own_copy / "mnist" / "3.0.1" / file
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(
        ValueError, match="tfds:mnist' (has a description that cannot|is not in)"
    ) as e:
        load_data("tfds:mnist", data_dir=own_copy)
    assert len(str(e.value)) < 1000


@pytest.mark.parametrize(
    "where, words",
    [
        ("mnist/3.0.1/features.json", "`data_dir` '.*features.json' is a file; point data_dir"),
        ("/dev/zero", "`data_dir` '/dev/zero' is a file"),
        ("x" * 300, "`data_dir` 'x+' cannot be read: File name too long"),
        ("~nobody_of_this_name/x", "cannot be read: Could not determine home directory"),
        ("a\0b", "cannot be read: embedded null byte"),
    ],
)
def test_what_is_no_folder_of_data_is_refused_by_name(own_copy, monkeypatch, where, words):
    monkeypatch.chdir(own_copy)
    with pytest.raises(ValueError, match=words):
        load_data("tfds:mnist", data_dir=where)


@pytest.mark.parametrize(
    "name, words",
    [
        ("x" * 300, "description that cannot be read .*too long"),
        ("mnist@train[5:5]", "has no example in 'train\\[5:5\\]'; choose another split"),
        (f"mnist@{'[' * 5000}", r"has no split '\[+\.\.\.'"),
        ("mnist@", ""),
    ],
)
def test_a_name_that_names_nothing_is_refused_in_a_sentence(own_copy, name, words):
    if not words:
        assert len(load_data(f"tfds:{name}", data_dir=own_copy).inputs)
        return
    with pytest.raises(ValueError, match=words) as found:
        load_data(f"tfds:{name}", data_dir=own_copy)
    assert len(str(found.value)) < 1000


# ------------------------------------------------------------------ prepared by TFDS itself


@pytest.fixture
def reachable(monkeypatch):
    """The tests have no network; these sets need none."""
    monkeypatch.setattr("wdjax.data.tfds.check_connection", lambda url: None)


def test_a_set_of_texts_is_prepared_by_tfds_without_tensorflow(tmp_path, reachable):
    with pytest.raises(ValueError, match="'tfds:tiny_reviews' is not in"):
        load_data("tfds:tiny_reviews", data_dir=tmp_path)
    data = load_data("tfds:tiny_reviews", data_dir=tmp_path, download=True, length=1)
    assert sorted(data.inputs[:, 0]) == [97, 98, 99, 100]
    assert load_data("tfds:tiny_reviews@train[:2]", data_dir=tmp_path).inputs.shape == (2, 256)


def test_a_set_that_needs_tensorflow_says_how_to_prepare_it_once(tmp_path, reachable):
    with pytest.raises(ValueError, match="No module named 'tensorflow'.*`tfds build tiny_images"):
        load_data("tfds:tiny_images", data_dir=tmp_path, download=True)


def test_a_set_that_tfds_does_not_know_is_refused(tmp_path, reachable):
    with pytest.raises(ValueError, match="is no set that TFDS knows. Did you mean 'emnist'"):
        load_data("tfds:emnits", data_dir=tmp_path, download=True)


# -------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_shard_is_named(own_copy, file_format, damage):
    folder = own_copy / "cifar10" / "3.0.2"
    if file_format == "tfrecord":
        folders.as_tfrecord(folder)
    shard = sorted(folder.glob(f"cifar10-train.{file_format}*"))[1]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.unlink()
    if damage != "remove":
        shard.write_bytes(content if damage == "flip" else content[: len(content) // 3])
    with pytest.raises(ValueError, match=shard.name):
        load_data("tfds:cifar10", data_dir=own_copy)


def test_every_flipped_bit_of_a_tfrecord_is_found(own_copy):
    folder = own_copy / "imdb_reviews" / "plain_text" / "1.0.0"
    folders.as_tfrecord(folder)
    shard = next(folder.glob("*.tfrecord*"))
    whole = shard.read_bytes()
    for bit in np.random.default_rng(0).integers(0, 8 * len(whole), 40):
        torn = bytearray(whole)
        torn[bit // 8] ^= 1 << bit % 8
        shard.write_bytes(torn)
        with pytest.raises(ValueError, match=shard.name):
            load_data("tfds:imdb_reviews", data_dir=own_copy)


def test_a_tfrecord_cut_between_records_is_found_by_their_number(own_copy):
    folder = own_copy / "imdb_reviews" / "plain_text" / "1.0.0"
    folders.as_tfrecord(folder)
    shard = next(folder.glob("*.tfrecord*"))
    length = int.from_bytes(shard.read_bytes()[:8], "little")
    shard.write_bytes(shard.read_bytes()[: length + 16])
    with pytest.raises(ValueError, match="should hold 4 whole records"):
        load_data("tfds:imdb_reviews", data_dir=own_copy)


@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 64, 4095, 4096, 4097, 4099, 9000])
def test_the_checksum_is_crc32c_bit_by_bit(length):
    content = np.random.default_rng(length).integers(0, 256, (2, length), dtype=np.uint8)
    expected = [folders.slow_crc32c(row.tobytes()) for row in content]
    np.testing.assert_array_equal(crc32c(content), expected)


def test_the_checksum_of_nine_digits_is_the_published_one():
    assert crc32c(np.frombuffer(b"123456789", np.uint8)[None])[0] == 0xE3069283
