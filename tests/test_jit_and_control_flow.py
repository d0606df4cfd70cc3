"""The operation under jit, lowering ahead of time, control flow, and JAX's debugging modes."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import SHAPE, close, over_cases
from jax import export, lax
from jax.experimental import checkify

import jaxtrelu

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


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


@over_cases
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


@over_cases
def test_export_with_symbolic_shapes(case):
    """One artifact for all platforms and any number of rows, with its derivatives in it."""

    def both(x, threshold):
        value, pullback = jax.vjp(case.function, x, threshold)
        tangent = jax.jvp(case.function, (x, threshold), (x, threshold))[1]
        return value, pullback(x), tangent

    threshold = jnp.asarray(case.threshold)
    (n,) = export.symbolic_shape("n")
    rows = (n, *SHAPE[1:])
    operands = (
        jax.ShapeDtypeStruct(rows, case.dtype),
        jax.ShapeDtypeStruct(rows if case.kind == "full" else threshold.shape, threshold.dtype),
    )
    exported = export.export(jax.jit(both), platforms=PLATFORMS)(*operands)
    for got, wanted in zip(
        jax.tree.leaves(exported.call(case.x, threshold)),
        jax.tree.leaves(both(case.x, threshold)),
        strict=True,
    ):
        assert got.dtype == wanted.dtype
        close(got, np.asarray(wanted, np.float64), case)


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
