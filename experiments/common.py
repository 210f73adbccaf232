"""What every experiment shares: its page, its estimates, its files.

An experiment is a folder with `run.py`, whose docstring is the page: a title, then paragraphs
`Claim:`, `Source:`, `Would change:`, perhaps `Note:`, `Run:`, `Found:`. `measure(config) ->
Findings` does the work, `draw(values, figure)` the picture. `CLAIMS` says what is judged, by
which numbers, and `derived(results)` computes those that follow from others; both are applied
to `results.json` as it stands, so that a verdict can be computed again without a run. `Would
change:`, `Run:` and `Found:` are written by the program, and so is `results.json`: no number
stands in a page that the results do not hold.
"""

import argparse
import ast
import contextlib
import dataclasses
import datetime
import hashlib
import importlib.metadata
import importlib.util
import json
import math
import os
import pathlib
import re
import textwrap
import time
import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import claims as rules
from experiments.claims import Claim, Measurement, exact  # noqa: F401
from wdjax.tables import to_json

ROOT = pathlib.Path(__file__).parent
LABELS = ("Claim", "Source", "Would change", "Note", "Run", "Found")
PACKAGES = ("wdjax", "jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn")
JUDGING = ("CLAIMS", "derived")
"""Names of `run.py` that read numbers and decide none."""

# A CPU is split into its cores before JAX starts: independent runs then take one core each.
with contextlib.suppress(RuntimeError):
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)


class Findings(NamedTuple):
    """What an experiment measured: the numbers that claims are about, and all the rest."""

    found: list[Measurement]
    values: dict[str, Any]
    """Everything behind the headline: curves for the figure, standard errors included."""
    extremes: list[dict[str, Any]] = []
    """Rows for Q7: see `extreme`."""


def over_seeds(what: str, values: Any) -> Measurement:
    """Mean and standard error of `values[seed]`: deviation (ddof 1) / sqrt(seeds).

    Raises:
      ValueError: for anything but at least two finite numbers: a diverged run is a finding of
        its own and has to be counted, not averaged away.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"{what!r} needs two or more finite numbers in one axis, got {values}.")
    error = values.std(ddof=1) / math.sqrt(len(values))
    return Measurement(what, float(values.mean()), float(error), len(values))


def curve(values: Any) -> dict[str, list[float]]:
    """`values[..., seed]` as `{"mean": [...], "standard_error": [...]}` for a figure."""
    values = np.asarray(values, np.float64)
    error = values.std(axis=-1, ddof=1) / math.sqrt(values.shape[-1])
    return {"mean": values.mean(axis=-1).tolist(), "standard_error": error.tolist()}


def extreme(measure: str, better: str, zero: Any, chosen: Any, largest: Any) -> dict[str, Any]:
    """One measure at strength zero, at the chosen one and at the largest, `[seed]` each.

    `better` is "lower" or "higher": what the question holds to be good.
    """
    columns = {"zero": zero, "chosen": chosen, "largest": largest}
    return {
        "measure": measure,
        "better": better,
        **{name: np.asarray(column, np.float64).tolist() for name, column in columns.items()},
    }


def main(
    file: str,
    measure: Callable[[Any], Findings],
    draw: Callable[[dict[str, Any], Any], None],
    config: Any,
    quick: Any,
    claims: Sequence[Claim] = (),
    derived: Callable[[dict[str, Any]], list[Measurement]] | None = None,
) -> None:
    """Runs an experiment from its command: `python -m experiments.NAME.run [--quick] [--out DIR]`.

    A full run writes `results.json` and `figure.svg` beside `run.py`, and the page's `Run:` and
    `Found:`; on another device than a CPU, files of that device, and nothing into the page. A
    quick one writes to `runs/experiments/NAME`, and never into the page.
    """
    folder = pathlib.Path(file).parent
    parser = argparse.ArgumentParser(prog=f"python -m experiments.{folder.name}.run")
    parser.add_argument("--quick", action="store_true", help="few seeds; numbers mean nothing")
    parser.add_argument("--out", help="folder to write (a full run's default: beside run.py)")
    arguments = parser.parse_args()
    chosen = quick if arguments.quick else config
    default = pathlib.Path("runs/experiments") / folder.name if arguments.quick else folder
    out = pathlib.Path(arguments.out) if arguments.out else default
    code = fingerprint(folder)  # Of the code that runs, should it be edited meanwhile.
    start = time.perf_counter()
    findings = measure(chosen)
    seconds = time.perf_counter() - start
    results = _results(folder, chosen, findings, seconds, arguments.quick)
    results["fingerprint"] = code
    results = judge(json.loads(to_json(results)), claims, derived)
    out.mkdir(parents=True, exist_ok=True)
    mark = device_mark(results["device"])
    (out / f"results{mark}.json").write_text(to_json(results) + "\n", encoding="utf-8")
    draw_svg(draw, results["values"], out / f"figure{mark}.svg")
    if out == folder and not mark:
        write_page(folder, results)
    print(f"{folder.name}: {found_text(results)}")
    print("\n".join(f"  {line}" for line in map(str, findings.found)))
    print(f"  {seconds:.0f} s; wrote {out}")


def _results(
    folder: pathlib.Path, config: Any, findings: Findings, seconds: float, quick: bool
) -> dict[str, Any]:
    page = read_page(folder)
    return {
        "schema": 2,
        "name": folder.name,
        "title": page["title"],
        "claim": page["Claim"],
        "source": page["Source"],
        "found": [m._asdict() for m in findings.found],
        "extremes": findings.extremes,
        "date": datetime.date.today().isoformat(),
        "command": command(folder),
        "seconds": round(seconds, 1),
        "quick": quick,
        "device": this_device(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "config": dataclasses.asdict(config),
        "values": findings.values,
    }


def command(folder: pathlib.Path) -> str:
    """How the experiment is run alone."""
    return f"python -m experiments {folder.name}"


def numbers_of(results: dict[str, Any], module: Any) -> list[Measurement]:
    """What was found, and what `derived` of the experiment's module makes of it."""
    derived = getattr(module, "derived", None)
    found = [Measurement(**m) for m in results["found"]]
    return found + (derived(results) if derived else [])


def judge(
    results: dict[str, Any],
    claims: Sequence[Claim],
    derived: Callable[[dict[str, Any]], list[Measurement]] | None = None,
) -> dict[str, Any]:
    """The results with the verdict of every claim, from their numbers alone."""
    numbers = numbers_of(results, types.SimpleNamespace(derived=derived))
    return results | {"claims": [rules.judge(claim, numbers) for claim in claims]}


def load(folder: pathlib.Path) -> types.ModuleType:
    """The experiment's module."""
    spec = importlib.util.spec_from_file_location(
        f"experiments.{folder.name}.run", folder / "run.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def p_text(p: float) -> str:
    """`p = 0.012`, `p < 0.0001`, or `counted` where there is nothing random."""
    return "counted" if p == 0 else "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"


def found_text(results: dict[str, Any]) -> str:
    """What was found, a sentence a claim, as the page shows it."""
    told = (
        f"{one['finding'].rstrip('.')} ({one['name']} {one['verdict']}, {p_text(one['p'])})."
        for one in results["claims"]
    )
    return " ".join(told)


def would_change_text(results: dict[str, Any]) -> str:
    """The rule of every claim."""
    return "; ".join(f"{one['name']}: {one['rule']}" for one in results["claims"]) + "."


def fingerprint(folder: pathlib.Path) -> str:
    """The SHA-256 of what decides the numbers: `run.py` without its page and its claims, the
    other files of its folder, and what they use of `problems.py`. The configuration stands in
    `run.py`; comments, layout and where a name of `wdjax` is imported from do not count.
    """
    body = ast.parse((folder / "run.py").read_text(encoding="utf-8")).body[1:]
    run = [node for node in body if not _judges(node)]
    for path in sorted(folder.glob("*.py")):
        if path.name not in ("run.py", "__main__.py", "problems.py"):
            run += ast.parse(path.read_text(encoding="utf-8")).body
    shared = {}
    for node in ast.parse((ROOT / "problems.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            shared[node.name] = node
        elif isinstance(node, ast.Assign):
            shared |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}
    used, waiting = {}, [*run]
    while waiting:
        for node in ast.walk(waiting.pop()):
            name = getattr(node, "attr", None) or getattr(node, "id", None)
            if name in shared and name not in used:
                used[name] = shared[name]
                waiting.append(shared[name])
    nodes = [*run, *(used[name] for name in sorted(used))]
    return hashlib.sha256("".join(map(_canonical, nodes)).encode()).hexdigest()[:16]


def _judges(node: ast.stmt) -> bool:
    """Whether a statement only says what is judged: claims, numbers that follow from others, the
    names imported for them, and the command line, which passes them on."""
    if isinstance(node, ast.FunctionDef):
        return node.name in JUDGING
    if isinstance(node, ast.Assign):
        return all(getattr(target, "id", "") in JUDGING for target in node.targets)
    return isinstance(node, ast.If) or (
        isinstance(node, ast.ImportFrom) and node.module == "experiments.claims"
    )


def _canonical(node: Any) -> str:
    """A syntax tree as text, the same under every Python: `ast.dump` differs in what is empty."""
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("wdjax"):
        return ""
    if isinstance(node, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(node) if value not in (None, []))
        inside = ", ".join(f"{name}={_canonical(value)}" for name, value in fields)
        return f"{type(node).__name__}({inside})"
    if isinstance(node, list):
        return f"[{', '.join(map(_canonical, node))}]"
    return repr(node)


def this_device() -> dict[str, Any]:
    """What the experiment runs on."""
    first = jax.devices()[0]
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": jax.device_count(),
    }


def device_mark(device: dict[str, Any]) -> str:
    """What tells a device's files from the CPU's: `-gpu-nvidia-a100-x4`; nothing for a CPU."""
    if device["platform"] == "cpu":
        return ""
    kind = re.sub(r"[^a-z0-9]+", "-", str(device["kind"]).lower()).strip("-")
    return f"-{device['platform']}-{kind}-x{device['count']}"


def is_current(folder: pathlib.Path, mark: str = "") -> bool:
    """Whether the results of a device are there and made by the code as it stands."""
    path = folder / f"results{mark}.json"
    if not path.exists():
        return False
    return json.loads(path.read_text(encoding="utf-8")).get("fingerprint") == fingerprint(folder)


def read_page(folder: pathlib.Path) -> dict[str, str]:
    """The page of `run.py`: `title`, and each labelled paragraph in one line.

    Raises:
      ValueError: if a label is missing.
    """
    tree = ast.parse((folder / "run.py").read_text(encoding="utf-8"))
    text = ast.get_docstring(tree) or ""
    title, *paragraphs = re.split(rf"^({'|'.join(LABELS)}): ", text, flags=re.MULTILINE)
    one_line = lambda words: " ".join(words.split())
    page = {"title": one_line(title)}
    page |= {
        label: one_line(words)
        for label, words in zip(paragraphs[::2], paragraphs[1::2], strict=True)
    }
    missing = [label for label in LABELS if label not in page and label != "Note"]
    if missing:
        raise ValueError(f"the page of {folder.name}/run.py lacks {', '.join(missing)}.")
    return page


def page_text(page: dict[str, str]) -> str:
    """The docstring of a page."""
    paragraphs = [_paragraph(f"{label}: {page[label]}") for label in LABELS if label in page]
    return f'"""{page["title"]}\n\n' + "\n".join(paragraphs) + '\n"""\n'


def _paragraph(text: str) -> str:
    return textwrap.fill(text, 98, subsequent_indent="  ", break_on_hyphens=False)


def run_text(results: dict[str, Any]) -> str:
    """The command, with its time."""
    device = results["device"]
    return (
        f"`{results['command']}` ({results['seconds']:.0f} s on {device['count']} "
        f"{device['platform'].upper()} devices, jax {results['versions']['jax']})"
    )


def written(results: dict[str, Any]) -> dict[str, str]:
    """The paragraphs of a page that follow from its results."""
    return {
        "Would change": would_change_text(results),
        "Run": run_text(results),
        "Found": found_text(results),
    }


def write_page(folder: pathlib.Path, results: dict[str, Any]) -> None:
    """Writes what the page says of its results."""
    page = read_page(folder) | written(results)
    path = folder / "run.py"
    source = path.read_text(encoding="utf-8")
    end = source.index('"""\n', 3) + 4
    path.write_text(page_text(page) + source[end:], encoding="utf-8")


def draw_svg(
    draw: Callable[[dict[str, Any], Any], None],
    values: dict,
    path: pathlib.Path,
    size: tuple[float, float] = (7.2, 3.2),
) -> None:
    """Writes what `draw(values, figure)` draws, in the one style of all figures; size in inches."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    # The same results draw the same bytes.
    style = {"svg.hashsalt": "wdjax", "font.size": 9, "axes.spines.top": False}
    style |= {"axes.spines.right": False, "legend.frameon": False, "svg.fonttype": "none"}
    with plt.rc_context(style):
        figure = plt.figure(figsize=size, layout="constrained")
        draw(json.loads(to_json(values)), figure)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def band(axes: Any, x: Any, line: dict[str, list[float]], label: str, **style: Any) -> None:
    """A mean with a band of one standard error; zero of a log axis stands at its left end."""
    mean, error = (np.array(line[k], np.float64) for k in ("mean", "standard_error"))
    (drawn,) = axes.plot(x, mean, marker="o", markersize=3, label=label, **style)
    axes.fill_between(x, mean - error, mean + error, alpha=0.2, color=drawn.get_color(), lw=0)


def strength_axis(axes: Any, strengths: Any) -> np.ndarray:
    """A log axis for strengths that may hold zero: zero is drawn a step left of the smallest."""
    strengths = np.asarray(strengths, np.float64)
    above = strengths[strengths > 0]
    step = above[1] / above[0] if len(above) > 1 else 10.0
    places = np.where(strengths > 0, strengths, above[0] / step)
    axes.set_xscale("log")
    axes.set_xlabel("strength (leftmost: zero)" if (strengths == 0).any() else "strength")
    return places


def heat_map(figure: Any, axes: Any, values: Any, x: Any, y: Any, labels: tuple[str, str]) -> None:
    """`values[row of y, column of x]` as a map with a number at every tick."""
    from wdjax.tables import format_number

    image = axes.imshow(np.array(values, np.float64), origin="lower", aspect="auto")
    short = lambda v: format_number(float(f"{v:.2g}"))
    axes.set_xticks(range(len(x)), [short(v) for v in x], rotation=60)
    axes.set_yticks(range(len(y)), [short(v) for v in y])
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    figure.colorbar(image, ax=axes)
