"""Devices to compile for that are not here: JAX's own compilers run without them.

The package `libtpu` brings the TPU's, `jax-cuda12-pjrt` and `jax-cuda12-plugin` that of NVIDIA's
GPUs. Install them beside the environment (`pip install --no-deps --target FOLDER ...`) and run with
`PYTHONPATH=FOLDER JAX_PLATFORMS=cpu`, or JAX looks for devices of theirs.
"""

import importlib.util
import os

import jax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  clock_rate_ghz: 1.98
  core_count: 132
  device_memory_size: 84929347584
  fpus_per_core: 128
  l2_cache_size: 52428800
  memory_bandwidth: 3352320000000
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  threads_per_warp: 32
}
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 8 }
platform_name: "CUDA"
runtime_version { major: 12 minor: 8 }
"""
"""What the compiler asks a GPU for, as XLA writes it: an H100's."""

NEEDS = {"tpu": "libtpu", "cuda": "jax_plugins.xla_cuda12"}


def four_devices(platform):
    """Four TPU v5e chips, or four H100s, as a mesh along `data`: to compile for, not to run on.

    Raises:
      ModuleNotFoundError: where the compiler is not installed.
    """
    if not _is_installed(NEEDS[platform]):
        raise ModuleNotFoundError(
            f"the compiler for {platform} is not installed (module {NEEDS[platform]})"
        )
    if platform == "tpu":
        os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # Nothing asks a cloud which machine this is.
        os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # Nothing here needs the chips to itself.
        found = topologies.get_topology_desc("v5e:2x2", "tpu")
    else:
        # Autotuning runs kernels, for which there is no device.
        os.environ["XLA_FLAGS"] = "--xla_gpu_autotune_level=0 " + os.environ.get("XLA_FLAGS", "")
        found = topologies.get_topology_desc(
            "four H100s", "cuda", target_config=H100, topology="1x1x4"
        )
    return jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=found.devices)


def one_of(mesh):
    """The mesh of its first device alone."""
    return Mesh(mesh.devices[:1], mesh.axis_names, axis_types=mesh.axis_types)


def placed(tree, mesh, *axes):
    """The shapes of `tree` on the mesh's devices, whole or split along `axes`."""
    where = jax.sharding.NamedSharding(mesh, jax.P(*axes))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)


def _is_installed(module):
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
