"""The job `train`: one strength, judged on a test part."""

from typing import Any

import jax
import numpy as np

from wdjax.checks import check_positive_int
from wdjax.data import arrays
from wdjax.jobs.audit import audit_results, audit_run
from wdjax.jobs.options import TrainOptions
from wdjax.jobs.refit import Say, Watch, refit_runs
from wdjax.jobs.results import Clock, clear_earlier, finish, header, write_params
from wdjax.jobs.setup import (
    check_batch_fits,
    hparams_of,
    prepare,
)
from wdjax.jobs.stream import check_not_streamed, run_stream
from wdjax.jobs.telemetry import telemetry_results
from wdjax.recipe import build as recipes
from wdjax.report.runs import over_seeds
from wdjax.tables import Estimate


def run_train(
    options: TrainOptions, *, say: Say = print, watch: Watch | None = None, command: str = ""
) -> dict[str, Any]:
    """Trains at one strength and judges on a test part.

    Writes `results.json`, `report.html` and `params.npz` (of the first seed). Data in memory are
    trained on by the program that `run_select` compares by: the whole run is one scan, and seeds
    run side by side. With `stream`, or to `resume`, it is `run_stream`.

    Raises:
      ValueError: for any bad option or bad data, or no strength, before anything is compiled or
        written.
    """
    if options.stream or options.resume is not None:
        return run_stream(options, say=say, watch=watch, command=command)
    check_not_streamed(options)
    clock = Clock()
    prepared = prepare(options)
    check_positive_int("seeds", options.seeds)
    hparams = hparams_of(options)
    check_batch_fits(prepared.recipe.batch_size, len(prepared.choose_data.inputs))
    data = arrays.to_batch(prepared.choose_data)
    results = header("train", options, prepared, command)
    clock.lap("data")
    num_epochs = prepared.recipe.num_epochs
    say(f"{prepared.describe('train')} Training {num_epochs} epochs, {options.seeds} seeds.")
    key, rows = jax.random.key(options.seed), {"chosen": hparams}
    refit, fit = refit_runs(
        prepared, data, rows, options.seeds, key, watch, telemetry=True, doing="training"
    )
    clock.lap("training")
    losses = np.asarray(refit["chosen"]["test_loss"], np.float64)
    if not np.isfinite(losses).any():
        raise ValueError(
            f"every run diverged: lower `learning_rate` = {options.learning_rate:g} or `strength` "
            f"= {options.strength:g}."
        )
    results["headline"] = (
        f"Strength {options.strength:g} ({options.decay}): test loss "
        f"{Estimate(float(losses.mean()), refit['chosen']['errors']['test_loss'])}, "
        f"training loss {over_seeds(refit['chosen']['train_loss'])}."
    )
    results |= audit_results(audit_run(prepared, hparams, fit.params), prepared.decay)
    results |= {"refit": refit, "status": "complete"}
    num_steps = len(data.weights) // prepared.recipe.batch_size
    steps = [num_steps * epoch + 1 for epoch in range(num_epochs)]
    results["telemetry"] = telemetry_results(refit["chosen"].pop("telemetry"), steps, prepared)
    clear_earlier(prepared.out)
    write_params(prepared.out, fit, recipes.recipe_scaling(prepared.recipe, data))
    finish(prepared.out, results, clock)
    return results
