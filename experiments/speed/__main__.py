"""Measures: `python -m experiments.speed [NAME ...]`, all of them by default."""

import sys

from experiments.speed import augment, cnn, decay, grid, growth, memory, select, stream

MEASUREMENTS = {
    "grid": grid.main,
    "grid_slow": grid.slow,
    "grid_limit": grid.limit,
    "grid_cold": grid.cold,
    "cnn": cnn.main,
    "cnn_together": cnn.together,
    "growth": growth.main,
    "select": select.main,
    "memory": memory.main,
    "augment": augment.main,
    "decay": decay.main,
    "stream": stream.main,
}

if __name__ == "__main__":
    for name in sys.argv[1:] or MEASUREMENTS:
        MEASUREMENTS[name]()
