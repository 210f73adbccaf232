"""Checkpoints: whole or not at all, exact to the bit, and refused by the leaf that differs."""

import ast
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wdjax
from wdjax.checkpoint import (
    CheckpointError,
    Checkpoints,
    DamagedCheckpointError,
    arrays,
    check_same_config,
    host_leaves,
    store,
)
from wdjax.step import init_state


def make_state(seed=0, features=4, tx=None, dtype=jnp.float32):
    """Matrices, bfloat16, a leaf of no size, a typed key and Adam's moments."""
    k = jax.random.key(seed)
    params = {
        "Dense_0": {"kernel": jax.random.normal(k, (features, 3), dtype), "bias": jnp.zeros(3)},
        "half": jax.random.normal(k, (5,), jnp.bfloat16),
        "none": jnp.zeros((0, 2)),
    }
    return init_state(params, tx or optax.adam(1e-3), model_state={}, key=k)


def noise(seed):
    """Does not compress, so that most bytes of a checkpoint are the array's."""
    return {"w": jax.random.normal(jax.random.key(seed), (3000,))}


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(host_leaves(a).items(), host_leaves(b).values(), strict=True):
        assert x.generator == y.generator, path
        assert x.array.dtype == y.array.dtype and x.array.shape == y.array.shape, path
        assert x.array.tobytes() == y.array.tobytes(), path


def test_a_state_comes_back_bit_for_bit_with_what_was_saved_beside_it(tmp_path, nans_allowed):
    state = make_state()
    state.params["Dense_0"]["kernel"] = jnp.array([[jnp.nan, -0.0, jnp.inf]] * 4)
    saved = Checkpoints(tmp_path)
    saved.save(7, state, data={"batches": 7}, config={"strength": 0.1}, progress={"worse": 1})
    saved.close()
    found = Checkpoints(tmp_path).restore(make_state(seed=1))
    assert_same_bits(found.state, state)
    assert found.step == 7
    assert found.facts["data"] == {"batches": 7}
    assert found.facts["config"] == {"strength": 0.1}
    assert found.facts["progress"] == {"worse": 1}
    assert found.facts["versions"]["jax"] == jax.__version__


def test_a_save_copies_so_the_next_step_may_use_the_buffers_again(tmp_path, nans_allowed):
    state = {"w": jnp.arange(4.0)}
    saved = Checkpoints(tmp_path)
    saved.save(0, state)
    jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)(state)
    saved.close()
    found = Checkpoints(tmp_path).restore({"w": jnp.zeros(4)})
    np.testing.assert_array_equal(found.state["w"], [0, 1, 2, 3])


def test_the_newest_and_the_best_stay_and_nan_is_never_the_best(tmp_path):
    state = {"w": jnp.zeros(2)}
    saved = Checkpoints(tmp_path, keep_last=2)
    for step, score in enumerate([3.0, 1.0, float("nan"), 2.0, float("nan"), 9.0]):
        saved.save(step, state, score=score)
    saved.wait()
    assert saved.steps() == [1, 4, 5], "worsening never evicts the newest"
    assert saved.best_step() == 1
    assert Checkpoints(tmp_path).best_step() == 1, "and it is known again after a restart"


def test_without_scores_only_the_newest_stay(tmp_path):
    saved = Checkpoints(tmp_path, keep_last=1)
    for step in range(3):
        saved.save(step, {"w": jnp.zeros(2)})
    saved.wait()
    assert saved.steps() == [2] and saved.best_step() is None


def damage(folder, how):
    arrays = max(files_of(folder / "arrays"), key=lambda path: path.stat().st_size)
    content = bytearray(arrays.read_bytes())
    if how == "truncated":
        arrays.write_bytes(content[: len(content) // 2])
    elif how == "missing":
        arrays.unlink()
    elif how == "no facts":
        (folder / "checkpoint.json").unlink()
    elif how == "facts":
        facts = folder / "checkpoint.json"
        facts.write_bytes(facts.read_bytes().replace(b'"step": 2', b'"step": 3'))


@pytest.mark.parametrize("how", ["truncated", "missing", "no facts", "facts"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_taken_loudly(how, tmp_path):
    saved = Checkpoints(tmp_path, keep_last=3)
    for step in (1, 2):
        saved.save(step, noise(step))
    saved.wait()
    damage(tmp_path / "step_0000000002", how)
    again = Checkpoints(tmp_path, keep_last=3)
    with pytest.warns(RuntimeWarning, match="CHECKPOINT OF STEP 2 IS DAMAGED"):
        found = again.restore(noise(0))
    assert found.step == 1
    assert_same_bits(found.state, noise(1))
    assert again.steps() == [1] and (tmp_path / "damaged-2").is_dir()
    damage(tmp_path / "step_0000000001", "missing")
    with pytest.warns(RuntimeWarning, match="STEP 1 IS DAMAGED"):
        with pytest.raises(DamagedCheckpointError, match=r"no checkpoint .* is whole"):
            again.restore(noise(0))


def test_a_flipped_bit_anywhere_is_never_loaded(tmp_path):
    """Orbax alone loads most of these without a word."""
    state = noise(1)
    saved = Checkpoints(tmp_path)
    saved.save(3, state)
    saved.wait()
    folder = tmp_path / "step_0000000003"
    rng = np.random.default_rng(0)
    data = [p for p in files_of(folder) if p.stat().st_size > 200]
    refused = 0
    for _ in range(40):
        path = data[rng.integers(len(data))]
        content = bytearray(path.read_bytes())
        position, bit = int(rng.integers(len(content))), int(rng.integers(8))
        path.write_bytes(
            content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :]
        )
        try:
            found = saved.restore(noise(9), step=3)
        except DamagedCheckpointError:
            refused += 1
        else:
            assert_same_bits(found.state, state)  # It hit bytes that nothing reads.
        path.write_bytes(content)
    assert refused >= 20
    assert_same_bits(saved.restore(noise(9)).state, state)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            lambda: make_state(features=5),
            r"'params/Dense_0/kernel' is float32\[4, 3\] there and "
            r"float32\[5, 3\] here",
        ),
        (lambda: make_state(dtype=jnp.bfloat16), r"float32\[4, 3\] there and bfloat16\[4, 3\]"),
        (lambda: make_state(tx=optax.sgd(0.1)), "which this model has not"),
        (
            lambda: make_state()._replace(model_state={"mean": jnp.zeros(3)}),
            "it lacks 'model_state/mean'",
        ),
        (
            lambda: make_state()._replace(key=jax.random.key(0, impl="rbg")),
            r"threefry2x32 key\) there and uint32\[4\] \(rbg key\) here",
        ),
    ],
    ids=["shape", "dtype", "fewer", "more", "key"],
)
def test_the_checkpoint_of_another_model_is_refused_by_the_leaf_that_differs(
    other, words, tmp_path
):
    saved = Checkpoints(tmp_path)
    saved.save(1, make_state())
    with pytest.raises(ValueError, match=words):
        saved.restore(other())
    assert saved.steps() == [1], "another model's checkpoint is not damaged: it stays"


def test_a_resume_under_another_config_names_each_field_that_differs():
    saved = {"strength": 0.1, "optimizer": "adam", "devices": 2}
    with pytest.raises(
        ValueError, match=r"lr was 'absent' and is 1.0; .*strength was 0.1 and is 0.2"
    ):
        check_same_config(saved, {**saved, "strength": 0.2, "lr": 1.0})
    check_same_config(saved, {**saved, "devices": 8}, may_differ=("devices",))
    check_same_config({"grid": [1, 2]}, {"grid": (1, 2)})


def test_what_a_kill_left_half_written_is_cleared_away(tmp_path):
    (tmp_path / ".partial-step_0000000005" / "arrays").mkdir(parents=True)
    assert Checkpoints(tmp_path).steps() == []
    assert not list(tmp_path.iterdir())


def test_a_failed_save_says_so_at_the_next_step_and_leaves_nothing(tmp_path, monkeypatch):
    saved = Checkpoints(tmp_path)
    saved.save(1, {"w": jnp.zeros(2)})
    saved.wait()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("wdjax.checkpoint.store.write_arrays", full)
    saved.save(2, {"w": jnp.zeros(2)})
    with pytest.raises(CheckpointError, match=r"step 2 .* No space left .*; that of step 1 stays"):
        saved.wait()
    assert [entry.name for entry in tmp_path.iterdir()] == ["step_0000000001"]
    going_on = Checkpoints(tmp_path, on_error="continue")
    going_on.save(2, {"w": jnp.zeros(2)})
    with pytest.warns(RuntimeWarning, match="The run goes on"):
        going_on.wait()
    monkeypatch.undo()
    going_on.save(3, {"w": jnp.zeros(2)})
    going_on.close()
    assert going_on.steps() == [1, 3]


def test_what_is_not_json_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match="JSON serializable"):
        Checkpoints(tmp_path).save(1, {"w": jnp.zeros(2)}, config={"model": object()})


def test_a_checkpoint_renamed_to_another_step_is_set_aside_and_never_taken_for_it(tmp_path):
    saved = Checkpoints(tmp_path, keep_last=3)
    for step in (20, 30):
        saved.save(step, noise(step))
    saved.wait()
    (tmp_path / "step_0000000030").rename(tmp_path / "step_0000000036")
    with pytest.raises(DamagedCheckpointError, match=r"is of step 30, .* is named for step 36"):
        saved.restore(noise(0), step=36)
    with pytest.warns(RuntimeWarning, match="STEP 36 IS DAMAGED.*is of step 30"):
        found = saved.restore(noise(0))
    assert found.step == 20 and saved.steps() == [20]
    assert_same_bits(found.state, noise(20))


def test_a_loops_step_and_the_position_of_its_data_agree_or_it_is_damaged(tmp_path):
    saved = Checkpoints(tmp_path)
    for step, stands in ((10, 17), (12, 18)):
        progress = {"began_at_batch": 7}
        saved.save(step, noise(step), data={"batches": stands}, progress=progress)
    with pytest.warns(RuntimeWarning, match="of step 12, and its data stand after 11 batches"):
        assert saved.restore(noise(0)).step == 10


@pytest.mark.parametrize("what", ["folder", "arrays", "checkpoint.json"])
def test_a_link_out_of_the_checkpoints_is_refused_and_what_it_leads_to_stays(what, tmp_path):
    """The whole folder of checkpoints may be a link: that one the user has made."""
    elsewhere = Checkpoints(tmp_path / "elsewhere")
    elsewhere.save(1, noise(1))
    elsewhere.close()
    (tmp_path / "run").mkdir()
    (tmp_path / "disk").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "disk")
    saved = Checkpoints(tmp_path / "run" / "checkpoints", keep_last=1)
    saved.save(1, noise(1))
    saved.wait()
    place = pathlib.Path(*["step_0000000001", what][: 1 + (what != "folder")])
    (tmp_path / "disk" / place).rename(tmp_path / "gone")
    (tmp_path / "disk" / place).symlink_to(tmp_path / "elsewhere" / place)
    with pytest.raises(DamagedCheckpointError, match="is a link that leads out of"):
        saved.restore(noise(0), step=1)
    with pytest.warns(RuntimeWarning, match="STEP 1 IS DAMAGED: .* leads out of"):
        with pytest.raises(DamagedCheckpointError, match=r"no checkpoint .* is whole.*leads out"):
            saved.restore(noise(0))
    for step in (2, 3):
        saved.save(step, noise(step))
    saved.close()
    assert_same_bits(Checkpoints(elsewhere.folder).restore(noise(0)).state, noise(1))


def test_links_that_go_in_a_circle_are_damage(tmp_path):
    saved = Checkpoints(tmp_path / "checkpoints")
    saved.save(1, noise(1))
    saved.close()
    array = next(path for path in (tmp_path / "checkpoints").rglob("*") if path.parent.name == "d")
    array.unlink()
    array.symlink_to(array.name)
    words = f"{array.name}' is a link that leads back to itself"
    saved = Checkpoints(tmp_path / "checkpoints")
    with pytest.raises(DamagedCheckpointError, match=words):
        saved.restore(noise(0), step=1)
    with pytest.warns(RuntimeWarning, match=f"STEP 1 IS DAMAGED: .*{words}"):
        with pytest.raises(DamagedCheckpointError, match="no checkpoint .* is whole"):
            saved.restore(noise(0))


DAMAGES = {
    "empty": b"",
    "text": b"step",
    "list": b"[1, 2]",
    "number": b"7",
    "cut": b'{"step": 1, "sha',
    "not UTF-8": b'{"step": "\xff\xfe"}',
    "deep": b'{"a": ' * 100_000,
    "not a number": b'{"step": NaN, "sha256": "0"}',
    "no seal": b'{"step": 1}',
    "seal of another type": b'{"step": 1, "sha256": [1]}',
    "digits": b'{"step": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("content", DAMAGES.values(), ids=DAMAGES)
def test_a_manifest_that_holds_anything_else_is_damage_in_one_sentence(content, tmp_path):
    saved = Checkpoints(tmp_path)
    saved.save(1, noise(1))
    saved.wait()
    (tmp_path / "step_0000000001" / "checkpoint.json").write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match=r"checkpoint\.json' (is|holds|carries) n"):
        Checkpoints(tmp_path).restore(noise(1), step=1)


def test_a_file_in_a_checkpoints_place_is_damage(tmp_path):
    (tmp_path / "step_0000000001").write_text("not a folder")
    with pytest.warns(RuntimeWarning, match="STEP 1 IS DAMAGED: .*Not a directory"):
        with pytest.raises(DamagedCheckpointError, match="is whole"):
            Checkpoints(tmp_path).restore(noise(1))


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_killed_while_one_step_replaces_itself_one_of_the_two_is_there(
    renames, tmp_path, monkeypatch
):
    """The old one is moved away, the new one moved in: between the two there is neither."""
    saved = Checkpoints(tmp_path)
    saved.save(1, noise(1))
    saved.wait()
    rename, done = pathlib.Path.rename, []

    def killed_after_some(path, target):
        if len(done) == renames:
            raise KeyboardInterrupt  # Passes through every `except Exception`, as a kill does.
        done.append(path)
        return rename(path, target)

    monkeypatch.setattr(pathlib.Path, "rename", killed_after_some)
    monkeypatch.setattr(store, "_discard", lambda path: None)
    saved.save(1, noise(2))
    if renames < 2:
        with pytest.raises(KeyboardInterrupt):
            saved.wait()
    else:
        saved.wait()
    monkeypatch.undo()
    again = Checkpoints(tmp_path)
    assert_same_bits(again.restore(noise(0)).state, noise(2 if renames == 2 else 1))
    assert [path.name for path in tmp_path.iterdir()] == ["step_0000000001"]


def test_a_want_of_memory_is_not_taken_for_damage(tmp_path, monkeypatch):
    saved = Checkpoints(tmp_path)
    saved.save(1, noise(1))
    saved.wait()

    class Full:
        def __enter__(self):
            raise MemoryError

        def __exit__(self, *_):
            pass

    orbax, _ = arrays._orbax()
    monkeypatch.setattr(arrays, "_orbax", lambda: (orbax, Full()))
    with pytest.raises(MemoryError):
        saved.restore(noise(1))
    assert saved.steps() == [1]


def test_asking_for_a_checkpoint_that_is_not_there_says_which_are(tmp_path):
    saved = Checkpoints(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        saved.restore({"w": jnp.zeros(2)})
    saved.save(4, {"w": jnp.zeros(2)})
    saved.wait()
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 5; it has \[4\]"):
        saved.restore({"w": jnp.zeros(2)}, step=5)


def test_a_checkpoint_of_a_later_format_names_the_version_that_reads_it(tmp_path, monkeypatch):
    monkeypatch.setattr("wdjax.checkpoint.store.FORMAT", 2)
    saved = Checkpoints(tmp_path)
    saved.save(1, {"w": jnp.zeros(2)})
    saved.wait()
    monkeypatch.undo()
    with pytest.raises(ValueError, match="has format 2, and this version of wdjax reads format 1"):
        Checkpoints(tmp_path)


def test_loading_can_run_no_code():
    """No module of the package can unpickle, evaluate, or look a dotted name up; but for the one
    line that runs the file of a user's own, named on the command line. CIFAR-10's pickles are read
    by a class that finds no name itself (`test_published.py` has pickles that would run code)."""
    forbidden = {"eval", "exec", "pickle", "joblib", "dill", "cloudpickle", "marshal", "shelve"}
    ran_by_request = []
    for path in pathlib.Path(wdjax.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = {getattr(node, "id", None), getattr(node, "module", None)}
            names |= {alias.name for alias in getattr(node, "names", []) if hasattr(alias, "name")}
            if path.name == "own.py" and "exec" in names:
                ran_by_request.append(node)
                continue
            if path.name == "pickles.py":
                names -= {"pickle"}
                if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "pickle":
                    assert node.attr == "Unpickler"
            assert not names & forbidden, f"{path.name}:{getattr(node, 'lineno', '?')}"
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant) and node.value.value is False
    assert len(ran_by_request) == 1


def test_importing_the_module_does_not_import_orbax():
    code = "import sys, wdjax.checkpoint; sys.exit('orbax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_manifest_is_readable_without_us(tmp_path):
    saved = Checkpoints(tmp_path)
    saved.save(1, {"w": jnp.zeros((2, 3))}, score=0.5)
    saved.wait()
    facts = json.loads((tmp_path / "step_0000000001" / "checkpoint.json").read_text())
    assert facts["score"] == 0.5
    assert facts["leaves"]["w"]["shape"] == [2, 3] and len(facts["leaves"]["w"]["sha256"]) == 64
