"""Forward and reverse mode, at every order, against the slopes of the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import Case, assert_close, over_cases
from jax.experimental.jet import jet

import jaxtrelu


def _tangents(case):
    threshold = jnp.asarray(case.threshold)
    return case.draw(), case.draw(threshold.shape).astype(threshold.dtype)


@over_cases
def test_grad_and_vjp(case):
    def program(x, threshold, cotangent):
        value, pullback = jax.vjp(case.function, x, jnp.asarray(threshold))
        only_x = jax.grad(lambda x: (case.function(x, case.threshold) * cotangent).sum())
        return value, *pullback(cotangent), only_x(x)

    cotangent = case.draw()
    value, from_x, from_threshold, only_x = yield program, case.x, case.threshold, cotangent
    expected, dx, dt = case.expected()
    weights = np.asarray(cotangent, np.float64)
    assert_close(value, expected, case)
    assert from_x.dtype == case.x.dtype
    assert_close(from_x, dx * weights, case)
    assert_close(from_threshold, case.threshold_cotangent(dt * weights), case)
    assert_close(only_x, dx * weights, case)


@over_cases
def test_jvp_and_linearize(case):
    def program(operands, tangents):
        value, tangent = jax.jvp(case.function, operands, tangents)
        linear_value, linear = jax.linearize(case.function, *operands)
        back = jax.linear_transpose(linear, *tangents)(jnp.ones_like(value))
        return value, tangent, linear_value, linear(*tangents), back

    dx, dt = _tangents(case)
    operands = (case.x, jnp.asarray(case.threshold))
    value, tangent, linear_value, linear, (from_x, from_t) = yield program, operands, (dx, dt)
    expected, slope_x, slope_t = case.expected()
    pushed = slope_x * np.asarray(dx, np.float64) + slope_t * np.asarray(dt, np.float64)
    assert tangent.dtype == case.x.dtype
    assert_close(value, expected, case)
    assert_close(tangent, pushed, case)
    assert_close(linear_value, expected, case)
    assert_close(linear, pushed, case)
    assert_close(from_x, slope_x, case)
    assert_close(from_t, case.threshold_cotangent(slope_t), case)


@over_cases
def test_adjointness(case):
    """<J t, c> = <t, J' c>: both modes come from one rule."""

    def program(operands, tangents, cotangent):
        _, forward = jax.jvp(case.function, operands, tangents)
        return forward, jax.vjp(case.function, *operands)[1](cotangent)

    operands = (case.x, jnp.asarray(case.threshold))
    tangents, cotangent = _tangents(case), case.draw()
    forward, backward = yield program, operands, tangents, cotangent

    def dot(a, b):
        return float(np.vdot(np.asarray(a, np.float64), np.asarray(b, np.float64)))

    left = dot(forward, cotangent)
    right = sum(dot(t, b) for t, b in zip(tangents, backward, strict=True))
    np.testing.assert_allclose(left, right, **case.tolerance)


@over_cases
def test_jacobians(case):
    def program(x, threshold):
        return [jacobian(case.function)(x, threshold) for jacobian in (jax.jacfwd, jax.jacrev)]

    x, threshold = case.first(9)
    slope = case.expected(x, threshold)[1]
    for jacobian in (yield program, x, threshold):
        assert_close(jacobian, np.diag(slope), case)


@over_cases
def test_second_derivatives(case):
    """Of the function itself exactly zero; of its square, the square of its slope."""

    def program(x, threshold):
        def total(x, threshold):
            return case.function(x, threshold).sum()

        def square(x):
            return (case.function(x, threshold) ** 2).sum()

        zeros = jax.hessian(total, argnums=(0, 1))(x, jnp.asarray(threshold))
        return zeros, jax.hessian(square)(x), jax.jacrev(jax.jacfwd(square))(x)

    x, threshold = case.first(9)
    zeros, square, over = yield program, x, threshold
    for block in jax.tree.leaves(zeros):
        np.testing.assert_array_equal(np.asarray(block, np.float64), 0)
    slope = case.expected(x, threshold)[1]
    assert_close(square, np.diag(2 * slope**2), case)
    assert_close(over, np.diag(2 * slope**2), case)


@over_cases
def test_jet(case):
    def program(x, threshold, series):
        value, terms = jet(lambda x: case.function(x, threshold), (x,), (series,))
        gradient, _ = jet(jax.grad(lambda x: case.function(x, threshold).sum()), (x,), (series,))
        return value, terms, gradient

    series = [case.draw(), case.draw()]
    value, terms, gradient = yield program, case.x, case.threshold, series
    expected, slope, _ = case.expected()
    assert_close(value, expected, case)
    for term, given in zip(terms, series, strict=True):
        assert_close(term, slope * np.asarray(given, np.float64), case)
    assert_close(gradient, slope, case)


def test_jet_of_a_surrogate_says_why_not():
    with pytest.raises(NotImplementedError, match=r"nest jax\.jvp"):
        jet(
            lambda x: jaxtrelu.jump_relu(x, 0.5, surrogate=jaxtrelu.Rectangle(0.1)),
            (jnp.ones(3),),
            ([jnp.ones(3)],),
        )


def test_a_transpose_of_the_function_itself_says_why_not():
    with pytest.raises(NotImplementedError, match="not linear"):
        jax.linear_transpose(jaxtrelu.thresholded_relu, jnp.ones(3))(jnp.ones(3))


@pytest.mark.parametrize("variant", ["shift", "hard", "clamp"])
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_closed_gate_gives_exact_zero_for_a_bad_cotangent(variant, bad):
    case = Case(variant, "float32", "scalar")
    x, threshold = jnp.array([-1.0, 0.5, 2.0]), jnp.float32(0.5)
    _, pullback = jax.vjp(case.function, x, threshold)

    def step_by_step(cotangent):
        # Under jit XLA makes a select of a product with the mask, and would hide one.
        with jax.disable_jit():
            return pullback(cotangent)

    for run in (pullback, jax.jit(pullback), step_by_step):
        dx, _ = run(jnp.full(3, bad))
        np.testing.assert_array_equal(dx, [0, 0, bad])
        assert not np.signbit(dx[:2]).any()


@pytest.mark.parametrize("variant", ["shift", "hard", "clamp"])
def test_the_cotangent_passes_where_x_is_nan(variant):
    case = Case(variant, "float32", "scalar")
    x = jnp.array([jnp.nan, 0.0, 2.0])
    dx, dt = jax.grad(lambda x, t: (case.function(x, t) * 3).sum(), argnums=(0, 1))(x, 0.5)
    np.testing.assert_array_equal(dx, [3, 0, 3])
    assert dt == {"shift": -6, "hard": 0, "clamp": 3}[variant]


def test_a_thresholds_cotangent_is_summed_in_float32():
    x = jnp.ones((4099,), jnp.bfloat16)  # which bfloat16 rounds to 4096
    gradient = jax.grad(lambda t: jaxtrelu.thresholded_relu(x, t).astype(jnp.float32).sum())
    assert gradient(jnp.float32(0.5)) == -4099
    assert gradient(jnp.bfloat16(0.5)) == -4096  # in bfloat16 a running sum would stop at 256
    # XLA's CPU back end adds bfloat16 in float32 unasked; others need not.
    equations = jax.make_jaxpr(gradient)(jnp.bfloat16(0.5)).eqns
    sums = [e.invars[0].aval.dtype for e in equations if e.primitive.name == "reduce_sum"]
    assert sums == [jnp.float32] * 2  # the loss, and the cotangent
