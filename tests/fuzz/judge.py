"""Runs a case in a folder of its own, and says what about its end is wrong."""

import hashlib
import os
import pathlib
import re
import shutil
import stat
from collections.abc import Callable
from typing import Any, NamedTuple

from .cases import Case, prepare
from .command import LIMIT, Done, run_main

DOCUMENTED = {0, 1, 2, 130, 143}
CONTROL = re.compile(r"[^\n\x20-\x7e\x80-\U0010ffff]|[\x80-\x9f\u202a-\u202e\u2066-\u2069]")
NOISE = re.compile(
    r"^.*(encountered in|empty slice|Degrees of freedom|"
    r"(Deprecation|Future|Resource|Complex)Warning).*$",
    re.MULTILINE,
)
"""What NumPy and Python say of code, not of what was asked."""
HALF_WRITTEN = re.compile(r"^\.wdjax-|\.tmp$|\.tmp\.|\.orbax-checkpoint-tmp")


class Result(NamedTuple):
    """A case, how it ended, and what is wrong with that: nothing, or a line each."""

    case: Case
    done: Done
    how: str
    """What was damaged, and how."""
    faults: tuple[str, ...]

    @property
    def outcome(self) -> str:
        """refused, ran or failed."""
        return "failed" if self.faults else "refused" if self.done.status in (1, 2) else "ran"

    def facts(self) -> dict[str, Any]:
        """What a file says of it."""
        return {
            "seed": self.case.seed,
            "case": str(self.case),
            "damage": self.how,
            "seconds": self.done.seconds,
            "outcome": self.outcome,
            "faults": list(self.faults),
            "told": self.done.told[-2000:],
        }


def run_case(
    case: Case,
    made: pathlib.Path,
    root: pathlib.Path,
    run: Callable[..., Done] = run_main,
    edit: Callable[[pathlib.Path], object] = lambda folder: None,
) -> Result:
    """Runs a case in a new folder below `root`, which is gone after.

    Args:
      case: what to run.
      made: where `world.build` made what cases begin with.
      root: where the folder is made.
      run: `(words, folder, *, stop_at, environment) -> Done`.
      edit: what is done to the folder before.
    """
    home = root / f"case-{case.seed}"
    folder = home / "a" / "b" / "work"
    try:
        how = prepare(case, made, folder)
        edit(folder)
        before = _listing(folder)
        surroundings = {"HOME": str(home), "XDG_CACHE_HOME": str(root / "cache")}
        surroundings |= dict(case.environment)
        stop_at = None if case.to_the_end else 1
        done = run(list(case.words), folder, stop_at=stop_at, environment=surroundings)
        faults = faults_of(case, done, before, _listing(folder))
    finally:
        shutil.rmtree(home, onerror=_make_removable)
    return Result(case, done, how, tuple(faults))


def _make_removable(function, path, error) -> None:
    os.chmod(path, 0o700)
    function(path)


def _listing(folder: pathlib.Path) -> dict[str, str]:
    """Every file below a folder, with what it holds."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(place, name)
            mode = os.lstat(path).st_mode
            content = ""
            if stat.S_ISREG(mode):
                with open(path, "rb") as file:
                    content = hashlib.md5(file.read()).hexdigest()
            found[os.path.relpath(path, folder)] = f"{stat.S_IFMT(mode):o} {content}"
    return found


def faults_of(case: Case, done: Done, before: dict[str, str], after: dict[str, str]) -> list[str]:
    """What is wrong with the end of a case: a line each."""
    if isinstance(done.status, str):
        return [f"an exception came out: {done.status.strip().splitlines()[-1]}"]
    faults = []
    if done.status not in DOCUMENTED:
        faults.append(f"exit status {done.status}")
    if done.seconds > LIMIT:
        faults.append(f"it took {done.seconds:.0f} s")
    if "Traceback (most recent call last)" in done.told and "--traceback" not in case.words:
        faults.append("a traceback")
    for name, text in (("error", done.told), ("output", done.printed)):
        control = CONTROL.search(text)
        if control:
            around = text[max(0, control.start() - 30) : control.end() + 10]
            faults.append(f"a control character on standard {name}: {around!r}")
    warned = NOISE.search(done.told)
    if warned:
        faults.append(f"a bare warning: {warned.group()}")
    left = sorted(name for name in after if HALF_WRITTEN.search(os.path.basename(name)))
    if left:
        faults.append(f"half written: {', '.join(left)}")
    warned_strictly = "--strict" in case.words and "Warning: " in done.printed
    if done.status == 2 or (done.status == 1 and not warned_strictly):
        faults += _of_refusal(case, done)
    if done.status == 2:
        changed = sorted({name for name, _ in before.items() ^ after.items()})
        if changed and not done.accepted:
            faults.append(f"a refusal wrote {', '.join(changed[:5])}")
    return faults


def _of_refusal(case: Case, done: Done) -> list[str]:
    """One sentence, the last line, that names what was bad."""
    lines = done.told.splitlines()
    said = [line for line in lines if line.startswith("wdjax: ")]
    if len(said) != 1 or lines[-1] != said[0]:
        return [f"not one sentence at the end of standard error: {done.told[-300:]!r}"]
    if case.culprits and not any(is_named(culprit, said[0]) for culprit in case.culprits):
        return [f"none of {case.culprits[:8]} is named: {said[0]}"]
    return []


def is_named(culprit: str, sentence: str) -> bool:
    """Whether a sentence holds a word, as it is, as `repr` shows it, or the beginning of it."""
    if not culprit.strip("-"):
        return "''" in sentence or repr(culprit) in sentence
    bare = culprit.strip("-")
    forms = {culprit, repr(culprit)[1:-1], bare, bare.replace("-", "_"), bare.replace("_", "-")}
    forms |= {culprit.encode("unicode_escape").decode(), " ".join(culprit.split()), bare.lower()}
    forms |= {form[:24] for form in forms if len(form) > 24}
    try:
        forms |= {f"{float(culprit):g}", str(float(culprit)), str(int(float(culprit)))}
    except (ValueError, OverflowError):
        pass
    return any(form and form in sentence for form in forms)
