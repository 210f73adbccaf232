"""Measures and scores: means, single examples, directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wdjax.losses import cross_entropy, squared_error
from wdjax.measures import Measure, direction_of, is_correct, make_score
from wdjax.training import make_fit_and_score
from wdjax.types import Batch, Fit, Model

RNG = np.random.default_rng(0)

IDENTITY = Model(
    lambda key, inputs: ({}, {}),
    lambda params, model_state, inputs, *, key, train: (inputs, model_state),
)
FIT = Fit({}, {}, {})


def absolute(outputs, targets):
    return jnp.abs(outputs - targets)


def batch_of(*shape):
    weights = RNG.integers(0, 3, shape).astype(np.float32)
    weights[0] = 1
    return Batch(RNG.normal(size=shape).astype("f4"), RNG.normal(size=shape).astype("f4"), weights)


@pytest.mark.parametrize("batch_size", [None, 3, 7])
def test_single_examples_average_to_the_score(batch_size):
    batch = batch_of(7)
    score = make_score(IDENTITY, batch_size=batch_size, loss=absolute)
    each = score.by_example(FIT, batch)["loss"]
    expected = np.abs(batch.inputs - batch.targets) * (batch.weights > 0)
    np.testing.assert_allclose(each, expected, rtol=1e-6)
    mean = np.average(expected, weights=batch.weights)
    np.testing.assert_allclose(score(FIT, batch)["loss"], mean, rtol=1e-6)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_of_a_sequence_a_single_example_is_its_mean_over_time(batch_size):
    batch = batch_of(5, 4)
    batch.weights[3] = 0
    score = make_score(IDENTITY, batch_size=batch_size, loss=absolute)
    each = np.asarray(score.by_example(FIT, batch)["loss"])
    losses = np.abs(batch.inputs - batch.targets)
    for row in range(5):
        total = batch.weights[row].sum()
        mean = 0 if total == 0 else (losses[row] * batch.weights[row]).sum() / total
        np.testing.assert_allclose(each[row], mean, rtol=1e-5)
    whole = (losses * batch.weights).sum() / batch.weights.sum()
    np.testing.assert_allclose(score(FIT, batch)["loss"], whole, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_a_measure_of_all_examples_at_once_sees_all_of_them_and_their_weights(
    batch_size, nans_allowed
):
    """R2 by hand; beside it a mean over examples keeps its single ones."""
    batch = batch_of(9)
    batch.inputs[batch.weights == 0] = np.nan

    def r2(outputs, targets, weights):
        mean = jnp.sum(weights * targets) / jnp.sum(weights)
        residual = jnp.where(weights > 0, weights * (outputs - targets) ** 2, 0)
        return 1 - jnp.sum(residual) / jnp.sum(weights * (targets - mean) ** 2)

    score = make_score(
        IDENTITY, batch_size=batch_size, loss=absolute, r2=Measure(r2, True, per_example=False)
    )
    w, x, y = (np.asarray(v, np.float64)[batch.weights > 0] for v in (batch.weights, *batch[:2]))
    around = (w * (y - np.average(y, weights=w)) ** 2).sum()
    expected = 1 - (w * (x - y) ** 2).sum() / around
    np.testing.assert_allclose(score(FIT, batch)["r2"], expected, rtol=1e-4)
    each = score.by_example(FIT, batch)
    assert each["r2"].shape == () and each["loss"].shape == (9,)


def test_directions_are_those_of_the_measures_and_of_known_losses():
    assert direction_of("accuracy", is_correct) is True
    assert direction_of("own", cross_entropy) is False
    assert direction_of("loss", absolute) is False
    assert direction_of("hinge_loss", absolute) is False
    assert direction_of("mae", absolute) is None
    score = make_score(IDENTITY, loss=squared_error, right=is_correct, mae=absolute)
    assert score.higher_is_better == {"loss": False, "right": True}
    both = make_fit_and_score(lambda h, t, k: FIT, score).higher_is_better
    assert both == {"loss": False, "right": True, "train_loss": False, "train_right": True}


def test_a_measure_is_still_a_function():
    logits = jnp.array([[0.0, 1.0], [2.0, 1.0]])
    np.testing.assert_array_equal(is_correct(logits, jnp.array([1, 1])), [1.0, 0.0])
    assert jax.jit(is_correct)(logits, jnp.array([1, 1])).dtype == jnp.float32


@pytest.mark.parametrize(
    "build, words",
    [
        (lambda: Measure(0.5, True), "`function` must be a function .outputs, targets. -> values"),
        (lambda: Measure(absolute, "max"), "`higher_is_better` must be True or False, got 'max'"),
        (
            lambda: make_score(IDENTITY, auc=lambda o, t: jnp.mean(o))(FIT, batch_of(3)),
            r"measure 'auc' returned shape \(\); .*per_example=False",
        ),
    ],
)
def test_what_is_no_measure_is_refused(build, words):
    with pytest.raises(ValueError, match=words):
        build()
