"""`wdjax train --stream --tune`: the numbers of a streamed run are moved on the way."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
from jax.sharding import Mesh

from wdjax.jobs.options import TrainOptions
from wdjax.jobs.setup import Prepared, hparams_of
from wdjax.jobs.tuned import check_tune, moves_within, plan_words, share_of, with_start
from wdjax.loop.tune_loop import TuneLoop
from wdjax.recipe import build as recipes
from wdjax.recipe.kinds import SCHEDULE_KINDS
from wdjax.selection.windows import plan_windows


def started(
    options: TrainOptions, prepared: Prepared, num_train: int
) -> tuple[TrainOptions, Prepared]:
    """The options with the numbers that move and where they begin, and the examples trained on.

    Raises:
      ValueError: as `check_tune`, or no strength where the decay has no timescale.
    """
    numbers = check_tune(options)
    return with_start(options, prepared, num_train, numbers), dataclasses.replace(
        prepared, num_choose=num_train
    )


def build(
    options: TrainOptions,
    prepared: Prepared,
    stream: Iterable,
    held_out: Callable[[], Iterable],
    num_steps: int,
    mesh: Mesh,
    how: dict[str, Any],
) -> tuple[TuneLoop, str]:
    """The loop, compiled and without a folder to save to, and what it will cost.

    Raises:
      ValueError: for fewer epochs than windows, numbers out of range, a run that cannot be
        differentiated forward, or one whose tangents do not fit the memory.
    """
    recipe, hparams = prepared.recipe, hparams_of(options)
    epochs = plan_windows(recipe.num_epochs)
    each = epochs[0] * prepared.num_choose // recipe.batch_size
    build_run = functools.partial(
        recipes.build_run,
        recipe,
        num_micro_batches=1 if options.micro_batches is None else options.micro_batches,
    )
    score = recipes.recipe_score(recipe)
    inputs = prepared.choose_data.inputs[:1]

    def telemetry(num_steps: int) -> Callable:
        run = recipes.build_run(recipe, inputs, num_steps=num_steps, telemetry=True)
        return jax.jit(
            lambda state, batch: run.step(state.hparams, state.plain, batch)[1]["telemetry"]
        )

    if options.evaluate_every is None:  # Once an epoch of a window, also where it ends.
        every = max(1, each // epochs[0])
        how["evaluation"] = dataclasses.replace(how["evaluation"], every=every)
        how["logging"] = dataclasses.replace(how["logging"], telemetry_every=every)
    loop = TuneLoop(
        lambda inputs, num_steps: build_run(inputs, num_steps=num_steps),
        lambda fit, batch: score.by_example(fit, batch)["loss"],
        hparams,
        stream,
        held_out,
        key=jax.random.key(options.seed),
        windows=(*[each] * (len(epochs) - 1), num_steps - each * (len(epochs) - 1)),
        numbers=options.tune or (),
        carried=share_of(options),
        within=moves_within(hparams, options.tune or (), prepared),
        annealed=SCHEDULE_KINDS[recipe.schedule].multiplier is not None,
        epochs=epochs,
        mesh=mesh if mesh.size > 1 else None,
        make_telemetry=telemetry,
        **how,
    )
    device = jax.local_devices()[0]
    return loop, plan_words(loop, epochs, options, device, "a tenth of the examples")


def as_last(prepared: Prepared) -> Prepared:
    """With the schedule of the last window, whose audit is that of the run."""
    epochs = plan_windows(prepared.recipe.num_epochs)
    recipe = dataclasses.replace(prepared.recipe, num_epochs=epochs[-1])
    return dataclasses.replace(prepared, recipe=recipe)
