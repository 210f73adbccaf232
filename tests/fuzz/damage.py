"""Damage to files: flipped, cut, emptied, swapped, replaced, and of each format its own."""

import csv
import io
import json
import os
import pathlib
import random
import shutil
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

CONTROLS = ("\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "a\x00b", "\x7f", "\r\n", "\u202egnp")
ODD = (None, True, -1, 0, 1.5, 10**30, float("nan"), "", "x", [], {}, [[]], [1, "a"], {"": 0})
CELLS = (
    *("", " ", "nan", "inf", "-inf", "1e400", "²", "٣", "1,2", '"', '""', "'", "a", "-1", "0.5"),
    *("=1+1", "@x", "1_0", "0x1", "x" * 140_000, "9" * 400, "é", "\ufeff1", *CONTROLS),
)


def damage(rng: random.Random, path: pathlib.Path) -> str:
    """Damages the file at `path` in one way; says in which."""
    own: dict[str, tuple[Callable, ...]] = {
        ".csv": (_cell, _cell, _header, _rows, _encoding),
        ".npz": (_array, _array, _shape_in_header, _members),
        ".json": (_json_value, _json_value, _json_key, _json_deep),
        ".jsonl": (_line,),
        ".py": (_source,) * 12,
    }
    common = (_flip, _flip, _cut, _empty, _append, _foreign, _gone, _as_folder, _as_link)
    ways = (*common, *own.get(path.suffix, ()), *own.get(path.suffix, ()))
    way = rng.choice(ways)
    way(rng, path)
    return way.__name__.strip("_")


def _flip(rng: random.Random, path: pathlib.Path) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def _cut(rng: random.Random, path: pathlib.Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * rng.random())])


def _empty(rng: random.Random, path: pathlib.Path) -> None:
    path.write_bytes(b"")


def _append(rng: random.Random, path: pathlib.Path) -> None:
    more = rng.choice((b"\x00" * 100, b"words\n", rng.randbytes(200), path.read_bytes()))
    path.write_bytes(path.read_bytes() + more)


def _foreign(rng: random.Random, path: pathlib.Path) -> None:
    """The content of another kind of file."""
    npy = io.BytesIO()
    np.save(npy, np.ones((3, 2)))
    others = (npy.getvalue(), rng.randbytes(300), b"PK\x05\x06" + b"\x00" * 18, b"{}", b"[]", b"\n")
    path.write_bytes(rng.choice((*others, b"null", b"\xff\xfe", b"words, words\n")))


def _gone(rng: random.Random, path: pathlib.Path) -> None:
    path.unlink()


def _as_folder(rng: random.Random, path: pathlib.Path) -> None:
    path.unlink()
    path.mkdir()


def _as_link(rng: random.Random, path: pathlib.Path) -> None:
    path.unlink()
    path.symlink_to(rng.choice((path.name, "nowhere", "/dev/null", ".")))


def _cell(rng: random.Random, path: pathlib.Path) -> None:
    rows = list(csv.reader(path.read_text().splitlines()))
    row = rng.randrange(len(rows))
    rows[row][rng.randrange(len(rows[row]))] = rng.choice(CELLS)
    _write_csv(path, rows)


def _header(rng: random.Random, path: pathlib.Path) -> None:
    rows = list(csv.reader(path.read_text().splitlines()))
    change = rng.randrange(4)
    if change == 0:
        rows[0][0] = rows[0][-1]
    elif change == 1:
        rows.pop(0)
    elif change == 2:
        rows[0] = [rng.choice(CELLS) for _ in rows[0]]
    else:
        rows[0].append("more")
    _write_csv(path, rows)


def _rows(rng: random.Random, path: pathlib.Path) -> None:
    rows = list(csv.reader(path.read_text().splitlines()))
    change = rng.randrange(6)
    if change == 0:
        rows = rows[: rng.randrange(4)]
    elif change == 1:
        rows[rng.randrange(len(rows))].pop()
    elif change == 2:
        rows[rng.randrange(len(rows))].append("1")
    elif change == 3:
        rows = [row[: rng.randrange(2)] for row in rows]
    elif change == 4:
        rows = [[*row[:-1], "a"] for row in rows]
    else:
        rows[rng.randrange(1, len(rows))] = [""] * len(rows[0])
    _write_csv(path, rows)


def _write_csv(path: pathlib.Path, rows: list[list[str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    path.write_bytes(text.getvalue().encode("utf-8", "surrogateescape"))


def _encoding(rng: random.Random, path: pathlib.Path) -> None:
    text = path.read_text()
    ways = ("utf-16", "utf-32", "utf-8-sig", "cp037")
    content = rng.choice(
        (*(text.encode(way) for way in ways), text.replace("x", "é").encode("cp1252"))
    )
    path.write_bytes(content if rng.random() < 0.7 else text.replace("\n", "\r").encode())


def _arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


def _array(rng: random.Random, path: pathlib.Path) -> None:
    """One array of another dtype, shape or content."""
    arrays = _arrays(path)
    name = rng.choice(sorted(arrays))
    old = arrays[name]
    rows = len(old) if old.ndim else 1
    numbers = np.resize(old, (rows, *old.shape[1:])).astype(np.float64)
    holes = numbers.copy()
    holes.flat[: 1 if holes.size else 0] = rng.choice((np.nan, np.inf, -np.inf, 1e300, -1.0))
    bounded = np.nan_to_num(numbers).clip(-100, 100)
    new = rng.choice(
        (
            *(old[..., None], old[None], old[:0], old[:1], old[: rows // 2], old.reshape(-1)),
            *(np.float64(3), np.int64(3), np.zeros((rows, 0)), np.zeros((0, 3)), np.zeros(())),
            *(np.zeros((rows, 1, 1, 1, 1, 1)), np.zeros((rows, 2, 2)), holes, bounded.astype(int)),
            *(bounded.astype(np.int8), bounded > 0, numbers.astype(complex), numbers.astype(str)),
            *(numbers.astype(np.float16), numbers.astype(np.longdouble), numbers.astype(">f8")),
            *(numbers.astype("S3"), np.array(["2020-01-01"] * rows, "M8[D]"), -bounded),
            *(np.array([{}] * rows), np.array([None] * rows), np.zeros(rows, [("a", "f4")])),
            *(np.full(rows, 2**62), np.full(rows, 2**64 - 1, np.uint64), np.full(rows, -(2**63))),
            *(np.array(["\x1b[31m"] * rows), np.array(["a", "b"] * rows)[:rows], np.zeros(rows)),
            np.array(["\ud800"] * rows),
        )
    )
    np.savez(path, allow_pickle=True, **arrays | {name: new})


def _shape_in_header(rng: random.Random, path: pathlib.Path) -> None:
    """A header that promises what is not there."""
    arrays = _arrays(path)
    name = rng.choice(sorted(arrays))
    promised = ((10**13,), (10**6, 10**6), (2**62, 4), (-1,), (10**30,), "x", (1.5,), (3,) * 70)
    kind = rng.choice(("<f8", "<f8", "|O", "<U99999999", "x", "|V0"))
    head = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {rng.choice(promised)!r}, }}"
    head = head.ljust(117) + "\n"
    content = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode() + b"\0" * 64
    with zipfile.ZipFile(path, "w") as archive:
        for other, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            archive.writestr(f"{other}.npy", content if other == name else buffer.getvalue())


def _members(rng: random.Random, path: pathlib.Path) -> None:
    arrays = _arrays(path)
    name = rng.choice(sorted(arrays))
    if rng.random() < 0.4:
        del arrays[name]
    elif rng.random() < 0.5:
        arrays["\x1b[31mx"] = arrays.pop(name)
    else:
        arrays["more"] = np.ones(3)
    np.savez(path, **arrays)


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every container with a key of it, all the way down."""
    found = []
    if isinstance(tree, dict | list):
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            found += [(tree, key), *_places(tree[key])]
    return found


def _edit(rng: random.Random, path: pathlib.Path, change: Callable[[Any, Any], None]) -> None:
    """Changes one place; half of the time without the digest, as versions before wrote files."""
    try:
        facts = json.loads(path.read_text())
    except ValueError:
        return
    if isinstance(facts, dict) and rng.random() < 0.5:
        facts.pop("sha256", None)
    places = _places(facts)
    # Half of the time near the root, where there are few.
    places = [place for place in places if place[0] is facts] if rng.random() < 0.5 else places
    if places:
        change(*rng.choice(places))
    path.write_text(json.dumps(facts))


def _json_value(rng: random.Random, path: pathlib.Path) -> None:
    value = rng.choice((*ODD, *CONTROLS))
    _edit(rng, path, lambda place, key: place.__setitem__(key, value))


def _json_key(rng: random.Random, path: pathlib.Path) -> None:
    _edit(rng, path, lambda place, key: place.pop(key))


def _json_deep(rng: random.Random, path: pathlib.Path) -> None:
    depth = rng.choice((50, 500, 100_000))
    text = path.read_text()
    deep = "[" * depth + "]" * depth
    path.write_text(deep if rng.random() < 0.3 else text.rstrip()[:-1] + f', "deep": {deep}}}')


def _line(rng: random.Random, path: pathlib.Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    if lines:
        place = rng.randrange(len(lines))
        lines[place] = rng.choice(
            (b"", b"{}\n", b"[\n", b"\xff\n", lines[0], lines[-1], b"{\n" * 3)
        )
    path.write_bytes(b"".join(lines))


SOURCES = (
    "def make_model(:\n",
    "raise ValueError('no')\n",
    "raise KeyError\n",
    "raise SystemExit(0)\n",
    "import sys\nsys.exit('bye')\n",
    "import nothing_of_this_name\n",
    "1 / 0\n",
    "def f():\n    f()\nf()\n",
    "class E(BaseException): pass\nraise E('x')\n",
    "raise ValueError('\\x1b[31mred')\n",
    "raise Exception\n",
    "\x00",
    "make_model = loss = decay = augment = measure = 3\n",
    "make_model = loss = decay = augment = measure = None\n",
    "make_model = loss = decay = augment = measure = print\n",
    "make_model = loss = decay = augment = measure = dict\n",
    "def make_model(): pass\nloss = decay = augment = measure = make_model\n",
    "def make_model(*a, **k): raise ValueError('no such size')\n"
    "loss = decay = augment = measure = make_model\n",
    "def make_model(*a, **k): raise KeyError('x')\nloss = decay = augment = measure = make_model\n",
    "def make_model(*a, **k): return None\nloss = decay = augment = measure = make_model\n",
    "def make_model(*a, **k): return 'x'\nloss = decay = augment = measure = make_model\n",
    "def make_model(*a, **k): return make_model()\nloss = decay = augment = measure = make_model\n",
    "def make_model(*a, **k): yield 1\nloss = decay = augment = measure = make_model\n",
    "def make_model(*a, **k): raise SystemExit(3)\nloss = decay = augment = measure = make_model\n",
    "def make_model(*a, **k): return float('nan')\nloss = decay = augment = measure = make_model\n",
    "def make_model(*a, **k): return a[0]\nloss = decay = augment = measure = make_model\n",
    "def make_model(*a, **k): return a[0] * 1j\nloss = decay = augment = measure = make_model\n",
    "def loss(outputs, targets): return (outputs > 0).sum()\n",
    "def loss(outputs, targets): return outputs[0, 0]\n",
    "def loss(outputs, targets): return outputs.sum(-1) * 1j\n",
    "def loss(outputs, targets): return float(outputs[0, 0])\n",
    "def loss(outputs, targets): return targets\n",
    "def loss(outputs, targets): return outputs @ outputs @ outputs\n",
    "def decay(strength, learning_rate, multiplier, peak): return -1.0\n",
    "def decay(strength, learning_rate, multiplier, peak): return 1 / 0\n",
    "def decay(strength, learning_rate, multiplier, peak): return [1, 2]\n",
    "def decay(strength, learning_rate, multiplier, peak): return int(strength) * 0.1 + 0.01\n",
    "def augment(key, image): return image\n",
    "def augment(key, image): return image[:1], 0.0\n",
    "def augment(key, image): return image.astype(int), 0\n",
    "def measure(outputs, targets): return outputs\n",
    "def measure(outputs, targets): return targets == 'a'\n",
)
MODELS = tuple(
    "import jax, jax.numpy as jnp, numpy as np\n"
    "from wdjax import Model, make_mlp\n"
    f"init = {init}\napply = {apply}\n"
    "def make_model(num_outputs, dropout=0.0):\n    return Model(init, apply)\n"
    for init, apply in (
        ("lambda k, x: ({'w': jnp.ones((3, 2))}, {})", "lambda *a, **k: None"),
        ("lambda k, x: ({'w': jnp.ones((3, 2))}, {})", "lambda p, s, x, *, key, train: x @ p['w']"),
        ("lambda k, x: ({'w': jnp.ones((3, 2))}, {})", "lambda p, s, x: (x @ p['w'], s)"),
        ("lambda k, x: ({'w': jnp.ones((9, 2))}, {})", "lambda p, s, x, **k: (x @ p['w'], s)"),
        ("lambda k, x: ({'w': jnp.ones((3, 7))}, {})", "lambda p, s, x, **k: (x @ p['w'], s)"),
        ("lambda k, x: ({'w': jnp.ones((3, 2))}, {})", "lambda p, s, x, **k: (p['w'].sum(), s)"),
        ("lambda k, x: ({'w': jnp.ones((3, 2))}, {})", "lambda p, s, x, **k: (x[0] @ p['w'], s)"),
        (
            "lambda k, x: ({'w': jnp.ones((3, 2))}, {})",
            "lambda p, s, x, **k: (x @ p['w'], {'n': 1})",
        ),
        ("lambda k, x: ({'w': jnp.ones((3, 2), int)}, {})", "lambda p, s, x, **k: (x @ p['w'], s)"),
        ("lambda k, x: ({'w': 'words'}, {})", "lambda p, s, x, **k: (x, s)"),
        ("lambda k, x: ({}, {})", "lambda p, s, x, **k: (x[:, :2], s)"),
        ("lambda k, x: None", "lambda p, s, x, **k: (x, s)"),
        ("lambda k, x: (None, None)", "lambda p, s, x, **k: (x[:, :2], s)"),
        (
            "lambda k, x: ({'a': {'b': jnp.ones(2)}, 'a/b': jnp.ones(2)}, {})",
            "lambda p, *a, **k: p",
        ),
        ("lambda k, x: ({'\\x1b[31mw': jnp.ones((3, 2))}, {})", "lambda p, s, x, **k: 1 / 0"),
        ("lambda: 0", "lambda: 0"),
        ("lambda k, x: 1 / 0", "lambda p, s, x, **k: (x, s)"),
        ("3", "4"),
        (
            "lambda k, x: ({'w': np.ones((3, 2)) * np.nan}, {})",
            "lambda p, s, x, **k: (x @ p['w'], s)",
        ),
        ("lambda k, x: ({'w': jnp.ones((3, 2))}, {})", "lambda p, s, x, **k: (int(x[0, 0]), s)"),
        (
            "lambda k, x: ({'w': jnp.ones((3, 2))}, {})",
            "lambda p, s, x, **k: (x @ p['w'] if x.sum() > 0 else x, s)",
        ),
    )
)


def _source(rng: random.Random, path: pathlib.Path) -> None:
    path.write_text(rng.choice((*SOURCES, *MODELS)))


def damage_folder(rng: random.Random, folder: pathlib.Path) -> str:
    """Damages one file below `folder`, or moves one; says which and how."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    near = [path for path in files if path.parent == folder]
    path = rng.choice(near if near and rng.random() < 0.6 else files)
    name = str(path.relative_to(folder))
    way = rng.random()
    steps = sorted((folder / "checkpoints").glob("step_*"))
    if steps and way < 0.1:
        target = steps[-1].with_name(rng.choice(("step_0000000036", "step_x", "step_1", "x")))
        steps[-1].rename(target)
        return f"{steps[-1].name} renamed to {target.name}"
    if steps and way < 0.15:
        for step in steps[rng.randrange(2) :]:
            shutil.rmtree(step)
        return "checkpoints removed"
    if way < 0.2:
        other = rng.choice(files)
        os.replace(other, path)
        return f"{other.relative_to(folder)} in place of {name}"
    if way < 0.25:
        below = path.parent if path.parent != folder else folder
        shutil.rmtree(below)
        if rng.random() < 0.5:
            below.write_text("a file\n")
        return f"{below.name} removed or a file"
    return f"{damage(rng, path)} of {name}"
