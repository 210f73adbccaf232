"""Pretrained weights by path: what is loaded, left, refused, and from where they are read."""

import pathlib

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sealing import vouch_for_params

import wdjax
from wdjax.checkpoint import CheckpointError, Checkpoints, load_pretrained, read_leaves
from wdjax.jobs import TrainOptions, load_predictor, read_pretrained, run_train
from wdjax.writing import DamagedFileError


def new():
    return {
        "encoder": {"0": {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}},
        "head": {"kernel": jnp.ones((2, 4))},
    }


def old():
    rng = np.random.default_rng(0)
    return {
        "backbone": {"0": {"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=2)}},
        "classifier": {"kernel": rng.normal(size=(2, 9))},
    }


RULES = {"encoder/*": "backbone/*"}


def test_what_matches_is_loaded_and_the_rest_is_left_and_told():
    params, there = new(), old()
    tree, report = load_pretrained(params, there, RULES)
    for name in ("kernel", "bias"):
        np.testing.assert_array_equal(
            tree["encoder"]["0"][name], there["backbone"]["0"][name].astype(np.float32)
        )
    assert tree["head"]["kernel"] is params["head"]["kernel"]
    assert jax.tree.structure(tree) == jax.tree.structure(params)
    assert [(leaf.path, leaf.source) for leaf in report.loaded] == [
        ("encoder/0/bias", "backbone/0/bias"),
        ("encoder/0/kernel", "backbone/0/kernel"),
    ]
    assert report.left == {"head/kernel": "no rule names it"}
    assert report.unused == ("classifier/kernel",)
    told = str(report)
    assert "loaded from backbone/0/kernel, float64 cast to float32" in told
    assert "left as it was: no rule names it" in told and "Not used: classifier/kernel." in told
    assert float(params["encoder"]["0"]["bias"][0]) == 0  # nothing in place


def test_each_star_stands_for_what_it_matched_and_the_first_rule_wins():
    names = {"layers/3/attention/q/w": "h.3.attn.q", "layers/3/mlp/w": "h.3.mlp"}
    params = {path: jnp.zeros(2) for path in names}
    there = {path: np.full(2, i + 1.0) for i, path in enumerate(names.values())}
    rules = {"layers/*/attention/*/w": "h.*.attn.*", "layers/*/mlp/w": "h.*.mlp"}
    tree, report = load_pretrained(params, there, rules)
    assert [float(tree[path][0]) for path in names] == [1, 2] and not report.left
    first = {"layers/3/mlp/*": None, "layers/*/attention/*/w": "h.*.attn.*"}
    tree, report = load_pretrained(params, there, first)
    assert report.left == {"layers/3/mlp/w": "'layers/3/mlp/*' leaves it"}
    assert report.unused == ("h.3.mlp",)


def test_without_rules_each_leaf_comes_from_its_own_path():
    tree, report = load_pretrained(new(), {"head": {"kernel": np.full((2, 4), 3.0)}})
    assert float(tree["head"]["kernel"][0, 0]) == 3
    assert set(report.left) == {"encoder/0/kernel", "encoder/0/bias"}
    assert report.left["encoder/0/bias"] == "there is no 'encoder/0/bias'"


def test_the_values_are_copies_in_the_dtype_and_place_of_the_params():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    cut = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    params = {"w": jax.device_put(jnp.zeros(4, jnp.bfloat16), cut), "v": jnp.zeros(4)}
    there = {"w": jnp.arange(4.0), "v": jnp.arange(4.0)}
    steps, _ = load_pretrained({"steps": jnp.int32(0)}, {"steps": np.int64(7)})
    assert steps["steps"].dtype == jnp.int32 and steps["steps"] == 7
    tree, report = load_pretrained(params, there)
    jax.tree.map(lambda x: x.delete(), there)
    assert tree["w"].dtype == jnp.bfloat16 and tree["w"].sharding == cut
    np.testing.assert_array_equal(tree["v"], np.arange(4.0))
    assert {leaf.path: (leaf.source_dtype, leaf.dtype) for leaf in report.loaded}["w"] == (
        "float32",
        "bfloat16",
    )


def test_shapes_are_enough_where_all_is_loaded_and_a_compiled_program_may_load():
    shapes = jax.eval_shape(lambda: {"w": jnp.zeros(3)})
    tree, _ = load_pretrained(shapes, {"w": np.arange(3.0)})
    np.testing.assert_array_equal(tree["w"], np.arange(3.0))
    with pytest.raises(ValueError, match="a shape alone at 'b', and nothing is loaded for it"):
        load_pretrained(shapes | {"b": jax.ShapeDtypeStruct((2,), np.float32)}, {"w": np.ones(3)})
    inside = jax.jit(lambda p, q: load_pretrained(p, q)[0])({"w": jnp.zeros(3)}, {"w": jnp.ones(3)})
    np.testing.assert_array_equal(inside["w"], 1.0)


def test_an_nnx_state_takes_a_plain_tree():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    there = {"dense": {"kernel": np.ones((3, 2)), "bias": np.ones(2)}}
    state, report = load_pretrained(nnx.state(model), there, {"*": "dense/*"})
    nnx.update(model, state)
    assert len(report.loaded) == 2 and not report.unused
    np.testing.assert_array_equal(model(jnp.ones((1, 3))), 4.0)


# Refused.


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"encodr/*": "backbone/*"}, r"first for no leaf of the params: 'encodr/\*' \(no path mat"),
        ({"*": None, "head/*": None}, r"'head/\*' \(an earlier rule takes them all\)"),
        (
            {"encoder/*": "backbon/*"},
            r"'encoder/\*': 'backbon/\*' finds nothing in `pretrained`: there is no "
            r"'backbon/0/bias'. Did you mean 'backbone/0/bias'\? Leave what it names as it is by",
        ),
        ({"encoder/*": "backbone/*/*"}, r"must have as many `\*` on both sides"),
        ({"encoder/?/*": "backbone/*/*"}, "no other wildcard beside them"),
        ({}, "`rules` must be a mapping from path patterns to paths or None"),
        (
            RULES | {"head/*": "classifier/*"},
            r"'head/kernel' has shape \(2, 4\) in the params, and 'classifier/kernel' has \(2, 9\) "
            r"in `pretrained`. Leave it .*\{'head/kernel': None, ...\}",
        ),
    ],
)
def test_rules_that_do_not_fit_are_refused_with_a_way_out(rules, words):
    with pytest.raises(ValueError, match=words):
        load_pretrained(new(), old(), rules)


def test_a_transposed_kernel_is_named_as_one():
    with pytest.raises(ValueError, match="Its transpose fits: turn it first"):
        load_pretrained({"w": jnp.zeros((2, 3))}, {"w": np.zeros((3, 2))})


@pytest.mark.parametrize(
    ("here", "there"),
    [(jnp.arange(2), np.ones(2)), (jnp.ones(2), np.arange(2)), (jnp.ones(2), np.ones(2) + 1j)],
)
def test_another_kind_of_number_is_no_change_of_precision(here, there):
    with pytest.raises(ValueError, match=r"'w' is .* that is no change of precision"):
        load_pretrained({"w": here}, {"w": there})


def test_two_leaves_of_one_path_are_refused():
    with pytest.raises(ValueError, match="two leaves have the path 'a/b'"):
        load_pretrained({"a/b": jnp.ones(1)}, {"a/b": np.ones(1), "a": {"b": np.ones(1)}})


# From where they are read.


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    options = TrainOptions(
        data="iris", strength=0.0, epochs=2, batch_size=32, out=str(folder), devices=1
    )
    run_train(options, say=lambda text: None)
    return folder


def test_a_runs_folder_gives_its_params_which_predict_as_it_does(run_folder):
    arrays = read_pretrained(run_folder)
    model = wdjax.make_mlp(num_outputs=3)
    params, state = model.init(jax.random.key(5), np.ones((1, 4), "float32"))
    params, report = load_pretrained(params, arrays)
    assert not report.left and all(path.startswith("scaling/") for path in report.unused)
    x = np.random.default_rng(0).normal(size=(4, 4)).astype("float32")
    scale = {name.split("/")[-1]: value for name, value in arrays.items() if "inputs" in name}
    logits, _ = model.apply(params, state, (x - scale["mean"]) * scale["scale"], train=False)
    np.testing.assert_allclose(
        jax.nn.softmax(logits), load_predictor(run_folder)(x), rtol=1e-4, atol=1e-6
    )


def test_a_file_of_arrays_alone_will_do(run_folder):
    whole, alone = read_pretrained(run_folder), read_pretrained(run_folder / "params.npz")
    assert whole.keys() == alone.keys()


def test_a_damaged_run_is_refused(run_folder, tmp_path):
    for name in ("results.json", "params.npz"):
        (tmp_path / name).write_bytes((run_folder / name).read_bytes())
    np.savez(tmp_path / "params.npz", w=np.ones(1))
    with pytest.raises(DamagedFileError):
        read_pretrained(tmp_path)
    vouch_for_params(tmp_path)
    assert list(read_pretrained(tmp_path)) == ["w"]


def test_a_folder_of_checkpoints_gives_the_newest_state_by_path(tmp_path):
    params = {"encoder": {"w": jnp.arange(3.0)}, "empty": jnp.zeros((0, 2))}
    checkpoints = Checkpoints(tmp_path / "saved")
    for step in (1, 2):
        scaled = jax.tree.map(lambda x, step=step: step * x, params)
        checkpoints.save(step, {"params": scaled, "key": jax.random.key(0)})
    checkpoints.close()
    arrays = read_pretrained(tmp_path / "saved")
    tree, report = load_pretrained(params, arrays, {"*": "params/*"})
    np.testing.assert_array_equal(tree["encoder"]["w"], 2 * np.arange(3.0))
    assert report.unused == ("key",)
    np.testing.assert_array_equal(
        read_leaves(tmp_path / "saved", step=1)["params/encoder/w"], np.arange(3.0)
    )
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 7; it has \[1, 2\]"):
        read_leaves(tmp_path / "saved", step=7)
    facts = tmp_path / "saved" / "step_0000000002" / "checkpoint.json"
    facts.write_text(facts.read_text().replace("encoder/w", "encoder/v"))
    with pytest.raises(CheckpointError):
        read_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("name", ["nothing", "weights.safetensors", "."])
def test_another_format_is_left_to_the_library_that_reads_it(name, tmp_path):
    with pytest.raises(ValueError, match="Read another format by its own library, such as `safet"):
        read_pretrained(pathlib.Path(tmp_path) / name)
