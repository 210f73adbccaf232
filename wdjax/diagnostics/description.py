"""Who gets how much decay, from the formulas: one row a leaf."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wdjax.checks import check_number, check_positive_int, check_strength
from wdjax.parts.rules import Stacked, leaf_path, leaf_role, resolve_parts, stacked_axes
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
    """Steps after which half of a weight without gradient is left; infinite at rate 0, and at 2
    and more, where it grows."""
    role: str = "other"
    """`wdjax.parts.leaf_role`."""
    size: int = 0
    """The number of weights."""
    first_rate: float = 0.0
    """The rate of the first step."""
    peak_rate: float = 0.0
    """The largest rate of a step."""
    last_rate: float = 0.0
    """The rate of the last step."""
    half_life_epochs: float | None = None
    """The half-life in epochs; None where their length was not given."""
    penalty_share: float | None = None
    """Which part of the loss is the penalty on this leaf; None where no loss was measured."""
    norm: float | None = None
    """|w| as it is; None where only a shape is known."""
    equilibrium_norm: float | None = None
    """The norm at which decay and steps balance (`audit`); None where it was not measured."""
    equilibrium_angle: float | None = None
    """The angle turned per step there, in radians."""
    removed: float | None = None
    """The share of the norm that decay alone removes in the run; None where its length was not
    given."""
    unmeasured: str | None = None
    """Why `audit` says no rate, which is NaN then; None where it says one."""
    z: float | None = None
    """What more decay of its part would gain, in standard errors; None where no search said it."""


class DecayReport(NamedTuple):
    """Who gets how much decay: one row a leaf."""

    leaves: tuple[LeafDecay, ...]

    def table(self) -> Table:
        """One row a leaf; a column that would say nothing is left out."""
        return leaf_table(self.leaves)

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
    steps_per_epoch: int | None = None,
    stacked: Stacked = None,
) -> DecayReport:
    """Says what each leaf loses, from the formulas: nothing is run.

        rate = strength * m_leaf                   without a learning rate (independent decay)
        rate = eta_t * strength * m_leaf           with one (decoupled decay)
        half-life = ln 2 / mean_t(-ln(1 - rate_t))

    What an optimiser really does, `audit` measures.

    Args:
      params: the tree, of arrays or of `jax.ShapeDtypeStruct`s (`jax.eval_shape`).
      parts: how much each leaf counts.
      strength: scalar >= 0.
      learning_rate: a number or a schedule `step -> value`; a schedule needs `num_steps`.
      num_steps: steps of the run, >= 1.
      steps_per_epoch: steps of an epoch, >= 1, for half-lives in epochs.
      stacked: the leaves that hold several layers (`wdjax.parts.stacked_axes`), for their roles.

    Raises:
      ValueError: for a strength or learning rate out of range, a schedule without `num_steps`,
        parts that do not fit, or as `stacked_axes`.

    Example:
      >>> params = {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}
      >>> leaves = wdjax.describe_decay(params, wdjax.matrices_only, 0.1, learning_rate=0.01).leaves
      >>> [(leaf.path, round(leaf.rate, 6), round(leaf.half_life)) for leaf in leaves if leaf.rate]
      [('kernel', 0.001, 693)]
    """
    check_strength("strength", strength)
    if steps_per_epoch is not None:
        check_positive_int("steps_per_epoch", steps_per_epoch)
    if callable(learning_rate):
        if num_steps is None:
            raise ValueError("`num_steps` is needed to average a learning-rate schedule over.")
        check_positive_int("num_steps", num_steps)
        factors = np.asarray(jax.vmap(learning_rate)(jnp.arange(num_steps)), np.float64)
    else:
        if learning_rate is not None:
            check_number("learning_rate", learning_rate, low=0.0)
        factors = np.array([1.0 if learning_rate is None else float(learning_rate)])
    multipliers = jax.tree.leaves(resolve_parts(parts, params, stacked=stacked))
    layer_axes = jax.tree.leaves(stacked_axes(stacked, params))
    named = jax.tree_util.tree_leaves_with_path(params)
    return DecayReport(
        tuple(
            leaf_decay(
                leaf_path(path),
                leaf,
                float(m),
                float(strength) * float(m) * factors,
                steps_per_epoch,
                layer_axes=axes,
                num_steps=num_steps,
            )
            for (path, leaf), m, axes in zip(named, multipliers, layer_axes, strict=True)
        )
    )


def leaf_decay(
    path: str,
    leaf: Any,
    multiplier: float,
    rates: np.ndarray,
    steps_per_epoch: int | None,
    *,
    layer_axes: int = 0,
    num_steps: int | None = None,
) -> LeafDecay:
    """The row of a leaf from its rates `[step]`, each the fraction removed by that step.

    With `num_steps`, the run's, its rates are those of the run, or one for all of its steps.
    """
    # Beyond a rate of 1 a weight changes sign, and what is left is a size.
    with np.errstate(divide="ignore"):
        per_step = float(-np.log(np.abs(1.0 - rates)).mean())
    half_life = math.log(2) / per_step if per_step > 0 else math.inf
    removed = None if num_steps is None else -math.expm1(-per_step * num_steps)
    return LeafDecay(
        path=path,
        shape=np.shape(leaf),
        multiplier=multiplier,
        rate=float(rates.mean()),
        half_life=half_life,
        role=leaf_role(path, leaf, layer_axes),
        size=math.prod(np.shape(leaf)),
        first_rate=float(rates[0]),
        peak_rate=float(rates.max()),
        last_rate=float(rates[-1]),
        half_life_epochs=None if steps_per_epoch is None else half_life / steps_per_epoch,
        removed=removed,
    )


def leaf_table(leaves: tuple[LeafDecay, ...]) -> Table:
    """One row a leaf, without the columns that hold nothing or repeat the rate."""
    columns = {
        "leaf": [leaf.path for leaf in leaves],
        "role": [leaf.role for leaf in leaves],
        "shape": ["x".join(map(str, leaf.shape)) or "scalar" for leaf in leaves],
        "weights": [leaf.size for leaf in leaves],
        "multiplier": [_known(leaf.multiplier) for leaf in leaves],
        "rate per step": [_known(leaf.rate) for leaf in leaves],
        "first": [_known(leaf.first_rate) for leaf in leaves],
        "peak": [_known(leaf.peak_rate) for leaf in leaves],
        "last": [_known(leaf.last_rate) for leaf in leaves],
        "half-life, steps": [_known(leaf.half_life) for leaf in leaves],
        "epochs": [_known(leaf.half_life_epochs) for leaf in leaves],
        "removed in the run": [leaf.removed for leaf in leaves],
        "penalty's share": [leaf.penalty_share for leaf in leaves],
        "norm": [leaf.norm for leaf in leaves],
        "predicted norm": [leaf.equilibrium_norm for leaf in leaves],
        "angle a step": [leaf.equilibrium_angle for leaf in leaves],
        "z of more": [None if leaf.z is None else f"{leaf.z:.1f}" for leaf in leaves],
    }
    told = [leaf for leaf in leaves if leaf.unmeasured is None]
    if all(leaf.first_rate == leaf.peak_rate == leaf.last_rate for leaf in told):
        columns = {n: c for n, c in columns.items() if n not in ("first", "peak", "last")}
    columns = {n: c for n, c in columns.items() if not c or any(cell is not None for cell in c)}
    return Table(tuple(columns), tuple(zip(*columns.values(), strict=True)))


def _known(number: float | None) -> float | None:
    """None, which a table leaves out, in place of NaN, which it calls diverged."""
    return None if number is None or math.isnan(number) else number
