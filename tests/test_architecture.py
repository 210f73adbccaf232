"""How the code is laid out: who may import whom, how long things are, what says that it raises."""

import ast
import functools
import itertools
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "wdjax"

# From the bottom up. A module imports from the rows above its own in this list and from its own
# package, never from its neighbours in a row. A longer name stands for itself: `weights.zero` is
# not the rest of `weights`.
LAYERS = (
    ("types", "tables", "moved", "extras", "order", "writing", "printing", "memory"),
    ("checks", "interfaces", "ending", "screen"),
    ("parts", "weights.zero"),
    ("losses", "penalties"),
    ("host_checks", "measures", "weights", "decay", "models"),
    ("step", "sharding", "standard_measures"),
    ("run",),
    ("training", "runners", "loss_kinds"),
    ("diagnostics",),
    ("checkpoint",),
    ("selection",),
    ("data", "exact"),
    ("loop",),
    ("recipe",),
    ("report", "sklearn"),
    ("jobs",),
    ("cli",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

# Two files of one name, and why each of them is called so.
SAME_NAMES = {
    "convert": "in `decay`, the function; in `jobs`, its command",
    "stream": "in `data`, of batches; in `jobs`, a training that reads one",
    "transfer": "in `selection`, of scores; in `jobs`, its command",
    "telemetry": "measured in `diagnostics`, written by `jobs`, drawn in `report`",
}

MAX_LINES_OF_A_FUNCTION = 70
MAX_LINES_OF_A_FILE = 450

# What calls something that can raise, with arguments that it does not refuse.
NEVER_RAISES = {
    "selection.comparison:Comparison.table": "differences of its own choices alone",
    "selection.comparison:Comparison.to_dict": "differences of its own choices alone",
}

# What does not keep a rule yet, by rule. This list only ever shrinks: an entry that keeps its rule
# again fails the test until it is taken out.
NOT_YET: dict[str, set[str]] = {
    "files": {
        "experiments/speed/contestants.py",
        "tests/test_audit.py",
        "tests/test_cli.py",
        "tests/test_cross_validation.py",
        "tests/test_data.py",
        "tests/test_derivations.py",
        "tests/test_evidence.py",
        "tests/test_loop.py",
        "tests/test_losses.py",
        "tests/test_models.py",
        "tests/test_parts_features.py",
        "tests/test_training.py",
        "tests/test_weights.py",
    },
    "functions": {"tests/synthetic_results.py:synthetic_results"},
}

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}
FILES = sorted(
    path for folder in ("wdjax", "tests", "experiments") for path in (ROOT / folder).rglob("*.py")
)


def test_every_module_has_a_layer_and_every_layer_a_module():
    assert [name for name in MODULES if _layer(name) is None] == []
    assert _beyond("layers", {name for name in RANK if name not in MODULES}) == set()


def test_no_module_imports_upwards_or_from_its_neighbour():
    upward = {
        f"{name} imports {other}"
        for name in MODULES
        for other in _imports(name)
        if _layer(other) != _layer(name) and _rank(other) >= _rank(name)
    }
    assert _beyond("imports", upward) == set()


def test_no_modules_import_one_another_in_a_circle():
    graph = {name: _with_packages(name, _imports(name)) for name in MODULES}
    while leaves := {name for name, others in graph.items() if not others & graph.keys()}:
        graph = {name: others for name, others in graph.items() if name not in leaves}
    assert graph == {}


def test_nothing_inside_the_package_imports_its_public_surface():
    surface = {
        f"{name} imports {imported}"
        for name in MODULES
        for node in ast.walk(_tree(MODULES[name]))
        for module, imported in _imported(node)
        if not module and imported not in MODULES
    }
    assert surface == set()


def test_an_import_inside_a_function_says_that_it_is_for_start_up_time():
    unsaid = set()
    for name, path in MODULES.items():
        lines = path.read_text().splitlines()
        for node in _late_imports(_tree(path)):
            if not _says_why(lines, node.lineno - 1):
                unsaid.add(f"{name}: {ast.unparse(node)}")
    assert _beyond("late imports", unsaid) == set()


def test_no_file_is_longer_than_a_reader_holds():
    long = {
        str(path.relative_to(ROOT))
        for path in FILES
        if len(path.read_text().splitlines()) > MAX_LINES_OF_A_FILE
    }
    assert _beyond("files", long) == set()


def test_no_function_is_longer_than_a_screen():
    long = {
        f"{path.relative_to(ROOT)}:{node.name}"
        for path in FILES
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno + 1 > MAX_LINES_OF_A_FUNCTION
    }
    assert _beyond("functions", long) == set()


def test_what_can_raise_says_so():
    silent = set()
    for name in MODULES:
        for path, docs, node in _public(name):
            if _can_raise(name, node) and not any("Raises:" in doc for doc in docs):
                silent.add(f"{name}:{path}")
    assert _beyond("raises", silent - NEVER_RAISES.keys()) == set()
    assert NEVER_RAISES.keys() <= silent


def test_two_modules_of_one_name_have_a_reason():
    last = lambda name: name.rpartition(".")[2]
    homes = {name: list(same) for name, same in itertools.groupby(sorted(MODULES, key=last), last)}
    assert {name for name, same in homes.items() if len(same) > 1} == SAME_NAMES.keys()


@pytest.mark.parametrize(
    ("body", "raises"),
    [
        ("def f(x):\n  g(x)\ndef g(x):\n  raise ValueError(x)", True),
        ("def f(x):\n  raise ValueError(x)", True),
        ("def f(x):\n  def g():\n    raise ValueError(x)\n  return g", True),
        ("def f(x):\n  return _h(x)\ndef _h(x):\n  _i(x)\ndef _i(x):\n  raise TypeError(x)", True),
        ("from wdjax.checks import check_strength\ndef f(x):\n  check_strength('x', x)", True),
        ("from wdjax import checks\ndef f(x):\n  checks.check_strength('x', x)", True),
        ("def f(x):\n  try:\n    x()\n  except OSError:\n    raise\n", False),
        ("def f(x):\n  return x", False),
    ],
)
def test_the_search_for_raises_finds(body, raises):
    tree = ast.parse(body)
    assert _can_raise_in(tree, tree.body[-1] if "def _h" not in body else tree.body[0]) == raises


def _beyond(rule, entries):
    """What breaks a rule and is not in `NOT_YET`, and what is there and keeps the rule."""
    return entries ^ NOT_YET.get(rule, set())


# ----- who imports whom


def _layer(name):
    """The longest name in `LAYERS` that this module is, or lies in."""
    while name and name not in RANK:
        name = name.rpartition(".")[0]
    return name or None


def _rank(name):
    return RANK[_layer(name)]


@functools.cache
def _tree(path):
    return ast.parse(path.read_text())


@functools.cache
def _imports(name):
    """The modules of the package that this one imports, at its top or inside a function."""
    found = set()
    for node in _nodes_at_run_time(_tree(MODULES[name])):
        for module, imported in _imported(node):
            whole = f"{module}.{imported}" if module else imported
            found.add(whole if whole in MODULES else module)
    return frozenset(found - {"", name})


def _imported(node):
    """`(module, name)` without `wdjax.`, a pair for each name of an import of the package."""
    if isinstance(node, ast.ImportFrom) and re.match(r"wdjax(\.|$)", node.module or ""):
        module = node.module.removeprefix("wdjax").removeprefix(".")
        return [(module, alias.name) for alias in node.names]
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names if re.match(r"wdjax\.", alias.name)]
        return [(name.removeprefix("wdjax."), "") for name in names]
    return []


def _nodes_at_run_time(tree):
    """All nodes but those under `if TYPE_CHECKING:`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from _nodes_at_run_time(node)


def _with_packages(name, imports):
    """Python runs a package before a module in it; a module's own package has begun to run."""
    packages = {".".join(other.split(".")[:end]) for other in imports for end in (1, 2)}
    own = {".".join(name.split(".")[:end]) for end in range(1, name.count(".") + 1)}
    return (imports | packages) & MODULES.keys() - own - {name}


def _late_imports(tree):
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if _imported(node):
                    yield node


def _says_why(lines, at):
    """A comment on its line, or above the lines of imports that it stands among."""
    if "# start-up" in lines[at].lower():
        return True
    while at and re.match(r"\s*(import|from) ", lines[at]):
        at -= 1
    return bool(re.match(r"\s*#.*start-up", lines[at]))


# ----- who raises


def _public(name):
    """`(path, docstrings, node)` of each public function, method and constructor of a module."""
    for node in _tree(MODULES[name]).body:
        if getattr(node, "name", "_").startswith("_"):
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, [ast.get_docstring(node) or ""], node
        elif isinstance(node, ast.ClassDef):
            yield from _methods(node)


def _methods(owner):
    of_class = ast.get_docstring(owner) or ""
    for node in owner.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        doc = ast.get_docstring(node) or ""
        if node.name in ("__init__", "__post_init__", "__new__"):
            yield f"{owner.name}", [of_class, doc], node
        elif not node.name.startswith("_"):
            yield f"{owner.name}.{node.name}", [doc], node


def _can_raise(name, node):
    return _can_raise_in(_tree(MODULES[name]), node)


def _can_raise_in(tree, node, seen=()):
    """By itself, through a function or method of its own module, or a check of another module."""
    own = _functions_of(tree)
    elsewhere = _checks_of_others(tree)
    for inner in ast.walk(node):
        if isinstance(inner, ast.Raise) and inner.exc is not None:
            return True
        if not isinstance(inner, ast.Call):
            continue
        called = ast.unparse(inner.func).removeprefix("self.")
        if called in own and called not in seen:
            seen = (*seen, called)
            if _can_raise_in(tree, own[called], seen):
                return True
        module, _, function = elsewhere.get(called, called).rpartition(".")
        if module in MODULES and function in _raising(module):
            return True
    return False


@functools.cache
def _functions_of(tree):
    """The module's functions and methods by name; what a class is called is its constructor."""
    owners = [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]
    found = {}
    for owner in owners:
        for node in owner.body:
            if isinstance(node, ast.FunctionDef):
                is_constructor = node.name in ("__init__", "__post_init__", "__new__")
                found[owner.name if is_constructor else node.name] = node
    return found


@functools.cache
def _checks_of_others(tree):
    """What checks are called here: `check_strength` -> `checks.check_strength`."""
    return {
        alias.asname or alias.name: f"{node.module.removeprefix('wdjax.')}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and re.match(r"wdjax\.", node.module or "")
        for alias in node.names
        if alias.name.startswith("check_")
        or node.module in ("wdjax.checks", "wdjax.interfaces", "wdjax.host_checks")
    }


@functools.cache
def _raising(module):
    tree = _tree(MODULES[module])
    return {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and _can_raise_in(tree, node)
    }
