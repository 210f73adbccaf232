"""The log of a run: every line known by its check, and no curve changed in silence."""

import json
import math
import os
import re
import warnings

import jax.numpy as jnp
import numpy as np
import optax
import pandas
import pytest

from wdjax.checkpoint import Checkpoints
from wdjax.loop import Logging, RunLog, Saving, TrainLoop
from wdjax.losses import cross_entropy, regularized_loss
from wdjax.runners import jit_step
from wdjax.step import init_state, make_train_step
from wdjax.writing import WriteError

LINES = [
    {"step": 1, "loss": 0.5, "telemetry/w/norm": 1e-05},
    {"step": 2, "loss": None},
    {"step": 2, "valid_loss": 17},
]


def written(path, lines=LINES):
    log = RunLog(path)
    for line in lines:
        numbers = {name: math.nan if v is None else v for name, v in line.items()}
        log.write(numbers.pop("step"), numbers)
    return log


def read(path):
    """`(lines, words)`: what a new log finds, and what it says of it."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = RunLog(path).read()
    assert len(told) <= 1, "once"
    return found, "".join(str(warning.message) for warning in told)


def test_what_is_written_is_read_and_any_tool_reads_it_a_line_at_a_time(tmp_path):
    log = written(tmp_path / "log.jsonl")
    log.write(3, {"tree": {"loss": jnp.float32(0.25)}, "bad": math.nan})
    last = {"step": 3, "tree/loss": 0.25, "bad": None}
    assert read(log.path) == ([*LINES, last], "")
    plain = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [{n: v for n, v in line.items() if n != "check"} for line in plain] == [*LINES, last]
    assert all(re.fullmatch("[0-9a-f]{8}", line["check"]) for line in plain)
    assert RunLog(tmp_path / "none").read() == []


def test_pandas_reads_it_as_lines(tmp_path):
    table = pandas.read_json(written(tmp_path / "log.jsonl").path, lines=True)
    assert list(table["step"]) == [1, 2, 2]
    np.testing.assert_array_equal(table["loss"], [0.5, np.nan, np.nan])


def test_every_flipped_bit_is_said_or_changes_nothing(tmp_path):
    path = written(tmp_path / "log.jsonl").path
    content = path.read_bytes()
    said = 0
    for place in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            found, words = read(path)
            if words:
                said += 1
                assert "damaged and passed over" in words or "cut short" in words
                assert all(line in LINES for line in found)
                assert len(found) >= 1, "a flipped end of a line joins two; the third stays"
            else:
                assert found == LINES, (place, bit)
    assert said > 0.99 * 8 * len(content)


def test_damaged_lines_are_told_by_their_numbers_and_the_rest_is_read(tmp_path):
    path = written(tmp_path / "log.jsonl").path
    one, two, three, _ = path.read_text().split("\n")
    deep = "[" * 100_000
    path.write_text("\n".join([one, two.replace("null", "3.5"), deep, "7", three, ""]))
    found, words = read(path)
    assert found == [LINES[0], LINES[2]]
    assert "3 of its lines are damaged and passed over: 2, 3, 4" in words


@pytest.mark.parametrize("cut", [1, 2, 25, 50, 51])
def test_a_log_that_a_kill_cut_short_is_read_as_far_as_it_is_whole(cut, tmp_path):
    path = written(tmp_path / "log.jsonl").path
    os.truncate(path, path.stat().st_size - cut)
    found, words = read(path)
    num_bytes = len(json.dumps(LINES[2] | {"check": "01234567"})) + 1
    assert found == (LINES if cut == 1 else LINES[:2])
    assert bool(words) == (cut not in (1, num_bytes))
    log = RunLog(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log.cut_after(1)
    log.write(2, {"loss": 0.25})
    assert read(path) == ([LINES[0], {"step": 2, "loss": 0.25}], "")
    assert os.listdir(tmp_path) == ["log.jsonl"], "what was cut short will be logged again"


def test_a_resume_keeps_a_damaged_log_beside_the_one_it_goes_on_with(tmp_path):
    path = written(tmp_path / "log.jsonl").path
    for aside in ("log-damaged.jsonl", "log-damaged-2.jsonl"):
        damaged = path.read_bytes().replace(b"0.5", b"0.7")
        path.write_bytes(damaged + b"\x00\n")
        with pytest.warns(RuntimeWarning, match="lines are damaged and passed over: "):
            RunLog(path).cut_after(2)
        assert (tmp_path / aside).read_bytes() == damaged + b"\x00\n"
        assert read(path) == (LINES[1:], "")


def test_a_log_of_an_earlier_version_is_read_with_a_warning_and_gets_checks_at_a_resume(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    found, words = read(path)
    assert found == LINES and "an earlier version wrote it, without checks" in words
    with pytest.warns(RuntimeWarning, match="an earlier version wrote it"):
        RunLog(path).cut_after(2)
    assert read(path) == (LINES, "")
    assert os.listdir(tmp_path) == ["log.jsonl"]


@pytest.mark.parametrize("name", ["step", "check"])
def test_a_number_with_a_name_of_the_lines_own_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match=f"cannot be named '{name}'; rename it"):
        RunLog(tmp_path / "log").write(1, {name: 0.5})
    assert not list(tmp_path.iterdir())


def test_a_line_that_cannot_be_written_is_told_with_the_file(tmp_path):
    (tmp_path / "log").mkdir()
    with pytest.raises(WriteError, match="'.*log' could not be written: Is a directory"):
        RunLog(tmp_path / "log").write(1, {"loss": 0.5})


def loop(folder, num_steps):
    tx = optax.sgd(0.1)
    step = make_train_step(regularized_loss(lambda p, x: x @ p, cross_entropy), tx)
    return TrainLoop(
        jit_step(step),
        init_state(jnp.zeros((4, 3)), tx),
        [(np.ones((4, 4), np.float32), np.arange(4) % 3)] * num_steps,
        num_steps=num_steps,
        saving=Saving(Checkpoints(folder / "checkpoints"), every=3),
        logging=Logging(folder / "log.jsonl", every=1),
    )


@pytest.mark.parametrize("how", ["flipped", "cut", "gone", "a link"])
def test_a_run_with_a_damaged_log_resumes_and_says_that_its_curves_have_gaps(how, tmp_path):
    for step, _ in loop(tmp_path, 6):
        if step == 5:
            break
    path = tmp_path / "log.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    if how == "flipped":
        path.write_text("".join(lines).replace('"step": 2', '"step": 6'))
    elif how == "cut":
        path.write_text("".join(lines[:2]))
    else:
        path.unlink()
        if how == "a link":
            path.symlink_to(tmp_path / "mine")
    resumed = loop(tmp_path, 6)
    assert resumed.resume() == 3
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        list(resumed)
    said = "\n".join(str(warning.message) for warning in told)
    kept = 2 if how in ("flipped", "cut") else 0
    assert f"holds {kept} lines up to step 3, of which 3 were written" in said
    assert ("damaged and passed over: 2" in said) == (how == "flipped")
    assert [line["step"] for line in RunLog(path).read()][kept:] == [4, 5, 6]
    assert not (tmp_path / "mine").exists(), "nothing is written through a link"
