"""Writes the README's numbers: `python docs/fill_readme.py`; `--run` measures them again first.

What the commands printed is in readme.json and, of the figure's two, in figures/maps.json; the
times are in the results of `experiments.speed`, and the rate of false claims in those of the
experiment `verdict`. No number is typed.
"""

import contextlib
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import textwrap
from typing import Any

DOCS = pathlib.Path(__file__).parent
ROOT = DOCS.parent
README = ROOT / "README.md"
SOURCE = DOCS / "readme.json"
DRAW, MAPS = DOCS / "figures" / "draw.py", DOCS / "figures" / "maps.json"
SPEED = ROOT / "experiments" / "speed" / "results"
AUDIT = """\
params, _ = wdjax.make_mlp(num_outputs=10).init(jax.random.key(0), np.zeros((1, 8, 8, 1)))
print(wdjax.audit(params, optax.adamw(1e-3, weight_decay=0.1), num_steps=10_000))
"""


def _read(path: pathlib.Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


# What the commands say.


def printed_by_select(*options: str) -> tuple[list[str], str, dict[str, Any]]:
    """The plan and the tables that `wdjax select` prints, and its results; nothing is cached."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "run"
        command = [sys.executable, "-m", "wdjax.cli", "select", *options, "--fresh"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
        done = subprocess.run(
            [*command, "--out", str(out)],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        plan = done.stderr.splitlines()
        plan = [*plan[:2], *(line for line in plan if line.startswith("Left out"))]
        return plan, done.stdout, _read(out / "results.json")


def printed_by_audit() -> str:
    """What the README's audit prints."""
    import jax
    import numpy as np
    import optax

    import wdjax

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(AUDIT, {"jax": jax, "np": np, "optax": optax, "wdjax": wdjax})
    return out.getvalue().rstrip()


def measured() -> dict[str, Any]:
    """Everything that readme.json holds."""
    plan, stdout, results = printed_by_select()
    table = stdout[stdout.index("   refit") :].split("\n\n")[0].splitlines()
    choice = results["choices"][results["rule"]]
    return {
        "select": {
            "trainings": int(results["cost"]["trainings"]),
            "headline": results["headline"],
            "moves": next(x for x in results["advice"] if x.startswith("The best strength at")),
            "verdict": choice["gain_over_best_zero"]["verdict"] if choice["best_zero"] else None,
            "plan": plan,
            "refits": table,
        },
        "audit": printed_by_audit(),
        "versions": results["versions"],
        "devices": results["devices"],
    }


# The README's sections.


def _wrapped(text: str, width: int = 98) -> str:
    return "\n".join(textwrap.wrap(text, width))


def _prose(text: str) -> str:
    return "\n".join(textwrap.wrap(" ".join(text.split()), 118, break_on_hyphens=False))


def _block(text: str) -> str:
    return f"```\n{text}\n```"


def select(source: dict[str, Any]) -> str:
    """What the first command prints, and how long it takes."""
    run, speed = source["select"], _read(SPEED / "select.json")
    (times,) = speed["against"].values()
    machine = speed["machine"]
    compiling = speed["stages"]["first"]["compiling, or loading what was compiled"]
    false = next(
        one
        for one in _read(ROOT / "experiments" / "verdict" / "results.json")["found"]
        if one["what"].endswith("the chosen strength, which does nothing, is said to help or hurt")
    )
    printed = [*map(_wrapped, run["plan"]), "...", _wrapped(run["headline"])]
    printed += [_wrapped(run["moves"]), "", *run["refits"]]
    told = f"""It trains the network {run["trainings"]:,} times, at every pair of a learning rate
        and a strength, and takes about {times["theirs_seconds"]:.0f} seconds on
        {machine["cores"]} CPU cores ({machine["processor"]}), {compiling:.0f} of them for
        compilation. A second time it takes {times["ours_seconds"]:.0f} seconds: finished
        trainings are cached, and a rerun trains only the missing ones (`--fresh` trains all
        again). It prints the plan, its progress, a table of all pairs, and this:"""
    verdict = {
        "unclear": """"Cannot be told from zero" is an answer: on these clean digits decay may help,
            and so many trainings are not enough to be sure.""",
        "helps": """Decay is held against the best run without it, at the learning rate that is best
            without it.""",
    }[run["verdict"]]
    after = f"""{verdict} The interval takes into account that
        several pairs were tried. In {false["n"]} searches over strengths too small to matter
        the command claimed an effect in {round(false["mean"] * false["n"]) or "none"}
        (`python -m experiments verdict`, which also shows where its intervals are too narrow). It
        writes `results.json`, `report.html` (tables and figures, in one file) and `params.npz` (the
        parameters trained at the chosen numbers) to a new folder under `runs/`."""
    return "\n\n".join([_prose(told), _block("\n".join(printed)), _prose(after)])


def audit(source: dict[str, Any]) -> str:
    """The audit's line and what it prints."""
    line = AUDIT.splitlines()[1]
    shown = "\n".join(
        _wrapped(x) if x.startswith("Warning") else x.rstrip() for x in source["audit"].splitlines()
    )
    return f"{_block(line)}\n\n{_block(shown)}"


def figure(source: dict[str, Any]) -> str:
    """The two maps, what their commands said, and whether the best strength moves."""
    maps = _read(MAPS)
    image = (
        "![Validation loss over learning rate and strength, coupled beside decoupled]"
        "(docs/figures/select.svg)"
    )
    caption = """The figure is of the two commands below; `python docs/figures/draw.py --run` runs
        both and draws it. One training label in ten was made wrong. A cell is the validation loss
        of a pair (10 classes: knowing nothing costs 2.30), the frame is the choice, and dashed
        is what cannot be told from the best. Strength 0 is no decay. Where a cell is blank, a
        step would remove a whole weight."""
    said = []
    for one in maps.values():
        moves = next(x for x in one["advice"] if x.startswith("The best strength at"))
        said += [f"$ {one['command']}", _wrapped(one["headline"]), _wrapped(moves)]
    coupled, decoupled = maps.values()
    before, after = (decoupled["test_accuracy"][name] for name in ("zero", "chosen"))
    read = f"""{_valley(maps)} The validation examples have wrong labels too; the test examples have
        not. Decay keeps the network from memorising the wrong labels: the test accuracy is
        {after:.1%} instead of {before:.1%} without decay (decoupled). A strength is chosen *for* a
        loss and a kind of data, and the command shows where two judgements disagree."""
    return "\n\n".join([image, _prose(caption), _block("\n".join(said)), _prose(read)])


def _valley(maps: dict[str, Any]) -> str:
    """Whether digits show what Loshchilov & Hutter drew: a best strength that moves with the
    learning rate where decay is coupled and stays where it is decoupled."""
    moves = {
        decay: any("It moves with the learning rate" in line for line in one["advice"])
        for decay, one in maps.items()
    }
    picture = """Loshchilov & Hutter (2019) drew this picture for images and found a valley that
        runs aslant where decay is coupled, and upright where it is decoupled: there, the two
        numbers can be tuned apart."""
    if moves["coupled"] and not moves["decoupled"]:
        return f"{picture} Digits show it too."
    words = {True: "moves", False: "cannot be told to move"}
    told = [
        f"the best {decay} strength {words[moves[decay]]} with the learning rate ({_most(one)})"
        for decay, one in maps.items()
    ]
    return f"{picture} Digits do not show it: {' and '.join(told)}."


def _most(one: dict[str, Any]) -> str:
    """At how many learning rates the best strength is which."""
    line = next(x for x in one["advice"] if x.startswith("The best strength at"))
    best = re.findall(r"[:,] (\S+) at ", line)
    most = max(best, key=best.count)
    return f"it is {most} at {best.count(most)} of the {len(best)} tried"


def speed(source: dict[str, Any]) -> str:
    """How many times as fast as what a user would write instead."""
    from experiments.speed.grid import HAND, KERAS, SKLEARN

    peers = {**_read(SPEED / "grid.json")["against"], **_read(SPEED / "grid_slow.json")["against"]}
    times = lambda name, digits: f"{float(format(peers[name]['ratio'], f'.{digits}g')):g}"
    return _prose(
        f"""On two CPU cores a grid of 50 short trainings runs {times(HAND, 2)} times as fast as a
        hand-written jitted loop, {times(SKLEARN, 2)} times as fast as scikit-learn's
        `GridSearchCV` and {times(KERAS, 3)} times as fast as a loop over Keras's `fit`
        (`python -m experiments.speed grid grid_slow` measures it and needs the extra `speed`;
        [all measurements](docs/speed.md), including those where others are faster)."""
    )


def choosing(source: dict[str, Any]) -> str:
    """How the ways that spare a sweep did against it."""
    from experiments.choosing.summary import covers

    facts = _read(ROOT / "experiments" / "choosing" / "numbers.json")
    lines = facts["lines"]
    pairs = {(line["cell"], line["draw"]) for line in lines}

    def inside(way: str) -> str:
        told = [x["inside"] for x in lines if x["way"] == way and x["inside"] is not None]
        return f"{sum(told)} of {len(told)}"

    def share(way: str) -> str:
        grid = {(x["cell"], x["draw"]): x["trainings"] for x in lines if x["way"] == "grid"}
        mine = [x["trainings"] / grid[x["cell"], x["draw"]] for x in lines if x["way"] == way]
        return f"{sum(mine) / len(mine):.2f}"

    def time(way: str) -> str:
        """Of all pairs whose programs were compiled before, together."""
        warm = {(x["cell"], x["draw"], x["way"]): x["seconds"] for x in lines if x["warm"]}
        both = [(t, warm.get((c, d, "grid"))) for (c, d, w), t in warm.items() if w == way]
        mine, grids = zip(*[(t, grid) for t, grid in both if grid is not None], strict=True)
        return f"{sum(mine) / sum(grids):.2g}"

    def held(num_beyond: int, believed: bool) -> str:
        found = [
            covers(x)
            for x in facts["transfers"]
            if x["known"] and x["believed"] is believed and len(x["beyond"]) == num_beyond
        ]
        return f"{sum(found)} of {len(found)}"

    grids = {(x["cell"], x["draw"]): x["strength"] for x in lines if x["way"] == "grid"}
    believed = [
        1 / 3 <= x["strength"] / grids[x["cell"], x["draw"]] <= 3
        for x in lines
        if x["way"] == "tune" and x["believed"]
    ]
    tuned = sum(x["way"] == "tune" for x in lines)
    image = "![Regret against trainings, every way of choosing](experiments/choosing/regret.svg)"
    told = f"""A grid trains every row to the end. `wdjax select --by slopes`, `--by halving` and
        `--by auto` train less, `wdjax train --tune` moves the strength within one run, and `wdjax
        transfer` predicts it from small sizes; each says whether to believe it. All were held
        against the grid on {len(pairs)} draws of {len(facts["cells"])} problems (digits, MNIST,
        tables, text, ridge; clean and wrong labels; MLP, CNN, transformer). Where the grid leaves
        out at least half of its rows, `slopes` chose one that it cannot tell from its best in
        {inside("slopes")}, for {share("slopes")} of its trainings and {time("slopes")} times its
        time, as one that carries a derivative takes longer than the two that it counts for;
        `halving` in {inside("halving")}, for {share("halving")} and {time("halving")} times; the
        grid itself, run again with other seeds
        and folds, in {inside("rerun")}; Optuna's TPE in {inside("TPE")}; 0.1, as everybody takes
        it, in {inside("0.1")}. One run that is tuned mostly gives a direction: it was to be
        believed in {len(believed)} of {tuned}, and ended within a factor of 3 of the grid's choice
        in {sum(believed)} of these. What `transfer` predicted for 8 times the rows, or
        8 times the width, held in {held(1, True)} searches where it said to believe it, and in
        {held(1, False)} where it did not; for both at once in {held(2, True)} and
        {held(2, False)}. [The page](experiments/choosing/README.md), made by
        `python -m experiments.choosing`, begins with what was not reached."""
    return f"{image}\n\n{_prose(told)}"


SECTIONS = {
    "select": select,
    "audit": audit,
    "figure": figure,
    "choosing": choosing,
    "speed": speed,
}


def filled(text: str) -> str:
    """The README with every section written from its source.

    Raises:
      ValueError: if the README lacks a section's marks.
    """
    source = _read(SOURCE)
    for name, write in SECTIONS.items():
        marks = rf"(<!-- filled: {name} -->\n).*?(<!-- end -->)"
        text, count = re.subn(
            marks, lambda m, w=write: f"{m[1]}{w(source)}\n{m[2]}", text, flags=re.DOTALL
        )
        if count != 1:
            raise ValueError(
                f"README.md has {count} sections `<!-- filled: {name} -->` ... `<!-- end -->`; "
                "it needs one."
            )
    return text


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # The experiments stand beside the package, not in it.
    if sys.argv[1:] == ["--run"]:
        subprocess.run([sys.executable, str(DRAW), "--run"], check=True)
        SOURCE.write_text(json.dumps(measured(), indent=1) + "\n", encoding="utf-8")
    elif sys.argv[1:]:
        raise SystemExit("usage: python docs/fill_readme.py [--run]")
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
