"""Choices as they are written on the command line."""

from collections.abc import Iterable

from wdjax.checks import check_one_of
from wdjax.parts import matrices_only
from wdjax.types import Parts


def parse_names(text: str) -> tuple[str, ...]:
    """The names in `"a,b"`, none in `""`."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def parse_sigmoid(name: str, text: str | None, features: Iterable[str]) -> str | None:
    """The feature of `"sigmoid:FEATURE"`, or None for None.

    Raises:
      ValueError: for another form or an unknown feature.
    """
    if text is None:
        return None
    form, _, feature = text.partition(":")
    if form != "sigmoid" or not feature:
        raise ValueError(
            f"`{name}` must be sigmoid:FEATURE, such as sigmoid:{next(iter(features))}; "
            f"got {text!r}."
        )
    check_one_of(f"{name}: sigmoid:", feature, features)
    return feature


def parse_parts(text: str) -> Parts:
    """`"matrices"`, `"all"`, or patterns such as `"*/kernel=1,*=0"`, the first match winning.

    Raises:
      ValueError: for anything else.
    """
    if text == "matrices":
        return matrices_only
    if text == "all":
        return None
    patterns = {}
    for item in text.split(","):
        pattern, equals, number = item.strip().rpartition("=")
        try:
            patterns[pattern] = float(number)
        except ValueError:
            equals = ""
        if not equals or not pattern:
            raise ValueError(
                f"`parts` must be matrices, all, or PATTERN=NUMBER,... such as "
                f"'*/kernel=1,*=0'; got {item.strip()!r}."
            )
    return patterns
