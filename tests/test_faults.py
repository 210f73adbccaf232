"""Faults, each provoked: killed, preempted, out of disk, damaged, fed nonsense, crowded."""

import dataclasses
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
import warnings

import children
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from processes import environment, finish, run, start
from tfds_folders import MNIST, image_rows, images, write_folder

from wdjax.checkpoint import Checkpoints
from wdjax.data.dataset import Dataset, make_dataset
from wdjax.data.stream import make_stream, prefetch_to_device
from wdjax.data.tfds import open_tfds
from wdjax.jobs.folder import run_folder
from wdjax.jobs.lock import LOCK, locked
from wdjax.jobs.options import TrainOptions
from wdjax.loop import RunLog, TrainLoop
from wdjax.losses import cross_entropy, regularized_loss
from wdjax.runners import jit_step, shard_step
from wdjax.step import init_state, make_train_step

# Every test kills processes and starts others: long, though CI runs it.
pytestmark = pytest.mark.slow

pytest.importorskip("grain", reason="grain is not installed: pip install wdjax[data]")

CLI = [sys.executable, "-m", "wdjax.cli"]
ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The end of the run of `children.run_loop`, never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    run("run_loop", folder=str(folder))
    return dict(np.load(folder / "end.npz"))


def assert_same_end(folder, whole):
    with np.load(folder / "end.npz") as end:
        assert set(end) == set(whole)
        for path in whole:
            assert end[path].tobytes() == whole[path].tobytes(), path


def kill_while_training(folder, kills, seed):
    """Starts the run again and again, each time killed at a random moment; gives its lives."""
    chance = random.Random(seed)
    for _ in range(kills):
        child = start("run_loop", folder=str(folder), tell=True, slow=0.02)
        first = child.stdout.readline()
        assert first.startswith("resumed at"), first + child.stderr.read()
        for _ in range(chance.randint(1, 12)):
            if not child.stdout.readline():
                break
        time.sleep(chance.random() * 0.05)
        child.kill()
        child.communicate()
    run("run_loop", folder=str(folder))


def kill_while_saving(folder, kills, seed):
    """What is listed after a kill is whole, and its leaves are all of one save."""
    chance = random.Random(seed)
    like, last = {"w": np.zeros(200_000, np.float32), "step": np.int32(0)}, 0
    for _ in range(kills):
        child = start("save_again_and_again", folder=str(folder))
        assert child.stdout.readline() == "saving\n", child.stderr.read()
        deadline = time.monotonic() + 60
        while not any(folder.glob("step_" + "[0-9]" * 10)):
            assert time.monotonic() < deadline, "no first checkpoint"
            time.sleep(0.02)
        time.sleep(chance.random() * 1.5)
        child.kill()
        child.communicate()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = Checkpoints(folder).restore(like)
        assert found.step >= last and (found.state["w"] == found.step).all()
        assert found.state["step"] == found.step
        last = found.step
    assert last > 0


def test_killed_twice_while_training_it_ends_bit_for_bit_as_if_never_stopped(whole, tmp_path):
    kill_while_training(tmp_path, kills=2, seed=0)
    assert_same_end(tmp_path, whole)
    steps = [line["step"] for line in RunLog(tmp_path / "log.jsonl").read()]
    assert steps == list(range(1, 41)), "and its log has every step once"


def test_forty_steps_are_seventeen_a_kill_and_a_resume(whole, tmp_path):
    child = start("run_loop", folder=str(tmp_path), tell=True, slow=0.02)
    for line in child.stdout:
        if line == "step 17\n":
            child.kill()
    child.communicate()
    printed = run("run_loop", folder=str(tmp_path), tell=True)
    # The save of step 16 may have been under way.
    assert printed.startswith(("resumed at 12", "resumed at 16"))
    assert_same_end(tmp_path, whole)


def test_killed_while_saving_no_torn_checkpoint_is_ever_taken_for_whole(tmp_path):
    kill_while_saving(tmp_path, kills=2, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 3))
def test_killed_five_times_more_while_training(seed, whole, tmp_path):
    kill_while_training(tmp_path, kills=5, seed=seed)
    assert_same_end(tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 3))
def test_killed_five_times_more_while_saving(seed, tmp_path):
    kill_while_saving(tmp_path, kills=5, seed=seed)


def test_a_run_goes_on_on_another_number_of_devices(whole, tmp_path):
    child = start("run_loop", folder=str(tmp_path), tell=True, slow=0.02)
    for line in child.stdout:
        if line == "step 9\n":
            child.kill()
    child.communicate()
    assert run("run_loop", num_devices=2, folder=str(tmp_path), tell=True).startswith("resumed")
    with np.load(tmp_path / "end.npz") as end:
        for path in whole:
            np.testing.assert_allclose(end[path], whole[path], 1e-4, 1e-5, err_msg=path)


def test_after_a_damaged_checkpoint_it_goes_on_from_the_one_before_loudly(whole, tmp_path):
    child = start("run_loop", folder=str(tmp_path), tell=True, slow=0.02)
    for line in child.stdout:
        if line == "step 24\n":
            child.kill()
    child.communicate()
    before, last = Checkpoints(tmp_path / "checkpoints").steps()
    facts = tmp_path / "checkpoints" / f"step_{last:010d}" / "checkpoint.json"
    facts.write_bytes(facts.read_bytes().replace(b'"batches": ', b'"batches": 1'))
    child = start("run_loop", folder=str(tmp_path), tell=True)
    status, printed, told = finish(child)
    assert status == 0 and printed.startswith(f"resumed at {before}\n"), told
    assert f"CHECKPOINT OF STEP {last} IS DAMAGED" in told
    assert_same_end(tmp_path, whole)


def test_a_full_disk_is_said_and_leaves_the_checkpoint_before_it(tmp_path):
    """RLIMIT_FSIZE does to a write what a full disk does."""
    lines = run("fill_the_disk", folder=str(tmp_path)).splitlines()
    assert "the checkpoint of step 2 could not be written" in lines[0]
    assert lines[0].endswith("that of step 1 stays.")
    assert lines[1:] == ["[1] ['step_0000000001']", "[1, 3]"]


def shell(words, folder, **options):
    env = environment() | {"XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*CLI, *words.split()],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


LONG = (
    "train --stream --strength 0 --data digits --epochs 4000 --save-every 200 --batch-size 32 "
    "--out run"
)


def wait_for_steps(folder, steps, seconds=90):
    log = folder / "run" / "log.jsonl"
    for _ in range(seconds * 20):
        if log.exists() and log.read_text().count("\n") > steps:
            return
        time.sleep(0.05)
    raise AssertionError("the run did not get going")


def test_sigterm_ends_the_command_with_143_saved_and_it_says_how_to_go_on(tmp_path):
    """Meanwhile a second run in its folder is refused, and one that is not its is not hindered."""
    child = shell(LONG, tmp_path)
    wait_for_steps(tmp_path, 3)
    second = shell("train --resume run", tmp_path)
    status, _, told = finish(second)
    assert status == 2 and "another run is in 'run' (process" in told, told
    begun = time.monotonic()
    child.send_signal(signal.SIGTERM)
    status, _, told = finish(child, timeout=60)
    assert status == 143 and time.monotonic() - begun < 10, told
    assert "SIGTERM: finishing the step; once more ends at once." in told
    assert "Go on with: wdjax train --resume run" in told
    stopped = Checkpoints(tmp_path / "run" / "checkpoints").steps()[-1]
    again = shell("train --resume run", tmp_path)
    for line in again.stderr:
        if line.startswith("Resumed after"):
            assert line == f"Resumed after step {stopped}.\n"
            break
    again.send_signal(signal.SIGINT)
    again.kill()
    again.communicate()


@pytest.mark.parametrize("chained", [False, True])
def test_a_second_sigterm_ends_a_run_that_cannot_finish_its_step_at_once(chained, tmp_path):
    """By default as SIGTERM does; where a handler was installed before, that one decides."""
    child = start("stall", folder=str(tmp_path), chained=chained)
    assert child.stdout.readline() == "stalled\n", child.stderr.read()
    child.send_signal(signal.SIGTERM)
    assert child.stderr.readline() == "SIGTERM: finishing the step; once more ends at once.\n"
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(timeout=1)
    begun = time.monotonic()
    child.send_signal(signal.SIGTERM)
    status, printed, _ = finish(child, timeout=30)
    assert time.monotonic() - begun < 10
    assert (status, printed) == (
        (7, "the old handler got SIGTERM\n") if chained else (-signal.SIGTERM, "")
    )


def test_no_secret_of_the_environment_gets_into_what_a_run_writes(tmp_path):
    """Config, log, results and report hold declared options, versions and numbers alone."""
    secrets = {"HUB_TOKEN": "hf_cafe4711", "AWS_SECRET_ACCESS_KEY": "sesame0815", "USER": "xyzzy"}
    words = "train --stream --strength 0 --data iris --epochs 2 --batch-size 16 --devices 1"
    child = subprocess.Popen(
        [*CLI, *words.split(), "--tensorboard", "--out", "run"],
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path), **secrets},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    status, printed, told = finish(child)
    assert status == 0, told
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {"config.json", "results.json", "log.jsonl", "report.html", "checkpoint.json"} <= {
        path.name for path in written
    }
    contents = [path.read_bytes() for path in written] + [printed.encode(), told.encode()]
    for name, secret in secrets.items():
        assert not any(secret.encode() in content for content in contents), name
        assert name == "USER" or not any(name.encode() in content for content in contents), name
    declared = {field.name for field in dataclasses.fields(TrainOptions)}
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert set(results["config"]) == declared
    assert set(json.loads((tmp_path / "run" / "config.json").read_text())) < declared | {"sha256"}


def test_a_second_run_in_a_folder_is_refused_and_a_dead_ones_lock_is_no_lock(tmp_path):
    code = (
        "import sys, time; from wdjax.jobs.lock import locked\n"
        f"with locked({str(tmp_path)!r}): print('in', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "in\n"
    with pytest.raises(ValueError, match=f"another run is in .* \\(process {child.pid} on "):
        with locked(tmp_path):
            pass
    child.kill()
    child.wait()
    with locked(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK).read_text()
        with pytest.raises(ValueError, match="another run is in"):
            with locked(tmp_path):
                pass
    child.stdout.close()


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "..",
        ".",
        "a/b",
        "/etc",
        "a\\b",
        "C:\\x",
        "..\\x",
        "a\0b",
        "",
        ".hidden",
        "a" * 81,
        "a b",
        "a\n",
        "ü",
        "~",
        "%2e%2e",
    ],
)
def test_a_runs_name_is_a_name_and_not_a_path(name, tmp_path):
    with pytest.raises(ValueError, match="a run's name must be 1 to 80 of"):
        run_folder(tmp_path, name)


def test_a_run_that_is_a_link_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="a link that leads out"):
        run_folder(tmp_path / "runs", "link")
    (tmp_path / "runs" / "circle").symlink_to("circle")
    with pytest.raises(ValueError, match="'circle' is a link that leads back to itself; remove"):
        run_folder(tmp_path / "runs", "circle")
    assert run_folder(tmp_path / "runs", "good-1.2_x") == tmp_path / "runs" / "good-1.2_x"


# What data can do to a run


def linear_loop(stream, run_step=None, num_steps=20):
    tx = optax.sgd(0.1)
    loss_fn = regularized_loss(lambda p, x: x.reshape(x.shape[0], -1)[:, :4] @ p, cross_entropy)
    return TrainLoop(
        (run_step or jit_step)(make_train_step(loss_fn, tx)),
        init_state(jnp.zeros((4, 3)), tx),
        stream,
        num_steps=num_steps,
    )


def rows_of(num):
    return [
        {k: v for k, v in row.items() if k != "id"} for row in image_rows(*images(num, (28, 28, 1)))
    ]


def tables(labels, num_outputs=3):
    x = np.zeros((len(labels), 4), np.float32)
    return Dataset("table", x, np.array(labels, np.int32), "table", num_outputs)


@pytest.mark.parametrize("label", [-1, 10])
def test_a_label_out_of_range_is_refused_on_the_host_before_a_step_sees_it(label, tmp_path):
    """-1 would silently be the last class; 10 a NaN loss whose gradient is finite."""
    with pytest.raises(ValueError, match=f"must be labels 0..9, got {label} at row 2"):
        make_dataset(np.zeros((3, 4)), np.array([0, 1, label]), num_outputs=10)
    source = open_tfds(str(write_folder(tmp_path, "mnist", "3.0.1", MNIST, {"train": rows_of(8)})))
    damaged = dataclasses.replace(source, num_classes=5)
    with pytest.raises(ValueError, match=r"example \d of 'tfds:.*' has label \d, outside 0..4"):
        list(linear_loop(make_stream(damaged, batch_size=8)))


def test_an_empty_data_set_is_refused_before_anything_is_compiled():
    with pytest.raises(ValueError, match="hold no examples"):
        make_stream(tables([]), batch_size=2)


def test_a_batch_that_the_devices_do_not_divide_is_refused_with_one_that_they_do():
    mesh = children.data_mesh(2)
    split = jax.sharding.NamedSharding(mesh, jax.P("data"))
    stream = make_stream(tables([0, 1, 2] * 5), batch_size=5)
    with pytest.raises(
        ValueError, match="batch of 5 rows .* among 2 devices; take a batch size of 6"
    ):
        list(linear_loop(prefetch_to_device(stream, sharding=split)))
    with pytest.raises(ValueError, match="batch of 5 does not divide over 2 devices; pad it to 6"):
        list(linear_loop(stream, lambda step: shard_step(step, mesh)))


def test_the_short_last_batch_is_filled_up_and_compiles_nothing_new(key):
    traces = []

    def counted(params, x):
        traces.append(1)
        return x @ params

    tx = optax.sgd(0.1)
    step = make_train_step(regularized_loss(counted, cross_entropy), tx)
    loop = TrainLoop(
        jit_step(step),
        init_state(jnp.zeros((4, 3)), tx),
        make_stream(tables([0, 1, 2] * 5), batch_size=4),
        num_steps=4,
    )
    assert [float(metrics["denominator"]) for _, metrics in loop] == [4, 4, 4, 3]
    assert len(traces) == 1
