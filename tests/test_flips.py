"""Two hundred flipped bits over every file of a run: each is found, or it changes nothing."""

import json
import random
import shutil
import warnings

import jax
import numpy as np
import pytest

from wdjax import jobs
from wdjax.checkpoint import CheckpointError, Checkpoints, host_leaves
from wdjax.data import load_data
from wdjax.jobs import TrainOptions, load_predictor
from wdjax.jobs.folder import MARKER
from wdjax.jobs.results import opened_results, run_report
from wdjax.jobs.resume import CONFIG, read_config
from wdjax.loop import RunLog
from wdjax.writing import DIGEST, DamagedFileError

pytest.importorskip("grain", reason="grain is not installed: pip install wdjax[data]")

FLIPS = 200
PREDICTIONS = "predictions-iris.csv"
READ = (
    "checkpoints",
    CONFIG,
    "log.jsonl",
    "results.json",
    "params.npz",
    PREDICTIONS,
    f"{PREDICTIONS}{DIGEST}",
)
"""What is read again of a run's folder."""

NOT_READ = (MARKER, "report.html")
"""What is written and nobody reads: the page is drawn from the results, and the marker, where it
does not say that the folder is a run's, lets --overwrite refuse it."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    told = {"data": "iris", "strength": 0.1, "epochs": 3, "batch_size": 30, "devices": 1}
    jobs.run_train(
        TrainOptions(**told, stream=True, save_every=4, out=str(folder)), say=lambda text: None
    )
    jobs.run_predict(str(folder), "iris", say=lambda text: None)
    assert {path.name for path in folder.iterdir() if path.is_file()} == {
        *(name for name in READ if name != "checkpoints"),
        *NOT_READ,
    }
    return folder


def blank(folder):
    """What the newest checkpoint is read into, in the paths and shapes that it had when whole."""
    facts = json.loads(max(folder.glob("checkpoints/step_*/checkpoint.json")).read_bytes())
    tree = {}
    for path, about in facts["leaves"].items():
        *above, name = path.split("/")
        place = tree
        for part in above:
            place = place.setdefault(part, {})
        leaf = np.zeros(about["shape"], np.dtype(about["dtype"]))
        generator = about.get("generator")
        place[name] = leaf if generator is None else jax.random.wrap_key_data(leaf, impl=generator)
    return tree


def all_that_is_read(folder, name, like):
    """What anyone gets who goes on with the run, or uses it, of the part of it called `name`."""
    if name == "checkpoints":
        saved = Checkpoints(folder / name)
        return [content_of(saved.restore(like, step=step)) for step in saved.steps()]
    if name == CONFIG:
        return read_config(folder)
    if name == "log.jsonl":
        return RunLog(folder / name).read()
    if name.startswith(PREDICTIONS):
        run_report(str(folder))
        return (folder / PREDICTIONS).read_bytes()
    with opened_results(folder) as results:
        outputs = load_predictor(folder)(load_data("iris").inputs[:5])
        return results, np.asarray(outputs).tobytes()


def content_of(restored):
    leaves = {path: leaf.array.tobytes() for path, leaf in host_leaves(restored.state).items()}
    return restored.step, leaves, restored.facts


def flip(path, chance):
    content = bytearray(path.read_bytes())
    place, bit = chance.randrange(len(content)), chance.randrange(8)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return f"bit {bit} of byte {place}"


# What reads the arrays may be told of its damage after its event loop has ended.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
def test_every_flipped_bit_of_a_run_is_found_or_changes_nothing(run, tmp_path, monkeypatch):
    # The page takes a second to draw, and comes after all that is looked for.
    monkeypatch.setattr("wdjax.report.write_report", lambda *arguments: None)
    like, chance = blank(run), random.Random(0)
    whole = {name: all_that_is_read(run, name, like) for name in READ}
    files = {
        name: [p for p in ([run / name] if (run / name).is_file() else (run / name).rglob("*"))]
        for name in READ
    }
    found = {name: 0 for name in READ}
    for number in range(FLIPS):
        name = READ[number % len(READ)]
        chosen = [p for p in sorted(files[name]) if p.is_file() and p.stat().st_size]
        place = chance.choice(chosen).relative_to(run)
        folder = tmp_path / "run"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(run, folder)
        where = f"{flip(folder / place, chance)} of {place}"
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                seen = all_that_is_read(folder, name, like)
            except (DamagedFileError, CheckpointError, ValueError, OSError) as error:
                assert str(error) and "\n" not in str(error), where
                # Of a digest that differs from its file, nobody knows which of the two is damaged.
                names = {place.name.removesuffix(DIGEST), name}
                assert any(each in str(error) for each in names), f"{where}: {error}"
                found[name] += 1
                continue
        if any(warning.category is RuntimeWarning for warning in told):
            found[name] += 1
        else:
            assert seen == whole[name], f"{where} was read without a word"
    assert all(found.values()), found
    assert sum(found.values()) > 0.6 * FLIPS, found
