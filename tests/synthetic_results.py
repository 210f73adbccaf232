"""What `wdjax select` writes, made up: numbers of plausible shapes, no run behind them."""

import numpy as np

STRENGTHS = [0.0, *(float(f"{10**e:.4g}") for e in np.arange(-6, 0.6, 0.5))]


def synthetic_results(
    *, strengths=STRENGTHS, learning_rates=(0.001,), slopes=(None,), second="accuracy", num_seeds=2
):
    """What `wdjax select` writes, from a bowl over log strength with a little noise.

    `slopes` other than (None,) adds a third axis to the grid.
    """
    rng = np.random.default_rng(0)
    rows = [(s, lr, k) for s in strengths for lr in learning_rates for k in slopes]
    depth = [
        0.1
        + 0.02 * (np.log10(s + 1e-6) + 3.2) ** 2
        + 0.01 * np.log10(lr / 0.001) ** 2
        + 0.02 * (k or 0) ** 2
        for s, lr, k in rows
    ]
    folds = 0.01 * rng.standard_normal((1, 5, 1))
    loss = np.array(depth)[:, None, None] + folds
    loss = loss + 0.01 * rng.standard_normal((len(rows), 5, num_seeds))
    train = loss * np.array([s / (s + 1e-4) * 0.9 + 0.02 for s, _, _ in rows])[:, None, None]
    values = {"loss": loss, second: 1 - loss / 3, "train_loss": train, "gap": loss - train}
    estimates = {
        name: [
            {"mean": float(m), "standard_error": float(e)}
            for m, e in zip(
                x.mean((1, 2)), x.mean(2).std(1, ddof=1) / np.sqrt(x.shape[1]), strict=True
            )
        ]
        for name, x in values.items()
    }
    grid = {"strength": [r[0] for r in rows], "learning_rate": [r[1] for r in rows]}
    if slopes != (None,):
        grid["slope"] = [r[2] for r in rows]
    table = [
        {**{n: axis[i] for n, axis in grid.items()}, **{n: x[i] for n, x in estimates.items()}}
        for i in range(len(rows))
    ]
    best = int(np.argmin(loss.mean((1, 2))))
    bound = sum(table[best]["loss"].values())
    simple = max(
        (i for i in range(len(rows)) if table[i]["loss"]["mean"] <= bound),
        key=lambda i: rows[i][0],
    )
    choices = {
        rule: {
            "index": i,
            "hparams": {name: axis[i] for name, axis in grid.items()},
            **table[i]["loss"],
            "rule": rule,
            "reason": reason,
        }
        for rule, i, reason in (
            ("min", best, "Lowest mean score."),
            ("one_standard_error", simple, "Largest strength within one standard error."),
        )
    }
    ends = {"chosen": (choices["min"]["hparams"]["strength"], 0.098), "zero": (0.0, 0.11)}
    ends["largest"] = (max(strengths), 2.1)
    return {
        "schema": 1,
        "kind": "select",
        "status": "complete",
        "headline": "Decay at strength 0.001 lowers the test loss of digits by 0.012.",
        "command": "wdjax select digits --strength 0 1e-6:3:14",
        "config": {"model": "mlp", "width": 100, "epochs": 20, "augment": None, "stratify": True},
        "versions": {"wdjax": "0.1.0", "jax": "0.10.2", "python": "3.11.14"},
        "devices": ["TFRT_CPU_0", "TFRT_CPU_1"],
        "seed": 0,
        "data": {
            "name": "digits",
            "kind": "images",
            "num_choose": 1437,
            "num_test": 360,
            "num_outputs": 10,
            "input_shape": [8, 8, 1],
        },
        "grid": grid,
        "grid_shape": {"strength": len(strengths), "learning_rate": len(learning_rates)},
        "scores": {n: values[n].tolist() for n in ("loss", second, "train_loss")},
        "rule": "min",
        "choices": choices,
        "table": table,
        "refit": {n: synthetic_run(rng, s, end, second, num_seeds) for n, (s, end) in ends.items()},
        "decay": [
            {"path": f"Dense_{i}/{n}", "shape": h, "multiplier": m, "rate": r, "half_life": t}
            for i in range(2)
            for n, h, m, r, t in (
                ("bias", [100], 0.0, 0.0, None),
                ("kernel", [64, 100], 1.0, 1.234e-6, 561710.2),
            )
        ],
        "timing": {"data": 0.1234, "compile": 2.5, "grid": 0.81, "refit": 0.4, "total": 3.9},
    }


def synthetic_run(rng, strength, end, second, num_seeds):
    epochs = np.arange(1, 21)
    curve = end + (2.3 - end) * np.exp(-epochs / 3.0)
    noise = lambda: 0.002 * rng.standard_normal((num_seeds, 1))
    test = curve + noise() + 0.004 * rng.standard_normal((num_seeds, 20))
    train = 0.7 * curve + noise()
    return {
        "hparams": {"strength": strength, "learning_rate": 0.001},
        "test_loss": test[:, -1].tolist(),
        f"test_{second}": (1 - test[:, -1] / 3).tolist(),
        "train_loss": train[:, -1].tolist(),
        f"train_{second}": (1 - train[:, -1] / 3).tolist(),
        "curves": {"train_loss": train.tolist(), "test_loss": test.tolist()},
    }


SMALL = {"strengths": [0.0, 1e-3, 1e-2, 1.0], "num_seeds": 2}
