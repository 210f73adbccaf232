"""Where does the best strength go when the data get noisier?

Claim: noisier data want a smaller coefficient (Q8, S14).
Source: the articles. Against it: with weights ~ N(0, 1), ridge is the posterior mean at strength
  `noise^2 / n`, that is `d noise^2 / (n |w|^2)` (Dobriban & Wager 2018, arXiv:1507.03003), which
  rises with the noise.
Would change: Q8: any of (`ridge: log10 best strength *` below 0, `MLP: log10 best strength, *`
  below 0).
Note: a best strength at an end of the grid (zero counts as a step below the smallest) lies there
  or further out, so that a move from it is at least what is shown.
Run: `python -m experiments q08_noise_and_best_strength` (43 s on 2 CPU devices, jax 0.10.2)
Found: Noisier data want a larger strength, in ridge and in the network (Q8 fails, p < 0.0001).
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common, problems
from experiments.claims import Claim, any_of, below
from wdjax.recipe import Recipe


@dataclass(frozen=True)
class Config:
    num_features: int = 50
    num_examples: int = 100
    noises: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    ridge_strengths: tuple[float, ...] = tuple(np.geomspace(1e-3, 1e2, 41).tolist())
    ridge_seeds: int = 50
    size: int = 150
    num_epochs: int = 200
    label_noises: tuple[float, ...] = (0.0, 0.1, 0.2, 0.4)
    input_noises: tuple[float, ...] = (0.0, 0.2, 0.4, 0.8)
    strengths: tuple[float, ...] = (0.0, *np.geomspace(1e-2, 1e2, 13).tolist())
    num_seeds: int = 10


QUICK = replace(Config(), ridge_seeds=2, num_epochs=4, num_seeds=2, strengths=(0.0, 0.1, 1.0, 10.0))


def risks(point, c: Config):
    """The exact risk of ridge at every strength: `|w_hat - w|^2 / 2`."""
    x_key, w_key, noise_key = jax.random.split(jax.random.key(point["seed"]), 3)
    x = jax.random.normal(x_key, (c.num_examples, c.num_features))
    w = jax.random.normal(w_key, (c.num_features,))
    y = x @ w + point["noise"] * jax.random.normal(noise_key, (c.num_examples,))
    gram, moment = x.T @ x / c.num_examples, x.T @ y / c.num_examples
    solve = lambda s: jnp.linalg.solve(gram + s * jnp.eye(c.num_features), moment)
    strengths = jnp.asarray(c.ridge_strengths)
    return jnp.sum((jax.vmap(solve)(strengths) - w[None]) ** 2, axis=1) / 2


def networks(c: Config, axis: str, levels):
    """Held-out losses of an MLP on digits, `[level, strength, seed]`."""
    pool, held_out = problems.parts_of("digits")
    recipe = Recipe(num_epochs=c.num_epochs, batch_size=50)
    noise = {"label": 0.0, "input": 0.0}

    def worse(batch, level, key):
        label_key, input_key = jax.random.split(key)
        at = noise | {axis: level}
        batch = problems.wrong_labels(batch, at["label"], 10, label_key)
        blur = at["input"] * jax.random.normal(input_key, batch.inputs.shape)
        return batch._replace(inputs=batch.inputs + blur)

    def one(point, pool, held_out):
        train, key = problems.draw(pool, point["seed"], c.size)
        train_key, valid_key, run_key = jax.random.split(key, 3)
        train = worse(train, point["level"], train_key)
        noisy = worse(held_out, point["level"], valid_key)
        # Clean labels, but inputs of the same kind as those trained on.
        clean = held_out._replace(inputs=noisy.inputs)
        hparams = {"strength": point["strength"], "learning_rate": 3e-3}
        return problems.judged(recipe, hparams, train, run_key, clean=clean, noisy=noisy)[1]

    axes = {"level": levels, "strength": c.strengths, "seed": range(c.num_seeds)}
    return problems.sweep(one, axes, (pool, held_out))


def measure(c: Config) -> common.Findings:
    # On one device: batched LAPACK calls of two CPU devices in one program wait for each other.
    of_seeds = jax.vmap(lambda n, s: risks({"noise": n, "seed": s}, c), (None, 0))
    of_noises = jax.jit(jax.vmap(of_seeds, (0, None)))
    risk = np.asarray(of_noises(jnp.asarray(c.noises), jnp.arange(c.ridge_seeds)))
    ridge = np.log10(c.ridge_strengths)[np.argmin(risk, axis=2)]
    theory = np.log10(np.square(c.noises) / c.num_examples)
    x = theory - theory.mean()
    slope = common.over_seeds("ridge: log10 best strength per log10 noise^2", x @ ridge / (x @ x))
    found, values = [slope], {"theory": theory, "ridge": common.curve(ridge), "noises": c.noises}
    ends, places = 0, 0
    for axis, levels in (("label", c.label_noises), ("input", c.input_noises)):
        scores = networks(c, axis, levels)
        for judge in ("clean", "noisy"):
            best = problems.best_log10(scores[f"{judge}_loss"], c.strengths)
            told = axis == "label" or judge == "clean"
            ends += told * problems.at_ends(scores[f"{judge}_loss"])
            places += told * best.size
            words = f"MLP: log10 best strength, {axis} noise {levels[-1]:g} - 0, {judge} labels"
            if told:
                found.append(common.over_seeds(words, best[-1] - best[0]))
            values[f"{axis} {judge}"] = {
                "best": common.curve(best),
                "loss": common.curve(scores[f"{judge}_loss"]),
                "accuracy": common.curve(scores[f"{judge}_accuracy"]),
            }
    found.append(common.exact(f"MLP: best strengths of {places} at an end of the grid", ends))
    return common.Findings(
        found,
        values
        | {
            "label levels": c.label_noises,
            "input levels": c.input_noises,
            "strengths": c.strengths,
        },
    )


def draw(values, figure):
    left, middle, right = figure.subplots(1, 3)
    left.plot(values["noises"], values["theory"], "k--", label="theory")
    common.band(left, values["noises"], values["ridge"], "lowest risk")
    left.set_xscale("log", base=2)
    left.set_xlabel("noise (ridge)")
    left.set_ylabel("log10 best strength")
    left.legend()
    for axes, axis, label in (
        (middle, "label", "share of labels wrong"),
        (right, "input", "noise on the inputs"),
    ):
        for judge in ("clean", "noisy") if axis == "label" else ("clean",):
            line = values[f"{axis} {judge}"]["best"]
            common.band(axes, values[f"{axis} levels"], line, f"by {judge} labels")
        axes.set_xlabel(f"{label} (MLP)")
        axes.legend()


CLAIMS = (
    Claim(
        "Q8",
        "Noisier data want a smaller strength, in ridge or in the network.",
        any_of(below("ridge: log10 best strength *"), below("MLP: log10 best strength, *")),
        "Noisier data want a larger strength, in ridge and in the network.",
    ),
)


if __name__ == "__main__":
    common.main(__file__, measure, draw, Config(), QUICK, CLAIMS)
