"""What the README says can be run, runs; what it says was printed or measured, was."""

import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

import wdjax

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
ONE_LINE = re.findall(r"<!-- line: (\w+) -->\n```python\n(.*)\n```", README)


@pytest.fixture(scope="module")
def fill_readme():
    spec = importlib.util.spec_from_file_location("fill_readme", ROOT / "docs" / "fill_readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_python_example_chooses_a_strength_inside_its_grid(capsys):
    (example,) = re.findall(r"<!-- run -->\n```python\n(.*?)```", README, flags=re.DOTALL)
    with jax.numpy_rank_promotion("allow"):
        exec(compile(example, "README.md", "exec"), names := {})
    choice = names["wdjax"].choose(names["scores"])
    assert 0 < choice.hparams["strength"] < 100
    printed = capsys.readouterr().out
    assert "strength" in printed and "+-" in printed


@pytest.fixture(scope="module")
def at_hand():
    """What the lines on the four things take from the reader's script, as small as can be."""

    def fit_and_score(hparams, train, valid, key):
        w = train.inputs.T @ train.targets / (len(train.targets) + hparams["strength"])
        return {"loss": wdjax.squared_error(valid.inputs @ w, valid.targets)}

    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 2)).astype("float32")
    model = wdjax.make_mlp(num_outputs=2, widths=(3,))
    return {
        "model": model,
        "params": model.init(jax.random.key(0), x)[0],
        "fit_and_score": fit_and_score,
        "grid": wdjax.grid_product(strength=[0.0, 1.0]),
        "data": wdjax.Batch(x, x[:, 0], np.ones(20, "float32")),
        "folds": wdjax.kfold(jax.random.key(0), 20, num_folds=2),
    }


@pytest.mark.parametrize("name, line", ONE_LINE, ids=[name for name, _ in ONE_LINE])
def test_each_of_the_four_things_is_one_line_that_runs(name, line, at_hand, capsys):
    import functools

    import optax

    key = jax.random.key(0)
    names = {"partial": functools.partial, "key": key, "optax": optax, "wdjax": wdjax, **at_hand}
    exec(line, names)
    if name == "loss":
        batch = wdjax.Batch(at_hand["data"].inputs, np.zeros(20, int), np.ones(20, "float32"))
        loss, aux = names["loss_fn"](at_hand["params"], batch, model_state={}, train=False)
        assert loss > aux.data_loss
    elif name == "decay":
        leaves = wdjax.audit(at_hand["params"], names["tx"]).leaves
        assert [leaf.rate for leaf in leaves] == pytest.approx([1e-4] * len(leaves))
    elif name == "selection":
        assert names["choice"].hparams["strength"] in (0.0, 1.0)
    else:
        assert "half-life" in capsys.readouterr().out


def test_there_are_four_things():
    assert [name for name, _ in ONE_LINE] == ["loss", "decay", "selection", "audit"]


def test_what_it_says_was_printed_and_measured_is_in_the_committed_results(fill_readme):
    assert fill_readme.filled(README) == README, (
        "run `python docs/fill_readme.py` (with --run if the command prints something else now)"
    )


def test_a_number_that_changes_changes_the_readme(fill_readme, tmp_path, monkeypatch):
    source = json.loads(fill_readme.SOURCE.read_text(encoding="utf-8"))
    source["select"]["headline"] = "Decay helps: lower by 12.34."
    (changed := tmp_path / "readme.json").write_text(json.dumps(source))
    monkeypatch.setattr(fill_readme, "SOURCE", changed)
    (speed := tmp_path / "speed").mkdir()
    for path in fill_readme.SPEED.glob("*.json"):
        results = json.loads(path.read_text(encoding="utf-8"))
        for one in results.get("against", {}).values():
            one |= {"ratio": 98.7654}
        (speed / path.name).write_text(json.dumps(results))
    monkeypatch.setattr(fill_readme, "SPEED", speed)
    told = fill_readme.filled(README)
    assert "lower by 12.34" in told and "98.8 times as fast" in told and "99 times as fast" in told


def test_the_figure_is_of_the_committed_numbers(tmp_path, monkeypatch):
    path = ROOT / "docs" / "figures" / "draw.py"
    spec = importlib.util.spec_from_file_location("draw", path)
    spec.loader.exec_module(draw := importlib.util.module_from_spec(spec))
    maps = json.loads(draw.MAPS.read_text(encoding="utf-8"))
    kept = draw.FIGURE.read_text(encoding="utf-8")
    monkeypatch.setattr(draw, "FIGURE", tmp_path / "select.svg")
    draw.main([])
    numbers = lambda svg: re.findall(r">([^<>]*\d[^<>]*)</", svg.partition("</style>")[2])
    assert numbers(draw.FIGURE.read_text(encoding="utf-8")) == numbers(kept) != []
    shown = {f"{row['loss']['mean']:.3g}" for one in maps.values() for row in one["table"]}
    told = {x for x in numbers(kept) if re.fullmatch(NUMBER, x)}
    assert len(shown & {f"{float(x):.3g}" for x in told}) > 50


def test_the_audit_prints_now_what_the_readme_shows(fill_readme):
    with jax.numpy_rank_promotion("allow"):
        now = fill_readme.printed_by_audit()
    assert now == json.loads(fill_readme.SOURCE.read_text(encoding="utf-8"))["audit"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_first_command_prints_now_what_the_readme_shows(fill_readme):
    """The same words, and the same numbers to what another version of XLA may change."""
    told = json.loads(fill_readme.SOURCE.read_text(encoding="utf-8"))["select"]
    plan, stdout, results = fill_readme.printed_by_select()
    assert plan[0].split(" Devices")[0] == told["plan"][0].split(" Devices")[0]
    assert plan[1] == told["plan"][1]
    words = lambda text: re.sub(NUMBER, "#", text)
    numbers = lambda text: [float(number) for number in re.findall(NUMBER, text)]
    assert words(results["headline"]) == words(told["headline"])
    np.testing.assert_allclose(
        numbers(results["headline"]), numbers(told["headline"]), rtol=0.2, atol=0.01
    )
    assert all(words(line)[:10] in words(stdout) for line in told["refits"])


def test_the_test_command_that_ci_reads_is_there():
    command = re.search(r"<!-- test -->\n```\n(.*?)```", README, flags=re.DOTALL)
    assert command and command[1].strip() == 'pip install ".[test]" && pytest'
    assert "<!-- test -->" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("name", re.findall(r"\]\((docs/[^)]+)\)", README))
def test_linked_files_exist(name):
    assert (ROOT / name).is_file()


def test_the_command_of_the_first_block_is_installed():
    shown = subprocess.run(
        [sys.executable, "-m", "wdjax.cli", "select", "--help"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    assert len(shown.splitlines()) <= 50, "help fits a screen"
    assert "example: wdjax select" in shown
