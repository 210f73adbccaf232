"""Which examples are chosen on, tested on and held out; and labels made wrong on purpose."""

import math

import numpy as np

from wdjax.checks import check_number, check_positive_int
from wdjax.data.dataset import Dataset, take
from wdjax.extras import need


def split_off_test(
    dataset: Dataset, *, fraction: float = 0.2, seed: int = 0, stratify: bool = True
) -> tuple[Dataset, Dataset]:
    """Splits once into a part to choose on and a test part, as scikit-learn's `train_test_split`.

    The test part has `ceil(fraction * n)` examples; with `stratify`, labels keep their shares in
    both (regression targets are split at random). Equal seeds give equal splits. Of a data set
    with groups the test part is the first of `round(1 / fraction)` of `group_splits`.

    Raises:
      ValueError: for a fraction that is not within (0, 1) or leaves a part empty, or a class
        too small to be in both parts.
    """
    check_number("fraction", fraction, low=0.0, high=1.0, exclusive_low=True)
    check_positive_int("seed", seed, low=0, high=2**32 - 1)
    num_examples = len(dataset.inputs)
    num_test = math.ceil(fraction * num_examples)
    if not 0 < num_test < num_examples:
        raise ValueError(
            f"`fraction` = {fraction:g} leaves {num_examples - num_test} of {num_examples} "
            "examples to choose on; take a smaller fraction or more data."
        )
    by_class = stratify and _has_labels(dataset)
    if dataset.groups is not None:
        labels = dataset.targets if by_class else None
        parts = max(2, round(1 / fraction))
        test, _ = group_splits(dataset.groups, parts, labels, seed)[0]
        return take(dataset, np.delete(np.arange(num_examples), test)), take(dataset, test)
    if by_class:
        _check_smallest_class(dataset, 2, "be in both the choosing and the test part")
        if min(num_test, num_examples - num_test) < dataset.num_outputs:
            raise ValueError(
                f"`fraction` = {fraction:g} leaves {num_test} test and {num_examples - num_test} "
                f"choosing examples for {dataset.num_outputs} classes; each part needs one of "
                "each class: change the fraction, or split with stratify=False."
            )
    test = draw_test_rows(num_examples, num_test, seed, dataset.targets if by_class else None)
    choose = np.delete(np.arange(num_examples), test)
    return take(dataset, choose), take(dataset, test)


def group_splits(
    groups: np.ndarray, num_parts: int, labels: np.ndarray | None, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """`(held out, the others)` of parts of whole groups, by scikit-learn; labels kept even.

    Raises:
      ValueError: for fewer groups than parts.
      ImportError: if scikit-learn is not installed.
    """
    select = need("sklearn.model_selection", what="splitting by groups")
    num_groups = len(np.unique(groups))
    if num_groups < num_parts:
        raise ValueError(
            f"`groups` has {num_groups} different groups, and {num_parts} parts of whole groups "
            "are needed: take fewer folds, judge on a table of its own (--test), or give another "
            "column."
        )
    kind = select.GroupKFold if labels is None else select.StratifiedGroupKFold
    splitter = kind(num_parts, shuffle=True, random_state=seed)
    rows = np.zeros((len(groups), 1))
    return [(held_out, train) for train, held_out in splitter.split(rows, labels, groups)]


def check_folds(dataset: Dataset, num_folds: int, *, stratify: bool = True) -> None:
    """Checks that every fold can get an example, and with `stratify` one of every class.

    Raises:
      ValueError: if `num_folds` is not between 2 and the number of examples, or a class has
        fewer examples than there are folds.
    """
    check_positive_int("folds", num_folds, low=2, high=len(dataset.inputs))
    if stratify and _has_labels(dataset):
        _check_smallest_class(dataset, num_folds, f"be in each of `folds` = {num_folds} parts")


def add_label_noise(dataset: Dataset, fraction: float, seed: int) -> Dataset:
    """Replaces the labels of `round(fraction * n)` examples by another class, drawn uniformly.

    The examples are drawn without replacement, so exactly that many labels are wrong.

    Raises:
      ValueError: for a fraction outside [0, 1], targets that are not one label per example, or
        a single class.
    """
    check_number("label_noise", fraction, low=0.0, high=1.0)
    if not _has_labels(dataset) or dataset.num_outputs < 2:
        raise ValueError(
            f"`label_noise` = {fraction:g} needs one label of two or more classes per example; "
            f"{dataset.name!r} has none. Leave it at 0."
        )
    check_positive_int("seed", seed, low=0)
    rng = np.random.default_rng(seed)
    wrong = rng.permutation(len(dataset.targets))[: round(fraction * len(dataset.targets))]
    shift = rng.integers(1, dataset.num_outputs, len(wrong))
    targets = dataset.targets.copy()
    targets[wrong] = (targets[wrong] + shift) % dataset.num_outputs
    return dataset._replace(targets=targets)


def draw_test_rows(
    num_examples: int, num_test: int, seed: int, classes: np.ndarray | None
) -> np.ndarray:
    """Which rows are the test part's, in order: those that scikit-learn's `train_test_split` draws.

    Drawn again here because importing that function takes longer than a small run; a test holds
    both to the same rows. NumPy keeps the stream of `RandomState` as it is, version after version.

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


def _has_labels(dataset: Dataset) -> bool:
    return dataset.targets.ndim == 1 and dataset.targets.dtype.kind == "i"


def _check_smallest_class(dataset: Dataset, needed: int, purpose: str) -> None:
    sizes = np.bincount(dataset.targets, minlength=dataset.num_outputs)
    sizes = np.where(sizes == 0, len(dataset.targets), sizes)
    smallest = int(np.argmin(sizes))
    if sizes[smallest] < needed:
        called = f" ({dataset.class_names[smallest]})" if dataset.class_names else ""
        raise ValueError(
            f"class {smallest}{called} of {dataset.name!r} has {sizes[smallest]} examples and "
            f"needs {needed} to {purpose}; ask for fewer, or do not stratify."
        )
