"""Augmentations on the device: `(key, image) -> (image, strength)`, one image, pure; vmap them.

Each reports how strongly it changed the image, in [0, 1]: the feature of S4. They are written
with JAX's own operations. dm-pix has the same image operations, but its random ones keep what
they drew to themselves, so a strength could not be reported, and the command's main job would
need an extra package for a few lines; tests compare the operations with it where it is installed.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from wdjax.checks import check_number, check_positive_int
from wdjax.types import Strength

Augmentation = Callable[[Array, Array], tuple[Array, Array]]
"""`(key, image[height, width, channel]) -> (image, strength in [0, 1])`, shape and dtype kept."""

_LUMINANCE = (0.299, 0.587, 0.114)
"""ITU-R BT.601: how bright red, green and blue look."""


def compose(*augmentations: Augmentation) -> Augmentation:
    """Chains augmentations, each with its own key; the strength is the mean of theirs.

        strength = 1/k sum_j strength_j

    The mean, because it is 1 only where every one acts fully: the largest, or
    `1 - prod (1 - s_j)`, is 1 for every flipped image whatever the others did.

    Raises:
      ValueError: without an augmentation.
    """
    if not augmentations:
        raise ValueError("`compose` needs at least one augmentation, such as random_flip().")

    def augment(key: Array, image: Array) -> tuple[Array, Array]:
        strengths = []
        for one_key, one in zip(
            jax.random.split(key, len(augmentations)), augmentations, strict=True
        ):
            image, strength = one(one_key, image)
            strengths.append(strength)
        return image, jnp.mean(jnp.stack(strengths))

    return augment


def random_crop(padding: int) -> Augmentation:
    """Pads with zeros on every side and cuts the old size out at a random place.

    It shifts by `(dy, dx)`, uniform in `{-padding, ..., padding}^2`; the strength is
    `max(|dy|, |dx|) / padding`.

    Raises:
      ValueError: if `padding` is not an integer >= 1; when called, for no image.

    Source: He et al. 2016, section 4.2 (padding 4 on 32x32).
    """
    check_positive_int("padding", padding)

    def augment(key: Array, image: Array) -> tuple[Array, Array]:
        _check_image(image)
        start = jax.random.randint(key, (2,), 0, 2 * padding + 1)
        padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
        cut = jax.lax.dynamic_slice(padded, (start[0], start[1], 0), image.shape)
        return cut, jnp.max(jnp.abs(start - padding)).astype(_strength_dtype(image)) / padding

    return augment


def random_flip(probability: Strength = 0.5) -> Augmentation:
    """Turns left and right round; the strength is 1 where it did, else 0.

    Raises:
      ValueError: for a probability known and outside [0, 1]; when called, for no image.
    """
    check_number("probability", probability, low=0.0, high=1.0)

    def augment(key: Array, image: Array) -> tuple[Array, Array]:
        _check_image(image)
        flip = jax.random.bernoulli(key, jnp.asarray(probability))
        return jnp.where(flip, image[:, ::-1], image), flip.astype(_strength_dtype(image))

    return augment


def cutout(size: int) -> Augmentation:
    """Sets a square of `size` pixels around a random pixel to zero.

    At the border part of the square lies outside; the strength is the share of it inside.

    Raises:
      ValueError: if `size` is not an integer >= 1; when called, for no image or a square larger
        than it.

    Source: DeVries & Taylor 2017, arXiv:1708.04552 (size 16 on CIFAR-10).
    """
    check_positive_int("size", size)

    def augment(key: Array, image: Array) -> tuple[Array, Array]:
        height, width, _ = _check_image(image)
        if size > min(height, width):
            raise ValueError(f"`size` must be at most {min(height, width)}, the image's side.")
        row, column = jax.random.randint(key, (2,), 0, np.array([height, width]))
        inside = lambda at, side: _between(jnp.arange(side), at - size // 2, size)
        rows, columns = inside(row, height), inside(column, width)
        hole = rows[:, None] & columns[None, :]
        share = jnp.sum(rows) * jnp.sum(columns) / size**2
        return (
            jnp.where(hole[:, :, None], jnp.zeros((), image.dtype), image),
            share.astype(_strength_dtype(image)),
        )

    return augment


def random_brightness(limit: Strength) -> Augmentation:
    """Adds one number to every pixel: `image + limit * u`, u uniform in [-1, 1], strength |u|.

    Nothing is clipped: standardised images have no bounds.

    Raises:
      ValueError: for a limit known and negative; when called, for no image of floats.
    """
    most = _nonnegative("limit", limit)
    return _with_signed_draw(lambda image, u: image + most * u)


def random_contrast(limit: Strength) -> Augmentation:
    """Stretches each channel about its mean: `mean + (1 + limit * u) * (image - mean)`.

    u is uniform in [-1, 1]; the strength is |u|. The mean is over the pixels of the image.

    Raises:
      ValueError: for a limit known and negative; when called, for no image of floats.
    """
    most = _nonnegative("limit", limit)

    def stretched(image: Array, u: Array) -> Array:
        mean = jnp.mean(image, axis=(0, 1), keepdims=True)
        return mean + (1 + most * u) * (image - mean)

    return _with_signed_draw(stretched)


def random_saturation(limit: Strength) -> Augmentation:
    """Moves colours away from or towards grey: `grey + (1 + limit * u) * (image - grey)`.

    u is uniform in [-1, 1]; the strength is |u|. Grey is 0.299 red + 0.587 green + 0.114 blue.

    Raises:
      ValueError: for a limit known and negative; when called, for an image without three
        channels.
    """
    most = _nonnegative("limit", limit)

    def moved(image: Array, u: Array) -> Array:
        if image.shape[-1] != 3:
            raise ValueError(
                f"`random_saturation` needs red, green and blue, got {image.shape[-1]} channels; "
                "leave it out for grey images."
            )
        grey = jnp.sum(image * jnp.array([[_LUMINANCE]], image.dtype), axis=-1, keepdims=True)
        return grey + (1 + most * u) * (image - grey)

    return _with_signed_draw(moved)


def additive_noise(scale: Strength) -> Augmentation:
    """Adds independent normal noise of deviation `scale * u` to every number of the image.

    u is uniform in [0, 1]: the strength.

    Raises:
      ValueError: for a scale known and negative; when called, for no image of floats.
    """
    most = _nonnegative("scale", scale)

    def augment(key: Array, image: Array) -> tuple[Array, Array]:
        _check_floats(image)
        level_key, noise_key = jax.random.split(key)
        u = jax.random.uniform(level_key, (), image.dtype)
        noise = jax.random.normal(noise_key, image.shape, image.dtype)
        return (image + most * u * noise).astype(image.dtype), u.astype(_strength_dtype(image))

    return augment


def _with_signed_draw(change: Callable[[Array, Array], Array]) -> Augmentation:
    """`change(image, u)` with u uniform in [-1, 1] and strength |u|."""

    def augment(key: Array, image: Array) -> tuple[Array, Array]:
        _check_floats(image)
        u = jax.random.uniform(key, (), image.dtype, -1.0, 1.0)
        return change(image, u).astype(image.dtype), jnp.abs(u).astype(_strength_dtype(image))

    return augment


def _nonnegative(name: str, value: Strength) -> Any:
    check_number(name, value, low=0.0)
    return value


def _between(positions: Array, low: Array, length: int) -> Array:
    return (positions >= low) & (positions < low + length)


def _strength_dtype(image: Array) -> np.dtype:
    """The image's own dtype if it is of floats, else JAX's default for floats."""
    floating = jnp.issubdtype(image.dtype, np.floating)
    return jnp.result_type(image.dtype if floating else float)


def _check_image(image: Array) -> tuple[int, int, int]:
    if image.ndim != 3:
        raise ValueError(
            f"An augmentation takes one image [height, width, channel], got shape {image.shape}. "
            "For a batch: jax.vmap(augment)(jax.random.split(key, len(images)), images)."
        )
    height, width, channels = image.shape
    return height, width, channels


def _check_floats(image: Array) -> None:
    _check_image(image)
    if not jnp.issubdtype(image.dtype, np.floating):
        raise ValueError(
            f"This augmentation computes with floats, got {image.dtype}: divide bytes by 255."
        )
