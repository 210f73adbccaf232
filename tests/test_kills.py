"""Two dozen kills of six kinds of jobs; `python -m tests.kills` does as many as it is told."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from kills import JOBS, ROOT, differing, end_of
from processes import environment


@pytest.fixture
def ended(tmp_path):
    """What is compared of a job, as small as it can be."""
    run = tmp_path / "run"
    run.mkdir()
    results = {"config": {"epochs": 3, "overwrite": True}, "cached": 4, "losses": [0.1, 0.2]}
    results["advice"] = ["Do not believe this.", "Cost: 24 trainings, 3.2 s."]
    (run / "results.json").write_text(json.dumps(results))
    np.savez(run / "params.npz", kernel=np.ones(3, np.float32))
    (tmp_path / "said").write_text("Wrote run\n")
    return tmp_path


def test_what_is_compared_leaves_out_how_a_run_came_to_its_end(ended):
    whole = end_of(ended)
    results = {"config": {"epochs": 3, "resume": "run"}, "cached": 0, "losses": [0.1, 0.2]}
    results["advice"] = ["Do not believe this.", "Cost: 24 trainings, 2 min."]
    (ended / "run" / "results.json").write_text(json.dumps(results))
    assert differing(whole, ended) == []


def test_one_bit_of_the_params_differs(ended):
    whole = end_of(ended)
    params = np.ones(3, np.float32)
    params.view(np.uint32)[1] ^= 1
    np.savez(ended / "run" / "params.npz", kernel=params)
    (told,) = differing(whole, ended)
    assert told.startswith("params: kernel: ")


@pytest.mark.parametrize("name", ["losses", "config"])
def test_one_number_of_the_results_differs(name, ended):
    whole, path = end_of(ended), ended / "run" / "results.json"
    results = json.loads(path.read_text()) | {name: {"epochs": 4} if name == "config" else [0.1]}
    path.write_text(json.dumps(results))
    (told,) = differing(whole, ended)
    assert told.startswith(f"results: {name}: ")


def test_a_file_that_a_kill_left_behind_differs_and_so_does_a_traceback(ended):
    whole = end_of(ended)
    (ended / "run" / ".wdjax-0123").write_text("half")
    (ended / "said").write_text("Traceback (most recent call last)\n")
    left, said = differing(whole, ended)
    assert left.startswith("files: ") and said.startswith("it said:")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_whatever_is_killed_at_any_moment_ends_bit_for_bit_as_if_it_had_not_been():
    """In a process of its own, which forks: this one has JAX's threads."""
    pytest.importorskip("grain", reason="grain is not installed: pip install wdjax[data]")
    found = subprocess.run(
        [sys.executable, "-m", "tests.kills", "--count", "24", "--seed", "0"],
        cwd=ROOT,
        env=environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    for job in JOBS:
        assert f"\n{job}: 4 kills, " in found.stdout, found.stdout
    counted = re.search(
        r"all: 24 kills, (\d+) while saving; (\d+) resumes, (\d+) trials found in the cache; "
        r"(\d+) killed runs compared, (\d+) equal",
        found.stdout,
    )
    assert counted is not None, found.stdout
    saving, resumes, cached, compared, equal = map(int, counted.groups())
    assert 4 <= saving <= 22 and resumes and cached, found.stdout
    assert compared == equal >= 8, found.stdout
