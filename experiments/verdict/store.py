"""What is done of the settings, and kept: a run that was stopped goes on from there."""

import ast
import functools
import hashlib
import json
import pathlib
import zlib

import jax
import numpy as np

from experiments.verdict import digits, simulate
from wdjax.selection import choice, evidence

KEPT = pathlib.Path("runs/experiments/verdict/settings")
"""Settings that are done, by what they were made by: a run that was stopped goes on from there."""

JUDGES = {"sets": simulate.judge_set, "test parts": simulate.judge_test}


def rates(part, setting, searches):
    """`{name: share of the searches}` of one setting."""
    rng = np.random.Generator(np.random.SFC64(zlib.crc32(f"{part} {setting.name}".encode())))
    judge, size = JUDGES.get(part, simulate.judge), simulate.batch_size(setting)
    totals, left = {}, searches
    while left:
        num = min(size, left)
        for name, value in judge(rng, num, setting).items():
            totals[name] = totals.get(name, 0.0) + value
        left -= num
    return {name: value / searches for name, value in totals.items()}


def how_many(part, setting, c):
    if part == "test parts":
        return c.test_parts
    return (
        c.searches
        if setting.rows < 14
        else c.searches_of_14
        if setting.rows < 40
        else (c.searches_of_40)
    )


@functools.cache
def code_of(*modules):
    """What modules compute, as text: comments, layout and docstrings do not count."""
    files = [path for module in modules for path in files_of(module)]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    for node in (node for tree in trees for node in ast.walk(tree) if hasattr(node, "body")):
        if isinstance(node.body, list):
            node.body = [one for one in node.body if not _is_text(one)]
    return " ".join(map(ast.unparse, trees))


def files_of(module):
    """A module's file, or all those of a package."""
    path = pathlib.Path(module.__file__)
    return sorted(path.parent.glob("*.py")) if path.name == "__init__.py" else [path]


def _is_text(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def named(words):
    return hashlib.sha256(words.encode()).hexdigest()[:20]


def kept(part, setting, c):
    """The rates of one setting, from the kept files if it is there."""
    num = how_many(part, setting, c)
    path = KEPT / f"{named(f'{code_of(evidence, simulate)} {part} {setting} {num}')}.json"
    if not path.exists():
        found = {"name": setting.name, "searches": num, "rates": rates(part, setting, num)}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found), encoding="utf-8")
        print(f"{part}: {setting.name}", flush=True)
    return json.loads(path.read_text(encoding="utf-8")) | {"setting": setting._asdict()}


def kept_claims(c):
    """The claims on digits, draw by draw, from the kept files where they are there."""
    code = named(code_of(evidence, choice, digits))
    found = []
    for draw in range(c.digits):
        path = KEPT.parent / "digits" / f"{code}-{draw}.json"
        if not path.exists():
            one = digits.claims(digits.search, [jax.random.key(draw)])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({k: v.item() for k, v in one._asdict().items()}))
            print(f"digits: {draw + 1} of {c.digits}, {one.seconds[0]:.0f} s", flush=True)
        found.append(json.loads(path.read_text(encoding="utf-8")))
    return {name: [one[name] for one in found] for name in found[0]}
