"""Comparing choices: each at its best numbers, differences paired over folds."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wdjax.cli import main
from wdjax.jobs.compare import CompareOptions, run_compare
from wdjax.losses import cross_entropy
from wdjax.models import make_mlp
from wdjax.selection.comparison import compare
from wdjax.selection.cross_validation import cross_validate
from wdjax.selection.folds import kfold
from wdjax.selection.grids import grid_product
from wdjax.tables import to_json
from wdjax.training import is_correct, make_fit, make_fit_and_score, make_score
from wdjax.types import Batch

FOLDS = kfold(jax.random.key(0), 12, 4)
DATA = Batch(jnp.arange(12.0)[:, None], jnp.arange(12.0), jnp.ones(12))


def bowl(lowest, height):
    """A score that is a known function of strength, fold and seed: `height` at `lowest`."""

    def fit_and_score(hparams, train, valid, key):
        hard = jnp.sum(valid.targets * valid.weights)
        return {"loss": (hparams["strength"] - lowest) ** 2 + height * (1 + 0.01 * hard)}

    return fit_and_score


def test_each_choice_stands_at_the_best_of_its_own_numbers(key):
    choices = {"low": bowl(1.0, 2.0), "high": bowl(3.0, 1.0)}
    found = compare(choices, grid_product(strength=[0, 1, 2, 3]), DATA, FOLDS, key=key)
    assert found.chosen["low"].hparams == {"strength": 1.0}
    assert found.chosen["high"].hparams == {"strength": 3.0}
    assert found.best == "high"
    assert found.baseline == "low"


def test_a_difference_is_paired_over_folds(key):
    """With d_fold = -(1 + 0.01 hard_fold), an error made of the folds' spread alone."""
    choices = {"low": bowl(1.0, 2.0), "high": bowl(3.0, 1.0)}
    found = compare(choices, grid_product(strength=[1, 3]), DATA, FOLDS, key=key)
    hard = [float(jnp.sum(DATA.targets[v] * m)) for v, m in zip(*FOLDS[2:], strict=True)]
    expected = -(1 + 0.01 * np.array(hard))
    got = found.difference("high")
    np.testing.assert_allclose(got.mean, expected.mean(), rtol=1e-6)
    np.testing.assert_allclose(got.standard_error, expected.std(ddof=1) / 2, rtol=1e-5)
    assert found.difference("low", "high").mean == -got.mean
    assert found.difference("low") == (0.0, 0.0)


def test_a_choice_may_have_a_grid_of_its_own(key):
    choices = {"low": bowl(1.0, 2.0), "high": bowl(3.0, 1.0)}
    grids = {"low": grid_product(strength=[1.0]), "high": grid_product(strength=[2, 3], rate=0.5)}
    found = compare(choices, grids, DATA, FOLDS, key=key, baseline="high")
    assert found.chosen["high"].hparams == {"strength": 3.0, "rate": 0.5}
    assert found.table().rows[0][2] is None
    assert "candidates tried: low 1, high 2" in str(found)


def test_choices_are_scored_as_cross_validate_scores_them(key):
    """The same folds and keys for all: a choice alone scores what it scores in company."""
    x, y = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32), np.arange(24) % 2
    data = Batch(jnp.asarray(x), jnp.asarray(y), jnp.ones(24))
    model = make_mlp(2, widths=(4,))

    def build(direction):
        make_tx = lambda h: optax.chain(direction(), optax.scale_by_learning_rate(h["rate"]))
        fit = make_fit(model, cross_entropy, make_tx=make_tx, num_epochs=2, batch_size=6)
        return make_fit_and_score(fit, make_score(model, loss=cross_entropy, accuracy=is_correct))

    choices = {"sgd": build(optax.identity), "adam": build(optax.scale_by_adam)}
    grid, folds = grid_product(rate=[0.01, 0.1]), kfold(key, 24, 3, stratify=y)
    found = compare(choices, grid, data, folds, key=key, num_seeds=2)
    alone = cross_validate(choices["adam"], grid, data, folds, key=key, num_seeds=2)
    np.testing.assert_array_equal(found.scores["adam"].values["loss"], alone.values["loss"])
    headers = ("choice", "rate", "loss", "difference", "accuracy", "train_accuracy", "train_loss")
    assert found.table().headers == headers


def test_a_comparison_prints_and_becomes_json(key):
    choices = {"a": bowl(1.0, 2.0), "<b>": bowl(1.0, 2.0)}
    found = compare(choices, grid_product(strength=[1, 2]), DATA, FOLDS, key=key)
    text = str(found)
    assert "difference: to a, paired over folds" in text
    assert "<b> cannot be told from a (0 +- 0), by the 95 % set of all rows tried" in text
    assert "&lt;b&gt;" in found._repr_html_()
    plain = json.loads(to_json(found.to_dict()))
    assert plain["best"] == "a"
    assert plain["choices"]["<b>"]["hparams"] == {"strength": 1.0}
    assert plain["choices"]["<b>"]["difference"] == {"mean": 0.0, "standard_error": 0.0}


def test_progress_names_the_choice(key):
    seen = []
    compare(
        {"a": bowl(1.0, 1.0), "b": bowl(1.0, 2.0)},
        grid_product(strength=[1.0]),
        DATA,
        FOLDS,
        key=key,
        progress=lambda name, event: seen.append((name, event.done)),
    )
    assert seen[0] == ("a", 0)
    assert seen[-1] == ("b", 4)


def test_a_scores_without_names_can_be_compared(key):
    plain = {
        name: lambda h, t, v, k, c=c: c + 0 * h["strength"] for name, c in (("a", 2), ("b", 1))
    }
    found = compare(plain, grid_product(strength=[1.0]), DATA, FOLDS, key=key)
    assert found.best == "b"
    assert found.difference("b") == (-1.0, 0.0)
    assert found.table().headers == ("choice", "strength", "score", "difference")


def test_a_single_choice_is_refused(key):
    with pytest.raises(ValueError, match="at least two, got .'a'.*cross_validate"):
        compare({"a": bowl(0, 0)}, grid_product(strength=[1.0]), DATA, FOLDS, key=key)


def test_grids_of_other_choices_are_refused(key):
    grids = {"a": grid_product(strength=[1.0]), "c": grid_product(strength=[1.0])}
    with pytest.raises(ValueError, match="one for each of a, b; got grids for a, c"):
        compare({"a": bowl(0, 0), "b": bowl(0, 0)}, grids, DATA, FOLDS, key=key)


def test_an_unknown_baseline_is_refused_before_anything_runs(key):
    with pytest.raises(
        ValueError, match="`baseline` must be one of a, b; got 'bb'. Did you mean 'b'"
    ):
        compare(
            {"a": bowl(0, 0), "b": bowl(0, 0)},
            grid_product(strength=[1.0]),
            DATA,
            FOLDS,
            key=key,
            baseline="bb",
        )


def test_a_choice_that_always_diverges_is_named(key, nans_allowed):
    choices = {"fine": bowl(1.0, 1.0), "broken": bowl(1.0, jnp.nan)}
    with pytest.raises(ValueError, match="choice 'broken': every run of the grid diverged"):
        compare(choices, grid_product(strength=[1.0]), DATA, FOLDS, key=key)


# The job


def test_the_job_compares_optimisers_each_at_rates_that_fit_it(tmp_path):
    said = []
    options = CompareOptions(
        data="iris",
        among=("sgd", "lion"),
        strengths=(0.0, 0.1),
        epochs=1,
        folds=2,
        seeds=1,
        batch_size=32,
        out=str(tmp_path / "run"),
        devices=1,
    )
    results = run_compare(options, say=said.append, command="wdjax compare")
    written = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert written["kind"] == "compare"
    assert written["status"] == "complete"
    assert "24 trainings: 12 candidates of 2 choices x 2 folds x 1 seeds" in said[0]
    rates = {n: c["scores"]["grid"] for n, c in written["comparison"]["choices"].items()}
    assert set(rates["sgd"]["learning_rate"]) == {0.03, 0.1, 0.3}
    assert set(rates["lion"]["learning_rate"]) == {1e-4, 3e-4, 1e-3}
    assert results["headline"].startswith("Best optimizer: ")
    assert "over all 12 rows tried" in results["headline"]
    assert ("cannot be told from" in results["headline"]) or ("; worse: " in results["headline"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vary": "optimiser"}, "`vary` must be one of optimizer.*Did you mean 'optimizer'"),
        ({"among": ("adam",)}, "`among` must name at least two, each once; got adam"),
        ({"among": ("adam", "adan")}, "`optimizer` must be one of.*Did you mean 'adam'"),
        ({"vary": "augment", "among": ("none", "crop")}, "`augment` changes images"),
    ],
)
def test_the_job_refuses_before_anything_is_written(change, words, tmp_path):
    options = CompareOptions(data="iris", out=str(tmp_path / "run"), **change)
    with pytest.raises(ValueError, match=words):
        run_compare(options, say=lambda text: None)
    assert not (tmp_path / "run").exists()


def test_the_command_prints_the_table_and_draws_the_page(tmp_path, capsys):
    out = str(tmp_path / "run")
    words = "compare --data iris --among sgd adam --strengths 0 --learning-rates 0.01 --epochs 1"
    more = f"--folds 2 --seeds 1 --batch-size 32 --devices 1 --out {out}"
    assert main([*words.split(), *more.split()]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Best optimizer: ")
    assert "difference: to sgd, paired over folds" in printed
    words = words.replace("sgd adam", "adam momentum")
    assert main([*words.split(), *more.split(), "--overwrite"]) == 0
    told = capsys.readouterr().err
    assert "adam: 2 of 2 trainings had finished in an earlier run" in told
    assert "momentum: 2 of 2 trainings" not in told
    assert json.loads(pathlib.Path(out, "results.json").read_text())["cached"] == 2
    page = pathlib.Path(out, "report.html")
    drawn = page.read_text("utf-8")
    page.unlink()
    assert main(["report", out]) == 0 and page.read_text("utf-8") == drawn
