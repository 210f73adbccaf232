"""A data set: arrays with their meaning, checked before anything is compiled."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import ArrayLike

from wdjax.checks import check_one_of, check_weights
from wdjax.data.encoding import Encoding, InputColumn
from wdjax.loss_kinds import has_classes
from wdjax.types import Batch

MOST_CLASSES_EXPECTED = 20
"""Labels that are refused have at most so many values, or they may be numbers."""

_ROWS_AT_ONCE = 4096
"""Of a data set, where a copy of all would take too much."""


class Dataset(NamedTuple):
    """Host arrays with their meaning, before any split; `make_dataset` checks and builds one.

    An image is `[row, column, channel]` of floats, in [0, 1] where it was made of bytes; a table
    row is `[column]`; a text is `[time]` of integer tokens.
    """

    name: str
    inputs: np.ndarray
    """`[example, ...]`: float32, or int32 tokens."""
    targets: np.ndarray
    """`[example]` int32 labels (`[example, time]` for language), or float32 to regress on."""
    kind: str
    """`"image"`, `"table"` or `"text"`."""
    num_outputs: int
    """Classes, or the numbers to predict per example: 1 for ordinary regression."""
    class_names: tuple[str, ...] = ()
    """What label 0, 1, ... is called, where the source says so."""
    weights: np.ndarray | None = None
    """float32 >= 0 in the shape of the losses; None counts every example fully."""
    columns: tuple[InputColumn, ...] = ()
    """Of a table, where the source names them: what they are called, and their words and holes."""
    target_name: str | None = None
    """Of the target's column, where the source names it."""
    num_left_out: int = 0
    """Rows of weight 0 that the source had: they count nothing and are not among the examples."""
    groups: np.ndarray | None = None
    """`[example]`, words: what examples that belong together share (the rows of a patient)."""
    about: str = ""
    """Where it was read from, or what was done to it, in a sentence that runs print."""

    @property
    def column_names(self) -> tuple[str, ...]:
        """Of a table's columns, where the source names them."""
        return tuple(column.name for column in self.columns)

    @property
    def encoding(self) -> Encoding | None:
        """What becomes of the columns; None where all are numbers, and none is missing."""
        return Encoding.of(self.columns)


def make_dataset(
    inputs: ArrayLike | Sequence,
    targets: ArrayLike | Sequence,
    *,
    loss: str = "cross_entropy",
    name: str = "data",
    kind: str | None = None,
    num_outputs: int | None = None,
    class_names: Sequence[str] = (),
    weights: ArrayLike | Sequence | None = None,
    keep_bytes: bool = False,
) -> Dataset:
    """Checks arrays and gives them their meaning.

    Bytes of three or more axes are images and are divided by 255; an image without a channel
    axis gets one. Other inputs become float32 as they are, one column if they have one axis.

    Args:
      inputs: `[example, ...]` numbers.
      targets: `[example]` labels 0..C-1, each with an example, or words (`"cross_entropy"`);
        `[example]` or `[example, output]` numbers (`"squared_error"`).
      kind: `"image"`, `"table"` or `"text"` (tokens, kept as int32); None decides by shape:
        an image has three or four axes.
      num_outputs: the number of classes, where `targets` may lack some of them.
      class_names: what label 0, 1, ... is called.
      weights: `[example]`, how much each counts, finite and >= 0, one of them above 0. Rows of
        weight 0 are left out, unread, as if they were not there: they may hold anything.
      keep_bytes: images of bytes stay what they are, a quarter of the memory: for who divides them
        later, a batch at a time (`as_floats`).

    Raises:
      ValueError: for empty data, different lengths, objects or words among the inputs, values
        that are not finite (the first is named), targets that the loss cannot use, or weights of
        another shape, negative, not finite or all zero.
    """
    labelled = has_classes(loss)
    inputs, targets = plain_array("inputs", inputs), plain_array("targets", targets)
    if len(inputs) == 0:
        raise ValueError("`inputs` holds no examples; give at least one row.")
    if len(inputs) != len(targets):
        raise ValueError(
            f"`inputs` has {len(inputs)} examples and `targets` {len(targets)}; "
            "give one target per example."
        )
    left_out = 0
    if weights is not None:
        weights = _checked_weights(weights, len(inputs))
        active = weights > 0
        inputs, targets, weights = inputs[active], targets[active], weights[active]
        left_out = int(np.sum(~active))
    more = {"weights": weights, "num_left_out": left_out}
    if kind is None:
        kind = "image" if inputs.ndim in (3, 4) else "table"
    check_one_of("kind", kind, ("image", "table", "text"))
    inputs = _checked_inputs(inputs, kind, keep_bytes)
    if targets.size == 0:
        raise ValueError(
            f"`targets` has shape {targets.shape} and holds nothing; give one target per example."
        )
    if not labelled:
        targets = _checked_numbers(targets)
        outputs = 1 if targets.ndim == 1 else targets.shape[1]
        return Dataset(name, inputs, targets, kind, outputs, **more)
    if targets.dtype.kind in "US":
        words, targets = np.unique(_as_words(targets), return_inverse=True)
        class_names = tuple(words.tolist())
    labels, num_outputs = _checked_labels(targets, num_outputs)
    return Dataset(name, inputs, labels, kind, num_outputs, tuple(class_names), **more)


def as_floats(images: Any) -> Any:
    """Bytes, of NumPy or JAX, as float32 in [0, 1]: divided by 255; other numbers as they are."""
    if images.dtype != np.uint8:
        return images
    return images.astype(np.float32) / np.float32(255)


def take(dataset: Dataset, rows: np.ndarray) -> Dataset:
    """The examples at `rows`, as a data set of the same meaning."""
    own = {"inputs": dataset.inputs, "targets": dataset.targets}
    own |= {"weights": dataset.weights, "groups": dataset.groups}
    return dataset._replace(**{n: None if x is None else x[rows] for n, x in own.items()})


def to_batch(dataset: Dataset) -> Batch:
    """The whole data set on the device; weights are ones where the data set has none."""
    weights = np.ones(len(dataset.inputs), np.float32)
    weights = weights if dataset.weights is None else dataset.weights
    return jax.device_put(Batch(dataset.inputs, dataset.targets, weights))


def hash_of(dataset: Dataset) -> str:
    """The SHA-256 of the arrays: dtypes, shapes and bytes, in hexadecimal.

    Images kept as bytes have that of their floats, so it does not tell how they were held.
    """
    digest = hashlib.sha256()
    for array in (dataset.inputs, dataset.targets, dataset.weights):
        if array is None:
            continue
        little = as_floats(array[:0]).dtype.newbyteorder("<")
        digest.update(f"{little.str}{array.shape}".encode())
        for start in range(0, len(array), _ROWS_AT_ONCE):
            rows = as_floats(array[start : start + _ROWS_AT_ONCE])
            digest.update(np.ascontiguousarray(rows, little).data)
    return digest.hexdigest()


def plain_array(name: str, values: Any) -> np.ndarray:
    """`values` as one array of numbers or words, with a leading axis of examples.

    Raises:
      ValueError: for rows of several shapes, Python objects, or a single number.
    """
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"`{name}` must be one array, every row of one shape: {error}") from None
    if array.dtype.kind == "O":
        raise ValueError(
            f"`{name}` holds Python objects; give an array of numbers"
            f"{' or of strings' if name == 'targets' else ''}, every row of one shape."
        )
    if array.ndim == 0:
        raise ValueError(f"`{name}` must have a leading axis of examples, got one {array!r}.")
    return array


def _checked_inputs(inputs: np.ndarray, kind: str, keep_bytes: bool) -> np.ndarray:
    if inputs.dtype.kind not in "buif":
        raise ValueError(
            f"`inputs` must be real numbers, got dtype {inputs.dtype}; turn words into numbers "
            "(one column per value) first."
        )
    if kind == "text":
        if inputs.dtype.kind not in "ui":
            raise ValueError(f"`inputs` of kind text must be integers, got dtype {inputs.dtype}.")
        return inputs.astype(np.int32)
    if inputs.ndim > 4 or (kind == "image" and inputs.ndim < 3):
        raise ValueError(
            f"`inputs` has shape {inputs.shape}; tables are [example, column] and images "
            "[example, row, column] or [example, row, column, channel]."
        )
    if inputs.size == 0:
        raise ValueError(f"`inputs` has shape {inputs.shape}; give at least one column.")
    if kind == "image" and inputs.dtype == np.uint8:
        inputs = inputs if keep_bytes else as_floats(inputs)
    else:
        with np.errstate(over="ignore"):
            inputs = inputs.astype(np.float32)
        _check_finite("inputs", inputs)
    if inputs.ndim == 1 or (kind == "image" and inputs.ndim == 3):
        inputs = inputs[..., None]
    return inputs


def _check_finite(name: str, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        place = np.argwhere(~np.isfinite(values))[0]
        where = f"row {place[0]}" + (
            f", column {', '.join(map(str, place[1:]))}" if len(place) > 1 else ""
        )
        raise ValueError(
            f"`{name}` must be finite, got {values[tuple(place)]} at {where} (counted from 0); "
            "remove or fill such rows first."
        )


def _as_words(targets: np.ndarray) -> np.ndarray:
    try:
        return targets.astype(str)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"`targets` holds words of bytes that are no ASCII text ({error.object!r}); decode "
            'them first: np.char.decode(targets, "utf-8").'
        ) from None


def _checked_weights(weights: ArrayLike | Sequence, num_examples: int) -> np.ndarray:
    weights = plain_array("weights", weights)
    if weights.dtype.kind not in "buif":
        raise ValueError(f"`weights` must be real numbers, got dtype {weights.dtype}.")
    if weights.shape != (num_examples,):
        raise ValueError(
            f"`weights` has shape {weights.shape}; give one weight per example, shape "
            f"({num_examples},)."
        )
    with np.errstate(over="ignore"):
        weights = weights.astype(np.float32)
    check_weights("weights", weights, require_positive=True)
    return weights


def _checked_numbers(targets: np.ndarray) -> np.ndarray:
    if targets.dtype.kind not in "buif":
        raise ValueError(
            f"`targets` must be numbers under loss squared_error, got dtype {targets.dtype}; "
            "use loss cross_entropy for classes."
        )
    with np.errstate(over="ignore"):
        targets = targets.astype(np.float32)
    if targets.ndim > 2:
        raise ValueError(
            f"`targets` has shape {targets.shape}; give [example] or [example, output]."
        )
    _check_finite("targets", targets)
    return targets[:, 0] if targets.ndim == 2 and targets.shape[1] == 1 else targets


def _perhaps_numbers(targets: np.ndarray) -> str:
    """Integers of many values are rather counts or prices than classes."""
    num_values = len(np.unique(targets))
    if num_values <= MOST_CLASSES_EXPECTED:
        return ""
    return (
        f" If they are numbers and no classes, as {num_values} different values may be, predict "
        'them by --loss squared_error (loss="squared_error").'
    )


def _checked_labels(targets: np.ndarray, num_outputs: int | None) -> tuple[np.ndarray, int]:
    if targets.dtype.kind not in "bui":
        raise ValueError(
            f"`targets` must be integer labels under loss cross_entropy, got dtype "
            f"{targets.dtype} ({str(targets.flat[0])[:60]} first); convert them with "
            "targets.astype(int), or use loss squared_error to predict numbers."
        )
    if targets.ndim != 1:
        raise ValueError(
            f"`targets` has shape {targets.shape}; give one label per example, shape "
            f"({len(targets)},). From one-hot rows: targets.argmax(axis=1)."
        )
    high = int(targets.max()) + 1 if num_outputs is None else num_outputs
    outside = np.flatnonzero((targets < 0) | (targets >= high))
    if len(outside):
        raise ValueError(
            f"`targets` must be labels 0..{max(high, 1) - 1}, got {targets[outside[0]]} at row "
            f"{outside[0]}; renumber them with np.unique(targets, return_inverse=True)[1]."
            f"{_perhaps_numbers(targets)}"
        )
    if num_outputs is None:
        present = np.unique(targets)
        if len(present) < high:
            missing = np.setdiff1d(np.arange(len(present)), present)[0]
            raise ValueError(
                f"`targets` goes up to {high - 1}, but no example has label {missing}; labels "
                "must be 0..C-1: renumber them with np.unique(targets, return_inverse=True)[1]."
                f"{_perhaps_numbers(targets)}"
            )
    if high < 2:
        raise ValueError(
            "`targets` holds a single class; cross_entropy needs two or more, or use loss "
            "squared_error to predict a number."
        )
    return targets.astype(np.int32), high
