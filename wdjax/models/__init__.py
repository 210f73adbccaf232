"""Models as two pure functions: the articles' MLP, CNN and RNN, and adapters for flax."""

from wdjax.models.adapters import count_params, from_linen, from_nnx, with_compute_dtype
from wdjax.models.convolution import conv, max_pool
from wdjax.models.layers import dropout
from wdjax.models.networks import make_cnn, make_mlp, make_rnn

__all__ = [
    "conv",
    "count_params",
    "dropout",
    "from_linen",
    "from_nnx",
    "make_cnn",
    "make_mlp",
    "make_rnn",
    "max_pool",
    "with_compute_dtype",
]
