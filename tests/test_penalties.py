"""Penalties against their formulas, value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wdjax.parts import matrices_only
from wdjax.penalties import elastic_net_penalty, l1_penalty, l2_penalty


def params(dtype=None):
    return {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]], dtype), "bias": jnp.array([4.0], dtype)}


def test_l2_is_half_the_strength_times_the_squares(x64):
    np.testing.assert_allclose(l2_penalty(0.3)(params()), 0.15 * (1 + 4 + 0.25 + 9 + 16))
    grads = jax.grad(l2_penalty(0.3))(params())
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, 0.3 * w), grads, params())


def test_l1_is_the_strength_times_the_magnitudes(x64):
    np.testing.assert_allclose(l1_penalty(0.3)(params()), 0.3 * 10.5)
    grads = jax.grad(l1_penalty(0.3))(params())
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, 0.3 * np.sign(w)), grads, params())


def test_the_elastic_net_is_their_sum(x64):
    parts = {"kernel": 0.5, "bias": 2.0}
    expected = 0.5 * (0.3 * 6.5 + 0.1 / 2 * 14.25) + 2.0 * (0.3 * 4 + 0.1 / 2 * 16)
    np.testing.assert_allclose(elastic_net_penalty(0.3, 0.1, parts)(params()), expected)


def test_parts_weigh_the_leaves(x64):
    np.testing.assert_allclose(l2_penalty(1.0, matrices_only)(params()), 0.5 * 14.25)
    np.testing.assert_allclose(l1_penalty(1.0, {"bias": 0.25, "*": 0.0})(params()), 1.0)


def test_a_part_of_multiplier_zero_may_hold_anything():
    """0 * inf is NaN: a spared leaf is left out, not multiplied."""
    tree = {"w": jnp.array([2.0]), "spared": jnp.array([jnp.inf])}
    value, grads = jax.value_and_grad(l2_penalty(1.0, {"w": 1.0, "*": 0.0}))(tree)
    assert value == 2.0
    assert grads["spared"] == 0.0


def test_strengths_and_multipliers_may_be_traced(x64):
    strengths = jnp.array([0.0, 0.3, 2.0])
    for make in (l1_penalty, l2_penalty, lambda s: elastic_net_penalty(s, 0.5)):
        found = jax.jit(jax.vmap(lambda s, make=make: make(s)(params())))(strengths)
        np.testing.assert_allclose(found, [make(float(s))(params()) for s in strengths])
    half = jax.jit(lambda m: l2_penalty(1.0, {"*": m})(params()))(0.5)
    np.testing.assert_allclose(half, 0.5 * l2_penalty(1.0)(params()))


def test_the_derivative_in_the_strength_is_the_penalty_at_strength_one(x64):
    found = jax.grad(lambda s: l2_penalty(s)(params()))(0.3)
    np.testing.assert_allclose(found, l2_penalty(1.0)(params()))


def test_small_weights_of_a_bfloat16_leaf_count():
    """4096 squares of 2^-6 add to 1; in bfloat16 the sum would stop growing at 2^-4."""
    tree = {"w": jnp.full(4096, 2.0**-6, jnp.bfloat16)}
    value = l2_penalty(2.0)(tree)
    assert (value, value.dtype) == (1.0, jnp.float32)
    assert jax.grad(l2_penalty(2.0))(tree)["w"].dtype == jnp.bfloat16


def test_float32_params_keep_a_float32_penalty_in_64_bit_mode(x64):
    for make in (l1_penalty, l2_penalty):
        assert make(0.1)(params(jnp.float32)).dtype == jnp.float32
        assert make(jnp.float32(0.1))({}).dtype == jnp.float32
        assert make(0.1)(params(jnp.float64)).dtype == jnp.float64


def test_integers_and_keys_count_nothing():
    tree = {"w": jnp.array([2.0]), "steps": jnp.arange(5), "key": jax.random.key(0)}
    assert l2_penalty(1.0)(tree) == 2.0
    assert l1_penalty(1.0)(tree) == 2.0


def test_complex_weights_count_by_their_magnitude():
    tree = {"w": jnp.array([3.0 + 4.0j])}
    np.testing.assert_allclose(l2_penalty(1.0)(tree), 12.5)
    np.testing.assert_allclose(l1_penalty(1.0)(tree), 5.0)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_a_bad_strength_is_refused_when_the_penalty_is_built(bad):
    for name, make in {"strength": l1_penalty, "l1": lambda s: elastic_net_penalty(s, 0.1)}.items():
        with pytest.raises(ValueError, match=f"`{name}` must be finite and >= 0"):
            make(bad)
    with pytest.raises(ValueError, match="`l2` must be finite and >= 0"):
        elastic_net_penalty(0.1, bad)


def test_parts_that_do_not_fit_are_refused_when_the_penalty_is_called():
    with pytest.raises(ValueError, match="no pattern for 'bias'"):
        l2_penalty(0.1, {"kernel": 1.0})(params())
