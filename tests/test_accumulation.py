"""Gradients over micro-batches, clipped, in mixed precision: the step of the whole batch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wdjax.decay import decoupled_decay
from wdjax.losses import regularized_loss, squared_error
from wdjax.models import make_mlp, with_compute_dtype
from wdjax.penalties import l2_penalty
from wdjax.step import init_state, make_train_step
from wdjax.types import Batch, Model


def linear(params, inputs):
    return inputs @ params["w"] + params["b"]


def lopsided(weights):
    rng = np.random.default_rng(0)
    n = len(weights)
    return Batch(rng.normal(size=(n, 3)), rng.normal(size=n), np.array(weights, float))


def params():
    return {"w": jnp.array([1.0, -2.0, 0.5]), "b": jnp.array(0.3)}


WEIGHTS = [
    [3.0, 0.5, 0, 1, 0, 0],
    [0.0, 0, 0, 0, 0, 2.0],
    [5.0, 0, 0, 0, 0, 0],
    [0.0] * 6,
    [1.0] * 6,
]


@pytest.mark.parametrize("num_parts", [2, 3, 6])
@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_micro_batches_step_as_the_whole_batch_whatever_counts_in_each(weights, num_parts, x64):
    """A mean of the parts' means would be wrong; a penalty or a decay a part would count again."""
    tx = optax.chain(optax.adam(0.1), decoupled_decay(0.2, 0.1))
    loss_fn = regularized_loss(linear, squared_error, l2_penalty(0.3))
    state, batch = init_state(params(), tx), lopsided(weights)
    expected = jax.jit(make_train_step(loss_fn, tx))(state, batch)
    found = jax.jit(make_train_step(loss_fn, tx, num_micro_batches=num_parts))(state, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found, expected)


def test_a_nan_in_a_row_that_does_not_count_spoils_no_part(x64):
    tx, batch = optax.sgd(0.1), lopsided([1.0, 0, 2.0, 0])
    poisoned = batch._replace(inputs=batch.inputs.copy())
    poisoned.inputs[[1, 3]] = np.nan
    step = jax.jit(
        make_train_step(regularized_loss(linear, squared_error), tx, num_micro_batches=2)
    )
    state = init_state(params(), tx)
    jax.tree.map(np.testing.assert_array_equal, step(state, poisoned), step(state, batch))


def test_a_part_without_an_active_row_adds_nothing_and_keeps_the_state(x64):
    """A model singular at zero, a distance as loss, NaN in the rows of weight 0: the first and the
    last part hold no other. Part by part the state is the last mean of the inputs seen."""
    rng = np.random.default_rng(0)
    x, y, w = rng.normal(size=(8, 3)), rng.normal(size=(8, 2)), rng.normal(size=(3, 2))
    s = np.array([0.0, 1, 2, 0, 0, 0, 0.5, 0])  # Part k of 4 holds the rows k and k + 4.
    kept = s > 0

    def by_hand(w):
        h = x[kept] @ w
        h = h / jnp.sqrt(jnp.sum(h**2, axis=1))[:, None]
        return jnp.sum(s[kept] * jnp.sqrt(jnp.sum((h - y[kept]) ** 2, axis=1))) / s.sum()

    expected = w - 0.1 * (jax.grad(by_hand)(jnp.asarray(w)) + 0.3 * w)
    seen = x[[2, 6]].mean()
    x[~kept], y[~kept] = np.nan, np.inf

    def apply(w, model_state, inputs, *, key, train):
        h = inputs @ w
        state = {"mean": jnp.mean(inputs), "calls": model_state["calls"] + 1}
        return h / jnp.linalg.norm(h, axis=-1, keepdims=True), state

    distance = lambda outputs, targets: jnp.linalg.norm(outputs - targets, axis=-1)
    tx = optax.sgd(0.1)
    loss_fn = regularized_loss(Model(lambda: None, apply), distance, l2_penalty(0.3))
    step = jax.jit(make_train_step(loss_fn, tx, num_micro_batches=4))
    state = init_state(jnp.asarray(w), tx, model_state={"mean": jnp.array(9.0), "calls": 0})
    found, _ = step(state, Batch(x, y, s))
    np.testing.assert_allclose(found.params, expected, rtol=1e-12)
    np.testing.assert_allclose(found.model_state["mean"], seen, rtol=1e-12)
    assert found.model_state["calls"] == 2


def test_many_parts_of_bfloat16_gradients_have_their_mean():
    """256 gradients of 1, then 256 of 1.5: a running mean in bfloat16 stays at 1, since a share of
    1/257 of 0.5 is below its last digit."""
    tx = optax.sgd(1.0)
    x = np.repeat([1.0, 1.5], 256)
    batch = Batch(jnp.asarray(x, jnp.bfloat16), np.zeros(512), np.ones(512, np.float32))
    step = make_train_step(
        regularized_loss(lambda w, x: w * x, lambda outputs, _: outputs), tx, num_micro_batches=512
    )
    _, metrics = jax.jit(step)(init_state(jnp.ones((), jnp.bfloat16), tx), batch)
    np.testing.assert_allclose(metrics["grad_norm"], 1.25, rtol=2**-8)
    np.testing.assert_allclose(metrics["loss"], 1.25, rtol=1e-6)


def test_model_state_goes_from_part_to_part_and_each_draws_its_own_dropout(key):
    def apply(params, model_state, inputs, *, key, train):
        noise = jax.random.uniform(key)
        return inputs @ params["w"] + params["b"], {
            "calls": model_state["calls"] + 1,
            "noise": model_state["noise"] + noise,
        }

    tx = optax.sgd(0.1)
    step = make_train_step(
        regularized_loss(Model(lambda: None, apply), squared_error), tx, num_micro_batches=3
    )
    model_state = {"calls": jnp.array(0), "noise": jnp.array(0.0)}
    state = init_state(params(), tx, model_state=model_state, key=key)
    batch = jax.tree.map(lambda x: x.astype(np.float32), lopsided([1.0] * 6))
    found, _ = step(state, batch)
    keys = [jax.random.fold_in(jax.random.fold_in(key, 0), part) for part in range(3)]
    assert found.model_state["calls"] == 3
    expected = sum(float(jax.random.uniform(k)) for k in keys)
    np.testing.assert_allclose(found.model_state["noise"], expected, rtol=1e-6)


def test_a_batch_that_does_not_divide_into_parts_is_refused():
    tx = optax.sgd(0.1)
    loss_fn = regularized_loss(linear, squared_error)
    with pytest.raises(ValueError, match="a batch of 6 does not divide into 4 micro-batches"):
        make_train_step(loss_fn, tx, num_micro_batches=4)(
            init_state(params(), tx), lopsided([1.0] * 6)
        )
    with pytest.raises(ValueError, match="`num_micro_batches` must be >= 1"):
        make_train_step(loss_fn, tx, num_micro_batches=0)


def test_clipping_sees_the_gradient_of_the_whole_batch_and_spares_the_decay(x64):
    """w <- w - lr * g * min(1, c / |g|) - lr * strength * w, with g the mean over the batch."""
    batch, strength, rate = lopsided([1.0] * 6), 0.5, 0.1
    tx = optax.chain(
        optax.clip_by_global_norm(0.5), optax.sgd(rate), decoupled_decay(strength, rate)
    )
    step = make_train_step(regularized_loss(linear, squared_error), tx, num_micro_batches=3)
    found, metrics = step(init_state(params(), tx), batch)
    w = np.array([1.0, -2.0, 0.5])
    residual = batch.inputs @ w + 0.3 - batch.targets
    grad_w, grad_b = batch.inputs.T @ residual / 6, residual.mean()
    norm = np.sqrt((grad_w**2).sum() + grad_b**2)
    assert norm > 0.5
    np.testing.assert_allclose(metrics["grad_norm"], norm)
    expected = w - rate * grad_w * 0.5 / norm - rate * strength * w
    np.testing.assert_allclose(found.params["w"], expected)


def test_computing_in_bfloat16_keeps_float32_params_and_a_penalty_in_float32():
    """A decay of 1e-4 a step is below bfloat16's resolution: stored there, it would be lost."""
    model = with_compute_dtype(make_mlp(1, widths=(4,)), "bfloat16")
    inputs = np.ones((4, 3), np.float32)
    start, _ = model.init(jax.random.key(0), inputs)
    tx = optax.chain(optax.sgd(0.0), decoupled_decay(1.0, 1e-4))
    loss_fn = regularized_loss(
        lambda p, x: model.apply(p, {}, x)[0][:, 0], squared_error, l2_penalty(1e-4)
    )
    step = make_train_step(loss_fn, tx, num_micro_batches=2)
    batch = Batch(inputs, np.ones(4, np.float32), np.ones(4, np.float32))
    state, metrics = step(init_state(start, tx), batch)
    for old, new in zip(jax.tree.leaves(start), jax.tree.leaves(state.params), strict=True):
        assert new.dtype == jnp.float32
        np.testing.assert_allclose(new, old * (1 - 1e-4), rtol=1e-6)
    squares = sum(
        float((np.asarray(leaf, np.float64) ** 2).sum()) for leaf in jax.tree.leaves(start)
    )
    assert metrics["penalty"].dtype == jnp.float32
    np.testing.assert_allclose(metrics["penalty"], 5e-5 * squares, rtol=1e-6)
