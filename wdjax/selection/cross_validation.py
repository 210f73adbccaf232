"""Cross-validation: grid x folds x seeds as one compiled program, called chunk by chunk."""

import functools
import math
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

from wdjax.checks import check_positive_int, check_weights, is_known
from wdjax.runners import replicate
from wdjax.selection.folds import Folds, take
from wdjax.tables import Estimate, Table
from wdjax.types import Batch

FitAndScore = Callable[[Any, Batch, Batch, Array], Any]
"""`fit_and_score(hparams, train, valid, key) -> scalar or tree of scalars`, pure."""

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
) -> Scores:
    """Runs `fit_and_score` for every grid row, fold and seed in one compiled program.

        values[row, fold, seed] =
            fit_and_score(grid[row], train[fold], valid[fold], key[fold, seed])

    The program is compiled once, whatever the grid, and called once per chunk of trials. A
    chunk lies inside one fold, which is gathered once and shared by its trials; all chunks have
    one shape (the last of a fold is filled up with trials that are thrown away). A second call
    with the same function and shapes compiles nothing.

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

    Raises:
      ValueError: if the grid is empty or ragged, the data is empty or does not fit the folds,
        `num_seeds` or `trials_at_once` is below 1, a score is not a scalar, or weights are
        negative, not finite, or all zero in a part of a fold.
    """
    start = time.perf_counter()
    num_rows = _checked_num_rows(grid)
    _check_folds(data, folds)
    check_positive_int("num_seeds", num_seeds)
    num_folds, trials_per_fold = folds.train.shape[0], num_rows * num_seeds
    num_devices = 1 if mesh is None else mesh.size
    if trials_at_once is None:
        # docs/speed.md, "How the time grows", has the measured times of 1, 2, 4, ... at once on a
        # CPU (`python -m experiments.speed growth`): none is a tenth quicker than 1, which takes
        # the least memory. Elsewhere a small run leaves most of a device idle: 16 is measured on
        # none, but what it takes of their memory is known from their compilers ("Memory" there:
        # for the CNN half a gigabyte of an H100, one of a TPU v5e).
        trials_at_once = 1 if jax.default_backend() == "cpu" else 16
    check_positive_int("trials_at_once", trials_at_once)
    trials_at_once = min(trials_at_once, -(-trials_per_fold // num_devices))
    chunk = _chunk_size(trials_per_fold, num_devices * trials_at_once)

    # On the device once, not once a chunk; on every device of a mesh.
    shared = ({name: np.asarray(values) for name, values in grid.items()}, data, folds, key)
    hparams, data, folds, key = _put(shared, mesh)
    run = functools.partial(
        trial_program(mesh),
        hparams=hparams,
        data=data,
        folds=folds,
        key=key,
        fit_and_score=fit_and_score,
        mesh=mesh,
        trials_at_once=trials_at_once,
    )
    total, done = num_folds * trials_per_fold, 0
    clock = lambda: time.perf_counter() - start
    _report(progress, Progress("compile", 0, total, clock(), None, None))
    # Compiled ahead only to tell compiling from running; the calls below find this program.
    run.func.lower(*_trial_indices(chunk, num_seeds), np.int32(0), **run.keywords).compile()
    compiled_at = clock()
    _report(progress, Progress("run", 0, total, compiled_at, None, None))
    values = None
    for fold, begin, pending in _dispatched(run, num_folds, trials_per_fold, chunk, num_seeds):
        results = jax.tree.map(_on_host, pending)
        if values is None:
            values = _unfinished(results, (num_folds, trials_per_fold))
        size = min(chunk, trials_per_fold - begin)
        for all_values, new in zip(jax.tree.leaves(values), jax.tree.leaves(results), strict=True):
            all_values[fold, begin : begin + size] = new[:size]
        done += size
        now = clock()
        remaining = (total - done) * (now - compiled_at) / done
        # A copy: the listener may keep it while the next chunks fill the array.
        partial = _scores(grid, jax.tree.map(np.copy, values), num_rows, num_seeds)
        _report(progress, Progress("run", done, total, now, remaining, partial))
    return _scores(grid, values, num_rows, num_seeds)


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
    row, seed = _trial_indices(num_rows * num_seeds, num_seeds)

    def one_fold(fold_index):
        train, valid = _gather(data, folds, fold_index)
        one = lambda r, s: _one_trial(fit_and_score, hparams, train, valid, key, fold_index, r, s)
        return jax.vmap(one)(row, seed)

    values = jax.lax.map(one_fold, jnp.arange(folds.train.shape[0]))
    return jax.tree.map(lambda v: _by_row_fold_seed(v, num_rows, num_seeds), values)


def trial_program(mesh: Mesh | None) -> Any:
    """`_run_chunk` compiled for the mesh's platform: one object each, which holds its programs."""
    static = ("fit_and_score", "mesh", "trials_at_once")
    return _jit_on(_platform_of(mesh), _run_chunk, static)


@functools.cache
def _jit_on(platform: str, function: Callable, static: tuple[str, ...]) -> Any:
    return jax.jit(function, static_argnames=static, compiler_options=_compiler_options(platform))


def _platform_of(mesh: Mesh | None) -> str:
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def _compiler_options(platform: str) -> dict[str, Any] | None:
    # On a CPU a run spends its time in a library's matrix products: with LLVM's level 1 instead of
    # 3 the program runs as fast and compiles in about 60 % of the time.
    return {"xla_backend_optimization_level": 1} if platform == "cpu" else None


def _run_chunk(row, seed, fold, *, hparams, data, folds, key, fit_and_score, mesh, trials_at_once):
    """The trial program: `row[chunk]`, `seed[chunk]` of one fold -> tree of `[chunk]`."""
    train, valid = _gather(data, folds, fold)

    def one(row, seed, train, valid, hparams, key, fold):
        return _one_trial(fit_and_score, hparams, train, valid, key, fold, row, seed)

    shared = (train, valid, hparams, key, fold)
    return _split_trials(one, (row, seed), shared, mesh, trials_at_once)


def map_trials(function: Callable, trials: tuple, shared: tuple, *, mesh: Mesh) -> PyTree:
    """`function(*trial, *shared)` for every trial, compiled once and split over `mesh`.

    The results are host arrays, the trials their leading axis.

    Args:
      trials: a tuple of trees with one leading axis, the trials; filled up to the devices with
        repetitions that are thrown away.
      shared: a tuple of trees that every trial sees.
    """
    num_trials = jax.tree.leaves(trials)[0].shape[0]
    index = jnp.arange(num_trials + -num_trials % mesh.size) % num_trials

    @functools.partial(jax.jit, compiler_options=_compiler_options(_platform_of(mesh)))
    def program(trials, shared):
        filled = jax.tree.map(lambda leaf: leaf[index], trials)
        return _split_trials(function, filled, shared, mesh, trials_at_once=1)

    everywhere = NamedSharding(mesh, P())
    results = program(*jax.device_put((trials, shared), everywhere))
    return jax.tree.map(lambda leaf: _on_host(leaf)[:num_trials], results)


def _split_trials(function, trials, shared, mesh, trials_at_once):
    """Splits the trials over the mesh's devices; on each, `trials_at_once` run vmapped."""

    def on_one_device(trials, shared):
        one = lambda trial: function(*trial, *shared)
        if trials_at_once == 1:
            return jax.lax.map(one, trials)
        return jax.lax.map(one, trials, batch_size=trials_at_once)

    if mesh is None:
        return on_one_device(trials, shared)
    split = P(mesh.axis_names)
    # Values made inside are replicated, those from the split rows vary: check_vma would refuse a
    # scan that mixes them, as every training loop does.
    over_devices = jax.shard_map(
        on_one_device, mesh=mesh, in_specs=(split, P()), out_specs=split, check_vma=False
    )
    return over_devices(trials, shared)


def _one_trial(fit_and_score, hparams, train, valid, key, fold, row, seed):
    numbers = {name: values[row] for name, values in hparams.items()}
    trial_key = jax.random.fold_in(jax.random.fold_in(key, fold), seed)
    scores = fit_and_score(numbers, train, valid, trial_key)
    for path, score in jax.tree_util.tree_leaves_with_path(scores):
        if jnp.shape(score) != ():
            name = jax.tree_util.keystr(path) or "the score"
            raise ValueError(
                f"`fit_and_score` must return scalars, one score a run; {name} has shape "
                f"{jnp.shape(score)}."
            )
    return jax.tree.map(lambda s: jnp.asarray(s, jnp.result_type(s, jnp.float32)), scores)


def _gather(data: Batch, folds: Folds, fold: Any) -> tuple[Batch, Batch]:
    one = jax.tree.map(lambda index: index[fold], folds)
    return take(data, one.train, one.train_mask), take(data, one.valid, one.valid_mask)


def _trial_indices(num_trials: int, num_seeds: int) -> tuple[np.ndarray, np.ndarray]:
    trial = np.arange(num_trials, dtype=np.int32)
    return trial // num_seeds, trial % num_seeds


def _dispatched(run, num_folds, trials_per_fold, chunk, num_seeds):
    """Yields `(fold, begin, results)`, the next chunk already under way: devices never wait."""
    waiting = None
    for fold in range(num_folds):
        for begin in range(0, trials_per_fold, chunk):
            # The last chunk of a fold is filled up by running its first trials once more.
            trial = (begin + np.arange(chunk, dtype=np.int32)) % trials_per_fold
            # Host arrays: each operation on the device would be a small program of its own.
            current = fold, begin, run(trial // num_seeds, trial % num_seeds, np.int32(fold))
            if waiting is not None:
                yield waiting
            waiting = current
    if waiting is not None:
        yield waiting


def _chunk_size(num_trials: int, at_once: int, most: int = 4) -> int:
    """A multiple of `at_once`: few enough wasted trials, then as many chunks as `most` allows."""
    sizes = [at_once * -(-num_trials // (at_once * chunks)) for chunks in range(1, most + 1)]
    wasted = lambda size: -num_trials % size
    return min(sizes, key=lambda size: (wasted(size), size))


def _put(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """`tree` on the device, or on every device of the mesh; only to be read, so it may share
    the caller's memory."""
    if mesh is None:
        return jax.device_put(tree)
    everywhere = NamedSharding(mesh, P())
    shared = everywhere.is_fully_addressable
    return jax.device_put(tree, everywhere) if shared else replicate(tree, mesh)


def _on_host(leaf: Array) -> np.ndarray:
    """The whole array, also where other processes hold a part of it."""
    if leaf.is_fully_addressable:
        return np.asarray(leaf)
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))


def _report(progress, event):
    if progress is not None:
        progress(event)


def _unfinished(results: PyTree, shape: tuple[int, int]) -> PyTree:
    return jax.tree.map(lambda chunk: np.full(shape, np.nan, chunk.dtype), results)


def _scores(grid: Grid, values: PyTree, num_rows: int, num_seeds: int) -> Scores:
    return Scores(grid, jax.tree.map(lambda v: _by_row_fold_seed(v, num_rows, num_seeds), values))


def _by_row_fold_seed(values, num_rows, num_seeds):
    """`[fold, row * seed] -> [row, fold, seed]`."""
    return values.reshape(values.shape[0], num_rows, num_seeds).swapaxes(0, 1)


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
