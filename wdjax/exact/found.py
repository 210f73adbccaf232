"""What an evidence has found: the strength, its error bar, and whether to believe it."""

import math
from typing import NamedTuple

import numpy as np

from wdjax.selection.choice import Choice, choose
from wdjax.selection.scores import Scores
from wdjax.selection.search import Search
from wdjax.tables import format_number


class Evidence(NamedTuple):
    """The strength of highest evidence, with what comes with it."""

    search: Search
    """The log evidence of strengths around it, with choice, cost and doubts."""
    strength: float
    """Of the project's loss, a mean over examples."""
    log_evidence: float
    """There, in nats."""
    error: float
    """Standard error of log(strength), from the curvature of the log evidence."""
    precision: float
    """delta, the prior precision of a weight: w ~ N(0, 1 / delta)."""
    noise: float | None
    """Variance of the targets around the model; None where the likelihood has none (softmax)."""
    num_effective: float
    """gamma: how many weights the data determine, of all penalised."""
    params: dict[str, np.ndarray]
    """`kernel[feature, output]` and `bias[output]` of the minimum at that strength."""

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the strength, strength * exp(+-1.96 error)."""
        return _interval(self.strength, self.error)

    def __str__(self) -> str:
        return str(self.search)


LADDER = 10.0 ** np.linspace(-1, 1, 9)
"""The strengths whose evidence is told, as multiples of the best; 1 in the middle."""

DROP = 3.841458820694124 / 2
"""Nats below the best at which a strength leaves the 95 % set: half a chi-square of 1 degree."""


SETTLED = 1e-8
"""A fixed point in log(strength) that moves by no more has arrived."""

RUNS_AWAY = {
    1: "Do not believe this: the evidence grows with the strength without end; the features tell "
    "nothing of the targets that chance would not.",
    -1: "Do not believe this: the evidence grows towards strength 0; the model fits the targets "
    "without an error left over.",
}
"""A doubt for each end that a fixed point may run to."""


def _interval(strength: float, error: float) -> tuple[float, float]:
    factor = float(np.exp(min(1.96 * error, 700.0)))  # Beyond, float64 has no number.
    return strength / factor, strength * factor


def choice_of_evidence(
    strength: float, log_evidence: np.ndarray, error: float
) -> tuple[Scores, Choice]:
    """The ladder around a strength as scores, the strength chosen, with its likelihood set."""
    values = {"log_evidence": np.asarray(log_evidence)[:, None, None]}
    scores = Scores({"strength": strength * LADDER}, values, None, {"log_evidence": True})
    middle = len(LADDER) // 2
    inside = np.flatnonzero(log_evidence >= log_evidence.max() - DROP)
    choice = choose(scores, value="log_evidence")._replace(
        index=middle,
        hparams={"strength": float(strength)},
        mean=float(log_evidence[middle]),
        rule="evidence",
        reason=(
            "The strength that makes the data most probable; 95 % interval "
            f"{' to '.join(map(format_number, _interval(strength, error)))}, from the curvature of "
            "the evidence."
        ),
        confident_set=tuple(inside.tolist()),
    )
    return scores, choice


def doubts_of(moved: float, end: int, most_steps: int, error: float) -> tuple[str, ...]:
    """Why not to believe a fixed point: it ran away, never settled, or is all but flat."""
    if end:
        return (RUNS_AWAY[end],)
    if moved > SETTLED:
        return (
            f"Do not believe this: the strength was still moving after {most_steps} steps, by a "
            f"factor of {math.exp(moved):.3g} in the last.",
        )
    if math.isfinite(error) and 1.96 * error <= math.log(10):
        return ()
    return (
        "Do not believe this: the evidence is so flat that a strength ten times as large or small "
        "is within its 95 % interval; there are too few examples, or the features tell too little.",
    )


def doubts_of_ladder(scores: Scores) -> tuple[str, ...]:
    """A doubt where another strength of the ladder is more probable than the fixed point."""
    log_evidence = scores.of("log_evidence")[:, 0, 0]
    best, middle = int(np.argmax(log_evidence)), len(LADDER) // 2
    if log_evidence[best] - log_evidence[middle] <= DROP:
        return ()
    return (
        f"Do not believe this: strength {format_number(scores.grid['strength'][best])} is more "
        f"probable by {log_evidence[best] - log_evidence[middle]:.3g} nats; the Hessian changes "
        "with the strength, which the fixed point leaves out.",
    )
