"""A case as a pure function of its seed: words, damage to files, and what a refusal must name."""

import pathlib
import random
import re
import shlex
import shutil
from typing import Any, NamedTuple

from . import damage, world
from .words import Option, odd_value, options, plain_value

TABLE = "--data table.csv --batch-size 4 --optimizer sgd"
GRID = f"{TABLE} --epochs 1 --folds 2 --seeds 1 --strengths 0 0.1 --out out"
SIZES = (
    f"{TABLE} --epochs 1 --folds 2 --seeds 1 --strengths 0.1 1 5 --rows 4 5 6 8 --to-rows 12 "
    "--learning-rates 0.1 --out out"
)
OWN = "--model mine.py:make_model --loss mine.py:loss --measure mine.py:measure"
IMAGES = "--data images.npz --batch-size 4 --epochs 1 --optimizer sgd"
TEXTS = "--data tfds:imdb_reviews --data-dir tfds --length 8 --batch-size 4 --epochs 1"
MNIST = "--data tfds:mnist --data-dir tfds --epochs 1 --batch-size 4"
BASES = tuple(
    (kind, tuple(shlex.split(words)))
    for kind, words in (
        ("select", f"select {GRID}"),
        ("select", f"select {GRID} {OWN} --decay mine.py:decay"),
        ("select", f"select {GRID} --example-weight sigmoid:loss --part-weight sigmoid:depth"),
        ("compare", f"compare {GRID} --vary optimizer --among sgd adam"),
        ("transfer", f"transfer {SIZES}"),
        ("transfer", f"transfer {SIZES} {OWN} --decay mine.py:decay --check"),
        ("train", f"train {TABLE} --strength 0.1 --epochs 1 --out out"),
        ("train", f"train {TABLE} --strength 0.1 --epochs 1 --out out {OWN}"),
        ("train", f"train {IMAGES} --strength 0.1 --augment mine.py:augment --out out"),
        (
            "train",
            "train --data numbers.csv --loss squared_error --strength 0.1 --epochs 1 "
            "--batch-size 4 --name here",
        ),
        (
            "train",
            "train --data numbers.npz --loss squared_error --strength 0 --batch-size 4 --out o",
        ),
        ("train", f"train {MNIST} --strength 0"),
        ("train", f"train --tune strength {TABLE} --epochs 4 --out out"),
        ("train --stream", f"train --stream {TABLE} --strength 0.1 --epochs 1 --out out"),
        ("train --stream", f"train --stream {IMAGES} --strength 0 --augment flip --out out"),
        ("train --stream", f"train --stream {OWN} --data table.npz --strength 0 --batch-size 4"),
        ("train --stream", f"train --stream {TEXTS} --strength 0 --out out"),
        ("train --stream", f"train --stream {MNIST} --strength 0 --out out"),
        ("train --resume", "train --resume streamed"),
        ("train --resume", "train --resume stopped"),
        ("audit", f"audit {TABLE} --strength 0.1"),
        ("audit", f"audit {TABLE} --strength 0.1 {OWN} --decay mine.py:decay"),
        ("audit --run", "audit --run trained"),
        ("audit --run", "audit --run selected"),
        ("audit --run", "audit --run compared"),
        ("convert", "convert 1e-4 keras_l2 torch_adamw --learning-rate 1e-3"),
        (
            "convert",
            "convert 1 keras_l2 torch_adamw --learning-rate 0.1 --schedule cosine --num-steps 9",
        ),
        ("predict", "predict trained new.csv --out predictions.csv"),
        ("predict", "predict selected table.csv"),
        ("predict", "predict trained table.npz --out predictions.csv"),
        ("report", "report trained"),
        ("report", "report selected"),
        ("report", "report streamed"),
    )
)
OWN_FILE = re.compile(r"([\w.-]+\.py):")


class Case(NamedTuple):
    """What one seed says."""

    seed: int
    command: str
    """The command, with the option that makes it another job."""
    kind: str
    """What is bad: an option, the words, a kind of file."""
    words: tuple[str, ...]
    damaged: str
    """The file or folder that is damaged, by `seed`; empty: none."""
    culprits: tuple[str, ...]
    """One of these stands in a refusal; none where anything may be at fault."""
    to_the_end: bool
    """Whether what is accepted may train to its end: it is known to be short."""
    environment: tuple[tuple[str, str | None], ...] = ()

    @property
    def needs(self) -> frozenset[str]:
        """The run folders that it begins with."""
        return frozenset(self.words) & frozenset(world.RUNS)

    def __str__(self) -> str:
        damaged = f" with {self.damaged} damaged" if self.damaged else ""
        around = "".join(f" {name}={value!r}" for name, value in self.environment)
        return f"seed {self.seed}: wdjax {shlex.join(self.words)!r}{damaged}{around}"


def case_of(seed: int) -> Case:
    """The case of a seed, the same wherever it is asked for."""
    rng = random.Random(seed)
    command, words = rng.choice(BASES)
    known = options()[words[0]]
    to_the_end = rng.random() < 0.03
    case = Case(seed, command, "", words, "", (), False)
    way = rng.random()
    if way < 0.4 or command == "convert":
        case = _odd_option(rng, case, known)
    elif way < 0.5:
        case = _odd_words(rng, case, known)
    elif way < 0.53:
        case = _odd_environment(rng, case)
    else:
        case = _damaged(rng, case)
    return case._replace(to_the_end=to_the_end and _is_short(case.words))


def _is_short(words: tuple[str, ...]) -> bool:
    """Whether no number in it is large: what is accepted then ends in seconds."""
    numbers = (re.findall(r"\d+", word) for word in words[1:])
    listed = [number for found in numbers for number in found]
    return "--epochs" in words and all(len(n) < 3 and int(n) <= 40 for n in listed)


def _odd_option(rng: random.Random, case: Case, known: tuple[Option, ...]) -> Case:
    """One option or two given another value; of two, one is likely to be taken."""
    words, culprits, strict = list(case.words), [], True
    for is_odd in rng.choice(((True,), (True,), (True,), (False,), (True, False), (False, False))):
        option = rng.choice(known)
        number = {"none": 0, "one": 1, "several": rng.choice((1, 1, 2, 3))}[option.values]
        draw = odd_value if is_odd else plain_value
        values = [draw(rng, option) for _ in range(number)]
        # A flag has no value that could be refused.
        strict = strict and is_odd and option.values != "none"
        words = _given(rng, words, option, values, known)
        culprits += [option.name, option.dest, *values]
    # After `--` every word is a positional one, and any of them may be one too many.
    strict = strict and "--" not in words
    # What is taken may not fit the rest of the words, and then any of them may be the one named.
    culprits = culprits if strict else [*culprits, *_names_in(known)]
    culprits += words if "--" in words else []
    kind = "option" if strict else "options that may fit"
    return case._replace(words=tuple(words), kind=kind, culprits=tuple(culprits))


def _names_in(known: tuple[Option, ...]) -> list[str]:
    return [name for option in known for name in (option.name, f"`{option.dest}`")]


def _given(
    rng: random.Random, words: list[str], option: Option, values: list[str], known: Any
) -> list[str]:
    """The words with an option's values in place of those it had."""
    if option.positional:
        places = [other.name for other in known if other.positional]
        words[1 + places.index(option.name)] = values[0]
        return words
    if option.name in words:
        begin = end = words.index(option.name)
        end += 1
        while end < len(words) and not words[end].startswith("--"):
            end += 1
        words = words[:begin] + words[end:]
    if len(values) == 1 and rng.random() < 0.3:
        return [*words, f"{option.name}={values[0]}"]
    return [*words, option.name, *values]


def _odd_words(rng: random.Random, case: Case, known: tuple[Option, ...]) -> Case:
    """A word too many, too few, twice or misspelt."""
    words = list(case.words)
    way = rng.randrange(8)
    flags = [option for option in known if not option.positional]
    option = rng.choice(flags or known)
    culprits: list[str] = []
    if way == 0:
        place = rng.randrange(len(words))
        # Without an option's name its value is a word too many.
        culprits = [*words[place : place + 2], *_names_in(known), case.command]
        del words[place]
    elif way == 1:
        place = rng.randrange(len(words))
        letters = list(words[place]) or [""]
        letters[rng.randrange(len(letters))] = rng.choice("xX-é=\x1b \n")
        culprits = [words[place], "".join(letters), *_names_in(known), *case.words]
        words[place] = "".join(letters)
    elif way == 2 and flags:
        value = [] if option.values == "none" else [plain_value(rng, option)]
        words += [option.name, *value, option.name, *value]
        culprits = [option.name, option.dest, *value]
    elif way == 3:
        extra = rng.choice(
            ("more", "", "-x", "--nothing", "--x\x1b[31m", "\x00", "²", "-", "--no=1")
        )
        words.insert(rng.randrange(1, len(words) + 1), extra)
        culprits = [extra, *_names_in(known), *case.words]
    elif way == 4 and flags:
        words.append(option.name)
        culprits = [option.name, option.dest]
    elif way == 5:
        words = words[: rng.randrange(len(words))]
        culprits = [case.words[0], *_names_in(known), "COMMAND"]
    elif way == 6:
        words = [
            rng.choice(("", "selekt", "--help", "-h", "\x1b[31m", "train\n", "--version", "TRAIN"))
        ]
        culprits = [*words, "COMMAND"]
    else:
        words.append("--help")
    return case._replace(words=tuple(words), kind="words", culprits=tuple(culprits))


def _odd_environment(rng: random.Random, case: Case) -> Case:
    """No home, a cache that cannot be written, odd settings of Python's and the terminal's."""
    changes: tuple[tuple[tuple[str, str | None], ...], ...] = (
        (("HOME", None), ("XDG_CACHE_HOME", None)),
        (("XDG_CACHE_HOME", "file"),),
        (("XDG_CACHE_HOME", "a" * 300),),
        (("XDG_CACHE_HOME", "/dev/null"),),
        (("COLUMNS", "0"),),
        (("COLUMNS", "x"), ("TERM", "dumb")),
        (("TFDS_DATA_DIR", "file"),),
    )
    return case._replace(kind="environment", environment=rng.choice(changes))


def _damaged(rng: random.Random, case: Case) -> Case:
    """One of the files that the words name is damaged."""
    found = [word for word in case.words if word in (*world.RUNS, "tfds") or "." in word]
    found = [OWN_FILE.match(word).group(1) if OWN_FILE.match(word) else word for word in found]
    found = [word for word in found if word in (*world.RUNS, "tfds") or word in world.FILES]
    target = rng.choice(found)
    kind = {"py": "model file", "csv": "csv", "npz": "npz"}.get(target.rpartition(".")[2])
    kind = kind or ("tfds" if target == "tfds" else "run folder")
    culprits = {
        "tfds": ("tfds", "mnist", "imdb_reviews"),
        # Data are also told by the words that their columns and arrays have.
        "csv": (target, target.partition(".")[0], "`inputs`", "`targets`", "`weights`"),
    }
    culprits["npz"] = culprits["csv"]
    damaged = (
        target
        if target != "tfds"
        else f"tfds/{'mnist' if '--length' not in case.words else 'imdb_reviews'}"
    )
    return case._replace(kind=kind, damaged=damaged, culprits=culprits.get(kind, (target,)))


def prepare(case: Case, made: pathlib.Path, folder: pathlib.Path) -> str:
    """Lays what the case begins with into `folder`; says what was damaged, and how."""
    folder.mkdir(parents=True)
    names = {*world.FILES, *case.needs, *({"tfds"} if "tfds" in case.words else ())}
    for name in sorted(names):
        copy = shutil.copytree if (made / name).is_dir() else shutil.copy2
        copy(made / name, folder / name)
    world.write_oddities(folder)
    if not case.damaged:
        return ""
    rng, path = random.Random(f"{case.seed} damage"), folder / case.damaged
    return damage.damage_folder(rng, path) if path.is_dir() else damage.damage(rng, path)
