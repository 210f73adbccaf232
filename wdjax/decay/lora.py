"""Decay of low-rank adapters: of the weight that the model uses, not of its two factors."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from wdjax.checks import check_number, nearest
from wdjax.decay.core import (
    DecayState,
    check_not_injected,
    decay_weights,
    is_known_zero,
    map_updates,
    rate_at,
    require_params,
    wide_dtype,
)
from wdjax.decay.forms import decoupled_rate
from wdjax.parts import Stacked, leaf_path, resolve_parts, stacked_axes
from wdjax.parts.rules import check_distinct_paths
from wdjax.types import Params, Parts, Schedule, Strength, is_inexact

Pairs = Mapping[str, Sequence[str]]
"""The path of a frozen weight -> those of its left and right factor."""


def lora_decay(
    strength: Strength | Schedule,
    learning_rate: Strength | Schedule,
    *,
    frozen: PyTree = None,
    factors: Sequence[str] = ("lora_a", "lora_b"),
    pairs: Pairs | None = None,
    scale: Strength = 1.0,
    parts: Parts = None,
    stacked: Stacked = None,
) -> optax.GradientTransformationExtraArgs:
    """Decoupled decay of an adapted weight `W = W0 + s * left @ right`, by its two factors.

        update_left  <- update_left  - eta_t * strength * m_left  * s * W @ right'
        update_right <- update_right - eta_t * strength * m_right * s * left' @ W

    the gradients of `strength / 2 * |W|^2`; `'` is the (conjugate) transpose. While `left @ right`
    is 0 it shrinks W0 through the adapter; decay of the factors themselves draws back to W0. Every
    other leaf decays as under `decoupled_decay`, but for a frozen weight among the params, which is
    left alone. W is never made: `W0 @ right' + s * left @ (right @ right')` has the left's shape.
    Goes after the learning rate. It overshoots where `eta * strength * s^2 * |factor|^2` is near 2.

    The shapes are `[..., rank]`, `[rank, ...]` and, for W0, both without the rank. In flax
    `x @ lora_a @ lora_b` adds to `x @ kernel`; the paper's `B A` is `("lora_b", "lora_a")`.

    Args:
      strength: >= 0, per step and learning rate; a number (traced or not) or a schedule.
      learning_rate: eta_t, the one the optimiser uses; a number or a schedule.
      frozen: a tree with the frozen weights, if they do not lie among the params. Not kept in the
        state; `tx.update(updates, state, params, frozen=tree)` makes it an argument of your step.
      factors: the names of the left and the right factor, each a step of its path: `x/lora_a` and
        `x/lora_b`. Their frozen weight is called `kernel`, `weight` or `w` and lies beside them, in
        `base_module` or `base_layer` there, or a level above; or its path is `x`.
      pairs: the same by hand: `{"x/kernel": ("x/left", "x/right")}`, paths in `frozen` and params.
      scale: s > 0, may be traced: alpha / rank in the paper, 1 in flax.
      parts: how much each leaf counts, each factor for itself; by default every leaf 1.0.
      stacked: the leaves that hold several layers (`wdjax.parts.stacked_axes`), one product each.

    Raises:
      ValueError: as `decoupled_rate` and `decay_weights`; at build, for a scale that is known and
        not above zero, or names that are no pair; in `init`, if no leaf is a factor, one has no
        partner or a path is not there; in `update`, if a frozen weight is not found; in both, for
        shapes that do not fit.

    Source: https://irhum.github.io/blog/lorawd.
    """
    rate = decoupled_rate(strength, learning_rate)
    check_number("scale", scale, low=0.0, exclusive_low=True)
    _check_names(factors, pairs)
    check_not_injected(parts)
    decay_weights(rate)  # Its checks of the rate, also where no leaf decays by itself.
    adapters = _Adapters(rate, factors, pairs, scale, parts, stacked)

    def init(params: Params) -> Any:
        spared = set()
        if jax.tree.leaves(params):  # optax asks with a placeholder that has none.
            spared = adapters.find(params, frozen, required=frozen is not None)[1]
        return adapters.others(spared).init(params)

    def update(
        updates: PyTree, state: Any, params: Params | None = None, **extra: Any
    ) -> tuple[PyTree, DecayState]:
        params = require_params(params)
        weights = extra.get("frozen")
        return adapters.update(updates, state, params, frozen if weights is None else weights)

    return optax.GradientTransformationExtraArgs(init, update)


def pulls_of_factors(
    left: Any, right: Any, weight: Any, scale: Any, layer_axes: int = 0
) -> tuple[Array, Array]:
    """The gradients of `1/2 |W|^2`, `W = W0 + scale * left @ right`, in both factors.

        scale * (W0 right' + scale * left (right right')),
        scale * (left' W0 + scale * (left' left) right)

    `2 * in * out * rank` multiplications and, but for W0, nothing of more weights than a factor.

    Args:
      left: `[*layers, ..., rank]`.
      right: `[*layers, rank, ...]`.
      weight: W0, `[*layers, ..., ...]`.
      scale: a number, may be traced.
      layer_axes: how many of the first axes count layers.
    """
    wide = jnp.promote_types(wide_dtype(left), wide_dtype(right))
    layers = np.shape(left)[:layer_axes]
    rank = np.shape(left)[-1]
    a = jnp.asarray(left, wide).reshape(*layers, -1, rank)
    b = jnp.asarray(right, wide).reshape(*layers, rank, -1)
    w = jnp.asarray(weight, wide).reshape(*layers, a.shape[-2], b.shape[-1])
    adjoint = lambda x: jnp.conj(jnp.swapaxes(x, -1, -2))
    # An accelerator would multiply in fewer bits than decay is promised in.
    dot = lambda x, y: jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)
    s = jnp.asarray(scale, jnp.finfo(wide).dtype)
    of_left = s * (dot(w, adjoint(b)) + s * dot(a, dot(b, adjoint(b))))
    of_right = s * (dot(adjoint(a), w) + s * dot(dot(adjoint(a), a), b))
    return of_left.reshape(np.shape(left)), of_right.reshape(np.shape(right))


class _Pair(NamedTuple):
    left: str
    right: str
    places: tuple[str, ...]
    """Where its frozen weight may lie; the first path that there is."""


class _Adapters(NamedTuple):
    """What `lora_decay` was given."""

    rate: Any
    factors: Sequence[str]
    pairs: Pairs | None
    scale: Any
    parts: Parts
    stacked: Stacked

    def find(
        self, params: Params, frozen: PyTree, *, required: bool
    ) -> tuple[list[tuple[_Pair, Any, int]], set[str]]:
        """Each pair with its frozen weight and layer axes; the paths that do not decay alone."""
        leaves = _by_path(params, "params")
        there = leaves if frozen is None else _by_path(frozen, "frozen")
        axes = dict(zip(leaves, jax.tree.leaves(stacked_axes(self.stacked, params)), strict=True))
        found, spared = [], set()
        for pair in _pairs_of(leaves, self.factors, self.pairs):
            path = next((place for place in pair.places if place in there), None)
            spared |= {pair.left, pair.right}
            if path is not None:
                spared.add(path)
                _check_shapes(pair, path, leaves, there[path], axes)
                found.append((pair, there[path], axes[pair.left]))
            elif required:
                raise ValueError(_not_found(pair, there, frozen is None))
        return found, spared

    def others(self, spared: set[str]) -> optax.GradientTransformation:
        """The decay of all leaves that are neither a factor nor frozen under one."""

        def parts(params: Params) -> PyTree:
            of = lambda path, multiplier: 0.0 if leaf_path(path) in spared else multiplier
            return jax.tree_util.tree_map_with_path(of, self.multipliers(params))

        return decay_weights(self.rate, parts=parts)

    def multipliers(self, params: Params) -> PyTree:
        return resolve_parts(self.parts, params, stacked=self.stacked)

    def update(
        self, updates: PyTree, state: Any, params: Params, frozen: PyTree
    ) -> tuple[PyTree, DecayState]:
        found, spared = self.find(params, frozen, required=True)
        leaves, pulls = _by_path(params, "params"), {}
        for pair, weight, layer_axes in found:
            left, right = leaves[pair.left], leaves[pair.right]
            both = pulls_of_factors(left, right, weight, self.scale, layer_axes)
            for name, pull in zip((pair.left, pair.right), both, strict=True):
                pulls[name] = pulls[name] + pull if name in pulls else pull
        c = rate_at(self.rate, state.step)

        def drawn(update: Any, name: str, multiplier: Any) -> Any:
            if name not in pulls or is_known_zero(multiplier):
                return update
            pull = pulls[name]
            share = jnp.asarray(c * multiplier, jnp.finfo(pull.dtype).dtype)
            return (update - share * pull).astype(update.dtype)

        names = jax.tree_util.tree_map_with_path(lambda path, _: leaf_path(path), params)
        updates, state = self.others(spared).update(updates, state, params)
        return map_updates(drawn, updates, names, self.multipliers(params)), state


# Which leaves belong together.


def _by_path(tree: PyTree, name: str) -> dict[str, Any]:
    check_distinct_paths(tree, f"the adapters in `{name}`")
    return {leaf_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _pairs_of(
    leaves: Mapping[str, Any], factors: Sequence[str], pairs: Pairs | None
) -> list[_Pair]:
    if pairs is None:
        return _pairs_by_name(leaves, *factors)
    for kernel, both in pairs.items():
        for name in both:
            if name not in leaves or not is_inexact(leaves[name]):
                raise ValueError(
                    f"`pairs` names the factor {name!r} of {kernel!r}, which is no leaf of numbers "
                    f"among the params.{nearest(name, leaves)} (Under `optax.masked` or "
                    "`optax.partition`, let it see both factors of a pair.)"
                )
    return [_Pair(left, right, (kernel,)) for kernel, (left, right) in pairs.items()]


def _pairs_by_name(leaves: Mapping[str, Any], left: str, right: str) -> list[_Pair]:
    """Every two leaves whose paths are the same but for one step, which is a factor's name."""
    found = []
    for name in leaves:
        for one, other in ((left, right), (right, left)):
            steps = name.split("/")
            if one not in steps or not is_inexact(leaves[name]):
                continue
            at = len(steps) - 1 - steps[::-1].index(one)
            partner = "/".join([*steps[:at], other, *steps[at + 1 :]])
            if partner not in leaves:
                raise ValueError(
                    f"the factor {name!r} has no partner {partner!r} among the params."
                    f"{nearest(partner, leaves)} Name the pair by hand (`pairs`); under "
                    "`optax.masked` or `optax.partition`, let it see both factors."
                )
            if one == left:
                found.append(_Pair(name, partner, _places("/".join(steps[:at]))))
    if not found:
        raise ValueError(
            f"no leaf of the params is a factor: none has {left!r} or {right!r} in its path "
            f"(`factors`).{nearest(left, leaves)} Give their names, the left one first, or the "
            'pairs by hand: pairs={"x/kernel": ("x/left", "x/right")}.'
        )
    return found


def _places(folder: str) -> tuple[str, ...]:
    """Where the frozen weight of the factors in a folder may lie, the likeliest first."""
    folders = [folder, f"{folder}/base_module", f"{folder}/base_layer", folder.rpartition("/")[0]]
    paths = [f"{each}/{name}" for each in folders for name in ("kernel", "weight", "w")]
    return tuple(path.lstrip("/") for path in paths) + ((folder,) if folder else ())


def _not_found(pair: _Pair, there: Mapping[str, Any], among_params: bool) -> str:
    tried = ", ".join(map(repr, pair.places[:3])) + (" and others" if pair.places[3:] else "")
    where = "the params" if among_params else "`frozen`"
    way = (
        "Give the tree of the frozen weights, as `frozen` to `lora_decay` or in each update: "
        "`tx.update(updates, state, params, frozen=tree)`"
        if among_params
        else 'Name it by hand: pairs={"its path": ("left", "right")}'
    )
    return (
        f"the frozen weight of {pair.left!r} and {pair.right!r} is not in {where}: there is no "
        f"{tried}.{nearest(pair.places[0], there)} {way}."
    )


def _check_shapes(
    pair: _Pair, path: str, leaves: Mapping[str, Any], weight: Any, axes: Mapping[str, int]
) -> None:
    """Refuses factors whose product has not the shape of their weight."""
    left, right = np.shape(leaves[pair.left]), np.shape(leaves[pair.right])
    k, other = axes[pair.left], axes[pair.right]

    def product(one: tuple, two: tuple) -> tuple | None:
        fits = len(one) > k and len(two) > k and one[:k] == two[:k] and one[-1] == two[k]
        return one[:-1] + two[k + 1 :] if fits and k == other else None

    if product(left, right) == np.shape(weight) and is_inexact(weight):
        return
    turned = product(right, left) == np.shape(weight)
    way = (
        "The other order fits: swap them in `factors` or `pairs`."
        if turned
        else "Name what belongs together by hand (`pairs`), and the axes that count layers "
        "(`stacked`)."
    )
    raise ValueError(
        f"`{pair.left}` of shape {left} times `{pair.right}` of shape {right} does not add to the "
        f"frozen weight {path!r} of shape {np.shape(weight)}. {way}"
    )


def _check_names(factors: Any, pairs: Any) -> None:
    def is_pair(names: Any) -> bool:
        two = isinstance(names, tuple | list) and len(names) == 2
        return two and all(isinstance(name, str) and name for name in names)

    if not is_pair(factors) or factors[0] == factors[1]:
        raise ValueError(
            "`factors` must be two different names, the left factor's first, such as "
            f'("lora_a", "lora_b"), got {factors!r}.'
        )
    by_hand = isinstance(pairs, Mapping) and pairs and all(map(is_pair, pairs.values()))
    if pairs is not None and not by_hand:
        raise ValueError(
            "`pairs` must be a mapping from a frozen weight's path to those of its left and right "
            f'factor, {{"x/kernel": ("x/left", "x/right")}}, got {pairs!r}.'
        )
