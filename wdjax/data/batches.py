"""Batches on the host: made of anything NumPy can read, filled up, laid over the devices."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from wdjax.types import Batch


def as_batch(item: Any) -> Batch:
    """A batch of NumPy arrays from `(inputs, targets)` or `(inputs, targets, weights)`.

    Arrays of any library that NumPy can read, in the dtypes that JAX uses; weights are ones if
    missing. Bytes of three or more axes are images and divided by 255.

    Raises:
      ValueError: if `item` is no such tuple, or its leaves differ in their number of rows.
    """
    inputs, targets, *weights = jax.tree.map(_host_array, checked_item(item))
    leaves = jax.tree.leaves((inputs, targets, weights))
    rows = {leaf.shape[:1] for leaf in leaves}
    if len(rows) != 1 or () in rows:
        raise ValueError(
            f"a batch's leaves have shapes {[leaf.shape for leaf in leaves]}; each needs the same "
            "number of rows first."
        )
    if not weights:
        weights = [np.ones(leaves[0].shape[:1], np.float32)]
    return Batch(inputs, targets, weights[0])


def checked_item(item: Any) -> tuple:
    """`item` as a tuple of two or three.

    Raises:
      ValueError: if it is anything else.
    """
    if isinstance(item, Batch):
        return tuple(item)
    if not (isinstance(item, Sequence) and len(item) in (2, 3)):
        raise ValueError(
            "the data to stream must yield (inputs, targets) or (inputs, targets, weights), got "
            f"{type(item).__name__}; wrap it in a generator that does."
        )
    return tuple(item)


def in_blocks(run: Callable[[np.ndarray], Any], inputs: np.ndarray, size: int) -> np.ndarray:
    """`run` over `inputs[example, ...]`, `size` rows at a time, the last block filled with zeros.

    So one compiled program serves any number of examples.
    """
    blocks = []
    for begin in range(0, len(inputs), size):
        rows = inputs[begin : begin + size]
        filled = np.zeros((size, *inputs.shape[1:]), inputs.dtype)
        filled[: len(rows)] = rows
        blocks.append(np.asarray(run(filled))[: len(rows)])
    return np.concatenate(blocks)


def to_devices(batch: Batch, sharding: Any = None) -> Batch:
    """A host batch as JAX arrays; with a sharding, this process's part of a global batch.

    Raises:
      ValueError: if the devices of `sharding` do not divide the batch.
    """
    if sharding is None:
        return jax.tree.map(jax.device_put, batch)
    devices = sharding.num_devices
    rows = np.shape(batch.weights)[0] * jax.process_count()
    try:
        sharding.shard_shape((rows,))
    except ValueError:
        raise ValueError(
            f"a batch of {rows} rows cannot be divided among {devices} devices; take a batch size "
            f"of {-(-rows // devices) * devices}, or fill the batch up with rows of weight 0."
        ) from None
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), batch
    )


def pad_batch(batch: Batch, size: int) -> Batch:
    """A host batch filled up to `size` rows with zeros, of weight 0.

    Raises:
      ValueError: if it has more rows than that.
    """
    rows = np.shape(batch.weights)[0]
    if rows > size:
        raise ValueError(f"`batch_size` = {size} is less than the {rows} rows of a batch.")
    if rows == size:
        return batch

    def fill(leaf: Any) -> np.ndarray:
        leaf = np.asarray(leaf)
        return np.concatenate([leaf, np.zeros((size - rows, *leaf.shape[1:]), leaf.dtype)])

    return jax.tree.map(fill, batch)


def _host_array(leaf: Any) -> np.ndarray:
    array = np.asarray(leaf)
    if array.dtype == np.uint8 and array.ndim >= 3:
        return array.astype(np.float32) / np.float32(255)
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)
