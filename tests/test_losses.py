"""Losses: closed forms, weights as repetition, rows that do not count, parts."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from wdjax.decay import decoupled_decay
from wdjax.losses import cross_entropy, fill_inactive_rows, regularized_loss, squared_error
from wdjax.models import dropout, from_linen
from wdjax.penalties import l2_penalty
from wdjax.types import Batch, Model

RNG = np.random.default_rng(0)


def linear(params, inputs):
    return inputs @ params["w"]


def regression(num_examples=12, num_features=3, weights=None):
    x = RNG.normal(size=(num_examples, num_features))
    y = x @ RNG.normal(size=num_features) + RNG.normal(size=num_examples)
    return Batch(x, y, np.ones(num_examples) if weights is None else np.asarray(weights))


def value_and_grad(loss_fn, params, batch, **options):
    of_params = lambda p: loss_fn(p, batch, **options)
    return jax.jit(jax.value_and_grad(of_params, has_aux=True))(params)


def minimum(loss_fn, batch, params, num_steps=3000, learning_rate=0.5):
    """Plain full-batch descent, far past convergence."""
    grad = jax.grad(lambda p: loss_fn(p, batch)[0])
    step = lambda p, _: (jax.tree.map(lambda w, g: w - learning_rate * g, p, grad(p)), None)
    return jax.jit(lambda p: jax.lax.scan(step, p, length=num_steps)[0])(params)


def ridge(x, y, weights, strength):
    """(X'SX / sum s + strength I)^-1 X'Sy / sum s."""
    s = weights / weights.sum()
    return np.linalg.solve((x.T * s) @ x + strength * np.eye(x.shape[1]), (x.T * s) @ y)


# The data loss


def test_the_loss_is_the_weighted_mean_plus_the_penalty(x64):
    x, y, weights = regression(weights=RNG.uniform(0, 2, 12))
    w = RNG.normal(size=3)
    loss_fn = regularized_loss(linear, squared_error, l2_penalty(0.3))
    (loss, aux), grads = value_and_grad(loss_fn, {"w": w}, Batch(x, y, weights))
    residuals = x @ w - y
    expected = 0.5 * np.sum(weights * residuals**2) / weights.sum()
    np.testing.assert_allclose(aux.data_loss, expected)
    np.testing.assert_allclose(aux.penalty, 0.15 * np.sum(w**2))
    np.testing.assert_allclose(aux.denominator, weights.sum())
    np.testing.assert_allclose(loss, expected + 0.15 * np.sum(w**2))
    slope = x.T @ (weights * residuals) / weights.sum() + 0.3 * w
    np.testing.assert_allclose(grads["w"], slope)


def test_the_minimum_is_weighted_ridge_regression(x64):
    batch = regression(weights=RNG.uniform(0, 2, 12))
    loss_fn = regularized_loss(linear, squared_error, l2_penalty(0.4))
    found = minimum(loss_fn, batch, {"w": jnp.zeros(3)}, learning_rate=0.2)
    np.testing.assert_allclose(found["w"], ridge(*batch, 0.4), rtol=1e-10)


def test_leaving_a_row_out_by_its_weight_is_ridges_closed_form(x64):
    """The residual of the row left out is `r_i / (1 - h_ii)`, h the hat matrix of all rows. One row
    less divides the data loss by n - 1, so the same ridge has the strength `n lam / (n - 1)`."""
    x, y, ones = regression(num_examples=8)
    hat = x @ np.linalg.solve(x.T @ x + 8 * 0.4 * np.eye(3), x.T)
    loss_fn = regularized_loss(linear, squared_error, l2_penalty(8 * 0.4 / 7))
    without = jax.vmap(
        lambda weights: minimum(
            loss_fn, Batch(x, y, weights), {"w": jnp.zeros(3)}, learning_rate=0.2
        )["w"]
    )(jnp.asarray(1 - np.eye(8)))
    found = y - np.sum(x * np.asarray(without), axis=1)
    np.testing.assert_allclose(found, (y - hat @ y) / (1 - np.diag(hat)), rtol=1e-9)


def test_the_derivative_through_a_run_of_decay_is_the_implicit_one(x64):
    """At its rest `dL_v / dlam = -g_v' (H + lam I)^-1 w`, with g_v the validation gradient; and
    decoupled descent, differentiated through all its steps, gives it."""
    train, valid = regression(), regression()

    def rest(lam):
        tx = optax.chain(optax.sgd(0.2), decoupled_decay(lam, 0.2))
        loss_fn = regularized_loss(linear, squared_error)

        def step(carry, _):
            w, state = carry
            grads = jax.grad(lambda w: loss_fn(w, train)[0])(w)
            updates, state = tx.update(grads, state, w)
            return (optax.apply_updates(w, updates), state), None

        w = {"w": jnp.zeros(3)}
        return jax.lax.scan(step, (w, tx.init(w)), length=1500)[0][0]["w"]

    of_valid = lambda w: jnp.mean(squared_error(valid.inputs @ w, jnp.asarray(valid.targets)))
    found = jax.jit(jax.grad(lambda lam: of_valid(rest(lam))))(0.4)
    w = ridge(*train, 0.4)
    np.testing.assert_allclose(jax.jit(rest)(0.4), w, rtol=1e-10)
    curvature = train.inputs.T @ train.inputs / 12 + 0.4 * np.eye(3)
    expected = -jax.grad(of_valid)(jnp.asarray(w)) @ np.linalg.solve(curvature, w)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
def test_full_batch_logistic_regression_reaches_scikit_learns_optimum(weighted, x64):
    """C = 1 / (sum of weights * strength); the intercept is a part that does not decay."""
    strength, (x, y) = 0.05, load_iris(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0)
    weights = RNG.uniform(0.2, 2, len(x)) if weighted else np.ones(len(x))
    theirs = LogisticRegression(C=1 / (weights.sum() * strength), tol=1e-10, max_iter=1000)
    theirs.fit(x, y, sample_weight=weights)

    model = lambda params, inputs: inputs @ params["coef"] + params["intercept"][None]
    penalty = l2_penalty(strength, {"coef": 1.0, "intercept": 0.0})
    loss_fn = regularized_loss(model, cross_entropy, penalty)
    start = {"coef": jnp.zeros((4, 3)), "intercept": jnp.zeros(3)}
    found = minimum(loss_fn, Batch(x, y, weights), start)
    np.testing.assert_allclose(found["coef"], theirs.coef_.T, atol=1e-5)
    np.testing.assert_allclose(found["intercept"], theirs.intercept_, atol=1e-5)


def test_an_integer_weight_is_a_repeated_row_only_if_divided_by_the_weights(x64):
    """Under "count" the denominator is the rows, not the weights: with sum w / n = 2 the data
    loss doubles, which is ridge at half the strength, and the minimum moves by 0.07."""
    weights = np.tile([1, 2, 3], 4)
    batch = regression(weights=weights)
    repeated = jax.tree.map(lambda leaf: np.repeat(leaf, weights, axis=0), batch)
    repeated = repeated._replace(weights=np.ones(24))
    start = {"w": jnp.full(3, 0.5)}
    for normalize in ("weights", "count"):
        loss_fn = regularized_loss(linear, squared_error, l2_penalty(0.4), normalize=normalize)
        (once, aux), grads = value_and_grad(loss_fn, start, batch)
        (often, aux_often), grads_often = value_and_grad(loss_fn, start, repeated)
        factor = 2.0 if normalize == "count" else 1.0
        np.testing.assert_allclose(aux.data_loss, factor * aux_often.data_loss, rtol=1e-14)
        equal = np.allclose(once, often, rtol=1e-14) and np.allclose(
            grads["w"], grads_often["w"], rtol=1e-13
        )
        assert equal == (normalize == "weights")
        found = minimum(loss_fn, batch, start, learning_rate=0.1)["w"]
        np.testing.assert_allclose(found, ridge(*batch, 0.4 / factor), rtol=1e-9)
        if normalize == "count":
            assert np.linalg.norm(found - ridge(*repeated, 0.4)) > 0.05


def test_sigmoid_weights_of_slope_zero_halve_the_data_loss_only_under_count(x64):
    batch, params = regression(), {"w": np.ones(3)}
    halves = batch._replace(weights=np.full(12, 0.5))
    for normalize, share in (("count", 0.5), ("weights", 1.0)):
        loss_fn = regularized_loss(linear, squared_error, normalize=normalize)
        expected = share * loss_fn(params, batch)[0]
        np.testing.assert_allclose(loss_fn(params, halves)[0], expected)


# Rows that do not count


@pytest.mark.parametrize("normalize", ["weights", "count"])
def test_rows_of_weight_zero_change_nothing_even_if_they_hold_nan(normalize, x64):
    """With debug_nans on: no NaN is made on the way, forward or backward."""
    x, y, weights = regression(weights=[2.0, 0.0, 1.0, 1.0, 0.0])
    x, y = x[:5], y[:5]
    kept = weights > 0
    loss_fn = regularized_loss(linear, squared_error, l2_penalty(0.3), normalize=normalize)
    params = {"w": jnp.ones(3)}
    expected = value_and_grad(loss_fn, params, Batch(x[kept], y[kept], weights[kept]))
    x[~kept], y[~kept] = np.nan, np.nan
    found = value_and_grad(loss_fn, params, Batch(x, y, weights))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-14), found, expected)


def test_labels_out_of_range_do_not_matter_where_the_weight_is_zero(x64):
    logits = lambda params, inputs: inputs * params
    batch = Batch(jnp.ones((2, 3)), jnp.array([1, 99]), jnp.array([1.0, 0.0]))
    (loss, _), _ = value_and_grad(regularized_loss(logits, cross_entropy), 2.0, batch)
    np.testing.assert_allclose(loss, np.log(3))


def test_sequences_have_a_weight_per_time(x64):
    """A position that is not scored may have a NaN target; a row without any, NaN inputs."""
    x = RNG.normal(size=(3, 4, 2))
    labels, w = RNG.integers(0, 5, (3, 4)), RNG.normal(size=(2, 5))
    weights = np.array([[1.0, 2, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    logits = x @ w
    losses = (
        np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, labels[..., None], -1)[..., 0]
    )
    x[2], labels[0, 2:] = np.nan, 77
    batch = Batch(x, labels, weights)
    (loss, aux), grads = value_and_grad(regularized_loss(linear, cross_entropy), {"w": w}, batch)
    np.testing.assert_allclose(loss, (weights * losses).sum() / 7)
    assert aux.denominator == 7
    assert np.isfinite(grads["w"]).all()

    def per_time(predictions, targets):
        return 0.5 * (predictions[..., 0] - targets) ** 2

    targets = np.where(weights > 0, 1.0, np.nan)
    loss_fn = regularized_loss(linear, per_time)
    (loss, _), _ = value_and_grad(loss_fn, {"w": w[:, :1]}, Batch(x, targets, weights))
    expected = 0.5 * weights[:2] * ((x[:2] @ w[:, :1])[..., 0] - 1) ** 2
    np.testing.assert_allclose(loss, expected.sum() / 7)


def test_if_nothing_counts_the_data_loss_is_zero_and_the_penalty_stays(x64):
    batch = regression(weights=np.zeros(12))._replace(inputs=np.full((12, 3), np.nan))
    for normalize in ("weights", "count"):
        loss_fn = regularized_loss(linear, squared_error, l2_penalty(2.0), normalize=normalize)
        (loss, aux), grads = value_and_grad(loss_fn, {"w": jnp.ones(3)}, batch)
        assert (loss, aux.data_loss, aux.penalty, aux.denominator) == (3.0, 0.0, 3.0, 0.0)
        np.testing.assert_array_equal(grads["w"], 2.0)


def normalised(params, inputs):
    """`h / |h|`, whose derivative at h = 0 is NaN; token ids are looked up first."""
    inputs = params["table"][inputs] if inputs.dtype == jnp.int32 else inputs
    h = inputs @ params["w"]
    return h / jnp.linalg.norm(h, axis=-1, keepdims=True)


def distance(outputs, targets):
    """`|o - t|`, singular where they are equal."""
    return jnp.linalg.norm(outputs - targets, axis=-1)


def soft_cross_entropy_by_hand(outputs, targets):
    z = outputs - jnp.max(outputs, axis=-1, keepdims=True)
    log_softmax = z - jnp.log(jnp.sum(jnp.exp(z), axis=-1, keepdims=True))
    return -jnp.sum(targets * log_softmax, axis=-1)


@pytest.mark.parametrize("is_traced", [False, True])
@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("soft", [False, True])
def test_a_singular_model_or_loss_sees_no_row_of_weight_zero(is_traced, tokens, soft, x64):
    """Value and gradient are those of the rows that count, to the last digits; NaN and infinity in
    the others, and token ids beyond the table."""
    s = np.array([0.0, 2.0, 0.0, 1.0, 0.5, 0.0, 0.0, 1.0])
    kept, y = s > 0, RNG.uniform(0.1, 1, (8, 4))
    x = RNG.integers(0, 6, 8).astype(np.int32) if tokens else RNG.normal(size=(8, 3))
    params = {"w": jnp.asarray(RNG.normal(size=(3, 4)))}
    params |= {"table": jnp.asarray(RNG.normal(size=(6, 3)))} if tokens else {}
    of_row = soft_cross_entropy_by_hand if soft else distance

    def by_hand(p, x, y):
        return jnp.sum(s[kept] * of_row(normalised(p, jnp.asarray(x)), y)) / s.sum()

    expected = jax.value_and_grad(by_hand)(params, x[kept], y[kept])
    x[~kept], y[~kept] = (999 if tokens else np.nan), np.inf
    loss_fn = regularized_loss(normalised, cross_entropy if soft else distance)
    grad = lambda p, batch: jax.value_and_grad(lambda p: loss_fn(p, batch)[0])(p)
    batch = Batch(x, y, s)
    with jax.debug_nans(is_traced):  # Outside a program even `jnp.asarray` of a NaN is refused.
        found = jax.jit(grad)(params, batch) if is_traced else grad(params, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found, expected)


def rows_and_targets_by_hand(x, y, s):
    """The rule in loops: the (j mod n)-th active row, the (t mod n)-th active position of it."""
    of_row = s.reshape(len(s), -1).any(1)
    rows = np.flatnonzero(of_row)
    x, y, s = (
        np.array([a[j] if of_row[j] else a[rows[j % len(rows)]] for j in range(len(s))])
        for a in (x, y, s)
    )
    if s.ndim > 1:
        for j in range(len(s)):
            places = np.flatnonzero(s[j])
            y[j] = [y[j][t if s[j, t] else places[t % len(places)]] for t in range(s.shape[1])]
    return x, y


@pytest.mark.parametrize("shape", [(7,), (5, 4)], ids=str)
@pytest.mark.parametrize("is_traced", [False, True])
def test_inactive_rows_are_filled_with_active_ones_in_turn(shape, is_traced):
    s = (RNG.uniform(size=shape) < 0.4).astype(np.float32)
    s[1] = s[2] = 0
    s[3] = 1
    x, y = RNG.normal(size=(*shape, 3)), RNG.integers(0, 9, shape)
    fill = jax.jit(fill_inactive_rows) if is_traced else fill_inactive_rows
    found = fill(x.astype(np.float32), y, s)
    expected = rows_and_targets_by_hand(x.astype(np.float32), y, s)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("through", ["weights", "example_weights"])
@pytest.mark.parametrize("is_traced", [False, True])
def test_without_an_active_row_the_data_loss_has_no_derivative_of_any_kind(
    through, is_traced, nans_allowed, x64
):
    """The derivative inside is NaN whatever the inputs, sqrt at 0. Forward, reverse, and each over
    the other see the penalty alone, `|w|^2`, and the state of the model stays."""
    apply = lambda p, state, x, **_: (jnp.sqrt(0 * (x @ p)), {"mean": state["mean"] + jnp.mean(x)})
    loss_fn = regularized_loss(Model(lambda: None, apply), squared_error, l2_penalty(2.0))
    w, v, zeros = jnp.array([1.0, -2.0, 3.0]), jnp.array([0.5, 1.0, -1.0]), np.zeros(4)
    x = np.full((4, 3), np.nan if through == "weights" else 1.0)

    def run(w, weights):
        how = {} if through == "weights" else {"example_weights": weights}
        batch = Batch(x, np.ones(4), weights if through == "weights" else np.ones(4))
        of = lambda w: loss_fn(w, batch, model_state={"mean": jnp.array(9.0)}, **how)
        value = lambda w: of(w)[0]
        slope = lambda w: jax.grad(value)(w) @ v
        return (
            of(w)[1],
            jax.grad(value)(w),
            jax.jvp(value, (w,), (v,))[1],
            jax.jvp(jax.grad(value), (w,), (v,))[1],
            jax.grad(slope)(w),
            jax.grad(lambda w: jax.jvp(value, (w,), (v,))[1])(w),
        )

    aux, grad, forward, *second = (jax.jit(run) if is_traced else run)(w, zeros)
    assert (aux.data_loss, aux.penalty, aux.denominator) == (0.0, 14.0, 0.0)
    assert aux.model_state["mean"] == 9.0
    np.testing.assert_array_equal(grad, 2 * w)
    assert forward == 2 * w @ v
    for product in second:
        np.testing.assert_array_equal(product, 2 * v)


def test_stand_ins_for_a_batch_without_any_are_finite_and_no_singular_point():
    """With debug_nans on: a model that normalises, by rows and by columns, makes no NaN of them."""

    def standardised(w, inputs):
        h = inputs @ w
        h = (h - jnp.mean(h, 0)[None]) / jnp.std(h, 0)[None]
        return h / jnp.linalg.norm(h, axis=1, keepdims=True)

    nothing = np.full((8, 61), np.nan, np.float32)
    batch = Batch(nothing, nothing[:, :2], np.zeros(8, np.float32))
    w = jnp.asarray(RNG.normal(size=(61, 2)), jnp.float32)
    loss_fn = regularized_loss(standardised, distance)
    grad = jax.jit(jax.grad(lambda w, batch: loss_fn(w, batch)[0]))(w, batch)
    np.testing.assert_array_equal(grad, 0.0)


def test_batches_without_an_active_row_pass_a_run_and_its_derivatives(nans_allowed, x64):
    """Over the batches (active, none) by decoupled descent on `sqrt(u)`, `u = (w x - y)^2`:
    w <- w - eta (x sign(w x - y) + lam w), then w <- w (1 - eta lam). With y and x one, w_0 = 3:
    d w_2 / d lam in closed form, in forward and in reverse mode."""
    eta, w0 = 0.1, 3.0
    example_loss = lambda outputs, y: jnp.sqrt((outputs - y) ** 2)
    loss_fn = regularized_loss(lambda w, x: jnp.sqrt(jnp.abs(w * x) ** 2), example_loss)
    # The second batch is at the singular point of both square roots, and holds NaN.
    x = jnp.array([[1.0, np.nan], [0.0, np.nan]])
    batches = Batch(x, x, jnp.array([[1.0, 0.0], [0.0, 0.0]]))

    def end(lam):
        tx = optax.chain(optax.sgd(eta), decoupled_decay(lam, eta))

        def step(carry, batch):
            w, state = carry
            grad = jax.grad(lambda w: loss_fn(w, batch)[0])(w)
            updates, state = tx.update(grad, state, w)
            return (optax.apply_updates(w, updates), state), None

        w = jnp.asarray(w0)
        return jax.lax.scan(step, (w, tx.init(w)), batches)[0][0]

    lam, left = 0.4, 1 - eta * 0.4
    first = left * w0 - eta
    np.testing.assert_allclose(jax.jit(end)(lam), left * first, rtol=1e-14)
    slope = -eta * first + left * -eta * w0
    np.testing.assert_allclose(jax.jit(jax.jacfwd(end))(lam), slope, rtol=1e-13)
    np.testing.assert_allclose(jax.jit(jax.grad(end))(lam), slope, rtol=1e-13)


# Sums


def test_float16_logits_of_a_long_batch_have_a_loss_and_a_gradient():
    """64 x 1,024 positions: their number alone is beyond float16. At logits (0, w) and label 1,
    l = log(1 + e^-w), dl/dw = -1 / (1 + e^w); float16 holds 1/65,536 of that to a hundredth."""

    def apply(w, x):
        z = (w * x).astype(jnp.float16)
        return jnp.stack([jnp.zeros_like(z), z], axis=-1)

    ones = np.ones((64, 1024), np.float32)
    loss_fn = regularized_loss(apply, cross_entropy)
    of_params = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, aux), grad = jax.jit(of_params)(jnp.array(0.5), Batch(ones, ones.astype(int), ones))
    assert aux.denominator == 65536
    np.testing.assert_allclose(loss, np.log1p(np.exp(-0.5)), rtol=1e-6)
    np.testing.assert_allclose(grad, -1 / (1 + np.exp(0.5)), rtol=1e-2)


@pytest.mark.parametrize("of_losses", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("of_weights", ["bfloat16", "float16", "float32", "int8", "bool"])
def test_the_mean_of_1001_rows_is_theirs_in_any_dtype(of_losses, of_weights):
    """In bfloat16 1,001 ones sum to 1,000. Losses 1, but for the last, 3; the first weight is 0."""
    s = np.ones(1001)
    s[0] = 0
    losses, weights = jnp.ones(1001, of_losses).at[-1].set(3), jnp.asarray(s, of_weights)
    for normalize in ("weights", "count"):
        loss_fn = regularized_loss(lambda p, x: x * p, lambda o, _: o, normalize=normalize)
        loss, aux = loss_fn(jnp.ones((), of_losses), Batch(losses, losses, weights))
        assert aux.denominator == 1000
        np.testing.assert_allclose(loss, 1.002, rtol=1e-6)


def test_the_product_of_two_small_weights_in_float16_is_not_lost():
    """1e-4 * 1e-4 is below float16: the row would not count at all."""
    weights = np.array([1e-4, 1e-4], np.float16)
    loss_fn = regularized_loss(lambda p, x: x * p, lambda o, _: o)
    batch = Batch(np.array([1.0, 3.0], np.float16), np.zeros(2), weights)
    _, aux = loss_fn(jnp.ones((), jnp.float16), batch, example_weights=jnp.asarray(weights))
    np.testing.assert_allclose(aux.data_loss, 2.0, rtol=1e-6)
    np.testing.assert_allclose(aux.denominator, 2e-8, rtol=1e-2)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_losses_of_half_precision_sum_in_float32(dtype):
    """70,000 labels, equal logits: log 70,000, where float16 ends at 65,504. Four differences of
    300, half of whose squares sum to 180,000."""
    logits = jnp.zeros((2, 70_000), dtype)
    expected = np.full(2, np.log(70_000))
    np.testing.assert_allclose(cross_entropy(logits, np.array([3, 4])), expected, rtol=1e-6)
    soft = jnp.full((2, 70_000), 1 / 70_000, jnp.float32)
    np.testing.assert_allclose(cross_entropy(logits, soft), expected, rtol=1e-5)
    np.testing.assert_allclose(
        squared_error(jnp.full((1, 4), 300, dtype), np.zeros((1, 4))), [180_000.0], rtol=1e-6
    )


# Parts


def two_parts(params, inputs):
    return jnp.tanh(inputs @ params["body"]) @ params["head"]


def two_part_setting():
    params = {"body": jnp.asarray(RNG.normal(size=(3, 4))), "head": jnp.asarray(RNG.normal(size=4))}
    return params, regression()


def test_part_weights_leave_the_value_to_the_last_bit_and_multiply_the_gradient(x64):
    params, batch = two_part_setting()
    plain = regularized_loss(two_parts, squared_error)
    weighted = regularized_loss(two_parts, squared_error, part_weights={"body": 0.3, "head": 0.0})
    (loss, _), grads = value_and_grad(plain, params, batch)
    (found, _), scaled = value_and_grad(weighted, params, batch)
    assert found == loss
    np.testing.assert_allclose(scaled["body"], 0.3 * grads["body"], rtol=1e-14)
    np.testing.assert_array_equal(scaled["head"], 0.0)


def test_part_weights_do_not_touch_the_penalty(x64):
    params, batch = two_part_setting()
    loss_fn = regularized_loss(two_parts, squared_error, l2_penalty(0.5), part_weights={"*": 0.0})
    _, grads = value_and_grad(loss_fn, params, batch)
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, 0.5 * w), grads, params)


def test_the_gradient_is_linear_in_a_part_weight_and_the_value_does_not_see_it(x64):
    """d loss / dm = 0 and d (m dL/dw) / dm = dL/dw: m can be learned through the steps it makes."""
    params, batch = two_part_setting()

    def value_and_step(m):
        loss_fn = regularized_loss(two_parts, squared_error, part_weights={"body": m, "*": 1.0})
        loss = lambda p: loss_fn(p, batch)[0]
        return jax.value_and_grad(loss)(params)

    _, (slope, sensitivity) = jax.jvp(value_and_step, (0.3,), (1.0,))
    _, grads = value_and_step(1.0)
    assert slope == 0.0
    np.testing.assert_allclose(sensitivity["body"], grads["body"], rtol=1e-12)
    np.testing.assert_array_equal(sensitivity["head"], 0.0)
    assert jax.grad(lambda m: value_and_step(m)[0])(0.3) == 0.0


def test_part_weights_fit_bfloat16_and_integer_leaves():
    params = {"w": jnp.ones(3, jnp.bfloat16), "steps": jnp.arange(2)}
    apply_fn = lambda p, inputs: inputs @ p["w"] + p["steps"][1].astype(jnp.bfloat16)
    batch = Batch(jnp.ones((2, 3), jnp.bfloat16), jnp.zeros(2, jnp.bfloat16), jnp.ones(2))
    loss_fn = regularized_loss(apply_fn, squared_error, part_weights={"*": np.float64(0.5)})
    grads = jax.grad(lambda w: loss_fn(params | {"w": w}, batch)[0])(params["w"])
    assert grads.dtype == jnp.bfloat16
    np.testing.assert_array_equal(grads, 2.0)


# Models with state and chance


class Noisy(nn.Module):
    @nn.compact
    def __call__(self, inputs, train=False):
        x = nn.BatchNorm(not train, momentum=0.75, use_bias=False, use_scale=False)(inputs)
        x = dropout(self.make_rng("dropout"), x, 0.5) if train else x
        return nn.Dense(1, use_bias=False)(x)


def test_a_model_with_batch_statistics_and_dropout_gets_its_state_and_key(key):
    model, batch = from_linen(Noisy()), Batch(jnp.array([[1.0], [3.0]]), jnp.ones(2), jnp.ones(2))
    params, state = model.init(key, batch.inputs)
    loss_fn = regularized_loss(model, squared_error)
    run = lambda key, train: loss_fn(params, batch, model_state=state, key=key, train=train)
    keys = jax.random.split(key, 6)
    _, aux = run(keys[0], True)
    moved = aux.model_state["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(moved["mean"], [0.5])
    np.testing.assert_allclose(moved["var"], [1.0])
    losses = [float(run(k, True)[0]) for k in keys]
    assert len(set(losses)) > 1
    assert losses == [float(run(k, True)[0]) for k in keys]
    evaluated, aux = run(None, False)
    kernel = params["Dense_0"]["kernel"][0, 0]
    expected = np.mean([0.5 * (x * kernel - 1) ** 2 for x in (1.0, 3.0)])
    np.testing.assert_allclose(evaluated, expected, rtol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, aux.model_state, state)


# Losses of one example


def test_cross_entropy_of_labels_equals_soft_targets_and_the_formula(x64):
    logits, labels = RNG.normal(size=(5, 4)), RNG.integers(0, 4, 5)
    expected = np.log(np.exp(logits).sum(1)) - logits[np.arange(5), labels]
    np.testing.assert_allclose(cross_entropy(jnp.asarray(logits), labels), expected)
    soft = np.eye(4)[labels]
    np.testing.assert_allclose(cross_entropy(jnp.asarray(logits), soft), expected)
    half = 0.5 * soft + 0.5 * np.eye(4)[[0] * 5]
    first = np.log(np.exp(logits).sum(1)) - logits[:, 0]
    found = cross_entropy(jnp.asarray(logits), half)
    np.testing.assert_allclose(found, 0.5 * expected + 0.5 * first)


def test_cross_entropy_of_huge_logits_is_finite():
    np.testing.assert_array_equal(cross_entropy(jnp.array([[1e30, 0.0]]), np.array([0])), [0.0])


def test_squared_error_is_half_the_squares_summed_over_outputs(x64):
    p, t = RNG.normal(size=(4, 2, 3)), RNG.normal(size=(4, 2, 3))
    expected = 0.5 * ((p - t) ** 2).sum((1, 2))
    np.testing.assert_allclose(squared_error(jnp.asarray(p), t), expected)
    np.testing.assert_allclose(
        squared_error(jnp.asarray(p[:, 0, :1]), t[:, 0, 0]),
        0.5 * (p[:, 0, 0] - t[:, 0, 0]) ** 2,
    )


@pytest.mark.parametrize("targets", [np.zeros((3, 1)), np.zeros(2), np.zeros((3, 2, 1))])
def test_a_squared_error_that_would_broadcast_is_refused(targets):
    with pytest.raises(ValueError, match=r"shape of the predictions, \(3,\); got"):
        squared_error(jnp.zeros(3), targets)


@pytest.mark.parametrize("targets", [np.zeros(3), np.zeros((3, 2), int), np.zeros((3, 1), int)])
def test_targets_that_are_neither_labels_nor_soft_are_refused(targets):
    with pytest.raises(ValueError, match=r"labels of shape \(3,\) or soft targets .floats. of"):
        cross_entropy(jnp.zeros((3, 2)), targets)


# Refusals


@pytest.mark.parametrize(
    "example_loss, shape",
    [
        (lambda p, t: jnp.mean((p - t) ** 2), r"\(\)"),
        (lambda p, t: (p[:, None] - t[None, :]) ** 2, r"\(12, 12\)"),
        (lambda p, t: jnp.ones((12, 1)), r"\(12, 1\)"),
    ],
)
def test_an_example_loss_must_give_one_number_per_example(example_loss, shape):
    loss_fn = regularized_loss(linear, example_loss)
    words = rf"`example_loss` returned shape {shape}; expected one loss per example, shape \(12,\)"
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(loss_fn, {"w": jnp.ones(3)}, regression())


def test_weights_that_do_not_fit_the_inputs_are_refused():
    batch = regression()._replace(weights=np.ones(5))
    with pytest.raises(ValueError, match=r"`weights` of shape \(5,\) do not fit .* \(12, 3\)"):
        regularized_loss(linear, squared_error)({"w": jnp.ones(3)}, batch)


def test_an_unknown_normalisation_is_refused_when_the_loss_is_built():
    with pytest.raises(ValueError, match="`normalize` must be one of weights, count; got 'mean'"):
        regularized_loss(linear, squared_error, normalize="mean")


def test_the_loss_fits_optax_value_and_grad_conventions(x64):
    """`has_aux`, and params of any tree: a bare array as well."""
    loss_fn = regularized_loss(lambda w, x: x @ w, squared_error)
    batch = regression()
    (_, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(jnp.zeros(3), batch)
    updates, _ = optax.sgd(1.0).update(grads, optax.sgd(1.0).init(jnp.zeros(3)))
    np.testing.assert_allclose(updates, batch.inputs.T @ batch.targets / 12)
    assert aux.model_state is None
