"""Diagnostics of thresholds that learn, as a plain function of a batch."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxtrelu._activation import mean_open
from jaxtrelu._surrogates import Surrogate


class Diagnostics(NamedTuple):
    """What to look at when thresholds do not learn: float32 scalars."""

    l0: Array
    """Mean number of open features per example."""
    dead_share: Array
    """Share of the features that are open for no example of the batch."""
    window_share: Array
    """Share of the entries inside the surrogate's window, ε·p(θ): the only ones that teach θ."""
    window_hits: Array
    """The same as entries per feature and batch; below about 1 thresholds learn from noise."""
    threshold_distance: Array
    """Mean of |θ − θ at the start|, in the units of θ."""


def diagnostics(
    pre_activations: Float[Array, "batch m"],
    threshold: Float[Array, " m"],
    initial_threshold: Float[Array, "..."] | float,
    surrogate: Surrogate,
) -> Diagnostics:
    """L0, dead share, share of entries inside the window and distance moved by the thresholds.

    Args:
      pre_activations: π, (batch, m).
      threshold: θ, (m,), in the units of π.
      initial_threshold: θ at the start, (m,) or a number.
      surrogate: its window is |π − θ| < its half width; for a surrogate of unbounded support, less
        than one bandwidth.

    Returns:
      `Diagnostics`; works inside jit.

    Raises:
      ValueError: `pre_activations` is not a matrix.

    >>> from jaxtrelu import Rectangle
    >>> pi = jnp.array([[0.4, 0.52, 0.48, 1.0]])
    >>> theta = jnp.full(4, 0.5, jnp.float32)
    >>> d = diagnostics(pi, theta, 0.25, Rectangle(0.1))
    >>> [value.item() for value in d]
    [2.0, 0.5, 0.5, 0.5, 0.25]
    """
    if pre_activations.ndim != 2:
        raise ValueError(
            "`pre_activations` should have shape (batch, features), but has shape "
            f"{tuple(pre_activations.shape)}."
        )
    pi = pre_activations.astype(jnp.float32)
    is_open = pi > threshold
    half_width = surrogate.half_width or surrogate.bandwidth
    inside = jnp.abs(pi - threshold) < half_width
    share = jnp.mean(inside, dtype=jnp.float32)
    return Diagnostics(
        l0=mean_open(is_open),
        dead_share=jnp.mean(~jnp.any(is_open, axis=0), dtype=jnp.float32),
        window_share=share,
        window_hits=share * pi.shape[0],
        threshold_distance=jnp.mean(jnp.abs(threshold - initial_threshold)),
    )
