"""What weights cost, read off the compiled program: a step against one written by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wdjax.decay import decoupled_decay
from wdjax.losses import cross_entropy, regularized_loss, validated_weights
from wdjax.models import make_mlp
from wdjax.models.products import product, relu
from wdjax.parts import scale_by_parts
from wdjax.penalties import l2_penalty
from wdjax.step import init_state, make_train_step
from wdjax.training import make_fit
from wdjax.types import Batch
from wdjax.weights import depth, margin, sigmoid_example_weight, sigmoid_parts

ETA, LAM, SLOPE, MOMENTUM = 1e-2, 0.1, 2.0, 0.9
MODEL = make_mlp(10, widths=(100,))
DEPTH = {"hidden1": 0.0, "head": 1.0}


def a_batch():
    shapes = ((128, 64), jnp.float32), ((128,), jnp.int32), ((128,), jnp.float32)
    return Batch(*(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes))


def params():
    return jax.eval_shape(lambda: MODEL.init(jax.random.key(0), jnp.zeros((1, 64)))[0])


def counts(step, *arguments):
    cost = jax.jit(step).lower(*arguments).compile().cost_analysis()
    return cost["flops"], cost["bytes accessed"]


def part_weight(layer, slope):
    return jax.nn.sigmoid(slope * DEPTH[layer])


def by_hand(place):
    """Margin weights, L2 in the loss or decay beside the update, weights of parts; momentum."""

    def forward(w, x):
        # The layers' own product, which transposes an operand ahead of it on a CPU.
        hidden = relu(product(x, w["hidden1"]["kernel"]) + w["hidden1"]["bias"][None])
        return product(hidden, w["head"]["kernel"]) + w["head"]["bias"][None]

    def step(w, velocity, batch, slope):
        label = jax.nn.one_hot(batch.targets, 10, dtype=bool)

        def loss(w):
            z = forward(w, batch.inputs)
            rest = jnp.max(z, -1, where=~label, initial=-jnp.inf)
            of_label = jnp.sum(jnp.where(label, z, 0), -1)
            s = jax.lax.stop_gradient(jax.nn.sigmoid(slope * (of_label - rest))) * batch.weights
            losses = optax.softmax_cross_entropy_with_integer_labels(z, batch.targets)
            data = jnp.sum(s * losses) / jnp.sum(s)
            if place != "penalty":
                return data
            squares = sum(
                part_weight(layer, slope) * jnp.sum(leaf**2)
                for layer in DEPTH
                for leaf in w[layer].values()
            )
            return data + 0.5 * LAM * squares

        value, grads = jax.value_and_grad(loss)(w)

        def moved(path, w, v, g):
            m = part_weight(path[0].key, slope)
            if place == "loss":
                g = m * g
            v = MOMENTUM * v + g
            update = -ETA * v
            if place == "update":
                update = m * update
            if place == "decay":
                update = update - ETA * LAM * m * w
            return w + update, v

        pairs = jax.tree_util.tree_map_with_path(moved, w, velocity, grads)
        new, velocity = jax.tree.transpose(jax.tree.structure(w), jax.tree.structure((0, 0)), pairs)
        return new, velocity, value

    return counts(step, params(), params(), a_batch(), jnp.zeros(()))


def by_library(place):
    """The same of this package's parts: the forward pass for the margins is written a second time,
    as `make_fit` has it, and has to be shared by the compiler."""
    feature = depth(MODEL, jax.ShapeDtypeStruct((1, 64), jnp.float32))

    def step(w, velocity, batch, slope):
        parts = sigmoid_parts(feature, slope)
        at = lambda wanted: parts if place == wanted else None
        tx = optax.chain(
            optax.trace(decay=MOMENTUM),
            optax.identity() if place != "update" else scale_by_parts(parts),
            optax.scale_by_learning_rate(ETA),
            decoupled_decay(LAM, ETA, parts=parts) if place == "decay" else optax.identity(),
        )
        outputs, _ = MODEL.apply(w, {}, batch.inputs, key=None, train=True)
        weights = sigmoid_example_weight(margin, slope)(outputs, batch, jnp.zeros(128))
        weights = validated_weights(batch.weights) * weights
        penalty = l2_penalty(LAM, parts) if place == "penalty" else None
        loss_fn = regularized_loss(MODEL, cross_entropy, penalty, part_weights=at("loss"))
        state = init_state(w, tx, model_state={})
        inside = (optax.TraceState(velocity), *state.opt_state[1:])
        weighed = functools.partial(loss_fn, example_weights=weights)
        # Rows of weight 0 are filled before the run: a choice between them and a step's own rows
        # would keep the compiler from sharing the forward pass.
        filled = batch._replace(weights=np.ones(128, np.float32))
        state, metrics = make_train_step(weighed, tx)(state._replace(opt_state=inside), filled)
        return state.params, state.opt_state[0].trace, metrics["loss"]

    return counts(step, params(), params(), a_batch(), jnp.zeros(()))


@pytest.mark.parametrize("place", ["penalty", "decay", "loss", "update"])
def test_a_step_with_weights_and_parts_counts_as_one_by_hand(place):
    ours, theirs = by_library(place), by_hand(place)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=0.01, err_msg="operations")
    assert ours[1] <= 1.01 * theirs[1], "bytes"


def test_in_a_run_the_weights_share_the_forward_pass_of_the_loss():
    """Counted with weights from the outputs and without: a second forward pass is a third more."""
    train = Batch(jnp.zeros((256, 64)), jnp.zeros(256, jnp.int32), jnp.ones(256))
    how = dict(make_tx=lambda h: optax.sgd(ETA), num_epochs=1, batch_size=128)
    weigh = lambda h: sigmoid_example_weight(margin, h["slope"])
    fits = [make_fit(MODEL, cross_entropy, make_example_weight=w, **how) for w in (weigh, None)]
    arguments = {"slope": jnp.zeros(())}, train, jax.random.key(0)
    weighted, plain = (counts(fit, *arguments)[0] for fit in fits)
    np.testing.assert_allclose(weighted, plain, rtol=0.01)
