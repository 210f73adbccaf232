"""What can be named on the command line: a frozen record a choice, a table a sort.

The first name of a table is the default. Nothing else in the package tests a name, and a new one
is an entry in its table: `register`.
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from wdjax.checks import check_one_of, check_positive_int
from wdjax.data.augment import (
    additive_noise,
    cutout,
    random_brightness,
    random_contrast,
    random_crop,
    random_flip,
    random_saturation,
)
from wdjax.data.named import DATA_SOURCES, DataSource
from wdjax.decay import corrected_rate, decoupled_rate, independent_rate, muon
from wdjax.loss_kinds import LOSS_KINDS, MEASURE_KINDS, LossKind
from wdjax.measures import Measure
from wdjax.models import make_byte_transformer, make_cnn, make_mlp, make_resnet20, make_rnn
from wdjax.penalties import l1_penalty, l2_penalty
from wdjax.selection.choice import RULES, Rule
from wdjax.selection.ways import WAYS, Way
from wdjax.types import Model, Schedule
from wdjax.weights.examples import augment_strength, confidence, example_loss_of, margin
from wdjax.weights.part_features import (
    PartFeature,
    depth,
    fan_in,
    tail_index,
    weight_norm,
    z_scores,
)

DTYPES = ("float32", "bfloat16", "float64")
PART_WEIGHT_PLACES = ("decay", "loss", "update")


def _check_callable(name: str, value: Any, form: str) -> None:
    if not callable(value):
        raise ValueError(f"`{name}` must be a function {form}, got {value!r}.")


@dataclasses.dataclass(frozen=True)
class DecayKind:
    """What a strength does to the weights: a rate beside the update, or a penalty in the loss.

    Args:
      rate: `(strength, learning_rate, multiplier, peak) -> c_t`, the share of a weight that a step
        removes, in proportion to the strength. The learning rate eta_t and the multiplier s_t of
        its schedule (eta_t = peak * s_t) are numbers or functions of the step; then c_t may be a
        function of the step as well. Strengths and learning rates may be traced.
      penalty: `(strength, parts) -> (params -> scalar)`, added to the loss once.
      strengths: the smallest and the largest that a selection tries by default at one learning
        rate; at several it leaves out half a decade at either end (`ModelDefaults`).

    Raises:
      ValueError: unless exactly one of `rate` and `penalty` is given, and is a function.
    """

    rate: Any = None
    penalty: Any = None
    strengths: tuple[float, float] = (1e-6, 1e-1)

    def __post_init__(self):
        if (self.rate is None) == (self.penalty is None):
            raise ValueError(
                "a DecayKind is a `rate` beside the update or a `penalty` in the loss: give one."
            )
        name, form = ("penalty", "(strength, parts) -> (params -> scalar)")
        if self.rate is not None:
            name, form = ("rate", "(strength, learning_rate, multiplier, peak) -> rate")
        _check_callable(name, getattr(self, name), form)

    @property
    def has_rate(self) -> bool:
        """Whether it removes a share of each weight; a penalty's pull is part of the gradient."""
        return self.rate is not None

    def whole_weight_strength(self, learning_rate: float) -> float:
        """The strength at which a step removes the whole weight; infinite for a penalty."""
        if self.rate is None:
            return math.inf
        share: Any = self.rate(1.0, learning_rate, 1.0, learning_rate)
        share = share(0) if callable(share) else share
        return 1 / share if share > 0 else math.inf


DECAY_KINDS: dict[str, DecayKind] = {
    "decoupled": DecayKind(
        rate=lambda strength, learning_rate, multiplier, peak: decoupled_rate(
            strength, learning_rate
        ),
        strengths=(1e-3, 1e2),
    ),
    "coupled": DecayKind(penalty=l2_penalty),
    "independent": DecayKind(
        rate=lambda strength, learning_rate, multiplier, peak: independent_rate(
            strength, multiplier
        )
    ),
    "corrected": DecayKind(
        rate=lambda strength, learning_rate, multiplier, peak: corrected_rate(
            strength, learning_rate, peak
        ),
        strengths=(1e-3, 1e2),
    ),
    "l1": DecayKind(penalty=l1_penalty),
}


@dataclasses.dataclass(frozen=True)
class OptimizerKind:
    """A descent direction, before the learning rate; the decay is ours.

    Args:
      direction: `() -> GradientTransformation`.
      momentum: how alike neighbouring steps are, as telemetry reads it: the correlation of
        neighbours in a geometric sequence.
      learning_rates: those that `wdjax compare` tries by default. At Adam's, Lion diverges and
        plain descent stands still.
      searched: the smallest and the largest learning rate that `wdjax select` tries by default.
    """

    direction: Callable[[], optax.GradientTransformation]
    momentum: float = 0.0
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 0.01)
    searched: tuple[float, float] = (3e-4, 0.3)


def _muon_direction() -> optax.GradientTransformation:
    """Muon for matrices, Nesterov Adam for all other leaves, without learning rate and decay."""
    return optax.chain(muon(1.0, optax.identity()), optax.scale(-1.0))


OPTIMIZER_KINDS: dict[str, OptimizerKind] = {
    # eps_root keeps the run differentiable where a second moment is exactly zero.
    "adam": OptimizerKind(lambda: optax.scale_by_adam(eps_root=1e-12), 0.9, (1e-3, 3e-3, 0.01)),
    "sgd": OptimizerKind(optax.identity, 0.0, (0.03, 0.1, 0.3), (3e-3, 3.0)),
    "momentum": OptimizerKind(lambda: optax.trace(decay=0.9), 0.9, (3e-3, 0.01, 0.03), (3e-4, 0.3)),
    # Lion's momentum is the one whose sum is that of its own correlations, `2/pi arcsin(0.350 *
    # 0.99^(k-1))` at distance k, from its 0.9 and 0.99: at rates far below 0.01, where its memory
    # of a hundred steps is short beside the decay's (docs/derivations.md, 5.4).
    "lion": OptimizerKind(optax.scale_by_lion, 0.957, (1e-4, 3e-4, 1e-3), (1e-5, 0.01)),
    # Muon's is found likewise, of its Nesterov momentum of 0.95 before it is made orthogonal. Its
    # matrices move by the root mean square of Adam, so Adam's learning rates are its own too.
    "muon": OptimizerKind(_muon_direction, 0.941, (1e-3, 3e-3, 0.01), (3e-4, 0.1)),
}


@dataclasses.dataclass(frozen=True)
class ScheduleKind:
    """How the learning rate goes: eta_t = eta * s_t.

    Args:
      multiplier: `num_steps -> (step -> s_t)`, s_t in [0, 1]; None for s_t = 1 throughout.
    """

    multiplier: Callable[[Any], Schedule] | None = None


def _cosine(num_steps: Any) -> Schedule:
    """s_t = (1 + cos(pi t / num_steps)) / 2."""
    return lambda step: 0.5 * (1.0 + jnp.cos(jnp.pi * step / num_steps))


WARMUP = 20
"""One step in so many of a run, rounded up, is warm-up: 5 %."""


def _warmup_cosine(num_steps: Any) -> Schedule:
    """s_t = (t + 1) / (m + 1) for t < m = ceil(T / 20), then (1 + cos(pi (t - m) / (T - m))) / 2.

    T is `num_steps`. No step stands still, s_m = 1, and s_T = 0 (and stays).
    """
    m = -(-num_steps // WARMUP)

    def multiplier(step: Any) -> Any:
        share = jnp.clip((step - m) / jnp.maximum(num_steps - m, 1), 0.0, 1.0)
        return jnp.where(step < m, (step + 1) / (m + 1), 0.5 * (1.0 + jnp.cos(jnp.pi * share)))

    return multiplier


SCHEDULE_KINDS: dict[str, ScheduleKind] = {
    "constant": ScheduleKind(),
    "cosine": ScheduleKind(_cosine),
    "warmup_cosine": ScheduleKind(_warmup_cosine),
}

COMMAND_SCHEDULE = "warmup_cosine"
"""What every command takes unless another is named, so that a strength that `select` chooses is
for the run that `train` does; a `Recipe` in Python has the first of the table."""


@dataclasses.dataclass(frozen=True)
class GridDefaults:
    """How many learning rates and strengths a selection tries together, and of which ranges.

    The narrowed are factors on the ends of the optimiser's range of learning rates and of the
    decay's range of strengths: few numbers must lie where it matters.
    """

    num_learning_rates: int = 7
    num_strengths: int = 9
    narrowed_learning_rates: tuple[float, float] = (1.0, 1.0)
    narrowed_strengths: tuple[float, float] = (10**0.5, 10**-0.5)


@dataclasses.dataclass(frozen=True)
class ModelDefaults:
    """Sizes at which a model's selection ends within two minutes on two cores."""

    num_epochs: int = 30
    num_seeds: int = 3
    num_strengths: int = 13
    """At one learning rate; `grid` has those at several."""
    narrowed: tuple[float, float] = (1.0, 1.0)
    """Factors on the two ends of the default range: few strengths must lie where it matters."""
    grid: GridDefaults = GridDefaults()
    score_rows: int | None = None
    """Rows scored at a time: bounds the memory of an evaluation."""


@dataclasses.dataclass(frozen=True)
class ModelKind:
    """A model that can be named.

    Args:
      make: `make(num_outputs) -> Model`, with a keyword `dropout` if it can drop units.
      defaults: the sizes of its runs.
      reads: the kinds of data it takes: image, table, text.
      images_32: whether it wants images as `[32, 32, 3]`: others are resized, and what is no image
        is refused there.
      of_width: `width -> make`, if it can be built at a width.

    Raises:
      ValueError: if `make` is not callable, or another field is of another kind.
    """

    make: Any
    defaults: Any = ModelDefaults()
    reads: Any = ("image", "table", "text")
    images_32: bool = False
    of_width: Any = None

    def __post_init__(self):
        _check_callable("make", self.make, "make(num_outputs) -> Model")
        if self.of_width is not None:
            _check_callable("of_width", self.of_width, "width -> make(num_outputs) -> Model")
        if not isinstance(self.defaults, ModelDefaults):
            raise ValueError(f"`defaults` must be a ModelDefaults, got {self.defaults!r}.")
        if not isinstance(self.reads, tuple | list) or not self.reads:
            raise ValueError(f"`reads` must be a tuple of kinds of data, got {self.reads!r}.")
        for kind in self.reads:
            check_one_of("reads", kind, ("image", "table", "text"))

    def at_width(self, width: int | None) -> Any:
        """`make` at a number of hidden units; the model's own where that is None.

        A `make` of one's own may take the keyword `width` instead of an `of_width` beside it.

        Raises:
          ValueError: for a width below 1, or a model that cannot be built at one.
        """
        if width is None:
            return self.make
        check_positive_int("width", width)
        if self.of_width is not None:
            return self.of_width(width)
        try:
            inspect.signature(self.make).bind(1, width=width)
        except TypeError:
            raise ValueError(
                f"`width` = {width}: this model cannot be built at a width; one that can is made "
                "by make_model(num_outputs, *, width). Leave it out, and vary rows, epochs or the "
                "batch size."
            ) from None
        return functools.partial(self.make, width=width)


LARGE_DEFAULTS = ModelDefaults(
    *(15, 1, 3),
    narrowed=(100.0, 0.1),
    grid=GridDefaults(3, 3, (10 / 3, 1 / 30), (100.0, 0.1)),
    score_rows=128,
)
"""Of the models whose single training takes long."""

MODEL_KINDS: dict[str, ModelKind] = {
    "mlp": ModelKind(make_mlp, of_width=lambda width: functools.partial(make_mlp, widths=(width,))),
    "cnn": ModelKind(make_cnn, LARGE_DEFAULTS, images_32=True),
    "rnn": ModelKind(
        make_rnn,
        ModelDefaults(30, 2, 7, grid=GridDefaults(4, 5, (10 / 3, 0.1), (10.0, 0.1))),
        reads=("image",),
        of_width=lambda width: functools.partial(make_rnn, width=width),
    ),
    "resnet20": ModelKind(make_resnet20, LARGE_DEFAULTS, reads=("image",)),
    "transformer": ModelKind(
        make_byte_transformer,
        LARGE_DEFAULTS,
        reads=("text",),
        of_width=lambda width: functools.partial(make_byte_transformer, width=width),
    ),
}


@dataclasses.dataclass(frozen=True)
class AugmentationKind:
    """An augmentation that can be named.

    Args:
      make: from the shorter side of the images, in pixels.
      channels: how many an image must have; None for any.

    Raises:
      ValueError: if `make` is not callable.
    """

    make: Any
    channels: int | None = None

    def __post_init__(self):
        _check_callable("make", self.make, "make(side) -> Augmentation")


AUGMENTATION_KINDS: dict[str, AugmentationKind] = {
    "crop": AugmentationKind(lambda side: random_crop(max(1, side // 8))),
    "flip": AugmentationKind(lambda side: random_flip()),
    "cutout": AugmentationKind(lambda side: cutout(max(1, side // 2))),
    "brightness": AugmentationKind(lambda side: random_brightness(0.2)),
    "contrast": AugmentationKind(lambda side: random_contrast(0.5)),
    "saturation": AugmentationKind(lambda side: random_saturation(0.5), channels=3),
    "noise": AugmentationKind(lambda side: additive_noise(0.1)),
}


@dataclasses.dataclass(frozen=True)
class ExampleFeatureKind:
    """What the sigmoid weight of an example may look at.

    Args:
      make: from the example loss to `(outputs, batch, augment_strength) -> feature[batch]`.
      needs_augmentation: whether there is nothing to look at without one.
      needs_classes: whether outputs must be logits.
    """

    make: Callable[[Callable], Callable]
    needs_augmentation: bool = False
    needs_classes: bool = False


EXAMPLE_FEATURE_KINDS: dict[str, ExampleFeatureKind] = {
    "augment": ExampleFeatureKind(lambda loss: augment_strength, needs_augmentation=True),
    "loss": ExampleFeatureKind(example_loss_of),
    "margin": ExampleFeatureKind(lambda loss: margin, needs_classes=True),
    "confidence": ExampleFeatureKind(lambda loss: confidence, needs_classes=True),
}


@dataclasses.dataclass(frozen=True)
class PartFeatureKind:
    """What the sigmoid weight of a part may look at.

    Args:
      make: from the model and examples to a feature of its parts.
    """

    make: Callable[[Model, Any], PartFeature]


PART_FEATURE_KINDS: dict[str, PartFeatureKind] = {
    "depth": PartFeatureKind(depth),
    "fan_in": PartFeatureKind(lambda model, inputs: z_scores(fan_in)),
    "weight_norm": PartFeatureKind(lambda model, inputs: z_scores(weight_norm)),
    "tail_index": PartFeatureKind(lambda model, inputs: z_scores(tail_index)),
}

NOTHING = "none"
"""The choice of no augmentation, in a comparison."""

COMPARED: dict[str, tuple[str, ...]] = {
    "optimizer": ("sgd", "momentum", "adam", "lion"),
    "augment": (NOTHING, "crop", "crop,flip"),
    "model": ("mlp", "rnn"),
    "decay": ("decoupled", "coupled", "independent"),
    "schedule": ("constant", "cosine"),
}
"""What `wdjax compare` can vary, and the choices it compares unless others are named."""

TABLES: dict[str, tuple[type, dict[str, Any]]] = {
    "augment": (AugmentationKind, AUGMENTATION_KINDS),
    "by": (Way, WAYS),
    "data": (DataSource, DATA_SOURCES),
    "decay": (DecayKind, DECAY_KINDS),
    "example_weight": (ExampleFeatureKind, EXAMPLE_FEATURE_KINDS),
    "loss": (LossKind, LOSS_KINDS),
    "measure": (Measure, MEASURE_KINDS),
    "model": (ModelKind, MODEL_KINDS),
    "optimizer": (OptimizerKind, OPTIMIZER_KINDS),
    "part_weight": (PartFeatureKind, PART_FEATURE_KINDS),
    "rule": (Rule, RULES),
    "schedule": (ScheduleKind, SCHEDULE_KINDS),
}
"""The record and the table of each sort, by the option that names one."""


def default_of(table: dict[str, Any]) -> str:
    """The name that is taken unless another is given: the first of a table."""
    return next(iter(table))


def register(sort: str, name: str, record: Any) -> None:
    """Adds a record to the table of its sort, so that options and recipes can name it.

    Args:
      sort: the option that names it, a key of `TABLES`.
      name: without `:` and `,`, which options read as signs.
      record: see `TABLES` for the kind.

    Raises:
      ValueError: for an unknown sort, a name that is taken or cannot be given as an option, or a
        record of another sort.
    """
    check_one_of("sort", sort, TABLES)
    kind, table = TABLES[sort]
    if not name or set(name) & set(":, "):
        raise ValueError(f"`name` must be a word without ':' or ',', got {name!r}.")
    if name in table:
        raise ValueError(f"`name` {name!r} is taken; the {sort} table has {', '.join(table)}.")
    if not isinstance(record, kind):
        raise ValueError(f"`record` must be a {kind.__name__} to be a {sort}, got {record!r}.")
    table[name] = record
