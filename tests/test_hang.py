"""The hang watch: a run that stands still is said to, with the stacks of all its threads."""

import re
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wdjax.data.stream import as_stream
from wdjax.loop import HangWatch, RunLog, TrainLoop, make_evaluate
from wdjax.losses import cross_entropy, regularized_loss
from wdjax.runners import jit_step
from wdjax.step import init_state, make_train_step


def batches_that_stall(at, seconds, num=4):
    """Batches of which number `at` comes late: a disk, a network, a worker that died."""
    for number in range(num):
        if number == at:
            time.sleep(seconds)
        yield np.ones((4, 3), np.float32), np.arange(4) % 2


TX = optax.sgd(0.1)
STEP = jit_step(make_train_step(regularized_loss(lambda p, x: x @ p, cross_entropy), TX))


def loop_over(stream, watch=None, num_steps=4):
    return TrainLoop(
        STEP, init_state(jnp.zeros((3, 2)), TX), stream, num_steps=num_steps, watchdog=watch
    )


@pytest.fixture(autouse=True, scope="module")
def compiled():
    """What compiling takes is no hang of these tests'."""
    list(loop_over(batches_that_stall(at=9, seconds=0)))


def test_an_iterator_that_hangs_is_told_with_the_place_where_it_waits(tmp_path, capfd):
    """The run is left alone, says when it goes on, and ends as if nothing had been."""
    log = RunLog(tmp_path / "log.jsonl")
    told = lambda step, waited: log.write(step, {"hung_seconds": waited})
    watch = HangWatch(0.8, tmp_path / "run" / "stacks.txt", tell=told)
    loop = loop_over(batches_that_stall(at=2, seconds=2.1), watch)
    assert [step for step, _ in loop] == [1, 2, 3, 4]
    stacks = (tmp_path / "run" / "stacks.txt").read_text()
    assert "in batches_that_stall" in stacks and "most recent call first" in stacks
    assert re.search(r"finished for [\d.]+ s, after step 2 \(now: waiting for data\)", stacks)
    words = capfd.readouterr().err
    assert "the stacks of all threads are in" in words and "It is left to run." in words
    assert re.search(r"wdjax: it goes on after [\d.]+ s, after step 2", words)
    first, second, *_ = (line for line in log.read() if line["step"] == 2)
    assert first["hung_seconds"] >= 0.8, "and again after twice as long"
    assert second["hung_seconds"] >= 1.6


def test_whoever_iterates_may_take_their_time_and_steps_that_finish_are_no_hang(tmp_path, capfd):
    watch = HangWatch(0.8, tmp_path / "stacks.txt")
    for step, _ in loop_over(batches_that_stall(at=9, seconds=0), watch):
        time.sleep(1.2 if step == 2 else 0)
    assert not (tmp_path / "stacks.txt").exists() and capfd.readouterr().err == ""


def test_asked_to_it_ends_the_process_at_once_with_status_1(tmp_path):
    code = (
        "import time; from wdjax.loop import HangWatch\n"
        f"with HangWatch(0.3, {str(tmp_path / 'stacks.txt')!r}, ends=True) as watch:\n"
        "    watch.begin(7, 'training'); time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1 and "after step 7 (now: training)" in done.stderr
    assert "It ends." in done.stderr and "<string>" in (tmp_path / "stacks.txt").read_text()


def test_an_evaluation_tells_the_watch_at_every_batch_that_it_goes_on(tmp_path, capfd):
    """Eight batches a quarter of the time each are no hang; one of twice the time is. (The first
    three are fetched together, ahead of the device.)"""
    pauses, watch = [0.0] * 8, HangWatch(1.2, tmp_path / "stacks.txt")

    def batches():
        for pause in pauses:
            time.sleep(pause)
            yield np.ones((2, 1), np.float32), np.zeros(2, np.int32)

    evaluate = make_evaluate(
        lambda fit, batch: jnp.mean(batch.inputs),
        lambda: as_stream(batches()),
        on_batch=lambda: watch.begin(5, "evaluating"),
    )
    state = init_state(jnp.zeros(()), TX)
    evaluate(state)  # What compiling takes is no hang of this test's.
    pauses[:] = [0.3] * 8
    with watch:
        assert evaluate(state) == {"score": 1.0}
    assert not (tmp_path / "stacks.txt").exists()
    pauses[:] = [0.0, 2.4]
    with watch:
        evaluate(state)
    assert "after step 5 (now: evaluating)" in capfd.readouterr().err
    assert "in batches" in (tmp_path / "stacks.txt").read_text()


def test_stacks_that_cannot_be_written_do_not_silence_it(tmp_path, capfd):
    (tmp_path / "file").write_text("")
    with HangWatch(0.2, tmp_path / "file" / "stacks.txt") as watch:
        watch.begin(1, "saving")
        time.sleep(0.5)
    assert "the stacks could not be written (File exists)" in capfd.readouterr().err


def test_a_watch_can_be_used_again_and_needs_a_time(tmp_path):
    watch = HangWatch(60, tmp_path / "stacks.txt")
    for _ in range(2):
        assert len(list(loop_over(batches_that_stall(at=9, seconds=0), watch))) == 4
    with pytest.raises(ValueError, match="`hang_after` must be finite and > 0"):
        HangWatch(0, tmp_path / "stacks.txt")
