"""Moments of a thresholded activation under a normal distribution, in closed form.

With x = μ + σu, u standard normal, a = (θ − μ)/σ and, for a ceiling m, b = a + m/σ, all of it comes
from the partial moments

    M_k(a) = E[(u − a)^k; u > a],        M_0 = Q(a) = 1 − Φ(a).

M_1 = φ − aQ and M_2 = (1 + a²)Q − aφ cancel far in the upper tail: at a = 30 the second is 10⁻⁶ of its
terms. There the ratios of successive moments are a continued fraction of positive terms, in which
nothing cancels: with I_k = M_k/φ, from k I_{k−1} = I_{k+1} + a I_k,

    I_k / I_{k−1} = k / (a + (k + 1)/(a + (k + 2)/(a + …))),        I_0 = 1/(a + I_1/I_0).
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import erfc
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxtrelu._primitive.spec import Spec, VariantName, checked_spec
from jaxtrelu.theory._operands import floating, positive, refuse_nan

# From here on the continued fraction; 60 of its terms are exact to rounding there.
_TAIL = 2.0
_TERMS = 60
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
    """E f′(x), the jump of `hard` left out: the share of entries through which gradients pass."""
    slope_second: Array
    """E f′(x)²; as f′ is 0 or 1, the same."""
    cross: Array
    """E x f(x), in x's units squared."""


def density(u: Array) -> Array:
    """φ(u)."""
    return jnp.exp(-0.5 * u * u) / math.sqrt(2 * math.pi)


def upper(a: Array) -> Array:
    """Q(a) = P(u > a), to full relative precision in both tails."""
    return 0.5 * erfc(a / math.sqrt(2))


def partial_moments(a: Array) -> tuple[Array, Array, Array]:
    """M_0, M_1 and M_2 at a, each to full relative precision."""
    in_tail = a > _TAIL
    # Each branch sees operands that suit it, so that the derivative of neither is NaN.
    near, far = jnp.where(in_tail, _TAIL, a), jnp.where(in_tail, a, _TAIL)
    peak, mass = density(near), upper(near)
    direct = mass, peak - near * mass, (1 + near * near) * mass - near * peak
    second, first = _ratio(far, 2), _ratio(far, 1)
    none = density(far) / (far + first)
    tail = none, first * none, second * first * none
    m0, m1, m2 = (jnp.where(in_tail, t, d) for t, d in zip(tail, direct, strict=True))
    return m0, m1, m2


def _ratio(a: Array, k: int) -> Array:
    """I_k / I_{k−1} = k / (a + (k + 1)/(a + …))."""
    ratio = jnp.zeros_like(a)
    for term in range(k + _TERMS, k - 1, -1):
        ratio = term / (a + ratio)
    return ratio


def capped_moments(a: Array, b: Array) -> tuple[Array, Array, Array]:
    """P(a < u < b), and the first two moments of min(max(u − a, 0), b − a)."""
    width = b - a
    near = width <= _NEAR
    # D = ∫φ, E y = ∫Q and E y² = 2∫(t − a)Q between a and b: positive, whatever the width.
    half = 0.5 * jnp.where(near, width, _NEAR)[..., None]
    way = half * (1 + jnp.asarray(_NODES, a.dtype))
    weight = half * jnp.asarray(_WEIGHTS, a.dtype)
    at = a[..., None] + way
    mass = partial_moments(at)[0]
    close = (
        jnp.sum(weight * density(at), -1),
        jnp.sum(weight * mass, -1),
        jnp.sum(2 * weight * way * mass, -1),
    )
    (a0, a1, a2), (b0, b1, b2) = partial_moments(a), partial_moments(b)
    # A ceiling at infinity has moments of 0, which times the width would be NaN.
    reach = jnp.where(jnp.isinf(b), 0, width)
    # From the side on which there is less: Q(a) − Q(b) of two numbers near 1 would cancel.
    below = upper(-b) - upper(-a)
    between = jnp.where(a < 0, jnp.where(b < 0, below, 1 - upper(-a) - b0), a0 - b0)
    apart = between, a1 - b1, a2 - b2 - 2 * reach * b1
    d0, d1, d2 = (jnp.where(near, c, f) for c, f in zip(close, apart, strict=True))
    return d0, d1, d2


def moments(
    threshold: Float[ArrayLike, "..."],
    *,
    mean: Float[ArrayLike, "..."] = 0.0,
    std: Float[ArrayLike, "..."] = 1.0,
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
      ValueError: σ is not greater than 0, or an operand is NaN; else as `thresholded_relu`.

    Example:
      >>> from jaxtrelu import theory
      >>> m = theory.moments(0.0)  # ReLU: half of the variance, and 1/sqrt(2 pi)
      >>> round(float(m.second), 6), round(float(m.mean), 6)
      (0.5, 0.398942)

    Source: Price et al. 2024, arXiv 2402.16184, for ``shift``; the definition.
    """
    spec = checked_spec(variant, ceiling, fill)
    threshold, mean, std = floating(threshold=threshold, mean=mean, std=std)
    refuse_nan(threshold=threshold, mean=mean)
    positive(std=std)
    return _BY_VARIANT[spec.variant](threshold, mean, std, spec)


def _shift(threshold, mean, std, spec: Spec) -> Moments:
    a = (threshold - mean) / std
    opened, first, second = partial_moments(a)
    passed, spread = opened, second - first * first
    if spec.ceiling is not None:
        b = a + spec.ceiling / std
        passed, first, second = capped_moments(a, b)
        # Seen from the ceiling where that is nearer: there y is c less something small.
        turned = a + b < 0
        _, low, low_second = capped_moments(jnp.where(turned, -b, a), jnp.where(turned, -a, b))
        spread = low_second - low * low
    return Moments(
        mean=std * first,
        second=std * std * second,
        variance=std * std * spread,
        open=opened,
        slope=passed,
        slope_second=passed,
        cross=mean * std * first + std * std * passed,  # Stein's lemma
    )


def _hard(threshold, mean, std, spec: Spec) -> Moments:
    a, fill = (threshold - mean) / std, spec.fill
    m0, m1, m2 = partial_moments(a)
    first, second = _above(a, threshold, mean, std, m0, m1, m2)
    closed, below = _below(a, mean, std)
    # Of the open part and between the parts: the difference of E f² and (E f)² would cancel.
    share = jnp.where(m0 > 0, m0, 1)
    spread = std * std * jnp.maximum(m2 / share - (m1 / share) ** 2, 0)
    height = threshold + std * m1 / share - fill
    return Moments(
        mean=first + fill * closed,
        second=second + fill * fill * closed,
        variance=m0 * spread + m0 * closed * height * height,
        open=m0,
        slope=m0,
        slope_second=m0,
        cross=second + fill * below,
    )


def _clamp(threshold, mean, std, spec: Spec) -> Moments:
    a = (threshold - mean) / std
    m0, m1, m2 = partial_moments(a)
    _, second = _above(a, threshold, mean, std, m0, m1, m2)
    closed, below = _below(a, mean, std)
    return Moments(
        # max(x, θ) is θ + (x − θ)⁺ and x + (θ − x)⁺: from the side on which less is added.
        mean=jnp.where(a > 0, threshold + std * m1, mean + std * partial_moments(-a)[1]),
        second=threshold * threshold * closed + second,
        variance=std * std * (m2 - m1 * m1),
        open=m0,
        slope=m0,
        slope_second=m0,
        cross=second + threshold * below,
    )


_BY_VARIANT = {"shift": _shift, "hard": _hard, "clamp": _clamp}


def _above(a, threshold, mean, std, m0, m1, m2) -> tuple[Array, Array]:
    """E[x; x > θ] and E[x²; x > θ]: around the threshold in the upper tail, else around the mean."""
    peak = density(a)
    first = jnp.where(a > 0, threshold * m0 + std * m1, mean * m0 + std * peak)
    around_threshold = threshold * threshold * m0 + 2 * threshold * std * m1 + std * std * m2
    around_mean = mean * mean * m0 + 2 * mean * std * peak + std * std * (m0 + a * peak)
    return first, jnp.where(a > 0, around_threshold, around_mean)


def _below(a, mean, std) -> tuple[Array, Array]:
    """P(x <= θ) and E[x; x <= θ]."""
    closed = upper(-a)
    return closed, mean * closed - std * density(a)
