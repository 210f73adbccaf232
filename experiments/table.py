"""README.md's table of claims and the pages, kept in step with the results."""

import json
import pathlib
import re
from typing import Any

from experiments import claims
from experiments.common import (
    ROOT,
    Measurement,
    device_mark,
    judge,
    load,
    p_text,
    read_page,
    write_page,
)
from wdjax.tables import to_json

SHOWN = 3
"""Numbers of a claim in the table; its results have them all."""
BEGIN, END = "<!-- table -->", "<!-- /table -->"


def all_results() -> list[tuple[pathlib.Path, dict[str, Any]]]:
    """Every committed result, with its folder, in the order of the names."""
    paths = sorted(ROOT.glob("*/results*.json"))
    return [(path.parent, json.loads(path.read_text(encoding="utf-8"))) for path in paths]


def rows_of(folder: str) -> list[str]:
    """`q01_q02_gap` -> ["Q1", "Q2"]: the claims of the articles that a folder's name tells."""
    leading = re.match(r"((?:[qs]\d+_)*)", folder)
    names = leading[1].split("_") if leading else []
    return [f"{name[0].upper()}{int(name[1:])}" for name in names if name]


OF_THE_METHOD = ("verdict",)
"""Experiments about how often the method is wrong, not about what it found."""
BEYOND_THE_ARTICLES = ("fine_tuning",)
"""Experiments about what the articles do not speak of."""


def claim_rows() -> list[dict[str, Any]]:
    """Every claim with its verdict, and that under Holm's correction over all claims.

    The claims of one kind of device are one family: another device is the same experiment again.
    Those of the method itself, simulated, are a family of their own, and so are those beyond the
    articles: neither is evidence about the articles' claims.
    """
    rows = [
        {**claim, "folder": folder.name, "results": results}
        for folder, results in all_results()
        for claim in results["claims"]
    ]
    families: dict[tuple[str, bool, bool], list[dict[str, Any]]] = {}
    for row in rows:
        kinds = (row["folder"] in kind for kind in (OF_THE_METHOD, BEYOND_THE_ARTICLES))
        families.setdefault((device_mark(row["results"]["device"]), *kinds), []).append(row)
    for family in families.values():
        for row, p in zip(family, claims.holm([row["p"] for row in family]), strict=True):
            row["holm_p"] = p
            row["holm_verdict"] = row["verdict"] if p < claims.LEVEL else "undecided"
    return rows


def table_text() -> str:
    """The table: claim, the numbers that decide it, both verdicts, date, device, command."""
    head = ["claim", "numbers (mean +- standard error)", "verdict", "with Holm's correction"]
    head += ["date", "device", "command"]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for row in claim_rows():
        results = row["results"]
        device = f"{results['device']['count']} {results['device']['platform'].upper()}"
        cells = [
            f"[{row['name']}]({row['folder']}/run.py) {row['text']}",
            numbers_text(row["numbers"]),
            f"**{row['verdict']}**, {p_text(row['p'])}",
            f"**{row['holm_verdict']}**, {p_text(row['holm_p'])}",
            results["date"],
            f"{device}, {results['seconds']:.0f} s",
            f"`{results['command']}`",
        ]
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)


def numbers_text(numbers: list[dict[str, Any]]) -> str:
    """The first numbers of a claim in one line, and how many more there are."""
    told = [str(Measurement(**m)) for m in numbers[:SHOWN]]
    more = len(numbers) - SHOWN
    return "; ".join([*told, *[f"{more} more"] * (more > 0)])


def refresh() -> None:
    """Carries words of the pages and verdicts into the results, and the numbers into the pages."""
    for path in ROOT.glob("*/results*.json"):
        results = json.loads(path.read_text(encoding="utf-8"))
        page, module = read_page(path.parent), load(path.parent)
        results |= {"title": page["title"], "claim": page["Claim"], "source": page["Source"]}
        results = judge(results, module.CLAIMS, getattr(module, "derived", None))
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
