"""A strength for every part: slopes against closed forms, what they claim, and the descent."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wdjax
from wdjax.selection import slopes_of_parts, tune_parts
from wdjax.selection.each_part import descend, gain_over_start, split_folds
from wdjax.selection.part_slopes import PartSlopes

RNG = np.random.default_rng(0)


def blocks(num_examples, informative, noise, dtype="float32", scale=1.0):
    """Features that the target is made of, then others that it is not."""
    x = RNG.normal(size=(num_examples, informative + noise))
    y = x[:, :informative].sum(axis=1) + scale * RNG.normal(size=num_examples)
    return wdjax.Batch(*(leaf.astype(dtype) for leaf in (x, y, np.ones(num_examples))))


def two_blocks(informative):
    """A linear model with a weight a block."""

    def init(key, x):
        zeros = jnp.zeros(x.shape[-1], x.dtype)
        return {"a": zeros[:informative], "b": zeros[informative:]}, {}

    def apply(params, state, x, *, key, train):
        return x @ jnp.concatenate([params["a"], params["b"]]), state

    return wdjax.Model(init, apply)


def run_of(model, direction, *, num_epochs, batch_size, schedule=lambda step: 1.0):
    def make_tx(h):
        decay = functools.partial(wdjax.decoupled_decay, 1.0, parts={"a": h["a"], "b": h["b"]})
        rate = lambda step: h["learning_rate"] * schedule(step)
        return wdjax.make_optimizer(direction(), rate, decay)

    fit = wdjax.make_fit(
        model, wdjax.squared_error, make_tx=make_tx, num_epochs=num_epochs, batch_size=batch_size
    )
    score = wdjax.make_score(model, loss=wdjax.squared_error)
    return wdjax.make_fit_and_score(fit, score)


AT = {"a": 0.1, "b": 0.5, "learning_rate": 0.05}
PARTS = ("a", "b")


def test_of_ridge_with_a_strength_a_block_they_are_the_implicit_derivatives(x64):
    # w* = (H + diag lam)^-1 b, so dL_v / dlog lam_p = -g_v' (H + diag lam)^-1 (lam_p w*)_p.
    data = blocks(24, 2, 2, "float64")
    folds = wdjax.kfold(jax.random.key(0), 24, num_folds=2)
    run = run_of(two_blocks(2), optax.identity, num_epochs=2500, batch_size=12)
    found = slopes_of_parts(run, AT, data, folds, key=jax.random.key(1), parts=PARTS)
    expected = np.zeros((2, 2))
    strengths, of_part = np.array([0.1, 0.1, 0.5, 0.5]), np.array([[1, 1, 0, 0], [0, 0, 1, 1]])
    for fold in range(2):
        train, valid = np.asarray(folds.train)[fold], np.asarray(folds.valid)[fold]
        x, y, held_out = data.inputs[train], data.targets[train], data.inputs[valid]
        system = x.T @ x / len(x) + np.diag(strengths)
        w = np.linalg.solve(system, x.T @ y / len(x))
        gradient = held_out.T @ (held_out @ w - data.targets[valid]) / len(valid)
        expected[fold] = [-gradient @ np.linalg.solve(system, m * strengths * w) for m in of_part]
    slopes = [part.slope for part in found.parts]
    np.testing.assert_allclose(slopes, expected.mean(axis=0), rtol=1e-9)


def mlp():
    def init(key, x):
        first, second = jax.random.split(key)
        draw = functools.partial(jax.random.normal, dtype=x.dtype)
        return {"a": draw(first, (x.shape[-1], 5)) / 2, "b": draw(second, (5,)) / 2}, {}

    def apply(params, state, x, *, key, train):
        return jnp.tanh(x @ params["a"]) @ params["b"], state

    return wdjax.Model(init, apply)


def test_of_an_annealed_adam_run_they_are_the_finite_differences(x64):
    data, h = blocks(20, 2, 1, "float64"), 1e-5
    folds = wdjax.kfold(jax.random.key(0), 20, num_folds=2)
    adam = functools.partial(optax.scale_by_adam, eps_root=1e-12)
    anneal = lambda step: 1 - step / 6
    run = run_of(mlp(), adam, num_epochs=3, batch_size=5, schedule=anneal)
    given = {"key": jax.random.key(1)}
    found = slopes_of_parts(run, AT, data, folds, parts=PARTS, **given)
    moves = np.exp(h * np.array([[1, 0], [-1, 0], [0, 1], [0, -1]]))
    grid = {"a": 0.1 * moves[:, 0], "b": 0.5 * moves[:, 1], "learning_rate": np.full(4, 0.05)}
    # With slopes, it is the program that is compiled already.
    scores = wdjax.cross_validate(run, grid, data, folds, slopes=PARTS, **given)
    losses = scores.of("loss").mean(axis=(1, 2))
    differences = (losses[::2] - losses[1::2]) / (2 * h)
    np.testing.assert_allclose([part.slope for part in found.parts], differences, rtol=1e-6)


def ridge(h, train, valid, key):
    """Two blocks of features with a strength each, solved."""
    strengths = jnp.where(jnp.arange(train.inputs.shape[1]) < 4, h["signal"], h["noise"])
    count = train.weights.sum()
    gram = (train.weights[:, None] * train.inputs).T @ train.inputs / count + jnp.diag(strengths)
    w = jnp.linalg.solve(gram, train.inputs.T @ (train.weights * train.targets) / count)
    return {"loss": wdjax.squared_error(valid.inputs @ w, valid.targets)}


SHARED = {"signal": 0.5, "noise": 0.5}
BOTH = ("signal", "noise")


@functools.cache
def planted():
    data = blocks(1200, 4, 60)
    return data, wdjax.kfold(jax.random.key(0), 1200, num_folds=6)


def test_features_that_matter_want_less_and_noise_wants_more():
    data, folds = planted()
    found = slopes_of_parts(ridge, SHARED, data, folds, key=jax.random.key(1), parts=BOTH)
    assert [part.wants for part in found.parts] == ["wants less", "wants more"]
    assert found.z[0] < -3 and found.z[1] > 3 and found.method == "examples"
    assert str(found.parts[1]).startswith("noise: wants more (z = ")
    for part in found.parts:
        # The interval holds for both parts at once, so it is wider than 1.96 errors.
        assert 1.96 * part.error < part.high - part.gain < 4 * part.error
    assert "wants less" in str(found) and "all 2 parts at once" in str(found)


def test_the_descent_finds_them_and_is_judged_better_on_examples_that_did_not_choose():
    data, folds = planted()
    heard = []
    given = {"key": jax.random.key(1), "parts": BOTH, "progress": heard.append}
    found = tune_parts(ridge, SHARED, data, folds, **given)
    assert found.better and found.believed and found.num_judged == 600
    assert found.hparams["signal"] < 0.1 and found.hparams["noise"] > 2
    assert found.steps[-1].score < found.steps[0].score
    assert "is better than the one they share" in found.verdict and "on 600 held-out" in str(found)
    # Three folds choose, with two tangents, and three judge two rows.
    assert found.cost.trainings == 3 * 3 * len(found.steps) + 2 * 3 and found.cost.memory > 0
    assert found.to_dict()["gain"]["verdict"] == "helps"
    # What is judged is what `cross_validate` says of the two rows.
    ends = {name: np.array([0.5, found.hparams[name]]) for name in BOTH}
    judged = wdjax.selection.Folds(*(leaf[3:] for leaf in folds))
    scores = wdjax.cross_validate(ridge, ends, data, judged, key=jax.random.key(2))
    gain = scores.of("loss")[0].mean() - scores.of("loss")[1].mean()
    np.testing.assert_allclose(found.gain.mean, gain, rtol=1e-4)


def test_no_example_of_a_fold_that_judges_has_a_part_in_choosing():
    folds = wdjax.kfold(jax.random.key(3), 23, num_folds=5)
    choosing, judging = split_folds(folds)
    assert len(choosing.train) == 3 and len(judging.train) == 2
    rows = lambda index, mask: set(np.asarray(index)[np.asarray(mask) > 0].tolist())
    judged = rows(judging.valid, judging.valid_mask)
    seen = rows(choosing.train, choosing.train_mask) | rows(choosing.valid, choosing.valid_mask)
    assert not judged & seen and judged | seen == set(range(23))
    for fold in range(2):  # A fold that judges trains on all but what it holds out.
        whole = [rows(leaf[fold], mask[fold]) for leaf, mask in (judging[:2], judging[2:])]
        assert whole[0] | whole[1] == set(range(23)) and not whole[0] & whole[1]


def draws(rng, num_parts, folds=3, seeds=3, examples=100):
    """Scores in which no part has an effect on average: `losses(logs)` of fresh examples and runs.

    The loss of an example is a number of its own plus, for each part, its log strength times a
    skewed one, and runs add to these; all have mean zero.
    """
    own = rng.gamma(0.5, size=(folds, 1, examples))
    of_example = rng.gamma(0.5, size=(num_parts, folds, 1, examples)) - 0.5
    of_run = 0.05 * rng.normal(size=(num_parts, folds, seeds, 1))
    slopes = of_example + of_run
    weights = np.ones((folds, examples))
    held_out = wdjax.selection.HeldOut(
        {}, np.arange(folds * examples).reshape(weights.shape), weights, None, np.full(folds, 200)
    )
    names = [f"part{i}" for i in range(num_parts)]

    def scores(*rows):
        logs = np.log([[row[name] for name in names] for row in rows])
        each = own + 0.02 * np.einsum("rp,pfse->rfse", logs, slopes)
        of_rows = 0.02 * slopes[:, None].repeat(len(rows), 1)
        own_slopes = {n: {"loss": s} for n, s in zip(names, of_rows, strict=True)}
        means = {n: {"loss": s["loss"].mean(-1)} for n, s in own_slopes.items()}
        told = held_out._replace(values={"loss": each}, slopes=own_slopes)
        grid = {name: np.array([row[name] for row in rows]) for name in names}
        return wdjax.Scores(grid, {"loss": each.mean(-1)}, told, {"loss": False}, means)

    return names, scores


@pytest.mark.parametrize("num", [50, pytest.param(150, marks=pytest.mark.slow)])
def test_where_no_part_has_an_effect_at_most_one_search_in_twenty_claims_one(num):
    rng = np.random.default_rng(num)
    wanted = judged = moved = 0
    for _ in range(num):
        names, choose = draws(rng, 4)
        start = dict.fromkeys(names, 1.0)
        steps, _ = descend(choose, start, names, max_steps=1 if num == 50 else 3)
        wanted += any(part.wants != "no evidence" for part in steps[0].slopes.parts)
        end = [step for step in steps if step.kept][-1].strengths
        moved += end != start
        _, judge = draws(rng, 4)  # Other examples and runs.
        judged += gain_over_start(judge(start, end), "loss").verdict in ("helps", "hurts")
    bound = num * 0.05 + 2 * np.sqrt(num * 0.05 * 0.95)
    assert wanted <= bound and judged <= bound, (wanted, judged)
    assert moved > 0.3 * num  # Noise did move the parts: there was something to claim.


def test_a_part_of_which_nothing_is_known_stays_and_a_rise_of_the_score_is_taken_back():
    visited = []

    def train(row):
        """A valley in `a` at its start's half, steep; nothing but noise in `b`."""
        visited.append(dict(row))
        away = np.log(row["a"] / 0.5)
        noise = np.array([1.0, -1.0, 1.0, -1.0])
        losses = (away**2 + np.arange(4) * 0.01)[None, :, None]
        slopes = {"a": (2 * away + 0.01 * noise)[None, :, None], "b": noise[None, :, None]}
        grid = {name: np.array([number]) for name, number in row.items()}
        told = {name: {"loss": slope} for name, slope in slopes.items()}
        return wdjax.Scores(grid, {"loss": losses}, None, {"loss": False}, told)

    steps, reason = descend(train, {"a": 1.0, "b": 1.0}, ("a", "b"), max_steps=8)
    assert all(row["b"] == 1.0 for row in visited)
    # A quarter is as far beyond the valley as 1 is before it: no fall, so the step is halved.
    np.testing.assert_allclose([row["a"] for row in visited[:3]], [1.0, 0.25, 0.5])
    assert [step.kept for step in steps[:3]] == [True, False, True]
    assert "would move further" in reason


def test_no_strength_passes_the_most_that_it_may_be():
    def train(row):
        losses = -np.log(row["a"]) * np.ones((1, 3, 1))
        slope = {"a": {"loss": (-1.0 + 0.01 * np.arange(3))[None, :, None]}}
        return wdjax.Scores({"a": np.array([row["a"]])}, {"loss": losses}, slopes=slope)

    steps, _ = descend(train, {"a": 1.0}, ("a",), max_steps=4, most={"a": 10.0})
    assert steps[-1].strengths["a"] == pytest.approx(10.0)
    far, _ = descend(train, {"a": 1.0}, ("a",), max_steps=9)
    assert far[-1].strengths["a"] == pytest.approx(1e3)


def test_a_constant_rate_and_a_score_without_slopes_are_doubted():
    steps = lambda h, train, valid, key: {"accuracy": jnp.where(valid.targets > 0, 1.0, 0.0)}
    steps.higher_is_better = {"accuracy": True}
    data, folds = planted()
    given = {"key": jax.random.key(1), "parts": BOTH, "value": "accuracy", "annealed": False}
    found = tune_parts(steps, SHARED, data, folds, **given)
    assert ["constant learning rate" in d or "has no slopes" in d for d in found.doubts] == [
        True
    ] * 2
    assert all(d.startswith("Do not believe this: ") for d in found.doubts)
    assert not found.better and found.gain is None and found.hparams == SHARED
    assert "keep the one strength they share" in found.verdict


def test_slopes_without_single_examples_have_the_errors_of_the_folds():
    slopes = np.array([[1.0, 2.0, 3.0, 2.0]])[:, :, None]
    scores = wdjax.Scores(
        {"a": np.ones(1)}, {"loss": np.ones((1, 4, 1))}, slopes={"a": {"loss": slopes}}
    )
    (part,) = PartSlopes.of(scores, ("a",)).parts
    expected = np.std([1, 2, 3, 2], ddof=1) * np.sqrt(1 / 4 + 1 / 3)
    np.testing.assert_allclose([part.slope, part.error, part.z], [2, expected, -2 / expected])
    assert PartSlopes.of(scores, ("a",)).method == "folds"


@pytest.mark.parametrize(
    "given, told",
    [
        ({"parts": "signal"}, r"one to 10 names of numbers in a tuple, got 'signal'"),
        ({"parts": ()}, r"one to 10 names"),
        ({"parts": tuple("abcdefghijk")}, r"one to 10 names .* join some in one pattern or role"),
        ({"parts": ("nois",)}, r"`parts` must be one of .*Did you mean 'noise'"),
        ({"parts": ("noise", "noise")}, r"names 'noise' twice"),
        ({"at": {**SHARED, "noise": 0.0}}, r"strength of 'noise' must be above 0, got 0: .*log"),
        ({"num_folds": 1}, r"two folds or more, got one"),
    ],
)
def test_parts_that_have_no_slopes_are_refused_before_anything_runs(given, told):
    data, folds = planted()
    heard = []
    given = {"parts": BOTH, "at": SHARED, "num_folds": 6, "progress": heard.append, **given}
    at, num_folds, key = given.pop("at"), given.pop("num_folds"), jax.random.key(1)
    folds = wdjax.selection.Folds(*(leaf[:num_folds] for leaf in folds))
    for function in (slopes_of_parts, tune_parts):
        with pytest.raises(ValueError, match=told):
            function(ridge, at, data, folds, key=key, **given)
    assert heard == []


def test_folds_that_cannot_be_split_are_refused_before_anything_runs():
    data, folds = planted()
    heard = []
    given = {"key": jax.random.key(1), "parts": BOTH, "progress": heard.append}
    two = wdjax.selection.Folds(*(leaf[:2] for leaf in folds))
    with pytest.raises(ValueError, match="three folds or more, two to choose on and one to judge"):
        tune_parts(ridge, SHARED, data, two, **given)
    same = wdjax.folds_from_splits([(np.arange(600), np.arange(600, 1200))] * 3)
    with pytest.raises(ValueError, match="nothing is left to choose on; give folds that hold"):
        tune_parts(ridge, SHARED, data, same, **given)
    with pytest.raises(ValueError, match="`max_steps` must be >= 1"):
        tune_parts(ridge, SHARED, data, folds, **given, max_steps=0)
    assert heard == []
