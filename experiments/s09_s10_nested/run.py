"""What choosing by cross-validation buys, what its score flatters, and how often the rules agree.

Claim: the coefficient can be chosen by cross-validation and grid search, which also judges how
  well the model generalises (S9, S10).
Source: the articles; nested cross-validation and the bias of the chosen score: Cawley & Talbot
  2010.
Would change: the claim holds if the chosen strength is better on the large test part than zero by
  two standard errors, and its score does not differ by as much from the test loss of its refit;
  it holds in part if only the first, and is undecided otherwise. The nested estimates are told
  beside them.
Run: `python -m experiments s09_s10_nested` (33 s on 2 CPU devices, jax 0.10.2)
Found: holds. Choosing buys a lower test loss; the chosen score is not clearly off, the nested one
  too high (a fold trains on 75% of the rows). test loss, zero - chosen by the minimum 0.216 +-
  0.012 (n=20); score of the chosen strength - its test loss 0.033 +- 0.026 (n=20); nested score -
  test loss 0.054 +- 0.026 (n=20); nested score - score of the chosen 0.0211 +- 0.0063 (n=20);
  nested estimate of what choosing buys - what it buys on the test part -0.054 +- 0.026 (n=20);
  share of data sets where the two rules agree 0.250 +- 0.099 (n=20); test loss,
  one-standard-error rule - minimum 0.0462 +- 0.0075 (n=20).
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common, problems
from wdjax.recipe import Recipe, recipe_fit, recipe_score
from wdjax.selection import cross_validate_pure, grid_product, kfold
from wdjax.selection.folds import take


@dataclass(frozen=True)
class Config:
    size: int = 120
    num_epochs: int = 60
    label_noise: float = 0.1
    outer_folds: int = 4
    inner_folds: int = 4
    strengths: tuple[float, ...] = (0.0, *np.geomspace(0.03, 30.0, 10).tolist())
    num_seeds: int = 20


QUICK = replace(Config(), num_epochs=2, strengths=(0.0, 1.0, 10.0), num_seeds=2)


def standard_errors(folds):
    """`[row, fold] -> [row]`."""
    return jnp.std(folds, axis=1, ddof=1) / folds.shape[1] ** 0.5


def rows_chosen(by_fold):
    """Of `[row, fold]`: the row of lowest mean, and the last within one standard error of it."""
    mean = jnp.mean(by_fold, axis=1)
    best = jnp.argmin(mean)
    within = mean <= mean[best] + standard_errors(by_fold)[best]
    return best, jnp.max(jnp.where(within, jnp.arange(len(mean)), 0))


def make_trial(c: Config):
    """`trial(point, pool, noisy)`: a strength chosen on drawn data, its score and its test loss."""
    recipe = Recipe(num_epochs=c.num_epochs, batch_size=30)
    fit, score = recipe_fit(recipe), recipe_score(recipe)
    grid = grid_product(strength=c.strengths, learning_rate=3e-3)
    numbers = lambda row: {name: jnp.asarray(axis, jnp.float32)[row] for name, axis in grid.items()}

    def fit_and_score(hparams, train, valid, key):
        return score(fit(hparams, train, key), valid)["loss"]

    def nested_scores(data, folds, nested_key, run_key):
        """Of the strength chosen on the rest of each outer fold, and of zero: means over folds."""

        def outer(fold):
            index = jax.tree.map(lambda x: x[fold], folds)
            train = take(data, index.train, index.train_mask)
            valid = take(data, index.valid, index.valid_mask)
            inner = kfold(
                jax.random.fold_in(nested_key, fold), train.weights.shape[0], c.inner_folds
            )
            scores = cross_validate_pure(fit_and_score, grid, train, inner, key=run_key)
            chosen = jnp.argmin(jnp.mean(scores, axis=(1, 2)))
            fold_key = jax.random.fold_in(run_key, fold)
            at = lambda row: fit_and_score(numbers(row), train, valid, fold_key)
            return at(chosen), at(0)

        return map(jnp.mean, jax.lax.map(outer, jnp.arange(c.outer_folds)))

    def trial(point, pool, noisy):
        data, key = problems.draw(pool, point["seed"], c.size)
        folds_key, nested_key, run_key = jax.random.split(key, 3)
        folds = kfold(folds_key, c.size, c.outer_folds)
        by_fold = cross_validate_pure(fit_and_score, grid, data, folds, key=run_key)[..., 0]
        best, simplest = rows_chosen(by_fold)
        nested, nested_zero = nested_scores(data, folds, nested_key, run_key)
        rows = jnp.array([0, best, simplest])
        truth = jax.vmap(lambda row: fit_and_score(numbers(row), data, noisy, run_key))(rows)
        return {
            "cv": jnp.mean(by_fold, axis=1)[best],
            "nested": nested,
            "nested_zero": nested_zero,
            "zero": truth[0],
            "min": truth[1],
            "one_standard_error": truth[2],
            "rows": rows,
        }

    return trial


def judge(c: Config, found: list[common.Measurement]) -> tuple[str, str]:
    """The verdict, and why."""
    buys = found[0].clearly_above()
    off = found[1].clearly_above() or found[1].clearly_below()
    return (
        "holds" if buys and not off else "holds in part" if buys else "undecided",
        f"Choosing {'buys a lower test loss' if buys else 'buys nothing clear'}; the chosen score "
        f"is {side(found[1])}, the nested one {side(found[2])} (a fold trains on "
        f"{1 - 1 / c.outer_folds:.0%} of the rows).",
    )


def side(difference: common.Measurement) -> str:
    """On which side of the truth an estimate lies."""
    if difference.clearly_below():
        return "too low"
    return "too high" if difference.clearly_above() else "not clearly off"


def measure(c: Config) -> common.Findings:
    pool, held_out = problems.parts_of("digits", test=0.6, noise=c.label_noise)
    # The pool's wrong labels are what cross-validation sees; the truth needs the same kind.
    noisy = problems.wrong_labels(held_out, c.label_noise, 10, jax.random.key(1))
    scores = problems.sweep(make_trial(c), {"seed": range(c.num_seeds)}, (pool, noisy))
    agree = (scores["rows"][:, 1] == scores["rows"][:, 2]).astype(float)
    found = [
        common.over_seeds(
            "test loss, zero - chosen by the minimum", scores["zero"] - scores["min"]
        ),
        common.over_seeds(
            "score of the chosen strength - its test loss", scores["cv"] - scores["min"]
        ),
        common.over_seeds("nested score - test loss", scores["nested"] - scores["min"]),
        common.over_seeds("nested score - score of the chosen", scores["nested"] - scores["cv"]),
        common.over_seeds(
            "nested estimate of what choosing buys - what it buys on the test part",
            (scores["nested_zero"] - scores["nested"]) - (scores["zero"] - scores["min"]),
        ),
        common.over_seeds("share of data sets where the two rules agree", agree),
        common.over_seeds(
            "test loss, one-standard-error rule - minimum",
            scores["one_standard_error"] - scores["min"],
        ),
    ]
    return common.Findings(found, *judge(c, found), {**scores, "strengths": c.strengths})


def draw(values, figure):
    left, right = figure.subplots(1, 2)
    truth = np.array(values["min"])
    for name, label in (("cv", "score of the chosen"), ("nested", "nested score")):
        left.plot(truth, values[name], "o", markersize=3, label=label)
    ends = [truth.min(), truth.max()]
    left.plot(ends, ends, "k--", lw=1)
    left.set_xlabel("test loss of the chosen refit")
    left.set_ylabel("estimate of it")
    left.legend()
    rows = np.array(values["rows"])
    bins = np.arange(len(values["strengths"]) + 1) - 0.5
    right.hist([rows[:, 1], rows[:, 2]], bins=bins, label=["minimum", "one standard error"])
    right.set_xticks(range(len(values["strengths"])), [f"{s:.2g}" for s in values["strengths"]])
    right.tick_params(axis="x", rotation=60)
    right.set_xlabel("chosen strength")
    right.set_ylabel("data sets")
    right.legend()


if __name__ == "__main__":
    common.main(__file__, measure, draw, Config(), QUICK)
