"""Which part wants more of its strength, and which less: slopes of one row, with their evidence."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array

from wdjax.checks import check_number, check_one_of
from wdjax.selection.choice import Judged
from wdjax.selection.cross_validation import cross_validate
from wdjax.selection.evidence import errors_by_example, gains_by_example, gains_over_folds
from wdjax.selection.folds import Folds
from wdjax.selection.grids import grid_product
from wdjax.selection.scores import Scores
from wdjax.selection.trials import FitAndScore
from wdjax.tables import Estimate, Table, format_number
from wdjax.types import Batch

MOST_PARTS = 10
"""Each is a tangent through the whole run; beyond, reverse mode would be cheaper."""

LEVEL = 0.95
"""Of the intervals of all parts together."""

MORE, LESS, UNKNOWN = "wants more", "wants less", "no evidence"


class PartSlope(NamedTuple):
    """What one part's strength does to the score, where it stands."""

    part: str
    strength: float
    """Its own strength, or what it multiplies the shared one by."""
    slope: float
    """d score / d log strength, mean over held-out examples, folds and seeds."""
    error: float
    """Its standard error: which examples were held out, and which runs were made."""
    gain: float
    """The slope turned so that positive is better: what more strength gains."""
    low: float
    """Of the gain: 95 %, for all parts at once."""
    high: float

    @property
    def z(self) -> float:
        """The gain in standard errors: positive where the part wants more. NaN without an error."""
        return self.gain / self.error if self.error > 0 else float("nan")

    @property
    def wants(self) -> str:
        """`wants more`, `wants less`, or `no evidence` that the slope is not 0."""
        return MORE if self.low > 0 else LESS if self.high < 0 else UNKNOWN

    def __str__(self) -> str:
        return f"{self.part}: {self.wants} (z = {self.z:.1f})"


class PartSlopes(NamedTuple):
    """The slopes of all parts at one row."""

    parts: tuple[PartSlope, ...]
    method: str
    """What the errors are of: "examples" (and runs), or "folds" alone."""
    value: str = "loss"

    @property
    def z(self) -> np.ndarray:
        """`[part]`."""
        return np.array([part.z for part in self.parts])

    def table(self) -> Table:
        """One row a part."""
        rows = tuple(
            (p.part, p.strength, Estimate(p.slope, p.error), f"{p.z:.1f}", p.wants)
            for p in self.parts
        )
        of = "held-out examples and runs" if self.method == "examples" else "fold means alone"
        note = (
            f"Slope: d validation {self.value} / d log strength of the part, +- standard error "
            f"over {of}; z > 0: more is better. What a part wants holds for all "
            f"{len(self.parts)} parts at once with 95 %."
        )
        return Table(("part", "strength", "slope", "z", "evidence"), rows, note=note)

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and words."""
        parts = [{**p._asdict(), "z": p.z, "wants": p.wants} for p in self.parts]
        return {"parts": parts, "method": self.method, "value": self.value}

    @classmethod
    def of(
        cls, scores: Scores, parts: Sequence[str], *, value: str = "loss", row: int = 0
    ) -> "PartSlopes":
        """Of scores that have the slopes of these numbers.

        A part wants more if the interval of its gain lies above 0, less if below. The intervals
        are those of `choose`, of the slopes of single held-out examples in place of differences of
        losses (`evidence.gains_by_example`): they hold for all parts at once, so that of parts
        that do nothing one is said to want something in 5 % of searches at most.

        Raises:
          KeyError: if they have no such slopes.
          ValueError: for a score of unknown name or direction.
        """
        lower = not Judged.of(scores, value).higher_is_better
        name = value if value in scores.names else "score"
        means = np.stack([scores.slope_of(name, part)[row] for part in parts])
        turned = -means if lower else means
        gains, errors = gains_over_folds(turned, level=LEVEL), _errors_over_folds(turned)
        held_out = scores.held_out
        if held_out is not None and all(name in held_out.slopes.get(p, {}) for p in parts):
            each = np.stack([held_out.slopes[p][name][row] for p in parts]).astype(np.float64)
            of = (-each if lower else each), held_out.weights, held_out.groups
            by_example = gains_by_example(*of, level=LEVEL)
            if by_example.method == "examples" and not held_out.repeated:
                gains, errors = by_example, _errors(*of)
        strengths = [float(np.asarray(scores.grid[part])[row]) for part in parts]
        sign = -1.0 if lower else 1.0
        each_part = zip(parts, strengths, errors, *gains[:3], strict=True)
        return cls(
            tuple(
                PartSlope(part, at, float(sign * gain), float(error), float(gain), *ends)
                for part, at, error, gain, *low_and_high in each_part
                for ends in [map(float, low_and_high)]
            ),
            gains.method,
            value,
        )


def _errors(gains: np.ndarray, weights: Any, groups: Any) -> np.ndarray:
    finite = np.isfinite(np.where(np.asarray(weights)[:, None] > 0, gains, 0.0)).all(axis=(1, 2, 3))
    errors = np.full(len(gains), np.nan)
    if finite.any():
        errors[finite] = errors_by_example(gains[finite], weights, groups)
    return errors


def _errors_over_folds(gains: np.ndarray) -> np.ndarray:
    """With Nadeau & Bengio's term for training sets that overlap, as the intervals have."""
    fold_means, num_folds = gains.mean(axis=2), gains.shape[1]
    if num_folds < 2:
        return np.full(len(gains), np.nan)
    return fold_means.std(axis=1, ddof=1) * np.sqrt(1 / num_folds + 1 / (num_folds - 1))


def slopes_of_parts(
    fit_and_score: FitAndScore,
    at: Mapping[str, Any],
    data: Batch,
    folds: Folds,
    *,
    key: Array,
    parts: Any,
    num_seeds: int = 1,
    value: str = "loss",
    **how: Any,
) -> PartSlopes:
    """Tells which parts of a model want more decay and which less, from the runs of one row.

        slope_p = mean over held-out examples, folds and seeds of d score / d log strength_p

    One tangent a part goes through every run, all of them in one compiled program; the whole costs
    1 + P times the trainings of the row.

    Args:
      fit_and_score, data, folds, key, num_seeds: as for `cross_validate`. The function gives each
        part its own number, such as `wdjax.decoupled_decay(1.0, parts={"head/*": h["head"],
        "*": h["body"]})`.
      at: every number of the row, those of the parts above 0.
      parts: the names of the parts' numbers in `at`, ten at most.
      value: which score.
      how: what else `cross_validate` takes.

    Raises:
      ValueError: for no part or more than ten, a name that is not in `at` or stands twice, a
        strength of 0 or below, one fold, and as `cross_validate` with slopes.

    Source: Franceschi et al. 2017, arXiv:1703.01785, for the derivative.

    Example:
      >>> def ridge(h, train, valid, key):  # two blocks of features, a strength each
      ...     strengths = jnp.where(jnp.arange(30) < 2, h["first"], h["rest"])
      ...     gram = train.inputs.T @ train.inputs / len(train.targets) + jnp.diag(strengths)
      ...     w = jnp.linalg.solve(gram, train.inputs.T @ train.targets / len(train.targets))
      ...     return {"loss": wdjax.squared_error(valid.inputs @ w, valid.targets)}
      >>> x = np.random.default_rng(0).normal(size=(400, 30)).astype("float32")
      >>> noise = np.random.default_rng(1).normal(size=400).astype("float32")
      >>> data = wdjax.Batch(x, x[:, 0] + x[:, 1] + noise, np.ones(400, "float32"))
      >>> folds = wdjax.kfold(jax.random.key(0), 400, num_folds=5)
      >>> found = wdjax.selection.slopes_of_parts(
      ...     ridge,
      ...     {"first": 0.3, "rest": 0.3},
      ...     data,
      ...     folds,
      ...     key=jax.random.key(0),
      ...     parts=("first", "rest"),
      ... )
      >>> [part.wants for part in found.parts]
      ['wants less', 'wants more']
    """
    names = checked_parts(at, parts, folds)
    grid = grid_product(**at)
    scores = cross_validate(
        fit_and_score, grid, data, folds, key=key, num_seeds=num_seeds, slopes=names, **how
    )
    return PartSlopes.of(scores, names, value=value)


def checked_parts(at: Mapping[str, Any], parts: Any, folds: Folds) -> tuple[str, ...]:
    """The names of the parts' numbers, in a tuple.

    Raises:
      ValueError: as `slopes_of_parts`.
    """
    if isinstance(parts, str) or not 1 <= len(parts) <= MOST_PARTS:
        raise ValueError(
            f"`parts` must be one to {MOST_PARTS} names of numbers in a tuple, got {parts!r}: each "
            "carries a tangent through the whole run; join some in one pattern or role."
        )
    names = tuple(parts)
    for i, name in enumerate(names):
        check_one_of("parts", name, at)
        if name in names[:i]:
            raise ValueError(f"`parts` names {name!r} twice; each part has one slope.")
        check_number(f"the strength of {name!r}", at[name])
        if not at[name] > 0:
            raise ValueError(
                f"the strength of {name!r} must be above 0, got {format_number(float(at[name]))}: "
                "slopes are taken in the logarithm."
            )
    if len(folds.train) < 2:
        raise ValueError(
            "slopes of parts need two folds or more, got one: nothing would tell how much they "
            "depend on which examples are held out."
        )
    return names
