"""A two-layer block that keeps its latent compactly, as a Flax NNX module."""

import types

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Float

from jaxtrelu import _layers as core
from jaxtrelu._primitive.spec import (
    ImplementationName,
    ThresholdLike,
    VariantName,
    checked_block_layer,
    whole_number,
)
from jaxtrelu._surrogates import Surrogate
from jaxtrelu.nnx._thresholds import check_rngs, held, value_of
from jaxtrelu.sparse import compact_mlp


class CompactMLP(nnx.Module):
    """``act(x @ w_in.T + b_in) @ w_out + b_out``, with a latent kept as words and values.

    See `jaxtrelu.sparse.compact_mlp`, which this block calls: the values and gradients of the dense
    block, one bit per latent element and one number per open entry between the passes. Convention
    at the threshold: open where ``x @ w_in.T + b_in > threshold``, strictly.

    The attribute `threshold` is a `Threshold` (an `nnx.Param`) if learned, a Python number if fixed
    and the same everywhere, and a `FixedThreshold` otherwise. `w_in` (m, d), `b_in` (m,), `w_out`
    (m, out_features) and `b_out` (out_features,) are `nnx.Param`.

    Args:
      in_features: d, the size of x's last axis.
      features: m, the size of the latent.
      out_features: the size of the result's last axis; None: d.
      threshold: in the units of the pre-activations: a number; (m,); or an initialiser
        ``(key, shape, dtype) -> array``.
      learned: whether the thresholds, one per feature, are a parameter.
      variant: ``"shift"`` or ``"hard"``.
      ceiling: for ``shift``: the largest value, a positive Python number.
      fill: 0: closed entries contribute nothing.
      surrogate: of bounded support, such as ``jaxtrelu.Rectangle(0.1)``: what gives the thresholds
        of ``hard`` a gradient. Its bandwidth is in the units of the pre-activations.
      implementation: None or ``"xla"``, as in `jaxtrelu.compact_mlp`.
      capacity: open entries per example that the lists hold on average; None: m / 8. A hint.
      param_dtype: dtype of weights and biases. Thresholds are float32, or float64 beside float64.
      rngs: random keys, drawn from ``rngs.params``.

    Raises:
      TypeError: a size is not a whole number, or the threshold is no number.
      ValueError: a learned threshold that would not learn (``hard`` without a surrogate), a variant
        or a fill that leaves no zeros, or a surrogate of unbounded support.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxtrelu.nnx import CompactMLP
      >>> CompactMLP(4, 64, threshold=1.0, rngs=nnx.Rngs(0))(jnp.ones((3, 4))).shape
      (3, 4)

    Source: as `jaxtrelu.sparse.compact_mlp`.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        out_features: int | None = None,
        *,
        threshold: ThresholdLike = 1.0,
        learned: bool = False,
        variant: VariantName = "shift",
        ceiling: float | None = None,
        fill: float = 0,
        surrogate: Surrogate | None = None,
        implementation: ImplementationName | None = None,
        capacity: int | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        d, m = whole_number(in_features, "in_features"), whole_number(features, "features")
        out = d if out_features is None else whole_number(out_features, "out_features")
        dtype = core.weights_threshold_dtype(param_dtype)
        spec, shape = checked_block_layer(
            threshold,
            features=m,
            learned=learned,
            variant=variant,
            ceiling=ceiling,
            fill=fill,
            surrogate=surrogate,
            implementation=implementation,
            capacity=capacity,
            threshold_dtype=dtype,
        )
        self.variant, self.ceiling, self.surrogate = spec.variant, spec.ceiling, spec.surrogate
        self.implementation = implementation
        self.capacity = capacity
        fan_in = nnx.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", -1, -2)
        check_rngs(rngs)
        self.w_in = nnx.Param(fan_in(rngs.params(), (m, d), param_dtype))
        self.b_in = nnx.Param(jnp.zeros(m, param_dtype))
        lecun = nnx.initializers.lecun_normal()
        self.w_out = nnx.Param(lecun(rngs.params(), (m, out), param_dtype))
        self.b_out = nnx.Param(jnp.zeros(out, param_dtype))
        self.threshold = held(
            threshold,
            shape,
            learned=learned,
            spec=spec,
            dtype=dtype,
            metadata=types.MappingProxyType({}),
            rngs=rngs,
        )

    @property
    def threshold_value(self) -> jax.Array | int | float:
        """What pre-activations are compared with, in their units.

        A Python number where the layer stores none; else (m,), float32, or float64 where that is
        the `param_dtype`.

        Example:
          >>> from jaxtrelu.nnx import CompactMLP
          >>> CompactMLP(4, 64, threshold=0.5, rngs=nnx.Rngs(0)).threshold_value
          0.5
        """
        return value_of(self.threshold)

    def __call__(self, x: Float[ArrayLike, "*batch d"]) -> Float[jax.Array, "*batch d_out"]:
        """Applies the block; entries at the threshold are closed.

        Args:
          x: (..., in_features), floating point.

        Returns:
          (..., out_features), in x's dtype.

        Raises:
          TypeError: x is not a floating-point array.
          ValueError: x does not have in_features columns.
        """
        d = self.w_in.shape[1]
        if jnp.shape(x)[-1:] != (d,):
            raise ValueError(
                f"x should have {d} columns, the in_features of the layer, but has shape "
                f"{jnp.shape(x)}."
            )
        return compact_mlp(
            x,
            self.w_in[...],
            self.w_out[...],
            self.threshold_value,
            b_in=self.b_in[...],
            b_out=self.b_out[...],
            variant=self.variant,  # type: ignore[arg-type]
            ceiling=self.ceiling,
            surrogate=self.surrogate,
            implementation=self.implementation,
            capacity=self.capacity,
        )
