"""Optimiser x kind of decay x augmentation: is the best strength separable from the learning rate?

Claim: decay combines with any optimiser, augmentation and structure (S16); decoupled decay makes
  the best strength separable from the learning rate (Loshchilov & Hutter 2019).
Source: the articles; Loshchilov & Hutter 2019, arXiv:1711.05101, figure 1.
Would change: separable means that log10 of the best strength has slope 0 over log10 of the
  learning rate; slope -1 means that their product is what counts. A kind of decay is called
  separable if its slope is closer to 0 than to -1 and within two standard errors of 0.
Run: `python -m experiments s16_combinations` (140 s on 2 CPU devices, jax 0.10.2)
Found: holds in part. Slopes within two standard errors of 0: coupled 0 of 6, decoupled 0 of 6,
  independent 1 of 6. sgd, coupled, none: slope 1.331 +- 0.087 (n=5); sgd, decoupled, none: slope
  1.331 +- 0.087 (n=5); sgd, independent, none: slope 1.831 +- 0.070 (n=5); adam, coupled, none:
  slope 0.29 +- 0.13 (n=5); adam, decoupled, none: slope 0.172 +- 0.070 (n=5); adam, independent,
  none: slope 1.087 +- 0.097 (n=5); lion, coupled, none: slope 1.86 +- 0.12 (n=5); lion,
  decoupled, none: slope 1.202 +- 0.057 (n=5); lion, independent, none: slope 2.318 +- 0.070
  (n=5); combinations of 18 in which the best strength clearly beats zero 3 (exact); best
  strengths of 90 that lie at an end of the grid 38 (exact).
"""

from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
import optax

from experiments import common, problems
from wdjax.data.augment import compose, random_crop, random_flip
from wdjax.decay import decoupled_decay, independent_decay
from wdjax.losses import cross_entropy
from wdjax.models import make_mlp
from wdjax.parts import matrices_only
from wdjax.penalties import l2_penalty
from wdjax.recipe import DIRECTIONS
from wdjax.training import make_fit, make_score

AUGMENTATIONS = {"none": None, "crop+flip": compose(random_crop(1), random_flip())}
LEARNING_RATES = {"sgd": (0.02, 0.5), "adam": (1e-3, 2.5e-2), "lion": (1e-4, 2.5e-3)}
"""The range of each optimiser, in which it trains without decay."""
RANGES = {
    ("sgd", "coupled"): (1e-4, 1e-1),
    ("sgd", "decoupled"): (1e-4, 1e-1),
    ("adam", "coupled"): (1e-5, 1e-1),
    ("adam", "decoupled"): (1e-2, 1e2),
    ("lion", "coupled"): (1e-5, 1e-1),
    ("lion", "decoupled"): (1e-1, 1e3),
}
INDEPENDENT = (1e-5, 1e-1)


@dataclass(frozen=True)
class Config:
    size: int = 150
    num_epochs: int = 250
    label_noise: float = 0.1
    num_learning_rates: int = 5
    num_strengths: int = 9
    num_seeds: int = 5


QUICK = replace(Config(), num_epochs=1, num_learning_rates=2, num_strengths=2, num_seeds=2)
DECAYS = ("coupled", "decoupled", "independent")


def make_run(c: Config, optimizer: str, decay: str, augmentation: str):
    def make_tx(h):
        rate, strength = h["learning_rate"], h["strength"]
        decays = {
            "coupled": optax.identity,
            "decoupled": lambda: decoupled_decay(strength, rate, parts=matrices_only),
            "independent": lambda: independent_decay(strength, parts=matrices_only),
        }
        descent = optax.scale_by_learning_rate(rate)
        return optax.chain(DIRECTIONS[optimizer](), descent, decays[decay]())

    penalty = lambda h: l2_penalty(h["strength"], matrices_only)
    return make_fit(
        make_mlp(10),
        cross_entropy,
        make_tx=make_tx,
        num_epochs=c.num_epochs,
        batch_size=50,
        make_penalty=penalty if decay == "coupled" else None,
        augment=AUGMENTATIONS[augmentation],
    )


def measure(c: Config) -> common.Findings:
    pool, held_out = problems.parts_of("digits", noise=c.label_noise)
    score = make_score(make_mlp(10), loss=cross_entropy)
    values, found, separable, helps, at_end, places = {}, [], {}, 0, 0, 0
    for optimizer in LEARNING_RATES:
        rates = np.geomspace(*LEARNING_RATES[optimizer], c.num_learning_rates).tolist()
        for decay in DECAYS:
            low, high = RANGES.get((optimizer, decay), INDEPENDENT)
            strengths = [0.0, *np.geomspace(low, high, c.num_strengths).tolist()]
            for augmentation in AUGMENTATIONS:
                fit = make_run(c, optimizer, decay, augmentation)

                def one(point, pool, held_out, fit=fit):
                    train, key = problems.draw(pool, point["seed"], c.size)
                    loss = score(fit(point, train, key), held_out)["loss"]
                    return jnp.nan_to_num(loss, nan=jnp.inf, posinf=jnp.inf)

                axes = {"strength": strengths, "learning_rate": rates, "seed": range(c.num_seeds)}
                loss = problems.sweep(one, axes, (pool, held_out))
                name = f"{optimizer}, {decay}, {augmentation}"
                lowest = np.argmin(loss[1:].mean(axis=2), axis=0)
                at_end += int(np.isin(lowest, (0, len(strengths) - 2)).sum())
                places += len(lowest)
                best = np.log10(strengths[1:])[np.argmin(loss[1:], axis=0)]  # [rate, seed]
                x = np.log10(rates) - np.log10(rates).mean()
                slope = common.over_seeds(f"{name}: slope", x @ best / (x @ x))
                finite = np.where(np.isfinite(loss), loss, np.nan)
                over_seeds = loss.mean(axis=2)
                row, column = np.unravel_index(int(np.argmin(over_seeds)), over_seeds.shape)
                at_zero = int(np.argmin(over_seeds[0]))
                gain = common.over_seeds("", loss[0, at_zero] - loss[row, column])
                helps += gain.clearly_above()
                values[name] = {
                    "strengths": strengths,
                    "learning_rates": rates,
                    "loss": np.where(np.isfinite(over_seeds), over_seeds, np.nan),
                    "finite": np.isfinite(finite).mean(axis=2),
                    "slope": slope._asdict(),
                    "gain": gain._asdict(),
                    "best": [strengths[row], rates[column]],
                }
                separable.setdefault(decay, []).append(abs(slope.mean) < 2 * slope.standard_error)
                if augmentation == "none":
                    found.append(slope)
    found.append(
        common.exact(
            f"combinations of {len(values)} in which the best strength clearly beats zero", helps
        )
    )
    found.append(common.exact(f"best strengths of {places} that lie at an end of the grid", at_end))
    counts = {decay: sum(which) for decay, which in separable.items()}
    flat = ", ".join(f"{decay} {n} of {len(separable[decay])}" for decay, n in counts.items())
    # Where the best lies at an end, a slope says how the grid was laid, not how they are coupled.
    inside = 2 * at_end < places
    every = counts["decoupled"] == len(separable["decoupled"])
    return common.Findings(
        found,
        "undecided" if not inside else "holds" if every else "holds in part",
        f"Slopes within two standard errors of 0: {flat}."
        + ("" if inside else " Most best strengths lie at an end of the grid: no conclusion."),
        values,
    )


def draw(values, figure):
    figure.set_size_inches(7.2, 8.5)
    names = [name for name in values if name.endswith("none")]
    grid = figure.subplots(3, 3)
    for axes, name in zip(grid.ravel(), names, strict=True):
        one = values[name]
        loss = np.clip(np.array(one["loss"], np.float64), None, 2.0)
        labels = ("learning rate", "strength")
        common.heat_map(figure, axes, loss, one["learning_rates"], one["strengths"], labels)
        axes.set_title(name.removesuffix(", none"), fontsize=8)
        axes.tick_params(labelsize=6)


if __name__ == "__main__":
    common.main(__file__, measure, draw, Config(), QUICK)
