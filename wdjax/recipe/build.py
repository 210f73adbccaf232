"""From choices to functions: what the command's options build, usable from Python as well."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from wdjax.checks import check_one_of, check_positive_int
from wdjax.data.augment import Augmentation, compose
from wdjax.data.dataset import as_floats
from wdjax.data.encoding import Encoding, encode, learn_encoding
from wdjax.data.scale import measure_scaling, standardize
from wdjax.decay import decay_weights
from wdjax.decay.composition import chain_by
from wdjax.diagnostics.telemetry import measure_parts
from wdjax.loss_kinds import LOSS_KINDS, MEASURE_KINDS, check_measure_fits
from wdjax.measures import Score, make_score
from wdjax.models import make_mlp, with_compute_dtype
from wdjax.parts import matrices_only, scale_by_parts, times_own
from wdjax.recipe.kinds import (
    AUGMENTATION_KINDS,
    DECAY_KINDS,
    DTYPES,
    EXAMPLE_FEATURE_KINDS,
    OPTIMIZER_KINDS,
    PART_FEATURE_KINDS,
    PART_WEIGHT_PLACES,
    SCHEDULE_KINDS,
    default_of,
)
from wdjax.run import Run, make_run
from wdjax.selection.search import Stepwise
from wdjax.step import TelemetryFn
from wdjax.training import fit_with, make_fit_and_score
from wdjax.types import (
    Batch,
    Fit,
    HParams,
    Model,
    Parts,
    PenaltyFn,
    Schedule,
    Strength,
    TakesPadding,
)
from wdjax.weights.examples import sigmoid_example_weight
from wdjax.weights.part_features import same_total, sigmoid_parts


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The choices of a run: each makes its own program. Its numbers are in `hparams`.

    `hparams` holds `strength` and `learning_rate`, `dropout` where the model drops units,
    `example_slope` and `part_slope` where examples and parts are weighed by a feature.

    Raises:
      ValueError: for a name that no record has, choices that do not go together, or a count below
        1.
    """

    make_model: Callable[..., Model] = make_mlp
    """`make_model(num_outputs) -> Model`, with a keyword `dropout` if `hparams` has one."""
    num_outputs: int = 10
    loss: str = default_of(LOSS_KINDS)
    optimizer: str = default_of(OPTIMIZER_KINDS)
    schedule: str = default_of(SCHEDULE_KINDS)
    decay: str = default_of(DECAY_KINDS)
    parts: Parts = matrices_only
    num_epochs: int = 100
    batch_size: int = 64
    dtype: str = "float32"
    scale_inputs: bool = False
    """Standardise the columns of the inputs on each training part."""
    encoding: Encoding | None = None
    """Fill the holes of a table, and turn its words into columns, as learnt on each training
    part."""
    score_rows: int | None = None
    """Rows scored at a time: bounds the memory of an evaluation."""
    augment: tuple[str, ...] = ()
    """Names of augmentations, in order."""
    measures: tuple[str, ...] = ()
    """Names of what is scored beside the loss and the measures of its own."""
    example_feature: str | None = None
    """Each example counts by `sigmoid_weight(feature, hparams["example_slope"])`."""
    part_feature: str | None = None
    """Each part counts by `sigmoid_parts(feature, hparams["part_slope"])`, same total."""
    part_weight_on: str = "decay"
    """What a part's weight multiplies: its decay (or penalty), its data loss, or its update."""
    each_part: tuple[str, ...] = ()
    """Patterns of parts whose decay `hparams[pattern]` multiplies, each its own."""

    def __post_init__(self):
        check_one_of("loss", self.loss, LOSS_KINDS)
        check_one_of("optimizer", self.optimizer, OPTIMIZER_KINDS)
        check_one_of("schedule", self.schedule, SCHEDULE_KINDS)
        check_one_of("decay", self.decay, DECAY_KINDS)
        check_one_of("dtype", self.dtype, DTYPES)
        for name in self.augment:
            check_one_of("augment", name, AUGMENTATION_KINDS)
        for name in self.measures:
            check_one_of("measure", name, MEASURE_KINDS)
            check_measure_fits(name, self.loss)
        recipe_measures(self)
        if self.example_feature is not None:
            self._check_example_feature(self.example_feature)
        if self.part_feature is not None:
            check_one_of("part_weight: sigmoid:", self.part_feature, PART_FEATURE_KINDS)
        check_one_of("part_weight_on", self.part_weight_on, PART_WEIGHT_PLACES)
        check_positive_int("epochs", self.num_epochs)
        check_positive_int("batch_size", self.batch_size)

    def _check_example_feature(self, name: str) -> None:
        check_one_of("example_weight: sigmoid:", name, EXAMPLE_FEATURE_KINDS)
        feature = EXAMPLE_FEATURE_KINDS[name]
        if feature.needs_augmentation and not self.augment:
            raise ValueError(
                f"`example_weight` sigmoid:{name} needs an augmentation, such as --augment "
                "crop,flip."
            )
        loss = LOSS_KINDS[self.loss]
        if feature.needs_classes and not (loss.has_classes and loss.num_outputs is None):
            raise ValueError(
                f"`example_weight` sigmoid:{name} needs classes (loss cross_entropy); use "
                "sigmoid:loss."
            )


def recipe_model(recipe: Recipe, hparams: HParams | None = None) -> Model:
    """The recipe's model; with `hparams` that hold a `dropout` rate, one that drops units.

    It takes images of bytes, too: they are divided by 255 here, a batch at a time.
    """
    rate = {} if hparams is None or "dropout" not in hparams else {"dropout": hparams["dropout"]}
    made = with_compute_dtype(recipe.make_model(recipe.num_outputs, **rate), recipe.dtype)

    def init(key: Array, inputs: Any) -> Any:
        return made.init(key, jax.tree.map(as_floats, inputs))

    def apply(params: Any, state: Any, inputs: Any, **how: Any) -> Any:
        return made.apply(params, state, jax.tree.map(as_floats, inputs), **how)

    return Model(init, apply)


def recipe_learning_rate(
    recipe: Recipe, learning_rate: Any, num_steps: int
) -> tuple[Any, Schedule | float]:
    """`(eta_t, s_t)`: the learning rate and the schedule's multiplier, eta_t = eta * s_t."""
    kind = SCHEDULE_KINDS[recipe.schedule]
    if kind.multiplier is None:
        return learning_rate, 1.0
    multiplier = kind.multiplier(num_steps)
    return (lambda step: learning_rate * multiplier(step)), multiplier


def recipe_part_weights(recipe: Recipe, hparams: HParams, inputs: Any, place: str) -> Parts:
    """How much each part counts in one `place`: by its feature there, else as without.

    In the decay that is times `recipe.parts`, and times the own number of each of
    `recipe.each_part`; elsewhere every leaf is 1.0 to begin with. The total is kept by a feature,
    so slope 0 is the recipe without part weights.

    Args:
      recipe: the choices.
      hparams: holds `part_slope` where the recipe has a part feature, and each of its parts.
      inputs: examples, of which only shapes and dtypes are used.
      place: one of `PART_WEIGHT_PLACES`.
    """
    base = recipe.parts if place == "decay" else None
    if place == "decay" and recipe.each_part:
        base = times_own(base, {pattern: hparams[pattern] for pattern in recipe.each_part})
    if recipe.part_feature is None or recipe.part_weight_on != place:
        return base
    feature = PART_FEATURE_KINDS[recipe.part_feature].make(recipe_model(recipe), inputs)
    return same_total(sigmoid_parts(feature, hparams["part_slope"], base), base)


def recipe_augment(recipe: Recipe, inputs: Any) -> Augmentation | None:
    """The recipe's augmentations of images `inputs[example, height, width, channel]`, chained.

    Raises:
      ValueError: for inputs that are no images.
    """
    if not recipe.augment:
        return None
    if jnp.ndim(inputs) != 4:
        raise ValueError(
            f"`augment` changes images [example, height, width, channel]; the inputs have shape "
            f"{jnp.shape(inputs)}. Leave it out."
        )
    side = min(inputs.shape[1:3])
    augment = compose(*(AUGMENTATION_KINDS[name].make(side) for name in recipe.augment))
    return lambda key, image: augment(key, as_floats(image))


def recipe_tx(
    recipe: Recipe, hparams: HParams, num_steps: int, inputs: Any = None
) -> optax.GradientTransformation:
    """The recipe's optimiser, decay included unless it is a penalty.

    `inputs`, examples of which only shapes and dtypes are used, are needed with a part feature.
    """
    parts = recipe_part_weights(recipe, hparams, inputs, "decay")
    on_update = recipe_part_weights(recipe, hparams, inputs, "update")
    learning_rate, _ = recipe_learning_rate(recipe, hparams["learning_rate"], num_steps)
    rate = recipe_rate(recipe, hparams, num_steps)
    decay = optax.identity() if rate is None else decay_weights(rate, parts=parts)
    direction = OPTIMIZER_KINDS[recipe.optimizer].direction()
    if on_update is not None:
        direction = optax.chain(direction, scale_by_parts(on_update))
    return chain_by(direction, learning_rate, decay)


def recipe_rate(recipe: Recipe, hparams: HParams, num_steps: int) -> Strength | Schedule | None:
    """c_t of the recipe's decay; None where it is a penalty, which has none."""
    rate_of = DECAY_KINDS[recipe.decay].rate
    if rate_of is None:
        return None
    peak = hparams["learning_rate"]
    return rate_of(hparams["strength"], *recipe_learning_rate(recipe, peak, num_steps), peak)


def recipe_telemetry(recipe: Recipe, hparams: HParams, num_steps: int, inputs: Any) -> TelemetryFn:
    """The telemetry of the recipe's parts, at the rate and the momentum of its optimiser.

    A penalty in the loss has no rate: what it pulls is part of the gradient, so its parts have
    an infinite timescale and no predicted equilibrium.
    """
    rate = recipe_rate(recipe, hparams, num_steps)
    return functools.partial(
        measure_parts,
        rate=0.0 if rate is None else rate,
        parts=recipe_part_weights(recipe, hparams, inputs, "decay"),
        momentum=OPTIMIZER_KINDS[recipe.optimizer].momentum,
    )


def build_run(
    recipe: Recipe,
    inputs: Any,
    *,
    num_steps: int,
    num_micro_batches: int = 1,
    telemetry: bool = False,
) -> Run:
    """The recipe's `Run`: what `select` scans over, `train` advances and `TrainLoop` drives.

    Args:
      recipe: the choices.
      inputs: examples, of which only shapes and dtypes are used.
      num_steps: the length of the learning rate's schedule.
      num_micro_batches: see `make_train_step`.
      telemetry: put that of the parts into a step's metrics, under `telemetry`.

    Raises:
      ValueError: for augmentations of inputs that are no images.
    """

    def make_telemetry(hparams: HParams) -> TelemetryFn:
        return recipe_telemetry(recipe, hparams, num_steps, inputs)

    return make_run(
        lambda hparams: recipe_model(recipe, hparams),
        LOSS_KINDS[recipe.loss].function,
        make_tx=lambda hparams: recipe_tx(recipe, hparams, num_steps, inputs),
        make_penalty=lambda hparams: recipe_penalty(recipe, hparams, inputs),
        make_example_weight=recipe_example_weight(recipe),
        make_part_weights=lambda hparams: recipe_part_weights(recipe, hparams, inputs, "loss"),
        augment=recipe_augment(recipe, inputs),
        num_micro_batches=num_micro_batches,
        make_telemetry=make_telemetry if telemetry else None,
    )


def recipe_fit(
    recipe: Recipe, observe: Callable[[Fit], Any] | None = None, *, telemetry: bool = False
) -> TakesPadding:
    """The recipe's whole run, `fit(hparams, train, key) -> Fit`: see `fit_run`.

    `telemetry` adds that of each epoch's first step, `history["telemetry"]`.
    """

    def build(train: Batch, num_steps: int) -> tuple[Run, Run | None]:
        make = functools.partial(build_run, recipe, train.inputs, num_steps=num_steps)
        return make(), make(telemetry=True) if telemetry else None

    return fit_with(
        build, num_epochs=recipe.num_epochs, batch_size=recipe.batch_size, observe=observe
    )


def recipe_example_weight(recipe: Recipe) -> Callable[[HParams], Callable] | None:
    """`make_example_weight` of `make_fit`; None where all examples count alike."""
    if recipe.example_feature is None:
        return None
    feature = EXAMPLE_FEATURE_KINDS[recipe.example_feature].make(LOSS_KINDS[recipe.loss].function)
    return lambda hparams: sigmoid_example_weight(feature, hparams["example_slope"])


def recipe_penalty(recipe: Recipe, hparams: HParams, inputs: Any) -> PenaltyFn | None:
    """The recipe's penalty; None where its decay belongs to the optimiser."""
    penalty_of = DECAY_KINDS[recipe.decay].penalty
    if penalty_of is None:
        return None
    parts = recipe_part_weights(recipe, hparams, inputs, "decay")
    return penalty_of(hparams["strength"], parts)


def recipe_measures(recipe: Recipe) -> dict[str, Any]:
    """What the recipe scores, by the score's name: `loss`, its measures, and the further ones.

    A score is named as its measure; one of the user's own, `FILE.py:NAME`, is named NAME.

    Raises:
      ValueError: for two scores of one name, or a name that another score has.
    """
    kind = LOSS_KINDS[recipe.loss]
    measures = {"loss": kind.function}
    for name in dict.fromkeys((*kind.measures, *recipe.measures)):
        score = name.rpartition(":")[2]
        if score in measures or score == "gap" or score.startswith(("train_", "test_")):
            raise ValueError(
                f"`measure` {name!r} would be the score {score!r}, which another is; rename it."
            )
        measures[score] = MEASURE_KINDS[name]
    return measures


def recipe_score(recipe: Recipe) -> Score:
    """The recipe's measures: `loss`, `accuracy` of a classification, and the further ones.

    Raises:
      ValueError: for two scores of one name.
    """
    return make_score(recipe_model(recipe), batch_size=recipe.score_rows, **recipe_measures(recipe))


def recipe_scale(recipe: Recipe, train: Batch, valid: Batch) -> tuple[Batch, Batch]:
    """Encodes and standardises what the recipe does, by the training part alone."""
    train, valid = encode(recipe.encoding, train, valid)
    targets = LOSS_KINDS[recipe.loss].standardizes
    return standardize(train, valid, inputs=recipe.scale_inputs, targets=targets)


def recipe_scaling(recipe: Recipe, train: Batch) -> dict[str, Any]:
    """How `recipe_scale` maps `inputs` and `targets`, by name; without what it leaves alone.

    `encoding` is what was learnt of a table with words or holes.
    """
    scaled = {"inputs": recipe.scale_inputs, "targets": LOSS_KINDS[recipe.loss].standardizes}
    found: dict[str, Any] = {}
    if recipe.encoding is not None:
        learn = jax.jit(functools.partial(learn_encoding, recipe.encoding))
        found["encoding"] = learn(train.inputs, train.weights)
        (train,) = jax.jit(functools.partial(encode, recipe.encoding))(train)
    return found | {
        field: jax.jit(measure_scaling)(getattr(train, field), train.weights)
        for field, wanted in scaled.items()
        if wanted
    }


def recipe_fit_and_score(recipe: Recipe) -> Callable[[HParams, Batch, Batch, Array], Any]:
    """What `cross_validate` runs: scale, fit, score on both parts.

    Raises:
      ValueError: for two scores of one name.
    """
    scale = functools.partial(recipe_scale, recipe)
    return make_fit_and_score(recipe_fit(recipe), recipe_score(recipe), scale=scale)


def recipe_stepwise(recipe: Recipe) -> Stepwise:
    """The runs of `recipe_fit_and_score`, for ways of choosing that go part of the way.

    Raises:
      ValueError: for two scores of one name.
    """
    return Stepwise(
        lambda inputs, num_steps: build_run(recipe, inputs, num_steps=num_steps),
        recipe_score(recipe),
        recipe.num_epochs,
        recipe.batch_size,
        functools.partial(recipe_scale, recipe),
    )


def recipe_param_shapes(recipe: Recipe, inputs: Any) -> Any:
    """The params as shapes and dtypes, from one row of `inputs[example, ...]`: nothing is run."""
    one = jax.tree.map(lambda x: x[:1], inputs)
    return jax.eval_shape(lambda: recipe_model(recipe).init(jax.random.key(0), one)[0])
