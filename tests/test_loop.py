"""The streaming loop: exact on resume, best kept, logged, and never past a number gone wrong."""

import importlib
import math
import os
import shutil
import signal
import struct
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from wdjax.checkpoint import CheckpointError, Checkpoints, host_leaves
from wdjax.data.batches import as_batch
from wdjax.data.stream import as_stream, make_stream, prefetch_to_device
from wdjax.decay import decoupled_decay
from wdjax.jobs.stream import _resume
from wdjax.loop import (
    Evaluation,
    Logging,
    NonFiniteError,
    Preempted,
    RunLog,
    Saving,
    TrainLoop,
    make_evaluate,
    write_tensorboard,
)
from wdjax.losses import cross_entropy, regularized_loss
from wdjax.models import from_linen
from wdjax.models.layers import Dropout
from wdjax.penalties import l2_penalty
from wdjax.run import skip_non_finite
from wdjax.runners import jit_step
from wdjax.step import init_state, make_train_step
from wdjax.training import make_score
from wdjax.types import Fit

pytest.importorskip("grain", reason="grain is not installed: pip install wdjax[data]")


class Small(nn.Module):
    """Batch statistics and dropout: everything a state can hold."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(4, use_bias=False)(x))
        return nn.Dense(3)(Dropout(0.2)(x, train))


MODEL = from_linen(Small())
TX = optax.chain(optax.adam(0.01), decoupled_decay(0.1, 0.01))


def examples(num=37, seed=0):
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=4).astype(np.float32), np.int32(i % 3)) for i in range(num)]


def batch_stream(num=37, **options):
    return make_stream(examples(num), batch_size=8, seed=1, num_epochs=None, **options)


def start(seed=0):
    params, model_state = MODEL.init(jax.random.key(seed), jnp.ones((8, 4)))
    return init_state(params, TX, model_state=model_state, key=jax.random.key(5))


@pytest.fixture(scope="module")
def run_step():
    loss_fn = regularized_loss(MODEL, cross_entropy, l2_penalty(1e-3))
    return jit_step(skip_non_finite(make_train_step(loss_fn, TX)))


def bits(tree):
    return {path: leaf.array.tobytes() for path, leaf in host_leaves(tree).items()}


def numbers(log):
    return [{k: v for k, v in line.items()} for line in RunLog(log).read()]


def test_the_loop_is_the_bare_step_called_on_the_stream(run_step):
    state = start()
    for batch, _ in zip(batch_stream(), range(12), strict=False):
        state, _ = run_step(state, batch)
    loop = TrainLoop(run_step, start(), batch_stream(), num_steps=12)
    seen = [(step, float(metrics["loss"])) for step, metrics in loop]
    assert [step for step, _ in seen] == list(range(1, 13))
    assert bits(loop.state) == bits(state)


@pytest.mark.parametrize("stop_at", [1, 7, 20])
def test_a_resumed_run_ends_bit_for_bit_where_one_that_never_stopped_does(
    stop_at, run_step, tmp_path
):
    """Left in the middle, it goes on from the last save, in the middle of an epoch: params,
    moments, batch statistics, dropout, data, log and the best score so far."""
    evaluate = make_evaluate(
        make_score(MODEL, loss=cross_entropy), lambda: make_stream(examples(9, 2), batch_size=4)
    )

    def loop(folder):
        return TrainLoop(
            run_step,
            start(),
            prefetch_to_device(batch_stream()),
            num_steps=23,
            evaluation=Evaluation(evaluate=evaluate, every=5),
            saving=Saving(checkpoints=Checkpoints(folder / "checkpoints"), every=3),
            logging=Logging(log=folder / "log.jsonl", every=2),
        )

    whole = loop(tmp_path / "whole")
    list(whole)
    part = loop(tmp_path / "part")
    for step, _ in part:
        if step == stop_at:
            break
    resumed = loop(tmp_path / "part")
    if stop_at >= 3:
        assert 0 < resumed.resume() <= stop_at
    list(resumed)
    assert bits(resumed.state) == bits(whole.state)
    assert numbers(tmp_path / "part" / "log.jsonl") == numbers(tmp_path / "whole" / "log.jsonl")
    assert (resumed.best_step, resumed.best_score) == (whole.best_step, whole.best_score)
    assert bits(resumed.best_state()) == bits(whole.best_state())


@pytest.mark.parametrize("how", ["damaged", "missing"])
def test_a_best_state_that_is_not_whole_any_more_is_told_at_the_resume_and_looked_for_anew(
    how, run_step, tmp_path
):
    """Not at the end of a run of days, which then could not be judged."""
    scores = {2: 1.0, 4: 3.0, 6: 4.0, 8: 2.0, 10: 5.0}

    def loop():
        return TrainLoop(
            run_step,
            start(),
            batch_stream(),
            num_steps=10,
            evaluation=Evaluation(lambda state: {"loss": scores[int(state.step)]}, every=2),
            saving=Saving(Checkpoints(tmp_path), every=1),
        )

    for step, _ in loop():
        if step == 6:
            break
    best = tmp_path / "step_0000000002"
    if how == "damaged":
        (best / "checkpoint.json").write_bytes(b"{}")
    else:
        shutil.rmtree(best)
    resumed = loop()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert resumed.resume() == 6
    said = "\n".join(str(warning.message) for warning in told)
    assert "THE BEST STATE SO FAR, that of step 2" in said
    assert ("STEP 2 IS DAMAGED" in said) == (how == "damaged")
    list(resumed)
    assert (resumed.best_step, resumed.best_score) == (8, 2.0)
    assert int(resumed.best_state().step) == 8


def test_a_stream_that_was_begun_elsewhere_is_gone_on_with(run_step, tmp_path):
    """Its position is then not the loop's step, and no damage."""

    def loop():
        stream = batch_stream()
        next(stream), next(stream)
        saving = Saving(Checkpoints(tmp_path), every=2)
        return TrainLoop(run_step, start(), stream, num_steps=6, saving=saving)

    for step, _ in loop():
        if step == 4:
            break
    resumed = loop()
    assert resumed.resume() == 4
    whole = TrainLoop(run_step, start(), batch_stream(), num_steps=6)
    whole._stream.set_state(whole._stream.get_state() | {"batches": 2})
    list(resumed), list(whole)
    assert bits(resumed.state) == bits(whole.state)


class Recorded(dict):
    """Metrics that note which of them are read."""

    def __init__(self, values, read):
        super().__init__(values)
        self.read = read

    def __getitem__(self, name):
        self.read.append(name)
        return super().__getitem__(name)


def test_at_a_step_that_is_not_logged_two_scalars_leave_the_device_a_step_late(run_step, tmp_path):
    """What the host asks of a step, it asks after the next one was sent off."""
    reads = []

    def recorded(state, batch):
        state, metrics = run_step(state, batch)
        reads.append([])
        return state, Recorded(metrics, reads[-1])

    loop = TrainLoop(
        recorded,
        start(),
        batch_stream(),
        num_steps=12,
        logging=Logging(log=tmp_path / "log", every=5),
    )
    for step, _ in loop:
        read_so_far = [sorted(names) for names in reads]
        if step in (2, 9):
            assert read_so_far[-1] == [] and read_so_far[-2] == ["denominator", "skipped"]
    assert len(reads[4]) == len(set(reads[4])) > 5, "a logged step is fetched once, whole"


def test_a_resume_on_other_devices_says_what_it_was_saved_on(run_step, tmp_path):
    saved = Checkpoints(tmp_path)
    list(
        TrainLoop(run_step, start(), batch_stream(), num_steps=2, saving=Saving(checkpoints=saved))
    )
    loop = TrainLoop(
        run_step, start(), batch_stream(), num_steps=3, saving=Saving(checkpoints=saved)
    )
    loop.resume()
    told = []
    assert loop.saved_on == 1 and _resume(loop, 1, told.append) == 2
    assert told == ["Resumed after step 2."]
    _resume(loop, 4, told.append)
    assert told[-1].startswith("It was saved on 1 devices and resumes on 4: equal to rounding")


def test_a_folder_with_checkpoints_is_not_begun_anew_by_accident(run_step, tmp_path):
    list(
        TrainLoop(
            run_step,
            start(),
            batch_stream(),
            num_steps=2,
            saving=Saving(checkpoints=Checkpoints(tmp_path)),
        )
    )
    again = TrainLoop(
        run_step,
        start(),
        batch_stream(),
        num_steps=2,
        saving=Saving(checkpoints=Checkpoints(tmp_path)),
    )
    with pytest.raises(ValueError, match=r"up to step 2: call resume\(\)"):
        list(again)
    assert again.resume() == 2
    assert list(again) == [], "a finished run resumes as finished"


def test_resuming_names_what_differs_in_config_and_data(run_step, tmp_path):
    def loop(config, stream):
        return TrainLoop(
            run_step,
            start(),
            stream,
            num_steps=2,
            saving=Saving(checkpoints=Checkpoints(tmp_path), config=config),
        )

    list(loop({"strength": 0.1}, batch_stream()))
    with pytest.raises(ValueError, match="strength was 0.1 and is 0.2"):
        loop({"strength": 0.2}, batch_stream()).resume()
    with pytest.raises(ValueError, match="num_examples was 37 and is 38"):
        loop({"strength": 0.1}, batch_stream(38)).resume()
    assert loop({"strength": 0.2}, batch_stream()).resume(may_differ=("strength",)) == 2


@pytest.mark.parametrize("kept_in", ["memory", "checkpoints"])
def test_early_stopping_waits_out_its_patience_and_keeps_the_best(kept_in, run_step, tmp_path):
    scores = iter([5.0, 3.0, float("nan"), 4.0, 3.0, 2.0])
    loop = TrainLoop(
        run_step,
        start(),
        batch_stream(),
        num_steps=100,
        evaluation=Evaluation(evaluate=lambda state: {"loss": next(scores)}, every=2, patience=3),
        saving=Saving(Checkpoints(tmp_path)) if kept_in == "checkpoints" else None,
    )
    states = {step: bits(loop.state) for step, _ in loop}
    assert loop.stopped_early and max(states) == 10
    assert (loop.best_step, loop.best_score) == (4, 3.0)
    assert bits(loop.best_state()) == states[4]


def test_evaluation_weighs_batches_by_what_counts_in_them():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(11, 4)).astype(np.float32), rng.integers(0, 3, 11)
    weights = rng.uniform(size=11).astype(np.float32)
    state, score = start(), make_score(MODEL, loss=cross_entropy)
    data = [
        (x[i : i + 4], y[i : i + 4].astype(np.int32), weights[i : i + 4]) for i in range(0, 11, 4)
    ]
    found = make_evaluate(score, lambda: as_stream(data))(state)
    fit = Fit(state.params, state.model_state, {})
    whole = score(fit, as_batch((x, y.astype(np.int32), weights)))
    np.testing.assert_allclose(found["loss"], whole["loss"], rtol=1e-6)
    nothing = make_evaluate(score, lambda: as_stream([(x, y.astype(np.int32), 0 * weights)]))
    with pytest.raises(ValueError, match="no example has a weight above 0"):
        nothing(state)


def with_bad_batches(bad, num=40):
    """Batches of which some hold a NaN."""
    rng = np.random.default_rng(0)
    for i in range(num):
        x = rng.normal(size=(8, 4)).astype(np.float32)
        x[3, 1] = np.nan if i in bad else x[3, 1]
        yield x, rng.integers(0, 3, 8).astype(np.int32)


def test_a_nan_batch_stops_the_run_by_its_number(run_step, nans_allowed, tmp_path):
    loop = TrainLoop(
        run_step,
        start(),
        with_bad_batches({4}),
        num_steps=20,
        saving=Saving(checkpoints=Checkpoints(tmp_path), every=1),
    )
    with pytest.raises(NonFiniteError, match=r"of step 5 \(batch 4, from 0\) is not finite"):
        list(loop)
    assert Checkpoints(tmp_path).steps()[-1] == 4, "what went wrong was not saved"
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(loop.state.params))


def test_a_skipped_batch_leaves_params_optimiser_and_model_state_as_if_it_had_not_been(
    run_step, nans_allowed, tmp_path
):
    loop = TrainLoop(
        run_step,
        start(),
        with_bad_batches({4, 6}),
        num_steps=10,
        non_finite="skip",
        logging=Logging(log=tmp_path / "log", every=1),
    )
    skipped = [float(metrics["skipped"]) for _, metrics in loop]
    assert skipped == [0, 0, 0, 0, 1, 0, 1, 0, 0, 0] and loop.skipped == 2
    lines = RunLog(tmp_path / "log").read()
    assert [line["skipped_total"] for line in lines] == [0, 0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert lines[4]["loss"] is None
    state = start()
    for i, item in enumerate(with_bad_batches({4, 6}, 10)):
        if i in (4, 6):
            state = state._replace(step=state.step + 1)  # The number of the batch goes on.
        else:
            state, _ = run_step(state, as_batch(item))
    assert bits(loop.state) == bits(state)


def test_skipping_gives_up_by_stopping_never_by_accepting(run_step, nans_allowed):
    loop = TrainLoop(
        run_step,
        start(),
        with_bad_batches(set(range(2, 40))),
        num_steps=40,
        non_finite="skip",
        max_skipped=3,
    )
    with pytest.raises(NonFiniteError, match="4 batches were skipped, more than `max_skipped` = 3"):
        list(loop)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(loop.state.params))


def test_a_label_beyond_the_classes_is_caught_by_its_loss_though_its_gradient_is_finite(
    run_step, nans_allowed
):
    batch = as_batch((np.ones((8, 4), np.float32), np.full(8, 99, np.int32)))
    state, metrics = run_step(start(), batch)
    assert float(metrics["skipped"]) == 1.0
    assert bits(state._replace(step=0 * state.step)) == bits(start())


def test_a_step_without_a_guard_is_stopped_too_but_cannot_skip(nans_allowed):
    bare = jit_step(make_train_step(regularized_loss(MODEL, cross_entropy), TX))
    with pytest.raises(NonFiniteError, match="step 3"):
        list(TrainLoop(bare, start(), with_bad_batches({2}), num_steps=9))
    with pytest.raises(ValueError, match=r"skip_non_finite\(make_train_step"):
        list(TrainLoop(bare, start(), with_bad_batches({2}), num_steps=9, non_finite="skip"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_gives_the_old_handler_back(
    number, run_step, tmp_path, capfd
):
    called = []
    before = signal.signal(number, lambda *_: called.append(1))
    try:
        loop = TrainLoop(
            run_step,
            start(),
            batch_stream(),
            num_steps=50,
            saving=Saving(checkpoints=Checkpoints(tmp_path)),
        )
        with pytest.raises(Preempted if number == signal.SIGTERM else KeyboardInterrupt) as ended:
            for step, _ in loop:
                if step == 6:
                    os.kill(os.getpid(), number)
        mine = signal.getsignal(number)
        os.kill(os.getpid(), number)
    finally:
        signal.signal(number, before)
    assert loop.step == 7 and Checkpoints(tmp_path).steps() == [7]
    if number == signal.SIGTERM:
        assert ended.value.code == 143 and len(called) == 2, "the old handler was chained"
    assert callable(mine) and len(called) >= 1
    assert "finishing the step; once more ends at once" in capfd.readouterr().err


def test_a_failed_save_ends_the_run_at_the_next_step(run_step, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("wdjax.checkpoint.store.write_arrays", full)
    loop = TrainLoop(
        run_step,
        start(),
        batch_stream(),
        num_steps=200,
        saving=Saving(checkpoints=Checkpoints(tmp_path), every=5),
    )
    with pytest.raises(CheckpointError, match="No space left"):
        list(loop)
    assert loop.step <= 10


def test_data_that_end_too_early_and_nothing_to_evaluate_are_said(run_step, tmp_path):
    with pytest.raises(ValueError, match="the data end after 5 of 9 steps"):
        list(TrainLoop(run_step, start(), with_bad_batches((), 5), num_steps=9))
    with pytest.raises(ValueError, match="cannot be walked over once"):
        list(TrainLoop(run_step, start(), [], num_steps=9))
    for setting in (
        lambda: Evaluation(lambda state: {}, every=0),
        lambda: Saving(Checkpoints(tmp_path), every=-1),
        lambda: Logging("nowhere", every=0),
    ):
        with pytest.raises(ValueError, match="_every` must be"):
            setting()
    loop = TrainLoop(
        run_step,
        start(),
        batch_stream(),
        num_steps=1,
        evaluation=Evaluation(evaluate=lambda state: {"accuracy": 1.0}),
    )
    with pytest.raises(ValueError, match="`monitor` 'loss' is not what `evaluate` gives: accuracy"):
        list(loop)
    with pytest.raises(ValueError, match="there is no best"):
        loop.best_state()


def test_telemetry_sees_the_step_to_come_and_leaves_the_run_as_it_was(run_step, tmp_path):
    """Before the first step and the first after each evaluation, with that step's own batch."""

    def look(state, batch):
        return {"part": {"number": state.step + 1, "input": batch.inputs[0, 0]}}

    options = {"num_steps": 7, "evaluation": Evaluation(lambda state: {"loss": 1.0}, every=3)}
    loop = TrainLoop(
        run_step,
        start(),
        batch_stream(),
        logging=Logging(tmp_path / "log", telemetry=look, telemetry_every=3),
        **options,
    )
    inputs = [float(batch.inputs[0, 0]) for batch, _ in zip(batch_stream(), range(7), strict=False)]
    list(loop)
    plain = TrainLoop(run_step, start(), batch_stream(), **options)
    list(plain)
    assert bits(loop.state) == bits(plain.state)
    seen = [line for line in RunLog(tmp_path / "log").read() if "telemetry/part/number" in line]
    assert [(line["step"], line["telemetry/part/number"]) for line in seen] == [
        (1, 1),
        (4, 4),
        (7, 7),
    ]
    np.testing.assert_allclose(
        [line["telemetry/part/input"] for line in seen], [inputs[i] for i in (0, 3, 6)]
    )


def points_of(folder):
    """`{name: [(step, value)]}` in TensorBoard's own format: framed records, each an `Event`."""
    event_pb2 = importlib.import_module("tensorboardX.proto.event_pb2")
    points = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content, place = path.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            event = event_pb2.Event.FromString(content[place + 12 : place + 12 + length])
            for value in event.summary.value:
                points.setdefault(value.tag, []).append((event.step, value.simple_value))
            place += 16 + length
    return points


def test_tensorboard_gets_a_curve_a_name(tmp_path):
    pytest.importorskip("tensorboardX", reason="the extra `tensorboard` is not installed")
    log = RunLog(tmp_path / "log.jsonl")
    log.write(1, {"loss": 0.5, "bad": math.nan})
    log.write(3, {"loss": 0.25})
    write_tensorboard(log.path, tmp_path / "board")
    assert points_of(tmp_path / "board") == {"loss": [(1, 0.5), (3, 0.25)]}


def test_tensorboard_shows_the_log_of_a_resumed_run_and_no_step_twice(run_step, tmp_path):
    """What a killed run showed after its last checkpoint is shown once, as it came then."""
    pytest.importorskip("tensorboardX", reason="the extra `tensorboard` is not installed")

    def loop():
        return TrainLoop(
            run_step,
            start(),
            batch_stream(),
            num_steps=12,
            saving=Saving(checkpoints=Checkpoints(tmp_path / "checkpoints"), every=4),
            logging=Logging(log=RunLog(tmp_path / "log.jsonl", board=tmp_path / "board"), every=1),
        )

    for step, _ in loop():
        if step == 7:
            break
    assert [step for step, _ in points_of(tmp_path / "board")["loss"]] == [1, 2, 3, 4, 5, 6]
    resumed = loop()
    assert resumed.resume() == 4
    list(resumed)
    shown = points_of(tmp_path / "board")
    lines = RunLog(tmp_path / "log.jsonl").read()
    for name in ("loss", "grad_norm"):
        assert [step for step, _ in shown[name]] == list(range(1, 13))
        np.testing.assert_allclose([v for _, v in shown[name]], [line[name] for line in lines])


def test_without_tensorboardx_the_way_out_is_told(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"pip install \"wdjax\[tensorboard\]\".*log.jsonl holds"):
        RunLog(tmp_path / "log.jsonl", board=tmp_path / "board")
    assert list(tmp_path.iterdir()) == []


def test_a_batch_of_which_nothing_counts_is_told_once_and_counted(tmp_path):
    """Its data loss is 0, not 0/0; the log's `denominator` shows it too."""
    x, y = np.ones((8, 4), np.float32), np.zeros(8, np.int32)
    weights = [np.full(8, float(i not in (2, 3)), np.float32) for i in range(5)]
    tx = optax.sgd(0.1)
    bare = jit_step(make_train_step(regularized_loss(lambda p, x: x @ p, cross_entropy), tx))
    loop = TrainLoop(
        bare,
        init_state(jnp.zeros((4, 3)), tx),
        [(x, y, w) for w in weights],
        num_steps=5,
        logging=Logging(log=tmp_path / "log.jsonl", every=1),
    )
    with pytest.warns(RuntimeWarning, match=r"no example of step 3 \(batch 2, from 0\)") as told:
        losses = [float(metrics["data_loss"]) for _, metrics in loop]
    assert len(told) == 1 and loop.empty == 2
    assert losses[2] == losses[3] == 0 and losses[4] > 0
    lines = RunLog(tmp_path / "log.jsonl").read()
    assert [line["denominator"] for line in lines] == [8, 8, 0, 0, 8]


def test_the_keywords_of_the_version_before_say_the_new_ones_and_do_the_same(run_step, tmp_path):
    old = {
        "evaluate": lambda state: {"gap": float(state.step)},
        "evaluate_every": 2,
        "measure": "gap",
        "log": tmp_path / "old",
        "log_every": 1,
    }
    with pytest.warns(DeprecationWarning, match=r"TrainLoop\(.*=\) is now TrainLoop\(") as warned:
        loop = TrainLoop(run_step, start(), batch_stream(), num_steps=4, **old)
    assert len(warned) == len(old)
    new = TrainLoop(
        run_step,
        start(),
        batch_stream(),
        num_steps=4,
        evaluation=Evaluation(old["evaluate"], every=2, monitor="gap"),
        logging=Logging(tmp_path / "new", every=1),
    )
    list(loop), list(new)
    assert RunLog(tmp_path / "old").read() == RunLog(tmp_path / "new").read() != []
    assert loop.best_step == new.best_step == 2
    with pytest.raises(TypeError, match="unexpected keyword argument 'wach'"):
        TrainLoop(run_step, start(), batch_stream(), num_steps=4, wach=None)
    with (
        pytest.warns(DeprecationWarning, match="evaluation=Evaluation"),
        pytest.raises(ValueError, match="`patience` needs `evaluate`"),
    ):
        TrainLoop(run_step, start(), batch_stream(), num_steps=4, patience=2)
