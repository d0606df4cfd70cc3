"""The thresholded ReLU as a Flax Linen module."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike, DTypeLike

from jaxtrelu import _layers as core
from jaxtrelu._surrogates import Surrogate


class ThresholdedReLU(nn.Module):
    """Thresholded ReLU as a layer, with a threshold that is fixed or learned.

    ``shift``: max(0, x - threshold); ``hard``: x where x > threshold, else `fill`; ``clamp``:
    max(x, threshold). Convention at the threshold: the gate is open where ``x > threshold``,
    strictly; at equality the value is the closed one and the derivative 0. See
    `jaxtrelu.thresholded_relu`, which this layer calls.

    A learned threshold is the parameter ``threshold`` of the collection ``"params"``. A fixed one
    that is the same everywhere is stored nowhere; a fixed one per channel, or from an initialiser,
    is the variable ``threshold`` of the collection ``"thresholds"``, which optimisers do not see.
    A learned threshold of ``shift`` and ``clamp`` receives the true gradient; that of ``hard``
    needs a surrogate.

    Attributes:
      threshold: in the units of x: a number; an array with one entry per channel (as a tuple of
        numbers, the module stays hashable); or an initialiser ``(key, shape, dtype) -> array``.
      axis: the axis or axes of x that hold the channels, negative ones counted from the end: one
        threshold per channel, as many as x has. None: one threshold for all of x, or, for an array
        `threshold`, the last axes.
      learned: whether the threshold is a parameter.
      variant: ``"shift"``, ``"hard"`` or ``"clamp"``.
      ceiling: for ``shift``: the largest value, a positive Python number.
      fill: for ``hard``: the value where the gate is closed, a Python number.
      surrogate: such as ``jaxtrelu.Rectangle(0.1)``: what gives the threshold of ``hard`` a
        gradient. Its bandwidth is in the units of x.
      dtype: dtype of the activations: x is cast to it (default: x keeps its dtype). The threshold
        is compared in its own precision, never rounded to it.
      param_dtype: dtype of a stored threshold (default: float32). A learned one is not narrower.

    Raises:
      TypeError: the threshold is neither number, array nor initialiser.
      ValueError: a learned threshold that would not learn (``hard`` without a surrogate, or a
        param_dtype narrower than float32), or arguments that do not go together.

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

    threshold: core.ThresholdLike = 1.0
    axis: int | Sequence[int] | None = None
    learned: bool = False
    variant: str = "shift"
    ceiling: float | None = None
    fill: float = 0
    surrogate: Surrogate | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        _spec(self)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: ArrayLike) -> jax.Array:
        """Applies the activation.

        Args:
          x: array of any shape that has the layer's channels.

        Returns:
          An array of x's shape, of x's dtype or the layer's `dtype`.

        Raises:
          ValueError: x does not have the layer's channels.
        """
        number = core.static_number(self.threshold)
        if number is not None and self.axis is None and not self.learned:
            threshold: Any = number
        else:
            threshold = self._stored(jnp.shape(x))
        return core.apply(x, threshold, _spec(self), axis=self.axis, dtype=self.dtype)

    def _stored(self, x_shape: tuple) -> Any:
        features = None if self.axis is None else core.channel_shape(self.axis, x_shape)
        shape = core.threshold_shape(self.threshold, features)

        def initialise(key):
            return core.initialise(self.threshold, key, shape, self.param_dtype)

        if self.learned:
            return self.param("threshold", initialise)

        def initialise_fixed():
            return initialise(self.make_rng("params") if callable(self.threshold) else None)

        return self.variable("thresholds", "threshold", initialise_fixed).value


def _spec(layer: ThresholdedReLU) -> core.Spec:
    # A function: Flax wraps methods, and a wrapped one cannot run before `__post_init__` is done.
    return core.check_layer(
        layer.threshold,
        learned=layer.learned,
        variant=layer.variant,
        ceiling=layer.ceiling,
        fill=layer.fill,
        surrogate=layer.surrogate,
        param_dtype=layer.param_dtype,
    )
