"""The grid of 50 fits, warm against warm: ours, a hand-written loop, scikit-learn.

Claim: a grid as one compiled program takes at most half the time of a hand-written jitted loop
with the strength traced, and at most a third of `GridSearchCV(MLPClassifier, n_jobs=2)`.
Run: python -m experiments.speed grid
"""

from experiments.speed.contestants import NUM_FITS
from experiments.speed.measure import Contestant, alternate, compare, seconds, write_result

PEERS = {
    "grid_hand": "hand-written jitted loop, strength traced",
    "grid_sklearn": "scikit-learn GridSearchCV(MLPClassifier, n_jobs=2)",
}


def main() -> None:
    contestants = {name: Contestant(name) for name in ("grid_ours", *PEERS)}
    runs = alternate(contestants)
    rows = {}
    for name, label in PEERS.items():
        row = compare(seconds(runs["grid_ours"]), seconds(runs[name]))
        row["their_best_accuracy"] = runs[name][-1]["best"]
        rows[label] = row
        print(f"{label}: {row['ratio']:.1f} x {row['ratio_range']} {row['theirs_seconds']:.2f} s")
    ours = seconds(runs["grid_ours"])
    print(f"ours: {min(ours):.2f} to {max(ours):.2f} s")
    result = {
        "what": f"{NUM_FITS} fits on digits, MLP 64-100-10, batch 128, 20 epochs; warm",
        "our_seconds": ours,
        "our_best_accuracy": runs["grid_ours"][-1]["best"],
        "first_run_seconds": {name: c.first["seconds"] for name, c in contestants.items()},
        "against": rows,
    }
    for contestant in contestants.values():
        contestant.close()
    print(f"Wrote {write_result('grid', result)}")
