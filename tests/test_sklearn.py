"""Estimators for scikit-learn: their conventions, what is compiled, and what the choice is."""

import pickle
from functools import partial

import jax
import numpy as np
import optax
import pandas
import pytest
import sklearn.datasets
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from sklearn.utils.estimator_checks import check_estimator

import wdjax
from wdjax.sklearn import MLPClassifier, MLPClassifierCV, MLPRegressor, MLPRegressorCV
from wdjax.sklearn.programs import training_of

SMALL = dict(widths=(8,), num_epochs=30, learning_rate=0.02, random_state=0)
FEW = dict(SMALL, num_epochs=5, batch_size=32)
X, Y = sklearn.datasets.load_iris(return_X_y=True)
NAMES = sklearn.datasets.load_iris().target_names[Y]

BY_WEIGHT = "a minibatch's order knows how many rows there are; in full batch it holds, see below"
CHECKED = {
    "classifier": MLPClassifier(0.01, **SMALL),
    "regressor": MLPRegressor(0.01, **SMALL),
    "classifier that chooses": MLPClassifierCV([0.0, 0.1], cv=2, **SMALL),
    "regressor that chooses": MLPRegressorCV([0.0, 0.1], cv=2, **SMALL),
}
SKIPS = {
    "check_array_api_input": "asks for SCIPY_ARRAY_API=1; no array of another library is taken"
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CHECKED)
def test_scikit_learns_own_checks_fail_in_none_but_the_one_of_repeated_rows(name):
    with jax.numpy_rank_promotion("allow"), jax.debug_nans(False):
        results = check_estimator(
            CHECKED[name],
            on_fail=None,
            expected_failed_checks={"check_sample_weight_equivalence_on_dense_data": BY_WEIGHT},
        )
    failed = {r["check_name"]: r["exception"] for r in results if r["status"] == "failed"}
    assert not failed, failed
    by = lambda status: {r["check_name"] for r in results if r["status"] == status}
    assert by("xfail") <= {"check_sample_weight_equivalence_on_dense_data"}
    assert by("skipped") <= SKIPS.keys()
    assert len(by("passed")) > 40


@pytest.mark.parametrize("make", [MLPClassifier, MLPRegressor])
def test_in_full_batch_a_weight_is_a_number_of_repetitions(make):
    rng = np.random.default_rng(0)
    weights = rng.integers(0, 4, len(Y))
    weights[:3] = 1
    net = make(0.1, widths=(4,), num_epochs=20, batch_size=10**6, dtype="float64", random_state=0)
    by_weight = clone(net).fit(X, Y, sample_weight=weights)
    repeated = clone(net).fit(np.repeat(X, weights, axis=0), np.repeat(Y, weights))
    outputs = [
        one.predict_proba(X) if make is MLPClassifier else one.predict(X)
        for one in (by_weight, repeated)
    ]
    np.testing.assert_allclose(*outputs, rtol=1e-9, atol=1e-12)


def test_a_fit_of_the_same_shapes_compiles_nothing():
    net = MLPClassifier(0.1, **FEW).fit(X, Y)
    program = training_of(net.form_)
    before = program._cache_size()
    for strength, rate in ((0.3, 0.02), (0.0, 0.01)):
        clone(net).set_params(strength=strength, learning_rate=rate).fit(X[::-1], Y[::-1])
    assert training_of(net.form_) is program and program._cache_size() == before


def test_it_is_the_run_of_the_library_itself():
    net = MLPClassifier(0.3, schedule="constant", **FEW).fit(X, Y)
    x = X.astype("float32")
    scaled = (x - x.mean(0)) / x.std(0)

    def make_tx(h):
        decay = partial(wdjax.decoupled_decay, 0.3, parts=wdjax.matrices_only)
        return wdjax.make_optimizer(optax.scale_by_adam(eps_root=1e-12), 0.02, decay)

    fit = wdjax.make_fit(
        wdjax.make_mlp(3, widths=(8,)),
        wdjax.cross_entropy,
        make_tx=make_tx,
        num_epochs=5,
        batch_size=32,
    )
    data = wdjax.Batch(scaled, Y.astype("int32"), np.ones(150, "float32"))
    seed = np.random.RandomState(0).randint(2**31 - 1)
    fitted = jax.jit(fit)({}, data, jax.random.fold_in(jax.random.key(seed), 0))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        net.fitted_["params"],
        dict(fitted.params),
    )


def test_words_names_pickles_pipelines_and_searches(tmp_path):
    table = pandas.DataFrame(X, columns=list("abcd"))
    net = MLPClassifier(0.01, **SMALL).fit(table, NAMES)
    assert list(net.feature_names_in_) == list("abcd") and net.score(table, NAMES) > 0.8
    back = pickle.loads(pickle.dumps(net))
    np.testing.assert_array_equal(back.predict_proba(table), net.predict_proba(table))
    words = np.array([["red"], ["green"], ["blue"]])[Y]
    pipeline = make_pipeline(OneHotEncoder(sparse_output=False), MLPClassifier(0.0, **SMALL))
    assert pipeline.fit(words, NAMES).score(words, NAMES) == 1.0
    search = GridSearchCV(MLPClassifier(**FEW), {"strength": [0.0, 10.0]}, cv=2).fit(X, Y)
    assert search.best_params_["strength"] in (0.0, 10.0)


def test_the_strength_is_chosen_by_the_librarys_own_choice_and_then_trained():
    net = MLPClassifierCV([0.0, 0.1, 30.0], cv=3, num_seeds=2, **SMALL).fit(X, NAMES)
    assert net.scores_.of("loss").shape == (3, 3, 2)
    best = np.argmin(net.scores_.mean()["loss"])
    assert net.strength_ == net.choice_.hparams["strength"] == [0.0, 0.1, 30.0][best]
    assert net.strength_ in net.confident_set_ and 30.0 not in net.confident_set_
    results = net.cv_results_
    assert results["rank_test_score"][best] == 1 and len(results["params"]) == 3
    np.testing.assert_allclose(results["mean_test_score"], -net.scores_.mean()["loss"], rtol=1e-6)
    assert net.predict(X[:1])[0] in NAMES and net.predict_proba(X).shape == (150, 3)


@pytest.mark.parametrize("cv", [3, GroupKFold(3)], ids=["a number", "a splitter"])
def test_groups_stay_together_and_are_counted_as_such(cv):
    groups = np.arange(150) // 5 + 7
    weights = (np.arange(150) % 10 > 0).astype(float)
    net = MLPRegressorCV([0.0, 0.1], cv=cv, **FEW)
    net.fit(X, X[:, 0] * 2, groups=groups, sample_weight=weights)
    held = net.scores_.held_out
    assert held.groups is not None and len(np.unique(held.examples[held.weights > 0])) == 135
    for fold in range(3):
        mine = set(held.groups[fold][held.weights[fold] > 0])
        others = {g for f in range(3) if f != fold for g in held.groups[f][held.weights[f] > 0]}
        assert mine and not mine & others


def test_several_targets_and_a_network_of_ones_own():
    net = MLPRegressor(0.0, model=partial(wdjax.make_mlp, widths=(16,)), **SMALL)
    net.fit(X, np.stack([X[:, 0], -3 * X[:, 1]], axis=1))
    assert (
        net.predict(X).shape == (150, 2)
        and net.score(X, np.stack([X[:, 0], -3 * X[:, 1]], 1)) > 0.8
    )
    pickle.loads(pickle.dumps(net)).predict(X)


@pytest.mark.parametrize(
    "net, fit, words",
    [
        (MLPClassifier(-1.0, **FEW), {}, "`strength`"),
        (MLPClassifier(learning_rate=0.0), {}, "`learning_rate`"),
        (MLPClassifier(num_epochs=0), {}, "`epochs`"),
        (MLPClassifier(**FEW), {"sample_weight": np.zeros(150)}, "at least one non-zero"),
        (MLPClassifierCV(cv=1, **FEW), {}, "`cv`"),
        (MLPClassifierCV(cv=60, **FEW), {}, "num_folds"),
        (MLPClassifierCV([], **FEW), {}, "strength"),
        (MLPClassifierCV(cv=3, **FEW), {"groups": np.zeros(150)}, "groups"),
        (MLPClassifier(300.0, learning_rate=1.0), {}, "diverged: take smaller ones"),
    ],
)
def test_what_cannot_be_fitted_is_refused(net, fit, words, nans_allowed):
    with pytest.raises(ValueError, match=words):
        net.fit(X, Y, **fit)
