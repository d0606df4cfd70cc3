"""What the two-layer products share: the static part of a call, and the dense pieces of a block."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxtrelu._primitive.rules import thresholded
from jaxtrelu._primitive.spec import Spec, accumulator_dtype

# Share of entries for which lists are made; beyond it dense products are taken. On a CPU those are
# faster from 1/10 on for rows of 768 numbers, from 1/48 on for rows of 144 (docs/sparse.md).
CROSSOVER = 1 / 32
# Entries per feature summed in the first pass over a weight gradient.
DIRECT = 4


@dataclasses.dataclass(frozen=True)
class Plan:
    """The static part of a call."""

    spec: Spec
    size: int
    """Entries that the lists hold."""
    direct: int = DIRECT
    """Entries per feature that a weight gradient sums in its first pass."""

    @property
    def window_is_silent(self) -> bool:
        """Whether closed entries inside the window matter to the threshold's gradient alone."""
        surrogate = self.spec.surrogate
        return surrogate is not None and self.spec.row.jump is not None and not surrogate.to_input


def encoded(x: jax.Array, weights: jax.Array) -> jax.Array:
    """``x @ weights.T``, in float32 at least: what is near a threshold is decided unrounded."""
    dtype = accumulator_dtype(x.dtype, weights.dtype)
    x, weights = _alike(x, weights)
    return jnp.matmul(x, weights.T, preferred_element_type=dtype)


def biased(product: jax.Array, bias: jax.Array | None) -> jax.Array:
    """The pre-activations, from the product and as much of the bias as belongs to it."""
    if bias is None:
        return product
    bias = bias.astype(product.dtype)
    return product + (bias[None] if product.ndim > bias.ndim else bias)


def activated(plan: Plan, z: jax.Array, threshold: jax.Array) -> jax.Array:
    """The activation, differentiable: z (B, m) with threshold (m,), or both of one shape."""
    return thresholded(z, _beside(threshold, z), plan.spec)


def gates(plan: Plan, z: jax.Array, threshold: jax.Array) -> jax.Array:
    """The gate as a number, with the surrogate's gradient, of z's shape and dtype."""
    step = Spec("step", surrogate=plan.spec.surrogate, implementation=plan.spec.implementation)
    return thresholded(z, _beside(threshold, z), step)


def decoded(plan: Plan, z: jax.Array, threshold: jax.Array, w_out: jax.Array) -> jax.Array:
    """``act(z) @ w_out``, a dense product, in z's dtype."""
    a = activated(plan, z, threshold).astype(w_out.dtype)
    return jnp.matmul(a, w_out, preferred_element_type=z.dtype)


def finished(y: jax.Array, b_out: jax.Array | None, lead: tuple, dtype) -> jax.Array:
    """The result of a block in its public shape and dtype, with the last bias."""
    return biased(y, b_out).astype(dtype).reshape(*lead, y.shape[-1])


def _alike(x: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both in one dtype, which is stated here: a strict mode has nothing to object to."""
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.promote_types(x.dtype, weights.dtype)
    return x.astype(dtype), weights.astype(dtype)


def _beside(threshold: jax.Array, z: jax.Array) -> jax.Array:
    return threshold[None] if threshold.ndim < z.ndim else threshold
