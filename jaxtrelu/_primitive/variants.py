"""The table of variants: everything in which the functions that share one name differ.

A variant is one row. All else (rules, kernels, checks, calculus, sparse products) reads the columns
and names no variant. Values are selects, never products: XLA rewrites ``x * (x > threshold)`` into
a select under jit only, and NaN would then differ between jit and eager (openxla/xla#2438,
jax#12233).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Variant:
    """A row of the table. The functions are elementwise, of operands that have one dtype.

    Args:
      formula: the value in words, as error messages put it.
      opened: ``(x, threshold)`` to the value where x > threshold.
      closed: ``(threshold, fill)`` to the value where x <= threshold.
      integral: ``(above, x, threshold, fill)`` to the integral from the threshold to x, with
        ``above = max(0, x - threshold)``, through which its derivatives follow the convention at
        the threshold. None where nobody asks for it.
      input_slope: the derivative with respect to x where the gate is open, a whole number; it is 0
        where closed.
      threshold_slope: the derivative with respect to the threshold, (where open, where closed),
        whole numbers.
      jump: ``(threshold, fill)`` to the height of the jump at the threshold, which a surrogate
        multiplies its density with; None where the function is continuous.
      estimable: whether there is anything for a surrogate to estimate: a jump, or else a kink
        below which the function is constant, in x and in the threshold, so that the slopes where
        open can be smoothed.
      has_zeros: whether closed entries are 0, so that products may skip them.
      takes_fill: whether the value of closed entries is the caller's choice.
      takes_ceiling: whether the value may be capped; one that opens to x - threshold only.
      selectable: whether the name may be passed as ``variant=``.
    """

    formula: str
    opened: Callable[[jax.Array, jax.Array], jax.Array]
    closed: Callable[[jax.Array, int | float], jax.Array]
    integral: Callable[[jax.Array, jax.Array, jax.Array, int | float], jax.Array] | None
    input_slope: int
    threshold_slope: tuple[int, int]
    jump: Callable[[jax.Array, int | float], jax.Array] | None = None
    estimable: bool = True
    has_zeros: bool = True
    takes_fill: bool = False
    takes_ceiling: bool = False
    selectable: bool = True


def _constant(threshold: jax.Array, fill: int | float) -> jax.Array:
    return jnp.full((), fill, threshold.dtype)


def _unless_nan(value: jax.Array, *operands: jax.Array) -> jax.Array:
    """`value`, but NaN where an operand is: a select of x alone would lose a NaN threshold."""
    for operand in operands:
        if jnp.issubdtype(operand.dtype, jnp.inexact):
            value = jnp.where(operand != operand, operand, value)
    return value


def _shift_integral(above, x, threshold, fill):
    return 0.5 * above * above


def _hard_integral(above, x, threshold, fill):
    area = _area_above(above, x, threshold)
    if not fill:
        return area
    below = (x <= threshold) & ~_same_infinity(x, threshold)
    return area + fill * jnp.where(below, x - threshold, jnp.zeros_like(x))


def _clamp_integral(above, x, threshold, fill):
    # At a threshold of 0 there is no area below, however far down.
    empty = _same_infinity(x, threshold) | ((threshold == 0) & jnp.isinf(x))
    below = (x <= threshold) & ~empty
    height = jnp.where(below, threshold, jnp.zeros_like(threshold))
    way = jnp.where(below, x - threshold, jnp.zeros_like(x))
    return _area_above(above, x, threshold) + height * way


# In both, sides are chosen, not multiplied or subtracted away: 0 * inf and inf - inf are NaN.


def _area_above(above, x, threshold):
    """The integral of x from the threshold on, 0 below it; NaN, and so its slopes, from NaN."""
    zero, is_open = jnp.zeros_like(x), ~(x <= threshold)
    # Where one end is infinite, the difference of squares: in the slopes of the product, which
    # rounds less, infinities would cancel. Beside NaN it would have infinite ones.
    far = (x > threshold) & (jnp.isinf(x) | jnp.isinf(threshold))
    end, start = jnp.where(far, x, zero), jnp.where(far, threshold, zero)
    difference, total = jnp.where(far, zero, above), jnp.where(is_open & ~far, x + threshold, zero)
    return 0.5 * (difference * total + (end * end - start * start))


def _same_infinity(x, threshold):
    return (x == threshold) & jnp.isinf(x)


VARIANTS = {
    # The difference is NaN where an operand is.
    "shift": Variant(
        formula="max(0, x - threshold)",
        opened=jnp.subtract,
        closed=_constant,
        integral=_shift_integral,
        input_slope=1,
        threshold_slope=(-1, 0),
        takes_ceiling=True,
    ),
    "hard": Variant(
        formula="x where x > threshold, else fill",
        opened=_unless_nan,
        closed=_constant,
        integral=_hard_integral,
        input_slope=1,
        threshold_slope=(0, 0),
        jump=lambda threshold, fill: threshold - _constant(threshold, fill),
        takes_fill=True,
    ),
    "clamp": Variant(
        formula="max(x, threshold)",
        opened=_unless_nan,
        closed=lambda threshold, fill: threshold,
        integral=_clamp_integral,
        input_slope=1,
        threshold_slope=(0, 1),
        estimable=False,
        has_zeros=False,
    ),
    # The gate as a number, `jaxtrelu.step`.
    "step": Variant(
        formula="1 where x > threshold, else 0",
        opened=lambda x, threshold: _unless_nan(jnp.ones_like(x), x, threshold),
        closed=_constant,
        integral=None,
        input_slope=0,
        threshold_slope=(0, 0),
        jump=lambda threshold, fill: jnp.ones_like(threshold),
        selectable=False,
    ),
}
