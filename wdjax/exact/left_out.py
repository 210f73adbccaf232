"""Leave-one-out and generalised cross-validation of ridge regression, exactly, from one fit."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wdjax.exact.given import Examples, checked_examples, in_float64
from wdjax.selection.choice import choose
from wdjax.selection.grids import Grid, grid_product
from wdjax.selection.scores import HeldOut, Scores
from wdjax.selection.search import Search, Stopwatch
from wdjax.tables import format_number

CLOSE_TO_ONE = 1e-10
"""How far below 1 a leverage must be: what is divided by less has lost six digits."""


class LeftOut(NamedTuple):
    """What each example's prediction errs by when it is left out, at each strength."""

    residuals: Float[Array, "strength example output"]
    """`y_i - prediction` of the fit without example i."""
    leverages: Float[Array, "strength example"]
    """h_ii of the fit with all examples, at the ridge that leaving i out leaves."""
    gcv_residuals: Float[Array, "strength example output"]
    """`r_i / (1 - tr(H) / n)`: their weighted mean square is GCV."""


def leave_one_out(
    features: Any,
    targets: Any,
    strengths: Any,
    *,
    weights: Any = None,
    intercept: bool = True,
    rule: str = "min",
    value: str = "loss",
) -> Search:
    """Chooses the ridge strength by leave-one-out, exactly, from one decomposition.

        e_i = r_i / (1 - h_ii),   loss_i = sum_outputs e_i^2 / 2

    For each strength this is what n trainings to the minimum would find, each on all examples but
    one: `cross_validate` with n folds of one example. Beside it stands generalised
    cross-validation, which puts the mean leverage in the place of each and needs no example to be
    left out,

        gcv = sum_i w_i sum_outputs (r_i / (1 - tr(H) / n))^2 / (2 sum w)

    (half of the usual, as the loss is; chosen by with `value="gcv"`).

    A strength is that of the mean loss, so the ridge on the sum of squares is `strength * sum w`
    with all examples and `strength * (sum w - w_i)` without example i. Scikit-learn's `alpha` is
    the same in every fit: of n equal examples its leave-one-out at `alpha` is this one at
    `alpha / (n - 1)`, its fit that of `alpha / n`.

    An example of weight 0 has no effect at all. One of weight 3 stands for three, and is left out
    whole: a fit that kept two of its copies would have seen what it is judged on. n counts the
    examples of weight above 0.

    The scores hold one fold per example, `[row, fold, 1]`, each times its weight over the mean
    weight, so that the mean over the folds is the weighted mean; `choose` gets the intervals of
    fold means, which are wider than they need be rather than narrower. One training is the
    search's whole cost: a decomposition, whatever the number of strengths.

    Args:
      features: `[example, feature]`, or what a network gives to its last layer.
      targets: `[example]` or `[example, output]`; classes as one-hot rows make the ridge a
        classifier by least squares.
      strengths: each >= 0; `strength` is the axis of the scores' grid.
      weights: `[example]`, >= 0; by default 1.
      intercept: whether there is a bias, which is not penalised.
      rule, value: see `choose`; the scores are "loss" and "gcv".

    Raises:
      ValueError: for features, targets or weights that are not finite, not of these shapes, or of
        fewer than 2 examples that count; for strengths as `grid_product`; and for an example of
        leverage 1, which cannot be left out: no other example tells what its features do.

    Sources: Allen 1974 (PRESS); Golub, Heath & Wahba 1979 (GCV).

    Example:
      >>> x = np.array([[0.0], [1.0], [2.0], [3.0]])
      >>> found = wdjax.leave_one_out(x, [0.1, 0.9, 2.1, 2.9], [0.0, 1.0])
      >>> print(found.choice.hparams["strength"], found.scores.mean()["loss"].round(3))
      0.0 [0.012 0.328]
    """
    watch = Stopwatch()
    grid = grid_product(strength=strengths)
    examples = checked_examples(features, targets, weights)
    y = examples.targets.astype(np.float64).reshape(len(examples.rows), -1)
    arguments = (examples.features, y, grid["strength"], examples.weights)
    left_out, memory = in_float64(_program, *arguments, intercept=bool(intercept))
    _check_leverages(left_out.leverages, grid["strength"], examples)
    scores = _scores(left_out, grid, examples)
    choice = choose(scores, rule, value=value)
    reason = f"Exact: {len(y)} fits for each of {grid.num_rows} strengths from one decomposition."
    return Search(scores, choice, watch.cost(1, memory), _doubts(scores, choice), reason)


def ridge_left_out(
    features: Float[Array | np.ndarray, "example feature"],
    targets: Float[Array | np.ndarray, "example output"],
    strengths: Float[Array | np.ndarray, " strength"],
    weights: Float[Array | np.ndarray, " example"],
    *,
    intercept: bool = True,
) -> LeftOut:
    """The residuals of `leave_one_out` as a pure function: for `jit`, `vmap` and `grad`.

    With the singular value decomposition `sqrt(w) (x - mean) = u s v'` and `a` the ridge,

        h_ii = w_i / sum w + sum_j u_ij^2 s_j^2 / (s_j^2 + a)

    without the first term where there is no intercept. Nothing is checked: all weights must be
    above 0. Derivatives with respect to the strengths are those of the closed form.
    """
    features, targets, weights = map(jnp.asarray, (features, targets, weights))
    total = jnp.sum(weights)
    share = weights / total
    of_intercept = share if intercept else jnp.zeros_like(share)
    if intercept:
        features = features - (share @ features)[None]
        targets = targets - (share @ targets)[None]
    root = jnp.sqrt(weights)[:, None]
    u, s, _ = jnp.linalg.svd(root * features, full_matrices=False)
    kept = s > s[0] * max(features.shape) * jnp.finfo(s.dtype).eps
    squares = jnp.where(kept, jnp.square(s), 1.0)
    # What is no direction of the features is no part of the fit, also at strength 0.
    shrink = lambda ridge: jnp.where(kept[None], squares[None] / (squares[None] + ridge), 0.0)
    along = u.T @ (root * targets)

    def one(strength: Array) -> LeftOut:
        by_example = u * shrink(strength * (total - weights)[:, None])
        leverages = of_intercept + jnp.sum(by_example * u, axis=1)
        residuals = targets - by_example @ along / root
        shared = shrink(strength * total[None, None])
        trace = jnp.sum(shared) + float(intercept)
        left = (1 - trace / len(targets)).astype(targets.dtype)
        gcv = (targets - (u * shared) @ along / root) / jnp.where(left > 0, left, jnp.inf)
        return LeftOut(residuals / _above_zero(1 - leverages)[:, None], leverages, gcv)

    return jax.lax.map(one, strengths)


_program = jax.jit(ridge_left_out, static_argnames="intercept")


def _above_zero(x: Array) -> Array:
    """What is left of an example; where it is nothing the caller refuses, and nothing is NaN."""
    return jnp.where(x > CLOSE_TO_ONE, x, 1.0)


def _check_leverages(leverages: np.ndarray, strengths: np.ndarray, examples: Examples) -> None:
    whole = leverages > 1 - CLOSE_TO_ONE
    if whole.any():
        row, place = np.argwhere(whole)[0]
        raise ValueError(
            f"example {examples.rows[place]} (counted from 0) cannot be left out at strength "
            f"{strengths[row]:g}: its leverage is 1, so no other example tells what its features "
            f"do ({whole[row].sum()} of {len(examples.rows)} are so); raise the smallest of "
            "`strengths`, or drop features."
        )


def _scores(left_out: LeftOut, grid: Grid, examples: Examples) -> Scores:
    """One fold per example, whose mean over the folds is the weighted mean."""
    share = examples.weights / examples.weights.mean()
    half_squares = lambda e: 0.5 * np.square(e).sum(axis=2) * share
    values = {
        "loss": half_squares(left_out.residuals)[:, :, None],
        "gcv": half_squares(left_out.gcv_residuals)[:, :, None],
    }
    num_examples = len(examples.rows)
    held_out = HeldOut(
        {name: array[..., None] for name, array in values.items()},
        examples.rows[:, None],
        np.ones((num_examples, 1)),
        None,
        np.full(num_examples, num_examples - 1),
    )
    return Scores(grid, values, held_out, {"loss": False, "gcv": False})


def _doubts(scores: Scores, choice: Any) -> tuple[str, ...]:
    strengths = np.asarray(scores.grid["strength"])
    best = strengths[int(np.argmin(scores.mean()[choice.value]))]
    if len(strengths) > 1 and best == strengths.max():
        return (
            f"Do not believe this: the best strength, {format_number(best)}, is the largest tried, "
            "and a larger one may be better; widen `strengths`.",
        )
    return ()
