"""Audits published optimisers: `python -m experiments.audits` writes the table of docs/audits.md.

It takes a few minutes, prints the table, and keeps the numbers in audits.json.
"""

from experiments.audits import measure, page
from experiments.audits.rows import ROWS
from wdjax.tables import to_json


def main() -> None:
    facts = {row.name: measure.facts_of(row) for row in ROWS}
    page.FACTS.write_text(to_json(facts) + "\n", encoding="utf-8")
    block = page.block_text(ROWS, page.read_facts())
    text = page.PAGE.read_text(encoding="utf-8")
    page.PAGE.write_text(page.with_block(text, block), encoding="utf-8")
    print(block)


if __name__ == "__main__":
    main()
