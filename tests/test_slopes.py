"""Slopes of a search: forward-mode derivatives of whole runs, against closed forms."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_trials import mesh_of

import wdjax
from wdjax.decay import cautious_decay
from wdjax.decay.optimizers import lion
from wdjax.selection.slopes import check_slopes, with_slopes

RNG = np.random.default_rng(0)
linear = wdjax.Model(
    init=lambda key, x: (jnp.zeros(x.shape[-1]), {}),
    apply=lambda w, state, x, *, key, train: (x @ w, state),
)


def table(num_examples=24, num_columns=3, dtype="float64"):
    x = RNG.normal(size=(num_examples, num_columns)).astype(dtype)
    y = (x @ np.arange(1.0, num_columns + 1) + RNG.normal(size=num_examples)).astype(dtype)
    return wdjax.Batch(x, y, np.ones(num_examples, dtype))


def descent(num_epochs, batch_size, *, model=linear, make_tx=None, schedule=None):
    """A run of plain descent with decoupled decay, and its loss on the held-out part."""

    def plain(h):
        rate = h["learning_rate"]
        rate = rate if schedule is None else lambda step: h["learning_rate"] * schedule(step)
        return wdjax.make_optimizer(
            optax.identity(), rate, functools.partial(wdjax.decoupled_decay, h["strength"])
        )

    fit = wdjax.make_fit(
        model,
        wdjax.squared_error,
        make_tx=make_tx or plain,
        num_epochs=num_epochs,
        batch_size=batch_size,
    )
    score = wdjax.make_score(model, loss=wdjax.squared_error)
    return wdjax.make_fit_and_score(fit, score)


BOTH = ("strength", "learning_rate")


def search(run, data, *, strengths=(0.1, 0.5), rates=(0.05,), num_folds=2, **more):
    folds = wdjax.kfold(jax.random.key(0), len(data.weights), num_folds=num_folds)
    grid = wdjax.grid_product(strength=strengths, learning_rate=rates)
    key = jax.random.key(1)
    return wdjax.cross_validate(run, grid, data, folds, key=key, **more), folds


def test_at_convergence_it_is_the_implicit_derivative_of_ridge(x64):
    # w* = (H + lam I)^-1 b, so dL_v / dlog lam = -lam g_v' (H + lam I)^-1 w*.
    data = table()
    scores, folds = search(descent(4000, 12), data, slopes=("strength",), num_folds=2)
    for fold in range(2):
        train, valid = np.asarray(folds.train)[fold], np.asarray(folds.valid)[fold]
        x, y = data.inputs[train], data.targets[train]
        hessian, b = x.T @ x / len(x), x.T @ y / len(x)
        for row, strength in enumerate((0.1, 0.5)):
            system = hessian + strength * np.eye(3)
            w = np.linalg.solve(system, b)
            held_out = data.inputs[valid]
            gradient = held_out.T @ (held_out @ w - data.targets[valid]) / len(valid)
            expected = -strength * gradient @ np.linalg.solve(system, w)
            found = scores.slope_of("loss")[row, fold, 0]
            np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_of_a_few_steps_it_is_the_derivative_of_the_recursion_written_out(x64):
    # w_{t+1} = (1 - eta s) w_t - eta (H w_t - b), full batches, so order is nothing.
    data = table(12)
    folds = wdjax.folds_from_splits([(np.arange(8), np.arange(8, 12))])
    grid = wdjax.grid_product(strength=[0.3], learning_rate=[0.05])
    scores = wdjax.cross_validate(
        descent(7, 8), grid, data, folds, key=jax.random.key(0), slopes=BOTH
    )
    x, y, held_out = data.inputs[:8], data.targets[:8], data.inputs[8:]
    hessian, b = x.T @ x / 8, x.T @ y / 8
    w, by_strength, by_rate, eta, s = np.zeros(3), np.zeros(3), np.zeros(3), 0.05, 0.3
    for _ in range(7):
        pull = hessian @ w - b + s * w
        step = lambda d: d - eta * (hessian @ d + s * d)
        by_strength, by_rate = step(by_strength) - eta * w, step(by_rate) - pull
        w = w - eta * pull
    gradient = held_out.T @ (held_out @ w - data.targets[8:]) / 4
    for name, moved, number in (("strength", by_strength, s), ("learning_rate", by_rate, eta)):
        found = scores.slope_of("loss", name)
        np.testing.assert_allclose(found, [[[number * gradient @ moved]]], rtol=1e-12)


def mlp_run(num_epochs=6):
    """Adam, annealed, batches smaller than the part, a smooth network, a dead input."""

    def init(key, x):
        first, second = jax.random.split(key)
        draw = functools.partial(jax.random.normal, dtype=x.dtype)
        return {"a": draw(first, (x.shape[-1], 5)) / 2, "b": draw(second, (5,)) / 2}, {}

    def apply(params, state, x, *, key, train):
        return jnp.tanh(x @ params["a"]) @ params["b"], state

    def make_tx(h):
        schedule = lambda step: h["learning_rate"] * (1 - step / 24)
        decay = functools.partial(wdjax.decoupled_decay, h["strength"])
        return wdjax.make_optimizer(optax.scale_by_adam(eps_root=1e-12), schedule, decay)

    return descent(num_epochs, 4, model=wdjax.Model(init, apply), make_tx=make_tx)


def dead_column(data):
    return data._replace(inputs=np.where(np.arange(data.inputs.shape[1]) == 1, 0, data.inputs))


def test_of_an_annealed_adam_run_it_is_the_finite_difference(x64):
    data, run, h = dead_column(table(20)), mlp_run(), 1e-5
    scores, _ = search(run, data, slopes=BOTH)
    for name in BOTH:
        moved = {
            sign: search(
                run,
                data,
                strengths=np.array((0.1, 0.5)) * np.exp(sign * h * (name == "strength")),
                rates=np.array((0.05,)) * np.exp(sign * h * (name == "learning_rate")),
            )[0].of("loss")
            for sign in (1, -1)
        }
        difference = (moved[1] - moved[-1]) / (2 * h)
        np.testing.assert_allclose(scores.slope_of("loss", name), difference, rtol=1e-6, atol=1e-9)


def test_the_values_are_those_without_slopes_and_examples_add_up(x64):
    data = dead_column(table(20))
    plain, _ = search(mlp_run(), data, num_seeds=2)
    scores, _ = search(mlp_run(), data, num_seeds=2, slopes=("learning_rate", "strength"))
    assert plain.slopes == {} and plain.held_out.slopes == {}
    assert scores.names == plain.names and list(scores.slopes) == ["learning_rate", "strength"]
    for name in plain.names:
        np.testing.assert_allclose(scores.of(name), plain.of(name), rtol=1e-12)
    weights = scores.held_out.weights[:, None, :]
    for name, own in scores.held_out.slopes.items():
        mean = (own["loss"] * weights).sum(-1) / weights.sum(-1)
        np.testing.assert_allclose(mean, scores.slope_of("loss", name), rtol=1e-12)
    told = scores.to_dict()["slopes"]["strength"]["loss"]
    np.testing.assert_array_equal(told, scores.slopes["strength"]["loss"])
    assert "slopes" not in plain.to_dict()


def test_one_program_is_compiled_and_what_is_cached_is_found(tmp_path, caplog):
    data, run = table(20, dtype="float32"), mlp_run()
    with jax.log_compiles(), caplog.at_level(logging.WARNING, "jax"):
        first, _ = search(run, data, slopes=BOTH, cache=tmp_path)
        trial_programs = [m for m in caplog.messages if "Finished XLA compilation" in m]
        assert sum("_run_chunk" in m for m in trial_programs) == 1
        caplog.clear()
        again, _ = search(run, data, slopes=BOTH, cache=tmp_path)
        other, _ = search(run, data, slopes=BOTH, strengths=(0.2, 0.7))
        assert not any("_run_chunk" in m for m in caplog.messages if "XLA compilation" in m)
    for name in BOTH:
        np.testing.assert_array_equal(first.slopes[name]["loss"], again.slopes[name]["loss"])
        assert np.isfinite(other.slope_of("loss", name)).all()


def test_two_devices_give_the_bits_of_one():
    data, mesh = table(20, dtype="float32"), mesh_of(2)
    one, _ = search(mlp_run(), data, slopes=BOTH)
    two, _ = search(mlp_run(), data, slopes=BOTH, mesh=mesh)
    for a, b in zip(jax.tree.leaves(one.slopes), jax.tree.leaves(two.slopes), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_score_without_a_name_and_a_function_of_ones_own_have_slopes(x64):
    ridge = lambda h, train, valid, key: h["strength"] ** 3 * jnp.sum(valid.targets)
    scores, folds = search(ridge, table(6), slopes=("strength",), num_folds=2)
    assert scores.names == ["score"]
    np.testing.assert_allclose(scores.slope_of("score"), 3 * scores.of("score"), rtol=1e-12)


def test_progress_tells_the_memory_of_the_compiled_program_and_a_tangent_takes_more():
    told = {}
    for slopes in ((), BOTH):
        heard = []
        search(descent(2, 4), table(21, dtype="float32"), slopes=slopes, progress=heard.append)
        # Folds of 10 and 11 train the same number of steps: one program, known once compiled.
        assert [heard[0].stage, heard[0].memory] == ["compile", None]
        assert len({each.memory for each in heard[1:]}) == 1
        told[slopes] = heard[-1].memory
    assert 0 < told[()] < told[BOTH]


def test_the_same_run_with_the_same_names_is_the_same_function():
    run = descent(1, 4)
    assert with_slopes(run, ()) is run
    assert with_slopes(run, ["strength"]) == with_slopes(run, ("strength",))
    assert hash(with_slopes(run, ["strength"])) == hash(with_slopes(run, ("strength",)))
    assert with_slopes(run, ["strength"]) != with_slopes(run, BOTH)
    assert with_slopes(run, ["strength"]) != run


def lion_run():
    decay = lambda h: functools.partial(wdjax.decoupled_decay, h["strength"])
    return descent(1, 4, make_tx=lambda h: lion(h["learning_rate"], decay(h)))


def cautious_run():
    make = lambda h: functools.partial(cautious_decay, h["strength"])
    plain = lambda h: wdjax.make_optimizer(optax.identity(), h["learning_rate"], make(h))
    return descent(1, 4, make_tx=plain)


def unsmooth_run():
    @jax.custom_vjp
    def identity(x):
        return x

    identity.defvjp(lambda x: (x, None), lambda _, g: (g,))
    apply = lambda w, state, x, *, key, train: (identity(x @ w), state)
    return descent(1, 4, model=linear._replace(apply=apply))


@pytest.mark.parametrize(
    "make, numbers, slopes, told",
    [
        (descent, {}, "strength", r"names of the grid's axes in a tuple, got 'strength'"),
        (descent, {}, (1,), r"names of the grid's axes in a tuple, got \(1,\)"),
        (descent, {}, ("strenght",), r"`slopes` must be one of .*Did you mean 'strength'"),
        (descent, {}, ("strength",) * 2, r"names 'strength' twice"),
        (
            descent,
            {"strengths": (0.1, 0.0)},
            ("strength",),
            r"grid\['strength'\] is 0 in row 1; leave such rows out of this grid",
        ),
        (
            descent,
            {"rates": (0.0,)},
            BOTH,
            r"grid\['learning_rate'\] is 0 in row 0; leave such rows out",
        ),
        (lion_run, {}, BOTH, r"takes the sign of something, as Lion's step.*values alone"),
        (cautious_run, {}, BOTH, r"hard gate of cautious decay.*values alone"),
        (unsmooth_run, {}, BOTH, r"cannot be differentiated forward \(.*custom_vjp"),
    ],
)
def test_slopes_that_mean_nothing_are_refused_before_anything_runs(make, numbers, slopes, told):
    run = descent(1, 4) if make is descent else make()
    started = []
    with pytest.raises(ValueError, match=told):
        search(run, table(dtype="float32"), **numbers, slopes=slopes, progress=started.append)
    assert started == []


def test_the_sign_in_the_derivative_of_a_norm_is_no_reason_to_refuse():
    lasso = lambda h: wdjax.l1_penalty(h["strength"])
    fit = wdjax.make_fit(
        linear,
        wdjax.squared_error,
        make_tx=lambda h: optax.sgd(h["learning_rate"]),
        make_penalty=lasso,
        num_epochs=1,
        batch_size=4,
    )
    run = wdjax.make_fit_and_score(fit, wdjax.make_score(linear, loss=wdjax.squared_error))
    scores, _ = search(run, table(dtype="float32"), slopes=("strength",))
    assert (scores.slope_of("loss") != 0).all()


def test_the_signs_in_rectifiers_and_in_the_cross_entropy_are_no_reason_to_refuse():
    net = wdjax.make_mlp(2, widths=(3,))
    decay = lambda h: functools.partial(wdjax.decoupled_decay, h["strength"])
    plain = lambda h: wdjax.make_optimizer(optax.identity(), h["learning_rate"], decay(h))
    error = wdjax.cross_entropy
    fit = wdjax.make_fit(net, error, make_tx=plain, num_epochs=1, batch_size=4)
    run = wdjax.make_fit_and_score(fit, wdjax.make_score(net, loss=error))
    data = table(dtype="float32")
    data = data._replace(targets=(data.targets > 0).astype("int32"))
    folds = wdjax.kfold(jax.random.key(0), 24, num_folds=2)
    numbers = wdjax.grid_product(strength=[0.1], learning_rate=[0.05])
    given = run, numbers, data, folds, jax.random.key(1)
    assert check_slopes(*given, ("strength",)) == ("strength",)
