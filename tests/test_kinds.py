"""Choices are records in tables: a new one of each sort runs, and nothing else tests a name."""

import ast
import csv
import json
import pathlib
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wdjax
from wdjax.cli import main
from wdjax.data.dataset import make_dataset
from wdjax.jobs import SelectOptions
from wdjax.jobs.resume import resumed_options
from wdjax.jobs.setup import prepare
from wdjax.models import make_mlp
from wdjax.recipe import (
    DECAY_KINDS,
    OPTIMIZER_KINDS,
    AugmentationKind,
    DataSource,
    DecayKind,
    ExampleFeatureKind,
    LossKind,
    ModelDefaults,
    ModelKind,
    OptimizerKind,
    PartFeatureKind,
    Recipe,
    ScheduleKind,
    load_own,
    recipe_score,
    recipe_tx,
    register,
)
from wdjax.recipe.kinds import TABLES
from wdjax.recipe.own import OWN_SORTS, check_given_again
from wdjax.selection.choice import Rule
from wdjax.selection.ways import Way, search_by_grid
from wdjax.writing import sealed

PACKAGE = pathlib.Path(wdjax.__file__).parent
HOMES = ("recipe/kinds.py", "loss_kinds.py", "data/named.py", "data/shipped.py")
RNG = np.random.default_rng(0)


@pytest.fixture
def tables(monkeypatch):
    """The tables as they were, afterwards."""
    for _, table in TABLES.values():
        for name in list(table):
            monkeypatch.setitem(table, name, table[name])
    before = {sort: dict(table) for sort, (_, table) in TABLES.items()}
    yield
    for sort, (_, table) in TABLES.items():
        table.clear()
        table.update(before[sort])


@pytest.fixture
def command(capfd, tmp_path, monkeypatch, tables):
    """`command("select ...")` -> `(status, printed, told)`, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "unset")

    def run(words):
        status = main(shlex.split(words))
        return status, *capfd.readouterr()

    return run


def test_a_new_one_of_each_sort_is_selected_with(command):
    """The direction is zero, so the kernel of ones is what the new decay leaves of it."""
    seen = set()

    def load(name, *, loss):
        labels = np.arange(60) % 2
        return make_dataset(RNG.random((60, 4, 4)), labels, loss=loss, name=name)

    def make_ones(num_outputs):
        init = lambda key, x: ({"kernel": jnp.ones((16, num_outputs))}, ())
        return wdjax.Model(
            init, lambda p, s, x, *, key, train: (x.reshape(len(x), 16) @ p["kernel"], s)
        )

    def two(outputs, targets):
        return 2.0 + 0.0 * outputs[:, 0]

    def negative(key, image):
        seen.add("augmented")
        return 1 - image, jnp.ones(())

    def pixel(outputs, batch, strength):
        seen.add("example feature")
        return batch.inputs[:, 0, 0, 0]

    def size(params):
        seen.add("part feature")
        return {"kernel": jnp.ones(())}

    quarter = wdjax.Measure(lambda o, t: 0.25 + 0.0 * o[:, 0], higher_is_better=True)
    register("measure", "quarter", quarter)
    register("loss", "two", LossKind(two, "classes", measures=("quarter",)))
    new = {
        "data": DataSource(load, loss="two"),
        "model": ModelKind(make_ones, ModelDefaults(num_epochs=2, num_seeds=1)),
        "augment": AugmentationKind(lambda side: negative, channels=1),
        "optimizer": OptimizerKind(optax.set_to_zero),
        "schedule": ScheduleKind(lambda n: lambda step: jnp.where(step < n / 2, 1.0, 0.5)),
        "decay": DecayKind(
            rate=lambda s, eta, m, peak: lambda t: s * (m(t) if callable(m) else m) / 4
        ),
        "example_weight": ExampleFeatureKind(lambda loss: pixel),
        "part_weight": PartFeatureKind(lambda model, inputs: size),
        "by": Way(search_by_grid, lambda problem: f"all {problem.num_trials}", "all of it"),
        "rule": Rule("largest tried", lambda means, errors, simpler: int(np.argmax(simpler))),
    }
    assert new.keys() | {"loss", "measure"} == TABLES.keys()
    names = {sort: f"new_{sort}" for sort in new}
    for sort, record in new.items():
        register(sort, names[sort], record)
    for weighed in ("example_weight", "part_weight"):
        names[weighed] = f"sigmoid:{names[weighed]}"
    told = " ".join(f"--{n.replace('_', '-')} {v}" for n, v in names.items())
    status, printed, err = command(
        f"select {told} --strengths 0 0.5 1 --learning-rates 0.1 --folds 2 --batch-size 12 "
        "--example-slopes 0 --part-slopes 0 --choose-by quarter --out out"
    )
    assert status == 0, err
    results = json.loads(pathlib.Path("out/results.json").read_text())
    assert seen == {"augmented", "example feature", "part feature"}
    assert results["choices"][names["rule"]]["hparams"]["strength"] == 1.0
    np.testing.assert_allclose(results["scores"]["loss"], 2.0)
    np.testing.assert_allclose(results["scores"]["quarter"], 0.25)
    assert "quarter" in printed and "48 examples to choose on" in err
    assert "largest tried" in pathlib.Path("out/report.html").read_text()
    # 48 rows at 12: 4 steps an epoch; the schedule halves the rate in the second of the two.
    expected = (1 - 1 / 4) ** 4 * (1 - 1 / 8) ** 4
    with np.load("out/params.npz") as params:
        np.testing.assert_allclose(params["kernel"], expected, rtol=1e-5)


@pytest.mark.parametrize(
    "sort, name, record, words",
    [
        ("decays", "new", None, "`sort` must be one of .* Did you mean 'decay'"),
        ("decay", "a:b", None, "`name` must be a word without ':' or ','"),
        ("decay", "coupled", None, "'coupled' is taken; the decay table has decoupled, coupled"),
        ("decay", "new", OptimizerKind(optax.identity), "must be a DecayKind to be a decay"),
    ],
)
def test_what_cannot_be_registered_is_refused(sort, name, record, words, tables):
    with pytest.raises(ValueError, match=words):
        register(sort, name, record)


def test_a_record_that_says_nothing_or_two_things_is_refused():
    with pytest.raises(ValueError, match="`rate` beside the update or a `penalty`.*give one"):
        DecayKind()
    with pytest.raises(ValueError, match="give one"):
        DecayKind(rate=lambda *a: 1.0, penalty=wdjax.l2_penalty)
    with pytest.raises(ValueError, match="`targets` must be one of classes, numbers"):
        LossKind(wdjax.cross_entropy, "labels")
    with pytest.raises(ValueError, match=r"must be a function \(outputs, targets\)"):
        LossKind(3)


@pytest.mark.parametrize(
    "name, whole", [("decoupled", 100), ("corrected", 100), ("independent", 1), ("l1", np.inf)]
)
def test_the_strength_of_a_whole_weight_follows_from_the_rate(name, whole):
    assert DECAY_KINDS[name].whole_weight_strength(0.01) == whole


def test_muon_is_optaxs_with_our_decay_alone():
    """Matrices by Muon, all else by Adam; what decays is said by `parts`, and optax adds none."""
    params = {"kernel": jnp.full((3, 4), 0.5), "bias": jnp.full(4, 2.0)}
    recipe = Recipe(optimizer="muon", decay="decoupled", schedule="constant")
    ours = recipe_tx(recipe, {"strength": 0.3, "learning_rate": 0.1}, num_steps=5)
    theirs = optax.contrib.muon(0.1, consistent_rms=0.2)
    state, their_state = ours.init(params), theirs.init(params)
    for _ in range(3):
        grads = jax.tree.map(lambda p: RNG.normal(size=p.shape), params)
        found, state = ours.update(grads, state, params)
        wanted, their_state = theirs.update(grads, their_state, params)
        pull = {"kernel": 0.1 * 0.3 * params["kernel"], "bias": 0.0}
        wanted = jax.tree.map(lambda u, p: u - p, wanted, pull)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), found, wanted)
        params = optax.apply_updates(params, found)


def test_muons_momentum_is_the_one_whose_steps_add_up_as_its_own():
    """Of white gradients, Nesterov's direction: 0.95 m + 0.05 g, m the mean of decay 0.95."""
    beta = 0.95
    shares = (1 - beta) * beta ** np.arange(2000) * beta
    shares[0] += 1 - beta
    r = np.correlate(shares, shares, "full")[1999:] / np.sum(shares**2)
    total = 1 + 2 * np.sum(r[1:])
    momentum = OPTIMIZER_KINDS["muon"].momentum
    np.testing.assert_allclose((1 + momentum) / (1 - momentum), total, rtol=0.01)


@pytest.mark.parametrize(
    "words, told",
    [
        ("--model resnet20 --data iris", "`model` resnet20 reads images; 'iris' is a table"),
        ("--model transformer", "`model` transformer reads sequences; 'digits' is a"),
        ("--optimizer mon", "`optimizer` must be one of adam, sgd, momentum, lion, muon"),
    ],
)
def test_a_larger_model_says_what_it_reads(words, told, command):
    status, _, err = command(f"train --strength 0 {words}")
    assert status == 2 and told in err, err


@pytest.mark.parametrize("model, data", [("resnet20", "digits"), ("transformer", "stdlib")])
def test_a_larger_model_is_prepared_for_its_data(model, data):
    options = SelectOptions(model=model, data=data, length=8 if data == "stdlib" else None)
    prepared = prepare(options)
    assert prepared.recipe.num_epochs == 15 and prepared.defaults.num_seeds == 1
    sizes = [leaf.size for leaf in jax.tree.leaves(prepared.param_shapes)]
    # He et al.'s 269,722 less two channels of the first kernels; 64 wide, two blocks.
    block = 2 * 2 * 64 + 4 * (64 * 64 + 64) + (64 * 256 + 256) + (256 * 64 + 64)
    transformer = 256 * 64 + 2 * block + 2 * 64 + (64 * 256 + 256)
    assert sum(sizes) == {"resnet20": 269_722 - 2 * 9 * 16, "transformer": transformer}[model]


# A user's own files.

OWN = """
import jax, jax.numpy as jnp, wdjax
from wdjax.recipe import DecayKind, LossKind

def make_model(num_outputs):
    return wdjax.make_mlp(num_outputs, widths=(4,))

def half(outputs, targets):
    return wdjax.cross_entropy(outputs, targets) / 2

def slow(strength, learning_rate, multiplier, peak):
    return strength * learning_rate * multiplier

def dim(key, image):
    share = jax.random.uniform(key)
    return image * (1 - share / 10), share

def _margin(outputs, targets):
    return jnp.max(outputs, axis=-1) - jnp.mean(outputs, axis=-1)

margin = wdjax.Measure(_margin, higher_is_better=True)
spread = wdjax.Measure(lambda o, t, w: jnp.std(o), higher_is_better=False, per_example=False)

def bare(outputs, targets):
    return outputs[:, 0]

accuracy = margin
three = 3
def of_three(a, b, c):
    return a
def summed(outputs, targets):
    return jnp.sum(wdjax.cross_entropy(outputs, targets))
def fails(outputs, targets):
    return outputs + jnp.ones(7)
def smaller(key, image):
    return image[:2], jnp.ones(())
def negative(strength, learning_rate, multiplier, peak):
    return -strength
ridge = DecayKind(penalty=wdjax.l2_penalty)
vector = DecayKind(penalty=lambda strength, parts: lambda params: jnp.ones(2))
errors = LossKind(lambda o, t: jnp.abs(o[:, 0] - t), "numbers")
"""


@pytest.fixture
def own(command, tmp_path):
    (tmp_path / "my.py").write_text(OWN)
    return command


def test_a_selection_with_ones_own_files_is_shown_chosen_by_and_predicted_with(own):
    status, printed, err = own(
        "select --model my.py:make_model --loss my.py:half --decay my.py:slow "
        "--augment flip,my.py:dim --measure my.py:margin,my.py:spread,my.py:bare "
        "--choose-by margin --schedule cosine --epochs 1 --batch-size 512 --folds 2 --seeds 1 "
        "--strengths 0 1 --out out"
    )
    assert status == 0, err
    results = json.loads(pathlib.Path("out/results.json").read_text())
    assert {"loss", "accuracy", "margin", "spread", "bare"} <= results["scores"].keys()
    assert results["choices"][results["rule"]]["value"] == "margin"
    assert results["choices"][results["rule"]]["higher_is_better"] is True
    for words in ("margin", "spread", "bare", "test margin"):
        assert words in printed
    # Half the cross-entropy of ten classes, hardly trained.
    assert 0.5 < np.mean(results["scores"]["loss"]) < np.log(10)
    assert results["data"]["targets"] == "classes"

    status, _, err = own("predict out digits")
    assert status == 2 and "give it again with --model" in err
    status, printed, err = own("predict out digits --model my.py:make_model")
    assert status == 0, err
    rows = list(csv.reader(pathlib.Path("out/predictions-digits.csv").read_text().splitlines()))
    np.testing.assert_allclose(sum(map(float, rows[1][1:])), 1, rtol=1e-5)

    status, _, err = own("audit --run out --model my.py:make_model")
    assert status == 2 and "give it again with --loss" in err
    status, printed, err = own(
        "audit --run out --model my.py:make_model --loss my.py:half --decay my.py:slow "
        "--augment my.py:dim --measure my.py:margin"
    )
    assert status == 0 and "kernel" in printed, err


@pytest.mark.parametrize(
    "words, told",
    [
        ("--loss none.py:half", "`loss` 'none.py:half': there is no file 'none.py'"),
        ("--loss my.py:hlaf", "'my.py' defines no function 'hlaf'. Did you mean 'half'?"),
        (
            "--loss my.py:three",
            "`loss` 'my.py:three' must be a function (outputs, targets) -> losses[batch], or a "
            "LossKind; got 3 of int",
        ),
        ("--loss my.py:of_three", "or a LossKind; got a function of (a, b, c)"),
        ("--loss my.py:summed", "it gave (), not (1,)"),
        ("--loss my.py:fails", "called with shapes ((1, 10), (1,)) it failed: "),
        ("--loss my.py:errors", "`loss` = my.py:errors does not fit the data set 'digits'"),
        ("--decay my.py:half", "or a DecayKind; got a function of (outputs, targets)"),
        ("--decay my.py:negative", "at strength 1 and learning rate 0.001 it gave -1"),
        ("--decay my.py:vector", "it gave (2,), not ()"),
        ("--augment crop,my.py:smaller", "it gave ((2, 8, 1), ()), not ((8, 8, 1), ())"),
        ("--augment my.py:three", "-> (image, strength), or an AugmentationKind; got 3"),
        ("--measure my.py:three", "`measure` 'my.py:three' must be a wdjax.Measure, or"),
        ("--measure my.py:summed", "`measure` 'my.py:summed' must be"),
        ("--measure my.py:accuracy", "would be the score 'accuracy', which another is; rename"),
        ("--measure acuracy", "`measure` must be one of accuracy, auc"),
        ("--measure my.py:bare --choose-by bare", "whether more of it is better is not known"),
        ("--choose-by margin", "`choose_by` must be one of loss, accuracy"),
        ("--model my.py:three", "must be a function num_outputs -> Model, or a ModelKind"),
    ],
)
def test_what_is_wrong_in_ones_own_file_is_refused_by_file_and_name(own, words, told):
    status, _, err = own(f"select {words} --out out")
    assert status == 2 and told in err, err
    assert err.count("\n") == 1 and not pathlib.Path("out").exists()


def test_a_measure_of_all_examples_at_once_is_not_streamed(own):
    status, _, err = own("train --strength 0 --measure my.py:spread --stream --out out")
    assert status == 2 and "a streamed run scores batch by batch" in err, err


def test_a_decay_written_for_numbers_follows_a_schedule_and_gets_a_range(own):
    kind = load_own("decay", "my.py:slow")
    rate = kind.rate(2.0, lambda step: 0.1 / (1 + step), lambda step: 1 / (1 + step), 0.1)
    assert rate(3) == pytest.approx(2.0 * 0.1 / 4 / 4)
    assert kind.strengths == pytest.approx(DECAY_KINDS["decoupled"].strengths)
    assert load_own("decay", "my.py:ridge").whole_weight_strength(0.1) == np.inf


def test_a_loss_of_ones_own_has_the_targets_of_the_data_unless_it_says(own):
    alike = load_own("loss", "my.py:half", like="cross_entropy")
    assert alike.has_classes and alike.measures == ("accuracy",)
    assert not load_own("loss", "my.py:half", like="squared_error").has_classes
    assert not load_own("loss", "my.py:errors", like="cross_entropy").has_classes
    recipe = Recipe(make_model=make_mlp, loss="my.py:errors", num_outputs=1)
    assert recipe_score(recipe).measures.keys() == {"loss"}


@pytest.mark.parametrize("sort", OWN_SORTS)
def test_a_folder_is_not_trusted_to_name_code(sort, tmp_path):
    saved = {"data": "digits", sort: "my.py:mine"}
    (tmp_path / "config.json").write_text(json.dumps(sealed(saved)))
    words = f"trained with the {sort} 'my.py:mine'; give it again with --{sort}: a folder is not"
    with pytest.raises(ValueError, match=words):
        resumed_options(str(tmp_path), {})
    assert getattr(resumed_options(str(tmp_path), {sort: "my.py:mine"}), sort) == "my.py:mine"
    check_given_again("the run", {"data": "tfds:mnist"}, {})


# Where names stand.


def files():
    return [path for path in PACKAGE.rglob("*.py") if str(path.relative_to(PACKAGE)) not in HOMES]


# `loss` and `weight_norm` are metrics and `augment` an option as well: what is compared with them
# is not a choice; nor is how a process finds the others.
NAMES = {name for _, table in TABLES.values() for name in table}
NAMES -= {"loss", "weight_norm", "augment", "auto"}


def words_looked_for(tree):
    """The words that a comparison, a `match` or `startswith` tests something for."""
    for node in ast.walk(tree):
        tests = []
        if isinstance(node, ast.Compare):
            tests = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            tests = [node.value]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "startswith":
            tests = node.args
        for test in tests:
            inside = test.elts if isinstance(test, ast.Tuple | ast.List | ast.Set) else [test]
            for one in inside:
                if isinstance(one, ast.Constant) and isinstance(one.value, str):
                    yield one.value, one.lineno


def test_no_choice_is_tested_by_its_name_outside_the_tables():
    found = {
        f"{path.relative_to(PACKAGE)}:{line} tests {word!r}"
        for path in files()
        for word, line in words_looked_for(ast.parse(path.read_text()))
        if word in NAMES
    }
    assert found == set()


def test_the_search_for_tests_by_name_finds_them():
    code = "a == 'l1' or b in ('rnn', c) or d.startswith('tfds:')\nmatch e:\n case 'sgd': pass"
    assert {word for word, _ in words_looked_for(ast.parse(code))} == {"l1", "rnn", "tfds:", "sgd"}


def test_a_kind_of_decay_is_named_in_one_place():
    names = set(DECAY_KINDS) - {"l1"}  # `l1` is an argument of penalties as well.
    found = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in names
    }
    assert found == {"recipe/kinds.py"}
