"""Columns of words and columns with holes as numbers: learnt on each training part alone.

A table with words or holes is held as it lies in the file: a word by its place in the column's
list of words, a hole by the one number `HOLE`. What of it a model sees is wider, and how it is
filled is learnt of the training part inside the compiled program, as standardising is: of the
file itself only the number of columns is known before.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from wdjax.types import Batch

HOLE = float(np.finfo(np.float32).min)
"""What stands where a number is missing. It is finite, and no table is known to hold it."""
UNSEEN = -1.0
"""What stands for a word that the table which was trained on does not have."""
MOST_WORDS = 100
"""The words of a column that get a column each; the others share one."""


class InputColumn(NamedTuple):
    """A column of a table, as its file has it."""

    name: str
    words: tuple[str, ...] | None = None
    """What the codes 0, 1, ... stand for, sorted; None in a column of numbers. A hole among words
    is the word ""."""
    holes: bool = False
    """Whether numbers are missing."""


class Words(NamedTuple):
    """The cells of a column of words: each word once, however many rows there are."""

    codes: np.ndarray
    """`[row]`: the place of its word."""
    words: np.ndarray
    """`[word]`: strings, sorted, each in some row; a hole is ""."""

    @classmethod
    def of(cls, cells: ArrayLike | Sequence[str]) -> "Words":
        """Those of cells that are strings."""
        words, codes = np.unique(np.asarray(cells, str), return_inverse=True)
        return cls(codes, words)


class Encoding(NamedTuple):
    """What becomes of the columns of a table, in order: how many words each has, 0 of numbers."""

    num_words: tuple[int, ...]
    holes: tuple[bool, ...]

    @classmethod
    def of(cls, columns: Sequence[InputColumn]) -> "Encoding | None":
        """That of some columns; None where all are numbers and none is missing."""
        if not any(column.holes or column.words is not None for column in columns):
            return None
        return cls(tuple(len(c.words or ()) for c in columns), tuple(c.holes for c in columns))

    @property
    def numbers(self) -> np.ndarray:
        """Which columns hold numbers."""
        return np.flatnonzero(np.asarray(self.num_words) == 0)

    @property
    def with_holes(self) -> np.ndarray:
        """Which of the columns of numbers get an indicator, among these."""
        return np.flatnonzero(np.asarray(self.holes)[self.numbers])

    @property
    def width(self) -> int:
        """How many columns a model sees."""
        words = sum(_width(count) for count in self.num_words)
        return len(self.numbers) + len(self.with_holes) + words


class Learnt(NamedTuple):
    """What is learnt of a training part."""

    fill: Array
    """`[column]`: the mean of each column of numbers, 0 of words."""
    places: Array
    """`[word]` of all columns of words, one column after another: which of its column's own
    columns a word has."""


def learn_encoding(encoding: Encoding, inputs: ArrayLike, weights: ArrayLike) -> Learnt:
    """The means of the numbers that are there, and the most frequent words.

        fill_j = sum_i w_i x_ij / sum_i w_i  over the rows i where column j has no hole

    A column of at most `MOST_WORDS` + 1 words has a column for each. Of more, the `MOST_WORDS` that
    stand in the most rows of weight above 0 have one each (of equally frequent ones the last in
    order), in order, and the others share the last one.

    Args:
      inputs: `[row, column]`: numbers, `HOLE`, and the places of words.
      weights: `[row]`, >= 0.
    """
    inputs, weights = jnp.asarray(inputs), jnp.asarray(weights)
    known = (inputs != HOLE) & (weights > 0)[:, None]
    shares = jnp.where(known, weights[:, None], 0)
    total = jnp.sum(shares, axis=0, keepdims=True)
    # Divided first: a sum of large numbers would not be finite where their mean is.
    shares = shares / jnp.where(total > 0, total, 1)
    mean = jnp.sum(shares * jnp.where(known, inputs, 0), axis=0)
    is_number = jnp.asarray(np.asarray(encoding.num_words) == 0)
    places = [jnp.zeros(0, jnp.int32)]
    for column, count in enumerate(encoding.num_words):
        if count == 0:
            continue
        if _width(count) == count:
            places.append(jnp.arange(count, dtype=jnp.int32))
            continue
        code = _codes(inputs, column, count)
        times = (
            jnp.zeros(count, jnp.int32).at[code].add((weights > 0).astype(jnp.int32), mode="drop")
        )
        kept = jnp.argsort(times, stable=True)[count - MOST_WORDS :]
        own = jnp.zeros(count, bool).at[kept].set(True)
        order = jnp.cumsum(own, dtype=jnp.int32) - 1
        places.append(jnp.where(own, order, MOST_WORDS))
    return Learnt(jnp.where(is_number, mean, 0), jnp.concatenate(places))


def apply_encoding(encoding: Encoding, learnt: Learnt, inputs: ArrayLike) -> Array:
    """`[row, column] -> [row, encoding.width]`: numbers, whether each was a hole, then words.

    A hole is filled by the mean. A word that was not learnt is one of the others, where the column
    has others, and else none of its words.
    """
    inputs = jnp.asarray(inputs)
    numbers = inputs[:, encoding.numbers]
    holes = numbers == HOLE
    parts = [
        jnp.where(holes, learnt.fill[encoding.numbers][None], numbers),
        holes[:, encoding.with_holes].astype(inputs.dtype),
    ]
    begin = 0
    for column, count in enumerate(encoding.num_words):
        if count == 0:
            continue
        width = _width(count)
        own = learnt.places[begin : begin + count]
        # Beyond the last: of no word's column, unless there is one of the others.
        beyond = MOST_WORDS if width > MOST_WORDS and width != count else width
        place = own.at[_codes(inputs, column, count)].get(mode="fill", fill_value=beyond)
        parts.append(jax.nn.one_hot(place, width, dtype=inputs.dtype))
        begin += count
    return jnp.concatenate(parts, axis=1)


def encode(encoding: Encoding | None, train: Batch, *others: Batch) -> tuple[Batch, ...]:
    """Fills holes and turns words into columns, as `train` says, in it and in the others.

        inputs[row, column] -> inputs[row, encoding.width]

    Pure, so that a fold can be encoded inside the compiled program: see `learn_encoding` for what
    is learnt of `train`. What has no encoding (None: numbers alone) stays as it is.

    Args:
      encoding: of the data set that the batches are of, `Dataset.encoding`.
      train: whose rows of weight above 0 are learnt of.
      *others: of the same columns.
    """
    parts = (train, *others)
    if encoding is None:
        return parts
    learnt = learn_encoding(encoding, train.inputs, train.weights)
    apply = lambda part: part._replace(inputs=apply_encoding(encoding, learnt, part.inputs))
    return tuple(map(apply, parts))


def encode_columns(
    columns: Sequence[InputColumn], values: Sequence[ArrayLike | Words]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The columns of another table as `[row, column]`, and by column the words that are unseen.

    Args:
      columns: those that were trained on.
      values: of each, numbers with NaN where one is missing, or words (`Words`, or strings).
    """
    first = values[0]
    num_rows = len(first.codes if isinstance(first, Words) else np.asarray(first))
    inputs = np.empty((num_rows, len(columns)), np.float32)
    unseen: dict[str, np.ndarray] = {}
    for place, (column, own) in enumerate(zip(columns, values, strict=True)):
        if column.words is None:
            with np.errstate(over="ignore"):
                numbers = np.asarray(own).astype(np.float32)
            inputs[:, place] = np.where(np.isnan(numbers), HOLE, numbers)
            continue
        held = own if isinstance(own, Words) else Words.of(own)
        codes = {word: code for code, word in enumerate(column.words)}
        code = np.array([codes.get(word, UNSEEN) for word in held.words.tolist()], np.float32)
        inputs[:, place] = code[held.codes]
        strange = held.codes[inputs[:, place] == UNSEEN]
        if len(strange):
            unseen[column.name] = held.words[strange]
    return inputs, unseen


def known_of(
    columns: Sequence[InputColumn], inputs: np.ndarray, others: np.ndarray
) -> tuple[tuple[InputColumn, ...], np.ndarray, np.ndarray]:
    """The columns with the words of `inputs` alone, and both inputs by the words' new places.

    What else stands in the others is unseen, as in a table that nobody knew before.

    Args:
      columns: of all the inputs.
      inputs: `[row, column]`, as `encode_columns` makes them.
      others: of the same columns.
    """
    known, parts = [], (inputs.copy(), others.copy())
    for place, column in enumerate(columns):
        if column.words is None:
            known.append(column)
            continue
        there = np.unique(inputs[:, place]).astype(int)
        there = there[there >= 0]
        # One more, where an unseen word, -1, looks.
        new = np.full(len(column.words) + 1, UNSEEN, np.float32)
        new[there] = np.arange(len(there))
        for part in parts:
            part[:, place] = new[part[:, place].astype(int)]
        known.append(column._replace(words=tuple(column.words[i] for i in there)))
    return tuple(known), *parts


def _codes(inputs: Array, column: int, count: int) -> Array:
    """The words' places; of an unseen word one beyond them, as -1 would be the last."""
    code = inputs[:, column].astype(jnp.int32)
    return jnp.where(code < 0, count, code)


def _width(count: int) -> int:
    """Columns for so many words. One word alone needs no company: 101 have a column each."""
    return min(count, MOST_WORDS + 1)


def example_of(encoding: Encoding | None, inputs: Any) -> Any:
    """Inputs of the shape that a model sees: those of a data set that is encoded are wider."""
    if encoding is None:
        return inputs
    return np.zeros((len(inputs), encoding.width), np.float32)
