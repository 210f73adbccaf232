"""The problem that every library is run on: NumPy only, so each can import it."""

import numpy as np

STEPS, ETA, LAM = 200, 0.02, 0.5
CPR_RATE = 0.05
"""Of the multipliers: at the authors' 1.0 leaves as small as these swing about their bound, and
the float32 of their multipliers decides where they end up."""
BOUNDS = {
    "cpr_uniform_l2": ("uniform", 3.0, "l2"),
    "cpr_dependent_l2": ("dependent", 0.7, "l2"),
    "cpr_warm_start_l2": ("warm_start", 40, "l2"),
    "cpr_uniform_l1": ("uniform", 4.0, "l1"),
    "cpr_uniform_std": ("uniform", 0.5, "std"),
    "cpr_uniform_huber": ("uniform", 2.0, "huber"),
}
"""method, its parameter and measure, as `pytorch_cpr.AdamCPR` names them."""

_RNG = np.random.default_rng(20251122)
_SHAPES = {"kernel_a": (4, 3), "bias": (3,), "kernel_b": (3, 2), "scale": (2,)}
_START = {name: _RNG.normal(size=shape) for name, shape in _SHAPES.items()}
_GOAL = {name: 1.5 * _RNG.normal(size=shape) for name, shape in _SHAPES.items()}
_NOISE = {name: 0.3 * _RNG.normal(size=(STEPS, *shape)) for name, shape in _SHAPES.items()}


def start():
    """The first weights: two kernels, which decay, a bias and a scale, which do not."""
    return {name: w.copy() for name, w in _START.items()}


def grads(w, t):
    """A quadratic's gradients, with made-up noise."""
    return {name: 0.5 * (w[name] - _GOAL[name]) + _NOISE[name][t] for name in w}


def noise(name):
    """The noise of every step, `[step, ...]`."""
    return _NOISE[name]


def goal(name):
    """The minimum of the quadratic."""
    return _GOAL[name]


def schedule(t):
    """The learning rate of step t: linear. (JAX would divide an int32 in float32.)"""
    return ETA * (1 - t * (1 / STEPS))
