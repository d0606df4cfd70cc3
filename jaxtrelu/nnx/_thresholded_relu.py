"""The thresholded ReLU as a Flax NNX module."""

import types
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike

from jaxtrelu import _layers as core
from jaxtrelu._primitive.spec import (
    ImplementationName,
    Spec,
    ThresholdLike,
    VariantName,
    channel_axes,
    checked_layer,
    threshold_shape,
)
from jaxtrelu._surrogates import Surrogate
from jaxtrelu.nnx._thresholds import held, value_of


class ThresholdedReLU(nnx.Module):
    """Thresholded ReLU as a layer, with a threshold that is fixed or learned.

    ``shift``: max(0, x - threshold); ``hard``: x where x > threshold, else `fill`; ``clamp``:
    max(x, threshold). Convention at the threshold: the gate is open where ``x > threshold``,
    strictly; at equality the value is the closed one and the derivative 0. See
    `jaxtrelu.thresholded_relu`, the same function.

    The attribute `threshold` is a `Threshold` (an `nnx.Param`) if learned, a Python number if fixed
    and the same everywhere, and a `FixedThreshold` (an `nnx.Variable` that optimisers do not see)
    otherwise. A learned threshold of ``shift`` and ``clamp`` receives the true gradient; that of
    ``hard`` needs a surrogate.

    Args:
      threshold: in the units of x: a number; an array with one entry per channel; or an initialiser
        ``(key, shape, dtype) -> array``, which draws its key from ``rngs.params``.
      features: number of channels, or one number for each axis in `axis`: one threshold per
        channel. None: as the array `threshold` has, else one threshold for all of x.
      axis: the axis or axes of x that hold the channels, negative ones counted from the end. None:
        the last ones.
      learned: whether the threshold is a parameter.
      variant: ``"shift"``, ``"hard"`` or ``"clamp"``.
      ceiling: for ``shift``: the largest value, a positive Python number.
      fill: for ``hard``: the value where the gate is closed, a Python number.
      surrogate: such as ``jaxtrelu.Rectangle(0.1)``: what gives the threshold of ``hard`` a
        gradient. Its bandwidth is in the units of x.
      implementation: as in `jaxtrelu.thresholded_relu`.
      dtype: dtype of the activations: x is cast to it (default: x keeps its dtype). A stored
        threshold is compared in its own precision; a fixed number is taken in x's dtype.
      param_dtype: dtype of a stored threshold (default: float32). A learned one is not narrower.
      threshold_metadata: metadata of the threshold's variable, such as its sharding.
      rngs: random keys; needed by an initialiser only.

    Raises:
      TypeError: the threshold is neither number, array nor initialiser.
      ValueError: a learned threshold that would not learn (``hard`` without a surrogate, or a
        param_dtype narrower than float32), or arguments that do not go together.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxtrelu.nnx import ThresholdedReLU
      >>> x = jnp.array([[-1.0, 0.5, 3.0]])
      >>> ThresholdedReLU(0.25)(x).tolist()
      [[0.0, 0.25, 2.75]]
      >>> layer = ThresholdedReLU(0.25, features=3, learned=True)
      >>> nnx.grad(lambda layer: layer(x).sum())(layer).threshold[...].tolist()
      [0.0, -1.0, -1.0]

    Source: as `jaxtrelu.thresholded_relu`; the conventions are those of `flax.nnx.PReLU`.
    """

    def __init__(
        self,
        threshold: ThresholdLike = 1.0,
        *,
        features: int | Sequence[int] | None = None,
        axis: int | Sequence[int] | None = None,
        learned: bool = False,
        variant: VariantName = "shift",
        ceiling: float | None = None,
        fill: float = 0,
        surrogate: Surrogate | None = None,
        implementation: ImplementationName | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        threshold_metadata: Mapping[str, Any] = types.MappingProxyType({}),
        rngs: nnx.Rngs | None = None,
    ) -> None:
        spec = checked_layer(
            threshold,
            learned=learned,
            variant=variant,
            ceiling=ceiling,
            fill=fill,
            surrogate=surrogate,
            implementation=implementation,
            param_dtype=param_dtype,
        )
        self.variant, self.ceiling, self.fill = spec.variant, spec.ceiling, spec.fill
        self.surrogate, self.implementation = spec.surrogate, spec.implementation
        shape = threshold_shape(threshold, features)
        self.axis = channel_axes(axis, shape)
        self.dtype = dtype
        self.threshold = held(
            threshold,
            shape,
            learned=learned,
            spec=spec,
            dtype=param_dtype,
            metadata=threshold_metadata,
            rngs=rngs,
        )

    @property
    def threshold_value(self) -> jax.Array | int | float:
        """What x is compared with: one number, or an array with one entry per channel.

        In the units of x. A Python number where the layer stores none; else an array of the shape
        of `features` (or of the array given), of dtype `param_dtype`.

        Example:
          >>> from jaxtrelu.nnx import ThresholdedReLU
          >>> ThresholdedReLU(0.25).threshold_value
          0.25
          >>> ThresholdedReLU(0.25, features=2, learned=True).threshold_value.tolist()
          [0.25, 0.25]
        """
        return value_of(self.threshold)

    def __call__(self, x: ArrayLike) -> jax.Array:
        """Applies the activation; closed where x is equal to the threshold.

        Args:
          x: array of any shape that has the layer's channels.

        Returns:
          An array of x's shape, of x's dtype or the layer's `dtype`.

        Raises:
          TypeError: x is not a real array, or integers meet a threshold that is none.
          ValueError: x does not have the layer's channels.
        """
        spec = Spec(self.variant, self.ceiling, self.fill, self.surrogate, self.implementation)
        return core.apply(x, self.threshold_value, spec, axes=self.axis, dtype=self.dtype)
