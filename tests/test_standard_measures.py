"""Losses and measures by their names: each against a library's, with weights and ties."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
import sklearn.metrics as theirs

import wdjax
from wdjax.losses import binary_cross_entropy, huber_loss, poisson_loss, quantile_loss
from wdjax.measures import is_correct, make_score
from wdjax.standard_measures import auc, brier, calibration_error, mae, perplexity, r2
from wdjax.types import Fit, Model

RNG = np.random.default_rng(0)
WEIGHTS = RNG.integers(0, 4, 60).astype(np.float32)


def softmax(z):
    z = np.exp(z.astype(np.float64) - z.max(-1, keepdims=True))
    return z / z.sum(-1, keepdims=True)


def test_binary_cross_entropy_is_the_log_loss_and_that_of_two_logits():
    z, y = RNG.normal(size=40).astype("f4") * 3, RNG.integers(0, 2, 40)
    p = 1 / (1 + np.exp(-z.astype(np.float64)))
    here = binary_cross_entropy(jnp.asarray(z[:, None]), y)
    np.testing.assert_allclose(np.mean(here), theirs.log_loss(y, p), rtol=1e-6)
    two = jnp.stack([jnp.zeros(40), z], axis=1)
    np.testing.assert_allclose(here, wdjax.cross_entropy(two, y), rtol=1e-5, atol=1e-6)
    assert np.isfinite(binary_cross_entropy(jnp.array([-1e4, 1e4]), np.array([0, 0]))).all()
    soft = optax.sigmoid_binary_cross_entropy(jnp.asarray(z), 0.3)
    given = np.full(40, 0.3, "f4")
    np.testing.assert_allclose(binary_cross_entropy(jnp.asarray(z), given), soft, rtol=1e-6)


def test_the_poisson_loss_is_scipys_likelihood(x64):
    z, y = RNG.normal(size=30), RNG.poisson(3.0, 30)
    expected = -scipy.stats.poisson.logpmf(y, np.exp(z))
    np.testing.assert_allclose(poisson_loss(jnp.asarray(z[:, None]), y), expected, rtol=1e-12)


@pytest.mark.parametrize("delta", [0.3, 1.0, 2.5])
def test_the_huber_loss_is_its_two_pieces(delta, x64):
    p, t = RNG.normal(size=(2, 50, 3)) * 2
    r = np.abs(p - t)
    expected = np.where(r <= delta, r**2 / 2, delta * (r - delta / 2)).sum(-1)
    np.testing.assert_allclose(huber_loss(delta)(jnp.asarray(p), t), expected, rtol=1e-12)


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_the_quantile_loss_is_the_pinball_loss_and_its_best_constant_the_quantile(level, x64):
    p, t = RNG.normal(size=(2, 50))
    here = quantile_loss(level)(jnp.asarray(p), t)
    expected = theirs.mean_pinball_loss(t, p, alpha=level)
    np.testing.assert_allclose(np.mean(here), expected, rtol=1e-12)
    t = np.sort(RNG.normal(size=101))
    mean = lambda c: float(np.mean(quantile_loss(level)(jnp.full(101, c), t)))
    assert t[np.argmin([mean(c) for c in t])] == t[int(level * 101)]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("form", ["one logit", "two logits", "three classes"])
def test_the_area_is_scikit_learns_with_weights_and_ties(form, ties):
    labels = 3 if form == "three classes" else 2
    z = RNG.normal(size=(60, 1 if form == "one logit" else labels)).astype("f4")
    z = np.round(z) if ties else z
    y = RNG.integers(0, labels, 60)
    here = auc(jnp.asarray(z), jnp.asarray(y), jnp.asarray(WEIGHTS))
    if form == "three classes":
        areas = [
            theirs.roc_auc_score(y == c, jax.nn.softmax(z)[:, c], sample_weight=WEIGHTS)
            for c in range(3)
        ]
        expected = np.mean(areas)
    else:
        scores = z[:, 0] if form == "one logit" else z[:, 1] - z[:, 0]
        expected = theirs.roc_auc_score(y, scores, sample_weight=WEIGHTS)
    np.testing.assert_allclose(here, expected, rtol=5e-6)


def test_a_class_that_none_has_is_left_out_of_the_area_and_of_one_class_there_is_none(nans_allowed):
    z, y = jnp.asarray(RNG.normal(size=(40, 3)).astype("f4")), RNG.integers(0, 2, 40)
    two = [theirs.roc_auc_score(y == c, softmax(np.asarray(z))[:, c]) for c in range(2)]
    np.testing.assert_allclose(auc(z, y, jnp.ones(40)), np.mean(two), rtol=1e-5)
    assert np.isnan(auc(z[:, :1], jnp.zeros(40, int), jnp.ones(40)))


def test_the_brier_score_is_scikit_learns():
    z, y = RNG.normal(size=(60, 2)).astype("f4"), RNG.integers(0, 2, 60)
    here = np.average(brier(jnp.asarray(z), y), weights=WEIGHTS)
    expected = theirs.brier_score_loss(y, softmax(z)[:, 1], sample_weight=WEIGHTS)
    np.testing.assert_allclose(here, expected, rtol=1e-5)
    one = np.average(brier(jnp.asarray(z[:, 1:] - z[:, :1]), y), weights=WEIGHTS)
    np.testing.assert_allclose(one, expected, rtol=1e-5)
    z, y = RNG.normal(size=(60, 4)).astype("f4"), RNG.integers(0, 4, 60)
    expected = ((softmax(z) - np.eye(4)[y]) ** 2).sum(-1)
    np.testing.assert_allclose(brier(jnp.asarray(z), y), expected, rtol=1e-4)


def test_the_calibration_error_is_that_of_its_bins_one_after_another():
    z, y = RNG.normal(size=(60, 3)).astype("f4"), RNG.integers(0, 3, 60)
    p = softmax(z)
    confidence, correct = p.max(-1), p.argmax(-1) == y
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15) & (WEIGHTS > 0)
        if inside.any():
            w = WEIGHTS[inside]
            gap = np.average(correct[inside], weights=w) - np.average(confidence[inside], weights=w)
            expected += w.sum() / WEIGHTS.sum() * abs(gap)
    here = calibration_error(jnp.asarray(z), jnp.asarray(y), jnp.asarray(WEIGHTS))
    np.testing.assert_allclose(here, expected, rtol=1e-4)


def test_perplexity_is_the_exponential_of_the_mean_over_tokens_that_count():
    z, y = RNG.normal(size=(6, 10, 5)).astype("f4"), RNG.integers(0, 5, (6, 10))
    weights = WEIGHTS.reshape(6, 10)
    losses = -np.log(np.take_along_axis(softmax(z), y[..., None], -1))[..., 0]
    expected = np.exp(np.average(losses, weights=weights))
    here = perplexity(jnp.asarray(z), y, jnp.asarray(weights))
    np.testing.assert_allclose(here, expected, rtol=1e-5)


def test_of_one_logit_every_measure_is_that_of_the_two_classes():
    z, y = jnp.asarray(RNG.normal(size=(60, 1)).astype("f4")), RNG.integers(0, 2, 60)
    two = jnp.concatenate([jnp.zeros_like(z), z], axis=1)
    for measure in (auc, calibration_error, perplexity):
        one, both = (measure(logits, y, jnp.asarray(WEIGHTS)) for logits in (z, two))
        np.testing.assert_allclose(one, both, rtol=1e-6)


@pytest.mark.parametrize("outputs", [(), (1,), (3,)], ids=str)
def test_absolute_error_and_r2_are_scikit_learns(outputs):
    p, t = RNG.normal(size=(2, 60, *outputs)).astype("f4")
    here = np.average(mae(jnp.asarray(p), jnp.asarray(t)), weights=WEIGHTS)
    expected = theirs.mean_absolute_error(t, p, sample_weight=WEIGHTS)
    np.testing.assert_allclose(here, expected, rtol=1e-5)
    here = r2(jnp.asarray(p), jnp.asarray(t), jnp.asarray(WEIGHTS))
    expected = theirs.r2_score(t, p, sample_weight=WEIGHTS)
    np.testing.assert_allclose(here, expected, rtol=1e-4)


def test_targets_that_do_not_vary_have_the_r2_that_scikit_learn_gives_them():
    flat, ones = jnp.ones(5), jnp.ones(5)
    assert r2(flat, flat, ones) == theirs.r2_score(flat, flat) == 1
    assert r2(flat + 1, flat, ones) == theirs.r2_score(flat, flat + 1) == 0


def test_rows_of_weight_zero_count_nothing_in_any_of_them(nans_allowed):
    z, y = RNG.normal(size=(60, 2)).astype("f4"), RNG.integers(0, 2, 60)
    weights = np.where(np.arange(60) < 40, WEIGHTS, 0).astype("f4")
    model = Model(lambda key, x: ({}, {}), lambda p, s, x, *, key, train: (x, s))
    measures = {"auc": auc, "brier": brier, "ece": calibration_error, "perplexity": perplexity}
    score = make_score(model, accuracy=is_correct, **measures)
    spoilt = np.where(np.arange(60)[:, None] < 40, z, np.nan).astype("f4")
    whole = jax.jit(score)(Fit({}, {}, {}), wdjax.Batch(spoilt, y, weights))
    cut = score(Fit({}, {}, {}), wdjax.Batch(z[:40], y[:40], weights[:40]))
    for name in whole:
        np.testing.assert_allclose(whole[name], cut[name], rtol=1e-5, err_msg=name)
    assert score.higher_is_better == {
        "accuracy": True,
        "auc": True,
        "brier": False,
        "ece": False,
        "perplexity": False,
    }


def test_one_logit_is_correct_by_its_sign():
    logits, targets = jnp.array([[-1.0], [2.0], [0.5]]), jnp.array([0, 1, 0])
    np.testing.assert_array_equal(is_correct(logits, targets), [1, 1, 0])


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: binary_cross_entropy(jnp.zeros(2), np.array([0, 2])), "between 0 and 1, .* to 2"),
        (lambda: poisson_loss(jnp.zeros(2), np.array([-1, 2])), "between 0 and inf, .* from -1"),
        (lambda: poisson_loss(jnp.zeros((2, 2)), np.ones(2)), "shape of the log_rates, .2, 2."),
        (lambda: huber_loss(0.0), "`delta`"),
        (lambda: quantile_loss(1.0), "`level` must be below 1"),
        (lambda: quantile_loss(0.0), "`level`"),
        (lambda: mae(jnp.zeros((2, 2)), jnp.ones(2)), "shape of the predictions"),
    ],
)
def test_what_does_not_fit_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(160, 2))
    counts = rng.poisson(np.exp(1 + x[:, 0]))
    for name, y in (
        ("counts", counts),
        ("ill", (x[:, 0] > 0.3).astype(int)),
        ("three", counts % 3),
        ("below", 1 - counts),
    ):
        rows = np.column_stack([x, y])
        form = ["%.6f", "%.6f", "%d"]
        np.savetxt(folder / f"{name}.csv", rows, form, ",", header="a,b,y", comments="")
    return folder


def run(*words):
    from wdjax.cli import main

    return main([*map(str, words)])


FEW = ["--epochs", 20, "--batch-size", 32, "--seeds", 1, "--learning-rates", 0.03]
FEW += ["--folds", 2, "--strengths", 0, 0.1]


def test_counts_are_learnt_chosen_by_and_predicted_as_rates(tables, tmp_path):
    data, out = tables / "counts.csv", tmp_path / "run"
    words = ["--loss", "poisson", "--choose-by", "mae", "--out", out]
    assert run("select", "--data", data, *words, *FEW) == 0
    results = json.loads((out / "results.json").read_text())
    assert {"loss", "mae"} <= set(results["table"][0])
    assert run("predict", out, data) == 0
    rates = np.loadtxt(out / "predictions-counts.csv", delimiter=",", skiprows=1)
    rows = np.loadtxt(data, delimiter=",", skiprows=1)
    assert np.all(rates > 0) and np.corrcoef(rates, rows[:, 2])[0, 1] > 0.6
    assert abs(rates.mean() / rows[:, 2].mean() - 1) < 0.2  # the counts' own unit


def test_two_classes_are_learnt_by_one_logit_and_chosen_by_their_area(tables, tmp_path):
    data, out = tables / "ill.csv", tmp_path / "run"
    words = ["--loss", "binary_cross_entropy", "--choose-by", "auc", "--measure", "brier"]
    assert run("select", "--data", data, *words, "--out", out, *FEW) == 0
    results = json.loads((out / "results.json").read_text())
    assert {"loss", "accuracy", "auc", "brier"} <= set(results["table"][0])
    assert results["choices"][results["rule"]]["value"] == "auc"
    assert run("predict", out, data) == 0
    lines = (out / "predictions-ill.csv").read_text().splitlines()
    assert lines[0] == "prediction,probability of 0,probability of 1"
    probabilities = np.array([line.split(",")[1:] for line in lines[1:]], float)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-6)
    y = np.loadtxt(data, delimiter=",", skiprows=1)[:, 2]
    assert theirs.roc_auc_score(y, probabilities[:, 1]) > 0.9


@pytest.mark.parametrize(
    "name, words, told",
    [
        ("three", ["--loss", "binary_cross_entropy"], "is of two classes, and the data have 3"),
        ("below", ["--loss", "poisson"], "takes targets of 0 and more, and the data have -"),
        ("three", ["--measure", "r2"], "`measure` r2 is of numbers.*use one of accuracy, auc"),
        ("counts", ["--loss", "poisson", "--measure", "auc"], "auc is of classes.*mae, r2"),
    ],
)
def test_a_loss_or_measure_of_other_targets_is_refused(tables, tmp_path, name, words, told, capsys):
    out = tmp_path / "run"
    assert run("select", "--data", tables / f"{name}.csv", *words, "--out", out, *FEW) == 2
    assert re.search(told, " ".join(capsys.readouterr().err.split()))
    assert not out.exists()
