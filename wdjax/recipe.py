"""From choices to functions: what the command's options build, usable from Python as well."""

import dataclasses
import importlib.util
import pathlib
import sys
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from wdjax.checks import check_one_of, check_positive_int, nearest
from wdjax.data.arrays import standardize
from wdjax.decay import corrected_decay, decoupled_decay, independent_decay
from wdjax.losses import cross_entropy, squared_error
from wdjax.models import make_cnn, make_mlp, make_rnn, with_compute_dtype
from wdjax.parts import matrices_only
from wdjax.penalties import l1_penalty, l2_penalty
from wdjax.training import (
    FitFn,
    ScoreFn,
    is_correct,
    make_fit,
    make_fit_and_score,
    make_score,
    steps_per_epoch,
)
from wdjax.types import Batch, Fit, HParams, Model, Parts, Schedule

MODELS = {"mlp": make_mlp, "cnn": make_cnn, "rnn": make_rnn}
LOSSES = {"cross_entropy": cross_entropy, "squared_error": squared_error}
SCHEDULES = ("constant", "cosine")
DECAYS = ("decoupled", "coupled", "independent", "corrected", "l1")
DTYPES = ("float32", "bfloat16", "float64")

DIRECTIONS = {
    # eps_root keeps the run differentiable where a second moment is exactly zero.
    "adam": lambda: optax.scale_by_adam(eps_root=1e-12),
    "sgd": optax.identity,
    "momentum": lambda: optax.trace(decay=0.9),
    "lion": optax.scale_by_lion,
}
"""The descent direction of each optimiser, before the learning rate; decay is ours."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The choices of a run: each makes its own program. Its numbers are in `hparams`.

    `hparams` holds `strength` and `learning_rate`, and `dropout` where the model drops units.
    """

    make_model: Callable[..., Model] = make_mlp
    """`make_model(num_outputs) -> Model`, with a keyword `dropout` if `hparams` has one."""
    num_outputs: int = 10
    loss: str = "cross_entropy"
    optimizer: str = "adam"
    schedule: str = "constant"
    decay: str = "decoupled"
    parts: Parts = matrices_only
    num_epochs: int = 100
    batch_size: int = 64
    dtype: str = "float32"
    scale_inputs: bool = False
    """Standardise the columns of the inputs on each training part."""
    score_rows: int | None = None
    """Rows scored at a time: bounds the memory of an evaluation."""

    def __post_init__(self):
        check_one_of("loss", self.loss, LOSSES)
        check_one_of("optimizer", self.optimizer, DIRECTIONS)
        check_one_of("schedule", self.schedule, SCHEDULES)
        check_one_of("decay", self.decay, DECAYS)
        check_one_of("dtype", self.dtype, DTYPES)
        check_positive_int("epochs", self.num_epochs)
        check_positive_int("batch_size", self.batch_size)


def recipe_model(recipe: Recipe, hparams: HParams | None = None) -> Model:
    """The recipe's model; with `hparams` that hold a `dropout` rate, one that drops units."""
    rate = {} if hparams is None or "dropout" not in hparams else {"dropout": hparams["dropout"]}
    return with_compute_dtype(recipe.make_model(recipe.num_outputs, **rate), recipe.dtype)


def recipe_learning_rate(
    recipe: Recipe, learning_rate: Any, num_steps: int
) -> tuple[Any, Schedule | float]:
    """`(eta_t, s_t)`: the learning rate and the schedule's multiplier, eta_t = eta * s_t.

    cosine: s_t = (1 + cos(pi t / num_steps)) / 2.
    """
    if recipe.schedule == "constant":
        return learning_rate, 1.0
    multiplier: Schedule = lambda step: 0.5 * (1.0 + jnp.cos(jnp.pi * step / num_steps))
    return (lambda step: learning_rate * multiplier(step)), multiplier


def recipe_tx(recipe: Recipe, hparams: HParams, num_steps: int) -> optax.GradientTransformation:
    """The recipe's optimiser, decay included unless it is a penalty (coupled, l1)."""
    strength, peak = hparams["strength"], hparams["learning_rate"]
    learning_rate, multiplier = recipe_learning_rate(recipe, peak, num_steps)
    decays = {
        "decoupled": lambda: decoupled_decay(strength, learning_rate, parts=recipe.parts),
        "independent": lambda: independent_decay(strength, multiplier, parts=recipe.parts),
        "corrected": lambda: corrected_decay(strength, learning_rate, peak, parts=recipe.parts),
    }
    decay = decays.get(recipe.decay, optax.identity)()
    direction = DIRECTIONS[recipe.optimizer]()
    return optax.chain(direction, optax.scale_by_learning_rate(learning_rate), decay)


def recipe_fit(recipe: Recipe, observe: Callable[[Fit], Any] | None = None) -> FitFn:
    """The recipe's run, `fit(hparams, train, key) -> Fit`: see `make_fit`."""
    penalty_of = {"coupled": l2_penalty, "l1": l1_penalty}.get(recipe.decay)
    make_penalty = None
    if penalty_of is not None:
        make_penalty = lambda hparams: penalty_of(hparams["strength"], recipe.parts)

    def fit(hparams: HParams, train: Batch, key: Array) -> Fit:
        num_steps = recipe.num_epochs * steps_per_epoch(train, recipe.batch_size)
        run = make_fit(
            lambda hparams: recipe_model(recipe, hparams),
            LOSSES[recipe.loss],
            make_tx=lambda hparams: recipe_tx(recipe, hparams, num_steps),
            num_epochs=recipe.num_epochs,
            batch_size=recipe.batch_size,
            make_penalty=make_penalty,
            observe=observe,
        )
        return run(hparams, train, key)

    return fit


def recipe_score(recipe: Recipe) -> ScoreFn:
    """The recipe's measures: `loss`, and `accuracy` of a classification."""
    measures = {"loss": LOSSES[recipe.loss]}
    if recipe.loss == "cross_entropy":
        measures["accuracy"] = is_correct
    return make_score(recipe_model(recipe), batch_size=recipe.score_rows, **measures)


def recipe_scale(recipe: Recipe, train: Batch, valid: Batch) -> tuple[Batch, Batch]:
    """Standardises what the recipe standardises, by the training part alone."""
    targets = recipe.loss == "squared_error"
    return standardize(train, valid, inputs=recipe.scale_inputs, targets=targets)


def recipe_fit_and_score(recipe: Recipe) -> Callable[[HParams, Batch, Batch, Array], Any]:
    """What `cross_validate` runs: scale, fit, score on both parts."""
    plain = make_fit_and_score(recipe_fit(recipe), recipe_score(recipe))

    def fit_and_score(hparams: HParams, train: Batch, valid: Batch, key: Array) -> Any:
        train, valid = recipe_scale(recipe, train, valid)
        return plain(hparams, train, valid, key)

    return fit_and_score


def recipe_param_shapes(recipe: Recipe, inputs: Any) -> Any:
    """The params as shapes and dtypes, from one row of `inputs[example, ...]`: nothing is run."""
    one = jax.tree.map(lambda x: x[:1], inputs)
    return jax.eval_shape(lambda: recipe_model(recipe).init(jax.random.key(0), one)[0])


def load_make_model(name: str) -> Callable[..., Model]:
    """One of the project's models by name, or the user's own as `my_file.py:make_model`.

    Raises:
      ValueError: for an unknown name, a missing file or function, or a file that fails to run.
    """
    if ":" not in name:
        check_one_of("model", name, MODELS)
        return MODELS[name]
    path, function = name.rsplit(":", 1)
    if not pathlib.Path(path).is_file():
        raise ValueError(f"`model` {name!r}: there is no file {path!r}; give FILE.py:FUNCTION.")
    module_name = f"wdjax_model_{pathlib.Path(path).stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"`model` {name!r}: {path!r} is not a Python file; give FILE.py:FUNCTION.")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses, so flax modules too, look up annotations written as strings there.
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"`model` {name!r}: running the file failed: {error!r}.") from error
    make_model: Any = getattr(module, function, None)
    if not callable(make_model):
        functions = [n for n, value in vars(module).items() if callable(value)]
        raise ValueError(
            f"`model` {name!r}: {path!r} defines no function {function!r}."
            f"{nearest(function, functions)}"
        )
    return cast(Callable[..., Model], make_model)


def parse_parts(text: str) -> Parts:
    """`"matrices"`, `"all"`, or patterns such as `"*/kernel=1,*=0"`, the first match winning.

    Raises:
      ValueError: for anything else.
    """
    if text == "matrices":
        return matrices_only
    if text == "all":
        return None
    patterns = {}
    for item in text.split(","):
        pattern, equals, number = item.strip().rpartition("=")
        try:
            patterns[pattern] = float(number)
        except ValueError:
            equals = ""
        if not equals or not pattern:
            raise ValueError(
                f"`parts` must be matrices, all, or PATTERN=NUMBER,... such as "
                f"'*/kernel=1,*=0'; got {item.strip()!r}."
            )
    return patterns
