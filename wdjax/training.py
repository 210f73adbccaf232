"""A whole run as one pure function of its numbers: a scan over epochs of a scan over steps."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, PyTree

from wdjax.checks import check_positive_int, check_weights, is_known
from wdjax.host_checks import check_examples, check_hparams, check_loss_of_labels
from wdjax.interfaces import check_batch, check_model, check_model_or_maker
from wdjax.losses import regularized_loss
from wdjax.measures import ScoreFn
from wdjax.measures import is_correct as is_correct
from wdjax.measures import make_score as make_score
from wdjax.step import MeasureFn, TrainState, init_state, make_train_step
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
)
from wdjax.weights.zero import fill_inactive_rows, validated_weights

FitFn = Callable[[HParams, Batch, Array], Fit]
"""`fit(hparams, train, key) -> Fit`, pure; with a keyword more where it `TakesPadding`."""


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
    make_measure: Callable[[HParams], MeasureFn] | None = None,
) -> TakesPadding:
    """Builds `fit(hparams, train, key) -> Fit`: a whole training run as one pure function.

    Every epoch visits the examples in a new random order, `n // batch_size` batches of one
    size; the remainder waits for another epoch. A row of weight 0 is visited like any other; rows
    beyond `fit(..., num_examples=n)` are not: the run is that of the first n rows alone, in the
    shapes of them all, so that one program serves parts of several sizes (n may be traced, and
    `n // batch_size` must be that of all rows; else the params are NaN, or a known n is cut out).
    The function is not compiled: `jit` it, `vmap`
    it over numbers, hand it to `cross_validate`. It is differentiable in every number, forward
    and reverse (with Adam, pass `optax.scale_by_adam(eps_root=1e-12)`: without it a second
    moment of exactly zero, which one dead pixel makes, has a derivative of NaN). Rows of weight 0
    are filled as `regularized_loss` says, here from all of the training part.

    Args:
      model: a `Model`, or `hparams -> Model` where a number reaches inside (a dropout rate).
      example_loss: `(outputs, targets) -> losses[batch]`.
      make_tx: `hparams -> optax transformation`, learning rate and decay included.
      num_epochs: passes over the training part, >= 1.
      batch_size: examples a step, >= 1 and at most the rows of `train`.
      make_penalty: `hparams -> (params -> scalar)`, such as `lambda h: l2_penalty(h["strength"])`.
      make_example_weight: `hparams -> ((outputs, batch, augment_strength) -> weights[batch])`.
        They multiply `batch.weights`. The gradient of a step does not pass through them; a
        derivative of the run in `hparams` does.
      part_weights: multipliers of each leaf's own data loss, see `regularized_loss`.
      make_part_weights: `hparams -> part_weights`, where a number reaches inside (a slope).
      augment: `(key, example) -> (example, strength)` for one example, strength a scalar.
      observe: `Fit -> tree`, called after each epoch with the params so far; the results are
        stacked in `history["observed"]`. It sees; it does not change the run.
      make_measure: `hparams -> ((state, grads, updates) -> tree of scalars)`, such as
        `telemetry.measure_parts` with the run's rate. The first step of each epoch is taken once
        more for it, beside the run; the results are stacked in `history["measured"]`. (Measured
        inside, it would change how every step is compiled, and with that the run's last bits.)

    Raises:
      ValueError: at build, if `model` is neither of the two, `num_epochs` or `batch_size` is not an
        integer >= 1, or part weights are given twice; in `fit`, if the batch is larger than the
        training part, its weights are known and negative, not finite or all zero, a known strength
        or learning rate is negative or not finite, known inputs or targets are not finite, the
        loss finds a known label out of range, or `num_examples` is known and not an integer in
        [1, rows]. (Rows of weight 0 may hold anything.)
    """
    check_model_or_maker("model", model)
    check_positive_int("num_epochs", num_epochs)
    check_positive_int("batch_size", batch_size)
    if part_weights is not None and make_part_weights is not None:
        raise ValueError("give `part_weights` or `make_part_weights`, not both.")

    def model_of(hparams: HParams) -> Model:
        if isinstance(model, Model):
            return model
        made = model(hparams)
        check_model("model(hparams)", made)
        return made

    def check(hparams: HParams, data: Batch) -> None:
        check_loss_of_labels(model_of(hparams), example_loss, data, batch_size)

    def fit(
        hparams: HParams, train: Batch, key: Array, *, num_examples: int | Array | None = None
    ) -> Fit:
        check_batch("train", train)
        train, num_examples = without_known_padding(train, num_examples)
        check_weights("weights", train.weights, some=True)
        check_hparams("hparams", hparams)
        check_examples("train", train)
        check(hparams, train)
        # Once, not in every step; and where a step need not choose which rows it sees, the compiler
        # can share the forward pass of the example weights with the loss's.
        inputs, targets = fill_inactive_rows(train.inputs, train.targets, train.weights)
        train = jax.tree.map(jnp.asarray, Batch(inputs, targets, train.weights))
        num_steps = steps_per_epoch(train, batch_size)
        init_key, order_key, augment_key, step_key = jax.random.split(key, 4)
        run_model = model_of(hparams)
        tx = make_tx(hparams)
        penalty = None if make_penalty is None else make_penalty(hparams)
        parts = part_weights if make_part_weights is None else make_part_weights(hparams)
        loss_fn = regularized_loss(run_model, example_loss, penalty, part_weights=parts)
        reweigh = None if make_example_weight is None else make_example_weight(hparams)
        params, model_state = run_model.init(init_key, _first_rows(train.inputs, batch_size))
        state = init_state(params, tx, model_state=model_state, key=step_key)
        measure = None if make_measure is None else make_measure(hparams)

        def one_step(state, rows, measure=None):
            batch = jax.tree.map(lambda x: x[rows], train)
            strength = jnp.zeros(batch_size)
            if augment is not None:
                keys = jax.random.split(jax.random.fold_in(augment_key, state.step), batch_size)
                inputs, strength = jax.vmap(augment)(keys, batch.inputs)
                batch = batch._replace(inputs=inputs)
            weights = validated_weights(batch.weights)
            if reweigh is not None:
                own = _example_weights(reweigh, run_model, state, batch, strength)
                weights = weights * validated_weights(own)
            weighed = functools.partial(loss_fn, example_weights=weights)
            filled = batch._replace(weights=np.ones(weights.shape, np.float32))
            state, metrics = make_train_step(weighed, tx, measure=measure)(state, filled)
            recorded = (*_RECORDED, "denominator") if measure is None else ("measured",)
            return state, {name: metrics[name] for name in recorded}

        def one_epoch(state, epoch_key):
            order = random_order(epoch_key, train.weights.shape[0], num_examples)
            order = order[: num_steps * batch_size].reshape(num_steps, batch_size)
            seen = {} if measure is None else one_step(state, order[0], measure)[1]
            state, steps = jax.lax.scan(one_step, state, order)
            epoch = {name: _mean_over_steps(steps, name) for name in _RECORDED} | seen
            if observe is not None:
                epoch["observed"] = observe(Fit(state.params, state.model_state, {}))
            return state, epoch

        state, history = jax.lax.scan(one_epoch, state, jax.random.split(order_key, num_epochs))
        params = state.params
        if num_examples is not None:
            # Else the last batches held padding, or rows were left out: no run of this part alone.
            sound = num_examples // batch_size == num_steps
            params = jax.tree.map(
                lambda p: jnp.where(sound, p, jnp.nan) if is_inexact(p) else p, params
            )
        return Fit(params, state.model_state, history)

    fit.check = check  # For `cross_validate`: the function knows the loss and the classes.
    return TakesPadding(fit, lambda num_examples: num_epochs * (num_examples // batch_size))


def random_order(
    key: Array, num_rows: int, num_examples: int | Array | None = None
) -> Int[Array, " row"]:
    """A random order of `range(num_rows)` that begins with that of the first `num_examples` alone.

        random_order(key, m, n)[:n] = random_order(key, n),   1 <= n <= m, then n, n + 1, ..., m - 1

    Equal keys give equal orders. Row i has a random number of its own, which depends on the key
    and i only, and the rows are sorted by it; those beyond `num_examples` (default: none) go last.
    That holds in each of JAX's random number settings: a key of another kind than threefry seeds
    one, and threefry's numbers are those of `jax_threefry_partitionable=True`.

    Up to 4,096 rows the number has 20 bits, the index below them breaks ties (of 1,150 rows 0.6
    pairs are expected to keep their order for that reason, of 4,096 eight); beyond it has 64.
    """
    num_examples = num_rows if num_examples is None else num_examples
    if jax.random.key_impl(key) != "threefry2x32":
        seed = jax.random.bits(key, (2,), jnp.uint32)
        key = jax.random.wrap_key_data(seed, impl="threefry2x32")
    with jax.threefry_partitionable(True):
        bits = jax.random.bits(key, (num_rows,), jnp.uint32)
        lower = None
        if num_rows > _FEW_ROWS:
            lower = jax.random.bits(jax.random.fold_in(key, 1), (num_rows,), jnp.uint32)
    index = jnp.arange(num_rows, dtype=jnp.uint32)
    low, highest = jnp.uint32(_FEW_ROWS - 1), jnp.uint32(2**32 - 1)
    counts = index < num_examples
    if lower is None:
        # `jax.random.permutation` sorts pairs, which took XLA on a CPU a quarter of a small run.
        # One array sorts several times as fast: each index rides in the low bits of its number.
        # Nothing is equal here, so a stable sort gives no other order. On a CPU it is the one that
        # merges, which takes two thirds of the time of the other.
        numbers = jnp.where(counts, bits, highest) & ~low | index
        return (jax.lax.sort(numbers, is_stable=True) & low).astype(jnp.int32)
    # Few rows that are padded to many are ordered as they are alone.
    few = jnp.asarray(num_examples) <= _FEW_ROWS
    upper = jnp.where(few, bits & ~low, bits)
    lower = jnp.where(few, 0, lower)
    keys = tuple(jnp.where(counts, word, highest) for word in (upper, lower))
    return jax.lax.sort((*keys, index.astype(jnp.int32)), num_keys=2, is_stable=True)[2]


_FEW_ROWS = 2**12


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
      ValueError: if it holds none.
    """
    num_examples = train.weights.shape[0]
    if batch_size > num_examples:
        raise ValueError(
            f"`batch_size` must be at most the {num_examples} examples of the training part, got "
            f"batch_size={batch_size}."
        )
    return num_examples // batch_size


def make_fit_and_score(fit: FitFn, score: ScoreFn) -> Callable[[HParams, Batch, Batch, Array], Any]:
    """Builds `fit_and_score(hparams, train, valid, key)`, what `cross_validate` runs.

    Returns `score(fit, valid)`. If that is a dict, the same is taken on the training part, with
    `train_` before its names: the gap between the two is what decay is about. A run whose
    params or scores are not finite has diverged: every score of it is NaN, accuracy included.
    If `fit` takes padding, as that of `make_fit` does, so does what is built.

    With a score of `make_score`, the function's `by_example` gives the scores on the held-out part
    example by example, and its `higher_is_better` their directions: `cross_validate` reads both.
    """

    def judge(
        hparams: HParams, train: Batch, valid: Batch, key: Array, on_valid: Callable, told: Any
    ) -> Any:
        result = fit(hparams, train, key, **told)
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


def _example_weights(
    reweigh: Callable, model: Model, state: TrainState, batch: Batch, strength: Array
) -> Array:
    """`reweigh(outputs, batch, strength)`, the outputs at the params of this step.

    They are computed outside the differentiated loss, so the step's gradient treats the weights
    as constants while a derivative of the whole run still sees them. They are the same operations
    on the same numbers as the loss's own forward pass, so the compiler keeps one of the two. Rows
    of weight 0 are filled already.
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


def _first_rows(inputs: PyTree, num_rows: int) -> PyTree:
    return jax.tree.map(lambda x: x[:num_rows], inputs)
