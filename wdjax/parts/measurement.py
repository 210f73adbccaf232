"""What an optimiser and a penalty do to each leaf, measured from the functions themselves."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from wdjax.parts.equilibrium import Walk, along, measure_walk
from wdjax.types import Batch, LossFn, Params, is_inexact

UPDATES_TRIED = 16
"""Updates measured where the length of the run is not given: some optimisers wait for a few."""

STEPS_WALKED = 256
"""Random gradients tried at most: momentum is forgotten by then, and a run's end waits for it."""


class Measured(NamedTuple):
    """What the optimiser does to a leaf."""

    probe: Any
    """The leaf, or what stood in for it."""
    rates: np.ndarray
    """`[step]`: what the updates remove of it."""
    slopes: np.ndarray
    """`[step]`: how that grows with the weights."""
    keeps_master: bool
    moves: bool
    scale_free: bool
    walk: Walk | None

    @property
    def decay(self) -> np.ndarray:
        """`[step]`: the rates, or the slopes where decay draws to another reference."""
        return np.where(np.abs(self.rates) > 1e-12, self.rates, np.maximum(self.slopes, 0))

    @property
    def rate_on_the_way(self) -> float:
        """The rate among gradients: at rest no gate spares a weight."""
        share = _share_on_the_way(self.walk, self.rates)
        return share * float(self.decay[:STEPS_WALKED].mean())


def measure_leaves(
    params: Params, tx: optax.GradientTransformation, num_steps: int | None
) -> list[Measured]:
    """What decay, gradients and random gradients do to each leaf, in the order of the leaves."""
    probe = jax.tree.map(_probe, params)
    rates, slopes = _measure_decay(tx, probe, num_steps or UPDATES_TRIED)
    columns = (
        jax.tree.leaves(probe),
        rates,
        slopes,
        _kept_masters(tx, params),
        *_measure_response(tx, probe, min(num_steps or 64, UPDATES_TRIED)),
        _walks(tx, probe, rates, min(num_steps or STEPS_WALKED, STEPS_WALKED)),
    )
    return [Measured(*of_leaf) for of_leaf in zip(*columns, strict=True)]


def _walks(
    tx: optax.GradientTransformation, probe: Params, rates: list[np.ndarray], num_steps: int
) -> list[Walk | None]:
    """Per leaf. Behind a gate the decay of a large leaf bends its steps: shrunk, it does not."""
    walks = measure_walk(tx, probe, num_steps)
    if all(_share_on_the_way(*of_leaf) > 0.99 for of_leaf in zip(walks, rates, strict=True)):
        return walks
    shrunk = [
        w if walk is None else w * np.asarray(walk.stride / max(length(w), 1e-30), w.dtype)
        for w, walk in zip(jax.tree.leaves(probe), walks, strict=True)
    ]
    return measure_walk(tx, jax.tree.structure(probe).unflatten(shrunk), num_steps)


def _share_on_the_way(walk: Walk | None, rates: np.ndarray) -> float:
    """The share of the rate at rest that acts among gradients; 1 where there is none."""
    if walk is None:
        return 1.0
    num_steps = min(len(rates), len(walk.pulls))
    rest = float(rates[:num_steps].mean())
    if rest <= 1e-12:
        return 1.0
    return min(max(float(walk.pulls[:num_steps].mean()) / rest, 0.0), 1.0)


def length(w: Any) -> float:
    """The Euclidean norm of all its entries."""
    return float(np.linalg.norm(np.ravel(w)))


def _probe(leaf: Any) -> Any:
    """The leaf in float32 at least; ones in place of a shape or of zeros alone."""
    if not is_inexact(leaf):
        return jnp.zeros(np.shape(leaf), leaf.dtype) if is_shape(leaf) else leaf
    wide = jnp.promote_types(leaf.dtype, jnp.float32)
    if is_shape(leaf) or not np.any(np.asarray(leaf)):
        return np.ones(np.shape(leaf), wide)
    return np.asarray(leaf, wide)


def is_shape(leaf: Any) -> bool:
    """Whether it stands for an array that was not given."""
    return isinstance(leaf, jax.ShapeDtypeStruct)


def _dot(x: Any, y: Any) -> Array:
    return jnp.real(jnp.vdot(x, y))


def _measure_decay(
    tx: optax.GradientTransformation, params: Params, num_steps: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Per leaf: rates `[step]`, and their growth with the weights `[step]`.

    The second is `-<update(2 w) - update(w), w> / <w, w>`: the same for decay to zero, and what
    decay to another reference removes of the distance.
    """

    removed = lambda update, w: -along(update, w)

    @jax.jit
    def measure(params):
        zeros = jax.tree.map(_zero_gradient, params)
        twice = jax.tree.map(lambda w: 2 * w if is_inexact(w) else w, params)

        def one_step(state, _):
            farther, _ = tx.update(zeros, state, twice)
            updates, state = tx.update(zeros, state, params)
            change = jax.tree.map(lambda f, u: f - u if is_inexact(u) else u, farther, updates)
            rates = jax.tree.map(removed, updates, params)
            slopes = jax.tree.map(removed, change, params)
            return state, (jax.tree.leaves(rates), jax.tree.leaves(slopes))

        return jax.lax.scan(one_step, tx.init(params), length=num_steps)[1]

    rates, slopes = jax.tree.map(lambda x: np.asarray(x, np.float64), measure(params))
    return rates, slopes


def _kept_masters(tx: optax.GradientTransformation, params: Params) -> list[bool]:
    """Per leaf: whether its dtype is no bound, by a wider copy in the state or random rounding."""
    # The decays are built on the parts, so this looks up from below.
    from wdjax.decay.optimizers import RoundingState

    leaves = jax.tree.leaves(params)
    narrow = [is_inexact(leaf) and jnp.result_type(leaf).itemsize <= 2 for leaf in leaves]
    if not any(narrow):
        return narrow
    own = jax.tree.map(
        lambda w: jnp.ones(w.shape, w.dtype) if is_shape(w) and is_inexact(w) else w, params
    )
    own = jax.tree.map(lambda w: jnp.zeros(w.shape, w.dtype) if is_shape(w) else w, own)
    state = tx.init(own)
    is_rounding = lambda node: isinstance(node, RoundingState)
    if any(map(is_rounding, jax.tree.leaves(state, is_leaf=is_rounding))):
        return narrow
    kept = [x for x in jax.tree.leaves(state) if is_inexact(x)]

    def has_copy(w):
        wide = np.asarray(w, np.float32)
        return any(
            x.dtype.itemsize > w.dtype.itemsize
            and x.shape == w.shape
            and np.array_equal(np.asarray(x, np.float32), wide)
            and np.any(wide)
            for x in kept
        )

    return [n and has_copy(w) for n, w in zip(narrow, jax.tree.leaves(own), strict=True)]


def _zero_gradient(leaf: Any) -> Any:
    """Zeros, of an integer leaf too; a key has none."""
    return leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else jnp.zeros_like(leaf)


def _measure_response(
    tx: optax.GradientTransformation, params: Params, num_steps: int
) -> tuple[list[bool], list[bool]]:
    """Per leaf: whether a gradient moves it, and whether ten times as much moves it no farther.

    The gradients are small (norm 0.01 and 0.1), so that clipping does not make them alike.
    """
    leaves, structure = jax.tree.flatten(params)
    random = np.random.default_rng(0)
    raw = [random.normal(size=np.shape(w)) if is_inexact(w) else np.zeros(()) for w in leaves]
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in raw))

    def gradient(size):
        of = lambda g, w: (
            np.asarray(size / norm * g, w.dtype) if is_inexact(w) else _zero_gradient(w)
        )
        return structure.unflatten([of(g, w) for g, w in zip(raw, leaves, strict=True)])

    @jax.jit
    def total(params, grads):
        def one_step(state, _):
            updates, state = tx.update(grads, state, params)
            return state, [u if is_inexact(u) else jnp.zeros(()) for u in jax.tree.leaves(updates)]

        _, updates = jax.lax.scan(one_step, tx.init(params), length=num_steps)
        return [jnp.sum(u, axis=0) for u in updates]

    sums = (total(params, gradient(size)) for size in (0.0, 0.01, 0.1))
    without, small, large = jax.tree.map(np.asarray, tuple(sums))
    moves, scale_free = [], []
    for w, u0, u1, u2 in zip(leaves, without, small, large, strict=True):
        first, second = (float(np.linalg.norm(np.ravel(d))) for d in (u1 - u0, u2 - u1))
        moves.append(is_inexact(w) and first > 0)
        scale_free.append(moves[-1] and second < 0.5 * first)
    return moves, scale_free


def measure_penalty(
    params: Params, loss_fn: LossFn | None, batch: Batch | None, model_state: PyTree
) -> tuple[list[float], list[float | None]]:
    """Per leaf: the penalty's gradient along the weight per square of it, and its share."""
    leaves, structure = jax.tree.flatten(params)
    if loss_fn is None or batch is None:
        return [0.0] * len(leaves), [None] * len(leaves)
    of = lambda p, b: loss_fn(p, b, model_state=model_state, train=False)[0]
    where = [i for i, leaf in enumerate(leaves) if is_inexact(leaf)]

    def penalty(moving, batch):
        filled = list(leaves)
        for i, leaf in zip(where, moving, strict=True):
            filled[i] = leaf
        nothing = batch._replace(weights=jnp.zeros_like(jnp.asarray(batch.weights)))
        return of(structure.unflatten(filled), nothing)

    @jax.jit
    def measure(moving, batch):
        value, grads = jax.value_and_grad(penalty)(moving, batch)
        along = [_dot(g, w) for g, w in zip(grads, moving, strict=True)]
        return value, [_dot(w, w) for w in moving], along

    moving = [leaves[i] for i in where]
    loss = float(jax.jit(of)(params, batch))
    value, squares, along = jax.tree.map(float, measure(moving, batch))
    pulls: list[float] = [0.0] * len(leaves)
    shares: list[float | None] = [0.0] * len(leaves)
    for place, i in enumerate(where):
        w, square, pull = moving[place], squares[place], along[place]
        replaced = lambda by, place=place: [*moving[:place], by, *moving[place + 1 :]]
        if not square and w.size:
            # At zero L2 has no gradient: ask at one.
            at_one = measure(replaced(np.ones(w.shape, w.dtype)), batch)
            square, pull = w.size, float(at_one[2][place])
        pulls[i] = pull / square if square else math.nan
        if pulls[i] != 0 and squares[place] and loss != 0:
            without = float(measure(replaced(np.zeros(w.shape, w.dtype)), batch)[0])
            shares[i] = (value - without) / loss
    return pulls, shares
