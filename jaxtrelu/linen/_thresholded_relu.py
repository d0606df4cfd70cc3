"""The thresholded ReLU as a Flax Linen module."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike, DTypeLike

from jaxtrelu import _layers as core
from jaxtrelu._primitive.spec import (
    ImplementationName,
    Spec,
    ThresholdLike,
    VariantName,
    channel_axes,
    channel_shape,
    checked_layer,
    real_array,
    threshold_shape,
)
from jaxtrelu._surrogates import Surrogate
from jaxtrelu.linen._variables import held, value_of


class ThresholdedReLU(nn.Module):
    """Thresholded ReLU as a layer, with a threshold that is fixed or learned.

    As `jaxtrelu.nnx.ThresholdedReLU`, whose documentation holds here, too (convention at the
    threshold: the gate is open where ``x > threshold``, strictly; at equality the derivative is 0),
    but for where the threshold is: a learned one is the parameter ``threshold`` of ``"params"``; a
    fixed one per channel, or from an initialiser, the variable ``threshold`` of the collection
    ``"thresholds"``, which optimisers do not see, and which `apply` and lifted transformations such
    as ``nn.scan(..., variable_axes={"params": 0, "thresholds": 0})`` must be given; a fixed one
    that is the same everywhere is stored nowhere.

    Attributes:
      threshold: in the units of x: a number; an array with one entry per channel (as a tuple of
        numbers, the module stays hashable); or an initialiser ``(key, shape, dtype) -> array``,
        which draws its key from the stream ``"params"``.
      axis: the axis or axes of x that hold the channels, negative ones counted from the end: one
        threshold per channel, as many as x has. None: one threshold for all of x, or, for an array
        `threshold`, the last axes.
      learned, variant, ceiling, fill, surrogate, implementation, dtype, param_dtype: as in
        `jaxtrelu.nnx.ThresholdedReLU`.

    Raises:
      TypeError, ValueError: as `jaxtrelu.nnx.ThresholdedReLU`, at construction; and where the
        collection ``"thresholds"`` is missing, what to pass.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxtrelu.linen import ThresholdedReLU
      >>> x = jnp.array([[-1.0, 0.5, 3.0]])
      >>> ThresholdedReLU(0.25).apply({}, x).tolist()
      [[0.0, 0.25, 2.75]]
      >>> layer = ThresholdedReLU(0.25, axis=-1, learned=True)
      >>> variables = layer.init(jax.random.key(0), x)
      >>> variables["params"]["threshold"].tolist()
      [0.25, 0.25, 0.25]
      >>> grads = jax.grad(lambda v: layer.apply(v, x).sum())(variables)
      >>> grads["params"]["threshold"].tolist()
      [0.0, -1.0, -1.0]

    Source: as `jaxtrelu.thresholded_relu`; the conventions are those of `flax.linen.PReLU`.
    """

    threshold: ThresholdLike = 1.0
    axis: int | Sequence[int] | None = None
    learned: bool = False
    variant: VariantName = "shift"
    ceiling: float | None = None
    fill: float = 0
    surrogate: Surrogate | None = None
    implementation: ImplementationName | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        spec = checked_layer(
            self.threshold,
            learned=self.learned,
            variant=self.variant,
            ceiling=self.ceiling,
            fill=self.fill,
            surrogate=self.surrogate,
            implementation=self.implementation,
            param_dtype=self.param_dtype,
        )
        object.__setattr__(self, "_spec", spec)  # modules are frozen
        super().__post_init__()

    @nn.compact
    def __call__(self, x: ArrayLike) -> jax.Array:
        """Applies the activation; closed where x is equal to the threshold.

        Args:
          x: array of any shape that has the layer's channels.

        Returns:
          An array of x's shape, of x's dtype or the layer's `dtype`.

        Raises:
          TypeError: x is not a real array, or integers meet a threshold that is none.
          ValueError: x does not have the layer's channels, or the collection ``"thresholds"`` is
            missing.
        """
        spec: Spec = self._spec  # type: ignore[attr-defined]
        x = real_array(x, "x")
        channels = None if self.axis is None else channel_shape(self.axis, x.shape)
        shape = threshold_shape(self.threshold, channels)
        theta = held(
            self,
            self.threshold,
            shape,
            learned=self.learned,
            spec=spec,
            dtype=self.param_dtype,
        )
        return core.apply(x, theta, spec, axes=channel_axes(self.axis, shape), dtype=self.dtype)

    def threshold_value(self) -> jax.Array | int | float:
        """What x is compared with, of a bound module, as `jaxtrelu.nnx.ThresholdedReLU` has it.

        Returns:
          A Python number where the layer stores none; else an array with one entry per channel, of
          dtype `param_dtype`, in the units of x.

        Raises:
          ValueError: the threshold is stored, and the variables hold none.

        Example:
          >>> layer = ThresholdedReLU((0.5, 1.0), learned=True)
          >>> variables = layer.init(jax.random.key(0), jnp.ones(2))
          >>> layer.apply(variables, method="threshold_value").tolist()
          [0.5, 1.0]
        """
        return value_of(self, self.threshold, learned=self.learned)
