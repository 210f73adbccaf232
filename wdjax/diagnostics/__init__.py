"""Who is decayed by how much: described, measured, followed through a run."""

from wdjax.diagnostics.description import DecayReport as DecayReport
from wdjax.diagnostics.description import LeafDecay as LeafDecay
from wdjax.diagnostics.description import describe_decay as describe_decay
from wdjax.diagnostics.inspection import AuditReport as AuditReport
from wdjax.diagnostics.inspection import AuditWarning as AuditWarning
from wdjax.diagnostics.inspection import audit as audit
from wdjax.diagnostics.telemetry import measure_parts as measure_parts
