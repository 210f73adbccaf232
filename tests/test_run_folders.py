"""A run's folder: its own while it runs, as it was after a refusal, cleared of our files alone."""

import errno
import json
import os
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest

from wdjax import cli
from wdjax.jobs import folder as folders
from wdjax.jobs.folder import LOCK, MARKER, claimed, clear_earlier, is_run_folder
from wdjax.jobs.lock import EXCLUSIVE, locked
from wdjax.jobs.options import SelectOptions, TrainOptions
from wdjax.writing import write_whole

TRAIN = "train --data iris --strength 0.1 --devices 1"
SELECT = (
    "select --data iris --strengths 0 0.1 --learning-rates 0.003 --folds 2 --seeds 1 --epochs 1"
)
COMPARE = "compare --data iris --strengths 0.1 --learning-rates 0.01 --folds 2 --seeds 1 --epochs 1"
STREAM = f"{TRAIN} --stream --epochs 1"
SELECT, COMPARE = f"{SELECT} --batch-size 30 --devices 1", f"{COMPARE} --batch-size 30 --devices 1"


@pytest.fixture
def command(tmp_path, monkeypatch, capsys, shared_programs):
    monkeypatch.chdir(tmp_path)

    def run(words):
        status = cli.main(words.split() if isinstance(words, str) else words)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def everything(folder="."):
    return {
        str(p): p.read_bytes() if p.is_file() else None for p in pathlib.Path(folder).rglob("*")
    }


def no_locks(*args):
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.fixture(params=["locks", "no locks"])
def with_and_without_locks(request, monkeypatch):
    if request.param == "no locks":
        monkeypatch.setattr("fcntl.flock", no_locks)
    return request.param


# One run at a time


def test_runs_that_begin_in_one_second_get_a_folder_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda form: "20261130-120000")
    ready, found = threading.Barrier(4), []

    def claim():
        ready.wait()
        with claimed(TrainOptions()) as out:
            (out / "results.json").write_text("mine")
            found.append(str(out))
            ready.wait()

    threads = [threading.Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first = "runs/train-20261130-120000"
    assert sorted(found) == [first, f"{first}-2", f"{first}-3", f"{first}-4"]


def test_a_second_run_is_refused_by_the_process_of_the_first(tmp_path, with_and_without_locks):
    with locked(tmp_path):
        with pytest.raises(ValueError, match=rf"another run is in .* \(process {os.getpid()} on "):
            with locked(tmp_path):
                pass
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path):
        pass


def test_of_eight_that_claim_one_folder_at_once_one_gets_it(tmp_path, with_and_without_locks):
    ready, ends = threading.Barrier(8), []

    def claim():
        ready.wait()
        try:
            with claimed(SelectOptions(out=str(tmp_path / "same"))) as out:
                (out / "results.json").write_text("mine")
                ready.wait()
                ends.append("ran")
        except ValueError as refusal:
            ends.append(str(refusal))
            ready.wait()

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ends.count("ran") == 1 and len(ends) == 8
    assert all("another run is in" in end for end in ends if end != "ran")


@pytest.mark.slow
def test_eight_jobs_on_one_cache_and_one_folder_one_runs_and_seven_are_refused_by_name(tmp_path):
    """As processes, which begin at once; the one that runs writes all that a single one does."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment |= {"PYTHONPATH": str(pathlib.Path(__file__).parent.parent)}
    words = SELECT.replace("--epochs 1", "--epochs 30").split()
    pool = [
        subprocess.Popen(
            [sys.executable, "-m", "wdjax.cli", *words, "--out", "same"],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(8)
    ]
    ends = [(child.pid, *child.communicate(timeout=300), child.returncode) for child in pool]
    (winner,) = (end for end in ends if end[3] == 0)
    for _, printed, told, status in ends:
        if status:
            last = told.strip().splitlines()[-1]
            assert status == 2 and printed == "", told
            assert f"another run is in 'same' (process {winner[0]} on " in last
    results = json.loads((tmp_path / "same/results.json").read_text())
    assert results["status"] == "complete"
    assert {p.name for p in (tmp_path / "same").iterdir()} == {
        *(MARKER, "results.json", "report.html", "params.npz")
    }


def test_a_dead_processs_exclusive_file_is_taken_over_and_a_live_ones_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr("fcntl.flock", no_locks)
    code = (
        "import errno, fcntl, sys, time\n"
        "def no_locks(*args): raise OSError(errno.ENOLCK, 'none')\n"
        "fcntl.flock = no_locks\n"
        "from wdjax.jobs.lock import locked\n"
        f"with locked({str(tmp_path)!r}): print('in', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "in\n"
    with pytest.raises(ValueError, match=f"process {child.pid} on .*If that process has"):
        with locked(tmp_path):
            pass
    child.kill()
    child.wait()
    child.stdout.close()
    assert (tmp_path / EXCLUSIVE).exists()
    with locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change", [{"machine": "another"}, {"numbering": "pid:[1]"}, {"began": None}, {"process": "x"}]
)
def test_what_cannot_be_known_to_be_dead_stays(tmp_path, monkeypatch, change):
    """Another machine's, another container's, another process of the same number; no number."""
    monkeypatch.setattr("fcntl.flock", no_locks)
    with locked(tmp_path):
        holder = json.loads((tmp_path / EXCLUSIVE).read_text())
    gone = {"process": 2**22 + 1} if "process" not in change else {}
    (tmp_path / EXCLUSIVE).write_text(json.dumps(holder | gone | change))
    if "began" in change:
        with locked(tmp_path):
            return
    with pytest.raises(ValueError, match="If that process has ended, remove"):
        with locked(tmp_path):
            pass
    assert (tmp_path / EXCLUSIVE).exists()


def test_a_lock_file_that_a_kill_cut_short_is_in_nobodys_way(tmp_path):
    for left in ("", "pro", "process 12 o"):
        (tmp_path / LOCK).write_text(left)
        with locked(tmp_path):
            assert (tmp_path / LOCK).read_text().startswith("process ")
        assert not (tmp_path / LOCK).exists()


def test_a_lock_file_that_is_the_users_own_is_neither_emptied_nor_removed(tmp_path):
    (tmp_path / LOCK).write_text("poetry 1.8")
    with pytest.raises(ValueError, match=r"\.lock' was not written by wdjax"):
        with locked(tmp_path):
            pass
    assert (tmp_path / LOCK).read_text() == "poetry 1.8"
    (tmp_path / "mine").write_text("mine")
    (tmp_path / LOCK).unlink()
    (tmp_path / LOCK).symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="could not be written"):
        with locked(tmp_path):
            pass
    assert (tmp_path / "mine").read_text() == "mine"


# A refusal leaves all as it was


REFUSALS = (
    f"{TRAIN} --stream --batch-size 4 --micro-batches 3",
    f"{TRAIN} --stream --batch-size 10000",
    f"{TRAIN} --stream --data few.npz",
    f"{TRAIN} --batch-size 10000",
    f"{TRAIN} --save-every 0",
    f"{TRAIN} --data few.npz",
    "train --data iris",
    f"{SELECT} --seeds 0",
    f"{SELECT} --folds 1000",
    f"{SELECT} --data nowhere.npz",
    f"{SELECT} --choose-by beauty",
    f"{COMPARE} --among sgd",
    f"{COMPARE} --folds 1000",
    f"{COMPARE} --data nowhere.npz",
    "train --resume nowhere",
    "report nowhere",
    "predict nowhere new.csv",
    "audit --run nowhere",
)


OUTS = ("", " --out here", " --out made", " --name x", " --out a/b/c")


@pytest.mark.parametrize(
    ("words", "out"),
    [
        *(
            (words, OUTS[i % len(OUTS)] if "--data" in words else "")
            for i, words in enumerate(REFUSALS)
        ),
        *((REFUSALS[4], out) for out in OUTS),
    ],
)
def test_a_refusal_leaves_the_working_directory_as_it_was(words, out, command):
    np.savez("few.npz", inputs=np.ones((3, 2)), targets=np.arange(3))
    pathlib.Path("here").mkdir()
    before = everything()
    status, printed, told = command(words + out)
    assert status == 2 and printed == "", told
    assert everything() == before


def test_without_grain_nothing_is_left_and_the_next_try_is_not_in_its_way(command, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "grain", None)
        status, _, told = command(f"{TRAIN} --stream --out run")
        assert status == 1 and "grain" in told and everything() == {}
    with claimed(TrainOptions(out="run")):
        pass


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, MemoryError])
def test_whatever_ends_a_run_before_its_first_file_leaves_nothing(error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for options in (TrainOptions(), SelectOptions(out="a/b"), TrainOptions(name="x")):
        with pytest.raises(error):
            with claimed(options) as out:
                assert (out / MARKER).exists() and (out / LOCK).exists()
                raise error
        assert everything() == {}


def test_what_a_killed_claim_leaves_is_in_nobodys_way(tmp_path):
    for name in (LOCK, MARKER, EXCLUSIVE + ".0123", ".wdjax-0123"):
        (tmp_path / name).touch()
    with claimed(TrainOptions(out=str(tmp_path))) as out:
        (out / "results.json").write_text("{}")
    assert {p.name for p in tmp_path.iterdir()} == {MARKER, EXCLUSIVE + ".0123", "results.json"}


@pytest.mark.parametrize(
    "words",
    [
        f"{TRAIN} --epochs 2 --save-every 1",
        *(
            pytest.param(w, marks=pytest.mark.slow)
            for w in (f"{TRAIN} --epochs 1", SELECT, COMPARE, STREAM)
        ),
    ],
)
def test_every_file_of_a_job_is_written_under_its_lock_and_the_lock_is_gone_at_its_end(
    words, command, monkeypatch
):
    seen = []

    def watched(path, content):
        seen.append((pathlib.Path(path).parent / LOCK).exists())
        write_whole(path, content)

    for place in ("jobs.folder", "jobs.results", "jobs.resume", "report.page"):
        monkeypatch.setattr(f"wdjax.{place}.write_whole", watched)
    status, _, told = command(f"{words} --out run")
    assert status == 0, told
    page = {"report.html", *({"params.npz"} if "compare" not in words else ())}
    saved = {"config.json", "checkpoints"} if "save" in words or "stream" in words else set()
    logged = {"log.jsonl"} if "stream" in words else set()
    left = {path.name for path in pathlib.Path("run").iterdir()}
    assert left == {MARKER, "results.json", *page, *saved, *logged}
    assert all(seen) and len(seen) >= 2 and is_run_folder(pathlib.Path("run"))
    before = everything()
    status, _, told = command(f"{words} --out run")
    assert status == 2 and "exists and is not empty; choose another or pass --over" in told
    assert everything() == before


# Only ours is cleared

OURS = (
    *("results.json", "report.html", "params.npz", "config.json", "log.jsonl"),
    *("stacks.txt", "stacks-3.txt", "checkpoints/step_0000000009/x", "checkpoints/damaged-3/x"),
    *("checkpoints/.partial-step_0000000009/x", "tensorboard/events.out.tfevents.1.host"),
    *("predictions-a.csv", "predictions-a.csv.sha256"),
)
THEIRS = (
    *("notes.txt", "stacks-of-work.txt", "predictions-of-mine.csv", "checkpoints/best.pt"),
    *("checkpoints/step_9/x", "tensorboard/mine.txt", "results.json.bak", "sub/results.json"),
)


def put(names, folder="run"):
    for name in names:
        path = pathlib.Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name}, of before")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_overwriting_takes_out_what_jobs_wrote_and_nothing_else(here):
    put((*OURS, *THEIRS))
    folders.mark(pathlib.Path("run"))
    with claimed(TrainOptions(out="run", overwrite=True)) as out:
        clear_earlier(out)
    left = {str(p.relative_to("run")) for p in pathlib.Path("run").rglob("*") if p.is_file()}
    assert left == {MARKER, *THEIRS}
    assert all(pathlib.Path("run", n).read_text() == f"{n}, of before" for n in THEIRS)


@pytest.mark.parametrize("out", [".", "run", "..", "run/../run"])
def test_a_folder_of_the_users_is_not_cleared_whatever_its_files_are_called(
    out, command, monkeypatch
):
    """The current folder of one whose variable is not set: `--out "$OUT" --overwrite`."""
    put((*OURS, *THEIRS))
    monkeypatch.chdir("run" if out in (".", "..") else ".")
    put(OURS, "..") if out == ".." else None
    before = everything("..")
    status, _, told = command(f"{TRAIN} --overwrite --out {out}")
    assert status == 2 and "holds files and no run of wdjax, so --overwrite clears nothing" in told
    assert everything("..") == before


@pytest.mark.parametrize("more", [["--out", ""], ["--out="], ["--out", " "], ["--name", ""]])
def test_a_name_that_is_empty_is_refused_and_no_default(more, command):
    put(OURS, ".")
    before = everything()
    status, _, told = command([*TRAIN.split(), "--overwrite", *more])
    assert status == 2 and ("`out`" in told or "name" in told)
    assert everything() == before


@pytest.mark.parametrize("kept", ["results.json", "config.json"])
def test_a_folder_of_an_earlier_version_is_known_by_what_it_holds(kept, here):
    told = {"data": "iris", "model": "mlp", "optimizer": "sgd", "decay": "decoupled"}
    results = {"schema": 1, "kind": "train", "status": "complete", "versions": {}, "config": told}
    put((*OURS, *THEIRS))
    pathlib.Path("run", kept).write_text(json.dumps(results if kept == "results.json" else told))
    with claimed(TrainOptions(out="run", overwrite=True)) as out:
        clear_earlier(out)
    left = {str(p.relative_to("run")) for p in pathlib.Path("run").rglob("*") if p.is_file()}
    assert left == {MARKER, *THEIRS}


def test_a_link_in_a_run_folder_leads_no_deletion_out_of_it(here):
    put(("step_0000000001/x", "events.out.tfevents.1"), "elsewhere")
    put(("results.json",))
    folders.mark(pathlib.Path("run"))
    pathlib.Path("run/checkpoints").symlink_to("../elsewhere")
    pathlib.Path("run/tensorboard").mkdir()
    pathlib.Path("run/tensorboard/events.out.tfevents.2").symlink_to("../../elsewhere")
    clear_earlier(pathlib.Path("run"))
    assert len(everything("elsewhere")) == 3


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("file", "is a file; give a folder"),
        ("file/below", "Not a directory in 'file'; choose another"),
        ("x" * 300, "has a name of 300 bytes"),
        ("shut/run", "cannot be written: Permission denied in 'shut'"),
    ],
)
def test_a_folder_that_cannot_be_made_is_refused_in_a_sentence(out, words, command):
    if os.getuid() == 0 and "shut" in out:
        pytest.skip("root may write anywhere")
    pathlib.Path("file").write_text("mine")
    pathlib.Path("shut").mkdir(mode=0o500)
    before = everything()
    status, _, told = command(f"{TRAIN} --out {out}")
    assert status == 2 and words in told and everything() == before
