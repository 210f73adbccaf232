"""From choices to functions: what the command's options build, usable from Python as well.

`kinds.py` has what can be named, `own.py` what a user brings in a file, `build.py` what a recipe of
such names becomes.
"""

from wdjax.data.named import DATA_SOURCES as DATA_SOURCES
from wdjax.data.named import DataSource as DataSource
from wdjax.loss_kinds import LOSS_KINDS as LOSS_KINDS
from wdjax.loss_kinds import MEASURE_KINDS as MEASURE_KINDS
from wdjax.loss_kinds import LossKind as LossKind
from wdjax.recipe.build import Recipe as Recipe
from wdjax.recipe.build import build_run as build_run
from wdjax.recipe.build import recipe_augment as recipe_augment
from wdjax.recipe.build import recipe_example_weight as recipe_example_weight
from wdjax.recipe.build import recipe_fit as recipe_fit
from wdjax.recipe.build import recipe_fit_and_score as recipe_fit_and_score
from wdjax.recipe.build import recipe_learning_rate as recipe_learning_rate
from wdjax.recipe.build import recipe_measures as recipe_measures
from wdjax.recipe.build import recipe_model as recipe_model
from wdjax.recipe.build import recipe_param_shapes as recipe_param_shapes
from wdjax.recipe.build import recipe_part_weights as recipe_part_weights
from wdjax.recipe.build import recipe_penalty as recipe_penalty
from wdjax.recipe.build import recipe_rate as recipe_rate
from wdjax.recipe.build import recipe_scale as recipe_scale
from wdjax.recipe.build import recipe_scaling as recipe_scaling
from wdjax.recipe.build import recipe_score as recipe_score
from wdjax.recipe.build import recipe_stepwise as recipe_stepwise
from wdjax.recipe.build import recipe_telemetry as recipe_telemetry
from wdjax.recipe.build import recipe_tx as recipe_tx
from wdjax.recipe.kinds import AUGMENTATION_KINDS as AUGMENTATION_KINDS
from wdjax.recipe.kinds import DECAY_KINDS as DECAY_KINDS
from wdjax.recipe.kinds import DTYPES as DTYPES
from wdjax.recipe.kinds import EXAMPLE_FEATURE_KINDS as EXAMPLE_FEATURE_KINDS
from wdjax.recipe.kinds import MODEL_KINDS as MODEL_KINDS
from wdjax.recipe.kinds import OPTIMIZER_KINDS as OPTIMIZER_KINDS
from wdjax.recipe.kinds import PART_FEATURE_KINDS as PART_FEATURE_KINDS
from wdjax.recipe.kinds import PART_WEIGHT_PLACES as PART_WEIGHT_PLACES
from wdjax.recipe.kinds import SCHEDULE_KINDS as SCHEDULE_KINDS
from wdjax.recipe.kinds import AugmentationKind as AugmentationKind
from wdjax.recipe.kinds import DecayKind as DecayKind
from wdjax.recipe.kinds import ExampleFeatureKind as ExampleFeatureKind
from wdjax.recipe.kinds import GridDefaults as GridDefaults
from wdjax.recipe.kinds import ModelDefaults as ModelDefaults
from wdjax.recipe.kinds import ModelKind as ModelKind
from wdjax.recipe.kinds import OptimizerKind as OptimizerKind
from wdjax.recipe.kinds import PartFeatureKind as PartFeatureKind
from wdjax.recipe.kinds import ScheduleKind as ScheduleKind
from wdjax.recipe.kinds import register as register
from wdjax.recipe.own import load_make_model as load_make_model
from wdjax.recipe.own import load_own as load_own
from wdjax.recipe.parse import parse_names as parse_names
from wdjax.recipe.parse import parse_parts as parse_parts
from wdjax.recipe.parse import parse_sigmoid as parse_sigmoid

# The choices of this package alone, by name, as earlier versions gave them.
MODELS = {name: kind.make for name, kind in MODEL_KINDS.items()}
LOSSES = {name: kind.function for name, kind in LOSS_KINDS.items()}
DIRECTIONS = {name: kind.direction for name, kind in OPTIMIZER_KINDS.items()}
MOMENTUM = {name: kind.momentum for name, kind in OPTIMIZER_KINDS.items()}
AUGMENTATIONS = {name: kind.make for name, kind in AUGMENTATION_KINDS.items()}
EXAMPLE_FEATURES = {name: kind.make for name, kind in EXAMPLE_FEATURE_KINDS.items()}
PART_FEATURES = {name: kind.make for name, kind in PART_FEATURE_KINDS.items()}
DECAYS, SCHEDULES = tuple(DECAY_KINDS), tuple(SCHEDULE_KINDS)
