"""A random split in two, class by class: the rows that scikit-learn's `train_test_split` draws.

Drawn again here because importing that function takes longer than a small run; a test holds both
to the same rows. NumPy keeps the stream of `RandomState` as it is, version after version.
"""

import numpy as np


def draw_test_rows(
    num_examples: int, num_test: int, seed: int, classes: np.ndarray | None
) -> np.ndarray:
    """Which rows are the test part's, in order; the others are the choosing part's.

    Args:
      num_examples: n.
      num_test: of them, at least one and fewer than n.
      seed: 0 .. 2^32 - 1.
      classes: `[n]` labels whose shares both parts keep; by default rows are drawn alike.
    """
    random = np.random.RandomState(seed)
    if classes is None:
        return np.sort(random.permutation(num_examples)[:num_test])
    _, label, sizes = np.unique(classes, return_inverse=True, return_counts=True)
    of_class = np.split(np.argsort(label, kind="stable"), np.cumsum(sizes)[:-1])
    num_choose_of = _shares(sizes, num_examples - num_test, random)
    num_test_of = _shares(sizes - num_choose_of, num_test, random)
    test = []
    for rows, skipped, taken in zip(of_class, num_choose_of, num_test_of, strict=True):
        test.append(random.permutation(rows)[skipped : skipped + taken])
    return np.sort(np.concatenate(test))


def _shares(sizes: np.ndarray, total: int, random: np.random.RandomState) -> np.ndarray:
    """`total` dealt out in proportion to `sizes`: rounded down, the largest remainders get one
    more, ties by lot."""
    exact = sizes / sizes.sum() * total
    whole = np.floor(exact)
    left, remainders = int(total - whole.sum()), exact - whole
    for value in np.unique(remainders)[::-1]:
        if left <= 0:
            break
        (tied,) = np.where(remainders == value)
        chosen = random.choice(tied, size=min(len(tied), left), replace=False)
        whole[chosen] += 1
        left -= len(chosen)
    return whole.astype(int)
