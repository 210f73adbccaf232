"""What a streamed run reads: data in memory, or TFDS sets that stay on the disk."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from wdjax.data.dataset import Dataset, hash_of, to_batch
from wdjax.data.images import SIDE
from wdjax.data.named import check_predictable, dataset_of, find_source
from wdjax.data.scale import Scaling, apply_scaling, measure_scaling
from wdjax.data.split import add_label_noise, split_off_test
from wdjax.data.stream import check_divided
from wdjax.data.tfds import TfdsSource, check_labels, open_tfds, split_sizes
from wdjax.data.views import View, list_rows, measure_inputs
from wdjax.extras import check_installed
from wdjax.jobs.options import RunOptions, TrainOptions
from wdjax.jobs.setup import Prepared, prepare
from wdjax.recipe import build as recipes

SAMPLE = 256
"""Examples of a set that is streamed, which stand for all where only shapes are asked."""

FIRST = 8
"""Examples of each part that are read before a run begins."""


class Sources(NamedTuple):
    """What a run reads: to train on, to evaluate on meanwhile, to judge on at the end."""

    train: Any
    valid: Any
    test: Any
    scaling: Mapping[str, Scaling]
    """How inputs and targets were standardised, by name: by the choosing part."""


def open_sources(
    options: TrainOptions, out: pathlib.Path = pathlib.Path()
) -> tuple[Prepared, Sources]:
    """Checks the options, and opens the data they name; both ways the examples are the same.

    Raises:
      ValueError: as `prepare`; for a batch that the processes do not divide, or a first batch of
        any part that cannot be read.
      ImportError: if grain is not installed, before anything is read or written.
    """
    check_installed("grain", what="streaming from a source", extra="data")
    check_divided(options.batch_size, jax.process_count())
    opened = _on_disk if find_source(options.data).on_disk else in_memory
    prepared, sources = opened(options, out)
    for source in (sources.train, sources.valid, sources.test):
        if not isinstance(source, Dataset):
            _read_first(source)
    return prepared, sources


def fingerprint(source: Any) -> str | None:
    """The hash of data in memory; of data on disk their name and version say what they are."""
    return hash_of(source) if isinstance(source, Dataset) else None


def _read_first(source: Any) -> None:
    """A few examples, as the run will read them: what is damaged there ends it before it began."""
    rows = np.arange(min(FIRST, len(source)))
    if isinstance(source, View):
        source.arrays_at(rows)
        return
    _, targets = zip(*source.__getitems__(rows.tolist()), strict=True)
    check_labels(np.array(targets), source, rows)


def in_memory(
    options: TrainOptions, out: pathlib.Path = pathlib.Path()
) -> tuple[Prepared, Sources]:
    """All of the data at once, standardised on the host.

    Raises:
      ValueError: as `prepare`; for a table with words or holes.
    """
    prepared = prepare(options, out)
    if prepared.recipe.encoding is not None:
        raise ValueError(
            f"`stream`: {options.data!r} holds words or holes, which a streamed run does not "
            "encode; train without --stream."
        )
    scaling = recipes.recipe_scaling(prepared.recipe, to_batch(prepared.choose_data))
    train, test = (_scaled(part, scaling) for part in (prepared.choose_data, prepared.test_data))
    if not holds_out(options):
        return prepared, Sources(train, test, test, scaling)
    train, held_out = _hold_out(train, options)
    return prepared, Sources(train, held_out, test, scaling)


def _on_disk(options: TrainOptions, out: pathlib.Path) -> tuple[Prepared, Sources]:
    """The set stays on the disk; a sample of it stands for it where only shapes are asked.

    Where an example's target decides what becomes of it (a stratified split, wrong labels,
    numbers to be standardised), all targets are read before, by a pass that decodes no inputs.
    """
    name = options.data.removeprefix("tfds:")
    where = {"data_dir": options.data_dir, "download": options.download}
    whole = open_tfds(name, length=options.length, **where)
    has_test = "@" not in name and "test" in split_sizes(name, data_dir=options.data_dir)
    test = open_tfds(f"{name}@test", length=options.length, **where) if has_test else whole

    def sample(options: RunOptions, loss: str) -> tuple[Dataset, Dataset]:
        check_predictable(whole, loss)
        items = whole.__getitems__(range(min(SAMPLE, len(whole))))
        inputs, targets = (np.array(column) for column in zip(*items, strict=True))
        few = dataset_of(whole, inputs, targets, loss)
        return few, few

    prepared = prepare(options, out, load=sample)
    recipe, is_regression = prepared.recipe, prepared.loss.standardizes
    choose, judge = None, None
    if not has_test or holds_out(options) or options.label_noise or is_regression:
        choose = list_rows(whole, loss=recipe.loss)
        if is_regression and has_test:
            judge = list_rows(test, loss=recipe.loss)
        if not has_test:
            choose, judge = _split_off_test(choose, options)
        if options.label_noise:
            choose = add_label_noise(choose, options.label_noise, options.seed)
    num_choose = len(whole) if choose is None else len(choose.inputs)
    scaling = {}
    if recipe.scale_inputs:
        scaling["inputs"] = measure_inputs(whole, choose)
    if is_regression and choose is not None and judge is not None:
        scaling["targets"] = measure_scaling(choose.targets, np.ones(num_choose))
        choose, judge = (_scaled(part, scaling, "targets") for part in (choose, judge))
    held_out = None
    if holds_out(options) and choose is not None:
        choose, held_out = _hold_out(choose, options)

    def view(source: TfdsSource, listed: Dataset | None) -> TfdsSource | View:
        shape = source.features[source.keys[0]].shape
        resized = prepared.model.images_32 and shape != (SIDE, SIDE, 3)
        seen = View(source, listed, scaling.get("inputs"), resized)
        return source if listed is None and seen.scaling is None and not resized else seen

    judged = view(test, judge)
    valid = judged if held_out is None else view(whole, held_out)
    counts = {"num_choose": num_choose, "num_test": len(judged)}
    return dataclasses.replace(prepared, **counts), Sources(
        view(whole, choose), valid, judged, scaling
    )


def _split_off_test(whole: Dataset, options: TrainOptions) -> tuple[Dataset, Dataset]:
    try:
        return split_off_test(whole, seed=options.seed)
    except ValueError as error:
        raise ValueError(f"`data` {options.data} cannot be split: {error}") from error


def holds_out(options: TrainOptions) -> bool:
    """Whether a tenth of the training part says when to stop, or how to move the numbers."""
    return options.patience is not None or options.tune is not None


def _hold_out(train: Dataset, options: TrainOptions) -> tuple[Dataset, Dataset]:
    return split_off_test(train, fraction=0.1, seed=options.seed)


def _scaled(dataset: Dataset, scaling: Mapping[str, Scaling], *fields: str) -> Dataset:
    """Standardises `fields` (by default all there are) as the compiled run does, on the host."""
    ones = np.ones(len(dataset.inputs), np.float32)
    new = {
        field: np.asarray(apply_scaling(getattr(dataset, field), ones, scaling[field]))
        for field in fields or scaling
    }
    return dataset._replace(**new)
