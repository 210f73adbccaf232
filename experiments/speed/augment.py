"""The time of each augmentation at batch 128 of 32x32x3, against a training step of the CNN.

Claim: crop and flip together cost less than a tenth of the step.
Run: python -m experiments.speed augment
Each is called on the device inside a compiled loop, as a run calls it; 7 rounds, each running
every one, every second round backwards; the shares are medians over the rounds.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import optax

from experiments.speed.measure import write_result
from wdjax.data.augment import compose, random_crop, random_flip
from wdjax.losses import cross_entropy, regularized_loss
from wdjax.models import make_cnn
from wdjax.recipe import AUGMENTATIONS
from wdjax.step import init_state, make_train_step
from wdjax.types import Batch

BATCH, SIDE, STEPS, ROUNDS = 128, 32, 10, 7
KEY = jax.random.key(0)


def images():
    return jax.random.uniform(KEY, (BATCH, SIDE, SIDE, 3))


def augmenting(augment):
    """`STEPS` augmentations of a batch, each of the last one's result, as one program."""

    def one(batch, key):
        batch, strengths = jax.vmap(augment)(jax.random.split(key, BATCH), batch)
        return batch, strengths.mean()

    run = jax.jit(lambda batch: jax.lax.scan(one, batch, jax.random.split(KEY, STEPS)))
    batch = images()
    return lambda: jax.block_until_ready(run(batch))


def training():
    """`STEPS` steps of the article's CNN with Adam, as one program."""
    model, tx = make_cnn(10), optax.adam(1e-3)
    params, model_state = model.init(KEY, images()[:1])
    step = make_train_step(regularized_loss(model, cross_entropy), tx)
    labels = jnp.arange(BATCH) % 10

    def one(state, _):
        return step(state, Batch(images(), labels, jnp.ones(BATCH)))

    start = init_state(params, tx, model_state=model_state, key=KEY)
    run = jax.jit(lambda state: jax.lax.scan(one, state, length=STEPS))
    return lambda: jax.block_until_ready(run(start))


def main() -> None:
    runs = {"CNN step": training()}
    runs |= {name: augmenting(make(SIDE)) for name, make in AUGMENTATIONS.items()}
    runs["crop and flip"] = augmenting(compose(random_crop(4), random_flip()))
    for run in runs.values():
        run()
    seconds = {name: [] for name in runs}
    for number in range(ROUNDS):
        names = list(runs)
        for name in names if number % 2 == 0 else reversed(names):
            start = time.perf_counter()
            runs[name]()
            seconds[name].append((time.perf_counter() - start) / STEPS)
    step = seconds["CNN step"]
    rows = {
        name: {
            "share_of_step": statistics.median(t / s for t, s in zip(times, step, strict=True)),
            "seconds": statistics.median(times),
        }
        for name, times in seconds.items()
    }
    for name, row in rows.items():
        print(f"{name}: {1e3 * row['seconds']:.2f} ms, {row['share_of_step']:.3f} of a step")
    result = {"what": f"batch {BATCH} of {SIDE}x{SIDE}x3, seconds a batch; warm", "rows": rows}
    print(f"Wrote {write_result('augment', result)}")


if __name__ == "__main__":
    main()
