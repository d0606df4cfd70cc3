"""Exported artifacts: one for all platforms, read by a fresh process; kernels for CUDA and TPU."""

import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jaxtrelu

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
GPU = "experimental_mosaic_gpu"
X = jax.ShapeDtypeStruct((6, 256), jnp.float32)


def loss(x, threshold):
    return (jaxtrelu.thresholded_relu(x, threshold) ** 2).sum()


def test_one_artifact_for_all_platforms(tmp_path):
    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    exported = export.export(gradient, platforms=PLATFORMS)(X, jax.ShapeDtypeStruct((), X.dtype))
    assert exported.platforms == PLATFORMS
    (tmp_path / "artifact").write_bytes(exported.serialize())
    x = np.random.default_rng(0).normal(size=X.shape).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    code = """
import sys
import jax
import numpy as np
room = sys.argv[1]
exported = jax.export.deserialize(open(room + "/artifact", "rb").read())
value, (dx, dt) = exported.call(np.load(room + "/x.npy"), np.float32(0.25))
np.savez(room + "/out.npz", value=value, dx=dx, dt=dt)
print("jaxtrelu" in sys.modules)
"""
    command = [sys.executable, "-c", "import jax.export\n" + code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"], "an artifact needs JAX alone"
    got = np.load(tmp_path / "out.npz")
    value, (dx, dt) = gradient(x, jnp.float32(0.25))
    for name, expected in (("value", value), ("dx", dx), ("dt", dt)):
        np.testing.assert_allclose(got[name], expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", [(256, 4096), (5, 3, 70)])
def test_cuda_kernels(dtype, shape):
    def named(x, threshold):
        y = jaxtrelu.thresholded_relu(x, threshold, implementation=GPU)
        return (y.astype(jnp.float32) ** 2).sum()

    operands = (jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct(shape[-1:], "float32"))
    gradient = jax.jit(jax.grad(named, argnums=(0, 1)))
    module = export.export(gradient, platforms=("cuda",))(*operands).mlir_module()
    names = set(re.findall(r"thresholded_\w+?_gpu", module))
    assert {"thresholded_relu_gpu", "thresholded_gate_gpu"} <= names


def test_cuda_kernels_inside_shard_map():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.PartitionSpec("data", None)

    def gradient(x):
        return jax.grad(lambda x: jaxtrelu.thresholded_relu(x, 0.5, implementation=GPU).sum())(x)

    mapped = jax.jit(jax.shard_map(gradient, mesh=mesh, in_specs=rows, out_specs=rows))
    x = jax.ShapeDtypeStruct((64, 256), jnp.float32)
    module = export.export(mapped, platforms=("cuda",))(x).mlir_module()
    assert "thresholded_gate_gpu" in module


def test_rocm_takes_xla():
    module = export.export(jax.jit(jax.grad(loss)), platforms=("rocm",))(X, X).mlir_module()
    assert "custom_call" not in module


def test_linear_for_all_platforms():
    def linear(x, w, b):
        def loss(x, w, b):
            return jaxtrelu.thresholded_linear(x, w, b=b).sum()

        return jax.grad(loss, argnums=(0, 1, 2))(x, w, b)

    operands = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((64, 128), (128, 256), (256,))]
    exported = export.export(jax.jit(linear), platforms=PLATFORMS)(*operands)
    again = export.deserialize(exported.serialize())
    rng = np.random.default_rng(1)
    values = [rng.normal(size=o.shape).astype(np.float32) for o in operands]
    for got, expected in zip(again.call(*values), jax.jit(linear)(*values), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [
        ((8192, 8192, 8192), "bfloat16"),
        ((40, 130, 300), "float16"),
        pytest.param((8192, 8192, 8192), "float16", marks=pytest.mark.slow),
        pytest.param((40, 130, 300), "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_cuda_linear_kernels(dtype, sizes):
    rows, depth, columns = sizes

    def named(x, w, b):
        y = jaxtrelu.thresholded_linear(x, w, 0.5, b=b, implementation=GPU)
        return y.astype(jnp.float32).sum()

    shapes = ((rows, depth), (depth, columns), (columns,))
    operands = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    gradient = jax.jit(jax.grad(named, argnums=(0, 1, 2)))
    module = export.export(gradient, platforms=("cuda",))(*operands).mlir_module()
    for kernel in (
        "thresholded_linear_gpu",
        "thresholded_linear_dx_gpu",
        "thresholded_linear_dw_gpu",
    ):
        assert kernel in module


JUMP = {"surrogate": jaxtrelu.Rectangle(0.3)}


def listed_entries(x, w_in, threshold, w_out):
    options = {"variant": "hard", **JUMP, "with_activity": True}
    y, activity = jaxtrelu.sparse_mlp(x, w_in, w_out, threshold, **options)
    return (y**2).sum() + activity.l0.sum()


def dense_entries(x, w_in, threshold, w_out):
    z = x @ w_in.T
    y = jaxtrelu.jump_relu(z, threshold, **JUMP) @ w_out
    return (y**2).sum() + jaxtrelu.step(z, threshold, **JUMP).sum()


def listed_gated(x, w_in, threshold, w_out):
    return (jaxtrelu.gated_mlp(x, w_in, w_in, w_out, threshold) ** 2).sum()


def dense_gated(x, w_in, threshold, w_out):
    z = x @ w_in.T
    return (((jaxtrelu.thresholded_relu(z, threshold) * z) @ w_out) ** 2).sum()


@pytest.mark.parametrize(
    ("listed", "dense"),
    [
        pytest.param(listed_entries, dense_entries, id="sparse"),
        # The same lists of entries, and other products of them.
        pytest.param(listed_gated, dense_gated, id="gated", marks=pytest.mark.slow),
    ],
)
def test_sparse_products_for_all_platforms(listed, dense):
    rng = np.random.default_rng(0)
    x, w_in, w_out = (rng.normal(size=(n, 8)).astype(np.float32) for n in (16, 200, 200))
    operands = (x, w_in, np.full(200, 4, np.float32), w_out)
    gradients, expected = (jax.jit(jax.grad(f, range(4))) for f in (listed, dense))
    exported = export.export(gradients, platforms=PLATFORMS)(*operands)
    assert exported.platforms == PLATFORMS
    for one, other in zip(exported.call(*operands), expected(*operands), strict=True):
        size = np.abs(other).max()  # of the terms, most of which can cancel
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6 * size + 1e-3)
        assert size > 0


def test_select_takes_a_symbolic_batch():
    (batch,) = export.symbolic_shape("batch")
    words = jax.ShapeDtypeStruct((batch, 40), jnp.uint32)
    exported = export.export(jax.jit(lambda words: jaxtrelu.bits.compact(words, 7)[0]))(words)
    concrete = jaxtrelu.bits.pack(np.random.default_rng(0).random((3, 1280)) < 0.01)
    expected = jax.jit(lambda words: jaxtrelu.bits.compact(words, 7)[0])(concrete)
    np.testing.assert_array_equal(exported.call(concrete), expected)
