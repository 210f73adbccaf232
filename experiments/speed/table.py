"""The table of docs/speed.md from the results that are there.

Run: python -m experiments.speed.table
"""

import json
import pathlib

from experiments.speed.grid import HAND, KERAS, SKLEARN, SKORCH
from experiments.speed.measure import RESULTS

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "speed.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"
GRID, CNN = "the grid of 50 fits", "the article's CNN, a step"
ROWS = (
    (GRID, HAND, "grid", 2.5, 4),
    (GRID, SKLEARN, "grid", 3.5, 5),
    (GRID, SKORCH, "grid_slow", 14, 20),
    (GRID, KERAS, "grid_slow", 100, 160),
    (f"{GRID}, cold process", SKLEARN, "grid_cold", 1, 1.5),
    (CNN, "Keras 3 on JAX, fit", "cnn", 2.2, 3),
    (CNN, "PyTorch, contiguous", "cnn", 0.9, 1.3),
    (CNN, "PyTorch, channels last", "cnn", 0.9, 1.3),
    ("8 CNNs as one program, a step and model", "one model alone", "cnn_together", 1, 1.2),
    ("second `wdjax select`", "first, empty compilation cache", "select", 2, 3),
)


def main() -> None:
    """Writes the rows that were measured between the page's two marks."""
    lines = [
        "| what | against | times ours (range of pairs) | seconds, theirs and ours | asked for |",
        "| --- | --- | --- | --- | --- |",
    ]
    for what, peer, name, least, wanted in ROWS:
        path = RESULTS / f"{name}.json"
        row = json.loads(path.read_text())["against"].get(peer) if path.exists() else None
        if row is None:
            continue
        low, high = row["ratio_range"]
        lines.append(
            f"| {what} | {peer} | **{row['ratio']:.2f}** ({low:.2f} to {high:.2f}) | "
            f"{row['theirs_seconds']:.3g}, {row['ours_seconds']:.3g} | {least:g}, {wanted:g} |"
        )
    path = RESULTS / "grid_limit.json"
    if path.exists():
        row = json.loads(path.read_text())
        low, high = row["share_range"]
        lines.append(
            f"| {GRID} | the rate of a large matrix product, {row['matmul_gflops']:.0f} GFLOP/s | "
            f"**{row['share']:.0%}** of it ({low:.0%} to {high:.0%}) | | 45 %, 60 % |"
        )
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n\n" + END + after)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
