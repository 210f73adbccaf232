"""Decay of weights: optax gradient transformations that go after the learning rate.

Example:
  >>> tx, w = wdjax.decay_weights(0.25), jnp.array([1.0, -2.0])
  >>> updates, _ = tx.update(jnp.zeros(2), tx.init(w), w)
  >>> print(updates)
  [-0.25  0.5 ]
"""

from wdjax.decay.adaptive import (
    Bound,
    ConstrainedState,
    Magnitude,
    constrained_decay,
    fixed_bound,
    inflection_bound,
    initial_bound,
    standard_deviation,
    sum_of_hubers,
    sum_of_magnitudes,
    sum_of_squares,
    warm_start_bound,
)
from wdjax.decay.composition import make_optimizer
from wdjax.decay.convert import CONVENTIONS, Conversion, convert_strength, explain_conversion
from wdjax.decay.core import (
    DecayState,
    Reference,
    average_of_params,
    cautious,
    decay_weights,
    huber,
    initial_params,
)
from wdjax.decay.forms import (
    cautious_decay,
    corrected_decay,
    corrected_rate,
    decay_to_average,
    decay_to_initial,
    decay_to_one,
    decoupled_decay,
    decoupled_rate,
    huber_decay,
    independent_decay,
    independent_rate,
)
from wdjax.decay.lora import lora_decay
from wdjax.decay.optimizers import (
    MasterState,
    RoundingState,
    adamw,
    float32_master,
    lion,
    muon,
    sgdw,
    stochastic_rounding,
)
from wdjax.decay.proximal import (
    project_max_norm,
    project_sphere,
    proximal_elastic_net,
    proximal_group_lasso,
    proximal_l1,
    proximal_l2,
    proximal_step,
    shrink,
    soft_threshold,
)
from wdjax.decay.schedules import (
    cosine_strength,
    mup_strength,
    normalized_strength,
    power_lines_strength,
    sqrt_width_strength,
    timescale_strength,
)
from wdjax.moved import moved_names

__getattr__ = moved_names(__name__, {"Measure": ("wdjax.decay", "Magnitude")})

__all__ = [
    "Bound",
    "CONVENTIONS",
    "ConstrainedState",
    "Conversion",
    "DecayState",
    "Magnitude",
    "MasterState",
    "Reference",
    "RoundingState",
    "adamw",
    "average_of_params",
    "cautious",
    "cautious_decay",
    "constrained_decay",
    "convert_strength",
    "corrected_decay",
    "corrected_rate",
    "cosine_strength",
    "decay_to_average",
    "decay_to_initial",
    "decay_to_one",
    "decay_weights",
    "decoupled_decay",
    "decoupled_rate",
    "explain_conversion",
    "fixed_bound",
    "float32_master",
    "huber",
    "huber_decay",
    "independent_decay",
    "independent_rate",
    "inflection_bound",
    "initial_bound",
    "initial_params",
    "lion",
    "lora_decay",
    "make_optimizer",
    "muon",
    "mup_strength",
    "normalized_strength",
    "power_lines_strength",
    "project_max_norm",
    "project_sphere",
    "proximal_elastic_net",
    "proximal_group_lasso",
    "proximal_l1",
    "proximal_l2",
    "proximal_step",
    "sgdw",
    "shrink",
    "soft_threshold",
    "sqrt_width_strength",
    "standard_deviation",
    "stochastic_rounding",
    "sum_of_hubers",
    "sum_of_magnitudes",
    "sum_of_squares",
    "timescale_strength",
    "warm_start_bound",
]
