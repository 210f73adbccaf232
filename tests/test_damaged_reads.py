"""A checkpoint of many leaves whose files are gone: one error, and nothing else is printed."""

import shutil
import subprocess
import sys

import numpy as np
import pytest

from wdjax.checkpoint.arrays import write_arrays

READ = """
import sys
from wdjax.checkpoint.arrays import read_arrays
leaves = {f"{i}/kernel": {"shape": [300, 300], "dtype": "float64"} for i in range(20)}
try:
    read_arrays(__import__("pathlib").Path(sys.argv[1]), leaves)
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("what", ["d", "ocdbt.process_0"])
def test_of_many_reads_that_fail_one_error_is_told(what, tmp_path):
    rng = np.random.default_rng(0)
    write_arrays(tmp_path / "x", {f"{i}/kernel": rng.normal(size=(300, 300)) for i in range(20)})
    shutil.rmtree(tmp_path / "x" / what)
    read = [sys.executable, "-c", READ, str(tmp_path / "x")]
    done = subprocess.run(read, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.startswith("DamagedCheckpointError") and "cannot be read" in done.stdout
    assert done.stderr == ""
