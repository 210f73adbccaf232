"""What a run needs at least, held against what there is before anything is compiled."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from wdjax.data.dataset import Dataset
from wdjax.data.encoding import example_of
from wdjax.diagnostics.telemetry import PartTelemetry
from wdjax.jobs.options import MOST_OF_INTEGERS, AuditOptions, RunOptions, TrainOptions
from wdjax.memory import memory_within_reach
from wdjax.recipe import build as recipes
from wdjax.recipe.build import Recipe

MOST_OF_STATE = 8
"""Copies of the params that a train state is at most, roughly: below it, nobody need look."""


def check_fits(
    options: RunOptions,
    recipe: Recipe,
    mesh: Mesh,
    params: Any,
    default_seeds: int,
    parts: Sequence[Dataset],
) -> None:
    """Refuses a run whose steps cannot be counted, or that the machine's memory cannot hold.

    The memory is a lower bound, so nothing is refused that could run: of every run that is there
    at once the params and the optimiser's state, once the largest gradient (the others may be
    freed one after another), what is noted of each epoch or trial, and the data as they lie. What
    the model computes on the way comes on top. Only CPU devices take the machine's memory.

    Args:
      options: what was asked.
      recipe: made of it.
      mesh: the devices.
      params: the shapes of the params.
      default_seeds: of a run that is not told how many.
      parts: of the data, the one to train on first.

    Raises:
      ValueError: with both numbers, and the way out.
    """
    dataset = parts[0]
    steps = max(1, len(dataset.inputs) // max(1, recipe.batch_size))
    if recipe.num_epochs * steps > MOST_OF_INTEGERS:
        raise ValueError(
            f"`epochs` must be at most {MOST_OF_INTEGERS // steps}: at {steps} steps an epoch "
            f"{recipe.num_epochs} are more than the {MOST_OF_INTEGERS} that a run counts."
        )
    devices = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    there = memory_within_reach() if all(d.platform == "cpu" for d in devices) else None
    if there is None:
        return
    seeds = _whole(getattr(options, "seeds", None), default_seeds)
    at_once, notes = _runs_and_notes(options, recipe, len(devices), seeds, params, dataset)
    arrays = {id(x): np.asarray(x).nbytes for d in parts for x in (d.inputs, d.targets)}
    data = sum(arrays.values()) + _encoded_bytes(options, recipe, parts)
    if (at_once + 1) * MOST_OF_STATE * _bytes(params) + notes + data <= there:
        return
    state, gradient = _state_bytes(options, recipe, dataset)
    of_runs = at_once * state + gradient
    if of_runs + notes + data > there:
        runs = f"{at_once} runs" if at_once > 1 else "a run"
        fewer = "fewer --seeds or --devices, " if at_once > 1 else ""
        raise ValueError(
            f"this needs at least {_gib(of_runs + notes + data)} of memory ({_gib(of_runs)} the "
            f"params, the optimiser's state and a gradient of {runs} at once, {_gib(notes)} what "
            f"is noted of them, {_gib(data)} the data), and there are {_gib(there)} on this "
            f"machine or in its control group: take {fewer}fewer epochs, a smaller model or less "
            "data."
        )


def _runs_and_notes(
    options: RunOptions,
    recipe: Recipe,
    num_devices: int,
    num_seeds: int,
    params: Any,
    dataset: Dataset,
) -> tuple[int, int]:
    """How many runs are in memory at once, and the bytes of what is noted of all of them."""
    if isinstance(options, AuditOptions):
        return 1, 0
    if isinstance(options, TrainOptions) and options.stream:
        return num_devices, 0  # One run, a copy of it on each.
    if isinstance(options, TrainOptions):
        # Two losses and the telemetry of each epoch.
        numbers = 2 + len(PartTelemetry._fields) * len(jax.tree.leaves(params))
        return num_seeds, 4 * numbers * recipe.num_epochs * num_seeds
    axes = (getattr(options, name, None) for name in ("strengths", "learning_rates"))
    rows = math.prod(len(axis) for axis in axes if isinstance(axis, tuple) and axis)
    # Each trial's two losses and that of every example it holds out; of the refits at least one a
    # device is under way.
    folds = _whole(getattr(options, "folds", None), 1)
    notes = rows * num_seeds * (8 * folds + 4 * len(dataset.inputs))
    return min(num_devices, num_seeds), notes


def _state_bytes(options: RunOptions, recipe: Recipe, dataset: Dataset) -> tuple[int, int]:
    """Of one run: its params with the optimiser's and model's state, and its largest gradient.

    The gradient of what is no matrix may never be there as a whole.
    """
    names = ("strength", "learning_rate", "example_slope", "part_slope")
    hparams = dict.fromkeys(names, 0.1) | ({"dropout": 0.1} if options.dropout else {})
    inputs = example_of(recipe.encoding, dataset.inputs[:1])
    run = recipes.build_run(recipe, inputs, num_steps=1)
    state = jax.eval_shape(lambda key: run.init(hparams, inputs, key), jax.random.key(0))
    if isinstance(options, AuditOptions):
        return _bytes(state.params), 0
    matrices = [_bytes(leaf) for leaf in jax.tree.leaves(state.params) if len(leaf.shape) > 1]
    return _bytes((state.params, state.opt_state, state.model_state)), max(matrices, default=0)


def _encoded_bytes(options: RunOptions, recipe: Recipe, parts: Sequence[Dataset]) -> int:
    """Of a table with words as a model sees it, beside the table as it is held."""
    if recipe.encoding is None or isinstance(options, AuditOptions):
        return 0
    return sum(len(part.inputs) for part in parts) * 4 * recipe.encoding.width


def _whole(value: Any, default: int) -> int:
    """A number that has yet to be checked, or its default."""
    return value if isinstance(value, int) and value > 0 else default


def _bytes(tree: Any) -> int:
    return sum(
        math.prod(leaf.shape) * getattr(leaf.dtype, "itemsize", 0) for leaf in jax.tree.leaves(tree)
    )


def _gib(number: int) -> str:
    return f"{number / 2**30:.3g} GiB" if number >= 2**20 else f"{number / 2**30:.1g} GiB"
