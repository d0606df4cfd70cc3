"""JumpReLU with learned thresholds as a Flax NNX module."""

import types
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike

from jaxtrelu import _layers as core
from jaxtrelu._primitive.spec import ImplementationName, Parametrisation, Spec, checked_jump_layer
from jaxtrelu._surrogates import Surrogate
from jaxtrelu.nnx._thresholds import Threshold, ThresholdScale, value_of


class JumpReLU(nnx.Module):
    """JumpReLU, x where x > threshold and else 0, with one learned threshold per feature.

    Convention at the threshold: closed at equality. See `jaxtrelu.jump_relu`, the same function.

    The attribute `threshold` is a `Threshold`, the parameter that an optimiser moves;
    `threshold_value` is what x is compared with: the same, clipped at 0, for ``"raw"``, and
    s softplus(threshold / s) for ``"softplus"``. s is the mean of the thresholds at the start, kept
    as the `ThresholdScale` `threshold_scale` (None for ``"raw"``).

    Args:
      features: number of features, m.
      surrogate: such as ``jaxtrelu.Rectangle(0.05)``; its bandwidth is in the units of x.
      threshold: where the thresholds start, a number or (m,), at least 0, in the units of x.
      implementation: as in `jaxtrelu.jump_relu`.
      parametrisation: ``"raw"``: a step of an optimiser moves the threshold as far as the
        parameter, and the gradient passes the clip at 0; ``"softplus"``: always above 0, and near
        the start it moves 0.63 as far.
      axis: the axis of x that holds the features.
      dtype: dtype of the activations: x is cast to it (default: x keeps its dtype). Thresholds are
        compared in their own precision.
      param_dtype: dtype of the thresholds, float32 or float64.
      threshold_metadata: metadata of the thresholds' variable, such as its sharding.

    Raises:
      TypeError: no surrogate, or thresholds that are no numbers.
      ValueError: a negative threshold, a wrong shape, an unknown parametrisation, a param_dtype
        narrower than float32.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxtrelu import Rectangle
      >>> from jaxtrelu.nnx import JumpReLU
      >>> layer = JumpReLU(4, surrogate=Rectangle(0.1), threshold=0.5)
      >>> x = jnp.array([[0.25, 0.52, 0.48, 1.0]])
      >>> [round(v, 2) for v in layer(x)[0].tolist()], layer.l0(x).item()
      ([0.0, 0.52, 0.0, 1.0], 2.0)
      >>> nnx.grad(lambda layer: layer.l0(x))(layer).threshold[...].tolist()
      [0.0, -10.0, -10.0, 0.0]

    Source: Rajamanoharan et al. 2024, arXiv 2407.14435.
    """

    def __init__(
        self,
        features: int,
        *,
        surrogate: Surrogate,
        threshold: ArrayLike | Sequence[float] = 1e-3,
        implementation: ImplementationName | None = None,
        parametrisation: Parametrisation = "raw",
        axis: int = -1,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        threshold_metadata: Mapping[str, Any] = types.MappingProxyType({}),
    ) -> None:
        checked_jump_layer(
            threshold,
            features=features,
            surrogate=surrogate,
            implementation=implementation,
            parametrisation=parametrisation,
            axis=axis,
            param_dtype=param_dtype,
        )
        shape = (int(features),)
        self.axis = int(axis)
        self.surrogate, self.implementation = surrogate, implementation
        self.parametrisation, self.dtype = parametrisation, dtype
        scale = None
        if parametrisation == "softplus":
            scale = core.softplus_scale(threshold, param_dtype)
        self.threshold_scale = None if scale is None else ThresholdScale(scale)
        start = core.unconstrained(threshold, scale, shape, param_dtype)
        self.threshold = Threshold(start, **threshold_metadata)

    @property
    def threshold_value(self) -> jax.Array:
        """What x is compared with: (m,), of dtype `param_dtype`, never negative, in x's units.

        Example:
          >>> from jaxtrelu import Rectangle
          >>> from jaxtrelu.nnx import JumpReLU
          >>> layer = JumpReLU(
          ...     2, surrogate=Rectangle(0.1), threshold=0.5, parametrisation="softplus")
          >>> layer.threshold_value.round(3).tolist()
          [0.5, 0.5]
        """
        return core.constrained(self.threshold[...], value_of(self.threshold_scale))

    def __call__(self, x: ArrayLike) -> jax.Array:
        """Applies the activation; closed where x is equal to the threshold.

        Args:
          x: floating-point array of any shape with m features along the axis: pre-activations.

        Returns:
          An array of x's shape, of x's dtype or the layer's `dtype`.

        Raises:
          TypeError: x is not a floating-point array.
          ValueError: x does not have m features along the axis.
        """
        spec = Spec("hard", surrogate=self.surrogate, implementation=self.implementation)
        axes = (self.axis,)
        theta = self.threshold_value
        return core.apply(x, theta, spec, axes=axes, dtype=self.dtype, floating=True)

    def l0(self, x: ArrayLike) -> jax.Array:
        """Mean number of open features per example, with the surrogate's gradient: the L0 penalty.

        Args:
          x: what the layer is applied to (the pre-activations), not what it returns.

        Returns:
          A float32 scalar. A feature is open where x > threshold, strictly.

        Raises:
          TypeError, ValueError: as for a call.
        """
        spec = Spec("hard", surrogate=self.surrogate, implementation=self.implementation)
        return core.open_features(x, self.threshold_value, spec, axis=self.axis, dtype=self.dtype)
