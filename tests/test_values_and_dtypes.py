"""NaN, infinities, signed zeros, dtypes and shapes: the rows that a random test does not draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtrelu
from jaxtrelu import thresholded_relu

FLOATS = ["float64", "float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"]
VARIANTS = [{}, {"ceiling": 2.0}, {"variant": "hard"}, {"variant": "clamp"}]
NAN, INF = float("nan"), float("inf")


def both(function, *operands):
    """The result, after checking that eager and jit agree to the bit."""
    eager, compiled = function(*operands), jax.jit(function)(*operands)
    wide = (np.asarray(y).astype(np.float64) for y in (eager, compiled))
    np.testing.assert_array_equal(*wide)
    return eager


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_nan_in_nan_out(options, dtype):
    with jax.enable_x64(True):
        x = jnp.array([NAN, -1.0, 3.0]).astype(dtype)
        for threshold in (0.5, jnp.asarray(0.5, dtype), jnp.full(3, 0.5, dtype)):
            y = both(lambda x, t: thresholded_relu(x, t, **options), x, threshold)
            np.testing.assert_array_equal(np.isnan(np.asarray(y, np.float64)), [1, 0, 0])
        nan = jnp.asarray(NAN, dtype)
        for threshold in (nan, jnp.full(3, nan)):
            y = both(lambda x, t: thresholded_relu(x, t, **options), x, threshold)
            assert np.isnan(np.asarray(y, np.float64)).all()


def test_nan_reaches_the_step():
    y = jaxtrelu.step(jnp.array([NAN, 0.0, 1.0]), 0.5)
    np.testing.assert_array_equal(y, [NAN, 0, 1])
    assert np.isnan(jaxtrelu.step(jnp.ones(3), jnp.float32(NAN))).all()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0, 0, INF]),
        ({"ceiling": 2.0}, [0, 0, 2]),
        ({"variant": "hard"}, [0, 0, INF]),
        ({"variant": "hard", "fill": 7}, [7, 7, INF]),
        ({"variant": "clamp"}, [0.5, 0.5, INF]),
    ],
    ids=str,
)
def test_infinities_and_no_negative_zero(options, expected):
    y = both(lambda x: thresholded_relu(x, 0.5, **options), jnp.array([-INF, -0.0, INF]))
    np.testing.assert_array_equal(y, expected)
    assert not np.signbit(y).any()


def test_infinite_thresholds():
    x = jnp.array([-INF, 0.0, INF])
    np.testing.assert_array_equal(thresholded_relu(x, INF, variant="hard"), [0, 0, 0])
    np.testing.assert_array_equal(thresholded_relu(x, -INF, variant="hard"), [0, 0, INF])
    np.testing.assert_array_equal(thresholded_relu(x, -INF), [0, INF, INF])


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_output_has_the_dtype_of_x(dtype):
    with jax.enable_x64(True):
        x = jnp.array([-1.0, 0.5, 3.0]).astype(dtype)
        for threshold in (1, 0.5, np.float64(0.5), jnp.float32(0.5), jnp.ones(3, "bfloat16")):
            for options in VARIANTS:
                y = thresholded_relu(x, threshold, **options)
                assert y.dtype == x.dtype
                assert y.shape == x.shape
                gradient = jax.grad(
                    lambda x, t=threshold, o=options: (
                        thresholded_relu(x, t, **o).astype("float32").sum()
                    )
                )(x)
                assert gradient.dtype == x.dtype


def test_a_python_number_is_taken_in_the_dtype_of_x():
    """At x = bfloat16(0.1) and threshold 0.1 the gate is closed: both round to the same number."""
    x = jnp.bfloat16(0.1)
    assert thresholded_relu(x, 0.1, variant="hard") == 0
    assert jax.jit(lambda x, t: thresholded_relu(x, t, variant="hard"))(x, 0.1) == 0
    # An array keeps its own precision, and bfloat16(0.1) is a little more than float32(0.1).
    assert thresholded_relu(x, jnp.float32(0.1), variant="hard") == x
    assert thresholded_relu(x, np.float32(0.1), variant="hard") == x


def test_the_comparison_is_not_rounded():
    x = jnp.bfloat16(1.0)
    just_below, just_above = jnp.float32(1 - 2**-20), jnp.float32(1 + 2**-20)
    assert thresholded_relu(x, just_below, variant="hard") == 1
    assert thresholded_relu(x, just_above, variant="hard") == 0
    np.testing.assert_allclose(np.float64(thresholded_relu(x, just_below)), 2**-20)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"])
def test_integers(dtype):
    with jax.enable_x64(True):
        x = jnp.arange(6).astype(dtype)
        for threshold in (2, 2.0, jnp.asarray(2, dtype), np.asarray(2, dtype)):
            for options, expected in [
                ({}, [0, 0, 0, 1, 2, 3]),
                ({"ceiling": 2}, [0, 0, 0, 1, 2, 2]),
                ({"variant": "hard", "fill": 9}, [9, 9, 9, 3, 4, 5]),
                ({"variant": "clamp"}, [2, 2, 2, 3, 4, 5]),
            ]:
                y = both(lambda x, t=threshold, o=options: thresholded_relu(x, t, **o), x)
                assert y.dtype == x.dtype
                np.testing.assert_array_equal(y, expected)
        slope = jaxtrelu.derivative(x, 2)
        np.testing.assert_array_equal(slope, [0, 0, 0, 1, 1, 1])


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (0, 33), (1, 1, 1), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_empty_and_small_arrays(shape, options):
    x, tangent = jnp.full(shape, 3.0), jnp.ones(shape)

    def function(x, t):
        return thresholded_relu(x, t, **options)

    for threshold in (1.0, jnp.ones(shape), jnp.ones(shape[-1:])):
        threshold = jnp.asarray(threshold)
        assert both(function, x, threshold).shape == shape
        _, pushed = jax.jvp(function, (x, threshold), (tangent, jnp.ones_like(threshold)))
        dx, dt = jax.vjp(function, x, threshold)[1](tangent)
        assert pushed.shape == dx.shape == shape
        assert dt.shape == threshold.shape
        opened = 0.0 if options.get("ceiling") else 1.0
        np.testing.assert_array_equal(dx, np.full(shape, opened))
    assert jax.vmap(lambda x: function(x, 1.0))(x[None]).shape == (1, *shape)


def test_anything_that_is_an_array():
    expected = [[0, 1], [2, 0]]
    rows = [[1, 2], [3, 0]]
    for x in (rows, tuple(rows), np.array(rows, "float32"), [jnp.array(r) for r in rows]):
        np.testing.assert_array_equal(thresholded_relu(x, 1), expected)
    assert thresholded_relu(2.5) == 1.5
    assert thresholded_relu(np.float32(2.5)).dtype == jnp.float32
    assert thresholded_relu([], 1.0).shape == (0,)


def test_words_of_the_family():
    x = jnp.linspace(-2, 4, 13)
    np.testing.assert_array_equal(jaxtrelu.shifted_relu(x, 0.5), thresholded_relu(x, 0.5))
    jumped = jaxtrelu.jump_relu(x, 0.5, surrogate=jaxtrelu.Rectangle(0.1))
    np.testing.assert_array_equal(jumped, thresholded_relu(x, 0.5, variant="hard"))
    np.testing.assert_array_equal(jaxtrelu.step(x, 0.5), (x > 0.5) * 1.0)
