"""What is measured, ours and the peers', a process each: `python -m experiments.speed.contestants`.

The grid: digits / 16, an MLP 64-100-10 with relu, Adam at 1e-3, batch 128, 20 epochs, 10 decay
strengths x 5 stratified folds (ours by `kfold`, all others' by scikit-learn), scored by accuracy.
The CNN: the article's, on 20 batches of 128 random 32x32x3 images, Adam with decoupled decay. Every
peer is written as its own user would, and as fast as that user reasonably could.
"""

import functools
import json
import os
import sys
import time

import numpy as np

EPOCHS, BATCH, WIDTH, FOLDS, LEARNING_RATE = 20, 128, 100, 5, 1e-3
NUM_STRENGTHS = 10
STRENGTHS = np.logspace(-4, 1, NUM_STRENGTHS).astype("f4")
NUM_FITS = FOLDS * NUM_STRENGTHS
KERAS_FITS = 4
CNN_STEPS, CNN_BATCH = 20, 128
MATMUL_SIDE = 4096
STREAM_STEPS = 40


def digits():
    from sklearn.datasets import load_digits

    inputs, targets = load_digits(return_X_y=True)
    return (inputs / 16).astype("f4"), targets.astype("i4")


def splits():
    from sklearn.model_selection import StratifiedKFold

    return StratifiedKFold(FOLDS, shuffle=True, random_state=0)


def grid_ours(
    num_devices=2,
    trials_at_once=None,
    strengths=NUM_STRENGTHS,
    folds=FOLDS,
    seeds=1,
    epochs=EPOCHS,
    width=WIDTH,
    depth=1,
    batch=BATCH,
):
    """The grid by `wdjax.cross_validate`: one compiled program, its trials over CPU devices."""
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(num_devices))
    import jax
    import optax
    from jax.sharding import AxisType

    from wdjax.data.arrays import load_data, to_batch
    from wdjax.decay import decoupled_decay, make_optimizer
    from wdjax.losses import cross_entropy
    from wdjax.models import make_mlp
    from wdjax.parts import matrices_only
    from wdjax.selection.cross_validation import cross_validate
    from wdjax.selection.folds import kfold
    from wdjax.selection.grids import grid_product
    from wdjax.training import is_correct, make_fit, make_fit_and_score, make_score

    dataset = load_data("digits")
    data = to_batch(dataset)
    parts = kfold(jax.random.key(0), len(dataset.targets), folds, stratify=dataset.targets)
    model = make_mlp(10, widths=(width,) * depth)

    def make_tx(h):
        decay = functools.partial(decoupled_decay, h["strength"], parts=matrices_only)
        return make_optimizer(optax.scale_by_adam(eps_root=1e-12), LEARNING_RATE, decay)

    fit = make_fit(model, cross_entropy, make_tx=make_tx, num_epochs=epochs, batch_size=batch)
    fit_and_score = make_fit_and_score(fit, make_score(model, accuracy=is_correct))
    mesh = jax.make_mesh((num_devices,), ("trial",), axis_types=(AxisType.Auto,))

    def run():
        scores = cross_validate(
            fit_and_score,
            grid_product(strength=np.geomspace(STRENGTHS[0], STRENGTHS[-1], strengths, dtype="f4")),
            data,
            parts,
            key=jax.random.key(0),
            num_seeds=seeds,
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


def grid_skorch():
    """PyTorch in scikit-learn's search, two worker processes of one thread each."""
    import skorch
    import torch
    from sklearn.model_selection import GridSearchCV

    # Two workers share two cores; with the default each would start two threads.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    inputs, targets = digits()

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.Sequential(
                torch.nn.Linear(64, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, 10)
            )

        def forward(self, x):
            return self.layers(x)

    network = skorch.NeuralNetClassifier(
        Network,
        criterion=torch.nn.CrossEntropyLoss,
        optimizer=torch.optim.AdamW,
        lr=LEARNING_RATE,
        max_epochs=EPOCHS,
        batch_size=BATCH,
        train_split=None,
        verbose=0,
        iterator_train__shuffle=True,
    )
    strengths = {"optimizer__weight_decay": [float(s) for s in STRENGTHS]}
    search = GridSearchCV(network, strengths, cv=splits(), refit=False, n_jobs=2)
    return lambda: search.fit(inputs, targets.astype("i8")).cv_results_["mean_test_score"]


def grid_keras():
    """Keras 3 on JAX, a loop over `fit`: the first `KERAS_FITS` of the 50 fits only."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    inputs, targets = digits()

    def run():
        scores = []
        for train, valid in list(splits().split(inputs, targets))[:KERAS_FITS]:
            network = keras.Sequential(
                [
                    keras.layers.Input((64,)),
                    keras.layers.Dense(WIDTH, "relu"),
                    keras.layers.Dense(10),
                ]
            )
            network.compile(
                keras.optimizers.AdamW(LEARNING_RATE, weight_decay=float(STRENGTHS[0])),
                keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                metrics=["accuracy"],
            )
            network.fit(inputs[train], targets[train], batch_size=BATCH, epochs=EPOCHS, verbose=0)
            scores.append(network.evaluate(inputs[valid], targets[valid], verbose=0)[1])
        return np.mean(scores)

    return run


def grid_operations():
    """Multiplications and additions of the grid's 50 fits, in matrix products alone.

    Forward, and backward for both matrices and the hidden layer; not for the inputs.
    """
    first, second = 64 * WIDTH, WIDTH * 10
    num_train = len(digits()[1]) * (FOLDS - 1) // FOLDS
    examples = NUM_FITS * EPOCHS * (num_train // BATCH * BATCH)
    return examples * 2 * (2 * (first + second) + second)


def matmul():
    """One product of two large float32 matrices, by JAX on one device with all cores."""
    import jax
    import jax.numpy as jnp

    left, right = jax.random.normal(jax.random.key(0), (2, MATMUL_SIDE, MATMUL_SIDE))
    product = jax.jit(jnp.matmul)
    return lambda: product(left, right).block_until_ready()[0, 0]


def images(num_steps=CNN_STEPS):
    rng = np.random.default_rng(0)
    shape = (num_steps * CNN_BATCH, 32, 32, 3)
    return rng.random(shape, np.float32), rng.integers(0, 10, shape[0]).astype("i4")


def cnn_ours(num_models=1, num_devices=1, trials_at_once=None, num_steps=CNN_STEPS):
    """One epoch of `make_fit`, compiled; several models are strengths of one `cross_validate`."""
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(num_devices))
    import jax
    import optax
    from jax.sharding import AxisType

    from wdjax.decay import decoupled_decay, make_optimizer
    from wdjax.losses import cross_entropy
    from wdjax.models import make_cnn
    from wdjax.parts import matrices_only
    from wdjax.selection.cross_validation import cross_validate
    from wdjax.selection.folds import folds_from_splits
    from wdjax.training import make_fit
    from wdjax.types import Batch

    def make_tx(h):
        decay = functools.partial(decoupled_decay, h["strength"], parts=matrices_only)
        return make_optimizer(optax.scale_by_adam(eps_root=1e-12), LEARNING_RATE, decay)

    fit = make_fit(make_cnn(10), cross_entropy, make_tx=make_tx, num_epochs=1, batch_size=CNN_BATCH)
    inputs, targets = images(num_steps)
    train = Batch(inputs, targets, np.ones(len(targets), "f4"))
    if num_models == 1:
        alone = jax.jit(fit)
        train = jax.device_put(train)
        return lambda: float(
            alone({"strength": 0.01}, train, jax.random.key(0)).history["loss"][-1]
        )
    # One fold that trains on everything; its one held-out row is a copy that is not scored.
    held_out = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf[:1]]), train)
    folds = folds_from_splits([(np.arange(len(targets)), np.array([len(targets)]))])
    mesh = jax.make_mesh((num_devices,), ("trial",), axis_types=(AxisType.Auto,))
    training_loss = lambda h, train, valid, key: fit(h, train, key).history["loss"][-1]

    def run():
        scores = cross_validate(
            training_loss,
            {"strength": np.geomspace(1e-3, 1, num_models, dtype="f4")},
            held_out,
            folds,
            key=jax.random.key(0),
            mesh=mesh,
            trials_at_once=trials_at_once,
        )
        return scores.values

    return run


def cnn_keras():
    """Keras 3 on JAX: one epoch of `fit`."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    inputs, targets = images()
    layers = keras.layers
    network = keras.Sequential(
        [
            layers.Input((32, 32, 3)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ]
    )
    network.compile(
        keras.optimizers.AdamW(LEARNING_RATE, weight_decay=0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    fit = lambda: network.fit(inputs, targets, batch_size=CNN_BATCH, epochs=1, verbose=0)
    return lambda: fit().history["loss"][-1]


def cnn_torch(channels_last=False):
    """PyTorch: one epoch of the usual loop over batches, on tensors in memory, all cores."""
    import torch

    inputs, targets = images()
    nn = torch.nn
    network = nn.Sequential(
        *(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 10)),
    )
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = network.to(memory_format=layout)
    inputs = torch.from_numpy(inputs.transpose(0, 3, 1, 2)).contiguous(memory_format=layout)
    targets = torch.from_numpy(targets.astype("i8"))
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=0.01)
    loss_of = nn.CrossEntropyLoss()

    def run():
        total = 0.0
        for rows in torch.randperm(len(targets)).split(CNN_BATCH):
            optimizer.zero_grad()
            loss = loss_of(network(inputs[rows].contiguous(memory_format=layout)), targets[rows])
            loss.backward()
            optimizer.step()
            total += loss.item()
        return total / CNN_STEPS

    return run


def stream_step():
    """The CNN's guarded step, compiled, and a state to begin with."""
    import jax
    import optax

    from wdjax.decay import decoupled_decay, make_optimizer
    from wdjax.losses import cross_entropy, regularized_loss
    from wdjax.models import make_cnn
    from wdjax.parts import matrices_only
    from wdjax.runners import jit_step
    from wdjax.step import init_state, make_train_step, skip_non_finite

    model = make_cnn(10)
    decay = functools.partial(decoupled_decay, 0.01, parts=matrices_only)
    tx = make_optimizer(optax.scale_by_adam(), LEARNING_RATE, decay)
    step = skip_non_finite(make_train_step(regularized_loss(model, cross_entropy), tx))
    key = jax.random.key(0)
    params, model_state = model.init(key, images()[0][:1])
    return jit_step(step), init_state(params, tx, model_state=model_state, key=key)


def stream_bare(steps):
    """The step alone, called on batches that are on the device already."""
    import itertools

    import jax

    from wdjax.types import Batch

    run_step, state = stream_step()
    inputs, targets = images()
    cuts = [slice(i, i + CNN_BATCH) for i in range(0, len(targets), CNN_BATCH)]
    weights = np.ones(CNN_BATCH, "f4")
    batches = jax.device_put([Batch(inputs[cut], targets[cut], weights) for cut in cuts])
    ahead = itertools.cycle(batches)

    def run():
        nonlocal state
        for _ in range(steps):
            state, metrics = run_step(state, next(ahead))
        return float(metrics["loss"])

    return run


def stream_arrays(steps):
    """`TrainLoop` over arrays in memory."""
    from wdjax.data.arrays import make_dataset

    inputs, targets = images()
    return looped(make_dataset(inputs, targets, num_outputs=10), steps)


def stream_tfds(steps):
    """`TrainLoop` over PNG images in array_record, as TFDS keeps CIFAR-10."""
    import tempfile

    from experiments.speed.images import write_images
    from wdjax.data.tfds import open_tfds

    folder = tempfile.TemporaryDirectory()
    write_images(folder.name, CNN_STEPS * CNN_BATCH)
    run = looped(open_tfds("cifar10", data_dir=folder.name), steps)
    run.folder = folder  # It is removed with the function.
    return run


def looped(source, steps):
    import pathlib
    import tempfile

    import jax

    from wdjax.data.stream import make_stream, prefetch_to_device
    from wdjax.loop import Logging, TrainLoop

    run_step, state = stream_step()
    stream = make_stream(source, batch_size=CNN_BATCH, seed=0, num_epochs=None)
    log = pathlib.Path(tempfile.mkdtemp()) / "log.jsonl"
    loop = TrainLoop(
        run_step, state, prefetch_to_device(stream), num_steps=10**9, logging=Logging(log=log)
    )
    going = iter(loop)

    def run():
        for _ in range(steps):
            _, metrics = next(going)
        jax.block_until_ready(loop.state)
        return float(metrics["loss"])

    return run


TASKS = {
    "stream_bare": stream_bare,
    "stream_arrays": stream_arrays,
    "stream_tfds": stream_tfds,
    "grid_ours": grid_ours,
    "grid_hand": grid_hand,
    "grid_sklearn": grid_sklearn,
    "grid_skorch": grid_skorch,
    "grid_keras": grid_keras,
    "matmul": matmul,
    "cnn_ours": cnn_ours,
    "cnn_keras": cnn_keras,
    "cnn_torch": cnn_torch,
}


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
