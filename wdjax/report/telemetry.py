"""What the parts did on the way, as the report shows it: norms, rotation, what was predicted."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from wdjax.report.figures import FIRST, MUTED, Figure
from wdjax.report.panels import Strip, draw_panel
from wdjax.tables import Table, format_number

MOST_PARTS = 12
"""Kernels drawn: the largest; the table holds every part."""

COLUMNS = {
    "norm": "norm",
    "equilibrium_norm": "predicted norm",
    "angle": "angle a step",
    "equilibrium_angle": "predicted angle",
    "timescale": "timescale, steps",
    "gradient_ratio": "gradient / weight",
    "gated_share": "gated",
    "stuck_share": "unmoved",
}
"""What is measured, in the words of the page and in the order of its table."""

_MAY_BE_INFINITE = ("timescale", "equilibrium_norm")
"""Null in a results file for want of the word; of a run that diverged so is the norm."""

_PREDICTED = {"norm": "equilibrium_norm", "angle": "equilibrium_angle"}
_NO_KERNELS = ("bias", "gain")
_STRIPS = (*_PREDICTED, "gradient_ratio", "timescale", "gated_share", "stuck_share")


class Telemetry(NamedTuple):
    """The telemetry of a run, read from its results."""

    steps: np.ndarray
    parts: dict[str, dict[str, np.ndarray]]
    """From a part's path and a name in `COLUMNS` to `[seed, point]`; NaN where it is infinite."""
    note: str


def read_telemetry(results: Mapping[str, Any]) -> Telemetry | None:
    """The telemetry in a results file; None if it holds none that can be read."""
    found = results.get("telemetry")
    if not isinstance(found, Mapping) or not isinstance(found.get("parts"), Mapping):
        return None
    try:
        steps = np.array(found.get("steps"), np.float64)
        parts = {
            str(path): {name: np.array(part[name], np.float64) for name in COLUMNS if name in part}
            for path, part in found["parts"].items()
        }
    except (TypeError, ValueError):
        return None
    shapes = {values.shape[1:] for part in parts.values() for values in part.values()}
    if steps.ndim != 1 or not len(steps) or shapes != {steps.shape}:
        return None
    return Telemetry(steps, parts, str(found.get("note") or ""))


def always_zero(telemetry: Telemetry) -> list[str]:
    """The shares that were 0 in every part at every point."""
    return [
        name
        for name in ("gated_share", "stuck_share")
        if not any(np.any(part.get(name, 0.0)) for part in telemetry.parts.values())
    ]


def telemetry_table(telemetry: Telemetry) -> Table:
    """A row a part: what was measured last, the mean over seeds.

    Shares that stayed 0 in every part, see `always_zero`, have no column.
    """
    names = [name for name in COLUMNS if any(name in part for part in telemetry.parts.values())]
    names = [name for name in names if name not in always_zero(telemetry)]

    def last(part: dict[str, np.ndarray], name: str) -> float | None:
        value = float(part[name][:, -1].mean()) if name in part else np.nan
        if name in _MAY_BE_INFINITE and np.isfinite(part["norm"][:, -1]).all():
            value = np.nan_to_num(value, nan=np.inf)
        return None if np.isnan(value) else float(f"{value:.4g}")

    rows = tuple(
        (path, *(last(part, name) for name in names)) for path, part in telemetry.parts.items()
    )
    return Table(("part", *(COLUMNS[name] for name in names)), rows)


def telemetry_words(telemetry: Telemetry) -> str:
    """What the table shows, and which of its columns it does not."""
    words = f"Measured in {len(telemetry.steps)} of the steps; the table shows the last of them. A "
    words += "prediction is meant for parts whose gradient is orthogonal to them, those before a "
    words += "norm; for others it is a scale."
    shares = {
        "gated_share": "the share of the weights that a gate spares",
        "stuck_share": "the share whose dtype could not take the update",
    }
    zero = always_zero(telemetry)
    for name, meaning in shares.items():
        always = ", 0 in every part at every point" if name in zero else ""
        words += f" {COLUMNS[name].capitalize()}: {meaning}{always}."
    return words


def telemetry_panels(
    telemetry: Telemetry, decay: Sequence[Mapping[str, Any]]
) -> tuple[list[Figure], str]:
    """A panel a kernel: its norm and angle beside what was predicted, then what else varies.

    Args:
      telemetry: as `read_telemetry` gives it.
      decay: the rows of the table of decay: the role and the size of each part. The largest
        kernels are drawn; where no part is one, the largest parts.

    Returns:
      `(panels, the words under them)`.
    """
    about = {str(row.get("path")): row for row in decay}
    roles = {path: about.get(path, {}).get("role") for path in telemetry.parts}
    plain = lambda path: roles[path] or ("kernel" if "kernel" in path else "bias")
    kernels = [path for path in telemetry.parts if plain(path) not in _NO_KERNELS]
    of_these, called = (kernels, "kernels") if kernels else (list(telemetry.parts), "parts")
    size = lambda path: about.get(path, {}).get("size") or 0
    ranked = sorted(of_these, key=lambda path: -size(path))[:MOST_PARTS]
    drawn = [path for path in of_these if path in ranked]
    names = [name for name in _STRIPS if _varies(telemetry, drawn, name)]
    panels = [_panel(telemetry, path, names, i) for i, path in enumerate(drawn)]
    if not panels or not names:
        return [], ""
    words = "In colour what was measured, in grey what is predicted: where decay and steps of this "
    words += "size balance, were the steps directionless. Each strip has a scale of its own."
    if any(_prediction(telemetry.parts[path], "norm") is None for path in drawn):
        words += " Where no grey line stands, the optimiser does not decay."
    if len(drawn) < len(telemetry.parts):
        some = f"{len(drawn)} largest " if len(drawn) < len(of_these) else ""
        words += f" Drawn are the {some}{called}; the table holds every part."
    if any(len(part[names[0]]) > 1 for part in telemetry.parts.values() if names[0] in part):
        words += " Thin lines are seeds."
    return panels, words


def _varies(telemetry: Telemetry, drawn: list[str], name: str) -> bool:
    """Norm and angle always; of the rest what changes on the way, as the table has the others."""
    found = [part[name] for p in drawn if name in (part := telemetry.parts[p])]
    known = [v[np.isfinite(v)] for v in found if np.isfinite(v).any()]
    return bool(known) and (name in _PREDICTED or any(v.max() > v.min() for v in known))


def _prediction(part: Mapping[str, np.ndarray], name: str) -> np.ndarray | None:
    values = part.get(_PREDICTED.get(name, ""))
    return values if values is not None and bool((values > 0).any()) else None


def _panel(telemetry: Telemetry, path: str, names: list[str], i: int) -> Figure:
    part, strips, ends = telemetry.parts[path], [], []
    for name in names:
        values = part.get(name, np.full((1, len(telemetry.steps)), np.nan))
        predicted = _prediction(part, name)
        lines = [(values, FIRST), *([] if predicted is None else [(predicted, MUTED)])]
        strips.append(Strip(COLUMNS[name], lines))
        for label, line in zip(("", " predicted"), lines, strict=False):
            end = format_number(float(line[0][:, -1].mean()))
            ends.append(f"{COLUMNS[name]}{label} ends at {end}")
    svg = draw_panel(
        f"part-{i}", path or "the weights", "; ".join(ends) + ".", strips, telemetry.steps
    )
    return Figure(svg, "")
