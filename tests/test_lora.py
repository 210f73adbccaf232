"""Decay of adapters: the gradient of the penalty on the weight they make, by every way in."""

import functools

import flax.nnx as nnx
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wdjax
from wdjax.decay import lora_decay, make_optimizer
from wdjax.decay.lora import pulls_of_factors

RNG = np.random.default_rng(0)


def normal(*shape, dtype=jnp.float64):
    return jnp.asarray(RNG.normal(size=shape), dtype)


def step(tx, params, **extra):
    """The update that zero gradients get."""
    zeros = jax.tree.map(jnp.zeros_like, params)
    return tx.update(zeros, tx.init(params), params, **extra)[0]


SHAPES = {
    "matrix": ((6, 2), (2, 5), 0),
    "heads": ((6, 2), (2, 3, 4), 0),
    "convolution": ((3, 3, 4, 2), (2, 5), 0),
    "stacked": ((3, 6, 2), (3, 2, 5), 1),
}


@pytest.mark.parametrize(("left", "right", "layers"), SHAPES.values(), ids=SHAPES)
def test_the_pulls_are_the_gradient_of_the_penalty(left, right, layers, x64):
    """By `jax.grad` through the weight itself, which the formula never makes."""
    a, b = normal(*left), normal(*right)
    w0 = normal(*left[:-1], *right[layers + 1 :])

    def penalty(a, b):
        one = lambda a, b, w: jnp.sum(jnp.square(w + 0.7 * jnp.tensordot(a, b, 1))) / 2
        return jnp.sum((jax.vmap(one) if layers else one)(a, b, w0))

    found = pulls_of_factors(a, b, w0, 0.7, layers)
    for one, other in zip(found, jax.grad(penalty, (0, 1))(a, b), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


def test_complex_factors_descend_on_the_square_of_the_modulus(x64):
    a, b, w0 = (normal(*s) + 1j * normal(*s) for s in ((6, 2), (2, 5), (6, 5)))
    penalty = lambda a, b: jnp.sum(jnp.abs(w0 + 0.7 * a @ b) ** 2) / 2
    found = pulls_of_factors(a, b, w0, 0.7)
    for one, other in zip(found, jax.grad(penalty, (0, 1))(a, b), strict=True):
        np.testing.assert_allclose(one, jnp.conj(other), rtol=1e-12)


def adapter(dtype=jnp.float64, order=("lora_a", "lora_b")):
    left, right = order
    tree = {"dense": {left: normal(6, 2, dtype=dtype), right: normal(2, 5, dtype=dtype)}}
    return tree, normal(6, 5, dtype=dtype)


@pytest.mark.parametrize("order", [("lora_a", "lora_b"), ("lora_b", "lora_a")])
@pytest.mark.parametrize("way", ["among the params", "frozen", "in the update", "by hand"])
def test_updates_are_those_of_numpy_in_either_orientation(order, way, x64):
    """W = W0 + s A B as flax has it, and W = W0 + s B A as the paper has it."""
    params, w0 = adapter(order=order)
    a, b = (np.asarray(params["dense"][name]) for name in order)
    frozen, extra, how = {"dense": {"kernel": w0}}, {}, {"factors": order}
    if way == "among the params":
        params["dense"]["kernel"] = w0
    elif way == "frozen":
        how["frozen"] = frozen
    elif way == "in the update":
        extra["frozen"] = frozen
    else:
        paths = tuple(f"dense/{name}" for name in order)
        how = {"pairs": {"w0": paths}, "frozen": {"w0": w0}}
    updates = step(lora_decay(0.3, 0.5, scale=2.0, **how), params, **extra)["dense"]
    w = np.asarray(w0) + 2 * a @ b
    np.testing.assert_allclose(updates[order[0]], -0.15 * 2 * w @ b.T, rtol=1e-12)
    np.testing.assert_allclose(updates[order[1]], -0.15 * 2 * a.T @ w, rtol=1e-12)
    if "kernel" in updates:
        np.testing.assert_array_equal(updates["kernel"], 0.0)


def test_what_is_no_factor_decays_as_under_decoupled_decay(x64):
    params, w0 = adapter()
    params["head"] = {"kernel": normal(5, 3), "bias": normal(3)}
    parts = {"*/bias": 0.0, "*/lora_b": 0.5, "*": 1.0}
    frozen = {"dense": {"kernel": w0}}
    found = step(lora_decay(0.3, 0.5, frozen=frozen, parts=parts), params)
    whole = step(lora_decay(0.3, 0.5, frozen=frozen), params)
    np.testing.assert_allclose(found["head"]["kernel"], -0.15 * params["head"]["kernel"])
    np.testing.assert_array_equal(found["head"]["bias"], 0.0)
    np.testing.assert_allclose(found["dense"]["lora_b"], whole["dense"]["lora_b"] / 2)


def test_a_factor_of_two_pairs_is_drawn_by_both(x64):
    shared, b, c = normal(6, 2), normal(2, 5), normal(2, 4)
    weights = {"one": normal(6, 5), "two": normal(6, 4)}
    pairs = {"one": ("a", "b"), "two": ("a", "c")}
    params = {"a": shared, "b": b, "c": c}

    def penalty(p):
        made = {"one": p["a"] @ p["b"], "two": p["a"] @ p["c"]}
        return sum(jnp.sum(jnp.square(weights[k] + made[k])) / 2 for k in made)

    found = step(lora_decay(0.5, 0.5, frozen=weights, pairs=pairs), params)
    expected = jax.grad(penalty)(params)
    jax.tree.map(lambda u, g: np.testing.assert_allclose(u, -g / 4, rtol=1e-12), found, expected)


def test_at_an_adapter_of_zero_it_shrinks_the_weight_and_plain_decay_draws_back_to_it(x64):
    """The note of the formula: a run of each, without gradients."""
    w0 = normal(6, 5)
    start = {"lora_a": normal(6, 5) / 3, "lora_b": jnp.zeros((5, 5))}
    made = lambda p: w0 + p["lora_a"] @ p["lora_b"]

    def run(tx, params):
        def one(_, carry):
            params, state = carry
            zeros = jax.tree.map(jnp.zeros_like, params)
            updates, state = tx.update(zeros, state, params)
            return optax.apply_updates(params, updates), state

        return jax.lax.fori_loop(0, 3000, one, (params, tx.init(params)))[0]

    shrunk = made(run(lora_decay(0.5, 0.02, frozen={"kernel": w0}), start))
    assert jnp.linalg.norm(shrunk) < 0.05 * jnp.linalg.norm(w0)
    moved = start | {"lora_b": normal(5, 5)}
    back = made(run(wdjax.decoupled_decay(0.5, 0.02), moved))
    np.testing.assert_allclose(back, w0, atol=1e-9)


def nnx_adapters(kind):
    """`(model, the kernel of its base, its LoRA)`."""
    if kind == "LoRALinear":
        model = nnx.LoRALinear(6, 5, lora_rank=2, rngs=nnx.Rngs(0))
        return model, model.kernel, model.lora
    base = nnx.Linear(6, 5, rngs=nnx.Rngs(0))
    model = nnx.LoRA(6, 2, 5, base_module=base, rngs=nnx.Rngs(1))
    return model, base.kernel, model


@pytest.mark.parametrize("kind", ["LoRA", "LoRALinear"])
def test_an_nnx_optimizer_of_the_adapters_alone_descends_on_the_penalty(kind):
    """Only `LoRAParam`s are optimised; W is read off the model's own outputs."""
    model, _, lora = nnx_adapters(kind)
    lora.lora_b[...] = normal(2, 5, dtype=jnp.float32)
    used = lambda m: m(jnp.eye(6)) - m(jnp.zeros((6, 6)))  # without the bias
    penalty = lambda m: jnp.sum(jnp.square(used(m))) / 2
    grads = nnx.grad(penalty, argnums=nnx.DiffState(0, nnx.LoRAParam))(model)
    params, grads = (nnx.to_pure_dict(x) for x in (nnx.state(model, nnx.LoRAParam), grads))
    expected = jax.tree.map(lambda p, g: p - 0.15 * g, params, grads)
    tx = lora_decay(0.3, 0.5, frozen=nnx.state(model, nnx.Param))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.LoRAParam)
    before = jax.tree.map(jnp.copy, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    optimizer.update(model, jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.LoRAParam)))
    after = nnx.to_pure_dict(nnx.state(model, nnx.LoRAParam))
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=2e-5), after, expected)
    everything = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, everything)
    assert sum(jax.tree.leaves(changed)) == 2


def test_linens_and_others_folders_are_found():
    a, b, w0 = normal(6, 2, dtype=jnp.float32), normal(2, 5, dtype=jnp.float32), jnp.ones((6, 5))
    expected = step(lora_decay(0.1, 1.0, frozen={"kernel": w0}), {"lora_a": a, "lora_b": b})
    places = {
        "beside": {"layer": {"kernel": w0}},
        "in its base": {"layer": {"base_layer": {"weight": w0}}},
        "at the folder's own path": {"layer": w0},
    }
    for frozen in places.values():
        found = step(lora_decay(0.1, 1.0, frozen=frozen), {"layer": {"lora_a": a, "lora_b": b}})
        np.testing.assert_array_equal(found["layer"]["lora_a"], expected["lora_a"])
    peft = {"q": {"lora_B": {"weight": a}, "lora_A": {"weight": b}}}  # W is B A
    tx = lora_decay(0.1, 1.0, frozen={"q": {"weight": w0}}, factors=("lora_B", "lora_A"))
    np.testing.assert_array_equal(step(tx, peft)["q"]["lora_B"]["weight"], expected["lora_a"])


def outputs_of(jaxpr):
    """The shapes of everything a program computes, in its inner programs too."""
    for equation in jaxpr.eqns:
        yield from (v.aval.shape for v in equation.outvars)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from outputs_of(inner)


def test_the_weight_is_never_made():
    """Counted in the program: nothing but factors, and what is as small, is computed."""
    params = {"lora_a": jnp.ones((64, 2)), "lora_b": jnp.ones((2, 96))}
    frozen = {"kernel": jnp.ones((64, 96))}
    tx = lora_decay(0.1, 1.0)

    def update(frozen, params):
        return tx.update(params, tx.init(params), params, frozen=frozen)[0]

    largest = max(np.prod(shape) for shape in outputs_of(jax.make_jaxpr(update)(frozen, params)))
    assert largest == 2 * 96
    naive = lambda f, p: f["kernel"] + p["lora_a"] @ p["lora_b"]
    assert max(np.prod(s) for s in outputs_of(jax.make_jaxpr(naive)(frozen, params))) == 64 * 96
    count = jax.jit(update).lower(frozen, params).compile().cost_analysis()["flops"]
    assert count < 1.3 * 2 * (2 * 64 * 96 * 2)  # Two products of W0 with a factor of rank 2.


def test_a_frozen_weight_in_half_precision_is_multiplied_in_float32():
    params, w0 = adapter(jnp.bfloat16)
    wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    found = pulls_of_factors(*params["dense"].values(), w0, 0.5)
    expected = pulls_of_factors(*wide["dense"].values(), jnp.asarray(w0, jnp.float32), 0.5)
    assert found[0].dtype == jnp.float32
    np.testing.assert_array_equal(found[0], expected[0])
    updates = step(lora_decay(0.5, 1.0, frozen={"dense": {"kernel": w0}}), params)
    assert updates["dense"]["lora_a"].dtype == jnp.bfloat16


def test_integers_and_keys_beside_the_adapter_are_left_alone():
    params, w0 = adapter(jnp.float32)
    rest = {"steps": jnp.arange(3), "key": jax.random.key(0)}
    tx = lora_decay(0.5, 1.0, frozen={"dense": {"kernel": w0}})
    tree = params | rest
    updates, _ = jax.jit(tx.update)(tree, tx.init(tree), tree)
    np.testing.assert_array_equal(updates["steps"], rest["steps"])
    assert (updates["key"] == rest["key"]).all()


def test_it_follows_a_schedule_and_the_optimisers_learning_rate(x64):
    params, w0 = adapter()
    frozen = {"dense": {"kernel": w0}}
    cosine = optax.cosine_decay_schedule(1.0, 10)
    decay = functools.partial(lora_decay, 0.3, frozen=frozen)
    one = make_optimizer(optax.identity(), 0.2, decay, schedule=cosine)
    other = lora_decay(0.3, lambda t: 0.2 * cosine(t), frozen=frozen)
    zeros = jax.tree.map(jnp.zeros_like, params)
    states = [tx.init(params) for tx in (one, other)]
    for _ in range(3):
        (found, states[0]), (expected, states[1]) = (
            tx.update(zeros, state, params) for tx, state in zip((one, other), states, strict=True)
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found, expected)
    late = step(lora_decay(0.3, 0.2 * float(cosine(2)), frozen=frozen), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7), found, late)


def test_the_audit_says_that_an_adapter_has_no_rate_of_its_own():
    params, w0 = adapter(jnp.float32)
    params |= {"dense": params["dense"] | {"kernel": w0}, "head": {"kernel": jnp.ones((5, 2))}}
    report = wdjax.audit(params, optax.chain(optax.adam(0.01), lora_decay(0.3, 0.1)))
    told = {leaf.path: leaf for leaf in report.leaves}
    for name in ("dense/lora_a", "dense/lora_b"):
        assert np.isnan(told[name].rate)
        assert "not a decay proportional to the weight" in told[name].unmeasured
    assert told["dense/kernel"].rate == 0 and told["dense/kernel"].unmeasured is None
    assert told["head/kernel"].rate == pytest.approx(0.03, rel=1e-4)


@pytest.mark.parametrize("size", [1e-2, 1e-3, 1e-5])
def test_the_audit_takes_no_small_adapter_for_a_leaf_that_decays(size):
    """Near zero the pull is linear in both factors together, and is a decay of neither."""
    params = jax.tree.map(lambda x: size * x, adapter(jnp.float32)[0])
    tx = lora_decay(0.3, 0.1, frozen={"dense": {"kernel": normal(6, 5, dtype=jnp.float32)}})
    for leaf in wdjax.audit(params, tx).leaves:
        assert np.isnan(leaf.rate) and leaf.unmeasured.startswith("not a decay")
    if size == 1e-5:
        assert "(`lora_decay`)" in leaf.unmeasured


# Refused.


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"scale": 0.0}, "`scale` must be finite and > 0"),
        ({"scale": -1.0}, "`scale` must be finite and > 0"),
        ({"factors": ("a",)}, "`factors` must be two different names, the left factor's first"),
        ({"factors": ("a", "a")}, "`factors` must be two different names"),
        (
            {"pairs": {}},
            r"`pairs` must be a mapping .* \{\"x/kernel\": \(\"x/left\", \"x/right\"\)",
        ),
        ({"pairs": {"x": "ab"}}, "`pairs` must be a mapping"),
    ],
)
def test_what_is_no_adapter_is_refused_at_build(how, words):
    with pytest.raises(ValueError, match=words):
        lora_decay(0.1, 0.1, **how)


A, B, W = jnp.ones((6, 2)), jnp.ones((2, 5)), jnp.ones((6, 5))


@pytest.mark.parametrize(
    ("params", "how", "words"),
    [
        ({"x/lora_b": B}, {}, "'x/lora_b' has no partner 'x/lora_a' among the params"),
        ({"lora_A": A}, {}, r"no leaf of the params is a factor.*Did you mean 'lora_A'\?.*pairs="),
        (
            {"x/lora_a": A, "x/lora_b": B},
            {"frozen": {"x/kernels": W}},
            r"not in `frozen`: there is no 'x/kernel', .* Did you mean 'x/kernels'\? Name it by",
        ),
        (
            {"lora_a": A, "lora_b": B},
            {"frozen": {"kernel": W.T}},
            r"`lora_a` of shape \(6, 2\) times `lora_b` of shape \(2, 5\) does not add to the "
            r"frozen weight 'kernel' of shape \(5, 6\)",
        ),
        (
            {"lora_a": A, "lora_b": B},
            {"frozen": {"kernel": W}, "factors": ("lora_b", "lora_a")},
            "The other order fits: swap them",
        ),
        (
            {"left": A, "right": B},
            {"frozen": {"kernel": W}, "pairs": {"kernel": ("lefd", "right")}},
            r"names the factor 'lefd' of 'kernel', .* Did you mean 'left'\?",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_init_with_a_way_out(params, how, words):
    with pytest.raises(ValueError, match=words):
        lora_decay(0.1, 0.1, **how).init(params)


def test_a_weight_that_is_nowhere_is_refused_in_the_first_update():
    params = {"lora_a": A, "lora_b": B}
    tx = lora_decay(0.1, 0.1)
    state = tx.init(params)
    with pytest.raises(ValueError, match=r"not in the params.*tx.update\(updates, state, pa"):
        tx.update(params, state, params)


def test_a_mask_that_hides_one_factor_is_refused():
    tx = optax.masked(lora_decay(0.1, 0.1), {"lora_a": True, "lora_b": False, "kernel": True})
    with pytest.raises(ValueError, match="no partner 'lora_b'.*let it see both factors"):
        tx.init({"lora_a": A, "lora_b": B, "kernel": W})
