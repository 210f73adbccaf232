"""The cache of trials: found again by all they depend on, and by nothing else."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_trials import FIT_AND_SCORE, data_of, mesh_of

from wdjax.selection import cache as cache_module
from wdjax.selection.cache import TrialCache, calls_out
from wdjax.selection.cross_validation import cross_validate
from wdjax.selection.folds import Folds, kfold
from wdjax.selection.grids import grid_product
from wdjax.types import Batch, TakesPadding

RNG = np.random.default_rng(0)
GRID = grid_product(strength=[0.0, 0.1, 1.0], learning_rate=[0.1, 0.3])
TOTAL = 6 * 3 * 2


def make_cheap(scale=1.0, table=(0.0, 1.0)):
    """A pure function of all it is given; its constants are in the program only.

    It weighs each row, so padding may be among them: one program runs folds of 14 and 15 rows.
    """
    table = jnp.asarray(table)

    def cheap(hparams, train, valid, key, *, num_examples=None):
        value = lambda part: jnp.sum(part.weights * part.inputs[:, 0]) / jnp.sum(part.weights)
        noise = scale * jax.random.normal(key) + table.sum()
        loss = jnp.log(hparams["strength"] - 0.05) + hparams["learning_rate"] * noise
        return {"loss": loss, "valid": value(valid), "train": value(train)}

    return TakesPadding(cheap, lambda num_examples: 1)


def run(folder, fit_and_score=None, grid=GRID, data=None, folds=None, seed=1, **options):
    """`(scores, events)`; strength 0 diverges in `cheap`, and that is a score too."""
    events = []
    with jax.debug_nans(False):
        scores = cross_validate(
            make_cheap() if fit_and_score is None else fit_and_score,
            grid,
            data_of() if data is None else data,
            kfold(jax.random.key(0), 22, 3) if folds is None else folds,
            key=jax.random.key(seed),
            progress=events.append,
            cache=folder,
            **{"num_seeds": 2, **options},
        )
    return scores, events


def assert_same_bits(found, expected):
    for name, values in expected.values.items():
        assert found.values[name].dtype == values.dtype
        np.testing.assert_array_equal(found.values[name], values, err_msg=name)


def lines_of(folder):
    (path,) = folder.iterdir()
    return path, [line for line in path.read_text().splitlines() if line]


def test_what_is_cached_is_found_bit_for_bit_and_nothing_is_compiled_or_run(tmp_path, caplog):
    """Also a score that is not finite. `cheap` is a new function object each time."""
    first, events = run(tmp_path)
    assert events[0].cached == 0 and events[-1].done == TOTAL
    assert np.isnan(first.values["loss"][0]).all() and np.isfinite(first.values["loss"][2:]).all()
    assert_same_bits(run(None)[0], first)
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        second, events = run(tmp_path)
    assert not [m for m in caplog.messages if m.startswith("Finished XLA compilation of")]
    assert_same_bits(second, first)
    (event,) = events
    assert (event.stage, event.done, event.cached, event.total) == ("run", TOTAL, TOTAL, TOTAL)
    assert_same_bits(event.scores, first)
    assert len(lines_of(tmp_path)[1]) == TOTAL


def test_it_is_the_line_that_is_read_and_not_the_trial_that_is_run(tmp_path):
    """Else the test before this would pass as well: here the lines say what no run would."""
    first, _ = run(tmp_path)
    path, lines = lines_of(tmp_path)
    told = TrialCache(tmp_path, path.stem)
    told.write((trial, [7.0, *s[1:]]) for trial, s in told.read(3).items())
    found, _ = run(tmp_path)
    assert (found.values["loss"] == 7.0).all()
    np.testing.assert_array_equal(found.values["valid"], first.values["valid"])


def test_what_two_devices_cached_one_finds_not_but_gives_the_same_bits(tmp_path):
    """Theirs is another program. On two of them it is found again."""
    two, _ = run(tmp_path, FIT_AND_SCORE, mesh=mesh_of(2))
    alone, events = run(tmp_path, FIT_AND_SCORE)
    assert events[0].cached == 0
    assert_same_bits(alone, two)
    found, events = run(tmp_path, FIT_AND_SCORE, mesh=mesh_of(2))
    assert events[0].cached == TOTAL
    assert_same_bits(found, two)


def test_only_what_is_new_is_run_and_by_the_program_that_is_there(tmp_path, caplog):
    """More strengths in another order, more seeds: neither's number is in the program."""
    cheap = make_cheap()
    run(tmp_path, cheap)
    wider = grid_product(strength=[2.0, 1.0, 0.1, 0.5], learning_rate=[0.3, 0.1])
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        found, events = run(tmp_path, cheap, wider, num_seeds=3)
    compiled = [m for m in caplog.messages if m.startswith("Finished XLA compilation of")]
    assert not [m for m in compiled if "_run_chunk" in m]
    assert [event.cached for event in events] == [4 * 3 * 2] * len(events)
    assert events[0].stage == "compile" and events[0].done == 24
    finished = np.isfinite(events[0].scores.values["valid"])
    assert finished.sum() == 24 and finished[2:6, :, :2].all()
    assert events[1].remaining is None and events[-1].done == events[-1].total == 8 * 3 * 3
    assert_same_bits(found, run(None, cheap, wider, num_seeds=3)[0])
    assert len(lines_of(tmp_path)[1]) == TOTAL + 8 * 3 * 3 - 24


def test_a_run_that_was_stopped_goes_on(tmp_path):
    def stop(event):
        if event.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cross_validate(
            make_cheap(),
            grid_product(strength=[1.0, 2.0, 3.0, 4.0, 5.0], learning_rate=[0.1]),
            data_of(),
            kfold(jax.random.key(0), 22, 3),
            key=jax.random.key(1),
            progress=stop,
            cache=tmp_path,
        )
    grid = grid_product(strength=[1.0, 2.0, 3.0, 4.0, 5.0], learning_rate=[0.1])
    found, events = run(tmp_path, grid=grid, num_seeds=1)
    assert 0 < events[0].cached == 2 < 15
    assert_same_bits(found, run(None, grid=grid, num_seeds=1)[0])


def other_folds():
    """The same rows in every part; two of them have changed places."""
    folds = jax.tree.map(np.array, kfold(jax.random.key(0), 22, 3))
    folds.train[:, [0, 1]] = folds.train[:, [1, 0]]
    return Folds(*folds)


def other_data(field, row=3):
    data = data_of()
    values = getattr(data, field).copy()
    values[row] = values[row] + 1
    return data._replace(**{field: values})


@pytest.mark.parametrize(
    "change",
    [
        {"fit_and_score": make_cheap(scale=1.0000001)},
        {"fit_and_score": make_cheap(table=(0.0, 1.0000001))},
        {"data": other_data("inputs")},
        {"data": other_data("targets")},
        {"data": other_data("weights")},
        {"folds": other_folds()},
        {"folds": kfold(jax.random.key(5), 22, 3)},
        {"seed": 2},
        {"trials_at_once": 3},
        {"grid": grid_product(strength=[0.2, 0.3], learning_rate=[0.1])},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_can_change_a_score_is_not_found(tmp_path, change):
    run(tmp_path)
    found, events = run(tmp_path, **change)
    assert [event.cached for event in events] == [0] * len(events)
    assert_same_bits(found, run(None, **change)[0])


def test_which_of_two_arguments_a_program_reads_is_in_its_name(tmp_path):
    """A compiler drops what is not read, and would leave two such programs alike."""
    grid = {"a": np.float32([1.0, 2.0]), "b": np.float32([3.0, 4.0])}
    halves = kfold(jax.random.key(0), 22, 2)
    for first, second in (
        (lambda h, t, v, k: h["a"], lambda h, t, v, k: h["b"]),
        (lambda h, t, v, k: t.weights.sum(), lambda h, t, v, k: v.weights.sum()),
        (lambda h, t, v, k: t.inputs.sum(), lambda h, t, v, k: v.inputs.sum()),
    ):
        run(tmp_path, first, grid, folds=halves)
        found, events = run(tmp_path, second, grid, folds=halves)
        assert events[0].cached == 0
        np.testing.assert_array_equal(found.values, run(None, second, grid, folds=halves)[0].values)


def test_what_ran_is_named_and_not_what_a_later_trace_would_give(tmp_path):
    """A function that reads a global keeps, in one process, the value of its first trace."""
    told = {"scale": 1.0}
    impure = lambda hparams, train, valid, key: told["scale"] * hparams["strength"]
    run(tmp_path, impure)
    told["scale"] = 2.0
    run(tmp_path, impure)
    pure = lambda hparams, train, valid, key: 2.0 * hparams["strength"]
    found, events = run(tmp_path, pure)
    assert events[0].cached == 0
    np.testing.assert_allclose(found.values[:, 0, 0], 2 * GRID["strength"], rtol=1e-6)


def test_how_a_trial_runs_beside_others_is_in_its_name(tmp_path):
    """A batching rule shows only where several run at once."""

    def with_rule(factor):
        @jax.custom_batching.custom_vmap
        def doubled(x):
            return 2 * x

        @doubled.def_vmap
        def rule(axis_size, in_batched, x):
            return factor * x, True

        return lambda hparams, train, valid, key: doubled(hparams["strength"])

    run(tmp_path, with_rule(3.0), trials_at_once=2)
    found, events = run(tmp_path, with_rule(4.0), trials_at_once=2)
    assert events[0].cached == 0
    np.testing.assert_allclose(found.values[:, 0, 0], 4 * GRID["strength"], rtol=1e-6)


def test_constants_are_in_the_name_however_jax_holds_them(tmp_path):
    before = jax.config.jax_use_simplified_jaxpr_constants
    try:
        jax.config.update("jax_use_simplified_jaxpr_constants", True)
        run(tmp_path, make_cheap(table=np.arange(3000.0)))
        assert run(tmp_path, make_cheap(table=np.arange(3000.0)))[1][0].cached == TOTAL
        assert run(tmp_path, make_cheap(table=np.arange(3000.0) + 1))[1][0].cached == 0
    finally:
        jax.config.update("jax_use_simplified_jaxpr_constants", before)


def test_a_few_trials_more_are_the_same_program_where_many_run_at_once(tmp_path):
    """As on a GPU, where 16 do by default, however few there are."""
    cheap = make_cheap()
    for strengths, cached in (([1, 2, 3, 4, 5], 0), ([1, 2, 3, 4, 5, 6], 15), ([1, 2, 7, 8], 6)):
        grid = grid_product(strength=strengths, learning_rate=[0.1])
        options = {"num_seeds": 1 if len(strengths) > 4 else 2, "trials_at_once": 16}
        found, events = run(tmp_path, cheap, grid, **options)
        assert events[0].cached == cached
        assert_same_bits(found, run(None, cheap, grid, **options)[0])


def test_the_same_numbers_in_a_wider_dtype_are_found(tmp_path):
    """The program takes them in its own."""
    first, _ = run(tmp_path)
    data, folds = data_of(), kfold(jax.random.key(0), 22, 3)
    wide = Batch(data.inputs.astype(np.float64), data.targets, data.weights.astype(np.float64))
    long = jax.tree.map(
        lambda x: x.astype(np.int64) if x.dtype == np.int32 else x, jax.tree.map(np.asarray, folds)
    )
    found, events = run(tmp_path, data=wide, folds=long)
    assert events[0].cached == TOTAL
    assert_same_bits(found, first)


def test_who_looks_for_nans_gets_them_from_the_trial(tmp_path):
    """Not a NaN that was cached; and the error is JAX's own, with or without `cache`."""
    run(tmp_path)
    arguments = (make_cheap(), GRID, data_of(), kfold(jax.random.key(0), 22, 3))
    for folder in (None, tmp_path):
        with pytest.raises(FloatingPointError, match="nan"):
            cross_validate(*arguments, key=jax.random.key(1), num_seeds=2, cache=folder)


def test_numbers_by_another_name_or_in_another_dtype_are_not_found(tmp_path):
    def by_sum(hparams, train, valid, key):
        return {"loss": sum(jnp.asarray(v, jnp.float32) for v in hparams.values())}

    grid = {"a": np.float32([1.0, 2.0]), "b": np.float32([3.0, 4.0])}
    run(tmp_path, by_sum, grid)
    for other in (
        {"a": grid["b"], "b": grid["a"]},
        {"a": grid["a"], "c": grid["b"]},
        {"a": grid["a"], "b": grid["b"].astype(np.int32)},
    ):
        assert run(tmp_path, by_sum, other)[1][0].cached == 0
    assert run(tmp_path, by_sum, {"b": grid["b"], "a": grid["a"]})[1][0].cached == 2 * 3 * 2


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true"),
        lambda patch: patch.setenv("XLA_FLAGS", __file__),
        lambda patch: patch.setattr(jax, "__version__", "0.0.1"),
        lambda patch: patch.setattr("jaxlib.version.__version__", "0.0.1"),
        lambda patch: patch.setattr(cache_module, "_processor", lambda: "another"),
        lambda patch: patch.setattr(cache_module, "num_cores", lambda: 64),
    ],
    ids=["flags", "flags of a file", "jax", "jaxlib", "processor", "cores"],
)
def test_what_another_compiler_or_machine_gave_is_not_found(tmp_path, monkeypatch, change):
    run(tmp_path)
    change(monkeypatch)
    assert run(tmp_path)[1][0].cached == 0


def test_what_another_effort_of_the_compiler_gave_is_not_found(tmp_path):
    run(tmp_path)
    before = jax.config.jax_optimization_level
    try:
        jax.config.update("jax_optimization_level", "O1")
        assert run(tmp_path)[1][0].cached == 0
    finally:
        jax.config.update("jax_optimization_level", before)
    assert run(tmp_path)[1][0].cached == TOTAL


def test_a_program_that_calls_python_is_never_cached(tmp_path):
    """What Python does there is not in the program's text."""

    def calling(hparams, train, valid, key):
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        return jax.pure_callback(lambda s: np.float32(2 * s), shape, hparams["strength"])

    for _ in range(2):
        with pytest.warns(
            UserWarning, match="`cache`: the program calls .*callback, whose code is"
        ):
            scores, events = run(tmp_path / "cached", calling)
        assert {event.cached for event in events} == {0}
        np.testing.assert_allclose(scores.values[:, 0, 0], 2 * GRID["strength"], rtol=1e-6)
    assert not (tmp_path / "cached").exists()


def test_what_calls_out_of_a_program_is_known_from_what_jax_brings():
    x = jnp.eye(3)
    linear_algebra = lambda x: (
        *(jnp.linalg.cholesky(x), jnp.linalg.qr(x), jnp.linalg.eigh(x), jnp.linalg.svd(x)),
        *(jnp.linalg.inv(x), jnp.linalg.det(x), jax.lax.top_k(x, 2)),
        *(jax.lax.approx_max_k(x, 2), jax.scipy.linalg.solve_triangular(x, x)),
    )
    text = jax.jit(linear_algebra).lower(x).as_text()
    assert "custom_call" in text and calls_out(text) == set()
    for platform in ("tpu", "cuda"):
        lowered = jax.jit(linear_algebra).trace(x).lower(lowering_platforms=(platform,))
        assert calls_out(lowered.as_text()) == set()
    foreign = jax.ffi.ffi_call("my_library", jax.ShapeDtypeStruct((3, 3), jnp.float32))
    assert calls_out(jax.jit(foreign).lower(x).as_text()) == {"my_library"}
    told = jax.jit(lambda x: jax.debug.print("{}", x)).lower(x).as_text()
    assert any("callback" in call for call in calls_out(told))


def test_a_name_with_callback_in_it_calls_nothing(tmp_path):
    @jax.jit
    def loss_callback(x):
        return 2 * x

    named = lambda hparams, train, valid, key: {"callback": loss_callback(hparams["strength"])}
    run(tmp_path, named)
    assert run(tmp_path, named)[1][0].cached == TOTAL


@pytest.mark.parametrize("scores", [{}, {"inner": ({}, [])}], ids=["none", "nested"])
def test_no_score_at_all_is_no_reason_to_fail(tmp_path, scores):
    found, events = run(tmp_path / "cached", lambda hparams, train, valid, key: scores)
    assert found.values == scores and events[-1].done == TOTAL
    assert not (tmp_path / "cached").exists()


def test_a_home_is_a_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    run("~/cached")
    assert len(list((tmp_path / "cached").iterdir())) == 1


def test_scores_that_are_not_real_numbers_are_never_cached(tmp_path):
    complex_score = lambda hparams, train, valid, key: hparams["strength"] * 1j
    assert run(tmp_path / "cached", complex_score)[0].values.dtype == np.complex64
    assert run(tmp_path / "cached", complex_score)[1][0].cached == 0
    assert not (tmp_path / "cached").exists()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda line: line[: len(line) // 2],
        lambda line: line.replace('"0x', '"-0x', 1),
        lambda line: json.dumps(json.loads(line) | {"trial": "0" * 32}),
        lambda line: json.dumps(json.loads(line) | {"scores": ["0x1.0p+0", 3]}),
        lambda line: json.dumps(json.loads(line) | {"scores": None}),
        lambda line: "[]",
        lambda line: "\x00\xff",
        lambda line: "",
    ],
    ids=["cut", "flipped", "renamed", "types", "null", "list", "binary", "empty"],
)
def test_a_damaged_line_is_passed_over_and_its_trial_run_again(tmp_path, spoil):
    first, _ = run(tmp_path)
    path, lines = lines_of(tmp_path)
    lines[20] = spoil(lines[20])
    path.write_bytes("\n".join(lines).encode("latin-1"))
    found, events = run(tmp_path)
    assert events[0].cached == TOTAL - 1
    assert_same_bits(found, first)
    # What is written anew does not end the line that was cut short.
    assert run(tmp_path)[1][0].cached == TOTAL


def test_a_line_that_a_kill_cut_short_does_not_swallow_the_next(tmp_path):
    store = TrialCache(tmp_path, "program")
    store.write([("a", [1.0]), ("b", [2.0])])
    whole = store.path.read_bytes()
    store.path.write_bytes(whole[:-20])
    store.write([("c", [3.0])])
    assert store.read(1) == {"a": [1.0], "c": [3.0]}


def test_numbers_are_cached_to_the_last_bit(tmp_path):
    """Of either width; a trial that is written twice is what was said last."""
    bits = RNG.integers(0, 2**64, 500, dtype=np.uint64)
    numbers = [*bits.view(np.float64).tolist(), *bits.view(np.float32).tolist()]
    numbers += [0.0, -0.0, np.inf, -np.inf, 5e-324, np.nan]
    store = TrialCache(tmp_path / "new" / "folder", "program")
    store.write([("twice", [1.0])])
    store.write((f"{i}", [number]) for i, number in enumerate(numbers))
    store.write([("twice", [2.0]), ("pair", [1.0, 2.0])])
    found = TrialCache(tmp_path / "new" / "folder", "program").read(1)
    assert found.pop("twice") == [2.0]
    np.testing.assert_array_equal([v for (v,) in found.values()], numbers)
    signs = np.signbit([v for (v,) in found.values() if not np.isnan(v)])
    np.testing.assert_array_equal(signs, np.signbit([v for v in numbers if not np.isnan(v)]))
    assert store.read(2) == {"pair": [1.0, 2.0]} and TrialCache(tmp_path, "other").read(1) == {}


@pytest.mark.parametrize("full", [False, True], ids=["no folder", "full disk"])
def test_where_nothing_can_be_cached_the_run_goes_on_and_says_so_once(tmp_path, monkeypatch, full):
    folder = tmp_path / "file"
    if full:
        monkeypatch.setattr(cache_module, "open", no_space, raising=False)
    else:
        folder.write_text("not a folder")
    with pytest.warns(UserWarning, match=r"`cache`: .*file' cannot be used \(N.*\), so") as told:
        found, events = run(folder)
    assert len(told) == 1 and "the run goes on without" in str(told[0].message)
    assert events[-1].done == TOTAL
    assert_same_bits(found, run(None)[0])


def no_space(*args, **options):
    raise OSError(28, "No space left on device")
