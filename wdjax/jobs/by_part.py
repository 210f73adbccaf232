"""`select --each-part`: which part wants another strength than the shared one, and whether that
is better."""

import dataclasses
import functools
import glob
from typing import Any, NamedTuple

import jax
import numpy as np

from wdjax.jobs.options import SelectOptions
from wdjax.jobs.refit import OnProgress
from wdjax.jobs.setup import Prepared
from wdjax.parts import counting_leaves, leaf_role, leaves_of_parts, resolve_parts
from wdjax.parts.rules import leaf_path
from wdjax.recipe import build as recipes
from wdjax.recipe.parse import parse_names
from wdjax.selection.choice import Choice, Judged
from wdjax.selection.each_part import TunedParts, split_folds, tune_parts
from wdjax.selection.part_slopes import MOST_PARTS, UNKNOWN, slopes_of_parts
from wdjax.selection.scores import Scores
from wdjax.selection.search import Problem, Search
from wdjax.selection.slopes import check_slopes
from wdjax.tables import format_number
from wdjax.types import Params

MAX_STEPS = 6
"""Of the descent, after the start."""


class EachPart(NamedTuple):
    """The parts that are asked for, and the runs in which each has a number of its own."""

    leaves: dict[str, tuple[str, ...]]
    """`{pattern: paths}`."""
    fit_and_score: Any

    @property
    def patterns(self) -> tuple[str, ...]:
        """Of the parts, which are the names of their numbers as well."""
        return tuple(self.leaves)

    def plan(self, problem: Problem) -> str:
        """What it will train, in words."""
        folds, own = len(problem.folds.train), 1 + len(self.leaves)
        choose, judge = folds - folds // 2, folds // 2
        first = folds * problem.num_seeds * own
        most = (1 + MAX_STEPS) * choose * problem.num_seeds * own + 2 * judge * problem.num_seeds
        return (
            f"Then the slopes of {len(self.leaves)} parts ({', '.join(self.patterns)}) at the "
            f"choice, {first} trainings' worth; if one wants another strength, at most {most} more "
            "to find them and to judge that."
        )


def each_part_of(options: SelectOptions, prepared: Prepared, problem: Problem) -> EachPart | None:
    """The parts that are asked for, checked before anything runs; None if none are.

    Raises:
      ValueError: for patterns of no leaf that decays, fewer than two parts or more than ten, fewer
        than three folds, no strength above 0, a run through a sign (Lion, a hard gate) or one that
        cannot be differentiated forward.
    """
    if not options.each_part:
        return None
    recipe, shapes = prepared.recipe, prepared.param_shapes
    patterns = _patterns(options.each_part, recipe.parts, shapes)
    leaves = leaves_of_parts(patterns, recipe.parts, shapes)
    taken = [pattern for pattern in patterns if pattern in problem.grid]
    if taken:
        raise ValueError(
            f"`each_part`: {taken[0]!r} is the name of a number of the run; name the part by its "
            f"role, or by a longer pattern such as '*{taken[0]}'."
        )
    if not 2 <= len(patterns) <= MOST_PARTS:
        raise ValueError(
            f"`each_part` takes 2 to {MOST_PARTS} parts, got {len(patterns)}: "
            f"{', '.join(patterns[:MOST_PARTS])}. Join or split them by patterns: "
            "--each-part 'hidden*,head*'."
        )
    if options.folds < 3:
        raise ValueError(
            f"`each_part` needs three folds or more, two to choose on and one to judge on; got "
            f"folds={options.folds}."
        )
    strengths = np.asarray(problem.grid["strength"])
    if not (strengths > 0).any():
        raise ValueError(
            "`each_part` takes slopes in the logarithm of the strength, and 0 is the only one "
            "here; give --strengths above 0."
        )
    split_folds(problem.folds)
    own = dataclasses.replace(recipe, each_part=patterns)
    fit_and_score = recipes.recipe_fit_and_score(own)
    row = int(np.flatnonzero(strengths > 0)[0])
    grid = {name: np.asarray(axis)[row : row + 1] for name, axis in problem.grid.items()}
    grid |= {pattern: np.ones(1) for pattern in patterns}
    try:
        check_slopes(fit_and_score, grid, problem.data, problem.folds, problem.key, patterns)
    except ValueError as error:
        raise ValueError(str(error).replace("`slopes`", "`each_part`")) from None
    return EachPart(leaves, fit_and_score)


def _patterns(text: str, parts: Any, shapes: Params) -> tuple[str, ...]:
    """`roles`, `leaves`, or `PATTERN,...`; of the leaves that decay."""
    decaying = counting_leaves(parts, shapes)
    if text == "roles":
        roles = [leaf_role(path, leaf) for path, leaf in decaying.items()]
        return tuple(f"role:{role}" for role in dict.fromkeys(roles))
    if text == "leaves":
        return tuple(glob.escape(path) for path in decaying)
    return tuple(dict.fromkeys(parse_names(text)))


def tell_each_part(
    each: EachPart,
    prepared: Prepared,
    problem: Problem,
    search: Search,
    chosen: Choice,
    on_progress: OnProgress | None,
) -> dict[str, Any]:
    """What results say of the parts at the choice: their slopes, and what the descent found.

    Where the choice is zero, which has no logarithm, at the best strength above it. The descent is
    made only if a part is known to want another strength; what is claimed of it is judged on
    examples of its own, so that this makes no claim more frequent.
    """
    shared = _shared(search.scores, chosen)
    if shared is None:
        return {"parts": [], "headline": "No row above strength 0 has a finite score to go from."}
    strength = shared["strength"]
    listen = None if on_progress is None else functools.partial(on_progress, "each part")
    given: dict[str, Any] = {
        **problem.how,
        "progress": listen,
        "parts": each.patterns,
        "num_seeds": problem.num_seeds,
        "value": problem.value,
    }
    at = shared | dict.fromkeys(each.patterns, 1.0)
    run, data, folds, key = each.fit_and_score, problem.data, problem.folds, problem.key
    slopes = slopes_of_parts(run, at, data, folds, key=key, **given)
    told = slopes.to_dict()
    for part in told["parts"]:
        part |= {"strength": part["strength"] * strength, "leaves": each.leaves[part["part"]]}
    told["headline"] = " ".join(f"{part}." for part in slopes.parts)
    if chosen.hparams["strength"] == 0:
        told["headline"] += (
            f" The choice is strength 0, which has no logarithm: this is at {strength:g}, the best "
            "above it."
        )
    if not problem.annealed:
        told["headline"] += (
            " Do not believe slopes at a constant learning rate beyond the best strength: those of "
            "single runs run away; anneal it (--schedule cosine)."
        )
    if all(part.wants == UNKNOWN for part in slopes.parts):
        told["tuned"] = None
        told["verdict"] = "No part is known to want another strength than the shared one."
        return told
    whole = prepared.decay.whole_weight_strength(shared["learning_rate"]) / strength
    tuned = tune_parts(
        run,
        at,
        data,
        folds,
        key=key,
        max_steps=MAX_STEPS,
        most=dict.fromkeys(each.patterns, whole * (1 - 1e-6)),
        annealed=problem.annealed,
        **given,
    )
    return told | {"tuned": tuned.to_dict(), **_words_on(tuned, each, prepared, strength)}


def _shared(scores: Scores, chosen: Choice) -> dict[str, float] | None:
    """The row that the parts share: the choice, or the best above strength 0; None without one."""
    if chosen.hparams["strength"] > 0:
        return chosen.hparams
    means = Judged.of(scores, chosen.value).means
    means = np.where(np.asarray(scores.grid["strength"]) > 0, means, np.inf)
    best = int(np.argmin(means))
    if not np.isfinite(means[best]):
        return None
    return {name: float(np.asarray(axis)[best]) for name, axis in scores.grid.items()}


def _words_on(
    tuned: TunedParts, each: EachPart, prepared: Prepared, strength: float
) -> dict[str, Any]:
    """The verdict, the strengths found, and, if they are better, how to train with them."""
    own = {pattern: tuned.hparams[pattern] for pattern in each.patterns}
    found = ", ".join(f"{p} {format_number(float(f'{m * strength:.3g}'))}" for p, m in own.items())
    verdict = " ".join([*tuned.doubts, tuned.verdict])
    if tuned.gain is not None:
        verdict += f" Strengths: {found}."
    if tuned.better:
        multipliers = recipes.recipe_part_weights(
            dataclasses.replace(prepared.recipe, each_part=each.patterns, part_feature=None),
            own,
            None,
            "decay",
        )
        resolved = resolve_parts(multipliers, prepared.param_shapes)
        rules = [
            f"{glob.escape(leaf_path(path))}={float(m):.3g}"
            for path, m in jax.tree_util.tree_leaves_with_path(resolved)
        ]
        verdict += f" To train with them: --strength {strength:g} --parts '{','.join(rules)}'"
    return {"verdict": verdict}
