"""`select --final all`: beside the judged model one of all rows, sealed, and asked for by name."""

import json
import pathlib

import numpy as np
import pytest

from wdjax.cli import main
from wdjax.data.load import load_data
from wdjax.jobs import SelectOptions, load_predictor, run_predict, run_report, run_select
from wdjax.jobs.refit import final_fit
from wdjax.writing import DamagedFileError

SMALL = dict(
    strengths=(0.1, 1.0),
    learning_rates=(0.01,),
    folds=2,
    seeds=1,
    epochs=3,
    batch_size=16,
    devices=1,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("final") / "run"
    options = SelectOptions(data="iris", final="all", out=str(out), **SMALL)
    return out, run_select(options, say=lambda text: None)


def test_it_is_scaled_by_all_rows_and_trained_on_them(run):
    out, results = run
    inputs = load_data("iris").inputs
    with np.load(out / "final.npz") as final, np.load(out / "params.npz") as judged:
        np.testing.assert_allclose(final["scaling/inputs/mean"], inputs.mean(axis=0), rtol=1e-6)
        assert sorted(final) == sorted(judged)
        assert not np.allclose(judged["scaling/inputs/mean"], inputs.mean(axis=0), rtol=1e-6)
    assert results["final"]["num_rows"] == len(inputs) == 150
    assert len(results["final"]["train_loss"]) == 3 and not results["final"]["diverged"]
    # What it says of its last epoch, from without: the mean loss of its rows falls.
    of_epoch = results["final"]["train_loss"]
    outputs = load_predictor(out, final=True)(inputs)
    labels = load_data("iris").targets
    loss = -np.log(outputs[np.arange(150), labels]).mean()
    assert loss < of_epoch[-1] < of_epoch[0]


def test_nothing_else_of_the_run_changes(run, tmp_path):
    options = SelectOptions(data="iris", out=str(tmp_path / "run"), **SMALL)
    run_select(options, say=lambda text: None)
    out, _ = run
    plain, results = (
        json.loads((at / "results.json").read_text()) for at in (tmp_path / "run", out)
    )
    assert plain["refit"] == results["refit"] and "final" not in plain
    assert (tmp_path / "run/params.npz").read_bytes() == (out / "params.npz").read_bytes()
    assert not (tmp_path / "run/final.npz").exists()


def test_the_command_says_where_it_is_and_predicts_with_it(run, tmp_path, capsys):
    out, results = run
    assert any("final.npz; no row is left to judge it" in line for line in results["advice"])
    inputs = tmp_path / "new.npz"
    np.savez(inputs, inputs=load_data("iris").inputs[:5])
    for words, final in (((), False), (("--final",), True)):
        path = tmp_path / f"{final}.csv"
        assert main(["predict", str(out), str(inputs), "--out", str(path), *words]) == 0
        table = np.genfromtxt(path, delimiter=",", skip_header=1)[:, 1:]
        expected = load_predictor(out, final=final)(load_data("iris").inputs[:5])
        np.testing.assert_allclose(table, expected, rtol=1e-6)
    assert capsys.readouterr().out.count("Wrote") == 2


def test_a_flipped_bit_of_it_is_found_and_of_the_judged_one_alone_nothing_is_said(run, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    for path in run[0].iterdir():
        if path.is_file():
            (out / path.name).write_bytes(path.read_bytes())
    content = bytearray((out / "final.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (out / "final.npz").write_bytes(bytes(content))
    with pytest.raises(DamagedFileError, match="final.npz"):
        load_predictor(out, final=True)
    with pytest.raises(DamagedFileError, match="final.npz"):
        run_report(str(out))


def test_a_run_without_one_says_how_to_make_it(tmp_path):
    out = tmp_path / "run"
    run_select(SelectOptions(data="iris", out=str(out), **SMALL), say=lambda text: None)
    with pytest.raises(ValueError, match="no model of all rows; make one with .*--final all"):
        run_predict(str(out), "iris", final=True)
    with pytest.raises(ValueError, match="`final` must be one of judged, all"):
        run_select(SelectOptions(data="iris", final="every", out=str(out), overwrite=True, **SMALL))


def test_an_overwritten_run_leaves_none_behind(run, tmp_path):
    out = tmp_path / "run"
    told = SMALL | {"epochs": 1, "out": str(out)}
    run_select(SelectOptions(data="iris", final="all", **told), say=lambda text: None)
    assert (out / "final.npz").exists()
    run_select(SelectOptions(data="iris", overwrite=True, **told), say=lambda text: None)
    assert not (out / "final.npz").exists()
    assert "final" not in json.loads(pathlib.Path(out / "results.json").read_text())["files"]


def test_of_a_run_that_diverged_there_is_none(tmp_path, monkeypatch):
    def diverges(*arguments):
        about, _, scaling = final_fit(*arguments)
        return about | {"diverged": True}, None, scaling

    monkeypatch.setattr("wdjax.jobs.select.final_fit", diverges)
    out = tmp_path / "run"
    options = SelectOptions(data="iris", final="all", out=str(out), **SMALL)
    results = run_select(options, say=lambda text: None)
    assert not (out / "final.npz").exists() and results["files"].keys() == {"params.npz"}
    assert any("diverged, and is not kept" in line for line in results["advice"])
