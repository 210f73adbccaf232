"""What an optimiser does to each leaf, measured from its own functions."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wdjax.decay.optimizers import RoundingState
from wdjax.diagnostics.at_rest import Decays, measure_decay
from wdjax.diagnostics.equilibrium import Walk, measure_walk
from wdjax.diagnostics.probes import is_shape, length, probe_of, zero_gradients
from wdjax.diagnostics.response import measure_response
from wdjax.types import Params, is_inexact

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
BESIDE_OTHERS = (
    "not a decay of the leaf by itself: without a gradient it shrinks some of its weights and lets "
    "others grow, as the factors of an adapter are drawn by one another and by the weight that "
    "they adapt (`lora_decay`)"
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


def measure_leaves(params: Params, tx: Any, num_steps: int | None) -> Measurement:
    """What decay, gradients and random gradients do to each leaf, in the order of the leaves."""
    probe = jax.tree.map(probe_of, params)
    # What the optimiser refuses of the params is the caller's to hear.
    state = jax.eval_shape(tx.init, probe)
    finds = _finds_its_step(state)
    masters = _kept_masters(tx, params)
    leaves = jax.tree.leaves(probe)
    try:
        jax.eval_shape(lambda p: tx.update(zero_gradients(p), tx.init(p), p), probe)
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
        response = measure_response(tx, probe, num_steps)
        decays = measure_decay(tx, probe, num_steps or response.num_steps)
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


def _rates_of(w: Any, seen: Decays) -> tuple[np.ndarray, np.ndarray, str | None]:
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
    # Where all points outward the weights grow, at a rate.
    if size and 0.05 < float(seen.outward.mean()) < 0.95:
        return nothing, nothing, BESIDE_OTHERS
    # A slope as small as a rounding is one, unless it is just what the rates say.
    agrees = np.abs(seen.slopes - seen.rates) <= 0.05 * np.abs(seen.rates)
    slopes = np.where(agrees | (np.abs(seen.slopes) > rounding), seen.slopes, 0)
    if not size and np.any(slopes > 0.99):
        return nothing, nothing, KEEPS_WEIGHTS
    return _settled(seen) + 0.0, slopes + 0.0, None  # no -0


def _settled(seen: Decays) -> np.ndarray:
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


def _whole_cycles(decays: list[Decays]) -> list[Decays]:
    """Without a rest at the end: of updates that come every k steps, whole cycles are averaged."""
    acts = np.any([np.stack([d.rates, d.slopes, d.moving]) != 0 for d in decays], axis=(0, 1))
    where = np.flatnonzero(acts)
    if not len(where) or where[0] == 0 or np.any(np.diff(where) != where[0] + 1):
        return decays
    end = int(where[-1]) + 1
    return [Decays._make([*(x[:end] for x in d[:-1]), d.reference]) for d in decays]


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
