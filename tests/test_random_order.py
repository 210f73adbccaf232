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


@pytest.mark.parametrize(
    "num_rows, num_examples",
    [
        (5, 1),
        (5, 5),
        (1150, 1149),
        (4096, 7),
        (4097, 4096),
        (4097, 4097),
        (9000, 300),
        (9000, 8999),
    ],
)
@pytest.mark.parametrize("kind", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_the_order_of_padded_rows_begins_with_that_of_the_rows_alone(num_rows, num_examples, kind):
    """On both sides of 4,096 rows, for every kind of key; then the padding, in its own order."""
    key = jax.random.key(3, impl=kind)
    padded = np.asarray(random_order(key, num_rows, jnp.int32(num_examples)))
    np.testing.assert_array_equal(padded[:num_examples], random_order(key, num_examples))
    np.testing.assert_array_equal(padded[num_examples:], np.arange(num_examples, num_rows))


def test_an_order_does_not_depend_on_how_jax_lays_out_its_random_numbers(key):
    orders = []
    for partitionable in (False, True):
        with jax.threefry_partitionable(partitionable):
            orders.append([np.asarray(random_order(key, n)) for n in (37, 5000)])
    jax.tree.map(np.testing.assert_array_equal, *orders)


def test_large_orders_are_fair(key):
    """Of 5,000 rows: where a row stands is uniform, and neighbours come in either order."""
    orders = np.asarray(jax.vmap(lambda k: random_order(k, 5000))(jax.random.split(key, 400)))
    places = np.argsort(orders, axis=1)
    # A mean of 400 uniform places has deviation 5000 / sqrt(12 * 400) = 72; 5,000 of them.
    assert np.abs(places.mean(axis=0) - 2499.5).max() < 72 * 5
    ascending = (places[:, 1:] > places[:, :-1]).mean()
    assert abs(ascending - 0.5) < 4 * 0.5 / np.sqrt(400 * 5000 / 3)


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
