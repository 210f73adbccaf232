"""Streams: every example once an epoch, the same batches whoever reads them, resumed exactly."""

import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tfds_folders as folders
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from wdjax.data import load_data, make_dataset
from wdjax.data.batches import pad_batch, to_devices
from wdjax.data.stream import as_stream, from_here, make_stream, prefetch_to_device
from wdjax.data.tfds import open_tfds
from wdjax.types import Batch

grain = pytest.importorskip("grain", reason="grain is not installed: pip install wdjax[data]")

DATA = make_dataset(np.arange(10.0), np.arange(10) % 2)


def rows(batches):
    """The examples of DATA that count, in order."""
    return [int(x) for b in batches for x, w in zip(b.inputs[:, 0], b.weights, strict=True) if w]


def assert_same(got, expected):
    for one, other in zip(got, expected, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_without_a_seed_the_order_is_the_sources_and_the_last_batch_is_padded():
    batches = list(make_stream(DATA, batch_size=4))
    assert rows(batches) == list(range(10))
    assert [b.inputs.shape for b in batches] == [(4, 1)] * 3
    np.testing.assert_array_equal(batches[2].weights, [1, 1, 0, 0])
    np.testing.assert_array_equal(batches[2].inputs[:, 0], [8, 9, 0, 0])


def test_every_epoch_is_a_new_permutation_of_all_examples():
    seen = rows(make_stream(DATA, batch_size=4, seed=1, num_epochs=3))
    epochs = [seen[:10], seen[10:20], seen[20:]]
    for epoch in epochs:
        assert sorted(epoch) == list(range(10))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert rows(make_stream(DATA, batch_size=5, seed=1, num_epochs=3)) == seen
    assert rows(make_stream(DATA, batch_size=4, seed=2, num_epochs=3)) != seen


def test_the_order_of_a_seed_stays_for_ever():
    """Computed once; resuming a run on another machine or version rests on it."""
    assert rows(make_stream(DATA, batch_size=10, seed=7)) == [8, 4, 1, 6, 3, 2, 7, 5, 9, 0]


def test_labels_and_weights_travel_with_their_example():
    weighted = DATA._replace(weights=np.arange(10, dtype=np.float32) / 2)
    for batch in make_stream(weighted, batch_size=3, seed=0):
        np.testing.assert_array_equal(batch.targets, batch.inputs[:, 0] % 2)
        np.testing.assert_array_equal(batch.weights, batch.inputs[:, 0] / 2)


@pytest.mark.parametrize("batch_size", [4, 8])
def test_processes_divide_each_batch_and_change_nothing_about_it(batch_size):
    """Of 10 examples in batches of 8, the last leaves two of four processes only padding."""
    whole = list(make_stream(DATA, batch_size=batch_size, seed=3))
    parts = [
        list(make_stream(DATA, batch_size=batch_size, seed=3, process_index=i, process_count=4))
        for i in range(4)
    ]
    for number, batch in enumerate(whole):
        pieces = [part[number] for part in parts]
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *pieces)
        np.testing.assert_array_equal(joined.weights, batch.weights)
        counts = batch.weights > 0
        np.testing.assert_array_equal(joined.inputs[counts], batch.inputs[counts])


@pytest.mark.parametrize("stop", [0, 1, 4, 7])
def test_a_stream_goes_on_exactly_where_it_was(stop):
    make = lambda **how: make_stream(DATA, batch_size=4, seed=5, num_epochs=3, **how)
    first = make()
    before = [next(first) for _ in range(stop)]
    state = json.loads(json.dumps(first.get_state()))
    second = make(num_threads=3)
    second.set_state(state)
    assert_same([*before, *second], make())


def test_a_stream_is_given_again_from_where_it_was_without_hashing_its_data_again(monkeypatch):
    hashed = []
    monkeypatch.setattr("wdjax.data.stream.hash_of", lambda data: hashed.append(1) or "")
    stream = make_stream(DATA, batch_size=4, seed=5)
    next(stream)
    again = from_here(stream)
    first = list(again())
    assert len(first) == 2 and len(hashed) == 1
    assert_same(again(), first)
    assert len(hashed) == 1


def test_a_stream_can_go_back_and_be_closed():
    stream = make_stream(DATA, batch_size=4, seed=5)
    start, first = stream.get_state(), next(stream)
    next(stream)
    stream.set_state(start)
    assert_same([next(stream)], [first])
    stream.close()
    assert len(list(stream)) == 2


def test_a_stream_without_end_has_no_seam():
    stream = make_stream(DATA, batch_size=4, seed=5, num_epochs=None)
    assert stream.num_batches is None
    batches = [next(stream) for _ in range(10)]
    assert all(np.all(batch.weights == 1) for batch in batches)
    assert_same(batches[:7], list(make_stream(DATA, batch_size=4, seed=5, num_epochs=3))[:7])


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"batch_size": 5}, "batch_size was 4 and is 5"),
        ({"seed": 1}, "seed was 5 and is 1"),
        ({"source": DATA._replace(targets=1 - DATA.targets)}, "source was 'data "),
    ],
)
def test_a_position_in_other_data_is_refused_by_what_differs(other, words):
    state = make_stream(DATA, batch_size=4, seed=5).get_state()
    options = {"source": DATA, "batch_size": 4, "seed": 5, **other}
    stream = make_stream(options.pop("source"), **options)
    with pytest.raises(ValueError, match=f"cannot resume.*{words}"):
        stream.set_state(state)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "`batch_size` must be >= 1"),
        ({"batch_size": 3, "process_count": 2, "process_index": 0}, "divisible.*take 4"),
        ({"batch_size": 2, "process_count": 2, "process_index": 2}, "`process_index` must be"),
        ({"batch_size": 2, "num_epochs": 0}, "`num_epochs` must be >= 1"),
        ({"batch_size": 2, "seed": -1}, "`seed` must be >= 0"),
    ],
)
def test_a_stream_that_cannot_be_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        make_stream(DATA, **options)


def test_a_source_of_nothing_is_refused():
    with pytest.raises(ValueError, match="hold no examples"):
        make_stream([], batch_size=1)


class Squares:
    """A source of one's own: trees of arrays, by position."""

    def __len__(self):
        return 6

    def __getitem__(self, i):
        return {"x": np.full((2,), i), "half": i / 2}, i * i


def test_any_sequence_of_examples_is_a_source():
    batch = next(make_stream(Squares(), batch_size=4))
    np.testing.assert_array_equal(batch.inputs["x"], [[0, 0], [1, 1], [2, 2], [3, 3]])
    np.testing.assert_array_equal(batch.inputs["half"], np.array([0, 0.5, 1, 1.5], np.float32))
    np.testing.assert_array_equal(batch.targets, [0, 1, 4, 9])
    assert batch.targets.dtype == np.int32 and batch.weights.dtype == np.float32


@pytest.mark.slow
def test_worker_processes_change_nothing():
    """Nor does going on with two of them what none began. (A process of its own: they spawn.)"""
    code = """
import numpy as np
from wdjax.data import load_data
from wdjax.data.stream import make_stream
if __name__ == "__main__":
    options = dict(batch_size=32, seed=3, num_epochs=2)
    alone = make_stream(load_data("iris"), **options)
    next(alone), next(alone)
    shared = make_stream(load_data("iris"), **options, num_workers=2)
    shared.set_state(alone.get_state())
    for one, other in zip(shared, alone, strict=True):
        for a, b in zip(one, other):
            np.testing.assert_array_equal(a, b)
    shared.close()
    print("equal", shared.get_state()["batches"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.stdout.strip() == "equal 10", done.stderr


# ---------------------------------------------------------------------------------- TFDS


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    root = tmp_path_factory.mktemp("tensorflow_datasets")
    folders.write_folder(
        root, "cifar10", "3.0.2", folders.CIFAR10,
        {"train": folders.image_rows(*folders.images(20, (32, 32, 3)))},
    )  # fmt: skip
    return root


def test_images_from_disk_are_those_loaded_into_memory(cifar):
    memory = load_data("tfds:cifar10", data_dir=cifar)
    disk = open_tfds("cifar10", data_dir=cifar)
    assert_same(make_stream(disk, batch_size=8, seed=2), make_stream(memory, batch_size=8, seed=2))


def test_a_damaged_shard_is_named_while_streaming(cifar, tmp_path):
    root = shutil.copytree(cifar, tmp_path / "data")
    shard = sorted((root / "cifar10" / "3.0.2").glob("*train*"))[1]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    stream = make_stream(open_tfds("cifar10", data_dir=root), batch_size=20)
    with pytest.raises(ValueError, match=shard.name):
        next(stream)


def test_labels_outside_the_classes_are_refused_on_the_host(tmp_path):
    rows = [{"text": "?", "label": 0}, {"text": "!", "label": -1}]
    folders.write_folder(
        tmp_path, "imdb_reviews/plain_text", "1.0.0", folders.IMDB, {"train": rows}
    )
    stream = make_stream(open_tfds("imdb_reviews", data_dir=tmp_path), batch_size=2)
    with pytest.raises(ValueError, match=r"example 1 of .* has label -1, outside 0\.\.1"):
        next(stream)


# ------------------------------------------------------------------------ anything else


class Tensor:
    """As much of a torch tensor as NumPy needs."""

    def __init__(self, values):
        self.values = np.asarray(values)

    def __array__(self, dtype=None, copy=None):
        return self.values if dtype is None else self.values.astype(dtype)


LISTED = [(np.ones((3, 2)) * i, np.arange(3)) for i in range(4)]


def test_anything_iterable_of_inputs_and_targets_is_a_stream():
    loader = [[Tensor(x), Tensor(y)] for x, y in LISTED]
    batches = list(as_stream(loader, num_epochs=2))
    assert len(batches) == 8
    for batch, (inputs, targets) in zip(batches, LISTED * 2, strict=True):
        np.testing.assert_array_equal(batch.inputs, inputs)
        np.testing.assert_array_equal(batch.targets, targets)
        np.testing.assert_array_equal(batch.weights, np.ones(3))
        assert batch.inputs.dtype == np.float32 and batch.targets.dtype == np.int32


def test_a_torch_data_loader_is_a_stream():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    data = torch.utils.data.TensorDataset(torch.arange(10.0)[:, None], torch.arange(10))
    batches = list(as_stream(torch.utils.data.DataLoader(data, batch_size=4)))
    assert rows(batches) == list(range(10)) and batches[2].inputs.shape == (4, 1)


def test_weights_are_kept_and_short_batches_filled_up():
    short = (np.ones((1, 2)), np.zeros(1), np.array([0.5]))
    long = (np.ones((3, 2)), np.zeros(3), np.array([0.5, 0, 2]))
    batches = list(as_stream([long, Batch(*short)]))
    np.testing.assert_array_equal(batches[1].weights, [0.5, 0, 0])
    assert batches[1].inputs.shape == (3, 2)
    assert list(as_stream([short], batch_size=2))[0].inputs.shape == (2, 2)


def test_bytes_of_images_are_scaled_like_those_loaded():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 1), dtype=np.uint8)
    batch = next(as_stream([(pixels, np.arange(2))]))
    np.testing.assert_array_equal(batch.inputs, make_dataset(pixels, [0, 1]).inputs)


def test_a_list_goes_on_where_it_was():
    first = as_stream(LISTED, num_epochs=2)
    before = [next(first) for _ in range(5)]
    second = as_stream(LISTED, num_epochs=2)
    second.set_state(first.get_state())
    assert_same([*before, *second], as_stream(LISTED, num_epochs=2))
    with pytest.raises(ValueError, match="the data end after 4"):
        as_stream(LISTED).set_state(first.get_state())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "cannot be walked over once"),
        ([np.ones(3)], r"must yield \(inputs, targets\).*got ndarray"),
        ([(np.ones(3),)], "must yield"),
        ([(np.ones(3), np.ones(2))], r"shapes \[\(3,\), \(2,\)\]"),
        ([(np.ones(3), np.ones(3)), (np.ones(4), np.ones(4))], "less than the 4 rows"),
        ([(1.0, 2.0)], r"shapes \[\(\), \(\)\]"),
    ],
)
def test_what_is_no_stream_of_batches_is_refused(data, words):
    with pytest.raises(ValueError, match=words):
        list(as_stream(data))


def test_a_generator_is_walked_over_once_and_then_refused():
    with pytest.raises(ValueError, match="a second time: pass what can be, such as a list"):
        list(as_stream(iter(LISTED), num_epochs=2))


def test_a_stream_is_taken_as_it_is():
    stream = make_stream(DATA, batch_size=4)
    assert as_stream(stream) is stream


# ---------------------------------------------------------------------------- to devices


def test_prefetching_changes_no_batch_and_reports_the_one_in_hand():
    make = lambda: make_stream(DATA, batch_size=4, seed=5, num_epochs=3)
    first = prefetch_to_device(make(), size=3)
    before = [next(first) for _ in range(2)]
    assert isinstance(before[0].inputs, jax.Array)
    assert first.get_state()["batches"] == 2
    second = prefetch_to_device(make())
    second.set_state(first.get_state())
    assert_same([*before, *second], make())
    first.close()
    assert_same([*before, *first], make())


def test_a_batch_is_laid_over_the_devices_row_by_row():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, P("data"))
    batch = next(prefetch_to_device(make_stream(DATA, batch_size=4), sharding=sharding))
    assert batch.inputs.sharding == sharding
    shards = [np.asarray(shard.data)[:, 0].tolist() for shard in batch.inputs.addressable_shards]
    assert shards == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match="3 rows cannot be divided among 2 devices.* of 4"):
        to_devices(Batch(np.ones((3, 1)), np.ones(3), np.ones(3)), sharding)


def test_a_padded_batch_has_the_loss_of_the_bare_one(x64):
    inputs, targets = np.arange(3.0), np.array([1.0, 0.0, 5.0])
    bare = Batch(inputs, targets, np.array([1.0, 2.0, 1.0]))
    mean = lambda b: jnp.sum(b.weights * (b.inputs - b.targets) ** 2) / jnp.sum(b.weights)
    np.testing.assert_allclose(mean(pad_batch(bare, 8)), mean(bare), rtol=1e-15)
    assert pad_batch(bare, 3) is bare


def test_without_grain_the_way_out_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ImportError, match=r"pip install \"wdjax\[data\]\".*as_stream"):
        make_stream(DATA, batch_size=4)
