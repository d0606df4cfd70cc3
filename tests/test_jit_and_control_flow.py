"""The operation under jit, lowering ahead of time, control flow, and JAX's debugging modes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, SHAPE, close, over_cases
from jax import lax
from jax.experimental import checkify

import jaxtrelu


@over_cases
def test_eager_equals_jit_equals_definition(case):
    value, _, _ = case.expected()
    eager = case.function(case.x, case.threshold)
    compiled = jax.jit(case.function)(case.x, case.threshold)
    assert eager.dtype == compiled.dtype == case.x.dtype
    assert not eager.weak_type
    np.testing.assert_array_equal(eager, compiled)
    close(eager, value, case)


@over_cases
def test_disable_jit(case):
    with jax.disable_jit():
        close(case.function(case.x, case.threshold), case.expected()[0], case)


@over_cases
def test_control_flow(case):
    def body(carry, row):
        out = case.function(carry + row, 0.5)
        return out, case.function(row, 0.5)

    def looped(x):
        last, rows = lax.scan(body, jnp.zeros_like(x[0]), x)
        return (last * last).sum() + rows.sum()

    def unrolled(x):
        carry, rows = jnp.zeros_like(x[0]), []
        for row in x:
            carry, out = body(carry, row)
            rows.append(out)
        return (carry * carry).sum() + jnp.stack(rows).sum()

    close(jax.grad(looped)(case.x), np.asarray(jax.grad(unrolled)(case.x), np.float64), case)
    # Forward mode through a loop, which a custom_vjp would refuse.
    close(
        jax.jvp(looped, (case.x,), (case.x,))[1],
        np.asarray(jax.jvp(unrolled, (case.x,), (case.x,))[1], np.float64),
        case,
    )


@over_cases
def test_while_and_cond(case):
    value = case.expected()[0]

    @jax.jit
    def twice_or_not(x, flag):
        _count, once = lax.while_loop(
            lambda state: state[0] < 1,
            lambda state: (state[0] + 1, case.function(state[1], case.threshold)),
            (0, x),
        )
        return lax.cond(flag, lambda x: x, lambda x: case.function(x, case.threshold), once)

    close(twice_or_not(case.x, True), value, case)
    twice = case.expected(np.asarray(case.function(case.x, case.threshold), np.float64))[0]
    close(twice_or_not(case.x, False), twice, case)


@over_cases
def test_ahead_of_time_and_donation(case):
    compiled = (
        jax.jit(case.function, donate_argnums=0, static_argnums=1 if case.kind == "number" else ())
        .lower(case.x, case.threshold)
        .compile()
    )
    x = case.x + 0
    arguments = (x,) if case.kind == "number" else (x, case.threshold)
    close(compiled(*arguments), case.expected()[0], case)
    assert x.is_deleted()


@over_cases(cases=CASES[::3])
def test_checkify_and_debug_nans(case):
    def loss(x):
        return (case.function(x, case.threshold) ** 2).sum()

    error, gradient = checkify.checkify(jax.jit(jax.grad(loss)), errors=checkify.float_checks)(
        case.x
    )
    error.throw()
    value, slope, _ = case.expected()
    close(gradient, 2 * value * slope, case)
    with jax.debug_nans(True):
        close(jax.jit(jax.grad(loss))(case.x), 2 * value * slope, case)
        with pytest.raises(FloatingPointError):
            case.function(case.x.at[0, 0].set(jnp.nan), case.threshold)


def test_the_compiled_forward_is_one_select():
    x = jnp.zeros((64, 64))
    for variant in ("shift", "hard", "clamp"):
        text = jax.jit(lambda x, v=variant: jaxtrelu.thresholded_relu(x, 0.5, variant=v)).lower(x)
        hlo = text.compile().as_text()
        assert "opt-barrier" not in hlo
        assert hlo.count("fusion(") <= 1


def test_strict_promotion(strict_promotion):
    x = jnp.ones(SHAPE, jnp.bfloat16)
    for threshold in (0.5, jnp.float32(0.5), jnp.full(SHAPE[-1:], 0.5), jnp.full(SHAPE, 0.5)):
        for variant in ("shift", "hard", "clamp"):
            gradient = jax.grad(
                lambda x, t, v=variant: (
                    jaxtrelu.thresholded_relu(x, t, variant=v).astype(jnp.float32).sum()
                ),
                (0, 1),
            )(x, threshold)
            assert gradient[0].dtype == jnp.bfloat16
        for surrogate in (jaxtrelu.Rectangle(0.5), jaxtrelu.Gaussian(0.5, to_input=True)):
            jax.grad(lambda x, t, s=surrogate: jaxtrelu.step(x, t, surrogate=s)[0, 0])(x, threshold)
            jax.hessian(
                lambda t, s=surrogate: jaxtrelu.jump_relu(x, t, surrogate=s)[0, 0].astype(t.dtype)
            )(jnp.float32(0.5))
