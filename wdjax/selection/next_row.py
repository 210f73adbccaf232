"""Where a search by slopes puts its next row: what the rows so far tell of values and slopes."""

from typing import NamedTuple

import numpy as np

from wdjax.selection.surface import Surface, fit_surface

FIRST_STEP = np.log(5.0)
"""How far the second row lies from the first: rows four decades apart model worse, and nearer ones
tell little that the slopes have not told. A step that does not pass the minimum is doubled."""
LONGEST_STEP = np.log(100.0)
REACH = np.log(10.0)
"""How far beyond the rows the surface's minimum is looked for."""
NEAREST = np.log(1.2)
"""Rows nearer than this are one."""
TOO_STEEP = 4.0
"""How many times as steep as the values beside it a slope may be."""
SLOPE_SHARE = 0.2
"""A slope's error beside that of its runs, as a share of it: a median is no mean, and beyond the
best strength single runs are more sensitive than their mean is."""
SURE = 2.0
"""Standard errors."""


class Seen(NamedTuple):
    """The rows so far: where they lie, and what the runs say of value and slope."""

    points: np.ndarray
    """`[row, number]`, logarithms; of rows that are finite in every run."""
    values: np.ndarray
    """`[row]`: means."""
    value_errors: np.ndarray
    """`[row]`: of the difference to the best; folds that are harder are so in every row."""
    slopes: np.ndarray
    """`[row, number]`: medians over the runs, NaN where not believed."""
    slope_errors: np.ndarray
    """`[row, number]`: standard errors of the medians."""
    run_away: np.ndarray
    """`[row, number]`: slopes that the values beside them do not allow."""
    diverged: np.ndarray
    """`[row, number]`: where a run was not finite."""
    over_zero: tuple[np.ndarray, np.ndarray]
    """`[row]`: by how much the mean is below that at zero, and the error of that; NaN where there
    is no such row."""

    @classmethod
    def of(
        cls, points: np.ndarray, losses: np.ndarray, slopes: np.ndarray, zero: np.ndarray
    ) -> "Seen":
        """From `points[row, number]`, `losses[row, fold, seed]`, `slopes[row, number, fold, seed]`
        and the losses at zero of a row that is otherwise the same, `[row, fold, seed]`."""
        finite = np.isfinite(losses).all(axis=(1, 2))
        diverged, points, losses = points[~finite], points[finite], losses[finite]
        runs = np.concatenate(np.moveaxis(slopes[finite], 2, 0), axis=-1)
        middle, error = _median(runs)
        run_away = np.isfinite(middle) & ~_allowed(points, losses, middle, error)
        believed = np.where(run_away, np.nan, middle)
        values = losses.mean(axis=(1, 2))
        best = losses[[int(np.argmin(values))]] if len(values) else losses
        value_errors = _paired(losses - best)[1]
        over_zero = _paired(zero[finite] - losses)
        return cls(points, values, value_errors, believed, error, run_away, diverged, over_zero)

    @property
    def best(self) -> int:
        """The row with the lowest mean."""
        return int(np.argmin(self.values))

    def surface(self) -> Surface:
        """Through all of it."""
        share = SLOPE_SHARE * np.where(np.isfinite(self.slopes), self.slopes, 0)
        errors = np.hypot(self.slope_errors, share)
        return fit_surface(self.points, self.values, self.slopes, self.value_errors, errors)


class Promise(NamedTuple):
    """What another row would bring, by the surface."""

    there: np.ndarray
    """`[number]`: where the surface has its minimum."""
    gain: float
    error: float
    """Of the gain: of the surface, and of what tells two rows apart at all."""


def _paired(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`[row, fold, seed]`: mean and standard error over folds (over seeds if there is but one)."""
    each = differences.mean(axis=2) if differences.shape[1] > 1 else differences[:, 0]
    num = each.shape[1]
    error = each.std(axis=1, ddof=1) / np.sqrt(num) if num > 1 else np.zeros(len(each))
    return each.mean(axis=1), error


def _median(runs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Over the last axis, with its standard error: one run's slope may be 1,000 times off.

    NaN unless most are finite, and where all are 0: of a score that goes in steps, or of one that
    the number does not reach.
    """
    finite = np.isfinite(runs)
    known = (finite.mean(axis=-1) > 0.5) & (np.nan_to_num(runs) != 0).any(axis=-1)
    runs = np.where(known[..., None], np.where(finite, runs, np.nan), 0.0)
    middle = np.nanmedian(runs, axis=-1)
    deviation = 1.4826 * np.nanmedian(np.abs(runs - middle[..., None]), axis=-1)
    error = np.sqrt(np.pi / 2) * deviation / np.sqrt(runs.shape[-1])
    return np.where(known, middle, np.nan), error


def _allowed(
    points: np.ndarray, losses: np.ndarray, slopes: np.ndarray, errors: np.ndarray
) -> np.ndarray:
    """Whether a slope is one that the differences to the other rows allow, `[row, number]`.

    Along the line to another row, a smooth score that rises by d over h has slopes of about d / h.
    One that is many times steeper than the steepest such difference is not the mean's slope but
    single runs' sensitivity. And two rows whose slopes both point one way while the values go the
    other way are not both right: neither is believed.
    """
    allowed = np.ones(slopes.shape, bool)
    for row in range(len(points)):
        others = np.delete(np.arange(len(points)), row)
        if len(others) < 2:
            continue
        rise, error = _paired(losses[others] - losses[row])
        apart = np.linalg.norm(points[others] - points[row], axis=1)
        steepest = np.max((np.abs(rise) + SURE * error) / apart)
        allowed[row] &= np.abs(slopes[row]) <= TOO_STEEP * steepest
    for row in range(len(points)):
        for other in range(row):
            both = [row, other]
            step = points[row] - points[other]
            along, sure = slopes[both] @ step, 3 * np.linalg.norm(errors[both] * step, axis=1)
            rise, error = (float(x[0]) for x in _paired(losses[[row]] - losses[[other]]))
            falls, rises = (along < -sure).all(), (along > sure).all()
            if (falls and rise > 3 * error) or (rises and rise < -3 * error):
                allowed[both] = False
    return allowed


def next_row(seen: Seen, box: np.ndarray, toward_zero: int | None = None) -> np.ndarray | str:
    """The logarithms of the next row, or why none is needed.

    The first row is left against its slope. While the best row is the outermost and the score
    falls there no slower than at the row before, steps are doubled: far from a minimum a surface
    does not know where it lies. Else it is where the surface has its minimum.

    Args:
      seen: the rows so far.
      box: `[2, number]`, the least and the most.
      toward_zero: the number of which `seen.over_zero` speaks.
    """
    if not len(seen.points):
        there = np.clip(seen.diverged[-1] - FIRST_STEP, *box)
        stuck = np.abs(there - seen.diverged[-1]).max() < NEAREST
        return "Every row diverged." if stuck else there
    falling = still_falling(seen, box, toward_zero)
    if len(seen.points) == 1:
        return _second(seen, box, falling, toward_zero)
    found = promise(seen, box)
    near = np.abs(seen.points - found.there).max(axis=1).min() < NEAREST
    worth = not near and (found.gain > found.error or len(seen.points) < 3)
    steps = _doubled(seen, falling)
    if not worth and not steps.any():
        if near:
            return "The surface has its minimum at a row."
        gain = f"{max(found.gain, 0.0):.2g}"
        return f"Another row promises {gain}, less than the error of that, {found.error:.2g}."
    best = seen.points[seen.best]
    there = np.where(steps != 0, best + steps, found.there if worth else best)
    return _short_of_divergence(seen, np.clip(there, *box))


def still_falling(seen: Seen, box: np.ndarray, toward_zero: int | None = None) -> np.ndarray:
    """`[number]` of -1, 0 and 1: whither the score surely falls from the best row, where that is
    the outermost. Towards zero it does not if it cannot be told from that at zero."""
    best, directions = seen.best, np.zeros(seen.points.shape[1], int)
    for d in range(len(directions)):
        slope, error = _slope(seen, best, d)
        if not abs(slope) > SURE * error:
            continue
        way = -int(np.sign(slope))
        here, others = seen.points[best, d], np.delete(seen.points[:, d], best)
        outermost = (way * (others - here) < NEAREST / 2).all()
        at_the_end = abs(box[(way + 1) // 2, d] - here) < NEAREST
        gain, of_gain = (float(each[best]) for each in seen.over_zero)
        is_zero = d == toward_zero and way < 0 and abs(gain) <= SURE * of_gain
        directions[d] = way * (outermost and not at_the_end and not is_zero)
    return directions


def _slope(seen: Seen, row: int, number: int) -> tuple[float, float]:
    """Of a row in a number, with its error; by the nearest other row where not believed."""
    if np.isfinite(seen.slopes[row, number]):
        return float(seen.slopes[row, number]), float(seen.slope_errors[row, number])
    apart = np.abs(seen.points[:, number] - seen.points[row, number])
    apart = np.where(apart < NEAREST, np.inf, apart)
    other = int(np.argmin(apart))
    if not np.isfinite(apart[other]):
        return 0.0, np.inf
    step = float(seen.points[other, number] - seen.points[row, number])
    rise = float(seen.values[other] - seen.values[row])
    return rise / step, float(np.hypot(*seen.value_errors[[row, other]])) / abs(step)


def _second(
    seen: Seen, box: np.ndarray, falling: np.ndarray, toward_zero: int | None
) -> np.ndarray:
    ways, (gain, error) = falling.copy(), (float(each[0]) for each in seen.over_zero)
    if toward_zero is not None and gain < -SURE * error:
        # Worse than nothing at all: beyond the minimum, or where nothing is learnt any more and
        # the slope says nothing.
        ways[toward_zero] = -1
    if not ways.any():
        # As at zero, or at a minimum.
        ways[0 if toward_zero is None else toward_zero] = 1
    here = seen.points[0]
    for way in (ways, -ways):
        there = _short_of_divergence(seen, np.clip(here + way * FIRST_STEP, *box))
        if np.abs(there - here).max() >= NEAREST:
            return there
    return here


def _doubled(seen: Seen, falling: np.ndarray) -> np.ndarray:
    """`[number]`: the steps to take where the score falls no slower than at the row before."""
    best, steps = seen.best, np.zeros(len(falling))
    for d in np.flatnonzero(falling):
        inward = -falling[d] * (seen.points[:, d] - seen.points[best, d])
        before = int(np.argmin(np.where(inward < NEAREST, np.inf, inward)))
        if inward[before] < NEAREST:
            steps[d] = falling[d] * FIRST_STEP
        elif not abs(seen.slopes[best, d]) < 0.9 * abs(seen.slopes[before, d]):
            steps[d] = falling[d] * min(2 * inward[before], LONGEST_STEP)
    return steps


def promise(seen: Seen, box: np.ndarray) -> Promise:
    """Where the surface has its minimum, and how much lower it is than at the rows."""
    surface, best = seen.surface(), seen.points[seen.best]
    low = np.maximum(seen.points.min(axis=0) - REACH, box[0])
    high = np.minimum(seen.points.max(axis=0) + REACH, box[1])
    num = 161 if len(low) == 1 else 41
    axes = [np.linspace(a, b, num) for a, b in zip(low, high, strict=True)]
    places = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)
    places = places[_share(seen, best, places) <= 0.5]
    there = places[int(np.argmin(surface.predict(places)[0]))]
    at_rows = surface.predict(seen.points)[0]
    known = seen.points[int(np.argmin(at_rows))]
    mean, covariance = surface.predict(np.stack([known, there]))
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    error = np.hypot(np.sqrt(max(variance, 0.0)), _told_apart(seen, there))
    return Promise(there, float(mean[0] - mean[1]), float(error))


def _told_apart(seen: Seen, there: np.ndarray) -> float:
    """The error of the difference between a place and the best row: it grows with the distance, so
    it is a share of that of the nearest row."""
    apart = np.linalg.norm(seen.points - seen.points[seen.best], axis=1)
    apart[seen.best] = np.inf
    nearest = int(np.argmin(apart))
    share = np.linalg.norm(there - seen.points[seen.best]) / apart[nearest]
    return float(seen.value_errors[nearest]) * min(1.0, float(share))


def _share(seen: Seen, best: np.ndarray, places: np.ndarray) -> np.ndarray:
    """How far along the way from the best row to one that diverged each place lies, at most."""
    ways = seen.diverged - best
    shares = (places - best) @ ways.T / np.maximum((ways**2).sum(axis=1), 1e-300)
    return shares.max(axis=-1, initial=0.0)


def _short_of_divergence(seen: Seen, place: np.ndarray) -> np.ndarray:
    """At most half the way from the best row to one that diverged."""
    best = seen.points[seen.best]
    share = float(_share(seen, best, place[None])[0])
    return best + (place - best) * (0.5 / share if share > 0.5 else 1.0)
