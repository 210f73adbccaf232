"""The commands and options that there are, as the parser knows them, and odd values for them."""

import argparse
import dataclasses
import functools
import random
from typing import NamedTuple

from wdjax import cli, jobs

HUGE = tuple(str(n) for n in (2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**30))
NUMBERS = (
    *("-1", "0", "-0", "+1", "1.5", "-2.5", "1e3", "1e-3", "1e-320", "1e308", "1e400", "-1e400"),
    *("nan", "NaN", "-nan", "inf", "-inf", "Infinity", "0x10", "1_0", "1e", "1.", ".5", "1,5"),
    *("²", "٣", "１", "½", "9" * 5000, "1" + "0" * 400, "100000", "1000000000", "1e300"),
    *(*HUGE, *(f"-{n}" for n in HUGE)),
)
TEXTS = (
    *("", " ", "\t", "-", "--", "---", "=", ",", ",,", ":", "::", ":x", "x:", ";", "*", "?", "%s"),
    *("None", "True", "null", "{}", "[1]", "a b", "a,b", "a,a", "'", '"', "\\", "$HOME", "`x`"),
    *("é", "e\u0301", "日本", "\u202egnp", "\ufeff", "\udcff", "x\x1b[31mred", "\x1b]0;title\x07"),
    *("new\nline", "\r", "\x00", "a\x00b", "\x7f", "\x85", "a" * 300, "a" * 5000, "sigmoid:"),
    *("sigmoid:nothing", "*=", "*=nan", "=1", "*/kernel=1", "*=1,*=1", "adam", "loss", "tfds:"),
    *("tfds:nothing", "tfds:../..", "tfds:a/b/c", "tfds:mnist@", "tfds:mnist@x", "auto", "a:b,c,d"),
    *("127.0.0.1:abc,1,0", "127.0.0.1:99999,1,0", "127.0.0.1:1,0,0", "127.0.0.1:1,1,5", ":1,1,0"),
)
PATHS = (
    *(".", "..", "/", "~", "//", "./.", "/dev/null", "/dev/full", "/dev/null/x", "/nowhere/x"),
    *("missing", "missing.csv", "missing.npz", "missing/new", "missing.py:f", "mine.py:nothing"),
    *(
        "mine.py:",
        "mine.py:number",
        "mine.py:make_model",
        "mine.py:loss",
        "mine.py:decay",
        "mine.py",
    ),
    *("file", "file.csv", "file.npz", "file.py:f", "file/x", "folder", "folder.csv", "folder.npz"),
    *("folder.py:f", "full", "full/new", "loop", "loop.csv", "loop/x", "pipe.csv", "pipe.npz"),
    *("a/" * 2200, "a" * 260 + ".csv", "a" * 260 + ".npz", "a" * 260 + ".py:f", "a\x00b.csv"),
    *("x\x1b[31m.csv", "new\nline.npz", "\udcff.csv", "table.csv", "table.npz", "images.npz"),
)
"""Files and folders of `world.ODDITIES` among them."""

NETWORK = frozenset({"download"})
"""Options that fetch from the network: a test does not."""


class Option(NamedTuple):
    """One thing that a command can be told."""

    name: str
    """As it is written: `--batch-size`, or the metavar of a word without a name."""
    dest: str
    values: str
    """none, one or several."""
    positional: bool
    is_number: bool
    choices: tuple[str, ...]


@functools.cache
def options() -> dict[str, tuple[Option, ...]]:
    """What each command can be told, by its name, as the parser has it."""
    (commands,) = cli._parser(jobs, frozenset({"streamed", "of_table"}))._subparsers._group_actions
    found = {}
    for name, parser in commands.choices.items():
        fields = getattr(jobs, f"{name.capitalize()}Options", None)
        fields = dataclasses.fields(fields) if fields else ()
        choices = {field.name: field.metadata.get("choices", ()) for field in fields}
        found[name] = tuple(
            _option(action, choices.get(action.dest, ()))
            for action in parser._actions
            if action.dest not in NETWORK | {"help"}
        )
    return found


def _option(action: argparse.Action, choices: tuple[str, ...]) -> Option:
    values = "none" if action.nargs == 0 else "several" if action.nargs in ("+", "*") else "one"
    positional = not action.option_strings
    name = str(action.metavar or action.dest) if positional else action.option_strings[-1]
    is_number = action.type not in (None, str)
    return Option(name, action.dest, values, positional, is_number, tuple(choices))


def odd_value(rng: random.Random, option: Option) -> str:
    """A value that is likely to be refused, of any kind: a number, a text, a path."""
    own = NUMBERS if option.is_number else (*TEXTS, *PATHS)
    return rng.choice(own if rng.random() < 0.7 else (*NUMBERS, *TEXTS, *PATHS))


def plain_value(rng: random.Random, option: Option) -> str:
    """A value that is likely to be taken."""
    if option.choices:
        return rng.choice(option.choices)
    if option.is_number:
        return rng.choice(("0", "1", "2", "3", "0.1", "0.5", "1e-3", "4"))
    return rng.choice((*PATHS, "digits", "iris", "mlp", "cnn", "accuracy", "x", "label", "all"))
