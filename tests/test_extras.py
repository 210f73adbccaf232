"""What the core needs is installed with it; what an extra installs is told when it is missing."""

import json
import pathlib
import subprocess
import sys
import tomllib

import numpy as np
import pytest
import tfds_folders as folders
from synthetic_results import synthetic_results

from wdjax.checkpoint import Checkpoints
from wdjax.cli import main
from wdjax.data import load_data
from wdjax.extras import check_installed, need
from wdjax.report import write_report

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CORE = {"jax", "jaxlib", "flax", "optax", "numpy", "jaxtyping", "tensorflow-datasets"}
OF_EXTRAS = (
    *("array_record", "grain", "importlib_resources", "matplotlib", "orbax", "PIL", "rich"),
    *("sklearn", "tensorboardX"),
)
"""Modules, some of which flax and tensorflow-datasets happen to install as well."""
COMMAND = r'pip install "wdjax\[cli\]"'


def names_of(requirements):
    return {r.split(">")[0].split("[")[0].strip() for r in requirements}


def block(monkeypatch, *modules):
    """As if they were not installed, though an earlier test has imported them."""
    for module in modules:
        loaded = [name for name in sys.modules if name == module or name.startswith(f"{module}.")]
        for name in {module, *loaded}:
            monkeypatch.setitem(sys.modules, name, None)


def told_by(code, *blocked):
    """What a new Python prints in which `blocked` cannot be imported."""
    before = f"import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n"
    done = subprocess.run([sys.executable, "-c", before + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_core_requires_these_and_no_more():
    assert names_of(PROJECT["dependencies"]) == CORE


def test_the_extras_of_tests_docs_and_speed_bring_what_the_commands_need():
    extras = PROJECT["optional-dependencies"]
    assert not names_of(extras["cli"]) & CORE
    assert "wdjax[cli,data,tensorboard]" in extras["test"]
    assert "wdjax[cli]" in extras["docs"] and "wdjax[cli]" in extras["speed"]


def test_importing_wdjax_imports_jax_optax_jaxtyping_numpy_and_nothing_else():
    code = """
import json, sys
import jax, jaxtyping, numpy, optax
outside = lambda: {name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names
before = outside()
import wdjax
print(json.dumps([sorted(outside() - before), sorted(before)]))
"""
    new, before = json.loads(told_by(code))
    # jaxtyping prints shapes by wadler_lindig, which it imports with the first annotation.
    assert set(new) - {"wadler_lindig"} == {"wdjax"}
    later = {*OF_EXTRAS, "flax", "tensorflow_datasets", "tensorflow", "pyarrow"}
    assert not later & {*new, *before}


CORE_PROGRAM = """
import sys, jax, numpy as np, optax, wdjax

draw = np.random.default_rng(0)
inputs = draw.normal(size=(24, 3)).astype(np.float32)
labels = (inputs[:, 0] > 0).astype(np.int32)
data = wdjax.Batch(inputs, labels, np.ones(24, np.float32))
model = wdjax.make_mlp(2, widths=(4,))
make_tx = lambda h: optax.chain(optax.sgd(0.3), wdjax.decoupled_decay(h["strength"], 0.3))
fit = wdjax.make_fit(model, wdjax.cross_entropy, make_tx=make_tx, num_epochs=2, batch_size=8)
trained = jax.jit(fit)({"strength": 0.1}, data, jax.random.key(0))
assert np.isfinite(trained.history["loss"]).all()

judge = wdjax.make_fit_and_score(fit, wdjax.make_score(model, loss=wdjax.cross_entropy))
grid = wdjax.grid_product(strength=np.array([0.0, 0.1], np.float32))
folds = wdjax.kfold(jax.random.key(1), 24, 2, stratify=labels)
key = jax.random.key(2)
search = lambda **more: wdjax.cross_validate(judge, grid, data, folds, key=key, **more)
scores = search()
for _ in range(2):
    again = search(cache=sys.argv[1])
    np.testing.assert_array_equal(again.values["loss"], scores.values["loss"])
print(scores)
print(wdjax.choose(scores))
print(wdjax.describe_decay(trained.params, None, 0.1))
print(wdjax.audit(trained.params, make_tx({"strength": 0.1})))
"""


def test_the_core_trains_cross_validates_chooses_prints_and_audits_without_the_extras(tmp_path):
    # flax imports rich, which it requires; the core's own code does not.
    without = [module for module in OF_EXTRAS if module != "rich"]
    (tmp_path / "program.py").write_text(CORE_PROGRAM)
    code = f"import runpy; sys.argv[1:] = [{str(tmp_path / 'cache')!r}]\n"
    code += f"runpy.run_path({str(tmp_path / 'program.py')!r})"
    printed = told_by(code, *without)
    assert "strength" in printed and "+-" in printed and "hidden1/kernel" in printed
    assert any((tmp_path / "cache").iterdir())


@pytest.mark.parametrize(
    ("module", "extra", "words"),
    [
        ("orbax.checkpoint", "cli", "a checkpoint needs orbax-checkpoint, which is not installed"),
        ("sklearn.datasets", "cli", "a checkpoint needs scikit-learn, which is not installed"),
        ("grain", "data", r"needs grain.*pip install \"wdjax\[data\]\" \(or: a list\)\.$"),
    ],
)
def test_what_is_missing_is_told_with_the_command(monkeypatch, module, extra, words):
    block(monkeypatch, module.partition(".")[0])
    for ask in (need, check_installed):
        with pytest.raises(ImportError, match=words) as told:
            ask(module, what="a checkpoint", extra=extra, hint="or: a list")
        assert f'pip install "wdjax[{extra}]"' in str(told.value)


def test_a_module_that_misses_another_is_not_taken_for_missing(tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text("import no_such_module")
    monkeypatch.syspath_prepend(tmp_path)
    check_installed("broken_module", what="a test")
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_module'"):
        need("broken_module", what="a test")


def test_checkpoints_without_orbax_are_refused_before_the_first_save(monkeypatch, tmp_path):
    block(monkeypatch, "orbax")
    with pytest.raises(ImportError, match=f"a checkpoint needs orbax-checkpoint.*{COMMAND}"):
        Checkpoints(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_shipped_data_need_scikit_learn(monkeypatch):
    block(monkeypatch, "sklearn")
    with pytest.raises(ImportError, match=f"data set 'iris' needs scikit-learn.*{COMMAND}"):
        load_data("iris")


@pytest.mark.parametrize(
    ("module", "words"),
    [("PIL", "reading the images of .*needs pillow"), ("array_record", "needs array_record")],
)
def test_a_missing_reader_of_tfds_sets_is_not_taken_for_damage(
    monkeypatch, tmp_path, module, words
):
    rows = folders.image_rows(*folders.images(3, (28, 28, 1)))
    folders.write_folder(tmp_path, "mnist", "3.0.1", folders.MNIST, {"train": rows})
    block(monkeypatch, module)
    with pytest.raises(ImportError, match=f"{words}.*{COMMAND}"):
        load_data("tfds:mnist", data_dir=tmp_path)


def test_a_report_without_matplotlib_says_so(monkeypatch, tmp_path):
    block(monkeypatch, "matplotlib")
    with pytest.raises(ImportError, match=f"a report needs matplotlib.*{COMMAND}"):
        write_report(synthetic_results(), tmp_path / "report.html")


@pytest.mark.parametrize(
    ("job", "module", "words"),
    [
        ("select", "matplotlib", "wdjax: the report of `wdjax select` needs matplotlib"),
        ("train --strength 0.1", "matplotlib", "wdjax: the report of `wdjax train` needs matplot"),
        ("compare", "rich", "wdjax: the command's progress needs rich"),
    ],
)
def test_a_command_that_misses_a_package_says_so_before_it_trains(
    monkeypatch, tmp_path, capsys, job, module, words
):
    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", inputs=np.zeros((8, 2)), targets=np.arange(8) % 2)
    block(monkeypatch, module)
    assert main([*job.split(), "--data", "data.npz"]) == 1
    told = capsys.readouterr().err
    assert told.startswith(words) and told.endswith('pip install "wdjax[cli]".\n')
    assert told.count("\n") == 1 and [path.name for path in tmp_path.iterdir()] == ["data.npz"]
