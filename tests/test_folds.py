"""Folds: fair, disjoint, padded to one shape, pure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.model_selection import GroupKFold, StratifiedKFold

from wdjax.selection.folds import folds_from_splits, kfold, take_masked
from wdjax.types import Batch

LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [40, 23, 8]))


def rows(index, mask):
    """The rows of each fold, as sets; the padding must point at real rows."""
    index, mask = np.asarray(index), np.asarray(mask)
    for fold, kept in zip(index, mask, strict=True):
        assert len(set(fold[kept])) == kept.sum(), "a row stands twice"
    return [set(fold[kept].tolist()) for fold, kept in zip(index, mask, strict=True)]


@pytest.mark.parametrize("num_examples, num_folds", [(71, 5), (10, 5), (7, 2), (4, 4), (2, 2)])
@pytest.mark.parametrize("stratified", [False, True])
def test_every_row_is_held_out_once_and_trains_in_all_other_folds(
    num_examples, num_folds, stratified, key
):
    labels = np.arange(num_examples) % 1 if num_examples < 71 else LABELS
    folds = kfold(key, num_examples, num_folds, stratify=labels if stratified else None)
    train, valid = rows(folds.train, folds.train_mask), rows(folds.valid, folds.valid_mask)
    everyone = set(range(num_examples))
    assert set.union(*valid) == everyone and sum(map(len, valid)) == num_examples
    assert all(t | v == everyone and not t & v for t, v in zip(train, valid, strict=True))
    assert max(map(len, valid)) - min(map(len, valid)) <= 1
    assert folds.valid.shape[1] == max(map(len, valid))
    assert folds.train.shape[1] == max(map(len, train))


@pytest.mark.parametrize("num_folds", [2, 5, 8])
def test_class_shares_are_those_of_scikit_learns_stratified_folds(num_folds, key):
    """Each class differs by at most one between folds, as in `StratifiedKFold`, fold sizes too."""
    folds = kfold(key, len(LABELS), num_folds, stratify=LABELS)
    ours = [np.bincount(LABELS[list(part)], minlength=3) for part in rows(*folds[2:])]
    splits = StratifiedKFold(num_folds).split(LABELS, LABELS)
    theirs = [np.bincount(LABELS[part], minlength=3) for _, part in splits]
    assert np.ptp(ours, axis=0).max() <= 1
    assert np.ptp(np.sum(ours, axis=1)) <= 1
    np.testing.assert_array_equal(np.sort(ours, axis=0), np.sort(theirs, axis=0))


def test_without_stratification_classes_are_ignored(key):
    """Three of these eight keys part a rare class unevenly: shares are left to chance."""
    spread = []
    for k in jax.random.split(key, 8):
        folds = kfold(k, len(LABELS), 5)
        counts = [np.bincount(LABELS[list(part)], minlength=3) for part in rows(*folds[2:])]
        spread.append(np.ptp(counts, axis=0).max())
    assert max(spread) > 1


def test_the_same_key_gives_the_same_folds_also_compiled(key):
    make = lambda key, labels: kfold(key, len(LABELS), 5, stratify=labels)
    once, again = make(key, LABELS), jax.jit(make)(key, LABELS)
    jax.tree.map(np.testing.assert_array_equal, once, again)
    other = make(jax.random.fold_in(key, 1), LABELS)
    assert rows(*once[2:]) != rows(*other[2:])
    many = jax.vmap(lambda key: make(key, LABELS))(jax.random.split(key, 3))
    assert many.train.shape == (3, *once.train.shape)


@pytest.mark.parametrize(
    "num_examples, num_folds, stratify, words",
    [
        (10, 1, None, "`num_folds` must be between 2 and 10, got num_folds=1"),
        (10, 11, None, "`num_folds` must be between 2 and 10, got num_folds=11"),
        (71, 9, LABELS, r"at most 8, the size of the smallest class \(2\).*got num_folds=9"),
        (10, 2, LABELS, r"`stratify` must have shape \(10,\), one class per example; got \(71,\)"),
        (2, 2, np.array([0.5, 1.5]), "must be integer classes, got float.*regression"),
    ],
)
def test_folds_that_cannot_be_are_refused(num_examples, num_folds, stratify, words, key):
    with pytest.raises(ValueError, match=words):
        kfold(key, num_examples, num_folds, stratify=stratify)


def test_traced_classes_pass_the_check_of_the_smallest_class(key):
    folds = jax.jit(lambda labels: kfold(key, 71, 9, stratify=labels))(LABELS)
    assert folds.valid.shape == (9, 8)


# folds_from_splits


def test_any_scikit_learn_splitter_will_do():
    """GroupKFold: uneven folds, padded; no group on both sides."""
    groups = np.repeat(np.arange(7), [1, 2, 3, 4, 5, 6, 9])
    pairs = list(GroupKFold(4).split(np.zeros(30), groups=groups))
    folds = folds_from_splits(iter(pairs))
    train, valid = rows(folds.train, folds.train_mask), rows(folds.valid, folds.valid_mask)
    for (theirs, held_out), t, v in zip(pairs, train, valid, strict=True):
        assert (t, v) == (set(theirs.tolist()), set(held_out.tolist()))
        assert not set(groups[list(t)]) & set(groups[list(v)])
    assert len({len(part) for part in valid}) > 1
    assert np.asarray(folds.train).min() >= 0 and np.asarray(folds.train).max() < 30


@pytest.mark.parametrize(
    "pairs, words",
    [
        ([], r"`pairs` is empty; give at least one \(train, valid\) pair"),
        ([([0, 1], [1, 2])], "fold 0 validates on 1 rows it trains on, the first is row 1"),
        ([([0, 1], [])], "valid of fold 0 has dtype float64 and shape .0,."),
        ([([0, 1], [2]), ([0.5], [1])], "train of fold 1 has dtype float64"),
        ([([[0, 1]], [2])], r"train of fold 0 has dtype int64 and shape \(1, 2\)"),
        ([(np.array([True, False]), [1])], "train of fold 0 has dtype bool"),
    ],
)
def test_pairs_that_are_no_splits_are_refused(pairs, words):
    with pytest.raises(ValueError, match=words):
        folds_from_splits(pairs)


# take


def test_masked_rows_get_weight_zero_also_over_time():
    index, mask = jnp.array([3, 1, 0]), jnp.array([True, True, False])
    for weights in (np.array([1.0, 2, 3, 4]), np.arange(8.0).reshape(4, 2) + 1):
        batch = take_masked(Batch({"x": np.arange(4)}, np.arange(4) * 10, weights), index, mask)
        np.testing.assert_array_equal(batch.inputs["x"][:2], [3, 1])
        np.testing.assert_array_equal(batch.targets[:2], [30, 10])
        np.testing.assert_array_equal(batch.weights[:2], weights[[3, 1]])
        np.testing.assert_array_equal(batch.weights[2], 0 * weights[0])
