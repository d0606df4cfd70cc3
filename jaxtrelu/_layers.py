"""What the Flax layers share, without Flax: which threshold a layer has, and how it is applied.

A layer's threshold is given as a number, as an array with one entry per channel, or as an
initialiser ``(key, shape, dtype) -> array``. What is stored is float32 unless float64 is asked for
(or, if it is not learned, another dtype), whatever the dtype of the activations: a bfloat16
threshold near 1 cannot make steps below 1/256, and stops learning.

A JumpReLU stores its threshold "raw", so that a step of size lr moves it by lr; or as ρ with
θ = s · softplus(ρ / s), s the mean of the thresholds at the start: always positive, and near the
start it moves by 0.63 of what ρ moves. (Unscaled, dθ/dρ ≈ θ for a small θ, and the threshold would
hardly move, like the logarithm's: SAELens#494.) s is stored beside ρ and is no parameter: it
belongs to what was trained, not to how the layer is constructed that takes it up.
"""

import dataclasses
import numbers
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from jaxtrelu._activation import mean_open
from jaxtrelu._primitive.rules import thresholded
from jaxtrelu._primitive.spec import (
    Spec,
    ThresholdLike,
    activation_operands,
    aligned_threshold,
    check_leaves_fill,
    checked_start,
    real_array,
)


def static_number(threshold: ThresholdLike) -> int | float | None:
    """The threshold as a Python number, if it is one: then nothing needs to be stored."""
    if isinstance(threshold, numbers.Integral):
        return int(threshold)
    return float(threshold) if isinstance(threshold, numbers.Real) else None


def weights_threshold_dtype(param_dtype: DTypeLike) -> DTypeLike:
    """The dtype of thresholds beside weights of `param_dtype`: float32 at least."""
    return jnp.float64 if jnp.dtype(param_dtype) == jnp.float64 else jnp.float32


def initialise(
    threshold: ThresholdLike,
    key: Any,
    shape: tuple,
    *,
    dtype: DTypeLike,
    learned: bool,
    spec: Spec,
) -> Any:
    """The stored threshold's first value."""
    if not callable(threshold):
        return jnp.broadcast_to(_array(threshold, dtype), shape)
    # An initialiser may return its array in a box with metadata, such as its sharding.
    value = jax.tree.map(
        lambda leaf: checked_start(leaf, shape, dtype), threshold(key, shape, dtype)
    )
    if learned:
        for leaf in jax.tree.leaves(value):
            if isinstance(leaf, jax.Array):
                check_leaves_fill(leaf, spec)
    return value


def _array(threshold: Any, dtype: DTypeLike) -> jax.Array:
    sequence = isinstance(threshold, (list, tuple))
    return jnp.asarray(np.asarray(threshold) if sequence else threshold, dtype)


def apply(
    x: ArrayLike,
    threshold: Any,
    spec: Spec,
    *,
    axes: tuple[int, ...],
    dtype: DTypeLike | None,
    floating: bool = False,
) -> jax.Array:
    """The activation of `x` cast to `dtype`; the threshold stands along `axes` of x."""
    x = real_array(x, "x")
    if dtype is not None:
        x = x.astype(dtype)
    if jnp.ndim(threshold):
        threshold = aligned_threshold(threshold, x.shape, axes)
    return thresholded(*activation_operands(x, threshold, spec, floating=floating), spec)


# JumpReLU


def softplus_scale(threshold: ArrayLike | Sequence[float], dtype: DTypeLike) -> jax.Array:
    """The softplus's s, a scalar: the mean of the thresholds at the start."""
    return jnp.mean(_array(threshold, dtype))


def unconstrained(
    threshold: ArrayLike | Sequence[float],
    scale: jax.Array | None,
    shape: tuple,
    dtype: DTypeLike,
) -> jax.Array:
    """What is stored where the threshold is `threshold`; `scale` is None for "raw"."""
    theta = jnp.broadcast_to(_array(threshold, dtype), shape)
    if scale is None:
        return theta
    # log(expm1(u)), which overflows from u = 89 on in float32.
    u = theta / scale
    return scale * (u + jnp.log(-jnp.expm1(-u)))


def constrained(stored: jax.Array, scale: jax.Array | None) -> jax.Array:
    """The threshold that belongs to what is stored: of its shape and dtype, never negative.

    "raw" is clipped at 0 for the value only: the gradient passes the clip, since a parameter that
    an optimiser pushed below 0 would otherwise never come back.
    """
    if scale is None:
        return stored + jax.lax.stop_gradient(jnp.maximum(stored, 0) - stored)
    scale = jax.lax.stop_gradient(scale)
    return scale * jax.nn.softplus(stored / scale)


def open_features(
    x: ArrayLike, threshold: jax.Array, spec: Spec, *, axis: int, dtype: DTypeLike | None
) -> jax.Array:
    """Mean number of open features per example, float32, with the surrogate's gradient."""
    spec = dataclasses.replace(spec, variant="step")
    gates = apply(x, threshold, spec, axes=(axis,), dtype=dtype, floating=True)
    return mean_open(gates, axis)


def flax_is_missing(error: ImportError, module: str) -> ImportError:
    """What to raise where `module` was imported without Flax."""
    if (error.name or "").split(".")[0] != "flax":
        return error
    return ImportError(
        f"{module} needs Flax, which is not installed. Install it with "
        "`pip install 'jaxtrelu[flax]'`.",
        name=error.name,
    )
