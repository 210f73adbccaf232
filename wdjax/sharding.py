"""Where each leaf of a state lies: path rules -> its axes of a mesh.

A leaf `[in, out]` with the spec `P("fsdp", "tensor")` is cut along its first axis over the devices
of the mesh's axis `fsdp`, along its second over those of `tensor`. XLA then writes the collectives
that a program needs; what looks at one number at a time, such as decay, needs none.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from wdjax.checks import nearest
from wdjax.parts import leaf_path
from wdjax.parts.rules import check_distinct_paths, matches_pattern
from wdjax.tables import Table
from wdjax.types import Params

BATCH_AXES = ("data", "fsdp")
"""The axes of a mesh that a batch is cut over; over any other its rows are the same."""

Rules = Mapping[str, PartitionSpec | tuple] | Callable[[Params], PyTree] | None
"""Path patterns -> specs, a function `params -> tree of specs`, or None: `split_largest_axis`."""


def resolve_rules(rules: Rules, params: Params, mesh: Mesh) -> PyTree:
    """The `PartitionSpec` of every leaf of `params`, checked against its shape and the mesh.

    - a mapping of path patterns to specs, as in `resolve_parts`: the first match wins, `role:
      kernel` stands for a role, all leaves need one: `{"*/kernel": P("fsdp", "tensor"), "*": P()}`;
    - a function `params -> tree of specs`;
    - None: `split_largest_axis`, which replicates where the mesh has no axis `fsdp`.

    Args:
      rules: as above.
      params: the tree, of arrays or of `jax.ShapeDtypeStruct`s.
      mesh: its axes have any names; `data` and `fsdp` are those that a batch is cut over.

    Raises:
      ValueError: for a pattern that is first for no leaf, or a leaf that has none; a spec of more
        axes than its leaf, of an axis that the mesh lacks or that stands there twice, or one that
        does not divide the leaf, with the nearest sizes that it does.
    """
    if rules is None:
        rules = lambda params: split_largest_axis(params, mesh)
    if callable(rules):
        specs = rules(params)
    elif isinstance(rules, Mapping):
        specs = _match(rules, params)
    else:
        raise ValueError(
            "`rules` must be a mapping of path patterns to PartitionSpecs, a function of the "
            f"params, or None, got {type(rules).__name__}."
        )
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf, spec: _checked(leaf_path(path), np.shape(leaf), spec, mesh),
        params,
        specs,
    )


def split_largest_axis(params: Params, mesh: Mesh, axis: str = "fsdp") -> PyTree:
    """Specs that cut every leaf over one axis of the mesh, along its largest axis that divides.

    Of axes of one size the first is cut. A leaf without such an axis lies whole on every device,
    as all do where the mesh lacks the axis: biases and gains of a few numbers, and scalars.

    Source: Zhao et al. 2023, "PyTorch FSDP", arXiv:2304.11277; Rajbhandari et al. 2020, "ZeRO",
    arXiv:1910.02054. (They cut a flattened leaf; one that keeps its axes needs no copy to be used.)
    """
    count = mesh.shape.get(axis, 1)

    def of(leaf: Any) -> PartitionSpec:
        sizes = np.shape(leaf)
        fitting = [i for i, size in enumerate(sizes) if size and size % count == 0]
        if count == 1 or not fitting:
            return PartitionSpec()
        largest = max(fitting, key=lambda i: sizes[i])
        return PartitionSpec(*([None] * largest), axis)

    return jax.tree.map(of, params)


def state_shardings(state: Any, mesh: Mesh, rules: Rules = None) -> PyTree:
    """Where every leaf of a training's state lies, a tree of `NamedSharding`s like the state.

    The params follow the rules. What has the path of a param at its end and its shape goes with
    it: moments, momenta, averages, master weights, references. All else (counts, keys, factored
    moments, the model's own state) lies whole on every device.

    Args:
      state: a `TrainState`, or what holds one's fields; arrays or shapes.
      mesh: the devices.
      rules: see `resolve_rules`.

    Raises:
      ValueError: as `resolve_rules`; if a mesh axis is of type Explicit.
    """
    check_mesh(mesh)
    specs = resolve_rules(rules, state.params, mesh)
    of_params = {
        path: (np.shape(leaf), spec)
        for (path, leaf), spec in zip(
            jax.tree_util.tree_leaves_with_path(state.params),
            jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, PartitionSpec)),
            strict=True,
        )
    }
    lengths = sorted({len(path) for path in of_params}, reverse=True)

    def of(path: tuple, leaf: Any) -> NamedSharding:
        for length in lengths:
            shape, spec = of_params.get(path[len(path) - length :], (None, None))
            if spec is not None and shape == np.shape(leaf):
                return NamedSharding(mesh, spec)
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(of, state)


def init_sharded(make_state: Callable[[], Any], mesh: Mesh, rules: Rules = None) -> Any:
    """The state that `make_state()` returns, each device computing its own part of it.

    For states that no single device can hold: nothing of it is ever whole. The numbers are those
    of `jax.jit(make_state)()`.

    Args:
      make_state: without arguments, as `lambda: run.init(hparams, inputs, key)`; it is traced.
      mesh, rules: as for `state_shardings`.

    Raises:
      ValueError: as `state_shardings`.
    """
    shapes = jax.eval_shape(make_state)
    return jax.jit(make_state, out_shardings=state_shardings(shapes, mesh, rules))()


def describe_sharding(state: Any, mesh: Mesh, rules: Rules = None) -> Table:
    """A table of the state's leaves: path, shape, spec, and the bytes of it on each device.

    The last row sums up: the bytes of the whole state, and those a device holds.

    Args:
      state, mesh, rules: as for `state_shardings`; shapes do, so nothing need be allocated.

    Raises:
      ValueError: as `state_shardings`.
    """
    shardings = jax.tree.leaves(state_shardings(state, mesh, rules))
    rows, whole, held = [], 0, 0
    for (path, leaf), sharding in zip(
        jax.tree_util.tree_leaves_with_path(state), shardings, strict=True
    ):
        shape = np.shape(leaf)
        each = _bytes(leaf, sharding.shard_shape(shape))
        whole, held = whole + _bytes(leaf, shape), held + each
        dims = "x".join(map(str, shape)) or "1"
        rows.append((leaf_path(path), dims, _in_words(sharding.spec), each))
    rows.append(("all", "", f"{whole} bytes in all", held))
    return Table(("leaf", "shape", "axes", "bytes a device"), tuple(rows))


def check_mesh(mesh: Mesh) -> None:
    """Checks that ordinary flax and optax code runs on the mesh.

    Raises:
      ValueError: if it has no axis that a batch can be cut over, or one of type Explicit.
    """
    if not set(BATCH_AXES) & set(mesh.axis_names):
        raise ValueError(
            f"`mesh` must have an axis named 'data' or 'fsdp', got {mesh.axis_names}; build it "
            'with jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,)).'
        )
    if any(kind == AxisType.Explicit for kind in mesh.axis_types):
        raise ValueError(
            "`mesh` has an axis of type Explicit, which ordinary flax and optax code refuses; "
            f"build it with axis_types=(AxisType.Auto,) * {len(mesh.axis_types)}."
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """How a batch lies on the mesh: its rows cut over `data` and `fsdp` together."""
    axes = [axis for axis in BATCH_AXES if axis in mesh.axis_names]
    return NamedSharding(mesh, PartitionSpec(tuple(axes) if len(axes) > 1 else axes[0]))


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """A copy of `tree` on every device of the mesh, see `place`."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: place(leaf, everywhere), tree)


def place(leaf: Any, sharding: NamedSharding | None = None) -> jax.Array:
    """A copy of `leaf` that lies as `sharding` says, also where processes share the devices.

    Every process gives the same values; each device is given its own part alone. Without a
    sharding the copy lies where JAX puts it.
    """
    if sharding is None:
        return jnp.copy(leaf)
    if sharding.is_fully_addressable:
        return jax.device_put(jnp.copy(leaf), sharding)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.jit(jnp.copy, out_shardings=sharding)(leaf)
    if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
        data = jax.device_put(np.asarray(jax.random.key_data(leaf)), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    here = np.asarray(leaf, jnp.result_type(leaf))
    if sharding.is_fully_replicated:  # JAX compares the values of the processes.
        return jax.device_put(here, sharding)
    return jax.make_array_from_callback(here.shape, sharding, lambda index: here[index])


def _match(rules: Mapping[str, Any], params: Params) -> PyTree:
    check_distinct_paths(params, "the patterns of `rules`", floats_only=False)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    names = [leaf_path(path) for path, _ in leaves]
    first = [
        next((p for p in rules if matches_pattern(p, name, leaf, 0)), "")
        for name, (_, leaf) in zip(names, leaves, strict=True)
    ]
    if "" in first:
        lacking = [name for name, pattern in zip(names, first, strict=True) if not pattern]
        raise ValueError(
            f"`rules` has no pattern for {', '.join(map(repr, lacking[:3]))}"
            f"{' and others' if len(lacking) > 3 else ''}; got {list(rules)}."
            f'{nearest(lacking[0], rules)} End with "*": PartitionSpec() to replicate the rest.'
        )
    for pattern in rules:
        if pattern not in first:
            shadowed = any(
                matches_pattern(pattern, name, leaf, 0)
                for name, (_, leaf) in zip(names, leaves, strict=True)
            )
            why = "an earlier pattern takes them all" if shadowed else "no path matches it"
            raise ValueError(
                f"`rules` has a pattern that is first for no leaf: {pattern!r} ({why})."
                f"{'' if shadowed else nearest(pattern, names)}"
            )
    return jax.tree.unflatten(jax.tree.structure(params), [rules[p] for p in first])


def _checked(name: str, shape: tuple[int, ...], spec: Any, mesh: Mesh) -> PartitionSpec:
    """The spec as a `PartitionSpec`, if the leaf can be cut so."""
    if not isinstance(spec, tuple | PartitionSpec):
        raise ValueError(
            f"`rules` gives {name!r} {spec!r}; it must be a PartitionSpec, an entry for each axis: "
            'PartitionSpec("fsdp", None), or PartitionSpec() to replicate.'
        )
    spec = PartitionSpec(*spec)
    if len(spec) > len(shape):
        raise ValueError(
            f"`rules` gives {name!r} of shape {shape} the spec {_in_words(spec)} of {len(spec)} "
            f"axes; it has {len(shape)}. Give it a pattern of its own before that one."
        )
    seen: set[str] = set()
    for place, (size, entry) in enumerate(zip(shape, spec, strict=False)):
        axes = _axes(entry)
        for axis in axes:
            if axis not in mesh.axis_names:
                raise ValueError(
                    f"`rules` cuts {name!r} over {axis!r}, and the mesh has the axes "
                    f"{mesh.axis_names}.{nearest(str(axis), mesh.axis_names)}"
                )
            if axis in seen:
                raise ValueError(
                    f"`rules` cuts {name!r} twice over {axis!r}: {_in_words(spec)}; an axis of the "
                    "mesh can cut one axis of a leaf."
                )
            seen.add(axis)
        count = math.prod(mesh.shape[axis] for axis in axes)
        if size % count:
            below, above = size // count * count, -(-size // count) * count
            fits = [d for d in range(1, count + 1) if size % d == 0]
            raise ValueError(
                f"`rules` cuts axis {place} of {name!r}, of shape {shape}, into {count} parts over "
                f"{' x '.join(axes)}, which does not divide {size}; the nearest sizes that it does "
                f"are {below or above} and {above}, and the most parts that divide {size} here are "
                f"{max(fits)}. Cut another axis, or replicate it with PartitionSpec()."
            )
    return spec


def _axes(entry: Any) -> tuple[str, ...]:
    """The mesh axes of one entry of a spec."""
    if entry is None:
        return ()
    return entry if isinstance(entry, tuple) else (entry,)


def _in_words(spec: PartitionSpec) -> str:
    """`fsdp, tensor`, an axis of the leaf after the other; `-` where it is not cut."""
    if not any(_axes(entry) for entry in spec):
        return "whole"
    return ", ".join(" x ".join(_axes(entry)) or "-" for entry in spec)


def _bytes(leaf: Any, shape: tuple[int, ...]) -> int:
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.result_type(leaf)
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return math.prod(shape) * jax.eval_shape(jax.random.key_data, leaf).size * 4
    return math.prod(shape) * dtype.itemsize
