"""A user's own file that fails, exits, recurses or gives nonsense: one sentence, file and line."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wdjax
from wdjax.checks import LabelError
from wdjax.jobs import AuditOptions, run_audit
from wdjax.recipe import AugmentationKind, DecayKind, ModelKind, load_own
from wdjax.recipe.guard import OwnCodeError, guarded
from wdjax.recipe.kinds import TABLES

HEAD = "import sys, wdjax.recipe\nimport jax, jax.numpy as jnp, numpy as np, wdjax\n\n"

# A linear model, of which each case replaces a part.
LINEAR = """
def make_model(num_outputs):
    def init(key, inputs):
        return {init}
    def apply(params, state, inputs, *, key, train):
        {before}
        x = inputs.reshape(len(inputs), -1)
        return {apply}
    return wdjax.Model(init, apply)
"""


def linear(
    init="{'w': jnp.zeros((64, num_outputs))}, {}", apply="x @ params['w'], state", before=""
):
    text = LINEAR.replace("{init}", init).replace("{apply}", apply)
    return text.replace("{before}", before or "pass")


@pytest.fixture(autouse=True)
def tables():
    """What a file defines is entered in them; afterwards they are as they were."""
    before = {sort: dict(table) for sort, (_, table) in TABLES.items()}
    yield
    for sort, (_, table) in TABLES.items():
        table.clear()
        table.update(before[sort])


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """`refused(source, words, model="my.py:make_model")`: the audit of digits says `words`."""
    monkeypatch.chdir(tmp_path)

    def check(source, words, **options):
        source = HEAD + source if isinstance(source, str) else source
        source = source.encode() if isinstance(source, str) else source
        pathlib.Path("my.py").write_bytes(source)
        options = {"model": "my.py:make_model", "strength": 0.1} | options
        with pytest.raises(ValueError, match=words) as found:
            run_audit(AuditOptions(**options))
        assert len(str(found.value)) < 1000
        assert [path.name for path in tmp_path.iterdir()] == ["my.py"]
        return found.value

    return check


@pytest.mark.parametrize(
    "source, words",
    [
        ("1 / 0", "running the file failed: line 4: ZeroDivisionError: division by zero"),
        ("def f():\n    return {}['a']\nf()", "line 5 in f: KeyError: 'a'"),
        ("sys.exit('enough')", "line 4: SystemExit: enough"),
        ("exit()", "line 4: SystemExit"),
        ("raise SystemExit", "line 4: SystemExit"),
        (
            "class Stop(BaseException): pass\nraise LookupError('x' * 5000)",
            "line 5: LookupError: x",
        ),
        ("def f(:\n    pass", "running the file failed: line 4: SyntaxError: invalid syntax"),
        ("x = 'a", "line 4: SyntaxError: unterminated string"),
        ("  x = 1", "line 4: IndentationError"),
        ("def f():\n    f()\nf()", "line 5 in f: RecursionError"),
        ("import nowhere_at_all", "line 4: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("open('none.txt')", "line 4: FileNotFoundError"),
        (b"x = '\xff'\n", "running the file failed: .*SyntaxError: .*(utf-8|unicode)"),
        (b"x = 1\0\n", "running the file failed: .*null bytes"),
        (b"# coding: nonsense\nx = 1\n", "SyntaxError: .*(encoding|coding)"),
        (
            "x = " + "(" * 300 + ")" * 300,
            "running the file failed: .*(SyntaxError|MemoryError|Recur)",
        ),
        ("", "'my.py' defines no function 'make_model'"),
        ("def __getattr__(name): raise OSError('no')", "line 4 in __getattr__: OSError: no"),
    ],
)
def test_a_file_that_cannot_be_run_is_refused_by_its_line(refused, source, words):
    refused(source, words)


def test_ctrl_c_in_a_users_file_is_ctrl_c(tmp_path):
    (tmp_path / "my.py").write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load_own("model", f"{tmp_path}/my.py:make_model")


def test_a_folder_a_pipe_and_an_impossible_name_are_no_file(tmp_path):
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(ValueError, match="'.*folder.py' is a folder; give FILE.py:FUNCTION"):
        load_own("model", f"{tmp_path}/folder.py:make_model")
    for path in (f"{'x' * 300}.py", "a\0b.py", "/dev/zero", ""):
        with pytest.raises(ValueError, match="there is no file '.*'; give FILE.py:FUNCTION"):
            load_own("model", f"{path}:make_model")


def test_a_file_changed_within_a_second_is_read_again_and_nothing_is_left_beside_it(tmp_path):
    """Python's own cache knows a file by its second and its length."""
    for number in (1, 2, 3):
        (tmp_path / "my.py").write_text(f"def make_model(num_outputs): return {number}\n")
        assert load_own("model", f"{tmp_path}/my.py:make_model").make(1) == number
    assert [path.name for path in tmp_path.iterdir()] == ["my.py"]


@pytest.mark.parametrize(
    "source, words",
    [
        ("def make_model():\n    return 1", r"or a ModelKind; got a function of \(\)"),
        ("make_model = 3", "got 3 of int"),
        ("class A:\n    def __repr__(self): 1 / 0\nmake_model = A()", "got an object of A"),
        (
            "def make_model(n):\n    raise ValueError('no\\nway')",
            "line 5 in make_model: ValueError: no",
        ),
        ("def make_model(n):\n    return make_model(n)", "line 5 in make_model: RecursionError"),
        ("def make_model(n):\n    sys.exit(3)", "line 5 in make_model: SystemExit: 3"),
        (
            "def make_model(n):\n    return wdjax.make_mlp(0)",
            "line 5 in make_model: ValueError: `num_out",
        ),
        ("def make_model(n): return None", "must return a wdjax Model.*got None of NoneType"),
        ("def make_model(n): return [0] * 10**6", "must return a wdjax Model.* got a list"),
        (
            "import flax.linen as nn\ndef make_model(n): return nn.Dense(n)",
            r"got the flax.linen module Dense; write from_linen\(Dense\(...\)\)",
        ),
        ("make_model = wdjax.recipe.ModelKind(3)", "line 4: ValueError: `make` must be a function"),
        ("make_model = wdjax.recipe.ModelKind(len, reads=('sound',))", "`reads` must be one of"),
        ("make_model = wdjax.recipe.ModelKind(len)", "TypeError: object of type 'int' has no len"),
    ],
)
def test_a_function_that_makes_no_model_is_refused_by_its_line(refused, source, words):
    refused(source, words)


@pytest.mark.parametrize(
    "parts, words",
    [
        (
            {"init": "None"},
            r"init, called .* it failed: must return \(params, model_state\), got None of NoneType",
        ),
        ({"init": "1, 2, 3"}, r"must return \(params, model_state\), got a tuple of 3"),
        ({"init": "{'w': 'words'}, {}"}, r"must return arrays .*got 'words' of str"),
        ({"init": "{'w': object()}, {}"}, r"must return arrays .*got <object object"),
        (
            {"init": "{'w': jnp.zeros((64, 10), int)}, {}"},
            "params of floating dtype, got int32 at w",
        ),
        ({"init": "1 / 0"}, "line 7 in init: ZeroDivisionError"),
        ({"init": "init(key, inputs)"}, "line 7 in init: RecursionError"),
        (
            {"apply": "x @ params['w']"},
            r"apply, called .* must return \(outputs, model_state\), got an array",
        ),
        ({"apply": "x @ params['v'], state"}, "line 11 in apply: KeyError: 'v'"),
        ({"apply": "x @ jnp.ones((3, 3)), state"}, "line 11 in apply: TypeError: .*dot_general"),
        ({"apply": "(x @ params['w'])[0], state"}, r"outputs of shape \(1, 10\).*got \(10,\)"),
        ({"apply": "(x @ params['w'])[:, :4], state"}, r"one number a class.*got \(1, 4\)"),
        ({"apply": "jnp.argmax(x @ params['w'], -1), state"}, r"got \(1,\)"),
        ({"apply": "(x @ params['w']).astype(int), state"}, "outputs of floating dtype, got int32"),
        (
            {"apply": "x @ params['w'], {'n': x}"},
            "model_state with the shapes it was given, {}; got",
        ),
        ({"apply": "float(x[0, 0]), state"}, "line 11 in apply: ConcretizationTypeError"),
        (
            {"before": "if train: raise OSError('only in training')"},
            "line 9 in apply: OSError: only",
        ),
        ({"before": "if x_ > 0: pass"}, "line 9 in apply: NameError"),
        ({"before": "if inputs.sum() > 0: pass"}, "line 9 in apply: TracerBoolConversionError"),
    ],
)
def test_a_model_that_cannot_be_applied_is_refused_by_its_line(refused, parts, words):
    refused(linear(**parts), words)


def test_a_model_whose_functions_take_other_arguments_is_told_where_they_stand(refused):
    source = (
        "def make_model(n):\n    def init(key): return {}, {}\n    return wdjax.Model(init, init)"
    )
    refused(
        source,
        "init, called .* line 5 in init: TypeError: .*takes 1 positional argument but 2 were",
    )


def test_a_model_of_numbers_gives_outputs_that_the_loss_can_take(refused):
    wrong = linear(
        init="{'w': jnp.zeros((10, num_outputs))}, {}", apply="jnp.tile(x @ params['w'], 3), state"
    )
    refused(
        wrong,
        r"the loss squared_error cannot take its outputs of shape \(1, 3\)",
        data="diabetes",
    )


def test_a_model_that_fits_is_audited(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("my.py").write_text(HEAD + linear())
    report = run_audit(AuditOptions(model="my.py:make_model", strength=0.1))
    assert [leaf.path for leaf in report.leaves] == ["w"]


@pytest.mark.parametrize(
    "option, source, words",
    [
        ("loss", "def f(outputs, targets):\n    return outputs / {}", "line 5 in f: TypeError"),
        ("loss", "def f(outputs, targets):\n    sys.exit()", "line 5 in f: SystemExit"),
        ("loss", "def f(outputs, targets): return 'a'", "not a valid JAX type"),
        ("measure", "def f(outputs, targets):\n    raise KeyError(1)", "line 5 in f: KeyError: 1"),
        ("augment", "def f(key, image):\n    return 1 / 0", "line 5 in f: ZeroDivisionError"),
        ("augment", "def f(key, image):\n    return image", r"it gave \(8, 8, 1\), not"),
        (
            "decay",
            "def f(s, l, m, p):\n    return 1 / 0",
            "at strength 1 it failed: line 5 in f: Zer",
        ),
        ("decay", "def f(s, l, m, p): return 'a'", "at strength 1 it failed: .*ValueError"),
        ("decay", "def f(s, l, m, p): return None", "at strength 1 it failed: .*TypeError"),
        ("decay", "def f(s, l, m, p): return float('nan')", "at strength 1 and .* it gave nan"),
        (
            "decay",
            "from wdjax.recipe import DecayKind\n"
            "f = DecayKind(penalty=lambda s, parts: lambda params: params['nowhere'])",
            "line 5 in <lambda>: KeyError: 'nowhere'",
        ),
    ],
)
def test_every_other_function_of_ones_own_is_refused_by_its_line(refused, option, source, words):
    refused(source, f"`{option}` 'my.py:f'.*{words}", model="mlp", **{option: "my.py:f"})


def test_what_is_raised_inside_a_trace_later_has_its_line_too(tmp_path):
    """A model that fails on the second call, as one does that reads a clock or a file."""
    (tmp_path / "my.py").write_text(
        HEAD + "calls = []\n" + linear(before="calls.append(1); assert len(calls) < 2")
    )
    model = load_own("model", f"{tmp_path}/my.py:make_model").make(10)
    params, state = model.init(jax.random.key(0), jnp.ones((1, 64)))
    apply = jax.jit(lambda p, x: model.apply(p, state, x, key=None, train=True)[0])
    assert apply(params, jnp.ones((1, 64))).shape == (1, 10)
    with pytest.raises(OwnCodeError, match="apply: line 10 in apply: AssertionError"):
        apply(params, jnp.ones((2, 64)))


def test_a_guard_keeps_results_names_and_what_is_said_of_labels():
    def f(x, y=2):
        return x + y

    assert guarded("f", f)(1) == 3 and guarded("f", f).__name__ == "f"
    model = guarded("m", lambda n: wdjax.make_mlp(n))(3)
    params, _ = model.init(jax.random.key(0), jnp.ones((1, 2)))
    assert params["head"]["kernel"].shape == (100, 3)
    with pytest.raises(LabelError, match="labels 0..1"):
        guarded("loss", wdjax.cross_entropy)(jnp.zeros((1, 2)), np.array([5]))

    def hungry():
        raise MemoryError

    with pytest.raises(MemoryError):
        guarded("f", hungry)()


@pytest.mark.parametrize(
    "make, words",
    [
        (
            lambda: ModelKind(wdjax.make_mlp, defaults=3),
            "`defaults` must be a ModelDefaults, got 3",
        ),
        (lambda: ModelKind(wdjax.make_mlp, reads=3), "`reads` must be a tuple of kinds of data"),
        (lambda: AugmentationKind(3), r"`make` must be a function make\(side\) -> Augmentation"),
        (lambda: DecayKind(rate=3), r"`rate` must be a function \(strength, learning_rate, mul"),
        (lambda: DecayKind(penalty=3), r"`penalty` must be a function \(strength, parts\)"),
    ],
)
def test_a_record_of_the_wrong_kind_is_refused_where_it_is_made(make, words):
    with pytest.raises(ValueError, match=words):
        make()
