"""The tables and the picture of docs/speed.md, from the results that are there.

Run: python -m experiments.speed.table
"""

import json
import pathlib
from typing import Any

from experiments.common import draw_svg
from experiments.speed import growth, select
from experiments.speed.grid import HAND, KERAS, SKLEARN, SKORCH
from experiments.speed.measure import RESULTS
from experiments.speed.stream import ARRAYS, IMAGES

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "speed.md"
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
    ("the streaming loop, a step of the CNN", ARRAYS, "stream", 0.95, 1),
    ("the streaming loop, a step of the CNN", IMAGES, "stream", 0.8, 1),
    ("second `wdjax select`", select.AGAINST, "select", 2, 3),
    ("second `wdjax select --fresh`", select.AGAINST, "select_fresh", None, None),
)
NOT_YET = "Not measured yet: `python -m experiments.speed {}`."


def main() -> None:
    """Writes what was measured between the marks of each section."""
    page = PAGE.read_text()
    for name, lines in sections().items():
        page = between_marks(page, name, lines)
        print("\n".join(lines), end="\n\n")
    PAGE.write_text(page)
    result = read("growth")
    if result is not None:
        draw_svg(growth.draw, result, growth.FIGURE, size=growth.SIZE)


def sections() -> dict[str, list[str]]:
    """The lines of each generated section."""
    found = {"table": ratios()}
    for name, lines in (("growth", growth.lines), ("select", select.lines)):
        result = read(name)
        measured = result is not None and (name != "select" or "stages" in result)
        found[name] = lines(result) if measured else [NOT_YET.format(name)]
    return found


def between_marks(page: str, name: str, lines: list[str]) -> str:
    """The page with `lines` between `<!-- name -->` and `<!-- end of name -->`."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    before, rest = page.split(begin)
    after = rest.split(end)[1]
    return before + begin + "\n" + "\n".join(lines) + "\n\n" + end + after


def read(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def ratios() -> list[str]:
    """The table against peers, a line a row that was measured."""
    lines = [
        "| what | against | times ours (range of pairs) | seconds, theirs and ours | asked for |",
        "| --- | --- | --- | --- | --- |",
    ]
    for what, peer, name, least, wanted in ROWS:
        row = (read(name) or {"against": {}})["against"].get(peer)
        if row is None:
            continue
        low, high = row["ratio_range"]
        asked = "" if least is None else f"{least:g}, {wanted:g}"
        lines.append(
            f"| {what} | {peer} | **{row['ratio']:.2f}** ({low:.2f} to {high:.2f}) | "
            f"{row['theirs_seconds']:.3g}, {row['ours_seconds']:.3g} | {asked} |"
        )
    row = read("grid_limit")
    if row is not None:
        low, high = row["share_range"]
        lines.append(
            f"| {GRID} | the rate of a large matrix product, {row['matmul_gflops']:.0f} GFLOP/s | "
            f"**{row['share']:.0%}** of it ({low:.0%} to {high:.0%}) | | 45 %, 60 % |"
        )
    return lines


if __name__ == "__main__":
    main()
