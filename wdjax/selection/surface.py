"""A smooth model of a mean score over one or two numbers, from its values and its slopes."""

import itertools
from typing import NamedTuple

import numpy as np

LENGTHS = np.geomspace(0.7, 14.0, 7)
"""Length scales tried, in natural logarithms: from a factor of two to six decades."""


class Surface(NamedTuple):
    """A Gaussian process with a squared exponential kernel, conditioned on values and slopes.

        cov f(x), f(y) = s^2 exp(-1/2 sum_d ((x_d - y_d) / l_d)^2), of slopes by differentiation

    Errors of the observations are on the diagonal, the mean is a constant (generalised least
    squares), `s` and the lengths `l` those of the largest likelihood on a grid of lengths.

    Source: Rasmussen & Williams 2006, sections 2.7 and 9.4.
    """

    points: np.ndarray
    """`[point, number]`, logarithms."""
    slope_at: np.ndarray
    """`[observation]`: which number a slope is in, -1 for a value."""
    of_point: np.ndarray
    """`[observation]`: whose."""
    lengths: np.ndarray
    scale: float
    """s^2."""
    mean: float
    weights: np.ndarray
    """(K / s^2)^-1 (y - mean)."""
    inverse: np.ndarray
    """(K / s^2)^-1, K with the errors."""

    def predict(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The mean `[m]` and the covariance `[m, m]` of the score at `[m, number]`."""
        cross = _kernel(at, np.full(len(at), -1), *self._observed(), self.lengths)
        mean = self.mean + cross @ self.weights
        own = _kernel(at, np.full(len(at), -1), at, np.full(len(at), -1), self.lengths)
        return mean, self.scale * (own - cross @ self.inverse @ cross.T)

    def _observed(self) -> tuple[np.ndarray, np.ndarray]:
        return self.points[self.of_point], self.slope_at


def fit_surface(
    points: np.ndarray,
    values: np.ndarray,
    slopes: np.ndarray,
    value_errors: np.ndarray,
    slope_errors: np.ndarray,
) -> Surface:
    """The surface of `values[point]` and `slopes[point, number]`; a NaN slope was not seen.

    Args:
      points: `[point, number]`, the logarithms of the numbers.
      values: `[point]`.
      slopes: `[point, number]`, in the same logarithms.
      value_errors, slope_errors: standard errors, in the same shapes.
    """
    num_points, num_numbers = points.shape
    seen = np.isfinite(slopes)
    of_point = np.concatenate([np.arange(num_points), np.nonzero(seen)[0]])
    slope_at = np.concatenate([np.full(num_points, -1), np.nonzero(seen)[1]])
    told = np.concatenate([values, slopes[seen]])
    variances = np.concatenate([value_errors, slope_errors[seen]]) ** 2
    where = points[of_point]
    lengths = np.array(list(itertools.product(LENGTHS, repeat=num_numbers)))
    kernels = np.stack([_kernel(where, slope_at, where, slope_at, each) for each in lengths])
    which, scale, mean, inverse = _likeliest(kernels, told, variances, slope_at < 0)
    weights = inverse @ (told - mean * (slope_at < 0))
    return Surface(points, slope_at, of_point, lengths[which], scale, mean, weights, inverse)


def _likeliest(
    kernels: np.ndarray, told: np.ndarray, variances: np.ndarray, is_value: np.ndarray
) -> tuple[int, float, float, np.ndarray]:
    """Which of the kernels, s^2, the mean and (K / s^2)^-1 of the largest likelihood."""
    spread = max(float(np.var(told[is_value])), float(np.max(variances)), 1e-300)
    scales = spread * np.geomspace(0.1, 1e4, 9)
    diagonals = np.einsum("kii->ki", kernels)
    # A share of the kernel's own diagonal: near-equal rows must not make it singular.
    noise = variances / scales[:, None, None] + 1e-10 * diagonals
    of_each = kernels + noise[..., None] * np.eye(len(told))  # [scale, kernel, told, told]
    values, vectors = np.linalg.eigh(of_each)
    values = np.maximum(values, 1e-14 * values[..., -1:])
    along = lambda vector: np.einsum("skij,i->skj", vectors, vector)
    seen, ones = along(told), along(is_value.astype(np.float64))
    means = (ones * seen / values).sum(-1) / (ones**2 / values).sum(-1)
    misfit = ((seen - means[..., None] * ones) ** 2 / values).sum(-1) / scales[:, None]
    likelihood = -0.5 * (misfit + len(told) * np.log(scales)[:, None] + np.log(values).sum(-1))
    best = np.unravel_index(int(np.argmax(likelihood)), likelihood.shape)
    inverse = (vectors[best] / values[best]) @ vectors[best].T
    return int(best[1]), float(scales[best[0]]), float(means[best]), inverse


def _kernel(
    x: np.ndarray, x_slope: np.ndarray, y: np.ndarray, y_slope: np.ndarray, lengths: np.ndarray
) -> np.ndarray:
    """Covariances (s = 1) of values and slopes at `x` with those at `y`, `[x, y]`."""
    apart = x[:, None, :] - y[None, :, :]
    kernel = np.exp(-0.5 * np.sum((apart / lengths) ** 2, axis=-1))
    scaled = apart / lengths**2
    along = lambda which: np.take_along_axis(
        scaled, np.broadcast_to(np.maximum(which, 0)[..., None], (*kernel.shape, 1)), axis=-1
    )[..., 0]
    by_x, by_y = along(x_slope[:, None]), along(y_slope[None, :])
    of_x, of_y = (x_slope >= 0)[:, None], (y_slope >= 0)[None, :]
    same = x_slope[:, None] == y_slope[None, :]
    curved = same / lengths[np.maximum(x_slope, 0)][:, None] ** 2 - by_x * by_y
    factor = np.where(of_x & of_y, curved, np.where(of_x, -by_x, np.where(of_y, by_y, 1.0)))
    return kernel * factor
