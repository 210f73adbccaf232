"""Optimiser x kind of decay x augmentation: is the best strength separable from the learning rate?

Claim: decay combines with any optimiser, augmentation and structure (S16); decoupled decay makes
  the best strength separable from the learning rate (Loshchilov & Hutter 2019).
Source: the articles; Loshchilov & Hutter 2019, arXiv:1711.05101, figure 1.
Would change: S16-decoupled: all of (`*, decoupled, *: slope` between -0.5 and 0.5);
  S16-independent: all of (`*, independent, *: slope` between -0.5 and 0.5); S16-coupled: all of
  (`*, coupled, *: slope` between -0.5 and 0.5); S16-gain: most of (`*: held-out loss, zero -
  chosen` above 0).
Note: the slope of log10 of the best strength over log10 of the learning rate is 0 where the two
  are separable, -1 where their product is what counts, 1 where their ratio is; separable means
  nearer to 0 than to either. A learning rate counts only if its best strength, chosen on one half
  of the held-out rows, beats zero and both ends of the grid on the other half by two standard
  errors: elsewhere the best strength is not known, and a combination with fewer than three such
  learning rates has no slope. The grids, the size, the label noise and the epochs were laid by
  pilots on seeds 1000 to 1004, none of which is reported; they were scored on the same held-out
  rows.
Run: `python -m experiments s16_combinations` (281 s on 2 CPU devices, jax 0.10.2)
Found: Undecided: The best strength of decoupled decay is separable from the learning rate, in
  every combination with a slope (S16-decoupled undecided, p = 0.48). The best strength of
  independent decay is not separable from the learning rate, in one of the combinations with a
  slope (S16-independent fails, p < 0.0001). Undecided: The best strength of coupled L2 is
  separable from the learning rate, in every combination with a slope (S16-coupled undecided, p =
  0.93). Undecided: The chosen strength lowers the held-out loss in most of the combinations of
  optimiser, kind of decay and augmentation (S16-gain undecided, p = 0.83).
"""

from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from experiments import common, problems
from experiments.claims import Claim, Measurement, above, all_of, exact, most_of, within
from wdjax.data.augment import compose, random_crop, random_flip
from wdjax.decay import decoupled_decay, independent_decay
from wdjax.losses import cross_entropy
from wdjax.models import make_mlp
from wdjax.parts import matrices_only
from wdjax.penalties import l2_penalty
from wdjax.recipe import DIRECTIONS
from wdjax.training import make_fit, make_score

AUGMENTATIONS = {"none": None, "crop+flip": compose(random_crop(1), random_flip())}
DECAYS = ("coupled", "decoupled", "independent")
STEP = 2.0
"""Between neighbours of both axes: products and ratios then lie on a grid of the same step."""
LOWEST_RATE = {"sgd": 0.1, "adam": 3e-3, "lion": 4e-4}
LOWEST_STRENGTH = {
    ("sgd", "coupled"): 1e-4,
    ("sgd", "decoupled"): 1e-4,
    ("sgd", "independent"): 2.5e-5,
    ("adam", "coupled"): 1e-4,
    ("adam", "decoupled"): 1e-2,
    ("adam", "independent"): 8e-5,
    ("lion", "coupled"): 1e-4,
    ("lion", "decoupled"): 5e-2,
    ("lion", "independent"): 8e-5,
}
CAP = 10.0
"""A loss counts at most this much: some runs without decay reach hundreds, or diverge."""
SCREEN = 2.0
"""Standard errors by which a best strength must beat zero and the ends: a screen, no verdict."""
COORDINATES = {"strength": 0, "product": 1, "ratio": -1}
"""What is held when the learning rate moves: `strength * learning_rate ** power`."""


@dataclass(frozen=True)
class Config:
    size: int = 50
    num_epochs: int = 500
    sgd_epochs: int = 1000
    batch_size: int = 25
    label_noise: float = 0.3
    num_learning_rates: int = 4
    num_strengths: int = 12
    num_seeds: int = 8
    first_seed: int = 0


QUICK = replace(
    Config(), num_epochs=1, sgd_epochs=1, num_learning_rates=2, num_strengths=3, num_seeds=2
)


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
        # Slower than the others: in as many it learns few augmented images by heart.
        num_epochs=c.sgd_epochs if optimizer == "sgd" else c.num_epochs,
        batch_size=c.batch_size,
        make_penalty=penalty if decay == "coupled" else None,
        augment=AUGMENTATIONS[augmentation],
    )


def losses(c: Config, optimizer: str, decay: str, augmentation: str, rates, strengths):
    """Held-out losses of the two halves, `{"choose", "report"}`, each `[strength, rate, seed]`."""
    pool, held_out = problems.parts_of("digits", noise=c.label_noise)
    fit = make_run(c, optimizer, decay, augmentation)
    score = make_score(make_mlp(10), loss=cross_entropy)

    def one(point, pool, choose_by, report_on):
        train, key = problems.draw(pool, point["seed"], c.size)
        run = fit(point, train, key)
        capped = lambda loss: jnp.minimum(jnp.nan_to_num(loss, nan=CAP, posinf=CAP), CAP)
        parts = {"choose": choose_by, "report": report_on}
        return {name: capped(score(run, part)["loss"]) for name, part in parts.items()}

    axes = {
        "strength": strengths,
        "learning_rate": rates,
        "seed": range(c.first_seed, c.first_seed + c.num_seeds),
    }
    return problems.sweep(one, axes, (pool, *problems.halves(held_out)))


def is_placed(choose, report) -> bool:
    """Whether the best of `[strength, seed]` (row 0: zero) lies inside, clearly below its ends."""
    best = problems.chosen_row(choose)
    ends = (0, 1, len(choose) - 1)
    worse = [common.over_seeds("", report[end] - report[best]) for end in ends]
    return best not in ends and all(w.mean > SCREEN * w.standard_error for w in worse)


def lowest_log10(loss, strengths):
    """log10 of the lowest of `loss[strength, seed]`, by the parabola through it and both beside."""
    at = np.argmin(loss, axis=0)
    inside = np.clip(at, 1, len(loss) - 2)
    left, middle, right = (
        np.take_along_axis(loss, (inside + i)[None], axis=0)[0] for i in (-1, 0, 1)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        shift = 0.5 * (left - right) / (left - 2 * middle + right)
    usable = (at == inside) & np.isfinite(shift)
    return np.log10(strengths)[at] + np.where(usable, shift, 0.0) * np.log10(STEP)


def sheared(values, power: int):
    """`[strength, rate]` over another coordinate: row `i + power * j`, NaN where none was run."""
    rows, columns = values.shape[:2]
    moved = np.full((rows + abs(power) * (columns - 1), *values.shape[1:]), np.nan)
    first = max(0, -power) * (columns - 1)
    for j in range(columns):
        start = first + power * j
        moved[start : start + rows, j] = values[:, j]
    return moved


def price(choose, report, power: int):
    """What one value of a coordinate for all learning rates costs against the best of each.

    `[seed]`: the held-out loss at the common value less that at each one's own, mean over rates.
    """
    choose, report = sheared(choose, power), sheared(report, power)
    means = choose.mean(axis=2)
    common_row = int(np.nanargmin(np.where(np.isnan(means).any(axis=1), np.inf, means.sum(axis=1))))
    own = np.nanargmin(means, axis=0)
    each = [report[common_row, j] - report[row, j] for j, row in enumerate(own)]
    return np.mean(each, axis=0)


def judge(c: Config, name: str, rates, strengths, scores) -> dict[str, Any]:
    """What one combination shows: its map, its slope where it has one, what its best gains."""
    choose, report = scores["choose"], scores["report"]
    placed = [j for j in range(len(rates)) if is_placed(choose[:, j], report[:, j])]
    both = (choose + report) / 2
    best = np.stack([lowest_log10(both[1:, j], strengths[1:]) for j in range(len(rates))])
    at_zero, at_best = (
        np.unravel_index(int(np.argmin(means)), means.shape)
        for means in (choose[:1].mean(axis=2), choose.mean(axis=2))
    )
    gain = common.over_seeds(f"{name}: gain", report[at_zero] - report[at_best])
    told = {
        "strengths": strengths,
        "learning_rates": rates,
        "loss": both.mean(axis=2),
        "capped": (np.maximum(choose, report) >= CAP).mean(axis=2),
        "best": common.curve(best),
        "placed": placed,
        "gain": gain._asdict(),
        "slope": None,
        "price": {},
    }
    if len(placed) >= 3:
        x = np.log10(np.asarray(rates)[placed])
        x = x - x.mean()
        told["slope"] = common.over_seeds(f"{name}: slope", x @ best[placed] / (x @ x))._asdict()
        kept = choose[1:, placed], report[1:, placed]
        if np.diff(placed).max() == 1:
            told["price"] = {
                coordinate: common.over_seeds(f"{name}: {coordinate}", costs)._asdict()
                for coordinate, power in COORDINATES.items()
                if np.isfinite(costs := price(*kept, power)).all()
            }
    return told


def measure(c: Config) -> common.Findings:
    values: dict[str, Any] = {}
    for optimizer, lowest in LOWEST_RATE.items():
        rates = (lowest * STEP ** np.arange(c.num_learning_rates)).tolist()
        for decay in DECAYS:
            low = LOWEST_STRENGTH[optimizer, decay]
            strengths = [0.0, *(low * STEP ** np.arange(c.num_strengths)).tolist()]
            for augmentation in AUGMENTATIONS:
                name = f"{optimizer}, {decay}, {augmentation}"
                scores = losses(c, optimizer, decay, augmentation, rates, strengths)
                values[name] = judge(c, name, rates, strengths, scores)
                print(name, values[name]["placed"], values[name]["slope"], flush=True)
    return common.Findings(concluded(values), values)


def concluded(values) -> list[Measurement]:
    """The numbers of the page, from what every combination shows."""
    found = [Measurement(**one["slope"]) for one in values.values() if one["slope"]]
    placed = sum(len(one["placed"]) for one in values.values())
    total = sum(len(one["learning_rates"]) for one in values.values())
    found.append(exact(f"learning rates of {total} whose best strength is known", placed))
    return found


def draw(values, figure):
    figure.set_size_inches(7.2, 1.75 * len(values))
    grid = figure.subplots(len(values), len(COORDINATES), squeeze=False)
    for row, (name, one) in zip(grid, values.items(), strict=True):
        rates, strengths = np.array(one["learning_rates"]), np.array(one["strengths"][1:])
        loss = np.clip(np.array(one["loss"], np.float64)[1:], None, 2.5)
        best = np.array(one["best"]["mean"])
        for axes, (coordinate, power) in zip(row, COORDINATES.items(), strict=True):
            shown = sheared(loss, power)
            # A ratio's smallest value belongs to the largest learning rate.
            low = strengths[0] * rates[-1 if power < 0 else 0] ** power
            levels = low * STEP ** np.arange(len(shown))
            common.heat_map(figure, axes, shown, rates, levels, ("learning rate", coordinate))
            place = (best + power * np.log10(rates) - np.log10(low)) / np.log10(STEP)
            known = one["placed"]
            axes.plot(np.arange(len(rates)), place, "w.", markersize=3)
            axes.plot(known, place[known], "r.-", markersize=6, lw=1)
            axes.set_yticks(axes.get_yticks()[::3])
            axes.tick_params(labelsize=5)
            axes.set_xlabel("learning rate" if name == list(values)[-1] else "")
        row[0].set_title(f"{name}: strength", fontsize=7)
        row[1].set_title("strength x learning rate", fontsize=7)
        row[2].set_title("strength / learning rate", fontsize=7)


CLAIMS = (
    Claim(
        "S16-decoupled",
        "The best strength of decoupled decay is separable from the learning rate, in every "
        "combination with a slope.",
        all_of(within("*, decoupled, *: slope", -0.5, 0.5)),
        "The best strength of decoupled decay is not separable from the learning rate, in one of "
        "the combinations with a slope.",
    ),
    Claim(
        "S16-independent",
        "The best strength of independent decay is separable from the learning rate, in every "
        "combination with a slope.",
        all_of(within("*, independent, *: slope", -0.5, 0.5)),
        "The best strength of independent decay is not separable from the learning rate, in one "
        "of the combinations with a slope.",
    ),
    Claim(
        "S16-coupled",
        "The best strength of coupled L2 is separable from the learning rate, in every "
        "combination with a slope.",
        all_of(within("*, coupled, *: slope", -0.5, 0.5)),
        "The best strength of coupled L2 is not separable from the learning rate, in one of the "
        "combinations with a slope.",
    ),
    Claim(
        "S16-gain",
        "The chosen strength lowers the held-out loss in most of the combinations of optimiser, "
        "kind of decay and augmentation.",
        most_of(above("*: held-out loss, zero - chosen")),
        "The chosen strength raises the held-out loss in half of the combinations of optimiser, "
        "kind of decay and augmentation, or more.",
    ),
)


def derived(results) -> list[Measurement]:
    """What the chosen strength gains in every combination."""
    return [
        Measurement(**one["gain"])._replace(what=f"{name}: held-out loss, zero - chosen")
        for name, one in results["values"].items()
    ]


if __name__ == "__main__":
    common.main(__file__, measure, draw, Config(), QUICK, CLAIMS, derived)
