"""A TFDS split as a run sees it: some of its rows, other targets, other units, another size."""

import dataclasses
import functools
import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from wdjax.data.dataset import Dataset, as_floats, make_dataset
from wdjax.data.images import SIDE
from wdjax.data.scale import Scaling
from wdjax.data.tfds import TfdsSource, check_labels
from wdjax.loss_kinds import has_classes

ROWS_AT_ONCE = 256


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """Rows of a split whose inputs are read when asked for; `make_stream` takes it as a source.

    The targets of a listed view are in memory, a number a row, so that wrong labels, a stratified
    split or standardised numbers are those that the same functions make of data in memory.
    """

    source: TfdsSource
    listed: Dataset | None = None
    """From `list_rows` and what was made of it; None takes every row as it is."""
    scaling: Scaling | None = None
    """Of the inputs."""
    resized: bool = False
    """Whether images become `[32, 32, 3]`, as `as_images_32` does it in memory."""

    def __len__(self) -> int:
        """The examples seen."""
        return len(self.source if self.listed is None else self.listed.inputs)

    @functools.cached_property
    def name(self) -> str:
        """The split's name and a hash of what is seen of it: a resumed run compares it."""
        digest = hashlib.sha256(f"{self.resized}".encode())
        listed = () if self.listed is None else (self.listed.inputs, self.listed.targets)
        for array in (*listed, *(self.scaling or ())):
            digest.update(np.asarray(array).tobytes())
        return f"{self.source.name} seen as {digest.hexdigest()[:16]}"

    def arrays_at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets, stacked.

        Raises:
          ValueError: for a damaged record, by its file, or a label outside the classes.
        """
        rows = positions if self.listed is None else self.listed.inputs[positions]
        items = self.source.__getitems__(rows.tolist())
        inputs = np.stack([inputs for inputs, _ in items])
        if self.listed is None:
            targets = np.stack([target for _, target in items])
            check_labels(targets, self.source, rows)
        else:
            targets = self.listed.targets[positions]
        if self.scaling is not None:
            mean, scale = (np.asarray(x, np.float32) for x in self.scaling)
            inputs = (inputs.astype(np.float32) - mean[None]) * scale[None]
        return _images_32(inputs) if self.resized else inputs, targets


def list_rows(source: TfdsSource, *, loss: str) -> Dataset:
    """The numbers of a split's rows as `inputs`, with their targets, from one pass over them.

    Raises:
      ValueError: as `make_dataset`; for a damaged record, by its file.
    """
    rows, targets = np.arange(len(source)), source.targets()
    if has_classes(loss):
        check_labels(targets, source, rows)
    listed = make_dataset(
        rows,
        targets,
        loss=loss,
        name=f"tfds:{source.name}",
        num_outputs=source.num_classes,
        class_names=source.class_names,
    )
    return listed._replace(inputs=rows)


def measure_inputs(source: TfdsSource, listed: Dataset | None) -> Scaling:
    """What `measure_scaling` finds for the inputs of those rows, from one pass over them.

    Blocks are joined by their means and squared deviations, in float64 (Chan et al. 1979).
    """
    rows = np.arange(len(source)) if listed is None else listed.inputs
    count, mean, square, low, high = 0, 0.0, 0.0, np.inf, -np.inf
    for start in range(0, len(rows), ROWS_AT_ONCE):
        items = source.__getitems__(rows[start : start + ROWS_AT_ONCE].tolist())
        block = np.stack([np.asarray(inputs, np.float64) for inputs, _ in items])
        size, here = len(block), block.mean(axis=0)
        shift, total = here - mean, count + size
        square = square + ((block - here[None]) ** 2).sum(axis=0)
        square = square + shift**2 * (count * size / total)
        mean, count = mean + shift * (size / total), total
        low, high = np.minimum(low, block.min(axis=0)), np.maximum(high, block.max(axis=0))
    deviation = np.sqrt(square / count)
    varies = (high > low) & (deviation > 0)
    scale = np.where(varies, 1 / np.where(varies, deviation, 1.0), 0.0)
    return Scaling(jnp.asarray(mean, jnp.float32), jnp.asarray(scale, jnp.float32))


def _images_32(images: np.ndarray) -> np.ndarray:
    """As `as_images_32`, in NumPy: where batches are read, the device is busy with others."""
    images = as_floats(images).astype(np.float32)
    rows, columns = (_weights_of(size) for size in images.shape[1:3])
    images = np.einsum("hr,brcx,wc->bhwx", rows, images, columns, optimize=True)
    return np.repeat(images, 3 // images.shape[-1], axis=-1)


@functools.cache
def _weights_of(size: int) -> np.ndarray:
    """`[32, size]`: a linear resizing along one axis is a matrix, the resized identity."""
    return np.asarray(jax.image.resize(np.eye(size, dtype=np.float32), (SIDE, size), "linear"))
