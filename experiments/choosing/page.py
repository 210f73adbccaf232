"""The page and its figure, from the numbers as they stand."""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from experiments import common
from experiments.choosing.summary import covers, judged, numbers_of, of_way, wrong
from experiments.choosing.ways import CHOOSERS
from experiments.claims import Measurement
from wdjax.tables import Estimate, format_number, to_json

HERE = pathlib.Path(__file__).parent
COMMAND = "python -m experiments.choosing --hours 6"


def write(out: pathlib.Path, facts: Mapping[str, Any]) -> None:
    """`numbers.json` (the facts), `README.md` and `regret.svg`.

    The facts: `lines` (see `pairs_of`), `transfers`, `cells` (`{name: {"draws": n, "deep": ...}}`),
    `num_pairs`, `num_transfers`, `skipped`, and where and when it was measured.
    """
    out.mkdir(parents=True, exist_ok=True)
    facts = json.loads(to_json(dict(facts)))
    (out / "numbers.json").write_text(to_json(facts) + "\n", encoding="utf-8")
    (out / "README.md").write_text(page_text(facts), encoding="utf-8")
    if facts["lines"]:
        common.draw_svg(draw, facts, out / "regret.svg", size=(7.2, 4.0))


def measurements(facts: Mapping[str, Any]) -> list[Measurement]:
    deep = [name for name, cell in facts["cells"].items() if cell["deep"]]
    return numbers_of(facts["lines"], deep, facts["transfers"])


def first_line(claims: Sequence[Mapping[str, Any]]) -> str:
    """What is not reached, by the verdicts; then what is undecided, and what is reached."""
    words = {"fails": "Not reached", "undecided": "Undecided", "holds": "Reached"}
    told = []
    for verdict, heading in words.items():
        names = [f"`{one['name']}`" for one in claims if one["verdict"] == verdict]
        if names:
            told.append(f"**{heading}: {', '.join(names)}.**")
    return " ".join(told)


def page_text(facts: Mapping[str, Any]) -> str:
    """The whole page."""
    numbers = measurements(facts)
    claims = judged(numbers)
    pairs = {(line["cell"], line["draw"]) for line in facts["lines"]}
    parts = [
        "# Every way of choosing a strength, against cross-validation",
        first_line(claims),
        f"From {len(pairs)} of {facts['num_pairs']} (cell, draw) pairs and "
        f"{len(facts['transfers'])} of {facts['num_transfers']} draws of the transfer, measured on "
        f"{facts['device']} by `{COMMAND}`, {facts['date']}; {facts['cpu_hours']:.1f} hours of CPU "
        "so far." + "".join(f" Skipped: {words}." for words in facts["skipped"]),
        HOW,
        "## Ways\n\n" + _ways_table(facts["lines"], numbers),
        "![Regret against trainings, all ways](regret.svg)" if pairs else "",
        "## Whether to believe them\n\n" + _belief_table(facts["lines"]),
        "## Claims\n\n" + _claims_text(claims),
        "## Cells\n\n" + _cells_table(facts),
        "## Transfer\n\n" + _transfer_table(facts["transfers"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


HOW = """\
A draw of a cell is another split into examples that choose and fresh ones, with other seeds. On
each, the grid (every strength, on every fold and seed) says which rows can be the best, its 95 %
set; *in the set* is the share of pairs in which a way's choice, or the row nearest to it in the
logarithm, is one of them. Pairs whose set leaves out fewer than half of the rows do not count
there. The *rerun* is the whole grid again, with other folds, seeds and order of the examples:
what noise alone leaves. *Regret* is the test loss of runs at the choice beyond that at the best
row of the grid by test loss, all refitted with the same seeds on the examples that choose; as a
share of what a row drawn blindly costs, the mean over the grid, so that cells can be averaged.
Where labels are wrong, they are so among the fresh examples, too. Trainings are of equal length,
and do not count the run that is done with what was chosen. *Time* is by the clock as a share of
the grid's on the same pair, of pairs where both had been through another draw of the cell, and
found what that compiled. All runs go by a cosine with warm-up. Numbers are means over pairs with
their standard errors; pairs of a cell share data, which these leave out."""


def _of(numbers: Sequence[Measurement], what: str) -> str:
    for one in numbers:
        if one.what == what:
            return str(Estimate(one.mean, one.standard_error or math.nan))
    return ""


def table_text(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _ways_table(lines: Sequence[Mapping[str, Any]], numbers: Sequence[Measurement]) -> str:
    headers = ("way", "what it does", "pairs", "in the set", "regret / a blind row's")
    headers += ("trainings", "time / grid's", "seconds", "MB at most")
    rows = []
    for way in dict.fromkeys(line["way"] for line in lines):
        mine = of_way(lines, way)
        seconds = sorted(line["seconds"] for line in mine)[len(mine) // 2]
        memory = max((line["memory"] or 0 for line in mine), default=0)
        told = ("in the set", "regret / a blind row's", "trainings", "time / the grid's")
        in_set, regret, trainings, time = (_of(numbers, f"{way}: {what}") for what in told)
        words = CHOOSERS[way].words if way in CHOOSERS else ""
        in_set = "" if way == "grid" else in_set  # The best row is in its own set.
        size = format_number(float(f"{memory / 1e6:.3g}")) if memory else ""
        row = (way, words, str(len(mine)), in_set, regret, trainings, time, f"{seconds:.1f}", size)
        rows.append(row)
    return table_text(headers, rows)


def _belief_table(lines: Sequence[Mapping[str, Any]]) -> str:
    text = (
        "A choice is wrong where it lies outside the set, or its regret is beyond its paired "
        'error. A way that says "do not believe this" is right to where its choice is wrong.\n\n'
    )
    rows = []
    for way in dict.fromkeys(line["way"] for line in lines):
        mine = of_way(lines, way)
        doubted = [line for line in mine if not line["believed"]]
        trusted = [line for line in mine if line["believed"]]
        count = lambda some: f"{sum(map(wrong, some))} of {len(some)}"
        rows.append((way, count(doubted), count(trusted)))
    return text + table_text(("way", "wrong where it doubts", "wrong where it does not"), rows)


def _claims_text(claims: Sequence[Mapping[str, Any]]) -> str:
    told = []
    for one in claims:
        numbers = "; ".join(str(Measurement(**number)) for number in one["numbers"])
        told.append(
            f"- `{one['name']}` **{one['verdict']}**, {common.p_text(one['p'])}: {one['text']} "
            f"Rule: {one['rule']}. {numbers or 'No number yet'}."
        )
    return "\n".join(told)


def _cells_table(facts: Mapping[str, Any]) -> str:
    rows = []
    for name, cell in facts["cells"].items():
        mine = [line for line in facts["lines"] if line["cell"] == name]
        grids = of_way(mine, "grid")
        told = sum(line["inside"] is not None for line in grids)
        cpu = sum(line["cpu_seconds_in_all"] for line in mine) / max(len(grids), 1)
        rows.append(
            (name, f"{len(grids)} of {cell['draws']}", str(told), f"{cpu:.0f}" if grids else "")
        )
    headers = ("cell", "draws", "whose set leaves out half the rows", "CPU seconds a draw")
    return table_text(headers, rows)


def _transfer_table(transfers: Sequence[Mapping[str, Any]]) -> str:
    if not transfers:
        return "Nothing is measured yet."
    short = lambda x: "" if x is None else format_number(float(f"{x:.2g}"))
    rows = [
        (
            one["cell"],
            str(one["draw"]),
            short(one["predicted"]),
            f"{short(one['low'])} to {short(one['high'])}" if one["low"] else "",
            short(one["best"]) if one["known"] else "not known",
            "yes" if one["believed"] else "no",
            f"{one['small_trainings']:.0f}",
        )
        for one in transfers
    ]
    headers = ("cell", "draw", "predicted", "95 % interval", "found there", "believed")
    return _transfer_words(transfers) + table_text((*headers, "small trainings"), rows)


def _transfer_words(transfers: Sequence[Mapping[str, Any]]) -> str:
    told = (
        "Small searches at three widths and three numbers of rows predict the best strength at 8 "
        "times the largest. *Found there* is the best of one search at that size, whose own error "
        "is not in the comparison.\n"
    )
    for beyond in dict.fromkeys(tuple(one["beyond"]) for one in transfers):
        mine = [one for one in transfers if tuple(one["beyond"]) == beyond and one["known"]]
        count = lambda some: f"{sum(map(covers, some))} of {len(some)}"
        alone = " alone, the other size as large as the largest searched" * (len(beyond) == 1)
        told += (
            f"\n- Beyond in {' and '.join(beyond)}{alone}: the interval held it in {count(mine)} "
            f"draws, in {count([one for one in mine if one['believed']])} of those believed and "
            f"in {count([one for one in mine if not one['believed']])} of the others."
        )
    return f"{told}\n\n"


STYLES = {"ours": "o", "others": "s"}


def draw(facts: Mapping[str, Any], figure: Any) -> None:
    """Regret against trainings, the run itself counted: points with the errors over pairs."""
    axes, numbers = figure.subplots(), measurements(facts)
    found = {m.what: m for m in numbers}
    for place, way in enumerate(dict.fromkeys(line["way"] for line in facts["lines"])):
        regret = found.get(f"{way}: regret / a blind row's")
        cost = found.get(f"{way}: trainings")
        if regret is None or cost is None:
            continue
        chooser = CHOOSERS.get(way)
        style = STYLES["ours" if chooser is None else chooser.family]
        color = f"C{place % 10}"
        error = regret.standard_error
        axes.errorbar(
            1 + cost.mean, regret.mean, error, fmt=style, color=color, capsize=2, label=way
        )
        path = _mean_path(of_way(facts["lines"], way))
        if len(path) > 1:
            axes.plot(*zip(*path, strict=True), ":", color=color, lw=1)
    axes.set_xscale("log")
    axes.axhline(0, color="k", lw=0.5)
    axes.axhline(1, color="k", lw=0.5, ls="--")
    axes.set_xlabel("trainings, the run at the choice counted")
    axes.set_ylabel("regret / that of a row drawn blindly")
    axes.legend(fontsize=8, ncols=2, loc="upper right", frameon=False)


def _mean_path(lines: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """What a search would have chosen after each of its batches, where all pairs have so many."""
    paths = [line["path"] for line in lines if line["path"]]
    steps = min(map(len, paths), default=0)
    mean = lambda step, i: sum(path[step][i] for path in paths) / len(paths)
    return [(1 + mean(step, 0), mean(step, 1)) for step in range(steps)]
