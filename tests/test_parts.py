"""Parts: path rules, who matches what, and what each leaf then loses."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from wdjax.decay import decay_weights
from wdjax.diagnostics import describe_decay
from wdjax.models import from_nnx
from wdjax.parts import (
    inexact_leaves,
    leaf_path,
    leaf_role,
    matrices_only,
    no_norms_or_biases,
    resolve_parts,
    stacked_axes,
)


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
    tree = {"a": optax.MaskedNode(), "w": jnp.ones((2, 2))}
    for parts in (None, matrices_only, {"a": 0.3, "w": 1.0}, {"a": 0.3, "*": 1.0}, {"w": 1.0}):
        resolved = resolve_parts(parts, tree)
        assert resolved["w"] == 1.0
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


# What is a matrix, by name and by what the user says.


def linen_params(module, *inputs):
    return jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs)["params"])


class StackedBlocks(nn.Module):
    """Layers under `nn.scan`: every leaf has a first axis of layers."""

    @nn.compact
    def __call__(self, x):
        class Block(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return nn.Dense(4, name="dense")(nn.LayerNorm(name="norm")(x)), None

        scanned = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return scanned(name="blocks")(x, None)[0]


def test_biases_and_gains_of_linen_layers_under_a_scan_are_no_matrices():
    shapes = linen_params(StackedBlocks(), jnp.ones((2, 4)))
    assert {leaf_path(p): x.ndim for p, x in jax.tree_util.tree_leaves_with_path(shapes)} == {
        "blocks/dense/bias": 2,
        "blocks/dense/kernel": 3,
        "blocks/norm/bias": 2,
        "blocks/norm/scale": 2,
    }
    found = multipliers(matrices_only, shapes)
    assert {path for path, m in found.items() if m} == {"blocks/dense/kernel"}


def test_the_biases_of_an_attention_are_no_matrices():
    linen = linen_params(nn.MultiHeadDotProductAttention(num_heads=2), jnp.ones((1, 3, 4)))
    attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=nnx.Rngs(0))
    for tree in (linen, nnx.state(attention, nnx.Param)):
        found = multipliers(matrices_only, tree)
        assert found["query/bias"] == 0 and tree["query"]["bias"].ndim == 2
        assert {path for path, m in found.items() if m} == {
            f"{name}/kernel" for name in ("query", "key", "value", "out")
        }


def test_the_gain_of_a_haiku_batch_norm_is_no_matrix():
    """Haiku keeps the reduced axes: `scale[1, 1, 1, channel]`."""
    tree = {
        "net/~/conv": {"w": jnp.ones((3, 3, 2, 4)), "b": jnp.ones(4)},
        "net/~/batch_norm": {"scale": jnp.ones((1, 1, 1, 4)), "offset": jnp.ones((1, 1, 1, 4))},
    }
    assert {path for path, m in multipliers(matrices_only, tree).items() if m} == {"net/~/conv/w"}


NORMS = "LayerNorm_0 BatchNorm_1 RMSNorm GroupNorm_0 norm norm1 ln_1 ln_f bn1 gn_0 pre_norm".split()
NORMS += ["input_layernorm", "layer_norm", "BatchNormalization", "norms/0", "ln"]


@pytest.mark.parametrize("module", NORMS)
def test_a_weight_in_a_module_named_norm_is_a_gain(module):
    """As equinox and PyTorch call it; `[layer, unit]` under `eqx.filter_vmap`."""
    found = matrices_only({"blocks": {module: {"weight": jnp.ones((3, 4)), "bias": jnp.ones(4)}}})
    assert jax.tree.leaves(found) == [0.0, 0.0]
    assert leaf_role(f"blocks/{module}/weight", jnp.ones((3, 4))) == "gain"


@pytest.mark.parametrize("module", ["normal_head", "linear", "columns", "blinker", "layers/0"])
def test_a_weight_elsewhere_stays_a_kernel(module):
    assert leaf_role(f"{module}/weight", jnp.ones((3, 4))) == "kernel"
    assert leaf_role(f"norm/{module}/weight", jnp.ones((3, 4))) == "kernel"


def test_a_kernel_of_one_axis_in_a_norm_is_a_gain():
    """So EasyLM calls the gains of its norms."""
    assert leaf_role("attention_norm/kernel", jnp.ones(4)) == "gain"
    assert leaf_role("attention_norm/kernel", jnp.ones((3, 4)), 1) == "gain"
    assert leaf_role("attention_norm/kernel", jnp.ones((3, 4))) == "kernel"
    assert leaf_role("wq/kernel", jnp.ones(4)) == "other"


def test_embeddings_and_matrices_without_a_name_still_decay():
    tree = {"embed": {"embedding": jnp.ones((5, 4))}, "list": [jnp.ones((2, 2)), jnp.ones(2)]}
    assert multipliers(matrices_only, tree) == {"embed/embedding": 1, "list/0": 1, "list/1": 0}


def stacked_tree():
    """Names that tell nothing: `weight[layer, unit]` could be a matrix."""
    return {
        "blocks": {"a": {"weight": jnp.ones((3, 4))}, "b": {"weight": jnp.ones((3, 4, 5))}},
        "out": {"weight": jnp.ones((4, 5))},
    }


STACKED = {"blocks/*": 1}


def test_what_names_cannot_tell_the_user_says():
    found = multipliers(matrices_only, stacked_tree())
    assert found == {"blocks/a/weight": 1, "blocks/b/weight": 1, "out/weight": 1}
    said = functools.partial(matrices_only, stacked=STACKED)
    expected = {"blocks/a/weight": 0, "blocks/b/weight": 1, "out/weight": 1}
    assert multipliers(said, stacked_tree()) == expected
    assert multipliers(functools.partial(no_norms_or_biases, stacked=STACKED), stacked_tree()) == (
        expected
    )
    by_role = functools.partial(resolve_parts, {"role:gain": 0.0, "*": 1.0}, stacked=STACKED)
    assert multipliers(by_role, stacked_tree()) == expected


def test_what_is_stacked_goes_through_a_decay_and_a_mask(key):
    said = functools.partial(matrices_only, stacked=STACKED)
    tree = stacked_tree()
    zeros = jax.tree.map(jnp.zeros_like, tree)
    tx = decay_weights(0.5, parts=said)
    updates, _ = tx.update(zeros, tx.init(tree), tree)
    assert [float(u.max()) for u in jax.tree.leaves(updates)] == [0, -0.5, -0.5]
    only_out = {"blocks": False, "out": True}
    tx = optax.masked(decay_weights(0.5, parts=said), only_out)
    updates, _ = tx.update(zeros, tx.init(tree), tree)
    assert [float(u.max()) for u in jax.tree.leaves(updates)] == [0, 0, -0.5]


def test_the_first_pattern_says_how_many_axes_and_integers_are_left_out():
    tree = stacked_tree() | {"step": jnp.zeros((), jnp.int32)}
    found = stacked_axes({"blocks/b/*": 2, "blocks/*": 1, "step": 1}, tree)
    assert jax.tree.leaves(found) == [1, 2, 0, 0]


@pytest.mark.parametrize(
    "stacked, words",
    [
        ({"blok/*": 1}, "matches no leaf: 'blok/\\*'. Did you mean 'blocks/"),
        ({"*": 3}, "first 3 axes of 'blocks/a/weight' count layers .*shape is \\(3, 4\\)"),
        ({"blocks/*": -1}, "-1 layer axes; it must be an integer >= 0"),
        ({"blocks/*": True}, "True layer axes; it must be an integer >= 0"),
        ({"role:kernel": 1}, "path patterns, not roles"),
    ],
)
def test_what_cannot_be_stacked_is_refused(stacked, words):
    with pytest.raises(ValueError, match=words):
        matrices_only(stacked_tree(), stacked=stacked)


def test_a_report_has_the_roles_of_the_stacked_leaves():
    roles = lambda **how: [
        leaf.role for leaf in describe_decay(stacked_tree(), None, 0.1, **how).leaves
    ]
    assert roles() == ["kernel", "kernel", "kernel"]
    assert roles(stacked=STACKED) == ["gain", "kernel", "kernel"]


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
