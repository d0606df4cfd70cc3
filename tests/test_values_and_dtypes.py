"""NaN, infinities, signed zeros, dtypes and shapes: the rows that a random test does not draw."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import together

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


def of(options):
    return functools.partial(thresholded_relu, **options)


def named(laws):
    """Laws in one program, each by its number and options."""
    together({f"{i}: {options}": law for i, (options, law) in enumerate(laws)})


@pytest.mark.parametrize("dtype", FLOATS)
def test_nan_in_nan_out(dtype):
    def law(options, x, threshold, wanted):
        y = yield of(options), x, threshold
        np.testing.assert_array_equal(np.isnan(np.asarray(y, np.float64)), wanted)

    with jax.enable_x64(True):
        x = jnp.array([NAN, -1.0, 3.0]).astype(dtype)
        nan, half = (jnp.asarray(number, dtype) for number in (NAN, 0.5))
        rows = [(t, [1, 0, 0]) for t in (0.5, half, jnp.full(3, half))]
        rows += [(t, [1, 1, 1]) for t in (nan, jnp.full(3, nan))]
        named([(o, law(o, x, t, wanted)) for o in VARIANTS for t, wanted in rows])
        for options in VARIANTS:  # step by step
            y = of(options)(x, jnp.full(3, nan).at[0].set(half))
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
    def law(options, x, threshold):
        def program(x):
            gradient = jax.grad(lambda x: of(options)(x, threshold).astype("float32").sum())
            return of(options)(x, threshold), gradient(x)

        for array in (yield program, x):
            assert array.dtype == x.dtype
            assert array.shape == x.shape

    with jax.enable_x64(True):
        x = jnp.array([-1.0, 0.5, 3.0]).astype(dtype)
        thresholds = (1, 0.5, np.float64(0.5), jnp.float32(0.5), jnp.ones(3, "bfloat16"))
        named([(o, law(o, x, t)) for o in VARIANTS for t in thresholds])
        assert of({})(x, 0.5).dtype == of({})(x, thresholds[-1]).dtype == dtype  # step by step


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
    rows = [
        ({}, [0, 0, 0, 1, 2, 3]),
        ({"ceiling": 2}, [0, 0, 0, 1, 2, 2]),
        ({"variant": "hard", "fill": 9}, [9, 9, 9, 3, 4, 5]),
        ({"variant": "clamp"}, [2, 2, 2, 3, 4, 5]),
    ]

    def law(options, x, threshold, wanted):
        y = yield lambda x: of(options)(x, threshold), x
        assert y.dtype == x.dtype
        np.testing.assert_array_equal(y, wanted)

    with jax.enable_x64(True):
        x = jnp.arange(6).astype(dtype)
        thresholds = (2, 2.0, jnp.asarray(2, dtype), np.asarray(2, dtype))
        named([(o, law(o, x, t, wanted)) for o, wanted in rows for t in thresholds])
        for options, wanted in rows:
            np.testing.assert_array_equal(both(of(options), x, thresholds[2]), wanted)
        slope = jaxtrelu.derivative(x, 2)
        np.testing.assert_array_equal(slope, [0, 0, 0, 1, 1, 1])


SHAPES = [(), (0,), (3, 0), (0, 33), (1, 1, 1), (2, 1, 3)]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_empty_and_small_arrays(options):
    def law(shape, threshold_shape):
        x, threshold = jnp.full(shape, 3.0), jnp.ones(threshold_shape)

        def program(x, threshold):
            tangents = jnp.ones_like(x), jnp.ones_like(threshold)
            y, pushed = jax.jvp(of(options), (x, threshold), tangents)
            mapped = jax.vmap(lambda x: of(options)(x, 1.0))(x[None])
            return y, pushed, mapped, jax.vjp(of(options), x, threshold)[1](tangents[0])

        y, pushed, mapped, (dx, dt) = yield program, x, threshold
        assert y.shape == pushed.shape == dx.shape == shape
        assert mapped.shape == (1, *shape)
        assert dt.shape == threshold_shape
        opened = 0.0 if options.get("ceiling") else 1.0
        np.testing.assert_array_equal(dx, np.full(shape, opened))

    pairs = {(shape, t) for shape in SHAPES for t in ((), shape, shape[-1:])}
    together({str(pair): law(*pair) for pair in sorted(pairs)})
    for shape in SHAPES:  # step by step
        assert of(options)(jnp.full(shape, 3.0), 1.0).shape == shape


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
