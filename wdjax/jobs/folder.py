"""The folder of a run: claimed before anything is written, and given back as it was if not."""

import contextlib
import itertools
import json
import os
import pathlib
import re
import shutil
import time
from collections.abc import Iterator
from typing import Any

import jax

from wdjax.checkpoint.sharing import facts_of_first_process, is_first_process
from wdjax.extras import check_installed
from wdjax.jobs.lock import EXCLUSIVE, LOCK, locked
from wdjax.jobs.options import RunOptions
from wdjax.writing import (
    DIGEST,
    PARTIAL,
    DamagedFileError,
    json_bytes,
    remove_partial,
    sealed,
    unsealed,
    write_whole,
)
from wdjax.writing import (
    cache_folder as cache_folder,
)

MARKER = ".run.json"
"""Says that a folder is a run's: only such a one is ever cleared."""

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,79}")
_ABOUT = {"format": 1, "folder_of": "wdjax"}

_FILES = re.compile(
    r"results\.json|report\.html|(params|final)\.npz|config\.json|log(-damaged(-\d+)?)?\.jsonl|stacks(-\d+)?\.txt"
)
_CHECKPOINTS = re.compile(r"step_\d{10,}|damaged-.*|\.partial-.*|\.replaced-.*")
_EVENTS = re.compile(r"events\.out\.tfevents\..*")
_PREDICTIONS = re.compile(r"predictions-.*\.csv")
_PREDICTIONS_BEGIN = re.compile(rb"prediction( 0)?[,\n]")


def run_folder(root: str | os.PathLike[str], name: str) -> pathlib.Path:
    """`root/name`, which lies inside `root` whatever `name` says.

    Raises:
      ValueError: for a name that is not 1 to 80 of the characters `A-Z a-z 0-9 . _ -` with no dot
        first (so no path, relative, absolute or Windows'), or one that is a link out of `root`.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"a run's name must be 1 to 80 of A-Z a-z 0-9 . _ - and not begin with a dot, got "
            f"{name!r}."
        )
    folder = pathlib.Path(root) / name
    end = pathlib.Path(os.path.realpath(folder))  # `resolve` raises where links go in a circle.
    if end.is_symlink() or not end.is_relative_to(os.path.realpath(root)):
        way = "leads back to itself" if end.is_symlink() else f"leads out of {str(root)!r}"
        raise ValueError(f"run {name!r} is a link that {way}; remove it.")
    return folder


@contextlib.contextmanager
def claimed(options: RunOptions) -> Iterator[pathlib.Path]:
    """The folder that a run writes to, its own from here to the end of the block.

    It is made, locked and marked as a run's before anything else is done. Without a name it gets
    one that no other run has. If the block ends before a file was written, all is as it was. Of
    several processes the first one claims it, and all of them get it or its refusal.

    Raises:
      ValueError: if the folder cannot be used: another run is in it, by its process; it holds
        files, and may not be overwritten or is no run's; it is a file; it is named twice or "".
      ImportError: if the report could not be drawn at the end: `pip install "wdjax[cli]"`.
      WriteError: if nothing can be written there.
    """
    if jax.process_count() == 1:
        with _claimed(options) as folder:
            yield folder
        return
    with contextlib.ExitStack() as held:
        told, refusal = {}, None
        if is_first_process():
            try:
                told = {"folder": str(held.enter_context(_claimed(options)))}
            except (ValueError, OSError, ImportError) as error:
                told, refusal = {"refusal": str(error)}, error
        told = facts_of_first_process(told)
        if "refusal" in told:
            raise refusal or ValueError(told["refusal"])
        yield pathlib.Path(told["folder"])


@contextlib.contextmanager
def _claimed(options: RunOptions) -> Iterator[pathlib.Path]:
    kind = type(options).__name__.removesuffix("Options").lower()
    if kind != "compare":  # Whose table is printed; the others end with a page.
        check_installed("matplotlib", what=f"the report of `wdjax {kind}`")
    resume = getattr(options, "resume", None)
    folder = _chosen(options, kind)
    if resume is None and folder is not None:
        _check_ours(folder, options.overwrite)
    with contextlib.ExitStack() as undone:
        if folder is None:
            folder = _made_for(kind, undone)
        else:
            _make(folder, undone)
        undone.enter_context(locked(folder))
        if resume is None:
            _check_ours(folder, options.overwrite)
            if not options.overwrite and not _is_empty(folder):
                raise _not_empty(folder)
        remove_partial(folder)
        if _is_empty(folder):
            mark(folder)
        try:
            yield folder
        finally:
            if _is_empty(folder):
                (folder / MARKER).unlink(missing_ok=True)
                remove_partial(folder)


def _chosen(options: RunOptions, kind: str) -> pathlib.Path | None:
    """The folder that was asked for; None if any new one will do."""
    if options.out is not None and options.name is not None:
        raise ValueError("`out` and `name` both say where to write; give one.")
    if options.name is not None:
        return run_folder("runs", options.name)
    if options.out is None:
        return None
    if not options.out.strip() or "\0" in options.out:
        name = "out" if getattr(options, "resume", None) is None else "resume"
        raise ValueError(
            f"`{name}` must name a folder, got {options.out!r}; leave it out for a new one."
        )
    return pathlib.Path(options.out)


def _check_ours(folder: pathlib.Path, overwrite: bool) -> None:
    """Nothing is locked, and nothing cleared, in a folder that holds what is no run's.

    Raises:
      ValueError: if it does, or is no folder.
    """
    try:
        if not os.path.lexists(folder):
            return
        if not folder.is_dir():
            raise ValueError(f"`out` {str(folder)!r} is a file; give a folder.")
        if _is_empty(folder) or is_run_folder(folder):
            return
    except OSError as error:
        raise ValueError(
            f"`out` {str(folder)!r} cannot be used ({error.strerror}); choose another folder."
        ) from error
    if not overwrite:
        raise _not_empty(folder)
    raise ValueError(
        f"`out` {str(folder)!r} holds files and no run of wdjax, so --overwrite clears nothing "
        "there; choose another folder, or empty it yourself."
    )


def _not_empty(folder: pathlib.Path) -> ValueError:
    return ValueError(
        f"`out` {str(folder)!r} exists and is not empty; choose another or pass --overwrite."
    )


def _is_empty(folder: pathlib.Path) -> bool:
    """Whether nothing is in it but what a claim leaves that was killed."""
    return all(
        name in (LOCK, MARKER) or name.startswith((EXCLUSIVE, PARTIAL))
        for name in os.listdir(folder)
    )


def _make(folder: pathlib.Path, undone: contextlib.ExitStack, *, anew: bool = False) -> None:
    """Makes a folder and those above it; at the end those of them go again that are empty.

    Raises:
      FileExistsError: if it must be made `anew` and is there.
      ValueError: if it cannot be made.
    """
    path = folder
    try:
        missing = [p for p in (folder, *folder.parents) if not p.exists()]
        for path in reversed(missing):
            path.mkdir(exist_ok=not anew or path != folder)
            undone.callback(_remove_empty, path)
        if anew and not missing:
            raise FileExistsError
    except FileExistsError:
        if anew:
            raise
        raise ValueError(f"`out` {str(folder)!r} leads through a file; give a folder.") from None
    except OSError as error:
        raise ValueError(
            f"`out` {str(folder)!r} cannot be written: {error.strerror} in {str(path.parent)!r}; "
            "choose another folder."
        ) from error


def _remove_empty(folder: pathlib.Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _made_for(kind: str, undone: contextlib.ExitStack) -> pathlib.Path:
    """A new folder under runs/, named by the time; runs that begin in one second are numbered."""
    name = f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in itertools.count(1):
        folder = run_folder("runs", name if number == 1 else f"{name}-{number}")
        try:
            _make(folder, undone, anew=True)
            return folder
        except FileExistsError:
            continue
    raise AssertionError


def mark(folder: pathlib.Path) -> None:
    """Writes the marker that says the folder is a run's."""
    write_whole(folder / MARKER, json_bytes(sealed(_ABOUT)) + b"\n")


def is_run_folder(folder: pathlib.Path) -> bool:
    """Whether a job of wdjax wrote it: by its marker, or in earlier versions by what it holds."""
    with contextlib.suppress(DamagedFileError):  # Then it is no marker of ours.
        if unsealed(_json(folder / MARKER), MARKER) == _ABOUT:
            return True
    results, config = _json(folder / "results.json"), _json(folder / "config.json")
    told = results.get("config")
    return (
        {"schema", "kind", "status", "versions"} <= results.keys() and _is_config(told)
    ) or _is_config(config)


def _is_config(told: Any) -> bool:
    return isinstance(told, dict) and {"data", "model", "optimizer", "decay"} <= told.keys()


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def clear_earlier(folder: pathlib.Path) -> None:
    """Takes out what an earlier run left, under --overwrite, just before the first new file.

    Else its params would lie beside another run's results, or its checkpoints be resumed from.
    Only files of the names that jobs write are taken out; all else in the folder stays.
    """
    mark(folder)
    for path in list(folder.iterdir()):
        if path.is_file() and (_FILES.fullmatch(path.name) or _is_prediction(path)):
            path.unlink()
            path.with_name(path.name + DIGEST).unlink(missing_ok=True)
    for name, written in (("checkpoints", _CHECKPOINTS), ("tensorboard", _EVENTS)):
        inner = folder / name
        if not inner.is_dir() or inner.is_symlink():
            continue
        for path in list(inner.iterdir()):
            if not written.fullmatch(path.name) or path.is_symlink():
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        _remove_empty(inner)


def _is_prediction(path: pathlib.Path) -> bool:
    """Whether `wdjax predict` wrote it: its digest lies beside it, or its header says so."""
    if not _PREDICTIONS.fullmatch(path.name):
        return False
    if path.with_name(path.name + DIGEST).is_file():
        return True
    with open(path, "rb") as file:
        return _PREDICTIONS_BEGIN.match(file.read(20)) is not None
