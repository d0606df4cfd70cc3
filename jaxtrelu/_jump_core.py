"""What the JumpReLU layers share, without Flax: how a threshold is parametrised, and its checks.

"raw" stores the threshold itself: an optimiser's step of size lr moves it by lr. "softplus" stores
ρ with θ = s · softplus(ρ / s), s the threshold at the start: always positive, and near the start
it moves by 0.63 of what ρ moves. (Unscaled, dθ/dρ ≈ θ for a small θ, and the threshold would hardly
move, like the logarithm's: SAELens#494.)
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxtrelu._activation import jump_relu, step
from jaxtrelu._surrogates import Surrogate

PARAMETRISATIONS = ("raw", "softplus")


def check(
    features: int, threshold: ArrayLike | Sequence[float], surrogate: Any, parametrisation: str
) -> np.ndarray:
    """Refuses at construction what could not learn; returns the first thresholds, (features,)."""
    if isinstance(features, bool) or not isinstance(features, int) or features < 1:
        raise ValueError(f"`features` should be a whole number ≥ 1, but is {features!r}.")
    if not isinstance(surrogate, Surrogate):
        raise TypeError(
            "`surrogate` should be a jaxtrelu surrogate, such as jaxtrelu.Rectangle(0.05), but is "
            f"{surrogate!r}: without one the thresholds would not learn."
        )
    if parametrisation not in PARAMETRISATIONS:
        raise ValueError(
            f"`parametrisation` should be 'raw' or 'softplus', but is {parametrisation!r}."
        )
    first = np.asarray(threshold, np.float32)
    if first.shape not in ((), (features,)):
        raise ValueError(
            f"`threshold` should be a number or have shape ({features},), one per feature, but has "
            f"shape {first.shape}."
        )
    if not np.isfinite(first).all() or (first < 0).any():
        raise ValueError(
            f"`threshold` should be finite and at least 0, but is {threshold!r}: below zero the "
            "gate would let negative pre-activations through."
        )
    if parametrisation == "softplus" and (first <= 0).any():
        raise ValueError(
            f"`threshold` should be greater than 0 under parametrisation='softplus', but is "
            f"{threshold!r}. Pass a positive number, or parametrisation='raw'."
        )
    return np.broadcast_to(first, (features,))


def scale_of(first: np.ndarray) -> float:
    """The softplus's s: the mean of the thresholds at the start."""
    return float(first.mean())


def stored(first: np.ndarray, parametrisation: str) -> Array:
    """The parameter, float32, whose `threshold` is `first`."""
    if parametrisation == "raw":
        return jnp.asarray(first, jnp.float32)
    scale = scale_of(first)
    return jnp.asarray(scale * np.log(np.expm1(first.astype(np.float64) / scale)), jnp.float32)


def threshold(parameter: Array, parametrisation: str, scale: float) -> Array:
    """The threshold of a parameter, float32, never negative.

    "raw" is clipped at 0 for the value only: the gradient passes the clip, since a parameter that
    an optimiser pushed below 0 would otherwise never come back.
    """
    if parametrisation == "raw":
        return parameter + jax.lax.stop_gradient(jnp.maximum(parameter, 0) - parameter)
    return scale * jax.nn.softplus(parameter / scale)


def activation(x: ArrayLike, theta: Array, surrogate: Surrogate, axis: int) -> Array:
    """JumpReLU of x, with one threshold per feature along `axis`."""
    x = jnp.asarray(x)
    return jump_relu(x, _along(theta, x, axis), surrogate=surrogate)


def l0(x: ArrayLike, theta: Array, surrogate: Surrogate, axis: int) -> Array:
    """Mean number of open features per example, float32, with the surrogate's gradient."""
    x = jnp.asarray(x)
    gates = step(x, _along(theta, x, axis), surrogate=surrogate)
    return jnp.mean(jnp.sum(gates, axis=axis, dtype=jnp.float32))


def _along(theta: Array, x: Array, axis: int) -> Array:
    if not -x.ndim <= axis < x.ndim or x.shape[axis] != theta.size:
        raise ValueError(
            f"x should have {theta.size} features along axis {axis}, but has shape {x.shape}."
        )
    shape = [1] * x.ndim
    shape[axis] = math.prod(theta.shape)
    return theta.reshape(shape)
