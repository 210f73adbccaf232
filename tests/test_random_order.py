"""The order of an epoch: all equally likely, every row once, another each time."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wdjax.training import make_fit, random_order
from wdjax.types import Batch, Model


def test_all_orders_are_equally_likely(key):
    """Of 24,000 orders of 4 rows each of the 24 comes 1,000 times: chi^2 of 23 degrees of freedom
    exceeds 49.7 once in a thousand keys, and this key is fixed."""
    orders = jax.vmap(lambda k: random_order(k, 4))(jax.random.split(key, 24_000))
    _, counts = np.unique(np.asarray(orders), axis=0, return_counts=True)
    assert len(counts) == 24
    assert np.sum((counts - 1000.0) ** 2) / 1000 < 49.7


@pytest.mark.parametrize("num_examples", [1, 2, 257, 2**12, 2**12 + 1])
def test_an_order_holds_every_row_once(key, num_examples):
    order = np.asarray(random_order(key, num_examples))
    np.testing.assert_array_equal(np.sort(order), np.arange(num_examples))
    assert num_examples < 3 or not np.array_equal(order, np.arange(num_examples))


def test_every_epoch_visits_each_row_at_most_once_and_in_another_order(key):
    """Row i moves entry i of the weights: by -1 / batch a visit under the loss w_i."""

    def init(key, inputs):
        return jnp.zeros(10), {}

    def apply(params, model_state, inputs, *, key, train):
        return params[inputs], model_state

    fit = make_fit(
        Model(init, apply),
        lambda outputs, targets: outputs,
        make_tx=lambda h: optax.sgd(3.0),
        num_epochs=4,
        batch_size=3,
        observe=lambda fit: fit.params,
    )
    rows = jnp.arange(10)
    history = jax.jit(fit)({}, Batch(rows, rows, jnp.ones(10)), key).history
    visits = -np.diff(np.asarray(history["observed"]), axis=0, prepend=0)
    assert set(visits.ravel()) == {0.0, 1.0}
    np.testing.assert_array_equal(visits.sum(axis=1), 9)
    assert len({tuple(epoch) for epoch in visits}) > 1
