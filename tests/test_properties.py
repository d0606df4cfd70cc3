"""Laws of the operation on shapes, dtypes, thresholds and values that hypothesis chooses.

Most values are multiples of 1/8, mixed with NaN, infinities and zeros of both signs: sums and
differences are then exact in every dtype, one rounding to the result's dtype remains, and the
library must agree with the oracle to the last bit, at ties with the threshold and the ceiling too.

What differentiates is compiled as a whole: one compilation for each case instead of ten. The values
are computed eagerly, and compiled in `test_jit_agrees_with_eager`.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import examples
from hypothesis import given
from hypothesis import strategies as st

import jaxtrelu

SPECS = {
    "shift": {},
    "ceiling": {"ceiling": 2.5},
    "hard": {"variant": "hard"},
    "fill": {"variant": "hard", "fill": -1.5},
    "clamp": {"variant": "clamp"},
}
SHAPES = [
    (),
    (0,),
    (1,),
    (31,),
    (32,),
    (33,),
    (65,),
    (3, 0),
    (0, 4),
    (5, 1),
    (1, 64),
    (7, 9),
    (1, 1, 1),
    (2, 1, 33),
    (3, 2, 1, 4, 5),
]
FLOATS = ["float32", "bfloat16", "float16", "float64", "float8_e4m3fn", "float8_e5m2"]
INTEGERS = ["int8", "uint8", "int16", "int32", "uint32"]
SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0])

every_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


@dataclasses.dataclass(frozen=True)
class Case:
    """Operands, described so that a failing one can be read and shrunk."""

    shape: tuple
    dtype: str
    threshold_shape: tuple | None  # None: a Python number
    threshold_dtype: str
    seed: int

    def x64(self):
        return jax.enable_x64("float64" in (self.dtype, self.threshold_dtype))

    def numbers(self, stream, shape, dtype, *, special=0.0):
        """Multiples of 1/8 from -4 to 4, rounded to `dtype`, a share of them special."""
        rng = np.random.default_rng([self.seed, stream])
        if np.issubdtype(jnp.dtype(dtype), np.integer):
            lowest = 0 if dtype.startswith("u") else -40
            return rng.integers(lowest, 40, shape).astype(dtype)
        grid = rng.integers(-32, 33, shape) / 8
        chosen = np.where(rng.random(shape) < special, rng.choice(SPECIAL, shape), grid)
        return np.asarray(chosen).astype(jnp.dtype(dtype))

    def x(self, special=0.1):
        return self.numbers(0, self.shape, self.dtype, special=special)

    def threshold(self, special=0.05):
        """(The threshold to pass, its value for the oracle)."""
        if self.threshold_shape is None:
            number = self.numbers(1, (), self.dtype).item()
            return number, oracle.taken(number, self.dtype)
        array = self.numbers(1, self.threshold_shape, self.threshold_dtype, special=special)
        return array, oracle.wide(array)

    def whole(self, stream, shape):
        """Small whole numbers: as tangents and cotangents they leave every dtype exact."""
        return np.random.default_rng([self.seed, stream]).integers(-4, 5, shape)


@st.composite
def cases(draw, dtypes=FLOATS, *, number=True):
    shape = draw(st.sampled_from(SHAPES))
    dtype = draw(st.sampled_from(dtypes))
    integer = np.issubdtype(jnp.dtype(dtype), np.integer)
    threshold_dtype = dtype if integer else draw(st.sampled_from(["float32", "bfloat16", dtype]))
    kind = draw(st.sampled_from(["number", "scalar", "channel", "full", "any"][not number :]))
    if kind == "number":
        threshold_shape = None
    elif kind == "any":
        stretched = draw(st.tuples(*[st.booleans() for _ in shape]))
        drop = draw(st.integers(0, len(shape)))
        kept = [1 if one else size for one, size in zip(stretched, shape, strict=True)]
        threshold_shape = tuple(kept[drop:])
    else:
        threshold_shape = {"scalar": (), "channel": shape[-1:], "full": shape}[kind]
    return Case(shape, dtype, threshold_shape, threshold_dtype, draw(st.integers(0, 2**20)))


@partial(jax.jit, static_argnames="spec")
def pulled(x, threshold, cotangent, *, spec):
    """The cotangents of both operands; `spec` as pairs, so that equal ones compile once."""
    function = partial(jaxtrelu.thresholded_relu, **dict(spec))
    return jax.vjp(function, x, threshold)[1](cotangent)


@partial(jax.jit, static_argnames="spec")
def pushed(x, threshold, *tangents, spec):
    """The tangent of the value."""
    function = partial(jaxtrelu.thresholded_relu, **dict(spec))
    return jax.jvp(function, (x, threshold), tangents)[1]


# --- values ----------------------------------------------------------------------------------


@every_spec
@examples(16)
@given(case=cases())
def test_values(spec, case):
    x, (threshold, known) = case.x(), case.threshold()
    with case.x64():
        y = jaxtrelu.thresholded_relu(x, threshold, **spec)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    np.testing.assert_array_equal(
        oracle.wide(y), oracle.rounded(oracle.value(x, known, **spec), case.dtype)
    )
    if spec.get("variant") != "clamp" and "fill" not in spec:
        closed = oracle.wide(x) <= np.broadcast_to(known, x.shape)
        assert not np.signbit(oracle.wide(y)[closed]).any(), "a closed value is -0.0"


@every_spec
@examples(5)
@given(case=cases(INTEGERS))
def test_integers(spec, case):
    spec = {name: v if name == "variant" else 3 for name, v in spec.items()}
    x, (threshold, known) = case.x(), case.threshold()
    y = jaxtrelu.thresholded_relu(x, threshold, **spec)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    np.testing.assert_array_equal(y, oracle.value(x, known, **spec))
    spec.pop("fill", None)
    slope = jax.jit(lambda x: jaxtrelu.derivative(x, threshold, **spec))(x)
    assert slope.dtype == x.dtype
    np.testing.assert_array_equal(slope, oracle.opened(x, known, spec.get("ceiling")))


@every_spec
@examples(6)
@given(case=cases(FLOATS[:4]))
def test_values_off_the_grid(spec, case):
    """Arbitrary reals: the comparison is exact, and the difference is rounded once or twice."""
    rng = np.random.default_rng(case.seed)
    x = rng.normal(size=case.shape).astype(jnp.dtype(case.dtype))
    threshold = known = rng.normal()
    if case.threshold_shape is None:
        known = oracle.taken(threshold, case.dtype)
    else:
        dtype = jnp.dtype(case.threshold_dtype)
        threshold = known = rng.normal(size=case.threshold_shape).astype(dtype)
    with case.x64():
        y = jaxtrelu.thresholded_relu(x, threshold, **spec)
    wanted = oracle.value(x, known, **spec)
    # Subnormal differences: float16 rounds them to multiples of 6e-8, float32 may flush them to 0.
    atol = 6e-8 if case.dtype == "float16" else 1e-37
    np.testing.assert_allclose(oracle.wide(y), wanted, rtol=oracle.RTOL[case.dtype], atol=atol)


@every_spec
@examples(4)
@given(case=cases())
def test_jit_agrees_with_eager(spec, case):
    x, (threshold, _) = case.x(), case.threshold()

    def function(x, threshold):
        return jaxtrelu.thresholded_relu(x, threshold, **spec)

    with case.x64():
        np.testing.assert_array_equal(
            oracle.wide(jax.jit(function)(x, threshold)), oracle.wide(function(x, threshold))
        )


# --- derivatives -----------------------------------------------------------------------------


@every_spec
@examples(10)
@given(case=cases(number=False))
def test_cotangents(spec, case):
    """Also for cotangents that are NaN or infinite, of which a closed gate makes exactly 0."""
    x, (threshold, known) = case.x(), case.threshold()
    ct = case.numbers(2, case.shape, case.dtype, special=0.1)
    with case.x64():
        dx, dt = pulled(x, threshold, ct, spec=tuple(spec.items()))
    assert (dx.shape, dx.dtype) == (x.shape, x.dtype)
    assert (dt.shape, dt.dtype) == (threshold.shape, threshold.dtype)
    ox, ot = oracle.cotangents(x, known, ct, **spec)
    np.testing.assert_array_equal(oracle.wide(dx), oracle.rounded(ox, case.dtype))
    np.testing.assert_array_equal(oracle.wide(dt), oracle.rounded(ot, str(threshold.dtype)))


@every_spec
@examples(6)
@given(case=cases(number=False))
def test_forward_mode_is_adjoint_to_reverse_mode(spec, case):
    case = dataclasses.replace(case, threshold_dtype="float32")
    x, (threshold, _) = case.x(special=0), case.threshold(special=0)
    tx = case.whole(3, x.shape).astype(x.dtype)
    tt = case.whole(4, threshold.shape).astype(threshold.dtype)
    ct = case.whole(5, x.shape).astype(x.dtype)

    pairs = tuple(spec.items())
    with case.x64():
        ty = pushed(x, threshold, tx, tt, spec=pairs)
        dx, dt = pulled(x, threshold, ct, spec=pairs)
    assert ty.dtype == x.dtype

    def dot(a, b):
        return np.sum(oracle.wide(a) * oracle.wide(b))

    assert dot(ty, ct) == dot(tx, dx) + dot(tt, dt)


@pytest.mark.parametrize("to_input", [False, True])
@examples(8)
@given(case=cases(["float32", "bfloat16"], number=False), fill=st.sampled_from([0, -1.5]))
def test_surrogate_cotangents(to_input, case, fill):
    """With a rectangle whose edges, at ±5/16, lie between the grid's points."""
    case = dataclasses.replace(case, threshold_dtype="float32")
    x, (threshold, known) = case.x(special=0), case.threshold(special=0)
    ct = case.whole(5, x.shape).astype(x.dtype)
    surrogate = jaxtrelu.Rectangle(0.5 + 0.125, to_input=to_input)

    def density(distance):
        return (np.abs(distance) < 0.3125) / 0.625

    spec = (("variant", "hard"), ("fill", fill), ("surrogate", surrogate))
    dx, dt = pulled(x, threshold, ct, spec=spec)
    ox, ot = oracle.cotangents(x, known, ct, variant="hard", fill=fill, density=density)
    if to_input:
        full = np.broadcast_to(known, x.shape)
        ox = ox + (full - fill) * density(oracle.wide(x) - full) * oracle.wide(ct)
    size = max(1, np.abs(oracle.wide(ct)).sum())
    rtol = oracle.RTOL[case.dtype]
    np.testing.assert_allclose(oracle.wide(dx), ox, rtol=2 * rtol, atol=2 * rtol)
    np.testing.assert_allclose(oracle.wide(dt), ot, rtol=2 * rtol, atol=2 * rtol * size)


@every_spec
@examples(6)
@given(case=cases())
def test_derivative_is_the_gate(spec, case):
    spec = {name: v for name, v in spec.items() if name != "fill"}
    x, (threshold, known) = case.x(), case.threshold()
    with case.x64():
        slope = jax.jit(lambda x: jaxtrelu.derivative(x, threshold, **spec))(x)
    assert (slope.shape, slope.dtype) == (x.shape, x.dtype)
    np.testing.assert_array_equal(
        oracle.wide(slope), oracle.opened(x, known, spec.get("ceiling")).astype(float)
    )


# --- the three functions together ---------------------------------------------------------------


@every_spec
@examples(8)
@given(case=cases(FLOATS[:4]))
def test_antiderivative(spec, case):
    x, (threshold, known) = case.x(special=0), case.threshold(special=0)
    with case.x64():
        area = jax.jit(lambda x: jaxtrelu.antiderivative(x, threshold, **spec))(x)
    assert (area.shape, area.dtype) == (x.shape, x.dtype)
    wanted = oracle.antiderivative(x, known, **spec)
    rtol = oracle.RTOL[case.dtype]
    np.testing.assert_allclose(oracle.wide(area), wanted, rtol=2 * rtol, atol=2e-6)


@every_spec
@examples(12)
@given(
    start=st.integers(-32, 32),
    length=st.integers(0, 48),
    theta=st.integers(-16, 16),
    off=st.booleans(),
)
def test_quadrature(spec, start, length, theta, off):
    """F(b) - F(a) is the integral of f, and that of f' is f(b) - f(a) and the jumps between.

    Two-point Gauss quadrature of the library's own values is exact on each linear piece.
    """
    theta = theta / 8 + (0.05 if off else 0)
    a, b = start / 8, (start + length) / 8
    kinks = [theta, theta + spec["ceiling"]] if "ceiling" in spec else [theta, theta]
    ends = np.clip([a, *kinks, b], a, b)
    centre, half = (ends[1:] + ends[:-1]) / 2, np.diff(ends) / 2
    nodes = np.stack([centre - half / np.sqrt(3), centre + half / np.sqrt(3)], axis=-1)
    values = jaxtrelu.thresholded_relu(nodes.astype(np.float32), theta, **spec)
    integral = (np.float64(values).sum(axis=-1) * half).sum()
    borders = np.float32([a, b])
    area = np.float64(jaxtrelu.antiderivative(borders, theta, **spec))
    np.testing.assert_allclose(area[1] - area[0], integral, rtol=1e-5, atol=2e-5)

    slope_spec = {name: v for name, v in spec.items() if name != "fill"}
    slopes = jaxtrelu.derivative(nodes.astype(np.float32), theta, **slope_spec)
    rise = (np.float64(slopes).sum(axis=-1) * half).sum()
    jumps = spec.get("variant") == "hard" and a <= np.float32(theta) < b
    jump = theta - spec.get("fill", 0) if jumps else 0
    y = np.float64(jaxtrelu.thresholded_relu(borders, theta, **spec))
    np.testing.assert_allclose(y[1] - y[0], rise + jump, rtol=1e-5, atol=2e-5)


@every_spec
@examples(5)
@given(case=cases(["float32"]))
def test_gradients_of_the_three_functions(spec, case):
    """F' = f and f' = the gate, by grad; f'' and the derivative's own derivative are exactly 0."""
    x, (threshold, known) = case.x(special=0), case.threshold(special=0)
    slope_spec = {name: v for name, v in spec.items() if name != "fill"}

    def gradient(function, spec):
        return jax.jit(jax.grad(lambda x: jnp.sum(function(x, threshold, **spec))))(x)

    y = jaxtrelu.thresholded_relu(x, threshold, **spec)
    np.testing.assert_allclose(gradient(jaxtrelu.antiderivative, spec), y, rtol=1e-6, atol=1e-6)
    gate = oracle.opened(x, known, spec.get("ceiling"))
    np.testing.assert_array_equal(gradient(jaxtrelu.thresholded_relu, spec), gate)
    np.testing.assert_array_equal(gradient(jaxtrelu.derivative, slope_spec), np.zeros(x.shape))
