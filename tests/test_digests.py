"""What a run wrote is what is read of it: results, params and predictions carry their SHA-256."""

import json
import pathlib
import shutil
import subprocess

import numpy as np
import pytest

from wdjax import cli
from wdjax.jobs.options import TrainOptions
from wdjax.jobs.results import opened_results
from wdjax.jobs.train import run_train
from wdjax.writing import DamagedFileError, check_digest, sealed, write_digest

RNG = np.random.default_rng(0)
NAMES = ("w0", "w1", "w2")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digests")
    x = np.random.default_rng(0).normal(size=(60, 2))
    rows = [f"{a},{b},{NAMES[i % 3]}" for i, (a, b) in enumerate(x)]
    (folder / "my.csv").write_text("\n".join(["a,b,label", *rows]) + "\n")
    data = str(folder / "my.csv")
    options = TrainOptions(data=data, strength=0.1, epochs=1, batch_size=16, devices=1)
    options = TrainOptions(**{**vars(options), "out": str(folder / "run")})
    run_train(options, say=lambda text: None)
    assert cli.main(["predict", str(folder / "run"), data]) == 0
    return folder


@pytest.fixture
def run(finished, tmp_path, monkeypatch, capsys):
    shutil.copytree(finished / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)

    def command(words):
        status = cli.main(words.replace("DATA", str(finished / "my.csv")).split())
        return status, capsys.readouterr().err

    return command


def flipped(content, places):
    damaged = bytearray(content)
    for place, bit in places:
        damaged[place] ^= 1 << bit
    return bytes(damaged)


READERS = {
    "results.json": ("report run", "predict run DATA", "audit --run run"),
    "params.npz": ("report run", "predict run DATA"),
    "predictions-my.csv": ("report run",),
}


@pytest.mark.parametrize("name", READERS)
def test_a_flipped_bit_is_found_by_whoever_reads_the_file(name, run):
    """In `results.json` one that changes only white space is harmless: it says what it said."""
    path = pathlib.Path("run", name)
    whole, page = path.read_bytes(), pathlib.Path("run/report.html").read_bytes()
    for number in range(24):
        damaged = flipped(whole, [(int(RNG.integers(len(whole))), int(RNG.integers(8)))])
        path.write_bytes(damaged)
        words = READERS[name][number % len(READERS[name])]
        status, told = run(words)
        same = name == "results.json" and json_or_none(damaged) == json.loads(whole)
        assert (status, name in told) == ((0, False) if same else (1, True)), told
        assert "Traceback" not in told
        assert pathlib.Path("run/report.html").read_bytes() == page
    path.write_bytes(whole[: len(whole) // 2])
    assert run(READERS[name][0])[0] == 1


def json_or_none(content):
    try:
        return json.loads(content)
    except ValueError:
        return None


def test_a_predicted_class_that_became_another_is_found(run):
    path = pathlib.Path("run/predictions-my.csv")
    path.write_text(path.read_text().replace("w0,", "w8,", 1).replace("w1,", "w8,", 1))
    status, told = run("report run")
    assert status == 1 and "'run/predictions-my.csv' is not what was written (SHA-256)" in told


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum here")
@pytest.mark.parametrize("name", ["p.csv", "a b.csv", "a\\b.csv", "a\nb.csv"])
def test_sha256sum_reads_the_digests(name, tmp_path):
    path = tmp_path / name
    path.write_text("prediction\n1\n")
    write_digest(path)
    check_digest(path)
    done = subprocess.run(
        ["sha256sum", "-c", f"{name}.sha256"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    path.write_text("prediction\n2\n")
    with pytest.raises(DamagedFileError, match="is not what was written"):
        check_digest(path)


def test_predictions_elsewhere_have_their_digest_beside_them_and_written_again_a_new_one(run):
    for words in ("predict run DATA --out p.csv", "predict run DATA --out p.csv"):
        assert run(words)[0] == 0
        check_digest("p.csv")
        pathlib.Path("p.csv").write_text("mine now")
    status, told = run("predict run DATA --out run")
    assert status == 2 and "`out` 'run' is a folder; give the name of a file" in told


def test_a_seal_that_was_taken_off_is_missed(run):
    results = json.loads(pathlib.Path("run/results.json").read_text())
    for seal in ({}, {"shb256": results["sha256"]}):
        bare = {k: v for k, v in results.items() if k != "sha256"} | seal
        pathlib.Path("run/results.json").write_text(json.dumps(bare))
        status, told = run("report run")
        assert status == 1 and "is not what was written: its SHA-256 is gone" in told


def as_of_before(change=lambda results: None):
    """The results as an earlier version wrote them: with no seal, and no digest of the params."""
    results = json.loads(pathlib.Path("run/results.json").read_text())
    old = {k: v for k, v in results.items() if k not in ("sha256", "files")} | {"schema": 1}
    change(old)
    pathlib.Path("run/results.json").write_text(json.dumps(old))


def test_results_of_an_earlier_version_are_read_with_one_warning(run):
    as_of_before()
    with pytest.warns(RuntimeWarning, match=r"results\.json' carries no SHA-256: an ") as told:
        assert run("report run")[0] == 0
    assert len(told) == 1
    with pytest.warns(RuntimeWarning, match="carries no SHA-256") as told:
        assert run("predict run DATA")[0] == 0
    assert len(told) == 1


def deep(results):
    results["data"] = json.loads("[" * 500 + "]" * 500)


BROKEN = {
    "no data": lambda r: r.pop("data"),
    "data is a list": lambda r: r.update(data=[1]),
    "no config": lambda r: r.pop("config"),
    "config is text": lambda r: r.update(config="x"),
    "outputs of text": lambda r: r["data"].update(num_outputs="three"),
    "a shape of null": lambda r: r["data"].update(input_shape=None),
    "classes are numbers": lambda r: r["data"].update(class_names=[0, 1, 2]),
    "one class too few": lambda r: r["data"].update(class_names=["w0", "w1"]),
    "a kind that is a list": lambda r: r.update(kind=[]),
    "deep": deep,
}


OF_PREDICT = ("outputs of text", "a shape of null", "classes are numbers", "one class too few")


@pytest.mark.filterwarnings("ignore:.*carries no SHA-256")
@pytest.mark.parametrize(
    ("how", "words"),
    [
        *((how, "predict run DATA") for how in BROKEN if how != "a kind that is a list"),
        *((how, "audit --run run") for how in BROKEN if how not in OF_PREDICT),
    ],
)
def test_unsealed_results_that_cannot_be_used_are_refused_by_a_sentence(how, words, run):
    as_of_before(BROKEN[how])
    status, told = run(words)
    assert status == 2 and "'run" in told and "Traceback" not in told, told
    assert len(told.strip().splitlines()) == 1


@pytest.mark.filterwarnings("ignore:.*carries no SHA-256")
def test_a_bug_of_ours_on_sealed_results_stays_one(run):
    with pytest.raises(KeyError):
        with opened_results(pathlib.Path("run")) as results:
            results["no such"]
    as_of_before()
    with pytest.raises(ValueError, match=r"results.json cannot be used \(KeyError: 'no such'\)"):
        with opened_results(pathlib.Path("run")) as results:
            results["no such"]


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff", "[" * 100_000, '{"kind": NaN', "null"])
def test_what_is_no_results_file_is_refused_by_its_name(text, run):
    pathlib.Path("run/results.json").write_bytes(text.encode("latin-1"))
    for words in ("report run", "predict run DATA", "audit --run run"):
        status, told = run(words)
        assert status == 1 and "'run/results.json'" in told and "Traceback" not in told


def test_a_comparison_is_nothing_to_audit_or_to_predict_with(run):
    results = {"schema": 2, "kind": "compare", "status": "complete", "config": {}, "data": {}}
    pathlib.Path("run/results.json").write_text(json.dumps(sealed(results)))
    status, told = run("audit --run run")
    assert status == 2 and "holds a 'compare', which keeps no params to audit; give" in told
    status, told = run("report run")
    assert status == 0
    assert "No comparison in these results" in pathlib.Path("run/report.html").read_text()
    status, told = run("predict run DATA")
    assert status == 2 and "comparison" in told
