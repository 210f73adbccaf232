"""The refusals: which values pass, which do not, and what the sentence says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wdjax.checks import (
    check_number,
    check_one_of,
    check_positive_int,
    check_strength,
    check_strength_or_schedule,
    is_known,
    nearest,
)

NUMBERS = [0, 0.1, np.float32(0.1), np.int64(2), np.array(0.1), jnp.array(0.1), jnp.int32(3)]


@pytest.mark.parametrize("value", NUMBERS, ids=repr)
def test_any_real_scalar_is_a_strength(value):
    check_strength("strength", value)


@pytest.mark.parametrize(
    "value, words",
    [
        (-0.1, r"`strength` must be finite and >= 0, got strength=-0\.1"),
        (float("nan"), "finite and >= 0, got strength=nan"),
        (np.inf, "got strength=inf"),
        (jnp.array(-1.0), "got strength=-1"),
        (np.ones(3), r"scalar, got shape \(3,\)\. To try several values at once, vmap"),
        ("0.1", "must be a number, got '0.1' of str"),
        (None, "must be a number, got None of NoneType"),
        (True, "must be a number, got True of bool"),
        (1j, "must be a number"),
        (np.array("0.1"), "must be a number"),
    ],
)
def test_what_is_no_strength_is_refused_by_name_value_and_bound(value, words):
    with pytest.raises(ValueError, match=words):
        check_number("strength", value, low=0.0)


def test_bounds_are_inclusive_unless_above():
    check_number("rate", 0, low=0.0, high=1.0)
    check_number("rate", 1.0, low=0.0, high=1.0)
    with pytest.raises(ValueError, match=r"`rate` must be finite and >= 0 and <= 1, got rate=1\.5"):
        check_number("rate", 1.5, low=0.0, high=1.0)
    with pytest.raises(ValueError, match="finite and > 0, got rate=0"):
        check_number("rate", 0.0, low=0.0, exclusive_low=True)
    with pytest.raises(ValueError, match="`rate` must be finite, got rate=-inf"):
        check_number("rate", -np.inf)


def test_traced_values_pass_unless_their_shape_or_dtype_is_wrong():
    """A tracer has no sign yet; its shape and dtype are known."""
    checked = lambda x: check_strength("strength", x) or x
    assert jax.jit(checked)(-1.0) == -1.0
    np.testing.assert_array_equal(jax.vmap(checked)(jnp.array([-1.0, 2.0])), [-1.0, 2.0])
    assert jax.grad(checked)(-1.0) == 1.0
    with pytest.raises(ValueError, match="must be a scalar"):
        jax.eval_shape(checked, jnp.ones(2))
    with pytest.raises(ValueError, match="must be a number"):
        jax.eval_shape(checked, jnp.array(True))


def test_a_tracer_is_not_known():
    assert is_known(1.0) and is_known(jnp.ones(2))
    assert jax.jit(lambda x: jnp.zeros(1 if is_known(x) else 2))(1.0).shape == (2,)


def test_a_callable_is_let_through_where_a_schedule_may_stand():
    check_strength_or_schedule("strength", lambda step: -1.0)
    with pytest.raises(ValueError, match="got strength=-1"):
        check_strength_or_schedule("strength", -1.0)


@pytest.mark.parametrize(
    "value, words",
    [
        (0, "`epochs` must be >= 1, got epochs=0"),
        (2.0, r"`epochs` must be an integer, got 2\.0"),
        (True, "must be an integer, got True"),
        ("3", "must be an integer, got '3'"),
    ],
)
def test_what_is_no_positive_integer_is_refused(value, words):
    check_positive_int("epochs", np.int32(1))
    with pytest.raises(ValueError, match=words):
        check_positive_int("epochs", value)


def test_integers_have_an_upper_bound_where_there_is_one():
    check_positive_int("folds", 5, low=2, high=5)
    with pytest.raises(ValueError, match="`folds` must be between 2 and 5, got folds=6"):
        check_positive_int("folds", 6, low=2, high=5)


def test_an_unknown_name_is_told_the_names_and_the_nearest():
    check_one_of("rule", "min", ("min", "max"))
    with pytest.raises(ValueError, match="`rule` must be one of min, max; got 'mni'. .*'min'?"):
        check_one_of("rule", "mni", ("min", "max"))
    assert nearest("adm", ["sgd", "adam"]) == " Did you mean 'adam'?"
    assert nearest("zzz", ["sgd", "adam"]) == ""
