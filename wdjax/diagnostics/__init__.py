"""Who is decayed by how much: described, measured, followed through a run.

Example:
  >>> report = wdjax.audit({"kernel": jnp.ones((2, 2))}, optax.adamw(0.01, weight_decay=0.1))
  >>> print(f"{report.leaves[0].rate:.4f} a step, half-life {report.leaves[0].half_life:.0f} steps")
  0.0010 a step, half-life 693 steps
"""

from wdjax.diagnostics.assertion import assert_decays as assert_decays
from wdjax.diagnostics.description import DecayReport as DecayReport
from wdjax.diagnostics.description import LeafDecay as LeafDecay
from wdjax.diagnostics.description import describe_decay as describe_decay
from wdjax.diagnostics.inspection import AuditReport as AuditReport
from wdjax.diagnostics.inspection import AuditWarning as AuditWarning
from wdjax.diagnostics.inspection import audit as audit
from wdjax.diagnostics.telemetry import measure_parts as measure_parts
