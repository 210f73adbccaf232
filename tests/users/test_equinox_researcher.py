"""A researcher with equinox and a loop of their own: scores of it, a choice, a verdict, a page."""

import jax
import numpy as np
import pytest

SCRIPT = """
import equinox as eqx
import jax, jax.numpy as jnp, numpy as np, optax, wdjax
from sklearn.datasets import load_breast_cancer
from wdjax.report import results_of, write_report

x, y = load_breast_cancer(return_X_y=True)
x = jnp.asarray((x - x.mean(0)) / x.std(0), jnp.float32)
y = jnp.asarray(y)
strengths, splits, seeds = [0.0, 0.3, 3.0, 30.0], 4, 2


def train(strength, split, seed):
    rows = np.random.default_rng(split).permutation(len(y))
    train, valid = rows[:100], rows[100:]
    model = eqx.nn.MLP(30, 2, 32, 1, key=jax.random.key(seed))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    tx = optax.adamw(0.01, weight_decay=strength, mask=wdjax.matrices_only)

    def losses(params, x, y):
        logits = jax.vmap(eqx.combine(params, static))(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y)

    def step(carry, _):
        params, state = carry
        grads = jax.grad(lambda p: losses(p, x[train], y[train]).mean())(params)
        updates, state = tx.update(grads, state, params)
        return (eqx.apply_updates(params, updates), state), None

    @jax.jit
    def run(params):
        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=120)
        return losses(params, x[valid], y[valid])

    return run(params).mean(), (params, tx)


losses = np.zeros((len(strengths), splits, seeds))
for i, strength in enumerate(strengths):
    for split in range(splits):
        for seed in range(seeds):
            losses[i, split, seed], (params, tx) = train(strength, split, seed)

scores = wdjax.Scores.of({"loss": losses}, {"strength": strengths})
choice = wdjax.choose(scores)
print(choice.reason)
wdjax.assert_decays(tx, params, {"*/weight": 30.0, "*": 0.0}, learning_rate=0.01)
write_report(results_of(scores, choice, audit=wdjax.audit(params, tx)), folder / "report.html")
"""


@pytest.mark.slow
def test_a_loop_over_strengths_in_equinox_ends_in_a_verdict_and_a_page(tmp_path, capsys):
    pytest.importorskip("equinox")
    names = {"folder": tmp_path}
    with jax.numpy_rank_promotion("allow"), jax.debug_nans(False):
        exec(compile(SCRIPT, "script.py", "exec"), names)
    means = names["losses"].mean(axis=(1, 2))
    assert names["choice"].index == means.argmin()
    assert means.argmin() > 0  # 100 examples of 30 columns: some decay is better.
    told = capsys.readouterr().out
    assert "paired gain over zero" in told
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "layers/0/weight" in page and "<svg" in page
    assert np.isfinite(means).all()
