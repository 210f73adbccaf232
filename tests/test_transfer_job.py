"""The command `wdjax transfer`: sizes searched, a law fitted, a large run predicted."""

import json
import re

import jax
import numpy as np
import pytest

from wdjax.cli import main
from wdjax.jobs.transfer import DESIGNS, TransferOptions, run_transfer
from wdjax.models import make_mlp
from wdjax.recipe.kinds import MODEL_KINDS, ModelKind
from wdjax.selection.scores import Scores

TINY = {
    "data": "iris",
    "rows": (8, 16, 32, 64),
    "to_rows": 96,
    "epochs": (2,),
    "batch_size": (8,),
    "strengths": (0.1, 1.0, 10.0),
    "learning_rates": (0.03,),
    "folds": 2,
    "seeds": 1,
    "devices": 1,
}


def test_the_job_searches_each_size_and_goes_on_from_what_is_cached(tmp_path):
    said, out = [], tmp_path / "run"
    options = TransferOptions(**{**TINY, "rows": (8, 16, 32, 55)}, check=True, out=str(out))
    cache = tmp_path / "cache"
    results = run_transfer(options, say=said.append, command="wdjax transfer", cache=cache)
    assert "30 trainings at 5 sizes: 3 candidates x 2 folds x 1 seeds each" in said[0]
    assert "Sizes: rows 8; rows 16; rows 32; rows 55. To check: rows 60." in said[0]
    written = json.loads((out / "results.json").read_text())
    assert written["status"] == "complete" and written["kind"] == "transfer"
    assert [one["rows"] for one in written["sizes"]] == [8, 16, 32, 55, 60]
    assert written["cost"]["trainings"] == 30
    assert written["transfer"]["target"] == {"rows": 96, "epochs": 2, "batch_size": 8}
    assert np.shape(written["sizes"][0]["scores"]["values"]["loss"]) == (3, 2, 1)
    assert "Checked at rows 60: " in results["advice"][-2]
    page = (out / "report.html").read_text()
    assert "The sizes searched" in page and "Circumstances" in page

    said.clear()
    first = min(cache.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    first.write_bytes(first.read_bytes()[:-3])  # The last trial of a size, cut short by a kill.
    again = TransferOptions(**{**TINY, "rows": (8, 16, 32, 55)}, out=str(out), overwrite=True)
    repeated = run_transfer(again, say=said.append, cache=cache)
    told = [text for text in said if "had finished in an earlier run" in text]
    assert len(told) == 4 and written["cached"] == 0 and repeated["cached"] == 23
    for one, other in zip(results["sizes"], repeated["sizes"], strict=False):
        assert one["scores"] == other["scores"]


def test_the_command_prints_the_law_beside_the_rules(tmp_path, capsys, monkeypatch):
    """The scores are planted where the trainings would be: best strength 20 / sqrt(rows)."""

    def planted(fit_and_score, grid, data, folds, *, key, num_seeds, **how):
        rows = folds.train.shape[1]
        off = np.log(grid["strength"] * np.sqrt(rows) / 20)[:, None, None]
        drawn = np.random.default_rng(rows).normal(size=(len(off), len(folds.train), num_seeds))
        return Scores(grid, {"loss": 0.1 * off**2 + 1e-3 * drawn}, None, {"loss": False})

    monkeypatch.setattr("wdjax.jobs.transfer.cross_validate", planted)
    words = "transfer --rows 100 200 400 800 --to-rows 3000 --batch-size 32 --learning-rates 0.003"
    assert main([*words.split(), "--devices", "1", "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    said = re.match(r"At rows 3000: strength (\S+) \(95 % interval (\S+) to (\S+)\)\.", printed)
    strength, low, high = map(float, said.groups())
    np.testing.assert_allclose(strength, 20 / np.sqrt(3000), rtol=0.1)
    assert low < 20 / np.sqrt(3000) < high < 4 * low
    assert "rows^(-0.5" in printed and "Do not believe" not in printed
    assert "timescale" in printed and "Wang & Aitchison 2024" in printed
    assert "Power Lines, constant as quoted" in printed and "muP" not in printed
    assert "from rows 800, the nearest size that knows its best" in printed
    assert "Cost: 240 trainings" in printed
    assert main(["report", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": (8, 16, 32)}, "needs 4 sizes or more, got 3"),
        ({"rows": (8, 16, 32, 61)}, "`rows` must be at most 60: of 120 .*; got rows=61"),
        ({"rows": (8, 16, 32, 32)}, "`rows` holds a size twice"),
        ({"rows": (4, 16, 32, 60)}, "`batch_size` must be at most 4"),
        ({"to_rows": 59}, "target's `rows` is 59, below the 60 of a size"),
        ({"to_width": 64}, "`to_width` = 64 needs sizes of several widths"),
        ({"to_epochs": 9}, "`epochs` is 2 at every size, so nothing tells of 9"),
        ({"width": (16, 32)}, "`width` varies among the sizes, so the target must say it"),
        ({"width": (0, 4), "to_width": 9}, "`width` must be >= 1"),
        ({"design": "line"}, "`design` must be one of product, star"),
        ({"learning_rates": (0.01, 0.1)}, "one, or three or more.*got 0.01 and 0.1"),
        ({"strengths": (0.1, 1.0, 50.0)}, "2 of them are positive and remove less than a whole"),
        ({"strengths": (0.0, 0.1, 1.0)}, "2 of them are positive"),
        ({"folds": 200}, "`folds`"),
        ({"choose_by": "acuracy"}, "Did you mean 'accuracy'"),
    ],
)
def test_what_cannot_be_transferred_is_refused_before_anything_is_written(change, words, tmp_path):
    given = {**TINY, "rows": (8, 16, 32, 60), **change}
    options = TransferOptions(**given, out=str(tmp_path / "run"))
    with pytest.raises(ValueError, match=words):
        run_transfer(options, say=lambda text: None)
    assert not (tmp_path / "run").exists()


def test_a_model_without_a_width_is_refused_one():
    with pytest.raises(
        ValueError, match="`width` = 8: this model cannot be built at a width.*vary"
    ):
        MODEL_KINDS["cnn"].at_width(8)
    own = ModelKind(lambda num_outputs, *, width=3: make_mlp(num_outputs, widths=(width, width)))
    for kind in (MODEL_KINDS["mlp"], MODEL_KINDS["rnn"], own):
        made = kind.at_width(7)(2)
        params, _ = made.init(jax.random.key(0), np.ones((1, 4, 4), np.float32))
        assert params["head"]["kernel"].shape == (7, 2)
    assert own.at_width(None) is own.make


def test_a_star_varies_one_number_at_a_time():
    axes = {"rows": (1, 2, 3), "width": (8, 16), "epochs": (5,)}
    assert len(DESIGNS["product"](axes)) == 6
    star = DESIGNS["star"](axes)
    assert [(one["rows"], one["width"]) for one in star] == [(1, 16), (2, 16), (3, 16), (2, 8)]
