"""Numerical precision and stability with decay, in four precisions, against float64.

Claim: decay harms numerical precision or stability (Q6).
Source: the first article's FAQ. In bfloat16 `1 - c` is 1 for c below 2^-9, so that weights kept
  in it lose small decay altogether (Micikevicius et al. 2018, arXiv:1710.03740, on master
  weights).
Would change: Q6-precision: any of (`float32: difference *` above 0.1 times `float64: held-out
  loss, zero - chosen`, `bfloat16 arithmetic: difference *` above 0.1 times `float64: held-out
  loss, zero - chosen`); Q6-weights: `bfloat16 weights: difference *` above 0.1 times `float64:
  held-out loss, zero - chosen`; Q6-spacing: `share of a weight that decay removes in a step`
  below 0.001953; Q6-spikes: `share of runs that spike, *` above 0.1.
Run: `python -m experiments q06_precision` (27 s on 2 CPU devices, jax 0.10.2)
Found: In float32 and in bfloat16 arithmetic, decay takes the held-out loss no further from
  float64's than a tenth of what it gains (Q6-precision fails, p < 0.0001). In bfloat16 weights,
  decay at the chosen strength takes the held-out loss no further from float64's than a tenth of
  what it gains (Q6-weights fails, p < 0.0001). The chosen strength removes enough of a bfloat16
  weight in a step to round to a change, so that a loss of smaller decay is not tested here
  (Q6-spacing fails, counted). Decay at the chosen strength makes the loss spike in fewer than a
  tenth more of the runs (Q6-spikes fails, p = 0.002).
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common, problems
from experiments.claims import Claim, Measurement, above, any_of, below, exact
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
    return common.Findings(
        found,
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


GAIN = "float64: held-out loss, zero - chosen"
CLAIMS = (
    Claim(
        "Q6-precision",
        "In float32 or in bfloat16 arithmetic, decay takes the held-out loss further from "
        "float64's, by over a tenth of what it gains.",
        any_of(
            above("float32: difference *", 0.1, of=GAIN),
            above("bfloat16 arithmetic: difference *", 0.1, of=GAIN),
        ),
        "In float32 and in bfloat16 arithmetic, decay takes the held-out loss no further from "
        "float64's than a tenth of what it gains.",
    ),
    Claim(
        "Q6-weights",
        "In bfloat16 weights, decay at the chosen strength takes the held-out loss further from "
        "float64's, by over a tenth of what it gains.",
        above("bfloat16 weights: difference *", 0.1, of=GAIN),
        "In bfloat16 weights, decay at the chosen strength takes the held-out loss no further "
        "from float64's than a tenth of what it gains.",
    ),
    Claim(
        "Q6-spacing",
        "The chosen strength removes less of a bfloat16 weight in a step than rounds to a change.",
        below("share of a weight that decay removes in a step", 2.0**-9),
        "The chosen strength removes enough of a bfloat16 weight in a step to round to a change, "
        "so that a loss of smaller decay is not tested here.",
    ),
    Claim(
        "Q6-spikes",
        "Decay at the chosen strength makes the loss spike in over a tenth more of the runs.",
        above("share of runs that spike, *", 0.1),
        "Decay at the chosen strength makes the loss spike in fewer than a tenth more of the runs.",
    ),
)


def derived(results) -> list[Measurement]:
    """What a step of the chosen decay removes of a weight."""
    removed = results["values"]["chosen"] * results["config"]["learning_rate"]
    return [exact("share of a weight that decay removes in a step", removed)]


if __name__ == "__main__":
    common.main(__file__, measure, draw, Config(), QUICK, CLAIMS, derived)
