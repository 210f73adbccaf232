"""Draws the README's figure from maps.json: `python docs/figures/draw.py`; `--run` measures first.

It is the map of the validation loss over learning rate and strength, once where decay is coupled
and once where it is decoupled (the picture of Loshchilov & Hutter 2019, figure 1), as the report of
`wdjax select` has it, with the page's colours inside. What the two commands found is in maps.json.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np

from wdjax.report.figures import WIDTH
from wdjax.report.page import STYLE
from wdjax.report.sweep import heat_figure, read_sweep

HERE = pathlib.Path(__file__).parent
MAPS, FIGURE = HERE / "maps.json", HERE / "select.svg"
COMMANDS = {
    decay: ("wdjax", "select", "--label-noise", "0.1", "--decay", decay)
    for decay in ("coupled", "decoupled")
}


def measured(command: tuple[str, ...]) -> dict[str, Any]:
    """What is drawn and told of a selection, run here (trials that were trained are cached)."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "run"
        words = [sys.executable, "-m", "wdjax.cli", *command[1:], "--out", str(out)]
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent.parent)}
        subprocess.run(words, check=True, env=environment, stdout=subprocess.DEVNULL)
        results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    short = lambda x: float(f"{x:.5g}") if isinstance(x, float) else x
    numbers = {name: [short(x) for x in axis] for name, axis in results["grid"].items()}
    table = [
        {name: axis[row] for name, axis in numbers.items()}
        | {"loss": {part: short(x) for part, x in results["table"][row]["loss"].items()}}
        for row in range(len(results["table"]))
    ]
    choice = results["choices"][results["rule"]]
    accuracy = {name: run["test_accuracy"] for name, run in results["refit"].items()}
    return {
        "command": " ".join(command),
        "headline": results["headline"],
        "advice": results["advice"],
        "rule": results["rule"],
        "choices": {
            results["rule"]: {name: choice[name] for name in ("index", "confident_set", "value")}
        },
        "test_accuracy": {name: short(float(np.mean(x))) for name, x in accuracy.items()},
        "table": table,
    }


def drawn(maps: dict[str, Any]) -> str:
    """Both maps beside each other, in one range of colours."""
    losses = [row["loss"]["mean"] for one in maps.values() for row in one["table"]]
    # From the best loss to what knows nothing: beyond, all are as bad as each other.
    span = min(x for x in losses if x is not None), float(np.log(10))
    parts, tall = [], 0.0
    for place, (decay, results) in enumerate(maps.items()):
        sweep = read_sweep(results)
        assert sweep is not None
        figure = heat_figure(sweep, "loss", f"map-{decay}", span)
        assert figure is not None
        svg = figure.svg.replace(">Validation loss<", f">{decay.capitalize()}<")
        height = float(re.search(r'viewBox="0 0 \S+ (\S+)"', svg)[1])  # pyright: ignore[reportOptionalSubscript]
        size = f'x="{place * WIDTH:g}" width="{WIDTH:g}" height="{height:g}" '
        parts.append(svg.replace("<svg ", f"<svg {size}", 1))
        tall = max(tall, height)
    light, dark = (
        "; ".join(re.findall(r"(--[a-z]+:[^;}]+)", style))
        for style in STYLE.split("@media (prefers-color-scheme: dark)")
    )
    style = f"<style>svg {{ {light} }} @media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {len(maps) * WIDTH:g} {tall:g}" width="{len(maps) * WIDTH:g}">'
        f"{style}</style>{''.join(parts)}</svg>\n"
    )


def main(arguments: list[str]) -> None:
    """Draws; with `--run` both commands are run before.

    Raises:
      SystemExit: for another argument.
    """
    if arguments not in ([], ["--run"]):
        raise SystemExit("usage: python docs/figures/draw.py [--run]")
    if arguments:
        maps = {decay: measured(command) for decay, command in COMMANDS.items()}
        MAPS.write_text(json.dumps(maps, indent=1) + "\n", encoding="utf-8")
    FIGURE.write_text(drawn(json.loads(MAPS.read_text(encoding="utf-8"))), encoding="utf-8")
    print(f"Wrote {FIGURE}")


if __name__ == "__main__":
    main(sys.argv[1:])
