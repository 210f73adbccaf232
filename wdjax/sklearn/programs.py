"""What the estimators run: compiled once for each form of network and shape of data."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from wdjax.data.batches import in_blocks
from wdjax.models import make_mlp
from wdjax.recipe.build import (
    Recipe,
    recipe_fit,
    recipe_fit_and_score,
    recipe_model,
    recipe_scale,
    recipe_scaling,
)
from wdjax.types import Batch

ROWS_AT_ONCE = 256
"""Rows predicted by one call of the program, whatever their number."""

MOST_FORMS = 32
"""Forms of network whose functions are kept, and with them their compiled programs."""


class Form(NamedTuple):
    """What makes a program: everything of an estimator that is no number of a run."""

    make_model: Callable[..., Any] | None
    widths: tuple[int, ...]
    num_outputs: int
    loss: str
    optimizer: str
    schedule: str
    num_epochs: int
    batch_size: int
    dtype: str

    @property
    def recipe(self) -> Recipe:
        """The run: inputs standardised, decoupled decay of matrices."""
        make = self.make_model or functools.partial(make_mlp, widths=self.widths)
        return Recipe(
            make_model=make,
            num_outputs=self.num_outputs,
            loss=self.loss,
            optimizer=self.optimizer,
            schedule=self.schedule,
            num_epochs=self.num_epochs,
            batch_size=self.batch_size,
            dtype=self.dtype,
            scale_inputs=True,
        )


@functools.lru_cache(MOST_FORMS)
def training_of(form: Form) -> Callable[[dict[str, float], Batch, Array], dict[str, Any]]:
    """`(hparams, train, key) -> {"params", "model_state", "scaling", "history"}`, compiled."""
    recipe = form.recipe
    fit = recipe_fit(recipe)

    @jax.jit
    def train(hparams: dict[str, Any], data: Batch, key: Array) -> dict[str, Any]:
        scaling = recipe_scaling(recipe, data)
        scaled, _ = recipe_scale(recipe, data, data)
        fitted = fit(hparams, scaled, key)
        return {
            "params": fitted.params,
            "model_state": fitted.model_state,
            "scaling": scaling,
            "history": fitted.history["loss"],
        }

    return train


@functools.lru_cache(MOST_FORMS)
def judging_of(form: Form) -> Callable[..., Any]:
    """What `cross_validate` runs; the same object for one form, so that it finds its program."""
    return recipe_fit_and_score(form.recipe)


@functools.lru_cache(MOST_FORMS)
def outputs_of(form: Form) -> Callable[[dict[str, Any], Any], Array]:
    """`(fitted, inputs[ROWS_AT_ONCE, feature]) -> outputs`, compiled."""
    model = recipe_model(form.recipe)

    @jax.jit
    def outputs(fitted: dict[str, Any], inputs: Array) -> Array:
        scaling = fitted["scaling"]["inputs"]
        inputs = (inputs - scaling.mean[None]) * scaling.scale[None]
        found, _ = model.apply(
            fitted["params"], fitted["model_state"], inputs, key=None, train=False
        )
        return found

    return outputs


def predict_rows(form: Form, fitted: dict[str, Any], inputs: np.ndarray) -> np.ndarray:
    """The outputs of all rows, block by block in one shape."""
    run = outputs_of(form)
    return in_blocks(lambda rows: run(fitted, rows), inputs, ROWS_AT_ONCE)
