"""Compiles kernels for a GPU that is not there: what `test_kernels_gpu_compile.py` runs.

    python gpu_targets.py h100 DIRECTORY    # which receives what ptxas says

One target per process: a second one is given the first one's flags for ptxas.
"""

import contextlib
import fcntl
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

GPU = "experimental_mosaic_gpu"
# What XLA has to know about a device; the numbers are the data sheets'.
TARGETS = {
    "h100": {"major": "9 feature_extension: ACCELERATED_FEATURES", "cores": 132, "shared": 227},
    "a100": {"major": "8", "cores": 108, "shared": 163},
}
DESCRIPTION = """
gpu_device_info {{
  cuda_compute_capability {{ major: {major} }}
  core_count: {cores} fpus_per_core: 128 threads_per_core_limit: 2048 threads_per_warp: 32
  threads_per_block_limit: 1024 registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: {shared_bytes}
  shared_memory_per_core: {shared_bytes} memory_bandwidth: 2000000000000 l2_cache_size: 41943040
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64 clock_rate_ghz: 1.5
  device_memory_size: 80000000000 runtime_version: "12.8.0" driver_version: "13.0.0"
  compile_time_toolkit_version: "12.8.0" dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{name}"
"""


@contextlib.contextmanager
def swept():
    """Removes what jaxlib leaves of each of our kernels in /tmp, whatever TMPDIR says.

    One target after the other, so that none is removed while it is compiled.
    """
    pattern = "mosaic-gpu-*/kernel.bin"
    with open(Path(tempfile.gettempdir(), "jaxtrelu-gpu-targets.lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = set(Path("/tmp").glob(pattern))
        try:
            yield
        finally:
            for path in set(Path("/tmp").glob(pattern)) - before:
                with contextlib.suppress(OSError):
                    if b"thresholded_" in path.read_bytes():
                        shutil.rmtree(path.parent)


def main(target: str, room: str) -> None:
    (cuda,) = map(Path, importlib.util.find_spec("nvidia.cuda_nvcc").submodule_search_locations)
    os.environ["XLA_FLAGS"] = f"--xla_gpu_cuda_data_dir={cuda} --xla_gpu_enable_triton_gemm=false"
    os.environ["PATH"] = f"{cuda / 'bin'}:{os.environ['PATH']}"
    os.environ.update(JAX_PLATFORMS="cpu", MOSAIC_GPU_DUMP_PTXAS="1", MOSAIC_GPU_DUMP_TO=room)

    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    import jaxtrelu

    numbers = TARGETS[target]
    text = DESCRIPTION.format(**numbers, shared_bytes=numbers["shared"] * 1024, name=target)
    options = {"topology": "1x1x1", "target_config": text}
    device = topologies.get_topology_desc("", "cuda", **options).devices[0]
    found = {}

    def compiled(case, function, *operands):
        place = SingleDeviceSharding(device)
        types = [jax.ShapeDtypeStruct(s, d, sharding=place) for s, d in operands]
        try:
            with jax.default_device(device):
                program = jax.jit(function).lower(*types).compile()
            found[case] = program.as_text()
            found[f"peer bytes of {case}"] = program.memory_analysis().temp_size_in_bytes
        except Exception as error:  # reported by the test
            found[case] = f"{type(error).__name__}: {error}"

    def elementwise(x, threshold, **options):
        y = jaxtrelu.thresholded_relu(x, threshold, implementation=GPU, **options)
        return y.astype(jnp.float32).sum()

    def linear(x, w, b, threshold):
        y = jaxtrelu.thresholded_linear(x, w, threshold, b=b, implementation=GPU)
        return y.astype(jnp.float32).sum()

    for dtype in ("float32", "bfloat16", "float16"):
        for shape, threshold in (
            ((256, 4096), ()),
            ((5, 3, 70), (70,)),
            ((70, 160), (70, 1)),
            ((70, 160), (70, 160)),
            ((), ()),
        ):
            gradient = jax.grad(elementwise, argnums=(0, 1))
            name = f"elementwise {dtype} {shape} {threshold}"
            compiled(name, gradient, (shape, dtype), (threshold, "float32"))
    batched = jax.vmap(jax.grad(elementwise))
    compiled("elementwise vmap", batched, ((4, 8, 96), "float32"), ((4,), "float32"))
    if target == "h100":
        for dtype in ("bfloat16", "float16"):
            for rows, depth, columns in ((8192, 8192, 8192), (40, 130, 300)):
                shapes = ((rows, depth), (depth, columns), (columns,))
                gradient = jax.grad(linear, argnums=(0, 1, 2, 3))
                operands = [(shape, dtype) for shape in shapes]
                name = f"linear {dtype} {rows}x{depth}x{columns}"
                compiled(name, gradient, *operands, ((columns,), "float32"))
    if target == "h100":
        types = [(s, "float32") for s in ((1024, 768), (16384, 768), (16384, 768), (16384,))]

        def block(**options):
            def loss(x, w_in, w_out, threshold):
                y = jaxtrelu.sparse_mlp(x, w_in, w_out, threshold, variant="hard", **options)
                return (y**2).sum()

            return jax.grad(loss, argnums=(0, 1, 2, 3))

        def dense(x, w_in, w_out, threshold):
            a = jaxtrelu.thresholded_relu(x @ w_in.T, threshold, variant="hard")
            return ((a @ w_out) ** 2).sum()

        compiled("peer dense block", jax.grad(dense, argnums=(0, 1, 2, 3)), *types)
        compiled("peer block", block(), *types)
        compiled("peer block by gathers", block(products="gathers", capacity=128), *types)
        compiled("peer block by loops", block(products="loops"), *types)
    sizes = [(s, "bfloat16") for s in ((1024, 1024), (1024, 1024), (1024,))]
    compiled("peer folded", lambda x, w, b: jnp.maximum(x @ w + (b - jnp.bfloat16(0.5)), 0), *sizes)
    compiled(
        "peer shift",
        lambda x, w, b: jaxtrelu.thresholded_linear(x, w, 0.5, b=b, implementation="xla"),
        *sizes,
    )
    Path(room, "programs.json").write_text(json.dumps(found))


if __name__ == "__main__":
    with swept():
        main(*sys.argv[1:])
