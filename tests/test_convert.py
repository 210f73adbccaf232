"""Conversions between conventions: every pair is run both ways, and the weights compared."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wdjax.decay import (
    CONVENTIONS,
    convert_strength,
    decay_weights,
    decoupled_decay,
    explain_conversion,
    independent_decay,
)
from wdjax.losses import squared_error
from wdjax.penalties import l2_penalty

ETA, N, BATCH, T = 0.2, 24, 6, 30
RUN = {
    "learning_rate": ETA,
    "peak_learning_rate": ETA,
    "num_steps": T,
    "batch_size": BATCH,
    "num_examples": N,
}
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(N, 3)), RNG.normal(size=N)


def mean_loss(w):
    return jnp.mean(squared_error(jnp.asarray(X) @ w, jnp.asarray(Y)))


def descend(loss, tx, num_steps=T):
    def step(carry, _):
        w, state = carry
        updates, state = tx.update(jax.grad(loss)(w), state, w)
        return (optax.apply_updates(w, updates), state), None

    w = jnp.ones(3)
    return jax.jit(lambda w: jax.lax.scan(step, (w, tx.init(w)), length=num_steps)[0][0])(w)


@functools.cache
def runner(convention):
    """Compiled once a convention; the strength is its argument."""
    return jax.jit(lambda value: run_convention(convention, value))


def run_convention(convention, value):
    """Full-batch gradient descent with decay as the convention itself defines it."""
    sgd = optax.sgd(ETA)
    steps_per_epoch = N / BATCH
    return {
        "torch_adamw": lambda: descend(mean_loss, optax.chain(sgd, decoupled_decay(value, ETA))),
        "torch_sgd": lambda: descend(
            mean_loss, optax.chain(optax.add_decayed_weights(value), optax.sgd(ETA))
        ),
        "optax_adamw": lambda: descend(
            mean_loss,
            optax.chain(optax.add_decayed_weights(value), optax.scale_by_learning_rate(ETA)),
        ),
        "keras_adamw": lambda: descend(
            mean_loss,
            optax.chain(
                sgd,
                optax.stateless(lambda u, p: jax.tree.map(lambda a, w: a - w * value * ETA, u, p)),
            ),
        ),
        "keras_l2": lambda: descend(lambda w: mean_loss(w) + value * jnp.sum(w**2), sgd),
        "adamw_paper": lambda: descend(mean_loss, optax.chain(sgd, independent_decay(value, 1.0))),
        # Their objectives are sums; descent on objective / constant has the same path.
        "sklearn_C": lambda: descend(
            lambda w: (value * N * mean_loss(w) + 0.5 * jnp.sum(w**2)) / (value * N), sgd
        ),
        "sklearn_alpha": lambda: descend(
            lambda w: (2 * N * mean_loss(w) + value * jnp.sum(w**2)) / (2 * N), sgd
        ),
        "timescale_steps": lambda: descend(mean_loss, optax.chain(sgd, decay_weights(1 / value))),
        "timescale_epochs": lambda: descend(
            mean_loss, optax.chain(sgd, decay_weights(1 / (value * steps_per_epoch)))
        ),
    }[convention]()


@pytest.mark.parametrize("target", CONVENTIONS)
@pytest.mark.parametrize("source", CONVENTIONS)
def test_both_conventions_run_give_the_same_weights(source, target, x64):
    value = convert_strength(0.5, "torch_adamw", source, **RUN)
    converted = convert_strength(value, source, target, **RUN)
    found, expected = runner(target)(converted), runner(source)(value)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_strength_of_these_runs_is_large_enough_to_be_seen(x64):
    without = descend(mean_loss, optax.sgd(ETA))
    assert np.abs(run_convention("torch_sgd", 0.5) - without).max() > 1e-2


@pytest.mark.parametrize("target", CONVENTIONS)
@pytest.mark.parametrize("source", CONVENTIONS)
def test_there_and_back_is_the_same_number(source, target):
    there = convert_strength(0.3, source, target, **RUN)
    assert math.isclose(convert_strength(there, target, source, **RUN), 0.3, rel_tol=1e-14)


def test_scikit_learns_ridge_and_logistic_regression_agree_with_the_penalty(x64):
    """The peers themselves, not our writing of their objectives."""
    from sklearn.linear_model import LogisticRegression, Ridge

    ridge = Ridge(alpha=3.0, fit_intercept=False, tol=1e-14).fit(X, Y).coef_
    strength = convert_strength(3.0, "sklearn_alpha", "torch_sgd", num_examples=N)
    penalised = lambda w: mean_loss(w) + l2_penalty(strength)(w)
    np.testing.assert_allclose(descend(penalised, optax.sgd(0.3), 2000), ridge, rtol=1e-9)

    labels = (Y > 0).astype(int)
    peer = LogisticRegression(C=0.7, fit_intercept=False, tol=1e-12, max_iter=5000)
    strength = convert_strength(0.7, "sklearn_C", "torch_sgd", num_examples=N)

    def logistic(w):
        margins = jnp.asarray(X) @ w * jnp.asarray(2 * labels - 1)
        return jnp.mean(jnp.logaddexp(0.0, -margins)) + l2_penalty(strength)(w)

    found = descend(logistic, optax.sgd(0.5), 4000)
    np.testing.assert_allclose(found, peer.fit(X, labels).coef_[0], rtol=1e-6)


@pytest.mark.parametrize(
    "value, source, target, known, expected",
    [
        (0.1, "torch_adamw", "adamw_paper", {"learning_rate": 3e-4}, 3e-5),
        (0.1, "torch_adamw", "adamw_paper", {"peak_learning_rate": 3e-4}, 3e-5),
        (5e-4, "keras_l2", "torch_sgd", {}, 1e-3),
        (0.1, "torch_adamw", "timescale_steps", {"learning_rate": 1e-3}, 10_000),
        (1.0, "sklearn_C", "sklearn_alpha", {"num_examples": 100}, 1.0),
        (
            0.1,
            "optax_adamw",
            "timescale_epochs",
            {"learning_rate": 1e-3, "batch_size": 128, "num_examples": 50_000},
            10_000 * 128 / 50_000,
        ),
        (300.0, "timescale_steps", "timescale_epochs", {"batch_size": 5, "num_examples": 50}, 30.0),
    ],
)
def test_known_pairs(value, source, target, known, expected):
    found = convert_strength(value, source, target, **known)
    assert math.isclose(found, expected, rel_tol=1e-12)


def test_a_strength_moves_to_another_batch_size_through_its_timescale():
    """Twice the batch, half the steps an epoch: twice the strength."""
    old = {"learning_rate": 1e-3, "batch_size": 128, "num_examples": 50_000}
    epochs = convert_strength(0.1, "torch_adamw", "timescale_epochs", **old)
    new = old | {"batch_size": 256}
    assert math.isclose(convert_strength(epochs, "timescale_epochs", "torch_adamw", **new), 0.2)


def test_a_traced_value_is_converted_too():
    convert = lambda v: convert_strength(v, "torch_adamw", "timescale_steps", learning_rate=v)
    np.testing.assert_allclose(jax.vmap(convert)(jnp.array([0.5, 0.1])), [4.0, 100.0], rtol=1e-6)


@pytest.mark.parametrize(
    "pair", [("torch_adamw", "timescale_steps"), ("timescale_epochs", "adamw_paper")]
)
def test_under_a_schedule_the_two_agree_at_the_horizon_and_part_as_far_as_said(pair, x64):
    """Both are run without a gradient, step by step."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, ETA, 5, T)
    run = RUN | {"learning_rate": schedule}
    value = 0.9 if pair[0] == "torch_adamw" else 7.0
    conversion = explain_conversion(value, *pair, **run)
    assert conversion.value == convert_strength(value, *pair, **run)
    strengths = dict(zip(pair, (value, conversion.value), strict=True))
    rates = {
        "torch_adamw": lambda lam: lambda t: schedule(t) * lam,
        "adamw_paper": lambda lam: lambda t: schedule(t) / ETA * lam,
        "timescale_steps": lambda tau: 1 / tau,
        "timescale_epochs": lambda tau: 1 / (tau * N / BATCH),
    }

    def weights(convention):
        tx = decay_weights(rates[convention](strengths[convention]))

        def step(carry, _):
            w, state = carry
            updates, state = tx.update(jnp.zeros(()), state, w)
            return (w + updates, state), w + updates

        start = jnp.ones(())
        return np.asarray(jax.lax.scan(step, (start, tx.init(start)), length=T)[1])

    first, second = weights(pair[0]), weights(pair[1])
    apart = np.abs(first - second)
    # optax computes a warm-up in float32, and not the same bits when mapped.
    np.testing.assert_allclose(first[-1], second[-1], rtol=1e-6)
    assert (conversion.exact, conversion.horizon) == (False, T)
    assert conversion.departure_step == np.argmax(apart) + 1
    np.testing.assert_allclose(conversion.departure, apart.max(), rtol=1e-5)
    assert f"the same after {T} steps" in str(conversion)


def test_a_schedule_does_not_matter_between_conventions_that_follow_it():
    schedule = optax.cosine_decay_schedule(ETA, T)
    known = {"learning_rate": schedule, "peak_learning_rate": ETA}
    conversion = explain_conversion(0.5, "torch_adamw", "adamw_paper", **known)
    assert conversion.exact and conversion.value == 0.5 * ETA
    assert "the same fraction" in str(conversion)


@pytest.mark.parametrize(
    "arguments, known, message",
    [
        ((0.1, "torch_adam", "torch_sgd"), {}, "Did you mean 'torch_adamw'?"),
        ((0.1, "torch_sgd", "sklearn_c"), {}, "Did you mean 'sklearn_C'?"),
        ((-0.1, "torch_sgd", "keras_l2"), {}, "value=-0.1"),
        ((0.0, "sklearn_C", "keras_l2"), {"num_examples": 9}, "`value` must be finite and > 0"),
        ((0.0, "torch_sgd", "sklearn_C"), {"num_examples": 9}, "no finite sklearn_C"),
        ((0.1, "torch_sgd", "sklearn_C"), {}, "`num_examples` is needed"),
        ((0.1, "torch_sgd", "adamw_paper"), {}, "`peak_learning_rate` is needed"),
        ((0.1, "torch_sgd", "timescale_epochs"), {"learning_rate": 0.1}, "`batch_size` is needed"),
        ((0.1, "torch_sgd", "timescale_steps"), {"learning_rate": 0.0}, "learning_rate"),
        (
            (0.1, "torch_sgd", "adamw_paper"),
            {"learning_rate": 0.3, "peak_learning_rate": 0.1},
            "must be the largest learning rate",
        ),
        ((0.1, "torch_sgd", "sklearn_C"), {"num_examples": 0}, "`num_examples` must be >= 1"),
        (
            (0.1, "torch_adamw", "timescale_steps"),
            {"learning_rate": optax.cosine_decay_schedule(0.1, 9)},
            "`num_steps` is needed",
        ),
        (
            (20.0, "torch_adamw", "timescale_steps"),
            {"learning_rate": optax.cosine_decay_schedule(0.1, 9), "num_steps": 9},
            "no timescale equals it",
        ),
        (
            (0.5, "timescale_steps", "torch_adamw"),
            {"learning_rate": optax.cosine_decay_schedule(0.1, 9), "num_steps": 9},
            "above 1 step",
        ),
    ],
)
def test_what_cannot_be_converted_is_refused_and_says_what_is_missing(arguments, known, message):
    with pytest.raises(ValueError, match=message):
        convert_strength(*arguments, **known)
