"""Draws the README's figure from a run: `python docs/figures/draw.py runs/noisy`.

It is the first figure of that run's report, with the page's colours inside.
"""

import json
import pathlib
import re
import sys

from wdjax.report.page import STYLE
from wdjax.report.sweep import read_sweep, sweep_figures


def main(run: str) -> None:
    results = json.loads((pathlib.Path(run) / "results.json").read_text(encoding="utf-8"))
    sweep = read_sweep(results)
    if sweep is None:
        raise SystemExit(f"{run} holds no finished selection.")
    colours = re.findall(r"(--[a-z]+:[^;}]+)", STYLE.split("@media")[0])
    head = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    svg = sweep_figures(sweep)[0].svg.replace("<svg ", head + 'width="720" ', 1)
    style = f"<style>svg {{ {'; '.join(colours)} }}</style>"
    path = pathlib.Path(__file__).with_name("select.svg")
    path.write_text(svg.replace(">", f">{style}", 1), encoding="utf-8")
    print(f"Wrote {path}")


if __name__ == "__main__":
    main(sys.argv[1])
