"""How much each part of the model counts: path rules -> one multiplier a leaf."""

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from wdjax.checks import check_one_of, is_known, nearest
from wdjax.types import Params, Parts, is_inexact

ROLES = ("kernel", "bias", "gain", "embedding", "head", "other")
"""What a leaf is for, as far as its name tells; see `leaf_role`."""

_ROLE = "role:"
_HEADS = ("head", "lm_head", "logits", "classifier", "output", "readout")
_NORM = re.compile(r"norm(?!al(?!i))|(^|_)(ln|bn|gn|rms)(_|\d|$)")
"""A module that normalises: LayerNorm_0, batch_norm, rmsnorm, norm1, ln_f, bn1; not "normal"."""

Stacked = Mapping[str, int] | None
"""Path patterns -> how many of a leaf's first axes count layers, such as `{"blocks/*": 1}`."""


def is_hidden(node: Any) -> bool:
    """Whether `optax.masked` or `optax.partition` hides this node: it is left alone."""
    return isinstance(node, optax.MaskedNode)


def leaf_path(path: tuple) -> str:
    """`"Dense_0/kernel"`: the keys joined by `/`, without the `/value` that nnx appends."""
    if len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def resolve_parts(parts: Parts, params: Params, *, stacked: Stacked = None) -> PyTree:
    """The multiplier of every leaf: a tree of scalars with the structure of `params`.

    `parts` is recognised in this order:

    - None: 1.0 for every leaf;
    - a tree of scalars with the structure of `params`;
    - a mapping of path patterns to scalars: `fnmatchcase` on the whole `/`-joined path, so
      `*` crosses `/`; the first match wins: `{"*/kernel": 1.0, "*": 0.0}`. `role:bias` matches
      the leaves of that `leaf_role`: `{"role:bias": 0.0, "role:gain": 0.0, "*": 1.0}`;
    - a function `params -> tree of scalars`, such as `matrices_only`.

    Scalars are floats >= 0 (1.0 = fully) and may be traced. Leaves of integer, bool or key
    dtype get 0.0 whatever `parts` says: decay would corrupt them. Nodes hidden by
    `optax.masked` or `optax.partition` are left alone.

    Args:
      parts: as above.
      params: the tree, of arrays or of `jax.ShapeDtypeStruct`s.
      stacked: the leaves that hold several layers (`stacked_axes`), for their roles alone: a
        function `parts` is told by itself. `functools.partial(resolve_parts, parts,
        stacked=...)` goes wherever `parts` goes.

    Raises:
      ValueError: if the structure is another one; if a pattern is first for no leaf, or a leaf
        has no pattern (end with `"*": 0.0`); if two leaves have one joined path, which patterns
        cannot tell apart; if a known multiplier is not finite or below zero; as `stacked_axes`.

    Example:
      >>> params = {"layer": {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)}}
      >>> wdjax.resolve_parts({"*/kernel": 1.0, "*": 0.0}, params)
      {'layer': {'bias': 0.0, 'kernel': 1.0}}
    """
    if not jax.tree.leaves(params):  # What optax puts for params to learn a state's structure.
        return params
    axes = stacked_axes(stacked, params)
    if parts is None:
        multipliers = jax.tree.map(lambda _: 1.0, params)
    elif callable(parts):
        multipliers = _match_structure(parts(params), params, "the tree that `parts` returned")
    elif _is_patterns(parts, params):
        multipliers = _match_patterns(parts, params, axes)
    else:
        multipliers = _match_structure(parts, params, "`parts`")
    return jax.tree_util.tree_map_with_path(_checked_multiplier, params, multipliers)


def leaf_role(path: str, leaf: Any, layer_axes: int = 0) -> str:
    """What a leaf is for, by its name and number of axes: one of `ROLES`.

    - `bias`: its name is, begins or ends with `bias`, or is `b`, `beta` or `offset`;
    - `embedding`: the name, or that of the module, holds `embed`;
    - `gain` (of a norm): the name is `scale`, `gain` or `gamma`, or `weight` with one axis or
      in a module that normalises (its name holds `norm`, or is `ln`, `bn`, `gn` or `rms` with
      or without a number), or `kernel` with one axis in such a module (EasyLM);
    - `head`: a kernel in a module called `head`, `lm_head`, `logits`, `classifier`, `output` or
      `readout`;
    - `kernel`: any other `kernel`, `weight` or `w` of two or more axes;
    - `other`: whatever no name tells.

    Args:
      path: the leaf's path, joined by `/`.
      leaf: the leaf, or its shape.
      layer_axes: how many of its first axes count layers (`stacked_axes`) and not its own.
    """
    *modules, name = path.lower().split("/")
    named = [module for module in modules if not module.isdigit()]
    is_matrix = np.ndim(leaf) - layer_axes >= 2
    if name in ("b", "beta", "offset") or name.startswith("bias") or name.endswith("bias"):
        return "bias"
    if any("embed" in word for word in (name, *modules[-1:])):
        return "embedding"
    normalises = bool(named) and _NORM.search(named[-1]) is not None
    if name in ("scale", "gain", "gamma") or (name == "weight" and (normalises or not is_matrix)):
        return "gain"
    if name == "kernel" and normalises and not is_matrix:
        return "gain"
    if is_matrix and (name == "w" or name.startswith(("kernel", "weight"))):
        return "head" if any(module in _HEADS for module in modules) else "kernel"
    return "other"


def matrices_only(params: Params, *, stacked: Stacked = None) -> PyTree:
    """1.0 for kernels and embeddings, 0.0 for biases and norm gains: a `parts` function.

    A leaf counts if it has two or more axes of its own and is by its `leaf_role` neither a bias
    nor a gain: the bias `[head, dim]` of an attention and the gain `[layer, unit]` of stacked
    norms have two axes as well. Of leaves whose names tell nothing the axes decide.

    Args:
      params: the tree, of arrays or of `jax.ShapeDtypeStruct`s.
      stacked: the leaves that hold several layers, which names do not tell:
        `parts=functools.partial(matrices_only, stacked={"blocks/*": 1})`.

    Raises:
      ValueError: as `stacked_axes`.

    Example:
      >>> wdjax.matrices_only({"layer": {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)}})
      {'layer': {'bias': 0.0, 'kernel': 1.0}}
    """

    def of(path: tuple, leaf: Any, layer_axes: Any) -> float:
        is_matrix = np.ndim(leaf) - layer_axes >= 2
        spared = leaf_role(leaf_path(path), leaf, layer_axes) in ("bias", "gain")
        return 1.0 if is_matrix and not spared else 0.0

    return jax.tree_util.tree_map_with_path(of, params, stacked_axes(stacked, params))


def stacked_axes(stacked: Stacked, params: Params) -> PyTree:
    """How many first axes of every leaf count layers: a tree of integers like the params.

    A model that scans over its layers keeps one leaf for all of them, `[layer, in, out]`. Nothing
    in a name says so, and it changes what is a matrix, a fan-in, a group or a spectrum.

    Args:
      stacked: a mapping from path patterns, as in `resolve_parts`, to the number of axes; the
        first match wins, and a leaf without one has 0. None: no leaf is stacked.
      params: the tree, of arrays or of `jax.ShapeDtypeStruct`s.

    Raises:
      ValueError: for a count that is no integer >= 0 or more than the axes of a leaf it matches,
        or a pattern that matches no leaf.
    """
    patterns = {} if stacked is None else dict(stacked)
    for pattern, count in patterns.items():
        if pattern.startswith(_ROLE):
            raise ValueError(
                f"`stacked` takes path patterns, not roles, got {pattern!r}: a role depends on "
                "what is stacked."
            )
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ValueError(
                f"`stacked` gives {pattern!r} {count!r} layer axes; it must be an integer >= 0, "
                "the number of first axes that count layers (1 under one scan)."
            )
    if not jax.tree.leaves(params):  # What optax puts for params to learn a state's structure.
        return params
    used, names = set(), []

    def of(path: tuple, leaf: Any) -> Any:
        name = leaf_path(path)
        names.append(name)
        matching = [pattern for pattern in patterns if fnmatchcase(name, pattern)]
        used.update(matching)
        if is_hidden(leaf) or not matching or not is_inexact(leaf):
            return leaf if is_hidden(leaf) else 0
        count = patterns[matching[0]]
        if count > np.ndim(leaf):
            raise ValueError(
                f"`stacked` says that the first {count} axes of {name!r} count layers "
                f"({matching[0]!r}), but its shape is {np.shape(leaf)}: give it a pattern of its "
                "own before that one, with fewer."
            )
        return count

    axes = jax.tree_util.tree_map_with_path(of, params, is_leaf=is_hidden)
    hidden = any(is_hidden(leaf) for leaf in jax.tree.leaves(params, is_leaf=is_hidden))
    for pattern in patterns:
        if pattern not in used and not hidden:
            raise ValueError(
                f"`stacked` has a pattern that matches no leaf: {pattern!r}."
                f"{nearest(pattern, names)}"
            )
    return axes


def inexact_leaves(tree: PyTree) -> list:
    """The leaves that training moves, in order: floats, no integers, no keys."""
    return [leaf for leaf in jax.tree.leaves(tree) if is_inexact(leaf)]


def _is_patterns(parts: Any, params: Params) -> bool:
    if not (isinstance(parts, Mapping) and parts and all(isinstance(k, str) for k in parts)):
        return False
    return jax.tree.structure(parts) != jax.tree.structure(params) and not any(
        isinstance(v, Mapping) for v in parts.values()
    )


def _match_structure(multipliers: PyTree, params: Params, what: str) -> PyTree:
    """`multipliers` in the structure of `params`; what lies under hidden nodes is dropped."""
    try:
        return jax.tree.map(
            lambda p, m: p if is_hidden(p) else m, params, multipliers, is_leaf=is_hidden
        )
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{what} must be a tree of scalars with the structure of the params, a mapping of "
            "path patterns to scalars, a function of the params, or None. One number for every "
            f'leaf is {{"*": number}}. The structures differ'
            f"{_difference(multipliers, params)}: {error}"
        ) from None


def _difference(multipliers: PyTree, params: Params) -> str:
    """Which paths one tree has and the other has not, in words."""
    paths = [
        [
            leaf_path(path)
            for path, _ in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_hidden)
        ]
        for tree in (multipliers, params)
    ]
    some = lambda names: ", ".join(map(repr, names[:3])) + (" and others" if names[3:] else "")
    given, wanted = paths
    words = [
        f"without {some(missing)}" if (missing := [p for p in wanted if p not in given]) else "",
        f"with {some(extra)} that the params lack"
        if (extra := [p for p in given if p not in wanted])
        else "",
    ]
    told = ", ".join(filter(None, words))
    return f" (one is {told})" if told else ""


def _match_patterns(patterns: Mapping[str, Any], params: Params, axes: PyTree) -> PyTree:
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_hidden)
    layer_axes = jax.tree.leaves(axes, is_leaf=is_hidden)
    hidden = any(is_hidden(leaf) for _, leaf in leaves)
    for pattern in patterns:
        if pattern.startswith(_ROLE):
            check_one_of(f"parts: {_ROLE}", pattern.removeprefix(_ROLE), ROLES)
    used, unmatched = set(), []

    def first_match(path, leaf, layer_axes):
        if is_hidden(leaf):
            return leaf
        name = leaf_path(path)
        for pattern in patterns:
            if matches_pattern(pattern, name, leaf, layer_axes):
                used.add(pattern)
                return patterns[pattern]
        if is_inexact(leaf):
            unmatched.append(name)
        return 0.0

    remedy = ", or give `parts` as a tree of floats or a function of the params"
    check_distinct_paths(params, "the patterns of `parts`", remedy)
    multipliers = jax.tree_util.tree_map_with_path(first_match, params, axes, is_leaf=is_hidden)
    names = [leaf_path(path) for path, _ in leaves]
    if unmatched:
        raise ValueError(
            f"`parts` has no pattern for {', '.join(map(repr, unmatched[:3]))}"
            f"{' and others' if len(unmatched) > 3 else ''}; got {list(patterns)}."
            f"{nearest(unmatched[0], patterns)} "
            'End with "*": 0.0 to leave the rest alone.'
        )
    for pattern in patterns:
        if pattern not in used and not hidden:
            matched = zip(leaves, layer_axes, strict=True)
            shadowed = any(
                matches_pattern(pattern, leaf_path(p), leaf, n) for (p, leaf), n in matched
            )
            told = zip(leaves, layer_axes, strict=True)
            roles = sorted({leaf_role(leaf_path(p), leaf, n) for (p, leaf), n in told})
            missing = (
                f"the roles here are {', '.join(roles)}"
                if pattern.startswith(_ROLE)
                else "no path matches it"
            )
            why = "an earlier pattern takes them all" if shadowed else missing
            raise ValueError(
                f"`parts` has a pattern that is first for no leaf: {pattern!r} ({why})."
                f"{'' if shadowed else nearest(pattern, names)}"
            )
    return multipliers


def matches_pattern(pattern: str, name: str, leaf: Any, layer_axes: Any) -> bool:
    """Whether a path pattern, or `role:ROLE`, is of the leaf that has the path `name`."""
    if pattern.startswith(_ROLE):
        return leaf_role(name, leaf, layer_axes) == pattern.removeprefix(_ROLE)
    return fnmatchcase(name, pattern)


def _checked_multiplier(path: tuple, leaf: Any, multiplier: Any) -> Any:
    if not is_inexact(leaf):
        return 0.0
    name = leaf_path(path)
    if isinstance(multiplier, bool | np.bool_):
        multiplier = float(multiplier)
    numeric = isinstance(multiplier, int | float) or jnp.issubdtype(
        getattr(multiplier, "dtype", np.dtype(object)), np.number
    )
    if not numeric or np.shape(multiplier) != ():
        raise ValueError(
            f"`parts` gives {name!r} the multiplier {multiplier!r}; it must be one number >= 0."
        )
    if is_known(multiplier) and not (np.isfinite(multiplier) and multiplier >= 0):
        raise ValueError(
            f"`parts` gives {name!r} the multiplier {float(multiplier):g}; "
            "it must be finite and >= 0 (0.0 leaves the part alone, 1.0 counts it fully)."
        )
    return multiplier


def check_not_injected(parts: Parts) -> None:
    """`optax.inject_hyperparams` runs a `parts` function as a schedule and hands on its value.

    Raises:
      ValueError: if `parts` is one number in an array, as it then is.
    """
    if isinstance(parts, jax.Array) and jnp.ndim(parts) == 0:
        raise ValueError(
            f"`parts` must not be one number, got {parts}. If it was a function under "
            '`optax.inject_hyperparams`, that ran it as a schedule: pass `static_args="parts"`. '
            'One number for every leaf is {"*": number}.'
        )


def check_distinct_paths(
    tree: PyTree, reader: str, remedy: str = "", *, floats_only: bool = True
) -> None:
    """Checks that no two leaves (of floats) have one `leaf_path`, which `reader` tells them by.

    Raises:
      ValueError: if two have: `{"a/b": w, "a": {"b": v}}`.
    """
    seen: dict[str, str] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name, keys = leaf_path(path), jax.tree_util.keystr(path)
        matters = is_inexact(leaf) or not floats_only
        if matters and seen.setdefault(name, keys) != keys:
            raise ValueError(
                f"two leaves have the path {name!r}, by which {reader} tell leaves apart: "
                f"{seen[name]} and {keys}. Rename one{remedy}."
            )
