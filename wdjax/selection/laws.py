"""Power laws through numbers of known errors, and what they predict: random-effects regression."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from wdjax.selection.evidence.inputs import check_level, checked_axes, checked_fit
from wdjax.selection.evidence.quantiles import student_of_tail


class Prediction(NamedTuple):
    """A predicted value with the interval that the true one lies in."""

    value: float
    low: float
    high: float
    level: float

    @property
    def factor(self) -> float:
        """How wide the interval is, `high / low`."""
        return self.high / self.low if self.low > 0 else math.inf


class Law(NamedTuple):
    """`log y = a + sum_d b_d log x_d`, fitted to points of known errors; see `fit_law`."""

    names: tuple[str, ...]
    """Of the sizes x_d."""
    intercept: float
    exponents: tuple[float, ...]
    covariance: np.ndarray
    """Of `(intercept, *exponents)`, scaled as their errors are."""
    between: float
    """tau: the standard deviation of a point about the law beyond its own error."""
    freedom: int
    """Points less coefficients."""
    misfit: float
    """Cochran's Q: the squared residuals of the fit without tau, in units of the errors."""
    misfit_chance: float
    """The chance of so large a misfit if the errors were all there is."""

    @property
    def standard_errors(self) -> tuple[float, ...]:
        """Of the exponents."""
        return tuple(np.sqrt(np.diag(self.covariance))[1:].tolist())

    def log_at(self, sizes: Mapping[str, Any]) -> float:
        """The law's value at some sizes, as a natural logarithm."""
        logs = (math.log(sizes[name]) for name in self.names)
        return self.intercept + sum(b * x for b, x in zip(self.exponents, logs, strict=True))

    def predict(self, sizes: Mapping[str, Any], *, level: float = 0.95) -> Prediction:
        """What the law gives at other sizes, and where the value there lies.

            exp(x'b +- t sqrt(x' Cov x + tau^2)),  x = (1, log sizes),  t: Student's, k - p degrees

        Raises:
          ValueError: for a level outside (0, 1).

        Source: Higgins et al. 2009, section 4; Knapp & Hartung 2003.
        """
        check_level(level)
        x = np.array([1.0, *(math.log(sizes[name]) for name in self.names)])
        spread = math.sqrt(max(0.0, float(x @ self.covariance @ x)) + self.between**2)
        half = float(student_of_tail(self.freedom, (1 - level) / 2)[0]) * spread
        middle = self.log_at(sizes)
        return Prediction(_exp(middle), _exp(middle - half), _exp(middle + half), level)

    def __str__(self) -> str:
        """`y = 3.1 rows^-0.52 width^0.61`, exponents with their standard errors."""
        powers = zip(self.names, self.exponents, self.standard_errors, strict=True)
        return " ".join(f"{name}^({b:.2f} +- {error:.2f})" for name, b, error in powers)


def fit_law(sizes: Mapping[str, Any], logs: Any, standard_errors: Any) -> Law:
    """Fits `log y = a + sum_d b_d log x_d` by generalised least squares with random effects.

        weights w_i = 1 / (s_i^2 + tau^2),  Cov = max(1, q) (X' W X)^-1
        tau^2 = max(0, (Q - (k - p)) / (sum w - tr((X' W X)^-1 X' W^2 X)))  at w_i = 1 / s_i^2
        Q = sum_i w_i r_i^2  there;  q = sum_i w_i r_i^2 / (k - p)  at the final weights

    for k points and p coefficients: tau^2 is DerSimonian & Laird's, the points' own scatter about
    the law; q is Knapp & Hartung's factor, which only widens. A point of infinite error has no
    weight and is none of the k.

    Args:
      sizes: `{name: x[point]}`, positive.
      logs: `[point]`, natural logarithms of y.
      standard_errors: `[point]` of `logs`, positive, infinite for a point that is not known.

    Raises:
      ValueError: for shapes that do not fit, sizes or errors that are not positive, points that
        are no more than the coefficients, or sizes that do not vary apart from one another.

    Sources: DerSimonian & Laird 1986; Knapp & Hartung 2003; Thompson & Higgins 2002, for several
    covariates.

    Example:
      >>> rows, logs = [250, 500, 1000, 2000], [1.6, 1.0, 0.9, 0.5]
      >>> law = wdjax.selection.fit_law({"rows": rows}, logs, [0.2] * 4)
      >>> print(law)
      rows^(-0.49 +- 0.13)
      >>> prediction = law.predict({"rows": 4000})
      >>> f"{prediction.value:.1f} ({prediction.low:.1f} to {prediction.high:.1f})"
      '1.2 (0.4 to 3.3)'
    """
    y = checked_axes("logs", np.asarray(logs), ("point",))
    given = {**sizes, "standard_errors": standard_errors}
    *columns, errors = (
        checked_fit(name, np.asarray(values), y.shape, "`logs`") for name, values in given.items()
    )
    for name, values in (*zip(sizes, columns, strict=True), ("standard_errors", errors)):
        if not (values > 0).all():
            raise ValueError(f"`{name}` must be positive, got {values[~(values > 0)][0]:g}.")
    counted = np.isfinite(errors) & np.isfinite(y)
    design = np.column_stack([np.ones(len(y)), *map(np.log, columns)])[counted]
    y, errors = y[counted], errors[counted]
    freedom = len(y) - design.shape[1]
    if freedom < 1:
        raise ValueError(
            f"a law of {design.shape[1]} coefficients needs {design.shape[1] + 1} points or more "
            f"of known error; got {len(y)}."
        )
    if np.linalg.matrix_rank(design) < design.shape[1]:
        raise ValueError(
            f"the sizes {', '.join(sizes)} do not vary apart from one another, so no law tells "
            "them apart: vary each alone at least once, or leave one out."
        )
    weights = 1 / errors**2
    _, inverse, misfit = _solve(design, y, weights)
    spare = weights.sum() - np.trace(inverse @ (design.T * weights**2) @ design)
    between = max(0.0, (misfit - freedom) / spare)
    found, inverse, left = _solve(design, y, 1 / (errors**2 + between))
    return Law(
        names=tuple(sizes),
        intercept=float(found[0]),
        exponents=tuple(found[1:].tolist()),
        covariance=max(1.0, left / freedom) * inverse,
        between=math.sqrt(between),
        freedom=freedom,
        misfit=misfit,
        misfit_chance=chi_square_above(misfit, freedom),
    )


def chi_square_above(x: float, freedom: int) -> float:
    """The chance that chi-square with `freedom` degrees lies above x.

    Source: Abramowitz & Stegun 1964, 26.4.4 and 26.4.5.
    """
    half = max(0.0, x) / 2
    odd = freedom % 2
    total = math.erfc(math.sqrt(half)) if odd else math.exp(-half)
    for k in range((freedom - 1) // 2):
        a = k + (0.5 if odd else 1.0)
        total += math.exp(a * math.log(half) - half - math.lgamma(a + 1)) if half > 0 else 0.0
    return total


def _solve(
    design: np.ndarray, y: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Weighted least squares: coefficients, `(X' W X)^-1`, weighted squares of the residuals."""
    root = np.sqrt(weights)
    scaled, wanted = root[:, None] * design, root * y
    orthogonal, triangle = np.linalg.qr(scaled)
    found = np.linalg.solve(triangle, orthogonal.T @ wanted)
    inverse = np.linalg.inv(triangle)
    return found, inverse @ inverse.T, float(np.sum((wanted - scaled @ found) ** 2))


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf
