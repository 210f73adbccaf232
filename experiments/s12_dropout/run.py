"""Decay against dropout, and both: one grid, one program.

Claim: decay and dropout are alternatives that differ in form and effect; which to use, and
  whether both, has to be tried (S12).
Source: the articles; dropout acts on units, decay on weights (Srivastava et al. 2014).
Would change: S12-alone: `held-out loss, decay alone - dropout alone` above 0; S12-both: `held-out
  loss, better alone - both` above 0; S12-weights: all of (`weight norm, * / neither` below 1).
Run: `python -m experiments s12_dropout` (19 s on 2 CPU devices, jax 0.10.2)
Found: Dropout alone has a lower held-out loss than decay alone (S12-alone holds, p = 0.00021).
  Undecided: Both together have a lower held-out loss than the better of the two alone (S12-both
  undecided, p = 1). Decay alone and dropout alone both leave smaller weights than neither
  (S12-weights holds, p < 0.0001).
"""

from dataclasses import dataclass, replace

import numpy as np
import optax

from experiments import common, problems
from experiments.claims import Claim, above, all_of, below
from wdjax.recipe import Recipe


@dataclass(frozen=True)
class Config:
    size: int = 150
    num_epochs: int = 200
    label_noise: float = 0.1
    strengths: tuple[float, ...] = (0.0, 0.03, 0.1, 0.3, 0.6, 1.0, 2.0, 4.0)
    dropouts: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95)
    num_seeds: int = 10


QUICK = replace(Config(), num_epochs=4, strengths=(0.0, 0.3, 3.0), dropouts=(0.0, 0.5), num_seeds=2)


def measure(c: Config) -> common.Findings:
    pool, held_out = problems.parts_of("digits", noise=c.label_noise)
    choose_by, report_on = problems.halves(held_out)
    recipe = Recipe(num_epochs=c.num_epochs, batch_size=50)

    def one(point, pool, choose_by, report_on):
        train, key = problems.draw(pool, point["seed"], c.size)
        hparams = {name: point[name] for name in ("strength", "dropout")}
        hparams["learning_rate"] = 3e-3
        parts = {"choose": choose_by, "report": report_on}
        fit, scores = problems.judged(recipe, hparams, train, key, **parts)
        return scores | {"norm": optax.tree.norm(fit.params)}

    axes = {"strength": c.strengths, "dropout": c.dropouts, "seed": range(c.num_seeds)}
    scores = problems.sweep(one, axes, (pool, choose_by, report_on))
    by, held = scores["choose_loss"].mean(axis=2), scores["report_loss"]
    decay = (int(np.argmin(by[:, 0])), 0)
    drop = (0, int(np.argmin(by[0])))
    both = np.unravel_index(int(np.argmin(by)), by.shape)
    better = decay if by[decay] <= by[drop] else drop
    gain = lambda what, a, b: common.over_seeds(what, held[a] - held[b])
    found = [
        gain("held-out loss, neither - decay alone", (0, 0), decay),
        gain("held-out loss, neither - dropout alone", (0, 0), drop),
        gain("held-out loss, decay alone - dropout alone", decay, drop),
        gain("held-out loss, better alone - both", better, tuple(both)),
        common.over_seeds(
            "weight norm, decay alone / neither", scores["norm"][decay] / scores["norm"][0, 0]
        ),
        common.over_seeds(
            "weight norm, dropout alone / neither", scores["norm"][drop] / scores["norm"][0, 0]
        ),
    ]
    return common.Findings(
        found,
        {
            "held-out loss": held.mean(axis=2),
            "held-out loss error": np.array(common.curve(held)["standard_error"]),
            "norm": scores["norm"].mean(axis=2),
            "strengths": c.strengths,
            "dropouts": c.dropouts,
            "best": {
                "decay": [c.strengths[decay[0]], 0.0],
                "dropout": [0.0, c.dropouts[drop[1]]],
                "both": [c.strengths[both[0]], c.dropouts[both[1]]],
            },
        },
    )


def draw(values, figure):
    left, right = figure.subplots(1, 2)
    for axes, name in ((left, "held-out loss"), (right, "norm")):
        labels = ("dropout", "strength")
        common.heat_map(figure, axes, values[name], values["dropouts"], values["strengths"], labels)
        axes.set_title(name)
    for strength, dropout in values["best"].values():
        place = values["dropouts"].index(dropout), values["strengths"].index(strength)
        left.plot(*place, "r*")


CLAIMS = (
    Claim(
        "S12-alone",
        "Dropout alone has a lower held-out loss than decay alone.",
        above("held-out loss, decay alone - dropout alone"),
        "Decay alone has a lower held-out loss than dropout alone.",
    ),
    Claim(
        "S12-both",
        "Both together have a lower held-out loss than the better of the two alone.",
        above("held-out loss, better alone - both"),
        "Both together have a higher held-out loss than the better of the two alone.",
    ),
    Claim(
        "S12-weights",
        "Decay alone and dropout alone both leave smaller weights than neither.",
        all_of(below("weight norm, * / neither", 1.0)),
        "Decay alone or dropout alone leaves larger weights than neither.",
    ),
)


if __name__ == "__main__":
    common.main(__file__, measure, draw, Config(), QUICK, CLAIMS)
