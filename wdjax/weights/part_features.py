"""Weights of parts from a feature of the part: depth, fan-in, norms, tail of the spectrum."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal
from jaxtyping import Array, PyTree

from wdjax.checks import check_number
from wdjax.losses import as_model_apply
from wdjax.parts.rules import Stacked, leaf_path, resolve_parts, stacked_axes
from wdjax.types import Batch, LossFn, Model, Params, Parts, Strength, is_inexact
from wdjax.weights.examples import sigmoid_weight

PartFeature = Callable[[Params], PyTree]
"""`params -> x`, one number a leaf, in the structure of the params."""


def sigmoid_parts(
    feature: PartFeature, slope: Strength, parts: Parts = None
) -> Callable[[Params], PyTree]:
    """Builds `parts` from a feature of each part: S5.

        m_leaf = base_leaf / (1 + exp(-slope * x_leaf))

    Goes wherever `parts` goes: a penalty, a decay, `part_weights`, `scale_by_parts`. At slope 0
    every multiplier is half its base; `same_total(sigmoid_parts(f, slope, p), p)` is p there.
    The features stop the gradient: a penalty does not move weights to change their multiplier.

    Args:
      feature: `params -> x`, such as `depth(model, inputs)`, `fan_in`, or `z_scores(weight_norm)`.
      slope: a finite number of either sign. May be traced.
      parts: the base, what counts at all; by default every leaf 1.0.

    Raises:
      ValueError: for a slope that is known and not finite; when called, for parts that do not fit.
    """
    check_number("slope", slope)

    def multipliers(params: Params) -> PyTree:
        base = resolve_parts(parts, params)
        return jax.tree.map(lambda m, x: m * sigmoid_weight(x, slope), base, feature(params))

    return multipliers


def same_total(parts: Parts, like: Parts = None) -> Callable[[Params], PyTree]:
    """Builds `parts` times one number, so that the average weight counts as much as under `like`.

        m'_leaf = m_leaf * sum_l n_l like_l / sum_l n_l m_l,   n_l the weights of leaf l

    It keeps a slope apart from the strength: what `parts` changes is the distribution alone. If
    `parts` is zero everywhere it stays so.

    Raises:
      ValueError: when called, for parts that do not fit.
    """

    def multipliers(params: Params) -> PyTree:
        ours, theirs = resolve_parts(parts, params), resolve_parts(like, params)
        sizes = [math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(params)]
        total = lambda tree: sum(
            n * jnp.asarray(m) for n, m in zip(sizes, jax.tree.leaves(tree), strict=True)
        )
        whole = jnp.asarray(total(ours))
        factor = total(theirs) / jnp.where(whole > 0, whole, 1.0)
        return jax.tree.map(lambda m: m * factor, ours)

    return multipliers


# Features.


def layer_numbers(apply_fn: Callable | Model, inputs: PyTree) -> PartFeature:
    """Builds the feature "which layer": 0, 1, ... in the order in which the model uses them.

    A layer is what stands before the last `/` of a path, so a kernel and its bias share a
    number. The order is that of the forward pass, traced and not run: names tell it badly
    (`head` sorts before `hidden1`). Leaves that are never used share the last layer's number.
    A leaf that holds several layers (under a scan) is one part and has one number.

    Args:
      apply_fn: `(params, inputs) -> outputs`, or a `Model`.
      inputs: examples, of which only shapes and dtypes are used.
    """
    apply = as_model_apply(apply_fn)
    shapes = jax.tree.map(_shape_of, inputs)

    def numbers(params: Params) -> PyTree:
        model_state = None
        if isinstance(apply_fn, Model):
            _, model_state = jax.eval_shape(apply_fn.init, jax.random.key(0), shapes)
        outputs = lambda p, s, x: apply(p, s, x, key=None, train=False)[0]
        like = jax.tree.map(_shape_of, params)
        jaxpr = jax.make_jaxpr(outputs)(like, model_state, shapes).jaxpr
        paths = [leaf_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        layers = [path.rpartition("/")[0] or path for path in paths]
        used: dict[int, int] = {}
        _follow(jaxpr, dict(zip(jaxpr.invars, range(len(paths)), strict=False)), used)
        order = list(dict.fromkeys(layers[leaf] for leaf in used))
        place = [order.index(layer) if layer in order else len(order) - 1 for layer in layers]
        return jax.tree.unflatten(jax.tree.structure(params), [float(max(0, n)) for n in place])

    return numbers


def depth(apply_fn: Callable | Model, inputs: PyTree) -> PartFeature:
    """Builds the feature "how deep": `layer_numbers` over the last one, 0 first, 1 last."""
    number = layer_numbers(apply_fn, inputs)

    def depths(params: Params) -> PyTree:
        numbers = number(params)
        last = max(1.0, max(jax.tree.leaves(numbers), default=0.0))
        return jax.tree.map(lambda n: n / last, numbers)

    return depths


def fan_in(params: Params, *, stacked: Stacked = None) -> PyTree:
    """The feature "how many numbers feed one output", 1 for vectors and embeddings.

    The product of all axes but the last (flax' `kernel[..., in, out]`), or, where the leaf is
    called `weight`, of all but the first (`weight[out, in, ...]` of equinox and PyTorch). Axes
    that count layers feed nothing: name them in `stacked` (`wdjax.parts.stacked_axes`).

    Raises:
      ValueError: as `stacked_axes`.
    """

    def of(path, leaf, layer_axes):
        name, shape = leaf_path(path).rpartition("/")[2].lower(), np.shape(leaf)[layer_axes:]
        if len(shape) < 2 or "embed" in leaf_path(path).lower():
            return 1.0
        return float(math.prod(shape[1:] if name == "weight" else shape[:-1]))

    return jax.tree_util.tree_map_with_path(of, params, stacked_axes(stacked, params))


def weight_norm(params: Params, *, stacked: Stacked = None) -> PyTree:
    """The feature "how large": `sqrt(sum w^2)` of each leaf, without gradient.

    Of a leaf that holds several layers (`stacked`), the root of their mean square, so that a
    stack of alike layers is as large as one of them.

    Raises:
      ValueError: as `wdjax.parts.stacked_axes`.
    """
    return jax.tree.map(_norm, params, stacked_axes(stacked, params))


def gradient_norm(
    loss_fn: LossFn, batch: Batch, *, model_state: PyTree = None, stacked: Stacked = None
) -> PartFeature:
    """Builds the feature "how much it learns": the norm of the loss's gradient on a batch.

    Costs a backward pass wherever the parts are resolved; without gradient.

    Args:
      loss_fn: as `regularized_loss` builds it.
      batch: the examples.
      model_state: what the loss's model needs beside the params.
      stacked: the leaves that hold several layers, whose root mean square is taken.

    Raises:
      ValueError: when called, as `wdjax.parts.stacked_axes`.
    """

    def norms(params: Params) -> PyTree:
        still = jax.lax.stop_gradient(params)
        grads, _ = jax.grad(loss_fn, has_aux=True)(
            still, batch, model_state=model_state, train=False
        )
        return jax.tree.map(_norm, grads, stacked_axes(stacked, params))

    return norms


def tail_index(params: Params, *, stacked: Stacked = None) -> PyTree:
    """The feature "how heavy the tail of the spectrum": Hill's estimate, without gradient.

        alpha = 1 + n / (sum_{i >= k} ln e_i - n ln e_k),   e_i = sigma_i(W)^2 ascending,
        k = floor(N / 2), n = N - k

    Small alpha is a heavy tail: a layer that has learnt strong correlations. Kernels of more
    axes are read as `[all but the last, last]`. Vectors, and matrices with fewer than two
    singular values or without spread among the larger half, get 0. Of a leaf that holds several
    layers (`stacked`), the mean over their matrices.

    Raises:
      ValueError: as `wdjax.parts.stacked_axes`.

    Source: He et al. 2025, arXiv:2506.14562 (AlphaDecay), as its code has it.
    """

    def of(leaf, layer_axes):
        shape = np.shape(leaf)[layer_axes:]
        if not is_inexact(leaf) or len(shape) < 2 or min(math.prod(shape[:-1]), shape[-1]) < 2:
            return 0.0
        wide = jax.lax.stop_gradient(jnp.asarray(leaf, jnp.result_type(float)))
        matrices = wide.reshape(-1, math.prod(shape[:-1]), shape[-1])
        if len(matrices) == 1:
            return of_matrix(matrices[0])
        return jnp.mean(jax.vmap(of_matrix)(matrices))

    def of_matrix(matrix):
        squares = jnp.square(jnp.linalg.svd(matrix, compute_uv=False))[::-1]
        start = len(squares) // 2
        logs = jnp.log(jnp.maximum(squares[start:], jnp.finfo(squares.dtype).tiny))
        spread = jnp.sum(logs - logs[0])
        return jnp.where(spread > 0, 1 + len(logs) / jnp.where(spread > 0, spread, 1.0), 0.0)

    return jax.tree.map(of, params, stacked_axes(stacked, params))


def z_scores(feature: PartFeature, *, stacked: Stacked = None) -> PartFeature:
    """Builds `(x - mean) / deviation` over the leaves of two or more axes; 0 for the others.

    So a slope means the same for every feature. Where all are alike every score is 0. Axes that
    count layers (`stacked`) are no axes of the leaf.

    Raises:
      ValueError: when called, as `wdjax.parts.stacked_axes`.
    """

    def scores(params: Params) -> PyTree:
        axes = stacked_axes(stacked, params)
        is_matrix = jax.tree.map(lambda p, n: np.ndim(p) - n >= 2, params, axes)
        numbers = jax.tree.map(lambda m, x: x if m else None, is_matrix, feature(params))
        known = jnp.stack(
            [jnp.asarray(x, jnp.result_type(float)) for x in jax.tree.leaves(numbers)]
        )
        mean, deviation = jnp.mean(known), jnp.std(known)
        safe = jnp.where(deviation > 1e-6 * jnp.abs(mean), deviation, jnp.inf)
        return jax.tree.map(
            lambda m, x: (x - mean) / safe if m else jnp.zeros(()),
            is_matrix,
            feature(params),
        )

    return scores


# Layer-wise forms of `parts`.


def layerwise_parts(numbers: PartFeature, factor: Strength) -> Callable[[Params], PyTree]:
    """Builds `m_leaf = factor^(L - layer)`, L the last layer: layer-wise decay of a rate.

    Args:
      numbers: `layer_numbers(model, inputs)`.
      factor: >= 0, usually 0.5 to 1: how much less each earlier layer counts. May be traced.

    Raises:
      ValueError: for a factor that is known and negative or not finite.

    Source: Clark et al. 2020, arXiv:2003.10555 (ELECTRA), as timm has it.
    """
    check_number("factor", factor, low=0.0)

    def multipliers(params: Params) -> PyTree:
        layers = numbers(params)
        last = max(jax.tree.leaves(layers), default=0.0)
        return jax.tree.map(lambda n: jnp.asarray(factor) ** (last - n), layers)

    return multipliers


def geometric_parts(
    depths: PartFeature, first: Strength, last: Strength = 1.0
) -> Callable[[Params], PyTree]:
    """Builds `m_leaf = first^(1 - x) * last^x`, x the depth in [0, 1]: fastai's `slice`.

    Args:
      depths: `depth(model, inputs)`.
      first: > 0, the multiplier of the first layer. May be traced.
      last: > 0, that of the last.

    Raises:
      ValueError: for an end that is known and not above 0.

    Source: Howard & Gugger 2020, arXiv:2002.04688 (fastai's discriminative rates).
    """
    check_number("first", first, low=0.0, exclusive_low=True)
    check_number("last", last, low=0.0, exclusive_low=True)

    def multipliers(params: Params) -> PyTree:
        share = lambda x: jnp.asarray(first) ** (1 - x) * jnp.asarray(last) ** x
        return jax.tree.map(share, depths(params))

    return multipliers


def width_parts(base: Params, *, stacked: Stacked = None) -> Callable[[Params], PyTree]:
    """Builds `m_leaf = fan_in(base) / fan_in(params)`: how muP scales Adam's rates with width.

    Matrices whose input grew with the width count less, those fed by the data, biases, gains
    and embeddings 1. For `scale_by_parts` after Adam; a decoupled decay then takes the inverse
    to stay the same.

    Args:
      base: the params (or shapes) of the same model at the width where the rates were tuned.
      stacked: the leaves that hold several layers (`wdjax.parts.stacked_axes`).

    Raises:
      ValueError: when called, for params of another structure, or as `stacked_axes`.

    Source: Yang et al. 2022, arXiv:2203.03466, table 3.
    """

    def multipliers(params: Params) -> PyTree:
        if jax.tree.structure(base) != jax.tree.structure(params):
            raise ValueError(
                "`base` must have the structure of the params, differing in widths alone: "
                f"{jax.tree.structure(base)} against {jax.tree.structure(params)}."
            )
        small, large = fan_in(base, stacked=stacked), fan_in(params, stacked=stacked)
        return jax.tree.map(lambda small, large: small / large, small, large)

    return multipliers


def _shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(leaf))


def _norm(leaf: Any, layer_axes: int) -> Array:
    if not is_inexact(leaf):
        return jnp.zeros(())
    wide = jnp.asarray(leaf, jnp.promote_types(jnp.result_type(leaf), jnp.float32))
    num_layers = math.prod(np.shape(leaf)[:layer_axes])
    norm = jnp.linalg.norm(jax.lax.stop_gradient(wide).ravel())
    return norm if num_layers == 1 else norm / num_layers**0.5


def _follow(jaxpr: Any, leaf_of: dict, used: dict[int, int]) -> None:
    """Notes in `used`, in order, the leaves that meet other values; `leaf_of` maps variables.

    What is computed from one leaf alone (a cast, a reshape) still is that leaf: models that cast
    all their weights first would else seem to use them in the order of their names.
    """
    for equation in jaxpr.eqns:
        variables = [v for v in equation.invars if not isinstance(v, Literal)]
        leaves = {leaf_of.get(v) for v in variables}
        if len(leaves) == 1 and None not in leaves:
            leaf_of |= dict.fromkeys(equation.outvars, leaves.pop())
            continue
        inner = _inner_jaxpr(equation)
        if inner is not None:
            outer = zip(inner.invars, equation.invars, strict=True)
            mapped = {
                i: leaf_of[o] for i, o in outer if not isinstance(o, Literal) and o in leaf_of
            }
            _follow(inner, mapped, used)
            continue
        for variable in variables:
            if variable in leaf_of:
                used.setdefault(leaf_of[variable], len(used))


def _inner_jaxpr(equation: Any) -> Any:
    """The program that an equation calls with its own inputs (a `jit`, `scan`, `checkpoint`)."""
    for name in ("jaxpr", "call_jaxpr"):
        inner = equation.params.get(name)
        inner = getattr(inner, "jaxpr", inner)
        if inner is not None and len(inner.invars) == len(equation.invars):
            return inner
    return None
