"""Does a well-chosen coefficient cure what the other questions fear?

Claim: a well-chosen coefficient solves each of the problems above (Q7); its drawback is that it
  must be chosen.
Source: the first article's FAQ. The measurements are those of Q1 to Q6 and Q12, read from their
  results, at strength zero, at the chosen one and at the largest.
Would change: Q7-solves: all of (`*: largest worse than chosen by` above 0); Q7-harmless: all of
  (`*: zero worse than chosen by` above 0); Q7-width: all of (`decades of strength within one
  standard error of the best, *` above 1).
Note: a measure is counted once, whichever questions it belongs to. The counts are of paired
  differences clear at 5 % each, without correction; they are told, and the claims are judged by
  the differences themselves.
Run: `python -m experiments q07_chosen_against_extremes` (0 s on 2 CPU devices, jax 0.10.2)
Found: Not every measure of Q1 to Q6 and Q12 is better at the chosen strength than at the largest
  (Q7-solves fails, counted). Not every measure of Q1 to Q6 and Q12 is better at the chosen
  strength than without decay (Q7-harmless fails, counted). The strengths within one standard
  error of the best span less than a factor of ten, with clean labels or with some wrong (Q7-width
  fails, p < 0.0001).
"""

import json
from dataclasses import dataclass, replace

import numpy as np

from experiments import common
from experiments.claims import Claim, Measurement, above, all_of, exact


@dataclass(frozen=True)
class Config:
    sources: tuple[str, ...] = (
        "q01_q02_gap_against_strength",
        "q03_time",
        "q04_counts",
        "q05_gradients",
        "q06_precision",
        "q12_difficulty",
    )


QUICK = replace(Config(), sources=("q01_q02_gap_against_strength", "q04_counts"))


def differences(row):
    """One measure: how much worse zero and the largest are than the chosen strength, by seed."""
    sign = 1.0 if row["better"] == "lower" else -1.0
    zero, chosen, largest = (sign * np.array(row[k], float) for k in ("zero", "chosen", "largest"))

    def worse(name, other):
        what = f"{row['measure']}: {name} worse than chosen by"
        if len(chosen) < 2:
            return exact(what, float((other - chosen)[0]))
        return common.over_seeds(what, other - chosen)

    return worse("zero", zero), worse("largest", largest)


def width_of_choice(source):
    """Decades of strength within one standard error of the best, over the seeds of Q1.

    The standard error of a width is the jackknife's: the width again without each seed.
    """
    strengths = np.array(source["config"]["strengths"])
    widths = {}
    for name, part in source["values"].items():
        if not isinstance(part, dict) or "choose_loss_by_seed" not in part:
            continue
        loss = np.array(part["choose_loss_by_seed"], float)
        num_seeds = loss.shape[1]
        without = [width(strengths, np.delete(loss, i, axis=1)) for i in range(num_seeds)]
        error = np.std(without) * (num_seeds - 1) ** 0.5
        what = f"decades of strength within one standard error of the best, {name}"
        widths[name] = common.Measurement(what, width(strengths, loss), float(error), num_seeds)
    return widths


def width(strengths, loss):
    """Decades from where the mean of `loss[strength, seed]` comes within one standard error of
    its lowest to where it leaves, linear between the strengths above zero."""
    mean = loss.mean(axis=1)
    best = int(np.argmin(mean))
    limit = mean[best] + loss[best].std(ddof=1) / loss.shape[1] ** 0.5
    places = np.linspace(*np.log10(strengths[strengths > 0][[0, -1]]), 2001)
    near = places[np.interp(places, np.log10(strengths[1:]), mean[1:]) <= limit]
    return float(near.max() - near.min()) if len(near) else 0.0


def measure(c: Config) -> common.Findings:
    read = lambda name: json.loads((common.ROOT / name / "results.json").read_text("utf-8"))
    sources = {name: read(name) for name in c.sources}
    rows = [row for source in sources.values() for row in source["extremes"]]
    widths = width_of_choice(sources["q01_q02_gap_against_strength"])
    values = {
        "rows": [
            {
                "measure": row["measure"],
                "against": dict(zip(("zero", "largest"), map(list, differences(row)), strict=True)),
            }
            for row in rows
        ],
        "widths": {name: w._asdict() for name, w in widths.items()},
    }
    against_zero, against_largest = zip(*map(differences, rows), strict=True)
    clear = lambda measurements, side: sum(getattr(m, f"clearly_{side}")() for m in measurements)
    of = f"measures of {len(rows)} that are clearly"
    found = [
        *widths.values(),
        exact(
            f"{of} better at the chosen strength than at the largest",
            clear(against_largest, "above"),
        ),
        exact(f"{of} better at the chosen strength than at zero", clear(against_zero, "above")),
        exact(f"{of} worse at the chosen strength than at zero", clear(against_zero, "below")),
    ]
    return common.Findings(found, values)


def draw(values, figure):
    rows = values["rows"][::-1]
    figure.set_size_inches(7.2, 0.3 * len(rows) + 1)
    axes = figure.subplots(1, 1)
    for place, row in enumerate(rows):
        for (name, one), marker, shift in zip(
            row["against"].items(), ("o", "s"), (0.12, -0.12), strict=True
        ):
            _, mean, error, _ = one
            # In standard errors: how clearly the chosen strength is better.
            score = mean / error if error else 0.0
            color = {"zero": "C0", "largest": "C1"}[name]
            axes.plot(score, place + shift, marker, color=color)
    axes.axvspan(-2, 2, color="0.9")
    axes.set_xscale("symlog")
    axes.set_yticks(range(len(rows)), [row["measure"] for row in rows], fontsize=7)
    axes.set_xlabel("standard errors by which the chosen is better than zero (o) and largest (s)")


CLAIMS = (
    Claim(
        "Q7-solves",
        "Every measure of Q1 to Q6 and Q12 is better at the chosen strength than at the largest.",
        all_of(above("*: largest worse than chosen by")),
        "Not every measure of Q1 to Q6 and Q12 is better at the chosen strength than at the "
        "largest.",
    ),
    Claim(
        "Q7-harmless",
        "Every measure of Q1 to Q6 and Q12 is better at the chosen strength than without decay.",
        all_of(above("*: zero worse than chosen by")),
        "Not every measure of Q1 to Q6 and Q12 is better at the chosen strength than without "
        "decay.",
    ),
    Claim(
        "Q7-width",
        "The strengths within one standard error of the best span more than a factor of ten, with "
        "clean labels and with some wrong.",
        all_of(above("decades of strength within one standard error of the best, *", 1.0)),
        "The strengths within one standard error of the best span less than a factor of ten, with "
        "clean labels or with some wrong.",
    ),
)


def derived(results) -> list[Measurement]:
    """The paired differences of every measure."""
    return [
        Measurement(*one) for row in results["values"]["rows"] for one in row["against"].values()
    ]


if __name__ == "__main__":
    common.main(__file__, measure, draw, Config(), QUICK, CLAIMS, derived)
