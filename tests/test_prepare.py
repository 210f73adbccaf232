"""TFDS sets from their raw files, written here: placed or downloaded, checked, prepared."""

import functools
import hashlib
import http.server
import importlib.util
import shutil
import socket
import threading
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tfds_folders as folders
from tensorflow_datasets.core.download import extractor
from tensorflow_datasets.core.download.resource import ExtractMethod

from wdjax.data import load_data
from wdjax.data import raw_sets as prepare
from wdjax.data.raw_sets import RawFile, check_connection, prepare_raw, raw_file_list
from wdjax.data.tfds import split_sizes

# ----------------------------------------------------------------------------- preparing

WRITERS = {
    "mnist": folders.write_mnist_raw,
    "cifar10": folders.write_cifar10_raw,
    "imdb_reviews": folders.write_imdb_raw,
}


@pytest.fixture
def listed(monkeypatch):
    """Lets the small raw files of a folder pass for the published ones, whose bytes are large."""

    def list_files(name, folder, url="http://nowhere.invalid"):
        files = {
            file: RawFile(f"{url}/{file}", len(content), hashlib.sha256(content).hexdigest())
            for file in prepare.RAW_SETS[name].files
            for content in [(folder / file).read_bytes()]
        }
        monkeypatch.setattr(prepare, "raw_file_list", lambda asked: {name: files}[asked])
        return files

    return list_files


@pytest.mark.parametrize("name", list(WRITERS))
def test_the_list_of_tfds_covers_every_raw_file(name):
    listed = raw_file_list(name)
    for file in prepare.RAW_SETS[name].files:
        assert listed[file].url.startswith("http") and len(listed[file].sha256) == 64


def test_mnists_own_files_become_a_tfds_folder(tmp_path, listed):
    folders.write_mnist_raw(tmp_path)
    listed("mnist", tmp_path)
    data = load_data("tfds:mnist", data_dir=tmp_path)
    pixels, labels = folders.images(20, (28, 28), seed=20)
    order = np.random.default_rng(0).permutation(20)
    np.testing.assert_array_equal(np.round(data.inputs[..., 0] * 255), pixels[order])
    np.testing.assert_array_equal(data.targets, labels[order])
    for path in tmp_path.glob("*.gz"):
        path.unlink()
    test = load_data("tfds:mnist@test", data_dir=tmp_path)
    assert sorted(test.targets) == list(range(10))
    assert tfds.data_source(
        "mnist:3.0.1", split="train", data_dir=tmp_path, download=False,
        builder_kwargs={"file_format": "array_record"},
    )[0]["label"] == labels[order[0]]  # fmt: skip


def test_cifar10s_own_archive_becomes_a_tfds_folder(tmp_path, listed):
    manual = tmp_path / "downloads" / "manual"
    folders.write_cifar10_raw(manual)
    listed("cifar10", manual)
    data = load_data("tfds:cifar10", data_dir=tmp_path)
    pixels = np.concatenate([folders.images(4, (32, 32, 3), seed)[0] for seed in range(5)])
    order = np.random.default_rng(0).permutation(20)
    np.testing.assert_array_equal(np.round(data.inputs * 255), pixels[order])
    np.testing.assert_array_equal(data.targets, np.tile(np.arange(4), 5)[order])
    assert data.class_names == tuple(folders.CIFAR10_NAMES)
    assert split_sizes("cifar10", data_dir=tmp_path) == {"train": 20, "test": 4}


def test_imdbs_own_archive_becomes_a_tfds_folder(tmp_path, listed):
    folders.write_imdb_raw(tmp_path / "imdb_reviews")
    listed("imdb_reviews", tmp_path / "imdb_reviews")
    data = load_data("tfds:imdb_reviews", data_dir=tmp_path, length=20)
    texts = {bytes(row[row > 0].astype(np.uint8)).decode() for row in data.inputs}
    assert texts == {f"train {label} nº {i}" for label in ("neg", "pos") for i in range(3)}
    for row, label in zip(data.inputs, data.targets, strict=True):
        assert (b"pos" in bytes(row.astype(np.uint8))) == (label == 1)
    sizes = split_sizes("imdb_reviews", data_dir=tmp_path)
    assert sizes == {"train": 6, "test": 6, "unsupervised": 3}


def test_a_raw_file_of_other_bytes_is_refused_and_nothing_is_written(tmp_path):
    """Against the list that TFDS ships: these small files are not the published ones."""
    folders.write_mnist_raw(tmp_path)
    with pytest.raises(ValueError, match="is not the published file: its SHA-256 is"):
        load_data("tfds:mnist", data_dir=tmp_path)
    assert not (tmp_path / "mnist").exists()


def test_half_of_the_raw_files_do_not_suffice_and_the_others_are_named(tmp_path):
    folders.write_mnist_raw(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(ValueError, match="put t10k-labels-idx1-ubyte.gz into that folder"):
        load_data("tfds:mnist", data_dir=tmp_path)


@pytest.mark.parametrize("name", list(WRITERS))
def test_a_raw_file_that_breaks_off_is_refused_by_path(tmp_path, listed, name):
    WRITERS[name](tmp_path)
    path = tmp_path / prepare.RAW_SETS[name].files[0]
    path.write_bytes(path.read_bytes()[:-300])
    files = prepare.placed_files(name, tmp_path)
    with pytest.raises(ValueError, match=f"{path.name}.* cannot be read"):
        prepare_raw(name, tmp_path, files, listed=listed(name, tmp_path))
    assert not (tmp_path / name).exists()


def test_a_write_that_fails_leaves_no_folder_behind(tmp_path, listed, monkeypatch):
    folders.write_mnist_raw(tmp_path)
    listed("mnist", tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepare, "_png", full)
    with pytest.raises(ValueError, match="cannot be written.*No space left"):
        load_data("tfds:mnist", data_dir=tmp_path)
    assert not list((tmp_path / "mnist").iterdir())


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is not None, reason="it is there")
@pytest.mark.parametrize("name", list(WRITERS))
def test_tfds_opens_no_archive_and_encodes_no_image_without_tensorflow(tmp_path, name):
    """Why the raw files of these sets are read here."""
    WRITERS[name](tmp_path)
    path = tmp_path / prepare.RAW_SETS[name].files[0]
    method = ExtractMethod.GZIP if name == "mnist" else ExtractMethod.TAR_GZ
    with pytest.raises(ModuleNotFoundError, match="No module named 'tensorflow'"):
        next(iter(extractor.iter_archive(path, method)))
    image = tfds.features.Image(shape=(2, 2, 1), encoding_format="png")
    with pytest.raises(ModuleNotFoundError, match="No module named 'tensorflow'"):
        image.encode_example(np.zeros((2, 2, 1), np.uint8))


# --------------------------------------------------------------------------- downloading


@pytest.fixture
def server(tmp_path_factory):
    """A web server on this machine, with a folder of its own."""
    folder = tmp_path_factory.mktemp("server")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        thread = threading.Thread(target=served.serve_forever, daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{served.server_port}"
        served.shutdown()
        thread.join()


def test_a_download_is_fetched_checked_and_prepared(tmp_path, server, listed):
    folder, url = server
    folders.write_mnist_raw(folder)
    listed("mnist", folder, url)
    data = load_data("tfds:mnist", data_dir=tmp_path, download=True)
    assert data.inputs.shape == (20, 28, 28, 1)
    shutil.rmtree(folder)
    again = load_data("tfds:mnist", data_dir=tmp_path, download=True)
    np.testing.assert_array_equal(again.inputs, data.inputs)


def test_a_download_of_other_bytes_is_refused_and_never_taken_for_the_file(
    tmp_path, server, listed
):
    folder, url = server
    folders.write_cifar10_raw(folder)
    listed("cifar10", folder, url)
    archive = folder / "cifar-10-binary.tar.gz"
    right = archive.read_bytes()
    archive.write_bytes(b"a page that says sorry")
    with pytest.raises(ValueError, match="cifar-10-binary.tar.gz cannot be .*wrong checksum"):
        load_data("tfds:cifar10", data_dir=tmp_path, download=True)
    assert not (tmp_path / "cifar10").exists()
    archive.write_bytes(right)
    assert len(load_data("tfds:cifar10", data_dir=tmp_path, download=True).inputs) == 20


def test_a_file_the_server_does_not_have_is_named(tmp_path, server, listed):
    folder, url = server
    folders.write_cifar10_raw(folder)
    listed("cifar10", folder, url)
    (folder / "cifar-10-binary.tar.gz").unlink()
    with pytest.raises(ValueError, match="cifar-10-binary.tar.gz cannot be fetched.*404"):
        load_data("tfds:cifar10", data_dir=tmp_path, download=True)


def test_without_a_network_a_download_gives_up_within_five_seconds(tmp_path, listed):
    """The listener accepts and never answers, as a network that swallows packets does."""
    folders.write_cifar10_raw(tmp_path / "elsewhere")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        listed("cifar10", tmp_path / "elsewhere", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        words = "127.0.0.1 cannot be reached within 5 s.*put cifar-10-binary.tar.gz.*digits"
        with pytest.raises(ValueError, match=words):
            load_data("tfds:cifar10", data_dir=tmp_path / "data", download=True)
        assert time.monotonic() - start < 6


def test_a_refused_connection_says_so():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(ValueError, match="127.0.0.1 cannot be reached.*refused"):
        check_connection(f"http://127.0.0.1:{port}/file.gz")
