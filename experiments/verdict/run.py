"""What a search may say of zero, and how often it is wrong.

Claim: a search over strengths claims a gain where there is none in at most 5 % of searches, and
  its intervals hold together in 95 %, with as much power as the examples allow (S9, S10).
Source: the recipe of `wdjax.selection.evidence`; Lei 2020, arXiv:1703.07904; Bayle et al. 2020,
  arXiv:2007.12671; Nadeau & Bengio 2003; Banerjee 1960; Hall 1992; Bates et al. 2021.
Would change: the claim holds if every rate demanded of it is within two standard errors of its
  bound in every simulated setting; it holds in part if some setting fails, and the page names it.
Run: `python -m experiments verdict`
Found: not run yet.
"""

import hashlib
import json
import pathlib
import zlib
from dataclasses import dataclass

import numpy as np

from experiments.verdict import simulate
from experiments.verdict.simulate import Setting
from wdjax.selection import evidence

FOLDER = pathlib.Path(__file__).parent
KEPT = pathlib.Path("runs/experiments/verdict/settings")
"""Settings that are done, by what they were made by: a run that was stopped goes on from there."""


@dataclass(frozen=True)
class Config:
    searches: int = 10_000
    """Of a setting with few rows."""
    searches_of_14: int = 4_000
    searches_of_40: int = 2_000
    test_parts: int = 4_000
    digits: int = 20
    """Draws of digits with strengths that do nothing."""


QUICK = Config(searches=40, searches_of_14=20, searches_of_40=8, test_parts=40, digits=1)

# What is simulated: for each part of the page, its settings.

FALSE, CLAIMS = 0.05, 0.95
FAMILIES = [(2, 0.0, 0.0)] + [
    (rows, *shared) for rows in (5, 14, 40) for shared in ((0.0, 0.0), (0.9, 0.9), (0.9, 0.0))
]
"""Rows, and how the rows' examples and runs correlate."""


def grid():
    """Few and many rows, one run and three, runs weak and as strong as the examples."""
    return [
        Setting(rows, 300, folds, seeds, shared=shared, shared_runs=shared_runs, runs=runs)
        for rows, shared, shared_runs in FAMILIES
        for folds in (5, 10)
        for seeds in (1, 3)
        for runs in (0.35, 1.0)
    ]


def power():
    """500 examples, one to five seeds."""
    return [
        Setting(rows, 500, seeds=seeds, shared=shared, shared_runs=shared)
        for rows, shared in ((2, 0.0), (14, 0.0), (14, 0.9), (40, 0.0), (40, 0.9))
        for seeds in (1, 2, 3, 5)
    ]


def shapes():
    """Heavy tails, and the skewness of digits' losses, either way."""
    found = [
        Setting(rows, n, folds, seeds, shape, 0.9, 0.9)
        for shape in ("t3", "right", "left")
        for rows in (2, 14)
        for n, folds in ((300, 5), (300, 10), (500, 5))
        for seeds in (1, 3)
    ]
    return [*found, *(Setting(14, 1500, shape=shape, shared=0.9) for shape in ("right", "left"))]


def few_folds():
    """One, two and three folds, with training sets that differ."""
    return [
        Setting(rows, 600 if folds == 1 else 300, folds, shared=0.9, training=training)
        for folds in (1, 2, 3, 5)
        for training in (0.0, 0.35, 1.0)
        for rows in (2, 14)
    ]


def groups():
    """Groups of six on average, whose members share a third of their variance."""
    return [Setting(rows, groups=num) for num in (200, 300, 500) for rows in (2, 14)]


def weights():
    """Unequal weights: mild, of a few heavy examples, of a rare class, noisy where heavy."""
    kinds = ("1 to 3", "lognormal", "lognormal, noisy where heavy", "pareto", "rare class")
    return [
        Setting(rows, n, shape=shape, weights=kind)
        for kind in kinds
        for shape, n in (("normal", 300), ("right", 300), ("right", 1500))
        for rows in ((2, 14) if n == 300 else (2,))
    ]


def zero_one():
    """Errors of 2, 5 and 20 %."""
    found = [
        Setting(rows, n, seeds=seeds, shape=f"errors {share}%", better=better)
        for share in (2, 5, 20)
        for n, rows, seeds in ((300, 2, 3), (300, 2, 1), (300, 14, 3), (300, 14, 1), (1500, 2, 3))
        for better in (False, True)
    ]
    return found


def no_variance():
    """Variances that are exactly 0."""
    branches = ("no runs", "half the rows without runs", "examples agree", "copies of one row")
    return [
        Setting(rows, 500, shared=0.5, branch=branch)
        for branch in (*branches, "half the rows equal")
        for rows in (2, 14)
        if rows > 2 or branch in ("no runs", "examples agree")
    ]


def limits():
    """Few examples with skewed losses: where it is known not to hold."""
    return [
        Setting(rows, 100, folds, shape=shape, shared=0.9, shared_runs=0.9)
        for shape in ("normal", "right", "left")
        for folds in (5, 10)
        for rows in (2, 14)
    ]


def sets():
    """All rows equally good, each with parts of its own."""
    found = [
        Setting(rows, 300, seeds=seeds, shared=shared, shared_runs=shared, runs=runs)
        for rows in (2, 5, 14, 40)
        for seeds in (1, 3)
        for shared, runs in ((0.0, 0.35), (0.0, 1.0), (0.9, 0.35))
    ]
    return found + [
        Setting(rows, n, seeds=seeds, shape="right")
        for rows in (2, 14)
        for n in (300, 500)
        for seeds in (1, 3)
    ]


def test_parts():
    """A test part of 90 or 360 examples."""
    return [
        Setting(2, n, seeds=seeds, shape=shape)
        for shape in ("normal", "t3", "right", "left", "errors 5%", "errors 20%")
        for n in (90, 360)
        for seeds in (1, 3)
    ]


PARTS = {
    "grid": grid,
    "power": power,
    "shapes": shapes,
    "few folds": few_folds,
    "groups": groups,
    "weights": weights,
    "0/1 losses": zero_one,
    "no variance": no_variance,
    "limits": limits,
    "sets": sets,
    "test parts": test_parts,
}
JUDGES = {"sets": simulate.judge_set, "test parts": simulate.judge_test}


def rates(part, setting, searches):
    """`{name: share of the searches}` of one setting."""
    rng = np.random.Generator(np.random.SFC64(zlib.crc32(f"{part} {setting.name}".encode())))
    judge, size = JUDGES.get(part, simulate.judge), simulate.batch_size(setting)
    totals, left = {}, searches
    while left:
        num = min(size, left)
        for name, value in judge(rng, num, setting).items():
            totals[name] = totals.get(name, 0.0) + value
        left -= num
    return {name: value / searches for name, value in totals.items()}


def how_many(part, setting, c):
    if part == "test parts":
        return c.test_parts
    return (
        c.searches
        if setting.rows < 14
        else c.searches_of_14
        if setting.rows < 40
        else (c.searches_of_40)
    )


def kept(part, setting, c):
    """The rates of one setting, from the kept files if it is there."""
    files = (pathlib.Path(module.__file__) for module in (evidence, simulate))
    made_by = " ".join(path.read_text(encoding="utf-8") for path in files)
    num = how_many(part, setting, c)
    words = f"{made_by} {part} {setting} {num}"
    path = KEPT / f"{hashlib.sha256(words.encode()).hexdigest()[:20]}.json"
    if not path.exists():
        found = {"name": setting.name, "searches": num, "rates": rates(part, setting, num)}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found), encoding="utf-8")
        print(f"{part}: {setting.name}", flush=True)
    return json.loads(path.read_text(encoding="utf-8")) | {"setting": setting._asdict()}
