"""What a caller gives: a model, a batch, the numbers and the data of a run.

Refused on the host, once, before anything is compiled. What `jit`, `vmap` or `grad` carries has no
value yet and passes, and so do rows of weight 0, which are never read: they may hold anything.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from wdjax.checks import LabelError, is_known
from wdjax.interfaces import check_batch, check_run
from wdjax.losses import cross_entropy
from wdjax.types import Batch, ExampleLoss, HParams, Model, is_inexact

_AT_LEAST_ZERO = ("strength", "decay")
_RATES = ("learning_rate", "lr")


def check_given(fit_and_score: Callable, grid: Mapping[str, Any], data: Batch) -> None:
    """What `cross_validate` is given: a function of a run, numbers and data that it can take.

    One pass over the data; an array on a device is brought to the host once. How many classes
    there are the function tells by an attribute `check(hparams, data)`, as those that `make_fit`
    and `make_fit_and_score` build do. Of another function labels below 0 are refused, and those
    beyond the classes are not seen.

    Raises:
      ValueError: for a model instead of a run, no Batch, a known strength or learning rate that is
        negative or not finite, a known number that is NaN, known inputs or targets that are not
        finite, or known labels out of range.
    """
    check_run("fit_and_score", fit_and_score)
    check_batch("data", data)
    check_hparams("grid", grid)
    check_examples("data", data)
    check = getattr(fit_and_score, "check", None)
    if check is not None:
        first = lambda values: values[0] if not is_known(values) else np.asarray(values)[0]
        check({name: first(values) for name, values in grid.items()}, data)
    else:
        _check_not_negative(data)


def check_hparams(name: str, hparams: HParams) -> None:
    """Checks the numbers of a run, or of a grid's rows, by what they are called.

    A strength (named `strength`, `..._strength` or `weight_decay`) and a learning rate must be
    finite and >= 0; no number may be NaN. What another number means is its user's to know.

    Raises:
      ValueError: if a known one is out of range, by its name and row.
    """
    items = hparams.items() if isinstance(hparams, Mapping) else ()
    for key, given in items:
        if not all(map(is_known, jax.tree.leaves(given))):
            continue
        values = np.asarray(given)
        if values.dtype.kind not in "buif":
            continue
        word = str(key).removesuffix("s")
        is_bounded = word.split("_")[-1] in _AT_LEAST_ZERO or word in _RATES
        bad = ~(np.isfinite(values) & (values >= 0)) if is_bounded else np.isnan(values)
        if not bad.any():
            continue
        number = values[bad].flat[0]
        row = f" in row {np.argwhere(bad)[0][0]}" if values.ndim else ""
        must = "be finite and >= 0" if is_bounded else "not be NaN"
        way = "0 switches it off" if is_bounded and word not in _RATES else "give a number"
        raise ValueError(f"`{name}[{key!r}]` must {must}, got {number:g}{row}; {way}.")


def check_examples(name: str, data: Batch) -> None:
    """Checks that known inputs and targets are finite, where their weight is above 0.

    Raises:
      ValueError: if they are not, by the first such row.
    """
    if not _is_here(data.weights):
        return
    for field in ("inputs", "targets"):
        for leaf in jax.tree.leaves(getattr(data, field)):
            if not (_is_here(leaf) and is_inexact(leaf)):
                continue
            values = np.asarray(leaf)
            if _all_finite(values):
                continue
            bad = ~np.isfinite(values) & _active(data.weights, values, field)
            if bad.any():
                row = np.argwhere(bad)[0]
                raise ValueError(
                    f"`{name}.{field}` must be finite, got {values[tuple(row)]} in row {row[0]} "
                    "(counted from 0); fill it, leave the row out, or give it weight 0."
                )


def check_loss_of_labels(
    model: Model, example_loss: ExampleLoss, data: Batch, batch_size: int
) -> None:
    """Lets the loss see known integer targets beside the shapes of the model's outputs.

    However it is made of the losses here, they then compare the labels with the number of classes.
    Nothing is computed. What else may be wrong is for the run to say.

    Raises:
      LabelError: for a label out of range, by its row.
    """
    targets = jax.tree.leaves(data.targets)
    if not (all(map(_is_here, (data.weights, *targets))) and any(map(_is_integer, targets))):
        return
    labels = jax.tree.map(lambda leaf: _without_dead(np.asarray(leaf), data.weights), data.targets)
    num_examples = np.shape(data.weights)[0]
    if example_loss is optax.softmax_cross_entropy_with_integer_labels:
        example_loss = cross_entropy
    try:
        inputs = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((min(batch_size, num_examples), *x.shape[1:]), x.dtype),
            jax.eval_shape(lambda: jax.tree.map(jax.numpy.asarray, data.inputs)),
        )
        key = jax.eval_shape(lambda: jax.random.key(0))
        params, state = jax.eval_shape(model.init, key, inputs)
        apply = lambda params, state, inputs: model.apply(
            params, state, inputs, key=None, train=False
        )
        outputs, _ = jax.eval_shape(apply, params, state, inputs)
        outputs = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((num_examples, *x.shape[1:]), x.dtype), outputs
        )
        jax.eval_shape(lambda outputs: example_loss(outputs, labels), outputs)
    except LabelError:
        raise
    except Exception:  # A run that cannot be traced says so itself, in its own place.
        return


def _check_not_negative(data: Batch) -> None:
    """Of a loss that is not known: below 0 no label can be."""
    if not _is_here(data.weights):
        return
    for leaf in jax.tree.leaves(data.targets):
        if not (_is_here(leaf) and _is_integer(leaf)):
            continue
        values = np.asarray(leaf)
        bad = (values < 0) & _active(data.weights, values, "targets")
        if bad.any():
            row = np.argwhere(bad)[0]
            raise ValueError(
                f"`data.targets` must be labels from 0, got {values[tuple(row)]} in row {row[0]} "
                "(counted from 0): -1 would be the last class. Give rows without a label weight 0; "
                "numbers to regress on are floats: targets.astype(float)."
            )


def _is_here(leaf: Any) -> bool:
    """Known, and whole on this process."""
    return is_known(leaf) and not (isinstance(leaf, jax.Array) and not leaf.is_fully_addressable)


def _is_integer(leaf: Any) -> bool:
    return jax.numpy.issubdtype(jax.numpy.result_type(leaf), np.integer)


def _all_finite(values: np.ndarray) -> bool:
    """By one sum, which no NaN or infinity leaves finite; a sum that overflowed looks again."""
    with np.errstate(all="ignore"):
        return bool(np.isfinite(values.sum())) or bool(np.isfinite(values).all())


def _active(weights: Any, values: np.ndarray, field: str) -> np.ndarray:
    """What of an input or target is read: an input if any weight of its row is above 0."""
    active: np.ndarray = np.asarray(np.asarray(weights) > 0)
    if active.shape != values.shape[: active.ndim] or field == "inputs":
        active = np.any(active.reshape(len(active), -1), axis=1)
    return active.reshape(active.shape + (1,) * (values.ndim - active.ndim))


def _without_dead(targets: np.ndarray, weights: Any) -> np.ndarray:
    """Zeros, a label that always is one, where no weight is."""
    if targets.ndim == 0 or len(targets) != np.shape(weights)[0]:
        return targets
    return np.where(_active(weights, targets, "targets"), targets, np.zeros((), targets.dtype))
