"""Parts: path rules, who matches what, and what each leaf then loses."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from wdjax.models import from_nnx
from wdjax.parts import describe_decay, inexact_leaves, leaf_path, matrices_only, resolve_parts


def params():
    return {
        "conv": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
        "head": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
    }


def multipliers(parts, tree=None):
    """`{path: multiplier}`."""
    tree = params() if tree is None else tree
    leaves = jax.tree_util.tree_leaves_with_path(resolve_parts(parts, tree))
    return {leaf_path(path): float(m) for path, m in leaves}


@pytest.mark.parametrize(
    "parts, expected",
    [
        (None, [1, 1, 1, 1]),
        (matrices_only, [0, 1, 0, 1]),
        (
            {"conv": {"bias": 0.1, "kernel": 0.2}, "head": {"bias": 3, "kernel": 0}},
            [0.1, 0.2, 3, 0],
        ),
        ({"*/kernel": 1.0, "*": 0.0}, [0, 1, 0, 1]),
        ({"conv/*": 0.5, "*/kernel": 1.0, "*": 0.0}, [0.5, 0.5, 0, 1]),
        ({"*": 0.25}, [0.25] * 4),
        ({"*": True}, [1, 1, 1, 1]),
        (lambda tree: jax.tree.map(jnp.size, tree), [2, 4, 3, 6]),
    ],
)
def test_every_form_of_parts_gives_one_multiplier_a_leaf(parts, expected):
    """In the order conv/bias, conv/kernel, head/bias, head/kernel; the first match wins."""
    assert list(multipliers(parts).values()) == expected


def test_patterns_see_the_whole_path_and_mind_the_case():
    assert multipliers({"*conv*": 1.0, "*": 0.0})["conv/bias"] == 1
    with pytest.raises(ValueError, match="'Conv/\\*' .no path matches it.*Did you mean 'conv/"):
        multipliers({"Conv/*": 1.0, "*": 0.0})


@pytest.mark.parametrize(
    "parts, words",
    [
        ({"*/kernel": 1.0}, "no pattern for 'conv/bias', 'head/bias'; .*End with \"\\*\": 0.0"),
        ({"*": 1.0, "*/kernel": 0.0}, r"'\*/kernel' \(an earlier pattern takes them all\)"),
        ({"hed/*": 1.0, "*": 0.0}, r"'hed/\*' \(no path matches it\)\. Did you mean 'head/"),
        ({"*": -1.0}, "'conv/bias' the multiplier -1; it must be finite and >= 0"),
        ({"*": float("nan")}, "multiplier nan"),
        ({"*": "1"}, "it must be one number >= 0"),
        ({"*": np.ones(2)}, "it must be one number >= 0"),
        ({"conv": {"kernel": 1.0}}, "`parts` must be a tree of scalars with the structure"),
        (0.5, 'One number for every leaf is {"\\*": number}'),
        (lambda tree: {"conv": 1.0}, "the tree that `parts` returned must be"),
        ({}, "structures differ"),
    ],
)
def test_parts_that_do_not_fit_are_refused_by_name(parts, words):
    with pytest.raises(ValueError, match=words):
        resolve_parts(parts, params())


def test_many_leaves_without_a_pattern_are_not_all_listed():
    tree = {f"layer{i}": jnp.ones(1) for i in range(9)}
    with pytest.raises(ValueError, match="'layer1', 'layer2', 'layer3' and others"):
        resolve_parts({"layer0": 1.0}, tree)


def test_leaves_that_their_joined_paths_cannot_tell_apart_are_refused_with_both():
    twins = {"a/b": jnp.ones(2), "a": {"b": jnp.ones(2)}}
    words = r"two leaves have the path 'a/b'.*\['a'\]\['b'\] and \['a/b'\]. Rename one, or give"
    with pytest.raises(ValueError, match=words):
        resolve_parts({"a/b": 1.0, "*": 0.0}, twins)
    tree = {"a/b": 1.0, "a": {"b": 0.5}}
    assert resolve_parts(tree, twins) == resolve_parts(lambda _: tree, twins) == tree


def test_integers_and_keys_get_zero_whatever_parts_say():
    tree = {"steps": jnp.arange(3), "key": jax.random.key(0), "w": jnp.ones(2)}
    assert multipliers(None, tree) == {"key": 0, "steps": 0, "w": 1}
    assert multipliers({"w": 0.5}, tree) == {"key": 0, "steps": 0, "w": 0.5}
    assert [leaf.shape for leaf in inexact_leaves(tree)] == [(2,)]


def test_hidden_nodes_are_left_alone():
    """What `optax.masked` and `optax.partition` hide has no multiplier, and needs no pattern."""
    tree = {"a": optax.MaskedNode(), "b": jnp.ones((2, 2))}
    for parts in (None, matrices_only, {"a": 0.3, "b": 1.0}, {"a": 0.3, "*": 1.0}, {"b": 1.0}):
        resolved = resolve_parts(parts, tree)
        assert resolved["b"] == 1.0
        assert isinstance(resolved["a"], optax.MaskedNode)


def test_paths_of_named_tuples_lists_and_nnx_read_as_one_expects(key):
    class Pair(NamedTuple):
        left: jax.Array
        right: list

    tree = Pair(jnp.ones(1), [jnp.ones(1), {"x": jnp.ones(1)}])
    assert list(multipliers(None, tree)) == ["left", "right/0", "right/1/x"]
    model = from_nnx(lambda rngs: nnx.Linear(2, 3, rngs=rngs))
    found, _ = model.init(key, jnp.ones((1, 2)))
    assert multipliers({"kernel": 1.0, "bias": 0.0}, found) == {"kernel": 1.0, "bias": 0.0}


def test_a_leaf_called_value_keeps_its_name():
    assert list(multipliers(None, {"attention": {"value": jnp.ones(1)}})) == ["attention/value"]


def test_a_multiplier_may_be_traced():
    total = lambda m: sum(jax.tree.leaves(resolve_parts({"*/kernel": m, "*": 0.0}, params())))
    np.testing.assert_array_equal(jax.vmap(total)(jnp.array([0.5, 2.0])), [1.0, 4.0])


def test_shapes_without_numbers_are_enough():
    shapes = jax.eval_shape(params)
    assert multipliers(matrices_only, shapes) == multipliers(matrices_only)


# describe_decay


def report_of(**options):
    found = describe_decay(params(), {"*/kernel": 0.5, "*": 0.0}, 0.4, **options)
    return {leaf.path: leaf for leaf in found.leaves}


def test_the_half_life_is_when_half_is_left():
    """(1 - rate)^t = 1/2 at rate = strength * multiplier, times the learning rate if any."""
    for options, rate in (({}, 0.2), ({"learning_rate": 0.1}, 0.02)):
        leaf = report_of(**options)["conv/kernel"]
        np.testing.assert_allclose(leaf.rate, rate)
        np.testing.assert_allclose((1 - rate) ** leaf.half_life, 0.5)
        assert (leaf.shape, leaf.multiplier) == ((2, 2), 0.5)


def test_a_schedule_is_averaged_over_the_run(x64):
    schedule = optax.cosine_decay_schedule(0.1, 50)
    leaf = report_of(learning_rate=schedule, num_steps=50)["head/kernel"]
    rates = 0.2 * 0.05 * (1 + np.cos(np.pi * np.arange(50) / 50))
    np.testing.assert_allclose(leaf.rate, rates.mean(), rtol=1e-6)
    np.testing.assert_allclose(np.prod(1 - rates) ** (leaf.half_life / 50), 0.5, rtol=1e-6)


def test_what_does_not_decay_lives_for_ever():
    leaf = report_of()["conv/bias"]
    assert (leaf.rate, leaf.half_life) == (0.0, np.inf)


def test_the_report_prints_a_row_a_leaf_and_becomes_dicts():
    found = describe_decay(params(), matrices_only, 0.1)
    row = next(line for line in str(found).splitlines() if line.startswith("head/kernel"))
    assert {"2x3", "1", "0.1"} <= set(row.split())
    assert found._repr_html_().count("<tr") == 1 + 4
    assert found.to_dict()[1]["path"] == "conv/kernel"


@pytest.mark.parametrize(
    "strength, options, words",
    [
        (-1.0, {}, "`strength` must be"),
        (0.1, {"learning_rate": -1.0}, "`learning_rate` must be"),
        (0.1, {"learning_rate": lambda step: 0.1}, "`num_steps` is needed to average"),
        (0.1, {"learning_rate": lambda step: 0.1, "num_steps": 0}, "`num_steps` must be >= 1"),
    ],
)
def test_a_report_of_impossible_numbers_is_refused(strength, options, words):
    with pytest.raises(ValueError, match=words):
        describe_decay(params(), None, strength, **options)
