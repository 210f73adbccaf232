"""How the time of a grid grows, one number at a time, and with the trials that run at once.

Claim: linear or better in trials: strengths, folds and seeds times k take at most k times as long.
Run: python -m experiments.speed growth     (writes docs/figures/growth.svg as well)
The grid is that of `grid.py`, on two CPU devices, warm; each row moves one of its numbers. The
points of a row are processes of their own, run in alternation, every second round backwards.
"""

import math
import pathlib
import statistics
from typing import Any

from experiments.common import draw_svg
from experiments.speed.contestants import BATCH, EPOCHS, FOLDS, NUM_STRENGTHS, WIDTH
from experiments.speed.measure import Contestant, alternate, seconds, write_result

FIGURE = pathlib.Path(__file__).parents[2] / "docs" / "figures" / "growth.svg"
SIZE = (7.2, 6.4)
ROUNDS = 3
CNN = {"num_models": 8, "num_devices": 2, "num_steps": 4}
DEVICES, MLP_TOGETHER, CNN_TOGETHER = "devices", "MLPs at once", "CNNs at once"

AXES: dict[str, tuple[str, dict[str, Any], str, tuple[int, ...]]] = {
    "strengths": ("grid_ours", {}, "strengths", (5, 10, 20, 40)),
    "folds": ("grid_ours", {}, "folds", (2, 4, 8)),
    "seeds": ("grid_ours", {}, "seeds", (1, 2, 4, 8)),
    "epochs": ("grid_ours", {}, "epochs", (10, 20, 40, 80)),
    "width": ("grid_ours", {}, "width", (50, 100, 200, 400)),
    "depth": ("grid_ours", {}, "depth", (1, 2, 3, 4)),
    "batch": ("grid_ours", {}, "batch", (32, 64, 128, 256)),
    DEVICES: ("grid_ours", {}, "num_devices", (1, 2)),
    # 16 strengths and 8 models: the trials of two devices fill every one of these numbers.
    MLP_TOGETHER: ("grid_ours", {"strengths": 16}, "trials_at_once", (1, 2, 4, 8)),
    CNN_TOGETHER: ("cnn_ours", CNN, "trials_at_once", (1, 2, 4)),
}
"""Name: the contestant, what is fixed, the argument that moves, and its values."""

TRIALS = ("strengths", "folds", "seeds")


def main() -> None:
    """Every axis, then the picture."""
    axes = measure(AXES, ROUNDS)
    what = (
        f"seconds of a grid on digits, MLP, warm, median of {ROUNDS}; unless moved {NUM_STRENGTHS}"
        f" strengths, {FOLDS} folds, 1 seed, {EPOCHS} epochs, width {WIDTH}, depth 1, batch {BATCH}"
        f", 2 devices; {CNN_TOGETHER}: {CNN['num_models']} models, {CNN['num_steps']} steps each"
    )
    print(f"Wrote {write_result('growth', {'what': what, 'axes': axes})}")
    draw_svg(draw, {"axes": axes}, FIGURE, size=SIZE)
    print(f"Wrote {FIGURE}")


def measure(axes: dict[str, tuple], rounds: int) -> dict[str, dict[str, Any]]:
    """`{axis: {"values", "seconds" (medians), "runs", "exponent"}}`."""
    found = {}
    for name, (task, fixed, argument, values) in axes.items():
        points = {value: Contestant(task, **fixed, **{argument: value}) for value in values}
        runs = alternate(points, rounds)
        for contestant in points.values():
            contestant.close()
        medians = [statistics.median(seconds(runs[value])) for value in values]
        found[name] = {
            "values": list(values),
            "seconds": medians,
            "runs": [seconds(runs[value]) for value in values],
            "exponent": exponent(name, values, medians),
        }
        print(f"{name}: {dict(zip(values, [round(s, 3) for s in medians], strict=True))}")
    return found


def exponent(name: str, values: Any, times: Any) -> float:
    """p of `time ~ work ** p`, between the first and the last: 1 is linear, 0 constant.

    The work is the number itself, but for k folds k - 1: each of the k trains on (k - 1) / k of
    the examples.
    """
    first, last = (value - (name == "folds") for value in (values[0], values[-1]))
    return math.log(times[-1] / times[0]) / math.log(last / first)


def draw(values: dict[str, Any], figure: Any) -> None:
    """A panel an axis, both scales logarithmic; dotted: in proportion to the first point."""
    panels = figure.subplots(4, 3)
    for axes, (name, row) in zip(panels.flat, values["axes"].items(), strict=False):
        x, y = row["values"], row["seconds"]
        if name not in (DEVICES, MLP_TOGETHER, CNN_TOGETHER):  # These add no work.
            axes.plot(x, [y[0] * v / x[0] for v in x], ls=":", lw=0.8, color="0.6")
        for place, runs in zip(x, row["runs"], strict=True):
            axes.plot([place] * len(runs), runs, ".", ms=3, color="C0", alpha=0.5)
        axes.plot(x, y, marker="o", markersize=3, color="C0")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(x, [str(v) for v in x])
        axes.minorticks_off()
        low = min(map(min, row["runs"]))
        high = max(*map(max, row["runs"]), 1.5 * low)
        axes.set_ylim(low / 1.3, high * 1.3)
        ticks = [low * (high / low) ** part for part in (0, 0.5, 1)]
        axes.set_yticks(ticks, [f"{t:.2g} s" for t in ticks])
        axes.set_title(name, fontsize=9)
    for axes in panels.flat[len(values["axes"]) :]:
        axes.set_axis_off()


def lines(result: dict[str, Any]) -> list[str]:
    """The section of docs/speed.md: the table, what it says, the picture."""
    axes = result["axes"]
    table = ["| moved | seconds of the grid | time ~ work to the power |", "| --- | --- | --- |"]
    for name, row in axes.items():
        pairs = zip(row["values"], row["seconds"], strict=True)
        cells = ", ".join(f"{value}: {time:.2g}" for value, time in pairs)
        table.append(f"| {name} | {cells} | {row['exponent']:.2f} |")
    worst = max(axes[name]["exponent"] for name in TRIALS)
    powers = ", ".join(f"{axes[name]['exponent']:.2f} in {name}" for name in TRIALS)
    linear = "linear or better" if worst <= 1.05 else "worse than linear"
    best = {
        name: min(zip(axes[name]["seconds"], axes[name]["values"], strict=True))[1]
        for name in (MLP_TOGETHER, CNN_TOGETHER)
    }
    return [
        f"{result['what'][0].upper()}{result['what'][1:]}.",
        "",
        *table,
        "",
        f"In trials the time is {linear}: to the power {powers}. Quickest at once on a device: "
        f"{best[MLP_TOGETHER]} for the MLP, {best[CNN_TOGETHER]} for the CNN; the default of "
        "`trials_at_once` on a CPU is 1. Elsewhere it is 16: a small run leaves most of a GPU "
        "idle, and the memory of 16 is known (below); no GPU or TPU was at hand to measure time.",
        "",
        "![The time of a grid against each of its numbers](figures/growth.svg)",
    ]
