"""Strengths in closed form: of ridge regression, and of the last layer of a network.

The loss is the project's own, so that a strength means here what it means in training:

    sum_i w_i l(x_i W + b, y_i) / sum_i w_i + strength / 2 * sum W^2

with b unpenalised. `leave_one_out` gives the held-out error of every example from one
decomposition; `ridge_evidence` and `softmax_evidence` give the strength that makes the data most
probable (the marginal likelihood; another thing than the evidence for a gain in
`wdjax.selection.evidence`). All is computed in float64 on the CPU, whatever the default dtype.

Features may be what a trained network gives to its last layer, of examples that it was *not*
trained on: in those that it was, it has seen the targets, and nothing is left out of that.

Example:
  >>> x, noise = np.random.default_rng(0).normal(size=(2, 100, 12))
  >>> y = x @ np.full(12, 0.3) + 2 * noise[:, 0]
  >>> found = wdjax.leave_one_out(x, y, [0.0, 0.1, 0.3, 1.0, 3.0, 10.0])  # 600 fits from one
  >>> found.choice.hparams["strength"], found.believed
  (0.3, True)
  >>> print(f"{wdjax.ridge_evidence(x, y).strength:.1f}")
  0.4
"""

from wdjax.exact.found import Evidence as Evidence
from wdjax.exact.left_out import LeftOut as LeftOut
from wdjax.exact.left_out import leave_one_out as leave_one_out
from wdjax.exact.left_out import ridge_left_out as ridge_left_out
from wdjax.exact.ridge import ridge_evidence as ridge_evidence
from wdjax.exact.ridge import ridge_log_evidence as ridge_log_evidence
from wdjax.exact.softmax import laplace_evidence as laplace_evidence
from wdjax.exact.softmax import softmax_evidence as softmax_evidence
