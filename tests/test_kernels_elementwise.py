"""Every implementation of the elementwise forward pass and the gate, against the float64 oracle.

Inputs are quarters, so that nothing is rounded; shapes have ragged rows, columns and last words.
"""

import jax.numpy as jnp
import kernel_back_ends
import numpy as np
import oracle
import pytest

from jaxtrelu import Rectangle
from jaxtrelu.kernels import views
from jaxtrelu.packing import Packing, unpack_last, words_for
from jaxtrelu.variants import Spec

IMPLEMENTATIONS = ("xla", "mosaic_tpu", "mosaic_gpu")
KINDS = {
    "number": lambda shape: (1, 1),
    "channel": lambda shape: (1, shape[1]),
    "row": lambda shape: (shape[0], 1),
    "full": lambda shape: shape,
}
CASES = [  # shape, dtype, kind of threshold, variant
    ((5, 70), "float32", "number", {"variant": "shift", "ceiling": 0.75}),
    ((3, 4160), "bfloat16", "channel", {"variant": "hard", "fill": -2}),
    ((3, 64), "bfloat16", "full", {"variant": "clamp"}),
    ((18, 33), "float32", "row", {"variant": "shift"}),
]
GPU_CASES = [((3, 72), "float16", "channel", {"variant": "hard"})]


def draw(seed, shape, dtype="float32"):
    quarters = np.random.default_rng(seed).integers(-8, 9, shape) / 4
    return jnp.asarray(quarters, dtype)


@pytest.fixture(params=IMPLEMENTATIONS)
def name(request, capfd):
    yield request.param
    assert "RACE" not in capfd.readouterr().out.upper()


class TestElementwise:
    @pytest.mark.parametrize(("shape", "dtype", "kind", "variant"), CASES + GPU_CASES)
    def test_value_and_gate(self, name, shape, dtype, kind, variant):
        if name == "mosaic_tpu" and dtype == "float16":
            pytest.skip("Mosaic TPU does not load float16; the dispatch gives it to XLA")
        x = draw(0, shape, dtype).at[0, :3].set(jnp.asarray([jnp.nan, jnp.inf, -jnp.inf], dtype))
        threshold = draw(1, KINDS[kind](shape))
        y, words = kernel_back_ends.back_end(name).forward(
            x, threshold, Spec(**variant), ("value", "gate")
        )
        assert (y.shape, y.dtype) == (x.shape, x.dtype)
        np.testing.assert_array_equal(
            oracle.wide(y), oracle.value(x, threshold, **variant), strict=True
        )
        assert (words.shape, words.dtype) == ((shape[0], words_for(shape[1])), jnp.uint32)
        bits = np.asarray(unpack_last(words, words.shape[1] * 32))
        opened = oracle.opened(x, threshold, variant.get("ceiling"))
        np.testing.assert_array_equal(bits[:, : shape[1]], opened)
        assert not bits[:, shape[1] :].any(), "bits past the end are zero"

    def test_window(self, name):
        x, threshold = draw(2, (4, 130)), draw(3, (1, 130))
        spec = Spec("hard", surrogate=Rectangle(1.0))
        (words,) = kernel_back_ends.back_end(name).forward(x, threshold, spec, ("window",))
        inside = np.abs(oracle.wide(x) - oracle.wide(threshold)) < 0.5
        np.testing.assert_array_equal(unpack_last(words, 130), inside)

    @pytest.mark.parametrize("invert", [False, True])
    @pytest.mark.parametrize(("shape", "dtype"), [((5, 70), "float32"), ((2, 4160), "bfloat16")])
    def test_gate(self, name, shape, dtype, invert):
        mask = np.random.default_rng(4).random(shape) < 0.5
        words = kernel_back_ends.pack_last(jnp.asarray(mask))
        t = draw(5, shape, dtype)
        t = jnp.where(mask == invert, jnp.asarray(jnp.nan, dtype), t)  # closed is 0, even so
        out = kernel_back_ends.back_end(name).gate(t, words, invert=invert)
        assert out.dtype == t.dtype
        np.testing.assert_array_equal(out, np.where(mask != invert, t, 0))


class TestViews:
    """Arrays of any rank as the matrices that kernels take."""

    @pytest.mark.parametrize(
        ("shape", "threshold_shape", "axes", "expected"),
        [
            ((2, 3, 64), (), 1, (1, 1)),
            ((2, 3, 64), (1, 1, 64), 1, (1, 64)),
            ((2, 3, 64), (2, 1, 1), 1, (6, 1)),
            ((2, 3, 64), (2, 1, 64), 1, (6, 64)),
            ((2, 3, 5), (1, 1, 5), 3, (1, 30)),
            ((2, 3, 5), (1, 1, 1), 2, (1, 1)),
        ],
    )
    def test_threshold(self, shape, threshold_shape, axes, expected):
        packing = Packing(axes=axes)
        threshold = draw(6, threshold_shape)
        matrix = views.threshold_as_rows(threshold, shape, packing)
        assert matrix.shape == expected
        x = jnp.broadcast_to(threshold, shape)
        rows = views.as_rows(x, packing)
        np.testing.assert_array_equal(jnp.broadcast_to(matrix, rows.shape), rows)
        assert views.words_shape(shape, packing)[:-1] == shape[: len(shape) - axes]

    @pytest.mark.parametrize(
        ("shape", "packing", "words"),
        [
            ((0, 4), Packing(), "no elements"),
            ((4, 4), Packing(axes=0), "mask"),
            ((64, 4), Packing(behind=1), "packed along axis -2"),
        ],
    )
    def test_unsupported(self, shape, packing, words):
        assert words in views.unsupported_view(shape, packing)
