"""What the parts did on the way, as the report shows it: norms, rotation, what was predicted."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from wdjax.report import figures
from wdjax.report.figures import Figure
from wdjax.tables import Table, format_number

MOST_PARTS = 6
"""Parts drawn: the largest; the table holds all of them."""

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

_PAIRS = (("norm", "equilibrium_norm"), ("angle", "equilibrium_angle"))


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


def telemetry_table(telemetry: Telemetry) -> Table:
    """A row a part: what was measured last, the mean over seeds."""
    names = [name for name in COLUMNS if any(name in part for part in telemetry.parts.values())]

    def last(part: dict[str, np.ndarray], name: str) -> float | None:
        value = float(part[name][:, -1].mean()) if name in part else np.nan
        if name in _MAY_BE_INFINITE and np.isfinite(part["norm"][:, -1]).all():
            value = np.nan_to_num(value, nan=np.inf)
        return None if np.isnan(value) else float(f"{value:.4g}")

    rows = tuple(
        (path, *(last(part, name) for name in names)) for path, part in telemetry.parts.items()
    )
    return Table(("part", *(COLUMNS[name] for name in names)), rows)


def telemetry_figures(telemetry: Telemetry, sizes: Mapping[str, int]) -> list[Figure]:
    """Norm and angle of each part beside what was predicted; the rest with a line a part.

    Args:
      telemetry: as `read_telemetry` gives it.
      sizes: how many weights each part holds: the largest parts are drawn.
    """
    ranked = sorted(telemetry.parts, key=lambda path: -sizes.get(path, 0))[:MOST_PARTS]
    drawn = [path for path in telemetry.parts if path in ranked]
    return [*_pair_figures(telemetry, drawn), *_line_figures(telemetry, drawn)]


def _pair_figures(telemetry: Telemetry, drawn: list[str]) -> Iterator[Figure]:
    for i, path in enumerate(drawn):
        for measured, predicted in _PAIRS:
            part = telemetry.parts[path]
            lines = [
                (label, part[name], colour)
                for label, name, colour in (
                    ("measured", measured, figures.FIRST),
                    ("predicted", predicted, figures.MUTED),
                )
                if name in part and np.isfinite(part[name]).any()
            ]
            has_prediction = len(lines) > 1 and bool((lines[1][1] > 0).any())
            lines = lines if has_prediction else lines[:1]
            caption = (
                "Where decay and steps of this size balance, were the steps directionless."
                if has_prediction
                else "No decay by the optimiser, so none is predicted."
            )
            if lines:
                title = f"{path or 'the weights'}: {COLUMNS[measured]}"
                yield _figure(f"part-{i}-{measured}", title, lines, telemetry.steps, caption)


def _line_figures(telemetry: Telemetry, drawn: list[str]) -> Iterator[Figure]:
    """What varies on the way; what stays as it was is in the table."""
    colours = (figures.FIRST, figures.SECOND, figures.INK, figures.MUTED)
    for name in ("gradient_ratio", "timescale", "gated_share", "stuck_share"):
        values = [
            (path, part[name])
            for path in drawn
            if name in (part := telemetry.parts[path]) and np.isfinite(part[name]).any()
        ]
        values = [(path, v) for path, v in values if np.nanmax(v) > np.nanmin(v)]
        lines = [(path, v, colours[i % len(colours)]) for i, (path, v) in enumerate(values)]
        if lines:
            title = COLUMNS[name].capitalize()
            yield _figure(f"parts-{name}", title, lines, telemetry.steps, "A line for each part.")


def _figure(name: str, title: str, lines: list, steps: np.ndarray, caption: str) -> Figure:
    ends = (f"{label} ends at {format_number(float(v[:, -1].mean()))}" for label, v, _ in lines)
    if any(len(v) > 1 for _, v, _ in lines):
        caption += " Thin lines are seeds."
    svg = figures.draw_epochs(name, title, "; ".join(ends) + ".", lines, axis="step", at=steps)
    return Figure(svg, caption)
