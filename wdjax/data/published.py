"""CIFAR-10 and MNIST as they are published: their own files, or a folder of TFDS."""

import gzip
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from wdjax.data.pickles import plain, read_pickle
from wdjax.data.raw_sets import CIFAR_SHAPE, read_cifar_records, read_idx
from wdjax.data.tfds import data_folder, open_tfds, read_tfds

CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer")
CIFAR_CLASSES += ("dog", "frog", "horse", "ship", "truck")
PARTS = ("train", "test")


class PublishedPart(NamedTuple):
    """A part of a published set, as its authors divided it."""

    images: np.ndarray
    """uint8 `[example, row, column, channel]`."""
    labels: np.ndarray
    class_names: tuple[str, ...]
    folder: Path
    """Where its files lie."""


class _Form(NamedTuple):
    """Files in which a set is published."""

    files: str
    """What they are, as a message says it."""
    folders: tuple[str, ...]
    """Where they may lie, below the folder of data."""
    signs: tuple[str, ...]
    """Names of files, of which one says that the set is there in this form."""
    read: Callable[[Path, str], tuple[np.ndarray, np.ndarray, tuple[str, ...]]]
    """`(folder, part) -> images, labels, class names`."""


def find_published(name: str, data_dir: str | os.PathLike | None = None) -> Path | None:
    """The folder with the set's files; None if there is none.

    Raises:
      ValueError: for a `data_dir` that is a file or cannot be read.
    """
    found = _find(name, data_folder(data_dir))
    return None if found is None else found[1]


def read_published(
    name: str, part: str, data_dir: str | os.PathLike | None = None
) -> PublishedPart:
    """One part of a set, from the files that are found first: TFDS', then its own forms.

    - `cifar10`: `cifar-10-batches-py` (pickles, of which nothing is executed) or
      `cifar-10-batches-bin` (records of 3,073 bytes);
    - `mnist`: the four IDX files, plain or `.gz`.

    They lie in `data_dir` (by default TFDS' folder), in a folder below that has the set's name,
    or where torchvision puts them.

    Raises:
      ValueError: if there are none, with what was looked for; if one is missing or damaged, by
        its path.
    """
    folder = data_folder(data_dir)
    found = _find(name, folder)
    if found is None:
        wanted = " or ".join(f"{form.files}" for form in FORMS[name])
        raise ValueError(
            f"data {name!r} is not in {str(folder)!r}, where {wanted} would do; point data_dir "
            f"(--data-dir) at the folder that holds them, or let tfds:{name} fetch it (--download)."
        )
    form, place = found
    try:
        images, labels, classes = form.read(place, part)
    except (OSError, EOFError, zlib.error, struct.error, gzip.BadGzipFile) as error:
        reason = getattr(error, "strerror", None) or error
        file = getattr(error, "filename", None) or place
        raise ValueError(
            f"data {name!r}: {str(file)!r} cannot be read ({reason}); fetch it again."
        ) from None
    if len(images) != len(labels):
        raise ValueError(
            f"data {name!r}: {str(place)!r} holds {len(images)} images and {len(labels)} labels of "
            f"the {part} part; fetch them again."
        )
    return PublishedPart(images, labels, classes, place)


def _find(name: str, folder: Path) -> tuple[_Form, Path] | None:
    for form in FORMS[name]:
        for below in form.folders:
            for sign in form.signs:
                found = next(iter(sorted((folder / below).glob(sign))), None)
                if found is not None:
                    return form, found.parent
    return None


def _files_of(part: str, ending: str = "") -> list[str]:
    if part == PARTS[0]:
        return [f"data_batch_{number}{ending}" for number in range(1, 6)]
    return [f"test_batch{ending}"]


def _read_cifar_pickles(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    batches = [_cifar_batch(folder / file) for file in _files_of(part)]
    images, labels = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    names = CIFAR_CLASSES
    meta = folder / "batches.meta"
    if meta.is_file():
        found = plain(read_pickle(meta, meta.read_bytes()))
        names = found.get("label_names", names) if isinstance(found, dict) else names
        names = tuple(n.decode() if isinstance(n, bytes) else str(n) for n in names)
    return images, labels, names


def _cifar_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    batch = plain(read_pickle(path, path.read_bytes()))
    pixels = batch.get("data") if isinstance(batch, dict) else None
    labels = batch.get("labels") if isinstance(batch, dict) else None
    size = int(np.prod(CIFAR_SHAPE))
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or pixels.ndim != 2
        or pixels.shape[1] != size
    ):
        raise OSError(0, f"its 'data' are no rows of {size:,} bytes", str(path))
    labels = np.asarray(labels if isinstance(labels, list | np.ndarray) else [])
    if labels.dtype.kind not in "ui" or labels.shape != (len(pixels),):
        raise OSError(0, f"its 'labels' are no {len(pixels)} whole numbers", str(path))
    return pixels.reshape(-1, *CIFAR_SHAPE).transpose(0, 2, 3, 1), labels


def _read_cifar_binary(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    files = _files_of(part, ".bin")
    read = [read_cifar_records((folder / file).read_bytes(), file) for file in files]
    images, labels = (np.concatenate(arrays) for arrays in zip(*read, strict=True))
    return images, labels, CIFAR_CLASSES


def _read_idx_files(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    prefix = part if part == PARTS[0] else "t10k"
    images = read_idx(_idx_file(folder, f"{prefix}-images", 3), 3)[..., None]
    labels = read_idx(_idx_file(folder, f"{prefix}-labels", 1), 1)
    return images, labels, tuple(map(str, range(10)))


def _idx_file(folder: Path, start: str, num_axes: int) -> Path:
    """The file under any of its names: as published, and as some programs unpack it."""
    names = [f"{start}{sign}idx{num_axes}-ubyte{end}" for end in ("", ".gz") for sign in "-."]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(2, "it is missing", str(folder / names[0]))


def _tfds(name: str) -> _Form:
    def read(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        source = open_tfds(f"{folder}@{part}")
        return (*read_tfds(source), tuple(source.class_names))

    signs = ("*/dataset_info.json", "*/*/dataset_info.json")
    return _Form("a folder of TFDS", (name,), signs, read)


FORMS = {
    "cifar10": (
        _tfds("cifar10"),
        _Form(
            "cifar-10-batches-py",
            ("cifar-10-batches-py", "cifar10/cifar-10-batches-py", "cifar10", "."),
            ("data_batch_1", "test_batch"),
            _read_cifar_pickles,
        ),
        _Form(
            "cifar-10-batches-bin",
            ("cifar-10-batches-bin", "cifar10/cifar-10-batches-bin", "cifar10", "."),
            ("data_batch_1.bin", "test_batch.bin"),
            _read_cifar_binary,
        ),
    ),
    "mnist": (
        _tfds("mnist"),
        _Form(
            "MNIST's idx files (train-images-idx3-ubyte, plain or .gz)",
            (".", "mnist", "MNIST/raw", "MNIST"),
            ("train-images?idx3-ubyte*", "t10k-images?idx3-ubyte*"),
            _read_idx_files,
        ),
    ),
}
"""The forms in which each set is looked for, in their order."""
