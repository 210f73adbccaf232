"""Where a search by slopes puts its rows: closed forms, from near and from three decades away."""

import numpy as np
import pytest

from wdjax.selection.next_row import Seen, next_row, promise, still_falling

DECADE = np.log(10.0)
ANYWHERE = np.array([[-np.inf], [np.inf]])


def searched(value, slope, start, *, most, scatter=0.0, folds=5, seeds=1, zero=np.nan, wild=None):
    """Rows placed until no more is needed, of runs whose minima scatter by as much.

    Returns the points, what is seen of them, and why it ended (None at the most rows)."""
    rng = np.random.default_rng(7)
    number = len(start)
    shifts = scatter * rng.normal(size=(folds, seeds, number))
    hardness = rng.normal(size=(folds, seeds))
    box = np.repeat(ANYWHERE, number, axis=1)
    points, losses, slopes = [np.array(start, float)], [], []
    while True:
        at = points[-1] - shifts
        losses.append(np.apply_along_axis(value, -1, at) + hardness)
        slopes.append(np.moveaxis(np.apply_along_axis(slope, -1, at), -1, 0))
        if wild is not None:
            slopes[-1] = slopes[-1] + wild(points[-1], rng, slopes[-1].shape)
        zeros = np.broadcast_to(zero + hardness, (len(points), folds, seeds))
        seen = Seen.of(np.array(points), np.array(losses), np.array(slopes), zeros)
        if len(points) == most:
            return np.array(points), seen, None
        following = next_row(seen, box, None if np.isnan(zero) else 0)
        if isinstance(following, str):
            return np.array(points), seen, following
        points.append(following)


class Ridge:
    """Held-out loss of ridge in the logarithm of its strength: flat on both sides, and steep."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.x, self.fresh = rng.normal(size=(40, 20)), rng.normal(size=(400, 20))
        w = 0.5 * rng.normal(size=20)
        self.y = self.x @ w + 2 * rng.normal(size=40)
        self.target = self.fresh @ w + 2 * rng.normal(size=400)
        grid = np.linspace(-12, 8, 2001)[:, None]
        of_grid = np.array([self.value(at) for at in grid])
        self.minimum, self.optimum = of_grid.min(), grid[of_grid.argmin()]
        self.at_zero = self.value(np.array([-40.0]))

    def system(self, at):
        return self.x.T @ self.x / 40 + np.exp(at[0]) * np.eye(20)

    def weights(self, at):
        return np.linalg.solve(self.system(at), self.x.T @ self.y / 40)

    def value(self, at):
        return np.mean((self.fresh @ self.weights(at) - self.target) ** 2) / 2

    def slope(self, at):
        w = self.weights(at)
        gradient = self.fresh.T @ (self.fresh @ w - self.target) / 400
        return -np.exp(at) * (gradient @ np.linalg.solve(self.system(at), w))


RIDGE = Ridge()


@pytest.mark.parametrize("decades", range(-3, 4))
@pytest.mark.parametrize("scatter", [0.0, 0.3])
def test_the_ridge_optimum_is_found_in_six_rows_from_three_decades_away(decades, scatter):
    start = RIDGE.optimum + decades * DECADE
    points, seen, _ = searched(
        RIDGE.value, RIDGE.slope, start, most=6, scatter=scatter, zero=RIDGE.at_zero
    )
    # Of the rise on both sides; scattered runs have another minimum than one run.
    regret = RIDGE.value(seen.points[seen.best]) - RIDGE.minimum
    assert regret < (0.01 if scatter == 0 else 0.03) * (RIDGE.at_zero - RIDGE.minimum)
    assert len(points) <= (3 if decades == 0 else 4 if abs(decades) < 3 else 6)


def tilted(at):
    a, b = at[0] - 1, at[1] + 2
    return 0.1 * a * a + 0.2 * b * b + 0.1 * a * b


def tilted_slope(at):
    a, b = at[0] - 1, at[1] + 2
    return np.array([0.2 * a + 0.1 * b, 0.4 * b + 0.1 * a])


def valley(at):
    return -np.exp(-tilted(at) / 2)


def valley_slope(at):
    return np.exp(-tilted(at) / 2) * tilted_slope(at) / 2


@pytest.mark.parametrize("decades", [(-3, -3), (0, 3), (-2, 1), (0.1, 0.1)], ids=str)
def test_two_numbers_are_found_together(decades):
    start = np.array([1.0, -2.0]) + np.array(decades) * DECADE
    points, seen, _ = searched(tilted, tilted_slope, start, most=9, scatter=0.2)
    # From three decades away in both it falls by 19.
    assert tilted(seen.points[seen.best]) < 0.05 and len(points) <= 8


@pytest.mark.parametrize("decades", [(1.5, 1.5), (0, 2)], ids=str)
def test_two_numbers_are_found_from_a_plain(decades):
    start = np.array([1.0, -2.0]) + np.array(decades) * DECADE
    _, seen, _ = searched(valley, valley_slope, start, most=9, scatter=0.2)
    assert valley(seen.points[seen.best]) < -0.97


def test_slopes_that_run_away_beyond_the_best_are_left_out_and_values_believed():
    """As measured of networks at a constant learning rate: right below, a hundred times the truth
    and of any sign in single runs beyond."""

    def wild(at, rng, shape):
        beyond = at[0] > 0.5
        return beyond * (20 + 100 * rng.standard_t(1.5, size=shape))

    bowl, slope = lambda at: 0.05 * at[0] ** 2, lambda at: 0.1 * at
    for start in (1.5, 3.0):
        _, seen, _ = searched(bowl, slope, [start], most=6, scatter=0.3, wild=wild, zero=0.8)
        beyond = seen.points[:, 0] > 0.5
        assert beyond.any() and seen.run_away[beyond].all() and not seen.run_away[~beyond].any()
        assert bowl(seen.points[seen.best]) < 0.03


def seen_of(points, values, slopes, *, spread=0.01, folds=5, zero=np.nan):
    rng = np.random.default_rng(0)
    values, slopes = np.array(values, float), np.array(slopes, float)
    each = values[:, None, None] + spread * rng.normal(size=(len(values), folds, 1))
    own = slopes[:, None, None, None] + spread * rng.normal(size=(len(values), 1, folds, 1))
    at_zero = np.broadcast_to(zero, each.shape)
    return Seen.of(np.array(points, float)[:, None], each, own, at_zero)


def test_slopes_that_contradict_values_are_not_believed():
    seen = seen_of([0.0, 1.0, 5.0], [1.0, 2.0, 2.1], [-1.0, -1.0, 0.1])
    assert seen.run_away[:, 0].tolist() == [True, True, False]
    assert np.isnan(seen.slopes[:2]).all()


def test_one_run_a_thousand_times_off_changes_little():
    slopes = np.full((1, 1, 5, 1), 0.2) + 0.01 * np.arange(5).reshape(1, 1, 5, 1)
    slopes[0, 0, 3] = -1100.0
    slopes[0, 0, 4] = np.inf
    losses = np.zeros((1, 5, 1))
    seen = Seen.of(np.zeros((1, 1)), losses, slopes, np.full((1, 5, 1), np.nan))
    assert 0.19 < seen.slopes[0, 0] < 0.23 and seen.slope_errors[0, 0] < 0.1


def test_slopes_of_zero_of_a_score_that_goes_in_steps_are_not_seen():
    seen = seen_of([0.0, 1.0], [1.0, 2.0], [0.0, 0.0], spread=0.0)
    assert np.isnan(seen.slopes).all() and not seen.run_away.any()


def test_it_goes_down_where_it_is_worse_than_zero_whatever_the_slope_says():
    # Where everything has decayed nothing is learnt, and slopes point anywhere.
    at = lambda zero, slope: next_row(seen_of([0.0], [2.3], [slope], zero=zero), ANYWHERE, 0)
    assert at(1.0, -0.5)[0] < -1 and at(2.3, 0.0)[0] > 1 and at(3.0, 0.5)[0] < -1


def test_below_a_row_that_cannot_be_told_from_zero_nothing_is_looked_for():
    rows = [0.0, -1.6], [1.5, 1.0], [0.3, 0.35]
    towards = lambda zero: still_falling(seen_of(*rows, zero=zero), ANYWHERE, 0).tolist()
    assert towards(1.0) == [0] and towards(0.5) == [-1] and towards(np.nan) == [-1]


def test_it_stays_within_the_ends_and_short_of_what_diverged():
    box = np.array([[-2.0], [0.5]])
    seen = seen_of([0.0], [1.0], [-3.0])
    assert next_row(seen, box)[0] == 0.5
    diverged = seen._replace(diverged=np.array([[1.0]]))
    assert next_row(diverged, ANYWHERE)[0] == pytest.approx(0.5)
    nothing = Seen.of(
        np.zeros((1, 1)),
        *(np.full(shape, np.nan) for shape in ((1, 5, 1), (1, 1, 5, 1), (1, 5, 1))),
    )
    assert next_row(nothing, ANYWHERE)[0] < -1
    assert next_row(nothing, np.array([[0.0], [1.0]])) == "Every row diverged."


def test_a_promise_below_its_error_is_no_reason_for_another_row():
    points, values = [-2.0, 0.0, 2.0], [1.02, 1.0, 1.02]
    flat = seen_of(points, values, [-0.02, 0.002, 0.02], spread=0.1)
    told = next_row(flat, ANYWHERE)
    assert isinstance(told, str) and ("less than the error" in told or "at a row" in told)
    found = promise(seen_of([-2.0, 2.0], [3.0, 2.0], [-1.5, 1.0]), ANYWHERE)
    assert -1 < found.there[0] < 2 and found.gain > 0
