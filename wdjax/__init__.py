"""wdjax: weight decay for JAX and optax: define it precisely, choose it, test whether it helped.

The public names, builders beside what they build. Each is imported when it is first asked for:
the command begins to listen for Ctrl-C before JAX is there, and flax, orbax and the readers of
data would be a good part of the start-up time of those who need none of them.
"""

import importlib
import pathlib
import typing

from wdjax.moved import find_old_paths as _find_old_paths

if typing.TYPE_CHECKING:
    # Types: examples, a model, what a loss is made of, a finished run.
    from wdjax.types import Batch as Batch
    from wdjax.types import Fit as Fit
    from wdjax.types import LossAux as LossAux
    from wdjax.types import Model as Model

    # How much each example counts.
    from wdjax.weights import sigmoid_weight as sigmoid_weight

    # How much each part of the model counts.
    from wdjax.parts import matrices_only as matrices_only
    from wdjax.parts import resolve_parts as resolve_parts
    from wdjax.parts import scale_by_parts as scale_by_parts

    # The loss: of an example, of the weights, and the two together.
    from wdjax.losses import cross_entropy as cross_entropy
    from wdjax.losses import regularized_loss as regularized_loss
    from wdjax.losses import squared_error as squared_error
    from wdjax.penalties import elastic_net_penalty as elastic_net_penalty
    from wdjax.penalties import l1_penalty as l1_penalty
    from wdjax.penalties import l2_penalty as l2_penalty

    # Decay inside the optimiser, and what a strength is called elsewhere.
    from wdjax.decay import convert_strength as convert_strength
    from wdjax.decay import corrected_decay as corrected_decay
    from wdjax.decay import decay_weights as decay_weights
    from wdjax.decay import decoupled_decay as decoupled_decay
    from wdjax.decay import independent_decay as independent_decay
    from wdjax.decay import make_optimizer as make_optimizer

    # Who gets how much decay: described, measured, followed through a run.
    from wdjax.diagnostics import assert_decays as assert_decays
    from wdjax.diagnostics import audit as audit
    from wdjax.diagnostics import describe_decay as describe_decay
    from wdjax.diagnostics import measure_parts as measure_parts

    # A step, and the ways to run it.
    from wdjax.step import TrainState as TrainState
    from wdjax.step import init_state as init_state
    from wdjax.step import make_train_step as make_train_step
    from wdjax.runners import jit_step as jit_step
    from wdjax.runners import pmap_step as pmap_step
    from wdjax.runners import shard_step as shard_step

    # A whole run as a pure function of its numbers: of its parts, at once, a part of the way.
    from wdjax.run import Run as Run
    from wdjax.run import make_run as make_run
    from wdjax.run import skip_non_finite as skip_non_finite
    from wdjax.training import advance as advance
    from wdjax.training import fit_run as fit_run
    from wdjax.training import make_fit as make_fit

    # What a run is judged by.
    from wdjax.measures import Measure as Measure
    from wdjax.measures import is_correct as is_correct
    from wdjax.measures import make_score as make_score
    from wdjax.training import make_fit_and_score as make_fit_and_score

    # Choosing: folds, grids, cross-validation, the rules.
    from wdjax.selection import Choice as Choice
    from wdjax.selection import Folds as Folds
    from wdjax.selection import Gain as Gain
    from wdjax.selection import Scores as Scores
    from wdjax.selection import choose as choose
    from wdjax.selection import compare as compare
    from wdjax.selection import cross_validate as cross_validate
    from wdjax.selection import cross_validate_pure as cross_validate_pure
    from wdjax.selection import folds_from_splits as folds_from_splits
    from wdjax.selection import grid_product as grid_product
    from wdjax.selection import kfold as kfold
    from wdjax.selection import nested_cross_validate as nested_cross_validate
    from wdjax.selection import nested_cross_validate_pure as nested_cross_validate_pure

    # Choosing in closed form: of ridge regression, and of the last layer of a network.
    from wdjax.exact import leave_one_out as leave_one_out
    from wdjax.exact import ridge_evidence as ridge_evidence
    from wdjax.exact import softmax_evidence as softmax_evidence

    # Models, and a long run: its data, its loop, what it saves.
    from wdjax.checkpoint import Checkpoints as Checkpoints
    from wdjax.checkpoint import load_pretrained as load_pretrained
    from wdjax.data.load import load_data as load_data
    from wdjax.data.stream import make_stream as make_stream
    from wdjax.loop.train_loop import TrainLoop as TrainLoop
    from wdjax.models import from_equinox as from_equinox
    from wdjax.models import from_linen as from_linen
    from wdjax.models import from_nnx as from_nnx
    from wdjax.models import from_pair as from_pair
    from wdjax.models import make_cnn as make_cnn
    from wdjax.models import make_mlp as make_mlp
    from wdjax.models import make_rnn as make_rnn

_NAMES = {
    "wdjax.types": ("Batch", "Fit", "LossAux", "Model"),
    "wdjax.weights": ("sigmoid_weight",),
    "wdjax.parts": ("matrices_only", "resolve_parts", "scale_by_parts"),
    "wdjax.losses": ("cross_entropy", "regularized_loss", "squared_error"),
    "wdjax.penalties": ("elastic_net_penalty", "l1_penalty", "l2_penalty"),
    "wdjax.decay": (
        "convert_strength",
        "corrected_decay",
        "decay_weights",
        "decoupled_decay",
        "independent_decay",
        "make_optimizer",
    ),
    "wdjax.diagnostics": ("assert_decays", "audit", "describe_decay", "measure_parts"),
    "wdjax.step": ("TrainState", "init_state", "make_train_step"),
    "wdjax.runners": ("jit_step", "pmap_step", "shard_step"),
    "wdjax.run": ("Run", "make_run", "skip_non_finite"),
    "wdjax.training": ("advance", "fit_run", "make_fit", "make_fit_and_score"),
    "wdjax.measures": ("Measure", "is_correct", "make_score"),
    "wdjax.selection": (
        "Choice",
        "Folds",
        "Gain",
        "Scores",
        "choose",
        "compare",
        "cross_validate",
        "cross_validate_pure",
        "folds_from_splits",
        "grid_product",
        "kfold",
        "nested_cross_validate",
        "nested_cross_validate_pure",
    ),
    "wdjax.exact": ("leave_one_out", "ridge_evidence", "softmax_evidence"),
    "wdjax.checkpoint": ("Checkpoints", "load_pretrained"),
    "wdjax.data.load": ("load_data",),
    "wdjax.data.stream": ("make_stream",),
    "wdjax.loop.train_loop": ("TrainLoop",),
    "wdjax.models": (
        "from_equinox",
        "from_linen",
        "from_nnx",
        "from_pair",
        "make_cnn",
        "make_mlp",
        "make_rnn",
    ),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}

_find_old_paths()  # Module paths of the version before.


def __getattr__(name: str) -> typing.Any:
    if name in _HOMES:
        found = getattr(importlib.import_module(_HOMES[name]), name)
    elif name.isidentifier() and not name.startswith("_") and _is_module(name):
        found = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES} - {"typing", "pathlib", "importlib"})


def _is_module(name: str) -> bool:
    here = pathlib.Path(__file__).parent
    return (here / f"{name}.py").is_file() or (here / name / "__init__.py").is_file()
