"""The held-out examples that count, and the sums over them that intervals are made of."""

from typing import NamedTuple

import numpy as np

from wdjax.selection.evidence.inputs import check_slot_weights

ROUNDING = 1e-12
"""What float64 sums may be off, relative to what is summed: nothing smaller is a variance."""


class Slots(NamedTuple):
    """Where the held-out examples that count stand, sorted by fold, then by group."""

    order: np.ndarray
    """Places in the flattened `[fold, example]`."""
    weights: np.ndarray
    """Of each example that counts, `[slot]`, > 0."""
    fold_starts: np.ndarray
    """First slot of each fold that holds a weight, `[fold]`."""
    group_starts: np.ndarray | None
    """First slot of each group; None where every example is its own."""

    @property
    def num_folds(self) -> int:
        """K: folds that hold a weight."""
        return len(self.fold_starts)

    @property
    def num_groups(self) -> int:
        """G: groups, or examples, that hold a weight."""
        return len(self.weights if self.group_starts is None else self.group_starts)

    @property
    def num_effective(self) -> float:
        """(sum_g W_g)^2 / sum_g W_g^2, W_g a group's weight: G where all weigh the same (Kish)."""
        w = self.weights
        if self.group_starts is not None:
            w = np.add.reduceat(w, self.group_starts)
        return float(w.sum() ** 2 / (w**2).sum())

    @property
    def fold_weights(self) -> np.ndarray:
        """W_k: the sum of each fold's weights."""
        return np.add.reduceat(self.weights, self.fold_starts)


class Sums(NamedTuple):
    """What an interval is made of. Axes before `row` are searches, each on its own."""

    gain: np.ndarray
    """Weighted mean of the differences, `[..., row]`."""
    fold_means: np.ndarray
    """The same within each fold, `[..., row, fold]`."""
    covariance: np.ndarray
    """Of the gains, from the examples alone, `[..., row, row]`: steps 2 and 5."""
    third: np.ndarray
    """kappa, the third moment of the gain's error, `[..., row]`: step 2."""
    spread: np.ndarray
    """Variance over the seeds of a fold's mean gain (ddof 1), `[..., row, fold]`; 0 at one."""
    identical: np.ndarray
    """Whether every difference is 0, `[..., row]`."""


def make_slots(weights: np.ndarray, groups: np.ndarray | None = None) -> Slots:
    """Sorts the examples that count, of `weights[fold, example]`, by fold, then by group.

    Raises:
      ValueError: for a weight that is negative or not finite, no weight above 0, a group that
        lies in two folds.
    """
    check_slot_weights(weights)
    (order,) = np.nonzero(weights.ravel() > 0)
    fold = order // weights.shape[1]
    group_starts = None
    if groups is not None:
        group = groups.ravel()[order]
        order = order[np.lexsort((group, fold))]
        fold, group = order // weights.shape[1], groups.ravel()[order]
        new = np.r_[True, (np.diff(group) != 0) | (np.diff(fold) != 0)]
        (group_starts,) = np.nonzero(new)
        names, counts = np.unique(group[new], return_counts=True)
        if (counts > 1).any():
            name = names[counts > 1][0]
            raise ValueError(
                f"each group must lie within one fold, but group {name} of `groups` is in folds "
                f"{sorted(set(fold[group == name].tolist()))}: its examples would be trained on "
                "and judged by at once. Make the folds by group (`folds_from_splits` takes those "
                "of scikit-learn's GroupKFold)."
            )
    (fold_starts,) = np.nonzero(np.r_[True, np.diff(fold) != 0])
    return Slots(order, weights.ravel()[order], fold_starts, group_starts)


def spread_over_seeds(values: np.ndarray, slots: Slots) -> np.ndarray:
    """Variance (ddof 1) over the seeds of each fold's mean, `[row, fold]`, of `[row, seed, slot]`.

    Step 3. It is 0 at one seed, and where the seeds differ by no more than float64 rounds.
    """
    if values.shape[1] == 1:
        return np.zeros((len(values), slots.num_folds))
    means = means_in_folds(values, slots)
    scale = np.abs(means).max(axis=(1, 2), initial=0.0)[:, None]
    spread = means.var(axis=1, ddof=1)
    return np.where(spread > (ROUNDING * scale) ** 2, spread, 0.0)


def sums_over_examples(d: np.ndarray, slots: Slots, spread: np.ndarray) -> Sums:
    """Steps 1 and 2, of differences `d[..., row, slot]` averaged over the seeds; phi comes later.

    `spread` is that of `spread_over_seeds`, and is passed on.
    """
    w, num_groups, num_folds = slots.weights, slots.num_groups, slots.num_folds
    total = w.sum()
    fold_means = means_in_folds(d, slots)
    gain = fold_means @ (slots.fold_weights / total)
    sizes = np.diff(np.r_[slots.fold_starts, len(w)])
    x = w * (d - np.repeat(fold_means, sizes, axis=-1))
    if slots.group_starts is not None:
        x = np.add.reduceat(x, slots.group_starts, axis=-1)
    factor = num_groups / (num_groups - num_folds) if num_groups > num_folds else np.nan
    covariance = factor * (x @ x.swapaxes(-1, -2)) / total**2
    third = np.einsum("...g,...g,...g->...", x, x, x) / total**3
    identical = (d == 0).all(axis=-1) & (spread == 0).all(axis=-1)
    return Sums(gain, fold_means, covariance, third, spread, identical)


def sums_of(values: np.ndarray, slots: Slots) -> Sums:
    """The sums of `[row, seed, slot]`."""
    sums = sums_over_examples(values.mean(axis=1), slots, spread_over_seeds(values, slots))
    # Differences that cancel over the seeds are not those of identical losses.
    return sums._replace(identical=(values == 0).all(axis=(1, 2)))


def weighted_gain(values: np.ndarray, slots: Slots) -> np.ndarray:
    """Weighted mean over slots, mean over seeds, of `[row, seed, slot]`."""
    return values.mean(axis=1) @ (slots.weights / slots.weights.sum())


def means_in_folds(d: np.ndarray, slots: Slots) -> np.ndarray:
    """Weighted means within the folds, `[..., fold]` of `[..., slot]`."""
    return np.add.reduceat(slots.weights * d, slots.fold_starts, axis=-1) / slots.fold_weights
