"""Models: forward passes against NumPy, every model transformed, adapters, dropout."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from wdjax.models import (
    count_params,
    dropout,
    from_linen,
    from_nnx,
    make_byte_lm,
    make_byte_transformer,
    make_cnn,
    make_mlp,
    make_resnet20,
    make_rnn,
    with_compute_dtype,
)
from wdjax.models.language import _causal_attention
from wdjax.models.resnet import ResNet
from wdjax.parts import leaf_path
from wdjax.types import Model

IMAGES = np.random.default_rng(0).random((3, 18, 18, 2), np.float32)
SEQUENCES = np.random.default_rng(1).normal(size=(3, 5, 4)).astype(np.float32)
BYTES = np.random.default_rng(2).integers(0, 256, (2, 6)).astype(np.uint8)

EVERY_MODEL = {
    "mlp": (make_mlp, IMAGES),
    "cnn": (make_cnn, IMAGES),
    "rnn": (make_rnn, SEQUENCES),
    "resnet8": (lambda n, dropout=0.0: from_linen(ResNet(n, 1, dropout)), IMAGES[:, :8, :8]),
    "byte_lm": (lambda n, **kw: make_byte_lm(width=8, **kw), BYTES),
    "byte_transformer": (
        lambda n, **kw: make_byte_transformer(width=8, depth=1, num_heads=2, **kw),
        BYTES,
    ),
}
every_model = pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n == "resnet8" else n for n in EVERY_MODEL],
)


def paths(params):
    return [leaf_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def relu(x):
    return np.maximum(x, 0)


# The articles' structures, against NumPy


def test_mlp_is_dense_relu_dense(key, x64):
    inputs = IMAGES.astype(np.float64)
    model = make_mlp(10)
    params, state = model.init(key, inputs)
    w = jax.tree.map(np.asarray, params)
    hidden = relu(inputs.reshape(3, -1) @ w["hidden1"]["kernel"] + w["hidden1"]["bias"])
    expected = hidden @ w["head"]["kernel"] + w["head"]["bias"]
    outputs, _ = model.apply(params, state, inputs)
    np.testing.assert_allclose(outputs, expected, rtol=1e-12)
    assert w["hidden1"]["kernel"].shape == (18 * 18 * 2, 100)


def test_mlp_widths_name_the_hidden_layers_in_order(key):
    params, _ = make_mlp(3, widths=(7, 5)).init(key, SEQUENCES)
    assert paths(params) == [
        f"{layer}/{leaf}" for layer in ("head", "hidden1", "hidden2") for leaf in ("bias", "kernel")
    ]
    assert params["hidden2"]["kernel"].shape == (7, 5)


def test_cnn_has_the_articles_122570_params(key):
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    params, _ = jax.eval_shape(make_cnn(10).init, key, images)
    assert count_params(params) == 122_570
    assert params["hidden1"]["kernel"].shape == (1024, 64)


def test_cnn_is_the_articles_program_written_in_numpy(key, x64):
    inputs = IMAGES.astype(np.float64)
    model = make_cnn(10)
    params, state = model.init(key, inputs)
    w = jax.tree.map(np.asarray, params)

    def convolve(x, layer):
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))
        return relu(np.einsum("bhwcij,ijco->bhwo", windows, layer["kernel"]) + layer["bias"])

    def pool(x):
        x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
        return np.maximum.reduce([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)])

    x = convolve(pool(convolve(pool(convolve(inputs, w["conv1"])), w["conv2"])), w["conv3"])
    x = relu(x.reshape(3, -1) @ w["hidden1"]["kernel"] + w["hidden1"]["bias"])
    expected = x @ w["head"]["kernel"] + w["head"]["bias"]
    np.testing.assert_allclose(model.apply(params, state, inputs)[0], expected, rtol=1e-10)


def test_rnn_is_a_gated_recurrent_unit_written_as_a_loop(key, x64):
    inputs = SEQUENCES.astype(np.float64)
    model = make_rnn(2, width=6)
    params, state = model.init(key, inputs)
    w = jax.tree.map(np.asarray, params)
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    h = np.zeros((3, 6))
    for x in inputs.swapaxes(0, 1):
        driven = x @ w["rnn"]["input"]["kernel"] + w["rnn"]["input"]["bias"]
        recurrent = h @ w["rnn"]["recurrent"]["kernel"]
        z = sigmoid(driven[:, :6] + recurrent[:, :6])
        r = sigmoid(driven[:, 6:12] + recurrent[:, 6:12])
        h = (1 - z) * np.tanh(driven[:, 12:] + r * recurrent[:, 12:]) + z * h
    expected = h @ w["head"]["kernel"] + w["head"]["bias"]
    np.testing.assert_allclose(model.apply(params, state, inputs)[0], expected, rtol=1e-12)


def test_rnn_reads_an_image_row_by_row_with_or_without_a_channel_axis(key):
    model = make_rnn(2, width=4)
    params, state = model.init(key, SEQUENCES)
    plain, _ = model.apply(params, state, SEQUENCES)
    with_channel, _ = model.apply(params, state, SEQUENCES[..., None])
    np.testing.assert_array_equal(plain, with_channel)


def test_kernels_start_glorot_uniform_and_biases_zero(key):
    params, _ = make_mlp(10, widths=(300,)).init(key, np.zeros((1, 500), np.float32))
    kernel, bound = np.asarray(params["hidden1"]["kernel"]), np.sqrt(6 / 800)
    assert 0.99 * bound < np.abs(kernel).max() <= bound
    # 150,000 draws: the deviation's own error is 0.1 %.
    np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.01)
    assert not np.any(params["hidden1"]["bias"])


def test_resnet20_has_the_papers_size_and_no_bias_before_a_norm(key):
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    params, state = jax.eval_shape(make_resnet20(10).init, key, images)
    assert count_params(params) == 269_722
    assert not any(path.endswith("conv/bias") for path in paths(params))
    # 19 norms, each with a mean and a variance of its width.
    assert count_params(state) == 2 * (7 * 16 + 6 * 32 + 6 * 64)


@pytest.mark.parametrize("name", ["byte_lm", "byte_transformer"])
def test_a_language_model_never_sees_the_future(key, name):
    make_model, inputs = EVERY_MODEL[name]
    model = make_model(256)
    params, state = jax.jit(model.init)(key, inputs)
    changed = inputs.copy()
    changed[:, 3:] += 1
    before, after = (model.apply(params, state, x)[0] for x in (inputs, changed))
    assert before.shape == (2, 6, 256)
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert np.all(np.any(before[:, 3:] != after[:, 3:], -1))


def test_attention_is_a_softmax_over_the_past(x64):
    q, k, v = np.random.default_rng(0).normal(size=(3, 1, 4, 2, 3))
    expected = np.zeros((1, 4, 2, 3))
    for time in range(4):
        for head in range(2):
            share = np.exp(k[0, : time + 1, head] @ q[0, time, head] / np.sqrt(3))
            expected[0, time, head] = share @ v[0, : time + 1, head] / share.sum()
    ours = _causal_attention(*map(jnp.asarray, (q, k, v)))
    np.testing.assert_allclose(ours, expected, rtol=1e-12)


# Every model, under every transformation and dtype


@functools.cache
def start(name):
    """Params and state in float32, compiled once for all tests."""
    make_model, inputs = EVERY_MODEL[name]
    with jax.enable_x64(False):
        return jax.jit(make_model(10).init)(jax.random.key(0), inputs)


def loss_of(model, inputs, key):
    """Of a model whose dropout rate may be traced: `(params, state) -> scalar`."""
    return lambda params, state: (
        model.apply(params, state, inputs, key=key, train=True)[0] ** 2
    ).sum()


@every_model
def test_a_vmap_over_dropout_rates_equals_one_run_per_rate(key, name):
    make_model, inputs = EVERY_MODEL[name]
    params, state = start(name)

    @jax.jit
    def run():
        loss = lambda rate: loss_of(make_model(10, dropout=rate), inputs, key)(params, state)
        return jax.vmap(loss)(jnp.array([0.0, 0.5])), jnp.stack([loss(0.0), loss(0.5)])

    vmapped, alone = run()
    np.testing.assert_allclose(vmapped, alone, rtol=1e-4)
    assert abs(alone[0] - alone[1]) > 1e-3 * alone[0]


@every_model
def test_forward_and_reverse_derivatives_agree_in_float64(key, x64, name):
    make_model, inputs = EVERY_MODEL[name]
    inputs = inputs if inputs.dtype == np.uint8 else inputs.astype(np.float64)
    model = make_model(10, dropout=0.2)
    shapes, _ = jax.eval_shape(model.init, key, inputs)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype(np.float64)}
    params, state = jax.tree.map(lambda leaf: leaf.astype(np.float64), start(name))

    @jax.jit
    def both(params):
        loss = lambda p: loss_of(model, inputs, key)(p, state)
        direction = jax.tree.map(jnp.cos, params)
        reverse = jax.tree.map(jnp.vdot, jax.grad(loss)(params), direction)
        return jax.jvp(loss, (params,), (direction,))[1], sum(jax.tree.leaves(reverse))

    np.testing.assert_allclose(*both(params), rtol=1e-9)


@every_model
def test_bfloat16_compute_keeps_float32_params_outputs_and_gradients(key, name):
    make_model, inputs = EVERY_MODEL[name]
    plain = make_model(10)
    model = with_compute_dtype(plain, jnp.bfloat16)
    shapes, _ = jax.eval_shape(model.init, key, inputs)
    params, state = start(name)

    @jax.jit
    def run(params):
        grads = jax.grad(loss_of(model, inputs, None))(params, state)
        outputs, exact = (m.apply(params, state, inputs, train=True) for m in (model, plain))
        return outputs, exact, grads

    (outputs, new_state), (exact, _), grads = run(params)
    for tree in (shapes, outputs, new_state, grads):
        assert {leaf.dtype for leaf in jax.tree.leaves(tree)} <= {np.dtype(np.float32)}
    error = np.abs(outputs - exact).max() / np.abs(exact).max()
    # bfloat16 keeps 8 bits: an error, but a small one.
    assert 1e-4 < error < 0.1


def test_float64_compute_gives_float64_params_from_float32_inputs(key, x64):
    model = with_compute_dtype(make_mlp(2), "float64")
    params, state = model.init(key, SEQUENCES)
    outputs, _ = model.apply(params, state, SEQUENCES)
    assert outputs.dtype == params["head"]["kernel"].dtype == np.float64


def test_params_are_float32_for_bfloat16_and_for_integer_inputs(key):
    for inputs in (jnp.ones((2, 3), jnp.bfloat16), np.ones((2, 3), np.uint8)):
        params, _ = make_mlp(2).init(key, inputs)
        assert params["head"]["kernel"].dtype == np.float32


# Dropout


def test_dropout_keeps_the_mean_and_zeroes_its_share(key):
    ones = jnp.ones(100_000)
    out = np.asarray(dropout(key, ones, 0.25))
    assert set(np.unique(out)) == {np.float32(0), np.float32(1) / np.float32(0.75)}
    # 5 standard errors of a share of 1/4 in 100,000 draws.
    assert abs((out == 0).mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 1e5)


def test_a_known_rate_of_zero_adds_no_operation_and_needs_no_key():
    jaxpr = jax.make_jaxpr(lambda x: dropout(None, x, 0.0))(jnp.ones(3))
    assert not jaxpr.eqns


def test_a_traced_rate_of_zero_leaves_the_inputs_unchanged(key):
    x = jax.random.normal(key, (50,))
    np.testing.assert_array_equal(jax.jit(dropout)(key, x, 0.0), x)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_a_rate_outside_zero_to_one_is_refused(rate):
    with pytest.raises(ValueError, match="`dropout` must be"):
        make_mlp(10, dropout=rate)


def test_dropout_acts_in_training_only_and_follows_the_key(key):
    model = make_mlp(10, dropout=0.5)
    params, state = model.init(key, IMAGES)
    one, two = jax.random.split(key)
    run = lambda key, train: np.asarray(model.apply(params, state, IMAGES, key=key, train=train)[0])
    np.testing.assert_array_equal(run(one, False), run(None, False))
    np.testing.assert_array_equal(run(one, True), run(one, True))
    assert np.any(run(one, True) != run(two, True))


# Adapters


class Normed(nn.Module):
    switch: str = "train"

    @nn.compact
    def __call__(self, inputs, train=False):
        return nn.BatchNorm(not train, momentum=0.75)(inputs)


class Deterministic(nn.Module):
    @nn.compact
    def __call__(self, inputs, *, deterministic):
        return nn.Dropout(0.5)(inputs, deterministic=deterministic)


def test_linen_batch_statistics_move_in_training_only(key):
    model = from_linen(Normed())
    inputs = jnp.array([[1.0], [3.0]])
    params, state = model.init(key, inputs)
    trained, moved = model.apply(params, state, inputs, train=True)
    np.testing.assert_allclose(trained, [[-1.0], [1.0]], atol=1e-4)
    # 0.75 * 0 + 0.25 * mean, 0.75 * 1 + 0.25 * variance.
    np.testing.assert_allclose(moved["batch_stats"]["BatchNorm_0"]["mean"], [0.5])
    np.testing.assert_allclose(moved["batch_stats"]["BatchNorm_0"]["var"], [1.0])
    evaluated, kept = model.apply(params, moved, inputs, train=False)
    np.testing.assert_allclose(evaluated, [[0.5], [2.5]], atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, kept, moved)
    assert jax.tree.structure(moved) == jax.tree.structure(state)


def test_linen_deterministic_means_not_training(key):
    model = from_linen(Deterministic(), train_argument="deterministic")
    inputs = jnp.ones((1, 100))
    params, state = model.init(key, inputs)
    evaluated, _ = model.apply(params, state, inputs)
    trained, _ = model.apply(params, state, inputs, key=key, train=True)
    np.testing.assert_array_equal(evaluated, inputs)
    assert set(np.unique(trained)) == {0.0, 2.0}


def test_linen_modules_without_a_switch_work(key):
    model = from_linen(nn.Sequential([nn.Dense(3), nn.relu, nn.Dense(2)]))
    params, state = model.init(key, SEQUENCES)
    outputs, new_state = model.apply(params, state, SEQUENCES, key=key, train=True)
    assert outputs.shape == (3, 5, 2) and state == new_state == {}


def test_a_linen_module_with_another_switch_is_refused_by_name():
    with pytest.raises(ValueError, match='pass train_argument="deterministic"'):
        from_linen(Deterministic())
    with pytest.raises(ValueError, match="`train_argument` must be one of train"):
        from_linen(Normed(), train_argument="is_training")


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(4, 6, rngs=rngs)
        self.norm = nnx.BatchNorm(6, momentum=0.75, rngs=rngs)
        self.first = nnx.Dropout(0.5, rngs=rngs)
        self.second = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, inputs):
        return jnp.stack(
            [drop(self.norm(self.dense(inputs))) for drop in (self.first, self.second)]
        )


def test_nnx_paths_and_split_leave_params_alone_in_params(key):
    params, state = from_nnx(NnxNet).init(key, SEQUENCES[0])
    assert paths(params) == ["dense/bias", "dense/kernel", "norm/bias", "norm/scale"]
    assert paths(state) == ["norm/mean", "norm/var"]


def test_nnx_evaluates_as_the_module_itself_does(key):
    model = from_nnx(NnxNet)
    params, state = model.init(key, SEQUENCES[0])
    module = NnxNet(nnx.Rngs(key))
    module.eval()
    outputs, kept = jax.jit(model.apply)(params, state, SEQUENCES[0])
    np.testing.assert_allclose(outputs, module(SEQUENCES[0]), rtol=1e-6)
    assert jax.tree.all(jax.tree.map(np.array_equal, kept, state))


def test_nnx_training_moves_statistics_and_draws_each_mask_from_the_key(key):
    model = from_nnx(NnxNet)
    params, state = model.init(key, SEQUENCES[0])
    before = jax.tree.map(np.array, (params, state))
    run = jax.jit(lambda key: model.apply(params, state, SEQUENCES[0], key=key, train=True))
    outputs, moved = run(key)
    masks = np.asarray(outputs) == 0
    assert np.any(masks[0] != masks[1])
    assert np.any(masks != (np.asarray(run(jax.random.fold_in(key, 1))[0]) == 0))
    np.testing.assert_array_equal(outputs, run(key)[0])
    dense = SEQUENCES[0] @ params["dense"]["kernel"][...]
    # The statistics move twice: the module calls its norm twice.
    expected = (1 - 0.75**2) * np.mean(dense, 0)
    np.testing.assert_allclose(moved["norm"]["mean"][...], expected, rtol=1e-5)
    assert jax.tree.all(jax.tree.map(np.array_equal, before, (params, state)))
    assert jax.tree.structure(moved) == jax.tree.structure(state)


def test_nnx_training_without_a_key_is_refused_when_the_module_draws(key):
    model = from_nnx(NnxNet)
    params, state = model.init(key, SEQUENCES[0])
    with pytest.raises(ValueError, match="pass `key`"):
        model.apply(params, state, SEQUENCES[0], train=True)


def test_nnx_trains_under_grad_vmap_and_scan(key):
    model = from_nnx(NnxNet)

    def run(key):
        def step(carry, number):
            params, state = carry

            def loss(params):
                step_key = jax.random.fold_in(key, number)
                outputs, new = model.apply(params, state, SEQUENCES[0], key=step_key, train=True)
                return jnp.mean((outputs - 1) ** 2), new

            (value, state), grads = jax.value_and_grad(loss, has_aux=True)(params)
            return (jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), state), value

        return lax.scan(step, model.init(key, SEQUENCES[0]), jnp.arange(20))[1]

    losses = jax.jit(jax.vmap(run))(jax.random.split(key, 2))
    assert np.all(losses[:, -5:].mean(1) < losses[:, :5].mean(1))


def test_a_compute_dtype_must_be_floating_and_available():
    model = Model(lambda *_: None, lambda *_: None)
    with pytest.raises(ValueError, match="must be a floating dtype, got int32"):
        with_compute_dtype(model, jnp.int32)
    with pytest.raises(ValueError, match="jax_enable_x64"):
        with_compute_dtype(model, "float64")


def test_count_params_leaves_integers_and_keys_out(key):
    params = {"w": np.ones((2, 3)), "b": 1.0, "count": np.int32(3), "key": key}
    assert count_params(params) == 7


@pytest.mark.parametrize(
    "make, inputs, words",
    [
        (make_cnn, np.ones((2, 8, 8, 1), np.float32), "side 18 or more, got shape"),
        (make_cnn, np.ones((2, 32, 32), np.float32), "add an axis to grey ones"),
        (make_rnn, np.ones((2, 8), np.float32), "sequences .batch, time, feature. or images"),
        (make_resnet20, np.ones((2, 8), np.float32), "takes images"),
        (make_byte_lm, np.ones((2, 8), np.float32), "takes integers .batch, time."),
        (make_byte_transformer, np.ones(8, np.int32), "takes integers .batch, time."),
    ],
)
def test_inputs_of_another_shape_are_refused(key, make, inputs, words):
    with pytest.raises(ValueError, match=words):
        make(10).init(key, inputs)


def test_sizes_that_are_no_positive_integers_are_refused():
    for make in (make_mlp, make_cnn, make_rnn, make_resnet20, make_byte_lm, make_byte_transformer):
        with pytest.raises(ValueError, match="`num_outputs` must be >= 1"):
            make(0)
    with pytest.raises(ValueError, match="`widths` must be >= 1"):
        make_mlp(10, widths=(3, 0))
    with pytest.raises(ValueError, match="multiple of 2 \\* num_heads"):
        make_byte_transformer(width=6, num_heads=4)
