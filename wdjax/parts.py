"""How much each part of the model counts: path rules -> one multiplier a leaf."""

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from wdjax.checks import check_number, check_positive_int, check_strength, is_known, nearest
from wdjax.tables import Table
from wdjax.types import Params, Parts, Schedule, Strength, is_inexact


def is_hidden(node: Any) -> bool:
    """Whether `optax.masked` or `optax.partition` hides this node: it is left alone."""
    return isinstance(node, optax.MaskedNode)


def leaf_path(path: tuple) -> str:
    """`"Dense_0/kernel"`: the keys joined by `/`, without the `/value` that nnx appends."""
    if len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def resolve_parts(parts: Parts, params: Params) -> PyTree:
    """The multiplier of every leaf: a tree of scalars with the structure of `params`.

    `parts` is recognised in this order:

    - None: 1.0 for every leaf;
    - a tree of scalars with the structure of `params`;
    - a mapping of path patterns to scalars: `fnmatchcase` on the whole `/`-joined path, so
      `*` crosses `/`; the first match wins: `{"*/kernel": 1.0, "*": 0.0}`;
    - a function `params -> tree of scalars`, such as `matrices_only`.

    Scalars are floats >= 0 (1.0 = fully) and may be traced. Leaves of integer, bool or key
    dtype get 0.0 whatever `parts` says: decay would corrupt them. Nodes hidden by
    `optax.masked` or `optax.partition` are left alone.

    Raises:
      ValueError: if the structure is another one; if a pattern is first for no leaf, or a leaf
        has no pattern (end with `"*": 0.0`); if a known multiplier is not finite or below zero.
    """
    if parts is None:
        multipliers = jax.tree.map(lambda _: 1.0, params)
    elif callable(parts):
        multipliers = _match_structure(parts(params), params, "the tree that `parts` returned")
    elif _is_patterns(parts, params):
        multipliers = _match_patterns(parts, params)
    else:
        multipliers = _match_structure(parts, params, "`parts`")
    return jax.tree_util.tree_map_with_path(_checked_multiplier, params, multipliers)


def matrices_only(params: Params) -> PyTree:
    """1.0 for leaves of two or more axes (kernels), 0.0 for the others (biases, norm gains)."""
    return jax.tree.map(lambda leaf: 1.0 if np.ndim(leaf) >= 2 else 0.0, params)


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
            f'leaf is {{"*": number}}. The structures differ: {error}'
        ) from None


def _match_patterns(patterns: Mapping[str, Any], params: Params) -> PyTree:
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_hidden)
    hidden = any(is_hidden(leaf) for _, leaf in leaves)
    used, unmatched = set(), []

    def first_match(path, leaf):
        if is_hidden(leaf):
            return leaf
        name = leaf_path(path)
        for pattern in patterns:
            if fnmatchcase(name, pattern):
                used.add(pattern)
                return patterns[pattern]
        if is_inexact(leaf):
            unmatched.append(name)
        return 0.0

    multipliers = jax.tree_util.tree_map_with_path(first_match, params, is_leaf=is_hidden)
    names = [leaf_path(path) for path, _ in leaves]
    if unmatched:
        raise ValueError(
            f"`parts` has no pattern for {', '.join(map(repr, unmatched[:3]))}"
            f"{' and others' if len(unmatched) > 3 else ''}; got {list(patterns)}. "
            'End with "*": 0.0 to leave the rest alone.'
        )
    for pattern in patterns:
        if pattern not in used and not hidden:
            shadowed = any(fnmatchcase(name, pattern) for name in names)
            why = "an earlier pattern takes them all" if shadowed else "no path matches it"
            raise ValueError(
                f"`parts` has a pattern that is first for no leaf: {pattern!r} ({why})."
                f"{'' if shadowed else nearest(pattern, names)}"
            )
    return multipliers


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


class LeafDecay(NamedTuple):
    """What one leaf loses."""

    path: str
    shape: tuple[int, ...]
    multiplier: float
    rate: float
    """The fraction of the weight removed in a step; under a schedule the run's average."""
    half_life: float
    """Steps after which half of a weight without gradient is left; infinite at rate 0."""


class DecayReport(NamedTuple):
    """Who gets how much decay: one row a leaf."""

    leaves: tuple[LeafDecay, ...]

    def table(self) -> Table:
        """One row a leaf."""
        rows = tuple(
            (leaf.path, "x".join(map(str, leaf.shape)) or "scalar", *leaf[2:])
            for leaf in self.leaves
        )
        return Table(("leaf", "shape", "multiplier", "rate per step", "half-life, steps"), rows)

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def to_dict(self) -> list[dict[str, Any]]:
        """A dict a leaf."""
        return [leaf._asdict() for leaf in self.leaves]


def describe_decay(
    params: Params,
    parts: Parts,
    strength: Strength,
    *,
    learning_rate: Strength | Schedule | None = None,
    num_steps: int | None = None,
) -> DecayReport:
    """Says what each leaf loses, from the formulas: nothing is run.

        rate = strength * m_leaf                   without a learning rate (independent decay)
        rate = eta_t * strength * m_leaf           with one (decoupled decay)
        half-life = ln 2 / mean_t(-ln(1 - rate_t))

    Args:
      params: the tree, of arrays or of `jax.ShapeDtypeStruct`s (`jax.eval_shape`).
      parts: how much each leaf counts.
      strength: scalar >= 0.
      learning_rate: a number or a schedule `step -> value`; a schedule needs `num_steps`.
      num_steps: steps of the run, >= 1.

    Raises:
      ValueError: for a strength or learning rate out of range, a schedule without `num_steps`,
        or parts that do not fit.
    """
    check_strength("strength", strength)
    if callable(learning_rate):
        if num_steps is None:
            raise ValueError("`num_steps` is needed to average a learning-rate schedule over.")
        check_positive_int("num_steps", num_steps)
        factors = np.asarray(jax.vmap(learning_rate)(jnp.arange(num_steps)), np.float64)
    else:
        if learning_rate is not None:
            check_number("learning_rate", learning_rate, low=0.0)
        factors = np.array([1.0 if learning_rate is None else float(learning_rate)])
    multipliers = jax.tree.leaves(resolve_parts(parts, params))
    named = jax.tree_util.tree_leaves_with_path(params)
    return DecayReport(
        tuple(
            _leaf_decay(leaf_path(path), leaf, float(m), float(strength) * float(m) * factors)
            for (path, leaf), m in zip(named, multipliers, strict=True)
        )
    )


def _leaf_decay(path: str, leaf: Any, multiplier: float, rates: np.ndarray) -> LeafDecay:
    kept = 1.0 - rates
    # A rate of 1 or more does not shrink a weight, it flips or clears it: no half-life.
    per_step = -np.log(kept).mean() if np.all(kept > 0) else np.inf
    half_life = math.log(2) / per_step if per_step > 0 else math.inf
    return LeafDecay(path, np.shape(leaf), multiplier, float(rates.mean()), half_life)
