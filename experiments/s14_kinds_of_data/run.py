"""The best strength per kind of data, and where label noise moves it.

Claim: the coefficient depends on the kind of data, and noisier data want a smaller one (S14).
Source: the articles. Images (digits), tables (breast_cancer, wine, diabetes), a sequence (tones
  that rise, fall, hold or waver, synthesised) and text (bytes of Python's standard library, each
  predicted from those before it: a wrong label is another byte). Noise on the inputs is Q8's.
Would change: S14-kinds: any of (`log10 best strength, * - *` different from 0); S14-noise: most
  of (`*: its change up to noise *` below 0).
Note: a best strength at an end of the grid (zero counts as a step below the smallest) lies there
  or further out.
Run: `python -m experiments s14_kinds_of_data` (196 s on 2 CPU devices, jax 0.10.2)
Found: The best strength differs between two of the kinds of data at least (S14-kinds holds, p <
  0.0001). Noisier data want a larger strength, on half of the sets at least (S14-noise fails, p =
  0.028).
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common, problems
from experiments.claims import Claim, Measurement, any_of, below, differs, most_of
from wdjax.data import standardize
from wdjax.models import make_byte_lm, make_rnn
from wdjax.recipe import Recipe

OUTPUTS = {"digits": 10, "breast_cancer": 2, "wine": 3, "diabetes": 1, "tones": 4, "text": 256}
TABLES = ("breast_cancer", "wine", "diabetes")


@dataclass(frozen=True)
class Config:
    names: tuple[str, ...] = ("digits", "breast_cancer", "wine", "diabetes", "tones", "text")
    size: int = 80
    num_epochs: int = 150
    noises: tuple[float, ...] = (0.0, 0.1, 0.2, 0.4)
    strengths: tuple[float, ...] = (0.0, *np.geomspace(1e-2, 1e2, 13).tolist())
    num_seeds: int = 10
    slow_epochs: int = 60
    slow_strengths: tuple[float, ...] = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
    slow_seeds: int = 5
    num_windows: int = 64
    length: int = 48


QUICK = replace(
    Config(),
    names=("wine", "diabetes", "tones", "text"),
    slow_epochs=1,
    slow_strengths=(0.0, 1.0, 10.0),
    slow_seeds=2,
    num_epochs=2,
    noises=(0.0, 0.4),
    strengths=(0.0, 1.0, 10.0),
    num_seeds=2,
)


def kind(c: Config, name: str):
    """`(recipe, pool, held_out, training examples)` of a kind of data."""
    sizes = {"num_epochs": c.num_epochs, "batch_size": 40}
    if name == "tones":
        make_model = lambda num_outputs: make_rnn(num_outputs, width=32)
        recipe = Recipe(
            make_model=make_model, num_outputs=4, num_epochs=c.slow_epochs, batch_size=20
        )
        return recipe, problems.tones(1000, 0.5, 0), problems.tones(1000, 0.5, 1), c.size
    if name == "text":
        make_model = lambda num_outputs: make_byte_lm(num_outputs, width=48)
        recipe = Recipe(
            make_model=make_model, num_outputs=256, num_epochs=c.slow_epochs, batch_size=16
        )
        return recipe, *problems.texts(c.length), c.num_windows
    loss = "squared_error" if name == "diabetes" else "cross_entropy"
    scale = name != "digits"
    recipe = Recipe(num_outputs=OUTPUTS[name], loss=loss, scale_inputs=scale, **sizes)
    return recipe, *problems.parts_of(name), c.size


def measure(c: Config) -> common.Findings:
    values, found, ends, places = {}, [], 0, 0
    for name in c.names:
        recipe, pool, held_out, size = kind(c, name)
        classes, table = name != "diabetes", name in TABLES
        slow = name in ("tones", "text")
        strengths = c.slow_strengths if slow else c.strengths
        num_seeds = c.slow_seeds if slow else c.num_seeds

        def one(
            point, pool, held_out, name=name, classes=classes, table=table, recipe=recipe, size=size
        ):
            train, key = problems.draw(pool, point["seed"], size)
            noise_key, key = jax.random.split(key)
            if table:
                train, held_out = standardize(train, held_out, inputs=True, targets=not classes)
            if classes:
                train = problems.wrong_labels(train, point["noise"], OUTPUTS[name], noise_key)
            else:
                # A share s of the targets' variance is noise: sd^2 = s / (1 - s), their own is 1.
                deviation = jnp.sqrt(point["noise"] / (1 - point["noise"]))
                noise = jax.random.normal(noise_key, train.targets.shape)
                train = train._replace(targets=train.targets + deviation * noise)
                train, held_out = (
                    part._replace(targets=part.targets[:, None]) for part in (train, held_out)
                )
            hparams = {"strength": point["strength"], "learning_rate": 3e-3}
            return problems.judged(recipe, hparams, train, key, held=held_out)[1]

        axes = {"noise": c.noises, "strength": strengths, "seed": range(num_seeds)}
        loss = problems.sweep(one, axes, (pool, held_out))["held_loss"]
        best = problems.best_log10(loss, strengths)
        ends, places = ends + problems.at_ends(loss), places + best.size
        found.append(common.over_seeds(f"{name}: log10 best strength", best[0]))
        found.append(
            common.over_seeds(
                f"{name}: its change up to noise {c.noises[-1]:g}", best[-1] - best[0]
            )
        )
        values[name] = {"best": common.curve(best), "loss": common.curve(loss)}
        values[name]["strengths"] = strengths
    found.append(common.exact(f"best strengths of {places} at an end of the grid", ends))
    return common.Findings(found, values | {"noises": c.noises})


def draw(values, figure):
    axes = figure.subplots(1, 1)
    for name in (name for name in values if name != "noises"):
        common.band(axes, values["noises"], values[name]["best"], name)
    axes.set_xlabel("share of labels wrong (of variance that is noise, for diabetes)")
    axes.set_ylabel("log10 best strength")
    axes.legend()


CLAIMS = (
    Claim(
        "S14-kinds",
        "The best strength differs between two of the kinds of data at least.",
        any_of(differs("log10 best strength, * - *")),
        "The best strength is the same for all kinds of data.",
    ),
    Claim(
        "S14-noise",
        "Noisier data want a smaller strength, on most of the sets.",
        most_of(below("*: its change up to noise *")),
        "Noisier data want a larger strength, on half of the sets at least.",
    ),
)


def derived(results) -> list[Measurement]:
    """Every two sets' difference of best strength.

    The sets' seeds have nothing in common but their number: the errors add, and the degrees of
    freedom are those of the set with fewer runs.
    """
    best = {
        m["what"].split(":")[0]: Measurement(**m)
        for m in results["found"]
        if m["what"].endswith(": log10 best strength")
    }
    return [
        Measurement(
            f"log10 best strength, {a} - {b}",
            best[a].mean - best[b].mean,
            float(np.hypot(best[a].standard_error, best[b].standard_error)),
            min(best[a].n, best[b].n),
        )
        for i, a in enumerate(best)
        for b in list(best)[:i]
    ]


if __name__ == "__main__":
    common.main(__file__, measure, draw, Config(), QUICK, CLAIMS, derived)
