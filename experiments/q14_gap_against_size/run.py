"""Does over-fitting grow with the model's size, and with the data's?

Claim: over-fitting grows with model size and with data size (Q14).
Source: the first article, section 2; the second article, section 5.
Would change: Q14-clean: `clean: gap at widest - narrowest` above 0; Q14-wrong-labels: `* labels
  wrong: gap at widest - narrowest` above 0; Q14-data: any of (`*: gap per doubling of n` above
  0).
Run: `python -m experiments q14_gap_against_size` (62 s on 2 CPU devices, jax 0.10.2)
Found: With clean labels the gap of accuracy is smaller for the widest network than for the
  narrowest (Q14-clean fails, p = 0.0057). With wrong labels the gap of accuracy is larger for the
  widest network than for the narrowest (Q14-wrong-labels holds, p < 0.0001). The gap of accuracy
  shrinks with the number of training examples, with clean labels and with wrong ones (Q14-data
  fails, p < 0.0001).
"""

from dataclasses import dataclass, replace

import jax
import numpy as np

from experiments import common, problems
from experiments.claims import Claim, above, any_of
from wdjax.models import make_mlp
from wdjax.recipe import Recipe


@dataclass(frozen=True)
class Config:
    widths: tuple[int, ...] = (2, 4, 8, 16, 32, 128, 512)
    sizes: tuple[int, ...] = (50, 100, 200, 400, 800)
    width: int = 128
    size: int = 200
    num_steps: int = 1000
    batch_size: int = 50
    learning_rate: float = 3e-3
    label_noise: float = 0.2
    num_seeds: int = 10


QUICK = replace(Config(), widths=(2, 32), sizes=(50, 200), num_steps=50, num_seeds=2)


def gaps(c: Config, width: int, size: int):
    """Held-out minus training error of undecayed runs, `[noise, seed]`, equal steps at any size."""
    noises = (0.0, c.label_noise)
    clean, held_out = problems.parts_of("digits")
    pools = [clean, problems.parts_of("digits", noise=c.label_noise)[0]]
    # A gap between like and like: the held-out labels are as often wrong.
    held = [problems.wrong_labels(held_out, noise, 10, jax.random.key(1)) for noise in noises]
    recipe = Recipe(
        make_model=lambda num_outputs: make_mlp(num_outputs, widths=(width,)),
        num_epochs=c.num_steps // (size // c.batch_size),
        batch_size=c.batch_size,
    )

    def one(point, pools, held):
        pool, held_out = (jax.tree.map(lambda x: x[point["noise"]], both) for both in (pools, held))
        train, key = problems.draw(pool, point["seed"], size)
        hparams = {"strength": 0.0, "learning_rate": c.learning_rate}
        _, scores = problems.judged(recipe, hparams, train, key, held_out=held_out)
        return {
            "accuracy gap": scores["train_accuracy"] - scores["held_out_accuracy"],
            "loss gap": scores["held_out_loss"] - scores["train_loss"],
            "held-out accuracy": scores["held_out_accuracy"],
        }

    stacked = [jax.tree.map(lambda *x: np.stack(x), *both) for both in (pools, held)]
    axes = {"noise": range(len(noises)), "seed": range(c.num_seeds)}
    return problems.sweep(one, axes, tuple(stacked))


def slope(values, sizes):
    """Least-squares slope of `values[size, seed]` over log2(size), seed by seed."""
    x = np.log2(sizes) - np.log2(sizes).mean()
    return x @ np.asarray(values, np.float64) / (x @ x)


def measure(c: Config) -> common.Findings:
    values, found = {}, []
    shapes = {(w, c.size) for w in c.widths} | {(c.width, n) for n in c.sizes}
    ran = {shape: gaps(c, *shape) for shape in sorted(shapes)}
    for noise, name in enumerate(("clean", f"{c.label_noise:.0%} labels wrong")):
        over_width = [ran[width, c.size] for width in c.widths]
        over_size = [ran[c.width, size] for size in c.sizes]
        pick = lambda rows, what, noise=noise: np.stack([row[what][noise] for row in rows])
        values[name] = {
            axis: {what: common.curve(pick(rows, what)) for what in rows[0]}
            for axis, rows in (("width", over_width), ("size", over_size))
        }
        gap = pick(over_width, "accuracy gap")
        wide = common.over_seeds(f"{name}: gap at widest - narrowest", gap[-1] - gap[0])
        rise = slope(pick(over_size, "accuracy gap"), c.sizes)
        found += [wide, common.over_seeds(f"{name}: gap per doubling of n", rise)]
    return common.Findings(found, values | {"widths": c.widths, "sizes": c.sizes})


def draw(values, figure):
    left, right = figure.subplots(1, 2)
    for name in (name for name in values if name not in ("widths", "sizes")):
        for axes, axis in ((left, "width"), (right, "size")):
            common.band(axes, values[f"{axis}s"], values[name][axis]["accuracy gap"], name)
    for axes, label in ((left, "hidden units"), (right, "training examples")):
        axes.set_xscale("log", base=2)
        axes.set_xlabel(label)
        axes.set_ylabel("training - held-out accuracy")
    left.legend()


CLAIMS = (
    Claim(
        "Q14-clean",
        "With clean labels the gap of accuracy is larger for the widest network than for the "
        "narrowest.",
        above("clean: gap at widest - narrowest"),
        "With clean labels the gap of accuracy is smaller for the widest network than for the "
        "narrowest.",
    ),
    Claim(
        "Q14-wrong-labels",
        "With wrong labels the gap of accuracy is larger for the widest network than for the "
        "narrowest.",
        above("* labels wrong: gap at widest - narrowest"),
        "With wrong labels the gap of accuracy is smaller for the widest network than for the "
        "narrowest.",
    ),
    Claim(
        "Q14-data",
        "The gap of accuracy grows with the number of training examples, with clean labels or "
        "with wrong ones.",
        any_of(above("*: gap per doubling of n")),
        "The gap of accuracy shrinks with the number of training examples, with clean labels and "
        "with wrong ones.",
    ),
)


if __name__ == "__main__":
    common.main(__file__, measure, draw, Config(), QUICK, CLAIMS)
