"""How much of a normal input can still be read from its thresholded activation, in closed form."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.scipy.special import xlogy
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxtrelu._primitive.spec import VariantName, ceiling_in, checked_spec
from jaxtrelu.theory._moments import moments, partial_moments, upper
from jaxtrelu.theory._operands import floating, positive


class Information(NamedTuple):
    """What is kept of a standard normal x by f(x); arrays of the threshold's shape.

    >>> from jaxtrelu import theory
    >>> kept = theory.information(0.0)
    >>> [round(float(v), 3) for v in kept]
    [0.5, 1.0, 0.267, 0.182]
    """

    sparsity: Array
    """Share of closed entries."""
    gate_entropy: Array
    """Bits per entry that the gate alone carries: −p log₂ p − (1 − p) log₂(1 − p)."""
    linear_error: Array
    """Mean squared error of the best linear estimate of x from f(x); 1 is no information."""
    best_error: Array
    """Mean squared error of the best estimate of any kind: E[Var(x | f(x))]."""


def information(
    threshold: Float[ArrayLike, "*#shape"],
    *,
    variant: VariantName = "shift",
    ceiling: float | None = None,
) -> Information:
    r"""What a read-out can recover of a standard normal x from f(x).

    The best linear estimate leaves :math:`1 - \mathrm{Cov}(x, f)^2/\mathrm{Var}(f)`. The best one
    of any kind knows x exactly where the gate is open, and elsewhere that x is below the threshold
    (or above threshold + ceiling): it leaves the variance of x within each of those sides.

    Args:
      threshold: θ, in standard deviations of x.
      variant: as in `jaxtrelu.thresholded_relu`; without a ceiling ``shift``, ``hard`` and
        ``clamp`` carry the same information, and differ in the linear estimate.
      ceiling: for ``shift``, a positive Python number.

    Returns:
      `Information`, of the threshold's shape.

    Raises:
      TypeError, ValueError: as `moments`.

    Example:
      >>> from jaxtrelu import theory
      >>> bool(theory.information(2.0).linear_error > theory.information(1.0).linear_error)
      True

    Source: the definitions.
    """
    (a,) = floating(threshold=threshold)
    found = moments(a, variant=variant, ceiling=ceiling)
    share = found.open
    entropy = -(xlogy(share, share) + xlogy(1 - share, upper(-a))) / jnp.log(2.0)
    linear = 1 - found.cross * found.cross / jnp.where(found.variance > 0, found.variance, 1)
    best = _spread_above(-a)  # below θ: above −θ, mirrored
    if (most := ceiling_in(checked_spec(variant, ceiling), a.dtype)) is not None:
        best = best + _spread_above(a + most)
    return Information(upper(-a), entropy, linear, best)


def _spread_above(a: Array) -> Array:
    """P(u > a) Var(u | u > a)."""
    mass, first, second = partial_moments(a)
    return second - first * first / jnp.where(mass > 0, mass, 1)


def rate_at(distortion: Float[ArrayLike, "*#shape"]) -> Float[Array, "*shape"]:
    r"""Shannon's bound: the bits per entry that any code of a standard normal x needs.

    :math:`\max(0, -\tfrac12 \log_2 D)` at a mean squared error D: what the curve of sparsity
    against `Information.best_error` is to be held against.

    Args:
      distortion: D > 0.

    Returns:
      Bits per entry, of its shape.

    Raises:
      TypeError: not a real array.
      ValueError: a distortion that is not finite and greater than 0.

    Example:
      >>> from jaxtrelu import theory
      >>> float(theory.rate_at(0.25))
      1.0

    Source: Shannon 1959.
    """
    (distortion,) = floating(distortion=distortion)
    positive(distortion=distortion)
    return jnp.maximum(0, -0.5 * jnp.log2(distortion))
