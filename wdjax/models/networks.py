"""The articles' three structures: an MLP (S7), a CNN (S6), a recurrent network (S8)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from wdjax.checks import check_positive_int
from wdjax.models.adapters import from_linen
from wdjax.models.convolution import conv, max_pool
from wdjax.models.layers import Dropout, check_rate, dense_like, glorot, param_dtype
from wdjax.models.products import relu
from wdjax.types import Model, Strength


def make_mlp(num_outputs: int, *, widths: Sequence[int] = (100,), dropout: Strength = 0.0) -> Model:
    """The article's MLP: flatten, then per width Dense, relu and dropout, then Dense.

    `inputs[batch, ...] -> outputs[batch, num_outputs]`; params `hidden1/kernel`,
    `hidden1/bias`, ..., `head/kernel`, `head/bias`: Glorot uniform kernels, zero biases, in the
    inputs' dtype, float32 at least. `dropout` in [0, 1) may be traced.

    Raises:
      ValueError: if a size is not a positive integer, or a known `dropout` is out of range.
    """
    check_positive_int("num_outputs", num_outputs)
    for width in widths:
        check_positive_int("widths", width)
    check_rate("dropout", dropout)
    return from_linen(MLP(num_outputs, tuple(widths), dropout))


def make_cnn(num_outputs: int, *, dropout: Strength = 0.0) -> Model:
    """The article's CNN: three 3x3 convolutions of 32, 64, 64, two pools, Dense 64, Dense.

    `inputs[batch, height, width, channel] -> outputs[batch, num_outputs]`, VALID padding;
    on 32x32 the sides go 30, 15, 13, 6, 4, and with 3 channels and 10 outputs it has 122,570
    params. They are `conv1/kernel`, ..., `conv3/bias`, `hidden1/kernel`, ..., `head/bias`: Glorot
    uniform kernels, zero biases, in the inputs' dtype, float32 at least. Dropout acts once,
    after the hidden layer; its rate in [0, 1) may be traced.

    Raises:
      ValueError: if `num_outputs` is not a positive integer, or a known `dropout` is out of
        range; at `init`, if the images are not `[batch, height, width, channel]` of side 18 or
        more.
    """
    check_positive_int("num_outputs", num_outputs)
    check_rate("dropout", dropout)
    return from_linen(CNN(num_outputs, dropout))


def make_rnn(num_outputs: int, *, width: int = 64, dropout: Strength = 0.0) -> Model:
    """A recurrent network: a GRU over time, dropout on its last state, Dense.

    `inputs[batch, time, feature] -> outputs[batch, num_outputs]`; an image
    `[batch, row, column]` or `[batch, row, column, channel]` is read row by row. Params
    `rnn/input/kernel`, `rnn/input/bias`, `rnn/recurrent/kernel`, `head/kernel`, `head/bias`:
    Glorot uniform kernels, zero biases, in the inputs' dtype, float32 at least. `dropout` in
    [0, 1) may be traced. The loop is a `lax.scan`, differentiable forward and in reverse.

    Raises:
      ValueError: if a size is not a positive integer, or a known `dropout` is out of range; at
        `init`, if the inputs have fewer than 3 or more than 4 axes.
    """
    check_positive_int("num_outputs", num_outputs)
    check_positive_int("width", width)
    check_rate("dropout", dropout)
    return from_linen(RNN(num_outputs, width, dropout))


class MLP(nn.Module):
    """See `make_mlp`."""

    num_outputs: int
    widths: tuple[int, ...]
    dropout: Any

    @nn.compact
    def __call__(self, inputs: Array | np.ndarray, train: bool = False) -> Array:
        """`inputs[batch, ...] -> outputs[batch, num_outputs]`."""
        make_dense = dense_like(inputs)
        x = inputs.reshape(inputs.shape[0], -1)
        for number, width in enumerate(self.widths, 1):
            x = relu(make_dense(width, name=f"hidden{number}")(x))
            x = Dropout(self.dropout)(x, train)
        return make_dense(self.num_outputs, name="head")(x)


class CNN(nn.Module):
    """See `make_cnn`."""

    num_outputs: int
    dropout: Any

    @nn.compact
    def __call__(self, inputs: Array | np.ndarray, train: bool = False) -> Array:
        """`inputs[batch, height, width, channel] -> outputs[batch, num_outputs]`."""
        if inputs.ndim != 4 or min(inputs.shape[1:3]) < 18:
            raise ValueError(
                "The CNN takes images [batch, height, width, channel] of side 18 or more, got "
                f"shape {inputs.shape}. Enlarge small images; add an axis to grey ones."
            )
        make_dense = dense_like(inputs)

        def convolve(features, name, x):
            return nn.Conv(
                features,
                (3, 3),
                padding="VALID",
                kernel_init=glorot,
                param_dtype=param_dtype(inputs),
                conv_general_dilated=conv,
                name=name,
            )(x)

        # The largest of rectified values is the rectified largest, at a quarter of the work.
        x = relu(max_pool(convolve(32, "conv1", inputs)))
        x = relu(max_pool(convolve(64, "conv2", x)))
        x = relu(convolve(64, "conv3", x))
        x = relu(make_dense(64, name="hidden1")(x.reshape(x.shape[0], -1)))
        return make_dense(self.num_outputs, name="head")(Dropout(self.dropout)(x, train))


class RNN(nn.Module):
    """See `make_rnn`."""

    num_outputs: int
    width: int
    dropout: Any

    @nn.compact
    def __call__(self, inputs: Array | np.ndarray, train: bool = False) -> Array:
        """`inputs[batch, time, ...] -> outputs[batch, num_outputs]`."""
        if inputs.ndim not in (3, 4):
            raise ValueError(
                "The RNN takes sequences [batch, time, feature] or images [batch, row, column"
                f"(, channel)], got shape {inputs.shape}."
            )
        x = inputs.reshape(*inputs.shape[:2], -1)
        states = GRU(self.width, name="rnn")(x)
        x = Dropout(self.dropout)(states[:, -1], train)
        return dense_like(inputs)(self.num_outputs, name="head")(x)


class GRU(nn.Module):
    """A gated recurrent unit over time: `inputs[batch, time, feature] -> states`.

        z, r = sigmoid(W_z x + b_z + U_z h), sigmoid(W_r x + b_r + U_r h)
        n = tanh(W_n x + b_n + r * (U_n h));  h <- (1 - z) * n + z * h,  h_0 = 0

    Source: Cho et al. 2014, with the reset after the product, as cuDNN, Keras and PyTorch have
    it; unlike them without a second bias.
    """

    width: int

    @nn.compact
    def __call__(self, inputs: Array | np.ndarray) -> Array:
        """`inputs[batch, time, feature] -> states[batch, time, width]`."""
        # All times at once: one matrix product instead of one a step.
        driven = dense_like(inputs)(3 * self.width, name="input")(inputs)
        recurrent = Kernel((self.width, 3 * self.width), name="recurrent")(inputs)
        recurrent = recurrent.astype(driven.dtype)

        def step(h, x):
            x_z, x_r, x_n = jnp.split(x, 3, axis=-1)
            h_z, h_r, h_n = jnp.split(h @ recurrent, 3, axis=-1)
            z, r = nn.sigmoid(x_z + h_z), nn.sigmoid(x_r + h_r)
            h = (1.0 - z) * jnp.tanh(x_n + r * h_n) + z * h
            return h, h

        start = jnp.zeros((inputs.shape[0], self.width), driven.dtype)
        _, states = jax.lax.scan(step, start, driven.swapaxes(0, 1))
        return states.swapaxes(0, 1)


class Kernel(nn.Module):
    """A matrix alone, so that its path ends in `/kernel` as that of every other matrix."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, inputs: Array | np.ndarray) -> Array:
        """The matrix, in the dtype that `inputs` ask for."""
        return self.param("kernel", glorot, self.shape, param_dtype(inputs))
