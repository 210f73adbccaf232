"""Cross-validation: grid x folds x seeds as one compiled program, called chunk by chunk.

A chunk lies inside one fold, which is gathered once and shared by its trials. Neither the number
of rows nor that of seeds is in the program: a second call with the same function, data and folds
compiles nothing, if both have trials enough to run as many at once.

A score that comes as one number per held-out example is their weighted mean. Single examples tell
how much of a difference between two rows is due to which examples were held out: `choose` needs
them to be sure of a small one. What `make_fit_and_score` builds gives them.
"""

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
from wdjax.checks import LARGEST_COUNT, check_positive_int
from wdjax.host_checks import check_given
from wdjax.memory import memory_of
from wdjax.moved import moved_field, moved_keywords
from wdjax.selection.cache import CachedTrials, find_cached
from wdjax.selection.checked import check_folds, check_groups, checked_num_rows
from wdjax.selection.folds import Folds, closed_up, sizes
from wdjax.selection.grids import GridLike
from wdjax.selection.scores import HeldOut, Scores
from wdjax.selection.scores import standard_error_over_folds as standard_error_over_folds
from wdjax.selection.slopes import check_slopes, part, with_slopes
from wdjax.selection.trials import (
    Chunk,
    FitAndScore,
    ProgramFolds,
    TrialScores,
    compiler_options,
    dispatched,
    folds_by_program,
    gather,
    missing_trials,
    on_host,
    one_trial,
    platform_of,
    trial_program,
    unlike_the_longest,
)
from wdjax.sharding import replicate
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
    cached: int = 0
    """Of `done`, those whose scores were in the cache."""
    memory: int | None = None
    """Bytes that the largest program compiled so far takes on a device, arguments and results
    counted, by its compiler's own analysis; None before one, and where the compiler says none."""

    kept = moved_field("Progress", "kept", "cached")


@moved_keywords(kept="cache")
def cross_validate(
    fit_and_score: FitAndScore,
    grid: GridLike,
    data: Batch,
    folds: Folds,
    *,
    key: Array,
    num_seeds: int = 1,
    trials_at_once: int | None = None,
    mesh: Mesh | None = None,
    progress: Callable[[Progress], None] | None = None,
    cache: str | os.PathLike[str] | None = None,
    groups: Any = None,
    slopes: Any = (),
) -> Scores:
    """Runs `fit_and_score` for every grid row, fold and seed in one compiled program.

        values[row, fold, seed] =
            fit_and_score(grid[row], train[fold], valid[fold], key[fold, seed])

    A second call compiles nothing, and with `cache` trains only the missing trials. A fold trains
    as it would alone (`selection.trials.folds_by_program` says which share a program).

    Args:
      fit_and_score: pure, `(hparams, train, valid, key) -> score or tree of scores`, each a scalar
        or one number per held-out example (in the shape of `valid.weights`), from which `choose`
        can be surer. Pass the same function object again to find the compiled program.
      grid: `{name: values[row]}`; `hparams` is a dict of its rows' scalars.
      data: all examples.
      folds: from `kfold` or `folds_from_splits`.
      key: `key[fold, seed] = fold_in(fold_in(key, fold), seed)`: rows are paired.
      num_seeds: runs per row and fold, >= 1.
      trials_at_once: runs vmapped together on a device; the others follow one by one. By
        default 1 on a CPU, whose cores one run fills, else 16.
      mesh: splits the trials over all its axes; by default one device runs them all. It may
        span several processes (`jax.distributed`), each of which calls this with the same
        arguments and gets all the scores.
      progress: called with a `Progress` before and after compiling and after every chunk.
      cache: a folder for the scores of finished trials, which are looked up before one is run,
        see `selection.cache`. By default none. It only grows, and may be deleted at any time.
      groups: `[example]`, what examples that belong together share (the rows of a patient): they
        vary together, so `choose` counts groups, not examples. Each must lie within one held-out
        part (`folds_from_splits(GroupKFold(5).split(x, y, groups))`).
      slopes: axes of the grid in whose logarithm every score is differentiated, through the whole
        run; `Scores.slopes` holds the derivatives. Each costs one to two runs more.

    Raises:
      ValueError: if the grid is empty or ragged, what is known of grid and data cannot be run (see
        `wdjax.host_checks.check_given`), the data is empty or does not fit the folds, `num_seeds`
        or `trials_at_once` is below 1, a score is neither a scalar nor one number per held-out
        example, weights are negative, not finite, or all zero in a part of a fold, or a group is
        trained on and held out in one fold; for `slopes`, see `selection.slopes.check_slopes`.
    """
    start = time.perf_counter()
    num_rows = _checked(fit_and_score, grid, data, folds, num_seeds, groups)
    names = check_slopes(fit_and_score, grid, data, folds, key, slopes)
    at_once = _at_once(trials_at_once, num_rows * num_seeds, mesh)
    folds = closed_up(folds)  # As in the programs and their scores.
    lanes = {"num_seeds": num_seeds, "at_once": at_once, "mesh": mesh}
    planned = _plan(with_slopes(fit_and_score, names), grid, data, folds, key, **lanes)
    known = CachedTrials.nothing(planned.widest, (folds.train.shape[0], num_rows * num_seeds))
    if cache is not None:
        known = _look_up(known, cache, planned, (data, key), num_seeds, mesh)
    directions = getattr(fit_and_score, "higher_is_better", {})
    held_out = HeldOut.of(data, folds, groups)
    scores_of = functools.partial(_scores, grid, held_out, directions, names, num_seeds=num_seeds)
    report = functools.partial(_report, progress, scores_of, known, int(known.found.sum()), start)
    _train_missing(planned, known, _rows_of(folds), report)
    return scores_of(known.values)


def _checked(
    fit_and_score: FitAndScore,
    grid: GridLike,
    data: Batch,
    folds: Folds,
    num_seeds: Any,
    groups: Any = None,
) -> int:
    num_rows = checked_num_rows(grid)
    check_given(fit_and_score, grid, data)
    check_folds(data, folds)
    check_groups(groups, data, folds)
    check_positive_int("num_seeds", num_seeds, high=LARGEST_COUNT)
    return num_rows


class _Planned(NamedTuple):
    """The programs of a cross-validation, and how their trials are dealt out."""

    numbers: dict[str, np.ndarray]
    groups: list[ProgramFolds]
    programs: dict[int, Callable]
    """Of each fold."""
    lowered: list[Any]
    """Of each group of folds."""
    deal: Callable[..., Chunk]
    width: int
    """Trials that run at a time, over all devices."""
    device: Any
    """One of those that run them."""

    @property
    def widest(self) -> PyTree:
        """What the program of the most held-out examples gives, as shapes."""
        sizes = lambda shapes: sum(leaf.size for leaf in jax.tree.leaves(shapes))
        return max((program.out_info for program in self.lowered), key=sizes)


def _plan(
    fit_and_score: FitAndScore,
    grid: GridLike,
    data: Batch,
    folds: Folds,
    key: Array,
    *,
    num_seeds: int,
    at_once: int,
    mesh: Mesh | None,
) -> _Planned:
    num_devices = 1 if mesh is None else mesh.size
    # On the host, in the dtype that a program takes.
    numbers = {name: data_of(np.asarray(values)) for name, values in grid.items()}
    # On the device once, not once a chunk; on every device of a mesh.
    data, key = _put((data, key), mesh)
    static = {"fit_and_score": fit_and_score, "mesh": mesh, "trials_at_once": at_once}
    deal = functools.partial(
        Chunk.of, numbers, num_seeds, num_devices=num_devices, trials_at_once=at_once
    )
    groups, programs, lowered = folds_by_program(fit_and_score, folds), {}, []
    for group in groups:
        shared = {"data": data, "folds": _put(group.folds, mesh), "key": key}
        program = functools.partial(trial_program(mesh), **shared, **static)
        programs |= dict.fromkeys(group.members.tolist(), program)
        # Lowered and compiled ahead only to name it and to tell compiling from running; the calls
        # below find this program.
        first = deal(int(group.members[0]), np.arange(1)).arguments
        lowered.append(program.func.lower(*first, **program.keywords))
    device = jax.tree.leaves(data)[0].addressable_shards[0].device
    return _Planned(numbers, groups, programs, lowered, deal, num_devices * at_once, device)


def _look_up(
    known: CachedTrials,
    cache: str | os.PathLike[str],
    planned: _Planned,
    inputs: tuple[Batch, Array],
    num_seeds: int,
    mesh: Mesh | None,
) -> CachedTrials:
    """What the cache holds of all trials; the same on every process."""
    data, key = inputs
    how = {"options": compiler_options(platform_of(mesh)), "device": planned.device}
    for group, program in zip(planned.groups, planned.lowered, strict=True):
        of_group = data, group, key
        find_cached(known, cache, program, planned.numbers, of_group, num_seeds, **how)
    return _as_the_first_process(known, mesh)


def _train_missing(
    planned: _Planned,
    known: CachedTrials,
    rows: np.ndarray,
    report: Callable[..., None],
) -> None:
    """Runs the trials that are not known yet, chunk by chunk; `rows[fold]` train in each."""
    done = int(known.found.sum())
    if done == known.found.size:
        report("run", done, 0.0)
        return
    report("compile", done, None)
    sizes = [
        memory_of(program.compile())
        for group, program in zip(planned.groups, planned.lowered, strict=True)
        if not known.found[group.members].all()
    ]
    memory = max((size for size in sizes if size is not None), default=None)
    compiled_at, rows_done = time.perf_counter(), 0
    report("run", done, None, memory)
    # The time of a trial grows with the rows it trains on.
    rows_left = int(rows @ (~known.found).sum(axis=1))
    chunks = (planned.deal(*one) for one in missing_trials(known.found, planned.width))
    for chunk, pending in dispatched(planned.programs, chunks):
        scores = jax.tree.map(lambda leaf, slot=chunk.slot: on_host(leaf)[slot], pending)
        known.add(chunk.fold, chunk.trials, scores)
        done += len(chunk.trials)
        newly = int(rows[chunk.fold]) * len(chunk.trials)
        rows_done, rows_left = rows_done + newly, rows_left - newly
        rate = (time.perf_counter() - compiled_at) / rows_done
        report("run", done, rows_left * rate, memory)


def _report(
    progress: Callable[[Progress], None] | None,
    scores_of: Callable[[PyTree], Scores],
    known: CachedTrials,
    num_cached: int,
    start: float,
    stage: str,
    done: int,
    remaining: float | None,
    memory: int | None = None,
) -> None:
    if progress is None:
        return
    # A copy: the listener may keep it while the next chunks fill the array.
    partial = scores_of(jax.tree.map(np.copy, known.values)) if done else None
    elapsed = time.perf_counter() - start
    total = known.found.size
    progress(Progress(stage, done, total, elapsed, remaining, partial, num_cached, memory))


def _rows_of(folds: Folds) -> np.ndarray:
    """How many rows train, `[fold]`; folds that are run are known."""
    return (np.asarray(folds.train_mask) > 0).sum(axis=1)


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
    grid: GridLike,
    data: Batch,
    folds: Folds,
    *,
    key: Array,
    num_seeds: int = 1,
) -> PyTree:
    """The traceable form of `cross_validate`: a tree of `[row, fold, seed]`, equal run by run.

    For `jit`, `vmap` and derivatives: no chunks, no progress, no mesh.
    Folds follow one by one; the trials of a fold are vmapped. Each further count of steps, or pair
    of sizes, makes the program longer, as it makes further programs there. For that the sizes of
    the folds must be known: make them inside with `kfold` (whose sizes no key changes), or close
    over them. Where `folds` are an argument of `jit` or `vmap`, all must be of one kind: the
    scores of a fold that takes another count of steps than its padded width would (for a function
    that does not take padding: of a fold that is padded at all) are NaN.

    Raises:
      ValueError: as `cross_validate`.
    """
    num_rows = _checked(fit_and_score, grid, data, folds, num_seeds)
    hparams = {name: jnp.asarray(values) for name, values in grid.items()}
    row, seed = np.divmod(np.arange(num_rows * num_seeds, dtype=np.int32), np.int32(num_seeds))

    def one_fold(folds, fold_index):
        train, valid, num_train = gather(data, folds, fold_index)

        def one(row, seed):
            numbers = {name: values[row] for name, values in hparams.items()}
            return one_trial(
                fit_and_score, numbers, train, valid, num_train, key, fold_index, seed
            ).means

        scores = jax.vmap(one)(row, seed)
        if sizes(folds) is None:
            unlike = unlike_the_longest(fit_and_score, folds, fold_index)
            scores = jax.tree.map(lambda s: jnp.where(unlike, jnp.nan, s), scores)
        return scores

    programs = folds_by_program(fit_and_score, folds)
    values = [
        jax.lax.map(functools.partial(one_fold, group.folds), jnp.asarray(group.members))
        for group in programs
    ]
    in_order = np.argsort(np.concatenate([group.members for group in programs]))
    values = jax.tree.map(lambda *of_each: jnp.concatenate(of_each)[in_order], *values)
    return jax.tree.map(lambda v: _by_row_fold_seed(v, num_seeds), values)


def _as_the_first_process(known: CachedTrials, mesh: Mesh | None) -> CachedTrials:
    """What the first process found: all run the same trials, and it alone writes them."""
    if mesh is None or NamedSharding(mesh, P()).is_fully_addressable:
        return known
    leaves, structure = jax.tree.flatten(known.values)
    # As bits: a NaN is a score like any other.
    told = (known.found, [leaf.view(np.uint32) for leaf in leaves])
    found, bits = jax.tree.map(np.array, multihost_utils.broadcast_one_to_all(told))
    values = [new.view(leaf.dtype) for new, leaf in zip(bits, leaves, strict=True)]
    files = known.files if jax.process_index() == 0 else {}
    return CachedTrials(files, known.names, found, jax.tree.unflatten(structure, values))


def _put(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """`tree` on the device, or on every device of the mesh; only to be read, so it may share
    the caller's memory."""
    if mesh is None:
        return jax.device_put(tree)
    everywhere = NamedSharding(mesh, P())
    shared = everywhere.is_fully_addressable
    return jax.device_put(tree, everywhere) if shared else replicate(tree, mesh)


def _scores(
    grid: GridLike,
    held_out: HeldOut,
    directions: Any,
    names: tuple[str, ...],
    values: TrialScores,
    *,
    num_seeds: int,
) -> Scores:
    values = jax.tree.map(lambda v: _by_row_fold_seed(v, num_seeds), values)
    (means, examples), slopes = part(values, names)
    held_out = held_out._replace(
        values=examples, slopes={name: own.examples for name, own in slopes.items()}
    )
    return Scores(grid, means, held_out, directions, {n: own.means for n, own in slopes.items()})


def _by_row_fold_seed(values, num_seeds):
    """`[fold, row * seed, ...] -> [row, fold, seed, ...]`."""
    shape = (values.shape[0], -1, num_seeds, *values.shape[2:])
    return values.reshape(shape).swapaxes(0, 1)
