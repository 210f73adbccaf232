"""The streaming loop over the bare compiled step: the article's CNN, batch 128 of 32x32x3.

Claims: `TrainLoop` has at least 0.95 of the bare step's speed from arrays in memory, and 0.8 from
TFDS images (PNG in array_record) decoded on the way, on 2 CPU cores.
Run: python -m experiments.speed stream
Bare is the same step called on batches that are on the device already. The loop is that of `wdjax
train --stream`: it guards against numbers that are not finite, logs, reads ahead. Each contestant
has a process of its own and goes on where it was, so what is timed is the run, not its start.
"""

from experiments.speed.contestants import CNN_BATCH, STREAM_STEPS
from experiments.speed.measure import Contestant, alternate, compare, seconds, write_result

ARRAYS, IMAGES = "bare step, from arrays in memory", "bare step, from TFDS images"


def main(steps: int = STREAM_STEPS, rounds: int = 5) -> None:
    contestants = {
        "bare": Contestant("stream_bare", steps=steps),
        ARRAYS: Contestant("stream_arrays", steps=steps),
        IMAGES: Contestant("stream_tfds", steps=steps),
    }
    runs = alternate(contestants, rounds)
    for contestant in contestants.values():
        contestant.close()
    times = {name: [t / steps for t in seconds(values)] for name, values in runs.items()}
    rows = {name: compare(times[name], times["bare"]) for name in (ARRAYS, IMAGES)}
    for name, row in rows.items():
        low, high = row["ratio_range"]
        print(
            f"{name}: {row['ratio']:.2f} of its speed ({low:.2f} to {high:.2f}), "
            f"{1e3 * row['theirs_seconds']:.1f} ms a step bare, {1e3 * row['ours_seconds']:.1f} ms"
        )
    result = {
        "what": f"the article's CNN, batch {CNN_BATCH}, seconds a step of {steps}; warm",
        "step_seconds": times,
        "against": rows,
    }
    print(f"Wrote {write_result('stream', result)}")


if __name__ == "__main__":
    main()
