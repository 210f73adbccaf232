"""Names of version 0.1, which work for one more version, with a warning that says the new one."""

import functools
import importlib
import importlib.abc
import importlib.machinery
import sys
import types
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

MODULES = {
    "wdjax.checkpoint.facts": "wdjax.checkpoint.manifest",
    "wdjax.data.arrays": "wdjax.data",
    "wdjax.data.prepare": "wdjax.data.raw_sets",
    "wdjax.decay.kernel": "wdjax.decay.core",
    "wdjax.folder": "wdjax.jobs.folder",
    "wdjax.given": "wdjax.host_checks",
    "wdjax.hang": "wdjax.loop.watchdog",
    "wdjax.jobs.files": "wdjax.jobs.results",
    "wdjax.jobs.prepare": "wdjax.jobs.setup",
    "wdjax.jobs.run": "wdjax.jobs",
    "wdjax.kinds": "wdjax.interfaces",
    "wdjax.parts.description": "wdjax.diagnostics.description",
    "wdjax.parts.equilibrium": "wdjax.diagnostics.equilibrium",
    "wdjax.parts.features": "wdjax.weights.part_features",
    "wdjax.parts.inspection": "wdjax.diagnostics.inspection",
    "wdjax.parts.measurement": "wdjax.diagnostics.measurement",
    "wdjax.runlog": "wdjax.loop.log",
    "wdjax.selection.kept": "wdjax.selection.cache",
    "wdjax.signals": "wdjax.loop.signals",
    "wdjax.telemetry": "wdjax.diagnostics.telemetry",
}


def moved_names(package: str, homes: Mapping[str, str | tuple[str, str]]) -> Callable[[str], Any]:
    """A module's `__getattr__` for names that moved: `{name: module}` or `{name: (module, name)}`.

    Raises:
      AttributeError: in the function, for any other name.
    """

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = homes[name]
        module, new = (home, name) if isinstance(home, str) else home
        warn_moved(f"{package}.{name}", f"{module}.{new}")
        return getattr(importlib.import_module(module), new)

    return find


def moved_keywords(**names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator for a function whose keyword `old` is now `new`: `@moved_keywords(old="new")`.

    Raises:
      TypeError: in the function, when it is called with both.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def renamed(*args: P.args, **kwargs: P.kwargs) -> R:
            for old in names.keys() & kwargs.keys():
                new, of = names[old], function.__name__
                if new in kwargs:
                    raise TypeError(f"{of}() got `{new}` and its old name `{old}`; give `{new}`.")
                warn_moved(f"{of}({old}=)", f"{of}({new}=)")
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return renamed

    return decorate


def moved_field(owner: str, old: str, new: str) -> Any:
    """A property for a class whose attribute `old` is now `new`."""

    def find(self: Any) -> Any:
        warn_moved(f"{owner}.{old}", f"{owner}.{new}")
        return getattr(self, new)

    return property(find, doc=f"The old name of `{new}`.")


def warn_moved(old: str, new: str, stacklevel: int = 3) -> None:
    """Warns whoever called the caller (`stacklevel` 3) that a name is old, and says the new one."""
    warnings.warn(
        f"{old} is now {new}; the old name goes with the next version.",
        DeprecationWarning,
        stacklevel=stacklevel,
    )


class _OldPaths(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a module under its old path; asked last, when nothing else knows the name."""

    def find_spec(
        self, fullname: str, path: Any, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in MODULES:
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        warn_moved(spec.name, MODULES[spec.name])
        module = importlib.import_module(MODULES[spec.name])
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        # It ran when it was imported under its own name, which it keeps.
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def find_old_paths() -> None:
    """Makes the old paths importable."""
    if not any(isinstance(finder, _OldPaths) for finder in sys.meta_path):
        sys.meta_path.append(_OldPaths())
