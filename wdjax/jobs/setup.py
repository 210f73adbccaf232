"""From options to data, recipe and devices: everything refused here costs nothing."""

import dataclasses
import inspect
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh
from jaxtyping import Array

from wdjax.checks import check_number, check_one_of, check_positive_int, check_strength
from wdjax.data.dataset import Dataset, take, to_batch
from wdjax.data.encoding import example_of
from wdjax.data.images import as_images_32
from wdjax.data.load import does_not_apply, load_choose_and_test
from wdjax.data.named import find_source
from wdjax.data.split import add_label_noise, check_folds, group_splits
from wdjax.jobs.bound import check_fits
from wdjax.jobs.descriptions import about_columns, about_weights
from wdjax.jobs.options import SINGLE_SLOPE, SLOPES, RunOptions, SelectOptions
from wdjax.jobs.results import named_arrays
from wdjax.loss_kinds import MEASURE_KINDS, fits_measure
from wdjax.parts import resolve_parts
from wdjax.recipe import build as recipes
from wdjax.recipe.build import Recipe
from wdjax.recipe.kinds import (
    DECAY_KINDS,
    DTYPES,
    EXAMPLE_FEATURE_KINDS,
    LOSS_KINDS,
    PART_FEATURE_KINDS,
    DecayKind,
    LossKind,
    ModelDefaults,
    ModelKind,
)
from wdjax.recipe.own import check_is_model, check_own, check_own_model, is_own, load_own
from wdjax.recipe.parse import parse_names, parse_parts, parse_sigmoid
from wdjax.runners import num_cores
from wdjax.selection.folds import Folds, folds_from_splits, kfold
from wdjax.selection.grids import check_axis
from wdjax.types import Batch, Fit

_KINDS_OF_DATA = {"image": "images", "table": "tables", "text": "sequences"}


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Checked options turned into data, recipe and devices; nothing compiled, nothing written."""

    recipe: Recipe
    model: ModelKind
    choose_data: Dataset
    test_data: Dataset
    mesh: Mesh
    out: pathlib.Path
    param_shapes: Any
    num_choose: int
    """Of all there are: streamed data are represented by a few."""
    num_test: int

    @property
    def defaults(self) -> ModelDefaults:
        """The sizes of the model's runs."""
        return self.model.defaults

    @property
    def decay(self) -> DecayKind:
        """What a strength does to the weights."""
        return DECAY_KINDS[self.recipe.decay]

    @property
    def loss(self) -> LossKind:
        """What is minimised, and how its targets are treated."""
        return LOSS_KINDS[self.recipe.loss]

    def describe(self, purpose: str = "choose") -> str:
        """The data and the devices, in a sentence each; what the first part is for in a verb."""
        devices = list(self.mesh.devices.flat)
        names = [f"{d.platform}:{d.id}" for d in devices]
        here = [
            d for d in devices if d.platform == "cpu" and d.process_index == jax.process_index()
        ]
        shared, cores = "", num_cores()
        if len(here) > cores:
            shared = f" ({len(here)} CPU devices share {cores} core{'s' * (cores > 1)}: no faster "
            shared += "than one a core)"
        about = f" {self.choose_data.about}" if self.choose_data.about else ""
        about += about_weights(self.choose_data) + about_columns(self.choose_data)
        return (
            f"{self.choose_data.name}: {self.num_choose} examples to {purpose} on, "
            f"{self.num_test} to test on.{about} Devices: {', '.join(names)}"
            f"{shared}."
        )


def load_parts(options: RunOptions, loss: str) -> tuple[Dataset, Dataset]:
    """The data to choose on and the test data, in memory."""
    return load_choose_and_test(
        options.data,
        target=options.target,
        drop=options.drop,
        weights=options.weights,
        groups=options.groups,
        test=options.test,
        loss=loss,
        data_dir=options.data_dir,
        download=options.download,
        length=options.length,
        seed=options.seed,
        keep_bytes=True,
    )


def check_table_options(options: RunOptions) -> None:
    """Refuses what columns are for where the data have none, before any are looked for.

    Raises:
      ValueError: for the first option that has nothing to act on.
    """
    if find_source(options.data).has_columns:
        return
    for name in ("drop", "weights", "groups", "test"):
        if getattr(options, name) is not None:
            raise does_not_apply(name, getattr(options, name), options.data)


def as_resumed(options: Any) -> Any:
    """The options of a run that goes on in its own folder; others as they are."""
    if options.resume is None:
        return options
    return dataclasses.replace(options, out=options.resume, name=None, overwrite=True)


def prepare(
    options: RunOptions,
    out: pathlib.Path = pathlib.Path(),
    *,
    load: Callable[[RunOptions, str], tuple[Dataset, Dataset]] = load_parts,
    width: int | None = None,
) -> Prepared:
    """Checks the options, loads and splits the data, finds the devices.

    `out`, the folder that was claimed, is not looked at. `width` is of the model's hidden layers,
    by default its own.

    Raises:
      ValueError: for any option or data that cannot run, in one sentence.
    """
    model = load_own("model", options.model)
    check_table_options(options)
    default_loss = find_source(options.data).loss
    loss = options.loss or default_loss
    load_own("loss", loss, like=default_loss)
    load_own("decay", options.decay)
    measures = _measures(options, loss)
    check_one_of("dtype", options.dtype, DTYPES)
    check_number("dropout", options.dropout, low=0.0, high=0.99)
    check_number("label_noise", options.label_noise, low=0.0, high=1.0)
    check_positive_int("seed", options.seed, low=0)
    if options.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    mesh = _mesh(options.devices)
    dataset, test_data = load(options, loss)
    for part in (dataset, test_data):
        LOSS_KINDS[loss].check_targets(loss, part.targets)
    _check_reads(model, options.model, dataset)
    recipe = Recipe(
        make_model=model.at_width(width),
        num_outputs=LOSS_KINDS[loss].outputs_for(loss, dataset.num_outputs),
        loss=loss,
        optimizer=options.optimizer,
        schedule=options.schedule,
        decay=options.decay,
        parts=parse_parts(options.parts),
        num_epochs=model.defaults.num_epochs if options.epochs is None else options.epochs,
        batch_size=options.batch_size,
        dtype=options.dtype,
        scale_inputs=dataset.kind == "table",
        encoding=dataset.encoding,
        score_rows=model.defaults.score_rows,
        augment=_augmentations(options, model, dataset),
        measures=measures,
        example_feature=parse_sigmoid(
            "example_weight", options.example_weight, EXAMPLE_FEATURE_KINDS
        ),
        part_feature=parse_sigmoid("part_weight", options.part_weight, PART_FEATURE_KINDS),
        part_weight_on=options.part_weight_on,
    )
    if model.images_32:
        dataset, test_data = as_images_32(dataset), as_images_32(test_data)
    if options.label_noise > 0:
        dataset = add_label_noise(dataset, options.label_noise, options.seed)
    shapes = _param_shapes(recipe, options, dataset)
    resolve_parts(recipe.parts, shapes)
    check_own(recipe, _one_example(recipe, dataset))
    parts = dataset, test_data
    check_fits(options, recipe, mesh, shapes, model.defaults.num_seeds, parts)
    sizes = len(dataset.inputs), len(test_data.inputs)
    return Prepared(recipe, model, dataset, test_data, mesh, out, shapes, *sizes)


def _check_reads(model: ModelKind, name: str, dataset: Dataset) -> None:
    if dataset.kind not in model.reads:
        reads = " and ".join(_KINDS_OF_DATA[kind] for kind in model.reads)
        raise ValueError(
            f"`model` {name} reads {reads}; {dataset.name!r} is a {dataset.kind}: use mlp."
        )


def _augmentations(options: RunOptions, model: ModelKind, dataset: Dataset) -> tuple[str, ...]:
    names = parse_names(options.augment)
    kinds = {name: load_own("augment", name) for name in names}
    if names and dataset.kind != "image":
        raise ValueError(
            f"`augment` changes images; {dataset.name!r} is a {dataset.kind}: leave it out."
        )
    channels = 3 if model.images_32 else dataset.inputs.shape[-1]
    for name, kind in kinds.items():
        if kind.channels not in (None, channels):
            raise ValueError(
                f"`augment` {name} needs {kind.channels} channels (red, green and blue are 3); "
                f"{dataset.name!r} has {channels}: leave it out."
            )
    return names


def slopes_of(options: Any) -> dict[str, float]:
    """The slopes of a single run, by name; none where nothing is weighed.

    Raises:
      ValueError: for a slope that has nothing to act on, or is not finite.
    """
    slopes = _of_what_is_weighed(options, "{}_slope", SINGLE_SLOPE)
    for name, slope in slopes.items():
        check_number(name, slope)
    return slopes


def slope_axes(options: SelectOptions) -> dict[str, Any]:
    """The slopes as grid axes, by name; none where nothing is weighed.

    Raises:
      ValueError: for slopes that have nothing to act on, or are no axis of a grid.
    """
    slopes = _of_what_is_weighed(options, "{}_slopes", SLOPES)
    return {name.removesuffix("s"): check_axis(name, axis) for name, axis in slopes.items()}


def _of_what_is_weighed(options: Any, option: str, default: dict[str, Any]) -> dict[str, Any]:
    """An option each of what is weighed by a feature, examples and parts, or its default."""
    found = {}
    for weighed in ("example", "part"):
        name, form = option.format(weighed), getattr(options, f"{weighed}_weight")
        value = getattr(options, name)
        if form is None and value is not None:
            raise ValueError(
                f"`{name}` = {value} has nothing to act on; give --{weighed}-weight sigmoid:X."
            )
        if form is not None:
            found[name] = default[weighed] if value is None else value
    return found


def _param_shapes(recipe: Recipe, options: RunOptions, dataset: Dataset) -> Any:
    model = recipe.make_model(recipe.num_outputs)
    check_is_model(options.model, model)
    if options.dropout and not _takes_dropout(recipe.make_model):
        raise ValueError(
            f"`dropout` = {options.dropout:g} needs make_model(num_outputs, dropout=...) in "
            f"{options.model!r}; add the keyword or leave the option out."
        )
    one, key = _one_example(recipe, dataset), jax.random.key(0)
    if is_own(options.model):
        check_own_model(options.model, model, recipe, one)
        if options.dropout:
            model = recipe.make_model(recipe.num_outputs, dropout=options.dropout)
            check_own_model(options.model, model, recipe, one)
    params, model_state = jax.eval_shape(lambda: recipes.recipe_model(recipe).init(key, one.inputs))
    named_arrays(Fit(params, model_state, {}), {})  # Refuses what params.npz could not hold.
    return params


def _one_example(recipe: Recipe, dataset: Dataset) -> Batch:
    """The first example in the shape that the model sees."""
    one = to_batch(take(dataset, np.arange(1)))
    return one._replace(inputs=example_of(recipe.encoding, one.inputs))


def _takes_dropout(make_model: Callable[..., Any]) -> bool:
    try:
        inspect.signature(make_model).bind(1, dropout=0.0)
    except TypeError:
        return False
    except ValueError:  # No signature to look at.
        return True
    return True


def _mesh(num_devices: int | None) -> Mesh:
    devices = jax.devices()
    if num_devices is not None:
        check_positive_int("devices", num_devices, high=len(devices))
        devices = devices[:num_devices]
    # Auto axes: the default, explicit ones, break ordinary flax and optax code.
    return jax.make_mesh((len(devices),), ("trial",), axis_types=(AxisType.Auto,), devices=devices)


def check_overshoot(name: str, decay: str, strength: float, learning_rate: float) -> None:
    """Refuses a decay that multiplies a weight by -1 or beyond at every step.

    Raises:
      ValueError: if it does, with the strength, the rate and the way out.
    """
    rate = strength / DECAY_KINDS[decay].whole_weight_strength(learning_rate)
    if rate >= 2:
        raise ValueError(
            f"`{name}`: {strength:g} removes {rate:g} of each weight per step at learning rate "
            f"{learning_rate:g}; from 2 on a weight grows without bound: take a smaller strength "
            "or learning rate."
        )


def _measures(options: RunOptions, loss: str) -> tuple[str, ...]:
    """What is scored beside the loss: `--measure`, and a measure that is chosen by."""
    names = parse_names(options.measure)
    for name in names:
        load_own("measure", name)
    chosen_by = getattr(options, "choose_by", "loss")
    implied = chosen_by in MEASURE_KINDS and fits_measure(chosen_by, loss)
    is_named = chosen_by in (name.rpartition(":")[2] for name in names)
    return (*names, chosen_by) if implied and not is_named else names


def check_choose_by(name: str, recipe: Recipe) -> None:
    """Refuses to choose by what is not scored, or by a score whose direction is not known.

    Raises:
      ValueError: if so, with what there is to choose by.
    """
    score = recipes.recipe_score(recipe)
    check_one_of("choose_by", name, score.measures)
    if name not in score.higher_is_better:
        raise ValueError(
            f"`choose_by` {name}: whether more of it is better is not known; make it a "
            f"wdjax.Measure(function, higher_is_better=True) or False in its file."
        )


def check_streamable(recipe: Recipe) -> None:
    """Refuses scores that are no mean over examples, in a run that sees a batch at a time.

    Raises:
      ValueError: for the first.
    """
    for name, measure in recipes.recipe_measures(recipe).items():
        if not getattr(measure, "per_example", True):
            raise ValueError(
                f"`measure` {name} is of all examples at once, and a streamed run scores batch by "
                "batch: leave it out, or train without --stream."
            )


def check_folds_fit(prepared: Prepared, options: SelectOptions) -> None:
    """Refuses more folds than the data or a class has examples, or than leave a batch to train on.

    Raises:
      ValueError: if there are.
    """
    data = prepared.choose_data
    check_folds(data, options.folds, stratify=prepared.loss.has_classes)
    num_examples = len(data.inputs)
    check_batch_fits(options.batch_size, num_examples - -(-num_examples // options.folds))


def draw_folds(prepared: Prepared, options: SelectOptions, key: Array) -> Folds:
    """The folds of the data to choose on; of classes, each keeps their shares.

    Raises:
      ValueError: for fewer groups than folds, where there are groups.
    """
    data = prepared.choose_data
    labels = data.targets if prepared.loss.has_classes else None
    if data.groups is not None:
        splits = group_splits(data.groups, options.folds, labels, options.seed)
        return folds_from_splits((train, held_out) for held_out, train in splits)
    return kfold(key, len(data.inputs), options.folds, stratify=labels)


def hparams_of(options: Any) -> dict[str, float]:
    """The numbers of a single run, checked.

    Raises:
      ValueError: for one that is out of range, or no strength.
    """
    check_number("learning_rate", options.learning_rate, low=0.0, exclusive_low=True)
    if options.strength is None:
        raise ValueError(
            "`strength` was not given, and no strength is a choice as well: say --strength 0.1, "
            "or --strength 0 for no decay. `wdjax select` finds one."
        )
    check_strength("strength", options.strength)
    check_overshoot("strength", options.decay, options.strength, options.learning_rate)
    hparams = {"strength": options.strength, "learning_rate": options.learning_rate}
    hparams |= slopes_of(options)
    return hparams | ({"dropout": options.dropout} if options.dropout else {})


def check_batch_fits(batch_size: int, num_examples: int) -> None:
    """Refuses a batch larger than the smallest training part.

    Raises:
      ValueError: if it is.
    """
    if batch_size > num_examples:
        raise ValueError(
            f"`batch_size` must be at most {num_examples}, the examples of the smallest training "
            f"part; got batch_size={batch_size}: take a smaller batch."
        )
