"""Which implementation computes a call, and what a refusal says."""

import subprocess
import sys
import types

import jax
import jax.extend.backend
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jaxtrelu
from jaxtrelu._primitive.lowering import BACK_ENDS

PLATFORM = {name: back_end.platform for name, back_end in BACK_ENDS.items()}
GPU = "experimental_mosaic_gpu"
X = jax.device_put(np.linspace(-2, 2, 64, dtype=np.float32).reshape(2, 32))
W = jax.device_put(np.eye(32, dtype=np.float32))


@pytest.mark.parametrize(("name", "platform"), [(GPU, "cuda"), ("mosaic_tpu", "tpu")])
@pytest.mark.parametrize(
    "call",
    [
        lambda name: jaxtrelu.thresholded_relu(X, 0.5, implementation=name),
        lambda name: jaxtrelu.jump_relu(
            X, 0.5, surrogate=jaxtrelu.Rectangle(0.1), implementation=name
        ),
        lambda name: jaxtrelu.thresholded_linear(X, W, implementation=name),
        lambda name: jaxtrelu.shifted_relu(X, 0.5, implementation=name),
        lambda name: jaxtrelu.step(X, 0.5, implementation=name),
        lambda name: jax.grad(
            lambda x: jaxtrelu.thresholded_relu(x, 0.5, implementation=name).sum()
        )(X),
    ],
)
@pytest.mark.parametrize("jitted", [False, True])
def test_a_named_back_end_is_not_replaced(name, platform, call, jitted):
    with pytest.raises(NotImplementedError, match=f"it runs on {platform}.* lowered for cpu"):
        (jax.jit(lambda: call(name)) if jitted else lambda: call(name))()


def test_disabled_jit_has_no_kernels():
    with jax.disable_jit(), pytest.raises(NotImplementedError, match="jit is disabled"):
        jaxtrelu.thresholded_relu(X, 0.5, implementation="mosaic_tpu")


def test_disabled_jit():
    expected = jax.grad(lambda x: jaxtrelu.thresholded_relu(x, 0.5).sum())(X)
    with jax.disable_jit():
        got = jax.grad(lambda x: jaxtrelu.thresholded_relu(x, 0.5).sum())(X)
    np.testing.assert_array_equal(got, expected)


def test_unknown_name():
    with pytest.raises(ValueError, match=r"'mosaic_tpu'.* but is 'triton'"):
        jaxtrelu.thresholded_relu(X, implementation="triton")


def lowered_for(platform, function, *operands):
    return export.export(jax.jit(function), platforms=(platform,))(*operands)


@pytest.mark.parametrize("name", ["mosaic_tpu", GPU])
@pytest.mark.parametrize(
    ("dtype", "words"),
    [
        ("int32", "integers are none of float32, bfloat16, float16"),
        ("float8_e4m3fn", "dtype float8_e4m3fn is none of float32, bfloat16, float16"),
    ],
)
def test_dtypes_that_a_kernel_does_not_take(name, dtype, words):
    x = jax.ShapeDtypeStruct((8, 128), dtype)
    with pytest.raises(NotImplementedError, match=words):
        lowered_for(
            PLATFORM[name], lambda x: jaxtrelu.thresholded_relu(x, 1, implementation=name), x
        )


def test_float64_is_refused_by_name_and_goes_to_xla_by_default():
    with jax.enable_x64(True):
        x = jax.ShapeDtypeStruct((8, 256), jnp.float64)
        with pytest.raises(NotImplementedError, match="dtype float64 is none of"):
            lowered_for("tpu", gradient("mosaic_tpu"), x)
        assert "custom_call" not in lowered_for("tpu", gradient(None), x).mlir_module()


@pytest.mark.parametrize(
    ("capability", "elementwise", "linear"),
    [
        ("7.5", False, False),
        ("8.0", jax.__version_info__ >= (0, 12), False),
        ("9.0", True, True),
        ("10.0", True, False),
    ],
)
def test_compute_capability(monkeypatch, capability, elementwise, linear):
    """What the GPU at hand cannot run is refused while lowering, and nothing else is."""
    found = types.SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(jax.extend.backend, "get_default_device", lambda: found)
    x = jax.ShapeDtypeStruct((64, 64), jnp.bfloat16)
    for runs, call in (
        (
            elementwise,
            lambda x: jaxtrelu.thresholded_relu(x, implementation=GPU),
        ),
        (
            linear,
            lambda x: jaxtrelu.thresholded_linear(x, x, implementation=GPU),
        ),
    ):
        if runs:
            assert "custom_call @" in lowered_for("cuda", call, x).mlir_module()
        else:
            with pytest.raises(
                NotImplementedError, match=f"needs compute capability .*this GPU has {capability}"
            ):
                lowered_for("cuda", call, x)
    assert "custom_call" not in lowered_for("cuda", gradient(None), x).mlir_module()


def gradient(name):
    return jax.grad(
        lambda x: jaxtrelu.thresholded_relu(x, 0.5, implementation=name).astype(jnp.float32).sum()
    )


def test_symbolic_shapes_take_xla():
    (n,) = export.symbolic_shape("n")
    x = jax.ShapeDtypeStruct((n, 256), jnp.float32)
    assert "tpu_custom_call" not in lowered_for("tpu", gradient(None), x).mlir_module()
    with pytest.raises(NotImplementedError, match="symbolic"):
        lowered_for("tpu", gradient("mosaic_tpu"), x)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "rocm"])
def test_xla_is_the_default_but_for_words_on_tpu(platform):
    x = jax.ShapeDtypeStruct((8, 256), jnp.float32)
    assert "custom_call" not in lowered_for(platform, gradient(None), x).mlir_module()
    assert "tpu_custom_call" in lowered_for("tpu", gradient(None), x).mlir_module()


@pytest.mark.parametrize("shape", [(256,), (8, 100), (0, 256), ()])
def test_what_takes_xla_on_tpu(shape):
    """Shapes that do not fill the lanes; by name the kernel takes them (test_kernels_*.py)."""
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    assert "tpu_custom_call" not in lowered_for("tpu", gradient(None), x).mlir_module()


@pytest.mark.parametrize(("depth", "columns", "kernels"), [(70, 300, 3), (300, 70, 0)])
def test_what_the_linear_layer_takes_on_tpu(depth, columns, kernels):
    """The words run along the columns: these have to fill the lanes, however deep the product."""

    def loss(x, w):
        return jaxtrelu.thresholded_linear(x, w, 0.5).sum()

    operands = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((600, depth), (depth, columns))]
    text = lowered_for("tpu", jax.grad(loss, argnums=(0, 1)), *operands).mlir_module()
    assert text.count("@tpu_custom_call") == kernels


@pytest.mark.parametrize("name", ["mosaic_tpu", GPU])
def test_kernels_are_counted_by_name(name):
    """One forward and one gate: what is differentiated twice over is not computed twice."""
    x = jax.ShapeDtypeStruct((8, 256), jnp.float32)
    text = lowered_for(PLATFORM[name], gradient(name), x).mlir_module()
    suffix = name.removeprefix("mosaic_")
    if name == "mosaic_tpu":
        assert text.count(f'kernel_name = "thresholded_relu_{suffix}"') == 1
        assert text.count(f'kernel_name = "thresholded_gate_{suffix}"') == 1
    assert text.count("custom_call @") == 2


def test_kernels_are_imported_only_when_used():
    code = """
import sys
import jax
import jax.numpy as jnp
import jaxtrelu
def loss(x):
    y = jaxtrelu.thresholded_relu(x, 0.5)
    return jaxtrelu.thresholded_linear(y, jnp.eye(256)).sum()
x = jnp.ones((8, 256))
jax.jit(jax.grad(loss))(x).block_until_ready()
jax.grad(loss)(x)
room = "jaxtrelu._backends.mosaic_"
kernels = [m for m in sys.modules if m.startswith(room) and m.count(".") > 2]
print(sorted([*kernels, *(m for m in sys.modules if "pallas" in m)]))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(("name", "dtype"), [("mosaic_tpu", "float32"), (GPU, "bfloat16")])
def test_vmap_of_a_linear_kernel_runs_it_per_example(name, dtype):
    def loss(x, w):
        return jaxtrelu.thresholded_linear(x, w, implementation=name).astype(jnp.float32).sum()

    x, w = (jax.ShapeDtypeStruct(s, dtype) for s in ((3, 64, 64), (3, 64, 64)))
    text = lowered_for(PLATFORM[name], jax.vmap(jax.grad(loss, argnums=(0, 1))), x, w).mlir_module()
    assert text.count("custom_call @") == 3
    assert "stablehlo.while" in text


@pytest.mark.parametrize(
    ("dtype", "threshold", "words"),
    [
        ("float32", 0.5, "TF32"),
        ("bfloat16", np.ones((64, 1), np.float32), "one number per column"),
        ("float8_e5m2", 0.5, "dtype float8_e5m2 is none of float32, bfloat16, float16"),
    ],
)
def test_what_the_linear_kernel_does_not_take(dtype, threshold, words):
    x = jax.ShapeDtypeStruct((64, 64), dtype)

    def linear(x, w):
        return jaxtrelu.thresholded_linear(x, w, threshold, implementation=GPU)

    with pytest.raises(NotImplementedError, match=words):
        lowered_for("cuda", linear, x, x)


def test_linear_kernels_refuse_float16_on_tpu_and_empty_operands():
    def linear(x, w):
        return jaxtrelu.thresholded_linear(x, w, implementation="mosaic_tpu")

    half = jax.ShapeDtypeStruct((64, 64), jnp.float16)
    with pytest.raises(NotImplementedError, match="dtype float16 is none of float32, bfloat16"):
        lowered_for("tpu", linear, half, half)
    empty, w = (jax.ShapeDtypeStruct((n, 64), jnp.float32) for n in (0, 64))
    with pytest.raises(NotImplementedError, match="no elements"):
        lowered_for("tpu", linear, empty, w)
