"""Odd values for the arguments of the public functions: each is refused by name, or taken.

Every public name has a call that works in `CALLS`, or a reason in `LEFT_OUT`. An argument at a
time gets another value, of the kind that its annotation asks for.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import wdjax

from .judge import is_named

LEFT_OUT = {
    "Batch": "a record of arrays: what takes it checks it",
    "Choice": "a record, made by `choose`",
    "Fit": "a record, made by `make_fit`",
    "Folds": "a record of arrays: what takes it checks it",
    "Gain": "a record, made by `choose`",
    "LossAux": "a record, made by a loss",
    "Model": "a record of two functions: what takes it checks it",
    "Run": "a record of two functions, made by `make_run`",
    "Scores": "a record, made by `cross_validate`; `tests/test_scores_of.py` gives `of` odd ones",
    "TrainState": "a record, made by `init_state`",
}
"""Records that hold what they are given; each is an argument of a function that checks it."""

NUMBERS = (
    *(float("nan"), float("inf"), -1, 0, 2**70, 1e300, -1e-300, True, None, "x", "", [1], {}),
    *(np.nan, np.ones(3), np.array("x"), np.array(None), 1j, np.float32("inf"), 1.5, "\x1b[31m"),
)
NAMES = ("", "x", "\x1b[31m", "a\nb", "é" * 300, None, 3, b"x", ["x"])
PATHS = ("", ".", "/", "missing", "a" * 300 + ".csv", "a\x00b", "\x1b[31m.npz", "x.csv", None, 3)


FEATURES = np.random.default_rng(0).normal(size=(20, 3))
TARGETS = FEATURES[:, 0] + np.random.default_rng(1).normal(size=20)


class Call(NamedTuple):
    """A call of a public function with one odd argument."""

    name: str
    argument: str
    value: Any
    run: Callable[[], Any]

    def __str__(self) -> str:
        return f"wdjax.{self.name}(..., {self.argument}={self.value!r:.60})"


def public_functions() -> dict[str, Callable]:
    """Every public name that can be called, with what it names."""
    names = [name for name in dir(wdjax) if not name.startswith("_")]
    found = {name: getattr(wdjax, name) for name in names}
    return {name: f for name, f in found.items() if callable(f) and not inspect.ismodule(f)}


def calls_that_work() -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Arguments by place and by name with which each public function works."""
    key, sgd = jax.random.key(0), optax.sgd(0.1)
    x, labels = np.ones((8, 3), np.float32), np.arange(8) % 2
    batch = wdjax.Batch(x, labels, np.ones(8, np.float32))
    model = wdjax.make_mlp(2, widths=())
    params, model_state = model.init(key, x)
    loss, error = wdjax.regularized_loss(model, wdjax.cross_entropy), wdjax.cross_entropy
    step = wdjax.make_train_step(loss, sgd)
    state = wdjax.init_state(params, sgd, model_state=model_state, key=key)
    make_tx = lambda h: optax.sgd(h["learning_rate"])
    sizes = {"num_epochs": 1, "batch_size": 4}
    run = wdjax.make_run(model, error, make_tx=make_tx)
    fit = wdjax.make_fit(model, error, make_tx=make_tx, **sizes)
    score = wdjax.make_score(model, loss=error)
    fit_and_score = wdjax.make_fit_and_score(fit, score)
    grid, folds = {"learning_rate": [0.1, 0.2]}, wdjax.kfold(key, 8, 2)
    losses = {"loss": np.array([[[1.0], [2.0]], [[2.0], [3.0]]])}
    scores = wdjax.Scores(wdjax.grid_product(strength=[0.0, 1.0]), losses)
    of_weights = lambda h, train, valid, key: {"loss": valid.weights}
    validation = {"data": batch, "folds": folds, "key": key}
    of = lambda *places, **names: (places, names)
    return {
        "Checkpoints": of(folder="checkpoints", keep_last=2, keep_best=True, on_error="stop"),
        "Measure": of(function=error, higher_is_better=False, per_example=True),
        "TrainLoop": of(run_step=step, state=state, stream=[], num_steps=1, non_finite="stop"),
        "advance": of(
            run=run, hparams={"learning_rate": 0.1}, state=state, train=batch, key=key, **sizes
        ),
        "assert_decays": of(tx=sgd, params=params, expected={"*": 0.0}),
        "audit": of(params=params, tx=sgd, num_steps=3),
        "choose": of(scores=scores, rule="min", value="loss", simpler="strength"),
        "compare": of(choices={"a": fit_and_score, "b": fit_and_score}, grid=grid, **validation),
        "convert_strength": of(
            value=0.1, source="keras_l2", target="torch_adamw", learning_rate=0.1, num_steps=3
        ),
        "corrected_decay": of(strength=0.1, learning_rate=0.1, peak_learning_rate=0.1, parts=None),
        "cross_entropy": of(logits=x[:, :2], targets=labels),
        "cross_validate": of(fit_and_score=fit_and_score, grid=grid, num_seeds=1, **validation),
        "cross_validate_pure": of(
            fit_and_score=fit_and_score, grid=grid, num_seeds=1, **validation
        ),
        "nested_cross_validate": of(
            fit_and_score=of_weights, grid=grid, inner=2, rule="min", **validation
        ),
        "nested_cross_validate_pure": of(
            fit_and_score=of_weights, grid=grid, inner=2, value="loss", **validation
        ),
        "decay_weights": of(rate=0.1, parts=None),
        "decoupled_decay": of(strength=0.1, learning_rate=0.1, parts=None),
        "describe_decay": of(params=params, parts=None, strength=0.1, learning_rate=0.1),
        "leave_one_out": of(features=FEATURES, targets=TARGETS, strengths=[0.1, 1.0], rule="min"),
        "ridge_evidence": of(features=FEATURES, targets=TARGETS, intercept=True),
        "softmax_evidence": of(features=FEATURES, labels=np.arange(20) % 2),
        "elastic_net_penalty": of(l1=0.1, l2=0.1, parts=None),
        "fit_run": of(run=run, hparams={"learning_rate": 0.1}, train=batch, key=key, **sizes),
        "folds_from_splits": of(pairs=[(np.arange(4), np.arange(4, 8))] * 2),
    } | _calls_of_small_things(key, model, batch, state, step, loss)


def _calls_of_small_things(key, model, batch, state, step, loss) -> dict[str, Any]:
    of = lambda *places, **names: (places, names)
    flax, nnx = _modules()
    sgd, error, params = optax.sgd(0.1), wdjax.cross_entropy, state.params
    x, labels = batch.inputs, batch.targets
    make_tx = lambda h: optax.sgd(h["learning_rate"])
    sizes = {"num_epochs": 1, "batch_size": 4}
    fit = wdjax.make_fit(model, error, make_tx=make_tx, **sizes)
    score = wdjax.make_score(model, loss=error)
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    model_state = state.model_state
    return {
        "from_linen": of(module=flax, train_argument="train"),
        "from_equinox": of(make_module=lambda key: {"w": jax.random.normal(key, (2, 2))}),
        "from_nnx": of(make_module=nnx),
        "from_pair": of(init=lambda key, x: {}, apply=lambda params, key, x: x),
        "grid_product": of(strength=[0.0, 1.0], learning_rate=[0.1]),
        "independent_decay": of(strength=0.1, schedule=1.0, parts=None),
        "init_state": of(params=params, tx=sgd, model_state=model_state, key=key),
        "is_correct": of(outputs=x[:, :2], targets=labels),
        "jit_step": of(step=step),
        "kfold": of(key=key, num_examples=8, num_folds=2, stratify=labels),
        "l1_penalty": of(strength=0.1, parts=None),
        "l2_penalty": of(strength=0.1, parts=None),
        "load_data": of(name_or_path="iris", target=None, loss="cross_entropy", length=None),
        "load_pretrained": of(params=params, pretrained=params, rules={"*": "*"}),
        "make_cnn": of(num_outputs=2, dropout=0.1),
        "make_fit": of(model=model, example_loss=error, make_tx=make_tx, **sizes),
        "make_fit_and_score": of(fit=fit, score=score),
        "make_mlp": of(num_outputs=2, widths=(3,), dropout=0.1),
        "make_optimizer": of(direction=optax.identity(), learning_rate=0.1),
        "make_rnn": of(num_outputs=2, width=3, dropout=0.1),
        "make_run": of(model=model, example_loss=error, make_tx=make_tx),
        "make_score": of(model=model, batch_size=4, loss=error),
        "make_stream": of(source=[(x[0], 0)] * 8, batch_size=4, seed=0, num_epochs=1),
        "make_train_step": of(loss_fn=loss, tx=sgd, num_micro_batches=1),
        "matrices_only": of(params=params, stacked=None),
        "measure_parts": of(state=state, grads=params, updates=params, rate=0.1, parts=None),
        "pmap_step": of(step=step, devices=None),
        "regularized_loss": of(apply_fn=model, example_loss=error, penalty=None),
        "resolve_parts": of(parts=None, params=params, stacked=None),
        "scale_by_parts": of(parts=None),
        "shard_step": of(step=step, mesh=mesh),
        "sigmoid_weight": of(x=np.ones(3, np.float32), slope=1.0),
        "skip_non_finite": of(step=step),
        "squared_error": of(predictions=x[:, 0], targets=x[:, 0]),
    }


def _modules() -> tuple[Any, Any]:
    import flax.linen
    import flax.nnx

    return flax.linen.Dense(2), lambda rngs: flax.nnx.Linear(3, 2, rngs=rngs)


def odd_calls() -> Iterator[Call]:
    """Every argument of every public function with every odd value of its kind."""
    for name, (places, names) in calls_that_work().items():
        function = getattr(wdjax, name)
        parameters = inspect.signature(function).parameters
        for argument in names:
            about = parameters.get(argument)
            for value in _odd_values(str(about.annotation) if about else ""):
                arguments = names | {argument: value}
                run = lambda f=function, p=places, n=arguments: f(*p, **n)
                yield Call(name, argument, value, run)


def _odd_values(annotation: str) -> tuple[Any, ...]:
    """Those of the kind that is asked for: a number, a name, a path; none for what is no scalar.

    Trees, functions, records and arrays are taken for what they can do, as Python does: their
    shapes and contents are checked by the functions' own tests (`tests/test_refusals.py`).
    """
    if "PathLike" in annotation:
        return PATHS
    if annotation in ("<class 'str'>", "str", "str | None"):
        return NAMES
    if annotation in ("<class 'int'>", "int | None") or annotation.startswith("float | int"):
        return NUMBERS
    return ()


def fault_of(call: Call) -> str | None:
    """What is wrong with how a call ended; None if it returned or was refused by name."""
    try:
        call.run()
    except (ValueError, TypeError) as error:
        sentence = str(error)
        names = call.argument, call.argument.replace("_", " ")
        if not any(is_named(name, sentence) for name in names) and not is_named(
            str(call.value), sentence
        ):
            return f"{type(error).__name__} that does not say `{call.argument}`: {sentence[:150]!r}"
        return None
    except OSError as error:  # A folder or a file that the system refuses.
        is_path = isinstance(call.value, str) and call.value in PATHS
        return None if is_path else f"{type(error).__name__}: {str(error)[:150]!r}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:150]!r}"
    return None


def all_faults() -> tuple[int, list[str]]:
    """How many calls there are, and what is wrong with those that end otherwise, a line each."""
    calls = list(odd_calls())
    found = [(call, fault_of(call)) for call in calls]
    return len(calls), [f"{call}: {fault}" for call, fault in found if fault is not None]
