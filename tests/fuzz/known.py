"""What ended badly once, each by its name: words, what is done to the files, what must be named."""

import csv
import io
import json
import pathlib
import shlex
import zipfile
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .cases import Case


class Known(NamedTuple):
    """One such case."""

    case: Case
    edit: Callable[[pathlib.Path], object]
    """What is done to the folder that it begins in."""


TRAIN = "train --strength 0.1 --batch-size 4 --optimizer sgd --data"
TEXT = "train --data stdlib --model rnn --strength 0"
LONG = "a" * 260


def _known() -> dict[str, Known]:
    found = {}

    def add(name, words, culprit, edit=lambda folder: None, **more):
        words = tuple(words) if isinstance(words, tuple) else tuple(shlex.split(words))
        culprits = (culprit,) if isinstance(culprit, str) else culprit
        case = Case(-1 - len(found), words[0] if words else "", "known", words, "", culprits, False)
        found[name] = Known(case._replace(**more), edit)

    _add_options(add)
    _add_arrays(add)
    _add_texts(add)
    _add_models(add)
    _add_folders(add)
    return found


def _add_options(add: Callable) -> None:
    for name in ("epochs", "seeds", "devices", "batch-size", "save-every"):
        words = f"{TRAIN} table.csv --{name} 99999999999".replace(
            "--batch-size 4 ", "" if name == "batch-size" else "--batch-size 4 "
        )
        add(f"--{name} beyond int32", words, name)
    add(
        "seeds of a selection beyond int32",
        "select --data table.csv --batch-size 4 --seeds 4294967296",
        "seeds",
    )
    add("folds beyond int32", "select --data table.csv --batch-size 4 --folds 4294967296", "folds")
    add("a digit that is no number", "audit --strength 0 --devices ²", "²")
    add("a slope of two dashes", f"{TRAIN} table.csv --example-slope=--", "--example-slope")
    add("a hang after 1e300 s", f"{TRAIN} table.csv --stream --hang-after 1e300", "hang")
    add("100000 devices", "select --data table.csv --batch-size 4 --devices 100000", "devices")
    add("a port of letters", f"{TRAIN} table.csv --stream --distributed 127.0.0.1:abc,1,0", "abc")
    add("a length of 0", f"{TEXT} --length 0", "length")
    add("a length of 1e12", f"{TEXT} --length 1000000000000", "length")
    add("an option twice", f"{TRAIN} table.csv --seed 1 --seed 2", "--seed")
    add("an empty folder name", ("train", "--strength", "0", "--out", "", "--overwrite"), "out")
    add("an empty run name", ("train", "--strength", "0", "--name", ""), "name")
    add(
        "pieces that do not divide a batch",
        f"{TRAIN} table.csv --stream --micro-batches 3",
        "micro_batches",
    )
    add("digits of 5000 places", f"{TRAIN} table.csv --epochs {'9' * 5000}", "--epochs")
    add("a strength of a full-width digit", "train --strength １e", "１e")
    add("a NUL in a path", ("report", "a\x00b"), "a\x00b")
    add("a half of a character in a path", ("report", "\udcff"), "\udcff")
    home = (("HOME", None), ("XDG_CACHE_HOME", None))
    add("no home", f"{TRAIN} table.csv --epochs 0", "epochs", environment=home)
    for words in ("report", "predict", "audit --run", "train --resume"):
        rest = " new.csv" if words == "predict" else ""
        add(f"{words} of a long name", f"{words} {LONG}{rest}", ("`run`", "`resume`"))
        add(f"{words} of a file", f"{words} table.csv{rest}", "table.csv")
        add(f"{words} of a link to itself", f"{words} loop{rest}", "loop")
    for end in (".csv", ".npz"):
        add(f"data of a long name{end}", f"{TRAIN} {LONG}{end}", "`data`")
        add(f"a folder for a file{end}", f"{TRAIN} folder{end}", f"folder{end}")
        add(f"new data in a folder{end}", f"predict trained folder{end}", f"folder{end}")
    add("a model of a long name", f"{TRAIN} table.csv --model {LONG}.py:f", "`model`")
    add("a model in a folder", f"{TRAIN} table.csv --model folder.py:f", "folder.py")
    add("results to a long name", f"{TRAIN} table.csv --out {LONG}", "`out`")
    add("results into a file", f"{TRAIN} table.csv --out file", "file")
    add("results below a file", f"{TRAIN} table.csv --out file/x", "file/x")
    add("predictions to a folder", "predict trained new.csv --out folder", "folder")
    add("predictions to a long name", f"predict trained new.csv --out {LONG}", "`out`")


def _add_arrays(add: Callable) -> None:
    x, y = np.ones((60, 3)), np.arange(60) % 2
    arrays = {
        "targets of no columns": (x, np.zeros((60, 0))),
        "scalar inputs": (np.float64(3), y),
        "scalar targets": (x, np.float64(3)),
        "inputs of no columns": (np.zeros((60, 0)), y),
        "inputs of words": (np.array([["a"] * 3] * 60), y),
        "complex inputs": (x * 1j, y),
        "targets beyond int32": (x, y + 2**40),
        "dates": (x.astype("M8[s]"), y),
        "objects": (np.array([[{}] * 3] * 60), y),
        "words of control characters": (x, np.array(["\x1b[31mred", "b"] * 30)),
    }
    for name, (inputs, targets) in arrays.items():
        save = lambda folder, i=inputs, t=targets: np.savez(
            folder / "odd.npz", allow_pickle=True, inputs=i, targets=t
        )
        add(name, f"{TRAIN} odd.npz", ("odd", "`inputs`", "`targets`"), save)
    for file, words in (
        ("table.npz", f"{TRAIN} table.npz"),
        ("trained/params.npz", "predict trained new.csv"),
    ):
        for name, edit in DAMAGE.items():
            add(
                f"{file} {name}",
                words,
                file.partition("/")[0],
                lambda folder, e=edit, f=file: e(folder / f),
            )


def _huge(path: pathlib.Path) -> None:
    """A header that promises 10^13 numbers."""
    with np.load(path) as archive:
        arrays = dict(archive)
    head = (
        "{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000000,), }".ljust(117) + "\n"
    )
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            first = name == min(arrays)
            content = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode()
            archive.writestr(f"{name}.npy", content if first else buffer.getvalue())


def _as_npy(path: pathlib.Path) -> None:
    with open(path, "wb") as file:
        np.save(file, np.ones((3, 3)))


def _flipped(path: pathlib.Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 16
    path.write_bytes(content)


DAMAGE = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:700]),
    "flipped": _flipped,
    "empty": lambda path: path.write_bytes(b""),
    "that is .npy": _as_npy,
    "of a huge shape": _huge,
    "that is a folder": lambda path: (path.unlink(), path.mkdir()),
    "gone": lambda path: path.unlink(),
}


def _add_texts(add: Callable) -> None:
    def table(cells: list[list[str]]) -> Callable:
        def write(folder):
            with open(folder / "odd.csv", "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(cells)

        return write

    rows = [[str(i), str(i * 2), "ab"[i % 2]] for i in range(20)]
    escape = "\x1b[31mred"
    texts = {
        "a cell of 140000 characters": [["x", "y", "label"], ["1", "2", "a" * 140_000], *rows],
        "a header of control characters": [["x", escape, "label"], ["1", "a", "a"], *rows],
        "a cell of control characters": [["x", "y", "label"], ["1", escape, "a"], *rows],
        "a header and nothing": [["x", "y", "label"]],
        "one class": [["x", "y", "label"], *([*row[:2], "a"] for row in rows)],
    }
    for name, cells in texts.items():
        add(name, f"{TRAIN} odd.csv", ("odd", "`targets`"), table(cells))
    named = [["x", "y", "label"], *([*row[:2], escape + row[2]] for row in rows)]
    add("classes of control characters", f"{TRAIN} odd.csv", (), table(named))
    rename = lambda folder: (folder / "table.csv").rename(folder / f"{escape}.csv")
    add("a file name of control characters", (*TRAIN.split(), f"{escape}.csv"), (), rename)
    latin = lambda folder: (folder / "odd.csv").write_bytes("x,label\n1,é\n2,b\n".encode("cp1252"))
    add("another encoding", f"{TRAIN} odd.csv", "odd.csv", latin)


def _add_models(add: Callable) -> None:
    models = {
        "raises": "raise ValueError('no such size')",
        "raises a KeyError": "raise KeyError('x')",
        "leaves": "raise SystemExit(3)",
        "returns nothing": "pass",
        "returns a number": "return 3",
        "cannot be applied": "return wdjax.Model(lambda k, x: ({}, {}), lambda p, *a, **k: 1 / 0)",
        "gives no outputs": "return wdjax.Model(lambda k, x: ({'w': x}, {}), lambda *a, **k: None)",
        "has no params": "return wdjax.Model(lambda k, x: None, lambda p, s, x, **k: (x, s))",
        "calls itself": "return make_model(num_outputs)",
    }
    for name, body in models.items():
        text = f"import wdjax\ndef make_model(num_outputs):\n    {body}\n"
        edit = lambda folder, t=text: (folder / "mine.py").write_text(t)
        for job in (f"{TRAIN} table.csv", "audit --data table.csv --batch-size 4 --strength 0"):
            add(
                f"{job.split()[0]}: a model that {name}",
                f"{job} --model mine.py:make_model",
                "mine.py",
                edit,
            )
    bare = lambda folder: (folder / "mine.py").write_text("def make_model(): pass\n")
    add(
        "a model without argument", f"{TRAIN} table.csv --model mine.py:make_model", "mine.py", bare
    )
    ends = lambda folder: (folder / "mine.py").write_text("import sys\nsys.exit('bye')\n")
    add("a model file that ends", f"{TRAIN} table.csv --model mine.py:make_model", "mine.py", ends)


def _add_folders(add: Callable) -> None:
    def changed(path: str, change: Callable[[dict], object]) -> Callable:
        """One file of JSON without its digest, as versions before wrote it, and changed."""

        def edit(folder):
            facts = json.loads((folder / path).read_text())
            facts.pop("sha256", None)
            facts = change(facts) or facts
            (folder / path).write_text(json.dumps(facts))

        return edit

    jobs = {
        "report": ("report trained", "trained/results.json"),
        "predict": ("predict trained new.csv", "trained/results.json"),
        "audit": ("audit --run trained", "trained/results.json"),
        "resume": ("train --resume streamed", "streamed/config.json"),
    }
    for job, (words, path) in jobs.items():
        name = path.partition("/")[0]
        changes = {
            "no config": lambda facts: facts.pop("config", None) and None,
            "no data": lambda facts: facts.pop("data", None) and None,
            "no refit": lambda facts: facts.pop("refit", None) and None,
            "a config of a list": lambda facts: facts.update(config=[1], model=[1], data=[1]),
            "numbers for words": lambda facts: facts.update(status=3, kind=3, data=3, headline=3),
            "nothing but a kind": lambda facts: {"kind": "train", "status": "complete"},
            "null": lambda facts: {name: None for name in facts},
        }
        for what, change in changes.items():
            add(f"{job}: {path} of {what}", words, (name, "config"), changed(path, change))
        deep = lambda folder, p=path: (folder / p).write_text("[" * 100_000 + "]" * 100_000)
        add(f"{job}: {path} of deep nesting", words, name, deep)
        folder_for_file = lambda folder, p=path: ((folder / p).unlink(), (folder / p).mkdir())
        add(f"{job}: {path} is a folder", words, name, folder_for_file)
    comparison = changed("trained/results.json", lambda facts: facts.update(kind="compare"))
    add("an audit of a comparison", "audit --run trained", "trained", comparison)
    manifest = "checkpoints/step_0000000003/checkpoint.json"
    for what, text in (("empty", ""), ("a list", "[]"), ("deep", "[" * 100_000), ("{}", "{}")):
        edit = lambda folder, t=text: (folder / "streamed" / manifest).write_text(t)
        add(f"a manifest that is {what}", "train --resume streamed", "streamed", edit)

    def renamed(folder):
        (folder / "streamed/checkpoints/step_0000000003").rename(
            folder / "streamed/checkpoints/step_0000000036"
        )

    add("a checkpoint renamed", "train --resume streamed", "streamed", renamed)


KNOWN = _known()
