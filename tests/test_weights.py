"""Weights on examples: their formulas, the laws that make dividing by their sum right, refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wdjax.losses import cross_entropy, regularized_loss, squared_error
from wdjax.penalties import l2_penalty
from wdjax.recipe import Recipe, build_run
from wdjax.selection.cross_validation import cross_validate
from wdjax.selection.folds import kfold
from wdjax.selection.grids import grid_product
from wdjax.step import init_state
from wdjax.training import is_correct, make_fit, make_score
from wdjax.types import Batch, Fit, Model
from wdjax.weights import (
    augment_strength,
    by_label,
    class_balanced_weights,
    confidence,
    example_loss_of,
    focal_loss,
    focal_weight,
    importance_weights,
    learned_weights,
    margin,
    sigmoid_example_weight,
    sigmoid_weight,
)

LINEAR = lambda params, x: x @ params


def a_batch(seed=0, rows=6, features=3):
    r = np.random.default_rng(seed)
    x, y = r.normal(size=(rows, features)), r.normal(size=rows)
    return Batch(x, y, r.uniform(0.2, 2.0, rows)), r.normal(size=features)


def test_sigmoid_weight_is_its_formula_and_so_is_its_derivative_in_the_slope(x64):
    x = np.linspace(-3, 3, 7)
    w = 1 / (1 + np.exp(-1.7 * x))
    np.testing.assert_allclose(sigmoid_weight(x, 1.7), w, rtol=1e-12)
    slope_derivative = jax.vmap(jax.grad(sigmoid_weight, 1), (0, None))(x, 1.7)
    np.testing.assert_allclose(slope_derivative, x * w * (1 - w), rtol=1e-10, atol=1e-12)


def test_sigmoid_weight_at_slope_zero_is_half_and_at_large_slopes_a_step():
    x = np.array([-2.0, -1e-3, 1e-3, 2.0])
    np.testing.assert_array_equal(sigmoid_weight(x, 0.0), np.full(4, 0.5))
    np.testing.assert_allclose(sigmoid_weight(x, 1e30), [0, 0, 1, 1], atol=1e-30)
    np.testing.assert_allclose(sigmoid_weight(x, -1e30), [1, 1, 0, 0], atol=1e-30)


@pytest.mark.parametrize("slope", [np.nan, np.inf, "2", np.ones(2)])
def test_a_slope_that_is_no_finite_number_is_refused(slope):
    with pytest.raises((ValueError, TypeError), match="slope"):
        sigmoid_weight(np.ones(2), slope)


def test_features_are_their_formulas(x64):
    logits = jnp.array([[2.0, 0.0, -1.0], [0.5, 1.0, 3.0]])
    batch = Batch(np.zeros((2, 1)), np.array([0, 1]), np.ones(2))
    strength = jnp.array([0.1, 0.9])
    np.testing.assert_allclose(margin(logits, batch, strength), [2.0, -2.0])
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(confidence(logits, batch, strength), p.max(1))
    np.testing.assert_array_equal(augment_strength(logits, batch, strength), strength)
    by_loss = sigmoid_example_weight(example_loss_of(cross_entropy), -2.0)
    losses = -np.log(p[[0, 1], [0, 1]])
    expected = 1 / (1 + np.exp(2 * losses))
    np.testing.assert_allclose(by_loss(logits, batch, strength), expected)


def test_class_balanced_weights_are_those_of_cui_and_have_mean_one(x64):
    counts, beta = np.array([5, 50, 500]), 0.99
    raw = (1 - beta) / (1 - beta**counts)
    np.testing.assert_allclose(
        class_balanced_weights(counts, beta), raw * 3 / raw.sum(), rtol=1e-12
    )
    np.testing.assert_array_equal(class_balanced_weights(counts, 0.0), np.ones(3))
    near_one = class_balanced_weights(counts, 1 - 1e-9)
    np.testing.assert_allclose(near_one, (1 / counts) / np.mean(1 / counts), rtol=1e-6)


def test_class_balanced_weights_keep_their_digits_in_float32():
    """1 - 0.9999^2 in float32 has lost four digits; its logarithm has not."""
    counts, beta = np.array([1, 2, 3]), 1 - 2.0**-13
    raw = 1 / (1 - beta ** counts.astype(np.float64))
    np.testing.assert_allclose(class_balanced_weights(counts, beta), raw / raw.mean(), rtol=5e-6)


def test_class_balanced_weights_have_a_limit_where_float32_has_no_beta_below_one():
    """w_c proportional to 1 / (1 - beta^{n_c}), in float64; traced, 1 - 1e-8 is 1 in float32, and
    the limit is 1 / n_c."""
    counts, beta = np.array([1e6, 10]), 0.99999999
    raw = 1 / -np.expm1(counts * np.log(beta))
    np.testing.assert_allclose(class_balanced_weights(counts, beta), raw / raw.mean(), rtol=1e-6)
    limit = (1 / counts) / np.mean(1 / counts)
    found = jax.jit(lambda beta: class_balanced_weights(counts, beta))(beta)
    np.testing.assert_allclose(found, limit, rtol=1e-6)


@pytest.mark.parametrize("counts", [[3, 0, 5], [3, np.nan], [[3, 4]]])
def test_a_class_without_an_example_cannot_be_balanced(counts):
    with pytest.raises(ValueError, match="counts"):
        class_balanced_weights(np.array(counts), 0.9)


def test_the_refusal_names_the_empty_class():
    with pytest.raises(ValueError, match="class 1 has 0 examples"):
        class_balanced_weights(np.array([3, 0, 5]), 0.9)
    with pytest.raises(ValueError, match="`beta` must be below 1"):
        class_balanced_weights(np.array([3, 5]), 1.0)


def test_weights_by_label_pick_each_examples_class():
    batch = Batch(np.zeros((3, 1)), np.array([2, 0, 2]), np.ones(3))
    weigh = by_label(np.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(weigh(jnp.zeros((3, 3)), batch, jnp.zeros(3)), [3, 1, 3])
    with pytest.raises(ValueError, match="one weight per label"):
        weigh(jnp.zeros((3, 4)), batch, jnp.zeros(3))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_of_two_logits_is_that_of_optax(gamma, x64):
    z, y, alpha = np.array([-30.0, -2.0, 0.0, 1.5, 20.0]), np.array([0, 1, 1, 0, 1]), 0.25
    logits = jnp.stack([jnp.zeros(5), jnp.asarray(z)], axis=-1)
    expected = optax.losses.sigmoid_focal_loss(z, y, alpha=alpha, gamma=gamma)
    loss = focal_loss(gamma, np.array([1 - alpha, alpha]))
    # From log-sums, a loss of 1e-14 keeps no digits relative to itself, only to 1.
    np.testing.assert_allclose(loss(logits, y), expected, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(
        jax.grad(lambda z: loss(jnp.stack([jnp.zeros(5), z], -1), y).sum())(jnp.asarray(z)),
        jax.grad(lambda z: optax.losses.sigmoid_focal_loss(z, y, alpha=alpha, gamma=gamma).sum())(
            jnp.asarray(z)
        ),
        rtol=1e-8,
        atol=1e-15,
    )


def test_the_focal_weight_times_cross_entropy_is_the_focal_loss(x64):
    logits, y = jnp.array([[2.0, 0.0, -1.0], [0.5, 1.0, 3.0]]), np.array([0, 1])
    weights = focal_weight(2.0)(logits, Batch(logits, y, np.ones(2)), jnp.zeros(2))
    p = np.exp(logits)[[0, 1], [0, 1]] / np.exp(logits).sum(1)
    np.testing.assert_allclose(weights, (1 - p) ** 2)
    np.testing.assert_allclose(weights * cross_entropy(logits, y), focal_loss(2.0)(logits, y))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_takes_labels_that_a_model_excludes(gamma, x64):
    """Logits of -inf: p of those labels is 0, and where no other is left p_y is 1. In p,
    dl/dp_y = gamma (1 - p)^{gamma - 1} log p - (1 - p)^gamma / p, dp_y/dz_k = p_y (1[k = y] - p_k),
    with (1 - p)^gamma log p = 0 at p = 1."""
    z, y = np.array([[2.0, -np.inf, 0.0], [1.0, -np.inf, -np.inf]]), np.array([0, 0])
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    slope = (
        gamma * (1 - p[0, 0]) ** (gamma - 1) * np.log(p[0, 0]) - (1 - p[0, 0]) ** gamma / p[0, 0]
    )
    gradient = [slope * p[0, 0] * (np.array([1, 0, 0]) - p[0]), np.zeros(3)]
    losses = focal_loss(gamma)(jnp.asarray(z), y)
    np.testing.assert_allclose(losses, [-((1 - p[0, 0]) ** gamma) * np.log(p[0, 0]), 0], rtol=1e-12)
    found = jax.jit(jax.grad(lambda z: jnp.sum(focal_loss(gamma)(z, y))))(jnp.asarray(z))
    np.testing.assert_allclose(found, gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("weigh", [margin, focal_weight(1.0), by_label(np.ones(3))])
def test_soft_targets_are_refused_where_hard_labels_are_needed(weigh):
    batch = Batch(np.zeros((2, 1)), np.full((2, 3), 1 / 3), np.ones(2))
    with pytest.raises(ValueError, match="needs hard labels.*For soft targets"):
        weigh(jnp.zeros((2, 3)), batch, jnp.zeros(2))


def test_one_label_has_no_margin():
    batch = Batch(np.zeros((2, 1)), np.zeros(2, int), np.ones(2))
    with pytest.raises(ValueError, match="two or more labels"):
        margin(jnp.zeros((2, 1)), batch, jnp.zeros(2))


def test_importance_weights_are_self_normalised(x64):
    log_ratio = np.array([0.0, 1.0, -np.inf, 2.0])
    ratio = np.exp(log_ratio)
    expected = ratio / ratio.mean()
    np.testing.assert_allclose(importance_weights(log_ratio), expected, rtol=1e-12)
    np.testing.assert_allclose(importance_weights(log_ratio + 5000), expected, rtol=1e-9)
    with pytest.raises(ValueError, match="no NaN"):
        importance_weights(np.array([0.0, np.nan]))
    with pytest.raises(ValueError, match="one number per example"):
        importance_weights(np.zeros((2, 2)))


def test_learned_weights_are_the_derivative_through_one_step_of_descent(x64):
    """Written out as in Ren et al., a step taken and differentiated, they are the same."""
    batch, w = a_batch(0)
    clean, _ = a_batch(1)
    params = jnp.asarray(w)

    def clean_loss_after_a_step(e):
        weighted = lambda theta: jnp.sum(
            e * squared_error(LINEAR(theta, batch.inputs), batch.targets)
        )
        after = params - 0.1 * jax.grad(weighted)(params)
        return regularized_loss(LINEAR, squared_error)(after, clean)[0]

    u = np.maximum(0, -np.asarray(jax.grad(clean_loss_after_a_step)(jnp.zeros(6))))
    weights = learned_weights(LINEAR, squared_error, params, batch, clean)
    assert 0 < np.count_nonzero(u) < 6  # the batch has rows that help and rows that harm
    np.testing.assert_allclose(weights, u / u.sum(), rtol=1e-10)


def test_learned_weights_leave_out_what_harms_and_what_does_not_count(x64):
    """A row with the opposite target has the opposite gradient."""
    x, params = np.array([[1.0], [1.0], [1.0]]), jnp.zeros(1)
    batch = Batch(x, np.array([1.0, -1.0, np.nan]), np.array([1.0, 1.0, 0.0]))
    clean = Batch(x[:1], np.ones(1), np.ones(1))
    weights = learned_weights(LINEAR, squared_error, params, batch, clean)
    np.testing.assert_array_equal(weights, [1.0, 0.0, 0.0])
    only_harm = batch._replace(weights=np.array([0.0, 1.0, 0.0]))
    nothing = learned_weights(LINEAR, squared_error, params, only_harm, clean)
    np.testing.assert_array_equal(nothing, np.zeros(3))


def test_learned_weights_find_the_wrong_labels():
    """A quarter of the targets have their sign turned: they get a small share of the weight."""
    r = np.random.default_rng(0)
    truth, x = r.normal(size=4), r.normal(size=(200, 4))
    wrong = np.arange(200) < 50
    y = np.where(wrong, -1, 1) * (x @ truth)
    batch = Batch(x, y, np.ones(200))
    clean = Batch(x[100:120], y[100:120], np.ones(20))
    weights = np.asarray(learned_weights(LINEAR, squared_error, jnp.zeros(4), batch, clean))
    assert weights[wrong].sum() < 0.05


# The laws.


def test_an_integer_weight_equals_a_repeated_row_in_value_and_gradient(x64):
    batch, w = a_batch()
    times = np.array([1, 3, 0, 2, 1, 4])
    repeated = Batch(*(np.repeat(leaf, times, axis=0) for leaf in batch[:2]), np.ones(times.sum()))
    loss_fn = regularized_loss(LINEAR, squared_error, l2_penalty(0.3))
    of = lambda batch: jax.value_and_grad(loss_fn, has_aux=True)(jnp.asarray(w), batch)
    (weighted, _), grad = of(batch._replace(weights=times.astype(float)))
    (expected, _), expected_grad = of(repeated)
    np.testing.assert_allclose(weighted, expected, rtol=1e-12)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-12)


def test_accumulating_gradients_by_their_denominators_does_not_depend_on_the_split(x64):
    batch, w = a_batch()
    loss_fn = regularized_loss(LINEAR, squared_error)
    grad = jax.grad(loss_fn, has_aux=True)
    whole, _ = grad(jnp.asarray(w), batch)
    for cut in (1, 2, 5):
        pieces = [Batch(*(x[part] for x in batch)) for part in (slice(cut), slice(cut, None))]
        grads, auxes = zip(*(grad(jnp.asarray(w), piece) for piece in pieces), strict=True)
        shares = [aux.denominator for aux in auxes]
        mean = sum(s * g for s, g in zip(shares, grads, strict=True)) / sum(shares)
        np.testing.assert_allclose(mean, whole, rtol=1e-12)


def test_weighted_ridge_is_its_normal_equations(x64):
    """(X' S X / sum s + lam I)^-1 X' S y / sum s makes the gradient vanish."""
    batch, _ = a_batch(rows=20)
    x, y, s = batch
    lam = 0.3
    solution = np.linalg.solve(
        x.T @ (s[:, None] * x) / s.sum() + lam * np.eye(3), x.T @ (s * y) / s.sum()
    )
    loss_fn = regularized_loss(LINEAR, squared_error, l2_penalty(lam))
    gradient, _ = jax.grad(loss_fn, has_aux=True)(jnp.asarray(solution), batch)
    np.testing.assert_allclose(gradient, np.zeros(3), atol=1e-12)


def test_weights_all_zero_give_a_data_loss_of_zero_and_no_gradient():
    batch, w = a_batch()
    batch = batch._replace(weights=np.zeros(6, np.float32))
    loss_fn = regularized_loss(LINEAR, squared_error, l2_penalty(0.5))
    (loss, aux), grad = jax.value_and_grad(loss_fn, has_aux=True)(jnp.asarray(w), batch)
    assert aux.data_loss == 0 and loss == aux.penalty
    np.testing.assert_allclose(grad, 0.5 * w, rtol=1e-6)


def test_a_nan_in_a_row_of_weight_zero_changes_nothing():
    batch, w = a_batch()
    weights = np.array([1.0, 0.0, 2.0, 1.0, 0.0, 1.0])
    spoilt_x, spoilt_y = batch.inputs.copy(), batch.targets.copy()
    spoilt_x[1], spoilt_y[4] = np.nan, np.nan
    loss_fn = jax.value_and_grad(regularized_loss(LINEAR, squared_error), has_aux=True)
    clean = loss_fn(jnp.asarray(w), batch._replace(weights=weights))
    spoilt = loss_fn(jnp.asarray(w), Batch(spoilt_x, spoilt_y, weights))
    jax.tree.map(np.testing.assert_array_equal, clean, spoilt)


def test_on_several_devices_the_denominator_is_the_sum_over_all_of_them():
    """Uneven weights: 5 on one device, 0.5 on the other; a mean of means would be far off."""
    batch, w = a_batch(rows=4)
    batch = jax.tree.map(jnp.asarray, batch._replace(weights=np.array([4.0, 1.0, 0.5, 0.0])))
    from wdjax.step import make_train_step

    tx = optax.sgd(0.1)
    step = make_train_step(regularized_loss(LINEAR, squared_error, l2_penalty(0.2)), tx)
    state = init_state(jnp.asarray(w, jnp.float32), tx)
    alone, metrics = jax.jit(step)(state, batch)
    mesh = jax.make_mesh((2,), ("device",), axis_types=(jax.sharding.AxisType.Auto,))
    P = jax.sharding.PartitionSpec
    shared = jax.jit(
        jax.shard_map(
            lambda state, batch: step(state, batch, axis_name="device"),
            mesh=mesh,
            in_specs=(P(), P("device")),
            out_specs=P(),
            check_vma=False,
        )
    )
    together, shared_metrics = shared(state, batch)
    np.testing.assert_allclose(together.params, alone.params, rtol=1e-5)
    np.testing.assert_allclose(shared_metrics["denominator"], 5.5)
    np.testing.assert_allclose(shared_metrics["data_loss"], metrics["data_loss"], rtol=1e-6)


# Inside a run.

TINY = Model(
    lambda key, inputs: (0.1 * jax.random.normal(key, (2, 2)), {}),
    lambda params, state, inputs, *, key, train: (inputs @ params, state),
)


def labelled(seed=0, rows=12):
    r = np.random.default_rng(seed)
    x = r.normal(size=(rows, 2))
    return Batch(x, (x[:, 0] > 0).astype(int), np.ones(rows))


def a_fit(feature, example_loss=cross_entropy):
    return make_fit(
        TINY,
        example_loss,
        make_tx=lambda h: optax.sgd(0.3),
        num_epochs=2,
        batch_size=4,
        make_example_weight=lambda h: sigmoid_example_weight(feature, h["slope"]),
    )


def test_at_slope_zero_a_run_is_the_unweighted_run(key, x64):
    plain = make_fit(
        TINY, cross_entropy, make_tx=lambda h: optax.sgd(0.3), num_epochs=2, batch_size=4
    )
    weighted = a_fit(margin)({"slope": 0.0}, labelled(), key)
    np.testing.assert_allclose(weighted.params, plain({}, labelled(), key).params, rtol=1e-12)


@pytest.mark.parametrize("feature", [margin, confidence, example_loss_of(cross_entropy)])
def test_the_derivative_of_a_run_in_the_slope_is_the_difference_quotient(feature, key, x64):
    fit = a_fit(feature)
    of_slope = lambda slope: jnp.sum(fit({"slope": slope}, labelled(), key).params ** 2)
    derivative = jax.jit(jax.grad(of_slope))(1.0)
    value, h = jax.jit(of_slope), 1e-5
    quotient = (value(1.0 + h) - value(1.0 - h)) / (2 * h)
    assert abs(derivative) > 1e-6
    np.testing.assert_allclose(derivative, quotient, rtol=1e-5)


def test_a_step_takes_the_weights_as_constants(key, x64):
    """One step of SGD by hand, the weights computed before the gradient is taken."""
    train, slope = labelled(rows=4), 1.5
    fit = make_fit(
        TINY,
        cross_entropy,
        make_tx=lambda h: optax.sgd(0.3),
        num_epochs=1,
        batch_size=4,
        make_example_weight=lambda h: sigmoid_example_weight(margin, slope),
    )
    params, _ = TINY.init(jax.random.split(key, 4)[0], train.inputs)
    weights = np.asarray(sigmoid_weight(margin(train.inputs @ params, train, jnp.zeros(4)), slope))

    def loss(params):
        losses = cross_entropy(train.inputs @ params, train.targets)
        return jnp.sum(weights * losses) / weights.sum()

    expected = params - 0.3 * jax.grad(loss)(params)
    np.testing.assert_allclose(fit({}, train, key).params, expected, rtol=1e-12)


def test_an_array_of_the_users_own_is_a_feature_too(key):
    """It travels with the inputs; the model reads the rest of them."""
    train = labelled()
    quality = np.linspace(-1, 1, 12)
    train = train._replace(inputs={"x": train.inputs, "quality": quality})
    model = Model(
        lambda key, inputs: TINY.init(key, inputs["x"]),
        lambda params, state, inputs, **how: TINY.apply(params, state, inputs["x"], **how),
    )
    fit = make_fit(
        model,
        cross_entropy,
        make_tx=lambda h: optax.sgd(0.3),
        num_epochs=1,
        batch_size=6,
        make_example_weight=lambda h: sigmoid_example_weight(
            lambda outputs, batch, strength: batch.inputs["quality"], h["slope"]
        ),
    )
    flat, steep = (fit({"slope": s}, train, key).params for s in (0.0, 5.0))
    assert not np.allclose(flat, steep)


# Rows of weight 0, and sums, inside a run.

NORMALISED = Model(
    lambda key, inputs: (jax.random.normal(key, (2, 2)), {}),
    lambda params, state, inputs, *, key, train: (
        inputs @ params / jnp.linalg.norm(inputs @ params, axis=-1, keepdims=True),
        state,
    ),
)


def with_rows_that_do_not_count(data, rows):
    """The data with as many rows of NaN and of labels beyond all classes, of weight 0, between."""
    at = np.sort(np.random.default_rng(1).integers(0, len(data.weights), rows))
    spoilt = [np.nan, 99, 0.0]
    return Batch(*(np.insert(leaf, at, no, axis=0) for leaf, no in zip(data, spoilt, strict=True)))


@pytest.mark.parametrize("weighed", [False, True])
def test_a_run_of_a_singular_model_and_its_derivative_are_those_without_the_rows_of_weight_zero(
    weighed, key, x64
):
    """In whole batches, whose order does not matter; forward and reverse, in decay and slope."""
    data = labelled()

    def end(h, train):
        fit = make_fit(
            NORMALISED,
            cross_entropy,
            make_tx=lambda h: optax.sgd(0.3),
            num_epochs=3,
            batch_size=len(train.weights),
            make_penalty=lambda h: l2_penalty(h["strength"]),
            make_example_weight=(lambda h: sigmoid_example_weight(margin, h["slope"]))
            if weighed
            else None,
        )
        return fit(h, train, key).params

    more = with_rows_that_do_not_count(data, 5)
    h = {"strength": 0.2, "slope": 1.5}
    results = []
    for train in (data, more):
        both = lambda h, train: (
            end(h, train),
            jax.jacfwd(end)(h, train),
            jax.grad(lambda h: jnp.sum(end(h, train) ** 2))(h),
        )
        results.append(jax.jit(both)(h, train))
    assert abs(results[0][2]["strength"]) > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), *results)


def test_batches_without_an_active_row_only_decay_in_a_run(key, x64):
    """One row of eight counts, in batches of four: an epoch has a batch with it and one without, in
    either order. Every step takes (1 - eta lam) of the weights, one the gradient of the row; the
    inputs of the others are infinite."""
    data = labelled(rows=8)
    weights = np.zeros(8)
    weights[5] = 2.0
    spoilt = np.where(weights[:, None] > 0, data.inputs, np.inf)
    fit = make_fit(
        NORMALISED,
        cross_entropy,
        make_tx=lambda h: optax.sgd(0.3),
        make_penalty=lambda h: l2_penalty(h["strength"]),
        num_epochs=1,
        batch_size=4,
    )
    found = jax.jit(fit)({"strength": 0.2}, Batch(spoilt, data.targets, weights), key)
    w, _ = NORMALISED.init(jax.random.split(key, 4)[0], data.inputs)
    x, y = data.inputs[5], int(data.targets[5])

    def gradient(w):
        h = x @ w
        p = np.exp(h / np.linalg.norm(h))
        inner = p / p.sum() - np.eye(2)[y]
        u = h / np.linalg.norm(h)
        return np.outer(x, (inner - u * (u @ inner)) / np.linalg.norm(h))

    w, left = np.asarray(w), 1 - 0.3 * 0.2
    first = left * (left * w - 0.3 * gradient(w))
    last = left * (left * w) - 0.3 * gradient(left * w)
    assert min(np.abs(np.asarray(found.params) - end).max() for end in (first, last)) < 1e-12
    assert np.abs(first - last).max() > 1e-3


def test_the_recipes_step_weighs_examples_without_seeing_rows_of_weight_zero(key):
    """By the model's own outputs; the same step from the rows that count alone."""
    recipe = Recipe(num_outputs=2, example_feature="margin", optimizer="sgd", num_epochs=1)
    data = jax.tree.map(lambda leaf: np.asarray(leaf, jnp.result_type(leaf)), labelled(rows=6))
    hparams = {"strength": 0.1, "learning_rate": 0.1, "example_slope": 2.0}
    run = build_run(recipe, data.inputs, num_steps=10)
    step = functools.partial(run.step, hparams)
    state = run.init(hparams, data.inputs, key)
    more = jax.tree.map(
        lambda leaf, like: leaf.astype(like.dtype), with_rows_that_do_not_count(data, 2), data
    )
    (found, metrics), (expected, alone) = (jax.jit(step)(state, batch) for batch in (more, data))
    np.testing.assert_allclose(metrics["denominator"], alone["denominator"], rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        found.params,
        expected.params,
    )


def test_scores_in_float16_are_the_mean_of_70001_rows():
    """Their number is beyond float16. In blocks and at once; a third of them right."""
    model = Model(None, lambda params, state, inputs, *, key, train: (inputs, state))
    right = np.arange(70_001) % 3 == 0
    logits = np.stack([right, ~right], axis=1).astype(np.float16)
    data = Batch(logits, np.zeros(70_001, np.int32), np.ones(70_001, np.float16))
    loss = np.log1p(np.exp(np.where(right, -1.0, 1.0))).mean()
    for batch_size in (None, 1000):
        score = make_score(model, batch_size=batch_size, loss=cross_entropy, accuracy=is_correct)
        found = jax.jit(score)(Fit({}, {}, {}), data)
        np.testing.assert_allclose(found["accuracy"], right.mean(), rtol=1e-5)
        np.testing.assert_allclose(found["loss"], loss, rtol=1e-5)


def test_importance_weights_of_70001_rows_in_float16_have_mean_one():
    weights = importance_weights(jnp.zeros(70_001, jnp.float16))
    np.testing.assert_allclose(weights, np.ones(70_001), rtol=1e-5)


# Refusals.


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_a_weight_that_is_negative_or_not_finite_is_refused_with_its_row(bad):
    batch, w = a_batch()
    weights = np.ones(6)
    weights[4] = bad
    with pytest.raises(ValueError, match="finite and >= 0.*in row 4"):
        regularized_loss(LINEAR, squared_error)(jnp.asarray(w), batch._replace(weights=weights))


@pytest.mark.parametrize("bad", [-1.0, np.nan])
def test_a_bad_weight_inside_a_program_makes_the_loss_nan(bad, nans_allowed):
    batch, w = a_batch()
    weights = np.ones(6)
    weights[4] = bad
    loss_fn = jax.jit(regularized_loss(LINEAR, squared_error))
    loss, _ = loss_fn(jnp.asarray(w), batch._replace(weights=weights))
    assert np.isnan(loss)


def test_weights_of_another_shape_are_refused():
    batch, w = a_batch()
    with pytest.raises(ValueError, match="one weight per example"):
        regularized_loss(LINEAR, squared_error)(jnp.asarray(w), batch._replace(weights=np.ones(5)))


def test_weights_all_zero_over_an_epoch_are_refused(key):
    with pytest.raises(ValueError, match="all zero.*no example would count"):
        a_fit(margin)({"slope": 1.0}, labelled()._replace(weights=np.zeros(12)), key)
    folds = kfold(key, 12, 2)
    only_one_part = np.zeros(12)
    only_one_part[np.asarray(folds.train[0])] = 1.0
    data = labelled()._replace(weights=only_one_part)
    with pytest.raises(ValueError, match="all zero in the (training|held-out) part of fold"):
        cross_validate(
            lambda h, train, valid, key: 0.0, grid_product(slope=[0, 1]), data, folds, key=key
        )
