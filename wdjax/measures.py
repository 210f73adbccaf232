"""What a fitted model is judged by: measures, their directions, and the score that takes means."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from wdjax.checks import check_labels, check_positive_int
from wdjax.interfaces import check_batch, check_model
from wdjax.losses import binary_cross_entropy, cross_entropy, poisson_loss, squared_error
from wdjax.types import Batch, Fit, Model
from wdjax.weights.zero import fill_inactive_rows

ScoreFn = Callable[[Fit, Batch], PyTree]
"""`score(fit, batch) -> scalar or tree of scalars`; `Score` also knows each one's direction."""


@dataclasses.dataclass(frozen=True)
class Measure:
    """A function that judges outputs, and which way is better.

    Args:
      function: `(outputs, targets) -> values[batch]`, one number per example (or `[batch, time]`,
        as the weights), of which a score is the weighted mean. If `per_example` is False,
        `(outputs, targets, weights) -> scalar`, over all examples at once (AUC, R2: no mean of
        anything that one example has).
      higher_is_better: True for an accuracy, False for an error or a loss.
      per_example: whether the function gives one number per example. Only such a measure tells
        how much of a difference is due to which examples were held out.

    Raises:
      ValueError: if `function` is not callable or `higher_is_better` is not True or False.
    """

    function: Any
    higher_is_better: Any
    per_example: Any = True

    def __post_init__(self):
        if not callable(self.function):
            raise ValueError(
                "`function` must be a function (outputs, targets) -> values, got "
                f"{self.function!r}."
            )
        for name in ("higher_is_better", "per_example"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(
                    f"`{name}` must be True or False, got {getattr(self, name)!r}; an accuracy is "
                    "better when higher, a loss or an error is not."
                )

    def __call__(self, outputs: Any, targets: Any, *weights: Any) -> Array:
        """The values of `function`."""
        return self.function(outputs, targets, *weights)


def _is_correct(logits: Array, targets: Any) -> Array:
    if logits.shape == (*targets.shape, 1):
        check_labels("targets", targets, 2)
        return ((logits[..., 0] > 0) == targets).astype(logits.dtype)
    if targets.shape == logits.shape:
        targets = jnp.argmax(targets, axis=-1)
    check_labels("targets", targets, logits.shape[-1])
    return (jnp.argmax(logits, axis=-1) == targets).astype(logits.dtype)


is_correct = Measure(_is_correct, higher_is_better=True)
"""1.0 where the largest logit is the target's, else 0.0; `[batch, label] -> [batch]`.

Of one logit, that of the second of two classes, its sign decides.
"""

LOSSES = (cross_entropy, squared_error, binary_cross_entropy, poisson_loss)
"""Functions that are no `Measure` and yet are known to be better when lower."""


def direction_of(name: str, measure: Any) -> bool | None:
    """Whether more is better of a measure; None where nothing says so.

    A `Measure` says it; the losses of this package, and what is named `loss` or ends in `_loss`,
    are better when lower.
    """
    if isinstance(measure, Measure):
        return measure.higher_is_better
    lower = measure in LOSSES or name == "loss" or name.endswith("_loss")
    return False if lower else None


@dataclasses.dataclass(frozen=True, eq=False)
class Score:
    """`score(fit, batch) -> {name: mean}`, see `make_score`."""

    model: Model
    measures: Mapping[str, Callable]
    batch_size: int | None = None

    @property
    def higher_is_better(self) -> dict[str, bool]:
        """The direction of each measure that has one known."""
        directions = {name: direction_of(name, m) for name, m in self.measures.items()}
        return {name: up for name, up in directions.items() if up is not None}

    def __call__(self, fit: Fit, batch: Batch) -> dict[str, Array]:
        """The weighted mean of each measure, a scalar."""
        check_batch("batch", batch)
        batch = jax.tree.map(jnp.asarray, batch)
        return {
            name: weighted_mean(v, batch.weights) if _per_example(self.measures[name]) else v
            for name, v in self._values(fit, batch)
        }

    def by_example(self, fit: Fit, batch: Batch) -> dict[str, Array]:
        """Each measure `[batch]`, one number per example (its mean over time, weighted, where
        the weights are `[batch, time]`), 0 where the example's weight is; a scalar of a measure
        that has no such numbers.

        Raises:
          ValueError: for what is no `Batch`, or a measure that gives anything but one number per
            example.
        """
        check_batch("batch", batch)
        batch = jax.tree.map(jnp.asarray, batch)
        return {
            name: example_means(v, batch.weights) if _per_example(self.measures[name]) else v
            for name, v in self._values(fit, batch)
        }

    def _values(self, fit: Fit, batch: Any) -> list[tuple[str, Array]]:
        """`(name, values)`: in the shape of the weights, 0 where these are, or a scalar."""
        num_examples = batch.weights.shape[0]
        whole = [name for name, m in self.measures.items() if not _per_example(m)]
        if self.batch_size is None or self.batch_size >= num_examples:
            outputs, values = self._of_rows(fit, batch, bool(whole))
        else:
            blocks = jax.tree.map(functools.partial(_in_blocks, size=self.batch_size), batch)
            of_block = lambda block: self._of_rows(fit, block, bool(whole))
            joined = lambda x: x.reshape(-1, *x.shape[2:])[:num_examples]
            outputs, values = jax.tree.map(joined, jax.lax.map(of_block, blocks))
        if whole:
            _, targets = fill_inactive_rows(batch.inputs, batch.targets, batch.weights > 0)
            weights = _wide(batch.weights)
            for name in whole:
                values[name] = _wide(self.measures[name](outputs, targets, weights))
        return [(name, values[name]) for name in self.measures]

    def _of_rows(self, fit: Fit, batch: Any, outputs_too: bool) -> tuple[Any, dict[str, Array]]:
        active = batch.weights > 0
        inputs, targets = fill_inactive_rows(batch.inputs, batch.targets, active)
        outputs, _ = self.model.apply(fit.params, fit.model_state, inputs, key=None, train=False)
        values = {}
        for name, measure in self.measures.items():
            if not _per_example(measure):
                continue
            value = jnp.asarray(measure(outputs, targets))
            if value.shape != active.shape:
                raise ValueError(
                    f"measure {name!r} returned shape {value.shape}; expected one number per "
                    f"example, shape {active.shape}, that of the weights. One number for all of "
                    "them: Measure(function, higher_is_better, per_example=False)."
                )
            values[name] = jnp.where(active, _wide(value), 0)
        return (outputs if outputs_too else None), values


def make_score(model: Model, *, batch_size: int | None = None, **measures: Callable) -> Score:
    """Builds `score(fit, batch) -> {name: weighted mean}`, evaluated without dropout.

        score = sum_i w_i measure(f(params, x_i), y_i) / sum_i w_i

    Sums are taken in float32 at least. The score knows the direction of each of its measures
    (`score.higher_is_better`) and gives them example by example (`score.by_example`), from which
    `cross_validate` learns how much of a difference is due to the examples held out.

    Example: `make_score(model, loss=cross_entropy, accuracy=is_correct)`.

    Args:
      model: its `apply` is called with `train=False`.
      batch_size: rows at a time, which bounds memory; by default all at once.
      measures: each a `Measure`, or a function `(outputs, targets) -> values[batch]`, one number
        per example. Of a bare function only a loss has a known direction: `choose` has to be told
        another's.

    Raises:
      ValueError: at build, if `model` is no `Model`, without a measure or for a batch size below 1;
        in the score, for what is no `Batch`, or if a measure gives anything but one number per
        example.

    Example:
      >>> model = wdjax.Model(
      ...     init=lambda key, x: (jnp.eye(2), {}),
      ...     apply=lambda w, state, x, *, key, train: (x @ w, state),
      ... )
      >>> score = wdjax.make_score(model, accuracy=wdjax.is_correct)
      >>> fitted = wdjax.Fit(jnp.eye(2), {}, {})
      >>> data = wdjax.Batch(jnp.eye(2), jnp.array([0, 0]), jnp.ones(2))
      >>> print(score(fitted, data)["accuracy"])
      0.5
    """
    check_model("model", model)
    if not measures:
        raise ValueError("`make_score` needs at least one measure, such as loss=cross_entropy.")
    if batch_size is not None:
        check_positive_int("batch_size", batch_size)
    return Score(model, dict(measures), batch_size)


def example_means(values: Any, weights: Any) -> Array:
    """`values` in the shape of `weights` `[batch, ...]` -> `[batch]`: means over the other axes.

    An example without weight has 0.
    """
    axes = tuple(range(1, weights.ndim))
    weights, values = _wide(weights), _wide(values)
    values = jnp.where(weights > 0, values, 0)
    if not axes:
        return values
    total = jnp.sum(weights, axis=axes)
    return jnp.sum(weights * values, axis=axes) / jnp.where(total > 0, total, 1)


def weighted_mean(values: Any, weights: Any) -> Array:
    """`sum w v / sum w` over all axes; `[batch]` values take each row's summed weight."""
    weights, values = _wide(weights), _wide(values)
    if values.ndim < weights.ndim:
        weights = jnp.sum(weights, axis=tuple(range(values.ndim, weights.ndim)))
    total = jnp.sum(weights)
    return jnp.sum(weights * values) / jnp.where(total > 0, total, 1)


def _per_example(measure: Any) -> bool:
    return measure.per_example if isinstance(measure, Measure) else True


def _wide(x: Any) -> Array:
    """At least float32: a sum of many small dtypes' numbers is wrong in theirs."""
    return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))


def _in_blocks(leaf: Array, size: int) -> Array:
    """`[batch, ...] -> [block, size, ...]`, the last block filled up with zeros (weight 0)."""
    missing = -leaf.shape[0] % size
    padded = jnp.concatenate([leaf, jnp.zeros((missing, *leaf.shape[1:]), leaf.dtype)])
    return padded.reshape(-1, size, *leaf.shape[1:])
