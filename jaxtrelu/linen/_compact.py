"""A two-layer block that keeps its latent compactly, as a Flax Linen module."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike, DTypeLike

from jaxtrelu._primitive.spec import VariantName
from jaxtrelu.sparse import compact_mlp


class CompactMLP(nn.Module):
    """``act(x @ w_in.T + b_in) @ w_out + b_out``, with a latent kept as words and values.

    See `jaxtrelu.sparse.compact_mlp`, which this block calls: the values and gradients of the dense
    block, one bit per latent element and one number per open entry between the passes.

    Attributes:
      features: m, the size of the latent.
      out_features: the size of the result's last axis; None: that of x.
      threshold: where the thresholds start, in the units of the pre-activations.
      learned: whether the thresholds, one per feature, are a parameter.
      variant: ``"shift"`` or ``"hard"``.
      ceiling: for ``shift``: the largest value, a positive Python number.
      capacity: open entries per row that the lists hold on average; None: m / 8. A hint.
      param_dtype: dtype of weights and biases; thresholds are float32.

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
    threshold: float = 1.0
    learned: bool = False
    variant: VariantName = "shift"
    ceiling: float | None = None
    capacity: int | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: ArrayLike) -> jax.Array:
        """Applies the block to x (..., d); returns (..., out_features), in x's dtype."""
        width = jnp.shape(x)[-1]
        out = width if self.out_features is None else self.out_features
        fan_in = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", -1, -2)
        zeros, dtype = nn.initializers.zeros_init(), self.param_dtype
        threshold = self.threshold
        if self.learned:
            start = nn.initializers.constant(self.threshold)
            threshold = self.param("threshold", start, (self.features,), jnp.float32)
        return compact_mlp(
            x,
            self.param("w_in", fan_in, (self.features, width), dtype),
            self.param("w_out", nn.initializers.lecun_normal(), (self.features, out), dtype),
            threshold,
            b_in=self.param("b_in", zeros, (self.features,), dtype),
            b_out=self.param("b_out", zeros, (out,), dtype),
            variant=self.variant,
            ceiling=self.ceiling,
            capacity=self.capacity,
        )
