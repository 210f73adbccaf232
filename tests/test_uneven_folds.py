"""A fold trains as it would alone: what it trains on is cut out by NumPy and run by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.model_selection import GroupKFold, TimeSeriesSplit

from wdjax.decay import decoupled_decay
from wdjax.losses import squared_error
from wdjax.selection.cross_validation import cross_validate
from wdjax.selection.folds import folds_from_splits, kfold
from wdjax.selection.grids import grid_product
from wdjax.training import make_fit, make_fit_and_score
from wdjax.types import Batch, Model

GRID = grid_product(strength=[0.0, 1.0])
RATE, BATCH, EPOCHS = 0.05, 10, 3
KEY = jax.random.key(7)


def data_of(num_examples=60, dtype=np.float32):
    """A regression in which one row in seven has weight 0: a row like any other to be visited."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(num_examples, 4))
    y = x @ rng.normal(size=4) + 0.3 * rng.normal(size=num_examples)
    weights = np.where(np.arange(num_examples) % 7 == 3, 0, rng.uniform(0.5, 1.5, num_examples))
    return Batch(x.astype(dtype), y.astype(dtype), weights.astype(dtype))


def linear():
    init = lambda key, inputs: ({"w": jnp.ones(inputs.shape[1], inputs.dtype)}, {})
    return Model(init, lambda p, s, inputs, *, key, train: (inputs @ p["w"], s))


def with_batch_statistics():
    """Subtracts the batch's mean, and keeps a running one: a row too many shows in both."""

    def init(key, inputs):
        params = {"w": jax.random.normal(key, inputs.shape[1:], inputs.dtype)}
        return params, {"mean": jnp.zeros(inputs.shape[1], inputs.dtype)}

    def apply(params, state, inputs, *, key, train):
        mean = inputs.mean(axis=0) if train else state["mean"]
        kept = {"mean": 0.9 * state["mean"] + 0.1 * mean} if train else state
        return (inputs - mean[None]) @ params["w"], kept

    return Model(init, apply)


def decayed_sgd(h):
    return optax.chain(optax.sgd(RATE), decoupled_decay(h["strength"], RATE))


def fit_of(model, **options):
    return make_fit(
        model,
        squared_error,
        make_tx=decayed_sgd,
        **{"num_epochs": EPOCHS, "batch_size": BATCH, **options},
    )


def tell_params(fit, batch):
    """All weights and statistics as scores: what cross-validation trained, entry by entry."""
    leaves = [*jax.tree.leaves(fit.params), *jax.tree.leaves(fit.model_state)]
    entries = jnp.concatenate([leaf.ravel() for leaf in leaves])
    return {f"{i}": entries[i] for i in range(entries.size)}


def trial_key(fold, seed=0):
    return jax.random.fold_in(jax.random.fold_in(KEY, fold), seed)


def trained_alone(fit, data, pairs, grid=GRID):
    """`[row, fold, entry]`: each fold's rows cut out by NumPy, and nothing else."""
    run = jax.jit(lambda h, part, key: tell_params(fit(h, part, key), part))
    rows = [{name: values[i] for name, values in grid.items()} for i in range(grid.num_rows)]
    found = [
        [
            list(run(h, jax.tree.map(lambda x, own=own: x[own], data), trial_key(fold)).values())
            for fold, (own, _) in enumerate(pairs)
        ]
        for h in rows
    ]
    return np.array(found)


def trained_together(fit, data, pairs, grid=GRID, **options):
    """The same by `cross_validate`."""
    fit_and_score = make_fit_and_score(fit, tell_params)
    scores = cross_validate(
        fit_and_score, grid, data, folds_from_splits(pairs), key=KEY, **options
    ).values
    entries = [v for name, v in scores.items() if not name.startswith("train_")]
    return np.stack(entries, axis=-1)[:, :, 0]


def pairs_of_kfold(num_examples, num_folds):
    folds = jax.tree.map(np.asarray, kfold(jax.random.key(0), num_examples, num_folds))
    cut = lambda index, mask: [i[m] for i, m in zip(index, mask, strict=True)]
    train, valid = cut(folds.train, folds.train_mask), cut(folds.valid, folds.valid_mask)
    return list(zip(train, valid, strict=True))


def pairs_of_groups(num_examples):
    """Groups of 1, 2, 3, ... rows."""
    groups = np.repeat(np.arange(20), np.arange(1, 21))[:num_examples]
    return list(GroupKFold(3).split(np.zeros(num_examples), groups=groups))


SPLITS = {
    # Training parts of 10, 20, ..., 50 rows.
    "time series": (60, list(TimeSeriesSplit(5).split(np.zeros(60)))),
    "groups": (58, pairs_of_groups(58)),
    # 39 and 40 rows: on either side of a multiple of the batch; 40 and 41; 41 and 42.
    "below and at": (59, pairs_of_kfold(59, 3)),
    "at and above": (61, pairs_of_kfold(61, 3)),
    "above": (62, pairs_of_kfold(62, 3)),
}


def test_decay_alone_leaves_what_the_steps_of_the_fold_leave():
    """Inputs of zero: each of 3 * (n // 10) steps leaves 1 - 0.05 * strength of a weight."""
    num_examples, pairs = SPLITS["time series"]
    zeros = Batch(np.zeros((60, 4), np.float32), np.zeros(60, np.float32), np.ones(60, np.float32))
    found = trained_together(fit_of(linear()), zeros, pairs)
    steps = np.array([EPOCHS * (len(train) // BATCH) for train, _ in pairs])
    np.testing.assert_array_equal(steps, [3, 6, 9, 12, 15])
    np.testing.assert_allclose(found[1, :, 0], 0.95**steps, rtol=1e-6)
    np.testing.assert_array_equal(found[0], 1)


@pytest.mark.parametrize("split", SPLITS)
def test_a_fold_trains_as_it_would_alone(split):
    num_examples, pairs = SPLITS[split]
    data, fit = data_of(num_examples), fit_of(linear())
    alone = trained_alone(fit, data, pairs)
    np.testing.assert_allclose(trained_together(fit, data, pairs), alone, rtol=1e-6, atol=1e-6)
    assert np.ptp(alone, axis=1).min() > 1e-3, "folds that are alike would prove nothing"
