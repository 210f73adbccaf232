"""Five-fold cross-validation finds the Bayes-optimal ridge strength.

Claim: cross-validation over a grid finds the right coefficient (S1, S9): with weights ~ N(0, 1)
  and noise variance s2, ridge is the posterior mean at strength `s2 / n`.
Source: Dobriban & Wager 2018, arXiv:1507.03003, give its high-dimensional risk.
Would change: the claim holds if log10 of the chosen strength lies within a step of the grid of
  log10 of `s2 / (4/5 n)`, by two standard errors, and fails if it lies further by as much: a fold
  trains on 4/5 of the rows.
Run: `python -m experiments s01_bayes_ridge` (5 s on 2 CPU devices, jax 0.10.2)
Found: holds. The choice agrees with theory to within a step of the grid. log10 chosen strength
  -0.988 +- 0.041 (n=40); log10 of the Bayes-optimal strength for 4/5 of n -0.9488 (exact); log10
  of it for all of n -1.046 (exact).
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import common, problems
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
    off = common.over_seeds("", chosen - theory)
    step = log10[1] - log10[0]
    wrong = off.clearly_above(step) or off.clearly_below(-step)
    right = off.clearly_above(-step) and off.clearly_below(step)
    return common.Findings(
        found,
        common.verdict(right, wrong),
        "The choice is off by more than a step of the grid."
        if wrong
        else "The choice agrees with theory to within a step of the grid."
        if right
        else "The choice is not clearly within a step of the grid.",
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


if __name__ == "__main__":
    common.main(__file__, measure, draw, Config(), QUICK)
