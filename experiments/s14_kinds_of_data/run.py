"""The best strength per kind of data, and where label noise moves it.

Claim: the coefficient depends on the kind of data, and noisier data want a smaller one (S14).
Source: the articles. Images (digits), tables (breast_cancer, wine, diabetes), a sequence (tones
  that rise, fall, hold or waver, synthesised) and text (bytes of Python's standard library, each
  predicted from those before it: a wrong label is another byte). Noise on the inputs is Q8's.
Would change: "depends on the kind" holds if the best strengths of two sets, without added noise,
  differ by two standard errors; "smaller" holds where log10 of the best strength falls from no
  noise to the most by two standard errors, and fails where it rises by as much. The claim holds
  if the first does and the strength falls on some sets and rises on none, and holds in part if
  only the first. A best strength at an end of the grid (zero counts as a step below the smallest)
  lies there or further out.
Run: `python -m experiments s14_kinds_of_data` (196 s on 2 CPU devices, jax 0.10.2)
Found: holds in part. The best strength differs between the sets; with noise it rises on digits,
  breast_cancer, wine, tones, text and falls on none. digits: log10 best strength -0.80 +- 0.19
  (n=10); digits: its change up to noise 0.4 1.07 +- 0.20 (n=10); breast_cancer: log10 best
  strength 0.67 +- 0.12 (n=10); breast_cancer: its change up to noise 0.4 0.70 +- 0.20 (n=10);
  wine: log10 best strength -1.43 +- 0.36 (n=10); wine: its change up to noise 0.4 2.30 +- 0.39
  (n=10); diabetes: log10 best strength 1.067 +- 0.044 (n=10); diabetes: its change up to noise
  0.4 0.100 +- 0.051 (n=10); tones: log10 best strength 0.98 +- 0.22 (n=5); tones: its change up
  to noise 0.4 0.50 +- 0.22 (n=5); text: log10 best strength -1.53 +- 0.32 (n=5); text: its change
  up to noise 0.4 0.82 +- 0.38 (n=5); best strengths of 200 at an end of the grid 31 (exact).
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common, problems
from wdjax.data.arrays import standardize
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


def clearly_apart(a: common.Measurement, b: common.Measurement) -> bool:
    error = (a.standard_error**2 + b.standard_error**2) ** 0.5
    return abs(a.mean - b.mean) > common.CLEAR * error


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
    rows = found[::2]
    # The sets' seeds have nothing in common but their number: the errors add.
    differs = any(clearly_apart(a, b) for i, a in enumerate(rows) for b in rows[:i])
    changes = found[1::2]
    rise = [m.what.split(":")[0] for m in changes if m.clearly_above()]
    fall = [m.what.split(":")[0] for m in changes if m.clearly_below()]
    found.append(common.exact(f"best strengths of {places} at an end of the grid", ends))
    return common.Findings(
        found,
        "holds" if differs and fall and not rise else "holds in part" if differs else "undecided",
        f"The best strength {'differs' if differs else 'does not clearly differ'} between the "
        f"sets; with noise it rises on {', '.join(rise) or 'none'} and falls on "
        f"{', '.join(fall) or 'none'}.",
        values | {"noises": c.noises},
    )


def draw(values, figure):
    axes = figure.subplots(1, 1)
    for name in (name for name in values if name != "noises"):
        common.band(axes, values["noises"], values[name]["best"], name)
    axes.set_xlabel("share of labels wrong (of variance that is noise, for diabetes)")
    axes.set_ylabel("log10 best strength")
    axes.legend()


if __name__ == "__main__":
    common.main(__file__, measure, draw, Config(), QUICK)
