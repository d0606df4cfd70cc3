"""Thresholds for a wanted share of zeros: from the normal distribution, or from data."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import ndtri
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxtrelu._primitive.spec import accumulator_dtype, real_array
from jaxtrelu.theory._operands import axes_of, floating, known, within


def gaussian_cutoff(
    x: Float[ArrayLike, "..."], sparsity: Float[ArrayLike, "..."], axis: int | Sequence[int] = -1
) -> Float[Array, "..."]:
    r"""The threshold above which a share 1 − s of a normal row lies.

    :math:`\mathrm{mean} + \mathrm{std} \cdot \Phi^{-1}(s)`, Gemma 3n's cutoff, usable
    inside a forward pass: no sort, and differentiable with respect to x.
    ``thresholded_relu(x, gaussian_cutoff(x, s))`` is Spark Transformer's Gaussian top-k.

    Args:
      x: floating-point array; each row along `axis` has a cutoff of its own.
      sparsity: s, between 0 and 1, one number or what broadcasts against the result.
      axis: the axis or axes over which mean and standard deviation (of the population) are taken.

    Returns:
      The cutoff, in x's units, with `axis` kept at size 1; float32 at least, so that the
      comparison is not rounded to a narrow x.

    Raises:
      TypeError: x is not a floating-point array.
      ValueError: a sparsity outside of (0, 1), or an axis of no elements.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxtrelu import theory
      >>> x = jax.random.normal(jax.random.key(0), (2, 10_000))
      >>> cutoff = theory.gaussian_cutoff(x, 0.95)
      >>> cutoff.shape, bool(jnp.all(jnp.abs(jnp.mean(x > cutoff, -1) - 0.05) < 0.01))
      ((2, 1), True)

    Source: Gemma 3n; You et al. 2025 (Spark Transformer), arXiv 2506.06644.
    """
    x = real_array(x, "x")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"`x` should be floating point here, but has dtype {x.dtype}. Pass x.astype('float32')."
        )
    (share,) = floating(sparsity=sparsity)
    within(0, 1, sparsity=share)
    x = x.astype(accumulator_dtype(x.dtype))
    axes = axes_of(axis, x.shape, "x")
    mean = jnp.mean(x, axes, keepdims=True)
    variance = jnp.mean(jnp.square(x - mean), axes, keepdims=True)
    # The root of a row without spread has no derivative; it is given that of a constant.
    spread = variance > 0
    std = jnp.where(spread, jnp.sqrt(jnp.where(spread, variance, 1)), 0)
    return mean + std * ndtri(share).astype(x.dtype)


def quantile_threshold(
    data: Float[ArrayLike, "..."], sparsity: float, axis: int | Sequence[int] | None = None
) -> Float[Array, "..."]:
    """The smallest threshold at which at least a share `sparsity` of the data is closed; exact.

    An element of the data, so that no interpolation opens or closes a gate: of n values the
    ⌈s n⌉-th in rising order. Values equal to it are closed as well.

    Args:
      data: pre-activations, any shape.
      sparsity: s, between 0 and 1.
      axis: over which the quantile is taken; None: over all. With examples along axis 0, ``axis=0``
        gives one threshold per channel.

    Returns:
      The threshold, without `axis`, in the data's units and dtype.

    Raises:
      TypeError: the data is not a real array, or is inside of `jax.jit` or another transformation:
        it looks at the values. There `gaussian_cutoff` serves.
      ValueError: no data, NaN in it, all values equal (no threshold divides them), or a sparsity
        outside of (0, 1).

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxtrelu import theory
      >>> theory.quantile_threshold(jnp.arange(10.0), 0.75).item()
      7.0

    Source: the definition of a quantile.
    """
    known("quantile_threshold", data=data, sparsity=sparsity)
    data = np.asarray(real_array(data, "data"))
    within(0, 1, sparsity=np.asarray(sparsity))
    if not data.size:
        raise ValueError(f"`data` of shape {data.shape} has no elements, and so no quantile.")
    axes = tuple(range(data.ndim)) if axis is None else axes_of(axis, data.shape, "data")
    kept = [a for a in range(data.ndim) if a not in axes]
    samples = np.transpose(data, [*kept, *axes]).reshape(*(data.shape[a] for a in kept), -1)
    count = samples.shape[-1]
    if np.isnan(samples.astype(np.float32)).any():
        raise ValueError("`data` holds NaN, which has no place in an order. Remove it first.")
    if (samples.max(-1) == samples.min(-1)).any():
        which = "" if not kept else " in some channel"
        raise ValueError(f"all values of `data` are equal{which}: no threshold divides them.")
    # Rounded first: .7 * 10 is a little more than 7 in binary.
    place = int(np.clip(np.ceil(round(sparsity * count, 9)), 1, count)) - 1
    return jnp.asarray(np.partition(samples, place, axis=-1)[..., place])
