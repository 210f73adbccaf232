"""Does a well-chosen coefficient cure what the other questions fear?

Claim: a well-chosen coefficient solves each of the problems above (Q7); its drawback is that it
  must be chosen.
Source: the first article's FAQ. The measurements are those of Q1 to Q6 and Q12, read from their
  results, at strength zero, at the chosen one and at the largest.
Would change: a measure counts as cured if the chosen strength is clearly better than the largest
  and not clearly worse than zero. The claim holds if every measure is cured, holds in part if
  some are, and fails if none is.
Run: `python -m experiments q07_chosen_against_extremes` (0 s on 2 CPU devices, jax 0.10.2)
Found: holds in part. Measures cured, by question: Q1 2 of 4; Q12 2 of 2; Q2 2 of 4; Q3 0 of 2; Q4
  0 of 6; Q5 1 of 1; Q6 0 of 4. measures of 21 where it is cured 5 (exact); measures of 21 where
  the chosen is better than zero 6 (exact); decades of strength within one standard error of the
  best, clean 1.40 +- 0.21 (n=10); decades of strength within one standard error of the best, 10%
  labels wrong 0.085 +- 0.024 (n=10).
"""

import json
import re
from dataclasses import dataclass, replace

import numpy as np

from experiments import common


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


def judge(row):
    """One measure: is the chosen strength better than the extremes, by paired differences?"""
    sign = 1.0 if row["better"] == "lower" else -1.0
    zero, chosen, largest = (sign * np.array(row[k], float) for k in ("zero", "chosen", "largest"))

    def worse_by(other):
        """How much worse the other end is than the chosen strength: > 0 is good for choosing."""
        if len(chosen) < 2:
            return common.exact("", float((other - chosen)[0]))
        return common.over_seeds("", other - chosen)

    against_zero, against_largest = worse_by(zero), worse_by(largest)
    cured = against_largest.clearly_above() and not against_zero.clearly_below()
    mean = lambda name: float(np.mean(row[name]))
    return {
        "measure": row["measure"],
        "better": row["better"],
        **{name: mean(name) for name in ("zero", "chosen", "largest")},
        "zero - chosen": (against_zero.mean * sign, against_zero.standard_error),
        "largest - chosen": (against_largest.mean * sign, against_largest.standard_error),
        "n": len(chosen),
        "cured": bool(cured),
        "better than zero": bool(against_zero.clearly_above()),
    }


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
    rows = [judge(row) for source in sources.values() for row in source["extremes"]]
    widths = width_of_choice(sources["q01_q02_gap_against_strength"])
    cured = sum(row["cured"] for row in rows)
    better = sum(row["better than zero"] for row in rows)
    by_question: dict[str, list[bool]] = {}
    for row in rows:
        for question in re.findall(r"Q\d+", row["measure"]):
            by_question.setdefault(question, []).append(row["cured"])
    told = "; ".join(f"{q} {sum(of)} of {len(of)}" for q, of in sorted(by_question.items()))
    found = [
        common.exact(f"measures of {len(rows)} where it is cured", cured),
        common.exact(f"measures of {len(rows)} where the chosen is better than zero", better),
        *widths.values(),
    ]
    return common.Findings(
        found,
        "holds" if cured == len(rows) else "holds in part" if cured else "fails",
        f"Measures cured, by question: {told}.",
        {"rows": rows, "widths": {name: w._asdict() for name, w in widths.items()}},
    )


def draw(values, figure):
    rows = values["rows"][::-1]
    figure.set_size_inches(7.2, 0.3 * len(rows) + 1)
    axes = figure.subplots(1, 1)
    for place, row in enumerate(rows):
        sign = 1 if row["better"] == "lower" else -1
        for name, marker, shift in (("zero - chosen", "o", 0.12), ("largest - chosen", "s", -0.12)):
            mean, error = row[name]
            # In standard errors: how clearly the chosen strength is better.
            score = sign * mean / error if error else 0.0
            axes.plot(score, place + shift, marker, color="C0" if marker == "o" else "C1")
    axes.axvspan(-common.CLEAR, common.CLEAR, color="0.9")
    axes.set_xscale("symlog")
    axes.set_yticks(range(len(rows)), [row["measure"] for row in rows], fontsize=7)
    axes.set_xlabel("standard errors by which the chosen is better than zero (o) and largest (s)")


if __name__ == "__main__":
    common.main(__file__, measure, draw, Config(), QUICK)
