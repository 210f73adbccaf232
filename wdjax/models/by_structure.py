"""Modules of other libraries as a `Model`, by what they are: trees with arrays, pairs of functions.

Nothing of equinox or haiku is imported: an equinox module is a tree whose inexact arrays are its
weights and which is called with one example; a haiku-style pair is two functions.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from wdjax.interfaces import library_of, takes, way_to_model, what
from wdjax.types import Model, Params, is_inexact

_IS_NONE = lambda leaf: leaf is None


def from_equinox(make_module: Callable[[Any], Any], *, axis_name: str = "batch") -> Model:
    """An equinox module as a `Model`: its inexact arrays are the params, by the module's own tree.

    Params have the structure of `eqx.filter(module, eqx.is_inexact_array)`, so that paths are
    those of the module's fields, `layers/0/weight`, and `eqx.combine(params, static)` gives the
    module back. The module is called with one example, `module(x, key=key)`, under a `vmap` over
    the batch; in training with `inference` False and a key for each example, else True. What is no
    weight (integer arrays, an `eqx.nn.State`) is the model's state.

    Args:
      make_module: `key -> module`, or `key -> (module, state)` as `eqx.nn.make_with_state` gives
        it; called for every trace, so it must build the same module each time. A module with a
        state is called as `module(x, state, key=key)`.
      axis_name: of the `vmap`, for batch statistics.

    Raises:
      ValueError: for a module that is built already, or one of another library. (What draws in
        training without a key says so itself.)

    Example:
      `from_equinox(lambda key: eqx.nn.MLP(4, 3, 8, 1, key=key))`
    """
    is_built = library_of(make_module) is not None and not isinstance(make_module, type)
    if is_built or not callable(make_module) or not takes(make_module, 1):
        raise ValueError(
            f"`make_module` must be a function `key -> module`, got {what(make_module)}; write "
            f"{way_to_model(make_module)}."
        )

    def init(key: Any, inputs: PyTree) -> tuple[Params, PyTree]:
        del inputs
        module, state = _module_and_state(make_module(key))
        return _weights(module), {"fixed": _others(module), "state": state}

    def apply(
        params: Params, model_state: PyTree, inputs: PyTree, *, key: Any = None, train: bool = False
    ) -> tuple[PyTree, PyTree]:
        module, has_state = _skeleton(make_module)
        module = _with_arrays(module, params, model_state["fixed"], inference=not train)
        num_examples = len(jax.tree.leaves(inputs)[0])
        options, axes = {}, {}
        if "key" in inspect.signature(type(module).__call__).parameters:
            keys = None if key is None or not train else jax.random.split(key, num_examples)
            options, axes = {"key": keys}, {"key": None if keys is None else 0}
        if not has_state:
            one = lambda x, options: module(x, **options)
            outputs = jax.vmap(one, in_axes=(0, axes), axis_name=axis_name)(inputs, options)
            return outputs, model_state
        one = lambda x, state, options: module(x, state, **options)
        over = jax.vmap(one, in_axes=(0, None, axes), out_axes=(0, None), axis_name=axis_name)
        outputs, state = over(inputs, model_state["state"], options)
        return outputs, {**model_state, "state": state} if train else model_state

    return Model(init, apply)


def from_pair(
    init: Callable[..., Any],
    apply: Callable[..., Any],
    *,
    has_state: bool = False,
    takes_key: bool = True,
    train_argument: str | None = None,
) -> Model:
    """Two functions in haiku's manner, `hk.transform` or `hk.transform_with_state`, as a `Model`.

        params = init(key, inputs);          outputs = apply(params, key, inputs)
        params, state = init(key, inputs);   outputs, state = apply(params, state, key, inputs)

    Args:
      init, apply: the pair, `from_pair(*hk.transform(forward))`.
      has_state: whether there is one, as with `hk.transform_with_state`.
      takes_key: whether `apply` takes a key; not behind `hk.without_apply_rng`.
      train_argument: a keyword that both take and that is True in training, such as
        `is_training`; by default none is passed. `init` gets it True, so that what training alone
        needs is made.

    Raises:
      ValueError: for what is no function; for an `apply` of another number of arguments.
    """
    for name, function in (("init", init), ("apply", apply)):
        if not callable(function) or library_of(function) is not None:
            raise ValueError(f"`{name}` must be a function, got {what(function)}.")
    form = ["params", *["state"] * has_state, *["key"] * takes_key, "inputs"]
    if not takes(apply, len(form), **({} if train_argument is None else {train_argument: True})):
        raise ValueError(
            f"`apply` must take ({', '.join(form)}"
            f"{f', *, {train_argument}' if train_argument else ''}), and does not: `has_state`, "
            "`takes_key` and `train_argument` say what it takes."
        )

    def options(train: bool) -> dict[str, bool]:
        return {} if train_argument is None else {train_argument: train}

    def model_init(key: Any, inputs: PyTree) -> tuple[Params, PyTree]:
        found = init(key, inputs, **options(True))
        return found if has_state else (found, {})

    def model_apply(
        params: Params, model_state: PyTree, inputs: PyTree, *, key: Any = None, train: bool = False
    ) -> tuple[PyTree, PyTree]:
        state = (model_state,) if has_state else ()
        keys = (key,) if takes_key else ()
        found = apply(params, *state, *keys, inputs, **options(train))
        if not has_state:
            return found, model_state
        outputs, changed = found
        return outputs, changed if train else model_state

    return Model(model_init, model_apply)


def _module_and_state(made: Any) -> tuple[Any, Any]:
    if type(made) is tuple and len(made) == 2:  # A NamedTuple may be a module.
        return made
    return made, None


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray | jax.Array)


def _weights(module: Any) -> Params:
    return jax.tree.map(lambda x: x if _is_array(x) and is_inexact(x) else None, module)


def _others(module: Any) -> PyTree:
    """Its other arrays, in order: what training does not move."""
    return [x for x in jax.tree.leaves(module) if _is_array(x) and not is_inexact(x)]


def _skeleton(make_module: Callable[[Any], Any]) -> tuple[Any, bool]:
    """The module with shapes for arrays, and whether it has a state; nothing is computed."""
    kept = []

    def build(key: Any) -> list:
        module, state = _module_and_state(make_module(key))
        leaves, structure = jax.tree.flatten(module)
        kept[:] = [leaves, structure, state is not None]
        return [leaf for leaf in leaves if _is_array(leaf)]

    shapes = iter(jax.eval_shape(build, jax.eval_shape(lambda: jax.random.key(0))))
    leaves, structure, has_state = kept
    filled = [next(shapes) if _is_array(leaf) else leaf for leaf in leaves]
    return jax.tree.unflatten(structure, filled), has_state


def _with_arrays(module: Any, params: Params, fixed: list, *, inference: bool) -> Any:
    """The module with its arrays in place, and each `inference` switched."""
    rest = iter(fixed)

    def fill(path: tuple, leaf: Any, weight: Any) -> Any:
        if weight is not None:
            return weight
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return next(rest)
        is_switch = path and path[-1] == jax.tree_util.GetAttrKey("inference")
        return inference if is_switch and isinstance(leaf, bool) else leaf

    leaves, structure = jax.tree_util.tree_flatten_with_path(module, is_leaf=_IS_NONE)
    weights = jax.tree.leaves(params, is_leaf=_IS_NONE)
    filled = [fill(path, leaf, w) for (path, leaf), w in zip(leaves, weights, strict=True)]
    return jax.tree.unflatten(structure, filled)
