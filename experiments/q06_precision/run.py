"""Numerical precision and stability with decay, in four precisions, against float64.

Claim: decay harms numerical precision or stability (Q6).
Source: the first article's FAQ. In bfloat16 `1 - c` is 1 for c below 2^-9, so that weights kept
  in it lose small decay altogether (Micikevicius et al. 2018, arXiv:1710.03740, on master
  weights).
Would change: "precision" holds if the difference of held-out loss to the float64 run is clearly
  larger at the chosen strength than at zero in float32 or with bfloat16 arithmetic; "stability"
  if more runs spike (an epoch's loss over 1.5 times the lowest before) or stop being finite. The
  claim fails if both differences are below a tenth of what decay gains in float64, and the share
  of runs that spike grows by less than a tenth, by two standard errors.
Run: `python -m experiments q06_precision` (27 s on 2 CPU devices, jax 0.10.2)
Found: fails. At the chosen strength the runs are no further from float64 and no less stable than
  without decay. float32: difference of held-out loss, chosen - zero 0.00041 +- 0.00030 (n=10);
  bfloat16 arithmetic: difference of held-out loss, chosen - zero -0.00069 +- 0.00096 (n=10);
  bfloat16 weights: difference of held-out loss, chosen - zero 0.0003 +- 0.0014 (n=10); share of
  runs that spike, chosen - zero 0 +- 0 (n=10); share of runs that stayed finite 1 (exact);
  float64: held-out loss, zero - chosen 0.108 +- 0.023 (n=10); bfloat16 weights: held-out loss,
  zero - chosen 0.105 +- 0.022 (n=10).
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common, problems
from wdjax.models import make_mlp, with_compute_dtype
from wdjax.recipe import Recipe, recipe_fit, recipe_score
from wdjax.types import Model

PRECISIONS = ("float64", "float32", "bfloat16 arithmetic", "bfloat16 weights")


@dataclass(frozen=True)
class Config:
    size: int = 150
    num_epochs: int = 150
    label_noise: float = 0.1
    learning_rate: float = 3e-3
    strengths: tuple[float, ...] = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)
    num_seeds: int = 10
    least_harm: float = 0.1


QUICK = replace(Config(), num_epochs=5, strengths=(0.0, 1.0, 10.0), num_seeds=2)


def in_precision(name: str, num_outputs: int) -> Model:
    """An MLP that begins at the same float32 weights in every precision."""
    model = make_mlp(num_outputs)
    if name == "bfloat16 arithmetic":
        return with_compute_dtype(model, "bfloat16")
    dtype = {"float64": jnp.float64, "float32": jnp.float32}.get(name, jnp.bfloat16)

    def init(key, inputs):
        params, state = model.init(key, inputs.astype(jnp.float32))
        return jax.tree.map(lambda p: p.astype(dtype), params), state

    def apply(params, state, inputs, *, key, train):
        outputs, state = model.apply(params, state, inputs.astype(dtype), key=key, train=train)
        return outputs.astype(jnp.promote_types(dtype, jnp.float32)), state

    return Model(init, apply)


def runs_in(name: str, c: Config, parts: tuple) -> dict[str, np.ndarray]:
    """`[strength, seed]` of every measure, in one precision."""
    recipe = Recipe(
        make_model=lambda num_outputs: in_precision(name, num_outputs),
        num_epochs=c.num_epochs,
        batch_size=50,
    )
    dtype = jnp.float64 if name == "float64" else jnp.float32

    def one(point, pool, choose_by, report_on):
        train, key = problems.draw(pool, point["seed"], c.size)
        hparams = {"strength": point["strength"], "learning_rate": c.learning_rate}
        hparams = {number: jnp.asarray(v, dtype) for number, v in hparams.items()}
        fit, score = recipe_fit(recipe)(hparams, train, key), recipe_score(recipe)
        loss = fit.history["data_loss"].astype(jnp.float32)
        return {
            "report": score(fit, report_on)["loss"].astype(jnp.float64),
            "choose": score(fit, choose_by)["loss"].astype(jnp.float64),
            "spike": jnp.max(loss[1:] / jax.lax.cummin(loss)[:-1]),
            "finite": jnp.all(jnp.isfinite(loss)),
        }

    return problems.sweep(one, {"strength": c.strengths, "seed": range(c.num_seeds)}, parts)


def measure(c: Config) -> common.Findings:
    jax.config.update("jax_enable_x64", True)
    pool, held_out = problems.parts_of("digits", noise=c.label_noise)
    parts = (pool, *problems.halves(held_out))
    scores = {name: runs_in(name, c, parts) for name in PRECISIONS}
    truth = scores["float64"]
    best = problems.chosen_row(truth["choose"])
    error = {name: np.abs(s["report"] - truth["report"]) for name, s in scores.items()}
    spikes = {name: s["spike"] > 1.5 for name, s in scores.items()}
    found, extremes = [], []
    for name in PRECISIONS[1:]:
        e = error[name]
        found.append(
            common.over_seeds(f"{name}: difference of held-out loss, chosen - zero", e[best] - e[0])
        )
        extremes.append(
            common.extreme(f"{name}: difference to float64 (Q6)", "lower", e[0], e[best], e[-1])
        )
    share = sum(spikes[name].astype(float) for name in PRECISIONS) / len(PRECISIONS)
    found.append(
        common.over_seeds("share of runs that spike, chosen - zero", share[best] - share[0])
    )
    finite = np.mean([s["finite"].mean() for s in scores.values()])
    found.append(common.exact("share of runs that stayed finite", finite))
    extremes.append(
        common.extreme("share of runs that spike (Q6)", "lower", share[0], share[best], share[-1])
    )
    gain = {
        name: common.over_seeds(
            f"{name}: held-out loss, zero - chosen", s["report"][0] - s["report"][best]
        )
        for name, s in scores.items()
    }
    found += [gain["float64"], gain["bfloat16 weights"]]
    harms = any(m.clearly_above() for m in (*found[:2], found[3])) or finite < 1
    bound = c.least_harm * gain["float64"].mean
    harmless = all(m.clearly_below(bound) for m in found[:2]) and found[3].clearly_below(0.1)
    return common.Findings(
        found,
        common.verdict(harms, harmless),
        "At the chosen strength the runs are "
        + ("further from float64, or less stable." if harms else "no further from float64 and no ")
        + ("" if harms else "less stable than without decay."),
        {
            "error": {name: common.curve(e) for name, e in error.items()},
            "report": {name: common.curve(s["report"]) for name, s in scores.items()},
            "spikes": {name: s.mean(axis=1) for name, s in spikes.items()},
            "strengths": c.strengths,
            "chosen": c.strengths[best],
        },
        extremes,
    )


def draw(values, figure):
    left, right = figure.subplots(1, 2)
    places = common.strength_axis(left, values["strengths"])
    common.strength_axis(right, values["strengths"])
    for name in PRECISIONS:
        if name != "float64":
            common.band(left, places, values["error"][name], name)
        common.band(right, places, values["report"][name], name)
    left.set_yscale("log")
    left.set_ylabel("difference to float64's held-out loss")
    right.set_ylabel("held-out loss")
    right.legend()


if __name__ == "__main__":
    common.main(__file__, measure, draw, Config(), QUICK)
