"""Starting the programs of `children.py`, alone or two together on 127.0.0.1."""

import json
import os
import pathlib
import socket
import subprocess
import sys

CHILDREN = pathlib.Path(__file__).with_name("children.py")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(num_devices=1):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "PYTEST_"))}
    return kept | {"JAX_NUM_CPU_DEVICES": str(num_devices), "JAX_PLATFORMS": "cpu"}


def start(name, *, num_devices=1, **arguments):
    """A child with its output to be read; the caller waits for it, or kills it."""
    return subprocess.Popen(
        [sys.executable, str(CHILDREN), name, json.dumps(arguments)],
        env=environment(num_devices),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_two(name, **arguments):
    """Two processes that know of each other, one CPU device each."""
    address = f"127.0.0.1:{free_port()}"
    return [start(name, together=[address, index, 2], **arguments) for index in range(2)]


def finish(child, timeout=120):
    """`(status, printed, told)`; killed if it does not end by itself."""
    try:
        printed, told = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        child.kill()
        printed, told = child.communicate()
        raise AssertionError(f"did not end within {timeout} s:\n{printed}\n{told}") from None
    return child.returncode, printed, told


def run(name, timeout=120, **arguments):
    """Runs a child to its end; fails with what it said unless it ended well."""
    status, printed, told = finish(start(name, **arguments), timeout)
    assert status == 0, told
    return printed
