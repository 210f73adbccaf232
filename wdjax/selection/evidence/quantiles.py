"""Quantiles: of the largest of correlated normals, and Student's."""

import functools
import math
import statistics

import numpy as np

DRAWS = 20_000
"""Draws of the largest of correlated normals, from a fixed seed: the same data, the same answer."""

_NORMAL = statistics.NormalDist()


def largest_quantile(
    correlation: np.ndarray, level: float, sides: int, normals: np.ndarray | None = None
) -> np.ndarray:
    """Step 5: the `level` quantile of the largest of correlated normals, `[...]`.

    Of `max_r |N(0, C)|`, or of `max_r N(0, C)` if `sides` is 1, for `correlation[..., row, row]`;
    a row whose diagonal is 0 takes no part. For one row it is the normal quantile itself, and it
    is never below that.
    """
    one = one_quantile(level, sides)
    rows = correlation.shape[-1]
    matrices = correlation.reshape(-1, rows, rows)
    found = np.full(len(matrices), one)
    if rows > 1:
        normals = _normals(rows) if normals is None else normals
        draws = normals.shape[1]
        place = min(int(level * draws), draws - 1)
        # Rows that are copies make the matrix singular: a jitter far below the draws' own error.
        factors = np.linalg.cholesky(matrices + 1e-9 * np.eye(rows))
        for i, factor in enumerate(factors.astype(normals.dtype)):
            drawn = factor @ normals
            largest = (np.abs(drawn) if sides == 2 else drawn).max(axis=0)
            found[i] = max(one, np.partition(largest, place)[place])
    return found.reshape(correlation.shape[:-2])


def one_quantile(level: float, sides: int) -> float:
    """The normal quantile of one gain, which one or two sides share."""
    return _NORMAL.inv_cdf(1 - (1 - level) / sides)


def student(freedom: int, c: np.ndarray | float) -> np.ndarray:
    """Step 6: Student's quantile with `freedom` degrees at Phi(c), c >= 0; 0 where there is none.

    Written here, to 9 digits, since importing scipy for it takes longer than all the rest.
    """
    c = np.asarray(c, np.float64)
    if freedom < 1:
        # Without a degree of freedom the variance beside it is 0 (one seed), or not a number.
        return np.zeros(c.shape)
    different, place = np.unique(c, return_inverse=True)
    tails = np.array([math.erfc(one / math.sqrt(2)) / 2 for one in different.tolist()])
    return student_of_tail(freedom, tails)[place.ravel()].reshape(c.shape)


def student_of_tail(freedom: int, tail: np.ndarray | float) -> np.ndarray:
    """Student's quantile that leaves `tail` <= 1/2 above it.

    Up to 1,000 degrees by bisection of the finite sums, beyond by the expansion in 1 / freedom.

    Source: Abramowitz & Stegun 1964, 26.7.3, 26.7.4 and 26.7.5.
    """
    tail = np.atleast_1d(np.asarray(tail, np.float64))
    if freedom > 1000:
        x = np.array([-_NORMAL.inv_cdf(one) for one in tail.tolist()])
        return (
            x
            + (x**3 + x) / (4 * freedom)
            + (5 * x**5 + 16 * x**3 + 3 * x) / (96 * freedom**2)
            + (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / (384 * freedom**3)
        )
    odd = freedom % 2
    j = np.arange(1, (freedom - odd) // 2)
    terms = np.cumprod(np.r_[1.0, (2 * j - 1 + odd) / (2 * j + odd)])
    powers = 2 * np.arange(len(terms)) + odd

    def above(angle: np.ndarray) -> np.ndarray:
        """The share above t = sqrt(freedom) tan(angle)."""
        inside = np.sin(angle) * (np.cos(angle)[:, None] ** powers @ terms)
        if odd:
            inside = 2 / math.pi * (angle + (inside if freedom > 1 else 0))
        return (1 - inside) / 2

    low, high = np.zeros(tail.shape), np.full(tail.shape, math.pi / 2)
    for _ in range(56):
        middle = (low + high) / 2
        low, high = np.where(above(middle) > tail, (middle, high), (low, middle))
    return math.sqrt(freedom) * np.tan(low)


@functools.lru_cache(maxsize=4)
def _normals(rows: int) -> np.ndarray:
    # float32: its rounding is far below the draws' own error, and it takes half the time.
    drawn = np.random.default_rng(0).standard_normal((rows, DRAWS), np.float32)
    drawn.flags.writeable = False
    return drawn
