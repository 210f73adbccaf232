"""Proximal steps and projections, against brute force and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

from wdjax.decay import (
    project_max_norm,
    project_sphere,
    proximal_elastic_net,
    proximal_group_lasso,
    proximal_l1,
    proximal_l2,
    proximal_step,
)


def step(tx, params, updates):
    """The weights after one update."""
    return optax.apply_updates(params, tx.update(updates, tx.init(params), params)[0])


def train(tx, w, grad, num_steps):
    def one(carry, _):
        w, state = carry
        updates, state = tx.update(grad(w), state, w)
        return (optax.apply_updates(w, updates), state), None

    return jax.jit(lambda w: jax.lax.scan(one, (w, tx.init(w)), length=num_steps)[0][0])(w)


Z = np.array([-2.0, -0.31, -0.1, 0.0, 0.05, 0.29, 0.7, 3.0])
PENALTIES = {
    "l1": (lambda: proximal_l1(0.6, 0.5), lambda y: 0.3 * np.abs(y)),
    "l2": (lambda: proximal_l2(0.6, 0.5), lambda y: 0.5 * 0.3 * y**2),
    "elastic net": (
        lambda: proximal_elastic_net(0.6, 0.8, 0.5),
        lambda y: 0.3 * np.abs(y) + 0.5 * 0.4 * y**2,
    ),
}


@pytest.mark.parametrize("name", PENALTIES)
def test_the_step_ends_at_the_minimum_that_trying_every_point_finds(name, x64):
    """argmin 1/2 (y - z)^2 + c R(y); the grid of candidates has a step of 5e-5."""
    make, penalty = PENALTIES[name]
    params = jnp.asarray(Z + 0.2)
    found = step(make(), params, jnp.full_like(params, -0.2))
    np.testing.assert_allclose(found, reference.brute_force_prox(Z, penalty), atol=5e-5)


def test_ridge_has_the_half_of_its_own_docstring(x64):
    """1/2 lam y^2 gives z / (1 + c); lam y^2 would give z / (1 + 2 c)."""
    found = step(proximal_l2(0.6, 0.5), jnp.asarray(Z), jnp.zeros(8))
    np.testing.assert_allclose(found, Z / 1.3, rtol=1e-12)
    doubled = reference.brute_force_prox(Z, lambda y: 0.3 * y**2)
    np.testing.assert_allclose(doubled, Z / 1.6, atol=5e-5)


def test_group_lasso_shrinks_each_column_by_its_norm(x64):
    """z_G max(1 - c sqrt(|G|) / |z_G|, 0), column by column; a bias is a group of one."""
    rng = np.random.default_rng(0)
    w = {"kernel": rng.normal(size=(6, 4)) * [3.0, 1.0, 0.3, 0.1], "bias": rng.normal(size=4)}
    w = jax.tree.map(jnp.asarray, w)
    found = step(proximal_group_lasso(0.8, 0.5), w, jax.tree.map(jnp.zeros_like, w))
    kernel = np.asarray(w["kernel"])
    norms = np.linalg.norm(kernel, axis=0)
    expected = kernel * np.maximum(1 - 0.4 * np.sqrt(6) / norms, 0)
    np.testing.assert_allclose(found["kernel"], expected, rtol=1e-12)
    assert 0 < (found["kernel"] == 0).all(axis=0).sum() < 4
    np.testing.assert_allclose(
        found["bias"], reference.soft_threshold(np.asarray(w["bias"]), 0.4), rtol=1e-12
    )


def test_the_group_may_be_another_axis_or_the_whole_leaf(x64):
    w = jnp.asarray(np.random.default_rng(1).normal(size=(3, 5)))
    nothing = jnp.zeros_like(w)
    rows = step(proximal_group_lasso(0.2, 0.5, axis=1), w, nothing)
    flipped = step(proximal_group_lasso(0.2, 0.5), w.T, nothing.T)
    np.testing.assert_allclose(rows, flipped.T, rtol=1e-12)
    whole = step(proximal_group_lasso(0.2, 0.5, axis=(0, 1)), w, nothing)
    scale = 1 - 0.1 * np.sqrt(15) / np.linalg.norm(w)
    np.testing.assert_allclose(whole, w * scale, rtol=1e-12)


def test_under_plain_descent_an_orthonormal_design_gives_soft_thresholded_least_squares(x64):
    """With X'X / n = I the lasso is soft(OLS, strength)."""
    rng = np.random.default_rng(2)
    n, d, strength = 40, 5, 0.3
    x = np.linalg.qr(rng.normal(size=(n, d)))[0] * np.sqrt(n)
    y = x @ np.array([2.0, -1.0, 0.5, 0.1, 0.0]) + 0.1 * rng.normal(size=n)
    ols = x.T @ y / n
    tx = optax.chain(optax.sgd(0.5), proximal_l1(strength, 0.5))
    found = train(tx, jnp.zeros(d), lambda w: jnp.asarray(x.T) @ (x @ w - y) / n, 200)
    np.testing.assert_allclose(found, reference.soft_threshold(ols, strength), rtol=1e-11)
    assert (np.asarray(found) == 0).sum() == 2


def test_elastic_net_reaches_scikit_learns(x64):
    """Ours: |r|^2 / (2 n) + l1 |w|_1 + l2 / 2 |w|^2, scikit-learn's with alpha = l1 + l2."""
    from sklearn.linear_model import ElasticNet

    rng = np.random.default_rng(3)
    x = rng.normal(size=(60, 6))
    y = x @ np.array([2.0, -1.0, 0.5, 0.0, 0.0, 0.0]) + 0.3 * rng.normal(size=60)
    l1, l2 = 0.2, 0.1
    peer = ElasticNet(alpha=l1 + l2, l1_ratio=l1 / (l1 + l2), fit_intercept=False, tol=1e-14)
    expected = peer.fit(x, y).coef_
    tx = optax.chain(optax.sgd(0.2), proximal_elastic_net(l1, l2, 0.2))
    found = train(tx, jnp.zeros(6), lambda w: jnp.asarray(x.T) @ (x @ w - y) / 60, 2000)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)
    np.testing.assert_array_equal(np.asarray(found) == 0, expected == 0)


def test_after_adam_the_metric_is_euclidean(x64):
    """Gradients of 100 and 0.01 give Adam's first step the same size; the threshold that follows
    is the same for both too. In Adam's own metric it would be divided by |g|."""
    adam = optax.adam(0.1, eps=1e-15)
    tx = optax.chain(adam, proximal_l1(2.0, 0.1))
    w, grads = jnp.array([1.0, 1.0]), jnp.array([100.0, 0.01])
    np.testing.assert_allclose(step(tx, w, grads), 1 - 0.1 - 0.2, rtol=1e-12)


def test_after_adam_the_fixed_point_is_not_the_lasso(x64):
    """On (w - a)^2 / 2 the lasso is soft(a, lam); Adam's step is of the size of its learning rate
    whatever the gradient, so at lam = 0.5 it wins over the threshold and stays near a."""
    schedule = lambda t: 0.02 / (1 + 0.01 * t)
    tx = optax.chain(optax.adam(schedule), proximal_l1(0.5, schedule))
    found = train(tx, jnp.array([2.0]), lambda w: w - 2.0, 4000)
    assert abs(found[0] - 2.0) < 0.05
    assert reference.soft_threshold(2.0, 0.5) == 1.5


def test_zeros_are_exact_in_every_dtype():
    """params + update must be 0.0, not a rounding error."""
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        w = jnp.asarray(np.random.default_rng(4).normal(size=500) * 0.1, dtype)
        updates = jnp.asarray(np.random.default_rng(5).normal(size=500) * 0.01, dtype)
        found = np.asarray(step(proximal_l1(0.5, 0.1), w, updates), np.float32)
        z = np.asarray(w, np.float32) + np.asarray(updates, np.float32)
        inside = np.abs(z) <= np.float32(0.05)
        assert (found[inside] == 0).all()
        assert (found[np.abs(z) > 0.052] != 0).all()  # nearer, half precision may round to zero


def test_max_norm_projects_columns_that_are_too_long_and_leaves_the_others(x64):
    w = jnp.array([[3.0, 0.3], [4.0, 0.4]])
    found = step(project_max_norm(2.0), w, jnp.zeros_like(w))
    np.testing.assert_allclose(found, [[1.2, 0.3], [1.6, 0.4]], rtol=1e-12)


def test_the_sphere_keeps_every_columns_norm_and_a_column_of_zeros(x64):
    w = jnp.array([[3.0, 0.3, 0.0], [4.0, 0.4, 0.0]])
    found = step(project_sphere(2.0), w, jnp.zeros_like(w))
    np.testing.assert_allclose(found, [[1.2, 1.2, 0.0], [1.6, 1.6, 0.0]], rtol=1e-12)


@pytest.mark.parametrize("axis", [None, 1, (0, 1), -1])
@pytest.mark.parametrize("make", [project_max_norm, project_sphere, proximal_group_lasso])
def test_a_stack_of_layers_is_treated_layer_by_layer(make, axis, x64):
    """Stacked under a scan, three layers end where each ends alone; without `stacked` not."""
    r = np.random.default_rng(0)
    layers = [jnp.asarray(r.normal(size=(4, 2)) * (i + 1)) for i in range(3)]
    tree = {"blocks": {"kernel": jnp.stack(layers)}, "out": {"kernel": layers[0]}}
    numbers = (0.6, 0.5) if make is proximal_group_lasso else (0.7,)
    updates = jax.tree.map(jnp.zeros_like, tree)
    found = step(make(*numbers, axis=axis, stacked={"blocks/*": 1}), tree, updates)
    for i, layer in enumerate(layers):
        alone = step(make(*numbers, axis=axis), layer, jnp.zeros_like(layer))
        np.testing.assert_allclose(found["blocks"]["kernel"][i], alone, rtol=1e-12)
    np.testing.assert_allclose(found["out"]["kernel"], found["blocks"]["kernel"][0], rtol=1e-12)
    if axis is None:
        together = step(make(*numbers), tree, updates)
        assert not np.allclose(found["blocks"]["kernel"], together["blocks"]["kernel"])


def test_an_axis_that_a_stacked_layer_lacks_is_refused():
    tree = {"blocks": {"bias": jnp.ones((3, 4))}}
    with pytest.raises(ValueError, match=r"`axis` 1 .*shape \(3, 4\), the first 1 of layers"):
        project_max_norm(1.0, axis=1, stacked={"blocks/*": 1}).init(tree)
    with pytest.raises(ValueError, match="`axis` -2 "):
        project_max_norm(1.0, axis=-2, stacked={"blocks/*": 1}).init(tree)
    with pytest.raises(ValueError, match="`stacked` has a pattern that matches no leaf"):
        project_max_norm(1.0, stacked={"block/*": 1}).init(tree)


def test_a_part_of_a_half_projects_half_way(x64):
    w = jnp.array([[3.0], [4.0]])
    found = step(project_sphere(2.0, parts={"*": 0.5}), w, jnp.zeros_like(w))
    np.testing.assert_allclose(np.linalg.norm(found), 3.5, rtol=1e-12)
    with pytest.raises(ValueError, match="at most all the way"):
        project_sphere(2.0, parts={"*": 1.5}).init(w)


def test_a_strength_schedule_moves_the_threshold():
    tx = proximal_l1(lambda t: 0.1 * (t + 1), 1.0)
    w = jnp.ones(2)
    state = tx.init(w)
    for expected in (-0.1, -0.2):
        updates, state = tx.update(jnp.zeros(2), state, w)
        np.testing.assert_allclose(updates, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: proximal_l1(-0.1, 0.1), "strength=-0.1"),
        (lambda: proximal_step([float("nan")], lambda z, c: z), "rate"),
        (lambda: proximal_elastic_net(0.1, -0.2, 0.1), "strength=-0.2"),
        (lambda: project_max_norm(0.0), "`radius` must be finite and > 0"),
        (lambda: project_sphere(float("inf")), "radius"),
        (lambda: proximal_group_lasso(0.1, 0.1).init({"w": jnp.ones((0, 3))}), "an empty group"),
        (
            lambda: proximal_group_lasso(0.1, 0.1, axis=1).init({"b": jnp.ones(3)}),
            r"`axis` 1 is not an axis of 'b', which has shape \(3,\)",
        ),
        (lambda: proximal_l1(lambda t: -1.0, 0.1).init(jnp.ones(2)), "strength=-1"),
    ],
)
def test_what_is_known_to_be_wrong_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_empty_group_that_is_left_out_by_parts_is_no_error():
    w = {"w": jnp.ones((0, 3)), "b": jnp.ones(3)}
    tx = proximal_group_lasso(0.1, 0.1, parts={"w": 0.0, "b": 1.0})
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, w), tx.init(w), w)
    assert updates["w"].shape == (0, 3) and np.all(updates["b"] < 0)
