"""The whole story against closed forms: data, folds, grid, runs, choice, derivative."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wdjax.decay import decoupled_decay
from wdjax.losses import squared_error
from wdjax.penalties import l2_penalty
from wdjax.selection import choose, cross_validate, cross_validate_pure, grid_product, kfold
from wdjax.training import make_fit, make_fit_and_score, make_score
from wdjax.types import Batch, Model

STRENGTHS = np.array([0.0, 0.01, 0.03, 0.1, 0.3, 0.6, 1.0])
NUM_EXAMPLES, NUM_FOLDS = 50, 5


def data_of():
    """Fifty noisy examples of ten columns: little enough that ridge regression helps."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(NUM_EXAMPLES, 10))
    y = x @ rng.normal(size=10) + 3 * rng.normal(size=NUM_EXAMPLES)
    return Batch(x, y, rng.uniform(0.5, 1.5, NUM_EXAMPLES))


def init(key, inputs):
    return {"w": jnp.zeros(inputs.shape[1])}, {}


def apply(params, model_state, inputs, *, key, train):
    return inputs @ params["w"], model_state


LINEAR = Model(init, apply)


def full_batch_descent(batch_size, num_steps=500, **options):
    """Epochs of one batch: far past convergence, so the run ends at the minimum."""
    fit = make_fit(LINEAR, squared_error, num_epochs=num_steps, batch_size=batch_size, **options)
    return make_fit_and_score(fit, make_score(LINEAR, loss=squared_error))


COUPLED = full_batch_descent(
    40, make_tx=lambda h: optax.sgd(0.2), make_penalty=lambda h: l2_penalty(h["strength"])
)
DECOUPLED = full_batch_descent(
    40, make_tx=lambda h: optax.chain(optax.sgd(0.2), decoupled_decay(h["strength"], 0.2))
)


def ridge_loss(data, folds, strength):
    """The validation loss of each fold, by solving the normal equations."""
    losses = []
    for fold in range(NUM_FOLDS):
        train = np.asarray(folds.train[fold])[np.asarray(folds.train_mask[fold])]
        valid = np.asarray(folds.valid[fold])[np.asarray(folds.valid_mask[fold])]
        x, y, s = (leaf[train] for leaf in data)
        s = s / s.sum()
        w = np.linalg.solve((x.T * s) @ x + strength * np.eye(x.shape[1]), (x.T * s) @ y)
        x, y, s = (leaf[valid] for leaf in data)
        losses.append(np.average(0.5 * (x @ w - y) ** 2, weights=s))
    return np.array(losses)


@pytest.mark.parametrize("fit_and_score", [COUPLED, DECOUPLED], ids=["coupled", "decoupled"])
def test_the_strength_chosen_is_that_of_ridge_regression_in_closed_form(fit_and_score, x64):
    """Every run's score, its mean and standard error, and both rules, from weighted examples."""
    data, folds = data_of(), kfold(jax.random.key(0), NUM_EXAMPLES, NUM_FOLDS)
    grid = grid_product(strength=STRENGTHS)
    scores = cross_validate(fit_and_score, grid, data, folds, key=jax.random.key(1))
    expected = np.array([ridge_loss(data, folds, strength) for strength in STRENGTHS])
    np.testing.assert_allclose(scores.values["loss"][:, :, 0], expected, rtol=1e-9)

    means, errors = expected.mean(1), expected.std(1, ddof=1) / np.sqrt(NUM_FOLDS)
    best = means.argmin()
    assert 0 < best < len(STRENGTHS) - 1, "the optimum is inside the grid"
    choice = choose(scores)
    assert choice.hparams == {"strength": STRENGTHS[best]}
    np.testing.assert_allclose([choice.mean, choice.standard_error], [means[best], errors[best]])
    simplest = np.flatnonzero(means <= means[best] + errors[best]).max()
    assert choose(scores, "one_standard_error").index == simplest > best


def test_the_derivative_of_the_cross_validated_loss_is_that_of_ridge_regression(x64):
    """In the log strength, forward and reverse through all runs, against the closed form."""
    data, folds = data_of(), kfold(jax.random.key(0), NUM_EXAMPLES, NUM_FOLDS)

    def mean_loss(log_strength):
        grid = {"strength": jnp.exp(log_strength)[None]}
        values = cross_validate_pure(COUPLED, grid, data, folds, key=jax.random.key(1))
        return values["loss"].mean()

    at, h = np.log(0.1), 1e-4
    closed = lambda u: ridge_loss(data, folds, np.exp(u)).mean()
    expected = (closed(at + h) - closed(at - h)) / (2 * h)
    assert abs(expected) > 1e-3
    value, slope = jax.jit(jax.value_and_grad(mean_loss))(jnp.asarray(at))
    np.testing.assert_allclose(value, closed(at), rtol=1e-6)
    np.testing.assert_allclose(slope, expected, rtol=1e-5)
    forward = jax.jit(lambda u: jax.jvp(mean_loss, (u,), (1.0,))[1])(jnp.asarray(at))
    np.testing.assert_allclose(forward, expected, rtol=1e-5)


def test_importing_wdjax_allocates_nothing_and_starts_no_backend():
    """Nor loads what only a job needs."""
    code = (
        "import sys, wdjax, wdjax.cli, wdjax.jobs, wdjax.recipe\n"
        "from jax._src import xla_bridge\n"
        "late = ('sklearn', 'matplotlib', 'tensorflow_datasets', 'orbax', 'grain', 'tensorflow')\n"
        "print(list(xla_bridge._backends), [name for name in late if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "[] []"), done.stderr
