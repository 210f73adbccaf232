"""Recipes: every combination of choices runs, and means what its formula says."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

from wdjax.models import count_params, make_mlp, make_rnn
from wdjax.parts import matrices_only
from wdjax.recipe import (
    DECAYS,
    DIRECTIONS,
    MODELS,
    SCHEDULES,
    Recipe,
    load_make_model,
    parse_parts,
    recipe_fit,
    recipe_fit_and_score,
    recipe_learning_rate,
    recipe_param_shapes,
    recipe_tx,
)
from wdjax.recipe.kinds import SCHEDULE_KINDS
from wdjax.types import Batch

RNG = np.random.default_rng(0)


def small_mlp(num_outputs, dropout=0.0):
    return make_mlp(num_outputs, widths=(3,), dropout=dropout)


def recipe_of(**choices):
    return Recipe(**({"make_model": small_mlp, "num_outputs": 2, "num_epochs": 2} | choices))


def table(num_examples=8, targets=None):
    x = RNG.normal(size=(num_examples, 3)).astype(np.float32)
    y = RNG.integers(0, 2, num_examples) if targets is None else targets
    return Batch(x, y, np.ones(num_examples, np.float32))


@pytest.mark.parametrize("decay", DECAYS)
def test_every_choice_traces_and_keeps_float32_also_in_64_bit_mode(decay, x64, key):
    hparams = {name: jnp.float32(0.1) for name in ("strength", "learning_rate", "dropout")}
    for optimizer, schedule in itertools.product(DIRECTIONS, SCHEDULES):
        recipe = recipe_of(
            decay=decay, optimizer=optimizer, schedule=schedule, batch_size=4, score_rows=3
        )
        run = recipe_fit_and_score(recipe)
        scores = jax.eval_shape(run, hparams, table(), table(5), key)
        assert scores.keys() == {"loss", "accuracy", "train_loss", "train_accuracy"}
        assert {leaf.dtype for leaf in scores.values()} == {np.dtype("float32")}


@pytest.mark.parametrize("name, side, channels", [("cnn", 32, 3), ("rnn", 8, 1), ("mlp", 8, 1)])
def test_every_model_here_has_a_recipe_with_dropout(name, side, channels, key):
    hparams = {name: jnp.float32(0.1) for name in ("strength", "learning_rate", "dropout")}
    images = jnp.zeros((6, side, side, channels))
    batch = Batch(images, jnp.zeros(6, jnp.int32), jnp.ones(6))
    run = recipe_fit_and_score(Recipe(make_model=MODELS[name], batch_size=2, num_epochs=1))
    assert jax.eval_shape(run, hparams, batch, batch, key)["loss"].shape == ()


def descend(recipe, gradient, num_steps, strength, learning_rate):
    """The weights after `num_steps` of the recipe's transformation."""
    tx = recipe_tx(recipe, {"strength": strength, "learning_rate": learning_rate}, num_steps)
    w = jnp.array([[1.0, -2.0]])
    state = tx.init(w)
    for _ in range(num_steps):
        updates, state = tx.update(gradient(w), state, w)
        w = optax.apply_updates(w, updates)
    return w


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("decay", ["decoupled", "independent", "corrected"])
def test_without_a_gradient_each_decay_is_its_product(decay, schedule, x64):
    recipe = recipe_of(decay=decay, schedule=schedule, optimizer="sgd")
    etas = {
        "constant": np.full(6, 0.2),
        "cosine": reference.cosine_schedule(0.2, 6),
        "warmup_cosine": reference.warmup_cosine_schedule(0.2, 6),
    }[schedule]
    rates = reference.rates(decay, 0.5, etas, 0.2)
    found = descend(recipe, jnp.zeros_like, 6, 0.5, 0.2)
    np.testing.assert_allclose(found, np.prod(1 - rates) * np.array([[1.0, -2.0]]), rtol=1e-6)


@pytest.mark.parametrize(
    "optimizer, by_hand",
    [
        ("sgd", reference.sgd),
        ("momentum", lambda *a, **k: reference.sgd(*a, momentum=0.9, **k)),
        ("lion", reference.lion),
        ("adam", reference.adam),
    ],
)
def test_each_optimiser_is_the_reference_with_decoupled_decay_beside(optimizer, by_hand, x64):
    a, etas = np.array([[0.5, 0.5]]), reference.cosine_schedule(0.1, 6)
    recipe = recipe_of(optimizer=optimizer, schedule="cosine")
    found = descend(recipe, lambda w: w - a, 6, 0.5, 0.1)
    expected = by_hand(np.array([[1.0, -2.0]]), lambda w, t: w - a, etas, decay_rates=etas * 0.5)
    # eps_root = 1e-12 under Adam's root moves the sixth digit at most.
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_coupled_decay_is_a_penalty_and_equals_decoupled_under_plain_descent(key):
    hparams, train = {"strength": 0.7, "learning_rate": 0.1}, table()
    run = lambda **choices: jax.jit(recipe_fit(recipe_of(batch_size=4, **choices)))(
        hparams, train, key
    )
    coupled = run(decay="coupled", optimizer="sgd")
    beside = run(decay="decoupled", optimizer="sgd")
    assert np.all(coupled.history["penalty"] > 0) and np.all(beside.history["penalty"] == 0)
    for a, b in zip(*(jax.tree.leaves(r.params) for r in (coupled, beside)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_schedule_is_the_cosine_to_zero(x64):
    recipe = recipe_of(schedule="cosine")
    schedule, multiplier = recipe_learning_rate(recipe, 0.3, 10)
    np.testing.assert_allclose(schedule(jnp.arange(10)), reference.cosine_schedule(0.3, 10))
    np.testing.assert_allclose(0.3 * multiplier(jnp.arange(10)), schedule(jnp.arange(10)))
    assert recipe_learning_rate(recipe_of(), 0.3, 10) == (0.3, 1.0)


@pytest.mark.parametrize("num_steps", [1, 2, 6, 20, 21, 90])
def test_the_warm_up_is_a_twentieth_of_the_run_and_a_cosine_to_zero_follows(num_steps, x64):
    """Also where the number of steps is traced. No step has learning rate 0."""
    expected = reference.warmup_cosine_schedule(0.3, num_steps)
    recipe, steps = recipe_of(schedule="warmup_cosine"), jnp.arange(num_steps)
    schedule, _ = recipe_learning_rate(recipe, 0.3, num_steps)
    np.testing.assert_allclose(schedule(steps), expected, rtol=1e-12)
    make = SCHEDULE_KINDS[recipe.schedule].multiplier
    traced = jax.jit(lambda num_steps: 0.3 * make(num_steps)(steps))(num_steps)
    np.testing.assert_allclose(traced, expected, rtol=1e-12)
    assert (expected > 0).all() and np.argmax(expected) == min(-(-num_steps // 20), num_steps - 1)


def test_a_table_and_its_numbers_are_standardised_on_the_training_part(key):
    """So the units of columns and targets change nothing."""
    train, valid = table(8, RNG.normal(size=8)), table(6, RNG.normal(size=6))
    recipe = recipe_of(
        loss="squared_error", num_outputs=1, batch_size=4, scale_inputs=True, optimizer="sgd"
    )
    run = jax.jit(recipe_fit_and_score(recipe))
    hparams = {"strength": 0.1, "learning_rate": 0.1}
    expected = run(hparams, train, valid, key)
    assert expected.keys() == {"loss", "train_loss"}
    other = lambda b: Batch(
        b.inputs * np.float32([1e3, 1, 1e-2]) + 7, 40 * b.targets - 3, b.weights
    )
    found = run(hparams, other(train), other(valid), key)
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-3)


def test_the_params_are_known_without_running_anything():
    shapes = recipe_param_shapes(Recipe(), np.zeros((3, 8, 8, 1), np.float32))
    assert count_params(shapes) == 64 * 100 + 100 + 1000 + 10
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    "choices, words",
    [
        ({"loss": "mse"}, "`loss` must be one of cross_entropy, squared_error, .*; got 'mse'"),
        ({"optimizer": "adamw"}, "`optimizer` must be one of .* Did you mean 'adam'"),
        ({"schedule": "linear"}, "`schedule` must be one of"),
        ({"decay": "decopled"}, "`decay` must be one of .* Did you mean 'decoupled'"),
        ({"dtype": "float16"}, "`dtype` must be one of"),
        ({"num_epochs": 0}, "`epochs` must be >= 1"),
        ({"batch_size": 0}, "`batch_size` must be >= 1"),
    ],
)
def test_an_unknown_choice_is_refused_when_the_recipe_is_made(choices, words):
    with pytest.raises(ValueError, match=words):
        Recipe(**choices)


# Words of the command line


def test_parts_are_read_from_words():
    assert parse_parts("matrices") is matrices_only
    assert parse_parts("all") is None
    assert parse_parts("*/kernel=1, *=0.5") == {"*/kernel": 1.0, "*": 0.5}


@pytest.mark.parametrize("text", ["kernel", "=1", "*/kernel=one", "*/kernel=1,", ""])
def test_words_that_are_no_parts_are_refused(text):
    with pytest.raises(ValueError, match="`parts` must be matrices, all, or PATTERN=NUMBER,..."):
        parse_parts(text)


def test_models_go_by_name():
    assert load_make_model("rnn") is make_rnn
    with pytest.raises(
        ValueError, match="`model` must be one of .*; got 'rrn'. Did you mean 'rnn'"
    ):
        load_make_model("rrn")


def test_a_model_of_ones_own_is_a_file_and_a_function(tmp_path):
    """With annotations as strings, which flax modules look up in the file's own module."""
    path = tmp_path / "mine.py"
    path.write_text(
        "from __future__ import annotations\n"
        "import flax.linen as nn\n"
        "import wdjax\n"
        "class Linear(nn.Module):\n"
        "    size: int\n"
        "    @nn.compact\n"
        "    def __call__(self, x):\n"
        "        return nn.Dense(self.size)(x)\n"
        "def make_model(num_outputs):\n"
        "    return wdjax.from_linen(Linear(num_outputs))\n"
    )
    recipe = recipe_of(make_model=load_make_model(f"{path}:make_model"))
    assert count_params(recipe_param_shapes(recipe, np.zeros((1, 3)))) == 8
    with pytest.raises(ValueError, match="no function 'make_modle'. Did you mean 'make_model'"):
        load_make_model(f"{path}:make_modle")


def test_a_file_that_is_missing_or_fails_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no file '.*none.py'; give FILE.py:FUNCTION"):
        load_make_model(f"{tmp_path}/none.py:make_model")
    (tmp_path / "bad.py").write_text("1 / 0\n")
    with pytest.raises(ValueError, match="running the file failed: line 1: ZeroDivisionError"):
        load_make_model(f"{tmp_path}/bad.py:make_model")
    (tmp_path / "notes.txt").write_text("hello\n")
    with pytest.raises(ValueError, match="is not a Python file"):
        load_make_model(f"{tmp_path}/notes.txt:make_model")
