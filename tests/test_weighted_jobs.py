"""Weights in the command: slopes on the grid beside the strength, the audit, what is refused."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from wdjax import cli
from wdjax.jobs import (
    AuditOptions,
    SelectOptions,
    TrainOptions,
    load_predictor,
    run_audit,
    run_select,
    run_train,
)
from wdjax.jobs.results import write_json
from wdjax.jobs.setup import slope_axes, slopes_of
from wdjax.models import make_mlp
from wdjax.recipe import Recipe, recipe_fit, recipe_part_weights, recipe_tx
from wdjax.types import Batch


def images(rows=12):
    r = np.random.default_rng(0)
    return Batch(
        r.uniform(size=(rows, 4, 4, 1)).astype(np.float32),
        np.arange(rows) % 3,
        np.ones(rows, np.float32),
    )


def recipe_of(**choices):
    return Recipe(
        make_model=lambda n, **how: make_mlp(n, widths=(5,), **how),
        num_outputs=3,
        num_epochs=2,
        batch_size=4,
        **choices,
    )


def weighted_select(**changes):
    options = SelectOptions(
        augment="flip,noise",
        example_weight="sigmoid:augment",
        example_slopes=(-4.0, 0.0),
        strengths=(0.0, 1.0, 2.0),
        learning_rates=(3e-3,),
        schedule="constant",
        epochs=1,
        folds=2,
        seeds=1,
    )
    return dataclasses.replace(options, **changes)


# The recipe.


@pytest.mark.parametrize("place", ["decay", "loss", "update"])
def test_a_recipe_at_part_slope_zero_is_the_recipe_without_part_weights(place, key, x64):
    """The same total as the base: slope 0 takes nothing from the strength or the step."""
    run = lambda **choices: jax.jit(recipe_fit(recipe_of(optimizer="sgd", **choices)))(
        {"strength": 0.5, "learning_rate": 0.1, "part_slope": 0.0}, images(), key
    )
    weighed = run(part_feature="depth", part_weight_on=place)
    for ours, plain in zip(*map(jax.tree.leaves, (weighed, run())), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("place", ["decay", "loss", "update"])
def test_a_part_slope_reaches_its_place(place, key):
    hparams = {"strength": 0.5, "learning_rate": 0.1}
    recipe = recipe_of(optimizer="sgd", part_feature="depth", part_weight_on=place)
    fit = jax.jit(recipe_fit(recipe))
    zero, steep = (
        fit(hparams | {"part_slope": jnp.float32(s)}, images(), key).params for s in (0.0, 4.0)
    )
    assert not np.allclose(zero["head"]["kernel"], steep["head"]["kernel"], rtol=1e-4)


def test_part_weights_of_the_decay_keep_the_recipes_own_parts():
    recipe, inputs = recipe_of(part_feature="depth"), images().inputs
    parts = recipe_part_weights(recipe, {"part_slope": 3.0}, inputs, "decay")
    params = {
        "hidden1": {"kernel": jnp.ones((16, 5)), "bias": jnp.ones(5)},
        "head": {"kernel": jnp.ones((5, 3)), "bias": jnp.ones(3)},
    }
    found = parts(params)
    assert found["hidden1"]["bias"] == found["head"]["bias"] == 0
    assert found["head"]["kernel"] > 1 > found["hidden1"]["kernel"] > 0
    assert recipe_part_weights(recipe, {}, inputs, "loss") is None


def test_the_optimiser_of_a_recipe_scales_updates_by_depth():
    recipe = recipe_of(part_feature="depth", part_weight_on="update", optimizer="sgd")
    params = {
        "hidden1": {"kernel": jnp.ones((16, 5)), "bias": jnp.ones(5)},
        "head": {"kernel": jnp.ones((5, 3)), "bias": jnp.ones(3)},
    }
    hparams = {"strength": 0.0, "learning_rate": 1.0, "part_slope": 2.0}
    tx = recipe_tx(recipe, hparams, 1, images().inputs)
    updates, _ = tx.update(params, tx.init(params), params)
    ratio = updates["head"]["bias"][0] / updates["hidden1"]["bias"][0]
    np.testing.assert_allclose(ratio, 2 / (1 + np.exp(-2)), rtol=1e-5)


@pytest.mark.parametrize(
    "choices, words",
    [
        (dict(example_feature="augment"), "needs an augmentation"),
        (dict(example_feature="margin", loss="squared_error"), "needs classes"),
        (dict(augment=("crop", "flop")), "Did you mean 'flip'"),
        (dict(part_feature="deep"), "Did you mean 'depth'"),
        (dict(part_weight_on="grads"), "must be one of decay, loss, update"),
    ],
)
def test_choices_that_do_not_fit_are_refused(choices, words):
    with pytest.raises(ValueError, match=words):
        recipe_of(**choices)


# The jobs.


@pytest.fixture(scope="module")
def selected(tmp_path_factory):
    out = tmp_path_factory.mktemp("select") / "run"
    results = run_select(weighted_select(out=str(out)), say=lambda text: None)
    return out, results


def test_slopes_are_an_axis_of_the_grid_beside_the_strength(selected):
    _, results = selected
    assert results["grid_shape"] == {"strength": 3, "learning_rate": 1, "example_slope": 2}
    assert np.shape(results["scores"]["loss"]) == (6, 2, 1)
    loss = np.asarray(results["scores"]["loss"])[:, :, 0]
    assert np.all(loss[0::2] != loss[1::2])  # the slope does something
    assert "example slope" in results["headline"]


def test_the_report_draws_strength_by_slope_as_a_heat_map_with_the_audit(selected):
    out, results = selected
    page = (out / "report.html").read_text()
    assert "heat-0" in page and "example slope" in page
    assert "penalty share" in page and "half-life in epochs" in page
    for warning in results["warnings"]:
        assert warning.split(":")[0] in page


def test_the_decay_table_of_a_run_is_measured(selected):
    _, results = selected
    rows = {row["path"]: row for row in results["decay"]}
    strength, rate = results["refit"]["chosen"]["hparams"]["strength"], 3e-3
    assert rows["hidden1/kernel"]["rate"] == pytest.approx(strength * rate, rel=1e-4)
    assert rows["hidden1/bias"]["rate"] == 0 and rows["hidden1/bias"]["role"] == "bias"


def test_a_saved_run_is_audited_at_its_own_options(selected):
    out, results = selected
    report = run_audit(AuditOptions(run=str(out)))
    assert [leaf.rate for leaf in report.leaves] == pytest.approx(
        [row["rate"] for row in results["decay"]]
    )
    assert [warning.text for warning in report.warnings] == results["warnings"]


def test_a_run_of_other_data_is_not_audited(selected, tmp_path):
    _, results = selected
    write_json(tmp_path, results | {"data": results["data"] | {"sha256": "0"}})
    with pytest.raises(ValueError, match="made from other data"):
        run_audit(AuditOptions(run=str(tmp_path)))
    with pytest.raises(ValueError, match="holds no results.json"):
        run_audit(AuditOptions(run=str(tmp_path / "nowhere")))


def test_strict_exits_with_one_on_a_warning_and_zero_without(capsys):
    tried = ["audit", "--strict", "--epochs", "20", "--strength"]
    assert cli.main([*tried, "1"]) == 0
    assert "No warning" in capsys.readouterr().out
    assert cli.main([*tried, "1", "--parts", "all"]) == 1
    assert "norm gains or biases decay" in capsys.readouterr().out
    assert cli.main([word for word in [*tried, "1", "--parts", "all"] if word != "--strict"]) == 0


def test_part_weights_that_adam_cancels_are_found_from_the_shell():
    options = AuditOptions(
        part_weight="sigmoid:depth", part_weight_on="loss", strength=1.0, epochs=20
    )
    kinds = {warning.kind for warning in run_audit(options).warnings}
    assert kinds == {"part weights cancel"}


def test_the_default_slopes_of_examples_are_those_that_the_experiment_found():
    """Each augmentation's chosen slope is on the default grid; a single run takes the one that
    beat the unweighted run."""
    root = pathlib.Path(__file__).parent.parent
    path = root / "experiments" / "q10_example_weights" / "results.json"
    values = json.loads(path.read_text())["values"]
    found = {values[way]["chosen"]["weighted"][0] for way in ("noise", "crop and flip")}
    assert found == {0.0, -8.0}
    weighted = dict(example_weight="sigmoid:augment", part_weight="sigmoid:depth")
    assert slopes_of(TrainOptions(**weighted)) == {"example_slope": -8.0, "part_slope": 4.0}
    assert slopes_of(AuditOptions(**weighted)) == {"example_slope": -8.0, "part_slope": 4.0}
    axes = slope_axes(SelectOptions(**weighted))
    assert found <= set(axes["example_slope"]) and axes["part_slope"] == [-4.0, 0.0, 4.0]
    helped = {
        kind: {field.name: field.metadata["help"] for field in dataclasses.fields(kind)}
        for kind in (TrainOptions, AuditOptions, SelectOptions)
    }
    assert "default -8" in helped[TrainOptions]["example_slope"]
    assert "default -8" in helped[AuditOptions]["example_slope"]
    assert "default -8 0 8" in helped[SelectOptions]["example_slopes"]


@pytest.mark.slow
def test_a_single_run_takes_single_slopes(tmp_path):
    results = run_train(
        TrainOptions(
            example_weight="sigmoid:loss",
            example_slope=-1.0,
            part_weight="sigmoid:fan_in",
            decay="coupled",
            strength=1e-3,
            epochs=1,
            out=str(tmp_path / "run"),
        ),
        say=lambda text: None,
    )
    hparams = results["refit"]["chosen"]["hparams"]
    assert hparams["example_slope"] == -1.0 and hparams["part_slope"] == 4.0
    rows = {row["path"]: row for row in results["decay"]}
    assert rows["hidden1/kernel"]["rate"] is None
    assert 0 < rows["hidden1/kernel"]["penalty_share"] < 1


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(example_weight="sigmoid"), "must be sigmoid:FEATURE, such as sigmoid:augment"),
        (dict(example_weight="sigmoid:margn"), "Did you mean 'margin'"),
        (dict(augment="crop,flop"), "Did you mean 'flip'"),
        (dict(augment=""), "needs an augmentation"),
        (dict(augment="saturation"), "red, green and blue"),
        (dict(data="iris"), "is a table: leave it out"),
        (dict(example_weight=None), "`example_slopes` = .* has nothing to act on"),
        (dict(part_slopes=(1.0,)), "`part_slopes` = .* has nothing to act on"),
        (dict(example_slopes=(1.0, np.nan)), "`example_slopes` must hold finite numbers"),
    ],
)
def test_options_that_cannot_run_are_refused(changes, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        run_select(weighted_select(out=str(tmp_path / "run"), **changes), say=lambda text: None)


# The weights that a file gives its examples.


def file_of_weights(folder, number=90):
    """Inputs that say nothing of the label; label 1 counts nine times as much as label 0."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(number, 2)), np.arange(number) % 2
    weights = np.where(y == 1, 9.0, 1.0)
    weights[:10], x[:10], y[:10] = 0, np.nan, -1
    np.savez(folder / "w.npz", inputs=x, targets=y, weights=weights)
    return x[10:], y[10:], weights[10:]


@pytest.mark.parametrize("streamed", [False, True])
def test_the_weights_of_a_file_reach_training_scores_and_the_plan(tmp_path, streamed):
    """The model then says 0.9 where unweighted it would say 0.5, and the scores are the weighted
    means of what the saved model says of each example."""
    x, y, weights = file_of_weights(tmp_path)
    said = []
    options = TrainOptions(
        data=str(tmp_path / "w.npz"),
        strength=10.0,
        epochs=40,
        batch_size=8,
        parts="*/kernel=1,*=0",
        out=str(tmp_path / "run"),
        devices=1,
        stream=streamed,
        schedule="constant",
    )
    results = run_train(options, say=said.append)
    assert "They count by their weights, 1 to 9; 10 of weight 0 are left out." in said[0]
    probability = load_predictor(tmp_path / "run")(x)
    assert abs(probability[:, 1].mean() - 0.9) < 0.05
    losses = -np.log(probability[np.arange(80), y])
    run = results["refit"]["chosen"]
    train, test = train_test_split(np.arange(80), test_size=16, random_state=0, stratify=y)
    for part, rows in (("train", train), ("test", test)):
        expected = np.sum(weights[rows] * losses[rows]) / np.sum(weights[rows])
        np.testing.assert_allclose(run[f"{part}_loss"][0], expected, rtol=1e-4)


def test_the_weights_of_a_file_reach_the_scores_of_the_folds(tmp_path):
    """At step size 0 nothing is learnt, so weighted accuracies are known by counting."""
    file_of_weights(tmp_path)
    options = SelectOptions(
        data=str(tmp_path / "w.npz"),
        strengths=(0.0,),
        learning_rates=(1e-12,),
        epochs=1,
        folds=2,
        seeds=3,
        batch_size=8,
        out=str(tmp_path / "run"),
        devices=1,
        model=f"{tmp_path}/mine.py:make_model",
        parts="all",
    )
    (tmp_path / "mine.py").write_text(
        "import jax.numpy as jnp\nimport wdjax\n"
        "def make_model(num_outputs):\n"
        "    init = lambda key, x: ({'head/bias': jnp.array([0.0, 1.0])}, {})\n"
        "    apply = lambda p, s, x, *, key, train: (x[:, :1] * 0 + p['head/bias'][None], s)\n"
        "    return wdjax.Model(init, apply)\n"
    )
    results = run_select(options, say=lambda text: None)
    np.testing.assert_allclose(results["scores"]["accuracy"], 0.9, rtol=1e-6)
