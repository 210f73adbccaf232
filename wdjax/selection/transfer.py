"""From searches at small sizes to the strength of a run that can be afforded once.

Each size tells its best strength and how well it knows it (`find_optimum`), a power law is fitted
through them (`fit_law`), and the law predicts the large run with an interval; `Transfer.doubts`
says when not to believe it.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from wdjax.checks import check_number
from wdjax.selection.laws import Law, Prediction, fit_law
from wdjax.selection.optimum import Best, find_optimum
from wdjax.selection.scores import Scores
from wdjax.tables import Table, format_number

LEAST_SIZES = 4
SPARE_SIZES = 2
"""More sizes than coefficients, below which a law is not to be believed."""
FARTHEST = 2.0
"""How far beyond the largest size a law may reach, in spreads of the sizes."""
WIDEST = 4.0
"""The factor that an interval may span."""
LEAST_CHANCE = 0.01
"""Of the misfit, below which the sizes do not follow a power law to within their errors."""

Sizes = Mapping[str, Any]


class Transfer(NamedTuple):
    """What searches at small sizes say of a large one."""

    sizes: tuple[dict[str, Any], ...]
    best: tuple[dict[str, Best], ...]
    """Of each size, by number: `strength`, and `learning_rate` where several were tried."""
    target: dict[str, Any]
    laws: dict[str, Law]
    """By number; left out where too few sizes know their best."""
    predictions: dict[str, Prediction]
    doubts: tuple[str, ...]
    """Sentences that begin "Do not believe this: "; none where it may be believed."""

    @property
    def believed(self) -> bool:
        """Whether there is no doubt."""
        return not self.doubts

    def table(self) -> Table:
        """A row a size: its best numbers with their 95 % intervals, and what the law gives."""
        numbers = list(self.best[0])
        headers = [*self.sizes[0]]
        for number in numbers:
            headers += [f"best {number.replace('_', ' ')}", "95 % interval", "law"]
        rows = []
        for sizes, best in zip(self.sizes, self.best, strict=True):
            cells: list[Any] = [_as_count(size) for size in sizes.values()]
            for number in numbers:
                law = self.laws.get(number)
                at = None if law is None else math.exp(law.log_at(sizes))
                cells += [best[number].value, _interval_words(best[number]), at]
            rows.append(tuple(cells))
        return Table(tuple(headers), tuple(rows), note=self._note())

    def _note(self) -> str:
        words = [f"{name.replace('_', ' ')} ~ {law}" for name, law in self.laws.items()]
        flat = sum(not one["strength"].known for one in self.best)
        if flat:
            words.append(
                f"{flat} of {len(self.best)} sizes do not know their best strength, and do not "
                "count"
            )
        return "; ".join(words)

    def __str__(self) -> str:
        """The sizes, then what is predicted, then the doubts."""
        lines = [str(self.table()), ""]
        at = ", ".join(f"{name} {_as_count(size)}" for name, size in self.target.items())
        for name, found in self.predictions.items():
            lines.append(f"At {at}: {name.replace('_', ' ')} {prediction_words(found)}.")
        return "\n".join([*lines, *self.doubts])

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, and whether it is believed; laws and predictions as dicts."""
        fields = self._asdict()
        best = [{n: {**b._asdict(), "value": b.value} for n, b in one.items()} for one in self.best]
        return {**fields, "best": best, "believed": self.believed}


def predict_strength(
    searches: Sequence[tuple[Sizes, Scores]],
    target: Sizes,
    *,
    value: str = "loss",
    higher_is_better: Any = None,
) -> Transfer:
    """Predicts the best strength (and learning rate) of a large run from searches at small sizes.

        log strength*(size) = a + sum_d b_d log size_d

    Each size enters with the error of its own best (`find_optimum`): a flat optimum counts little,
    and one that the grid does not enclose not at all. The law and its interval are those of
    `fit_law`, over the sizes that vary. Where the grid has several learning rates, the strength is
    the best beside the best learning rate, and each has a law.

    It is not to be believed where fewer sizes count than two more than the law has coefficients;
    where the target lies farther beyond the largest size than twice the spread of the sizes;
    where the best lies at an end of the grid at some size; where the interval spans more than a
    factor of 4; where the sizes lie farther off the law than their errors allow; and where the
    target lies beyond the sizes in two of them at once, and a law with their product, which lets
    the power of one change with the other, predicts an interval of more than a factor of 4.

    Args:
      searches: `(sizes, scores)` a search; `sizes` is `{name: value}`, such as `{"rows": 1000,
        "width": 64}`, of the same names in all. Four or more.
      target: the same names, no size below the largest searched; one that does not vary among the
        searches may be left out.
      value: which score, where there are several.
      higher_is_better: its direction, where the scores do not say it.

    Raises:
      ValueError: for fewer than four searches, sizes that are not positive, named differently, all
        the same or twice the same, a target that lacks one that varies, differs in one that does
        not, or is below the largest searched; as `find_optimum`.

    Example:
      >>> def searched(rows):  # a search whose best strength is 30 / sqrt(rows)
      ...     grid = wdjax.grid_product(strength=np.geomspace(0.01, 100, 15))
      ...     off = np.log(grid["strength"] * np.sqrt(rows) / 30)[:, None, None]
      ...     drawn = np.random.default_rng(rows).normal(size=(15, 3, 2))
      ...     return {"rows": rows}, wdjax.Scores(grid, {"loss": off**2 / 9 + 0.02 * drawn})
      >>> searches = [searched(rows) for rows in (250, 500, 1000, 2000)]
      >>> found = wdjax.selection.predict_strength(searches, {"rows": 4000})
      >>> one = found.predictions["strength"]
      >>> found.believed, bool(one.low < 30 / np.sqrt(4000) < one.high)
      (True, True)
    """
    sizes = [dict(sizes) for sizes, _ in searches]
    target = check_sizes(sizes, target)
    found = [find_optimum(s, value=value, higher_is_better=higher_is_better) for _, s in searches]
    numbers = [name for name in ("strength", "learning_rate") if all(name in one for one in found)]
    best = tuple({name: one[name] for name in numbers} for one in found)
    laws: dict[str, Law] = {}
    doubts: list[str] = []
    for number in numbers:
        law = _law(sizes, [one[number] for one in best])
        if law is not None:
            laws[number] = law
        doubts += _doubts(number, sizes, [one[number] for one in best], target, law)
    predictions = {number: law.predict(target) for number, law in laws.items()}
    told = tuple(f"Do not believe this: {doubt}" for doubt in doubts)
    return Transfer(tuple(sizes), best, target, laws, predictions, told)


def check_sizes(sizes: Sequence[Sizes], target: Sizes) -> dict[str, Any]:
    """Checks the sizes of searches and of the run that they are for; the target, filled up.

    Raises:
      ValueError: as `predict_strength` says of sizes and target.
    """
    if len(sizes) < LEAST_SIZES:
        raise ValueError(
            f"a law over sizes needs {LEAST_SIZES} sizes or more, got {len(sizes)}: search at "
            "further small sizes."
        )
    names = list(sizes[0])
    for one in sizes:
        if list(one) != names:
            raise ValueError(f"every size must name {', '.join(names)}; got {', '.join(one)}.")
        for name, size in one.items():
            check_number(name, size, low=0.0, exclusive_low=True)
    different = {tuple(one.values()) for one in sizes}
    if len(different) < len(sizes):
        raise ValueError("two of the sizes are the same; each may be searched once.")
    varied = varied_names(sizes)
    unknown = [name for name in target if name not in names]
    if unknown:
        raise ValueError(f"the target names {unknown[0]!r}, which no size does; they name {names}.")
    filled = {}
    for name in names:
        values = [one[name] for one in sizes]
        size = target.get(name, None if name in varied else values[0])
        if size is None:
            raise ValueError(
                f"`{name}` varies among the sizes, so the target must say it; the largest searched "
                f"is {_as_count(max(values))}."
            )
        check_number(name, size, low=0.0, exclusive_low=True)
        if name not in varied and size != values[0]:
            raise ValueError(
                f"`{name}` is {_as_count(values[0])} at every size, so nothing tells of "
                f"{_as_count(size)}: search at several, or leave it as it is."
            )
        if size < max(values):
            raise ValueError(
                f"the target's `{name}` is {_as_count(size)}, below the {_as_count(max(values))} "
                "of a size that is searched: a law is for larger runs; take smaller sizes."
            )
        filled[name] = size
    return filled


def varied_names(sizes: Sequence[Sizes]) -> list[str]:
    """The names of the sizes that are not the same in all."""
    return [name for name in sizes[0] if len({one[name] for one in sizes}) > 1]


def prediction_words(found: Prediction) -> str:
    """`0.62 (95 % interval 0.31 to 1.2)`."""
    value, low, high = (
        format_number(float(f"{x:.2g}")) for x in (found.value, found.low, found.high)
    )
    return f"{value} ({found.level * 100:g} % interval {low} to {high})"


def _law(sizes: Sequence[Sizes], best: Sequence[Best]) -> Law | None:
    """The law through the sizes that know their best; None where they are too few for one."""
    known = [(one, b) for one, b in zip(sizes, best, strict=True) if b.known]
    names = varied_names(sizes)
    logs = np.log([[one[name] for name in names] for one, _ in known]).reshape(-1, len(names))
    design = np.column_stack([np.ones(len(known)), logs])
    if len(known) <= len(names) + 1 or np.linalg.matrix_rank(design) <= len(names):
        return None
    columns = {name: [one[name] for one, _ in known] for name in names}
    return fit_law(columns, [b.log for _, b in known], [b.standard_error for _, b in known])


def _doubts(
    number: str, sizes: Sequence[Sizes], best: Sequence[Best], target: Sizes, law: Law | None
) -> list[str]:
    """Why the number predicted is not to be believed, a sentence each."""
    name = number.replace("_", " ")
    known = [one for one, b in zip(sizes, best, strict=True) if b.known]
    varied = varied_names(sizes)
    wanted = len(varied) + 1 + SPARE_SIZES
    doubts = []
    if len(known) < wanted or law is None:
        apart = "" if len(known) < wanted else ", and these do not vary apart from one another"
        doubts.append(
            f"{len(known)} of {len(sizes)} sizes know their best {name}{apart}; a law over "
            f"{' and '.join(varied)} needs {wanted}. Search at further sizes, over a wider grid, "
            "or with more seeds."
        )
    for one, b in zip(sizes, best, strict=True):
        if b.end is not None and b.at_an_end >= 0.95:
            at = ", ".join(f"{n} {_as_count(one[n])}" for n in varied)
            doubts.append(
                f"at {at} the best {name} is the {b.end} tried; the grid must go beyond it."
            )
    for n in varied if known else ():
        logs = np.log([one[n] for one in known])
        beyond, spread = math.log(target[n]) - logs.max(), float(np.ptp(logs))
        if beyond > FARTHEST * spread + 1e-9:
            least = math.ceil(target[n] / math.exp(FARTHEST * spread))
            doubts.append(
                f"{n} {_as_count(target[n])} is {math.exp(beyond):.3g} times the largest size "
                f"whose best {name} is known, and those span a factor of {math.exp(spread):.3g} "
                f"only; search up to {least} or more."
            )
    if law is None:
        return doubts
    found = law.predict(target)
    if found.factor > WIDEST:
        doubts.append(
            f"the interval of the {name} spans a factor of {found.factor:.2g}, more than "
            f"{WIDEST:g}. Search at further sizes, or with more seeds."
        )
    if law.misfit_chance < LEAST_CHANCE:
        doubts.append(
            f"the sizes lie farther off a power law of the {name} than their errors allow "
            f"(chi-square {law.misfit:.3g} for {law.freedom} degrees of freedom)."
        )
    pairs = [(one, b) for one, b in zip(sizes, best, strict=True) if b.known]
    together = _together(pairs, target, law)
    if together is not None and together.factor > WIDEST:
        both = " and ".join(_beyond(pairs, target, law))
        doubts.append(
            f"beyond the sizes searched in {both} at once, the law holds only if the power of one "
            f"is the same at every size of the other, and these sizes do not tell: a law that "
            f"lets them differ gives a {name} of {prediction_words(together)}. Go beyond in one "
            "of them alone, or search at sizes nearer to the target."
        )
    return doubts


def _beyond(pairs: Sequence[tuple[Sizes, Best]], target: Sizes, law: Law) -> list[str]:
    """The sizes in which the target lies beyond all whose best is known."""
    return [n for n in law.names if target[n] > max(one[n] for one, _ in pairs)]


def _together(pairs: Sequence[tuple[Sizes, Best]], target: Sizes, law: Law) -> Prediction | None:
    """What a law with products predicts, where the target lies beyond in several sizes at once.

        log strength*(size) = a + sum_d b_d log size_d + sum_{d < e} c_de u_d u_e

    with u_d the logarithm of a size over its geometric mean, and a product for every two sizes in
    which the target lies beyond. None where it lies beyond in one at most; infinitely wide where
    the points are too few.
    """
    beyond = _beyond(pairs, target, law)
    if len(beyond) < 2:
        return None
    middles = {n: np.mean([math.log(one[n]) for one, _ in pairs]) for n in beyond}

    def design(one: Sizes) -> dict[str, Any]:
        u = {n: math.log(one[n]) - middles[n] for n in beyond}
        products = {f"{a}, {b}": math.exp(u[a] * u[b]) for a, b in itertools.combinations(u, 2)}
        return {n: one[n] for n in law.names} | products

    try:
        rows = [design(one) for one, _ in pairs]
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        logs, errors = zip(*((b.log, b.standard_error) for _, b in pairs), strict=True)
        return fit_law(columns, logs, errors).predict(design(target))
    # No more points than coefficients, none that varies both, or a product that no float holds.
    except (ValueError, OverflowError):
        return Prediction(law.predict(target).value, 0.0, math.inf, 0.95)


def _interval_words(best: Best) -> str:
    if best.end is not None:
        return f"{best.end} tried"
    if not best.known:
        return "not known"
    ends = (math.exp(best.log + side * 1.96 * best.standard_error) for side in (-1, 1))
    return " to ".join(f"{end:.2g}" for end in ends)


def _as_count(size: Any) -> str:
    return f"{size:g}" if size != int(size) else str(int(size))
