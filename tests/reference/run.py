"""Runs the decay of other libraries on one made-up problem and writes their numbers.

200 steps in float64 from the same weights along the same gradients. The peers are torch, timm,
pytorch-cpr, keras (on JAX) and optax; none is needed to run the tests, which compare this
project with the file written here.

    python tests/reference/run.py           writes numbers.json beside itself
    python tests/reference/run.py --check   compares a fresh run with it, and exits 1 if it differs

Install: pip install torch keras optax && pip install --no-deps timm pytorch-cpr
"""

import importlib.metadata
import importlib.util
import inspect
import json
import os
import pathlib
import sys
import types

os.environ["KERAS_BACKEND"] = "jax"

import jax  # noqa: E402
import keras  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import torch  # noqa: E402
import torch.optim._muon  # noqa: E402

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))
from problem import BOUNDS, CPR_RATE, ETA, LAM, STEPS, grads, schedule, start  # noqa: E402

jax.config.update("jax_enable_x64", True)
keras.config.set_floatx("float64")


def timm_optimizers():
    """timm's optimiser files without the package's models, which need torchvision."""
    root = pathlib.Path(importlib.util.find_spec("timm").submodule_search_locations[0])
    for name in ("timm", "timm.optim"):
        package = types.ModuleType(name)
        package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    from timm.optim.adamw import AdamWLegacy
    from timm.optim.lion import Lion
    from timm.optim.sgdw import SGDW

    return AdamWLegacy, Lion, SGDW


def run_torch(make, *, dtype=torch.float64, scheduled=True):
    """Kernels decay, the rest does not; `make(groups) -> optimizer`."""
    leaves = {name: torch.tensor(w, dtype=dtype, requires_grad=True) for name, w in start().items()}
    decayed = [w for name, w in leaves.items() if name.startswith("kernel")]
    spared = [w for name, w in leaves.items() if not name.startswith("kernel")]
    optimizer = make(decayed, spared)
    for t in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = schedule(t) if scheduled else ETA
        now = {name: w.detach().numpy() for name, w in leaves.items()}
        for name, g in grads(now, t).items():
            leaves[name].grad = torch.tensor(g, dtype=dtype)
        optimizer.step()
    return {name: w.detach().numpy() for name, w in leaves.items()}


def groups(decayed, spared):
    return [{"params": decayed, "weight_decay": LAM}, {"params": spared, "weight_decay": 0.0}]


def run_keras(make):
    leaves = {name: keras.Variable(w, name=name) for name, w in start().items()}
    variables = list(leaves.values())
    optimizer = make()
    optimizer.exclude_from_weight_decay(
        var_list=[w for name, w in leaves.items() if not name.startswith("kernel")]
    )
    optimizer.build(variables)
    for t in range(STEPS):
        optimizer.learning_rate = schedule(t)
        g = grads({name: np.asarray(w.value) for name, w in leaves.items()}, t)
        optimizer.apply([g[name] for name in leaves], variables)
    return {name: np.asarray(w.value) for name, w in leaves.items()}


def run_optax(make):
    w = {name: np.asarray(x) for name, x in start().items()}
    tx = make({name: name.startswith("kernel") for name in w})
    state = tx.init(w)
    for t in range(STEPS):
        updates, state = tx.update(grads(w, t), state, w)
        w = {name: np.asarray(x + updates[name]) for name, x in w.items()}
    return w


def cpr(method, value, function):
    from pytorch_cpr import AdamCPR

    def make(decayed, spared):
        both = [{"params": decayed, "regularize": True}, {"params": spared, "regularize": False}]
        return AdamCPR(
            both,
            lr=ETA,
            kappa_init_method=method,
            kappa_init_param=value,
            reg_function=function,
            kappa_update=CPR_RATE,
            foreach=False,
        )

    return run_torch(make, scheduled=False)


def run_muon(adjust):
    """torch's Muon for the kernels, its AdamW for the rest, as its documentation says to."""
    both = []

    class Both:
        """Two optimisers as one, of which `run_torch` sets the learning rate."""

        def __init__(self, decayed, spared):
            muon = torch.optim.Muon(
                decayed, lr=ETA, weight_decay=LAM, momentum=0.95, adjust_lr_fn=adjust, eps=1e-8
            )
            both[:] = muon, torch.optim.Adam(spared, lr=ETA)

        @property
        def param_groups(self):
            return [group for optimizer in both for group in optimizer.param_groups]

        def step(self):
            for optimizer in both:
                optimizer.step()

    return run_torch(Both)


def run_muon_wide(adjust):
    """The same with the orthogonalisation in float64: the one line that says bfloat16, undone."""
    source = inspect.getsource(torch.optim._muon._zeropower_via_newtonschulz)
    assert source.count("grad.bfloat16()") == 1
    kept = torch.optim._muon._zeropower_via_newtonschulz
    exec(source.replace("grad.bfloat16()", "grad.clone()"), vars(torch.optim._muon))
    try:
        return run_muon(adjust)
    finally:
        torch.optim._muon._zeropower_via_newtonschulz = kept


def methods():
    adamw, lion, sgdw = timm_optimizers()
    corrected = {"corrected_weight_decay": True, "foreach": False}
    found = {
        "torch_adamw": lambda: run_torch(lambda d, s: torch.optim.AdamW(groups(d, s), lr=ETA)),
        "torch_sgd_coupled": lambda: run_torch(
            lambda d, s: torch.optim.SGD(groups(d, s), lr=ETA, momentum=0.9)
        ),
        "torch_adam_coupled": lambda: run_torch(
            lambda d, s: torch.optim.Adam(groups(d, s), lr=ETA)
        ),
        "torch_muon": lambda: run_muon("match_rms_adamw"),
        "torch_muon_wide": lambda: run_muon_wide("match_rms_adamw"),
        "timm_sgdw": lambda: run_torch(
            lambda d, s: sgdw(groups(d, s), lr=ETA, momentum=0.9, foreach=False)
        ),
        "timm_sgdc": lambda: run_torch(
            lambda d, s: sgdw(groups(d, s), lr=ETA, momentum=0.9, **corrected)
        ),
        "timm_adamc": lambda: run_torch(lambda d, s: adamw(groups(d, s), lr=ETA, **corrected)),
        "timm_lion": lambda: run_torch(lambda d, s: lion(groups(d, s), lr=ETA, foreach=False)),
        "keras_adamw": lambda: run_keras(
            lambda: keras.optimizers.AdamW(learning_rate=ETA, weight_decay=LAM, epsilon=1e-14)
        ),
        "keras_adamw_epsilon": lambda: run_keras(
            lambda: keras.optimizers.AdamW(learning_rate=ETA, weight_decay=LAM)  # 1e-7
        ),
        "keras_sgdw": lambda: run_keras(
            lambda: keras.optimizers.SGD(learning_rate=ETA, momentum=0.9, weight_decay=LAM)
        ),
        "optax_adamw": lambda: run_optax(
            lambda mask: optax.adamw(schedule, weight_decay=LAM, mask=mask)
        ),
        "optax_lion": lambda: run_optax(
            lambda mask: optax.lion(schedule, weight_decay=LAM, mask=mask)
        ),
    }
    for name, (method, value, function) in BOUNDS.items():
        found[name] = lambda a=(method, value, function): cpr(*a)
    return found


def main():
    results = {name: run() for name, run in methods().items()}
    peers = ("torch", "timm", "pytorch-cpr", "keras", "optax", "jax", "numpy")
    record = {
        "versions": {name: importlib.metadata.version(name) for name in peers},
        "steps": STEPS,
        "weights": {
            method: {name: np.asarray(w).ravel().tolist() for name, w in tree.items()}
            for method, tree in results.items()
        },
    }
    path = HERE / "numbers.json"
    if "--check" not in sys.argv:
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(f"wrote {path}")
        return
    committed = json.loads(path.read_text())["weights"]
    worst = 0.0
    for method, tree in record["weights"].items():
        for name, w in tree.items():
            apart = np.abs(np.subtract(w, committed[method][name])).max()
            worst = max(worst, apart)
            # Products in bfloat16 are rounded as the machine at hand does it.
            if apart > (5e-3 if method == "torch_muon" else 1e-5):
                sys.exit(f"{method}/{name} differs from the committed numbers by {apart:.3g}")
    print(f"{len(committed)} methods, largest difference {worst:.3g}")


if __name__ == "__main__":
    main()
