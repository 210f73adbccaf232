"""Who gets how much decay, from the formulas: one row a leaf."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wdjax.checks import check_number, check_positive_int, check_strength
from wdjax.parts.rules import leaf_path, leaf_role, resolve_parts
from wdjax.tables import Table
from wdjax.types import Params, Parts, Schedule, Strength


class LeafDecay(NamedTuple):
    """What one leaf loses."""

    path: str
    shape: tuple[int, ...]
    multiplier: float
    rate: float
    """The fraction of the weight removed in a step; under a schedule the run's average."""
    half_life: float
    """Steps after which half of a weight without gradient is left; infinite at rate 0."""


class DecayReport(NamedTuple):
    """Who gets how much decay: one row a leaf."""

    leaves: tuple[LeafDecay, ...]

    def table(self) -> Table:
        """One row a leaf."""
        rows = tuple(
            (leaf.path, "x".join(map(str, leaf.shape)) or "scalar", *leaf[2:])
            for leaf in self.leaves
        )
        return Table(("leaf", "shape", "multiplier", "rate per step", "half-life, steps"), rows)

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def to_dict(self) -> list[dict[str, Any]]:
        """A dict a leaf."""
        return [leaf._asdict() for leaf in self.leaves]


def describe_decay(
    params: Params,
    parts: Parts,
    strength: Strength,
    *,
    learning_rate: Strength | Schedule | None = None,
    num_steps: int | None = None,
) -> DecayReport:
    """Says what each leaf loses, from the formulas: nothing is run.

        rate = strength * m_leaf                   without a learning rate (independent decay)
        rate = eta_t * strength * m_leaf           with one (decoupled decay)
        half-life = ln 2 / mean_t(-ln(1 - rate_t))

    Args:
      params: the tree, of arrays or of `jax.ShapeDtypeStruct`s (`jax.eval_shape`).
      parts: how much each leaf counts.
      strength: scalar >= 0.
      learning_rate: a number or a schedule `step -> value`; a schedule needs `num_steps`.
      num_steps: steps of the run, >= 1.

    Raises:
      ValueError: for a strength or learning rate out of range, a schedule without `num_steps`,
        or parts that do not fit.
    """
    check_strength("strength", strength)
    if callable(learning_rate):
        if num_steps is None:
            raise ValueError("`num_steps` is needed to average a learning-rate schedule over.")
        check_positive_int("num_steps", num_steps)
        factors = np.asarray(jax.vmap(learning_rate)(jnp.arange(num_steps)), np.float64)
    else:
        if learning_rate is not None:
            check_number("learning_rate", learning_rate, low=0.0)
        factors = np.array([1.0 if learning_rate is None else float(learning_rate)])
    multipliers = jax.tree.leaves(resolve_parts(parts, params))
    named = jax.tree_util.tree_leaves_with_path(params)
    return DecayReport(
        tuple(
            _leaf_decay(leaf_path(path), leaf, float(m), float(strength) * float(m) * factors)
            for (path, leaf), m in zip(named, multipliers, strict=True)
        )
    )


def _leaf_decay(path: str, leaf: Any, multiplier: float, rates: np.ndarray) -> LeafDecay:
    kept = 1.0 - rates
    # A rate of 1 or more does not shrink a weight, it flips or clears it: no half-life.
    per_step = -np.log(kept).mean() if np.all(kept > 0) else np.inf
    half_life = math.log(2) / per_step if per_step > 0 else math.inf
    return LeafDecay(path, np.shape(leaf), multiplier, float(rates.mean()), half_life)
