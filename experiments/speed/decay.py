"""The time of an update of 10 million weights: each method of decay against plain Adam.

Claim: Adam with the kernel takes at most 1.1 times the time of Adam without decay.
Run: python -m experiments.speed decay     (35 s on 2 CPU cores, jax 0.10.2)
Found: kernel 0.97 (half of the rounds within 0.91 .. 1.01), optax.adamw 1.02, cautious 0.98,
Huber 1.00, proximal L1 0.98; the methods that take a norm 1.1 to 1.2; to the initial params 1.3 and
to an average 1.2, which keep one more array. Adam itself: 56 ms.
Every method is compiled with `apply_updates`, state and weights donated; 20 rounds, each running
every method once, every second round backwards; a method's ratio is the median over rounds of
its time over plain Adam's of the same round.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import optax

from experiments.speed.measure import write_result
from wdjax.decay import (
    adamw,
    cautious_decay,
    constrained_decay,
    decay_to_average,
    decay_to_initial,
    decoupled_decay,
    fixed_bound,
    huber_decay,
    project_max_norm,
    proximal_elastic_net,
    proximal_group_lasso,
    proximal_l1,
)

LEARNING_RATE, STRENGTH, ROUNDS = 1e-3, 0.1, 20
SHAPES = [(2000, 2500), (2500, 1500), (1500, 800), (500, 100)]
SIZE = sum(rows * columns for rows, columns in SHAPES)

METHODS = {
    "Adam": lambda: optax.adam(LEARNING_RATE),
    "optax.adamw": lambda: optax.adamw(LEARNING_RATE, weight_decay=STRENGTH),
    "kernel (decoupled)": lambda: beside(decoupled_decay(STRENGTH, LEARNING_RATE)),
    "cautious": lambda: beside(cautious_decay(STRENGTH, LEARNING_RATE)),
    "Huber": lambda: beside(huber_decay(STRENGTH, LEARNING_RATE, 0.1)),
    "to the initial params": lambda: beside(decay_to_initial(STRENGTH, LEARNING_RATE)),
    "to an average": lambda: beside(decay_to_average(STRENGTH, LEARNING_RATE, 0.99)),
    "proximal L1": lambda: beside(proximal_l1(STRENGTH, LEARNING_RATE)),
    "elastic net": lambda: beside(proximal_elastic_net(STRENGTH, STRENGTH, LEARNING_RATE)),
    "group lasso": lambda: beside(proximal_group_lasso(STRENGTH, LEARNING_RATE)),
    "max norm": lambda: beside(project_max_norm(1.0)),
    "CPR": lambda: beside(constrained_decay(1.0, fixed_bound(1.0))),
}


def beside(decay):
    return adamw(LEARNING_RATE, decay)


class Run:
    """One method, compiled, with weights of its own."""

    def __init__(self, tx):
        def step(grads, state, w):
            updates, state = tx.update(grads, state, w)
            return optax.apply_updates(w, updates), state

        self.step = jax.jit(step, donate_argnums=(1, 2))
        self.w = [jnp.full(shape, 0.1) for shape in SHAPES]
        self.state = tx.init(self.w)

    def seconds(self, grads):
        start = time.perf_counter()
        self.w, self.state = jax.block_until_ready(self.step(grads, self.state, self.w))
        return time.perf_counter() - start


def main() -> None:
    grads = [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(SHAPES)]
    runs = {name: Run(make()) for name, make in METHODS.items()}
    for run in runs.values():
        run.seconds(grads)
        run.seconds(grads)
    times = {name: [] for name in runs}
    for number in range(ROUNDS):
        names = list(runs)
        for name in names if number % 2 == 0 else reversed(names):
            times[name].append(runs[name].seconds(grads))
    rows = {}
    for name, each in times.items():
        ratios = sorted(a / b for a, b in zip(each, times["Adam"], strict=True))
        rows[name] = {
            "milliseconds": 1e3 * statistics.median(each),
            "ratio": statistics.median(ratios),
            "ratio_quartiles": [ratios[ROUNDS // 4], ratios[-1 - ROUNDS // 4]],
        }
        low, high = rows[name]["ratio_quartiles"]
        print(
            f"{name:24s} {rows[name]['milliseconds']:7.1f} ms  {rows[name]['ratio']:5.2f} x Adam"
            f"  (half of the rounds within {low:.2f} .. {high:.2f})"
        )
    write_result("decay", {"weights": SIZE, "rounds": ROUNDS, "methods": rows})


if __name__ == "__main__":
    main()
