"""What each job can be told: choices and numbers, with the words its help prints."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from wdjax.checks import check_text
from wdjax.recipe.kinds import (
    AUGMENTATION_KINDS,
    COMMAND_SCHEDULE,
    DECAY_KINDS,
    DTYPES,
    EXAMPLE_FEATURE_KINDS,
    LOSS_KINDS,
    MODEL_KINDS,
    OPTIMIZER_KINDS,
    PART_FEATURE_KINDS,
    PART_WEIGHT_PLACES,
    SCHEDULE_KINDS,
    default_of,
)
from wdjax.selection.choice import RULES
from wdjax.selection.ways import WAYS

FINALS = "judged", "all"
"""Which models a search keeps: the one that the test part judged, and one of all rows too."""

MOST_OF_INTEGERS = 2**31 - 1
MOST_OF_NUMBERS = 3.4028234663852886e38
"""What int32 and float32, in which runs compute, can hold; an option with less says so."""


def option(
    default: Any,
    text: str,
    choices: Sequence[str] = (),
    *,
    streamed: bool = False,
    of_table: bool = False,
    high: int | float | None = None,
    may_be_empty: bool = False,
    alone: str | None = None,
) -> Any:
    """A field of an options class, with the line that the command's help prints.

    One that only a `streamed` run has is shown beside `--stream` alone, one `of_table` beside a
    `FILE.csv` or `FILE.parquet`: help fits a screen. `high` is the most that it can be, by default
    what int32 or float32 hold. `alone` is what the option says where it stands without a value.
    """
    about = {"help": text, "choices": tuple(choices), "streamed": streamed}
    about |= {"of_table": of_table}
    about |= {"high": high, "may_be_empty": may_be_empty or default == "", "alone": alone}
    return dataclasses.field(default=default, metadata=about)


def check_held(options: Any) -> None:
    """Checks that every option can be held: numbers by an array, text by the name of a file.

    Raises:
      ValueError: for the first that cannot, with the bound.
    """
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if isinstance(value, str):
            check_text(field.name, value, may_be_empty=field.metadata["may_be_empty"])
        for number in value if isinstance(value, tuple) else (value,):
            _check_number_held(field.name, number, field.metadata["high"])


def _check_number_held(name: str, value: Any, high: int | float | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if high is None:
        high = MOST_OF_INTEGERS if isinstance(value, int) else MOST_OF_NUMBERS
    if high < abs(value) < math.inf:  # Infinity has its own refusal, where its range is checked.
        shown = str(high) if isinstance(high, int) else f"{high:g}"
        bound = f"at least -{shown}" if value < 0 else f"at most {shown}"
        raise ValueError(f"`{name}` must be {bound}, got {name}={_short(value)}.")


def _short(value: int | float) -> str:
    if isinstance(value, int) and abs(value) >= 10**40:
        return f"a number of {int(math.log10(abs(value))) + 1} digits"
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """What every run needs to know.

    Raises:
      ValueError: for a number that no array and a text that no file's name can hold.
    """

    data: str = option("digits", "cifar10, images:FOLDER, tfds:NAME, .csv, .parquet, .npz")
    data_dir: str | None = option(
        None, "where cifar10, mnist or sets of TFDS lie (default as TFDS has it)"
    )
    download: bool = option(False, "fetch a TFDS set that is not there")
    length: int | None = option(None, "bytes of a text, cut or padded (default by the data)")
    target: str | None = option(
        None, "column of FILE.csv to predict (default the last)", may_be_empty=True
    )
    drop: tuple[str, ...] | None = option(None, "columns to leave out", of_table=True)
    weights: str | None = option(None, "column that says how much a row counts", of_table=True)
    groups: str | None = option(
        None, "column of what rows that belong together share; folds keep it whole", of_table=True
    )
    test: str | None = option(None, "table of the same columns to judge on", of_table=True)
    loss: str | None = option(None, "or FILE.py:NAME (default by the data)", tuple(LOSS_KINDS))
    model: str = option(default_of(MODEL_KINDS), f"{', '.join(MODEL_KINDS)}, FILE.py:NAME")
    optimizer: str = option(default_of(OPTIMIZER_KINDS), "", tuple(OPTIMIZER_KINDS))
    schedule: str = option(COMMAND_SCHEDULE, "", tuple(SCHEDULE_KINDS))
    decay: str = option(
        default_of(DECAY_KINDS),
        f"default {', '.join(DECAY_KINDS)}, FILE.py:NAME".replace(",", ";", 1),
    )
    parts: str = option("matrices", "what decays: matrices, all, or '*/kernel=1,*=0'")
    epochs: int | None = option(
        None, "passes over the training part (default 30; larger models 15)"
    )
    batch_size: int = option(64, "examples a step")
    augment: str = option("", f"{','.join(AUGMENTATION_KINDS)},FILE.py:NAME")
    measure: str = option("", "further scores to show: FILE.py:NAME,...")
    example_weight: str | None = option(
        None, f"sigmoid:X weighs examples by X: {', '.join(EXAMPLE_FEATURE_KINDS)}"
    )
    part_weight: str | None = option(
        None, f"sigmoid:X weighs parts by X: {', '.join(PART_FEATURE_KINDS)}"
    )
    part_weight_on: str = option("decay", "what it multiplies", PART_WEIGHT_PLACES)
    dropout: float = option(0.0, "rate at which hidden units are dropped")
    label_noise: float = option(0.0, "share of labels made wrong; test labels stay right")
    seed: int = option(0, "random seed of the split, the folds and every run", high=2**32 - 1)
    out: str | None = option(None, "folder to write (default a new one under runs/)")
    name: str | None = option(None, "the folder's name under runs/, in place of --out")
    overwrite: bool = option(False, "replace an existing folder")
    dtype: str = option("float32", "", DTYPES)
    devices: int | None = option(None, "how many to use (default all; on a CPU its cores)")

    def __post_init__(self) -> None:
        check_held(self)


@dataclasses.dataclass(frozen=True)
class SelectOptions(RunOptions):
    """Choose a decay strength by cross-validation, and judge it on a test part."""

    strengths: tuple[float, ...] | None = option(
        None, "the candidates (default zero and 9 log-spaced ones)"
    )
    learning_rates: tuple[float, ...] | None = option(
        None, "tried with every strength (default 7; rnn 4, larger models 3)"
    )
    example_slopes: tuple[float, ...] | None = option(
        None, "of the example weight, a grid axis (default -8 0 8); 0: all alike"
    )
    part_slopes: tuple[float, ...] | None = option(
        None, "of the part weight, a grid axis (default -4 0 4); 0: all alike"
    )
    folds: int = option(5, "held-out parts, stratified by class")
    seeds: int | None = option(
        None, "runs per strength and fold (default 3; rnn 2, larger models 1)"
    )
    rule: str = option(default_of(RULES), "", tuple(RULES))
    by: str = option(default_of(WAYS), "the way of choosing", tuple(WAYS))
    choose_by: str = option("loss", "the score that decides: accuracy, NAME of --measure")
    final: str = option("judged", "all: keep a model of all rows beside it", FINALS)
    each_part: str = option(
        "",
        "which parts want more decay: roles (alone), leaves, or 'PATTERN,...'",
        alone="roles",
    )


@dataclasses.dataclass(frozen=True)
class TrainOptions(RunOptions):
    """Train at one strength and judge on a test part."""

    strength: float | None = option(None, "how strongly the weights decay; 0: not at all")
    learning_rate: float = option(3e-3, "")
    example_slope: float | None = option(None, "of the example weight (default -8)")
    part_slope: float | None = option(None, "of the part weight (default 4)")
    seeds: int = option(1, "runs")
    stream: bool = option(
        False, "batch by batch, saved on the way; see wdjax train --stream --help"
    )
    resume: str | None = option(None, "folder of a stopped run to resume, bit for bit")
    tune: tuple[str, ...] | None = option(
        None, "move numbers on the way (default strength learning_rate)", may_be_empty=True
    )
    tune_carried: float | None = option(
        None, "share of each window over which slopes are taken (default 1)"
    )
    save_every: int | None = option(
        None, "steps between checkpoints (default one a minute; streamed 500)"
    )
    evaluate_every: int | None = option(None, "steps (default one epoch's)", streamed=True)
    patience: int | None = option(
        None, "early stopping: evaluations without improvement, on a 10 % hold-out", streamed=True
    )
    non_finite: str | None = option(
        None,
        "on a non-finite loss: stop, or skip the batch",
        ("stop", "skip"),
        streamed=True,
    )
    micro_batches: int | None = option(
        None, "pieces a batch is split into, to save memory (default 1)", streamed=True
    )
    tensorboard: bool | None = option(
        None, "show the log to TensorBoard too (folder tensorboard)", streamed=True
    )
    hang_after: float | None = option(
        None,
        "seconds without a step that count as a hang (default 600; 0: never)",
        streamed=True,
        high=10**9,
    )
    on_hang: str | None = option(
        None, "what to do about a hang (default report)", ("report", "end"), streamed=True
    )
    distributed: str | None = option(
        None, "auto (the cluster's own), or HOST:PORT,COUNT,INDEX of this process", streamed=True
    )


@dataclasses.dataclass(frozen=True)
class AuditOptions(RunOptions):
    """Measure how much each parameter decays, and warn of likely mistakes; trains nothing."""

    run: str | None = option(None, "a folder that select or train wrote; its options count")
    strength: float | None = option(None, "how strongly the weights decay; 0: not at all")
    learning_rate: float = option(3e-3, "")
    example_slope: float | None = option(None, "of the example weight (default -8)")
    part_slope: float | None = option(None, "of the part weight (default 4)")
    strict: bool = option(False, "exit with 1 if there is a warning")


SLOPES = {"example": (-8.0, 0.0, 8.0), "part": (-4.0, 0.0, 4.0)}
"""The grid's, by what is weighed. Of examples, experiment Q10 found -8 for crop and flip (the
further an augmentation went, the less its example counts) and 0 for noise."""

SINGLE_SLOPE = {"example": -8.0, "part": 4.0}
"""A single run's: of examples the one that beat the unweighted run in Q10."""
