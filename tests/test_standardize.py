"""Standardisation: against scikit-learn's, with weights, over folds."""

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.preprocessing import StandardScaler

from wdjax.data import standardize
from wdjax.types import Batch


def _random_batch(seed: int, num_rows: int) -> Batch:
    rng = np.random.default_rng(seed)
    inputs = rng.normal([5.0, -3.0, 0.1], [2.0, 1e-3, 40.0], (num_rows, 3))
    return Batch(jnp.asarray(inputs), jnp.asarray(rng.normal(2, 3, num_rows)), jnp.ones(num_rows))


def test_standardised_columns_equal_scikit_learns(x64):
    train, valid = _random_batch(0, 20), _random_batch(1, 7)
    scaled = standardize(train, valid, inputs=True, targets=True)
    scaler = StandardScaler().fit(train.inputs)
    for got, raw in zip(scaled, (train, valid), strict=True):
        np.testing.assert_allclose(got.inputs, scaler.transform(raw.inputs), rtol=1e-9)
        expected = (raw.targets - np.mean(train.targets)) / np.std(train.targets)
        np.testing.assert_allclose(got.targets, expected, rtol=1e-12)


def test_a_weight_of_two_counts_a_row_twice(x64):
    train, valid = _random_batch(0, 4), _random_batch(1, 3)
    weighted = train._replace(weights=jnp.array([1.0, 2.0, 3.0, 1.0]))
    rows = np.repeat(np.arange(4), [1, 2, 3, 1])
    repeated = Batch(train.inputs[rows], train.targets[rows], jnp.ones(7))
    got = standardize(weighted, valid, inputs=True, targets=True)[1]
    expected = standardize(repeated, valid, inputs=True, targets=True)[1]
    np.testing.assert_allclose(got.inputs, expected.inputs, rtol=1e-12)
    np.testing.assert_allclose(got.targets, expected.targets, rtol=1e-12)


def test_rows_of_weight_zero_count_nothing_even_if_nan_and_become_zero():
    train, valid = _random_batch(0, 6), _random_batch(1, 3)
    inputs, targets = np.array(train.inputs), np.array(train.targets)
    inputs[4:], targets[4:] = np.nan, np.inf
    padded = Batch(inputs, targets, np.array([1.0, 1, 1, 1, 0, 0], np.float32))
    bare = Batch(train.inputs[:4], train.targets[:4], train.weights[:4])
    got = standardize(padded, valid, inputs=True, targets=True)
    expected = standardize(bare, valid, inputs=True, targets=True)
    np.testing.assert_allclose(got[1].inputs, expected[1].inputs, rtol=1e-4)
    np.testing.assert_array_equal(got[0].inputs[4:], np.zeros((2, 3)))
    np.testing.assert_array_equal(got[0].targets[4:], np.zeros(2))


def test_a_column_that_is_constant_on_train_becomes_zero_in_both():
    """0.1 is not a float: the mean of 1,000 of them is off by rounding, the column still 0."""
    train = Batch(jnp.full((1000, 1), 0.1), jnp.zeros(1000), jnp.ones(1000))
    valid = Batch(jnp.array([[0.1], [7.0]]), jnp.zeros(2), jnp.ones(2))
    for part in standardize(train, valid, inputs=True, targets=False):
        np.testing.assert_array_equal(part.inputs, np.zeros(part.inputs.shape))


def test_what_is_not_asked_for_is_left_alone():
    train, valid = _random_batch(0, 4), _random_batch(1, 3)
    scaled = standardize(train, valid, inputs=False, targets=True)
    assert scaled[0].inputs is train.inputs and scaled[1].inputs is valid.inputs
    assert scaled[0].weights is train.weights


def test_standardising_is_traceable_over_folds():
    """One program for two masks gives what each mask gives alone."""
    data, masks = _random_batch(0, 6), jnp.array([[1.0, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 0]])

    def scaled(mask):
        train, valid = data._replace(weights=mask), data._replace(weights=1 - mask)
        return standardize(train, valid, inputs=True, targets=True)[1]

    together = jax.jit(jax.vmap(scaled))(masks)
    for i, mask in enumerate(masks):
        np.testing.assert_allclose(together.inputs[i], scaled(mask).inputs, rtol=1e-4, atol=1e-5)


def test_images_are_scaled_position_by_position(x64):
    inputs = jnp.asarray(np.random.default_rng(0).normal(3, 2, (9, 2, 2, 1)))
    train = Batch(inputs, jnp.zeros(9), jnp.ones(9))
    scaled = standardize(train, train, inputs=True, targets=False)[0].inputs
    np.testing.assert_allclose(scaled.mean(axis=0), np.zeros((2, 2, 1)), atol=1e-12)
    np.testing.assert_allclose(scaled.std(axis=0), np.ones((2, 2, 1)), rtol=1e-12)
