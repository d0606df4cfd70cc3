"""JumpReLU with learned thresholds as a Flax NNX module."""

import jax
from flax import nnx
from jax.typing import ArrayLike

from jaxtrelu import _jump_core as core
from jaxtrelu._surrogates import Surrogate
from jaxtrelu.nnx._thresholded_relu import Threshold


class JumpReLU(nnx.Module):
    """JumpReLU, x where x > threshold and else 0, with one learned threshold per feature.

    Convention at the threshold: closed at equality. Thresholds are float32 whatever the dtype of x.
    The attribute `parameter` is a `Threshold`, a type by which an optimiser can be told apart.

    Args:
      features: number of features, m.
      surrogate: such as ``jaxtrelu.Rectangle(0.05)``; its bandwidth is in the units of x.
      threshold: the first thresholds, a number or (m,), in the units of x.
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
      >>> [round(v, 2) for v in layer(x)[0].tolist()], layer.l0(x).item()
      ([0.0, 0.52, 0.0, 1.0], 2.0)
      >>> nnx.grad(lambda layer: layer.l0(x))(layer).parameter[...].tolist()
      [0.0, -10.0, -10.0, 0.0]

    Source: Rajamanoharan et al. 2024, arXiv 2407.14435.
    """

    def __init__(
        self,
        features: int,
        *,
        surrogate: Surrogate,
        threshold: ArrayLike = 1e-3,
        parametrisation: str = "raw",
        axis: int = -1,
    ) -> None:
        first = core.check(features, threshold, surrogate, parametrisation)
        self.surrogate, self.parametrisation, self.axis = surrogate, parametrisation, axis
        self.scale = core.scale_of(first)
        self.parameter = Threshold(core.stored(first, parametrisation))

    @property
    def threshold(self) -> jax.Array:
        """The thresholds, (m,), float32, never negative."""
        return core.threshold(self.parameter[...], self.parametrisation, self.scale)

    def __call__(self, x: ArrayLike) -> jax.Array:
        """Applies the activation: x of any shape with m features along the axis; same dtype out."""
        return core.activation(x, self.threshold, self.surrogate, self.axis)

    def l0(self, x: ArrayLike) -> jax.Array:
        """Mean number of open features, with the surrogate's gradient: the L0 penalty, float32.

        x is what the layer is applied to (the pre-activations), not what it returns.
        """
        return core.l0(x, self.threshold, self.surrogate, self.axis)
