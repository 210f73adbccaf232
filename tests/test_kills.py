"""Two dozen kills of four kinds of jobs; `python -m tests.kills` does as many as it is told."""

import subprocess
import sys

import pytest
from kills import JOBS, ROOT
from processes import environment

pytest.importorskip("grain", reason="grain is not installed: pip install wdjax[data]")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_whatever_is_killed_at_any_moment_ends_bit_for_bit_as_if_it_had_not_been():
    """In a process of its own, which forks: this one has JAX's threads."""
    found = subprocess.run(
        [sys.executable, "-m", "tests.kills", "--count", "24", "--seed", "0"],
        cwd=ROOT,
        env=environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.count("while saving;") >= 4, found.stdout
    assert found.stdout.count("while running;") >= 4, found.stdout
    for job in JOBS:
        assert f"{job}: 6 kills in" in found.stdout
