"""A training as two pure functions, `init` and `step`: the one place that augments and weighs."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from wdjax.checks import check_positive_int
from wdjax.interfaces import check_batch, check_model, check_model_or_maker
from wdjax.losses import loss_of_filled, regularized_loss
from wdjax.step import Metrics, StepFn, TelemetryFn, TrainState, init_state, make_train_step
from wdjax.types import Batch, ExampleLoss, HParams, Model, Parts, PenaltyFn, is_inexact
from wdjax.weights.zero import fill_inactive_rows, validated_weights

AUGMENT = np.uint32(2**32 - 1)
"""Folded into the state's key for the augmentations; beyond the number of any step, whose key is
dropout's."""


class Run(NamedTuple):
    """A training as two pure functions of its numbers.

        state = run.init(hparams, inputs, key)
        state, metrics = run.step(hparams, state, batch)

    `functools.partial(run.step, hparams)` is a step like that of `make_train_step`: `jit_step`,
    `shard_step`, `pmap_step` run it, `skip_non_finite` guards it, `TrainLoop` drives it. `advance`
    scans over `step`, `make_fit` over a whole run. Any two functions of these forms are a `Run`.
    """

    init: Callable[[HParams, PyTree, Array], TrainState]
    """`(hparams, inputs[example, ...], key) -> state`; of the inputs only shapes are used."""
    step: Callable[..., tuple[TrainState, Metrics]]
    """`(hparams, state, batch, *, axis_name=None) -> (state, metrics)`."""


def make_run(
    model: Model | Callable[[HParams], Model],
    example_loss: ExampleLoss,
    *,
    make_tx: Callable[[HParams], optax.GradientTransformation],
    make_penalty: Callable[[HParams], PenaltyFn | None] | None = None,
    make_example_weight: Callable[[HParams], Callable] | None = None,
    part_weights: Parts = None,
    make_part_weights: Callable[[HParams], Parts] | None = None,
    augment: Callable[[Array, Array], tuple[Array, Array]] | None = None,
    num_micro_batches: int = 1,
    make_telemetry: Callable[[HParams], TelemetryFn] | None = None,
) -> Run:
    """Builds `Run(init, step)`: fill rows of weight 0, augment, weigh, take the gradient, update.

    Each `make_` is called with `hparams` inside the run; all numbers may be traced. Not compiled.

    Args:
      model: a `Model`, or `hparams -> Model` where a number reaches inside (a dropout rate).
      example_loss: `(outputs, targets) -> losses[batch]`.
      make_tx: `hparams -> optax transformation`, learning rate and decay included.
      make_penalty: `hparams -> (params -> scalar)`, such as `lambda h: l2_penalty(h["strength"])`.
      make_example_weight: `hparams -> ((outputs, batch, augment_strength) -> weights[batch])`.
        They multiply `batch.weights`. The gradient of a step does not pass through them; a
        derivative of the run in `hparams` does.
      part_weights: multipliers of each leaf's own data loss, see `regularized_loss`.
      make_part_weights: `hparams -> part_weights`, where a number reaches inside (a slope).
      augment: `(key, example) -> (example, strength)` for one example, strength a scalar. The
        keys follow from the state's key and step.
      num_micro_batches, make_telemetry: see `make_train_step`.

    Raises:
      ValueError: at build, if `model` is neither of the two, `num_micro_batches` is not an integer
        >= 1, or part weights are given twice; in `step`, if there is an augmentation and the state
        has no key, or example weights are not one per example.
    """
    check_model_or_maker("model", model)
    check_positive_int("num_micro_batches", num_micro_batches)
    if part_weights is not None and make_part_weights is not None:
        raise ValueError("give `part_weights` or `make_part_weights`, not both.")

    def init(hparams: HParams, inputs: PyTree, key: Array) -> TrainState:
        init_key, _, step_key = run_keys(key)
        params, model_state = model_of(model, hparams).init(init_key, inputs)
        return init_state(params, make_tx(hparams), model_state=model_state, key=step_key)

    def step(
        hparams: HParams, state: TrainState, batch: Batch, *, axis_name: str | None = None
    ) -> tuple[TrainState, Metrics]:
        check_batch("batch", batch)
        run_model = model_of(model, hparams)
        inputs, targets = fill_inactive_rows(batch.inputs, batch.targets, batch.weights)
        weights = validated_weights(batch.weights)
        inputs, strength = _augmented(augment, state, inputs, weights.shape[0])
        batch = Batch(inputs, targets, weights)
        if make_example_weight is not None:
            reweigh = make_example_weight(hparams)
            own = _example_weights(reweigh, run_model, state, batch, strength)
            batch = batch._replace(weights=weights * validated_weights(own))
        penalty = None if make_penalty is None else make_penalty(hparams)
        parts = part_weights if make_part_weights is None else make_part_weights(hparams)
        plain = make_train_step(
            loss_of_filled(regularized_loss(run_model, example_loss, penalty, part_weights=parts)),
            make_tx(hparams),
            num_micro_batches=num_micro_batches,
            telemetry=None if make_telemetry is None else make_telemetry(hparams),
        )
        return plain(state, batch, axis_name=axis_name)

    return Run(init, step)


def skip_non_finite(step: StepFn) -> StepFn:
    """A step that leaves params, optimiser and model state as they were if it went wrong.

    Wrong: the loss, the norm of the gradient or of the update, or a number of the model's state
    is not finite. All are put back together, decay included; only `state.step` goes on, since it
    numbers the batches and the dropout masks. `metrics["skipped"]` is 1.0 then, else 0.0. (A
    label beyond the classes gives a NaN loss with a finite gradient, and a NaN input spoils the
    batch statistics: looking at the gradient alone misses both.)
    """

    def guarded(
        state: TrainState, batch: Batch, *, axis_name: str | None = None
    ) -> tuple[TrainState, Metrics]:
        new, metrics = step(state, batch, axis_name=axis_name)
        looked_at = [metrics[name] for name in ("loss", "grad_norm", "update_norm")]
        looked_at += [leaf for leaf in jax.tree.leaves(new.model_state) if is_inexact(leaf)]
        sound = jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in looked_at]))
        kept = jax.tree.map(
            lambda new, old: jnp.where(sound, new, old),
            new._replace(step=None, key=None),
            state._replace(step=None, key=None),
        )
        metrics = {**metrics, "skipped": jnp.where(sound, 0.0, 1.0)}
        return kept._replace(step=new.step, key=new.key), metrics

    return guarded


def run_keys(key: Array) -> tuple[Array, Array, Array]:
    """The keys of a run: of its first params, of its examples' order, of its state."""
    # The third of the four was once the augmentation's: the others keep their numbers.
    init_key, order_key, _, step_key = jax.random.split(key, 4)
    return init_key, order_key, step_key


def model_of(model: Model | Callable[[HParams], Model], hparams: HParams) -> Model:
    """The model, made of `hparams` where it is a maker.

    Raises:
      ValueError: if what the maker gives is no `Model`.
    """
    if isinstance(model, Model):
        return model
    made = model(hparams)
    check_model("model(hparams)", made)
    return made


def _augmented(
    augment: Callable | None, state: TrainState, inputs: PyTree, size: int
) -> tuple[PyTree, Array]:
    if augment is None:
        return inputs, jnp.zeros(size)
    if state.key is None:
        raise ValueError(
            "`augment` draws random numbers and the state has no `key`; give init_state one, or "
            "begin with run.init."
        )
    key = jax.random.fold_in(jax.random.fold_in(state.key, AUGMENT), state.step)
    return jax.vmap(augment)(jax.random.split(key, size), inputs)


def _example_weights(
    reweigh: Callable, model: Model, state: TrainState, batch: Batch, strength: Array
) -> Array:
    """`reweigh(outputs, batch, strength)`, the outputs at the params of this step.

    They are computed outside the differentiated loss, so the step's gradient treats the weights
    as constants while a derivative of the whole run still sees them. They are the same operations
    on the same numbers as the loss's own forward pass, so the compiler keeps one of the two.
    """
    key = None if state.key is None else jax.random.fold_in(state.key, state.step)
    outputs, _ = model.apply(state.params, state.model_state, batch.inputs, key=key, train=True)
    weights = reweigh(outputs, batch, strength)
    if jnp.shape(weights) != batch.weights.shape:
        raise ValueError(
            f"`make_example_weight` gave weights of shape {jnp.shape(weights)}; expected "
            f"{batch.weights.shape}, one per example."
        )
    return weights
