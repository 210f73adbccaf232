"""README.md's table of claims and the pages, kept in step with the results."""

import json
import pathlib
from typing import Any

from experiments.common import ROOT, found_text, read_page, write_page
from wdjax.tables import to_json

SHOWN = 3
"""Numbers of a claim in the table; the page has them all."""
BEGIN, END = "<!-- table -->", "<!-- /table -->"


def all_results() -> list[tuple[pathlib.Path, dict[str, Any]]]:
    """Every committed result, with its folder, in the order of the names."""
    paths = sorted(ROOT.glob("*/results*.json"))
    return [(path.parent, json.loads(path.read_text(encoding="utf-8"))) for path in paths]


def table_text() -> str:
    """The table: claim, what was found, verdict, date, command, folder."""
    head = ["claim", "found (mean +- standard error)", "verdict", "date", "device", "command"]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for folder, results in all_results():
        device = f"{results['device']['count']} {results['device']['platform'].upper()}"
        cells = [
            f"[{folder.name.split('_')[0].upper()}]({folder.name}/run.py) {results['claim']}",
            f"{results['because']} {found_text(results, SHOWN)}",
            f"**{results['verdict']}**",
            results["date"],
            f"{device}, {results['seconds']:.0f} s",
            f"`{results['command']}`",
        ]
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)


def refresh() -> None:
    """Carries the words of the pages into the results, and the numbers into the pages."""
    for path in ROOT.glob("*/results*.json"):
        results = json.loads(path.read_text(encoding="utf-8"))
        page = read_page(path.parent)
        names = {"title": "title", "claim": "Claim", "source": "Source"}
        names["would_change"] = "Would change"
        results |= {name: page[label] for name, label in names.items()}
        path.write_text(to_json(results) + "\n", encoding="utf-8")
        if path.name == "results.json":
            write_page(path.parent, results)


def write_table() -> None:
    """Writes pages, then the table between the marks of README.md."""
    refresh()
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    path.write_text(f"{before}{BEGIN}\n{table_text()}\n{END}{after}", encoding="utf-8")
