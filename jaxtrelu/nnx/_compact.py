"""A two-layer block that keeps its latent compactly, as a Flax NNX module."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike

from jaxtrelu._primitive.spec import VariantName
from jaxtrelu.nnx._thresholded_relu import Threshold
from jaxtrelu.sparse import compact_mlp


class CompactMLP(nnx.Module):
    """``act(x @ w_in.T + b_in) @ w_out + b_out``, with a latent kept as words and values.

    See `jaxtrelu.sparse.compact_mlp`, which this block calls: the values and gradients of the dense
    block, one bit per latent element and one number per open entry between the passes.

    Args:
      in_features: d, the size of x's last axis.
      features: m, the size of the latent.
      out_features: the size of the result's last axis; None: d.
      threshold: where the thresholds start, in the units of the pre-activations.
      learned: whether the thresholds, one per feature, are a `Threshold` parameter.
      variant: ``"shift"`` or ``"hard"``.
      ceiling: for ``shift``: the largest value, a positive Python number.
      capacity: open entries per row that the lists hold on average; None: m / 8. A hint.
      param_dtype: dtype of weights and biases; thresholds are float32.
      rngs: random keys.

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
        threshold: float = 1.0,
        learned: bool = False,
        variant: VariantName = "shift",
        ceiling: float | None = None,
        capacity: int | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        out_features = in_features if out_features is None else out_features
        fan_in = nnx.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", -1, -2)
        key = rngs.params
        self.w_in = nnx.Param(fan_in(key(), (features, in_features), param_dtype))
        self.b_in = nnx.Param(jnp.zeros(features, param_dtype))
        lecun = nnx.initializers.lecun_normal()
        self.w_out = nnx.Param(lecun(key(), (features, out_features), param_dtype))
        self.b_out = nnx.Param(jnp.zeros(out_features, param_dtype))
        self.threshold = Threshold(jnp.full(features, threshold)) if learned else threshold
        self.variant, self.ceiling, self.capacity = variant, ceiling, capacity

    def __call__(self, x: ArrayLike) -> jax.Array:
        """Applies the block to x (..., in_features); returns (..., out_features), in x's dtype."""
        threshold = self.threshold
        return compact_mlp(
            x,
            self.w_in[...],
            self.w_out[...],
            threshold[...] if isinstance(threshold, nnx.Variable) else threshold,
            b_in=self.b_in[...],
            b_out=self.b_out[...],
            variant=self.variant,
            ceiling=self.ceiling,
            capacity=self.capacity,
        )
