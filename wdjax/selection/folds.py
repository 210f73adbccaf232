"""Folds: index arrays of one shape, so that one program serves them all."""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Int

from wdjax.checks import check_positive_int, is_known
from wdjax.moved import moved_names
from wdjax.types import Batch

__getattr__ = moved_names(__name__, {"take": ("wdjax.selection.folds", "take_masked")})


class Folds(NamedTuple):
    """Which rows train and which validate, fold by fold.

    Index arrays `[fold, n]`, n the longest; shorter folds are padded with an index that the
    mask marks 0 (it points at a real row, so that gathering is safe).
    """

    train: Int[Array, "fold n"]
    train_mask: Bool[Array, "fold n"]
    valid: Int[Array, "fold m"]
    valid_mask: Bool[Array, "fold m"]


def kfold(
    key: Array, num_examples: int, num_folds: int, *, stratify: ArrayLike | None = None
) -> Folds:
    """Deals the examples out to `num_folds` held-out sets, at random.

    Shuffle, sort by class (stably), deal like cards: fold sizes differ by at most one, and with
    `stratify` so do the counts of each class. Pure: the same key gives the same folds.

    Args:
      key: a `jax.random.key`.
      num_examples: n >= num_folds.
      num_folds: 2 <= num_folds.
      stratify: class of each example, integers `[n]`; by default classes are ignored.

    Raises:
      ValueError: if the folds are fewer than 2 or more than the examples, or than the smallest
        class where that is known; if `stratify` is not `[n]` integers.

    Example:
      >>> folds = wdjax.kfold(jax.random.key(0), num_examples=6, num_folds=3)
      >>> folds.train.shape, folds.valid.shape
      ((3, 4), (3, 2))
      >>> sorted(folds.valid.ravel().tolist())
      [0, 1, 2, 3, 4, 5]
    """
    check_positive_int("num_examples", num_examples)
    check_positive_int("num_folds", num_folds, low=2, high=num_examples)
    classes = None if stratify is None else _checked_classes(stratify, num_examples, num_folds)
    train, valid = _deal(key, classes, num_examples, num_folds)
    # How many rows a fold has depends on no key: known under `jit` as well, see `folds_by_program`.
    held_out = np.bincount(np.arange(num_examples) % num_folds)[:, None]
    with jax.ensure_compile_time_eval():
        train_mask = jnp.asarray(np.arange(train.shape[1]) < num_examples - held_out)
        valid_mask = jnp.asarray(np.arange(valid.shape[1]) < held_out)
    return Folds(train, train_mask, valid, valid_mask)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _deal(
    key: Array, classes: Array | None, num_examples: int, num_folds: int
) -> tuple[Array, Array]:
    # One program: a process compiles each of these operations, or looks it up, but once.
    order = jax.random.permutation(key, num_examples)
    if classes is not None:
        order = order[jnp.argsort(classes[order], stable=True)]
    dealt = jnp.arange(num_examples, dtype=jnp.int32) % num_folds
    fold_of = jnp.zeros(num_examples, jnp.int32).at[order].set(dealt)
    num_valid, num_train = -(-num_examples // num_folds), num_examples - num_examples // num_folds

    def one(fold):
        held_out = fold_of == fold
        train = jnp.argsort(held_out, stable=True)[:num_train]
        return train, jnp.argsort(~held_out, stable=True)[:num_valid]

    return jax.vmap(one)(jnp.arange(num_folds))


def folds_from_splits(pairs: Iterable[tuple[Any, Any]]) -> Folds:
    """Takes the `(train, valid)` index pairs of any scikit-learn splitter.

    Example: `folds_from_splits(GroupKFold(5).split(x, y, groups))`.

    Raises:
      ValueError: if there is no pair, a part is empty, not of integers, or shares a row with
        its partner.
    """
    checked = []
    for fold, (train, valid) in enumerate(pairs):
        train, valid = np.asarray(train), np.asarray(valid)
        for name, rows in (("train", train), ("valid", valid)):
            if rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer) or rows.size == 0:
                raise ValueError(
                    f"`pairs` must hold non-empty integer index arrays; {name} of fold {fold} has "
                    f"dtype {rows.dtype} and shape {rows.shape}."
                )
        shared = np.intersect1d(train, valid)
        if shared.size:
            raise ValueError(
                f"`pairs`: fold {fold} validates on {shared.size} rows it trains on, the first "
                f"is row {shared[0]}; a held-out part must be held out."
            )
        checked.append((train, valid))
    if not checked:
        raise ValueError("`pairs` is empty; give at least one (train, valid) pair of indices.")
    train, train_mask = _padded([train for train, _ in checked])
    valid, valid_mask = _padded([valid for _, valid in checked])
    return Folds(train, train_mask, valid, valid_mask)


def sizes(folds: Folds) -> tuple[np.ndarray, np.ndarray] | None:
    """How many rows train and how many validate, `[fold]` each; None where that is traced."""
    if not (is_known(folds.train_mask) and is_known(folds.valid_mask)):
        return None
    count = lambda mask: (np.asarray(mask) > 0).sum(axis=1)
    return count(folds.train_mask), count(folds.valid_mask)


def closed_up(folds: Folds) -> Folds:
    """The same folds, the padding of each behind its rows and no wider than the longest.

    A column that is padding in every fold goes; where the sizes are traced, all stay.
    """
    known = sizes(folds)
    if known is None:
        return narrowed(folds, folds.train.shape[1], folds.valid.shape[1])
    return narrowed(folds, *(int(size.max()) for size in known))


def narrowed(folds: Folds, num_train: int, num_valid: int) -> Folds:
    """The folds with the padding of each behind its rows, and then cut to a width.

    A fold that holds more rows is not whole any longer.
    """
    arrays = []
    for index, mask, width in (
        (folds.train, folds.train_mask, num_train),
        (folds.valid, folds.valid_mask, num_valid),
    ):
        # On the host what is known: sizes stay known under `jit`, where the rows may be traced.
        own: Any = np if is_known(mask) else jnp
        mask = own.asarray(mask) > 0
        place = own.argsort(~mask, axis=1, stable=True)[:, :width]
        both: Any = own if is_known(index) else jnp
        arrays.append(both.take_along_axis(both.asarray(index), place, axis=1))
        arrays.append(own.take_along_axis(mask, place, axis=1))
    return Folds(*arrays)


def trained_on(folds: Folds, num_rows: int, *, key: Array, stratify: Any = None) -> Folds:
    """The folds with `num_rows` training rows each; what they hold out stays.

    Drawn at random, with the classes' shares to within one row; of one key, fewer rows are among
    more. Searches of several data sizes are so judged on the same examples.

    Args:
      folds: known, as of `kfold`.
      num_rows: at most the rows of the smallest training part.
      key: decides which.
      stratify: `[n]` integer labels.

    Raises:
      ValueError: for more rows than a training part has, or fewer than 1.
    """
    train, mask = np.asarray(folds.train), np.asarray(folds.train_mask) > 0
    check_positive_int("num_rows", num_rows, high=int(mask.sum(axis=1).min()))
    count = int(train.max()) + 1
    rank = np.argsort(np.asarray(jax.random.permutation(key, count)))
    drawn = np.empty((len(train), num_rows), np.int32)
    for fold, (index, active) in enumerate(zip(train, mask, strict=True)):
        rows = index[active]
        rows = rows[np.argsort(rank[rows])]
        if stratify is not None:
            labels = np.asarray(stratify)[rows]
            share = np.empty(len(rows))
            for label in np.unique(labels):
                of_class = labels == label
                share[of_class] = (np.arange(of_class.sum()) + 0.5) / of_class.sum()
            rows = rows[np.argsort(share, kind="stable")]
        drawn[fold] = rows[:num_rows]
    whole = jnp.asarray(np.ones(drawn.shape, bool))
    return Folds(jnp.asarray(drawn), whole, folds.valid, folds.valid_mask)


def take_masked(data: Batch, index: Array, mask: Array) -> Batch:
    """The rows `index` of `data`; those whose mask is 0 get weight 0."""
    batch = jax.tree.map(lambda x: jnp.asarray(x)[index], data)
    mask = mask.reshape(mask.shape + (1,) * (batch.weights.ndim - mask.ndim))
    return batch._replace(weights=jnp.where(mask, batch.weights, 0))


def _checked_classes(stratify: ArrayLike, num_examples: int, num_folds: int) -> Array:
    if np.shape(stratify) != (num_examples,):
        raise ValueError(
            f"`stratify` must have shape ({num_examples},), one class per example; got "
            f"{np.shape(stratify)}."
        )
    classes = jnp.asarray(stratify)
    if not jnp.issubdtype(classes.dtype, np.integer):
        raise ValueError(
            f"`stratify` must be integer classes, got {classes.dtype}; leave it out for a "
            "regression target."
        )
    if is_known(classes):
        names, counts = np.unique(np.asarray(classes), return_counts=True)
        smallest = int(np.argmin(counts))
        if counts[smallest] < num_folds:
            raise ValueError(
                f"`num_folds` must be at most {counts[smallest]}, the size of the smallest class "
                f"({names[smallest]}), under stratification; got num_folds={num_folds}. Use fewer "
                "folds, or leave `stratify` out."
            )
    return classes


def _padded(splits: list[np.ndarray]) -> tuple[Array, Array]:
    longest = max(split.size for split in splits)
    index = np.stack([np.resize(split, longest) for split in splits])
    mask = np.stack([np.arange(longest) < split.size for split in splits])
    return jnp.asarray(index, jnp.int32), jnp.asarray(mask)
