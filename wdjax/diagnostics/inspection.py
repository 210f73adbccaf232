"""Who gets how much decay, measured from any optimiser, with warnings that say what to do."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from wdjax.checks import LARGEST_COUNT, check_positive_int
from wdjax.diagnostics.description import LeafDecay, leaf_decay, leaf_table
from wdjax.diagnostics.equilibrium import equilibrium
from wdjax.diagnostics.measurement import (
    Measured,
    measure_leaves,
)
from wdjax.diagnostics.penalty_pull import measure_penalty
from wdjax.diagnostics.probes import is_shape, length
from wdjax.diagnostics.warnings import Audited, AuditedLeaf, AuditWarning, find_warnings
from wdjax.parts.rules import Stacked, leaf_path, resolve_parts, stacked_axes
from wdjax.tables import Table
from wdjax.types import Batch, LossFn, Params, Parts, is_inexact


class AuditReport(NamedTuple):
    """Who gets how much decay, as measured, and what is probably not meant."""

    leaves: tuple[LeafDecay, ...]
    warnings: tuple[AuditWarning, ...]
    notes: tuple[str, ...] = ()
    """What else there is to say of it."""

    def table(self) -> Table:
        """One row a leaf; the warnings and the notes are its note."""
        lines = [f"Warning: {warning.text}" for warning in self.warnings] or ["No warning."]
        return leaf_table(self.leaves)._replace(note="\n".join([*lines, *self.notes]))

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
    also predicts, from random gradients, the norm and the angle where decay leads
    (`diagnostics.equilibrium`): for layers before a norm, since elsewhere the loss itself asks for
    a size. Rate and travel are those of the first 256 steps, the rate what a gate leaves of it
    among such gradients. Under descent, whose steps are as long as the gradients,
    `telemetry.measure_parts` predicts it from a real step.

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
    part_multipliers = jax.tree.leaves(resolve_parts(part_weights, params))
    leaves = _describe(params, measurement.leaves, rows, pulls, part_multipliers)
    audited = Audited(leaves, num_steps, steps_per_epoch, measurement.num_waited)
    return AuditReport(tuple(rows), find_warnings(audited))


def _check_arguments(
    params: Params,
    loss_fn: LossFn | None,
    batch: Batch | None,
    num_steps: int | None,
    steps_per_epoch: int | None,
) -> None:
    for name, count in (("num_steps", num_steps), ("steps_per_epoch", steps_per_epoch)):
        if count is not None:
            check_positive_int(name, count, high=LARGEST_COUNT)
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
    params: Params,
    measured: list[Measured],
    rows: list[LeafDecay],
    pulls: list[float],
    part_multipliers: list,
) -> list[AuditedLeaf]:
    """What the warnings look at."""
    leaves = []
    each = (jax.tree.leaves(params), measured, rows, pulls, part_multipliers)
    for leaf, m, row, pull, part_weight in zip(*each, strict=True):
        rate, slope = float(m.rates.mean()), float(m.slopes.mean())
        leaves.append(
            AuditedLeaf(
                row=row,
                dtype=np.dtype(jnp.result_type(leaf)) if is_inexact(leaf) else np.dtype(bool),
                to_zero=m.to_zero,
                grows=rate < 0 and slope < 0,
                penalty_pull=pull,
                moves=m.moves,
                scale_free=m.scale_free,
                keeps_master=m.keeps_master,
                part_weight=part_weight,
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
