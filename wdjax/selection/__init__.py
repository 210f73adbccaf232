"""Choosing the strength: folds, grids, cross-validation, the rules that choose."""

from wdjax.selection.choice import Choice as Choice
from wdjax.selection.choice import Gain as Gain
from wdjax.selection.choice import choose as choose
from wdjax.selection.comparison import Comparison as Comparison
from wdjax.selection.comparison import compare as compare
from wdjax.selection.comparison import compare_scores as compare_scores
from wdjax.selection.cross_validation import Progress as Progress
from wdjax.selection.cross_validation import cross_validate as cross_validate
from wdjax.selection.cross_validation import cross_validate_pure as cross_validate_pure
from wdjax.selection.folds import Folds as Folds
from wdjax.selection.folds import folds_from_splits as folds_from_splits
from wdjax.selection.folds import kfold as kfold
from wdjax.selection.grids import Grid as Grid
from wdjax.selection.grids import grid_product as grid_product
from wdjax.selection.scores import HeldOut as HeldOut
from wdjax.selection.scores import Scores as Scores
