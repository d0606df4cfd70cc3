#!/usr/bin/env python
"""For maintainers: a new variant and a new back end, each one object, and what tests them.

The variant is `lift`: x + θ where x is above the threshold, else 0. The back end logs which
primitives it computes, and computes them as XLA does. Neither is part of the library: here they are
put into its tables by hand. CONTRIBUTING.md says where they would stand, and what else they need.

Needs: pip install jaxtrelu. Seconds on a laptop.

    python examples/new_variant_and_back_end.py
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import jaxtrelu
import jaxtrelu._linear  # loaded at the first use otherwise, and its primitives unknown until then
from jaxtrelu import Rectangle
from jaxtrelu._primitive.lowering import XLA_FORMS, BackEnd, Kernel, register_back_end
from jaxtrelu._primitive.variants import VARIANTS, Variant

rng = np.random.default_rng(0)
lift = functools.partial(jaxtrelu.thresholded_relu, variant="lift")

LIFT = Variant(
    formula="x + threshold where x > threshold, else 0",
    opened=lambda x, threshold: x + threshold,
    closed=lambda threshold, fill: jnp.zeros((), threshold.dtype),
    # From θ to x, with above = max(0, x − θ): (x² − θ²) / 2 + θ (x − θ).
    integral=lambda above, x, threshold, fill: above * (0.5 * above + 2 * threshold),
    input_slope=1,
    threshold_slope=(1, 0),  # where open, where closed
    jump=lambda threshold, fill: 2 * threshold,
)


def written(x, threshold):
    """The definition, which nothing of the library computes."""
    return jnp.where(x > threshold, x + threshold, 0)


def draw(*shape):
    """Normal numbers, others at each call."""
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def check_variant():
    """Values, both modes of differentiation, surrogates, the calculus, layers and products."""
    x, threshold = draw(6, 7), draw(7)

    ours, pull = jax.vjp(lift, x, threshold)
    theirs, pull_theirs = jax.vjp(written, x, threshold)
    np.testing.assert_array_equal(ours, theirs)
    cotangent = draw(6, 7)
    for one, other in zip(pull(cotangent), pull_theirs(cotangent), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    tangents = draw(6, 7), draw(7)
    np.testing.assert_allclose(
        jax.jvp(lift, (x, threshold), tangents)[1], jax.jvp(written, (x, threshold), tangents)[1]
    )
    print("lift: value, gradients and tangent are those of jnp.where")

    kept = jax.tree.leaves(jax.vjp(lambda x: lift(x, 0.5), jnp.ones((64, 64)))[1])
    bytes_kept = sum(array.nbytes for array in kept if array.size > 1)
    assert bytes_kept == 64 * 64 // 8
    print("lift: the backward pass keeps one bit per element")

    surrogate = Rectangle(1.0)
    slope = jax.grad(lambda t: lift(x, t, surrogate=surrogate).sum())(threshold)
    density = surrogate.density(x - threshold)
    np.testing.assert_allclose(
        slope, ((x > threshold) - 2 * threshold * density).sum(0), rtol=1e-5, atol=1e-5
    )
    print("lift: a surrogate multiplies its density with the jump, 2 θ")

    area = functools.partial(jaxtrelu.antiderivative, threshold=threshold, variant="lift")
    value, slope = jax.jvp(area, (x,), (jnp.ones_like(x),))
    open_area = (x**2 - threshold**2) / 2 + threshold * (x - threshold)
    np.testing.assert_allclose(value, jnp.where(x > threshold, open_area, 0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(slope, written(x, threshold), rtol=1e-5, atol=1e-5)
    print("lift: its antiderivative has it as its slope")

    w_in, w_out = draw(9, 7), draw(9, 3)
    np.testing.assert_allclose(
        jaxtrelu.sparse_mlp(x, w_in, w_out, 0.5, variant="lift"),
        written(x @ w_in.T, 0.5) @ w_out,
        rtol=1e-4,
        atol=1e-4,
    )
    print("lift: products skip its zeros")


def logging_back_end(log):
    """XLA's forms, and a log of the primitives that were traced."""

    def kernel(name, xla):
        def run(*operands, **params):
            log.append(name)
            return xla(*operands, **params)

        return Kernel(run)  # not the default anywhere: `wins` says where it would be

    kernels = {name: kernel(name, xla) for name, xla in XLA_FORMS.items()}
    platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    return BackEnd("logging", platform=platform, dtypes=("float32",), kernels=kernels)


def check_back_end(log):
    """By name it computes all, never by default; and what it cannot do, it says."""
    x = jnp.arange(12.0).reshape(3, 4) / 8

    def gradients(**options):
        def act(x):
            return jaxtrelu.thresholded_relu(x, 0.5, **options).sum()

        def layer(x):
            return jaxtrelu.thresholded_linear(x, jnp.eye(4), 0.5, **options).sum()

        return [jax.jit(jax.grad(function))(x) for function in (act, layer)]

    for gradient in gradients():
        np.testing.assert_array_equal(gradient, x > 0.5)
    assert not log
    print("logging: not asked for, it computes nothing")
    for gradient in gradients(implementation="logging"):
        np.testing.assert_array_equal(gradient, x > 0.5)
    assert set(log) == set(XLA_FORMS)
    print("logging:", ", ".join(dict.fromkeys(log)))
    refusal = refused(x.astype(jnp.float16))
    assert refusal is not None and "float16 is none of float32" in refusal
    print("logging:", refusal)


def refused(x):
    """What the back end says of an operand that it does not take; None if it takes it."""
    try:
        jaxtrelu.thresholded_relu(x, implementation="logging")
    except NotImplementedError as error:
        return str(error)
    return None


def main():
    VARIANTS["lift"] = LIFT
    check_variant()
    log = []
    register_back_end(logging_back_end(log))
    check_back_end(log)


if __name__ == "__main__":
    main()
