"""float8 and integers through every transformation; other integers: test_values_and_dtypes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jax import export, lax
from jax.experimental import checkify
from jax.experimental.jet import jet
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxtrelu

SHAPE = (2, 35)
FLOATS = ("float8_e4m3fn", "float8_e5m2")
INTEGERS = ("int8", "uint32")
VARIANTS = {
    "shift": {},
    "capped": {"ceiling": 1},
    "hard": {"variant": "hard"},
    "filled": {"variant": "hard", "fill": 2},
    "clamp": {"variant": "clamp"},
}
KINDS = {"number": None, "scalar": (), "channel": SHAPE[-1:], "full": SHAPE}


@dataclasses.dataclass(frozen=True)
class Narrow:
    """Small whole numbers, which every dtype here holds exactly, and so do all results."""

    variant: str
    dtype: str
    kind: str

    @property
    def options(self):
        return VARIANTS[self.variant]

    @property
    def x(self):
        lowest = 0 if self.dtype.startswith("u") else -3
        numbers = np.random.default_rng(0).integers(lowest, 4, SHAPE)
        return jnp.asarray(numbers).astype(self.dtype)

    @property
    def threshold(self):
        if self.kind == "number":
            return 1
        return jnp.asarray(np.random.default_rng(1).integers(0, 2, KINDS[self.kind])).astype(
            self.dtype
        )

    def function(self, x, threshold):
        return jaxtrelu.thresholded_relu(x, threshold, **self.options)

    def at_threshold(self, x):
        return self.function(x, self.threshold)

    @property
    def axes(self):
        return (0, 0 if self.kind == "full" else None)

    @property
    def value(self):
        return oracle.value(self.x, self.threshold, **self.options)

    @property
    def gate(self):
        return oracle.opened(self.x, self.threshold, self.options.get("ceiling")) * 1.0


def _cases(dtypes):
    cases = [Narrow(v, d, k) for v in VARIANTS for d in dtypes for k in KINDS]
    return pytest.mark.parametrize("case", cases, ids=lambda c: f"{c.variant}-{c.dtype}-{c.kind}")


def _same(actual, expected, dtype):
    assert actual.dtype == jnp.dtype(dtype)
    np.testing.assert_array_equal(oracle.wide(actual), oracle.rounded(expected, dtype))


def _mesh(kind):
    return jax.make_mesh(SHAPE[:1], ("rows",), axis_types=(kind,), devices=jax.devices()[:2])


def _scanned(case):
    rows = (case.x, case.threshold if case.kind == "full" else None)

    def body(carry, row):
        return carry, case.function(row[0], case.threshold if row[1] is None else row[1])

    return lax.scan(body, 0, rows)[1]


def _looped(case):
    state = lax.while_loop(
        lambda s: s[0] < 1, lambda s: (s[0] + 1, case.at_threshold(s[1])), (0, case.x)
    )
    return state[1]


def _sharded(case):
    specs = (P("rows"), P("rows") if case.kind == "full" else P())
    mapped = jax.shard_map(
        case.function, mesh=_mesh(AxisType.Auto), in_specs=specs, out_specs=P("rows")
    )
    return jax.jit(mapped)(case.x, jnp.asarray(case.threshold, case.dtype))


def _explicit(case):
    mesh = _mesh(AxisType.Explicit)
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, P("rows", None))
        threshold = case.threshold
        if case.kind == "full":
            threshold = jax.device_put(threshold, rows)
        return case.function(jax.device_put(case.x, rows), threshold)


def _exported(case):
    (n,) = export.symbolic_shape("n")
    threshold = jnp.asarray(case.threshold, case.dtype)
    shape = (n, SHAPE[1])
    operands = [
        jax.ShapeDtypeStruct(s, case.dtype)
        for s in (shape, shape if case.kind == "full" else threshold.shape)
    ]
    exported = export.export(jax.jit(case.function), platforms=("cpu", "cuda", "rocm", "tpu"))
    return exported(*operands).call(case.x, threshold)


def _donated(case):
    x = jnp.array(case.x)
    return jax.jit(case.at_threshold, donate_argnums=0).lower(x).compile()(x)


def _checked(case):
    error, value = checkify.checkify(jax.jit(case.at_threshold))(case.x)
    error.throw()
    return value


def _without_jit(case):
    with jax.disable_jit():
        return case.at_threshold(case.x)


def _nans_watched(case):
    with jax.debug_nans(True):
        return jax.jit(case.at_threshold)(case.x)


VALUES = {
    "eager": lambda case: case.at_threshold(case.x),
    "jit": lambda case: jax.jit(case.at_threshold)(case.x),
    "vmap": lambda case: jax.vmap(case.function, case.axes)(case.x, case.threshold),
    "pmap": lambda case: jax.pmap(case.function, in_axes=case.axes)(case.x, case.threshold),
    "scan": _scanned,
    "while": _looped,
    "cond": lambda case: lax.cond(True, case.at_threshold, lambda x: x, case.x),
    "checkpoint": lambda case: jax.checkpoint(case.at_threshold)(case.x),
    "shard_map": _sharded,
    "explicit mesh": _explicit,
    "export, symbolic": _exported,
    "donation, ahead of time": _donated,
    "checkify": _checked,
    "debug_nans": _nans_watched,
    "disable_jit": _without_jit,
}


@_cases(FLOATS + INTEGERS)
def test_values(case):
    for name, transformed in VALUES.items():
        try:
            _same(transformed(case), case.value, case.dtype)
        except AssertionError as error:
            error.add_note(f"under {name}")
            raise


def _pulled(function, x):
    value, pullback = jax.vjp(function, x)
    return pullback(jnp.ones_like(value))[0]


def _linearized(function, x):
    return jax.linearize(function, x)[1](jnp.ones_like(x))


SLOPES = {
    "vjp": _pulled,
    "jit of vjp": lambda f, x: jax.jit(lambda x: _pulled(f, x))(x),
    "jvp": lambda f, x: jax.jvp(f, (x,), (jnp.ones_like(x),))[1],
    "linearize": _linearized,
    "vjp of checkpoint": lambda f, x: _pulled(jax.checkpoint(f), x),
    "jet": lambda f, x: jet(f, (x,), ([jnp.ones_like(x)],))[1][0],
    "jacfwd": lambda f, x: jnp.diagonal(
        jax.jacfwd(lambda x: f(x).ravel())(x).astype("float32").reshape(x.size, x.size)
    ).reshape(x.shape).astype(x.dtype),
    "jacrev": lambda f, x: jnp.diagonal(
        jax.jacrev(lambda x: f(x).ravel())(x).astype("float32").reshape(x.size, x.size)
    ).reshape(x.shape).astype(x.dtype),
}  # fmt: skip


@_cases(FLOATS)
def test_slopes(case):
    for name, transformed in SLOPES.items():
        try:
            _same(transformed(case.at_threshold, case.x), case.gate, case.dtype)
        except AssertionError as error:
            error.add_note(f"under {name}")
            raise
    total = jax.hessian(lambda x: case.at_threshold(x).astype("float32").sum())(case.x)
    assert not oracle.wide(total).any()


@_cases(FLOATS)
def test_threshold_cotangents(case):
    if case.kind == "number":
        pytest.skip("a number has no cotangent")
    _, dt = jax.vjp(case.function, case.x, case.threshold)[1](jnp.ones_like(case.x))
    ones = np.ones(SHAPE)
    _, expected = oracle.cotangents(case.x, case.threshold, ones, **case.options)
    _same(dt, expected, case.dtype)


@_cases(INTEGERS)
def test_integers_have_no_tangents(case):
    (cotangent,) = jax.vjp(case.at_threshold, case.x)[1](np.zeros(SHAPE, jax.dtypes.float0))
    assert cotangent.dtype == jax.dtypes.float0
    _, tangent = jax.jvp(case.at_threshold, (case.x,), (np.zeros(SHAPE, jax.dtypes.float0),))
    assert tangent.dtype == jax.dtypes.float0
