"""Convolution and pooling that stay fast on a CPU inside `scan` and under `vmap`."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, DTypeLike, Num

from wdjax.models.products import product

MOST_TAPS = 128
"""Larger windows go to `lax.conv`: patches hold the input once per tap."""


def conv(
    lhs: Num[Array | np.ndarray, "..."],
    rhs: Num[Array | np.ndarray, "..."],
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
) -> Array:
    """`lax.conv_general_dilated`, written for a CPU as patches times a matrix.

        out[x, o] = sum_{tap, c} patches[x, tap, c] rhs[tap, c, o],
        patches[x, tap, c] = padded lhs[stride * x + dilation * tap, c]

    On a CPU XLA loses its fast convolution inside a loop, and vmapped over models it becomes a
    grouped one; a matrix product keeps its speed in both. Other platforms get
    `lax.conv_general_dilated`, chosen at lowering. Pass it to flax as the argument
    `conv_general_dilated`. Any stride, padding, dilation and number of feature groups; batch
    groups and windows of more than `MOST_TAPS` taps use `lax.conv_general_dilated` everywhere.

    Raises:
      ValueError: if `padding` is a string and `lhs_dilation` is not 1, as in `lax`.
    """
    spatial = lhs.ndim - 2
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    lhs_spec, rhs_spec, out_spec = numbers
    lhs_dilation = tuple(lhs_dilation or (1,) * spatial)
    rhs_dilation = tuple(rhs_dilation or (1,) * spatial)
    window = [rhs.shape[axis] for axis in rhs_spec[2:]]
    if isinstance(padding, str):
        if any(dilation != 1 for dilation in lhs_dilation):
            raise ValueError("`padding` must be pairs of numbers where `lhs_dilation` is not 1.")
        sides = [lhs.shape[axis] for axis in lhs_spec[2:]]
        padding = lax.padtype_to_pads(sides, _reach(window, rhs_dilation), window_strides, padding)

    def by_library(lhs, rhs):
        return lax.conv_general_dilated(
            *(lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, numbers),
            *(feature_group_count, batch_group_count, precision, preferred_element_type),
        )

    def by_patches(lhs, rhs):
        lhs = lhs.transpose(lhs_spec[0], *lhs_spec[2:], lhs_spec[1])
        rhs = rhs.transpose(*rhs_spec[2:], rhs_spec[1], rhs_spec[0])
        edges = [
            (low, high, step - 1) for (low, high), step in zip(padding, lhs_dilation, strict=True)
        ]
        if any(edge != (0, 0, 0) for edge in edges):
            lhs = lax.pad(lhs, jnp.zeros((), lhs.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
        how = dict(precision=precision, preferred_element_type=preferred_element_type)
        out = _patches_times_matrix(
            lhs, rhs, window_strides, rhs_dilation, feature_group_count, how
        )
        order = [out_spec.index(axis) for axis in range(out.ndim)]
        return out.transpose([{0: 0, 1: out.ndim - 1}.get(i, i - 1) for i in order])

    if batch_group_count != 1 or math.prod(window) > MOST_TAPS:
        return by_library(lhs, rhs)
    return lax.platform_dependent(lhs, rhs, cpu=by_patches, default=by_library)


def _reach(window: Sequence[int], dilations: Sequence[int]) -> list[int]:
    """How many places a dilated window spans along each side."""
    return [(size - 1) * dilation + 1 for size, dilation in zip(window, dilations, strict=True)]


def max_pool(inputs: Num[Array | np.ndarray, "*batch height width channel"]) -> Array:
    """The largest of each 2x2 window, stride 2; an odd last row or column is left out.

    By reshape and `max`: the gradient of `lax.reduce_window` is slow on a CPU. Windows with
    ties share the gradient equally (`reduce_window` gives it to one).
    """
    *batch, height, width, channel = inputs.shape
    height, width = height // 2, width // 2
    whole = inputs[..., : 2 * height, : 2 * width, :]
    return jnp.max(whole.reshape(*batch, height, 2, width, 2, channel), (-4, -2))


def _patches_times_matrix(
    lhs: Array,
    rhs: Array,
    strides: Sequence[int],
    dilations: Sequence[int],
    groups: int,
    how: dict[str, Any],
) -> Array:
    """`[batch, *sides, in]` and `[*window, in / groups, out]` to `[batch, *sides, out]`."""
    batch, *sides, channels = lhs.shape
    *window, _, features = rhs.shape
    reaches = zip(sides, _reach(window, dilations), strides, strict=True)
    outs = [max(0, (side - reach) // stride + 1) for side, reach, stride in reaches]

    def shifted(tap: tuple[int, ...]) -> Array:
        starts = [offset * dilation for offset, dilation in zip(tap, dilations, strict=True)]
        stops = [
            start + max(0, (out - 1) * stride + 1) if out else start
            for start, out, stride in zip(starts, outs, strides, strict=True)
        ]
        return lax.slice(lhs, [0, *starts, 0], [batch, *stops, channels], [1, *strides, 1]).reshape(
            -1, groups, channels // groups
        )

    taps = itertools.product(*map(range, window))
    patches = jnp.concatenate([shifted(tap) for tap in taps], axis=-1)
    matrix = rhs.reshape(-1, groups, features // groups)
    if groups == 1:
        out = product(patches[:, 0], matrix[:, 0], tuple(how.items()))
    else:
        out = jnp.einsum("xgc,cgo->xgo", patches, matrix, **how)
    return out.reshape(batch, *outs, features)
