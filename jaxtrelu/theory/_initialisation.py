"""Initialisation on the edge of chaos, for activations with a wanted share of zeros."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import ndtri
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxtrelu._primitive.spec import VariantName, checked_spec
from jaxtrelu.theory._moments import capped_moments, density, moments
from jaxtrelu.theory._operands import floating, positive, within


class CriticalInit(NamedTuple):
    """How to start a deep net whose layers pass signals and gradients on at their size.

    >>> from jaxtrelu import theory
    >>> start = theory.critical_init(0.85, slope=0.5)
    >>> [round(float(v), 2) for v in start]
    [1.04, 0.81, 8.51, 0.66]
    """

    threshold: Array
    """θ, in the units of the pre-activations."""
    ceiling: Array | None
    """m, the largest value; None without one. As a Python number it is the option `ceiling`."""
    weight_variance: Array
    """σ_w², the variance of a weight times the fan-in."""
    bias_variance: Array
    """σ_b²."""


def critical_init(
    sparsity: Float[ArrayLike, "..."],
    *,
    slope: Float[ArrayLike, "..."] | None = None,
    variance: Float[ArrayLike, "..."] = 1.0,
    variant: VariantName = "shift",
) -> CriticalInit:
    r"""Threshold, ceiling and variances on the edge of chaos, at a share of zeros.

    Pre-activations keep the variance q from layer to layer, and :math:`\chi_1 = 1`. Without a
    ceiling :math:`\sigma_w^2 = 1/(1 - s)`, and :math:`V' = 1`, so that the variance drifts: deep
    nets fail from s of about .6 to .7 on. A ceiling makes the fixed point stable; `slope` is the
    wanted V' there.

    Args:
      sparsity: s, the share of entries at 0, from 0.5 (with a ceiling a little less) to below 1.
      slope: V', between 0 and 1: the smaller, the more stable and the lower the ceiling; None: no
        ceiling. With s of .85, .5 to .7 trains at a depth of 100, .9 does not.
      variance: q > 0, of the pre-activations.
      variant: ``"shift"``; ``hard`` has no stable edge of chaos, for its jump, ``clamp`` no zeros.

    Returns:
      `CriticalInit`, of the operands' broadcast shape.

    Raises:
      ValueError: an operand outside of its range, a share of zeros at which the bias variance would
        have to be negative, or a variant without a stable edge of chaos.

    Example:
      >>> from jaxtrelu import theory
      >>> float(theory.critical_init(0.5).weight_variance)  # ReLU: He's 2
      2.0

    Source: Price et al. 2024, arXiv 2402.16184. Their table of s from .6 to .9 is reproduced to its
    printed digits, but for two bias variances: .346497 (s .7, V' .9) and .660492 (s .85, V' .5),
    which they print as .347 and .661.
    """
    # With a slope a ceiling follows, and whether the variant takes one is checked with any.
    spec = checked_spec(variant, None if slope is None else 1.0)
    if spec.row.jump is not None:
        raise ValueError(
            f"variant={variant!r} has no stable edge of chaos: its jump tears nearby inputs apart "
            "at every layer, whatever the variances. Pass variant='shift'."
        )
    if not spec.row.has_zeros:
        raise ValueError(f"variant={variant!r} has no zeros: it is {spec.row.formula}.")
    given = {"sparsity": sparsity, "variance": variance}
    if slope is not None:
        given["slope"] = slope
    share, variance, *wanted = floating(**given)
    within(0, 1, sparsity=share)
    positive(variance=variance)
    std = jnp.sqrt(variance)
    a = ndtri(share)
    if slope is None:
        found = moments(a, variant=variant)
        passed, second, ceiling = found.slope_second, found.second, None
    else:
        within(0, 1, slope=wanted[0])
        width = _width_for(a, wanted[0])
        passed, _, second = capped_moments(a, width)
        ceiling = std * width
    spare = 1 - second / passed
    _check_spare(spare, share)
    return CriticalInit(std * a, ceiling, 1 / passed, variance * jnp.maximum(spare, 0))


def _check_spare(spare: Array, share: Array) -> None:
    """Refuses what would need a negative bias variance, where it can be seen."""
    if isinstance(spare, jax.core.Tracer):
        return
    if (bad := np.asarray(spare) < -8 * np.finfo(spare.dtype).eps).any():
        raise ValueError(
            "`sparsity` should be at least 0.5 without a ceiling, and not much less with one: at "
            f"{float(np.asarray(share)[bad].flat[0]):g} a critical start would need a negative "
            "bias variance."
        )


def _slope(width: Array, a: Array) -> Array:
    """V' = 1 − cφ(a + c)/D at χ₁ = 1, which rises with the width c from 0 to 1."""
    return 1 - width * density(a + width) / capped_moments(a, width)[0]


@jax.jit
def _width_for(a: Array, wanted: Array) -> Array:
    """The width c of the open band, in standard deviations, with that V'."""
    low, high = jnp.full_like(a, 1e-3), jnp.full_like(a, 12.0) + jnp.maximum(-a, 0)

    def halve(_, ends):
        low, high = ends
        middle = 0.5 * (low + high)
        short = _slope(middle, a) < wanted
        return jnp.where(short, middle, low), jnp.where(short, high, middle)

    low, high = jax.lax.fori_loop(0, 60, halve, (low, high))
    root = jax.lax.stop_gradient(0.5 * (low + high))
    # One step of Newton's method: the root is there already, and its derivatives come from here.
    _, slope = jax.jvp(lambda c: _slope(c, a), (root,), (jnp.ones_like(root),))
    return root - (_slope(root, a) - wanted) / jax.lax.stop_gradient(slope)


def gain(
    threshold: Float[ArrayLike, "..."] = 1.0,
    *,
    variance: Float[ArrayLike, "..."] = 1.0,
    variant: VariantName = "shift",
    ceiling: float | None = None,
) -> Float[Array, "..."]:
    r"""The scale at which a layer keeps the variance of its pre-activations: :math:`q / E f^2`.

    For the layer *behind* the activation, as the `scale` of
    ``jax.nn.initializers.variance_scaling(scale, "fan_in", …)``. ReLU has 2, He's.

    Args:
      threshold: in the units of the pre-activations.
      variance: q > 0, of the pre-activations.
      variant: as in `jaxtrelu.thresholded_relu`.
      ceiling: for ``shift``, a positive Python number.

    Returns:
      The scale, of the operands' broadcast shape.

    Raises:
      TypeError, ValueError: as `moments`.

    Example:
      >>> import jax
      >>> from jaxtrelu import theory
      >>> init = jax.nn.initializers.variance_scaling(float(theory.gain(1.0)), "fan_in", "normal")

    Source: He et al. 2015, arXiv 1502.01852, for ReLU.
    """
    threshold, variance = floating(threshold=threshold, variance=variance)
    positive(variance=variance)
    found = moments(threshold, std=jnp.sqrt(variance), variant=variant, ceiling=ceiling)
    return variance / found.second
