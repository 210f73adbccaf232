"""Slow references in NumPy float64, written from the formulas and from nothing else."""

import numpy as np


def cosine_schedule(peak, num_steps):
    """The learning rates of a cosine to zero: `peak / 2 * (1 + cos(pi t / T))`, t = 0..T-1."""
    return peak * 0.5 * (1 + np.cos(np.pi * np.arange(num_steps) / num_steps))


def warmup_cosine_schedule(peak, num_steps):
    """A rise over the first 20th, rounded up, and a cosine to zero over the rest, step by step."""
    warmup, etas = int(np.ceil(num_steps / 20)), []
    for t in range(num_steps):
        if t < warmup:
            etas.append(peak * (t + 1) / (warmup + 1))
        else:
            past = (t - warmup) / (num_steps - warmup)
            etas.append(peak / 2 * (1 + np.cos(np.pi * past)))
    return np.array(etas)


def rates(coupling, strength, learning_rates, peak):
    """c_t for every step, per coupling."""
    return {
        "decoupled": learning_rates * strength,
        "independent": learning_rates / peak * strength,
        "corrected": learning_rates**2 / peak * strength,
        "fixed": np.full_like(learning_rates, strength),
    }[coupling]


def sgd(w, grad, learning_rates, *, momentum=0.0, l2=0.0, decay_rates=None):
    """`v <- momentum v + g + l2 w ; w <- w - eta v - c w`, decay at the old weights."""
    w, v = np.array(w, np.float64), 0.0
    decay_rates = np.zeros(len(learning_rates)) if decay_rates is None else decay_rates
    for t, (eta, c) in enumerate(zip(learning_rates, decay_rates, strict=True)):
        v = momentum * v + grad(w, t) + l2 * w
        w = w - eta * v - c * w
    return w


def adam(w, grad, learning_rates, *, b1=0.9, b2=0.999, eps=1e-8, l2=0.0, decay_rates=None):
    """Adam with bias correction; `l2` joins the gradient, `decay_rates` act beside the step."""
    w, m, v = np.array(w, np.float64), 0.0, 0.0
    decay_rates = np.zeros(len(learning_rates)) if decay_rates is None else decay_rates
    for t, (eta, c) in enumerate(zip(learning_rates, decay_rates, strict=True)):
        g = grad(w, t) + l2 * w
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        direction = (m / (1 - b1 ** (t + 1))) / (np.sqrt(v / (1 - b2 ** (t + 1))) + eps)
        w = w - eta * direction - c * w
    return w


def lion(w, grad, learning_rates, *, b1=0.9, b2=0.99, decay_rates=None):
    """`w <- w - eta sign(b1 m + (1 - b1) g) - c w ; m <- b2 m + (1 - b2) g`."""
    w, m = np.array(w, np.float64), 0.0
    decay_rates = np.zeros(len(learning_rates)) if decay_rates is None else decay_rates
    for t, (eta, c) in enumerate(zip(learning_rates, decay_rates, strict=True)):
        g = grad(w, t)
        direction = np.sign(b1 * m + (1 - b1) * g)
        m = b2 * m + (1 - b2) * g
        w = w - eta * direction - c * w
    return w


def soft_threshold(z, threshold):
    """argmin_y 1/2 (y - z)^2 + threshold |y|, by cases."""
    return np.where(z > threshold, z - threshold, np.where(z < -threshold, z + threshold, 0.0))


def brute_force_prox(z, penalty, width=6.0, points=240_001):
    """argmin_y 1/2 (y - z)^2 + penalty(y) by trying every y on a grid: step `2 width / points`."""
    y = np.linspace(-width, width, points)
    return np.array([y[np.argmin(0.5 * (y - value) ** 2 + penalty(y))] for value in z])
