"""The experiments: pages and results of one form, a table in sync, and all of them run."""

import importlib
import json
import math
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from experiments import common, problems, table  # noqa: E402

FOLDERS = sorted(path.parent for path in common.ROOT.glob("*/run.py"))
RESULTS = sorted(common.ROOT.glob("*/results*.json"))


def check_form(results):
    """What every results.json holds, quick or not."""
    assert results["schema"] == 1
    assert results["verdict"] in common.VERDICTS
    assert results["because"].endswith(".")
    assert results["found"]
    for row in results["found"]:
        assert set(row) == {"what", "mean", "standard_error", "n"}
        assert math.isfinite(row["mean"])
        if row["standard_error"] is None:
            assert row["n"] == 1
        else:
            assert row["standard_error"] >= 0
            assert row["n"] >= 2
    for row in results["extremes"]:
        assert row["better"] in ("lower", "higher")
        assert len(row["zero"]) == len(row["chosen"]) == len(row["largest"])
    for name in ("claim", "source", "would_change", "command", "date", "config", "versions"):
        assert results[name]


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_committed_results_have_the_form(path):
    results = json.loads(path.read_text(encoding="utf-8"))
    check_form(results)
    assert not results["quick"]
    assert results["name"] == path.parent.name
    assert path.with_name("figure.svg").read_text(encoding="utf-8").startswith("<?xml")
    seeds = [row["n"] for row in results["found"] if row["standard_error"] is not None]
    assert min(seeds, default=5) >= 5, "a claim needs at least 5 seeds"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_page_says_what_its_results_hold(folder):
    """Claim, source, command and finding of the page are those of results.json."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    page = common.read_page(folder)
    assert page["Claim"] == results["claim"]
    assert page["Source"] == results["source"]
    assert page["Would change"] == results["would_change"]
    assert page["Run"] == common.run_text(results)
    expected = f"{results['verdict']}. {results['because']} {common.found_text(results)}."
    assert page["Found"] == expected
    assert (folder / "run.py").read_text(encoding="utf-8").startswith(common.page_text(page))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_results_were_made_by_the_code_as_it_stands(folder):
    assert common.is_current(folder), f"run: {common.command(folder)}"


def test_the_table_is_that_of_the_results():
    text = (common.ROOT / "README.md").read_text(encoding="utf-8")
    between = text.split(table.BEGIN)[1].split(table.END)[0]
    assert between.strip() == table.table_text(), "run: python -m experiments --table"


def test_a_standard_error_is_the_deviation_over_the_root_of_the_seeds():
    found = common.over_seeds("x", [1.0, 2.0, 3.0, 6.0])
    assert found[1:] == (3.0, pytest.approx(np.std([1, 2, 3, 6], ddof=1) / 2), 4)
    assert found.clearly_above(0.8)
    assert not found.clearly_above(1.0)
    assert found.clearly_below(5.3)


def test_a_diverged_run_is_not_averaged_away():
    with pytest.raises(ValueError, match="'x' needs two or more finite numbers"):
        common.over_seeds("x", [1.0, math.nan])


def test_an_exact_count_is_clear_at_once():
    assert common.exact("bytes", 4).clearly_above(3.9)
    assert str(common.exact("bytes", 4)) == "bytes 4 (exact)"


def test_a_fingerprint_sees_code_and_config_but_no_page_no_comment(tmp_path, monkeypatch):
    shared = "LIMIT = 3\n\ndef used():\n    return LIMIT\n\ndef other():\n    return 1\n"
    run = '"""Page."""\nfrom experiments import problems\nx = problems.used()\n'
    monkeypatch.setattr(common, "ROOT", tmp_path)

    def of(run, shared):
        (tmp_path / "run.py").write_text(run)
        (tmp_path / "problems.py").write_text(shared)
        return common.fingerprint(tmp_path)

    first = of(run, shared)
    assert of(run.replace("Page", "Another page") + "# why\n", shared) == first
    assert of(run, shared.replace("return 1", "return 2")) == first
    assert of(run, shared.replace("LIMIT = 3", "LIMIT = 4")) != first
    assert of(run.replace("problems.used()", "problems.used() + 1"), shared) != first


def test_a_sweep_lays_its_results_out_by_axis():
    one = lambda point, offset: {"sum": 10 * point["a"] + point["seed"] + offset}
    found = problems.sweep(one, {"a": (1.0, 2.0, 3.0), "seed": range(2)}, (100.0,))
    np.testing.assert_array_equal(found["sum"], [[110, 111], [120, 121], [130, 131]])


def test_wrong_labels_are_wrong_and_as_many_as_asked():
    pool, _ = problems.parts_of("digits")
    same = problems.wrong_labels(pool, 0.0, 10, problems.jax.random.key(0))
    np.testing.assert_array_equal(same.targets, pool.targets)
    noisy = problems.wrong_labels(pool, 0.4, 10, problems.jax.random.key(0))
    share = np.mean(np.asarray(noisy.targets) != np.asarray(pool.targets))
    assert abs(share - 0.4) < 4 * (0.24 / len(pool.targets)) ** 0.5


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_experiment_can_be_imported_and_has_a_quick_variant(folder):
    module = importlib.import_module(f"experiments.{folder.name}.run")
    assert type(module.QUICK) is module.Config
    assert module.QUICK != module.Config()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_experiment_runs_quick(folder, tmp_path):
    """Few seeds: their numbers are checked for form, not for value."""
    words = [sys.executable, "-m", f"experiments.{folder.name}.run", "--quick"]
    subprocess.run([*words, "--out", str(tmp_path)], cwd=ROOT, check=True)
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    check_form(results)
    assert results["quick"]
