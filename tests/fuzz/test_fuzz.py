"""Bad input of every kind ends in one sentence that names it, and writes nothing."""

import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

from .cases import case_of
from .functions import LEFT_OUT, calls_that_work, public_functions
from .known import KNOWN
from .words import options

ROOT = pathlib.Path(__file__).parent.parent.parent


def run_fuzz(folder: pathlib.Path, *words: str, timeout: float = 1500) -> list[dict]:
    """`python -m tests.fuzz` in a process of its own, with its own settings of JAX and XLA."""
    without = ("JAX_", "PYTEST_", "XLA_FLAGS")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(without)}
    command = [sys.executable, "-m", "tests.fuzz", "--json", str(folder / "results.json"), *words]
    done = subprocess.run(
        command, cwd=ROOT, env=kept, capture_output=True, text=True, timeout=timeout
    )
    # Whatever killed it, its last words say at which case.
    assert done.returncode in (0, 1), done.stdout[-3000:] + done.stderr[-1000:]
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def results(tmp_path_factory, worker_id):
    """The cases of the fast suite by their seeds, run once for all workers."""
    here = tmp_path_factory.getbasetemp()
    folder = (here if worker_id == "master" else here.parent) / "fuzz"
    try:
        folder.mkdir()
    except FileExistsError:
        while not (folder / "results.json").exists():
            time.sleep(0.5)  # Another worker runs them; the test's own limit ends a wait in vain.
        return {case["seed"]: case for case in json.loads((folder / "results.json").read_text())}
    return {case["seed"]: case for case in run_fuzz(folder, "--count", "200", "--cheap")}


def failed_of(results) -> list[str]:
    return [f"{case['case']}: {'; '.join(case['faults'])}" for case in results if case["faults"]]


def test_every_known_case_is_refused_in_one_sentence_or_runs(results):
    named = {known.case.seed: name for name, known in KNOWN.items()}
    assert len(named) == len(KNOWN) >= 100
    failed = [
        f"{named[case['seed']]}: {case}"
        for case in results.values()
        if case["seed"] < 0 and case["faults"]
    ]
    assert not failed, "\n".join(failed)


def test_bad_input_drawn_by_chance_is_refused_in_one_sentence_or_runs(results):
    drawn = [case for case in results.values() if case["seed"] >= 0]
    assert len(drawn) == 200
    failed = failed_of(drawn)
    assert not failed, "\n".join(failed)
    assert sum(case["outcome"] == "refused" for case in drawn) > 100


def test_a_case_is_a_function_of_its_seed():
    assert [case_of(seed) for seed in range(50)] == [case_of(seed) for seed in range(50)]
    assert len({case_of(seed).words for seed in range(60)}) > 40


def test_every_option_of_every_command_is_drawn():
    """A new option is fuzzed without being named here."""
    drawn = {
        (case.words[0], word.partition("=")[0])
        for case in map(case_of, range(16_000))
        if case.words
        for word in case.words
    }
    for command, known in options().items():
        missing = [o.name for o in known if not o.positional and (command, o.name) not in drawn]
        assert not missing, (command, missing)


def test_every_public_function_is_called_with_odd_arguments_or_left_out_for_a_reason():
    called, left_out = set(calls_that_work()), set(LEFT_OUT)
    assert called | left_out == set(public_functions())
    assert not called & left_out


@pytest.mark.slow
def test_odd_arguments_of_public_functions_are_refused_by_name_or_taken():
    """As a user calls them: without the tests' types."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--functions"],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "PYTEST_"))},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert int(done.stdout.split("calls,")[0].split()[-1]) > 500


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", (100_000, 101_000))
def test_two_thousand_bad_inputs_are_refused_in_one_sentence_or_run(tmp_path, first):
    results = run_fuzz(tmp_path, "--cheap", "--count", "1000", "--first", str(first), timeout=880)
    failed = failed_of(results)
    assert not failed, "\n".join(failed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_processes_end_as_documented(tmp_path):
    """Each with its own streams, signals and exit: see `process.py`."""
    words = "--processes", "--cheap", "--count", "100", "--first", "200000"
    failed = failed_of(run_fuzz(tmp_path, *words, timeout=880))
    assert not failed, "\n".join(failed)
