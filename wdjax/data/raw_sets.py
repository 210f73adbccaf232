"""Raw files to a TFDS folder, without TensorFlow: fetched, checked by SHA-256, written once.

TFDS prepares none of these sets itself without TensorFlow: it opens `.gz` and `.tar.gz` files by
`tf.io.gfile` and encodes images by `tf.image` (TFDS 4.9.10; shown by
`test_tfds_opens_no_archive_and_encodes_no_image_without_tensorflow`).
"""

import gzip
import hashlib
import http.client
import io
import math
import os
import re
import shutil
import struct
import tarfile
import threading
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wdjax.extras import need

EXAMPLES_PER_SHARD = 20_000
CONNECT_SECONDS = 5.0


class RawSet(NamedTuple):
    """A set that this module can prepare: TFDS's version and names, and how to read the files."""

    version: str
    config: str
    files: tuple[str, ...]
    keys: tuple[str, str]
    read: Callable[[Mapping[str, Path]], "RawExamples"]


class RawExamples(NamedTuple):
    """What raw files hold: the classes, and per split the examples as TFDS features."""

    class_names: tuple[str, ...]
    splits: dict[str, list[dict[str, Any]]]


class RawFile(NamedTuple):
    """Where a raw file is fetched from, how many bytes it has, and what they must hash to."""

    url: str
    size: int
    sha256: str


def raw_file_list(name: str) -> dict[str, RawFile]:
    """File name -> address, size and SHA-256, from the list that TFDS ships for the set."""
    import tensorflow_datasets as tfds

    root = Path(tfds.__file__).parent
    paths = [root / "url_checksums" / f"{name}.txt", root / "datasets" / name / "checksums.tsv"]
    lines = [line for path in paths if path.exists() for line in path.read_text().splitlines()]
    rows = [line.split("\t") for line in lines if line]
    return {row[3]: RawFile(row[0], int(row[1]), row[2]) for row in rows}


def placed_files(name: str, data_dir: Path) -> dict[str, Path]:
    """The set's raw files that lie in `data_dir`, or in the folder TFDS uses for manual files."""
    folders = (data_dir, data_dir / name, data_dir / "downloads" / "manual")
    found = {}
    for file in RAW_SETS[name].files:
        for folder in folders:
            if (folder / file).is_file():
                found.setdefault(file, folder / file)
    return found


def fetch_files(name: str, data_dir: Path) -> dict[str, Path]:
    """The raw files, those that are not there yet downloaded into `data_dir/downloads` by TFDS.

    Raises:
      ValueError: if the host cannot be reached within 5 s, the transfer fails, or the bytes are
        not those that TFDS lists.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.checksums import UrlInfo
    from tensorflow_datasets.core.units import Size

    found, listed = placed_files(name, data_dir), raw_file_list(name)
    missing = {file: listed[file] for file in RAW_SETS[name].files if file not in found}
    if not missing:
        return found
    check_connection(next(iter(missing.values())).url)
    infos = {raw.url: UrlInfo(Size(raw.size), raw.sha256, file) for file, raw in missing.items()}
    folder = data_dir / "downloads"
    try:
        manager = tfds.download.DownloadManager(
            download_dir=folder, url_infos=infos, force_checksums_validation=True
        )
        fetched = manager.download({file: raw.url for file, raw in missing.items()})
    except Exception as error:  # TFDS's own, those of requests, and the disk's.
        raise ValueError(
            f"{', '.join(missing)} cannot be fetched to {str(folder)!r} "
            f"({' '.join(str(error).split())}); put them there by hand."
        ) from error
    return found | {file: Path(path) for file, path in fetched.items()}


def check_connection(url: str, seconds: float = CONNECT_SECONDS) -> None:
    """Asks for the head of `url` and gives up after `seconds`, name resolution included.

    Raises:
      ValueError: if no answer came, with the ways to do without a network.
    """
    failure: list[str] = ["no answer"]

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(request, timeout=seconds).close()
        except urllib.error.HTTPError:
            failure.clear()  # A refusal is an answer: some servers know no HEAD.
        except (OSError, http.client.HTTPException) as error:
            failure[0] = str(getattr(error, "reason", error))
        else:
            failure.clear()

    # A timeout does not bound name resolution, so the question is asked beside this thread.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    if failure:
        raise ValueError(
            f"{urllib.parse.urlsplit(url).hostname} cannot be reached within {seconds:g} s "
            f"({failure[0]}); put {Path(urllib.parse.urlsplit(url).path).name} into the data "
            "folder by hand, or use data that ships with this package, such as digits."
        )


def prepare_raw(
    name: str,
    data_dir: Path,
    files: Mapping[str, Path],
    *,
    listed: Mapping[str, RawFile] | None = None,
) -> Path:
    """Writes the raw files of a set as array_record, where TFDS would, and returns the folder.

    Examples keep their source's split and are shuffled within it once, by a fixed seed, so that
    a slice such as `train[:10%]` is a fair sample. The folder appears whole or not at all.

    Args:
      files: file name -> path, all of the set's raw files.
      listed: their SHA-256, by default those that TFDS ships.

    Raises:
      ValueError: if a file's bytes are not those listed, or cannot be read, by its path.
    """
    raw = RAW_SETS[name]
    listed = raw_file_list(name) if listed is None else listed
    for file, path in files.items():
        check_sha256(path, listed[file].sha256)
    try:
        examples = raw.read(files)
    except (OSError, EOFError, zlib.error, struct.error, tarfile.TarError, KeyError) as error:
        paths = ", ".join(str(path) for path in files.values())
        raise ValueError(f"{paths} cannot be read ({error!r}); fetch the files again.") from error
    final = data_dir / name / raw.config / raw.version
    unfinished = final.with_name(f"incomplete.{raw.version}.{os.getpid()}")
    try:
        unfinished.mkdir(parents=True)
        _write(name, raw, examples, unfinished)
        if not final.exists():  # Another process may have been first; its folder is as good.
            unfinished.rename(final)
    except OSError as error:
        raise ValueError(f"{str(final)!r} cannot be written ({error}).") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return final


def check_sha256(path: Path, expected: str) -> None:
    """Checks a file's bytes.

    Raises:
      ValueError: if they hash to anything else.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise ValueError(
            f"{str(path)!r} is not the published file: its SHA-256 is {found}, and TFDS lists "
            f"{expected}; remove it and fetch it again."
        )


def _write(name: str, raw: RawSet, examples: RawExamples, folder: Path) -> None:
    import tensorflow_datasets as tfds

    input_key, target_key = raw.keys
    features: dict[str, Any] = {
        target_key: tfds.features.ClassLabel(names=list(examples.class_names))
    }
    sample = next(iter(examples.splits.values()))[0]
    image = isinstance(sample[input_key], np.ndarray)
    if image:
        features[input_key] = tfds.features.Image(
            shape=sample[input_key].shape, encoding_format="png"
        )
    for key in sample:
        features.setdefault(key, tfds.features.Text())
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name=name,
            version=tfds.core.Version(raw.version),
            data_dir=str(folder),
            module_name=__name__,
            config_name=raw.config or None,
        ),
        features=tfds.features.FeaturesDict(features),
        supervised_keys=raw.keys,
    )
    writer = tfds.core.SequentialWriter(info, EXAMPLES_PER_SHARD, file_format="array_record")
    writer.initialize_splits(list(examples.splits))
    for split, rows in examples.splits.items():
        order = np.random.default_rng(0).permutation(len(rows))
        for chunk in np.array_split(order, max(1, len(rows) // 1000)):
            part = [rows[i] for i in chunk]
            if image:
                part = [{**row, input_key: _png(row[input_key])} for row in part]
            writer.add_examples({split: part})
    writer.close_all()


def _png(pixels: np.ndarray) -> bytes:
    image: Any = need("PIL.Image", what="writing images")
    buffer = io.BytesIO()
    image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _read_mnist(files: Mapping[str, Path]) -> RawExamples:
    """The IDX format: a magic number, the sizes (big-endian), then the bytes."""
    splits = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = read_idx(files[f"{prefix}-images-idx3-ubyte.gz"], 3)[..., None]
        labels = read_idx(files[f"{prefix}-labels-idx1-ubyte.gz"], 1)
        splits[split] = [
            {"image": image, "label": int(label)}
            for image, label in zip(images, labels, strict=True)
        ]
    return RawExamples(tuple(map(str, range(10))), splits)


def read_idx(path: Path, num_axes: int) -> np.ndarray:
    """The bytes of an IDX file, plain or gzip, `[example, ...]`: its header says their sizes.

    Raises:
      OSError: if it is no IDX file of so many axes, or holds other than its header says.
    """
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    sizes = struct.unpack_from(f">{num_axes + 1}I", content)
    start = 4 * (num_axes + 1)
    if sizes[0] != 2048 + num_axes or len(content) - start != math.prod(sizes[1:]):
        raise OSError(f"{path.name} is no IDX file of {num_axes} axes")
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes[1:])


CIFAR_SHAPE = (3, 32, 32)
"""Of an image in CIFAR-10's own files: plane by plane (red, green, blue)."""


def read_cifar_records(content: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """`images[example, 32, 32, 3]` and `labels[example]` of one of CIFAR-10's binary files.

    A record is one label byte and 32 x 32 pixels, plane by plane.

    Raises:
      OSError: if the bytes are not whole records.
    """
    size = 1 + math.prod(CIFAR_SHAPE)
    if not content or len(content) % size:
        raise OSError(f"{name} does not hold whole records")
    records = np.frombuffer(content, np.uint8).reshape(-1, size)
    return records[:, 1:].reshape(-1, *CIFAR_SHAPE).transpose(0, 2, 3, 1), records[:, 0]


def _read_cifar10(files: Mapping[str, Path]) -> RawExamples:
    splits: dict[str, list] = {"train": [], "test": []}
    folder = "cifar-10-batches-bin"
    with tarfile.open(files["cifar-10-binary.tar.gz"]) as archive:
        names = _member(archive, f"{folder}/batches.meta.txt").decode().split()
        members = [("train", f"data_batch_{i}.bin") for i in range(1, 6)]
        for split, member in [*members, ("test", "test_batch.bin")]:
            images, labels = read_cifar_records(_member(archive, f"{folder}/{member}"), member)
            for image, label in zip(images, labels, strict=True):
                splits[split].append(
                    {
                        "id": f"{split}_{len(splits[split]):05d}",
                        "image": image,
                        "label": int(label),
                    }
                )
    return RawExamples(tuple(names), splits)


def _read_imdb(files: Mapping[str, Path]) -> RawExamples:
    """One text file per review; the folder is its label, and -1 stands for none."""
    place = re.compile(r"aclImdb/(train|test)/(neg|pos|unsup)/[^/]+\.txt")
    labels = {"neg": 0, "pos": 1, "unsup": -1}
    splits: dict[str, list] = {"train": [], "test": [], "unsupervised": []}
    with tarfile.open(files["aclImdb_v1.tar.gz"]) as archive:
        for member in archive:
            if match := place.fullmatch(member.name):
                split = "unsupervised" if match[2] == "unsup" else match[1]
                text = _content(archive, member).strip()
                splits[split].append({"text": text, "label": labels[match[2]]})
    return RawExamples(("neg", "pos"), {s: rows for s, rows in splits.items() if rows})


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    return _content(archive, archive.getmember(name))


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    if file is None:
        raise OSError(f"{member.name} is not a file")
    return file.read()


RAW_SETS = {
    "mnist": RawSet(
        "3.0.1",
        "",
        tuple(
            f"{part}-{content}-ubyte.gz"
            for part in ("train", "t10k")
            for content in ("images-idx3", "labels-idx1")
        ),
        ("image", "label"),
        _read_mnist,
    ),
    "cifar10": RawSet("3.0.2", "", ("cifar-10-binary.tar.gz",), ("image", "label"), _read_cifar10),
    "imdb_reviews": RawSet(
        "1.0.0", "plain_text", ("aclImdb_v1.tar.gz",), ("text", "label"), _read_imdb
    ),
}
"""The sets whose raw files are read here; TFDS itself needs TensorFlow to prepare the images."""
