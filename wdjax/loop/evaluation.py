"""An evaluation over data that comes in batches."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from wdjax.data.stream import prefetch_to_device
from wdjax.measures import ScoreFn
from wdjax.step import AnyState
from wdjax.types import Batch, Fit, wide

Evaluate = Callable[[AnyState], Mapping[str, float]]
"""`state -> {name: number}`, on whatever data it was built with."""


def make_evaluate(
    score: ScoreFn,
    make_batches: Callable[[], Iterable],
    *,
    sharding: Any = None,
    on_batch: Callable[[], None] | None = None,
) -> Evaluate:
    """Builds `evaluate(state) -> {name: weighted mean}` over data that comes in batches.

        value = sum_b W_b score_b / sum_b W_b,  W_b the sum of the batch's weights

    Args:
      score: such as `make_score(model, loss=cross_entropy)`.
      make_batches: called for every evaluation: a fresh pass over the data, such as
        `lambda: make_stream(source, batch_size=128)`.
      sharding: how a batch lies on the devices, see `prefetch_to_device`.
      on_batch: called before every batch, such as to tell a `HangWatch` that it goes on.

    Raises:
      ValueError: in `evaluate`, if nothing in the data counts.
    """

    @jax.jit
    def weighted(params, model_state, batch: Batch):
        total = jnp.sum(wide(batch.weights))
        values = score(Fit(params, model_state, {}), batch)
        values = values if isinstance(values, dict) else {"score": values}
        return {name: total * value for name, value in values.items()}, total

    def evaluate(state: AnyState) -> dict[str, float]:
        sums: dict[str, float] = {}
        total, pending = 0.0, None
        told = on_batch or (lambda: None)
        told()
        batches = prefetch_to_device(make_batches(), sharding=sharding)
        for batch in itertools.chain(batches, [None]):
            told()
            ahead = None if batch is None else weighted(state.params, state.model_state, batch)
            # Only now is the batch before looked at: the device is never without work.
            if pending is not None:
                values, weight = jax.device_get(pending)
                total += float(weight)
                for name, value in values.items():
                    sums[name] = sums.get(name, 0.0) + float(value)
            pending = ahead
        batches.close()
        if total == 0:
            raise ValueError("nothing to evaluate on: no example has a weight above 0.")
        return {name: value / total for name, value in sums.items()}

    return evaluate
