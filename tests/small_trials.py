"""A few examples, a small run on them and the devices: what the tests of trials share."""

import jax
import numpy as np
import optax
from jax.sharding import AxisType

from wdjax.losses import cross_entropy
from wdjax.models import make_mlp
from wdjax.penalties import l2_penalty
from wdjax.training import make_fit, make_fit_and_score, make_score
from wdjax.types import Batch


def mesh_of(num_devices, *axes):
    shape = (num_devices,) if not axes else tuple(axes)
    names = tuple("ab"[: len(shape)])
    kinds = (AxisType.Auto,) * len(shape)
    return jax.make_mesh(shape, names, axis_types=kinds, devices=jax.devices()[:num_devices])


def data_of(num_examples=22):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, num_examples)
    x = rng.normal(size=(num_examples, 3)) + y[:, None]
    return Batch(x.astype(np.float32), y.astype(np.int32), rng.uniform(0.5, 1.5, num_examples))


MODEL = make_mlp(2, widths=(4,), dropout=0.2)
FIT_AND_SCORE = make_fit_and_score(
    make_fit(
        MODEL,
        cross_entropy,
        make_tx=lambda h: optax.sgd(h["learning_rate"]),
        make_penalty=lambda h: l2_penalty(h["strength"]),
        num_epochs=2,
        batch_size=4,
    ),
    make_score(MODEL, loss=cross_entropy),
)
