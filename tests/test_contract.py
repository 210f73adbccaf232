"""The contract: what every transformation of this package keeps, on each row of `methods.py`."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from methods import (
    METHODS,
    PLAIN,
    assert_trees_close,
    every_method,
    few,
    params,
    run,
    take,
    with_strength,
)

import wdjax.decay
from wdjax.parts import matrices_only


@every_method
def test_updates_keep_tree_shapes_and_dtypes(row):
    w = params()
    w["dense"]["kernel"] = w["dense"]["kernel"].astype(jnp.bfloat16)
    tx = row.make(row.strength)
    grads = jax.tree.map(lambda x: jnp.full_like(x, 0.1), w)
    updates, state = tx.update(grads, tx.init(w), w)
    like = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert like(updates) == like(grads)
    assert like(state) == like(tx.init(w))


@every_method
def test_compiled_it_is_the_same_and_is_traced_once(row):
    traces = []
    tx = row.make(row.strength)

    @jax.jit
    def update(*arguments):
        traces.append(1)
        return tx.update(*arguments)

    assert_trees_close(run(tx, params(), update=update), run(tx, params()), rtol=2e-6, atol=1e-7)
    assert len(traces) == 1


@with_strength
def test_it_changes_the_weights_so_the_other_tests_mean_something(row):
    moved, plain = run(row.make(row.strength), params())[0], run(row.base(), params())[0]
    for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(plain), strict=True):
        assert np.abs(a - b).max() > 1e-4


@with_strength
def test_strength_zero_is_the_identity_or_the_optimiser_alone(row):
    found, expected = run(row.make(0.0), params())[0], run(row.base(), params())[0]
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@with_strength
def test_a_vmapped_strength_equals_a_python_loop(row):
    strengths = row.strength * jnp.array([0.0, 0.4, 1.0])
    found = jax.jit(jax.vmap(lambda s: run(row.make(s), few(row))[0]))(strengths)
    for i, s in enumerate(strengths):
        expected = run(row.make(float(s)), few(row))[0]
        assert_trees_close(take(found, i), expected, rtol=2e-6, atol=1e-7)


@with_strength
def test_the_derivative_in_the_strength_equals_finite_differences(row, x64):
    w = few(row, jnp.float64)

    def value(strength):
        return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(run(row.make(strength), w)[0]))

    @jax.jit
    def derivatives(strength, h):
        slope = (value(strength + h) - value(strength - h)) / (2 * h)
        return slope, jax.grad(value)(strength), jax.jvp(value, (strength,), (1.0,))[1]

    slope, reverse, forward = derivatives(row.strength, 1e-6)
    assert abs(slope) > 1e-3
    np.testing.assert_allclose([reverse, forward], slope, rtol=1e-7)


@with_strength
def test_parts_are_floats_half_a_part_is_half_the_strength_there(row):
    halved = {"*/kernel": 0.5, "*/bias": 0.0, "*": 1.0}
    found = run(row.make(row.strength, halved), params())[0]
    whole, half = (run(row.make(s), params())[0] for s in (row.strength, row.strength / 2))
    untouched = run(row.base(), params())[0]
    assert_trees_close(found["dense"]["kernel"], half["dense"]["kernel"], rtol=2e-6)
    np.testing.assert_array_equal(found["dense"]["bias"], untouched["dense"]["bias"])
    assert_trees_close(found["rest"], whole["rest"], rtol=2e-6)


@with_strength
def test_a_multiplier_may_be_traced(row):
    rest = {"*": 0.0} if not row.any_tree else {}
    make = lambda m: run(row.make(row.strength, {"*/kernel": m} | rest), few(row))[0]
    found = jax.jit(jax.vmap(make))(jnp.array([0.0, 0.5]))
    for i, m in enumerate((0.0, 0.5)):
        assert_trees_close(take(found, i), make(m), rtol=2e-6, atol=1e-7)


@with_strength
def test_numbers_and_schedules_share_one_state_tree(row):
    if not row.scheduled:
        pytest.skip("its strength is a number only")
    plain = row.make(row.strength)
    scheduled = row.make(lambda step: row.strength + 0.0 * step)
    found, expected = run(scheduled, params()), run(plain, params())
    assert jax.tree.structure(found[1]) == jax.tree.structure(expected[1])
    assert_trees_close(found, expected, rtol=2e-6, atol=1e-7)


@every_method
def test_init_is_abstract_when_asked_and_copies_what_it_keeps(row):
    w, tx = params(), row.make(row.strength)
    shapes = jax.eval_shape(tx.init, w)
    state = tx.init(w)
    jax.tree.map(lambda leaf: leaf.delete(), w)
    for leaf, shape in zip(jax.tree.leaves(state), jax.tree.leaves(shapes), strict=True):
        assert (leaf.shape, leaf.dtype) == (shape.shape, shape.dtype)
        np.asarray(leaf)


@every_method
def test_integers_and_keys_are_left_alone(row):
    if not row.any_tree:
        pytest.skip("it is tied to a tree without any")
    if row.base is not optax.identity:
        pytest.skip("optax' own steps take floats only")
    w = params() | {"steps": jnp.arange(3), "key": jax.random.key(0)}
    grads = jax.tree.map(lambda x: 0.1 * x, params()) | {
        "steps": jnp.arange(3) + 5,
        "key": jax.random.key(1),
    }
    tx = row.make(row.strength)
    updates, state = jax.jit(tx.update)(grads, tx.init(w), w)
    updates, _ = tx.update(updates, state, w)
    np.testing.assert_array_equal(updates["steps"], grads["steps"])
    assert (updates["key"] == grads["key"]).all()


@every_method
def test_it_works_in_chain_masked_and_partition(row):
    """Hidden leaves are left alone; the others see what they would see alone."""
    w, matrices = params(), {"*/kernel": 1.0, "rest/0": 1.0, "adapter/*": 1.0, "*": 0.0}
    alone = run(row.make(row.strength, matrices), w)[0]
    hidden = run(optax.identity(), w)[0]
    expected = jax.tree.map(lambda a, h: a if a.ndim >= 2 else h, alone, hidden)
    inner = row.make(row.strength)
    masked = optax.masked(inner, lambda tree: jax.tree.map(lambda x: x.ndim >= 2, tree))
    label = lambda tree: jax.tree.map(lambda x: "decay" if x.ndim >= 2 else "spare", tree)
    partitioned = optax.partition({"decay": inner, "spare": optax.identity()}, label)
    for tx in (masked, partitioned, optax.chain(optax.identity(), masked)):
        assert_trees_close(run(tx, w)[0], expected, rtol=2e-6, atol=1e-7)


@every_method
def test_under_accumulation_it_acts_once_a_macro_step(row):
    w = few(row)
    grads = jax.tree.map(lambda x: jnp.full_like(x, 0.1), w)
    steps = optax.MultiSteps(row.make(row.strength), every_k_schedule=2)
    state = steps.init(w)
    nothing, state = steps.update(grads, state, w)
    jax.tree.map(lambda u: np.testing.assert_array_equal(u, 0.0), nothing)
    found, _ = steps.update(grads, state, w)
    tx = row.make(row.strength)
    assert_trees_close(found, tx.update(grads, tx.init(w), w)[0], rtol=2e-6)


@with_strength
def test_its_strength_can_be_injected_and_changed_in_the_state(row):
    w = params()
    make = lambda strength, parts: row.make(strength, parts)
    inject = optax.inject_hyperparams(make, static_args="parts")
    tx = inject(strength=row.strength, parts=matrices_only)
    expected = run(row.make(row.strength, matrices_only), w)[0]
    assert_trees_close(run(tx, w)[0], expected, rtol=2e-6, atol=1e-7)
    state = tx.init(w)
    state.hyperparams["strength"] = jnp.zeros(())
    grads, base = jax.tree.map(jnp.ones_like, w), row.base()
    jax.tree.map(
        np.testing.assert_array_equal,
        tx.update(grads, state, w)[0],
        base.update(grads, base.init(w), w)[0],
    )


@every_method
def test_injected_without_static_parts_init_refuses_and_says_so(row):
    """optax would run the function as a schedule, and all decay would silently disappear."""
    make = lambda strength, parts: row.make(strength, parts)
    tx = optax.inject_hyperparams(make)(strength=row.strength, parts=matrices_only)
    for w in (params(), jnp.ones(3)):
        with pytest.raises(ValueError, match='static_args="parts"'):
            tx.init(w)


@every_method
def test_sharded_over_two_devices_it_is_the_same(row):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    even = lambda x: x.ndim > 0 and x.shape[0] % 2 == 0
    w = jax.tree.map(lambda x: jax.device_put(x, rows if even(x) else whole), params())
    tx = row.make(row.strength)
    found, state = run(tx, w, update=jax.jit(tx.update))
    assert_trees_close((found, state), run(tx, params()), rtol=2e-6, atol=1e-7)
    assert len(found["dense"]["kernel"].sharding.device_set) == 2


@every_method
def test_saved_and_restored_it_goes_on_as_if_nothing_had_happened(row, tmp_path):
    tx, w = row.make(row.strength), params()
    w, state = run(tx, w)
    leaves, structure = jax.tree.flatten(state)
    np.savez(tmp_path / "state.npz", *leaves)
    with np.load(tmp_path / "state.npz") as saved:
        restored = [jnp.asarray(saved[name]) for name in saved.files]
    assert structure == jax.tree.structure(jax.eval_shape(tx.init, params()))
    grads = jax.tree.map(jnp.sin, w)
    found = tx.update(grads, jax.tree.unflatten(structure, restored), w)
    jax.tree.map(np.testing.assert_array_equal, found, tx.update(grads, state, w))


@with_strength
@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf"), np.ones(2)])
def test_a_strength_that_is_known_to_be_wrong_is_refused_at_build(row, bad):
    with pytest.raises(ValueError, match="must be (finite|a scalar)"):
        row.make(bad)


@every_method
def test_without_params_it_says_what_to_pass(row):
    tx, w = row.make(row.strength), params()
    with pytest.raises(ValueError, match=r"tx.update\(updates, state, params\)"):
        tx.update(w, tx.init(w))


def test_every_public_transformation_is_a_row():
    """A method added to the package without a row here has no proof."""
    decays = "decay_.*|.*_decay|proximal_.*|project_.*|.*_master|.*_rounding"
    kinds = re.compile(f"{decays}|make_optimizer|sgdw|adamw|lion|muon")
    made = {name for name in wdjax.decay.__all__ if kinds.fullmatch(name)}
    assert made <= set(METHODS | PLAIN)
