"""Moments of a thresholded activation under a normal distribution, in closed form.

With x = μ + σu, u standard normal, a = (θ − μ)/σ and, for a ceiling m, b = a + m/σ, all of it comes
from the partial moments

    M_k(a) = E[(u − a)^k; u > a],        M_0 = Q(a) = 1 − Φ(a).

M_1 = φ − aQ and M_2 = (1 + a²)Q − aφ cancel far in the upper tail: at a = 30 the second is 10⁻⁶
of its terms. There the ratios of successive moments are a continued fraction of positive terms, in
which nothing cancels: with I_k = M_k/φ, from k I_{k−1} = I_{k+1} + a I_k,

    I_k / I_{k−1} = k / (a + (k + 1)/(a + (k + 2)/(a + …))),        I_0 = 1/(a + I_1/I_0).
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import erfc
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxtrelu._primitive.spec import Spec, VariantName, ceiling_in, check_fill, checked_spec
from jaxtrelu.theory._operands import finite, floating, positive

# From here on the continued fraction: there 50 of its terms, the rest estimated, are off by 4e-15.
_TAIL = 2.5
_TERMS = 50
# Between a threshold and a ceiling not further away than this, quadrature instead of a difference.
_NEAR = 1.0
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)


class Moments(NamedTuple):
    """What an activation makes of a normal distribution; arrays of the operands' common shape.

    >>> from jaxtrelu import theory
    >>> found = theory.moments(1.0)
    >>> round(float(found.open), 4), round(float(found.second), 4)
    (0.1587, 0.0754)
    """

    mean: Array
    """E f(x), in x's units."""
    second: Array
    """E f(x)², in x's units squared."""
    variance: Array
    """E f(x)² − (E f(x))², computed without that difference."""
    open: Array
    """P(x > θ), the share of open entries; 1 − sparsity where closed entries are 0."""
    slope: Array
    """E f′(x), a jump left out: the share of entries through which gradients pass."""
    slope_second: Array
    """E f′(x)²; the same, as f′ is 0 or 1."""
    cross: Array
    """E x f(x), in x's units squared."""


def density(u: Array) -> Array:
    """φ(u)."""
    return jnp.exp(-0.5 * u * u) / math.sqrt(2 * math.pi)


@jax.custom_jvp
def upper(a: Array) -> Array:
    """Q(a) = P(u > a), to full relative precision in both tails."""
    # Behind a barrier: fused into each of its many uses, it would take minutes to compile.
    return jax.lax.optimization_barrier(0.5 * erfc(a / math.sqrt(2)))


@upper.defjvp
def _upper_jvp(primals, tangents):
    return upper(primals[0]), -density(primals[0]) * tangents[0]


def partial_moments(a: Array) -> tuple[Array, Array, Array]:
    """M_0, M_1 and M_2 at a, each to full relative precision."""
    m0, first, second = _tail(a)
    return m0, first * m0, second * first * m0


@jax.custom_jvp
@jax.jit
def _tail(a: Array) -> tuple[Array, Array, Array]:
    """M_0, M_1 / M_0 and M_2 / M_1: the ratios also where the moments are too small to divide."""
    in_tail = a > _TAIL
    near, far = jnp.where(in_tail, _TAIL, a), jnp.where(in_tail, a, _TAIL)
    peak, mass = density(near), upper(near)
    mean = peak - near * mass
    direct = mass, mean / mass, ((1 + near * near) * mass - near * peak) / mean
    first, second = _ratios(far)
    tail = density(far) / (far + first), first, second
    m0, m1, m2 = (jnp.where(in_tail, t, d) for t, d in zip(tail, direct, strict=True))
    return jax.lax.optimization_barrier((m0, m1, m2))


@_tail.defjvp
def _tail_jvp(primals, tangents):
    """As M_0' = −φ, M_1' = −M_0, M_2' = −2 M_1 and M_2 = M_0 − a M_1; of every order."""
    (a,), (da,) = primals, tangents
    m0, r1, r2 = _tail(a)
    return (m0, r1, r2), (-density(a) * da, -r1 * (r2 - r1) * da, (r2 / r1 - 2) * da)


def _ratios(a: Array) -> tuple[Array, Array]:
    """I_1 / I_0 and I_2 / I_1."""
    # What k / (a + r) = r makes of the terms left out, which hardly change from one to the next.
    ratio = 0.5 * (jnp.sqrt(a * a + 4 * (_TERMS + 1)) - a)
    ratio = jax.lax.fori_loop(0, _TERMS - 1, lambda i, ratio: (_TERMS - i) / (a + ratio), ratio)
    return 1 / (a + ratio), ratio


def of_rank(numbers: np.ndarray, like: Array) -> Array:
    """The numbers along the last axis, of as many axes and of the dtype of `like`."""
    return jnp.asarray(numbers, like.dtype).reshape(*(1,) * (like.ndim - 1), -1)


@jax.jit
def capped_moments(a: Array, width: Array) -> tuple[Array, Array, Array]:
    """P(a < u < a + c), and the first two moments of min(max(u − a, 0), c), for a width c."""
    b = a + width
    near = width <= _NEAR
    # D = ∫φ, E y = ∫Q and E y² = 2∫(t − a)Q between a and b: positive, whatever the width.
    half = 0.5 * jnp.where(near, width, _NEAR)[..., None]
    way, weight = half * (1 + of_rank(_NODES, half)), half * of_rank(_WEIGHTS, half)
    at = a[..., None] + way
    mass = partial_moments(at)[0]
    close = (
        jnp.sum(weight * density(at), -1),
        jnp.sum(weight * mass, -1),
        jnp.sum(2 * weight * way * mass, -1),
    )
    (a0, a1, a2), (b0, b1, b2) = partial_moments(a), partial_moments(b)
    # From the side on which there is less: Q(a) − Q(b) of two numbers near 1 would cancel.
    below = upper(-b) - upper(-a)
    between = jnp.where(a < 0, jnp.where(b < 0, below, 1 - upper(-a) - b0), a0 - b0)
    apart = between, a1 - b1, a2 - b2 - 2 * width * b1
    d0, d1, d2 = (jnp.where(near, c, f) for c, f in zip(close, apart, strict=True))
    return d0, d1, d2


def moments(
    threshold: Float[ArrayLike, "*#shape"],
    *,
    mean: Float[ArrayLike, "*#shape"] = 0.0,
    std: Float[ArrayLike, "*#shape"] = 1.0,
    variant: VariantName = "shift",
    ceiling: float | None = None,
    fill: float = 0,
) -> Moments:
    r"""Moments of `jaxtrelu.thresholded_relu` of a normal x, in closed form.

    With :math:`a = (\theta - \mu)/\sigma` and Q the upper tail, for ``shift`` without a ceiling
    :math:`E f = \sigma(\varphi(a) - a Q(a))` and
    :math:`E f^2 = \sigma^2((1 + a^2) Q(a) - a \varphi(a))`. Precise to rounding for |a| up to 30 in
    float64; differentiable with respect to threshold, mean and std.

    Convention at the threshold: open above it, and of no weight here, where no x is at it.

    Args:
      threshold: θ, of any shape, in x's units.
      mean: μ, which broadcasts with it.
      std: σ > 0, likewise.
      variant: ``"shift"``, ``"hard"`` or ``"clamp"``.
      ceiling: for ``shift``, a positive Python number.
      fill: for ``hard``, the value where the gate is closed.

    Returns:
      `Moments`, of the broadcast shape; float64 if an operand is, else float32.

    Raises:
      TypeError: an operand is not a real array.
      ValueError: σ is not greater than 0, or θ or μ not finite; else as `thresholded_relu`.

    Example:
      >>> from jaxtrelu import theory
      >>> m = theory.moments(0.0)  # ReLU: half of the variance, and 1/sqrt(2 pi)
      >>> round(float(m.second), 6), round(float(m.mean), 6)
      (0.5, 0.398942)

    Source: Price et al. 2024, arXiv 2402.16184, for ``shift``; the definition.
    """
    spec = checked_spec(variant, ceiling, fill)
    threshold, mean, std = floating(threshold=threshold, mean=mean, std=std)
    finite(threshold=threshold, mean=mean)
    positive(std=std)
    check_fill(spec, threshold.dtype, "the operands")
    if (ceiling := ceiling_in(spec, threshold.dtype)) is not None:
        return _capped(threshold, mean, std, ceiling)
    return _of_a_row(threshold, mean, std, spec)


def parts(threshold: Array, spec: Spec) -> tuple[Array, Array, int]:
    """(c, j, k) of a row of the table: f = c where closed, else c + j + k (x - θ)."""
    closed = jnp.broadcast_to(spec.traits.closed(threshold, spec.fill), threshold.shape)
    jump = spec.traits.jump
    height = jnp.zeros_like(threshold) if jump is None else jump(threshold, spec.fill)
    return closed, height, spec.traits.input_slope


@functools.partial(jax.jit, static_argnames="spec")
def _of_a_row(threshold, mean, std, spec: Spec) -> Moments:
    """From the side on which less is added: f is c and something above θ, or L(x) and some below.

    L is the line that f is where open. Either way what is added is a step and a ramp in the tail
    beyond |a|, and no difference of nearly equal numbers is taken.
    """
    closed, jump, slope = parts(threshold, spec)
    a, rise = (threshold - mean) / std, slope * std
    upward = a > 0
    sign = jnp.where(upward, 1, -1).astype(a.dtype)
    m0, r1, r2 = _tail(sign * a)  # and not |a|, whose derivative at 0 is 0
    m1, m2 = r1 * m0, r2 * r1 * m0
    line = spec.traits.opened(mean, threshold)
    first = jnp.where(upward, closed, line) + sign * jump * m0 + rise * m1
    # Where x is θ ± σw, w = |u| − |a|.
    cross = jnp.where(upward, closed * mean, mean * line + rise * std)
    cross += (threshold * rise + jump * std) * m1
    cross += sign * (threshold * jump * m0 + rise * std * m2)
    # The variance within the open part, and that between the parts.
    low = jnp.where(upward, 0, a)
    hazard = density(low) / upper(low)
    within = jnp.where(upward, r1 * (r2 - r1), 1 + low * hazard - hazard * hazard)
    apart = jump + rise * jnp.where(upward, r1, hazard - low)
    opened = upper(a)
    variance = opened * (rise * rise * within + upper(-a) * apart * apart)
    return Moments(
        mean=first,
        second=variance + first * first,
        variance=variance,
        open=opened,
        slope=slope * opened,
        slope_second=slope * slope * opened,
        cross=cross,
    )


@jax.jit
def _capped(threshold, mean, std, ceiling) -> Moments:
    """Of min(max(x − θ, 0), m), to which alone the table gives a ceiling."""
    a = (threshold - mean) / std
    width = ceiling / std
    passed, first, second = capped_moments(a, width)
    # Seen from the ceiling where that is nearer: there y is the width less something small.
    near = jnp.where(2 * a + width < 0, -(a + width), a)
    _, low, low_second = capped_moments(near, width)
    return Moments(
        mean=std * first,
        second=std * std * second,
        variance=std * std * (low_second - low * low),
        open=upper(a),
        slope=passed,
        slope_second=passed,
        cross=mean * std * first + std * std * passed,  # Stein's lemma
    )
