"""A residual network for small images, with batch normalisation."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from wdjax.checks import check_positive_int
from wdjax.models.adapters import from_linen
from wdjax.models.convolution import conv
from wdjax.models.layers import Dropout, check_rate, dense_like, param_dtype
from wdjax.models.products import relu
from wdjax.types import Model, Strength


def make_resnet20(num_outputs: int, *, dropout: Strength = 0.0) -> Model:
    """ResNet-20: a 3x3 convolution, 3 stages of 3 blocks (16, 32, 64 wide), mean, dropout, Dense.

    `inputs[batch, height, width, channel] -> outputs[batch, num_outputs]`; 269,722 params with
    3 channels and 10 outputs. A block adds two convolutions to its input, each followed by
    batch normalisation and so without a bias; a shortcut into a wider stage takes every second
    pixel and pads channels with zeros. The model's state holds the running mean and variance
    (decay 0.9). Batch statistics see every row of a batch, others in place of those of weight 0
    (`regularized_loss`). He normal kernels, in the inputs' dtype, float32 at least; `dropout` in
    [0, 1) may be traced.

    Raises:
      ValueError: if `num_outputs` is not a positive integer, or a known `dropout` is out of
        range; at `init`, if the inputs are not images.

    Source: He et al. 2016, section 4.2, shortcut A.
    """
    check_positive_int("num_outputs", num_outputs)
    check_rate("dropout", dropout)
    return from_linen(ResNet(num_outputs, 3, dropout))


class ResNet(nn.Module):
    """See `make_resnet20`; `6 * num_blocks + 2` layers deep."""

    num_outputs: int
    num_blocks: int
    dropout: Any

    @nn.compact
    def __call__(self, inputs: Array | np.ndarray, train: bool = False) -> Array:
        """`inputs[batch, height, width, channel] -> outputs[batch, num_outputs]`."""
        if inputs.ndim != 4:
            raise ValueError(
                "A residual network takes images [batch, height, width, channel], got shape "
                f"{inputs.shape}."
            )
        x = relu(ConvNorm(16, 1, name="stem")(inputs, train))
        for stage, width in enumerate((16, 32, 64), 1):
            for block in range(1, self.num_blocks + 1):
                stride = 2 if width != x.shape[-1] else 1
                shortcut = x[:, ::stride, ::stride]
                pad = (width - x.shape[-1]) // 2
                shortcut = jnp.pad(shortcut, [(0, 0)] * 3 + [(pad, pad)])
                name = f"stage{stage}_block{block}"
                x = relu(ConvNorm(width, stride, name=f"{name}_first")(x, train))
                x = ConvNorm(width, 1, name=f"{name}_second")(x, train)
                x = relu(x + shortcut)
        x = Dropout(self.dropout)(x.mean((1, 2)), train)
        return dense_like(inputs)(self.num_outputs, name="head")(x)


class ConvNorm(nn.Module):
    """A 3x3 convolution without bias, then batch normalisation."""

    width: int
    stride: int

    @nn.compact
    def __call__(self, inputs: Array | np.ndarray, train: bool) -> Array:
        """`inputs[batch, height, width, channel] -> outputs`, one pixel per `stride`."""
        x = nn.Conv(
            self.width,
            (3, 3),
            self.stride,
            padding=1,
            # A bias here would only be taken out again by the norm: its true gradient is zero,
            # and Adam would turn the rounding noise of it into steps of full size.
            use_bias=False,
            kernel_init=nn.initializers.he_normal(),
            param_dtype=param_dtype(inputs),
            conv_general_dilated=conv,
            name="conv",
        )(inputs)
        return nn.BatchNorm(not train, momentum=0.9, param_dtype=param_dtype(inputs), name="norm")(
            x
        )
