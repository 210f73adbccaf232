"""The packages of the extras: imported where they are needed, and told in a sentence if missing."""

import importlib
import importlib.util
import sys
from types import ModuleType

_CALLED = {"sklearn": "scikit-learn", "PIL": "pillow", "orbax": "orbax-checkpoint"}
"""Packages whose module has another name."""


def need(module: str, *, what: str, extra: str = "cli", hint: str = "") -> ModuleType:
    """Imports a module that an extra installs.

    Args:
      module: its dotted name, such as `orbax.checkpoint`.
      what: what it is needed for, as the beginning of a sentence: "a checkpoint".
      extra: the extra of this package that installs it.
      hint: the way to do without, in a few words.

    Raises:
      ImportError: if it is not installed, with the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # Only its own absence: another module that it misses is another's fault.
        if _package(error.name or "") != _package(module):
            raise
        raise _missing(module, what, extra, hint) from error


def check_installed(*modules: str, what: str, extra: str = "cli", hint: str = "") -> None:
    """Checks that modules of an extra could be imported, without importing them.

    Asked before work begins that needs them at its end.

    Raises:
      ImportError: naming the first that is not installed, with the command that installs it.
    """
    for module in modules:
        package = _package(module)
        if sys.modules.get(package) is None and importlib.util.find_spec(package) is None:
            raise _missing(module, what, extra, hint)


def _package(module: str) -> str:
    return module.partition(".")[0]


def _missing(module: str, what: str, extra: str, hint: str) -> ImportError:
    package = _CALLED.get(_package(module), _package(module))
    words = f'{what} needs {package}, which is not installed: pip install "wdjax[{extra}]"'
    return ImportError(f"{words} ({hint})." if hint else f"{words}.", name=module)
