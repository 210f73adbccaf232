"""`wdjax train --tune`: said before, moved window by window, saved between them, resumed."""

import json
import signal

import numpy as np
import pytest
from kills import MODEL

from wdjax import jobs
from wdjax.jobs import stream, tuned
from wdjax.jobs.options import TrainOptions
from wdjax.jobs.resume import resumed_options
from wdjax.loop import Preempted
from wdjax.loop.tune_loop import TuneLoop
from wdjax.selection.tuning import Tuning

TOLD = {"data": "iris", "epochs": 4, "batch_size": 27, "schedule": "cosine", "tune": ()}
TOLD |= {"optimizer": "sgd", "learning_rate": 0.1}


class Killed(BaseException):
    """As SIGKILL: nothing is left to say or to save."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Linear: what is tried are the windows, and this is compiled in no time."""
    path = tmp_path_factory.mktemp("own") / "model.py"
    path.write_text(MODEL.replace('+ params["bias"]', '+ params["bias"][None]'))
    return f"{path}:make_model"


def train(out, model, *, on_progress=None, **more):
    said = []
    options = TrainOptions(**{**TOLD, "model": model, **more}, out=str(out))
    results = jobs.run_train(options, say=said.append, on_progress=on_progress)
    return results, said


def resume(out, model, **given):
    said = []
    options = resumed_options(str(out), {"model": model, **given})
    return jobs.run_train(options, say=said.append), said


@pytest.fixture
def unaudited(monkeypatch):
    """Most of the time of a run as short as these."""
    monkeypatch.setattr(tuned, "audit_run", lambda *_: None)
    monkeypatch.setattr(tuned, "audit_results", lambda *_: {"decay": []})


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, *train(out, model)


def same_run(a, b):
    one, other = (json.loads((out / "results.json").read_text()) for out in (a, b))
    assert one["refit"] == other["refit"] and one["headline"] == other["headline"]
    for name in ("windows", "hparams", "following", "doubts"):
        assert one["tuned"][name] == other["tuned"][name]
    arrays, others = (dict(np.load(out / "params.npz")) for out in (a, b))
    assert arrays.keys() == others.keys()
    for name in arrays:
        np.testing.assert_array_equal(arrays[name], others[name])


def test_it_says_before_it_starts_what_it_costs(whole):
    _, _, (plan,) = whole
    # 120 of iris's 150 to train on, of which a tenth is held out; 4 steps an epoch.
    assert "Tuning from strength 1.25, learning_rate 0.1, in windows of 1, 1, 1, 1 e" in plan
    assert "12 of the examples are held out" in plan
    assert "costs 3 trainings of equal length, 0." in plan and " MiB without)." in plan


def test_the_start_is_the_timescale_between_an_epoch_and_the_run():
    assert 1 / (0.1 * 1.25) == pytest.approx(4 * 4**0.5, rel=1e-3)


def test_what_was_found_is_told_and_saved(whole, model):
    out, results, _ = whole
    windows = results["tuned"]["windows"]
    assert [w["num_epochs"] for w in windows] == [1, 1, 1, 1]
    assert results["refit"]["chosen"]["hparams"] == windows[-1]["hparams"]
    assert len(results["refit"]["chosen"]["curves"]["train_loss"][0]) == 4
    told = jobs.summary(results)
    assert "How the numbers moved" in told and "Cost: 3 trainings" in told
    assert "the error is that of which examples were held out" in told
    assert "The next run should use strength" in told
    assert "Do not believe this: 12 held-out examples are too few" in told
    assert "How the numbers moved" in (out / "report.html").read_text()
    assert json.loads((out / "results.json").read_text())["cost"]["trainings"] == 3
    rows = np.array([[5.1, 3.5, 1.4, 0.2], [6.3, 3.3, 6.0, 2.5]], np.float32)
    predicted = jobs.load_predictor(str(out), model=model)(rows)
    np.testing.assert_allclose(predicted.sum(axis=1), 1, rtol=1e-5)


def test_killed_in_two_windows_it_resumes_after_the_one_before_bit_for_bit(
    whole, model, tmp_path, monkeypatch, unaudited
):
    out, advance = tmp_path / "run", Tuning.advance

    def kill_in(window):
        def killed(self):
            if len(self.done) == window:
                advance(self)  # It is done, and lost.
                raise Killed
            return advance(self)

        monkeypatch.setattr(Tuning, "advance", killed)

    kill_in(1)
    with pytest.raises(Killed):
        train(out, model)
    assert not (out / "results.json").exists()
    kill_in(3)
    with pytest.raises(Killed):
        resume(out, model)
    monkeypatch.setattr(Tuning, "advance", advance)
    _, said = resume(out, model)
    assert said[0] == "Resumed after window 3 of 4."
    same_run(out, whole[0])


def test_asked_to_end_it_saves_and_says_how_to_go_on(model, tmp_path):
    out = tmp_path / "run"

    def on_progress(stage, event):
        if event.done == 1:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Preempted):
        train(out, model, on_progress=on_progress)
    headline = json.loads((out / "results.json").read_text())["headline"]
    assert headline == f"Stopped after window 2 of 4. Go on with: wdjax train --resume {out}"
    with pytest.raises(ValueError, match="tune was .* and is .'learning_rate'"):
        resume(out, model, tune=("learning_rate",))


def test_a_constant_learning_rate_is_doubted_and_a_part_of_each_window_costs_less(
    model, tmp_path, unaudited
):
    results, (plan,) = train(
        tmp_path / "run",
        model,
        schedule="constant",
        strength=0.1,
        tune=("strength",),
        epochs=8,
        tune_carried=0.5,
    )
    assert "costs 1.5 trainings" in plan and "from strength 0.1, in windows of 2, 2, 2, 2" in plan
    assert any("at a constant learning rate" in doubt for doubt in results["tuned"]["doubts"])


def test_tangents_that_do_not_fit_are_refused_before_anything_runs(model, tmp_path, monkeypatch):
    monkeypatch.setattr(tuned, "memory_on", lambda device: 1000)
    monkeypatch.setattr(Tuning, "advance", None)
    monkeypatch.setattr(TuneLoop, "__iter__", None)
    for how in ({}, {"stream": True, "devices": 1}):
        with pytest.raises(
            ValueError,
            match=r"tangents of strength and learning_rate takes .* MiB by the compiler's analysis "
            r"\(.* MiB without them\), and there are 0.000954 MiB on cpu:0: tune fewer numbers",
        ):
            train(tmp_path / "run", model, **how)
        assert not (tmp_path / "run").exists()


def test_a_streamed_run_is_tuned_over_all_devices_saved_at_any_step_and_resumed(
    model, tmp_path, monkeypatch
):
    """120 to train on less a tenth: 16 steps of 27, windows of 4."""
    how = {"stream": True, "devices": 2, "batch_size": 26, "save_every": 3}
    monkeypatch.setattr(stream, "audit_run", lambda *_: None)
    monkeypatch.setattr(stream, "audit_results", lambda *_: {"decay": []})
    results, (plan,) = train(tmp_path / "whole", model, **how)
    assert "in windows of 1, 1, 1, 1 epochs; a tenth of the examples are held out" in plan
    assert "costs 3 trainings" in plan and "cpu:0, cpu:1" in plan
    windows = results["tuned"]["windows"]
    assert [w["num_steps"] for w in windows] == [4, 4, 4, 5]
    assert results["refit"]["chosen"]["hparams"] == windows[-1]["hparams"]
    assert len(results["refit"]["chosen"]["curves"]["valid_loss"][0]) == 5
    assert results["headline"].endswith(f"{results['refit']['chosen']['train_loss'][0]:.4g}.")
    assert "tuned in 4 windows: test loss" in results["headline"]
    assert results["telemetry"] and "How the numbers moved" in jobs.summary(results)

    def on_progress(stage, event):
        if event.done == 9:
            signal.raise_signal(signal.SIGTERM)

    out = tmp_path / "run"
    with pytest.raises(Preempted):
        train(out, model, on_progress=on_progress, **how)
    told = json.loads((out / "results.json").read_text())["headline"]
    assert told == f"Stopped after step 10 of 17. Go on with: wdjax train --resume {out}"
    _, said = resume(out, model)
    assert said[0] == "Resumed after step 10."
    same_run(out, tmp_path / "whole")


@pytest.mark.parametrize(
    "told, words",
    [
        ({"tune": ("strenght",)}, "Did you mean 'strength'"),
        ({"tune": ("strength", "strength")}, "`tune` names strength twice"),
        ({"tune": ("dropout",)}, "`tune`"),
        ({"strength": 0.0}, "`strength` = 0 cannot be moved.*timescale of the run"),
        ({"learning_rate": 0.0}, "`learning_rate`"),
        ({"strength": -1.0}, "`strength`"),
        ({"epochs": 3}, "`epochs` = 3: a run that is tuned goes through 4 windows"),
        ({"seeds": 2}, "`seeds` = 2: a run that is tuned is one run.*--seed"),
        ({"tune_carried": 0.0}, r"`tune_carried` must be in \(0, 1\].*got 0"),
        ({"tune_carried": 1.5}, "`tune_carried` must be"),
        ({"tune": None, "tune_carried": 0.5, "strength": 0.1}, "add --tune, or leave it out"),
        ({"optimizer": "lion"}, "`tune`: the run takes the sign.*another optimiser or decay"),
        (
            {"optimizer": "sgd", "decay": "l1", "strength": None},
            "`decay` l1 has no timescale to start",
        ),
        (
            {"stream": True, "patience": 3},
            "`patience` = 3: .* all of its windows; leave --patience",
        ),
        ({"stream": True, "epochs": 3}, "`epochs` = 3: a run that is tuned goes through 4 windows"),
        ({"stream": True, "devices": 1, "optimizer": "lion"}, "`tune`: the run takes the sign"),
        ({"stream": True, "seeds": 2}, "`seeds` = 2: a run that is tuned is one run.*--seed"),
        ({"evaluate_every": 3}, "add --stream"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_anything_runs(
    told, words, model, tmp_path, monkeypatch
):
    monkeypatch.setattr(Tuning, "compile", None)
    monkeypatch.setattr(TuneLoop, "compile", None)
    with pytest.raises(ValueError, match=words):
        train(tmp_path / "run", model, **told)
    assert not (tmp_path / "run").exists()
