"""Every implementation of the fused linear layer, through its public function, on the CPU.

Kernels are interpreted; expected values are float64 products and the float64 oracle.
"""

import jax
import jax.numpy as jnp
import kernel_back_ends
import numpy as np
import oracle
import pytest

import jaxtrelu

SMALL_BLOCKS = {"rows": 16, "columns": 128, "depth": 128}  # so that there are several
DTYPES = {
    "xla": ("float32", "bfloat16", "float16"),
    "mosaic_tpu": ("float32", "bfloat16"),
    "experimental_mosaic_gpu": ("bfloat16", "float16"),
}
CASES = [  # shape of x, columns, shape of the threshold, bias, options
    ((20, 48), 64, (), False, {"variant": "shift"}),
    ((20, 130), 160, (160,), True, {"variant": "shift", "ceiling": 1.5}),
    ((3, 5, 16), 40, (), True, {"variant": "hard", "fill": -2}),
    ((1, 70), 1, (1,), True, {"variant": "clamp"}),
    ((7,), 33, (33,), False, {"variant": "clamp"}),
    ((3, 5, 16), 40, (3, 1, 1), True, {"variant": "shift"}),
    ((3, 5, 16), 160, (3, 5, 160), True, {"variant": "clamp"}),
]


def draw(seed, shape, dtype):
    """Eighths below 1: products and sums of them are exact in float32."""
    eighths = np.random.default_rng(seed).integers(-7, 8, shape) / 8
    return jnp.asarray(eighths, dtype)


def with_back_ends():
    """Each case with each implementation that takes it, in one dtype of those that it takes.

    Interpretation takes seconds: without `--all` each other case. XLA takes each case in float32,
    and in one of the narrow dtypes.
    """
    found = []
    for name, dtypes in DTYPES.items():
        for i, (shape, columns, threshold_shape, *rest) in enumerate(CASES):
            if name == "experimental_mosaic_gpu" and len(threshold_shape) > 1:
                continue  # one threshold per column there; the refusal is in test_dispatch.py
            for j, dtype in enumerate(dtypes):
                if j not in ((0, 1 + i % 2) if name == "xla" else (i // 2 % 2,)):
                    continue
                case = ((name, dtype), shape, columns, threshold_shape, *rest)
                marks = () if name == "xla" or i % 2 == 1 else pytest.mark.slow
                found.append(pytest.param(*case, id=f"{name}-{dtype}-{shape}-{i}", marks=marks))
    return found


@pytest.fixture
def back_end(request, monkeypatch, capfd):
    """The name of an implementation, and a dtype that it takes."""
    name, dtype = request.param
    blocks = SMALL_BLOCKS if name == "mosaic_tpu" else None
    kernel_back_ends.on_this_machine(name, monkeypatch, blocks)
    yield name, dtype
    assert "RACE" not in capfd.readouterr().out.upper()


class TestLinear:
    @pytest.mark.parametrize(
        ("back_end", "shape", "columns", "threshold_shape", "bias", "options"),
        with_back_ends(),
        indirect=["back_end"],
    )
    def test_value_and_gradients(self, back_end, shape, columns, threshold_shape, bias, options):
        name, dtype = back_end
        x, w = draw(0, shape, dtype), draw(1, (shape[-1], columns), dtype)
        b = draw(2, (columns,), dtype) if bias else None
        threshold = draw(3, threshold_shape, "float32")
        operands = (x, w, threshold) if b is None else (x, w, threshold, b)

        def layer(x, w, t, b=None):
            return jaxtrelu.thresholded_linear(x, w, t, b=b, implementation=name, **options)

        y, pull = jax.vjp(layer, *operands)
        flat = oracle.wide(x).reshape(-1, shape[-1])
        z = (flat @ oracle.wide(w) + (0 if b is None else oracle.wide(b))).reshape(y.shape)
        tolerance = {"rtol": oracle.RTOL[dtype], "atol": 1e-6}
        np.testing.assert_allclose(
            oracle.wide(y), oracle.value(z, threshold, **options), **tolerance
        )
        ct = draw(5, y.shape, dtype)
        opened = oracle.opened(z, threshold, options.get("ceiling"))
        if options["variant"] != "clamp":  # there the threshold's cotangent passes where closed
            ct = jnp.where(opened, ct, jnp.asarray(jnp.nan, dtype))
        dx, dw, dt, *db = map(oracle.wide, pull(ct))
        dz, expected_dt = oracle.cotangents(z, threshold, ct, **options)
        rows = dz.reshape(-1, columns)
        np.testing.assert_allclose(dx, (rows @ oracle.wide(w).T).reshape(shape), **tolerance)
        np.testing.assert_allclose(dw, flat.T @ rows, **tolerance)
        np.testing.assert_allclose(dt, expected_dt, rtol=1e-5, atol=1e-6)
        if b is not None:
            np.testing.assert_allclose(db[0], rows.sum(0), **tolerance)


class TestPublic:
    """`thresholded_linear`, as XLA computes it, against the two operations it fuses."""

    @pytest.mark.parametrize("variant", ["shift", "hard", "clamp"])
    @pytest.mark.parametrize("threshold_shape", [(), (40,), (3, 1, 1), (3, 5, 40)])
    def test_gradients(self, variant, threshold_shape):
        x, w, b = (draw(i, s, "float32") for i, s in enumerate([(3, 5, 16), (16, 40), (40,)]))
        threshold = draw(3, threshold_shape, "float32")

        def fused(x, w, b, threshold):
            y = jaxtrelu.thresholded_linear(x, w, threshold, b=b, variant=variant)
            return (y**2).sum()

        def apart(x, w, b, threshold):
            return (jaxtrelu.thresholded_relu(x @ w + b, threshold, variant=variant) ** 2).sum()

        operands = (x, w, b, threshold)
        got, expected = jax.jit(
            lambda *o: [jax.grad(f, argnums=range(4))(*o) for f in (fused, apart)]
        )(*operands)
        for g, e in zip(got, expected, strict=True):
            assert g.shape == e.shape
            np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-4)

    @pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
    def test_vmap(self, axes):
        x, w = draw(0, (2, 5, 16), "float32"), draw(1, (2, 16, 40), "float32")
        x, w = (o if a == 0 else o[0] for o, a in zip((x, w), axes, strict=True))
        loss = jax.grad(lambda x, w: jaxtrelu.thresholded_linear(x, w).sum(), argnums=(0, 1))
        got = jax.jit(jax.vmap(loss, in_axes=axes))(x, w)
        for i in range(2):
            one = (o if a is None else o[i] for o, a in zip((x, w), axes, strict=True))
            for g, e in zip(got, jax.jit(loss)(*one), strict=True):
                np.testing.assert_allclose(g[i], e, rtol=1e-6, atol=1e-6)

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
        expected = jax.jit(jax.grad(lambda w: jaxtrelu.thresholded_linear(x, w).sum()))(w)
        np.testing.assert_allclose(jax.jit(local)(x, w), expected, rtol=1e-5)

    def test_float8(self):
        x, w = draw(0, (3, 16), "float8_e5m2"), draw(1, (16, 40), "float8_e5m2")
        y, pull = jax.vjp(lambda x, w: jaxtrelu.thresholded_linear(x, w, threshold=0.25), x, w)
        z = oracle.wide(x) @ oracle.wide(w)
        expected = oracle.rounded(oracle.value(z, 0.25), "float8_e5m2")
        np.testing.assert_array_equal(oracle.wide(y), expected)
        dx, _ = pull(jnp.ones_like(y))
        gated = oracle.opened(z, 0.25) @ oracle.wide(w).T
        np.testing.assert_array_equal(oracle.wide(dx), oracle.rounded(gated, "float8_e5m2"))

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
            jaxtrelu.thresholded_linear(jnp.zeros(x), jnp.zeros(w), b=b)

    def test_mixed_dtypes(self):
        with pytest.raises(TypeError, match="one dtype"):
            jaxtrelu.thresholded_linear(jnp.zeros((2, 3)), jnp.zeros((3, 4), jnp.bfloat16))
