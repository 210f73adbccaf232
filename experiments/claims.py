"""Claims as rules over numbers: p-values, verdicts, and Holm's correction over all of a table.

A claim is a sentence, and a rule that says which numbers decide it. Its verdict is a function of
those numbers alone, so that it can be computed again without training anything.

A number is a mean over n independent runs. Against a bound it has two p-values by Student's t of
n - 1 degrees of freedom, for lying above and for lying below, each doubled: one below 0.05 means
that the 95 % interval excludes the bound. A count has no error and the p-values 0 and 1. A share
of n independent events may be judged by the binomial distribution instead (`share_above`,
`share_below`), whose p-values are exact where the share is small, or 0: the interval is that of
Clopper and Pearson.

Several numbers make one claim by *at least u of k* (all: u = k; any: u = 1), with the p-value
`(k - u + 1) p_(u)` over the sorted p (Benjamini & Heller 2008, partial conjunction): the largest
of all (intersection-union), or k times the smallest (Bonferroni). What speaks against it is that
at least k - u + 1 of the opposites hold.
"""

import fnmatch
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from scipy.special import bdtr, bdtrc, stdtr, stdtrit

from wdjax.tables import Estimate, format_number

LEVEL = 0.05
VERDICTS = ("holds", "fails", "undecided")


class Measurement(NamedTuple):
    """One number found; `standard_error` is None where it is an exact count (n = 1)."""

    what: str
    mean: float
    standard_error: float | None
    n: int

    def __str__(self) -> str:
        if self.standard_error is None:
            return f"{self.what} {Estimate(self.mean, math.nan)} (exact)"
        return f"{self.what} {Estimate(self.mean, self.standard_error)} (n={self.n})"

    def p_above(self, bound: float = 0.0) -> float:
        """One-sided p-value of the mean lying above the bound, by Student's t of n - 1 degrees.

        Where all n numbers are equal, t has no scale: then that of the sign test, `2 ** -n`.
        """
        if self.standard_error is None:
            return float(self.mean <= bound)
        if self.standard_error == 0:
            return 0.5**self.n if self.mean > bound else 1.0
        return float(stdtr(self.n - 1, (bound - self.mean) / self.standard_error))

    def p_below(self, bound: float = 0.0) -> float:
        """As `p_above`, of lying below."""
        return self._replace(mean=-self.mean).p_above(-bound)

    def share_p_values(self, bound: float) -> tuple[float, float]:
        """One-sided p-values of a share lying above the bound, and below it.

            P(X >= k), P(X <= k);  X ~ Binomial(n, bound), k = n * share

        Raises:
          ValueError: where the mean is no share of n events.
        """
        k = round(self.mean * self.n)
        if not 0 <= k <= self.n or abs(self.mean * self.n - k) > 1e-6 * self.n:
            raise ValueError(
                f"{self.what!r} is {self.mean:g}, no share of n = {self.n} events: judge it by "
                "`above` or `below`."
            )
        more = 1.0 if k == 0 else float(bdtrc(k - 1, self.n, bound))
        less = float(bdtr(k, self.n, bound))
        # Never 0, which says that nothing is random.
        return max(more, sys.float_info.min), max(less, sys.float_info.min)

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """The interval of Student's t that misses the mean in a share `level` of experiments."""
        if self.standard_error is None:
            return self.mean, self.mean
        half = float(stdtrit(self.n - 1, 1 - level / 2)) * self.standard_error
        return self.mean - half, self.mean + half

    def clearly_above(self, bound: float = 0.0) -> bool:
        """Whether the mean lies above the bound, at the two-sided level of 5 %."""
        return 2 * self.p_above(bound) < LEVEL

    def clearly_below(self, bound: float = 0.0) -> bool:
        """Whether the mean lies below the bound, at the two-sided level of 5 %."""
        return 2 * self.p_below(bound) < LEVEL


def exact(what: str, value: float) -> Measurement:
    """A count, which has no error."""
    return Measurement(what, float(value), None, 1)


class Test(NamedTuple):
    """One number on one side of its bound, or between two."""

    what: str
    """The number's name, or a pattern with `*`: a group then takes every number it names."""
    side: str
    bounds: tuple[float, ...]
    of: str = ""
    """The bound is a share of the mean of this number."""


class Group(NamedTuple):
    """At least so many of its parts."""

    at_least: int | str
    """A number, `"all"`, `"any"` or `"most"` (more than half)."""
    parts: tuple


Rule = Test | Group


def above(what: str, bound: float = 0.0, of: str = "") -> Test:
    """The number lies above the bound."""
    return Test(what, "above", (bound,), of)


def below(what: str, bound: float = 0.0, of: str = "") -> Test:
    """The number lies below the bound."""
    return Test(what, "below", (bound,), of)


def share_above(what: str, bound: float) -> Test:
    """The share of n independent events lies above the bound, by the binomial distribution."""
    return Test(what, "share above", (bound,))


def share_below(what: str, bound: float) -> Test:
    """The share of n independent events lies below the bound, by the binomial distribution."""
    return Test(what, "share below", (bound,))


def within(what: str, low: float, high: float) -> Test:
    """Equivalence: the number's whole interval lies between the bounds."""
    return Test(what, "within", (low, high))


def differs(what: str, bound: float = 0.0) -> Test:
    """The number differs from the bound, on whichever side: nothing speaks against that."""
    return Test(what, "differs", (bound,))


def all_of(*parts: Rule) -> Group:
    """Every part."""
    return Group("all", parts)


def any_of(*parts: Rule) -> Group:
    """One part at least."""
    return Group("any", parts)


def most_of(*parts: Rule) -> Group:
    """More than half of the parts."""
    return Group("most", parts)


def at_least(number: int, *parts: Rule) -> Group:
    """So many of the parts."""
    return Group(number, parts)


@dataclass(frozen=True)
class Claim:
    """A sentence, the rule that decides it, and what is so where it fails."""

    name: str
    text: str
    rule: Rule
    fails: str


def matching(pattern: str, numbers: Iterable[Measurement]) -> list[Measurement]:
    """The numbers that a name or a pattern names."""
    return [m for m in numbers if m.what == pattern or fnmatch.fnmatchcase(m.what, pattern)]


def tests(rule: Rule) -> list[Test]:
    """The single tests of a rule."""
    if isinstance(rule, Test):
        return [rule]
    return [test for part in rule.parts for test in tests(part)]


def judged(rule: Rule, numbers: Sequence[Measurement]) -> list[Measurement]:
    """The numbers that a rule is about, each once, in its order."""
    named = [m for test in tests(rule) for m in matching(test.what, numbers)]
    return list(dict.fromkeys(named))


def p_values(rule: Rule, numbers: Sequence[Measurement]) -> tuple[float, float]:
    """`(p of the rule, p of its opposite)`, two-sided: at most one of them is below 0.05."""
    if isinstance(rule, Test):
        rule = Group("all", (rule,))
    both = [pair for part in rule.parts for pair in _pairs(part, numbers)]
    if not both:
        return 1.0, 1.0
    k = len(both)
    u = {"all": k, "any": 1, "most": k // 2 + 1}.get(rule.at_least, rule.at_least)
    hold, fail = (sorted(ps) for ps in zip(*both, strict=True))
    return _partial(hold, u), _partial(fail, k - u + 1)


def _partial(sorted_p: list[float], u: int) -> float:
    """The p-value of at least u true ones among k."""
    return min(1.0, (len(sorted_p) - u + 1) * sorted_p[u - 1])


def _pairs(part: Rule, numbers: Sequence[Measurement]) -> list[tuple[float, float]]:
    if isinstance(part, Group):
        return [p_values(part, numbers)]
    return [_of_one(part, m, numbers) for m in matching(part.what, numbers)]


def _of_one(test: Test, m: Measurement, numbers: Sequence[Measurement]) -> tuple[float, float]:
    scale = matching(test.of, numbers)[0].mean if test.of else 1.0
    low, high = test.bounds[0] * scale, test.bounds[-1] * scale
    if m.standard_error is None:  # A count holds or fails: nothing about it is random.
        holds = {
            "above": m.mean > low,
            "below": m.mean < high,
            "within": low < m.mean < high,
            "differs": m.mean != low,
        }[test.side]
        return (0.0, 1.0) if holds else (1.0, 0.0)
    two_sided = lambda p: min(1.0, 2 * p)
    if test.side in ("share above", "share below"):
        more, less = map(two_sided, m.share_p_values(low))
        return (more, less) if test.side == "share above" else (less, more)
    if test.side == "above":
        return two_sided(m.p_above(low)), two_sided(m.p_below(low))
    if test.side == "below":
        return two_sided(m.p_below(high)), two_sided(m.p_above(high))
    if test.side == "differs":
        return two_sided(min(m.p_above(low), m.p_below(high))), 1.0
    inside = max(m.p_above(low), m.p_below(high))
    outside = min(m.p_below(low), m.p_above(high))
    return two_sided(inside), two_sided(outside)


def verdict_of(p_holds: float, p_fails: float) -> str:
    """`holds` or `fails` where that p-value is below 0.05, else `undecided`."""
    return "holds" if p_holds < LEVEL else "fails" if p_fails < LEVEL else "undecided"


def finding(claim: Claim, verdict: str) -> str:
    """The sentence that a verdict makes of a claim."""
    return {"holds": claim.text, "fails": claim.fails}.get(verdict, f"Undecided: {claim.text}")


def judge(claim: Claim, numbers: Sequence[Measurement]) -> dict[str, Any]:
    """A claim against the numbers, as `results.json` holds it."""
    ps = p_values(claim.rule, numbers)
    verdict = verdict_of(*ps)
    return {
        "name": claim.name,
        "text": claim.text,
        "rule": rule_text(claim.rule),
        "verdict": verdict,
        "p": min(ps),
        "finding": finding(claim, verdict),
        "numbers": [m._asdict() for m in judged(claim.rule, numbers)],
    }


def rule_text(rule: Rule) -> str:
    """A rule in words."""
    if isinstance(rule, Group):
        word = rule.at_least if isinstance(rule.at_least, str) else f"at least {rule.at_least}"
        return f"{word} of ({', '.join(map(rule_text, rule.parts))})"
    bounds = [format_number(float(b)) for b in rule.bounds]
    words = {"within": "between", "differs": "different from"}
    words |= {"share above": "as a share above", "share below": "as a share below"}
    side = words.get(rule.side, rule.side)
    of = f" times `{rule.of}`" if rule.of else ""
    return f"`{rule.what}` {side} {' and '.join(bounds)}{of}"


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (1979): sorted, times m, m - 1, ..., 1, at most 1, never falling.

    A claim whose adjusted p-value is below 0.05 can be kept together with all other such claims:
    the probability that any of them is wrong is at most 5 %. An exact count (p = 0) changes
    nothing for the others.
    """
    adjusted, largest = [0.0] * len(p), 0.0
    for place, at in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min(1.0, float((len(p) - place) * p[at])))
        adjusted[at] = largest
    return adjusted
