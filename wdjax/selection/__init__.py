"""Choosing the strength: folds, grids, cross-validation, the rules that choose.

Example:
  >>> def ridge(h, train, valid, key):  # in closed form; `make_fit_and_score` makes one that trains
  ...     gram = train.inputs.T @ train.inputs + h["strength"] * jnp.eye(12)
  ...     w = jnp.linalg.solve(gram, train.inputs.T @ train.targets)
  ...     return {"loss": wdjax.squared_error(valid.inputs @ w, valid.targets)}
  >>> x, noise = np.random.default_rng(0).normal(size=(2, 30, 12)).astype("float32")
  >>> data = wdjax.Batch(x, x[:, 0] + 2 * noise[:, 0], np.ones(30, "float32"))
  >>> grid = wdjax.grid_product(strength=[0.0, 10.0, 100.0])
  >>> folds = wdjax.kfold(jax.random.key(0), 30, num_folds=5)
  >>> scores = wdjax.cross_validate(ridge, grid, data, folds, key=jax.random.key(0))
  >>> scores.values["loss"].shape  # row, fold, seed
  (3, 5, 1)
  >>> [f"{loss:.1f}" for loss in scores.values["loss"].mean(axis=(1, 2))]
  ['3.8', '2.1', '2.0']

Example:
  >>> average = lambda of: lambda h, train, valid, key: {
  ...     "loss": (valid.targets - h["scale"] * of(train.targets)) ** 2
  ... }
  >>> y = np.array([0.0, 0.0, 1.0, 1.0, 2.0, 20.0] * 3, "float32")
  >>> data = wdjax.Batch(np.zeros((18, 1), "float32"), y, np.ones(18, "float32"))
  >>> comparison = wdjax.compare(
  ...     {"mean": average(jnp.mean), "median": average(jnp.median)},
  ...     wdjax.grid_product(scale=[1.0]),
  ...     data,
  ...     wdjax.kfold(jax.random.key(0), 18, num_folds=3),
  ...     key=jax.random.key(0),
  ... )
  >>> comparison.best, comparison.told_apart  # the best, and what is known to be worse
  ('mean', [])
"""

from wdjax.selection.by_slopes import search_by_slopes as search_by_slopes
from wdjax.selection.choice import Choice as Choice
from wdjax.selection.choice import Gain as Gain
from wdjax.selection.choice import choose as choose
from wdjax.selection.comparison import Comparison as Comparison
from wdjax.selection.comparison import compare as compare
from wdjax.selection.comparison import compare_scores as compare_scores
from wdjax.selection.cross_validation import Progress as Progress
from wdjax.selection.cross_validation import cross_validate as cross_validate
from wdjax.selection.cross_validation import cross_validate_pure as cross_validate_pure
from wdjax.selection.each_part import TunedParts as TunedParts
from wdjax.selection.each_part import tune_parts as tune_parts
from wdjax.selection.folds import Folds as Folds
from wdjax.selection.folds import folds_from_splits as folds_from_splits
from wdjax.selection.folds import kfold as kfold
from wdjax.selection.grids import Grid as Grid
from wdjax.selection.grids import grid_product as grid_product
from wdjax.selection.halving import halve as halve
from wdjax.selection.laws import Law as Law
from wdjax.selection.laws import Prediction as Prediction
from wdjax.selection.laws import fit_law as fit_law
from wdjax.selection.nested import Nested as Nested
from wdjax.selection.nested import nested_cross_validate as nested_cross_validate
from wdjax.selection.nested import nested_cross_validate_pure as nested_cross_validate_pure
from wdjax.selection.optimum import Best as Best
from wdjax.selection.optimum import find_optimum as find_optimum
from wdjax.selection.part_slopes import PartSlope as PartSlope
from wdjax.selection.part_slopes import PartSlopes as PartSlopes
from wdjax.selection.part_slopes import slopes_of_parts as slopes_of_parts
from wdjax.selection.rungs import Rung as Rung
from wdjax.selection.scores import HeldOut as HeldOut
from wdjax.selection.scores import Scores as Scores
from wdjax.selection.search import Cost as Cost
from wdjax.selection.search import Problem as Problem
from wdjax.selection.search import Search as Search
from wdjax.selection.search import Stepwise as Stepwise
from wdjax.selection.transfer import Transfer as Transfer
from wdjax.selection.transfer import predict_strength as predict_strength
from wdjax.selection.tuning import Tuned as Tuned
from wdjax.selection.tuning import tune as tune
from wdjax.selection.ways import WAYS as WAYS
from wdjax.selection.ways import Way as Way
