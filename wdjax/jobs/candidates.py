"""The grid that a selection tries: learning rates times strengths, asked for or by default."""

import numpy as np

from wdjax.checks import check_number
from wdjax.jobs.options import SelectOptions
from wdjax.jobs.setup import Prepared, check_overshoot, slope_axes
from wdjax.recipe.kinds import OPTIMIZER_KINDS, DecayKind
from wdjax.selection.grids import Grid, check_axis, grid_product


def strength_grid(options: SelectOptions, prepared: Prepared) -> Grid:
    """The candidates: learning rates times strengths, those asked for or the default ranges.

    Where there are several learning rates, pairs that would remove a whole weight a step or more
    are left out.

    Raises:
      ValueError: for a grid that is empty, repeats itself, or holds a value out of range.
    """
    learning_rates = _learning_rates(options, prepared)
    strengths = _strengths(options, prepared, learning_rates)
    dropout = {"dropout": options.dropout} if options.dropout else {}
    slopes = slope_axes(options)
    grid = grid_product(strength=strengths, learning_rate=learning_rates, **slopes, **dropout)
    if len(learning_rates) == 1:
        return grid
    whole = {rate: prepared.decay.whole_weight_strength(rate) for rate in learning_rates}
    most = np.array([whole[rate] for rate in grid["learning_rate"].tolist()])
    return grid.without(grid["strength"] >= most * (1 - 1e-6))


def _learning_rates(options: SelectOptions, prepared: Prepared) -> list[float]:
    if options.learning_rates is None:
        sizes = prepared.defaults.grid
        ends = OPTIMIZER_KINDS[prepared.recipe.optimizer].searched
        return _spaced(ends, sizes.narrowed_learning_rates, sizes.num_learning_rates)
    learning_rates = check_axis("learning_rates", options.learning_rates)
    check_number("learning_rates", min(learning_rates), low=0.0, exclusive_low=True)
    return learning_rates


def _strengths(
    options: SelectOptions, prepared: Prepared, learning_rates: list[float]
) -> list[float]:
    if options.strengths is not None:
        strengths = check_axis("strengths", options.strengths)
        check_overshoot("strengths", options.decay, max(strengths), min(learning_rates))
        if len(learning_rates) > 1:
            _check_some_pair("strengths", prepared.decay, max(strengths), min(learning_rates))
        return strengths
    ends, sizes = prepared.decay.strengths, prepared.defaults
    if len(learning_rates) > 1:
        return [0.0, *_spaced(ends, sizes.grid.narrowed_strengths, sizes.grid.num_strengths)]
    low, high = (end * factor for end, factor in zip(ends, sizes.narrowed, strict=True))
    high = min(high, prepared.decay.whole_weight_strength(learning_rates[0]))
    return [0.0, *np.geomspace(low, high, sizes.num_strengths)]


def _check_some_pair(name: str, decay: DecayKind, strength: float, learning_rate: float) -> None:
    share = strength / decay.whole_weight_strength(learning_rate)
    if share >= 1 - 1e-6:
        raise ValueError(
            f"`{name}`: {strength:g} removes {share:g} of each weight per step at the smallest "
            f"learning rate, {learning_rate:g}, so it has no pair below a whole weight: take a "
            "smaller strength or learning rate."
        )


def _spaced(ends: tuple[float, float], narrowed: tuple[float, float], count: int) -> list[float]:
    """Log-spaced numbers of two digits: what a person would type."""
    low, high = (end * factor for end, factor in zip(ends, narrowed, strict=True))
    return [float(f"{number:.2g}") for number in np.geomspace(low, high, count)]


def timescale_start(prepared: Prepared, grid: Grid, num_train: int) -> dict[str, float]:
    """Where a search that puts its own rows begins: in the middle of the learning rates, at the
    strength whose timescale lies between an epoch and the run.

        strength = whole_weight_strength / (steps an epoch * sqrt(epochs))

    A penalty has no timescale, so no strength is given for one.

    Source: Wang & Aitchison 2024, arXiv:2405.13698.
    """
    recipe = prepared.recipe
    rate = float(np.exp(np.mean(np.log(np.unique(grid["learning_rate"])))))
    timescale = -(-num_train // recipe.batch_size) * recipe.num_epochs**0.5
    strength = prepared.decay.whole_weight_strength(rate) / timescale
    of_strength = {"strength": strength} if np.isfinite(strength) else {}
    return {"learning_rate": rate} | of_strength
