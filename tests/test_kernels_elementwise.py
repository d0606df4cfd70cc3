"""Every implementation of the elementwise operation, through its public functions, on the CPU.

Kernels are interpreted. Inputs are quarters, so that nothing is rounded; expected values come from
the float64 oracle. Shapes have ragged rows, columns and last words.
"""

import jax
import jax.numpy as jnp
import kernel_back_ends
import numpy as np
import oracle
import pytest
from jax.sharding import PartitionSpec as P

import jaxtrelu
from jaxtrelu import Rectangle, thresholded_relu
from jaxtrelu._backends.mosaic_tpu import half
from jaxtrelu._backends.views import View
from jaxtrelu._primitive.lowering import BACK_ENDS
from jaxtrelu._primitive.packing import Packing, words_for
from jaxtrelu._primitive.rules import gate, packing_of, thresholded_p
from jaxtrelu._primitive.spec import Spec

VARIANTS = [
    {"variant": "shift"},
    {"variant": "shift", "ceiling": 0.75},
    {"variant": "hard", "fill": -2},
    {"variant": "clamp"},
]
CASES = [  # shape, dtype of x, shape and dtype of the threshold, variant
    ((5, 70), "float32", (), "float32", 1),
    ((3, 4160), "bfloat16", (4160,), "float32", 2),
    ((3, 64), "bfloat16", (3, 64), "bfloat16", 3),
    ((18, 33), "float32", (18, 1), "float32", 0),
    ((3, 72), "float16", (72,), "float16", 1),
    ((70, 160), "float16", (70, 160), "float16", 0),
    ((2, 3, 5, 7), "float32", (3, 1, 7), "float32", 3),
    ((2, 1, 2, 128), "bfloat16", (2, 1, 1, 1), "float32", 0),
    ((1,), "float32", (), "float32", 2),
    ((33,), "float16", (33,), "float32", 0),
    ((130,), "bfloat16", (1,), "float32", 1),
    ((), "float32", (), "float32", 0),
    ((), "float16", (), "float16", 2),
    ((0,), "float32", (), "float32", 0),
    ((3, 0, 40), "bfloat16", (3, 1, 1), "float32", 3),
]
GATES = [
    ((5, 70), "float32", Packing()),
    ((2, 4160), "bfloat16", Packing()),
    ((2, 3, 40), "float16", Packing(axes=2)),
    ((2, 64, 5), "float32", Packing(behind=1)),
    ((2, 3, 5), "float32", Packing(axes=0)),
]
#: Each dtype, each variant and each kind of threshold: the others are run with `--all`.
QUICK = {0, 2, 4, 6, 9, 12}


def few(cases, quick):
    """The cases as parameters; the indices that are not in `quick` are marked as slow."""
    rows = [case if isinstance(case, tuple) else (case,) for case in cases]
    marks = [() if i in quick else pytest.mark.slow for i in range(len(rows))]
    return [pytest.param(*row, marks=mark) for row, mark in zip(rows, marks, strict=True)]


def draw(seed, shape, dtype="float32"):
    quarters = np.random.default_rng(seed).integers(-8, 9, shape) / 4
    return jnp.asarray(quarters, dtype)


@pytest.fixture(params=kernel_back_ends.IMPLEMENTATIONS)
def name(request, monkeypatch, capfd):
    yield kernel_back_ends.on_this_machine(request.param, monkeypatch)
    assert "RACE" not in capfd.readouterr().out.upper()


def check_gradients(name, x, threshold, options):
    """Value and both cotangents against the oracle; a closed gate stops a NaN."""
    y, pull = jax.vjp(
        lambda x, t: thresholded_relu(x, t, implementation=name, **options), x, threshold
    )
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    np.testing.assert_array_equal(oracle.wide(y), oracle.value(x, threshold, **options))
    ct = draw(7, x.shape, x.dtype)
    if options["variant"] != "clamp":  # there the threshold's cotangent passes where closed
        opened = oracle.opened(x, threshold, options.get("ceiling"))
        ct = jnp.where(opened, ct, jnp.asarray(jnp.nan, ct.dtype))
    dx, dt = pull(ct)
    expected_dx, expected_dt = oracle.cotangents(x, threshold, ct, **options)
    np.testing.assert_array_equal(oracle.wide(dx), expected_dx)
    np.testing.assert_allclose(oracle.wide(dt), expected_dt, rtol=oracle.RTOL[dt.dtype.name])


class TestElementwise:
    @pytest.mark.parametrize(
        ("shape", "dtype", "threshold_shape", "wide", "variant"), few(CASES, QUICK)
    )
    def test_value_and_gradients(self, name, shape, dtype, threshold_shape, wide, variant):
        x, threshold = draw(0, shape, dtype), draw(1, threshold_shape, wide)
        check_gradients(name, x, threshold, VARIANTS[variant])

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
    def test_words_of_values_that_are_not_finite(self, name, dtype):
        special = jnp.asarray([jnp.nan, jnp.inf, -jnp.inf, -0.0], dtype)
        x = draw(0, (3, 70), dtype).at[0, :4].set(special)
        threshold = draw(1, (1, 70)).at[0, 4].set(jnp.nan)
        spec = Spec("hard", implementation=name)
        y, words = thresholded_p.bind(
            x, threshold, spec=spec, packing=Packing(), outputs=("value", "gate")
        )
        np.testing.assert_array_equal(oracle.wide(y), oracle.value(x, threshold, variant="hard"))
        assert not np.signbit(np.asarray(y, np.float64)[oracle.wide(y) == 0]).any()
        assert (words.shape, words.dtype) == ((3, words_for(70)), jnp.uint32)
        bits = np.asarray(Packing().unpack(words, (3, 96)))
        np.testing.assert_array_equal(bits[:, :70], oracle.opened(x, threshold))
        assert not bits[:, 70:].any(), "bits past the end are zero"

    @pytest.mark.parametrize("width", few([1, 2, 31, 32, 33, 127, 128, 129], {0, 4, 6}))
    def test_widths(self, name, width):
        x, ct = draw(2, (3, width)), draw(3, (3, width))
        y, pull = jax.vjp(lambda x: thresholded_relu(x, 0.25, implementation=name), x)
        np.testing.assert_array_equal(y, oracle.value(x, 0.25))
        np.testing.assert_array_equal(pull(ct)[0], oracle.cotangents(x, 0.25, ct)[0])

    def test_window(self, name):
        x, threshold = draw(2, (4, 130)), draw(3, (130,))
        ct = draw(4, x.shape)
        dt = jax.vjp(
            lambda t: jaxtrelu.jump_relu(x, t, surrogate=Rectangle(1.0), implementation=name),
            threshold,
        )[1](ct)[0]
        expected = oracle.cotangents(
            x, threshold, ct, variant="hard", density=lambda u: 1.0 * (np.abs(u) < 0.5)
        )[1]
        np.testing.assert_allclose(dt, expected, rtol=1e-6)

    @pytest.mark.parametrize(
        ("shape", "dtype", "packing", "invert"),
        few([(*gate, invert) for invert in (False, True) for gate in GATES], {0, 2, 4, 6, 8}),
    )
    def test_gate(self, name, shape, dtype, packing, invert):
        mask = np.random.default_rng(4).random(shape) < 0.5
        words = packing.pack(jnp.asarray(mask))
        t = draw(5, shape, dtype)
        t = jnp.where(mask == invert, jnp.asarray(jnp.nan, dtype), t)  # closed is 0, even so
        out = gate(t, words, packing, invert=invert, implementation=name)
        assert out.dtype == t.dtype
        np.testing.assert_array_equal(out, np.where(mask != invert, t, 0))

    @pytest.mark.parametrize("axes", [(0, None), (1, 0), (None, 0)])
    def test_vmap(self, name, axes):
        x, threshold = draw(0, (4, 3, 37)), draw(1, (4,))
        x = {0: x, 1: jnp.moveaxis(x, 0, 1), None: x[0]}[axes[0]]
        threshold = threshold[0] if axes[1] is None else threshold
        gradient = jax.grad(
            lambda x, t: (thresholded_relu(x, t, implementation=name) ** 2).sum(), argnums=(0, 1)
        )
        dx, dt = jax.vmap(gradient, in_axes=axes)(x, threshold)
        for i in range(4):
            one = x if axes[0] is None else jnp.take(x, i, axes[0])
            t = threshold if axes[1] is None else threshold[i]
            ct = 2 * oracle.value(one, t)
            expected = oracle.cotangents(one, t, ct)
            np.testing.assert_allclose(dx[i], expected[0], rtol=1e-6)
            np.testing.assert_allclose(dt[i], expected[1], rtol=1e-5)

    # XLA: test_sharding.py. Mosaic GPU: interpreted on one device only.
    @pytest.mark.parametrize("name", ["mosaic_tpu"], indirect=True)
    def test_shard_map(self, name):
        """The kernels themselves, in a compiled program over two devices."""
        mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        x, threshold = draw(0, (4, 70)), draw(1, (1, 70))
        packing, kernels = Packing(), BACK_ENDS[name].kernels

        def local(x, threshold):
            threshold = jax.lax.pcast(threshold, "data", to="varying")
            y, words = kernels["thresholded_relu"].run(
                x, threshold, spec=Spec(), packing=packing, outputs=("value", "gate")
            )
            options = {"packing": packing, "invert": False, "implementation": name}
            return y, kernels["thresholded_gate"].run(x, words, **options)

        # JAX 0.10's interpreter declares no varying axes for its callbacks.
        mapped = jax.shard_map(
            local, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"), check_vma=False
        )
        y, gated = jax.jit(mapped)(x, threshold)
        np.testing.assert_array_equal(y, oracle.value(x, threshold))
        np.testing.assert_array_equal(gated, oracle.cotangents(x, threshold, x)[0])

    def test_forward_mode(self, name):
        x, dx = draw(0, (3, 70)), draw(1, (3, 70))
        _, dy = jax.jvp(lambda x: thresholded_relu(x, 0.5, implementation=name), (x,), (dx,))
        np.testing.assert_array_equal(dy, np.where(oracle.opened(x, 0.5), dx, 0))


class TestViews:
    """Arrays of any rank as the matrices that kernels take."""

    @pytest.mark.parametrize(
        ("shape", "threshold_shape", "packing", "expected"),
        [
            ((2, 3, 64), (), Packing(), (1, 1)),
            ((2, 3, 64), (1, 1, 64), Packing(), (1, 64)),
            ((2, 3, 64), (2, 1, 1), Packing(), (6, 1)),
            ((2, 3, 64), (2, 1, 64), Packing(), (6, 64)),
            ((2, 3, 5), (1, 1, 5), Packing(axes=3), (1, 30)),
            ((2, 3, 5), (1, 1, 1), Packing(axes=2), (1, 1)),
            ((2, 64, 5), (2, 1, 1), Packing(behind=1), (10, 1)),
            ((2, 64, 5), (1, 64, 1), Packing(behind=1), (1, 64)),
            ((2, 3, 5), (1, 3, 1), Packing(axes=0), (6, 1)),
        ],
    )
    def test_round_trip(self, shape, threshold_shape, packing, expected):
        view = View(shape, packing)
        threshold = draw(6, threshold_shape)
        matrix = view.threshold(threshold)
        assert matrix.shape == expected
        x = jnp.broadcast_to(threshold, shape)
        np.testing.assert_array_equal(jnp.broadcast_to(matrix, view.rows(x).shape), view.rows(x))
        np.testing.assert_array_equal(view.value(view.rows(x)), x)
        words = packing.pack(x > 0)
        np.testing.assert_array_equal(view.words(view.packed(words)), words)

    @pytest.mark.parametrize("shape", [(3, 70), (4, 8, 8), (5,), ()])
    def test_packing_of_the_operation(self, shape):
        x = draw(1, shape)
        words = packing_of(x).pack(x > 0)
        view = View(shape, packing_of(x))
        np.testing.assert_array_equal(view.words(view.packed(words)), words)


class TestHalf:
    """float16 by its bits: every number there is, and the borders of rounding."""

    ALL = np.arange(2**16, dtype=np.uint16).view(np.float16)

    def test_decode(self):
        got = np.asarray(jax.jit(half.decode)(self.ALL.view(np.int16)))
        np.testing.assert_array_equal(got, self.ALL.astype(np.float32))
        np.testing.assert_array_equal(np.signbit(got), np.signbit(self.ALL))

    def test_encode(self):
        positive = self.ALL[:0x7C00].astype(np.float64)
        middles = np.append((positive[1:] + positive[:-1]) / 2, 65520.0).astype(np.float32)
        beside = [np.nextafter(middles, np.float32(end)) for end in (0, np.inf)]
        edges = np.array([1e-10, 65536.0, 1e30, np.inf, np.nan], np.float32)
        values = np.concatenate([positive.astype(np.float32), middles, *beside, edges])
        values = np.concatenate([values, -values])
        got = np.asarray(jax.jit(half.encode)(values)).view(np.float16)
        with np.errstate(over="ignore"):
            expected = values.astype(np.float16)
        np.testing.assert_array_equal(got, expected)
        known = ~np.isnan(values)
        np.testing.assert_array_equal(np.signbit(got[known]), np.signbit(values[known]))
