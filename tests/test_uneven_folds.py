"""A fold trains as it would alone: what it trains on is cut out by NumPy and run by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.model_selection import GroupKFold, TimeSeriesSplit
from small_trials import mesh_of

from wdjax.decay import decoupled_decay
from wdjax.losses import squared_error
from wdjax.models import make_mlp
from wdjax.recipe import Recipe, recipe_fit_and_score
from wdjax.selection.cross_validation import cross_validate, cross_validate_pure
from wdjax.selection.folds import Folds, folds_from_splits, kfold
from wdjax.selection.grids import grid_product
from wdjax.selection.trials import trial_program
from wdjax.training import make_fit, make_fit_and_score, make_score, random_order
from wdjax.types import Batch, Model

GRID = grid_product(strength=[0.0, 1.0])
RATE, BATCH, EPOCHS = 0.05, 10, 3
KEY = jax.random.key(7)


def data_of(num_examples=60, dtype=np.float32):
    """A regression in which one row in seven has weight 0: a row like any other to be visited."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(num_examples, 4))
    y = x @ rng.normal(size=4) + 0.3 * rng.normal(size=num_examples)
    weights = np.where(np.arange(num_examples) % 7 == 3, 0, rng.uniform(0.5, 1.5, num_examples))
    return Batch(x.astype(dtype), y.astype(dtype), weights.astype(dtype))


def linear():
    init = lambda key, inputs: ({"w": jnp.ones(inputs.shape[1], inputs.dtype)}, {})
    return Model(init, lambda p, s, inputs, *, key, train: (inputs @ p["w"], s))


def with_batch_statistics():
    """Subtracts the batch's mean, and keeps a running one: a row too many shows in both."""

    def init(key, inputs):
        params = {"w": jax.random.normal(key, inputs.shape[1:], inputs.dtype)}
        return params, {"mean": jnp.zeros(inputs.shape[1], inputs.dtype)}

    def apply(params, state, inputs, *, key, train):
        mean = inputs.mean(axis=0) if train else state["mean"]
        kept = {"mean": 0.9 * state["mean"] + 0.1 * mean} if train else state
        return (inputs - mean[None]) @ params["w"], kept

    return Model(init, apply)


def decayed_sgd(h):
    return optax.chain(optax.sgd(RATE), decoupled_decay(h["strength"], RATE))


def fit_of(model, **options):
    return make_fit(
        model,
        squared_error,
        make_tx=decayed_sgd,
        **{"num_epochs": EPOCHS, "batch_size": BATCH, **options},
    )


def tell_params(fit, batch):
    """All weights and statistics as scores: what cross-validation trained, entry by entry."""
    leaves = [*jax.tree.leaves(fit.params), *jax.tree.leaves(fit.model_state)]
    entries = jnp.concatenate([leaf.ravel() for leaf in leaves])
    return {f"{i}": entries[i] for i in range(entries.size)}


def trial_key(fold, seed=0):
    return jax.random.fold_in(jax.random.fold_in(KEY, fold), seed)


def trained_alone(fit, data, pairs, grid=GRID):
    """`[row, fold, entry]`: each fold's rows cut out by NumPy, and nothing else."""
    run = jax.jit(lambda h, part, key: tell_params(fit(h, part, key), part))
    rows = [{name: values[i] for name, values in grid.items()} for i in range(grid.num_rows)]
    found = [
        [
            list(run(h, jax.tree.map(lambda x, own=own: x[own], data), trial_key(fold)).values())
            for fold, (own, _) in enumerate(pairs)
        ]
        for h in rows
    ]
    return np.array(found)


def trained_together(fit, data, pairs, grid=GRID, **options):
    """The same by `cross_validate`."""
    fit_and_score = make_fit_and_score(fit, tell_params)
    scores = cross_validate(
        fit_and_score, grid, data, folds_from_splits(pairs), key=KEY, **options
    ).values
    entries = [v for name, v in scores.items() if not name.startswith("train_")]
    return np.stack(entries, axis=-1)[:, :, 0]


def pairs_of_kfold(num_examples, num_folds):
    folds = jax.tree.map(np.asarray, kfold(jax.random.key(0), num_examples, num_folds))
    cut = lambda index, mask: [i[m] for i, m in zip(index, mask, strict=True)]
    train, valid = cut(folds.train, folds.train_mask), cut(folds.valid, folds.valid_mask)
    return list(zip(train, valid, strict=True))


SPLITS = {
    # Training parts of 10, 20, ..., 50 rows.
    "time series": (60, list(TimeSeriesSplit(5).split(np.zeros(60)))),
    # 28, 43 and 45 rows.
    "groups": (
        58,
        list(GroupKFold(3).split(np.zeros(58), groups=np.repeat([0, 1, 2], [30, 15, 13]))),
    ),
    # 39 and 40 rows, on either side of a multiple of the batch; 40 and 41.
    "below and at": (59, pairs_of_kfold(59, 3)),
    "at and above": (61, pairs_of_kfold(61, 3)),
}


def counted(run):
    """What `run` returns, and how many programs of trials it adds."""
    before = trial_program(None)._cache_size()
    return run(), trial_program(None)._cache_size() - before


def test_decay_alone_leaves_what_the_steps_of_the_fold_leave():
    """Inputs of zero: each of 3 * (n // 10) steps leaves 1 - 0.05 * strength of a weight."""
    pairs = SPLITS["time series"][1][:3]
    zeros = Batch(np.zeros((60, 4), np.float32), np.zeros(60, np.float32), np.ones(60, np.float32))
    found, programs = counted(lambda: trained_together(fit_of(linear()), zeros, pairs))
    assert programs == 3
    steps = np.array([EPOCHS * (len(train) // BATCH) for train, _ in pairs])
    np.testing.assert_array_equal(steps, [3, 6, 9])
    np.testing.assert_allclose(found[1, :, 0], 0.95**steps, rtol=1e-6)
    np.testing.assert_array_equal(found[0], 1)


def numpy_sgd(data, rows, strength, key):
    """The run of the linear model on `rows` by hand, float64; only the order is the library's."""
    x, y, weights = (np.asarray(leaf)[rows] for leaf in data)
    w = np.ones(x.shape[1])
    for epoch_key in jax.random.split(jax.random.split(key, 4)[1], EPOCHS):
        order = np.asarray(random_order(epoch_key, len(rows)))
        for step in range(len(rows) // BATCH):
            b = order[step * BATCH : (step + 1) * BATCH]
            residual = x[b] @ w - y[b]
            gradient = (weights[b] * residual) @ x[b] / weights[b].sum()
            w = w - RATE * (gradient + strength * w)
    return w


def test_a_fold_trains_as_a_loop_written_by_hand_to_the_last_digits(x64):
    """Rows of weight 0 take their place in a batch; there is no padding in one."""
    data = data_of(60, np.float64)
    pairs = SPLITS["time series"][1][:3]
    by_hand = [
        [numpy_sgd(data, train, strength, trial_key(fold)) for fold, (train, _) in enumerate(pairs)]
        for strength in GRID["strength"]
    ]
    found = trained_together(fit_of(linear()), data, pairs)
    np.testing.assert_allclose(found, by_hand, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "split, num_programs", [("groups", 2), ("below and at", 2), ("at and above", 1)]
)
def test_a_fold_trains_as_it_would_alone_one_program_a_count_of_steps(split, num_programs):
    """A model that normalises by the batch would see one row too many."""
    num_examples, pairs = SPLITS[split]
    data, fit = data_of(num_examples), fit_of(with_batch_statistics())
    alone = trained_alone(fit, data, pairs)
    found, programs = counted(lambda: trained_together(fit, data, pairs))
    assert programs == num_programs
    np.testing.assert_allclose(found, alone, rtol=1e-6, atol=1e-6)
    assert np.ptp(alone, axis=1).min() > 1e-3, "folds that are alike would prove nothing"


def test_on_two_devices_a_fold_trains_as_it_would_alone():
    num_examples, pairs = SPLITS["below and at"]
    data, fit = data_of(num_examples), fit_of(linear())
    found = trained_together(fit, data, pairs, mesh=mesh_of(2), num_seeds=1, trials_at_once=2)
    np.testing.assert_allclose(found, trained_alone(fit, data, pairs), rtol=1e-6, atol=1e-6)


def test_a_schedule_runs_over_the_steps_of_the_fold():
    """By the recipe, whose cosine ends at zero with the run, and which scales by the fold."""
    recipe = Recipe(
        make_model=lambda num_outputs: make_mlp(num_outputs, widths=(3,)),
        num_outputs=1,
        loss="squared_error",
        schedule="cosine",
        optimizer="momentum",
        num_epochs=EPOCHS,
        batch_size=BATCH,
    )
    data = data_of(59)
    data = data._replace(targets=data.targets[:, None])
    pairs = SPLITS["below and at"][1][1:]
    grid = grid_product(strength=[0.0, 1.0], learning_rate=0.05)
    fit_and_score = recipe_fit_and_score(recipe)
    scores = cross_validate(fit_and_score, grid, data, folds_from_splits(pairs), key=KEY).values
    run = jax.jit(fit_and_score)
    for fold, parts in enumerate(pairs):
        train, valid = (jax.tree.map(lambda x, own=own: x[own], data) for own in parts)
        by_itself = run(dict(strength=1.0, learning_rate=0.05), train, valid, trial_key(fold))
        for name, score in by_itself.items():
            np.testing.assert_allclose(scores[name][1, fold, 0], score, rtol=1e-5)


def told_sizes(hparams, train, valid, key):
    """A function of the user's own that ignores the weights: padding would change what it says."""
    return {
        "train": jnp.mean(train.inputs) + hparams["strength"],
        "valid": jnp.sum(valid.inputs),
        "rows": float(train.inputs.shape[0]),
    }


def sizes_by_numpy(data, pairs):
    x = data.inputs
    train = [[x[own].mean() + s for own, _ in pairs] for s in GRID["strength"]]
    valid = [[x[own].sum() for _, own in pairs]] * 2
    return {"train": train, "valid": valid, "rows": [[len(own) for own, _ in pairs]] * 2}


@pytest.mark.parametrize("split", ["groups", "at and above"])
def test_a_function_of_the_users_own_sees_the_rows_of_the_fold_and_no_others(split):
    num_examples, pairs = SPLITS[split]
    data = data_of(num_examples)
    folds = folds_from_splits(pairs)
    own = lambda *arguments: told_sizes(*arguments)
    scores, programs = counted(lambda: cross_validate(own, GRID, data, folds, key=KEY).values)
    kinds = {(len(train), len(valid)) for train, valid in pairs}
    assert programs == len(kinds) == {"groups": 3, "at and above": 2}[split]
    pure = jax.jit(lambda data: cross_validate_pure(own, GRID, data, folds, key=KEY))(data)
    for name, expected in sizes_by_numpy(data, pairs).items():
        np.testing.assert_allclose(scores[name][:, :, 0], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(pure[name][:, :, 0], expected, rtol=1e-5, atol=1e-6)


def test_padding_may_stand_anywhere_in_a_fold():
    num_examples, pairs = SPLITS["at and above"]
    data, folds = data_of(num_examples), jax.tree.map(np.asarray, folds_from_splits(pairs))
    backwards = Folds(*(leaf[:, ::-1] for leaf in folds))
    scores = cross_validate(told_sizes, GRID, data, backwards, key=KEY).values
    for name, expected in sizes_by_numpy(data, pairs).items():
        np.testing.assert_allclose(scores[name][:, :, 0], expected, rtol=1e-5, atol=1e-6)


def test_the_pure_form_trains_each_fold_as_it_would_alone():
    """The sizes of `kfold` are known under `jit` as well, whatever the key."""
    data, fit = data_of(59), fit_of(linear())
    fit_and_score = make_fit_and_score(fit, tell_params)

    @jax.jit
    def run(folds_key, data):
        folds = kfold(folds_key, 59, 3)
        return folds, cross_validate_pure(fit_and_score, GRID, data, folds, key=KEY)

    folds, scores = run(jax.random.key(0), data)
    found = np.stack([scores[f"{i}"][:, :, 0] for i in range(4)], axis=-1)
    alone = trained_alone(fit, data, SPLITS["below and at"][1])
    np.testing.assert_allclose(found, alone, rtol=1e-6, atol=1e-6)
    assert folds.train_mask.sum(axis=1).tolist() == [39, 39, 40]


def test_folds_of_traced_sizes_are_of_one_kind_or_nan(nans_allowed):
    """Where they are an argument of `jit`, nobody can know how many steps a fold takes."""
    for split, alike in (("below and at", [False, False, True]), ("at and above", [True] * 3)):
        num_examples, pairs = SPLITS[split]
        data, fit = data_of(num_examples), fit_of(linear())
        fit_and_score = make_fit_and_score(fit, tell_params)
        run = jax.jit(lambda f, d, run=fit_and_score: cross_validate_pure(run, GRID, d, f, key=KEY))
        scores = run(folds_from_splits(pairs), data)
        found = np.stack([scores[f"{i}"][:, :, 0] for i in range(4)], axis=-1)
        alone = trained_alone(fit, data, pairs)
        alone[:, ~np.array(alike)] = np.nan
        np.testing.assert_allclose(found, alone, rtol=1e-6, atol=1e-6)
    run = jax.jit(lambda folds, data: cross_validate_pure(told_sizes, GRID, data, folds, key=KEY))
    scores = run(folds_from_splits(pairs), data)
    # Every fold is padded in one of its parts.
    assert np.isnan(scores["train"]).all()


def test_what_several_programs_found_is_kept_and_found_again(tmp_path):
    num_examples, pairs = SPLITS["below and at"]
    data, fit = data_of(num_examples), fit_of(linear())
    events = []
    options = dict(cache=tmp_path, progress=events.append)
    first = trained_together(fit, data, pairs, **options)
    assert events[-1].done == events[-1].total == 6 and events[-1].remaining == 0.0
    assert [event.cached for event in events] == [0] * len(events)
    stores = sorted(tmp_path.iterdir())
    assert len(stores) == 2
    events.clear()
    np.testing.assert_array_equal(trained_together(fit, data, pairs, **options), first)
    (event,) = events
    assert event.cached == event.done == 6
    # Two folds have 39 rows, one 40: without the larger store four trials run again.
    max(stores, key=lambda path: path.stat().st_size).unlink()
    events.clear()
    np.testing.assert_array_equal(trained_together(fit, data, pairs, **options), first)
    assert {event.cached for event in events} == {2}


def test_rows_beyond_the_number_of_examples_are_no_part_of_a_run(key):
    """Known, they are cut off; traced, they are padding, of which no batch holds a row."""
    data, fit = data_of(36), fit_of(linear())
    h = {"strength": jnp.float32(1.0)}
    own = jax.tree.map(lambda x: x[:33], data)
    spoilt = data._replace(inputs=np.where(np.arange(36)[:, None] < 33, data.inputs, 1e9))
    alone = jax.jit(fit)(h, own, key).params["w"]
    cut = jax.jit(lambda h, data, key: fit(h, data, key, num_examples=33))(h, spoilt, key)
    np.testing.assert_array_equal(cut.params["w"], alone)
    padded = jax.jit(lambda h, data, key, n: fit(h, data, key, num_examples=n))
    found = padded(h, spoilt, key, 33).params["w"]
    np.testing.assert_allclose(found, alone, rtol=1e-6, atol=1e-6)
    with jax.debug_nans(False):
        assert np.isnan(padded(h, spoilt, key, 29).params["w"]).all()
    for number, words in (
        (0, "`num_examples` must be between 1 and 36, got num_examples=0"),
        (37, "`num_examples` must be between 1 and 36, got num_examples=37"),
        (3.5, r"`num_examples` must be an integer, got .*3\.5"),
    ):
        with pytest.raises(ValueError, match=words):
            fit(h, data, key, num_examples=jnp.asarray(number))


def test_a_batch_larger_than_the_smallest_fold_is_refused():
    pairs = list(TimeSeriesSplit(5).split(np.zeros(48)))
    with pytest.raises(ValueError, match="`batch_size` must be at most the 8 examples"):
        trained_together(fit_of(linear()), data_of(48), pairs)


def test_scores_of_single_examples_stand_where_the_examples_of_the_fold_do(tmp_path):
    """Held-out parts of two widths in two programs, cached and found again."""
    num_examples, pairs = SPLITS["below and at"]
    data, model = data_of(num_examples), linear()
    fit_and_score = make_fit_and_score(fit_of(model), make_score(model, loss=squared_error))
    run = lambda: cross_validate(
        fit_and_score, GRID, data, folds_from_splits(pairs), key=KEY, cache=tmp_path
    )
    scores = run()
    values, held_out = scores.held_out.values["loss"], scores.held_out
    assert values.shape == (2, 3, 1, 20)
    for fold, (_, own) in enumerate(pairs):
        np.testing.assert_array_equal(held_out.examples[fold][: len(own)], own)
        assert (held_out.weights[fold][len(own) :] == 0).all()
        assert (values[:, fold, 0, len(own) :] == 0).all()
        means = np.average(values[:, fold, 0, : len(own)], weights=data.weights[own], axis=1)
        np.testing.assert_allclose(scores.values["loss"][:, fold, 0], means, rtol=1e-5)
    np.testing.assert_array_equal(run().held_out.values["loss"], values)
