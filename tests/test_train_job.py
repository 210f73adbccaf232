"""`wdjax train` in memory: in pieces, saved between them, resumed bit for bit."""

import json
import signal

import numpy as np
import pytest

from wdjax import jobs
from wdjax.checkpoint import Checkpoints
from wdjax.jobs.options import TrainOptions
from wdjax.jobs.resume import resumed_options
from wdjax.loop import Preempted

CHOICES = {"data": "iris", "strength": 0.1, "epochs": 4, "batch_size": 30, "seeds": 3}


def train(out, *, stop_after=None, **more):
    """Sends itself a signal after so many epochs, as a preempted machine would."""

    def on_progress(stage, event):
        if event.stage == "run" and event.done == stop_after:
            signal.raise_signal(signal.SIGTERM)

    options = TrainOptions(**{**CHOICES, **more}, out=str(out))
    return jobs.run_train(options, say=lambda text: None, on_progress=on_progress)


def resume(out, **given):
    said = []
    results = jobs.run_train(resumed_options(str(out), given), say=said.append)
    return results, said


def same_run(a, b):
    for name in ("refit", "telemetry", "decay"):
        one, other = (json.loads((out / "results.json").read_text())[name] for out in (a, b))
        assert one == other
    one, other = (dict(np.load(out / "params.npz")) for out in (a, b))
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(out)
    return out


def test_stopped_and_resumed_it_is_bit_for_bit_the_run(whole, tmp_path):
    out = tmp_path / "run"
    # Asked for at the end of epoch 1, noticed at that of epoch 2.
    with pytest.raises(Preempted):
        train(out, stop_after=1)
    stopped = json.loads((out / "results.json").read_text())
    assert stopped["headline"].startswith("Stopped after epoch 2 of 4. Go on with: wdjax train --r")
    _, said = resume(out)
    assert said[0] == "Resumed after epoch 2 of 4."
    same_run(out, whole)


def test_saved_as_often_as_asked_it_is_still_the_run(whole, tmp_path):
    out = tmp_path / "run"
    train(out, save_every=4)  # The 120 of 150 to train on make 4 batches an epoch.
    kept = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert kept == ["step_0000000008", "step_0000000012"]
    same_run(out, whole)
    results, said = resume(out, save_every=8)
    assert said[0] == "Resumed after epoch 3 of 4." and results["status"] == "complete"
    same_run(out, whole)


def test_a_run_that_is_done_in_a_minute_leaves_nothing_but_its_results(whole):
    assert sorted(path.name for path in whole.iterdir()) == [
        ".run.json",
        "params.npz",
        "report.html",
        "results.json",
    ]


def test_a_resume_that_is_told_something_else_is_refused_by_name(tmp_path):
    out = tmp_path / "run"
    train(out, save_every=4, epochs=2, seeds=1)
    with pytest.raises(ValueError, match="learning_rate"):
        resume(out, learning_rate=0.5)
    with pytest.raises(ValueError, match="seeds"):
        resume(out, seeds=2)


def test_a_folder_without_a_saved_run_is_refused_with_the_way_out(whole):
    with pytest.raises(ValueError, match="holds no config.json; give the folder of a run"):
        resume(whole)


@pytest.mark.parametrize("wrong", [0, -3])
def test_saves_at_no_interval_are_refused_before_anything_is_written(tmp_path, wrong):
    with pytest.raises(ValueError, match="`save_every` must be"):
        train(tmp_path / "run", save_every=wrong)
    assert not (tmp_path / "run").exists()


def test_a_run_that_goes_on_keeps_its_checkpoints_until_its_results_are_written(
    tmp_path, monkeypatch
):
    """A crash while they are written must leave what to go on from."""
    out = tmp_path / "run"
    train(out, save_every=4, seeds=1)
    before = sorted(path.name for path in (out / "checkpoints").iterdir())

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("wdjax.jobs.train.write_params", full)
    with pytest.raises(OSError, match="No space left"):
        resume(out)
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == before
    assert (out / "config.json").exists()


def test_a_resume_on_other_data_of_the_same_name_and_shape_is_refused(tmp_path):
    """Its folder and its options say nothing of what a file held."""
    rng = np.random.default_rng(0)
    rows = np.column_stack([rng.normal(size=(40, 2)), np.arange(40) % 2])
    path = tmp_path / "my.csv"
    told = {"data": str(path), "epochs": 2, "batch_size": 8, "seeds": 1, "save_every": 4}

    def write(rows):
        np.savetxt(path, rows, delimiter=",", header="a,b,kind", comments="", fmt="%.6f,%.6f,%d")

    write(rows)
    train(tmp_path / "run", **told)
    rows[7, 0] += 1
    write(rows)
    with pytest.raises(ValueError, match="was begun on other data than '.*my.csv' holds now"):
        resume(tmp_path / "run")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("before", [True, False])
def test_two_ctrl_cs_promise_a_resume_only_of_what_is_there(stream, before, tmp_path, monkeypatch):
    out, said = tmp_path / "run", []
    told = {**CHOICES, "seeds": 1, "save_every": 4, "stream": stream}
    save = Checkpoints.save

    def impatient(*arguments, **named):
        if not before:
            save(*arguments, **named)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # Which strikes, here.

    monkeypatch.setattr(Checkpoints, "save", impatient)
    # A shell's background jobs ignore Ctrl-C, and these tests may be one.
    before_the_test = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            jobs.run_train(TrainOptions(**told, out=str(out)), say=said.append)
    finally:
        signal.signal(signal.SIGINT, before_the_test)
    monkeypatch.undo()
    if before:
        assert "Stopped before anything was saved" in said[-1] and "resume" not in said[-1]
        assert not (out / "results.json").exists()
    else:
        how_far = "step 4 of 16" if stream else "epoch 1 of 4"
        assert said[-1] == f"Stopped after {how_far}. Go on with: wdjax train --resume {out}"
        results, said = resume(out)
        assert said[0].startswith("Resumed after") and results["status"] == "complete"
