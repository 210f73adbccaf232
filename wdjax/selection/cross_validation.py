"""Cross-validation: grid x folds x seeds as one compiled program, called chunk by chunk."""

import functools
import math
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PyTree

from wdjax.checkpoint.leaves import data_of
from wdjax.checks import check_positive_int, check_weights, is_known
from wdjax.runners import replicate
from wdjax.selection.folds import Folds
from wdjax.selection.kept import Kept, find_kept
from wdjax.selection.trials import (
    Chunk,
    FitAndScore,
    compiler_options,
    dispatched,
    gather,
    missing_trials,
    on_host,
    one_trial,
    platform_of,
    trial_program,
)
from wdjax.tables import Estimate, Table
from wdjax.types import Batch

Grid = Mapping[str, Any]
"""`{name: values[row]}`, such as `grid_product` builds."""


class Scores(NamedTuple):
    """What cross-validation found: every leaf of `values` is `[row, fold, seed]`.

    NaN where that run diverged (or, in a partial result, has not finished). Rows are paired:
    the key of a run depends on its fold and seed, never on its row.
    """

    grid: Grid
    values: PyTree

    def mean(self) -> PyTree:
        """The mean over seeds and folds, `[row]`; NaN for a row with a diverged run."""
        return jax.tree.map(lambda v: np.mean(np.asarray(v), axis=(1, 2)), self.values)

    def standard_error(self) -> PyTree:
        """The deviation of the fold means (ddof 1) / sqrt(folds), `[row]`."""
        return jax.tree.map(lambda v: standard_error_over_folds(np.asarray(v)), self.values)

    def table(self, marked: int | None = None) -> Table:
        """One row a candidate: its numbers, then mean +- standard error of every score."""
        names = [
            jax.tree_util.keystr(path, simple=True, separator="/") or "score"
            for path, _ in jax.tree_util.tree_leaves_with_path(self.values)
        ]
        means, errors = jax.tree.leaves(self.mean()), jax.tree.leaves(self.standard_error())
        rows = []
        for row in range(len(means[0])):
            numbers = [float(np.asarray(values)[row]) for values in self.grid.values()]
            pairs = zip(means, errors, strict=True)
            rows.append((*numbers, *(Estimate(float(m[row]), float(e[row])) for m, e in pairs)))
        _, num_folds, num_seeds = np.shape(jax.tree.leaves(self.values)[0])
        note = f"mean +- standard error over {num_folds} folds, {num_seeds} seeds each"
        return Table((*self.grid, *names), tuple(rows), marked=marked, note=note)

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def to_dict(self) -> dict[str, Any]:
        """Plain lists: `{"grid": {name: [row]}, "values": tree of [row][fold][seed]}`."""
        lists = lambda x: np.asarray(x).tolist()
        return {
            "grid": {name: lists(values) for name, values in self.grid.items()},
            "values": jax.tree.map(lists, self.values),
        }


class Progress(NamedTuple):
    """How far a cross-validation is; `scores` holds what is finished, NaN elsewhere."""

    stage: str
    """"compile" before the program is built, then "run": once at 0 done, then per chunk."""
    done: int
    total: int
    elapsed: float
    """Seconds since the call."""
    remaining: float | None
    """Seconds, from the rate of the chunks so far, compilation left out; None before one."""
    scores: Scores | None
    kept: int = 0
    """Of `done`, those whose scores an earlier run had kept."""


def standard_error_over_folds(values: np.ndarray) -> np.ndarray:
    """`[row, fold, seed] -> [row]`: mean over seeds, deviation of the fold means / sqrt(folds)."""
    fold_means = np.where(np.isfinite(values), values, np.nan).mean(axis=2)
    num_folds = fold_means.shape[1]
    if num_folds < 2:
        return np.full(fold_means.shape[0], np.nan)
    return fold_means.std(axis=1, ddof=1) / math.sqrt(num_folds)


def cross_validate(
    fit_and_score: FitAndScore,
    grid: Grid,
    data: Batch,
    folds: Folds,
    *,
    key: Array,
    num_seeds: int = 1,
    trials_at_once: int | None = None,
    mesh: Mesh | None = None,
    progress: Callable[[Progress], None] | None = None,
    kept: str | os.PathLike[str] | None = None,
) -> Scores:
    """Runs `fit_and_score` for every grid row, fold and seed in one compiled program.

        values[row, fold, seed] =
            fit_and_score(grid[row], train[fold], valid[fold], key[fold, seed])

    The program is compiled once, whatever the grid, and called once per chunk of trials. A
    chunk lies inside one fold, which is gathered once and shared by its trials. Neither the number
    of rows nor that of seeds is in the program: a second call with the same function, data and
    folds compiles nothing (if both have trials enough to run as many at once), and with `kept` runs
    only the trials that are new.

    Args:
      fit_and_score: pure, `(hparams, train, valid, key) -> scalar or tree of scalars`. It is a
        static argument: pass the same function object again to find the compiled program.
      grid: `{name: values[row]}`; `hparams` is a dict of its rows' scalars.
      data: all examples; folds differ in rows and `weights`, never in shape.
      folds: from `kfold` or `folds_from_splits`.
      key: `key[fold, seed] = fold_in(fold_in(key, fold), seed)`: rows are paired.
      num_seeds: runs per row and fold, >= 1.
      trials_at_once: runs vmapped together on a device; the others follow one by one. By
        default 1 on a CPU, whose cores one run fills, else 16.
      mesh: splits the trials over all its axes; by default one device runs them all. It may
        span several processes (`jax.distributed`), each of which calls this with the same
        arguments and gets all the scores.
      progress: called with a `Progress` before and after compiling and after every chunk.
      kept: a folder in which the scores of finished trials are kept, and looked for before one is
        run: under a hash of the program as lowered, its numbers, the examples, fold, key and seed,
        versions, compiler options and the devices' kind and number. One that is found is what the
        same program gave for the same numbers. By default none are. Several processes take what
        the first of them finds. The folder only grows; it may be deleted at any time.

    Raises:
      ValueError: if the grid is empty or ragged, the data is empty or does not fit the folds,
        `num_seeds` or `trials_at_once` is below 1, a score is not a scalar, or weights are
        negative, not finite, or all zero in a part of a fold.
    """
    start = time.perf_counter()
    num_rows = _checked_num_rows(grid)
    _check_folds(data, folds)
    check_positive_int("num_seeds", num_seeds)
    num_devices = 1 if mesh is None else mesh.size
    trials_at_once = _at_once(trials_at_once, num_rows * num_seeds, mesh)
    # On the host, in the dtype that a program takes.
    numbers = {name: data_of(np.asarray(values)) for name, values in grid.items()}
    given = data, folds, key
    # On the device once, not once a chunk; on every device of a mesh.
    data, folds, key = _put(given, mesh)
    static = {"fit_and_score": fit_and_score, "mesh": mesh, "trials_at_once": trials_at_once}
    program = functools.partial(trial_program(mesh), data=data, folds=folds, key=key, **static)
    deal = functools.partial(
        Chunk.of, numbers, num_seeds, num_devices=num_devices, trials_at_once=trials_at_once
    )
    # Lowered and compiled ahead only to name it and to tell compiling from running; the calls
    # below find this program.
    lowered = program.func.lower(*deal(0, np.arange(1)).arguments, **program.keywords)
    known = Kept.nothing(lowered.out_info, (folds.train.shape[0], num_rows * num_seeds))
    if kept is not None:
        options = compiler_options(platform_of(mesh))
        device = jax.tree.leaves(data)[0].addressable_shards[0].device
        known = find_kept(kept, lowered, numbers, given, num_seeds, options=options, device=device)
        known = _as_the_first_process(known, mesh)
    total, num_kept = known.found.size, int(known.found.sum())

    def report(stage: str, done: int, remaining: float | None = None) -> None:
        if progress is not None:
            # A copy: the listener may keep it while the next chunks fill the array.
            values = jax.tree.map(np.copy, known.values)
            partial = _scores(grid, values, num_seeds) if done else None
            elapsed = time.perf_counter() - start
            progress(Progress(stage, done, total, elapsed, remaining, partial, num_kept))

    if num_kept == total:
        report("run", total, 0.0)
        return _scores(grid, known.values, num_seeds)
    report("compile", num_kept)
    lowered.compile()
    compiled_at, done = time.perf_counter(), num_kept
    report("run", done)
    chunks = (deal(*one) for one in missing_trials(known.found, num_devices * trials_at_once))
    for chunk, pending in dispatched(program, chunks):
        scores = jax.tree.map(lambda leaf, slot=chunk.slot: on_host(leaf)[slot], pending)
        known.add(chunk.fold, chunk.trials, scores)
        done += len(chunk.trials)
        rate = (time.perf_counter() - compiled_at) / (done - num_kept)
        report("run", done, (total - done) * rate)
    return _scores(grid, known.values, num_seeds)


def _at_once(trials_at_once: int | None, trials_per_fold: int, mesh: Mesh | None) -> int:
    if trials_at_once is None:
        # docs/speed.md, "How the time grows", has the measured times of 1, 2, 4, ... at once on a
        # CPU (`python -m experiments.speed growth`): none is a tenth quicker than 1, which takes
        # the least memory. Elsewhere a small run leaves most of a device idle: 16 is measured on
        # none, but what it takes of their memory is known from their compilers ("Memory" there:
        # for the CNN half a gigabyte of an H100, one of a TPU v5e).
        trials_at_once = 1 if platform_of(mesh) == "cpu" else 16
    check_positive_int("trials_at_once", trials_at_once)
    # No more than there are, but to the next power of two: a few trials more are the same program.
    of_a_device = -(-trials_per_fold // (1 if mesh is None else mesh.size))
    return min(trials_at_once, 2 ** (of_a_device - 1).bit_length())


def cross_validate_pure(
    fit_and_score: FitAndScore,
    grid: Grid,
    data: Batch,
    folds: Folds,
    *,
    key: Array,
    num_seeds: int = 1,
) -> PyTree:
    """The traceable form of `cross_validate`: a tree of `[row, fold, seed]`, equal run by run.

    For `jit`, `vmap`, nested cross-validation and derivatives: no chunks, no progress, no mesh.
    Folds follow one by one; the trials of a fold are vmapped.

    Raises:
      ValueError: as `cross_validate`.
    """
    num_rows = _checked_num_rows(grid)
    _check_folds(data, folds)
    check_positive_int("num_seeds", num_seeds)
    hparams = {name: jnp.asarray(values) for name, values in grid.items()}
    row, seed = np.divmod(np.arange(num_rows * num_seeds, dtype=np.int32), np.int32(num_seeds))

    def one_fold(fold_index):
        train, valid = gather(data, folds, fold_index)

        def one(row, seed):
            numbers = {name: values[row] for name, values in hparams.items()}
            return one_trial(fit_and_score, numbers, train, valid, key, fold_index, seed)

        return jax.vmap(one)(row, seed)

    values = jax.lax.map(one_fold, jnp.arange(folds.train.shape[0]))
    return jax.tree.map(lambda v: _by_row_fold_seed(v, num_seeds), values)


def _as_the_first_process(known: Kept, mesh: Mesh | None) -> Kept:
    """What the first process found: all run the same trials, and it alone keeps them."""
    if mesh is None or NamedSharding(mesh, P()).is_fully_addressable:
        return known
    leaves, structure = jax.tree.flatten(known.values)
    # As bits: a NaN is a score like any other.
    told = (known.found, [leaf.view(np.uint32) for leaf in leaves])
    found, bits = jax.tree.map(np.array, multihost_utils.broadcast_one_to_all(told))
    values = [new.view(leaf.dtype) for new, leaf in zip(bits, leaves, strict=True)]
    store = known.store if jax.process_index() == 0 else None
    return Kept(store, known.names, found, jax.tree.unflatten(structure, values))


def _put(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """`tree` on the device, or on every device of the mesh; only to be read, so it may share
    the caller's memory."""
    if mesh is None:
        return jax.device_put(tree)
    everywhere = NamedSharding(mesh, P())
    shared = everywhere.is_fully_addressable
    return jax.device_put(tree, everywhere) if shared else replicate(tree, mesh)


def _scores(grid: Grid, values: PyTree, num_seeds: int) -> Scores:
    return Scores(grid, jax.tree.map(lambda v: _by_row_fold_seed(v, num_seeds), values))


def _by_row_fold_seed(values, num_seeds):
    """`[fold, row * seed] -> [row, fold, seed]`."""
    return values.reshape(values.shape[0], -1, num_seeds).swapaxes(0, 1)


def _checked_num_rows(grid: Grid) -> int:
    if not grid:
        raise ValueError("`grid` is empty; build one with grid_product(strength=[0, 1e-3]).")
    lengths = {name: np.shape(values) for name, values in grid.items()}
    shapes = set(lengths.values())
    if len(shapes) != 1 or len(next(iter(shapes))) != 1 or next(iter(shapes)) == (0,):
        raise ValueError(
            f"`grid` must hold arrays of one length along one leading axis; got shapes {lengths}. "
            "`grid_product` makes every combination."
        )
    return next(iter(shapes))[0]


def _check_folds(data: Batch, folds: Folds) -> None:
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(data)}
    if len(sizes) != 1 or sizes == {()} or sizes == {(0,)}:
        raise ValueError(
            "`data` must have the same number of examples, at least one, in inputs, targets and "
            f"weights; got leading sizes {sorted(size[:1] for size in sizes)}."
        )
    num_examples = next(iter(sizes))[0]
    for index in filter(is_known, (folds.train, folds.valid)):
        index = np.asarray(index)  # Under jit, np.min of a known jax.Array would be traced.
        low, high = int(np.min(index)), int(np.max(index))
        if low < 0 or high >= num_examples:
            raise ValueError(
                f"`folds` points at row {low if low < 0 else high}, but `data` has {num_examples} "
                "examples; make the folds from the same data."
            )
    check_weights("data.weights", data.weights)
    if is_known(data.weights) and all(map(is_known, folds)):
        counts = np.asarray(data.weights).reshape(num_examples, -1).max(axis=1) > 0
        for name, index, mask in (
            ("training", folds.train, folds.train_mask),
            ("held-out", folds.valid, folds.valid_mask),
        ):
            empty = ~(counts[np.asarray(index)] & (np.asarray(mask) > 0)).any(axis=1)
            if empty.any():
                raise ValueError(
                    f"`data.weights` are all zero in the {name} part of fold "
                    f"{int(np.argmax(empty))}: nothing would count there. Give some of its "
                    "examples a weight above 0, or make other folds."
                )
