"""Weights on the parts of a model, against uniform ones and the same ones shuffled.

Claim: giving each part of the model the weight sigmoid(slope * x), x how deep it is, improves
  generalisation (S5, Q11).
Source: both articles' FAQ.
Would change: Q11: any of (`on the *: share of the held-out loss that weights save` above 0.05).
Note: a first run (7 slopes, 5 strengths, 100 epochs) gave uniform - weighted 0.0040 +- 0.0019 on
  the decay, shuffled - weighted 0.0029 +- 0.0028. This grid was cut for time alone. The bound of
  5 % was set after those runs: less is not worth a second number to choose.
Run: `python -m experiments q11_part_weights` (55 s on 2 CPU devices, jax 0.10.2)
Found: Weights on the parts by their depth, of their decay or of their update, lower the held-out
  loss by less than 5 % (Q11 fails, p = 0.019).
"""

from dataclasses import dataclass, replace

import jax
import numpy as np
import optax

from experiments import common, problems
from experiments.claims import Claim, Measurement, above, any_of
from wdjax.decay import decoupled_decay
from wdjax.losses import cross_entropy
from wdjax.models import make_mlp
from wdjax.parts import matrices_only, scale_by_parts
from wdjax.training import is_correct, make_fit, make_score
from wdjax.weights import layer_numbers, same_total, sigmoid_parts


@dataclass(frozen=True)
class Config:
    size: int = 300
    num_epochs: int = 80
    batch_size: int = 50
    learning_rate: float = 3e-3
    widths: tuple[int, ...] = (64, 64, 64)
    slopes: tuple[float, ...] = (-6.0, -3.0, 0.0, 3.0, 6.0)
    strengths: tuple[float, ...] = (0.0, 0.3, 1.0, 3.0)
    num_seeds: int = 10


QUICK = replace(Config(), num_epochs=3, num_seeds=2, slopes=(-4.0, 0.0, 4.0), strengths=(0.0, 0.3))
PLACES = ("decay", "update")


def measure(c: Config) -> common.Findings:
    pool, held_out = problems.parts_of("digits")
    choose_by, report_on = problems.halves(held_out)
    model = make_mlp(10, widths=c.widths)
    score = make_score(model, loss=cross_entropy, accuracy=is_correct)
    layers = layer_numbers(model, pool.inputs[:1])
    last = len(c.widths)

    def run_of(place, shuffle):
        def one(point, pool, choose_by, report_on):
            train, key = problems.draw(pool, point["seed"], c.size)
            order = np.arange(last + 1)
            if shuffle:
                order = jax.random.permutation(jax.random.fold_in(key, 1), last + 1)
            depth = lambda params: jax.tree.map(lambda n: order[int(n)] / last, layers(params))

            def weigh(base):
                return same_total(sigmoid_parts(depth, point["slope"], base), base)

            decayed = weigh(matrices_only) if place == "decay" else matrices_only
            moved = weigh(None) if place == "update" else None
            fit = make_fit(
                model,
                cross_entropy,
                make_tx=lambda h: optax.chain(
                    optax.scale_by_adam(),
                    scale_by_parts(moved),
                    optax.scale_by_learning_rate(c.learning_rate),
                    decoupled_decay(h["strength"], c.learning_rate, parts=decayed),
                ),
                num_epochs=c.num_epochs,
                batch_size=c.batch_size,
            )
            result = fit(point, train, key)
            of = lambda name, part: {f"{name}_{k}": v for k, v in score(result, part).items()}
            return of("choose", choose_by) | of("report", report_on)

        return one

    axes = {"slope": c.slopes, "strength": c.strengths, "seed": range(c.num_seeds)}
    shared = (pool, choose_by, report_on)
    zero, found, values, gains = c.slopes.index(0.0), [], {}, {}
    for place in PLACES:
        weighted = problems.sweep(run_of(place, False), axes, shared)
        scores = {
            "weighted": weighted,
            "shuffled": problems.sweep(run_of(place, True), axes, shared),
            "uniform": {k: v[[zero]] for k, v in weighted.items()},
        }
        gains[place], values[place] = problems.against_weighted(
            f"on the {place}", scores, c.slopes, c.strengths
        )
        found += [gains[place]["uniform"], gains[place]["shuffled"]]
    values |= {"slopes": c.slopes, "strengths": c.strengths}
    return common.Findings(found, values)


def draw(values, figure):
    for axes, place in zip(figure.subplots(1, 2), PLACES, strict=True):
        strength = problems.draw_over_slopes(
            axes, values[place], values["slopes"], values["strengths"]
        )
        axes.set_title(f"on the {place}, strength {strength:g}")
        axes.set_xlabel("slope (above 0: deep layers count more)")
        axes.legend()


CLAIMS = (
    Claim(
        "Q11",
        "Weights on the parts by their depth, of their decay or of their update, lower the "
        "held-out loss by over 5 %.",
        any_of(above("on the *: share of the held-out loss that weights save", 0.05)),
        "Weights on the parts by their depth, of their decay or of their update, lower the "
        "held-out loss by less than 5 %.",
    ),
)


def derived(results) -> list[Measurement]:
    """What weights save of the loss with uniform ones, by seed."""
    numbers = []
    for place in PLACES:
        losses = results["values"][place]["by_seed"]
        uniform = np.array(losses["uniform"])
        saved = (uniform - np.array(losses["weighted"])) / uniform.mean()
        what = f"on the {place}: share of the held-out loss that weights save"
        numbers.append(common.over_seeds(what, saved))
    return numbers


if __name__ == "__main__":
    common.main(__file__, measure, draw, Config(), QUICK, CLAIMS, derived)
