"""The second `wdjax select` finds every program and every trial of the first."""

import json
import os
import subprocess
import sys

import pytest

# Two whole commands in fresh processes: long, though CI runs it.
pytestmark = pytest.mark.slow

COUNTING = """
import collections, json, sys
import jax
from wdjax.cli import main
counts = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: counts.update([name.split("/")[-1]]))
assert main(sys.argv[1:]) == 0
print(json.dumps(counts | {"scikit-learn": int("sklearn" in sys.modules)}))
"""


def test_the_second_select_compiles_nothing(tmp_path):
    """Three processes share a cache folder and nothing else. The last trains again."""
    words = "select --data iris --batch-size 32 --epochs 1 --folds 2 --seeds 1 --strengths 0 0.1"
    words += " --learning-rates 0.003"
    counts = {}
    for name, more in (("first", ()), ("second", ()), ("fresh", ("--fresh",))):
        done = subprocess.run(
            [sys.executable, "-c", COUNTING, *words.split(), *more, "--out", name],
            cwd=tmp_path,
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        counts[name] = json.loads(done.stdout.splitlines()[-1])
    assert counts["first"]["cache_misses"] > 2
    assert counts["second"].get("cache_misses", 0) == counts["fresh"].get("cache_misses", 0) == 0
    assert counts["fresh"]["cache_hits"] >= counts["first"]["cache_misses"]
    # All but the program of the trials, which are found.
    assert counts["second"]["cache_hits"] == counts["fresh"]["cache_hits"] - 1
    # Each operation outside a compiled function is a program of its own: there were 110.
    assert counts["fresh"]["cache_hits"] < 25
    # Importing it takes longer than reading the data.
    assert counts["second"]["scikit-learn"] == 0
