"""A two-layer block that keeps its latent compactly, as a Flax Linen module."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike, DTypeLike

from jaxtrelu import _layers as core
from jaxtrelu._primitive.spec import (
    ImplementationName,
    ThresholdLike,
    VariantName,
    checked_block_layer,
    real_array,
    whole_number,
)
from jaxtrelu._surrogates import Surrogate
from jaxtrelu.linen._variables import held, value_of
from jaxtrelu.sparse import compact_mlp


class CompactMLP(nn.Module):
    """``act(x @ w_in.T + b_in) @ w_out + b_out``, with a latent kept as words and values.

    As `jaxtrelu.nnx.CompactMLP`, whose documentation holds here, too (convention at the threshold:
    open where ``x @ w_in.T + b_in > threshold``, strictly), but for where things are: d is x's last
    axis; `w_in`, `b_in`, `w_out`, `b_out` and a learned ``threshold`` are parameters; fixed
    thresholds that differ are the variable ``threshold`` of the collection ``"thresholds"``.

    Attributes:
      out_features: the size of the result's last axis; None: that of x.
      threshold: as in `jaxtrelu.nnx.CompactMLP`; as a tuple of numbers, the module stays hashable.
      features, learned, variant, ceiling, fill, surrogate, implementation, capacity, param_dtype:
        as in `jaxtrelu.nnx.CompactMLP`.

    Raises:
      TypeError, ValueError: as `jaxtrelu.nnx.CompactMLP`, at construction; and where the collection
        ``"thresholds"`` is missing, what to pass.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxtrelu.linen import CompactMLP
      >>> y, _ = CompactMLP(64, threshold=1.0).init_with_output(jax.random.key(0), jnp.ones((3, 4)))
      >>> y.shape
      (3, 4)

    Source: as `jaxtrelu.sparse.compact_mlp`.
    """

    features: int
    out_features: int | None = None
    threshold: ThresholdLike = 1.0
    learned: bool = False
    variant: VariantName = "shift"
    ceiling: float | None = None
    fill: float = 0
    surrogate: Surrogate | None = None
    implementation: ImplementationName | None = None
    capacity: int | None = None
    param_dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        if self.out_features is not None:
            whole_number(self.out_features, "out_features")
        checked = checked_block_layer(
            self.threshold,
            features=whole_number(self.features, "features"),
            learned=self.learned,
            variant=self.variant,
            ceiling=self.ceiling,
            fill=self.fill,
            surrogate=self.surrogate,
            implementation=self.implementation,
            capacity=self.capacity,
            threshold_dtype=core.weights_threshold_dtype(self.param_dtype),
        )
        object.__setattr__(self, "_checked", checked)  # modules are frozen
        super().__post_init__()

    @nn.compact
    def __call__(self, x: ArrayLike) -> jax.Array:
        """Applies the block; entries at the threshold are closed.

        Args:
          x: (..., d), floating point.

        Returns:
          (..., out_features), in x's dtype.

        Raises:
          TypeError: x is not a floating-point array.
          ValueError: the collection ``"thresholds"`` is missing.
        """
        spec, shape = self._checked  # type: ignore[attr-defined]
        x = real_array(x, "x")
        *_, d = x.shape or (1,)  # compact_mlp refuses a scalar
        m = int(self.features)
        out = d if self.out_features is None else int(self.out_features)
        fan_in = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", -1, -2)
        lecun, zeros = nn.initializers.lecun_normal(), nn.initializers.zeros_init()
        return compact_mlp(
            x,
            self.param("w_in", fan_in, (m, d), self.param_dtype),
            self.param("w_out", lecun, (m, out), self.param_dtype),
            held(
                self,
                self.threshold,
                shape,
                learned=self.learned,
                spec=spec,
                dtype=core.weights_threshold_dtype(self.param_dtype),
            ),
            b_in=self.param("b_in", zeros, (m,), self.param_dtype),
            b_out=self.param("b_out", zeros, (out,), self.param_dtype),
            variant=spec.variant,
            ceiling=spec.ceiling,
            surrogate=spec.surrogate,
            implementation=spec.implementation,
            capacity=self.capacity,
        )

    def threshold_value(self) -> jax.Array | int | float:
        """What pre-activations are compared with, of a bound module, as in `jaxtrelu.nnx`.

        Returns:
          A Python number where the layer stores none; else (m,), float32, or float64 where that is
          the `param_dtype`; in the units of the pre-activations.

        Raises:
          ValueError: the thresholds are stored, and the variables hold none.

        Example:
          >>> CompactMLP(64, threshold=0.5).apply({}, method="threshold_value")
          0.5
        """
        return value_of(self, self.threshold, learned=self.learned)
