"""Does decay make a model more complex, or simpler, and does it keep training performance?

Claim: decay causes model complexity (the first article); it makes models simpler and keeps their
  training performance (the second) (Q13).
Source: ridge on n rows, loss `1/2 mean error^2 + strength/2 |w|^2`: degrees of freedom `sum_i e_i
  / (e_i + strength)`, e the eigenvalues of X'X/n (Hastie, Tibshirani & Friedman, 3.4.1).
Would change: Q13-complex: any of (`ridge: degrees of freedom, *` above 0, `MLP: log10 |w|^2, *`
  above 0); Q13-performance: all of (`*: training loss, chosen - zero` below 0).
Note: the strengths are chosen by the held-out loss, which is not reported.
Run: `python -m experiments q13_complexity` (15 s on 2 CPU devices, jax 0.10.2)
Found: Decay makes a model simpler, by ridge's degrees of freedom and by the size of a network's
  weights (Q13-complex fails, p < 0.0001). Decay costs training performance: the training loss is
  higher than without, for ridge or for a network (Q13-performance fails, p < 0.0001).
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import common, problems
from experiments.claims import Claim, above, all_of, any_of, below
from wdjax.data import standardize
from wdjax.losses import squared_error
from wdjax.penalties import l2_penalty
from wdjax.recipe import Recipe
from wdjax.training import make_fit
from wdjax.types import Model


@dataclass(frozen=True)
class Config:
    ridge_size: int = 60
    ridge_strengths: tuple[float, ...] = (0.0, *np.geomspace(1e-3, 1e2, 11).tolist())
    ridge_seeds: int = 20
    num_steps: int = 6000
    run_strengths: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 10.0)
    mlp_size: int = 150
    mlp_strengths: tuple[float, ...] = problems.STRENGTHS
    mlp_epochs: int = 300
    mlp_seeds: int = 10


QUICK = replace(Config(), ridge_seeds=2, num_steps=50, mlp_seeds=2, mlp_epochs=5)

LINEAR = Model(
    init=lambda key, inputs: (jnp.zeros(inputs.shape[1]), {}),
    apply=lambda w, state, inputs, *, key, train: (inputs @ w, state),
)


def ridge(x, y, strength):
    """`(w, degrees of freedom)` by the closed form."""
    n, d = x.shape
    solved = jnp.linalg.solve(x.T @ x / n + strength * jnp.eye(d), x.T / n)
    return solved @ y, jnp.trace(x @ solved)


def freedom_of_a_run(c, train, strength, key):
    """The trace of d predictions / d targets through a whole run of descent."""
    fit = make_fit(
        LINEAR,
        squared_error,
        # Below 2 / (largest eigenvalue + strength), where descent stays stable.
        make_tx=lambda h: optax.sgd(0.3 / (4.0 + h["strength"])),
        make_penalty=lambda h: l2_penalty(h["strength"]),
        num_epochs=c.num_steps,
        batch_size=len(train.weights),
    )

    def predictions(targets):
        run = fit({"strength": strength}, train._replace(targets=targets), key)
        return train.inputs @ run.params

    return jnp.trace(jax.jacfwd(predictions)(train.targets))


def measure_ridge(c: Config):
    pool, held_out = problems.parts_of("diabetes")

    def one(point, pool, held_out):
        train, key = problems.draw(pool, point["seed"], c.ridge_size)
        train, valid = standardize(train, held_out, inputs=True, targets=True)
        w, freedom = ridge(train.inputs, train.targets, point["strength"])
        error = lambda part: jnp.mean((part.inputs @ w - part.targets) ** 2) / 2
        scores = {"train_loss": error(train), "held_out_loss": error(valid)}
        return scores | {"freedom": freedom, "norm": jnp.sum(w**2)}

    seeds = range(c.ridge_seeds)
    axes = {"strength": c.ridge_strengths, "seed": seeds}
    scores = problems.sweep(one, axes, (pool, held_out))

    def by_formula(point, pool):
        train, _ = problems.draw(pool, 0, c.ridge_size)
        train, _ = standardize(train, train, inputs=True, targets=True)
        return ridge(train.inputs, train.targets, point["strength"])[1]

    def by_run(point, pool):
        train, key = problems.draw(pool, 0, c.ridge_size)
        train, _ = standardize(train, train, inputs=True, targets=True)
        return freedom_of_a_run(c, train, point["strength"], key)

    run = problems.sweep(by_run, {"strength": c.run_strengths}, (pool,))
    seed_0 = problems.sweep(by_formula, {"strength": c.run_strengths}, (pool,))
    return scores, run, seed_0


def measure_mlp(c: Config):
    pool, held_out = problems.parts_of("digits")
    recipe = Recipe(num_epochs=c.mlp_epochs, batch_size=50)

    def one(point, pool, held_out):
        train, key = problems.draw(pool, point["seed"], c.mlp_size)
        hparams = {"strength": point["strength"], "learning_rate": 3e-3}
        fit, scores = problems.judged(recipe, hparams, train, key, held_out=held_out)
        return scores | {"norm": optax.tree.norm(fit.params, squared=True)}

    axes = {"strength": c.mlp_strengths, "seed": range(c.mlp_seeds)}
    return problems.sweep(one, axes, (pool, held_out))


def measure(c: Config) -> common.Findings:
    scores, by_run, by_formula = measure_ridge(c)
    networks = measure_mlp(c)
    best = problems.chosen_row(scores["held_out_loss"])
    best_mlp = problems.chosen_row(networks["held_out_loss"])
    freedom, loss = scores["freedom"], scores["train_loss"]
    norm, mlp_loss = np.log10(networks["norm"]), networks["train_loss"]
    simpler = common.over_seeds(
        "ridge: degrees of freedom, chosen - zero", freedom[best] - freedom[0]
    )
    dearer = common.over_seeds("ridge: training loss, chosen - zero", loss[best] - loss[0])
    shrunk = common.over_seeds("MLP: log10 |w|^2, chosen - zero", norm[best_mlp] - norm[0])
    mlp = common.over_seeds("MLP: training loss, chosen - zero", mlp_loss[best_mlp] - mlp_loss[0])
    apart = np.abs(by_run - by_formula).max()
    return common.Findings(
        [
            simpler,
            dearer,
            shrunk,
            mlp,
            common.exact("most that a run's derivative and the closed form differ by", apart),
        ],
        {
            "ridge": {name: common.curve(v) for name, v in scores.items()},
            "run_freedom": by_run,
            "run_strengths": c.run_strengths,
            "mlp": {name: common.curve(v) for name, v in networks.items()},
            "ridge_strengths": c.ridge_strengths,
            "mlp_strengths": c.mlp_strengths,
            "ridge_chosen": c.ridge_strengths[best],
            "mlp_chosen": c.mlp_strengths[best_mlp],
        },
    )


def draw(values, figure):
    left, right = figure.subplots(1, 2)
    places = common.strength_axis(left, values["ridge_strengths"])
    common.band(left, places, values["ridge"]["freedom"], "ridge: degrees of freedom")
    left.plot(
        values["run_strengths"], values["run_freedom"], "kx", label="one run's own derivative"
    )
    left.set_ylabel("degrees of freedom, of 10 features")
    left.legend()
    places = common.strength_axis(right, values["mlp_strengths"])
    common.band(right, places, values["mlp"]["train_loss"], "MLP: training loss")
    common.band(right, places, values["mlp"]["held_out_loss"], "MLP: held-out loss")
    right.set_ylabel("cross-entropy")
    right.set_ylim(0, 1)
    right.legend()


CLAIMS = (
    Claim(
        "Q13-complex",
        "Decay makes a model more complex, by ridge's degrees of freedom or by the size of a "
        "network's weights.",
        any_of(above("ridge: degrees of freedom, *"), above("MLP: log10 |w|^2, *")),
        "Decay makes a model simpler, by ridge's degrees of freedom and by the size of a "
        "network's weights.",
    ),
    Claim(
        "Q13-performance",
        "Decay keeps the training performance: the training loss is no higher than without, for "
        "ridge and for a network.",
        all_of(below("*: training loss, chosen - zero")),
        "Decay costs training performance: the training loss is higher than without, for ridge "
        "or for a network.",
    ),
)


if __name__ == "__main__":
    common.main(__file__, measure, draw, Config(), QUICK, CLAIMS)
