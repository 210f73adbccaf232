"""What a job writes: results.json, params.npz, report.html, each whole or not at all."""

import contextlib
import dataclasses
import pathlib
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from wdjax.checkpoint import versions
from wdjax.data.archive import read_arrays
from wdjax.data.dataset import hash_of
from wdjax.ending import ending_of
from wdjax.jobs.lock import locked
from wdjax.jobs.options import RunOptions
from wdjax.loss_kinds import CLASSES, has_classes
from wdjax.parts import leaf_path
from wdjax.parts.rules import check_distinct_paths
from wdjax.tables import to_json, to_plain
from wdjax.types import Fit
from wdjax.writing import (
    DIGEST,
    SEAL,
    DamagedFileError,
    check_digest,
    read_mapping,
    sealed,
    sha256_of,
    unsealed,
    write_whole,
)

RESULTS, PARAMS = "results.json", "params.npz"
FINAL = "final.npz"
"""The params of `select --final all`: of a model that saw every row, and that none is left to
judge."""

_HOW_BEGUN = "out", "name", "overwrite", "resume", "devices"

SCHEMA = 2
"""Of `results.json`; since 2 it is sealed, and says in `files` what `params.npz` must be."""


def header(kind: str, options: RunOptions, prepared: Any, command: str) -> dict[str, Any]:
    """What every results file says first: what ran, on what, with which versions."""
    data, groups = prepared.choose_data, prepared.test_data.groups
    return {
        "schema": SCHEMA,
        "kind": kind,
        "status": "partial",
        "headline": "",
        "command": command,
        "config": dataclasses.asdict(options)
        | {"epochs": prepared.recipe.num_epochs, "loss": prepared.recipe.loss},
        "told": _told(options),
        "versions": versions(),
        "devices": [str(device) for device in prepared.mesh.devices.flat],
        "seed": options.seed,
        "out": str(prepared.out),
        "data": {
            "name": data.name,
            "kind": data.kind,
            "targets": prepared.loss.targets,
            "num_choose": prepared.num_choose,
            "num_test": prepared.num_test,
            "num_test_groups": None if groups is None else len(np.unique(groups)),
            "num_outputs": data.num_outputs,
            "class_names": list(data.class_names),
            "column_names": list(data.column_names),
            "columns": _about_columns(data),
            "target_name": data.target_name,
            "input_shape": list(data.inputs.shape[1:]),
            "sha256": hash_of(data),
        },
    }


def _told(options: RunOptions) -> list[str]:
    """The options that are not at their defaults, but for where a run lies and how it was begun.

    What `config` resolves is always among them: a run that goes on has it from its own folder.
    """
    return [
        field.name
        for field in dataclasses.fields(options)
        if field.name in ("loss", "epochs")
        or (field.name not in _HOW_BEGUN and getattr(options, field.name) != field.default)
    ]


def _about_columns(data: Any) -> list[dict[str, Any]]:
    """The words and holes of each column of a table that has some; of numbers alone nothing."""
    if data.encoding is None:
        return []
    return [{"words": column.words, "holes": column.holes} for column in data.columns]


def has_classes_in(results: Mapping[str, Any]) -> bool:
    """Whether the run's targets were labels; results of version 0.1 say it by their loss alone."""
    targets = results["data"].get("targets")
    return has_classes(results["config"]["loss"]) if targets is None else targets == CLASSES


def stopped(
    results: dict[str, Any], how_far: str | None, out: pathlib.Path, *, writes: bool
) -> str:
    """Says in the results of a run that was stopped and saved how it goes on, and writes them.

    Of one that was not saved (`how_far` is None) nothing is written, and no resume is promised.
    """
    if how_far is None:
        return (
            f"Stopped before anything was saved in {out}: there is nothing to go on with. Begin "
            "anew, with --overwrite or in another folder."
        )
    results["headline"] = f"Stopped after {how_far}. Go on with: wdjax train --resume {out}"
    if writes:
        write_json(out, results)
    return results["headline"]


def write_json(out: pathlib.Path, results: Mapping[str, Any]) -> None:
    """`results.json`, whole or not at all, sealed by its own SHA-256.

    Raises:
      WriteError: if it cannot be written; what stood there before stays.
    """
    text = to_json(sealed(to_plain(results))) + "\n"
    # A name that is not Unicode (Linux has such) is written by its escapes.
    lone = lambda found: f"\\u{ord(found.group()):04x}"
    write_whole(out / RESULTS, re.sub("[\ud800-\udfff]", lone, text))


def write_params(
    out: pathlib.Path, fit: Fit, scaling: Mapping[str, Any], name: str = PARAMS
) -> dict[str, str]:
    """`params.npz`, or `name`: one array a leaf, named by its path; plain arrays, nothing pickled.

    The model's state, if it has one, is under `model_state/`, and how inputs and targets were
    standardised, if they were, under `scaling/`: a prediction needs them as well.

    Returns:
      `{name: its SHA-256}`, for the `files` of the results that vouch for it.

    Raises:
      ValueError: if two leaves have one path, see `named_arrays`.
      WriteError: if it cannot be written; what stood there before stays.
    """
    arrays = named_arrays(fit, scaling)
    path = out / name
    write_whole(path, lambda file: np.savez(file, **arrays))
    return {name: sha256_of(path)}


def read_params(
    folder: pathlib.Path, results: Mapping[str, Any], name: str = PARAMS
) -> dict[str, np.ndarray]:
    """The arrays of a run's `params.npz`, by name, once it is found to be what was written.

    With `name`, those of another file of the run that the results vouch for.

    Raises:
      DamagedFileError: if it is not; results of earlier versions do not say.
      ValueError: as `read_arrays`.
    """
    check_files(folder, results)
    way = "train again, or put back the file that training wrote"
    return read_arrays(folder / name, what="`run`: the file of params", way=way)


def check_files(folder: pathlib.Path, results: Mapping[str, Any]) -> None:
    """Checks the files that the results vouch for, of those that are there.

    Raises:
      DamagedFileError: for the first that is not what was written.
    """
    for name, digest in dict(results.get("files") or {}).items():
        if name in (PARAMS, FINAL) and (folder / name).exists():
            check_digest(folder / name, digest)


def named_arrays(fit: Fit, scaling: Mapping[str, Any]) -> dict[str, Any]:
    """`{path: array}` of what `params.npz` holds; of shapes where `fit` holds shapes.

    Raises:
      ValueError: if two leaves have one path, such as `{"a/b": w, "a": {"b": v}}`: the file would
        hold only one of them.
    """
    trees = {"": fit.params, "model_state/": fit.model_state, "scaling/": dict(scaling)}
    found: dict[str, Any] = {}
    for prefix, tree in trees.items():
        check_distinct_paths(tree, "the arrays of params.npz", floats_only=False)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            name = prefix + leaf_path(path)
            if name in found:
                raise ValueError(
                    f"params.npz would hold two arrays {name!r}, one of the params and one of "
                    f"{prefix.removesuffix('/')}. Rename the one in the params."
                )
            found[name] = leaf
    return found


def finish(out: pathlib.Path, results: dict[str, Any], clock: "Clock") -> None:
    """Writes `results.json`, and the report drawn from it.

    Raises:
      ImportError: if what draws is not installed.
    """
    clock.timing["total"] = clock.total()
    results["timing"] = clock.timing
    write_json(out, results)
    with opened_results(out) as written:
        _draw(out, written)


def run_report(folder: str) -> pathlib.Path:
    """Draws `report.html` again from a run's `results.json`; checks what lies beside it.

    Raises:
      ValueError: if the folder holds no readable results, or another run is in it.
      DamagedFileError: if results, params or predictions are not what was written.
      WriteError: if the page cannot be written.
    """
    run = pathlib.Path(folder)
    with opened_results(run) as results:
        check_files(run, results)
        for path in sorted(run.glob(f"*.csv{DIGEST}")):
            written = path.with_name(path.name.removesuffix(DIGEST))
            if written.exists():
                check_digest(written)
        with locked(run):
            return _draw(run, results)


def _draw(folder: pathlib.Path, results: Mapping[str, Any]) -> pathlib.Path:
    from wdjax.report import write_report  # start-up: what draws is imported by then.

    path = folder / "report.html"
    write_report(results, path)
    return path


@contextlib.contextmanager
def opened_results(folder: pathlib.Path) -> Iterator[dict[str, Any]]:
    """A run's `results.json`, for as long as it is used.

    Its SHA-256 is checked. Versions before wrote none: then it is warned of, and whatever it holds
    that cannot be used is an error about the file.

    Raises:
      ValueError: if the folder holds no readable results; or, of unsealed ones, if they cannot be
        used.
      DamagedFileError: if it is not what was written.

    Warns:
      RuntimeWarning: if it carries no SHA-256.
    """
    results, is_sealed = _read_results(folder)
    if not is_sealed:
        warnings.warn(
            f"{str(folder / RESULTS)!r} carries no SHA-256: an earlier version wrote it, or it was "
            "edited. What it says is taken as it stands.",
            RuntimeWarning,
            stacklevel=3,
        )
    try:
        yield results
    except Exception as error:  # Whatever it holds, of whatever type, at whatever depth.
        if is_sealed or ending_of(error) is not None:
            raise
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(
            f"`run` {str(folder)!r}: results.json cannot be used ({what}), and carries no SHA-256 "
            "that says it is what was written; run it again, or put back the file."
        ) from error


def _read_results(folder: pathlib.Path) -> tuple[dict[str, Any], bool]:
    """The results, and whether they were sealed."""
    path = folder / RESULTS
    try:
        results = read_mapping(path)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"`run` {str(folder)!r} holds no results.json; give the folder that `wdjax select` or "
            "`wdjax train` wrote."
        ) from None
    if SEAL in results:
        return unsealed(results, path), True
    if "kind" not in results:
        raise ValueError(
            f"`run` {str(folder)!r}: results.json was not written by `wdjax select` or "
            "`wdjax train`."
        )
    if results.get("schema") != 1:
        raise DamagedFileError(f"{str(path)!r} is not what was written: its SHA-256 is gone.")
    return results, False


class Clock:
    """Seconds by stage."""

    def __init__(self):
        self.start = self.last = time.perf_counter()
        self.timing: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        """Books the seconds since the last lap under `stage`."""
        now = time.perf_counter()
        self.timing[stage] = now - self.last
        self.last = now

    def total(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.start
