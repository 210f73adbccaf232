"""The types that every module uses: parameters, batches, models, losses, strengths."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, Scalar

Params = PyTree
"""The network's weights: any tree; only its leaves of inexact dtype decay or are trained."""

Strength = float | int | np.ndarray | np.generic | Array
"""A scalar >= 0: a Python number, an array scalar, or a traced one (so it can be vmapped)."""

Schedule = Callable[[Array], Any]
"""`step -> value`, with `step` an int32 scalar counting updates from 0."""

Parts = PyTree | Mapping[str, Any] | Callable[[Params], PyTree] | None
"""How much each leaf counts, 1.0 = fully, in any form that `wdjax.parts` recognises."""

PenaltyFn = Callable[[Params], Scalar]
"""`params -> scalar`, added once to the data loss."""

ExampleLoss = Callable[[Any, Any], Array]
"""`(outputs, targets) -> losses`, one number per example (or per example and time)."""

Key = Array
"""A typed `jax.random.key`, consumed once."""

HParams = Any
"""A tree of scalars, the numbers of a run: strength, learning rate, slope, dropout rate."""


class Batch(NamedTuple):
    """Examples and how much each counts; every leaf has leading axis `batch`.

    `weights` are floats >= 0 in the shape of the losses: `[batch]`, or `[batch, time]` for
    sequences. A row of weight 0 adds exactly zero to value and gradient, also when it holds
    NaN, so padding and held-out folds keep the same shapes.
    """

    inputs: PyTree
    targets: PyTree
    weights: Array | np.ndarray


class Model(NamedTuple):
    """Any library's model as two pure functions.

    init:  `(key, inputs[batch, ...]) -> (params, model_state)`
    apply: `(params, model_state, inputs, *, key, train) -> (outputs, model_state)`

    `model_state` is what a forward pass may change without a gradient (batch statistics), an
    empty dict if there is none. `key` feeds dropout and may be None where `train` is False.
    """

    init: Callable[..., Any]
    apply: Callable[..., Any]


class LossAux(NamedTuple):
    """What the loss is made of: `loss = data_loss + penalty`."""

    data_loss: Array
    penalty: Array
    denominator: Array
    """What the weighted sum of losses was divided by: on several devices, their share."""
    model_state: PyTree = None


LossFn = Callable[..., tuple[Scalar, LossAux]]
"""`loss_fn(params, batch, *, model_state=None, key=None, train=True) -> (loss, aux)`."""


class Fit(NamedTuple):
    """A finished run."""

    params: Params
    model_state: PyTree
    history: dict[str, Array]
    """Per epoch: `loss`, `data_loss`, `penalty` over the training batches, shape `[epoch]`."""


class TakesPadding:
    """A run that can be told which rows of its training part are padding, and leaves them out.

    It is called as `function`, with a keyword `num_examples` where the part is padded: only the
    first `num_examples` rows of `train` are the part, and the result is that of them alone. That
    number may be traced, but never makes another count of steps than all rows would.
    """

    function: Callable[..., Any]
    num_steps: Callable[[int], int]
    """`num_examples -> steps` of the run: parts of one count can be padded to one shape."""

    def __init__(self, function: Callable[..., Any], num_steps: Callable[[int], int]):
        functools.update_wrapper(self, function)
        self.function, self.num_steps = function, num_steps

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What `function` returns."""
        return self.function(*args, **kwargs)


def plain_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself, without the word that it `TakesPadding`."""
    return function.function if isinstance(function, TakesPadding) else function


def is_inexact(leaf: Any) -> bool:
    """Whether a leaf holds numbers that training moves: floating or complex, no ints, no keys.

    A function or a word, as a module of equinox holds beside its weights, is none.
    """
    if not hasattr(leaf, "dtype"):
        return isinstance(leaf, float | complex | np.generic)
    return jnp.issubdtype(leaf.dtype, np.inexact)


def wide(x: Any) -> Array:
    """The same in float32 at least, as whatever is summed."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
