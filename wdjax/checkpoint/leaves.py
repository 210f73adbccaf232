"""The leaves of a state by their paths: on the host, described, compared, put back."""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

_LONGEST_LIST = 3


class Leaf(NamedTuple):
    """A leaf on the host: of a typed key its data, with the name of its generator."""

    array: np.ndarray
    generator: str | None

    def describe(self) -> dict[str, Any]:
        """What is written about it."""
        about = {"dtype": str(self.array.dtype), "shape": list(self.array.shape)}
        about |= {"sha256": hash_of_array(self.array)}
        return about if self.generator is None else about | {"generator": self.generator}


def check_same_leaves(
    saved: Mapping[str, Mapping[str, Any]], wanted: Mapping[str, Mapping[str, Any]], what: str
) -> None:
    """Checks names, shapes and dtypes of leaves against those wanted.

    Raises:
      ValueError: naming the leaves that differ.
    """
    differing = [f"it has {path!r}, which this model has not" for path in saved.keys() - wanted]
    differing += [f"it lacks {path!r}" for path in wanted.keys() - saved.keys()]
    for path in wanted.keys() & saved.keys():
        there, here = _in_words(saved[path]), _in_words(wanted[path])
        if there != here:
            differing.append(f"{path!r} is {there} there and {here} here")
    if differing:
        differing.sort()
        more = len(differing) - _LONGEST_LIST
        others = f"; and {more} more" if more > 0 else ""
        raise ValueError(
            f"{what} is of another model or optimiser: "
            f"{'; '.join(differing[:_LONGEST_LIST])}{others}."
        )


def host_leaves(state: PyTree) -> dict[str, Leaf]:
    """Every leaf copied to the host, by its path.

    Copied, not viewed: the next step uses the state's buffers again.

    Raises:
      ValueError: if a leaf is split over processes, or two have the same path.
    """
    named = named_leaves(state)
    for path, leaf in named:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_replicated and _is_elsewhere(leaf):
            raise ValueError(
                f"leaf {path!r} is split over processes ({leaf.sharding}); a checkpoint holds a "
                "state that every process has whole."
            )
    data = [(path, data_of(leaf), _generator(leaf)) for path, leaf in named]
    for _, leaf, _ in data:
        if isinstance(leaf, jax.Array):
            leaf.copy_to_host_async()
    leaves = {path: Leaf(np.array(leaf, copy=True), generator) for path, leaf, generator in data}
    if len(leaves) < len(named):
        paths = [path for path, _ in named]
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ValueError(f"two leaves of the state have the path {twice!r}; rename one.")
    return leaves


def named_leaves(tree: PyTree) -> list[tuple[str, Any]]:
    """`(path, leaf)` of every leaf, in the tree's order."""
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/") or "state", leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _is_elsewhere(leaf: jax.Array) -> bool:
    return not leaf.is_fully_addressable


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def data_of(leaf: Any) -> Any:
    """The array of a leaf: of a key its data, of a shared array this process's copy."""
    leaf = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    if isinstance(leaf, jax.Array):
        return leaf if leaf.is_fully_addressable else leaf.addressable_data(0)
    # A Python number has the dtype that JAX gives it.
    return np.asarray(leaf, jnp.result_type(leaf))


def _generator(leaf: Any) -> str | None:
    return str(jax.random.key_impl(leaf)) if _is_key(leaf) else None


def described(leaf: Any) -> dict[str, Any]:
    """What a leaf must be: dtype, shape, and of a key its generator."""
    if _is_key(leaf):
        data = jax.eval_shape(jax.random.key_data, leaf)
        about = {"dtype": str(data.dtype), "shape": list(data.shape)}
        return about | {"generator": _generator(leaf)}
    return {"dtype": str(jnp.result_type(leaf)), "shape": list(np.shape(leaf))}


def _in_words(about: Mapping[str, Any]) -> str:
    kind = f" ({about['generator']} key)" if about.get("generator") else ""
    return f"{about['dtype']}{list(about['shape'])}{kind}"


def as_leaf(array: np.ndarray, like: Any) -> Any:
    """An array read back, as a leaf of the kind of `like`."""
    if not _is_key(like):
        return array
    return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(like))


def hash_of_array(array: np.ndarray) -> str:
    """The SHA-256 of an array's bytes, in hexadecimal."""
    return hashlib.sha256(np.ascontiguousarray(array).view(np.uint8).data).hexdigest()
