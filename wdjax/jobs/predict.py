"""From a finished run to predictions: on arrays, or from the shell on files."""

import csv
import io
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from wdjax import recipe as recipes
from wdjax.checkpoint import check_same_leaves
from wdjax.data import arrays
from wdjax.data.dataset import Dataset, make_dataset
from wdjax.jobs.files import named_arrays, read_results
from wdjax.recipe import Recipe
from wdjax.types import Fit

ROWS_AT_ONCE = 256


class Predictor(NamedTuple):
    """A trained model: `predictor(inputs[example, ...]) -> outputs[example, ...]`, NumPy.

    Probabilities `[example, class]` of a classification; of a regression numbers `[example]` (or
    `[example, output]`) in the unit of the targets. Inputs are standardised as in training.
    """

    apply: Callable[[Any], np.ndarray]
    input_shape: tuple[int, ...]
    kind: str
    loss: str
    class_names: tuple[str, ...]
    """What the classes are called, where the data said so."""
    config: dict[str, Any]
    """What the run was told."""

    def __call__(self, inputs: ArrayLike) -> np.ndarray:
        """The outputs for `inputs`, which have the shape and scale of the data loaded in training.

        Raises:
          ValueError: if an example has another shape than those of the training data, or a value
            is not finite.
        """
        dataset = make_dataset(
            inputs, np.zeros(len(np.asarray(inputs))), loss="squared_error", kind=self.kind
        )
        if self.config["model"] == "cnn" and dataset.kind == "image":
            dataset = arrays.as_images_32(dataset)
        if dataset.inputs.shape[1:] != self.input_shape:
            raise ValueError(
                f"an example has shape {dataset.inputs.shape[1:]}, and those of the training data "
                f"{self.input_shape}; give the same columns, or images of the same size."
            )
        return self.apply(dataset.inputs)


def load_predictor(run: str | os.PathLike[str], *, model: str | None = None) -> Predictor:
    """The model that `wdjax train` or `wdjax select` left in a folder (of its first seed).

    Reads JSON and plain arrays; no code that the folder names is run.

    Args:
      run: the folder.
      model: `FILE.py:make_model`, to be given again where the run had a model of the user's own.

    Raises:
      ValueError: if the run did not end, its model was not given, or its arrays are not those of
        the model, by name.
    """
    folder = pathlib.Path(run)
    results = read_results(folder)
    if results.get("status") != "complete":
        raise ValueError(f"`run` {str(folder)!r} did not end; it has no params to predict with.")
    config, data = results["config"], results["data"]
    if ":" in config["model"] and model is None:
        raise ValueError(
            f"`run` {str(folder)!r} was trained with the model {config['model']!r}; give it again "
            "with --model: a folder is not trusted to name code to run."
        )
    recipe = Recipe(
        make_model=recipes.load_make_model(model or config["model"]),
        num_outputs=data["num_outputs"],
        loss=config["loss"],
        dtype=config["dtype"],
    )
    is_wide = recipe.dtype == "float64"
    shape = tuple(data["input_shape"])
    with jax.enable_x64(is_wide):
        network = recipes.recipe_model(recipe)
        example = jax.ShapeDtypeStruct(
            (1, *shape), np.int32 if data["kind"] == "text" else np.float32
        )
        key = jax.eval_shape(lambda: jax.random.key(0))
        params, model_state = jax.eval_shape(network.init, key, example)
        shapes = Fit(params, model_state, {})
        fit, scaling = _read_fit(folder / "params.npz", shapes)

    @jax.jit
    def outputs_of(inputs):
        if "inputs" in scaling:
            inputs = (inputs - scaling["inputs"].mean[None]) * scaling["inputs"].scale[None]
        outputs, _ = network.apply(fit.params, fit.model_state, inputs, key=None, train=False)
        if recipe.loss == "cross_entropy":
            return jax.nn.softmax(outputs)
        outputs = outputs[..., 0] if outputs.shape[-1] == 1 and outputs.ndim > 1 else outputs
        if "targets" not in scaling:
            return outputs
        # A target that never varied has scale 0 and is its mean.
        mean, scale = (np.asarray(x) for x in scaling["targets"])
        return outputs * np.where(scale > 0, 1 / np.where(scale > 0, scale, 1), 0)[None] + mean

    def apply(inputs: np.ndarray) -> np.ndarray:
        with jax.enable_x64(is_wide):
            blocks = []
            for begin in range(0, len(inputs), ROWS_AT_ONCE):
                rows = inputs[begin : begin + ROWS_AT_ONCE]
                filled = np.zeros((ROWS_AT_ONCE, *shape), rows.dtype)
                filled[: len(rows)] = rows
                blocks.append(np.asarray(outputs_of(filled))[: len(rows)])
        return np.concatenate(blocks)

    names = tuple(data.get("class_names") or ())
    return Predictor(apply, shape, data["kind"], recipe.loss, names, config)


def run_predict(
    run: str,
    data: str,
    *,
    model: str | None = None,
    out: str | None = None,
    data_dir: str | None = None,
) -> pathlib.Path:
    """Predicts every example of `data` and writes a `.csv`, one row each; gives its path.

    Args:
      run: the folder of a finished run.
      data: a file, whose target column may be missing, or any name that `load_data` knows.
      model: see `load_predictor`.
      out: the file to write, by default `predictions-NAME.csv` in the run's folder.
      data_dir: where TFDS keeps its sets.

    Raises:
      ValueError: as `load_predictor` and `load_data`, or if the data have another shape.
    """
    predictor = load_predictor(run, model=model)
    inputs = _inputs_of(data, predictor, data_dir)
    outputs = predictor(inputs)
    name = "".join(c if c.isalnum() or c in "-_" else "-" for c in pathlib.Path(data).stem)
    path = pathlib.Path(run) / f"predictions-{name}.csv" if out is None else pathlib.Path(out)
    beside = path.with_name(path.name + ".tmp")
    try:
        beside.write_text(_as_csv(outputs, predictor), encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise ValueError(f"`out` {str(path)!r} cannot be written: {error.strerror}.") from None
    return path


def _as_csv(outputs: np.ndarray, predictor: Predictor) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    if predictor.loss == "cross_entropy":
        names = predictor.class_names or tuple(str(c) for c in range(outputs.shape[-1]))
        rows.writerow(["prediction", *(f"probability of {name}" for name in names)])
        for row in outputs:
            rows.writerow([names[int(np.argmax(row))], *(f"{p:.6g}" for p in row)])
        return text.getvalue()
    several = outputs.reshape(len(outputs), -1)
    one = several.shape[1] == 1
    rows.writerow(["prediction"] if one else [f"prediction {i}" for i in range(several.shape[1])])
    rows.writerows([f"{value:.9g}" for value in row] for row in several)
    return text.getvalue()


def _inputs_of(data: str, predictor: Predictor, data_dir: str | None) -> np.ndarray:
    path = pathlib.Path(data)
    if path.suffix == ".csv" and path.is_file():
        return _table_inputs(path, predictor)
    if path.suffix == ".npz" and path.is_file():
        try:
            with np.load(path, allow_pickle=False) as archive:
                if "inputs" not in archive:
                    raise ValueError(f"{data!r} has no array 'inputs', only {', '.join(archive)}.")
                return archive["inputs"]
        except OSError as error:
            raise ValueError(f"{data!r} cannot be read as .npz ({error}).") from None
    dataset: Dataset = arrays.load_data(data, loss=predictor.loss, data_dir=data_dir)
    return dataset.inputs


def _table_inputs(path: pathlib.Path, predictor: Predictor) -> np.ndarray:
    """The input columns, with or without the target's among them."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [(number, row) for number, row in enumerate(csv.reader(file), 1) if any(row)]
    if len(rows) < 2:
        raise ValueError(f"{str(path)!r} is empty; give a header and at least one row.")
    header = [cell.strip() for cell in rows.pop(0)[1]]
    wanted = predictor.input_shape[0]
    target = predictor.config.get("target")
    places = list(range(len(header)))
    if len(header) == wanted + 1:
        places.remove(header.index(target) if target in header else len(header) - 1)
    if len(places) != wanted:
        raise ValueError(
            f"{str(path)!r} has {len(header)} columns; the model was trained on {wanted} (a "
            "target's column beside them is passed over)."
        )
    values = []
    for line, row in rows:
        try:
            values.append([float(row[i]) for i in places])
        except (ValueError, IndexError):
            raise ValueError(
                f"{str(path)!r}, line {line} is not {len(header)} numbers: {','.join(row)!r}."
            ) from None
    return np.array(values, np.float32)


def _read_fit(path: pathlib.Path, shapes: Fit) -> tuple[Fit, dict[str, arrays.Scaling]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            saved = dict(archive)
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(path)!r} cannot be read ({error}).") from None
    scaling = {
        field: arrays.Scaling(
            jnp.asarray(saved.pop(f"scaling/{field}/mean")),
            jnp.asarray(saved.pop(f"scaling/{field}/scale")),
        )
        for field in ("inputs", "targets")
        if f"scaling/{field}/mean" in saved
    }
    about = lambda leaf: {"dtype": str(leaf.dtype), "shape": list(leaf.shape)}
    wanted = named_arrays(shapes, {})
    check_same_leaves(
        {name: about(leaf) for name, leaf in saved.items()},
        {name: about(leaf) for name, leaf in wanted.items()},
        repr(str(path)),
    )
    # The same walk as when they were written, so the same order.
    leaves = [jnp.asarray(saved[name]) for name in wanted]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves), scaling
