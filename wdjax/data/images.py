"""Images in the size that the article's CNN is defined on."""

import jax
import numpy as np

from wdjax.data.dataset import Dataset, as_floats

SIDE = 32
"""Of the images that the article's CNN is defined on, in pixels."""


def as_images_32(dataset: Dataset) -> Dataset:
    """Images as `[32, 32, 3]`: resized linearly, a single channel repeated three times.

    The article's CNN is defined on that size; images that have it are returned untouched, others
    are floats then.

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
        as_floats(dataset.inputs), (len(dataset.inputs), SIDE, SIDE, shape[-1]), method="linear"
    )
    images = np.asarray(resized, np.float32)
    return dataset._replace(inputs=np.repeat(images, 3 // shape[-1], axis=-1))
