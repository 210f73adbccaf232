"""Does decay slow training: per step, to a given training loss, to a given held-out loss, in all?

Claim: decay slows training: time, efficiency, cost (Q3).
Source: the first article's FAQ.
Would change: Q3-step: any of (`time per step, *` above 1.05); Q3-epochs: `epochs to training loss
  *` above 0; Q3-efficiency: `epochs to the best held-out loss of zero, *` above 0; Q3-final:
  `final held-out loss *` above 0; Q3-lowest: `lowest held-out loss on the way, *` above 0;
  Q3-choosing: `seconds to choose *` above 1; Q3-program: `seconds to choose *` below 1 times
  `trainings whose steps choosing takes`.
Note: a run that never reaches a loss counts as the last epoch, so that a difference of epochs is
  at least what is shown.
Run: `python -m experiments q03_time` (43 s on 2 CPU devices, jax 0.10.2)
Found: Undecided: A step with decay takes over 5 % longer than one without (Q3-step undecided, p =
  0.19). A given training loss takes more epochs to reach at the chosen strength than without
  decay (Q3-epochs holds, p < 0.0001). The best held-out loss that a run without decay reaches on
  its way takes more epochs to reach at the chosen strength (Q3-efficiency holds, p < 0.0001).
  After equally many steps the held-out loss is lower with decay than without (Q3-final holds, p =
  0.00019). Undecided: The lowest held-out loss on the way is lower with decay than without
  (Q3-lowest undecided, p = 0.2). Choosing a strength by folds takes longer than one training
  (Q3-choosing holds, p < 0.0001). Undecided: As one program, choosing takes less time than its
  steps would one training after another (Q3-program undecided, p = 0.16).
"""

import time
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common, problems
from experiments.claims import Claim, Measurement, above, any_of, below, exact
from wdjax.losses import cross_entropy
from wdjax.recipe import Recipe, recipe_fit, recipe_score
from wdjax.selection import cross_validate_pure, grid_product, kfold
from wdjax.training import make_fit_and_score


@dataclass(frozen=True)
class Config:
    size: int = 150
    num_epochs: int = 300
    label_noise: float = 0.1
    learning_rate: float = 3e-3
    strengths: tuple[float, ...] = (0.0, 0.1, 0.3, 1.0, 3.0)
    train_loss: float = 0.2
    num_seeds: int = 10
    timed_epochs: int = 200
    timed_pairs: int = 30
    num_folds: int = 5
    timed_choices: int = 5


QUICK = replace(
    Config(),
    num_epochs=5,
    strengths=(0.0, 1.0),
    num_seeds=2,
    timed_epochs=2,
    timed_pairs=3,
    timed_choices=2,
)


def seconds(c: Config, pool) -> dict[str, np.ndarray]:
    """`[pair]` seconds of one run with and one without decay, alternating in one process."""
    runs = {}
    for name, decay, strength in (
        # Coupled decay of nothing is an optimiser without decay, and no penalty is given.
        ("without", "coupled", None),
        ("decoupled", "decoupled", 1.0),
        ("coupled", "coupled", 1e-3),
    ):
        recipe = Recipe(decay=decay, num_epochs=c.timed_epochs, batch_size=50)

        def one(seed, pool, recipe=recipe, strength=strength):
            train, key = problems.draw(pool, seed, c.size)
            if strength is None:
                return recipe_fit_plain(recipe)(train, key, c.learning_rate)
            hparams = {"strength": strength, "learning_rate": c.learning_rate}
            return recipe_fit(recipe)(hparams, train, key).params

        runs[name] = jax.jit(one)
        jax.block_until_ready(runs[name](0, pool))
    taken = {name: [] for name in runs}
    for pair in range(c.timed_pairs):
        for name in list(runs) if pair % 2 == 0 else list(runs)[::-1]:
            start = time.perf_counter()
            jax.block_until_ready(runs[name](pair, pool))
            taken[name].append(time.perf_counter() - start)
    return {name: np.array(times) for name, times in taken.items()}


def seconds_of_choosing(c: Config, pool) -> np.ndarray:
    """`[pair]` seconds of a cross-validation over those of one training, on one device."""
    recipe = Recipe(num_epochs=c.timed_epochs, batch_size=50)
    fit_and_score = make_fit_and_score(recipe_fit(recipe), recipe_score(recipe))
    grid = grid_product(strength=problems.STRENGTHS, learning_rate=c.learning_rate)

    def choosing(seed, pool):
        data, key = problems.draw(pool, seed, c.size)
        folds = kfold(key, c.size, c.num_folds)
        return cross_validate_pure(fit_and_score, grid, data, folds, key=key)

    def training(seed, pool):
        data, key = problems.draw(pool, seed, c.size)
        hparams = {"strength": 1.0, "learning_rate": c.learning_rate}
        return recipe_fit(recipe)(hparams, data, key).params

    runs, taken = [jax.jit(choosing), jax.jit(training)], []
    for run in runs:
        jax.block_until_ready(run(0, pool))
    for pair in range(c.timed_choices):
        times = []
        for run in runs:
            start = time.perf_counter()
            jax.block_until_ready(run(pair, pool))
            times.append(time.perf_counter() - start)
        taken.append(times[0] / times[1])
    return np.array(taken)


def recipe_fit_plain(recipe: Recipe):
    """The recipe's run with nothing of decay in it."""
    import optax

    from wdjax.recipe import DIRECTIONS, recipe_model
    from wdjax.training import make_fit

    def fit(train, key, learning_rate):
        descent = optax.scale_by_learning_rate(learning_rate)
        run = make_fit(
            recipe_model(recipe),
            cross_entropy,
            make_tx=lambda h: optax.chain(DIRECTIONS[recipe.optimizer](), descent),
            num_epochs=recipe.num_epochs,
            batch_size=recipe.batch_size,
        )
        return run({}, train, key).params

    return fit


def first_epoch(losses: np.ndarray, bound) -> np.ndarray:
    """The first epoch, from 1, at which `losses[..., epoch]` are at most the bound, else inf."""
    reached = losses <= bound
    return np.where(reached.any(axis=-1), reached.argmax(axis=-1) + 1.0, np.inf)


def learning_curves(c: Config, parts: tuple) -> tuple[np.ndarray, np.ndarray, int]:
    """Losses `[strength, seed, epoch]` of the held-out and the training part; the chosen row."""
    recipe = Recipe(num_epochs=c.num_epochs, batch_size=50)
    score = recipe_score(recipe)

    def one(point, pool, choose_by, report_on):
        train, key = problems.draw(pool, point["seed"], c.size)
        observe = lambda fit: jnp.stack([score(fit, report_on)["loss"], score(fit, train)["loss"]])
        hparams = {"strength": point["strength"], "learning_rate": c.learning_rate}
        fit = recipe_fit(recipe, observe=observe)(hparams, train, key)
        return {"curves": fit.history["observed"], "choose": score(fit, choose_by)["loss"]}

    axes = {"strength": c.strengths, "seed": range(c.num_seeds)}
    scores = problems.sweep(one, axes, parts)
    best = problems.chosen_row(scores["choose"])
    return scores["curves"][..., 0], scores["curves"][..., 1], best


def cost_of_choosing(c: Config, pool) -> list[common.Measurement]:
    folds, candidates = c.num_folds, len(problems.STRENGTHS)
    return [
        common.over_seeds(
            f"seconds to choose among {candidates} strengths by {folds} folds / one training",
            seconds_of_choosing(c, pool),
        ),
        common.exact(
            f"trainings to choose among {candidates} strengths by {folds} folds, and one more",
            candidates * folds + 1,
        ),
    ]


def measure(c: Config) -> common.Findings:
    pool, held_out = problems.parts_of("digits", noise=c.label_noise)
    taken = seconds(c, pool)
    ratios = {name: taken[name] / taken["without"] for name in ("decoupled", "coupled")}
    held, train, best = learning_curves(c, (pool, *problems.halves(held_out)))
    limit = float(c.num_epochs)
    to_train = np.minimum(first_epoch(train, c.train_loss), limit)
    to_held = np.minimum(first_epoch(held, held[:1].min(axis=-1, keepdims=True)), limit)
    reached = (first_epoch(train, c.train_loss) <= limit).astype(float)
    to_train_loss = f"epochs to training loss {c.train_loss:g}"
    to_best_of_zero = "epochs to the best held-out loss of zero"
    found = [
        common.over_seeds("time per step, decoupled / without", ratios["decoupled"]),
        common.over_seeds("time per step, coupled / without", ratios["coupled"]),
        common.over_seeds(f"{to_train_loss}, chosen - zero", to_train[best] - to_train[0]),
        common.over_seeds(f"{to_best_of_zero}, chosen - zero", to_held[best] - to_held[0]),
        common.over_seeds(
            "final held-out loss for the same steps, zero - chosen",
            held[0, :, -1] - held[best, :, -1],
        ),
        common.over_seeds(
            "lowest held-out loss on the way, zero - chosen",
            held[0].min(axis=1) - held[best].min(axis=1),
        ),
        common.over_seeds(
            f"share of runs that reach training loss {c.train_loss:g}, chosen", reached[best]
        ),
        *cost_of_choosing(c, pool),
    ]
    return common.Findings(
        found,
        {
            "seconds": taken,
            "ratio_range": {name: [r.min(), np.median(r), r.max()] for name, r in ratios.items()},
            "curves": {
                name: {
                    "held-out": common.curve(held[row].T),
                    "training": common.curve(train[row].T),
                }
                for name, row in (("zero", 0), ("chosen", best), ("largest", -1))
            },
            "to_train": common.curve(to_train),
            "strengths": c.strengths,
            "chosen": c.strengths[best],
            "cap": "runs that never reach a loss count as the last epoch",
        },
        [
            common.extreme(f"{what} (Q3)", "lower", epochs[0], epochs[best], epochs[-1])
            for what, epochs in ((to_train_loss, to_train), (to_best_of_zero, to_held))
        ],
    )


def draw(values, figure):
    axes = figure.subplots(1, 2)
    for ax, what in zip(axes, ("training", "held-out"), strict=True):
        for name, lines in values["curves"].items():
            epochs = np.arange(1, len(lines[what]["mean"]) + 1)
            ax.plot(epochs, lines[what]["mean"], label=name)
        ax.set_xlabel("epoch")
        ax.set_ylabel(f"{what} loss")
        ax.set_xscale("log")
        ax.set_ylim(0, 1.5)
    axes[0].legend(title="strength")


CLAIMS = (
    Claim(
        "Q3-step",
        "A step with decay takes over 5 % longer than one without.",
        any_of(above("time per step, *", 1.05)),
        "A step with decay takes less than 5 % longer than one without.",
    ),
    Claim(
        "Q3-epochs",
        "A given training loss takes more epochs to reach at the chosen strength than without "
        "decay.",
        above("epochs to training loss *"),
        "A given training loss takes fewer epochs to reach at the chosen strength than without "
        "decay.",
    ),
    Claim(
        "Q3-efficiency",
        "The best held-out loss that a run without decay reaches on its way takes more epochs to "
        "reach at the chosen strength.",
        above("epochs to the best held-out loss of zero, *"),
        "The best held-out loss that a run without decay reaches on its way takes fewer epochs "
        "to reach at the chosen strength.",
    ),
    Claim(
        "Q3-final",
        "After equally many steps the held-out loss is lower with decay than without.",
        above("final held-out loss *"),
        "After equally many steps the held-out loss is higher with decay than without.",
    ),
    Claim(
        "Q3-lowest",
        "The lowest held-out loss on the way is lower with decay than without.",
        above("lowest held-out loss on the way, *"),
        "The lowest held-out loss on the way is higher with decay than without.",
    ),
    Claim(
        "Q3-choosing",
        "Choosing a strength by folds takes longer than one training.",
        above("seconds to choose *", 1.0),
        "Choosing a strength by folds takes no longer than one training.",
    ),
    Claim(
        "Q3-program",
        "As one program, choosing takes less time than its steps would one training after another.",
        below("seconds to choose *", 1.0, of="trainings whose steps choosing takes"),
        "As one program, choosing takes more time than its steps would one training after another.",
    ),
)


def derived(results) -> list[Measurement]:
    """How many whole trainings the steps of all fits of the folds make up."""
    c = Config(**results["config"])
    steps = lambda rows: rows // 50  # A batch is 50; what is left waits for the next epoch.
    (fits,) = (m["mean"] - 1 for m in results["found"] if m["what"].startswith("trainings to"))
    share = steps(c.size - -(-c.size // c.num_folds)) / steps(c.size)
    return [exact("trainings whose steps choosing takes", fits * share)]


if __name__ == "__main__":
    common.main(__file__, measure, draw, Config(), QUICK, CLAIMS, derived)
