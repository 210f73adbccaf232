"""A TFDS folder names the classes of its features, and TFDS imports what it names: looked at first.

TFDS 4.9.10 imports the module of every class that `features.json` names (shown by
`test_tfds_imports_any_module_that_a_folder_names`).
"""

import json
from pathlib import Path
from typing import Any

FEATURES = "features.json"
"""Where a folder describes its features."""

TRUSTED = "tensorflow_datasets."
"""How the names of the classes begin that a folder may name."""

_NAMES_CLASS = ("pythonClassName", "python_class_name", "type", "proto_cls")


class UntrustedError(ValueError):
    """A data folder that names code to run."""


def check_features(path: Path) -> None:
    """Checks that a `features.json`, if it is there, names no class but those of TFDS.

    Raises:
      UntrustedError: if it names another, which TFDS would import.
      ValueError: if it is no JSON, or too deeply nested.
    """
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        names = list(_classes_in(description))
    except FileNotFoundError:
        return
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{str(path)!r}: {reason}") from None
    if not isinstance(description, dict):
        raise ValueError(f"{str(path)!r} holds no features.")
    for name in names:
        if not name.startswith(TRUSTED):
            raise UntrustedError(
                f"{str(path)!r} names the class {name[:200]!r}, which is none of TFDS's own: a "
                "data folder is not trusted to name code to run; write the data as an .npz file."
            )


def _classes_in(value: Any) -> Any:
    """Every class that is named anywhere inside; a feature may itself be called `type`."""
    if isinstance(value, list):
        for item in value:
            yield from _classes_in(item)
    if isinstance(value, dict):
        for key, item in value.items():
            if key in _NAMES_CLASS and isinstance(item, str):
                yield item
            else:
                yield from _classes_in(item)
