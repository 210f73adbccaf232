"""From a finished run to predictions: on arrays, or from the shell on files."""

import contextlib
import csv
import io
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wdjax.checkpoint import check_same_leaves
from wdjax.data.archive import read_arrays
from wdjax.data.batches import in_blocks
from wdjax.data.dataset import make_dataset, plain_array
from wdjax.data.encoding import (
    Encoding,
    InputColumn,
    Learnt,
    apply_encoding,
    encode_columns,
    example_of,
)
from wdjax.data.files import find_columns, read_inputs
from wdjax.data.images import as_images_32
from wdjax.data.load import load_data
from wdjax.data.named import find_source
from wdjax.data.scale import Scaling, undo_scaling
from wdjax.data.table_files import ending_of
from wdjax.data.texts import column_name, named, quoted, text_cell
from wdjax.ending import naming
from wdjax.jobs.lock import locked
from wdjax.jobs.results import (
    FINAL,
    PARAMS,
    has_classes_in,
    named_arrays,
    opened_results,
    read_params,
)
from wdjax.loss_kinds import CLASSES, LOSS_KINDS, NUMBERS, LossKind, has_classes, loss_for
from wdjax.recipe import build as recipes
from wdjax.recipe.build import Recipe
from wdjax.recipe.own import is_own, load_own
from wdjax.types import Fit, Model
from wdjax.writing import DIGEST, write_digest, write_whole

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
    """The name of the loss; one of the user's own is told by one of the same targets."""
    class_names: tuple[str, ...]
    """What the classes are called, where the data said so."""
    config: dict[str, Any]
    """What the run was told."""
    columns: tuple[InputColumn, ...] = ()
    """What the input columns are called, where the data said so, and their words and holes."""
    target_name: str | None = None
    """What the target's column is called, where the data said so."""
    images_32: bool = False
    """Whether the model wants images as `[32, 32, 3]`."""

    @property
    def column_names(self) -> tuple[str, ...]:
        """What the input columns are called, where the data said so."""
        return tuple(column.name for column in self.columns)

    def __call__(self, inputs: Any) -> np.ndarray:
        """The outputs for `inputs`, which have the shape and scale of the data loaded in training.

        An array's columns are taken in the order of the training data; those of a table that names
        them (a data frame: it has `columns`, and `inputs[name]` is one of them) by their names.

        Raises:
          ValueError: if an example has another shape than those of the training data, a named
            column is missing or there twice, or a value is not finite.
        """
        is_encoded = Encoding.of(self.columns) is not None
        if self.column_names and hasattr(inputs, "columns"):
            header = list(inputs.columns)
            places = find_columns("`inputs`", header, self.column_names)
            own = [np.asarray(inputs[header[i]]) for i in places]
            if not is_encoded:
                inputs = np.stack(own, axis=1)
            else:
                cells = [_cells(column, x) for column, x in zip(self.columns, own, strict=True)]
                inputs, _ = encode_columns(self.columns, cells)
        elif is_encoded:
            raise ValueError(
                "`inputs` must name their columns, as the model was trained on a table with words "
                f"or holes: {named(self.column_names)}. Give a table (.csv, .csv.gz, .parquet), or "
                "in Python a data frame."
            )
        return self.of_encoded(inputs)

    def of_encoded(self, inputs: Any) -> np.ndarray:
        """The outputs for inputs that are held as `load_data` holds them.

        Raises:
          ValueError: if an example has another shape than those of the training data, or a value
            is not finite.
        """
        inputs = plain_array("inputs", inputs)
        nothing = np.zeros(len(inputs))
        dataset = make_dataset(inputs, nothing, loss=loss_for(NUMBERS), kind=self.kind)
        if self.images_32 and dataset.kind == "image":
            dataset = as_images_32(dataset)
        if dataset.inputs.shape[1:] != self.input_shape:
            raise ValueError(
                f"`inputs`: an example has shape {dataset.inputs.shape[1:]}, and those of the "
                f"training data {self.input_shape}; give the same columns, or images of the same "
                "size."
            )
        return self.apply(dataset.inputs)


def load_predictor(
    run: str | os.PathLike[str], *, model: str | None = None, final: bool = False
) -> Predictor:
    """The model that `wdjax train` or `wdjax select` left in a folder (of its first seed).

    Reads JSON and plain arrays; no code that the folder names is run.

    Args:
      run: the folder.
      model: `FILE.py:make_model`, to be given again where the run had a model of the user's own.
      final: take the model of all rows, which `wdjax select --final all` left, and not the one
        that the test part judged.

    Raises:
      ValueError: if the run did not end, there is no model of all rows where it is asked for, its
        model was not given, or its arrays are not those of the model, by name.
      DamagedFileError: if its results or its arrays are not what was written.

    Warns:
      RuntimeWarning: if they carry no SHA-256: an earlier version wrote them.
    """
    folder = pathlib.Path(run)
    with opened_results(folder) as results:
        return _predictor_of(folder, results, model, _file_of_params(folder, results, final))


def _file_of_params(folder: pathlib.Path, results: Mapping[str, Any], final: bool) -> str:
    if final and FINAL not in (results.get("files") or {}):
        raise ValueError(
            f"`final`: {str(folder)!r} holds no model of all rows; make one with wdjax select "
            "--final all, or leave --final out and take the model that was judged."
        )
    return FINAL if final else PARAMS


def _predictor_of(
    folder: pathlib.Path, results: dict[str, Any], model: str | None, file: str
) -> Predictor:
    if results["kind"] == "compare":
        raise ValueError(
            f"`run` {str(folder)!r} holds a comparison, which keeps no params to predict with; "
            "give the folder that `wdjax select` or `wdjax train` wrote."
        )
    if results.get("status") != "complete":
        raise ValueError(f"`run` {str(folder)!r} did not end; it has no params to predict with.")
    config, data = results["config"], results["data"]
    if is_own(config["model"]) and model is None:
        raise ValueError(
            f"`run` {str(folder)!r} was trained with the model {config['model']!r}; give it again "
            "with --model: a folder is not trusted to name code to run."
        )
    kind_of_model = load_own("model", model or config["model"])
    labelled = has_classes_in(results)
    loss = loss_for(CLASSES if labelled else NUMBERS) if is_own(config["loss"]) else config["loss"]
    kind_of_loss = LOSS_KINDS[loss]
    recipe = Recipe(
        make_model=kind_of_model.make,
        num_outputs=kind_of_loss.outputs_for(loss, data["num_outputs"]),
        dtype=config["dtype"],
    )
    is_wide = recipe.dtype == "float64"
    shape = tuple(data["input_shape"])
    columns = _columns_in(data)
    encoding = Encoding.of(columns)
    with jax.enable_x64(is_wide):
        network = recipes.recipe_model(recipe)
        example = np.empty((1, *shape), np.int32 if data["kind"] == "text" else np.float32)
        example = example_of(encoding, example)
        example = jax.ShapeDtypeStruct(example.shape, example.dtype)
        key = jax.eval_shape(lambda: jax.random.key(0))
        params, model_state = jax.eval_shape(network.init, key, example)
        shapes = Fit(params, model_state, {})
        fit, scaling = _read_fit(folder, results, shapes, file)
    _check_scaling(folder / file, scaling, {"inputs": example.shape[1:]})

    outputs_of = jax.jit(make_outputs(network, fit, scaling, kind_of_loss, encoding))

    def apply(inputs: np.ndarray) -> np.ndarray:
        with jax.enable_x64(is_wide):
            return in_blocks(outputs_of, inputs, ROWS_AT_ONCE)

    names = _names_in(data, "class_names")
    if names and len(names) != data["num_outputs"]:
        raise TypeError(f"class_names has {len(names)} of {data['num_outputs']}")
    target = data.get("target_name") or config.get("target")
    kind = data["kind"]
    return Predictor(
        apply, shape, kind, loss, names, config, columns, target, kind_of_model.images_32
    )


def _columns_in(data: Mapping[str, Any]) -> tuple[InputColumn, ...]:
    """The columns by name, with their words and holes; of numbers alone neither is said."""
    names = _names_in(data, "column_names")
    about = data.get("columns") or [{} for _ in names]
    if not isinstance(about, list) or len(about) != len(names):
        raise TypeError(f"columns are {len(about)} of {len(names)}")
    words = (own.get("words") for own in about)
    return tuple(
        InputColumn(name, None if own is None else tuple(own), bool(of.get("holes", False)))
        for name, own, of in zip(names, words, about, strict=True)
    )


def _cells(column: InputColumn, values: np.ndarray) -> np.ndarray:
    """A data frame's column as `encode_columns` takes it: None and NaN are holes."""
    if column.words is None:
        return np.array([np.nan if x is None else x for x in values.tolist()], np.float64)
    is_hole = lambda x: x is None or x != x or str(x) == "<NA>"
    return np.array(["" if is_hole(x) else str(x).strip() for x in values.tolist()], str)


def _names_in(data: Mapping[str, Any], name: str) -> tuple[str, ...]:
    found = data.get(name) or []
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise TypeError(f"{name} is {found!r}")
    return tuple(found)


def make_outputs(
    network: Model,
    fit: Fit,
    scaling: Mapping[str, Any],
    loss: LossKind,
    encoding: Encoding | None,
) -> Callable[[Any], Any]:
    """`inputs -> outputs`, in the units of the data: what is compiled."""

    def outputs_of(inputs):
        if encoding is not None:
            inputs = apply_encoding(encoding, scaling["encoding"], inputs)
        if "inputs" in scaling:
            inputs = (inputs - scaling["inputs"].mean[None]) * scaling["inputs"].scale[None]
        outputs, _ = network.apply(fit.params, fit.model_state, inputs, key=None, train=False)
        outputs = loss.prediction(outputs)
        if loss.has_classes:
            return outputs
        outputs = outputs[..., 0] if outputs.shape[-1] == 1 and outputs.ndim > 1 else outputs
        return undo_scaling(outputs, scaling["targets"]) if "targets" in scaling else outputs

    return outputs_of


def run_predict(
    run: str,
    data: str,
    *,
    model: str | None = None,
    final: bool = False,
    out: str | None = None,
    data_dir: str | None = None,
    say: Callable[[str], None] = print,
) -> pathlib.Path:
    """Predicts every example of `data` and writes a `.csv`, one row each; gives its path.

    Beside it goes its SHA-256, `NAME.csv.sha256`, which `run_report` and `sha256sum -c` check.

    The columns of a `.csv` are found by the names they had in training, in any order; others are
    passed over and named. Where there are no names (a file without a header, an `.npz`, a run on
    arrays) they are taken in order, as many as in training. Numbers are written so that they read
    back to the last bit. A class's name that a spreadsheet would take for a formula is written
    behind an apostrophe, see `text_cell`.

    Args:
      run: the folder of a finished run.
      data: a file, whose target column may be missing, or any name that `load_data` knows.
      model, final: see `load_predictor`.
      out: the file to write, by default `predictions-NAME.csv` in the run's folder.
      data_dir: where TFDS keeps its sets.
      say: told which columns were passed over, or that they were taken in order.

    Raises:
      ValueError: as `load_predictor` and `load_data`; if a column is missing or there twice, by
        name, or the data have another shape; if another run is in the folder.
      DamagedFileError: as `load_predictor`.
      WriteError: if the file cannot be written; what stood there before stays.
    """
    predictor = load_predictor(run, model=model, final=final)
    with naming(repr(data), data):
        outputs = _outputs_for(data, predictor, data_dir, say)
    name = "".join(c if c.isalnum() or c in "-_" else "-" for c in _stem(data))
    path = pathlib.Path(run) / f"predictions-{name}.csv" if out is None else pathlib.Path(out)
    if path.is_dir():
        raise ValueError(f"`out` {str(path)!r} is a folder; give the name of a file.")
    is_in_run = os.path.realpath(path.parent) == os.path.realpath(run)
    with locked(run) if is_in_run else contextlib.nullcontext():
        digest = path.with_name(path.name + DIGEST)
        if path.exists() and digest.exists():
            digest.unlink()  # Of what is there now: never beside what comes.
        write_whole(path, _as_csv(outputs, predictor))
        if path.is_file():
            write_digest(path)
    return path


def _as_csv(outputs: np.ndarray, predictor: Predictor) -> str:
    """`str` of a NumPy number is the shortest text that its dtype reads back unchanged."""
    if has_classes(predictor.loss):
        names = predictor.class_names or tuple(str(c) for c in range(outputs.shape[-1]))
        cells = [text_cell(name) for name in names]
        header = ["prediction", *(f"probability of {name}" for name in names)]
        rows = ([cells[int(np.argmax(row))], *map(str, row)] for row in outputs)
    else:
        several = outputs.reshape(len(outputs), -1)
        one = several.shape[1] == 1
        header = ["prediction"] if one else [f"prediction {i}" for i in range(several.shape[1])]
        rows = (list(map(str, row)) for row in several)
    return "".join(map(_csv_line, [header, *rows]))


def _csv_line(cells: list[str]) -> str:
    """The `csv` module quotes an end of line of either kind only if its own lines end in both."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return text.getvalue().removesuffix("\r\n") + "\n"


def _stem(data: str) -> str:
    """`new` of `new.csv` and of `new.csv.gz`."""
    name = pathlib.Path(data).name
    return name[: len(name) - len(ending_of(pathlib.Path(data)))]


def _outputs_for(
    data: str, predictor: Predictor, data_dir: str | None, say: Callable[[str], None]
) -> np.ndarray:
    path, names = pathlib.Path(data), predictor.column_names
    source, is_table = find_source(data), predictor.kind == "table"
    if source.has_columns:
        if not is_table:
            raise ValueError(
                f"{data!r} is a table, and the model was trained on {predictor.kind} data of shape "
                f"{predictor.input_shape} an example; give them as an .npz file (array inputs)."
            )
        number = predictor.input_shape[0]
        found = read_inputs(path, predictor.columns, number, predictor.target_name)
        unknown = [name for name in found.others if name not in _no_inputs(predictor.config)]
        if unknown:
            say(
                f"{data!r}: columns that the model does not know are passed over: {named(unknown)}."
            )
        if not names:
            say(f"The run keeps no column names: the columns of {data!r} are taken in their order.")
        elif not found.has_header:
            say(f"{data!r} has no header: {_in_order(names)}")
        for name, words in found.unseen.items():
            say(
                f"{data!r}, column {quoted(name)}: {len(words)} cells hold words that training did "
                f"not see ({named(np.unique(words).tolist(), 3)}), and count as other words."
            )
        return predictor.of_encoded(found.inputs)
    if source.has_arrays:
        outputs = predictor(read_arrays(path, ("inputs",))["inputs"])
        if is_table and names:
            say(f"{data!r} names no columns: {_in_order(names)}")
        return outputs
    return predictor(load_data(data, loss=predictor.loss, data_dir=data_dir).inputs)


def _no_inputs(config: Mapping[str, Any]) -> set[str]:
    """The columns that training was told to take for something else than inputs."""
    drop = config.get("drop")
    told = [*(drop if isinstance(drop, list) else ()), config.get("weights"), config.get("groups")]
    return {column_name(name) for name in told if isinstance(name, str)}


def _in_order(names: tuple[str, ...]) -> str:
    return f"its columns are taken in the order of the training data: {named(names)}."


def _check_scaling(
    path: pathlib.Path, scaling: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """An array of another shape would be broadcast, and the predictions be wrong in silence."""
    for field in ("inputs", "targets"):
        if field not in scaling:
            continue
        mean, scale = scaling[field]
        wanted = shapes.get(field, mean.shape)
        if mean.shape != wanted or scale.shape != wanted:
            raise ValueError(
                f"{str(path)!r} standardises {field} of shape {mean.shape}, and those of the run "
                f"have {wanted}; train again, or put back the file that training wrote."
            )


def _read_fit(
    folder: pathlib.Path, results: dict[str, Any], shapes: Fit, file: str
) -> tuple[Fit, dict[str, Any]]:
    saved, path = read_params(folder, results, file), folder / file
    scaling: dict[str, Any] = {}
    for field, kind in (("inputs", Scaling), ("targets", Scaling), ("encoding", Learnt)):
        names = [f"scaling/{field}/{part}" for part in kind._fields]
        if all(name in saved for name in names):
            scaling[field] = kind(*(jnp.asarray(saved.pop(name)) for name in names))
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
