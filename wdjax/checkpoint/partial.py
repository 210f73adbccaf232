"""Pretrained weights into part of a model, by path: fine-tuning, transfer, a new head."""

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from wdjax.checks import is_known, nearest
from wdjax.parts import leaf_path
from wdjax.parts.rules import check_distinct_paths
from wdjax.tables import Table
from wdjax.types import Params, is_inexact

Rules = Mapping[str, str | None]
"""A pattern of paths in the params -> where each lies in the pretrained tree, or None."""


class LoadedLeaf(NamedTuple):
    """A leaf of the params that has its value from the pretrained tree."""

    path: str
    source: str
    """Its path there."""
    shape: tuple[int, ...]
    dtype: str
    """As it is in the params."""
    source_dtype: str
    """As it was there; where it differs, the value was cast."""


class LoadReport(NamedTuple):
    """What `load_pretrained` did."""

    loaded: tuple[LoadedLeaf, ...]
    left: dict[str, str]
    """The paths of the params that kept their values, and why."""
    unused: tuple[str, ...]
    """The paths of the pretrained tree that nothing was loaded from."""

    def table(self) -> Table:
        """One row a leaf of the params; what was not used is the note."""
        cast = lambda leaf: leaf.dtype != leaf.source_dtype
        rows = [
            (
                leaf.path,
                "x".join(map(str, leaf.shape)) or "scalar",
                f"loaded from {leaf.source}"
                + (f", {leaf.source_dtype} cast to {leaf.dtype}" if cast(leaf) else ""),
            )
            for leaf in self.loaded
        ]
        rows += [(path, "-", f"left as it was: {why}") for path, why in self.left.items()]
        note = f"Not used: {', '.join(self.unused)}." if self.unused else "All of it was used."
        return Table(("leaf", "shape", "value"), tuple(rows), note=note)

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def load_pretrained(
    params: Params, pretrained: PyTree, rules: Rules | None = None
) -> tuple[Params, LoadReport]:
    """The params with the values of a pretrained tree where rules say so, and what was loaded.

    A rule is a pattern of paths in `params`, in the language of `parts` (`fnmatchcase` on the
    `/`-joined path, the first match wins), and the path in `pretrained`, in which each `*` stands
    for what the pattern's `*` matched: `{"encoder/*": "backbone/*"}`. What has no rule, a rule of
    None or no counterpart keeps its value. Nothing is changed in place, and the values are copies,
    in the dtype and sharding of the params. Nothing is turned: PyTorch's kernels are `[out, in]`.

    Args:
      params: the model's own, new; what is not loaded keeps its value. Shapes
        (`jax.ShapeDtypeStruct`) are enough for leaves that are.
      pretrained: a tree of arrays, or a mapping from paths to arrays, as
        `wdjax.jobs.read_pretrained` and `safetensors.numpy.load_file` give.
      rules: by default `{"*": "*"}`: each leaf from the same path.

    Returns:
      `(params, report)`: the tree, and what was loaded, left and not used.

    Raises:
      ValueError: for a rule that matches no leaf of the params, or that finds nothing in
        `pretrained`, with the nearest path; a `*` too many or too few; shapes that differ, a float
        for an integer or complex numbers for real ones, or a shape that nothing was loaded for;
        two leaves of one path.

    Example:
      >>> new = {"encoder": {"w": jnp.zeros(2)}, "head": {"w": jnp.ones(3)}}
      >>> old = {"backbone": {"w": np.array([1.0, 2.0])}, "classes": np.zeros(9)}
      >>> tree, report = wdjax.load_pretrained(new, old, {"encoder/*": "backbone/*"})
      >>> print(tree["encoder"]["w"], tree["head"]["w"], report.unused)
      [1. 2.] [1. 1. 1.] ('classes',)
    """
    rules = {"*": "*"} if rules is None else rules
    _check_rules(rules)
    for name, tree in (("params", params), ("pretrained", pretrained)):
        check_distinct_paths(tree, f"the rules of `{name}`", floats_only=False)
    there = {
        leaf_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(pretrained)
    }
    here = {leaf_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    sources, left = _sources(here, there, rules)
    loaded = tuple(_told(path, here[path], source, there[source]) for path, source in sources)
    values = {path: _as_leaf(there[source], here[path]) for path, source in sources}
    for path, why in left.items():
        if isinstance(here[path], jax.ShapeDtypeStruct):
            raise ValueError(
                f"`params` has a shape alone at {path!r}, and nothing is loaded for it ({why}). "
                "Give params that were initialised, or a rule for it."
            )
    tree = jax.tree_util.tree_map_with_path(
        lambda path, leaf: values.get(leaf_path(path), leaf), params
    )
    taken = {source for _, source in sources}
    return tree, LoadReport(loaded, left, tuple(path for path in there if path not in taken))


def _sources(
    here: Mapping[str, Any], there: Mapping[str, Any], rules: Rules
) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """`(path, its source)` of each leaf that is loaded, and why the others are not."""
    sources, left = [], {}
    tried: dict[str, list[str]] = {pattern: [] for pattern in rules}
    for path in here:
        pattern = next((pattern for pattern in rules if fnmatchcase(path, pattern)), None)
        if pattern is None:
            left[path] = "no rule names it"
        elif (target := rules[pattern]) is None:
            tried[pattern].append(path)
            left[path] = f"{pattern!r} leaves it"
        else:
            source = _source_of(path, pattern, target)
            tried[pattern].append(source)
            if source in there:
                sources.append((path, source))
            else:
                left[path] = f"there is no {source!r}"
    for pattern, target in rules.items():
        if not tried[pattern]:
            earlier = any(fnmatchcase(path, pattern) for path in here)
            why = "an earlier rule takes them all" if earlier else "no path matches it"
            raise ValueError(
                f"`rules` has a pattern that is first for no leaf of the params: {pattern!r} "
                f"({why}).{'' if earlier else nearest(pattern, here)}"
            )
        if target is not None and not any(source in there for source in tried[pattern]):
            raise ValueError(
                f"the rule {pattern!r}: {target!r} finds nothing in `pretrained`: there is no "
                f"{tried[pattern][0]!r}.{nearest(tried[pattern][0], there)} Leave what it names as "
                f"it is by {{{pattern!r}: None}}."
            )
    return sources, left


def _source_of(path: str, pattern: str, target: str) -> str:
    """The target with what each `*` of the pattern matched."""
    if "*" not in target:
        return target
    expression = "(.*)".join(map(re.escape, pattern.split("*")))
    found = re.fullmatch(expression, path, re.DOTALL)
    assert found is not None  # Without other wildcards, as `_check_rules` saw.
    pieces, matched = target.split("*"), [*found.groups(), ""]
    return "".join(piece + text for piece, text in zip(pieces, matched, strict=True))


def _told(path: str, leaf: Any, source: str, value: Any) -> LoadedLeaf:
    """The row of a leaf, once its value is found to fit."""
    shape, other = np.shape(leaf), np.shape(value)
    if shape != other:
        turned = " Its transpose fits: turn it first." if shape == other[::-1] else ""
        raise ValueError(
            f"{path!r} has shape {shape} in the params, and {source!r} has {other} in "
            f"`pretrained`.{turned} Leave it as it is by a rule of its own before the others: "
            f"{{{path!r}: None, ...}}."
        )
    to, of = jnp.result_type(leaf), getattr(value, "dtype", jnp.result_type(value))
    real = lambda dtype: not jnp.issubdtype(dtype, np.complexfloating)
    both = is_inexact(leaf) and is_inexact(value) and (real(of) or not real(to))
    if to != jnp.result_type(value) and not both:
        raise ValueError(
            f"{path!r} is {to} in the params, and {source!r} is {of} in `pretrained`: that is no "
            f"change of precision. Leave it as it is by {{{path!r}: None, ...}}, or cast it."
        )
    return LoadedLeaf(path, source, shape, str(to), str(of))


def _as_leaf(value: Any, leaf: Any) -> Any:
    """A copy in the leaf's dtype, lying where the leaf lies."""
    if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
        return jnp.copy(value)
    copied = jnp.array(value, jnp.result_type(leaf), copy=True)
    lies = getattr(leaf, "sharding", None) if is_known(leaf) else None
    # What lies on one device by default must not be bound to it: a batch may lie on several.
    cut = lies is not None and not isinstance(lies, jax.sharding.SingleDeviceSharding)
    return jax.device_put(copied, lies) if cut else copied


def _check_rules(rules: Any) -> None:
    is_rule = lambda key, value: isinstance(key, str) and isinstance(value, str | None)
    if not (isinstance(rules, Mapping) and rules and all(map(is_rule, rules, rules.values()))):
        raise ValueError(
            "`rules` must be a mapping from path patterns to paths or None, "
            f'{{"encoder/*": "backbone/*", "head/*": None}}, got {rules!r}.'
        )
    for pattern, target in rules.items():
        stars = 0 if target is None else target.count("*")
        if stars and (pattern.count("*") != stars or re.search(r"[?\[]", pattern)):
            raise ValueError(
                f"the rule {pattern!r}: {target!r} must have as many `*` on both sides, and no "
                "other wildcard beside them: each `*` stands for what it matched."
            )
