"""`wdjax train --stream`, `--resume` and `wdjax predict`, from the shell and from Python."""

import csv
import json
import pathlib
import shlex
import sys

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
import tfds_folders as folders
from sealing import vouch_for_params
from tfds_folders import CIFAR10, image_rows, images, write_folder

from wdjax.checkpoint import store
from wdjax.cli import main
from wdjax.data import load_data
from wdjax.jobs import AuditOptions, load_predictor, run_audit
from wdjax.loop import RunLog

pytest.importorskip("grain", reason="grain is not installed: pip install wdjax[data]")

SETTINGS = (
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES",
)
IRIS = "train --stream --data iris --batch-size 16 --epochs 4 --strength 0.1 --devices 1"


@pytest.fixture
def command(capfd, tmp_path, monkeypatch):
    """`command("train ...") -> (status, printed, told)` in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    for name in SETTINGS:
        monkeypatch.setenv(name, "unset")

    def run(words):
        status = main(shlex.split(words))
        return status, *capfd.readouterr()

    yield run
    jax.config.update("jax_enable_x64", False)


def results_of(folder):
    return json.loads((pathlib.Path(folder) / "results.json").read_text())


def test_a_streamed_run_writes_what_a_run_writes_and_is_audited_and_predicted_as_it_was(command):
    """Tables are standardised in training: from raw columns both must do the same."""
    status, printed, told = command(f"{IRIS} --out run")
    assert status == 0, told
    assert printed.startswith("Strength 0.1 (decoupled): test loss")
    results = results_of("run")
    assert (results["kind"], results["status"]) == ("train", "complete")
    run = results["refit"]["chosen"]
    assert np.shape(run["curves"]["test_loss"]) == (1, 4)
    assert run["curves"]["test_loss"][0][-1] == pytest.approx(run["test_loss"][0])
    assert results["decay"] and "<svg" in pathlib.Path("run/report.html").read_text()
    telemetry = results["telemetry"]
    assert telemetry["steps"] == [1, 9, 17, 25], "the first step of each of four epochs"
    norms = telemetry["parts"]["head/kernel"]["norm"]
    assert np.shape(norms) == (1, 4) and len(set(norms[0])) == 4
    assert ">head/kernel</title>" in pathlib.Path("run/report.html").read_text()
    steps = [line["step"] for line in RunLog("run/log.jsonl").read() if "loss" in line]
    assert steps == list(range(1, 31)), "120 examples, 4 epochs, 16 a step, every step logged"
    data = load_data("iris")
    probabilities = load_predictor("run")(data.inputs)
    assert probabilities.shape == (150, 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    right = (probabilities.argmax(axis=1) == data.targets).sum()
    expected = run["test_accuracy"][0] * 30 + run["train_accuracy"][0] * 120
    assert right == round(expected)
    report = run_audit(AuditOptions(run="run"))
    assert [leaf.rate for leaf in report.leaves] == [row["rate"] for row in results["decay"]]


@pytest.mark.slow
def test_resume_from_the_shell_ends_as_if_never_stopped_and_refuses_another_config(
    command, monkeypatch
):
    """Stopped by its own failure to go on: a save that finds no room."""
    assert command(f"{IRIS} --out whole --save-every 3")[0] == 0
    write, saved = store.write_arrays, []

    def full_at_the_fourth(*arguments):
        saved.append(1)
        if len(saved) > 3:
            raise OSError(28, "No space left on device")
        write(*arguments)

    monkeypatch.setattr("wdjax.checkpoint.store.write_arrays", full_at_the_fourth)
    status, _, told = command(f"{IRIS} --name part --save-every 3")
    assert status == 1 and "No space left on device" in told
    monkeypatch.setattr("wdjax.checkpoint.store.write_arrays", write)
    status, _, told = command("train --resume runs/part --strength 0.2 --epochs=5")
    assert status == 2 and "epochs was 4 and is 5; strength was 0.1 and is 0.2" in told
    status, _, told = command("train --resume runs/part --strength 0.1 --devices 2")
    assert status == 0 and "Resumed after step" in told, told
    assert command("train --resume whole")[0] == 0, "a finished run resumes as finished"
    whole, part = np.load("whole/params.npz"), np.load("runs/part/params.npz")
    assert set(whole) == set(part)
    for path in whole:
        np.testing.assert_allclose(part[path], whole[path], 1e-4, 1e-5, err_msg=path)


def test_a_run_that_is_no_streamed_one_cannot_be_resumed_and_says_so(command):
    status, _, told = command("train --resume nowhere")
    assert status == 2 and "holds no config.json" in told
    status, _, told = command("train --data iris --patience 3")
    assert status == 2 and "`patience` needs a run that goes batch by batch: add --stream" in told
    status, _, told = command(f"{IRIS} --seeds 2")
    assert status == 2 and "start one a seed" in told
    status, _, told = command("train --out a --name b")
    assert status == 2 and "give one" in told
    status, _, told = command("train --name ../b")
    assert status == 2 and "a run's name must be" in told


def test_numbers_are_predicted_in_their_own_unit_early_stopping_keeps_the_best(command):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 2)) * [10, 0.1] + [100, 5]
    y = 1000 + 3 * x[:, 0]
    rows = np.column_stack([x, y])
    np.savetxt("my.csv", rows, delimiter=",", header="a,b,price", comments="")
    np.savetxt("new.csv", x[:5], delimiter=",", header="a,b", comments="")
    status, _, told = command(
        "train --stream --strength 0 --data my.csv --loss squared_error --batch-size 8 --epochs 30 "
        "--learning-rate 0.02 --patience 2 --out run --devices 1"
    )
    assert status == 0, told
    results = results_of("run")
    assert "valid_loss" in results["refit"]["chosen"]["curves"]
    for file in ("my.csv", "new.csv"):
        status, printed, told = command(f"predict run {file}")
        assert status == 0 and printed == f"Wrote run/predictions-{file[:-4]}.csv\n", told
    with open("run/predictions-new.csv") as file:
        predicted = [float(row["prediction"]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(predicted, y[:5], rtol=0.1)
    np.testing.assert_allclose(load_predictor("run")(x[:5]), predicted, rtol=1e-5)
    np.savetxt("bad.csv", x[:5, :1], delimiter=",", header="a", comments="")
    status, _, told = command("predict run bad.csv")
    assert status == 2 and "'bad.csv' has no column 'b', which the model was trained on" in told
    with pytest.raises(
        ValueError, match=r"has shape \(3,\), and those of the training data \(2,\)"
    ):
        load_predictor("run")(np.ones((4, 3)))
    np.savez("bad.npz", inputs=np.ones((4, 3)))
    status, _, told = command("predict run bad.npz")
    assert status == 2 and "wdjax: 'bad.npz': `inputs`: an example has shape (3,), and" in told


def test_images_of_tfds_stream_from_the_disk(command, tmp_path):
    rows = image_rows(*images(40, (32, 32, 3)))
    write_folder(tmp_path / "tfds", "cifar10", "3.0.2", CIFAR10, {"train": rows, "test": rows[:10]})
    pathlib.Path("mine.py").write_text(
        "from wdjax.models import make_mlp\n"
        "def make_model(num_outputs):\n"
        "    return make_mlp(num_outputs, widths=(4,))\n"
    )
    status, _, told = command(
        "train --stream --strength 0 --data tfds:cifar10 --data-dir tfds "
        "--model mine.py:make_model --epochs 2 --batch-size 8 --out run "
        "--devices 1 --micro-batches 2"
    )
    assert status == 0 and "40 examples to train on, 10 to test on" in told, told
    assert results_of("run")["data"]["num_choose"] == 40
    status, _, told = command("train --resume run")
    assert status == 2 and "a folder is not trusted to name code to run" in told
    status, printed, told = command("audit --run run --model mine.py:make_model")
    assert status == 0 and "head/kernel" in printed, told
    status, _, told = command("predict run tfds:cifar10@test --data-dir tfds")
    assert status == 2 and "a folder is not trusted to name code to run" in told
    status, printed, told = command(
        "predict run tfds:cifar10@test --data-dir tfds --model mine.py:make_model --out p.csv"
    )
    assert (status, printed) == (0, "Wrote p.csv\n"), told
    assert len(pathlib.Path("p.csv").read_text().splitlines()) == 11


@pytest.mark.slow
def test_a_table_of_tfds_is_predicted_in_its_own_unit_after_streaming(command, tmp_path):
    """Inputs and targets are standardised by passes over the training part, as in memory."""
    rng = np.random.default_rng(0)
    columns = (rng.normal(size=(96, 2)) * [10, 0.1] + [100, 5]).astype(np.float32)
    rows = [{"columns": c, "price": np.float32(1000 + 3 * c[0])} for c in columns]
    features = {
        "columns": tfds.features.Tensor(shape=(2,), dtype=np.float32),
        "price": tfds.features.Scalar(np.float32),
    }
    splits = {"train": rows[:80], "test": rows[80:]}
    write_folder(
        tmp_path / "tfds", "prices", "1.0.0", features, splits, supervised=("columns", "price")
    )
    status, _, told = command(
        "train --stream --strength 0 --data tfds:prices --data-dir tfds --loss squared_error "
        "--batch-size 8 --epochs 40 --learning-rate 0.02 --out run --devices 1 --tensorboard"
    )
    assert status == 0 and "80 examples to train on, 16 to test on" in told, told
    assert results_of("run")["refit"]["chosen"]["test_loss"][0] < 0.01
    assert len(list(pathlib.Path("run/tensorboard").glob("events.out.tfevents.*"))) == 1
    predicted = load_predictor("run")(columns[80:])
    np.testing.assert_allclose(predicted, [row["price"] for row in rows[80:]], rtol=0.02)
    status, _, told = command("predict run tfds:prices@test --data-dir tfds --out p.csv")
    assert status == 0, told
    with open("p.csv") as file:
        written = [float(row["prediction"]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(written, predicted, rtol=1e-5)


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        ("--patience 0", "`patience` must be >= 1, got patience=0"),
        ("--save-every 0", "`save_every` must be >= 1"),
        ("--non-finite ignore", "`non_finite` must be one of stop, skip; got 'ignore'"),
        ("--on-hang kill", "`on_hang` must be one of report, end; got 'kill'"),
        ("--hang-after -1", "`hang_after` must be finite and >= 0, got hang_after=-1"),
    ],
)
def test_what_a_streamed_run_cannot_be_told_is_refused_before_anything_is_lost(
    words, refusal, command
):
    """Also under --overwrite: what an earlier run left is still there."""
    pathlib.Path("run/checkpoints").mkdir(parents=True)
    pathlib.Path("run/params.npz").write_text("an earlier run's")
    status, _, told = command(f"{IRIS} --out run --overwrite {words}")
    assert status == 2 and refusal in told, told
    left = sorted(path.name for path in pathlib.Path("run").iterdir())
    assert left == ["checkpoints", "params.npz"]


def test_without_tensorboardx_nothing_is_written(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    status, _, told = command(f"{IRIS} --out run --tensorboard")
    assert status == 1 and "wdjax[tensorboard]" in told
    assert not pathlib.Path("run").exists()


def test_params_of_another_model_are_refused_by_the_leaf_that_differs(command):
    assert command(f"{IRIS.replace('--epochs 4', '--epochs 1')} --out run")[0] == 0
    with np.load("run/params.npz") as archive:
        arrays = dict(archive)
    arrays["head/kernel"] = arrays["head/kernel"][:-1]
    np.savez("run/params.npz", **arrays)
    vouch_for_params("run")
    with pytest.raises(
        ValueError, match=r"'head/kernel' is float32\[99, 3\] there and float32\[100"
    ):
        load_predictor("run")
    pathlib.Path("run/params.npz").write_bytes(b"PK")
    vouch_for_params("run")
    with pytest.raises(ValueError, match="run/params.npz' is no .npz file; train again, or put"):
        load_predictor("run")


def test_without_grain_a_streamed_run_is_refused_before_it_has_a_folder(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    status, _, told = command(f"{IRIS} --out run")
    assert status == 1 and 'needs grain, which is not installed: pip install "wdjax[data]"' in told
    assert not pathlib.Path("run").exists()


def test_a_part_whose_first_examples_are_damaged_is_refused_before_there_is_a_folder(
    command, tmp_path
):
    """The test part, which is not read before the first epoch has ended."""
    rows = folders.image_rows(*folders.images(20, (28, 28, 1)))
    splits = {"train": rows, "test": rows}
    folder = folders.write_folder(tmp_path / "data", "mnist", "3.0.1", folders.MNIST, splits)
    for path in folder.glob("mnist-test*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    status, _, told = command(
        f"train --stream --data tfds:mnist --data-dir {tmp_path}/data --strength 0 --epochs 1 "
        "--batch-size 4 --devices 1 --out run"
    )
    assert status == 2 and "mnist-test" in told and "is damaged or missing" in told, told
    assert not pathlib.Path("run").exists()
