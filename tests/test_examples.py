"""The examples in docstrings run, and print what they say."""

import ast
import doctest
import functools
import inspect
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wdjax

PACKAGE = pathlib.Path(wdjax.__file__).parent
IMPORTED = {
    "functools": functools,
    "jax": jax,
    "jnp": jnp,
    "np": np,
    "optax": optax,
    "wdjax": wdjax,
}
"""What the API page says that the examples take as imported."""
MOST_USED = (
    "audit",
    "choose",
    "compare",
    "convert_strength",
    "corrected_decay",
    "cross_entropy",
    "cross_validate",
    "decay_weights",
    "decoupled_decay",
    "describe_decay",
    "grid_product",
    "independent_decay",
    "jit_step",
    "kfold",
    "l1_penalty",
    "l2_penalty",
    "make_fit",
    "make_fit_and_score",
    "make_optimizer",
    "make_score",
    "make_train_step",
    "matrices_only",
    "regularized_loss",
    "resolve_parts",
    "scale_by_parts",
    "sigmoid_weight",
    "squared_error",
)


def _docstrings(path):
    """`(name, docstring)` of a file, its functions and classes; the file's own has no name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    named = (ast.FunctionDef, ast.ClassDef)
    for node in [tree, *(node for node in ast.walk(tree) if isinstance(node, named))]:
        yield getattr(node, "name", ""), ast.get_docstring(node) or ""


EXAMPLES = {
    f"{path.relative_to(PACKAGE).with_suffix('')}:{name}": text
    for path in sorted(PACKAGE.rglob("*.py"))
    for name, text in _docstrings(path)
    if ">>>" in text
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_what_it_says(name):
    example = doctest.DocTestParser().get_doctest(EXAMPLES[name], dict(IMPORTED), name, name, 0)
    said = []
    result = doctest.DocTestRunner(verbose=False).run(example, out=said.append)
    assert result.attempted and not result.failed, "".join(said)


@pytest.mark.parametrize("name", MOST_USED)
def test_the_functions_used_most_have_an_example(name):
    """In their own docstring or, where that is long, in that of their module or package."""
    file = pathlib.Path(inspect.getsourcefile(inspect.unwrap(getattr(wdjax, name))))
    where = str(file.relative_to(PACKAGE).with_suffix(""))
    places = (f"{where}:{name}", f"{where}:", f"{where.split('/')[0]}/__init__:")
    texts = [EXAMPLES.get(place, "") for place in places]
    assert any(f"wdjax.{name}(" in text for text in texts)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_stands_under_its_heading(name):
    before, _ = EXAMPLES[name].split(">>>", 1)
    assert before.rstrip().splitlines()[-1].strip() == "Example:"


def test_the_api_page_says_what_the_examples_take_as_imported():
    root = pathlib.Path(__file__).parent.parent
    text = (root / "docs" / "api.md").read_text(encoding="utf-8")
    code = text.split("The examples begin after these imports:\n\n", 1)[1].split("\n\n")[0]
    exec("\n".join(line.strip() for line in code.splitlines()), names := {})
    del names["__builtins__"]
    assert names == IMPORTED
