"""What decay costs in computation and memory, counted on the compiled step.

Claim: decay costs computation and memory (Q4).
Source: the first article's FAQ.
Would change: the claim holds if a step with decay, at the article's batch of 32, takes over 5 %
  more operations, or more memory that lasts from step to step, than one without; it fails if
  neither.
Run: `python -m experiments q04_counts` (48 s on 2 CPU devices, jax 0.10.2)
Found: fails. At a batch of 32, L2 decay adds at most 4.0 % of the operations and no state but a
  counter; at a batch of 1 it adds more. MLP, decoupled: % more operations 1.291 (exact); RNN,
  decoupled: % more operations 0.6495 (exact); CNN, decoupled: % more operations 0.02893 (exact);
  MLP, coupled: % more operations 3.956 (exact); RNN, coupled: % more operations 1.975 (exact);
  CNN, coupled: % more operations 0.08697 (exact); MLP, l1: % more operations 9.196 (exact); RNN,
  l1: % more operations 4.609 (exact); CNN, l1: % more operations 0.2029 (exact); most % more
  scratch memory by L2 decay 25.46 (exact); most lasting bytes added (a counter of steps) 4
  (exact).
"""

from dataclasses import dataclass, replace

import jax
import numpy as np

from experiments import common
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
    most = max(
        share(name, "operations", decay) for name in c.models for decay in ("decoupled", "coupled")
    )
    return common.Findings(
        found,
        "holds" if most > 5 or lasting > 8 else "fails",
        f"At a batch of 32, L2 decay adds at most {most:.1f} % of the operations and no state but "
        "a counter; at a batch of 1 it adds more.",
        values | {"batch_sizes": c.batch_sizes},
        extremes,
    )


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


if __name__ == "__main__":
    common.main(__file__, measure, draw, Config(), QUICK)
