"""Slopes: the derivative of every score in the logarithm of a number, carried forward through the
whole run."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Array, PyTree

from wdjax.checks import check_one_of
from wdjax.models.products import DERIVATIVE
from wdjax.selection.folds import Folds
from wdjax.selection.grids import GridLike
from wdjax.selection.scores import leaf_names
from wdjax.selection.trials import FitAndScore, TrialScores, gather, one_trial
from wdjax.types import Batch, TakesPadding, is_inexact, plain_function

VALUES, SLOPES = "values", "slopes"


@dataclasses.dataclass(frozen=True)
class WithSlopes:
    """`{"values": scores, "slopes": {name: d scores / d log hparams[name]}}` of one run.

    One tangent a name goes through the run beside its values, which are computed once for all:
    forward mode, since a run has few numbers and many steps. Two of the same function and names
    are equal, so their compiled program is found again.
    """

    function: FitAndScore
    names: tuple[str, ...]

    def __call__(
        self, numbers: Mapping[str, Any], train: Batch, valid: Batch, key: Array, **told: Any
    ) -> dict[str, Any]:
        """The scores and their slopes."""
        judge = plain_function(getattr(self.function, "by_example", self.function))

        def at(logs: dict[str, Array]) -> PyTree:
            # At 0 it is the number itself, to the last bit.
            moved = {name: numbers[name] * jnp.exp(log) for name, log in logs.items()}
            return judge({**numbers, **moved}, train, valid, key, **told)

        zeros = {name: jnp.zeros_like(jnp.asarray(numbers[name])) for name in self.names}
        each = np.eye(len(self.names))
        tangents = {
            name: jnp.asarray(each[:, i], zeros[name].dtype) for i, name in enumerate(self.names)
        }
        push = lambda tangent: jax.jvp(at, (zeros,), (tangent,))
        values, slopes = jax.vmap(push, out_axes=(None, 0))(tangents)
        return {
            VALUES: values,
            SLOPES: {
                name: jax.tree.map(lambda leaf, i=i: leaf[i], slopes)
                for i, name in enumerate(self.names)
            },
        }


class _Padded(TakesPadding):
    """`WithSlopes` of a run that takes padding; equal where those are."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Padded) and self.function == other.function

    def __hash__(self) -> int:
        return hash(self.function)


def with_slopes(fit_and_score: FitAndScore, names: Sequence[str]) -> FitAndScore:
    """The same run with the slopes of its scores beside them; itself without names."""
    if not names:
        return fit_and_score
    sloped = WithSlopes(fit_and_score, tuple(names))
    if isinstance(fit_and_score, TakesPadding):
        return _Padded(sloped, fit_and_score.num_steps)
    return sloped


class Parted(NamedTuple):
    """What a run with slopes gives, taken apart."""

    values: TrialScores
    slopes: dict[str, TrialScores]


def part(scores: TrialScores, names: Sequence[str]) -> Parted:
    """Takes apart what the trials of `with_slopes(..., names)` gave."""
    if not names:
        return Parted(scores, {})
    means, examples = scores

    def of(*path: str) -> TrialScores:
        tree, prefix = means, "/".join(path)
        for name in path:
            tree = tree[name]
        own = {
            name.removeprefix(prefix).removeprefix("/") or "score": leaf
            for name, leaf in examples.items()
            if name == prefix or name.startswith(f"{prefix}/")
        }
        return TrialScores(tree, own)

    return Parted(of(VALUES), {name: of(SLOPES, name) for name in names})


def check_slopes(
    fit_and_score: FitAndScore, grid: GridLike, data: Batch, folds: Folds, key: Array, names: Any
) -> tuple[str, ...]:
    """Checks that slopes can be taken and mean something; the names as a tuple.

    The run is traced once on one fold; nothing is compiled.

    Raises:
      ValueError: for names that are no axes of the grid or stand twice, an axis that holds a value
        of 0 or below (which has no logarithm), a run that takes the sign of something outside a
        derivative (as Lion's step and the gate of cautious decay do: its derivative is 0, whatever
        the number does), or one that cannot be differentiated forward.
    """
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"`slopes` must be names of the grid's axes in a tuple, got {names!r}.")
    names = tuple(names)
    for i, name in enumerate(names):
        check_one_of("slopes", name, grid)
        if name in names[:i]:
            raise ValueError(f"`slopes` names {name!r} twice; each number has one slope.")
        axis = np.asarray(grid[name])
        if not (axis > 0).all():
            row = int(np.argmin(axis > 0))
            raise ValueError(
                f"`slopes` are taken in the logarithm, and grid[{name!r}] is {axis[row]:g} in row "
                f"{row}; leave such rows out of this grid, or {name!r} out of `slopes`."
            )
    if names:
        _check_smooth(fit_and_score, grid, data, folds, key, names)
    return names


def _check_smooth(
    fit_and_score: FitAndScore,
    grid: GridLike,
    data: Batch,
    folds: Folds,
    key: Array,
    names: tuple[str, ...],
) -> None:
    numbers = {name: jax.ShapeDtypeStruct((), jnp.asarray(grid[name]).dtype) for name in grid}
    plain, sloped = (
        _first_trial(f, folds) for f in (fit_and_score, with_slopes(fit_and_score, names))
    )
    check_smooth(plain, sloped, numbers, data, key)


def check_smooth(plain: Callable, sloped: Callable, *given: Any, name: str = "slopes") -> None:
    """Checks that derivatives through `plain(*given)` say what a number does; `sloped` takes them.

    Both are traced; nothing is compiled.

    Raises:
      ValueError: if `plain` takes the sign of something outside a derivative, or `sloped` cannot
        be traced: it cannot be differentiated forward.
    """
    traced = jax.make_jaxpr(plain)(*given)
    # `logsumexp` takes a sign that nothing reads; what is read is left.
    read, _ = dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars))
    if any(map(_takes_a_sign, _equations(read))):
        raise ValueError(
            f"`{name}`: the run takes the sign of something, as Lion's step and the hard gate of "
            "cautious decay do; a sign has derivative 0 wherever it has one, so the slopes would "
            "leave out what the number does to it. Choose from values alone, or take another "
            "optimiser or decay."
        )
    try:
        jax.eval_shape(sloped, *given)
    except TypeError as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"`{name}`: the run cannot be differentiated forward ({reason}); choose from values "
            "alone."
        ) from error


def score_names(
    fit_and_score: FitAndScore, numbers: Mapping[str, Any], data: Batch, folds: Folds, key: Array
) -> list[str]:
    """What the scores of a run are called, without running it."""
    shapes = {name: jax.ShapeDtypeStruct((), jnp.result_type(numbers[name])) for name in numbers}
    told = jax.eval_shape(_first_trial(fit_and_score, folds), shapes, data, key)
    return leaf_names(told.means)


def _first_trial(
    fit_and_score: FitAndScore, folds: Folds
) -> Callable[[Any, Batch, Array], TrialScores]:
    def trial(numbers: Any, data: Batch, key: Array) -> TrialScores:
        train, valid, num_train = gather(data, folds, 0)
        return one_trial(fit_and_score, numbers, train, valid, num_train, key, 0, 0)

    return trial


def _takes_a_sign(equation: JaxprEqn) -> bool:
    """Of floats: a floor division of integers takes one, too. (The derivative of an absolute value
    is a choice between two numbers, no sign; that of our rectifier is one, and has a name.)"""
    of_a_derivative = DERIVATIVE in str(equation.source_info.name_stack)
    is_sign = equation.primitive.name == "sign" and is_inexact(equation.invars[0].aval)
    return is_sign and not of_a_derivative


def _equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if isinstance(inner, ClosedJaxpr):
                    yield from _equations(inner.jaxpr)
                elif isinstance(inner, Jaxpr):
                    yield from _equations(inner)
