"""From choices to functions: what the command's options build, usable from Python as well."""

import dataclasses
import functools
import importlib.util
import pathlib
import sys
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from wdjax.checks import check_one_of, check_positive_int, nearest
from wdjax.data.augment import (
    Augmentation,
    additive_noise,
    compose,
    cutout,
    random_brightness,
    random_contrast,
    random_crop,
    random_flip,
    random_saturation,
)
from wdjax.data.scale import Scaling, measure_scaling, standardize
from wdjax.decay import (
    corrected_rate,
    decay_weights,
    decoupled_rate,
    independent_rate,
)
from wdjax.decay.composition import chain_by
from wdjax.diagnostics.telemetry import measure_parts
from wdjax.losses import cross_entropy, squared_error
from wdjax.measures import Score, is_correct, make_score
from wdjax.models import make_cnn, make_mlp, make_rnn, with_compute_dtype
from wdjax.parts import matrices_only, scale_by_parts
from wdjax.penalties import l1_penalty, l2_penalty
from wdjax.run import Run, make_run
from wdjax.step import TelemetryFn
from wdjax.training import (
    fit_run,
    make_fit_and_score,
    steps_per_epoch,
    without_known_padding,
)
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
from wdjax.weights.examples import (
    augment_strength,
    confidence,
    example_loss_of,
    margin,
    sigmoid_example_weight,
)
from wdjax.weights.part_features import (
    PartFeature,
    depth,
    fan_in,
    same_total,
    sigmoid_parts,
    tail_index,
    weight_norm,
    z_scores,
)

MODELS = {"mlp": make_mlp, "cnn": make_cnn, "rnn": make_rnn}
LOSSES = {"cross_entropy": cross_entropy, "squared_error": squared_error}
SCHEDULES = ("constant", "cosine")
DECAYS = ("decoupled", "coupled", "independent", "corrected", "l1")
DTYPES = ("float32", "bfloat16", "float64")

DIRECTIONS = {
    # eps_root keeps the run differentiable where a second moment is exactly zero.
    "adam": lambda: optax.scale_by_adam(eps_root=1e-12),
    "sgd": optax.identity,
    "momentum": lambda: optax.trace(decay=0.9),
    "lion": optax.scale_by_lion,
}
"""The descent direction of each optimiser, before the learning rate; decay is ours."""

MOMENTUM = {"adam": 0.9, "sgd": 0.0, "momentum": 0.9, "lion": 0.957}
"""How alike the steps of each optimiser are, as telemetry reads it: the correlation of neighbours
in a geometric sequence. Lion's is the one whose sum is that of its own correlations, `2/pi
arcsin(0.350 * 0.99^(k-1))` at distance k, from its 0.9 and 0.99: at rates far below 0.01, where its
memory of a hundred steps is short beside the decay's (docs/derivations.md, 5.4)."""

AUGMENTATIONS: dict[str, Callable[[int], Augmentation]] = {
    "crop": lambda side: random_crop(max(1, side // 8)),
    "flip": lambda side: random_flip(),
    "cutout": lambda side: cutout(max(1, side // 2)),
    "brightness": lambda side: random_brightness(0.2),
    "contrast": lambda side: random_contrast(0.5),
    "saturation": lambda side: random_saturation(0.5),
    "noise": lambda side: additive_noise(0.1),
}
"""From the shorter side of the images, in pixels."""

EXAMPLE_FEATURES = {
    "augment": lambda loss: augment_strength,
    "loss": example_loss_of,
    "margin": lambda loss: margin,
    "confidence": lambda loss: confidence,
}
"""What the sigmoid weight of an example may look at, from the example loss."""

PART_FEATURES: dict[str, Callable[[Model, Any], PartFeature]] = {
    "depth": depth,
    "fan_in": lambda model, inputs: z_scores(fan_in),
    "weight_norm": lambda model, inputs: z_scores(weight_norm),
    "tail_index": lambda model, inputs: z_scores(tail_index),
}
"""What the sigmoid weight of a part may look at, from the model and examples."""

PART_WEIGHT_PLACES = ("decay", "loss", "update")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The choices of a run: each makes its own program. Its numbers are in `hparams`.

    `hparams` holds `strength` and `learning_rate`, `dropout` where the model drops units,
    `example_slope` and `part_slope` where examples and parts are weighed by a feature.
    """

    make_model: Callable[..., Model] = make_mlp
    """`make_model(num_outputs) -> Model`, with a keyword `dropout` if `hparams` has one."""
    num_outputs: int = 10
    loss: str = "cross_entropy"
    optimizer: str = "adam"
    schedule: str = "constant"
    decay: str = "decoupled"
    parts: Parts = matrices_only
    num_epochs: int = 100
    batch_size: int = 64
    dtype: str = "float32"
    scale_inputs: bool = False
    """Standardise the columns of the inputs on each training part."""
    score_rows: int | None = None
    """Rows scored at a time: bounds the memory of an evaluation."""
    augment: tuple[str, ...] = ()
    """Names of `AUGMENTATIONS`, in order."""
    example_feature: str | None = None
    """Each example counts by `sigmoid_weight(feature, hparams["example_slope"])`."""
    part_feature: str | None = None
    """Each part counts by `sigmoid_parts(feature, hparams["part_slope"])`, same total."""
    part_weight_on: str = "decay"
    """What a part's weight multiplies: its decay (or penalty), its data loss, or its update."""

    def __post_init__(self):
        check_one_of("loss", self.loss, LOSSES)
        check_one_of("optimizer", self.optimizer, DIRECTIONS)
        check_one_of("schedule", self.schedule, SCHEDULES)
        check_one_of("decay", self.decay, DECAYS)
        check_one_of("dtype", self.dtype, DTYPES)
        for name in self.augment:
            check_one_of("augment", name, AUGMENTATIONS)
        if self.example_feature is not None:
            check_one_of("example_weight: sigmoid:", self.example_feature, EXAMPLE_FEATURES)
        if self.example_feature == "augment" and not self.augment:
            raise ValueError(
                "`example_weight` sigmoid:augment needs an augmentation, such as --augment "
                "crop,flip."
            )
        if self.example_feature in ("margin", "confidence") and self.loss != "cross_entropy":
            raise ValueError(
                f"`example_weight` sigmoid:{self.example_feature} needs classes (loss "
                "cross_entropy); use sigmoid:loss."
            )
        if self.part_feature is not None:
            check_one_of("part_weight: sigmoid:", self.part_feature, PART_FEATURES)
        check_one_of("part_weight_on", self.part_weight_on, PART_WEIGHT_PLACES)
        check_positive_int("epochs", self.num_epochs)
        check_positive_int("batch_size", self.batch_size)


def recipe_model(recipe: Recipe, hparams: HParams | None = None) -> Model:
    """The recipe's model; with `hparams` that hold a `dropout` rate, one that drops units."""
    rate = {} if hparams is None or "dropout" not in hparams else {"dropout": hparams["dropout"]}
    return with_compute_dtype(recipe.make_model(recipe.num_outputs, **rate), recipe.dtype)


def recipe_learning_rate(
    recipe: Recipe, learning_rate: Any, num_steps: int
) -> tuple[Any, Schedule | float]:
    """`(eta_t, s_t)`: the learning rate and the schedule's multiplier, eta_t = eta * s_t.

    cosine: s_t = (1 + cos(pi t / num_steps)) / 2.
    """
    if recipe.schedule == "constant":
        return learning_rate, 1.0
    multiplier: Schedule = lambda step: 0.5 * (1.0 + jnp.cos(jnp.pi * step / num_steps))
    return (lambda step: learning_rate * multiplier(step)), multiplier


def recipe_part_weights(recipe: Recipe, hparams: HParams, inputs: Any, place: str) -> Parts:
    """How much each part counts in one `place`: by its feature there, else as without.

    In the decay that is times `recipe.parts`; elsewhere every leaf is 1.0 to begin with. The
    total is kept, so slope 0 is the recipe without part weights.

    Args:
      recipe: the choices.
      hparams: holds `part_slope` where the recipe has a part feature.
      inputs: examples, of which only shapes and dtypes are used.
      place: one of `PART_WEIGHT_PLACES`.
    """
    base = recipe.parts if place == "decay" else None
    if recipe.part_feature is None or recipe.part_weight_on != place:
        return base
    feature = PART_FEATURES[recipe.part_feature](recipe_model(recipe), inputs)
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
    return compose(*(AUGMENTATIONS[name](side) for name in recipe.augment))


def recipe_tx(
    recipe: Recipe, hparams: HParams, num_steps: int, inputs: Any = None
) -> optax.GradientTransformation:
    """The recipe's optimiser, decay included unless it is a penalty (coupled, l1).

    `inputs`, examples of which only shapes and dtypes are used, are needed with a part feature.
    """
    parts = recipe_part_weights(recipe, hparams, inputs, "decay")
    on_update = recipe_part_weights(recipe, hparams, inputs, "update")
    learning_rate, _ = recipe_learning_rate(recipe, hparams["learning_rate"], num_steps)
    rate = recipe_rate(recipe, hparams, num_steps)
    decay = optax.identity() if rate is None else decay_weights(rate, parts=parts)
    direction = DIRECTIONS[recipe.optimizer]()
    if on_update is not None:
        direction = optax.chain(direction, scale_by_parts(on_update))
    return chain_by(direction, learning_rate, decay)


def recipe_rate(recipe: Recipe, hparams: HParams, num_steps: int) -> Strength | Schedule | None:
    """c_t of the recipe's decay; None where it is a penalty (coupled, l1), which has none."""
    strength, peak = hparams["strength"], hparams["learning_rate"]
    learning_rate, multiplier = recipe_learning_rate(recipe, peak, num_steps)
    if recipe.decay == "decoupled":
        return decoupled_rate(strength, learning_rate)
    if recipe.decay == "independent":
        return independent_rate(strength, multiplier)
    if recipe.decay == "corrected":
        return corrected_rate(strength, learning_rate, peak)
    return None


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
        momentum=MOMENTUM[recipe.optimizer],
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
        LOSSES[recipe.loss],
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

    def fit(
        hparams: HParams, train: Batch, key: Array, *, num_examples: int | Array | None = None
    ) -> Fit:
        train, num_examples = without_known_padding(train, num_examples)
        num_steps = recipe.num_epochs * steps_per_epoch(train, recipe.batch_size)
        build = functools.partial(build_run, recipe, train.inputs, num_steps=num_steps)
        return fit_run(
            build(),
            hparams,
            train,
            key,
            num_epochs=recipe.num_epochs,
            batch_size=recipe.batch_size,
            num_examples=num_examples,
            observe=observe,
            looking=build(telemetry=True) if telemetry else None,
        )

    return TakesPadding(fit, lambda n: recipe.num_epochs * (n // recipe.batch_size))


def recipe_example_weight(recipe: Recipe) -> Callable[[HParams], Callable] | None:
    """`make_example_weight` of `make_fit`; None where all examples count alike."""
    if recipe.example_feature is None:
        return None
    feature = EXAMPLE_FEATURES[recipe.example_feature](LOSSES[recipe.loss])
    return lambda hparams: sigmoid_example_weight(feature, hparams["example_slope"])


def recipe_penalty(recipe: Recipe, hparams: HParams, inputs: Any) -> PenaltyFn | None:
    """The recipe's penalty; None where its decay belongs to the optimiser."""
    penalty_of = {"coupled": l2_penalty, "l1": l1_penalty}.get(recipe.decay)
    if penalty_of is None:
        return None
    parts = recipe_part_weights(recipe, hparams, inputs, "decay")
    return penalty_of(hparams["strength"], parts)


def recipe_score(recipe: Recipe) -> Score:
    """The recipe's measures: `loss`, and `accuracy` of a classification."""
    measures = {"loss": LOSSES[recipe.loss]}
    if recipe.loss == "cross_entropy":
        measures["accuracy"] = is_correct
    return make_score(recipe_model(recipe), batch_size=recipe.score_rows, **measures)


def recipe_scale(recipe: Recipe, train: Batch, valid: Batch) -> tuple[Batch, Batch]:
    """Standardises what the recipe standardises, by the training part alone."""
    targets = recipe.loss == "squared_error"
    return standardize(train, valid, inputs=recipe.scale_inputs, targets=targets)


def recipe_scaling(recipe: Recipe, train: Batch) -> dict[str, Scaling]:
    """How `recipe_scale` maps `inputs` and `targets`, by name; without what it leaves alone."""
    scaled = {"inputs": recipe.scale_inputs, "targets": recipe.loss == "squared_error"}
    return {
        field: jax.jit(measure_scaling)(getattr(train, field), train.weights)
        for field, wanted in scaled.items()
        if wanted
    }


def recipe_fit_and_score(recipe: Recipe) -> Callable[[HParams, Batch, Batch, Array], Any]:
    """What `cross_validate` runs: scale, fit, score on both parts."""
    fit = recipe_fit(recipe)
    plain = make_fit_and_score(fit, recipe_score(recipe))

    def fit_and_score(
        hparams: HParams, train: Batch, valid: Batch, key: Array, **num_examples: Any
    ) -> Any:
        train, valid = recipe_scale(recipe, train, valid)
        return plain(hparams, train, valid, key, **num_examples)

    def by_example(
        hparams: HParams, train: Batch, valid: Batch, key: Array, **num_examples: Any
    ) -> Any:
        train, valid = recipe_scale(recipe, train, valid)
        return plain.by_example(hparams, train, valid, key, **num_examples)

    fit_and_score.by_example = by_example
    fit_and_score.higher_is_better = plain.higher_is_better
    return TakesPadding(fit_and_score, fit.num_steps)


def recipe_param_shapes(recipe: Recipe, inputs: Any) -> Any:
    """The params as shapes and dtypes, from one row of `inputs[example, ...]`: nothing is run."""
    one = jax.tree.map(lambda x: x[:1], inputs)
    return jax.eval_shape(lambda: recipe_model(recipe).init(jax.random.key(0), one)[0])


def load_make_model(name: str) -> Callable[..., Model]:
    """One of the project's models by name, or the user's own as `my_file.py:make_model`.

    Raises:
      ValueError: for an unknown name, a missing file or function, or a file that fails to run.
    """
    if ":" not in name:
        check_one_of("model", name, MODELS)
        return MODELS[name]
    path, function = name.rsplit(":", 1)
    if not pathlib.Path(path).is_file():
        raise ValueError(f"`model` {name!r}: there is no file {path!r}; give FILE.py:FUNCTION.")
    module_name = f"wdjax_model_{pathlib.Path(path).stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"`model` {name!r}: {path!r} is not a Python file; give FILE.py:FUNCTION.")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses, so flax modules too, look up annotations written as strings there.
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"`model` {name!r}: running the file failed: {error!r}.") from error
    make_model: Any = getattr(module, function, None)
    if not callable(make_model):
        functions = [n for n, value in vars(module).items() if callable(value)]
        raise ValueError(
            f"`model` {name!r}: {path!r} defines no function {function!r}."
            f"{nearest(function, functions)}"
        )
    return cast(Callable[..., Model], make_model)


def parse_sigmoid(name: str, text: str | None, features: dict[str, Any]) -> str | None:
    """The feature of `"sigmoid:FEATURE"`, or None for None.

    Raises:
      ValueError: for another form or an unknown feature.
    """
    if text is None:
        return None
    form, _, feature = text.partition(":")
    if form != "sigmoid" or not feature:
        raise ValueError(
            f"`{name}` must be sigmoid:FEATURE, such as sigmoid:{next(iter(features))}; "
            f"got {text!r}."
        )
    check_one_of(f"{name}: sigmoid:", feature, features)
    return feature


def parse_parts(text: str) -> Parts:
    """`"matrices"`, `"all"`, or patterns such as `"*/kernel=1,*=0"`, the first match winning.

    Raises:
      ValueError: for anything else.
    """
    if text == "matrices":
        return matrices_only
    if text == "all":
        return None
    patterns = {}
    for item in text.split(","):
        pattern, equals, number = item.strip().rpartition("=")
        try:
            patterns[pattern] = float(number)
        except ValueError:
            equals = ""
        if not equals or not pattern:
            raise ValueError(
                f"`parts` must be matrices, all, or PATTERN=NUMBER,... such as "
                f"'*/kernel=1,*=0'; got {item.strip()!r}."
            )
    return patterns
