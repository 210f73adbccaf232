"""The articles' programs by one name: what it stands for, and what it is trained on."""

import json
import shlex

import pytest

from wdjax.cli import main
from wdjax.jobs import recipe_words
from wdjax.jobs.articles import RECIPES

SHARED = (
    "--optimizer adam --learning-rate 1e-3 --schedule constant --decay coupled --parts all "
    "--strength 1e-3 --epochs 10 --batch-size 32"
)


@pytest.fixture
def expanded(tmp_path, monkeypatch):
    """`expanded(words) -> (words, what was said)`, with no data of TFDS there."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))

    def expand(name, words, data_dir=None):
        said = []
        found = recipe_words(name, shlex.split(words), data_dir=data_dir, say=said.append)
        return shlex.join(found), said

    return expand


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_the_command_that_it_prints(name, expanded):
    model = name.partition("/")[2]
    found, said = expanded(name, f"train --recipe {name} --out x")
    assert found == f"train --data digits --model {model} {SHARED} --out x"
    assert said[-1] == f"{name} stands for: wdjax {found}"
    assert "is not in the folder of TFDS" in said[0] and "this run is on digits" in said[0]


@pytest.mark.parametrize("form", ["--epochs 2 --strength 0", "--epochs=2 --strength=0"])
def test_options_given_beside_it_override_it(form, expanded):
    found, _ = expanded("article/mlp", f"train --recipe=article/mlp {form} --data iris")
    without = SHARED.replace("--strength 1e-3 --epochs 10 ", "")
    assert found == f"train --model mlp {without} {form} --data iris"


def test_the_articles_data_are_taken_where_they_are_found(expanded, tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "test_batch").touch()
    words = shlex.join(["train", "--data-dir", str(tmp_path), "--recipe", "article/cnn"])
    found, said = expanded("article/cnn", words, str(tmp_path))
    assert found.startswith("train --data cifar10 --model cnn") and len(said) == 1
    assert shlex.join(["--data-dir", str(tmp_path)]) in found
    found, said = expanded("article/mlp", words, str(tmp_path))
    assert "--data digits" in found and "--data-dir" not in found
    assert "is for mnist, which is not in" in said[0] and str(tmp_path) in said[0]


def test_an_unknown_recipe_is_refused_with_the_nearest(capfd):
    assert main(["train", "--recipe", "article/cn"]) == 2
    assert "`recipe` must be one of article/cnn" in capfd.readouterr().err
    assert main(["select", "--recipe", "article/cnn"]) == 2
    assert "unknown argument '--recipe'" in capfd.readouterr().err


def test_a_recipe_is_trained_and_its_folder_keeps_what_it_stood_for(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    out = str(tmp_path / "out")
    assert main(["train", "--recipe", "article/mlp", "--epochs", "1", "--out", out]) == 0
    told = capfd.readouterr().err
    assert "stands for: wdjax train --data digits --model mlp" in told
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    config = results["config"]
    numbers = ("learning_rate", "strength", "batch_size", "epochs", "decay", "parts", "schedule")
    assert [config[n] for n in numbers] == [1e-3, 1e-3, 32, 1, "coupled", "all", "constant"]
    assert "--recipe" not in results["command"]
