"""Any flax module as a `Model`: two pure functions."""

import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike, PyTree

from wdjax.interfaces import check_model, library_of, way_to_model, what
from wdjax.types import Model, Params, is_inexact

_TRAIN_ARGUMENTS = {
    "train": True,
    "training": True,
    "deterministic": False,
    "use_running_average": False,
}
"""The names that modules give the switch, and whether True means training."""


def from_linen(module: nn.Module, *, train_argument: str = "train") -> Model:
    """A `flax.linen` module as a `Model`.

    `init` runs the module in evaluation mode and returns its collection `params` as params,
    all other collections (batch statistics) as the model's state. `apply` passes its key on as
    the stream `dropout`; the state changes only where `train` is True.

    Args:
      module: called as `module(inputs)`, or `module(inputs, train=...)` if it takes that.
      train_argument: the name of the switch: `train` or `training`, or one that is True in
        evaluation: `deterministic`, `use_running_average`.

    Raises:
      ValueError: if the name is none of these, or the module takes another one of them; for a
        class instead of an instance, or a module of another library.
    """
    if isinstance(module, type) or library_of(module) != "flax.linen":
        raise ValueError(
            f"`module` must be an instance of a flax.linen module, got {what(module)}; write "
            f"{way_to_model(module)}."
        )
    if train_argument not in [*_TRAIN_ARGUMENTS]:
        raise ValueError(
            f"`train_argument` must be one of {', '.join(_TRAIN_ARGUMENTS)}; got "
            f"{train_argument!r}. Wrap the module in one that takes `train`."
        )
    taken = inspect.signature(module.__call__).parameters
    if train_argument not in taken:
        for other in _TRAIN_ARGUMENTS:
            if other in taken:
                raise ValueError(
                    f"{type(module).__name__} does not take `{train_argument}` but `{other}`: "
                    f'pass train_argument="{other}".'
                )

    def switch(train: bool) -> dict[str, Any]:
        if train_argument not in taken:
            return {}
        return {train_argument: train == _TRAIN_ARGUMENTS[train_argument]}

    def init(key: Any, inputs: PyTree) -> tuple[Params, PyTree]:
        params_key, dropout_key = jax.random.split(key)
        keys = {"params": params_key, "dropout": dropout_key}
        variables = dict(module.init(keys, inputs, **switch(False)))
        return variables.pop("params", {}), variables

    def apply(
        params: Params, model_state: PyTree, inputs: PyTree, *, key: Any = None, train: bool = False
    ) -> tuple[PyTree, PyTree]:
        collections = model_state or {}
        outputs, changed = module.apply(
            {"params": params, **collections},
            inputs,
            rngs=None if key is None else {"dropout": key},
            mutable=list(collections),
            **switch(train),
        )
        return outputs, {**collections, **changed} if train and collections else model_state

    return Model(init, apply)


def from_nnx(make_module: Callable[[Any], Any]) -> Model:
    """A `flax.nnx` module as a `Model`.

    `init` returns the `nnx.Param`s as params and every other variable, except the state of
    random streams, as the model's state. `apply` rebuilds the module from both, switches it by
    its own `train()` or `eval()`, and gives each random stream its own key derived from `key`;
    the state changes only where `train` is True. Nothing the user holds is mutated.

    Args:
      make_module: `nnx.Rngs -> nnx.Module`; called for every trace, so it must build the same
        module each time. The module is called as `module(inputs)`.

    Raises:
      ValueError: at build, for a module that is built already, or one of another library; at
        `apply`, if `train` is True without a key and the module has a stream.
    """
    if not callable(make_module) or _is_linen_or_instance(make_module):
        raise ValueError(
            f"`make_module` must be a function `nnx.Rngs -> nnx.Module`, got {what(make_module)}; "
            f"write {way_to_model(make_module)}."
        )
    from flax import nnx  # Here, not above: a fifth of what importing wdjax took.

    filters = (nnx.Param, nnx.RngState, ...)

    def init(key: Any, inputs: PyTree) -> tuple[Params, PyTree]:
        del inputs
        _, params, _, model_state = nnx.split(make_module(nnx.Rngs(key)), *filters)
        return params, model_state

    def apply(
        params: Params, model_state: PyTree, inputs: PyTree, *, key: Any = None, train: bool = False
    ) -> tuple[PyTree, PyTree]:
        abstract = nnx.eval_shape(lambda: make_module(nnx.Rngs(0)))
        graph, _, streams, nothing = nnx.split(abstract, *filters)
        if train and key is None and jax.tree.leaves(streams):
            raise ValueError(
                "This module draws random numbers in training: pass `key`, for instance "
                "`init_state(..., key=jax.random.key(0))`."
            )
        streams = _seed_streams(streams, jax.random.key(0) if key is None else key)
        rest = nothing if model_state is None else model_state
        module = nnx.merge(graph, params, streams, rest, copy=True)
        (module.train if train else module.eval)()
        outputs = module(inputs)
        return outputs, nnx.split(module, *filters)[3] if train else model_state

    return Model(init, apply)


def with_compute_dtype(model: Model, dtype: DTypeLike) -> Model:
    """The same model, computing in `dtype`: params and inexact inputs are cast inside `apply`.

    Params are stored in float32 at least (bfloat16 compute keeps float32 params, float64
    gives float64 params), the outputs come back in that dtype, and so do the gradients. The
    model's state keeps its own dtype.

    Raises:
      ValueError: if `model` is no `Model`, or `dtype` is not floating, or is float64 while JAX's
        64-bit mode is off.
    """
    check_model("model", model)
    dtype = np.dtype(dtype)
    if not jnp.issubdtype(dtype, np.floating):
        raise ValueError(f"`dtype` must be a floating dtype, got {dtype}.")
    if dtype != jax.dtypes.canonicalize_dtype(dtype):
        raise ValueError('float64 needs jax.config.update("jax_enable_x64", True).')
    stored = jnp.promote_types(dtype, np.float32)

    def init(key: Any, inputs: PyTree) -> tuple[Params, PyTree]:
        return _cast(model.init(key, _cast(inputs, stored)), stored)

    def apply(
        params: Params, model_state: PyTree, inputs: PyTree, *, key: Any = None, train: bool = False
    ) -> tuple[PyTree, PyTree]:
        outputs, new_state = model.apply(
            _cast(params, dtype), model_state, _cast(inputs, dtype), key=key, train=train
        )
        kept = jax.tree.map(
            lambda new, old: jnp.astype(new, old.dtype) if is_inexact(old) else new,
            new_state,
            model_state,
        )
        return _cast(outputs, stored), kept

    return Model(init, apply)


def count_params(params: Params) -> int:
    """How many numbers training moves: the sizes of all leaves of inexact dtype, summed."""
    return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(params) if is_inexact(leaf))


def _is_linen_or_instance(value: Any) -> bool:
    """An nnx class may be called with streams; what is built already, or of linen, may not."""
    library = library_of(value)
    return library is not None and not (library == "flax.nnx" and isinstance(value, type))


def _seed_streams(streams: PyTree, key: Any) -> PyTree:
    """Real keys and zero counts for abstract ones; one key a leaf, so no two masks agree."""
    leaves, structure = jax.tree.flatten(streams)
    return jax.tree.unflatten(
        structure,
        [
            jax.random.fold_in(key, number)
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else jnp.zeros(leaf.shape, leaf.dtype)
            for number, leaf in enumerate(leaves)
        ],
    )


def _cast(tree: PyTree, dtype: Any) -> PyTree:
    """Casts the inexact leaves; integers (labels, bytes) and keys stay."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype) if is_inexact(leaf) else leaf, tree)
