"""The audits of public code: the page holds what is measured, and the optimisers are as said."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wdjax
from experiments.audits import measure, page, trees
from experiments.audits.rows import ROWS

BY_NAME = {row.name: row for row in ROWS}
FACTS = page.read_facts()
NAMES = [row.name for row in ROWS]


def seen(row, learning_rate, num_steps=measure.HELD):
    """Per path, the share that the last of some updates without gradients takes of a leaf."""
    params, tx = trees.small_params(row.tree), row.make(lambda t: jnp.asarray(learning_rate))
    zero = jax.tree.map(jnp.zeros_like, params)

    def one_step(state, _):
        updates, state = tx.update(zero, state, params)
        return state, updates

    _, updates = jax.jit(lambda: jax.lax.scan(one_step, tx.init(params), None, num_steps))()
    inner = lambda u, w: -float(np.vdot(u[-1], w) / np.vdot(w, w))
    rates = jax.tree.map(inner, jax.device_get(updates), jax.device_get(params))
    return {
        "/".join(entry.key for entry in path): rate
        for path, rate in jax.tree_util.tree_leaves_with_path(rates)
    }


def test_the_page_holds_the_table_of_the_facts():
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.with_block(text, page.block_text(ROWS, FACTS)) == text
    assert sorted(FACTS) == sorted(NAMES) and len(set(NAMES)) == len(ROWS)
    assert len({row.repository for row in ROWS}) >= 12


@pytest.mark.parametrize("name", NAMES)
def test_each_leaf_loses_at_the_peak_what_the_facts_say(name):
    row, leaves = BY_NAME[name], FACTS[name]["leaves"]
    rates = seen(row, FACTS[name]["peak_learning_rate"])
    assert sorted(rates) == sorted(leaves)
    for path, rate in rates.items():
        if leaves[path]["unmeasured"] is None:
            assert rate == pytest.approx(leaves[path]["at_peak"], rel=1e-4, abs=1e-15), path


@pytest.mark.parametrize("name", NAMES)
def test_the_formula_says_the_rates_of_what_decays(name):
    """And a codebase without a formula has no rate that was measured."""
    row, found = BY_NAME[name], FACTS[name]
    rates = [found["leaves"][path] for path in found["decaying"]]
    if row.rate is None:
        assert rates and all(leaf["unmeasured"] for leaf in rates)
        return
    peak, last = measure.peak_and_last(row)
    assert (peak, last) == (found["peak_learning_rate"], found["last_learning_rate"])
    for leaf in rates:
        assert leaf["at_peak"] == pytest.approx(float(row.rate(peak)), rel=1e-3)
        assert leaf["at_end"] == pytest.approx(float(row.rate(last)), rel=1e-3, abs=1e-12)
    assert bool(rates) == bool(row.rate(peak))


@pytest.mark.parametrize("name", ["flax nlp_seq", "Kauldron, ViT-B/16", "midGPT, OpenWebText"])
def test_what_a_run_removes_is_what_the_formulas_of_the_library_say(name):
    row, found = BY_NAME[name], FACTS[name]
    parts = {path: float(path in found["decaying"]) for path in found["leaves"]}
    described = wdjax.describe_decay(
        trees.small_params(row.tree),
        parts,
        1.0,
        learning_rate=lambda t: row.rate(row.learning_rate(t)),
        num_steps=row.num_steps,
    )
    removed = {leaf.path: leaf.removed for leaf in described.leaves}
    assert removed[found["decaying"][0]] == pytest.approx(found["removed"], rel=1e-3)
    assert found["removed"] == measure.removed_in_run(row)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_audit_says_again_what_the_facts_say(name):
    again, kept = measure.facts_of(BY_NAME[name]), FACTS[name]
    assert again["decaying"] == kept["decaying"] and again["warnings"] == kept["warnings"]
    for path, leaf in again["leaves"].items():
        for when in ("at_peak", "at_end"):
            wanted = kept["leaves"][path][when]
            same = pytest.approx(wanted, rel=1e-4, abs=1e-15) if wanted is not None else None
            assert leaf[when] == same, (path, when)


# Against updates written in NumPy, in float64.


def in_numpy(kind, params, grads_of, learning_rate, num_steps=6):
    """The weights after some steps, of a dict of arrays."""
    w = {k: np.asarray(v, np.float64) for k, v in params.items()}
    m = {k: np.zeros_like(v) for k, v in w.items()}
    v = {k: np.zeros_like(x) for k, x in w.items()}
    for t in range(num_steps):
        g, lr = {k: np.asarray(x, np.float64) for k, x in grads_of(t).items()}, learning_rate(t)
        for k in w:
            w[k] = w[k] + kind(k, w[k], g[k], m, v, t, lr)
    return w


def adam_direction(k, g, m, v, t, b2, eps):
    m[k], v[k] = 0.9 * m[k] + 0.1 * g, b2 * v[k] + (1 - b2) * g**2
    return m[k] / (1 - 0.9 ** (t + 1)) / (np.sqrt(v[k] / (1 - b2 ** (t + 1))) + eps)


def of_lm1b(k, w, g, m, v, t, lr):
    return -lr * (adam_direction(k, g, m, v, t, 0.98, 1e-9) + 0.1 * w)


def of_midgpt(k, w, g, m, v, t, lr):
    return -lr * (adam_direction(k, g, m, v, t, 0.95, 1e-8) + 1e-4 / 1e-3 * w)


def of_imagenet(k, w, g, m, v, t, lr):
    g = g + (1e-4 * w if w.ndim > 1 else 0)
    m[k] = 0.9 * m[k] + g
    return -lr * (0.9 * m[k] + g)


def of_sst2(k, w, g, m, v, t, lr):
    m[k] = 0.9 * m[k] + g
    return -lr * m[k] + 3e-6 * w


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("flax lm1b", of_lm1b),
        ("midGPT, OpenWebText", of_midgpt),
        ("flax imagenet, ResNet-50", of_imagenet),
        ("flax sst2", of_sst2),
    ],
)
def test_steps_with_gradients_are_those_of_numpy(name, kind):
    r = np.random.default_rng(0)
    params = {"w": r.normal(size=(3, 2)).astype("float32"), "b": np.ones(2, "float32")}
    drawn = [
        {k: 0.01 * r.normal(size=np.shape(x)).astype("float32") for k, x in params.items()}
        for _ in range(6)
    ]
    rate = lambda t: 0.01 * (t + 1)
    tx, w = BY_NAME[name].make(rate), jax.tree.map(jnp.asarray, params)
    state = tx.init(w)
    for grads in drawn:
        updates, state = tx.update(grads, state, w)
        w = optax.apply_updates(w, updates)
    wanted = in_numpy(kind, params, lambda t: drawn[t], rate)
    for k in params:
        assert np.max(np.abs(wanted[k] - params[k])) > 1e-3
        np.testing.assert_allclose(w[k], wanted[k], rtol=2e-6, atol=2e-6)


# Minimal reproductions of what is said to be wrong.


def after(tx, w, num_steps):
    """The weights after steps without gradients."""

    def one_step(carry, _):
        w, state = carry
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, w), state, w)
        return (optax.apply_updates(w, updates), state), None

    return jax.lax.scan(one_step, (w, tx.init(w)), None, num_steps)[0][0]


def test_decay_after_the_descent_makes_weights_grow():
    w = {"kernel": jnp.full((2, 2), 3.0)}
    descent, decay = optax.sgd(0.1, momentum=0.9), optax.add_decayed_weights(1e-3)
    wrong, right = optax.chain(descent, decay), optax.chain(decay, descent)
    grown = after(wrong, w, 500)["kernel"]
    np.testing.assert_allclose(grown, 3.0 * (1 + 1e-3) ** 500, rtol=1e-4)
    assert np.all(after(right, w, 500)["kernel"] < 3.0)
    with pytest.raises(AssertionError, match="kernel"):
        wdjax.assert_decays(wrong, w, {"*": 1e-3})


def test_a_mask_by_axes_lets_the_biases_of_attention_decay():
    import flax.linen as nn

    attention = nn.MultiHeadDotProductAttention(num_heads=2)
    params = attention.init(jax.random.key(0), jnp.ones((1, 3, 4)))["params"]
    mask = lambda params: jax.tree.map(lambda leaf: leaf.ndim != 1, params)
    tx = optax.adamw(1e-2, weight_decay=0.1, mask=mask)
    ones = jax.tree.map(jnp.ones_like, params)
    kept = after(tx, ones, 1)
    moved = {name for name, part in kept.items() if np.all(part["bias"] < 1)}
    assert moved == {"query", "key", "value"}  # All but `out`, whose bias has one axis.
    decay = functools.partial(wdjax.decoupled_decay, 0.1, parts=wdjax.matrices_only)
    right = wdjax.make_optimizer(optax.scale_by_adam(), 1e-2, decay)
    kept = after(right, ones, 1)
    assert all(np.all(part["bias"] == 1) and np.all(part["kernel"] < 1) for part in kept.values())


@pytest.mark.parametrize("learning_rate", [1e-1, 1e-3, 0.0])
def test_adafactors_decay_ignores_the_learning_rate(learning_rate):
    w = {"kernel": jnp.full((4, 3), 2.0)}
    kept = after(optax.adafactor(learning_rate, weight_decay_rate=0.1), w, 10)["kernel"]
    np.testing.assert_allclose(kept, 2.0 * 0.9**10, rtol=1e-5)


# The arithmetic of the page.


def test_weights_count_every_layer_once():
    axes = {"a/0/kernel": "E F", "blocks/kernel": "N E F", "b/scale": "E", "c": "3 E"}
    tree = trees.Tree(axes, {"E": 5, "F": 7, "N": 11})
    assert [trees.weights_of(tree, path) for path in tree.axes] == [385, 385, 5, 15]


def test_published_sizes_give_the_published_number_of_weights():
    """LLaMA 7B, GPT-3 (175 B) and GPT-J (6.05 B), in their papers' figures."""
    count = lambda name: sum(
        trees.weights_of(BY_NAME[name].tree, path) for path in BY_NAME[name].tree.axes
    )
    assert count("EasyLM, LLaMA 7B") == 6_738_415_616
    assert count("mesh-transformer-jax, GPT-J 6B") == pytest.approx(6.05e9, rel=1e-2)
    assert count("Paxml and Praxis, GPT-3") == pytest.approx(175e9, rel=1e-2)
    assert count("Levanter, GPT-2 small") == 124_439_808


@pytest.mark.parametrize(
    ("decaying", "leaf", "kind"),
    [
        ([], {"at_peak": 0.0, "unmeasured": None}, "none"),
        (["a"], {"at_peak": 0.1, "unmeasured": None}, "all"),
        (["a"], {"at_peak": -0.1, "unmeasured": None}, "grows"),
        (["a"], {"at_peak": None, "unmeasured": "why"}, "unknown"),
    ],
)
def test_a_row_is_of_one_kind(decaying, leaf, kind):
    assert page.kind_of({"decaying": decaying, "leaves": {"a": leaf}}) == kind


def test_a_half_life_is_of_the_rate_at_the_peak():
    cells = [line.split(" | ") for line in page.table(ROWS, FACTS).splitlines()]
    (row,) = [cell for cell in cells if "adafactor" in cell[0]]
    assert row[4:7] == ["0.1", "0.1", page.number(math.log(0.5) / math.log(0.9))]
