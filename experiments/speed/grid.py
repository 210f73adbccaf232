"""The grid of 50 fits on digits: ours against what a user would write or pick instead.

Claim: a grid as one compiled program takes at most half the time of a hand-written jitted loop
with the strength traced, and at most a third of `GridSearchCV(MLPClassifier, n_jobs=2)`.
Run: python -m experiments.speed grid grid_slow grid_limit grid_cold
"""

import tempfile

from experiments.speed.contestants import KERAS_FITS, MATMUL_SIDE, NUM_FITS, grid_operations
from experiments.speed.measure import Contestant, alternate, compare, seconds, write_result

WHAT = f"{NUM_FITS} fits on digits, MLP 64-100-10, batch 128, 20 epochs"
HAND = "hand-written jitted loop, strength traced"
SKLEARN = "scikit-learn GridSearchCV(MLPClassifier, n_jobs=2)"
SKORCH = "skorch GridSearchCV(n_jobs=2)"
KERAS = f"Keras 3 on JAX, a loop over fit ({KERAS_FITS} of {NUM_FITS} fits, scaled)"
COLD_ROUNDS = 5


def main() -> None:
    """Warm, against the fast peers."""
    _against("grid", {HAND: "grid_hand", SKLEARN: "grid_sklearn"})


def slow() -> None:
    """Warm, against the slow peers."""
    _against("grid_slow", {SKORCH: "grid_skorch", KERAS: "grid_keras"})


def limit() -> None:
    """Warm, against the rate of a large matrix product measured beside it."""
    contestants = {"ours": Contestant("grid_ours"), "matmul": Contestant("matmul")}
    runs = _raced(contestants, rounds=21)
    pairs = zip(seconds(runs["ours"]), seconds(runs["matmul"]), strict=True)
    rates = [(2 * MATMUL_SIDE**3 / matmul, grid_operations() / ours) for ours, matmul in pairs]
    shares = sorted(ours / most for most, ours in rates)
    row = {
        "share": shares[len(shares) // 2],
        "share_range": [shares[0], shares[-1]],
        "matmul_gflops": sorted(most / 1e9 for most, _ in rates)[len(rates) // 2],
        "our_gflops": sorted(ours / 1e9 for _, ours in rates)[len(rates) // 2],
        "operations": grid_operations(),
        "pairs": len(rates),
    }
    print(f"share of the matmul limit: {row['share']:.0%} {row['share_range']}")
    what = f"{WHAT}; warm; operations of the matrix products alone over a {MATMUL_SIDE}^3 product's"
    print(f"Wrote {write_result('grid_limit', {'what': what, **row})}")


def cold() -> None:
    """From a cold process to the scores; our compilation cache was filled by one run before."""
    times = {"grid_ours": [], "grid_sklearn": []}
    with tempfile.TemporaryDirectory() as cache:
        settings = {"JAX_COMPILATION_CACHE_DIR": cache}
        settings |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        settings |= {"JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
        Contestant("grid_ours", settings).close()
        for number in range(COLD_ROUNDS):
            for name in list(times) if number % 2 == 0 else reversed(times):
                contestant = Contestant(name, settings)
                times[name].append(contestant.cold_seconds)
                contestant.close()
    row = compare(times["grid_ours"], times["grid_sklearn"])
    _show(SKLEARN, row)
    result = {"what": f"{WHAT}; from the start of a process", "against": {SKLEARN: row}}
    print(f"Wrote {write_result('grid_cold', result)}")


def _against(name: str, peers: dict[str, str]) -> None:
    contestants = {"ours": Contestant("grid_ours")}
    contestants |= {label: Contestant(task) for label, task in peers.items()}
    runs = _raced(contestants)
    rows = {}
    for label in peers:
        scale = NUM_FITS / KERAS_FITS if label == KERAS else 1
        theirs = [scale * time for time in seconds(runs[label])]
        rows[label] = compare(seconds(runs["ours"]), theirs)
        rows[label]["their_best_accuracy"] = runs[label][-1]["best"]
        _show(label, rows[label])
    result = {
        "what": f"{WHAT}; warm",
        "our_seconds": seconds(runs["ours"]),
        "our_best_accuracy": runs["ours"][-1]["best"],
        "first_run_seconds": {label: c.first["seconds"] for label, c in contestants.items()},
        "against": rows,
    }
    print(f"Wrote {write_result(name, result)}")


def _raced(contestants: dict[str, Contestant], rounds: int = 5) -> dict:
    runs = alternate(contestants, rounds)
    for contestant in contestants.values():
        contestant.close()
    return runs


def _show(label: str, row: dict) -> None:
    low, high = row["ratio_range"]
    print(
        f"{label}: {row['ratio']:.2f} times ours ({low:.2f} to {high:.2f}), "
        f"{row['theirs_seconds']:.2f} s against {row['ours_seconds']:.2f} s"
    )
