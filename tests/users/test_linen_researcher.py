"""A researcher with a linen script: parts, example weights and an audit in six changed lines."""

import difflib

import jax
import numpy as np
import pytest

import wdjax

BEFORE = """
import flax.linen as nn
import jax, jax.numpy as jnp, numpy as np, optax
from sklearn.datasets import load_digits


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.LayerNorm()(nn.Dense(32)(x)))
        return nn.Dense(10)(x)


x, y = load_digits(return_X_y=True)
x, y = jnp.asarray(x[:640] / 16, jnp.float32), jnp.asarray(y[:640])
module = Net()
params = module.init(jax.random.key(0), x[:1])["params"]
tx = optax.adamw(3e-3, weight_decay=0.1)


def loss_fn(params, x, y):
    logits = module.apply({"params": params}, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


@jax.jit
def step(params, opt_state, x, y):
    loss, grads = jax.value_and_grad(loss_fn)(params, x, y)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss


opt_state = tx.init(params)
losses = []
for i in range(40):
    rows = slice(64 * (i % 10), 64 * (i % 10) + 64)
    params, opt_state, loss = step(params, opt_state, x[rows], y[rows])
    losses.append(float(loss))
"""

CHANGES = {
    "import jax, jax.numpy as jnp, numpy as np, optax\n": (
        "import jax, jax.numpy as jnp, numpy as np, optax, wdjax\n"
    ),
    "tx = optax.adamw(3e-3, weight_decay=0.1)\n": (
        "tx = optax.adamw(3e-3, weight_decay=0.1, mask=wdjax.matrices_only)\n"
        "print(wdjax.audit(params, tx, num_steps=40))\n"
    ),
    "    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()\n": (
        "    losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)\n"
        "    return jnp.average(losses, weights=wdjax.sigmoid_weight(losses, -2.0))\n"
    ),
}
AFTER = BEFORE
for old, new in CHANGES.items():
    assert old in AFTER
    AFTER = AFTER.replace(old, new)


def test_six_changed_lines_are_enough():
    lines = difflib.ndiff(BEFORE.splitlines(), AFTER.splitlines())
    assert sum(line.startswith("+ ") for line in lines) <= 6


def test_the_script_still_trains_its_gains_are_spared_and_the_audit_tells_it(capsys):
    with jax.numpy_rank_promotion("allow"):  # A script of someone else.
        before, after = {}, {}
        exec(compile(BEFORE, "script.py", "exec"), before)
        exec(compile(AFTER, "script.py", "exec"), after)
    printed = capsys.readouterr().out
    rows = {line.split()[0]: line for line in printed.splitlines() if "/" in line}
    assert "0.0003" in rows["Dense_0/kernel"] and "0.0003" not in rows["LayerNorm_0/scale"]
    for names in (before, after):
        assert names["losses"][-1] < 0.5 * names["losses"][0]
    expected = {"*/kernel": 0.1, "*": 0.0}
    wdjax.assert_decays(after["tx"], after["params"], expected, learning_rate=3e-3)
    with pytest.raises(AssertionError, match="LayerNorm_0/scale"):
        wdjax.assert_decays(before["tx"], before["params"], expected, learning_rate=3e-3)
    # The weights favour easy examples, so the two runs part.
    assert not np.allclose(before["losses"][1:], after["losses"][1:], rtol=1e-3)
