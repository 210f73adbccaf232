"""One line for other people's tests: an optimiser decays what they say, and nothing else."""

import math

import optax

from wdjax.checks import check_number
from wdjax.diagnostics.description import LeafDecay, describe_decay
from wdjax.diagnostics.inspection import audit
from wdjax.parts.rules import Stacked
from wdjax.tables import format_number
from wdjax.types import Params, Parts, Schedule, Strength

MOST_TOLD = 10
"""Leaves that a message names at most."""


def assert_decays(
    tx: optax.GradientTransformation | optax.MultiSteps,
    params: Params,
    expected: Parts,
    *,
    learning_rate: Strength | Schedule = 1.0,
    num_steps: int | None = None,
    rtol: float = 0.01,
    stacked: Stacked = None,
) -> None:
    """Asserts that an optimiser decays each leaf as strongly as is expected, by measuring it.

        rate of a leaf, the fraction of it removed a step  =  learning_rate * expected

    A test of a script that passes `weight_decay=0.1` is

        assert_decays(tx, params, {"*/kernel": 0.1, "*": 0.0}, learning_rate=1e-3)

    Without `learning_rate`, `expected` are the rates themselves. What is measured is what `audit`
    says: a mask that misses, a decay that is multiplied twice or by nothing, and one that never
    reaches the update are all seen, whatever the optimiser is built of.

    Args:
      tx: the whole chain, as the step uses it.
      params: the tree, of arrays or of `jax.ShapeDtypeStruct`s.
      expected: strengths >= 0 in the language of `parts`: path patterns, the first match wins
        (`{"role:kernel": 0.1, "*": 0.0}`), a tree like the params, or a function of them.
      learning_rate: what the strength is multiplied by in a step: a number, or the schedule, of
        which the mean over `num_steps` counts.
      num_steps: steps of the run; needed with a schedule.
      rtol: how far a rate may lie from the expected one, as a share of it; of a leaf that shall
        not decay, as a share of the largest expected rate.
      stacked: the leaves that hold several layers (`wdjax.parts.stacked_axes`), for their roles.

    Raises:
      AssertionError: if a leaf decays otherwise, or its decay cannot be measured; the message
        names the leaves, what was expected of them and what was measured.
      ValueError: if `expected` does not fit the params or is None, a number is out of range, or a
        schedule comes without `num_steps`; as `audit`.

    Example:
      >>> params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
      >>> tx = optax.adamw(0.01, weight_decay=0.1, mask={"kernel": True, "bias": False})
      >>> wdjax.assert_decays(tx, params, {"kernel": 0.1, "bias": 0.0}, learning_rate=0.01)
    """
    check_number("rtol", rtol, low=0.0)
    if expected is None:
        raise ValueError(
            '`expected` must say what each leaf loses, such as {"*/kernel": 0.1, "*": 0.0}, '
            "got None."
        )
    times = {"learning_rate": learning_rate, "num_steps": num_steps, "stacked": stacked}
    try:
        wanted = describe_decay(params, expected, 1.0, **times).leaves
    except ValueError as error:
        raise ValueError(str(error).replace("`parts`", "`expected`")) from None
    found = audit(params, tx, num_steps=num_steps, stacked=stacked).leaves
    largest = max((leaf.rate for leaf in wanted), default=0.0)
    wrong = [
        (leaf, want.rate)
        for leaf, want in zip(found, wanted, strict=True)
        if leaf.unmeasured is not None or abs(leaf.rate - want.rate) > rtol * (want.rate or largest)
    ]
    if wrong:
        raise AssertionError(_message(wrong, len(wanted)))


def _message(wrong: list[tuple[LeafDecay, float]], num_leaves: int) -> str:
    lines = []
    for leaf, rate in wrong[:MOST_TOLD]:
        found = (
            f"measured {format_number(leaf.rate)} a step"
            if leaf.unmeasured is None
            else f"its rate cannot be measured: {leaf.unmeasured}"
        )
        lines.append(f"  {leaf.path}: expected {format_number(rate)} a step, {found}")
    if len(wrong) > MOST_TOLD:
        lines.append(f"  and {len(wrong) - MOST_TOLD} more")
    return "\n".join(
        [
            f"the optimiser decays {len(wrong)} of {num_leaves} leaves otherwise than expected:",
            *lines,
            *_cause(wrong),
        ]
    )


def _cause(wrong: list[tuple[LeafDecay, float]]) -> list[str]:
    """What it probably is, where the numbers tell."""
    told = [(leaf.rate, rate) for leaf, rate in wrong if leaf.unmeasured is None]
    decayed = [(found, rate) for found, rate in told if rate > 0]
    if decayed and all(found == 0 for found, _ in decayed):
        return [
            "Nothing decays there: does `weight_decay` reach the chain, and does its mask hold "
            "these leaves?"
        ]
    ratios = [found / rate for found, rate in decayed]
    if ratios and all(math.isclose(r, ratios[0], rel_tol=0.01) for r in ratios):
        return [
            f"Each is {format_number(ratios[0])} times what was expected: is `learning_rate` the "
            "optimiser's, and does the decay count it once?"
        ]
    if any(found > 0 and rate == 0 for found, rate in told):
        return ["What should be left alone decays: does the mask name it, and is it passed?"]
    return []
