"""The model of a score over its numbers: against closed forms and differences."""

import numpy as np
import pytest

from wdjax.selection.surface import _kernel, fit_surface


@pytest.mark.parametrize("numbers", [1, 2])
def test_covariances_of_slopes_are_derivatives_of_those_of_values(numbers):
    rng, h = np.random.default_rng(0), 1e-4
    x, y = rng.normal(size=(4, numbers)), rng.normal(size=(3, numbers))
    lengths = np.array([0.8, 1.7])[:numbers]
    value = lambda x, y: _kernel(x, np.full(len(x), -1), y, np.full(len(y), -1), lengths)
    step = lambda d: h * np.eye(numbers)[d]
    for i in range(numbers):
        by_x = (value(x + step(i), y) - value(x - step(i), y)) / (2 * h)
        found = _kernel(x, np.full(4, i), y, np.full(3, -1), lengths)
        np.testing.assert_allclose(found, by_x, atol=1e-7)
        for j in range(numbers):
            both = sum(
                s * t * value(x + s * step(i), y + t * step(j)) for s in (1, -1) for t in (1, -1)
            ) / (4 * h * h)
            found = _kernel(x, np.full(4, i), y, np.full(3, j), lengths)
            np.testing.assert_allclose(found, both, atol=1e-6)


def bowl(x):
    """A score over two logarithms, flat on one side and steep on the other, and its slopes."""
    a, b = x[:, 0], x[:, 1]
    value = np.exp(0.5 * a) - 0.4 * a + 0.1 * (b - 0.3 * a) ** 2
    by_a = 0.5 * np.exp(0.5 * a) - 0.4 - 0.06 * (b - 0.3 * a)
    return value, np.stack([by_a, 0.2 * (b - 0.3 * a)], axis=1)


def test_it_goes_through_what_is_known_exactly_and_says_how_far_it_is_off_elsewhere():
    points = np.array([[-3.0, 1.0], [0.5, -1.0], [1.5, 1.0], [-1.0, 0.0]])
    values, slopes = bowl(points)
    nothing = np.full(4, 1e-6), np.full((4, 2), 1e-6)
    surface = fit_surface(points, values, slopes, *nothing)
    mean, covariance = surface.predict(points)
    np.testing.assert_allclose(mean, values, atol=1e-4)
    h = np.array([[1e-3, 0.0]])
    by_first = (surface.predict(points + h)[0] - surface.predict(points - h)[0]) / 2e-3
    np.testing.assert_allclose(by_first, slopes[:, 0], atol=1e-3)
    fresh = np.random.default_rng(1).uniform([-3, -1], [1.5, 1], size=(50, 2))
    mean, covariance = surface.predict(fresh)
    off = (mean - bowl(fresh)[0]) / np.sqrt(np.diag(covariance))
    assert np.abs(mean - bowl(fresh)[0]).max() < 0.1
    assert 0.05 < np.sqrt(np.mean(off**2)) < 3


def test_a_slope_that_was_not_seen_is_not_needed_and_a_noisy_one_counts_less():
    points = np.array([[-2.0], [0.0], [2.0]])
    values = (points[:, 0] - 0.5) ** 2
    true = 2 * (points - 0.5)
    wrong = true + np.array([[0.0], [40.0], [0.0]])
    small, fresh = np.full(3, 0.01), np.array([[1.0]])
    at = lambda slopes, errors: fit_surface(points, values, slopes, small, errors).predict(fresh)
    unseen = np.where(wrong != true, np.nan, true)
    little = np.full((3, 1), 0.01)
    exact, _ = at(true, little)
    without, _ = at(unseen, little)
    doubted, _ = at(wrong, np.where(wrong != true, 100.0, 0.01))
    assert abs(exact[0] - 0.25) < 0.05 and abs(without[0] - 0.25) < 0.25
    assert abs(doubted[0] - without[0]) < 0.1
