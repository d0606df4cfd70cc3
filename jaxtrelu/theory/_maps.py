"""How variance and correlation travel through a wide random layer.

A layer makes z = W f(x) + b of pre-activations x, with weights of variance σ_w² / width and biases
of variance σ_b². In the limit of infinite width z is normal again; of its variance, and of the
correlation for two inputs, there are maps from one layer to the next (Poole et al. 2016,
Schoenholz et al. 2017; for thresholded ReLU Price et al. 2024, arXiv 2402.16184).
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxtrelu._primitive.spec import Spec, VariantName, ceiling_in, checked_spec
from jaxtrelu.theory._moments import density, moments, of_rank, partial_moments, parts, upper
from jaxtrelu.theory._operands import between, floating, positive

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


def variance_map(
    variance: Float[ArrayLike, "*#shape"],
    threshold: Float[ArrayLike, "*#shape"] = 1.0,
    *,
    weight_variance: Float[ArrayLike, "*#shape"],
    bias_variance: Float[ArrayLike, "*#shape"] = 0.0,
    variant: VariantName = "shift",
    ceiling: float | None = None,
) -> Float[Array, "*shape"]:
    r"""The variance of the next layer's pre-activations.

    :math:`V(q) = \sigma_w^2 E f^2 + \sigma_b^2`. Differentiate it for :math:`V'` and :math:`V''`:
    ``jax.grad(variance_map)(q, …)``. A fixed point V(q) = q is stable where :math:`|V'| < 1`.

    Args:
      variance: q > 0, the variance of this layer's pre-activations.
      threshold: in the units of the pre-activations.
      weight_variance: σ_w², of a weight times the width.
      bias_variance: σ_b².
      variant: as in `jaxtrelu.thresholded_relu`.
      ceiling: for ``shift``, a positive Python number.

    Returns:
      V(q), of the operands' broadcast shape.

    Raises:
      TypeError, ValueError: as `moments`; a variance that is not greater than 0.

    Example:
      >>> from jaxtrelu import theory
      >>> float(theory.variance_map(1.0, 0.0, weight_variance=2.0))  # ReLU as He initialised it
      1.0

    Source: Price et al. 2024, arXiv 2402.16184.
    """
    variance, threshold, weight, bias = floating(
        variance=variance,
        threshold=threshold,
        weight_variance=weight_variance,
        bias_variance=bias_variance,
    )
    positive(variance=variance, weight_variance=weight)
    between(0, math.inf, bias_variance=bias)
    found = moments(threshold, std=jnp.sqrt(variance), variant=variant, ceiling=ceiling)
    return weight * found.second + bias


def gradient_gain(
    variance: Float[ArrayLike, "*#shape"],
    threshold: Float[ArrayLike, "*#shape"] = 1.0,
    *,
    weight_variance: Float[ArrayLike, "*#shape"],
    variant: VariantName = "shift",
    ceiling: float | None = None,
) -> Float[Array, "*shape"]:
    r""":math:`\chi_1 = \sigma_w^2 E f'^2`: by what a layer multiplies the mean squared gradient.

    1 on the edge of chaos, where neither gradients nor differences of inputs vanish or explode.

    Args:
      variance: q > 0, of this layer's pre-activations.
      threshold: in the units of the pre-activations.
      weight_variance: σ_w², of a weight times the width.
      variant: as in `jaxtrelu.thresholded_relu`; the jump of ``hard`` is left out.
      ceiling: for ``shift``, a positive Python number.

    Returns:
      χ₁, of the operands' broadcast shape.

    Raises:
      TypeError, ValueError: as `variance_map`.

    Example:
      >>> from jaxtrelu import theory
      >>> float(theory.gradient_gain(1.0, 0.0, weight_variance=2.0))
      1.0

    Source: Schoenholz et al. 2017, arXiv 1611.01232.
    """
    variance, threshold, weight = floating(
        variance=variance, threshold=threshold, weight_variance=weight_variance
    )
    positive(variance=variance, weight_variance=weight)
    found = moments(threshold, std=jnp.sqrt(variance), variant=variant, ceiling=ceiling)
    return weight * found.slope_second


def correlation_map(
    correlation: Float[ArrayLike, "*#shape"],
    threshold: Float[ArrayLike, "*#shape"] = 1.0,
    *,
    variance: Float[ArrayLike, "*#shape"] = 1.0,
    weight_variance: Float[ArrayLike, "*#shape"],
    bias_variance: Float[ArrayLike, "*#shape"] = 0.0,
    variant: VariantName = "shift",
    ceiling: float | None = None,
) -> Float[Array, "*shape"]:
    r"""The correlation of the next layer's pre-activations of two inputs.

    :math:`(\sigma_w^2 E f(x) f(y) + \sigma_b^2) / V(q)` for x, y of variance q and correlation ρ.
    Kinks and jumps are integrated exactly: by Price's theorem each is a density of two correlated
    normals, and with ρ = sin t what is left is smooth in t.

    Args:
      correlation: ρ, from -1 to 1.
      threshold: in the units of the pre-activations.
      variance: q > 0, of both.
      weight_variance: σ_w², of a weight times the width.
      bias_variance: σ_b².
      variant: as in `jaxtrelu.thresholded_relu`.
      ceiling: for ``shift``, a positive Python number.

    Returns:
      The correlation of the next layer, of the operands' broadcast shape. Differentiable between -1
      and 1; towards 1 its slope is q χ₁ / V(q), without bound where the variant jumps.

    Raises:
      TypeError, ValueError: as `variance_map`; a correlation outside of [-1, 1].

    Example:
      >>> from jaxtrelu import theory
      >>> round(float(theory.correlation_map(0.5, 0.0, weight_variance=2.0)), 4)
      0.6090

    Source: Price 1958 for the theorem; Poole et al. 2016, arXiv 1606.05340, for the map.
    """
    spec = checked_spec(variant, ceiling)
    correlation, threshold, variance, weight, bias = floating(
        correlation=correlation,
        threshold=threshold,
        variance=variance,
        weight_variance=weight_variance,
        bias_variance=bias_variance,
    )
    between(-1, 1, correlation=correlation)
    between(0, math.inf, bias_variance=bias)
    positive(variance=variance, weight_variance=weight)
    std = jnp.sqrt(variance)
    second = moments(threshold, std=std, variant=variant, ceiling=ceiling).second
    product = _joint(correlation, threshold, std, spec)
    return (weight * product + bias) / (weight * second + bias)


@functools.partial(jax.jit, static_argnames="spec")
def _joint(rho: Array, threshold: Array, std: Array, spec: Spec) -> Array:
    """E f(x) f(y): f is a sum of ramps and steps, and each pair of those has a closed form."""
    a = threshold / std
    if (ceiling := ceiling_in(spec, std.dtype)) is not None:
        ends = [(1.0, a), (-1.0, a + ceiling / std)]
        pairs = [(s * t, p, q) for s, p in ends for t, q in ends]
        return std * std * sum(sign * _ramps(rho, p, q) for sign, p, q in pairs)
    # As in the moments: f is c and a step and a ramp above θ, or the line L and those below it.
    closed, jump, slope = parts(threshold, spec)
    rise, upward = slope * std, a > 0
    far = jnp.where(upward, a, -a)  # and not |a|, whose derivative at 0 is 0
    step = jnp.where(upward, jump, -jump)
    m0, m1, _ = partial_moments(far)
    added = step * m0 + rise * m1
    both = step * step * _steps(rho, far) + rise * rise * _ramps(rho, far, far)
    both += 2 * step * rise * _ramp_and_step(rho, far)
    line = spec.traits.opened(jnp.zeros_like(threshold), threshold)
    tilt = jump * density(a) - rise * m0  # E of the slope of what is added below
    below = line * (line + 2 * added) + rise * rho * (rise + 2 * tilt)
    return both + jnp.where(upward, closed * (closed + 2 * added), below)


def _angles(rho: Array) -> tuple[Array, Array]:
    """Nodes t and weights for an integral over the correlation r = sin t from 0 to ρ."""
    half = 0.5 * jnp.arcsin(jnp.clip(rho, -1, 1))[..., None]
    return half * (1 + of_rank(_NODES, half)), half * of_rank(_WEIGHTS, half)


def _density_over_cosine(t: Array, a: Array, b: Array) -> Array:
    """The density of two normals of correlation sin t at (a, b), times cos t."""
    sine, cosine = jnp.sin(t), jnp.cos(t)
    apart = jnp.where(a == b, 0, (a - b) ** 2 / jnp.maximum(2 * cosine * cosine, 1e-300))
    return jnp.exp(-apart - a * b / (1 + sine)) / (2 * math.pi)


def _ramps(rho: Array, a: Array, b: Array) -> Array:
    """E (u − a)⁺ (v − b)⁺: its second derivative in ρ is the density at (a, b)."""
    t, weight = _angles(rho)
    dense = _density_over_cosine(t, a[..., None], b[..., None])
    (a0, a1, _), (b0, b1, _) = partial_moments(a), partial_moments(b)
    curved = jnp.sum(weight * (rho[..., None] - jnp.sin(t)) * dense, -1)
    return a1 * b1 + rho * a0 * b0 + curved


def _steps(rho: Array, a: Array) -> Array:
    """P(u > a, v > a): its derivative in ρ is the density at (a, a)."""
    t, weight = _angles(rho)
    mass = upper(a)
    return mass * mass + jnp.sum(weight * _density_over_cosine(t, a[..., None], a[..., None]), -1)


def _ramp_and_step(rho: Array, a: Array) -> Array:
    """E (u − a)⁺ H(v − a): its derivative in ρ is φ(a) P(u > a | v = a)."""
    t, weight = _angles(rho)
    # (a − ρ a) / √(1 − ρ²) with ρ = sin t
    conditional = a[..., None] * jnp.tan(math.pi / 4 - t / 2)
    slope = density(a)[..., None] * upper(conditional) * jnp.cos(t)
    mass, first, _ = partial_moments(a)
    return first * mass + jnp.sum(weight * slope, -1)


def smoothed(
    x: Float[ArrayLike, "*#shape"],
    threshold: Float[ArrayLike, "*#shape"] = 1.0,
    *,
    std: Float[ArrayLike, "*#shape"],
    variant: VariantName = "shift",
    ceiling: float | None = None,
    fill: float = 0,
) -> Float[Array, "*shape"]:
    r"""Gaussian smoothing, :math:`E f(x + \sigma \xi)`: a smooth thresholded ReLU.

    For ``shift`` it is :math:`\sigma(\varphi(a) - a Q(a))` with :math:`a = (\theta - x)/\sigma`,
    whose slope is :math:`Q(a)`, the cumulative of the surrogate `jaxtrelu.Gaussian`, and whose
    second derivative is that surrogate's density.

    Args:
      x: of any shape.
      threshold: θ, which broadcasts with x, in its units.
      std: σ > 0, in x's units.
      variant: as in `jaxtrelu.thresholded_relu`.
      ceiling: for ``shift``, a positive Python number.
      fill: for ``hard``, the value where the gate is closed.

    Returns:
      The smoothed value, of the operands' broadcast shape; differentiable at every order.

    Raises:
      TypeError, ValueError: as `moments`.

    Example:
      >>> from jaxtrelu import theory
      >>> round(float(theory.smoothed(1.0, 1.0, std=0.5)), 4)
      0.1995

    Source: the definition.
    """
    return moments(threshold, mean=x, std=std, variant=variant, ceiling=ceiling, fill=fill).mean
