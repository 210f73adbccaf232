"""Types checked as beartype checks them, from a function's first call on."""

from collections.abc import Callable

from beartype import beartype


def lazily(function: Callable) -> Callable:
    """As `beartype`, which writes a checker for every function of the package: half of what it
    costs to import it, and most of them no one test file calls."""
    checked = None

    def check(*args, **kwargs):
        nonlocal checked
        if checked is None:
            checked = beartype(function)
        return checked(*args, **kwargs)

    return check
