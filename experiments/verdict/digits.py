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

import wdjax
from wdjax.data import load_data, to_batch
from wdjax.decay import decoupled_decay
from wdjax.losses import cross_entropy
from wdjax.measures import make_score
from wdjax.models import make_mlp
from wdjax.parts import matrices_only
from wdjax.selection import cross_validate, evidence, kfold
from wdjax.selection.choice import Judged, gains_over_zero
from wdjax.selection.scores import Scores
from wdjax.training import make_fit, make_fit_and_score
from wdjax.types import Batch

STRENGTHS = (0.0, 1e-9, 2e-9, 5e-9, 1e-8)
"""Per step and learning rate. At 3e-6 a weight loses 3e-6 of itself in the whole run."""

LEARNING_RATE, NUM_EPOCHS, BATCH_SIZE = 3e-3, 20, 64
NUM_EXAMPLES, NUM_FOLDS, NUM_SEEDS = 1400, 5, 3

Search = Callable[[jax.Array], Scores]
"""A search over strengths, zero the first, with the scores of single examples."""


class Claims(NamedTuple):
    """What was claimed of strengths that do nothing, `[draw]` each."""

    any_row: np.ndarray
    """Some row's interval excludes 0."""
    chosen: np.ndarray
    """`choose` says that the strength of lowest loss helps, or hurts."""
    zero_left_out: np.ndarray
    """The set of rows that cannot be told from the best, of `choose`, lacks zero."""
    one_standard_error: np.ndarray
    """That row is more than one standard error over folds below zero: the rule used before."""
    folds_alone: np.ndarray
    """Some row's interval over folds excludes 0."""
    share_identical: np.ndarray
    """Rows whose losses are exactly zero's: rounding never came to differ."""
    seconds: np.ndarray


def claims(search: Search, keys: Iterable[jax.Array]) -> Claims:
    """Searches once with each key and records what is said of it."""
    found = []
    for key in keys:
        start = time.perf_counter()
        scores = search(key)
        seconds = time.perf_counter() - start
        choice = wdjax.choose(scores)
        (gains,) = gains_over_zero([Judged.of(scores, "loss")])
        told = lambda gain: gain is not None and gain.verdict in ("helps", "hurts")
        losses = scores.of("loss")
        over_runs = losses[0] - losses[1:]
        over_folds = evidence.gains_over_folds(over_runs)
        fold_means = over_runs.mean(axis=2)
        best = fold_means[int(np.argmax(fold_means.mean(axis=1)))]
        assert scores.held_out is not None
        each = scores.held_out.values["loss"]
        found.append(
            (
                any(map(told, gains.values())),
                told(choice.gain),
                0 not in choice.confident_set,
                bool(best.mean() > best.std(ddof=1) / len(best) ** 0.5),
                bool(((over_folds.low > 0) | (over_folds.high < 0)).any()),
                float((each[1:] == each[0]).all(axis=(1, 2, 3)).mean()),
                seconds,
            )
        )
    return Claims(*(np.array(column) for column in zip(*found, strict=True)))


@functools.cache
def _digits() -> Batch:
    return jax.tree.map(jnp.asarray, to_batch(load_data("digits")))


@functools.cache
def _fit_and_score() -> Callable:
    """One function for all draws, so that `cross_validate` finds its program again."""
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
    return make_fit_and_score(fit, make_score(model, loss=cross_entropy))


def search(key: jax.Array) -> Scores:
    """One search over fresh examples, folds and runs, as a user makes it."""
    rows_key, folds_key, key = jax.random.split(key, 3)
    data = _digits()
    rows = jax.random.permutation(rows_key, data.weights.shape[0])[:NUM_EXAMPLES]
    return cross_validate(
        _fit_and_score(),
        {"strength": np.array(STRENGTHS, np.float32)},
        jax.tree.map(lambda leaf: leaf[rows], data),
        kfold(folds_key, NUM_EXAMPLES, NUM_FOLDS),
        key=key,
        num_seeds=NUM_SEEDS,
    )
