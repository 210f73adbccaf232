"""Gradient and weight norms, layer by layer, over training at several strengths.

Claim: decay makes gradients vanish, or explode (Q5).
Source: the first article's FAQ.
Would change: Q5-vanish: `the same at the chosen strength` below -2; Q5-vanish-largest: all of
  (`the same at the largest` below -2, `log10 first-layer gradient, end / start, largest - zero`
  below 0); Q5-explode: `log10 largest gradient, chosen / zero` above 1; Q5-rise: `log10 largest
  gradient, chosen / zero` above 0.
Run: `python -m experiments q05_gradients` (14 s on 2 CPU devices, jax 0.10.2)
Found: At the chosen strength the gradient of the first layer does not vanish: it ends above 1 %
  of its first value (Q5-vanish fails, p < 0.0001). At the largest strength the gradient of the
  first layer ends below 1 % of its first value, and lower than without decay (Q5-vanish-largest
  holds, p < 0.0001). At the chosen strength the largest gradient of the training stays below ten
  times that without decay (Q5-explode fails, p < 0.0001). At the chosen strength the largest
  gradient of the training is larger than without decay (Q5-rise holds, p = 0.021).
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common, problems
from experiments.claims import Claim, Measurement, above, all_of, below
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


CLAIMS = (
    Claim(
        "Q5-vanish",
        "At the chosen strength the gradient of the first layer ends below 1 % of its first value.",
        below("the same at the chosen strength", -2.0),
        "At the chosen strength the gradient of the first layer does not vanish: it ends above "
        "1 % of its first value.",
    ),
    Claim(
        "Q5-vanish-largest",
        "At the largest strength the gradient of the first layer ends below 1 % of its first "
        "value, and lower than without decay.",
        all_of(
            below("the same at the largest", -2.0),
            below("log10 first-layer gradient, end / start, largest - zero"),
        ),
        "At the largest strength the gradient of the first layer does not vanish.",
    ),
    Claim(
        "Q5-explode",
        "At the chosen strength the largest gradient of the training exceeds ten times that "
        "without decay.",
        above("log10 largest gradient, chosen / zero", 1.0),
        "At the chosen strength the largest gradient of the training stays below ten times that "
        "without decay.",
    ),
    Claim(
        "Q5-rise",
        "At the chosen strength the largest gradient of the training is larger than without decay.",
        above("log10 largest gradient, chosen / zero"),
        "At the chosen strength the largest gradient of the training is smaller than without "
        "decay.",
    ),
)


def derived(results) -> list[Measurement]:
    """The first layer's gradient at the largest strength against that without decay, by seed."""
    (row,) = results["extremes"]
    change = np.array(row["largest"]) - np.array(row["zero"])
    return [common.over_seeds("log10 first-layer gradient, end / start, largest - zero", change)]


if __name__ == "__main__":
    common.main(__file__, measure, draw, Config(), QUICK, CLAIMS, derived)
