"""Against the libraries themselves: 200 steps, our weights beside the numbers they gave.

`tests/reference/run.py` made the numbers and says how; where we differ on purpose,
`docs/deviations.md` says who is right and why.
"""

import importlib.util
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from wdjax.decay import (
    adamw,
    constrained_decay,
    corrected_decay,
    decoupled_decay,
    fixed_bound,
    initial_bound,
    lion,
    muon,
    sgdw,
    standard_deviation,
    sum_of_hubers,
    sum_of_magnitudes,
    sum_of_squares,
    warm_start_bound,
)
from wdjax.penalties import l2_penalty

FOLDER = pathlib.Path(__file__).parent / "reference"
_SPEC = importlib.util.spec_from_file_location("reference_problem", FOLDER / "problem.py")
problem = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(problem)
NUMBERS = json.loads((FOLDER / "numbers.json").read_text())
ETA, LAM, STEPS, schedule = problem.ETA, problem.LAM, problem.STEPS, problem.schedule
KERNELS = {"kernel*": 1.0, "*": 0.0}


decoupled = lambda: decoupled_decay(LAM, schedule, parts=KERNELS)
corrected = lambda: corrected_decay(LAM, schedule, ETA, parts=KERNELS)


def keras_adamw(eps=1e-7):
    """Keras's epsilon stands beside the root of the second moment before its correction."""
    scheduled = lambda count: eps / jnp.sqrt(1 - 0.999 ** (count + 1.0))
    return optax.chain(
        optax.inject_hyperparams(optax.scale_by_adam)(eps=scheduled),
        optax.scale_by_learning_rate(schedule),
        decoupled(),
    )


METHODS = {
    "torch_adamw": lambda: adamw(schedule, decoupled()),
    "timm_sgdw": lambda: sgdw(schedule, decoupled()),
    "timm_sgdc": lambda: sgdw(schedule, corrected()),
    "timm_adamc": lambda: adamw(schedule, corrected()),
    "timm_lion": lambda: lion(schedule, decoupled()),
    "keras_adamw": lambda: adamw(schedule, decoupled(), eps=1e-14),
    "keras_adamw_epsilon": keras_adamw,
    # Keras' momentum holds the learning rates of its own steps: velocity <- 0.9 velocity - eta g.
    "keras_sgdw": lambda: optax.chain(
        optax.scale_by_learning_rate(schedule), optax.trace(0.9), decoupled()
    ),
    "optax_adamw": lambda: adamw(schedule, decoupled()),
    "optax_lion": lambda: lion(schedule, decoupled()),
}


def torch_momentum(beta):
    """PyTorch's Muon: `buf <- beta buf + (1 - beta) g; (1 - beta) g + beta buf`, not debiased."""
    tx = optax.ema(beta, debias=False)

    def update(updates, state, params=None):
        averages, state = tx.update(updates, state, params)
        mix = lambda g, m: (1 - beta) * g + beta * m
        return jax.tree.map(mix, updates, averages), state

    return optax.GradientTransformation(tx.init, update)


def torch_muon():
    """optax' orthogonalisation and scale, PyTorch's momentum, plain Adam for the rest."""
    axes = lambda tree: jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(), tree)
    orthogonal = optax.chain(
        torch_momentum(0.95),
        optax.contrib.scale_by_muon(
            beta=0.0, nesterov=False, eps=0.0, weight_dimension_numbers=axes
        ),
        optax.stateless(
            lambda tree, _: jax.tree.map(lambda u: 0.2 * max(u.shape) ** 0.5 * u, tree)
        ),
        optax.scale_by_learning_rate(schedule),
    )
    label = lambda w: {name: "muon" if name in ("kernel_a", "kernel_b") else "adam" for name in w}
    both = optax.partition({"muon": orthogonal, "adam": optax.adam(schedule)}, label)
    return optax.chain(both, decoupled())


COUPLED = {
    "torch_sgd_coupled": lambda: optax.sgd(schedule, momentum=0.9),
    "torch_adam_coupled": lambda: optax.adam(schedule),
}
RULES = {"uniform": fixed_bound, "dependent": initial_bound, "warm_start": warm_start_bound}
MEASURES = {
    "l2": sum_of_squares,
    "l1": sum_of_magnitudes,
    "std": standard_deviation,
    "huber": sum_of_hubers,
}


def train(tx, penalty=None):
    noise = {name: jnp.asarray(problem.noise(name)) for name in problem.start()}
    pull = (lambda w: jax.tree.map(jnp.zeros_like, w)) if penalty is None else jax.grad(penalty)

    def step(carry, t):
        w, state = carry
        extra = pull(w)
        g = {k: 0.5 * (w[k] - problem.goal(k)) + noise[k][t] + extra[k] for k in w}
        updates, state = tx.update(g, state, w)
        return (optax.apply_updates(w, updates), state), None

    def run(w):
        return jax.lax.scan(step, (w, tx.init(w)), jnp.arange(STEPS))[0][0]

    return jax.jit(run)(jax.tree.map(jnp.asarray, problem.start()))


def assert_same(found, method, rtol):
    for name, expected in NUMBERS["weights"][method].items():
        scale = np.abs(expected).max()
        np.testing.assert_allclose(np.ravel(found[name]), expected, rtol=rtol, atol=rtol * scale)


@pytest.mark.parametrize("method", METHODS)
def test_decay_beside_the_step_is_the_librarys(method, x64):
    """All in float64; Lion's sign may turn a rounding into a step, so far it did not."""
    assert_same(train(METHODS[method]()), method, rtol=1e-10)


def test_muon_is_pytorchs_once_its_momentum_and_its_bfloat16_are_taken_into_account(x64):
    """With PyTorch's momentum and float64 throughout the two are one. As PyTorch runs it, in
    bfloat16, each step is off by 2^-9 or so; our own debiases its Nesterov momentum."""
    same = train(torch_muon())
    assert_same(same, "torch_muon_wide", rtol=1e-9)
    assert_same(same, "torch_muon", rtol=5e-3)
    ours = train(muon(schedule, decoupled()))
    wide = NUMBERS["weights"]["torch_muon_wide"]
    for name in ("kernel_a", "kernel_b"):
        np.testing.assert_allclose(np.ravel(ours[name]), wide[name], atol=5e-4)
        assert np.abs(np.ravel(ours[name]) - wide[name]).max() > 1e-5


@pytest.mark.parametrize("method", COUPLED)
def test_a_penalty_in_the_loss_is_the_librarys_coupled_decay(method, x64):
    penalty = l2_penalty(LAM, parts=KERNELS)
    assert_same(train(COUPLED[method](), penalty), method, rtol=1e-9)


@pytest.mark.parametrize("method", problem.BOUNDS)
def test_constrained_regularisation_is_that_of_its_authors(method, x64):
    """They keep bounds and multipliers in float32, hence 1e-6."""
    rule, value, measure = problem.BOUNDS[method]
    tx = optax.chain(
        optax.adam(ETA),
        constrained_decay(
            problem.CPR_RATE, RULES[rule](value), magnitude=MEASURES[measure], parts=KERNELS
        ),
    )
    free = train(optax.adam(ETA))
    found = train(tx)
    assert_same(found, method, rtol=2e-6)
    assert np.abs(found["kernel_a"] - free["kernel_a"]).max() > 0.01


def test_every_number_is_compared():
    muons = {"torch_muon", "torch_muon_wide"}
    assert set(NUMBERS["weights"]) == set(METHODS) | set(COUPLED) | set(problem.BOUNDS) | muons


def digits_gradients(x, y, step, w):
    """Of an MLP's cross-entropy on 32 digits, in NumPy: pixels that are never on have none."""
    rows = np.random.default_rng(step).choice(len(y), 32, replace=False)
    x, y = x[rows] / 16, y[rows]
    before = x @ w["first"] + w["bias"]
    hidden = np.maximum(before, 0)
    logits = hidden @ w["second"]
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p = (p / p.sum(axis=1, keepdims=True) - np.eye(10)[y]) / 32
    back = (p @ w["second"].T) * (before > 0)
    return {"first": x.T @ back, "bias": back.sum(axis=0), "second": hidden.T @ p}


def train_on_digits(update, num_steps=150):
    """`update(step, grads, w) -> w`, from the same small network."""
    rng = np.random.default_rng(0)
    w = {"first": rng.normal(size=(64, 16)) / 8, "bias": np.zeros(16)}
    w["second"] = rng.normal(size=(16, 10)) / 4
    x, y = load_digits(return_X_y=True)
    for step in range(num_steps):
        w = update(step, digits_gradients(x, y, step, w), w)
    return w


def test_on_a_network_passing_kerass_epsilon_is_not_keras_and_its_schedule_is(x64):
    """The rule of `keras/src/optimizers/adam.py` (3.15): the weights of hidden units and pixels
    whose gradients are about as small as epsilon go elsewhere."""
    eta, lam, moments = 0.01, 0.1, {}

    def keras(step, grads, w):
        t, after = step + 1, {}
        for name, g in grads.items():
            m, v = moments.get(name, (0.0, 0.0))
            m, v = m + (g - m) * (1 - 0.9), v + (g**2 - v) * (1 - 0.999)
            moments[name] = m, v
            alpha = eta * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
            kept = w[name] - eta * lam * w[name]
            after[name] = kept - alpha * m / (np.sqrt(v) + 1e-7)
        return after

    def ours(adam):
        tx = optax.chain(adam, optax.scale_by_learning_rate(eta), decoupled_decay(lam, eta))
        state, step_once = [None], jax.jit(tx.update)

        def update(step, grads, w):
            state[0] = tx.init(w) if step == 0 else state[0]
            updates, state[0] = step_once(grads, state[0], w)
            return {name: w[name] + np.asarray(updates[name]) for name in w}

        return update

    theirs = train_on_digits(keras)
    apart = lambda w: max(np.abs(w[name] - theirs[name]).max() for name in w)
    assert apart(train_on_digits(ours(optax.scale_by_adam(eps=1e-7)))) > 0.03
    scheduled = lambda count: 1e-7 / jnp.sqrt(1 - 0.999 ** (count + 1.0))
    same = ours(optax.inject_hyperparams(optax.scale_by_adam)(eps=scheduled))
    assert apart(train_on_digits(same)) < 1e-9


@pytest.mark.slow
def test_the_committed_numbers_are_what_the_libraries_give_today():
    """Where they are installed; elsewhere the committed file stands for them."""
    peers = ("torch", "timm", "pytorch_cpr", "keras")
    missing = [name for name in peers if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    command = [sys.executable, str(FOLDER / "run.py"), "--check"]
    subprocess.run(command, check=True, timeout=280)
