"""What a job ended with, and how two that should end alike differ."""

import json

import numpy as np

VOLATILE = ("timing", "cost", "command", "cached", "sha256", "digests")
"""Of a results file, what two runs of one job differ in; the last two are digests of all else. What
advice says of the cost is left out as well."""
HOW = ("resume", "overwrite")
"""Of what a run was told, how it was started again."""


def said_in(folder):
    return (folder / "said").read_text(errors="replace")


def plain(value):
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items() if name not in VOLATILE}
    if not isinstance(value, list):
        return value
    return [plain(inner) for inner in value if not str(inner).startswith("Cost: ")]


def end_of(folder):
    """What a run ends with, as it is compared: results, arrays bit for bit, log, names of files."""
    from wdjax.loop.log import RunLog

    run = folder / "run"
    results = plain(json.loads((run / "results.json").read_text()))
    results["config"] = {n: v for n, v in results["config"].items() if n not in HOW}
    found = {f"results: {name}": value for name, value in results.items()}
    if (run / "params.npz").exists():
        with np.load(run / "params.npz", allow_pickle=False) as arrays:
            for name, array in arrays.items():
                found[f"params: {name}"] = (array.dtype.str, array.shape, array.tobytes())
    log = run / "log.jsonl"
    found["log"] = RunLog(log).read() if log.exists() else None
    # A log whose last line was cut short is kept beside.
    names = [path.name for path in run.iterdir()]
    # One that is killed between its last save and what it clears keeps an old checkpoint more.
    saved = sorted(path.name for path in (run / "checkpoints").glob("*"))
    names += saved[-1:] + [name for name in saved[:-1] if not name.startswith("step_")]
    found["files"] = sorted(name for name in names if not name.startswith("log-damaged"))
    return found


def differing(whole, folder):
    """What of a run's end is not as in the one that was left alone, and how; empty if all is."""
    end, said = end_of(folder), said_in(folder)
    told = [
        f"{name}: {str(end.get(name))[:300]} instead of {str(whole.get(name))[:300]}"
        for name in sorted(whole.keys() | end)
        if whole.get(name) != end.get(name)
    ]
    if "Traceback" in said or "bug" in said:
        told.append(f"it said:\n{said[-3000:]}")
    return told
