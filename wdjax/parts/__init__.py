"""How much each part of the model counts: path rules -> one multiplier a leaf."""

from wdjax.moved import moved_names
from wdjax.parts.rules import ROLES as ROLES
from wdjax.parts.rules import Stacked as Stacked
from wdjax.parts.rules import inexact_leaves as inexact_leaves
from wdjax.parts.rules import is_hidden as is_hidden
from wdjax.parts.rules import leaf_path as leaf_path
from wdjax.parts.rules import leaf_role as leaf_role
from wdjax.parts.rules import matrices_only as matrices_only
from wdjax.parts.rules import resolve_parts as resolve_parts
from wdjax.parts.rules import stacked_axes as stacked_axes
from wdjax.parts.scaling import no_norms_or_biases as no_norms_or_biases
from wdjax.parts.scaling import scale_by_parts as scale_by_parts
from wdjax.parts.separate import counting_leaves as counting_leaves
from wdjax.parts.separate import leaves_of_parts as leaves_of_parts
from wdjax.parts.separate import times_own as times_own

__getattr__ = moved_names(
    __name__,
    dict.fromkeys(
        ("AuditReport", "AuditWarning", "DecayReport", "LeafDecay", "audit", "describe_decay"),
        "wdjax.diagnostics",
    ),
)
