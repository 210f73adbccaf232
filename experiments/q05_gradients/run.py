"""Gradient and weight norms, layer by layer, over training at several strengths.

Claim: decay makes gradients vanish, or explode (Q5).
Source: the first article's FAQ.
Would change: "vanish" holds at a strength if the first layer's gradient ends below 1 % of its
  first value and below that of the undecayed run; "explode" if any layer's gradient grows beyond
  10 times what it reaches without decay; both by two standard errors. The claim holds if either
  does at the chosen strength, holds in part if only at the largest, and fails if all four numbers
  are clearly on the other side of their bounds.
Run: `python -m experiments q05_gradients` (14 s on 2 CPU devices, jax 0.10.2)
Found: holds in part. At the chosen strength they do neither; at the largest they vanish. log10
  first-layer gradient, end / start, at zero -0.37 +- 0.14 (n=8); the same at the chosen strength
  1.001 +- 0.054 (n=8); the same at the largest -28.039 +- 0.026 (n=8); log10 largest gradient,
  chosen / zero 0.110 +- 0.037 (n=8); log10 largest gradient, largest / zero -1.879 +- 0.057
  (n=8).
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common, problems
from wdjax.losses import cross_entropy, regularized_loss
from wdjax.models import make_mlp
from wdjax.recipe import Recipe, recipe_fit, recipe_model, recipe_score


@dataclass(frozen=True)
class Config:
    size: int = 150
    num_epochs: int = 150
    depth: int = 6
    width: int = 48
    label_noise: float = 0.1
    learning_rate: float = 1e-3
    strengths: tuple[float, ...] = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
    num_seeds: int = 8


QUICK = replace(Config(), num_epochs=5, depth=2, strengths=(0.0, 1.0, 100.0), num_seeds=2)


def run_all(c: Config, layers: list[str]) -> dict[str, np.ndarray]:
    """Final losses, `[strength, seed]`, and norms on the way, `[strength, seed, epoch, layer]`."""
    pool, held_out = problems.parts_of("digits", noise=c.label_noise)
    choose_by, report_on = problems.halves(held_out)
    recipe = Recipe(
        make_model=lambda num_outputs: make_mlp(num_outputs, widths=(c.width,) * c.depth),
        num_epochs=c.num_epochs,
        batch_size=50,
    )
    score, data_loss = recipe_score(recipe), regularized_loss(recipe_model(recipe), cross_entropy)

    def one(point, pool, choose_by, report_on):
        train, key = problems.draw(pool, point["seed"], c.size)

        def norms(fit):
            grads = jax.grad(lambda p: data_loss(p, train)[0])(fit.params)
            of = lambda tree: jnp.stack([jnp.linalg.norm(tree[name]["kernel"]) for name in layers])
            return {"gradient": of(grads), "weight": of(fit.params)}

        hparams = {"strength": point["strength"], "learning_rate": c.learning_rate}
        fit = recipe_fit(recipe, observe=norms)(hparams, train, key)
        choose, report = score(fit, choose_by), score(fit, report_on)
        return {
            **fit.history["observed"],
            "choose": choose["loss"],
            "report": report["loss"],
            "train": score(fit, train)["loss"],
        }

    axes = {"strength": c.strengths, "seed": range(c.num_seeds)}
    return problems.sweep(one, axes, (pool, choose_by, report_on))


def judge(found: list[common.Measurement], end: np.ndarray, best: int) -> tuple[str, str]:
    """The verdict, and why."""
    below = [common.over_seeds("", row - end[0]).clearly_below() for row in (end[best], end[-1])]
    vanish = [found[i].clearly_below(-2.0) and less for i, less in zip((1, 2), below, strict=True)]
    explode = [m.clearly_above(1.0) for m in found[3:]]
    bad = [v or e for v, e in zip(vanish, explode, strict=True)]
    sound = [end.clearly_above(-2.0) for end in found[1:3]]
    sound += [peak.clearly_below(1.0) for peak in found[3:]]
    return (
        "holds" if bad[0] else "holds in part" if bad[1] else common.verdict(False, all(sound)),
        f"At the chosen strength {'they do' if bad[0] else 'they do neither'}; at the largest they "
        f"{'vanish' if vanish[1] else 'explode' if explode[1] else 'do neither'}.",
    )


def measure(c: Config) -> common.Findings:
    layers = [f"hidden{i + 1}" for i in range(c.depth)] + ["head"]
    scores = run_all(c, layers)
    gradient = np.maximum(scores["gradient"].astype(np.float64), 1e-30)
    best = problems.chosen_row(scores["choose"])
    # The mean of the last tenth of the epochs, against the first epoch.
    tail = max(1, c.num_epochs // 10)
    end = np.log10(gradient[:, :, -tail:, 0].mean(axis=2) / gradient[:, :, 0, 0])
    peak = np.log10(gradient.max(axis=(2, 3)))
    peak = peak - peak[:1]
    found = [
        common.over_seeds("log10 first-layer gradient, end / start, at zero", end[0]),
        common.over_seeds("the same at the chosen strength", end[best]),
        common.over_seeds("the same at the largest", end[-1]),
        common.over_seeds("log10 largest gradient, chosen / zero", peak[best]),
        common.over_seeds("log10 largest gradient, largest / zero", peak[-1]),
    ]
    return common.Findings(
        found,
        *judge(found, end, best),
        {
            "end": common.curve(end),
            "gradient": gradient.mean(axis=1)[:, -1],
            "weight": scores["weight"].mean(axis=1)[:, -1],
            "over_epochs": {
                name: gradient[row, :, :, 0].mean(axis=0)
                for name, row in (("zero", 0), ("chosen", best), ("largest", -1))
            },
            "layers": layers,
            "strengths": c.strengths,
            "chosen": c.strengths[best],
            "train": common.curve(scores["train"]),
            "report": common.curve(scores["report"]),
        },
        [
            common.extreme(
                "log10 first-layer gradient, end / start (Q5)", "higher", end[0], end[best], end[-1]
            )
        ],
    )


def draw(values, figure):
    left, middle, right = figure.subplots(1, 3)
    for name, line in values["over_epochs"].items():
        left.plot(np.arange(1, len(line) + 1), line, label=name)
    left.set_yscale("log")
    left.set_xlabel("epoch")
    left.set_ylabel("gradient norm of the first layer")
    left.legend(title="strength")
    for axes, what in ((middle, "gradient"), (right, "weight")):
        for strength, line in zip(values["strengths"], values[what], strict=True):
            axes.plot(line, marker="o", markersize=3, label=f"{strength:g}")
        axes.set_yscale("log")
        axes.set_xlabel("layer")
        axes.set_ylabel(f"{what} norm at the end")
    right.legend(title="strength", fontsize=7)


if __name__ == "__main__":
    common.main(__file__, measure, draw, Config(), QUICK)
