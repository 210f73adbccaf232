"""What is simulated: for each part of the page, its settings."""

from experiments.verdict.simulate import Setting

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
        if rows < 40 or folds == 5 or runs == 1.0
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
