"""What decay costs in computation and memory, counted on the compiled step.

Claim: decay costs computation and memory (Q4).
Source: the first article's FAQ.
Would change: Q4-operations: any of (`*, decoupled: % more operations` above 5, `*, coupled: %
  more operations` above 5); Q4-small-batch: any of (`*: % more operations at a batch of 1` above
  5); Q4-state: `most lasting bytes added *` above 4; Q4-bytes: any of (`*, decoupled: % more
  bytes moved at a batch of 32` above 5); Q4-penalty-bytes: any of (`*, coupled: % more bytes
  moved at a batch of 32` above 5); Q4-scratch: any of (`*, decoupled: % more scratch bytes at a
  batch of 32` above 5); Q4-penalty-scratch: any of (`*, coupled: % more scratch bytes at a batch
  of 1` above 5).
Run: `python -m experiments q04_counts` (48 s on 2 CPU devices, jax 0.10.2)
Found: At the article's batch of 32, L2 decay takes at most 5 % more operations a step
  (Q4-operations fails, counted). At a batch of 1, L2 decay takes over 5 % more operations a step,
  in one of the three programs (Q4-small-batch holds, counted). Decay keeps nothing from step to
  step but a counter of 4 bytes (Q4-state fails, counted). At a batch of 32, L2 decay beside the
  step moves at most 5 % more bytes a step (Q4-bytes fails, counted). At a batch of 32, L2 as a
  penalty in the loss moves over 5 % more bytes a step, in one of the three programs
  (Q4-penalty-bytes holds, counted). At a batch of 32, L2 decay beside the step needs at most 5 %
  more scratch memory (Q4-scratch fails, counted). At a batch of 1, L2 as a penalty in the loss
  needs over 5 % more scratch memory, in one of the three programs (Q4-penalty-scratch holds,
  counted).
"""

from dataclasses import dataclass, replace

import jax
import numpy as np

from experiments import common
from experiments.claims import Claim, Measurement, above, any_of, exact
from wdjax.losses import cross_entropy, regularized_loss
from wdjax.models import make_cnn, make_mlp, make_rnn
from wdjax.penalties import l1_penalty, l2_penalty
from wdjax.recipe import Recipe, recipe_tx
from wdjax.step import init_state, make_train_step
from wdjax.types import Batch

MODELS = {"MLP": (make_mlp, (8, 8, 1)), "RNN": (make_rnn, (8, 8)), "CNN": (make_cnn, (32, 32, 3))}
DECAYS = ("none", "decoupled", "coupled", "l1")


@dataclass(frozen=True)
class Config:
    models: tuple[str, ...] = ("MLP", "RNN", "CNN")
    batch_sizes: tuple[int, ...] = (1, 32, 256)


QUICK = replace(Config(), models=("MLP",), batch_sizes=(1, 32))


def counts(name: str, decay: str, batch_size: int) -> dict[str, float]:
    """Operations, bytes moved, scratch memory and lasting memory of one compiled step of Adam."""
    make_model, shape = MODELS[name]
    model = make_model(10)
    batch = Batch(
        np.zeros((batch_size, *shape), np.float32),
        np.zeros(batch_size, np.int32),
        np.ones(batch_size, np.float32),
    )
    penalty = {"coupled": l2_penalty(1e-3), "l1": l1_penalty(1e-3)}.get(decay)
    # A recipe of coupled decay has its decay in the penalty, and so an optimiser without.
    recipe = Recipe(decay="decoupled" if decay == "decoupled" else "coupled")
    tx = recipe_tx(recipe, {"strength": 1e-3, "learning_rate": 1e-3}, 100)
    step = make_train_step(regularized_loss(model, cross_entropy, penalty), tx)

    def start():
        params, model_state = model.init(jax.random.key(0), batch.inputs)
        return init_state(params, tx, model_state=model_state, key=jax.random.key(1))

    def plain(state, batch):
        state, metrics = step(state, batch)
        # What only a person looks at (norms) is not part of the cost of training.
        return state, {"loss": metrics["loss"]}

    # Shapes are enough: nothing is run. What is counted is settled before machine code is made, so
    # a CPU need not make it well.
    state = jax.eval_shape(start)
    quickly = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    lowered = jax.jit(plain, donate_argnums=0).lower(state, batch)
    program = lowered.compile(quickly if jax.default_backend() == "cpu" else None)
    cost, memory = program.cost_analysis(), program.memory_analysis()
    return {
        "operations": float(cost["flops"]),
        "bytes moved": float(cost["bytes accessed"]),
        "scratch bytes": float(memory.temp_size_in_bytes),
        "lasting bytes": float(
            sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.opt_state))
        ),
    }


def measure(c: Config) -> common.Findings:
    values, found = {}, []
    for name in c.models:
        values[name] = {d: [counts(name, d, b) for b in c.batch_sizes] for d in DECAYS}
    at = c.batch_sizes.index(32)
    share = lambda name, what, decay="decoupled": (
        100 * (values[name][decay][at][what] / values[name]["none"][at][what] - 1)
    )
    lasting = max(
        values[name][decay][at]["lasting bytes"] - values[name]["none"][at]["lasting bytes"]
        for name in c.models
        for decay in DECAYS
    )
    for decay in ("decoupled", "coupled", "l1"):
        for name in c.models:
            what = f"{name}, {decay}: % more operations"
            found.append(common.exact(what, share(name, "operations", decay)))
    scratch = max(
        share(name, "scratch bytes", decay)
        for name in c.models
        for decay in ("decoupled", "coupled")
    )
    found.append(common.exact("most % more scratch memory by L2 decay", scratch))
    found.append(common.exact("most lasting bytes added (a counter of steps)", lasting))
    extremes = [
        common.extreme(
            f"{name}: {what} a step (Q4)",
            "lower",
            *([values[name][decay][at][what]] for decay in ("none", "decoupled", "decoupled")),
        )
        for name in c.models
        for what in ("operations", "scratch bytes")
    ]
    return common.Findings(found, values | {"batch_sizes": c.batch_sizes}, extremes)


def draw(values, figure):
    names = [name for name in values if name != "batch_sizes"]
    axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for ax, name in zip(axes, names, strict=True):
        for decay in ("decoupled", "coupled", "l1"):
            rows = zip(values[name][decay], values[name]["none"], strict=True)
            more = [100 * (a["operations"] / b["operations"] - 1) for a, b in rows]
            ax.plot(values["batch_sizes"], more, marker="o", markersize=3, label=decay)
        ax.set_xscale("log", base=2)
        ax.set_xlabel("batch size")
        ax.set_title(name)
    axes[0].set_ylabel("% more operations than without decay")
    axes[0].legend()


CLAIMS = (
    Claim(
        "Q4-operations",
        "At the article's batch of 32, L2 decay takes over 5 % more operations a step, in one of "
        "the three programs.",
        any_of(
            above("*, decoupled: % more operations", 5.0),
            above("*, coupled: % more operations", 5.0),
        ),
        "At the article's batch of 32, L2 decay takes at most 5 % more operations a step.",
    ),
    Claim(
        "Q4-small-batch",
        "At a batch of 1, L2 decay takes over 5 % more operations a step, in one of the three "
        "programs.",
        any_of(above("*: % more operations at a batch of 1", 5.0)),
        "At a batch of 1, L2 decay takes at most 5 % more operations a step.",
    ),
    Claim(
        "Q4-state",
        "Decay keeps more from step to step than a counter of 4 bytes.",
        above("most lasting bytes added *", 4.0),
        "Decay keeps nothing from step to step but a counter of 4 bytes.",
    ),
    Claim(
        "Q4-bytes",
        "At a batch of 32, L2 decay beside the step moves over 5 % more bytes a step, in one of "
        "the three programs.",
        any_of(above("*, decoupled: % more bytes moved at a batch of 32", 5.0)),
        "At a batch of 32, L2 decay beside the step moves at most 5 % more bytes a step.",
    ),
    Claim(
        "Q4-penalty-bytes",
        "At a batch of 32, L2 as a penalty in the loss moves over 5 % more bytes a step, in one "
        "of the three programs.",
        any_of(above("*, coupled: % more bytes moved at a batch of 32", 5.0)),
        "At a batch of 32, L2 as a penalty in the loss moves at most 5 % more bytes a step.",
    ),
    Claim(
        "Q4-scratch",
        "At a batch of 32, L2 decay beside the step needs over 5 % more scratch memory, in one of "
        "the three programs.",
        any_of(above("*, decoupled: % more scratch bytes at a batch of 32", 5.0)),
        "At a batch of 32, L2 decay beside the step needs at most 5 % more scratch memory.",
    ),
    Claim(
        "Q4-penalty-scratch",
        "At a batch of 1, L2 as a penalty in the loss needs over 5 % more scratch memory, in one "
        "of the three programs.",
        any_of(above("*, coupled: % more scratch bytes at a batch of 1", 5.0)),
        "At a batch of 1, L2 as a penalty in the loss needs at most 5 % more scratch memory.",
    ),
)


def derived(results) -> list[Measurement]:
    """What L2 decay adds at a batch of 1 and of 32, in percent of a step without."""
    values, numbers = results["values"], []
    for decay in ("decoupled", "coupled"):
        for name in results["config"]["models"]:
            for batch_size in (1, 32):
                at = values["batch_sizes"].index(batch_size)
                of = lambda way, name=name, at=at: values[name][way][at]
                for what in ("operations", "bytes moved", "scratch bytes"):
                    if what == "operations" and batch_size == 32:
                        continue  # Found.
                    words = f"{name}, {decay}: % more {what} at a batch of {batch_size}"
                    numbers.append(exact(words, 100 * (of(decay)[what] / of("none")[what] - 1)))
    return numbers


if __name__ == "__main__":
    common.main(__file__, measure, draw, Config(), QUICK, CLAIMS, derived)
