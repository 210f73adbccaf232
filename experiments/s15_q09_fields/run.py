"""One curve for every field: held-out loss against strength, in vision, language and signals.

Claim: decay works for most models and fields: vision, language, speech (S15, Q9).
Source: the articles. Data: digits (scikit-learn), enlarged for the CNN; the source of Python's
  standard library; tones that rise, fall, hold or waver, synthesised here, in place of speech.
Would change: S15: all of (any of (`digits*: held-out loss, zero - chosen` above 0), any of
  (`tones*: held-out loss, zero - chosen` above 0), any of (`bytes*: held-out loss, zero - chosen`
  above 0)); Q9: most of (`*: held-out loss, zero - chosen` above 0).
Note: the six networks see three sources of data, digits, tones and text; those of one source are
  not independent fields. The strength is chosen on other rows than it is reported on.
Run: `python -m experiments s15_q09_fields` (94 s on 2 CPU devices, jax 0.10.2)
Found: In each of the three sources of data (digits, synthetic tones, source code) the chosen
  strength lowers the held-out loss of one network at least (S15 holds, p = 0.018). Undecided: The
  chosen strength lowers the held-out loss of most of the networks tried (Q9 undecided, p = 0.11).
"""

from dataclasses import dataclass, replace

import jax
import numpy as np

from experiments import common, problems
from experiments.claims import Claim, above, all_of, any_of, most_of
from wdjax.models import make_byte_lm, make_byte_transformer, make_cnn, make_mlp, make_rnn
from wdjax.recipe import Recipe


@dataclass(frozen=True)
class Config:
    fields: tuple[str, ...] = (
        "digits, MLP",
        "digits, CNN",
        "digits by rows, GRU",
        "tones, GRU",
        "bytes, GRU",
        "bytes, transformer",
    )
    num_epochs: int = 60
    size: int = 100
    num_windows: int = 64
    length: int = 48
    strengths: tuple[float, ...] = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
    label_noise: float = 0.1
    num_seeds: int = 5


QUICK = replace(
    Config(), fields=("digits, MLP", "tones, GRU"), num_epochs=1, strengths=(0.0, 3.0), num_seeds=2
)


def field(c: Config, name: str):
    """`(recipe, pool, held_out, number of training examples)`."""
    epochs = {"num_epochs": c.num_epochs, "batch_size": 20}
    if name.startswith("digits"):
        pool, held_out = problems.parts_of("digits", noise=c.label_noise)
        make_model = {"MLP": make_mlp, "GRU": lambda n: make_rnn(n, width=32), "CNN": make_cnn}
        if name.endswith("CNN"):
            enlarge = lambda x: jax.image.resize(x, (len(x), 18, 18, 1), "linear")
            pool, held_out = (b._replace(inputs=enlarge(b.inputs)) for b in (pool, held_out))
        model = make_model[name.split(", ")[1]]
        return Recipe(make_model=model, score_rows=128, **epochs), pool, held_out, c.size
    if name.startswith("tones"):
        recipe = Recipe(make_model=lambda n: make_rnn(n, width=32), num_outputs=4, **epochs)
        return recipe, problems.tones(1000, 0.5, 0), problems.tones(1000, 0.5, 1), c.size
    pool, held_out = problems.texts(c.length)
    make_model = {
        "GRU": lambda n: make_byte_lm(n, width=48),
        "transformer": lambda n: make_byte_transformer(n, width=32, depth=2),
    }[name.split(", ")[1]]
    recipe = Recipe(make_model=make_model, num_outputs=256, **epochs | {"batch_size": 16})
    return recipe, pool, held_out, c.num_windows


def measure(c: Config) -> common.Findings:
    values, found = {}, []
    for name in c.fields:
        recipe, pool, held_out, size = field(c, name)
        choose_by, report_on = problems.halves(held_out)

        def one(point, pool, choose_by, report_on, recipe=recipe, size=size):
            train, key = problems.draw(pool, point["seed"], size)
            hparams = {"strength": point["strength"], "learning_rate": 3e-3}
            parts = {"choose": choose_by, "report": report_on}
            return problems.judged(recipe, hparams, train, key, **parts)[1]

        axes = {"strength": c.strengths, "seed": range(c.num_seeds)}
        scores = problems.sweep(one, axes, (pool, choose_by, report_on))
        best = problems.chosen_row(scores["choose_loss"])
        held = scores["report_loss"]
        found.append(
            common.over_seeds(f"{name}: held-out loss, zero - chosen", held[0] - held[best])
        )
        values[name] = {
            "held-out": common.curve(held),
            "perplexity": common.curve(np.exp(held)),
            "accuracy": common.curve(scores["report_accuracy"]),
            "training": common.curve(scores["train_loss"]),
            "chosen": c.strengths[best],
        }
        print(found[-1], "at strength", c.strengths[best], flush=True)
    return common.Findings(found, values | {"strengths": c.strengths})


def draw(values, figure):
    names = [name for name in values if name != "strengths"]
    figure.set_size_inches(7.2, 4.6)
    grid = figure.subplots(2, -(-len(names) // 2), squeeze=False)
    for axes, name in zip(grid.ravel(), names, strict=False):
        places = common.strength_axis(axes, values["strengths"])
        common.band(axes, places, values[name]["held-out"], "held-out")
        common.band(axes, places, values[name]["training"], "training")
        axes.set_title(name, fontsize=8)
        axes.set_ylabel("cross-entropy")
    grid[0, 0].legend()


CLAIMS = (
    Claim(
        "S15",
        "In each of the three sources of data (digits, synthetic tones, source code) the chosen "
        "strength lowers the held-out loss of one network at least.",
        all_of(
            any_of(above("digits*: held-out loss, zero - chosen")),
            any_of(above("tones*: held-out loss, zero - chosen")),
            any_of(above("bytes*: held-out loss, zero - chosen")),
        ),
        "In one of the three sources of data the chosen strength raises the held-out loss of "
        "every network.",
    ),
    Claim(
        "Q9",
        "The chosen strength lowers the held-out loss of most of the networks tried.",
        most_of(above("*: held-out loss, zero - chosen")),
        "The chosen strength raises the held-out loss of half of the networks tried, or more.",
    ),
)


if __name__ == "__main__":
    common.main(__file__, measure, draw, Config(), QUICK, CLAIMS)
