"""What happens between two steps of a `TrainLoop`: evaluating, saving, logging."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax

from wdjax.checkpoint import Checkpoints
from wdjax.checks import check_positive_int
from wdjax.loop.evaluation import Evaluate
from wdjax.loop.log import RunLog
from wdjax.moved import warn_moved
from wdjax.step import AnyState
from wdjax.types import Batch


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a run is judged by on the way.

    Raises:
      ValueError: if `every` or `patience` is not an integer >= 1.
    """

    evaluate: Evaluate
    """Called with the state every `every` steps and after the last."""
    every: int | None = None
    """By default only after the last step."""
    monitor: str = "loss"
    """The name in `evaluate`'s result that says which state is best: lower is better."""
    patience: int | None = None
    """Stop after so many evaluations without a better `monitor`."""

    def __post_init__(self):
        _check_intervals(evaluate_every=self.every, patience=self.patience)


@dataclasses.dataclass(frozen=True)
class Saving:
    """Where a run is saved: at the end, when preempted, when the best so far was found.

    Raises:
      ValueError: if `every` is not an integer >= 1.
    """

    checkpoints: Checkpoints
    every: int | None = None
    """Steps between saves, beside those."""
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What the run was told, saved with it and compared when it is resumed."""

    def __post_init__(self):
        _check_intervals(save_every=self.every)


@dataclasses.dataclass(frozen=True)
class Logging:
    """What a run writes down: steps, evaluations and telemetry, as JSON lines.

    Raises:
      ValueError: if `every` or `telemetry_every` is not an integer >= 1.
    """

    log: str | os.PathLike[str] | RunLog
    """A file or a `RunLog`. What it holds of later steps than the one to begin after is cut off."""
    every: int = 10
    """Steps between lines; evaluations are written whenever they happen."""
    telemetry: Callable[[AnyState, Batch], Any] | None = None
    """`(state, batch) -> tree of scalars`, called before the first step and the first after each
    `telemetry_every`, with what that step will see; it goes to the log, under `telemetry`."""
    telemetry_every: int | None = None
    """By default only before the first step."""

    def __post_init__(self):
        _check_intervals(log_every=self.every, telemetry_every=self.telemetry_every)

    def opened(self) -> RunLog | None:
        """The log; None in a process that is not the first."""
        log = self.log if isinstance(self.log, RunLog) else RunLog(self.log)
        return log if jax.process_index() == 0 else None


def _check_intervals(**numbers: int | None) -> None:
    for name, value in numbers.items():
        if value is not None:
            check_positive_int(name, value)


def is_due(step: int, every: int | None) -> bool:
    """Whether something happens after this step that happens every so many."""
    return every is not None and step % every == 0


_OLD: dict[str, tuple[str, str]] = {
    "evaluate": ("evaluation", "evaluate"),
    "evaluate_every": ("evaluation", "every"),
    "measure": ("evaluation", "monitor"),
    "patience": ("evaluation", "patience"),
    "checkpoints": ("saving", "checkpoints"),
    "save_every": ("saving", "every"),
    "config": ("saving", "config"),
    "log": ("logging", "log"),
    "log_every": ("logging", "every"),
    "telemetry": ("logging", "telemetry"),
    "watch": ("watchdog", ""),
}


_KINDS: dict[str, Any] = {"evaluation": Evaluation, "saving": Saving, "logging": Logging}


def from_old(given: dict[str, Any], old: Mapping[str, Any]) -> tuple[Any, ...]:
    """The values that the keywords of version 0.1 say: evaluation, saving, logging, watchdog.

    Raises:
      TypeError: for a keyword that never was one.
      ValueError: for an interval of what is not given.
    """
    told: dict[str, dict[str, Any]] = {kind: {} for kind in _KINDS}
    for name, value in old.items():
        if name not in _OLD:
            raise TypeError(f"TrainLoop() got an unexpected keyword argument {name!r}")
        kind, field = _OLD[name]
        new = f"{kind}={_KINDS[kind].__name__}({field}=...)" if field else f"{kind}="
        warn_moved(f"TrainLoop({name}=)", f"TrainLoop({new})", stacklevel=4)
        if value is None:
            continue
        if field:
            told[kind][field] = value
        else:
            given[kind] = value
    if "telemetry" in told["logging"] and "every" in told["evaluation"]:
        told["logging"]["telemetry_every"] = told["evaluation"]["every"]
    for kind, fields in told.items():
        first = next(iter(_KINDS[kind].__dataclass_fields__))
        if fields and first not in fields:
            raise ValueError(f"`{next(iter(fields))}` needs `{first}`: give {kind}= in its place.")
        if fields:
            given[kind] = _KINDS[kind](**fields)
    return tuple(given[name] for name in ("evaluation", "saving", "logging", "watchdog"))
