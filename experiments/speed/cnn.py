"""The article's CNN, milliseconds a step: ours in a compiled epoch, Keras `fit`, PyTorch.

Claims: written as patches times a matrix, a step inside a compiled epoch is faster than
PyTorch's in the faster of its memory layouts; 8 strengths as one program cost no more a step and
model than one alone.
Run: python -m experiments.speed cnn
"""

from experiments.speed.contestants import CNN_BATCH, CNN_STEPS
from experiments.speed.measure import Contestant, alternate, compare, seconds, write_result

MODELS = 8


def main() -> None:
    contestants = {
        "ours": Contestant("cnn_ours"),
        "Keras 3 on JAX, fit": Contestant("cnn_keras"),
        "PyTorch, contiguous": Contestant("cnn_torch", channels_last=False),
        "PyTorch, channels last": Contestant("cnn_torch", channels_last=True),
    }
    runs = alternate(contestants)
    times = {name: [t / CNN_STEPS for t in seconds(values)] for name, values in runs.items()}
    for contestant in contestants.values():
        contestant.close()
    rows = {name: compare(times["ours"], times[name]) for name in times if name != "ours"}
    for name, row in rows.items():
        print(f"{name}: {row['ratio']:.2f} x, {1e3 * row['theirs_seconds']:.1f} ms a step")
    print(f"ours: {1e3 * min(times['ours']):.1f} to {1e3 * max(times['ours']):.1f} ms a step")
    result = {
        "what": f"the article's CNN, 32x32x3, batch {CNN_BATCH}, seconds a step; warm",
        "our_seconds": times["ours"],
        "against": rows,
    }
    print(f"Wrote {write_result('cnn', result)}")


def together() -> None:
    """8 strengths as one program against one model alone."""
    contestants = {
        "alone": Contestant("cnn_ours"),
        "together": Contestant("cnn_ours", num_models=MODELS, num_devices=2),
    }
    runs = alternate(contestants)
    for contestant in contestants.values():
        contestant.close()
    alone = [t / CNN_STEPS for t in seconds(runs["alone"])]
    together = [t / CNN_STEPS / MODELS for t in seconds(runs["together"])]
    row = compare(together, alone)
    print(f"alone / together: {row['ratio']:.2f} {row['ratio_range']}")
    print(f"together {1e3 * row['ours_seconds']:.1f} ms, alone {1e3 * row['theirs_seconds']:.1f}")
    result = {"what": f"{MODELS} strengths as one program, seconds a step and model; warm"}
    print(f"Wrote {write_result('cnn_together', {**result, 'against': {'one model alone': row}})}")
