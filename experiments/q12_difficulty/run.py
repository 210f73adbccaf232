"""Does decay make training difficult: do fewer learning rates and seeds reach a given loss?

Claim: decay makes training difficult (Q12).
Source: the first article's FAQ.
Would change: Q12-training: `share of learning rates that reach the training loss, chosen - zero`
  below 0; Q12-held-out: `share of learning rates that reach the held-out loss, chosen - zero`
  below 0; Q12-largest: all of (`share of learning rates that reach the *, largest - zero` below
  0).
Note: the share is of learning rates for each seed, and its mean over seeds that of both.
Run: `python -m experiments q12_difficulty` (20 s on 2 CPU devices, jax 0.10.2)
Found: Undecided: At the chosen strength fewer learning rates reach the given training loss than
  without decay (Q12-training undecided, p = 0.17). At the chosen strength more learning rates
  reach the given held-out loss than without decay (Q12-held-out fails, p = 0.0003). At the
  largest strength fewer learning rates reach either loss than without decay (Q12-largest holds, p
  < 0.0001).
"""

from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np

from experiments import common, problems
from experiments.claims import Claim, all_of, below
from wdjax.recipe import Recipe


@dataclass(frozen=True)
class Config:
    size: int = 150
    num_epochs: int = 100
    label_noise: float = 0.1
    learning_rates: tuple[float, ...] = tuple(np.geomspace(1e-4, 1.0, 13).tolist())
    usual_learning_rate: float = 3e-3
    strengths: tuple[float, ...] = (0.0, 0.01, 0.1, 0.3, 1.0, 3.0, 10.0)
    train_loss: float = 0.5
    held_out_loss: float = 0.9
    num_seeds: int = 8


QUICK = replace(
    Config(), num_epochs=4, learning_rates=(1e-3, 1e-2), strengths=(0.0, 0.1, 10.0), num_seeds=2
)


def measure(c: Config) -> common.Findings:
    pool, held_out = problems.parts_of("digits", noise=c.label_noise)
    choose_by, report_on = problems.halves(held_out)
    recipe = Recipe(num_epochs=c.num_epochs, batch_size=50)

    def one(point, pool, choose_by, report_on):
        train, key = problems.draw(pool, point["seed"], c.size)
        hparams = {"strength": point["strength"], "learning_rate": point["learning_rate"]}
        parts = {"choose": choose_by, "held_out": report_on}
        _, scores = problems.judged(recipe, hparams, train, key, **parts)
        of = lambda part: jnp.nan_to_num(scores[f"{part}_loss"], nan=jnp.inf)
        return {part: of(part) for part in ("train", "choose", "held_out")}

    axes = {"strength": c.strengths, "learning_rate": c.learning_rates, "seed": range(c.num_seeds)}
    scores = problems.sweep(one, axes, (pool, choose_by, report_on))
    reach = {
        "training": (scores["train"] <= c.train_loss).mean(axis=1),
        "held-out": (scores["held_out"] <= c.held_out_loss).mean(axis=1),
    }
    # Chosen as one would at the project's usual learning rate, then asked of all of them.
    usual = int(np.argmin(np.abs(np.log(c.learning_rates) - np.log(c.usual_learning_rate))))
    best = problems.chosen_row(scores["choose"][:, usual].astype(np.float64))
    found, extremes = [], []
    for name, share in reach.items():
        for words, row in (("chosen", best), ("largest", -1)):
            what = f"share of learning rates that reach the {name} loss, {words} - zero"
            found.append(common.over_seeds(what, share[row] - share[0]))
        extremes.append(
            common.extreme(
                f"share of learning rates that reach the {name} loss (Q12)",
                "higher",
                share[0],
                share[best],
                share[-1],
            )
        )
    return common.Findings(
        found,
        {
            "reach": {name: common.curve(share) for name, share in reach.items()},
            "map": (scores["held_out"] <= c.held_out_loss).mean(axis=2),
            "strengths": c.strengths,
            "learning_rates": c.learning_rates,
            "chosen": c.strengths[best],
        },
        extremes,
    )


def draw(values, figure):
    left, right = figure.subplots(1, 2)
    places = common.strength_axis(left, values["strengths"])
    for name, line in values["reach"].items():
        common.band(left, places, line, f"{name} loss")
    left.set_ylabel("share of learning rates that reach it")
    left.legend()
    labels = ("learning rate", "strength")
    common.heat_map(
        figure, right, values["map"], values["learning_rates"], values["strengths"], labels
    )
    right.set_title("share of seeds that reach the held-out loss")


CLAIMS = (
    Claim(
        "Q12-training",
        "At the chosen strength fewer learning rates reach the given training loss than without "
        "decay.",
        below("share of learning rates that reach the training loss, chosen - zero"),
        "At the chosen strength more learning rates reach the given training loss than without "
        "decay.",
    ),
    Claim(
        "Q12-held-out",
        "At the chosen strength fewer learning rates reach the given held-out loss than without "
        "decay.",
        below("share of learning rates that reach the held-out loss, chosen - zero"),
        "At the chosen strength more learning rates reach the given held-out loss than without "
        "decay.",
    ),
    Claim(
        "Q12-largest",
        "At the largest strength fewer learning rates reach either loss than without decay.",
        all_of(below("share of learning rates that reach the *, largest - zero")),
        "At the largest strength more learning rates reach one of the losses than without decay.",
    ),
)


if __name__ == "__main__":
    common.main(__file__, measure, draw, Config(), QUICK, CLAIMS)
