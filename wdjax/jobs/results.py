"""What a job writes: results.json, params.npz, report.html, each whole or not at all."""

import dataclasses
import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from wdjax.checkpoint import versions
from wdjax.data.archive import read_arrays
from wdjax.data.dataset import hash_of
from wdjax.data.scale import Scaling
from wdjax.jobs.options import RunOptions
from wdjax.loss_kinds import CLASSES, has_classes
from wdjax.parts import leaf_path
from wdjax.parts.rules import check_distinct_paths
from wdjax.tables import to_json
from wdjax.types import Fit
from wdjax.writing import write_whole


def header(kind: str, options: RunOptions, prepared: Any, command: str) -> dict[str, Any]:
    """What every results file says first: what ran, on what, with which versions."""
    data = prepared.choose_data
    return {
        "schema": 1,
        "kind": kind,
        "status": "partial",
        "headline": "",
        "command": command,
        "config": dataclasses.asdict(options)
        | {"epochs": prepared.recipe.num_epochs, "loss": prepared.recipe.loss},
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
            "num_outputs": data.num_outputs,
            "class_names": list(data.class_names),
            "column_names": list(data.column_names),
            "target_name": data.target_name,
            "input_shape": list(data.inputs.shape[1:]),
            "sha256": hash_of(data),
        },
    }


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


def write_json(out: pathlib.Path, results: dict[str, Any]) -> None:
    """Whole or not at all.

    Raises:
      WriteError: if it cannot be written; what stood there before stays.
    """
    write_whole(out / "results.json", to_json(results) + "\n")


def write_params(out: pathlib.Path, fit: Fit, scaling: Mapping[str, Scaling]) -> None:
    """`params.npz`: one array a leaf, named by its path; plain arrays, nothing pickled.

    The model's state, if it has one, is under `model_state/`, and how inputs and targets were
    standardised, if they were, under `scaling/`: a prediction needs them as well.

    Raises:
      ValueError: if two leaves have one path, see `named_arrays`.
    """
    arrays = named_arrays(fit, scaling)
    write_whole(out / "params.npz", lambda file: np.savez(file, **arrays))


def read_params(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a `params.npz`, by name.

    Raises:
      ValueError: as `read_arrays`.
    """
    way = "train again, or put back the file that training wrote"
    return read_arrays(path, what="`run`: the file of params", way=way)


def named_arrays(fit: Fit, scaling: Mapping[str, Scaling]) -> dict[str, Any]:
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
    run_report(str(out))


def run_report(folder: str) -> pathlib.Path:
    """Draws `report.html` again from a run's `results.json`.

    Raises:
      ValueError: if the folder holds no readable results.
    """
    from wdjax.report import write_report  # start-up: what draws is imported by then.

    results = read_results(pathlib.Path(folder))
    if results["kind"] == "compare":
        raise ValueError(
            f"`run` {folder!r} holds a comparison, which has no page: its table is printed by "
            "`wdjax compare` and stands in results.json."
        )
    path = pathlib.Path(folder) / "report.html"
    write_report(results, path)
    return path


def read_results(folder: pathlib.Path) -> dict[str, Any]:
    """A run's `results.json`.

    Raises:
      ValueError: if the folder holds no readable results.
    """
    path = folder / "results.json"
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"`run` {str(folder)!r} holds no results.json; give the folder that `wdjax select` or "
            "`wdjax train` wrote."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"`run` {str(folder)!r}: results.json is not valid JSON ({error})."
        ) from None
    if not isinstance(results, dict) or "kind" not in results:
        raise ValueError(
            f"`run` {str(folder)!r}: results.json was not written by `wdjax select` or "
            "`wdjax train`."
        )
    return results


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
