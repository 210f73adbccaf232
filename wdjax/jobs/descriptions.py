"""What is said of the data, beside how many there are: in a plan, and under a table."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from wdjax.data.dataset import Dataset
from wdjax.data.texts import named
from wdjax.tables import format_number


def about_weights(data: Dataset) -> str:
    """Of data that say how much each example counts."""
    weights = data.weights
    if weights is None:
        return ""
    left_out = data.num_left_out
    without = f"; {left_out} of weight 0 are left out" if left_out else ""
    low, high = (format_number(float(w)) for w in (weights.min(), weights.max()))
    return f" They count by their weights, {low} to {high}{without}."


def about_columns(data: Dataset) -> str:
    """Of a table with words, holes or groups, or with columns that tell nothing."""
    found = []
    num_words = sum(column.words is not None for column in data.columns)
    num_holes = sum(column.holes for column in data.columns)
    if num_words or num_holes:
        found.append(
            f" Of {len(data.columns)} columns {num_words} of words and {num_holes} with holes, "
            "encoded as each training part says."
        )
    if data.columns and len(data.inputs) > 1:
        same = data.inputs.min(axis=0) == data.inputs.max(axis=0)
        if same.any():
            names = [name for name, is_same in zip(data.column_names, same, strict=True) if is_same]
            found.append(f" The same in every row, so of no use (--drop): {named(names)}.")
    if data.groups is not None:
        found.append(f" Parts and folds keep {len(np.unique(data.groups))} groups whole.")
    return "".join(found)


def judged_over(data: Mapping[str, Any]) -> str:
    """What a standard error of the test part is over, by what `results.json` says of the data."""
    groups = data.get("num_test_groups")
    return f"their {groups} groups" if groups else "the test examples"
