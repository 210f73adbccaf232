"""How much each example counts, what a part's weight may look at, and the rule of weight 0."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wdjax.weights.examples import ExampleFeature as ExampleFeature
    from wdjax.weights.examples import ExampleWeight as ExampleWeight
    from wdjax.weights.examples import augment_strength as augment_strength
    from wdjax.weights.examples import by_label as by_label
    from wdjax.weights.examples import class_balanced_weights as class_balanced_weights
    from wdjax.weights.examples import confidence as confidence
    from wdjax.weights.examples import example_loss_of as example_loss_of
    from wdjax.weights.examples import focal_loss as focal_loss
    from wdjax.weights.examples import focal_weight as focal_weight
    from wdjax.weights.examples import importance_weights as importance_weights
    from wdjax.weights.examples import learned_weights as learned_weights
    from wdjax.weights.examples import margin as margin
    from wdjax.weights.examples import sigmoid_example_weight as sigmoid_example_weight
    from wdjax.weights.examples import sigmoid_weight as sigmoid_weight
    from wdjax.weights.part_features import PartFeature as PartFeature
    from wdjax.weights.part_features import depth as depth
    from wdjax.weights.part_features import fan_in as fan_in
    from wdjax.weights.part_features import geometric_parts as geometric_parts
    from wdjax.weights.part_features import gradient_norm as gradient_norm
    from wdjax.weights.part_features import layer_numbers as layer_numbers
    from wdjax.weights.part_features import layerwise_parts as layerwise_parts
    from wdjax.weights.part_features import same_total as same_total
    from wdjax.weights.part_features import sigmoid_parts as sigmoid_parts
    from wdjax.weights.part_features import tail_index as tail_index
    from wdjax.weights.part_features import weight_norm as weight_norm
    from wdjax.weights.part_features import width_parts as width_parts
    from wdjax.weights.part_features import z_scores as z_scores
    from wdjax.weights.zero import fill_inactive_rows as fill_inactive_rows
    from wdjax.weights.zero import validated_weights as validated_weights
    from wdjax.weights.zero import weighted_sum as weighted_sum

_HOMES = {
    "examples": (
        "ExampleFeature",
        "ExampleWeight",
        "augment_strength",
        "by_label",
        "class_balanced_weights",
        "confidence",
        "example_loss_of",
        "focal_loss",
        "focal_weight",
        "importance_weights",
        "learned_weights",
        "margin",
        "sigmoid_example_weight",
        "sigmoid_weight",
    ),
    "part_features": (
        "PartFeature",
        "depth",
        "fan_in",
        "geometric_parts",
        "gradient_norm",
        "layer_numbers",
        "layerwise_parts",
        "same_total",
        "sigmoid_parts",
        "tail_index",
        "weight_norm",
        "width_parts",
        "z_scores",
    ),
    "zero": (
        "fill_inactive_rows",
        "validated_weights",
        "weighted_sum",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    # Looked up late: the losses need the rule of weight 0, and the example weights the losses.
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
