"""`python -m experiments.verdict`: the experiment, by the words of `run.py`."""

from experiments.verdict import run

if __name__ == "__main__":
    run.command()
