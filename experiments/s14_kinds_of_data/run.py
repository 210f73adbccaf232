"""The best strength per kind of data, and where label noise moves it.

Claim: the coefficient depends on the kind of data, and noisier data want a smaller one (S14).
Source: the articles.
Would change: "depends on the kind" fails if the best strengths of the sets, without added noise,
  do not differ by two standard errors; "smaller" holds where log10 of the best strength falls
  from no noise to the most by two standard errors, and fails where it rises by as much.
Run: `python -m experiments s14_kinds_of_data` (222 s on 2 CPU devices, jax 0.10.2)
Found: holds in part. The best strength differs between the sets; with noise it rises on digits,
  breast_cancer, wine and falls on none. digits: log10 best strength -0.80 +- 0.19 (n=10); digits:
  its change up to noise 0.4 1.07 +- 0.20 (n=10); breast_cancer: log10 best strength 0.67 +- 0.12
  (n=10); breast_cancer: its change up to noise 0.4 0.70 +- 0.20 (n=10); wine: log10 best strength
  -1.43 +- 0.36 (n=10); wine: its change up to noise 0.4 2.30 +- 0.39 (n=10); diabetes: log10 best
  strength 1.067 +- 0.044 (n=10); diabetes: its change up to noise 0.4 0.100 +- 0.051 (n=10).
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common, problems
from wdjax.data.arrays import standardize
from wdjax.recipe import Recipe

OUTPUTS = {"digits": 10, "breast_cancer": 2, "wine": 3, "diabetes": 1}


@dataclass(frozen=True)
class Config:
    names: tuple[str, ...] = ("digits", "breast_cancer", "wine", "diabetes")
    size: int = 80
    num_epochs: int = 150
    noises: tuple[float, ...] = (0.0, 0.1, 0.2, 0.4)
    strengths: tuple[float, ...] = (0.0, *np.geomspace(1e-2, 1e2, 13).tolist())
    num_seeds: int = 10


QUICK = replace(
    Config(),
    names=("wine", "diabetes"),
    num_epochs=2,
    noises=(0.0, 0.4),
    strengths=(0.0, 1.0, 10.0),
    num_seeds=2,
)


def best_log10(losses, strengths):
    """log10 of the best strength, `[level, seed]`; zero counts as one step below the smallest."""
    s = np.asarray(strengths)
    s = np.where(s > 0, s, s[s > 0][0] ** 2 / s[s > 0][1])
    return np.log10(s)[np.argmin(losses, axis=1)]


def measure(c: Config) -> common.Findings:
    values, found, at_rest = {}, [], {}
    for name in c.names:
        pool, held_out = problems.parts_of(name)
        classes = name != "diabetes"
        recipe = Recipe(
            num_outputs=OUTPUTS[name],
            loss="cross_entropy" if classes else "squared_error",
            num_epochs=c.num_epochs,
            batch_size=40,
            scale_inputs=name != "digits",
        )

        def one(point, pool, held_out, name=name, classes=classes, recipe=recipe):
            train, key = problems.draw(pool, point["seed"], c.size)
            noise_key, key = jax.random.split(key)
            if name != "digits":
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

        axes = {"noise": c.noises, "strength": c.strengths, "seed": range(c.num_seeds)}
        loss = problems.sweep(one, axes, (pool, held_out))["held_loss"]
        best = best_log10(loss, c.strengths)
        at_rest[name] = best[0]
        found.append(common.over_seeds(f"{name}: log10 best strength", best[0]))
        found.append(
            common.over_seeds(
                f"{name}: its change up to noise {c.noises[-1]:g}", best[-1] - best[0]
            )
        )
        values[name] = {"best": common.curve(best), "loss": common.curve(loss)}
    rows = list(at_rest.values())
    differs = any(
        common.over_seeds("", a - b).clearly_above() or common.over_seeds("", b - a).clearly_above()
        for i, a in enumerate(rows)
        for b in rows[:i]
    )
    changes = found[1::2]
    rise = [m.what.split(":")[0] for m in changes if m.clearly_above()]
    fall = [m.what.split(":")[0] for m in changes if m.clearly_below()]
    return common.Findings(
        found,
        "holds in part" if differs and not fall else "holds" if fall and not rise else "undecided",
        f"The best strength {'differs' if differs else 'does not clearly differ'} between the "
        f"sets; with noise it rises on {', '.join(rise) or 'none'} and falls on "
        f"{', '.join(fall) or 'none'}.",
        values | {"noises": c.noises, "strengths": c.strengths},
    )


def draw(values, figure):
    axes = figure.subplots(1, 1)
    for name in (name for name in values if name not in ("noises", "strengths")):
        common.band(axes, values["noises"], values[name]["best"], name)
    axes.set_xlabel("share of labels wrong (of variance that is noise, for diabetes)")
    axes.set_ylabel("log10 best strength")
    axes.legend()


if __name__ == "__main__":
    common.main(__file__, measure, draw, Config(), QUICK)
