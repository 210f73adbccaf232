"""What other people's tests say of their optimisers: right ones pass, wrong ones are told apart."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wdjax

PARAMS = {
    "hidden": {"kernel": jnp.full((3, 2), 0.5), "bias": jnp.zeros(2)},
    "norm": {"scale": jnp.ones(2)},
}
KERNELS = {"*/kernel": 0.1, "*": 0.0}
MASK = {"hidden": {"kernel": True, "bias": False}, "norm": {"scale": False}}


@pytest.mark.parametrize(
    "tx, learning_rate",
    [
        (optax.adamw(0.01, weight_decay=0.1, mask=MASK), 0.01),
        (optax.lion(0.02, weight_decay=0.1, mask=MASK), 0.02),
        (optax.chain(optax.add_decayed_weights(0.1, MASK), optax.sgd(0.3)), 0.3),
        (optax.chain(optax.sgd(0.3), wdjax.independent_decay(0.1, parts=wdjax.matrices_only)), 1.0),
        (optax.MultiSteps(optax.adamw(0.02, weight_decay=0.1, mask=MASK), 2), 0.01),
        (
            optax.multi_transform(
                {True: optax.adamw(0.01, weight_decay=0.1), False: optax.adam(0.01)}, MASK
            ),
            0.01,
        ),
    ],
    ids=["adamw", "lion", "sgd", "independent", "every second step", "multi_transform"],
)
@pytest.mark.parametrize("shapes", [False, True], ids=["arrays", "shapes"])
def test_an_optimiser_that_does_as_expected_passes_and_another_strength_fails(
    tx, learning_rate, shapes
):
    params = jax.eval_shape(lambda: PARAMS) if shapes else PARAMS
    wdjax.assert_decays(tx, params, KERNELS, learning_rate=learning_rate)
    with pytest.raises(AssertionError, match="hidden/kernel: expected"):
        wdjax.assert_decays(tx, params, {"*/kernel": 0.103, "*": 0.0}, learning_rate=learning_rate)


def test_a_schedule_counts_by_its_mean():
    schedule = optax.linear_schedule(0.02, 0.0, 10)
    tx = optax.adamw(schedule, weight_decay=0.1)
    wdjax.assert_decays(tx, PARAMS, {"*": 0.1}, learning_rate=schedule, num_steps=10)
    rates = np.mean([0.02 * (1 - t / 10) * 0.1 for t in range(10)])
    wdjax.assert_decays(tx, PARAMS, {"*": float(rates)}, num_steps=10)


@pytest.mark.parametrize(
    "tx, words",
    [
        (optax.adam(0.01), "1 of 3 leaves .*Nothing decays there: does `weight_decay` reach"),
        (
            optax.chain(optax.adam(0.01), optax.add_decayed_weights(0.0)),
            "kernel: expected 0.001 a step, measured 0 a step",
        ),
        (optax.adamw(0.01, weight_decay=0.1), "2 of 3 leaves .*What should be left alone decays"),
        (optax.adamw(0.03, weight_decay=0.1, mask=MASK), "Each is 3 times what was expected"),
        (
            optax.chain(optax.add_decayed_weights(0.1, MASK), optax.adam(0.01)),
            "kernel.* cannot be measured: not a decay proportional",
        ),
    ],
    ids=["no decay", "a decay of nothing", "no mask", "another learning rate", "L2 under Adam"],
)
def test_a_failure_names_the_leaf_what_was_measured_and_the_likely_cause(tx, words):
    with pytest.raises(AssertionError, match=f"(?s){words}"):
        wdjax.assert_decays(tx, PARAMS, KERNELS, learning_rate=0.01)


def test_of_many_leaves_the_first_are_named_and_the_others_counted():
    params = {f"layer{i:02}": jnp.ones(2) for i in range(14)}
    with pytest.raises(AssertionError, match="14 of 14 leaves(?s:.*)layer09(?s:.*)and 4 more"):
        wdjax.assert_decays(optax.sgd(0.1), params, {"*": 0.1})


@pytest.mark.parametrize(
    "expected, options, words",
    [
        ({"*/kernels": 0.1, "*": 0.0}, {}, "`expected` has a pattern that is first for no leaf"),
        ({"*/kernel": 0.1}, {}, "`expected` has no pattern for 'hidden/bias'"),
        ({"*": -0.1}, {}, "`expected` gives .* the multiplier -0.1"),
        (None, {}, "`expected` must say what each leaf loses"),
        ({"*": 0.1}, {"learning_rate": optax.constant_schedule(0.1)}, "`num_steps` is needed"),
        ({"*": 0.1}, {"learning_rate": -1.0}, "`learning_rate`"),
        ({"*": 0.1}, {"rtol": -1.0}, "`rtol`"),
    ],
)
def test_what_cannot_be_expected_is_refused(expected, options, words):
    with pytest.raises(ValueError, match=words):
        wdjax.assert_decays(optax.sgd(0.1), PARAMS, expected, **options)
