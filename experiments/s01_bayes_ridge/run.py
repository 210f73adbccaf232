"""Five-fold cross-validation finds the Bayes-optimal ridge strength.

Claim: cross-validation over a grid finds the right coefficient (S1, S9): with weights ~ N(0, 1)
  and noise variance s2, ridge is the posterior mean at strength `s2 / n`.
Source: Dobriban & Wager 2018, arXiv:1507.03003, give its high-dimensional risk.
Would change: S1: `steps of the grid from the Bayes-optimal strength to the chosen` between -1 and
  1.
Run: `python -m experiments s01_bayes_ridge` (5 s on 2 CPU devices, jax 0.10.2)
Found: The strength that cross-validation chooses for ridge is on average the Bayes-optimal one,
  to within a step of the grid (S1 holds, p < 0.0001).
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import common, problems
from experiments.claims import Claim, Measurement, within
from wdjax.losses import squared_error
from wdjax.penalties import l2_penalty
from wdjax.selection import cross_validate_pure, grid_product, kfold
from wdjax.training import make_fit, make_score
from wdjax.types import Batch, Model


@dataclass(frozen=True)
class Config:
    num_examples: int = 100
    num_features: int = 50
    noise: float = 3.0
    num_folds: int = 5
    num_seeds: int = 40
    num_steps: int = 300
    learning_rate: float = 0.3
    strengths: tuple[float, ...] = tuple(10.0 ** (e / 4 - 3) for e in range(13))


QUICK = replace(Config(), num_seeds=2, num_steps=20)

LINEAR = Model(
    init=lambda key, inputs: (jnp.zeros(inputs.shape[1]), {}),
    apply=lambda w, state, inputs, *, key, train: (inputs @ w, state),
)


def measure(c: Config) -> common.Findings:
    fit = make_fit(
        LINEAR,
        squared_error,
        make_tx=lambda h: optax.sgd(c.learning_rate),
        make_penalty=lambda h: l2_penalty(h["strength"]),
        num_epochs=c.num_steps,
        batch_size=c.num_examples * (c.num_folds - 1) // c.num_folds,
    )
    score = make_score(LINEAR, loss=squared_error)

    def fit_and_score(hparams, train, valid, key):
        return score(fit(hparams, train, key), valid)["loss"]

    def one(point):
        x_key, w_key, noise_key, folds_key, key = jax.random.split(jax.random.key(point["seed"]), 5)
        x = jax.random.normal(x_key, (c.num_examples, c.num_features))
        w = jax.random.normal(w_key, (c.num_features,))
        y = x @ w + c.noise * jax.random.normal(noise_key, (c.num_examples,))
        data = Batch(x, y, jnp.ones(c.num_examples))
        folds = kfold(folds_key, c.num_examples, c.num_folds)
        grid = grid_product(strength=c.strengths)
        scores = cross_validate_pure(fit_and_score, grid, data, folds, key=key)
        return jnp.mean(scores, axis=(1, 2))

    curves = problems.sweep(one, {"seed": range(c.num_seeds)})  # [seed, row]
    log10 = np.log10(c.strengths)
    chosen = log10[np.argmin(curves, axis=1)]
    theory = float(np.log10(c.noise**2 / (c.num_examples * (c.num_folds - 1) / c.num_folds)))
    found = [
        common.over_seeds("log10 chosen strength", chosen),
        common.exact("log10 of the Bayes-optimal strength for 4/5 of n", theory),
        common.exact("log10 of it for all of n", float(np.log10(c.noise**2 / c.num_examples))),
    ]
    return common.Findings(
        found,
        {
            "scores": common.curve(curves.T),
            "strengths": c.strengths,
            "chosen": chosen,
            "theory": theory,
        },
    )


def draw(values, figure):
    left, right = figure.subplots(1, 2)
    places = common.strength_axis(left, values["strengths"])
    common.band(left, places, values["scores"], "mean over seeds")
    left.axvline(10 ** values["theory"], color="k", ls="--", lw=1, label="theory")
    left.set_ylabel("validation loss")
    left.legend()
    counts = [np.isclose(values["chosen"], np.log10(s)).sum() for s in values["strengths"]]
    right.bar(np.log10(values["strengths"]), counts, width=0.2)
    right.axvline(values["theory"], color="k", ls="--", lw=1)
    right.set_xlabel("log10 chosen strength")
    right.set_ylabel("seeds")


CLAIMS = (
    Claim(
        "S1",
        "The strength that cross-validation chooses for ridge is on average the Bayes-optimal "
        "one, to within a step of the grid.",
        within("steps of the grid from the Bayes-optimal strength to the chosen", -1.0, 1.0),
        "The strength that cross-validation chooses for ridge is on average more than a step of "
        "the grid from the Bayes-optimal one.",
    ),
)


def derived(results) -> list[Measurement]:
    """The difference that is judged, for the 4/5 of the rows that a fold trains on."""
    values = results["values"]
    step = np.diff(np.log10(values["strengths"]))[0]
    steps = (np.array(values["chosen"]) - values["theory"]) / step
    return [
        common.over_seeds("steps of the grid from the Bayes-optimal strength to the chosen", steps)
    ]


if __name__ == "__main__":
    common.main(__file__, measure, draw, Config(), QUICK, CLAIMS, derived)
