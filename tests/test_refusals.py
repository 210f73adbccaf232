"""Bad input ends in one sentence, before anything is compiled or written.

The refusals run in one process without the type-checking hook, as for a user; the tests then
look at what each of them said and did.
"""

import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import pytest

NAN, INF = float("nan"), float("inf")

# The words after `wdjax`, and what the one sentence must hold: option, value, bound, way out.
COMMANDS = {
    # Strengths
    "select --strengths -1": ["`strengths` must be >= 0, got -1", "0 switches it off"],
    "select --strengths -1e-3": ["`strengths` must be >= 0, got -0.001"],
    "select --strengths=-1": ["`strengths` must be >= 0, got -1"],
    "select --strengths 0.1 nan": ["`strengths` must hold finite numbers, got nan"],
    "select --strengths inf": ["`strengths` must hold finite numbers, got inf"],
    "select --strengths -inf": ["`strengths` must hold finite numbers, got -inf"],
    "select --strengths large": ["--strengths", "must be a number, such as 0.1", "got 'large'"],
    "select --strengths": ["--strengths", "expected at least one argument"],
    "select --strengths 0.1 0.2 0.1": ["`strengths` holds 0.1 twice"],
    "select --strengths 10000": ["`strengths`: 10000 removes 3 of each weight", "smaller strength"],
    "select --strengths 5000": ["5000 removes 1.5 of each weight per step at the smallest", "pair"],
    "compare --by halving": ["`by` = halving", "trains the whole grid of each", "`wdjax select`"],
    "select --learning-rates 0": ["`learning_rates` must be finite and > 0", "learning_rates=0"],
    "select --learning-rates nan": ["`learning_rates` must hold finite numbers, got nan"],
    "select --learning-rates 0.1 0.1": ["`learning_rates` holds 0.1 twice"],
    "train --strength -1": ["`strength` must be finite and >= 0, got strength=-1"],
    "train --strength nan": ["`strength` must be finite and >= 0, got strength=nan"],
    "train --strength 1000": ["`strength`: 1000 removes 3 of each weight per step"],
    "train --learning-rate inf": ["`learning_rate` must be finite and > 0", "learning_rate=inf"],
    # Folds, batches, epochs, seeds
    "select --folds 1": ["`folds` must be between 2 and 1437, got folds=1"],
    "select --folds 2.5": ["--folds", "must be a whole number; got '2.5'"],
    "select --folds 140": ["has 139 examples and needs 140 to be in each of `folds` = 140"],
    "select --folds 1438": ["`folds` must be between 2 and 1437, got folds=1438"],
    "select --batch-size 1150": ["`batch_size` must be at most 1149", "batch_size=1150", "smaller"],
    "select --batch-size 0": ["`batch_size` must be >= 1, got batch_size=0"],
    "train --strength 0 --batch-size 1438": [
        "`batch_size` must be at most 1437",
        "batch_size=1438",
    ],
    "select --epochs 0": ["`epochs` must be >= 1, got epochs=0"],
    "select --seeds 0": ["`seeds` must be >= 1, got seeds=0"],
    "train --seeds 0": ["`seeds` must be >= 1, got seeds=0"],
    "select --seed -1": ["`seed` must be >= 0, got seed=-1"],
    "select --dropout 1": ["`dropout` must be finite and >= 0 and <= 0.99, got dropout=1"],
    "select --label-noise 1.5": ["`label_noise` must be finite and >= 0 and <= 1"],
    "select --devices 0": ["`devices` must be between 1 and 2, got devices=0"],
    # Names
    "select --optimzer adam": ["unknown argument '--optimzer'", "Did you mean '--optimizer'?"],
    "select digits": ["unknown argument 'digits' of `wdjax select`"],
    "select --optimizer adamw": ["`optimizer` must be one of adam, sgd, momentum, lion", "'adam'?"],
    "select --schedule cosin": ["`schedule` must be one of", "'cosin'", "Did you mean 'cosine'?"],
    "select --decay decopled": ["`decay` must be one of", "Did you mean 'decoupled'?"],
    "select --rule mini": ["`rule` must be one of min, one_standard_error", "'min'?"],
    "select --dtype float16": ["`dtype` must be one of float32, bfloat16, float64"],
    "select --loss mse": ["`loss` must be one of cross_entropy, squared_error", "'mse'"],
    "select --model mpl": ["`model` must be one of mlp, cnn, rnn", "Did you mean 'mlp'?"],
    "select --model cnn --optimizer adamw": ["`optimizer` must be one of"],
    "select --model none.py:make_model": ["there is no file 'none.py'", "FILE.py:FUNCTION"],
    "select --model mine.py:make_modle": ["no function 'make_modle'", "'make_model'?"],
    "select --model mine.py:broken": ["must return a wdjax Model(init, apply), got 3 of int"],
    "select --model mine.py:make_model --dropout 0.1": ["`dropout` = 0.1", "add the keyword"],
    "select --model rnn --data wine": ["`model` rnn reads images; 'wine' is a table", "use mlp"],
    "select --model cnn --data wine": ["only images", "choose a model for table data"],
    "select --data digit": ["'digit'", "Did you mean 'digits'?"],
    "select --parts hedd/*=1,*=0": ["'hedd/*' (no path matches it)", "Did you mean 'head/"],
    "select --parts */kernel=1": ["no pattern for 'head/bias'", 'End with "*": 0.0'],
    "select --parts kernels": ["`parts` must be matrices, all, or PATTERN=NUMBER", "'kernels'"],
    "select --parts *=-1": ["multiplier -1; it must be finite and >= 0"],
    "select --loss squared_error": ["`loss` = squared_error does not fit", "use cross_entropy"],
    "select --target x": ["`target` = 'x' does not apply to data 'digits'", "leave it out"],
    # Data
    "select --data missing.npz": ["'missing.npz' does not exist"],
    "select --data holes.npz": ["`inputs` must be finite, got nan at row 1, column 2"],
    "select --data infinite.csv": ["column 'a' must be finite, got inf in line 3"],
    "select --data lengths.npz": ["`inputs` has 20 examples and `targets` 19"],
    "select --data negative.npz": ["`targets` must be labels 0..", "got -1 at row 0"],
    "select --data gaps.npz": ["no example has label 1"],
    "select --data fractions.npz": ["`targets` must be integer labels", "squared_error"],
    "select --data words.csv --target b": ["`target` 'b' is no column", "has 'a', 'label'"],
    "select --data text.csv": ["column 'a' must hold numbers, got 'x' in line 2"],
    "select --data objects.npz": ["not Python objects"],
    "select --data tiny.npz --folds 3": ["has 2 examples and needs 3"],
    # Output
    "select --out full": ["`out` 'full' exists and is not empty", "--overwrite"],
    "select --out mine.py": ["`out` 'mine.py' is a file; give a folder"],
    "select --out mine.py/run": ["`out` 'mine.py/run' cannot be written: Not a directory"],
    "select --out /proc/run": ["`out` '/proc/run' cannot be written", "choose another folder"],
    "report nowhere": ["`run` 'nowhere' holds no results.json", "wdjax select"],
    "report other": ["`run` 'other': results.json was not written by `wdjax select`"],
    "": ["required: COMMAND", "--help"],
    "selct": ["invalid choice: 'selct' (choose from", "Did you mean 'select'?"],
    "tarin --stream": ["invalid choice: 'tarin'", "Did you mean 'train'?"],
    "report": ["required: RUN"],
}

# From Python: an expression, and what its ValueError says. What is wrong may show only in the
# params or the shapes: then it is said when traced, still before anything is compiled.
CALLS = {
    "wdjax.l2_penalty('0.1')": "`strength` must be a number, got '0.1' of str",
    "wdjax.l2_penalty(-1)": "`strength` must be finite and >= 0, got strength=-1",
    "wdjax.l1_penalty(nan)": "`strength` must be finite and >= 0, got strength=nan",
    "wdjax.elastic_net_penalty(0.1, None)": "`l2` must be a number, got None",
    "wdjax.l2_penalty([0.1, 0.2])": "`strength` must be a number, got [0.1, 0.2] of list",
    "wdjax.l2_penalty(np.ones(2))": "`strength` must be a scalar, got shape (2,)",
    "wdjax.decoupled_decay('0.1', 0.1)": "`strength` must be a number, got '0.1'",
    "wdjax.decoupled_decay(-0.1, 0.1)": "`strength` must be finite and >= 0",
    "wdjax.decoupled_decay(0.1, inf)": "`learning_rate` must be finite",
    "wdjax.independent_decay(True)": "`strength` must be a number, got True",
    "wdjax.corrected_decay(0.1, 0.1, nan)": "`peak_learning_rate` must be finite",
    "wdjax.grid_product(strength=[0.1, 'a'])": "`strength` must hold numbers",
    "wdjax.grid_product(strength=None)": "`strength` must hold numbers, got None",
    "wdjax.grid_product(strength=[])": "`strength` must hold at least one number",
    "wdjax.grid_product(strength=[1, 1])": "`strength` holds 1 twice",
    "wdjax.kfold(None, 10, 1)": "`num_folds` must be between 2 and 10, got num_folds=1",
    "wdjax.kfold(None, 10, 2.0)": "`num_folds` must be an integer, got 2.0",
    "wdjax.make_mlp(0)": "`num_outputs` must be >= 1",
    "wdjax.make_mlp(3, dropout=1.0)": "`dropout` must be below 1",
    "wdjax.regularized_loss(linear, error, normalize='sum')": "`normalize` must be one of",
    "traced(wdjax.regularized_loss(linear, lambda p, t: 0.0), w, batch)": "returned shape ();",
    "traced(wdjax.regularized_loss(linear, lambda p, t: (p - t)[:, None] + p), w, batch)": (
        "returned shape (4, 4); expected one loss per example, shape (4,)"
    ),
    "traced(wdjax.regularized_loss(linear, lambda p, t: None), w, batch)": "returned shape ()",
    "traced(wdjax.squared_error, np.ones((4, 1)), np.ones((4, 2)))": "must have the shape of",
    "traced(wdjax.cross_entropy, np.ones((4, 3)), np.ones(4))": "integer labels of shape (4,)",
    "traced(wdjax.l2_penalty(0.1, {'kernel': 1.0}), {'bias': np.ones(2)})": "no pattern for 'bias'",
    "traced(wdjax.make_cnn(3).init, key, np.ones((1, 8, 8, 1)))": "of side 18 or more",
    "wdjax.make_fit(mlp, wdjax.cross_entropy, make_tx=None, num_epochs=0, batch_size=1)": (
        "`num_epochs` must be >= 1, got num_epochs=0"
    ),
    "wdjax.make_fit(mlp, wdjax.cross_entropy, make_tx=None, num_epochs=1, batch_size='a')": (
        "`batch_size` must be an integer, got 'a'"
    ),
    "wdjax.make_score(mlp)": "needs at least one measure",
    "wdjax.cross_validate(None, {}, batch, None, key=None)": "`grid` is empty",
    # What is of another kind than a Model, a Batch or a run: how to write one.
    **{
        call: "got the flax.linen module Net; write from_linen(Net(...))"
        for call in (
            "wdjax.make_score(linen, loss=error)",
            "fit_of(linen)",
            "fit_of(Linen)",
            "wdjax.regularized_loss(linen, error)",
            "wdjax.init_state(linen, None)",
            "models.with_compute_dtype(linen, 'float32')",
            "fit_of(lambda h: linen)({}, batch, key)",
            "wdjax.from_nnx(Linen)",
            "wdjax.from_linen(Linen)",
        )
    },
    **{
        call: "got the flax.nnx module Net; write from_nnx(lambda rngs: Net(..., rngs=rngs))"
        for call in (
            "wdjax.make_score(Nnx(), loss=error)",
            "fit_of(Nnx())",
            "fit_of(Nnx)",
            "wdjax.regularized_loss(Nnx, error)",
            "wdjax.init_state(Nnx(), None)",
            "wdjax.from_linen(Nnx())",
            "wdjax.from_nnx(Nnx())",
        )
    },
    "fit_of(Equinox())": "got the equinox module Net; write from_equinox(lambda key: Net",
    "wdjax.regularized_loss(Equinox(), error)": "write from_equinox(lambda key: Net(..., key=key))",
    "fit_of(linear)": "a function here is `hparams -> Model`, of one argument",
    "fit_of(lambda h: linear)({}, batch, key)": "got a function; write Model(init, apply)",
    "fit_of((linear, linear))": "got a tuple; write Model(init, apply)",
    "fit_of([3, 4])": "from_linen, from_nnx",
    "wdjax.make_score(linear, loss=error)": "got a function; write Model(init, apply)",
    "wdjax.regularized_loss((linear, linear), error)": "got a tuple; write Model(init, apply)",
    "wdjax.regularized_loss('mlp', error)": "got 'mlp' of str",
    "wdjax.init_state(mlp, None)": "`params` are the model's weights, got a Model; write",
    "models.with_compute_dtype((1, 2), 'float32')": "`model` must be a Model, got a tuple",
    "validate(linen)": "got the flax.linen module Net; write make_fit_and_score(make_fit(model",
    "validate(mlp)": "`fit_and_score` must be a function, got a Model; write make_fit_and_score(",
    "wdjax.compare({'a': mlp, 'b': mlp}, {'s': [1.0]}, batch, None, key=key)": "got a Model; write",
    **{
        call: f"`{name}` must be a Batch, got {what}; write Batch(inputs, targets, weights)"
        for call, name, what in (
            ("fit_of(mlp)({}, (batch.inputs, batch.targets), key)", "train", "a tuple"),
            ("fit_of(mlp)({}, [1, 2, 3], key)", "train", "a list"),
            ("fit_of(mlp)({}, {'inputs': 1}, key)", "train", "a dict"),
            ("validate(fit_and_score, (batch.inputs, batch.targets))", "data", "a tuple"),
            ("validate(fit_and_score, batch.inputs)", "data", "an array"),
            ("pure(fit_and_score, (batch.inputs, batch.targets))", "data", "a tuple"),
            (
                "traced(wdjax.regularized_loss(linear, error), w, (batch.inputs, batch.targets))",
                "batch",
                "a tuple",
            ),
            ("traced(step, state, (batch.inputs, batch.targets, w))", "batch", "a tuple"),
            ("traced(parted, state, (batch.inputs, batch.targets, w))", "batch", "a tuple"),
            ("wdjax.make_score(mlp, loss=error)(None, (batch.inputs, w))", "batch", "a tuple"),
            ("sharded(state, (batch.inputs, batch.targets))", "batch", "a tuple"),
            ("wdjax.pmap_step(step)(state, (batch.inputs, batch.targets))", "batch", "a tuple"),
        )
    },
    "validate(fit_and_score, wdjax.Batch([[1.0]] * 4, [0] * 4, [1.0] * 4))": (
        "`data.inputs` holds Python numbers, as a list of them does; write np.asarray(...)"
    ),
    "validate(fit_and_score, batch._replace(weights=[1.0] * 4))": "`data.weights` holds Python n",
    "validate(fit_and_score, batch._replace(weights=None))": "`data.weights` are None; write np.on",
    "validate(fit_and_score, batch._replace(targets=np.array(['a'] * 4)))": (
        "`data.targets` holds <U1; give numbers"
    ),
    "validate(fit_and_score, batch._replace(inputs=np.array([[{}]] * 4)))": "inputs` holds ob",
    "wdjax.choose(scores, 'best')": "`rule` must be one of min, one_standard_error",
    "wdjax.choose(scores, value='los')": "`value` must be one of loss; got 'los'. Did you mean",
    "wdjax.choose(scores)": "every run of the grid diverged",
    "wdjax.jobs.run_select(wdjax.jobs.SelectOptions(strengths=(-1.0,)))": "must be >= 0",
    "wdjax.jobs.run_select(wdjax.jobs.SelectOptions(strengths=()))": "`strengths` must hold at lea",
    "wdjax.jobs.run_select(wdjax.jobs.SelectOptions(epochs=1.5))": "`epochs` must be an integer",
    "wdjax.jobs.run_train(wdjax.jobs.TrainOptions(strength='a'))": "`strength` must be a number",
    "wdjax.jobs.run_train(wdjax.jobs.TrainOptions(devices=0))": "`devices` must be between",
}

PROBE = """
import contextlib, io, json, pathlib, shlex, sys
import jax
import numpy as np

import flax.linen, flax.nnx
import optax

compiled = []
def listen(name, seconds, **_):
    if name.endswith("backend_compile_duration"):
        compiled.append(name)

import wdjax, wdjax.jobs
from wdjax import models
from wdjax.cli import main
from wdjax.selection import Scores

nan, inf = float("nan"), float("inf")
key, mlp = jax.random.key(0), wdjax.make_mlp(2)
w, linear, error = np.ones(3), lambda w, x: x @ w, wdjax.squared_error
batch = wdjax.Batch(np.ones((4, 3)), np.ones(4), np.ones(4))
scores = Scores(wdjax.grid_product(strength=[0, 1]), {"loss": np.full((2, 2, 1), nan)})
traced = jax.eval_shape

class Net(flax.linen.Module):
    def __call__(self, x):
        return x
linen, Linen = Net(), Net
class Net(flax.nnx.Module):
    def __call__(self, x):
        return x
Nnx = Net
Module = type("Module", (), {"__module__": "equinox._module", "__call__": lambda self, x: x})
Equinox = type("Net", (Module,), {})
grid = {"strength": [0.0, 1.0]}
tx = optax.sgd(0.1)
state = wdjax.init_state(w, tx)
step = wdjax.make_train_step(wdjax.regularized_loss(linear, error), tx)
parted = wdjax.make_train_step(wdjax.regularized_loss(linear, error), tx, num_micro_batches=2)
sharded = wdjax.shard_step(step, jax.make_mesh(
    (2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)))
folds = wdjax.Folds(*(np.array([[0, 1], [2, 3]]), np.ones((2, 2))) * 2)
def fit_of(model):
    return wdjax.make_fit(model, error, make_tx=lambda h: tx, num_epochs=1, batch_size=2)
fit_and_score = wdjax.make_fit_and_score(fit_of(mlp), wdjax.make_score(mlp, loss=error))
def validate(run, data=batch):
    return wdjax.cross_validate(run, grid, data, folds, key=key)
def pure(run, data=batch):
    return wdjax.cross_validate_pure(run, grid, data, folds, key=key)
jax.monitoring.register_event_duration_secs_listener(listen)
before = sorted(map(str, pathlib.Path().rglob("*")))
answers = {}

def answer(name, run):
    compiled.clear()
    told, printed = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(printed):
        try:
            status = run()
        except ValueError as refusal:
            status = str(refusal)
        except BaseException as fault:
            status = repr(fault)
    answers[name] = {
        "status": status,
        "told": told.getvalue(),
        "printed": printed.getvalue(),
        "compiled": len(compiled),
        "written": sorted(set(map(str, pathlib.Path().rglob("*"))) - set(before)),
    }

commands, calls = json.load(sys.stdin)
for words in commands:
    answer(words, lambda: main(shlex.split(words)))
for call in calls:
    answer(call, lambda: eval(call))
json.dump(answers, sys.stdout)
"""


def write_files(folder):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 3)), np.arange(20) % 2
    save = lambda name, inputs, targets: np.savez(folder / name, inputs=inputs, targets=targets)
    holes = x.copy()
    holes[1, 2] = np.nan
    save("holes.npz", holes, y)
    save("lengths.npz", x, y[:19])
    save("negative.npz", x, y - 1)
    save("gaps.npz", x, 2 * y)
    save("fractions.npz", x, y + 0.5)
    save("objects.npz", x, np.array([{}] * 20))
    save("tiny.npz", x, np.array([0] * 17 + [1] * 3))
    (folder / "infinite.csv").write_text("a,label\n1,0\ninf,1\n")
    (folder / "words.csv").write_text("a,label\n1,yes\n2,no\n")
    (folder / "text.csv").write_text("a,label\nx,0\n2,1\n")
    (folder / "mine.py").write_text(
        "import wdjax\n"
        "def make_model(num_outputs): return wdjax.make_mlp(num_outputs)\n"
        "def broken(num_outputs): return 3\n"
    )
    for name in ("full", "other"):
        (folder / name).mkdir()
        (folder / name / "results.json").write_text("{}")


@functools.cache
def answers():
    """What the process said and did for each command and call; it starts once a worker."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "work").mkdir()
        write_files(folder / "work")
        kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
        root = str(pathlib.Path(__file__).parent.parent)
        done = subprocess.run(
            [sys.executable, "-c", PROBE],
            input=json.dumps([list(COMMANDS), list(CALLS)]),
            cwd=folder / "work",
            env=kept
            | {
                "XDG_CACHE_HOME": str(folder / "cache"),
                "PYTHONPATH": root,
                "JAX_NUM_CPU_DEVICES": "2",
                "PYTHONDONTWRITEBYTECODE": "1",
            },
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_that_cannot_run_says_why_in_one_sentence(words):
    answer = answers()[words]
    told = answer["told"].strip()
    assert answer["status"] == 2, (answer["status"], told)
    for expected in COMMANDS[words]:
        assert expected in told
    assert told.startswith("wdjax: ") and "\n" not in told and "Traceback" not in told
    assert answer["printed"] == ""
    assert answer["compiled"] == 0, "it compiled something first"
    assert answer["written"] == []


@pytest.mark.parametrize("call", CALLS)
def test_from_python_it_is_a_value_error_with_the_same_words(call):
    answer = answers()[call]
    assert CALLS[call] in str(answer["status"])
    assert answer["compiled"] == 0 and answer["written"] == []
