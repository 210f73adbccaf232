"""The audit: rates measured from any optimiser, and warnings that fire when they should."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wdjax.decay import (
    cautious,
    constrained_decay,
    corrected_decay,
    decay_to_initial,
    decay_to_one,
    decay_weights,
    decoupled_decay,
    float32_master,
    huber,
    independent_decay,
    initial_bound,
    proximal_l1,
    proximal_l2,
    stochastic_rounding,
)
from wdjax.diagnostics import audit, describe_decay
from wdjax.losses import regularized_loss, squared_error
from wdjax.parts import matrices_only, scale_by_parts
from wdjax.penalties import l1_penalty, l2_penalty
from wdjax.types import Batch

KERNELS = {"*/kernel": 1.0, "*": 0.0}


def a_tree(dtype=jnp.float32):
    r = np.random.default_rng(0)
    return {
        "hidden": {
            "kernel": jnp.asarray(r.normal(size=(3, 4)), dtype),
            "bias": jnp.zeros(4, dtype),
        },
        "norm": {"scale": jnp.ones(4, dtype)},
        "head": {"kernel": jnp.asarray(r.normal(size=(4, 1)), dtype)},
    }


def predict(params, x):
    hidden = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"][None])
    return hidden * params["norm"]["scale"][None] @ params["head"]["kernel"]


def a_batch():
    r = np.random.default_rng(1)
    return Batch(r.normal(size=(6, 3)), r.normal(size=6), np.ones(6))


def a_loss(penalty=None, **how):
    return regularized_loss(predict, squared_error, penalty, **how)


def rates(report):
    return {leaf.path: leaf.rate for leaf in report.leaves}


def kinds(report):
    return {warning.kind for warning in report.warnings}


def sgd_with(decay, learning_rate=0.1):
    return optax.chain(optax.sgd(learning_rate), decay)


# What is measured.


def random_walk(tx, key, full_compile, num_steps=6000, size=400):
    """Norms `[step]` of weights under gradients of independent directions."""

    def step(carry, key):
        w, state = carry
        updates, state = tx.update(jax.random.normal(key, (size,)), state, w)
        return (w + updates, state), jnp.linalg.norm(w)

    def walk(keys):
        w = jnp.ones(size)
        return jax.lax.scan(step, (w, tx.init(w)), keys)[1]

    # As users get XLA: in six thousand steps it saves more than it takes.
    keys = jax.random.split(key, num_steps)
    return np.asarray(jax.jit(walk, compiler_options=full_compile)(keys))


@pytest.mark.parametrize("direction", [optax.scale_by_adam, optax.scale_by_lion])
def test_the_predicted_norm_is_where_a_random_walk_ends_up(direction, key, full_compile):
    """Measured from the transformation alone; 8 % is what 400 weights leave to chance, and 35 %
    Lion's memory of a hundred steps, which is not short beside the two hundred of the decay."""
    tx = optax.chain(direction(), optax.scale(-0.01), independent_decay(5e-3))
    (leaf,) = audit(jnp.ones(400), tx, num_steps=2000).leaves
    ends = random_walk(tx, key, full_compile)[2000:].mean()
    tolerance = 0.08 if direction is optax.scale_by_adam else 0.35
    np.testing.assert_allclose(leaf.equilibrium_norm, ends, rtol=tolerance)
    assert leaf.norm == 20.0


@pytest.mark.parametrize(("value", "b1", "tolerance"), [(0.1, 0.9, 0.14), (3.0, 0.0, 0.05)])
def test_behind_a_gate_the_predicted_norm_is_still_that_of_the_walk(
    value, b1, tolerance, key, full_compile
):
    """Half of the steps go against the pull, so half of the decay is left, whatever the weights'
    own size; the row's rate stays that at rest. Momentum holds a gate open or shut for about ten
    steps, which the prediction leaves out; 4000 weights leave 1 % to chance."""
    tx = optax.chain(optax.adam(0.01, b1=b1), decay_weights(5e-3, gate=cautious))
    (leaf,) = audit(jnp.full(4000, value), tx, num_steps=2000).leaves
    ends = random_walk(tx, key, full_compile, size=4000)[2000:].mean()
    np.testing.assert_allclose(leaf.equilibrium_norm, ends, rtol=tolerance)
    np.testing.assert_allclose(leaf.rate, 5e-3, rtol=1e-5)


def test_adams_predicted_norm_is_its_closed_form():
    """Long-run steps of Adam have variance eta^2 a weight: momentum averages ten gradients and
    goes as far with them. So norm^2 = D eta^2 / (1 - (1 - c)^2), for two learning rates and
    sizes; a step is shorter by sqrt((1 - b1) / (1 + b1)), and the angle with it; the
    first of 256 steps, before there is an average, are longer, hence its tenth."""
    for eta, size in ((0.01, 4000), (0.1, 9000)):
        tx = optax.chain(optax.adam(eta), independent_decay(0.02))
        (leaf,) = audit(jnp.ones(size), tx, num_steps=500).leaves
        expected = eta * np.sqrt(size / (1 - 0.98**2))
        np.testing.assert_allclose(leaf.equilibrium_norm, expected, rtol=0.04)
        stride = eta * np.sqrt(size * 0.1 / 1.9)
        np.testing.assert_allclose(
            leaf.equilibrium_angle, np.arctan(stride / 0.98 / expected), rtol=0.1
        )


def test_nothing_is_predicted_where_steps_are_as_long_as_gradients():
    (leaf,) = audit(jnp.ones(9), sgd_with(decoupled_decay(0.3, 0.1))).leaves
    assert leaf.equilibrium_norm is None and leaf.equilibrium_angle is None
    assert leaf.norm == 3.0


def test_without_decay_the_predicted_norm_is_infinite():
    (leaf,) = audit(jax.ShapeDtypeStruct((9,), jnp.float32), optax.adam(0.1)).leaves
    assert (leaf.equilibrium_norm, leaf.equilibrium_angle, leaf.norm) == (np.inf, 0.0, None)


@pytest.mark.parametrize(
    "tx, rate",
    [
        (optax.adamw(1e-2, weight_decay=0.3, mask=lambda p: matrices_only_mask(p)), 3e-3),
        (sgd_with(decoupled_decay(0.3, 0.1, parts=matrices_only)), 0.03),
        (optax.chain(optax.adam(1e-2), independent_decay(0.02, parts=matrices_only)), 0.02),
        (
            optax.chain(
                optax.add_decayed_weights(0.5, mask=lambda p: matrices_only_mask(p)),
                optax.sgd(0.1),
            ),
            0.05,
        ),
        # Its Adam branch, which has the vectors, takes another argument for its decay.
        (optax.contrib.muon(0.1, weight_decay=0.2), 0.02),
    ],
    ids=["optax.adamw", "decoupled", "independent", "coupled in the chain", "optax muon"],
)
def test_rates_are_measured_from_any_transformation(tx, rate):
    expected = {"hidden/kernel": rate, "head/kernel": rate, "hidden/bias": 0, "norm/scale": 0}
    assert rates(audit(a_tree(), tx)) == pytest.approx(expected, rel=1e-5)


def matrices_only_mask(params):
    return jax.tree.map(lambda p: p.ndim >= 2, params)


def test_the_measured_table_is_the_described_one():
    """The same numbers by formula and by measurement, under a schedule and uneven parts."""
    schedule, parts = optax.cosine_decay_schedule(0.1, 20), {"head/*": 0.5, "*": 1.0}
    tx = optax.chain(optax.sgd(schedule), decoupled_decay(0.4, schedule, parts=parts))
    measured = audit(a_tree(), tx, num_steps=20, steps_per_epoch=5).leaves
    described = describe_decay(
        a_tree(), parts, 0.4, learning_rate=schedule, num_steps=20, steps_per_epoch=5
    ).leaves
    for ours, theirs in zip(measured, described, strict=True):
        assert (ours.path, ours.role, ours.shape, ours.size) == (
            theirs.path,
            theirs.role,
            theirs.shape,
            theirs.size,
        )
        for (
            name
        ) in "multiplier rate first_rate peak_rate last_rate half_life half_life_epochs".split():
            assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=1e-4), name
    assert measured[0].first_rate > measured[0].last_rate > 0
    assert measured[0].half_life_epochs == pytest.approx(measured[0].half_life / 5)


def test_shapes_are_enough_where_no_loss_is_measured():
    shapes = jax.eval_shape(a_tree)
    report = audit(shapes, sgd_with(decoupled_decay(0.3, 0.1)))
    assert [*rates(report).values()] == pytest.approx([0.03] * 4)


def test_decay_to_another_reference_is_measured_too():
    """At the reference it removes nothing; of a distance, the same share."""
    tx = sgd_with(decay_to_initial(0.3, 0.1, parts=KERNELS))
    assert rates(audit(a_tree(), tx))["hidden/kernel"] == pytest.approx(0.03, rel=1e-4)


def test_accumulated_steps_are_measured_over_their_cycle():
    tx = optax.MultiSteps(sgd_with(decoupled_decay(0.4, 0.1)), every_k_schedule=4)
    found = rates(audit(a_tree(), tx.gradient_transformation(), num_steps=8))
    assert found["head/kernel"] == pytest.approx(0.04 / 4, rel=1e-4)


def test_the_penaltys_share_is_its_part_of_the_loss(x64):
    params, batch, penalty = a_tree(jnp.float64), a_batch(), l2_penalty(0.3, KERNELS)
    loss, _ = a_loss(penalty)(params, batch)
    report = audit(params, optax.sgd(0.1), a_loss(penalty), batch=batch)
    shares = {leaf.path: leaf.penalty_share for leaf in report.leaves}
    for layer in ("hidden", "head"):
        expected = 0.15 * np.sum(np.square(params[layer]["kernel"])) / loss
        assert shares[f"{layer}/kernel"] == pytest.approx(float(expected), rel=1e-9)
    assert shares["hidden/bias"] == shares["norm/scale"] == 0


def test_integers_and_keys_are_left_out():
    params = a_tree() | {"step": jnp.array([3]), "key": jax.random.key(0)}
    found = rates(audit(params, decay_weights(0.1)))
    assert found["step"] == found["key"] == 0 and found["head/kernel"] == pytest.approx(0.1)


def test_a_report_prints_its_rows_and_warnings_and_goes_to_json():
    report = audit(a_tree(), optax.sgd(0.1))
    assert "no leaf decays at all" in str(report) and "hidden/kernel" in report._repr_html_()
    assert report.to_dict()["warnings"][0]["kind"] == "nothing decays"
    assert report.to_dict()["leaves"][0]["path"] == "head/kernel"


# Any transformation of optax: the closed form, or that there is none to say.

ETA, WD, ACC = 1e-2, 0.1, 16
ADAMW = dict(learning_rate=ETA, weight_decay=WD)
L2 = lambda: optax.add_decayed_weights(WD)
after_momentum = lambda c, steps=ACC: np.mean(c * (1 - 0.9 ** np.arange(1, steps + 1)) / 0.1)
WARM = optax.warmup_cosine_decay_schedule(0.0, ETA, 8, 16)
MEASURED = {
    "adamw": (lambda: optax.adamw(**ADAMW), 1e-3),
    "nadamw": (lambda: optax.nadamw(**ADAMW), 1e-3),
    "adamaxw": (lambda: optax.adamaxw(**ADAMW), 1e-3),
    "adan": (lambda: optax.adan(**ADAMW), 1e-3),
    "lion": (lambda: optax.lion(**ADAMW), 1e-3),
    "fromage": (lambda: optax.fromage(ETA), 1 - 1 / np.sqrt(1 + ETA**2)),
    "adafactor": (lambda: optax.adafactor(ETA, weight_decay_rate=1e-3), 1e-3),
    "novograd": (lambda: optax.novograd(**ADAMW), after_momentum(1e-3)),
    "ademamix": (lambda: optax.contrib.ademamix(**ADAMW), 1e-3),
    "simplified_ademamix": (lambda: optax.contrib.simplified_ademamix(**ADAMW), 1e-3),
    "galore": (lambda: optax.contrib.galore(**ADAMW), 1e-3),
    "muon": (lambda: optax.contrib.muon(ETA, weight_decay=WD), 1e-3),
    "L2 before sgd": (lambda: optax.chain(L2(), optax.sgd(ETA)), 1e-3),
    "L2 before momentum": (
        lambda: optax.chain(L2(), optax.sgd(ETA, momentum=0.9)),
        after_momentum(1e-3),
    ),
    "warm-up": (lambda: optax.adamw(WARM, weight_decay=WD), np.mean(WARM(np.arange(16))) * WD),
    "MultiSteps 3": (lambda: optax.MultiSteps(optax.adamw(**ADAMW), 3), 1e-3 / 3),
    "MultiSteps 17": (lambda: optax.MultiSteps(optax.adamw(**ADAMW), 17), 1e-3 / 17),
    "MultiSteps 32": (lambda: optax.MultiSteps(optax.adamw(**ADAMW), 32), 1e-3 / 32),
    "apply_every": (lambda: optax.chain(optax.adamw(**ADAMW), optax.apply_every(4)), 1e-3),
    "apply_if_finite": (lambda: optax.apply_if_finite(optax.adamw(**ADAMW), 3), 1e-3),
    "flatten": (lambda: optax.flatten(optax.adamw(**ADAMW)), 1e-3),
    "inject": (lambda: optax.inject_hyperparams(optax.adamw)(**ADAMW), 1e-3),
    "clip": (lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(**ADAMW)), 1e-3),
    "ema": (lambda: optax.chain(optax.ema(0.9), optax.adamw(**ADAMW)), 1e-3),
    "noise": (
        lambda: optax.chain(optax.add_noise(0.01, 0.55, jax.random.key(0)), optax.adamw(**ADAMW)),
        1e-3,
    ),
    "split complex": (
        lambda: optax.contrib.split_real_and_imaginary(optax.adamw(**ADAMW)),
        1e-3,
    ),
    "proximal L2": (lambda: sgd_with(proximal_l2(0.1, 0.1)), 1 - 1 / 1.01),
} | {
    name: (lambda make=make: make(ETA), 0.0)
    for name, make in {
        "sgd": optax.sgd,
        "adam": optax.adam,
        "adabelief": optax.adabelief,
        "adagrad": optax.adagrad,
        "amsgrad": optax.amsgrad,
        "radam": optax.radam,
        "rmsprop": optax.rmsprop,
        "rprop": optax.rprop,
        "sm3": optax.sm3,
        "yogi": optax.yogi,
        "signum": optax.signum,
        "sign_sgd": optax.sign_sgd,
        "adopt": optax.contrib.adopt,
        "acprop": optax.contrib.acprop,
        "optimistic_adam": optax.optimistic_adam_v2,
        "optimistic": optax.optimistic_gradient_descent,
    }.items()
}
NOT_PROPORTIONAL = "not a decay proportional to the weight"
THROUGH = "L2 through the gradient of an adaptive optimiser"
BESIDE = "depends on the gradients beside it"
NOT_FINITE = "without a gradient its update is not finite"
ASKS = "asks for more than gradients"
UNMEASURED = {
    "L2 before adam": (lambda: optax.chain(L2(), optax.adam(ETA)), THROUGH),
    "L2 before rmsprop": (lambda: optax.chain(L2(), optax.rmsprop(ETA)), THROUGH),
    "L2 before lion": (lambda: optax.chain(L2(), optax.lion(ETA, weight_decay=0.0)), THROUGH),
    "L2 before adafactor": (lambda: optax.chain(L2(), optax.adafactor(ETA)), BESIDE),
    "adadelta": (lambda: optax.adadelta(**ADAMW), THROUGH),
    "madgrad": (lambda: optax.contrib.madgrad(ETA, weight_decay=WD), THROUGH),
    "dog": (lambda: optax.contrib.dog(1.0, weight_decay=WD), THROUGH),
    "dowg": (lambda: optax.contrib.dowg(1.0, weight_decay=WD), THROUGH),
    "lamb": (lambda: optax.lamb(**ADAMW), BESIDE),
    "lars": (lambda: optax.lars(**ADAMW), BESIDE),
    "mechanize": (lambda: optax.contrib.mechanize(optax.adamw(**ADAMW)), BESIDE),
    "prodigy": (lambda: optax.contrib.prodigy(weight_decay=WD), NOT_FINITE),
    "dadapt_adamw": (lambda: optax.contrib.dadapt_adamw(weight_decay=WD), NOT_FINITE),
    "cocob": (lambda: optax.contrib.cocob(), "keeps weights in its own state"),
    "momo": (lambda: optax.contrib.momo(ETA, weight_decay=WD), ASKS),
    "momo_adam": (lambda: optax.contrib.momo_adam(**ADAMW), ASKS),
    "sophia": (lambda: optax.contrib.sophia(ETA, weight_decay=WD), ASKS),
    "polyak_sgd": (lambda: optax.polyak_sgd(), ASKS),
    "lbfgs": (lambda: optax.lbfgs(), ASKS),
    "non-negative": (
        lambda: optax.chain(optax.adamw(**ADAMW), optax.keep_params_nonnegative()),
        NOT_PROPORTIONAL,
    ),
    "proximal L1": (lambda: sgd_with(proximal_l1(0.1, 0.1)), NOT_PROPORTIONAL),
    "CPR": (
        lambda: sgd_with(constrained_decay(1.0, initial_bound(0.9))),
        NOT_PROPORTIONAL,
    ),
    "huber": (lambda: sgd_with(decay_weights(5e-3, pull=huber(0.1))), NOT_PROPORTIONAL),
}
QUICK = {"novograd", "MultiSteps 17", "noise", "L2 before adam", "lamb", "prodigy", "momo"}
every = lambda cases: [
    pytest.param(*case, id=name, marks=() if name in QUICK else pytest.mark.slow)
    for name, case in cases.items()
]


def a_leaf():
    return {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)))}


@pytest.mark.parametrize(("make", "rate"), every(MEASURED))
@pytest.mark.filterwarnings("ignore:Specifying a key")
def test_the_rate_of_what_optax_has_is_its_closed_form(make, rate, x64):
    (leaf,) = audit(a_leaf(), make()).leaves
    assert leaf.unmeasured is None
    np.testing.assert_allclose(leaf.rate, rate, rtol=1e-5, atol=1e-15)


@pytest.mark.parametrize(("make", "words"), every(UNMEASURED))
def test_where_there_is_no_rate_the_audit_says_why(make, words, x64):
    report = audit(a_leaf(), make())
    (leaf,) = report.leaves
    assert words in leaf.unmeasured and np.isnan(leaf.rate) and np.isnan(leaf.half_life)
    assert kinds(report) == {"L2 under Adam" if words == THROUGH else "cannot be measured"}
    assert "diverged" not in str(report)


@pytest.mark.slow
@pytest.mark.parametrize("weight_decay", [1e-3, 0.1])
def test_of_l2_before_adam_no_strength_makes_a_rate(weight_decay):
    """Adam divides it out: the step is the learning rate whatever the strength."""
    tx = optax.chain(optax.add_decayed_weights(weight_decay), optax.adam(1e-3))
    report = audit({"kernel": a_leaf()["kernel"].astype(jnp.float32)}, tx, num_steps=100)
    (leaf,), (warning,) = report.leaves, report.warnings
    assert np.isnan(leaf.rate) and leaf.removed is None
    assert warning.kind == "L2 under Adam" and "not a decay proportional" in warning.text


def test_schedule_free_in_warm_up_is_its_own_recursion(x64):
    """In NumPy from the paper: z <- z - eta_t lam y; x averages z by eta_max^2; y between."""
    tx = optax.contrib.schedule_free_adamw(ETA, weight_decay=WD, warmup_steps=10)
    (leaf,) = audit(a_leaf(), tx, num_steps=40).leaves
    z = x = y = 1.0
    total, kept = 0.0, []
    for step in range(40):
        before, weight = y, (ETA * min(1.0, (step + 1) / 10)) ** 2
        z = z - ETA * min(1.0, step / 10) * WD * y
        total += weight
        x = x + weight / total * (z - x)
        y = 0.9 * x + 0.1 * z
        kept.append(y / before)
    np.testing.assert_allclose(leaf.rate, np.mean(1 - np.array(kept)), rtol=1e-4)
    np.testing.assert_allclose(leaf.removed, 1 - y, rtol=1e-4)
    assert leaf.half_life > 100 and leaf.peak_rate < 0.01


def test_lookahead_follows_its_slow_weights(x64):
    """Over whole cycles both go down by half of what the fast weights do in six steps."""
    params = optax.LookaheadParams.init_synced(a_leaf())
    report = audit(params, optax.lookahead(optax.adamw(**ADAMW), 6, 0.5), num_steps=12)
    kept = 1 + 0.5 * ((1 - 1e-3) ** 6 - 1)
    for leaf in report.leaves:
        np.testing.assert_allclose(leaf.removed, 1 - kept**2, rtol=1e-5)


def test_an_update_that_never_comes_is_not_called_no_decay():
    report = audit(a_leaf(), optax.MultiSteps(optax.adamw(**ADAMW), 5000))
    assert kinds(report) == {"cannot be measured"}
    assert "in 1024 steps no weight moved" in report.warnings[0].text


# Every warning, provoked and not.

ADAM_AND_DECAY = lambda parts=matrices_only, **how: optax.chain(
    optax.adam(1e-2), decoupled_decay(1.0, 1e-2, parts=parts)
)


def test_what_is_as_it_should_be_gets_no_warning():
    report = audit(
        a_tree(),
        ADAM_AND_DECAY(),
        a_loss(),
        batch=a_batch(),
        num_steps=1000,
        steps_per_epoch=10,
    )
    assert report.warnings == ()
    assert "No warning." in str(report)


def test_decayed_twice():
    penalised = a_loss(l2_penalty(0.1, {"hidden/kernel": 1.0, "*": 0.0}))
    twice = audit(a_tree(), sgd_with(decoupled_decay(0.1, 0.1)), penalised, batch=a_batch())
    (warning,) = [w for w in twice.warnings if w.kind == "decayed twice"]
    assert warning.paths == ("hidden/kernel",) and "Keep one" in warning.text
    apart = sgd_with(decoupled_decay(0.1, 0.1, parts={"head/*": 1.0, "*": 0.0}))
    assert "decayed twice" not in kinds(audit(a_tree(), apart, penalised, batch=a_batch()))


def test_a_norm_gain_or_bias_decays():
    report = audit(a_tree(), optax.adamw(1e-2))
    (warning,) = [w for w in report.warnings if w.kind == "norm or bias decays"]
    assert set(warning.paths) == {"hidden/bias", "norm/scale"}
    assert "parts=matrices_only" in warning.text
    by_penalty = audit(a_tree(), optax.sgd(0.1), a_loss(l2_penalty(0.1)), batch=a_batch())
    assert "norm or bias decays" in kinds(by_penalty)
    assert "norm or bias decays" not in kinds(audit(a_tree(), ADAM_AND_DECAY()))
    gains_to_one = sgd_with(decay_to_one(0.1, 0.1, parts={"*/scale": 1.0, "*": 0.0}))
    assert "norm or bias decays" not in kinds(audit(a_tree(), gains_to_one))


@pytest.mark.parametrize("penalty", [l2_penalty(0.1, KERNELS), l1_penalty(0.1, KERNELS)])
def test_l2_in_the_loss_under_adam(penalty):
    how = dict(loss_fn=a_loss(penalty), batch=a_batch())
    under_adam = audit(a_tree(), optax.adam(1e-2), **how)
    (warning,) = [w for w in under_adam.warnings if w.kind == "L2 under Adam"]
    assert "decoupled_decay" in warning.text
    assert "L2 under Adam" in kinds(audit(a_tree(), optax.lion(1e-3, weight_decay=0.0), **how))
    clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9))
    assert "L2 under Adam" not in kinds(audit(a_tree(), clipped, **how))


def test_a_half_life_shorter_than_an_epoch():
    """Half-life ln 2 / 0.01 = 69 steps; longer than the run it may still help."""
    of = lambda steps, epoch: kinds(
        audit(a_tree(), ADAM_AND_DECAY(), num_steps=steps, steps_per_epoch=epoch)
    )
    assert of(80, 75) == {"half-life too short"}
    assert of(60, 60) == set()


@pytest.mark.parametrize(("rate", "weak"), [(0.9e-4, True), (1.1e-4, False)])
def test_a_decay_is_too_weak_by_the_share_that_it_removes_in_the_run(rate, weak):
    """1 - (1 - c)^100, against a hundredth."""
    report = audit(a_tree(), sgd_with(decay_weights(rate, parts=KERNELS)), num_steps=100)
    removed = {leaf.path: leaf.removed for leaf in report.leaves}["head/kernel"]
    assert removed == pytest.approx(1 - (1 - rate) ** 100, rel=1e-4)
    assert kinds(report) == ({"too weak to matter"} if weak else set())


@pytest.mark.parametrize(("rate", "half_life"), [(3.0, np.inf), (1.5, 1.0)])
def test_a_decay_that_overshoots(rate, half_life):
    """From a rate of 1 on the sign turns, from 2 on |1 - c| >= 1 and it grows."""
    report = audit({"kernel": jnp.ones((3, 3))}, optax.adamw(1.0, weight_decay=rate))
    (leaf,), (warning,) = report.leaves, report.warnings
    assert leaf.rate == pytest.approx(rate) and leaf.half_life == pytest.approx(half_life)
    assert warning.kind == "overshoots" and "until the rate is well below 1" in warning.text


def test_frozen_but_still_decaying():
    """A zeroed gradient does not freeze a weight: the decay after it goes on."""
    labels = {"hidden": "hidden", "norm": "norm", "head": "head"}
    frozen = optax.partition(
        {"hidden": optax.set_to_zero(), "norm": optax.sgd(0.1), "head": optax.sgd(0.1)}, labels
    )
    report = audit(a_tree(), optax.chain(frozen, decoupled_decay(0.1, 0.1, parts=matrices_only)))
    (warning,) = [w for w in report.warnings if w.kind == "frozen but decays"]
    assert warning.paths == ("hidden/kernel",) and "optax.set_to_zero" in warning.text
    spared = optax.chain(frozen, decoupled_decay(0.1, 0.1, parts={"head/*": 1.0, "*": 0.0}))
    assert "frozen but decays" not in kinds(audit(a_tree(), spared))


@pytest.mark.filterwarnings("ignore:leaf .* rounds back to the same weight")
def test_a_dtype_too_coarse_for_the_rate():
    """bfloat16 has 8 bits: the spacing is 2^-8 to 2^-7 of a weight, so half of it is lost."""
    of = lambda dtype, rate, wrap=lambda tx: tx: kinds(
        audit(a_tree(dtype), wrap(sgd_with(decay_weights(rate, parts=matrices_only))))
    )
    assert of(jnp.bfloat16, 1e-3) == {"dtype too coarse"}
    assert of(jnp.bfloat16, 1e-2) == set()
    assert of(jnp.float16, 1e-4) == {"dtype too coarse"}
    assert of(jnp.float32, 1e-3) == set()
    assert of(jnp.bfloat16, 1e-3, float32_master) == set()
    at_random = lambda tx: stochastic_rounding(tx, jax.random.key(0))
    assert of(jnp.bfloat16, 1e-3, at_random) == set()


def test_part_weights_that_adam_cancels():
    part_weights = {"hidden/*": 0.1, "*": 1.0}
    how = dict(
        loss_fn=a_loss(part_weights=part_weights), batch=a_batch(), part_weights=part_weights
    )
    report = audit(a_tree(), ADAM_AND_DECAY(), **how)
    (warning,) = report.warnings
    assert warning.kind == "part weights cancel" and "`scale_by_parts`" in warning.text
    assert "do nothing, or divide the strength of a penalty" in warning.text
    assert warning.paths == ("hidden/bias", "hidden/kernel")
    plain = sgd_with(decoupled_decay(0.1, 0.1, parts=matrices_only))
    assert "part weights cancel" not in kinds(audit(a_tree(), plain, **how))
    after = optax.chain(
        optax.scale_by_adam(),
        scale_by_parts(part_weights),
        optax.scale_by_learning_rate(1e-2),
        decoupled_decay(1.0, 1e-2, parts=matrices_only),
    )
    assert audit(a_tree(), after, a_loss(), batch=a_batch()).warnings == ()


def test_no_leaf_decays_at_all():
    all_false = optax.adamw(1e-2, mask=lambda p: jax.tree.map(lambda _: False, p))
    assert kinds(audit(a_tree(), all_false)) == {"nothing decays"}
    penalised = dict(loss_fn=a_loss(l2_penalty(0.1, KERNELS)), batch=a_batch())
    assert "nothing decays" not in kinds(audit(a_tree(), optax.sgd(0.1), **penalised))


def test_weights_that_grow():
    """Our decay before the learning rate has its sign turned round by it."""
    wrong = optax.chain(decay_weights(0.1, parts=matrices_only), optax.sgd(0.1))
    assert "grows" in kinds(audit(a_tree(), wrong))
    assert "grows" not in kinds(audit(a_tree(), ADAM_AND_DECAY()))


def test_corrected_decay_is_measured_under_its_schedule():
    schedule = optax.cosine_decay_schedule(0.1, 20)
    tx = optax.chain(optax.sgd(schedule), corrected_decay(0.4, schedule, 0.1, parts=matrices_only))
    leaf = audit(a_tree(), tx, num_steps=20).leaves[0]
    eta = np.asarray(jax.vmap(schedule)(jnp.arange(20)))
    assert leaf.rate == pytest.approx(float(np.mean(eta**2 / 0.1 * 0.4)), rel=1e-4)


# What a warning advises: applied, the warning is gone and nothing is lost.

PENALISED = l2_penalty(1e-3, KERNELS)
PARTS = {"hidden/*": 0.1, "*": 1.0}
adam_with = lambda decay: optax.chain(optax.adam(1e-2), decay)


def with_frozen_hidden(parts):
    labels = {"hidden": "hidden", "norm": "norm", "head": "head"}
    frozen = optax.partition(
        {"hidden": optax.set_to_zero(), "norm": optax.sgd(0.1), "head": optax.sgd(0.1)}, labels
    )
    return optax.chain(frozen, decoupled_decay(0.1, 0.1, parts=parts))


REMEDIES = {
    "frozen but decays": [
        (lambda: with_frozen_hidden(KERNELS), None),
        (lambda: with_frozen_hidden({"head/kernel": 1.0, "*": 0.0}), None),
    ],
    "decayed twice": [
        (lambda: sgd_with(decoupled_decay(0.01, 0.1, parts=KERNELS)), PENALISED),
        (lambda: sgd_with(decoupled_decay(0.01, 0.1, parts=KERNELS)), None),
        (lambda: optax.sgd(0.1), PENALISED),
    ],
    "norm or bias decays": [
        (lambda: adam_with(decoupled_decay(1.0, 1e-2)), None),
        (lambda: adam_with(decoupled_decay(1.0, 1e-2, parts=matrices_only)), None),
    ],
    "L2 under Adam": [
        (lambda: optax.adam(1e-2), PENALISED),
        (lambda: adam_with(decoupled_decay(0.1, 1e-2, parts=KERNELS)), None),
    ],
    "too weak to matter": [
        (lambda: adam_with(decoupled_decay(1e-4, 1e-2, parts=KERNELS)), None),
        (lambda: adam_with(decoupled_decay(0.1, 1e-2, parts=KERNELS)), None),
        (lambda: optax.adam(1e-2), None),
    ],
    "half-life too short": [
        (lambda: adam_with(decoupled_decay(30.0, 1e-2, parts=KERNELS)), None),
        (lambda: adam_with(decoupled_decay(1.0, 1e-2, parts=KERNELS)), None),
    ],
    "overshoots": [
        (lambda: adam_with(optax.add_decayed_weights(-1.5)), None),
        (lambda: adam_with(decoupled_decay(1.0, 1e-2, parts=KERNELS)), None),
    ],
    "part weights cancel": [(lambda: optax.adam(1e-2), PARTS), (lambda: optax.adam(1e-2), None)],
    "grows": [
        (lambda: optax.chain(decay_weights(0.1, parts=matrices_only), optax.sgd(0.1)), None),
        (lambda: sgd_with(decoupled_decay(0.1, 0.1, parts=matrices_only)), None),
    ],
    "cannot be measured": [
        (lambda: optax.lamb(1e-2, weight_decay=0.1), None),
        (lambda: adam_with(decoupled_decay(0.1, 1e-2, parts=KERNELS)), None),
    ],
    "nothing decays": [
        (lambda: optax.adam(1e-2), None),
        (lambda: adam_with(decoupled_decay(1.0, 1e-2, parts=KERNELS)), None),
    ],
}


def held_out_loss(make_tx, loss_fn, seed):
    """After 200 full-batch steps on 20 noisy examples, on 200 others."""
    r = np.random.default_rng(seed)
    x = r.normal(size=(220, 3)).astype(np.float32)
    y = (np.tanh(x[:, 0] - x[:, 1]) + 0.3 * r.normal(size=220)).astype(np.float32)
    train, held_out = Batch(x[:20], y[:20], np.ones(20)), Batch(x[20:], y[20:], np.ones(200))
    tx = make_tx()

    def step(carry, _):
        params, state = carry
        grads, _ = jax.grad(loss_fn, has_aux=True)(params, train)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    start = jax.tree.map(lambda w: 0.5 * w, a_tree())
    run = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=200)[0][0])
    return float(a_loss()(run(start), held_out)[0])


@pytest.mark.slow
@pytest.mark.usefixtures("nans_allowed")
@pytest.mark.parametrize("kind", REMEDIES)
def test_a_warnings_remedy_removes_it_and_costs_nothing(kind):
    """Over five draws of the data the held-out loss rises by no more than twice its error."""

    def tried(make_tx, extra):
        how = {} if not isinstance(extra, dict) else {"part_weights": extra}
        loss_fn = a_loss(extra if callable(extra) else None, **how)
        report = audit(
            a_tree(), make_tx(), loss_fn, batch=a_batch(), num_steps=200, steps_per_epoch=5, **how
        )
        losses = np.array([held_out_loss(make_tx, loss_fn, seed) for seed in range(5)])
        return kinds(report), np.where(np.isfinite(losses), losses, 1e6)

    warned, *remedied = (tried(*case) for case in REMEDIES[kind])
    assert kind in warned[0]
    for found, losses in remedied:
        assert kind not in found
        worse = losses - warned[1]
        assert worse.mean() <= 2 * worse.std(ddof=1) / 5**0.5 + 0.01


# Refusals.


@pytest.mark.parametrize(
    "how, words",
    [
        (dict(loss_fn=a_loss()), "`batch` is needed"),
        (dict(num_steps=0), "`num_steps` must be >= 1"),
        (dict(steps_per_epoch=0), "`steps_per_epoch` must be >= 1"),
        (dict(part_weights={"nothing/*": 1.0, "*": 1.0}), "first for no leaf"),
    ],
)
def test_bad_arguments_are_refused(how, words):
    with pytest.raises(ValueError, match=words):
        audit(a_tree(), optax.sgd(0.1), **how)


def test_a_loss_cannot_be_measured_on_shapes():
    with pytest.raises(ValueError, match="must be arrays"):
        audit(jax.eval_shape(a_tree), optax.sgd(0.1), a_loss(), batch=a_batch())
