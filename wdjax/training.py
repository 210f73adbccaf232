"""A whole run as one pure function of its numbers: a scan over epochs of a scan over steps.

Example:
  >>> linear = wdjax.Model(
  ...     init=lambda key, x: (jnp.zeros(x.shape[-1]), {}),
  ...     apply=lambda w, state, x, *, key, train: (x @ w, state),
  ... )
  >>> make_tx = lambda h: optax.chain(optax.sgd(0.5), wdjax.decoupled_decay(h["strength"], 0.5))
  >>> fit = wdjax.make_fit(
  ...     linear, wdjax.squared_error, make_tx=make_tx, num_epochs=50, batch_size=2
  ... )
  >>> data = wdjax.Batch(np.ones((4, 1), "float32"), np.ones(4, "float32"), np.ones(4, "float32"))
  >>> strengths = jnp.array([0.0, 1.0])
  >>> runs = jax.vmap(lambda s: fit({"strength": s}, data, jax.random.key(0)))(strengths)
  >>> print(runs.params.round(3).ravel())  # the least squares without decay: 1
  [1.  0.5]
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from wdjax.checks import LARGEST_COUNT, check_positive_int, check_weights, is_known
from wdjax.host_checks import check_examples, check_hparams, check_loss_of_labels
from wdjax.interfaces import check_batch
from wdjax.measures import ScoreFn
from wdjax.measures import is_correct as is_correct
from wdjax.measures import make_score as make_score
from wdjax.moved import moved_keywords
from wdjax.order import random_order as random_order
from wdjax.run import Run, make_run, model_of, run_keys
from wdjax.step import TelemetryFn, TrainState
from wdjax.types import (
    Batch,
    ExampleLoss,
    Fit,
    HParams,
    Model,
    Parts,
    PenaltyFn,
    TakesPadding,
    is_inexact,
    plain_function,
)

FitFn = Callable[[HParams, Batch, Array], Fit]
"""`fit(hparams, train, key) -> Fit`, pure; with a keyword more where it `TakesPadding`."""


@moved_keywords(make_measure="make_telemetry")
def make_fit(
    model: Model | Callable[[HParams], Model],
    example_loss: ExampleLoss,
    *,
    make_tx: Callable[[HParams], optax.GradientTransformation],
    num_epochs: int,
    batch_size: int,
    make_penalty: Callable[[HParams], PenaltyFn | None] | None = None,
    make_example_weight: Callable[[HParams], Callable] | None = None,
    part_weights: Parts = None,
    make_part_weights: Callable[[HParams], Parts] | None = None,
    augment: Callable[[Array, Array], tuple[Array, Array]] | None = None,
    observe: Callable[[Fit], PyTree] | None = None,
    make_telemetry: Callable[[HParams], TelemetryFn] | None = None,
) -> TakesPadding:
    """Builds `fit(hparams, train, key) -> Fit`: a whole training run as one pure function.

    It is `fit_run` of the `Run` that `make_run` builds of the same arguments, where they are
    explained. The function is not compiled: `jit` it, `vmap` it over numbers, hand it to
    `cross_validate`. It is differentiable in every number, forward and reverse (with Adam, pass
    `optax.scale_by_adam(eps_root=1e-12)`: without it a second moment of exactly zero, which one
    dead pixel makes, has a derivative of NaN).

    Args:
      num_epochs, batch_size, observe: see `fit_run`.
      make_telemetry: `hparams -> ((state, grads, updates) -> tree of scalars)`, such as
        `measure_parts` with the run's rate; see `fit_run`.

    Raises:
      ValueError: at build, if `model` is neither of the two, `num_epochs` or `batch_size` is not an
        integer >= 1, or part weights are given twice; in `fit`, as `fit_run`, and if the loss
        finds a known label out of range.
    """
    check_positive_int("num_epochs", num_epochs, high=LARGEST_COUNT)
    check_positive_int("batch_size", batch_size)
    make = functools.partial(
        make_run,
        model,
        example_loss,
        make_tx=make_tx,
        make_penalty=make_penalty,
        make_example_weight=make_example_weight,
        part_weights=part_weights,
        make_part_weights=make_part_weights,
        augment=augment,
    )
    run = make()
    with_telemetry = None if make_telemetry is None else make(make_telemetry=make_telemetry)
    return fit_with(
        lambda train, num_steps: (run, with_telemetry),
        num_epochs=num_epochs,
        batch_size=batch_size,
        observe=observe,
        check=lambda hparams, data: check_loss_of_labels(
            model_of(model, hparams), example_loss, data, batch_size
        ),
    )


def fit_with(
    build: Callable[[Batch, int], tuple[Run, Run | None]],
    *,
    num_epochs: int,
    batch_size: int,
    observe: Callable[[Fit], PyTree] | None = None,
    check: Callable[[HParams, Batch], None] | None = None,
) -> TakesPadding:
    """Builds `fit(hparams, train, key) -> Fit` from a `Run` that the training part decides.

    Args:
      build: `(train, num_steps) -> (run, with_telemetry)`, called inside the run; `num_steps` is
        that of all epochs, the length of a schedule. `with_telemetry` is None or as in `advance`.
      num_epochs, batch_size, observe: see `fit_run`.
      check: looks at `(hparams, train)` before, where they are known; `cross_validate` calls it
        on all of the data.

    Raises:
      ValueError: in `fit`, as `fit_run` and `check`.
    """

    def fit(
        hparams: HParams, train: Batch, key: Array, *, num_examples: int | Array | None = None
    ) -> Fit:
        known, num_known = _checked(hparams, train, num_examples)
        if check is not None:
            check(hparams, known)
        run, with_telemetry = build(known, num_epochs * steps_per_epoch(known, batch_size))
        return fit_run(
            run,
            hparams,
            known,
            key,
            num_epochs=num_epochs,
            batch_size=batch_size,
            num_examples=num_known,
            observe=observe,
            with_telemetry=with_telemetry,
        )

    if check is not None:
        fit.check = check  # For `cross_validate`: the function knows the loss and the classes.
    return TakesPadding(fit, lambda num_examples: num_epochs * (num_examples // batch_size))


def make_piece(
    run: Run, with_telemetry: Run | None, num_epochs: int, *, batch_size: int, observe: Callable
) -> Callable[[HParams, Array, TrainState, Batch, Batch], tuple[TrainState, dict[str, Any]]]:
    """Builds `piece(hparams, key, state, train, valid) -> (state, history)`, to be mapped.

    Args:
      run, with_telemetry, num_epochs, batch_size: see `advance`.
      observe: `(fit, valid) -> tree`, called after each epoch.

    Raises:
      ValueError: in `piece`, as `advance`.
    """

    def piece(hparams, key, state, train, valid):
        return advance(
            run,
            hparams,
            state,
            train,
            num_epochs,
            batch_size=batch_size,
            key=key,
            observe=lambda fit: observe(fit, valid),
            with_telemetry=with_telemetry,
        )

    return piece


def fit_run(
    run: Run,
    hparams: HParams,
    train: Batch,
    key: Array,
    *,
    num_epochs: int,
    batch_size: int,
    num_examples: int | Array | None = None,
    observe: Callable[[Fit], PyTree] | None = None,
    with_telemetry: Run | None = None,
) -> Fit:
    """A whole run: `run.init`, then `advance` over `num_epochs`.

    Args:
      run: its step sees batches of `batch_size` rows.
      hparams: the numbers.
      train: the training part; rows of weight 0 may hold anything.
      key: of the first params, of the examples' order, and of the state.
      num_epochs: passes over the training part, >= 1.
      batch_size: examples a step, >= 1 and at most the rows of `train`.
      num_examples: the run is that of the first so many rows alone, in the shapes of them all, so
        that one program serves parts of several sizes. It may be traced, and
        `num_examples // batch_size` must be that of all rows; else the params are NaN, or a known
        number is cut out.
      observe, with_telemetry: see `advance`.

    Raises:
      ValueError: if the batch is larger than the training part, its weights are known and negative,
        not finite or all zero, a known strength or learning rate is negative or not finite, known
        inputs or targets are not finite, or `num_examples` is known and not an integer in
        [1, rows].
    """
    train, num_examples = _checked(hparams, train, num_examples)
    train = jax.tree.map(jnp.asarray, train)
    check_positive_int("num_epochs", num_epochs, high=LARGEST_COUNT)
    num_steps = steps_per_epoch(train, batch_size)
    state, history = advance(
        run,
        hparams,
        run.init(hparams, jax.tree.map(lambda x: x[:batch_size], train.inputs), key),
        train,
        num_epochs,
        batch_size=batch_size,
        key=key,
        num_examples=num_examples,
        observe=observe,
        with_telemetry=with_telemetry,
    )
    params = state.params
    if num_examples is not None:
        # Else the last batches held padding, or rows were left out: no run of this part alone.
        sound = num_examples // batch_size == num_steps
        params = jax.tree.map(
            lambda p: jnp.where(sound, p, jnp.nan) if is_inexact(p) else p, params
        )
    return Fit(params, state.model_state, history)


def advance(
    run: Run,
    hparams: HParams,
    state: TrainState,
    train: Batch,
    num_epochs: Any,
    *,
    batch_size: Any,
    key: Array,
    num_examples: int | Array | None = None,
    observe: Callable[[Fit], PyTree] | None = None,
    with_telemetry: Run | None = None,
) -> tuple[TrainState, dict[str, Any]]:
    """Goes `num_epochs` further: `(state, history)`, pure; again and again, it is the whole run.

    Every epoch visits the examples in a new random order, `n // batch_size` batches of one size;
    the remainder waits for another epoch. Which epoch comes next `state.step` says, so a state
    that was saved between two calls goes on as if there had been one call, bit for bit.

    Args:
      run, hparams, train, batch_size, num_examples: as in `fit_run`, the same in every call.
      state: of `run.init(hparams, inputs, key)`, or of an earlier call; after whole epochs.
      num_epochs: how far.
      key: the one given to `run.init`; the order of the examples follows from it.
      observe: `Fit -> tree`, called after each epoch with the params so far; the results are
        stacked in `history["observed"]`. It sees; it does not change the run.
      with_telemetry: the same run with telemetry (`make_run(..., make_telemetry=...)`). The first
        step of each epoch is taken once more by it, beside the run; what it measures is stacked in
        `history["telemetry"]`. (Measured inside, it would change how every step is compiled, and
        with that the run's last bits.)

    Returns:
      The state, and per epoch `loss`, `data_loss`, `penalty` (means over the steps by the weights
      of their examples) and what was asked for.

    Raises:
      ValueError: if `num_epochs` or `batch_size` is not an integer >= 1, or the batch is larger
        than the training part.
    """
    check_positive_int("num_epochs", num_epochs)
    check_positive_int("batch_size", batch_size)
    train = jax.tree.map(jnp.asarray, train)
    num_steps = steps_per_epoch(train, batch_size)
    _, order_key, _ = run_keys(key)

    def one_step(state, rows):
        state, metrics = run.step(hparams, state, jax.tree.map(lambda x: x[rows], train))
        return state, {name: metrics[name] for name in (*_RECORDED, "denominator")}

    def one_epoch(state, _):
        epoch_key = jax.random.fold_in(order_key, state.step // num_steps)
        order = random_order(epoch_key, train.weights.shape[0], num_examples)
        order = order[: num_steps * batch_size].reshape(num_steps, batch_size)
        seen = {}
        if with_telemetry is not None:
            first = jax.tree.map(lambda x: x[order[0]], train)
            seen["telemetry"] = with_telemetry.step(hparams, state, first)[1]["telemetry"]
        state, steps = jax.lax.scan(one_step, state, order)
        epoch = {name: _mean_over_steps(steps, name) for name in _RECORDED} | seen
        if observe is not None:
            epoch["observed"] = observe(Fit(state.params, state.model_state, {}))
        return state, epoch

    return jax.lax.scan(one_epoch, state, length=num_epochs)


def _checked(
    hparams: HParams, train: Batch, num_examples: int | Array | None
) -> tuple[Batch, Array | None]:
    """The rows that train, and how many of them do, where that is not known yet."""
    check_batch("train", train)
    train, num_examples = without_known_padding(train, num_examples)
    check_weights("weights", train.weights, require_positive=True)
    check_hparams("hparams", hparams)
    check_examples("train", train)
    return train, num_examples


def without_known_padding(
    train: Batch, num_examples: int | Array | None
) -> tuple[Batch, Array | None]:
    """The rows that train, and how many of them do, where that is not known yet.

    Raises:
      ValueError: if `num_examples` is known and not an integer in [1, rows of `train`].
    """
    if num_examples is None:
        return train, None
    if not is_known(num_examples):
        return train, jnp.asarray(num_examples)
    known = num_examples if isinstance(num_examples, int) else np.asarray(num_examples)[()]
    check_positive_int("num_examples", known, high=train.weights.shape[0])
    return jax.tree.map(lambda leaf: leaf[: int(known)], train), None


def steps_per_epoch(train: Batch, batch_size: int) -> int:
    """How many whole batches the training part holds.

    Raises:
      ValueError: if it holds none, or `batch_size` is no integer >= 1.
    """
    check_positive_int("batch_size", batch_size)
    num_examples = train.weights.shape[0]
    if batch_size > num_examples:
        raise ValueError(
            f"`batch_size` must be at most the {num_examples} examples of the training part, got "
            f"batch_size={batch_size}."
        )
    return num_examples // batch_size


def make_fit_and_score(
    fit: FitFn,
    score: ScoreFn,
    *,
    scale: Callable[[Batch, Batch], tuple[Batch, Batch]] | None = None,
) -> Callable[[HParams, Batch, Batch, Array], Any]:
    """Builds `fit_and_score(hparams, train, valid, key)`, what `cross_validate` runs.

    Returns `score(fit, valid)`. If that is a dict, the same is taken on the training part, with
    `train_` before its names: the gap between the two is what decay is about. A run whose
    params or scores are not finite has diverged: every score of it is NaN, accuracy included.
    If `fit` takes padding, as that of `make_fit` does, so does what is built.

    With a score of `make_score`, the function's `by_example` gives the scores on the held-out part
    example by example, and its `higher_is_better` their directions: `cross_validate` reads both.

    Args:
      fit, score: pure, `(hparams, train, key) -> Fit` and `(fit, data) -> scores`.
      scale: `(train, valid) -> (train, valid)`, before both: what is learnt of the training part
        alone, such as `standardize`.

    Example:
      >>> fit = lambda h, train, key: wdjax.Fit(h["scale"] * jnp.mean(train.targets), {}, {})
      >>> score = lambda fitted, valid: {"loss": (valid.targets - fitted.params) ** 2}
      >>> data = wdjax.Batch(jnp.zeros((2, 1)), jnp.array([1.0, 3.0]), jnp.ones(2))
      >>> fit_and_score = wdjax.make_fit_and_score(fit, score)
      >>> print(fit_and_score({"scale": 0.5}, data, data, jax.random.key(0))["loss"])
      [0. 4.]
    """

    def judge(hparams, train, valid, key, on_valid, told):
        if scale is not None:
            train, valid = scale(train, valid)
        result = plain_function(fit)(hparams, train, key, **told)
        scores = on_valid(result, valid)
        if isinstance(scores, dict):
            on_train = {f"train_{name}": value for name, value in score(result, train).items()}
            scores = {**scores, **on_train}
        return nan_if_diverged(scores, result.params)

    def fit_and_score(
        hparams: HParams, train: Batch, valid: Batch, key: Array, **num_examples: Any
    ) -> Any:
        return judge(hparams, train, valid, key, score, num_examples)

    def by_example(
        hparams: HParams, train: Batch, valid: Batch, key: Array, **num_examples: Any
    ) -> Any:
        return judge(hparams, train, valid, key, score.by_example, num_examples)

    if hasattr(score, "by_example"):
        fit_and_score.by_example = by_example
    directions = getattr(score, "higher_is_better", {})
    both = {f"{part}{name}": up for part in ("", "train_") for name, up in directions.items()}
    fit_and_score.higher_is_better = both
    if hasattr(fit, "check"):
        fit_and_score.check = getattr(fit, "check")  # noqa: B009
    if isinstance(fit, TakesPadding):
        return TakesPadding(fit_and_score, fit.num_steps)
    return fit_and_score


def nan_if_diverged(scores: PyTree, params: PyTree) -> PyTree:
    """`scores`, or NaN for each of them if any of them, or of the params, is not finite."""
    numbers = [leaf for leaf in jax.tree.leaves((scores, params)) if is_inexact(leaf)]
    finite = jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in numbers]))
    return jax.tree.map(lambda s: jnp.where(finite, s, jnp.nan), scores)


_RECORDED = ("loss", "data_loss", "penalty")


def _mean_over_steps(steps: dict[str, Array], name: str) -> Array:
    """The epoch's mean of a metric; a step counts by the weights of its examples."""
    shares = steps["denominator"]
    total = jnp.sum(shares)
    return jnp.sum(shares * steps[name]) / jnp.where(total > 0, total, 1)
