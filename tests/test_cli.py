"""The command: what it prints, writes and returns, in this process and as a real one."""

import json
import logging
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from wdjax import jobs
from wdjax.cli import _parser, main
from wdjax.diagnostics.telemetry import PartTelemetry
from wdjax.jobs import setup, train, verdict
from wdjax.jobs.folder import mark
from wdjax.jobs.options import SelectOptions, TrainOptions
from wdjax.selection import ways
from wdjax.selection.cross_validation import Progress, Scores
from wdjax.selection.grids import grid_product

SETTINGS = (
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES",
)
TINY = (
    "--epochs 1 --folds 2 --seeds 1 --strengths 0 0.1 --learning-rates 0.003 --batch-size 32 "
    "--data iris"
)


@pytest.fixture
def command(capfd, tmp_path, monkeypatch):
    """`command("select --seeds 1") -> (status, printed, told)` in a folder of its own.

    What the environment has set, the command leaves alone: here the tests' cache, two devices."""
    monkeypatch.chdir(tmp_path)
    for name in SETTINGS:
        monkeypatch.setenv(name, "unset")

    def run(words):
        status = main(shlex.split(words))
        return status, *capfd.readouterr()

    yield run
    jax.config.update("jax_enable_x64", False)


def strict_json(path):
    """The file's contents; NaN and Infinity are not JSON."""

    def refuse(word):
        raise AssertionError(f"{word} in {path}")

    return json.loads(pathlib.Path(path).read_text(), parse_constant=refuse)


# As a process


def environment(tmp_path):
    """That of a shell: its own cache, no setting of these tests."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "PYTEST_"))}
    root = str(pathlib.Path(__file__).parent.parent)
    return kept | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": root}


def run_in(folder, words):
    """The command to its end, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "wdjax.cli", *words.split()],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The main job, small, on the digits: `(folder, process)`."""
    folder = tmp_path_factory.mktemp("finished")
    words = (
        "select --epochs 2 --folds 2 --seeds 2 --strengths 0 0.1 100 --learning-rates 0.003 "
        "--batch-size 128 --out run"
    )
    return folder, run_in(folder, words)


def test_the_main_job_ends_with_a_choice_in_its_first_line(finished):
    _, done = finished
    lines = done.stdout.splitlines()
    assert lines[0].startswith(("Chosen strength", "Decay ", "Zero has the lowest"))
    assert "Not chosen on: test loss" in lines[0]
    assert "+-" in lines[0] and "at the one learning rate tried, 0.003" in lines[0]
    table = done.stdout[done.stdout.index("strength") :]
    assert sum(line.startswith(">") for line in lines) == 2
    assert table.count("+-") >= 3 * 4
    assert max(len(line) for line in lines[1:]) <= 100
    assert lines[-1] == "Report: run/report.html"


def test_it_says_what_it_will_do_then_how_far_it_is(finished):
    _, done = finished
    told = done.stderr
    assert "1437 examples to choose on, 360 to test on" in told
    assert "12 trainings: 3 strengths x 2 folds x 2 seeds, 2 epochs at batch 128" in told
    order = ["trainings:", "choosing: compiling", "choosing: 12 of 12", "refitting: 6 of 6"]
    places = [told.index(words) for words in order]
    assert places == sorted(places)
    assert "s left" in told


def test_the_results_are_strict_json_and_hold_every_score(finished):
    folder, done = finished
    results = strict_json(folder / "run/results.json")
    assert results["status"] == "complete" and results["headline"] == done.stdout.splitlines()[0]
    assert results["versions"]["jax"] == jax.__version__
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert len(results["devices"]) == cores
    assert results["grid"]["strength"] == [0.0, 0.1, 100.0]
    assert np.shape(results["scores"]["loss"]) == (3, 2, 2)
    losses = np.array(results["scores"]["loss"])
    row = results["table"][1]
    np.testing.assert_allclose(row["loss"]["mean"], losses[1].mean())
    deviation = losses[1].mean(axis=1).std(ddof=1) / np.sqrt(2)
    np.testing.assert_allclose(row["loss"]["standard_error"], deviation)
    assert results["choices"]["min"]["index"] == losses.mean(axis=(1, 2)).argmin()
    assert results["refit"].keys() == {"chosen", "zero", "largest"}
    largest = results["refit"]["largest"]
    assert largest["hparams"]["strength"] == 100.0
    assert len(largest["test_accuracy"]) == 2 and np.shape(largest["curves"]["test_loss"]) == (2, 2)
    paths = {row["path"] for row in results["decay"]}
    assert paths == {"hidden1/kernel", "hidden1/bias", "head/kernel", "head/bias"}
    assert sum(results["timing"].values()) > 0


def test_the_chosen_params_are_plain_arrays(finished):
    folder, _ = finished
    with np.load(folder / "run/params.npz", allow_pickle=False) as arrays:
        shapes = {name: arrays[name].shape for name in arrays}
    assert shapes == {
        "hidden1/kernel": (64, 100),
        "hidden1/bias": (100,),
        "head/kernel": (100, 10),
        "head/bias": (10,),
    }


def test_the_report_needs_no_network_and_can_be_drawn_again(finished, command):
    folder, _ = finished
    page = folder / "run/report.html"
    first = page.read_text()
    assert "<svg" in first and 'src="http' not in first and "<script" not in first
    page.unlink()
    status, printed, _ = command(f"report {folder / 'run'}")
    assert status == 0 and "report.html" in printed
    assert page.read_text() == first


@pytest.mark.parametrize("words", ["train --stream", "train", "select", "compare", "audit"])
def test_help_is_printed_whatever_signs_an_options_line_holds(words, command, capfd):
    with pytest.raises(SystemExit) as ended:
        command(f"{words} --help")
    assert ended.value.code == 0
    printed = capfd.readouterr().out
    assert "usage: wdjax" in printed
    assert ("on a 10 % hold-out" in " ".join(printed.split())) == ("--stream" in words)


def test_an_existing_folder_is_refused_and_left_as_it_was(finished, command):
    folder, _ = finished
    before = {path: path.stat().st_mtime_ns for path in (folder / "run").iterdir()}
    status, _, told = command(f"select {TINY} --out {folder / 'run'}")
    assert status == 2 and "exists and is not empty; choose another or pass --overwrite" in told
    assert before == {path: path.stat().st_mtime_ns for path in (folder / "run").iterdir()}


LEFT = (
    "params.npz",
    "config.json",
    "log.jsonl",
    "checkpoints/step_0000000009/x",
    "predictions-a.csv",
)


@pytest.mark.parametrize("job", ["select", "train"])
def test_overwriting_leaves_nothing_of_the_run_before_beside_the_new_results(
    job, command, monkeypatch
):
    """Nor beside the partial results of an interrupted one; until there are some, all stays."""
    for name in LEFT:
        pathlib.Path("run", name).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path("run", name).write_text("an earlier run's")
    pathlib.Path("run/mine.txt").write_text("not wdjax's")
    pathlib.Path("run/predictions-a.csv.sha256").write_text("of an earlier run")
    mark(pathlib.Path("run"))

    def interrupted(*args, progress=None, **options):
        grid = grid_product(strength=[0.0, 0.1], learning_rate=[3e-3])
        assert pathlib.Path("run/params.npz").exists()
        if job == "select":
            losses = {"loss": np.ones((2, 2, 1)), "train_loss": np.ones((2, 2, 1))}
            progress(Progress("run", 1, 4, 0.0, None, Scores(grid, losses)))
        raise KeyboardInterrupt

    if job == "select":
        monkeypatch.setattr(ways, "cross_validate", interrupted)
        assert command(f"select {TINY} --out run --overwrite")[0] == 130
        assert strict_json("run/results.json")["status"] == "partial"
        assert not pathlib.Path("run/params.npz").exists()
    else:
        with monkeypatch.context() as patch:
            patch.setattr(train.Training, "run", interrupted)
            assert (
                command("train --strength 0 --data iris --epochs 1 --out run --overwrite")[0] == 130
            )
        assert all(pathlib.Path("run", name).exists() for name in LEFT), "nothing new, nothing lost"
        assert command("train --strength 0 --data iris --epochs 1 --out run --overwrite")[0] == 0
        assert pathlib.Path("run/params.npz").read_bytes()[:2] == b"PK"
    assert not any(pathlib.Path("run", name).exists() for name in LEFT[1:])
    assert pathlib.Path("run/mine.txt").read_text() == "not wdjax's"


@pytest.mark.parametrize("cores", [1, 2])
def test_more_cpu_devices_than_cores_are_used_and_said_to_be_no_faster(cores, monkeypatch):
    """What `prepare` gives is what a run says first, and the mesh it runs on."""
    monkeypatch.setattr(setup, "num_cores", lambda: cores)
    options = TrainOptions(strength=0.0, data="iris", epochs=1, devices=2, out="nowhere")
    prepared = setup.prepare(options)
    assert prepared.mesh.devices.size == 2
    shared = "cpu:0, cpu:1 (2 CPU devices share 1 core: no faster than one a core)."
    assert (shared in prepared.describe()) == (cores == 1)


@pytest.mark.slow
def test_ctrl_c_leaves_what_is_finished_as_a_valid_partial_result(tmp_path):
    """After the first chunk of a run that would take minutes; the same command then goes on."""
    words = "select --epochs 30 --folds 5 --seeds 2 --learning-rates 0.003 --out run"
    # A shell's background jobs ignore Ctrl-C, and hand that on to their children.
    listening = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from wdjax.cli import command; sys.exit(command())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", listening, *words.split()],
        cwd=tmp_path,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 200
        while not (tmp_path / "run/results.json").exists() and process.poll() is None:
            assert time.monotonic() < deadline, "no chunk in time"
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        printed, told = process.communicate(timeout=100)
    finally:
        process.kill()
    assert process.returncode == 130, told
    assert "Traceback" not in told and "What had finished is in run" in told
    results = strict_json(tmp_path / "run/results.json")
    assert results["status"] == "partial" and "nothing is chosen" in results["headline"]
    losses = np.array(results["scores"]["loss"], np.float64)
    assert losses.shape == (14, 5, 2)
    finished = np.isfinite(losses)
    assert 0 < finished.sum() < losses.size
    assert f"{finished.sum()} of {losses.size} trainings had finished" in results["headline"]
    assert "<html" in (tmp_path / "run/report.html").read_text()
    assert not list((tmp_path / "run").glob("*.tmp")) and printed == ""
    again = run_in(tmp_path, f"{words} --overwrite")
    results = strict_json(tmp_path / "run/results.json")
    assert results["status"] == "complete" and finished.sum() <= results["cached"] < losses.size
    assert f"{results['cached']} of {losses.size} trainings had finished" in again.stderr
    ended = np.array(results["scores"]["loss"])
    np.testing.assert_array_equal(ended[finished], losses[finished])
    assert np.isfinite(ended).all()


# In this process


def test_one_program_runs_the_grid_and_one_the_refits(command, caplog, tmp_path):
    """26 candidates in several chunks, over two axes, into a folder that may be overwritten:
    XLA compiles the trial program once."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/old").write_text("")
    mark(tmp_path / "run")
    strengths = " ".join(f"{i / 10:g}" for i in range(13))
    words = f"select {TINY} --decay coupled".replace("0.003", "0.01 0.1")
    words = words.replace("--strengths 0 0.1", f"--strengths {strengths}")
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        status, printed, _ = command(f"{words} --out run --overwrite")
    assert status == 0
    compiled = [m for m in caplog.messages if m.startswith("Finished XLA compilation of")]
    assert sum("_run_chunk" in message for message in compiled) == 1
    assert sum("jit(program)" in message for message in compiled) == 1
    first = printed.splitlines()[0]
    assert "learning rate 0." in first and "at the one learning rate" not in first
    assert "The best strength at each learning rate: " in printed
    results = strict_json("run/results.json")
    assert results["grid_shape"] == {"strength": 13, "learning_rate": 2}
    assert np.shape(results["scores"]["loss"]) == (26, 2, 1)
    assert results["decay"][0]["rate"] is None


def test_what_a_select_has_trained_the_next_one_finds_and_says_so(command, caplog):
    """Another rule, a strength more, `--fresh`: only what is asked for anew is trained."""
    words = f"select {TINY} --devices 1"
    assert command(f"{words} --out first")[0] == 0
    first = strict_json("first/results.json")
    assert first["cached"] == 0
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        status, printed, told = command(f"{words} --rule one_standard_error --out second")
    assert status == 0
    assert "4 of 4 trainings had finished in an earlier run and are not trained again" in told
    assert not [m for m in caplog.messages if "XLA compilation of jit(_run_chunk)" in m]
    second = strict_json("second/results.json")
    assert second["cached"] == 4 and second["rule"] == "one_standard_error"
    same = ("scores", "table", "choices", "grid", "refit", "decay")
    assert {name: second[name] for name in same} == {name: first[name] for name in same}
    assert "4 trainings, from earlier runs" in pathlib.Path("second/report.html").read_text()
    wider = words.replace("--strengths 0 0.1", "--strengths 0 0.05 0.1")
    _, _, told = command(f"{wider} --out third")
    assert "4 of 6 trainings had finished" in told
    third = strict_json("third/results.json")
    assert third["scores"]["loss"][0::2] == first["scores"]["loss"]
    _, _, told = command(f"{words} --fresh --out fourth")
    assert "had finished" not in told
    fourth = strict_json("fourth/results.json")
    assert fourth["cached"] == 0 and fourth["scores"] == first["scores"]
    assert "fresh" not in fourth["config"]


def test_a_table_of_numbers_to_predict_by_a_function_that_prints_nothing(command, capfd):
    """A csv with its target in the middle; `run_select` says to `say`, shows to `on_progress`."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2)) * [1000, 1e-3]
    y = x @ [1e-3, 1e3]
    rows = [f"{a},{t},{b}" for (a, b), t in zip(x, y, strict=True)]
    pathlib.Path("my.csv").write_text("\n".join(["metres,price,share", *rows]) + "\n")
    options = SelectOptions(
        data="my.csv",
        target="price",
        loss="squared_error",
        strengths=(0.0, 0.1),
        learning_rates=(0.003,),
        folds=2,
        seeds=1,
        epochs=40,
        batch_size=8,
        out="run",
    )
    said, seen = [], []
    results = jobs.run_select(
        options, say=said.append, on_progress=lambda *event: seen.append(event)
    )
    assert "trainings" in said[0] and {what for what, _ in seen} == {"choosing", "refitting"}
    assert capfd.readouterr().out == ""
    assert verdict.summary(results).splitlines()[0] == results["headline"]
    results = strict_json("run/results.json")
    assert results["data"]["num_outputs"] == 1 and "accuracy" not in results["scores"]
    # Standardised targets: predicting the mean costs 1/2.
    assert np.max(results["scores"]["loss"]) < 0.25


def test_arrays_and_a_model_of_ones_own_with_dropout_and_label_noise(command):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 90)
    np.savez("my.npz", inputs=rng.normal(size=(90, 4)) + y[:, None], targets=y)
    pathlib.Path("mine.py").write_text(
        "import wdjax\n"
        "def make_model(num_outputs, dropout=0.0):\n"
        "    return wdjax.make_mlp(num_outputs, widths=(5, 4), dropout=dropout)\n"
    )
    status, _, told = command(
        "train --strength 0.1 --data my.npz --model mine.py:make_model --dropout 0.2 --epochs 1 "
        "--label-noise 0.1 --decay independent --parts '*/kernel=1,*=0.5' --out run"
    )
    assert status == 0, told
    results = strict_json("run/results.json")
    assert results["refit"]["chosen"]["hparams"]["dropout"] == 0.2
    multipliers = {row["path"]: row["multiplier"] for row in results["decay"]}
    np.testing.assert_allclose(multipliers["hidden2/bias"], 0.5, rtol=1e-5)
    with np.load("run/params.npz") as arrays:
        assert arrays["hidden2/kernel"].shape == (5, 4)


def test_train_makes_one_run_with_the_same_parts(command):
    status, printed, told = command(
        "train --strength 0.1 --data wine --epochs 2 --batch-size 32 --seeds 2 "
        "--dtype float64 --schedule cosine --out run"
    )
    assert status == 0, told
    assert printed.startswith("Strength 0.1 (decoupled): test loss")
    results = strict_json("run/results.json")
    assert (results["kind"], results["status"]) == ("train", "complete")
    assert len(results["refit"]["chosen"]["test_loss"]) == 2
    with np.load("run/params.npz") as arrays:
        assert arrays["head/kernel"].dtype == np.float64
    telemetry = results["telemetry"]
    assert telemetry["steps"] == [1, 5] and "note" not in telemetry
    kernel = telemetry["parts"]["head/kernel"]
    assert set(kernel) == set(PartTelemetry._fields)
    assert np.shape(kernel["norm"]) == (2, 2) and (np.array(kernel["angle"]) > 0).all()
    np.testing.assert_allclose(kernel["timescale"][0][0], 1 / (3e-3 * 0.1))
    page = pathlib.Path("run/report.html").read_text()
    assert "What the parts did on the way" in page and ">head/kernel</title>" in page
    text = re.sub("<style>.*?</style>", "", page, flags=re.S)
    labels = " ".join([results["headline"], *results["timing"]])
    assert "Training 2 epochs, 2 seeds" in told and "training: 2 of 2" in told
    for words in (told, printed, text, labels):
        assert not re.search("refit|choos|chosen|chose ", words.lower()), "nothing was to choose"


@pytest.mark.parametrize("job", ["train", "train --stream", "audit"])
def test_without_a_strength_it_asks_for_one(command, job):
    status, _, told = command(f"{job} --data iris --epochs 1")
    assert status == 2 and "say --strength 0.1, or --strength 0 for no decay" in told
    assert not pathlib.Path("runs").exists()


def test_a_warning_of_train_is_printed_at_the_end(command):
    words = "--strength 1 --part-weight sigmoid:depth --part-weight-on loss --out run"
    status, printed, told = command(f"train --data wine --epochs 60 --batch-size 64 {words}")
    assert status == 0, told
    (warning,) = strict_json("run/results.json")["warnings"]
    assert "cancel under an optimiser that divides" in warning
    assert f"Warning: {warning}" in printed


def test_at_strength_zero_the_table_still_shows_who_would_be_decayed(command):
    parts = "--parts head/kernel=0.5,*/kernel=2,*=0"
    status, _, told = command(
        f"train --strength 0 --data wine --epochs 1 --batch-size 64 {parts} --out run"
    )
    assert status == 0, told
    rows = {row["path"]: row for row in strict_json("run/results.json")["decay"]}
    assert rows["hidden1/kernel"]["multiplier"] == 1.0
    assert rows["head/kernel"]["multiplier"] == 0.25
    assert rows["head/bias"]["multiplier"] == 0.0
    assert {row["rate"] for row in rows.values()} == {0.0}


def test_of_a_penalty_telemetry_says_that_it_has_no_rate(command):
    status, _, told = command(
        "train --strength 0.1 --decay coupled --data wine --epochs 1 --batch-size 64 --out run"
    )
    assert status == 0, told
    telemetry = strict_json("run/results.json")["telemetry"]
    assert "it has no rate of its own" in telemetry["note"]
    assert telemetry["parts"]["head/kernel"]["timescale"] == [[None]]
    assert "it has no rate of its own" in pathlib.Path("run/report.html").read_text()


def test_candidates_that_diverge_lose_and_do_not_poison_the_others(command, nans_allowed):
    words = TINY.replace("--learning-rates 0.003", "--learning-rates 0.01 1e30")
    status, printed, _ = command(f"select {words} --optimizer sgd --decay coupled --out run")
    assert status == 0
    assert "2 of 4 candidates diverged and were left out" in printed
    losses = strict_json("run/results.json")["scores"]["loss"]
    lost = [[run is None for fold in row for run in fold] for row in losses]
    assert lost == [[False] * 2, [True] * 2] * 2


def test_the_plan_says_which_strengths_take_a_whole_weight_a_step(command, monkeypatch):
    """Before it trains, which is where this stops it."""

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(ways, "cross_validate", interrupted)
    tiny = TINY.replace("--strengths 0 0.1", "--strengths 0 100 400")
    status, _, told = command(f"select {tiny} --out run")
    assert status == 130, told
    assert "At learning rate 0.003 a step at strength 400 removes more than a whole weight" in told
    status, _, told = command(f"select {TINY} --out other")
    assert status == 130 and "trainings:" in told and "whole weight" not in told


def test_if_every_candidate_diverges_that_is_the_message(command, monkeypatch, nans_allowed):
    def lost(function, grid, *args, **options):
        return Scores(grid, {"loss": np.full((2, 2, 1), np.nan), "train_loss": np.ones((2, 2, 1))})

    monkeypatch.setattr(ways, "cross_validate", lost)
    status, printed, told = command(f"select {TINY} --out run")
    assert (status, printed) == (2, "")
    assert "every run of the grid diverged" in told and "lower the learning rate" in told

    def judged(*args):
        scores, each, fit = real(*args)
        return {name: value * np.nan for name, value in scores.items()}, each, fit

    real = train.judged
    monkeypatch.setattr(train, "judged", judged)
    status, printed, told = command(
        "train --strength 0 --data iris --learning-rate 1e30 --out other"
    )
    assert (status, printed) == (2, "")
    assert "every run diverged: lower `learning_rate` = 1e+30" in told
    assert not pathlib.Path("other").exists()


@pytest.mark.parametrize("words", ["--help", "select --help", "train --help", "report --help"])
def test_help_fits_a_screen_and_shows_an_example(words, command, capfd):
    with pytest.raises(SystemExit) as stop:
        command(words)
    text = capfd.readouterr().out
    assert stop.value.code == 0 and "example: wdjax" in text
    assert len(text.splitlines()) <= 50 and max(map(len, text.splitlines())) <= 100


def test_every_option_is_explained_and_reaches_the_job():
    """Each has a help line; parsed, it is the field of the options of the same name."""
    words = "select --strengths 0 1e-3 --learning-rates .1 --seeds 4 --devices 1 --dropout .5"
    parsed = vars(_parser(jobs).parse_args(words.split()))
    assert parsed.pop("job") == "select" and parsed.pop("fresh") is False
    options = SelectOptions(**parsed)
    assert options.strengths == (0.0, 1e-3) and options.learning_rates == (0.1,)
    assert (options.seeds, options.devices, options.dropout) == (4, 1, 0.5)
    assert options.epochs is None and options.overwrite is False
