"""What a caller gives is looked at once, on the host, before anything is compiled.

(What is of the wrong kind altogether is in test_refusals: here types are checked before.)
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wdjax.checks import check_labels
from wdjax.host_checks import check_examples, check_given, check_hparams
from wdjax.losses import cross_entropy, squared_error
from wdjax.models import make_mlp
from wdjax.selection import compare, cross_validate, cross_validate_pure, grid_product, kfold
from wdjax.training import is_correct, make_fit, make_fit_and_score, make_score
from wdjax.types import Batch, Model
from wdjax.weights import focal_loss


def linear(num_outputs):
    return Model(
        lambda key, x: (jnp.zeros((x.shape[1], num_outputs)), {}),
        lambda params, state, x, *, key, train: (x @ params, state),
    )


MODEL = linear(3)


def run_of(example_loss=cross_entropy, model=MODEL, **measures):
    fit = make_fit(
        model,
        example_loss,
        make_tx=lambda h: optax.sgd(h["learning_rate"]),
        num_epochs=1,
        batch_size=2,
    )
    score = make_score(model if isinstance(model, Model) else MODEL, loss=example_loss, **measures)
    return fit, make_fit_and_score(fit, score)


def batch(**changes):
    whole = Batch(np.ones((6, 2), np.float32), np.array([0, 1, 2, 0, 1, 2]), np.ones(6, np.float32))
    return whole._replace(**changes)


GRID = {"strength": np.array([0.0, 1.0]), "learning_rate": np.array([0.1, 0.1])}


def validate(data, run, grid=GRID, how=cross_validate):
    folds = kfold(jax.random.key(0), 6, 2)
    return how(run, grid, data, folds, key=jax.random.key(1))


BAD = {
    "a label below zero": (
        {"targets": np.array([0, 1, 2, 0, -1, 2])},
        r"labels 0\.\.2.* got -1 in row 4",
    ),
    "a label beyond the classes": (
        {"targets": np.array([0, 1, 2, 3, 1, 2])},
        r"labels 0\.\.2.* got 3 in row 3",
    ),
    "NaN among the inputs": (
        {"inputs": np.where(np.arange(12).reshape(6, 2) == 5, np.nan, 1.0).astype(np.float32)},
        r"inputs` must be finite, got nan in row 2.*weight 0",
    ),
    "infinity among the inputs": (
        {"inputs": np.where(np.arange(12).reshape(6, 2) == 5, -np.inf, 1.0).astype(np.float32)},
        "inputs` must be finite, got -inf in row 2",
    ),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("on_device", [False, True])
def test_bad_data_are_refused_before_anything_is_compiled(case, on_device, nans_allowed):
    changes, words = BAD[case]
    data = batch(**changes)
    data = jax.device_put(data) if on_device else data
    fit, run = run_of()
    hparams, key = {"strength": 0.0, "learning_rate": 0.1}, jax.random.key(0)
    folds = kfold(key, 6, 2)
    compiled = []
    listen = lambda name, seconds, **_: compiled.append(name) if "backend_compile" in name else None
    jax.monitoring.register_event_duration_secs_listener(listen)
    calls = (
        lambda: fit(hparams, data, key),
        lambda: cross_validate(run, GRID, data, folds, key=key),
        lambda: cross_validate_pure(run, GRID, data, folds, key=key),
        lambda: compare({"a": run, "b": run}, GRID, data, folds, key=key),
    )
    try:
        for call in calls:
            with pytest.raises(ValueError, match=words):
                call()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not compiled


@pytest.mark.parametrize(
    "name, values, words",
    [
        ("strength", [0.0, -1.0], "must be finite and >= 0, got -1 in row 1; 0 switches"),
        ("example_strength", [0.0, np.inf], "must be finite and >= 0, got inf in row 1"),
        ("weight_decay", [0.0, np.nan], "must be finite and >= 0, got nan in row 1"),
        ("learning_rate", [0.1, -0.1], "must be finite and >= 0, got -0.1 in row 1"),
        ("slope", [0.1, np.nan], "must not be NaN, got nan in row 1"),
    ],
)
def test_numbers_that_no_run_can_take_are_refused(name, values, words):
    grid = {**GRID, name: np.array(values)}
    for how in (cross_validate, cross_validate_pure):
        with pytest.raises(ValueError, match=rf"`grid\['{name}'\]` {words}"):
            validate(batch(), run_of()[1], grid, how)
    hparams = {"strength": 0.0, "learning_rate": 0.1, name: values[1]}
    with pytest.raises(ValueError, match=rf"`hparams\['{name}'\]` must"):
        run_of()[0](hparams, batch(), jax.random.key(0))


def test_rows_of_weight_zero_may_hold_anything(nans_allowed):
    data = batch(
        inputs=np.array([[np.nan, 1], [1, 1], [1, 1], [1, 1], [1, 2], [2, 1]], np.float32),
        targets=np.array([-1, 1, 2, 0, 1, 99]),
        weights=np.array([0, 1, 1, 1, 1, 0], np.float32),
    )
    fit, run = run_of()
    assert np.isfinite(validate(data, run).values["loss"]).all()
    fit({"strength": 0.0, "learning_rate": 0.1}, data, jax.random.key(0))
    tokens = Batch(np.ones((2, 3, 1)), np.array([[0, -1, 1], [1, 0, 7]]), np.ones((2, 3)))
    tokens.weights[0, 1] = tokens.weights[1, 2] = 0
    check_examples("data", tokens)
    tokens.inputs[0] = np.nan  # Read, though not scored.
    with pytest.raises(ValueError, match="inputs` must be finite, got nan in row 0"):
        check_examples("data", tokens)
    tokens.weights[0] = 0
    check_examples("data", tokens)


@pytest.mark.parametrize(
    "example_loss",
    [
        lambda z, y: 2 * cross_entropy(z, y),
        lambda z, y: cross_entropy(z, y - 0),
        functools.partial(cross_entropy),
        optax.softmax_cross_entropy_with_integer_labels,
        focal_loss(2.0),
    ],
)
def test_labels_are_checked_however_the_loss_is_made_of_ours(example_loss):
    fit, run = run_of(example_loss)
    data = batch(targets=np.array([0, 1, 2, 0, 1, 3]))
    with pytest.raises(ValueError, match=r"labels 0\.\.2.* got 3 in row 5"):
        fit({"strength": 0.0, "learning_rate": 0.1}, data, jax.random.key(0))
    with pytest.raises(ValueError, match=r"labels 0\.\.2.* got 3 in row 5"):
        validate(data, run)


def test_a_model_that_depends_on_the_numbers_is_asked_for_its_classes():
    fit, _ = run_of(model=lambda h: linear(3))
    with pytest.raises(ValueError, match=r"labels 0\.\.2"):
        fit({"learning_rate": 0.1}, batch(targets=np.arange(6)), jax.random.key(0))


def test_whole_numbers_to_regress_on_are_no_labels():
    data = batch(targets=np.array([-5, 1, 2, 0, 100, 2]))
    fit, run = run_of(squared_error, linear(1))
    fit({"strength": 0.0, "learning_rate": 0.0}, data, jax.random.key(0))
    check_given(run, GRID, data)


def test_of_a_function_of_the_users_own_a_label_below_zero_is_refused_with_two_ways_out():
    """How many classes there are it does not tell, so a label beyond them is not seen."""
    own = lambda h, train, valid, key: jnp.sum(train.targets)
    data = batch(targets=np.array([0, 1, 2, 0, -100, 2]))
    with pytest.raises(ValueError, match=r"got -100 in row 4.*weight 0.*astype\(float\)"):
        validate(data, own)
    validate(batch(targets=data.targets.astype(np.float32)), own)
    own.check = run_of(squared_error, linear(1))[0].check
    validate(data, own)


def test_traced_values_pass_and_are_not_looked_at(nans_allowed):
    data = batch(targets=np.array([0, 1, 2, 0, -1, 7]), inputs=np.full((6, 2), np.nan, np.float32))
    fit, run = run_of()
    hparams = {"strength": -1.0, "learning_rate": 0.1}
    jax.jit(fit)(hparams, data, jax.random.key(0))
    folds = kfold(jax.random.key(0), 6, 2)
    pure = lambda grid, data: cross_validate_pure(run, grid, data, folds, key=jax.random.key(1))
    jax.eval_shape(pure, {"strength": -np.ones(2), "learning_rate": np.ones(2)}, data)
    many = jax.vmap(lambda s: fit({**hparams, "strength": s}, batch(), jax.random.key(0)).params)
    many(np.array([-1.0, 1.0]))
    check_hparams("grid", {"strength": np.array([0.0, 1.0]), "bound": np.array([np.inf, 1.0])})


def test_looking_takes_one_pass_over_the_data():
    """20 million numbers: as long as a few sums over them."""
    data = batch(inputs=np.ones((200_000, 100), np.float32))
    data = data._replace(targets=np.zeros(200_000, np.int32), weights=np.ones(200_000, np.float32))

    def seconds(run):
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin

    once = min(seconds(lambda: np.isfinite(data.inputs).all()) for _ in range(5))
    check = lambda: check_given(run_of()[1], GRID, data)
    assert min(seconds(check) for _ in range(3)) < 10 * once + 0.5


def test_sums_that_overflow_are_still_finite_data():
    check_examples("data", batch(inputs=np.full((6, 2), 3e38, np.float32)))
    check_examples("data", batch(inputs=np.full((6, 2), 6e4, np.float16)))
    check_examples("data", batch(inputs=jnp.full((6, 2), 1, jnp.bfloat16)))
    with pytest.raises(ValueError, match="got inf"):
        check_examples("data", batch(inputs=jnp.full((6, 2), jnp.inf, jnp.bfloat16)))


def test_every_measure_of_labels_refuses_known_ones_out_of_range(key):
    logits = jax.random.normal(key, (2, 3))
    for measure in (cross_entropy, is_correct, focal_loss(1.0)):
        for labels in (np.array([0, 3]), np.array([-1, 0])):
            with pytest.raises(ValueError, match=r"labels 0\.\.2"):
                measure(logits, labels)
        assert measure(logits, np.array([0, 2])).shape == (2,)
    check_labels("targets", np.zeros((0,), int), 3)


def test_a_run_of_the_package_passes(key):
    data = Batch(np.ones((6, 4), np.float32), np.arange(6) % 3, np.ones(6, np.float32))
    model = make_mlp(3)
    fit, run = run_of(model=model, accuracy=is_correct)
    scores = validate(data, run, grid_product(strength=[0.0], learning_rate=[0.1]))
    assert np.isfinite(scores.values["loss"]).all()
