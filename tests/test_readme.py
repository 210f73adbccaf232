"""What the README says can be run, runs; what it counts is so."""

import json
import pathlib
import re
import subprocess
import sys

import jax
import pytest

from experiments.speed.grid import HAND, KERAS, SKLEARN

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def code_blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.slow
def test_the_python_example_chooses_a_strength_inside_its_grid(capsys):
    (example,) = code_blocks(README, "python")
    with jax.numpy_rank_promotion("allow"):
        exec(compile(example, "README.md", "exec"), names := {})
    choice = names["wdjax"].choose(names["scores"])
    assert 0 < choice.hparams["strength"] < 100
    printed = capsys.readouterr().out
    assert "strength" in printed and "+-" in printed


def test_the_speeds_it_tells_are_those_measured():
    """By the results that its command wrote last."""
    told = " ".join(README.split())
    words = r"(\S+) times as fast as (?:a hand|scikit|a loop)"
    found = [float(number) for number in re.findall(words, told)]
    ratios = []
    for name in ("grid", "grid_slow"):
        result = json.loads((ROOT / f"experiments/speed/results/{name}.json").read_text())
        ratios += [
            result["against"][peer]["ratio"]
            for peer in (HAND, SKLEARN, KERAS)
            if peer in result["against"]
        ]
    assert [f"{number:.2g}" for number in found[:2]] == [f"{ratio:.2g}" for ratio in ratios[:2]]
    assert found[2] == round(ratios[2]) and len(ratios) == 3


def test_the_test_command_that_ci_reads_is_there():
    command = re.search(r"<!-- test -->\n```\n(.*?)```", README, flags=re.DOTALL)
    assert command and command[1].strip() == 'pip install ".[test]" && pytest'
    assert "<!-- test -->" in (ROOT / ".ci" / "run").read_text()


def test_every_row_of_the_articles_has_its_line():
    rows = re.findall(r"^\| (S\d+) \|", README, flags=re.MULTILINE)
    assert rows == [f"S{n}" for n in range(1, 18)]


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
    assert len(shown.splitlines()) <= 45, "help fits a screen"
    assert "example: wdjax select" in shown
