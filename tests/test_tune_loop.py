"""`TuneLoop`: the slopes and moves of `tune` over a stream, saved, resumed, on two devices."""

import functools
import math
import signal

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import wdjax
from wdjax.data.stream import Stream, as_stream, prefetch_to_device
from wdjax.loop import Evaluation, Logging, NonFiniteError, Preempted, Saving, TrainLoop
from wdjax.loop.tune_loop import TuneLoop

RATE = 0.3
START = {"strength": 4.0, "learning_rate": RATE}
X = np.random.default_rng(0).normal(size=(32, 3))
Y = X @ [1.0, -2.0, 0.5] + np.random.default_rng(1).normal(size=32)
TRAIN = [(X[i : i + 4], Y[i : i + 4]) for i in range(0, 16, 4)]
HELD_OUT = [(X[i : i + 6], Y[i : i + 6]) for i in range(16, 32, 6)]  # The last is short.


def linear():
    def init(key, inputs):
        return {"w": 0.1 * jax.random.normal(key, (3,), inputs.dtype)}, {}

    return wdjax.Model(init, lambda p, state, x, *, key, train: (x @ p["w"], state))


def make_run(inputs, num_steps, rate=RATE):
    """Gradient descent with momentum, annealed, with decay as a penalty."""

    def make_tx(h):
        schedule = optax.cosine_decay_schedule(1.0, num_steps)
        return optax.chain(
            optax.trace(0.5),
            optax.scale_by_schedule(lambda step: -h["learning_rate"] * schedule(step)),
        )

    penalty = lambda h: wdjax.l2_penalty(h["strength"])
    return wdjax.make_run(linear(), wdjax.squared_error, make_tx=make_tx, make_penalty=penalty)


def losses_of(fit, batch):
    return wdjax.squared_error(batch.inputs @ fit.params["w"], batch.targets)


def loop(windows=(8, 8, 12), *, dtype=np.float32, mesh=None, held_out=HELD_OUT, **how):
    cast = lambda items: [tuple(a.astype(dtype) for a in item) for item in items]
    sharding = None if mesh is None else NamedSharding(mesh, P("data"))
    stream = prefetch_to_device(as_stream(cast(TRAIN), num_epochs=None), sharding=sharding)
    fresh = lambda: held_out if isinstance(held_out, Stream) else as_stream(cast(held_out))
    how = {"key": jax.random.key(0), "windows": windows, "mesh": mesh, **how}
    return TuneLoop(make_run, losses_of, START, stream, fresh, **how)


def ended(run):
    for _ in run:
        pass
    return run


def by_numpy(w, windows, lengths, shift=0.0, name="strength", carried=1.0):
    """Momentum by hand; a logarithm is shifted over the last part of the last window."""
    count = 0
    for window, steps in zip(windows, lengths, strict=True):
        memory = 0.0
        for t in range(steps):
            in_it = window is windows[-1] and t >= steps - round(steps * carried)
            moved = {name: math.exp(shift * in_it)}
            strength = window.hparams["strength"] * moved.get("strength", 1.0)
            rate = window.hparams["learning_rate"] * moved.get("learning_rate", 1.0)
            rate *= 0.5 * (1 + math.cos(math.pi * t / steps))
            x, y = TRAIN[count % 4]
            memory = 0.5 * memory + x.T @ (x @ w - y) / 4 + strength * w
            w, count = w - rate * memory, count + 1
    x, y = X[16:], Y[16:]
    return 0.5 * (x @ w - y) ** 2


@pytest.mark.parametrize("carried", [1.0, 0.5])
def test_losses_and_slopes_are_those_of_numpys_recursion(carried):
    lengths = (8, 8, 12)
    with jax.enable_x64(True):
        run = loop(
            lengths, dtype=np.float64, numbers=("strength", "learning_rate"), carried=carried
        )
        begins = np.asarray(run.state.params["w"])
        windows = ended(run).tuned().windows
    told = functools.partial(by_numpy, begins, carried=carried)
    for end in (1, 2, 3):
        done, sizes = windows[:end], lengths[:end]
        losses = told(done, sizes)
        assert done[-1].value.mean == pytest.approx(losses.mean(), rel=1e-12)
        assert done[-1].value.standard_error == pytest.approx(losses.std(ddof=1) / 4, rel=1e-9)
        for name in ("strength", "learning_rate"):
            up, down = (told(done, sizes, shift, name) for shift in (1e-5, -1e-5))
            each = (up - down) / 2e-5
            slope = done[-1].slopes[name]
            assert slope.mean == pytest.approx(each.mean(), rel=1e-6)
            assert slope.standard_error == pytest.approx(each.std(ddof=1) / 4, rel=1e-5)


def test_the_plain_run_beside_it_is_that_of_a_train_loop():
    """No number moves here: a window is the `TrainLoop` of its own steps."""
    run = loop((8, 8), within={"strength": (4.0, 4.0)})
    state = run.state
    first = run.windows[0]
    plain = make_run(None, first)
    step = wdjax.jit_step(functools.partial(plain.step, START))
    cast = [tuple(a.astype(np.float32) for a in item) for item in TRAIN]
    alone = ended(TrainLoop(step, state.plain, as_stream(cast, num_epochs=2), num_steps=first))
    for number, _ in run:
        if number == first:
            same = jax.tree.map(np.array_equal, alone.state.params, run.state.params)
    assert jax.tree.all(same)


def test_it_moves_says_what_it_cost_and_speaks_of_steps():
    run = loop()
    assert run.compile() < run.memory
    tuned = ended(run).tuned()
    first, second = (w.hparams["strength"] for w in tuned.windows[:2])
    assert tuned.windows[0].slopes["strength"].mean > 0 and second == pytest.approx(first / 4)
    assert tuned.cost.trainings == 2 and tuned.cost.memory == run.memory
    assert str(tuned).startswith("steps  strength") and "Do not believe this: 16 held-out" in str(
        tuned
    )
    assert run.step == run.num_steps == 28 and int(run.state.step) == 12


def test_telemetry_sees_each_window_as_a_run_of_its_own(tmp_path):
    """The step and the numbers that a schedule and a rate go by."""
    seen = []

    def make_telemetry(num_steps):
        def telemetry(state, batch):
            seen.append((num_steps, int(state.step), float(state.hparams["strength"])))
            return {}

        return telemetry

    logging = Logging(tmp_path / "log.jsonl", telemetry_every=4)
    run = ended(loop((4, 4, 6), logging=logging, make_telemetry=make_telemetry))
    strengths = [window.hparams["strength"] for window in run.done]
    assert strengths[0] != strengths[1]
    at = lambda num_steps, step, window: (num_steps, step, pytest.approx(strengths[window]))
    assert seen == [at(4, 0, 0), at(4, 0, 1), at(6, 0, 2), at(6, 4, 2)]


def test_saved_at_any_step_it_is_resumed_bit_for_bit(tmp_path):
    """In a window, before tangents and with them, at its end and after its move."""
    whole = ended(loop(carried=0.5)).tuned()
    for stop in (6, 8, 9):
        saving = lambda stop=stop: Saving(
            wdjax.Checkpoints(tmp_path / str(stop)), every=stop, config={"a": 1}
        )
        run = loop(carried=0.5, saving=saving())
        for number, _ in run:
            if number == stop:
                break
        run.saving.checkpoints.close()
        again = loop(carried=0.5, saving=saving())
        assert again.resume() == stop
        found = ended(again).tuned()
        assert found.windows == whole.windows
        assert jax.tree.all(jax.tree.map(np.array_equal, found.fit.params, whole.fit.params))


@pytest.mark.parametrize("step", [3, 8, 28])
def test_asked_to_end_it_saves_and_ends_also_between_two_windows(step, tmp_path):
    run = loop(saving=Saving(wdjax.Checkpoints(tmp_path)))
    told = []
    try:
        for number, _ in run:
            told.append(number)
            if number == step - 1:
                signal.raise_signal(signal.SIGTERM)
    except Preempted:
        pass
    # Asked in the last step it ends of itself.
    assert told[-1] in (step - 1, step) and max(run.saving.checkpoints.steps()) == step
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_two_devices_give_the_same_to_rounding():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    one, two = (ended(loop(mesh=m)).tuned() for m in (None, mesh))
    for a, b in zip(one.windows, two.windows, strict=True):
        assert a.hparams == b.hparams
        np.testing.assert_allclose(a.value, b.value, rtol=2e-5)
        np.testing.assert_allclose(a.slopes["strength"], b.slopes["strength"], rtol=2e-4)


def test_one_program_a_length_of_window():
    built = []

    def counted(inputs, num_steps):
        built.append(num_steps)
        return make_run(inputs, num_steps)

    stream = as_stream([tuple(a.astype(np.float32) for a in item) for item in TRAIN], num_epochs=9)
    held_out = lambda: as_stream(HELD_OUT)
    ended(
        TuneLoop(
            counted, losses_of, START, stream, held_out, key=jax.random.key(0), windows=(4, 4, 6)
        )
    )
    assert built == [4, 6]


def test_a_held_out_loss_that_is_not_finite_ends_it(nans_allowed):
    nothing = [(x * np.nan, y) for x, y in HELD_OUT]
    with pytest.raises(NonFiniteError, match="after window 1 of 3, at strength 4, is not finite"):
        ended(loop(held_out=nothing))


@pytest.mark.parametrize(
    "how, words",
    [
        ({"windows": (3,)}, "`windows` must be at least two, got 1"),
        ({"numbers": ("strenght",)}, "Did you mean 'strength'"),
        ({"carried": 0.0}, "`carried`"),
        (
            {"evaluation": Evaluation(lambda state: {"loss": 0.0}, patience=2)},
            "`patience` = 2: a run that is tuned goes through all of its windows; leave it out",
        ),
    ],
)
def test_what_cannot_be_tuned_is_refused_at_build(how, words):
    with pytest.raises(ValueError, match=words):
        loop(**how)


def test_what_is_asked_too_early_or_of_nothing_is_refused(tmp_path):
    run = loop()
    with pytest.raises(ValueError, match="ended 0 of 3 windows: iterate over it"):
        run.tuned()
    with pytest.raises(ValueError, match="give the run its `saving`"):
        run.resume()
    once = as_stream([tuple(a.astype(np.float32) for a in item) for item in HELD_OUT])
    with pytest.raises(ValueError, match="no batch after window 2: each call must begin a pass"):
        ended(loop(held_out=once))
    zeros = [(x, y, np.zeros(len(y))) for x, y in HELD_OUT]
    with pytest.raises(ValueError, match="no example of weight above 0"):
        ended(loop(held_out=zeros))
    saving = lambda: Saving(wdjax.Checkpoints(tmp_path))
    ended(loop((4, 4), saving=saving()))
    with pytest.raises(ValueError, match=r"`windows` = \(12, 4\): the checkpoint of step 8 was"):
        loop((12, 4), saving=saving()).resume()
    with pytest.raises(ValueError, match="holds checkpoints up to step 8: call resume"):
        ended(loop((4, 4), saving=saving()))
