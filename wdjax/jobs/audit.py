"""The audit of a run: who gets how much decay, measured, and what looks wrong."""

import dataclasses
import pathlib
from typing import Any

import jax

from wdjax.data.dataset import hash_of, to_batch
from wdjax.data.encoding import example_of
from wdjax.diagnostics import AuditReport, LeafDecay, audit
from wdjax.jobs.options import AuditOptions, RunOptions, SelectOptions, TrainOptions
from wdjax.jobs.results import PARAMS, opened_results, read_params
from wdjax.jobs.setup import Prepared, check_batch_fits, hparams_of, prepare
from wdjax.jobs.sources import fingerprint, open_sources
from wdjax.jobs.told_parts import TOLD_HOW, z_of_leaves
from wdjax.losses import regularized_loss
from wdjax.parts import leaf_path, resolve_parts
from wdjax.recipe import build as recipes
from wdjax.recipe.build import Recipe
from wdjax.recipe.kinds import DecayKind
from wdjax.recipe.own import OWN_SORTS, check_given_again, is_own
from wdjax.types import Batch, Params

Z_OF_MORE = (
    "z of more: what more decay of the leaf's part gains in validation score, in standard errors."
)

ROWS_MEASURED = 256
"""Examples that the loss is measured on."""


def run_audit(options: AuditOptions) -> AuditReport:
    """Audits a model of the project at its initial params, or a saved run at its final ones.

    Raises:
      ValueError: for any bad option, no strength (a saved run has its own), or a folder that holds
        no finished run of today's data, or names a user's own file that was not given again.
      DamagedFileError: if its results or its params are not what was written.
    """
    if options.run is not None:
        return _audit_saved(pathlib.Path(options.run), options)
    prepared = prepare(options)
    hparams = hparams_of(options)
    data = to_batch(prepared.choose_data)
    check_batch_fits(prepared.recipe.batch_size, len(data.weights))
    model = recipes.recipe_model(prepared.recipe)
    one = example_of(prepared.recipe.encoding, data.inputs[:1])
    params, _ = jax.jit(model.init)(jax.random.key(options.seed), one)
    return audit_run(prepared, hparams, params)


def audit_run(prepared: Prepared, hparams: dict[str, float], params: Params) -> AuditReport:
    """Audits what a prepared run does to `params`: its optimiser, its penalty, its part weights.

    A strength of 0 is an answer, not an oversight: that nothing decays is then no warning, and
    the multipliers, of which nothing is to be measured, are those that another strength has.
    """
    recipe = prepared.recipe
    data = to_batch(prepared.choose_data)
    steps_per_epoch = max(1, prepared.num_choose // recipe.batch_size)
    num_steps = recipe.num_epochs * steps_per_epoch

    @jax.jit
    def measured_on(data: Batch) -> Batch:
        data, _ = recipes.recipe_scale(recipe, data, data)
        return jax.tree.map(lambda x: x[:ROWS_MEASURED], data)

    batch = measured_on(data)
    model = recipes.recipe_model(recipe)
    _, model_state = jax.eval_shape(model.init, jax.random.key(0), batch.inputs)
    if jax.tree.leaves(model_state):
        _, model_state = jax.jit(model.init)(jax.random.key(0), batch.inputs)
    report = audit(
        params,
        recipes.recipe_tx(recipe, hparams, num_steps, batch.inputs),
        regularized_loss(
            model,
            prepared.loss.function,
            recipes.recipe_penalty(recipe, hparams, batch.inputs),
        ),
        batch=batch,
        model_state=model_state,
        part_weights=recipes.recipe_part_weights(recipe, hparams, batch.inputs, "loss"),
        num_steps=num_steps,
        steps_per_epoch=steps_per_epoch,
    )
    if hparams["strength"] == 0:
        meant = lambda warning: warning.kind == "nothing decays"
        report = report._replace(
            leaves=_with_multipliers(report.leaves, recipe, hparams, params, batch.inputs),
            warnings=tuple(w for w in report.warnings if not meant(w)),
        )
    return report


def _with_multipliers(
    leaves: tuple[LeafDecay, ...], recipe: Recipe, hparams: dict, params: Params, inputs: Any
) -> tuple[LeafDecay, ...]:
    """The rows with the multipliers of the recipe's parts, as shares of the largest."""
    parts = recipes.recipe_part_weights(recipe, hparams, inputs, "decay")
    multipliers = [float(m) for m in jax.tree.leaves(resolve_parts(parts, params))]
    largest = max(multipliers, default=0.0) or 1.0
    pairs = zip(leaves, multipliers, strict=True)
    return tuple(leaf._replace(multiplier=m / largest) for leaf, m in pairs)


def audit_results(report: AuditReport, decay: DecayKind) -> dict[str, Any]:
    """What results files say of it. Under a penalty the rate belongs to the optimiser."""
    rows = [{n: v for n, v in row.items() if n != "z"} for row in report.to_dict()["leaves"]]
    if not decay.has_rate:
        unknown = ("rate", "half_life", "first_rate", "peak_rate", "last_rate")
        unknown += ("half_life_epochs", "removed", "equilibrium_norm", "equilibrium_angle")
        rows = [row | dict.fromkeys(unknown) for row in rows]
    return {"decay": rows, "warnings": [warning.text for warning in report.warnings]}


def _audit_saved(folder: pathlib.Path, told: AuditOptions) -> AuditReport:
    with opened_results(folder) as results:
        return _audit_results(folder, results, told)


def _audit_results(
    folder: pathlib.Path, results: dict[str, Any], told: AuditOptions
) -> AuditReport:
    kinds = {"select": SelectOptions, "train": TrainOptions}
    if results["kind"] not in kinds:
        raise ValueError(
            f"`run` {str(folder)!r} holds a {results['kind']!r}, which keeps no params to audit; "
            "give the folder that `wdjax select` or `wdjax train` wrote."
        )
    if results.get("status") != "complete":
        raise ValueError(f"`run` {str(folder)!r} was stopped before it ended; nothing to audit.")
    given = dataclasses.asdict(told)
    check_given_again(f"`run` {str(folder)!r}", results["config"], given)
    own = {sort: given[sort] for sort in OWN_SORTS if is_own(results["config"].get(sort))}
    options = _options(kinds[results["kind"]], results["config"] | own)
    prepared, data_hash = _prepared(options)
    if data_hash != results["data"]["sha256"]:
        raise ValueError(
            f"`run` {str(folder)!r} was made from other data than {options.data!r} holds now; "
            "run it again."
        )
    params = _params_of(folder, results, prepared.param_shapes)
    report = audit_run(prepared, results["refit"]["chosen"]["hparams"], params)
    return _with_z(report, results)


def _with_z(report: AuditReport, results: dict[str, Any]) -> AuditReport:
    """With what a selection found of each part's slope, or how it would."""
    if results["kind"] != "select":
        return report
    z = z_of_leaves(results)
    if not z:
        return report._replace(notes=(f"No slopes of parts here: {TOLD_HOW}.",))
    rows = tuple(leaf._replace(z=z.get(leaf.path)) for leaf in report.leaves)
    return report._replace(leaves=rows, notes=(results["each_part"]["headline"], Z_OF_MORE))


def _prepared(options: RunOptions) -> tuple[Prepared, str | None]:
    """As the run itself prepared its data, and the hash that it took of them."""
    if isinstance(options, TrainOptions) and options.stream:
        prepared, sources = open_sources(options)
        return prepared, fingerprint(sources.train)
    prepared = prepare(options)
    return prepared, hash_of(prepared.choose_data)


def _options(kind: type, config: dict[str, Any]) -> RunOptions:
    """The options of a saved run; lists were tuples, and what is unknown was a derived number."""
    names = {field.name for field in dataclasses.fields(kind)}
    as_tuple = lambda value: tuple(value) if isinstance(value, list) else value
    return kind(**{name: as_tuple(value) for name, value in config.items() if name in names})


def _params_of(folder: pathlib.Path, results: dict[str, Any], shapes: Params) -> Params:
    saved, path = read_params(folder, results), folder / PARAMS

    def of(leaf_at, shape):
        name = leaf_path(leaf_at)
        if name not in saved or saved[name].shape != shape.shape:
            raise ValueError(
                f"`run`: {str(path)!r} holds no {name!r} of shape {shape.shape}; the model has "
                "changed since."
            )
        return jax.numpy.asarray(saved[name], shape.dtype)

    return jax.tree_util.tree_map_with_path(of, shapes)
