"""Grids, and cross-validation over them as one program."""

import functools
import itertools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_trials import FIT_AND_SCORE, data_of, mesh_of

from wdjax.selection.choice import choose
from wdjax.selection.cross_validation import (
    Progress,
    cross_validate,
    cross_validate_pure,
)
from wdjax.selection.folds import Folds, folds_from_splits, kfold
from wdjax.selection.grids import Grid, check_axis, grid_product
from wdjax.selection.scores import HeldOut
from wdjax.selection.trials import Chunk, map_trials, trial_program
from wdjax.types import Batch, TakesPadding

# Grids


def test_a_grid_is_every_combination_the_last_axis_fastest():
    grid = grid_product(strength=[0, 0.1, 1], slope=(1, 2), rate=0.5)
    assert grid.shape == {"strength": 3, "slope": 2, "rate": 1}
    assert grid.num_rows == 6
    rows = [tuple(grid.row(i).values()) for i in range(6)]
    assert rows == list(itertools.product([0, 0.1, 1], [1, 2], [0.5]))
    assert all(axis.dtype == np.float64 for axis in grid.values())


def test_a_grid_is_a_tree_that_keeps_its_shape_and_order():
    grid = grid_product(strength=[0.0, 1.0], alpha=[3.0])
    doubled = jax.tree.map(lambda x: 2 * x, grid)
    assert isinstance(doubled, Grid)
    assert (list(doubled), doubled.shape) == (["strength", "alpha"], {"strength": 2, "alpha": 1})
    np.testing.assert_array_equal(doubled["strength"], [0.0, 2.0])
    traced = jax.jit(lambda grid: grid["strength"].sum())(grid)
    assert traced == 1.0


def test_rows_left_out_are_gone_and_counted():
    """Pairs whose product is 1 or more; a value without a pair left is no part of the shape."""
    grid = grid_product(strength=[0.0, 1.0, 5.0, 90.0], rate=[0.1, 0.5], fixed=2.0)
    fewer = grid.without(grid["strength"] * grid["rate"] >= 1)
    assert (fewer.num_rows, fewer.num_left_out) == (5, 1)
    assert fewer.shape == {"strength": 3, "rate": 2, "fixed": 1}
    rows = [tuple(fewer.row(i).values()) for i in range(5)]
    assert rows == [(0, 0.1, 2), (0, 0.5, 2), (1, 0.1, 2), (1, 0.5, 2), (5, 0.1, 2)]
    again = jax.tree.map(lambda x: x, fewer)
    assert (again.num_rows, again.num_left_out, again.shape) == (5, 1, fewer.shape)
    assert fewer.without(fewer["strength"] == 5).num_left_out == 0


@pytest.mark.parametrize(
    "rows, words",
    [
        ([True, True], "`rows` leaves out every row of the grid; keep at least one"),
        (
            [True],
            r"`rows` must be one truth value for each of the 2 rows, got bool of shape \(1,\)",
        ),
        ([1, 0], "`rows` must be one truth value for each of the 2 rows, got int64"),
    ],
)
def test_rows_that_cannot_be_left_out_are_refused(rows, words):
    with pytest.raises(ValueError, match=words):
        grid_product(strength=[0.0, 1.0]).without(rows)


@pytest.mark.parametrize(
    "axes, words",
    [
        ({}, "needs at least one axis, such as strength="),
        (
            {"strength": []},
            r"`strength` must hold at least one number along one axis, got .*\(0,\)",
        ),
        ({"strength": [-0.1, 1]}, r"`strength` must be >= 0, got -0\.1; 0 switches it off"),
        ({"l1_strength": [-1]}, "`l1_strength` must be >= 0"),
        ({"slope": [1, float("nan")]}, "`slope` must hold finite numbers, got nan"),
        ({"slope": [np.inf]}, "`slope` must hold finite numbers, got inf"),
        ({"slope": ["a"]}, r"`slope` must hold numbers, got \['a'\]"),
        ({"slope": [True, False]}, "`slope` must hold numbers"),
        ({"slope": [0.1, 0.2, 0.1]}, r"`slope` holds 0\.1 twice"),
        ({"slope": [[1.0]]}, r"along one axis, got shape \(1, 1\)"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(axes, words):
    with pytest.raises(ValueError, match=words):
        grid_product(**axes)


def test_only_strengths_must_not_be_negative():
    assert check_axis("slope", [-1, 1]) == [-1.0, 1.0]
    with pytest.raises(ValueError, match="`strengths` must be >= 0, got -1"):
        check_axis("strengths", [-1, 1])


# Cross-validation


GRID = grid_product(strength=[0.0, 0.1, 1.0], learning_rate=[0.1, 0.3])


def cheap(hparams, train, valid, key):
    """A pure function of all it is given; no training."""
    value = lambda part: jnp.sum(part.weights * part.inputs[:, 0]) / jnp.sum(part.weights)
    noise = jax.random.normal(key)
    return {
        "loss": hparams["strength"] * value(train) + hparams["learning_rate"] * noise,
        "noise": noise,
        "valid": value(valid),
    }


@pytest.fixture(scope="module")
def expected():
    """A plain Python loop: run by run, on the rows of the fold and no others."""
    data, key = data_of(), jax.random.key(1)
    folds = kfold(jax.random.key(0), 22, 3, stratify=data.targets)
    run = jax.jit(FIT_AND_SCORE)
    values = {name: np.zeros((6, 3, 2), np.float32) for name in ("loss", "train_loss")}
    for row, fold, seed in itertools.product(range(6), range(3), range(2)):
        rows = [np.asarray(leaf[fold]) for leaf in folds]
        train, valid = (
            jax.tree.map(lambda x, own=index[mask]: x[own], data)
            for index, mask in (rows[:2], rows[2:])
        )
        trial_key = jax.random.fold_in(jax.random.fold_in(key, fold), seed)
        hparams = {name: jnp.float32(value) for name, value in GRID.row(row).items()}
        for name, score in run(hparams, train, valid, trial_key).items():
            values[name][row, fold, seed] = score
    return data, folds, key, values


def assert_values_close(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("num_devices, trials_at_once", [(0, None), (0, 5), (2, None), (2, 3)])
def test_it_equals_a_plain_loop_run_by_run(expected, num_devices, trials_at_once):
    """On one device and on two, one by one and vmapped, padded chunks or not."""
    data, folds, key, values = expected
    mesh = None if num_devices == 0 else mesh_of(num_devices)
    scores = cross_validate(
        FIT_AND_SCORE,
        GRID,
        data,
        folds,
        key=key,
        num_seeds=2,
        trials_at_once=trials_at_once,
        mesh=mesh,
    )
    assert scores.grid is GRID
    assert_values_close(scores.values, values)


def test_the_pure_form_equals_it_and_is_traceable(expected):
    data, folds, key, values = expected
    run = lambda grid, data: cross_validate_pure(
        FIT_AND_SCORE, grid, data, folds, key=key, num_seeds=2
    )
    assert_values_close(jax.jit(run)(GRID, data), values)


def test_the_pure_form_is_differentiable_in_the_grid(x64):
    data, folds = data_of(), kfold(jax.random.key(0), 22, 3)
    total = lambda grid: cross_validate_pure(cheap, grid, data, folds, key=jax.random.key(1))[
        "loss"
    ].sum()
    slopes = jax.jit(jax.grad(total))(dict(GRID))["strength"]
    x, w = data.inputs[:, 0].astype(float), data.weights
    parts = [np.asarray(t)[np.asarray(m)] for t, m in zip(*folds[:2], strict=True)]
    means = [np.average(x[part], weights=w[part]) for part in parts]
    np.testing.assert_allclose(slopes, np.full(6, np.sum(means)), rtol=1e-6)


def test_the_pure_form_is_a_function_to_vmap():
    """Over keys of the folds: repeated cross-validation in one program."""
    data = data_of()

    def one(key):
        folds = kfold(key, 22, 3)
        return cross_validate_pure(cheap, GRID, data, folds, key=key)["loss"]

    keys = jax.random.split(jax.random.key(0), 3)
    found = jax.jit(jax.vmap(one))(keys)
    assert found.shape == (3, 6, 3, 1)
    np.testing.assert_allclose(found[1], jax.jit(one)(keys[1]), rtol=1e-5, atol=1e-6)


def run_cheap(grid=GRID, num_seeds=2, num_folds=3, **options):
    data = data_of()
    folds = kfold(jax.random.key(0), 22, num_folds)
    return cross_validate(
        cheap, grid, data, folds, key=jax.random.key(1), num_seeds=num_seeds, **options
    )


def test_rows_are_paired_a_key_depends_on_fold_and_seed_only():
    noise = run_cheap().values["noise"]
    np.testing.assert_array_equal(noise, np.broadcast_to(noise[:1], noise.shape))
    assert len(np.unique(noise[0])) == 6
    fewer = run_cheap(grid_product(strength=[1.0], learning_rate=[0.3]), num_seeds=1)
    np.testing.assert_array_equal(fewer.values["noise"][0, :, 0], noise[0, :, 0])


@pytest.mark.parametrize("num_rows", [1, 2, 7])
@pytest.mark.parametrize("trials_at_once", [1, 3])
@pytest.mark.parametrize("mesh", [None, mesh_of(2)], ids=["one", "two"])
def test_chunks_are_filled_up_and_the_filling_thrown_away(num_rows, trials_at_once, mesh):
    strengths = np.arange(num_rows)
    grid = grid_product(strength=strengths, learning_rate=[0.0])
    events = []
    scores = run_cheap(
        grid, num_seeds=1, trials_at_once=trials_at_once, mesh=mesh, progress=events.append
    )
    losses = scores.values["loss"][:, :, 0]
    slopes = run_cheap(grid_product(strength=[1.0], learning_rate=[0.0])).values["loss"][0, :, 0]
    np.testing.assert_allclose(losses, strengths[:, None] * slopes[None], rtol=1e-6)
    assert events[-1].done == events[-1].total == 3 * num_rows


def test_a_grid_may_hold_lists():
    found = run_cheap({name: values.tolist() for name, values in GRID.items()})
    jax.tree.map(np.testing.assert_array_equal, found.values, run_cheap().values)


def test_a_mesh_of_several_axes_splits_over_all_of_them():
    found = run_cheap(mesh=mesh_of(2, 1, 2)).values
    jax.tree.map(np.testing.assert_array_equal, found, run_cheap().values)


def test_one_program_is_compiled_whatever_the_grid_and_chunks_and_none_the_second_time(caplog):
    """Counted three ways: traces, the program's own cache, and what XLA was asked to compile."""
    traces = []

    def weighted(hparams, train, valid, key, *, num_examples=None):
        traces.append(1)
        return cheap(hparams, train, valid, key)

    # Of 14 and 15 rows, which it takes in one shape: padding weighs nothing.
    counted = TakesPadding(weighted, lambda num_examples: 1)
    data, folds = data_of(), kfold(jax.random.key(0), 22, 3)
    program = trial_program(None)
    before = program._cache_size()
    for mesh in (None, mesh_of(2)):
        assert trial_program(mesh) is program
        traces.clear()
        chunks = []
        for strengths in ([0.0, 0.1, 1.0], [0.2, 0.3, 0.4]):
            grid = grid_product(strength=strengths, learning_rate=[0.1, 0.2, 0.3])
            with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
                cross_validate(
                    counted,
                    grid,
                    data,
                    folds,
                    key=jax.random.key(len(chunks)),
                    num_seeds=2,
                    trials_at_once=5,
                    mesh=mesh,
                    progress=chunks.append,
                )
        compiled = [r for r in caplog.messages if r.startswith("Finished XLA compilation of")]
        programs = [message for message in compiled if "_run_chunk" in message]
        assert len(programs) == 1, programs
        assert len(traces) == 1
        assert len({chunk.done for chunk in chunks if chunk.stage == "run"}) > 1 + 3
        caplog.clear()
    assert program._cache_size() == before + 2


def test_a_run_that_is_nan_stays_in_its_own_row(nans_allowed):
    def poisoned(hparams, train, valid, key):
        return jnp.log(hparams["strength"] - 0.5) + 0 * jnp.sum(valid.weights)

    grid = grid_product(strength=[0.0, 1.0, 2.0, 0.25])
    data, folds = data_of(), kfold(jax.random.key(0), 22, 3)
    for options in ({}, {"trials_at_once": 4}, {"mesh": mesh_of(2)}):
        values = cross_validate(
            poisoned, grid, data, folds, key=jax.random.key(1), **options
        ).values
        assert np.isnan(values[[0, 3]]).all()
        np.testing.assert_allclose(values[1], np.log(0.5), rtol=1e-6)
        np.testing.assert_allclose(values[2], np.log(1.5), rtol=1e-6)


def test_progress_tells_the_compilation_then_every_chunk_with_what_is_finished():
    events = []
    scores = run_cheap(trials_at_once=4, progress=events.append)
    assert [e.stage for e in events[:3]] == ["compile", "run", "run"]
    assert [e.done for e in events[:2]] == [0, 0] and {e.total for e in events} == {36}
    assert events[1].remaining is None and events[1].scores is None
    assert events[-1].remaining == 0.0
    done = [e.done for e in events]
    assert done == sorted(done)
    assert [e.elapsed for e in events] == sorted(e.elapsed for e in events)
    middle = events[2]
    assert isinstance(middle, Progress) and middle.remaining > 0
    finished = ~np.isnan(middle.scores.values["loss"])
    assert finished.sum() == middle.done < 36
    np.testing.assert_array_equal(
        middle.scores.values["loss"][finished], scores.values["loss"][finished]
    )


def test_what_progress_raises_stops_the_run():
    def stop(event):
        if event.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cheap(progress=stop)


def test_folds_of_uneven_sizes_are_padded_and_the_padding_counts_nothing():
    data = data_of()
    pairs = [(np.arange(4), np.arange(4, 22)), (np.arange(10, 22), np.arange(3))]
    scores = cross_validate(
        cheap,
        grid_product(strength=[1.0], learning_rate=[0.0]),
        data,
        folds_from_splits(pairs),
        key=jax.random.key(1),
    )
    for fold, parts in enumerate(pairs):
        for name, rows in zip(("loss", "valid"), parts, strict=True):
            mean = np.average(data.inputs[rows, 0], weights=data.weights[rows])
            np.testing.assert_allclose(scores.values[name][0, fold, 0], mean, rtol=1e-5)


def test_a_fold_is_gathered_once_and_shared_by_its_trials():
    """Temporary memory of the compiled program: 8 trials at once must not hold 8 folds.

    The fold's training part has 4.2 MB; the run reads it by batches of 16 rows."""

    def fit_and_score(hparams, train, valid, key):
        def step(w, rows):
            x, y = train.inputs[rows], train.targets[rows]
            return w - 0.1 * (x.T @ (x @ w - y) + hparams["strength"] * w), None

        order = jax.random.permutation(key, 1040).reshape(65, 16)
        w, _ = jax.lax.scan(step, jnp.zeros(1000), order)
        return jnp.mean((valid.inputs @ w - valid.targets) ** 2)

    shape = lambda *size: jax.ShapeDtypeStruct(size, jnp.float32)
    data = Batch(shape(1300, 1000), shape(1300), shape(1300))
    folds = jax.eval_shape(lambda key: kfold(key, 1300, 5), jax.random.key(0))
    bytes_of = {}
    for trials in (1, 8):
        numbers = {"strength": np.zeros(8, np.float32)}
        chunk = Chunk.of(numbers, 1, 0, np.arange(8), num_devices=1, trials_at_once=trials)
        lowered = trial_program(None).lower(
            *chunk.arguments,
            data=data,
            folds=folds,
            key=jax.eval_shape(lambda: jax.random.key(0)),
            fit_and_score=fit_and_score,
            mesh=None,
            trials_at_once=trials,
        )
        bytes_of[trials] = lowered.compile().memory_analysis().temp_size_in_bytes
    fold = 1040 * 1000 * 4
    assert bytes_of[1] >= fold
    # Eight trials add their batches, weights and orders: well below one more fold.
    assert bytes_of[8] - bytes_of[1] < 0.5 * fold, bytes_of


def test_other_trials_run_compiled_once_over_the_mesh():
    traces = []

    def function(number, tree, scale):
        traces.append(1)
        return {"value": scale["by"] * (number + tree["x"].sum())}

    trials = (jnp.arange(3.0), {"x": jnp.ones((3, 2))})
    found = map_trials(function, trials, ({"by": jnp.array(10.0)},), mesh=mesh_of(2))
    np.testing.assert_array_equal(found["value"], [20.0, 30.0, 40.0])
    assert len(traces) == 1


@pytest.mark.parametrize(
    "change, words",
    [
        ({"grid": {}}, "`grid` is empty; build one with grid_product"),
        ({"grid": {"strength": np.ones(2), "slope": np.ones(3)}}, "arrays of one length.*slope"),
        ({"grid": {"strength": 1.0}}, "one leading axis; got shapes {'strength': ..}"),
        ({"num_seeds": 0}, "`num_seeds` must be >= 1, got num_seeds=0"),
        ({"trials_at_once": 0}, "`trials_at_once` must be >= 1"),
        (
            {"data": Batch(np.ones((5, 3)), np.ones(4), np.ones(5))},
            r"leading sizes \[\(4,\), \(5,\)",
        ),
        ({"data": Batch(np.ones((5, 3)), np.ones(5), np.ones(5))}, "points at row 21, .* has 5"),
        ({"data": Batch(np.ones((0, 3)), np.ones(0), np.ones(0))}, "at least one, in inputs"),
        (
            {"fit_and_score": lambda h, t, v, k: {"loss": v.weights[:-1]}},
            r"one score a run, or one number per held-out example.*\(8,\); loss has shape \(7,\)",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(change, words):
    arguments = {
        "fit_and_score": cheap,
        "grid": GRID,
        "data": data_of(),
        "folds": kfold(jax.random.key(0), 22, 3),
        "key": jax.random.key(1),
    } | change
    with pytest.raises(ValueError, match=words):
        cross_validate(**arguments)
    if "trials_at_once" not in change:
        with pytest.raises(ValueError, match=words):
            cross_validate_pure(**arguments)


def test_folds_of_negative_rows_are_refused():
    folds = folds_from_splits([([0, 1], [-1, 2])])
    with pytest.raises(ValueError, match="`folds` points at row -1"):
        cross_validate(cheap, GRID, data_of(), folds, key=jax.random.key(1))


# Single examples


def own_losses(hparams, train, valid, key):
    """One number per held-out example, known from its index and the trial's numbers."""
    at = valid.targets * 10 + hparams["strength"] + jax.random.uniform(key)
    return {"loss": at, "constant": jnp.float32(2.0)}


def test_scores_of_single_examples_stand_under_their_index_and_average_to_the_score():
    data = Batch(np.zeros((11, 2), "f4"), np.arange(11.0, dtype="f4"), np.ones(11, "f4"))
    data.weights[4], data.weights[7] = 0, 2
    folds = kfold(jax.random.key(0), 11, 3)
    grid = grid_product(strength=[0.0, 0.5])
    scores = cross_validate(own_losses, grid, data, folds, key=jax.random.key(1), num_seeds=2)
    held_out = scores.held_out
    assert set(held_out.values) == {"loss"}
    each = held_out.values["loss"]
    assert each.shape == (2, 3, 2, 4) and held_out.weights.shape == (3, 4)
    assert sorted(held_out.examples[held_out.weights > 0]) == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10]
    assert not held_out.repeated and held_out.num_train.sum() == 2 * 10
    for fold, seed in np.ndindex(3, 2):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(1), fold), seed)
        noise = float(jax.random.uniform(key))
        there = held_out.weights[fold] > 0
        for row, strength in enumerate((0.0, 0.5)):
            expected = held_out.examples[fold] * 10 + strength + noise
            np.testing.assert_allclose(each[row, fold, seed][there], expected[there], rtol=1e-6)
            mean = np.average(expected, weights=held_out.weights[fold])
            np.testing.assert_allclose(scores.values["loss"][row, fold, seed], mean, rtol=1e-6)
    assert (scores.values["constant"] == 2).all()


def test_two_devices_and_a_cache_give_the_same_single_examples(tmp_path):
    """With the project's own score; found again bit for bit, and trained nothing for it."""
    arguments = (FIT_AND_SCORE, GRID, data_of(), kfold(jax.random.key(0), 22, 3))
    one = cross_validate(*arguments, key=jax.random.key(1), cache=tmp_path)
    assert one.held_out.values["loss"].shape[:2] == one.values["loss"].shape[:2]
    assert one.higher_is_better == {"loss": False, "train_loss": False}
    events = []
    again = cross_validate(
        *arguments, key=jax.random.key(1), cache=tmp_path, progress=events.append
    )
    assert events[-1].cached == events[-1].total
    both = cross_validate(*arguments, key=jax.random.key(1), mesh=mesh_of(2))
    for other in (again, both):
        np.testing.assert_array_equal(
            other.held_out.values["loss"], one.held_out.values["loss"], strict=True
        )
    weights = one.held_out.weights[None, :, None]
    mean = (one.held_out.values["loss"] * weights).sum(-1) / weights.sum(-1)
    np.testing.assert_allclose(mean, one.values["loss"], rtol=1e-5)


def test_folds_wider_than_their_longest_score_and_choose_as_those_cut_to_it():
    """A column of padding in every fold, before the rows or behind them, says nothing."""
    data = Batch(np.zeros((11, 2), "f4"), np.arange(11.0, dtype="f4"), np.ones(11, "f4"))
    folds = kfold(jax.random.key(0), 11, 3)
    more = (2, 0), (2, 0), (1, 2), (1, 2)
    wide = [np.pad(leaf, ((0, 0), ends)) for leaf, ends in zip(folds, more, strict=True)]
    how = {"key": jax.random.key(1), "groups": np.arange(11)}
    own, other = (
        cross_validate(own_losses, grid_product(strength=[0.0, 0.5]), data, each, **how)
        for each in (folds, Folds(*wide))
    )
    assert own.held_out.weights.shape == (3, 4)
    jax.tree.map(functools.partial(np.testing.assert_array_equal, strict=True), other, own)
    assert choose(other) == choose(own)


def test_repeated_folds_are_known_as_such():
    data, pairs = data_of(), [(np.arange(4, 22), np.arange(4)), (np.arange(6), np.arange(6, 22))]
    assert not HeldOut.of(data, folds_from_splits(pairs)).repeated
    assert HeldOut.of(data, folds_from_splits([*pairs, pairs[0]])).repeated


@pytest.mark.parametrize(
    "groups, words",
    [
        (np.arange(5), r"`groups` must have shape \(22,\), one group per example; got \(5,\)"),
        (np.zeros(22, int), "group 0 is trained on and held out in fold 0; .*GroupKFold"),
    ],
)
def test_groups_that_do_not_fit_the_folds_are_refused(groups, words):
    with pytest.raises(ValueError, match=words):
        cross_validate(
            *(cheap, GRID, data_of(), kfold(jax.random.key(0), 22, 3)),
            key=jax.random.key(1),
            groups=groups,
        )
