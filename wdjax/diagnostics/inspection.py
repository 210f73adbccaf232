"""Who gets how much decay, measured from any optimiser, with warnings that say what to do."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from wdjax.checks import check_positive_int, is_known
from wdjax.diagnostics.description import LeafDecay, leaf_decay, leaf_table
from wdjax.diagnostics.equilibrium import equilibrium
from wdjax.diagnostics.measurement import (
    L2_ADAPTIVE,
    Measured,
    measure_leaves,
)
from wdjax.diagnostics.penalty_pull import measure_penalty
from wdjax.diagnostics.probes import is_shape, length
from wdjax.parts.rules import Stacked, leaf_path, resolve_parts, stacked_axes
from wdjax.tables import Table
from wdjax.types import Batch, LossFn, Params, Parts, is_inexact

LEAST_REMOVED = 0.01
"""The share of its norm that decay must remove from a leaf in a run to be more than nothing."""


class AuditWarning(NamedTuple):
    """Something about the decay that is probably not meant."""

    kind: str
    paths: tuple[str, ...]
    """The leaves it is about; empty where it is about all of them."""
    text: str
    """What was found and what to do, in a sentence or two."""


class AuditReport(NamedTuple):
    """Who gets how much decay, as measured, and what is probably not meant."""

    leaves: tuple[LeafDecay, ...]
    warnings: tuple[AuditWarning, ...]

    def table(self) -> Table:
        """One row a leaf; the warnings are its note."""
        note = "\n".join(f"Warning: {warning.text}" for warning in self.warnings)
        return leaf_table(self.leaves)._replace(note=note or "No warning.")

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def to_dict(self) -> dict[str, Any]:
        """`{"leaves": a dict a leaf, "warnings": a dict a warning}`."""
        return {
            "leaves": [leaf._asdict() for leaf in self.leaves],
            "warnings": [warning._asdict() for warning in self.warnings],
        }


class _Leaf(NamedTuple):
    """What was measured on a leaf, beside its row."""

    row: LeafDecay
    dtype: np.dtype
    to_zero: bool
    """Decay draws it to zero, not to another reference."""
    grows: bool
    penalty_pull: float
    """The penalty's gradient per weight: what coupled L2 calls its strength."""
    moves: bool
    """A gradient moves it."""
    scale_free: bool
    """Ten times the gradient moves it as far."""
    keeps_master: bool
    """The optimiser's state holds a wider copy."""


def audit(
    params: Params,
    tx: optax.GradientTransformation | optax.MultiSteps,
    loss_fn: LossFn | None = None,
    *,
    batch: Batch | None = None,
    model_state: PyTree = None,
    part_weights: Parts = None,
    num_steps: int | None = None,
    steps_per_epoch: int | None = None,
    stacked: Stacked = None,
) -> AuditReport:
    """Measures who gets how much decay, from any transformation, and says what looks wrong.

        rate_t = -<update_t, w> / <w, w>,  update_t = tx.update(0, state_t, w)

    The rate is what updates with zero gradients remove of the weights, so optax's own
    transformations are measured like this project's. The weights are held where they are, or take
    their updates where the optimiser keeps averages beside them (lookahead, schedule-free). Only
    what changes sign with the weights counts, which leaves out noise and references; where that
    is zero, a decay to another reference is looked for by an update at `2 w`. Leaves in half
    precision are measured in float32, leaves of zeros (biases at the start) as if they were ones.
    `multiplier` is the rate as a share of the largest, or that of the penalty's pull where no
    rate is. With `loss_fn`, the penalty's gradient is the loss's own at weights of zero, where the
    data loss is 0.

    A rate is said only of a decay that is proportional to the weights, as seen at three times
    their size, and that the gradients beside it leave alone or gate. Of any other leaf the rate is
    NaN and `unmeasured` says why: L2 placed before Adam, L1 and constraints, a trust ratio (LAMB,
    LARS), steps estimated from the gradients (Prodigy), an update that asks for the loss.

    Where an optimiser's steps do not depend on the gradient's size (Adam, Lion, Muon), the audit
    also predicts where decay leads: with T steps of random gradients going `travel * sqrt(T)` far,

        equilibrium_norm = travel / sqrt(1 - (1 - rate)^2)
        tan(equilibrium_angle) = stride / ((1 - rate) * equilibrium_norm)

    That is meant for layers before a norm: their gradient is orthogonal to them, so nothing but
    these two moves their size. Elsewhere, where the loss itself asks for a size, it is only a
    scale. Rate and travel are those of the first 256 steps, the rate what a gate leaves of it among
    such gradients. Under descent, whose steps are as long
    as the gradients, `telemetry.measure_parts` predicts it from a real step.

    Warnings, by `kind`: `decayed twice`, `norm or bias decays`, `L2 under Adam`, `too weak to
    matter`, `half-life too short`, `overshoots`, `frozen but decays`, `dtype too coarse`, `part
    weights cancel`, `grows`, `nothing decays`, `cannot be measured`.

    Args:
      params: the tree, of arrays or (without `loss_fn`) of `jax.ShapeDtypeStruct`s.
      tx: the whole chain, as the step uses it.
      loss_fn: as `regularized_loss` builds it.
      batch: examples to measure the loss on; needed with `loss_fn`.
      model_state: what the loss's model needs beside the params.
      part_weights: what the loss was built with, to find those that the optimiser cancels.
      num_steps: steps of the run: that many updates are made, without gradients; by default 16,
        or as many as it takes until one does something, up to 1024.
      steps_per_epoch: steps of an epoch.
      stacked: the leaves that hold several layers (`wdjax.parts.stacked_axes`), for their roles.

    Raises:
      ValueError: if `loss_fn` comes without `batch` or with shapes instead of params, a count is
        not an integer >= 1, parts do not fit, or as `stacked_axes`.
    """
    _check_arguments(params, loss_fn, batch, num_steps, steps_per_epoch)
    layer_axes = jax.tree.leaves(stacked_axes(stacked, params))
    measurement = measure_leaves(params, tx, num_steps)
    pulls, shares = measure_penalty(params, loss_fn, batch, model_state)
    rows = _rows(params, measurement.leaves, pulls, shares, layer_axes, num_steps, steps_per_epoch)
    leaves = _describe(params, measurement.leaves, rows, pulls)
    part_multipliers = [1.0] * len(leaves)
    if part_weights is not None:
        part_multipliers = jax.tree.leaves(resolve_parts(part_weights, params))
    warnings = _warnings(
        leaves, part_multipliers, num_steps, steps_per_epoch, measurement.num_waited
    )
    return AuditReport(tuple(leaf.row for leaf in leaves), tuple(warnings))


def _check_arguments(
    params: Params,
    loss_fn: LossFn | None,
    batch: Batch | None,
    num_steps: int | None,
    steps_per_epoch: int | None,
) -> None:
    for name, count in (("num_steps", num_steps), ("steps_per_epoch", steps_per_epoch)):
        if count is not None:
            check_positive_int(name, count)
    if loss_fn is not None and batch is None:
        raise ValueError("`batch` is needed to measure `loss_fn`: give a batch of examples.")
    if loss_fn is not None and any(map(is_shape, jax.tree.leaves(params))):
        raise ValueError("`params` must be arrays where `loss_fn` is given, not shapes.")


# What is said of it.


def _rows(
    params: Params,
    measured: list[Measured],
    pulls: list[float],
    shares: list[float | None],
    layer_axes: list[int],
    num_steps: int | None,
    steps_per_epoch: int | None,
) -> list[LeafDecay]:
    """Multipliers are shares of the largest decay, or of the largest pull where none decays."""
    sizes = [float(m.decay.mean()) for m in measured]
    sizes = sizes if any(size > 0 for size in sizes) else pulls
    largest = max(sizes, default=0.0)
    rows = []
    for i, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(params)):
        m = measured[i]
        row = leaf_decay(
            leaf_path(path),
            leaf,
            sizes[i] / largest if largest > 0 else 0.0,
            m.decay,
            steps_per_epoch,
            layer_axes=layer_axes[i],
            num_steps=num_steps,
        )
        if m.unmeasured is not None:
            unknown = {"half_life_epochs": None, "removed": None, "unmeasured": m.unmeasured}
            row = row._replace(**dict.fromkeys(_RATES, math.nan) | unknown)
        rows.append(row._replace(penalty_share=shares[i], **_norms(leaf, m)))
    return rows


_RATES = ("multiplier", "rate", "half_life", "first_rate", "peak_rate", "last_rate")


def _describe(
    params: Params, measured: list[Measured], rows: list[LeafDecay], pulls: list[float]
) -> list[_Leaf]:
    """What the warnings look at."""
    leaves = []
    for leaf, m, row, pull in zip(jax.tree.leaves(params), measured, rows, pulls, strict=True):
        rate, slope = float(m.rates.mean()), float(m.slopes.mean())
        leaves.append(
            _Leaf(
                row=row,
                dtype=np.dtype(jnp.result_type(leaf)) if is_inexact(leaf) else np.dtype(bool),
                to_zero=m.to_zero,
                grows=rate < 0 and slope < 0,
                penalty_pull=pull,
                moves=m.moves,
                scale_free=m.scale_free,
                keeps_master=m.keeps_master,
            )
        )
    return leaves


def _norms(leaf: Any, measured: Measured) -> dict[str, float]:
    """Of the leaf as it is, and where decay leads it, as far as either can be said."""
    found = {}
    if is_inexact(leaf) and not is_shape(leaf):
        found["norm"] = length(measured.probe)
    if measured.walk is not None and measured.scale_free and measured.unmeasured is None:
        norm, angle = equilibrium(measured.walk, measured.rate_on_the_way)
        found |= {"equilibrium_norm": norm, "equilibrium_angle": angle}
    return found


def _warnings(
    leaves: list[_Leaf],
    part_multipliers: list,
    num_steps: int | None,
    steps_per_epoch: int | None,
    num_waited: int,
) -> list[AuditWarning]:
    found = []

    def warn(kind: str, concerns: Callable[[_Leaf], bool], text: str) -> None:
        paths = tuple(leaf.row.path for leaf in leaves if concerns(leaf))
        if paths:
            some = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if paths[3:] else "")
            found.append(AuditWarning(kind, paths, text.format(leaves=some)))

    decays = lambda leaf: leaf.row.rate > 0
    warn(
        "decayed twice",
        lambda leaf: decays(leaf) and leaf.penalty_pull > 0,
        "decayed twice, by a penalty in the loss and by the optimiser: {leaves}. Keep one: take "
        "the penalty out, or set the optimiser's weight decay to 0.",
    )
    warn(
        "norm or bias decays",
        lambda leaf: leaf.row.role in ("gain", "bias") and (leaf.to_zero or leaf.penalty_pull > 0),
        "norm gains or biases decay to zero: {leaves}. They are few and set scales, not "
        "complexity: pass parts=matrices_only, or decay gains to one (`decay_to_one`).",
    )
    warn(
        "L2 under Adam",
        lambda leaf: (
            (leaf.penalty_pull > 0 and leaf.scale_free) or leaf.row.unmeasured == L2_ADAPTIVE
        ),
        "an L2 penalty in the loss, or L2 before the optimiser in the chain, under an optimiser "
        "that divides by the gradient's size (Adam): {leaves}. That is not a decay proportional to "
        "the weight, and weights with large gradients decay less: use `decoupled_decay` after the "
        "learning rate instead.",
    )
    if num_steps is not None:
        warn(
            "too weak to matter",
            lambda leaf: decays(leaf) and (leaf.row.removed or 0.0) < LEAST_REMOVED,
            f"in the run of {num_steps} steps decay alone removes less than "
            f"{LEAST_REMOVED:.0%} of the norm: {{leaves}}. That changes next to nothing: raise the "
            "strength, train longer, or leave the decay out.",
        )
    warn(
        "overshoots",
        lambda leaf: leaf.row.peak_rate >= 1,
        "a step removes a whole weight or more: {leaves}. Above 1 it changes sign at every step "
        "and from 2 on it grows; with a loss of curvature h under plain descent the bound is "
        "already learning rate * h + rate < 2. Lower the strength, or the learning rate that "
        "multiplies it, until the rate is well below 1.",
    )
    if steps_per_epoch is not None:
        warn(
            "half-life too short",
            lambda leaf: leaf.row.half_life < steps_per_epoch and leaf.row.peak_rate < 1,
            f"the half-life is shorter than an epoch of {steps_per_epoch} steps: {{leaves}}. What "
            "was learnt from an example is gone before it is seen again: lower the strength.",
        )
    warn(
        "frozen but decays",
        lambda leaf: decays(leaf) and not leaf.moves,
        "no gradient moves these, yet they decay: {leaves}. A zeroed gradient does not stop decay: "
        "give them 0.0 in `parts`, or freeze them by `optax.partition` with `optax.set_to_zero`.",
    )
    warn(
        "dtype too coarse",
        lambda leaf: decays(leaf) and not leaf.keeps_master and _too_coarse(leaf),
        "the dtype is too coarse for the rate, so a step rounds back to the same weight: {leaves}. "
        "Keep the weights in float32, or wrap the optimiser in `float32_master` or "
        "`stochastic_rounding`.",
    )
    cancelled = {
        leaf.row.path
        for leaf, m in zip(leaves, part_multipliers, strict=True)
        if leaf.scale_free and is_known(m) and float(m) not in (0.0, 1.0)
    }
    warn(
        "part weights cancel",
        lambda leaf: leaf.row.path in cancelled,
        "constant part weights on the data loss cancel under an optimiser that divides by the "
        "gradient's size (Adam): {leaves}. They do nothing, or divide the strength of a penalty in "
        "the loss. Leave them out; if a part is meant to learn more slowly, scale the update after "
        "the optimiser, with `scale_by_parts`, or weigh its penalty or decay.",
    )
    warn(
        "grows",
        lambda leaf: leaf.grows,
        "the weights grow without a gradient: {leaves}. The decay has the wrong sign: place it "
        "after the learning rate in the chain (`decoupled_decay`), or use optax' before it.",
    )
    in_question = [leaf for leaf in leaves if leaf.row.unmeasured not in (None, L2_ADAPTIVE)]
    for reason in dict.fromkeys(leaf.row.unmeasured for leaf in in_question):
        warn(
            "cannot be measured",
            lambda leaf, reason=reason: leaf.row.unmeasured == reason,
            f"what decays these cannot be measured: {{leaves}}. Reason: {_as_text(reason)}. Put a "
            "decay whose rate is known, such as `decoupled_decay`, last in the chain, or take the "
            "rate from the optimiser's own formula.",
        )
    if num_waited:
        found.append(
            AuditWarning(
                "cannot be measured",
                (),
                f"in {num_waited} steps no weight moved, with or without a gradient: everything is "
                "frozen, or updates come less often than that (`optax.MultiSteps`). Pass "
                "`num_steps` of at least one whole cycle, or unfreeze something.",
            )
        )
    elif not any(
        decays(leaf) or leaf.penalty_pull > 0 or leaf.row.unmeasured or leaf.grows
        for leaf in leaves
    ):
        found.append(
            AuditWarning(
                "nothing decays",
                (),
                "no leaf decays at all. If that is not meant, give the optimiser a decay of "
                "strength above 0, and look whether the patterns in `parts` match, a mask is all "
                "False, or `optax.inject_hyperparams` swallowed it.",
            )
        )
    return found


def _as_text(reason: str | None) -> str:
    """For `str.format`, on one line and not longer than a sentence."""
    told = " ".join((reason or "").split())
    return (told if len(told) <= 300 else f"{told[:297]}...").replace("{", "{{").replace("}", "}}")


def _too_coarse(leaf: _Leaf) -> bool:
    """A step of relative size below half the spacing (eps / 2 to eps) is rounded away."""
    half = leaf.dtype.itemsize <= 2
    return half and leaf.row.peak_rate < float(jnp.finfo(leaf.dtype).eps) / 2
