"""L1 against L2 along the path of strengths: who makes zeros, and at what price.

Claim: L2 shrinks all weights towards zero; L1 makes part of them exactly zero (S13).
Source: the articles; soft thresholding, Daubechies, Defrise & De Mol 2004. In a network trained
  by descent, L1 added to the loss (its subgradient) steps across zero instead of stopping there.
Would change: S13-l2: `L2: strengths at which some weight is exactly zero` below 1; S13-proximal:
  `L1 by proximal step: share of zeros at chosen` above 0.01; S13-subgradient: `L1 by subgradient:
  share of zeros at chosen` above 0.01.
Run: `python -m experiments s13_l1` (138 s on 2 CPU devices, jax 0.10.2)
Found: L2 makes no weight exactly zero, at any strength tried (S13-l2 holds, counted). L1 by its
  proximal step makes over 1 % of the weights exactly zero (S13-proximal holds, p < 0.0001). L1 as
  a term of the loss makes less than 1 % of the weights exactly zero (S13-subgradient fails, p =
  0.0078).
"""

import functools
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
import optax

from experiments import common, problems
from experiments.claims import Claim, Measurement, above, below, exact
from wdjax.decay import make_optimizer, proximal_l1
from wdjax.losses import cross_entropy
from wdjax.models import make_mlp
from wdjax.parts import matrices_only
from wdjax.penalties import l1_penalty, l2_penalty
from wdjax.training import is_correct, make_fit, make_score


@dataclass(frozen=True)
class Config:
    size: int = 150
    num_epochs: int = 400
    label_noise: float = 0.1
    learning_rate: float = 0.1
    strengths: tuple[float, ...] = (0.0, *np.geomspace(1e-5, 1e-1, 9).tolist())
    num_seeds: int = 8


QUICK = replace(Config(), num_epochs=4, strengths=(0.0, 1e-3, 1e-1), num_seeds=2)


def measure(c: Config) -> common.Findings:
    pool, held_out = problems.parts_of("digits", noise=c.label_noise)
    choose_by, report_on = problems.halves(held_out)
    model = make_mlp(10)
    score = make_score(model, loss=cross_entropy, accuracy=is_correct)
    descent = lambda h: optax.sgd(c.learning_rate)
    penalised = lambda penalty: {
        "make_tx": descent,
        "make_penalty": lambda h: penalty(h["strength"], matrices_only),
    }

    def proximal(h):
        step = functools.partial(proximal_l1, h["strength"], parts=matrices_only)
        return make_optimizer(optax.identity(), c.learning_rate, step)

    ways = {
        "L2": penalised(l2_penalty),
        "L1 by subgradient": penalised(l1_penalty),
        "L1 by proximal step": {"make_tx": proximal},
    }
    axes = {"strength": c.strengths, "seed": range(c.num_seeds)}
    values, found = {}, []
    for name, way in ways.items():
        fit = make_fit(model, cross_entropy, num_epochs=c.num_epochs, batch_size=50, **way)

        def one(point, pool, choose_by, report_on, fit=fit):
            train, key = problems.draw(pool, point["seed"], c.size)
            run = fit({"strength": point["strength"]}, train, key)
            # Pixels that are always blank leave their weights where they began under no decay.
            kernels = [run.params["hidden1"]["kernel"], run.params["head"]["kernel"]]
            weights = jnp.concatenate([kernel.ravel() for kernel in kernels])
            report = score(run, report_on)
            return {
                "zeros": jnp.mean(weights == 0),
                "tiny": jnp.mean(jnp.abs(weights) < 1e-3),
                "accuracy": report["accuracy"],
                "loss": report["loss"],
                "choose": score(run, choose_by)["loss"],
            }

        scores = problems.sweep(one, axes, (pool, choose_by, report_on))
        best = problems.chosen_row(scores.pop("choose"))
        found.append(common.over_seeds(f"{name}: share of zeros at chosen", scores["zeros"][best]))
        found.append(common.over_seeds(f"{name}: accuracy at chosen", scores["accuracy"][best]))
        values[name] = {what: common.curve(v) for what, v in scores.items()}
        values[name]["chosen"] = c.strengths[best]
    return common.Findings(found, values | {"strengths": c.strengths})


def draw(values, figure):
    left, right = figure.subplots(1, 2)
    for axes, what, label in (
        (left, "zeros", "share of weights exactly zero"),
        (right, "accuracy", "held-out accuracy"),
    ):
        places = common.strength_axis(axes, values["strengths"])
        for name in (name for name in values if name != "strengths"):
            common.band(axes, places, values[name][what], name)
        axes.set_ylabel(label)
    left.legend()


CLAIMS = (
    Claim(
        "S13-l2",
        "L2 makes no weight exactly zero, at any strength tried.",
        below("L2: strengths at which some weight is exactly zero", 1.0),
        "L2 makes some weight exactly zero.",
    ),
    Claim(
        "S13-proximal",
        "L1 by its proximal step makes over 1 % of the weights exactly zero.",
        above("L1 by proximal step: share of zeros at chosen", 0.01),
        "L1 by its proximal step makes less than 1 % of the weights exactly zero.",
    ),
    Claim(
        "S13-subgradient",
        "L1 as a term of the loss makes over 1 % of the weights exactly zero.",
        above("L1 by subgradient: share of zeros at chosen", 0.01),
        "L1 as a term of the loss makes less than 1 % of the weights exactly zero.",
    ),
)


def derived(results) -> list[Measurement]:
    """How often L2 makes a zero at all."""
    zeros = np.array(results["values"]["L2"]["zeros"]["mean"])
    return [exact("L2: strengths at which some weight is exactly zero", (zeros > 0).sum())]


if __name__ == "__main__":
    common.main(__file__, measure, draw, Config(), QUICK, CLAIMS, derived)
