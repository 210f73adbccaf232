"""Direction, learning rate and decays as one optimiser, in which the learning rate is said once."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from wdjax.checks import check_strength_or_schedule, is_known
from wdjax.decay.forms import check_multiplier
from wdjax.types import Schedule, Strength

Decay = optax.GradientTransformation | Callable[..., optax.GradientTransformation]
"""What goes after the learning rate: a transformation; or a function that makes one and is given,
by name, what it requires of `learning_rate`, `schedule` and `peak_learning_rate`."""


def make_optimizer(
    direction: optax.GradientTransformation,
    learning_rate: Strength | Schedule,
    *decays: Decay,
    schedule: Schedule | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Builds the optimiser that descends along `direction` and decays, by one learning rate.

        eta_t = learning_rate * schedule(t)
        update = -eta_t * direction(gradient) ;  then each decay acts on the update, in order

    A decay that depends on the learning rate is given as a function that still requires it, so
    nobody has to say it twice:

        make_optimizer(
            optax.scale_by_adam(), 3e-3, partial(decoupled_decay, 0.1, parts=matrices_only)
        )

    is `optax.chain(optax.adam(3e-3), decoupled_decay(0.1, 3e-3, parts=matrices_only))`, bit for
    bit. What a function requires, it is given by name: `learning_rate` (eta_t), `schedule` (s_t)
    and `peak_learning_rate`. So `partial(corrected_decay, 0.1)` gets the first and the last,
    `lambda schedule: independent_decay(1e-4, schedule)` is the AdamW paper's, and `partial(
    independent_decay, 1e-4)`, whose schedule has a default, the fixed fraction a step. The state is
    that of the chain: as everywhere in optax, the learning rate's own link counts its steps where
    it is a schedule and is empty where it is a number.

    Args:
      direction: an optax transformation before its learning rate, such as `optax.scale_by_adam()`,
        `optax.trace(0.9)`, `optax.identity()` or `optax.chain(optax.scale_by_adam(),
        scale_by_parts(parts))`; not `optax.adam(3e-3)`.
      learning_rate: eta_t as a number (traced or not) or a schedule of learning rates; the peak
        where `schedule` gives the shape.
      decays: transformations that need no learning rate, such as `independent_decay(1e-4)`,
        `constrained_decay(...)` and `project_sphere(1.0)`, or functions as above, such as
        `partial(proximal_l1, 0.1)`.
      schedule: `step -> s_t` in [0, 1], 1 at its peak; by default 1.

    Raises:
      ValueError: for a learning rate that is known and negative or not finite; for a schedule that
        is known to leave [0, 1], or one beside a learning rate that is a schedule already; for a
        direction that descends already, so that the learning rate would be applied twice, where a
        gradient of one weight shows it; for a decay that requires something else, or the peak or
        the shape of a learning rate that is one schedule; what the decays themselves refuse.

    Example:
      >>> decay = functools.partial(wdjax.decoupled_decay, 0.25)
      >>> tx, w = wdjax.make_optimizer(optax.scale_by_adam(), 0.5, decay), jnp.array([8.0])
      >>> print(tx.update(jnp.zeros(1), tx.init(w), w)[0])
      [-1.]
    """
    _check_direction(direction)
    return chain_by(direction, learning_rate, *decays, schedule=schedule)


def chain_by(
    direction: optax.GradientTransformation,
    learning_rate: Strength | Schedule,
    *decays: Decay,
    schedule: Schedule | None = None,
) -> optax.GradientTransformationExtraArgs:
    """`make_optimizer` along a direction that is known not to descend, so nothing is run for it.

    Raises:
      ValueError: as `make_optimizer`, but for the direction.
    """
    eta, given = _one_learning_rate(learning_rate, schedule)
    after = [resolve_decay(decay, given) for decay in decays]
    return optax.chain(direction, optax.scale_by_learning_rate(eta), *after)


def decay_at(decay: Decay, learning_rate: Strength | Schedule) -> optax.GradientTransformation:
    """The decay at an optimiser's learning rate, a number or a schedule.

    Raises:
      ValueError: as `make_optimizer`, of the learning rate and the decay.
    """
    return resolve_decay(decay, _one_learning_rate(learning_rate, None)[1])


def resolve_decay(decay: Decay, given: dict[str, Any]) -> optax.GradientTransformation:
    """The transformation that `decay` is, or makes from what it requires of `given`.

    Raises:
      ValueError: if it is neither, requires what is not given, or makes no transformation.
    """
    if isinstance(decay, optax.GradientTransformation):
        return decay
    if not callable(decay):
        raise ValueError(
            "a decay must be an optax transformation or a function that makes one, such as "
            f"`functools.partial(decoupled_decay, 0.1)`; got {decay!r}."
        )
    name = getattr(getattr(decay, "func", decay), "__name__", repr(decay))
    required = [
        p.name
        for p in inspect.signature(decay).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if other := [each for each in required if each not in _GIVEN]:
        raise ValueError(
            f"the decay {name!r} requires {', '.join(map(repr, other))}; it is given "
            f"{', '.join(_GIVEN)}, by name. Bind the rest: `functools.partial({name}, ...)`."
        )
    if missing := [each for each in required if each not in given]:
        raise ValueError(
            f"the decay {name!r} requires {', '.join(map(repr, missing))}, which a schedule of "
            "learning rates does not tell. Give `learning_rate` as the peak, a number, and its "
            f"shape as `schedule`, or bind it: `functools.partial({name}, {missing[0]}=...)`."
        )
    made = decay(**{each: given[each] for each in required})
    if not isinstance(made, optax.GradientTransformation):
        raise ValueError(f"the decay {name!r} must make an optax transformation, made {made!r}.")
    return made


_GIVEN = ("learning_rate", "schedule", "peak_learning_rate")


def _one_learning_rate(
    learning_rate: Strength | Schedule, schedule: Schedule | None
) -> tuple[Any, dict[str, Any]]:
    """eta_t, and what a decay is given of it; a schedule of learning rates hides its peak."""
    check_strength_or_schedule("learning_rate", learning_rate)
    if callable(learning_rate):
        if schedule is not None:
            raise ValueError(
                "`learning_rate` is a schedule already; beside `schedule` it must be the peak, a "
                "number."
            )
        return learning_rate, {"learning_rate": learning_rate}
    peak: Any = learning_rate
    if schedule is None:
        return peak, {"learning_rate": peak, "schedule": 1.0, "peak_learning_rate": peak}

    def eta(step: Array) -> Any:
        multiplier = schedule(step)
        check_multiplier(multiplier)
        return peak * multiplier

    eta(jnp.zeros((), jnp.int32))
    return eta, {"learning_rate": eta, "schedule": schedule, "peak_learning_rate": peak}


def _check_direction(direction: Any) -> None:
    if not isinstance(direction, optax.GradientTransformation):
        raise ValueError(
            "`direction` must be an optax transformation, such as `optax.scale_by_adam()`, got "
            f"{direction!r}.{' Call it.' if callable(direction) else ''}"
        )
    if _descends(direction):
        raise ValueError(
            "`direction` descends already: it applies a learning rate of its own, and another "
            "would turn it uphill. Give the step before its learning rate, such as "
            "`optax.scale_by_adam()` for `optax.adam(3e-3)`, `optax.trace(0.9)` for "
            "`optax.sgd(0.1, momentum=0.9)`."
        )


def _descends(direction: optax.GradientTransformation) -> bool:
    """Whether a gradient of 1 moves a weight of 1 down, where one weight can tell.

    It cannot where the direction is tied to a tree of params, asks for more arguments, or depends
    on traced numbers; what then goes wrong, the params' own `init` will say.
    """

    # One program: each operation outside a compiled function would be one of its own.
    @jax.jit
    def probe() -> Any:
        weight = jnp.ones(1)
        return direction.update(weight, direction.init(weight), weight)[0]

    try:
        with jax.ensure_compile_time_eval():
            update = probe()
            return is_known(update) and float(np.asarray(update)[0]) < 0
    except Exception:
        return False
