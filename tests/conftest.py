"""Every test runs strict: two CPU devices, no silent broadcasting, no NaNs, types checked."""

import os
import zlib

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")

from jaxtyping import install_import_hook

install_import_hook("wdjax", "beartype.beartype")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_nans", True)


@pytest.fixture
def key(request):
    """A key that depends on the test's own name: reproducible, yet not shared."""
    return jax.random.key(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(autouse=True)
def same_numbers(request):
    """A test draws the same from its module's `RNG` whatever ran before it on its worker."""
    if hasattr(request.module, "RNG"):
        request.module.RNG = np.random.default_rng(0)


@pytest.fixture
def x64():
    """Float64 in this test: for closed forms."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def quick_compile():
    """For tests of what a program computes, not of how fast: XLA compiles it in less time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def nans_allowed():
    """For tests about runs that diverge."""
    with jax.debug_nans(False):
        yield
