"""Programs for processes of their own: the tests kill, starve and connect them.

Run as `python tests/children.py NAME '{"argument": ...}'`; prints nothing unless told to.
"""

import json
import os
import pathlib
import sys
from functools import partial

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from wdjax.checkpoint import Checkpoints, host_leaves
from wdjax.data.batches import to_devices
from wdjax.data.stream import from_here, make_stream, prefetch_to_device
from wdjax.decay import (
    constrained_decay,
    decoupled_decay,
    initial_bound,
    muon,
    project_max_norm,
    proximal_group_lasso,
)
from wdjax.loop import Logging, Saving, TrainLoop, TuneLoop
from wdjax.losses import cross_entropy, regularized_loss
from wdjax.models import from_linen
from wdjax.models.layers import Dropout
from wdjax.parts import matrices_only
from wdjax.penalties import elastic_net_penalty, l2_penalty
from wdjax.run import make_run, skip_non_finite
from wdjax.runners import jit_step, shard_step
from wdjax.selection.cross_validation import cross_validate
from wdjax.selection.folds import kfold
from wdjax.selection.grids import grid_product
from wdjax.step import init_state, make_train_step
from wdjax.training import is_correct, make_fit, make_fit_and_score, make_score
from wdjax.types import Batch


class Small(nn.Module):
    """Batch statistics and dropout; no bias before the norm."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8, use_bias=False)(x))
        return nn.Dense(3)(Dropout(0.2)(nn.relu(x), train))


MODEL = from_linen(Small())


def data_mesh(num_devices=None):
    devices = jax.devices()[:num_devices]
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def examples(num, seed=0):
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=4).astype(np.float32), np.int32(i % 3)) for i in range(num)]


def lopsided_batches(num_batches, dtype):
    """Half of the first process's rows count nothing: a mean of means would be wrong."""
    rng = np.random.default_rng(0)
    for _ in range(num_batches):
        weights = rng.uniform(size=16).astype(dtype)
        weights[:5] = 0
        yield Batch(rng.normal(size=(16, 4)).astype(dtype), rng.integers(0, 3, 16), weights)


def my_rows(batch):
    size = 16 // jax.process_count()
    rows = slice(jax.process_index() * size, (jax.process_index() + 1) * size)
    return jax.tree.map(lambda x: x[rows], batch)


def train(name, num_devices=None, num_steps=20):
    """A run on lopsided batches, of which each process holds its rows: losses, and last state."""
    tx = optax.adam(0.01) if name == "adam" else optax.sgd(0.1, momentum=0.9)
    dtype = np.float64 if name == "sgd64" else np.float32
    mesh = data_mesh(num_devices)
    split = NamedSharding(mesh, P("data"))
    run = shard_step(
        make_train_step(regularized_loss(MODEL, cross_entropy, l2_penalty(0.1)), tx), mesh
    )
    with jax.enable_x64(name == "sgd64"):
        params, model_state = MODEL.init(jax.random.key(0), jnp.ones((16, 4), dtype))
        params = jax.tree.map(lambda x: x.astype(dtype), params)
        state = init_state(params, tx, model_state=model_state, key=jax.random.key(1))
        losses = []
        for batch in lopsided_batches(num_steps, dtype):
            state, metrics = run(state, to_devices(my_rows(batch), split))
            losses.append(float(metrics["loss"]))
        leaves = {path: leaf.array for path, leaf in host_leaves(state).items()}
    return {"loss": np.array(losses), **leaves}


def tuned(num_devices=None):
    """37 examples, streamed in two windows of five steps: what it found, and where it is."""
    run = make_run(
        MODEL,
        cross_entropy,
        make_tx=lambda h: optax.chain(
            optax.sgd(h["learning_rate"]), decoupled_decay(h["strength"], h["learning_rate"])
        ),
    )
    score = make_score(MODEL, loss=cross_entropy)
    mesh = data_mesh(num_devices)
    make = lambda data, **how: make_stream(data, batch_size=8, **how)
    split = NamedSharding(mesh, P("data"))
    loop = TuneLoop(
        lambda inputs, num_steps: run,
        lambda fit, batch: score.by_example(fit, batch)["loss"],
        {"strength": 1.0, "learning_rate": 0.1},
        prefetch_to_device(make(examples(37), seed=1, num_epochs=None), sharding=split),
        from_here(make(examples(21, seed=1))),
        key=jax.random.key(2),
        windows=(5, 5),
        mesh=mesh,
    )
    for _ in loop:
        pass
    leaves = {path: leaf.array for path, leaf in host_leaves(loop.state).items()}
    told = [[*w.value, *w.slopes["strength"], w.hparams["strength"]] for w in loop.done]
    return {"loss": np.array(told), **leaves}


def scores_of_a_grid(num_devices=None, **options):
    """Cross-validation of a linear model over the devices, by default all of every process."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 4)).astype(np.float32)
    data = Batch(jnp.asarray(x), jnp.asarray(np.arange(30) % 3), jnp.ones(30))
    linear = from_linen(nn.Dense(3))
    fit = make_fit(
        linear,
        cross_entropy,
        make_tx=lambda h: optax.chain(optax.sgd(0.1), decoupled_decay(h["strength"], 0.1)),
        num_epochs=2,
        batch_size=10,
    )
    score = make_score(linear, loss=cross_entropy, accuracy=is_correct)
    return cross_validate(
        make_fit_and_score(fit, score),
        grid_product(strength=[0.0, 0.1, 1.0]),
        data,
        kfold(jax.random.key(0), 30, 3),
        key=jax.random.key(1),
        num_seeds=1,
        mesh=data_mesh(num_devices),
        **options,
    ).values


def select(folder, num_devices=None):
    """`wdjax select` on a small table: all scores, and the weights that it leaves."""
    from wdjax.jobs import SelectOptions, run_select

    options = SelectOptions(
        data="iris",
        epochs=1,
        batch_size=20,
        folds=2,
        seeds=1,
        strengths=(0.0, 0.1, 1.0),
        learning_rates=(3e-3,),
        devices=num_devices,
        out=folder,
    )
    scores = run_select(options, say=lambda _: None)["scores"]
    found = {f"scores/{name}": np.array(values) for name, values in scores.items()}
    with np.load(f"{folder}/params.npz") as params:
        return found | {path: params[path] for path in params.files}


def agree(out):
    """Everything that must not depend on devices or processes, into one file a process."""
    found = agreed()
    # Each process has a folder of its own, as machines have: only the first one's counts.
    folder, events = f"{out.format(index=jax.process_index())}.cache", []
    for _ in range(2):
        scores = scores_of_a_grid(cache=folder, progress=events.append)
    found |= nested("cached", scores)
    found["events"] = np.array([event.cached for event in events])
    found["keeps"] = np.array(pathlib.Path(folder).exists())
    np.savez(out.format(index=jax.process_index()), **found)


def agree_on_devices(out, counts):
    """The same on so many of one process' devices, one number of them after another."""
    found = {}
    for count in counts:
        selected = select(f"{out}.select-{count}", count)
        found |= nested(count, agreed(count) | nested("select", selected))
    np.savez(out, **found)


def agreed(num_devices=None):
    found = nested("score", scores_of_a_grid(num_devices))
    for name in ("sgd", "sgd64", "adam"):
        found |= nested(name, train(name, num_devices))
    if num_devices in (None, 1, 2):
        found |= nested("tuned", tuned(num_devices))
    return found


SHARDED = {
    "decoupled": (decoupled_decay, {}),
    "constrained": (
        lambda lr: constrained_decay(1.0, initial_bound(0.9), parts=matrices_only),
        {},
    ),
    "group lasso": (lambda lr: proximal_group_lasso(0.3, lr), {}),
    "max norm": (lambda lr: project_max_norm(0.9), {}),
    "penalties": (None, {"penalty": elastic_net_penalty(0.01, 0.1, parts=matrices_only)}),
    "muon": ("muon", {}),
}
"""Decay that looks at one number, a group or a whole leaf; penalties; an optimiser of matrices."""

MESHES = {
    "1": {"fsdp": 1},
    "2x2": {"fsdp": 2, "tensor": 2},
    "4x2": {"fsdp": 4, "tensor": 2},
    "8": {"fsdp": 8},
    "data 2, fsdp 4": {"data": 2, "fsdp": 4},
}


def sharded(out):
    """What a step of each method makes of a state, on one device and cut over every mesh."""
    found = {}
    for dtype, steps in ((np.float64, 3), (np.float32, 1)):
        with jax.enable_x64(dtype == np.float64):
            for name, (decay, options) in SHARDED.items():
                found |= nested(
                    f"{np.dtype(dtype)}/{name}", _on_meshes(decay, options, dtype, steps)
                )
    np.savez(out, **found)


def _on_meshes(decay, options, dtype, num_steps):
    def apply(params, x):
        h = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"][None])
        return h @ params["head"]["kernel"] + params["head"]["bias"][None]

    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape).astype(dtype) / shape[0] ** 0.5)
    params = {
        "hidden": {"kernel": draw(8, 16), "bias": draw(16)},
        "head": {"kernel": draw(16, 8), "bias": draw(8)},
    }
    if decay == "muon":
        tx = muon(0.1, partial(decoupled_decay, 0.1))
    elif decay is None:
        tx = optax.adam(0.1)
    else:
        made = partial(decay, 0.1) if decay is decoupled_decay else decay
        tx = optax.chain(optax.adam(0.1), made(0.1))
    step = make_train_step(regularized_loss(apply, cross_entropy, options.get("penalty")), tx)
    weights = rng.uniform(size=16).astype(dtype)
    weights[:5] = 0
    batch = Batch(rng.normal(size=(16, 8)).astype(dtype), rng.integers(0, 8, 16), weights)
    runs = {"one": jit_step(step)}
    for name, axes in MESHES.items():
        devices = jax.devices()[: int(np.prod(list(axes.values())))]
        kinds = (AxisType.Auto,) * len(axes)
        mesh = jax.make_mesh(tuple(axes.values()), tuple(axes), kinds, devices=devices)
        second = "tensor" if "tensor" in axes else None
        rules = {"*/kernel": P("fsdp", second), "*": P(second)}
        runs[name] = shard_step(step, mesh, None if name == "data 2, fsdp 4" else rules)
    ends = {}
    for name, run in runs.items():
        state = init_state(params, tx)
        for _ in range(num_steps):
            state, metrics = run(state, batch)
        leaves = {path: leaf.array for path, leaf in host_leaves(state).items()}
        leaves["loss"] = np.asarray(metrics["loss"])
        if name not in ("one", "1"):
            kernel = state.params["hidden"]["kernel"]
            assert kernel.addressable_shards[0].data.size < kernel.size
        ends |= nested(name, leaves)
    before = {f"before/{path}": leaf.array for path, leaf in host_leaves(params).items()}
    return ends | before


def nested(name, arrays):
    return {f"{name}/{path}": np.asarray(array) for path, array in arrays.items()}


def run_loop(folder, num_steps=40, save_every=4, tell=False, slow=0.0, device_batch=8):
    """A run with everything in it; goes on where it was. Writes its end to `end.npz`."""
    import time

    mesh = data_mesh()
    pathlib.Path(folder).mkdir(exist_ok=True)
    tx = optax.chain(optax.adam(0.01), decoupled_decay(0.1, 0.01))
    params, model_state = MODEL.init(jax.random.key(0), jnp.ones((8, 4)))
    step = skip_non_finite(make_train_step(regularized_loss(MODEL, cross_entropy), tx))
    stream = make_stream(examples(37), batch_size=device_batch, seed=1, num_epochs=None)
    loop = TrainLoop(
        shard_step(step, mesh),
        init_state(params, tx, model_state=model_state, key=jax.random.key(2)),
        prefetch_to_device(stream, sharding=NamedSharding(mesh, P("data"))),
        num_steps=num_steps,
        saving=Saving(
            checkpoints=Checkpoints(pathlib.Path(folder) / "checkpoints"),
            every=save_every,
            config={"num_steps": num_steps},
        ),
        logging=Logging(log=pathlib.Path(folder) / "log.jsonl", every=1),
    )
    try:
        resumed = loop.resume()
    except FileNotFoundError:
        resumed = 0
    if tell:
        print(f"resumed at {resumed}", flush=True)
    for number, _ in loop:
        if tell:
            print(f"step {number}", flush=True)
        time.sleep(slow)
    if jax.process_index() == 0:
        leaves = {path: leaf.array for path, leaf in host_leaves(loop.state).items()}
        np.savez(pathlib.Path(folder) / "end.npz", **leaves)


def save_again_and_again(folder, size=200_000):
    """Saves as fast as it can: where a kill falls is chance."""
    saved = Checkpoints(folder)
    begin = max(saved.steps(), default=0)
    print("saving", flush=True)
    for step in range(begin + 1, begin + 10_000):
        saved.save(step, {"w": np.full(size, step, np.float32), "step": np.int32(step)})


def fill_the_disk(folder):
    """No file may grow beyond 20 kB: what a full disk says, without root."""
    import resource
    import signal

    from wdjax.checkpoint import CheckpointError

    saved = Checkpoints(folder)
    saved.save(1, {"w": jnp.zeros(10)})
    saved.wait()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    saved.save(2, {"w": jax.random.normal(jax.random.key(0), (100_000,))})
    try:
        saved.wait()
    except CheckpointError as error:
        print(error, flush=True)
    print(saved.steps(), sorted(os.listdir(folder)), flush=True)
    saved.save(3, {"w": jnp.zeros(10)})
    saved.close()
    print(saved.steps(), flush=True)


def stall(folder, chained=False):
    """A run whose third batch never comes; with `chained`, a SIGTERM handler was there before."""
    import signal
    import time

    def batches():
        for number in range(3):
            if number == 2:
                print("stalled", flush=True)
                time.sleep(600)
            yield np.ones((4, 3), np.float32), np.arange(4) % 3

    def handler(number, frame):
        print(f"the old handler got {signal.Signals(number).name}", flush=True)
        sys.exit(7)

    if chained:
        signal.signal(signal.SIGTERM, handler)
    tx = optax.sgd(0.1)
    step = make_train_step(regularized_loss(lambda p, x: x @ p, cross_entropy), tx)
    state = init_state(jnp.zeros((3, 3)), tx)
    for _ in TrainLoop(jit_step(step), state, batches(), num_steps=3):
        pass


PROGRAMS = {
    function.__name__: function
    for function in (
        agree,
        agree_on_devices,
        sharded,
        run_loop,
        save_again_and_again,
        fill_the_disk,
        stall,
    )
}


def main():
    name, arguments = sys.argv[1], json.loads(sys.argv[2])
    together = arguments.pop("together", None)
    if together is not None:
        address, index, count = together
        jax.distributed.initialize(address, count, index, heartbeat_timeout_seconds=10)
    PROGRAMS[name](**arguments)


if __name__ == "__main__":
    main()
