"""What a run predicts of its test part, in the bounds of a report."""

from typing import Any

import jax
import numpy as np

from wdjax.data.batches import in_blocks
from wdjax.jobs.predict import ROWS_AT_ONCE, make_outputs
from wdjax.jobs.setup import Prepared
from wdjax.recipe import build as recipes
from wdjax.types import Fit

MOST_CLASSES = 30
"""Of more, the mistakes made most often stand in place of the matrix."""
MOST_MISTAKES = 20
MOST_POINTS = 2000
"""Of more test examples so many are kept, evenly taken in their order."""


def predictions_on_test(prepared: Prepared, fit: Fit, scaling: Any) -> dict[str, Any] | None:
    """What `fit` predicts of the test part, for the results; None where it has no such form.

        labels:   counts[true][predicted] = sum_i [y_i = true, argmax_c p_i(c) = predicted]
        numbers:  true[output][point], predicted[output][point], in the unit of the targets

    None of texts, which have a label at each place, of a loss of one's own whose outputs are
    neither, and of a run that diverged.

    Args:
      prepared: whose `test_data` are all of the test part.
      fit: of one seed.
      scaling: `recipe_scaling` of the examples it was trained on.
    """
    data, loss = prepared.test_data, prepared.loss
    targets = np.asarray(data.targets)
    if loss.has_classes and targets.ndim > 1:
        return None
    network = recipes.recipe_model(prepared.recipe)
    outputs_of = jax.jit(make_outputs(network, fit, scaling, loss, data.encoding))
    outputs = in_blocks(outputs_of, data.inputs, ROWS_AT_ONCE)
    if not np.isfinite(outputs).all():
        return None
    if loss.has_classes:
        fits_labels = outputs.shape == (len(targets), data.num_outputs)
        return _of_labels(targets, outputs, data.class_names) if fits_labels else None
    outputs, targets = (x.reshape(len(targets), -1) for x in (outputs, targets))
    return _of_numbers(targets, outputs) if outputs.shape == targets.shape else None


def _of_labels(targets: np.ndarray, outputs: np.ndarray, names: tuple[str, ...]) -> dict[str, Any]:
    num_classes = outputs.shape[1]
    counts = np.zeros((num_classes, num_classes), int)
    np.add.at(counts, (targets, outputs.argmax(axis=1)), 1)
    classes = [str(name) for name in names or range(num_classes)]
    wrong = counts - np.diag(np.diag(counts))
    ranked = np.argsort(-wrong, axis=None, kind="stable")[:MOST_MISTAKES]
    pairs = np.stack(np.unravel_index(ranked, wrong.shape), axis=1)
    found: dict[str, Any] = {
        "num_examples": len(targets),
        "num_wrong": int(wrong.sum()),
        "mistakes": [
            {"true": classes[true], "predicted": classes[taken], "count": int(wrong[true, taken])}
            for true, taken in pairs
            if wrong[true, taken]
        ],
    }
    if num_classes <= MOST_CLASSES:
        found |= {"classes": classes, "counts": counts.tolist()}
    return found


def _of_numbers(targets: np.ndarray, outputs: np.ndarray) -> dict[str, Any]:
    num = len(targets)
    taken = np.unique(np.linspace(0, num - 1, min(num, MOST_POINTS)).round().astype(int))
    short = lambda x: [[float(f"{v:.6g}") for v in column] for column in x[taken].T]
    return {"num_examples": num, "true": short(targets), "predicted": short(outputs)}
