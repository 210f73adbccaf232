"""What is no Model and no Batch: the message says how to write one."""

import inspect
from typing import Any

import jax
import numpy as np

from wdjax.types import Batch, Model

_LIBRARIES = ("flax.linen", "flax.nnx", "equinox", "haiku", "torch")

_PLAIN = (
    "Model(init, apply) with init(key, inputs) -> (params, model_state) and "
    "apply(params, model_state, inputs, *, key, train) -> (outputs, model_state), or wrap a flax "
    "module: from_linen, from_nnx; an equinox module: from_equinox; haiku's functions: from_pair"
)
_BATCH = (
    "Batch(inputs, targets, weights), weights np.ones(len(targets), np.float32) where all "
    "examples count alike"
)


def check_model(name: str, model: Any) -> None:
    """Checks that `model` is a `Model`.

    Raises:
      ValueError: if it is not; the message says how to write one from what was given.
    """
    if not isinstance(model, Model):
        raise ValueError(
            f"`{name}` must be a Model, got {what(model)}; write {way_to_model(model)}."
        )


def check_model_or_maker(name: str, model: Any) -> None:
    """Checks that `model` is a `Model`, or may be a function `hparams -> Model`.

    Raises:
      ValueError: if it is neither; the message says how to write one from what was given.
    """
    if isinstance(model, Model):
        return
    if library_of(model) is not None or not callable(model):
        check_model(name, model)
    if not takes(model, 1):
        raise ValueError(
            f"`{name}` must be a Model, got a function, and a function here is `hparams -> Model`, "
            f"of one argument; write {_PLAIN}."
        )


def check_apply(name: str, apply_fn: Any) -> None:
    """Checks that `apply_fn` is a `Model` or a plain function `(params, inputs) -> outputs`.

    Raises:
      ValueError: if it is neither; the message says how to write one from what was given.
    """
    if isinstance(apply_fn, Model):
        return
    if library_of(apply_fn) is not None or not callable(apply_fn):
        raise ValueError(
            f"`{name}` must be a Model or a function (params, inputs) -> outputs, got "
            f"{what(apply_fn)}; write {way_to_model(apply_fn)}."
        )


def check_params(name: str, params: Any) -> None:
    """Checks that `params` are no model.

    Raises:
      ValueError: if they are one; the message says how to get its params.
    """
    if isinstance(params, Model) or library_of(params) in ("flax.linen", "flax.nnx"):
        way = "model" if isinstance(params, Model) else way_to_model(params)
        also = "" if isinstance(params, Model) else f"{way}, then "
        raise ValueError(
            f"`{name}` are the model's weights, got {what(params)}; write {also}"
            "params, model_state = model.init(key, inputs)."
        )


def check_batch(name: str, batch: Any) -> None:
    """Checks that `batch` has inputs, targets and weights, each a tree of arrays of numbers.

    Raises:
      ValueError: if it has not; the message says how to write one.
    """
    if not all(hasattr(batch, field) for field in Batch._fields):
        raise ValueError(f"`{name}` must be a Batch, got {what(batch)}; write {_BATCH}.")
    if batch.weights is None:
        raise ValueError(
            f"`{name}.weights` are None; write np.ones(len(targets), np.float32) where all "
            "examples count alike."
        )
    for field in Batch._fields:
        for leaf in jax.tree.leaves(getattr(batch, field)):
            if isinstance(leaf, bool | int | float | complex | str):
                kind = "words" if isinstance(leaf, str) else "numbers"
                raise ValueError(
                    f"`{name}.{field}` holds Python {kind}, as a list of them does; write "
                    "np.asarray(...)."
                )
            if getattr(getattr(leaf, "dtype", None), "kind", "f") in "OUSMm":
                raise ValueError(
                    f"`{name}.{field}` holds {leaf.dtype}; give numbers: labels 0, 1, ... for "
                    "words, by np.unique(words, return_inverse=True)[1]."
                )


def check_run(name: str, run: Any) -> None:
    """Checks that `run` is a function, not the model that it should train.

    Raises:
      ValueError: if it is a model, or no function; the message says how to write one.
    """
    if isinstance(run, Model) or library_of(run) is not None or not callable(run):
        raise ValueError(
            f"`{name}` must be a function, got {what(run)}; write make_fit_and_score("
            "make_fit(model, ...), make_score(model, loss=...))."
        )


def library_of(value: Any) -> str | None:
    """The library whose module `value` is, a class or an instance; None for anything else."""
    kind = value if isinstance(value, type) else type(value)
    for base in kind.__mro__:
        for library in _LIBRARIES:
            module = getattr(base, "__module__", "")
            if base.__name__ == "Module" and f"{module}.".startswith(f"{library}."):
                return library
    return None


def what(value: Any) -> str:
    """`value` in words: its kind, and what it is called."""
    library = library_of(value)
    if library is not None:
        return f"the {library} module {_name(value)}"
    if isinstance(value, Model):
        return "a Model"
    if isinstance(value, np.ndarray | jax.Array):
        return "an array"
    if inspect.isroutine(value):
        return "a function"
    if isinstance(value, tuple | list | dict):
        return f"a {type(value).__name__}"
    return f"{value!r} of {type(value).__name__}"


def way_to_model(value: Any) -> str:
    """How a `Model` is written from what was given."""
    library, name = library_of(value), _name(value)
    if library == "flax.linen":
        return f"from_linen({name}(...))"
    if library == "flax.nnx":
        return f"from_nnx(lambda rngs: {name}(..., rngs=rngs))"
    if library == "equinox":
        return f"from_equinox(lambda key: {name}(..., key=key))"
    if library == "haiku":
        return "from_pair(*hk.transform(forward))"
    return _PLAIN


def _name(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else type(value).__name__


def takes(function: Any, number: int, **options: Any) -> bool:
    """Whether it can be called with that many arguments and options, as far as can be told."""
    try:
        inspect.signature(function).bind(*range(number), **options)
    except TypeError:
        return False
    except ValueError:
        return True  # No signature to look at.
    return True
