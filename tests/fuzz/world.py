"""What the cases begin with: data files, model files and run folders, each made small, once."""

import os
import pathlib
import sys
from collections.abc import Iterable

import numpy as np

from .command import run_main

sys.path.append(str(pathlib.Path(__file__).parent.parent))

import tfds_folders  # noqa: E402

MODEL = """
import jax.numpy as jnp
import wdjax

number = 3


def make_model(num_outputs, dropout=0.0):
    return wdjax.make_mlp(num_outputs, widths=(4,))


def loss(outputs, targets):
    return wdjax.cross_entropy(outputs, targets)


def decay(strength, learning_rate, multiplier, peak):
    return strength * learning_rate * multiplier


def augment(key, image):
    return image, jnp.zeros(())


def measure(outputs, targets):
    return jnp.abs(outputs).sum(-1)
"""

FILES = ("table.csv", "numbers.csv", "new.csv", "table.npz", "images.npz", "numbers.npz", "mine.py")

TINY = "--data table.csv --batch-size 4 --optimizer sgd"
GRID = f"{TINY} --epochs 2 --folds 2 --seeds 1 --strengths 0 0.1"
STREAM = f"train --stream {TINY} --strength 0.1"
RUNS = {
    "trained": f"{STREAM} --epochs 1 --out trained",
    "streamed": f"{STREAM} --epochs 9 --save-every 2 --out streamed",
    "stopped": f"train {TINY} --strength 0.1 --epochs 9 --save-every 1 --out stopped",
    "selected": f"select {GRID} --out selected",
    "compared": f"compare {GRID} --among adam sgd --learning-rates 0.01 --out compared",
}
"""Run folders by name, and the words that make them."""

STOPPED = ("streamed", "stopped")
CHEAP = ("trained", "streamed")
"""Of one small program; each of the others compiles its own for seconds."""


def build(folder: pathlib.Path, runs: Iterable[str] = RUNS) -> None:
    """Makes everything in `folder`, the run folders by the jobs themselves."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_data(folder)
    for name in runs:
        stop_at = 3 if name in STOPPED else None
        done = run_main(RUNS[name].split(), folder, stop_at=stop_at)
        if done.status != (130 if stop_at else 0):
            raise RuntimeError(f"{RUNS[name]!r} ended with {done.status}: {done.told}")


def _write_data(folder: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(24, 3)), np.arange(24) % 2
    rows = [",".join(map(repr, map(float, row))) for row in x]
    table = [f"{row},{'ab'[label]}" for row, label in zip(rows, labels, strict=True)]
    (folder / "table.csv").write_text("\n".join(["x,y,z,label", *table]) + "\n")
    numbers = [f"{row},{i / 7}" for i, row in enumerate(rows)]
    (folder / "numbers.csv").write_text("\n".join(["x,y,z,price", *numbers]) + "\n")
    (folder / "new.csv").write_text("\n".join(["z,x,y", *rows[:5]]) + "\n")
    np.savez(folder / "table.npz", inputs=x, targets=labels, weights=np.ones(24))
    np.savez(folder / "numbers.npz", inputs=x, targets=x.sum(1))
    pixels, _ = tfds_folders.images(24, (8, 8, 3))
    np.savez(folder / "images.npz", inputs=pixels, targets=labels)
    (folder / "mine.py").write_text(MODEL)
    images = {
        name: tfds_folders.image_rows(*tfds_folders.images(num, (28, 28, 1)))
        for name, num in (("train", 20), ("test", 10))
    }
    texts = [{"text": f"text number {i}", "label": i % 2} for i in range(12)]
    keys = ("image", "label"), ("text", "label")
    write = tfds_folders.write_folder
    write(folder / "tfds", "mnist", "3.0.1", tfds_folders.MNIST, images, supervised=keys[0])
    parts = {"train": texts, "test": texts[:6]}
    features = tfds_folders.IMDB
    imdb = write(
        folder / "tfds", "imdb_reviews/plain_text", "1.0.0", features, parts, supervised=keys[1]
    )
    tfds_folders.as_tfrecord(imdb)


def write_oddities(folder: pathlib.Path) -> None:
    """What a path may meet: a file for a folder, the reverse, a link to itself, a pipe."""
    for name in ("file", "file.csv", "file.npz", "file.py"):
        (folder / name).write_text("words\n")
    for name in ("folder", "folder.csv", "folder.npz", "folder.py", "full"):
        (folder / name).mkdir()
    (folder / "full" / "mine.txt").write_text("the user's own\n")
    for name in ("loop", "loop.csv"):
        (folder / name).symlink_to(name)
    for name in ("pipe.csv", "pipe.npz"):
        os.mkfifo(folder / name)
