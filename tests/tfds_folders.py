"""Writes real TFDS folders and real raw files, small: true names and features, tiny content."""

import gzip
import io
import json
import pathlib
import struct
import tarfile

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

CIFAR10 = {
    "id": tfds.features.Text(),
    "image": tfds.features.Image(shape=(32, 32, 3), encoding_format="png"),
    "label": tfds.features.ClassLabel(num_classes=10),
}
MNIST = {
    "image": tfds.features.Image(shape=(28, 28, 1), encoding_format="png"),
    "label": tfds.features.ClassLabel(num_classes=10),
}
IMDB = {
    "text": tfds.features.Text(),
    "label": tfds.features.ClassLabel(names=["neg", "pos"]),
}


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(buffer, "PNG")
    return buffer.getvalue()


def images(num, shape, seed=0):
    """Random images, and labels that walk through ten classes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (num, *shape), dtype=np.uint8)
    return pixels, np.arange(num) % 10


def image_rows(pixels, labels):
    return [
        {"image": png(image), "label": int(label), **({"id": f"train_{i:05d}"})}
        for i, (image, label) in enumerate(zip(pixels, labels, strict=True))
    ]


def write_folder(root, name, version, features, splits, *, supervised=None, shard=8):
    """A folder as TFDS prepares it, in array_record; `name` may be `name/config`."""
    folder = pathlib.Path(root) / name / version
    folder.mkdir(parents=True)
    base, _, config = name.partition("/")
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name=base,
            version=tfds.core.Version(version),
            data_dir=str(folder),
            module_name=__name__,
            config_name=config or None,
        ),
        features=tfds.features.FeaturesDict(features),
        supervised_keys=supervised,
    )
    writer = tfds.core.SequentialWriter(info, shard, file_format="array_record")
    writer.initialize_splits(list(splits))
    rows = {s: [{k: r[k] for k in features} for r in rows] for s, rows in splits.items()}
    writer.add_examples(rows)
    writer.close_all()
    return folder


def as_tfrecord(folder):
    """Rewrites an array_record folder as TensorFlow would have written it: framed records."""
    folder = pathlib.Path(folder)
    builder = tfds.builder_from_directory(folder)
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    description = json.loads((folder / "dataset_info.json").read_text())
    for split in description["splits"]:
        records = iter(builder.as_data_source(split=split["name"], deserialize_method=raw))
        lengths = [int(n) for n in split["shardLengths"]]
        for i, length in enumerate(lengths):
            path = f"{description['name']}-{split['name']}.tfrecord-{i:05d}-of-{len(lengths):05d}"
            (folder / path).write_bytes(b"".join(frame(next(records)) for _ in range(length)))
        split["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    description["fileFormat"] = "tfrecord"
    (folder / "dataset_info.json").write_text(json.dumps(description))
    for path in folder.glob("*.array_record*"):
        path.unlink()


def frame(payload):
    length = struct.pack("<Q", len(payload))
    return length + masked_crc32c(length) + payload + masked_crc32c(payload)


def masked_crc32c(content):
    crc = slow_crc32c(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def slow_crc32c(content):
    """The definition, bit by bit: polynomial 0x1EDC6F41, reflected."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def write_idx(path, array):
    """MNIST's format, as published: big-endian sizes behind a magic number, in gzip."""
    header = struct.pack(f">{array.ndim + 1}I", 2048 + array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


def write_mnist_raw(folder, num_train=20, num_test=10):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, num in (("train", num_train), ("t10k", num_test)):
        pixels, labels = images(num, (28, 28), seed=num)
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", pixels)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", labels)


CIFAR10_NAMES = "airplane automobile bird cat deer dog frog horse ship truck".split()


def write_cifar10_raw(folder, num_per_file=4):
    """CIFAR-10's archive, as published: per record a label and three planes of 32 x 32."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as archive:
        add(archive, "cifar-10-batches-bin/batches.meta.txt", "\n".join(CIFAR10_NAMES) + "\n\n")
        for seed, name in enumerate(names):
            pixels, labels = images(num_per_file, (32, 32, 3), seed)
            planes = pixels.transpose(0, 3, 1, 2).reshape(num_per_file, -1)
            content = np.concatenate([labels[:, None].astype(np.uint8), planes], axis=1)
            add(archive, f"cifar-10-batches-bin/{name}", content.tobytes())


def write_imdb_raw(folder, num_per_label=3):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "aclImdb_v1.tar.gz", "w:gz") as archive:
        add(archive, "aclImdb/README", "not a review")
        for split, labels in (("train", ("neg", "pos", "unsup")), ("test", ("neg", "pos"))):
            for label in labels:
                for i in range(num_per_label):
                    text = f" {split} {label} nº {i}\n"
                    add(archive, f"aclImdb/{split}/{label}/{i}_7.txt", text)


def add(archive, name, content):
    content = content.encode() if isinstance(content, str) else content
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))
