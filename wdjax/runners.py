"""How a step runs: on one device, sharded over a mesh, or from batches in pmap's layout.

One step, run three ways, with equal results, because the loss is written over the global batch:
no device averages what another has yet to count. Every runner donates the state it made itself
and spares the user's arrays.
"""

import functools
import math
import os
import re
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from wdjax.checks import is_known
from wdjax.interfaces import check_batch
from wdjax.parts import leaf_path
from wdjax.sharding import BATCH_AXES, Rules, batch_sharding, check_mesh, place, state_shardings
from wdjax.step import AnyState, Metrics, StepFn
from wdjax.types import Batch, is_inexact

DEVICES_A_CORE = 4
MOST_PROCESSES = 65_536

RunFn = Callable[[AnyState, Batch], tuple[AnyState, Metrics]]
"""`run(state, batch) -> (state, metrics)`, compiled."""


def jit_step(step: StepFn) -> RunFn:
    """Compiles `step` for one device.

    The state is donated: after `state, metrics = run(state, batch)` the old state's buffers are
    used again for the new one. Arrays that the runner did not make itself (the first state, or
    params that a user put in) are copied before, so they survive.

    Example:
      >>> loss_fn = wdjax.regularized_loss(lambda w, x: x @ w, wdjax.squared_error)
      >>> run = wdjax.jit_step(wdjax.make_train_step(loss_fn, optax.sgd(0.5)))
      >>> state = wdjax.init_state(jnp.array([2.0]), optax.sgd(0.5))
      >>> batch = wdjax.Batch(jnp.ones((1, 1)), jnp.ones(1), jnp.ones(1))
      >>> for _ in range(3):
      ...     state, metrics = run(state, batch)
      >>> print(state.params, metrics["loss"])
      [1.125] 0.03125
    """
    program = jax.jit(_norm_before_writing(step), donate_argnums=0)
    return _sparing_foreign_arrays(lambda state: (None, program))


def shard_step(step: StepFn, mesh: Mesh, rules: Rules = None) -> RunFn:
    """Compiles `step` for a mesh: the batch cut along `data` and `fsdp`, the state by rules.

    The batch size is global, and the means are over the whole batch, so the result equals
    `jit_step`'s up to rounding, with uneven weights and padding, dropout and batch statistics.
    Donates as `jit_step` does.

    Without rules the state is replicated on a mesh of one axis `data`, and cut over the axis `fsdp`
    where there is one, each leaf along its largest axis that divides. A rule gives a leaf its axes
    by its path; what belongs to it (moments, averages, master weights) follows:

        shard_step(step, mesh, rules={"*/kernel": P("fsdp", "tensor"), "*": P()})

    A state that does not fit one device is made by `init_sharded`.

    Raises:
      ValueError: at build, if the mesh has no axis `data` or `fsdp`, or an explicit one; in `run`,
        if the batch size is not divisible by the devices along them, a rule does not fit
        (`resolve_rules`), or a leaf of the state is sharded in another way than it would be here.
    """
    check_mesh(mesh)
    split = batch_sharding(mesh)
    num_parts = math.prod(mesh.shape.get(axis, 1) for axis in BATCH_AXES)
    compiled: dict[Any, RunFn] = {}

    def placed(state: AnyState) -> tuple[PyTree, RunFn]:
        shardings = state_shardings(state, mesh, rules)
        _check_not_elsewhere(state, shardings)
        kind = (jax.tree.structure(shardings), tuple(jax.tree.leaves(shardings)))
        if kind not in compiled:
            compiled[kind] = jax.jit(
                _norm_before_writing(step),
                in_shardings=(shardings, split),
                out_shardings=(shardings, NamedSharding(mesh, P())),
                donate_argnums=0,
            )
        return shardings, compiled[kind]

    run_sharded = _sparing_foreign_arrays(placed)

    def run(state: AnyState, batch: Batch) -> tuple[AnyState, Metrics]:
        check_batch("batch", batch)
        size = np.shape(batch.weights)[0]
        if size % num_parts:
            nearest = -(-size // num_parts) * num_parts
            raise ValueError(
                f"a batch of {size} does not divide over {num_parts} devices; pad it to {nearest} "
                "with rows of weight 0 (they count nothing), or take another batch size."
            )
        return run_sharded(state, batch)

    return run


def pmap_step(step: StepFn, devices: Sequence[Any] | None = None) -> RunFn:
    """Runs `step` on batches in the layout of `jax.pmap`: `[device, batch, ...]`.

    For code that feeds pmap. The state is that of the other runners, not replicated along a
    leading axis. Since JAX 0.8 pmap itself is `jit` over a mesh, and so is this: the same
    program as `shard_step`, so dropout and batch statistics are those of the global batch.
    (For a step under your own `jax.pmap`, pass it `axis_name=`.)

    Args:
      devices: by default all; the batch's leading axis must have their number.

    Raises:
      ValueError: in `run`, if the leading axis is not the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
    run_sharded = shard_step(step, mesh)

    def run(state: AnyState, batch: Batch) -> tuple[AnyState, Metrics]:
        check_batch("batch", batch)
        leading = np.shape(batch.weights)[0]
        if leading != len(devices):
            raise ValueError(
                f"the batch's leading axis must be the {len(devices)} devices, got {leading}: "
                "reshape [batch, ...] to [device, batch / device, ...]."
            )
        return run_sharded(state, jax.tree.map(_join_devices, batch))

    return run


def join_processes(where: str) -> None:
    """Makes this process one of several that run the same program, through `jax.distributed`.

    Call it before anything else of JAX: `jax.devices()` are then those of all processes. On CPUs
    give each process one device: two of several dead-lock on JAX 0.10 when steps queue up.

    Args:
      where: "auto" asks the cluster's own environment (Slurm, Open MPI, Kubernetes, TPU pods);
        else `HOST:PORT,COUNT,INDEX`: where process 0 listens, how many there are, which this is.

    Raises:
      ValueError: if `where` is neither, by the part that is wrong, or no process 0 answers in time.
    """
    if where == "auto":
        arguments: dict[str, Any] = {}
    else:
        address, count, index = _processes_of(where)
        arguments = {"coordinator_address": address, "num_processes": count, "process_id": index}
    try:
        jax.distributed.initialize(**arguments)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"`distributed` = {where!r}: {error}") from error


def _processes_of(where: str) -> tuple[str, int, int]:
    """`HOST:PORT,COUNT,INDEX`: the address, the count and the index.

    What JAX's runtime, which is no Python, would end the whole process for is refused here.
    """
    must = "`distributed` must be auto or HOST:PORT,COUNT,INDEX, such as 10.0.0.1:1234,2,0"
    address, *numbers = where.split(",")
    host, _, port = address.rpartition(":")
    counts = [_whole(number) for number in numbers]
    if not re.fullmatch(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.%]+\]", host):
        raise ValueError(f"{must}; got the host {host!r} in {where!r}.")
    if not 1 <= _whole(port) <= 65535:
        raise ValueError(f"{must}, with a port from 1 to 65535; got {port!r} in {where!r}.")
    if len(counts) != 2:
        raise ValueError(f"{must}; got {len(counts)} numbers after the port in {where!r}.")
    count, index = counts
    if not 1 <= count <= MOST_PROCESSES:
        raise ValueError(
            f"{must}, with a count from 1 to {MOST_PROCESSES}; got {numbers[0]!r} in {where!r}."
        )
    if not 0 <= index < count:
        raise ValueError(
            f"{must}, with an index from 0 to {count - 1}; got {numbers[1]!r} in {where!r}."
        )
    return address, count, index


def _whole(text: str) -> int:
    """A number of plain digits; -1 for anything else, such as a superscript or one of 20 digits."""
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else -1


def check_num_devices(num_devices: int) -> None:
    """Checks that a CPU can be split into so many devices, before JAX tries.

    Raises:
      ValueError: for more than 4 a core: each has threads of its own, and far beyond it the
        process dies of them.
    """
    most = DEVICES_A_CORE * num_cores()
    if num_devices > most:
        raise ValueError(
            f"`devices` must be at most {most}, {DEVICES_A_CORE} for each core of this machine "
            f"({num_cores()}), got devices={num_devices}."
        )


def num_cores() -> int:
    """The processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _norm_before_writing(step: StepFn) -> StepFn:
    """The same step, whose new params wait for the norm of the old ones.

    Both read the old params, and XLA, which sees no order between the norm and the write into
    their donated buffer, copies all of them first. `optimization_barrier` gives it none: on a CPU
    it is gone before buffers are assigned. A norm is never negative, which XLA does not know, so
    this choice orders the two; it joins the loop that writes the params and changes no bit.
    """

    @functools.wraps(step)
    def ordered(state: AnyState, batch: Batch) -> tuple[AnyState, Metrics]:
        new, metrics = step(state, batch)
        if "weight_norm" not in metrics:
            return new, metrics
        impossible = metrics["weight_norm"] < 0
        params = jax.tree.map(
            lambda p: jnp.where(impossible, jnp.zeros_like(p), p) if is_inexact(p) else p,
            new.params,
        )
        return new._replace(params=params), metrics

    return ordered


def _join_devices(leaf):
    return leaf.reshape(leaf.shape[0] * leaf.shape[1], *leaf.shape[2:])


def _check_not_elsewhere(state: AnyState, shardings: PyTree) -> None:
    """Checks that what is cut over devices already is cut as it will be here."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    for (path, leaf), wanted in zip(leaves, jax.tree.leaves(shardings), strict=True):
        if isinstance(leaf, jax.Array) and is_known(leaf):
            there = leaf.sharding
            if not there.is_fully_replicated and not there.is_equivalent_to(wanted, leaf.ndim):
                spec = getattr(there, "spec", there)
                raise ValueError(
                    f"`state` is sharded already: {leaf_path(path)} lies as {spec} over "
                    f"{there.num_devices} devices, and shard_step would put it as {wanted.spec} "
                    f"over {wanted.num_devices}. To keep it so, give `rules` that say so; to give "
                    "it up, jax.device_put(state, NamedSharding(mesh, PartitionSpec()))."
                )


def _sparing_foreign_arrays(placed: Callable[[AnyState], tuple[PyTree, RunFn]]) -> RunFn:
    """Runs a donating program with every state leaf that it did not return itself copied.

    `placed(state) -> (shardings, run)`, asked when there are such leaves: where each belongs (None:
    on the device where it is), and the program for states of that form.
    """
    own: list[weakref.ref] = []
    programs: list[RunFn] = []

    def run(state: AnyState, batch: Batch) -> tuple[AnyState, Metrics]:
        mine = {id(leaf) for ref in own if (leaf := ref()) is not None}
        fresh = state
        if not programs or not all(id(leaf) in mine for leaf in jax.tree.leaves(state)):
            shardings, program = placed(state)
            programs[:] = [program]
            spared = lambda x, *where: x if id(x) in mine else place(x, *where)
            fresh = jax.tree.map(spared, state, *([] if shardings is None else [shardings]))
        fresh, metrics = programs[0](fresh, batch)
        own[:] = [weakref.ref(leaf) for leaf in jax.tree.leaves(fresh)]
        return fresh, metrics

    return run
