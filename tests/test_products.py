"""The product and the rectifier against `jax.numpy` and `jax.nn`, and what XLA makes of them."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from wdjax.losses import cross_entropy, regularized_loss
from wdjax.models import make_cnn, make_mlp
from wdjax.models.products import FITS_CACHE, dot_general, product, relu
from wdjax.types import Batch

SHAPES = {
    "more outputs": (6, 3, 5),
    "fewer outputs": (6, 5, 3),
    "too large to transpose": (FITS_CACHE // 4 + 1, 4, 3),
}


@pytest.fixture
def operands(request, key):
    rows, features, outputs = SHAPES[request.param]
    with jax.enable_x64(True):
        k1, k2 = jax.random.split(key)
        yield (
            jax.random.normal(k1, (rows, features), jnp.float64),
            jax.random.normal(k2, (features, outputs), jnp.float64),
        )


@pytest.mark.parametrize("operands", SHAPES, indirect=True)
def test_product_and_its_derivatives_are_those_of_matmul(operands):
    scalar = lambda f: lambda x, w: jnp.sum(jnp.sin(f(x, w)))
    ours, theirs = scalar(product), scalar(jnp.matmul)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)
    close(product(*operands), jnp.matmul(*operands))
    for argnums in (0, 1, (0, 1)):
        mine = jax.grad(ours, argnums)(*operands)
        jax.tree.map(close, mine, jax.grad(theirs, argnums)(*operands))
    tangents = jax.tree.map(jnp.cos, operands)
    for one in (0, 1):  # One operand moves, the other does not.
        along = lambda f, one=one: jax.jvp(
            lambda a: f(*((a, operands[1]) if one == 0 else (operands[0], a))),
            (operands[one],),
            (tangents[one],),
        )
        jax.tree.map(close, along(product), along(jnp.matmul))
    # Forward over reverse, as the derivative of a training run in its strength takes it.
    twice = lambda f: jax.jvp(lambda w: jax.grad(f, 1)(operands[0], w), operands[1:], tangents[1:])
    jax.tree.map(close, twice(ours), twice(theirs))


def test_product_of_several_models_is_theirs_one_by_one(key):
    x, w = jax.random.normal(key, (3, 6, 5)), jax.random.normal(key, (3, 5, 2))
    of = jax.grad(lambda x, w: jnp.sum(product(x, w) ** 2), 1)
    together = jax.vmap(of)(x, w)
    np.testing.assert_allclose(together, jnp.stack([of(*m) for m in zip(x, w, strict=True)]), 1e-5)


@pytest.mark.parametrize("shape", [(4,), (2, 4), (2, 3, 4), (0, 4)])
def test_a_dense_layer_of_any_rank_is_flaxs(key, shape):
    x = jax.random.normal(key, shape)
    params = nn.Dense(3).init(key, x)
    ours = nn.Dense(3, dot_general=dot_general).apply(params, x)
    np.testing.assert_allclose(ours, nn.Dense(3).apply(params, x), rtol=1e-6, atol=1e-6)


def test_other_contractions_are_the_librarys(key):
    x, w = jax.random.normal(key, (4, 3)), jax.random.normal(key, (4, 5))
    over_rows = (((0,), (0,)), ((), ()))
    np.testing.assert_array_equal(dot_general(x, w, over_rows), lax.dot_general(x, w, over_rows))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_relu_and_its_derivatives_are_jaxs(dtype):
    x = jnp.array([-jnp.inf, -2.0, -0.0, 0.0, 1e-6, 3.0, jnp.inf], dtype)
    tangent = jnp.arange(1.0, 8.0, dtype=dtype)
    forms = [lambda r: r(x), lambda r: jax.vmap(jax.grad(r))(x)]
    forms.append(lambda r: jax.jvp(r, (x,), (tangent,))[1])
    for f in forms:
        np.testing.assert_array_equal(f(relu), f(jax.nn.relu))
        assert f(relu).dtype == jnp.dtype(dtype)


def test_relus_gradient_selects_nothing():
    compiled = jax.jit(jax.grad(lambda x: jnp.sum(relu(x) ** 2))).lower(jnp.ones(64)).compile()
    assert " select(" not in compiled.as_text()


def _gradient(model, images, platform=None):
    params, state = model.init(jax.random.key(0), images)
    loss = regularized_loss(model, cross_entropy)
    batch = Batch(images, jnp.zeros(len(images), jnp.int32), jnp.ones(len(images)))
    of = jax.jit(jax.grad(lambda p: loss(p, batch, model_state=state)[0]))
    if platform is None:
        return of.lower(params).compile().as_text()
    return of.trace(params).lower(lowering_platforms=(platform,)).as_text()


def test_on_a_cpu_no_product_of_an_mlp_has_a_transposed_left_side():
    text = _gradient(make_mlp(10), jnp.ones((128, 8, 8, 1)))
    left = re.findall(r" dot\(.*lhs_contracting_dims=\{(\d+)\}", text)
    assert left == ["1"] * 5


def test_on_a_gpu_the_products_are_plain():
    for model, shape in ((make_mlp(10), (4, 8, 8, 1)), (make_cnn(10), (4, 32, 32, 3))):
        assert "optimization_barrier" not in _gradient(model, jnp.ones(shape), "cuda")
