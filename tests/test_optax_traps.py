"""Traps of optax 0.2.8 that this package does not have; a line each says what optax does."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wdjax.decay import (
    adamw,
    decoupled_decay,
    float32_master,
    independent_decay,
    muon,
)
from wdjax.diagnostics import audit
from wdjax.parts import matrices_only

PARAMS = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
NOTHING = jax.tree.map(jnp.zeros_like, PARAMS)


def decayed(tx):
    """What one update without a gradient takes from each leaf."""
    updates, _ = tx.update(NOTHING, tx.init(PARAMS), PARAMS)
    return jax.tree.map(lambda u: -float(u.ravel()[0]), updates)


def test_a_multiplier_of_a_half_is_half_the_decay():
    """optax tests it for truth: `add_decayed_weights(0.1, mask=0.5)` decays fully."""
    found = decayed(independent_decay(0.1, parts={"kernel": 0.5, "bias": 0.0}))
    np.testing.assert_allclose([found["kernel"], found["bias"]], [0.05, 0.0], rtol=1e-6)


def test_injected_hyperparameters_keep_the_decay():
    """optax runs a mask function as a schedule, gets False, and all decay is gone."""
    tx = optax.inject_hyperparams(independent_decay, static_args="parts")(0.1, parts=matrices_only)
    np.testing.assert_allclose(list(decayed(tx).values()), [0.0, 0.1], rtol=1e-6)
    with pytest.raises(ValueError, match='static_args="parts"'):
        optax.inject_hyperparams(independent_decay)(0.1, parts=matrices_only).init(PARAMS)


def test_the_parts_of_muon_reach_both_branches():
    """optax: `contrib.muon(weight_decay_mask=...)` does not reach its Adam branch."""
    spared = decayed(muon(0.1, decoupled_decay(0.5, 0.1, parts={"*": 0.0})))
    assert list(spared.values()) == [0.0, 0.0]
    both = decayed(muon(0.1, decoupled_decay(0.5, 0.1)))
    np.testing.assert_allclose(list(both.values()), 0.05, rtol=1e-5)


def test_a_frozen_weight_stays_to_the_last_bit():
    """optax: a zeroed gradient does not freeze, AdamW decays on."""
    tx = adamw(0.1, decoupled_decay(0.5, 0.1, parts={"kernel": 0.0, "bias": 1.0}))
    w, state = PARAMS, tx.init(PARAMS)
    for _ in range(3):
        updates, state = tx.update(NOTHING, state, w)
        w = optax.apply_updates(w, updates)
    np.testing.assert_array_equal(w["kernel"], 1.0)
    assert (w["bias"] < 1.0).all()


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf"), np.ones(2)])
def test_nonsense_strengths_are_refused(bad):
    """optax: -1 grows the weights, NaN gives NaN."""
    with pytest.raises(ValueError, match="`strength` must be"):
        decoupled_decay(bad, 0.1)


def test_what_is_of_a_wrong_type_is_refused_in_words_without_a_type_checker():
    """In a process of its own: here the type checker of the tests would speak first."""
    program = """
import optax
from wdjax.decay import decoupled_decay, decay_weights, proximal_l1, constrained_decay, fixed_bound
from wdjax.decay import make_optimizer
for make in (lambda x: decoupled_decay(x, 0.1), lambda x: decoupled_decay(0.1, x), decay_weights,
             lambda x: proximal_l1(x, 0.1), lambda x: constrained_decay(x, fixed_bound(1.0))):
    for bad in ("0.1", True, None, [0.1], 1j):
        try:
            make(bad)
        except ValueError as error:
            assert "must be a number" in str(error), error
        else:
            raise SystemExit(f"{bad!r} was accepted")
for bad, words in (((optax.scale_by_adam, 0.1), "Call it."), ((optax.identity(), 0.1, 0.5), "0.5")):
    try:
        make_optimizer(*bad)
    except ValueError as error:
        assert words in str(error) and "must be an optax transformation" in str(error), error
    else:
        raise SystemExit(f"{bad!r} was accepted")
for keyword in ("gate", "pull"):
    try:
        decay_weights(0.1, **{keyword: 0.5})
    except ValueError as error:
        assert "must be a function or None" in str(error), error
    else:
        raise SystemExit(f"{keyword} was accepted")
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_a_checkpoint_of_a_number_fits_a_schedule():
    """optax: the state tree changes when a number becomes a schedule."""
    number = jax.eval_shape(decoupled_decay(0.1, 0.1).init, PARAMS)
    schedule = jax.eval_shape(decoupled_decay(lambda t: 0.1, lambda t: 0.1).init, PARAMS)
    assert number == schedule


def test_bfloat16_decay_of_one_in_ten_thousand_moves_a_weight_of_one():
    """optax: it never does."""
    w = jnp.ones(2, jnp.bfloat16)
    tx = float32_master(independent_decay(1e-4))

    def step(carry, _):
        w, state = carry
        updates, state = tx.update(jnp.zeros_like(w), state, w)
        return (optax.apply_updates(w, updates), state), None

    (w, _), _ = jax.lax.scan(step, (w, tx.init(w)), length=200)
    np.testing.assert_allclose(w.astype(np.float32), (1 - 1e-4) ** 200, rtol=2**-8)


def test_integers_in_the_params_are_not_decayed():
    """optax: `adamw` turns [1, 2] into [0, 1] in one step."""
    tx = independent_decay(0.5)
    w = {"steps": jnp.array([1, 2]), "w": jnp.ones(1)}
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, w), tx.init(w), w)
    np.testing.assert_array_equal(updates["steps"], 0)


@pytest.mark.parametrize("strength", [3e-6, 1e-3])
def test_the_audit_warns_of_growth_however_slow(strength):
    """Slower than the rounding of a float32 too, and it does not say that nothing decays."""
    tx = optax.chain(optax.sgd(0.1, momentum=0.9), optax.add_decayed_weights(strength))
    report = audit({"kernel": jnp.full((2, 2), 3.0)}, tx)
    assert [warning.kind for warning in report.warnings] == ["grows"]
    assert report.leaves[0].rate == pytest.approx(-strength, rel=1e-4)
