"""The mathematics of the variants, as selects over plain arrays: one table, no differentiation.

Everything here works on a threshold that is 0-d or has x's rank, and serves as XLA lowering,
reference and abstract evaluation at once. Values are selects, never products: XLA rewrites
``x * (x > threshold)`` into a select under jit only, and NaN would then differ between jit and
eager (openxla/xla#2438, jax#12233).
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxtrelu.surrogates import Surrogate

#: The lowerings that can be asked for by name.
IMPLEMENTATIONS = ("xla", "mosaic_gpu", "mosaic_tpu")


@dataclasses.dataclass(frozen=True)
class Spec:
    """Which function it is: the static part of a call. Hashable, a parameter of the primitive."""

    variant: str = "shift"
    ceiling: int | float | None = None
    fill: int | float = 0
    surrogate: Surrogate | None = None
    #: Which lowering computes it, one of `IMPLEMENTATIONS`, or None: chosen by platform.
    implementation: str | None = None

    @property
    def row(self) -> "Variant":
        """The row of the table that this function is an instance of."""
        return VARIANTS[self.variant]


@dataclasses.dataclass(frozen=True)
class Variant:
    """A row of the table: the values on both sides of the threshold, and the slopes there.

    `input_slope` is the derivative with respect to x where the gate is open (it is 0 where closed);
    `threshold_slope` the one with respect to the threshold, as (where open, where closed). `jump`
    is the height by which the value jumps at the threshold, None where it is continuous: what a
    surrogate multiplies its density with.
    """

    opened: Callable[[jax.Array, jax.Array], jax.Array]
    closed: Callable[[jax.Array, Spec], jax.Array]
    input_slope: int
    threshold_slope: tuple[int, int]
    jump: Callable[[jax.Array, Spec], jax.Array] | None = None


def _fill(threshold: jax.Array, spec: Spec) -> jax.Array:
    return jnp.full((), spec.fill, threshold.dtype)


def _unless_nan(value: jax.Array, *operands: jax.Array) -> jax.Array:
    """`value`, but NaN where an operand is: a select of x alone would lose a NaN threshold."""
    for operand in operands:
        if jnp.issubdtype(operand.dtype, jnp.inexact):
            value = jnp.where(operand != operand, operand, value)
    return value


VARIANTS = {
    # x - threshold where x > threshold, else 0. The difference is NaN where an operand is.
    "shift": Variant(jnp.subtract, _fill, 1, (-1, 0)),
    # x where x > threshold, else `fill`.
    "hard": Variant(_unless_nan, _fill, 1, (0, 0), lambda t, spec: t - _fill(t, spec)),
    # max(x, threshold).
    "clamp": Variant(_unless_nan, lambda t, spec: t, 1, (0, 1)),
    # 1 where x > threshold, else 0: the gate as a number.
    "step": Variant(
        lambda x, t: _unless_nan(jnp.ones_like(x), x, t),
        _fill,
        0,
        (0, 0),
        lambda t, spec: jnp.ones_like(t),
    ),
}


def computation_dtype(*dtypes):
    """The dtype in which operands are compared and subtracted: wide enough to hold them all.

    Types without arithmetic of their own (the float8 family) are computed in float32.
    """
    wide = []
    for dtype in map(jnp.dtype, dtypes):
        narrow = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 2
        wide.append(jnp.dtype("float32") if narrow else dtype)
    # Promotion is stated here, so a user's strict mode has nothing to object to.
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, wide)


def value(x: jax.Array, threshold: jax.Array, spec: Spec) -> jax.Array:
    """The function's value, in x's dtype."""
    dtype = x.dtype
    x, threshold = _widen(x, threshold)
    opened = spec.row.opened(x, threshold)
    if spec.ceiling is not None:
        opened = jnp.minimum(opened, jnp.asarray(spec.ceiling, x.dtype))
    return jnp.where(x <= threshold, spec.row.closed(threshold, spec), opened).astype(dtype)


def gate(x: jax.Array, threshold: jax.Array, spec: Spec) -> jax.Array:
    """Where the cotangent passes: not where x <= threshold, nor where x >= threshold + ceiling.

    Written with negations, so that NaN passes.
    """
    x, threshold = _widen(x, threshold)
    closed = x <= threshold
    if spec.ceiling is not None:
        closed |= x >= threshold + jnp.asarray(spec.ceiling, x.dtype)
    return ~closed


def window(x: jax.Array, threshold: jax.Array, spec: Spec) -> jax.Array:
    """Where a surrogate of bounded support lets the cotangent pass."""
    assert spec.surrogate is not None and spec.surrogate.half_width is not None
    half_width = spec.surrogate.half_width
    x, threshold = _widen(x, threshold)
    if spec.row.jump is not None:
        return jnp.abs(x - threshold) < half_width
    # The smoothed gate of a continuous variant: zero only beyond the window, on the closed sides.
    closed = x - threshold <= -half_width
    if spec.ceiling is not None:
        closed |= x - threshold >= jnp.asarray(spec.ceiling, x.dtype) + half_width
    return ~closed


def smoothed(x: jax.Array, threshold: jax.Array, spec: Spec) -> jax.Array:
    """What the surrogate multiplies cotangents with, in x's dtype.

    For a variant that jumps the density D(x - threshold); for a continuous one the smoothed gate,
    which is the slope of the function convolved with D.
    """
    assert spec.surrogate is not None
    dtype = x.dtype
    x, threshold = _widen(x, threshold)
    distance = x - threshold
    if spec.row.jump is not None:
        return spec.surrogate.density(distance).astype(dtype)
    slope = spec.surrogate.cumulative(distance)
    if spec.ceiling is not None:
        slope = slope - spec.surrogate.cumulative(distance - jnp.asarray(spec.ceiling, x.dtype))
    return slope.astype(dtype)


def _widen(x: jax.Array, threshold: jax.Array) -> tuple[jax.Array, jax.Array]:
    dtype = computation_dtype(x.dtype, threshold.dtype)
    return x.astype(dtype), threshold.astype(dtype)
