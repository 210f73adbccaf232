"""L1 against L2 along the path of strengths: who makes zeros, and at what price.

Claim: L2 shrinks all weights towards zero; L1 makes part of them exactly zero (S13).
Source: the articles; soft thresholding, Daubechies, Defrise & De Mol 2004. In a network trained
  by descent, L1 added to the loss (its subgradient) steps across zero instead of stopping there.
Would change: the half on L1 holds only for the way of training it whose share of exact zeros is
  above 1 % at its chosen strength; the half on L2 fails if any of its weights are exactly zero.
Run: `python -m experiments s13_l1` (12 s on 2 CPU devices, jax 0.10.2)
Found: holds in part. L2 makes no weight zero. L1 does by its proximal step; added to the loss it
  does not. L2: share of zeros at chosen 0 +- 0 (n=8); L2: accuracy at chosen 0.843 +- 0.012
  (n=8); L1 by subgradient: share of zeros at chosen 0 +- 0 (n=8); L1 by subgradient: accuracy at
  chosen 0.842 +- 0.011 (n=8); L1 by proximal step: share of zeros at chosen 0.3158 +- 0.0086
  (n=8); L1 by proximal step: accuracy at chosen 0.843 +- 0.011 (n=8).
"""

from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
import optax

from experiments import common, problems
from wdjax.decay import proximal_l1
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
        step = proximal_l1(h["strength"], c.learning_rate, parts=matrices_only)
        return optax.chain(descent(h), step)

    ways = {
        "L2": penalised(l2_penalty),
        "L1 by subgradient": penalised(l1_penalty),
        "L1 by proximal step": {"make_tx": proximal},
    }
    axes = {"strength": c.strengths, "seed": range(c.num_seeds)}
    values, found, zeros_at = {}, [], {}
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
        zeros_at[name] = common.over_seeds(
            f"{name}: share of zeros at chosen", scores["zeros"][best]
        )
        found.append(zeros_at[name])
        found.append(common.over_seeds(f"{name}: accuracy at chosen", scores["accuracy"][best]))
        values[name] = {what: common.curve(v) for what, v in scores.items()}
        values[name]["chosen"] = c.strengths[best]
    no_zeros = max(values["L2"]["zeros"]["mean"]) == 0
    by_prox = zeros_at["L1 by proximal step"].clearly_above(0.01)
    by_subgradient = zeros_at["L1 by subgradient"].clearly_above(0.01)
    holds = no_zeros and by_prox and by_subgradient
    return common.Findings(
        found,
        "holds" if holds else "holds in part" if no_zeros and by_prox else "undecided",
        "L2 makes no weight zero. L1 does by its proximal step; added to the loss it "
        f"{'does too' if by_subgradient else 'does not'}.",
        values | {"strengths": c.strengths},
    )


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


if __name__ == "__main__":
    common.main(__file__, measure, draw, Config(), QUICK)
