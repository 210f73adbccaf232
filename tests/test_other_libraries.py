"""Models of equinox, nnx, linen and haiku, pairs and dicts: loss, decay, parts, audit, runs."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wdjax
from wdjax.report import results_of, write_report

with warnings.catch_warnings():  # Another library's warnings are its own.
    warnings.simplefilter("ignore")
    eqx = pytest.importorskip("equinox")
    hk = pytest.importorskip("haiku")

X = np.random.default_rng(0).normal(size=(24, 4)).astype("float32")
Y = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)
DATA = wdjax.Batch(X, Y, np.ones(24, "float32"))


def mlp(key):
    return eqx.nn.MLP(4, 3, 8, 1, key=key)


class Dropped(eqx.Module):
    first: eqx.nn.Linear
    dropout: eqx.nn.Dropout
    counts: jax.Array

    def __init__(self, key):
        self.first, self.dropout = eqx.nn.Linear(4, 3, key=key), eqx.nn.Dropout(0.5)
        self.counts = jnp.arange(3)

    def __call__(self, x, *, key=None):
        return self.first(self.dropout(x, key=key)) + self.counts


class Normed(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    last: eqx.nn.Linear

    def __init__(self, key):
        one, two = jax.random.split(key)
        self.first, self.last = eqx.nn.Linear(4, 8, key=one), eqx.nn.Linear(8, 3, key=two)
        self.norm = eqx.nn.BatchNorm(8, axis_name="batch", mode="batch")

    def __call__(self, x, state):
        x, state = self.norm(self.first(x), state)
        return self.last(jax.nn.relu(x)), state


def test_an_equinox_module_is_its_own_tree_and_gives_what_it_gives(key):
    model, module = wdjax.from_equinox(mlp), mlp(key)
    params, state = model.init(key, X)
    assert jax.tree.structure(params) == jax.tree.structure(
        eqx.filter(module, eqx.is_inexact_array)
    )
    outputs, _ = model.apply(params, state, X, key=None, train=False)
    np.testing.assert_allclose(outputs, jax.vmap(module)(X), rtol=1e-6)
    back = eqx.combine(params, eqx.filter(module, eqx.is_inexact_array, inverse=True))
    np.testing.assert_array_equal(back(X[0]), module(X[0]))
    parts = wdjax.resolve_parts({"layers/*/weight": 1.0, "*": 0.0}, params)
    assert parts.layers[1].weight == 1.0 and parts.layers[1].bias == 0.0
    assert wdjax.matrices_only(params).layers[0].weight == 1.0


def test_dropout_draws_for_each_example_in_training_alone_and_integers_stay(key):
    model = wdjax.from_equinox(Dropped)
    params, state = model.init(key, X)
    assert [leaf.dtype for leaf in jax.tree.leaves(params)] == [np.float32] * 2
    module = Dropped(key)
    judged, _ = model.apply(params, state, X, key=None, train=False)
    np.testing.assert_allclose(judged, jax.vmap(module.first)(X) + jnp.arange(3)[None], rtol=1e-6)
    keys = jax.random.split(key, len(X))
    trained, _ = model.apply(params, state, X, key=key, train=True)
    expected = jax.vmap(lambda x, k: module(x, key=k))(X, keys)
    np.testing.assert_allclose(trained, expected, rtol=1e-6)
    assert np.abs(trained - judged).max() > 0.1


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_batch_statistics_of_equinox_are_the_models_state(key):
    with jax.numpy_rank_promotion("allow"):
        model = wdjax.from_equinox(eqx.nn.make_with_state(Normed))
        params, state = model.init(key, X)
        module, its_state = eqx.nn.make_with_state(Normed)(key)
        outputs, changed = model.apply(params, state, X, key=key, train=True)
        over = jax.vmap(module, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        expected, its_state = over(X, its_state)
        np.testing.assert_allclose(outputs, expected, rtol=1e-5)
        jax.tree.map(np.testing.assert_allclose, changed["state"], its_state)
        judged, kept = model.apply(params, changed, X, key=None, train=False)
        inference = eqx.nn.inference_mode(module)
        of = jax.vmap(inference, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        np.testing.assert_allclose(judged, of(X, its_state)[0], rtol=1e-5)
        assert kept is changed


def forward(x):
    return hk.nets.MLP([8, 3])(x)


def with_switch(x, is_training):
    x = hk.BatchNorm(True, True, 0.9)(hk.Linear(8)(x), is_training)
    return hk.Linear(3)(hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x)


def haiku():
    return wdjax.from_pair(*hk.transform(forward))


def haiku_without_key():
    return wdjax.from_pair(*hk.without_apply_rng(hk.transform(forward)), takes_key=False)


def haiku_with_state():
    pair = hk.transform_with_state(with_switch)
    return wdjax.from_pair(*pair, has_state=True, train_argument="is_training")


def dicts():
    def init(key, inputs):
        one, two = jax.random.split(key)
        return {
            "w": {"0": jax.random.normal(one, (4, 8)) / 2, "1": jax.random.normal(two, (8, 3)) / 3},
            "b": jnp.zeros(3),
        }

    def apply(params, inputs):
        return jnp.tanh(inputs @ params["w"]["0"]) @ params["w"]["1"] + params["b"][None]

    return wdjax.from_pair(init, apply, takes_key=False)


KINDS = {
    "equinox": lambda: wdjax.from_equinox(mlp),
    "haiku": haiku,
    "haiku without a key": haiku_without_key,
    "haiku with state": haiku_with_state,
    "dicts": dicts,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_any_of_them_is_trained_decayed_audited_and_judged(kind, key):
    with jax.numpy_rank_promotion("allow"):  # Theirs.
        model = KINDS[kind]()

        def make_tx(h):
            decay = partial(wdjax.decoupled_decay, h["strength"], parts=wdjax.matrices_only)
            return wdjax.make_optimizer(optax.scale_by_adam(eps_root=1e-12), 0.05, decay)

        fit = wdjax.make_fit(
            model, wdjax.cross_entropy, make_tx=make_tx, num_epochs=15, batch_size=8
        )
        fitted = jax.jit(fit)({"strength": 0.1}, DATA, key)
        loss = fitted.history["loss"]
        assert loss[-1] < 0.9 * loss[0]
        if kind != "dicts":  # Whose names tell nothing: the axes decide.
            report = wdjax.audit(fitted.params, make_tx({"strength": 0.1}))
            rates = {leaf.path: leaf.rate for leaf in report.leaves}
            assert len(rates) >= 4
            for path, rate in rates.items():
                is_matrix = path.endswith(("weight", "/w"))
                np.testing.assert_allclose(rate, 0.005 if is_matrix else 0, rtol=1e-4, atol=1e-9)
        fit_and_score = wdjax.make_fit_and_score(
            fit, wdjax.make_score(model, loss=wdjax.cross_entropy)
        )
        folds = wdjax.kfold(key, 24, num_folds=2)
        grid = wdjax.grid_product(strength=[0.0, 10.0])
        scores = wdjax.cross_validate(fit_and_score, grid, DATA, folds, key=key)
        losses = scores.of("loss").mean(axis=(1, 2))
        assert np.isfinite(losses).all() and abs(losses[1] - losses[0]) > 0.01


def test_a_loop_of_ones_own_over_an_unfiltered_module(key):
    """Functions and numbers of Python that stand in the tree are passed over."""
    module = mlp(key)
    penalty = wdjax.l2_penalty(0.1)
    weights = [layer.weight for layer in module.layers] + [layer.bias for layer in module.layers]
    expected = 0.05 * sum(float(jnp.sum(w**2)) for w in weights)
    np.testing.assert_allclose(penalty(module), expected, rtol=1e-5)
    trained = eqx.filter(module, eqx.is_inexact_array)
    tx = optax.adamw(0.01, weight_decay=0.1, mask=wdjax.matrices_only)
    wdjax.assert_decays(tx, trained, {"*/weight": 0.1, "*": 0.0}, learning_rate=0.01)


@pytest.mark.parametrize(
    "call, words",
    [
        (
            lambda: wdjax.regularized_loss(mlp(jax.random.key(0)), wdjax.cross_entropy),
            "got the equinox module MLP; write from_equinox",
        ),
        (lambda: wdjax.from_equinox(mlp(jax.random.key(0))), r"from_equinox\(lambda key: MLP"),
        (lambda: wdjax.from_equinox(eqx.nn.MLP), "from_equinox"),
        (lambda: wdjax.from_pair(forward, lambda x: x), r"must take \(params, key, inputs\)"),
        (
            lambda: wdjax.from_pair(forward, lambda params, x: x, train_argument="train"),
            r"must take \(params, key, inputs, \*, train\)",
        ),
    ],
)
def test_what_is_no_maker_and_no_pair_is_told_how_to_write_it(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_scores_of_any_loop_have_a_page(tmp_path):
    rng = np.random.default_rng(0)
    losses = np.array([0.9, 0.5, 0.7])[:, None, None] + 0.01 * rng.normal(size=(3, 5, 2))
    scores = wdjax.Scores.of({"loss": losses}, {"strength": [0.0, 0.1, 1.0]})
    choice = wdjax.choose(scores)
    report = wdjax.audit({"w": jnp.ones((2, 2))}, optax.adamw(0.01, weight_decay=0.1))
    results = results_of(scores, choice, audit=report, name="my loop", notes=["Of 30 runs."])
    write_report(results, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    for words in ("Chosen: strength 0.1", "Decay helps", "Of 30 runs.", "my loop", "<svg"):
        assert words in page, words
    assert "Who was decayed" in page and "No command given" not in page and "refit" not in page
    with pytest.raises(ValueError, match="`choice` is of row 7, and `scores` have 3 rows"):
        results_of(scores, choice._replace(index=7))
