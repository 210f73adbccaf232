"""Cross-validation: grid x folds x seeds as one compiled program, called chunk by chunk."""

import functools
import os
import time
from collections.abc import Callable
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
from wdjax.given import check_given
from wdjax.runners import replicate
from wdjax.selection.folds import Folds
from wdjax.selection.kept import Kept, find_kept
from wdjax.selection.scores import Grid, HeldOut, Scores
from wdjax.selection.scores import standard_error_over_folds as standard_error_over_folds
from wdjax.selection.trials import (
    Chunk,
    FitAndScore,
    TrialScores,
    compiler_options,
    dispatched,
    gather,
    missing_trials,
    on_host,
    one_trial,
    platform_of,
    trial_program,
)
from wdjax.types import Batch


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
    groups: Any = None,
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
      fit_and_score: pure, `(hparams, train, valid, key) -> score or tree of scores`, each a scalar
        or one number per held-out example (in the shape of `valid.weights`), whose weighted mean
        then is the score. Single examples tell how much of a difference between two rows is due to
        which examples were held out: `choose` needs them to be sure of a small one. What
        `make_fit_and_score` builds gives them. It is a static argument: pass the same function
        object again to find the compiled program.
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
      groups: `[example]`, what examples that belong together share (the rows of a patient): they
        vary together, so `choose` counts groups, not examples. Each must lie within one held-out
        part (`folds_from_splits(GroupKFold(5).split(x, y, groups))`).

    Raises:
      ValueError: if the grid is empty or ragged, what is known of grid and data cannot be run (see
        `wdjax.given.check_given`), the data is empty or does not fit the folds, `num_seeds` or
        `trials_at_once` is below 1, a score is neither a scalar nor one number per held-out
        example, weights are negative, not finite, or all zero in a part of a fold, or a group is
        trained on and held out in one fold.
    """
    start = time.perf_counter()
    num_rows = _checked_num_rows(grid)
    check_given(fit_and_score, grid, data)
    _check_folds(data, folds)
    _check_groups(groups, data, folds)
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
    directions = getattr(fit_and_score, "higher_is_better", {})
    scores_of = functools.partial(
        _scores, grid, HeldOut.of(*given[:2], groups), directions, num_seeds=num_seeds
    )

    def report(stage: str, done: int, remaining: float | None = None) -> None:
        if progress is not None:
            # A copy: the listener may keep it while the next chunks fill the array.
            values = jax.tree.map(np.copy, known.values)
            partial = scores_of(values) if done else None
            elapsed = time.perf_counter() - start
            progress(Progress(stage, done, total, elapsed, remaining, partial, num_kept))

    if num_kept == total:
        report("run", total, 0.0)
        return scores_of(known.values)
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
    return scores_of(known.values)


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
    check_given(fit_and_score, grid, data)
    _check_folds(data, folds)
    check_positive_int("num_seeds", num_seeds)
    hparams = {name: jnp.asarray(values) for name, values in grid.items()}
    row, seed = np.divmod(np.arange(num_rows * num_seeds, dtype=np.int32), np.int32(num_seeds))

    def one_fold(fold_index):
        train, valid = gather(data, folds, fold_index)

        def one(row, seed):
            numbers = {name: values[row] for name, values in hparams.items()}
            return one_trial(fit_and_score, numbers, train, valid, key, fold_index, seed).means

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


def _scores(
    grid: Grid, held_out: HeldOut, directions: Any, values: TrialScores, *, num_seeds: int
) -> Scores:
    means, examples = jax.tree.map(lambda v: _by_row_fold_seed(v, num_seeds), values)
    return Scores(grid, means, held_out._replace(values=examples), directions)


def _by_row_fold_seed(values, num_seeds):
    """`[fold, row * seed, ...] -> [row, fold, seed, ...]`."""
    shape = (values.shape[0], -1, num_seeds, *values.shape[2:])
    return values.reshape(shape).swapaxes(0, 1)


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


def _check_groups(groups: Any, data: Batch, folds: Folds) -> None:
    if groups is None:
        return
    groups, num_examples = np.asarray(groups), np.shape(data.weights)[0]
    if groups.shape != (num_examples,):
        raise ValueError(
            f"`groups` must have shape ({num_examples},), one group per example; got "
            f"{groups.shape}."
        )
    if not all(map(is_known, folds)):
        return
    train, train_mask, valid, valid_mask = map(np.asarray, folds)
    for fold in range(len(train)):
        both = np.intersect1d(
            groups[train[fold][train_mask[fold]]], groups[valid[fold][valid_mask[fold]]]
        )
        if both.size:
            raise ValueError(
                f"`groups`: group {both[0]} is trained on and held out in fold {fold}; split by "
                "groups, such as folds_from_splits(GroupKFold(5).split(x, y, groups))."
            )
