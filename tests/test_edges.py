"""Edges: infinite thresholds, integers that would wrap, ceilings in 16 bits, operands without size.

Each of these once gave NaN, a wrapped number, a gate that disagreed with its value, or an error
about something else.
"""

import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxtrelu
from jaxtrelu import (
    Gaussian,
    Rectangle,
    Sigmoid,
    Triangle,
    antiderivative,
    derivative,
    jump_relu,
    step,
    thresholded_linear,
    thresholded_relu,
)

INF, NAN = float("inf"), float("nan")
FAMILY = [Rectangle, Triangle, Gaussian, Sigmoid]


def gradients(function, *operands):
    """Of the sum, with respect to all operands, in one compilation."""
    every = tuple(range(len(operands)))
    return jax.jit(jax.grad(lambda *o: function(*o).sum(), every))(*operands)


# thresholds at infinity: a feature that is switched off, or always on


@pytest.mark.parametrize("to_input", [False, True], ids=["", "to input"])
@pytest.mark.parametrize("family", FAMILY)
def test_a_threshold_at_infinity_has_no_window(family, to_input):
    surrogate = family(0.1, to_input=to_input)
    x, threshold = jnp.array([0.52, 0.52, 0.52]), jnp.array([INF, -INF, 0.5])

    def both(x, threshold):
        return jump_relu(x, threshold, surrogate=surrogate) + step(x, threshold)

    dx, dt = gradients(both, x, threshold)
    assert dx[:2].tolist() == [0, 1]
    assert dt[:2].tolist() == [0, 0]
    assert dt[2] < 0  # beside it, the others learn as ever
    assert bool(dx[2] > 1) == to_input


@pytest.mark.parametrize("variant", ["shift", "hard", "clamp"])
def test_an_input_equal_to_an_infinite_threshold_is_closed(variant):
    x = threshold = jnp.array([INF, -INF])
    surrogate = None if variant == "clamp" else Gaussian(0.1, to_input=True)
    options = {"variant": variant, "surrogate": surrogate}
    value = thresholded_relu(x, threshold, **options)
    np.testing.assert_array_equal(value, oracle.value(x, threshold, variant=variant))
    for gradient in gradients(lambda x, t: thresholded_relu(x, t, **options), x, threshold):
        assert np.isfinite(gradient).all()


ENDS = [
    (3.0, 1.0, {"ceiling": INF}, 2.0),
    (-INF, 0.0, {"variant": "clamp"}, 0.0),
    (INF, 1.0, {"variant": "hard", "fill": 2}, INF),
    (1.0, INF, {"variant": "hard"}, 0.0),
    (1.0, INF, {"variant": "hard", "fill": 2}, -INF),
    (INF, 1.0, {"ceiling": 2.0}, INF),
    (1.0, INF, {"ceiling": 2.0}, 0.0),
    (-INF, 3.0, {"variant": "hard"}, 0.0),
    (-INF, 3.0, {"variant": "clamp"}, -INF),
]


@pytest.mark.parametrize(("x", "threshold", "options", "area"), ENDS, ids=str)
def test_antiderivative_at_infinity(x, threshold, options, area):
    def integral(x):
        return antiderivative(x, threshold, **options)

    value, slope = jax.jit(jax.value_and_grad(integral))(x)
    ceiling = options.get("ceiling")
    finite = {**options, "ceiling": None} if ceiling == INF else options
    assert (value, slope) == (area, oracle.value(x, threshold, **finite))


@pytest.mark.parametrize(
    "options",
    [{}, {"variant": "hard"}, {"variant": "hard", "fill": 2}, {"variant": "clamp"}],
    ids=str,
)
def test_antiderivative_from_an_infinity(options):
    """To itself, and from minus infinity to 3."""
    x, threshold = jnp.array([INF, -INF, 3.0]), jnp.array([INF, -INF, -INF])
    area = jax.jit(lambda x, t: antiderivative(x, t, **options))(x, threshold)
    assert area.tolist() == [0, 0, -INF if "variant" in options else INF]


@pytest.mark.parametrize(
    "options", [{"variant": "hard", "fill": 2}, {"variant": "clamp"}, {"ceiling": INF}], ids=str
)
def test_antiderivative_in_the_threshold(options):
    x, threshold, h = jnp.array([3.0, -2.0, 0.75]), jnp.array([1.0, 1.0, 0.5]), 2.0**-7
    _, dt = gradients(lambda x, t: antiderivative(x, t, **options), x, threshold)
    options = {name: value for name, value in options.items() if value != INF}
    up, down = (oracle.antiderivative(x, threshold + s, **options) for s in (h, -h))
    np.testing.assert_allclose(dt, (up - down) / (2 * h), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("x", [-2.0, 3.0, INF])
@pytest.mark.parametrize("threshold", [-INF, 1.0])
@pytest.mark.parametrize("options", [{"variant": "hard"}, {"variant": "clamp"}], ids=str)
def test_antiderivative_has_its_slopes_where_an_end_is_infinite(x, threshold, options):
    """The function in x, forward and backward; minus the function's limit from above in theta."""

    def slopes(x, threshold):
        def area(x, t):
            return antiderivative(x, t, **options)

        forward = jax.jvp(lambda x: area(x, threshold), (x,), (1.0,))[1]
        return forward, *jax.grad(area, (0, 1))(x, threshold)

    forward, dx, dt = jax.jit(slopes)(x, threshold)
    assert forward == dx == oracle.value(x, threshold, **options)
    if x > threshold:
        assert dt == -threshold


@pytest.mark.parametrize(
    "options",
    [{}, {"ceiling": 2}, {"variant": "hard"}, {"variant": "hard", "fill": 2}, {"variant": "clamp"}],
    ids=str,
)
def test_antiderivative_of_nan_has_the_slope_nan(options):
    """As the function is NaN there, from x and from a threshold; the second derivative is 1."""
    x = jnp.array([NAN, 1.0, NAN, INF, NAN, 0.0, 3.0])
    threshold = jnp.array([1.0, NAN, NAN, NAN, INF, 1.0, 2.0])

    def area(x, t):
        return antiderivative(x, t, **options)

    @jax.jit
    def slopes(x, threshold):
        dx = jax.vmap(jax.grad(area))
        forward = jax.jvp(lambda x: area(x, threshold), (x,), (jnp.ones_like(x),))[1]
        second = jax.vmap(jax.grad(jax.grad(area)))(x, threshold)
        return area(x, threshold), dx(x, threshold), forward, second

    value, backward, forward, second = slopes(x, threshold)
    expected = oracle.value(x, threshold, **options)
    assert np.isnan(expected).tolist() == [True] * 5 + [False] * 2  # as the laws ask for
    np.testing.assert_array_equal(np.isnan(value), np.isnan(expected))
    np.testing.assert_array_equal(backward, expected)
    np.testing.assert_array_equal(forward, expected)
    assert second[jnp.array([0, 1, 5, 6])].tolist() == [1, 1, 0, 1]


# integers: as Python's, which do not wrap

INTEGERS = ["int8", "int16", "int32", "uint8", "uint16", "uint32"]
WITH_CEILING = jax.jit(
    lambda x, threshold, ceiling: (
        thresholded_relu(x, threshold, ceiling=ceiling),
        derivative(x, threshold, ceiling=ceiling),
    ),
    static_argnums=2,
)
PLAIN = jax.jit(
    lambda x, threshold: (
        thresholded_relu(x, threshold, variant="hard"),
        thresholded_relu(x, threshold, variant="clamp"),
        derivative(x, threshold),
    )
)


def test_the_ceiling_of_integers_does_not_wrap():
    x, high = jnp.array([100, -128, -100], jnp.int8), jnp.array([250, 200, 255], jnp.uint8)
    assert thresholded_relu(x, -100, ceiling=50).tolist() == [50, 0, 0]
    assert derivative(x, -100, ceiling=50).tolist() == [0, 0, 0]
    assert derivative(high, 200, ceiling=100).tolist() == [1, 0, 1]


@pytest.mark.parametrize("dtype", INTEGERS)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_integers_are_those_of_python(dtype, data):
    limits = jnp.iinfo(dtype)
    low, high = int(limits.min), int(limits.max)
    number = st.integers(low, high) | st.sampled_from([low, low + 1, 0, high - 1, high])
    x, threshold = (data.draw(st.lists(number, min_size=8, max_size=8)) for _ in range(2))
    # Static, so each is compiled once: the extremes, and one between them.
    ceiling = data.draw(st.sampled_from([1, high // 2, high]))
    pairs = list(zip(x, threshold, strict=True))
    operands = jnp.array(x, dtype), jnp.array(threshold, dtype)
    value, slope = WITH_CEILING(*operands, ceiling)
    assert value.tolist() == [min(max(a - t, 0), ceiling) for a, t in pairs]
    assert slope.tolist() == [int(0 < a - t < ceiling) for a, t in pairs]
    hard, clamp, slope = PLAIN(*operands)
    assert hard.tolist() == [a if a > t else 0 for a, t in pairs]
    assert clamp.tolist() == [max(a, t) for a, t in pairs]
    assert slope.tolist() == [int(a > t) for a, t in pairs]


# the ceiling in floating point: value and gate agree with the definition in float64


def test_the_gate_does_not_round_threshold_plus_ceiling():
    x, threshold = jnp.array(260, jnp.bfloat16), jnp.array(258, jnp.bfloat16)
    assert thresholded_relu(x, threshold, ceiling=3) == 2
    assert derivative(x, threshold, ceiling=3) == 1


@pytest.mark.parametrize("ceiling", [3, 0.1, 1.5])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_gate_and_value_near_the_ceiling(dtype, ceiling):
    rng = np.random.default_rng(0)
    threshold = oracle.rounded(rng.uniform(-300, 300, 2000), dtype)
    near = np.nextafter(threshold + ceiling, rng.choice([-INF, INF], 2000))
    x = oracle.rounded(near + rng.integers(-2, 3, 2000) * rng.choice([0, 2**-7, 1], 2000), dtype)
    value, slope = WITH_CEILING(jnp.asarray(x, dtype), jnp.asarray(threshold, dtype), ceiling)
    exact = oracle.value(x, threshold, ceiling=ceiling)
    np.testing.assert_allclose(oracle.wide(value), exact, rtol=oracle.RTOL[dtype])
    # The difference is compared in float32; where rounding it there makes it the ceiling, it is.
    way = (x - threshold).astype(np.float32)
    undecided = (way == np.float32(ceiling)) & (x - threshold != ceiling)
    opened = oracle.opened(x, threshold, ceiling)
    assert 0 < opened.mean() < 1
    assert undecided.mean() < 0.5
    np.testing.assert_array_equal((oracle.wide(slope) == 1)[~undecided], opened[~undecided])


def test_a_window_is_measured_in_float32():
    """In bfloat16 this distance would be rounded to the half width, and out of the window."""
    x, threshold = jnp.array([129.0], jnp.bfloat16), jnp.array([0.002], jnp.bfloat16)
    surrogate = Rectangle(258.0)
    (_, dt) = gradients(lambda x, t: step(x, t, surrogate=surrogate), x, threshold)
    assert dt[0] < 0


BEYOND = [("float16", 1e6), ("float16", 10**6), ("bfloat16", 1e39), ("float32", 10**39)]


@pytest.mark.parametrize(("dtype", "ceiling"), BEYOND, ids=str)
@pytest.mark.parametrize("surrogate", [None, Gaussian(0.5)], ids=["", "smoothed"])
def test_a_ceiling_that_the_dtype_does_not_hold_is_never_reached(dtype, ceiling, surrogate):
    """Value, slopes and areas are those without one, and NumPy has nothing to warn of."""
    largest = float(jnp.finfo(dtype).max)
    x = jnp.array([-largest, 0.5, 1.0, 1.75, 300.0, largest], dtype)

    def both(**options):
        def program(x, threshold):
            of = (x, threshold), (jnp.ones_like(x),) * 2
            value, pushed = jax.jvp(
                lambda x, t: thresholded_relu(x, t, surrogate=surrogate, **options), *of
            )
            area = jax.jvp(lambda x, t: antiderivative(x, t, **options), *of)
            return value, pushed, derivative(x, threshold, **options), *area

        return program(x, jnp.full_like(x, 1.0))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        capped = both(ceiling=ceiling)
    jax.tree.map(np.testing.assert_array_equal, capped, both())
    assert not any(np.isnan(oracle.wide(part)).any() for part in capped)


def test_a_ceiling_beyond_16_bits_is_one_where_differences_reach_it():
    """The gate is that of the definition, whose value no float16 is: x - threshold = 120,000."""
    x, threshold = jnp.float16([60000.0, INF]), jnp.float16(-60000.0)
    for ceiling, slope in ((1e5, [0, 0]), (1e6, [1, 0])):
        assert thresholded_relu(x, threshold, ceiling=ceiling).tolist() == [INF, INF]
        assert derivative(x, threshold, ceiling=ceiling).tolist() == slope


# operands without size, and shapes that could not be allocated


def test_no_inputs_at_all():
    """d = 0: the pre-activation is the bias."""
    w, b = jnp.zeros((0, 3)), jnp.array([0.0, 1.0, 2.0])

    def layer(x, w, b):
        return thresholded_linear(x, w, 0.5, b=b)

    x = jnp.zeros((2, 0))
    assert layer(x, w, b).tolist() == [[0.0, 0.5, 1.5]] * 2
    dx, dw, db = gradients(layer, x, w, b)
    assert (dx.shape, dw.shape, db.tolist()) == ((2, 0), (0, 3), [0, 2, 2])


def test_a_wrong_threshold_is_refused_before_anything_is_computed():
    x, w = jnp.zeros((2**40, 0), jnp.bfloat16), jnp.zeros((0, 2**20), jnp.bfloat16)
    words = r"against x @ w \+ b of shape \(1099511627776, 1048576\), but has shape \(5,\)"
    with pytest.raises(ValueError, match=words):
        thresholded_linear(x, w, jnp.ones(5))


# jet: rules that are there before the module that uses them is


def in_a_fresh_process(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_function_that_was_compiled_before_jet_was_imported():
    code = """
import jax, jax.numpy as jnp, jaxtrelu
f = jax.jit(lambda x: jaxtrelu.thresholded_relu(x * x, 1.0))
f(3.0)
from jax.experimental.jet import jet
value, (first, second) = jet(f, (3.0,), ((1.0, 0.0),))
print(*(round(float(v), 5) for v in (value, first, second)))
"""
    assert in_a_fresh_process(code) == ["8.0", "6.0", "2.0"]


def test_jet_with_a_surrogate_says_what_to_do():
    from jax.experimental.jet import jet

    def f(x):
        return jump_relu(x, 0.5, surrogate=Rectangle(0.1))

    with pytest.raises(NotImplementedError, match=r"Pass surrogate=None, or nest jax\.jvp"):
        jet(f, (1.0,), ((1.0, 0.0),))
    slope, second = jax.jvp(jax.grad(f), (1.0,), (1.0,))  # what the message says
    assert (slope, second) == (1, 0)


@pytest.mark.parametrize("name", ["sparse", "bits"])
def test_modules_are_there_without_another_import(name):
    assert in_a_fresh_process(f"import jaxtrelu; print(jaxtrelu.{name}.__name__)") == [
        f"jaxtrelu.{name}"
    ]


# the linear layer with a surrogate

LINEAR = {  # wide enough for some entries to be inside
    "shift": {"surrogate": Triangle(0.5)},
    "capped": {"surrogate": Rectangle(2.0), "ceiling": 1.0},
    "hard": {"variant": "hard", "surrogate": Rectangle(2.0)},
    "to input": {"variant": "hard", "surrogate": Gaussian(0.5, to_input=True)},
}


@pytest.mark.parametrize("options", LINEAR.values(), ids=LINEAR)
def test_linear_with_a_surrogate(options):
    keys = jax.random.split(jax.random.key(0), 4)
    x, w, b, threshold = map(jax.random.normal, keys, [(5, 7), (7, 6), (6,), (6,)])

    def fused(x, w, b, threshold):
        return thresholded_linear(x, w, threshold, b=b, **options)

    def written(x, w, b, threshold):
        return thresholded_relu(x @ w + b, threshold, **options)

    @jax.jit
    def compared(*operands):
        cotangent = jnp.cos(jnp.arange(30.0)).reshape(5, 6)
        results = []
        for function in (fused, written):
            value, pull = jax.vjp(function, *operands)
            pushed = jax.jvp(function, operands, operands)[1]
            results.append((value, pull(cotangent), pushed))
        return results

    one, other = compared(x, w, b, threshold)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), one, other)
    assert all(np.any(g) for g in jax.tree.leaves(one))


def test_linear_with_a_rectangle_keeps_words_alone():
    x, w = jnp.ones((64, 16)), jnp.ones((16, 1024))
    threshold = jnp.ones(1024)

    def layer(x, w, threshold):
        return thresholded_linear(x, w, threshold, variant="hard", surrogate=Rectangle(0.1))

    _, pull = jax.vjp(jax.jit(layer), x, w, threshold)
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(pull))
    operands = x.nbytes + w.nbytes + threshold.nbytes
    assert 0 < kept - operands <= 2 * 64 * 1024 / 8 + 64


@pytest.mark.parametrize("implementation", ["experimental_mosaic_gpu", "mosaic_tpu"])
def test_kernels_of_linear_layers_have_no_surrogate(implementation):
    x, options = jnp.ones((2, 2)), {"surrogate": Rectangle(0.1), "variant": "hard"}
    with pytest.raises(NotImplementedError, match=f"'{implementation}'.*have no surrogate"):
        thresholded_linear(x, x, implementation=implementation, **options)


# residuals under vmap


@pytest.mark.parametrize("columns", [3, 10, 100])
def test_words_run_on_over_the_examples_of_a_batch(columns):
    x = jnp.linspace(-3, 3, 4096 * columns).reshape(4096, columns)
    _, pull = jax.vjp(jax.jit(jax.vmap(jaxtrelu.thresholded_relu)), x)
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(pull))
    assert 0 < kept <= x.size / 8 + 64
    (dx,) = pull(jnp.ones_like(x))
    np.testing.assert_array_equal(dx, (x > 1).astype(x.dtype))


def test_words_of_one_example_stay_whole():
    """Asked for one by one, as by a vmap of a gradient, each example ends with a word: see docs."""
    x = jnp.ones((4096, 3))
    pull = jax.vmap(lambda x: jax.vjp(jaxtrelu.thresholded_relu, x)[1])(x)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(pull)) == 4096 * 4
