"""The judged page of all ways of choosing: its arithmetic, and two tiny cells through all."""

import dataclasses
import json
import math
import warnings

import jax
import numpy as np
import pytest

from experiments.choosing import __main__ as command
from experiments.choosing import page, store, summary, transfer
from experiments.choosing.cells import CELLS, start_of, tiny_cells
from experiments.choosing.transfer import TRANSFER_CELLS, tiny_transfer
from experiments.choosing.ways import CHOOSERS
from experiments.claims import Measurement
from wdjax.selection import WAYS, Scores

STRENGTHS = [0.0, 0.01, 0.1, 1.0]
ROWS_TEST = [[1.0, 1.2], [0.8, 0.8], [0.5, 0.7], [2.0, 2.2]]
"""Test losses `[row, seed]`: the best is 0.1 at 0.6; the means are 1.1, 0.8, 0.6, 2.1."""
EXAMPLES = [[1.1, 1.1, 1.1], [0.7, 0.8, 0.9], [0.6, 0.6, 0.6], [2.1, 2.1, 2.1]]


def record(way, strength, row, draw=0, inside=(1, 2), doubts=(), **more):
    """A way that chose a row of the test losses above."""
    told = {"cell": "c", "draw": draw, "way": way, "strength": strength, "doubts": list(doubts)}
    told |= {"test": ROWS_TEST[row], "examples": EXAMPLES[row], "trainings": 10.0, "memory": 5}
    told |= {"seconds": 4.0, "seconds_in_all": 5.0, "cpu_seconds_in_all": 6.0, "path": []}
    told["warm"] = draw > 0
    return told | {"more": {"confident_set": list(inside)} if way == "grid" else {}} | more


def rows(draw=0):
    told = {"strengths": STRENGTHS, "test": ROWS_TEST, "examples": EXAMPLES}
    return {"cell": "c", "draw": draw, "way": "rows", **told}


def test_a_choice_off_the_grid_counts_as_its_nearest_row_in_the_logarithm():
    near = lambda strength: summary.nearest_row(STRENGTHS, strength)
    assert [near(s) for s in (0.0, 0.01, 0.031, 0.032, 0.5, 40.0, 1e-9)] == [0, 1, 1, 2, 3, 3, 1]
    with pytest.raises(ValueError, match="no row beside it"):
        near(-1.0)


def test_regret_is_against_the_best_row_by_test_loss_and_its_error_is_paired():
    """At 0.01: (0.8 - 0.5, 0.8 - 0.7) by seed, mean 0.2 and error 0.1; (0.1, 0.2, 0.3) by example,
    error 0.1 / sqrt(3); a blind row is at (1.1 + 0.8 + 0.6 + 2.1) / 4, 0.55 above."""
    grid = record("grid", 0.1, 2)
    lines = summary.pairs_of([rows(), grid, record("slopes", 0.02, 1)])
    line = {one["way"]: one for one in lines}["slopes"]
    assert line["regret"] == pytest.approx(0.2)
    assert line["error"] == pytest.approx(math.hypot(0.1, 0.1 / 3**0.5))
    assert line["relative"] == pytest.approx(0.2 / 0.55)
    assert line["inside"] is True and summary.wrong(line)  # In the set; regret beyond its error.
    best = {one["way"]: one for one in lines}["grid"]
    assert (best["regret"], best["relative"]) == (0.0, 0.0) and not summary.wrong(best)


def test_only_pairs_whose_set_leaves_out_half_of_the_rows_tell_a_rate():
    far = record("slopes", 1.0, 3)
    told = summary.pairs_of([rows(), record("grid", 0.1, 2, inside=(0, 1, 2)), far])
    assert {line["inside"] for line in told} == {None}
    told = summary.pairs_of([rows(), record("grid", 0.1, 2), far])
    assert [line["inside"] for line in told] == [True, False]
    assert summary.pairs_of([record("grid", 0.1, 2), far]) == []  # Nothing to judge by yet.


def test_a_way_that_chose_nothing_lies_outside_and_has_no_regret():
    nothing = record("halving", None, 0, test=[None, None], examples=[])
    (_, line) = summary.pairs_of([rows(), record("grid", 0.1, 2), nothing])
    assert line["inside"] is False and line["regret"] is None and summary.wrong(line)


def four_draws():
    """Slopes are inside in 2 of 4 draws, the rerun in 3; doubted in draws 0 and 3."""
    records = []
    for draw in range(4):
        slopes, doubts = ((0.1, 2), (1.0, 3))[draw % 2], ["why"] * (draw in (0, 3))
        other = (1.0, 3) if draw == 3 else (0.01, 1)
        seconds = 80.0 if draw == 0 else 8.0
        records += [rows(draw), record("grid", 0.1, 2, draw, seconds=seconds, trainings=40.0)]
        records += [record("rerun", *other, draw), record("slopes", *slopes, draw, doubts=doubts)]
    return summary.pairs_of(records)


def test_rates_costs_and_beliefs_are_those_counted_by_hand():
    numbers = {m.what: m for m in summary.numbers_of(four_draws())}
    assert numbers["slopes: in the set"] == Measurement("slopes: in the set", 0.5, 0.25, 4)
    assert numbers["rerun: in the set"].mean == 0.75
    # By draw: 1 - 1, 0 - 1, 1 - 1, 0 - 0.
    paired = numbers["slopes: rate - the rerun's"]
    assert paired.mean == -0.25 and paired.standard_error == pytest.approx(0.25)
    believed = numbers["slopes: rate where believed - the rerun's"]  # Draws 1 and 2.
    assert (believed.mean, believed.n) == (-0.5, 2)
    # Draw 0 compiled, and does not count.
    assert numbers["slopes: time / the grid's"][1:] == (0.5, 0.0, 3)
    assert numbers["slopes: trainings / the grid's"].mean == 0.25
    assert numbers["slopes: right to doubt"].mean == 0.5  # 0 is right inside, 3 outside.
    assert numbers["slopes: right to believe"].mean == 0.5


def test_a_claim_lacking_a_number_is_undecided_whatever_the_others_say():
    sure = Measurement("tune: rate where believed - the rerun's", 0.0, 0.001, 50)
    fast = Measurement("tune: time in trainings, one hidden layer", 1.9, 0.001, 50)
    deep = Measurement("tune: time in trainings, deep networks", 2.9, 0.001, 50)
    verdict = lambda *numbers: {c["name"]: c["verdict"] for c in summary.judged(numbers)}
    assert verdict(sure, fast)["tune"] == "undecided"
    assert verdict(sure, fast, deep)["tune"] == "holds"
    assert verdict(sure, fast, deep._replace(mean=3.4))["tune"] == "fails"


def test_the_first_line_says_what_is_not_reached():
    claims = [
        {"name": n, "verdict": v} for n, v in zip("abc", ("holds", "fails", "fails"), strict=True)
    ]
    assert page.first_line(claims) == "**Not reached: `b`, `c`.** **Reached: `a`.**"


def test_a_transfer_counts_where_its_interval_is_narrow_and_holds_the_best():
    one = {"known": True, "believed": True, "best": 1.0, "low": 0.6, "high": 2.0}
    one["beyond"] = ["rows", "width"]
    wide, missed = one | {"low": 0.4}, one | {"best": 3.0, "believed": False}
    none = one | {"low": None, "high": None, "believed": False}  # No law: anything is possible.
    told = [one, wide, missed, none, one | {"known": False}]
    numbers = {m.what: m for m in summary.transfer_numbers(told)}
    assert numbers["transfer: covers"][1:] == (0.75, pytest.approx((0.75 * 0.25 / 4) ** 0.5), 4)
    assert numbers["transfer: covers within a factor of 4"].mean == 0.25
    assert numbers["transfer: covers within a factor of 4, where believed"].mean == 0.5
    alone = [other | {"beyond": ["rows"]} for other in told[:3]]
    beside = {m.what: m for m in summary.transfer_numbers(told + alone)}
    assert {what: beside[what] for what in numbers} == numbers  # The claim is about both.
    assert beside["transfer, alone: covers"].mean == pytest.approx(2 / 3)


def test_what_is_alone_goes_beyond_in_that_size_and_is_small_in_the_other():
    found = {c.beyond: c.target for c in TRANSFER_CELLS.values() if "MNIST" in c.name}
    assert found == {
        ("rows", "width"): {"rows": 3200, "width": 256},
        ("rows",): {"rows": 3200, "width": 32},
        ("width",): {"rows": 400, "width": 256},
    }


def test_the_page_is_of_the_committed_numbers():
    facts = json.loads((page.HERE / "numbers.json").read_text(encoding="utf-8"))
    assert page.page_text(facts) == (page.HERE / "README.md").read_text(encoding="utf-8")
    ways = {line["way"] for line in facts["lines"]}
    figure = (page.HERE / "regret.svg").read_text(encoding="utf-8")
    assert ways >= {*WAYS, "tune", "TPE", "0.1"} and all(f">{way}<" in figure for way in ways)


def test_every_way_of_the_command_is_judged_and_the_cells_are_as_many_as_promised():
    assert set(WAYS) <= set(CHOOSERS) and {"rerun", "tune", "TPE", "random", "0.1"} <= set(CHOOSERS)
    assert len(CELLS) >= 12 and len(TRANSFER_CELLS) >= 4
    paths = [store.path_of(store.KEPT, job) for job in store.jobs(CELLS, CHOOSERS)]
    assert len(set(paths)) == len(paths)
    assert {cell.recipe.schedule for cell in (CELLS | TRANSFER_CELLS).values()} == {"warmup_cosine"}
    assert {cell.recipe.decay for cell in CELLS.values()} == {"decoupled", "coupled"}


def test_a_draw_has_its_own_split_and_wrong_labels_on_both_sides():
    cell = CELLS["digits 20 % wrong, MLP, decoupled"]
    clean = CELLS["digits clean, MLP, decoupled"]
    one, other, true = cell.draw(0), cell.draw(1), clean.draw(0)
    np.testing.assert_array_equal(one.choose.inputs, true.choose.inputs)
    assert (one.choose.inputs != other.choose.inputs).any()
    for part in ("choose", "test"):
        wrong = np.mean(getattr(one, part).targets != getattr(true, part).targets)
        assert abs(wrong - 0.2) < 4 * (0.16 / 600) ** 0.5
    rows = {row.tobytes() for row in np.asarray(true.choose.inputs)}
    assert sum(row.tobytes() in rows for row in np.asarray(true.test.inputs)) <= 2


def test_a_search_begins_at_the_timescale_rule_where_the_decay_has_one():
    """1 / (rate * steps an epoch * sqrt(epochs)), with 480 of the 600 examples in a fold."""
    decoupled, coupled = (CELLS[f"digits clean, MLP, {kind}"] for kind in ("decoupled", "coupled"))
    expected = 1 / (0.01 * 8 * 30**0.5)
    assert start_of(decoupled, 480)["strength"] == pytest.approx(expected)
    assert start_of(coupled, 480) == {"learning_rate": 0.01}


def test_a_transfer_is_told_by_its_small_searches_and_judged_at_the_large_one(monkeypatch):
    """Of a best strength planted at sqrt(width / rows), in searches that are not trained."""
    (cell,) = tiny_transfer().values()
    cell = dataclasses.replace(cell, num_strengths=12, rows=(8, 16, 32))
    asked = []

    def search(cell, data, rows, width, draw, seeds):
        asked.append((rows, width, seeds))
        grid = {"strength": np.geomspace(*cell.strengths, cell.num_strengths)}
        off = np.log(grid["strength"] / (width / rows) ** 0.5)[:, None, None]
        noise = np.random.default_rng(rows * width).normal(size=(12, 3, 2))
        return Scores(grid, {"loss": 0.1 * off**2 + 0.002 * noise})

    monkeypatch.setattr(transfer, "search", search)
    told = transfer.measure_transfer(cell, 0)
    assert asked[:-1] == [(rows, width, 1) for rows in (8, 16, 32) for width in (2, 4)]
    assert asked[-1] == (256, 32, 1)
    truth = (32 / 256) ** 0.5
    assert told["known"] and abs(np.log(told["best"] / truth)) < 0.2
    assert told["low"] < truth < told["high"] and abs(np.log(told["predicted"] / truth)) < 0.3
    assert told["small_trainings"] == 6 * 12 * 2


class Stop(Exception):
    """As if the run were killed."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_tiny_cells_go_through_all_ways_and_a_killed_run_goes_on(tmp_path):
    kept, out, said = tmp_path / "kept", tmp_path / "page", []
    words = ["--tiny", "--hours", "1", "--kept", str(kept), "--out", str(out)]
    words += ["--cells", "ridge", "diabetes"]

    def stop_at_the_third(line):
        said.append(line)
        if len(list(kept.rglob("*.json"))) == 3:
            raise Stop

    with warnings.catch_warnings(), jax.debug_nans(False), jax.numpy_rank_promotion("allow"):
        warnings.simplefilter("ignore")  # Another library's warnings are its own.
        with pytest.raises(Stop):
            command.main(words, stop_at_the_third)
        before = {path: path.stat().st_mtime_ns for path in kept.rglob("*.json")}
        assert len(before) == 3 and not list(kept.rglob("*.part"))
        command.main(words, said.append)
    after = {path: path.stat().st_mtime_ns for path in kept.rglob("*.json")}
    assert {path: after[path] for path in before} == before
    there = [name for name, way in CHOOSERS.items() if not way.missing]
    assert len(after) == 2 * (1 + len(there))
    facts = json.loads((out / "numbers.json").read_text())
    assert sorted({line["way"] for line in facts["lines"]}) == sorted(there)
    grid = [line for line in facts["lines"] if line["way"] == "grid"]
    assert [line["trainings"] for line in grid] == [12, 12]  # 6 rows, 2 folds, 1 seed.
    assert {line["trainings"] for line in facts["lines"] if line["way"] == "0.1"} == {0}
    tuned = [line for line in facts["lines"] if line["way"] == "tune"]
    assert all(line["time_in_trainings"] > 0 for line in tuned)
    text = (out / "README.md").read_text()
    assert "From 2 of 2 (cell, draw) pairs and 0 of 1 draws of the transfer" in text
    assert page.page_text(facts) == text and (out / "regret.svg").exists()
    # What stands under other settings is measured again, and nothing else.
    path = store.path_of(kept, ("ridge", 0, "0.1"))
    path.write_text(path.read_text().replace('"num_refits": "2"', '"num_refits": "3"'))
    cells = tiny_cells()
    assert store.go_on(store.jobs(cells, CHOOSERS), cells, kept, say=said.append) == 1
    # No time is left: nothing is begun.
    path.unlink()
    assert store.go_on(store.jobs(cells, CHOOSERS), cells, kept, until=0, say=said.append) == 0
