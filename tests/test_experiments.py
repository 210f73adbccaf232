"""The experiments: pages and results of one form, a table in sync, and all of them run."""

import dataclasses
import importlib
import json
import math
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest

from experiments import claims, common, problems, table

ROOT = pathlib.Path(__file__).parent.parent
FOLDERS = sorted(path.parent for path in common.ROOT.glob("*/run.py"))
RESULTS = sorted(common.ROOT.glob("*/results*.json"))


def check_form(results):
    """What every results.json holds, quick or not."""
    assert results["schema"] == 2
    assert results["claims"] and results["found"]
    for claim in results["claims"]:
        assert claim["verdict"] in claims.VERDICTS
        assert 0 <= claim["p"] <= 1
        assert claim["finding"].endswith(".")
        assert claim["numbers"] or results["quick"]  # A quick run has not every program.
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
    for name in ("claim", "source", "command", "date", "config", "versions"):
        assert results[name]


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_committed_results_have_the_form(path):
    results = json.loads(path.read_text(encoding="utf-8"))
    check_form(results)
    assert not results["quick"]
    assert results["name"] == path.parent.name
    figure = path.with_name(path.name.replace("results", "figure")).with_suffix(".svg")
    assert figure.read_text(encoding="utf-8").startswith("<?xml")
    seeds = [row["n"] for row in results["found"] if row["standard_error"] is not None]
    assert min(seeds, default=5) >= 5, "a claim needs at least 5 seeds"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_page_says_what_its_results_hold(folder):
    """Claim, source, rules, command and finding of the page are those of results.json."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    page = common.read_page(folder)
    assert page["Claim"] == results["claim"]
    assert page["Source"] == results["source"]
    assert page | common.written(results) == page
    assert (folder / "run.py").read_text(encoding="utf-8").startswith(common.page_text(page))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_results_were_made_by_the_code_as_it_stands(folder):
    assert common.is_current(folder), f"run: {common.command(folder)}"


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_the_claims_of_a_result_are_those_of_its_program_and_numbers(path):
    """Nothing is trained: the same numbers give the same verdicts."""
    results = json.loads(path.read_text(encoding="utf-8"))
    module = importlib.import_module(f"experiments.{path.parent.name}.run")
    again = common.judge(results, module.CLAIMS, getattr(module, "derived", None))
    told = [(c["name"], c["text"], c["verdict"], c["finding"]) for c in results["claims"]]
    assert told == [(c["name"], c["text"], c["verdict"], c["finding"]) for c in again["claims"]]
    both = zip(results["claims"], again["claims"], strict=True)
    assert all(one["p"] == pytest.approx(other["p"], rel=1e-6) for one, other in both)


def test_the_table_is_that_of_the_results():
    text = (common.ROOT / "README.md").read_text(encoding="utf-8")
    between = text.split(table.BEGIN)[1].split(table.END)[0]
    assert between.strip() == table.table_text(), "run: python -m experiments --table"


def test_a_standard_error_is_the_deviation_over_the_root_of_the_seeds():
    found = common.over_seeds("x", [1.0, 2.0, 3.0, 6.0])
    assert found[1:] == (3.0, pytest.approx(np.std([1, 2, 3, 6], ddof=1) / 2), 4)
    assert found.clearly_above(-0.5)
    assert not found.clearly_above(-0.4)  # t of 3 degrees of freedom: 3 +- 3.18 * 1.08
    assert found.clearly_below(6.5)


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
    judged = "from experiments.claims import above\nCLAIMS = (above('x'),)\ndef derived(r): ...\n"
    assert of(run + judged, shared) == first
    assert of(run + "OTHER = 1\n", shared) != first


GPU = {"platform": "gpu", "kind": "NVIDIA A100-SXM4-40GB", "count": 4}
RUN = '''"""Title.

Claim: one | two.
Source: here.
Would change: old.
Run: `old`
Found: old.
"""

from experiments.claims import Claim, above

CLAIMS = (Claim("Q99", "So it is.", above("gain"), "It is not."),)
'''


@dataclasses.dataclass(frozen=True)
class Toy:
    seeds: int = 5


def run_toy(folder, monkeypatch, device):
    monkeypatch.setattr(common, "ROOT", folder.parent)
    monkeypatch.setattr(table, "ROOT", folder.parent)
    monkeypatch.setattr(common, "this_device", lambda: device)
    monkeypatch.setattr(sys, "argv", ["run"])
    (folder.parent / "problems.py").write_text("")
    found = [common.over_seeds("gain", [1.0, 2.0, 3.0, 4.0, 5.0])]
    measure = lambda config: common.Findings(found, {"x": [0.0, 1.0]})
    draw = lambda values, figure: figure.subplots().plot(values["x"])
    claimed = common.load(folder).CLAIMS
    common.main(str(folder / "run.py"), measure, draw, Toy(), Toy(2), claimed)


def test_a_result_from_another_device_is_a_new_row_and_leaves_the_page(tmp_path, monkeypatch):
    folder = tmp_path / "q99_toy"
    folder.mkdir()
    (folder / "run.py").write_text(RUN)
    run_toy(folder, monkeypatch, GPU)
    assert (folder / "run.py").read_text() == RUN
    assert not common.is_current(folder)
    run_toy(folder, monkeypatch, {"platform": "cpu", "kind": "cpu", "count": 2})
    page = (folder / "run.py").read_text()
    assert "2 CPU devices" in page and "Found: So it is (Q99 holds, p = 0.013).\n" in page
    assert "Would change: Q99: `gain` above 0.\n" in page
    mark = "-gpu-nvidia-a100-sxm4-40gb-x4"
    written = {path.name for path in folder.iterdir() if path.suffix in (".json", ".svg")}
    assert written == {"results.json", "figure.svg", f"results{mark}.json", f"figure{mark}.svg"}
    assert common.is_current(folder) and common.is_current(folder, mark)
    _, _, *rows = table.table_text().splitlines()
    assert sorted(row.split(" | ")[5].split(",")[0] for row in rows) == ["2 CPU", "4 GPU"]
    assert all("So it is. | gain 3.00 +- 0.71 (n=5) | **holds**, p = 0.013" in row for row in rows)
    assert all(row["holm_p"] == row["p"] for row in table.claim_rows())  # A family each.
    table.refresh()  # Words of the page into both results, numbers of the CPU's into the page.
    assert (folder / "run.py").read_text() == page


STANDS = ("a", "-gpu-x-x1")


def test_all_runs_what_changed_on_this_device_and_again_runs_everything(tmp_path, monkeypatch):
    """The command's own words: which folders it starts a process for."""
    program = importlib.import_module("experiments.__main__")
    started = []
    done = types.SimpleNamespace(returncode=0)
    monkeypatch.setattr(program.subprocess, "run", lambda words: started.append(words[2]) or done)
    monkeypatch.setattr(program, "write_table", lambda: None)
    monkeypatch.setattr(program, "mark_of_the_device", lambda: "-gpu-x-x1")
    monkeypatch.setattr(program, "folders", lambda: [tmp_path / "a", tmp_path / "b"])
    monkeypatch.setattr(program, "is_current", lambda folder, mark: (folder.name, mark) == STANDS)
    for words, expected in (
        (["--all"], ["b"]),
        (["--all", "--again"], ["a", "b"]),
        (["a"], ["a"]),
    ):
        started.clear()
        monkeypatch.setattr(sys, "argv", ["experiments", *words])
        assert program.main() == 0
        assert started == [f"experiments.{name}.run" for name in expected]


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


# Parts of single experiments.


def test_the_programs_take_cifar10_where_tfds_has_it_and_digits_elsewhere(tmp_path, monkeypatch):
    """S6: a folder as TFDS prepares it, with its own test part; without it, shipped data."""
    folders = pytest.importorskip("tfds_folders", reason="array_record is not installed")
    run = importlib.import_module("experiments.s06_s07_s08_programs.run")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    name, pool, _ = run.load()
    assert name == "digits"
    assert pool.inputs.shape[1:] == (32, 32, 3)
    pixels, labels = folders.images(12, (32, 32, 3))
    rows = folders.image_rows(pixels, labels)
    splits = {"train": rows[:8], "test": rows[8:]}
    folders.write_folder(tmp_path, "cifar10", "3.0.2", folders.CIFAR10, splits)
    name, pool, held_out = run.load()
    assert name.startswith("tfds:cifar10")
    assert pool.inputs.shape == (8, 32, 32, 3)
    assert sorted(np.asarray(held_out.targets)) == sorted(labels[8:])
    np.testing.assert_allclose(
        np.sort(held_out.inputs, axis=None), np.sort(pixels[8:] / 255, axis=None), rtol=1e-6
    )


def s16():
    return importlib.import_module("experiments.s16_combinations.run")


def test_the_best_strength_of_a_parabola_is_its_vertex():
    """In log2 of the strength, from a vertex between two places of the grid, and at an end."""
    run = s16()
    strengths = 1e-3 * run.STEP ** np.arange(8)
    vertex = np.array([2.3, 5.9, -3.0])
    loss = (np.arange(8)[:, None] - vertex) ** 2
    found = np.log2(10) * (run.lowest_log10(loss, strengths) + 3)
    np.testing.assert_allclose(found, [2.3, 5.9, 0.0], atol=1e-9)


@pytest.mark.parametrize("power", [0, 1, -1])
def test_a_bowl_in_a_coordinate_costs_nothing_there_and_something_in_the_others(power):
    """loss = (row + power * column - 6)^2 is separable in `strength * rate ** power` alone."""
    run = s16()
    rows, columns = np.indices((13, 4))
    loss = np.repeat(((rows + power * columns - 6) ** 2)[..., None], 3, axis=2).astype(float)
    cost = {p: run.price(loss, loss, p).mean() for p in (0, 1, -1)}
    assert cost[power] == 0
    assert all(cost[p] > 0 for p in cost if p != power)
    level = run.sheared(loss[..., 0], power)
    assert np.unique(np.nanargmin(level, axis=0)).size == 1


def test_a_best_strength_counts_only_inside_and_clearly_below_both_ends():
    run = s16()
    noise = np.random.default_rng(0).normal(scale=0.01, size=(6, 5))
    bowl = np.array([3.0, 2.9, 1.0, 0.5, 1.0, 3.0])[:, None] + noise
    assert run.is_placed(bowl, bowl)
    falls = np.array([3.0, 2.9, 2.0, 1.5, 1.0, 0.5])[:, None] + noise
    assert not run.is_placed(falls, falls)
    useless = np.array([0.5, 0.5, 0.499, 0.51, 1.0, 3.0])[:, None] + noise
    assert not run.is_placed(useless, useless)


def test_q7_width_is_where_the_curve_is_within_a_standard_error():
    """A V in log10 of the strength with slope 1 each way and error e is 2 e decades wide."""
    run = importlib.import_module("experiments.q07_chosen_against_extremes.run")
    strengths = np.array([0.0, *10.0 ** np.arange(-2, 3)])
    spread = np.array([-1.0, 0.0, 1.0])  # Of the seeds: standard error 1 / sqrt(3).
    mean = np.array([9.0, 2.0, 1.0, 0.0, 1.0, 2.0])
    width = run.width(strengths, mean[:, None] + spread)
    assert width == pytest.approx(2 / 3**0.5, abs=0.01)


def test_ways_of_weighing_are_compared_at_their_own_choices():
    """Weighted picks slope 1 at strength 2, unweighted its only slope at strength 5."""
    choose = lambda table: np.repeat(np.array(table, float)[..., None], 3, axis=2)
    told = lambda table: {
        "choose_loss": choose(table),
        "report_loss": 10 + choose(table),
        "report_accuracy": choose(table),
    }
    scores = {"weighted": told([[3, 4], [1, 2]]), "unweighted": told([[3, 2]])}
    gains, values = problems.against_weighted("x", scores, (0.0, 1.0), (2.0, 5.0))
    assert values["chosen"] == {"weighted": [1.0, 2.0], "unweighted": [0.0, 5.0]}
    assert gains["unweighted"].mean == 1.0
    assert gains["unweighted"].what == "x: held-out loss, unweighted - weighted"
