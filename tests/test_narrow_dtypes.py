"""float8 and integers through every transformation; other integers: test_values_and_dtypes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import runs
from cases import together
from jax import lax
from jax.experimental.jet import jet
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxtrelu

SLOW = pytest.mark.slow
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

    def operands(self):
        return self.x, jnp.asarray(self.threshold, self.dtype)

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
    """By dtype: for every variant one kind of threshold, and, slow, all kinds.

    The other float8 and the other integer have the code of the first: they take one kind.
    """

    def of(dtype, i, everything):
        kinds = list(KINDS) if everything else None
        return [
            Narrow(v, dtype, kind)
            for j, v in enumerate(VARIANTS)
            for kind in kinds or [list(KINDS)[(i + j) % len(KINDS)]]
        ]

    quick = [pytest.param(of(d, i, False), id=d) for i, d in enumerate(dtypes)]
    every = [
        pytest.param(of(d, 0, True), id=f"{d}, all kinds", marks=pytest.mark.slow)
        for d in dtypes
        if d in (FLOATS[0], INTEGERS[0])
    ]
    return pytest.mark.parametrize("cases", quick + every)


def _all_of(law, cases, run=runs.one_program):
    together({f"{c.variant}-{c.dtype}-{c.kind}": law(c) for c in cases}, run)


def _assert_same(actual, expected, dtype):
    assert actual.dtype == jnp.dtype(dtype)
    np.testing.assert_array_equal(oracle.wide(actual), oracle.rounded(expected, dtype))


def _scanned(case, x, threshold):
    rows = (x, threshold if case.kind == "full" else None)

    def body(carry, row):
        return carry, case.function(row[0], threshold if row[1] is None else row[1])

    return lax.scan(body, 0, rows)[1]


def _looped(case, x, threshold):
    state = lax.while_loop(
        lambda s: s[0] < 1, lambda s: (s[0] + 1, case.function(s[1], threshold)), (0, x)
    )
    return state[1]


def _sharded(case, x, threshold):
    mapped = jax.shard_map(
        case.function,
        mesh=runs.mesh_of_rows(SHAPE[0], AxisType.Auto),
        in_specs=(P("rows"), P("rows") if case.kind == "full" else P()),
        out_specs=P("rows"),
    )
    return mapped(x, threshold)


VALUES = {
    "jit": lambda case, x, t: case.function(x, t),
    "a number": lambda case, x, t: case.function(x, case.threshold),
    "vmap": lambda case, x, t: jax.vmap(case.function, case.axes)(x, t),
    "scan": _scanned,
    "while": _looped,
    "cond": lambda case, x, t: lax.cond(x[0, 0] == x[0, 0], case.function, lambda x, t: x, x, t),
    "checkpoint": lambda case, x, t: jax.checkpoint(case.function)(x, t),
    "shard_map": _sharded,
}


@_cases(FLOATS + INTEGERS)
def test_values(cases):
    def law(case):
        def program(x, threshold):
            return {name: f(case, x, threshold) for name, f in VALUES.items()}

        values = yield program, *case.operands()
        for name, value in values.items():
            try:
                _assert_same(value, case.value, case.dtype)
            except AssertionError as error:
                raise AssertionError(f"under {name}: {error}") from error

    _all_of(law, cases)


RUNS = [
    runs.step_by_step,
    runs.without_jit,
    runs.row_by_device,
    runs.on_an_explicit_mesh,
    runs.exported,
    runs.ahead_of_time_and_donated,
    runs.checked,
    runs.nans_watched,
]


@_cases(FLOATS + INTEGERS)
@pytest.mark.parametrize("run", RUNS)
def test_values_by_any_run(run, cases):
    def law(case):
        value = yield case.function, *case.operands()
        _assert_same(value.reshape(SHAPE), case.value, case.dtype)

    _all_of(law, cases, run)


def _pulled(function, x):
    value, pullback = jax.vjp(function, x)
    return pullback(jnp.ones_like(value))[0]


def _linearized(function, x):
    return jax.linearize(function, x)[1](jnp.ones_like(x))


def _diagonal(jacobian):
    def slopes(f, x):
        square = jacobian(lambda x: f(x).ravel())(x).astype("float32").reshape(x.size, x.size)
        return jnp.diagonal(square).reshape(x.shape).astype(x.dtype)

    return slopes


SLOPES = {
    "vjp": _pulled,
    "jit of vjp": lambda f, x: jax.jit(lambda x: _pulled(f, x))(x),
    "jvp": lambda f, x: jax.jvp(f, (x,), (jnp.ones_like(x),))[1],
    "linearize": _linearized,
    "vjp of checkpoint": lambda f, x: _pulled(jax.checkpoint(f), x),
    "jet": lambda f, x: jet(f, (x,), ([jnp.ones_like(x)],))[1][0],
    "jacfwd": _diagonal(jax.jacfwd),
    "jacrev": _diagonal(jax.jacrev),
}


@_cases(FLOATS)
@pytest.mark.parametrize("run", [runs.one_program, pytest.param(runs.step_by_step, marks=SLOW)])
def test_slopes(run, cases):
    def law(case):
        def program(x, threshold):
            function = functools.partial(case.function, threshold=threshold)
            hessian = jax.hessian(lambda x: function(x).astype("float32").sum())(x)
            return {name: f(function, x) for name, f in SLOPES.items()}, hessian

        slopes, hessian = yield program, *case.operands()
        for name, slope in slopes.items():
            try:
                _assert_same(slope, case.gate, case.dtype)
            except AssertionError as error:
                raise AssertionError(f"under {name}: {error}") from error
        assert not oracle.wide(hessian).any()

    _all_of(law, cases, run)


@_cases(FLOATS)
def test_threshold_cotangents(cases):
    def law(case):
        def program(x, threshold):
            return jax.vjp(case.function, x, threshold)[1](jnp.ones_like(x))[1]

        x, threshold = case.operands()
        dt = yield program, x, threshold
        _, expected = oracle.cotangents(x, threshold, np.ones(SHAPE), **case.options)
        _assert_same(dt, expected, case.dtype)

    _all_of(law, cases)


@_cases(INTEGERS)
def test_integers_have_no_tangents(cases):
    for case in cases:
        at_threshold = functools.partial(case.function, threshold=case.threshold)
        zeros = np.zeros(SHAPE, jax.dtypes.float0)
        (cotangent,) = jax.vjp(at_threshold, case.x)[1](zeros)
        assert cotangent.dtype == jax.dtypes.float0
        _, tangent = jax.jvp(at_threshold, (case.x,), (zeros,))
        assert tangent.dtype == jax.dtypes.float0
