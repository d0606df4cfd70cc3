"""JumpReLU with learned thresholds as a Flax Linen module."""

import jax
from flax import linen as nn
from jax.typing import ArrayLike

from jaxtrelu import _jump_core as core
from jaxtrelu._surrogates import Surrogate


class JumpReLU(nn.Module):
    """JumpReLU, x where x > threshold and else 0, with one learned threshold per feature.

    Convention at the threshold: closed at equality. The parameter ``"threshold"`` is float32
    whatever the dtype of x. Called with ``with_l0=True`` it also returns the L0 penalty: a value,
    nothing is sown.

    Attributes:
      features: number of features, m.
      surrogate: such as ``jaxtrelu.Rectangle(0.05)``; its bandwidth is in the units of x.
      threshold: the first thresholds, a number or m of them, in the units of x.
      parametrisation: ``"raw"``: the parameter is the threshold, clipped at 0 for its value, while
        the gradient passes; ``"softplus"``: θ = s softplus(ρ / s), s the mean first threshold.
      axis: the axis of x that holds the features.

    Raises:
      TypeError: no surrogate.
      ValueError: a negative threshold, a wrong shape, an unknown parametrisation.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxtrelu import Rectangle
      >>> layer = JumpReLU(4, surrogate=Rectangle(0.1), threshold=0.5)
      >>> x = jnp.array([[0.25, 0.52, 0.48, 1.0]])
      >>> variables = layer.init(jax.random.key(0), x)
      >>> y, l0 = layer.apply(variables, x, with_l0=True)
      >>> l0.item()
      2.0

    Source: Rajamanoharan et al. 2024, arXiv 2407.14435.
    """

    features: int
    surrogate: Surrogate
    threshold: float | tuple[float, ...] = 1e-3
    parametrisation: str = "raw"
    axis: int = -1

    @nn.compact
    def __call__(
        self, x: ArrayLike, with_l0: bool = False
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        """Applies the activation to x, of any shape with m features along the axis.

        Returns:
          The activation, in x's dtype; with `with_l0` also the mean number of open features, a
          float32 scalar with the surrogate's gradient.
        """
        first = core.check(self.features, self.threshold, self.surrogate, self.parametrisation)
        parameter = self.param("threshold", lambda key: core.stored(first, self.parametrisation))
        theta = core.threshold(parameter, self.parametrisation, core.scale_of(first))
        y = core.activation(x, theta, self.surrogate, self.axis)
        return (y, core.l0(x, theta, self.surrogate, self.axis)) if with_l0 else y
