"""How sure a search may be of a gain: intervals for which examples and which run it was.

A gain is paired: the reference's loss minus a row's, positive where the row is better, averaged
over the held-out examples of all folds and over the seeds. It comes out differently with other
held-out examples and with other runs (fold x seed); the error here holds both sources. NumPy
alone, float64: no program is compiled.

The parts of the recipe (`make_slots`, `sums_over_examples`, `interval`, `largest_quantile`) take
axes before `row`, each a search of its own, so that a simulation does many at once.
"""

from wdjax.selection.evidence.errors import errors_by_example as errors_by_example
from wdjax.selection.evidence.gains import Gains as Gains
from wdjax.selection.evidence.intervals import bent as bent
from wdjax.selection.evidence.intervals import interval as interval
from wdjax.selection.evidence.on_test import error_on_test as error_on_test
from wdjax.selection.evidence.on_test import gain_on_test as gain_on_test
from wdjax.selection.evidence.over_examples import confident_set as confident_set
from wdjax.selection.evidence.over_examples import gains_by_example as gains_by_example
from wdjax.selection.evidence.over_folds import confident_set_over_folds as confident_set_over_folds
from wdjax.selection.evidence.over_folds import fold_half_width as fold_half_width
from wdjax.selection.evidence.over_folds import gains_over_folds as gains_over_folds
from wdjax.selection.evidence.quantiles import largest_quantile as largest_quantile
from wdjax.selection.evidence.quantiles import student as student
from wdjax.selection.evidence.quantiles import student_of_tail as student_of_tail
from wdjax.selection.evidence.slots import Slots as Slots
from wdjax.selection.evidence.slots import Sums as Sums
from wdjax.selection.evidence.slots import make_slots as make_slots
from wdjax.selection.evidence.slots import spread_over_seeds as spread_over_seeds
from wdjax.selection.evidence.slots import sums_over_examples as sums_over_examples
