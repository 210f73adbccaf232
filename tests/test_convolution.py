"""Convolution against `lax`, and what it compiles to on each platform; max pooling."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from wdjax.models import conv, from_linen, make_cnn, max_pool

NHWC = ("NHWC", "HWIO", "NHWC")
IMAGES = np.random.default_rng(0).random((3, 18, 18, 2), np.float32)

# 1, 2 and 3 axes; (lhs shape, rhs shape, strides, padding, keywords)

CONVOLUTIONS = {
    "valid": ((2, 6, 5, 3), (3, 3, 3, 4), (1, 1), "VALID", dict(dimension_numbers=NHWC)),
    "same": ((2, 6, 5, 3), (3, 2, 3, 4), (1, 1), "SAME", dict(dimension_numbers=NHWC)),
    "same lower, stride": (
        (2, 6, 5, 3),
        (3, 2, 3, 4),
        (2, 3),
        "SAME_LOWER",
        dict(dimension_numbers=NHWC),
    ),
    "one by one, stride": (
        (2, 5, 5, 3),
        (1, 1, 3, 4),
        (2, 2),
        "VALID",
        dict(dimension_numbers=NHWC),
    ),
    "channels first": ((2, 3, 6, 5), (4, 3, 3, 2), (2, 1), [(1, 2), (0, 1)], {}),
    "mixed layouts": (
        (3, 6, 5, 2),
        (4, 3, 2, 3),
        (1, 2),
        [(1, 1), (0, 2)],
        dict(dimension_numbers=("CHWN", "OHWI", "HNCW")),
    ),
    "negative padding": (
        (2, 6, 6, 2),
        (2, 2, 2, 3),
        (1, 1),
        [(-1, 1), (0, -2)],
        dict(dimension_numbers=NHWC),
    ),
    "kernel dilation": (
        (2, 8, 7, 2),
        (3, 2, 2, 3),
        (2, 1),
        "SAME",
        dict(dimension_numbers=NHWC, rhs_dilation=(2, 3)),
    ),
    "input dilation": (
        (2, 4, 3, 2),
        (3, 3, 2, 3),
        (1, 2),
        [(2, 2), (1, 2)],
        dict(dimension_numbers=NHWC, lhs_dilation=(2, 3), rhs_dilation=(1, 2)),
    ),
    "groups": (
        (2, 5, 5, 4),
        (3, 3, 2, 6),
        (1, 1),
        "SAME",
        dict(dimension_numbers=NHWC, feature_group_count=2),
    ),
    "depthwise": (
        (2, 5, 5, 3),
        (3, 3, 1, 6),
        (2, 2),
        "SAME",
        dict(dimension_numbers=NHWC, feature_group_count=3),
    ),
    "batch groups": ((4, 3, 5, 5), (6, 3, 2, 2), (1, 1), "VALID", dict(batch_group_count=2)),
    "a large window": (
        (2, 140, 2),
        (130, 2, 3),
        (1,),
        "VALID",
        dict(dimension_numbers=("NHC", "HIO", "NHC")),
    ),
    "one axis": ((2, 9, 2), (4, 2, 3), (2,), "SAME", dict(dimension_numbers=("NHC", "HIO", "NHC"))),
    "three axes": ((1, 2, 4, 3, 4), (3, 2, 2, 2, 2), (1, 2, 1), "SAME", {}),
    "nothing fits": ((2, 2, 5, 3), (3, 3, 3, 4), (1, 1), "VALID", dict(dimension_numbers=NHWC)),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution_and_both_gradients_equal_lax(x64, case):
    lhs_shape, rhs_shape, strides, padding, keywords = CONVOLUTIONS[case]
    random = np.random.default_rng(0)
    lhs, rhs = random.normal(size=lhs_shape), random.normal(size=rhs_shape)

    def value_and_gradients(convolve):
        of_both = lambda lhs, rhs: convolve(lhs, rhs, strides, padding, **keywords)
        out, pull = jax.vjp(of_both, lhs, rhs)
        return out, pull(jnp.cos(jnp.arange(out.size, dtype=float)).reshape(out.shape))

    ours = jax.jit(lambda: value_and_gradients(conv))()
    theirs = jax.jit(lambda: value_and_gradients(lax.conv_general_dilated))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), ours, theirs)


def test_a_string_padding_of_a_dilated_input_is_refused():
    with pytest.raises(ValueError, match="pairs of numbers"):
        conv(jnp.ones((1, 1, 4)), jnp.ones((1, 1, 2)), (1,), "SAME", lhs_dilation=(2,))


def train_step(model, inputs, state):
    def step(params):
        loss = lambda p: (model.apply(p, state, inputs, key=None, train=True)[0] ** 2).sum()
        grads = jax.grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads)

    return step


def test_the_platform_chooses_the_convolution_at_lowering(key):
    model = make_cnn(10)
    params, state = jax.eval_shape(model.init, key, IMAGES)
    traced = jax.jit(train_step(model, IMAGES, state)).trace(params)
    for platform, expected in (("cpu", False), ("cuda", True), ("tpu", True)):
        program = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.convolution" in program) == expected, platform


def test_four_models_in_a_scan_compile_on_cpu_to_products_without_conditional(key):
    layer = nn.Conv(4, (3, 3), conv_general_dilated=conv)
    model = from_linen(nn.Sequential([layer, nn.relu, layer.clone(features=2)]))
    keys = jax.random.split(key, 4)
    params, state = jax.eval_shape(jax.vmap(model.init, (0, None)), keys, IMAGES)
    step = train_step(model, IMAGES, state)
    run = lambda params: lax.scan(lambda p, _: (step(p), None), params, None, length=2)[0]
    program = jax.jit(jax.vmap(run)).lower(params).compile().as_text()
    assert " while(" in program and " dot(" in program
    assert " convolution(" not in program and " conditional(" not in program


def test_convolution_works_on_a_device_mesh_and_under_jvp(key):
    mesh = jax.make_mesh((2,), ("device",), axis_types=(AxisType.Auto,))
    kernel = jax.random.normal(key, (3, 3, 2, 4))
    images = np.concatenate([IMAGES[:2], IMAGES[:2]])
    convolve = lambda lhs: conv(lhs, kernel, (1, 1), "SAME", dimension_numbers=NHWC)
    split = jax.jit(
        jax.shard_map(
            lambda x: jax.jvp(convolve, (x,), (x,)),
            mesh=mesh,
            in_specs=P("device"),
            out_specs=P("device"),
            check_vma=False,
        )
    )
    value, tangent = split(images)
    # Linear in the images: the tangent along the images is the value.
    np.testing.assert_allclose(value, tangent, rtol=1e-6)
    np.testing.assert_allclose(value, convolve(images), atol=1e-5)


def test_max_pool_takes_the_largest_of_each_window_and_drops_an_odd_edge(x64):
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 3))
    pool = lambda x: lax.reduce_window(x, -np.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    np.testing.assert_array_equal(max_pool(x), pool(x))
    gradient = lambda f: jax.grad(lambda x: (f(x) ** 3).sum())(x)
    np.testing.assert_allclose(gradient(max_pool), gradient(pool), rtol=1e-12)
