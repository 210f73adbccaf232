"""What decay does to the gap between training and held-out, from too little to too much.

Claim: decay reduces over-fitting (Q1); too much of it under-fits and lowers generalisation (Q2).
Source: the first article's FAQ.
Would change: Q1-gap: all of (`*: loss gap, zero - chosen` above 0); Q1-loss: all of (`*: held-out
  loss, zero - chosen` above 0); Q2-fit: all of (`*: training loss, largest - chosen` above 0);
  Q2-loss: all of (`*: held-out loss, largest - chosen` above 0).
Run: `python -m experiments q01_q02_gap_against_strength` (13 s on 2 CPU devices, jax 0.10.2)
Found: On 150 digits, with clean labels and with some wrong, the gap between held-out and training
  loss is smaller at the chosen strength than without decay (Q1-gap holds, p = 0.00026). On 150
  digits, with clean labels and with some wrong, the held-out loss is lower at the chosen strength
  than without decay (Q1-loss holds, p = 0.00084). The largest strength under-fits: its training
  loss is above that of the chosen one (Q2-fit holds, p < 0.0001). The largest strength
  generalises worse than the chosen one: its held-out loss is higher (Q2-loss holds, p < 0.0001).
"""

from dataclasses import dataclass, replace

import jax
import numpy as np

from experiments import common, problems
from experiments.claims import Claim, above, all_of
from wdjax.recipe import Recipe


@dataclass(frozen=True)
class Config:
    size: int = 150
    num_epochs: int = 300
    batch_size: int = 50
    learning_rate: float = 3e-3
    label_noise: float = 0.1
    strengths: tuple[float, ...] = problems.STRENGTHS
    num_seeds: int = 10


QUICK = replace(Config(), num_epochs=5, num_seeds=2, strengths=(0.0, 0.1, 1.0, 10.0))


def measure(c: Config) -> common.Findings:
    pool, held_out = problems.parts_of("digits")
    noisy_pool, _ = problems.parts_of("digits", noise=c.label_noise)
    # A gap between like and like: the held-out labels are as often wrong.
    noisy_held_out = problems.wrong_labels(held_out, c.label_noise, 10, jax.random.key(1))
    recipe = Recipe(num_epochs=c.num_epochs, batch_size=c.batch_size)

    def one(point, pool, choose_by, report_on):
        train, key = problems.draw(pool, point["seed"], c.size)
        hparams = {"strength": point["strength"], "learning_rate": c.learning_rate}
        parts = {"choose": choose_by, "report": report_on}
        return problems.judged(recipe, hparams, train, key, **parts)[1]

    axes = {"strength": c.strengths, "seed": range(c.num_seeds)}
    values, found, extremes = {}, [], []
    for name, rows, held_out_rows in (
        ("clean", pool, held_out),
        (f"{c.label_noise:.0%} labels wrong", noisy_pool, noisy_held_out),
    ):
        choose_by, report_on = problems.halves(held_out_rows)
        scores = problems.sweep(one, axes, (rows, choose_by, report_on))
        gap = scores["report_loss"] - scores["train_loss"]
        best = problems.chosen_row(scores["choose_loss"])
        held, train = scores["report_loss"], scores["train_loss"]
        rows_of = lambda v, best=best: (v[0], v[best], v[-1])
        found += [
            common.over_seeds(f"{name}: loss gap, zero - chosen", gap[0] - gap[best]),
            common.over_seeds(f"{name}: held-out loss, zero - chosen", held[0] - held[best]),
            common.over_seeds(f"{name}: held-out loss, largest - chosen", held[-1] - held[best]),
            common.over_seeds(f"{name}: training loss, largest - chosen", train[-1] - train[best]),
        ]
        extremes += [
            common.extreme(f"{name}: loss gap (Q1)", "lower", *rows_of(gap)),
            common.extreme(f"{name}: held-out loss (Q1, Q2)", "lower", *rows_of(held)),
            common.extreme(f"{name}: training loss (Q2)", "lower", *rows_of(train)),
        ]
        values[name] = {what: common.curve(v) for what, v in scores.items()}
        values[name] |= {"gap": common.curve(gap), "chosen": c.strengths[best]}
        values[name] |= {"choose_loss_by_seed": scores["choose_loss"]}
    return common.Findings(found, values | {"strengths": c.strengths}, extremes)


def draw(values, figure):
    names = [name for name in values if name != "strengths"]
    for axes, name in zip(figure.subplots(1, 2), names, strict=True):
        places = common.strength_axis(axes, values["strengths"])
        for what, label in (
            ("train_loss", "training"),
            ("report_loss", "held-out"),
            ("gap", "gap"),
        ):
            common.band(axes, places, values[name][what], label)
        chosen = values["strengths"].index(values[name]["chosen"])
        axes.axvline(places[chosen], color="0.6", lw=1)
        axes.set_title(name)
        axes.set_ylabel("cross-entropy")
        axes.set_ylim(0, 1.1 * np.max(values[name]["report_loss"]["mean"]))
        axes.legend()


CLAIMS = (
    Claim(
        "Q1-gap",
        "On 150 digits, with clean labels and with some wrong, the gap between held-out and "
        "training loss is smaller at the chosen strength than without decay.",
        all_of(above("*: loss gap, zero - chosen")),
        "On 150 digits, with clean labels or with some wrong, the gap between held-out and "
        "training loss is larger at the chosen strength than without decay.",
    ),
    Claim(
        "Q1-loss",
        "On 150 digits, with clean labels and with some wrong, the held-out loss is lower at the "
        "chosen strength than without decay.",
        all_of(above("*: held-out loss, zero - chosen")),
        "On 150 digits, with clean labels or with some wrong, the held-out loss is higher at the "
        "chosen strength than without decay.",
    ),
    Claim(
        "Q2-fit",
        "The largest strength under-fits: its training loss is above that of the chosen one.",
        all_of(above("*: training loss, largest - chosen")),
        "The largest strength does not under-fit: its training loss is below that of the chosen "
        "one, with clean labels or with some wrong.",
    ),
    Claim(
        "Q2-loss",
        "The largest strength generalises worse than the chosen one: its held-out loss is higher.",
        all_of(above("*: held-out loss, largest - chosen")),
        "The largest strength generalises better than the chosen one, with clean labels or with "
        "some wrong.",
    ),
)


if __name__ == "__main__":
    common.main(__file__, measure, draw, Config(), QUICK, CLAIMS)
