"""A state cut over a mesh: the step of one device, and no collective for what is elementwise."""

import re
from functools import partial

import children
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from processes import run

import wdjax
from wdjax.sharding import (
    batch_sharding,
    describe_sharding,
    init_sharded,
    resolve_rules,
    split_largest_axis,
    state_shardings,
)


def make_mesh(**axes):
    sizes = tuple(axes.values())
    devices = jax.devices()[: int(np.prod(sizes))]
    return jax.make_mesh(sizes, tuple(axes), (AxisType.Auto,) * len(sizes), devices=devices)


PARAMS = {
    "hidden": {"kernel": jnp.zeros((6, 8)), "bias": jnp.zeros(8)},
    "head": {"kernel": jnp.zeros((8, 3)), "bias": jnp.zeros(3)},
}
RULES = {"*/kernel": P("fsdp"), "*": P()}


def test_rules_are_those_of_parts_and_the_first_match_wins():
    mesh = make_mesh(fsdp=2)
    found = resolve_rules(
        {"head/kernel": P(), "role:bias": P(), "*": P(None, "fsdp")}, PARAMS, mesh
    )
    assert found == {
        "hidden": {"kernel": P(None, "fsdp"), "bias": P()},
        "head": {"kernel": P(), "bias": P()},
    }
    assert resolve_rules(lambda p: split_largest_axis(p, mesh), PARAMS, mesh) == {
        "hidden": {"kernel": P(None, "fsdp"), "bias": P("fsdp")},
        "head": {"kernel": P("fsdp"), "bias": P()},
    }
    assert resolve_rules(None, PARAMS, mesh)["head"]["bias"] == P()  # 3 does not divide


@pytest.mark.parametrize(
    "rules, words",
    [
        ({"*/kernel": P("fsdp")}, "no pattern for 'head/bias', 'hidden/bias'"),
        ({"*/kernels": P(), "*": P()}, "first for no leaf: '\\*/kernels' .no path matches it"),
        ({"*": P(), "*/kernel": P()}, "an earlier pattern takes them all"),
        ({"head/bias": P("fsdp"), "*": P()}, "into 2 parts .* does not divide 3; .* 2 and 4"),
        ({"*/kernel": P("fdsp"), "*": P()}, "over 'fdsp', and the mesh has .*'fsdp'"),
        ({"*/kernel": P("fsdp", "fsdp"), "*": P()}, "twice over 'fsdp'"),
        ({"*": P(None, "fsdp")}, "shape .3,. the spec -, fsdp of 2 axes; it has 1"),
        ({"*": P("tensor")}, "the mesh has the axes .'fsdp',."),
    ],
)
def test_a_rule_that_does_not_fit_is_refused(rules, words):
    with pytest.raises(ValueError, match=words):
        resolve_rules(rules, PARAMS, make_mesh(fsdp=2))


def test_what_belongs_to_a_param_follows_it():
    mesh = make_mesh(fsdp=2)
    tx = optax.chain(
        optax.scale_by_adam(),
        wdjax.decoupled_decay(0.1, 0.1, parts=wdjax.matrices_only),
        optax.scale_by_learning_rate(0.1),
    )
    tx = optax.MultiSteps(tx, 2).gradient_transformation()
    state = wdjax.init_state(PARAMS, tx, key=jax.random.key(0))
    where = state_shardings(state, mesh, RULES)
    specs = {
        jax.tree_util.keystr(path, simple=True, separator="/"): sharding.spec
        for path, sharding in jax.tree_util.tree_leaves_with_path(where)
    }
    cut = [name for name, spec in specs.items() if spec == P("fsdp")]
    assert len(cut) == 2 * 4  # params, two moments, the accumulated gradient
    assert all(name.endswith("kernel") for name in cut)
    assert all(spec == P() for name, spec in specs.items() if name not in cut)


def test_a_state_is_made_in_parts_and_described_with_its_bytes(key):
    mesh = make_mesh(fsdp=2)
    make = lambda: wdjax.init_state(
        jax.tree.map(lambda p: jax.random.normal(key, p.shape), PARAMS), optax.adam(0.1)
    )
    state = init_sharded(make, mesh, RULES)
    kernel = state.opt_state[0].mu["hidden"]["kernel"]
    assert kernel.sharding.is_equivalent_to(NamedSharding(mesh, P("fsdp")), 2)
    assert kernel.addressable_shards[0].data.shape == (3, 8)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.jit(make)())
    table = describe_sharding(jax.eval_shape(make), mesh, RULES)
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["params/hidden/kernel"] == ("6x8", "fsdp", 3 * 8 * 4)
    assert rows["params/hidden/bias"] == ("8", "whole", 8 * 4)
    numbers = 3 * (6 * 8 + 8 + 8 * 3 + 3) * 4 + 2 * 4  # params and two moments, two counts
    assert rows["all"][1:] == (f"{numbers} bytes in all", 3 * (3 * 8 + 8 + 4 * 3 + 3) * 4 + 2 * 4)


def lopsided(key, features=6, size=16):
    kx, ky, kw = jax.random.split(key, 3)
    weights = jax.random.uniform(kw, (size,)).at[: size // 3].set(0.0)
    x = jax.random.normal(kx, (size, features))
    return wdjax.Batch(x, jax.random.randint(ky, (size,), 0, 3), weights)


def apply(params, x):
    h = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"][None])
    return h @ params["head"]["kernel"] + params["head"]["bias"][None]


def collectives(step, state, mesh, rules, batch):
    shardings = state_shardings(state, mesh, rules)
    program = jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, NamedSharding(mesh, P())),
    )
    text = program.lower(state, batch).compile().as_text()
    names = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
    return sorted(re.findall(rf" ({names})(?:-start)?\(", text))


def test_elementwise_decay_adds_no_collective(key):
    mesh, batch = make_mesh(fsdp=2), lopsided(key)
    loss_fn = wdjax.regularized_loss(apply, wdjax.cross_entropy)
    counts = []
    for decays in (
        (),
        (partial(wdjax.decoupled_decay, 0.1, parts=wdjax.matrices_only),),
        (partial(wdjax.corrected_decay, 0.1, parts={"*/kernel": 1.0, "*": 0.5}),),
        (wdjax.independent_decay(0.1),),
    ):
        tx = wdjax.make_optimizer(optax.scale_by_adam(), 0.1, *decays)
        state = wdjax.init_state(PARAMS, tx)
        counts.append(collectives(wdjax.make_train_step(loss_fn, tx), state, mesh, RULES, batch))
    assert counts[0] and all(count == counts[0] for count in counts), counts


@pytest.fixture(scope="module")
def ends(made_once):
    """After steps on one device and on meshes of up to eight, by dtype, method, mesh and leaf."""

    def make(folder):
        run("sharded", timeout=280, num_devices=8, out=str(folder / "all.npz"))

    return dict(np.load(made_once("sharded", make) / "all.npz"))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", children.MESHES)
@pytest.mark.parametrize("name", children.SHARDED)
def test_cut_over_any_mesh_a_step_is_that_of_one_device(name, mesh, ends):
    """In float64 each number to 1e-12 after three steps; in float32, after one, the difference to
    1e-5 of what the step moved, both as root mean squares. Muon's five products of matrices with
    themselves, summed in another order, leave 1.1e-5 there."""
    for dtype, rtol in (("float64", 1e-12), ("float32", 3e-5 if name == "muon" else 1e-5)):
        one, here, before = (of(ends, f"{dtype}/{name}/{x}/") for x in ("one", mesh, "before"))
        assert here.keys() == one.keys() and len(one) > 8
        for path, array in one.items():
            array, differs = array.astype(np.float64), here[path] - array.astype(np.float64)
            if dtype == "float64":
                assert np.abs(differs).max() <= rtol * np.abs(array).max(), path
            elif (start := before.get(path.removeprefix("params/"))) is not None:
                assert 0 < rms(array - start) and rms(differs) <= rtol * rms(array - start), path


def rms(x):
    return np.sqrt(np.mean(x**2))


def of(arrays, prefix):
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def test_a_mesh_that_no_batch_can_be_cut_over_is_refused_and_a_batch_that_does_not_divide():
    step = wdjax.make_train_step(wdjax.regularized_loss(apply, wdjax.cross_entropy), optax.sgd(0.1))
    with pytest.raises(ValueError, match="'data' or 'fsdp', got .'tensor',."):
        wdjax.shard_step(step, make_mesh(tensor=2))
    with pytest.raises(ValueError, match=r"build it with axis_types=\(AxisType.Auto,\) \* 1"):
        wdjax.shard_step(step, jax.make_mesh((2,), ("fsdp",), (AxisType.Explicit,)))
    sharded = wdjax.shard_step(step, make_mesh(fsdp=2))
    state = wdjax.init_state(PARAMS, optax.sgd(0.1))
    batch = wdjax.Batch(np.ones((5, 6), np.float32), np.zeros(5, int), np.ones(5, np.float32))
    with pytest.raises(
        ValueError, match="a batch of 5 does not divide over 2 devices; pad it to 6"
    ):
        sharded(state, batch)


def test_the_users_state_survives_and_the_second_step_compiles_nothing(key, nans_allowed):
    traces = []

    def loss_fn(params, batch, **how):
        traces.append(1)
        return wdjax.regularized_loss(apply, wdjax.cross_entropy)(params, batch, **how)

    tx, mesh = optax.adam(0.1), make_mesh(fsdp=2)
    sharded = wdjax.shard_step(wdjax.make_train_step(loss_fn, tx), mesh, RULES)
    first = init_sharded(lambda: wdjax.init_state(PARAMS, tx), mesh, RULES)
    state, _ = sharded(first, lopsided(key))
    traced = len(traces)
    for _ in range(2):
        state, _ = sharded(state, lopsided(key))
    assert len(traces) == traced
    np.testing.assert_array_equal(first.params["hidden"]["kernel"], 0)
    assert state.params["hidden"]["kernel"].addressable_shards[0].data.shape == (3, 8)
