"""What is measured, ours and the peers', one process each: `python -m experiments.speed.contestants TASK`.

The grid: digits / 16, an MLP 64-100-10 with relu, Adam at 1e-3, batch 128, 20 epochs, 10 decay
strengths x 5 stratified folds, scored by accuracy. Every peer is written as its own user would,
and as fast as that user reasonably could.
"""

import json
import os
import sys
import time

import numpy as np

EPOCHS, BATCH, WIDTH, FOLDS, LEARNING_RATE = 20, 128, 100, 5, 1e-3
STRENGTHS = np.logspace(-4, 1, 10).astype("f4")
NUM_FITS = FOLDS * len(STRENGTHS)


def digits():
    from sklearn.datasets import load_digits

    inputs, targets = load_digits(return_X_y=True)
    return (inputs / 16).astype("f4"), targets.astype("i4")


def splits():
    from sklearn.model_selection import StratifiedKFold

    return StratifiedKFold(FOLDS, shuffle=True, random_state=0)


def grid_ours(num_devices=2, trials_at_once=None):
    """The grid by `wdjax.cross_validate`: one compiled program, its trials over CPU devices."""
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(num_devices))
    import jax
    import optax
    from jax.sharding import AxisType

    from wdjax.decay import decoupled_decay
    from wdjax.losses import cross_entropy
    from wdjax.models import make_mlp
    from wdjax.parts import matrices_only
    from wdjax.selection.cross_validation import cross_validate
    from wdjax.selection.folds import folds_from_splits
    from wdjax.selection.grids import grid_product
    from wdjax.training import is_correct, make_fit, make_fit_and_score, make_score
    from wdjax.types import Batch

    inputs, targets = digits()
    data = Batch(inputs, targets, np.ones(len(targets), "f4"))
    folds = folds_from_splits(splits().split(inputs, targets))
    model = make_mlp(10, widths=(WIDTH,))

    def make_tx(h):
        return optax.chain(
            optax.scale_by_adam(eps_root=1e-12),
            optax.scale_by_learning_rate(LEARNING_RATE),
            decoupled_decay(h["strength"], LEARNING_RATE, parts=matrices_only),
        )

    fit = make_fit(model, cross_entropy, make_tx=make_tx, num_epochs=EPOCHS, batch_size=BATCH)
    fit_and_score = make_fit_and_score(fit, make_score(model, accuracy=is_correct))
    mesh = jax.make_mesh((num_devices,), ("trial",), axis_types=(AxisType.Auto,))

    def run():
        scores = cross_validate(
            fit_and_score,
            grid_product(strength=STRENGTHS),
            data,
            folds,
            key=jax.random.key(0),
            mesh=mesh if num_devices > 1 else None,
            trials_at_once=trials_at_once,
        )
        return scores.mean()["accuracy"]

    return run


def grid_hand():
    """A careful JAX user's loop: strength traced; step, init and evaluation jitted."""
    import jax
    import jax.numpy as jnp
    import optax

    inputs, targets = digits()
    adam = optax.scale_by_adam()

    @jax.jit
    def init(key):
        k1, k2 = jax.random.split(key)
        params = {
            "w1": jax.random.normal(k1, (64, WIDTH)) * (2 / 64) ** 0.5,
            "b1": jnp.zeros(WIDTH),
            "w2": jax.random.normal(k2, (WIDTH, 10)) * (2 / WIDTH) ** 0.5,
            "b2": jnp.zeros(10),
        }
        return params, adam.init(params)

    def logits(p, x):
        return jax.nn.relu(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]

    def loss(p, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(logits(p, x), y).mean()

    @jax.jit
    def step(p, s, x, y, strength):
        u, s = adam.update(jax.grad(loss)(p, x, y), s, p)
        decay = lambda w, u: w - LEARNING_RATE * (u + strength * w * (w.ndim > 1))
        return jax.tree.map(decay, p, u), s

    accuracy = jax.jit(lambda p, x, y: (logits(p, x).argmax(-1) == y).mean())

    def run():
        scores = np.zeros((len(STRENGTHS), FOLDS))
        for i, strength in enumerate(STRENGTHS):
            for j, (train, valid) in enumerate(splits().split(inputs, targets)):
                p, s = init(jax.random.key(j))
                rng = np.random.default_rng(j)
                for _ in range(EPOCHS):
                    order = rng.permutation(train)
                    for rows in order[: len(order) // BATCH * BATCH].reshape(-1, BATCH):
                        p, s = step(p, s, inputs[rows], targets[rows], strength)
                scores[i, j] = accuracy(p, inputs[valid], targets[valid])
        return scores.mean(1)

    return run


def grid_sklearn():
    """scikit-learn's own network and search, two worker processes (its `alpha` is coupled L2)."""
    import warnings

    from sklearn.model_selection import GridSearchCV
    from sklearn.neural_network import MLPClassifier

    # It warns at every fit that 20 epochs do not converge, in the workers too.
    warnings.filterwarnings("ignore")
    os.environ["PYTHONWARNINGS"] = "ignore"
    inputs, targets = digits()
    network = MLPClassifier((WIDTH,), max_iter=EPOCHS, batch_size=BATCH, n_iter_no_change=1000)
    search = GridSearchCV(network, {"alpha": STRENGTHS}, cv=splits(), refit=False, n_jobs=2)
    return lambda: search.fit(inputs, targets).cv_results_["mean_test_score"]


TASKS = {"grid_ours": grid_ours, "grid_hand": grid_hand, "grid_sklearn": grid_sklearn}


def main(task: str, arguments: str) -> None:
    """Prepares the task, runs it once, and then once more for every line it reads."""
    # Libraries print on standard output; the answers go where only the caller looks.
    answers, sys.stdout = sys.stdout, sys.stderr
    run = TASKS[task](**json.loads(arguments))
    while True:
        start = time.perf_counter()
        value = run()
        seconds = time.perf_counter() - start
        best = float(np.max(value))
        print(json.dumps({"seconds": seconds, "best": best}), file=answers, flush=True)
        if not sys.stdin.readline():
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
