"""What choosing by cross-validation buys, what its score flatters, and how often the rules agree.

Claim: the coefficient can be chosen by cross-validation and grid search, which also judges how
  well the model generalises (S9, S10).
Source: the articles; nested cross-validation and the bias of the chosen score: Cawley & Talbot
  2010.
Would change: S9-buys: `test loss, zero - chosen by the minimum` above 0; S9-rule: `test loss,
  one-standard-error rule - minimum` below 0; S10-score: `score of the chosen strength - its test
  loss, over the mean test loss` between -0.05 and 0.05; S10-flatters: `score of the chosen
  strength - its test loss` below 0; S10-nested: `nested score - score of the chosen` above 0.
Run: `python -m experiments s09_s10_nested` (33 s on 2 CPU devices, jax 0.10.2)
Found: The strength that cross-validation chooses has a lower test loss than no decay (S9-buys
  holds, p < 0.0001). The one-standard-error rule chooses a strength of higher test loss than the
  minimum does (S9-rule fails, p < 0.0001). Undecided: The score of the chosen strength is the
  test loss of its refit, on average, to within 5 % (S10-score undecided, p = 0.47). Undecided:
  The score that was used to choose flatters: it lies below the test loss of the refit
  (S10-flatters undecided, p = 0.23). The score that was used to choose lies below the nested
  score, which was not (S10-nested holds, p = 0.0035).
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common, problems
from experiments.claims import Claim, Measurement, above, below, within
from wdjax.recipe import Recipe, recipe_fit, recipe_score
from wdjax.selection import cross_validate_pure, grid_product, kfold
from wdjax.selection.folds import take_masked as take


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
    return common.Findings(found, {**scores, "strengths": c.strengths})


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


CLAIMS = (
    Claim(
        "S9-buys",
        "The strength that cross-validation chooses has a lower test loss than no decay.",
        above("test loss, zero - chosen by the minimum"),
        "The strength that cross-validation chooses has a higher test loss than no decay.",
    ),
    Claim(
        "S9-rule",
        "The one-standard-error rule chooses a strength of lower test loss than the minimum does.",
        below("test loss, one-standard-error rule - minimum"),
        "The one-standard-error rule chooses a strength of higher test loss than the minimum does.",
    ),
    Claim(
        "S10-score",
        "The score of the chosen strength is the test loss of its refit, on average, to within "
        "5 %.",
        within(
            "score of the chosen strength - its test loss, over the mean test loss", -0.05, 0.05
        ),
        "The score of the chosen strength is off the test loss of its refit, on average, by over "
        "5 %.",
    ),
    Claim(
        "S10-flatters",
        "The score that was used to choose flatters: it lies below the test loss of the refit.",
        below("score of the chosen strength - its test loss"),
        "The score that was used to choose lies above the test loss of the refit.",
    ),
    Claim(
        "S10-nested",
        "The score that was used to choose lies below the nested score, which was not.",
        above("nested score - score of the chosen"),
        "The score that was used to choose lies above the nested score, which was not.",
    ),
)


def derived(results) -> list[Measurement]:
    """The error of the chosen score as a share of the test loss."""
    score, truth = (np.array(results["values"][name]) for name in ("cv", "min"))
    what = "score of the chosen strength - its test loss, over the mean test loss"
    return [common.over_seeds(what, (score - truth) / truth.mean())]


if __name__ == "__main__":
    common.main(__file__, measure, draw, Config(), QUICK, CLAIMS, derived)
