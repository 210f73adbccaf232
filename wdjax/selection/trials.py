"""The trial program: runs that differ in numbers, dealt out to devices, compiled once."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PyTree

from wdjax.measures import example_means, weighted_mean
from wdjax.selection.folds import Folds, closed_up, narrowed, sizes, take_masked
from wdjax.selection.scores import leaf_names
from wdjax.types import Batch, TakesPadding, plain_function

FitAndScore = Callable[[Any, Batch, Batch, Array], Any]
"""`fit_and_score(hparams, train, valid, key) -> score or tree of scores`, pure: each a scalar, or
one number per held-out example, in the shape of `valid.weights`."""


class TrialScores(NamedTuple):
    """What one trial gives, or many of them with leading axes."""

    means: PyTree
    """A scalar a score."""
    examples: dict[str, Array]
    """`[example]` of each score that came as one number per held-out example."""


MOST_BLOCKS = 64
"""How many blocks of `trials_at_once` a device can run in one call of the trial program."""


def trial_program(mesh: Mesh | None) -> Any:
    """`_run_chunk` compiled for the mesh's platform: one object each, which holds its programs."""
    static = ("fit_and_score", "mesh", "trials_at_once")
    return _jit_on(platform_of(mesh), _run_chunk, static)


@functools.cache
def _jit_on(platform: str, function: Callable, static: tuple[str, ...]) -> Any:
    # With all its arguments: else the program's text, by which trials are cached, would not say
    # which of them it reads.
    options = compiler_options(platform)
    return jax.jit(function, static_argnames=static, keep_unused=True, compiler_options=options)


def platform_of(mesh: Mesh | None) -> str:
    """The platform of the mesh's devices; without one, the default."""
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def compiler_options(platform: str) -> dict[str, Any] | None:
    """What XLA is asked for on a platform, besides its defaults."""
    if platform != "cpu":
        return None
    # A run spends its time in a library's matrix products: with LLVM's level 1 instead of 3 the
    # program runs as fast and compiles in about 60 % of the time. Loops of the widest vectors there
    # are, instead of XLA's 256 bits, took 7 % off a small run on one processor with wider ones and
    # nothing on another.
    return {"xla_backend_optimization_level": 1, "xla_cpu_prefer_vector_width": 512}


class Chunk(NamedTuple):
    """Trials of one fold for one call of the trial program, dealt out to the devices."""

    fold: int
    trials: np.ndarray
    """`row * num_seeds + seed` of each."""
    slot: np.ndarray
    """Where each lies among the program's `[device, block, trial of the block]`, flat."""
    arguments: tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.int32]
    """`numbers[slot]`, `seed[slot]`, `num_blocks[device]` and `fold`, as the program takes them.

    Host arrays: each operation on a device would be a small program of its own.
    """

    @classmethod
    def of(
        cls,
        numbers: Mapping[str, np.ndarray],
        num_seeds: int,
        fold: int,
        trials: np.ndarray,
        *,
        num_devices: int,
        trials_at_once: int,
    ) -> "Chunk":
        """Deals the trials of a grid out like cards, `trials_at_once` at a time, a block."""
        place = np.arange(len(trials))
        block, lane = np.divmod(place, trials_at_once)
        turn, device = np.divmod(block, num_devices)
        slot = (device * MOST_BLOCKS + turn) * trials_at_once + lane
        num_blocks = np.bincount(device[lane == 0], minlength=num_devices).astype(np.int32)
        # A block that is not full runs the first trial again; blocks beyond the last do not run.
        filled = np.full(num_devices * MOST_BLOCKS * trials_at_once, trials[0])
        filled[slot] = trials
        row, seed = np.divmod(filled, num_seeds)
        own = {name: values[row] for name, values in numbers.items()}
        arguments = (own, seed.astype(np.int32), num_blocks, np.int32(fold))
        return cls(fold, trials, slot, arguments)


def _run_chunk(
    numbers, seed, num_blocks, fold, *, data, folds, key, fit_and_score, mesh, trials_at_once
):
    """The trial program: `numbers[slot]`, `seed[slot]` of one fold -> tree of `[slot]`.

    Each device runs the first `num_blocks[device]` of its blocks, so one program serves any number
    of trials; what the other slots hold counts nothing.
    """
    # As host arrays they could not be indexed where JAX runs this operation by operation, as it
    # does to find a NaN.
    numbers, seed, num_blocks = jax.tree.map(jnp.asarray, (numbers, seed, num_blocks))
    train, valid, num_train = gather(data, folds, fold)

    def on_one_device(trials, shared):
        (numbers, seed, num_blocks), (train, valid, num_train, key, fold) = trials, shared

        @jax.jit  # Compiled as a part of this program, but traced once for both uses below.
        def one(numbers, seed):
            return one_trial(fit_and_score, numbers, train, valid, num_train, key, fold, seed)

        run = one if trials_at_once == 1 else jax.vmap(one)
        of_block = () if trials_at_once == 1 else (trials_at_once,)
        blocks = jax.tree.map(lambda x: x.reshape(MOST_BLOCKS, *of_block), (numbers, seed))
        block = lambda index: jax.tree.map(lambda x: x[index], blocks)
        shapes = jax.eval_shape(run, *block(0))
        scores = jax.tree.map(lambda s: jnp.zeros((MOST_BLOCKS, *s.shape), s.dtype), shapes)

        def run_block(index, so_far):
            new = run(*block(index))
            return jax.tree.map(lambda leaf, value: leaf.at[index].set(value), so_far, new)

        scores = jax.lax.fori_loop(0, num_blocks[0], run_block, scores)
        flat = lambda leaf: leaf.reshape(-1, *leaf.shape[1 + len(of_block) :])
        return jax.tree.map(flat, scores)

    trials, shared = (numbers, seed, num_blocks), (train, valid, num_train, key, fold)
    return split_trials(on_one_device, trials, shared, mesh)


def map_trials(function: Callable, trials: tuple, shared: tuple, *, mesh: Mesh) -> PyTree:
    """`function(*trial, *shared)` for every trial, compiled once and split over `mesh`.

    The results are host arrays, the trials their leading axis.

    Args:
      trials: a tuple of trees with one leading axis, the trials.
      shared: a tuple of trees that every trial sees.
    """
    num_trials = jax.tree.leaves(trials)[0].shape[0]
    results = compiled_trials(function, mesh)(filled_up(trials, mesh.size), shared)
    return jax.tree.map(lambda leaf: on_host(leaf)[:num_trials], results)


def compiled_trials(function: Callable, mesh: Mesh) -> Callable[[tuple, tuple], PyTree]:
    """`function(*trial, *shared)` for every trial, as one compiled program to call again.

    The trials are the leading axis, a multiple of the devices; the results stay on the devices.
    """

    @functools.partial(jax.jit, compiler_options=compiler_options(platform_of(mesh)))
    def program(trials, shared):
        one_by_one = lambda own, shared: jax.lax.map(lambda trial: function(*trial, *shared), own)
        return split_trials(one_by_one, trials, shared, mesh)

    everywhere = NamedSharding(mesh, P())
    return lambda trials, shared: program(*jax.device_put((trials, shared), everywhere))


def filled_up(trials: PyTree, multiple: int) -> PyTree:
    """Trials repeated from the first on until their number is a multiple; to be thrown away."""
    num_trials = jax.tree.leaves(trials)[0].shape[0]
    index = np.arange(num_trials + -num_trials % multiple) % num_trials
    return jax.tree.map(lambda leaf: leaf[index], trials)


def split_trials(on_one_device, trials, shared, mesh):
    """`on_one_device(trials, shared)`, the trials split over the mesh's devices."""
    if mesh is None:
        return on_one_device(trials, shared)
    split = P(mesh.axis_names)
    # Values made inside are replicated, those from the split rows vary: check_vma would refuse a
    # scan that mixes them, as every training loop does.
    over_devices = jax.shard_map(
        on_one_device, mesh=mesh, in_specs=(split, P()), out_specs=split, check_vma=False
    )
    return over_devices(trials, shared)


def one_trial(fit_and_score, numbers, train, valid, num_train, key, fold, seed) -> TrialScores:
    """The scores of one row, fold and seed; the row's `numbers` are not in the key.

    Raises:
      ValueError: for a score that is neither a scalar nor one number per held-out example.
    """
    trial_key = jax.random.fold_in(jax.random.fold_in(key, fold), seed)
    judge = plain_function(getattr(fit_and_score, "by_example", fit_and_score))
    told = {"num_examples": num_train} if isinstance(fit_and_score, TakesPadding) else {}
    scores = judge(numbers, train, valid, trial_key, **told)
    means, examples = [], {}
    for name, score in zip(leaf_names(scores), jax.tree.leaves(scores), strict=True):
        score = jnp.asarray(score, jnp.result_type(score, jnp.float32))
        if score.shape:
            examples[name] = _by_example(name, score, valid.weights)
            score = weighted_mean(examples[name], valid.weights)
        means.append(score)
    return TrialScores(jax.tree.unflatten(jax.tree.structure(scores), means), examples)


def _by_example(name: str, score: Array, weights: Array) -> Array:
    """`[example]`, from one number per example or in the shape of the weights."""
    if score.shape == weights.shape:
        return example_means(score, weights)
    if score.shape == weights.shape[:1]:
        return jnp.where(weights.reshape(len(weights), -1).max(axis=1) > 0, score, 0)
    raise ValueError(
        "`fit_and_score` must return scalars, one score a run, or one number per held-out "
        f"example, here shape {weights.shape}; {name} has shape {score.shape}."
    )


def gather(data: Batch, folds: Folds, fold: Any) -> tuple[Batch, Batch, Array]:
    """The training and the held-out part of a fold, and how many rows of the first count."""
    one = jax.tree.map(lambda index: jnp.asarray(index)[fold], folds)
    train = take_masked(data, one.train, one.train_mask)
    valid = take_masked(data, one.valid, one.valid_mask)
    return train, valid, jnp.sum(one.train_mask, dtype=jnp.int32)


class ProgramFolds(NamedTuple):
    """Folds that one program can run."""

    members: np.ndarray
    """Which folds, `[member]`."""
    folds: Folds
    """All folds, as wide as the longest member: those that are no members may be cut short."""


def folds_by_program(fit_and_score: FitAndScore, folds: Folds) -> list[ProgramFolds]:
    """The folds by what they are padded to, so that each trains as it would alone.

    Of what `TakesPadding`, as `make_fit_and_score` builds it, folds of one count of steps share a
    program (those of `kfold` do, unless their sizes, n and n + 1, lie on both sides of a multiple
    of the batch size). Any other function is never shown a row that is not of the fold: folds of
    equal sizes share one (two of `kfold`, at most). Where the sizes are traced, all share one,
    padded to their width, see `unlike_the_longest`.
    """
    known = sizes(folds)
    if known is None:
        return [ProgramFolds(np.arange(folds.train.shape[0]), closed_up(folds))]
    kinds = [_kind(fit_and_score, *map(int, size)) for size in zip(*known, strict=True)]
    groups = []
    for kind in dict.fromkeys(kinds):
        members = np.flatnonzero([other == kind for other in kinds])
        longest = (int(size[members].max()) for size in known)
        groups.append(ProgramFolds(members, narrowed(folds, *longest)))
    return groups


def _kind(fit_and_score: FitAndScore, num_train: Any, num_valid: Any) -> Any:
    if isinstance(fit_and_score, TakesPadding):
        return fit_and_score.num_steps(num_train)
    return num_train, num_valid


def unlike_the_longest(fit_and_score: FitAndScore, folds: Folds, fold: Any) -> Array:
    """Whether a fold whose size is traced is of another kind than its width: it cannot be run."""
    count = lambda mask: jnp.sum(jnp.asarray(mask)[fold], dtype=jnp.int32)
    own = _kind(fit_and_score, count(folds.train_mask), count(folds.valid_mask))
    widths = _kind(fit_and_score, folds.train.shape[1], folds.valid.shape[1])
    differs = [a != b for a, b in zip(*map(jax.tree.leaves, (own, widths)), strict=True)]
    return jnp.any(jnp.stack(differs))


def missing_trials(found: np.ndarray, width: int) -> Iterator[tuple[int, np.ndarray]]:
    """`(fold, trials)` of each chunk to run: at most four a fold if the program holds them."""
    for fold, row in enumerate(found):
        trials = np.flatnonzero(~row)
        blocks = -(-len(trials) // width)
        size = width * min(MOST_BLOCKS, max(1, -(-blocks // 4)))
        for begin in range(0, len(trials), size):
            yield fold, trials[begin : begin + size]


def dispatched(
    programs: Mapping[int, Callable], chunks: Iterable[Chunk]
) -> Iterator[tuple[Chunk, PyTree]]:
    """Yields `(chunk, scores)`, the next chunk already under way: devices never wait.

    Args:
      programs: of each fold.
      chunks: in the order in which they run.
    """
    waiting = None
    for chunk in chunks:
        current = chunk, programs[chunk.fold](*chunk.arguments)
        if waiting is not None:
            yield waiting
        waiting = current
    if waiting is not None:
        yield waiting


def on_host(leaf: Array) -> np.ndarray:
    """The whole array, also where other processes hold a part of it."""
    if leaf.is_fully_addressable:
        return np.asarray(leaf)
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
