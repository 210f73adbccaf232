"""CIFAR-10 and MNIST in their own files, made small, and folders of pictures."""

import gzip
import json
import pickle
import struct

import numpy as np
import pytest
from PIL import Image

from wdjax.data import load_choose_and_test, load_data
from wdjax.data.pickles import plain, read_pickle

RNG = np.random.default_rng(0)


def python2_pickle(pixels, labels):
    """The bytes that Python 2 wrote for a batch, byte for byte as in the published files.

    Its texts are those of one byte a letter (`U`), which Python 3's pickle does not write.
    """
    short = lambda text: b"U" + bytes([len(text)]) + text
    number = lambda n: b"K" + bytes([n]) if n < 256 else b"M" + struct.pack("<H", n)
    content = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + b"K\x00\x85"
    content += short(b"b") + b"tR(K\x01" + number(pixels.shape[0]) + number(pixels.shape[1])
    content += b"\x86cnumpy\ndtype\n(" + short(b"u1") + b"K\x00K\x01tR(K\x03" + short(b"|")
    content += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
    raw = pixels.tobytes()
    content += b"T" + struct.pack("<I", len(raw)) + raw + b"tb"
    batch = short(b"batch_label") + short(b"training batch 1 of 5")
    batch += short(b"labels") + b"](" + b"".join(map(number, labels)) + b"e"
    batch += short(b"data") + content
    return b"\x80\x02}(" + batch + b"u."


def write_cifar(folder, *, form="python", rows=12):
    """CIFAR-10's files with `rows` images each; `(images, labels)` by part."""
    made = {"train": [], "test": []}
    folder.mkdir(parents=True)
    for number in range(6):
        part, name = ("train", f"data_batch_{number + 1}") if number < 5 else ("test", "test_batch")
        labels = np.arange(rows) % 10
        pixels = RNG.integers(0, 256, (rows, 3, 32, 32), np.uint8)
        made[part].append((pixels.transpose(0, 2, 3, 1), labels))
        flat = pixels.reshape(rows, -1)
        if form == "binary":
            records = np.concatenate([labels[:, None].astype(np.uint8), flat], axis=1)
            (folder / f"{name}.bin").write_bytes(records.tobytes())
        else:
            (folder / name).write_bytes(python2_pickle(flat, labels.tolist()))
    if form == "python":
        names = [f"class {i}".encode() for i in range(10)]
        meta = pickle.dumps({b"label_names": names, b"num_vis": 3072}, protocol=2)
        (folder / "batches.meta").write_bytes(meta)
    return {
        part: tuple(np.concatenate(arrays) for arrays in zip(*batches, strict=True))
        for part, batches in made.items()
    }


def write_idx(path, array, *, zipped):
    content = struct.pack(f">{array.ndim + 1}I", 2048 + array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if zipped else content)


@pytest.mark.parametrize("form", ["python", "binary"])
@pytest.mark.parametrize("below", ["", "cifar10/"])
def test_cifars_own_files_are_read_as_they_were_written(form, below, tmp_path):
    short = {"python": "py", "binary": "bin"}[form]
    made = write_cifar(tmp_path / f"{below}cifar-10-batches-{short}", form=form)
    train, test = load_choose_and_test("cifar10", data_dir=tmp_path, keep_bytes=True)
    for part, (images, labels) in zip((train, test), made.values(), strict=True):
        np.testing.assert_array_equal(part.inputs, images)
        np.testing.assert_array_equal(part.targets, labels)
        assert part.kind == "image" and part.num_outputs == 10
    assert train.class_names[3] == ("class 3" if form == "python" else "cat")
    assert f"cifar-10-batches-{short}" in train.about
    floats = load_data("cifar10@test", data_dir=tmp_path).inputs
    np.testing.assert_allclose(floats, made["test"][0] / 255, rtol=1e-6)


def test_a_folder_that_holds_the_files_itself_will_do(tmp_path):
    write_cifar(tmp_path / "here")
    assert len(load_data("cifar10", data_dir=tmp_path / "here").inputs) == 60


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("sign", ["-", "."])
def test_mnists_idx_files_are_read_as_they_were_written(zipped, sign, tmp_path):
    end = ".gz" if zipped else ""
    made = {}
    for part, prefix in (("train", "train"), ("test", "t10k")):
        images = RNG.integers(0, 256, (20, 28, 28), np.uint8)
        labels = np.arange(20, dtype=np.uint8) % 10
        write_idx(tmp_path / f"{prefix}-images{sign}idx3-ubyte{end}", images, zipped=zipped)
        write_idx(tmp_path / f"{prefix}-labels{sign}idx1-ubyte{end}", labels, zipped=zipped)
        made[part] = images, labels
    train, test = load_choose_and_test("mnist", data_dir=tmp_path, keep_bytes=True)
    for part, (images, labels) in zip((train, test), made.values(), strict=True):
        np.testing.assert_array_equal(part.inputs[..., 0], images)
        np.testing.assert_array_equal(part.targets, labels)
    (tmp_path / f"train-labels{sign}idx1-ubyte{end}").unlink()
    with pytest.raises(ValueError, match="train-labels-idx1-ubyte.*it is missing.*fetch it again"):
        load_data("mnist", data_dir=tmp_path)


class Harmful:
    """A pickle of it writes a file when it is loaded by `pickle`."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_that_names_anything_else_is_refused_and_not_run(tmp_path):
    folder, mark = tmp_path / "cifar-10-batches-py", tmp_path / "mark"
    write_cifar(folder)
    harmful = pickle.dumps({b"data": Harmful(mark), b"labels": [1]}, protocol=2)
    (folder / "data_batch_3").write_bytes(harmful)
    with pytest.raises(
        ValueError, match=r"data_batch_3.* names '(_?io|__builtin__|builtins)\.open'"
    ):
        load_data("cifar10", data_dir=tmp_path)
    assert not mark.exists()
    pickle.loads(harmful)[b"data"].close()
    assert mark.exists()  # The pickle would have.


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dtype", ["uint8", "int64", ">i2"])
def test_arrays_that_python_3_pickled_are_read_by_every_protocol(protocol, dtype, tmp_path):
    array = np.arange(12).reshape(3, 4).astype(dtype)
    for layout in (array, np.asfortranarray(array)):
        found = plain(read_pickle(tmp_path, pickle.dumps({"data": layout}, protocol=protocol)))
        np.testing.assert_array_equal(found["data"], array)


@pytest.mark.parametrize(
    "value",
    [np.array([object()]), np.array([1.5]), np.array(["a"]), np.zeros(2, "u1,u1")],
    ids=["objects", "floats", "words", "records"],
)
def test_arrays_of_other_than_whole_numbers_are_refused(value, tmp_path):
    with pytest.raises(ValueError, match="names 'builtins.object'|not of whole numbers|names"):
        read_pickle(tmp_path, pickle.dumps(value, protocol=2))


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda f: (f / "data_batch_2").unlink(), "data_batch_2.*No such file.*fetch it again"),
        (lambda f: (f / "test_batch").write_bytes(b"\x80\x02"), "test_batch.*cannot be read as"),
        (
            lambda f: (f / "test_batch").write_bytes((f / "test_batch").read_bytes()[:-999]),
            "test_batch.*cannot be read as a pickle of arrays",
        ),
        (
            lambda f: (f / "data_batch_1").write_bytes(pickle.dumps([1])),
            "data_batch_1.*'data' are no rows of 3,072 bytes",
        ),
        (
            lambda f: (f / "data_batch_1").write_bytes(
                python2_pickle(np.zeros((3, 3072), np.uint8), [1, 2])
            ),
            "data_batch_1.*'labels' are no 3 whole numbers",
        ),
        (
            lambda f: (f / "data_batch_1").write_bytes(
                python2_pickle(np.zeros((3, 3072), np.uint8), [1, 2, 10])
            ),
            "must be labels 0..9, got 10",
        ),
    ],
    ids=["missing", "empty", "cut", "other", "labels", "class 10"],
)
def test_a_damaged_batch_is_refused_by_its_name(change, words, tmp_path):
    write_cifar(tmp_path / "cifar-10-batches-py")
    change(tmp_path / "cifar-10-batches-py")
    with pytest.raises(ValueError, match=words):
        load_choose_and_test("cifar10", data_dir=tmp_path)


def test_a_set_that_is_not_there_is_refused_with_what_was_looked_for(tmp_path):
    words = "'cifar10' is not in .*cifar-10-batches-py or cifar-10-batches-bin.*--data-dir"
    with pytest.raises(ValueError, match=words):
        load_data("cifar10", data_dir=tmp_path)
    with pytest.raises(ValueError, match="does not fit the data set 'cifar10'"):
        load_data("cifar10", data_dir=tmp_path, loss="squared_error")


# A folder a class.


def write_pictures(folder, sizes, *, mode="RGB", form="png", classes=("cat", "dog")):
    """A picture of each size a class, in one colour by the class."""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number, size in enumerate(sizes):
            colour = (40 + 100 * label, 10, 200)[: len(mode)]
            picture = Image.new(mode, size, colour if len(mode) > 1 else colour[0])
            picture.save(folder / name / f"{number}.{form}")


def test_pictures_of_one_small_size_stay_as_they_are(tmp_path):
    write_pictures(tmp_path / "pets", [(20, 16)] * 3)
    data = load_data(f"images:{tmp_path / 'pets'}", keep_bytes=True)
    assert data.inputs.shape == (6, 16, 20, 3) and data.inputs.dtype == np.uint8
    np.testing.assert_array_equal(data.targets, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(data.inputs[3, 5, 5], [140, 10, 200])
    assert (data.name, data.class_names, data.about) == ("pets", ("cat", "dog"), "")


def test_others_are_cropped_to_their_middle_and_resized_which_is_said(tmp_path):
    write_pictures(tmp_path, [(100, 40), (70, 70)], form="jpg", mode="L")
    wide = np.zeros((64, 192), np.uint8)
    wide[:, 64:128] = 255  # The central square is white.
    Image.fromarray(wide).save(tmp_path / "cat" / "2.png")
    data = load_data(f"images:{tmp_path}", keep_bytes=True)
    assert data.inputs.shape == (5, 32, 32, 1)
    assert (data.inputs[2] >= 254).mean() > 0.9
    assert "central square and resized to 32 x 32" in data.about


def test_train_and_test_are_the_authors_parts_with_one_size_and_one_order_of_classes(tmp_path):
    write_pictures(tmp_path / "train", [(8, 8)] * 2, classes=("a", "b", "c"))
    write_pictures(tmp_path / "test", [(8, 8)], classes=("c",))
    train, test = load_choose_and_test(f"images:{tmp_path}")
    assert (len(train.inputs), len(test.inputs)) == (6, 1)
    np.testing.assert_array_equal(test.targets, [2])
    assert test.num_outputs == 3
    write_pictures(tmp_path / "test" / "more", [(8, 9)])
    with pytest.raises(ValueError, match="has the class 'more' in test and not in train"):
        load_data(f"images:{tmp_path}")


def test_pictures_that_cannot_be_read_are_named(tmp_path):
    write_pictures(tmp_path, [(9, 9)] * 2)
    (tmp_path / "cat" / "bad.png").write_bytes(b"no picture")
    whole = (tmp_path / "dog" / "1.png").read_bytes()
    (tmp_path / "dog" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "dog" / ".hidden.png").write_bytes(b"passed over")
    with pytest.raises(ValueError, match=r"of 6 pictures cannot be read: cat/bad.png \(no PNG or"):
        load_data(f"images:{tmp_path}")
    (tmp_path / "cat" / "bad.png").unlink()
    with pytest.raises(ValueError, match="1 of 5 pictures cannot be read: dog/cut.png"):
        load_data(f"images:{tmp_path}")
    (tmp_path / "dog" / "cut.png").unlink()
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(tmp_path / "dog" / "deep.png")
    with pytest.raises(ValueError, match="more than 8 bits a channel"):
        load_data(f"images:{tmp_path}")


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda f: None, "has 0 folders of classes"),
        (lambda f: (f / "one").mkdir(), "has 1 folder of classes"),
        (lambda f: [(f / n).mkdir() for n in "ab"], "no .png or .jpg in the folder of class 'a'"),
    ],
)
def test_a_folder_without_classes_is_refused(make, words, tmp_path):
    make(tmp_path)
    with pytest.raises(ValueError, match=words):
        load_data(f"images:{tmp_path}")
    with pytest.raises(ValueError, match="there is no such folder"):
        load_data(f"images:{tmp_path}/none")


def test_a_folder_of_tfds_is_found_by_the_same_name(tmp_path):
    """It comes first, and says itself what is wrong with it."""
    folder = tmp_path / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text(json.dumps({"name": "cifar10"}))
    write_cifar(tmp_path / "cifar-10-batches-py")
    with pytest.raises(ValueError, match="description|cannot be read|feature"):
        load_data("cifar10", data_dir=tmp_path)
