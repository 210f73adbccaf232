"""One to eight devices and two processes on 127.0.0.1: equal results, and no death unnoticed."""

import signal

import children
import numpy as np
import pytest
from processes import finish, run, start_two

# Every test starts processes: long, though CI runs it.
pytestmark = pytest.mark.slow

pytest.importorskip("grain", reason="grain is not installed: pip install wdjax[data]")

SETTINGS = {"sgd": 1e-5, "sgd64": 1e-12, "adam": 1e-5}


@pytest.fixture(scope="module")
def one_device():
    return {name: children.train(name, num_devices=1) for name in SETTINGS}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The same runs on one device of two processes each, as either of them saw it."""
    folder = tmp_path_factory.mktemp("agree")
    for child in start_two("agree", out=f"{folder}/{{index}}.npz"):
        status, _, told = finish(child)
        assert status == 0, told
    return [dict(np.load(folder / f"{index}.npz")) for index in range(2)]


def of(arrays, prefix):
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def assert_agree(here, one, name):
    """SGD with momentum for 20 steps, uneven weights, batch statistics and dropout; under Adam,
    which divides by a moment that may be all rounding, the losses."""
    rtol = SETTINGS[name]
    assert here.keys() == one.keys() and len(one) > 10
    for path in ("loss",) if name == "adam" else one:
        size = np.abs(one[path].astype(np.float64)).max()
        np.testing.assert_allclose(here[path], one[path], rtol, rtol * size, err_msg=path)
    assert one["loss"][-1] != one["loss"][0]


@pytest.mark.parametrize("name", SETTINGS)
def test_two_devices_give_what_one_gives(name, one_device):
    assert_agree(children.train(name, num_devices=2), one_device[name], name)


@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_give_what_one_gives(name, one_device, two_processes):
    assert_agree(of(two_processes[0], f"{name}/"), one_device[name], name)


@pytest.mark.slow
@pytest.mark.parametrize("num_devices", [4, 8])
def test_four_and_eight_devices_give_what_one_gives(num_devices, one_device, tmp_path):
    run("agree", num_devices=num_devices, out=f"{tmp_path}/all.npz")
    found = dict(np.load(tmp_path / "all.npz"))
    for name in SETTINGS:
        assert_agree(of(found, f"{name}/"), one_device[name], name)


def test_both_processes_hold_the_same_bits(two_processes):
    first, second = two_processes
    assert first.keys() == second.keys()
    for path in first.keys() - {"keeps"}:
        array = first[path]
        np.testing.assert_array_equal(array, second[path], err_msg=path)


def test_cross_validation_over_two_processes_gives_both_the_scores_of_one_device(two_processes):
    scores = children.scores_of_a_grid(num_devices=1)
    assert scores["loss"].shape == (3, 3, 1)
    for found in two_processes:
        for name, expected in scores.items():
            np.testing.assert_allclose(found[f"score/{name}"], expected, rtol=1e-6)


def test_what_the_first_of_two_processes_kept_both_find(two_processes):
    """The second keeps nothing: both run, or do not run, the same trials."""
    assert [bool(found["keeps"]) for found in two_processes] == [True, False]
    for found in two_processes:
        assert found["events"].tolist()[0] == 0 and found["events"].tolist()[-1] == 9
        for name in ("loss", "accuracy"):
            np.testing.assert_array_equal(found[f"cached/{name}"], found[f"score/{name}"])


def wait_for(child, words):
    for line in child.stdout:
        if line.startswith(words):
            return
    raise AssertionError(f"never said {words!r}: {child.stderr.read()}")


def test_sigterm_to_one_of_two_processes_saves_and_ends_both_with_143(tmp_path):
    """Which then resume, and end where a run of one process ends that was never stopped."""
    pair = start_two("run_loop", folder=str(tmp_path), tell=True, slow=0.05, num_steps=60)
    wait_for(pair[1], "step 6")
    pair[1].send_signal(signal.SIGTERM)
    ends = [finish(child, timeout=60) for child in pair]
    assert [status for status, _, _ in ends] == [143, 143], ends
    pair = start_two("run_loop", folder=str(tmp_path), tell=True, num_steps=60)
    (status, printed, told), (other, _, _) = [finish(child) for child in pair]
    assert (status, other) == (0, 0), told
    assert 6 < int(printed.split("resumed at ")[1].split()[0]) < 60
    children.run_loop(tmp_path / "one", num_steps=60)
    resumed, whole = (np.load(folder / "end.npz") for folder in (tmp_path, tmp_path / "one"))
    for path in whole:
        np.testing.assert_allclose(resumed[path], whole[path], 1e-4, 1e-5, err_msg=path)


@pytest.mark.slow
def test_when_one_of_two_processes_dies_the_other_ends_and_the_run_resumes_bit_for_bit(tmp_path):
    """The survivor is ended by JAX's runtime, not by Python: only what was saved is left."""
    for child in start_two("run_loop", folder=str(tmp_path / "whole")):
        assert finish(child)[0] == 0
    pair = start_two("run_loop", folder=str(tmp_path / "part"), tell=True, slow=0.2)
    wait_for(pair[1], "step 9")
    pair[1].kill()
    status, _, _ = finish(pair[0], timeout=60)
    assert status != 0
    finish(pair[1])
    for child in start_two("run_loop", folder=str(tmp_path / "part")):
        assert finish(child)[0] == 0
    whole, part = (np.load(tmp_path / name / "end.npz") for name in ("whole", "part"))
    for path in whole:
        np.testing.assert_array_equal(part[path], whole[path], err_msg=path)
