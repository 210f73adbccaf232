"""From records to what is told: pairs, rates, regrets, and the claims about them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.choosing.store import ROWS
from experiments.claims import (
    Claim,
    Measurement,
    above,
    all_of,
    below,
    judge,
    matching,
    share_above,
    tests,
)

NEAR, FAR = 0.05, 0.10
"""How far below the rerun's rate a way may lie."""
WIDEST = 4.0
"""The factor that an interval of the transfer may span."""


def nearest_row(strengths: Sequence[float], strength: float) -> int:
    """The grid's row of a choice; off the grid the nearest in the logarithm, zero by itself."""
    rows = np.asarray(strengths, np.float64)
    if strength in rows:
        return int(np.flatnonzero(rows == strength)[0])
    if not strength > 0:
        raise ValueError(f"a choice of strength {strength} has no row beside it.")
    with np.errstate(divide="ignore"):
        return int(np.argmin(np.abs(np.log(rows) - math.log(strength))))


def regret_of(test: Any, examples: Any, best_test: Any, best_examples: Any) -> tuple[float, float]:
    """Mean test loss beyond the best row's, and the error of the two paired: the deviation of the
    seeds' differences and that of the examples', each over the root of its number, squared and
    added. `[seed]`, and `[example]` over seeds."""
    by_seed = np.asarray(test, np.float64) - np.asarray(best_test, np.float64)
    by_example = np.asarray(examples, np.float64) - np.asarray(best_examples, np.float64)
    error = lambda d: d.std(ddof=1) / math.sqrt(len(d)) if len(d) > 1 else 0.0
    return float(by_seed.mean()), math.hypot(error(by_seed), error(by_example))


def pairs_of(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A line for each way of each (cell, draw) whose grid and test losses of all rows are there.

    `inside` is None where the grid's set leaves out fewer than half of the rows: it tells little.
    `relative` is the regret in units of what a row drawn blindly from the grid costs: the mean
    over its rows, diverged ones left out. (What its median row costs is next to nothing where
    half of the grid hardly decays.)
    """
    by_pair: dict[tuple[str, int], dict[str, Mapping[str, Any]]] = {}
    for record in records:
        by_pair.setdefault((record["cell"], record["draw"]), {})[record["way"]] = record
    return [
        _line(record, ways["grid"], ways[ROWS])
        for ways in by_pair.values()
        if "grid" in ways and ROWS in ways
        for name, record in ways.items()
        if name != ROWS
    ]


def _line(
    record: Mapping[str, Any], grid: Mapping[str, Any], rows: Mapping[str, Any]
) -> dict[str, Any]:
    test = np.asarray(_numbers(rows["test"]), np.float64)
    means = np.where(np.isfinite(test).all(axis=1), test.mean(axis=1), np.inf)
    best, told = int(np.argmin(means)), grid["more"]["confident_set"]
    informative = 0 < len(told) <= len(means) / 2
    strength = _number(record["strength"])
    chosen = math.isfinite(strength)
    inside = None
    if informative:
        inside = chosen and nearest_row(rows["strengths"], strength) in told
    regret, error = math.nan, math.nan
    if chosen:
        regret, error = regret_of(
            _numbers(record["test"]),
            _numbers(record["examples"]),
            test[best],
            _numbers(rows["examples"][best]),
        )
    blind = float(means[np.isfinite(means)].mean() - means[best])
    kept = ("cell", "draw", "way", "trainings", "seconds", "memory", "warm")
    return {name: record[name] for name in kept} | {
        "strength": strength if chosen else None,
        "inside": inside,
        "regret": regret if math.isfinite(regret) else None,
        "error": error if math.isfinite(error) else None,
        "relative": regret / blind if blind > 0 and math.isfinite(regret) else None,
        "believed": not record["doubts"],
        "time_in_trainings": record["more"].get("time_in_trainings"),
        "path": [
            [one["trainings"], (_number(one["test"]) - means[best]) / blind]
            for one in record.get("path", [])
            if blind > 0 and math.isfinite(_number(one["test"]))
        ],
        "seconds_in_all": record["seconds_in_all"],
        "cpu_seconds_in_all": record["cpu_seconds_in_all"],
    }


def _number(value: Any) -> float:
    """JSON has no NaN: what is not finite is kept as a word or as nothing."""
    return float("nan") if value is None else float(value)


def _numbers(values: Any) -> Any:
    if isinstance(values, list | tuple):
        return [_numbers(one) for one in values]
    return _number(values)


def wrong(line: Mapping[str, Any]) -> bool:
    """Whether a choice is one not to be believed: outside the grid's set, or of a regret beyond
    its paired error; or none at all."""
    if line["regret"] is None:
        return True
    return line["inside"] is False or line["regret"] > line["error"]


def of_way(lines: Sequence[Mapping[str, Any]], way: str) -> list[Mapping[str, Any]]:
    return [line for line in lines if line["way"] == way]


def _mean(what: str, values: Iterable[float | None]) -> list[Measurement]:
    """Of two or more finite numbers; else nothing."""
    known = np.array([v for v in values if v is not None and math.isfinite(v)], np.float64)
    if len(known) < 2:
        return []
    error = float(known.std(ddof=1) / math.sqrt(len(known)))
    return [Measurement(what, float(known.mean()), error, len(known))]


def _share(what: str, events: Iterable[bool]) -> list[Measurement]:
    told = [bool(event) for event in events]
    if len(told) < 2:
        return []
    rate = sum(told) / len(told)
    return [Measurement(what, rate, math.sqrt(rate * (1 - rate) / len(told)), len(told))]


def numbers_of(
    lines: Sequence[Mapping[str, Any]],
    deep: Iterable[str] = (),
    transfers: Sequence[Mapping[str, Any]] = (),
) -> list[Measurement]:
    """All that claims are about, and more; what fewer than two pairs tell is left out.

    `deep`: the cells of networks of more than one hidden layer.
    """
    numbers: list[Measurement] = []
    rerun = {(line["cell"], line["draw"]): line for line in of_way(lines, "rerun")}
    grid = {(line["cell"], line["draw"]): line for line in of_way(lines, "grid")}
    deep = set(deep)
    for way in dict.fromkeys(line["way"] for line in lines):
        mine = of_way(lines, way)
        told = [line for line in mine if line["inside"] is not None]
        numbers += _share(f"{way}: in the set", (line["inside"] for line in told))
        for words, some in (("", told), (" where believed", [x for x in told if x["believed"]])):
            beside = [(x, rerun.get((x["cell"], x["draw"]))) for x in some]
            numbers += _mean(
                f"{way}: rate{words} - the rerun's",
                (x["inside"] - other["inside"] for x, other in beside if other is not None),
            )
        numbers += _mean(f"{way}: regret / a blind row's", (x["relative"] for x in mine))
        numbers += _mean(f"{way}: trainings", (x["trainings"] for x in mine))
        over = [(x, grid[x["cell"], x["draw"]]) for x in mine]
        shares = (x["trainings"] / other["trainings"] for x, other in over)
        numbers += _mean(f"{way}: trainings / the grid's", shares)
        warm = [(x, other) for x, other in over if x["warm"] and other["warm"]]
        times = (x["seconds"] / other["seconds"] for x, other in warm)
        numbers += _mean(f"{way}: time / the grid's", times)
        for words, some in (
            ("one hidden layer", [x for x in mine if x["cell"] not in deep]),
            ("deep networks", [x for x in mine if x["cell"] in deep]),
        ):
            numbers += _mean(
                f"{way}: time in trainings, {words}", (x["time_in_trainings"] for x in some)
            )
        numbers += _share(f"{way}: believed", (x["believed"] for x in mine))
        numbers += _share(f"{way}: right to doubt", (wrong(x) for x in mine if not x["believed"]))
        numbers += _share(f"{way}: right to believe", (not wrong(x) for x in mine if x["believed"]))
    return numbers + transfer_numbers(transfers)


def transfer_numbers(transfers: Sequence[Mapping[str, Any]]) -> list[Measurement]:
    """Of the predictions that are believed, and of all: beyond the small sizes in both, which the
    claim is about, and in one alone. A draw whose large search does not know its own best tells
    nothing."""
    both = [one for one in transfers if len(one["beyond"]) > 1]
    alone = [one for one in transfers if len(one["beyond"]) == 1]
    return _numbers_of_transfer("transfer", both) + _numbers_of_transfer("transfer, alone", alone)


def covers(transfer: Mapping[str, Any]) -> bool:
    """Whether the interval holds the best strength that was found."""
    return (transfer["low"] or 0.0) <= transfer["best"] <= (transfer["high"] or math.inf)


def _numbers_of_transfer(name: str, transfers: Sequence[Mapping[str, Any]]) -> list[Measurement]:
    known = [one for one in transfers if one["known"]]
    ends = [(one["low"] or 0.0, one["high"] or math.inf) for one in known]
    spans = [high / low if low > 0 else math.inf for low, high in ends]
    narrow = [covers(one) and span <= WIDEST for one, span in zip(known, spans, strict=True)]
    believed = [x for x, one in zip(narrow, known, strict=True) if one["believed"]]
    what = f"{name}: covers within a factor of 4"
    numbers = _share(f"{name}: covers", map(covers, known)) + _share(what, narrow)
    numbers += _share(f"{what}, where believed", believed)
    numbers += _share(f"{name}: believed", (one["believed"] for one in known))
    return numbers + _mean(f"{name}: log of the interval's factor", map(math.log, spans))


CLAIMS = (
    Claim(
        "slopes",
        "`--by slopes` lies in the grid's set at most 5 points less often than a rerun of the "
        "grid, in at most half of the grid's time.",
        all_of(above("slopes: rate - the rerun's", -NEAR), below("slopes: time / the grid's", 0.5)),
        "`--by slopes` lies in the grid's set more than 5 points less often than a rerun of the "
        "grid, or takes more than half of its time.",
    ),
    Claim(
        "halving",
        "`--by halving` lies in the grid's set at most 5 points less often than a rerun of the "
        "grid, in at most 0.3 of the grid's time.",
        all_of(
            above("halving: rate - the rerun's", -NEAR), below("halving: time / the grid's", 0.3)
        ),
        "`--by halving` lies in the grid's set more than 5 points less often than a rerun of the "
        "grid, or takes more than 0.3 of its time.",
    ),
    Claim(
        "tune",
        "`tune`, where it is believed, lies in the grid's set at most 10 points less often than a "
        "rerun of the grid, at the time of at most 2.2 trainings with one hidden layer and 3.2 of "
        "deep networks.",
        all_of(
            above("tune: rate where believed - the rerun's", -FAR),
            below("tune: time in trainings, one hidden layer", 2.2),
            below("tune: time in trainings, deep networks", 3.2),
        ),
        "`tune`, where it is believed, lies in the grid's set more than 10 points less often than "
        "a rerun of the grid, or takes longer than 2.2 trainings (3.2 of deep networks).",
    ),
    Claim(
        "tune-half",
        "`tune` with its tangent over half of the steps, where it is believed, lies in the grid's "
        "set at most 10 points less often than a rerun of the grid, at the time of at most 2 "
        "trainings.",
        all_of(
            above("tune half: rate where believed - the rerun's", -FAR),
            below("tune half: time in trainings, *", 2.0),
        ),
        "`tune` with its tangent over half of the steps, where it is believed, lies in the grid's "
        "set more than 10 points less often than a rerun of the grid, or takes longer than 2 "
        "trainings.",
    ),
    Claim(
        "transfer",
        "The interval that `transfer` predicts for 8 times the width and 8 times the rows holds "
        "the best strength there in at least 90 % of cells, and spans at most a factor of 4.",
        share_above("transfer: covers within a factor of 4", 0.9),
        "The interval that `transfer` predicts for 8 times the width and 8 times the rows misses "
        "the best strength there, or spans more than a factor of 4, in more than 10 % of cells.",
    ),
)


def judged(numbers: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Every claim with its verdict, from the numbers alone; one that lacks a number that its rule
    names stays undecided, whatever the others say."""
    told = []
    for claim in CLAIMS:
        found = judge(claim, numbers)
        if any(not matching(test.what, numbers) for test in tests(claim.rule)):
            told.append(found | {"verdict": "undecided", "p": 1.0})
        else:
            told.append(found)
    return told
