"""Byte-level language models: a recurrent one and a causal transformer."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from wdjax.checks import check_positive_int
from wdjax.models.adapters import from_linen
from wdjax.models.layers import Dropout, check_rate, dense_like, param_dtype
from wdjax.models.networks import GRU
from wdjax.types import Model, Strength


def make_byte_lm(num_outputs: int = 256, *, width: int = 64, dropout: Strength = 0.0) -> Model:
    """A recurrent language model: embedding, GRU, dropout, Dense.

    `inputs[batch, time]`, integers in `[0, num_outputs)`, to logits of the next one,
    `outputs[batch, time, num_outputs]`; those at time t depend on inputs up to t only. Params
    are in JAX's default float dtype. `dropout` in [0, 1) may be traced.

    Raises:
      ValueError: if a size is not a positive integer, or a known `dropout` is out of range; at
        `init`, if the inputs are not integers `[batch, time]`.
    """
    check_positive_int("num_outputs", num_outputs)
    check_positive_int("width", width)
    check_rate("dropout", dropout)
    return from_linen(ByteGRU(num_outputs, width, dropout))


def make_byte_transformer(
    num_outputs: int = 256,
    *,
    width: int = 64,
    depth: int = 2,
    num_heads: int = 4,
    dropout: Strength = 0.0,
) -> Model:
    """A causal transformer: embedding plus sinusoids, `depth` pre-norm blocks, norm, Dense.

    `inputs[batch, time]`, integers in `[0, num_outputs)`, to logits of the next one,
    `outputs[batch, time, num_outputs]`; those at time t depend on inputs up to t only. Any
    length. A block is attention, then a gelu layer of `4 * width`; dropout acts on what each
    adds; its rate in [0, 1) may be traced. Params are in JAX's default float dtype.

    Raises:
      ValueError: if a size is not a positive integer, `width` is no multiple of
        `2 * num_heads`, or a known `dropout` is out of range; at `init`, if the inputs are not
        integers `[batch, time]`.

    Source: Vaswani et al. 2017; norm before each part as in Radford et al. 2019.
    """
    for name, size in dict(
        num_outputs=num_outputs, width=width, depth=depth, num_heads=num_heads
    ).items():
        check_positive_int(name, size)
    if width % (2 * num_heads):
        raise ValueError(
            f"`width` must be a multiple of 2 * num_heads, got {width} with {num_heads} heads."
        )
    check_rate("dropout", dropout)
    return from_linen(ByteTransformer(num_outputs, width, depth, num_heads, dropout))


class ByteGRU(nn.Module):
    """See `make_byte_lm`."""

    num_outputs: int
    width: int
    dropout: Any

    @nn.compact
    def __call__(self, inputs: Array | np.ndarray, train: bool = False) -> Array:
        """`inputs[batch, time] -> outputs[batch, time, num_outputs]`."""
        x = GRU(self.width, name="rnn")(_embed(self, inputs))
        return dense_like(x)(self.num_outputs, name="head")(Dropout(self.dropout)(x, train))


class ByteTransformer(nn.Module):
    """See `make_byte_transformer`."""

    num_outputs: int
    width: int
    depth: int
    num_heads: int
    dropout: Any

    @nn.compact
    def __call__(self, inputs: Array | np.ndarray, train: bool = False) -> Array:
        """`inputs[batch, time] -> outputs[batch, time, num_outputs]`."""
        x = _embed(self, inputs)
        x = x + _sinusoids(*x.shape[1:])[None].astype(x.dtype)
        make_dense, drop = dense_like(x), Dropout(self.dropout)
        heads = (*x.shape[:2], self.num_heads, self.width // self.num_heads)

        def norm(x: Array, name: str) -> Array:
            return nn.LayerNorm(param_dtype=param_dtype(x), name=name)(x)

        for block in range(1, self.depth + 1):
            seen = norm(x, f"block{block}_attention_norm")
            q, k, v = (
                make_dense(self.width, name=f"block{block}_{part}")(seen).reshape(heads)
                for part in ("query", "key", "value")
            )
            mixed = _causal_attention(q, k, v).reshape(x.shape)
            x = x + drop(make_dense(self.width, name=f"block{block}_mix")(mixed), train)
            seen = norm(x, f"block{block}_hidden_norm")
            hidden = nn.gelu(make_dense(4 * self.width, name=f"block{block}_hidden")(seen))
            x = x + drop(make_dense(self.width, name=f"block{block}_out")(hidden), train)
        return make_dense(self.num_outputs, name="head")(norm(x, "norm"))


def _embed(module: ByteGRU | ByteTransformer, inputs: Array | np.ndarray) -> Array:
    if inputs.ndim != 2 or not jnp.issubdtype(inputs.dtype, np.integer):
        raise ValueError(
            "A language model takes integers [batch, time], got "
            f"{inputs.dtype} of shape {inputs.shape}."
        )
    embed = nn.Embed(
        module.num_outputs, module.width, param_dtype=param_dtype(inputs), name="embed"
    )
    return embed(inputs)


def _causal_attention(query: Array, key: Array, value: Array) -> Array:
    """`softmax(query key / sqrt(size)) value` over the past, all `[batch, time, head, size]`.

    By hand, because `jax.nn.dot_product_attention` has its softmax in float32 always.
    """
    time, size = query.shape[1], query.shape[-1]
    exact = jnp.promote_types(query.dtype, np.float32)
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=exact)
    past = jnp.tril(jnp.ones((1, 1, time, time), bool))
    shares = jax.nn.softmax(scores / size**0.5, where=past).astype(value.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", shares, value)


def _sinusoids(time: int, width: int) -> Array:
    """Positions `[time, width]`: sines, then cosines, of wavelengths from 2 pi to 2 pi 10^4."""
    rates = 1e4 ** -jnp.linspace(0.0, 1.0, width // 2)
    angles = jnp.arange(time)[:, None] * rates[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)
