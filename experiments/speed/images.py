"""A TFDS folder of small images, as PNG in array_record: what streaming is measured on."""

import io
import pathlib

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


def write_images(root, num_images):
    """Random images in the form of CIFAR-10's own folder."""
    folder = pathlib.Path(root) / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    features = {
        "image": tfds.features.Image(shape=(32, 32, 3), encoding_format="png"),
        "label": tfds.features.ClassLabel(num_classes=10),
    }
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name="cifar10",
            version=tfds.core.Version("3.0.2"),
            data_dir=str(folder),
            module_name=__name__,
        ),
        features=tfds.features.FeaturesDict(features),
    )
    writer = tfds.core.SequentialWriter(info, 1000, file_format="array_record")
    writer.initialize_splits(["train"])
    rng = np.random.default_rng(0)
    for start in range(0, num_images, 1000):
        # Smooth, as photographs are: noise would be the slowest PNG there is.
        size = min(1000, num_images - start)
        coarse = rng.integers(0, 256, (size, 8, 8, 3), np.uint8)
        pixels = coarse.repeat(4, 1).repeat(4, 2)
        rows = [{"image": png(p), "label": (start + i) % 10} for i, p in enumerate(pixels)]
        writer.add_examples({"train": rows})
    writer.close_all()


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
