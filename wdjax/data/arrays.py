"""Data that fits in memory: shipped sets, `.npz` and `.csv` files, and what a run does to them."""

import hashlib
import math
import os
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from wdjax.checks import check_number, check_one_of, check_positive_int, nearest
from wdjax.data.dataset import LOSSES, Dataset, make_dataset, take
from wdjax.data.files import read_csv, read_npz
from wdjax.data.shipped import CLASS_SETS, NUMBER_SETS, read_shipped
from wdjax.data.split import draw_test_rows
from wdjax.data.text import (
    DEFAULT_LENGTH,
    NUM_TOKENS,
    next_byte_windows,
    standard_library_source,
)
from wdjax.data.tfds import TfdsSource, open_tfds, read_tfds, split_sizes
from wdjax.types import Batch

SIDE = 32
"""Of the images that the article's CNN is defined on, in pixels."""

_WHERE_OPTIONS_APPLY = {
    "target": "a .csv file, whose column it names",
    "data_dir": "a TFDS set (tfds:NAME)",
    "download": "a TFDS set (tfds:NAME)",
    "length": "texts: stdlib, or a TFDS set of them",
}


class Scaling(NamedTuple):
    """`standardised = (values - mean) * scale`, column by column."""

    mean: Array
    scale: Array


def load_data(
    name_or_path: str | os.PathLike,
    *,
    target: str | None = None,
    loss: str = "cross_entropy",
    data_dir: str | os.PathLike | None = None,
    download: bool = False,
    length: int | None = None,
) -> Dataset:
    """Loads a data set into host memory, checked.

    - `digits` (1,797 images, `[8, 8, 1]`, grey / 16), `breast_cancer`, `wine`, `iris` (tables)
      and `diabetes` (regression, raw units) ship with scikit-learn;
    - `stdlib`, the source of Python's standard library in windows of `length` bytes, each byte
      to be predicted from those before it, ships with Python;
    - `FILE.npz` holds arrays `inputs` and `targets` and nothing pickled, and may hold `weights`,
      how much each example counts (rows of weight 0 are left out, unread);
    - `FILE.csv` has a header; the target is its last column, or the one named `target`;
    - `tfds:NAME`, such as `tfds:cifar10` or `tfds:mnist@train[:10%]`: see `open_tfds`, which
      also says what `data_dir`, `download` and `length` mean.

    Under `"cross_entropy"` targets are labels 0..C-1, or words, which become the labels of their
    sorted order; under `"squared_error"` they are numbers.

    Raises:
      ValueError: for an unknown name or column (with the nearest), an option that does not apply
        to the data, a file that is missing or cannot be read, or arrays that `make_dataset`
        refuses.
    """
    check_one_of("loss", loss, LOSSES)
    name, suffix = os.fspath(name_or_path), Path(name_or_path).suffix.lower()
    is_tfds = name.startswith("tfds:")
    given = {"target": target, "data_dir": data_dir, "download": download, "length": length}
    applies = {
        "target": suffix == ".csv",
        "data_dir": is_tfds,
        "download": is_tfds,
        "length": is_tfds or name == "stdlib",
    }
    for option, value in given.items():
        if value not in (None, False) and not applies[option]:
            raise ValueError(
                f"`{option}` = {value!r} does not apply to data {name!r}, only to "
                f"{_WHERE_OPTIONS_APPLY[option]}; leave it out."
            )
    if is_tfds:
        source = open_tfds(
            name.removeprefix("tfds:"), data_dir=data_dir, download=download, length=length
        )
        return load_source(source, loss=loss)
    if suffix == ".npz":
        inputs, targets, weights = read_npz(Path(name))
        return make_dataset(inputs, targets, loss=loss, name=Path(name).stem, weights=weights)
    if suffix == ".csv":
        read = read_csv(Path(name), target, loss)
        dataset = make_dataset(
            read.inputs, read.targets, loss=loss, name=Path(name).stem, kind="table"
        )
        return dataset._replace(column_names=read.names, target_name=read.target)
    if name == "stdlib":
        return _load_stdlib(loss, length)
    if name in CLASS_SETS + NUMBER_SETS:
        return _load_shipped(name, loss)
    known = (*CLASS_SETS, *NUMBER_SETS, "stdlib")
    raise ValueError(
        f"data {name!r} is neither a data set known here ({', '.join(known)}), nor a path that "
        f"ends in .npz or .csv, nor a name such as tfds:mnist.{nearest(name, known)}"
    )


def load_choose_and_test(
    name_or_path: str | os.PathLike,
    *,
    target: str | None = None,
    loss: str = "cross_entropy",
    data_dir: str | os.PathLike | None = None,
    download: bool = False,
    length: int | None = None,
    fraction: float = 0.2,
    seed: int = 0,
    stratify: bool = True,
) -> tuple[Dataset, Dataset]:
    """Loads the data to choose on, and the test data that nothing sees until the end.

    A TFDS set that is named without a split and has `train` and `test` comes apart as its
    authors meant; everything else by `split_off_test`, which `fraction`, `seed` and `stratify`
    are for. The other options are those of `load_data`.

    Raises:
      ValueError: as `load_data` and `split_off_test` do.
    """
    name = os.fspath(name_or_path)

    def load(name: str) -> Dataset:
        return load_data(
            name, target=target, loss=loss, data_dir=data_dir, download=download, length=length
        )

    dataset = load(name)
    if name.startswith("tfds:") and "@" not in name:
        if "test" in split_sizes(name.removeprefix("tfds:"), data_dir=data_dir):
            return dataset, load(f"{name}@test")
    return split_off_test(dataset, fraction=fraction, seed=seed, stratify=stratify)


def load_source(source: TfdsSource, *, loss: str = "cross_entropy") -> Dataset:
    """All of an opened TFDS split in memory, with the classes its description counts.

    Raises:
      ValueError: as `make_dataset`; for numbers to predict under `"cross_entropy"`.
    """
    check_predictable(source, loss)
    inputs, targets = read_tfds(source)
    return dataset_of(source, inputs, targets, loss)


def check_predictable(source: TfdsSource, loss: str) -> None:
    """Checks that the loss fits the target.

    Raises:
      ValueError: for numbers to predict under `"cross_entropy"`.
    """
    if loss == "cross_entropy" and source.num_classes is None:
        raise ValueError(
            f"`loss` = {loss} needs classes, and {source.keys[1]!r} of 'tfds:{source.name}' is a "
            "number; use squared_error."
        )


def dataset_of(source: TfdsSource, inputs: np.ndarray, targets: np.ndarray, loss: str) -> Dataset:
    """Arrays read from a split, with the meaning that its description gives them."""
    return make_dataset(
        inputs,
        targets,
        loss=loss,
        name=f"tfds:{source.name}",
        kind=source.kind,
        num_outputs=source.num_classes,
        class_names=source.class_names,
    )


def split_off_test(
    dataset: Dataset, *, fraction: float = 0.2, seed: int = 0, stratify: bool = True
) -> tuple[Dataset, Dataset]:
    """Splits once into a part to choose on and a test part, as scikit-learn's `train_test_split`.

    The test part has `ceil(fraction * n)` examples; with `stratify`, labels keep their shares in
    both (regression targets are split at random). Equal seeds give equal splits.

    Raises:
      ValueError: for a fraction that is not within (0, 1) or leaves a part empty, or a class
        too small to be in both parts.
    """
    check_number("fraction", fraction, low=0.0, high=1.0, exclusive_low=True)
    check_positive_int("seed", seed, low=0, high=2**32 - 1)
    num_examples = len(dataset.inputs)
    num_test = math.ceil(fraction * num_examples)
    if not 0 < num_test < num_examples:
        raise ValueError(
            f"`fraction` = {fraction:g} leaves {num_examples - num_test} of {num_examples} "
            "examples to choose on; take a smaller fraction or more data."
        )
    by_class = stratify and _has_labels(dataset)
    if by_class:
        _check_smallest_class(dataset, 2, "be in both the choosing and the test part")
        if min(num_test, num_examples - num_test) < dataset.num_outputs:
            raise ValueError(
                f"`fraction` = {fraction:g} leaves {num_test} test and {num_examples - num_test} "
                f"choosing examples for {dataset.num_outputs} classes; each part needs one of "
                "each class: change the fraction, or split with stratify=False."
            )
    test = draw_test_rows(num_examples, num_test, seed, dataset.targets if by_class else None)
    choose = np.delete(np.arange(num_examples), test)
    return take(dataset, choose), take(dataset, test)


def check_folds(dataset: Dataset, num_folds: int, *, stratify: bool = True) -> None:
    """Checks that every fold can get an example, and with `stratify` one of every class.

    Raises:
      ValueError: if `num_folds` is not between 2 and the number of examples, or a class has
        fewer examples than there are folds.
    """
    check_positive_int("folds", num_folds, low=2, high=len(dataset.inputs))
    if stratify and _has_labels(dataset):
        _check_smallest_class(dataset, num_folds, f"be in each of `folds` = {num_folds} parts")


def add_label_noise(dataset: Dataset, fraction: float, seed: int) -> Dataset:
    """Replaces the labels of `round(fraction * n)` examples by another class, drawn uniformly.

    The examples are drawn without replacement, so exactly that many labels are wrong.

    Raises:
      ValueError: for a fraction outside [0, 1], targets that are not one label per example, or
        a single class.
    """
    check_number("label_noise", fraction, low=0.0, high=1.0)
    if not _has_labels(dataset) or dataset.num_outputs < 2:
        raise ValueError(
            f"`label_noise` = {fraction:g} needs one label of two or more classes per example; "
            f"{dataset.name!r} has none. Leave it at 0."
        )
    check_positive_int("seed", seed, low=0)
    rng = np.random.default_rng(seed)
    wrong = rng.permutation(len(dataset.targets))[: round(fraction * len(dataset.targets))]
    shift = rng.integers(1, dataset.num_outputs, len(wrong))
    targets = dataset.targets.copy()
    targets[wrong] = (targets[wrong] + shift) % dataset.num_outputs
    return dataset._replace(targets=targets)


def as_images_32(dataset: Dataset) -> Dataset:
    """Images as `[32, 32, 3]`: resized linearly, a single channel repeated three times.

    The article's CNN is defined on that size; images that have it are returned untouched.

    Raises:
      ValueError: if the data are not images of one or three channels.
    """
    shape = dataset.inputs.shape[1:]
    if dataset.kind != "image" or shape[-1] not in (1, 3):
        raise ValueError(
            f"{dataset.name!r} holds {dataset.kind} data of shape {shape} per example; only "
            "images of one or three channels can become 32x32x3: choose a model for "
            f"{dataset.kind} data, such as the MLP."
        )
    if shape == (SIDE, SIDE, 3):
        return dataset
    resized = jax.image.resize(
        dataset.inputs, (len(dataset.inputs), SIDE, SIDE, shape[-1]), method="linear"
    )
    images = np.asarray(resized, np.float32)
    return dataset._replace(inputs=np.repeat(images, 3 // shape[-1], axis=-1))


def to_batch(dataset: Dataset) -> Batch:
    """The whole data set on the device; weights are ones where the data set has none."""
    weights = np.ones(len(dataset.inputs), np.float32)
    weights = weights if dataset.weights is None else dataset.weights
    return jax.device_put(Batch(dataset.inputs, dataset.targets, weights))


def hash_of(dataset: Dataset) -> str:
    """The SHA-256 of the arrays: dtypes, shapes and bytes, in hexadecimal."""
    digest = hashlib.sha256()
    for array in (dataset.inputs, dataset.targets, dataset.weights):
        if array is not None:
            little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            digest.update(f"{little.dtype.str}{little.shape}".encode())
            digest.update(little.tobytes())
    return digest.hexdigest()


def standardize(train: Batch, valid: Batch, *, inputs: bool, targets: bool) -> tuple[Batch, Batch]:
    """Gives each column weighted mean 0 and standard deviation 1 on `train`; both are mapped.

        (x - mean) / sqrt(sum_i w_i (x_i - mean)^2 / sum_i w_i),  mean = sum_i w_i x_i / sum_i w_i

    A penalty means nothing on unscaled columns. A column that is constant on `train` becomes 0
    in both, and so do rows of weight 0, whatever they held. Pure, so a fold can be standardised
    inside the compiled program.
    """
    for field, wanted in (("inputs", inputs), ("targets", targets)):
        if wanted:
            scaling = measure_scaling(getattr(train, field), train.weights)
            train, valid = (
                part._replace(**{field: apply_scaling(getattr(part, field), part.weights, scaling)})
                for part in (train, valid)
            )
    return train, valid


def measure_scaling(values: ArrayLike, weights: ArrayLike) -> Scaling:
    """The weighted mean and inverse standard deviation of each column.

    Args:
      values: `[batch, ...]`; each position of the trailing axes is a column.
      weights: `[batch]`, >= 0; rows of weight 0 count nothing, even if they hold NaN.
    """
    values, weights = jnp.asarray(values), jnp.asarray(weights)
    counts = _per_row(weights > 0, values)
    shares = _per_row(weights / jnp.where(jnp.any(weights > 0), jnp.sum(weights), 1.0), values)
    values = jnp.where(counts, values, 0)
    mean = jnp.sum(shares * values, axis=0)
    variance = jnp.sum(shares * jnp.where(counts, values - mean[None], 0) ** 2, axis=0)
    # Rounding gives a constant column a tiny variance, so constancy is asked of the values.
    low = jnp.min(jnp.where(counts, values, jnp.inf), axis=0)
    high = jnp.max(jnp.where(counts, values, -jnp.inf), axis=0)
    varies = (high > low) & (variance > 0)
    scale = jnp.where(varies, 1 / jnp.sqrt(jnp.where(varies, variance, 1.0)), 0.0)
    return Scaling(mean, scale)


def apply_scaling(values: ArrayLike, weights: ArrayLike, scaling: Scaling) -> Array:
    """`(values - mean) * scale`, and 0 in rows of weight 0."""
    values = jnp.asarray(values)
    counts = _per_row(jnp.asarray(weights) > 0, values)
    centred = jnp.where(counts, values, 0) - scaling.mean[None]
    return jnp.where(counts, centred * scaling.scale[None], 0)


def _per_row(rows: Array, values: Array) -> Array:
    return rows.reshape(rows.shape + (1,) * (values.ndim - 1))


def _has_labels(dataset: Dataset) -> bool:
    return dataset.targets.ndim == 1 and dataset.targets.dtype.kind == "i"


def _check_smallest_class(dataset: Dataset, needed: int, purpose: str) -> None:
    sizes = np.bincount(dataset.targets, minlength=dataset.num_outputs)
    sizes = np.where(sizes == 0, len(dataset.targets), sizes)
    smallest = int(np.argmin(sizes))
    if sizes[smallest] < needed:
        called = f" ({dataset.class_names[smallest]})" if dataset.class_names else ""
        raise ValueError(
            f"class {smallest}{called} of {dataset.name!r} has {sizes[smallest]} examples and "
            f"needs {needed} to {purpose}; ask for fewer, or do not stratify."
        )


def _load_shipped(name: str, loss: str) -> Dataset:
    wanted = "squared_error" if name in NUMBER_SETS else "cross_entropy"
    if loss != wanted:
        what = "numbers" if name in NUMBER_SETS else "classes"
        raise ValueError(
            f"`loss` = {loss} does not fit the data set {name!r}, whose targets are {what}; "
            f"use {wanted}."
        )
    inputs, targets, names = read_shipped(name)
    if name == "digits":
        inputs = inputs[..., None] / 16
    return make_dataset(inputs, targets, loss=loss, name=name, class_names=names)


def _load_stdlib(loss: str, length: int | None) -> Dataset:
    if loss != "cross_entropy":
        raise ValueError(
            f"`loss` = {loss} does not fit the data set 'stdlib', whose targets are bytes; use "
            "cross_entropy."
        )
    texts = standard_library_source()
    length = DEFAULT_LENGTH if length is None else length
    inputs, targets, weights = next_byte_windows(texts, length)
    return Dataset("stdlib", inputs, targets, "text", NUM_TOKENS, (), weights)
