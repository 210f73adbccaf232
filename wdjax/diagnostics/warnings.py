"""What an audit warns of: one function a warning, which says what was found and what to do."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from wdjax.checks import is_known
from wdjax.diagnostics.description import LeafDecay
from wdjax.diagnostics.measurement import L2_ADAPTIVE
from wdjax.types import Strength

LEAST_REMOVED = 0.01
"""The share of its norm that decay must remove from a leaf in a run to be more than nothing."""


class AuditWarning(NamedTuple):
    """Something about the decay that is probably not meant."""

    kind: str
    paths: tuple[str, ...]
    """The leaves it is about; empty where it is about all of them."""
    text: str
    """What was found and what to do, in a sentence or two."""


class AuditedLeaf(NamedTuple):
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
    part_weight: Strength
    """Its multiplier of the data loss."""

    @property
    def decays(self) -> bool:
        """Whether the optimiser removes a share of it."""
        return self.row.rate > 0


class Audited(NamedTuple):
    """What the warnings look at."""

    leaves: list[AuditedLeaf]
    num_steps: int | None
    steps_per_epoch: int | None
    num_waited: int
    """Updates made before giving up, see `Measurement`; 0 where one did something."""


def find_warnings(audited: Audited) -> tuple[AuditWarning, ...]:
    """All warnings, in the order of `WARNINGS`."""
    return tuple(warning for check in WARNINGS for warning in check(audited))


def _about(kind: str, leaves: Iterable[AuditedLeaf], text: str) -> list[AuditWarning]:
    """One warning that names the leaves where `text` says `{leaves}`; none about no leaf."""
    paths = tuple(leaf.row.path for leaf in leaves)
    some = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if paths[3:] else "")
    return [AuditWarning(kind, paths, text.format(leaves=some))] if paths else []


def _decayed_twice(audited: Audited) -> list[AuditWarning]:
    return _about(
        "decayed twice",
        (leaf for leaf in audited.leaves if leaf.decays and leaf.penalty_pull > 0),
        "decayed twice, by a penalty in the loss and by the optimiser: {leaves}. Keep one: take "
        "the penalty out, or set the optimiser's weight decay to 0.",
    )


def _norm_or_bias_decays(audited: Audited) -> list[AuditWarning]:
    small = (leaf for leaf in audited.leaves if leaf.row.role in ("gain", "bias"))
    return _about(
        "norm or bias decays",
        (leaf for leaf in small if leaf.to_zero or leaf.penalty_pull > 0),
        "norm gains or biases decay to zero: {leaves}. They are few and set scales, not "
        "complexity: pass parts=matrices_only, or decay gains to one (`decay_to_one`).",
    )


def _l2_under_adam(audited: Audited) -> list[AuditWarning]:
    in_loss = lambda leaf: leaf.penalty_pull > 0 and leaf.scale_free
    return _about(
        "L2 under Adam",
        (leaf for leaf in audited.leaves if in_loss(leaf) or leaf.row.unmeasured == L2_ADAPTIVE),
        "an L2 penalty in the loss, or L2 before the optimiser in the chain, under an optimiser "
        "that divides by the gradient's size (Adam): {leaves}. That is not a decay proportional to "
        "the weight, and weights with large gradients decay less: use `decoupled_decay` after the "
        "learning rate instead.",
    )


def _too_weak_to_matter(audited: Audited) -> list[AuditWarning]:
    if audited.num_steps is None:
        return []
    removed = lambda leaf: leaf.row.removed or 0.0
    return _about(
        "too weak to matter",
        (leaf for leaf in audited.leaves if leaf.decays and removed(leaf) < LEAST_REMOVED),
        f"in the run of {audited.num_steps} steps decay alone removes less than "
        f"{LEAST_REMOVED:.0%} of the norm: {{leaves}}. That changes next to nothing: raise the "
        "strength, train longer, or leave the decay out.",
    )


def _overshoots(audited: Audited) -> list[AuditWarning]:
    return _about(
        "overshoots",
        (leaf for leaf in audited.leaves if leaf.row.peak_rate >= 1),
        "a step removes a whole weight or more: {leaves}. Above 1 it changes sign at every step "
        "and from 2 on it grows; with a loss of curvature h under plain descent the bound is "
        "already learning rate * h + rate < 2. Lower the strength, or the learning rate that "
        "multiplies it, until the rate is well below 1.",
    )


def _half_life_too_short(audited: Audited) -> list[AuditWarning]:
    epoch = audited.steps_per_epoch
    if epoch is None:
        return []
    return _about(
        "half-life too short",
        (x for x in audited.leaves if x.row.half_life < epoch and x.row.peak_rate < 1),
        f"the half-life is shorter than an epoch of {epoch} steps: {{leaves}}. What "
        "was learnt from an example is gone before it is seen again: lower the strength.",
    )


def _frozen_but_decays(audited: Audited) -> list[AuditWarning]:
    return _about(
        "frozen but decays",
        (leaf for leaf in audited.leaves if leaf.decays and not leaf.moves),
        "no gradient moves these, yet they decay: {leaves}. A zeroed gradient does not stop decay: "
        "give them 0.0 in `parts`, or freeze them by `optax.partition` with `optax.set_to_zero`.",
    )


def _dtype_too_coarse(audited: Audited) -> list[AuditWarning]:
    def too_coarse(leaf: AuditedLeaf) -> bool:
        """A step of relative size below half the spacing (eps / 2 to eps) is rounded away."""
        half = leaf.dtype.itemsize <= 2
        return half and leaf.row.peak_rate < float(jnp.finfo(leaf.dtype).eps) / 2

    bound = (leaf for leaf in audited.leaves if leaf.decays and not leaf.keeps_master)
    return _about(
        "dtype too coarse",
        filter(too_coarse, bound),
        "the dtype is too coarse for the rate, so a step rounds back to the same weight: {leaves}. "
        "Keep the weights in float32, or wrap the optimiser in `float32_master` or "
        "`stochastic_rounding`.",
    )


def _part_weights_cancel(audited: Audited) -> list[AuditWarning]:
    is_partial = lambda m: is_known(m) and float(m) not in (0.0, 1.0)
    return _about(
        "part weights cancel",
        (leaf for leaf in audited.leaves if leaf.scale_free and is_partial(leaf.part_weight)),
        "constant part weights on the data loss cancel under an optimiser that divides by the "
        "gradient's size (Adam): {leaves}. They do nothing, or divide the strength of a penalty in "
        "the loss. Leave them out; if a part is meant to learn more slowly, scale the update after "
        "the optimiser, with `scale_by_parts`, or weigh its penalty or decay.",
    )


def _grows(audited: Audited) -> list[AuditWarning]:
    return _about(
        "grows",
        (leaf for leaf in audited.leaves if leaf.grows),
        "the weights grow without a gradient: {leaves}. The decay has the wrong sign: place it "
        "after the learning rate in the chain (`decoupled_decay`), or use optax' before it.",
    )


def _cannot_be_measured(audited: Audited) -> list[AuditWarning]:
    """A warning for each reason."""
    in_question = [x for x in audited.leaves if x.row.unmeasured not in (None, L2_ADAPTIVE)]
    return [
        warning
        for reason in dict.fromkeys(leaf.row.unmeasured for leaf in in_question)
        for warning in _about(
            "cannot be measured",
            (leaf for leaf in in_question if leaf.row.unmeasured == reason),
            f"what decays these cannot be measured: {{leaves}}. Reason: {_as_text(reason)}. Put a "
            "decay whose rate is known, such as `decoupled_decay`, last in the chain, or take the "
            "rate from the optimiser's own formula.",
        )
    ]


def _as_text(reason: str | None) -> str:
    """For `str.format`, on one line and not longer than a sentence."""
    told = " ".join((reason or "").split())
    return (told if len(told) <= 300 else f"{told[:297]}...").replace("{", "{{").replace("}", "}}")


def _nothing_moves(audited: Audited) -> list[AuditWarning]:
    if not audited.num_waited:
        return []
    text = (
        f"in {audited.num_waited} steps no weight moved, with or without a gradient: everything is "
        "frozen, or updates come less often than that (`optax.MultiSteps`). Pass "
        "`num_steps` of at least one whole cycle, or unfreeze something."
    )
    return [AuditWarning("cannot be measured", (), text)]


def _nothing_decays(audited: Audited) -> list[AuditWarning]:
    acts = lambda x: x.decays or x.penalty_pull > 0 or x.row.unmeasured or x.grows
    if audited.num_waited or any(map(acts, audited.leaves)):
        return []
    text = (
        "no leaf decays at all. If that is not meant, give the optimiser a decay of "
        "strength above 0, and look whether the patterns in `parts` match, a mask is all "
        "False, or `optax.inject_hyperparams` swallowed it."
    )
    return [AuditWarning("nothing decays", (), text)]


WARNINGS: tuple[Callable[[Audited], list[AuditWarning]], ...] = (
    _decayed_twice,
    _norm_or_bias_decays,
    _l2_under_adam,
    _too_weak_to_matter,
    _overshoots,
    _half_life_too_short,
    _frozen_but_decays,
    _dtype_too_coarse,
    _part_weights_cancel,
    _grows,
    _cannot_be_measured,
    _nothing_moves,
    _nothing_decays,
)
