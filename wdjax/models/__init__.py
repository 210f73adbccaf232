"""Models as two pure functions: the articles' MLP, CNN and RNN, larger ones, flax adapters."""

from wdjax.models.adapters import count_params, from_linen, from_nnx, with_compute_dtype
from wdjax.models.by_structure import from_equinox, from_pair
from wdjax.models.convolution import conv, max_pool
from wdjax.models.language import make_byte_lm, make_byte_transformer
from wdjax.models.layers import dropout
from wdjax.models.networks import make_cnn, make_mlp, make_rnn
from wdjax.models.resnet import make_resnet20

__all__ = [
    "conv",
    "count_params",
    "dropout",
    "from_equinox",
    "from_linen",
    "from_nnx",
    "from_pair",
    "make_byte_lm",
    "make_byte_transformer",
    "make_cnn",
    "make_mlp",
    "make_resnet20",
    "make_rnn",
    "max_pool",
    "with_compute_dtype",
]
