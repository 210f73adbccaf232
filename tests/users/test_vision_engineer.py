"""A vision engineer, with CIFAR-10 as it comes from its page and a folder of photographs."""

import csv
import json
import pathlib
import pickle
import shlex

import numpy as np
import pytest
from PIL import Image

from wdjax.cli import main

pytestmark = pytest.mark.slow


@pytest.fixture
def shell(tmp_path, monkeypatch, capfd):
    """`shell("wdjax train ...")`: what was printed, in a folder that holds the data alone."""
    monkeypatch.chdir(tmp_path)

    def run(line):
        status = main(shlex.split(line)[1:])
        printed, told = capfd.readouterr()
        assert status == 0, told
        return told + printed

    return run


def download_cifar(folder):
    """CIFAR-10's python version in its own layout, of 24 images a batch: each class one colour."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (10, 3, 1), np.uint8)
    folder.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        labels = rng.permutation(np.arange(24) % 10)
        noise = rng.integers(0, 32, (24, 3, 1024))
        pixels = np.clip(colours[labels] + noise, 0, 255).astype(np.uint8).reshape(24, 3072)
        batch = {b"batch_label": name.encode(), b"labels": labels.tolist(), b"data": pixels}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    names = [b"airplane", b"automobile", b"bird", b"cat", b"deer"]
    names += [b"dog", b"frog", b"horse", b"ship", b"truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": names}, protocol=2))


def test_the_articles_program_runs_on_cifars_own_files_and_its_strength_is_chosen(shell):
    download_cifar(pathlib.Path("cifar-10-batches-py"))

    told = shell("wdjax train --recipe article/cnn --data-dir . --out as-written")
    assert "stands for: wdjax train --data cifar10 --model cnn --optimizer adam" in told
    assert "cifar10: 120 examples to train on, 24 to test on. Read from" in told
    config = json.loads(pathlib.Path("as-written/results.json").read_text())["config"]
    assert (config["epochs"], config["batch_size"], config["strength"]) == (10, 32, 1e-3)

    told = shell(
        "wdjax select --data cifar10 --data-dir . --model cnn --decay coupled --parts all "
        "--learning-rates 1e-3 --strengths 0 1e-4 1e-2 --folds 2 --epochs 5 --batch-size 32 "
        "--out chosen"
    )
    assert "120 examples to choose on, 24 to test on" in told

    shell("wdjax predict as-written cifar10@test --data-dir . --out answers.csv")
    header, *rows = csv.reader(pathlib.Path("answers.csv").read_text().splitlines())
    assert len(rows) == 24 and any("airplane" in name for name in header)


def test_a_folder_of_photographs_trains_a_network_with_muon(shell):
    for name, colour in {"sky": (90, 150, 250), "grass": (60, 160, 60)}.items():
        folder = pathlib.Path("photos") / name
        folder.mkdir(parents=True)
        for number in range(20):
            Image.new("RGB", (60 + number, 45), colour).save(folder / f"{number}.jpg")

    told = shell(
        "wdjax train --data images:photos --optimizer muon --strength 0.1 "
        "--augment crop,flip --epochs 2 --batch-size 16 --out net"
    )
    assert "Cropped to their central square and resized to 32 x 32." in told
    assert "photos: 32 examples to train on, 8 to test on." in told
