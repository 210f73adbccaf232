"""What an optimiser and a penalty do to each leaf, measured from the functions themselves."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from wdjax.decay.optimizers import RoundingState
from wdjax.diagnostics.equilibrium import Walk, fed, gram, measure_walk
from wdjax.types import Batch, LossFn, Params, is_inexact

UPDATES_TRIED = 16
"""Updates measured where the length of the run is not given."""

UPDATES_WAITED = 1024
"""Updates waited for at most until the first that does something: some optimisers collect."""

STEPS_WALKED = 256
"""Random gradients tried at most: momentum is forgotten by then, and a run's end waits for it."""

NOT_FINITE = "without a gradient its update is not finite: what it does is set by the gradients"
KEEPS_WEIGHTS = (
    "it keeps weights in its own state and takes back what it did not do itself, so what it "
    "removes of a weight cannot be told from its bookkeeping"
)
L2_ADAPTIVE = (
    "not a decay proportional to the weight: L2 through the gradient of an adaptive optimiser, "
    "which divides its strength out"
)
BESIDE_GRADIENTS = (
    "what it removes depends on the gradients beside it, as under a trust ratio (LAMB, LARS) or a "
    "step size found on the way: it has no rate of its own"
)


class Measured(NamedTuple):
    """What the optimiser does to a leaf."""

    probe: Any
    """The leaf, or what stood in for it."""
    rates: np.ndarray
    """`[step]`: what the updates remove of it."""
    slopes: np.ndarray
    """`[step]`: how that grows with the weights."""
    to_zero: bool
    """What it removes leads to zero, not to another reference."""
    keeps_master: bool
    moves: bool
    scale_free: bool
    walk: Walk | None
    unmeasured: str | None
    """Why no rate is said; None where one is."""

    @property
    def decay(self) -> np.ndarray:
        """`[step]`: the rates, or the slopes where decay draws to another reference."""
        return _decay(self.rates, self.slopes)

    @property
    def rate_on_the_way(self) -> float:
        """The rate among gradients: at rest no gate spares a weight."""
        share = _share_on_the_way(self.walk, self.rates)
        return min(max(share, 0.0), 1.0) * float(self.decay[:STEPS_WALKED].mean())


class Measurement(NamedTuple):
    """Of all leaves, in their order."""

    leaves: list[Measured]
    num_waited: int
    """Updates made, with and without gradients, before giving up; 0 where one did something."""


class _Decays(NamedTuple):
    """What was seen of a leaf without gradients, `[step]`; `start` is where it stood."""

    rates: np.ndarray
    """Of the leaf held where it is."""
    tripled: np.ndarray
    """The same of three times the leaf."""
    apart: np.ndarray
    """How far that is from proportional in all directions, as a share of the leaf."""
    slopes: np.ndarray
    """What is removed of as much again, put on top of the leaf."""
    moving: np.ndarray
    """The rates of the leaf that takes its updates."""
    reference: float
    """How far, as a share of the leaf, what does not change sign with it has carried it."""


def measure_leaves(params: Params, tx: Any, num_steps: int | None) -> Measurement:
    """What decay, gradients and random gradients do to each leaf, in the order of the leaves."""
    probe = jax.tree.map(_probe, params)
    # What the optimiser refuses of the params is the caller's to hear.
    state = jax.eval_shape(tx.init, probe)
    finds = _finds_its_step(state)
    masters = _kept_masters(tx, params)
    leaves = jax.tree.leaves(probe)
    try:
        jax.eval_shape(lambda p: tx.update(_zeros(p), tx.init(p), p), probe)
    except Exception as error:  # whatever an optimiser of someone else raises
        why = f"its update asks for more than gradients, state and params ({error})"
        none = np.zeros(1)
        return Measurement(
            [
                Measured(w, none, none, False, m, True, False, None, why if is_inexact(w) else None)
                for w, m in zip(leaves, masters, strict=True)
            ],
            0,
        )
    # A NaN is an answer here, not an error of the caller's.
    with jax.debug_nans(False):
        response = _measure_response(tx, probe, num_steps)
        decays = _measure_decay(tx, probe, num_steps or response.num_steps)
        if num_steps is None:
            decays = _whole_cycles(decays)
        found = [_rates_of(w, seen) for w, seen in zip(leaves, decays, strict=True)]
        known = [
            seen.rates if why is None else None
            for seen, (*_, why) in zip(decays, found, strict=True)
        ]
        num_walked = min(num_steps or STEPS_WALKED, STEPS_WALKED)
        walks, smaller = _walks(tx, probe, known, num_walked)
    measured = []
    for i, (w, seen) in enumerate(zip(leaves, decays, strict=True)):
        rates, slopes, why = found[i]
        share, share_smaller = (_share_on_the_way(x[i], seen.rates) for x in (walks, smaller))
        if why is None and np.any(rates) and not _alike(share, share_smaller):
            why = BESIDE_GRADIENTS
        if why is None and finds and is_inexact(w):
            why = BESIDE_GRADIENTS
        if why is not None and why.startswith(_DISPROPORTIONATE) and share < 0.9:
            why = L2_ADAPTIVE
        removed = 1 - float(np.prod(1 - rates)) or 1.0
        to_zero = bool(np.mean(rates) > 0 and abs(seen.reference) < 0.5 * abs(removed))
        walk = smaller[i]
        # Beside a large L2 term a small gradient changes nothing of a step of one size.
        moved = response.moves[i] or (walk is not None and walk.stride > 0)
        measured.append(
            Measured(
                w, rates, slopes, to_zero, masters[i], moved, response.scale_free[i], walk, why
            )
        )
    happened = any(m.moves or m.unmeasured or np.any(m.decay) for m in measured)
    return Measurement(measured, 0 if happened else max(response.num_steps, num_steps or 0))


_DISPROPORTIONATE = "not a decay proportional to the weight"


def _finds_its_step(state: Any) -> bool:
    """Whether the step size is found from the gradients, from next to nothing: Mechanic's."""
    is_found = lambda node: type(node).__name__ == "MechanicState"
    return any(map(is_found, jax.tree.leaves(state, is_leaf=is_found)))


def _rates_of(w: Any, seen: _Decays) -> tuple[np.ndarray, np.ndarray, str | None]:
    """The leaf's rates and slopes, and why they are none, if they are."""
    nothing = np.zeros_like(seen.rates)
    if not is_inexact(w) or not w.size:
        return nothing, nothing, None
    if not all(np.all(np.isfinite(x)) for x in seen[:-1]):
        return nothing, nothing, NOT_FINITE
    rounding = 32 * float(jnp.finfo(w.dtype).eps)
    size = float(np.abs(seen.rates).mean())
    apart = float(np.abs(seen.tripled - seen.rates).mean())
    # Bookkeeping in another order of operations leaves a rate of a rounding.
    if size <= 1e-12 or (apart > 0.05 * size and max(size, apart) < rounding):
        seen = seen._replace(rates=nothing, tripled=nothing, moving=nothing)
        size = apart = 0.0
    if apart > 0.05 * size or float(seen.apart.mean()) > 0.05 * size + rounding:
        times = 3 * float(np.abs(seen.tripled).mean()) / size if size else math.inf
        return (
            nothing,
            nothing,
            f"{_DISPROPORTIONATE}: of three times the weight it removes {times:.3g} times as much",
        )
    slopes = np.where(np.abs(seen.slopes) > rounding, seen.slopes, 0)
    if not size and np.any(slopes > 0.99):
        return nothing, nothing, KEEPS_WEIGHTS
    return _settled(seen) + 0.0, slopes + 0.0, None  # no -0


def _settled(seen: _Decays) -> np.ndarray:
    """The rates of the weights held; where iterates are kept beside them, of those that move.

    An average that is kept (lookahead, schedule-free) waits for the weights to follow, and piles
    up what they do not. Under momentum the two are nearly alike, up to the point where a weight
    swings about zero.
    """
    kept = np.stack([1 - seen.rates, 1 - seen.moving])
    if np.any(kept <= 0.5) or np.any(kept > 1.01):
        return seen.rates
    held, moving = -np.log(kept).sum(axis=1)
    return seen.rates if abs(held - moving) <= 0.25 * abs(moving) else seen.moving


def _decay(rates: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """Of the whole run one or the other: in the first step of a warm-up all rates are 0."""
    return rates if np.any(np.abs(rates) > 1e-12) else np.maximum(slopes, 0)


def _whole_cycles(decays: list[_Decays]) -> list[_Decays]:
    """Without a rest at the end: of updates that come every k steps, whole cycles are averaged."""
    acts = np.any([np.stack([d.rates, d.slopes, d.moving]) != 0 for d in decays], axis=(0, 1))
    where = np.flatnonzero(acts)
    if not len(where) or where[0] == 0 or np.any(np.diff(where) != where[0] + 1):
        return decays
    end = int(where[-1]) + 1
    return [_Decays._make([*(x[:end] for x in d[:-1]), d.reference]) for d in decays]


def _walks(
    tx: Any, probe: Params, rates: list[np.ndarray | None], num_steps: int
) -> tuple[list[Walk | None], list[Walk | None]]:
    """Per leaf, at its size and smaller: the latter where what is removed is not that at rest.

    `rates` are None of leaves that have no rate.

    Behind a gate the decay of a large leaf bends its steps: shrunk, it does not.
    """
    walk = measure_walk(tx, num_steps)
    walks = walk(probe)
    if all(_alike(_share_on_the_way(*of), 1.0) for of in zip(walks, rates, strict=True)):
        return walks, walks
    shrunk = [
        w if walk is None else w * np.asarray(_shrinkage(w, walk), w.dtype)
        for w, walk in zip(jax.tree.leaves(probe), walks, strict=True)
    ]
    return walks, walk(jax.tree.structure(probe).unflatten(shrunk))


def _shrinkage(w: Any, walk: Walk) -> float:
    """To the length of a step; for a trust ratio, whose steps shrink with the leaf, a tenth."""
    factor = walk.stride / max(length(w), 1e-30)
    return factor if 0 < factor < 0.1 else 0.1


def _share_on_the_way(walk: Walk | None, rates: np.ndarray | None) -> float:
    """The share of the rate at rest that acts among gradients; 1 where there is none."""
    if walk is None or rates is None:
        return 1.0
    num_steps = min(len(rates), len(walk.pulls))
    rest = float(rates[:num_steps].mean())
    if not rest > 1e-12:
        return 1.0
    return float(walk.pulls[:num_steps].mean()) / rest


def _alike(share: float, other: float) -> bool:
    return abs(share - other) <= 0.02 * max(abs(share), abs(other))


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


def _measure_decay(tx: Any, params: Params, num_steps: int) -> list[_Decays]:
    """Per leaf, what updates without gradients do, `num_steps` of them.

    Side by side, each with a state of its own: the leaf, its negative and its triple, held where
    they are; the leaf and its negative, taking their updates. And the leaf's double under the
    leaf's state. From a leaf and its negative comes what changes sign with it, the decay,

        rate = -<(update(w) - update(-w)) / 2, w> / <w, w>

    which leaves out what does not: a noise, and the pull to another reference.
    """
    lanes = (1.0, -1.0, 3.0, 1.0, -1.0)

    def spread(w):
        if not is_inexact(w):
            return jnp.stack([w] * len(lanes))
        return jnp.stack([jnp.asarray(w) * jnp.asarray(m, w.dtype) for m in lanes])

    def one_step(carry, _):
        states, weights = carry
        double = lambda w: jnp.concatenate([w, 2 * w[:1] if is_inexact(w) else w[:1]])
        first_again = lambda x: jnp.concatenate([x, x[:1]])
        updates, states = jax.vmap(lambda s, w: tx.update(_zeros(w), s, w))(
            jax.tree.map(first_again, states), jax.tree.map(double, weights)
        )
        states = jax.tree.map(lambda x: x[:-1], states)
        pairs = zip(jax.tree.leaves(updates), jax.tree.leaves(weights), strict=True)
        seen, moved = zip(*(_see(*of_leaf) for of_leaf in pairs), strict=True)
        return (states, jax.tree.structure(weights).unflatten(moved)), seen

    @jax.jit
    def measure(params):
        weights = jax.tree.map(spread, params)
        states = jax.vmap(tx.init)(weights)
        return jax.lax.scan(one_step, (states, weights), length=num_steps)[1]

    return [
        _Decays._make([*columns[:-1], float(columns[-1][-1])])
        for columns in (np.asarray(seen, np.float64).T for seen in measure(params))
    ]


def _see(u: Any, w: Any) -> tuple[Any, Any]:
    """The six numbers of `_Decays`, and the weights of the lanes after the step."""
    if not is_inexact(w) or not w.size:
        return jnp.zeros(6), w
    rows = jnp.concatenate([u.reshape(6, -1), w.reshape(5, -1)])
    seen = jnp.matmul(np.asarray(_SEEN, w.dtype), rows, precision="highest")
    products = gram(seen)
    squares = jnp.diagonal(products)
    ratio = lambda top, square: jnp.where(square == 0, 0, top / jnp.where(square == 0, 1, square))
    away = jnp.sqrt(ratio(squares[4], 9 * squares[7]))
    tops = jnp.stack([products[0, 7], products[1, 8], products[2, 7], products[3, 9]])
    removed = -ratio(tops, squares[np.array([7, 8, 7, 9])])
    carried = ratio(products[10, 7], squares[7])
    numbers = jnp.concatenate([removed[:2], away[None], removed[2:], carried[None]])
    size = ratio(squares[5:7], squares[7]).reshape(2, *[1] * (w.ndim - 1))
    # Held once it is all but gone or has grown out of all bounds: what follows is seen on it.
    after = jnp.where((size > 1e-12) & (size < 1e12), w[3:] + u[3:5], w[3:])
    return numbers, jnp.concatenate([w[:3], after])


def _seen_of_lanes() -> np.ndarray:
    """`[what, lane]`: what is looked at, from the six updates and the five weights."""
    u, w = np.split(np.eye(11), [6])
    odd, even = (u[0] - u[1]) / 2, (u[0] + u[1]) / 2
    return np.stack(
        [
            odd,
            u[2] - even,
            u[5] - u[0],
            (u[3] - u[4]) / 2,
            u[2] - even - 3 * odd,
            w[3] + u[3],
            w[4] + u[4],
            w[0],
            w[2],
            (w[3] - w[4]) / 2,
            (w[3] + u[3] + w[4] + u[4]) / 2,
        ]
    )


_SEEN = _seen_of_lanes()


def _kept_masters(tx: Any, params: Params) -> list[bool]:
    """Per leaf: whether its dtype is no bound, by a wider copy in the state or random rounding."""
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


def _zeros(params: Params) -> Params:
    """A gradient of zeros."""
    return fed(jax.tree.map(_zero_gradient, params))


def _zero_gradient(leaf: Any) -> Any:
    """Zeros, of an integer leaf too; a key has none."""
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return leaf if is_key else jnp.zeros(leaf.shape, leaf.dtype)


class _Response(NamedTuple):
    """What gradients of one direction do."""

    moves: list[bool]
    """Per leaf: one moves it."""
    scale_free: list[bool]
    """Per leaf: ten times as much moves it no farther."""
    num_steps: int
    """Until a weight moved."""


def _measure_response(tx: Any, params: Params, num_steps: int | None) -> _Response:
    """What gradients of one direction do, of more and more updates until one moves a weight.

    They are small (norm 0.01 and 0.1), so that clipping does not make them alike.
    """
    leaves, structure = jax.tree.flatten(params)
    random = np.random.default_rng(0)
    raw = [random.normal(size=np.shape(w)) if is_inexact(w) else np.zeros(()) for w in leaves]
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in raw))
    sizes = (0.0, 0.01, 0.1)

    @jax.jit
    def total(grads, num_steps):
        def one_step(_, carry):
            states, sums = carry
            updates, states = jax.vmap(lambda g, s: tx.update(g, s, params))(grads, states)
            steps = zip(sums, jax.tree.leaves(updates), strict=True)
            return states, [s + u if is_inexact(u) else s for s, u in steps]

        states = jax.vmap(lambda _: tx.init(params))(jnp.arange(len(sizes)))
        sums = [jnp.zeros(np.shape(g), g.dtype) for g in lanes]
        return jax.lax.fori_loop(0, num_steps, one_step, (states, sums))[1]

    lanes = [
        np.stack([np.asarray(size / norm * g, w.dtype) for size in sizes])
        if is_inexact(w)
        else np.zeros(len(sizes), np.float32)
        for g, w in zip(raw, leaves, strict=True)
    ]
    # On the host: each operation on a device would be a small program of its own.
    no_gradients = [
        jnp.stack([w] * len(sizes))
        if jnp.issubdtype(w.dtype, jax.dtypes.prng_key)
        else np.zeros((len(sizes), *np.shape(w)), w.dtype)
        for w in leaves
    ]
    found = zip(lanes, no_gradients, leaves, strict=True)
    grads = fed(structure.unflatten([g if is_inexact(w) else zero for g, zero, w in found]))
    most = UPDATES_WAITED if num_steps is None else num_steps
    num_tried, num_needed = min(most, UPDATES_TRIED), 0
    while True:
        moves, scale_free = [], []
        for w, lane in zip(leaves, jax.device_get(total(grads, num_tried)), strict=True):
            first, second = (float(np.linalg.norm(np.ravel(d))) for d in np.diff(lane, axis=0))
            # A NaN comes of a gradient, so it moves.
            moves.append(is_inexact(w) and not first == 0)
            scale_free.append(moves[-1] and second < 0.5 * first)
        still = [w for w, m in zip(leaves, moves, strict=True) if is_inexact(w) and not m]
        if any(moves):
            num_needed = num_needed or num_tried
        waits = still and (not num_needed or num_tried < UPDATES_WAITED)
        if num_tried >= most or not waits:
            return _Response(moves, scale_free, num_needed or num_tried)
        num_tried = min(8 * num_tried, most)


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
