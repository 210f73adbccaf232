"""A user's own loss, decay, augmentation, measure or model: a Python file and a name in it."""

import dataclasses
import importlib.machinery
import importlib.util
import inspect
import math
import os
import pathlib
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax

from wdjax.checks import check_one_of, nearest
from wdjax.ending import OWN_MODULE
from wdjax.interfaces import takes, way_to_model
from wdjax.loss_kinds import LOSS_KINDS, LossKind
from wdjax.parts import leaf_path
from wdjax.recipe.build import Recipe, recipe_measures, recipe_model
from wdjax.recipe.guard import guarded, reason_of, shown
from wdjax.recipe.kinds import (
    AUGMENTATION_KINDS,
    DECAY_KINDS,
    TABLES,
    AugmentationKind,
    DecayKind,
    ModelKind,
    default_of,
)
from wdjax.types import Batch, Model, is_inexact

OWN_SORTS = {
    "model": "a function num_outputs -> Model, or a ModelKind",
    "loss": "a function (outputs, targets) -> losses[batch], or a LossKind",
    "decay": "a function (strength, learning_rate, multiplier, peak) -> rate, or a DecayKind",
    "augment": "a function (key, image) -> (image, strength), or an AugmentationKind",
    "measure": "a wdjax.Measure, or a function (outputs, targets) -> values[batch]",
}
"""What can be given as `FILE.py:NAME`, by option, and what must be found there."""

_NUM_ARGUMENTS = {"model": 1, "loss": 2, "decay": 4, "augment": 2, "measure": 2}
_FUNCTIONS_OF = {
    "model": ("make",),
    "loss": ("function",),
    "decay": ("rate", "penalty"),
    "augment": ("make",),
    "measure": ("function",),
}
_RATE_OF_RANGE = 1e-3
_MISSING = object()


def is_own(name: Any) -> bool:
    """Whether it is `FILE.py:NAME` and not a name in a table."""
    return isinstance(name, str) and ":" in name


def load_own(sort: str, name: str, *, like: str | None = None) -> Any:
    """The record of that name: one in the table, or a user's own from `FILE.py:NAME`.

    The file is run, and what it defines there is entered in the table of its sort under the words
    it was given by, so that a recipe can name it. A bare function becomes a record:

    - a loss, with the targets and measures of the loss named `like`, that of the data;
    - a decay, with `learning_rate` and `multiplier` given as this step's numbers, and a range of
      strengths that removes 1e-6 to 0.1 of a weight a step at a learning rate of 1e-3, as those
      of the table do;
    - a model, an augmentation or a measure, as they stand.

    Whenever one of its functions is called, here or inside a trace, what it raises becomes an
    `OwnCodeError`, a `ValueError` that names the file and the line.

    Args:
      sort: one of `OWN_SORTS`.
      name: of a record in the table, or `FILE.py:NAME`.
      like: of a bare loss only; by default the first in the table.

    Raises:
      ValueError: for an unknown name, a missing file or name, a file that fails to run or asks
        the process to end, or something else than the sort asks for, by file, line and name.
    """
    table = TABLES[sort][1]
    if not is_own(name):
        check_one_of(sort, name, table)
        return table[name]
    table[name] = _as_record(sort, name, _find(sort, name), like)
    return table[name]


def load_make_model(name: str) -> Callable[..., Model]:
    """`make_model` of one of the package's models by name, or of the user's own.

    Raises:
      ValueError: as `load_own`.
    """
    return load_own("model", name).make


def check_given_again(what: str, saved: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuses to run code that only a folder names: a user's own choices are to be given again.

    Args:
      what: the option and the folder, as the message begins.
      saved: the options a run was begun with.
      given: those of this command.

    Raises:
      ValueError: for the first that `saved` took from a file and `given` does not hold.
    """
    for sort in OWN_SORTS:
        if is_own(saved.get(sort)) and not is_own(given.get(sort)):
            raise ValueError(
                f"{what} was trained with the {sort} {saved[sort]!r}; give it again with --{sort}: "
                "a folder is not trusted to name code to run."
            )


def check_own_model(name: str, model: Any, recipe: Recipe, batch: Batch) -> None:
    """Tries a user's own model on the shapes of a few examples; nothing is run.

    Args:
      name: as it was given.
      model: what its function gave.
      recipe: whose loss and number of outputs it is to fit.
      batch: a few examples.

    Raises:
      ValueError: for what is no `Model`, fails on them, or gives what the loss cannot take or the
        next step could not go on with, by file and name.
    """
    check_is_model(name, model)
    key = jax.eval_shape(lambda: jax.random.key(0))
    params, model_state = _shapes_of(f"`model` {name!r}: init,", model.init, key, batch.inputs)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not is_inexact(leaf):
            raise ValueError(
                f"`model` {name!r}: init must return params of floating dtype, got {leaf.dtype} at "
                f"{leaf_path(path)}; what is not trained belongs into the model_state."
            )
    for train in (False, True):
        apply = lambda params, state, inputs, key, train=train: model.apply(
            params, state, inputs, key=key, train=train
        )
        of = params, model_state, batch.inputs, key if train else None
        outputs, new_state = _shapes_of(f"`model` {name!r}: apply,", apply, *of)
        if _shapes(new_state) != _shapes(model_state):
            raise ValueError(
                f"`model` {name!r}: apply must return the model_state with the shapes it was "
                f"given, {_shapes(model_state)}; got {_shapes(new_state)} with train={train}."
            )
        kind, leaves = LOSS_KINDS[recipe.loss], jax.tree.leaves(outputs)
        expected = (*batch.targets.shape, recipe.num_outputs)
        if not is_own(recipe.loss) and kind.has_classes and _shapes(outputs) != expected:
            raise ValueError(
                f"`model` {name!r}: apply must return outputs of shape {expected}, one number a "
                f"class, for inputs of shape {batch.inputs.shape}; got {_shapes(outputs)}."
            )
        if not all(jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating) for leaf in leaves):
            raise ValueError(
                f"`model` {name!r}: apply must return outputs of floating dtype, got "
                f"{', '.join(str(leaf.dtype) for leaf in leaves)}."
            )
        if not is_own(recipe.loss):
            try:
                jax.eval_shape(kind.function, outputs, batch.targets)
            except Exception as error:
                raise ValueError(
                    f"`model` {name!r}: the loss {recipe.loss} cannot take its outputs of shape "
                    f"{_shapes(outputs)}: {error}"
                ) from error


def check_is_model(name: str, model: Any) -> None:
    """Checks that what the function so named gave is a `Model`.

    Raises:
      ValueError: if it is not; the message says how to write one from what was given.
    """
    if not isinstance(model, Model):
        raise ValueError(
            f"`model` {name!r} must return a wdjax Model(init, apply), got {shown(model)}; write "
            f"{way_to_model(model)}."
        )


def check_own(recipe: Recipe, batch: Batch) -> None:
    """Tries what a recipe has of a user's own beside the model, as `check_own_model` that.

    Raises:
      ValueError: for a function that fails on them or gives another shape, by file and name.
    """
    if not any(map(is_own, (recipe.loss, recipe.decay, *recipe.augment, *recipe.measures))):
        return
    model, key = recipe_model(recipe), jax.eval_shape(lambda: jax.random.key(0))
    params, model_state = jax.eval_shape(model.init, key, batch.inputs)
    outputs, _ = jax.eval_shape(
        lambda *of: model.apply(*of, key=None, train=False), params, model_state, batch.inputs
    )
    per_example = batch.weights.shape
    if is_own(recipe.loss):
        function = LOSS_KINDS[recipe.loss].function
        _try("loss", recipe.loss, per_example, function, outputs, batch.targets)
    scores = recipe_measures(recipe)
    for name in filter(is_own, recipe.measures):
        measure, of = scores[name.rpartition(":")[2]], (outputs, batch.targets)
        if getattr(measure, "per_example", True):
            _try("measure", name, per_example, measure, *of)
        else:
            _try("measure", name, (), measure, *of, batch.weights)
    make_penalty = DECAY_KINDS[recipe.decay].penalty
    if is_own(recipe.decay) and make_penalty is not None:
        penalty = lambda params: make_penalty(1.0, recipe.parts)(params)
        _try("decay", recipe.decay, (), penalty, params)
    for name in filter(is_own, recipe.augment):
        shape = batch.inputs.shape[1:]
        augment = AUGMENTATION_KINDS[name].make(min(shape[:2]))
        image = jax.ShapeDtypeStruct(shape, batch.inputs.dtype)
        _try("augment", name, (shape, ()), augment, key, image)


def _try(sort: str, name: str, expected: Any, function: Callable, *arguments: Any) -> None:
    about = f"`{sort}` {name!r} must be {OWN_SORTS[sort]};"
    found = _shapes(_shapes_of(about, function, *arguments))
    if found != expected:
        raise ValueError(
            f"{about} called with shapes {_shapes(arguments)} it gave {found}, not {expected}."
        )


def _shapes_of(about: str, function: Callable, *arguments: Any) -> Any:
    """What the function gives, in shapes; it is traced."""
    try:
        return jax.eval_shape(function, *arguments)
    except Exception as error:
        raise ValueError(
            f"{about} called with shapes {_shapes(arguments)} it failed: {reason_of(error)}"
        ) from error


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: tuple(leaf.shape), tree)


def _find(sort: str, name: str) -> Any:
    path, attribute = name.rsplit(":", 1)
    about, way = f"`{sort}` {name!r}", "give FILE.py:FUNCTION"
    if os.path.isdir(path):
        raise ValueError(f"{about}: {path!r} is a folder; {way}.")
    if not os.path.isfile(path):
        raise ValueError(f"{about}: there is no file {path!r}; {way}.")
    module_name = f"{OWN_MODULE}{pathlib.Path(path).stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or not isinstance(spec.loader, importlib.machinery.SourceFileLoader):
        raise ValueError(f"{about}: {path!r} is not a Python file; {way}.")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses, so flax modules too, look up annotations written as strings there.
    sys.modules[module_name] = module
    guarded(f"{about}: running the file failed", _run_file)(path, module)
    found = guarded(about, getattr)(module, attribute, _MISSING)
    if found is _MISSING:
        functions = [n for n, value in vars(module).items() if callable(value)]
        raise ValueError(
            f"{about}: {path!r} defines no function {attribute!r}.{nearest(attribute, functions)}"
        )
    return found


def _run_file(path: str, module: ModuleType) -> None:
    """From its source, now: Python's own cache would be written beside it, and takes a file
    changed within a second, at the same length, for the one before."""
    source = pathlib.Path(path).read_bytes()
    exec(compile(source, path, "exec", dont_inherit=True), module.__dict__)


def _as_record(sort: str, name: str, found: Any, like: str | None) -> Any:
    kind, about = TABLES[sort][0], f"`{sort}` {name!r}"
    if isinstance(found, kind):
        functions = {
            field: guarded(about, getattr(found, field))
            for field in _FUNCTIONS_OF[sort]
            if callable(getattr(found, field))
        }
        return dataclasses.replace(found, **functions)
    if not callable(found) or not takes(found, _NUM_ARGUMENTS[sort]):
        raise ValueError(f"`{sort}` {name!r} must be {OWN_SORTS[sort]}; got {_shown(found)}.")
    found = guarded(about, found)
    maker: Any = found
    records: dict[str, Callable[[], Any]] = {
        "model": lambda: ModelKind(maker),
        "loss": lambda: _loss_like(found, like),
        "decay": lambda: _decay_of(name, found),
        "augment": lambda: AugmentationKind(lambda side: maker),
        "measure": lambda: found,
    }
    return records[sort]()


def _loss_like(function: Any, like: str | None) -> LossKind:
    other = LOSS_KINDS[like or default_of(LOSS_KINDS)]
    return LossKind(function, other.targets, other.measures)


def _decay_of(name: str, function: Any) -> DecayKind:
    """A record of a rate that is written for one step's numbers."""

    def rate(strength: Any, learning_rate: Any, multiplier: Any, peak: Any) -> Any:
        if not (callable(learning_rate) or callable(multiplier)):
            return function(strength, learning_rate, multiplier, peak)
        at = lambda value, step: value(step) if callable(value) else value
        return lambda step: function(strength, at(learning_rate, step), at(multiplier, step), peak)

    try:
        share = float(rate(1.0, _RATE_OF_RANGE, 1.0, _RATE_OF_RANGE))
    except Exception as error:  # What it raised, or gave that is no number.
        raise ValueError(
            f"`decay` {name!r} must be {OWN_SORTS['decay']}; at strength 1 it failed: "
            f"{reason_of(error, function)}."
        ) from error
    if not 0 < share < math.inf:
        raise ValueError(
            f"`decay` {name!r} must be {OWN_SORTS['decay']}, the share of a weight that a step "
            f"removes; at strength 1 and learning rate {_RATE_OF_RANGE:g} it gave {share:g}."
        )
    return DecayKind(rate=rate, strengths=(1e-6 / share, 1e-1 / share))


def _shown(found: Any) -> str:
    if not callable(found):
        return shown(found)
    try:
        return f"a function of {inspect.signature(found)}"
    except (ValueError, TypeError):  # There is none, or none that is one.
        return shown(found)
