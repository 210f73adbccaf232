"""Rules that give strengths: schedules, timescales, transfer over batch, data and width."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wdjax.decay import (
    convert_strength,
    cosine_strength,
    decoupled_decay,
    mup_strength,
    normalized_strength,
    power_lines_strength,
    sqrt_width_strength,
    timescale_strength,
)


def test_cosine_strength_rises_by_half_a_cosine_and_stays(x64):
    """lam_t = end + (start - end) / 2 (1 + cos(pi t / T)), DINO's 0.04 to 0.4."""
    strength, steps = cosine_strength(0.04, 0.4, 10), np.arange(14)
    expected = 0.4 + 0.5 * (0.04 - 0.4) * (1 + np.cos(np.pi * np.minimum(steps, 10) / 10))
    found = [strength(jnp.asarray(t)) for t in steps]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose([found[0], found[10], found[13]], [0.04, 0.4, 0.4], rtol=1e-12)


def test_a_cosine_strength_decays_and_its_ends_may_be_traced(x64):
    def left(end):
        tx = decoupled_decay(cosine_strength(0.0, end, 4), 0.5)
        w = jnp.ones(())
        state = tx.init(w)
        for _ in range(3):
            updates, state = tx.update(jnp.zeros(()), state, w)
            w = w + updates
        return w

    shares = 0.5 * (1 - np.cos(np.pi * np.arange(3) / 4))
    found = jax.vmap(left)(jnp.array([0.2, 0.8]))
    np.testing.assert_allclose(found, [np.prod(1 - 0.5 * e * shares) for e in (0.2, 0.8)])


def test_normalized_strength_is_one_over_the_root_of_the_number_of_steps():
    found = normalized_strength(0.025, batch_size=128, num_examples=50_000, num_epochs=100)
    np.testing.assert_allclose(found, 0.025 / np.sqrt(100 * 50_000 / 128), rtol=1e-14)


def test_timescale_strength_is_the_conversion_of_the_timescale():
    known = {"learning_rate": 1e-3, "batch_size": 128, "num_examples": 50_000}
    found = timescale_strength(20.0, **known)
    expected = convert_strength(20.0, "timescale_epochs", "torch_adamw", **known)
    np.testing.assert_allclose(found, expected, rtol=1e-14)
    np.testing.assert_allclose(1 / (1e-3 * found), 20 * 50_000 / 128, rtol=1e-12)


def test_power_lines_strength_has_its_timescale_and_grows_with_the_batch():
    known = {"learning_rate": 1e-3, "num_tokens": 2_000_000, "num_params": 100_000}
    found = power_lines_strength(1.1, batch_size=500, **known)
    steps = 2_000_000 / 500
    timescale = 1 / (1e-3 * found) / steps
    np.testing.assert_allclose(timescale, 1.1 * 20**-0.527, rtol=1e-12)
    double = power_lines_strength(1.1, batch_size=1000, **known)
    np.testing.assert_allclose(double, 2 * found, rtol=1e-12)


def test_width_rules_keep_the_fraction_a_step_or_scale_it_by_the_root(x64):
    """Beside a learning rate divided by the width, muP's lr x strength stays."""
    np.testing.assert_allclose(mup_strength(0.1, 4) * (0.01 / 4), 0.1 * 0.01, rtol=1e-14)
    np.testing.assert_allclose(sqrt_width_strength(0.1, 4), 0.2, rtol=1e-14)
    traced = jax.vmap(lambda w: sqrt_width_strength(0.1, w))(jnp.array([1.0, 9.0]))
    np.testing.assert_allclose(traced, [0.1, 0.3], rtol=1e-12)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: cosine_strength(-0.1, 0.4, 10), "start=-0.1"),
        (lambda: cosine_strength(0.1, 0.4, 0), "`num_steps` must be >= 1"),
        (
            lambda: normalized_strength(0.1, batch_size=0, num_examples=9, num_epochs=1),
            "batch_size",
        ),
        (
            lambda: timescale_strength(0.0, learning_rate=1.0, batch_size=1, num_examples=9),
            "`timescale` must be finite and > 0",
        ),
        (
            lambda: power_lines_strength(
                1.0, learning_rate=0.0, batch_size=1, num_tokens=9, num_params=9
            ),
            "learning_rate",
        ),
        (lambda: mup_strength(0.1, 0.0), "`width_multiplier` must be finite and > 0"),
    ],
)
def test_what_is_known_to_be_wrong_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_optax_schedule_of_strengths_is_a_strength():
    tx = decoupled_decay(optax.linear_schedule(0.0, 1.0, 10), 0.1)
    w = jnp.ones(2)
    state = tx.init(w)
    _, state = tx.update(w, state, w)
    updates, _ = tx.update(jnp.zeros(2), state, w)
    np.testing.assert_allclose(updates, -0.01, rtol=1e-6)
