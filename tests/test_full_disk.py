"""A full disk and a failed rename, at every write of a job: one sentence, nothing half written."""

import errno
import json
import os
import pathlib

import pytest
from kills import MODEL

from wdjax import cli
from wdjax.jobs import select, stream, train, tuned
from wdjax.writing import PARTIAL, unsealed

# Every failure is a job of its own: long, though CI runs them all.
pytestmark = pytest.mark.slow

SMALL = "--data iris --devices 1 --batch-size 30 --optimizer sgd --model model.py:make_model"
JOBS = {
    "train": f"train {SMALL} --strength 0.1 --epochs 2 --save-every 1",
    "stream": f"train {SMALL} --strength 0.1 --epochs 1 --stream",
    "tune": f"train --tune {SMALL} --epochs 4 --schedule cosine",
    "select": f"select {SMALL} --strengths 0 0.1 --learning-rates 0.003 --folds 2 --seeds 1 "
    "--epochs 1",
    "compare": f"compare {SMALL} --strengths 0.1 --learning-rates 0.01 --folds 2 --seeds 1 "
    "--epochs 1",
    "transfer": f"transfer {SMALL} --rows 30 31 32 33 "
    "--strengths 0.1 1 10 --learning-rates 0.003 --folds 2 --seeds 1 --epochs 1",
}


class Full:
    """Fails the `at`-th call of a function of the system on a file of the run."""

    def __init__(self, monkeypatch, function, at):
        self.count, self.failed = 0, False
        whole = getattr(os, function)

        def failing(*args, **more):
            self.count += 1
            if self.count == at:
                self.failed = True
                raise OSError(errno.ENOSPC, "No space left on device")
            return whole(*args, **more)

        monkeypatch.setattr(os, function, failing)


def whole_json(path):
    return unsealed(json.loads(path.read_text()), path)


@pytest.fixture
def command(tmp_path, monkeypatch, capsys, shared_programs):
    monkeypatch.chdir(tmp_path)
    linear = MODEL.replace('+ params["bias"]', '+ params["bias"][None]')
    pathlib.Path("model.py").write_text(linear)
    # Most of the time of a run as short as these, and it writes nothing.
    for job in (select, stream, train, tuned):
        monkeypatch.setattr(job, "audit_run", lambda *_: None)
        monkeypatch.setattr(job, "audit_results", lambda *_: {"decay": []})

    def run(words):
        status = cli.main(words.split())
        return status, capsys.readouterr().err

    return run


def ends_well_at_every_failure(words, function, command, monkeypatch, most=40):
    """Runs until nothing fails; gives at how many places it could fail."""
    for at in range(1, most):
        with monkeypatch.context() as patch:
            full = Full(patch, function, at)
            status, told = command(f"{words} --out run{at}")
        if not full.failed:
            assert status == 0, told
            return at - 1
        out = pathlib.Path(f"run{at}")
        assert status == 1 and "No space left on device" in told, (at, told)
        assert "Traceback" not in told
        assert not list(pathlib.Path().rglob(f"{PARTIAL}*")), "a temporary file was left"
        assert not list(pathlib.Path().rglob("*.tmp*"))
        for name in ("results.json", "config.json"):
            if (out / name).exists():
                whole_json(out / name)
    raise AssertionError("it never ended")


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("job", JOBS)
def test_at_every_write_of_a_job_a_full_disk_is_one_sentence_and_leaves_nothing_half(
    job, function, command, monkeypatch
):
    assert ends_well_at_every_failure(JOBS[job], function, command, monkeypatch) >= 2


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_page_and_predictions_that_cannot_be_written_leave_those_of_before(
    function, command, monkeypatch, tmp_path
):
    assert command(f"train {SMALL} --strength 0.1 --epochs 1 --out run")[0] == 0
    pathlib.Path("new.csv").write_text("1,2,3,4\n")
    again = "predict run new.csv --model model.py:make_model"
    assert command(again)[0] == 0
    before = {path.name: path.read_bytes() for path in pathlib.Path("run").iterdir()}
    for words in ("report run", again):
        with monkeypatch.context() as patch:
            full = Full(patch, function, 1)
            status, told = command(words)
        assert full.failed and status == 1 and "No space left on device" in told
        left = {path.name: path.read_bytes() for path in pathlib.Path("run").iterdir()}
        assert left.items() <= before.items() and before.keys() - left.keys() <= {
            "predictions-new.csv.sha256"
        }
