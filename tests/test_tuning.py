"""`tune`: slopes through windows of one run, held against NumPy's recursion and known optima."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wdjax
from wdjax.selection.tuning import tune
from wdjax.selection.windows import Window, doubts_about
from wdjax.selection.windows import following as following_of
from wdjax.tables import Estimate

RATE = 0.2
TARGETS = np.tile([0.7, 0.9, 1.1, 1.3], 8)  # held out: mean 1
EIGHT = np.ones((8, 1))


def scalar(num_outputs=1):
    """`w x`, with a state that counts and one that averages what it saw."""

    def init(key, inputs):
        dtype = inputs.dtype
        return {"w": jnp.zeros((1,), dtype)}, {"count": jnp.int32(0), "mean": jnp.zeros((), dtype)}

    def apply(params, state, inputs, *, key, train):
        outputs = inputs @ params["w"]
        mean = 0.5 * state["mean"] + 0.5 * outputs.mean()
        new = {"count": state["count"] + 1, "mean": mean} if train else state
        return outputs, new

    return wdjax.Model(init, apply)


def make_run(inputs, num_steps):
    """The training loss is `(w - 2)^2 / 2 + strength / 2 w^2`: its minimum `2 / (1 + strength)`."""

    def make_tx(h):
        schedule = optax.cosine_decay_schedule(1.0, num_steps)
        return optax.chain(
            optax.scale_by_schedule(lambda step: -h["learning_rate"] * schedule(step))
        )

    return wdjax.make_run(
        scalar(),
        wdjax.squared_error,
        make_tx=make_tx,
        make_penalty=lambda h: wdjax.l2_penalty(h["strength"]),
    )


def losses_of(fit, batch):
    return wdjax.squared_error(batch.inputs @ fit.params["w"], batch.targets)


def halves(dtype=np.float64):
    train = wdjax.Batch(EIGHT.astype(dtype), np.full(8, 2.0, dtype), np.ones(8, dtype))
    ones = np.ones(len(TARGETS), dtype)
    return train, wdjax.Batch(ones[:, None], TARGETS.astype(dtype), ones)


@pytest.fixture
def tuned():
    """`tuned(windows, ...)` of the scalar problem in float64."""

    def run(windows=(6,) * 8, start=30.0, **how):
        with jax.enable_x64(True):
            train, valid = halves()
            start = {"strength": start, "learning_rate": RATE}
            return tune(
                make_run,
                losses_of,
                start,
                train,
                valid,
                key=jax.random.key(0),
                windows=windows,
                batch_size=4,
                **how,
            )

    return run


def by_numpy(windows, name="strength", shift=0.0, begins=lambda num_epochs: 0):
    """The held-out loss by the recursion; a logarithm is shifted in the last window from there."""
    w = 0.0
    for window in windows:
        steps = 2 * window.num_epochs
        for t in range(steps):
            counts = window is windows[-1] and t // 2 >= begins(window.num_epochs)
            moved = {name: math.exp(shift * counts)}
            strength = window.hparams["strength"] * moved.get("strength", 1.0)
            rate = window.hparams["learning_rate"] * moved.get("learning_rate", 1.0)
            rate *= 0.5 * (1 + math.cos(math.pi * t / steps))
            w -= rate * ((w - 2.0) + strength * w)
    return np.mean((w - TARGETS) ** 2) / 2


def difference(windows, *of):
    name, *begins = of
    ends = (by_numpy(windows, name, shift, *begins) for shift in (1e-5, -1e-5))
    return float(np.subtract(*ends)) / 2e-5


def test_slopes_are_the_differences_of_a_shift_in_their_window(tuned):
    found = tuned((1, 2, 1), 0.7, numbers=("strength", "learning_rate"))
    for end in (1, 2, 3):
        windows = found.windows[:end]
        assert windows[-1].value.mean == pytest.approx(by_numpy(windows), rel=1e-12)
        for name in ("strength", "learning_rate"):
            slope = windows[-1].slopes[name].mean
            assert slope == pytest.approx(difference(windows, name), rel=1e-7)


def test_tangents_over_the_last_part_of_each_window_are_those_of_a_shift_there(tuned):
    found = tuned((4, 4), 0.7, carried=0.5)
    expected = difference(found.windows, "strength", lambda num_epochs: num_epochs // 2)
    assert found.windows[-1].slopes["strength"].mean == pytest.approx(expected, rel=1e-7)
    assert found.cost.trainings == 1.5


@pytest.mark.parametrize("start", [0.03, 6.0])
def test_the_optimum_of_a_quadratic_is_reached(tuned, start):
    """The minimum of the training loss, `2 / (1 + strength)`, is the held-out mean 1 at 1."""
    found = tuned((40,) * 9, start)
    assert abs(math.log(found.hparams["strength"])) <= math.log(4) / 4
    assert abs(math.log(found.following["strength"])) <= 0.1
    assert found.believed, found.doubts
    assert "next run should use strength" in str(found)


def test_the_error_is_that_of_the_held_out_examples(tuned):
    window = tuned((3, 3), 0.7).windows[-1]
    w = 1 + math.sqrt(2 * window.value.mean - np.var(TARGETS))
    w = min((w, 2 - w), key=lambda w: abs(np.mean((w - TARGETS) ** 2) / 2 - window.value.mean))
    each = (w - TARGETS) ** 2 / 2
    assert window.value.standard_error == pytest.approx(
        each.std(ddof=1) / math.sqrt(len(TARGETS)), rel=1e-9
    )


def test_one_program_a_length_of_window(tuned, monkeypatch):
    built = []

    def counted(inputs, num_steps):
        built.append(num_steps)
        return make_run(inputs, num_steps)

    train, valid = halves(np.float32)
    found = tune(
        counted,
        losses_of,
        {"strength": 0.7, "learning_rate": RATE},
        train,
        valid,
        key=jax.random.key(0),
        windows=(1, 1, 1, 3),
        batch_size=4,
    )
    assert sorted(built) == [1, 2, 6]  # of the first params; of windows of one and of three epochs
    assert found.cost.memory and found.cost.trainings == 2
    assert int(found.fit.model_state["count"]) == 12


def test_a_slope_that_keeps_its_sign_is_not_believed(tuned):
    found = tuned((40, 40), 8.0)
    assert not found.believed
    assert "kept its sign to the end, so the best is smaller than 2;" in found.doubts[0]
    assert found.following == found.hparams


def test_what_cannot_be_told_on_the_held_out_examples_is_not_believed(tuned):
    found = tuned((40, 40), 1.0, within={"strength": (0.95, 1.05)})
    assert "could be told from zero on 32 held-out examples; hold out more" in found.doubts[0]


def windows_of(*told):
    """`(strength, slope, error)` of each window."""
    loss = Estimate(1.0, 0.1)
    slopes = lambda told: {"strength": Estimate(*told)}
    return [Window(1, {"strength": float(s)}, loss, slopes(t)) for s, *t in told]


@pytest.mark.parametrize(
    "told, words, following",
    [
        # More is known to be better at 1 and less at 4: between them, and nothing to doubt.
        ([(4, 0.1, 0.01), (1, -0.1, 0.01), (1.5, -0.001, 0.01)], "", 2.0),
        # Of the last two with opposite signs, told or not.
        ([(4, 0.1, 0.01), (1, -0.1, 0.01), (1.44, 0.1, 0.01)], "", 1.2),
        # It came down to where the slope is flat, which may be where decay does nothing.
        (
            [(4, 0.1, 0.01), (1, 0.05, 0.01), (0.25, -0.001, 0.01), (0.25, -0.002, 0.01)],
            "no slope in log strength was told .* but where smaller is better, the last at 1[.]",
            0.25,
        ),
        ([(1, -0.1, 0.01), (4, -0.01, 0.01)], "but where larger is better, the last at 1[.]", 4),
        # At one strength less was better in the first window and more in the last.
        (
            [(1, 0.1, 0.01), (0.25, -0.01, 0.01), (0.5, -0.1, 0.01), (1, -0.2, 0.01)],
            "contradict each other.* the last that was told from zero, at 1, says that larger is",
            1,
        ),
    ],
)
def test_only_a_strength_with_more_better_below_and_less_above_is_believed(told, words, following):
    windows = windows_of(*told)
    doubts = doubts_about(windows, ["strength"], 100)
    assert len(doubts) == bool(words)
    assert re.search(words, "".join(doubts))
    assert following_of(windows, ["strength"])["strength"] == pytest.approx(following)


def test_slopes_of_a_run_beyond_stability_are_not_believed(tuned):
    found = tuned((40, 40), 30.0)  # a step multiplies w by 1 - 0.2 * 31
    assert "times the largest loss, as where a run is chaotic" in found.doubts[0]


def test_a_run_that_diverges_keeps_the_params_of_before(nans_allowed, tuned):
    found = tuned((20, 20), 2.0, numbers=("strength",), within={"strength": (1.9, 1e300)})
    kept = float(found.fit.params["w"][0])
    assert math.isfinite(kept)
    with pytest.raises(ValueError, match="`start`: the run diverged in window 1 of 2, at strength"):
        tuned((400, 400), 1e300)


@pytest.mark.parametrize(
    "how, words",
    [
        ({"windows": (3,)}, "`windows` must be at least two, got 1"),
        ({"windows": (3, 0)}, "`windows` must be >= 1, got windows=0"),
        ({"start": 0.0}, "must be above 0 and within .* a number moves in its logarithm"),
        ({"numbers": ("strenght",)}, "Did you mean 'strength'"),
        ({"numbers": ("strength", "strength")}, "each once"),
        ({"numbers": ()}, "one or more names"),
        ({"carried": 0.0}, "`carried`"),
        ({"within": {"strength": (1.0, 2.0)}}, r"within \[1, 2\], got 30"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_anything_runs(tuned, how, words):
    with pytest.raises(ValueError, match=words):
        tuned(**how)
