"""A whole run as one function: equal to a plain loop, differentiable, honest when it diverges."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wdjax.decay import decoupled_decay
from wdjax.losses import cross_entropy, regularized_loss, squared_error
from wdjax.models import dropout, from_linen, make_mlp
from wdjax.penalties import l2_penalty
from wdjax.step import init_state, make_train_step
from wdjax.training import (
    is_correct,
    make_fit,
    make_fit_and_score,
    make_score,
    nan_if_diverged,
    random_order,
    steps_per_epoch,
)
from wdjax.types import Batch, Fit, Model

RNG = np.random.default_rng(0)


def blobs(num_examples, num_features=3, num_classes=3, weights=None):
    y = RNG.integers(0, num_classes, num_examples)
    x = RNG.normal(size=(num_examples, num_features)) + np.eye(num_classes, num_features)[y]
    weights = np.ones(num_examples) if weights is None else weights
    return Batch(x.astype(np.float32), y.astype(np.int32), np.asarray(weights, np.float32))


def linear_model(num_features=3, num_outputs=3, zeros=False):
    def init(key, inputs):
        shape, dtype = (num_features, num_outputs), jnp.result_type(inputs)
        w = jnp.zeros(shape, dtype) if zeros else jax.random.normal(key, shape, dtype)
        return {"kernel": w}, {}

    def apply(params, model_state, inputs, *, key, train):
        return inputs @ params["kernel"], model_state

    return Model(init, apply)


class Noisy(nn.Module):
    """Batch statistics and dropout of a traced rate."""

    rate: float

    @nn.compact
    def __call__(self, inputs, train=False):
        x = nn.BatchNorm(not train, momentum=0.5)(inputs)
        x = dropout(self.make_rng("dropout"), x, self.rate) if train else x
        return nn.Dense(3)(x)


def sgd(hparams):
    learning_rate = hparams["learning_rate"]
    decay = decoupled_decay(hparams["strength"], learning_rate)
    return optax.chain(optax.sgd(learning_rate), decay)


def assert_close(found, expected, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), found, expected)


# A run is a loop


def test_a_run_equals_a_plain_loop_of_steps(key):
    """With batch statistics, dropout of a traced rate, a penalty, weights and a remainder."""
    train = blobs(11, weights=RNG.uniform(0, 2, 11))
    hparams = {"learning_rate": 0.1, "strength": 0.5, "rate": 0.3}
    model = lambda h: from_linen(Noisy(h["rate"]))
    fit = make_fit(
        model,
        cross_entropy,
        make_tx=sgd,
        num_epochs=3,
        batch_size=4,
        make_penalty=lambda h: l2_penalty(h["strength"]),
    )
    found = jax.jit(fit)(hparams, train, key)

    init_key, order_key, _, step_key = jax.random.split(key, 4)
    model, tx = model(hparams), sgd(hparams)
    step = jax.jit(make_train_step(regularized_loss(model, cross_entropy, l2_penalty(0.5)), tx))
    params, model_state = model.init(init_key, train.inputs[:4])
    state = init_state(params, tx, model_state=model_state, key=step_key)
    losses = []
    for epoch_key in jax.random.split(order_key, 3):
        order, sums = np.asarray(random_order(epoch_key, 11)), np.zeros(2)
        for rows in (order[:4], order[4:8]):
            state, metrics = step(state, jax.tree.map(lambda leaf, rows=rows: leaf[rows], train))
            sums += metrics["denominator"] * np.array([metrics["loss"], 1.0])
        losses.append(sums[0] / sums[1])
    assert_close(found[:2], (state.params, state.model_state), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.history["loss"], losses, rtol=1e-5)
    moved = found.model_state["batch_stats"]["BatchNorm_0"]["mean"]
    assert np.abs(moved).max() > 0.1


def test_what_observe_sees_is_stacked_and_changes_nothing(key):
    options = dict(make_tx=sgd, num_epochs=3, batch_size=4)
    hparams = {"learning_rate": 0.1, "strength": 0.5}
    seen = lambda fit: {"norm": optax.tree.norm(fit.params)}
    observed = make_fit(linear_model(), cross_entropy, observe=seen, **options)
    train = blobs(9)
    found = jax.jit(observed)(hparams, train, key)
    plain = jax.jit(make_fit(linear_model(), cross_entropy, **options))(hparams, train, key)
    assert found.history["observed"]["norm"].shape == (3,)
    np.testing.assert_allclose(found.history["observed"]["norm"][-1], optax.tree.norm(found.params))
    assert plain.history.keys() == {"loss", "data_loss", "penalty"}
    kept = {name: found.history[name] for name in plain.history}
    jax.tree.map(np.testing.assert_array_equal, (found.params, kept), (plain.params, plain.history))


def test_padding_a_fold_with_rows_of_weight_zero_does_not_enter_the_epochs_mean(key):
    """A batch without a counting row has no data loss, and no share in the history."""
    train = blobs(4, weights=[1.0, 1.0, 0.0, 0.0])
    fit = make_fit(
        linear_model(zeros=True),
        cross_entropy,
        make_tx=lambda h: optax.sgd(0.0),
        num_epochs=5,
        batch_size=1,
    )
    np.testing.assert_allclose(jax.jit(fit)({}, train, key).history["data_loss"], np.log(3), 1e-6)


# Numbers are traced


def test_a_vmap_over_numbers_equals_one_run_per_value(key):
    train = blobs(12)
    fit = make_fit(
        lambda h: make_mlp(3, widths=(4,), dropout=h["dropout"]),
        cross_entropy,
        make_tx=sgd,
        num_epochs=2,
        batch_size=4,
    )
    run = lambda rate, strength: (
        fit({"dropout": rate, "strength": strength, "learning_rate": 0.1}, train, key).params
    )
    rates, strengths = jnp.array([0.0, 0.3, 0.6]), jnp.array([0.0, 1.0, 2.0])
    found = jax.jit(jax.vmap(run))(rates, strengths)
    one = jax.jit(run)
    for i in range(3):
        picked = jax.tree.map(lambda leaf, i=i: leaf[i], found)
        assert_close(picked, one(rates[i], strengths[i]), rtol=1e-5, atol=1e-6)
    assert np.abs(found["head"]["kernel"][0] - found["head"]["kernel"][1]).max() > 1e-3


def adam_run(eps_root, key):
    """`validation loss(log strength, log learning rate)`; the third input column is dead."""
    train, valid = (blobs(8), blobs(6))
    train, valid = (
        part._replace(inputs=np.where(np.arange(3) == 2, 0.0, part.inputs).astype(np.float64))
        for part in (train, valid)
    )

    def make_tx(h):
        return optax.chain(
            optax.scale_by_adam(eps_root=eps_root),
            optax.scale_by_learning_rate(h["learning_rate"]),
            decoupled_decay(h["strength"], h["learning_rate"]),
        )

    model = make_mlp(3, widths=(4,))
    fit = make_fit(model, cross_entropy, make_tx=make_tx, num_epochs=3, batch_size=4)
    score = make_score(model, loss=cross_entropy)

    def validation_loss(log_strength, log_learning_rate):
        h = {"strength": jnp.exp(log_strength), "learning_rate": jnp.exp(log_learning_rate)}
        return score(fit(h, train, key), valid)["loss"]

    return validation_loss


def test_the_derivative_of_the_validation_loss_is_that_of_finite_differences(key, x64):
    """Forward, reverse, and central differences, in log strength and log learning rate."""
    run = adam_run(1e-12, key)
    at = (jnp.log(2.0), jnp.log(0.05))
    value, h = jax.jit(run), 1e-5
    reverse = jax.jit(jax.grad(run, argnums=(0, 1)))(*at)
    directions = ((1.0, 0.0), (0.0, 1.0))
    forward = jax.jit(lambda d: jax.jvp(run, at, d)[1])
    for number, direction in enumerate(directions):
        shifted = lambda size, d=direction: value(at[0] + size * d[0], at[1] + size * d[1])
        differences = (shifted(h) - shifted(-h)) / (2 * h)
        assert abs(differences) > 1e-3
        np.testing.assert_allclose(reverse[number], differences, rtol=1e-6)
        np.testing.assert_allclose(forward(direction), reverse[number], rtol=1e-10)


def test_without_eps_root_a_dead_column_makes_the_derivative_nan(key, x64, nans_allowed):
    """Why the docstring asks for it; when optax mends it, this test says so."""
    assert np.isnan(jax.jit(jax.grad(adam_run(0.0, key)))(jnp.log(2.0), jnp.log(0.05)))


def test_a_run_keeps_float32_in_64_bit_mode(key, x64):
    """Nothing here is a float64 constant: float32 data and numbers give float32 results."""
    hparams = {"learning_rate": jnp.float32(0.1), "strength": jnp.float32(0.5)}
    hparams["dropout"] = jnp.float32(0.1)
    model = lambda h: make_mlp(3, widths=(4,), dropout=h["dropout"])
    fit = make_fit(
        model,
        cross_entropy,
        make_tx=sgd,
        num_epochs=1,
        batch_size=4,
        make_penalty=lambda h: l2_penalty(h["strength"]),
        make_example_weight=lambda h: lambda outputs, batch, strength: 1.0 / (1.0 + strength),
        augment=lambda key, example: (example, jax.random.uniform(key, dtype=jnp.float32)),
    )
    score = make_score(model(hparams), loss=cross_entropy, accuracy=is_correct, batch_size=3)
    run = make_fit_and_score(fit, score)
    result = jax.eval_shape(fit, hparams, blobs(8), key)
    scores = jax.eval_shape(run, hparams, blobs(8), blobs(5), key)
    for path, leaf in jax.tree_util.tree_leaves_with_path((result, scores)):
        assert leaf.dtype == jnp.float32, path


def test_a_run_works_on_float64_numbers_and_float32_data(key, x64):
    """As `grid_product` gives them, in 64-bit mode: the params stay float32."""
    hparams = {"learning_rate": jnp.float64(0.1), "strength": jnp.float64(0.5)}
    fit = make_fit(
        linear_model(),
        cross_entropy,
        make_tx=lambda h: optax.chain(optax.scale_by_adam(), sgd(h)),
        num_epochs=1,
        batch_size=4,
        make_penalty=lambda h: l2_penalty(h["strength"]),
    )
    assert jax.eval_shape(fit, hparams, blobs(8), key).params["kernel"].dtype == jnp.float32


# Weights of examples and augmentation


def test_example_weights_multiply_the_batchs_and_are_constants_to_the_gradient(key, x64):
    """One full batch, one step: w_1 = w_0 - eta X'S(X w_0 - y) / sum s, s = weight(residual);
    the outputs the weights are made of do not add a gradient of their own."""
    x, y, given = RNG.normal(size=(6, 2)), RNG.normal(size=6), RNG.uniform(0.5, 1, 6)
    train = Batch(x, y, given)

    def make_weight(h):
        def weight(outputs, batch, strength):
            return jax.nn.sigmoid(h["slope"] * (outputs[:, 0] - batch.targets))

        return weight

    fit = make_fit(
        linear_model(2, 1),
        squared_error,
        make_tx=lambda h: optax.sgd(0.1),
        num_epochs=1,
        batch_size=6,
        make_example_weight=make_weight,
    )
    start = make_fit(
        linear_model(2, 1),
        squared_error,
        make_tx=lambda h: optax.sgd(0.0),
        num_epochs=1,
        batch_size=6,
    )({}, train, key).params["kernel"][:, 0]

    def by_hand(slope):
        residuals = x @ start - y
        s = given / (1 + np.exp(-slope * residuals))
        return start - 0.1 * x.T @ (s * residuals) / s.sum()

    run = jax.jit(lambda slope: fit({"slope": slope}, train, key).params["kernel"][:, 0])
    np.testing.assert_allclose(run(0.7), by_hand(0.7), rtol=1e-12)
    differences = (by_hand(0.7 + 1e-6) - by_hand(0.7 - 1e-6)) / 2e-6
    assert np.abs(differences).max() > 1e-3
    np.testing.assert_allclose(jax.jacfwd(run)(0.7), differences, rtol=1e-6)
    np.testing.assert_allclose(jax.jacrev(run)(0.7), differences, rtol=1e-6)


def test_the_weights_see_the_outputs_that_the_loss_sees(key):
    """The same dropout mask: weights that are 0 where a unit was dropped leave no gradient."""

    def init(key, inputs):
        return {"w": jnp.ones(1)}, {}

    def apply(params, model_state, inputs, *, key, train):
        return inputs * params["w"] * jax.random.bernoulli(key, 0.5, inputs.shape), model_state

    fit = make_fit(
        Model(init, apply),
        lambda outputs, targets: jnp.where(outputs == 0, 100.0, outputs),
        make_tx=lambda h: optax.sgd(0.0),
        num_epochs=3,
        batch_size=8,
        make_example_weight=lambda h: lambda outputs, batch, strength: 1.0 * (outputs != 0),
    )
    history = jax.jit(fit)({}, Batch(jnp.ones(8), jnp.ones(8), jnp.ones(8)), key).history
    assert np.all(history["data_loss"] <= 1.0)


def test_augmentation_is_drawn_anew_for_every_example_and_step(key):
    """Loss and weights see the augmented example and its strength."""

    def init(key, inputs):
        return {"w": jnp.zeros(4)}, {}

    def apply(params, model_state, inputs, *, key, train):
        return inputs, model_state

    draws = []

    def augment(key, example):
        assert example.shape == ()
        strength = jax.random.uniform(key)
        return example + strength, strength

    def weight(outputs, batch, strength):
        assert strength.shape == (4,)
        jax.debug.callback(lambda *seen: draws.append(seen), outputs, batch.inputs, strength)
        return strength

    fit = make_fit(
        Model(init, apply),
        lambda outputs, targets: outputs,
        make_tx=lambda h: optax.sgd(1.0),
        num_epochs=2,
        batch_size=4,
        make_example_weight=lambda h: weight,
        augment=augment,
    )
    result = jax.jit(fit)({}, Batch(jnp.zeros(8), jnp.zeros(8), jnp.ones(8)), key)
    jax.block_until_ready(result)
    jax.effects_barrier()
    outputs, inputs, strengths = map(np.stack, zip(*draws, strict=True))
    assert strengths.shape == (4, 4)
    np.testing.assert_array_equal(outputs, inputs)
    np.testing.assert_array_equal(inputs, strengths)
    assert len(np.unique(strengths)) == 16
    expected = (strengths**2).sum(axis=1) / strengths.sum(axis=1)
    epochs = result.history["data_loss"] * strengths.reshape(2, 8).sum(axis=1)
    shares = strengths.sum(axis=1)
    np.testing.assert_allclose(epochs, (expected * shares).reshape(2, 2).sum(axis=1), rtol=1e-5)


def test_part_weights_freeze_a_part_of_the_run(key):
    model = make_mlp(3, widths=(4,))
    options = dict(make_tx=lambda h: optax.sgd(0.1), num_epochs=1, batch_size=4)
    frozen = make_fit(model, cross_entropy, part_weights={"hidden1/*": 0.0, "*": 1.0}, **options)
    train = blobs(8)
    found = jax.jit(frozen)({}, train, key).params
    start, _ = model.init(jax.random.split(key, 4)[0], train.inputs[:4])
    jax.tree.map(np.testing.assert_array_equal, found["hidden1"], start["hidden1"])
    assert np.any(found["head"]["kernel"] != start["head"]["kernel"])


# Scores


def test_a_score_is_the_weighted_mean_whole_or_in_blocks(x64):
    """The last block is filled up with rows of weight 0; a NaN row of weight 0 counts nothing."""
    batch = blobs(7, weights=[1, 2, 0, 1, 0.5, 1, 3])
    batch.inputs[2] = np.nan
    model, w = linear_model(), RNG.normal(size=(3, 3))
    fit = Fit({"kernel": jnp.asarray(w)}, {}, {})
    kept = np.delete(np.arange(7), 2)
    logits, y, s = batch.inputs[kept] @ w, batch.targets[kept], batch.weights[kept]
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(6), y]
    for batch_size in (None, 1, 3, 7, 100):
        score = make_score(model, batch_size=batch_size, loss=cross_entropy, accuracy=is_correct)
        found = jax.jit(score)(fit, batch)
        np.testing.assert_allclose(found["loss"], s @ losses / s.sum())
        np.testing.assert_allclose(found["accuracy"], s @ (logits.argmax(1) == y) / s.sum())
        nothing = jax.jit(score)(fit, batch._replace(weights=np.zeros(7)))
        assert nothing == {"loss": 0.0, "accuracy": 0.0}


def test_scores_are_taken_without_dropout_and_with_kept_statistics(key):
    model = from_linen(Noisy(0.9))
    batch = blobs(6)
    params, state = model.init(key, batch.inputs)
    found = make_score(model, loss=cross_entropy)(Fit(params, state, {}), batch)["loss"]
    outputs, _ = model.apply(params, state, batch.inputs, key=None, train=False)
    np.testing.assert_allclose(found, cross_entropy(outputs, batch.targets).mean(), rtol=1e-6)


def test_is_correct_takes_labels_and_soft_targets():
    logits = jnp.array([[1.0, 2.0], [3.0, 0.0]])
    np.testing.assert_array_equal(is_correct(logits, jnp.array([1, 1])), [1.0, 0.0])
    soft = jnp.array([[0.1, 0.9], [0.2, 0.8]])
    np.testing.assert_array_equal(is_correct(logits, soft), [1.0, 0.0])


def test_fit_and_score_measures_both_parts(key):
    train, valid = blobs(8), blobs(6)
    fit = make_fit(linear_model(), cross_entropy, make_tx=sgd, num_epochs=1, batch_size=4)
    score = make_score(linear_model(), loss=cross_entropy)
    hparams = {"learning_rate": 0.1, "strength": 0.5}
    found = jax.jit(make_fit_and_score(fit, score))(hparams, train, valid, key)
    result = jax.jit(fit)(hparams, train, key)
    np.testing.assert_allclose(found["loss"], score(result, valid)["loss"], rtol=1e-6)
    np.testing.assert_allclose(found["train_loss"], score(result, train)["loss"], rtol=1e-6)
    scalar = make_fit_and_score(fit, lambda fit, batch: score(fit, batch)["loss"])
    np.testing.assert_allclose(jax.jit(scalar)(hparams, train, valid, key), found["loss"])


def test_a_run_that_diverges_is_nan_in_every_score(key, nans_allowed):
    """Accuracy too: NaN logits would otherwise count as class 0."""
    fit = make_fit(linear_model(), cross_entropy, make_tx=sgd, num_epochs=2, batch_size=4)
    score = make_score(linear_model(), loss=cross_entropy, accuracy=is_correct)
    run = jax.jit(make_fit_and_score(fit, score))
    fine = run({"learning_rate": 0.1, "strength": 0.0}, blobs(8), blobs(6), key)
    lost = run({"learning_rate": np.inf, "strength": 0.0}, blobs(8), blobs(6), key)
    assert fine.keys() == lost.keys() == {"loss", "accuracy", "train_loss", "train_accuracy"}
    assert all(np.isfinite(value) for value in fine.values())
    assert all(np.isnan(value) for value in lost.values())


def test_infinite_params_are_a_divergence_even_if_the_scores_are_finite(nans_allowed):
    found = nan_if_diverged({"loss": jnp.array(1.0)}, {"w": jnp.array([1.0, jnp.inf])})
    assert np.isnan(found["loss"])
    kept = nan_if_diverged({"loss": jnp.array(1.0)}, {"w": jnp.ones(2), "n": jnp.arange(2)})
    assert kept["loss"] == 1.0


# Refusals


@pytest.mark.parametrize(
    "options, words",
    [
        ({"num_epochs": 0}, "`num_epochs` must be >= 1, got num_epochs=0"),
        ({"batch_size": 0}, "`batch_size` must be >= 1, got batch_size=0"),
    ],
)
def test_a_run_without_epochs_or_examples_is_refused_when_it_is_built(options, words):
    sizes = {"num_epochs": 1, "batch_size": 4} | options
    with pytest.raises(ValueError, match=words):
        make_fit(linear_model(), cross_entropy, make_tx=sgd, **sizes)


def test_a_batch_larger_than_the_training_part_is_refused(key):
    fit = make_fit(linear_model(), cross_entropy, make_tx=sgd, num_epochs=1, batch_size=9)
    with pytest.raises(
        ValueError, match="at most the 8 examples of the training part, got batch_s"
    ):
        fit({"learning_rate": 0.1, "strength": 0.0}, blobs(8), key)
    assert steps_per_epoch(blobs(8), 3) == 2


def test_example_weights_of_another_shape_are_refused(key):
    fit = make_fit(
        linear_model(),
        cross_entropy,
        make_tx=lambda h: optax.sgd(0.1),
        num_epochs=1,
        batch_size=4,
        make_example_weight=lambda h: lambda outputs, batch, strength: outputs,
    )
    with pytest.raises(ValueError, match=r"gave weights of shape \(4, 3\); expected \(4,\)"):
        jax.eval_shape(fit, {}, blobs(8), key)


def test_a_score_needs_a_measure():
    with pytest.raises(ValueError, match="at least one measure, such as loss=cross_entropy"):
        make_score(linear_model())
    with pytest.raises(ValueError, match="`batch_size` must be >= 1"):
        make_score(linear_model(), batch_size=0, loss=cross_entropy)
