"""Nested cross-validation: its numbers, its programs, its sentence where nothing is to find."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold

import wdjax
from wdjax.selection.folds import folds_from_splits
from wdjax.selection.nested import DEALING

STRENGTHS = [0.0, 3.0, 30.0, 300.0]
GRID = wdjax.grid_product(strength=STRENGTHS)
KEY = jax.random.key(0)


def ridge(h, train, valid, key):
    del key
    weighted = train.inputs * train.weights[:, None]
    gram = weighted.T @ train.inputs + h["strength"] * jnp.eye(train.inputs.shape[1])
    w = jnp.linalg.solve(gram, weighted.T @ train.targets)
    return {"loss": (valid.inputs @ w - valid.targets) ** 2}


def problem(num=48, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num, 12))
    y = x[:, 0] + 2 * rng.normal(size=num)
    return wdjax.Batch(jnp.asarray(x), jnp.asarray(y), jnp.ones(num))


def test_it_is_scikit_learns_nested_search():
    data = problem(num=50)  # 50 rows in 4 folds: sizes differ.
    x, y = np.asarray(data.inputs), np.asarray(data.targets)
    outer, inner = [*KFold(4).split(x)], KFold(3)
    with jax.enable_x64(True):
        whole = wdjax.Batch(x, y, np.ones(50))
        nested = wdjax.nested_cross_validate(
            ridge, GRID, whole, folds_from_splits(outer), key=KEY, inner=inner
        )
    for fold, (train, valid) in enumerate(outer):
        search = GridSearchCV(
            Ridge(fit_intercept=False),
            {"alpha": np.maximum(STRENGTHS, 1e-12)},
            cv=inner,
            scoring="neg_mean_squared_error",
        ).fit(x[train], y[train])
        found = nested.choices[fold]
        assert found.index == search.best_index_
        # Its mean over folds, of which `choose` makes the mean of fold means too.
        np.testing.assert_allclose(found.mean, -search.best_score_, rtol=1e-6)
        mean = np.mean((search.predict(x[valid]) - y[valid]) ** 2)
        np.testing.assert_allclose(nested.values[fold, 0], mean, rtol=1e-6)
    assert len({choice.index for choice in nested.choices}) > 1  # Else the test shows little.
    np.testing.assert_allclose(nested.mean, nested.values.mean())


def test_the_outer_scores_are_those_of_cross_validation_alone():
    data, folds = problem(), wdjax.kfold(KEY, 48, 4)
    nested = wdjax.nested_cross_validate(ridge, GRID, data, folds, key=KEY, inner=3)
    alone = wdjax.cross_validate(ridge, GRID, data, folds, key=KEY)
    np.testing.assert_array_equal(nested.scores.values["loss"], alone.values["loss"])
    np.testing.assert_array_equal(
        nested.scores.held_out.values["loss"], alone.held_out.values["loss"]
    )
    assert nested.choice == wdjax.choose(alone)
    rows = [choice.index for choice in nested.choices]
    np.testing.assert_array_equal(nested.values, alone.values["loss"][rows, np.arange(4)])
    assert nested.optimism == pytest.approx(nested.mean - nested.choice.mean)


def test_no_held_out_row_is_seen_by_what_chooses_on_it():
    """A run that sees a row of the outer held-out part, inside, would give itself away."""
    number = 48
    data = wdjax.Batch(jnp.zeros((number, 1)), jnp.arange(number) * 1.0, jnp.ones(number))
    folds = wdjax.kfold(KEY, number, 4)
    seen = []

    def spy(h, train, valid, key):
        see = lambda *of: seen.append([np.asarray(array) for array in of])
        jax.debug.callback(see, train.targets, train.weights, valid.targets, valid.weights)
        return {"loss": jnp.mean(valid.targets) + 0 * h["strength"]}

    wdjax.nested_cross_validate(
        spy, {"strength": [0.0]}, data, folds, key=KEY, inner=3, trials_at_once=1
    )
    jax.effects_barrier()
    assert len(seen) == 4 + 4 * 3
    parts = []
    for train, train_weights, valid, valid_weights in seen:
        rows = set(train[train_weights > 0]), set(valid[valid_weights > 0])
        assert not rows[0] & rows[1]
        parts.append(rows)
    outside = [set(np.asarray(row, float)) for row in folds.valid]
    for held_out in outside:
        inside = [rows for rows in parts if not (rows[0] | rows[1]) & held_out]
        # Three inner folds, which hold each row of the training part out once.
        assert len(inside) == 3
        assert sorted(x for _, valid in inside for x in valid) == sorted(
            set(range(number)) - held_out
        )


def test_groups_stay_whole_inside_and_classes_keep_their_shares():
    data, groups = problem(60), np.arange(60) // 5
    splits = folds_from_splits(GroupKFold(4).split(np.zeros(60), None, groups))
    nested = wdjax.nested_cross_validate(
        ridge, GRID, data, splits, key=KEY, inner=GroupKFold(3), groups=groups
    )
    assert nested.scores.held_out.groups is not None
    labels = np.arange(60) % 3
    told = wdjax.nested_cross_validate(
        ridge,
        GRID,
        data,
        wdjax.kfold(KEY, 60, 4, stratify=labels),
        key=KEY,
        inner=5,
        stratify=labels,
    )
    assert np.isfinite(told.mean)
    with pytest.raises(ValueError, match=r"`groups` are to stay whole.*inner=GroupKFold\(3\)"):
        wdjax.nested_cross_validate(ridge, GRID, data, splits, key=KEY, inner=3, groups=groups)


def test_one_program_under_jit_and_the_same_numbers():
    data, key = problem(), KEY
    folds = wdjax.kfold(key, 48, 4)
    traces = []

    def counted(h, train, valid, key):
        traces.append(1)
        return ridge(h, train, valid, key)

    @jax.jit
    def program(data, key):
        return wdjax.nested_cross_validate_pure(counted, GRID, data, folds, key=key, inner=3)

    rows, scores = program(data, key)
    nested = wdjax.nested_cross_validate(ridge, GRID, data, folds, key=key, inner=3)
    assert rows.tolist() == [choice.index for choice in nested.choices]
    np.testing.assert_allclose(scores["loss"], nested.scores.values["loss"], rtol=2e-5)
    num_traces = len(traces)
    program(problem(seed=1), jax.random.key(1))
    assert len(traces) == num_traces and program._cache_size() == 1


def test_a_row_that_diverged_inside_is_not_chosen():
    def diverges(h, train, valid, key):
        loss = jnp.where(h["strength"] == 3.0, jnp.inf, ridge(h, train, valid, key)["loss"])
        return {"loss": loss * jnp.where(h["strength"] == 3.0, 0.0, 1.0) - 0.0}

    data, folds = problem(), wdjax.kfold(KEY, 48, 4)
    with jax.debug_nans(False):
        rows, _ = wdjax.nested_cross_validate_pure(diverges, GRID, data, folds, key=KEY, inner=3)
        nested = wdjax.nested_cross_validate(diverges, GRID, data, folds, key=KEY, inner=3)
    assert 1 not in rows and 1 not in [choice.index for choice in nested.choices]


def test_where_nothing_can_be_chosen_the_outer_fold_is_named():
    def never(h, train, valid, key):
        return {"loss": jnp.full(valid.weights.shape, jnp.nan) + h["strength"]}

    data, folds = problem(), wdjax.kfold(KEY, 48, 4)
    with (
        jax.debug_nans(False),
        pytest.raises(ValueError, match="inner folds of outer fold 0: .*div"),
    ):
        wdjax.nested_cross_validate(never, GRID, data, folds, key=KEY, inner=3)


@pytest.mark.parametrize(
    "bad, words",
    [
        ({"inner": 1}, "`inner` must be .*2"),
        ({"inner": 2.5}, "`inner` must be"),
        ({"inner": 37}, "outer fold 0: `num_folds` must be between 2 and 36"),
        ({"rule": "best"}, "`rule` must be one of"),
        ({"value": "accuracy"}, "`value` must be one of"),
        ({"inner": 9, "stratify": np.arange(48) // 40}, "smallest class"),
    ],
)
def test_refusals(bad, words):
    data, folds = problem(), wdjax.kfold(KEY, 48, 4)
    with pytest.raises(ValueError, match=words):
        wdjax.nested_cross_validate(ridge, GRID, data, folds, key=KEY, **({"inner": 3} | bad))


def test_folds_of_traced_sizes_are_refused():
    data, folds = problem(), wdjax.kfold(KEY, 48, 4)
    run = lambda folds: wdjax.nested_cross_validate_pure(ridge, GRID, data, folds, key=KEY, inner=3)
    with pytest.raises(ValueError, match="is traced here; make them inside with kfold"):
        jax.jit(run)(folds)


def test_no_fold_has_the_number_that_deals():
    assert DEALING > 2**31  # Folds and seeds are int32.


def test_words_and_a_table_of_the_outer_folds():
    data, folds = problem(), wdjax.kfold(KEY, 48, 4)
    nested = wdjax.nested_cross_validate(ridge, GRID, data, folds, key=KEY, inner=3)
    text = str(nested)
    assert "loss inside" in text and "loss outside" in text
    assert "Nested loss" in text and "95 % interval" in text and "<table" in nested._repr_html_()
    assert nested.gain.num_rows == 1 and nested.gain.method == "examples"
    one = wdjax.nested_cross_validate(
        ridge, {"strength": [1.0, 2.0]}, data, folds, key=KEY, inner=3
    )
    assert one.gain is None and "Choosing a decay" not in str(one)


@pytest.mark.slow
def test_where_there_is_nothing_to_choose_it_claims_a_gain_in_no_more_than_five_of_a_hundred():
    """Rows that differ by luck alone: in examples, and in runs; of 240 data sets."""
    num, num_sets, rows = 40, 240, 5
    grid = wdjax.grid_product(strength=[0.0, 1.0, 2.0, 3.0, 4.0])

    def luck(h, train, valid, key):
        own = jax.random.fold_in(key, h["strength"].astype(jnp.int32))
        of_run = 0.3 * jax.random.normal(own)
        # The targets are each row's losses on the example.
        return {"loss": valid.targets[:, h["strength"].astype(jnp.int32)] + of_run}

    verdicts = {"helps": 0, "hurts": 0, "unclear": 0, "equal": 0}
    for seed in range(num_sets):
        rng = np.random.default_rng(seed)
        losses = rng.normal(size=(num, 1)) + rng.normal(size=(num, rows))
        data = wdjax.Batch(
            np.zeros((num, 1), "float32"), losses.astype("float32"), np.ones(num, "float32")
        )
        key = jax.random.key(seed)
        folds = wdjax.kfold(key, num, 5)
        nested = wdjax.nested_cross_validate(luck, grid, data, folds, key=key, inner=4)
        verdicts["equal" if nested.gain is None else nested.gain.verdict] += 1
    # Five of a hundred in both directions, and three binomial errors of the draws.
    error = 3 * (0.05 * 0.95 / num_sets) ** 0.5
    assert verdicts["helps"] + verdicts["hurts"] <= (0.05 + error) * num_sets, verdicts
    assert verdicts["helps"] <= (0.025 + 3 * (0.025 * 0.975 / num_sets) ** 0.5) * num_sets, verdicts
