"""The formulas, read off the table of variants, as selects over plain arrays.

Everything here works on a threshold that is 0-d or has x's rank, knows no differentiation, and
serves as XLA lowering, as the body of kernels, as reference and as abstract evaluation at once.
"""

import jax
import jax.numpy as jnp

from jaxtrelu._primitive.spec import Spec, accumulator_dtype, ceiling_in, computation_dtype


def value(x: jax.Array, threshold: jax.Array, spec: Spec) -> jax.Array:
    """The function's value, in x's dtype."""
    dtype = x.dtype
    x, threshold = _widened(x, threshold)
    opened = spec.traits.opened(x, threshold)
    if (ceiling := ceiling_in(spec, opened.dtype)) is not None:
        # Differences of integers may wrap, but not as unsigned ones, where the gate is open.
        opened = _unsigned(opened)
        opened = jnp.minimum(opened, jnp.asarray(ceiling, opened.dtype)).astype(x.dtype)
    closed = spec.traits.closed(threshold, spec.fill)
    return jnp.where(x <= threshold, closed, opened).astype(dtype)


def above(x: jax.Array, threshold: jax.Array) -> jax.Array:
    """Where x > threshold, or where there is a NaN, in the wider of both dtypes."""
    x, threshold = _widened(x, threshold)
    return ~(x <= threshold)


def gate(x: jax.Array, threshold: jax.Array, spec: Spec) -> jax.Array:
    """Where the cotangent passes: not where x <= threshold, nor where x >= threshold + ceiling.

    Written with negations, so that NaN passes. The difference is compared with the ceiling, since
    the sum threshold + ceiling would be rounded, or wrap.
    """
    x, threshold = _widened(x, threshold)
    closed = x <= threshold
    if spec.ceiling is not None:
        reach = _reach(x, threshold)
        if (ceiling := ceiling_in(spec, reach.dtype)) is not None:
            closed |= reach >= jnp.asarray(ceiling, reach.dtype)
    return ~closed


def window(x: jax.Array, threshold: jax.Array, spec: Spec) -> jax.Array:
    """Where a surrogate of bounded support lets the cotangent pass."""
    assert spec.surrogate is not None and spec.surrogate.half_width is not None
    half_width = spec.surrogate.half_width
    distance = _distance(x, threshold)
    if spec.traits.jump is not None:
        return jnp.abs(distance) < half_width
    # The smoothed gate of a continuous variant: zero only beyond the window, on the closed sides.
    closed = distance <= -half_width
    if (ceiling := ceiling_in(spec, distance.dtype)) is not None:
        closed |= distance >= ceiling + half_width
    return ~closed


def smoothed(x: jax.Array, threshold: jax.Array, spec: Spec) -> jax.Array:
    """What the surrogate multiplies cotangents with, in x's dtype.

    For a variant that jumps the density D(x - threshold); for a continuous one the smoothed gate,
    which is the slope of the function convolved with D.
    """
    assert spec.surrogate is not None
    dtype, distance = x.dtype, _distance(x, threshold)
    if spec.traits.jump is not None:
        return spec.surrogate.density(distance).astype(dtype)
    slope = spec.surrogate.cumulative(distance)
    if (ceiling := ceiling_in(spec, distance.dtype)) is not None:
        slope = slope - spec.surrogate.cumulative(distance - ceiling)
    return slope.astype(dtype)


def jump_height(threshold: jax.Array, spec: Spec) -> jax.Array:
    """The height of the jump, where one can be reached: a threshold at infinity has no window.

    It multiplies what a window lets through, and 0 times infinity would be NaN.
    """
    assert spec.traits.jump is not None
    height = spec.traits.jump(threshold, spec.fill)
    return jnp.where(jnp.isinf(threshold), jnp.zeros_like(height), height)


def _widened(x: jax.Array, threshold: jax.Array) -> tuple[jax.Array, jax.Array]:
    dtype = computation_dtype(x.dtype, threshold.dtype)
    return x.astype(dtype), threshold.astype(dtype)


def _reach(x: jax.Array, threshold: jax.Array) -> jax.Array:
    """``x - threshold``, exact where the gate of integers is open, else rounded to float32."""
    if jnp.issubdtype(x.dtype, jnp.integer):
        return _unsigned(x - threshold)
    return _distance(x, threshold)


def _distance(x: jax.Array, threshold: jax.Array) -> jax.Array:
    """``x - threshold`` in float32 at least; 0 where they are equal, also at infinity.

    Rounded to 16 bits, it would decide otherwise what is near an edge of a window, or the ceiling.
    """
    dtype = accumulator_dtype(x.dtype, threshold.dtype)
    x, threshold = x.astype(dtype), threshold.astype(dtype)
    return jnp.where(x == threshold, jnp.zeros((), dtype), x - threshold)


def _unsigned(difference: jax.Array) -> jax.Array:
    """A difference of integers that is not negative, as it is before it wraps."""
    if not jnp.issubdtype(difference.dtype, jnp.integer):
        return difference
    return difference.astype(jnp.dtype(f"uint{8 * difference.dtype.itemsize}"))
