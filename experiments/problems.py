"""The small problems the experiments share, and how their runs are spread over the devices."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from experiments import common
from wdjax.data import add_label_noise, load_data, split_off_test, to_batch
from wdjax.data.dataset import Dataset
from wdjax.data.dataset import take as take_rows
from wdjax.recipe import Recipe, recipe_fit, recipe_score
from wdjax.selection.trials import map_trials
from wdjax.types import Batch

STRENGTHS = (0.0, *np.geomspace(1e-3, 1e2, 11).tolist())
"""Of decoupled decay under a learning rate of 3e-3: from nothing to a third of a weight a step."""


def sweep(one: Callable, axes: Mapping[str, Sequence], shared: tuple = ()) -> Any:
    """`one(point, *shared)` at every point of a grid, in one program over all devices.

    Args:
      one: pure; `point` holds a scalar for each axis, float32, or int32 where the axis is of
        integers (such as a seed).
      axes: `{name: values}`.
      shared: what every point sees.

    Returns:
      The tree that `one` gives, each leaf `[*axes, ...]` as NumPy arrays.
    """
    points = list(itertools.product(*axes.values()))
    columns = zip(*points, strict=True)
    trials = {name: jnp.asarray(np.array(c)) for name, c in zip(axes, columns, strict=True)}
    mesh = jax.make_mesh((jax.device_count(),), ("trial",), axis_types=(AxisType.Auto,))
    results = map_trials(one, (trials,), shared, mesh=mesh)
    shape = tuple(len(values) for values in axes.values())
    return jax.tree.map(lambda v: np.asarray(v).reshape(*shape, *v.shape[1:]), results)


def parts_of(name: str = "digits", *, test: float = 0.4, noise: float = 0.0) -> tuple[Batch, Batch]:
    """A shipped data set as `(pool, held_out)`, split once by class; both are `Batch`es.

    With `noise`, that share of the pool's labels is wrong; the held-out part stays clean.
    """
    loss = "squared_error" if name == "diabetes" else "cross_entropy"
    pool, held_out = split_off_test(load_data(name, loss=loss), fraction=test, seed=0)
    if noise:
        pool = add_label_noise(pool, noise, seed=0)
    return to_batch(pool), to_batch(held_out)


def tones(num_examples: int, noise: float, seed: int) -> Batch:
    """Tones of four kinds, `[example, frame, 8]`: pitch rises, falls, holds, or wavers."""
    rng = np.random.default_rng(seed)
    time = np.linspace(0, 1, 128)
    kind = rng.integers(0, 4, num_examples)
    low, depth, phase = rng.uniform((4, 2, 0), (10, 6, 6.28), (num_examples, 3)).T[..., None]
    pitch = np.stack(
        [low + depth * time, low + depth * (1 - time), low + 0 * time, low + np.sin(12.6 * time)], 1
    )[np.arange(num_examples), kind]
    wave = np.sin(2 * np.pi * np.cumsum(pitch, axis=1) / 128 + phase)
    wave = wave + noise * rng.normal(size=wave.shape)
    inputs = wave.reshape(num_examples, 16, 8).astype(np.float32)
    return Batch(inputs, kind.astype(np.int32), np.ones(num_examples, np.float32))


def texts(length: int) -> tuple[Batch, Batch]:
    """Windows of bytes of Python's standard library, each to be predicted: 1000 and 300."""
    windows = small(load_data("stdlib", length=length), 1300)
    batch = Batch(*map(jnp.asarray, (windows.inputs, windows.targets, windows.weights)))
    cut = lambda rows: jax.tree.map(lambda x: x[rows], batch)
    return cut(slice(300, None)), cut(slice(None, 300))


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """Every second row, and the others: one to choose by, one to report on."""
    return jax.tree.map(lambda x: x[::2], batch), jax.tree.map(lambda x: x[1::2], batch)


def draw(pool: Batch, seed: Any, num_examples: int) -> tuple[Batch, jax.Array]:
    """`num_examples` rows drawn by the seed without replacement, and the seed's key for a run."""
    rows_key, run_key = jax.random.split(jax.random.key(seed))
    rows = jax.random.permutation(rows_key, pool.weights.shape[0])[:num_examples]
    return jax.tree.map(lambda x: x[rows], pool), run_key


def wrong_labels(batch: Batch, share: Any, num_classes: int, key: jax.Array) -> Batch:
    """Each label becomes another class with probability `share`, which may be traced."""
    wrong_key, shift_key = jax.random.split(key)
    wrong = jax.random.bernoulli(wrong_key, share, batch.targets.shape)
    shift = jax.random.randint(shift_key, batch.targets.shape, 1, num_classes)
    shifted = (batch.targets + shift) % num_classes
    return batch._replace(targets=jnp.where(wrong, shifted, batch.targets))


def small(dataset: Dataset, num_examples: int) -> Dataset:
    """The first rows of a seeded shuffle."""
    order = np.random.default_rng(0).permutation(len(dataset.inputs))
    return take_rows(dataset, order[:num_examples])


def chosen_row(losses: np.ndarray) -> int:
    """The row of lowest mean over seeds of `losses[row, seed]`; diverged rows lose."""
    means = losses.mean(axis=1)
    return int(np.argmin(np.where(np.isfinite(means), means, np.inf)))


def best_log10(losses: np.ndarray, strengths: Sequence[float]) -> np.ndarray:
    """log10 of the best strength of `losses[level, strength, seed]`, `[level, seed]`.

    Zero, which must come first, counts as one step below the smallest strength.
    """
    s = np.asarray(strengths)
    s = np.where(s > 0, s, s[s > 0][0] ** 2 / s[s > 0][1])
    return np.log10(s)[np.argmin(losses, axis=1)]


def at_ends(losses: np.ndarray) -> int:
    """How many bests of `losses[level, strength, seed]` are the first or the last strength."""
    return int(np.isin(np.argmin(losses, axis=1), (0, losses.shape[1] - 1)).sum())


def judged(recipe: Recipe, hparams: Any, train: Batch, key: jax.Array, **parts: Batch) -> tuple:
    """One run of a recipe: `(fit, {"train_loss": ..., "NAME_loss": ..., ...})`, accuracies too."""
    fit = recipe_fit(recipe)(hparams, train, key)
    score = recipe_score(recipe)
    measures = {
        f"{name}_{measure}": value
        for name, part in {"train": train, **parts}.items()
        for measure, value in score(fit, part).items()
    }
    return fit, measures


# Ways of weighing examples (Q10) and parts (Q11), against each other.


def chosen_and_reported(scores: Mapping[str, Any], slopes: Sequence, strengths: Sequence) -> tuple:
    """Each way at its own slope and strength: `({way: [slope, strength]}, {way: losses[seed]})`.

    `scores[way][measure][slope, strength, seed]` are chosen by `choose_loss` and told by
    `report_loss`; a way with a single slope has slope 0.
    """
    chosen, losses = {}, {}
    for way, of in scores.items():
        used = slopes if len(of["choose_loss"]) > 1 else (0.0,)
        flat = {name: v.reshape(-1, v.shape[-1]) for name, v in of.items()}
        row = chosen_row(flat["choose_loss"])
        slope, strength = divmod(row, len(strengths))
        chosen[way] = [used[slope], strengths[strength]]
        losses[way] = flat["report_loss"][row]
    return chosen, losses


def against_weighted(
    name: str, scores: Mapping[str, Any], slopes: Sequence, strengths: Sequence
) -> tuple[dict[str, common.Measurement], dict[str, Any]]:
    """`({way: held-out loss of it - of the weighted}, all that the figure and the page need)`."""
    chosen, losses = chosen_and_reported(scores, slopes, strengths)
    gains = {
        way: common.over_seeds(
            f"{name}: held-out loss, {way} - weighted", loss - losses["weighted"]
        )
        for way, loss in losses.items()
        if way != "weighted"
    }
    values = {
        "chosen": chosen,
        "loss": {way: common.curve(of["report_loss"]) for way, of in scores.items()},
        "accuracy": {way: common.curve(of["report_accuracy"]) for way, of in scores.items()},
        "by_seed": losses,
    }
    return gains, values


def draw_over_slopes(axes: Any, here: Mapping[str, Any], slopes: Any, strengths: list) -> float:
    """Held-out loss over the slope, weighted and shuffled, at the strength that is returned."""
    strength = here["chosen"]["weighted"][1]
    column = strengths.index(strength)
    for way in ("weighted", "shuffled"):
        line = {name: np.array(v)[:, column] for name, v in here["loss"][way].items()}
        common.band(axes, slopes, line, way)
    axes.set_ylabel("held-out cross-entropy")
    return strength
