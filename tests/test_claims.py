"""Claims: p-values, rules over several numbers, Holm's correction, equivalence, the sentences."""

import importlib
import json
import math

import numpy as np
import pytest
from scipy import stats

from experiments import claims, common, table
from experiments.claims import (
    Claim,
    Measurement,
    above,
    all_of,
    any_of,
    at_least,
    below,
    differs,
    most_of,
    share_above,
    share_below,
    within,
)

FOLDERS = sorted(path.parent for path in common.ROOT.glob("*/results.json"))
VALUES = [0.3, 1.1, -0.2, 0.9, 0.6]


def number(what, mean, error, n=5):
    return Measurement(what, mean, error, n)


def p_for(rule, *numbers):
    return claims.p_values(rule, numbers)[0]


# One number against its bound.


@pytest.mark.parametrize("bound", [0.0, 0.2, 1.0])
def test_the_p_value_of_a_number_is_that_of_students_t_in_scipy(bound):
    found = common.over_seeds("x", VALUES)
    reference = stats.ttest_1samp(VALUES, bound).pvalue
    side = above if found.mean > bound else below
    np.testing.assert_allclose(p_for(side("x", bound), found), reference, rtol=1e-10)
    assert p_for(differs("x", bound), found) == pytest.approx(reference, rel=1e-10)


def test_two_standard_errors_at_five_runs_are_not_clear():
    """t = 2 of 4 degrees of freedom: p = 0.116, so that the 95 % interval holds zero."""
    found = number("x", 2.0, 1.0)
    assert p_for(above("x", 0), found) == pytest.approx(0.1161, abs=1e-4)
    assert not found.clearly_above(0.0)
    assert claims.verdict_of(*claims.p_values(above("x", 0), [found])) == "undecided"


def test_the_interval_is_that_of_students_t_in_scipy():
    found = common.over_seeds("x", VALUES)
    expected = stats.t.interval(0.95, 4, loc=np.mean(VALUES), scale=stats.sem(VALUES))
    np.testing.assert_allclose(found.interval(), expected, rtol=1e-10)
    assert claims.exact("x", 3).interval() == (3.0, 3.0)


@pytest.mark.parametrize("n", [2, 5, 10])
def test_equal_numbers_have_the_p_value_of_the_sign_test(n):
    """All n on one side of the bound: 2 / 2^n; t has no scale there and would say 0."""
    found = number("x", 0.0, 0.0, n)
    assert p_for(below("x", 0.1), found) == pytest.approx(2 * 0.5**n)
    assert p_for(above("x", 0), found) == p_for(below("x", 0), found) == 1.0


def test_a_count_needs_no_p_value():
    found = claims.exact("bytes", 4)
    assert claims.p_values(above("bytes", 8), [found]) == (1.0, 0.0)
    assert claims.p_values(below("bytes", 8), [found]) == (0.0, 1.0)


# Shares.


@pytest.mark.parametrize("count, n, bound", [(0, 200, 0.08), (16, 200, 0.05), (5, 40, 0.05)])
def test_the_p_values_of_a_share_are_those_of_the_binomial_test_in_scipy(count, n, bound):
    """Also of 0 events, which have no standard error."""
    share = count / n
    found = number("x", share, (share * (1 - share) / n) ** 0.5, n)
    sides = [stats.binomtest(count, n, bound, side).pvalue for side in ("greater", "less")]
    more, less = (min(1.0, 2 * p) for p in sides)
    assert claims.p_values(share_above("x", bound), [found]) == pytest.approx((more, less))
    assert claims.p_values(share_below("x", bound), [found]) == pytest.approx((less, more))
    low, high = stats.binomtest(count, n).proportion_ci(0.95, "exact")
    assert (p_for(share_above("x", bound), found) < claims.LEVEL) == (low > bound)
    assert (p_for(share_below("x", bound), found) < claims.LEVEL) == (high < bound)


def test_what_is_no_share_of_its_events_is_refused():
    with pytest.raises(ValueError, match="'x' is 0.015, no share of n = 10 events"):
        p_for(share_below("x", 0.05), number("x", 0.015, 0.001, 10))


# Equivalence.


def test_a_difference_that_is_merely_not_found_is_no_equivalence():
    """0.998 +- 0.039 does not exclude 5 %: the interval ends beyond the bound."""
    wide, narrow = number("ratio", 0.998, 0.039, 30), number("ratio", 0.998, 0.01, 30)
    rule = within("ratio", 0.95, 1.05)
    assert wide.interval()[1] > 1.05 and narrow.interval()[1] < 1.05
    verdicts = [claims.verdict_of(*claims.p_values(rule, [x])) for x in (wide, narrow)]
    assert verdicts == ["undecided", "holds"]
    far = number("ratio", 1.3, 0.04, 30)
    assert claims.verdict_of(*claims.p_values(rule, [far])) == "fails"


@pytest.mark.parametrize("mean", np.linspace(-1, 1, 41))
def test_an_equivalence_holds_where_its_interval_lies_inside_the_bound(mean):
    found = number("x", float(mean), 0.1, 8)
    low, high = found.interval()
    holds = p_for(within("x", -0.5, 0.5), found) < claims.LEVEL
    assert holds == (low > -0.5 and high < 0.5)


# Several numbers.

A, B, C = number("a", 3.0, 1.0, 20), number("b", 2.5, 1.0, 20), number("c", -0.5, 1.0, 20)


def by_hand(mean):
    return 2 * stats.t.sf(mean, 19)


def test_all_of_has_the_largest_p_and_any_of_the_smallest_times_their_number():
    a, b, c = by_hand(3.0), by_hand(2.5), 1.0  # c lies below: 2 * 0.69, at most 1
    assert p_for(all_of(above("a"), above("b")), A, B) == pytest.approx(b)
    assert p_for(all_of(above("a"), above("b"), above("c")), A, B, C) == c
    assert p_for(any_of(above("a"), above("b"), above("c")), A, B, C) == pytest.approx(3 * a)


def test_at_least_two_of_three_has_twice_the_second_smallest():
    """Partial conjunction (Benjamini & Heller 2008): (k - u + 1) p_(u)."""
    rule = at_least(2, above("a"), above("b"), above("c"))
    assert p_for(rule, A, B, C) == pytest.approx(2 * by_hand(2.5))
    assert p_for(most_of(above("?")), A, B, C) == pytest.approx(2 * by_hand(2.5))


def test_all_of_fails_where_one_number_clearly_says_the_opposite():
    """Its opposite is any of the opposites: the smallest p times their number."""
    low = number("c", -4.0, 1.0, 20)
    _, against = claims.p_values(all_of(above("a"), above("c")), [A, low])
    assert against == pytest.approx(2 * by_hand(4.0))


def test_rules_nest_and_patterns_take_every_number_they_name():
    rule = all_of(any_of(above("a"), above("c")), above("b"))
    assert p_for(rule, A, B, C) == pytest.approx(max(2 * by_hand(3.0), by_hand(2.5)))
    assert p_for(all_of(above("*")), A, B, C) == 1.0
    assert [m.what for m in claims.judged(rule, [A, B, C])] == ["a", "c", "b"]


def test_a_rule_about_no_number_decides_nothing():
    assert claims.p_values(all_of(above("nothing such")), [A]) == (1.0, 1.0)


def test_a_bound_may_be_a_share_of_another_number():
    rule = above("a", 0.1, of="b")
    expected = 2 * stats.t.sf(3.0 - 0.25, 19)
    assert p_for(rule, A, B) == pytest.approx(expected)


def test_random_rules_of_null_numbers_reject_in_five_percent_at_most():
    """Any of three and all of three, at the border of their nulls, 2,000 times."""
    rng = np.random.default_rng(0)
    names, rejected = "abc", {"any": 0, "all": 0}
    for _ in range(2000):
        rows = rng.normal(size=(3, 6))
        drawn = [common.over_seeds(n, row) for n, row in zip(names, rows, strict=True)]
        for word, rule in (("any", any_of(above("?"))), ("all", all_of(above("?")))):
            rejected[word] += min(claims.p_values(rule, drawn)) < 0.05
    bound = 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)
    assert rejected["any"] / 2000 < bound and rejected["all"] / 2000 < bound
    assert rejected["any"] > 0  # It can reject.


# Holm.


def test_holm_by_hand():
    """Four p-values, sorted .005 .01 .03 .04: times 4, 3, 2, 1, never falling."""
    adjusted = claims.holm([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(adjusted, [0.03, 0.06, 0.06, 0.02])


def test_holm_rejects_what_its_step_down_procedure_rejects():
    """Against the procedure of Holm 1979: stop at the first p above level / (m - i)."""
    rng = np.random.default_rng(1)
    for _ in range(200):
        p = rng.uniform(size=7) ** 3
        rejected = np.zeros(7, bool)
        for i, at in enumerate(np.argsort(p)):
            if p[at] >= 0.05 / (7 - i):
                break
            rejected[at] = True
        np.testing.assert_array_equal(np.array(claims.holm(p)) < 0.05, rejected)


def test_a_count_leaves_the_correction_of_the_others_alone():
    assert claims.holm([0.0, 0.01, 0.02])[1:] == claims.holm([0.01, 0.02])


# The claims of the table.


def committed():
    """`[(folder, claim, numbers)]` of every committed result."""
    for folder in FOLDERS:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        module = importlib.import_module(f"experiments.{folder.name}.run")
        for claim in module.CLAIMS:
            yield folder, claim, common.numbers_of(results, module)


def test_every_claim_has_a_name_a_sentence_and_numbers_that_are_there():
    rows = list(committed())
    names = [claim.name for _, claim, _ in rows]
    assert len(set(names)) == len(names) > 40
    texts = [sentence for _, claim, _ in rows for sentence in (claim.text, claim.fails)]
    assert len(set(texts)) == len(texts)
    assert all(text.endswith(".") and text[0].isupper() for text in texts)
    for folder, claim, numbers in rows:
        rows_told = table.rows_of(folder.name)
        assert not rows_told or claim.name.split("-")[0] in rows_told, claim.name
        for test in claims.tests(claim.rule):
            assert claims.matching(test.what, numbers), (claim.name, test.what)
            assert not test.of or len(claims.matching(test.of, numbers)) == 1


def test_every_verdict_of_the_results_follows_from_their_numbers():
    """Recomputed here by scipy: t, or the binomial test, for the claims of one number."""
    checked = shares = 0
    for folder, claim, numbers in committed():
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        told = next(one for one in results["claims"] if one["name"] == claim.name)
        rule, of = claim.rule, claims.matching(getattr(claim.rule, "what", ""), numbers)
        if isinstance(rule, claims.Group) or rule.side == "within" or rule.of or len(of) != 1:
            continue
        (one,) = of
        if rule.side.startswith("share"):
            count, shares = round(one.mean * one.n), shares + 1
            sides = ("greater", "less")
            more, less = (stats.binomtest(count, one.n, *rule.bounds, s).pvalue for s in sides)
            assert told["p"] == pytest.approx(min(1, 2 * min(more, less)), rel=1e-6)
            continue
        if not one.standard_error:
            continue
        t = (one.mean - rule.bounds[0]) / one.standard_error
        p = 2 * stats.t.sf(abs(t), one.n - 1)
        assert told["p"] == pytest.approx(p, rel=1e-6)
        right_side = (t > 0) == (rule.side == "above")
        expected = "undecided" if p >= 0.05 else "holds" if right_side else "fails"
        assert told["verdict"] == expected, claim.name
        checked += 1
    assert checked >= 15 and shares >= 1


def test_every_claim_of_equivalence_that_holds_has_its_interval_inside_the_bound():
    seen = 0
    for _, claim, numbers in committed():
        rule = claim.rule
        if isinstance(rule, claims.Group) or rule.side != "within":
            continue
        seen += 1
        (one,) = claims.matching(rule.what, numbers)
        low, high = one.interval()
        inside = rule.bounds[0] < low and high < rule.bounds[1]
        assert inside == (claims.verdict_of(*claims.p_values(rule, numbers)) == "holds")
    assert seen >= 2


def test_the_table_prints_every_claim_with_both_verdicts():
    rows = table.claim_rows()
    text = table.table_text()
    for row in rows:
        assert row["text"].replace("|", "/") in text
        assert {row["verdict"], row["holm_verdict"]} <= {"holds", "fails", "undecided"}
        assert row["holm_p"] >= row["p"]
        assert row["verdict"] != "undecided" or row["holm_verdict"] == "undecided"
    apart = ({"verdict"}, {"fine_tuning"})
    articles = {row["folder"] for row in rows} - set().union(*apart)
    for folders in (articles, *apart):
        family = [row for row in rows if row["folder"] in folders]
        adjusted = claims.holm([row["p"] for row in family])
        assert [row["holm_p"] for row in family] == adjusted
    assert any(r["verdict"] != r["holm_verdict"] for r in rows)


def test_a_claim_tells_its_rule_in_words():
    rule = any_of(all_of(above("a"), below("b", 2.0)), within("c", -1, 1), differs("d"))
    told = claims.rule_text(rule)
    assert told == (
        "any of (all of (`a` above 0, `b` below 2), `c` between -1 and 1, `d` different from 0)"
    )


def test_a_claim_says_what_is_so_when_it_fails():
    claim = Claim("Q1-x", "It grows.", above("a"), "It shrinks.")
    told = [claims.judge(claim, [number("a", m, 1.0)])["finding"] for m in (9.0, -9.0, 0.0)]
    assert told == ["It grows.", "It shrinks.", "Undecided: It grows."]
