"""The search by slopes, of real runs: what it finds, what it costs, and when it is doubted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wdjax

RNG = np.random.default_rng(0)


def table(num_examples=60, num_columns=20, noise=2.0):
    x = RNG.normal(size=(num_examples, num_columns))
    y = x @ (0.5 * RNG.normal(size=num_columns)) + noise * RNG.normal(size=num_examples)
    return wdjax.Batch(*(leaf.astype("float32") for leaf in (x, y, np.ones(num_examples))))


DATA = table()
FOLDS = wdjax.kfold(jax.random.key(0), 60, num_folds=5)


def descent(h, train, valid, key):
    """Ridge by 500 steps of descent from zero, w <- w - eta (H w - b + lam w), written out in the
    eigenvectors of H: w = sum_i v_i (1 - (1 - eta (h_i + lam))^500) / (h_i + lam) v_i'b."""
    hessian = train.inputs.T @ train.inputs / len(train.targets)
    values, vectors = jnp.linalg.eigh(hessian)
    pull = values + h["strength"]
    b = vectors.T @ train.inputs.T @ train.targets / len(train.targets)
    w = vectors @ ((1 - (1 - h["learning_rate"] * pull) ** 500) / pull * b)
    error = valid.inputs @ w - valid.targets
    loss = jnp.where(jnp.abs(w).max() < 1e6, error**2 / 2, jnp.nan)
    return {"loss": loss, "accuracy": (jnp.abs(error) < 1).astype(loss.dtype)}


descent.higher_is_better = {"accuracy": True}


def search(run=descent, *, strength=50.0, learning_rate=0.02, folds=FOLDS, **more):
    start = {"strength": strength, "learning_rate": learning_rate}
    return wdjax.selection.search_by_slopes(run, start, DATA, folds, key=jax.random.key(1), **more)


@functools.cache
def from_afar():
    return search()


@functools.cache
def of_a_grid():
    grid = wdjax.grid_product(strength=np.geomspace(0.01, 50, 41), learning_rate=[0.02])
    return wdjax.cross_validate(descent, grid, DATA, FOLDS, key=jax.random.key(1))


def test_from_far_beyond_it_finds_what_a_grid_of_forty_rows_finds():
    losses = of_a_grid().of("loss").mean(axis=(1, 2))
    found = from_afar()
    assert found.believed and found.doubts == ()
    assert found.choice.mean - losses.min() < 0.05 * np.ptp(losses)
    best = float(of_a_grid().grid["strength"][losses.argmin()])
    assert 1 / 4 < found.choice.hparams["strength"] / best < 4


def test_its_cost_counts_tangents_and_the_row_at_zero():
    found = from_afar()
    rows = len(found.scores.grid["strength"])
    # Five folds: a row at zero, and the others with one tangent each.
    assert found.cost.trainings == 5 * (1 + 2 * (rows - 1)) and found.cost.memory > 0
    assert 3 <= rows <= 7
    without = search(zero=False, max_rows=2)
    assert without.cost.trainings == 20


def test_the_rows_stand_in_order_and_the_choice_is_judged_against_zero():
    found = from_afar()
    strengths = np.asarray(found.scores.grid["strength"])
    assert strengths[0] == 0 and (np.diff(strengths) > 0).all()
    slopes = found.scores.slope_of("loss")
    assert np.isnan(slopes[0]).all() and np.isfinite(slopes[1:]).all()
    assert found.choice.gain is not None and found.choice.gain.num_rows == len(strengths) - 1
    assert found.choice.index in found.choice.confident_set
    again = wdjax.choose(found.scores)
    assert again == found.choice
    alone = wdjax.cross_validate(
        descent,
        wdjax.grid_product(**{name: [axis[1]] for name, axis in found.scores.grid.items()}),
        DATA,
        FOLDS,
        key=jax.random.key(1),
    )
    np.testing.assert_allclose(found.scores.of("loss")[1], alone.of("loss")[0], rtol=1e-5)
    examples = found.scores.held_out.values["loss"]
    np.testing.assert_allclose(examples.mean(axis=-1), found.scores.of("loss"), rtol=1e-5)


@pytest.mark.usefixtures("nans_allowed")
def test_two_numbers_are_searched_and_the_learning_rate_at_zero_too():
    """500 small steps from zero regularise as decay does, so that zero is nearly as good, at a
    learning rate of its own."""
    heard = []
    found = search(
        strength=5.0,
        learning_rate=0.004,
        slopes=("strength", "learning_rate"),
        within={"learning_rate": (1e-4, 0.1)},
        progress=heard.append,
    )
    losses = of_a_grid().of("loss").mean(axis=(1, 2))
    assert found.believed and found.choice.mean < losses.min() + 0.05 * np.ptp(losses)
    strengths, rates = (np.asarray(found.scores.grid[n]) for n in ("strength", "learning_rate"))
    at_zero = strengths == 0
    assert 3 <= at_zero.sum() <= 7 and len(strengths) - at_zero.sum() >= 2
    num_rows = len(at_zero)
    assert found.cost.trainings == 5 * (2 * at_zero.sum() + 3 * (num_rows - at_zero.sum()))
    done = [each.done for each in heard]
    assert done == sorted(done) and done[-1] == 5 * num_rows
    # The slopes at zero are in the learning rate alone.
    assert np.isnan(found.scores.slope_of("loss", "strength")[at_zero]).all()
    assert np.isfinite(found.scores.slope_of("loss", "learning_rate")).all()
    # A grid of learning rates without decay is nowhere better than the best that it found.
    grid = wdjax.grid_product(strength=[0.0], learning_rate=np.geomspace(1e-4, 0.02, 24))
    every = wdjax.cross_validate(descent, grid, DATA, FOLDS, key=jax.random.key(1)).of("loss")
    best = found.scores.of("loss")[found.choice.best_zero].mean()
    assert best < every.mean(axis=(1, 2)).min() + 0.05 * np.ptp(losses)


@pytest.mark.usefixtures("nans_allowed")
def test_where_the_best_row_is_the_first_no_row_at_zero_is_trained_twice():
    both = {"slopes": ("strength", "learning_rate"), "within": {"learning_rate": (1e-6, 0.1)}}
    found = search(strength=5.0, learning_rate=0.05, max_rows=2, **both)
    rows = list(
        zip(*(np.asarray(axis).tolist() for axis in found.scores.grid.values()), strict=True)
    )
    assert len(set(rows)) == len(rows)
    assert found.choice.hparams["strength"] == 0 or found.choice.gain is not None


def planted(h, train, valid, key):
    """With decay (log strength)^2 + (log 10 rate)^2; without, the larger the rate the better."""
    rate = jnp.log(10 * h["learning_rate"])
    decayed = jnp.log(jnp.maximum(h["strength"], 1e-6)) ** 2 + rate**2
    loss = jnp.where(h["strength"] > 0, decayed, 20 - rate / 2)
    return {"loss": loss + 0.1 * valid.targets}


def test_rows_at_zero_that_run_out_are_doubted():
    both = {"slopes": ("strength", "learning_rate"), "strength": 1.5, "learning_rate": 0.1}
    found = search(planted, **both)
    (doubt,) = found.doubts
    assert doubt.startswith("Do not believe this: at strength 0, the best row has the largest lear")
    assert "rows allowed" not in found.reason and found.choice.hparams["strength"] > 0.5
    strengths, rates = (np.asarray(found.scores.grid[n]) for n in ("strength", "learning_rate"))
    at_zero = np.sort(rates[strengths == 0])
    assert 6 <= len(at_zero) <= 7 and at_zero[-1] > 1e3 * at_zero[0]


def test_rows_that_run_out_are_doubted():
    found = search(strength=1e-4, max_rows=2)
    assert not found.believed and "rows allowed" in found.reason
    assert "largest strength tried, and the score still falls there" in found.doubts[0]


def test_one_fold_a_constant_rate_and_a_score_of_steps_are_doubted():
    split = [(np.arange(40), np.arange(40, 60))]
    one = search(folds=wdjax.folds_from_splits(split), max_rows=2, annealed=False)
    assert [doubt.startswith("Do not believe this: ") for doubt in one.doubts][:2] == [True, True]
    assert "with one fold" in one.doubts[0] and "constant learning rate" in one.doubts[1]
    steps = search(value="accuracy", max_rows=2)
    assert any("accuracy has no slopes" in doubt for doubt in steps.doubts)


@pytest.mark.usefixtures("nans_allowed")
def test_a_start_that_diverges_is_left_downwards():
    within = {"learning_rate": (1e-3, 100.0)}
    found = search(
        strength=0.1, learning_rate=30.0, slopes=("learning_rate",), within=within, max_rows=4
    )
    finite = np.isfinite(found.scores.of("loss")).all(axis=(1, 2))
    assert not finite.all() and finite.any()
    assert found.choice.hparams["learning_rate"] < 30 / 4


@pytest.mark.parametrize(
    "given, told",
    [
        ({"slopes": "strength"}, r"one or two numbers to search, in a tuple, got 'strength'"),
        ({"slopes": ()}, r"one or two numbers"),
        ({"slopes": ("strength", "learning_rate", "width")}, r"one or two numbers"),
        ({"slopes": ("strength", "strength")}, r"names 'strength' twice"),
        ({"slopes": ("strenght",)}, r"`slopes` must be one of .*Did you mean 'strength'"),
        ({"strength": 0.0}, r"start\['strength'\]` must be above 0 .* got 0: .* logarithms"),
        ({"within": {"strength": (0.1, 1.0)}}, r"within 0.1 to 1, got 50"),
        ({"within": {"strenght": (0.1, 1.0)}}, r"`within` must be one of .*Did you mean"),
        ({"max_rows": 1}, r"`max_rows` must be >= 2, got max_rows=1"),
        ({"value": "los"}, r"`value` must be one of .*Did you mean 'loss'"),
        ({"rule": "best"}, r"`rule` must be one of"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_runs(given, told):
    heard = []
    with pytest.raises(ValueError, match=told):
        search(**given, progress=heard.append)
    assert heard == []


def problem(grid, **more):
    given = {"fit_and_score": descent, "data": DATA, "folds": FOLDS, "key": jax.random.key(1)}
    return wdjax.selection.Problem(grid=grid, **given, **more)


GRID = wdjax.grid_product(strength=[0.0, 0.1, 1.0, 10.0], learning_rate=[0.02])


def test_by_slopes_searches_what_the_grid_varies_within_its_ends():
    way = wdjax.selection.WAYS["slopes"]
    told = way.plan(problem(GRID, start={"strength": 500.0, "learning_rate": 7.0}))
    assert told.startswith("at most 6 rows x 5 folds x 1 seeds") and "strength 10" in told
    assert "from strength 1, " in way.plan(problem(GRID))
    found = way.search(problem(GRID, annealed=False))
    strengths = np.asarray(found.scores.grid["strength"])
    assert strengths[0] == 0 and strengths[1:].min() > 0.099 and strengths.max() < 10.01
    assert len(np.unique(found.scores.grid["learning_rate"])) == 1
    assert ["constant learning rate" in doubt for doubt in found.doubts] == [True]


@pytest.mark.parametrize("numbers", [{}, {"learning_rate": [0.1, 0.2], "slope": [1.0, 2.0]}])
def test_a_grid_that_varies_nothing_or_three_numbers_is_not_searched_by_slopes(numbers):
    strengths = [0.1, 1.0] if numbers else [0.0, 0.1]
    grid = wdjax.grid_product(strength=strengths, **numbers)
    with pytest.raises(ValueError, match=r"one or two numbers .* varies.* or choose by the grid"):
        wdjax.selection.WAYS["slopes"].plan(problem(grid))
