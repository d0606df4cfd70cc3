"""The operation under jit, lowering ahead of time, control flow, and JAX's debugging modes."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from cases import PAIRS, SHAPE, assert_close, over_cases
from jax import lax

import jaxtrelu


@over_cases
def test_eager_equals_jit_equals_definition(case):
    compiled = yield case.function, case.x, case.threshold
    eager = case.function(case.x, case.threshold)
    assert eager.dtype == compiled.dtype == case.x.dtype
    assert not eager.weak_type
    np.testing.assert_array_equal(eager, compiled)
    assert_close(eager, case.expected()[0], case)


@over_cases(run=runs.without_jit)
def test_disable_jit(case):
    value = yield case.function, case.x, case.threshold
    assert_close(value, case.expected()[0], case)


@over_cases
def test_control_flow(case):
    def body(carry, row):
        x, own = row
        threshold = case.threshold if own is None else own
        out = case.function(carry + x, threshold)
        return out, case.function(x, threshold)

    def rows_of(x):
        return x, case.threshold if case.kind == "full" else None

    def looped(x):
        last, rows = lax.scan(body, jnp.zeros_like(x[0]), rows_of(x))
        return (last * last).sum() + rows.sum()

    def unrolled(x):
        carry, rows = jnp.zeros_like(x[0]), []
        for i in range(len(x)):
            carry, out = body(carry, jax.tree.map(lambda a, i=i: a[i], rows_of(x)))
            rows.append(out)
        return (carry * carry).sum() + jnp.stack(rows).sum()

    def program(x):
        # Forward mode through a loop, too, which a custom_vjp would refuse.
        return [(jax.grad(f)(x), jax.jvp(f, (x,), (x,))[1]) for f in (looped, unrolled)]

    in_loop, without = yield program, case.x
    for one, other in zip(in_loop, without, strict=True):
        assert_close(one, np.asarray(other, np.float64), case)


@over_cases
def test_while_and_cond(case):
    def twice_or_not(x, flag):
        _count, once = lax.while_loop(
            lambda state: state[0] < 1,
            lambda state: (state[0] + 1, case.function(state[1], case.threshold)),
            (0, x),
        )
        return lax.cond(flag, lambda x: x, lambda x: case.function(x, case.threshold), once)

    once, twice = yield lambda x, *flags: [twice_or_not(x, f) for f in flags], case.x, True, False
    value = case.expected()[0]
    assert_close(once, value, case)
    again = np.asarray(jnp.asarray(value, case.dtype), np.float64)
    assert_close(twice, case.expected(again)[0], case)


@over_cases(run=runs.ahead_of_time_and_donated)
def test_ahead_of_time_and_donation(case):
    value = yield case.function, case.x, case.threshold
    assert_close(value, case.expected()[0], case)


@over_cases(run=runs.checked)
def test_checkify(case):
    return _assert_gradient_of_the_square(case)


@over_cases(run=runs.nans_watched)
def test_debug_nans(case):
    return _assert_gradient_of_the_square(case)


def _assert_gradient_of_the_square(case):
    def loss(x, threshold):
        return (case.function(x, threshold) ** 2).sum()

    gradient = yield jax.grad(loss), case.x, case.threshold
    value, slope, _ = case.expected()
    assert_close(gradient, 2 * value * slope, case)


@pytest.mark.parametrize("case", PAIRS[::5], ids=str)
def test_debug_nans_finds_one(case):
    with jax.enable_x64(case.dtype == "float64"):
        fresh = dataclasses.replace(case)
        x = fresh.x.at[0, 0].set(jnp.nan)
        with jax.debug_nans(True), pytest.raises(FloatingPointError):
            fresh.function(x, fresh.threshold)


@over_cases(run=runs.exported)
def test_export_with_symbolic_shapes(case):
    """With its derivatives in it."""

    def both(x, threshold):
        value, pullback = jax.vjp(case.function, x, threshold)
        tangent = jax.jvp(case.function, (x, threshold), (x, threshold))[1]
        return value, *pullback(x), tangent

    got = yield both, case.x, jnp.asarray(case.threshold)
    value, dx, dt = case.expected()
    x, threshold = (np.asarray(o, np.float64) for o in (case.x, case.threshold))
    wanted = value, dx * x, case.threshold_cotangent(dt * x), dx * x + dt * threshold
    types = [case.dtype, case.dtype, jnp.asarray(case.threshold).dtype, case.dtype]
    for one, other, dtype in zip(got, wanted, types, strict=True):
        assert one.dtype == dtype
        assert_close(one, other, case)


BY_HAND = {
    "shift": lambda x, t: jnp.where(x <= t, 0, x - t),
    "hard": lambda x, t: jnp.where(x <= t, 0, x),
    "clamp": lambda x, t: jnp.where(x <= t, t, x),
}


def _instructions(function, *operands):
    """The compiled instructions, in order, with numbers for names and no word on the source."""
    hlo = jax.jit(function).lower(*operands).compile().as_text()
    lines = [line.split(", metadata=")[0] for line in hlo.splitlines() if " = " in line]
    found: dict[str, str] = {}
    return [
        re.sub(r"%[\w.-]+|\bx\.\d+", lambda m: found.setdefault(m[0], f"%{len(found)}"), line)
        for line in lines
    ]


@pytest.mark.parametrize("variant", BY_HAND)
@pytest.mark.parametrize("where", ["alone", "in a layer"])
def test_the_compiled_forward_is_that_of_a_select_by_hand(variant, where):
    """The same program, so the same time at every size: what differs in a benchmark is noise."""

    def program(act):
        if where == "alone":
            return lambda x, w, b: act(x, 0.5)
        return lambda x, w, b: act(x @ w + b, 0.5)

    operands = (jnp.zeros((512, 256)), jnp.zeros((256, 256)), jnp.zeros(256))
    ours = functools.partial(jaxtrelu.thresholded_relu, variant=variant)
    wanted = _instructions(program(BY_HAND[variant]), *operands)
    assert len(wanted) > 3
    assert _instructions(program(ours), *operands) == wanted


def test_strict_promotion_of_thresholds_in_a_wider_dtype(strict_promotion):
    """The output has x's dtype and the threshold's gradient its own: no promotion leaks out."""
    glu = lambda x, t, **o: jaxtrelu.thresholded_glu(x, x, t, **o)  # noqa: E731
    linear = lambda x, t, **o: jaxtrelu.thresholded_linear(x, jnp.eye(3, dtype=x.dtype), t, **o)  # noqa: E731
    with jax.enable_x64(True):
        x, threshold = (
            jax.ShapeDtypeStruct((2, 3), "float32"),
            jax.ShapeDtypeStruct((3,), "float64"),
        )
        for function in (jaxtrelu.thresholded_relu, glu, linear):
            assert jax.eval_shape(function, x, threshold).dtype == jnp.float32
            slopes = jax.grad(lambda x, t, function=function: function(x, t).sum(), (0, 1))
            found = jax.eval_shape(slopes, x, threshold)
            assert [f.dtype for f in found] == [jnp.float32, jnp.float64]
        for function in (jaxtrelu.derivative, jaxtrelu.antiderivative):
            assert jax.eval_shape(function, x, threshold).dtype == jnp.float32


def test_strict_promotion(strict_promotion):
    """Traced and lowered, which is where a promotion would be refused."""
    x = jnp.ones(SHAPE, jnp.bfloat16)
    thresholds = (0.5, jnp.float32(0.5), jnp.full(SHAPE[-1:], 0.5), jnp.full(SHAPE, 0.5))

    def first(function, x, threshold, **options):
        return function(x, threshold, **options)[0, 0].astype(jnp.float32)

    def of(function, **options):
        return functools.partial(first, function, **options)

    def gradients(x, thresholds):
        found = []
        for threshold in thresholds:
            for variant in BY_HAND:
                f = of(jaxtrelu.thresholded_relu, variant=variant)
                found.append(jax.grad(f, (0, 1))(x, threshold))
            for surrogate in (jaxtrelu.Rectangle(0.5), jaxtrelu.Gaussian(0.5, to_input=True)):
                found.append(jax.grad(of(jaxtrelu.step, surrogate=surrogate), (0, 1))(x, threshold))
                jump = of(jaxtrelu.jump_relu, surrogate=surrogate)
                found.append((x, jax.hessian(jump, 1)(x, jnp.float32(0.5))))
        return found

    out = jax.jit(gradients).lower(x, thresholds).out_info
    assert len(out) == len(thresholds) * (len(BY_HAND) + 4)
    assert all(dx.dtype == jnp.bfloat16 for dx, _ in out)
