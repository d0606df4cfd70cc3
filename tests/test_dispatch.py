"""Which implementation computes a call, and what a refusal says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jaxtrelu

X = jnp.linspace(-2, 2, 64).reshape(2, 32)
W = jnp.eye(32)


@pytest.mark.parametrize(("name", "platform"), [("mosaic_gpu", "cuda"), ("mosaic_tpu", "tpu")])
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
    with pytest.raises(ValueError, match=r"'xla', 'mosaic_gpu', 'mosaic_tpu', but is 'triton'"):
        jaxtrelu.thresholded_relu(X, implementation="triton")


def lowered_for(platform, function, *operands):
    return export.export(jax.jit(function), platforms=(platform,))(*operands)


@pytest.mark.parametrize(
    ("name", "dtype", "words"),
    [
        ("mosaic_tpu", "float16", "dtype float16 is none of float32, bfloat16"),
        ("mosaic_gpu", "int32", "integers are none of float32, bfloat16, float16"),
        ("mosaic_gpu", "float8_e4m3fn", "dtype float8_e4m3fn"),
    ],
)
def test_dtypes_that_a_kernel_does_not_take(name, dtype, words):
    x = jax.ShapeDtypeStruct((8, 128), dtype)
    platform = {"mosaic_tpu": "tpu", "mosaic_gpu": "cuda"}[name]
    with pytest.raises(NotImplementedError, match=words):
        lowered_for(platform, lambda x: jaxtrelu.thresholded_relu(x, 1, implementation=name), x)


def test_symbolic_shapes_take_xla():
    (n,) = export.symbolic_shape("n")
    x = jax.ShapeDtypeStruct((n, 256), jnp.float32)

    def gradient(name):
        return jax.grad(lambda x: jaxtrelu.thresholded_relu(x, 0.5, implementation=name).sum())

    assert "tpu_custom_call" not in lowered_for("tpu", gradient(None), x).mlir_module()
    with pytest.raises(NotImplementedError, match="symbolic"):
        lowered_for("tpu", gradient("mosaic_tpu"), x)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "rocm"])
def test_xla_is_the_default_but_for_words_on_tpu(platform):
    x = jax.ShapeDtypeStruct((8, 256), jnp.float32)
    gradient = jax.grad(lambda x: jaxtrelu.thresholded_relu(x, 0.5).sum())
    assert "custom_call" not in lowered_for(platform, gradient, x).mlir_module()
    assert "tpu_custom_call" in lowered_for("tpu", gradient, x).mlir_module()


def test_linear_kernels_refuse_vmap_over_weights():
    with pytest.raises(NotImplementedError, match="under vmap"):
        jax.vmap(lambda w: jaxtrelu.thresholded_linear(X, w, implementation="mosaic_tpu"))(W[None])


@pytest.mark.parametrize(
    ("dtype", "threshold", "words"),
    [("float32", 0.5, "TF32"), ("bfloat16", np.ones((64, 1), np.float32), "one number per column")],
)
def test_what_the_linear_kernel_does_not_take(dtype, threshold, words):
    x = jax.ShapeDtypeStruct((64, 64), dtype)

    def linear(x, w):
        return jaxtrelu.thresholded_linear(x, w, None, threshold, implementation="mosaic_gpu")

    with pytest.raises(NotImplementedError, match=words):
        lowered_for("cuda", linear, x, x)
