"""Digits, drawn again and again, at strengths that do nothing: whatever a search claims is false.

The strengths are too small to act (a weight loses less than one part in a million in a whole
run); they only change how float32 rounds, and rounding grows in training. So the rows are networks
that differ, and none is better than another but by chance.
"""

import functools
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wdjax.data.arrays import load_data, to_batch
from wdjax.decay import decoupled_decay
from wdjax.losses import cross_entropy
from wdjax.models import make_mlp
from wdjax.parts import matrices_only
from wdjax.selection import evidence, kfold
from wdjax.selection.trials import gather
from wdjax.training import make_fit
from wdjax.types import Batch

STRENGTHS = (0.0, 1e-9, 2e-9, 5e-9, 1e-8)
"""Per step and learning rate. At 3e-6 a weight loses 3e-6 of itself in the whole run."""

LEARNING_RATE, NUM_EPOCHS, BATCH_SIZE = 3e-3, 20, 64
NUM_EXAMPLES, NUM_FOLDS, NUM_SEEDS = 1400, 5, 3

Search = Callable[[jax.Array], tuple[np.ndarray, np.ndarray]]
"""`key -> (differences[row, fold, seed, example], weights[fold, example])`."""


class Claims(NamedTuple):
    """What was claimed of strengths that do nothing, `[draw]` each."""

    any_row: np.ndarray
    """Some row's interval excludes 0."""
    chosen: np.ndarray
    """The row of lowest loss is above zero's in its interval."""
    one_standard_error: np.ndarray
    """That row is more than one standard error over folds below zero: the rule used before."""
    folds_alone: np.ndarray
    """Some row's interval over folds excludes 0."""
    share_identical: np.ndarray
    """Rows whose losses are exactly zero's: rounding never came to differ."""
    seconds: np.ndarray


def claims(search: Search, keys: Iterable[jax.Array]) -> Claims:
    """Searches once with each key and records what the intervals say."""
    found = []
    for key in keys:
        start = time.perf_counter()
        differences, weights = search(key)
        seconds = time.perf_counter() - start
        gains = evidence.gains_by_example(differences, weights)
        share = weights / weights.sum(axis=1, keepdims=True)
        fold_means = np.einsum("rkse,ke->rk", differences, share) / differences.shape[2]
        over_folds = evidence.gains_over_folds(fold_means[:, :, None])
        best = int(np.argmax(gains.mean))
        error = fold_means[best].std(ddof=1) / fold_means.shape[1] ** 0.5
        excludes = lambda g: bool(((g.low > 0) | (g.high < 0)).any())
        found.append(
            (
                excludes(gains),
                bool(gains.low[best] > 0),
                bool(fold_means[best].mean() > error),
                excludes(over_folds),
                float((differences == 0).all(axis=(1, 2, 3)).mean()),
                seconds,
            )
        )
    return Claims(*(np.array(column) for column in zip(*found, strict=True)))


@functools.cache
def _digits() -> Batch:
    return jax.tree.map(jnp.asarray, to_batch(load_data("digits")))


@jax.jit
def _losses(key: jax.Array, data: Batch) -> tuple[jax.Array, jax.Array]:
    """Held-out losses `[row, fold, seed, example]` and weights `[fold, example]`: one program."""
    rows_key, folds_key, key = jax.random.split(key, 3)
    rows = jax.random.permutation(rows_key, data.weights.shape[0])[:NUM_EXAMPLES]
    drawn = jax.tree.map(lambda leaf: leaf[rows], data)
    folds = kfold(folds_key, NUM_EXAMPLES, NUM_FOLDS)
    model = make_mlp(num_outputs=10, widths=(32,))
    fit = make_fit(
        model,
        cross_entropy,
        make_tx=lambda h: optax.chain(
            optax.adam(LEARNING_RATE),
            decoupled_decay(h["strength"], LEARNING_RATE, parts=matrices_only),
        ),
        num_epochs=NUM_EPOCHS,
        batch_size=BATCH_SIZE,
    )

    def score(hparams, train, valid, key):
        done = fit(hparams, train, key)
        outputs, _ = model.apply(done.params, done.model_state, valid.inputs, key=None, train=False)
        return cross_entropy(outputs, valid.targets)

    def one(trial):
        strength, fold, seed = trial
        train, valid = gather(drawn, folds, fold)
        run_key = jax.random.fold_in(jax.random.fold_in(key, fold), seed)
        return score({"strength": strength}, train, valid, run_key)

    shape = len(STRENGTHS), NUM_FOLDS, NUM_SEEDS
    row, fold, seed = np.indices(shape).reshape(3, -1)
    trials = jnp.asarray(STRENGTHS)[row], jnp.asarray(fold), jnp.asarray(seed)
    losses = jax.lax.map(one, trials)
    return losses.reshape(*shape, -1), folds.valid_mask.astype(jnp.float32)


def search(key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """One search over fresh examples, folds and runs, zero's losses minus each strength's."""
    losses, weights = (np.asarray(x, np.float64) for x in _losses(key, _digits()))
    return losses[0] - losses[1:], weights
