"""Writes what was measured into faq.md: `python docs/fill_faq.py`.

Each answer ends with the rows that measure it, `[Q1, Q2](../experiments/README.md)`. What follows
that link, up to the mark `<!-- . -->`, is written here from the experiments' results. Words in the
mark, `<!-- spike | decades -->`, pick the number that is told: the first whose name holds one.
"""

import json
import pathlib
import re

from wdjax.tables import Estimate, format_number

DOCS = pathlib.Path(__file__).parent
EXPERIMENTS = DOCS.parent / "experiments"
ANSWER = re.compile(r"\[([SQ\d, ]+)\]\(\.\./experiments/README\.md\)[^\n]*<!-- ([^>]+) -->")


def rows_of(folder: str) -> set[str]:
    """`q01_q02_gap` -> {"Q1", "Q2"}."""
    leading = re.match(r"((?:[qs]\d+_)*)", folder)
    names = leading[1].split("_") if leading else []
    return {f"{name[0].upper()}{int(name[1:])}" for name in names if name}


def picked(found: list[dict], words: str) -> dict:
    """The first number whose name holds one of the words, else the first."""
    wanted = [word.strip() for word in words.split("|") if word.strip() != "."]
    named = [one for one in found if any(word in one["what"] for word in wanted)]
    return (named or found)[0]


def measured(rows: set[str], words: str = ".") -> str:
    """The verdict of every experiment on one of the rows, with one number."""
    told = []
    for path in sorted(EXPERIMENTS.glob("*/results.json")):
        if rows & rows_of(path.parent.name):
            results = json.loads(path.read_text(encoding="utf-8"))
            first = picked(results["found"], words)
            if first["standard_error"] is None:
                number = f"{first['what']} {format_number(first['mean'])}, exact"
            else:
                estimate = Estimate(first["mean"], first["standard_error"])
                number = f"{first['what']} {estimate}, n = {first['n']}"
            is_so = "is " * (results["verdict"] == "undecided")
            link = f"{is_so}[{results['verdict']}](../experiments/{path.parent.name}/run.py)"
            told.append(f"The claim {link}: {results['because'].rstrip('.')} ({number}).")
    return " ".join(told)


def filled(text: str) -> str:
    """The page with every answer's measurements as they are now."""

    def fill(match: re.Match) -> str:
        found = measured(set(match[1].split(", ")), match[2]) or "Not measured yet."
        return f"[{match[1]}](../experiments/README.md). {found} <!-- {match[2]} -->"

    return ANSWER.sub(fill, text)


if __name__ == "__main__":
    page = DOCS / "faq.md"
    page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
