"""Every implementation of the fused linear layer, in interpretation, against float64 products."""

import importlib

import jax
import jax.numpy as jnp
import kernel_back_ends
import numpy as np
import oracle
import pytest

import jaxtrelu
from jaxtrelu.packing import pack_last
from jaxtrelu.variants import Spec

SHAPES = [(20, 48, 64), (40, 130, 300)]  # rows, depth, columns


def draw(seed, shape, dtype):
    """Eighths below 1: products and sums of them are exact in float32."""
    eighths = np.random.default_rng(seed).integers(-7, 8, shape) / 8
    return jnp.asarray(eighths, dtype)


class Kernels:
    """The three functions of a back end, interpreted, with blocks small enough to have several."""

    def __init__(self, name):
        self.module = importlib.import_module(
            f"jaxtrelu.kernels.{name.removeprefix('mosaic_')}_linear"
        )
        self.options = {"interpret": kernel_back_ends.interpreter(name)}
        self.dtype = {"mosaic_tpu": "float32", "mosaic_gpu": "bfloat16"}[name]
        if name == "mosaic_tpu":
            self.options["config"] = self.module.Config(rows=16, columns=128, depth=128)

    def __getattr__(self, function):
        return lambda *operands: getattr(self.module, function)(*operands, **self.options)


@pytest.fixture(params=["mosaic_tpu", "mosaic_gpu"])
def kernels(request, capfd):
    yield Kernels(request.param)
    assert "RACE" not in capfd.readouterr().out.upper()


@pytest.mark.parametrize("shape", SHAPES)
class TestLinear:
    def test_forward(self, kernels, shape):
        rows, depth, columns = shape
        x, w = draw(0, (rows, depth), kernels.dtype), draw(1, (depth, columns), kernels.dtype)
        b, threshold = draw(2, (1, columns), kernels.dtype), draw(3, (1, columns), "float32")
        spec = Spec("shift", ceiling=1.5)
        y, words = kernels.forward(x, w, b, threshold, spec, ("value", "gate"))
        z = oracle.wide(x) @ oracle.wide(w) + oracle.wide(b)
        expected = oracle.value(z, threshold, ceiling=1.5)
        np.testing.assert_allclose(oracle.wide(y), expected, rtol=oracle.RTOL[kernels.dtype])
        opened = jnp.asarray(oracle.opened(z, threshold, 1.5))
        np.testing.assert_array_equal(words, pack_last(opened))

    def test_gradients(self, kernels, shape):
        rows, depth, columns = shape
        x, w = draw(0, (rows, depth), kernels.dtype), draw(1, (depth, columns), kernels.dtype)
        mask = np.random.default_rng(4).random((rows, columns)) < 0.4
        ct = jnp.where(mask, draw(5, (rows, columns), kernels.dtype), jnp.nan).astype(kernels.dtype)
        words = pack_last(jnp.asarray(mask))
        gated = np.where(mask, oracle.wide(ct), 0)
        tolerance = {"rtol": oracle.RTOL[kernels.dtype], "atol": 1e-6}
        dx = kernels.input_gradient(ct, words, w)
        np.testing.assert_allclose(oracle.wide(dx), gated @ oracle.wide(w).T, **tolerance)
        dw, total = kernels.weight_gradient(x, ct, words)
        np.testing.assert_allclose(oracle.wide(dw), oracle.wide(x).T @ gated, **tolerance)
        np.testing.assert_allclose(total, gated.sum(0, keepdims=True), rtol=1e-6, atol=1e-6)


class TestPublic:
    """`thresholded_linear`, as XLA computes it, against the two operations it fuses."""

    @pytest.mark.parametrize("variant", ["shift", "hard", "clamp"])
    @pytest.mark.parametrize("threshold_shape", [(), (40,), (3, 1, 1), (3, 5, 40)])
    def test_gradients(self, variant, threshold_shape):
        x, w, b = (draw(i, s, "float32") for i, s in enumerate([(3, 5, 16), (16, 40), (40,)]))
        threshold = draw(3, threshold_shape, "float32")

        def fused(*operands):
            return (jaxtrelu.thresholded_linear(*operands, variant=variant) ** 2).sum()

        def apart(x, w, b, threshold):
            return (jaxtrelu.thresholded_relu(x @ w + b, threshold, variant=variant) ** 2).sum()

        operands = (x, w, b, threshold)
        got = jax.grad(fused, argnums=range(4))(*operands)
        expected = jax.grad(apart, argnums=range(4))(*operands)
        for g, e in zip(got, expected, strict=True):
            assert g.shape == e.shape
            np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-4)

    def test_vmap(self):
        x, w = draw(0, (2, 5, 16), "float32"), draw(1, (2, 16, 40), "float32")
        loss = jax.grad(lambda x, w: jaxtrelu.thresholded_linear(x, w).sum(), argnums=(0, 1))
        for got, expected in zip(
            jax.vmap(loss)(x, w),
            map(jnp.stack, zip(loss(x[0], w[0]), loss(x[1], w[1]), strict=True)),
            strict=True,
        ):
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)

    def test_shard_map(self):
        mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        x, w = draw(0, (16, 8), "float32"), draw(1, (8, 40), "float32")
        P = jax.sharding.PartitionSpec
        local = jax.shard_map(
            lambda x, w: jax.grad(lambda w: jaxtrelu.thresholded_linear(x, w).sum())(w),
            mesh=mesh,
            in_specs=(P("data"), P()),
            out_specs=P(),
        )
        expected = jax.grad(lambda w: jaxtrelu.thresholded_linear(x, w).sum())(w)
        np.testing.assert_allclose(local(x, w), expected, rtol=1e-5)

    def test_keeps_one_bit_per_output(self):
        x, w = draw(0, (64, 8), "float32"), draw(1, (8, 4096), "float32")
        _, pull = jax.vjp(jaxtrelu.thresholded_linear, x, w)
        kept = sum(leaf.nbytes for leaf in jax.tree.leaves(pull))
        assert kept <= x.nbytes + w.nbytes + 64 * 4096 / 8 + 4096 * 4 + 64

    @pytest.mark.parametrize(
        ("x", "w", "b", "error", "words"),
        [
            ((4, 3), (4, 5), None, ValueError, r"\(\.\.\., d\)"),
            ((4, 3), (3, 5), (4,), ValueError, r"shape \(5,\)"),
        ],
    )
    def test_bad_shapes(self, x, w, b, error, words):
        b = None if b is None else jnp.zeros(b)
        with pytest.raises(error, match=words):
            jaxtrelu.thresholded_linear(jnp.zeros(x), jnp.zeros(w), b)

    def test_mixed_dtypes(self):
        with pytest.raises(TypeError, match="one dtype"):
            jaxtrelu.thresholded_linear(jnp.zeros((2, 3)), jnp.zeros((3, 4), jnp.bfloat16))
