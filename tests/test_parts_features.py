"""Weights of parts: roles, features, layer-wise forms, and where a multiplier can act."""

import functools
from typing import NamedTuple

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wdjax.decay import decoupled_decay
from wdjax.losses import regularized_loss, squared_error
from wdjax.models import make_cnn, make_mlp, make_rnn, with_compute_dtype
from wdjax.models.resnet import make_resnet20
from wdjax.parts import (
    leaf_path,
    leaf_role,
    matrices_only,
    no_norms_or_biases,
    resolve_parts,
    scale_by_parts,
)
from wdjax.penalties import l2_penalty
from wdjax.training import make_fit
from wdjax.types import Batch, Model
from wdjax.weights import (
    depth,
    fan_in,
    geometric_parts,
    gradient_norm,
    layer_numbers,
    layerwise_parts,
    same_total,
    sigmoid_parts,
    tail_index,
    weight_norm,
    width_parts,
    z_scores,
)


def by_path(tree):
    return {leaf_path(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def roles_of(params):
    return {path: leaf_role(path, leaf) for path, leaf in by_path(params).items()}


def shapes_of(model, inputs):
    return jax.eval_shape(lambda key: model.init(key, inputs)[0], jax.random.key(0))


def a_tree():
    r = np.random.default_rng(0)
    return {
        "embed": {"embedding": jnp.asarray(r.normal(size=(5, 4)))},
        "hidden": {"kernel": jnp.asarray(r.normal(size=(4, 3))), "bias": jnp.ones(3)},
        "norm": {"scale": jnp.ones(3), "bias": jnp.ones(3)},
        "head": {"kernel": jnp.asarray(r.normal(size=(3, 2))), "bias": jnp.ones(2)},
    }


# Roles.


def test_roles_are_read_from_flax_names():
    assert roles_of(a_tree()) == {
        "embed/embedding": "embedding",
        "hidden/kernel": "kernel",
        "hidden/bias": "bias",
        "norm/scale": "gain",
        "norm/bias": "bias",
        "head/kernel": "head",
        "head/bias": "bias",
    }


class Layer(NamedTuple):
    weight: jax.Array
    bias: jax.Array


@pytest.mark.parametrize(
    "params, roles",
    [
        ([Layer(jnp.ones((2, 3)), jnp.ones(2))], {"0/weight": "kernel", "0/bias": "bias"}),
        ({"norm": {"weight": jnp.ones(3)}}, {"norm/weight": "gain"}),
        (
            {"linear": {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}},
            {"linear/b": "bias", "linear/w": "kernel"},
        ),
        ([jnp.ones((2, 2)), jnp.ones(2)], {"0": "other", "1": "other"}),
        (
            {"cell": {"weight_hh": jnp.ones((2, 2)), "bias_n": jnp.ones(2)}},
            {"cell/bias_n": "bias", "cell/weight_hh": "kernel"},
        ),
    ],
    ids=["equinox-like", "torch-like norm", "haiku", "a list", "recurrent"],
)
def test_roles_are_read_from_other_trees_where_names_allow(params, roles):
    assert roles_of(params) == roles


def test_roles_are_read_from_an_nnx_state():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.linear, self.norm = nnx.Linear(2, 3, rngs=rngs), nnx.LayerNorm(3, rngs=rngs)

    state = nnx.split(Net(nnx.Rngs(0)))[1]
    assert roles_of(state) == {
        "linear/bias": "bias",
        "linear/kernel": "kernel",
        "norm/bias": "bias",
        "norm/scale": "gain",
    }


def test_roles_are_patterns():
    parts = {"role:bias": 0.0, "role:gain": 0.0, "role:head": 0.5, "*": 1.0}
    assert by_path(resolve_parts(parts, a_tree())) == {
        "embed/embedding": 1.0,
        "hidden/kernel": 1.0,
        "hidden/bias": 0.0,
        "norm/scale": 0.0,
        "norm/bias": 0.0,
        "head/kernel": 0.5,
        "head/bias": 0.0,
    }


def test_a_role_that_no_leaf_has_is_refused_with_the_roles_there():
    params = {"hidden": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    with pytest.raises(ValueError, match="role:gain.*the roles here are bias, kernel"):
        resolve_parts({"role:gain": 0.0, "*": 1.0}, params)
    with pytest.raises(ValueError, match="Did you mean 'bias'"):
        resolve_parts({"role:biases": 0.0, "*": 1.0}, params)


def test_a_leaf_without_a_pattern_is_named_with_the_nearest_pattern():
    with pytest.raises(
        ValueError, match="no pattern for 'head/bias'.*and others.*Did you mean 'hidden/bais'"
    ):
        resolve_parts({"hidden/kernel": 1.0, "hidden/bais": 1.0, "embed*": 0.0}, a_tree())


def test_a_tree_of_another_structure_is_refused_with_what_differs():
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    with pytest.raises(ValueError, match="without 'b', with 'c' that the params lack"):
        resolve_parts(lambda _: {"a": 1.0, "c": 1.0}, params)


# Depth.


@pytest.mark.parametrize(
    "model, inputs, order",
    [
        (make_mlp(3, widths=(5, 4)), np.zeros((1, 6), np.float32), "hidden1 hidden2 head"),
        (
            make_cnn(3),
            np.zeros((1, 32, 32, 3), np.float32),
            "conv1 conv2 conv3 hidden1 head",
        ),
        (make_rnn(3, width=4), np.zeros((1, 5, 2), np.float32), "rnn/input rnn/recurrent head"),
        (
            with_compute_dtype(make_mlp(3), "bfloat16"),
            np.zeros((1, 6), np.float32),
            "hidden1 head",
        ),
    ],
    ids=["mlp", "cnn", "rnn", "cast first"],
)
def test_layers_are_numbered_in_the_order_of_the_forward_pass(model, inputs, order):
    params = shapes_of(model, inputs)
    numbers = by_path(layer_numbers(model, inputs)(params))
    expected = {layer: float(i) for i, layer in enumerate(order.split())}
    assert numbers == {path: expected[path.rpartition("/")[0]] for path in numbers}
    depths = by_path(depth(model, inputs)(params))
    assert depths == {path: n / (len(expected) - 1) for path, n in numbers.items()}


def test_the_stem_of_a_residual_network_is_first_and_its_head_last():
    model, inputs = make_resnet20(3), np.zeros((1, 8, 8, 3), np.float32)
    depths = by_path(depth(model, inputs)(shapes_of(model, inputs)))
    assert depths["stem/conv/kernel"] == 0.0 and depths["head/kernel"] == 1.0
    assert depths["stage1_block1_first/conv/kernel"] < depths["stage3_block1_first/conv/kernel"]


def test_a_model_compiled_as_a_whole_keeps_its_order_and_one_layer_is_at_depth_zero():
    apply = jax.jit(lambda p, x: jnp.tanh(x @ p["z"]["kernel"]) @ p["a"]["kernel"])
    params = {"a": {"kernel": jnp.ones((3, 2))}, "z": {"kernel": jnp.ones((2, 3))}}
    assert by_path(depth(apply, np.ones((1, 2)))(params)) == {"a/kernel": 1.0, "z/kernel": 0.0}
    alone = {"z": {"kernel": jnp.ones((2, 3))}}
    assert by_path(depth(lambda p, x: x @ p["z"]["kernel"], np.ones((1, 2)))(alone)) == {
        "z/kernel": 0.0
    }


# The other features.


def test_fan_in_is_what_feeds_an_output():
    tree = {
        "conv": {"kernel": jnp.ones((3, 3, 8, 16)), "bias": jnp.ones(16)},
        "torch": {"weight": jnp.ones((16, 8, 3, 3))},
        "embed": {"embedding": jnp.ones((100, 8))},
    }
    assert by_path(fan_in(tree)) == {
        "conv/kernel": 72.0,
        "conv/bias": 1.0,
        "torch/weight": 72.0,
        "embed/embedding": 1.0,
    }


def test_norms_are_those_of_numpy_and_stop_the_gradient(x64):
    params = a_tree()
    expected = {path: np.linalg.norm(np.ravel(x)) for path, x in by_path(params).items()}
    for path, norm in by_path(weight_norm(params)).items():
        np.testing.assert_allclose(norm, expected[path], rtol=1e-12)
    penalty = l2_penalty(1.0, sigmoid_parts(weight_norm, 0.7))
    multipliers = resolve_parts(sigmoid_parts(weight_norm, 0.7), params)
    jax.tree.map(
        lambda g, m, w: np.testing.assert_allclose(g, m * w, rtol=1e-12),
        jax.grad(penalty)(params),
        multipliers,
        params,
    )


def test_gradient_norms_are_those_of_the_loss(x64):
    params = {"w": jnp.array([1.0, 2.0])}
    x, y = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0.0, 0.0])
    loss_fn = regularized_loss(lambda p, x: x @ p["w"], squared_error)
    norms = gradient_norm(loss_fn, Batch(x, y, np.ones(2)))(params)
    np.testing.assert_allclose(norms["w"], np.sqrt(0.5**2 + 1.0**2))


def test_the_tail_index_is_hills_estimate_over_the_larger_half(x64):
    """Written from row 35, over the sorted squares of the singular values."""
    w = np.random.default_rng(3).normal(size=(7, 5)) ** 3
    e = np.sort(np.linalg.svd(w, compute_uv=False) ** 2)
    k, n = len(e) // 2, len(e) - len(e) // 2
    alpha = 1 + n / (np.sum(np.log(e[k:])) - n * np.log(e[k]))
    params = {"w": jnp.asarray(w), "b": jnp.ones(3), "one": jnp.ones((4, 1)), "eye": jnp.eye(4)}
    found = tail_index(params)
    np.testing.assert_allclose(found["w"], alpha, rtol=1e-9)
    assert found["b"] == found["one"] == found["eye"] == 0.0
    as_convolution = {"w": jnp.asarray(w).reshape(7, 1, 5)}
    np.testing.assert_allclose(tail_index(as_convolution)["w"], alpha, rtol=1e-9)


def test_a_pareto_spectrum_has_the_tail_index_that_it_was_made_with(x64):
    """e_i of density e^-3 above 1: alpha = 3, its estimate's deviation 2 / sqrt(n)."""
    quantiles = (np.arange(400) + 0.5) / 400
    e = (1 - quantiles) ** (-1 / 2)
    found = tail_index({"w": jnp.diag(jnp.sqrt(e))})["w"]
    np.testing.assert_allclose(found, 3.0, atol=0.2)


def test_z_scores_have_mean_zero_and_deviation_one_over_the_matrices(x64):
    scores = by_path(z_scores(fan_in)(a_tree()))
    matrices = [scores[p] for p in ("embed/embedding", "hidden/kernel", "head/kernel")]
    np.testing.assert_allclose([np.mean(matrices), np.std(matrices)], [0, 1], atol=1e-12)
    assert scores["hidden/bias"] == 0
    alike = z_scores(fan_in)({"a": jnp.ones((2, 2)), "b": jnp.ones((2, 5))})
    assert by_path(alike) == {"a": 0.0, "b": 0.0}


# Leaves that hold several layers.


def layers_and_their_stack():
    """Three layers as leaves of their own, and as one leaf with a first axis of layers."""
    r = np.random.default_rng(5)
    kernels = [jnp.asarray(r.normal(size=(6, 4)) ** 3 * (i + 1)) for i in range(3)]
    return kernels, {"blocks": {"kernel": jnp.stack(kernels)}, "out": {"kernel": jnp.ones((4, 2))}}


STACKED = {"blocks/*": 1}


def test_features_of_a_stack_are_those_of_its_layers(x64):
    kernels, tree = layers_and_their_stack()
    found = lambda feature: feature(tree, stacked=STACKED)["blocks"]["kernel"]
    assert found(fan_in) == 6.0 and fan_in(tree)["blocks"]["kernel"] == 18.0
    torch_like = {"blocks": {"weight": jnp.ones((3, 4, 6))}}
    assert fan_in(torch_like, stacked=STACKED)["blocks"]["weight"] == 6.0
    alone = [float(tail_index({"w": k})["w"]) for k in kernels]
    np.testing.assert_allclose(found(tail_index), np.mean(alone), rtol=1e-10)
    squares = [np.sum(np.square(k)) for k in kernels]
    np.testing.assert_allclose(found(weight_norm), np.sqrt(np.mean(squares)), rtol=1e-12)


def test_gradient_norms_of_a_stack_are_those_of_its_layers(x64):
    """The gradient of sum_l |w_l|^2 / 2 is w: its root mean square over the layers."""
    kernels, tree = layers_and_their_stack()
    loss_fn = lambda params, batch, **how: (
        sum(0.5 * jnp.sum(w**2) for w in jax.tree.leaves(params)),
        None,
    )
    batch = Batch(np.ones((1, 1)), np.ones(1), np.ones(1))
    found = gradient_norm(loss_fn, batch, stacked=STACKED)(tree)["blocks"]["kernel"]
    squares = [np.sum(np.square(k)) for k in kernels]
    np.testing.assert_allclose(found, np.sqrt(np.mean(squares)), rtol=1e-12)


def test_z_scores_and_widths_leave_the_layer_axes_out(x64):
    tree = {
        "blocks": {"norm": jnp.ones((3, 4)), "w": jnp.ones((3, 4, 4))},
        "out": {"w": jnp.ones((9, 2))},
    }
    scores = by_path(z_scores(functools.partial(fan_in, stacked=STACKED), stacked=STACKED)(tree))
    assert {path: float(x) for path, x in scores.items()} == {
        "blocks/norm": 0.0,
        "blocks/w": -1.0,
        "out/w": 1.0,
    }
    deeper = {"blocks": {"norm": jnp.ones((9, 8)), "w": jnp.ones((9, 8, 8))}, "out": tree["out"]}
    widths = by_path(width_parts(tree, stacked=STACKED)(deeper))
    assert widths == {"blocks/norm": 1.0, "blocks/w": 0.5, "out/w": 1.0}


# Multipliers from a feature.


def test_sigmoid_parts_are_base_times_the_sigmoid_of_the_feature(x64):
    parts = by_path(resolve_parts(sigmoid_parts(fan_in, -0.3, matrices_only), a_tree()))
    np.testing.assert_allclose(parts["hidden/kernel"], 1 / (1 + np.exp(0.3 * 4)))
    assert parts["hidden/bias"] == 0


def test_the_same_total_leaves_slope_zero_at_the_base(x64):
    weights = {path: x.size for path, x in by_path(a_tree()).items()}
    for slope in (0.0, 2.0):
        parts = same_total(sigmoid_parts(fan_in, slope, matrices_only), matrices_only)
        found = by_path(resolve_parts(parts, a_tree()))
        total = sum(weights[path] * m for path, m in found.items())
        np.testing.assert_allclose(total, 20 + 12 + 6)
        if slope == 0.0:
            expected = by_path(matrices_only(a_tree()))
            np.testing.assert_allclose([*found.values()], [*expected.values()])


@pytest.mark.parametrize("slope", [np.nan, np.inf])
def test_a_slope_that_is_not_finite_is_refused(slope):
    with pytest.raises(ValueError, match="`slope` must be finite"):
        sigmoid_parts(fan_in, slope)


def test_a_vector_of_multipliers_is_a_grid_axis_and_has_a_derivative(x64):
    params = {"a": jnp.array([2.0]), "b": jnp.array([3.0])}
    of = lambda m: l2_penalty(0.5, {"a": m[0], "b": m[1]})(params)
    values = jax.vmap(of)(jnp.array([[1.0, 0.0], [0.0, 1.0]]))
    np.testing.assert_allclose(values, [0.25 * 4, 0.25 * 9])
    np.testing.assert_allclose(jax.grad(of)(jnp.ones(2)), [0.25 * 4, 0.25 * 9])


def test_layerwise_and_geometric_parts_are_their_formulas(x64):
    model, inputs = make_cnn(3), np.zeros((1, 32, 32, 3), np.float32)
    params = shapes_of(model, inputs)
    order = ["conv1", "conv2", "conv3", "hidden1", "head"]
    layerwise = by_path(layerwise_parts(layer_numbers(model, inputs), 0.65)(params))
    geometric = by_path(geometric_parts(depth(model, inputs), 0.01, 2.0)(params))
    for i, layer in enumerate(order):
        for leaf in ("kernel", "bias"):
            np.testing.assert_allclose(layerwise[f"{layer}/{leaf}"], 0.65 ** (4 - i))
            np.testing.assert_allclose(geometric[f"{layer}/{leaf}"], 0.01 * 200 ** (i / 4))


def test_no_norms_or_biases_goes_by_name_not_by_axes():
    found = by_path(no_norms_or_biases(a_tree()))
    assert {path for path, m in found.items() if m == 0} == {
        "hidden/bias",
        "norm/scale",
        "norm/bias",
        "head/bias",
    }


def test_width_parts_scale_what_is_fed_by_the_width_alone():
    inputs = np.zeros((1, 6), np.float32)
    base = shapes_of(make_mlp(3, widths=(8, 8)), inputs)
    wide = shapes_of(make_mlp(3, widths=(32, 32)), inputs)
    found = by_path(width_parts(base)(wide))
    assert found == {
        "hidden1/kernel": 1.0,
        "hidden1/bias": 1.0,
        "hidden2/kernel": 0.25,
        "hidden2/bias": 1.0,
        "head/kernel": 0.25,
        "head/bias": 1.0,
    }
    with pytest.raises(ValueError, match="differing in widths alone"):
        width_parts(base)({"other": jnp.ones(2)})


# Where a multiplier acts.


def a_problem():
    r = np.random.default_rng(0)
    x, y = r.normal(size=(8, 3)), r.normal(size=8)
    params = {
        "a": {"kernel": jnp.asarray(r.normal(size=(3, 4)))},
        "b": {"kernel": jnp.asarray(r.normal(size=(4, 1)))},
    }
    apply = lambda p, x: jnp.tanh(x @ p["a"]["kernel"]) @ p["b"]["kernel"]
    return apply, params, Batch(x, y, np.ones(8))


def after(loss_fn, tx, params, batch, num_steps=50):
    def step(carry, _):
        params, state = carry
        grads, _ = jax.grad(loss_fn, has_aux=True)(params, batch)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.jit(lambda start: jax.lax.scan(step, start, length=num_steps))(
        (params, tx.init(params))
    )
    return params


def test_a_constant_part_weight_on_the_data_loss_does_nothing_under_adam(x64):
    apply, params, batch = a_problem()
    parts = {"a/*": 0.1, "*": 1.0}
    tx = optax.adam(1e-2, eps=1e-16)
    plain = after(regularized_loss(apply, squared_error), tx, params, batch)
    weighed = after(regularized_loss(apply, squared_error, part_weights=parts), tx, params, batch)
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, rtol=1e-7), plain, weighed)


def test_under_plain_descent_it_scales_that_parts_step(x64):
    apply, params, batch = a_problem()
    parts = {"a/*": 0.1, "*": 1.0}
    loss = lambda part_weights: regularized_loss(apply, squared_error, part_weights=part_weights)
    weighed = after(loss(parts), optax.sgd(0.1), params, batch, 1)
    plain = after(loss(None), optax.sgd(0.1), params, batch, 1)
    moved = lambda new, part: np.asarray(new[part]["kernel"] - params[part]["kernel"])
    np.testing.assert_allclose(moved(weighed, "a"), 0.1 * moved(plain, "a"), rtol=1e-10)
    np.testing.assert_allclose(moved(weighed, "b"), moved(plain, "b"), rtol=1e-12)


def test_scaling_the_update_after_adam_scales_that_parts_step(x64):
    apply, params, batch = a_problem()
    loss_fn = regularized_loss(apply, squared_error)
    chain = lambda parts: optax.chain(
        optax.scale_by_adam(), scale_by_parts(parts), optax.scale_by_learning_rate(1e-2)
    )
    weighed = after(loss_fn, chain({"a/*": 0.1, "*": 1.0}), params, batch, 1)
    plain = after(loss_fn, chain(None), params, batch, 1)
    moved = lambda new, part: np.asarray(new[part]["kernel"] - params[part]["kernel"])
    np.testing.assert_allclose(moved(weighed, "a"), 0.1 * moved(plain, "a"), rtol=1e-10)
    np.testing.assert_allclose(moved(weighed, "b"), moved(plain, "b"), rtol=1e-12)


def test_scaling_by_parts_before_the_decay_leaves_the_decay_alone(x64):
    params, zeros = {"w": jnp.ones(2)}, {"w": jnp.zeros(2)}
    tx = optax.chain(optax.sgd(0.1), scale_by_parts({"*": 0.5}), decoupled_decay(0.2, 0.1))
    updates, _ = tx.update(zeros, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], -0.02)


def test_scaling_by_parts_keeps_dtypes_and_leaves_integers_and_hidden_nodes_alone():
    params = {"w": jnp.ones(2, jnp.bfloat16), "n": jnp.array([3]), "hidden": optax.MaskedNode()}
    tx = scale_by_parts({"*": 0.5})
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates["w"].dtype == jnp.bfloat16 and updates["n"] == 3
    np.testing.assert_array_equal(updates["w"], 0.5)
    with pytest.raises(ValueError, match="needs the weights"):
        tx.update(params, tx.init(params))


def test_a_slope_in_hparams_reaches_the_part_weights_of_a_run(key, x64):
    apply, params, batch = a_problem()
    model = Model(lambda key, inputs: (params, {}), lambda p, s, x, *, key, train: (apply(p, x), s))
    feature = depth(model, batch.inputs)
    fit = make_fit(
        model,
        squared_error,
        make_tx=lambda h: optax.sgd(0.1),
        num_epochs=1,
        batch_size=8,
        make_part_weights=lambda h: sigmoid_parts(feature, h["slope"]),
    )
    first_layer = lambda slope: fit({"slope": slope}, batch, key).params["b"]["kernel"]
    zero, steep = jax.jit(jax.vmap(first_layer))(jnp.array([0.0, 50.0]))
    moved = lambda new: np.asarray(new - params["b"]["kernel"])
    np.testing.assert_allclose(moved(steep), 2 * moved(zero), rtol=1e-9)
    slope_derivative = jax.jacobian(first_layer)(0.0)
    np.testing.assert_allclose(slope_derivative, moved(zero) / 2, rtol=1e-9)
    with pytest.raises(ValueError, match="not both"):
        make_fit(
            model,
            squared_error,
            make_tx=lambda h: optax.sgd(0.1),
            num_epochs=1,
            batch_size=8,
            part_weights=matrices_only,
            make_part_weights=lambda h: matrices_only,
        )
