"""What optax asks of a transformation, on each row of `methods.py`, beside optax' own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from methods import METHODS, PLAIN, assert_trees_close, every_method, params, rows, run

from wdjax.decay import adamw, decay_weights, decoupled_decay, float32_master, stochastic_rounding
from wdjax.parts import matrices_only

PATTERNS = {"*/kernel": 1.0, "*/bias": 0.5, "*": 0.0}
TREE = {
    "dense": {"kernel": 1.0, "bias": 0.5},
    "rest": (1.0, [0.0]),
    "adapter": {"lora_a": 1.0, "lora_b": 0.5},
}
FORMS = (matrices_only, PATTERNS, TREE)

WRAPPERS = {
    "float32_master": float32_master,
    "stochastic_rounding": lambda tx: stochastic_rounding(tx, jax.random.key(0)),
}
each_wrapper = pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS)


def like(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


@every_method
def test_optax_finds_the_trees_like_the_params_in_its_state(row):
    """`optax.tree.map_params` calls `init` with a placeholder that has no leaves; what it finds is
    every float of the state and no counter. It is how states are sharded."""
    for make in (lambda: row.make(row.strength), *(lambda p=p: row.make(0.3, p) for p in FORMS)):
        tx = make()
        state = tx.init(params())
        kinds = optax.tree.map_params(
            tx, lambda v: "like params", state, transform_non_params=lambda v: "other"
        )
        expected = jax.tree_util.tree_map_with_path(
            lambda path, v: (
                "like params"
                # The coefficients of Muon's iteration are floats and no copy of the params.
                if jnp.issubdtype(v.dtype, np.inexact) and "ns_coeffs" not in str(path)
                else "other"
            ),
            state,
        )
        assert kinds == expected
        same = optax.tree.map_params(tx, lambda v: v, state)
        assert jax.tree.structure(same) == jax.tree.structure(state)


def test_the_copies_in_a_state_are_given_what_their_params_are_given():
    """A partition spec a leaf, say."""
    w = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params())
    numbers = jax.tree.unflatten(jax.tree.structure(w), range(len(jax.tree.leaves(w))))
    for name, kept in (
        ("decay_to_initial", lambda state: state.reference),
        ("decay_to_average", lambda state: state.reference),
        ("decay_to_tree", lambda state: state.reference),
        ("float32_master", lambda state: state.master),
    ):
        tx = METHODS[name].make(0.3)
        found = optax.tree.map_params(tx, lambda _, number: number, tx.init(w), numbers)
        assert kept(found) == numbers


@every_method
def test_in_a_chain_with_what_needs_them_extra_arguments_arrive(row):
    """`reduce_on_plateau` halves the update after two values no better; `unused` is ignored."""
    plateau = lambda: optax.contrib.reduce_on_plateau(factor=0.5, patience=1, cooldown=0)
    w, tx = params(), row.make(row.strength)
    grads, value = jax.tree.map(jnp.ones_like, w), jnp.ones(())
    both = optax.chain(tx, plateau())
    state, alone = both.init(w), tx.init(w)
    for factor in (1.0, 0.5):
        found, state = both.update(grads, state, w, value=value, unused=1)
        expected, alone = tx.update(grads, alone, w)
        assert_trees_close(found, jax.tree.map(lambda u, f=factor: f * u, expected), rtol=1e-6)


@each_wrapper
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
def test_a_wrapper_hands_extra_arguments_on(wrapper, dtype):
    """Directly and in a chain, to what needs them and past what does not take them."""
    w = {"w": jnp.ones(2, dtype)}
    needs = optax.chain(optax.sgd(0.5), optax.contrib.reduce_on_plateau(), decay_weights(0.25))
    for tx in (wrapper(needs), optax.chain(wrapper(needs)), optax.chain(optax.identity(), needs)):
        updates, _ = jax.jit(tx.update)(w, tx.init(w), w, value=jnp.ones(()))
        np.testing.assert_allclose(updates["w"], -0.75)
    plain = wrapper(decay_weights(0.25))
    updates, _ = plain.update(w, plain.init(w), w, value=jnp.ones(()), unused=1)
    np.testing.assert_allclose(updates["w"], 0.75)


def test_an_optimiser_hands_extra_arguments_on_to_what_follows_it():
    w = {"w": jnp.ones((2, 2))}
    tx = adamw(0.5, optax.chain(optax.contrib.reduce_on_plateau(), decoupled_decay(0.5, 0.5)))
    updates, _ = tx.update(w, tx.init(w), w, value=jnp.ones(()))
    np.testing.assert_allclose(updates["w"], -0.75, rtol=1e-5)


@every_method
def test_a_leaf_without_a_gradient_is_left_out_and_the_others_see_no_difference(row):
    """optax writes None for it (`add_decayed_weights` hands it on; its Adam refuses)."""
    w = params()
    grads = jax.tree.map(lambda x: 0.1 * jnp.cos(x), w)
    some = grads | {"dense": grads["dense"] | {"bias": None}}
    base, tx = row.base(), row.make(row.strength)
    try:
        base.update(some, base.init(w), w)
    except (ValueError, TypeError, AttributeError):
        with pytest.raises((ValueError, TypeError, AttributeError)):
            tx.update(some, tx.init(w), w)
        return
    state = tx.init(w)
    found, after = tx.update(some, state, w)
    expected, _ = tx.update(grads, state, w)
    assert found["dense"]["bias"] is None
    expected["dense"]["bias"] = None
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    if row.base is optax.identity:  # optax' momentum of such a leaf is gone after a step.
        assert like(after) == like(state)
        again, _ = tx.update(grads, after, w)
        assert like(again) == like(grads)


@each_wrapper
def test_a_half_precision_leaf_without_a_gradient_stays(wrapper):
    w = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2, jnp.bfloat16), "c": None}
    tx = wrapper(decay_weights(0.25))
    update, state = jax.jit(tx.update), tx.init(w)
    for grads in ({"a": None, "b": jnp.zeros(2), "c": None}, {"a": None, "b": None, "c": None}):
        updates, state = update(grads, state, w)
        assert updates["a"] is None and updates["c"] is None
        w = jax.tree.map(lambda p, u: p if u is None else p + u, w, updates)
    np.testing.assert_array_equal(w["b"], 0.75)


@every_method
def test_a_state_is_described_from_the_shapes_of_the_params(row):
    """What only the values of the params would tell stays a `ShapeDtypeStruct`."""
    w, tx = params(), row.make(row.strength)
    shapes = jax.eval_shape(lambda: w)
    expected = like(tx.init(w))
    assert like(tx.init(shapes)) == expected
    assert like(jax.eval_shape(tx.init, shapes)) == expected
    updates, state = jax.eval_shape(tx.update, shapes, tx.init(shapes), shapes)
    assert (like(updates), like(state)) == (like(w), expected)


def test_an_abstract_state_keeps_the_sharding_of_what_it_copies():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows_of = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    shapes = {"w": jax.ShapeDtypeStruct((4, 2), jnp.bfloat16, sharding=rows_of)}
    for name in ("decay_to_initial", "decay_to_average", "float32_master"):
        (kept,) = (x for x in jax.tree.leaves(METHODS[name].make(0.3).init(shapes)) if x.ndim)
        assert kept.sharding == rows_of


NOT_TURNED = {"decay_to_one", "decay_to_tree", "lora_decay", "muon"}
"""Those to which a direction is special; Newton-Schulz is for real matrices."""


@pytest.mark.parametrize(
    "row", rows({n: row for n, row in (METHODS | PLAIN).items() if n not in NOT_TURNED})
)
def test_turning_complex_weights_by_an_angle_turns_what_follows(row, x64):
    """Every formula holds for the modulus; for real weights and an angle of 0 it is the usual."""
    w, phase = params(jnp.float64), jnp.exp(0.7j)
    turned = jax.tree.map(lambda x: x * phase, w)
    tx = row.make(row.strength)
    state, other = tx.init(w), tx.init(turned)
    for t in range(3):
        updates = jax.tree.map(lambda x, t=t: 0.1 * jnp.cos(x + t), w)
        moves = jax.tree.map(lambda x: x * phase, updates)
        updates, state = tx.update(updates, state, w)
        moves, other = tx.update(moves, other, turned)
        w, turned = optax.apply_updates(w, updates), optax.apply_updates(turned, moves)
    assert_trees_close(turned, jax.tree.map(lambda x: x * phase, w), rtol=1e-9, atol=1e-12)


def test_what_wraps_transformations_in_optax_takes_ours(nans_allowed):
    """`MultiSteps`, `masked`, `partition` and `inject_hyperparams` have tests in the contract."""
    w = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    decay = lambda: optax.chain(optax.sgd(0.1), decoupled_decay(0.5, 0.2))
    bad = jax.tree.map(lambda x: jnp.full_like(x, jnp.inf), w)
    finite = optax.apply_if_finite(decay(), 3)
    jax.tree.map(
        lambda u: np.testing.assert_array_equal(u, 0.0), finite.update(bad, finite.init(w), w)[0]
    )
    free = optax.contrib.schedule_free(decay(), 0.1)
    assert np.isfinite(run(free, w)[0]["bias"]).all()
    hidden = optax.masked(
        decay_weights(0.5, parts={"kernel": 0.5, "*": 1.0}), {"kernel": True, "bias": False}
    )
    updates, _ = hidden.update(w, hidden.init(w), w)
    np.testing.assert_allclose(updates["kernel"], 0.75)
    np.testing.assert_array_equal(updates["bias"], 1.0)
