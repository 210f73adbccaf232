"""The intervals on simulated searches: false claims, power and coverage (`experiments/verdict`)."""

import json

import jax
import numpy as np
import pytest

from experiments import common
from experiments.verdict import digits
from experiments.verdict.demands import judged
from experiments.verdict.settings import PARTS
from experiments.verdict.simulate import Setting
from experiments.verdict.store import rates
from wdjax.selection.scores import HeldOut, Scores

RESULTS = common.ROOT / "verdict" / "results.json"


def rows_of(part, settings, searches):
    return {
        part: [
            {
                "name": setting.name,
                "searches": searches,
                "rates": rates(part, setting, searches),
                "setting": setting._asdict(),
            }
            for setting in settings
        ]
    }


def met(parts):
    """Whether every demand is met, within two standard errors; the message names what is not."""
    total, missed = judged(parts)
    assert total
    assert not [one for one in missed if not one["known"]]


# One run; runs as strong as the examples and uncorrelated over the rows; groups. A method that
# takes runs or groups for nothing fails these, as the second test shows of two.
HARD = {
    "grid": [Setting(5, seeds=1, runs=1.0), Setting(5, seeds=3, runs=1.0, shared=0.9)],
    "groups": [Setting(2, groups=300)],
}


@pytest.fixture(scope="module")
def hard():
    return {
        part: rows_of(part, settings, 200 if part == "groups" else 1000)[part]
        for part, settings in HARD.items()
    }


def test_false_claims_stay_below_five_percent_where_runs_and_groups_matter(hard):
    met(hard)


def test_what_ignores_runs_or_groups_claims_falsely(hard):
    """So the test above would see it: 5 % and two standard errors are 6 and 8 %."""
    for row in hard["grid"]:
        assert row["rates"]["false, examples alone"] > 0.10
    assert hard["groups"][0]["rates"]["false, groups ignored"] > 0.15


def test_a_search_on_digits_counts_what_its_intervals_say():
    """Of five strengths: nothing, noise, and one that is better on every example."""
    rng = np.random.default_rng(0)

    def search(shift):
        each = rng.standard_normal((5, 5, 3, 100))
        each[1] = each[0]
        each[4] -= shift
        parts = np.arange(500).reshape(5, 100)
        held_out = HeldOut({"loss": each}, parts, np.ones((5, 100)), None, np.full(5, 400))
        return Scores({"strength": np.arange(5.0)}, {"loss": each.mean(3)}, held_out)

    found = digits.claims(search, [0.0, 3.0])
    assert found.any_row.tolist() == [False, True]
    assert found.chosen.tolist() == [False, True]
    assert found.zero_left_out.tolist() == [False, True]
    assert found.one_standard_error[1] and found.folds_alone[1]
    assert found.share_identical.tolist() == [0.25, 0.25]


def test_the_page_holds_what_was_demanded():
    """Of the committed results: none missed among grid, power, sets and groups, and at most 8 % on
    digits at strengths that do nothing, by two standard errors."""
    values = json.loads(RESULTS.read_text(encoding="utf-8"))["values"]
    core = ("grid", "power", "sets", "groups", "0/1 losses", "no variance")
    assert not [one for one in values["missed"] if not one["known"] and one["part"] in core]
    claimed = np.array(values["digits"]["any_row"])
    assert len(claimed) >= 200
    assert claimed.mean() <= 0.08 + 2 * (0.08 * 0.92 / len(claimed)) ** 0.5


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", [name for name in PARTS if name not in ("weights", "limits")])
def test_what_is_demanded_is_met(part):
    """Every fourth setting of each part of the page, 1,500 searches, fewer where rows are many."""
    settings = PARTS[part]()[::4]
    parts = {part: []}
    for setting in settings:
        searches = 1500 if setting.rows < 14 else 600 if setting.rows < 40 else 200
        searches = 400 if part == "test parts" else searches
        parts[part] += rows_of(part, [setting], searches)[part]
    if part == "test parts":
        # Skewed losses on few test examples are told of, not held: the page has the numbers.
        parts[part] = [r for r in parts[part] if r["setting"]["shape"] not in ("right", "left")]
    met(parts)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_digits_at_strengths_that_do_nothing_are_rarely_told_apart():
    """Six of the page's draws: the driver runs, its rows differ, and at most two are claimed."""
    found = digits.claims(digits.search, map(jax.random.key, range(6)))
    assert found.share_identical.max() < 1
    assert found.any_row.sum() <= 2
