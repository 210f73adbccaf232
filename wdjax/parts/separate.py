"""A number of their own for some parts of the model, on top of what each leaf has."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jaxtyping import PyTree

from wdjax.checks import check_one_of
from wdjax.parts.rules import (
    ROLES,
    Stacked,
    is_hidden,
    leaf_path,
    leaf_role,
    matches_pattern,
    resolve_parts,
    stacked_axes,
)
from wdjax.types import Params, Parts


def times_own(
    parts: Parts, own: Mapping[str, Any], *, stacked: Stacked = None
) -> Callable[[Params], PyTree]:
    """A `parts` function: each leaf's multiplier times the number of its own part, if it has one.

        multiplier = parts(leaf) * own[the first pattern that matches the leaf], or * 1

    Args:
      parts: as for `resolve_parts`.
      own: a number for each path pattern or `role:ROLE`; may be traced.
      stacked: as for `resolve_parts`.
    """

    def multipliers(params: Params) -> PyTree:
        def of(path: tuple, leaf: Any, multiplier: Any, layer_axes: Any) -> Any:
            if is_hidden(leaf):
                return leaf
            name = leaf_path(path)
            matching = (p for p in own if matches_pattern(p, name, leaf, layer_axes))
            return multiplier * own[first] if (first := next(matching, None)) else multiplier

        base = resolve_parts(parts, params, stacked=stacked)
        axes = stacked_axes(stacked, params)
        return jax.tree_util.tree_map_with_path(of, params, base, axes, is_leaf=is_hidden)

    return multipliers


def leaves_of_parts(
    patterns: Sequence[str], parts: Parts, params: Params
) -> dict[str, tuple[str, ...]]:
    """The paths of the leaves that count in `parts`, by the first pattern that matches them.

    Raises:
      ValueError: for a pattern that is first for none of them, or an unknown role.
    """
    for pattern in patterns:
        if pattern.startswith("role:"):
            check_one_of("each_part: role:", pattern.removeprefix("role:"), ROLES)
    found: dict[str, list[str]] = {pattern: [] for pattern in patterns}
    leaves = counting_leaves(parts, params)
    for name, leaf in leaves.items():
        first = next((p for p in patterns if matches_pattern(p, name, leaf, 0)), None)
        if first is not None:
            found[first].append(name)
    decaying = ", ".join(f"{name} ({leaf_role(name, leaf)})" for name, leaf in leaves.items())
    for pattern, names in found.items():
        if not names:
            raise ValueError(
                f"`each_part`: {pattern!r} is first for no leaf that decays; these decay: "
                f"{decaying or 'none'}."
            )
    return {pattern: tuple(names) for pattern, names in found.items()}


def counting_leaves(parts: Parts, params: Params) -> dict[str, Any]:
    """The leaves, by path, whose multiplier is above 0."""
    multipliers = jax.tree.leaves(resolve_parts(parts, params))
    named = jax.tree_util.tree_leaves_with_path(params)
    pairs = zip(named, multipliers, strict=True)
    return {leaf_path(path): leaf for (path, leaf), multiplier in pairs if multiplier > 0}
