"""What the audits say, as the tables of `docs/audits.md`."""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.audits.codebases import Codebase
from wdjax.diagnostics.warnings import LEAST_REMOVED
from wdjax.tables import format_number

HERE = pathlib.Path(__file__).parent
FACTS = HERE / "audits.json"
PAGE = HERE.parent.parent / "docs" / "audits.md"
MARKS = ("<!-- audits -->\n", "<!-- /audits -->")
"""What the program writes stands between them."""

Facts = Mapping[str, Mapping[str, Any]]
"""Per row's name, what `facts_of` says."""


def read_facts() -> Facts:
    return json.loads(FACTS.read_text(encoding="utf-8"))


def with_block(page: str, block: str) -> str:
    """The page with the block between its marks."""
    before, rest = page.split(MARKS[0])
    return f"{before}{MARKS[0]}{block}{MARKS[1]}{rest.split(MARKS[1])[1]}"


def block_text(rows: Sequence[Codebase], facts: Facts) -> str:
    """The summary, the table and what there is to know of each row."""
    notes = "\n".join(_note(row, facts[row.name]) for row in rows)
    return f"{summary(rows, facts)}\n\n{table(rows, facts)}\n\n{notes}\n"


def summary(rows: Sequence[Codebase], facts: Facts) -> str:
    """How many decay what, counted."""
    kinds = {row.name: kind_of(facts[row.name]) for row in rows}
    count = lambda kind: sum(found == kind for found in kinds.values())
    codebases = len({row.repository for row in rows})
    decaying = [row for row in rows if kinds[row.name] in ("all", "some")]
    rates = [at(facts[row.name], "at_peak") for row in decaying]
    removed = [facts[row.name]["removed"] for row in decaying]
    weak = sum(share < LEAST_REMOVED for share in removed)
    return (
        f"Of {len(rows)} configurations of {codebases} codebases, {count('none')} have no decay; "
        f"{count('all')} decay every leaf that is trained, biases and gains of norms included "
        f"where there are any; {count('some')} leave some out; in "
        f"{count('unknown')} decay has no rate of its own, and in "
        f"{count('grows')} the weights grow. Where there is a rate, it is {number(min(rates))} to "
        f"{number(max(rates))} a step at the peak of the learning rate. In {weak} of these "
        f"{len(decaying)} decay removes less than {LEAST_REMOVED:.0%} of a weight in the whole run."
    )


def kind_of(found: Mapping[str, Any]) -> str:
    """`none`, `grows`, `unknown`, `all` or `some`."""
    leaves = found["leaves"].values()
    if not found["decaying"]:
        return "none"
    if any(leaf["unmeasured"] for leaf in leaves):
        return "unknown"
    if min(leaf["at_peak"] for leaf in leaves) < 0:
        return "grows"
    return "all" if len(found["decaying"]) == len(leaves) else "some"


def at(found: Mapping[str, Any], when: str) -> float | None:
    """The rate of the leaves that decay, at the peak or at the end; None where there is none."""
    rates = [found["leaves"][path][when] for path in found["decaying"]]
    if not rates or None in rates:
        return None
    return max(rates, key=abs)


def table(rows: Sequence[Codebase], facts: Facts) -> str:
    """One row a configuration."""
    heads = ("configuration", "as set", "who decays", "rate a step", "at the peak", "at the end")
    heads += ("half-life at the peak, steps", "steps", "removed in the run")
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for row in rows:
        found = facts[row.name]
        peak, end = at(found, "at_peak"), at(found, "at_end")
        known = peak is not None
        cells = (
            row.name,
            f"`{row.setting}`",
            who(found),
            row.formula,
            number(peak) if known else "",
            number(end) if known else "",
            number(math.log(2) / -math.log1p(-peak)) if known and peak > 0 else "",
            f"{row.num_steps:,}" if known else "",
            _removed(found["removed"]) if known else "",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def who(found: Mapping[str, Any]) -> str:
    """Who decays, of the leaves and of the weights."""
    decaying, leaves = found["decaying"], found["leaves"]
    if not decaying:
        return "nothing"
    if len(decaying) == len(leaves):
        return "all"
    share = "" if found["share"] is None else f", {100 * found['share']:.4g} % of the weights"
    return f"{len(decaying)} of {len(leaves)} leaves{share}"


def number(value: float) -> str:
    return format_number(float(f"{value:.3g}"))


def _removed(share: float) -> str:
    if share < 0:
        return f"grows by {-100 * share:.3g} %"
    return "over 99.9 %" if share > 0.999 else f"{100 * share:.3g} %"


def _note(row: Codebase, found: Mapping[str, Any]) -> str:
    link = f"[{row.repository}@{row.commit[:7]}](https://github.com/{row.repository}/tree/{row.commit})"
    warned = ", ".join(f"*{kind}*" for kind in found["warnings"])
    return (
        f"- **{row.name}** ({link}, {row.date}): `{row.code}`; `{row.config}`. {row.found}"
        + (f" The audit warns: {warned}." if warned else "")
        + (" Compared with its own function." if row.compared else "")
    )
