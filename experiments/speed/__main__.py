"""Measures: `python -m experiments.speed grid`."""

import importlib
import sys

MEASUREMENTS = ("grid",)

if __name__ == "__main__":
    for name in sys.argv[1:] or MEASUREMENTS:
        importlib.import_module(f"experiments.speed.{name}").main()
