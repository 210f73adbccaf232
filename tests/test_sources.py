"""Streamed TFDS sets: from the disk come the examples that the same options give in memory."""

import dataclasses
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tfds_folders import CIFAR10, MNIST, image_rows, images, write_folder

from wdjax.data.stream import make_stream
from wdjax.data.tfds import open_tfds
from wdjax.data.views import View, list_rows, measure_inputs
from wdjax.jobs.options import TrainOptions
from wdjax.jobs.sources import in_memory, open_sources

pytest.importorskip("grain", reason="grain is not installed: pip install wdjax[data]")

PRICES = {
    "columns": tfds.features.Tensor(shape=(3,), dtype=np.float32),
    "price": tfds.features.Scalar(np.float32),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Images with a test part and without, of a size that the CNN needs resized, and a table."""
    root = tmp_path_factory.mktemp("tensorflow_datasets")
    rows = image_rows(*images(240, (32, 32, 3)))
    write_folder(root, "cifar10", "3.0.2", CIFAR10, {"train": rows, "test": rows[:20]})
    grey = image_rows(*images(70, (28, 28, 1), seed=1))
    write_folder(root, "mnist", "3.0.1", MNIST, {"train": grey})
    rng = np.random.default_rng(0)
    columns = rng.normal(size=(50, 3)).astype(np.float32) * [1, 100, 0] + [5, -3, 7]
    table = [{"columns": c.astype(np.float32), "price": np.float32(c[1] * 3)} for c in columns]
    splits = {"train": table[:40], "test": table[40:]}
    write_folder(root, "prices", "1.0.0", PRICES, splits, supervised=("columns", "price"))
    return root


def options(root, data, **more):
    return TrainOptions(
        data=f"tfds:{data}", data_dir=str(root), stream=True, batch_size=8, devices=1, **more
    )


def examples_of(source):
    """All that a source yields, in its order, without the padding."""
    batches = list(make_stream(source, batch_size=8))
    counts = np.concatenate([b.weights for b in batches]) > 0
    columns = (b.inputs for b in batches), (b.targets for b in batches)
    return tuple(np.concatenate(list(column))[counts] for column in columns)


CASES = {
    "as it is": ("cifar10", {}),
    "wrong labels": ("cifar10", {"label_noise": 0.3}),
    "early stopping": ("cifar10", {"patience": 2, "label_noise": 0.2, "seed": 3}),
    "a slice": ("cifar10@train[:50%]", {}),
    "a slice with wrong labels, early stopping": (
        "cifar10@train[20%:]",
        {"label_noise": 0.25, "patience": 1, "seed": 1},
    ),
    "no test part": ("mnist", {"seed": 5}),
    "images of another size": ("mnist", {"model": "cnn", "epochs": 1}),
    "a table to regress on": ("prices", {"loss": "squared_error"}),
    "a table without a test part": (
        "prices@train",
        {"loss": "squared_error", "patience": 1, "seed": 2},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_stream_reads_what_the_same_options_give_in_memory(case, root):
    """Splits, wrong labels and held-out part are the same example by example; standardised
    numbers and resized images to rounding."""
    data, more = CASES[case]
    told = options(root, data, **more)
    prepared, streamed = open_sources(told)
    loaded_as, loaded = in_memory(told)
    assert (prepared.num_choose, prepared.num_test) == (loaded_as.num_choose, loaded_as.num_test)
    for name in ("train", "valid", "test"):
        inputs, targets = examples_of(getattr(streamed, name))
        other_inputs, other_targets = examples_of(getattr(loaded, name))
        np.testing.assert_allclose(inputs, other_inputs, rtol=1e-4, atol=2e-6)
        assert inputs.dtype == other_inputs.dtype and targets.dtype == other_targets.dtype
        if told.loss == "squared_error":
            np.testing.assert_allclose(targets, other_targets, rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(targets, other_targets)
    assert streamed.scaling.keys() == loaded.scaling.keys()
    for name, scaling in loaded.scaling.items():
        for mine, theirs in zip(streamed.scaling[name], scaling, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_wrong_labels_are_as_many_as_asked_stay_over_epochs_and_spare_the_test_part(root):
    _, clean = open_sources(options(root, "cifar10"))
    _, noisy = open_sources(options(root, "cifar10", label_noise=0.3))
    assert (examples_of(noisy.train)[1] != examples_of(clean.train)[1]).sum() == 72
    np.testing.assert_array_equal(examples_of(noisy.test)[1], examples_of(clean.test)[1])
    two = list(make_stream(noisy.train, batch_size=240, seed=4, num_epochs=2))
    order = [np.lexsort(b.inputs.reshape(240, -1)[:, :9].T) for b in two]
    np.testing.assert_array_equal(two[0].targets[order[0]], two[1].targets[order[1]])


def test_a_resume_meets_the_same_labels_or_is_refused(root):
    """The name of what is streamed carries their hash, and a position is one in that name."""
    streams = {
        share: make_stream(
            open_sources(options(root, "cifar10", label_noise=share))[1].train, **how
        )
        for how in [{"batch_size": 8, "seed": 1}]
        for share in (0.3, 0.4)
    }
    again = make_stream(
        open_sources(options(root, "cifar10", label_noise=0.3))[1].train, batch_size=8, seed=1
    )
    first = streams[0.3]
    next(first)
    again.set_state(first.get_state())
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.targets, other.targets)
    with pytest.raises(ValueError, match="cannot resume in the middle of other data: source was"):
        streams[0.4].set_state(first.get_state())


def test_only_targets_are_decoded_before_a_run_and_nothing_where_nothing_depends_on_them(
    root, monkeypatch
):
    decoded = []
    image = tfds.features.Image.decode_example_np
    monkeypatch.setattr(
        tfds.features.Image,
        "decode_example_np",
        lambda self, example: decoded.append(1) or image(self, example),
    )
    passes = []
    monkeypatch.setattr(
        "wdjax.jobs.sources.list_rows", lambda *a, **k: passes.append(1) or list_rows(*a, **k)
    )
    monkeypatch.setattr("wdjax.jobs.sources.SAMPLE", 2)
    monkeypatch.setattr("wdjax.jobs.sources.FIRST", 1)
    open_sources(options(root, "cifar10"))
    assert (len(decoded), len(passes)) == (2 + 3, 0), "the sample, and the first of each part"
    open_sources(options(root, "cifar10", label_noise=0.1))
    assert (len(decoded), len(passes)) == (2 * (2 + 3), 1)


def test_a_view_pickles_for_workers_and_reads_the_same(root):
    _, sources = open_sources(options(root, "mnist", model="cnn", label_noise=0.2))
    assert isinstance(sources.train, View)
    copy = pickle.loads(pickle.dumps(sources.train))
    assert copy.name == sources.train.name and len(copy) == len(sources.train) == 56
    first = np.arange(4)
    for one, other in zip(copy.arrays_at(first), sources.train.arrays_at(first), strict=True):
        np.testing.assert_array_equal(one, other)


def test_blocks_of_inputs_join_to_the_scaling_of_the_whole(root, monkeypatch):
    source = open_tfds("prices", data_dir=root)
    whole = measure_inputs(source, None)
    monkeypatch.setattr("wdjax.data.views.ROWS_AT_ONCE", 7)
    for one, other in zip(measure_inputs(source, None), whole, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    assert float(whole.scale[2]) == 0, "a constant column becomes 0"


@pytest.mark.parametrize(
    ("data", "more", "words"),
    [
        ("prices", {}, "`loss` = cross_entropy needs classes, and 'price' .* is a number"),
        ("prices", {"loss": "squared_error", "label_noise": 0.1}, "`label_noise` = 0.1 needs one"),
        ("prices", {"loss": "squared_error", "model": "cnn"}, "only images of one or three"),
        ("mnist@train[:8]", {}, "has 1 examples and needs 2 to be in both"),
        ("mnist@tets", {}, "has no split 'tets'"),
    ],
)
def test_what_cannot_be_streamed_is_refused_in_the_words_of_memory(data, more, words, root):
    for opened in (open_sources, in_memory):
        with pytest.raises(ValueError, match=words):
            opened(options(root, data, **more))


def test_a_label_outside_the_classes_is_refused_by_its_example(root):
    _, sources = open_sources(options(root, "mnist", model="cnn", label_noise=0.1))
    assert sources.train.source.num_classes == 10
    damaged = dataclasses.replace(open_tfds("mnist", data_dir=root), num_classes=5)
    with pytest.raises(ValueError, match=r"example 5 of 'tfds:mnist.* has label 5, outside 0\.\.4"):
        list_rows(damaged, loss="cross_entropy")
    with pytest.raises(ValueError, match=r"has label 5, outside 0\.\.4"):
        View(damaged).arrays_at(np.arange(8))
