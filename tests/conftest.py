"""Every test runs strict: two CPU devices, no silent broadcasting, no NaNs, types checked."""

import gc
import importlib.metadata
import os
import pathlib
import sys
import time
import zlib

# For `experiments`, which is not installed; last, so that `wdjax` is the installed one.
sys.path.append(str(pathlib.Path(__file__).parent.parent))

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")
# Most of the time goes into compiling programs that run once: LLVM need not optimise them, and the
# older of XLA 0.10's two ways to write a loop compiles in half the time of the newer. Neither
# touches what is counted here, which XLA has settled by then. XLA_FLAGS="" tests what users get.
quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    quick += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", quick)

from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("wdjax", "checked.lazily")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_nans", True)


def pytest_collection_finish():
    """What imports and collection have made stays: the collector need not walk it at every turn.

    A sixth of the suite's time; with what tests leave it is as busy as ever.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


@pytest.fixture
def key(request):
    """A key that depends on the test's own name: reproducible, yet not shared."""
    return jax.random.key(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(autouse=True)
def same_numbers(request):
    """A test draws the same from its module's `RNG` whatever ran before it on its worker."""
    if hasattr(request.module, "RNG"):
        request.module.RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, request, monkeypatch):
    """What the command keeps in this process, no other test and no earlier run has kept."""
    name = f"cache-{zlib.crc32(request.node.nodeid.encode())}"
    folder = tmp_path_factory.getbasetemp() / name
    monkeypatch.setattr("wdjax.jobs.folder.cache_folder", lambda: folder)


@pytest.fixture(scope="session", autouse=True)
def shared_programs(tmp_path_factory, worker_id):
    """What one test has compiled, the next, and the other worker's, reads from the disk."""
    here = tmp_path_factory.getbasetemp()
    folder = (here if worker_id == "master" else here.parent) / "programs"
    # Of operations that run one by one each is compiled in less: to store them takes as long.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_compilation_cache_dir", str(folder))


@pytest.fixture(scope="session")
def made_once(tmp_path_factory, worker_id):
    """`made_once(name, make) -> folder`: made by who asks first, waited for by the others."""
    here = tmp_path_factory.getbasetemp()
    shared = here if worker_id == "master" else here.parent

    def once(name, make):
        folder = shared / name
        try:
            folder.mkdir()
        except FileExistsError:
            while not (folder / "done").exists():
                time.sleep(0.2)
        else:
            make(folder)
            (folder / "done").touch()
        return folder

    return once


@pytest.fixture
def x64():
    """Float64 in this test: for closed forms."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def full_compile():
    """`compiler_options` of `jax.jit` for tests of the last bit: XLA as users get it."""
    options = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
    return options | ({"xla_cpu_use_fusion_emitters": True} if "emitters" in quick else {})


@pytest.fixture
def nans_allowed():
    """For tests about runs that diverge."""
    with jax.debug_nans(False):
        yield
