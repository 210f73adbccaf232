"""TFDS sets by name, read without TensorFlow from array_record, parquet or TFRecord folders."""

import dataclasses
import functools
import logging
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

from wdjax.checks import check_positive_int, nearest
from wdjax.data.features import FEATURES, UntrustedError, check_features
from wdjax.data.raw_sets import (
    RAW_SETS,
    check_connection,
    fetch_files,
    placed_files,
    prepare_raw,
    raw_file_list,
)
from wdjax.data.text import DEFAULT_LENGTH, encode_text
from wdjax.data.tfrecord import Slice, TfRecords
from wdjax.extras import check_installed

DEFAULT_SPLIT = "train"


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """A split of a prepared set: `source[i] -> (input, target)`, NumPy, at any position.

    An image is uint8 `[row, column, channel]`, a text int32 `[length]`, a target a label or a
    number. It pickles, so that grain's workers can read it.
    """

    name: str
    """As TFDS writes it, with its version and split: `mnist:3.0.1@train[:10%]`."""
    kind: str
    num_classes: int | None
    """None where the target is a number."""
    class_names: tuple[str, ...]
    keys: tuple[str, str]
    slices: tuple[Slice, ...]
    features: Any = dataclasses.field(repr=False)
    records: Any = dataclasses.field(repr=False)
    length: int | None = None

    def __len__(self) -> int:
        """The examples in the split."""
        return len(self.records)

    def __getitem__(self, position: SupportsIndex) -> tuple[np.ndarray, np.ndarray]:
        """One example.

        Raises:
          ValueError: if its record is damaged, with the name of the file.
        """
        return self.__getitems__([position])[0]

    def __getitems__(
        self, positions: Sequence[SupportsIndex]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Several examples, in one read where the format allows it.

        Raises:
          ValueError: if a record is damaged, with the name of the file.
        """
        return self._read([range(len(self))[p.__index__()] for p in positions], self._decode)

    def targets(self) -> np.ndarray:
        """Every target, in order: all records are read, and nothing else of them is decoded.

        Raises:
          ValueError: if a record is damaged, with the name of the file.
        """
        key = self.keys[1]
        target_only = type(self.features)({key: self.features[key]})
        decode = lambda record: target_only.deserialize_example_np(record)[key]
        found = []
        for start in range(0, len(self), 256):
            found += self._read(range(start, min(start + 256, len(self))), decode)
        return np.array(found)

    def _read(self, places: Sequence[int], decode: Callable[[Any], Any]) -> list[Any]:
        try:
            records = self.records.__getitems__(list(places))
        except Exception:  # Which one it was, is found one by one.
            records = [self._at(place, self.records.__getitem__, place) for place in places]
        return [self._at(*at) for at in zip(places, repeat(decode), records, strict=False)]

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Every example, in order."""
        for start in range(0, len(self), 256):
            yield from self.__getitems__(range(start, min(start + 256, len(self))))

    def _decode(self, record: Any) -> tuple[np.ndarray, np.ndarray]:
        example = self.features.deserialize_example_np(record)
        inputs = example[self.keys[0]]
        if self.kind == "text":
            inputs = encode_text([inputs], self.length or DEFAULT_LENGTH)[0]
        return np.asarray(inputs), np.asarray(example[self.keys[1]])

    def _at(self, position: int, read: Callable[[Any], Any], what: Any) -> Any:
        """`read(what)`; an error names the file that holds `position`."""
        try:
            return read(what)
        except Exception as error:  # Each reader and decoder has its own kind of error.
            raise ValueError(
                f"data shard {self._file_of(position)!r} is damaged or missing ({error}); fetch "
                "or prepare it again."
            ) from error

    def _file_of(self, position: int) -> str:
        ends = np.cumsum([piece.take for piece in self.slices])
        return self.slices[int(np.searchsorted(ends, position, side="right"))].path


def open_tfds(
    name: str,
    *,
    data_dir: str | os.PathLike | None = None,
    download: bool = False,
    length: int | None = None,
) -> TfdsSource:
    """Finds a set on disk, or prepares it from its raw files, and opens a split of it.

    Args:
      name: as TFDS writes it, with the split behind an `@`: `cifar10`, `mnist:3.0.1@test`,
        `imdb_reviews/plain_text@train[:10%]+test`; the split is `train` if none is given. Or a
        folder that holds a `dataset_info.json`.
      data_dir: where TFDS keeps prepared sets; None means what TFDS takes by default, the
        environment's `TFDS_DATA_DIR` or `~/tensorflow_datasets`.
      download: whether a set that is not there may be fetched. The connection is tried for 5 s
        first. CIFAR-10, MNIST and IMDB reviews need no TensorFlow for that; raw files of theirs
        that lie in `data_dir` are prepared without asking.
      length: bytes of a text, cut or padded by 0.

    Raises:
      ValueError: if the set, its split or its file format is not to be had, with the ways to
        provide it; if it has no single image or text and no label or number to predict from it.
      ImportError: if what reads its format or its images is not installed:
        `pip install "wdjax[cli]"`.
    """
    name, _, split = name.partition("@")
    info = _find_or_prepare(name, data_folder(data_dir), download)
    return _open_split(info, split or DEFAULT_SPLIT, length)


def split_sizes(name: str, *, data_dir: str | os.PathLike | None = None) -> dict[str, int]:
    """The examples of every split of a set that `open_tfds` finds.

    Raises:
      ValueError: if the set is not there.
    """
    info = _find_or_prepare(name.partition("@")[0], data_folder(data_dir), download=False)
    return {split: info.splits[split].num_examples for split in info.splits}


def check_labels(targets: np.ndarray, source: TfdsSource, rows: np.ndarray) -> None:
    """Checks, on the host, that the targets of `rows` are labels of the classes, if it has any.

    Raises:
      ValueError: naming the first that is none.
    """
    if source.num_classes is None:
        return
    wrong = np.flatnonzero((targets < 0) | (targets >= source.num_classes))
    if len(wrong):
        raise ValueError(
            f"example {rows[wrong[0]]} of 'tfds:{source.name}' has label {targets[wrong[0]]}, "
            f"outside 0..{source.num_classes - 1}; choose a split that is labelled."
        )


def read_tfds(source: TfdsSource) -> tuple[np.ndarray, np.ndarray]:
    """All examples of a source in memory, images as bytes: `(inputs, targets)`."""
    inputs, targets = zip(*source, strict=True) if len(source) else ((), ())
    return np.array(inputs), np.array(targets)


def data_folder(data_dir: str | os.PathLike | None) -> Path:
    """Where TFDS keeps its sets; it need not be there yet, and is no file.

    Raises:
      ValueError: if it is a file, or cannot be read.
    """
    folder = Path(data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))
    way = "point data_dir (--data-dir) at a folder of TFDS"
    try:
        folder = folder.expanduser()
        is_other = not stat.S_ISDIR(os.stat(folder).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return folder
    except (OSError, RuntimeError, ValueError) as error:  # No home, a name too long, a NUL byte.
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"`data_dir` {str(folder)!r} cannot be read: {reason}; {way}.") from None
    if is_other:
        raise ValueError(f"`data_dir` {str(folder)!r} is a file; {way}.")
    return folder


def _find_or_prepare(name: str, data_dir: Path, download: bool) -> Any:
    base, missing = name.partition(":")[0].partition("/")[0], ""
    info = _find(name, data_dir)
    if info is None and base in RAW_SETS:
        raw = RAW_SETS[base]
        files = fetch_files(base, data_dir) if download else placed_files(base, data_dir)
        missing = ", ".join(file for file in raw.files if file not in files)
        if not missing:
            prepare_raw(base, data_dir, files)
            info = _find(name, data_dir)
    elif info is None and download:
        info = _prepare_with_tfds(name, base, data_dir)
    if info is None:
        by_hand = f", put {missing} into that folder" if missing else ""
        raise ValueError(
            f"data 'tfds:{name}' is not in {str(data_dir)!r}: pass download (--download) to fetch "
            f"it, point data_dir (--data-dir) at a folder that TFDS prepared{by_hand}, or use "
            f"data that ships with this package meanwhile, such as digits.{_nearest_set(base)}"
        )
    return info


def _find(name: str, data_dir: Path) -> Any:
    """The `DatasetInfo` of a prepared set, or None."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder

    try:
        if (Path(name) / "dataset_info.json").is_file():
            check_features(Path(name) / FEATURES)
            return tfds.builder_from_directory(name).info
        base = data_dir / re.split("[:/]", name)[0]
        for path in (*base.glob(f"*/{FEATURES}"), *base.glob(f"*/*/{FEATURES}")):
            check_features(path)
        return read_only_builder.builder_from_files(name, data_dir=data_dir).info
    except (tfds.core.DatasetNotFoundError, FileNotFoundError):
        return None
    except UntrustedError:
        raise
    except Exception as error:  # TFDS's own, those of JSON, of protocol buffers, of the system.
        raise ValueError(
            f"data 'tfds:{_short(name)}' has a description that cannot be read "
            f"({_first_line(error)}); fetch or prepare it again."
        ) from error


def _first_line(error: BaseException) -> str:
    return _short((str(error).splitlines() or [type(error).__name__])[0])


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."


def _prepare_with_tfds(name: str, base: str, data_dir: Path) -> Any:
    import tensorflow_datasets as tfds

    # TFDS reads without it, and looks for its own programs with it.
    check_installed("importlib_resources", what=f"preparing 'tfds:{name}'")
    listed = raw_file_list(base)
    check_connection(next(iter(listed.values())).url if listed else "https://www.tensorflow.org")
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare()
    except ModuleNotFoundError as error:
        raise ValueError(
            f"data 'tfds:{name}' cannot be prepared here ({str(error).splitlines()[-1]}): in any "
            f"environment that has TensorFlow run `tfds build {name} --file_format array_record "
            f"--data_dir {data_dir}` once; to read it, TensorFlow is not needed."
        ) from error
    except tfds.core.DatasetNotFoundError:
        raise ValueError(
            f"data 'tfds:{name}' is no set that TFDS knows.{_nearest_set(base)}"
        ) from None
    except Exception as error:  # The set's own program, the network's and the disk's errors.
        raise ValueError(
            f"data 'tfds:{name}' could not be prepared in {str(data_dir)!r} "
            f"({type(error).__name__}: {_first_line(error)}); prepare it with `tfds build {name}`."
        ) from error
    return builder.info


def _nearest_set(base: str) -> str:
    import tensorflow_datasets as tfds

    root = Path(tfds.__file__).parent
    names = {path.stem for path in (root / "url_checksums").glob("*.txt")}
    names |= {path.name for path in (root / "datasets").iterdir() if path.is_dir()}
    return "" if base in names else nearest(base, sorted(names))


def _open_split(info: Any, split: str, length: int | None) -> TfdsSource:
    import tensorflow_datasets as tfds

    try:
        chosen = info.splits[split]
        slices = tuple(
            Slice(str(part.filename), part.skip, part.take, part.examples_in_shard)
            for part in chosen.file_instructions
        )
    except (ValueError, KeyError, AssertionError) as error:
        raise ValueError(
            f"data 'tfds:{info.full_name}' has no split {_short(split)!r}, only "
            f"{', '.join(info.splits)} and slices of them such as train[:10%] "
            f"({_first_line(error)}).{nearest(split, info.splits)}"
        ) from None
    if not sum(piece.take for piece in slices):
        raise ValueError(
            f"data 'tfds:{info.full_name}' has no example in {split!r}; choose another split or a "
            "wider slice."
        )
    keys, kind = _input_and_target(info)
    if kind == "image":
        check_installed("PIL", what=f"reading the images of 'tfds:{info.full_name}'")
    if length is not None:
        check_positive_int("length", length)
        if kind != "text":
            raise ValueError(
                f"`length` = {length} is for texts, and 'tfds:{info.full_name}' holds {kind} "
                "data; leave it out."
            )
    label: Any = info.features[keys[1]]
    classes = isinstance(label, tfds.features.ClassLabel)
    return TfdsSource(
        name=":".join(info.full_name.rsplit("/", 1)) + f"@{split}",
        kind=kind,
        num_classes=label.num_classes if classes else None,
        class_names=tuple(label.names) if classes else (),
        keys=keys,
        slices=slices,
        features=info.features,
        records=_records(info, split, slices),
        length=length,
    )


def _records(info: Any, split: str, slices: Sequence[Slice]) -> Any:
    import tensorflow_datasets as tfds

    _hush_opencv_advice()
    file_format = info.file_format.value
    if file_format == "tfrecord":
        return TfRecords(slices)
    if file_format not in ("array_record", "parquet"):
        raise ValueError(
            f"'tfds:{info.full_name}' is stored as {file_format}, which is not read here; prepare "
            "it with `tfds build --file_format array_record`."
        )
    if file_format == "array_record":
        check_installed("array_record", what=f"reading 'tfds:{info.full_name}'")
    method = tfds.decode.DeserializeMethod.RAW_BYTES
    try:
        builder: Any = tfds.builder_from_directory(info.data_dir)
        records = builder.as_data_source(split=split, deserialize_method=method)
    except Exception as error:  # Each reader has its own kind.
        raise ValueError(
            f"data {str(info.data_dir)!r} cannot be read ({_first_line(error)}); fetch or prepare "
            "it again."
        ) from error
    if len(records) != sum(piece.take for piece in slices):
        # TFDS 4.9.10 reads whole parquet files, whatever the slice.
        raise ValueError(
            f"'tfds:{info.full_name}' is stored as {file_format}, from which {split!r} cannot be "
            "cut: take whole splits, or prepare it with `tfds build --file_format array_record`."
        )
    return records


def _input_and_target(info: Any) -> tuple[tuple[str, str], str]:
    """The names of the input and the target feature, and the input's kind."""
    import tensorflow_datasets as tfds

    features = info.features
    labels = [k for k, f in features.items() if isinstance(f, tfds.features.ClassLabel)]
    images = [k for k, f in features.items() if _kind(f) == "image"]
    texts = [k for k, f in features.items() if _kind(f) == "text"]
    found = (images or texts, labels)
    keys = info.supervised_keys or [key for keys in found for key in keys if len(keys) == 1]
    if len(keys) != 2 or not all(isinstance(key, str) and key in features for key in keys):
        raise ValueError(
            f"'tfds:{info.full_name}' names no single input and target among its features "
            f"({', '.join(sorted(features))}); write them as an .npz file of inputs and targets."
        )
    kind = _kind(features[keys[0]])
    shape = features[keys[0]].shape
    if kind is None or None in shape or features[keys[1]].shape != ():
        raise ValueError(
            f"'tfds:{info.full_name}' has inputs {keys[0]!r} of shape {shape} and targets "
            f"{keys[1]!r} of shape {features[keys[1]].shape}; inputs of one fixed size and one "
            "label or number each are needed: prepare it so, or write an .npz file."
        )
    return (keys[0], keys[1]), kind


def _kind(feature: Any) -> str | None:
    """What the feature is as an input, if it can be one."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Image):
        return "image"
    if isinstance(feature, tfds.features.Text):
        return "text"
    shape: Any = feature.shape
    return "table" if isinstance(feature, tfds.features.Tensor) and len(shape) == 1 else None


@functools.cache
def _hush_opencv_advice() -> None:
    """TFDS logs, at the first image, that OpenCV decodes faster than Pillow; nobody asked."""
    pattern = re.compile("OpenCV is not installed")
    logging.getLogger("absl").addFilter(lambda record: not pattern.match(record.getMessage()))
