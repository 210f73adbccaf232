"""What a search may say of zero, and how often it is wrong.

Claim: a search over strengths claims a gain where there is none in at most 5 % of searches, and
  its intervals hold together in 95 %, with as much power as the examples allow (S9, S10).
Source: the recipe of `wdjax.selection.evidence`; Lei 2020, arXiv:1703.07904; Bayle et al. 2020,
  arXiv:2007.12671; Nadeau & Bengio 2003; Banerjee 1960; Hall 1992; Bates et al. 2021.
Would change: verdict-false: all of (`grid: false claims (*` as a share below 0.05);
  verdict-old-rule: all of (`grid: false claims by one standard error over folds (*` as a share
  above 0.05); verdict-false-seeds: all of (`power: false claims (*` as a share below 0.05);
  verdict-shapes: all of (`shapes: false claims (*` as a share below 0.05); verdict-errors: all of
  (`0/1 losses: false claims (*` as a share below 0.05); verdict-no-variance: all of (`no
  variance: false claims (*` as a share below 0.05); verdict-groups: all of (`groups: false claims
  (*` as a share below 0.05); verdict-groups-ignored: all of (`groups: false claims if ignored (*`
  as a share above 0.05); verdict-few-folds: all of (`few folds: false claims (*` as a share below
  0.05); verdict-weights: all of (`weights: false claims (*` as a share below 0.05);
  verdict-few-examples: all of (`limits: false claims (*` as a share below 0.05);
  verdict-coverage: all of (`grid: coverage of the lowest row, gain *` as a share above 0.95,
  `grid: coverage of the one standard error row, gain *` as a share above 0.95); verdict-power:
  all of (`grid: power at 3 seeds or more (*` as a share above 0.9, `power: power at 3 seeds or
  more (*` as a share above 0.9); verdict-power-two-seeds: all of (`power: power at 2 seeds (rows
  14,*` as a share above 0.85, `power: power at 2 seeds (rows 40,*` as a share above 0.7);
  verdict-power-one-seed: all of (`power: power at 1 seed (rows 14,*` as a share below 0.85,
  `power: power at 1 seed (rows 40,*` as a share below 0.85); verdict-power-skewed: all of
  (`shapes: power at 3 seeds or more (*` as a share above 0.9); verdict-set: all of (`sets: the
  best is in the set (*` as a share above 0.95); verdict-test-part: all of (`test parts: coverage
  (*` as a share above 0.95); verdict-digits: `digits: some strength that does nothing is told
  from zero` as a share below 0.08; verdict-digits-choose: all of (`digits: the chosen strength,
  which does nothing, is said *` as a share below 0.08, `digits: zero is left out of the set of
  the best` as a share below 0.08); verdict-digits-old-rule: `digits: the lowest is one standard
  error over folds below zero` as a share above 0.08; verdict-demands: `rates demanded and missed
  by two standard errors` below 1.
Note: each number is the share of n simulated searches of one setting, or of n draws of digits; a
  claim over settings holds where every one of them lies on its side of the bound, by the binomial
  distribution. A share whose true value is the bound itself stays undecided, however many
  searches there are. `values.missed` of the results names every rate that is missed by two
  standard errors: false claims and coverage on five folds whose training sets differ as much as
  the examples do; the same, and false claims by folds alone, where the heavy examples are the
  noisy ones and losses are skewed; the power of 14 rows whose gains are skewed to the left; and
  the coverage of 90 test examples of skewed loss at one seed. Settings and draws that are done
  are kept under `runs/`, so the time below is that of the last run; all of it takes about half an
  hour of one core.
Run: `python -m experiments verdict` (0 s on 1 CPU devices, jax 0.10.2)
Found: Where no strength does anything, a search of 300 examples on five or ten folds claims that
  some strength helps or hurts in at most 5 % of searches, at 2 to 40 rows and one or three seeds
  (verdict-false holds, p = 0.0046). One standard error over folds, taken for a difference, claims
  falsely in more than 5 % of all these searches (verdict-old-rule holds, p < 0.0001). Undecided:
  Of 500 examples on five folds, at one to five seeds, at most 5 % of searches claim falsely
  (verdict-false-seeds undecided, p = 1). With heavy tails, or the skewness of digits' losses
  either way, at most 5 % of searches of 300 to 1500 examples claim falsely (verdict-shapes holds,
  p = 0.011). Of 0/1 losses, errors of 2 to 20 %, at most 5 % of searches claim falsely
  (verdict-errors holds, p = 0.023). Undecided: Where runs or examples have no variance at all, at
  most 5 % of searches claim falsely (verdict-no-variance undecided, p = 1). Where examples come
  in groups and the search is told of them, it claims falsely in at most 5 % (verdict-groups
  holds, p < 0.0001). Where it is not told of the groups, it claims falsely in more than 5 % at
  every size (verdict-groups-ignored holds, p < 0.0001). On five folds whose training sets differ
  as much as the examples do, a search claims falsely in more than 5 % (verdict-few-folds fails, p
  < 0.0001). With unequal weights some search claims falsely in more than 5 %: one whose heavy
  examples are the noisy ones, of skewed loss (verdict-weights fails, p < 0.0001). Of 100
  examples, skewed or not, at most 5 % of searches claim falsely (verdict-few-examples holds, p =
  0.00093). The interval of the row chosen, by the lowest loss or within one standard error of it,
  holds the true gain in at least 95 % of searches of 300 examples, at no gain and at one of three
  standard errors (verdict-coverage holds, p < 0.0001). Undecided: With three seeds or more, a
  gain of five standard errors is told in at least 90 % of searches of 300 examples or more
  (verdict-power undecided, p = 0.077). Undecided: With two seeds and 500 examples it is told in
  at least 85 % at 14 rows and 70 % at 40 (verdict-power-two-seeds undecided, p = 0.12). With one
  seed, 500 examples and 14 rows or more, it is told in less than 85 %: three seeds tell more
  (verdict-power-one-seed holds, p < 0.0001). With gains skewed to the left, 500 examples and 14
  rows, a gain of five standard errors is told in less than 90 % (verdict-power-skewed fails, p <
  0.0001). Undecided: The set of the rows that cannot be told from the best holds the best in at
  least 95 % of searches, where all rows are equally good (verdict-set undecided, p = 0.33). On a
  test part the interval holds the true gain in less than 95 % in some setting: most of all where
  90 examples of skewed loss are judged at one seed (verdict-test-part fails, p < 0.0001). Of
  searches on digits over strengths that do nothing, at most 8 % tell some strength from zero
  (verdict-digits holds, p < 0.0001). On these digits `choose` says in at most 8 % that the chosen
  strength helps or hurts, and leaves zero out of the set of the best in at most 8 %
  (verdict-digits-choose holds, p < 0.0001). One standard error over folds tells one of these from
  zero in more than 8 % (verdict-digits-old-rule holds, p < 0.0001). Some of the rates demanded
  are missed by more than two standard errors; the results name them (verdict-demands fails,
  counted).
"""

from dataclasses import dataclass

import numpy as np

from experiments import common
from experiments.claims import (
    Claim,
    Measurement,
    all_of,
    below,
    share_above,
    share_below,
)
from experiments.verdict import simulate
from experiments.verdict.demands import COVERED, FALSE, demands, judged, least_power
from experiments.verdict.settings import PARTS
from experiments.verdict.simulate import Setting
from experiments.verdict.store import kept, kept_claims


@dataclass(frozen=True)
class Config:
    searches: int = 5_000
    """Of a setting with 2 or 5 rows."""
    searches_of_14: int = 2_000
    searches_of_40: int = 1_000
    test_parts: int = 2_000
    digits: int = 200
    """Draws of digits with strengths that do nothing."""


QUICK = Config(searches=40, searches_of_14=20, searches_of_40=8, test_parts=40, digits=2)


def share(what, rate, n):
    """The share of n events, with its error."""
    return common.Measurement(what, float(rate), float((rate * (1 - rate) / n) ** 0.5), int(n))


def with_rates(settings, **fields):
    """The settings of these fields."""
    return [r for r in settings if all(r["setting"][k] == v for k, v in fields.items())]


ON_DIGITS = {
    "any_row": "digits: some strength that does nothing is told from zero",
    "chosen": "digits: the chosen strength, which does nothing, is said to help or hurt",
    "zero_left_out": "digits: zero is left out of the set of the best",
    "one_standard_error": "digits: the lowest is one standard error over folds below zero",
}


def measure(c: Config) -> common.Findings:
    parts = {name: [kept(name, s, c) for s in make()] for name, make in PARTS.items()}
    on_digits = kept_claims(c)
    total, missed = judged(parts)
    found = [
        share(words, np.mean(on_digits[name]), len(on_digits[name]))
        for name, words in ON_DIGITS.items()
    ]
    found += [
        common.exact("rates demanded", total),
        common.exact("rates demanded and missed by two standard errors", len(missed)),
    ]
    values = {"parts": parts, "missed": missed, "digits": on_digits, "shifts": simulate.SHIFTS}
    return common.Findings(found, values)


def draw(values, figure):
    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": (3, 2)})
    rules = {
        "false, one standard error over folds": ("one s.e. over folds", "C1"),
        "false, examples alone": ("examples alone", "C2"),
        "false": ("examples and runs", "C0"),
    }
    start, ticks = 0, []
    for part, rows in values["parts"].items():
        if part in ("sets", "test parts"):
            continue
        for name, (label, color) in rules.items():
            told = [(start + i, r["rates"].get(name)) for i, r in enumerate(rows)]
            x, y = zip(*((a, max(b, 5e-4)) for a, b in told if b is not None), strict=True)
            left.scatter(x, y, s=4, color=color, label=None if start else label, lw=0)
        ticks.append((start + len(rows) / 2, part))
        start += len(rows) + 14
    left.axhline(FALSE, color="k", lw=0.8, ls="--")
    left.set_yscale("log")
    left.set_ylabel("false claims")
    left.set_xticks([x for x, _ in ticks], [name for _, name in ticks], rotation=50, ha="right")
    left.legend(loc="lower right", markerscale=2)
    for rows, color in ((2, "C0"), (14, "C3"), (40, "C4")):
        for seeds, style in ((1, ":"), (2, "--"), (3, "-")):
            shared = 0.0 if rows == 2 else 0.9
            (one,) = with_rates(values["parts"]["power"], rows=rows, seeds=seeds, shared=shared)
            y = [one["rates"][f"helps at {shift:g}"] for shift in values["shifts"]]
            label = f"{rows} rows, seeds: {seeds}"
            right.plot(values["shifts"], y, style, color=color, label=label)
    right.set_xlabel("gain, in standard errors")
    right.set_ylabel("share of searches that tell it")
    right.legend(fontsize=6)


CLAIMS = (
    Claim(
        "verdict-false",
        "Where no strength does anything, a search of 300 examples on five or ten folds claims "
        "that some strength helps or hurts in at most 5 % of searches, at 2 to 40 rows and one or "
        "three seeds.",
        all_of(share_below("grid: false claims (*", FALSE)),
        "Some search of 300 examples on five or ten folds claims falsely in more than 5 %.",
    ),
    Claim(
        "verdict-old-rule",
        "One standard error over folds, taken for a difference, claims falsely in more than 5 % "
        "of all these searches.",
        all_of(share_above("grid: false claims by one standard error over folds (*", FALSE)),
        "One standard error over folds claims falsely in at most 5 % of some of these searches.",
    ),
    Claim(
        "verdict-false-seeds",
        "Of 500 examples on five folds, at one to five seeds, at most 5 % of searches claim "
        "falsely.",
        all_of(share_below("power: false claims (*", FALSE)),
        "Some search of 500 examples, five folds and one to five seeds claims falsely in more "
        "than 5 %.",
    ),
    Claim(
        "verdict-shapes",
        "With heavy tails, or the skewness of digits' losses either way, at most 5 % of searches "
        "of 300 to 1500 examples claim falsely.",
        all_of(share_below("shapes: false claims (*", FALSE)),
        "With heavy tails or skewed losses some search claims falsely in more than 5 %.",
    ),
    Claim(
        "verdict-errors",
        "Of 0/1 losses, errors of 2 to 20 %, at most 5 % of searches claim falsely.",
        all_of(share_below("0/1 losses: false claims (*", FALSE)),
        "Of 0/1 losses some search claims falsely in more than 5 %.",
    ),
    Claim(
        "verdict-no-variance",
        "Where runs or examples have no variance at all, at most 5 % of searches claim falsely.",
        all_of(share_below("no variance: false claims (*", FALSE)),
        "Where runs or examples have no variance some search claims falsely in more than 5 %.",
    ),
    Claim(
        "verdict-groups",
        "Where examples come in groups and the search is told of them, it claims falsely in at "
        "most 5 %.",
        all_of(share_below("groups: false claims (*", FALSE)),
        "Where examples come in groups some search that is told of them claims falsely in more "
        "than 5 %.",
    ),
    Claim(
        "verdict-groups-ignored",
        "Where it is not told of the groups, it claims falsely in more than 5 % at every size.",
        all_of(share_above("groups: false claims if ignored (*", FALSE)),
        "At some size a search that is not told of the groups claims falsely in at most 5 %.",
    ),
    Claim(
        "verdict-few-folds",
        "On one, two, three or five folds, with training sets that differ up to as much as the "
        "examples, at most 5 % of searches claim falsely.",
        all_of(share_below("few folds: false claims (*", FALSE)),
        "On five folds whose training sets differ as much as the examples do, a search claims "
        "falsely in more than 5 %.",
    ),
    Claim(
        "verdict-weights",
        "With unequal weights, of heavy examples, a rare class or the noisiest, at most 5 % of "
        "searches claim falsely.",
        all_of(share_below("weights: false claims (*", FALSE)),
        "With unequal weights some search claims falsely in more than 5 %: one whose heavy "
        "examples are the noisy ones, of skewed loss.",
    ),
    Claim(
        "verdict-few-examples",
        "Of 100 examples, skewed or not, at most 5 % of searches claim falsely.",
        all_of(share_below("limits: false claims (*", FALSE)),
        "Of 100 examples some search claims falsely in more than 5 %.",
    ),
    Claim(
        "verdict-coverage",
        "The interval of the row chosen, by the lowest loss or within one standard error of it, "
        "holds the true gain in at least 95 % of searches of 300 examples, at no gain and at one "
        "of three standard errors.",
        all_of(
            share_above("grid: coverage of the lowest row, gain *", COVERED),
            share_above("grid: coverage of the one standard error row, gain *", COVERED),
        ),
        "In some setting of 300 examples the interval of the row chosen holds the true gain in "
        "less than 95 %.",
    ),
    Claim(
        "verdict-power",
        "With three seeds or more, a gain of five standard errors is told in at least 90 % of "
        "searches of 300 examples or more.",
        all_of(
            share_above("grid: power at 3 seeds or more (*", 0.90),
            share_above("power: power at 3 seeds or more (*", 0.90),
        ),
        "In some setting of three seeds or more, a gain of five standard errors is told in less "
        "than 90 %.",
    ),
    Claim(
        "verdict-power-two-seeds",
        "With two seeds and 500 examples it is told in at least 85 % at 14 rows and 70 % at 40.",
        all_of(
            share_above("power: power at 2 seeds (rows 14,*", 0.85),
            share_above("power: power at 2 seeds (rows 40,*", 0.70),
        ),
        "With two seeds and 500 examples it is told in less than 85 % at 14 rows or 70 % at 40.",
    ),
    Claim(
        "verdict-power-one-seed",
        "With one seed, 500 examples and 14 rows or more, it is told in less than 85 %: three "
        "seeds tell more.",
        all_of(
            share_below("power: power at 1 seed (rows 14,*", 0.85),
            share_below("power: power at 1 seed (rows 40,*", 0.85),
        ),
        "With one seed and 14 rows or more, some setting tells it in 85 % or more.",
    ),
    Claim(
        "verdict-power-skewed",
        "With gains skewed, or of heavy tails, at three seeds it is told in at least 90 % of "
        "searches of 300 examples (500 where skewed to the left).",
        all_of(share_above("shapes: power at 3 seeds or more (*", 0.90)),
        "With gains skewed to the left, 500 examples and 14 rows, a gain of five standard errors "
        "is told in less than 90 %.",
    ),
    Claim(
        "verdict-set",
        "The set of the rows that cannot be told from the best holds the best in at least 95 % of "
        "searches, where all rows are equally good.",
        all_of(share_above("sets: the best is in the set (*", COVERED)),
        "In some setting the set of the rows that cannot be told from the best lacks the best in "
        "more than 5 % of searches.",
    ),
    Claim(
        "verdict-test-part",
        "On a test part of 90 or 360 examples the interval holds the true gain in at least 95 %.",
        all_of(share_above("test parts: coverage (*", COVERED)),
        "On a test part the interval holds the true gain in less than 95 % in some setting: most "
        "of all where 90 examples of skewed loss are judged at one seed.",
    ),
    Claim(
        "verdict-digits",
        "Of searches on digits over strengths that do nothing, at most 8 % tell some strength from "
        "zero.",
        share_below("digits: some strength that does nothing is told from zero", 0.08),
        "Of searches on digits over strengths that do nothing, more than 8 % tell some strength "
        "from zero.",
    ),
    Claim(
        "verdict-digits-choose",
        "On these digits `choose` says in at most 8 % that the chosen strength helps or hurts, and "
        "leaves zero out of the set of the best in at most 8 %.",
        all_of(
            share_below("digits: the chosen strength, which does nothing, is said *", 0.08),
            share_below("digits: zero is left out of the set of the best", 0.08),
        ),
        "On these digits `choose` says in more than 8 % that the chosen strength helps or hurts, "
        "or leaves zero out of the set of the best.",
    ),
    Claim(
        "verdict-digits-old-rule",
        "One standard error over folds tells one of these from zero in more than 8 %.",
        share_above("digits: the lowest is one standard error over folds below zero", 0.08),
        "One standard error over folds tells one of these from zero in less than 8 %.",
    ),
    Claim(
        "verdict-demands",
        "Every rate demanded of the simulated settings is met to within two standard errors.",
        below("rates demanded and missed by two standard errors", 1),
        "Some of the rates demanded are missed by more than two standard errors; the results name "
        "them.",
    ),
)


def derived(results) -> list[Measurement]:
    """Every demanded rate by itself: `part: what (setting)`, the worst of each first."""
    found: dict[str, list[Measurement]] = {}

    def add(what, part, row, rate):
        words = f"{part}: {what}"
        found.setdefault(words, []).append(share(f"{words} ({row['name']})", rate, row["searches"]))

    for part, rows in results["values"]["parts"].items():
        for row in rows:
            for what, rate, _, _ in demands(part, row):
                if what == "power at 5 standard errors":
                    seeds = row["setting"]["seeds"]
                    what = f"power at {f'{seeds} seeds' if seeds < 3 else '3 seeds or more'}"
                    what = what.replace("1 seeds", "1 seed")
                add(what, part, row, rate)
            rates = row["rates"]
            if "false, one standard error over folds" in rates:
                rate = rates["false, one standard error over folds"]
                add("false claims by one standard error over folds", part, row, rate)
            if "false, groups ignored" in rates:
                rate = rates["false, groups ignored"]
                add("false claims if ignored", part, row, rate)
            if (
                part == "power"
                and row["setting"]["seeds"] == 1
                and least_power(Setting(**row["setting"])) is None
            ):
                add("power at 1 seed", part, row, rates["helps at 5"])
    judged_below = lambda what: "false" in what and "by one" not in what and "ignored" not in what
    return [
        one
        for what, numbers in found.items()
        for one in sorted(numbers, key=lambda m: -m.mean if judged_below(what) else m.mean)
    ]


def command():
    common.main(__file__, measure, draw, Config(), QUICK, CLAIMS, derived)


if __name__ == "__main__":
    command()
