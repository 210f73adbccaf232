"""Audits a reconstruction: who decays by how much, at the peak of the learning rate and at last."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import wdjax
from experiments.audits.codebases import Codebase, Schedule
from experiments.audits.trees import small_params, weights_of

HELD = 128
"""Steps at the peak, and as many at the end: momentum of 0.9 has forgotten its start by then."""

OF_SHORT_RUNS = "too weak to matter"
"""The warning that the length of the run decides, which is not the audit's here."""


def learning_rates(row: Codebase) -> np.ndarray:
    """The schedule's value at each step of the run."""
    return np.asarray(jax.vmap(row.learning_rate)(jnp.arange(row.num_steps)), np.float64)


def peak_and_last(row: Codebase) -> tuple[float, float]:
    rates = learning_rates(row)
    return float(rates.max()), float(rates[-1])


def held(peak: float, last: float) -> Schedule:
    """The peak for `HELD` steps, then the last value."""
    return lambda t: jnp.where(t < HELD, peak, last)


def report_of(row: Codebase) -> wdjax.diagnostics.AuditReport:
    """The audit of the optimiser on small weights of its model's names."""
    tx = row.make(held(*peak_and_last(row)))
    return wdjax.audit(small_params(row.tree), tx, num_steps=2 * HELD)


def removed_in_run(row: Codebase) -> float | None:
    """`1 - prod_t(1 - rate_t)`, of the formula; negative where weights grow."""
    if row.rate is None:
        return None
    rates = np.asarray(row.rate(learning_rates(row)), np.float64) * np.ones(row.num_steps)
    return -math.expm1(float(np.log1p(-rates).sum()))


def facts_of(row: Codebase) -> dict[str, Any]:
    """What the page says of a row, as plain numbers."""
    report, (peak, last) = report_of(row), peak_and_last(row)
    leaves = {leaf.path: _leaf(leaf) for leaf in report.leaves}
    decaying = [path for path, leaf in leaves.items() if leaf["at_peak"] or leaf["unmeasured"]]
    weights = {path: weights_of(row.tree, path) for path in leaves}
    share = sum(weights[path] for path in decaying) / sum(weights.values())
    return {
        "leaves": leaves,
        "decaying": decaying,
        "share": share if row.tree.whole else None,
        "peak_learning_rate": peak,
        "last_learning_rate": last,
        "removed": removed_in_run(row),
        "warnings": sorted({w.kind for w in report.warnings} - {OF_SHORT_RUNS}),
    }


def _leaf(leaf: Any) -> dict[str, Any]:
    if leaf.unmeasured is not None:
        return {"at_peak": None, "at_end": None, "unmeasured": leaf.unmeasured}
    # The first half of the steps is at the peak: its largest, or lowest where weights grow.
    at_peak = leaf.peak_rate if leaf.rate >= 0 else leaf.rate
    return {"at_peak": at_peak, "at_end": leaf.last_rate, "unmeasured": None}
