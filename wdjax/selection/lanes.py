"""Runs that are advanced together, judged on a side branch, and dropped: lanes of a program.

A run is a trial (row, fold, seed) as in `cross_validate`: the same keys, examples and operations.
Between two calls the states wait on the host, so a device holds only those of the lanes that run.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PyTree

from wdjax.checkpoint.leaves import data_of
from wdjax.memory import memory_of
from wdjax.run import Run
from wdjax.selection.folds import Folds
from wdjax.selection.grids import GridLike
from wdjax.selection.search import Stepwise
from wdjax.selection.trials import (
    ProgramFolds,
    TrialScores,
    compiler_options,
    folds_by_program,
    gather,
    on_host,
    one_trial,
    platform_of,
    split_trials,
)
from wdjax.step import TrainState
from wdjax.training import advance, make_fit_and_score, nan_if_diverged, steps_per_epoch
from wdjax.types import Batch, Fit, TakesPadding


class Block(NamedTuple):
    """Lanes of one fold for one call of a program."""

    lanes: np.ndarray
    """Which of the fold's lanes."""
    filled: np.ndarray
    """The same, the first repeated until the program is full."""
    numbers: dict[str, np.ndarray]
    seed: np.ndarray


@dataclasses.dataclass
class Lanes:
    """The runs that are still in a search, `[fold][row * num_seeds + seed]`.

    Args:
      stepwise: how a run is made, advanced and scored.
      grid, data, folds, key, num_seeds, mesh: as in `cross_validate`.
      at_once: lanes vmapped together on a device, at most.
    """

    stepwise: Stepwise
    grid: GridLike
    data: Batch
    folds: Folds
    key: Array
    num_seeds: int
    at_once: int
    mesh: Mesh | None

    def __post_init__(self):
        self.rows = np.arange(len(next(iter(self.grid.values()))))
        """Of the grid, which are still in."""
        self.states: dict[int, PyTree] = {}
        """`{fold: [lane]}` on the host."""
        self.epochs_run = 0
        """Over all lanes, side branches included."""
        self.memory = 0
        """Bytes of the largest compiled program."""
        self._numbers = {name: data_of(np.asarray(v)) for name, v in self.grid.items()}
        put = functools.partial(_put, mesh=self.mesh)
        self._data, self._key = put((self.data, self.key))
        self._programs: dict[Any, Any] = {}
        padded = TakesPadding(lambda: None, lambda n: n // self.stepwise.batch_size)
        self._groups: dict[int, ProgramFolds] = {}
        for group in folds_by_program(padded, self.folds):
            group = group._replace(folds=put(group.folds))
            self._groups |= dict.fromkeys(group.members.tolist(), group)
        self._static = {"stepwise": self.stepwise, "mesh": self.mesh}

    @property
    def num_lanes(self) -> int:
        """Of a fold."""
        return len(self.rows) * self.num_seeds

    @property
    def width(self) -> int:
        """Lanes vmapped together on a device: no more than are left, to the next power of two."""
        of_a_device = -(-self.num_lanes // self._num_devices)
        return min(self.at_once, 2 ** (of_a_device - 1).bit_length())

    def start(self) -> None:
        """Every lane at its first params."""
        for fold in self._groups:
            blocks = ((block, self._call(_start, fold, block)) for block in self._blocks())
            self.states[fold] = _collected(blocks, self.num_lanes)

    def advance(self, num_epochs: int, end: int) -> None:
        """Every lane so many epochs further, on the schedule of a run of `end` epochs."""
        if not num_epochs:
            return
        for fold in self._groups:
            done = ((b, self._go(fold, b, num_epochs, end)) for b in self._blocks())
            self.states[fold] = _collected(done, self.num_lanes)

    def branch(self, num_epochs: int, end: int) -> TrialScores:
        """The scores of every lane so many epochs further on; the states stay where they are.

        On the held-out parts alone; every leaf `[fold, lane, ...]`.
        """
        return self._scored(lambda fold, b: self._go(fold, b, num_epochs, end), False)

    def finish(self) -> TrialScores:
        """The scores of every lane where it is, as `cross_validate` takes them."""
        return self._scored(self._states, True)

    def keep(self, rows: np.ndarray) -> None:
        """Drops the lanes of all other rows."""
        place = np.flatnonzero(np.isin(self.rows, rows))
        lanes = (place[:, None] * self.num_seeds + np.arange(self.num_seeds)).ravel()
        self.states = jax.tree.map(lambda leaf: leaf[lanes], self.states)
        self.rows = self.rows[place]

    @property
    def _num_devices(self) -> int:
        return 1 if self.mesh is None else self.mesh.size

    def _blocks(self) -> Iterator[Block]:
        size = self.width * self._num_devices
        for begin in range(0, self.num_lanes, size):
            lanes = np.arange(begin, min(begin + size, self.num_lanes))
            filled = np.full(size, lanes[0])
            filled[: len(lanes)] = lanes
            row, seed = np.divmod(filled, self.num_seeds)
            own = {name: values[self.rows[row]] for name, values in self._numbers.items()}
            yield Block(lanes, filled, own, seed.astype(np.int32))

    def _states(self, fold: int, block: Block) -> PyTree:
        return jax.tree.map(lambda leaf: leaf[block.filled], self.states[fold])

    def _go(self, fold: int, block: Block, num_epochs: int, end: int) -> PyTree:
        self.epochs_run += num_epochs * len(block.lanes)
        far = {"num_epochs": np.int32(num_epochs)}
        # One program for all rungs where the schedule takes a length that is traced, else one each.
        if self._traces:
            far, static = far | {"end": np.int32(end)}, {}
        else:
            static = {"known_end": end}
        return self._call(go, fold, block, self._states(fold, block), static=static, **far)

    @functools.cached_property
    def _traces(self) -> bool:
        """Whether `make_run` takes a number of steps that has no value yet."""
        group = next(iter(self._groups.values()))
        block = next(self._blocks())

        def step(end):
            train, _, _ = gather(self._data, group.folds, np.int32(0))
            run, batch = _run_of(self.stepwise, train, end), _first(train, self.stepwise)
            hparams = jax.tree.map(lambda x: jnp.asarray(x)[0], block.numbers)
            return run.step(hparams, run.init(hparams, batch.inputs, self._key), batch)[0]

        try:
            jax.eval_shape(step, np.int32(1))
        # Whatever the schedule is written with says in its own way that it needs the number.
        except Exception:
            return False
        return True

    def _scored(self, states_of: Callable[[int, Block], PyTree], with_train: bool) -> TrialScores:
        static = {"with_train": with_train}
        found = {}
        for fold in self._groups:
            score = functools.partial(self._call, _score, fold, static=static)
            blocks = ((block, score(block, states_of(fold, block))) for block in self._blocks())
            found[fold] = _collected(blocks, self.num_lanes)
        return jax.tree.map(lambda *folds: _stacked(folds), *(found[f] for f in sorted(found)))

    def _call(
        self, function: Callable, fold: int, block: Block, *args: Any, static: Any = None, **numbers
    ) -> PyTree:
        group = self._groups[fold]
        given = {"data": self._data, "folds": group.folds, "key": self._key, **numbers}
        known = {**self._static, "at_once": self.width, **(static or {})}
        program = compiled(platform_of(self.mesh), function, tuple(sorted(known)))
        given |= {"fold": np.int32(fold), "numbers": block.numbers, "seed": block.seed}
        args = (given, *args)
        name = (function, id(group), tuple(known.values()))
        if name not in self._programs:
            # Compiled ahead to ask what memory it takes; the call finds it.
            self._programs[name] = analysis = program.lower(*args, **known).compile()
            self.memory = max(self.memory, memory_of(analysis) or 0)
        return program(*args, **known)


@functools.cache
def compiled(platform: str, function: Callable, static: tuple[str, ...]) -> Any:
    """`function` as a program, one object for each, which holds what was compiled."""
    options = compiler_options(platform)
    return jax.jit(function, static_argnames=static, compiler_options=options)


def _start(given, *, stepwise, mesh, at_once):
    """The state of each lane before its first step, keys as numbers."""

    def one(numbers, seed, _, shared):
        train = shared["train"]
        run = _run_of(stepwise, train, stepwise.num_epochs)
        return _packed(run.init(numbers, _first(train.inputs, stepwise), _lane_key(shared, seed)))

    return _map_lanes(one, given, None, stepwise, mesh, at_once)


def go(given, states, *, stepwise, mesh, at_once, known_end=None):
    """Each lane `given["num_epochs"]` further on the schedule of a run of `end` epochs."""

    def one(numbers, seed, packed, shared):
        train, key = shared["train"], _lane_key(shared, seed)
        run = _run_of(stepwise, train, shared["end"] if known_end is None else known_end)
        how = {"batch_size": stepwise.batch_size, "key": key, "num_examples": shared["num_train"]}
        further = lambda _, state: advance(run, numbers, state, train, 1, **how)[0]
        state = _unpacked(packed, run, numbers, _first(train.inputs, stepwise), key)
        return _packed(jax.lax.fori_loop(0, shared["num_epochs"], further, state))

    return _map_lanes(one, given, states, stepwise, mesh, at_once)


def _score(given, states, *, stepwise, mesh, at_once, with_train):
    """The scores of each lane where it is: on the held-out part, and on the training part."""
    score = stepwise.score

    def one(numbers, seed, packed, shared):
        # Of the state's key, which scores do not need, these are but the numbers.
        fit = Fit(packed.params, packed.model_state, {})
        if with_train:
            judge = make_fit_and_score(lambda hparams, train, key: fit, score)
        else:
            on_valid = getattr(score, "by_example", score)
            judge = lambda h, train, valid, key: nan_if_diverged(on_valid(fit, valid), fit.params)
        parts = shared["train"], shared["valid"], shared["num_train"]
        return one_trial(judge, numbers, *parts, shared["key"], shared["fold"], seed)

    return _map_lanes(one, given, states, stepwise, mesh, at_once)


def _map_lanes(
    one: Callable,
    given: dict[str, Any],
    states: PyTree,
    stepwise: Stepwise,
    mesh: Any,
    at_once: int,
) -> PyTree:
    """`one(numbers, seed, state, shared)` of every lane; the parts of the fold are shared."""
    train, valid, num_train = gather(given["data"], given["folds"], given["fold"])
    if stepwise.scale is not None:
        train, valid = stepwise.scale(train, valid)
    shared = {"train": train, "valid": valid, "num_train": num_train}
    shared |= {name: given[name] for name in ("key", "fold", "num_epochs", "end") if name in given}

    def on_one_device(lanes, shared):
        if at_once > 1:
            return jax.vmap(lambda *lane: one(*lane, shared))(*lanes)
        alone = one(*jax.tree.map(lambda leaf: jnp.asarray(leaf)[0], lanes), shared)
        return jax.tree.map(lambda leaf: leaf[None], alone)

    lanes = given["numbers"], given["seed"], states
    return split_trials(on_one_device, lanes, shared, mesh)


def _run_of(stepwise: Stepwise, train: Batch, num_epochs: Any) -> Run:
    """On the schedule of a run of so many epochs."""
    steps = steps_per_epoch(train, stepwise.batch_size)
    return stepwise.make_run(train.inputs, num_epochs * steps)


def _first(tree: PyTree, stepwise: Stepwise) -> PyTree:
    return jax.tree.map(lambda x: x[: stepwise.batch_size], tree)


def _lane_key(shared: dict[str, Any], seed: Any) -> Array:
    """As in `one_trial`."""
    return jax.random.fold_in(jax.random.fold_in(shared["key"], shared["fold"]), seed)


def _packed(state: TrainState) -> TrainState:
    """With keys as numbers, which the host can hold."""
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf, state)


def _unpacked(packed: TrainState, run: Run, *of_init: Any) -> TrainState:
    """The state again, its keys as `run.init` makes them."""
    like = jax.eval_shape(run.init, *of_init)
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    impl = jax.random.key_impl(of_init[-1])
    restored = lambda leaf, like: (
        jax.random.wrap_key_data(leaf, impl=impl) if is_key(like) else leaf
    )
    return jax.tree.map(restored, packed, like)


def _collected(blocks: Iterator[tuple[Block, PyTree]], num_lanes: int) -> PyTree:
    """What the blocks of a fold give, on the host, each under way before the last one is read."""
    found, waiting = None, None
    for current in itertools.chain(blocks, [None]):
        if waiting is not None:
            block, results = waiting
            results = jax.tree.map(on_host, results)
            if found is None:
                empty = lambda leaf: np.empty((num_lanes, *leaf.shape[1:]), leaf.dtype)
                found = jax.tree.map(empty, results)
            for leaf, new in zip(*map(jax.tree.leaves, (found, results)), strict=True):
                leaf[block.lanes] = new[: len(block.lanes)]
        waiting = current
    return found


def _stacked(folds: tuple[np.ndarray, ...]) -> np.ndarray:
    """`[fold, ...]`; what lies beyond the examples of a fold is 0, as padding is."""
    widest = max(leaf.shape for leaf in folds)
    stacked = np.zeros((len(folds), *widest), folds[0].dtype)
    for whole, leaf in zip(stacked, folds, strict=True):
        whole[tuple(map(slice, leaf.shape))] = leaf
    return stacked


def _put(tree: PyTree, mesh: Mesh | None) -> PyTree:
    return jax.device_put(tree, None if mesh is None else NamedSharding(mesh, P()))
