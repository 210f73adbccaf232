"""The recipes run, and do what they say."""

import contextlib
import io
import pathlib
import re
import warnings

import jax
import numpy as np
import optax
import pytest

import wdjax
from wdjax.selection.trials import trial_program

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "recipes.md"


def run_the_page():
    """After each section of the page, the names that there are, and what all printed."""
    for package in ("optuna", "equinox"):
        pytest.importorskip(package, reason="pip install '.[test]'")
    names, after, printed = {"__name__": "recipes"}, {}, io.StringIO()
    programs = trial_program(None)
    # Another library's warnings are its own.
    with warnings.catch_warnings(), jax.debug_nans(False), jax.numpy_rank_promotion("allow"):
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(printed):
            for section in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]:
                before = programs._cache_size()
                for block in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
                    exec(compile(block, "recipes.md", "exec"), names)
                compiled = programs._cache_size() - before
                after[section.partition("\n")[0]] = dict(names, compiled=compiled)
    return after, printed.getvalue()


def of(ran, title):
    (names,) = (names for heading, names in ran[0].items() if heading.startswith(title))
    return names


def check_a_table_is_encoded_by_each_training_part(ran):
    names = of(ran, "A table with words")
    assert names["choose_on"].column_names == ("age", "smoker")
    data = names["to_batch"](names["choose_on"])
    train = data._replace(weights=np.arange(len(data.weights)) < 150)
    train, valid = names["scale"](train, data)
    assert data.inputs.shape[1] == 2 and valid.inputs.shape[1] == 5
    frame = names["visits"]
    known = np.asarray(data.inputs[:150, 0])
    known = known[known > -1e30]
    holes = np.asarray(valid.inputs[:, 1]) > 0
    # A hole is the mean of the training part, so 0 once standardised.
    np.testing.assert_allclose(np.asarray(valid.inputs)[holes, 0], 0, atol=1e-5)
    assert holes.sum() == frame["age"].isna().sum() - (names["judge_on"].inputs[:, 0] < -1e30).sum()
    scores = names["by_table"].of("accuracy").mean(axis=(1, 2))
    assert scores.max() > 0.75 > max(frame["ill"].mean(), 1 - frame["ill"].mean())


def check_optunas_batches_are_lanes_of_a_program_compiled_once(ran):
    names = of(ran, "Any other search")
    assert names["compiled"] == 1
    study, scores, choice = names["study"], names["scores"], names["choice"]
    assert len(study.trials) == 12 and scores.of("loss").shape == (24, 3, 2)
    # What Optuna was told is what is judged: its best trial is the best row that decays.
    decays = scores.grid["strength"] > 0
    means = scores.mean()["loss"]
    np.testing.assert_allclose(study.best_value, means[decays].min(), rtol=1e-6)
    assert np.isclose(study.best_params["strength"], scores.grid["strength"][decays]).any()
    assert choice.index == means.argmin() and choice.index in choice.confident_set
    assert scores.held_out.values["loss"].shape[:3] == (24, 3, 2)
    assert choice.gain is None or choice.gain.num_rows == 12
    assert "score" in ran[1]


def check_the_last_layer_is_believed_by_its_errors_and_doubted_by_its_evidence(ran):
    names = of(ran, "The last layer alone")
    assert names["by_error"].believed and len(names["by_error"].choice.confident_set) < 16
    (doubt,) = names["by_evidence"].search.doubts
    assert "is more probable by" in doubt


def check_a_loop_of_ones_own_is_chosen_from_and_has_a_page(ran):
    names = of(ran, "A loop of your own")
    losses = np.array(names["losses"])
    assert losses.shape == (3, 4, 1) and len(np.unique(losses)) == 12
    assert names["choice"].hparams["strength"] == names["strengths"][losses.mean((1, 2)).argmin()]
    page = (names["folder"] / "report.html").read_text(encoding="utf-8")
    assert "Chosen: strength" in page and "<svg" in page and "Who was decayed" in page


def check_the_audit_of_the_recipe_would_fail_without_the_mask(ran):
    params = of(ran, "The audit in your tests")["params"]
    with pytest.raises(AssertionError, match="dense/bias: expected 0 a step"):
        tx = optax.adamw(1e-3, weight_decay=0.1)
        wdjax.assert_decays(tx, params, {"*/kernel": 0.1, "*": 0.0}, learning_rate=1e-3)


def check_the_equinox_module_is_the_trained_one(ran):
    names = of(ran, "A module of equinox")
    flat, fitted = names["flat"], names["fitted"]
    outputs, _ = names["network"].apply(
        fitted.params, fitted.model_state, flat.inputs[:2], key=None, train=False
    )
    np.testing.assert_allclose(jax.vmap(names["module"])(flat.inputs[:2]), outputs, rtol=1e-5)


def check_the_tree_is_that_of_the_model_in_plain_flax(ran):
    tree = of(ran, "The trained parameters in plain flax")["tree"]
    params, _ = wdjax.make_mlp(3).init(jax.random.key(0), np.ones((1, 4), "float32"))
    assert jax.tree.map(np.shape, tree) == jax.tree.map(np.shape, params)


def check_the_pretrained_layer_is_loaded_and_drawn_back_to_and_the_adapter_alone_moves(ran):
    names = of(ran, "Fine-tuning")
    loaded, there = names["params"]["hidden1"], names["pretrained"]
    np.testing.assert_array_equal(loaded["kernel"], there["hidden1/kernel"])
    assert set(names["report"].left) == {"head/kernel", "head/bias"}

    def moved(strength):
        tune, rows = names["tune"], names["few_rows"]
        tuned = tune({"strength": strength}, rows, jax.random.key(0)).params["hidden1"]["kernel"]
        return np.linalg.norm(tuned - there["hidden1/kernel"])

    assert 0 < moved(30.0) < moved(3.0) < moved(0.0)
    assert names["tuning"].of("loss").shape == (4, 3, 1)
    layer = names["layer"]
    np.testing.assert_array_equal(layer.kernel[...], names["kernel_before"])
    assert np.all(layer.lora.lora_b[...] != 0)


def check_the_run_that_was_stopped_goes_on_to_its_end(ran):
    names = of(ran, "Stop and go on in Python")
    assert names["number"] == 24 and np.isfinite(float(names["metrics"]["loss"]))


def check_the_file_predicts_what_the_model_does(ran):
    names = of(ran, "A prediction to hand on")
    inputs = names["flat"].inputs[:8]
    np.testing.assert_allclose(names["loaded"].call(inputs), names["predict"](inputs), rtol=1e-5)


def check_no_patient_is_on_both_sides_and_the_area_is_chosen_by(ran):
    names = of(ran, "Groups, and the area")
    folds, patients = names["by_patient"], names["patients"]
    for fold in range(4):
        train = patients[np.asarray(folds.train[fold])[np.asarray(folds.train_mask[fold])]]
        valid = patients[np.asarray(folds.valid[fold])[np.asarray(folds.valid_mask[fold])]]
        assert len(train) and len(valid) and not set(train) & set(valid)
    areas = names["judged"].of("auc")
    assert areas.shape == (2, 4, 1) and np.all((areas > 0.5) & (areas <= 1))


def check_the_estimator_in_the_pipeline_chose(ran):
    names = of(ran, "In scikit-learn")
    assert names["chosen"].strength_ in names["chosen"].confident_set_
    assert names["chosen"].n_features_in_ == 5  # two numbers, an indicator, two words
    assert names["pipeline"].score(names["table"], names["ill"]) > 0.6


def check_the_day_long_run_is_told_why_four_small_searches_do_not_say_its_strength(ran):
    found = of(ran, "The strength for a run")["transferred"]
    assert len(found.sizes) == 4 and found.doubts
    assert "Do not believe this" in ran[1]


CHECKS = [check for name, check in list(globals().items()) if name.startswith("check_")]


@pytest.mark.slow
def test_the_recipes_run_and_do_what_they_say():
    """One test, because they are one script: each section of the page goes on from the last."""
    ran = run_the_page()
    for check in CHECKS:
        check(ran)
    assert len(CHECKS) == len(ran[0])
