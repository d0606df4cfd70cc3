"""Surrogate gradients: what stands in for the Dirac impulse where a thresholded activation jumps.

The derivative of the step ``H(x - threshold)`` with respect to its threshold is an impulse, zero
almost everywhere, and nothing learns from it. A surrogate replaces the impulse by a density ``D``
of unit mass around zero, in the backward pass only (Bengio et al. 2013, arXiv 1308.3432; for
JumpReLU Rajamanoharan et al. 2024, arXiv 2407.14435).

How good the estimate is, for JumpReLU y = x H(x - threshold), inputs of density p and a loss L(y):

- The true derivative of the expected loss is -(L(t) - L(0)) p(t) at the threshold t; the estimate
  tends to -t (L'(0) + L'(t)) / 2 p(t) for a small bandwidth, the trapezoid rule in place of the
  integral. For a quadratic loss both agree: no bias. For others there is one, whatever the
  bandwidth: for |y - 1|^3 at t = 0.5 the estimate is 0.9375 p(t) where 0.875 p(t) is true, 7 % off.
- At a finite bandwidth the error is of order bandwidth^2 where the cotangent does not depend on the
  gate (an L0 penalty through `step`; a linear loss). Where it does (a quadratic loss, whose
  cotangent differs above and below the threshold) it is of order bandwidth: with (x - y)^2 plus
  0.25 for each open entry and Gaussian x the threshold comes to 0.5047 at Rectangle(0.05), 0.5096
  at 0.1 and 0.5195 at 0.2, instead of 0.5.
- Higher derivatives are the derivatives of this rule, not estimates of anything: for Rectangle the
  density counts as constant, for the others its slope enters.
"""

import abc
import dataclasses
import math
import numbers
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

_LEAST = float(np.finfo(np.float32).tiny)  # below it 1 / bandwidth overflows, or nearly


@dataclasses.dataclass(frozen=True)
class Surrogate(abc.ABC):
    """A symmetric density ``D(x - threshold)`` of unit mass, and whether it also reaches ``x``.

    Args:
      bandwidth: width parameter, a positive number in the units of ``x`` (and of the threshold): it
        scales with the inputs. A bandwidth of 0.001 for inputs of norm 1 is 0.048 for the same
        inputs scaled to norm sqrt(2304).
      to_input: if true the estimate also flows to ``x`` (Anthropic's January 2025 update), not only
        to the threshold (Rajamanoharan et al.). With ``shift``, whose gate is smoothed, it flows to
        both in either case.

    Example:
      >>> import jaxtrelu
      >>> isinstance(jaxtrelu.Rectangle(0.1), jaxtrelu.Surrogate)
      True

    Raises:
      TypeError: `bandwidth` is not a Python or NumPy number.
      ValueError: `bandwidth` is not finite and greater than 0, or less than float32 has an inverse
        of.
    """

    bandwidth: float
    to_input: bool = False

    #: Half the width of the open window outside which the density is exactly zero, in bandwidths;
    #: None where the density has no bounded support.
    reach: ClassVar[float | None] = None
    #: Whether the density is one constant inside the window: then the window's bit is the residual.
    flat: ClassVar[bool] = False

    def __post_init__(self) -> None:
        name = type(self).__name__
        if isinstance(self.bandwidth, bool) or not isinstance(self.bandwidth, numbers.Real):
            raise TypeError(
                f"`bandwidth` of {name} should be a number, but is {self.bandwidth!r} "
                f"({type(self.bandwidth).__name__}). Pass a Python float, such as {name}(0.05); "
                "it is part of the compiled program, not an operand of it."
            )
        if not 0 < self.bandwidth < math.inf:
            raise ValueError(
                f"`bandwidth` of {name} should be finite and greater than 0, in the units of x, "
                f"but is {self.bandwidth!r}. Pass a positive number, such as {name}(0.05)."
            )
        if self.bandwidth < _LEAST:
            raise ValueError(
                f"`bandwidth` of {name} should be at least {_LEAST:.3g}, but is "
                f"{self.bandwidth!r}: the density, 1 / bandwidth, would be infinite in float32."
            )
        object.__setattr__(self, "bandwidth", float(self.bandwidth))

    @property
    def half_width(self) -> float | None:
        """Entries with ``|x - threshold| < half_width`` are inside the window; None: unbounded."""
        return None if self.reach is None else self.reach * self.bandwidth

    @abc.abstractmethod
    def density(self, distance: jax.Array) -> jax.Array:
        """The density D at ``distance = x - threshold``: its shape and dtype, unit 1/x."""

    @abc.abstractmethod
    def cumulative(self, distance: jax.Array) -> jax.Array:
        """The integral of D from minus infinity to `distance`: a smoothed gate, from 0 to 1."""


@dataclasses.dataclass(frozen=True)
class Rectangle(Surrogate):
    """``D(d) = 1/bandwidth`` where ``|d| < bandwidth/2``, else 0: the published surrogate.

    Two-sided: elements just below the threshold count. Its residual is one bit per element where
    the function jumps; a smoothed gate (``shift``) is kept in the dtype of ``x``.

    >>> from jaxtrelu import Rectangle
    >>> Rectangle(0.1).density(jnp.array([-0.2, -0.02, 0.03])).tolist()
    [0.0, 10.0, 10.0]

    Source: Rajamanoharan et al. 2024, arXiv 2407.14435, eq. 11 and 12.
    """

    reach: ClassVar[float | None] = 0.5
    flat: ClassVar[bool] = True

    def density(self, distance: jax.Array) -> jax.Array:
        """The density D at a distance: see `Surrogate.density`."""
        inside = jnp.abs(distance) < self.bandwidth / 2
        return jnp.where(inside, jnp.ones_like(distance) / self.bandwidth, 0)

    def cumulative(self, distance: jax.Array) -> jax.Array:
        """The integral of D up to a distance: see `Surrogate.cumulative`."""
        return jnp.clip(distance / self.bandwidth + 0.5, 0, 1)


@dataclasses.dataclass(frozen=True)
class Triangle(Surrogate):
    """``D(d) = max(0, 1 - |d|/bandwidth) / bandwidth``: bandwidth is half the width of the base.

    Its residual is the density inside the window, in the dtype of ``x``, and one bit per element.

    >>> from jaxtrelu import Triangle
    >>> Triangle(0.5).density(jnp.array([-0.5, 0.25, 0.0])).round(3).tolist()
    [0.0, 1.0, 2.0]

    Source: Esser et al. 2016, arXiv 1603.08270 (with unit mass here).
    """

    reach: ClassVar[float | None] = 1.0

    def density(self, distance: jax.Array) -> jax.Array:
        """The density D at a distance: see `Surrogate.density`."""
        return jnp.maximum(1 - jnp.abs(distance) / self.bandwidth, 0) / self.bandwidth

    def cumulative(self, distance: jax.Array) -> jax.Array:
        """The integral of D up to a distance: see `Surrogate.cumulative`."""
        u = jnp.clip(distance / self.bandwidth, -1, 1)
        return 0.5 + u - 0.5 * u * jnp.abs(u)


@dataclasses.dataclass(frozen=True)
class Gaussian(Surrogate):
    """``D(d) = exp(-d^2 / (2 bandwidth^2)) / (bandwidth sqrt(2 pi))``: bandwidth is the deviation.

    Its residual is the density, in the dtype of ``x``: one number per element.

    >>> from jaxtrelu import Gaussian
    >>> Gaussian(0.5).density(jnp.array([-1.0, 0.25, 0.0])).round(3).tolist()
    [0.108, 0.704, 0.798]

    Source: Yin et al. 2021, arXiv 2103.12593.
    """

    def density(self, distance: jax.Array) -> jax.Array:
        """The density D at a distance: see `Surrogate.density`."""
        u = distance / self.bandwidth
        return jnp.exp(-0.5 * u * u) / (self.bandwidth * math.sqrt(2 * math.pi))

    def cumulative(self, distance: jax.Array) -> jax.Array:
        """The integral of D up to a distance: see `Surrogate.cumulative`."""
        return jax.scipy.stats.norm.cdf(distance / self.bandwidth)


@dataclasses.dataclass(frozen=True)
class Sigmoid(Surrogate):
    """``D(d) = s(d/bandwidth) (1 - s(d/bandwidth)) / bandwidth``, s the logistic function.

    The bandwidth is the logistic's scale. Its residual is the density, in the dtype of ``x``: one
    number per element.

    >>> from jaxtrelu import Sigmoid
    >>> Sigmoid(0.25).density(jnp.array([-1.0, 0.25, 0.0])).round(3).tolist()
    [0.071, 0.786, 1.0]

    Source: Zenke and Ganguli 2018, arXiv 1705.11146 (the logistic's derivative, with unit mass).
    """

    def density(self, distance: jax.Array) -> jax.Array:
        """The density D at a distance: see `Surrogate.density`."""
        u = distance / self.bandwidth
        return jax.nn.sigmoid(u) * jax.nn.sigmoid(-u) / self.bandwidth

    def cumulative(self, distance: jax.Array) -> jax.Array:
        """The integral of D up to a distance: see `Surrogate.cumulative`."""
        return jax.nn.sigmoid(distance / self.bandwidth)
