"""The articles' programs: a name that stands for the options of `wdjax train`."""

import shlex
from collections.abc import Callable, Sequence
from typing import NamedTuple

from wdjax.checks import check_one_of
from wdjax.data.published import FORMS, find_published


class Article(NamedTuple):
    """A program of the articles."""

    data: str
    """The published set that it is for."""
    options: str
    """What it says, as `wdjax train` is told it."""


_SHARED = "--optimizer adam --learning-rate 1e-3 --schedule constant --decay coupled --parts all"
_SHARED += " --strength 1e-3 --epochs 10 --batch-size 32"

RECIPES = {
    "article/cnn": Article("cifar10", f"--model cnn {_SHARED}"),
    "article/mlp": Article("mnist", f"--model mlp {_SHARED}"),
    "article/rnn": Article("mnist", f"--model rnn {_SHARED}"),
}
"""S6, S7 and S8. The second program gives a strength, 1e-3 of half the squares of all variables;
the first gives none and the third is none, so they have that one too."""

ELSE = "digits"
"""What a recipe is trained on where its own set is not found."""


def recipe_words(
    name: str, words: Sequence[str], *, data_dir: str | None, say: Callable[[str], None] = print
) -> list[str]:
    """The words of `wdjax train` with those that a recipe stands for in the recipe's place.

    Options among `words` override the recipe's. Its data are the articles' where they are found in
    `data_dir`, else digits, which is said; so is the whole command.

    Raises:
      ValueError: for an unknown recipe, or a `data_dir` that is a file.
    """
    check_one_of("recipe", name, RECIPES)
    recipe, told = RECIPES[name], _without(words, "--recipe")
    given = {word.partition("=")[0] for word in told}
    options = recipe.options.split()
    pairs = zip(options[::2], options[1::2], strict=True)
    filled = [word for pair in pairs if pair[0] not in given for word in pair]
    if "--data" not in given:
        filled = ["--data", recipe.data, *filled]
        if find_published(recipe.data, data_dir) is None:
            filled[1] = ELSE
            told = _without(told, "--data-dir")
            wanted = " or ".join(form.files for form in FORMS[recipe.data])
            where = "the folder of TFDS" if data_dir is None else repr(data_dir)
            say(
                f"{name} is for {recipe.data}, which is not in {where} ({wanted}); this run is on "
                f"{ELSE}. Say where it is with --data-dir, or another set with --data."
            )
    expanded = [told[0], *filled, *told[1:]]
    say(f"{name} stands for: {shlex.join(['wdjax', *expanded])}")
    return expanded


def _without(words: Sequence[str], flag: str) -> list[str]:
    """The words without an option and its value."""
    kept, is_value = [], False
    for word in words:
        if word == flag:
            is_value = True
        elif not is_value and not word.startswith(f"{flag}="):
            kept.append(word)
        else:
            is_value = False
    return kept
