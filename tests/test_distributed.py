"""One to eight devices and two processes on 127.0.0.1: equal results, and no death unnoticed."""

import signal

import children
import numpy as np
import pytest
from processes import finish, run, start_two

# Every test starts processes: long, though CI runs it.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

pytest.importorskip("grain", reason="grain is not installed: pip install wdjax[data]")

# In float32 a sum over the rows in another order is rounded otherwise: 1e-6 is eight units of the
# last place. Adam divides by a moment that may be all rounding.
SETTINGS = {"sgd": 1e-6, "sgd64": 1e-12, "adam": 1e-5}


@pytest.fixture(scope="module")
def on_devices(made_once):
    """On 1, 2, 4 and 8 devices of one process."""

    def make(folder):
        out, counts = str(folder / "all.npz"), [1, 2, 4, 8]
        run("agree_on_devices", timeout=580, num_devices=8, out=out, counts=counts)

    return dict(np.load(made_once("devices", make) / "all.npz"))


@pytest.fixture(scope="module")
def one_device(on_devices):
    return of(on_devices, "1/")


@pytest.fixture(scope="module")
def two_processes(made_once):
    """The same on one device of two processes each, as either of them saw it."""

    def make(folder):
        for child in start_two("agree", out=f"{folder}/{{index}}.npz"):
            status, _, told = finish(child, timeout=580)
            assert status == 0, told

    folder = made_once("agree", make)
    return [dict(np.load(folder / f"{index}.npz")) for index in range(2)]


def of(arrays, prefix):
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def assert_agree(here, one, name):
    """SGD with momentum, uneven weights, batch statistics, dropout, no bias before the norm: each
    leaf of the state, relative to its largest entry; under Adam the losses."""
    rtol = SETTINGS[name]
    assert here.keys() == one.keys() and len(one) > 10
    for path in ("loss",) if name == "adam" else one:
        size = np.abs(one[path].astype(np.float64)).max()
        np.testing.assert_allclose(here[path], one[path], rtol, rtol * size, err_msg=path)
    assert one["loss"][-1] != one["loss"][0]


@pytest.mark.parametrize("num_devices", [2, 4, 8])
@pytest.mark.parametrize("name", SETTINGS)
def test_twenty_steps_on_two_four_and_eight_devices_end_where_one_ends(
    name, num_devices, on_devices, one_device
):
    here = of(on_devices, f"{num_devices}/{name}/")
    assert_agree(here, of(one_device, f"{name}/"), name)


@pytest.mark.parametrize("name", SETTINGS)
def test_twenty_steps_of_two_processes_end_where_one_device_ends(name, one_device, two_processes):
    assert_agree(of(two_processes[0], f"{name}/"), of(one_device, f"{name}/"), name)


def test_a_run_tuned_on_two_devices_or_by_two_processes_finds_what_one_device_finds(
    on_devices, one_device, two_processes
):
    """Losses, slopes, their errors; params, tangents and all else of the state."""
    one = of(one_device, "tuned/")
    assert len(one) > 15 and np.all(one["loss"][:, 2])
    for here in (of(on_devices, "2/tuned/"), *(of(found, "tuned/") for found in two_processes)):
        assert here.keys() == one.keys()
        for path in one:
            size = np.abs(one[path].astype(np.float64)).max()
            np.testing.assert_allclose(here[path], one[path], 1e-4, 1e-5 * size, err_msg=path)


def assert_same_bits(here, one, prefix):
    here, one = of(here, prefix), of(one, prefix)
    assert here.keys() == one.keys() and len(one) > 1
    for path, array in one.items():
        np.testing.assert_array_equal(here[path], array, err_msg=path)


@pytest.mark.parametrize("num_devices", [2, 4, 8])
@pytest.mark.parametrize("job", ["score/", "select/"])
def test_a_selection_is_the_same_bit_for_bit_on_one_to_eight_devices(
    job, num_devices, on_devices, one_device
):
    """Of cross-validation the scores; of `wdjax select` every score and the weights it leaves."""
    assert_same_bits(of(on_devices, f"{num_devices}/"), one_device, job)


def test_a_selection_of_two_processes_is_that_of_one_device_bit_for_bit(one_device, two_processes):
    assert one_device["score/loss"].shape == (3, 3, 1)
    for found in two_processes:
        assert_same_bits(found, one_device, "score/")


def test_both_processes_hold_the_same_bits(two_processes):
    first, second = two_processes
    assert first.keys() == second.keys()
    for path in first.keys() - {"keeps"}:
        array = first[path]
        np.testing.assert_array_equal(array, second[path], err_msg=path)


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
